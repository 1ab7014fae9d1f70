//! One budget for what all sessions hold of their clients' unfinished work.
//!
//! Unfinished is a message of which some bytes are missing, and a message that waits for its turn.
//! Clients need no right to make a session hold either, so all sessions together hold at most
//! `limits.unfinished_bytes_max`. Beyond it the session that holds the most is ended.
//!
//! The lock is taken only when a session's holding grows or shrinks by a whole [`STEP_BYTES`]: never
//! for a message that comes in one piece and is handled at once.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::broker::outbox::{Ending, Outbox};

/// Holdings are counted in steps of this size, rounded down: what a session holds below one step is
/// about as much as the session itself costs.
const STEP_BYTES: usize = 4 * 1024;

/// What all sessions hold of unfinished work, and how much that may be. Cheap to clone.
#[derive(Clone)]
pub struct Unfinished(Arc<Shared>);

struct Shared {
    bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    next_id: u64,
    /// By size, so that the largest is last; the number makes the key unique.
    holdings: BTreeMap<(usize, u64), Arc<Outbox>>,
}

impl Unfinished {
    /// Nothing is held yet, and never more than this.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shared { bytes_max, held: Mutex::default() }))
    }

    /// An empty holding of the session with this outbox.
    pub(super) fn hold(&self, outbox: &Arc<Outbox>) -> Holding {
        Holding { budget: self.clone(), outbox: outbox.clone(), id: None, bytes: 0 }
    }
}

impl fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unfinished").field("bytes_max", &self.0.bytes_max).finish_non_exhaustive()
    }
}

/// What one session holds in one place; given back on drop.
pub(super) struct Holding {
    budget: Unfinished,
    outbox: Arc<Outbox>,
    /// Its number in the budget, once it has been counted there.
    id: Option<u64>,
    /// As counted there.
    bytes: usize,
}

impl Holding {
    /// Notes that the session now holds this much. If that exceeds the budget, the largest holdings
    /// lose their sessions until the rest fits.
    pub(super) fn set(&mut self, bytes: usize) {
        let counted = bytes - bytes % STEP_BYTES;
        if counted == self.bytes {
            return;
        }
        let mut held = self.budget.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let id = *self.id.get_or_insert_with(|| {
            held.next_id += 1;
            held.next_id
        });
        held.remove((self.bytes, id));
        self.bytes = counted;
        // A session that is ended lets go of everything shortly, and is not chosen twice.
        if counted > 0 && self.outbox.ended().is_none() {
            held.bytes += counted;
            held.holdings.insert((counted, id), self.outbox.clone());
        }
        while held.bytes > self.budget.0.bytes_max {
            let Some(largest) = held.holdings.keys().next_back().copied() else { break };
            if let Some(outbox) = held.remove(largest) {
                outbox.end(Ending::Unfinished);
            }
        }
    }
}

impl Held {
    fn remove(&mut self, key: (usize, u64)) -> Option<Arc<Outbox>> {
        let removed = self.holdings.remove(&key);
        if removed.is_some() {
            self.bytes -= key.0;
        }
        removed
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{outbox::Load, subscriber::SessionId};

    fn outbox(id: u64) -> Arc<Outbox> {
        Outbox::new(SessionId(id), Load { frames: 10, bytes: 1_000 })
    }

    fn total(budget: &Unfinished) -> (usize, usize) {
        let held = budget.0.held.lock().expect("no panic holds it");
        (held.bytes, held.holdings.len())
    }

    #[test]
    fn the_largest_gives_way_whoever_comes_last() {
        let budget = Unfinished::new(10 * STEP_BYTES);
        let outboxes: Vec<_> = (1..=4).map(outbox).collect();
        let mut holdings: Vec<_> = outboxes.iter().map(|outbox| budget.hold(outbox)).collect();
        let ended = || outboxes.iter().map(|outbox| outbox.ended().is_some()).collect::<Vec<_>>();
        holdings[0].set(3 * STEP_BYTES);
        holdings[1].set(5 * STEP_BYTES);
        holdings[2].set(2 * STEP_BYTES);
        assert_eq!((total(&budget), ended()), ((10 * STEP_BYTES, 3), vec![false; 4]));
        holdings[3].set(STEP_BYTES);
        assert_eq!(ended(), [false, true, false, false]);
        assert_eq!(outboxes[1].ended(), Some(Ending::Unfinished));
        assert_eq!(total(&budget), (6 * STEP_BYTES, 3), "at once, before it has let go");
        holdings[1].set(9 * STEP_BYTES);
        assert_eq!(total(&budget), (6 * STEP_BYTES, 3), "one that is ended counts no more");
        holdings[2].set(11 * STEP_BYTES);
        assert_eq!(ended(), [false, true, true, false], "also the one that grows");
        drop(holdings);
        assert_eq!(total(&budget), (0, 0));
    }

    #[test]
    fn what_is_less_than_a_step_is_not_counted() {
        let budget = Unfinished::new(STEP_BYTES);
        let outbox = outbox(1);
        let mut holding = budget.hold(&outbox);
        for (bytes, counted) in [
            (1, (0, 0)),
            (STEP_BYTES - 1, (0, 0)),
            (STEP_BYTES, (STEP_BYTES, 1)),
            (2 * STEP_BYTES - 1, (STEP_BYTES, 1)),
            (0, (0, 0)),
        ] {
            holding.set(bytes);
            assert_eq!(total(&budget), counted, "{bytes}");
        }
        assert_eq!(outbox.ended(), None);
    }

    #[test]
    fn one_session_may_hold_in_several_places() {
        let budget = Unfinished::new(10 * STEP_BYTES);
        let outbox = outbox(1);
        let (mut one, mut other) = (budget.hold(&outbox), budget.hold(&outbox));
        one.set(STEP_BYTES);
        other.set(STEP_BYTES);
        assert_eq!(total(&budget), (2 * STEP_BYTES, 2));
        drop(one);
        assert_eq!(total(&budget), (STEP_BYTES, 1));
    }
}
