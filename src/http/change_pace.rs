//! The rate limit on an app's changes to itself. Each change writes to the database, and adds an
//! entry to the audit trail that stays for `audit.retention_days`.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{error::ApiError, tally::Tally};
use crate::{
    app::AppId,
    session::bucket::{Bucket, PerSecond},
};

/// The most changes of one app within a minute. Half of them may come at once.
pub const CHANGES_PER_MINUTE_MAX: u32 = 30;

/// The most apps whose changes are counted.
const APPS_MAX: usize = 10_000;

const MINUTE_S: f64 = 60.0;

/// Counts the changes that apps make to themselves. Changes by the administrator do not count.
#[derive(Debug)]
pub struct ChangePace {
    started: Instant,
    used: Mutex<Tally<AppId, Bucket>>,
}

impl Default for ChangePace {
    fn default() -> Self {
        Self { started: Instant::now(), used: Mutex::new(Tally::new(APPS_MAX)) }
    }
}

impl ChangePace {
    /// Counts a change of an app.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`] if the app has made too many changes.
    pub(super) fn take(&self, app: AppId, now: Instant) -> Result<(), ApiError> {
        // A bucket counts per second; here one of its seconds stands for a minute. The burst is half of the
        // limit, so that no minute has more changes than the limit: the burst and what the minute refills.
        let rate = PerSecond(CHANGES_PER_MINUTE_MAX / 2);
        let minutes = now.saturating_duration_since(self.started).as_secs_f64() / MINUTE_S;
        // A panic while counting leaves counts that are right or one too high.
        let mut used = self.used.lock();
        if used.peek(&app).is_none() {
            used.insert(app, Bucket::default());
        }
        let Some(bucket) = used.peek_mut(&app) else { return Ok(()) };
        if bucket.take(1, rate, minutes) {
            return Ok(());
        }
        let retry_after = bucket.wait(1, rate, minutes).mul_f64(MINUTE_S);
        Err(ApiError::TooManyRequests { retry_after: retry_after.max(Duration::from_secs(1)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_app_may_change_itself_so_often_within_a_minute() {
        let pace = ChangePace::default();
        let now = pace.started + Duration::from_secs(1_000);
        let take = |app, now| pace.take(AppId(app), now).is_ok();
        assert!((0..CHANGES_PER_MINUTE_MAX / 2).all(|_| take(1, now)));
        let Err(ApiError::TooManyRequests { retry_after }) = pace.take(AppId(1), now) else {
            panic!("one more is refused");
        };
        assert!(take(2, now), "another app has a pace of its own");
        assert!(!take(1, now + retry_after / 2) && take(1, now + retry_after));
        let later = now + Duration::from_secs(120);
        let ticks = (0..600).map(|tick| later + tick * Duration::from_millis(100));
        let tries = ticks.flat_map(|tick| [tick; CHANGES_PER_MINUTE_MAX as usize]);
        let taken = tries.filter(|at| take(1, *at)).count();
        assert!(taken + 1 == CHANGES_PER_MINUTE_MAX as usize, "{taken} within a minute");
    }
}
