//! `GET /api/apps/<slug>/channels` and the resources below it: which topics have subscribers now.
//!
//! Only the web application may ask; a token, which a page's visitor may hold, is refused.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, HeaderValue},
    web,
};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Services,
    auth::Credentials,
    error::ApiError,
    json::{FieldFault, fault},
    query::Query,
};
use crate::{
    app::{App, fields::Faults},
    broker::{
        Addressing, ChannelName, NameError, Scope, TopicName,
        occupancy::{Rank, Survey},
        subscriber::{Place, ScopeKey},
        topics::Unanswered,
    },
    phoenix::presence::spell_members,
};

/// The number of channels that one answer lists by default.
const LIMIT_DEFAULT: usize = 1_000;

/// The most channels that one answer lists.
const LIMIT_MAX: usize = 10_000;

/// A topic and the number of its subscribers.
#[derive(Debug, Serialize)]
struct Listed {
    topic: String,
    scope: String,
    channel: Option<String>,
    subscribers: usize,
}

/// Some of an app's topics; `next`, given as `after`, asks for the topics that follow.
#[derive(Debug, Serialize)]
struct TopicsPage {
    data: Vec<Listed>,
    next: Option<String>,
}

/// The answer about a single topic.
#[derive(Debug, Serialize)]
struct One {
    data: Shown,
}

/// The fields that only the answer about a single topic has.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    listed: Listed,
    /// The members, where the topic tracks them.
    #[serde(skip_serializing_if = "Option::is_none")]
    members: Option<Box<RawValue>>,
    /// The position of the scope's newest publication; `null` if the scope has no subscribers and
    /// nothing would be retained.
    position: Option<String>,
}

/// Lists an app's occupied topics in their order, page by page.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Invalid`] for a bad query, [`ApiError::Unavailable`] if
/// a thread did not answer, because the count would be too low.
pub async fn list(
    request: HttpRequest,
    slug: web::Path<String>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let app = Credentials::of(&request, &services)?.authenticate_application(&services, &slug)?;
    let addressing = services.addressing();
    let mut survey = survey(Query::of(&request)?, &app, &addressing)?;
    // One topic more than is shown tells whether there are more.
    let limit = survey.places_max;
    survey.places_max += 1;
    let occupied = services.topics.occupied(survey).await;
    let occupied = occupied.map_err(|Unanswered| ApiError::Unavailable)?;
    let is_cut = occupied.len() > limit;
    let listed = occupied.into_iter().take(limit);
    let data: Vec<_> = listed.map(|(rank, n)| listing(rank, n, &app, &addressing)).collect();
    let next = data.last().filter(|_| is_cut).map(|last| last.topic.clone());
    Ok(answer(&TopicsPage { data, next }))
}

/// Answers the number of subscribers of a whole scope's topic, and the position of the scope.
///
/// # Errors
/// As [`list`]'s.
pub async fn show_scope(
    request: HttpRequest,
    path: web::Path<(String, String)>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let (slug, scope) = path.into_inner();
    show(&request, &services, &slug, &scope, None).await
}

/// Answers the number of subscribers of a channel, the position of its scope, and the members of a
/// presence channel.
///
/// # Errors
/// As [`list`]'s.
pub async fn show_channel(
    request: HttpRequest,
    path: web::Path<(String, String, String)>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let (slug, scope, _) = path.into_inner();
    show(&request, &services, &slug, &scope, Some(raw_channel(&request))).await
}

/// The part of a path after the scope, undecoded: the router's own decoding would accept a path
/// that is not UTF-8.
pub(super) fn raw_channel(request: &HttpRequest) -> &str {
    request.uri().path().splitn(7, '/').nth(6).unwrap_or_default()
}

async fn show(
    request: &HttpRequest,
    services: &Services,
    slug: &str,
    scope: &str,
    channel: Option<&str>,
) -> Result<HttpResponse, ApiError> {
    let app = Credentials::of(request, services)?.authenticate_application(services, slug)?;
    let addressing = services.addressing();
    let rank = rank(scope, channel, &app, &addressing)?;
    let key = ScopeKey { app: app.id, scope: rank.scope.clone() };
    // The position is read before the counts. A publication that the counts have missed is then after
    // the position, and a join with this position is sent it.
    let position = services.topics.head(&key).map(|head| head.to_string());
    let members = members(services, &key, rank.channel.as_ref()).await?;
    let place = Place { key, channel: rank.channel.clone() };
    let subscribers = services.topics.subscribers(place).await;
    let subscribers = subscribers.map_err(|Unanswered| ApiError::Unavailable)?;
    let listed = listing(rank, subscribers, &app, &addressing);
    Ok(answer(&One { data: Shown { listed, members, position } }))
}

