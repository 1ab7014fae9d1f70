//! The parts that both wire versions share: messages, and refs, which only their sender interprets.

use std::borrow::Cow;

use bytes::Bytes;
use bytestring::ByteString;
use semver::Version as SemVer;
use serde_json::value::RawValue;

use crate::{
    broker::{
        TopicName, reserved,
        subscriber::{Encoders, Format, Frame},
    },
    metrics::labels::Transport,
    session::Received,
};

use super::{binary, payload, presence, recovery, v1, v2};

/// The most bytes of a topic as a client spells it in JSON. A topic that can be joined is no longer than that, even
/// if each of its bytes is an escape of six. Replies repeat the topic, so a longer one closes the connection.
pub(super) const TOPIC_JSON_BYTES_MAX: usize = 2 + 6 * TopicName::BYTES_MAX;

/// The fault of a malformed message. The connection is closed with 1011.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The message does not have the form of its version, or its topic is longer than
    /// [`TOPIC_JSON_BYTES_MAX`].
    Message,
    /// A `ref` or `join_ref` is longer than the limit, or nested.
    Ref,
}

/// The wire version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `vsn` 1.0: JSON objects.
    V1,
    /// `vsn` 2.0: JSON arrays.
    V2,
}

impl Version {
    /// Picks the version for a client's `vsn`; `None` if none matches. A client without a `vsn`
    /// uses 1.0.
    ///
    /// Section 3.3 of the protocol document: a whole semantic version, 1.0.x or 2.0.x.
    pub fn negotiate(vsn: Option<&str>) -> Option<Self> {
        let Some(vsn) = vsn else { return Some(Self::V1) };
        let asked = SemVer::parse(vsn).ok()?;
        let within = |major: u64| {
            (asked.major, asked.minor) == (major, 0)
                && asked.cmp_precedence(&SemVer::new(major, 0, 0)).is_ge()
        };
        match () {
            () if within(1) => Some(Self::V1),
            () if within(2) => Some(Self::V2),
            () => None,
        }
    }

    /// Reads a message from a text or a binary frame.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(
        self,
        message: &Received,
        ref_bytes_max: usize,
    ) -> Result<ClientMessage<'_>, Malformed> {
        match (message, self) {
            (Received::Text(text), version) => version.decode_text(text, ref_bytes_max),
            // Version 1 has no binary form, and accepts text under any opcode.
            (Received::Binary(bytes), Self::V1) => {
                let text = str::from_utf8(bytes).map_err(|_| Malformed::Message)?;
                Self::V1.decode_text(text, ref_bytes_max)
            }
            (Received::Binary(bytes), Self::V2) => binary::decode(bytes, ref_bytes_max),
        }
    }

    /// Reads a text message.
    pub(super) fn decode_text(
        self,
        text: &str,
        ref_bytes_max: usize,
    ) -> Result<ClientMessage<'_>, Malformed> {
        let raw = match self {
            Self::V1 => v1::decode(text),
            Self::V2 => v2::decode(text),
        }?;
        raw.check(ref_bytes_max)
    }

    /// Encodes a message to one client.
    pub fn encode(self, outgoing: &Outgoing<'_>) -> Frame {
        let text = match self {
            Self::V1 => v1::encode(outgoing),
            Self::V2 => v2::encode(outgoing),
        };
        Frame::Text(ByteString::from(text))
    }

    /// The format of publications for this version and transport, with their positions or without. Over long-poll
    /// the server sends no bytes (section 9.4 of the protocol document).
    pub fn format(self, transport: Transport, has_positions: bool) -> Format {
        Format::of(self.encoders(transport, has_positions))
    }

    fn encoders(self, transport: Transport, has_positions: bool) -> &'static Encoders {
        match (self, transport, has_positions) {
            (Self::V1, _, false) => &V1,
            (Self::V1, _, true) => {
                const {
                    &Encoders {
                        slot: 2,
                        encode: |delivery| Some(v1::encode_with_position(delivery)),
                        ..V1
                    }
                }
            }
            (Self::V2, Transport::WebSocket, false) => {
                const { &Encoders { encode_bytes: Some(binary::encode_delivery), ..V2 } }
            }
            (Self::V2, Transport::LongPoll, false) => &V2,
            (Self::V2, Transport::WebSocket, true) => {
                const { &Encoders { encode_bytes: Some(binary::encode_delivery), ..V2_WITH_POSITIONS } }
            }
            (Self::V2, Transport::LongPoll, true) => &V2_WITH_POSITIONS,
        }
    }
}

const V1: Encoders = Encoders {
    slot: 0,
    roster_slot: 0,
    tail_bytes: Some(v1::TAIL_BYTES),
    has_event: |event| !reserved::is_phoenix_event(event),
    carry: |json, _, _| payload::carry(json),
    encode: |delivery| Some(v1::encode_delivery(delivery)),
    encode_bytes: None,
    encode_position: None,
    encode_count: None,
    positions_follow_json: false,
    begins_with_last_event: false,
    spell_members: presence::spell_members,
    encode_change: |topic, change| presence::encode_change(Version::V1, topic, change),
};

