//! A stream: the one order of a scope, and the threads that have subscribers of it.
//!
//! A publication gets its offset and is passed to the fan-outs in one critical section that never
//! waits. Publications are therefore in the mailbox of each fan-out in the order of their offsets,
//! and a thread receives everything after the head at which it was opened. No actor stands between
//! a publisher and the fan-outs: none has to be started first, and none can be lost together with
//! accepted publications.

use std::sync::Arc;

use actix::{dev::ToEnvelope, prelude::*};
use parking_lot::Mutex;

use crate::metrics::labels::Limit;

use super::{
    announcement::Announcement,
    backlog::Backlog,
    counts::SubscriberCounts,
    fanout::{Announce, Fanout, FanoutAddr, Interrupt, TellCount, TrackerLost, WorkerId},
    history::{History, Retention},
    ledger::{Account, RetainedTotals},
    placed::{Accepted, Batch, Placed, ReadPublication},
    position::StreamPosition,
    recovery::{HistoryPage, Incomplete, Missed, PageQuery, Reading, Wanted},
    subscriber::ScopeKey,
    topic_name::ChannelName,
    tracker::{OrderInterrupted, Tracker},
};

/// The order of one scope, and its history.
pub(super) struct Stream {
    key: ScopeKey,
    backlog: Backlog,
    /// The account of the app.
    account: Arc<Account>,
    state: Mutex<State>,
    counts: SubscriberCounts,
}

/// The bounds on retention that publications exceed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Exceeded {
    /// Whether there were too many channels in the scope, so that the quietest ones were forgotten.
    pub(super) channels: bool,
    /// Whether the app, or all apps together, retain too many bytes, so that the caller must evict
    /// publications.
    pub(super) bytes: bool,
    /// The bound on the last events of cache channels that was exceeded, so that the oldest ones were dropped.
    pub(super) last_events: Option<Limit>,
}

/// The point of a stream after which a thread is sent its publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Beginning {
    /// The position of the newest publication that the thread is not sent.
    pub(super) head: StreamPosition,
    /// The number of interruptions of all streams before it. Of two points of a scope, the one with more is later,
    /// although its position may be lower, because it may belong to another epoch.
    pub(super) interruptions: u64,
}

struct State {
    history: History,
    /// The number of interruptions of all streams when this one was made or last interrupted.
    interruptions: u64,
    /// The time at which the stream was last published to, opened or closed, in Unix milliseconds.
    used_ms: u64,
    /// The fan-outs that have subscribers, at most one for each thread.
    threads: Vec<FanoutAddr>,
    /// The actor that tracks members, once there has been one. It ends with the stream, which has
    /// its only permanent address.
    tracker: Option<Addr<Tracker>>,
}

impl Stream {
    /// A stream with its history, which was last used at `used_ms`, in Unix milliseconds. It has no
    /// subscribers yet.
    pub(super) fn new(
        key: ScopeKey,
        history: History,
        used_ms: u64,
        backlog: Backlog,
        account: Arc<Account>,
    ) -> Self {
        account.note(RetainedTotals::default(), RetainedTotals::by(&history));
        let interruptions = account.ledger.interruptions();
        let state = State { history, interruptions, used_ms, threads: Vec::new(), tracker: None };
        Self {
            key,
            backlog,
            account,
            state: Mutex::new(state),
            counts: SubscriberCounts::default(),
        }
    }

    /// Reads the history.
    pub(super) fn look<R>(&self, look: impl FnOnce(&History) -> R) -> R {
        look(&self.state.lock().history)
    }

    /// A copy of the present history, which shares the retained publications, and the last use of
    /// the stream, in Unix milliseconds.
    pub(super) fn copy(&self, now_ms: u64) -> (History, u64) {
        self.sweep(now_ms);
        let state = self.state.lock();
        (state.history.clone(), state.used_ms)
    }

    /// The scope.
    pub(super) fn key(&self) -> &ScopeKey {
        &self.key
    }

    /// Gives publications of this scope their positions and passes them to the threads that have
    /// subscribers. Adds the positions to `positions`. Returns the exceeded bounds on retention.
    pub(super) fn publish(
        &self,
        accepted: Vec<Accepted>,
        now_ms: u64,
        positions: &mut Vec<StreamPosition>,
    ) -> Exceeded {
        self.place(accepted, now_ms, |accepted, history, retention| {
            let position = history.append(&accepted.publication, now_ms, retention);
            positions.push(position);
            (position, now_ms, accepted)
        })
    }

