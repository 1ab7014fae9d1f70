//! The members of a scope that several nodes share.
//!
//! A node writes changes among its own members to the log, and a list of all members is kept beside
//! the log, changed in the same step. Every node takes all changes from the log, also its own. When
//! the first session of a node joins a channel, the node reads the list, which has a position in
//! the log, and then takes the changes after this position. All nodes therefore have the same
//! members, whichever of them a client is connected to.
//!
//! For each of its own members the node keeps the state that it should have in the log. A change
//! that the log did not take is written again until the log has it, so that no stale member
//! remains. The node also writes a member again if the log has lost it, or has an earlier state of it: a command of
//! a broken connection may arrive late and undo the newer one.

#[cfg(test)]
mod faulty_engine;
mod own_member;
mod reading;

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use actix::{fut::wrap_future, prelude::*};
use log::warn;

use crate::{
    broker::{
        cluster::{MemberRecord, MemberValue, MembersEntry},
        fanout::{Entered, PlaceLost, WorkerId},
        node::NodeId,
        numbering::scope_bytes,
        presence::Home,
        publication::JsonText,
        subscriber::{Place, ScopeKey, SessionId, SubscribeError},
        topic_name::ChannelName,
        topics::{Topics, place_bytes},
    },
    engine::{
        Append, AppendError, Appended, EngineState, Incarnation, MemberChange, Record, Terms,
    },
};

use super::{EnterChannel, Tracker};

use own_member::{EnteringMember, OwnMember};
use reading::RosterReading;

/// The time after which a change that the log did not take is written again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A change of members was read from the log.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct MembersRead {
    pub(in crate::broker) offset: u64,
    pub(in crate::broker) entry: MembersEntry,
}

/// All members of a node have left, at this position of the log, because its incarnation has ended. Those of its
/// next incarnation come later: the engine lets an incarnation put members only when those of the last one have left.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct MembersLeft {
    pub(in crate::broker) offset: u64,
    pub(in crate::broker) node: NodeId,
}

/// This node has another incarnation: all its members have left, and join again.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct Reincarnated;

/// A part of the log may be missing: all joins of the scope end, and the members are dropped.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct OrderInterrupted;

/// A change that was read from the log.
enum LogChange {
    Member(MemberRecord),
    Left(Home),
}

/// The members of this node, and the channels whose members are being read.
#[derive(Default)]
pub(super) struct SharedMembers {
    own: BTreeMap<OwnKey, OwnMember>,
    /// The number of this node's members on each channel.
    present: HashMap<ChannelName, usize>,
    /// The channels whose members are being read.
    reading: HashMap<ChannelName, RosterReading>,
    /// The number of readings that were begun.
    readings: u64,
    is_retry_due: bool,
}

/// The channel and the session of a member of this node.
type OwnKey = (ChannelName, SessionId);

/// The name of a member in the list: the id of its session.
fn member_name(SessionId(session): SessionId) -> Vec<u8> {
    session.to_be_bytes().to_vec()
}

impl SharedMembers {
    /// Returns whether members of this node are on a channel.
    pub(super) fn hears(&self, channel: &ChannelName) -> bool {
        self.present.contains_key(channel)
    }

    /// The keys that members of this node on a channel may have.
    fn keys_of(channel: &ChannelName) -> RangeInclusive<OwnKey> {
        (channel.clone(), SessionId(u64::MIN))..=(channel.clone(), SessionId(u64::MAX))
    }

    /// Adds a session to a channel, in this state. Returns the pending join that it replaces.
    fn come(
        &mut self,
        channel: ChannelName,
        worker: WorkerId,
        wanted: MemberValue,
        entering: EnteringMember,
    ) -> Option<EnteringMember> {
        let key = (channel, entering.session);
        let is_present = self.own.get(&key).is_some_and(|own| own.wanted.is_some());
        if !is_present {
            *self.present.entry(key.0.clone()).or_default() += 1;
        }
        let new = || OwnMember::new(worker, entering.fanout.clone());
        let own = self.own.entry(key).or_insert_with(new);
        (own.worker, own.fanout) = (worker, entering.fanout.clone());
        // The log must get a join, not an update, so the member counts as not put.
        (own.wanted, own.is_dirty, own.put_at) = (Some(wanted), true, None);
        own.entering.replace(entering)
    }

