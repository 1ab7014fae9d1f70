//! Listeners: who on one thread hears one scope, and what each of them is handed.

use std::{cell::Cell, collections::HashMap, iter, sync::Arc, time::Instant};

use bytestring::ByteString;
use indexmap::IndexMap;

use crate::metrics::{SAMPLE_INTERVAL, apps::Traffic};

use super::{
    announcement::Announcement,
    outbox::Outbox,
    placed::{Level, Placed},
    presence::Persona,
    subscriber::{Format, Frame, SessionId, SubscriptionId},
    topic_name::ChannelName,
};

/// The listeners of a scope on one thread, from the first who comes to the last who leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListenersId(pub(super) u64);

/// Who listens to one scope.
pub(super) struct Listeners {
    pub(super) id: ListenersId,
    /// Whether their topic hands this thread all that is published. Those who come where nobody was
    /// left would otherwise hear the last of what was meant for others, and then miss what was
    /// published until the topic knew of them.
    pub(super) is_open: bool,
    pub(super) traffic: Arc<Traffic>,
    pub(super) whole: Option<Group>,
    pub(super) channels: HashMap<ChannelName, Group>,
}

impl Listeners {
    /// Nobody yet.
    pub(super) fn new(id: ListenersId, traffic: Arc<Traffic>, is_open: bool) -> Self {
        Self { id, is_open, traffic, whole: None, channels: HashMap::new() }
    }

    /// The members of a place that call it `topic`: of a channel, or of the scope as a whole.
    pub(super) fn naming_mut(
        &mut self,
        channel: Option<&ChannelName>,
        topic: ByteString,
    ) -> &mut Naming {
        let new_group = || Group::new(topic.clone());
        let group = match channel {
            None => self.whole.get_or_insert_with(new_group),
            Some(channel) => self.channels.entry(channel.clone()).or_insert_with(new_group),
        };
        group.naming_mut(topic)
    }

    /// Removes what a session joined at a place under this id, or all that it joined there. A
    /// channel without members is forgotten.
    pub(super) fn remove(
        &mut self,
        channel: Option<&ChannelName>,
        session: SessionId,
        id: Option<SubscriptionId>,
    ) -> Departure {
        let group = match channel {
            None => self.whole.as_mut(),
            Some(channel) => self.channels.get_mut(channel),
        };
        let Some(group) = group else { return Departure::Absent };
        let departure = group.remove(session, id);
        if group.is_empty() {
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
}

/// The members of one place who call it by the same name.
pub(super) struct Naming {
    topic: ByteString,
    pub(super) members: IndexMap<SessionId, Member>,
}

/// One subscriber of a topic.
pub(super) struct Member {
    pub(super) outbox: Arc<Outbox>,
    pub(super) id: SubscriptionId,
    pub(super) format: Format,
    pub(super) tracking: Tracking,
}

impl Group {
    fn new(topic: ByteString) -> Self {
        Self { first: Naming::new(topic), others: Vec::new() }
    }

    /// How many members there are. A session counts once for each name by which it joined.
    pub(super) fn len(&self) -> usize {
        self.namings().map(|naming| naming.members.len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.namings().all(|naming| naming.members.is_empty())
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

    /// What a session joined under this id.
    pub(super) fn member_mut(
        &mut self,
        session: SessionId,
        id: SubscriptionId,
    ) -> Option<&mut Member> {
        let namings = iter::once(&mut self.first).chain(&mut self.others);
        let mut members = namings.filter_map(|naming| naming.members.get_mut(&session));
        members.find(|member| member.id == id)
    }

    fn remove(&mut self, session: SessionId, id: Option<SubscriptionId>) -> Departure {
        let (len, was_tracked) = (self.len(), self.tracks(session));
        for naming in iter::once(&mut self.first).chain(&mut self.others) {
            let member = naming.members.get(&session);
            if member.is_some_and(|member| id.is_none_or(|id| member.id == id)) {
                naming.members.swap_remove(&session);
            }
        }
        if self.len() == len {
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
        members.any(|member| member.tracking != Tracking::Untracked)
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

    /// Tells the members who know who is there what has changed.
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
        for (nth, member) in self.members.values().enumerate() {
            let spell = || placed.frame(member.format, level, &self.topic);
            let frame = match placed.suits(member.format) {
                true => frames[member.format.slot].get_or_insert_with(spell).as_ref(),
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
            if member.tracking != Tracking::Introduced {
                continue;
            }
            let spell = || announcement.frame(member.format, &self.topic);
            let frame = frames[member.format.slot].get_or_insert_with(spell);
            if member.outbox.deliver(frame, member.id, None) {
                delivered += 1;
                bytes += frame.size_bytes() as u64;
            }
        }
        traffic.delivered(delivered, bytes);
    }
}

/// Whether a member is itself among those who are there, and knows the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tracking {
    /// Presence is nothing to it.
    Untracked,
    /// It has yet to be told who is there. Until then it is told no changes.
    Expected,
    /// It has been told.
    Introduced,
}

impl Tracking {
    /// That of a member that joins, and may have joined before.
    ///
    /// Who joins anew goes on hearing changes until it is told again who is there: its client may
    /// keep some that it has heard already for after that, and would undo what is missing between.
    pub(super) fn of(persona: Option<&Persona>, before: Option<&Member>) -> Self {
        match (persona, before.map(|member| member.tracking)) {
            (None, _) => Self::Untracked,
            (Some(_), Some(Self::Introduced)) => Self::Introduced,
            (Some(_), _) => Self::Expected,
        }
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
