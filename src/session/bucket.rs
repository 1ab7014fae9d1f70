//! How often a client may do something.

use std::time::Duration;

/// So many times within a second, and as many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerSecond(pub u32);

/// A second, in the unit that buckets count in: fine enough for any rate, and exact.
const SECOND_NS: u64 = 1_000_000_000;

/// What a client has used of what it may do. Pure: the time is passed in; eight bytes, for every
/// session has some.
///
/// It is a bucket that leaks: each time fills in a little, and only when it would run over is
/// the answer no. Kept is the moment when it will be empty again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    empty_at_ns: u64,
}

impl Bucket {
    /// Does something so many times, all or nothing; `false` if that is too often.
    pub fn take(&mut self, times: u32, rate: PerSecond, now_s: f64) -> bool {
        let now_ns = nanoseconds(now_s);
        let step_ns = SECOND_NS / u64::from(rate.0.max(1));
        let empty_at_ns = self.filled_until_ns(now_ns) + step_ns * u64::from(times);
        let fits = empty_at_ns <= now_ns + SECOND_NS;
        if fits {
            self.empty_at_ns = empty_at_ns;
        }
        fits
    }

    /// How long it takes until something may be done so many times.
    pub fn wait(&self, times: u32, rate: PerSecond, now_s: f64) -> Duration {
        let now_ns = nanoseconds(now_s);
        let step_ns = SECOND_NS / u64::from(rate.0.max(1));
        let empty_at_ns = self.filled_until_ns(now_ns) + step_ns * u64::from(times);
        Duration::from_nanos(empty_at_ns.saturating_sub(now_ns + SECOND_NS))
    }

    /// Whether it holds nothing: it is worth no memory then.
    pub fn is_empty(&self, now_s: f64) -> bool {
        let now_ns = nanoseconds(now_s);
        self.filled_until_ns(now_ns) == now_ns
    }

    /// When it will be empty: now, if it is already.
    fn filled_until_ns(self, now_ns: u64) -> u64 {
        // What lies further ahead than a full bucket was written by a clock that has been set back.
        let is_sane = self.empty_at_ns <= now_ns + SECOND_NS;
        if is_sane { self.empty_at_ns.max(now_ns) } else { now_ns }
    }
}

fn nanoseconds(time_s: f64) -> u64 {
    // A clock before 1970 is none; all its moments are one.
    (time_s * SECOND_NS as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: f64 = 1_800_000_000.0;

    fn taken(bucket: &mut Bucket, rate: u32, now_s: f64) -> usize {
        let once = |_: &u32| bucket.take(1, PerSecond(rate), now_s);
        (0..2 * rate + 2).take_while(once).count()
    }

    #[test]
    fn a_burst_of_a_seconds_worth_is_let_through_and_then_the_rate() {
        for rate in [1, 2, 3, 7, 30, 200, 999, 9_999, 10_000] {
            let mut bucket = Bucket::default();
            let all = usize::try_from(rate).expect("a small number");
            assert_eq!(taken(&mut bucket, rate, NOW_S), all, "{rate} at once");
            assert_eq!(taken(&mut bucket, rate, NOW_S), 0, "{rate}: no more");
            assert_eq!(taken(&mut bucket, rate, NOW_S + 1.0), all, "{rate}: a second later");
            let half = taken(&mut bucket, rate, NOW_S + 1.5);
            assert!(half.abs_diff(all / 2) <= 1, "{rate}: {half} half a second later");
        }
    }

    #[test]
    fn several_at_once_are_all_or_nothing() {
        let mut bucket = Bucket::default();
        for (times, expected) in [(31, false), (20, true), (11, false), (10, true), (1, false)] {
            assert_eq!(bucket.take(times, PerSecond(30), NOW_S), expected, "{times}");
        }
    }

    #[test]
    fn who_keeps_to_the_rate_is_never_refused() {
        let mut bucket = Bucket::default();
        for n in 0..10_000 {
            let now_s = NOW_S + f64::from(n) * 0.033_334;
            assert!(bucket.take(1, PerSecond(30), now_s), "{n}");
        }
    }

    #[test]
    fn what_is_one_too_many_is_told_how_long_to_wait() {
        let (rate, mut bucket) = (PerSecond(100), Bucket::default());
        let wait_ms = |bucket: &Bucket, times, now_s| bucket.wait(times, rate, now_s).as_millis();
        assert_eq!(wait_ms(&bucket, 100, NOW_S), 0);
        assert_eq!(taken(&mut bucket, 100, NOW_S), 100);
        assert_eq!(wait_ms(&bucket, 1, NOW_S), 10);
        assert_eq!(wait_ms(&bucket, 25, NOW_S + 0.125), 125);
        assert_eq!(wait_ms(&bucket, 25, NOW_S + 0.25), 0);
        assert!(bucket.take(25, rate, NOW_S + 0.251));
    }

    #[test]
    fn a_clock_that_is_set_back_shuts_nobody_out() {
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, 30, NOW_S), 30);
        for (now_s, is_empty) in [(NOW_S, false), (NOW_S + 1.0, true), (NOW_S - 3_600.0, true)] {
            assert_eq!(bucket.is_empty(now_s), is_empty, "{}", now_s - NOW_S);
        }
        assert_eq!(taken(&mut bucket, 30, NOW_S - 3_600.0), 30);
        assert_eq!(taken(&mut bucket, 30, NOW_S - 3_600.0), 0);
    }
}
