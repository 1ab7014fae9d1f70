//! `GET /api/apps/<slug>/connections` and `DELETE …/connections/<id>`: the sessions that have joined
//! topics of an app.
//!
//! A session's number would tell an app how many sessions the whole server has had. It is therefore
//! shown as an id that only this server can read.

use actix_web::{HttpRequest, HttpResponse, http::header::CACHE_CONTROL, web};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, SecondsFormat};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;

use super::{Services, auth::Credentials, error::ApiError, query::Query};
use crate::{
    app::{App, visitor::ShownSub},
    broker::{connections::Connected, outbox::Load, subscriber::SessionId, topics::Unanswered},
    metrics::labels::ProtocolVersion,
    session::public_id::Permutation,
};

/// The number of sessions that one answer has by default.
const LIMIT_DEFAULT: usize = 100;
/// The most sessions of one answer.
const LIMIT_MAX: usize = 1_000;

/// The input from which the key for ids is derived, so that no other use of the server's key reveals
/// one.
const PURPOSE: &[u8] = b"herald connection";

/// A session as it is answered.
#[derive(Debug, Serialize)]
struct ConnectionView {
    id: String,
    protocol: &'static str,
    vsn: Option<&'static str>,
    transport: Option<&'static str>,
    address: String,
    since: Option<String>,
    subs: Vec<ShownSub>,
    topics: Vec<String>,
    queue: Queue,
}

/// The frames that wait for a session.
#[derive(Debug, Serialize)]
struct Queue {
    frames: usize,
    bytes: usize,
}

/// Lists sessions, oldest first, and says how many there are.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Invalid`] for a bad query, [`ApiError::Unavailable`] if a
/// thread did not answer, because the list would be too short.
pub async fn list(
    request: HttpRequest,
    slug: web::Path<String>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let app = Credentials::of(&request, &services)?.authenticate_application(&services, &slug)?;
    let ids = ConnectionIds::new(&services.settings.secrets.secret_key_base);
    let mut query = Query::of(&request)?;
    let limit = query.limit(LIMIT_DEFAULT, LIMIT_MAX);
    let after = query.read("after", |after| match after {
        "" => Ok(None),
        _ => ids.read(after).map(Some).ok_or_else(|| "names no session".into()),
    });
    let (limit, after) = query.check(Ok((limit, after.flatten())))?;
    let found = services.topics.connections(app.id, after, limit).await;
    let found = found.map_err(|Unanswered| ApiError::Unavailable)?;
    let view = |connected| ConnectionView::of(connected, &ids, &app, &services);
    let data: Vec<_> = found.sessions.into_iter().map(view).collect();
    Ok(HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(json!({ "data": data, "total": found.total })))
}

/// Ends the joins of the app on one session; a session that has no others is closed.
///
/// # Errors
/// [`ApiError::Unauthorized`]; [`ApiError::NotFound`] for a session that has joined nothing of the app;
/// [`ApiError::Unavailable`] if a thread did not answer.
pub async fn delete(
    request: HttpRequest,
    path: web::Path<(String, String)>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let (slug, id) = path.into_inner();
    let app = Credentials::of(&request, &services)?.authenticate_application(&services, &slug)?;
    let ids = ConnectionIds::new(&services.settings.secrets.secret_key_base);
    let session = ids.read(&id).ok_or(ApiError::NotFound)?;
    match services.topics.end_connection(app.id, session).await {
        Ok(true) => Ok(HttpResponse::NoContent().finish()),
        Ok(false) => Err(ApiError::NotFound),
        Err(Unanswered) => Err(ApiError::Unavailable),
    }
}

impl ConnectionView {
    fn of(connected: Connected, ids: &ConnectionIds, app: &App, services: &Services) -> Self {
        let Connected { session, about, places, subs, queue: Load { frames, bytes } } = connected;
        let addressing = services.addressing();
        let spell = |place: &crate::broker::subscriber::Place| {
            addressing.spell(&place.key.scope, &app.slug, place.channel.as_ref())
        };
        let mut topics: Vec<_> = places.iter().map(spell).collect();
        topics.sort_unstable();
        topics.dedup();
        let since = DateTime::from_timestamp(about.since_s().into(), 0);
        let kind = about.kind();
        Self {
            id: ids.id(session),
            protocol: match kind.map(|kind| kind.version) {
                Some(ProtocolVersion::Pusher) => "pusher",
                _ => "phoenix",
            },
            vsn: kind.map(|kind| match kind.version {
                ProtocolVersion::V1 => "1.0.0",
                ProtocolVersion::V2 => "2.0.0",
                ProtocolVersion::Pusher => "7",
            }),
            transport: kind.map(|kind| kind.transport.as_str()),
            address: about.address().to_string(),
            since: since.map(|since| since.to_rfc3339_opts(SecondsFormat::Secs, true)),
            subs,
            topics,
            queue: Queue { frames, bytes },
        }
    }
}

/// Turns a session's number into the id that an app is shown, and back.
pub(super) struct ConnectionIds(Permutation);

impl ConnectionIds {
    pub(super) fn new(key: &SecretString) -> Self {
        Self(Permutation::new(key, PURPOSE))
    }

    /// The connection id of a session: 11 characters that need no escaping in a path.
    pub(super) fn id(&self, SessionId(number): SessionId) -> String {
        URL_SAFE_NO_PAD.encode(self.0.hide(number).to_be_bytes())
    }

    /// The session with this id; `None` if the text is not an id.
    fn read(&self, id: &str) -> Option<SessionId> {
        let bytes: [u8; 8] = URL_SAFE_NO_PAD.decode(id).ok()?.try_into().ok()?;
        Some(SessionId(self.0.reveal(u64::from_be_bytes(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_and_tell_strangers_nothing() {
        let (ids, others) =
            (ConnectionIds::new(&"key".into()), ConnectionIds::new(&"other".into()));
        for number in [0, 1, 2, 15_000, (7 << 48) + 3, u64::MAX] {
            let id = ids.id(SessionId(number));
            assert_eq!((id.len(), ids.read(&id)), (11, Some(SessionId(number))), "{id}");
            assert_ne!(others.read(&id), Some(SessionId(number)));
        }
        let [one, next] = [1, 2].map(|number| ids.id(SessionId(number)));
        assert_ne!(one[..4], next[..4], "neighbours are not alike");
        for nothing in ["", "1", "AAAAAAAAAAAA", "not an id!!"] {
            assert_eq!(ids.read(nothing), None, "{nothing:?}");
        }
    }
}
