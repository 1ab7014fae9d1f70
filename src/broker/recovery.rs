//! Recovery: the history that a join requests, and the answer.
//!
//! The *gap* of a join consists of the publications that it missed since the position that it names. The
//! answer *closes* the gap if it replays all of them.

use crate::{metrics::labels::Limit, settings::HistorySettings};

use super::{
    history::{Gap, History},
    position::StreamPosition,
    retained::Retained,
    subscriber::{Frame, ScopeKey},
    topic_name::ChannelName,
};

/// The most records by which a position may be ahead of this node's reading of the log, if another node has given
/// it to a client. A node that is further behind tells the client to fetch its data anew. Without this bound, a join
/// with a position that no node has given would be sent nothing until the log has reached it.
const LEAD_RECORDS_MAX: u64 = 10_000;

/// The part of the history that a join requests. A join that requests nothing has no such value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The position after which publications are requested.
    pub since: Since,
    /// The most publications to replay, the newest ones, if there is no gap, or if it cannot be closed.
    pub newest_max: usize,
}

/// The position after which a join requests all publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// The present position: there is no gap to close.
    Now,
    /// This position.
    Position(StreamPosition),
    /// A text that is not a position.
    NoPosition,
}

impl Since {
    /// Parses the text of a position. The empty text means the present position.
    pub fn parse(text: &str) -> Self {
        match text {
            "" => Self::Now,
            _ => text.parse().map_or(Self::NoPosition, Self::Position),
        }
    }
}

/// The reason why a gap is not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incomplete {
    /// A publication that the subscriber would have been sent may no longer be retained.
    Expired,
    /// The numbering began anew.
    Epoch,
    /// The position is not one of this scope.
    Unknown,
    /// The subscriber missed more than may be replayed.
    TooMuch,
    /// The app retains nothing.
    Off,
}

impl Incomplete {
    /// The reason for an app that retains nothing: [`Incomplete::Off`], unless the position is unknown.
    pub(super) fn of_nothing(self) -> Self {
        if self == Self::Unknown { self } else { Self::Off }
    }

    /// The reason as replies and answers spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Epoch => "epoch",
            Self::Unknown => "unknown",
            Self::TooMuch => "too_much",
            Self::Off => "off",
        }
    }
}

/// A part of the retained publications of a channel, for a caller without a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPage {
    /// The reason why publications may be missing between the requested position and this page.
    pub incomplete: Option<Incomplete>,
    /// The position after which the next page begins: that of the last publication if more follow, or else the
    /// head of the scope. `None` if the app retains nothing and the scope has no subscribers.
    pub position: Option<StreamPosition>,
    /// The publications with their positions, in order.
    pub publications: Vec<(StreamPosition, Retained)>,
}

/// The answer to a join that requested history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The reason why the gap is not closed; `None` if it is closed, or if there was none.
    pub incomplete: Option<Incomplete>,
    /// The position just before the first frame that the join is sent, replayed or live.
    pub position: StreamPosition,
    /// The number of replayed publications.
    pub replayed: usize,
    /// The frames of the replayed publications, in order.
    pub frames: Vec<Frame>,
}

/// The answer of a stream to a join that requested history: a [`Recovery`] before its frames are
/// encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missed {
    pub(super) incomplete: Option<Incomplete>,
    /// The limit that the gap exceeds, if there is one.
    pub(super) limit: Option<Limit>,
    /// The position just before the first publication, or the boundary of the join if there is none.
    pub(super) position: StreamPosition,
    /// The offset after which all publications have been delivered to the session once this is replayed.
    pub(super) attached: u64,
    /// The publications to replay, with their offsets, in order.
    pub(super) publications: Vec<(u64, Retained)>,
}

/// The point in the order of its scope at which a join begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    /// The channel that was joined; `None` for the whole scope.
    pub(super) channel: Option<&'a ChannelName>,
    /// The offset after which all publications are delivered to the session.
    pub(super) attached: u64,
    /// The position of the newest publication that the thread has delivered.
    pub(super) boundary: StreamPosition,
    /// The position up to which this node has read the log. It is read before the history, and only for a position
    /// after the boundary; `None` on a server without a cluster.
    pub(super) log_head: Option<StreamPosition>,
}

/// Returns whether another node may have given a client this position, which is after the newest publication here.
fn may_be_given(since: StreamPosition, log_head: Option<StreamPosition>) -> bool {
    log_head.is_some_and(|head| {
        since.epoch == head.epoch && since.offset <= head.offset.saturating_add(LEAD_RECORDS_MAX)
    })
}

