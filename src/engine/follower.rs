//! Followers of the log.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Incarnation, LogEpoch, LogPosition, Logged, NodeId, NodeInfo, Partition};

/// Whether the engine may continue to pass on the records of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The engine may continue.
    Continue,
    /// The follower has taken the records, and accepts no more of this partition until
    /// [`Engine::resume`](super::Engine::resume). The engine reads the records of the meantime from the
    /// log afterwards.
    Pause,
}

/// The part of a node that receives the records of the log.
///
/// All functions are called on the engine's thread, one at a time. They must not block.
pub trait Follower: Send + Sync {
    /// Takes records. Within an epoch each offset is delivered exactly once, in order.
    fn records(&self, partition: Partition, epoch: LogEpoch, records: &[Logged]) -> Flow;

    /// Takes notice that an epoch begins: the following records are of this epoch, and have this offset or
    /// a later one. The call also precedes the first record of each partition. Records of the epoch below
    /// the offset are not delivered.
    ///
    /// If the partition had another epoch before, that one ends here, and acknowledged records of it may
    /// be lost. The members of all nodes have been removed from the partition, and this node must put its
    /// own there again.
    fn new_epoch(&self, partition: Partition, epoch: LogEpoch, next_offset: u64);

    /// Takes notice that the offsets from `first` up to, but not including, `next` cannot be read.
    fn lost(&self, partition: Partition, epoch: LogEpoch, first: u64, next: u64);

    /// Takes notice that a node's lease has ended: its members of that incarnation leave all places of
    /// the partition. The notice has an offset of its own among the records, and is delivered once for each
    /// partition in which the node had members.
    fn members_left(
        &self,
        partition: Partition,
        at: LogPosition,
        node: NodeId,
        incarnation: Incarnation,
    );

    /// Takes notice that this node's lease had expired, and that it has a new incarnation. This node must
    /// put all its members again, in every partition.
    fn reincarnated(&self, incarnation: Incarnation);

    /// Takes a message that a node sent to all nodes.
    fn told(&self, from: NodeId, message: Bytes);

    /// Takes notice that messages may have been missed.
    fn told_lost(&self);

    /// Answers a question, with at most [`MESSAGE_BYTES_MAX`](super::MESSAGE_BYTES_MAX) bytes. The future runs on
    /// the engine's runtime.
    fn asked(&self, from: NodeId, question: Bytes) -> BoxFuture<'static, Bytes>;

    /// Takes notice that the live nodes have changed.
    fn nodes_changed(&self, live: &[NodeInfo]);
}