    /// Takes publications to which a log has given their positions, and passes them to the threads that have
    /// subscribers. Returns the exceeded bounds on retention.
    pub(super) fn place_read(&self, read: Vec<ReadPublication>, now_ms: u64) -> Exceeded {
        self.place(
            read,
            now_ms,
            |ReadPublication { offset, at_ms, accepted }, history, retention| {
                let publication = &accepted.publication;
                let position = history.append_at(offset, publication, at_ms, now_ms, retention);
                (position, at_ms, accepted)
            },
        )
    }

    /// Appends publications to the history with a function that returns the position, the time and the publication,
    /// and passes them to the threads that have subscribers.
    fn place<P>(
        &self,
        publications: Vec<P>,
        now_ms: u64,
        mut append: impl FnMut(P, &mut History, &Retention) -> (StreamPosition, u64, Accepted),
    ) -> Exceeded {
        let mut state = self.state.lock();
        // The retention is read under the lock, so that publications which a change of the app
        // discards are not retained again.
        let retention = self.account.retention();
        let times_forgotten = state.history.times_forgotten();
        let mut last_events = None;
        let publications = state.with_history(&self.account, |history| {
            let place = |publication| {
                let (position, at_ms, accepted) = append(publication, history, &retention);
                let Accepted { publication, flight } = accepted;
                let noted = self.account.ledger.last_events().note(&publication, position, at_ms);
                last_events = noted.or(last_events);
                Placed::new(position, publication, flight, self.backlog.clone())
            };
            publications.into_iter().map(place).collect()
        });
        state.used_ms = now_ms;
        let batch = Arc::new(Batch { key: self.key.clone(), publications });
        state.threads.iter().for_each(|thread| thread.dispatch(batch.clone()));
        Exceeded {
            channels: state.history.times_forgotten() > times_forgotten,
            bytes: self.account.is_exceeded(),
            last_events,
        }
    }

    /// Continues after a position, up to which publications may be missing. No publication before it is
    /// retained any more, and the threads end the joins of this scope, so that clients rejoin and learn of the
    /// gap.
    pub(super) fn interrupt(&self, head: StreamPosition, now_ms: u64) {
        let mut state = self.state.lock();
        let begin = |history: &mut History| *history = History::of_log(head, head.offset);
        state.with_history(&self.account, begin);
        state.used_ms = now_ms;
        if let Some(tracker) = &state.tracker {
            tracker.do_send(OrderInterrupted);
        }
        state.interruptions = self.account.ledger.note_interruption();
        let begin = Beginning { head, interruptions: state.interruptions };
        state.hand_out(|| Interrupt { key: self.key.clone(), begin });
    }

    /// The part of the history that a join is sent.
    pub(super) fn missed(&self, reading: &Reading<'_>, wanted: Wanted, now_ms: u64) -> Missed {
        let mut state = self.state.lock();
        let retention = self.account.retention();
        state.with_history(&self.account, |history| history.keep_to(now_ms, &retention));
        let limits = self.account.ledger.limits();
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

    /// A part of the retained publications of a channel: the first ones after a position, or the newest.
    pub(super) fn page(&self, ask: &PageQuery<'_>, now_ms: u64) -> HistoryPage {
        let mut state = self.state.lock();
        let retention = self.account.retention();
        state.with_history(&self.account, |history| history.keep_to(now_ms, &retention));
        let mut page = ask.page(&state.history, &self.key);
        if retention.is_none() {
            page.incomplete = page.incomplete.map(Incomplete::of_nothing);
        }
        page
    }

    /// Applies the present retention of the app.
    pub(super) fn sweep(&self, now_ms: u64) {
        let retention = self.account.retention();
        let keep = |history: &mut History| history.keep_to(now_ms, &retention);
        self.state.lock().with_history(&self.account, keep);
    }

    /// Evicts the oldest publications that were accepted at `until_ms` or before, until the app retains at most
    /// `app_bytes`. If no publication is left and `until_ms` is [`u64::MAX`], the channels are forgotten.
    pub(super) fn shrink(&self, until_ms: u64, app_bytes: usize) {
        self.state.lock().with_history(&self.account, |history| {
            // The excess is read under the lock: another thread may just have evicted it.
            let excess = self.account.bytes().saturating_sub(app_bytes);
            let (mut left, mut evicts) = (history.bytes(), true);
            let enough = left.saturating_sub(excess);
            let is_due = |history: &History| match history.oldest_ms() {
                Some(oldest_ms) => oldest_ms <= until_ms,
                None => until_ms == u64::MAX,
            };
            while evicts && left > enough && is_due(history) {
                history.shrink();
                (evicts, left) = (history.bytes() < left, history.bytes());
            }
        });
    }

    /// The time of the oldest retained publication, in Unix milliseconds.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.state.lock().history.oldest_ms()
    }

