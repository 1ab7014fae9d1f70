//! The publications of other nodes that this node has read and not delivered yet.
//!
//! A publisher of this node waits for a permit, but the log cannot wait. The publications of other nodes
//! are therefore counted. When too many are under way, the engine pauses the partitions that it reads, and
//! it resumes them when the count has fallen to half of its limit.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use parking_lot::Mutex;

use crate::engine::{Engine, Partition};

/// The publications of other nodes that are under way. Clones share the count.
#[derive(Clone)]
pub(super) struct RemoteFlights(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    max: usize,
    count: AtomicUsize,
    /// The partitions that are paused.
    paused: Mutex<Vec<Partition>>,
}

/// One counted publication of another node. Dropping this subtracts it from the count.
pub(in crate::broker) struct RemoteFlight(RemoteFlights);

impl RemoteFlights {
    /// Begins with a count of zero. While more than `max` publications are under way, partitions are paused.
    pub(super) fn new(engine: Arc<dyn Engine>, max: usize) -> Self {
        let (count, paused) = (AtomicUsize::new(0), Mutex::default());
        Self(Arc::new(Inner { engine, max, count, paused }))
    }

    /// Counts one more publication.
    pub(super) fn enter(&self) -> RemoteFlight {
        self.0.count.fetch_add(1, SeqCst);
        RemoteFlight(self.clone())
    }

    /// Returns whether any publication is under way.
    #[cfg(test)]
    pub(super) fn is_any(&self) -> bool {
        self.0.count.load(SeqCst) > 0
    }

    /// The number of publications that are under way.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.count.load(SeqCst)
    }

    /// Returns whether the partition that was just read must be paused, because too many publications are
    /// under way. This resumes it later.
    pub(super) fn pauses(&self, partition: Partition) -> bool {
        self.is_full() && self.pause(partition)
    }

    fn is_full(&self) -> bool {
        self.0.count.load(SeqCst) > self.0.max
    }

    fn pause(&self, partition: Partition) -> bool {
        let mut paused = self.0.paused.lock();
        // The count is read again under the lock. So either this check sees that the count has fallen, or the
        // drop that lowers it finds the partition in the list.
        let is_full = self.is_full();
        if is_full && !paused.contains(&partition) {
            paused.push(partition);
        }
        is_full
    }

    fn leave(&self) {
        if self.0.count.fetch_sub(1, SeqCst) != self.0.max / 2 + 1 {
            return;
        }
        for partition in self.0.paused.lock().drain(..) {
            self.0.engine.resume(partition);
        }
    }
}

impl Drop for RemoteFlight {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::memory::MemoryCluster;

    #[test]
    fn a_partition_is_not_paused_if_the_count_has_fallen_since_it_was_first_read() {
        let flights = RemoteFlights::new(MemoryCluster::new(1).node(), 1);
        let under_way = [flights.enter(), flights.enter()];
        assert!(flights.is_full());
        // This comes between the two checks of `pauses`.
        drop(under_way);
        assert!(!flights.pause(Partition(0)));
        assert!(flights.0.paused.lock().is_empty(), "nothing would resume it");
    }
}
