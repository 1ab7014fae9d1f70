//! `POST /api/apps/<slug>/events`: the trigger whose path names the app, and whose body names the channel.

use actix_web::{HttpRequest, HttpResponse, web};

use super::{
    Services,
    auth::{AuthenticatedApp, Credentials, Proof},
    error::ApiError,
    json::{FieldFault, Json, fault},
    trigger::{self, EventFields},
};
use crate::{
    app::fields::Faults,
    broker::{
        Addressing, Destination, EventName, NameError, Publication, PublicationOrigin, Scope,
        TopicName,
    },
    session::requests::trust,
};

/// Publishes one event of the app in the path, as a form or as JSON.
///
/// # Errors
/// [`ApiError`] as in the specification's chapter on triggering.
pub async fn create(
    request: HttpRequest,
    slug: web::Path<String>,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    // The caller is judged before the body is read, so that the body of an unauthenticated caller takes
    // no memory, and again after it, because the app may have changed meanwhile.
    let credentials = Credentials::of(&request, &services)?;
    let by = credentials.authenticate(&services, &slug, Proof::KeyAndSecret)?;
    trust(&request);
    let json = Json::read(&request, payload, &services, by.share()).await?;
    let by = credentials.authenticate_again(&services, &slug, Proof::KeyAndSecret, by)?;
    credentials.pace(&services, &by, 1)?;
    let fields = EventFields::of_body(&json)?;
    let note = |error: &_| {
        let topic = fields.topic().unwrap_or_default();
        credentials.on(&topic).note_forbidden(&services, &by, error);
    };
    let mut faults = Faults::default();
    let asked = fields.request(credentials.key_owner(&by), &mut faults);
    let publication = read(&fields, &by, &services, faults).inspect_err(note)?;
    trigger::publish(&services, asked, vec![publication]).await
}

fn read(
    fields: &EventFields<'_>,
    by: &AuthenticatedApp,
    services: &Services,
    mut faults: Faults,
) -> Result<Publication, ApiError> {
    let addressing = services.addressing();
    let scope = faults.note("scope", fields.scope());
    let destination = fields.topic().and_then(|raw| Destination::parse(&raw).map_err(fault));
    let destination = faults.note("topic", destination);
    let event = fields.event().and_then(|raw| EventName::parse(&raw).map_err(fault));
    let event = faults.note("event", event);
    let payload = fields.payload(by.payload_bytes_max(&services.settings.limits));
    let payload = trigger::note_payload(&mut faults, payload);
    let payload = payload.inspect_err(|_| services.metrics.hit(by.payload_limit()))?;
    let (Some(scope), Some(destination), Some(event), Some(payload)) =
        (scope, destination, event, payload)
    else {
        return Err(faults.into());
    };
    let prefixed = Publication::check_prefixed(&destination, &event).map_err(fault);
    let joinable = check_channel_alone(by, &destination)
        .and_then(|()| check_joinable(&addressing, &scope, by, &destination));
    faults.note("event", prefixed);
    faults.note("topic", joinable);
    faults.check()?;
    by.permit(&scope, &destination, &addressing)?;
    let (app, origin, except) = (by.app.id, PublicationOrigin::Trigger, None);
    Ok(Publication { app, scope, destination, event, payload, origin, except })
}

/// The scopes that every app has, and that callers know.
const KNOWN_SCOPES: [&str; 3] = ["public", "private", "presence"];

/// Refuses a channel that is spelled as a whole topic of this app in one of the [`KNOWN_SCOPES`], for example
/// `public:foo-app:room`: the caller means the topic, and the event would go to a channel of that name. With
/// any other first part it is a channel, such as `room:foo-app` of the topic `public:foo-app:room:foo-app`.
fn check_channel_alone(by: &AuthenticatedApp, destination: &Destination) -> Result<(), FieldFault> {
    let Destination::Channel(channel) = destination else { return Ok(()) };
    let Some((scope, rest)) = channel.as_str().split_once(':') else { return Ok(()) };
    let meant = match rest.strip_prefix(by.app.slug.as_str()) {
        Some("") => Destination::GENERAL,
        Some(rest) if rest.len() > 1 && rest.starts_with(':') => &rest[1..],
        _ => return Ok(()),
    };
    if !KNOWN_SCOPES.contains(&scope) {
        return Ok(());
    }
    let fault = format!(
        "is a whole topic; send the topic {meant:?} and the scope {scope:?}, or use /api/publish"
    );
    Err(fault.into())
}

