//! The last events of cache channels, which a starting node requests from another one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::{
    broker::{
        last_events::{CacheKey, ToldEvent},
        node::NodeId,
        now_ms,
        subscriber::ScopeKey,
        topics::{Topics, Unanswered},
    },
    engine::NodeInfo,
    metrics::labels::Limit,
};

use super::questions::ClusterQuestion;

/// The most bytes of memory that the events of one answer take. Their JSON takes up to about twice as many.
const PAGE_BYTES: usize = 1 << 20;

/// Asks a node for the last events of the channels that follow a channel.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LastEventsQuestion {
    after: Option<CacheKey>,
    /// Whether a node that may lack some also answers.
    #[serde(default)]
    in_part: bool,
}

impl ClusterQuestion for LastEventsQuestion {
    const NAME: &'static str = "last_events";
    type Answer = Vec<ToldEvent>;

    /// A node that may lack some of the events does not answer, unless the question is for those that it has: the
    /// asker would take them for all.
    async fn answer(self, topics: Topics) -> Result<Vec<ToldEvent>, Unanswered> {
        let has_all = topics.cluster().is_some_and(|cluster| cluster.lack.is_none(now_ms()));
        let page =
            || topics.directory().ledger().last_events().page(self.after.as_ref(), PAGE_BYTES);
        (has_all || self.in_part).then(page).ok_or(Unanswered)
    }
}

/// Whether this node may lack last events of cache channels that other nodes have.
#[derive(Debug)]
pub(super) struct LastEventsLack {
    /// The time at which everything that it may lack has expired, in Unix milliseconds.
    until_ms: AtomicU64,
}

impl LastEventsLack {
    /// The state before the node has asked the others.
    const UNASKED: u64 = u64::MAX;

    pub(super) fn new() -> Self {
        Self { until_ms: AtomicU64::new(Self::UNASKED) }
    }

    fn is_none(&self, now_ms: u64) -> bool {
        self.until_ms.load(Relaxed) <= now_ms
    }

    /// Notes that the others have been asked. `until_ms` is 0 if one of them has sent everything. An event that the
    /// node has dropped meanwhile stays missing.
    fn asked(&self, until_ms: u64) {
        let _ = self.until_ms.compare_exchange(Self::UNASKED, until_ms, Relaxed, Relaxed);
    }

    /// Notes that this node has dropped events that other nodes may have.
    pub(super) fn dropped(&self, until_ms: u64) {
        self.until_ms.store(until_ms, Relaxed);
    }
}

/// The fetching of the last events of the other nodes. It ends when this is dropped, whether they were all
/// sent or not: otherwise nodes that start together would wait for each other for ever.
struct LastEventsFetch<'a> {
    topics: &'a Topics,
    has_all: bool,
}

impl Drop for LastEventsFetch<'_> {
    fn drop(&mut self) {
        let last_events = self.topics.directory().ledger().last_events();
        last_events.sort_by_time();
        if let Some(cluster) = self.topics.cluster() {
            let until_ms = if self.has_all { 0 } else { last_events.expiry_ms(now_ms()) };
            cluster.lack.asked(until_ms);
        }
    }
}

impl Topics {
    /// Asks the other nodes, one after the other, for the last events of cache channels, until one of them
    /// has sent all of its events. The node that has run for the longest time is asked first. If none of them is sure
    /// to have all, each is asked for those that it has. A server without other nodes has nothing to ask.
    ///
    /// # Errors
    /// [`Unanswered`] if there are other nodes, and none of them has sent its events.
    pub async fn fetch_last_events(&self) -> Result<(), Unanswered> {
        let Some(engine) = self.engine() else { return Ok(()) };
        let mut fetch = LastEventsFetch { topics: self, has_all: false };
        let mut others = engine.nodes().to_vec();
        others.retain(|info| info.node != self.node());
        others.sort_by_key(|info| info.since_ms);
        fetch.has_all = others.is_empty();
        for NodeInfo { node, .. } in &others {
            if self.fetch_last_events_of(*node, false).await.is_ok() {
                fetch.has_all = true;
                return Ok(());
            }
        }
        let mut outcome = if others.is_empty() { Ok(()) } else { Err(Unanswered) };
        for NodeInfo { node, .. } in &others {
            outcome = self.fetch_last_events_of(*node, true).await.or(outcome);
        }
        outcome
    }

    async fn fetch_last_events_of(&self, node: NodeId, in_part: bool) -> Result<(), Unanswered> {
        let mut after = None;
        loop {
            let page = self.ask_one(node, LastEventsQuestion { after, in_part }).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            for told in page {
                let exceeded = self.adopt(told);
                exceeded.into_iter().for_each(|limit| self.metrics().hit(limit));
            }
        }
    }

    /// Drops the last events of all scopes for which `is_gone` is true, because newer ones may be missing here.
    pub(super) fn drop_last_events(&self, is_gone: impl Fn(&ScopeKey) -> bool) {
        let last_events = self.directory().ledger().last_events();
        last_events.forget(is_gone);
        if let Some(cluster) = self.cluster() {
            cluster.lack.dropped(last_events.expiry_ms(now_ms()));
        }
    }

    /// Keeps an event of another node, unless it is of an epoch that has ended here: the other node has then not
    /// heard of the new epoch yet, and the log may have lost a newer event.
    pub(super) fn adopt(&self, told: ToldEvent) -> Option<Limit> {
        let heads = self.cluster()?.heads();
        let scope = told.scope();
        // No epoch begins here until the event is kept.
        let following = heads.lock(heads.partition_of(&scope));
        let is_current = told.position()?.epoch == following.head(&scope).epoch;
        is_current.then(|| self.directory().ledger().last_events().adopt(told)).flatten()
    }
}
