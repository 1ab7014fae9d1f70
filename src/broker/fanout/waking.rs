//! Waking: the schedule by which the sessions of a thread begin to write the frames that they were
//! handed.

use std::{
    cell::{RefCell, RefMut},
    collections::VecDeque,
    task::Waker,
};

use indexmap::IndexMap;
use rustc_hash::FxBuildHasher;

use crate::app::AppId;

/// The cost of the sessions that are woken in one round, in frames: about 100 µs. The next request
/// of a publisher and the next publication of another app wait for the writes to these sessions, and not
/// for those to all sessions.
const COST_PER_ROUND: usize = 336;

/// The cost of a write in addition to its frames, in frames. A write of one frame takes about 6 µs, and one of
/// 100 frames about 30 µs.
const COST_PER_WRITE: usize = 20;

/// The number of sessions that are woken in one round if this number of frames waits for each of them.
#[cfg(test)]
pub(super) fn sessions_per_round(frames: usize) -> usize {
    COST_PER_ROUND.div_ceil(COST_PER_WRITE + frames)
}

/// The sessions that have been handed frames and have yet to be woken for them. Their apps take turns.
///
/// A session that is woken writes all frames that wait for it, which takes about a hundred times as long as
/// it took to hand them out. Once the sessions of a round have written, the thread looks at its sockets for
/// new requests, and the next round begins.
///
/// Frames therefore leave together wherever they can: a publication that arrives during a round is
/// handed out before the next one, and all sessions that wait here write it together with the frames
/// that they wait for. If all sessions were woken at once, the thread would read a publisher's next
/// request only after it had written to each of them, and each frame would leave alone. Frames are not
/// delayed for this: on an idle thread, a session is woken as soon as it is handed a frame.
pub(super) struct Waking {
    /// The wakers of each app that has any, in the order in which its sessions were handed frames.
    waiting: IndexMap<AppId, VecDeque<Waker>, FxBuildHasher>,
    /// The index in `waiting` of the app whose turn it is.
    turn: usize,
    /// The wakers that were added since the last `take_new`.
    new: RefCell<Vec<Waker>>,
    /// The cost of the sessions that were woken in this round.
    spent: usize,
}

impl Waking {
    /// Begins without sessions.
    pub(super) fn new() -> Self {
        Self { waiting: IndexMap::default(), turn: 0, new: RefCell::default(), spent: 0 }
    }

    /// Returns whether no session waits to be woken.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns whether sessions of an app wait to be woken.
    pub(super) fn has(&self, app: AppId) -> bool {
        self.waiting.contains_key(&app)
    }

    /// The list to which the wakers of a group are added while the group is handed a frame.
    pub(super) fn new_wakers(&self) -> RefMut<'_, Vec<Waker>> {
        self.new.borrow_mut()
    }

    /// Enqueues the sessions whose wakers were added, which are of this app. Returns their number.
    pub(super) fn take_new(&mut self, app: AppId) -> usize {
        let new = self.new.get_mut();
        let sessions = new.len();
        if sessions > 0 {
            self.waiting.entry(app).or_default().extend(new.drain(..));
        }
        sessions
    }

    /// Begins a round.
    pub(super) fn begin_round(&mut self) {
        self.spent = 0;
    }

    /// Wakes as many sessions as fit into this round; their apps take turns. `frames` returns the number of
    /// frames that wait for each session of an app, or `None` if the app's sessions must wait longer.
    pub(super) fn wake_some(&mut self, frames: impl Fn(AppId) -> Option<usize>) {
        let mut passed_over = 0;
        while self.spent < COST_PER_ROUND && passed_over < self.waiting.len() {
            let is_alone = self.waiting.len() == 1;
            self.turn %= self.waiting.len();
            let Some((app, wakers)) = self.waiting.get_index_mut(self.turn) else { return };
            let Some(frames) = frames(*app) else {
                (self.turn, passed_over) = (self.turn + 1, passed_over + 1);
                continue;
            };
            passed_over = 0;
            let cost = COST_PER_WRITE + frames;
            // If no other app waits, this app has all turns, and `frames` is called once for them.
            let turns = if is_alone { (COST_PER_ROUND - self.spent).div_ceil(cost) } else { 1 };
            let sessions = turns.min(wakers.len());
            wakers.drain(..sessions).for_each(Waker::wake);
            self.spent += sessions * cost;
            if wakers.is_empty() {
                self.waiting.swap_remove_index(self.turn);
            } else {
                self.turn += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        task::Wake,
    };

    use super::*;

    /// Notes its app when it is woken.
    struct Noting(AppId, Arc<Mutex<Vec<AppId>>>);

    impl Wake for Noting {
        fn wake(self: Arc<Self>) {
            self.1.lock().expect("no panic").push(self.0);
        }
    }

    /// A schedule with this number of sessions of each app, and the apps of the sessions that were woken.
    fn waking(sessions: &[(AppId, usize)]) -> (Waking, Arc<Mutex<Vec<AppId>>>) {
        let (mut waking, woken) = (Waking::new(), Arc::default());
        for (app, sessions) in sessions {
            let waker = Waker::from(Arc::new(Noting(*app, Arc::clone(&woken))));
            waking.new_wakers().extend(std::iter::repeat_n(waker, *sessions));
            assert_eq!(waking.take_new(*app), *sessions);
        }
        (waking, woken)
    }

    #[test]
    fn apps_take_turns_and_each_round_wakes_what_it_can_afford() {
        const FRAMES: usize = 3;
        let [many, few, last] = [1, 2, 3].map(AppId);
        let (mut waking, woken) = waking(&[(many, 100), (few, 2), (last, 5)]);
        let per_round = sessions_per_round(FRAMES);
        for round in 1.. {
            waking.begin_round();
            // The second time there is nothing left to spend.
            waking.wake_some(|_| Some(FRAMES));
            waking.wake_some(|_| Some(FRAMES));
            let woken = woken.lock().expect("no panic");
            assert_eq!(woken.len(), 107.min(round * per_round));
            if round == 1 {
                let of = |app| woken.iter().filter(|woken| **woken == app).count();
                assert_eq!([many, few, last].map(of), [8, 2, 5]);
                assert_eq!(woken[..3], [many, few, last]);
            }
            if waking.is_empty() {
                break;
            }
        }
        assert!(![many, few, last].into_iter().any(|app| waking.has(app)));
    }

    #[test]
    fn an_app_whose_sessions_wait_longer_does_not_hold_up_the_others() {
        let [held, free] = [1, 2].map(AppId);
        let (mut waking, woken) = waking(&[(held, 3), (free, 2)]);
        let may = |app| (app == free).then_some(1);
        waking.wake_some(may);
        assert_eq!(*woken.lock().expect("no panic"), [free, free]);
        assert!(waking.has(held) && !waking.has(free));
        waking.wake_some(may);
        assert_eq!(woken.lock().expect("no panic").len(), 2);
        waking.wake_some(|_| Some(1));
        assert_eq!(woken.lock().expect("no panic")[2..], [held; 3]);
        assert!(waking.is_empty());
    }
}
