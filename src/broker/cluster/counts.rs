//! Counts over several nodes: subscribers of a channel are sent the number of its subscribers on all nodes.
//!
//! A node tells the others on which channels it has subscribers that are sent the number: it *wants* these
//! channels. When the number of subscribers of a wanted channel changes on a node, that node tells all
//! nodes, and each node that wants the channel asks for the number anew. Changes of channels that no other
//! node wants are not sent.
//!
//! Clients choose the names of channels, so every list of channels has a limit. A list that exceeds it is replaced
//! by "all channels": all count as wanted, or the node asks for the numbers of all.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::broker::{
    counts::Cause,
    node::NodeId,
    now_ms,
    stream::Stream,
    subscriber::Place,
    topics::{Topics, Unanswered},
};

/// The interval at which a node repeats which channels it wants.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);

/// The time after which a wanted channel that is not repeated is forgotten.
const WANTED_FOR: Duration = Duration::from_secs(180);

/// The shortest time between two sendings of messages. Changes of one channel within it are combined.
const PAUSE: Duration = Duration::from_millis(50);

/// The time after which messages that could not be sent are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The most channels of one message, and the most channels whose numbers are asked for at the same time.
const PLACES_PER_MESSAGE: usize = 1_000;
const ASKED_AT_ONCE: usize = 64;

/// The most channels that this node remembers in each of its lists: those that other nodes want, those for each kind
/// of message, and those about which it has yet to ask.
const PLACES_MAX: usize = 20_000;

/// The name of the message with the channels that a node wants.
const WANTED: &str = "counts_wanted";

/// The name of the message with the channels whose numbers have changed on a node.
const CHANGED: &str = "counts_changed";

/// The channels that other nodes want, and the messages and questions that this node has yet to send.
#[derive(Debug, Default)]
pub(super) struct SharedCounts {
    is_any_wanted: AtomicBool,
    is_due: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The channels that other nodes want, each with the time at which it is forgotten.
    wanted: HashMap<Place, Instant>,
    /// The time until which all channels count as wanted, because other nodes want more than may be remembered.
    all_wanted_until: Option<Instant>,
    due: DueCounts,
}

/// The channels about which this node has yet to tell the other nodes, or to ask them.
#[derive(Debug, Default, PartialEq, Eq)]
struct DueCounts {
    /// Channels that this node wants from now on.
    wants: HashSet<Place>,
    /// Channels whose numbers have changed here.
    changed: HashSet<Place>,
    /// Channels whose numbers have changed on another node.
    to_ask: HashSet<Place>,
    /// Whether this node must repeat all channels that it wants, and ask for their numbers, because nodes have
    /// come or gone, messages may have been missed, or too many channels were due.
    is_all_due: bool,
    /// Whether the numbers of more channels have changed here than are remembered.
    is_all_changed: bool,
}

/// The body of both messages.
#[derive(Debug, Serialize, Deserialize)]
struct CountedPlaces {
    node: u16,
    places: Vec<Place>,
    /// Whether the message is about all channels.
    #[serde(default)]
    are_all: bool,
}

impl State {
    fn is_any_wanted(&self) -> bool {
        !self.wanted.is_empty() || self.all_wanted_until.is_some()
    }

    fn is_wanted(&self, place: &Place) -> bool {
        self.all_wanted_until.is_some() || self.wanted.contains_key(place)
    }
}

impl DueCounts {
    /// Replaces lists that are too long.
    fn bound(&mut self) {
        for list in [&mut self.wants, &mut self.to_ask] {
            if list.len() > PLACES_MAX {
                mem::take(list);
                self.is_all_due = true;
            }
        }
        if self.changed.len() > PLACES_MAX {
            mem::take(&mut self.changed);
            self.is_all_changed = true;
        }
    }

    fn add(&mut self, other: Self) {
        self.wants.extend(other.wants);
        self.changed.extend(other.changed);
        self.to_ask.extend(other.to_ask);
        self.is_all_due |= other.is_all_due;
        self.is_all_changed |= other.is_all_changed;
    }
}

impl SharedCounts {
    /// Returns whether other nodes want any channel.
    fn is_any_wanted(&self) -> bool {
        self.is_any_wanted.load(Relaxed)
    }

    /// Makes the next sending repeat all channels that this node wants, and ask for their numbers.
    pub(super) fn tell_all(&self) {
        self.note(|due| due.is_all_due = true);
    }

    fn note(&self, note: impl FnOnce(&mut DueCounts)) {
        let mut state = self.state.lock();
        note(&mut state.due);
        state.due.bound();
        drop(state);
        self.is_due.notify_one();
    }

    fn note_changed(&self, place: &Place) {
        let mut state = self.state.lock();
        if state.is_wanted(place) && state.due.changed.insert(place.clone()) {
            state.due.bound();
            drop(state);
            self.is_due.notify_one();
        }
    }

