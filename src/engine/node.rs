//! Nodes, their leases and their members.

use bytes::Bytes;

use super::LogPosition;

/// The number of a server among those that share a log: unique among live nodes, constant for the life
/// of the process, and never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u16);

/// The random id of a node's time under one lease. A node whose lease expired continues with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

/// A live node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its number.
    pub node: NodeId,
    /// Its present incarnation.
    pub incarnation: Incarnation,
    /// The description that it publishes of itself.
    pub info: Bytes,
    /// The moment at which this incarnation began, in Unix milliseconds by the engine's clock.
    pub since_ms: u64,
    /// The moment of its last renewal, in Unix milliseconds by the engine's clock.
    pub seen_ms: u64,
}

/// A member of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceMember {
    /// The node that put the member.
    pub node: NodeId,
    /// The incarnation of that node.
    pub incarnation: Incarnation,
    /// The name of the member, unique on its node.
    pub member: Bytes,
    /// The value that the node put.
    pub value: Bytes,
}

/// All members of a place at one position of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The position of the next record. The snapshot includes the changes of all records before it, and no
    /// others.
    pub at: LogPosition,
    /// The members, in no order.
    pub members: Vec<PlaceMember>,
}
