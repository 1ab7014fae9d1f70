//! A publication as the history retains it: in one piece of memory, and nothing beside it.

use std::sync::Arc;

use super::{
    publication::{Destination, EventName, Payload, Publication},
    topic_name::ChannelName,
};

/// A publication that is retained, without its position and its scope. Clones share it.
///
/// ```text
/// 0        8      9         10       11
/// ┌────────┬──────┬─────────┬────────┬─────────┬───────┬─────────┐
/// │ at_ms  │ kind │ channel │ event  │ channel │ event │ payload │
/// │ u64 LE │      │ length  │ length │ bytes   │ bytes │ bytes   │
/// └────────┴──────┴─────────┴────────┴─────────┴───────┴─────────┘
/// ```
///
/// A copy: slices of what was read from a socket would keep all of it in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained(Arc<[u8]>);

/// The bytes ahead of the names.
const HEAD_BYTES: usize = 11;

/// What an allocation that is shared takes beside its content, in bytes.
const SHARED_BYTES: usize = 16;

/// The payload is an object.
const OBJECT: u8 = 0;

/// The payload is bytes.
const BYTES: u8 = 1;

/// Set if it was published to `#general` and has no channel.
const GENERAL: u8 = 2;

/// The payload of a publication that is retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetainedPayload<'a> {
    /// A JSON object, as text.
    Object(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl Retained {
    /// Copies a publication that was accepted at `at_ms`, in Unix milliseconds.
    pub fn new(publication: &Publication, at_ms: u64) -> Self {
        let Publication { destination, event, payload, .. } = publication;
        let (kind, payload) = match payload {
            Payload::Object(object) => (OBJECT, object.as_str().as_bytes()),
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
        let head = [kind | general, length(channel), length(event)];
        let parts =
            [&at_ms.to_le_bytes()[..], &head, channel.as_bytes(), event.as_bytes(), payload];
        Self(parts.concat().into())
    }

    /// Takes the bytes of one that was retained before; `None` if they break the rules above.
    ///
    /// That an object is JSON is not checked.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, names) = bytes.split_at_checked(HEAD_BYTES)?;
        let (kind, lengths) = (head[8], [head[9], head[10]].map(usize::from));
        let (channel, rest) = names.split_at_checked(lengths[0])?;
        let (event, payload) = rest.split_at_checked(lengths[1])?;
        let (channel, event) = (str::from_utf8(channel).ok()?, str::from_utf8(event).ok()?);
        let fits = match kind & GENERAL {
            0 => ChannelName::parse(channel).is_ok(),
            _ => channel.is_empty(),
        };
        let payload_fits = match kind & !GENERAL {
            OBJECT => payload.first() == Some(&b'{') && str::from_utf8(payload).is_ok(),
            BYTES => true,
            _ => false,
        };
        let event_fits = EventName::parse(event).is_ok();
        (fits && event_fits && payload_fits).then(|| Self(bytes.into()))
    }

    /// All of it, as [`Retained::parse`] takes it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// When it was accepted, in Unix milliseconds.
    pub fn at_ms(&self) -> u64 {
        self.0.first_chunk().copied().map_or(0, u64::from_le_bytes)
    }

    /// The channel that it was published to; `None` if it was `#general`.
    pub fn channel(&self) -> Option<&str> {
        (self.0[8] & GENERAL == 0).then(|| text(&self.0[HEAD_BYTES..self.event_at()]))
    }

    /// The event's name.
    pub fn event(&self) -> &str {
        text(&self.0[self.event_at()..self.payload_at()])
    }

    /// The payload.
    pub fn payload(&self) -> RetainedPayload<'_> {
        let payload = &self.0[self.payload_at()..];
        match self.0[8] & BYTES {
            0 => RetainedPayload::Object(text(payload)),
            _ => RetainedPayload::Bytes(payload),
        }
    }

    /// The memory that it takes, in bytes.
    pub fn size_bytes(&self) -> usize {
        SHARED_BYTES + self.0.len()
    }

    /// The bytes of its payload.
    pub fn payload_bytes(&self) -> usize {
        self.0.len() - self.payload_at()
    }

    fn event_at(&self) -> usize {
        HEAD_BYTES + usize::from(self.0[9])
    }

    fn payload_at(&self) -> usize {
        self.event_at() + usize::from(self.0[10])
    }
}

/// What was copied from text.
fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::{
        EventName, JsonObject,
        testing::{key, publication},
    };
    use super::*;

    #[test]
    fn a_publication_is_retained_whole() {
        let longest = ["c".repeat(158), "e".repeat(96)];
        let object = |text: &str| Payload::Object(JsonObject::parse(text).expect("an object"));
        for (destination, event, payload) in [
            ("room", "msg", object("{}")),
            ("#general", "msg", object("{\"a\":\"\u{e9}\"}")),
            ("caf\u{e9}", "\u{1f600}", Payload::Bytes(b"\x00\xff".as_slice().into())),
            ("#general", "m", Payload::Bytes(Default::default())),
            (&longest[0], &longest[1], object("{\"a\" : 1.0}")),
        ] {
            let event = EventName::parse(event).expect("an event");
            let whole = publication(&key(1, "public"), destination, "msg");
            let whole = Publication { event, payload, ..whole };
            let retained = Retained::new(&whole, 1_700_000_000_123);
            assert_eq!(retained.at_ms(), 1_700_000_000_123);
            assert_eq!(retained.channel().unwrap_or("#general"), destination);
            assert_eq!(retained.event(), whole.event.as_str());
            assert_eq!(retained.payload_bytes(), whole.payload.size_bytes());
            assert_eq!(Retained::parse(retained.as_bytes()), Some(retained.clone()));
            match (retained.payload(), &whole.payload) {
                (RetainedPayload::Object(kept), Payload::Object(said)) => {
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
        assert!(taken(bytes(OBJECT, [4, 3], "roommsg{}")));
        assert!(taken(bytes(OBJECT | GENERAL, [0, 3], "msg{}")));
        assert!(taken(bytes(BYTES, [4, 3], "roommsg")));
        for (kind, lengths, rest) in [
            (OBJECT, [4, 3], "roommsg"),
            (OBJECT, [4, 3], "roommsg[]"),
            (OBJECT, [200, 3], "roommsg{}"),
            (OBJECT, [4, 200], "roommsg{}"),
            (OBJECT, [0, 3], "msg{}"),
            (OBJECT, [4, 0], "room{}"),
            (OBJECT, [4, 3], "#ooomsg{}"),
            (OBJECT, [4, 3], "roomm\u{1}g{}"),
            (OBJECT, [1, 4], "\u{e9}msg{}"),
            (OBJECT | GENERAL, [4, 3], "roommsg{}"),
            (4, [4, 3], "roommsg{}"),
            (255, [4, 3], "roommsg{}"),
        ] {
            assert!(!taken(bytes(kind, lengths, rest)), "{kind} {lengths:?} {rest:?}");
        }
        assert!(!taken(Vec::new()));
        assert!(!taken(vec![0; HEAD_BYTES]));
        let no_text = [&bytes(OBJECT, [4, 3], "roommsg{")[..], b"\xff}"].concat();
        assert!(!taken(no_text));
    }
}
