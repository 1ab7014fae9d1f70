//! The channels that a history remembers.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
};

use siphasher::sip128::SipHasher13;

use super::{super::topic_name::ChannelName, log::List};

/// The memory that a remembered channel takes in addition to its name, in bytes.
pub(super) const CHANNEL_BYTES: usize = 192;

/// Channels with their lists of publications.
///
/// With thousands of channels, each look-up misses the processor's caches, and that delay is most of the
/// cost of retaining a publication. The table is therefore searched by digests, which are stored next to
/// the lists. Names are stored elsewhere and not compared: the keys of the digests are random and secret,
/// and two of a billion channels have the same digest of 128 bits with a probability below 10⁻²⁰.
#[derive(Clone)]
pub(super) struct RememberedChannels {
    /// Makes digests with random keys.
    digester: SipHasher13,
    by_digest: HashMap<NameDigest, (List, ChannelName), BuildHasherDefault<Prefix>>,
    bytes: usize,
}

/// A digest of a channel's name, of 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NameDigest([u64; 2]);

impl std::hash::Hash for NameDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

/// The hasher of digests: it takes the first half, which is a hash already.
#[derive(Default)]
struct Prefix(u64);

impl Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a digest writes one integer");
    }
}

impl fmt::Debug for RememberedChannels {
    /// Shows the channels, and not the keys of their digests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Default for RememberedChannels {
    fn default() -> Self {
        // Each state has random keys of its own.
        let [first, second] = [(); 2].map(|()| RandomState::new().hash_one(()));
        let digester = SipHasher13::new_with_keys(first, second);
        Self { digester, by_digest: HashMap::default(), bytes: 0 }
    }
}

impl RememberedChannels {
    fn digest(&self, channel: &str) -> NameDigest {
        let digest = self.digester.hash(channel.as_bytes());
        NameDigest([digest.h1, digest.h2])
    }

    /// The number of channels.
    pub(super) fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// The bytes of memory of the channels, without their publications.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether a channel is remembered.
    pub(super) fn has(&self, channel: &str) -> bool {
        self.get(channel).is_some()
    }

    /// The list of a channel, if it is remembered.
    pub(super) fn get(&self, channel: &str) -> Option<&List> {
        let (list, name) = self.by_digest.get(&self.digest(channel))?;
        debug_assert_eq!(name.as_str(), channel, "digests differ");
        Some(list)
    }

    /// The list of a channel for a change, if the channel is remembered.
    pub(super) fn get_mut(&mut self, channel: &str) -> Option<&mut List> {
        let digest = self.digest(channel);
        Some(&mut self.by_digest.get_mut(&digest)?.0)
    }

    /// The list of a channel. A channel that is not remembered is added with an empty list, from which
    /// publications up to the offset `evicted` count as evicted.
    pub(super) fn of(&mut self, channel: &ChannelName, evicted: u64) -> &mut List {
        let digest = self.digest(channel.as_str());
        let (list, _) = self.by_digest.entry(digest).or_insert_with(|| {
            self.bytes += CHANNEL_BYTES + channel.as_str().len();
            (List::behind(evicted), channel.detached())
        });
        list
    }

    /// All channels with their lists, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ChannelName, &List)> {
        self.by_digest.values().map(|(list, channel)| (channel, list))
    }

    /// All lists, in no order.
    pub(super) fn lists_mut(&mut self) -> impl Iterator<Item = &mut List> {
        self.by_digest.values_mut().map(|(list, _)| list)
    }

    /// Removes the channels that have had no publication after an offset. Their lists are returned.
    pub(super) fn remove_quiet_since(&mut self, offset: u64) -> Vec<List> {
        let bytes = &mut self.bytes;
        let quiet = self.by_digest.extract_if(|_, (list, _)| list.newest() <= offset);
        let lists = quiet.map(|(_, (list, channel))| {
            *bytes -= CHANNEL_BYTES + channel.as_str().len();
            list
        });
        lists.collect()
    }

    /// Removes all channels.
    pub(super) fn clear(&mut self) {
        (self.by_digest, self.bytes) = Default::default();
    }
}
