//! One budget for the unfinished work of all clients.
//!
//! Unfinished work is the bytes of incomplete messages and request heads, and of messages and requests that
//! wait for their turn. Clients need no authentication to make the server hold them, so all clients together
//! hold at most `limits.unfinished_bytes_max`. Beyond it, the client that holds the most is ended.
//!
//! One atomic number counts all bytes. The largest holding is found in a ranking behind a lock, which is
//! taken only when a holding grows or shrinks by a whole step: never for a message that arrives in one piece
//! and is handled at once, and hardly ever for small ones. Once half of the budget is used, the steps are
//! small, so that there is always a ranked holding to end.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicIsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use crate::broker::outbox::{Ending, Outbox};

/// The size of the steps in which holdings are ranked, rounded down.
const STEP_BYTES: usize = 4 * 1024;

/// The size of the steps once half of the budget is used.
const SMALL_STEP_BYTES: usize = 256;

/// The fraction (1/4) of the budget that clients which were told to end may hold before the others wait for
/// them.
const LEAVING_SHARE: isize = 4;

/// A client that holds unfinished work.
pub(super) trait Holder: Send + Sync {
    /// Ends the client's session or connection, because it holds the most while all together hold too much.
    fn give_way(&self);
}

impl Holder for Outbox {
    fn give_way(&self) {
        self.end(Ending::Unfinished);
    }
}

/// The bytes that all clients hold of unfinished work, and their limit. Cheap to clone.
#[derive(Clone)]
pub struct Unfinished(Arc<Shared>);

struct Shared {
    bytes_max: isize,
    /// The bytes of all holdings that have not been told to give way. The value may be negative for
    /// a moment, because a holding that shrinks may have been subtracted already.
    bytes: AtomicIsize,
    /// The ranks of all holdings that were told to give way, added up: the bytes that they hold at least. A
    /// rank is subtracted when its holding is dropped.
    leaving_bytes: AtomicIsize,
    ranking: Mutex<Ranking>,
}

#[derive(Default)]
struct Ranking {
    next_id: u64,
    /// The holdings by size, so that the largest is last. The number makes the key unique.
    holdings: BTreeMap<(usize, u64), Arc<dyn Holder>>,
}

impl Unfinished {
    /// An unused budget of `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        let bytes_max = isize::try_from(bytes_max).unwrap_or(isize::MAX);
        Self(Arc::new(Shared {
            bytes_max,
            bytes: AtomicIsize::new(0),
            leaving_bytes: AtomicIsize::new(0),
            ranking: Mutex::default(),
        }))
    }

    /// Returns whether the clients that were told to end still hold much. Until they have released it, others
    /// should not read, because all together would exceed the budget.
    pub(super) fn is_congested(&self) -> bool {
        self.0.leaving_bytes.load(Relaxed) > self.0.bytes_max / LEAVING_SHARE
    }

    /// The bytes of all holdings that have not been told to give way.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> isize {
        self.0.bytes.load(Relaxed)
    }

    /// An empty holding of this client.
    pub(super) fn hold(&self, holder: Arc<dyn Holder>) -> Holding {
        Holding { budget: self.clone(), holder, id: None, bytes: 0, rank: 0, gave_way: false }
    }
}

impl Shared {
    /// Adds to the held bytes, or subtracts from them, and returns the result.
    fn add(&self, bytes: isize) -> isize {
        self.bytes.fetch_add(bytes, Relaxed) + bytes
    }

    /// The rank of a holding of `bytes` while all holdings have `held` bytes; 0 if it is not ranked.
    fn rank_of(&self, bytes: usize, held: isize) -> usize {
        let step = if held > self.bytes_max / 2 { SMALL_STEP_BYTES } else { STEP_BYTES };
        bytes - bytes % step
    }
}

impl fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unfinished").field("bytes_max", &self.0.bytes_max).finish_non_exhaustive()
    }
}

/// The bytes that one client holds in one of its buffers or queues. Dropping this gives them back.
pub(super) struct Holding {
    budget: Unfinished,
    holder: Arc<dyn Holder>,
    /// The number of the holding in the ranking, once it has been ranked.
    id: Option<u64>,
    bytes: usize,
    /// The size by which it is ranked; 0 if it is not.
    rank: usize,
    /// Whether it no longer counts, because its client releases everything shortly.
    gave_way: bool,
}

