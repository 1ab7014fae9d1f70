//! Serving: the schedule by which the frames that sessions were handed are written.

use std::{
    cell::{RefCell, RefMut},
    collections::VecDeque,
    sync::Arc,
};

use indexmap::IndexMap;
use rustc_hash::FxBuildHasher;

use crate::{app::AppId, broker::outbox::Outbox};

/// The cost of the sessions that are served in one round, in frames: about 100 µs. The next request
/// of a publisher and the next publication of another app wait for the writes to these sessions, and not
/// for those to all sessions.
const COST_PER_ROUND: usize = 336;

/// The cost of a write in addition to its frames, in frames. A write of one frame takes about 6 µs, and one of
/// 100 frames about 30 µs.
const COST_PER_WRITE: usize = 20;

/// The number of sessions that are served in one round if this number of frames waits for each of them.
#[cfg(test)]
pub(super) fn sessions_per_round(frames: usize) -> usize {
    COST_PER_ROUND.div_ceil(COST_PER_WRITE + frames)
}

/// The sessions that have been handed frames and have yet to be served. Their apps take turns.
///
/// To serve a session is to write all frames that wait for it, or to wake it so that it does this itself. This takes
/// about a hundred times as long as it took to hand the frames out. Once the sessions of a round have been served,
/// the thread looks at its sockets for new requests, and the next round begins.
///
/// Frames therefore leave together wherever they can: a publication that arrives during a round is
/// handed out before the next one, and to all sessions that wait here it is written together with the frames
/// that they wait for. If all sessions were served at once, the thread would read a publisher's next
/// request only after it had written to each of them, and each frame would leave alone. Frames are not
/// delayed for this: on an idle thread, a session is served as soon as it is handed a frame.
pub(super) struct Serving {
    /// The outboxes of the sessions of each app that has any, in the order in which these were handed frames.
    waiting: IndexMap<AppId, VecDeque<Arc<Outbox>>, FxBuildHasher>,
    /// The index in `waiting` of the app whose turn it is.
    turn: usize,
    /// The outboxes that were added since the last `take_new`.
    new: RefCell<Vec<Arc<Outbox>>>,
    /// The cost of the sessions that were served in this round.
    spent: usize,
}

impl Serving {
    /// Begins without sessions.
    pub(super) fn new() -> Self {
        Self { waiting: IndexMap::default(), turn: 0, new: RefCell::default(), spent: 0 }
    }

    /// Returns whether no session waits to be served.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns whether sessions of an app wait to be served.
    pub(super) fn has(&self, app: AppId) -> bool {
        self.waiting.contains_key(&app)
    }

    /// The list to which the idle sessions of a group are added while the group is handed a frame.
    pub(super) fn new_sessions(&self) -> RefMut<'_, Vec<Arc<Outbox>>> {
        self.new.borrow_mut()
    }

    /// Enqueues the sessions that were added, which are of this app. Returns their number.
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

    /// Calls `serve` for as many sessions as fit into this round; their apps take turns. `frames` returns the number
    /// of frames that wait for each session of an app, which `serve` is passed, or `None` if the app's sessions must
    /// wait longer.
    pub(super) fn serve_some(
        &mut self,
        frames: impl Fn(AppId) -> Option<usize>,
        serve: impl Fn(&Outbox, usize),
    ) {
        let mut passed_over = 0;
        while self.spent < COST_PER_ROUND && passed_over < self.waiting.len() {
            let is_alone = self.waiting.len() == 1;
            self.turn %= self.waiting.len();
            let Some((app, outboxes)) = self.waiting.get_index_mut(self.turn) else { return };
            let Some(frames) = frames(*app) else {
                (self.turn, passed_over) = (self.turn + 1, passed_over + 1);
                continue;
            };
            passed_over = 0;
            let cost = COST_PER_WRITE + frames;
            // If no other app waits, this app has all turns, and `frames` is called once for them.
            let turns = if is_alone { (COST_PER_ROUND - self.spent).div_ceil(cost) } else { 1 };
            let sessions = turns.min(outboxes.len());
            outboxes.drain(..sessions).for_each(|outbox| serve(&outbox, frames));
            self.spent += sessions * cost;
            if outboxes.is_empty() {
                self.waiting.swap_remove_index(self.turn);
            } else {
                self.turn += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{outbox::Load, subscriber::SessionId};

    /// A schedule with this number of sessions of each app. The id of each session is that of its app.
    fn serving(sessions: &[(AppId, usize)]) -> Serving {
        let mut serving = Serving::new();
        for &(app, sessions) in sessions {
            let outbox = Outbox::new(SessionId(app.0 as u64), Load::default());
            serving.new_sessions().extend(std::iter::repeat_n(outbox, sessions));
            assert_eq!(serving.take_new(app), sessions);
        }
        serving
    }

    /// Serves sessions in a round, and returns their apps.
    fn served(serving: &mut Serving, frames: impl Fn(AppId) -> Option<usize>) -> Vec<AppId> {
        let served = RefCell::new(Vec::new());
        serving.serve_some(frames, |outbox, _| {
            served.borrow_mut().push(AppId(outbox.session().0 as _));
        });
        served.take()
    }

    #[test]
    fn apps_take_turns_and_each_round_serves_what_it_can_afford() {
        const FRAMES: usize = 3;
        let [many, few, last] = [1, 2, 3].map(AppId);
        let mut serving = serving(&[(many, 100), (few, 2), (last, 5)]);
        let (per_round, mut all) = (sessions_per_round(FRAMES), Vec::new());
        for round in 1.. {
            serving.begin_round();
            all.extend(served(&mut serving, |_| Some(FRAMES)));
            assert_eq!(
                served(&mut serving, |_| Some(FRAMES)),
                [],
                "there is nothing left to spend"
            );
            assert_eq!(all.len(), 107.min(round * per_round));
            if round == 1 {
                let of = |app| all.iter().filter(|served| **served == app).count();
                assert_eq!([many, few, last].map(of), [8, 2, 5]);
                assert_eq!(all[..3], [many, few, last]);
            }
            if serving.is_empty() {
                break;
            }
        }
        assert!(![many, few, last].into_iter().any(|app| serving.has(app)));
    }

    #[test]
    fn an_app_whose_sessions_wait_longer_does_not_hold_up_the_others() {
        let [held, free] = [1, 2].map(AppId);
        let mut serving = serving(&[(held, 3), (free, 2)]);
        let may = |app| (app == free).then_some(1);
        assert_eq!(served(&mut serving, may), [free, free]);
        assert!(serving.has(held) && !serving.has(free));
        assert_eq!(served(&mut serving, may), []);
        assert_eq!(served(&mut serving, |_| Some(1)), [held; 3]);
        assert!(serving.is_empty());
    }
}
