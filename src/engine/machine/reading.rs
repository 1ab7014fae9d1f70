//! The reading of a log: the position up to which a node has read it, and how the node finds and fills gaps.
//!
//! Redis pushes the messages of a log. Their offsets are dense, so the node notices a missing message when
//! the next one arrives, or when a probe reports a later position. It then holds back the later messages,
//! and reads the log from its own position.
//!
//! A server may return to an earlier state of its log under the same identity, and give the same offsets
//! again: a restored copy of a virtual machine does. Every message therefore names the batch before it, the
//! log names its newest batch, and a node remembers the newest batch that Redis acknowledged to it. If any
//! of these contradicts the messages that the node has read, the node ends the epoch.

use std::collections::{BTreeMap, VecDeque};

use crate::engine::{
    LogEpoch, LogPosition,
    request::{LogPlace, Range},
    wire::{BatchId, LogMessage},
};

/// The most messages, and the most of their bytes, that are held back while the log is read. Further
/// messages are read from the log afterwards.
const HELD_MAX: usize = 1_024;
const HELD_BYTES_MAX: u64 = 8 << 20;

/// The number of delivered messages that are remembered, to distinguish repetitions from contradictions.
const RECENT_MAX: usize = 64;

/// The number of ended epochs that are remembered.
const ENDED_MAX: usize = 256;

/// The number of epochs of which a reading remembers the newest acknowledged batch.
const ACKNOWLEDGED_MAX: usize = 8;

/// A batch that Redis has acknowledged. While its epoch lasts, the log cannot be before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) at: LogPosition,
    pub(super) end: u64,
    pub(super) id: BatchId,
}

impl Acknowledged {
    /// Returns whether a message has other records at these offsets, so that the batch is lost.
    fn is_denied_by(&self, message: &LogMessage) -> bool {
        let overlaps = message.at.offset < self.end && self.at.offset < message.end();
        let is_same = (message.at, message.end(), message.id) == (self.at, self.end, self.id);
        message.at.epoch == self.at.epoch && overlaps && !is_same
    }
}

/// A call that the machine must make on the follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Deliver the next message.
    Deliver(LogMessage),
    /// Announce an epoch that begins at this position.
    NewEpoch(LogPosition),
    /// Announce that the offsets from the first up to, but not including, the second cannot be read.
    Lost(LogEpoch, u64, u64),
}

/// The command that the machine must send for a reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Need {
    /// No command.
    #[default]
    Nothing,
    /// Read a range of the log, from the position of the reading.
    Read,
    /// End this epoch, because it gave the same offsets twice, or had ended before.
    Break(LogEpoch),
}

/// The state of one log.
#[derive(Debug, Default)]
pub(super) struct LogReading {
    /// The position of the next message; `None` before the first reading.
    at: Option<LogPosition>,
    /// Whether the reading begins at the end of the log, without the retained records.
    is_tail_only: bool,
    /// The batch before `at`, if this reading knows it.
    last: BatchId,
    /// The newest batch that this node has appended in the present epoch of this reading and in each later one,
    /// the latest epoch last.
    acknowledged: Vec<Acknowledged>,
    /// The value of `acknowledged` when the reading under way began. A reading that does not find these
    /// batches proves that the log has returned to an earlier state.
    must_find: Vec<Acknowledged>,
    held: BTreeMap<u64, (LogMessage, u64)>,
    held_bytes: u64,
    recent: VecDeque<(u64, BatchId)>,
    /// The epochs that were replaced by others, the newest last. A restored copy of a virtual machine may
    /// return to one of them under the same identity.
    ended: VecDeque<LogEpoch>,
    is_reading: bool,
    /// Whether another reading must follow the one under way, because that one may have begun too early.
    is_behind: bool,
    is_paused: bool,
    has_read: bool,
    gap: bool,
}

impl LogReading {
    /// A reading that begins with the oldest retained record, or (`is_tail_only`) with the next appended one.
    pub(super) fn new(is_tail_only: bool) -> Self {
        Self { is_tail_only, ..Self::default() }
    }

    /// The position of the next message.
    pub(super) fn at(&self) -> Option<LogPosition> {
        self.at
    }

    /// The position that the log has reached, as far as this node knows.
    pub(super) fn reached(&self) -> Option<LogPosition> {
        let at = self.at?;
        let known = self.acknowledged.iter().find(|known| known.at.epoch == at.epoch);
        let offset = known.map_or(at.offset, |known| known.end.max(at.offset));
        Some(LogPosition { offset, ..at })
    }

