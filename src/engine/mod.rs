//! The engine: the log that several nodes share, and the messages between them.
//!
//! An [`Engine`] transports bytes; it knows nothing of publications, topics or sessions. It keeps a
//! *log* in a fixed number of *partitions*. [`Engine::append`] puts records into a partition, and every
//! node's [`Follower`] receives the records of each partition in one order, each exactly once. The node
//! that appended a record receives it in the same way, so all nodes have the same order.
//!
//! The offsets of a partition are dense: a node that misses a record notices the gap, and reads the
//! record from the log. An *epoch* is one unbroken numbering. When the engine can no longer prove that
//! the log has all acknowledged records, for example because Redis failed over to a replica, a new epoch
//! begins, and every follower is told.
//!
//! A node holds a *lease*. The members that it put on places with a [`MemberChange`] are removed,
//! at one position of the log, when the lease expires.
//!
//! A server whose `engine.kind` is `local` is not part of a cluster and has no engine. [`redis`] is the
//! engine of a cluster. `tests/memory_engine` is one for tests, whose nodes live in one process.

#[cfg(test)]
pub(crate) mod contract;
mod follower;
mod machine;
#[cfg(test)]
#[path = "../../tests/memory_engine/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "the integration tests use it, too")]
pub(crate) mod memory;
mod node;
mod record;
mod redis;
mod request;
mod shared;
#[cfg(test)]
mod tests;
mod wire;

use std::{fmt, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

pub use self::redis::{EngineError, RedisEngine};
pub use crate::settings::MESSAGE_BYTES_MAX;
pub use follower::{Flow, Follower};
pub use node::{Incarnation, NodeId, NodeInfo, PlaceMember, Snapshot};
pub use record::{
    Append, AppendError, Appended, ENTRY_BYTES_MAX, ID_BYTES_MAX, LogEpoch, LogPosition, Logged,
    MemberChange, OnceKey, Partition, Record, SCOPE_BYTES_MAX, Terms,
};

/// The most bytes that a node may publish about itself.
pub const INFO_BYTES_MAX: usize = 4 << 10;

/// Whether the engine can be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// The retained log has not been read to its end yet.
    Starting,
    /// Records can be appended, and arrive.
    Up,
    /// The engine cannot be reached, or missing records are being read.
    Down {
        /// The moment at which it was last up.
        since: Instant,
    },
}

/// The engine cannot be reached, or did not answer in time. A message may have been sent nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine is unavailable")]
pub struct Unavailable;

/// The error of a question that a node did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not every node answered in time")]
pub struct NodeUnanswered;

/// A log that all nodes share, messages between nodes, and the leases of the nodes.
///
/// Every function may be called on any thread and returns at once. A future may be polled on any
/// runtime, and its operation takes place even if the future is dropped.
pub trait Engine: Send + Sync + fmt::Debug {
    /// The number of this node.
    fn node(&self) -> NodeId;

    /// The present incarnation of this node's lease.
    fn incarnation(&self) -> Incarnation;

    /// The number of partitions.
    fn partitions(&self) -> u16;

    /// Begins to pass records to a follower: first all that the log retains, then each appended one.
    /// Only the first call has an effect.
    fn follow(&self, follower: Arc<dyn Follower>);

    /// Appends records to a partition.
    ///
    /// # Errors
    /// [`AppendError`]. After [`AppendError::Unavailable`] the records may be in the log nevertheless.
    fn append(
        &self,
        partition: Partition,
        append: Append,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Appended, AppendError>>;

    /// Sends a message to every live node, including this one. A node that is disconnected for a short
    /// time receives the message afterwards.
    ///
    /// # Errors
    /// [`Unavailable`].
    fn tell(
        &self,
        message: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(), Unavailable>>;

    /// Asks one node, or all live nodes, including this one. The answers are in the order of the nodes' numbers.
    ///
    /// # Errors
    /// [`NodeUnanswered`] if any node has not answered at the deadline, because a sum over fewer nodes would
    /// be too low, and at once if the one node does not live.
    fn ask(
        &self,
        to: Option<NodeId>,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<(NodeId, Bytes)>, NodeUnanswered>>;

    /// Reads the members of a place, of all nodes.
    ///
    /// # Errors
    /// [`Unavailable`].
    fn members(
        &self,
        partition: Partition,
        place: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Snapshot, Unavailable>>;

    /// The live nodes in the order of their numbers, as of the last renewal of this node's lease.
    fn nodes(&self) -> Arc<[NodeInfo]>;

    /// Sets what this node publishes about itself, at most [`INFO_BYTES_MAX`]. The other nodes see it
    /// after the next renewal of the lease.
    fn describe(&self, info: Bytes);

    /// A channel with the present state of the engine and each later one.
    fn state(&self) -> watch::Receiver<EngineState>;

    /// Continues to pass on the records of a partition that [`Flow::Pause`] has paused.
    fn resume(&self, partition: Partition);

    /// Gives up the lease, so that this node's members leave all places. Resolves when that is done, or at
    /// the deadline. The engine cannot be used afterwards.
    fn leave(&self, deadline: Instant) -> BoxFuture<'static, ()>;
}
