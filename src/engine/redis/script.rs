//! The spelling of requests as calls of Redis's scripts, and the reading of their answers.

use std::sync::LazyLock;

use bytes::{Buf, Bytes};
use redis::{Cmd, Pipeline, Value};
use sha1::{Digest as _, Sha1};

use super::keys::RedisKeys;
use crate::engine::{
    Incarnation, LogEpoch, LogPosition, MemberChange, NodeId, NodeInfo, OnceKey, PlaceMember,
    Snapshot, Terms,
    request::{
        Commit, LeaseEntry, Life, LogIndex, LogPlace, LogRequest, Outcome, Range, ReadRange,
        Recipient, Renew, Renewal, Reply, Segment,
    },
    wire::BatchId,
};

/// The bytes of messages after which one reading of the log ends.
const READ_BYTES: usize = 1 << 20;

/// The version of the format of a log's state, which the scripts of all nodes read and write, and of the names of the
/// channels. A node with another version does not start while any node lives.
pub(super) const FORMAT: u32 = 2;

/// The bytes of a log's state before the identity.
const STATE_BYTES: usize = 48;

/// A script, and the digest under which Redis caches it.
#[derive(Debug)]
pub(super) struct Script {
    text: String,
    digest: String,
}

impl Script {
    fn new(parts: [&str; 2]) -> Self {
        let text = parts.concat();
        let digest = Sha1::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { text, digest }
    }
}

macro_rules! scripts {
    ($($name:ident = $first:literal + $file:literal;)*) => {
        $(static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new([include_str!($first), include_str!($file)])
        });)*
    };
}

scripts! {
    COMMIT = "scripts/open.lua" + "scripts/commit.lua";
    READ = "scripts/open.lua" + "scripts/read.lua";
    MEMBERS = "scripts/open.lua" + "scripts/members.lua";
    BREAK = "scripts/open.lua" + "scripts/break.lua";
    REGISTER = "scripts/open.lua" + "scripts/register.lua";
    BURY = "scripts/open.lua" + "scripts/bury.lua";
    RENEW = "scripts/lease.lua" + "scripts/renew.lua";
    CONDEMN = "scripts/lease.lua" + "scripts/condemn.lua";
    FORGET = "scripts/lease.lua" + "scripts/forget.lua";
}

/// The bounds of the records that a log retains.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct LogRetention {
    pub(in crate::engine) records_max: u64,
    pub(in crate::engine) bytes_max: u64,
    pub(in crate::engine) age_ms: u64,
}

/// The commands that send a request.
pub(super) enum RequestSpelling {
    /// A script with its key and its arguments.
    Script(&'static Script, Arguments),
    /// Commands that are sent together in a pipeline.
    Commands(Pipeline),
}

/// The key and the arguments of a script.
#[derive(Debug, Default)]
pub(super) struct Arguments(Vec<Bytes>);

impl Arguments {
    fn with(mut self, argument: impl Into<Bytes>) -> Self {
        self.0.push(argument.into());
        self
    }

    fn number(self, number: u64) -> Self {
        self.with(number.to_string())
    }
}

impl Script {
    /// The command that calls the script by its digest. It fails if Redis has not cached the script.
    pub(super) fn evalsha(&self, arguments: &Arguments) -> Cmd {
        Self::command("EVALSHA", &self.digest, arguments)
    }

    /// The command that calls the script by its text.
    pub(super) fn eval(&self, arguments: &Arguments) -> Cmd {
        Self::command("EVAL", &self.text, arguments)
    }

    fn command(name: &str, script: &str, Arguments(arguments): &Arguments) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(1);
        for argument in arguments {
            command.arg(&argument[..]);
        }
        command
    }
}

/// A node and its incarnation in the spelling of the scripts.
fn life_bytes((node, incarnation): Life) -> Bytes {
    [&node.0.to_be_bytes()[..], &incarnation.0.to_be_bytes()].concat().into()
}

fn epoch(LogEpoch(epoch): LogEpoch) -> Bytes {
    Bytes::copy_from_slice(&epoch.to_be_bytes())
}

/// The arguments of a script about the lease of this incarnation.
fn of_lease(nodes: Arguments, (node, incarnation): Life) -> Arguments {
    nodes.number(node.0.into()).with(incarnation.0.to_be_bytes().to_vec())
}

