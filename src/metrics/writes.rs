//! The writes of frames to WebSockets: how many frames leave together.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

/// The writes of one worker thread. Only this thread adds to them, and no other counter lies in the
/// same cache line, so counting a write costs next to nothing.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ThreadWrites {
    writes: AtomicU64,
    frames: AtomicU64,
}

impl ThreadWrites {
    /// Counts a write of this many frames.
    pub fn wrote(&self, frames: u64) {
        self.writes.fetch_add(1, Relaxed);
        self.frames.fetch_add(frames, Relaxed);
    }
}

/// The writes of all worker threads. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct FrameWrites(Arc<Mutex<Vec<Arc<ThreadWrites>>>>);

impl FrameWrites {
    /// The counters of a worker thread that begins.
    pub fn of_new_thread(&self) -> Arc<ThreadWrites> {
        let thread = Arc::<ThreadWrites>::default();
        self.0.lock().push(thread.clone());
        thread
    }

    /// The number of writes, and the number of frames in them.
    pub fn totals(&self) -> (u64, u64) {
        let threads = self.0.lock();
        threads.iter().fold((0, 0), |(writes, frames), thread| {
            (writes + thread.writes.load(Relaxed), frames + thread.frames.load(Relaxed))
        })
    }
}

/// Encodes the writes of all threads.
#[derive(Debug)]
pub(super) struct FrameWritesEncoder(pub(super) FrameWrites);

impl Collector for FrameWritesEncoder {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (writes, frames) = self.0.totals();
        for (name, help, value) in [
            ("frame_writes", "Writes of frames to WebSockets", writes),
            ("written_frames", "Frames in these writes", frames),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;

    #[test]
    fn the_writes_of_all_threads_are_summed() {
        let metrics = Metrics::new(0);
        let [one, other] = [(); 2].map(|()| metrics.frame_writes.of_new_thread());
        one.wrote(1);
        one.wrote(8);
        other.wrote(3);
        let text = metrics.encode();
        for line in ["herald_frame_writes_total 3", "herald_written_frames_total 12"] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
