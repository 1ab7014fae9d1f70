//! The directory: finds the stream of each scope.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use actix::prelude::*;

use crate::{app::AppId, metrics::labels::Limit, settings::HistorySettings};

use super::{
    backlog::Backlog,
    fanout::{Fanout, WorkerId},
    history::{Contradiction, History, Retention},
    ledger::{Account, Held, Ledger},
    position::{Epochs, StreamPosition},
    stream::Stream,
    subscriber::ScopeKey,
    topic_name::Scope,
};

/// An app that gives way evicts at least one of this many parts of what it retains, so that the search
/// for the oldest publications is paid for by many.
const SLACK_SHARE: usize = 16;

/// An app has as many scopes as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyScopes;

/// The streams of all apps.
///
/// A stream is made for the first thread that hears its scope, or for the first publication that is
/// retained, and is forgotten under the lock for writing. A stream that is found under the lock for
/// reading is therefore the one of its scope for as long as that lock is held.
///
/// A stream that nobody hears is kept, even if it retains nothing any more: whoever knows a position
/// of it can still be told that nothing has come since. It is forgotten when its app needs the room
/// for another scope.
pub(super) struct Directory {
    streams: RwLock<Streams>,
    epochs: Epochs,
    backlog: Backlog,
    ledger: Ledger,
    scopes_per_app_max: usize,
}

type Streams = HashMap<AppId, AppStreams>;

/// The streams of one app.
struct AppStreams {
    account: Arc<Account>,
    scopes: HashMap<Scope, Arc<Stream>>,
}

impl Directory {
    /// An empty directory, in which each app may have so many scopes.
    pub(super) fn new(scopes_per_app_max: usize, backlog: Backlog, ledger: Ledger) -> Self {
        let (streams, epochs) = (RwLock::default(), Epochs::new());
        Self { streams, epochs, backlog, ledger, scopes_per_app_max }
    }

    /// The bounds of what is retained.
    pub(super) fn limits(&self) -> &HistorySettings {
        self.ledger.limits()
    }

    /// Uses the stream of a scope while it cannot be forgotten; `None` if there is none.
    pub(super) fn with<R>(&self, key: &ScopeKey, with: impl FnOnce(&Stream) -> R) -> Option<R> {
        let streams = self.read();
        streams.get(&key.app)?.scopes.get(&key.scope).map(|stream| with(stream))
    }

    /// The position of a publication that nobody hears and that is not retained: the first `offset` of
    /// an order that is forgotten at once.
    pub(super) fn unheard(
        &self,
        key: &ScopeKey,
        publications: usize,
    ) -> impl Iterator<Item = StreamPosition> + use<> {
        let epoch = self.epochs.give(key);
        (1..).take(publications).map(move |offset| StreamPosition { epoch, offset })
    }

    /// Has everything that is published to a scope from now on handed to the fan-out of a thread.
    /// Answers the scope's stream, and the last position that the thread is not handed.
    ///
    /// # Errors
    /// [`TooManyScopes`].
    pub(super) fn open(
        &self,
        key: &ScopeKey,
        worker: WorkerId,
        fanout: Addr<Fanout>,
        now_ms: u64,
    ) -> Result<(Arc<Stream>, StreamPosition), TooManyScopes> {
        let mut streams = self.write();
        let stream = self.stream(&mut streams, key)?;
        let head = stream.open(worker, fanout, now_ms);
        Ok((stream, head))
    }

    /// Makes the stream of a scope that nobody hears, for an app that retains publications. `false` if
    /// the app retains none, or has subscribers in as many scopes as it may.
    pub(super) fn ensure(&self, key: &ScopeKey) -> bool {
        !self.ledger.retention(key.app).is_none() && self.stream(&mut self.write(), key).is_ok()
    }

    /// The stream of a scope, which is made if there is none.
    fn stream(&self, streams: &mut Streams, key: &ScopeKey) -> Result<Arc<Stream>, TooManyScopes> {
        let app = self.app(streams, key.app);
        if let Some(stream) = app.scopes.get(&key.scope) {
            return Ok(stream.clone());
        }
        if app.scopes.len() >= self.scopes_per_app_max {
            app.forget_quietest()?;
        }
        let (epoch, account) = (self.epochs.give(key), app.account.clone());
        let stream = Arc::new(Stream::new(key.clone(), epoch, self.backlog.clone(), account));
        app.scopes.insert(key.scope.clone(), stream.clone());
        Ok(stream)
    }

