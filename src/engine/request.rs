//! The requests of a node to Redis and the answers, independent of their encoding.

use std::time::Duration;

use bytes::Bytes;

use super::{Incarnation, LogEpoch, LogPosition, NodeId, NodeInfo, Snapshot, Terms, wire::BatchId};

/// The index of a log: the number of a partition, or the number after the last partition for the log of messages
/// to all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LogIndex(pub(super) u16);

/// The identity of a Redis server's process and its data: another one after a restart or a failover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity(pub(super) Bytes);

/// The random id of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instance(pub(super) [u8; 16]);

/// A life: a node together with its incarnation.
pub(super) type Life = (NodeId, Incarnation);

/// The id of a line. A line that was made later has a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LineId(pub(super) u64);

/// The id of a request to Redis and of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct CallId(pub(super) u64);

/// A request to the server of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LogRequest {
    /// Append a batch. The answer is [`Reply::Committed`].
    Commit(Commit),
    /// Read the log. The answer is [`Reply::Read`].
    Read(ReadRange),
    /// Read the members of a place. The answer is [`Reply::Members`].
    Members {
        /// The place.
        place: Bytes,
    },
    /// Begin a new epoch, unless the epoch is another one already. The answer is [`Reply::Done`].
    Break {
        /// The epoch that contradicts itself.
        seen: LogEpoch,
        /// The epoch that replaces it.
        fresh: LogEpoch,
    },
    /// Permit a life to put members over this line, and to append no more over earlier ones. The answer
    /// is [`Reply::Done`].
    Register(Life, LineId),
    /// Remove the members of a life, and append `leaver` if there were any. The answer is
    /// [`Reply::Done`].
    Bury {
        /// The identity that the connection found.
        identity: Identity,
        /// The life.
        life: Life,
        /// The batch that announces to all nodes that the members leave.
        leaver: Bytes,
        /// The epoch to begin if one has to begin.
        fresh: LogEpoch,
    },
    /// Renew a lease. The answer is [`Reply::Renewed`].
    Renew(Renew),
    /// Mark a lease as ended, if it has run out or `is_forced`. The answer is [`Reply::Condemned`].
    Condemn {
        /// The life.
        life: Life,
        /// Whether the node itself gives the lease up.
        is_forced: bool,
    },
    /// Forget a lease that was marked as ended. The answer is [`Reply::Done`].
    Forget(Life),
    /// Read the counters of several logs, and publish a number to the node's own probe channel. The answer
    /// is [`Reply::Probed`].
    Probe {
        /// The logs.
        logs: Vec<LogIndex>,
        /// The node.
        node: NodeId,
        /// The number.
        nonce: u64,
    },
    /// Publish a letter. The answer is [`Reply::Done`].
    Post {
        /// The receiver.
        to: Recipient,
        /// The letter.
        letter: Bytes,
    },
}

/// The receiver of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Recipient {
    /// All nodes.
    All,
    /// One node.
    Node(NodeId),
}

/// A batch to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    /// The identity that the connection found.
    pub(super) identity: Identity,
    /// The epoch to begin if one has to begin.
    pub(super) fresh: LogEpoch,
    /// The life that commits, for its members.
    pub(super) life: Life,
    /// The line over which the batch is sent.
    pub(super) line: LineId,
    /// The head of the batch.
    pub(super) head: Bytes,
    /// The parts, each of which is appended as a whole or not at all.
    pub(super) segments: Vec<Segment>,
}

/// A part of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// The number of its records.
    pub(super) count: u32,
    /// The records.
    pub(super) records: Bytes,
    /// A condition, or a change of members.
    pub(super) terms: Terms,
}

/// A range of the log to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReadRange {
    /// The identity that the connection found.
    pub(super) identity: Identity,
    /// The epoch to begin if one has to begin.
    pub(super) fresh: LogEpoch,
    /// The first offset to read; `None` reads no records, only the position of the log.
    pub(super) from: Option<u64>,
}

/// A lease to renew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renew {
    /// The node and its incarnation.
    pub(super) life: Life,
    /// The process of the node.
    pub(super) instance: Instance,
    /// The time after which the lease runs out.
    pub(super) ttl: Duration,
    /// Whether the life has no lease yet.
    pub(super) is_first: bool,
    /// The description that the node publishes of itself.
    pub(super) info: Bytes,
}

/// An answer of Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// A batch was processed.
    Committed {
        /// The epoch.
        epoch: LogEpoch,
        /// The outcome of each segment.
        outcomes: Vec<Outcome>,
    },
    /// A range of the log.
    Read(Range),
    /// The members of a place.
    Members(Snapshot),
    /// A renewal was processed.
    Renewed {
        /// The outcome.
        outcome: Renewal,
        /// The time by the clock of Redis, in Unix milliseconds.
        now_ms: u64,
        /// All leases.
        leases: Vec<LeaseEntry>,
    },
    /// Whether the lease is marked as ended.
    Condemned(bool),
    /// The positions of the logs, in the order of the request; `None` for a log that does not exist.
    Probed(Vec<Option<LogPlace>>),
    /// The request was carried out.
    Done,
}

/// The outcome of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was appended, with this first offset.
    At(u64),
    /// Its key was used before.
    Repeated {
        /// The position of the first record with the key.
        at: LogPosition,
        /// The bytes that were remembered.
        note: Bytes,
    },
    /// The place is full.
    Full,
    /// The incarnation may not put members.
    Lapsed,
}

/// A range of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    /// The position of the log.
    pub(super) place: LogPlace,
    /// The head of the message before the requested offset, if the log retains it.
    pub(super) before: Option<Bytes>,
    /// Whether the log has more than these messages.
    pub(super) has_more: bool,
    /// The messages.
    pub(super) messages: Vec<Bytes>,
}

/// The position of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogPlace {
    /// Its epoch.
    pub(super) epoch: LogEpoch,
    /// The offset at which the epoch began.
    pub(super) base: u64,
    /// The offset of the next record.
    pub(super) next: u64,
    /// The newest batch.
    pub(super) last: BatchId,
}

/// The outcome of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewal {
    /// The lease holds.
    Held,
    /// The incarnation has no lease any more.
    Lapsed,
    /// Another process has a lease under this number.
    Taken,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeaseEntry {
    /// The node that holds it.
    pub(super) info: NodeInfo,
    /// The moment at which it runs out, in Unix milliseconds by the clock of Redis.
    pub(super) until_ms: u64,
    /// Whether it is marked as ended.
    pub(super) is_condemned: bool,
}

impl LeaseEntry {
    /// The node and its incarnation.
    pub(super) fn life(&self) -> Life {
        (self.info.node, self.info.incarnation)
    }
}

/// The reason why a question to Redis has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestFailure {
    /// The connection broke. Redis may have carried the request out.
    #[error("the connection broke")]
    Broken,
    /// Redis refused the request, and changed nothing.
    #[error("{text}")]
    Refused {
        /// The text of Redis's error, without secrets.
        text: String,
        /// Whether another connection may lead to a Redis that does not refuse.
        is_elsewhere: bool,
    },
}
