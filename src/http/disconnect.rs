//! `POST /api/apps/<slug>/disconnect`: ends joins of an app, whose clients come back and are judged
//! anew.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{json, value::RawValue};

use super::{
    Services,
    auth::Credentials,
    error::ApiError,
    json::{Fault, Json, fault, present, text},
};
use crate::{
    app::{App, subject::Subject},
    broker::{
        Addressing, TopicName,
        subscriber::{Disconnect, Place, ScopeKey},
        topics::Unanswered,
    },
};

/// Ends the joins of a topic, or those that came with a token of this `sub`; answers once every
/// thread has been told.
///
/// # Errors
/// [`ApiError::Unauthorized`] for anything but the app's key and secret, [`ApiError::Invalid`] for a
/// body that names no joins of this app, [`ApiError::Unavailable`] if a thread did not answer.
pub async fn create(
    request: HttpRequest,
    slug: web::Path<String>,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    // Judged before the body is read, and once more after it: see `events::create`.
    let credentials = Credentials::from_headers(request.headers())?;
    credentials.authenticate_application(&services, &slug)?;
    let body = Json::read(&request, payload, &services).await?;
    let app = credentials.authenticate_application(&services, &slug)?;
    let joins = read(&body, &app, &services.addressing())?;
    let told = services.topics.disconnect(joins).await;
    told.map_err(|Unanswered| ApiError::Unavailable)?;
    Ok(HttpResponse::Ok().json(json!({})))
}

fn read(body: &Json, app: &App, addressing: &Addressing) -> Result<Disconnect, ApiError> {
    let [sub, topic] = body.members(["sub", "topic"])?;
    // Null is a `sub` like any other, and no topic at all.
    match [sub, present(topic)] {
        [Some(sub), None] => match Subject::of(sub) {
            Ok(subject) => Ok(Disconnect::Subject { app: app.id, subject }),
            Err(unreadable) => Err(ApiError::invalid("sub", unreadable.to_string())),
        },
        [None, Some(topic)] => match place(topic, app, addressing) {
            Ok(place) => Ok(Disconnect::Place(place)),
            Err(fault) => Err(ApiError::invalid("topic", fault)),
        },
        [None, None] => Err(ApiError::invalid("sub", "must be given, or else topic")),
        [Some(_), Some(_)] => Err(ApiError::invalid("sub", "cannot come together with topic")),
    }
}

/// The place that a client has which joined this topic.
fn place(topic: &RawValue, app: &App, addressing: &Addressing) -> Result<Place, Fault> {
    let name = TopicName::parse(&text(Some(topic))?, addressing).map_err(fault)?;
    if name.app != app.slug {
        return Err("must be one of this app's".into());
    }
    let key = ScopeKey { app: app.id, scope: name.scope };
    Ok(Place { key, channel: name.channel })
}

#[cfg(test)]
mod tests {
    use actix_web::{http::header, test::TestRequest};

    use super::*;
    use crate::{
        app::Slug,
        http::testing::{KEY, SECRET, StalledThread, TestServices, app, basic},
    };

    fn read_from(body: &str, addressing: &Addressing) -> Result<Disconnect, ApiError> {
        let body = Json::from(bytes::Bytes::copy_from_slice(body.as_bytes()));
        read(&body, &app("foo-app"), addressing)
    }

    #[test]
    fn a_body_names_a_subject_or_a_topic() {
        for (case, body, expected) in [
            ("text", r#"{"sub":"User:1"}"#, Some(r#""User:1""#)),
            ("a number", r#"{"sub":1.0}"#, Some("1")),
            ("an object", r#"{"sub":{"id":7,"name":"Ada"}}"#, Some(r#"{"name":"Ada","id":7}"#)),
            ("null", r#"{"sub":null}"#, Some("null")),
            ("beside no topic", r#"{"sub":1,"topic":null}"#, Some("1")),
            ("twice: the last", r#"{"sub":1,"sub":2}"#, Some("2")),
            ("whatever else", r#"{"sub":1,"reason":"x"}"#, Some("1")),
        ] {
            let subject = expected.map(|raw| Subject::of(serde_json::from_str(raw).expect("JSON")));
            let subject = subject.expect("a row").expect("a subject");
            let expected = Disconnect::Subject { app: app("foo-app").id, subject };
            assert_eq!(read_from(body, &Addressing::ManyApps), Ok(expected), "{case}");
        }
        let single = Addressing::SingleApp(Slug::parse("foo-app").expect("a slug"));
        for (topic, addressing, expected) in [
            ("public:foo-app", &Addressing::ManyApps, ("public", None)),
            ("public:foo-app:a:b", &Addressing::ManyApps, ("public", Some("a:b"))),
            ("deploys:web", &single, ("deploys", Some("web"))),
            ("deploys:foo-app:a", &single, ("deploys", Some("foo-app:a"))),
        ] {
            let body = json!({ "topic": topic }).to_string();
            let Ok(Disconnect::Place(place)) = read_from(&body, addressing) else {
                panic!("{topic} names a place");
            };
            assert_eq!(place.key.app, app("foo-app").id);
            let channel = place.channel.as_ref().map(|channel| channel.as_str());
            assert_eq!((place.key.scope.as_str(), channel), expected, "{topic}");
        }
    }

    #[test]
    fn what_names_neither_or_both_or_another_apps_is_refused() {
        let deep = format!(r#"{{"sub":{}{}}}"#, "[".repeat(200), "]".repeat(200));
        for (body, field, fault) in [
            ("{}", "sub", "must be given, or else topic"),
            (r#"{"sub":null,"topic":"public:foo-app"}"#, "sub", "cannot come together with topic"),
            (&deep, "sub", "is nested too deeply"),
            (r#"{"sub":1e999}"#, "sub", "has a number that is too large"),
            (r#"{"sub":"\ud800"}"#, "sub", "has half of a surrogate pair"),
            (r#"{"sub":{"id":1,"id":2}}"#, "sub", "has a repeated key"),
            (r#"{"topic":null}"#, "sub", "must be given, or else topic"),
            (r#"{"topic":1}"#, "topic", "must be a string"),
            (r#"{"topic":""}"#, "topic", "is not a whole topic"),
            (r#"{"topic":"public"}"#, "topic", "is not a whole topic"),
            (r#"{"topic":"a b:foo-app"}"#, "topic", "has a character that is not allowed"),
            (r#"{"topic":"public:bar-app"}"#, "topic", "must be one of this app's"),
            (r#"{"topic":"public:foo-app2:a"}"#, "topic", "must be one of this app's"),
        ] {
            let refused = read_from(body, &Addressing::ManyApps);
            assert_eq!(refused, Err(ApiError::invalid(field, fault)), "{body}");
        }
    }

    #[actix_web::test]
    async fn a_thread_that_cannot_be_told_in_time_is_no_success() {
        let env = [("HERALD__SOCKET__TOPIC_TIMEOUT", "100ms")];
        let services = TestServices::start_with(&env).await;
        let call = || {
            TestRequest::post()
                .uri("/api/apps/foo-app/disconnect")
                .insert_header((header::AUTHORIZATION, basic(KEY, SECRET)))
                .insert_header((header::CONTENT_TYPE, "application/json"))
                .set_payload(r#"{"sub":1}"#)
        };
        assert_eq!(services.call(call()).await, (200, json!({})));
        let stalled = StalledThread::start(&services.services.topics).await;
        let response = services.respond(call()).await;
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
        drop(stalled);
    }
}
