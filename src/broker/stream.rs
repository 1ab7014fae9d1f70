//! A stream: the one order of a scope, and the threads that hear it.
//!
//! A publication takes its place and is handed to the fan-outs in one critical section that never
//! waits. So publications lie in the mailbox of each fan-out in the order of their offsets, and a
//! thread hears everything that comes after the head at which it was opened. No actor stands between
//! a publisher and the fan-outs: none has to be started first, and none can be lost together with
//! publications that were accepted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::{dev::ToEnvelope, prelude::*};

use super::{
    announcement::Announcement,
    backlog::Backlog,
    fanout::{Announce, Dispatch, Fanout, TrackerLost, WorkerId},
    history::{History, Retention},
    placed::{Accepted, Batch, Placed},
    position::{Epoch, StreamPosition},
    subscriber::ScopeKey,
    tracker::Tracker,
};

/// The order of one scope. It lives while a thread hears it or something is retained.
pub(super) struct Stream {
    key: ScopeKey,
    backlog: Backlog,
    state: Mutex<State>,
}

struct State {
    history: History,
    /// The fan-outs that have subscribers. As many as there are threads at most.
    threads: Vec<(WorkerId, Addr<Fanout>)>,
    /// Tracks members, once there has been one. It ends when this, its only permanent address, is
    /// dropped.
    tracker: Option<Addr<Tracker>>,
}

impl Stream {
    /// Begins an order that no thread hears yet.
    pub(super) fn new(key: ScopeKey, epoch: Epoch, backlog: Backlog) -> Self {
        let history = History::new(epoch);
        let state = Mutex::new(State { history, threads: Vec::new(), tracker: None });
        Self { key, backlog, state }
    }

    /// The scope.
    pub(super) fn key(&self) -> &ScopeKey {
        &self.key
    }

    /// Gives publications of this scope their places in the order and hands them to the threads that
    /// hear it. Adds the places to `positions`.
    pub(super) fn publish(
        &self,
        number: u64,
        accepted: Vec<Accepted>,
        positions: &mut Vec<StreamPosition>,
    ) {
        let mut state = self.state();
        let place = |Accepted { publication, flight }| {
            // Nothing is retained yet.
            let entry = state.history.append(publication, flight.taken_at(), &Retention::NONE);
            positions.push(entry.position);
            Placed::new(entry, flight, self.backlog.clone())
        };
        let publications = accepted.into_iter().map(place).collect();
        let batch = Arc::new(Batch { number, key: self.key.clone(), publications });
        state.hand_out(|| Dispatch(batch.clone()));
    }

    /// Hands an announcement to the threads that hear this scope: all members are told in the same
    /// order, also in relation to publications.
    pub(super) fn announce(&self, announcement: Announcement) {
        let announcement = Arc::new(announcement);
        self.state().hand_out(|| Announce(announcement.clone()));
    }

    /// Hands everything that comes from now on to the fan-out of a thread. Answers the position of
    /// the newest publication, which is the last one that the thread is not handed.
    pub(super) fn open(&self, worker: WorkerId, fanout: Addr<Fanout>) -> StreamPosition {
        let mut state = self.state();
        state.threads.retain(|(opened, _)| *opened != worker);
        state.threads.push((worker, fanout));
        state.history.head()
    }

    /// Hands a thread nothing any more. Answers whether the stream is needed no longer.
    pub(super) fn close(&self, worker: WorkerId) -> bool {
        let mut state = self.state();
        state.threads.retain(|(opened, _)| *opened != worker);
        state.threads.is_empty() && state.history.is_empty()
    }

    /// The position of the newest publication.
    #[cfg(test)]
    pub(super) fn head(&self) -> StreamPosition {
        self.state().history.head()
    }

    /// The actor that tracks members here, if there has been one to track.
    pub(super) fn tracker(&self) -> Option<Addr<Tracker>> {
        self.state().tracker.clone()
    }

    /// Tells the tracker something, if there is one.
    pub(super) fn tell_tracker<M>(&self, message: M)
    where
        M: Message<Result: Send> + Send + 'static,
        Tracker: Handler<M>,
        Context<Tracker>: ToEnvelope<Tracker, M>,
    {
        if let Some(tracker) = &self.state().tracker {
            tracker.do_send(message);
        }
    }

    /// The actor that tracks members here; `start` starts it for the first one, or if the thread of
    /// the last one has ended. `None` if it cannot be started.
    pub(super) fn tracker_or_start(
        &self,
        start: impl FnOnce() -> Option<Addr<Tracker>>,
    ) -> Option<Addr<Tracker>> {
        let mut state = self.state();
        if !state.tracker.as_ref().is_some_and(Addr::connected) {
            state.tracker = start();
        }
        state.tracker.clone()
    }

    /// A panic has ended the tracker: another takes its place with the next member, and the threads
    /// end the sessions that were tracked.
    pub(super) fn tracker_lost(&self) {
        let mut state = self.state();
        state.tracker = None;
        state.hand_out(|| TrackerLost(self.key.clone()));
    }

    /// The state; a panic beside it does not break it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hand_out<M>(&self, message: impl Fn() -> M)
    where
        M: Message<Result = ()> + Send + 'static,
        Fanout: Handler<M>,
        Context<Fanout>: ToEnvelope<Fanout, M>,
    {
        for (_, fanout) in &self.threads {
            fanout.do_send(message());
        }
    }
}

#[cfg(test)]
mod tests;
