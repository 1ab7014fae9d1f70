//! The signed-in users of several nodes: each node tells the others which users come online and go offline
//! there, so that watchers are told about the users of all nodes.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::{
    broker::{
        node::NodeId,
        topics::{Topics, Unanswered},
        users::{OnlineHere, UserKey},
    },
    engine::NodeInfo,
};

use super::questions::ClusterQuestion;

/// The name of the message with the users that have come online or gone offline on a node.
const CHANGED: &str = "users_changed";

/// The interval at which a node looks for new nodes and lost ones.
const TICK: Duration = Duration::from_secs(1);

/// The shortest time between two messages. Changes within it are sent together.
const PAUSE: Duration = Duration::from_millis(20);

/// The most users of one message, and of one answer.
const USERS_PER_MESSAGE: usize = 2_000;

/// The body of the message.
#[derive(Debug, Serialize, Deserialize)]
struct ChangedUsers {
    node: u16,
    users: Vec<OnlineHere>,
}

/// Asks a node for the users that are online there and follow a user in alphabetical order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UsersQuestion {
    after: Option<UserKey>,
}

impl ClusterQuestion for UsersQuestion {
    const NAME: &'static str = "users";
    type Answer = Vec<UserKey>;

    async fn answer(self, topics: Topics) -> Result<Vec<UserKey>, Unanswered> {
        Ok(topics.signed_in().page(self.after.as_ref(), USERS_PER_MESSAGE))
    }
}

/// Registers the handler of the message, and the answer to the question.
pub(super) fn register(topics: &Topics, is_missed: &Arc<AtomicBool>) {
    topics.signed_in().share();
    let (broker, is_missed) = (topics.downgrade(), is_missed.clone());
    topics.on_message(CHANGED, move |message| {
        let Some(topics) = Topics::upgrade(&broker) else { return };
        let Some(message) = message else { return is_missed.store(true, Relaxed) };
        let Ok(ChangedUsers { node, users }) = serde_json::from_slice(&message) else { return };
        if NodeId(node) != topics.node() {
            topics.signed_in().note(NodeId(node), users);
        }
    });
}

impl Topics {
    /// Tells the other nodes which users come online and go offline here, and learns which users are online
    /// there. Runs until it is dropped, but ends at once on a server without a cluster.
    pub async fn keep_users(self) {
        let Some(cluster) = self.cluster() else { return };
        let users = self.signed_in();
        loop {
            let _ = timeout(TICK, users.changed()).await;
            self.tell_users().await;
            let (own, live) = (self.node(), cluster.engine.nodes());
            let others: Vec<_> = live.iter().filter(|info| info.node != own).collect();
            let is_gone = |node: &NodeId| others.iter().all(|info| info.node != *node);
            users.known_nodes().into_iter().filter(is_gone).for_each(|node| users.forget(node));
            let are_all = cluster.are_users_missed.swap(false, Relaxed);
            let is_asked =
                |info: &&NodeInfo| are_all || !users.has_learned(info.node, info.incarnation);
            let asked = others.into_iter().filter(is_asked);
            let learned = join_all(asked.map(|info| self.learn_users_of(info))).await;
            if learned.contains(&false) {
                cluster.are_users_missed.fetch_or(are_all, Relaxed);
            }
        }
    }

    async fn tell_users(&self) {
        let mut changed = self.signed_in().take_changed();
        while !changed.is_empty() {
            let rest = changed.split_off(changed.len().min(USERS_PER_MESSAGE));
            let message = ChangedUsers { node: self.node().0, users: changed };
            let written = serde_json::to_vec(&message).unwrap_or_default();
            if self.tell_nodes(CHANGED, &written).await.is_err() {
                self.signed_in().put_back([message.users, rest].concat());
                return sleep(TICK).await;
            }
            changed = rest;
            sleep(PAUSE).await;
        }
    }

    /// Asks a node for all its users. Returns `false` if it has not answered completely.
    async fn learn_users_of(&self, info: &NodeInfo) -> bool {
        let NodeInfo { node, incarnation, .. } = *info;
        self.signed_in().begin_replacing(node);
        let (mut all, mut after) = (HashSet::new(), None);
        let learned = loop {
            let page = self.ask_one(node, UsersQuestion { after });
            let Ok(Ok(page)) = timeout(TICK, page).await else { break None };
            let Some(last) = page.last() else { break Some(all) };
            after = Some(last.clone());
            all.extend(page);
        };
        let is_learned = learned.is_some();
        self.signed_in().replace(node, incarnation, learned);
        is_learned
    }
}
