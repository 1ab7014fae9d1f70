//! Recovery: what a join asks of the history, and what it is told.

use crate::metrics::labels::Limit;

use super::{position::StreamPosition, retained::Retained, subscriber::Frame};

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
    /// What is replayed, with offsets, in order.
    pub(super) publications: Vec<(u64, Retained)>,
}
