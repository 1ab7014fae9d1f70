//! `GET /api/apps/<slug>/channels/<scope>/<channel>/history`: the publications that are retained for a
//! channel.
//!
//! Only the web application may ask; a token, which a page's visitor may hold, is refused.

use std::borrow::Cow;

use actix_web::{HttpRequest, HttpResponse, web};
use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Services, auth::Credentials, channels, error::ApiError, query::Query};
use crate::broker::{
    Destination,
    position::StreamPosition,
    recovery::{HistoryPage, Since},
    retained::{Retained, RetainedPayload},
    subscriber::ScopeKey,
};

/// The number of publications that one answer has by default.
const LIMIT_DEFAULT: usize = 100;

/// The answer: a part of the retained publications.
#[derive(Debug, Serialize, Deserialize)]
pub struct HistoryAnswer {
    /// The publications, oldest first.
    pub data: Vec<RetainedPublication>,
    /// Whether no publication before these is missing.
    pub complete: bool,
    /// The reason why it is not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// The position after which the next question continues.
    pub position: Option<String>,
}

/// A retained publication as it is answered.
#[derive(Debug, Serialize, Deserialize)]
pub struct RetainedPublication {
    /// Its position.
    pub position: String,
    /// The time at which it was accepted, as RFC 3339.
    pub time: String,
    /// The channel, or `#general`.
    pub topic: String,
    /// The event.
    pub event: String,
    /// The payload, if it is JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    /// The payload, if it is bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// Lists the retained publications of a channel, oldest first.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Invalid`] for a bad path or query.
pub async fn list(
    request: HttpRequest,
    path: web::Path<(String, String, String)>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let (slug, scope, _) = path.into_inner();
    let app = Credentials::of(&request, &services)?.authenticate_application(&services, &slug)?;
    let raw = channels::raw_channel(&request);
    let raw = raw.strip_suffix("/history").unwrap_or(raw);
    let rank = channels::rank(&scope, Some(raw), &app, &services.addressing())?;
    let Some(channel) = &rank.channel else { return Err(ApiError::NotFound) };
    let limit_max = services.settings.history.replay_max;
    let mut query = Query::of(&request)?;
    let since = query.read("since", |since| Ok(Since::parse(since))).unwrap_or(Since::Now);
    let limit = query.limit(LIMIT_DEFAULT.min(limit_max), limit_max);
    let (since, limit) = query.check(Ok((since, limit)))?;
    let key = ScopeKey { app: app.id, scope: rank.scope.clone() };
    Ok(channels::answer(&HistoryAnswer::from(services.topics.history(&key, channel, since, limit))))
}

impl From<HistoryPage> for HistoryAnswer {
    fn from(page: HistoryPage) -> Self {
        let HistoryPage { incomplete, position, publications } = page;
        Self {
            data: publications.iter().map(RetainedPublication::from).collect(),
            complete: incomplete.is_none(),
            reason: incomplete.map(|incomplete| incomplete.as_str().into()),
            position: position.map(|position| position.to_string()),
        }
    }
}

impl From<&(StreamPosition, Retained)> for RetainedPublication {
    fn from((position, retained): &(StreamPosition, Retained)) -> Self {
        let (payload, payload_base64) = match retained.payload() {
            RetainedPayload::Json(text) => (RawValue::from_string(text.to_owned()).ok(), None),
            RetainedPayload::Bytes(bytes) => (None, Some(BASE64_STANDARD.encode(bytes))),
        };
        let at_ms = i64::try_from(retained.at_ms()).unwrap_or(i64::MAX);
        let time = DateTime::from_timestamp_millis(at_ms).unwrap_or_default();
        Self {
            position: position.to_string(),
            time: time.to_rfc3339_opts(SecondsFormat::Millis, true),
            topic: retained.channel().unwrap_or(Destination::GENERAL).to_owned(),
            event: retained.event().to_owned(),
            payload,
            payload_base64,
        }
    }
}