/// The members, spelled as clients receive them; `None` where the topic does not track them.
async fn members(
    services: &Services,
    key: &ScopeKey,
    channel: Option<&ChannelName>,
) -> Result<Option<Box<RawValue>>, ApiError> {
    let Some(channel) = channel.filter(|_| key.scope.is_presence()) else { return Ok(None) };
    let roster = services.topics.members(key, channel).await;
    let roster = roster.map_err(|Unanswered| ApiError::Unavailable)?;
    let spelled = RawValue::from_string(spell_members(&roster).to_string());
    spelled.map(Some).map_err(|_| ApiError::Unavailable)
}

/// The topic that a path names; it must be a topic that a client could join.
pub(super) fn rank(
    scope: &str,
    channel: Option<&str>,
    app: &App,
    addressing: &Addressing,
) -> Result<Rank, ApiError> {
    let mut faults = Faults::default();
    let scope = faults.note("scope", Scope::parse(scope).map_err(fault));
    let channel = faults.note("channel", channel.map(decoded).transpose());
    let (Some(scope), Some(channel)) = (scope, channel) else {
        return Err(faults.into());
    };
    let topic = addressing.spell(&scope, &app.slug, channel.as_ref());
    if topic.len() > TopicName::BYTES_MAX {
        return Err(ApiError::invalid("channel", NameError::WholeTooLong.to_string()));
    }
    Ok(Rank { scope, channel })
}

/// A channel's name as a path spells it: everything after the scope, slashes included.
///
/// `session::path` has already dropped empty segments of the path. A name that begins or ends with
/// a slash, or has two in a row, must be spelled with `%2F`.
fn decoded(raw: &str) -> Result<ChannelName, FieldFault> {
    let name = percent_decode_str(raw).decode_utf8().map_err(|_| "is not valid text")?;
    ChannelName::parse(&name).map_err(fault)
}

fn survey(mut query: Query, app: &App, addressing: &Addressing) -> Result<Survey, ApiError> {
    let scope = query.read("scope", |scope| Scope::parse(scope).map_err(fault));
    let prefix = query.text("prefix").unwrap_or_default();
    let after = query.read("after", |topic| topic_rank(topic, app, addressing));
    let places_max = query.limit(LIMIT_DEFAULT, LIMIT_MAX);
    query.check(Ok(Survey { app: app.id, scope, prefix, after, places_max }))
}

fn topic_rank(topic: &str, app: &App, addressing: &Addressing) -> Result<Rank, FieldFault> {
    let name = TopicName::parse(topic, addressing).map_err(fault)?;
    if name.app != app.slug {
        return Err("must be one of this app's".into());
    }
    Ok(Rank { scope: name.scope, channel: name.channel })
}

fn listing(rank: Rank, subscribers: usize, app: &App, addressing: &Addressing) -> Listed {
    let Rank { scope, channel } = rank;
    Listed {
        topic: addressing.spell(&scope, &app.slug, channel.as_ref()),
        scope: scope.to_string(),
        channel: channel.map(|channel| channel.to_string()),
        subscribers,
    }
}

/// The answer describes this moment only, so no cache may keep it.
pub(super) fn answer(body: &impl Serialize) -> HttpResponse {
    let no_store = (CACHE_CONTROL, HeaderValue::from_static("no-store"));
    HttpResponse::Ok().insert_header(no_store).json(body)
}

#[cfg(test)]
mod tests {
    use actix_web::{http::header, test::TestRequest};
    use serde_json::json;

    use super::*;
    use crate::http::testing::{KEY, SECRET, StalledThread, TestServices, app, basic};

    fn get(path: &str) -> TestRequest {
        let path = format!("/api/apps/foo-app/channels{path}");
        TestRequest::get().uri(&path).insert_header((header::AUTHORIZATION, basic(KEY, SECRET)))
    }

