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
    time::Duration,
};

use super::{
    position::{Epoch, StreamPosition},
    publication::{Destination, Publication},
    retained::Retained,
    topic_name::ChannelName,
};

/// The memory that a publication takes in the history beside what [`Retained`] holds, in bytes: its
/// nodes in the map and in its ring, measured with a hundred thousand of them.
const PLACE_BYTES: usize = 64;

/// The memory that a remembered channel takes beside its name, in bytes.
const RING_BYTES: usize = 192;

/// When too many channels are remembered, one of this many is forgotten, so that the search for the
/// quietest ones is paid for by many publications.
const FORGOTTEN_SHARE: usize = 8;

/// How much of a scope's publications is retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Publications of each channel, and of `#general`; zero retains nothing.
    pub publications_max: usize,
    /// How long a publication is retained.
    pub age_max: Duration,
    /// Channels that are remembered.
    pub channels_max: usize,
}

impl Retention {
    /// Retains nothing.
    pub const NONE: Self = Self { publications_max: 0, age_max: Duration::ZERO, channels_max: 0 };

    /// Whether nothing is retained.
    pub fn is_none(&self) -> bool {
        self.publications_max == 0
    }
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
    /// It missed more than may be replayed.
    TooMuch,
}

/// The highest offsets that were evicted from a history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// From channels that are not remembered.
    pub forgotten: u64,
    /// At all.
    pub all: u64,
    /// From `#general`.
    pub general: u64,
}

/// What is to be retained again contradicts what is known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction;

/// The highest offset with which a numbering is taken up again: none gets there by counting.
const OFFSET_MAX: u64 = u64::MAX / 2;

/// Numbers the publications of one scope and retains the newest of them.
#[derive(Debug, Clone)]
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
    /// No ring retains more publications.
    publications_max: usize,
    /// How often channels were forgotten because there were too many.
    times_forgotten: u64,
}

/// The offsets of what one destination retains, oldest first.
#[derive(Debug, Clone, Default)]
struct Ring {
    offsets: VecDeque<u64>,
    /// The highest offset that was evicted.
    evicted: u64,
}

impl Ring {
    fn newest(&self) -> u64 {
        self.offsets.back().map_or(self.evicted, |newest| *newest)
    }