    /// The streams of an app, of which there may be none yet.
    fn app<'a>(&self, streams: &'a mut Streams, app: AppId) -> &'a mut AppStreams {
        let new = || AppStreams { account: self.ledger.open(app), scopes: HashMap::new() };
        streams.entry(app).or_insert_with(new)
    }

    /// Takes up the stream of a scope with its history, which was last used at `used_ms`, in Unix
    /// milliseconds. If the app has as many scopes as it may, the history is dropped.
    ///
    /// # Errors
    /// [`Contradiction`] if there is a stream of that scope.
    pub(super) fn resume(
        &self,
        key: ScopeKey,
        history: History,
        used_ms: u64,
    ) -> Result<(), Contradiction> {
        let mut streams = self.write();
        let app = self.app(&mut streams, key.app);
        if app.scopes.contains_key(&key.scope) {
            return Err(Contradiction);
        }
        if app.scopes.len() < self.scopes_per_app_max {
            let (scope, account) = (key.scope.clone(), app.account.clone());
            let stream = Stream::resumed(key, history, used_ms, self.backlog.clone(), account);
            app.scopes.insert(scope, Arc::new(stream));
        }
        Ok(())
    }

    /// Forgets all streams. Nobody may have used them yet.
    pub(super) fn forget_all(&self) {
        self.write().clear();
    }

    /// The streams of all apps that retain publications, and when each app was created, in Unix
    /// microseconds.
    pub(super) fn retaining(&self) -> Vec<(i64, Arc<Stream>)> {
        let streams = self.read();
        let of_app = |(app, streams): (&AppId, &AppStreams)| {
            let created_us = self.ledger.created_us(*app)?;
            let retains = !self.ledger.retention(*app).is_none();
            let scopes = streams.scopes.values().cloned();
            retains.then(|| scopes.map(|stream| (created_us, stream)).collect::<Vec<_>>())
        };
        streams.iter().filter_map(of_app).flatten().collect()
    }

    /// What the app with this id, created at `created_us`, in Unix microseconds, retains of each scope;
    /// nothing if there is no such app.
    pub(super) fn retention_of(&self, app: AppId, created_us: i64) -> Retention {
        match self.ledger.created_us(app) {
            Some(created) if created == created_us => self.ledger.retention(app),
            _ => Retention::NONE,
        }
    }

    /// Hands a thread nothing of a scope any more.
    pub(super) fn close(&self, key: &ScopeKey, worker: WorkerId, now_ms: u64) {
        if self.with(key, |stream| stream.close(worker, now_ms)).is_some()
            && self.ledger.retention(key.app).is_none()
        {
            self.forget_unheard(key.app);
        }
    }

    /// Keeps to what an app retains as of now, after it was changed or deleted.
    pub(super) fn review(&self, app: AppId, now_ms: u64) {
        if self.ledger.retention(app).is_none() {
            self.forget_unheard(app);
        }
        if let Some(app) = self.read().get(&app) {
            app.scopes.values().for_each(|stream| stream.sweep(now_ms));
        }
    }

    /// Whether there is such an app, as of now.
    pub(super) fn has(&self, app: AppId) -> bool {
        self.ledger.has(app)
    }

    /// Forgets the streams of an app that nobody hears: it retains nothing.
    fn forget_unheard(&self, app: AppId) {
        let mut streams = self.write();
        if let Some(unheard) = streams.get_mut(&app) {
            unheard.scopes.retain(|_, stream| stream.unheard_since_ms().is_none());
            if unheard.scopes.is_empty() {
                streams.remove(&app);
            }
        }
    }

    /// Evicts from all streams what is too old.
    pub(super) fn sweep(&self, now_ms: u64) {
        let apps: Vec<AppId> = self.read().keys().copied().collect();
        // The lock is taken for each app anew, so that nobody waits for all of them.
        for app in apps {
            self.review(app, now_ms);
        }
    }

    /// Evicts the oldest publications of an app, or of the app that retains the most, if more is
    /// retained than may be. Answers which limit was exceeded.
    pub(super) fn relieve(&self, app: AppId) -> Option<Limit> {
        let limits = *self.limits();
        let streams = self.read();
        let mut exceeded = None;
        let app = streams.get(&app);
        if let Some(app) = app.filter(|app| app.account.bytes() > limits.app_bytes_max) {
            app.shrink_to(limits.app_bytes_max - limits.app_bytes_max / SLACK_SHARE);
            exceeded = Some(Limit::HistoryAppBytes);
        }
        while self.ledger.bytes() > limits.bytes_max {
            exceeded = Some(Limit::HistoryBytes);
            let fullest = streams.values().max_by_key(|app| app.account.bytes());
            let Some(fullest) = fullest else { break };
            let before = fullest.account.bytes();
            // A part of its own: it may be no fuller than many others then, which give way, too.
            fullest.shrink_to(before.saturating_sub((before / SLACK_SHARE).max(1)));
            if fullest.account.bytes() >= before {
                break;
            }
        }
        exceeded
    }

    /// What all apps retain.
    pub(super) fn retained(&self) -> Held {
        Held { bytes: self.ledger.bytes(), publications: self.ledger.publications() }
    }

    fn read(&self) -> RwLockReadGuard<'_, Streams> {
        self.streams.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Streams> {
        self.streams.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AppStreams {
    /// Forgets the stream that has been unused for the longest among those that nobody hears.
    fn forget_quietest(&mut self) -> Result<(), TooManyScopes> {
        let unheard = |(scope, stream): (&Scope, &Arc<Stream>)| {
            Some((stream.unheard_since_ms()?, scope.clone()))
        };
        let quietest = self.scopes.iter().filter_map(unheard).min();
        let (_, scope) = quietest.ok_or(TooManyScopes)?;
        self.scopes.remove(&scope);
        Ok(())
    }

    /// Evicts the oldest publications of all scopes until so many bytes are left.
    fn shrink_to(&self, bytes: usize) {
        let wants_more = || self.account.bytes() > bytes;
        let streams: Vec<_> = self.scopes.values().collect();
        let oldest = |nth: usize| streams[nth].oldest_ms().map(|oldest| Reverse((oldest, nth)));
        let mut queue: BinaryHeap<_> = (0..streams.len()).filter_map(oldest).collect();
        while wants_more() {
            let Some(Reverse((own, nth))) = queue.pop() else { break };
            let next = queue.peek().map_or(u64::MAX, |Reverse((next, _))| *next);
            streams[nth].shrink(own.max(next), wants_more);
            queue.extend(oldest(nth));
        }
        // What is left are remembered channels.
        for stream in streams.iter().take_while(|_| wants_more()) {
            stream.shrink(u64::MAX, wants_more);
        }
    }
}
