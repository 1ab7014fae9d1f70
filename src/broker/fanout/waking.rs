//! Waking: the schedule by which the sessions of a thread begin to write the frames that they were
//! handed.

use std::{
    cell::{RefCell, RefMut},
    task::Waker,
};

use super::super::turns::Turns;
use crate::app::AppId;

/// The cost of the sessions that are woken in one round, in frames: about 100 µs. The next
/// publication of another app waits behind this many writes, and not behind all those of a busy
/// app.
pub(super) const COST_PER_ROUND: usize = 96;

/// The cost of a write beside its frames, in frames.
pub(super) const COST_PER_WRITE: usize = 5;

/// The sessions that have been handed something and have yet to be woken for it, by turns of their
/// apps.
///
/// A session that is woken writes all that waits for it, which takes a hundred times as long as it took
/// to hand it out. Once the sessions of a round have written, the thread looks for what has arrived at
/// its sockets, and the next round begins.
pub(super) struct Waking {
    waiting: Turns<(AppId, Waker)>,
    /// The number of wakers that the last group has added.
    new: RefCell<Vec<Waker>>,
    /// The cost of those woken in this round.
    spent: usize,
}

impl Waking {
    /// No session waits.
    pub(super) fn new() -> Self {
        Self { waiting: Turns::new(), new: RefCell::default(), spent: 0 }
    }

    /// Whether no session waits to be woken.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether sessions of an app wait to be woken.
    pub(super) fn has(&self, app: AppId) -> bool {
        self.waiting.has(app)
    }

    /// The wakers of a group that is being handed something are added here.
    pub(super) fn new_wakers(&self) -> RefMut<'_, Vec<Waker>> {
        self.new.borrow_mut()
    }

    /// Enqueues the added sessions of a group of this app. Answers their number.
    pub(super) fn take_new(&mut self, app: AppId) -> usize {
        let new = self.new.get_mut();
        let sessions = new.len();
        if sessions > 0 {
            self.waiting.extend(app, new.drain(..).map(|waker| (app, waker)));
        }
        sessions
    }

    /// Begins a round.
    pub(super) fn begin_round(&mut self) {
        self.spent = 0;
    }

    /// Wakes all sessions of the apps that `may` picks.
    pub(super) fn wake_all(&mut self, may: impl Fn(AppId) -> bool) {
        while let Some((_, waker)) = self.waiting.next(&may) {
            waker.wake();
        }
    }

    /// Wakes as many sessions as fit into this round, by turns of their apps. `frames` answers how many
    /// frames wait for each session of an app; `None` if the app's sessions wait longer.
    pub(super) fn wake_some(&mut self, frames: impl Fn(AppId) -> Option<usize>) {
        while self.spent < COST_PER_ROUND
            && let Some((app, waker)) = self.waiting.next(|app| frames(app).is_some())
        {
            waker.wake();
            self.waiting.pass();
            self.spent += COST_PER_WRITE + frames(app).unwrap_or_default();
        }
    }
}
