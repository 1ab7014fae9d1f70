//! The history of a scope: numbers its publications and retains the newest of them.
//!
//! Pure: no actor and no clock. Each channel has a ring of retained publications, and `#general` has
//! one of its own, because it belongs to channels that nobody has named yet. What a subscriber of a
//! place missed is the merge of the rings that it would have heard, in the order of offsets.
//!
//! Whether that merge is complete is decided by what was evicted, never by counting: it is complete
//! if the newest publication evicted from these rings is not after the subscriber's position. A
//! channel that has nothing left remembers this until more than [`Retention::channels_max`] channels
//! do; the channel that has been quiet the longest is then forgotten. Of a forgotten channel it is
//! only known that nothing behind the newest forgotten publication is missing.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    position::{Epoch, StreamPosition},
    publication::{Destination, Payload, Publication},
    topic_name::ChannelName,
};

/// The memory that an entry takes beside its names and its payload, roughly, in bytes.
const ENTRY_BYTES: usize = 256;

/// When too many channels are remembered, one of this many is forgotten, so that the search for the
/// quietest ones is paid for by many publications.
const FORGOTTEN_SHARE: usize = 8;

/// A publication with its place in the order of its scope.
///
/// The history and what is on its way to subscribers share it.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub position: StreamPosition,
    /// The publication.
    pub publication: Publication,
}

impl Entry {
    fn size_bytes(&self) -> usize {
        let Publication { destination, event, payload, .. } = &self.publication;
        ENTRY_BYTES + destination.as_str().len() + event.as_str().len() + payload.size_bytes()
    }
}

/// How much of a scope's publications is retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Publications of each channel, and of `#general`; zero retains nothing.
    pub publications_max: usize,
    /// Bytes of all that is retained.
    pub bytes_max: usize,
    /// How long a publication is retained.
    pub age_max: Duration,
    /// Channels that are remembered.
    pub channels_max: usize,
}

impl Retention {
    /// Retains nothing.
    pub const NONE: Self =
        Self { publications_max: 0, bytes_max: 0, age_max: Duration::ZERO, channels_max: 0 };
}

/// Why a subscriber cannot be given all that it missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Its position belongs to another numbering.
    Epoch,
    /// Its position lies behind the newest publication.
    Unknown,
    /// Something that it would have heard may no longer be retained.
    Expired,
}

/// Numbers the publications of one scope and retains the newest of them.
#[derive(Debug)]
pub struct History {
    head: StreamPosition,
    /// All that is retained, by offset.
    retained: BTreeMap<u64, Retained>,
    channels: HashMap<ChannelName, Ring>,
    general: Ring,
    /// The highest offset evicted from a channel that is not remembered.
    forgotten: u64,
    /// The highest offset evicted at all.
    evicted: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Retained {
    entry: Arc<Entry>,
    at: Instant,
}

/// The offsets of what one destination retains, oldest first.
#[derive(Debug, Default)]
struct Ring {
    offsets: VecDeque<u64>,
    /// The highest offset that was evicted.
    evicted: u64,
}

impl Ring {
    fn newest(&self) -> u64 {
        self.offsets.back().map_or(self.evicted, |newest| *newest)
    }

