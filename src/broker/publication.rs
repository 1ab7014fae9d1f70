//! Publications: one payload on its way to subscribers.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use bytestring::ByteString;
use serde_json::value::RawValue;

use crate::{
    app::AppId,
    metrics::labels::Source,
    strict_json::{self, NotStrict},
};

use super::{
    addressing::Addressing,
    reserved,
    subscriber::SessionId,
    topic_name::{ChannelName, Scope, TopicName},
};

/// The reason why a text is not a valid scope, channel, event or topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("must not be empty")]
    Empty,
    /// The text has more bytes than its kind of name may have.
    #[error("is too long: at most {0} bytes")]
    TooLong(usize),
    /// A whole topic, or a channel and an event together, have more bytes than they may.
    #[error(
        "is too long: a whole topic, and channel:event, have at most {} bytes",
        TopicName::BYTES_MAX
    )]
    WholeTooLong,
    /// The text has a control character, or one that its kind of name does not allow.
    #[error("has a character that is not allowed")]
    BadCharacter,
    /// The text begins with `#`, or is a reserved name of a protocol.
    #[error("is reserved")]
    Reserved,
    /// The text has fewer parts than a topic needs.
    #[error("is not a whole topic")]
    Incomplete,
}

impl NameError {
    /// Checks the rule that channels and events share: 1 to `bytes_max` bytes, no control characters, no `#` at
    /// the beginning.
    pub(super) fn check(raw: &str, bytes_max: usize) -> Result<(), Self> {
        match raw {
            "" => Err(Self::Empty),
            _ if raw.len() > bytes_max => Err(Self::TooLong(bytes_max)),
            _ if reserved::is_special(raw) => Err(Self::Reserved),
            _ if raw.chars().any(char::is_control) => Err(Self::BadCharacter),
            _ => Ok(()),
        }
    }
}

/// The name under which a payload arrives: 1–200 bytes, no control characters, not beginning with
/// `#`. A name that Phoenix's clients act on can be published over other protocols only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventName(ByteString);

impl EventName {
    /// The most bytes that an event may have.
    pub const BYTES_MAX: usize = 200;

    /// The most bytes that `channel:event` may have. A publication whose names have more together is delivered to
    /// its channel only, and not to joins of the whole scope.
    pub const PREFIXED_BYTES_MAX: usize = 255;

    /// Parses an event name.
    ///
    /// # Errors
    /// [`NameError`] if the text breaks the rule of [`EventName`], or is reserved in Phoenix's protocol.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        match reserved::is_phoenix_event(raw) {
            true => Err(NameError::Reserved),
            false => Self::parse_any(raw),
        }
    }

    /// Parses an event name of any protocol. It may be reserved in Phoenix's protocol; then only clients of
    /// other protocols are sent the event.
    ///
    /// # Errors
    /// [`NameError`] if the text breaks the rule of [`EventName`].
    pub fn parse_any(raw: &str) -> Result<Self, NameError> {
        NameError::check(raw, Self::BYTES_MAX)?;
        Ok(Self(raw.into()))
    }

    /// The event as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The destination of a publication within its scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// All channels of the scope: `#general`.
    General,
    /// One channel of the scope.
    Channel(ChannelName),
}

impl Destination {
    /// The word that stands for every channel of a scope.
    pub const GENERAL: &'static str = "#general";

    /// Parses a channel name or `#general`.
    ///
    /// # Errors
    /// [`NameError`] if it is neither.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        if raw == Self::GENERAL {
            return Ok(Self::General);
        }
        ChannelName::parse(raw).map(Self::Channel)
    }

    /// The channel's name, or `#general`. It is also the prefix of the event's name for subscribers whose
    /// topic is not this destination.
    pub fn as_str(&self) -> &str {
        match self {
            Self::General => Self::GENERAL,
            Self::Channel(channel) => channel.as_str(),
        }
    }
}

/// The reason why a text is not a valid payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The text is not JSON.
    #[error("payload is not valid JSON")]
    NotJson,
    /// The text is JSON, but not an object.
    #[error("payload must be an object")]
    NotAnObject,
    /// The text is an object that some subscribers could not read, or would read differently.
    #[error("payload {0}")]
    NotStrict(#[from] NotStrict),
}

/// The payload of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Any JSON value, which every client can be sent in some form.
    Json(JsonText),
    /// Bytes, which only some clients can be sent, and which are never parsed.
    Bytes(Bytes),
}

impl From<JsonObject> for Payload {
    fn from(object: JsonObject) -> Self {
        Self::Json(object.into())
    }
}

