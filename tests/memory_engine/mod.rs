//! An engine for tests: the nodes of a cluster in one process, which share one log in memory.
//!
//! A [`MemoryCluster`] is the server that they share. Its functions also simulate faults: an outage, a
//! restart without data, a failover that loses the newest records, the death of a node.

mod cluster;
mod feed;

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::{
    Append, AppendError, Appended, Engine, EngineState, Follower, INFO_BYTES_MAX, Incarnation,
    NodeId, NodeInfo, NodeUnanswered, Partition, Snapshot, Unavailable,
};

pub use cluster::MemoryCluster;
use feed::NodeCall;

/// A node of a [`MemoryCluster`].
#[derive(Debug)]
pub struct MemoryEngine {
    cluster: MemoryCluster,
    node: NodeId,
    partitions: u16,
    state: watch::Sender<EngineState>,
    calls: mpsc::UnboundedSender<NodeCall>,
    /// Set when there is a follower, so that a second one is ignored.
    unfed: OnceLock<()>,
    runtime: tokio::runtime::Handle,
}

impl MemoryEngine {
    /// Resolves to what `asked` resolves to, or to [`NodeUnanswered`] at the deadline.
    fn until<T: Send + 'static>(
        &self,
        deadline: Instant,
        asked: impl Future<Output = Result<T, NodeUnanswered>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, NodeUnanswered>> {
        let (send, answer) = oneshot::channel();
        self.runtime.spawn(async move {
            let answer = tokio::time::timeout_at(deadline.into(), asked).await;
            let _ = send.send(answer.unwrap_or(Err(NodeUnanswered)));
        });
        async move { answer.await.unwrap_or(Err(NodeUnanswered)) }.boxed()
    }
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        self.cluster.kill(self.node);
    }
}

impl Engine for MemoryEngine {
    fn node(&self) -> NodeId {
        self.node
    }

    fn incarnation(&self) -> Incarnation {
        self.cluster.incarnation(self.node)
    }

    fn partitions(&self) -> u16 {
        self.partitions
    }

    fn follow(&self, follower: Arc<dyn Follower>) {
        if self.unfed.set(()).is_ok() {
            let _ = self.calls.send(NodeCall::Follow(follower));
        }
    }

    fn append(
        &self,
        partition: Partition,
        append: Append,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let appended = self.cluster.append(self.node, partition, append);
        async move {
            // As over a network, the answer does not come at once.
            tokio::task::yield_now().await;
            appended
        }
        .boxed()
    }

    fn tell(
        &self,
        message: Bytes,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<(), Unavailable>> {
        let told = self.cluster.tell(self.node, &message);
        async move { told }.boxed()
    }

    fn ask(
        &self,
        to: Option<NodeId>,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<(NodeId, Bytes)>, NodeUnanswered>> {
        let asked = self.cluster.ask(self.node, to, &question);
        self.until(deadline, async move {
            let mut answers = Vec::new();
            for (node, answer) in asked? {
                answers.push((node, answer.await.map_err(|_| NodeUnanswered)?));
            }
            if answers.is_empty() { Err(NodeUnanswered) } else { Ok(answers) }
        })
    }

    fn members(
        &self,
        partition: Partition,
        place: Bytes,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<Snapshot, Unavailable>> {
        let members = match *self.state.borrow() {
            EngineState::Starting => Err(Unavailable),
            _ => self.cluster.members(partition, &place),
        };
        async move { members }.boxed()
    }

    fn nodes(&self) -> Arc<[NodeInfo]> {
        self.cluster.nodes()
    }

    fn describe(&self, info: Bytes) {
        debug_assert!(info.len() <= INFO_BYTES_MAX, "what a node publishes about itself is short");
        self.cluster.describe(self.node, info);
    }

    fn state(&self) -> watch::Receiver<EngineState> {
        self.state.subscribe()
    }

    fn resume(&self, partition: Partition) {
        let _ = self.calls.send(NodeCall::Resume(partition));
    }

    fn leave(&self, _deadline: Instant) -> BoxFuture<'static, ()> {
        self.cluster.kill(self.node);
        async {}.boxed()
    }
}
