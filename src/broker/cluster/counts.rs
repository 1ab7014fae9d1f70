//! Counts over several nodes: the subscribers of a channel are told how many they are, also when a
//! subscriber comes or goes at another node.
//!
//! A node tells the others which channels it has subscribers on that are told their number. When the
//! number of subscribers of such a channel changes at a node, it tells all nodes, and each node that has
//! subscribers to tell asks for the number anew. Nothing is told of channels that no other node wants.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
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

use super::peers::Peers;

/// How often a node repeats which channels it wants to hear of.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);

/// How long a channel is wanted that is not repeated.
const WANTED_FOR: Duration = Duration::from_secs(180);

/// The least time between two rounds of messages. Changes of one channel within it are one.
const PAUSE: Duration = Duration::from_millis(50);

/// How long messages wait that could not be told.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The most channels of one message, and the most whose numbers are asked for at the same time.
const PLACES_PER_MESSAGE: usize = 1_000;
const ASKED_AT_ONCE: usize = 64;

/// The message that a node wants to hear of changes.
const WANTED: &str = "counts_wanted";

/// The message that numbers have changed at a node.
const CHANGED: &str = "counts_changed";

/// The channels whose numbers are told at other nodes, and what this node has yet to tell and to ask.
#[derive(Debug, Default)]
pub(super) struct SharedCounts {
    is_any_wanted: AtomicBool,
    is_due: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The channels of which other nodes want to hear, and until when. There are never more than the
    /// subscribers of all nodes.
    wanted: HashMap<Place, Instant>,
    due: DueCounts,
}

/// The counts that this node has yet to send to the other nodes, and those that it has yet to ask
/// for.
#[derive(Debug, Default, PartialEq, Eq)]
struct DueCounts {
    /// Channels of which this node wants to hear from now on.
    wants: HashSet<Place>,
    /// Channels whose numbers have changed here.
    changed: HashSet<Place>,
    /// Channels whose numbers have changed elsewhere.
    to_ask: HashSet<Place>,
    /// Whether everything that this node wants is told again, and asked for: nodes have come or gone, or
    /// messages may have been missed.
    is_all_due: bool,
}

/// Both messages.
#[derive(Debug, Serialize, Deserialize)]
struct CountedPlaces {
    node: u16,
    places: Vec<Place>,
}

impl DueCounts {
    fn add(&mut self, other: Self) {
        self.wants.extend(other.wants);
        self.changed.extend(other.changed);
        self.to_ask.extend(other.to_ask);
        self.is_all_due |= other.is_all_due;
    }
}

impl SharedCounts {
    /// Whether other nodes want to hear of any channel.
    fn is_any_wanted(&self) -> bool {
        self.is_any_wanted.load(Relaxed)
    }

    /// Has everything told again, and asked for.
    pub(super) fn tell_all(&self) {
        self.note(|due| due.is_all_due = true);
    }

    fn note(&self, note: impl FnOnce(&mut DueCounts)) {
        note(&mut self.state().due);
        self.is_due.notify_one();
    }

    fn note_changed(&self, place: &Place) {
        let mut state = self.state();
        if state.wanted.contains_key(place) && state.due.changed.insert(place.clone()) {
            drop(state);
            self.is_due.notify_one();
        }
    }

    fn note_wanted(&self, places: Vec<Place>, now: Instant) {
        let mut state = self.state();
        state.wanted.extend(places.into_iter().map(|place| (place, now + WANTED_FOR)));
        self.is_any_wanted.store(!state.wanted.is_empty(), Relaxed);
    }

    fn forget_unwanted(&self, now: Instant) {
        let mut state = self.state();
        state.wanted.retain(|_, until| *until > now);
        self.is_any_wanted.store(!state.wanted.is_empty(), Relaxed);
    }

