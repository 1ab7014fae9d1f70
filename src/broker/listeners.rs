//! Listeners: who on one thread hears one scope, and what each of them is handed.

use std::{cell::Cell, collections::HashMap, iter, sync::Arc, time::Instant};

use bytestring::ByteString;
use indexmap::IndexMap;

use crate::metrics::{SAMPLE_INTERVAL, apps::Traffic};

use super::{
    announcement::Announcement,
    outbox::Outbox,
    placed::{Level, Placed},
    position::StreamPosition,
    recovery::Wanted,
    stream::Stream,
    subscriber::{Format, Frame, SessionId, SubscriptionId},
    topic_name::ChannelName,
};

/// The listeners of one scope on one thread, from the first one that comes to the last one that leaves.
pub(super) struct Listeners {
    pub(super) stream: Arc<Stream>,
    /// The newest publication that they were handed, or that came before the first of them.
    heard: Cell<StreamPosition>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) whole: Option<Group>,
    pub(super) channels: HashMap<ChannelName, Group>,
}

impl Listeners {
    /// There are none yet; they will be handed everything after `head`.
    pub(super) fn new(stream: Arc<Stream>, head: StreamPosition, traffic: Arc<Traffic>) -> Self {
        Self { stream, heard: Cell::new(head), traffic, whole: None, channels: HashMap::new() }
    }

    /// The newest publication that they were handed, or that came before the first of them.
    pub(super) fn heard(&self) -> StreamPosition {
        self.heard.get()
    }

    /// Notes that they are handed a publication; `false` if it is not for them. One that was on its
    /// way to earlier listeners of this thread, who have left, came before the first of these, or
    /// belongs to an order that was forgotten.
    pub(super) fn hear(&self, position: StreamPosition) -> bool {
        let heard = self.heard.get();
        let is_next = position.epoch == heard.epoch && position.offset > heard.offset;
        if is_next {
            self.heard.set(position);
        }
        is_next
    }

    /// Whether nobody listens, or is about to.
    pub(super) fn is_empty(&self) -> bool {
        self.whole.is_none() && self.channels.is_empty()
    }

    /// The members of a place: of a channel, or of the scope as a whole. `topic` names it if there are
    /// none yet.
    pub(super) fn group_mut(
        &mut self,
        channel: Option<&ChannelName>,
        topic: &ByteString,
    ) -> &mut Group {
        let new_group = || Group::new(topic.clone());
        match channel {
            None => self.whole.get_or_insert_with(new_group),
            Some(channel) => self.channels.entry(channel.clone()).or_insert_with(new_group),
        }
    }

    /// The members of a place, if there are any.
    pub(super) fn group(&mut self, channel: Option<&ChannelName>) -> Option<&mut Group> {
        match channel {
            None => self.whole.as_mut(),
            Some(channel) => self.channels.get_mut(channel),
        }
    }

    /// Removes what a session joined at a place under this id, or all that it joined there. A
    /// channel without members is forgotten.
    pub(super) fn remove(
        &mut self,
        channel: Option<&ChannelName>,
        session: SessionId,
        id: Option<SubscriptionId>,
    ) -> Departure {
        let Some(group) = self.group(channel) else { return Departure::Absent };
        let departure = group.remove(session, id);
        if group.is_deserted() {
            match channel {
                None => self.whole = None,
                Some(channel) => drop(self.channels.remove(channel)),
            }
        }
        departure
    }
}

/// What removing a session from a place has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// There was nothing to remove.
    Absent,
    /// The session was not tracked there, or is tracked still under another name of the place.
    Left,
    /// The session was tracked there and is tracked no longer.
    LeftPresence,
}

/// The members of one place: a channel, or a scope as a whole.
///
/// They may call it by different names, and each is sent frames with the name that it joined. All
/// but a few groups have one name only, for which nothing is kept outside of this struct.
pub(super) struct Group {
    first: Naming,
    others: Vec<Naming>,
    /// Sessions that the tracker of the scope is asked for, each with the name that it joins. One
    /// that is a member already stays one meanwhile: its client may keep changes that it is told for
    /// after the answer, so none may be missing.
    entering: HashMap<SessionId, Entering>,
}

/// A session that the tracker is asked for.
struct Entering {
    topic: ByteString,
    member: Member,
    wanted: Option<Wanted>,
}

/// A session that the tracker has taken in.
pub(super) struct TakenIn {
    pub(super) topic: ByteString,
    pub(super) format: Format,
    /// The offset behind which it is handed everything.
    pub(super) attached: u64,
    pub(super) wanted: Option<Wanted>,
}

/// The members of one place who call it by the same name.
pub(super) struct Naming {
    topic: ByteString,
    members: IndexMap<SessionId, Member>,
}

