//! How often the holder of a token may trigger: as often as a client may publish over its socket.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Mutex, PoisonError},
};

use crate::session::bucket::{Bucket, PerSecond};

/// The most tokens that are counted one by one.
const TOKENS_MAX: usize = 10_000;

/// Counts events by token. When there are too many tokens within a second, all further ones count as
/// one: whoever has that many gets no further by it.
#[derive(Debug)]
pub struct TokenPace {
    rate: PerSecond,
    /// Keyed anew by each process, so that nobody can choose tokens that meet.
    hasher: RandomState,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// By a token's hash: the token itself is nothing to keep.
    by_token: HashMap<u64, Bucket>,
    by_the_rest: Bucket,
}

impl TokenPace {
    /// Allows every token so many events.
    pub fn new(rate: PerSecond) -> Self {
        Self { rate, hasher: RandomState::new(), used: Mutex::default() }
    }

    /// Counts so many events of a token, all or none; `false` if that is too often.
    pub(super) fn take(&self, token: &[u8], events: usize, now_s: f64) -> bool {
        let key = self.hasher.hash_one(token);
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        // A panic while counting leaves counts that are right or one too high.
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Used { by_token, by_the_rest } = &mut *used;
        if by_token.len() >= TOKENS_MAX && !by_token.contains_key(&key) {
            by_token.retain(|_, bucket| !bucket.is_empty(now_s));
        }
        let is_full = by_token.len() >= TOKENS_MAX;
        let bucket = match by_token.get_mut(&key) {
            Some(bucket) => bucket,
            None if is_full => by_the_rest,
            None => by_token.entry(key).or_default(),
        };
        bucket.take(events, self.rate, now_s)
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
    fn the_map_does_not_grow_without_bound_and_the_rest_counts_as_one() {
        let pace = TokenPace::new(PerSecond(1));
        let take = |n: usize, now_s| pace.take(&n.to_be_bytes(), 1, now_s);
        assert!((0..=TOKENS_MAX).all(|n| take(n, NOW_S)));
        assert!(!take(TOKENS_MAX + 1, NOW_S), "one of the rest was enough");
        assert!(take(TOKENS_MAX + 1, NOW_S + 2.0), "those who were silent are forgotten");
        assert_eq!(pace.used.lock().expect("no panic holds it").by_token.len(), 1);
    }
}
