//! The questions of the broker that concern all nodes. Each node answers for its own threads.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::broker::{
    connections::{EndConnection, ListConnections},
    disconnection::DisconnectQuestion,
    node::NodeId,
    occupancy::{Occupancy, Subscribers},
    topics::{Topics, Unanswered},
};

use super::{last_events::LastEventsQuestion, users::UsersQuestion};

/// A question of the broker to nodes. Questions and answers are sent as JSON, and a node ignores fields
/// that it does not know.
pub(in crate::broker) trait ClusterQuestion:
    Serialize + DeserializeOwned + Send + 'static
{
    /// The name on the wire.
    const NAME: &'static str;

    /// The answer of one node.
    type Answer: Serialize + DeserializeOwned + Send;

    /// Answers for the threads of this node.
    fn answer(
        self,
        topics: Topics,
    ) -> impl Future<Output = Result<Self::Answer, Unanswered>> + Send;
}

impl Topics {
    /// Asks all nodes, and returns all their answers.
    pub(in crate::broker) async fn everywhere<Q: ClusterQuestion>(
        &self,
        question: Q,
    ) -> Result<Vec<Q::Answer>, Unanswered> {
        if !self.is_clustered() {
            return Ok(vec![question.answer(self.clone()).await?]);
        }
        let body = serde_json::to_vec(&question).map_err(|_| Unanswered)?;
        // The threads of a node have `wait_max` to answer, and the nodes twice that time.
        let answers = self.ask_nodes(Q::NAME, &body, self.wait_max() * 2).await?;
        let read = |answer| serde_json::from_slice(answer).map_err(|_| Unanswered);
        answers.iter().map(|(_, answer)| read(answer)).collect()
    }
}

impl Topics {
    /// Asks one node.
    pub(super) async fn ask_one<Q: ClusterQuestion>(
        &self,
        node: NodeId,
        question: Q,
    ) -> Result<Q::Answer, Unanswered> {
        let body = serde_json::to_vec(&question).map_err(|_| Unanswered)?;
        let answer = self.ask_node(node, Q::NAME, &body, self.wait_max()).await?;
        serde_json::from_slice(&answer).map_err(|_| Unanswered)
    }
}

/// Asks a node whether it knows that another node is alive.
#[derive(Debug, Serialize, Deserialize)]
struct KnowsQuestion {
    node: u16,
}

impl ClusterQuestion for KnowsQuestion {
    const NAME: &'static str = "knows";
    type Answer = bool;

    async fn answer(self, topics: Topics) -> Result<bool, Unanswered> {
        let nodes = topics.engine().map(|engine| engine.nodes());
        Ok(nodes.is_some_and(|all| all.iter().any(|info| info.node.0 == self.node)))
    }
}

impl Topics {
    /// Returns whether all nodes know that this one is alive. Until then they do not ask it.
    ///
    /// # Errors
    /// [`Unanswered`] if not every node has answered in time.
    pub async fn is_known(&self) -> Result<bool, Unanswered> {
        let answers = self.everywhere(KnowsQuestion { node: self.node().0 }).await?;
        Ok(answers.into_iter().all(|knows| knows))
    }
}

/// Registers the answers to all questions of the broker.
pub(super) fn register(topics: &Topics) {
    register_one::<Occupancy>(topics);
    register_one::<Subscribers>(topics);
    register_one::<ListConnections>(topics);
    register_one::<EndConnection>(topics);
    register_one::<DisconnectQuestion>(topics);
    register_one::<KnowsQuestion>(topics);
    register_one::<LastEventsQuestion>(topics);
    register_one::<UsersQuestion>(topics);
}

fn register_one<Q: ClusterQuestion>(topics: &Topics) {
    let broker = topics.downgrade();
    topics.on_question(Q::NAME, move |body| {
        let topics = Topics::upgrade(&broker);
        async move {
            let question: Q = serde_json::from_slice(&body).ok()?;
            let answer = question.answer(topics?).await.ok()?;
            Some(serde_json::to_vec(&answer).ok()?.into())
        }
    });
}
