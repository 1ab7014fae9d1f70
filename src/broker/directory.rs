//! The directory: finds the stream of each scope.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use parking_lot::RwLock;
use rustc_hash::FxHashMap;

use crate::{app::AppId, engine::Partition, metrics::labels::Limit};

use super::{
    backlog::Backlog,
    fanout::{FanoutAddr, WorkerId},
    history::{Contradiction, History, Retention},
    ledger::{Account, RetainedTotals, RetentionLedger},
    numbering::{Following, Heads, Numbering},
    position::StreamPosition,
    stream::{Beginning, Stream},
    subscriber::ScopeKey,
    topic_name::Scope,
};

/// An app over its bound evicts at least this fraction (1/16) of its retained bytes, so that the cost of the
/// search for the oldest publications is spread over many publications.
const SLACK_SHARE: usize = 16;

/// All apps together, if they are over the server's bound, evict at least this fraction (1/64) of it, so that the
/// cost of the search for the fullest apps is spread over many publications.
pub(super) const SERVER_SLACK_SHARE: usize = 64;

/// The error of an app that has subscribers in as many scopes as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyScopes;

/// The streams of all apps.
///
/// A stream is made for the first thread with a subscriber, or for the first retained publication. It is
/// forgotten under the write lock. A stream that is found under the read lock therefore stays the one of
/// its scope while that lock is held.
///
/// A stream without subscribers is kept, even if it no longer retains anything: a client with one
/// of its positions can still be told that nothing was published since. It is forgotten when its
/// app needs the room for another scope.
pub(super) struct Directory {
    streams: RwLock<Streams>,
    numbering: Numbering,
    backlog: Backlog,
    ledger: RetentionLedger,
    scopes_per_app_max: usize,
}

type Streams = FxHashMap<AppId, AppStreams>;

/// The streams of one app.
struct AppStreams {
    account: Arc<Account>,
    scopes: HashMap<Scope, Arc<Stream>>,
}

impl Directory {
    /// An empty directory. `scopes_per_app_max` is the most scopes of each app.
    pub(super) fn new(
        scopes_per_app_max: usize,
        numbering: Numbering,
        backlog: Backlog,
        ledger: RetentionLedger,
    ) -> Self {
        let streams = RwLock::default();
        Self { streams, numbering, backlog, ledger, scopes_per_app_max }
    }

    /// The amounts that apps retain, and that they may retain.
    pub(super) fn ledger(&self) -> &RetentionLedger {
        &self.ledger
    }

    /// Calls a function with the stream of a scope, which cannot be forgotten meanwhile; `None` if there is no
    /// stream.
    pub(super) fn with<R>(&self, key: &ScopeKey, with: impl FnOnce(&Stream) -> R) -> Option<R> {
        let streams = self.streams.read();
        streams.get(&key.app)?.scopes.get(&key.scope).map(|stream| with(stream))
    }

    /// The stream of a scope, if there is one.
    pub(super) fn find(&self, key: &ScopeKey) -> Option<Arc<Stream>> {
        self.streams.read().get(&key.app)?.scopes.get(&key.scope).cloned()
    }

    /// The position just before a publication that has no subscribers and is not retained. It is the beginning
    /// of an epoch that no stream has.
    pub(super) fn unheard(&self, key: &ScopeKey) -> StreamPosition {
        self.numbering.of(key).begin(key).head()
    }

    /// The position up to which this node has read the log, as a position of the scope; `None` on a server without
    /// a cluster.
    pub(super) fn log_head(&self, key: &ScopeKey) -> Option<StreamPosition> {
        self.numbering.of(key).head(key)
    }

    /// Makes the stream of a scope pass all further publications to the fan-out of a thread. Returns the
    /// stream, and the point after which the thread is sent them.
    ///
    /// # Errors
    /// [`TooManyScopes`].
    pub(super) fn open(
        &self,
        key: &ScopeKey,
        fanout: FanoutAddr,
        now_ms: u64,
    ) -> Result<(Arc<Stream>, Beginning), TooManyScopes> {
        let numbering = self.numbering.of(key);
        let mut streams = self.streams.write();
        let stream = self.stream(&mut streams, key, || numbering.begin(key))?;
        let begin = stream.open(fanout, now_ms);
        Ok((stream, begin))
    }

    /// Makes the stream of a scope without subscribers, for an app that retains publications. Returns `false`
    /// if the app retains none, or has subscribers in as many scopes as it may.
    pub(super) fn ensure(&self, key: &ScopeKey) -> bool {
        !self.ledger.retention(key.app).is_none() && self.make(key)
    }

