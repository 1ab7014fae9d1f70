//! The protocol of a node: a state machine without I/O.
//!
//! What happens goes in as function calls with the time: a connection is made or broken, Redis answers or
//! pushes, time passes, another thread wants something. What is to be done comes out as [`Output`]s; the
//! follower is called at once. The driver connects the machine with a real Redis, and the simulation with
//! one that delays, drops, repeats and forgets.
//!
//! - `feed` is the point up to which a log was read, and how gaps are found and filled.
//! - `commits` is what waits to be appended, and the batch under way.
//! - `lease` says that this node lives, and finds out which others do not.
//! - `questions` wait for the answers of other nodes.
//!
//! A *line* is the connection to one Redis server, for commands and for pushes. A cluster has several, and
//! each log belongs to one of them.

mod calls;
mod commits;
mod feed;
mod lease;
mod questions;
mod replies;
mod rng;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use log::{info, warn};
use tokio::sync::oneshot;

use super::{
    EngineState, Flow, Follower, Incarnation, LogPosition, NodeId, Partition, Snapshot,
    Unavailable,
    request::{CallId, Identity, Instance, LogIndex, LogPlace, LogRequest, Recipient},
    shared::EngineShared,
    wire::{BatchId, Content, LogMessage},
};
use crate::metrics::Metrics;
pub(super) use commits::AppendedSender;
use commits::Commits;
use feed::{LogFeed, Need, Step};
use lease::{Lease, Life};
pub(super) use questions::AnswersSender;
use questions::Questions;
use rng::Rng;

/// The bytes of letters, and the readings of members, that may wait for Redis's answer. Further ones fail at
/// once. Everything else that is asked of Redis is one question at a time for each log, so these bound what
/// the connection holds while Redis stands still.
const LETTERS_BYTES_MAX: usize = 32 << 20;
const MEMBERS_CALLS_MAX: usize = 4_096;

/// Refusals by Redis are logged at most this often.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// The settings of a machine.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) partitions: u16,
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) instance: Instance,
    /// The incarnation has no lease yet.
    pub(super) is_first: bool,
    pub(super) probe_interval: Duration,
    pub(super) node_timeout: Duration,
    /// A moment, and what the clock showed then, in Unix milliseconds.
    pub(super) clock: (Instant, u64),
    pub(super) seed: u64,
}

/// Names a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LineId(pub(super) u64);

/// A message that Redis pushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Push {
    /// A message of a log.
    Log(LogIndex, Bytes),
    /// A letter of a node.
    Letter(Bytes),
    /// The number of a probe.
    Probe(u64),
}

/// A task for the driver.
pub(super) enum Output {
    /// Ask the Redis of this log.
    Call(CallId, LineId, LogIndex, LogRequest),
    /// Break this line, and make it anew.
    Reconnect(LineId, String),
    /// Run this, and give the machine what comes of it ([`Machine::answered`]).
    Spawn {
        /// The question.
        id: u64,
        /// The node that asked it.
        to: NodeId,
        /// After this moment nobody waits for it.
        deadline: Instant,
        /// The answer.
        answer: BoxFuture<'static, Bytes>,
    },
}

struct Log {
    line: Option<LineId>,
    feed: LogFeed,
    commits: Commits,
    /// An epoch has begun.
    has_begun: bool,
    /// This incarnation may put members.
    is_registered: bool,
    /// The registration under way.
    registering: Option<CallId>,
}

struct Line {
    identity: Identity,
    logs: Vec<LogIndex>,
    probe: Option<Probe>,
    next_probe: Instant,
}

struct Probe {
    nonce: u64,
    sent_at: Instant,
    /// The positions that the logs had reached, as far as this node knew.
    sent: Vec<(LogIndex, Option<LogPosition>)>,
    /// Where the logs were.
    places: Option<Vec<(LogIndex, Option<LogPlace>)>>,
    is_heard: bool,
}

/// A question to Redis that waits for its answer.
enum Call {
    Commit(LogIndex, Instant),
    Read(LogIndex),
    Break(LogIndex),
    Register(LogIndex, Incarnation),
    Renew,
    Condemn(Life),
    Bury(LogIndex, Life),
    Forget,
    Probe,
    /// The question, if it is one, and the bytes of the letter.
    Post(Option<u64>, usize),
    /// The sender is gone when the deadline has passed.
    Members(Option<oneshot::Sender<Result<Snapshot, Unavailable>>>, Instant),
}

