//! The choice of the deliveries whose latency is measured.

use std::{cell::Cell, time::Instant};

use crate::metrics::SAMPLE_INTERVAL;

/// Decides when the latency is measured, and at which member.
#[derive(Default)]
pub(in crate::broker) struct Sampler {
    last: Cell<Option<Instant>>,
    turns: Cell<usize>,
}

impl Sampler {
    /// Returns a number if a measurement is due. Modulo the number of members, it is the index of the member at
    /// which the latency is measured. The caller passes the time, so that no clock is read for it.
    pub(in crate::broker) fn turn(&self, now: Instant) -> Option<usize> {
        let is_early = |last| now.saturating_duration_since(last) < SAMPLE_INTERVAL;
        if self.last.get().is_some_and(is_early) {
            return None;
        }
        self.last.set(Some(now));
        Some(self.turns.replace(self.turns.get().wrapping_add(1)))
    }
}
