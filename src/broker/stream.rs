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
    history::History,
    ledger::{Account, Held},
    placed::{Accepted, Batch, Placed},
    position::{Epoch, StreamPosition},
    recovery::{HistoryPage, Incomplete, Missed, PageQuery, Reading, Since, Wanted},
    subscriber::ScopeKey,
    topic_name::ChannelName,
    tracker::Tracker,
};

/// The order of one scope, and what is retained of it.
pub(super) struct Stream {
    key: ScopeKey,
    backlog: Backlog,
    /// The account of the app.
    account: Arc<Account>,
    state: Mutex<State>,
}

/// The bounds on what is retained that publications exceed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Exceeded {
    /// The channels of the scope: those that had been quiet the longest were forgotten.
    pub(super) channels: bool,
    /// The bytes of the app, or of all apps: something is to be evicted.
    pub(super) bytes: bool,
}

struct State {
    history: History,
    /// When it was last published to, opened or closed, in Unix milliseconds.
    used_ms: u64,
    /// The fan-outs that have subscribers. As many as there are threads at most.
    threads: Vec<(WorkerId, Addr<Fanout>)>,
    /// Tracks members, once there has been one. It ends with the stream, which has its only permanent
    /// address.
    tracker: Option<Addr<Tracker>>,
}

impl Stream {
    /// Begins an order that no thread hears yet.
    pub(super) fn new(
        key: ScopeKey,
        epoch: Epoch,
        backlog: Backlog,
        account: Arc<Account>,
    ) -> Self {
        Self::resumed(key, History::new(epoch), 0, backlog, account)
    }

    /// Takes up an order with its history, which was last used at `used_ms`, in Unix milliseconds. No
    /// thread hears it yet.
    pub(super) fn resumed(
        key: ScopeKey,
        history: History,
        used_ms: u64,
        backlog: Backlog,
        account: Arc<Account>,
    ) -> Self {
        account.note(Held::default(), Held::by(&history));
        let state = State { history, used_ms, threads: Vec::new(), tracker: None };
        Self { key, backlog, account, state: Mutex::new(state) }
    }

    /// Looks at the history.
    pub(super) fn look<R>(&self, look: impl FnOnce(&History) -> R) -> R {
        look(&self.state().history)
    }

    /// A copy of the history as of now, which shares what is retained, and when the stream was last
    /// used, in Unix milliseconds.
    pub(super) fn copy(&self, now_ms: u64) -> (History, u64) {
        self.sweep(now_ms);
        let state = self.state();
        (state.history.clone(), state.used_ms)
    }

    /// The scope.
    pub(super) fn key(&self) -> &ScopeKey {
        &self.key
    }

    /// Gives publications of this scope their places in the order and hands them to the threads that
    /// hear it. Adds the places to `positions`. Answers which bounds on what is retained that exceeds.
    pub(super) fn publish(
        &self,
        number: u64,
        accepted: Vec<Accepted>,
        now_ms: u64,
        positions: &mut Vec<StreamPosition>,
    ) -> Exceeded {
        let mut state = self.state();
        // Read under the lock: what is discarded when an app changes is not retained again.
        let retention = self.account.retention();
        let times_forgotten = state.history.times_forgotten();
        let place = |Accepted { publication, flight }| {
            let append = |history: &mut History| history.append(&publication, now_ms, &retention);
            let position = state.with_history(&self.account, append);
            positions.push(position);
            Placed::new(position, publication, flight, self.backlog.clone())
        };
        let publications = accepted.into_iter().map(place).collect();
        state.used_ms = now_ms;
        let batch = Arc::new(Batch { number, key: self.key.clone(), publications });
        state.hand_out(|| Dispatch(batch.clone()));
        Exceeded {
            channels: state.history.times_forgotten() > times_forgotten,
            bytes: self.account.is_exceeded(),
        }
    }

