//! A publication on its way from its publisher to the fan-outs: its temporary state, and its frames, which
//! the subscribers share.

use std::{
    borrow::Cow,
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
    cluster::RemoteFlight,
    feed::Deliveries,
    permits::Permit,
    position::StreamPosition,
    publication::{Destination, Payload, Publication, Sender},
    retained::RetainedPayload,
    spellings::Spellings,
    subscriber::{Delivery, Format, Frame, FrameKind, ScopeKey, SessionId, Split},
};

/// Payloads of `#general` below this size are copied into the frame of each channel: the copy costs
/// less than a reference.
const SPLIT_BYTES_MIN: usize = 1_024;

/// The kind of topic that a subscriber joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// The scope as a whole: `S:app`.
    Scope,
    /// One channel of it: `S:app:C`.
    Channel,
}

/// Publications of one scope that were published together, and reach the fan-outs together: they share one
/// look-up of the stream, and one message to each fan-out.
pub(super) struct Batch {
    /// The number of batches that had been published up to this one, itself included.
    pub(super) number: u64,
    pub(super) key: ScopeKey,
    pub(super) publications: Vec<Placed>,
}

/// A publication that was accepted and has no position yet.
pub(super) struct Accepted {
    pub(super) publication: Publication,
    pub(super) flight: Flight,
}

/// The state that a publication has while it is on its way, and that its retained form does not
/// have: its permit, its counts of skipped subscribers and of deliveries, and the instant at which it was
/// accepted.
///
/// It is dropped when the last fan-out has dropped the batch.
pub(super) struct Flight {
    /// The count of skipped subscribers, if there may be any.
    tally: Option<DeliveryTally>,
    /// The count of deliveries, if a console watches the app.
    watched: Option<Box<Deliveries>>,
    /// The time at which the publication was accepted.
    taken_at: Instant,
    _hold: Hold,
}

/// The token by which a publication counts as under way, until it is dropped: a permit, or an entry in the
/// count of publications from other nodes. Both counts are bounded.
pub(super) enum Hold {
    /// The permit of a publisher of this node.
    Permit { _held: Permit },
    /// The entry of a publication of another node.
    RemoteFlights { _held: RemoteFlight },
}

impl From<Permit> for Hold {
    fn from(permit: Permit) -> Self {
        Self::Permit { _held: permit }
    }
}

impl From<RemoteFlight> for Hold {
    fn from(place: RemoteFlight) -> Self {
        Self::RemoteFlights { _held: place }
    }
}

/// A publication to which a log has given its position.
pub(super) struct Fed {
    pub(super) offset: u64,
    /// The time at which the publication was accepted, in Unix milliseconds.
    pub(super) at_ms: u64,
    pub(super) accepted: Accepted,
}

/// Counts the subscribers that could not be sent a publication. The count is sent when the last fan-out
/// has dropped its batch, even if a fan-out was lost.
struct DeliveryTally {
    skipped: AtomicUsize,
    /// The sender of the count, until it is sent.
    told: Option<oneshot::Sender<usize>>,
}

impl Drop for DeliveryTally {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            // The publisher may have stopped waiting.
            let _ = told.send(*self.skipped.get_mut());
        }
    }
}

impl Accepted {
    /// Accepts a publication. If it has bytes, which not every format can carry, the second value receives the
    /// number of subscribers to which it was not sent.
    pub(super) fn new(
        publication: Publication,
        taken_at: Instant,
        hold: impl Into<Hold>,
    ) -> (Self, Option<oneshot::Receiver<usize>>) {
        let (tally, skipped) = match publication.payload {
            Payload::Json(_) => (None, None),
            Payload::Bytes(_) => {
                let (told, skipped) = oneshot::channel();
                (
                    Some(DeliveryTally { skipped: AtomicUsize::new(0), told: Some(told) }),
                    Some(skipped),
                )
            }
        };
        let flight = Flight { tally, watched: None, taken_at, _hold: hold.into() };
        (Self { publication, flight }, skipped)
    }

    /// Adds a count of its deliveries.
    pub(super) fn watched(mut self, watched: Option<Box<Deliveries>>) -> Self {
        self.flight.watched = watched;
        self
    }

