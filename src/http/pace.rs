//! The rate limit on triggers by the holder of a token: that of a client's events over its socket.

use std::{collections::hash_map::RandomState, hash::BuildHasher};

use parking_lot::Mutex;

use super::tally::Tally;
use crate::session::bucket::{Bucket, PerSecond};

/// The most tokens that are counted.
const TOKENS_MAX: usize = 10_000;

/// Counts events by token, of all apps together.
///
/// Only valid tokens are counted. A holder of more than [`TOKENS_MAX`] tokens gains nothing when the
/// oldest count is dropped, because each token has the full rate anyway. The tokens of other apps keep
/// their own counts.
#[derive(Debug)]
pub struct TokenPace {
    rate: PerSecond,
    /// Has a random key in each process, so that nobody can choose tokens with equal hashes.
    hasher: RandomState,
    /// The rates by the hash of the token, because tokens must not be kept in memory.
    used: Mutex<Tally<u64, Bucket>>,
}

impl TokenPace {
    /// Allows every token this rate of events.
    pub fn new(rate: PerSecond) -> Self {
        Self { rate, hasher: RandomState::new(), used: Mutex::new(Tally::new(TOKENS_MAX)) }
    }

    /// Counts `events` events of a token, all or none; `false` if that is more than the rate allows.
    pub(super) fn take(&self, token: &[u8], events: usize, now_s: f64) -> bool {
        let key = self.hasher.hash_one(token);
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        // A panic while counting leaves counts that are right or one too high.
        let mut used = self.used.lock();
        if used.peek(&key).is_none() {
            used.insert(key, Bucket::default());
        }
        used.peek_mut(&key).is_some_and(|bucket| bucket.take(events, self.rate, now_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: f64 = 1_800_000_000.0;

    #[test]
    fn each_token_has_its_own_and_several_events_count_as_several() {
        let pace = TokenPace::new(PerSecond(3));
        for (case, token, events, now_s, expected) in [
            ("two", "a", 2, NOW_S, true),
            ("two more", "a", 2, NOW_S, false),
            ("one more", "a", 1, NOW_S, true),
            ("another's", "b", 3, NOW_S, true),
            ("none is left", "a", 1, NOW_S, false),
            ("later", "a", 3, NOW_S + 1.0, true),
            ("more than ever", "c", 4, NOW_S, false),
        ] {
            assert_eq!(pace.take(token.as_bytes(), events, now_s), expected, "{case}");
        }
    }

    #[test]
    fn however_many_tokens_there_are_each_has_a_pace_of_its_own() {
        let pace = TokenPace::new(PerSecond(1));
        let take = |n: usize| pace.take(&n.to_be_bytes(), 1, NOW_S);
        assert!((0..TOKENS_MAX).all(take));
        assert!(!take(1), "one of them was enough");
        assert!(take(TOKENS_MAX) && take(TOKENS_MAX + 1), "those beyond do not share one");
        assert!(!take(TOKENS_MAX), "and are counted");
        assert!(!take(TOKENS_MAX - 1), "the youngest are not forgotten");
    }
}
