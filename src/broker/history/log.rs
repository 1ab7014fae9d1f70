//! The entries of a history: the retained publications by offset, and the lists that link them.

use std::collections::VecDeque;

use super::super::retained::Retained;

/// The memory that a publication takes in a log in addition to its [`Retained`], in bytes: its slot, and
/// the unused capacity of the log.
pub(super) const PLACE_BYTES: usize = 64;

/// A log shrinks when its capacity exceeds its length by more than this factor.
const ROOM_SHARE: usize = 4;

/// Publications by offset. New ones are added at the end, and mostly the oldest one is removed first, so a
/// queue is cheaper than a map: neither operation searches.
///
/// Each publication belongs to one [`List`] and has the offsets of its neighbours there, so a list needs no
/// memory of its own for its publications.
///
/// The removal of a publication in the middle leaves a hole. Holes are closed when they outnumber the
/// publications.
#[derive(Debug, Clone, Default)]
pub(super) struct RetainedLog {
    /// The slots by offset. The first one is never a hole.
    places: VecDeque<LogSlot>,
    publications: usize,
    bytes: usize,
    /// The highest offset that was evicted.
    evicted: u64,
}

#[derive(Debug, Clone)]
struct LogSlot {
    offset: u64,
    /// The offsets of the neighbours in the list; 0 stands for none, because no publication has it.
    before: u64,
    after: u64,
    /// `None` in a hole.
    retained: Option<Retained>,
}

/// The publications of one destination, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct List {
    /// The offsets of the oldest and the newest publication, if the list is not empty.
    oldest: u64,
    newest: u64,
    len: usize,
    /// The highest offset that was evicted.
    evicted: u64,
}

impl List {
    /// An empty list from which publications up to an offset were evicted.
    pub(super) fn behind(evicted: u64) -> Self {
        Self { evicted, ..Self::default() }
    }

    /// The number of publications.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The highest offset that was evicted.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The highest offset that the list has had.
    pub(super) fn newest(&self) -> u64 {
        if self.len == 0 { self.evicted } else { self.newest }
    }
}

impl RetainedLog {
    /// An empty log from which publications up to an offset were evicted.
    pub(super) fn behind(evicted: u64) -> Self {
        Self { evicted, ..Self::default() }
    }

    /// The number of publications.
    pub(super) fn len(&self) -> usize {
        self.publications
    }

    /// Returns whether the log has no publications.
    pub(super) fn is_empty(&self) -> bool {
        self.publications == 0
    }

    /// The bytes of memory of the publications.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The highest offset that was evicted.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Counts the publication at an offset as evicted, although it was never retained.
    pub(super) fn pass_over(&mut self, offset: u64) {
        self.evicted = self.evicted.max(offset);
    }

    /// Adds a publication, whose offset must be higher than all before, to the end of a list.
    pub(super) fn append(&mut self, offset: u64, retained: Retained, list: &mut List) {
        debug_assert!(self.newest() < offset);
        let before = if list.len == 0 { 0 } else { list.newest };
        if let Some(place) = self.place_mut(before) {
            place.after = offset;
        } else {
            list.oldest = offset;
        }
        list.newest = offset;
        list.len += 1;
        self.publications += 1;
        self.bytes += PLACE_BYTES + retained.size_bytes();
        self.places.push_back(LogSlot { offset, before, after: 0, retained: Some(retained) });
    }

    /// The publication at an offset.
    pub(super) fn get(&self, offset: u64) -> Option<&Retained> {
        self.places.get(self.nth(offset)?)?.retained.as_ref()
    }

    /// Evicts the oldest publications of a list that has more than `len_max`.
    pub(super) fn shorten(&mut self, list: &mut List, len_max: usize) {
        while list.len > len_max {
            list.evicted = list.oldest;
            list.len -= 1;
            list.oldest = self.remove(list.oldest);
        }
    }

    /// Removes the publication at an offset, which is the oldest of its list. Returns the offset of the
    /// next one of the list.
    fn remove(&mut self, offset: u64) -> u64 {
        let place = self.place_mut(offset);
        let removed = place.and_then(|place| Some((place.after, place.retained.take()?)));
        let Some((after, retained)) = removed else {
            debug_assert!(false, "the log has every publication of a list");
            return 0;
        };
        self.evicted = self.evicted.max(offset);
        self.publications -= 1;
        self.bytes -= PLACE_BYTES + retained.size_bytes();
        while self.places.front().is_some_and(|place| place.retained.is_none()) {
            self.places.pop_front();
        }
        if self.places.len() > 2 * self.publications {
            self.places.retain(|place| place.retained.is_some());
        }
        if self.places.capacity() > ROOM_SHARE * self.places.len().max(1) {
            self.places.shrink_to(2 * self.places.len());
        }
        after
    }

    /// The oldest publication.
    pub(super) fn first(&self) -> Option<(u64, &Retained)> {
        self.iter().next()
    }

    /// The offset of the newest publication; zero if there is none.
    pub(super) fn newest(&self) -> u64 {
        self.places.back().map_or(0, |place| place.offset)
    }

