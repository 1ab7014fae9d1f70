//! The retained publications: reading them, evicting old ones, and saving them when the server stops.

use std::{
    io,
    time::{Duration, Instant},
};

use super::Topics;
use crate::{
    app::AppId,
    broker::{
        archive::ArchiveError,
        last_events::LastEvent,
        now_ms,
        position::StreamPosition,
        recovery::{HistoryPage, Incomplete, PageQuery, Since},
        saving::{self, Loaded, Totals},
        stream::Stream,
        subscriber::{Place, ScopeKey},
        topic_name::{ChannelName, Scope},
    },
};

/// The interval at which expired publications are evicted. They are not replayed before that either.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

impl Topics {
    /// Evicts expired publications and forgets expired idempotency keys, for as long as this runs.
    pub async fn keep_history(self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.0.directory.sweep(now_ms());
            self.0.directory.ledger().sweep_last_events(now_ms());
            self.0.keys.expire(Instant::now());
            if let Some(cluster) = self.cluster() {
                cluster.recent_keys().expire(Instant::now());
            }
        }
    }

    /// The newest position of a scope: a join with it receives everything that is published from
    /// now on. Without a cluster, `None` if the scope has no stream, and the app retains nothing or has
    /// subscribers in as many scopes as it may.
    pub fn head(&self, key: &ScopeKey) -> Option<StreamPosition> {
        let directory = &self.0.directory;
        let head = || directory.with(key, Stream::head);
        let made = || directory.ensure(key).then(head).flatten();
        head().or_else(made).or_else(|| directory.log_head(key))
    }

    /// The retained publications of a channel after a position, the oldest first; without a
    /// position the newest ones. At most `publications_max`.
    pub fn history(
        &self,
        key: &ScopeKey,
        channel: &ChannelName,
        since: Since,
        publications_max: usize,
    ) -> HistoryPage {
        let directory = &self.0.directory;
        let ask = PageQuery {
            channel,
            since,
            log_head: directory.log_head(key),
            publications_max,
            bytes_max: directory.ledger().limits().replay_bytes_max,
        };
        let page = |stream: &Stream| stream.page(&ask, now_ms());
        let page = || directory.with(key, page);
        page().or_else(|| directory.ensure(key).then(page).flatten()).unwrap_or_else(|| {
            let incomplete = (since != Since::Now).then_some(Incomplete::Off);
            HistoryPage { incomplete, position: None, publications: Vec::new() }
        })
    }

    /// The last event of a cache channel, if it is still kept.
    pub fn last_event(&self, place: &Place) -> Option<LastEvent> {
        self.0.directory.ledger().last_events().of(place, now_ms())
    }

    /// The bytes of memory that all apps retain.
    pub fn retained_bytes(&self) -> usize {
        self.0.directory.retained().bytes
    }

    /// Waits until [`finish`](Self::finish) was called and nothing is under way. From then on no publication is
    /// accepted or gets a position, and every idempotency key is free or has its complete receipt.
    pub async fn finished(&self) {
        self.0.permits.finished().await;
        // A publisher may still be about to complete its key.
        self.0.keys.settled().await;
        for remembered in self.0.keys.remembered(Instant::now()) {
            // All publications have been delivered, so all counts are known.
            remembered.outcome.skipped().await;
        }
    }

    /// Writes the retained publications and the idempotency keys. Blocks.
    ///
    /// # Errors
    /// Those of `target`.
    pub fn save(&self, target: impl io::Write) -> io::Result<Totals> {
        let keys = self.0.keys.remembered(Instant::now());
        saving::save(&self.0.directory, keys, target, now_ms())
    }

    /// Loads an archive, and evicts the publications that may no longer be retained. Blocks. Must be called
    /// before any publication or join.
    ///
    /// # Errors
    /// [`ArchiveError`]: nothing was loaded.
    pub fn load(&self, source: impl io::Read) -> Result<Totals, ArchiveError> {
        let Loaded { totals, keys } = saving::load(&self.0.directory, source, now_ms())?;
        let keys = self.0.keys.remember_again(keys, Instant::now());
        self.resume_feed();
        Ok(Totals { keys, ..totals })
    }

    /// Continues to watch the apps that consoles watched before the restart. They are known because the
    /// publications of their feeds were retained.
    fn resume_feed(&self) {
        let Ok(scope) = Scope::parse(Scope::CONSOLE) else { return };
        let key = ScopeKey { app: AppId::CONSOLE, scope };
        self.0.directory.with(&key, |stream| {
            stream.look(|history| {
                let channels = history.channels();
                self.0.feed.resume(channels.iter().map(|(channel, _)| channel.as_str()));
            });
        });
    }
}