    /// Removes a session from a channel. Returns `false` if it was not there.
    fn go(&mut self, key: &OwnKey) -> bool {
        let Some(own) = self.own.get_mut(key) else { return false };
        own.entering = None;
        if own.wanted.take().is_none() {
            return false;
        }
        own.is_dirty = true;
        if let Some(present) = self.present.get_mut(&key.0) {
            *present -= 1;
            if *present == 0 {
                self.present.remove(&key.0);
                self.reading.remove(&key.0);
            }
        }
        true
    }

    /// Removes all members of this node from the log, without waiting for the outcome, because this tracker is
    /// about to end.
    pub(super) fn withdraw(self, key: &ScopeKey, topics: &Topics) {
        for (channel, session) in self.own.into_keys() {
            remove(key, &channel, session, topics);
        }
    }
}

/// Removes a member of this node from the log, without waiting for the outcome.
fn remove(key: &ScopeKey, channel: &ChannelName, session: SessionId, topics: &Topics) {
    let Some(cluster) = topics.cluster() else { return };
    let append = append(key, channel, session, None, cluster.engine().incarnation(), 0);
    let deadline = Instant::now() + topics.wait_max();
    drop(cluster.engine().append(cluster.heads().partition_of(key), append, deadline));
}

/// The append that puts a member into this state, or removes it.
fn append(
    key: &ScopeKey,
    channel: &ChannelName,
    session: SessionId,
    wanted: Option<MemberValue>,
    Incarnation(incarnation): Incarnation,
    members_max: u32,
) -> Append {
    let (place, member) = (place_bytes(key, channel).into(), member_name(session).into());
    let change = match &wanted {
        Some(value) => MemberChange::Put { place, member, value: value.write(), members_max },
        None => MemberChange::Remove { place, member },
    };
    let (channel, session) = (channel.to_string(), session.0);
    let body = MemberRecord { channel, session, incarnation, member: wanted }.write();
    let record = Record { scope: scope_bytes(key).into(), body };
    Append { records: vec![record], terms: Terms::Member(change) }
}

impl Tracker {
    fn shared(&mut self) -> Option<&mut SharedMembers> {
        self.shared.as_deref_mut()
    }

    /// Adds a session: once its join is read from the log, it is sent the announced members, and is
    /// announced itself.
    pub(super) fn enter_shared(&mut self, enter: EnterChannel, ctx: &mut Context<Self>) {
        let EnterChannel { worker, fanout, place, session, id, persona, format } = enter;
        // No session is tracked in a whole scope.
        let Some(channel) = place.channel.clone() else { return };
        let reference = self.topics.reference().to_string();
        let value = MemberValue::of(&persona, &reference);
        let entering = EnteringMember { fanout, place, session, id, format, reference };
        let is_up = self.topics.engine_state() == Some(EngineState::Up);
        let (Some(value), Some(shared)) = (value.filter(|_| is_up), self.shared()) else {
            return entering.refuse(SubscribeError::Unavailable);
        };
        // A session waits for one join at a time, so an earlier one is not awaited.
        drop(shared.come(channel.clone(), worker, value, entering));
        if !self.gatherings.contains_key(&channel) {
            self.read_members(&channel, ctx);
        } else if !self.is_reading(&channel) {
            self.write(&channel, session, ctx);
        }
    }