struct Leaving {
    done: oneshot::Sender<()>,
    deadline: Instant,
}

/// The protocol of a node.
pub(super) struct Machine {
    config: Config,
    shared: Arc<EngineShared>,
    metrics: Arc<Metrics>,
    follower: Option<Arc<dyn Follower>>,
    rng: Rng,
    lines: BTreeMap<LineId, Line>,
    logs: Vec<Log>,
    lease: Lease,
    questions: Questions,
    calls: HashMap<CallId, (LineId, Call)>,
    calls_made: u64,
    /// The letters and the readings of members among the calls.
    letters_bytes: usize,
    members_calls: usize,
    leaving: Option<Leaving>,
    has_left: bool,
    outputs: Vec<Output>,
    /// The logs to which something is to be appended.
    filled: BTreeSet<LogIndex>,
    /// Why the engine cannot be used.
    fault: String,
    refusal_logged: Option<Instant>,
}

impl Machine {
    /// A node without a line.
    pub(super) fn new(config: Config, shared: Arc<EngineShared>, metrics: Arc<Metrics>) -> Self {
        let log = |index| Log {
            line: None,
            feed: LogFeed::new(index == config.partitions),
            commits: Commits::default(),
            has_begun: false,
            is_registered: false,
            registering: None,
        };
        let life = (config.node, config.incarnation);
        Self {
            lines: BTreeMap::new(),
            logs: (0..=config.partitions).map(log).collect(),
            lease: Lease::new(life, config.instance, config.node_timeout, config.is_first),
            rng: Rng::new(config.seed),
            questions: Questions::default(),
            calls: HashMap::new(),
            calls_made: 0,
            letters_bytes: 0,
            members_calls: 0,
            follower: None,
            leaving: None,
            has_left: false,
            outputs: Vec::new(),
            filled: BTreeSet::new(),
            fault: String::new(),
            refusal_logged: None,
            config,
            shared,
            metrics,
        }
    }

    /// Takes what is to be done. What was given to be appended since the last time goes into one batch.
    pub(super) fn outputs(&mut self, now: Instant) -> Vec<Output> {
        for log in std::mem::take(&mut self.filled) {
            self.commit(log, now);
        }
        std::mem::take(&mut self.outputs)
    }

    /// The log of what is told, where the leases are, too.
    fn control(&self) -> LogIndex {
        LogIndex(self.config.partitions)
    }

    fn log(&mut self, log: LogIndex) -> &mut Log {
        &mut self.logs[usize::from(log.0)]
    }

    fn all_logs(&self) -> impl Iterator<Item = LogIndex> + use<> {
        (0..=self.config.partitions).map(LogIndex)
    }

    fn identity_of(&self, log: LogIndex) -> Option<Identity> {
        let line = self.logs[usize::from(log.0)].line?;
        self.lines.get(&line).map(|line| line.identity.clone())
    }

