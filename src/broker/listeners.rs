//! Listeners: who on one thread hears one scope, and what each of them is handed.

use std::{cell::Cell, collections::HashMap, sync::Arc, time::Instant};

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

    /// Removes a member; a channel that nobody is left on goes with it.
    pub(super) fn remove(
        &mut self,
        session: SessionId,
        channel: Option<&ChannelName>,
    ) -> Option<Member> {
        let group = match channel {
            None => self.whole.as_mut(),
            Some(channel) => self.channels.get_mut(channel),
        }?;
        let member = group.members.swap_remove(&session);
        if group.members.is_empty() {
            match channel {
                None => self.whole = None,
                Some(channel) => drop(self.channels.remove(channel)),
            }
        }
        member
    }
}

/// Who joined one and the same topic.
pub(super) struct Group {
    pub(super) topic: ByteString,
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
    /// Hands everyone its frame, but those who can be sent none like it; the one at the place
    /// `sampled` is to measure. Who cannot take it is ended by its outbox, and leaves with its session.
    pub(super) fn deliver(
        &self,
        placed: &Placed,
        level: Level,
        sampled: Option<usize>,
        traffic: &Traffic,
    ) {
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

    /// Tells those who know who is there what has changed.
    pub(super) fn announce(&self, announcement: &Announcement, traffic: &Traffic) {
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
