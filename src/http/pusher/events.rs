//! `POST /apps/<app>/events` and `POST /apps/<app>/batch_events`: triggers.
//!
//! A request with any fault publishes nothing. The numbers that a caller requests with `info` are counted
//! before anything is published, so that a caller that is told to retry has published nothing.

use std::{borrow::Cow, collections::BTreeSet};

use actix_web::{HttpRequest, HttpResponse, http::header::ContentType, web};
use bytes::Bytes;
use serde_json::{Deserializer, Map, Value, json, value::RawValue};

use super::{
    Services,
    attributes::{self, Attributes},
    caller::SignedCaller,
    error::PusherError,
};
use crate::{
    app::AppId,
    broker::{
        Destination, EventName, JsonText, Payload, Publication, PublicationOrigin, PublishError,
        reserved::is_pusher_event, subscriber::SessionId,
    },
    engine::ENTRY_BYTES_MAX,
    http::json::{present, text},
    json::members,
    metrics::labels::Limit,
    pusher::channel::Channel,
};

/// The most channels that one event may go to.
const CHANNELS_MAX: usize = 100;
/// The most events of a batch.
const BATCH_MAX: usize = 10;

/// Publishes one event to one or more channels.
///
/// # Errors
/// [`PusherError`].
pub(super) async fn create(
    request: HttpRequest,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, PusherError> {
    let (caller, body) = SignedCaller::of(&request, &services)?.with_body(payload).await?;
    let app = caller.app.id;
    let event = PusherEvent::read(&PusherEventFields::of(&body)?, Targets::Many, &services)?;
    let mut told = Map::new();
    if let Some(asked) = event.asked {
        for channel in &event.channels {
            let counts = attributes::counts(&services, app, channel, asked).await?;
            told.insert(channel.name().to_owned(), counts.into());
        }
    }
    let is_asked = event.asked.is_some();
    let mut publications = event.publications(app);
    // The broker publishes consecutive publications of one scope together.
    publications.sort_by(|one, other| one.scope.cmp(&other.scope));
    publish(&services, publications).await?;
    Ok(ok(&if is_asked { json!({ "channels": told }) } else { json!({}) }))
}

/// Publishes up to [`BATCH_MAX`] events, each to one channel, in their order.
///
/// # Errors
/// [`PusherError`].
pub(super) async fn create_all(
    request: HttpRequest,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, PusherError> {
    let (caller, body) = SignedCaller::of(&request, &services)?.with_body(payload).await?;
    let app = caller.app.id;
    let events = read_batch(&body, &services)?;
    let mut told = Vec::with_capacity(events.len());
    for event in &events {
        let counts = match (event.asked, event.channels.first()) {
            (Some(asked), Some(channel)) => {
                attributes::counts(&services, app, channel, asked).await?
            }
            _ => Map::new(),
        };
        told.push(Value::from(counts));
    }
    let is_asked = events.iter().any(|event| event.asked.is_some());
    let publications = events.into_iter().flat_map(|event| event.publications(app));
    publish(&services, publications.collect()).await?;
    Ok(ok(&if is_asked { json!({ "batch": told }) } else { json!({}) }))
}

fn ok(answer: &Value) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(answer.to_string())
}

async fn publish(services: &Services, publications: Vec<Publication>) -> Result<(), PusherError> {
    let published = services.topics.publish_all(publications).await;
    published.map(drop).map_err(|error| match error {
        PublishError::Busy => PusherError::Unavailable,
        PublishError::TooLarge => PusherError::EventsTooLarge { bytes_max: ENTRY_BYTES_MAX },
    })
}

fn read_batch(body: &Bytes, services: &Services) -> Result<Vec<PusherEvent>, PusherError> {
    let [batch] =
        members(Deserializer::from_slice(body), ["batch"]).map_err(|error| malformed(&error))?;
    let batch: Option<Vec<&RawValue>> =
        present(batch).and_then(|batch| serde_json::from_str(batch.get()).ok());
    let batch = batch.ok_or_else(|| PusherError::field("batch", "must be a list of events"))?;
    match batch.len() {
        0 => return Err(PusherError::field("batch", "must not be empty")),
        1..=BATCH_MAX => {}
        count => {
            let text = format!("Batch too large: at most {BATCH_MAX} events, not {count}");
            return Err(PusherError::bad(text));
        }
    }
    let read = |event: &RawValue| {
        let fields = members(Deserializer::from_str(event.get()), PusherEventFields::NAMES)
            .map(PusherEventFields);
        let fields = fields.map_err(|_| PusherError::field("batch", "must be a list of events"))?;
        PusherEvent::read(&fields, Targets::One, services)
    };
    batch.into_iter().map(read).collect()
}

/// The members of one event, as received.
struct PusherEventFields<'a>([Option<&'a RawValue>; 6]);

impl<'a> PusherEventFields<'a> {
    const NAMES: [&'static str; 6] = ["name", "data", "channel", "channels", "socket_id", "info"];

    fn of(body: &'a Bytes) -> Result<Self, PusherError> {
        members(Deserializer::from_slice(body), Self::NAMES)
            .map(Self)
            .map_err(|error| malformed(&error))
    }
}

/// The parser's own message quotes the body.
fn malformed(error: &serde_json::Error) -> PusherError {
    PusherError::bad(match error.classify() {
        serde_json::error::Category::Data => "the request body must be a JSON object",
        _ => "the request body is not valid JSON",
    })
}

/// The number of channels that an event may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Targets {
    One,
    Many,
}

