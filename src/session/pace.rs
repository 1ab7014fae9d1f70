//! The rate at which a session may send frames: the pauses of a session that exceeds it, and the
//! end of one that exceeds it for too long.

use std::time::Duration;

use super::bucket::{Bucket, PerSecond};

/// The fraction (1/4) of a second's frames that must be available again before a paused session continues.
const RESUME_SHARE: u32 = 4;

/// The number of consecutive pauses after which a session is ended, which is after about ten seconds.
const PAUSES_MAX: u8 = 40;

/// The interval at which a paused session checks whether it may continue.
pub(super) const LOOK: Duration = Duration::from_nanos(1_000_000_000 / (4 * RESUME_SHARE as u64));

/// The part of its frames per second that a session has used. The type is pure, because the time is
/// passed in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FramePace {
    frames: Bucket,
    /// The number of pauses since the session last kept to its rate.
    pauses: u8,
    is_paused: bool,
}

impl FramePace {
    /// Takes a frame. Returns `false` if it exceeds the rate, so that the session pauses.
    pub(super) fn take(&mut self, rate: PerSecond, now_s: f64) -> bool {
        if self.is_paused {
            return false;
        }
        if self.frames.is_empty(now_s) {
            self.pauses = 0;
        }
        let may_be = self.frames.take(1, rate, now_s);
        if !may_be {
            self.is_paused = true;
            self.pauses = self.pauses.saturating_add(1);
        }
        may_be
    }

    /// Ends the pause if enough frames may be taken again. Returns `false` if the pause continues.
    pub(super) fn resume(&mut self, rate: PerSecond, now_s: f64) -> bool {
        let mut probe = self.frames;
        self.is_paused = !probe.take((rate.0 / RESUME_SHARE).max(1), rate, now_s);
        !self.is_paused
    }

    /// Returns whether the session is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Returns whether the session has exceeded its rate for too long.
    pub(super) fn is_flooded(&self) -> bool {
        self.pauses >= PAUSES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: PerSecond = PerSecond(100);

    #[test]
    fn a_session_that_is_too_fast_pauses_until_a_quarter_is_free_and_is_flooded_in_the_end() {
        let (mut pace, mut now_s, mut taken) = (FramePace::default(), 1.0, 0);
        while !pace.is_flooded() {
            while pace.take(RATE, now_s) {
                taken += 1;
            }
            assert!(pace.is_paused());
            while !pace.resume(RATE, now_s) {
                assert!(!pace.take(RATE, now_s), "not while it pauses");
                now_s += LOOK.as_secs_f64();
            }
        }
        assert!((9.0..13.0).contains(&now_s), "{now_s}");
        let most = f64::from(RATE.0) * now_s;
        assert!((0.8 * most..=most).contains(&f64::from(taken)), "{taken} within {now_s} s");
    }

    #[test]
    fn pauses_are_forgotten_once_the_session_keeps_to_its_rate() {
        let (mut pace, mut now_s) = (FramePace::default(), 1.0);
        for _ in 0..3 * PAUSES_MAX {
            while pace.take(RATE, now_s) {}
            now_s += 1.0;
            assert!(pace.resume(RATE, now_s));
            assert!(pace.take(RATE, now_s) && !pace.is_flooded());
            now_s += 1.0;
        }
    }
}
