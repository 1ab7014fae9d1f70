//! Followers of the log.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Incarnation, LogEpoch, LogPosition, Logged, NodeId, NodeInfo, Partition};

/// Whether the engine may continue to feed a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It may.
    Continue,
    /// The follower took the records, and takes no more of this partition until
    /// [`Engine::resume`](super::Engine::resume). The engine reads from the log what it left out.
    Pause,
}

/// The part of a node that is fed from the log.
///
/// All functions are called on the engine's thread, one at a time. They must not block.
pub trait Follower: Send + Sync {
    /// Takes records. Within an epoch every offset comes exactly once, in order.
    fn records(&self, partition: Partition, epoch: LogEpoch, records: &[Logged]) -> Flow;

    /// Takes notice that what follows is of this epoch, from this offset on. It comes before the first
    /// record of each partition, too; what the epoch has below this offset is unknown here.
    ///
    /// If another epoch came before, its records end here, and acknowledged ones may be lost. All nodes'
    /// members have been removed from the partition: this node puts its members there again.
    fn new_epoch(&self, partition: Partition, epoch: LogEpoch, next_offset: u64);

    /// Takes notice that the offsets from `first` up to, but not including, `next` cannot be read.
    fn lost(&self, partition: Partition, epoch: LogEpoch, first: u64, next: u64);

    /// Takes notice that a node's lease has ended: its members of that incarnation leave all places of
    /// the partition. It has an offset of its own, in order with the records, and comes once for each
    /// partition where the node had members.
    fn members_left(
        &self,
        partition: Partition,
        at: LogPosition,
        node: NodeId,
        incarnation: Incarnation,
    );

    /// Takes notice that this node's lease had run out, and that it has a new incarnation. This node puts
    /// all its members again, in every partition.
    fn reincarnated(&self, incarnation: Incarnation);

    /// Takes a message that a node told all nodes.
    fn told(&self, from: NodeId, message: Bytes);

    /// Takes notice that messages may have been missed.
    fn told_lost(&self);

    /// Answers a question. The future runs on the engine's runtime.
    fn asked(&self, from: NodeId, question: Bytes) -> BoxFuture<'static, Bytes>;

    /// Takes notice of the live nodes, when they have changed.
    fn nodes_changed(&self, live: &[NodeInfo]);
}
