//! Maps that nodes tell each other. Each node has a map of its own, and tells the others which keys have changed.
//!
//! A node that does not know the whole map of another one asks for it. Changes that arrive while it waits may be
//! newer than the answer, so it applies them to the answer as well. Messages are numbered: if one is missing or
//! late, the node asks for the whole map again.

use std::{collections::HashMap, hash::Hash, mem};

use crate::engine::{Incarnation, NodeInfo};

use super::node::NodeId;

/// A key, and its value from now on; `None` if the map has the key no longer.
pub type KeyChange<K, V> = (K, Option<V>);

/// The maps of the other nodes, as far as they have told this one.
///
/// The functions that change them return what has changed.
#[derive(Debug)]
pub struct OtherNodes<K, V>(HashMap<NodeId, OtherNode<K, V>>);

#[derive(Debug)]
struct OtherNode<K, V> {
    known: HashMap<K, V>,
    /// The incarnation in which it has answered with its whole map, if no message was missed since. A node that has
    /// only sent changes has none, because its map may have other keys from before.
    learned: Option<Incarnation>,
    /// The changes that it has sent while it was being asked for its whole map; `None` if it is not being asked, or
    /// if a message was missed, because the answer then lacks that message.
    meanwhile: Option<Vec<KeyChange<K, V>>>,
    /// The number of its last message.
    last: Option<u64>,
}

impl<K: Eq + Hash + Clone, V: PartialEq + Clone> OtherNodes<K, V> {
    /// Takes a message of a node. A late one is left out. An earlier version of Herald does not number its messages.
    pub fn note(
        &mut self,
        node: NodeId,
        number: Option<u64>,
        told: Vec<KeyChange<K, V>>,
    ) -> Vec<KeyChange<K, V>> {
        let of_node = self.0.entry(node).or_default();
        let last = mem::replace(&mut of_node.last, number);
        if let Some((number, last)) = number.zip(last) {
            if number.checked_sub(1) != Some(last) {
                of_node.miss();
            }
            if number <= last {
                return Vec::new();
            }
        }
        if let Some(meanwhile) = &mut of_node.meanwhile {
            meanwhile.extend(told.iter().cloned());
        }
        of_node.set(told)
    }

    /// Takes notice that messages may have been missed.
    pub fn miss(&mut self) {
        self.0.values_mut().for_each(OtherNode::miss);
    }

    /// Begins to ask all live nodes but this one, `own`, whose whole maps are not known. Returns them.
    pub fn begin_asking(&mut self, live: &[NodeInfo], own: NodeId) -> Vec<(NodeId, Incarnation)> {
        let mut asked = Vec::new();
        for NodeInfo { node, incarnation, .. } in live.iter().filter(|info| info.node != own) {
            let of_node = self.0.entry(*node).or_default();
            if of_node.learned != Some(*incarnation) {
                of_node.meanwhile = Some(Vec::new());
                asked.push((*node, *incarnation));
            }
        }
        asked
    }

    /// Replaces the map of a node by its answer in this incarnation. With `None`, the node has not answered: what
    /// is known of its map stays, and it is asked again.
    pub fn replace(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        answer: Option<HashMap<K, V>>,
    ) -> Vec<KeyChange<K, V>> {
        let Some(of_node) = self.0.get_mut(&node) else { return Vec::new() };
        let (Some(meanwhile), Some(answer)) = (of_node.meanwhile.take(), answer) else {
            return Vec::new();
        };
        let mut whole = OtherNode { known: answer, ..OtherNode::default() };
        whole.set(meanwhile);
        let gone = of_node.known.keys().filter(|key| !whole.known.contains_key(*key));
        let mut changes: Vec<_> = gone.map(|key| (key.clone(), None)).collect();
        changes.extend(whole.known.into_iter().map(|(key, value)| (key, Some(value))));
        of_node.learned = Some(incarnation);
        of_node.set(changes)
    }

    /// Forgets the nodes that are not alive.
    pub fn retain(&mut self, live: &[NodeInfo]) -> Vec<KeyChange<K, V>> {
        let is_gone = |node: &NodeId| live.iter().all(|info| info.node != *node);
        let gone = self.0.extract_if(|node, _| is_gone(node));
        gone.flat_map(|(_, of_node)| of_node.known.into_keys()).map(|key| (key, None)).collect()
    }

    /// The maps, with their nodes.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &HashMap<K, V>)> {
        self.0.iter().map(|(node, of_node)| (*node, &of_node.known))
    }
}

impl<K: Eq + Hash + Clone, V: PartialEq + Clone> OtherNode<K, V> {
    /// Makes these changes. Returns those that change the map.
    fn set(&mut self, changes: Vec<KeyChange<K, V>>) -> Vec<KeyChange<K, V>> {
        let mut changed = Vec::new();
        for (key, value) in changes {
            let before = match value.clone() {
                Some(value) => self.known.insert(key.clone(), value),
                None => self.known.remove(&key),
            };
            if before != value {
                changed.push((key, value));
            }
        }
        changed
    }
}

impl<K, V> OtherNode<K, V> {
    fn miss(&mut self) {
        (self.learned, self.meanwhile) = (None, None);
    }
}