    #[test]
    fn a_query_becomes_a_survey() {
        let survey = |query: &str| {
            let request = TestRequest::get().uri(&format!("/?{query}")).to_http_request();
            let query = Query::of(&request).expect("UTF-8");
            survey(query, &app("foo-app"), &Addressing::ManyApps)
        };
        let rank = |scope: &str, channel: Option<&str>| Rank {
            scope: Scope::parse(scope).expect("a scope"),
            channel: channel.map(|channel| ChannelName::parse(channel).expect("a channel")),
        };
        let all = Survey {
            app: app("foo-app").id,
            scope: None,
            prefix: String::new(),
            after: None,
            places_max: 1_000,
        };
        for (query, expected) in [
            ("", all.clone()),
            ("x=1&prefix=", all.clone()),
            ("scope=private", Survey { scope: Scope::parse("private").ok(), ..all.clone() }),
            ("prefix=caf%C3%A9%3A+", Survey { prefix: "caf\u{e9}: ".into(), ..all.clone() }),
            ("limit=1", Survey { places_max: 1, ..all.clone() }),
            ("limit=10000", Survey { places_max: 10_000, ..all.clone() }),
            ("after=public:foo-app", Survey { after: Some(rank("public", None)), ..all.clone() }),
            (
                "after=public:foo-app:a%3Ab",
                Survey { after: Some(rank("public", Some("a:b"))), ..all },
            ),
        ] {
            assert_eq!(survey(query), Ok(expected), "{query}");
        }
        let limit = "must be a number from 1 to 10000";
        for (query, field, fault) in [
            ("scope=", "scope", "must not be empty"),
            ("scope=a+b", "scope", "has a character that is not allowed"),
            ("scope[]=a", "scope", "must be a string"),
            ("prefix[a]=a", "prefix", "must be a string"),
            ("limit=0", "limit", limit),
            ("limit=10001", "limit", limit),
            ("limit=-1", "limit", limit),
            ("limit=", "limit", limit),
            ("limit=99999999999999999999999", "limit", limit),
            ("after=public", "after", "is not a whole topic"),
            ("after=public:bar-app:a", "after", "must be one of this app's"),
        ] {
            assert_eq!(survey(query), Err(ApiError::invalid(field, fault)), "{query}");
        }
    }

    #[test]
    fn a_path_names_a_topic_that_could_be_joined() {
        let many = &Addressing::ManyApps;
        let single = &Addressing::SingleApp(app("foo-app").slug);
        let rank = |scope: &str, channel, addressing| {
            rank(scope, channel, &app("foo-app"), addressing)
                .map(|rank| rank.channel.map(|channel| channel.to_string()))
        };
        for (raw, name) in [
            ("room-1", "room-1"),
            ("a:b", "a:b"),
            ("a%3Ab", "a:b"),
            ("a/b", "a/b"),
            ("a%2Fb", "a/b"),
            ("%2Fa%2F%2F", "/a//"),
            ("a%252Fb", "a%2Fb"),
            ("a+b%20c", "a+b c"),
            ("caf%C3%A9", "caf\u{e9}"),
            ("100%", "100%"),
        ] {
            assert_eq!(rank("public", Some(raw), many), Ok(Some(name.into())), "{raw}");
        }
        for addressing in [many, single] {
            assert_eq!(rank("public", None, addressing), Ok(None));
        }
        let long = "c".repeat(200);
        let bad = "has a character that is not allowed";
        for (scope, channel, addressing, field, fault) in [
            ("public", Some("%FF"), many, "channel", "is not valid text"),
            ("public", Some("%23general"), many, "channel", "is reserved"),
            ("public", Some("a%0Ab"), many, "channel", bad),
            ("public", Some(""), many, "channel", "must not be empty"),
            ("a b", Some("x"), many, "scope", bad),
            (&"s".repeat(33), None, many, "scope", "is too long: at most 32 bytes"),
            ("public", Some(&*"c".repeat(201)), many, "channel", "is too long: at most 200 bytes"),
            (
                &"s".repeat(32),
                Some(&*format!("{long}%63")),
                many,
                "channel",
                "is too long: at most 200 bytes",
            ),
        ] {
            let refused = rank(scope, channel, addressing);
            assert_eq!(refused, Err(ApiError::invalid(field, fault)), "{scope} {channel:?}");
        }
    }

    #[actix_web::test]
    async fn a_count_that_would_be_too_low_is_refused() {
        let env = [("HERALD__SOCKET__TOPIC_TIMEOUT", "100ms")];
        let services = TestServices::start_with(&env).await;
        let empty = json!({ "data": [], "next": null });
        assert_eq!(services.call(get("")).await, (200, empty));
        let stalled = StalledThread::start(&services.services.topics).await;
        for path in ["", "/public", "/public/a"] {
            let response = services.respond(get(path)).await;
            assert_eq!(response.status(), 503, "{path}");
            assert!(response.headers().contains_key(header::RETRY_AFTER), "{path}");
        }
        drop(stalled);
    }
}
