//! Several nodes, one Redis, and everything that can go wrong between them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::{
    model::{Audience, Model, identity_of},
    node::{Node, Waiting},
};
use crate::engine::{
    AppendError, Appended, EngineState, LogEpoch,
    machine::{LineId, Output, Push, rng::Rng},
    request::{CallId, LogIndex, LogRequest, Reply, RequestFailure},
};

pub(super) const PARTITIONS: u16 = 2;

/// The milliseconds of a step, of the time with faults, and of the time in which all must come right.
const STEP_MS: u64 = 5;
const FAULTS_MS: u64 = 4_000;
const REST_MS: u64 = 12_000;

const NODES: u16 = 3;

/// Something on its way.
enum Parcel {
    Asked(CallId, LogIndex, LogRequest),
    Replied(CallId, Result<Reply, RequestFailure>),
    Pushed(Push),
}

/// One connection: each direction in order.
struct Wire {
    node: u16,
    to_redis: VecDeque<(u64, Parcel)>,
    to_node: VecDeque<(u64, Parcel)>,
    /// Whether the connection passes on nothing more, without an error.
    is_dead: bool,
    /// The requests that were sent to Redis since the connection died.
    stuck: VecDeque<(u64, Parcel)>,
}

/// A message that a node must receive, unless it is told of a further loss of messages.
struct ToldLater {
    node: u16,
    /// The losses that the node had been told of before.
    lost_before: u64,
    body: Bytes,
    /// The node to which the message was acknowledged, and the epoch of its position.
    by: u16,
    epoch: LogEpoch,
}