/// One subscriber of a topic.
pub(super) struct Member {
    pub(super) outbox: Arc<Outbox>,
    pub(super) id: SubscriptionId,
    pub(super) format: Format,
    /// The offset behind which it has been handed everything, by whatever join it came. It is handed
    /// nothing up to there.
    pub(super) attached: u64,
    /// Whether it is among the members of the channel that are known to each other.
    pub(super) is_tracked: bool,
}

impl Group {
    fn new(topic: ByteString) -> Self {
        Self { first: Naming::new(topic), others: Vec::new(), entering: HashMap::new() }
    }

    /// How many members there are. A session counts once for each name by which it joined.
    pub(super) fn len(&self) -> usize {
        self.namings().map(|naming| naming.members.len()).sum()
    }

    /// Whether it has no members, and nobody is about to be one.
    fn is_deserted(&self) -> bool {
        self.entering.is_empty() && self.namings().all(|naming| naming.members.is_empty())
    }

    fn namings(&self) -> impl Iterator<Item = &Naming> {
        iter::once(&self.first).chain(&self.others)
    }

    fn naming_mut(&mut self, topic: ByteString) -> &mut Naming {
        if self.first.topic == topic {
            return &mut self.first;
        }
        let known = self.others.iter().position(|naming| naming.topic == topic);
        let at = known.unwrap_or_else(|| {
            self.others.push(Naming::new(topic));
            self.others.len() - 1
        });
        &mut self.others[at]
    }

    /// Makes a session a member under this name; `true` if it was none.
    pub(super) fn join(
        &mut self,
        session: SessionId,
        topic: ByteString,
        mut member: Member,
    ) -> bool {
        let members = &mut self.naming_mut(topic).members;
        let before = members.get(&session).map(|before| before.attached);
        member.attached = before.unwrap_or(member.attached);
        members.insert(session, member);
        before.is_none()
    }

    /// The offset behind which a session has been handed everything under this name.
    pub(super) fn attached(&self, session: SessionId, topic: &ByteString) -> Option<u64> {
        let naming = self.namings().find(|naming| naming.topic == *topic)?;
        naming.members.get(&session).map(|member| member.attached)
    }

    /// Notes the offset behind which a session has been handed everything under this name.
    pub(super) fn set_attached(&mut self, session: SessionId, topic: &ByteString, attached: u64) {
        let mut namings = iter::once(&mut self.first).chain(&mut self.others);
        let naming = namings.find(|naming| naming.topic == *topic);
        if let Some(member) = naming.and_then(|naming| naming.members.get_mut(&session)) {
            member.attached = attached;
        }
    }

    /// Notes that the tracker is asked for a session; `true` if it was no member under this name.
    pub(super) fn expect(
        &mut self,
        session: SessionId,
        topic: ByteString,
        member: Member,
        wanted: Option<Wanted>,
    ) -> bool {
        let is_member = self.attached(session, &topic).is_some();
        let entering = Entering { topic: topic.clone(), member, wanted };
        let before = self.entering.insert(session, entering);
        !is_member && before.is_none_or(|expected| expected.topic != topic)
    }

    /// The outbox of a session that waits for the tracker's answer to this join.
    pub(super) fn expected(&self, session: SessionId, id: SubscriptionId) -> Option<Arc<Outbox>> {
        let Entering { member, .. } = self.entering.get(&session)?;
        (member.id == id).then(|| member.outbox.clone())
    }

    /// Makes a session that waited for the tracker's answer a member, which is handed everything
    /// behind this offset unless it was a member before.
    pub(super) fn take_in(&mut self, session: SessionId, boundary: u64) -> Option<TakenIn> {
        let Entering { topic, mut member, wanted } = self.entering.remove(&session)?;
        let attached = self.attached(session, &topic).unwrap_or(boundary);
        let format = member.format;
        member.attached = attached;
        self.join(session, topic.clone(), member);
        Some(TakenIn { topic, format, attached, wanted })
    }

    /// The sessions that are tracked, or about to be.
    pub(super) fn tracked(&self) -> impl Iterator<Item = &Outbox> {
        let members = self.namings().flat_map(|naming| naming.members.values());
        let members = members.chain(self.entering.values().map(|entering| &entering.member));
        members.filter(|member| member.is_tracked).map(|member| &*member.outbox)
    }

