//! Places per app or per address: how many sessions may share one.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts who holds a place, by key. Cheap to clone.
///
/// Keys without holders are forgotten, so there are never more than sessions.
#[derive(Debug)]
pub struct Places<K>(Option<Arc<Bounded<K>>>);

#[derive(Debug)]
struct Bounded<K> {
    taken: Mutex<HashMap<K, usize>>,
    max: usize,
}

/// A place, given back on drop; nothing at all where there is no bound.
pub struct Held<K: Eq + Hash>(Option<Box<Bound<K>>>);

struct Bound<K> {
    key: K,
    places: Arc<Bounded<K>>,
}

/// All places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl<K: Eq + Hash + Clone> Places<K> {
    /// At most so many for each key; `None`: as many as come, at no cost.
    pub fn new(max: Option<usize>) -> Self {
        Self(max.map(|max| Arc::new(Bounded { taken: Mutex::default(), max })))
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`Full`].
    pub fn take(&self, key: &K) -> Result<Held<K>, Full> {
        let Some(places) = &self.0 else { return Ok(Held(None)) };
        let mut taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(key) {
            Some(count) if *count >= places.max => return Err(Full),
            Some(count) => *count += 1,
            None => {
                taken.insert(key.clone(), 1);
            }
        }
        Ok(Held(Some(Box::new(Bound { key: key.clone(), places: places.clone() }))))
    }
}

impl<K> Clone for Places<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Eq + Hash> Default for Held<K> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Eq + Hash> fmt::Debug for Held<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.0.is_some()).finish()
    }
}

impl<K: Eq + Hash> Drop for Held<K> {
    fn drop(&mut self) {
        let Some(bound) = self.0.take() else { return };
        let Bound { key, places } = *bound;
        let mut taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = taken.entry(key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(places: &Places<u8>) -> usize {
        let bounded = places.0.as_ref().expect("a bound");
        bounded.taken.lock().expect("no panic holds it").len()
    }

    #[test]
    fn each_key_has_so_many_places_and_those_without_holders_are_forgotten() {
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
    fn without_a_bound_there_is_nothing_to_hold() {
        let places = Places::new(None);
        let held: Vec<_> = (0..1_000).map(|_| places.take(&1).expect("a place")).collect();
        assert!(held.iter().all(|held| held.0.is_none()));
    }
}