    /// All publications, the oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &Retained)> {
        self.places.iter().filter_map(|place| Some((place.offset, place.retained.as_ref()?)))
    }

    /// The offsets of the publications after one offset, up to and including another.
    pub(super) fn between(&self, since: u64, up_to: u64) -> impl DoubleEndedIterator<Item = u64> {
        let up_to = up_to.max(since);
        let first = self.places.partition_point(|place| place.offset <= since);
        let end = self.places.partition_point(|place| place.offset <= up_to);
        let between = self.places.range(first..end);
        between.filter_map(|place| place.retained.is_some().then_some(place.offset))
    }

    /// The offsets of a list's publications after one offset, up to and including another, newest first.
    pub(super) fn back_from(
        &self,
        list: &List,
        since: u64,
        up_to: u64,
    ) -> impl Iterator<Item = u64> {
        let before = |offset: &u64| Some(self.places.get(self.nth(*offset)?)?.before);
        let newest = (list.len > 0).then_some(list.newest);
        // The oldest publication of a list may still name an evicted one, so the length ends the iteration.
        let all = std::iter::successors(newest, before).take(list.len);
        all.skip_while(move |offset| *offset > up_to).take_while(move |offset| *offset > since)
    }

    /// Evicts all publications. `offset` is not below any of theirs.
    pub(super) fn clear(&mut self, offset: u64) {
        *self = Self::behind(offset);
    }

    fn place_mut(&mut self, offset: u64) -> Option<&mut LogSlot> {
        let nth = self.nth(offset)?;
        self.places.get_mut(nth)
    }

    /// The index of the slot of an offset. If the offsets have no gaps, this needs no search.
    fn nth(&self, offset: u64) -> Option<usize> {
        #[cfg(test)]
        tests::LOOKUPS.set(tests::LOOKUPS.get() + 1);
        let first = self.places.front()?.offset;
        let nth = usize::try_from(offset.checked_sub(first)?).ok()?;
        match self.places.get(nth) {
            Some(place) if place.offset == offset => Some(nth),
            _ => self.places.binary_search_by_key(&offset, |place| place.offset).ok(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{cell::Cell, collections::BTreeMap};

    use proptest::prelude::*;

    use super::{
        super::super::testing::{key, publication},
        *,
    };

    /// A step of the test below.
    #[derive(Debug, Clone)]
    enum LogStep {
        /// Adds a publication to one of the lists, this number of offsets after the newest.
        Append(u64, usize),
        /// Shortens a list to this number of publications.
        Shorten(usize, usize),
        /// Evicts the oldest of all.
        EvictOldest,
    }

    const LISTS: usize = 3;

    thread_local! {
        /// The number of slots that this thread has looked up, in any log.
        pub(in super::super) static LOOKUPS: Cell<usize> = const { Cell::new(0) };
    }

    fn step() -> impl Strategy<Value = LogStep> {
        prop_oneof![
            5 => (1_u64..4, 0..LISTS).prop_map(|(further, list)| LogStep::Append(further, list)),
            1 => (0..LISTS, 0_usize..12).prop_map(|(list, len_max)| LogStep::Shorten(list, len_max)),
            2 => Just(LogStep::EvictOldest),
        ]
    }

    proptest! {
        #[test]
        fn a_log_and_its_lists_hold_what_a_map_would(steps in prop::collection::vec(step(), 0..300)) {
            let retained = Retained::new(&publication(&key(1, "public"), "room", "msg"), 0);
            let mut log = RetainedLog::default();
            let mut lists: [List; LISTS] = Default::default();
            let mut model = BTreeMap::new();
            let (mut newest, mut evicted) = (0, [0; LISTS]);
            for step in steps {
                match step {
                    LogStep::Append(further, list) => {
                        newest += further;
                        log.append(newest, retained.clone(), &mut lists[list]);
                        model.insert(newest, list);
                    }
                    LogStep::Shorten(list, len_max) => {
                        log.shorten(&mut lists[list], len_max);
                        while model.values().filter(|other| **other == list).count() > len_max {
                            let oldest = *model.iter().find(|(_, other)| **other == list).expect("one").0;
                            model.remove(&oldest);
                            evicted[list] = oldest;
                        }
                    }
                    LogStep::EvictOldest => {
                        let Some((oldest, list)) = model.pop_first() else { continue };
                        let len = lists[list].len();
                        log.shorten(&mut lists[list], len - 1);
                        evicted[list] = oldest;
                    }
                }
                prop_assert_eq!(log.len(), model.len());
                prop_assert!(log.places.len() <= 2 * log.len().max(1), "holes are closed");
                prop_assert!(log.iter().map(|(offset, _)| offset).eq(model.keys().copied()));
                prop_assert!((0..=newest).all(|offset| log.get(offset).is_some() == model.contains_key(&offset)));
                let (since, up_to) = (newest / 3, newest / 2);
                let within = |offset: &u64| (since + 1..=up_to).contains(offset);
                prop_assert!(log.between(since, up_to).eq(model.keys().copied().filter(within)));
                prop_assert_eq!(log.first().map(|(first, _)| first), model.keys().next().copied());
                prop_assert_eq!(log.evicted(), evicted.into_iter().max().unwrap_or(0));
                prop_assert_eq!(log.bytes(), model.len() * (PLACE_BYTES + retained.size_bytes()));
                for (nth, list) in lists.iter().enumerate() {
                    let own = || model.iter().filter(|(_, list)| **list == nth).map(|(offset, _)| *offset);
                    let back = || own().collect::<Vec<_>>().into_iter().rev();
                    prop_assert_eq!((list.len(), list.evicted()), (own().count(), evicted[nth]));
                    prop_assert_eq!(list.newest(), own().next_back().unwrap_or(evicted[nth]));
                    prop_assert!(log.back_from(list, 0, newest).eq(back()));
                    prop_assert!(log.back_from(list, since, up_to).eq(back().filter(within)));
                }
            }
        }
    }
}
