//! Recovery: what a join asks of the history, and what it is told.

use crate::{metrics::labels::Limit, settings::HistorySettings};

use super::{
    history::{Gap, History},
    position::StreamPosition,
    retained::Retained,
    subscriber::{Frame, ScopeKey},
    topic_name::ChannelName,
};

/// What a join asks of the history of its place. A join that asks for nothing has no such value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Since when.
    pub since: Since,
    /// How many of the newest publications to replay if no gap is closed.
    pub newest_max: usize,
}

/// The position after which a join wants everything replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// The join begins now: there is no gap to close.
    Now,
    /// Everything after this position.
    Position(StreamPosition),
    /// Something that is not a position of any scope.
    NoPosition,
}

/// Why a gap is not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incomplete {
    /// Something that the subscriber would have heard may no longer be retained.
    Expired,
    /// The numbering began anew.
    Epoch,
    /// It is not a position of this scope.
    Unknown,
    /// It is more than may be replayed.
    TooMuch,
    /// The app retains nothing.
    Off,
}

/// What a join that asked is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Why the gap is not closed; `None` if it is, or if there was none.
    pub incomplete: Option<Incomplete>,
    /// The position just before the first frame that the join is sent, replayed or live.
    pub position: StreamPosition,
    /// How many publications are replayed.
    pub replayed: usize,
    /// Their frames, in order.
    pub frames: Vec<Frame>,
}

/// What a stream answers to a join that asked: a [`Recovery`] before its frames are spelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missed {
    pub(super) incomplete: Option<Incomplete>,
    /// The limit that the gap exceeds, if it does.
    pub(super) limit: Option<Limit>,
    /// The position just before the first publication, or the boundary of the join if there is none.
    pub(super) position: StreamPosition,
    /// The offset behind which the session has been handed everything, once this is replayed, and is
    /// handed everything from now on.
    pub(super) attached: u64,
    /// What is replayed, with offsets, in order.
    pub(super) publications: Vec<(u64, Retained)>,
}

/// The place of a join in the order of its scope.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    /// The channel that it hears; `None` if it hears the whole scope.
    pub(super) channel: Option<&'a ChannelName>,
    /// The offset behind which the session is handed everything.
    pub(super) attached: u64,
    /// The newest publication that its thread has handed out.
    pub(super) boundary: StreamPosition,
}

impl Reading<'_> {
    /// Everything that the join was not handed after a position; `None` if it has no position.
    ///
    /// # Errors
    /// Why that may not be all, and the limit that it exceeds, if it does.
    pub(super) fn gap(
        &self,
        history: &History,
        key: &ScopeKey,
        since: Since,
        limits: &HistorySettings,
    ) -> Result<Option<Missed>, (Incomplete, Option<Limit>)> {
        let since = match since {
            Since::Now => return Ok(None),
            Since::Position(since) if since.epoch.can_be_of(key) => since,
            Since::NoPosition | Since::Position(_) => return Err((Incomplete::Unknown, None)),
        };
        let head = history.head();
        if since.epoch == head.epoch && (self.attached..=head.offset).contains(&since.offset) {
            return Ok(Some(self.nothing(since)));
        }
        let missed = history.after(self.channel, since, self.attached, limits.replay_max);
        let publications = missed.map_err(|gap| match gap {
            Gap::Epoch => (Incomplete::Epoch, None),
            Gap::Unknown => (Incomplete::Unknown, None),
            Gap::Expired => (Incomplete::Expired, None),
            Gap::TooMuch => (Incomplete::TooMuch, Some(Limit::HistoryReplay)),
        })?;
        if payload_bytes(&publications) > limits.replay_bytes_max {
            return Err((Incomplete::TooMuch, Some(Limit::HistoryReplayBytes)));
        }
        let position = if publications.is_empty() { self.boundary } else { since };
        let attached = since.offset;
        Ok(Some(Missed { incomplete: None, limit: None, position, attached, publications }))
    }

    /// Nothing was missed: what came after `since` has been handed to this very session, or is still
    /// to come.
    ///
    /// Another thread may be ahead of this one, and a client may know the position of what this
    /// thread has yet to hand out. The session is not handed that once more.
    fn nothing(&self, since: StreamPosition) -> Missed {
        let is_ahead = since.offset > self.boundary.offset;
        let position = if is_ahead { since } else { self.boundary };
        let attached = if is_ahead { since.offset } else { self.attached };
        Missed { incomplete: None, limit: None, position, attached, publications: Vec::new() }
    }

    /// The newest publications that the join would have heard, as many as it asks for and as may be
    /// replayed, without those that its session was handed.
    pub(super) fn newest(
        &self,
        history: &History,
        newest_max: usize,
        limits: &HistorySettings,
    ) -> Missed {
        let newest_max = newest_max.min(limits.replay_max);
        let mut newest = history.newest(self.channel, self.boundary.offset, newest_max);
        newest.retain(|(offset, _)| *offset <= self.attached);
        let mut bytes = payload_bytes(&newest);
        let too_many = newest.iter().take_while(|(_, oldest)| {
            let is_too_much = bytes > limits.replay_bytes_max;
            bytes -= oldest.payload_bytes();
            is_too_much
        });
        let too_many = too_many.count();
        newest.drain(..too_many);
        let Some((first, _)) = newest.first() else { return self.nothing(self.boundary) };
        let before = first - 1;
        let is_whole = history.is_whole_after(self.channel, before);
        let attached = if is_whole { before } else { self.attached };
        let position = StreamPosition { offset: before, ..self.boundary };
        Missed { incomplete: None, limit: None, position, attached, publications: newest }
    }
}

/// Bytes of the payloads of all.
fn payload_bytes(publications: &[(u64, Retained)]) -> usize {
    publications.iter().map(|(_, retained)| retained.payload_bytes()).sum()
}
