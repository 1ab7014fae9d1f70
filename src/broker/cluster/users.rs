//! The signed-in users of several nodes: each node tells the others which users come online and go offline
//! there, so that watchers are told about the users of all nodes.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::{
    broker::{
        node::NodeId,
        other_nodes::{KeyChange, OtherNodes},
        topics::{Topics, Unanswered},
        users::{OnlineHere, UserKey},
    },
    engine::Incarnation,
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
    /// The number of this message of the node.
    #[serde(default)]
    number: Option<u64>,
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
pub(super) fn register(topics: &Topics) {
    topics.signed_in().share();
    let broker = topics.downgrade();
    topics.on_message(CHANGED, move |message| {
        let Some(topics) = Topics::upgrade(&broker) else { return };
        let Some(message) = message else {
            return topics.signed_in().with_elsewhere(OtherNodes::miss);
        };
        let Ok(told) = serde_json::from_slice(&message) else { return };
        let ChangedUsers { node, number, users } = told;
        if NodeId(node) != topics.node() {
            let told = users.into_iter().map(KeyChange::from).collect();
            topics
                .signed_in()
                .change_elsewhere(|elsewhere| elsewhere.note(NodeId(node), number, told));
        }
    });
}

impl Topics {
    /// Tells the other nodes which users come online and go offline here, and learns which users are online
    /// there. Runs until it is dropped, but ends at once on a server without a cluster.
    pub async fn keep_users(self) {
        let Some(cluster) = self.cluster() else { return };
        let (users, mut told) = (self.signed_in(), 0);
        loop {
            let _ = timeout(TICK, users.changed()).await;
            self.tell_users(&mut told).await;
            let live = cluster.engine.nodes();
            users.change_elsewhere(|elsewhere| elsewhere.retain(&live));
            let asked =
                users.with_elsewhere(|elsewhere| elsewhere.begin_asking(&live, self.node()));
            let asked = asked.into_iter();
            join_all(asked.map(|(node, incarnation)| self.learn_users_of(node, incarnation))).await;
        }
    }

    /// Sends messages with the users that have changed. `told` is the number of the last message.
    pub(super) async fn tell_users(&self, told: &mut u64) {
        let mut changed = self.signed_in().take_changed();
        while !changed.is_empty() {
            let rest = changed.split_off(changed.len().min(USERS_PER_MESSAGE));
            *told += 1;
            let (node, number) = (self.node().0, Some(*told));
            let message = ChangedUsers { node, number, users: changed };
            let written = serde_json::to_vec(&message).unwrap_or_default();
            if self.tell_nodes(CHANGED, &written).await.is_err() {
                self.signed_in().put_back([message.users, rest].concat());
                return sleep(TICK).await;
            }
            changed = rest;
            sleep(PAUSE).await;
        }
    }

    /// Asks a node for all its users.
    async fn learn_users_of(&self, node: NodeId, incarnation: Incarnation) {
        let (mut all, mut after) = (HashMap::new(), None);
        let learned = loop {
            let page = self.ask_one(node, UsersQuestion { after });
            let Ok(Ok(page)) = timeout(TICK, page).await else { break None };
            let Some(last) = page.last() else { break Some(all) };
            after = Some(last.clone());
            all.extend(page.into_iter().map(|user| (user, ())));
        };
        let users = self.signed_in();
        users.change_elsewhere(|elsewhere| elsewhere.replace(node, incarnation, learned));
    }
}