impl Payload {
    /// The size in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Json(json) => json.as_str().len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// A JSON value of any kind that every subscriber can read. The received text is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonText(ByteString);

impl JsonText {
    /// Takes JSON that was already read, if every subscriber can read it: see [`strict_json`].
    ///
    /// # Errors
    /// [`NotStrict`].
    pub fn from_raw(raw: &RawValue) -> Result<Self, NotStrict> {
        strict_json::check(raw)?;
        Ok(Self(raw.get().into()))
    }

    /// Takes JSON that another node has read.
    pub(super) fn of_json(text: ByteString) -> Self {
        Self(text)
    }

    /// Spells a text as a JSON string.
    pub fn of_text(text: &str) -> Self {
        Self(serde_json::Value::from(text).to_string().into())
    }

    /// A copy in its own memory: a slice of bytes from a socket would keep all of them in memory.
    pub(super) fn detached(&self) -> Self {
        Self(ByteString::from(&*self.0))
    }

    /// The value as JSON text, without white space around it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<JsonObject> for JsonText {
    fn from(JsonObject(object): JsonObject) -> Self {
        Self(object)
    }
}

/// A JSON object that every subscriber can read. The received text is kept, so that subscribers get exactly
/// the publisher's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonObject(ByteString);

impl JsonObject {
    /// The object `{}`.
    pub fn empty() -> Self {
        Self(ByteString::from_static("{}"))
    }

    /// Takes JSON that was already read, if every subscriber can read it: see [`strict_json`].
    ///
    /// # Errors
    /// [`PayloadError::NotAnObject`], [`PayloadError::NotStrict`].
    pub fn from_raw(raw: &RawValue) -> Result<Self, PayloadError> {
        let text = raw.get();
        if !text.starts_with('{') {
            return Err(PayloadError::NotAnObject);
        }
        strict_json::check(raw)?;
        Ok(Self(text.into()))
    }

    /// Builds an object. The values are strict JSON, as [`strict_json::members`] takes them.
    pub(super) fn of(members: &BTreeMap<String, &RawValue>) -> Self {
        let members = members
            .iter()
            .map(|(name, value)| [JsonText::of_text(name).as_str(), value.get()].join(":"));
        let members: Vec<_> = members.collect();
        Self(format!("{{{}}}", members.join(",")).into())
    }

    /// Parses text as a JSON object.
    ///
    /// # Errors
    /// [`PayloadError`].
    pub fn parse(text: &str) -> Result<Self, PayloadError> {
        let raw: &RawValue = serde_json::from_str(text).map_err(|_| PayloadError::NotJson)?;
        Self::from_raw(raw)
    }

    /// The object as JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The publisher of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicationOrigin {
    /// A call to the HTTP API.
    Trigger,
    /// A session.
    Session {
        /// The user id of its client, in protocols that tell other clients: 1 to 255 bytes.
        user: Option<ByteString>,
    },
}

/// The publisher of a publication, for an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender<'a> {
    /// A call to the HTTP API.
    Trigger,
    /// A session, with the user id that other clients are told, if they are told one.
    Session(Option<&'a str>),
}

impl PublicationOrigin {
    /// Borrows the publisher for an encoder.
    pub(super) fn sender(&self) -> Sender<'_> {
        match self {
            Self::Trigger => Sender::Trigger,
            Self::Session { user } => Sender::Session(user.as_deref()),
        }
    }

    /// The label under which the publication is counted.
    pub(super) fn source(&self) -> Source {
        match self {
            Self::Trigger => Source::Trigger,
            Self::Session { .. } => Source::Client,
        }
    }
}

/// One payload on its way to subscribers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The app.
    pub app: AppId,
    /// The scope, which decides who may receive it.
    pub scope: Scope,
    /// The destination within the scope.
    pub destination: Destination,
    /// The event.
    pub event: EventName,
    /// The payload.
    pub payload: Payload,
    /// The publisher.
    pub origin: PublicationOrigin,
    /// The session to which it is not sent, whatever topic that session joined. A replay of the history sends
    /// it to every session.
    pub except: Option<SessionId>,
}

impl Publication {
    /// Checks the rule that concerns both names together: `channel:event` is at most 255 bytes.
    ///
    /// # Errors
    /// [`NameError::WholeTooLong`].
    pub fn check_prefixed(destination: &Destination, event: &EventName) -> Result<(), NameError> {
        let bytes = destination.as_str().len() + 1 + event.as_str().len();
        if bytes > EventName::PREFIXED_BYTES_MAX { Err(NameError::WholeTooLong) } else { Ok(()) }
    }
}

