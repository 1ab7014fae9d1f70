//! A node of the simulation: its machine, its follower, and what it wants its members to be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::model::Model;
use crate::{
    engine::{
        Append, AppendError, Appended, Flow, Follower, Incarnation, LogEpoch, LogPosition, Logged,
        MemberChange, NodeId, NodeInfo, Partition, Record, Terms,
        machine::{Config, LineId, Machine, Output},
        request::{CallId, Instance, LogIndex, LogRequest},
        shared::EngineShared,
    },
    metrics::Metrics,
};

/// A run of one epoch as a node saw it.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) epoch: LogEpoch,
    pub(super) first: u64,
    pub(super) next: u64,
    pub(super) bodies: HashMap<u64, Bytes>,
}

/// The news that a follower was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) runs: BTreeMap<u16, Vec<Run>>,
    left: BTreeSet<(u16, u16, u64)>,
    pub(super) messages: BTreeSet<Bytes>,
    pub(super) messages_lost: u64,
    /// The partitions whose members are to be put again.
    put_again: BTreeSet<u16>,
    /// Pauses after this many calls.
    pause_in: Option<u32>,
    pub(super) paused: BTreeSet<u16>,
}

#[derive(Debug, Default)]
pub(super) struct Recorder(Mutex<Told>);

impl Recorder {
    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().expect("no test panics while it holds the lock")
    }
}

impl Told {
    fn advance(
        &mut self,
        partition: Partition,
        epoch: LogEpoch,
        offset: u64,
        next: u64,
    ) -> &mut Run {
        let run = self.runs.get_mut(&partition.0).and_then(|runs| runs.last_mut());
        let run = run.expect("an epoch began before its first record");
        assert_eq!((run.epoch, run.next), (epoch, offset), "the next offset of the epoch");
        run.next = next;
        run
    }
}

impl Follower for Recorder {
    fn records(&self, partition: Partition, epoch: LogEpoch, records: &[Logged]) -> Flow {
        let mut told = self.told();
        assert!(!told.paused.contains(&partition.0), "a paused partition is left alone");
        for record in records {
            let run = told.advance(partition, epoch, record.offset, record.offset + 1);
            run.bodies.insert(record.offset, record.body.clone());
        }
        match told.pause_in.as_mut() {
            Some(0) => {
                told.pause_in = None;
                told.paused.insert(partition.0);
                Flow::Pause
            }
            Some(left) => {
                *left -= 1;
                Flow::Continue
            }
            None => Flow::Continue,
        }
    }

    fn new_epoch(&self, partition: Partition, epoch: LogEpoch, next_offset: u64) {
        let mut told = self.told();
        let runs = told.runs.entry(partition.0).or_default();
        assert_ne!(runs.last().map(|run| run.epoch), Some(epoch), "an epoch begins once");
        let bodies = HashMap::new();
        runs.push(Run { epoch, first: next_offset, next: next_offset, bodies });
        told.put_again.insert(partition.0);
    }

    fn lost(&self, partition: Partition, epoch: LogEpoch, first: u64, next: u64) {
        assert!(first < next);
        self.told().advance(partition, epoch, first, next);
    }

    fn members_left(
        &self,
        partition: Partition,
        at: LogPosition,
        node: NodeId,
        incarnation: Incarnation,
    ) {
        let mut told = self.told();
        told.advance(partition, at.epoch, at.offset, at.offset + 1);
        let is_first = told.left.insert((partition.0, node.0, incarnation.0));
        assert!(is_first, "the members of an incarnation leave once");
    }

    fn reincarnated(&self, _incarnation: Incarnation) {
        self.told().put_again.extend(0..super::world::PARTITIONS);
    }

    fn told(&self, _from: NodeId, message: Bytes) {
        let is_first = Recorder::told(self).messages.insert(message);
        assert!(is_first, "a message is told once");
    }

    fn told_lost(&self) {
        Recorder::told(self).messages_lost += 1;
    }

    fn asked(&self, _from: NodeId, question: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { question })
    }

    fn nodes_changed(&self, _live: &[NodeInfo]) {}
}

/// An append that waits for its outcome.
pub(super) struct Waiting {
    pub(super) partition: u16,
    pub(super) body: Bytes,
    pub(super) change: Option<Bytes>,
    /// The losses of messages that each node had been told of before.
    pub(super) lost_before: Vec<(u16, u64)>,
    pub(super) outcome: oneshot::Receiver<Result<Appended, AppendError>>,
}

/// The state that a node wants a member to have.
#[derive(Debug, Default)]
pub(super) struct Wish {
    pub(super) is_wanted: bool,
    pub(super) is_under_way: bool,
    pub(super) is_due: bool,
}