const V2: Encoders = Encoders {
    slot: 1,
    tail_bytes: Some(v2::TAIL_BYTES),
    encode: |delivery| Some(v2::encode_delivery(delivery)),
    encode_change: |topic, change| presence::encode_change(Version::V2, topic, change),
    ..V1
};

const V2_WITH_POSITIONS: Encoders = Encoders {
    slot: 3,
    encode: |delivery| Some(v2::encode_with_position(delivery)),
    encode_position: Some(recovery::encode_position),
    ..V2
};

/// JSON `null`.
const NULL: &str = "null";

/// A `ref` or `join_ref`: a scalar JSON value that only its sender understands.
///
/// Kept as JSON text with strings in one canonical spelling, so that comparison is strict by type
/// (`1` is not `"1"`) and the echo equals the value that the client sent. `None` is JSON `null`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref(Option<Box<str>>);

impl Ref {
    /// The ref of a message that is not a reply.
    pub fn null() -> Self {
        Self(None)
    }

    /// Returns whether this is JSON `null`.
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// The ref as JSON.
    pub fn as_json(&self) -> &str {
        self.0.as_deref().unwrap_or(NULL)
    }

    /// Takes a string of at most `bytes_max` bytes.
    pub(super) fn from_text(text: &str, bytes_max: usize) -> Result<Self, Malformed> {
        if text.len() > bytes_max {
            Err(Malformed::Ref)
        } else {
            Ok(Self(Some(json_string(text).into())))
        }
    }

    /// Takes a scalar of at most `bytes_max` bytes.
    fn parse(raw: &RawValue, bytes_max: usize) -> Result<Self, Malformed> {
        let json = raw.get();
        match json.as_bytes().first() {
            Some(b'{' | b'[') | None => Err(Malformed::Ref),
            Some(b'"') => {
                // An escape has at most six bytes for one byte: a longer text cannot be short
                // enough.
                if json.len() > 2 + 6 * bytes_max {
                    return Err(Malformed::Ref);
                }
                Self::from_text(&text_of(json)?, bytes_max)
            }
            Some(_) if json.len() > bytes_max => Err(Malformed::Ref),
            Some(_) => Ok(Self((json != NULL).then(|| json.into()))),
        }
    }
}

/// A topic or an event as a client sent it: a string in practice, but any JSON is allowed, and
/// a topic is echoed unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// Anything else, as JSON.
    Other(&'a str),
}

impl<'a> Label<'a> {
    fn parse(raw: &'a RawValue) -> Result<Self, Malformed> {
        let json = raw.get();
        if json.starts_with('"') { text_of(json).map(Self::Text) } else { Ok(Self::Other(json)) }
    }

    /// The string, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Other(_) => None,
        }
    }

    /// The label as JSON.
    pub fn to_json(&self) -> String {
        match self {
            Self::Text(text) => json_string(text),
            Self::Other(json) => (*json).to_owned(),
        }
    }
}

impl<'a> From<&'a str> for Label<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text.into())
    }
}

/// A client's message.
#[derive(Debug)]
pub struct ClientMessage<'a> {
    /// The `join_ref` of the join to which the message belongs; null if the client named none.
    pub join_ref: Ref,
    /// The ref that the reply must repeat.
    pub reference: Ref,
    /// The topic.
    pub topic: Label<'a>,
    /// The event.
    pub event: Label<'a>,
    /// The payload.
    pub payload: ClientPayload<'a>,
}

/// The payload of a client's message.
#[derive(Debug)]
pub enum ClientPayload<'a> {
    /// Any JSON.
    Json(&'a RawValue),
    /// Bytes, from a binary frame.
    Bytes(Bytes),
}

impl ClientPayload<'_> {
    /// The size in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Json(json) => json.get().len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// The five parts of a message before they are checked.
#[derive(Debug)]
pub(super) struct RawMessage<'a> {
    pub(super) join_ref: Option<&'a RawValue>,
    pub(super) reference: &'a RawValue,
    pub(super) topic: &'a RawValue,
    pub(super) event: &'a RawValue,
    pub(super) payload: &'a RawValue,
}

impl<'a> RawMessage<'a> {
    fn check(&self, ref_bytes_max: usize) -> Result<ClientMessage<'a>, Malformed> {
        if self.topic.get().len() > TOPIC_JSON_BYTES_MAX {
            return Err(Malformed::Message);
        }
        let join_ref = self
            .join_ref
            .map_or_else(|| Ok(Ref::null()), |join_ref| Ref::parse(join_ref, ref_bytes_max))?;
        Ok(ClientMessage {
            join_ref,
            reference: Ref::parse(self.reference, ref_bytes_max)?,
            topic: Label::parse(self.topic)?,
            event: Label::parse(self.event)?,
            payload: ClientPayload::Json(self.payload),
        })
    }
}

/// A message to one client. Version 1 has no `join_ref` and omits it.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// The `join_ref` of the join to which the message belongs.
    pub join_ref: &'a Ref,
    /// The ref of the answered message.
    pub reference: &'a Ref,
    /// The topic.
    pub topic: &'a Label<'a>,
    /// The event.
    pub event: &'a str,
    /// The payload as JSON.
    pub payload: &'a str,
}