pub(super) struct World {
    rng: Rng,
    start: Instant,
    now_ms: u64,
    redis: Model,
    /// Former states of Redis, for failovers that lose the newest records.
    replicas: VecDeque<Model>,
    redis_down_until_ms: u64,
    redis_paused_until_ms: u64,
    identities: u64,
    nodes: BTreeMap<u16, Node>,
    born: u16,
    wires: BTreeMap<LineId, Wire>,
    /// The requests of connections that were given up, which the network delays.
    late: VecDeque<(u64, Parcel)>,
    lines: u64,
    bodies: u64,
    /// The node that appended, partition, position and body.
    acknowledged: Vec<(u16, u16, LogEpoch, u64, Bytes)>,
    /// The messages to all nodes that were acknowledged.
    told_later: Vec<ToldLater>,
    /// Every body that was ever read, by partition and position.
    order: HashMap<(u16, LogEpoch, u64), Bytes>,
    /// The epochs of which a part was forgotten without a sign.
    forgotten: HashSet<LogEpoch>,
    is_calm: bool,
    delay_max_ms: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let delay_max_ms = [5, 20, 80][(rng.next() % 3) as usize];
        let mut world = Self {
            rng,
            start: Instant::now(),
            now_ms: 0,
            redis: Model::new(PARTITIONS + 1, 1),
            replicas: VecDeque::new(),
            redis_down_until_ms: 0,
            redis_paused_until_ms: 0,
            identities: 1,
            nodes: BTreeMap::new(),
            born: 0,
            wires: BTreeMap::new(),
            late: VecDeque::new(),
            lines: 0,
            bodies: 0,
            acknowledged: Vec::new(),
            told_later: Vec::new(),
            order: HashMap::new(),
            forgotten: HashSet::new(),
            is_calm: false,
            delay_max_ms,
        };
        for _ in 0..NODES {
            world.start_node();
        }
        world
    }

    /// Runs, and checks the law. Returns the number of acknowledged records.
    pub(super) fn run(mut self) -> u64 {
        while self.now_ms < FAULTS_MS {
            self.misfortune();
            self.wishes();
            self.step();
        }
        self.is_calm = true;
        (self.redis_down_until_ms, self.redis_paused_until_ms) = (0, 0);
        let dead: Vec<_> =
            self.wires.iter().filter(|(_, wire)| wire.is_dead).map(|(line, _)| *line).collect();
        for line in dead {
            self.cut(line);
        }
        for node in self.nodes.values_mut() {
            node.stopped_until_ms = 0;
            node.resume();
        }
        while self.now_ms < FAULTS_MS + REST_MS {
            for node in self.nodes.values_mut() {
                node.resume();
            }
            self.step();
        }
        self.judge();
        self.acknowledged.len() as u64
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.rng.next().is_multiple_of(one_in)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.rng.next() % end.max(1)
    }

    fn any_node(&mut self) -> Option<u16> {
        let numbers: Vec<_> = self.nodes.keys().copied().collect();
        let at = self.below(numbers.len() as u64) as usize;
        numbers.get(at).copied()
    }

    fn start_node(&mut self) {
        self.born += 1;
        let (seed, now) = (self.rng.next(), self.now());
        self.nodes.insert(self.born, Node::new(self.born, seed, now));
    }

    fn cut(&mut self, line: LineId) {
        let now = self.now();
        let Some(Wire { node, to_redis, stuck, .. }) = self.wires.remove(&line) else { return };
        if !self.is_calm && self.chance(2) {
            let by_ms = self.below(1_500);
            let requests = to_redis.into_iter().chain(stuck);
            self.late.extend(requests.map(|(at, parcel)| (at.max(self.now_ms) + by_ms, parcel)));
            self.late.make_contiguous().sort_by_key(|(at, _)| *at);
        }
        let again_ms = self.now_ms + 10 + self.below(200);
        if let Some(node) = self.nodes.get_mut(&node) {
            (node.line, node.reconnect_ms) = (None, again_ms);
            node.machine.line_down(line, "it was cut", now);
        }
    }

    fn cut_all(&mut self) {
        for line in self.wires.keys().copied().collect::<Vec<_>>() {
            self.cut(line);
        }
    }

    /// Restarts Redis with this state, under another identity, after `down_ms`.
    fn restart(&mut self, mut state: Model, down_ms: u64) {
        self.identities += 1;
        state.identity = identity_of(self.identities);
        self.redis = state;
        self.redis_down_until_ms = self.now_ms + down_ms;
        self.replicas.clear();
        self.cut_all();
        // The connections end with the server.
        self.late.clear();
    }

    fn misfortune(&mut self) {
        if self.chance(8) {
            self.replicas.push_back(self.redis.clone());
            if self.replicas.len() > 8 {
                self.replicas.pop_front();
            }
        }
        if self.chance(60) {
            let lines: Vec<_> = self.wires.keys().copied().collect();
            let at = self.below(lines.len() as u64) as usize;
            if let Some(line) = lines.get(at).copied() {
                if self.chance(2) {
                    self.cut(line);
                } else if let Some(wire) = self.wires.get_mut(&line) {
                    wire.is_dead = true;
                }
            }
        }
        if self.chance(150) {
            self.redis_paused_until_ms = self.now_ms + self.below(900);
        }
        if self.chance(400) {
            let (state, down_ms) = (self.redis.clone(), self.below(600));
            self.restart(state, down_ms);
        }
        if self.chance(600) {
            let down_ms = self.below(600);
            self.restart(Model::new(PARTITIONS + 1, 0), down_ms);
        }
        if self.chance(300)
            && let Some(replica) = self.replicas.pop_front()
        {
            let down_ms = self.below(600);
            self.restart(replica, down_ms);
        }
        if self.chance(1_500) {
            // The server forgets its newest records and keeps its identity. The nodes notice it only when
            // the server gives an offset twice; the epoch must end then.
            if let Some(mut former) = self.replicas.pop_front() {
                former.identity = self.redis.identity.clone();
                for log in former.logs.iter().chain(&self.redis.logs) {
                    self.forgotten.extend(log.state.as_ref().map(|(place, _)| place.epoch));
                }
                self.redis = former;
            }
        }
        if self.chance(300) {
            let stopped_ms = self.below(2_500);
            if let Some(node) = self.any_node() {
                let until = self.now_ms + stopped_ms;
                self.nodes.entry(node).and_modify(|node| node.stopped_until_ms = until);
            }
        }
        if self.chance(500)
            && self.nodes.len() > 2
            && let Some(dead) = self.any_node()
        {
            self.nodes.remove(&dead);
            let its = self.wires.iter().filter(|(_, wire)| wire.node == dead);
            for line in its.map(|(line, _)| *line).collect::<Vec<_>>() {
                self.cut(line);
            }
        }
        if self.nodes.len() < usize::from(NODES) && self.chance(100) {
            self.start_node();
        }
    }

    fn wishes(&mut self) {
        let (now, now_ms) = (self.now(), self.now_ms);
        let Some(number) = self.any_node() else { return };
        self.bodies += 1;
        let body = Bytes::from(format!("record {}", self.bodies));
        let (what, partition) = (self.below(12), self.below(PARTITIONS.into()) as u16);
        let member = Bytes::from(format!("member {}", self.below(4)));
        let is_wanted = self.chance(2);
        let lost = |node: &Node| (node.number.0, node.recorder.told().messages_lost);
        // A node that has never been up need not receive this message.
        let has_begun = |node: &&Node| *node.shared.state.borrow() != EngineState::Starting;
        let lost_before: Vec<_> = self.nodes.values().filter(has_begun).map(lost).collect();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        if node.stopped_until_ms > now_ms {
            return;
        }
        match what {
            0..=5 => node.append(partition, body, None, now),
            6 => node.want(partition, member, is_wanted),
            7 => {
                let (told, outcome) = oneshot::channel();
                node.machine.tell(body.clone(), now + Duration::from_secs(1), told);
                let (partition, change) = (PARTITIONS, None);
                node.waiting.push(Waiting { partition, body, change, lost_before, outcome });
            }
            8 => node.pause_soon(3),
            9 => node.resume(),
            _ => {}
        }
    }

    /// Lets time pass.
    fn step(&mut self) {
        self.now_ms += STEP_MS;
        self.connect();
        self.deliver();
        for number in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.run_node(number);
        }
    }

    fn connect(&mut self) {
        let now = self.now();
        if self.redis_down_until_ms > self.now_ms || self.redis_paused_until_ms > self.now_ms {
            return;
        }
        for (number, node) in &mut self.nodes {
            let is_due = node.line.is_none() && node.reconnect_ms <= self.now_ms;
            if is_due && node.stopped_until_ms <= self.now_ms {
                self.lines += 1;
                let line = LineId(self.lines);
                let (to_redis, to_node, stuck) = Default::default();
                let wire = Wire { node: *number, to_redis, to_node, is_dead: false, stuck };
                self.wires.insert(line, wire);
                node.connect(line, &self.redis, now);
            }
        }
    }

    /// Sends a parcel, which arrives after all parcels that are on their way in the same direction.
    fn send(&mut self, line: LineId, to_redis: bool, parcel: Parcel) {
        let at = self.now_ms + 1 + self.below(self.delay_max_ms);
        let Some(wire) = self.wires.get_mut(&line) else { return };
        let way = match (to_redis, wire.is_dead) {
            (true, false) => &mut wire.to_redis,
            (true, true) => &mut wire.stuck,
            (false, false) => &mut wire.to_node,
            (false, true) => return,
        };
        let at = way.back().map_or(at, |(last, _)| at.max(*last));
        way.push_back((at, parcel));
    }

    fn deliver(&mut self) {
        let now = self.now();
        if self.redis_paused_until_ms <= self.now_ms {
            // Redis takes one request after the other, of whichever connection.
            while let Some((line, parcel)) = self.next_request() {
                let Parcel::Asked(call, log, request) = parcel else { continue };
                let (reply, pushed) = self.redis.handle(log, request, self.now_ms);
                if let Some((audience, push)) = pushed {
                    self.push(audience, &push);
                }
                if let Some(line) = line {
                    self.send(line, false, Parcel::Replied(call, reply));
                }
            }
        }
        for line in self.wires.keys().copied().collect::<Vec<_>>() {
            while let Some((at, _)) = self.wires.get(&line).and_then(|wire| wire.to_node.front()) {
                let number = self.wires[&line].node;
                let Some(node) = self.nodes.get_mut(&number) else { break };
                if *at > self.now_ms || node.stopped_until_ms > self.now_ms {
                    break;
                }
                let parcel = self.wires.get_mut(&line).and_then(|wire| wire.to_node.pop_front());
                match parcel {
                    Some((_, Parcel::Replied(call, reply))) => {
                        node.machine.replied(call, reply, now)
                    }
                    Some((_, Parcel::Pushed(push))) => node.machine.pushed(line, push, now),
                    _ => {}
                }
                self.act(number);
            }
        }
    }

    /// The next request, and its connection unless that was given up.
    fn next_request(&mut self) -> Option<(Option<LineId>, Parcel)> {
        let late = self.late.front().filter(|(at, _)| *at <= self.now_ms).map(|(at, _)| *at);
        let due = self.wires.iter().filter_map(|(line, wire)| {
            wire.to_redis.front().filter(|(at, _)| *at <= self.now_ms).map(|(at, _)| (*at, *line))
        });
        let next = due.min();
        if late.is_some_and(|late| next.is_none_or(|(at, _)| late < at)) {
            return self.late.pop_front().map(|(_, parcel)| (None, parcel));
        }
        let (_, line) = next?;
        let (_, parcel) = self.wires.get_mut(&line)?.to_redis.pop_front()?;
        Some((Some(line), parcel))
    }

    /// Pushes to the nodes. A push may be lost, come twice, or overtake another: more than Redis does.
    fn push(&mut self, audience: Audience, push: &Push) {
        for line in self.wires.keys().copied().collect::<Vec<_>>() {
            let number = self.wires[&line].node;
            let is_meant = match audience {
                Audience::All => true,
                Audience::Node(node) => node.0 == number,
            };
            let is_lost = !self.is_calm && self.chance(30);
            if !is_meant || is_lost {
                continue;
            }
            self.send(line, false, Parcel::Pushed(push.clone()));
            if !self.is_calm && self.chance(30) {
                self.send(line, false, Parcel::Pushed(push.clone()));
            }
            if !self.is_calm && self.chance(30) {
                let way = self.wires.get_mut(&line).map(|wire| &mut wire.to_node);
                if let Some(way) = way.filter(|way| way.len() > 1) {
                    let last = way.len() - 1;
                    let times = (way[last].0, way[last - 1].0);
                    way.swap(last, last - 1);
                    (way[last].0, way[last - 1].0) = times;
                }
            }
        }
    }

    fn run_node(&mut self, number: u16) {
        let (now, now_ms) = (self.now(), self.now_ms);
        let Some(node) = self.nodes.get_mut(&number) else { return };
        if node.stopped_until_ms > now_ms {
            return;
        }
        node.machine.tick(now);
        node.change_members(now);
        self.act(number);
        self.collect(number);
    }

    fn act(&mut self, number: u16) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        for output in node.machine.outputs(now) {
            match output {
                Output::Call(call, line, log, request) => {
                    self.send(line, true, Parcel::Asked(call, log, request));
                }
                Output::Reconnect(line, _) => self.cut(line),
                Output::Spawn { id, to, answer, .. } => {
                    let node = self.nodes.get_mut(&number);
                    if let (Some(node), Some(answer)) = (node, answer.now_or_never()) {
                        node.machine.answered(id, to, answer);
                    }
                }
            }
        }
    }

    /// Takes the outcomes that are there.
    fn collect(&mut self, number: u16) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let mut done = Vec::new();
        node.waiting.retain_mut(|waiting| match waiting.outcome.try_recv() {
            Ok(outcome) => {
                let lost = std::mem::take(&mut waiting.lost_before);
                let body = waiting.body.clone();
                done.push((waiting.partition, body, waiting.change.clone(), lost, outcome));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => panic!("every append has an outcome"),
        });
        for (partition, body, change, lost, outcome) in done {
            if let Some(member) = change {
                let wish = node.members.get_mut(&(partition, member)).expect("it was wanted");
                wish.is_under_way = false;
                wish.is_due |= outcome.is_err();
                assert!(!matches!(outcome, Err(AppendError::PlaceFull | AppendError::TooLarge)));
            } else if let Ok(Appended::At(at)) = outcome {
                let epoch = at.epoch;
                self.acknowledged.push((number, partition, epoch, at.offset, body.clone()));
                self.told_later.extend(lost.into_iter().map(|(node, lost_before)| ToldLater {
                    node,
                    lost_before,
                    body: body.clone(),
                    by: number,
                    epoch,
                }));
            }
        }
    }

    /// Checks the law.
    fn judge(&mut self) {
        let states: Vec<_> = self.nodes.values().map(|node| *node.shared.state.borrow()).collect();
        assert!(states.iter().all(|state| *state == EngineState::Up), "all are up: {states:?}");
        self.judge_order();
        self.judge_acknowledged();
        self.judge_members();
        self.judge_told();
    }

    /// Each node was told each message, or that messages are lost. The exception of
    /// [`World::judge_acknowledged`] holds here, too.
    fn judge_told(&self) {
        for ToldLater { node: number, lost_before, body, by, epoch } in &self.told_later {
            let is_witnessed = self.nodes.contains_key(by)
                || !self.forgotten.contains(epoch)
                || self.nodes.values().any(|node| node.recorder.told().messages.contains(body));
            let Some(node) = self.nodes.get(number).filter(|_| is_witnessed) else { continue };
            let told = node.recorder.told();
            let is_known = told.messages.contains(body) || told.messages_lost > *lost_before;
            assert!(is_known, "node {number} was told {body:?}, or that messages are lost");
        }
    }

    fn judge_order(&mut self) {
        for (number, node) in &self.nodes {
            let told = node.recorder.told();
            for partition in 0..PARTITIONS {
                let (place, _) =
                    self.redis.logs[usize::from(partition)].state.clone().expect("a log");
                let runs = &told.runs[&partition];
                let last = runs.last().expect("an epoch");
                assert_eq!(
                    (last.epoch, last.next),
                    (place.epoch, place.next),
                    "node {number} is where partition {partition} is"
                );
                for run in runs.iter().filter(|run| !self.forgotten.contains(&run.epoch)) {
                    for (offset, body) in &run.bodies {
                        assert!((run.first..run.next).contains(offset));
                        let at = (partition, run.epoch, *offset);
                        let known = self.order.entry(at).or_insert_with(|| body.clone());
                        assert_eq!(known, body, "two nodes read different records at {at:?}");
                    }
                }
            }
        }
    }

    /// Checks that an acknowledged record of the present epoch is known to every node that has read its position.
    /// The loss of a record of another epoch counts as announced by the epoch that followed.
    ///
    /// There is one exception. A server that returns to an earlier state without a sign (a virtual machine that is
    /// restored) forgets a record, and its state is the same as if the record had never been appended. Only a node
    /// that was sent the record or its acknowledgement before knows of it, and notices when the server gives the
    /// offset again. If all such nodes have died, no node and no server has anything left by which the loss could
    /// be told from a record that never was.
    fn judge_acknowledged(&self) {
        for (by, partition, epoch, offset, body) in &self.acknowledged {
            let has_read = |node: &Node| {
                let told = node.recorder.told();
                let runs = told.runs.get(partition).into_iter().flatten();
                runs.filter(|run| run.epoch == *epoch)
                    .any(|run| run.bodies.get(offset) == Some(body))
            };
            let is_known = self.nodes.contains_key(by)
                || !self.forgotten.contains(epoch)
                || self.nodes.values().any(has_read);
            if *partition == PARTITIONS || !is_known {
                continue;
            }
            for (number, node) in &self.nodes {
                let told = node.recorder.told();
                let last = told.runs[partition].last().expect("an epoch");
                if last.epoch != *epoch || *offset < last.first {
                    continue;
                }
                assert!(*offset < last.next, "node {number} has heard of {body:?} at {offset}");
                if let Some(found) = last.bodies.get(offset) {
                    assert_eq!(
                        found, body,
                        "node {number} at {offset} of partition {partition}, appended by {by}"
                    );
                }
            }
        }
    }

    fn judge_members(&self) {
        let wanted = self.nodes.values().flat_map(|node| {
            let members = node.members.iter().filter(|(_, wish)| wish.is_wanted);
            let life = (node.number, node.shared.incarnation());
            members
                .map(move |((partition, member), _)| (*partition, life.0, life.1, member.clone()))
        });
        assert_eq!(self.redis.members(), wanted.collect::<BTreeSet<_>>(), "the members");
    }
}
