//! The last events of cache channels, which a starting node requests from another one.

use std::sync::atomic::Ordering::Relaxed;

use futures_util::{
    FutureExt,
    future::{self, BoxFuture},
};
use serde::{Deserialize, Serialize};

use crate::{
    broker::{
        last_events::{CacheKey, ToldEvent},
        node::NodeId,
        topics::{Topics, Unanswered},
    },
    engine::NodeInfo,
    metrics::labels::Limit,
};

use super::{Cluster, questions::ClusterQuestion};

/// The most bytes of memory that the events of one answer take. Their JSON takes up to about twice as many.
const PAGE_BYTES: usize = 1 << 20;

/// Asks a node for the last events of the channels that follow a channel.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LastEventsQuestion {
    after: Option<CacheKey>,
}

impl ClusterQuestion for LastEventsQuestion {
    const NAME: &'static str = "last_events";
    type Answer = Vec<ToldEvent>;

    /// A node that is fetching the events itself does not answer: it has only a part of them, which the asker would
    /// take for all.
    fn answer(self, topics: Topics) -> BoxFuture<'static, Result<Vec<ToldEvent>, Unanswered>> {
        let has_fetched = topics.cluster().is_some_and(Cluster::has_last_events);
        let page = || topics.directory().last_events().page(self.after.as_ref(), PAGE_BYTES);
        future::ready(has_fetched.then(page).ok_or(Unanswered)).boxed()
    }
}

/// The fetching of the last events of the other nodes. It ends when this is dropped, whether they were all
/// sent or not: otherwise nodes that start together would wait for each other for ever.
struct LastEventsFetch<'a>(&'a Topics);

impl Drop for LastEventsFetch<'_> {
    fn drop(&mut self) {
        self.0.directory().last_events().sort_by_time();
        if let Some(cluster) = self.0.cluster() {
            cluster.has_last_events.store(true, Relaxed);
        }
    }
}

impl Cluster {
    /// Returns whether this node has asked the others for their last events of cache channels.
    fn has_last_events(&self) -> bool {
        self.has_last_events.load(Relaxed)
    }
}

impl Topics {
    /// Asks the other nodes, one after the other, for the last events of cache channels, until one of them
    /// has sent all of its events. The node that has run for the longest time is asked first. A server without
    /// other nodes has nothing to ask.
    ///
    /// # Errors
    /// [`Unanswered`] if there are other nodes, and none of them has sent all of its events.
    pub async fn fetch_last_events(&self) -> Result<(), Unanswered> {
        let Some(engine) = self.engine() else { return Ok(()) };
        let _fetch = LastEventsFetch(self);
        let mut others = engine.nodes().to_vec();
        others.retain(|info| info.node != self.node());
        others.sort_by_key(|info| info.since_ms);
        let mut outcome = Ok(());
        for NodeInfo { node, .. } in others {
            outcome = self.fetch_last_events_of(node).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    async fn fetch_last_events_of(&self, node: NodeId) -> Result<(), Unanswered> {
        let mut after = None;
        loop {
            let page = self.ask_one(node, LastEventsQuestion { after }).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            for told in page {
                let exceeded = self.adopt(told);
                exceeded.into_iter().for_each(|limit| self.metrics().hit(limit));
            }
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
        is_current.then(|| self.directory().last_events().adopt(told)).flatten()
    }
}