/// A node.
pub(super) struct Node {
    pub(super) number: NodeId,
    pub(super) machine: Machine,
    pub(super) recorder: Arc<Recorder>,
    pub(super) line: Option<LineId>,
    /// The moment at which a connection is tried.
    pub(super) reconnect_ms: u64,
    /// The moment until which the node neither receives nor does anything.
    pub(super) stopped_until_ms: u64,
    pub(super) waiting: Vec<Waiting>,
    pub(super) members: BTreeMap<(u16, Bytes), Wish>,
    pub(super) shared: Arc<EngineShared>,
}

impl Node {
    pub(super) fn new(number: u16, seed: u64, now: Instant) -> Self {
        let incarnation = Incarnation(seed | 1);
        let config = Config {
            partitions: super::world::PARTITIONS,
            node: NodeId(number),
            incarnation,
            instance: Instance([number as u8; 16]),
            is_first: true,
            probe_interval: Duration::from_millis(200),
            node_timeout: Duration::from_millis(1_000),
            clock: (now, 0),
            seed,
        };
        let shared = EngineShared::new(incarnation);
        let mut machine = Machine::new(config, shared.clone(), Metrics::new(0));
        let recorder = Arc::new(Recorder::default());
        machine.follow(recorder.clone(), now);
        Self {
            number: NodeId(number),
            machine,
            recorder,
            line: None,
            reconnect_ms: 0,
            stopped_until_ms: 0,
            waiting: Vec::new(),
            members: BTreeMap::new(),
            shared,
        }
    }

    /// Takes a connection to Redis.
    pub(super) fn connect(&mut self, line: LineId, redis: &Model, now: Instant) {
        self.line = Some(line);
        let logs = (0..=super::world::PARTITIONS).map(LogIndex).collect();
        self.machine.line_up(line, redis.identity.clone(), logs, now);
    }

    /// Lets the node and its Redis exchange everything until nothing is left, but for the requests that are to be
    /// held back, which are returned.
    pub(super) fn exchange(
        &mut self,
        redis: &mut Model,
        now: Instant,
        now_ms: u64,
        is_held: impl Fn(&LogRequest) -> bool,
    ) -> Vec<(CallId, LogIndex, LogRequest)> {
        let mut held = Vec::new();
        loop {
            let outputs = self.machine.outputs(now);
            if outputs.is_empty() {
                return held;
            }
            for output in outputs {
                match output {
                    Output::Call(id, _, log, request) if is_held(&request) => {
                        held.push((id, log, request));
                    }
                    Output::Call(id, line, log, request) => {
                        let (reply, pushed) = redis.handle(log, request, now_ms);
                        self.machine.replied(id, reply, now);
                        if let Some((_, push)) = pushed {
                            self.machine.pushed(line, push, now);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    pub(super) fn append(
        &mut self,
        partition: u16,
        body: Bytes,
        change: Option<MemberChange>,
        now: Instant,
    ) {
        let (appended, outcome) = oneshot::channel();
        let member = change.as_ref().map(|change| match change {
            MemberChange::Put { member, .. } | MemberChange::Remove { member, .. } => {
                member.clone()
            }
        });
        let record = Record { scope: Bytes::from_static(b"s"), body: body.clone() };
        let append =
            Append { records: vec![record], terms: change.map_or(Terms::None, Terms::Member) };
        self.machine.append(Partition(partition), append, now + Duration::from_secs(1), appended);
        let lost_before = Vec::new();
        self.waiting.push(Waiting { partition, body, change: member, lost_before, outcome });
    }

    /// Wants a member to be there, or not.
    pub(super) fn want(&mut self, partition: u16, member: Bytes, is_wanted: bool) {
        let wish = self.members.entry((partition, member)).or_default();
        (wish.is_wanted, wish.is_due) = (is_wanted, true);
    }

    /// Sends the changes of members that are due: those that are new, that failed, or that have to be made
    /// again because an epoch or an incarnation began.
    pub(super) fn change_members(&mut self, now: Instant) {
        let again = std::mem::take(&mut self.recorder.told().put_again);
        for ((partition, _), wish) in &mut self.members {
            wish.is_due |= wish.is_wanted && again.contains(partition);
        }
        let due = self.members.iter_mut().filter(|(_, wish)| wish.is_due && !wish.is_under_way);
        let due = due.map(|((partition, member), wish)| {
            (wish.is_due, wish.is_under_way) = (false, true);
            (*partition, member.clone(), wish.is_wanted)
        });
        for (partition, member, is_wanted) in due.collect::<Vec<_>>() {
            let place = Bytes::from_static(b"room");
            let change = if is_wanted {
                let value = member.clone();
                MemberChange::Put { place, member, value, members_max: 1_000 }
            } else {
                MemberChange::Remove { place, member }
            };
            self.append(partition, Bytes::from_static(b"member"), Some(change), now);
        }
    }

    pub(super) fn pause_soon(&mut self, calls: u32) {
        self.recorder.told().pause_in = Some(calls);
    }

    pub(super) fn resume(&mut self) {
        let paused = std::mem::take(&mut self.recorder.told().paused);
        for partition in paused {
            self.machine.resume(Partition(partition));
        }
    }
}