    /// Evicts its oldest offset. A ring that holds much less than it has room for gives the room back:
    /// it is not counted among the bytes.
    fn evict(&mut self, oldest: u64) {
        self.offsets.pop_front();
        self.evicted = oldest;
        if self.offsets.capacity() > 4 * self.offsets.len().max(1) {
            self.offsets.shrink_to(2 * self.offsets.len());
        }
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
            publications_max: 0,
            times_forgotten: 0,
        }
    }

    /// Takes up a numbering where another history left it; what that one retained is to follow, first
    /// by [`remember`](Self::remember) and then by [`retain_again`](Self::retain_again).
    ///
    /// # Errors
    /// [`Contradiction`].
    pub fn resumed(head: StreamPosition, evicted: Evicted) -> Result<Self, Contradiction> {
        let Evicted { forgotten, all, general } = evicted;
        if head.offset > OFFSET_MAX || all > head.offset || forgotten.max(general) > all {
            return Err(Contradiction);
        }
        let general = Ring { evicted: general, ..Ring::default() };
        // The bounds may have been others.
        let publications_max = usize::MAX;
        let new = Self::new(head.epoch);
        Ok(Self { head, forgotten, evicted: all, general, publications_max, ..new })
    }

    /// Remembers a channel from which publications up to the offset `evicted` were evicted. Where
    /// `channels_max` channels are remembered already, it is forgotten.
    ///
    /// # Errors
    /// [`Contradiction`].
    pub fn remember(
        &mut self,
        channel: &ChannelName,
        evicted: u64,
        channels_max: usize,
    ) -> Result<(), Contradiction> {
        if evicted > self.evicted || self.channels.contains_key(channel) {
            return Err(Contradiction);
        }
        if self.channels.len() >= channels_max {
            self.forgotten = self.forgotten.max(evicted);
            return Ok(());
        }
        self.insert(channel, evicted);
        Ok(())
    }

    /// Retains a publication again. The oldest ones are evicted if more than `bytes_max` are retained.
    /// One of a channel that is not remembered is evicted itself.
    ///
    /// # Errors
    /// [`Contradiction`] if it is not after all that are retained, or was evicted before.
    pub fn retain_again(
        &mut self,
        offset: u64,
        retained: Retained,
        bytes_max: usize,
    ) -> Result<(), Contradiction> {
        let newest = self.retained.last_key_value().map_or(0, |(newest, _)| *newest);
        if offset <= newest || offset > self.head.offset {
            return Err(Contradiction);
        }
        match self.ring_mut(retained.channel()) {
            Some(ring) if offset <= ring.evicted => return Err(Contradiction),
            Some(ring) => {
                ring.offsets.push_back(offset);
                self.bytes += PLACE_BYTES + retained.size_bytes();
                self.retained.insert(offset, retained);
            }
            None => {
                self.forgotten = self.forgotten.max(offset);
                self.evicted = self.evicted.max(offset);
            }
        }
        while self.bytes > bytes_max && !self.is_empty() {
            self.evict_oldest();
        }
        Ok(())
    }

    /// What is not retained any more.
    pub fn evicted(&self) -> Evicted {
        let Self { forgotten, evicted, general, .. } = self;
        Evicted { forgotten: *forgotten, all: *evicted, general: general.evicted }
    }

    /// The channels that are remembered, and the highest offset that was evicted from each. Those with
    /// the newest publications are the first.
    pub fn channels(&self) -> Vec<(&ChannelName, u64)> {
        let mut channels: Vec<_> = self.channels.iter().collect();
        channels.sort_unstable_by_key(|(_, ring)| std::cmp::Reverse(ring.newest()));
        channels.into_iter().map(|(channel, ring)| (channel, ring.evicted)).collect()
    }

    /// All that is retained, by offset.
    pub fn publications(&self) -> impl ExactSizeIterator<Item = (u64, &Retained)> {
        self.retained.iter().map(|(offset, retained)| (*offset, retained))
    }

    /// The position of the newest publication.
    pub fn head(&self) -> StreamPosition {
        self.head
    }

    /// Whether nothing is retained.
    pub fn is_empty(&self) -> bool {
        self.retained.is_empty()
    }

    /// How many publications are retained.
    pub fn len(&self) -> usize {
        self.retained.len()
    }

    /// Bytes of memory that everything retained and remembered takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How often channels were forgotten because there were too many.
    pub fn times_forgotten(&self) -> u64 {
        self.times_forgotten
    }

    /// The time of the oldest publication that is retained, in Unix milliseconds.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.retained.first_key_value().map(|(_, oldest)| oldest.at_ms())
    }

    /// Gives a publication, which was accepted at `now_ms`, the next place in the order. Retains it,
    /// and evicts what is beyond the bounds.
    pub fn append(
        &mut self,
        publication: &Publication,
        now_ms: u64,
        retention: &Retention,
    ) -> StreamPosition {
        self.head.offset += 1;
        if retention.is_none() {
            self.clear();
        } else {
            self.retain(publication, now_ms, retention);
            self.bound(&publication.destination, now_ms, retention);
        }
        self.head
    }

    /// Evicts what is too old.
    pub fn expire(&mut self, now_ms: u64, retention: &Retention) {
        let age_max_ms = u64::try_from(retention.age_max.as_millis()).unwrap_or(u64::MAX);
        let is_old = |at_ms: u64| now_ms.saturating_sub(at_ms) >= age_max_ms;
        while self.oldest_ms().is_some_and(is_old) {
            self.evict_oldest();
        }
    }

    /// Keeps to these bounds as of now, which may have been others before.
    pub fn keep_to(&mut self, now_ms: u64, retention: &Retention) {
        if retention.is_none() {
            return self.clear();
        }
        self.expire(now_ms, retention);
        if self.publications_max <= retention.publications_max {
            return;
        }
        self.publications_max = retention.publications_max;
        let rings = self.channels.values().chain([&self.general]);
        let excess = rings.flat_map(|ring| {
            let beyond = ring.offsets.len().saturating_sub(retention.publications_max);
            ring.offsets.range(..beyond).copied()
        });
        for offset in excess.collect::<Vec<_>>() {
            self.evict(offset);
        }
    }

    /// Evicts the oldest publication. If there is none, all channels are forgotten.
    pub fn shrink(&mut self) {
        match self.is_empty() {
            true => self.clear(),
            false => self.evict_oldest(),
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

    /// The publications that a subscriber of one channel, or of the whole scope, would have heard after
    /// `since`, up to and including the offset `up_to`, in order.
    ///
    /// # Errors
    /// [`Gap`] if that may not be all, or if there are more than `publications_max`.
    pub fn after(
        &self,
        channel: Option<&ChannelName>,
        since: StreamPosition,
        up_to: u64,
        publications_max: usize,
    ) -> Result<Vec<(u64, Retained)>, Gap> {
        if since.epoch != self.head.epoch {
            return Err(Gap::Epoch);
        }
        let since = since.offset;
        if since > self.head.offset {
            return Err(Gap::Unknown);
        }
        if !self.is_whole_after(channel, since) {
            return Err(Gap::Expired);
        }
        let offsets = self.offsets(channel, since, up_to);
        let missed = self.at(offsets.take(publications_max.saturating_add(1)));
        if missed.len() > publications_max { Err(Gap::TooMuch) } else { Ok(missed) }
    }

    /// Whether everything is retained that a subscriber of one channel, or of the whole scope, would
    /// have heard after an offset.
    pub fn is_whole_after(&self, channel: Option<&ChannelName>, offset: u64) -> bool {
        let evicted = match channel {
            None => self.evicted,
            Some(channel) => {
                let ring = self.channels.get(channel);
                ring.map_or(self.forgotten, |ring| ring.evicted).max(self.general.evicted)
            }
        };
        evicted <= offset
    }

    /// The first publications that are retained after an offset and that a subscriber of one channel
    /// would have heard, in order; at most `publications_max`.
    pub fn first(
        &self,
        channel: &ChannelName,
        since: u64,
        publications_max: usize,
    ) -> Vec<(u64, Retained)> {
        let offsets = self.offsets(Some(channel), since, self.head.offset);
        self.at(offsets.take(publications_max))
    }

    /// The newest publications that a subscriber of one channel, or of the whole scope, would have
    /// heard up to and including the offset `up_to`, in order; at most `publications_max`.
    pub fn newest(
        &self,
        channel: Option<&ChannelName>,
        up_to: u64,
        publications_max: usize,
    ) -> Vec<(u64, Retained)> {
        let offsets = self.offsets(channel, 0, up_to);
        let mut newest = self.at(offsets.rev().take(publications_max));
        newest.reverse();
        newest
    }

    /// The offsets of what is retained for a subscriber of one channel, or of the whole scope, after
    /// one offset, up to and including another.
    fn offsets(
        &self,
        channel: Option<&ChannelName>,
        since: u64,
        up_to: u64,
    ) -> Box<dyn DoubleEndedIterator<Item = u64> + '_> {
        let Some(channel) = channel else {
            // An empty range, where nothing lies between.
            let range = since.saturating_add(1)..up_to.saturating_add(1).max(since + 1);
            return Box::new(self.retained.range(range).map(|(offset, _)| *offset));
        };
        let own = self.channels.get(channel);
        let own = own.into_iter().flat_map(|ring| ring.between(since, up_to));
        let mut offsets: Vec<_> = own.chain(self.general.between(since, up_to)).collect();
        offsets.sort_unstable();
        Box::new(offsets.into_iter())
    }

    fn at(&self, offsets: impl Iterator<Item = u64>) -> Vec<(u64, Retained)> {
        let retained = |offset| Some((offset, self.retained.get(&offset)?.clone()));
        offsets.filter_map(retained).collect()
    }

    fn retain(&mut self, publication: &Publication, at_ms: u64, retention: &Retention) {
        let offset = self.head.offset;
        self.publications_max = self.publications_max.max(retention.publications_max);
        let retained = Retained::new(publication, at_ms);
        self.bytes += PLACE_BYTES + retained.size_bytes();
        if let Destination::Channel(channel) = &publication.destination
            && !self.channels.contains_key(channel)
        {
            self.insert(channel, self.forgotten);
        }
        if let Some(ring) = self.ring_mut(retained.channel()) {
            ring.offsets.push_back(offset);
        }
        self.retained.insert(offset, retained);
    }

    /// Remembers a channel that retains nothing.
    fn insert(&mut self, channel: &ChannelName, evicted: u64) {
        self.bytes += RING_BYTES + channel.as_str().len();
        self.channels.insert(channel.detached(), Ring { evicted, ..Ring::default() });
    }

    /// Keeps to the bounds after a publication to `destination`.
    fn bound(&mut self, destination: &Destination, now_ms: u64, retention: &Retention) {
        let channel = match destination {
            Destination::General => None,
            Destination::Channel(channel) => Some(channel.as_str()),
        };
        while let Some(ring) = self.ring_mut(channel)
            && ring.offsets.len() > retention.publications_max
            && let Some(oldest) = ring.offsets.front().copied()
        {
            self.evict(oldest);
        }
        self.expire(now_ms, retention);
        if self.channels.len() > retention.channels_max {
            self.times_forgotten += 1;
            self.forget_quietest(retention.channels_max);
        }
    }

    fn ring_mut(&mut self, channel: Option<&str>) -> Option<&mut Ring> {
        match channel {
            None => Some(&mut self.general),
            Some(channel) => self.channels.get_mut(channel),
        }
    }

    fn evict_oldest(&mut self) {
        if let Some((oldest, _)) = self.retained.first_key_value() {
            self.evict(*oldest);
        }
    }

    /// Evicts the oldest publication of a ring.
    fn evict(&mut self, offset: u64) {
        let Some(retained) = self.retained.remove(&offset) else { return };
        self.bytes -= PLACE_BYTES + retained.size_bytes();
        if let Some(ring) = self.ring_mut(retained.channel()) {
            ring.evict(offset);
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
        let bytes = &mut self.bytes;
        let quiet = self.channels.extract_if(|_, ring| ring.newest() <= threshold);
        let quiet = quiet.inspect(|(channel, _)| *bytes -= RING_BYTES + channel.as_str().len());
        let offsets: Vec<_> = quiet.flat_map(|(_, ring)| ring.offsets).collect();
        for offset in offsets {
            self.evict(offset);
        }
        self.forgotten = self.forgotten.max(threshold);
    }
}

#[cfg(test)]
mod tests;
