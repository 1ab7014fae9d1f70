//! The log, the leases and the members that the nodes of a process share.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    MemoryEngine,
    feed::{self, NodeCall},
};
use crate::engine::{
    Append, AppendError, Appended, EngineState, Incarnation, LogEpoch, LogPosition, Logged,
    MESSAGE_BYTES_MAX, MemberChange, NodeId, NodeInfo, NodeUnanswered, Partition, PlaceMember,
    Snapshot, Terms, Unavailable,
};

/// The part that several [`MemoryEngine`]s share. Cheap to clone.
#[derive(Clone)]
pub struct MemoryCluster(Arc<Mutex<Shared>>);

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

struct Shared {
    partitions: Vec<PartitionLog>,
    nodes: BTreeMap<NodeId, MemoryNode>,
    /// The beginning of the outage under way.
    down: Option<Instant>,
    /// The most appends whose records a follower receives in one call.
    appends_per_call: usize,
    /// The ids of epochs, incarnations and nodes come from this counter, so that a failing test fails in the
    /// same way in each run.
    counted: u64,
}

struct MemoryNode {
    info: NodeInfo,
    calls: mpsc::UnboundedSender<NodeCall>,
    state: watch::Sender<EngineState>,
    /// Whether the node leaves questions unanswered.
    is_mute: bool,
    /// The number of messages that the node has missed; `None` if it receives them.
    missed: Option<usize>,
}

struct PartitionLog {
    epoch: LogEpoch,
    /// The offset at which the epoch began.
    base: u64,
    next: u64,
    entries: VecDeque<LogEntry>,
    keys: HashMap<Bytes, (LogPosition, Bytes)>,
    /// For how long each key should be remembered. Keys do not expire here.
    ttls: Vec<Duration>,
    places: HashMap<Bytes, HashMap<MemberName, Bytes>>,
    /// Whether appends are refused.
    is_refused: bool,
    /// Whether nodes do not learn that their records were appended.
    is_unanswered: bool,
}

type MemberName = (NodeId, Incarnation, Bytes);

/// Consecutive offsets of the log.
struct LogEntry {
    at: LogPosition,
    body: EntryBody,
}

#[derive(Clone)]
enum EntryBody {
    Records(Arc<[Logged]>),
    Left(NodeId, Incarnation),
}

impl LogEntry {
    fn end(&self) -> u64 {
        self.at.offset
            + if let EntryBody::Records(records) = &self.body { records.len() as u64 } else { 1 }
    }
}

/// The point up to which a node has read a partition.
#[derive(Default)]
pub(super) struct ReadCursor {
    next: Option<LogPosition>,
    pub(super) is_paused: bool,
}

/// The next part of a partition that a node's follower has not received.
pub(super) enum PartitionNews {
    NewEpoch(LogPosition),
    Lost(LogEpoch, u64, u64),
    Records(LogEpoch, Arc<[Logged]>),
    Left(LogPosition, NodeId, Incarnation),
}

impl PartitionLog {
    fn new(epoch: LogEpoch) -> Self {
        let entries = VecDeque::new();
        let (keys, ttls, places, is_refused, is_unanswered) = Default::default();
        Self { epoch, base: 1, next: 1, entries, keys, ttls, places, is_refused, is_unanswered }
    }

    fn push(&mut self, body: EntryBody) -> LogPosition {
        let at = LogPosition { epoch: self.epoch, offset: self.next };
        let entry = LogEntry { at, body };
        self.next = entry.end();
        self.entries.push_back(entry);
        at
    }

    fn append(
        &mut self,
        (node, incarnation): (NodeId, Incarnation),
        append: Append,
    ) -> Result<Appended, AppendError> {
        let mut once = None;
        match append.terms {
            Terms::None => {}
            Terms::Once(key) => {
                if let Some((at, note)) = self.keys.get(&key.id) {
                    return Ok(Appended::Repeated { at: *at, note: note.clone() });
                }
                once = Some(key);
            }
            Terms::Member(MemberChange::Put { place, member, value, members_max }) => {
                let name = (node, incarnation, member);
                let members = self.places.entry(place).or_default();
                if !members.contains_key(&name) && members.len() >= members_max as usize {
                    return Err(AppendError::PlaceFull);
                }
                members.insert(name, value);
            }
            Terms::Member(MemberChange::Remove { place, member }) => {
                if let Some(members) = self.places.get_mut(&place) {
                    members.remove(&(node, incarnation, member));
                }
            }
        }
        let numbered = (self.next..).zip(append.records);
        let records = numbered.map(|(offset, r)| Logged { offset, scope: r.scope, body: r.body });
        let records: Arc<[_]> = records.collect();
        let at = match records.is_empty() {
            true => LogPosition { epoch: self.epoch, offset: self.next },
            false => self.push(EntryBody::Records(records)),
        };
        if let Some(key) = once {
            self.ttls.push(key.ttl);
            self.keys.insert(key.id, (at, key.note));
        }
        Ok(Appended::At(at))
    }