impl Holding {
    /// Notes that this holding now has `bytes`. If that exceeds the budget, the clients with the largest
    /// holdings are told to end until the rest fits.
    pub(super) fn set(&mut self, bytes: usize) {
        if self.gave_way || bytes == self.bytes {
            return;
        }
        let shared = &self.budget.0;
        let held = shared.add(signed(bytes) - signed(self.bytes));
        self.bytes = bytes;
        let rank = shared.rank_of(bytes, held);
        if rank == self.rank && held <= shared.bytes_max {
            return;
        }
        let mut ranking = shared.ranking.lock();
        let id = *self.id.get_or_insert_with(|| {
            ranking.next_id += 1;
            ranking.next_id
        });
        if self.rank > 0 && ranking.holdings.remove(&(self.rank, id)).is_none() {
            // The holding was told to give way, and its bytes were subtracted then.
            shared.add(signed(self.rank) - signed(bytes));
            self.gave_way = true;
            return;
        }
        self.rank = rank;
        if rank > 0 {
            ranking.holdings.insert((rank, id), self.holder.clone());
        }
        while shared.bytes.load(Relaxed) > shared.bytes_max {
            let Some(((rank, _), largest)) = ranking.holdings.pop_last() else {
                // No holding is ranked, so all others are tiny, and this one must end.
                self.holder.give_way();
                return;
            };
            shared.add(-signed(rank));
            shared.leaving_bytes.fetch_add(signed(rank), Relaxed);
            largest.give_way();
        }
    }
}

