//! The limit on the sessions of an app over all nodes of a cluster: each node tells the others how many
//! sessions of each app it has, and refuses a session if all nodes together have as many as the limit allows.
//!
//! A count reaches the other nodes within a round trip, or a little later while many counts change. Sessions
//! that begin on several nodes within this time, or while the nodes are disconnected, may exceed the limit
//! together. The surplus is then ended: nodes with lower numbers keep their sessions.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use log::warn;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::{
    app::AppId,
    broker::{Topics, node::NodeId},
    session::places::Places,
};

/// The name of the message with the counts that have changed on a node.
const CHANGED: &str = "app_sessions_changed";

/// The name of the question for all counts of a node.
const ALL: &str = "app_sessions";

/// The interval at which all nodes are asked for all their counts, in case a message was missed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);

/// The longest time between two removals of the counts of dead nodes. Also the time that a node may take to answer,
/// and the pause after a message that could not be sent.
const TICK: Duration = Duration::from_secs(1);

/// The shortest time between two messages. Changes within it are sent together.
const PAUSE: Duration = Duration::from_millis(20);

/// The counts of a node, by the number of the app.
#[derive(Debug, Serialize, Deserialize)]
struct SessionCounts {
    node: u16,
    counts: Vec<(i32, usize)>,
}

/// The counts of all other nodes.
#[derive(Clone, Default)]
struct Others(Arc<Mutex<HashMap<NodeId, HashMap<AppId, usize>>>>);

impl Others {
    /// Sets counts of another node. An app with the count zero is removed.
    fn note(&self, node: NodeId, counts: Vec<(i32, usize)>) {
        let mut others = self.0.lock();
        let of_node = others.entry(node).or_default();
        for (app, count) in counts {
            match count {
                0 => of_node.remove(&AppId(app)),
                _ => of_node.insert(AppId(app), count),
            };
        }
    }

    /// The number of sessions of an app on the nodes with lower numbers than this one.
    fn before(&self, node: NodeId, app: AppId) -> usize {
        let others = self.0.lock();
        let lower = others.iter().filter(|(other, _)| **other < node);
        lower.filter_map(|(_, counts)| counts.get(&app)).sum()
    }

    fn sum(&self) -> HashMap<AppId, usize> {
        let mut sum = HashMap::new();
        for (app, count) in self.0.lock().values().flatten() {
            *sum.entry(*app).or_default() += count;
        }
        sum
    }
}

/// The number of sessions of an app that a node must end: it has `here`, and the nodes before it have `before`.
fn surplus(max: usize, here: usize, before: usize) -> usize {
    here.saturating_sub(max.saturating_sub(before))
}

/// The counts of sessions of each app, on this node and on the others.
pub(super) struct AppSessions {
    topics: Topics,
    places: Places<AppId>,
    others: Others,
    /// Whether counts of other nodes may be missing.
    is_missed: Arc<AtomicBool>,
}

impl AppSessions {
    /// Registers the answers to the other nodes, and the handler of their messages; `None` without a cluster, or
    /// without a limit.
    pub(super) fn share(topics: &Topics, places: &Places<AppId>) -> Option<Self> {
        if !topics.is_clustered() || !places.share() {
            return None;
        }
        let (own, node) = (places.clone(), topics.node().0);
        topics.on_question(ALL, move |_| {
            let counts = own.all().into_iter().map(|(app, count)| (app.0, count)).collect();
            let answer = serde_json::to_vec(&SessionCounts { node, counts }).ok().map(Bytes::from);
            async move { answer }
        });
        let (others, is_missed) = (Others::default(), Arc::new(AtomicBool::new(true)));
        let (heard, counted, missed) = (others.clone(), places.clone(), is_missed.clone());
        topics.on_message(CHANGED, move |message| match message {
            None => missed.store(true, Relaxed),
            Some(message) => {
                let Ok(told) = serde_json::from_slice::<SessionCounts>(&message) else { return };
                if told.node != node {
                    heard.note(NodeId(told.node), told.counts);
                    counted.set_elsewhere(heard.sum());
                }
            }
        });
        let (topics, places) = (topics.clone(), places.clone());
        Some(Self { topics, places, others, is_missed })
    }