    /// Returns whether the log has been read to its end since the connection was made.
    pub(super) fn has_read(&self) -> bool {
        self.has_read
    }

    /// Resets the reading after its connection broke: all messages and answers on their way are lost.
    pub(super) fn disconnected(&mut self) {
        self.hold_nothing();
        (self.is_reading, self.has_read, self.is_behind) = (false, false, true);
    }

    /// Notes that the log must be read. Returns whether the caller must begin a reading now.
    pub(super) fn must_read(&mut self) -> bool {
        self.is_behind = true;
        self.begin_reading()
    }

    fn begin_reading(&mut self) -> bool {
        let begins = !self.is_reading && !self.is_paused;
        if begins {
            (self.is_reading, self.is_behind) = (true, false);
            self.must_find.clone_from(&self.acknowledged);
        }
        begins
    }

    /// The offset to read from; `None` reads only the position of the log.
    pub(super) fn reads_from(&self) -> Option<u64> {
        match self.at {
            Some(at) => Some(at.offset),
            None if self.is_tail_only => None,
            None => Some(0),
        }
    }

    /// Pauses after a message until [`LogReading::resume`]. The messages after it have not been delivered.
    pub(super) fn pause_after(&mut self, message: &LogMessage) {
        let at = LogPosition { offset: message.end(), ..message.at };
        (self.at, self.last) = (Some(at), message.id);
        // An epoch that began after the message is announced again after the pause.
        if let Some(found) = self.ended.iter().position(|ended| *ended == at.epoch) {
            self.ended.truncate(found);
        }
        self.recent.retain(|(first, _)| *first < at.offset);
        (self.is_paused, self.is_behind, self.is_reading) = (true, true, false);
        self.hold_nothing();
    }

    /// Notes that the messages of a reading were not all delivered.
    pub(super) fn unread(&mut self) {
        self.has_read = false;
    }

    /// Continues after a pause. Returns whether the caller must begin a reading now.
    pub(super) fn resume(&mut self) -> bool {
        std::mem::take(&mut self.is_paused) && self.must_read()
    }

    /// Returns whether a gap was filled since the last call.
    pub(super) fn take_gap(&mut self) -> bool {
        std::mem::take(&mut self.gap)
    }

    fn hold_nothing(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
    }

    fn hold(&mut self, message: LogMessage, bytes: u64) {
        let is_full = self.held.len() >= HELD_MAX || self.held_bytes + bytes > HELD_BYTES_MAX;
        if is_full {
            self.is_behind = true;
        } else {
            // The replaced message had the same offset, but in an epoch that is over.
            let replaced = self.held.insert(message.at.offset, (message, bytes));
            self.held_bytes += bytes;
            self.held_bytes -= replaced.map_or(0, |(_, bytes)| bytes);
        }
    }

    /// Takes a message that was pushed.
    pub(super) fn push(&mut self, message: LogMessage, bytes: u64, steps: &mut Vec<Step>) -> Need {
        if self.is_paused {
            self.is_behind = true;
            return Need::Nothing;
        }
        let Some(at) = self.at.filter(|_| self.has_read && !self.is_reading) else {
            self.hold(message, bytes);
            return Need::Nothing;
        };
        if message.at == at {
            if self.denies(&message) {
                return Need::Break(at.epoch);
            }
            self.deliver(message, steps);
            return Need::Nothing;
        }
        if message.at.epoch == at.epoch && message.at.offset < at.offset {
            return if self.was_another(&message) { Need::Break(at.epoch) } else { Need::Nothing };
        }
        self.gap |= message.at.epoch == at.epoch;
        self.hold(message, bytes);
        self.is_behind = true;
        if self.begin_reading() { Need::Read } else { Need::Nothing }
    }

    fn deliver(&mut self, message: LogMessage, steps: &mut Vec<Step>) {
        let at = LogPosition { offset: message.end(), ..message.at };
        (self.at, self.last) = (Some(at), message.id);
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((message.at.offset, message.id));
        steps.push(Step::Deliver(message));
    }

    /// Returns whether this reading remembers that it delivered another batch at this position.
    fn was_other(&self, at: LogPosition, id: BatchId) -> bool {
        let oldest = self.recent.front().map_or(u64::MAX, |(first, _)| *first);
        at.offset >= oldest && !self.recent.contains(&(at.offset, id))
    }