    /// Makes the stream of a scope without subscribers. Returns `false` if the app has subscribers in as many
    /// scopes as it may.
    pub(super) fn make(&self, key: &ScopeKey) -> bool {
        let numbering = self.numbering.of(key);
        self.stream(&mut self.streams.write(), key, || numbering.begin(key)).is_ok()
    }

    /// Makes the stream of a scope like [`ensure`](Self::ensure), while its partition of the log is locked.
    pub(super) fn ensure_following(&self, key: &ScopeKey, following: &Following<'_>) -> bool {
        !self.ledger.retention(key.app).is_none()
            && self.stream(&mut self.streams.write(), key, || following.begin(key)).is_ok()
    }

    /// The stream of a scope, which is made if there is none.
    fn stream(
        &self,
        streams: &mut Streams,
        key: &ScopeKey,
        begin: impl FnOnce() -> History,
    ) -> Result<Arc<Stream>, TooManyScopes> {
        let app = self.app(streams, key.app);
        if let Some(stream) = app.scopes.get(&key.scope) {
            return Ok(stream.clone());
        }
        if app.scopes.len() >= self.scopes_per_app_max {
            app.forget_quietest(&self.numbering)?;
        }
        let (history, account) = (begin(), app.account.clone());
        let stream = Stream::new(key.clone(), history, 0, self.backlog.clone(), account);
        let stream = Arc::new(stream);
        app.scopes.insert(key.scope.clone(), stream.clone());
        Ok(stream)
    }

    /// The streams of an app, of which there may be none yet.
    fn app<'a>(&self, streams: &'a mut Streams, app: AppId) -> &'a mut AppStreams {
        let new = || AppStreams { account: self.ledger.open(app), scopes: HashMap::new() };
        streams.entry(app).or_insert_with(new)
    }

    /// Adds the stream of a scope with a restored history. `used_ms` is the time of its last use, in Unix
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
        let mut streams = self.streams.write();
        let app = self.app(&mut streams, key.app);
        if app.scopes.contains_key(&key.scope) {
            return Err(Contradiction);
        }
        if app.scopes.len() < self.scopes_per_app_max {
            let (scope, account) = (key.scope.clone(), app.account.clone());
            let stream = Stream::new(key, history, used_ms, self.backlog.clone(), account);
            app.scopes.insert(scope, Arc::new(stream));
        }
        Ok(())
    }

    /// The streams of all scopes whose numbering is that of a partition of the log.
    pub(super) fn of_partition(&self, heads: &Heads, partition: Partition) -> Vec<Arc<Stream>> {
        let streams = self.streams.read();
        let all = streams.values().flat_map(|app| app.scopes.values());
        all.filter(|stream| heads.partition_of(stream.key()) == partition).cloned().collect()
    }

    /// The streams of all scopes.
    pub(super) fn all(&self) -> Vec<Arc<Stream>> {
        let streams = self.streams.read();
        streams.values().flat_map(|app| app.scopes.values()).cloned().collect()
    }

    /// Forgets all streams. None of them may have been used yet.
    pub(super) fn forget_all(&self) {
        self.streams.write().clear();
    }

    /// The streams of all apps that retain publications, and the time at which each app was
    /// created, in Unix microseconds.
    pub(super) fn retaining(&self) -> Vec<(i64, Arc<Stream>)> {
        let streams = self.streams.read();
        let of_app = |(app, streams): (&AppId, &AppStreams)| {
            let created_us = self.ledger.created_us(*app)?;
            let retains = !self.ledger.retention(*app).is_none();
            let scopes = streams.scopes.values().cloned();
            retains.then(|| scopes.map(|stream| (created_us, stream)).collect::<Vec<_>>())
        };
        streams.iter().filter_map(of_app).flatten().collect()
    }

    /// The retention of each scope of the app with this id that was created at `created_us`, in
    /// Unix microseconds; nothing is retained if there is no such app.
    pub(super) fn retention_of(&self, app: AppId, created_us: i64) -> Retention {
        match self.ledger.created_us(app) {
            Some(created) if created == created_us => self.ledger.retention(app),
            _ => Retention::NONE,
        }
    }

    /// Stops passing a scope's publications to a thread.
    pub(super) fn close(&self, key: &ScopeKey, worker: WorkerId, now_ms: u64) {
        if self.with(key, |stream| stream.close(worker, now_ms)).is_some()
            && self.ledger.retention(key.app).is_none()
        {
            self.forget_unheard(key.app);
        }
    }

    /// Applies the present retention of an app, after it was changed or deleted.
    pub(super) fn review(&self, app: AppId, now_ms: u64) {
        if self.ledger.retention(app).is_none() {
            self.forget_unheard(app);
        }
        if let Some(app) = self.streams.read().get(&app) {
            app.scopes.values().for_each(|stream| stream.sweep(now_ms));
        }
    }

    /// Forgets the streams without subscribers of an app that retains nothing.
    fn forget_unheard(&self, app: AppId) {
        let mut streams = self.streams.write();
        if let Some(unheard) = streams.get_mut(&app) {
            let unheard_ones =
                unheard.scopes.extract_if(|_, stream| stream.unheard_since_ms().is_some());
            unheard_ones
                .for_each(|(_, stream)| self.numbering.forgotten(stream.key(), stream.head()));
            if unheard.scopes.is_empty() {
                streams.remove(&app);
            }
        }
    }

    /// Evicts expired publications from all streams.
    pub(super) fn sweep(&self, now_ms: u64) {
        let apps: Vec<AppId> = self.streams.read().keys().copied().collect();
        // The lock is taken for each app separately, so that no caller waits for all of them.
        for app in apps {
            self.review(app, now_ms);
        }
    }

    /// Evicts the oldest publications of an app that exceeds its bound or, if the server's bound is exceeded,
    /// of the app that retains the most. Returns the limit that was exceeded.
    pub(super) fn relieve(&self, app: AppId) -> Option<Limit> {
        let limits = self.ledger.limits();
        let streams = self.streams.read();
        let mut exceeded = None;
        let app = streams.get(&app);
        if let Some(app) = app.filter(|app| app.account.bytes() > limits.app_bytes_max) {
            app.shrink_to(limits.app_bytes_max - limits.app_bytes_max / SLACK_SHARE);
            exceeded = Some(Limit::HistoryAppBytes);
        }
        if self.ledger.bytes() <= limits.bytes_max {
            return exceeded;
        }
        let bytes = limits.bytes_max - limits.bytes_max / SERVER_SLACK_SHARE;
        let mut fullest: BinaryHeap<_> =
            streams.iter().map(|(app, of_app)| (of_app.account.bytes(), *app)).collect();
        while self.ledger.bytes() > bytes {
            let Some((_, app)) = fullest.pop() else { break };
            let Some(of_app) = streams.get(&app) else { break };
            let before = of_app.account.bytes();
            // The app evicts only a share of its own bytes, so that other apps with as many bytes evict some as
            // well.
            of_app.shrink_to(before.saturating_sub((before / SLACK_SHARE).max(1)));
            let after = of_app.account.bytes();
            if after >= before {
                break;
            }
            fullest.push((after, app));
        }
        Some(Limit::HistoryBytes)
    }

    /// The totals that all apps retain.
    pub(super) fn retained(&self) -> RetainedTotals {
        RetainedTotals { bytes: self.ledger.bytes(), publications: self.ledger.publications() }
    }
}

