//! A disconnect on its way to the sessions, and the number of joins that it has ended.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, time::timeout};

use super::{
    cluster::ClusterQuestion,
    subscriber::Disconnect,
    topics::{Topics, Unanswered},
};

/// Makes a node end joins. The answer is their number, if that is requested and known in time.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DisconnectQuestion {
    pub(super) joins: Disconnect,
    pub(super) is_counted: bool,
    /// The number under which the disconnect is in the log; `None` from a node that does not append it.
    #[serde(default)]
    pub(super) id: Option<u64>,
}

impl ClusterQuestion for DisconnectQuestion {
    const NAME: &'static str = "disconnect";
    type Answer = Option<usize>;

    async fn answer(self, topics: Topics) -> Result<Option<usize>, Unanswered> {
        if let (Some(cluster), Some(id)) = (topics.cluster(), self.id) {
            cluster.note_disconnect(id);
        }
        if !self.is_counted {
            return topics.end_joins(Disconnection::new(self.joins)).await.map(|()| None);
        }
        let (disconnection, count) = Disconnection::counted(self.joins);
        topics.end_joins(disconnection).await?;
        Ok(timeout(topics.wait_max(), count).await.ok().and_then(Result::ok))
    }
}

/// A request to end joins, which every session that may be concerned receives.
///
/// The sessions share it, and the count is complete when the last of them has dropped it: after
/// ending its joins, or because the session itself has ended.
pub struct Disconnection {
    /// The joins that are to be ended.
    pub joins: Disconnect,
    ended: AtomicUsize,
    counted: Option<oneshot::Sender<usize>>,
}

impl Disconnection {
    /// A disconnect whose joins are not counted.
    pub(super) fn new(joins: Disconnect) -> Self {
        Self { joins, ended: AtomicUsize::new(0), counted: None }
    }

    /// A disconnect whose joins are counted.
    pub(super) fn counted(joins: Disconnect) -> (Self, oneshot::Receiver<usize>) {
        let (counted, count) = oneshot::channel();
        (Self { joins, ended: AtomicUsize::new(0), counted: Some(counted) }, count)
    }

    /// Adds the joins that a session has ended.
    pub fn has_ended(&self, joins: usize) {
        // Dropping an `Arc` orders this before the last owner's `drop`.
        self.ended.fetch_add(joins, Ordering::Relaxed);
    }
}

impl fmt::Debug for Disconnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.joins.fmt(f)
    }
}

impl Drop for Disconnection {
    fn drop(&mut self) {
        if let Some(counted) = self.counted.take() {
            // The caller may have stopped waiting.
            let _ = counted.send(*self.ended.get_mut());
        }
    }
}
