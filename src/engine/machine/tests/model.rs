//! A Redis in memory: what the scripts do, without their spelling.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use crate::engine::{
    Incarnation, LogEpoch, LogPosition, MemberChange, NodeId, NodeInfo, OnceKey, PlaceMember,
    Snapshot, Terms,
    machine::Push,
    request::{
        Commit, Identity, Instance, LeaseEntry, Life, LineId, LogIndex, LogPlace, LogRequest,
        Outcome, Range, ReadRange, Recipient, Renew, Renewal, Reply, RequestFailure, Segment,
    },
    wire::{self, BatchId, LogMessage},
};

/// The messages that a log retains.
const RETAINED: usize = 40;

/// The messages of one reading.
const READ_AT_ONCE: usize = 7;

/// The nodes to which Redis pushes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    All,
    Node(NodeId),
}

#[derive(Debug, Clone)]
pub(super) struct ModelLog {
    pub(super) state: Option<(LogPlace, Identity)>,
    entries: Vec<(u64, Bytes)>,
    keys: HashMap<Bytes, (LogPosition, Bytes)>,
    /// The lines over which lives may put members, and those from which on they may append.
    live: BTreeMap<(u16, u64), LineId>,
    fences: BTreeMap<(u16, u64), LineId>,
    pub(super) places: BTreeMap<Bytes, BTreeMap<(u16, u64, Bytes), Bytes>>,
}

/// A server. A clone is a replica, which lags as long as it is kept.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) identity: Identity,
    pub(super) logs: Vec<ModelLog>,
    leases: BTreeMap<NodeId, (LeaseEntry, Instance)>,
}

fn key((node, incarnation): Life) -> (u16, u64) {
    (node.0, incarnation.0)
}

impl ModelLog {
    fn new() -> Self {
        let (entries, keys, live, fences, places) = Default::default();
        Self { state: None, entries, keys, live, fences, places }
    }

    fn begin(&mut self, fresh: LogEpoch, identity: Identity) {
        let (next, last) =
            self.state.as_ref().map_or((1, BatchId::NONE), |(place, _)| (place.next, place.last));
        if self.state.is_none() {
            self.entries.clear();
        }
        self.state = Some((LogPlace { epoch: fresh, base: next, next, last }, identity));
        self.live.clear();
        self.places.clear();
    }

    fn open(&mut self, identity: &Identity, fresh: LogEpoch) {
        if self.state.as_ref().is_none_or(|(_, of)| of != identity) {
            self.begin(fresh, identity.clone());
        }
    }

    fn append(&mut self, batch: &[u8], count: u32) -> Option<Bytes> {
        let (place, _) = self.state.as_mut()?;
        let at = LogPosition { epoch: place.epoch, offset: place.next };
        let message = wire::message(at, count, place.last, batch);
        place.last = LogMessage::decode(message.clone())?.id;
        place.next += u64::from(count);
        self.entries.push((at.offset, message.clone()));
        if self.entries.len() > RETAINED {
            self.entries.remove(0);
        }
        Some(message)
    }

    fn commit(&mut self, commit: Commit) -> Option<(Reply, Option<Bytes>)> {
        let (place, _) = self.state.clone()?;
        let life = key(commit.life);
        let may_change = self.live.get(&life) == Some(&commit.line);
        let fence = self.live.get(&life).or(self.fences.get(&life));
        if !may_change && fence.is_some_and(|fence| *fence > commit.line) {
            return None;
        }
        let (mut batch, mut count, mut outcomes) = (commit.head.to_vec(), 0, Vec::new());
        for Segment { count: records, records: bytes, terms } in commit.segments {
            let offset = place.next + u64::from(count);
            let outcome = match terms {
                Terms::None => Outcome::At(offset),
                Terms::Once(OnceKey { id, note, .. }) => match self.keys.get(&id) {
                    Some((at, note)) => Outcome::Repeated { at: *at, note: note.clone() },
                    None => {
                        self.keys.insert(id, (LogPosition { epoch: place.epoch, offset }, note));
                        Outcome::At(offset)
                    }
                },
                _ if !may_change => Outcome::Lapsed,
                Terms::Member(MemberChange::Put { place, member, value, members_max }) => {
                    let members = self.places.entry(place).or_default();
                    let name = (life.0, life.1, member);
                    if !members.contains_key(&name) && members.len() >= members_max as usize {
                        Outcome::Full
                    } else {
                        members.insert(name, value);
                        Outcome::At(offset)
                    }
                }
                Terms::Member(MemberChange::Remove { place, member }) => {
                    if let Some(members) = self.places.get_mut(&place) {
                        members.remove(&(life.0, life.1, member));
                    }
                    Outcome::At(offset)
                }
            };
            if let Outcome::At(_) = outcome {
                batch.extend_from_slice(&bytes);
                count += records;
            }
            outcomes.push(outcome);
        }
        let message = if count > 0 { self.append(&batch, count) } else { None };
        Some((Reply::Committed { epoch: place.epoch, outcomes }, message))
    }