/// A size in memory, which always fits.
fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.set(0);
        if self.gave_way {
            self.budget.0.leaving_bytes.fetch_sub(signed(self.rank), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{outbox::Load, subscriber::SessionId};

    fn outbox(id: u64) -> Arc<Outbox> {
        Outbox::new(SessionId(id), Load { frames: 10, bytes: 1_000 })
    }

    fn held(budget: &Unfinished) -> isize {
        budget.0.bytes.load(Relaxed)
    }

    /// The number of ranked holdings.
    fn ranked(budget: &Unfinished) -> usize {
        budget.0.ranking.lock().holdings.len()
    }

    #[test]
    fn the_largest_gives_way_whichever_comes_last() {
        const STEP: isize = STEP_BYTES as isize;
        let budget = Unfinished::new(10 * STEP_BYTES);
        let outboxes: Vec<_> = (1..=4).map(outbox).collect();
        let mut holdings: Vec<_> =
            outboxes.iter().map(|outbox| budget.hold(outbox.clone())).collect();
        let ended = || outboxes.iter().map(|outbox| outbox.ended().is_some()).collect::<Vec<_>>();
        holdings[0].set(3 * STEP_BYTES);
        holdings[1].set(5 * STEP_BYTES);
        holdings[2].set(2 * STEP_BYTES);
        assert_eq!((held(&budget), ended()), (10 * STEP, vec![false; 4]));
        holdings[3].set(STEP_BYTES);
        assert_eq!(ended(), [false, true, false, false]);
        assert_eq!(outboxes[1].ended(), Some(Ending::Unfinished));
        assert_eq!(held(&budget), 6 * STEP, "at once, before it has let go");
        holdings[1].set(9 * STEP_BYTES);
        assert_eq!(held(&budget), 6 * STEP, "one that is ended counts no more");
        holdings[2].set(11 * STEP_BYTES);
        assert_eq!(ended(), [false, true, true, false], "also the one that grows");
        drop(holdings);
        assert_eq!((held(&budget), ranked(&budget)), (0, 0));
    }

    #[test]
    fn the_others_wait_while_clients_that_gave_way_hold_more_than_a_quarter_of_the_budget() {
        let budget = Unfinished::new(12 * STEP_BYTES);
        let outboxes: Vec<_> = (1..=6).map(outbox).collect();
        let mut holdings: Vec<_> =
            outboxes.iter().map(|outbox| Some(budget.hold(outbox.clone()))).collect();
        let ended = || outboxes.iter().filter(|outbox| outbox.ended().is_some()).count();
        let mut hold = |nth: usize, bytes| {
            let holding: &mut Option<Holding> = &mut holdings[nth];
            holding.as_mut().expect("a holding").set(bytes);
        };
        (0..4).for_each(|nth| hold(nth, 3 * STEP_BYTES));
        hold(4, 1);
        assert_eq!((ended(), budget.is_congested()), (1, false), "a quarter");
        hold(5, 3 * STEP_BYTES);
        assert_eq!((ended(), budget.is_congested()), (2, true), "more than a quarter");
        for (outbox, holding) in outboxes.iter().zip(&mut holdings) {
            holding.take_if(|_| outbox.ended().is_some());
        }
        assert!(!budget.is_congested(), "they have released it");
        drop(holdings);
        assert_eq!((held(&budget), ranked(&budget)), (0, 0));
    }

    #[test]
    fn every_byte_is_counted_and_only_whole_steps_are_ranked() {
        let budget = Unfinished::new(10 * STEP_BYTES);
        let outbox = outbox(1);
        let mut holding = budget.hold(outbox.clone());
        for (bytes, is_ranked) in [
            (1, false),
            (STEP_BYTES - 1, false),
            (STEP_BYTES, true),
            (2 * STEP_BYTES - 1, true),
            (3, false),
            (0, false),
        ] {
            holding.set(bytes);
            assert_eq!(held(&budget), signed(bytes), "{bytes}");
            assert_eq!(ranked(&budget), usize::from(is_ranked), "{bytes}");
        }
        assert_eq!(outbox.ended(), None);
    }

    #[test]
    fn many_small_holdings_fill_the_budget_and_the_largest_of_them_give_way() {
        const SMALL: usize = STEP_BYTES - 1;
        let budget = Unfinished::new(100 * SMALL);
        let outboxes: Vec<_> = (0..200).map(outbox).collect();
        let mut holdings: Vec<_> =
            outboxes.iter().map(|outbox| budget.hold(outbox.clone())).collect();
        for holding in &mut holdings[1..] {
            holding.set(SMALL);
            assert!(held(&budget) <= budget.0.bytes_max);
        }
        let ended = outboxes.iter().filter(|outbox| outbox.ended().is_some()).count();
        assert!((99..=110).contains(&ended), "{ended}");
        // A client that holds less than these is not the one that gives way.
        holdings[0].set(SMALL / 2);
        assert_eq!(outboxes[0].ended(), None);
        drop(holdings);
        assert_eq!((held(&budget), ranked(&budget)), (0, 0));
    }

    #[test]
    fn where_nothing_is_ranked_the_one_that_comes_last_gives_way() {
        let budget = Unfinished::new(10);
        let outboxes = [outbox(1), outbox(2)];
        let mut holdings = outboxes.clone().map(|outbox| budget.hold(outbox));
        holdings[0].set(6);
        holdings[1].set(6);
        assert_eq!(outboxes.map(|outbox| outbox.ended()), [None, Some(Ending::Unfinished)]);
        drop(holdings);
        assert_eq!(held(&budget), 0);
    }

    #[test]
    fn one_session_may_hold_in_several_places() {
        let budget = Unfinished::new(10 * STEP_BYTES);
        let outbox = outbox(1);
        let (mut one, mut other) = (budget.hold(outbox.clone()), budget.hold(outbox));
        one.set(STEP_BYTES);
        other.set(STEP_BYTES);
        assert_eq!((held(&budget), ranked(&budget)), (2 * signed(STEP_BYTES), 2));
        drop(one);
        assert_eq!((held(&budget), ranked(&budget)), (signed(STEP_BYTES), 1));
    }

    #[test]
    fn threads_that_hold_and_let_go_at_once_leave_nothing() {
        let budget = Unfinished::new(10 * STEP_BYTES);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let budget = &budget;
                scope.spawn(move || {
                    for n in 0..2_000 {
                        let mut holding = budget.hold(outbox(thread));
                        holding.set(n * 37 % (6 * STEP_BYTES));
                        holding.set(n * 91 % (3 * STEP_BYTES));
                    }
                });
            }
        });
        assert_eq!((held(&budget), ranked(&budget)), (0, 0));
    }
}
