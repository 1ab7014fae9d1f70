//! Nodes, their leases and their members.

use bytes::Bytes;

use super::LogPosition;

/// The number of a server among those that share a log: unique among live nodes, constant for the life
/// of the process, and never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u16);

/// One life of a node's lease. It is random. A node whose lease ran out continues with another one.
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
    /// The node that put it.
    pub node: NodeId,
    /// The incarnation that put it.
    pub incarnation: Incarnation,
    /// Its name.
    pub member: Bytes,
    /// Its value.
    pub value: Bytes,
}

/// All members of a place at one position of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The position of the next record: the changes of all records below it are included, and no other.
    pub at: LogPosition,
    /// The members, in no order.
    pub members: Vec<PlaceMember>,
}