/// The content of a JSON string. A string without escapes, the usual case, is its own content.
fn text_of(json: &str) -> Result<Cow<'_, str>, Malformed> {
    let plain = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match plain.filter(|plain| !plain.contains('\\')) {
        Some(plain) => Ok(Cow::Borrowed(plain)),
        None => serde_json::from_str(json).map(Cow::Owned).map_err(|_| Malformed::Message),
    }
}

/// A string as JSON.
pub(super) fn json_string(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    push_json_string(&mut json, text);
    json
}

/// Appends a string as JSON.
pub(super) fn push_json_string(json: &mut String, text: &str) {
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        json.push('"');
        json.push_str(text);
        json.push('"');
    } else {
        json.push_str(&serde_json::Value::from(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e003_e004_e005_e006_e007_versions_are_negotiated() {
        for (vsn, expected) in [
            (None, Some(Version::V1)),
            (Some("1.0.0"), Some(Version::V1)),
            (Some("1.0.7"), Some(Version::V1)),
            (Some("2.0.0"), Some(Version::V2)),
            (Some("2.0.9"), Some(Version::V2)),
            (Some("2.0.1-rc.1"), Some(Version::V2)),
            (Some("2.0.0+x"), Some(Version::V2)),
            (Some("1.1.0"), None),
            (Some("2.1.0"), None),
            (Some("1.1.0-rc.1"), None),
            (Some("2.1.0-rc.1"), None),
            (Some("123.1.1"), None),
            (Some("2.0.0-rc.1"), None),
            (Some("0.9.0"), None),
            (Some("2.0"), None),
            (Some("2"), None),
            (Some(""), None),
            (Some(" 2.0.0"), None),
            (Some("02.0.0"), None),
            (Some("2.0.99999999999999999999"), None),
        ] {
            assert_eq!(Version::negotiate(vsn), expected, "{vsn:?}");
        }
    }

    fn parse_ref(json: &str) -> Result<String, Malformed> {
        let raw: &RawValue = serde_json::from_str(json).expect("JSON");
        Ref::parse(raw, 64).map(|r| r.as_json().to_owned())
    }

    #[test]
    fn e042_refs_are_opaque_scalars_of_bounded_size() {
        let longest = format!("\"{}\"", "r".repeat(64));
        let too_long = format!("\"{}\"", "r".repeat(65));
        let escaped = format!("\"{}\"", "\\u0072".repeat(64));
        let digits = "1".repeat(64);
        let too_many_digits = "1".repeat(65);
        for (json, expected) in [
            ("null", Ok("null")),
            ("\"1\"", Ok("\"1\"")),
            ("\"\"", Ok("\"\"")),
            ("1", Ok("1")),
            ("1.50", Ok("1.50")),
            ("true", Ok("true")),
            ("\"\\u0031\"", Ok("\"1\"")),
            ("\"\\n\"", Ok("\"\\n\"")),
            (&longest, Ok(longest.as_str())),
            (&escaped, Ok(longest.as_str())),
            (&digits, Ok(digits.as_str())),
            (&too_long, Err(Malformed::Ref)),
            (&too_many_digits, Err(Malformed::Ref)),
            ("[1]", Err(Malformed::Ref)),
            ("{}", Err(Malformed::Ref)),
            ("\"\\ud800\"", Err(Malformed::Message)),
        ] {
            assert_eq!(parse_ref(json).as_deref(), expected.as_ref().copied(), "{json}");
        }
    }

    #[test]
    fn a_payload_stands_unchanged_before_the_tail_of_each_format() {
        use crate::broker::{Sender, position::StreamPosition, subscriber::Delivery};

        let (topic, event, position) =
            ("public:app:\"r\"", "#general:e", StreamPosition::default());
        for version in [Version::V1, Version::V2] {
            for has_positions in [false, true] {
                let format = version.format(Transport::WebSocket, has_positions);
                let tail_bytes = usize::from(format.tail_bytes.expect("a tail"));
                let spell = |payload: &str| match (format.encode)(&Delivery {
                    topic,
                    event,
                    payload,
                    position,
                    sender: Sender::Trigger,
                }) {
                    Some(Frame::Text(text)) => text.to_string(),
                    other => panic!("{other:?} is no text"),
                };
                let bare = spell("");
                let (head, tail) = bare.split_at(bare.len() - tail_bytes);
                assert_eq!(spell(r#"{"a":1.0}"#), format!(r#"{head}{{"a":1.0}}{tail}"#));
                let Some(encode_bytes) = format.encode_bytes else { continue };
                let spell = |payload: &[u8]| match encode_bytes(&Delivery {
                    topic,
                    event,
                    payload,
                    position,
                    sender: Sender::Trigger,
                }) {
                    Some(Frame::Binary(bytes)) => bytes.to_vec(),
                    other => panic!("{other:?} is no frame of bytes"),
                };
                assert_eq!(spell(b"\xff]"), [&spell(b"")[..], b"\xff]"].concat());
            }
        }
    }
}
