//! Permits: the number of publications that may be under way, and their distribution among the
//! apps.
//!
//! There are twice as many permits as one app may hold. An app that holds permits takes more only if
//! at least as many stay free as it then holds: one busy app gets half of all permits, two get a third
//! each, and so on. An app without publications under way therefore always finds a permit, however busy
//! the others are.

use std::{
    collections::VecDeque,
    future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxHashMap;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

use crate::app::AppId;

/// All permits. Clones share them.
#[derive(Clone)]
pub(super) struct Permits(Arc<Inner>);

struct Inner {
    per_app_max: usize,
    /// The number of permits that are held. It changes only while the state is locked.
    held: AtomicUsize,
    state: Mutex<State>,
    /// Notified when nothing is under way any more after `finish` has begun.
    finished: Notify,
}

#[derive(Default)]
struct State {
    /// The apps that hold permits or wait for some.
    apps: FxHashMap<AppId, AppShare>,
    /// The apps with waiting requests, each once. The one that received a permit last is at the end.
    turns: VecDeque<AppId>,
    is_finishing: bool,
    /// The number of times that the next request of an app was looked at.
    #[cfg(test)]
    looked_at: usize,
}

/// The permits that one app holds, and its waiting requests in their order.
#[derive(Default)]
struct AppShare {
    held: usize,
    requests: VecDeque<PermitRequest>,
}

struct PermitRequest {
    count: usize,
    given: oneshot::Sender<Permit>,
}

/// A number of permits of one app. Dropping this frees them.
pub(super) struct Permit {
    permits: Permits,
    app: AppId,
    count: usize,
}

impl Permits {
    /// Permits of which one app may hold at most `per_app_max`, and all apps together twice as many.
    pub(super) fn new(per_app_max: usize) -> Self {
        Self(Arc::new(Inner {
            per_app_max,
            held: AtomicUsize::new(0),
            state: Mutex::default(),
            finished: Notify::new(),
        }))
    }

    /// Returns whether any permit is held.
    pub(super) fn is_any_held(&self) -> bool {
        self.0.held.load(Relaxed) > 0
    }

    /// Takes one permit if the app may have it now, and no earlier request waits for it.
    pub(super) fn take_at_once(&self, app: AppId) -> Option<Permit> {
        let mut state = self.0.state.lock();
        let may_take = !state.is_finishing && self.may_take(&state, app, 1);
        may_take.then(|| self.give(&mut state, app, 1))
    }

    /// Takes `count` permits, after the earlier requests of the same app; `None` once the server stops. A
    /// request for more permits than one app may hold never succeeds.
    pub(super) async fn take(&self, app: AppId, count: usize) -> Option<Permit> {
        if count > self.0.per_app_max {
            return future::pending().await;
        }
        let given = {
            let mut state = self.0.state.lock();
            if state.is_finishing {
                return None;
            }
            if self.may_take(&state, app, count) {
                return Some(self.give(&mut state, app, count));
            }
            let (given, receiver) = oneshot::channel();
            state.request(app, PermitRequest { count, given });
            receiver
        };
        // This is dropped after the receiver, so that the requests behind an abandoned one are answered.
        let _retry = Retry(self, app);
        given.await.ok()
    }

    /// Refuses every new request, and waits, at most `wait_max`, until all permits are free and earlier
    /// requests are answered. Requests that still wait then are refused as well.
    pub(super) async fn finish(&self, wait_max: Duration) {
        self.0.state.lock().is_finishing = true;
        // After the time limit, publications that are still under way are lost with the server.
        let _ = timeout(wait_max, self.finished()).await;
        let mut state = self.0.state.lock();
        state.turns.clear();
        // Dropping a request tells its publisher.
        state.apps.values_mut().for_each(|share| share.requests.clear());
        self.0.finished.notify_waiters();
    }

    /// Waits until [`finish`](Self::finish) was called, all permits are free and no request waits: from
    /// then on no permit is held ever again.
    pub(super) async fn finished(&self) {
        loop {
            // This receives every notification from here on, even before it is awaited.
            let notified = self.0.finished.notified();
            if self.is_finished(&self.0.state.lock()) {
                return;
            }
            notified.await;
        }
    }

    fn is_finished(&self, state: &State) -> bool {
        state.is_finishing && !self.is_any_held() && state.turns.is_empty()
    }

    /// Returns whether a new request can be answered at once: no earlier one of its app waits, the app may
    /// hold that many more, and no app without permits waits, unless this one has none either.
    fn may_take(&self, state: &State, app: AppId, count: usize) -> bool {
        // This comes first, because many apps may wait while nothing is free.
        if !self.has_room(state, app, count) {
            return false;
        }
        let waits = |other: &AppId| *other == app || state.held_by(*other) == 0;
        let is_idle = state.held_by(app) == 0;
        let is_behind = match is_idle {
            true => state.turns.contains(&app),
            false => state.turns.iter().any(waits),
        };
        !is_behind
    }

    /// Returns whether an app may hold `count` permits more. An app that holds none may have all free ones, so
    /// that the small requests of others do not block a large one for ever.
    fn has_room(&self, state: &State, app: AppId, count: usize) -> bool {
        let (free, held) = (self.free(), state.held_by(app));
        let would_hold = held + count;
        let stay_free = if held == 0 { 0 } else { would_hold };
        would_hold <= self.0.per_app_max && count + stay_free <= free
    }

    /// The number of permits that nobody holds.
    fn free(&self) -> usize {
        (2 * self.0.per_app_max).saturating_sub(self.0.held.load(Relaxed))
    }

    fn give(&self, state: &mut State, app: AppId, count: usize) -> Permit {
        state.apps.entry(app).or_default().held += count;
        self.0.held.fetch_add(count, Relaxed);
        Permit { permits: self.clone(), app, count }
    }

    /// Answers all requests that can be answered, the apps by turns. While an app that holds
    /// nothing lacks room, all apps that hold something wait behind it. While nothing is free, no app is looked at,
    /// because many may wait.
    fn answer_requests(&self, mut state: MutexGuard<'_, State>) {
        let mut answers = Vec::new();
        let (mut nth, mut idle_waits) = (0, false);
        while let Some(&app) = state.turns.get(nth).filter(|_| self.free() > 0) {
            let Some(count) = state.next_request(app) else {
                state.turns.remove(nth);
                state.forget_if_idle(app);
                continue;
            };
            let is_idle = state.held_by(app) == 0;
            if (idle_waits && !is_idle) || !self.has_room(&state, app, count) {
                idle_waits |= is_idle;
                nth += 1;
                continue;
            }
            let permit = self.give(&mut state, app, count);
            let request = state.apps.get_mut(&app).and_then(|share| share.requests.pop_front());
            answers.extend(request.map(|request| (request, permit)));
            state.turns.remove(nth);
            state.turns.push_back(app);
        }
        if self.is_finished(&state) {
            self.0.finished.notify_waiters();
        }
        // A permit whose request was abandoned is dropped here, which locks the state again.
        drop(state);
        for (request, permit) in answers {
            let _ = request.given.send(permit);
        }
    }
}

impl State {
    fn held_by(&self, app: AppId) -> usize {
        self.apps.get(&app).map_or(0, |share| share.held)
    }

    fn request(&mut self, app: AppId, request: PermitRequest) {
        let share = self.apps.entry(app).or_default();
        if share.requests.is_empty() {
            self.turns.push_back(app);
        }
        share.requests.push_back(request);
    }

    /// Drops the abandoned requests of an app, as far as no other one is ahead of them.
    fn forget_abandoned(&mut self, app: AppId) {
        if self.next_request(app).is_none() {
            self.turns.retain(|waiting| *waiting != app);
            self.forget_if_idle(app);
        }
    }

    /// The number of permits of the next request of an app. Abandoned requests are dropped.
    fn next_request(&mut self, app: AppId) -> Option<usize> {
        #[cfg(test)]
        {
            self.looked_at += 1;
        }
        let requests = &mut self.apps.get_mut(&app)?.requests;
        while requests.front().is_some_and(|request| request.given.is_closed()) {
            requests.pop_front();
        }
        requests.front().map(|request| request.count)
    }

    fn forget_if_idle(&mut self, app: AppId) {
        let is_idle = |share: &AppShare| share.held == 0 && share.requests.is_empty();
        if self.apps.get(&app).is_some_and(is_idle) {
            self.apps.remove(&app);
        }
    }
}

/// Examines the requests again when one of this app has been answered or abandoned.
struct Retry<'a>(&'a Permits, AppId);

impl Drop for Retry<'_> {
    fn drop(&mut self) {
        let Self(permits, app) = self;
        let mut state = permits.0.state.lock();
        state.forget_abandoned(*app);
        if !state.turns.is_empty() || state.is_finishing {
            permits.answer_requests(state);
        }
    }
}

impl Permit {
    /// Takes a part of these permits out.
    pub(super) fn split(&mut self, count: usize) -> Self {
        let count = count.min(self.count);
        self.count -= count;
        Self { permits: self.permits.clone(), app: self.app, count }
    }

    /// Makes a permit for one publication of each of these.
    pub(super) fn into_singles(mut self) -> Vec<Self> {
        (0..self.count).map(|_| self.split(1)).collect()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.count == 0 {
            return;
        }
        let mut state = self.permits.0.state.lock();
        self.permits.0.held.fetch_sub(self.count, Relaxed);
        if let Some(share) = state.apps.get_mut(&self.app) {
            share.held -= self.count;
        }
        state.forget_if_idle(self.app);
        if !state.turns.is_empty() || state.is_finishing {
            self.permits.answer_requests(state);
        }
    }
}

#[cfg(test)]
mod tests;
