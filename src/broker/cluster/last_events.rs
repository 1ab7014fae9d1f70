//! The last events of cache channels, which a starting node requests from another one.

use futures_util::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};

use crate::broker::{
    last_events::{CacheKey, ToldEvent},
    node::NodeId,
    topics::{Topics, Unanswered},
};

use super::questions::ClusterQuestion;

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

    fn answer(self, topics: Topics) -> BoxFuture<'static, Result<Vec<ToldEvent>, Unanswered>> {
        let page = topics.directory().last_events().page(self.after.as_ref(), PAGE_BYTES);
        async move { Ok(page) }.boxed()
    }
}

impl Topics {
    /// Asks the other nodes, one after the other, for the last events of cache channels, until one of them
    /// has sent all of its events. A server without other nodes has nothing to ask.
    ///
    /// # Errors
    /// [`Unanswered`] if there are other nodes, and none of them has sent all of its events.
    pub async fn fetch_last_events(&self) -> Result<(), Unanswered> {
        let Some(engine) = self.engine() else { return Ok(()) };
        let nodes = engine.nodes();
        let others = nodes.iter().map(|info| info.node).filter(|node| *node != self.node());
        let mut outcome = Ok(());
        for node in others {
            outcome = self.fetch_last_events_of(node).await;
            if outcome.is_ok() {
                break;
            }
        }
        self.directory().last_events().sort_by_time();
        outcome
    }

    async fn fetch_last_events_of(&self, node: NodeId) -> Result<(), Unanswered> {
        let mut after = None;
        loop {
            let page = self.ask_one(node, LastEventsQuestion { after }).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            for told in page {
                let exceeded = self.directory().last_events().adopt(told);
                exceeded.into_iter().for_each(|limit| self.metrics().hit(limit));
            }
        }
    }
}