    /// Returns whether this reading remembers that it delivered other records at the offsets of a message.
    fn was_another(&self, message: &LogMessage) -> bool {
        self.straddles(message) || self.was_other(message.at, message.id)
    }

    /// Returns whether a message has offsets of the present epoch before and after the reading's position.
    fn straddles(&self, message: &LogMessage) -> bool {
        self.at.is_some_and(|at| {
            let is_before = message.at.epoch == at.epoch && message.at.offset < at.offset;
            is_before && at.offset < message.end()
        })
    }

    /// Returns whether the log's message before the reading's position is not the one that the reading has read.
    fn was_preceded_by_another(&self, before: &LogMessage) -> bool {
        let end = LogPosition { offset: before.end(), ..before.at };
        self.straddles(before) || (self.at == Some(end) && before.id.differs(self.last))
    }

    /// Returns whether a message contradicts the log that this node has read and written.
    fn denies(&self, message: &LogMessage) -> bool {
        let is_other = self.acknowledged.iter().any(|known| known.is_denied_by(message));
        is_other || (self.at == Some(message.at) && message.follows.differs(self.last))
    }

    /// Returns whether the log has the position of this reading, but with another newest batch.
    fn is_elsewhere(&self, place: &LogPlace) -> bool {
        let here = LogPosition { epoch: place.epoch, offset: place.next };
        self.at == Some(here) && place.last.differs(self.last)
    }

    /// Returns whether a reading found the log in an earlier state than this node knows of.
    fn has_returned(&self, place: &LogPlace) -> bool {
        let is_here = self.at.is_some_and(|at| at.epoch == place.epoch);
        let is_ahead = is_here && self.at.is_some_and(|at| at.offset > place.next);
        let found = self.must_find.iter().position(|known| known.at.epoch == place.epoch);
        let is_missing = match found {
            Some(found) => {
                self.must_find[found].end > place.next || found + 1 < self.must_find.len()
            }
            // All acknowledged batches are of epochs after the one that this reading reads.
            None => is_here && !self.must_find.is_empty(),
        };
        is_ahead || is_missing || self.is_elsewhere(place)
    }

    /// Notes a batch that Redis acknowledged.
    pub(super) fn acknowledged(&mut self, batch: Acknowledged) -> Need {
        let epoch = batch.at.epoch;
        if self.ended.contains(&epoch) {
            return Need::Nothing;
        }
        let is_here = self.at.is_some_and(|at| at.epoch == epoch);
        let found = self.acknowledged.iter().position(|before| before.at.epoch == epoch);
        let count = self.acknowledged.len();
        let has_returned = match found {
            Some(found) => found + 1 < count || batch.at.offset < self.acknowledged[found].end,
            None => is_here && count > 0,
        };
        if has_returned {
            return Need::Break(epoch);
        }
        match found {
            Some(found) => self.acknowledged[found] = batch,
            None => {
                if count == ACKNOWLEDGED_MAX {
                    self.acknowledged.remove(0);
                }
                self.acknowledged.push(batch);
            }
        }
        let is_delivered = |at: LogPosition| at.epoch == epoch && batch.at.offset < at.offset;
        if self.at.is_some_and(is_delivered) && self.was_other(batch.at, batch.id) {
            return Need::Break(epoch);
        }
        Need::Nothing
    }

    /// Skips offsets that cannot be read.
    fn lose(&mut self, at: LogPosition, to: LogPosition, last: BatchId, steps: &mut Vec<Step>) {
        steps.push(Step::Lost(at.epoch, at.offset, to.offset));
        (self.at, self.last) = (Some(to), last);
        self.recent.clear();
    }

    /// Gives up the rest of an epoch that the log has left.
    fn give_up(&mut self, place: LogPlace, steps: &mut Vec<Step>) -> Need {
        self.begin(LogPosition { epoch: place.epoch, offset: place.base }, steps);
        self.read_on()
    }

    fn begin(&mut self, at: LogPosition, steps: &mut Vec<Step>) {
        self.last = BatchId::NONE;
        let known = self.acknowledged.iter().position(|known| known.at.epoch == at.epoch);
        self.acknowledged.drain(..known.unwrap_or(self.acknowledged.len()));
        if let Some(before) = self.at.replace(at) {
            if self.ended.len() == ENDED_MAX {
                self.ended.pop_front();
            }
            self.ended.push_back(before.epoch);
        }
        self.recent.clear();
        steps.push(Step::NewEpoch(at));
    }