    /// Writes the changes among this node's members of a channel.
    fn write_channel(&mut self, channel: &ChannelName, ctx: &mut Context<Self>) {
        let Some(shared) = self.shared() else { return };
        let of_channel = shared.own.range(SharedMembers::keys_of(channel));
        let dirty = of_channel.filter(|(_, own)| own.is_dirty);
        let dirty: Vec<_> = dirty.map(|((_, session), _)| *session).collect();
        dirty.into_iter().for_each(|session| self.write(channel, session, ctx));
    }

    /// Writes the state of a member of this node, if the log may have another one.
    fn write(&mut self, channel: &ChannelName, session: SessionId, ctx: &mut Context<Self>) {
        let members_max = u32::try_from(self.topics.limits().presence_members_max);
        let (key, topics) = (self.key.clone(), self.topics.clone());
        let Some(cluster) = topics.cluster() else { return };
        let Some(shared) = self.shared() else { return };
        let Some(own) = shared.own.get_mut(&(channel.clone(), session)) else { return };
        if own.is_under_way || !own.is_dirty {
            return;
        }
        (own.is_under_way, own.is_dirty) = (true, false);
        let mut wanted = own.wanted.clone();
        if let Some(value) = &mut wanted {
            value.is_update = own.put_at.is_some();
            own.may_be_logged = true;
        }
        let is_put = wanted.is_some();
        let engine = cluster.engine();
        let members_max = members_max.unwrap_or(u32::MAX);
        let append = append(&key, channel, session, wanted, engine.incarnation(), members_max);
        let deadline = Instant::now() + topics.wait_max();
        let appended = engine.append(cluster.heads().partition_of(&key), append, deadline);
        let channel = channel.clone();
        ctx.spawn(wrap_future::<_, Self>(appended).map(move |appended, tracker, ctx| {
            tracker.appended(channel, session, is_put, appended, ctx);
        }));
    }

    fn appended(
        &mut self,
        channel: ChannelName,
        session: SessionId,
        is_put: bool,
        appended: Result<Appended, AppendError>,
        ctx: &mut Context<Self>,
    ) {
        let key = (channel, session);
        let Some(shared) = self.shared() else { return };
        let Some(own) = shared.own.get_mut(&key) else { return };
        own.is_under_way = false;
        match appended {
            Ok(Appended::At(at) | Appended::Repeated { at, .. }) => {
                own.taken(is_put, at.offset);
            }
            Err(AppendError::PlaceFull) if !own.is_dirty => return self.place_full(&key, ctx),
            Err(AppendError::PlaceFull) => {}
            Err(AppendError::TooLarge) => {
                warn!("a member is refused because its data is larger than the engine's limit");
                own.refuse(SubscribeError::Unavailable);
            }
            Err(AppendError::Unavailable | AppendError::Lapsed) => {
                own.is_dirty = true;
                own.refuse(SubscribeError::Unavailable);
                return self.retry_later(ctx);
            }
        }
        if own.is_dirty {
            self.write(&key.0, session, ctx);
        } else if own.wanted.is_none() {
            shared.own.remove(&key);
        }
    }

    /// Drops a member for which the channel has no place. If its join waits, the join is refused. Otherwise the
    /// member had a place before, for example until this node's lease expired: its session ends the join, so that
    /// the client joins again and is told that the channel is full.
    fn place_full(&mut self, key: &OwnKey, ctx: &mut Context<Self>) {
        let Some(shared) = self.shared.as_deref_mut() else { return };
        let entering = shared.own.get_mut(key).and_then(|own| own.entering.take());
        shared.go(key);
        let Some(own) = shared.own.remove(key) else { return };
        let (channel, session) = key.clone();
        match entering {
            Some(entering) => entering.refuse(SubscribeError::TooManyMembers),
            None => {
                let place = Place { key: self.key.clone(), channel: Some(channel) };
                own.fanout.do_send(PlaceLost { place, session });
            }
        }
        self.announce_if_due(&key.0, ctx);
    }

