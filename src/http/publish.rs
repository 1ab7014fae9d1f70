//! `POST /api/publish` and `/api/publish/bulk`: the triggers whose body names whole topics.
//!
//! An event names its whole topic here and means the same as a client's push on that topic; the
//! topic names the app. The caller is therefore judged twice: by the head, whether its credentials
//! can be right for any app, before the body is read; then for the app that the body names.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::value::RawValue;

use super::{
    Services,
    auth::{AuthenticatedApp, Credentials, Proof},
    error::ApiError,
    json::{Json, fault},
    trigger::{self, EventFields, TriggerRequest},
};
use crate::{
    app::fields::Faults,
    broker::{Addressing, Publication, PublicationOrigin, TopicName, address},
    session::requests::trust,
};

/// The most events of one bulk call.
pub const EVENTS_MAX: usize = 100;

/// Publishes one event to the topic that the event names.
///
/// # Errors
/// [`ApiError`] as in the specification's chapter on triggering.
pub async fn create(
    request: HttpRequest,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let credentials = Credentials::of(&request, &services)?;
    let share = credentials.judge_before_body(&services)?;
    let json = Json::read(&request, payload, &services, share).await?;
    let fields = EventFields::of_body(&json)?;
    let topic = read_topic(&fields, &services.addressing())?;
    let credentials = credentials.on(topic.as_str());
    let by = credentials.authenticate(&services, topic.app.as_str(), Proof::SecretAlone)?;
    trust(&request);
    credentials.pace(&services, &by, 1)?;
    let mut faults = Faults::default();
    let asked = fields.request(credentials.key_owner(&by), &mut faults);
    let publication = read(&topic, &fields, &by, &services, faults);
    let publication =
        publication.inspect_err(|error| credentials.note_forbidden(&services, &by, error))?;
    trigger::publish(&services, asked, vec![publication]).await
}

/// Publishes up to [`EVENTS_MAX`] events of one app in order: either all of them or none.
///
/// # Errors
/// [`ApiError`] as in the specification's chapter on triggering.
pub async fn create_all(
    request: HttpRequest,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let credentials = Credentials::of(&request, &services)?;
    let share = credentials.judge_before_body(&services)?;
    let json = Json::read(&request, payload, &services, share).await?;
    let [events, idempotency_key, position] =
        json.members(["events", "idempotency_key", "position"])?;
    let events = read_events(events)?;
    let events = each(&events, |event| read_event(event, &services.addressing()))?;
    let app = one_app(&events)?;
    let first = events.first().map(|(topic, _)| topic.as_str()).unwrap_or_default();
    let by = credentials.on(first).authenticate(&services, app, Proof::SecretAlone)?;
    trust(&request);
    credentials.pace(&services, &by, events.len())?;
    let owner = credentials.key_owner(&by);
    let asked = TriggerRequest::of_bulk(idempotency_key, position, owner)?;
    let publications = each(&events, |(topic, fields)| {
        let note = |error: &_| credentials.on(topic.as_str()).note_forbidden(&services, &by, error);
        let mut faults = Faults::default();
        faults.note("idempotency_key", fields.check_no_key());
        read(topic, fields, &by, &services, faults).inspect_err(note)
    })?;
    trigger::publish(&services, asked, publications).await
}

fn read_topic(fields: &EventFields<'_>, addressing: &Addressing) -> Result<TopicName, ApiError> {
    let topic = fields.topic().and_then(|raw| TopicName::parse(&raw, addressing).map_err(fault));
    topic.map_err(|fault| ApiError::invalid("topic", fault))
}

fn read(
    topic: &TopicName,
    fields: &EventFields<'_>,
    by: &AuthenticatedApp,
    services: &Services,
    mut faults: Faults,
) -> Result<Publication, ApiError> {
    let addressing = services.addressing();
    let addressed = fields.event();
    let addressed = addressed.and_then(|event| address(topic, &event, &addressing).map_err(fault));
    let addressed = faults.note("event", addressed);
    let payload = fields.payload(by.payload_bytes_max(&services.settings.limits));
    let payload = trigger::note_payload(&mut faults, payload);
    let payload = payload.inspect_err(|_| services.metrics.hit(by.payload_limit()))?;
    let (Some((destination, event)), Some(payload)) = (addressed, payload) else {
        return Err(faults.into());
    };
    faults.check()?;
    by.permit(&topic.scope, &destination, &addressing)?;
    let (app, scope) = (by.app.id, topic.scope.clone());
    let (origin, except) = (PublicationOrigin::Trigger, None);
    Ok(Publication { app, scope, destination, event, payload, origin, except })
}