impl<K, V> Default for OtherNode<K, V> {
    fn default() -> Self {
        Self { known: HashMap::new(), learned: None, meanwhile: None, last: None }
    }
}

impl<K, V> Default for OtherNodes<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const OWN: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);
    const FIRST_LIFE: Incarnation = Incarnation(1);

    type Counts = OtherNodes<&'static str, usize>;

    fn live(incarnation: Incarnation) -> [NodeInfo; 2] {
        [OWN, OTHER].map(|node| {
            let (info, since_ms, seen_ms) = (Bytes::new(), 0, 0);
            NodeInfo { node, incarnation, info, since_ms, seen_ms }
        })
    }

    /// Whether the other node is asked now.
    fn is_asked(counts: &mut Counts) -> bool {
        let asked = counts.begin_asking(&live(FIRST_LIFE), OWN);
        assert!(asked.is_empty() || asked == [(OTHER, FIRST_LIFE)]);
        !asked.is_empty()
    }

    fn answer(counts: &mut Counts, answer: &[(&'static str, usize)]) {
        counts.replace(OTHER, FIRST_LIFE, Some(answer.iter().copied().collect()));
    }

    fn known(counts: &Counts) -> Vec<(&'static str, usize)> {
        let all = counts.iter().flat_map(|(_, known)| known.iter());
        let mut known: Vec<_> = all.map(|(key, value)| (*key, *value)).collect();
        known.sort_unstable();
        known
    }

    #[test]
    fn what_is_told_while_a_node_is_asked_is_newer_than_its_answer() {
        let mut counts = Counts::default();
        counts.note(OTHER, Some(1), vec![("old", Some(9)), ("same", Some(2))]);
        assert!(is_asked(&mut counts));
        let told = vec![("low", Some(1)), ("none", None), ("none", None)];
        assert_eq!(counts.note(OTHER, Some(2), told), [("low", Some(1))]);
        let whole = HashMap::from([("low", 1_000), ("none", 1_000), ("same", 2)]);
        assert_eq!(counts.replace(OTHER, FIRST_LIFE, Some(whole)), [("old", None)]);
        assert_eq!(known(&counts), [("low", 1), ("same", 2)]);
        assert!(!is_asked(&mut counts));
    }

    #[test]
    fn a_node_is_asked_until_it_has_answered_and_again_in_another_incarnation() {
        let mut counts = Counts::default();
        counts.note(OTHER, Some(1), vec![("a", Some(1))]);
        assert!(is_asked(&mut counts), "a change is not the whole map");
        assert_eq!(counts.replace(OTHER, FIRST_LIFE, None), []);
        assert_eq!(known(&counts), [("a", 1)]);
        assert!(is_asked(&mut counts));
        answer(&mut counts, &[]);
        assert_eq!(known(&counts), []);
        assert!(!is_asked(&mut counts), "also if its map is empty");
        let next_life = Incarnation(2);
        assert_eq!(counts.begin_asking(&live(next_life), OWN), [(OTHER, next_life)]);
        counts.note(OTHER, Some(2), vec![("a", Some(1))]);
        assert_eq!(counts.retain(&live(FIRST_LIFE)[..1]), [("a", None)]);
        assert_eq!(counts.replace(OTHER, next_life, Some(HashMap::from([("a", 1)]))), []);
        assert!(counts.0.is_empty(), "it is gone");
    }

    #[test]
    fn a_node_is_asked_again_if_a_message_was_missed_and_a_late_message_changes_nothing() {
        let mut counts = Counts::default();
        let mut told = |number, value: usize| counts.note(OTHER, number, vec![("a", Some(value))]);
        assert_eq!(told(Some(1), 1), [("a", Some(1))]);
        assert_eq!(told(Some(3), 3), [("a", Some(3))]);
        assert_eq!(told(Some(2), 2), []);
        assert_eq!(known(&counts), [("a", 3)]);
        for missed in [Some(8), Some(6), Some(0), None] {
            counts.note(OTHER, Some(5), Vec::new());
            assert!(is_asked(&mut counts));
            answer(&mut counts, &[("a", 4)]);
            counts.note(OTHER, Some(6), Vec::new());
            assert!(!is_asked(&mut counts));
            match missed {
                Some(_) => drop(counts.note(OTHER, missed, Vec::new())),
                None => counts.miss(),
            }
            assert!(is_asked(&mut counts), "{missed:?}");
            answer(&mut counts, &[("a", 4)]);
        }
        assert_eq!(counts.note(OTHER, None, vec![("a", None)]), [("a", None)], "has no number");
        assert!(!is_asked(&mut counts));
    }

    #[test]
    fn the_answer_to_a_question_during_which_a_message_was_missed_is_not_used() {
        let mut counts = Counts::default();
        counts.note(OTHER, Some(1), vec![("a", Some(1))]);
        assert!(is_asked(&mut counts));
        counts.note(OTHER, Some(3), vec![("a", Some(3))]);
        answer(&mut counts, &[("a", 1)]);
        assert_eq!(known(&counts), [("a", 3)]);
        assert!(is_asked(&mut counts));
    }
}