/// Encodes a request.
pub(super) fn spell(
    keys: &RedisKeys,
    log: LogIndex,
    request: LogRequest,
    kept: LogRetention,
) -> RequestSpelling {
    let state = Arguments::default().with(keys.state(log));
    let nodes = Arguments::default().with(keys.nodes());
    let (script, arguments): (&'static Script, _) = match request {
        LogRequest::Commit(commit) => {
            (&COMMIT, commit_arguments(state, commit, kept, keys.feed(log)))
        }
        LogRequest::Read(ReadRange { identity, fresh, from }) => {
            let from = from.map_or_else(String::new, |from| from.to_string());
            let arguments = state.with(identity.0).with(epoch(fresh)).with(from);
            (&READ, arguments.number(READ_BYTES as u64))
        }
        LogRequest::Members { place } => (&MEMBERS, state.with(place)),
        LogRequest::Break { seen, fresh } => (&BREAK, state.with(epoch(seen)).with(epoch(fresh))),
        LogRequest::Register(life, line) => {
            (&REGISTER, state.with(life_bytes(life)).number(line.0))
        }
        LogRequest::Bury { identity, life, leaver, fresh } => {
            let arguments = state.with(identity.0).with(epoch(fresh));
            let arguments = arguments.with(life_bytes(life)).with(leaver);
            (&BURY, appending(arguments, kept, keys.feed(log)))
        }
        LogRequest::Renew(Renew { life, instance, ttl, is_first, info }) => {
            let arguments = of_lease(nodes, life).with(instance.0.to_vec());
            let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            (&RENEW, arguments.number(ttl).number(is_first.into()).with(info))
        }
        LogRequest::Condemn { life, is_forced } => {
            (&CONDEMN, of_lease(nodes, life).number(is_forced.into()))
        }
        LogRequest::Forget(life) => (&FORGET, of_lease(nodes, life)),
        LogRequest::Probe { logs, node, nonce } => {
            return RequestSpelling::Commands(probe(keys, &logs, node, nonce));
        }
        LogRequest::Post { to, letter } => {
            let channel = match to {
                Recipient::All => keys.everyone(),
                Recipient::Node(node) => keys.node(node),
            };
            let mut commands = redis::pipe();
            commands.cmd("PUBLISH").arg(channel).arg(&letter[..]);
            return RequestSpelling::Commands(commands);
        }
    };
    RequestSpelling::Script(script, arguments)
}

fn commit_arguments(
    state: Arguments,
    commit: Commit,
    kept: LogRetention,
    channel: String,
) -> Arguments {
    let Commit { identity, fresh, life, line, head, segments } = commit;
    let arguments = state.with(identity.0).with(epoch(fresh)).with(life_bytes(life));
    let arguments = appending(arguments.number(line.0).with(head), kept, channel);
    segments.into_iter().fold(arguments, |arguments, Segment { count, records, terms }| {
        let segment = |kind: &'static str| arguments.with(kind).number(count.into()).with(records);
        match terms {
            Terms::None => segment("p"),
            Terms::Once(OnceKey { id, note, ttl }) => {
                let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX / 2).max(1);
                segment("k").with(id).with(note).number(ttl)
            }
            Terms::Member(MemberChange::Put { place, member, value, members_max }) => {
                segment("m").with(place).with(member).with(value).number(members_max.into())
            }
            Terms::Member(MemberChange::Remove { place, member }) => {
                segment("d").with(place).with(member)
            }
        }
    })
}

/// The arguments by which a script appends to a log.
fn appending(arguments: Arguments, kept: LogRetention, channel: String) -> Arguments {
    let LogRetention { records_max, bytes_max, age_ms } = kept;
    arguments.with(channel).number(records_max).number(bytes_max).number(age_ms)
}

/// The commands that read the positions of the logs and publish a number afterwards. When the number
/// arrives, all messages up to these positions have been pushed.
fn probe(keys: &RedisKeys, logs: &[LogIndex], node: NodeId, nonce: u64) -> Pipeline {
    let mut commands = redis::pipe();
    for log in logs {
        commands.cmd("GET").arg(keys.state(*log));
    }
    if let Some(first) = logs.first() {
        commands.cmd("PUBLISH").arg(keys.probe_of(*first, node)).arg(nonce.to_string());
    }
    commands
}

/// Reads an answer; `None` if it has another form than the request's answers have.
pub(super) type ReplyReader = fn(Value) -> Option<Reply>;

/// The reader of the answers to a request.
pub(super) fn reader_of(request: &LogRequest) -> ReplyReader {
    match request {
        LogRequest::Commit(_) => committed,
        LogRequest::Read(_) => range,
        LogRequest::Members { .. } => members,
        LogRequest::Renew(_) => renewed,
        LogRequest::Condemn { .. } => |value| Some(Reply::Condemned(number(value)? != 0)),
        LogRequest::Probe { .. } => probed,
        _ => |_| Some(Reply::Done),
    }
}

