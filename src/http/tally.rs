//! Counts by key, in bounded memory: beyond so many keys the oldest count is forgotten.
//!
//! Strangers choose the keys. A key that finds no room must neither be refused nor share a count
//! with others, or strangers who fill the memory shut everybody else out.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// The counts of at most so many keys.
#[derive(Debug)]
pub(super) struct Tally<K, C> {
    keys_max: usize,
    counts: HashMap<K, Numbered<C>>,
    /// Every count begun, the oldest first; some of them were begun anew since.
    order: VecDeque<(K, u64)>,
    begun: u64,
}

#[derive(Debug)]
struct Numbered<C> {
    count: C,
    number: u64,
}

impl<K: Copy + Eq + Hash, C> Tally<K, C> {
    /// Keeps the counts of so many keys.
    pub(super) fn new(keys_max: usize) -> Self {
        Self { keys_max, counts: HashMap::new(), order: VecDeque::new(), begun: 0 }
    }

    /// The count of a key.
    pub(super) fn get(&self, key: &K) -> Option<&C> {
        self.counts.get(key).map(|numbered| &numbered.count)
    }

    /// The count of a key, to count on.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut C> {
        self.counts.get_mut(key).map(|numbered| &mut numbered.count)
    }

    /// Begins a key's count, anew if it has one: it is the youngest now. The oldest gives way.
    pub(super) fn begin(&mut self, key: K, count: C) {
        self.begun += 1;
        self.counts.insert(key, Numbered { count, number: self.begun });
        self.order.push_back((key, self.begun));
        while self.counts.len() > self.keys_max {
            let Some(oldest) = self.order.pop_front() else { break };
            if is_current(&self.counts, &oldest) {
                self.counts.remove(&oldest.0);
            }
        }
        if self.order.len() > 2 * self.keys_max {
            self.order.retain(|begun| is_current(&self.counts, begun));
        }
    }
}

/// Whether a count that was begun was not begun anew since, nor forgotten.
fn is_current<K: Eq + Hash, C>(counts: &HashMap<K, Numbered<C>>, (key, number): &(K, u64)) -> bool {
    counts.get(key).is_some_and(|numbered| numbered.number == *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_count_gives_way_to_a_new_one() {
        let mut tally = Tally::new(3);
        for key in 0..4 {
            tally.begin(key, 10 * key);
        }
        let kept = |tally: &Tally<i32, i32>| -> Vec<_> {
            (0..6).map(|k| tally.get(&k).copied()).collect()
        };
        assert_eq!(kept(&tally), [None, Some(10), Some(20), Some(30), None, None]);
        tally.begin(1, 11);
        *tally.get_mut(&3).expect("a count") += 1;
        tally.begin(4, 40);
        assert_eq!(kept(&tally), [None, Some(11), None, Some(31), Some(40), None]);
        tally.begin(5, 50);
        assert_eq!(kept(&tally), [None, Some(11), None, None, Some(40), Some(50)]);
    }

    #[test]
    fn memory_is_bounded_whatever_is_begun() {
        let mut tally = Tally::new(10);
        for n in 0..1_000_u32 {
            tally.begin(n % 7, n);
            tally.begin(1_000 + n, n);
            tally.begin(0, n);
            assert!(tally.counts.len() <= 10 && tally.order.len() <= 21, "{n}: {tally:?}");
            assert_eq!(tally.get(&0), Some(&n));
        }
    }
}