    /// Takes the position of the log that a probe has read. The probe's number has arrived, so all messages
    /// that were pushed before it have arrived, too. `sent` is the result of [`LogReading::reached`] when the
    /// probe was sent.
    pub(super) fn probed(&mut self, sent: Option<LogPosition>, place: LogPlace) -> Need {
        let Some(at) = self.at.filter(|_| self.has_read && !self.is_reading && !self.is_paused)
        else {
            return Need::Nothing;
        };
        if sent.is_some_and(|sent| sent.epoch == place.epoch && sent.offset > place.next) {
            return Need::Break(place.epoch);
        }
        if self.is_elsewhere(&place) {
            return Need::Break(place.epoch);
        }
        if at.epoch == place.epoch && at.offset >= place.next {
            return Need::Nothing;
        }
        self.gap |= at.epoch == place.epoch;
        self.read_on()
    }

    /// Takes a range of the log.
    pub(super) fn read(&mut self, range: Range, steps: &mut Vec<Step>) -> Need {
        self.is_reading = false;
        let Range { place, before, has_more, messages } = range;
        let here = LogPosition { epoch: place.epoch, offset: place.next };
        if self.has_returned(&place) {
            return Need::Break(place.epoch);
        }
        if let Some(at) = self.at {
            if self.ended.contains(&place.epoch) {
                // The log is in an earlier state again, in which it may give the same offsets twice.
                return Need::Break(place.epoch);
            }
            if at.epoch != place.epoch && at.offset > place.base {
                // The log has other records at offsets that this node has read.
                return self.give_up(place, steps);
            }
        }
        let before = before.and_then(LogMessage::decode);
        if before.is_some_and(|before| self.was_preceded_by_another(&before)) {
            if self.at.is_some_and(|at| at.epoch == place.epoch) {
                return Need::Break(place.epoch);
            }
            return self.give_up(place, steps);
        }
        for bytes in messages {
            let Some(message) = LogMessage::decode(bytes) else { continue };
            if self.ended.contains(&message.at.epoch) {
                // A message of the range may have been delivered before. Records from before the log's present
                // epoch are given up, and the follower learns it by the announcement of that epoch.
                if self.at.is_some_and(|at| at.epoch == place.epoch) {
                    return Need::Break(place.epoch);
                }
                return self.give_up(place, steps);
            }
            if self.denies(&message) {
                if message.at.epoch == place.epoch {
                    return Need::Break(place.epoch);
                }
                return self.give_up(place, steps);
            }
            match self.at {
                Some(at) if at.epoch == message.at.epoch => {
                    if message.at.offset < at.offset {
                        return Need::Break(at.epoch);
                    }
                    if message.at.offset > at.offset {
                        self.lose(at, message.at, BatchId::NONE, steps);
                    }
                }
                _ => self.begin(message.at, steps),
            }
            self.deliver(message, steps);
        }
        if has_more {
            return self.read_on();
        }
        match self.at {
            Some(at) if at.epoch == here.epoch => {
                if at.offset < here.offset {
                    self.lose(at, here, place.last, steps);
                }
            }
            _ => {
                self.begin(here, steps);
                self.last = place.last;
            }
        }
        self.has_read = true;
        self.release(steps)
    }

    pub(super) fn read_on(&mut self) -> Need {
        if self.must_read() { Need::Read } else { Need::Nothing }
    }

    /// Delivers the held messages that follow the reading's position without a gap.
    fn release(&mut self, steps: &mut Vec<Step>) -> Need {
        while let Some((_, (message, bytes))) = self.held.pop_first() {
            self.held_bytes -= bytes;
            let Some(at) = self.at else { break };
            if message.at == at {
                if self.denies(&message) {
                    return Need::Break(at.epoch);
                }
                self.deliver(message, steps);
            } else if message.at.epoch != at.epoch || message.at.offset > at.offset {
                // The reading was too early for the held message, or the message is of an epoch that is over.
                // Another reading shows which.
                self.hold_nothing();
                self.is_behind = true;
            } else if self.was_another(&message) {
                return Need::Break(at.epoch);
            }
        }
        if self.is_behind && self.begin_reading() { Need::Read } else { Need::Nothing }
    }
}
