//! An engine in memory whose faults a test chooses.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::engine::{
    Append, AppendError, Appended, Engine, EngineState, Follower, Incarnation, MemberChange,
    NodeId, NodeInfo, NodeUnanswered, Partition, Snapshot, Terms, Unavailable,
    memory::MemoryEngine,
};

/// An engine that refuses changes of members, and holds back answers, when it is told to.
#[derive(Debug)]
pub(super) struct FaultyEngine {
    inner: Arc<MemoryEngine>,
    faults: Mutex<ChosenFaults>,
}

/// The changes of members of one engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MemberChanges {
    pub(super) puts: usize,
    pub(super) removals: usize,
    pub(super) refused: usize,
}

#[derive(Debug, Default)]
struct ChosenFaults {
    refuses: bool,
    /// The answers to the next readings of members are held back until these are received: the members as they
    /// were at the time of the reading, or an error.
    held: VecDeque<oneshot::Receiver<HeldAnswer>>,
    /// The next changes of members are held back until these are received.
    held_changes: VecDeque<oneshot::Receiver<()>>,
    first_put: Option<(Partition, Append)>,
    changes: MemberChanges,
}

/// The answer to a reading of members that was held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeldAnswer {
    Members,
    Fails,
}

impl FaultyEngine {
    pub(super) fn new(inner: Arc<MemoryEngine>) -> Self {
        Self { inner, faults: Mutex::default() }
    }

    /// Sets whether changes of members are refused, as if the connection were broken.
    pub(super) fn refuse(&self, refuses: bool) {
        self.faults.lock().refuses = refuses;
    }

    /// Holds back the answer to the next reading of members.
    pub(super) fn hold_reading(&self) -> oneshot::Sender<HeldAnswer> {
        let (answer, held) = oneshot::channel();
        self.faults.lock().held.push_back(held);
        answer
    }

    /// Holds back the next change of members, until it is let go.
    pub(super) fn hold_change(&self) -> oneshot::Sender<()> {
        let (go, held) = oneshot::channel();
        self.faults.lock().held_changes.push_back(held);
        go
    }

    /// Returns whether all readings and changes that are to be held back have begun.
    pub(super) fn holds_all(&self) -> bool {
        let faults = self.faults.lock();
        faults.held.is_empty() && faults.held_changes.is_empty()
    }

    /// Puts the first member once more, as a command of a broken connection does that arrives late.
    pub(super) async fn repeat_first_put(&self) {
        let (partition, put) = self.faults.lock().first_put.clone().expect("a put");
        self.inner.append(partition, put, Instant::now()).await.expect("an answer");
    }

    /// The changes so far.
    pub(super) fn changes(&self) -> MemberChanges {
        self.faults.lock().changes
    }
}

impl Engine for FaultyEngine {
    fn node(&self) -> NodeId {
        self.inner.node()
    }

    fn incarnation(&self) -> Incarnation {
        self.inner.incarnation()
    }

    fn partitions(&self) -> u16 {
        self.inner.partitions()
    }

    fn follow(&self, follower: Arc<dyn Follower>) {
        self.inner.follow(follower);
    }

    fn append(
        &self,
        partition: Partition,
        append: Append,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let mut faults = self.faults.lock();
        let Terms::Member(change) = &append.terms else {
            return self.inner.append(partition, append, deadline);
        };
        let counted = match change {
            _ if faults.refuses => {
                faults.changes.refused += 1;
                return async { Err(AppendError::Unavailable) }.boxed();
            }
            MemberChange::Put { .. } => {
                faults.first_put.get_or_insert_with(|| (partition, append.clone()));
                &mut faults.changes.puts
            }
            MemberChange::Remove { .. } => &mut faults.changes.removals,
        };
        *counted += 1;
        if let Some(held) = faults.held_changes.pop_front() {
            let inner = self.inner.clone();
            return async move {
                let _ = held.await;
                inner.append(partition, append, deadline).await
            }
            .boxed();
        }
        self.inner.append(partition, append, deadline)
    }

    fn tell(
        &self,
        message: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(), Unavailable>> {
        self.inner.tell(message, deadline)
    }

    fn ask(
        &self,
        to: Option<NodeId>,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<(NodeId, Bytes)>, NodeUnanswered>> {
        self.inner.ask(to, question, deadline)
    }

    fn members(
        &self,
        partition: Partition,
        place: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Snapshot, Unavailable>> {
        // The engine in memory reads the members when it is called, not when its answer is awaited.
        let members = self.inner.members(partition, place, deadline);
        let Some(held) = self.faults.lock().held.pop_front() else { return members };
        async move {
            match held.await {
                Ok(HeldAnswer::Members) => members.await,
                _ => Err(Unavailable),
            }
        }
        .boxed()
    }

    fn nodes(&self) -> Arc<[NodeInfo]> {
        self.inner.nodes()
    }

    fn describe(&self, info: Bytes) {
        self.inner.describe(info);
    }

    fn state(&self) -> watch::Receiver<EngineState> {
        self.inner.state()
    }

    fn resume(&self, partition: Partition) {
        self.inner.resume(partition);
    }

    fn leave(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        self.inner.leave(deadline)
    }
}
