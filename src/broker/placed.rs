//! A publication on its way from its publisher to the fan-outs: its temporary state, and its frames, which
//! the subscribers share.

mod flight;
mod spoken;

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    time::Instant,
};

use bytes::Bytes;
use bytestring::ByteString;

use super::{
    backlog::Backlog,
    position::StreamPosition,
    publication::{Destination, Payload, Publication},
    retained::RetainedPayload,
    spellings::Spellings,
    subscriber::{Format, Frame, FrameKind, ScopeKey, SessionId, Split},
};
pub(super) use flight::{Accepted, Flight, ReadPublication};
use spoken::Carried;
pub(super) use spoken::SpokenPublication;

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
    pub(super) key: ScopeKey,
    pub(super) publications: Vec<Placed>,
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

#[cfg(test)]
mod tests;