    fn read(&self, from: Option<u64>) -> Option<Reply> {
        let (place, _) = self.state.clone()?;
        let from = from.unwrap_or(u64::MAX);
        let found: Vec<_> = self.entries.iter().filter(|(first, _)| *first >= from).collect();
        let before = self.entries.iter().rev().find(|(first, _)| *first < from);
        let before = before.filter(|_| from != u64::MAX).map(|(_, message)| message.clone());
        let has_more = found.len() > READ_AT_ONCE;
        let messages = found.into_iter().take(READ_AT_ONCE).map(|(_, message)| message.clone());
        Some(Reply::Read(Range { place, before, has_more, messages: messages.collect() }))
    }

    fn bury(&mut self, life: Life, leaver: &Bytes) -> Option<Bytes> {
        let mut had_any = false;
        for members in self.places.values_mut() {
            let before = members.len();
            members.retain(|(node, incarnation, _), _| (*node, *incarnation) != key(life));
            had_any |= members.len() < before;
        }
        let life = key(life);
        if let Some(LineId(line)) = self.live.remove(&life).or(self.fences.get(&life).copied()) {
            self.fences.insert(life, LineId(line + 1));
        }
        if had_any { self.append(leaver, 1) } else { None }
    }
}

impl Model {
    pub(super) fn new(logs: u16, identity: u64) -> Self {
        let logs = (0..logs).map(|_| ModelLog::new()).collect();
        Self { identity: identity_of(identity), logs, leases: BTreeMap::new() }
    }