    /// What it retains after one offset, up to and including another.
    fn between(&self, since: u64, up_to: u64) -> impl Iterator<Item = u64> {
        let first = self.offsets.partition_point(|offset| *offset <= since);
        self.offsets.range(first..).copied().take_while(move |offset| *offset <= up_to)
    }
}

impl History {
    /// Begins a numbering; nothing is published yet.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            head: StreamPosition { epoch, offset: 0 },
            retained: BTreeMap::new(),
            channels: HashMap::new(),
            general: Ring::default(),
            forgotten: 0,
            evicted: 0,
            bytes: 0,
        }
    }

    /// The position of the newest publication.
    pub fn head(&self) -> StreamPosition {
        self.head
    }

    /// Whether nothing is retained.
    pub fn is_empty(&self) -> bool {
        self.retained.is_empty()
    }

    /// Gives a publication, which was accepted at `now`, the next place in the order. Retains it, and
    /// evicts what is beyond the bounds.
    pub fn append(
        &mut self,
        mut publication: Publication,
        now: Instant,
        retention: &Retention,
    ) -> Arc<Entry> {
        self.head.offset += 1;
        if retention.publications_max == 0 {
            self.clear();
            return Arc::new(Entry { position: self.head, publication });
        }
        if let Payload::Bytes(bytes) = &mut publication.payload {
            // A slice of what was read would keep all of it: far more than is counted here.
            *bytes = Bytes::copy_from_slice(bytes);
        }
        let entry = Arc::new(Entry { position: self.head, publication });
        self.retain(entry.clone(), now);
        self.bound(entry.publication.destination.clone(), now, retention);
        entry
    }

    /// Evicts what is too old.
    pub fn expire(&mut self, now: Instant, retention: &Retention) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= retention.age_max;
        while self.retained.first_key_value().is_some_and(|(_, first)| is_old(first.at)) {
            self.evict_oldest();
        }
    }

    /// Discards all that is retained, and forgets all channels.
    pub fn clear(&mut self) {
        let offset = self.head.offset;
        (self.forgotten, self.evicted, self.general.evicted) = (offset, offset, offset);
        if !self.retained.is_empty() || !self.channels.is_empty() {
            self.retained.clear();
            self.channels.clear();
            self.general.offsets.clear();
            self.bytes = 0;
        }
    }

    /// The entries that a subscriber of one channel, or of the whole scope, would have heard after `since`, up to
    /// and including the offset `up_to`, in order.
    ///
    /// # Errors
    /// [`Gap`] if that may not be all.
    pub fn after(
        &self,
        channel: Option<&ChannelName>,
        since: StreamPosition,
        up_to: u64,
    ) -> Result<Vec<Arc<Entry>>, Gap> {
        if since.epoch != self.head.epoch {
            return Err(Gap::Epoch);
        }
        let since = since.offset;
        if since > self.head.offset {
            return Err(Gap::Unknown);
        }
        let Some(channel) = channel else {
            if self.evicted > since {
                return Err(Gap::Expired);
            }
            let all = self.retained.range(since.saturating_add(1)..);
            let wanted = all.take_while(|(offset, _)| **offset <= up_to);
            return Ok(wanted.map(|(_, retained)| retained.entry.clone()).collect());
        };
        let ring = self.channels.get(channel);
        let evicted = ring.map_or(self.forgotten, |ring| ring.evicted);
        if evicted.max(self.general.evicted) > since {
            return Err(Gap::Expired);
        }
        let own = ring.into_iter().flat_map(|ring| ring.between(since, up_to));
        let mut offsets: Vec<_> = own.chain(self.general.between(since, up_to)).collect();
        offsets.sort_unstable();
        let entry = |offset| self.retained.get(&offset).map(|retained| retained.entry.clone());
        Ok(offsets.into_iter().filter_map(entry).collect())
    }

    fn retain(&mut self, entry: Arc<Entry>, at: Instant) {
        let offset = entry.position.offset;
        self.bytes += entry.size_bytes();
        let ring = match &entry.publication.destination {
            Destination::General => &mut self.general,
            Destination::Channel(channel) => {
                let new = || Ring { evicted: self.forgotten, ..Ring::default() };
                self.channels.entry(channel.clone()).or_insert_with(new)
            }
        };
        ring.offsets.push_back(offset);
        self.retained.insert(offset, Retained { entry, at });
    }

    /// Keeps to the bounds after a publication to `destination`.
    fn bound(&mut self, destination: Destination, now: Instant, retention: &Retention) {
        while let Some(ring) = self.ring(&destination)
            && ring.offsets.len() > retention.publications_max
            && let Some(oldest) = ring.offsets.front().copied()
        {
            self.evict(oldest);
        }
        while self.bytes > retention.bytes_max && !self.retained.is_empty() {
            self.evict_oldest();
        }
        self.expire(now, retention);
        if self.channels.len() > retention.channels_max {
            self.forget_quietest(retention.channels_max);
        }
    }

    fn ring(&self, destination: &Destination) -> Option<&Ring> {
        match destination {
            Destination::General => Some(&self.general),
            Destination::Channel(channel) => self.channels.get(channel),
        }
    }

    fn evict_oldest(&mut self) {
        if let Some((oldest, _)) = self.retained.first_key_value() {
            self.evict(*oldest);
        }
    }

    /// Evicts the oldest publication of a ring.
    fn evict(&mut self, offset: u64) {
        let Some(Retained { entry, .. }) = self.retained.remove(&offset) else { return };
        self.bytes -= entry.size_bytes();
        let ring = match &entry.publication.destination {
            Destination::General => Some(&mut self.general),
            Destination::Channel(channel) => self.channels.get_mut(channel),
        };
        if let Some(ring) = ring {
            ring.offsets.pop_front();
            ring.evicted = offset;
        }
        self.evicted = self.evicted.max(offset);
    }

    /// Forgets the channels that have been quiet the longest.
    fn forget_quietest(&mut self, channels_max: usize) {
        let kept = channels_max - channels_max / FORGOTTEN_SHARE;
        let mut newest: Vec<_> = self.channels.values().map(Ring::newest).collect();
        let to_forget = newest.len().saturating_sub(kept);
        let Some(last) = to_forget.checked_sub(1) else { return };
        let (_, threshold, _) = newest.select_nth_unstable(last);
        let threshold = *threshold;
        let quiet = self.channels.extract_if(|_, ring| ring.newest() <= threshold);
        let offsets: Vec<_> = quiet.flat_map(|(_, ring)| ring.offsets).collect();
        for offset in offsets {
            self.evict(offset);
        }
        self.forgotten = self.forgotten.max(threshold);
    }
}

#[cfg(test)]
mod tests;
