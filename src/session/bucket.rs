//! Rate limits: the number of times that a client may do something within a second.

use std::time::Duration;

/// A rate: the number of times within a second, which is also the size of the largest burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerSecond(pub u32);

/// The length of a second in the unit of buckets, which is fine enough for any rate.
const SECOND_NS: u64 = 1_000_000_000;

/// The part of its rate that a client has used. The type is pure, because the time is passed in,
/// and takes eight bytes, because every session has several of them.
///
/// It is a leaky bucket: each use adds to it, time drains it, and a use that would make it overflow
/// is refused. The stored value is the moment at which the bucket will be empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    empty_at_ns: u64,
}

impl Bucket {
    /// Takes `times` uses, all or none. Returns `false` if they exceed the rate.
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

    /// The time until `times` uses may be taken.
    pub fn wait(&self, times: u32, rate: PerSecond, now_s: f64) -> Duration {
        let now_ns = nanoseconds(now_s);
        let step_ns = SECOND_NS / u64::from(rate.0.max(1));
        let empty_at_ns = self.filled_until_ns(now_ns) + step_ns * u64::from(times);
        Duration::from_nanos(empty_at_ns.saturating_sub(now_ns + SECOND_NS))
    }

    /// Returns whether the bucket is empty, so that its owner need not keep it.
    pub fn is_empty(&self, now_s: f64) -> bool {
        let now_ns = nanoseconds(now_s);
        self.filled_until_ns(now_ns) == now_ns
    }

    /// The moment at which the bucket will be empty: now, if it already is.
    fn filled_until_ns(self, now_ns: u64) -> u64 {
        // A moment further ahead than that of a full bucket was written before the clock was set
        // back.
        let is_sane = self.empty_at_ns <= now_ns + SECOND_NS;
        if is_sane { self.empty_at_ns.max(now_ns) } else { now_ns }
    }
}

fn nanoseconds(time_s: f64) -> u64 {
    // A clock before 1970 counts as the start of 1970.
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
    fn a_client_within_the_rate_is_never_refused() {
        let mut bucket = Bucket::default();
        for n in 0..10_000 {
            let now_s = NOW_S + f64::from(n) * 0.033_334;
            assert!(bucket.take(1, PerSecond(30), now_s), "{n}");
        }
    }

    #[test]
    fn a_caller_that_exceeds_the_rate_is_told_how_long_to_wait() {
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