    /// Schedules another attempt to write the changes that the log did not take.
    fn retry_later(&mut self, ctx: &mut Context<Self>) {
        let Some(shared) = self.shared() else { return };
        if shared.is_retry_due {
            return;
        }
        shared.is_retry_due = true;
        ctx.run_later(RETRY_INTERVAL, |tracker, ctx| {
            let Some(shared) = tracker.shared() else { return };
            shared.is_retry_due = false;
            // While the members of a channel are being read, joins wait.
            let is_due = |((channel, _), own): &(&OwnKey, &OwnMember)| {
                let waits = own.wanted.is_some() && shared.reading.contains_key(channel);
                own.is_dirty && !own.is_under_way && !waits
            };
            let due: Vec<_> =
                shared.own.iter().filter(is_due).map(|(key, _)| key.clone()).collect();
            for (channel, session) in due {
                tracker.write(&channel, session, ctx);
            }
        });
    }

    pub(super) fn leave_shared(
        &mut self,
        channel: &ChannelName,
        session: SessionId,
        ctx: &mut Context<Self>,
    ) {
        let key = (channel.clone(), session);
        let Some(shared) = self.shared() else { return };
        if !shared.go(&key) {
            return;
        }
        if shared.own.get(&key).is_some_and(|own| own.may_be_logged) {
            self.write(channel, session, ctx);
        } else {
            shared.own.remove(&key);
        }
        self.announce_if_due(channel, ctx);
    }

    pub(super) fn lose_shared(&mut self, worker: WorkerId, ctx: &mut Context<Self>) {
        let Some(shared) = self.shared() else { return };
        let lost = shared.own.iter().filter(|(_, own)| own.worker == worker);
        let lost: Vec<_> = lost.map(|(key, _)| key.clone()).collect();
        for (channel, session) in lost {
            self.leave_shared(&channel, session, ctx);
        }
    }

    pub(super) fn update_shared(
        &mut self,
        channel: &ChannelName,
        session: SessionId,
        custom: &JsonText,
        ctx: &mut Context<Self>,
    ) {
        let reference = self.topics.reference().to_string();
        let is_reading = self.is_reading(channel);
        let Some(shared) = self.shared() else { return };
        let Some(own) = shared.own.get_mut(&(channel.clone(), session)) else { return };
        let Some(value) = &mut own.wanted else { return };
        value.say(custom, &reference);
        own.is_dirty = true;
        // A join that has not been written yet is written with the new data.
        if let Some(entering) = own.entering.as_mut().filter(|_| !own.is_under_way) {
            entering.reference = reference;
        }
        if !is_reading {
            self.write(channel, session, ctx);
        }
    }

    /// Takes a change that was read from the log.
    fn take(&mut self, channel: &ChannelName, change: LogChange) {
        let Some(gathering) = self.gatherings.get_mut(channel) else { return };
        let record = match change {
            LogChange::Left(home) => return gathering.presence.untrack_home(home),
            LogChange::Member(record) => record,
        };
        let session = SessionId(record.session);
        let Some(value) = record.member else {
            return gathering.presence.untrack(session);
        };
        let own =
            self.shared.as_mut().and_then(|shared| shared.own.get_mut(&(channel.clone(), session)));
        let is_meant = |entering: &mut EnteringMember| entering.reference == value.reference;
        if let Some(entering) = own.and_then(|own| own.entering.take_if(is_meant)) {
            let EnteringMember { fanout, place, session, id, format, .. } = entering;
            let members = Ok(gathering.spelled(format));
            fanout.do_send(Entered { place, session, id, members });
        }
        let Some(persona) = value.persona() else { return };
        let (home, reference) = (Home::Node(session.node()), value.reference.clone().into());
        match persona.meta.custom.clone() {
            // An update of an existing member changes only its custom data. A member that had left with its
            // node's last incarnation joins instead.
            Some(custom) if value.is_update && gathering.presence.has(session) => {
                gathering.presence.update(session, custom, reference);
            }
            // The limit does not apply here: the log has refused members beyond it.
            _ => drop(gathering.presence.track(session, home, persona, reference)),
        }
    }