    fn now_ms(&self, now: Instant) -> u64 {
        let (at, ms) = self.config.clock;
        ms + u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX / 2)
    }

    /// Begins to feed a follower.
    pub(super) fn follow(&mut self, follower: Arc<dyn Follower>, now: Instant) {
        if self.follower.is_some() {
            return;
        }
        follower.nodes_changed(&self.lease.live);
        self.follower = Some(follower);
        for log in self.all_logs() {
            if self.log(log).line.is_some() && self.log(log).feed.must_read() {
                self.read(log);
            }
        }
        self.judge_state(now);
    }

    /// Takes a connection to the server of these logs, whose channels are all subscribed.
    pub(super) fn line_up(
        &mut self,
        line: LineId,
        identity: Identity,
        logs: Vec<LogIndex>,
        now: Instant,
    ) {
        let next_probe = now + self.config.probe_interval;
        for log in &logs {
            self.log(*log).line = Some(line);
            // A partition may have been resumed while there was no line to read it over.
            self.log(*log).feed.disconnected();
        }
        let has_control = logs.contains(&self.control());
        self.lines.insert(line, Line { identity, logs: logs.clone(), probe: None, next_probe });
        if has_control {
            self.lease.connected(now);
            self.renew(now);
        }
        self.remove_own(now);
        for log in logs {
            if self.lease.is_held {
                self.register(log);
            }
            if self.follower.is_some() && self.log(log).feed.must_read() {
                self.read(log);
            }
        }
    }

    /// Takes the news that a line broke.
    pub(super) fn line_down(&mut self, line: LineId, reason: &str, now: Instant) {
        let Some(Line { logs, .. }) = self.lines.remove(&line) else {
            self.fault = reason.to_owned();
            return;
        };
        self.shared.count(|figures| figures.reconnects += 1);
        self.metrics.engine.reconnects.inc();
        self.fault = reason.to_owned();
        for index in &logs {
            let log = self.log(*index);
            (log.line, log.is_registered, log.registering) = (None, false, None);
            log.feed.disconnected();
            log.commits.disconnected();
        }
        if logs.contains(&self.control()) {
            self.lease.disconnected();
        }
        let ended = self.calls.iter().filter(|(_, (of, _))| *of == line).map(|(id, _)| *id);
        for id in ended.collect::<Vec<_>>() {
            match self.take_call(id) {
                Some((_, Call::Members(Some(snapshot), _))) => {
                    let _ = snapshot.send(Err(Unavailable));
                }
                Some((_, Call::Post(Some(question), _))) => self.questions.fail(question),
                Some((_, Call::Bury(_, life) | Call::Condemn(life))) => self.lease.give_up(life),
                _ => {}
            }
        }
        self.judge_state(now);
    }

    /// Takes what a line pushed.
    pub(super) fn pushed(&mut self, line: LineId, push: Push, now: Instant) {
        if !self.lines.contains_key(&line) {
            return;
        }
        match push {
            Push::Log(log, bytes) => self.pushed_log(log, bytes),
            Push::Letter(bytes) => self.received(bytes, now),
            Push::Probe(nonce) => {
                let probe = self.lines.get_mut(&line).and_then(|line| line.probe.as_mut());
                if let Some(probe) = probe.filter(|probe| probe.nonce == nonce) {
                    probe.is_heard = true;
                    self.finish_probe(line, now);
                }
            }
        }
    }

    fn pushed_log(&mut self, log: LogIndex, bytes: Bytes) {
        let length = bytes.len() as u64;
        if self.follower.is_none() || log.0 > self.config.partitions {
            return;
        }
        let Some(message) = LogMessage::decode(bytes) else {
            warn!("a message of another version cannot be read, and its record is looked up");
            if self.log(log).feed.must_read() {
                self.read(log);
            }
            return;
        };
        let mut steps = Vec::new();
        let need = self.log(log).feed.push(message, length, &mut steps);
        self.advance(log, steps, need);
    }

    /// Tells the follower, and does what the feed needs then.
    /// Answers whether the follower has paused.
    fn advance(&mut self, log: LogIndex, steps: Vec<Step>, need: Need) -> bool {
        if self.log(log).feed.take_gap() {
            self.shared.count(|figures| figures.gaps_repaired += 1);
            self.metrics.engine.gaps_repaired.inc();
        }
        let is_paused = self.tell_follower(log, steps);
        match need {
            _ if is_paused => {}
            Need::Nothing => {}
            Need::Read => self.read(log),
            Need::Break(seen) => {
                warn!("part {} of the log has returned to an earlier state: an epoch ends", log.0);
                let fresh = self.rng.epoch();
                self.call(log, Call::Break(log), LogRequest::Break { seen, fresh });
            }
        }
        if self.log(log).feed.has_read() {
            self.log(log).commits.has_read();
        }
        is_paused
    }

    /// Answers whether the follower has paused, so that what follows was not told.
    fn tell_follower(&mut self, index: LogIndex, steps: Vec<Step>) -> bool {
        let Some(follower) = self.follower.clone() else { return false };
        let (partition, is_control) = (Partition(index.0), index == self.control());
        for step in steps {
            match step {
                Step::NewEpoch(at) => {
                    let is_another = std::mem::replace(&mut self.log(index).has_begun, true);
                    self.register(index);
                    match is_control {
                        true if is_another => follower.told_lost(),
                        true => {}
                        false => follower.new_epoch(partition, at.epoch, at.offset),
                    }
                }
                Step::Lost(..) if is_control => follower.told_lost(),
                Step::Lost(epoch, first, next) => follower.lost(partition, epoch, first, next),
                Step::Deliver(message) => {
                    let log = self.log(index);
                    log.commits.seen(message.id, message.at, message.count);
                    let flow = deliver(&*follower, partition, is_control, &message);
                    if flow == Flow::Pause {
                        log.feed.pause_after(&message);
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Does what is due. Its driver calls it several times within every deadline, and at least every 50 ms.
    pub(super) fn tick(&mut self, now: Instant) {
        self.renew(now);
        for line in self.lines.keys().copied().collect::<Vec<_>>() {
            self.probe(line, now);
        }
        for log in &mut self.logs {
            log.commits.expire(now);
        }
        self.questions.expire(now);
        for (_, call) in self.calls.values_mut() {
            if let Call::Members(snapshot, deadline) = call
                && *deadline <= now
                && let Some(snapshot) = snapshot.take()
            {
                let _ = snapshot.send(Err(Unavailable));
            }
        }
        if self.leaving.as_ref().is_some_and(|leaving| leaving.deadline <= now) {
            self.left();
        }
    }

    fn renew(&mut self, now: Instant) {
        if self.has_left {
            return;
        }
        if let Some(renew) = self.lease.due(now) {
            self.call(self.control(), Call::Renew, LogRequest::Renew(renew));
        }
    }

    fn probe(&mut self, id: LineId, now: Instant) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        if let Some(probe) = &line.probe {
            if now - probe.sent_at >= self.config.probe_interval {
                let what = if probe.places.is_none() { "answer" } else { "deliver" };
                let reason = format!("it did not {what} for {:?}", self.config.probe_interval);
                self.outputs.push(Output::Reconnect(id, reason));
                line.next_probe = now + self.config.probe_interval;
                line.probe = None;
            }
            return;
        }
        if now < line.next_probe || self.follower.is_none() {
            return;
        }
        line.next_probe = now + self.config.probe_interval;
        let (logs, nonce) = (line.logs.clone(), self.rng.next());
        let sent = logs.iter().map(|log| (*log, self.logs[usize::from(log.0)].feed.reached()));
        let sent = sent.collect();
        let probe = Probe { nonce, sent_at: now, sent, places: None, is_heard: false };
        line.probe = Some(probe);
        if let Some(first) = logs.first().copied() {
            let node = self.lease.node;
            self.call(first, Call::Probe, LogRequest::Probe { logs, node, nonce });
        }
    }

    /// Compares where the logs are with where this node is, once the probe has come all the way.
    fn finish_probe(&mut self, id: LineId, now: Instant) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        let is_done = |probe: &&mut Probe| probe.is_heard && probe.places.is_some();
        if line.probe.as_mut().filter(is_done).is_none() {
            return;
        }
        let Some(Probe { sent, places: Some(places), .. }) = line.probe.take() else { return };
        let mut lag = 0;
        for ((log, place), (_, sent)) in places.into_iter().zip(sent) {
            let (at, line) = (self.log(log).feed.at(), self.log(log).line);
            let need = match place {
                // The counters were lost while the server went on.
                None => {
                    if self.log(log).feed.must_read() {
                        Need::Read
                    } else {
                        Need::Nothing
                    }
                }
                Some(place) => {
                    let here = at.filter(|at| at.epoch == place.epoch).map_or(0, |at| at.offset);
                    lag += place.next.saturating_sub(here.max(1));
                    self.log(log).feed.probed(sent, place)
                }
            };
            if line == Some(id) {
                self.advance(log, Vec::new(), need);
            }
        }
        self.shared.count(|figures| figures.lag_records = lag);
        self.metrics.engine.lag_records.set(lag as i64);
        self.metrics.engine.probed();
        self.shared.probed(now);
    }

    fn read(&mut self, log: LogIndex) {
        let Some(identity) = self.identity_of(log) else { return };
        let (fresh, from) = (self.rng.epoch(), self.log(log).feed.reads_from());
        let read = super::request::ReadRange { identity, fresh, from };
        self.call(log, Call::Read(log), LogRequest::Read(read));
    }

    /// Permits this node to put members into a log.
    fn register(&mut self, log: LogIndex) {
        let (node, incarnation) = (self.lease.node, self.lease.incarnation);
        self.log(log).is_registered = false;
        if !self.lease.is_held || self.log(log).line.is_none() {
            return;
        }
        let call = Call::Register(log, incarnation);
        let id = self.call(log, call, LogRequest::Register { node, incarnation });
        self.log(log).registering = id;
    }

    /// Sends the next batch of a log, if there is one and none is under way.
    fn commit(&mut self, index: LogIndex, now: Instant) {
        let (lease, now_ms) = ((self.lease.node, self.lease.incarnation), self.now_ms(now));
        let Some(identity) = self.identity_of(index) else { return };
        if !self.lease.is_held || !self.log(index).is_registered {
            return;
        }
        let (id, fresh) = (BatchId(self.rng.next()), self.rng.epoch());
        let Some(segments) = self.log(index).commits.next(id) else { return };
        let (node, incarnation) = lease;
        let head = super::wire::batch_head(id, now_ms, node);
        let appends = self.log(index).commits.under_way();
        self.metrics.engine.batch_appends.observe(appends as f64);
        let commit =
            super::request::Commit { identity, fresh, node, incarnation, now_ms, head, segments };
        self.call(index, Call::Commit(index, now), LogRequest::Commit(commit));
    }

    fn call(&mut self, log: LogIndex, call: Call, request: LogRequest) -> Option<CallId> {
        let line = self.log(log).line?;
        self.calls_made += 1;
        let id = CallId(self.calls_made);
        self.put_call(id, line, call);
        self.outputs.push(Output::Call(id, line, log, request));
        Some(id)
    }

    /// Remembers a call until its answer comes.
    fn put_call(&mut self, id: CallId, line: LineId, call: Call) {
        match &call {
            Call::Members(..) => self.members_calls += 1,
            Call::Post(_, bytes) => self.letters_bytes += bytes,
            _ => {}
        }
        self.calls.insert(id, (line, call));
    }

    /// Takes a call whose answer has come, or will not come.
    fn take_call(&mut self, id: CallId) -> Option<(LineId, Call)> {
        let taken = self.calls.remove(&id);
        match &taken {
            Some((_, Call::Members(..))) => self.members_calls -= 1,
            Some((_, Call::Post(_, bytes))) => self.letters_bytes -= bytes,
            _ => {}
        }
        taken
    }

    /// Sends a letter. A question that cannot be sent fails; an answer that cannot be sent is not waited for
    /// beyond the question's deadline.
    fn post(&mut self, to: Recipient, letter: Bytes, question: Option<u64>) {
        let bytes = letter.len();
        let is_full = self.letters_bytes + bytes > LETTERS_BYTES_MAX;
        let call = Call::Post(question, bytes);
        let sent = match is_full {
            true => None,
            false => self.call(self.control(), call, LogRequest::Post { to, letter }),
        };
        if let (None, Some(question)) = (sent, question) {
            self.questions.fail(question);
        }
    }

    /// Finds out whether the engine can be used, and says so when that changes.
    fn judge_state(&mut self, now: Instant) {
        let is_usable = |log: &Log| log.line.is_some() && log.is_registered && log.feed.has_read();
        let is_up = self.lease.is_held && !self.has_left && self.logs.iter().all(is_usable);
        let before = *self.shared.state.borrow();
        let after = match before {
            _ if is_up => EngineState::Up,
            EngineState::Up => EngineState::Down { since: now },
            other => other,
        };
        if before == after {
            return;
        }
        self.metrics.engine.up.set(is_up.into());
        match (before, after) {
            (EngineState::Down { since }, EngineState::Up) => {
                info!("redis can be used again, after {:.1?}", now - since);
            }
            (_, EngineState::Down { .. }) if !self.has_left => {
                warn!("redis cannot be used, and publications are refused: {}", self.fault);
            }
            _ => {}
        }
        self.shared.state.send_replace(after);
    }
}

fn deliver(
    follower: &dyn Follower,
    partition: Partition,
    is_control: bool,
    message: &LogMessage,
) -> Flow {
    match message.content() {
        Content::Records(records) if is_control => {
            for record in records {
                if let Ok(from) = <[u8; 2]>::try_from(&record.scope[..]) {
                    follower.told(NodeId(u16::from_be_bytes(from)), record.body);
                }
            }
        }
        Content::Records(records) => {
            return follower.records(partition, message.at.epoch, &records);
        }
        Content::Leaver(node, incarnation) if !is_control => {
            follower.members_left(partition, message.at, node, incarnation);
        }
        Content::Leaver(..) => {}
        Content::Unknown => {
            warn!("records of another version cannot be read, and are given up");
            match is_control {
                true => follower.told_lost(),
                false => {
                    follower.lost(partition, message.at.epoch, message.at.offset, message.end())
                }
            }
        }
    }
    Flow::Continue
}
