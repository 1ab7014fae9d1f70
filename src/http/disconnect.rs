//! `POST /api/apps/<slug>/disconnect`: ends joins of an app. Their clients reconnect and are judged
//! anew.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{json, value::RawValue};

use super::{
    Services,
    auth::Credentials,
    error::ApiError,
    json::{FieldFault, Json, fault, flag, present, text},
};
use crate::{
    app::{
        App,
        subject::{Subject, SubjectMembers},
    },
    broker::{
        Addressing, TopicName,
        subscriber::{Disconnect, Place, ScopeKey},
        topics::Unanswered,
    },
    session::{body::BudgetShare, requests::trust},
};

/// Ends the joins of a topic, or the joins whose token has this `sub`, or a `sub` with these
/// members. Answers once every thread has been told, or, on request, with the number of joins once
/// all have ended.
///
/// # Errors
/// [`ApiError::Unauthorized`] for anything but the app's key and secret or a session of the console,
/// [`ApiError::Forbidden`] and [`ApiError::NotFound`] for an app that the session may not manage,
/// [`ApiError::Invalid`] for a body that names no joins of this app, [`ApiError::Unavailable`] if a
/// thread did not answer.
pub async fn create(
    request: HttpRequest,
    slug: web::Path<String>,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    // Judged before the body is read, and again after it: see `events::create`.
    let credentials = Credentials::of(&request, &services)?;
    credentials.authenticate_application(&services, &slug)?;
    trust(&request);
    let body = Json::read(&request, payload, &services, BudgetShare::Whole).await?;
    let app = credentials.authenticate_application(&services, &slug)?;
    let JoinSelection { joins, is_counted } = read(&body, &app, &services.addressing())?;
    let told = match is_counted {
        true => services.topics.disconnect_counted(joins).await.map(|n| json!({ "ended": n })),
        false => services.topics.disconnect(joins).await.map(|()| json!({})),
    };
    told.map(|answer| HttpResponse::Ok().json(answer)).map_err(|Unanswered| ApiError::Unavailable)
}

/// The joins that a body selects.
#[derive(Debug, PartialEq, Eq)]
struct JoinSelection {
    joins: Disconnect,
    /// Whether the answer says how many joins were ended.
    is_counted: bool,
}

fn read(body: &Json, app: &App, addressing: &Addressing) -> Result<JoinSelection, ApiError> {
    let [sub, topic, matching, count] = body.members(["sub", "topic", "match", "count"])?;
    let is_counted = flag(count).map_err(|fault| ApiError::invalid("count", fault))?;
    let by_members = by_members(matching).map_err(|fault| ApiError::invalid("match", fault))?;
    // Null is a `sub` like any other, but not a topic.
    let joins = match [sub, present(topic)] {
        [Some(sub), None] if by_members => SubjectMembers::of(sub)
            .map(|members| Disconnect::Members { app: app.id, members })
            .map_err(|error| ApiError::invalid("sub", error.to_string())),
        [Some(sub), None] => Subject::of(sub)
            .map(|subject| Disconnect::Subject { app: app.id, subject })
            .map_err(|unreadable| ApiError::invalid("sub", unreadable.to_string())),
        [None, Some(_)] if by_members => Err(ApiError::invalid("match", "goes with sub alone")),
        [None, Some(topic)] => place(topic, app, addressing)
            .map(Disconnect::Place)
            .map_err(|fault| ApiError::invalid("topic", fault)),
        [None, None] => Err(ApiError::invalid("sub", "must be given, or else topic")),
        [Some(_), Some(_)] => Err(ApiError::invalid("sub", "cannot come together with topic")),
    };
    Ok(JoinSelection { joins: joins?, is_counted })
}

/// Returns whether only the given members of a `sub` have to match.
fn by_members(matching: Option<&RawValue>) -> Result<bool, FieldFault> {
    match present(matching).map(|raw| text(Some(raw))).transpose()?.as_deref() {
        None => Ok(false),
        Some("members") => Ok(true),
        Some(_) => Err("must be \"members\", or left out".into()),
    }
}

/// The place that a client which joined this topic has.
fn place(topic: &RawValue, app: &App, addressing: &Addressing) -> Result<Place, FieldFault> {
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

    fn call_from(body: &str, addressing: &Addressing) -> Result<JoinSelection, ApiError> {
        let body = Json::from(bytes::Bytes::copy_from_slice(body.as_bytes()));
        read(&body, &app("foo-app"), addressing)
    }

    fn read_from(body: &str, addressing: &Addressing) -> Result<Disconnect, ApiError> {
        call_from(body, addressing).map(|call| call.joins)
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
            ("deploys:foo-app:web", &single, ("deploys", Some("web"))),
            ("deploys:foo-app", &single, ("deploys", None)),
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
    fn a_subject_may_be_named_by_some_of_its_members() {
        let raw = serde_json::from_str(r#"{"id":7}"#).expect("JSON");
        let members = SubjectMembers::of(raw).expect("members");
        let expected = Disconnect::Members { app: app("foo-app").id, members };
        let body = r#"{"match":"members","sub":{"id":7.0}}"#;
        assert_eq!(read_from(body, &Addressing::ManyApps), Ok(expected));
    }

    #[test]
    fn the_joins_are_counted_where_that_is_asked_for() {
        for (count, is_counted) in [
            ("true", true),
            (r#""true""#, true),
            (r#""1""#, true),
            ("false", false),
            (r#""false""#, false),
            (r#""0""#, false),
            (r#""""#, false),
            ("null", false),
        ] {
            let body = format!(r#"{{"sub":1,"count":{count}}}"#);
            let call = call_from(&body, &Addressing::ManyApps).expect("a call");
            assert_eq!(call.is_counted, is_counted, "{count}");
        }
        let call = call_from(r#"{"sub":1}"#, &Addressing::ManyApps).expect("a call");
        assert!(!call.is_counted);
    }

    #[test]
    fn a_body_with_neither_or_both_or_another_apps_topic_is_refused() {
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
            (r#"{"sub":1,"count":1}"#, "count", "must be true or false"),
            (r#"{"sub":1,"count":"yes"}"#, "count", "must be true or false"),
            (r#"{"sub":1,"match":"all"}"#, "match", "must be \"members\", or left out"),
            (r#"{"sub":1,"match":true}"#, "match", "must be a string"),
            (
                r#"{"sub":7,"match":"members"}"#,
                "sub",
                "must be an object with at least one member to match",
            ),
            (
                r#"{"sub":{},"match":"members"}"#,
                "sub",
                "must be an object with at least one member to match",
            ),
            (r#"{"topic":"public:foo-app","match":"members"}"#, "match", "goes with sub alone"),
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
