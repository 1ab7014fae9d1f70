//! The rounds in which the batches of a line leave.

use std::time::{Duration, Instant};

/// The number of appends that must wait at the end of a round for the next round to gather more. It gathers
/// until twice as many appends wait as the ended round had, but no longer than that round took, and no longer
/// than [`GATHERS_MAX`]. A batch costs Redis as much as ten records, so larger batches spare it most of its
/// work.
pub(super) const GATHERS_FROM: usize = 4;

/// The longest time for which a round gathers. The timer of the driver rounds up to whole milliseconds.
pub(super) const GATHERS_MAX: Duration = Duration::from_millis(1);

/// The batches of one line that are under way together.
#[derive(Default)]
pub(super) struct Round {
    /// The number of batches that are not answered yet.
    pub(super) batches: usize,
    /// The number of appends of all its batches.
    appends: usize,
    /// The time at which the round began, until its end has been noticed.
    began: Option<Instant>,
    /// The time until which the appends of the next round gather.
    pub(super) gathers_until: Option<Instant>,
}

/// The appends of all logs of a line that wait for the next round.
pub(super) enum Queued {
    /// Some log has enough for a batch of the full size.
    FullBatch,
    /// No log has; this is the number of all appends that wait.
    Appends(usize),
}

impl Round {
    /// Notices the end of the round, and the end of the time for which the next one gathers. `queued` returns
    /// the appends that wait for the next round.
    pub(super) fn turn(&mut self, now: Instant, queued: impl FnOnce() -> Queued) {
        if self.batches > 0 {
            return;
        }
        if let Some(began) = self.began.take() {
            self.gathers_until = Some(now + (now - began).min(GATHERS_MAX));
        }
        self.gathers_until = self.gathers_until.filter(|until| now < *until);
        let gathers = |queued| (GATHERS_FROM..2 * self.appends).contains(&queued);
        if self.gathers_until.is_some()
            && !matches!(queued(), Queued::Appends(queued) if gathers(queued))
        {
            self.gathers_until = None;
        }
    }

    /// Notes a batch of this number of appends.
    pub(super) fn begin_batch(&mut self, now: Instant, appends: usize) {
        if self.began.is_none() {
            (self.began, self.appends) = (Some(now), 0);
        }
        self.appends += appends;
    }

    /// Returns whether the next round has to wait.
    pub(super) fn is_busy(&self) -> bool {
        self.batches > 0 || self.gathers_until.is_some()
    }
}