    /// What a join is given of the history.
    pub(super) fn missed(&self, reading: &Reading<'_>, wanted: Wanted, now_ms: u64) -> Missed {
        let mut state = self.state();
        let retention = self.account.retention();
        state.with_history(&self.account, |history| history.keep_to(now_ms, &retention));
        let limits = self.account.limits();
        match reading.gap(&state.history, &self.key, wanted.since, limits) {
            Ok(Some(closed)) => closed,
            Ok(None) => reading.newest(&state.history, wanted.newest_max, limits),
            Err((incomplete, limit)) => {
                let incomplete = match retention.is_none() {
                    true => Some(incomplete.of_nothing()),
                    false => Some(incomplete),
                };
                let newest = reading.newest(&state.history, wanted.newest_max, limits);
                Missed { incomplete, limit, ..newest }
            }
        }
    }

    /// Some of what is retained for a channel: the first publications after a position, or the newest.
    pub(super) fn page(
        &self,
        channel: &ChannelName,
        since: Since,
        publications_max: usize,
        now_ms: u64,
    ) -> HistoryPage {
        let mut state = self.state();
        let retention = self.account.retention();
        state.with_history(&self.account, |history| history.keep_to(now_ms, &retention));
        let bytes_max = self.account.limits().replay_bytes_max;
        let ask = PageQuery { channel, since, publications_max, bytes_max };
        let mut page = ask.page(&state.history, &self.key);
        if retention.is_none() {
            page.incomplete = page.incomplete.map(Incomplete::of_nothing);
        }
        page
    }

    /// Keeps to what the app retains as of now.
    pub(super) fn sweep(&self, now_ms: u64) {
        let retention = self.account.retention();
        let keep = |history: &mut History| history.keep_to(now_ms, &retention);
        self.state().with_history(&self.account, keep);
    }

    /// Evicts the oldest publications, as many as were accepted at `until_ms` or before, while
    /// `wants_more`. Where nothing is retained, the channels are forgotten.
    pub(super) fn shrink(&self, until_ms: u64, wants_more: impl Fn() -> bool) {
        let mut state = self.state();
        while wants_more() && state.history.oldest_ms().is_none_or(|oldest| oldest <= until_ms) {
            let before = state.history.bytes();
            state.with_history(&self.account, History::shrink);
            if state.history.bytes() == before {
                break;
            }
        }
    }

    /// The time of the oldest publication that is retained, in Unix milliseconds.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.state().history.oldest_ms()
    }

    /// When it was last used, if no thread hears it.
    pub(super) fn unheard_since_ms(&self) -> Option<u64> {
        let state = self.state();
        state.threads.is_empty().then_some(state.used_ms)
    }

    /// Hands an announcement to the threads that hear this scope: all members are told in the same
    /// order, also in relation to publications.
    pub(super) fn announce(&self, announcement: Announcement) {
        let announcement = Arc::new(announcement);
        self.state().hand_out(|| Announce(announcement.clone()));
    }

    /// Hands everything that comes from now on to the fan-out of a thread. Answers the position of
    /// the newest publication, which is the last one that the thread is not handed.
    pub(super) fn open(
        &self,
        worker: WorkerId,
        fanout: Addr<Fanout>,
        now_ms: u64,
    ) -> StreamPosition {
        let mut state = self.state();
        state.used_ms = now_ms;
        state.threads.retain(|(opened, _)| *opened != worker);
        state.threads.push((worker, fanout));
        state.history.head()
    }

    /// Hands a thread nothing any more.
    pub(super) fn close(&self, worker: WorkerId, now_ms: u64) {
        let mut state = self.state();
        state.threads.retain(|(opened, _)| *opened != worker);
        if state.threads.is_empty() {
            state.used_ms = now_ms;
        }
    }

    /// The position of the newest publication.
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

impl Drop for Stream {
    fn drop(&mut self) {
        let retained = Held::by(&self.state().history);
        self.account.note(retained, Held::default());
    }
}

impl State {
    /// Uses the history, and notes how much is retained then.
    fn with_history<R>(&mut self, account: &Account, with: impl FnOnce(&mut History) -> R) -> R {
        let before = Held::by(&self.history);
        let done = with(&mut self.history);
        let now = Held::by(&self.history);
        if now != before {
            account.note(before, now);
        }
        done
    }

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
