//! Ending sessions and joins on all threads.

use std::time::Duration;

use log::warn;
use tokio::time::timeout;
use uuid::Uuid;

use super::{Topics, Unanswered};
use crate::broker::{
    disconnection::{DisconnectQuestion, Disconnection},
    fanout::{EndAll, EndJoins, EndSome},
    fanouts::Asked,
    subscriber::Disconnect,
};

impl Topics {
    /// Ends every session of all threads, because the server stops. Waits at most `wait_max` for each thread to
    /// receive the command. Returns the number of sessions on the threads that received it in time.
    pub async fn end_all(&self, wait_max: Duration) -> usize {
        let ended =
            self.0.fanouts.ask(EndAll, wait_max).await.into_iter().map(|asked| match asked {
                Asked::Answered(sessions) => sessions,
                // The sessions of a lost thread have ended already.
                Asked::Lost => 0,
                Asked::Late => {
                    warn!("a thread did not answer in time; its sessions may be cut off without a farewell");
                    0
                }
            });
        ended.sum()
    }

    /// Ends a number of sessions, over all threads together, because the server stops. Returns the number of
    /// sessions that are left on the threads that answer within `wait_max`.
    pub async fn end_some(&self, sessions_max: usize, wait_max: Duration) -> usize {
        let (mut to_end, mut left) = (sessions_max, 0);
        for fanout in self.0.fanouts.all() {
            if let Ok(Ok(done)) = timeout(wait_max, fanout.send(EndSome(to_end))).await {
                to_end -= done.ended;
                left += done.left;
            }
        }
        left
    }

    /// Ends joins of an app on all threads of all nodes. No publication that is made after this has returned is
    /// delivered to these joins.
    ///
    /// # Errors
    /// [`Unanswered`] if a thread may not have received the command; a retry is safe.
    pub async fn disconnect(&self, joins: Disconnect) -> Result<(), Unanswered> {
        self.end_everywhere(joins, false).await.map(drop)
    }

    /// Ends joins like [`disconnect`](Self::disconnect), and returns their number; `None` if that takes too
    /// long. A session that is too slow to take the command is ended as a whole, and not counted.
    ///
    /// # Errors
    /// Those of [`disconnect`](Self::disconnect).
    pub async fn disconnect_counted(&self, joins: Disconnect) -> Result<Option<usize>, Unanswered> {
        Ok(self.end_everywhere(joins, true).await?.into_iter().sum())
    }

    /// Ends joins on the nodes that are alive, and then on those that return after they were cut off.
    async fn end_everywhere(
        &self,
        joins: Disconnect,
        is_counted: bool,
    ) -> Result<Vec<Option<usize>>, Unanswered> {
        let Some(cluster) = self.cluster() else {
            return self.everywhere(DisconnectQuestion { joins, is_counted, id: None }).await;
        };
        let (id, _) = Uuid::new_v4().as_u64_pair();
        let question = DisconnectQuestion { joins: joins.clone(), is_counted, id: Some(id) };
        let counts = self.everywhere(question).await?;
        cluster.append_disconnect(id, joins, self.wait_max()).await?;
        Ok(counts)
    }

    /// Ends joins on all threads of this node.
    pub(in crate::broker) async fn end_joins(
        &self,
        disconnection: Disconnection,
    ) -> Result<(), Unanswered> {
        let end = EndJoins(disconnection.into());
        let told = self.0.fanouts.ask(end, self.0.limits.wait_max).await;
        // A thread that was lost has ended all its sessions.
        if told.contains(&Asked::Late) { Err(Unanswered) } else { Ok(()) }
    }
}