    /// The time of the last use, in Unix milliseconds; `None` if a thread has subscribers.
    pub(super) fn unheard_since_ms(&self) -> Option<u64> {
        let state = self.state.lock();
        state.threads.is_empty().then_some(state.used_ms)
    }

    /// The channels whose subscribers are sent their number.
    pub(super) fn counts(&self) -> &SubscriberCounts {
        &self.counts
    }

    /// Sends the number of a channel's subscribers to those whose format asks for it.
    pub(super) fn tell_count(&self, channel: &ChannelName, count: usize) {
        let tell = || TellCount { key: self.key.clone(), channel: channel.clone(), count };
        self.state.lock().hand_out(tell);
    }

    /// Passes an announcement to the threads that have subscribers: all members receive it in the
    /// same order, also in relation to publications.
    pub(super) fn announce(&self, announcement: Announcement) {
        let announcement = Arc::new(announcement);
        self.state.lock().hand_out(|| Announce(announcement.clone()));
    }

    /// Passes all further publications to the fan-out of a thread.
    pub(super) fn open(&self, fanout: FanoutAddr, now_ms: u64) -> Beginning {
        let mut state = self.state.lock();
        state.used_ms = now_ms;
        state.threads.retain(|opened| opened.worker != fanout.worker);
        state.threads.push(fanout);
        Beginning { head: state.history.head(), interruptions: state.interruptions }
    }

    /// Stops passing publications to a thread.
    pub(super) fn close(&self, worker: WorkerId, now_ms: u64) {
        let mut state = self.state.lock();
        state.threads.retain(|opened| opened.worker != worker);
        if state.threads.is_empty() {
            state.used_ms = now_ms;
        }
    }

    /// The position of the newest publication.
    pub(super) fn head(&self) -> StreamPosition {
        self.state.lock().history.head()
    }

    /// The actor that tracks members of this scope, if there has been one.
    pub(super) fn tracker(&self) -> Option<Addr<Tracker>> {
        self.state.lock().tracker.clone()
    }

    /// Sends the tracker a message, if there is one.
    pub(super) fn tell_tracker<M>(&self, message: M)
    where
        M: Message<Result: Send> + Send + 'static,
        Tracker: Handler<M>,
        Context<Tracker>: ToEnvelope<Tracker, M>,
    {
        if let Some(tracker) = &self.state.lock().tracker {
            tracker.do_send(message);
        }
    }

    /// The actor that tracks members of this scope. `start` starts it for the first member, or after the thread
    /// of the last one has ended. `None` if it cannot be started.
    pub(super) fn tracker_or_start(
        &self,
        start: impl FnOnce() -> Option<Addr<Tracker>>,
    ) -> Option<Addr<Tracker>> {
        let mut state = self.state.lock();
        if !state.tracker.as_ref().is_some_and(Addr::connected) {
            state.tracker = start();
        }
        state.tracker.clone()
    }

    /// Handles a tracker that a panic has ended: the next member starts another one, and the
    /// threads end the sessions that were tracked.
    pub(super) fn tracker_lost(&self) {
        let mut state = self.state.lock();
        state.tracker = None;
        state.hand_out(|| TrackerLost(self.key.clone()));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let retained = RetainedTotals::by(&self.state.lock().history);
        self.account.note(retained, RetainedTotals::default());
    }
}

/// A history that is being changed. The change is noted in the account of the app when this is dropped, so also
/// after a panic.
struct NotingHistory<'a> {
    history: &'a mut History,
    before: RetainedTotals,
    account: &'a Account,
}

impl Drop for NotingHistory<'_> {
    fn drop(&mut self) {
        let now = RetainedTotals::by(self.history);
        if now != self.before {
            self.account.note(self.before, now);
        }
    }
}

impl State {
    /// Changes the history, and notes the amount that is retained afterwards.
    fn with_history<R>(&mut self, account: &Account, with: impl FnOnce(&mut History) -> R) -> R {
        let before = RetainedTotals::by(&self.history);
        let noting = NotingHistory { history: &mut self.history, before, account };
        with(&mut *noting.history)
    }

    fn hand_out<M>(&self, message: impl Fn() -> M)
    where
        M: Message<Result = ()> + Send + 'static,
        Fanout: Handler<M>,
        Context<Fanout>: ToEnvelope<Fanout, M>,
    {
        for thread in &self.threads {
            thread.addr.do_send(message());
        }
    }
}

#[cfg(test)]
mod tests;