fn committed(value: Value) -> Option<Reply> {
    let [epoch, outcomes] = array(value)?;
    let outcomes = list(outcomes)?.into_iter().map(outcome).collect::<Option<_>>()?;
    Some(Reply::Committed { epoch: epoch_of(epoch)?, outcomes })
}

fn range(value: Value) -> Option<Reply> {
    let [state, before, has_more, messages] = array(value)?;
    let place = place(bytes(state)?)?;
    let messages = list(messages)?.into_iter().map(bytes).collect::<Option<_>>()?;
    let before = Some(bytes(before)?).filter(|head| !head.is_empty());
    Some(Reply::Read(Range { place, before, has_more: number(has_more)? != 0, messages }))
}

fn members(value: Value) -> Option<Reply> {
    let [epoch, next, fields] = array(value)?;
    let fields = list(fields)?.into_iter().map(bytes).collect::<Option<Vec<_>>>()?;
    let members = fields.chunks_exact(2).map(|pair| member(&pair[0], &pair[1]));
    let members = members.collect::<Option<_>>()?;
    let at = LogPosition { epoch: epoch_of(epoch)?, offset: number(next)? };
    Some(Reply::Members(Snapshot { at, members }))
}

fn renewed(value: Value) -> Option<Reply> {
    let [outcome, now_ms, leases] = array(value)?;
    let outcome = match number(outcome)? {
        0 => Renewal::Held,
        1 => Renewal::Lapsed,
        _ => Renewal::Taken,
    };
    let leases = list(leases)?.into_iter().map(bytes).collect::<Option<Vec<_>>>()?;
    let leases = leases.chunks_exact(2).map(|pair| lease(&pair[0], pair[1].clone()));
    let leases = leases.collect::<Option<_>>()?;
    Some(Reply::Renewed { outcome, now_ms: number(now_ms)?, leases })
}

fn probed(value: Value) -> Option<Reply> {
    let mut states = list(value)?;
    // The last answer is that to the publication of the number.
    states.pop();
    let places = states.into_iter().map(|state| match state {
        Value::Nil => Some(None),
        state => Some(Some(place(bytes(state)?)?)),
    });
    Some(Reply::Probed(places.collect::<Option<_>>()?))
}

fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(items) => Some(items),
        Value::Map(pairs) => {
            Some(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect())
        }
        _ => None,
    }
}

fn array<const N: usize>(value: Value) -> Option<[Value; N]> {
    list(value)?.try_into().ok()
}

fn number(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => number.try_into().ok(),
        _ => None,
    }
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

fn epoch_of(value: Value) -> Option<LogEpoch> {
    Some(LogEpoch(bytes(value)?.try_get_u64().ok()?))
}

fn outcome(value: Value) -> Option<Outcome> {
    Some(match value {
        Value::Int(-1) => Outcome::Full,
        Value::Int(-2) => Outcome::Lapsed,
        Value::Int(offset) => Outcome::At(offset.try_into().ok()?),
        value => {
            let mut used = bytes(value)?;
            let epoch = LogEpoch(used.try_get_u64().ok()?);
            let at = LogPosition { epoch, offset: used.try_get_u64().ok()? };
            Outcome::Repeated { at, note: used }
        }
    })
}

fn member(field: &Bytes, value: &Bytes) -> Option<PlaceMember> {
    let mut member = field.clone();
    let node = NodeId(member.try_get_u16().ok()?);
    let incarnation = Incarnation(member.try_get_u64().ok()?);
    Some(PlaceMember { node, incarnation, member, value: value.clone() })
}

fn lease(node: &[u8], mut value: Bytes) -> Option<LeaseEntry> {
    let node = NodeId(std::str::from_utf8(node).ok()?.parse().ok()?);
    let incarnation = Incarnation(value.try_get_u64().ok()?);
    let until_ms = value.try_get_u64().ok()?;
    let since_ms = value.try_get_u64().ok()?;
    let seen_ms = value.try_get_u64().ok()?;
    let is_condemned = value.try_get_u8().ok()? == b'1';
    let info = (value.len() >= 16).then(|| value.split_off(16))?;
    let info = NodeInfo { node, incarnation, info, since_ms, seen_ms };
    Some(LeaseEntry { info, until_ms, is_condemned })
}

fn place(mut state: Bytes) -> Option<LogPlace> {
    if state.len() < STATE_BYTES {
        return None;
    }
    let epoch = LogEpoch(state.get_u64());
    let (base, next) = (state.get_u64(), state.get_u64());
    state.advance(8 + 8);
    Some(LogPlace { epoch, base, next, last: BatchId(state.get_u64()) })
}
