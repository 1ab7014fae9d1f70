//! A publication on its way from its publisher to the fan-outs: what it holds meanwhile, and its
//! frames, each encoded at most once.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;
use bytestring::ByteString;
use tokio::sync::oneshot;

use super::{
    backlog::Backlog,
    permits::Permit,
    position::StreamPosition,
    publication::{Destination, Payload, Publication},
    retained::RetainedPayload,
    spellings::Spellings,
    subscriber::{Delivery, Format, Frame, Kind, ScopeKey, Split},
};

/// Payloads of `#general` below this are spelled whole for each channel: a copy of so little costs
/// less than a reference to it.
const SPLIT_BYTES_MIN: usize = 1_024;

/// Which kind of topic a subscriber joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// The scope as a whole: `S:app`.
    Scope,
    /// One channel of it: `S:app:C`.
    Channel,
}

/// Publications of one scope that came together, and go together until sessions take them: one
/// look-up, one message and one wake-up are for all of them.
pub(super) struct Batch {
    /// How many batches have been published, this one included.
    pub(super) number: u64,
    pub(super) key: ScopeKey,
    pub(super) publications: Vec<Placed>,
}

/// A publication that was accepted and has yet to be given its place in the order.
pub(super) struct Accepted {
    pub(super) publication: Publication,
    pub(super) flight: Flight,
}

/// What a publication holds while it is on its way, and what is retained of it does not: the permit
/// that bounds what is under way, the count of subscribers that it was kept from, and the time.
///
/// It is dropped when the last fan-out has let go of the batch.
pub(super) struct Flight {
    tally: Option<Tally>,
    /// When it was accepted.
    taken_at: Instant,
    _permit: Permit,
}

/// Counts the subscribers that a publication was kept from, and tells it when it has been handed
/// out: when the last fan-out has let go of its batch, whatever became of that fan-out.
struct Tally {
    skipped: AtomicUsize,
    told: Option<oneshot::Sender<usize>>,
}

impl Drop for Tally {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            // A publisher that has stopped waiting does not want to know.
            let _ = told.send(*self.skipped.get_mut());
        }
    }
}

impl Accepted {
    /// Accepts a publication. If not every subscriber can be sent it, the second value will be how
    /// many were not.
    pub(super) fn new(
        publication: Publication,
        taken_at: Instant,
        permit: Permit,
    ) -> (Self, Option<oneshot::Receiver<usize>>) {
        let (tally, skipped) = match publication.payload {
            Payload::Object(_) => (None, None),
            Payload::Bytes(_) => {
                let (told, skipped) = oneshot::channel();
                (Some(Tally { skipped: AtomicUsize::new(0), told: Some(told) }), Some(skipped))
            }
        };
        let flight = Flight { tally, taken_at, _permit: permit };
        (Self { publication, flight }, skipped)
    }

    /// Whether both belong to the same scope.
    pub(super) fn shares_scope_with(&self, publication: &Publication) -> bool {
        let Publication { app, scope, .. } = &self.publication;
        *app == publication.app && *scope == publication.scope
    }
}

/// A publication that has its place in the order, on its way to the fan-outs.
///
/// Its frames are kept here and not in the history: they are counted among what waits for clients for
/// as long as anything keeps them.
pub(super) struct Placed {
    position: StreamPosition,
    publication: Publication,
    flight: Flight,
    /// Per format and level; a frame is `None` where it cannot be spelled.
    frames: [[Spellings<Option<Frame>>; 2]; Format::COUNT],
    /// Per format, what all frames to channels share if it was published to `#general`.
    bodies: OnceLock<Box<Bodies>>,
    backlog: Backlog,
}

type Bodies = [OnceLock<Bytes>; Format::COUNT];

impl Placed {
    pub(super) fn new(
        position: StreamPosition,
        publication: Publication,
        flight: Flight,
        backlog: Backlog,
    ) -> Self {
        let (frames, bodies) = (Default::default(), OnceLock::new());
        Self { position, publication, flight, frames, bodies, backlog }
    }

    pub(super) fn position(&self) -> StreamPosition {
        self.position
    }

    pub(super) fn taken_at(&self) -> Instant {
        self.flight.taken_at
    }

    pub(super) fn destination(&self) -> &Destination {
        &self.publication.destination
    }

    /// Whether clients of this format can be sent it at all.
    pub(super) fn suits(&self, format: Format) -> bool {
        match self.publication.payload {
            Payload::Object(_) => true,
            Payload::Bytes(_) => format.encode_bytes.is_some(),
        }
    }

    /// Whether its payload is bytes.
    pub(super) fn is_bytes(&self) -> bool {
        matches!(self.publication.payload, Payload::Bytes(_))
    }