impl Reading<'_> {
    /// The publications after a position that the session was not sent; `None` if the join has no position.
    ///
    /// # Errors
    /// The reason why some may be missing, and the limit that the gap exceeds, if there is one.
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
        let is_known = since.offset <= head.offset || may_be_given(since, self.log_head);
        // A session may be ahead of its thread. The publications in between are not replayed, because the thread
        // has yet to deliver them.
        let delivered = self.attached.min(self.boundary.offset);
        if since.epoch == head.epoch && since.offset >= delivered && is_known {
            let nothing = self.nothing(since);
            let attached = nothing.attached.min(since.offset);
            return Ok(Some(Missed { attached, ..nothing }));
        }
        let missed = history.after(self.channel, since, delivered, limits.replay_max);
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

    /// The answer to a join that missed nothing: all publications after `since` have been delivered to this
    /// session, or will be.
    ///
    /// Another thread or another node may be ahead of this thread, so a client may have the position of a
    /// publication that this thread has not delivered yet. The session is not sent that publication again.
    fn nothing(&self, since: StreamPosition) -> Missed {
        let is_ahead = since.offset > self.boundary.offset;
        let position = if is_ahead { since } else { self.boundary };
        let attached = if is_ahead { since.offset } else { self.attached };
        Missed { incomplete: None, limit: None, position, attached, publications: Vec::new() }
    }

    /// The newest publications that the join would have been sent, up to the requested number and the limit of
    /// a replay, without those that were delivered to its session.
    pub(super) fn newest(
        &self,
        history: &History,
        newest_max: usize,
        limits: &HistorySettings,
    ) -> Missed {
        let newest_max = newest_max.min(limits.replay_max);
        let mut newest = history.newest(self.channel, self.boundary.offset, newest_max);
        newest.retain(|(offset, _)| *offset <= self.attached);
        keep_newest(&mut newest, limits.replay_bytes_max);
        self.replaying(newest, |before| history.is_whole_after(self.channel, before))
    }

    /// The answer that replays these newest publications. `is_whole_after` returns whether they are all that the join
    /// would have been sent after an offset.
    fn replaying(
        &self,
        newest: Vec<(u64, Retained)>,
        is_whole_after: impl FnOnce(u64) -> bool,
    ) -> Missed {
        let Some((first, _)) = newest.first() else { return self.nothing(self.boundary) };
        let before = first - 1;
        let attached = if is_whole_after(before) { before } else { self.attached };
        let position = StreamPosition { offset: before, ..self.boundary };
        Missed { incomplete: None, limit: None, position, attached, publications: newest }
    }
}

impl Missed {
    /// The same answer without the first `count` of the newest publications.
    pub(super) fn without_first(self, count: usize, reading: &Reading<'_>) -> Self {
        let Self { incomplete, limit, attached, mut publications, .. } = self;
        publications.drain(..count);
        let is_whole = attached < reading.attached;
        Self { incomplete, limit, ..reading.replaying(publications, |_| is_whole) }
    }
}

/// A question for some of the retained publications of a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageQuery<'a> {
    pub(super) channel: &'a ChannelName,
    /// The position after which the page begins. Without a position the page has the newest publications.
    pub(super) since: Since,
    /// The position up to which this node has read the log; `None` on a server without a cluster.
    pub(super) log_head: Option<StreamPosition>,
    pub(super) publications_max: usize,
    /// The most bytes of all payloads together. A single publication may have more.
    pub(super) bytes_max: usize,
}

impl PageQuery<'_> {
    /// The answer.
    pub(super) fn page(&self, history: &History, key: &ScopeKey) -> HistoryPage {
        let Self { channel, since, log_head, publications_max, bytes_max } = *self;
        let head = history.head();
        let (incomplete, after) = match since {
            Since::Now => {
                let mut newest = history.newest(Some(channel), head.offset, publications_max);
                keep_newest(&mut newest, bytes_max);
                return HistoryPage::new(None, head, newest);
            }
            Since::Position(since) if since.epoch == head.epoch && since.offset > head.offset => {
                match may_be_given(since, log_head) {
                    // Another node has read more of the log than this one.
                    true => return HistoryPage::new(None, since, Vec::new()),
                    false => (Some(Incomplete::Unknown), 0),
                }
            }
            Since::Position(since) if since.epoch == head.epoch => {
                // The publications after an old position are still useful.
                let is_whole = history.is_whole_after(Some(channel), since.offset);
                ((!is_whole).then_some(Incomplete::Expired), since.offset)
            }
            Since::Position(since) if since.epoch != head.epoch && since.epoch.can_be_of(key) => {
                (Some(Incomplete::Epoch), 0)
            }
            Since::Position(_) | Since::NoPosition => (Some(Incomplete::Unknown), 0),
        };
        let mut first = history.first(channel, after, publications_max.saturating_add(1));
        let is_cut = keep_oldest(&mut first, publications_max, bytes_max);
        let last = first.last().filter(|_| is_cut).map_or(head.offset, |(last, _)| *last);
        HistoryPage::new(incomplete, StreamPosition { offset: last, ..head }, first)
    }
}

impl HistoryPage {
    fn new(
        incomplete: Option<Incomplete>,
        position: StreamPosition,
        publications: Vec<(u64, Retained)>,
    ) -> Self {
        let at = |(offset, retained)| (StreamPosition { offset, ..position }, retained);
        let publications = publications.into_iter().map(at).collect();
        Self { incomplete, position: Some(position), publications }
    }
}

/// Drops the oldest publications, so that the payloads of the others have at most this many bytes.
fn keep_newest(publications: &mut Vec<(u64, Retained)>, bytes_max: usize) {
    let mut bytes = payload_bytes(publications);
    let too_many = publications.iter().take_while(|(_, oldest)| {
        let is_too_much = bytes > bytes_max;
        bytes -= oldest.payload_bytes();
        is_too_much
    });
    let too_many = too_many.count();
    publications.drain(..too_many);
}

/// Keeps the first publications within the given number and bytes of payloads. The first one is always
/// kept. Returns whether any was dropped.
fn keep_oldest(
    publications: &mut Vec<(u64, Retained)>,
    publications_max: usize,
    bytes_max: usize,
) -> bool {
    let mut bytes = 0;
    let fits = publications.iter().take(publications_max).take_while(|(_, next)| {
        bytes += next.payload_bytes();
        bytes <= bytes_max
    });
    let fits = fits.count().max(1);
    let is_cut = fits < publications.len();
    publications.truncate(fits);
    is_cut
}

/// The bytes of all payloads.
fn payload_bytes(publications: &[(u64, Retained)]) -> usize {
    publications.iter().map(|(_, retained)| retained.payload_bytes()).sum()
}
