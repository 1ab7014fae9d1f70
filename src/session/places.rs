//! Limits on the number of sessions of each app, or of each address: each session holds a place of its key.
//!
//! These places are not the positions of subscriptions in the broker, which
//! [`Place`](crate::broker::subscriber::Place) names. In a cluster, each node tells the others how many places
//! its sessions hold, and counts the places of all nodes together.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fmt,
    hash::Hash,
    mem,
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// Counts the held places, by key. Cheap to clone.
///
/// Keys without held places are forgotten, so there are never more keys than sessions.
#[derive(Debug)]
pub struct Places<K>(Option<Arc<Bounded<K>>>);

#[derive(Debug)]
struct Bounded<K> {
    taken: Mutex<TakenPlaces<K>>,
    has_changed: Notify,
    max: usize,
}

#[derive(Debug)]
struct TakenPlaces<K> {
    here: HashMap<K, usize>,
    /// The places that are held on other nodes, as far as those nodes have told this one.
    elsewhere: HashMap<K, usize>,
    /// The keys whose counts the other nodes have yet to be told; `None` without a cluster.
    changed: Option<HashSet<K>>,
}

/// A held place. Dropping this gives it back. It is empty if there is no bound.
pub struct HeldPlace<K: Eq + Hash + Clone>(Option<Box<Bound<K>>>);

struct Bound<K> {
    key: K,
    places: Arc<Bounded<K>>,
}

/// The error of a key all of whose places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl<K: Eq + Hash + Clone> Places<K> {
    /// At most `max` places for each key; `None` sets no bound, and nothing is counted.
    pub fn new(max: Option<usize>) -> Self {
        let bounded = |max| {
            let (here, elsewhere) = (HashMap::new(), HashMap::new());
            let taken = Mutex::new(TakenPlaces { here, elsewhere, changed: None });
            Arc::new(Bounded { taken, has_changed: Notify::new(), max })
        };
        Self(max.map(bounded))
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`Full`] if all places of the key are taken, on this node and others together.
    pub fn take(&self, key: &K) -> Result<HeldPlace<K>, Full> {
        let Some(places) = &self.0 else { return Ok(HeldPlace(None)) };
        let mut taken = places.taken.lock();
        let here = taken.here.get(key).copied().unwrap_or_default();
        let elsewhere = taken.elsewhere.get(key).copied().unwrap_or_default();
        if here + elsewhere >= places.max {
            return Err(Full);
        }
        taken.here.insert(key.clone(), here + 1);
        places.note_changed(taken, key);
        Ok(HeldPlace(Some(Box::new(Bound { key: key.clone(), places: places.clone() }))))
    }

    /// Begins to collect which counts change, because other nodes must be told. Returns `false` if there is no
    /// bound, so that nothing is counted.
    pub fn share(&self) -> bool {
        let Some(places) = &self.0 else { return false };
        places.taken.lock().changed.get_or_insert_default();
        true
    }

    /// The bound, if there is one.
    pub fn max(&self) -> Option<usize> {
        self.0.as_ref().map(|places| places.max)
    }

    /// Waits until a count has changed that [`take_changed`](Self::take_changed) has not returned yet. Waits
    /// forever if there is no bound.
    pub async fn changed(&self) {
        match &self.0 {
            Some(places) => places.has_changed.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Returns the keys whose counts on this node have changed since the last call, with their counts.
    pub fn take_changed(&self) -> Vec<(K, usize)> {
        let Some(places) = &self.0 else { return Vec::new() };
        let mut taken = places.taken.lock();
        let changed = taken.changed.as_mut().map(mem::take).unwrap_or_default();
        let count = |key: &K| taken.here.get(key).copied().unwrap_or_default();
        changed.into_iter().map(|key| (key.clone(), count(&key))).collect()
    }

    /// Marks these keys as changed again, because the other nodes could not be told their counts.
    pub fn put_back(&self, keys: impl Iterator<Item = K>) {
        let Some(places) = &self.0 else { return };
        if let Some(changed) = &mut places.taken.lock().changed {
            changed.extend(keys);
        }
        places.has_changed.notify_one();
    }

    /// The counts on this node that are not zero, with their keys.
    pub fn all(&self) -> Vec<(K, usize)> {
        let Some(places) = &self.0 else { return Vec::new() };
        places.taken.lock().here.iter().map(|(key, count)| (key.clone(), *count)).collect()
    }

    /// Sets the counts of some keys on other nodes. A key that has none there is forgotten.
    pub fn set_elsewhere(&self, counts: impl IntoIterator<Item = (K, usize)>) {
        let Some(places) = &self.0 else { return };
        let mut taken = places.taken.lock();
        for (key, count) in counts {
            match count {
                0 => taken.elsewhere.remove(&key),
                count => taken.elsewhere.insert(key, count),
            };
        }
    }
}

impl<K: Eq + Hash + Clone> Bounded<K> {
    fn note_changed(&self, mut taken: MutexGuard<'_, TakenPlaces<K>>, key: &K) {
        let Some(changed) = &mut taken.changed else { return };
        if changed.insert(key.clone()) {
            drop(taken);
            self.has_changed.notify_one();
        }
    }
}

impl<K> Clone for Places<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Eq + Hash + Clone> Default for HeldPlace<K> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Eq + Hash + Clone> fmt::Debug for HeldPlace<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeldPlace").field(&self.0.is_some()).finish()
    }
}