    /// Carries out a request. Returns the reply, and the pushes with their receivers.
    pub(super) fn handle(
        &mut self,
        log: LogIndex,
        request: LogRequest,
        now_ms: u64,
    ) -> (Result<Reply, RequestFailure>, Option<(Audience, Push)>) {
        let identity = self.identity.clone();
        let of = &mut self.logs[usize::from(log.0)];
        let pushed = |message: Bytes| (Audience::All, Push::Log(log, message));
        let missing = || RequestFailure::Refused {
            text: "the log does not exist".to_owned(),
            is_elsewhere: false,
        };
        let fenced = || RequestFailure::Refused { text: "FENCED".to_owned(), is_elsewhere: true };
        match request {
            LogRequest::Commit(commit) => {
                of.open(&identity, commit.fresh);
                match of.commit(commit) {
                    Some((reply, message)) => (Ok(reply), message.map(pushed)),
                    None => (Err(fenced()), None),
                }
            }
            LogRequest::Read(ReadRange { fresh, from, .. }) => {
                of.open(&identity, fresh);
                (of.read(from).ok_or_else(missing), None)
            }
            LogRequest::Members { place } => (of.members(&place).ok_or_else(missing), None),
            LogRequest::Break { seen, fresh } => {
                if of.state.as_ref().is_some_and(|(place, _)| place.epoch == seen) {
                    of.begin(fresh, identity);
                }
                (Ok(Reply::Done), None)
            }
            LogRequest::Register(life, line) => {
                if of.fences.get(&key(life)).is_none_or(|fence| *fence <= line) {
                    of.fences.insert(key(life), line);
                    of.live.insert(key(life), line);
                }
                (Ok(Reply::Done), None)
            }
            LogRequest::Bury { life, leaver, fresh, .. } => {
                of.open(&identity, fresh);
                (Ok(Reply::Done), of.bury(life, &leaver).map(pushed))
            }
            LogRequest::Renew(renew) => (Ok(self.renew(renew, now_ms)), None),
            LogRequest::Condemn { life, is_forced } => {
                let lease = self.leases.get_mut(&life.0).map(|(lease, _)| lease);
                let lease = lease.filter(|lease| lease.life() == life);
                let is_condemned = lease.is_some_and(|lease| {
                    lease.is_condemned |= is_forced || lease.until_ms <= now_ms;
                    lease.is_condemned
                });
                (Ok(Reply::Condemned(is_condemned)), None)
            }
            LogRequest::Forget(life) => {
                let is_over = |(lease, _): &(LeaseEntry, Instance)| {
                    lease.life() == life && lease.is_condemned
                };
                if self.leases.get(&life.0).is_some_and(is_over) {
                    self.leases.remove(&life.0);
                }
                (Ok(Reply::Done), None)
            }
            LogRequest::Probe { logs, node, nonce } => {
                let places = logs.into_iter().map(|log| {
                    self.logs[usize::from(log.0)].state.as_ref().map(|(place, _)| *place)
                });
                let reply = Reply::Probed(places.collect());
                (Ok(reply), Some((Audience::Node(node), Push::Probe(nonce))))
            }
            LogRequest::Post { to, letter } => {
                let to = match to {
                    Recipient::All => Audience::All,
                    Recipient::Node(node) => Audience::Node(node),
                };
                (Ok(Reply::Done), Some((to, Push::Letter(letter))))
            }
        }
    }

    fn renew(&mut self, renew: Renew, now_ms: u64) -> Reply {
        let Renew { life: (node, incarnation), instance, ttl, is_first, info } = renew;
        let found = self.leases.get(&node);
        let is_same = found.is_some_and(|(lease, _)| lease.info.incarnation == incarnation);
        let outcome = match found {
            Some((_, of)) if *of != instance => Renewal::Taken,
            _ if is_first => Renewal::Held,
            Some((lease, _)) if is_same && !lease.is_condemned => Renewal::Held,
            _ => Renewal::Lapsed,
        };
        if outcome == Renewal::Held {
            let since_ms =
                found.filter(|_| is_same).map_or(now_ms, |(lease, _)| lease.info.since_ms);
            let until_ms = now_ms + ttl.as_millis() as u64;
            let info = NodeInfo { node, incarnation, info, since_ms, seen_ms: now_ms };
            let lease = LeaseEntry { info, until_ms, is_condemned: false };
            self.leases.insert(node, (lease, instance));
        }
        let leases = self.leases.values().map(|(lease, _)| lease.clone()).collect();
        Reply::Renewed { outcome, now_ms, leases }
    }

    /// All members, over all logs.
    pub(super) fn members(&self) -> BTreeSet<(u16, NodeId, Incarnation, Bytes)> {
        let logs = (0..).zip(&self.logs);
        let members = logs.flat_map(|(log, of)| {
            of.places.values().flat_map(move |members| {
                members.keys().map(move |(node, incarnation, member)| {
                    (log, NodeId(*node), Incarnation(*incarnation), member.clone())
                })
            })
        });
        members.collect()
    }
}

impl ModelLog {
    fn members(&self, place: &Bytes) -> Option<Reply> {
        let (at, _) = self.state.clone()?;
        let members = self.places.get(place).into_iter().flatten();
        let members = members.map(|((node, incarnation, member), value)| PlaceMember {
            node: NodeId(*node),
            incarnation: Incarnation(*incarnation),
            member: member.clone(),
            value: value.clone(),
        });
        let at = LogPosition { epoch: at.epoch, offset: at.next };
        Some(Reply::Members(Snapshot { at, members: members.collect() }))
    }
}

pub(super) fn identity_of(number: u64) -> Identity {
    Identity(Bytes::copy_from_slice(&number.to_be_bytes()))
}