    /// Asks the other nodes for their counts, and keeps them up to date from then on.
    pub(super) async fn begin(self) {
        self.refresh().await;
        actix_rt::spawn(self.keep());
    }

    async fn keep(self) {
        let mut refreshed = Instant::now();
        loop {
            let _ = timeout(TICK, self.places.changed()).await;
            self.tell().await;
            if self.is_missed.load(Relaxed) || refreshed.elapsed() >= REFRESH_INTERVAL {
                self.refresh().await;
                refreshed = Instant::now();
            }
            let live = self.topics.engine().map(|engine| engine.nodes());
            let is_live = |of: &NodeId| {
                live.as_ref().is_none_or(|live| live.iter().any(|info| info.node == *of))
            };
            self.others.0.lock().retain(|node, _| is_live(node));
            self.places.set_elsewhere(self.others.sum());
            self.end_surplus().await;
        }
    }

    /// Ends the newest sessions of each app over its limit, except for those that nodes with higher numbers must
    /// end.
    async fn end_surplus(&self) {
        let Some(max) = self.places.max() else { return };
        for (app, here) in self.places.all() {
            let surplus = surplus(max, here, self.others.before(self.topics.node(), app));
            if surplus > 0 {
                warn!(
                    "app {} has had more than limits.sessions_per_app_max = {max} sessions over all \
                     nodes: {surplus} of this one are ended",
                    app.0
                );
                if self.topics.end_newest(app, surplus).await.is_err() {
                    warn!(
                        "a thread did not answer in time: the remaining surplus sessions are ended later"
                    );
                }
            }
        }
    }

    /// Tells the other nodes the counts that have changed.
    async fn tell(&self) {
        let changed = self.places.take_changed();
        if changed.is_empty() {
            return;
        }
        let counts = changed.iter().map(|(app, count)| (app.0, *count)).collect();
        let counts = SessionCounts { node: self.topics.node().0, counts };
        let message = serde_json::to_vec(&counts).unwrap_or_default();
        if self.topics.tell_nodes(CHANGED, &message).await.is_err() {
            self.places.put_back(changed.into_iter().map(|(app, _)| app));
            sleep(TICK).await;
        }
        sleep(PAUSE).await;
    }

    /// Asks the other nodes for all their counts. The old counts of a node that does not answer stay, and
    /// it is asked again.
    async fn refresh(&self) {
        let (own, live) = (self.topics.node(), self.topics.engine().map(|engine| engine.nodes()));
        let nodes = live.iter().flat_map(|live| live.iter()).map(|info| info.node);
        let asked = nodes.filter(|node| *node != own).map(async |node| {
            let answer = self.topics.ask_node(node, ALL, b"", TICK).await.ok()?;
            let SessionCounts { counts, .. } = serde_json::from_slice(&answer).ok()?;
            Some((node, counts))
        });
        self.is_missed.store(false, Relaxed);
        let answers = join_all(asked).await;
        if answers.iter().any(Option::is_none) {
            self.is_missed.store(true, Relaxed);
        }
        for (node, counts) in answers.into_iter().flatten() {
            self.others.0.lock().remove(&node);
            self.others.note(node, counts);
        }
        self.places.set_elsewhere(self.others.sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_keep_as_many_sessions_together_as_there_may_be() {
        for counts in [[3, 0, 0], [1, 1, 1], [4, 4, 4], [0, 2, 9], [5, 0, 1], [0, 0, 7]] {
            let (mut before, mut kept) = (0, 0);
            for here in counts {
                kept += here - surplus(3, here, before);
                before += here;
            }
            assert_eq!(kept, 3.min(before), "{counts:?}");
        }
    }

    #[test]
    fn counts_are_those_of_the_other_nodes_and_a_count_of_zero_is_forgotten() {
        let others = Others::default();
        others.note(NodeId(1), vec![(7, 2), (8, 1)]);
        others.note(NodeId(3), vec![(7, 5)]);
        assert_eq!(others.sum(), HashMap::from([(AppId(7), 7), (AppId(8), 1)]));
        assert_eq!([1, 2, 4].map(|node| others.before(NodeId(node), AppId(7))), [0, 2, 7]);
        others.note(NodeId(1), vec![(8, 0)]);
        assert_eq!(others.sum(), HashMap::from([(AppId(7), 7)]));
    }
}