/// One event that may be published.
#[derive(Debug)]
struct PusherEvent {
    name: EventName,
    data: JsonText,
    /// The channels, without duplicates.
    channels: Vec<Channel>,
    except: Option<SessionId>,
    asked: Option<Attributes>,
}

impl PusherEvent {
    fn read(
        PusherEventFields([name, data, channel, channels, socket_id, info]): &PusherEventFields<'_>,
        targets: Targets,
        services: &Services,
    ) -> Result<Self, PusherError> {
        Ok(Self {
            name: read_name(*name)?,
            channels: read_channels(*channel, *channels, targets, services)?,
            except: read_socket_id(*socket_id, services)?,
            asked: read_info(*info)?,
            // The data is read last, because its size has a status of its own, and other faults come first.
            data: read_data(*data, services)?,
        })
    }

    fn publications(self, app: AppId) -> Vec<Publication> {
        let Self { name, data, channels, except, .. } = self;
        let publication = |channel: Channel| {
            let place = channel.place(app);
            let destination = place.channel.map_or(Destination::General, Destination::Channel);
            let (scope, event, payload) = (place.key.scope, name.clone(), data.clone());
            let (payload, origin) = (Payload::Json(payload), PublicationOrigin::Trigger);
            Publication { app, scope, destination, event, payload, origin, except }
        };
        channels.into_iter().map(publication).collect()
    }
}

fn read_name(raw: Option<&RawValue>) -> Result<EventName, PusherError> {
    let fault = |fault: &str| PusherError::field("name", fault);
    let name = text(raw).map_err(|error| fault(&error))?;
    if name.len() > EventName::BYTES_MAX {
        return Err(PusherError::bad(format!("name has more than {} bytes", EventName::BYTES_MAX)));
    }
    if is_pusher_event(&name) {
        return Err(fault("must not begin with pusher:, pusher_internal: or herald:"));
    }
    EventName::parse_any(&name).map_err(|error| fault(&error.to_string()))
}

/// A field that must be a string, and may be an empty one.
fn string<'a>(name: &str, raw: Option<&'a RawValue>) -> Result<Cow<'a, str>, PusherError> {
    let raw = present(raw).ok_or_else(|| PusherError::field(name, "must be a string"))?;
    text(Some(raw)).map_err(|fault| PusherError::field(name, &fault))
}

fn read_data(raw: Option<&RawValue>, services: &Services) -> Result<JsonText, PusherError> {
    let data = string("data", raw)?;
    let bytes_max = services.settings.pusher.event_bytes_max;
    if data.len() > bytes_max {
        services.metrics.hit(Limit::EventBytes);
        return Err(PusherError::DataTooLarge { bytes_max });
    }
    Ok(JsonText::of_text(&data))
}

fn read_channels(
    channel: Option<&RawValue>,
    channels: Option<&RawValue>,
    targets: Targets,
    services: &Services,
) -> Result<Vec<Channel>, PusherError> {
    let names = match (present(channels), targets) {
        (Some(_), Targets::One) => {
            return Err(PusherError::field("channels", "cannot be in a batch; use channel"));
        }
        (Some(list), Targets::Many) => {
            let names: Option<Vec<String>> = serde_json::from_str(list.get()).ok();
            names.ok_or_else(|| PusherError::field("channels", "must be a list of strings"))?
        }
        (None, _) => {
            let name = text(channel).map_err(|fault| PusherError::field("channel", &fault))?;
            vec![name.into_owned()]
        }
    };
    match names.len() {
        0 => return Err(PusherError::field("channels", "must not be empty")),
        1..=CHANNELS_MAX => {}
        count => {
            let text =
                format!("channels has {count} channels, at most {CHANNELS_MAX} may be given");
            return Err(PusherError::bad(text));
        }
    }
    let mut seen = BTreeSet::new();
    let names = names.iter().filter(|name| seen.insert(name.as_str()));
    let bytes_max = services.settings.pusher.channel_bytes_max;
    names.map(|name| Ok(Channel::parse_within(name, bytes_max)?)).collect()
}

/// The session to which the event is not sent. An id that no session has excludes no session.
fn read_socket_id(
    raw: Option<&RawValue>,
    services: &Services,
) -> Result<Option<SessionId>, PusherError> {
    let Some(raw) = present(raw) else { return Ok(None) };
    let id = text(Some(raw)).ok();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_id = |id: &str| id.split_once('.').is_some_and(|(a, b)| is_number(a) && is_number(b));
    let id = id.filter(|id| is_id(id));
    let id = id.ok_or_else(|| PusherError::field("socket_id", "must be two numbers with a dot"))?;
    Ok(services.public_ids.read(&id))
}

/// The requested attributes of the channels. Attributes that do not exist, or that a channel does not
/// have, are left out of the answer.
fn read_info(raw: Option<&RawValue>) -> Result<Option<Attributes>, PusherError> {
    let Some(raw) = present(raw) else { return Ok(None) };
    let list = string("info", Some(raw))?;
    Ok(Some(Attributes::parse(&list)))
}
