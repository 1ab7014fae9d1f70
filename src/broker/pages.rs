//! Lists over all nodes, which each node answers page by page, because an answer has a limited size.
//!
//! The lists of all nodes are in the same order. A page that is cut says nothing about the items after its last one,
//! so the asker takes the items up to the first cut, and asks all nodes again for those after it.

use std::io;

use serde::{Deserialize, Serialize};

use crate::engine::MESSAGE_BYTES_MAX;

/// The bytes of items with which a page is full. The item that fills it may exceed them by a quarter of an answer.
const PAGE_BYTES: usize = MESSAGE_BYTES_MAX / 4 * 3;

/// The first items of a node's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Page<T> {
    items: Vec<T>,
    /// Whether the list has more items.
    is_cut: bool,
}

impl<T: Serialize> Page<T> {
    /// As many of these items as fit, and at least one if there is any.
    pub(super) fn of(mut items: Vec<T>) -> Self {
        let mut bytes = 0;
        let fits = items.iter().take_while(|item| {
            let has_room = bytes < PAGE_BYTES;
            bytes += if has_room { json_bytes(item) } else { 0 };
            has_room
        });
        let fits = fits.count();
        let is_cut = fits < items.len();
        items.truncate(fits);
        Self { items, is_cut }
    }
}

/// The items of these pages, up to the first cut, and the key of the last item before that cut; `None` if no page is
/// cut. Pages are in the order of the keys.
pub(super) fn joined<T, K: Ord>(pages: Vec<Page<T>>, key: impl Fn(&T) -> K) -> (Vec<T>, Option<K>) {
    let cut = pages.iter().filter(|page| page.is_cut);
    let cut = cut.filter_map(|page| page.items.last().map(&key)).min();
    let items = pages.into_iter().flat_map(|page| page.items);
    let items = items.filter(|item| cut.as_ref().is_none_or(|cut| key(item) <= *cut));
    (items.collect(), cut)
}

/// The bytes of an item in a list in JSON.
fn json_bytes(item: &impl Serialize) -> usize {
    let mut counter = Counter(1);
    // The counter accepts everything, and an item that cannot be encoded fails the whole answer.
    let _ = serde_json::to_writer(&mut counter, item);
    counter.0
}

/// Counts the bytes that are written to it.
struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_with_the_item_that_fills_it() {
        let large = || "\"".repeat(PAGE_BYTES / 4);
        let items = vec!["a".to_owned(), large(), large(), "b".to_owned()];
        let page = Page::of(items.clone());
        assert_eq!(page, Page { items: items[..3].into(), is_cut: true });
        let written = serde_json::to_vec(&page).expect("JSON");
        assert!((PAGE_BYTES..MESSAGE_BYTES_MAX).contains(&written.len()), "{}", written.len());
        let rest = Page::of(items[3..].to_vec());
        assert_eq!(rest, Page { items: items[3..].into(), is_cut: false });
        let one = vec!["x".repeat(MESSAGE_BYTES_MAX)];
        assert_eq!(Page::of(one.clone()), Page { items: one, is_cut: false }, "at least one");
    }

    #[test]
    fn pages_are_joined_up_to_the_first_cut() {
        let page = |items: &[u8], is_cut| Page { items: items.to_vec(), is_cut };
        for (pages, expected) in [
            (vec![], (vec![], None)),
            (vec![page(&[1, 4], false), page(&[2], false)], (vec![1, 4, 2], None)),
            (vec![page(&[1, 4], true), page(&[2, 9], false)], (vec![1, 4, 2], Some(4))),
            (vec![page(&[1, 4], true), page(&[3, 5], true)], (vec![1, 4, 3], Some(4))),
            (vec![page(&[], false), page(&[3, 5], true)], (vec![3, 5], Some(5))),
        ] {
            assert_eq!(joined(pages.clone(), |item| *item), expected, "{pages:?}");
        }
    }
}
