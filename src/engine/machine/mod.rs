//! The protocol of a node: a state machine without I/O.
//!
//! Events go in as function calls with the time: a connection is made or broken, Redis answers or pushes,
//! time passes, another thread makes a request. Tasks for the driver come out as [`Output`]s, and the
//! follower is called directly. The driver connects the machine with a real Redis, and the simulation of
//! the tests with one that delays, drops, repeats and forgets.
//!
//! - `reading` is the position up to which a log was read; it finds and fills gaps.
//! - `commits` has the appends that wait for a log, and the batch under way.
//! - `rounds` decides when the batches of a line leave.
//! - `lease` renews this node's lease, and finds expired leases of other nodes.
//! - `questions` has the questions that wait for the answers of other nodes.
//!
//! A *log* in this module is that of one partition, or that of the messages to all nodes (`LogIndex`). A
//! *line* is the connection to one Redis server, for commands and for pushes. A Redis Cluster has several,
//! and each log belongs to one of them. A *life* is an incarnation together with the number of its node. A
//! *letter* is a question or an answer that one node sends to another through Redis. A *probe* is a round
//! trip through Redis that proves that a line delivers.

mod calls;
mod commits;
mod lease;
mod questions;
mod reading;
mod replies;
mod rng;
mod rounds;
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

pub(super) use super::request::LineId;
use super::{
    EngineState, Flow, Follower, Incarnation, LogPosition, NodeId, Partition, Snapshot,
    Unavailable,
    request::{CallId, Identity, Instance, Life, LogIndex, LogPlace, LogRequest, Recipient},
    shared::EngineShared,
    wire::{BatchId, Content, LogMessage},
};
use crate::metrics::Metrics;
pub(super) use commits::AppendedSender;
use commits::Commits;
use lease::Lease;
pub(super) use questions::AnswersSender;
use questions::Questions;
use reading::{LogReading, Need, Step};
use rng::Rng;
use rounds::{Queued, Round};

/// The most bytes of letters, and the most readings of members, that may wait for Redis's answer. Further
/// ones fail at once. All other calls are made one at a time for each log, so these two limits bound the
/// memory of a connection while Redis does not answer.
const LETTERS_BYTES_MAX: usize = 32 << 20;
const MEMBERS_CALLS_MAX: usize = 4_096;

/// The shortest time between two log lines about refusals by Redis.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// The settings of a machine.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) partitions: u16,
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) instance: Instance,
    /// Whether the incarnation has no lease yet.
    pub(super) is_first: bool,
    pub(super) probe_interval: Duration,
    pub(super) node_timeout: Duration,
    /// A moment, and the same moment in Unix milliseconds.
    pub(super) clock: (Instant, u64),
    pub(super) seed: u64,
}

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
    /// Send this request to the server of this log.
    Call(CallId, LineId, LogIndex, LogRequest),
    /// Close this line for the given reason, and connect anew.
    Reconnect(LineId, String),
    /// Run this future, and pass its result to [`Machine::answered`].
    Spawn {
        /// The question.
        id: u64,
        /// The node that asked it.
        to: NodeId,
        /// The moment after which the asker does not wait any more.
        deadline: Instant,
        /// The future that yields the answer.
        answer: BoxFuture<'static, Bytes>,
    },
}

struct Log {
    line: Option<LineId>,
    reading: LogReading,
    commits: Commits,
    /// Whether the follower has been told of an epoch of this log.
    has_begun: bool,
    /// Whether this incarnation may put members into this log.
    is_registered: bool,
    /// The registration under way.
    registering: Option<CallId>,
    /// The number of renewals after which a further one must succeed before this incarnation registers.
    registers_after: Option<u64>,
}

struct Line {
    identity: Identity,
    logs: Vec<LogIndex>,
    probe: Option<Probe>,
    next_probe: Instant,
    /// The records that its logs had and this node had not read, at the last probe.
    lag_records: u64,
    round: Round,
}

struct Probe {
    nonce: u64,
    sent_at: Instant,
    /// The positions that the logs had reached, as far as this node knew, when the probe was sent.
    sent: Vec<(LogIndex, Option<LogPosition>)>,
    /// The positions that the probe has read, once it is answered.
    places: Option<Vec<Option<LogPlace>>>,
    is_heard: bool,
}