    /// Notes that so many subscribers were not sent it.
    pub(super) fn skip(&self, subscribers: usize) {
        if let Some(tally) = &self.flight.tally {
            tally.skipped.fetch_add(subscribers, Relaxed);
        }
    }

    /// The frame for the members who joined `topic`, shared by all of them on all threads; `None`
    /// for formats that cannot carry it.
    ///
    /// Only a publication to `#general` at channel level is spelled per call: there every channel
    /// has a topic of its own, and the caller shares the frame within one channel and thread. If the
    /// payload is large, all these frames share it.
    pub(super) fn frame(&self, format: Format, level: Level, topic: &ByteString) -> Option<Frame> {
        if !self.suits(format) {
            return None;
        }
        if let (Level::Channel, Destination::General) = (level, &self.publication.destination) {
            return self.split(format, topic).or_else(|| self.encode(format, level, topic));
        }
        let spellings = &self.frames[format.index()][level as usize];
        spellings.of(topic, || self.encode(format, level, topic))
    }

    /// The frame that follows the one of bytes: it tells their position. `None` where there is none to
    /// tell.
    pub(super) fn position_frame(&self, format: Format, topic: &str) -> Option<Frame> {
        let Payload::Bytes(_) = self.publication.payload else { return None };
        let frame = format.encode_position?(topic, self.position);
        Some(self.backlog.count(frame))
    }

    fn encode(&self, format: Format, level: Level, topic: &str) -> Option<Frame> {
        let frame = self.spoken().encode(format, level, topic);
        frame.map(|frame| self.backlog.count(frame))
    }

    /// The frame for the members who joined a channel, in two parts; `None` if it is small, or cannot
    /// be spelled like that.
    fn split(&self, format: Format, topic: &str) -> Option<Frame> {
        let tail_bytes = usize::from(format.tail_bytes?);
        let spoken = self.spoken();
        let (payload, tail_bytes, none) = match spoken.payload {
            RetainedPayload::Object(object) => {
                (object.as_bytes(), tail_bytes, RetainedPayload::Object(""))
            }
            RetainedPayload::Bytes(bytes) => (bytes, 0, RetainedPayload::Bytes(&[])),
        };
        if payload.len() < SPLIT_BYTES_MIN {
            return None;
        }
        let empty = Spoken { payload: none, ..spoken }.encode(format, Level::Channel, topic)?;
        let (kind, mut head) = match empty {
            Frame::Text(text) => (Kind::Text, text.into_bytes()),
            Frame::Binary(bytes) => (Kind::Binary, bytes),
            Frame::Split(_) => return None,
        };
        let tail = head.split_off(head.len().checked_sub(tail_bytes)?);
        let head = self.backlog.counted(head);
        let bodies = self.bodies.get_or_init(Box::default);
        let spell = || self.backlog.counted([payload, &tail].concat().into());
        let body = bodies[format.index()].get_or_init(spell).clone();
        Some(Frame::Split(Arc::new(Split { kind, head, body })))
    }

    fn spoken(&self) -> Spoken<'_> {
        let Publication { destination, event, payload, .. } = &self.publication;
        let channel = match destination {
            Destination::General => None,
            Destination::Channel(channel) => Some(channel.as_str()),
        };
        let payload = match payload {
            Payload::Object(object) => RetainedPayload::Object(object.as_str()),
            Payload::Bytes(bytes) => RetainedPayload::Bytes(bytes),
        };
        Spoken { channel, event: event.as_str(), payload, position: self.position }
    }
}

/// A publication as it is spelled, whether it is on its way or retained.
#[derive(Clone, Copy)]
pub(super) struct Spoken<'a> {
    /// The channel that it was published to; `None` if it was `#general`.
    pub(super) channel: Option<&'a str>,
    pub(super) event: &'a str,
    pub(super) payload: RetainedPayload<'a>,
    pub(super) position: StreamPosition,
}