/// Refuses a channel whose topic no client could join, for example because it would be too long.
fn check_joinable(
    addressing: &Addressing,
    scope: &Scope,
    by: &AuthenticatedApp,
    destination: &Destination,
) -> Result<(), FieldFault> {
    let Destination::Channel(channel) = destination else {
        return Ok(());
    };
    let topic = addressing.spell(scope, &by.app.slug, Some(channel));
    if topic.len() > TopicName::BYTES_MAX { Err(fault(NameError::WholeTooLong)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use actix_web::test::TestRequest;
    use serde_json::{Value, json};

    use super::*;
    use crate::http::{
        auth::Caller,
        body::{Body, BodySyntax},
        testing::{KEY, SECRET, TestServices, app, basic, object, token_of},
    };

    const PATH: &str = "/api/apps/foo-app/events";

    fn post(content_type: &str, body: impl Into<bytes::Bytes>) -> TestRequest {
        TestRequest::post()
            .uri(PATH)
            .insert_header(("Authorization", basic(KEY, SECRET)))
            .insert_header(("Content-Type", content_type))
            .set_payload(body)
    }

    fn json_post(body: &str) -> TestRequest {
        post("application/json", body.to_owned())
    }

    fn invalid(faults: Value) -> (u16, Value) {
        (422, json!({ "errors": faults }))
    }

    fn refused(status: u16, detail: &str) -> (u16, Value) {
        (status, json!({ "errors": { "detail": detail } }))
    }

    #[actix_web::test]
    async fn a_body_becomes_a_publication() {
        let services = TestServices::start().await;
        let by = AuthenticatedApp { app: Arc::new(app("foo-app")), caller: Caller::Application };
        for (case, kind, body, expected) in [
            (
                "the first article's form",
                BodySyntax::Form,
                "topic=room&event=msg&scope=public&payload=%7B%22message%22%3A+%22hi%22%7D",
                ("public", "room", "msg", r#"{"message": "hi"}"#),
            ),
            (
                "to everyone",
                BodySyntax::Form,
                "topic=%23general&event=msg",
                ("public", "#general", "msg", "{}"),
            ),
            (
                "JSON",
                BodySyntax::Json,
                r#"{"topic":"a:b","event":"c:d","scope":"private","payload":{"n":1.0}}"#,
                ("private", "a:b", "c:d", r#"{"n":1.0}"#),
            ),
            (
                "odd but allowed names",
                BodySyntax::Json,
                r#"{"topic":" ","event":"\ud83d\ude00","x":[1]}"#,
                ("public", " ", "\u{1f600}", "{}"),
            ),
        ] {
            let json = Json::from_body(Body { kind, bytes: body.into() }).expect("a body");
            let fields = EventFields::of_body(&json).expect("fields");
            let read =
                read(&fields, &by, &services.services, Faults::default()).expect("a publication");
            let (scope, destination, event, payload) = expected;
            let told = (read.scope.as_str(), read.destination.as_str(), read.event.as_str());
            assert_eq!((read.app, told), (by.app.id, (scope, destination, event)), "{case}");
            assert_eq!(read.payload, object(payload), "{case}");
        }
    }

    #[actix_web::test]
    async fn triggers_are_answered_with_an_empty_object() {
        let services = TestServices::start().await;
        let form = "application/x-www-form-urlencoded";
        for (case, request) in [
            ("form", post(form, "topic=room&event=msg&payload={}")),
            ("JSON", json_post(r#"{"topic":"room","event":"msg"}"#)),
            ("nobody is there", json_post(r#"{"topic":"room","event":"msg","scope":"void"}"#)),
        ] {
            assert_eq!(services.call(request).await, (200, json!({})), "{case}");
        }
    }

    #[actix_web::test]
    async fn bad_bodies_are_refused_with_plain_words() {
        let services = TestServices::start().await;
        let (c200, c201) = ("c".repeat(200), "c".repeat(201));
        let (e56, s32) = ("e".repeat(56), "s".repeat(32));
        let long_topic = json!({ "topic": c201, "event": "e" }).to_string();
        let long_together = json!({ "topic": c200, "event": e56 }).to_string();
        // 32 + 1 + 7 + 1 + 214 bytes just fit, so 200 always fit for this app.
        let long_whole = json!({ "topic": c200, "event": "e", "scope": s32 }).to_string();
        for (case, body, expected) in [
            ("fits", long_whole.as_str(), (200, json!({}))),
            (
                "nothing in it",
                "{}",
                invalid(json!({ "topic": ["must not be empty"], "event": ["must not be empty"] })),
            ),
            (
                "all at once",
                r##"{"topic":"#x","event":"phx_join","scope":"a b","payload":[]}"##,
                invalid(json!({
                    "topic": ["is reserved"],
                    "event": ["is reserved"],
                    "scope": ["has a character that is not allowed"],
                    "payload": ["must be an object"],
                })),
            ),
            (
                "wrong types",
                r#"{"topic":1,"event":{},"scope":[],"payload":"x"}"#,
                invalid(json!({
                    "topic": ["must be a string"],
                    "event": ["must be a string"],
                    "scope": ["must be a string"],
                    "payload": ["is not valid JSON"],
                })),
            ),
            (
                "control characters",
                r#"{"topic":"a\u0000b","event":"a\nb"}"#,
                invalid(json!({
                    "topic": ["has a character that is not allowed"],
                    "event": ["has a character that is not allowed"],
                })),
            ),
            (
                "long topic",
                &long_topic,
                invalid(json!({ "topic": ["is too long: at most 200 bytes"] })),
            ),
            (
                "long together",
                &long_together,
                invalid(json!({
                    "event": ["is too long: a whole topic, and channel:event, have at most 255 bytes"],
                })),
            ),
            ("no JSON", "{", refused(400, "request body is not valid JSON")),
            ("no object", "[]", refused(400, "request body must be a JSON object")),
        ] {
            assert_eq!(services.call(json_post(body)).await, expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn a_whole_topic_is_refused_with_the_right_spelling() {
        let services = TestServices::start().await;
        let single = TestServices::start_with(&[("HERALD__SINGLE_APP", "foo-app")]).await;
        let right = |topic: &str, scope: &str| {
            let fault = format!(
                "is a whole topic; send the topic {topic:?} and the scope {scope:?}, or use \
                 /api/publish"
            );
            invalid(json!({ "topic": [fault] }))
        };
        let taken = || (200, json!({}));
        for (topic, expected) in [
            ("public:foo-app:room", right("room", "public")),
            ("private:foo-app:room:1", right("room:1", "private")),
            ("public:foo-app", right("#general", "public")),
            ("public:foo-app:", taken()),
            ("public:foo-apps:room", taken()),
            ("public:bar-app:room", taken()),
            ("room:foo-app", taken()),
            ("room:foo-app:1", taken()),
            ("pub lic:foo-app:room", taken()),
            ("foo-app:room", taken()),
            ("room:public:foo-app:room", taken()),
        ] {
            for services in [&services, &single] {
                let body = json!({ "topic": topic, "event": "msg" }).to_string();
                assert_eq!(services.call(json_post(&body)).await, expected, "{topic}");
            }
        }
    }

    #[actix_web::test]
    async fn a_body_or_payload_beyond_its_limit_is_413_and_one_of_just_the_limit_is_taken() {
        let services = TestServices::start().await;
        let limits = &services.services.settings.limits;
        let body = |payload_bytes: usize| {
            let filler = "x".repeat(payload_bytes - r#"{"a":""}"#.len());
            format!(r#"{{"topic":"room","event":"msg","payload":{{"a":"{filler}"}}}}"#)
        };
        let client = |body: String| {
            let token = token_of(SECRET, &json!({ "publish": ["public:*"] }));
            json_post(&body).insert_header(("Authorization", format!("Bearer {token}")))
        };
        let (payload_max, client_max, body_max) = (
            limits.trigger_payload_bytes_max,
            limits.client_event_bytes_max,
            limits.request_body_bytes_max,
        );
        let too_large =
            |what: &str, max: usize| refused(413, &format!("{what} is larger than {max} bytes"));
        for (case, request, expected) in [
            ("payload at the limit", json_post(&body(payload_max)), (200, json!({}))),
            ("beyond", json_post(&body(payload_max + 1)), too_large("payload", payload_max)),
            ("client at the limit", client(body(client_max)), (200, json!({}))),
            ("client beyond", client(body(client_max + 1)), too_large("payload", client_max)),
            ("body", json_post(&body(body_max)), too_large("request body", body_max)),
            ("10 MB", json_post(&body(10_000_000)), too_large("request body", body_max)),
        ] {
            assert_eq!(services.call(request).await, expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn the_refusal_is_one_and_the_same_for_whatever_is_wrong_with_the_caller() {
        let services = TestServices::start().await;
        let body = r#"{"topic":"room","event":"msg"}"#;
        let to = |slug: &str| json_post(body).uri(&format!("/api/apps/{slug}/events"));
        for (case, request) in [
            ("unknown app", to("bar-app")),
            ("inactive app", to("idle-app")),
            ("no app there could be", to("Not%20a%2Fslug%00")),
            ("wrong secret", json_post(body).insert_header(("Authorization", "Basic eDp5"))),
            ("before the body is read", json_post("{").insert_header(("Authorization", "x"))),
        ] {
            let response = services.respond(request).await;
            let challenge = response.headers().get("www-authenticate").cloned();
            assert_eq!(response.status(), 401, "{case}");
            assert!(challenge.is_some_and(|it| it == r#"Basic realm="Herald""#), "{case}");
        }
        let request = TestRequest::post().uri(PATH).set_payload(body);
        assert_eq!(services.call(request).await, refused(401, "authentication required"));
    }

    #[actix_web::test]
    async fn only_a_post_of_a_known_type_from_no_other_site_is_taken() {
        let services = TestServices::start().await;
        let body = r#"{"topic":"room","event":"msg"}"#;
        let forbidden = refused(403, "writing calls from another site's page are refused");
        let unsupported = "content type must be application/json or \
                           application/x-www-form-urlencoded";
        for (case, request, expected) in [
            ("GET", TestRequest::get().uri(PATH), refused(405, "method not allowed")),
            ("text", post("text/plain", body), refused(415, unsupported)),
            (
                "another site",
                json_post(body).insert_header(("Sec-Fetch-Site", "cross-site")),
                forbidden.clone(),
            ),
            (
                "another origin",
                json_post(body).insert_header(("Origin", "https://evil.example")),
                forbidden,
            ),
            ("nothing there", TestRequest::get().uri("/api/x"), refused(404, "not found")),
        ] {
            assert_eq!(services.call(request).await, expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn a_token_that_does_not_permit_it_is_403() {
        let services = TestServices::start().await;
        let body = r#"{"topic":"room","event":"msg","scope":"private"}"#;
        let with = |claims: Value| {
            let token = token_of(SECRET, &claims);
            json_post(body).insert_header(("Authorization", format!("Bearer {token}")))
        };
        let not_there = refused(403, "the token does not permit publishing there");
        for (case, request, expected) in [
            ("permitted", with(json!({ "publish": ["private:foo-app:room"] })), (200, json!({}))),
            ("elsewhere", with(json!({ "publish": ["private:foo-app:x"] })), not_there.clone()),
            ("to listen only", with(json!({ "listen": ["private:*"] })), not_there.clone()),
            ("application", with(json!({ "aud": "trigger" })), not_there),
        ] {
            assert_eq!(services.call(request).await, expected, "{case}");
        }
        let silent = with(json!({ "publish": ["private:*"] })).uri("/api/apps/silent-app/events");
        let no_client_events = refused(403, "this app takes no client events");
        assert_eq!(services.call(silent).await, no_client_events);
    }

    #[actix_web::test]
    async fn an_event_that_cannot_be_taken_now_is_503_with_a_time_to_retry() {
        let services = TestServices::start().await;
        services.services.topics.finish(Duration::ZERO).await;
        let event = json!({ "topic": "public:foo-app", "event": "msg" });
        let bulk = TestRequest::post()
            .uri("/api/publish/bulk")
            .insert_header(("Authorization", SECRET))
            .set_json(json!({ "events": [event, event] }));
        let response = services.respond(bulk).await;
        assert_eq!(response.status(), 503);
        assert!(response.headers().get("retry-after").is_some_and(|after| after == "1"));
    }
}
