//! The publications of other nodes that are on their way to this node's fan-outs.
//!
//! A publisher of this node waits for a permit, but the log cannot wait. The publications of other
//! nodes are therefore counted, and when too many are under way, the engine pauses; it resumes when
//! half of them have been handed out.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use crate::engine::{Engine, Partition};

/// The publications of other nodes that are under way. Clones share the count.
#[derive(Clone)]
pub(super) struct RemoteFlights(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    max: usize,
    count: AtomicUsize,
    /// The partitions that the engine does not feed meanwhile.
    paused: Mutex<Vec<Partition>>,
}

/// The place of one publication of another node; it is given back when this is dropped.
pub(in crate::broker) struct RemoteFlight(RemoteFlights);

impl RemoteFlights {
    /// A count of zero. While more than `max` are under way, partitions are paused.
    pub(super) fn new(engine: Arc<dyn Engine>, max: usize) -> Self {
        let (count, paused) = (AtomicUsize::new(0), Mutex::default());
        Self(Arc::new(Inner { engine, max, count, paused }))
    }

    /// Counts one more.
    pub(super) fn enter(&self) -> RemoteFlight {
        self.0.count.fetch_add(1, SeqCst);
        RemoteFlight(self.clone())
    }

    /// Whether any is under way.
    pub(super) fn is_any(&self) -> bool {
        self.0.count.load(SeqCst) > 0
    }

    /// Whether a partition that has just been read from must be paused: there are too many. It is
    /// continued once there are fewer.
    pub(super) fn pauses(&self, partition: Partition) -> bool {
        if self.0.count.load(SeqCst) <= self.0.max {
            return false;
        }
        let mut paused = self.paused();
        // Looked at again under the lock: whoever leaves last finds the partition in the list, or is
        // seen here.
        let is_full = self.0.count.load(SeqCst) > self.0.max;
        if is_full && !paused.contains(&partition) {
            paused.push(partition);
        }
        is_full
    }

    fn leave(&self) {
        if self.0.count.fetch_sub(1, SeqCst) != self.0.max / 2 + 1 {
            return;
        }
        for partition in self.paused().drain(..) {
            self.0.engine.resume(partition);
        }
    }

    fn paused(&self) -> MutexGuard<'_, Vec<Partition>> {
        self.0.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RemoteFlight {
    fn drop(&mut self) {
        self.0.leave();
    }
}
