//! A publication as the history retains it, in one allocation.

use std::{iter, sync::Arc};

use super::{
    publication::{Destination, EventName, Payload, Publication, Sender},
    topic_name::ChannelName,
};

/// A publication that is retained, without its position and its scope. Clones share it.
///
/// ```text
/// 0        8      9         10       11
/// ┌────────┬──────┬─────────┬────────┬─────────┬───────┬────────────────┬─────────┐
/// │ at_ms  │ kind │ channel │ event  │ channel │ event │ user, if there │ payload │
/// │ u64 LE │      │ length  │ length │ bytes   │ bytes │ is one         │ bytes   │
/// └────────┴──────┴─────────┴────────┴─────────┴───────┴────────────────┴─────────┘
/// ```
///
/// A user is its length as a byte, then its bytes.
///
/// The bytes are a copy, because a slice of bytes from a socket would keep all of them in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained(Arc<[u8]>);

/// The number of bytes before the names.
pub(super) const HEAD_BYTES: usize = 11;

/// The overhead of a shared allocation, in bytes.
const SHARED_BYTES: usize = 16;

/// The kind of a publication whose payload is JSON.
const JSON: u8 = 0;

/// The kind of a publication whose payload is bytes.
const BYTES: u8 = 1;

/// The flag of a publication to `#general`, which has no channel.
const GENERAL: u8 = 2;

/// The flag of a publication by a session.
const SESSION: u8 = 4;

/// The flag of a publication by a session with a user.
const USER: u8 = 8;

/// The payload of a publication that is retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetainedPayload<'a> {
    /// A JSON value, as text.
    Json(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl Retained {
    /// Copies a publication that was accepted at `at_ms`, in Unix milliseconds.
    pub fn new(publication: &Publication, at_ms: u64) -> Self {
        let Publication { destination, event, payload, origin, .. } = publication;
        let (kind, payload) = match payload {
            Payload::Json(json) => (JSON, json.as_str().as_bytes()),
            Payload::Bytes(bytes) => (BYTES, &bytes[..]),
        };
        let (general, channel) = match destination {
            Destination::General => (GENERAL, ""),
            Destination::Channel(channel) => (0, channel.as_str()),
        };
        let event = event.as_str();
        let length = |name: &str| {
            debug_assert!(name.len() <= usize::from(u8::MAX), "the naming rules bound names");
            name.len() as u8
        };
        let user_length;
        let (sender, user): (_, [&[u8]; 2]) = match origin.sender() {
            Sender::Trigger => (0, [&[], &[]]),
            Sender::Session(None) => (SESSION, [&[], &[]]),
            Sender::Session(Some(user)) => {
                user_length = [length(user)];
                (SESSION | USER, [&user_length, user.as_bytes()])
            }
        };
        let head = [kind | general | sender, length(channel), length(event)];
        let parts = [
            &at_ms.to_le_bytes()[..],
            &head,
            channel.as_bytes(),
            event.as_bytes(),
            user[0],
            user[1],
            payload,
        ];
        Self(concat(&parts))
    }

    /// Parses the bytes of a retained publication; `None` if they are malformed. Of a JSON payload only the
    /// first character is checked.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, names) = bytes.split_at_checked(HEAD_BYTES)?;
        let (kind, lengths) = (head[8], [head[9], head[10]].map(usize::from));
        let (channel, rest) = names.split_at_checked(lengths[0])?;
        let (event, rest) = rest.split_at_checked(lengths[1])?;
        let payload = match kind & (SESSION | USER) {
            USER => return None,
            0 | SESSION => rest,
            _ => {
                let (length, rest) = rest.split_first()?;
                let (user, payload) = rest.split_at_checked(usize::from(*length))?;
                (!user.is_empty() && str::from_utf8(user).is_ok()).then_some(payload)?
            }
        };
        let (channel, event) = (str::from_utf8(channel).ok()?, str::from_utf8(event).ok()?);
        let fits = match kind & GENERAL {
            0 => ChannelName::parse(channel).is_ok(),
            _ => channel.is_empty(),
        };
        let payload_fits = match kind & !(GENERAL | SESSION | USER) {
            JSON => payload.first().is_some_and(begins_json) && str::from_utf8(payload).is_ok(),
            BYTES => true,
            _ => false,
        };
        let event_fits = EventName::parse_any(event).is_ok();
        (fits && event_fits && payload_fits).then(|| Self(bytes.into()))
    }

    /// All bytes, for [`Retained::parse`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The time at which the publication was accepted, in Unix milliseconds.
    pub fn at_ms(&self) -> u64 {
        self.0.first_chunk().copied().map_or(0, u64::from_le_bytes)
    }

    /// The channel to which it was published; `None` for `#general`.
    pub fn channel(&self) -> Option<&str> {
        (self.0[8] & GENERAL == 0).then(|| text(&self.0[HEAD_BYTES..self.event_at()]))
    }

    /// The event's name.
    pub fn event(&self) -> &str {
        text(&self.0[self.event_at()..self.user_at()])
    }

    /// The publisher.
    pub fn sender(&self) -> Sender<'_> {
        match self.0[8] & (SESSION | USER) {
            0 => Sender::Trigger,
            SESSION => Sender::Session(None),
            _ => Sender::Session(Some(text(&self.0[self.user_at() + 1..self.payload_at()]))),
        }
    }

    /// The payload.
    pub fn payload(&self) -> RetainedPayload<'_> {
        let payload = &self.0[self.payload_at()..];
        match self.0[8] & BYTES {
            0 => RetainedPayload::Json(text(payload)),
            _ => RetainedPayload::Bytes(payload),
        }
    }

    /// The bytes of memory that the publication takes.
    pub fn size_bytes(&self) -> usize {
        SHARED_BYTES + self.0.len()
    }

    /// The number of bytes of the payload.
    pub fn payload_bytes(&self) -> usize {
        self.0.len() - self.payload_at()
    }

    fn event_at(&self) -> usize {
        HEAD_BYTES + usize::from(self.0[9])
    }

    fn user_at(&self) -> usize {
        self.event_at() + usize::from(self.0[10])
    }

    fn payload_at(&self) -> usize {
        let user_at = self.user_at();
        match self.0[8] & USER {
            0 => user_at,
            _ => user_at + 1 + usize::from(self.0[user_at]),
        }
    }
}

