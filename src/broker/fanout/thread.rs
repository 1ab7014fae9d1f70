//! The ways to reach the fan-out of a thread: that of the thread itself, and that of the streams.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use actix::prelude::*;
use rustc_hash::FxHashSet;

use super::{
    super::{
        placed::Batch,
        subscriber::SessionId,
        topics::Topics,
        writers::{FrameWriter, FrameWriters, WriterPlace},
    },
    Dispatch, Fanout, WorkerId,
};

/// The fan-out of one thread, for the sessions of the thread.
#[derive(Debug)]
pub struct ThreadFanout {
    /// The id of the fan-out.
    pub worker: WorkerId,
    /// The address of the fan-out.
    pub addr: Addr<Fanout>,
    batches: BatchCounts,
    /// The writers of the thread's sessions.
    pub(in crate::broker) writers: Rc<FrameWriters>,
    /// The sessions with a join under way.
    pub(in crate::broker) joining: Rc<JoiningSessions>,
}

/// The sessions of a thread with a join under way, from before its [`Attach`](super::Attach) is sent until it is
/// answered.
pub(in crate::broker) type JoiningSessions = RefCell<FxHashSet<SessionId>>;

impl ThreadFanout {
    /// Adds the writer of a session of this thread until the returned value is dropped.
    pub fn add_writer(&self, writer: Rc<dyn FrameWriter>) -> WriterPlace {
        self.writers.add(writer)
    }

    /// Notes that a join of a session of this thread is under way, until [`end_join`](Self::end_join) or until the
    /// session leaves.
    pub fn begin_join(&self, session: SessionId) {
        self.joining.borrow_mut().insert(session);
    }

    /// Notes that the join of a session has been answered.
    pub fn end_join(&self, session: SessionId) {
        self.joining.borrow_mut().remove(&session);
    }

    /// Returns whether batches are on their way to the fan-out, or wait there.
    pub fn awaits_more(&self) -> bool {
        self.batches.is_any_waiting()
    }
}

/// Counts the batches of one fan-out. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub(super) struct BatchCounts {
    sent: SentBatches,
    /// The number of batches that the fan-out has begun to hand out.
    begun: Rc<Cell<u64>>,
}

impl BatchCounts {
    /// Notes that the fan-out begins to hand out a batch.
    pub(super) fn note_begun(&self) {
        self.begun.set(self.begun.get() + 1);
    }

    /// Returns whether the fan-out was sent a batch that it has not begun.
    pub(super) fn is_any_waiting(&self) -> bool {
        self.sent.0.load(Relaxed) > self.begun.get()
    }
}

/// The number of batches that one fan-out was sent.
#[derive(Debug, Clone, Default)]
struct SentBatches(Arc<AtomicU64>);

/// The address of a fan-out for the streams of its scopes.
pub(in crate::broker) struct FanoutAddr {
    pub(in crate::broker) worker: WorkerId,
    pub(in crate::broker) addr: Addr<Fanout>,
    sent: SentBatches,
}

impl FanoutAddr {
    pub(super) fn new(worker: WorkerId, addr: Addr<Fanout>, batches: &BatchCounts) -> Self {
        Self { worker, addr, sent: batches.sent.clone() }
    }

    /// The address of a fan-out whose batches are not counted.
    #[cfg(test)]
    pub(in crate::broker) fn uncounted(worker: WorkerId, addr: Addr<Fanout>) -> Self {
        Self::new(worker, addr, &BatchCounts::default())
    }

    /// Sends the fan-out a batch.
    pub(in crate::broker) fn dispatch(&self, batch: Arc<Batch>) {
        self.sent.0.fetch_add(1, Relaxed);
        self.addr.do_send(Dispatch(batch));
    }
}

impl Fanout {
    /// Starts the fan-out of the calling worker thread.
    pub(in crate::broker) fn start_on_this_thread(
        worker: WorkerId,
        topics: Topics,
    ) -> ThreadFanout {
        let fanout = Self::new(worker, topics);
        let Self { batches, writers, joining, .. } = &fanout;
        let (batches, writers, joining) = (batches.clone(), writers.clone(), joining.clone());
        ThreadFanout { worker, addr: fanout.start(), batches, writers, joining }
    }
}
