//! The history of a scope: numbers its publications and retains the newest of them.
//!
//! Pure: no actor and no clock. All retained publications are in one sequence. Those of each channel form a list
//! within it, and those of `#general` form another, because they also belong to channels that do not
//! exist yet. The publications that a subscriber missed are the merge, by offset, of the lists that it
//! would have been sent.
//!
//! The offsets of evicted publications decide whether that merge is complete, never a count: it is complete
//! if the newest publication that was evicted from these lists is not after the subscriber's position. A
//! channel is therefore *remembered* with the highest offset that was evicted from it, even if none of its
//! publications is retained. If more than [`Retention::channels_max`] channels are remembered, those
//! without publications for the longest time are forgotten, and one offset stands for all forgotten
//! channels: the highest that was evicted from any of them.

use std::time::Duration;

use channels::RememberedChannels;
use log::{List, RetainedLog};

use super::{
    position::{Epoch, StreamPosition},
    publication::{Destination, Publication},
    retained::Retained,
    topic_name::ChannelName,
};

/// When too many channels are remembered, this fraction of them (1/8) is forgotten, so that the cost of the
/// search for the quietest ones is spread over many publications.
const FORGOTTEN_SHARE: usize = 8;

/// The bounds of a scope's retained publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The most publications of each channel, and of `#general`; zero retains nothing.
    pub publications_max: usize,
    /// The time for which a publication is retained.
    pub age_max: Duration,
    /// The most channels that are remembered.
    pub channels_max: usize,
}

impl Retention {
    /// The bounds that retain nothing.
    pub const NONE: Self = Self { publications_max: 0, age_max: Duration::ZERO, channels_max: 0 };

    /// Returns whether these bounds retain nothing.
    pub fn is_none(&self) -> bool {
        self.publications_max == 0
    }
}

/// The reason why a subscriber cannot be sent all publications that it missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// The subscriber's position belongs to another numbering.
    Epoch,
    /// The subscriber's position is after the newest publication.
    Unknown,
    /// A publication that it would have been sent may no longer be retained.
    Expired,
    /// The subscriber missed more publications than may be replayed.
    TooMuch,
}

/// The highest offsets that were evicted from a history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// The highest offset from channels that are not remembered.
    pub forgotten: u64,
    /// The highest offset of all.
    pub all: u64,
    /// The highest offset from `#general`.
    pub general: u64,
}

/// The error of restored data that contradicts the present state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction;

/// The highest offset with which a numbering can be restored. No numbering reaches it by counting.
const OFFSET_MAX: u64 = u64::MAX / 2;

/// Numbers the publications of one scope and retains the newest of them.
#[derive(Debug, Clone)]
pub struct History {
    head: StreamPosition,
    /// The retained publications, by offset.
    retained: RetainedLog,
    channels: RememberedChannels,
    general: List,
    /// The highest offset evicted from a channel that is not remembered.
    forgotten: u64,
    /// The most publications that any list may have at present.
    publications_max: usize,
    /// The number of times that channels were forgotten because there were too many.
    times_forgotten: u64,
}