/// A request to Redis that waits for its answer.
enum Call {
    Commit(LogIndex, Instant),
    Read(LogIndex),
    Break(LogIndex),
    Register(LogIndex, Life),
    Renew,
    Condemn(Life),
    Bury(LogIndex, Life),
    Forget(Life),
    Probe,
    /// The id of the question, `None` if the letter is an answer, and the number of the letter's bytes.
    Post(Option<u64>, usize),
    /// The sender is taken out when the deadline has passed.
    Members(Option<oneshot::Sender<Result<Snapshot, Unavailable>>>, Instant),
}

struct Leaving {
    life: Life,
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
    /// The bytes of the letters among `calls`.
    letters_bytes: usize,
    /// The number of readings of members among `calls`.
    members_calls: usize,
    leaving: Option<Leaving>,
    has_left: bool,
    /// Whether a renewal is due when the outputs are taken.
    must_renew: bool,
    outputs: Vec<Output>,
    /// The logs whose appends may be committed when the outputs are taken.
    filled: BTreeSet<LogIndex>,
    /// The reason why the last line broke or could not be made.
    fault: String,
    refusal_logged: Option<Instant>,
}

impl Machine {
    /// A node without a line.
    pub(super) fn new(config: Config, shared: Arc<EngineShared>, metrics: Arc<Metrics>) -> Self {
        let log = |index| Log {
            line: None,
            reading: LogReading::new(index == config.partitions),
            commits: Commits::default(),
            has_begun: false,
            is_registered: false,
            registering: None,
            registers_after: None,
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
            must_renew: false,
            outputs: Vec::new(),
            filled: BTreeSet::new(),
            fault: String::new(),
            refusal_logged: None,
            config,
            shared,
            metrics,
        }
    }

    /// Takes the tasks for the driver.
    ///
    /// The appends that wait for one log go into one batch, up to its maximal size. The batches of a line leave in
    /// rounds: while a round is under way, all its logs gather appends, and their next batches leave together, so
    /// that Redis reads and answers many batches with one call of the kernel. A round that begins while nothing is
    /// under way does not wait for anything.
    pub(super) fn outputs(&mut self, now: Instant) -> Vec<Output> {
        if std::mem::take(&mut self.must_renew) {
            self.lease.hurry(now);
            self.renew(now);
        }
        for line in self.lines.values_mut() {
            let commits = || line.logs.iter().map(|log| &self.logs[usize::from(log.0)].commits);
            line.round.turn(now, || match commits().any(Commits::fills_batch) {
                true => Queued::FullBatch,
                false => Queued::Appends(commits().map(Commits::queued).sum()),
            });
        }
        let (later, due) = std::mem::take(&mut self.filled)
            .into_iter()
            .partition::<BTreeSet<_>, _>(|log| self.has_round(*log));
        self.filled = later;
        for log in due {
            self.commit(log, now);
        }
        std::mem::take(&mut self.outputs)
    }

    /// The time at which [`Machine::outputs`] must be called again at the latest, beside the ticks.
    pub(super) fn gathers_until(&self) -> Option<Instant> {
        self.lines.values().filter_map(|line| line.round.gathers_until).min()
    }

    /// Returns whether the log's next batch waits for a round of its line.
    fn has_round(&self, log: LogIndex) -> bool {
        let line = self.logs[usize::from(log.0)].line.and_then(|line| self.lines.get(&line));
        line.is_some_and(|line| line.round.is_busy())
    }

    /// The log of the messages to all nodes. Its server has the leases, too.
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