    fn note_wanted(&self, places: Vec<Place>, now: Instant) {
        let mut state = self.state.lock();
        for place in places {
            if state.wanted.len() < PLACES_MAX || state.wanted.contains_key(&place) {
                state.wanted.insert(place, now + WANTED_FOR);
            } else {
                state.all_wanted_until = Some(now + WANTED_FOR);
            }
        }
        self.is_any_wanted.store(state.is_any_wanted(), Relaxed);
    }

    fn forget_unwanted(&self, now: Instant) {
        let mut state = self.state.lock();
        state.wanted.retain(|_, until| *until > now);
        state.all_wanted_until = state.all_wanted_until.filter(|until| *until > now);
        self.is_any_wanted.store(state.is_any_wanted(), Relaxed);
    }

    fn take_due(&self) -> DueCounts {
        mem::take(&mut self.state.lock().due)
    }
}

/// Registers the handlers of both messages.
pub(super) fn register(topics: &Topics) {
    for name in [WANTED, CHANGED] {
        let broker = topics.downgrade();
        topics.on_message(name, move |message| {
            if let Some(topics) = Topics::upgrade(&broker) {
                topics.hear_counts(name, message.as_deref());
            }
        });
    }
}

impl Topics {
    fn shared_counts(&self) -> Option<&SharedCounts> {
        self.cluster().map(|cluster| &cluster.counts)
    }

    /// Returns whether other nodes want any channel.
    pub(in crate::broker) fn is_any_count_wanted(&self) -> bool {
        self.shared_counts().is_some_and(SharedCounts::is_any_wanted)
    }

    /// Notes that the number of subscribers of a channel has changed on this node.
    pub(in crate::broker) fn note_count_changed(&self, place: &Place) {
        if let Some(counts) = self.shared_counts().filter(|counts| counts.is_any_wanted()) {
            counts.note_changed(place);
        }
    }

    /// Notes that a channel has its first subscriber on this node that is sent the number.
    pub(in crate::broker) fn want_count(&self, place: &Place) {
        if let Some(counts) = self.shared_counts() {
            counts.note(|due| due.wants.extend([place.clone()]));
        }
    }

    fn hear_counts(&self, name: &str, message: Option<&[u8]>) {
        let Some(counts) = self.shared_counts() else { return };
        // Without a body, messages may have been missed.
        let Some(message) = message else { return counts.tell_all() };
        let Ok(told) = serde_json::from_slice(message) else { return };
        let CountedPlaces { node, places, are_all } = told;
        match name {
            _ if NodeId(node) == self.node() => {}
            _ if are_all => counts.tell_all(),
            WANTED => counts.note_wanted(places, Instant::now()),
            _ => counts.note(|due| due.to_ask.extend(places)),
        }
    }

    /// Tells the other nodes which numbers of subscribers have changed here, and asks for those that have
    /// changed elsewhere. Runs until it is dropped, but ends at once on a server without a cluster.
    pub async fn keep_counts(self) {
        let Some(counts) = self.shared_counts() else { return };
        let mut refreshed = Instant::now();
        loop {
            let left = REFRESH_INTERVAL.saturating_sub(refreshed.elapsed());
            let _ = timeout(left, counts.is_due.notified()).await;
            let mut due = counts.take_due();
            let mut repeated = HashSet::new();
            if due.is_all_due || refreshed.elapsed() >= REFRESH_INTERVAL {
                let here = self.counted_here();
                if due.is_all_due {
                    due.to_ask.extend(here.iter().cloned());
                }
                repeated.extend(here);
                counts.forget_unwanted(Instant::now());
                refreshed = Instant::now();
            }
            let untold = self.tell_counts(due, repeated).await;
            if untold != DueCounts::default() {
                counts.note(|due| due.add(untold));
                sleep(RETRY_INTERVAL).await;
            }
            sleep(PAUSE).await;
        }
    }

    /// The channels that have subscribers on this node that are sent the number.
    fn counted_here(&self) -> Vec<Place> {
        let streams = self.directory().all();
        let of_stream = |stream: Arc<Stream>| {
            let key = stream.key().clone();
            let channels = stream.counts().all().into_iter();
            channels.map(move |channel| Place { key: key.clone(), channel: Some(channel) })
        };
        streams.into_iter().flat_map(of_stream).collect()
    }