impl History {
    /// Begins a numbering without publications.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            head: StreamPosition { epoch, offset: 0 },
            retained: RetainedLog::default(),
            channels: RememberedChannels::default(),
            general: List::default(),
            forgotten: 0,
            publications_max: 0,
            times_forgotten: 0,
        }
    }

    /// Begins to follow a log that numbers the publications, after `head`. Publications up to and including
    /// the offset `unknown` may be missing here. Between that offset and `head` the log has none of this
    /// scope.
    pub fn of_log(head: StreamPosition, unknown: u64) -> Self {
        let (retained, general) = (RetainedLog::behind(unknown), List::behind(unknown));
        let new = Self::new(head.epoch);
        Self { head, retained, general, forgotten: unknown, ..new }
    }

    /// Continues a saved numbering. The caller must then restore the channels by
    /// [`remember`](Self::remember), and the publications by [`retain_again`](Self::retain_again).
    ///
    /// # Errors
    /// [`Contradiction`] if an evicted offset is after `head` or above `evicted.all`, or if the head is too
    /// high.
    pub fn resumed(head: StreamPosition, evicted: Evicted) -> Result<Self, Contradiction> {
        let Evicted { forgotten, all, general } = evicted;
        if head.offset > OFFSET_MAX || all > head.offset || forgotten.max(general) > all {
            return Err(Contradiction);
        }
        let (retained, general) = (RetainedLog::behind(all), List::behind(general));
        // The saved publications may exceed the present bounds.
        let publications_max = usize::MAX;
        let new = Self::new(head.epoch);
        Ok(Self { head, retained, general, forgotten, publications_max, ..new })
    }

    /// Restores a channel from which publications up to the offset `evicted` were evicted. If `channels_max`
    /// channels are remembered already, the channel counts as forgotten.
    ///
    /// # Errors
    /// [`Contradiction`] if `evicted` is above the highest evicted offset of all, or if the channel is
    /// remembered already.
    pub fn remember(
        &mut self,
        channel: &ChannelName,
        evicted: u64,
        channels_max: usize,
    ) -> Result<(), Contradiction> {
        if evicted > self.retained.evicted() || self.channels.has(channel.as_str()) {
            return Err(Contradiction);
        }
        if self.channels.len() >= channels_max {
            self.forgotten = self.forgotten.max(evicted);
            return Ok(());
        }
        self.channels.of(channel, evicted);
        Ok(())
    }

    /// Restores a publication. If more than `bytes_max` bytes are retained then, the oldest publications are
    /// evicted. A publication of a channel that is not remembered counts as evicted.
    ///
    /// # Errors
    /// [`Contradiction`] if its offset is not above those of all retained publications, is after the head, or
    /// was evicted.
    pub fn retain_again(
        &mut self,
        offset: u64,
        retained: Retained,
        bytes_max: usize,
    ) -> Result<(), Contradiction> {
        if offset <= self.retained.newest() || offset > self.head.offset {
            return Err(Contradiction);
        }
        let list = match retained.channel() {
            None => Some(&mut self.general),
            Some(channel) => self.channels.get_mut(channel),
        };
        match list {
            Some(list) if offset <= list.evicted() => return Err(Contradiction),
            Some(list) => self.retained.append(offset, retained, list),
            None => {
                self.forgotten = self.forgotten.max(offset);
                self.retained.pass_over(offset);
            }
        }
        while self.bytes() > bytes_max && !self.is_empty() {
            self.evict_oldest();
        }
        Ok(())
    }

    /// The offsets of evicted publications.
    pub fn evicted(&self) -> Evicted {
        let Self { forgotten, retained, general, .. } = self;
        Evicted { forgotten: *forgotten, all: retained.evicted(), general: general.evicted() }
    }

    /// The remembered channels, and the highest offset that was evicted from each. Channels with newer
    /// publications precede others.
    pub fn channels(&self) -> Vec<(&ChannelName, u64)> {
        let mut channels: Vec<_> = self.channels.iter().collect();
        channels.sort_unstable_by_key(|(_, list)| std::cmp::Reverse(list.newest()));
        channels.into_iter().map(|(channel, list)| (channel, list.evicted())).collect()
    }

    /// The retained publications, by offset.
    pub fn publications(&self) -> impl Iterator<Item = (u64, &Retained)> {
        self.retained.iter()
    }

    /// The position of the newest publication.
    pub fn head(&self) -> StreamPosition {
        self.head
    }

    /// Returns whether no publication is retained.
    pub fn is_empty(&self) -> bool {
        self.retained.is_empty()
    }

    /// The number of retained publications.
    pub fn len(&self) -> usize {
        self.retained.len()
    }

    /// The bytes of memory of all retained publications and remembered channels.
    pub fn bytes(&self) -> usize {
        self.retained.bytes() + self.channels.bytes()
    }

    /// The number of times that channels were forgotten because there were too many.
    pub fn times_forgotten(&self) -> u64 {
        self.times_forgotten
    }

    /// The time of the oldest retained publication, in Unix milliseconds.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.retained.first().map(|(_, oldest)| oldest.at_ms())
    }

    /// Gives a publication, which was accepted at `now_ms`, the next offset. Retains it, and evicts
    /// publications beyond the bounds.
    pub fn append(
        &mut self,
        publication: &Publication,
        now_ms: u64,
        retention: &Retention,
    ) -> StreamPosition {
        let offset = self.head.offset + 1;
        self.append_at(offset, publication, now_ms, now_ms, retention)
    }

    /// Takes a publication that a log has numbered, with an offset above that of the head, and that was
    /// accepted at `at_ms`. Retains it, and evicts publications beyond the bounds as of `now_ms`.
    pub fn append_at(
        &mut self,
        offset: u64,
        publication: &Publication,
        at_ms: u64,
        now_ms: u64,
        retention: &Retention,
    ) -> StreamPosition {
        self.head.offset = offset;
        if retention.is_none() {
            self.clear();
        } else {
            self.retain(publication, at_ms, retention);
            self.expire(now_ms, retention);
            if self.channels.len() > retention.channels_max {
                self.times_forgotten += 1;
                self.forget_quietest(retention.channels_max);
            }
        }
        self.head
    }

    /// Evicts the publications that are too old.
    pub fn expire(&mut self, now_ms: u64, retention: &Retention) {
        let age_max_ms = u64::try_from(retention.age_max.as_millis()).unwrap_or(u64::MAX);
        let is_old = |at_ms: u64| now_ms.saturating_sub(at_ms) >= age_max_ms;
        while self.oldest_ms().is_some_and(is_old) {
            self.evict_oldest();
        }
    }

    /// Applies new bounds, and evicts the publications beyond them.
    pub fn keep_to(&mut self, now_ms: u64, retention: &Retention) {
        if retention.is_none() {
            return self.clear();
        }
        self.expire(now_ms, retention);
        if self.publications_max <= retention.publications_max {
            return;
        }
        self.publications_max = retention.publications_max;
        for list in self.channels.lists_mut().chain([&mut self.general]) {
            self.retained.shorten(list, retention.publications_max);
        }
    }

    /// Evicts the oldest publication. If there is none, all channels are forgotten.
    pub fn shrink(&mut self) {
        match self.is_empty() {
            true => self.clear(),
            false => self.evict_oldest(),
        }
    }

    /// Evicts all publications, and forgets all channels.
    pub fn clear(&mut self) {
        let offset = self.head.offset;
        self.forgotten = offset;
        self.general = List::behind(offset);
        self.channels.clear();
        self.retained.clear(offset);
    }

    /// The publications that a subscriber of one channel, or of the whole scope, would have been sent after
    /// `since`, up to and including the offset `up_to`, in order.
    ///
    /// # Errors
    /// [`Gap`] if some may be missing, or if there are more than `publications_max`.
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
        // One more than may be replayed shows that there are too many.
        let offsets =
            self.newest_offsets(channel, (since, up_to), publications_max.saturating_add(1));
        if offsets.len() > publications_max {
            return Err(Gap::TooMuch);
        }
        Ok(self.at(offsets.into_iter().rev()))
    }

    /// Returns whether all publications are retained that a subscriber of one channel, or of the whole scope,
    /// would have been sent after an offset.
    pub fn is_whole_after(&self, channel: Option<&ChannelName>, offset: u64) -> bool {
        let evicted = match channel {
            None => self.retained.evicted(),
            Some(channel) => {
                let list = self.channels.get(channel.as_str());
                list.map_or(self.forgotten, List::evicted).max(self.general.evicted())
            }
        };
        evicted <= offset
    }

    /// The first `publications_max` retained publications after an offset that a subscriber of one channel
    /// would have been sent, in order.
    pub fn first(
        &self,
        channel: &ChannelName,
        since: u64,
        publications_max: usize,
    ) -> Vec<(u64, Retained)> {
        let offsets = self.newest_offsets(Some(channel), (since, self.head.offset), usize::MAX);
        self.at(offsets.into_iter().rev().take(publications_max))
    }

    /// The newest `publications_max` retained publications up to and including the offset `up_to` that a
    /// subscriber of one channel, or of the whole scope, would have been sent, in order.
    pub fn newest(
        &self,
        channel: Option<&ChannelName>,
        up_to: u64,
        publications_max: usize,
    ) -> Vec<(u64, Retained)> {
        let offsets = self.newest_offsets(channel, (0, up_to), publications_max);
        self.at(offsets.into_iter().rev())
    }

    /// The offsets of the newest `publications_max` retained publications for a subscriber of one channel, or of the
    /// whole scope, after one offset, up to and including another. They are in descending order. At most
    /// `publications_max` publications of each list are visited, because the caller holds the lock of the scope.
    fn newest_offsets(
        &self,
        channel: Option<&ChannelName>,
        (since, up_to): (u64, u64),
        publications_max: usize,
    ) -> Vec<u64> {
        let Some(channel) = channel else {
            return self.retained.between(since, up_to).rev().take(publications_max).collect();
        };
        let own = self.channels.get(channel.as_str());
        let lists = own.into_iter().chain([&self.general]);
        let newest = |list| self.retained.back_from(list, since, up_to).take(publications_max);
        let mut offsets: Vec<_> = lists.flat_map(newest).collect();
        offsets.sort_unstable_by(|one, other| other.cmp(one));
        offsets.truncate(publications_max);
        offsets
    }

    fn at(&self, offsets: impl Iterator<Item = u64>) -> Vec<(u64, Retained)> {
        let retained = |offset| Some((offset, self.retained.get(offset)?.clone()));
        offsets.filter_map(retained).collect()
    }

    /// Retains the publication at the head, and evicts the oldest ones of its list beyond the bound.
    fn retain(&mut self, publication: &Publication, at_ms: u64, retention: &Retention) {
        let (offset, max) = (self.head.offset, retention.publications_max);
        self.publications_max = self.publications_max.max(max);
        let list = match &publication.destination {
            Destination::General => &mut self.general,
            Destination::Channel(channel) => self.channels.of(channel, self.forgotten),
        };
        self.retained.append(offset, Retained::new(publication, at_ms), list);
        self.retained.shorten(list, max);
    }

    fn evict_oldest(&mut self) {
        let Some((_, oldest)) = self.retained.first() else { return };
        let list = match oldest.channel() {
            None => Some(&mut self.general),
            Some(channel) => self.channels.get_mut(channel),
        };
        if let Some(list) = list {
            self.retained.shorten(list, list.len() - 1);
        }
    }

    /// Forgets the channels that have been quiet the longest.
    fn forget_quietest(&mut self, channels_max: usize) {
        let kept = channels_max - channels_max / FORGOTTEN_SHARE;
        let mut newest: Vec<_> = self.channels.iter().map(|(_, list)| list.newest()).collect();
        let to_forget = newest.len().saturating_sub(kept);
        let Some(last) = to_forget.checked_sub(1) else { return };
        let (_, threshold, _) = newest.select_nth_unstable(last);
        let threshold = *threshold;
        for mut quiet in self.channels.remove_quiet_since(threshold) {
            self.retained.shorten(&mut quiet, 0);
        }
        self.forgotten = self.forgotten.max(threshold);
    }
}

mod channels;
mod log;

#[cfg(test)]
mod tests;
