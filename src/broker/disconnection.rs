//! A disconnect on its way to the sessions, and how many joins it has ended.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::sync::oneshot;

use super::subscriber::Disconnect;

/// What every session that may be concerned is handed.
///
/// The sessions share it, and the count is complete when the last of them has dropped it: after
/// ending its joins, or because the session itself has ended.
pub struct Disconnection {
    /// Which joins are to be ended.
    pub joins: Disconnect,
    ended: AtomicUsize,
    counted: Option<oneshot::Sender<usize>>,
}

impl Disconnection {
    /// One whose joins nobody counts.
    pub(super) fn new(joins: Disconnect) -> Self {
        Self { joins, ended: AtomicUsize::new(0), counted: None }
    }

    /// One whose joins are counted.
    pub(super) fn counted(joins: Disconnect) -> (Self, oneshot::Receiver<usize>) {
        let (counted, count) = oneshot::channel();
        (Self { joins, ended: AtomicUsize::new(0), counted: Some(counted) }, count)
    }

    /// A session has ended this many joins.
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