fn read_events(events: Option<&RawValue>) -> Result<Vec<&RawValue>, ApiError> {
    let invalid = |fault| Err(ApiError::invalid("events", fault));
    let Some(events) = events else {
        return invalid("must be a list");
    };
    match serde_json::from_str::<Vec<&RawValue>>(events.get()) {
        Err(_) => invalid("must be a list"),
        Ok(events) if events.is_empty() => invalid("must not be empty"),
        Ok(events) if events.len() > EVENTS_MAX => invalid("must be at most 100"),
        Ok(events) => Ok(events),
    }
}

fn read_event<'a>(
    event: &'a RawValue,
    addressing: &Addressing,
) -> Result<(TopicName, EventFields<'a>), ApiError> {
    let Some(fields) = EventFields::of_event(event) else {
        return Err(ApiError::invalid("event", "must be an object"));
    };
    Ok((read_topic(&fields, addressing)?, fields))
}

fn one_app<'a>(events: &'a [(TopicName, EventFields<'_>)]) -> Result<&'a str, ApiError> {
    let mut apps = events.iter().map(|(topic, _)| topic.app.as_str());
    match apps.next() {
        Some(first) if apps.all(|app| app == first) => Ok(first),
        _ => Err(ApiError::invalid("events", "must be of one app")),
    }
}

/// Reads the events up to the first invalid one, whose faults are reported with its index in the list.
fn each<E, T>(events: &[E], read: impl Fn(&E) -> Result<T, ApiError>) -> Result<Vec<T>, ApiError> {
    let read_at = |(nth, event)| read(event).map_err(|error| at(nth, error));
    events.iter().enumerate().map(read_at).collect()
}

fn at(nth: usize, error: ApiError) -> ApiError {
    let ApiError::Invalid(faults) = error else {
        return error;
    };
    let mut found = Faults::default();
    for (field, fault) in faults.iter().flat_map(|(field, all)| all.iter().map(move |f| (field, f)))
    {
        found.add("events", format!("{nth}: {field} {fault}"));
    }
    found.into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use actix_web::test::TestRequest;
    use serde_json::{Value, json};

    use super::*;
    use crate::http::{
        auth::Caller,
        body::{Body, BodySyntax},
        testing::{SECRET, TestServices, app, object, token_of},
    };

    fn post(path: &str, body: &Value) -> TestRequest {
        TestRequest::post().uri(path).insert_header(("Authorization", SECRET)).set_json(body)
    }

    fn refused(status: u16, detail: &str) -> (u16, Value) {
        (status, json!({ "errors": { "detail": detail } }))
    }

    fn invalid(field: &str, fault: &str) -> (u16, Value) {
        (422, json!({ "errors": { field: [fault] } }))
    }

    #[actix_web::test]
    async fn a_topic_and_an_event_mean_what_a_push_would() {
        let many = TestServices::start().await;
        let single = TestServices::start_with(&[("HERALD__SINGLE_APP", "foo-app")]).await;
        let by = AuthenticatedApp { app: Arc::new(app("foo-app")), caller: Caller::Application };
        for (services, topic, event, expected) in [
            (&many, "private:foo-app:room-1", "msg", ("private", "room-1", "msg")),
            (&many, "private:foo-app:room:1", "a:b", ("private", "room:1", "a:b")),
            (&many, "public:foo-app", "room:msg", ("public", "room", "msg")),
            (&many, "public:foo-app", "msg", ("public", "#general", "msg")),
            (&single, "deploys:web", "msg", ("deploys", "web", "msg")),
            (&single, "private:123:4", "a:b", ("private", "123:4", "a:b")),
            (&single, "private:foo-app:123:4", "a:b", ("private", "123:4", "a:b")),
            (&single, "private:foo-app", "room:msg", ("private", "room", "msg")),
            (&single, "private:foo-app", "msg", ("private", "#general", "msg")),
            (&single, "private:foo-app:foo-app", "msg", ("private", "foo-app", "msg")),
        ] {
            let body = json!({ "topic": topic, "event": event, "payload": { "a": 1 } });
            let bytes = body.to_string().into();
            let body = Json::from_body(Body { kind: BodySyntax::Json, bytes }).expect("a body");
            let fields = EventFields::of_body(&body).expect("fields");
            let addressing = services.services.addressing();
            let name = read_topic(&fields, &addressing).expect("a topic");
            let read = read(&name, &fields, &by, &services.services, Faults::default())
                .expect("a publication");
            let told = (read.scope.as_str(), read.destination.as_str(), read.event.as_str());
            assert_eq!((read.app, told), (by.app.id, expected), "{topic} {event}");
            assert_eq!(read.payload, object(r#"{"a":1}"#), "{topic} {event}");
        }
    }

    #[actix_web::test]
    async fn one_event_is_published_or_refused() {
        let services = TestServices::start().await;
        let event = |topic: &str, event: &str| json!({ "topic": topic, "event": event });
        let good = event("private:foo-app:room", "msg");
        for (case, body, expected) in [
            ("good", good.clone(), (200, json!({}))),
            ("no topic", json!({ "event": "e" }), invalid("topic", "must not be empty")),
            ("half a topic", event("private", "e"), invalid("topic", "is not a whole topic")),
            (
                "no slug",
                event("private:A b", "e"),
                invalid("topic", "has a character that is not allowed"),
            ),
            ("no event", event("private:foo-app", ""), invalid("event", "must not be empty")),
            (
                "the wire's",
                event("private:foo-app", "c:phx_close"),
                invalid("event", "is reserved"),
            ),
            ("unknown app", event("private:bar-app", "e"), refused(401, "authentication required")),
            (
                "inactive app",
                event("private:idle-app", "e"),
                refused(401, "authentication required"),
            ),
            ("no object", json!([good]), refused(400, "request body must be a JSON object")),
        ] {
            assert_eq!(services.call(post("/api/publish", &body)).await, expected, "{case}");
        }
        let form = TestRequest::post()
            .uri("/api/publish")
            .insert_header(("Authorization", SECRET))
            .set_form([("topic", "public:foo-app"), ("event", "msg"), ("payload", "{\"a\":1}")]);
        assert_eq!(services.call(form).await, (200, json!({})));
        let get = TestRequest::get().uri("/api/publish");
        assert_eq!(services.call(get).await, refused(405, "method not allowed"));
        let stranger = TestRequest::post().uri("/api/publish").set_json(&good);
        assert_eq!(services.call(stranger).await, refused(401, "authentication required"));
    }

    #[actix_web::test]
    async fn many_events_are_published_together_or_not_at_all() {
        let services = TestServices::start().await;
        let good = json!({ "topic": "public:foo-app", "event": "msg" });
        let bad = json!({ "topic": "public:foo-app", "event": "phx_x", "payload": 1 });
        let other = json!({ "topic": "public:open-app", "event": "msg" });
        let unknown = json!({ "topic": "public:bar-app", "event": "msg" });
        let events = |events: Vec<&Value>| json!({ "events": events });
        let large = json!({
            "topic": "public:foo-app", "event": "msg", "payload": { "a": "x".repeat(200_000) }
        });
        for (case, body, expected) in [
            ("one", events(vec![&good]), (200, json!({}))),
            ("100", events(vec![&good; 100]), (200, json!({}))),
            ("101", events(vec![&good; 101]), invalid("events", "must be at most 100")),
            ("none", events(vec![]), invalid("events", "must not be empty")),
            ("no list", json!({ "events": good }), invalid("events", "must be a list")),
            ("null", json!({ "events": null }), invalid("events", "must be a list")),
            ("nothing", json!({}), invalid("events", "must be a list")),
            ("no object", json!([good]), refused(400, "request body must be a JSON object")),
            (
                "one is bad",
                events(vec![&good, &bad]),
                (
                    422,
                    json!({ "errors": {
                    "events": ["1: event is reserved", "1: payload must be an object"]
                } }),
                ),
            ),
            (
                "one is none",
                events(vec![&json!(1)]),
                invalid("events", "0: event must be an object"),
            ),
            (
                "one is too large",
                events(vec![&good, &large]),
                refused(413, "payload is larger than 102400 bytes"),
            ),
            ("two apps", events(vec![&good, &other]), invalid("events", "must be of one app")),
            ("unknown app", events(vec![&unknown]), refused(401, "authentication required")),
        ] {
            assert_eq!(services.call(post("/api/publish/bulk", &body)).await, expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn one_event_that_is_not_permitted_stops_all() {
        let services = TestServices::start().await;
        let token = token_of(SECRET, &json!({ "publish": ["public:foo-app:a"] }));
        let event = |topic: &str| json!({ "topic": topic, "event": "msg" });
        let (a, b) = (event("public:foo-app:a"), event("public:foo-app:b"));
        let not_there = refused(403, "the token does not permit publishing there");
        for (case, events, expected) in [
            ("permitted", json!([a, a]), (200, json!({}))),
            ("one is not", json!([a, b]), not_there),
        ] {
            let request = post("/api/publish/bulk", &json!({ "events": events }))
                .insert_header(("Authorization", format!("Bearer {token}")));
            assert_eq!(services.call(request).await, expected, "{case}");
        }
    }
}