    /// Begins to pass records to a follower.
    pub(super) fn follow(&mut self, follower: Arc<dyn Follower>, now: Instant) {
        if self.follower.is_some() {
            return;
        }
        follower.nodes_changed(&self.lease.live);
        self.follower = Some(follower);
        for log in self.all_logs() {
            if self.log(log).line.is_some() && self.log(log).reading.must_read() {
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
            // A partition may have been resumed while it had no line.
            self.log(*log).reading.disconnected();
        }
        let has_control = logs.contains(&self.control());
        let added = Line {
            identity,
            logs: logs.clone(),
            probe: None,
            next_probe,
            lag_records: 0,
            round: Round::default(),
        };
        self.lines.insert(line, added);
        if has_control {
            self.lease.connected(now);
            self.renew(now);
        }
        self.remove_own(now);
        for log in logs {
            if self.lease.is_held {
                self.register(log);
            }
            if self.follower.is_some() && self.log(log).reading.must_read() {
                self.read(log);
            }
        }
    }

    /// Handles that a line broke, or (for an unknown id) could not be made.
    pub(super) fn line_down(&mut self, line: LineId, reason: &str, now: Instant) {
        let Some(Line { logs, .. }) = self.lines.remove(&line) else {
            self.fault = reason.to_owned();
            return;
        };
        self.metrics.engine.reconnects.inc();
        self.fault = reason.to_owned();
        for index in &logs {
            let log = self.log(*index);
            (log.line, log.is_registered, log.registering) = (None, false, None);
            log.reading.disconnected();
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

    /// Takes a push of a line.
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
                    self.finish_probe(line);
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
            warn!("a message of another version cannot be read; the log is read instead");
            if self.log(log).reading.must_read() {
                self.read(log);
            }
            return;
        };
        let mut steps = Vec::new();
        let need = self.log(log).reading.push(message, length, &mut steps);
        self.advance(log, steps, need);
    }

    /// Makes the calls on the follower, and then sends the command that the reading needs. Returns whether the
    /// follower has paused.
    fn advance(&mut self, log: LogIndex, steps: Vec<Step>, need: Need) -> bool {
        if self.log(log).reading.take_gap() {
            self.metrics.engine.gaps_repaired.inc();
        }
        let is_paused = self.tell_follower(log, steps);
        match need {
            _ if is_paused => {}
            Need::Nothing => {}
            Need::Read => self.read(log),
            Need::Break(seen) => {
                warn!(
                    "redis has returned partition {} to an earlier state: its epoch ends, and clients are \
                     told that events may be lost",
                    log.0
                );
                let fresh = self.rng.epoch();
                self.call(log, Call::Break(log), LogRequest::Break { seen, fresh });
            }
        }
        if self.log(log).reading.has_read() {
            self.log(log).commits.has_read();
        }
        is_paused
    }

    /// Makes the calls on the follower. Returns whether the follower has paused, so that the later steps were
    /// not made.
    fn tell_follower(&mut self, index: LogIndex, steps: Vec<Step>) -> bool {
        let Some(follower) = self.follower.clone() else { return false };
        let (partition, is_control) = (Partition(index.0), index == self.control());
        for step in steps {
            match step {
                Step::NewEpoch(at) => {
                    let is_another = std::mem::replace(&mut self.log(index).has_begun, true);
                    self.register_after_renewal(index);
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
                        log.reading.pause_after(&message);
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Sends what is due and fails what is overdue. The driver must call it at least every 50 ms.
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
        if let Some(Leaving { done, .. }) = self.leaving.take_if(|leaving| leaving.deadline <= now)
        {
            let _ = done.send(());
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
        let sent = logs.iter().map(|log| (*log, self.logs[usize::from(log.0)].reading.reached()));
        let sent = sent.collect();
        let probe = Probe { nonce, sent_at: now, sent, places: None, is_heard: false };
        line.probe = Some(probe);
        if let Some(first) = logs.first().copied() {
            let node = self.lease.node;
            self.call(first, Call::Probe, LogRequest::Probe { logs, node, nonce });
        }
    }

    /// Compares the positions of the logs with those of this node, once the probe has been answered and its
    /// number has been pushed.
    fn finish_probe(&mut self, id: LineId) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        let is_done = |probe: &&mut Probe| probe.is_heard && probe.places.is_some();
        if line.probe.as_mut().filter(is_done).is_none() {
            return;
        }
        let Some(Probe { sent, places: Some(places), .. }) = line.probe.take() else { return };
        let mut lag = 0;
        for (place, (log, sent)) in places.into_iter().zip(sent) {
            let (at, line) = (self.log(log).reading.at(), self.log(log).line);
            let need = match place {
                // The server has lost the state of the log, but the connection stayed.
                None => self.log(log).reading.read_on(),
                Some(place) => {
                    let here = at.filter(|at| at.epoch == place.epoch).map_or(0, |at| at.offset);
                    lag += place.next.saturating_sub(here.max(1));
                    self.log(log).reading.probed(sent, place)
                }
            };
            if line == Some(id) {
                self.advance(log, Vec::new(), need);
            }
        }
        if let Some(line) = self.lines.get_mut(&id) {
            line.lag_records = lag;
        }
        // A Redis Cluster has several lines, and each probe reports the logs of one line.
        let lag: u64 = self.lines.values().map(|line| line.lag_records).sum();
        self.metrics.engine.lag_records.set(lag as i64);
        self.metrics.engine.probed();
    }

    fn read(&mut self, log: LogIndex) {
        let Some(identity) = self.identity_of(log) else { return };
        let (fresh, from) = (self.rng.epoch(), self.log(log).reading.reads_from());
        let read = super::request::ReadRange { identity, fresh, from };
        self.call(log, Call::Read(log), LogRequest::Read(read));
    }

    /// Renews the lease, and then permits this node to put members into a log, which does not know this node.
    ///
    /// A Redis that returns to an earlier state may have forgotten the lease as well. Members that a node put
    /// without a lease would stay if the node died, because no other node would know that it existed.
    fn register_after_renewal(&mut self, log: LogIndex) {
        let renewals = self.lease.renewals();
        let log = self.log(log);
        (log.is_registered, log.registering) = (false, None);
        log.registers_after = Some(renewals);
        self.must_renew = true;
    }

    /// Permits this node to put members into a log.
    fn register(&mut self, log: LogIndex) {
        let life = self.lease.life();
        (self.log(log).is_registered, self.log(log).registers_after) = (false, None);
        let Some(line) = self.log(log).line.filter(|_| self.lease.is_held) else { return };
        let id = self.call(log, Call::Register(log, life), LogRequest::Register(life, line));
        self.log(log).registering = id;
    }

    /// Sends the next batch of a log, if there is one and none is under way.
    fn commit(&mut self, index: LogIndex, now: Instant) {
        let (life, now_ms) = (self.lease.life(), self.now_ms(now));
        let (Some(line), Some(identity)) = (self.log(index).line, self.identity_of(index)) else {
            return;
        };
        if !self.lease.is_held || !self.log(index).is_registered {
            return;
        }
        let (id, fresh) = (BatchId(self.rng.next()), self.rng.epoch());
        let Some(segments) = self.log(index).commits.next(id) else { return };
        let head = super::wire::batch_head(id, now_ms, life.0);
        let appends = self.log(index).commits.under_way();
        self.metrics.engine.batch_appends.observe(appends as f64);
        let commit = super::request::Commit { identity, fresh, life, line, head, segments };
        self.call(index, Call::Commit(index, now), LogRequest::Commit(commit));
        if let Some(line) = self.lines.get_mut(&line) {
            line.round.begin_batch(now, appends);
        }
    }

    fn call(&mut self, log: LogIndex, call: Call, request: LogRequest) -> Option<CallId> {
        let line = self.log(log).line?;
        self.calls_made += 1;
        let id = CallId(self.calls_made);
        self.put_call(id, line, call);
        self.outputs.push(Output::Call(id, line, log, request));
        Some(id)
    }

    /// Keeps a call until its answer arrives.
    fn put_call(&mut self, id: CallId, line: LineId, call: Call) {
        match &call {
            Call::Commit(..) => {
                if let Some(line) = self.lines.get_mut(&line) {
                    line.round.batches += 1;
                }
            }
            Call::Members(..) => self.members_calls += 1,
            Call::Post(_, bytes) => self.letters_bytes += bytes,
            _ => {}
        }
        self.calls.insert(id, (line, call));
    }

    /// Removes a call whose answer has arrived or will never arrive.
    fn take_call(&mut self, id: CallId) -> Option<(LineId, Call)> {
        let taken = self.calls.remove(&id);
        match &taken {
            Some((line, Call::Commit(..))) => {
                if let Some(line) = self.lines.get_mut(line) {
                    line.round.batches -= 1;
                }
            }
            Some((_, Call::Members(..))) => self.members_calls -= 1,
            Some((_, Call::Post(_, bytes))) => self.letters_bytes -= bytes,
            _ => {}
        }
        taken
    }

    /// Sends a letter. A question that cannot be sent fails at once; an answer that cannot be sent is
    /// dropped, and the asker gives up at its deadline.
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

    /// Determines whether the engine can be used, and publishes and logs a change.
    fn judge_state(&mut self, now: Instant) {
        let is_usable =
            |log: &Log| log.line.is_some() && log.is_registered && log.reading.has_read();
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
            warn!(
                "records of another version cannot be read and are skipped: run at most two successive \
                 versions side by side"
            );
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