impl<K: Eq + Hash + Clone> Drop for HeldPlace<K> {
    fn drop(&mut self) {
        let Some(bound) = self.0.take() else { return };
        let Bound { key, places } = *bound;
        let mut taken = places.taken.lock();
        if let Entry::Occupied(mut count) = taken.here.entry(key.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        places.note_changed(taken, &key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(places: &Places<u8>) -> usize {
        let bounded = places.0.as_ref().expect("a bound");
        bounded.taken.lock().here.len()
    }

    #[test]
    fn each_key_has_a_limited_number_of_places_and_a_key_without_holders_is_forgotten() {
        let places = Places::new(Some(2));
        let first = places.take(&1).expect("a place");
        let second = places.take(&1).expect("a place");
        assert_eq!(places.take(&1).err(), Some(Full));
        let other = places.take(&2).expect("another's");
        drop(first);
        let third = places.take(&1).expect("its place again");
        assert_eq!(keys(&places), 2);
        drop((second, third, other));
        assert_eq!(keys(&places), 0);
    }

    #[test]
    fn places_that_are_taken_at_other_nodes_count_and_the_others_are_told_what_changes() {
        let places = Places::new(Some(3));
        let unshared = places.take(&1).expect("a place");
        assert_eq!(places.max(), Some(3));
        assert_eq!(places.take_changed(), [], "nobody is told");
        assert!(places.share());
        assert_eq!(places.all(), [(1, 1)], "others are told of it as a whole");
        places.set_elsewhere([(1, 1), (2, 3)]);
        let third = places.take(&1).expect("the third place");
        assert_eq!(places.take(&1).err(), Some(Full));
        assert_eq!(places.take(&2).err(), Some(Full), "all are taken elsewhere");
        assert_eq!(places.take_changed(), [(1, 2)]);
        assert_eq!(places.take_changed(), []);
        drop((unshared, third));
        assert_eq!(places.take_changed(), [(1, 0)], "both at once");
        places.put_back([1].into_iter());
        assert_eq!(places.take_changed(), [(1, 0)], "it could not be told");
        places.set_elsewhere([(1, 0), (2, 0)]);
        let held: Vec<_> = (0..3).map(|_| places.take(&2).expect("a place")).collect();
        assert_eq!(held.len(), 3);
    }

    #[test]
    fn without_a_bound_there_is_nothing_to_hold() {
        let places = Places::new(None);
        assert!(!places.share(), "there is nothing to tell");
        let held: Vec<_> = (0..1_000).map(|_| places.take(&1).expect("a place")).collect();
        assert!(held.iter().all(|held| held.0.is_none()));
    }
}
