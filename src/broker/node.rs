//! Nodes: the servers of a cluster.

pub use crate::engine::NodeId;

impl NodeId {
    /// The number of a server without a cluster.
    pub const ONLY: Self = Self(0);

    /// The number of bits that count within a node. The higher bits are the number of the node.
    const BITS: u32 = u64::BITS - u16::BITS;

    /// The `nth` id of this node, which no other node gives. A server without a cluster counts from zero.
    pub(super) fn number(self, nth: u64) -> u64 {
        debug_assert!(nth >> Self::BITS == 0, "a node gives fewer ids than these bits can count");
        u64::from(self.0) << Self::BITS | nth
    }

    /// The node that gave an id.
    pub(super) fn of(number: u64) -> Self {
        Self((number >> Self::BITS) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_its_node_and_the_only_server_counts_from_zero() {
        for (node, nth, number) in [
            (NodeId::ONLY, 0, 0),
            (NodeId::ONLY, 7, 7),
            (NodeId(1), 0, 1 << 48),
            (NodeId(1), 7, (1 << 48) + 7),
            (NodeId(u16::MAX), (1 << 48) - 1, u64::MAX),
        ] {
            assert_eq!((node.number(nth), NodeId::of(number)), (number, node));
        }
    }
}