    /// Sends the messages that are due, repeats which channels this node wants, and asks for the numbers that
    /// are due. Returns the messages that could not be sent.
    async fn tell_counts(&self, due: DueCounts, repeated: HashSet<Place>) -> DueCounts {
        let DueCounts { wants, changed, mut to_ask, is_all_changed, .. } = due;
        let mut untold = DueCounts::default();
        let (_, not_repeated) = self.tell_places(WANTED, repeated).await;
        // Changes before the other nodes knew that this node wants the channel were not sent, so it asks.
        let (told, not_told) = self.tell_places(WANTED, wants).await;
        to_ask.extend(told);
        untold.wants = not_told;
        untold.wants.extend(not_repeated);
        (_, untold.changed) = self.tell_places(CHANGED, changed).await;
        if is_all_changed {
            let all = CountedPlaces { node: self.node().0, places: Vec::new(), are_all: true };
            untold.is_all_changed = self.tell_counted(CHANGED, &all).await.is_err();
        }
        if !to_ask.is_empty() {
            actix::spawn(self.clone().ask_counts(to_ask.into_iter().collect()));
        }
        untold
    }

    /// Sends a message about channels. Returns the channels of the parts that were sent, and those of the parts
    /// that were not.
    async fn tell_places(
        &self,
        name: &str,
        places: HashSet<Place>,
    ) -> (HashSet<Place>, HashSet<Place>) {
        let (mut told, mut untold) = (HashSet::new(), HashSet::new());
        let all: Vec<_> = places.into_iter().collect();
        for places in all.chunks(PLACES_PER_MESSAGE) {
            let (node, places) = (self.node().0, places.to_vec());
            let message = CountedPlaces { node, places, are_all: false };
            match self.tell_counted(name, &message).await {
                Ok(()) => told.extend(message.places),
                Err(Unanswered) => untold.extend(message.places),
            }
        }
        (told, untold)
    }

    async fn tell_counted(&self, name: &str, message: &CountedPlaces) -> Result<(), Unanswered> {
        self.tell_nodes(name, &serde_json::to_vec(message).unwrap_or_default()).await
    }

    async fn ask_counts(self, places: Vec<Place>) {
        for places in places.chunks(ASKED_AT_ONCE) {
            join_all(places.iter().map(|place| self.ask_count(place))).await;
        }
    }

    /// Asks for the number of subscribers of a channel, and sends it to the subscribers of this node if it
    /// differs from the last one.
    async fn ask_count(&self, place: &Place) {
        let stream = self.directory().find(&place.key);
        let (Some(stream), Some(channel)) = (stream, &place.channel) else { return };
        let Some(count) = stream.counts().changed(channel, Cause::Elsewhere, now_ms()) else {
            return;
        };
        if let Some(next) = self.tell_count(count, place, &stream).await {
            // A channel whose number changes all the time does not hold up the others.
            let (topics, place) = (self.clone(), place.clone());
            actix::spawn(async move { topics.tell_count_until_settled(next, place, stream).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::testing::{channel, key};

    fn places(names: impl Iterator<Item = usize>) -> Vec<Place> {
        let scope = key(1, "public");
        names.map(|name| channel(&scope, &format!("c{name}"))).collect()
    }

    #[test]
    fn if_more_channels_are_wanted_than_are_remembered_all_count_as_wanted_for_a_while() {
        let (counts, now) = (SharedCounts::default(), Instant::now());
        let (first, rest) = (places(0..1), places(1..PLACES_MAX + 1));
        let changed = |place: &Place| {
            counts.note_changed(place);
            counts.take_due().changed.contains(place)
        };
        counts.note_wanted(rest.clone(), now);
        assert!(changed(&rest[0]) && !changed(&first[0]));
        counts.note_wanted(rest.clone(), now);
        assert!(!changed(&first[0]), "no further one is wanted");
        counts.note_wanted(first.clone(), now);
        assert_eq!(counts.state.lock().wanted.len(), PLACES_MAX);
        assert!(changed(&first[0]) && changed(&rest[0]));
        counts.note_wanted(places(1..2), now + WANTED_FOR / 2);
        counts.forget_unwanted(now + WANTED_FOR);
        assert!(changed(&rest[0]) && !changed(&rest[1]) && !changed(&first[0]));
        counts.forget_unwanted(now + WANTED_FOR * 2);
        assert!(!counts.is_any_wanted());
    }

    #[test]
    fn of_the_channels_that_are_due_few_are_remembered() {
        let (counts, now) = (SharedCounts::default(), Instant::now());
        let many = places(0..PLACES_MAX + 1);
        counts.note(|due| due.to_ask.extend(many.clone()));
        let all_due = DueCounts { is_all_due: true, ..DueCounts::default() };
        assert_eq!(counts.take_due(), all_due);
        counts.note(|due| due.wants.extend(many.clone()));
        assert_eq!(counts.take_due(), all_due);
        counts.note_wanted(many.clone(), now);
        many.iter().for_each(|place| counts.note_changed(place));
        let all_changed = DueCounts { is_all_changed: true, ..DueCounts::default() };
        assert_eq!(counts.take_due(), all_changed);
    }
}