    /// Returns whether another publication belongs to the same scope of the same app.
    pub(super) fn shares_scope_with(&self, publication: &Publication) -> bool {
        let Publication { app, scope, .. } = &self.publication;
        *app == publication.app && *scope == publication.scope
    }
}

/// A publication that has its position in the order, on its way to the fan-outs.
///
/// Its frames are kept here and not in the history, because they count in the backlog until the last reference
/// to them is dropped.
pub(super) struct Placed {
    position: StreamPosition,
    publication: Publication,
    flight: Flight,
    /// The frames by format and level; a frame is `None` where the format cannot encode it.
    frames: [[Spellings<Option<Frame>>; 2]; Format::COUNT],
    /// By format, the body that all frames to channels share, for a publication to `#general`.
    bodies: OnceLock<Box<FrameBodies>>,
    backlog: Backlog,
}

impl Drop for Placed {
    /// Reports the deliveries to the feed, once the last fan-out has dropped the publication.
    fn drop(&mut self) {
        if let Some(watched) = &mut self.flight.watched {
            watched.told(&self.publication, self.position);
        }
    }
}

type FrameBodies = [OnceLock<Bytes>; Format::COUNT];

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

    /// The session to which the publication is not sent.
    pub(super) fn except(&self) -> Option<SessionId> {
        self.publication.except
    }

    pub(super) fn destination(&self) -> &Destination {
        &self.publication.destination
    }

    /// Returns whether clients of this format can be sent the publication at all.
    pub(super) fn suits(&self, format: Format) -> bool {
        match self.publication.payload {
            Payload::Json(_) => true,
            Payload::Bytes(_) => format.encode_bytes.is_some(),
        }
    }

    /// Returns whether the payload is bytes.
    pub(super) fn is_bytes(&self) -> bool {
        matches!(self.publication.payload, Payload::Bytes(_))
    }

    /// Adds to the number of subscribers to which it was delivered.
    pub(super) fn note_delivered(&self, subscribers: u64) {
        if let Some(watched) = &self.flight.watched {
            watched.add(subscribers);
        }
    }

    /// The number of bytes of the payload.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.publication.payload.size_bytes() as u64
    }

    /// Adds to the number of subscribers that were skipped.
    pub(super) fn skip(&self, subscribers: usize) {
        if let Some(tally) = &self.flight.tally {
            tally.skipped.fetch_add(subscribers, Relaxed);
        }
    }

    /// The frame for the members that joined `topic`, shared by all of them on all threads; `None` for
    /// formats that cannot carry it.
    ///
    /// A frame is encoded at the first call and kept, except for a publication to `#general` at channel level.
    /// That is encoded at each call, because every channel has its own topic; the caller shares the frame within
    /// one channel and thread. If the payload is large, all these frames share it.
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

    /// The frame that follows this publication's frame and has its position; `None` for formats without such a
    /// frame. It is encoded at each call.
    pub(super) fn position_frame(&self, format: Format, topic: &str) -> Option<Frame> {
        if !self.is_bytes() && !format.tells_positions_of_json() {
            return None;
        }
        let frame = format.encode_position?(topic, self.position);
        Some(self.backlog.count(frame))
    }

    fn encode(&self, format: Format, level: Level, topic: &str) -> Option<Frame> {
        let frame = self.spoken().encode(format, level, topic);
        frame.map(|frame| self.backlog.count(frame))
    }

    /// The frame for the members of a channel, in two parts; `None` if it is small, or if the format cannot
    /// split it.
    ///
    /// The frame is encoded without a payload. Its last `tail_bytes` follow the payload, and all other bytes
    /// are the head. The body, which all channels share, is the payload together with these last bytes.
    fn split(&self, format: Format, topic: &str) -> Option<Frame> {
        let tail_bytes = usize::from(format.tail_bytes?);
        let spoken = self.spoken();
        let carried = spoken.carried(format);
        let (payload, tail_bytes, none) = match &carried {
            Carried::Json(json) => (json.as_bytes(), tail_bytes, Carried::Json(Cow::Borrowed(""))),
            Carried::Bytes(bytes) => (*bytes, 0, Carried::Bytes(&[])),
        };
        if payload.len() < SPLIT_BYTES_MIN {
            return None;
        }
        let empty = spoken.encode_carried(&none, format, Level::Channel, topic)?;
        let (kind, mut head) = match empty {
            Frame::Text(text) => (FrameKind::Text, text.into_bytes()),
            Frame::Binary(bytes) => (FrameKind::Binary, bytes),
            Frame::Split(_) => return None,
        };
        let tail = head.split_off(head.len().checked_sub(tail_bytes)?);
        let head = self.backlog.counted(head);
        let bodies = self.bodies.get_or_init(Box::default);
        let spell = || self.backlog.counted([payload, &tail].concat().into());
        let body = bodies[format.index()].get_or_init(spell).clone();
        Some(Frame::Split(Arc::new(Split { kind, head, body })))
    }

    fn spoken(&self) -> SpokenPublication<'_> {
        let Publication { destination, event, payload, origin, .. } = &self.publication;
        let channel = match destination {
            Destination::General => None,
            Destination::Channel(channel) => Some(channel.as_str()),
        };
        let payload = match payload {
            Payload::Json(json) => RetainedPayload::Json(json.as_str()),
            Payload::Bytes(bytes) => RetainedPayload::Bytes(bytes),
        };
        let (event, sender, position) = (event.as_str(), origin.sender(), self.position);
        SpokenPublication { channel, event, payload, position, sender }
    }
}

