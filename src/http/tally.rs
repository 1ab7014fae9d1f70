//! Counts by key, in bounded memory: when there are too many keys, the oldest count is dropped.
//!
//! Clients choose the keys. A key that finds no room must neither be refused nor share a count with
//! others: otherwise clients that fill the memory would shut all other clients out.

/// The counts of a bounded number of keys.
///
/// `insert` makes a key's count the youngest; `peek` and `peek_mut` leave its age unchanged. The
/// age of a count runs from its beginning, however often it is used.
pub(super) type Tally<K, C> = hashlink::LruCache<K, C>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_count_gives_way_to_a_new_one() {
        let mut tally = Tally::new(3);
        for key in 0..4 {
            tally.insert(key, 10 * key);
        }
        let kept = |tally: &Tally<i32, i32>| -> Vec<_> {
            (0..6).map(|k| tally.peek(&k).copied()).collect()
        };
        assert_eq!(kept(&tally), [None, Some(10), Some(20), Some(30), None, None]);
        tally.insert(1, 11);
        *tally.peek_mut(&3).expect("a count") += 1;
        tally.insert(4, 40);
        assert_eq!(kept(&tally), [None, Some(11), None, Some(31), Some(40), None]);
        tally.insert(5, 50);
        assert_eq!(kept(&tally), [None, Some(11), None, None, Some(40), Some(50)]);
    }

    #[test]
    fn memory_is_bounded_whatever_is_begun() {
        let mut tally = Tally::new(10);
        for n in 0..1_000_u32 {
            tally.insert(n % 7, n);
            tally.insert(1_000 + n, n);
            tally.insert(0, n);
            assert!(tally.len() <= 10, "{n}: {tally:?}");
            assert_eq!(tally.peek(&0), Some(&n));
        }
    }
}