/// Concatenates the parts in one allocation.
fn concat(parts: &[&[u8]]) -> Arc<[u8]> {
    let length = parts.iter().map(|part| part.len()).sum();
    // The length of this iterator is known, so no intermediate vector is needed.
    let mut whole: Arc<[u8]> = iter::repeat_n(0, length).collect();
    let mut rest = Arc::get_mut(&mut whole).unwrap_or_default();
    for part in parts {
        let (place, behind) = rest.split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = behind;
    }
    whole
}

/// Returns whether a JSON value can begin with this byte.
fn begins_json(byte: &u8) -> bool {
    matches!(byte, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')
}

/// Reads bytes that were copied from text.
fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::{
        EventName, JsonText, PublicationOrigin,
        testing::{key, publication},
    };
    use super::*;

    #[test]
    fn a_publication_is_retained_whole() {
        let longest = ["c".repeat(158), "e".repeat(96)];
        let json = |text: &str| {
            let raw = serde_json::from_str(text).expect("JSON");
            Payload::Json(JsonText::from_raw(raw).expect("strict JSON"))
        };
        let session =
            |user: &str| PublicationOrigin::Session { user: Some(user.to_owned().into()) };
        for (destination, event, payload, origin) in [
            ("room", "msg", json("{}"), PublicationOrigin::Trigger),
            ("room", "msg", json("[]"), PublicationOrigin::Session { user: None }),
            ("#general", "msg", json("{\"a\":\"\u{e9}\"}"), session("ada")),
            (
                "caf\u{e9}",
                "\u{1f600}",
                Payload::Bytes(b"\x00\xff".as_slice().into()),
                session(&"\u{e9}".repeat(64)),
            ),
            ("#general", "m", Payload::Bytes(Default::default()), PublicationOrigin::Trigger),
            (&longest[0], &longest[1], json("{\"a\" : 1.0}"), session("b")),
            ("room", "msg", json("\"{}\""), PublicationOrigin::Trigger),
            ("room", "msg", json("-0"), PublicationOrigin::Trigger),
            ("room", "msg", json("null"), PublicationOrigin::Trigger),
        ] {
            let event = EventName::parse(event).expect("an event");
            let whole = publication(&key(1, "public"), destination, "msg");
            let whole = Publication { event, payload, origin, ..whole };
            let retained = Retained::new(&whole, 1_700_000_000_123);
            assert_eq!(retained.at_ms(), 1_700_000_000_123);
            assert_eq!(retained.channel().unwrap_or("#general"), destination);
            assert_eq!(retained.event(), whole.event.as_str());
            assert_eq!(retained.sender(), whole.origin.sender());
            assert_eq!(retained.payload_bytes(), whole.payload.size_bytes());
            assert_eq!(Retained::parse(retained.as_bytes()), Some(retained.clone()));
            match (retained.payload(), &whole.payload) {
                (RetainedPayload::Json(kept), Payload::Json(said)) => {
                    assert_eq!(kept, said.as_str());
                }
                (RetainedPayload::Bytes(kept), Payload::Bytes(said)) => assert_eq!(kept, said),
                (kept, said) => panic!("{kept:?} {said:?}"),
            }
        }
    }

    #[test]
    fn bytes_that_were_not_retained_are_not_taken() {
        let bytes = |kind: u8, lengths: [u8; 2], rest: &str| {
            [&[0; 8][..], &[kind], &lengths, rest.as_bytes()].concat()
        };
        let taken = |bytes: Vec<u8>| Retained::parse(&bytes).is_some();
        assert!(taken(bytes(JSON, [4, 3], "roommsg{}")));
        assert!(taken(bytes(JSON | GENERAL, [0, 3], "msg{}")));
        assert!(taken(bytes(JSON, [4, 3], "roommsg[]")));
        assert!(taken(bytes(BYTES, [4, 3], "roommsg")));
        assert!(taken(bytes(JSON | SESSION, [4, 3], "roommsg{}")));
        assert!(taken(bytes(JSON | SESSION | USER, [4, 3], "roommsg\u{1}u{}")));
        for (kind, lengths, rest) in [
            (JSON, [4, 3], "roommsg"),
            (JSON, [4, 3], "roommsg x"),
            (JSON, [200, 3], "roommsg{}"),
            (JSON, [4, 200], "roommsg{}"),
            (JSON, [0, 3], "msg{}"),
            (JSON, [4, 0], "room{}"),
            (JSON, [4, 3], "#ooomsg{}"),
            (JSON, [4, 3], "roomm\u{1}g{}"),
            (JSON, [1, 4], "\u{e9}msg{}"),
            (JSON | GENERAL, [4, 3], "roommsg{}"),
            (JSON | USER, [4, 3], "roommsg\u{1}u{}"),
            (JSON | SESSION | USER, [4, 3], "roommsg\u{0}{}"),
            (JSON | SESSION | USER, [4, 3], "roommsg\u{9}u{}"),
            (JSON | SESSION | USER, [4, 3], "roommsg"),
            (16, [4, 3], "roommsg{}"),
            (255, [4, 3], "roommsg{}"),
        ] {
            assert!(!taken(bytes(kind, lengths, rest)), "{kind} {lengths:?} {rest:?}");
        }
        assert!(!taken(Vec::new()));
        assert!(!taken(vec![0; HEAD_BYTES]));
        let no_text = [&bytes(JSON, [4, 3], "roommsg{")[..], b"\xff}"].concat();
        assert!(!taken(no_text));
    }
}