/// A publication to encode, whether it is on its way or retained.
#[derive(Clone, Copy)]
pub(super) struct SpokenPublication<'a> {
    /// The channel to which it was published; `None` for `#general`.
    pub(super) channel: Option<&'a str>,
    pub(super) event: &'a str,
    pub(super) payload: RetainedPayload<'a>,
    pub(super) position: StreamPosition,
    pub(super) sender: Sender<'a>,
}

/// A payload as a format carries it: JSON may have been converted, bytes never are.
enum Carried<'a> {
    Json(Cow<'a, str>),
    Bytes(&'a [u8]),
}

impl<'a> SpokenPublication<'a> {
    /// The frame for the members that joined `topic`, which is of this level; `None` for formats that cannot
    /// carry it.
    pub(super) fn encode(&self, format: Format, level: Level, topic: &str) -> Option<Frame> {
        self.encode_carried(&self.carried(format), format, level, topic)
    }

    fn carried(&self, format: Format) -> Carried<'a> {
        match self.payload {
            RetainedPayload::Json(json) => {
                Carried::Json((format.carry)(json, self.event, self.sender))
            }
            RetainedPayload::Bytes(bytes) => Carried::Bytes(bytes),
        }
    }

    fn encode_carried(
        &self,
        payload: &Carried<'_>,
        format: Format,
        level: Level,
        topic: &str,
    ) -> Option<Frame> {
        let Self { channel, event, position, sender, .. } = *self;
        if !(format.has_event)(event) {
            return None;
        }
        let is_bare = matches!((level, channel), (Level::Scope, None) | (Level::Channel, Some(_)));
        let prefixed;
        let event = if is_bare {
            event
        } else {
            prefixed = format!("{}:{event}", channel.unwrap_or(Destination::GENERAL));
            &prefixed
        };
        match payload {
            Carried::Json(payload) => {
                (format.encode)(&Delivery { topic, event, payload, position, sender })
            }
            Carried::Bytes(payload) => format.encode_bytes?(&Delivery {
                topic,
                event,
                payload: *payload,
                position,
                sender,
            }),
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
        subscriber::Encoders,
        testing::{ENCODERS, key, permit, publication},
    };
    use super::*;

    fn spelled(delivery: &Delivery<'_, str>) -> Option<Frame> {
        let Delivery { topic, event, payload, .. } = delivery;
        Some(Frame::Text(format!("{topic} {event} {payload}").into()))
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
        (placed, skipped.expect("a publication of bytes counts the skipped"))
    }

    #[test]
    fn a_name_is_bare_where_it_was_published_and_else_prefixed_by_where_it_came_from() {
        for (level, destination, expected) in [
            (Level::Scope, "room", "t room:msg {}"),
            (Level::Channel, "room", "t msg {}"),
            (Level::Scope, "#general", "t msg {}"),
            (Level::Channel, "#general", "t #general:msg {}"),
        ] {
            let format = Format::of(
                const { &Encoders { slot: 0, encode: spelled, encode_bytes: None, ..ENCODERS } },
            );
            let frame = placed(destination).frame(format, level, &"t".into());
            assert_eq!(frame, Some(Frame::Text(expected.into())), "{level:?} {destination}");
        }
    }

    #[test]
    fn bytes_go_to_clients_that_can_receive_them_even_where_a_slot_is_shared() {
        let text = Format::of(
            const { &Encoders { slot: 0, encode: spelled, encode_bytes: None, ..ENCODERS } },
        );
        let both = Format::of(
            const {
                &Encoders {
                    slot: 0,
                    encode: spelled,
                    encode_bytes: Some(spelled_bytes),
                    ..ENCODERS
                }
            },
        );
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
        let format = Format::of(
            const {
                &Encoders {
                    slot: 0,
                    encode: |delivery| {
                        let Delivery { topic, event, payload, .. } = delivery;
                        Some(Frame::Text(format!("{topic} {event} {payload}.").into()))
                    },
                    tail_bytes: Some(1),
                    encode_bytes: Some(spelled_bytes),
                    ..ENCODERS
                }
            },
        );
        for size in [SPLIT_BYTES_MIN - 1, SPLIT_BYTES_MIN] {
            let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(size - 8));
            let object = Payload::from(JsonObject::parse(&text).expect("an object"));
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
                    _ => panic!("only one of two frames is split"),
                }
            }
        }
        let huge = "huge".into();
        let (placed, _) = placed_bytes("#general");
        assert_eq!(placed.frame(format, Level::Channel, &huge), None);
    }

    #[test]
    fn a_payload_that_channels_share_counts_once_in_the_backlog() {
        let (text, body) = (format!(r#"{{"a":"{}"}}"#, "x".repeat(10_000)), 10_000);
        let payload = Payload::from(JsonObject::parse(&text).expect("an object"));
        let format =
            Format::of(const { &Encoders { tail_bytes: Some(0), encode: spelled, ..ENCODERS } });
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
    fn skipped_subscribers_are_counted_when_the_last_fan_out_has_let_go() {
        let (placed, mut skipped) = placed_bytes("room");
        let placed = Arc::new(placed);
        let other = placed.clone();
        for (placed, subscribers) in [(&placed, 2), (&other, 3), (&placed, 0)] {
            placed.skip(subscribers);
        }
        drop(placed);
        assert!(skipped.try_recv().is_err(), "one fan-out still holds it");
        drop(other);
        assert_eq!(skipped.try_recv(), Ok(5));
        let (_, counted) = place(publication(&key(1, "public"), "room", "msg"));
        assert!(counted.is_none(), "every format can carry an object");
    }

    #[test]
    fn a_topic_under_another_name_is_spelled_by_that_name() {
        let format = Format::of(
            const {
                &Encoders {
                    slot: 0,
                    encode: spelled,
                    encode_bytes: Some(spelled_bytes),
                    ..ENCODERS
                }
            },
        );
        for is_bytes in [false, true] {
            let (placed, payload) = match is_bytes {
                true => (placed_bytes("room").0, "\0\u{ff}"),
                false => (placed("room"), "{}"),
            };
            for topic in ["old", "new", "old"] {
                let frame = placed.frame(format, Level::Scope, &topic.into());
                let expected = format!("{topic} room:msg {payload}");
                let expected = match is_bytes {
                    // Each of these characters takes one byte.
                    true => Frame::Binary(expected.chars().map(|c| c as u8).collect()),
                    false => Frame::Text(expected.into()),
                };
                assert_eq!(frame, Some(expected));
            }
        }
    }

    static CALLS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

    fn counted<const SLOT: usize>(delivery: &Delivery<'_, str>) -> Option<Frame> {
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
            Format::of(
                const { &Encoders { slot: 0, encode: counted::<0>, encode_bytes: None, ..ENCODERS } },
            ),
            Format::of(
                const {
                    &Encoders {
                        slot: 1,
                        encode: counted::<1>,
                        encode_bytes: Some(counted_bytes),
                        ..ENCODERS
                    }
                },
            ),
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