    /// Removes the members of a node's incarnation. Returns whether there were any.
    fn bury(&mut self, node: NodeId, incarnation: Incarnation) -> bool {
        let before: usize = self.places.values().map(HashMap::len).sum();
        for members in self.places.values_mut() {
            members.retain(|(of, life, _), _| (*of, *life) != (node, incarnation));
        }
        let had_any = self.places.values().map(HashMap::len).sum::<usize>() < before;
        if had_any {
            self.push(EntryBody::Left(node, incarnation));
        }
        had_any
    }

    fn read(&self, cursor: &mut ReadCursor, appends_max: usize) -> Option<PartitionNews> {
        let known = cursor.next;
        // The node has read beyond the beginning of the present epoch, in the one before it.
        let diverged = known.is_some_and(|at| at.epoch != self.epoch && at.offset > self.base);
        let from = match known {
            Some(_) if diverged => self.base,
            Some(at) => at.offset,
            None => 0,
        };
        let nth = self.entries.iter().position(|entry| entry.at.offset >= from);
        let entry = nth.and_then(|nth| self.entries.get(nth));
        let at = entry.map_or(LogPosition { epoch: self.epoch, offset: self.next }, |e| e.at);
        let Some(known) = known.filter(|known| known.epoch == at.epoch) else {
            cursor.next = Some(at);
            return Some(PartitionNews::NewEpoch(at));
        };
        cursor.next = Some(at);
        if at.offset > known.offset {
            return Some(PartitionNews::Lost(at.epoch, known.offset, at.offset));
        }
        if let EntryBody::Left(node, incarnation) = &entry?.body {
            cursor.next = Some(LogPosition { offset: at.offset + 1, ..at });
            return Some(PartitionNews::Left(at, *node, *incarnation));
        }
        let mut joined = Vec::new();
        for LogEntry { at: next, body } in self.entries.range(nth?..).take(appends_max) {
            match body {
                EntryBody::Records(records) if next.epoch == at.epoch => {
                    joined.extend(records.iter().cloned());
                }
                _ => break,
            }
        }
        let end = joined.last().map_or(at.offset, |last| last.offset + 1);
        cursor.next = Some(LogPosition { offset: end, ..at });
        Some(PartitionNews::Records(at.epoch, joined.into()))
    }
}

impl Shared {
    fn count(&mut self) -> u64 {
        self.counted += 1;
        self.counted
    }

    fn live(&self) -> Arc<[NodeInfo]> {
        self.nodes.values().map(|node| node.info.clone()).collect()
    }

    fn call_all(&self, call: impl Fn() -> NodeCall) {
        for node in self.nodes.values() {
            let _ = node.calls.send(call());
        }
    }

    fn advance(&self, partition: usize) {
        self.call_all(|| NodeCall::Advance(Partition(partition as u16)));
    }

    fn nodes_changed(&self) {
        let live = self.live();
        self.call_all(|| NodeCall::Nodes(live.clone()));
    }

    fn bury(&mut self, node: NodeId, incarnation: Incarnation) {
        for partition in 0..self.partitions.len() {
            if self.partitions[partition].bury(node, incarnation) {
                self.advance(partition);
            }
        }
    }
}

impl MemoryCluster {
    /// A server without nodes.
    pub fn new(partitions: u16) -> Self {
        let mut shared = Shared {
            partitions: Vec::new(),
            nodes: BTreeMap::new(),
            down: None,
            appends_per_call: 1,
            counted: 0,
        };
        for _ in 0..partitions {
            let epoch = LogEpoch(shared.count());
            shared.partitions.push(PartitionLog::new(epoch));
        }
        Self(Arc::new(Mutex::new(shared)))
    }

    /// Adds a node.
    pub fn node(&self) -> Arc<MemoryEngine> {
        let mut shared = self.0.lock();
        let (calls, received) = mpsc::unbounded_channel();
        let state = watch::Sender::new(EngineState::Starting);
        let node = NodeId(u16::try_from(shared.count()).expect("a test has few nodes"));
        let incarnation = Incarnation(shared.count());
        let info = NodeInfo { node, incarnation, info: Bytes::new(), since_ms: 0, seen_ms: 0 };
        let (is_mute, missed) = (false, None);
        let added =
            MemoryNode { info, calls: calls.clone(), state: state.clone(), is_mute, missed };
        shared.nodes.insert(node, added);
        shared.nodes_changed();
        let partitions = shared.partitions.len() as u16;
        let runtime = feed::start(self.clone(), partitions, received, state.clone());
        let (cluster, unfed) = (self.clone(), Default::default());
        Arc::new(MemoryEngine { cluster, node, partitions, state, calls, unfed, runtime })
    }

