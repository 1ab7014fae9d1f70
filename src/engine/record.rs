//! The log's records and positions, and what may be appended.

use std::time::Duration;

use bytes::Bytes;

/// The most bytes of one [`Append`].
pub const ENTRY_BYTES_MAX: usize = 16 << 20;

/// The most bytes of a scope, and of a place.
pub const SCOPE_BYTES_MAX: usize = 1_024;

/// The most bytes of the id of a [`OnceKey`], and of the name of a member.
pub const ID_BYTES_MAX: usize = 64;

/// One part of the log, which has an order of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(pub u16);

impl Partition {
    /// The partition that a scope belongs to. It is the same on every node and in every version.
    ///
    /// # Panics
    /// If there are no partitions.
    pub fn of(scope: &[u8], partitions: u16) -> Self {
        // The remainder is less than the number of partitions, so it is a u16.
        Self((crc32fast::hash(scope) % u32::from(partitions)) as u16)
    }
}

/// The id of one unbroken numbering of a partition. It is random, and never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogEpoch(pub u64);

/// A point in a partition's order. Offsets begin at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogPosition {
    /// The epoch that the offset belongs to.
    pub epoch: LogEpoch,
    /// The number of the record within the epoch's numbering.
    pub offset: u64,
}

/// A record to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The scope that the record concerns. A node without subscribers in this scope need not read the
    /// body.
    pub scope: Bytes,
    /// The body.
    pub body: Bytes,
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The offset in its partition and epoch.
    pub offset: u64,
    /// The scope that the record concerns.
    pub scope: Bytes,
    /// The body.
    pub body: Bytes,
}

/// Records that are appended as a whole or not at all, at offsets that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The records. There may be none if there is a key: the log then only remembers the key.
    pub records: Vec<Record>,
    /// A condition of the append, or a change of members that is made in the same step.
    pub terms: Terms,
}

impl Append {
    /// Records without terms.
    pub fn records(records: Vec<Record>) -> Self {
        Self { records, terms: Terms::None }
    }

    /// The bytes that count against [`ENTRY_BYTES_MAX`].
    pub(super) fn bytes(&self) -> usize {
        let records = self.records.iter().map(|r| r.scope.len() + r.body.len() + 8);
        let terms = match &self.terms {
            Terms::None => 0,
            Terms::Once(key) => key.id.len() + key.note.len(),
            Terms::Member(MemberChange::Put { place, member, value, .. }) => {
                place.len() + member.len() + value.len()
            }
            Terms::Member(MemberChange::Remove { place, member }) => place.len() + member.len(),
        };
        records.sum::<usize>() + terms
    }

    /// Returns whether every part is within its bound.
    pub fn is_bounded(&self) -> bool {
        let scopes = self.records.iter().all(|record| record.scope.len() <= SCOPE_BYTES_MAX);
        let terms = match &self.terms {
            Terms::None => true,
            Terms::Once(key) => key.id.len() <= ID_BYTES_MAX,
            Terms::Member(
                MemberChange::Put { place, member, .. } | MemberChange::Remove { place, member },
            ) => place.len() <= SCOPE_BYTES_MAX && member.len() <= ID_BYTES_MAX,
        };
        let has_any = !self.records.is_empty() || matches!(self.terms, Terms::Once(_));
        let records = has_any && self.records.len() <= usize::from(u16::MAX);
        records && scopes && terms && self.bytes() <= ENTRY_BYTES_MAX
    }
}

/// The condition of an [`Append`], or the change of members that it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Terms {
    /// Neither.
    None,
    /// The records are appended only if the key is new.
    Once(OnceKey),
    /// The change is made in the same step.
    Member(MemberChange),
}

/// A key under which records are appended once. The log remembers it for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnceKey {
    /// The key, at most 64 bytes.
    pub id: Bytes,
    /// Bytes that are remembered with the key, and returned when the key is used again.
    pub note: Bytes,
    /// The time for which the key is remembered.
    pub ttl: Duration,
}

/// A change of the members of a place, which is in the partition to which the records are appended.
///
/// A member belongs to the node and the incarnation that put it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// Adds a member, or replaces its value.
    Put {
        /// The place, at most 1,024 bytes.
        place: Bytes,
        /// The name of the member, at most 64 bytes, unique on this node.
        member: Bytes,
        /// The member's value, which other nodes can read.
        value: Bytes,
        /// The number of members of the place, on all nodes, from which on a new member is refused.
        members_max: u32,
    },
    /// Removes a member, if it exists.
    Remove {
        /// The place.
        place: Bytes,
        /// The name of the member.
        member: Bytes,
    },
}

/// The outcome of an [`Append`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// The records are in the log, the first of them at this position. If there are none, the next record will
    /// have it.
    At(LogPosition),
    /// The key was used before. Nothing was appended.
    Repeated {
        /// The position of the first record that was appended with the key.
        at: LogPosition,
        /// The bytes that were remembered with the key.
        note: Bytes,
    },
}

/// The reason why records were not appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log did not acknowledge the records. They may be in it nevertheless.
    #[error("the engine is unavailable")]
    Unavailable,
    /// A bound of [`Append`], [`OnceKey`] or [`MemberChange`] is exceeded, or the append has neither records
    /// nor a key.
    #[error("the records are too large")]
    TooLarge,
    /// The place has its maximal number of members.
    #[error("the place has its maximum of members")]
    PlaceFull,
    /// The lease of this node's incarnation has expired. The follower is told when there is a new one.
    #[error("the lease of this node has run out")]
    Lapsed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_of_a_scope_never_changes() {
        let found = [&b"1:public"[..], b"1:private", b"2:public", b""];
        let found = found.map(|scope| Partition::of(scope, 16).0);
        assert_eq!(found, FOUND);
    }

    /// Nodes of different versions share a log, so these numbers are part of the wire format.
    const FOUND: [u16; 4] = [8, 5, 11, 0];
}
