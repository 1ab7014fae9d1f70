//! Replays: the frames of replayed publications, encoded once for all joins at about the same time.

use std::{
    collections::HashMap,
    mem,
    time::{Duration, Instant},
};

use bytestring::ByteString;

use super::{
    backlog::Backlog,
    placed::{Level, SpokenPublication},
    position::StreamPosition,
    subscriber::{Format, Frame},
};

/// The bytes of a generation of frames, see [`Replays`], from which on the next generation begins.
const GENERATION_BYTES_MAX: usize = 2 << 20;

/// The age of a generation at which the next one begins. A frame is kept for at least this time after its
/// last use, unless a generation ends earlier because it is large.
pub(super) const GENERATION_AGE: Duration = Duration::from_secs(1);

/// The frames that a thread has replayed lately.
///
/// Thousands of clients that lose their connections together also reconnect together, and are sent the same
/// frames. A frame that is used moves from the older of two generations to the newer one; the older one is
/// dropped when the newer one is old or large.
pub(super) struct Replays {
    newer: HashMap<ReplayKey, Option<Frame>>,
    older: HashMap<ReplayKey, Option<Frame>>,
    newer_bytes: usize,
    began: Instant,
    backlog: Backlog,
}

/// The topic as the client spells it, the slot of its format, whether it can be sent bytes, and the
/// position of the publication.
type ReplayKey = (ByteString, usize, bool, StreamPosition);

impl Replays {
    /// Begins without frames. Frames count as part of `backlog`.
    pub(super) fn new(backlog: Backlog, now: Instant) -> Self {
        let (newer, older) = (HashMap::new(), HashMap::new());
        Self { newer, older, newer_bytes: 0, began: now, backlog }
    }

    /// The frame of a publication for subscribers that joined `topic`; `None` if their format cannot carry it.
    pub(super) fn frame(
        &mut self,
        spoken: &SpokenPublication<'_>,
        format: Format,
        level: Level,
        topic: &ByteString,
        now: Instant,
    ) -> Option<Frame> {
        self.turn(now);
        let can_be_bytes = format.encode_bytes.is_some();
        let key = (topic.clone(), format.index(), can_be_bytes, spoken.position);
        if let Some(frame) = self.newer.get(&key) {
            return frame.clone();
        }
        let frame = self.older.remove(&key).unwrap_or_else(|| {
            let frame = spoken.encode(format, level, topic);
            frame.map(|frame| self.backlog.count(frame))
        });
        // An entry without a frame takes memory, too.
        self.newer_bytes += size_of::<(ReplayKey, Option<Frame>)>();
        self.newer_bytes += frame.as_ref().map_or(0, Frame::size_bytes);
        self.newer.insert(key, frame.clone());
        frame
    }

    /// Begins a new generation if the present one is old or large.
    pub(super) fn turn(&mut self, now: Instant) {
        let is_old = now.saturating_duration_since(self.began) >= GENERATION_AGE;
        if is_old || self.newer_bytes >= GENERATION_BYTES_MAX {
            self.older = mem::take(&mut self.newer);
            (self.newer_bytes, self.began) = (0, now);
        }
    }

    /// Returns whether no frame is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.newer.is_empty() && self.older.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{publication::Sender, retained::RetainedPayload, testing::FORMAT},
        *,
    };

    #[test]
    fn frames_are_kept_while_they_are_used_and_no_more_than_two_generations_of_them() {
        const FRAME_BYTES: usize = GENERATION_BYTES_MAX / 7;
        let (backlog, now) = (Backlog::new(FRAME_BYTES - 1), Instant::now());
        let mut replays = Replays::new(backlog.clone(), now);
        let spoken = SpokenPublication {
            channel: Some("room"),
            event: "msg",
            payload: RetainedPayload::Json("{}"),
            position: StreamPosition::default(),
            sender: Sender::Trigger,
        };
        let mut replay = |nth: usize, after: Duration| {
            let topic = nth.to_string().repeat(FRAME_BYTES).into();
            let frame = replays.frame(&spoken, FORMAT, Level::Channel, &topic, now + after);
            assert!(frame.is_some_and(|frame| frame.size_bytes() > FRAME_BYTES));
            (replays.newer.len(), replays.older.len())
        };
        for nth in 0..7 {
            assert_eq!(replay(nth, Duration::ZERO), (nth + 1, 0));
        }
        assert_eq!(replay(7, Duration::ZERO), (1, 7), "a generation has its size");
        assert_eq!(replay(0, Duration::ZERO), (2, 6), "a frame that is used moves");
        assert_eq!(replay(0, GENERATION_AGE), (1, 1), "a generation has its age");
        assert!(backlog.is_exceeded());
        replays.turn(now + 2 * GENERATION_AGE);
        replays.turn(now + 3 * GENERATION_AGE);
        assert!(replays.is_empty() && !backlog.is_exceeded());
    }
}