    /// Begins an outage: no node can reach the server.
    pub fn stop(&self) {
        let mut shared = self.0.lock();
        let since = *shared.down.get_or_insert_with(Instant::now);
        for node in shared.nodes.values() {
            node.state.send_replace(EngineState::Down { since });
        }
    }

    /// Ends an outage.
    pub fn start(&self) {
        let mut shared = self.0.lock();
        shared.down = None;
        for partition in 0..shared.partitions.len() {
            shared.advance(partition);
        }
        for node in shared.nodes.values() {
            node.state.send_replace(EngineState::Up);
        }
    }

    /// Forgets everything but the leases, as a server without a disk does when it is restarted.
    pub fn restart_empty(&self) {
        let mut shared = self.0.lock();
        for partition in 0..shared.partitions.len() {
            let epoch = LogEpoch(shared.count());
            shared.partitions[partition] = PartitionLog::new(epoch);
            shared.advance(partition);
        }
        shared.call_all(|| NodeCall::ToldLost);
    }

    /// Forgets the last appends to a partition, as a failover to a replica that lags does. The members of
    /// the partition are gone, too.
    pub fn lose_tail(&self, partition: Partition, appends: usize) {
        let mut shared = self.0.lock();
        let epoch = LogEpoch(shared.count());
        let log = &mut shared.partitions[usize::from(partition.0)];
        let kept = log.entries.len().saturating_sub(appends);
        log.next = log.entries.get(kept).map_or(log.next, |lost| lost.at.offset);
        log.entries.truncate(kept);
        (log.epoch, log.base) = (epoch, log.next);
        log.places.clear();
        shared.advance(partition.0.into());
    }

    /// Drops all retained records of a partition, as trimming does.
    pub fn trim(&self, partition: Partition) {
        self.0.lock().partitions[usize::from(partition.0)].entries.clear();
    }

    /// Sets whether appends to a partition are refused, as those to one server of a Redis Cluster are.
    pub fn refuse(&self, partition: Partition, is_refused: bool) {
        self.0.lock().partitions[usize::from(partition.0)].is_refused = is_refused;
    }

    /// Sets whether the answers to appends to a partition are lost.
    pub fn lose_answers(&self, partition: Partition, is_unanswered: bool) {
        self.0.lock().partitions[usize::from(partition.0)].is_unanswered = is_unanswered;
    }

    /// Lets a node die: its members leave, and it sends nothing any more.
    pub fn kill(&self, node: NodeId) {
        let mut shared = self.0.lock();
        if let Some(MemoryNode { info, state, .. }) = shared.nodes.remove(&node) {
            state.send_replace(EngineState::Down { since: Instant::now() });
            shared.bury(node, info.incarnation);
            shared.nodes_changed();
        }
    }

    /// Lets a node's lease run out, and gives it a new incarnation.
    pub fn lapse(&self, node: NodeId) {
        let mut shared = self.0.lock();
        let next = Incarnation(shared.count());
        let Some(lapsed) = shared.nodes.get_mut(&node) else { return };
        let last = std::mem::replace(&mut lapsed.info.incarnation, next);
        shared.bury(node, last);
        if let Some(lapsed) = shared.nodes.get(&node) {
            let _ = lapsed.calls.send(NodeCall::Reincarnated(next));
        }
        shared.nodes_changed();
    }

    /// Sets whether a node leaves questions unanswered.
    pub fn mute(&self, node: NodeId, is_mute: bool) {
        if let Some(node) = self.0.lock().nodes.get_mut(&node) {
            node.is_mute = is_mute;
        }
    }

    /// Passes the records of this many appends to a follower in one call, if they wait together, as a server does. At
    /// first each append has a call of its own.
    pub fn join_appends(&self, appends_per_call: usize) {
        self.0.lock().appends_per_call = appends_per_call;
    }

    /// Keeps all messages from a node, as a server does that has dropped the node's subscription.
    pub fn lose_told(&self, node: NodeId) {
        if let Some(node) = self.0.lock().nodes.get_mut(&node) {
            node.missed = Some(0);
        }
    }

