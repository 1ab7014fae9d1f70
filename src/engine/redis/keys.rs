//! The names of keys and channels.
//!
//! All keys and channels of one log have the same hash tag, so that they are on one server of a Redis
//! Cluster: `{p0}`, `{p1}` and so on for the partitions, `{c}` for the log of the messages to all nodes. The
//! prefix `engine.prefix` precedes the tag.
//!
//! Channels belong to no database of Redis, so the names of those of a database other than 0 contain its number.

use crate::engine::{NodeId, machine::Push, request::LogIndex};
use bytes::Bytes;

/// The names of all keys and channels under one prefix.
#[derive(Debug, Clone)]
pub(super) struct RedisKeys {
    prefix: String,
    partitions: u16,
    database: u16,
}

/// The number of slots of a Redis Cluster.
const SLOTS: u16 = 16_384;

impl RedisKeys {
    pub(super) fn new(prefix: &str, partitions: u16, database: u16) -> Self {
        Self { prefix: prefix.to_owned(), partitions, database }
    }

    pub(super) fn logs(&self) -> impl Iterator<Item = LogIndex> + use<> {
        (0..=self.partitions).map(LogIndex)
    }

    pub(super) fn control(&self) -> LogIndex {
        LogIndex(self.partitions)
    }

    fn tag(&self, log: LogIndex) -> String {
        if log == self.control() { "c".to_owned() } else { format!("p{}", log.0) }
    }

    fn base(&self, log: LogIndex) -> String {
        format!("{}{{{}}}:", self.prefix, self.tag(log))
    }

    /// The key of a log's state.
    pub(super) fn state(&self, log: LogIndex) -> String {
        self.base(log) + "state"
    }

    /// The key of the leases.
    pub(super) fn nodes(&self) -> String {
        self.base(self.control()) + "nodes"
    }

    /// The key of the settings on which all nodes must agree.
    pub(super) fn meta(&self) -> String {
        self.base(self.control()) + "meta"
    }

    /// The part of the names of channels that only the channels of one database have.
    fn of_database(&self) -> String {
        if self.database == 0 { String::new() } else { format!("{}/", self.database) }
    }

    fn channel(&self, log: LogIndex, name: &str) -> String {
        self.base(log) + &self.of_database() + name
    }

    /// The channel of a log's messages.
    pub(super) fn feed(&self, log: LogIndex) -> String {
        self.channel(log, "feed")
    }

    /// The channel of questions to all nodes.
    pub(super) fn everyone(&self) -> String {
        self.channel(self.control(), "all")
    }

    /// The channel of questions and answers to one node.
    pub(super) fn node(&self, node: NodeId) -> String {
        self.channel(self.control(), &format!("node:{}", node.0))
    }
}

/// The names of the channels to which one node subscribes.
#[derive(Debug, Clone)]
pub(super) struct Channels {
    keys: RedisKeys,
    node: NodeId,
}

impl RedisKeys {
    /// The channel of a node's probes over the line of a log.
    pub(super) fn probe_of(&self, log: LogIndex, node: NodeId) -> String {
        self.channel(log, &format!("probe:{}", node.0))
    }

    /// The slot of a log in a Redis Cluster.
    pub(super) fn slot(&self, log: LogIndex) -> u16 {
        crc16(self.tag(log).as_bytes()) % SLOTS
    }
}

impl Channels {
    pub(super) fn new(keys: RedisKeys, node: NodeId) -> Self {
        Self { keys, node }
    }

    /// The channels of a line with these logs.
    pub(super) fn of(&self, logs: &[LogIndex]) -> Vec<String> {
        let mut channels: Vec<_> = logs.iter().map(|log| self.keys.feed(*log)).collect();
        channels.extend(logs.first().map(|log| self.keys.probe_of(*log, self.node)));
        if logs.contains(&self.keys.control()) {
            channels.push(self.keys.everyone());
            channels.push(self.keys.node(self.node));
        }
        channels
    }

    /// Reads a push; `None` if its channel is not one of this node's.
    pub(super) fn read(&self, channel: &str, payload: Bytes) -> Option<Push> {
        let rest = channel.strip_prefix(self.keys.prefix.as_str())?.strip_prefix('{')?;
        let (tag, name) = rest.split_once("}:")?;
        let name = name.strip_prefix(&self.keys.of_database())?;
        let log = match tag.strip_prefix('p') {
            Some(number) => LogIndex(number.parse().ok()?),
            None => self.keys.control(),
        };
        match name.split_once(':') {
            None if name == "feed" => Some(Push::Log(log, payload)),
            None if name == "all" => Some(Push::Letter(payload)),
            Some(("node", _)) => Some(Push::Letter(payload)),
            Some(("probe", _)) => {
                Some(Push::Probe(std::str::from_utf8(&payload).ok()?.parse().ok()?))
            }
            _ => None,
        }
    }
}

/// The checksum by which a Redis Cluster distributes keys: CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum: u16, byte| {
        (0..8).fold(sum ^ (u16::from(*byte) << 8), |sum, _| {
            if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
    }

    #[test]
    fn every_channel_of_a_node_is_read_as_what_it_is() {
        let of_database = |database| Channels::new(RedisKeys::new("a:b", 2, database), NodeId(7));
        let channels = of_database(0);
        let found = channels.of(&[LogIndex(0), LogIndex(2)]);
        let expected =
            ["a:b{p0}:feed", "a:b{c}:feed", "a:b{p0}:probe:7", "a:b{c}:all", "a:b{c}:node:7"];
        assert_eq!(found, expected);
        let payload = Bytes::from_static(b"12");
        let read = found.iter().map(|channel| channels.read(channel, payload.clone()));
        let expected = [
            Push::Log(LogIndex(0), payload.clone()),
            Push::Log(LogIndex(2), payload.clone()),
            Push::Probe(12),
            Push::Letter(payload.clone()),
            Push::Letter(payload.clone()),
        ];
        assert_eq!(read.collect::<Vec<_>>(), expected.map(Some));
        assert_eq!(channels.read("other{p0}:feed", payload.clone()), None);

        let numbered = of_database(3);
        let found = numbered.of(&[LogIndex(2)]);
        let expected = ["a:b{c}:3/feed", "a:b{c}:3/probe:7", "a:b{c}:3/all", "a:b{c}:3/node:7"];
        assert_eq!(found, expected);
        for channel in found {
            assert!(numbered.read(&channel, payload.clone()).is_some(), "{channel}");
            assert_eq!(channels.read(&channel, payload.clone()), None, "{channel}");
        }
    }
}
