//! The channels that a history remembers.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
};

use super::{super::topic_name::ChannelName, log::List};

/// The memory that a remembered channel takes beside its name, in bytes.
pub(super) const CHANNEL_BYTES: usize = 192;

/// Channels with their lists of publications.
///
/// Among thousands of channels, each look-up reads memory that no cache holds, and waiting for that
/// memory is most of the cost of retaining a publication. So the table is searched by digests, which lie
/// beside the lists. Names lie elsewhere, and are not compared: the keys of the digests are random and
/// secret, and two of a billion channels share a digest of 128 bits with a probability below 10⁻²⁰.
#[derive(Debug, Clone, Default)]
pub(super) struct RememberedChannels {
    keys: [RandomState; 2],
    by_digest: HashMap<NameDigest, (List, ChannelName), BuildHasherDefault<Prefix>>,
    bytes: usize,
}

/// 128 bits that stand for the name of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NameDigest([u64; 2]);

impl std::hash::Hash for NameDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

/// Hashes a digest by its first half, which is a hash already.
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

impl RememberedChannels {
    fn digest(&self, channel: &str) -> NameDigest {
        NameDigest([0, 1].map(|nth: usize| self.keys[nth].hash_one(channel)))
    }

    /// The number of channels.
    pub(super) fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// Bytes of memory that the channels take, without their publications.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a channel is remembered.
    pub(super) fn has(&self, channel: &str) -> bool {
        self.get(channel).is_some()
    }

    /// The list of a channel, if it is remembered.
    pub(super) fn get(&self, channel: &str) -> Option<&List> {
        let (list, name) = self.by_digest.get(&self.digest(channel))?;
        debug_assert_eq!(name.as_str(), channel, "digests differ");
        Some(list)
    }

    /// The same, to change it.
    pub(super) fn get_mut(&mut self, channel: &str) -> Option<&mut List> {
        let digest = self.digest(channel);
        Some(&mut self.by_digest.get_mut(&digest)?.0)
    }

    /// The list of a channel, which is remembered from now on. Where it was not, its list is empty behind
    /// the offset `evicted`.
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
        *self = Self::default();
    }
}