    /// The number of messages that a node has missed since [`lose_told`](Self::lose_told).
    pub fn missed(&self, node: NodeId) -> usize {
        self.0.lock().nodes.get(&node).and_then(|node| node.missed).unwrap_or_default()
    }

    /// Passes messages to a node again, which learns that it may have missed some.
    pub fn end_loss(&self, node: NodeId) {
        if let Some(node) = self.0.lock().nodes.get_mut(&node) {
            node.missed = None;
            let _ = node.calls.send(NodeCall::ToldLost);
        }
    }

    /// For how long the keys of the appends to each partition should be remembered, in the order of the appends.
    pub fn ttls(&self) -> Vec<Vec<Duration>> {
        self.0.lock().partitions.iter().map(|log| log.ttls.clone()).collect()
    }

    pub(super) fn incarnation(&self, node: NodeId) -> Incarnation {
        self.0.lock().nodes.get(&node).map_or(Incarnation(0), |node| node.info.incarnation)
    }

    pub(super) fn append(
        &self,
        node: NodeId,
        partition: Partition,
        append: Append,
    ) -> Result<Appended, AppendError> {
        if !append.is_bounded() {
            return Err(AppendError::TooLarge);
        }
        let mut shared = self.0.lock();
        let incarnation = shared.nodes.get(&node).map(|node| node.info.incarnation);
        let incarnation =
            incarnation.filter(|_| shared.down.is_none()).ok_or(AppendError::Unavailable)?;
        let at = usize::from(partition.0);
        if shared.partitions[at].is_refused {
            return Err(AppendError::Unavailable);
        }
        let appended = shared.partitions[at].append((node, incarnation), append);
        shared.advance(at);
        if shared.partitions[at].is_unanswered { Err(AppendError::Unavailable) } else { appended }
    }

    pub(super) fn tell(&self, from: NodeId, message: &Bytes) -> Result<(), Unavailable> {
        let mut shared = self.0.lock();
        let is_alive = shared.nodes.contains_key(&from) && shared.down.is_none();
        if !is_alive || message.len() > MESSAGE_BYTES_MAX {
            return Err(Unavailable);
        }
        for node in shared.nodes.values_mut() {
            match &mut node.missed {
                Some(missed) => *missed += 1,
                None => drop(node.calls.send(NodeCall::Told(from, message.clone()))),
            }
        }
        Ok(())
    }

    /// Asks one node, or all nodes.
    pub(super) fn ask(
        &self,
        from: NodeId,
        to: Option<NodeId>,
        question: &Bytes,
    ) -> Result<Vec<(NodeId, oneshot::Receiver<Bytes>)>, NodeUnanswered> {
        let shared = self.0.lock();
        let is_alive = shared.nodes.contains_key(&from) && shared.down.is_none();
        if !is_alive || question.len() > MESSAGE_BYTES_MAX {
            return Err(NodeUnanswered);
        }
        let asked = shared.nodes.iter().filter(|(id, _)| to.is_none_or(|to| to == **id));
        let asked = asked.map(|(id, node)| {
            let (answer, answered) = oneshot::channel();
            if !node.is_mute {
                let _ = node.calls.send(NodeCall::Asked(from, question.clone(), answer));
            }
            (*id, answered)
        });
        Ok(asked.collect())
    }

    pub(super) fn members(
        &self,
        partition: Partition,
        place: &Bytes,
    ) -> Result<Snapshot, Unavailable> {
        let shared = self.0.lock();
        if shared.down.is_some() {
            return Err(Unavailable);
        }
        let log = &shared.partitions[usize::from(partition.0)];
        let members = log.places.get(place).into_iter().flatten();
        let members = members.map(|((node, incarnation, member), value)| PlaceMember {
            node: *node,
            incarnation: *incarnation,
            member: member.clone(),
            value: value.clone(),
        });
        let at = LogPosition { epoch: log.epoch, offset: log.next };
        Ok(Snapshot { at, members: members.collect() })
    }

    pub(super) fn nodes(&self) -> Arc<[NodeInfo]> {
        self.0.lock().live()
    }

    pub(super) fn describe(&self, node: NodeId, info: Bytes) {
        let mut shared = self.0.lock();
        if let Some(node) = shared.nodes.get_mut(&node) {
            node.info.info = info;
            shared.nodes_changed();
        }
    }

    /// Reads the next part of a partition for a node; `None` if there is none, or during an outage.
    pub(super) fn read(
        &self,
        partition: Partition,
        cursor: &mut ReadCursor,
    ) -> Option<PartitionNews> {
        let shared = self.0.lock();
        if shared.down.is_some() {
            return None;
        }
        shared.partitions[usize::from(partition.0)].read(cursor, shared.appends_per_call)
    }
}
