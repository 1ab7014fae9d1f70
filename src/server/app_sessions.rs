//! The limit on the sessions of an app over all nodes of a cluster: each node tells the others how many
//! sessions of each app it has, and refuses a session if all nodes together have as many as the limit allows.
//!
//! A count reaches the other nodes within a round trip, or a little later while many counts change. Sessions
//! that begin on several nodes within this time, or while the nodes are disconnected, may exceed the limit
//! together. The surplus is then ended: nodes with lower numbers keep their sessions.

use std::{
    sync::Arc,
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
    broker::{
        Topics,
        node::NodeId,
        other_nodes::{KeyChange, OtherNodes},
    },
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
    /// The number of this message of the node; an answer has none.
    #[serde(default)]
    number: Option<u64>,
    counts: Vec<(i32, usize)>,
}

/// The counts of the other nodes, whose sums count among the places.
struct CountsElsewhere {
    places: Places<AppId>,
    nodes: Mutex<OtherNodes<AppId, usize>>,
}

impl CountsElsewhere {
    /// Changes the counts of other nodes.
    fn change(
        &self,
        change: impl FnOnce(&mut OtherNodes<AppId, usize>) -> Vec<KeyChange<AppId, usize>>,
    ) {
        let mut nodes = self.nodes.lock();
        let changed = change(&mut nodes);
        let sum = |app| nodes.iter().filter_map(|(_, counts)| counts.get(&app)).sum();
        // Under the lock, so that an earlier sum does not replace a later one.
        self.places.set_elsewhere(changed.into_iter().map(|(app, _)| (app, sum(app))));
    }

    /// Sets counts of another node that it has told. An app with the count zero is removed.
    fn note(&self, SessionCounts { node, number, counts }: SessionCounts) {
        let told =
            counts.into_iter().map(|(app, count)| (AppId(app), (count > 0).then_some(count)));
        self.change(|nodes| nodes.note(NodeId(node), number, told.collect()));
    }

    /// The number of sessions of an app on the nodes with lower numbers than this one.
    fn before(&self, node: NodeId, app: AppId) -> usize {
        let nodes = self.nodes.lock();
        let lower = nodes.iter().filter(|(other, _)| *other < node);
        lower.filter_map(|(_, counts)| counts.get(&app)).sum()
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
    elsewhere: Arc<CountsElsewhere>,
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
            let answer = serde_json::to_vec(&SessionCounts { node, number: None, counts });
            let answer = answer.ok().map(Bytes::from);
            async move { answer }
        });
        let nodes = Mutex::default();
        let elsewhere = Arc::new(CountsElsewhere { places: places.clone(), nodes });
        let heard = elsewhere.clone();
        topics.on_message(CHANGED, move |message| match message {
            None => heard.nodes.lock().miss(),
            Some(message) => {
                let Ok(told) = serde_json::from_slice::<SessionCounts>(&message) else { return };
                if told.node != node {
                    heard.note(told);
                }
            }
        });
        Some(Self { topics: topics.clone(), places: places.clone(), elsewhere })
    }

    /// Asks the other nodes for their counts, and keeps them up to date from then on.
    pub(super) async fn begin(self) {
        self.learn().await;
        actix_rt::spawn(self.keep());
    }

    async fn keep(self) {
        let (mut refreshed, mut told) = (Instant::now(), 0);
        loop {
            let _ = timeout(TICK, self.places.changed()).await;
            self.tell(&mut told).await;
            if refreshed.elapsed() >= REFRESH_INTERVAL {
                self.elsewhere.nodes.lock().miss();
                refreshed = Instant::now();
            }
            self.learn().await;
            self.end_surplus().await;
        }
    }

    /// Ends the newest sessions of each app over its limit, except for those that nodes with higher numbers must
    /// end.
    async fn end_surplus(&self) {
        let Some(max) = self.places.max() else { return };
        for (app, here) in self.places.all() {
            let surplus = surplus(max, here, self.elsewhere.before(self.topics.node(), app));
            if surplus > 0 {
                warn!(
                    "the app with the number {} has more than limits.sessions_per_app_max = {max} sessions \
                     over all nodes: this node ends {surplus} of its own",
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

    /// Tells the other nodes the counts that have changed. `told` is the number of the last message.
    async fn tell(&self, told: &mut u64) {
        let changed = self.places.take_changed();
        if changed.is_empty() {
            return;
        }
        let counts = changed.iter().map(|(app, count)| (app.0, *count)).collect();
        *told += 1;
        let counts = SessionCounts { node: self.topics.node().0, number: Some(*told), counts };
        let message = serde_json::to_vec(&counts).unwrap_or_default();
        if self.topics.tell_nodes(CHANGED, &message).await.is_err() {
            self.places.put_back(changed.into_iter().map(|(app, _)| app));
            sleep(TICK).await;
        }
        sleep(PAUSE).await;
    }

    /// Forgets the counts of dead nodes, and asks the nodes whose counts may not be known for all of them.
    async fn learn(&self) {
        let Some(live) = self.topics.engine().map(|engine| engine.nodes()) else { return };
        self.elsewhere.change(|nodes| nodes.retain(&live));
        let asked = self.elsewhere.nodes.lock().begin_asking(&live, self.topics.node());
        let asked = asked.into_iter().map(async |(node, incarnation)| {
            let answer = self.topics.ask_node(node, ALL, b"", TICK).await.ok();
            let told = answer.and_then(|answer| serde_json::from_slice(&answer).ok());
            let counts = told.map(|SessionCounts { counts, .. }| {
                counts.into_iter().map(|(app, count)| (AppId(app), count)).collect()
            });
            self.elsewhere.change(|nodes| nodes.replace(node, incarnation, counts));
        });
        join_all(asked).await;
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
        let (places, nodes) = (Places::new(Some(8)), Mutex::default());
        let elsewhere = CountsElsewhere { places: places.clone(), nodes };
        let note = |node, counts| elsewhere.note(SessionCounts { node, number: None, counts });
        let free =
            |app| (0..).map_while(|_| places.take(&AppId(app)).ok()).collect::<Vec<_>>().len();
        note(1, vec![(7, 2), (8, 1)]);
        note(3, vec![(7, 5)]);
        assert_eq!([7, 8].map(free), [1, 7]);
        assert_eq!([1, 2, 4].map(|node| elsewhere.before(NodeId(node), AppId(7))), [0, 2, 7]);
        note(1, vec![(8, 0)]);
        assert_eq!([7, 8].map(free), [1, 8]);
    }

    #[test]
    fn a_message_changes_the_counts_of_its_own_apps_alone() {
        let (places, nodes) = (Places::new(Some(8)), Mutex::default());
        let elsewhere = CountsElsewhere { places: places.clone(), nodes };
        // No node has told this.
        places.set_elsewhere([(AppId(9), 8)]);
        elsewhere.note(SessionCounts { node: 1, number: None, counts: vec![(7, 2)] });
        assert!(places.take(&AppId(9)).is_err(), "the count of another app is not touched");
    }
}