impl Spoken<'_> {
    /// The frame for those who joined `topic`, which is of this level; `None` for formats that cannot
    /// carry it.
    pub(super) fn encode(&self, format: Format, level: Level, topic: &str) -> Option<Frame> {
        let Self { channel, event, payload, position } = *self;
        let is_bare = matches!((level, channel), (Level::Scope, None) | (Level::Channel, Some(_)));
        let prefixed;
        let event = if is_bare {
            event
        } else {
            prefixed = format!("{}:{event}", channel.unwrap_or(Destination::GENERAL));
            &prefixed
        };
        match payload {
            RetainedPayload::Object(payload) => {
                Some((format.encode)(&Delivery { topic, event, payload, position }))
            }
            RetainedPayload::Bytes(payload) => {
                format.encode_bytes?(&Delivery { topic, event, payload, position })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicUsize, atomic::Ordering::SeqCst},
        thread,
    };

    use super::super::{
        position::Epochs,
        publication::JsonObject,
        testing::{FORMAT, key, permit, publication},
    };
    use super::*;

    fn spelled(delivery: &Delivery<'_, str>) -> Frame {
        let Delivery { topic, event, payload, .. } = delivery;
        Frame::Text(format!("{topic} {event} {payload}").into())
    }

    fn spelled_bytes(delivery: &Delivery<'_, [u8]>) -> Option<Frame> {
        let Delivery { topic, event, payload, .. } = delivery;
        let names = format!("{topic} {event} ");
        (*topic != "huge").then(|| Frame::Binary([names.as_bytes(), payload].concat().into()))
    }

    fn place(publication: Publication) -> (Placed, Option<oneshot::Receiver<usize>>) {
        place_in(publication, Backlog::new(1 << 20))
    }

    fn place_in(
        publication: Publication,
        backlog: Backlog,
    ) -> (Placed, Option<oneshot::Receiver<usize>>) {
        let (accepted, skipped) = Accepted::new(publication, Instant::now(), permit());
        let Accepted { publication, flight } = accepted;
        let epoch = Epochs::new().give(&key(1, "public"));
        let position = StreamPosition { epoch, offset: 1 };
        (Placed::new(position, publication, flight, backlog), skipped)
    }

    fn placed(destination: &str) -> Placed {
        place(publication(&key(1, "public"), destination, "msg")).0
    }

    fn placed_bytes(destination: &str) -> (Placed, oneshot::Receiver<usize>) {
        let payload = Payload::Bytes(b"\x00\xff".as_slice().into());
        let publication =
            Publication { payload, ..publication(&key(1, "public"), destination, "msg") };
        let (placed, skipped) = place(publication);
        (placed, skipped.expect("bytes are counted"))
    }

    #[test]
    fn a_name_is_bare_where_it_was_published_and_else_prefixed_by_where_it_came_from() {
        for (level, destination, expected) in [
            (Level::Scope, "room", "t room:msg {}"),
            (Level::Channel, "room", "t msg {}"),
            (Level::Scope, "#general", "t msg {}"),
            (Level::Channel, "#general", "t #general:msg {}"),
        ] {
            let format = Format { slot: 0, encode: spelled, encode_bytes: None, ..FORMAT };
            let frame = placed(destination).frame(format, level, &"t".into());
            assert_eq!(frame, Some(Frame::Text(expected.into())), "{level:?} {destination}");
        }
    }

    #[test]
    fn bytes_go_to_those_who_can_be_sent_any_also_where_a_slot_is_shared() {
        let text = Format { slot: 0, encode: spelled, encode_bytes: None, ..FORMAT };
        let both = Format { slot: 0, encode: spelled, encode_bytes: Some(spelled_bytes), ..FORMAT };
        for (level, destination, expected) in [
            (Level::Scope, "room", b"t room:msg \x00\xff".as_slice()),
            (Level::Channel, "room", b"t msg \x00\xff"),
            (Level::Scope, "#general", b"t msg \x00\xff"),
            (Level::Channel, "#general", b"t #general:msg \x00\xff"),
        ] {
            let (placed, _) = placed_bytes(destination);
            assert_eq!(placed.frame(text, level, &"t".into()), None, "{level:?} {destination}");
            let expected = Frame::Binary(expected.into());
            assert_eq!(
                placed.frame(both, level, &"t".into()),
                Some(expected),
                "{level:?} {destination}"
            );
        }
        assert_eq!(placed_bytes("room").0.frame(both, Level::Scope, &"huge".into()), None);
    }

    #[test]
    fn a_large_payload_of_general_is_kept_once_for_all_channels() {
        let format = Format {
            slot: 0,
            encode: |delivery| {
                let Delivery { topic, event, payload, .. } = delivery;
                Frame::Text(format!("{topic} {event} {payload}.").into())
            },
            tail_bytes: Some(1),
            encode_bytes: Some(spelled_bytes),
            ..FORMAT
        };
        for size in [SPLIT_BYTES_MIN - 1, SPLIT_BYTES_MIN] {
            let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(size - 8));
            let object = Payload::Object(JsonObject::parse(&text).expect("an object"));
            let bytes = Payload::Bytes(vec![0xff; size].into());
            for (payload, is_text) in [(object, true), (bytes, false)] {
                let publication =
                    Publication { payload, ..publication(&key(1, "public"), "#general", "msg") };
                let (placed, _) = place(publication);
                let frames = ["a", "b"].map(|topic| {
                    let topic = topic.into();
                    let frame = placed.frame(format, Level::Channel, &topic).expect("a frame");
                    let whole = placed.encode(format, Level::Channel, &topic);
                    assert_eq!(frame.size_bytes(), whole.as_ref().map_or(0, Frame::size_bytes));
                    assert_eq!(Some(frame.clone().into_whole()), whole, "{size} {is_text}");
                    frame
                });
                let bodies: Vec<_> = frames
                    .iter()
                    .filter_map(|frame| match frame {
                        Frame::Split(split) => Some(split.body.as_ptr()),
                        _ => None,
                    })
                    .collect();
                match bodies[..] {
                    [] => assert!(size < SPLIT_BYTES_MIN),
                    [one, other] => assert!(size >= SPLIT_BYTES_MIN && one == other),
                    _ => panic!("only one of the frames is split"),
                }
            }
        }
        let huge = "huge".into();
        let (placed, _) = placed_bytes("#general");
        assert_eq!(placed.frame(format, Level::Channel, &huge), None);
    }

    #[test]
    fn what_channels_share_counts_once_among_all_that_waits() {
        let (text, body) = (format!(r#"{{"a":"{}"}}"#, "x".repeat(10_000)), 10_000);
        let payload = Payload::Object(JsonObject::parse(&text).expect("an object"));
        let format = Format { tail_bytes: Some(0), encode: spelled, ..FORMAT };
        for (bytes_max, is_exceeded) in [(body, true), (body + 1_000, false)] {
            let publication = Publication {
                payload: payload.clone(),
                ..publication(&key(1, "public"), "#general", "msg")
            };
            let (placed, _) = place_in(publication, Backlog::new(bytes_max));
            let topics = (0..20).map(|nth| ByteString::from(format!("topic-{nth}")));
            let frames: Vec<_> =
                topics.map(|topic| placed.frame(format, Level::Channel, &topic)).collect();
            assert_eq!(placed.backlog.is_exceeded(), is_exceeded, "{bytes_max}");
            drop(frames);
        }
    }

    #[test]
    fn who_was_skipped_is_told_when_the_last_has_let_go() {
        let (placed, mut skipped) = placed_bytes("room");
        let placed = Arc::new(placed);
        let other = placed.clone();
        for (placed, subscribers) in [(&placed, 2), (&other, 3), (&placed, 0)] {
            placed.skip(subscribers);
        }
        drop(placed);
        assert!(skipped.try_recv().is_err(), "one still holds it");
        drop(other);
        assert_eq!(skipped.try_recv(), Ok(5));
        let (_, counted) = place(publication(&key(1, "public"), "room", "msg"));
        assert!(counted.is_none(), "objects are sent to everybody");
    }

    #[test]
    fn a_topic_under_another_name_is_spelled_by_that_name() {
        let format =
            Format { slot: 0, encode: spelled, encode_bytes: Some(spelled_bytes), ..FORMAT };
        for is_bytes in [false, true] {
            let (placed, payload) = match is_bytes {
                true => (placed_bytes("room").0, "\0\u{ff}"),
                false => (placed("room"), "{}"),
            };
            for topic in ["old", "new", "old"] {
                let frame = placed.frame(format, Level::Scope, &topic.into());
                let expected = format!("{topic} room:msg {payload}");
                let expected = match is_bytes {
                    // One byte for each of these characters.
                    true => Frame::Binary(expected.chars().map(|c| c as u8).collect()),
                    false => Frame::Text(expected.into()),
                };
                assert_eq!(frame, Some(expected));
            }
        }
    }

    static CALLS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

    fn counted<const SLOT: usize>(delivery: &Delivery<'_, str>) -> Frame {
        CALLS[SLOT].fetch_add(1, SeqCst);
        spelled(delivery)
    }

    fn counted_bytes(delivery: &Delivery<'_, [u8]>) -> Option<Frame> {
        CALLS[1].fetch_add(1, SeqCst);
        spelled_bytes(delivery)
    }

    #[test]
    fn e117_a_thousand_subscribers_share_one_encoding_per_version() {
        let formats = [
            Format { slot: 0, encode: counted::<0>, encode_bytes: None, ..FORMAT },
            Format { slot: 1, encode: counted::<1>, encode_bytes: Some(counted_bytes), ..FORMAT },
        ];
        let mut expected = [0; 2];
        for (level, destination, is_bytes) in [
            (Level::Scope, "room", false),
            (Level::Channel, "room", false),
            (Level::Scope, "#general", false),
            (Level::Scope, "room", true),
            (Level::Channel, "room", true),
        ] {
            let placed = Arc::new(match is_bytes {
                true => placed_bytes(destination).0,
                false => placed(destination),
            });
            expected[0] += usize::from(!is_bytes);
            expected[1] += 1;
            thread::scope(|threads| {
                for _ in 0..4 {
                    threads.spawn(|| {
                        for _ in 0..250 {
                            for format in formats {
                                placed.frame(format, level, &"t".into());
                            }
                        }
                    });
                }
            });
            let calls = [CALLS[0].load(SeqCst), CALLS[1].load(SeqCst)];
            assert_eq!(calls, expected, "{level:?} {destination} {is_bytes}");
        }
    }
}
