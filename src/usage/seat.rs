//! Seats: the numbers under which the nodes of a cluster count usage.
//!
//! The peaks of the nodes are added up, hour by hour. Nodes that live at the same time have different
//! seats, so that their peaks are. A node that starts takes the lowest seat that is free, most likely that
//! of a node that has stopped: so a server that restarts within an hour is not counted twice.

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
    /// The number; 0 for a server that shares its topics with no other, and until a node has a seat.
    pub fn number(&self) -> u16 {
        self.0.load(Relaxed)
    }

    /// Takes the lowest seat that none of these other nodes has, given as their numbers and seats. A node
    /// that has a seat keeps it, unless a node with a lower number has it, too.
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

    /// The name of the node in the database.
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