    /// Takes notice of a change of a member of this node that was read from the log. If it is not the one that this
    /// tracker has written last, the state that the member should have is written again: after a short outage of
    /// the log, an earlier tracker of the scope may write the removal of a session that has joined again with this
    /// one, and a command of the broken connection may arrive late.
    fn mend_own(&mut self, offset: u64, record: &MemberRecord, ctx: &mut Context<Self>) {
        let (Some(shared), Some(cluster)) = (self.shared.as_deref_mut(), self.topics.cluster())
        else {
            return;
        };
        let Ok(channel) = ChannelName::parse(&record.channel) else { return };
        let (channel, session) = (&channel, SessionId(record.session));
        match shared.own.get_mut(&(channel.clone(), session)) {
            Some(own) => {
                if own.changed(offset) {
                    self.write(channel, session, ctx);
                }
            }
            None => {
                let is_of_this_life = record.incarnation == cluster.engine().incarnation().0;
                if record.member.is_some() && is_of_this_life {
                    remove(&self.key, channel, session, &self.topics);
                }
            }
        }
    }

    /// Takes a change of a channel now, or once the members of the channel have been read.
    fn take_or_keep(
        &mut self,
        channel: &ChannelName,
        offset: u64,
        change: LogChange,
        ctx: &mut Context<Self>,
    ) {
        let reading = self.shared.as_mut().and_then(|shared| shared.reading.get_mut(channel));
        if let Some(reading) = reading {
            return reading.keep(offset, change);
        }
        self.take(channel, change);
        self.announce_if_due(channel, ctx);
    }
}

impl Handler<MembersRead> for Tracker {
    type Result = ();

    fn handle(&mut self, MembersRead { offset, entry }: MembersRead, ctx: &mut Self::Context) {
        let Some(record) = entry.read() else { return };
        if SessionId(record.session).node() == self.topics.node() {
            self.mend_own(offset, &record, ctx);
        }
        // Changes of a channel without subscribers on this node are ignored.
        let known = self.gatherings.get_key_value(record.channel.as_str());
        let Some(channel) = known.map(|(channel, _)| channel.clone()) else { return };
        self.take_or_keep(&channel, offset, LogChange::Member(record), ctx);
    }
}

impl Handler<MembersLeft> for Tracker {
    type Result = ();

    fn handle(&mut self, left: MembersLeft, ctx: &mut Self::Context) {
        let MembersLeft { offset, node } = left;
        let home = Home::Node(node);
        let channels: Vec<_> = self.gatherings.keys().cloned().collect();
        for channel in channels {
            self.take_or_keep(&channel, offset, LogChange::Left(home), ctx);
        }
    }
}

impl Handler<Reincarnated> for Tracker {
    type Result = ();

    /// The members get new references, because clients may be told in one message that a member has left and
    /// that it has joined.
    fn handle(&mut self, _: Reincarnated, ctx: &mut Self::Context) {
        let Some(shared) = self.shared.as_deref_mut() else { return };
        for own in shared.own.values_mut() {
            own.put_anew(|| self.topics.reference());
        }
        let channels: Vec<_> = shared.present.keys().cloned().collect();
        for channel in channels {
            if !self.is_reading(&channel) {
                self.write_channel(&channel, ctx);
            }
        }
    }
}

impl Handler<OrderInterrupted> for Tracker {
    type Result = ();

    /// Drops all members but those of this node, which stay until their sessions leave. That is soon, because
    /// their joins end.
    fn handle(&mut self, _: OrderInterrupted, _: &mut Self::Context) {
        self.gatherings.clear();
        let Some(shared) = self.shared() else { return };
        shared.reading.clear();
        for own in shared.own.values_mut() {
            own.refuse(SubscribeError::Unavailable);
            // The log may have another numbering from here on.
            own.forget_offsets();
        }
    }
}

#[cfg(test)]
mod tests;
