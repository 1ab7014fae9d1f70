//! A node of another version, as far as the other nodes can tell: it appends to the log in Redis, reads from it,
//! and holds a lease. It encodes records and leases with code of its own. Only the head of a message is written
//! by the script of the servers under test, which it changes where the version differs.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::redis_server::RedisServer;

/// The prefix of the keys and the number of partitions: the servers must be started with these.
pub const SETTINGS: [(&str, &str); 2] =
    [("HERALD__ENGINE__PREFIX", "versions"), ("HERALD__ENGINE__PARTITIONS", "1")];

/// The number of the node.
pub const NODE: u16 = 777;

/// The scope `public` of the seeded app, as records name it.
const SCOPE: &[u8] = b"\x01\0\0\0public";

/// The lines that all scripts of the engine begin with; one of them writes the head of a message.
const OPEN: &str = include_str!("../../../src/engine/redis/scripts/open.lua");

/// The differences of a version from the one under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The version before it, which only lacks the newest additions.
    Previous,
    /// The next one: it adds to every part something that the version under test does not know.
    Next,
    /// A version whose records cannot be read.
    OtherRecords,
    /// A version whose messages cannot be read.
    OtherMessages,
}

/// The node.
pub struct OtherNode {
    client: redis::Client,
    version: Version,
    batches: u64,
}

impl OtherNode {
    pub fn new(redis: &RedisServer, version: Version) -> Self {
        let client = redis::Client::open(redis.url()).expect("a client");
        Self { client, version, batches: 0 }
    }

    fn ask<T: redis::FromRedisValue>(&self, words: &[&[u8]]) -> T {
        let mut connection = self.client.get_connection().expect("a connection");
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query(&mut connection).expect("an answer")
    }

    /// Publishes `{"n": n}` to the channel `room` of the scope `public`.
    pub fn publish(&mut self, n: u64) {
        let record = self.record(&publication(self.version, n));
        let batch = self.batch(&record);
        self.append(&batch);
    }

    /// Appends a record of a kind that the version under test does not know.
    pub fn append_other_kind(&mut self) {
        let record = self.record(b"\x01\xc8\0\0whatever");
        let batch = self.batch(&record);
        self.append(&batch);
    }

    fn record(&self, body: &[u8]) -> Vec<u8> {
        let more: &[u8] = if self.version == Version::Next { b"more" } else { b"" };
        let scope = [&(SCOPE.len() as u16).to_be_bytes(), SCOPE].concat();
        let body = [&(body.len() as u32).to_be_bytes(), body].concat();
        let record = [&scope, &body, more].concat();
        [&(record.len() as u32).to_be_bytes(), &record[..]].concat()
    }

    fn batch(&mut self, records: &[u8]) -> Vec<u8> {
        self.batches += 1;
        let more: &[u8] = if self.version == Version::Next { b"more" } else { b"" };
        let id = (0x00AB_CDEF_0000_0000 + self.batches).to_be_bytes();
        let (ms, node) = (now_ms().to_be_bytes(), NODE.to_be_bytes());
        let head = [&[0], &id[..], &ms, &node, more].concat();
        [&[head.len() as u8], &head[..], records].concat()
    }

    fn append(&self, batch: &[u8]) {
        let (first, last) = (r"'\1\28' .. epoch", ".. last .. batch");
        let (other_first, other_last) = match self.version {
            Version::Previous | Version::OtherRecords => (first, last),
            Version::Next => (r"'\1\32' .. epoch", ".. last .. 'more' .. batch"),
            Version::OtherMessages => (r"'\2\28' .. epoch", last),
        };
        assert!(OPEN.contains(first) && OPEN.contains(last), "the script writes the head");
        let open = OPEN.replace(first, other_first).replace(last, other_last);
        let script = format!(
            "{open}\nappend(ARGV[1], 1, tonumber(ARGV[2]), 1000, 1000000, 300000)\nreturn 1"
        );
        let now = now_ms().to_string();
        let words: [&[u8]; 6] =
            [b"EVAL", script.as_bytes(), b"1", b"versions{p0}:state", batch, now.as_bytes()];
        assert_eq!(self.ask::<u64>(&words), 1);
    }

    /// Reads all publications to the scope in the log, as the first version does, and answers their numbers.
    pub fn read(&self) -> Vec<u64> {
        type Entry = (String, Vec<Vec<u8>>);
        let entries: Vec<Entry> = self.ask(&[b"XRANGE", b"versions{p0}:log", b"-", b"+"]);
        let messages = entries.iter().map(|(_, fields)| &fields[1][..]);
        messages.flat_map(numbers_in).collect()
    }

    /// Takes a lease for `ms` milliseconds, with this description of the node.
    pub fn hold_lease(&self, ms: u64, description: &Value) {
        let (now, end) = (now_ms(), now_ms() + ms);
        let times = [end, now, now].map(u64::to_be_bytes).concat();
        let description = description.to_string();
        let lease =
            [&1_u64.to_be_bytes(), &times[..], b"0", &[7; 16], description.as_bytes()].concat();
        let node = NODE.to_string();
        self.ask::<u64>(&[b"HSET", b"versions{c}:nodes", node.as_bytes(), &lease]);
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    since.as_millis() as u64
}

/// A publication as the first version wrote it: version, kind, fields, and what is retained of it.
fn publication(version: Version, n: u64) -> Vec<u8> {
    let fields: &[u8] = if version == Version::Next { b"\xc8\x04\0more" } else { b"" };
    let number = if version == Version::OtherRecords { 2 } else { 1 };
    let length = (fields.len() as u16).to_le_bytes();
    let payload = json!({ "n": n }).to_string();
    let retained = [&now_ms().to_le_bytes()[..], b"\0\x04\x03roommsg", payload.as_bytes()].concat();
    [&[number, 1], &length[..], fields, &retained].concat()
}

/// Splits off a part, which is preceded by its length in `length_bytes` bytes.
fn part<'a>(bytes: &mut &'a [u8], length_bytes: usize) -> &'a [u8] {
    let (length, rest) = bytes.split_at(length_bytes);
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (part, rest) = rest.split_at(length);
    *bytes = rest;
    part
}

/// The numbers of the publications to the scope in a message.
fn numbers_in(message: &[u8]) -> Vec<u64> {
    let (version, mut rest) = message.split_first().expect("a version");
    assert_eq!(*version, 1, "the first version of messages");
    part(&mut rest, 1);
    let head = part(&mut rest, 1);
    let (mut numbers, is_of_records) = (Vec::new(), head[0] == 0);
    while is_of_records && !rest.is_empty() {
        let mut record = part(&mut rest, 4);
        let scope = part(&mut record, 2);
        let body = part(&mut record, 4);
        assert_eq!(body[0], 1, "the first version of records");
        if scope == SCOPE && body[1] == 1 {
            let content = 4 + usize::from(u16::from_le_bytes([body[2], body[3]]));
            let retained = &body[content..];
            let names = usize::from(retained[9]) + usize::from(retained[10]);
            let payload: Value = serde_json::from_slice(&retained[11 + names..]).expect("JSON");
            numbers.push(payload["n"].as_u64().expect("a number"));
        }
    }
    numbers
}
