//! Seats: the numbers under which the nodes of a cluster count usage.
//!
//! An hour's peak of connections is the sum of the peaks of all seats. Nodes that live at the same time
//! have different seats, so their peaks are added. A node that starts takes the lowest free seat, which
//! is usually that of the node that stopped last: the peaks before and after a restart within one hour
//! then belong to one seat, and are not added.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
};

/// The seat of this node. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Seat(Arc<AtomicU16>);

impl Seat {
    /// The number. It is 0 for a server that is not part of a cluster, and for a node that has no seat
    /// yet.
    pub fn number(&self) -> u16 {
        self.0.load(Relaxed)
    }

    /// Takes the lowest seat that none of the other nodes has. `own` is the number of this node, and
    /// `others` yields the number and the seat of each other node. A node that has a seat keeps it,
    /// unless a node with a lower number has the same one.
    pub fn take(&self, own: u16, others: impl Iterator<Item = (u16, u16)>) {
        let others: Vec<_> = others.collect();
        let seat = self.number();
        let is_mine = !others.iter().any(|(node, taken)| *taken == seat && *node < own);
        if seat != 0 && is_mine {
            return;
        }
        let taken: BTreeSet<_> = others.iter().map(|(_, taken)| *taken).collect();
        let free = (1..=u16::MAX).find(|seat| !taken.contains(seat));
        self.0.store(free.unwrap_or(u16::MAX), Relaxed);
    }

    /// The name under which the database keeps this node's rows: the seat, or an empty text without one.
    pub(super) fn name(&self) -> String {
        match self.number() {
            0 => String::new(),
            seat => seat.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_takes_the_lowest_free_seat_and_keeps_it_unless_a_lower_node_has_it() {
        let seat = Seat::default();
        assert_eq!((seat.number(), seat.name()), (0, String::new()));
        for (others, expected) in [
            (&[(9, 1), (8, 3)][..], 2),
            (&[(9, 0)], 2),
            (&[(9, 2)], 2),
            (&[(4, 2), (3, 1)], 3),
            (&[], 3),
        ] {
            seat.take(7, others.iter().copied());
            assert_eq!(seat.number(), expected, "{others:?}");
        }
        assert_eq!(seat.clone().name(), "3");
    }
}