impl AppStreams {
    /// Forgets the stream without subscribers that has been unused for the longest time.
    fn forget_quietest(&mut self, numbering: &Numbering) -> Result<(), TooManyScopes> {
        let unheard = |(scope, stream): (&Scope, &Arc<Stream>)| {
            Some((stream.unheard_since_ms()?, scope.clone()))
        };
        let quietest = self.scopes.iter().filter_map(unheard).min();
        let (_, scope) = quietest.ok_or(TooManyScopes)?;
        if let Some(stream) = self.scopes.remove(&scope) {
            numbering.forgotten(stream.key(), stream.head());
        }
        Ok(())
    }

    /// Evicts the oldest publications of all scopes until this many bytes are left.
    fn shrink_to(&self, bytes: usize) {
        let wants_more = || self.account.bytes() > bytes;
        let streams: Vec<_> = self.scopes.values().collect();
        let oldest = |nth: usize| streams[nth].oldest_ms().map(|oldest| Reverse((oldest, nth)));
        let mut queue: BinaryHeap<_> = (0..streams.len()).filter_map(oldest).collect();
        while wants_more() {
            let Some(Reverse((own, nth))) = queue.pop() else { break };
            let next = queue.peek().map_or(u64::MAX, |Reverse((next, _))| *next);
            streams[nth].shrink(own.max(next), bytes);
            queue.extend(oldest(nth));
        }
        // The remaining bytes are those of remembered channels.
        for stream in streams.iter().take_while(|_| wants_more()) {
            stream.shrink(u64::MAX, bytes);
        }
    }
}

#[cfg(test)]
mod tests;