    fn take_due(&self) -> DueCounts {
        mem::take(&mut self.state().due)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears what other nodes want, and what has changed there.
pub(super) fn register(peers: &Peers, topics: &Topics) {
    for name in [WANTED, CHANGED] {
        let topics = topics.downgrade();
        let hear = move |message: Option<Bytes>| {
            if let Some(topics) = Topics::upgrade(&topics) {
                topics.hear_counts(name, message.as_deref());
            }
        };
        peers.on_message(name, Arc::new(hear));
    }
}

impl Topics {
    fn shared_counts(&self) -> Option<&SharedCounts> {
        self.cluster().map(|cluster| &cluster.counts)
    }

    /// Whether the number of subscribers of any channel is told at other nodes.
    pub(in crate::broker) fn is_any_count_wanted(&self) -> bool {
        self.shared_counts().is_some_and(SharedCounts::is_any_wanted)
    }

    /// The number of subscribers of a channel has changed here.
    pub(in crate::broker) fn note_count_changed(&self, place: &Place) {
        if let Some(counts) = self.shared_counts().filter(|counts| counts.is_any_wanted()) {
            counts.note_changed(place);
        }
    }

    /// A channel has its first subscriber here that is told the number.
    pub(in crate::broker) fn want_count(&self, place: &Place) {
        if let Some(counts) = self.shared_counts() {
            counts.note(|due| due.wants.extend([place.clone()]));
        }
    }

    fn hear_counts(&self, name: &str, message: Option<&[u8]>) {
        let Some(counts) = self.shared_counts() else { return };
        // Messages may have been missed.
        let Some(message) = message else { return counts.tell_all() };
        let Ok(CountedPlaces { node, places }) = serde_json::from_slice(message) else { return };
        match name {
            _ if NodeId(node) == self.node() => {}
            WANTED => counts.note_wanted(places, Instant::now()),
            _ => counts.note(|due| due.to_ask.extend(places)),
        }
    }

    /// Tells the other nodes what they want to hear of the numbers of subscribers, and asks for those that
    /// have changed elsewhere, for as long as this runs. It ends at once where there is one node only.
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

    /// The channels that have subscribers here that are told the number.
    fn counted_here(&self) -> Vec<Place> {
        let streams = self.directory().all();
        let of_stream = |stream: Arc<Stream>| {
            let key = stream.key().clone();
            let channels = stream.counts().all().into_iter();
            channels.map(move |channel| Place { key: key.clone(), channel: Some(channel) })
        };
        streams.into_iter().flat_map(of_stream).collect()
    }

    /// Tells the other nodes, and has what is to be asked for asked for. Repeats which channels this node
    /// wants to hear of. Answers what could not be told.
    async fn tell_counts(&self, due: DueCounts, repeated: HashSet<Place>) -> DueCounts {
        let DueCounts { wants, changed, mut to_ask, .. } = due;
        let mut untold = DueCounts::default();
        let (_, not_repeated) = self.tell_places(WANTED, repeated).await;
        // The other nodes sent no changes before they knew that this node wants them, so it asks.
        let (told, not_told) = self.tell_places(WANTED, wants).await;
        to_ask.extend(told);
        untold.wants = not_told;
        untold.wants.extend(not_repeated);
        (_, untold.changed) = self.tell_places(CHANGED, changed).await;
        if !to_ask.is_empty() {
            actix::spawn(self.clone().ask_counts(to_ask.into_iter().collect()));
        }
        untold
    }

    /// Tells the other nodes of channels. Answers those that were told, and those that were not.
    async fn tell_places(
        &self,
        name: &str,
        places: HashSet<Place>,
    ) -> (HashSet<Place>, HashSet<Place>) {
        let (mut told, mut untold) = (HashSet::new(), HashSet::new());
        let all: Vec<_> = places.into_iter().collect();
        for places in all.chunks(PLACES_PER_MESSAGE) {
            let message = CountedPlaces { node: self.node().0, places: places.to_vec() };
            let written = serde_json::to_vec(&message).unwrap_or_default();
            match self.tell_nodes(name, &written).await {
                Ok(()) => told.extend(message.places),
                Err(Unanswered) => untold.extend(message.places),
            }
        }
        (told, untold)
    }

    async fn ask_counts(self, places: Vec<Place>) {
        for places in places.chunks(ASKED_AT_ONCE) {
            join_all(places.iter().map(|place| self.ask_count(place))).await;
        }
    }

    /// Asks for the number of subscribers of a channel, and tells it to those that want to know if it is
    /// not what they were told last.
    async fn ask_count(&self, place: &Place) {
        let stream = self.directory().find(&place.key);
        let (Some(stream), Some(channel)) = (stream, &place.channel) else { return };
        if let Some(wait) = stream.counts().changed(channel, Cause::Elsewhere, now_ms()) {
            self.tell_count_after(wait, place.clone(), stream).await;
        }
    }
}