/// Returns the destination and the name of an event that a client pushes on `topic`. On a whole scope, `C:E`
/// (split at the first colon) goes to channel `C`, and `E` without a colon to `#general`. On a channel, the
/// event goes to that channel.
///
/// # Errors
/// [`NameError`] of the first invalid name; [`NameError::WholeTooLong`] if both together are too long.
pub fn address(
    topic: &TopicName,
    event: &str,
    addressing: &Addressing,
) -> Result<(Destination, EventName), NameError> {
    let (destination, event) = match (&topic.channel, event.split_once(':')) {
        (Some(channel), _) => (Destination::Channel(channel.clone()), event),
        (None, Some((channel, event))) => {
            let channel = ChannelName::parse(channel)?;
            // The topic of the channel must be short enough to be joined.
            let spelled = addressing.spell(&topic.scope, &topic.app, Some(&channel));
            if spelled.len() > TopicName::BYTES_MAX {
                return Err(NameError::WholeTooLong);
            }
            (Destination::Channel(channel), event)
        }
        (None, None) => (Destination::General, event),
    };
    let event = EventName::parse(event)?;
    Publication::check_prefixed(&destination, &event)?;
    Ok((destination, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_addressed_by_its_topic_and_its_prefix() {
        let (c54, c55) = ("c".repeat(54), "c".repeat(55));
        let e200 = "e".repeat(200);
        let (fits, too_long) = (format!("{c54}:{e200}"), format!("{c55}:{e200}"));
        let scope = format!("{}:{}", "s".repeat(32), "a".repeat(63));
        let (c158, c159) = ("c".repeat(158), "c".repeat(159));
        let (joinable, unjoinable) = (format!("{c158}:m"), format!("{c159}:m"));
        for (topic, event, expected) in [
            (scope.as_str(), joinable.as_str(), Ok((c158.as_str(), "m"))),
            (&scope, &unjoinable, Err(NameError::WholeTooLong)),
            ("public:app", "room:msg", Ok(("room", "msg"))),
            ("public:app", "room:1:msg", Ok(("room", "1:msg"))),
            ("public:app", "msg", Ok(("#general", "msg"))),
            ("public:app:room", "msg", Ok(("room", "msg"))),
            ("public:app:room", "other:msg", Ok(("room", "other:msg"))),
            ("public:app:room:1", "msg", Ok(("room:1", "msg"))),
            ("public:app", &fits, Ok((&c54, &e200))),
            ("public:app", &too_long, Err(NameError::WholeTooLong)),
            ("public:app", "", Err(NameError::Empty)),
            ("public:app", ":msg", Err(NameError::Empty)),
            ("public:app", "room:", Err(NameError::Empty)),
            ("public:app", "#general:msg", Err(NameError::Reserved)),
            ("public:app", "#x", Err(NameError::Reserved)),
            ("public:app", "phx_leave", Err(NameError::Reserved)),
            ("public:app", "room:phx_leave", Err(NameError::Reserved)),
            ("public:app:room", "presence_state", Err(NameError::Reserved)),
            ("public:app", "a\nb:msg", Err(NameError::BadCharacter)),
        ] {
            let topic = TopicName::parse(topic, &Addressing::ManyApps).expect("a topic");
            let addressed = address(&topic, event, &Addressing::ManyApps);
            let addressed = addressed.as_ref().map(|(d, e)| (d.as_str(), e.as_str()));
            assert_eq!(addressed.map_err(|e| *e), expected, "{topic:?} {event:?}");
        }
    }

    #[test]
    fn with_a_single_app_a_channel_may_be_as_long_as_clients_can_join_it() {
        let slug = "a".repeat(62);
        let addressing = Addressing::SingleApp(crate::app::Slug::parse(&slug).expect("a slug"));
        let topic = TopicName::parse(&format!("public:{slug}"), &addressing).expect("a topic");
        assert_eq!(topic.channel, None);
        let (longest, prefixed) = ("c".repeat(200), "c".repeat(200) + ":m");
        let joined = TopicName::parse(&format!("public:{longest}"), &addressing);
        assert_eq!(joined.map(|joined| joined.channel.is_some()), Ok(true));
        let addressed = address(&topic, &prefixed, &addressing);
        let channel = addressed.map(|(destination, _)| destination.as_str().to_owned());
        assert_eq!(channel, Ok(longest));
        let many = address(&topic, &prefixed, &Addressing::ManyApps);
        assert_eq!(many.err(), Some(NameError::WholeTooLong));
    }

    #[test]
    fn events_follow_the_naming_rule() {
        let longest = "e".repeat(200);
        let too_long = "e".repeat(201);
        for (raw, expected) in [
            ("msg", Ok(())),
            ("foo:msg", Ok(())),
            ("caf\u{e9} \u{1f600}", Ok(())),
            ("presence_states", Ok(())),
            (&longest, Ok(())),
            (&too_long, Err(NameError::TooLong(200))),
            ("", Err(NameError::Empty)),
            ("#general", Err(NameError::Reserved)),
            ("#x", Err(NameError::Reserved)),
            ("phx_", Err(NameError::Reserved)),
            ("phx_join", Err(NameError::Reserved)),
            ("chan_reply_1", Err(NameError::Reserved)),
            ("presence_state", Err(NameError::Reserved)),
            ("presence_diff", Err(NameError::Reserved)),
            ("a\u{7f}", Err(NameError::BadCharacter)),
            ("a\tb", Err(NameError::BadCharacter)),
        ] {
            assert_eq!(EventName::parse(raw).map(|_| ()), expected, "{raw:?}");
            let of_any = match reserved::is_phoenix_event(raw) {
                true => Ok(()),
                false => expected,
            };
            assert_eq!(EventName::parse_any(raw).map(|_| ()), of_any, "{raw:?}");
        }
    }

    #[test]
    fn channel_and_event_together_are_at_most_255_bytes() {
        let event = EventName::parse(&"e".repeat(200)).expect("an event");
        for (channel_bytes, expected) in [(54, Ok(())), (55, Err(NameError::WholeTooLong))] {
            let channel = Destination::parse(&"c".repeat(channel_bytes)).expect("a channel");
            assert_eq!(Publication::check_prefixed(&channel, &event), expected);
        }
    }

    #[test]
    fn any_json_is_a_payload_if_every_subscriber_can_read_it() {
        for (text, expected) in [
            (" [1, 2.0] ", Ok("[1, 2.0]")),
            ("\"a\\u0062\"", Ok("\"a\\u0062\"")),
            ("-0", Ok("-0")),
            ("null", Ok("null")),
            ("true", Ok("true")),
            ("{\"a\" : 1}", Ok("{\"a\" : 1}")),
            ("[1e999]", Err(NotStrict::NumberTooLarge)),
            ("\"\\ud800\"", Err(NotStrict::LoneSurrogate)),
            ("[{\"a\":1,\"a\":2}]", Err(NotStrict::RepeatedKey)),
        ] {
            let raw: &RawValue = serde_json::from_str(text).expect("JSON");
            let read = JsonText::from_raw(raw);
            assert_eq!(read.as_ref().map(JsonText::as_str).map_err(|e| *e), expected, "{text}");
        }
        assert_eq!(JsonText::of_text("a\"\n").as_str(), r#""a\"\n""#);
        let object = JsonObject::parse(" {} ").expect("an object");
        assert_eq!(Payload::from(object).size_bytes(), 2);
    }

    #[test]
    fn payloads_are_objects_and_keep_their_text() {
        let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let (deep, too_deep, abyss) = (nested(128), nested(129), nested(100_000));
        for (text, expected) in [
            ("{}", Ok("{}")),
            (" {\"a\" : 1.0} ", Ok("{\"a\" : 1.0}")),
            ("{\"s\":\"]}\\\"{[\"}", Ok("{\"s\":\"]}\\\"{[\"}")),
            (&deep, Ok(deep.as_str())),
            ("{\"a\":-0,\"b\":18446744073709551616}", Ok("{\"a\":-0,\"b\":18446744073709551616}")),
            (&too_deep, Err(PayloadError::NotStrict(NotStrict::TooDeep))),
            (&abyss, Err(PayloadError::NotStrict(NotStrict::TooDeep))),
            ("{\"a\":\"\\ud800\"}", Err(PayloadError::NotStrict(NotStrict::LoneSurrogate))),
            ("{\"a\":1e999}", Err(PayloadError::NotStrict(NotStrict::NumberTooLarge))),
            ("{\"a\":1,\"a\":2}", Err(PayloadError::NotStrict(NotStrict::RepeatedKey))),
            ("[]", Err(PayloadError::NotAnObject)),
            ("\"x\"", Err(PayloadError::NotAnObject)),
            ("null", Err(PayloadError::NotAnObject)),
            ("", Err(PayloadError::NotJson)),
            ("{", Err(PayloadError::NotJson)),
            ("{} x", Err(PayloadError::NotJson)),
        ] {
            let parsed = JsonObject::parse(text);
            let parsed = parsed.as_ref().map(JsonObject::as_str).map_err(|e| *e);
            assert_eq!(parsed, expected, "{:.40}", text);
        }
    }
}