    fn remove(&mut self, session: SessionId, id: Option<SubscriptionId>) -> Departure {
        let is_meant = |member: &Member| id.is_none_or(|id| member.id == id);
        let (len, was_tracked) = (self.len() + self.entering.len(), self.tracks(session));
        if self.entering.get(&session).is_some_and(|entering| is_meant(&entering.member)) {
            self.entering.remove(&session);
        }
        for naming in iter::once(&mut self.first).chain(&mut self.others) {
            if naming.members.get(&session).is_some_and(is_meant) {
                naming.members.swap_remove(&session);
            }
        }
        if self.len() + self.entering.len() == len {
            return Departure::Absent;
        }
        self.others.retain(|naming| !naming.members.is_empty());
        if self.first.members.is_empty()
            && let Some(naming) = self.others.pop()
        {
            self.first = naming;
        }
        match was_tracked && !self.tracks(session) {
            true => Departure::LeftPresence,
            false => Departure::Left,
        }
    }

    fn tracks(&self, session: SessionId) -> bool {
        let mut members = self.namings().filter_map(|naming| naming.members.get(&session));
        self.entering.contains_key(&session) || members.any(|member| member.is_tracked)
    }

    /// Delivers a publication to all members; the one at the position `sampled` measures how long
    /// that takes.
    pub(super) fn deliver(
        &self,
        placed: &Placed,
        level: Level,
        mut sampled: Option<usize>,
        traffic: &Traffic,
    ) {
        for naming in self.namings() {
            naming.deliver(placed, level, sampled, traffic);
            sampled = sampled.and_then(|nth| nth.checked_sub(naming.members.len()));
        }
    }

    /// Tells the tracked members what has changed among them.
    pub(super) fn announce(&self, announcement: &Announcement, traffic: &Traffic) {
        self.namings().for_each(|naming| naming.announce(announcement, traffic));
    }
}

impl Naming {
    fn new(topic: ByteString) -> Self {
        Self { topic, members: IndexMap::new() }
    }

    /// Delivers the frame that names this topic to every member whose format can carry it. A member
    /// whose outbox cannot take it is ended by the outbox, and leaves with its session.
    fn deliver(&self, placed: &Placed, level: Level, sampled: Option<usize>, traffic: &Traffic) {
        let mut frames: [Option<Option<Frame>>; Format::COUNT] = Default::default();
        let (mut delivered, mut bytes, mut skipped) = (0, 0, 0);
        let is_followed = placed.is_bytes();
        let mut position = None;
        let mut position_of = |format: Format| {
            format.encode_position?;
            position.get_or_insert_with(|| placed.position_frame(format, &self.topic)).clone()
        };
        let offset = placed.position().offset;
        for (nth, member) in self.members.values().enumerate() {
            if offset <= member.attached {
                // Its client knows this from another thread, which was ahead.
                continue;
            }
            let spell = || placed.frame(member.format, level, &self.topic);
            let frame = match placed.suits(member.format) {
                true => frames[member.format.index()].get_or_insert_with(spell).as_ref(),
                false => None,
            };
            let Some(frame) = frame else {
                skipped += 1;
                continue;
            };
            let published = (sampled == Some(nth)).then(|| placed.taken_at());
            if member.outbox.deliver(frame, member.id, published) {
                delivered += 1;
                bytes += frame.size_bytes() as u64;
                if is_followed && let Some(position) = position_of(member.format) {
                    member.outbox.deliver(&position, member.id, None);
                }
            }
        }
        // Once for all: what many threads add to must not be touched for each subscriber.
        traffic.delivered(delivered, bytes);
        if skipped > 0 {
            traffic.skipped(skipped as u64);
            placed.skip(skipped);
        }
    }

    fn announce(&self, announcement: &Announcement, traffic: &Traffic) {
        let mut frames: [Option<Frame>; Format::COUNT] = Default::default();
        let (mut delivered, mut bytes) = (0, 0);
        for member in self.members.values() {
            if !member.is_tracked {
                continue;
            }
            let spell = || announcement.frame(member.format, &self.topic);
            let frame = frames[member.format.index()].get_or_insert_with(spell);
            if member.outbox.deliver(frame, member.id, None) {
                delivered += 1;
                bytes += frame.size_bytes() as u64;
            }
        }
        traffic.delivered(delivered, bytes);
    }
}

/// Says when to measure, and whom.
#[derive(Default)]
pub(super) struct Sampler {
    last: Cell<Option<Instant>>,
    turns: Cell<usize>,
}

impl Sampler {
    /// Whose turn it is, if it is time for another; nobody reads a clock for it.
    pub(super) fn turn(&self, now: Instant) -> Option<usize> {
        let is_early = |last| now.saturating_duration_since(last) < SAMPLE_INTERVAL;
        if self.last.get().is_some_and(is_early) {
            return None;
        }
        self.last.set(Some(now));
        Some(self.turns.replace(self.turns.get().wrapping_add(1)))
    }
}
