//! Publications: one payload on its way to subscribers.

use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;
use serde_json::value::RawValue;

use crate::{
    app::AppId,
    strict_json::{self, NotStrict},
};

use super::topic_name::{ChannelName, Scope, TopicName};

/// Why a scope, channel, event or topic is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing there.
    #[error("must not be empty")]
    Empty,
    /// It has more bytes than its kind may have.
    #[error("is too long")]
    TooLong,
    /// It has a control character, or one its kind does not allow.
    #[error("has a character that is not allowed")]
    BadCharacter,
    /// It begins with `#`, or is one of the wire's own names.
    #[error("is reserved")]
    Reserved,
    /// A topic needs more parts than that.
    #[error("is not a whole topic")]
    Incomplete,
}

impl NameError {
    /// The rule that channels and events share: 1 to `bytes_max` bytes, no control characters, not
    /// beginning with `#`.
    pub(super) fn check(raw: &str, bytes_max: usize) -> Result<(), Self> {
        match raw {
            "" => Err(Self::Empty),
            _ if raw.len() > bytes_max => Err(Self::TooLong),
            _ if raw.starts_with('#') => Err(Self::Reserved),
            _ if raw.chars().any(char::is_control) => Err(Self::BadCharacter),
            _ => Ok(()),
        }
    }
}

/// The name under which a payload arrives: 1–200 bytes, no control characters, not beginning with
/// `#`, and none of the wire's own names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventName(ByteString);

impl EventName {
    /// The most bytes an event may have.
    pub const BYTES_MAX: usize = 200;

    /// The most bytes `channel:event` may have.
    pub const PREFIXED_BYTES_MAX: usize = 255;

    /// Parses an event name.
    ///
    /// # Errors
    /// [`NameError`] if it breaks the rule above.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        NameError::check(raw, Self::BYTES_MAX)?;
        let reserved = raw.starts_with("phx_")
            || raw.starts_with("chan_reply_")
            || matches!(raw, "presence_state" | "presence_diff");
        if reserved { Err(NameError::Reserved) } else { Ok(Self(raw.into())) }
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

/// Where in a scope a publication goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Everyone in the scope: `#general`.
    General,
    /// One channel of it.
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

    /// What prefixes the event's name for those who joined something else.
    pub fn as_str(&self) -> &str {
        match self {
            Self::General => Self::GENERAL,
            Self::Channel(channel) => channel.as_str(),
        }
    }
}

/// Why text is no payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// It is not JSON.
    #[error("payload is not valid JSON")]
    NotJson,
    /// It is JSON, but no object.
    #[error("payload must be an object")]
    NotAnObject,
    /// It is an object that some subscribers could not read, or would read differently.
    #[error("payload {0}")]
    NotStrict(#[from] NotStrict),
}

/// What a publication says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// What every client can be sent.
    Object(JsonObject),
    /// What only some clients can be sent; never looked into.
    Bytes(Bytes),
}

impl Payload {
    /// How large it is, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Object(object) => object.as_str().len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// A JSON object that every subscriber can read, kept as the text in which it came: what a publisher
/// sent is what subscribers get.
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

    /// Reads text that should hold a JSON object.
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

/// One payload on its way to subscribers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Whose it is.
    pub app: AppId,
    /// Who may hear it.
    pub scope: Scope,
    /// Where in the scope it goes.
    pub destination: Destination,
    /// Under which name.
    pub event: EventName,
    /// What it says.
    pub payload: Payload,
}

impl Publication {
    /// Checks what no single name can: `channel:event` is at most 255 bytes.
    ///
    /// # Errors
    /// [`NameError::TooLong`].
    pub fn check_prefixed(destination: &Destination, event: &EventName) -> Result<(), NameError> {
        let bytes = destination.as_str().len() + 1 + event.as_str().len();
        if bytes > EventName::PREFIXED_BYTES_MAX { Err(NameError::TooLong) } else { Ok(()) }
    }
}

/// Reads what an event pushed on `topic` addresses: on a whole scope, `C:E` (split at the first
/// colon) goes to channel `C` and a bare `E` to everyone; on a channel, the event goes there as it
/// is.
///
/// # Errors
/// [`NameError`] of the first bad name; [`NameError::TooLong`] where only the two together are.
pub fn address(topic: &TopicName, event: &str) -> Result<(Destination, EventName), NameError> {
    let (destination, event) = match (&topic.channel, event.split_once(':')) {
        (Some(channel), _) => (Destination::Channel(channel.clone()), event),
        (None, Some((channel, event))) => {
            let channel = ChannelName::parse(channel)?;
            // The channel's own topic must be one that could be joined.
            if topic.as_str().len() + 1 + channel.as_str().len() > TopicName::BYTES_MAX {
                return Err(NameError::TooLong);
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
    use super::super::Addressing;
    use super::*;

    #[test]
    fn what_is_pushed_is_addressed_by_its_topic_and_its_prefix() {
        let (c54, c55) = ("c".repeat(54), "c".repeat(55));
        let e200 = "e".repeat(200);
        let (fits, too_long) = (format!("{c54}:{e200}"), format!("{c55}:{e200}"));
        let scope = format!("{}:{}", "s".repeat(32), "a".repeat(63));
        let (c158, c159) = ("c".repeat(158), "c".repeat(159));
        let (joinable, unjoinable) = (format!("{c158}:m"), format!("{c159}:m"));
        for (topic, event, expected) in [
            (scope.as_str(), joinable.as_str(), Ok((c158.as_str(), "m"))),
            (&scope, &unjoinable, Err(NameError::TooLong)),
            ("public:app", "room:msg", Ok(("room", "msg"))),
            ("public:app", "room:1:msg", Ok(("room", "1:msg"))),
            ("public:app", "msg", Ok(("#general", "msg"))),
            ("public:app:room", "msg", Ok(("room", "msg"))),
            ("public:app:room", "other:msg", Ok(("room", "other:msg"))),
            ("public:app:room:1", "msg", Ok(("room:1", "msg"))),
            ("public:app", &fits, Ok((&c54, &e200))),
            ("public:app", &too_long, Err(NameError::TooLong)),
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
            let addressed = address(&topic, event);
            let addressed = addressed.as_ref().map(|(d, e)| (d.as_str(), e.as_str()));
            assert_eq!(addressed.map_err(|e| *e), expected, "{topic:?} {event:?}");
        }
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
            (&too_long, Err(NameError::TooLong)),
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
        }
    }

    #[test]
    fn channel_and_event_together_are_at_most_255_bytes() {
        let event = EventName::parse(&"e".repeat(200)).expect("an event");
        for (channel_bytes, expected) in [(54, Ok(())), (55, Err(NameError::TooLong))] {
            let channel = Destination::parse(&"c".repeat(channel_bytes)).expect("a channel");
            assert_eq!(Publication::check_prefixed(&channel, &event), expected);
        }
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
