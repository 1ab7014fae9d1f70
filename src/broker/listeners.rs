//! The subscribers of one scope on one thread, and the delivery of publications to them.

use std::{
    cell::Cell,
    collections::HashMap,
    iter,
    ops::{AddAssign, Range},
    sync::Arc,
    task::Waker,
    time::Instant,
};

use bytestring::ByteString;
use indexmap::{IndexMap, map::Slice};

use crate::{
    app::visitor::ShownSub,
    metrics::{SAMPLE_INTERVAL, apps::Traffic, usage::AppUsage},
};

use super::{
    announcement::Announcement,
    backlog::Backlog,
    growth,
    outbox::Outbox,
    placed::{Level, Placed},
    position::StreamPosition,
    recovery::Wanted,
    stream::Stream,
    subscriber::{ChangeFrame, Encoders, Format, Frame, Place, SessionId, SubscriptionId},
    topic_name::ChannelName,
};

/// The subscribers of one scope on one thread. It exists from the first subscriber to the last one.
pub(super) struct ScopeSubscribers {
    pub(super) stream: Arc<Stream>,
    /// The position of the newest publication that was delivered to the subscribers; before the first
    /// delivery, the position after which they are sent publications.
    heard: Cell<StreamPosition>,
    pub(super) counted: DeliveryCounters,
    pub(super) whole: Option<Group>,
    pub(super) channels: HashMap<ChannelName, Group>,
}

/// The counters of an app's deliveries.
pub(super) struct DeliveryCounters {
    pub(super) traffic: Arc<Traffic>,
    pub(super) usage: Arc<AppUsage>,
}

impl ScopeSubscribers {
    /// A scope without subscribers, which will receive all publications after `head`.
    pub(super) fn new(
        stream: Arc<Stream>,
        head: StreamPosition,
        counted: DeliveryCounters,
    ) -> Self {
        Self { stream, heard: Cell::new(head), counted, whole: None, channels: HashMap::new() }
    }

    /// The position of the newest publication that was delivered to the subscribers; before the first
    /// delivery, the position after which they are sent publications.
    pub(super) fn heard(&self) -> StreamPosition {
        self.heard.get()
    }

    /// Notes that a publication is about to be delivered. Returns `false` if it must not be: it was on its way
    /// to earlier subscribers of this thread, which have left, or belongs to an epoch that was forgotten.
    pub(super) fn hear(&self, position: StreamPosition) -> bool {
        let heard = self.heard.get();
        let is_next = position.epoch == heard.epoch && position.offset > heard.offset;
        if is_next {
            self.heard.set(position);
        }
        is_next
    }

    /// Continues after a position, up to which publications may be missing.
    pub(super) fn interrupt(&self, head: StreamPosition) {
        self.heard.set(head);
    }

    /// Returns whether there are no subscribers, and no pending ones.
    pub(super) fn is_empty(&self) -> bool {
        self.whole.is_none() && self.channels.is_empty()
    }

    /// The group of a place of this scope. It is made if there is none, and then has `topic` as its first name.
    pub(super) fn group_mut(&mut self, place: &Place, topic: &ByteString) -> &mut Group {
        let new_group = || Group::new(place.clone(), topic.clone());
        match &place.channel {
            None => self.whole.get_or_insert_with(new_group),
            Some(channel) => self.channels.entry(channel.clone()).or_insert_with(new_group),
        }
    }

    /// The group of a place, if there is one.
    pub(super) fn group(&mut self, channel: Option<&ChannelName>) -> Option<&mut Group> {
        match channel {
            None => self.whole.as_mut(),
            Some(channel) => self.channels.get_mut(channel),
        }
    }

    /// Returns whether a session is sent the number of a channel's subscribers.
    pub(super) fn is_told_count(&self, channel: &ChannelName, session: SessionId) -> bool {
        let group = self.channels.get(channel);
        group.is_some_and(|group| group.is_told_count(session))
    }

    /// Removes the subscription that a session has at a place under this id, or, without an id, all its
    /// subscriptions there. A group without members, and without pending ones, is dropped.
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

/// The frames that a delivery has added to outboxes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AddedFrames {
    /// The number of frames in all outboxes together.
    pub(super) all: usize,
    /// The most frames that one outbox may have got.
    pub(super) each_max: usize,
}

impl AddAssign for AddedFrames {
    /// Adds a delivery to other subscriptions. They may be of the same sessions.
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.each_max += other.each_max;
    }
}

/// The result of removing subscriptions of a session from a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// The session had no such subscription.
    Absent,
    /// The session has left. It was not tracked there, or still is under another name of the place.
    Left,
    /// The session has left, and is no longer tracked there.
    LeftPresence,
}

/// The members of one place: a channel, or a scope as a whole.
///
/// The members may have joined the place under different names, and each is sent frames with its own name.
/// Nearly all groups have one name only, which needs no allocation.
pub(super) struct Group {
    place: Arc<Place>,
    first: Naming,
    others: Vec<Naming>,
    /// The sessions that wait for the answer of the scope's tracker, each with the name that it joins. A session
    /// that is a member already remains one meanwhile, because its client may buffer changes until the answer,
    /// and none may be missing.
    entering: HashMap<SessionId, EnteringSession>,
}

/// A session that waits for the tracker's answer.
struct EnteringSession {
    topic: ByteString,
    member: TopicSubscriber,
    wanted: Option<Wanted>,
}

/// A session that the tracker has accepted.
pub(super) struct TakenIn {
    pub(super) topic: ByteString,
    pub(super) format: Format,
    /// The offset after which every publication is delivered to it.
    pub(super) attached: u64,
    pub(super) wanted: Option<Wanted>,
}

/// The members of one place that use the same name for it.
pub(super) struct Naming {
    topic: ByteString,
    members: IndexMap<SessionId, TopicSubscriber>,
}

/// One subscriber of a topic.
///
/// An idle session has at least one of these, so the struct is as small as its fields: the parts of
/// the [`Format`] are separate fields, because the format as a whole would be padded.
pub(super) struct TopicSubscriber {
    pub(super) outbox: Arc<Outbox>,
    /// The user of its join. The grant of the join shares this value.
    pub(super) user: Option<Arc<ShownSub>>,
    /// The offset after which every publication has been delivered to it, over all its joins. No publication up
    /// to this offset is delivered.
    pub(super) attached: u64,
    encoders: &'static Encoders,
    pub(super) id: SubscriptionId,
    slot: u8,
    positions_follow_json: bool,
    /// Whether it is a tracked member of the channel.
    pub(super) is_tracked: bool,
}

impl TopicSubscriber {
    /// A subscriber without a user, which is not tracked and receives all publications after `attached`.
    pub(super) fn new(
        outbox: Arc<Outbox>,
        id: SubscriptionId,
        format: Format,
        attached: u64,
    ) -> Self {
        let Format { slot, positions_follow_json, encoders } = format;
        let (user, is_tracked) = (None, false);
        Self { outbox, user, attached, encoders, id, slot, positions_follow_json, is_tracked }
    }

    /// The encoding of its publications.
    pub(super) fn format(&self) -> Format {
        let Self { slot, positions_follow_json, encoders, .. } = *self;
        Format { slot, positions_follow_json, encoders }
    }
}

impl Group {
    fn new(place: Place, topic: ByteString) -> Self {
        let (place, first) = (Arc::new(place), Naming::new(topic));
        Self { place, first, others: Vec::new(), entering: HashMap::new() }
    }

    /// The place, in memory that all its members on this thread share.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// The users of a session's joins, at most one under each name.
    pub(super) fn users_of(&self, session: SessionId) -> impl Iterator<Item = &ShownSub> {
        let members = self.namings().filter_map(move |naming| naming.members.get(&session));
        members.filter_map(|member| member.user.as_deref())
    }

    /// The number of members. A session counts once for each name by which it joined.
    pub(super) fn len(&self) -> usize {
        self.namings().map(|naming| naming.members.len()).sum()
    }

    /// Returns whether the group has no members, and no pending ones.
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

    /// Makes a session a member under this name. Returns `true` if it was not one before.
    pub(super) fn join(
        &mut self,
        session: SessionId,
        topic: ByteString,
        mut member: TopicSubscriber,
    ) -> bool {
        let members = &mut self.naming_mut(topic).members;
        let before = members.get(&session).map(|before| before.attached);
        member.attached = before.unwrap_or(member.attached);
        growth::make_room(members);
        members.insert(session, member);
        before.is_none()
    }

    /// The offset after which every publication has been delivered to a session under this name.
    pub(super) fn attached(&self, session: SessionId, topic: &ByteString) -> Option<u64> {
        let naming = self.namings().find(|naming| naming.topic == *topic)?;
        naming.members.get(&session).map(|member| member.attached)
    }

    /// Sets the offset after which every publication is delivered to a session under this name.
    pub(super) fn set_attached(&mut self, session: SessionId, topic: &ByteString, attached: u64) {
        let mut namings = iter::once(&mut self.first).chain(&mut self.others);
        let naming = namings.find(|naming| naming.topic == *topic);
        if let Some(member) = naming.and_then(|naming| naming.members.get_mut(&session)) {
            member.attached = attached;
        }
    }

    /// Notes that the tracker is asked about a session. Returns `true` if the session was neither a member under
    /// this name nor about to become one.
    pub(super) fn expect(
        &mut self,
        session: SessionId,
        topic: ByteString,
        member: TopicSubscriber,
        wanted: Option<Wanted>,
    ) -> bool {
        let is_member = self.attached(session, &topic).is_some();
        let entering = EnteringSession { topic: topic.clone(), member, wanted };
        let before = self.entering.insert(session, entering);
        !is_member && before.is_none_or(|expected| expected.topic != topic)
    }

    /// The outbox of a session that waits for the tracker's answer to this join.
    pub(super) fn expected(&self, session: SessionId, id: SubscriptionId) -> Option<Arc<Outbox>> {
        let EnteringSession { member, .. } = self.entering.get(&session)?;
        (member.id == id).then(|| member.outbox.clone())
    }

    /// Makes a session that waited for the tracker's answer a member. Unless it was one before, it receives all
    /// publications after the offset `boundary`.
    pub(super) fn take_in(&mut self, session: SessionId, boundary: u64) -> Option<TakenIn> {
        let EnteringSession { topic, mut member, wanted } = self.entering.remove(&session)?;
        let attached = self.attached(session, &topic).unwrap_or(boundary);
        let format = member.format();
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
        let is_meant = |member: &TopicSubscriber| id.is_none_or(|id| member.id == id);
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

    fn is_told_count(&self, session: SessionId) -> bool {
        let mut members = self.namings().filter_map(|naming| naming.members.get(&session));
        members.any(|member| member.format().encode_count.is_some())
    }

    /// Sends the number of the channel's subscribers, on all threads of all nodes, to the members whose format
    /// asks for it.
    pub(super) fn tell_count(
        &self,
        count: usize,
        backlog: &Backlog,
        traffic: &Traffic,
        wakers: &mut Vec<Waker>,
    ) -> AddedFrames {
        let mut added = AddedFrames::default();
        for naming in self.namings() {
            added += naming.tell_count(count, backlog, traffic, wakers);
        }
        added
    }

    fn tracks(&self, session: SessionId) -> bool {
        let mut members = self.namings().filter_map(|naming| naming.members.get(&session));
        self.entering.contains_key(&session) || members.any(|member| member.is_tracked)
    }

    /// Delivers a publication to all members; the latency is measured at the one with the index
    /// `sampled`. The wakers of sessions that have to be woken are added to `wakers`.
    pub(super) fn deliver(
        &self,
        placed: &Placed,
        level: Level,
        mut sampled: Option<usize>,
        counted: &DeliveryCounters,
        wakers: &mut Vec<Waker>,
    ) -> AddedFrames {
        let mut added = AddedFrames::default();
        for naming in self.namings() {
            added += naming.deliver(placed, level, sampled, counted, wakers);
            sampled = sampled.and_then(|nth| nth.checked_sub(naming.members.len()));
        }
        added
    }

    /// Sends the tracked members a part of the frames that tell the changes among them. Returns also whether
    /// there are frames behind this part. The wakers of sessions that have to be woken are added to `wakers`.
    pub(super) fn announce(
        &self,
        announcement: &Announcement,
        part: &Range<usize>,
        traffic: &Traffic,
        wakers: &mut Vec<Waker>,
    ) -> (AddedFrames, bool) {
        let (mut added, mut is_more) = (AddedFrames::default(), false);
        for naming in self.namings() {
            let (of_naming, is_more_here) = naming.announce(announcement, part, traffic, wakers);
            added += of_naming;
            is_more |= is_more_here;
        }
        (added, is_more)
    }
}

impl Naming {
    fn new(topic: ByteString) -> Self {
        Self { topic, members: IndexMap::new() }
    }

    /// Delivers the frame that names this topic to every member whose format can carry it. An
    /// outbox that cannot take the frame ends its session, which then leaves.
    fn deliver(
        &self,
        placed: &Placed,
        level: Level,
        sampled: Option<usize>,
        counted: &DeliveryCounters,
        wakers: &mut Vec<Waker>,
    ) -> AddedFrames {
        let mut frames: [Option<Option<Frame>>; Format::COUNT] = Default::default();
        let (mut delivered, mut bytes, mut skipped, mut positions) = (0, 0, 0, 0);
        let is_bytes = placed.is_bytes();
        let mut position = None;
        let mut position_of = |format: Format| {
            format.encode_position?;
            position.get_or_insert_with(|| placed.position_frame(format, &self.topic)).clone()
        };
        let offset = placed.position().offset;
        for (first, part) in self.parts(placed.except()) {
            for (nth, member) in (first..).zip(part.values()) {
                if offset <= member.attached {
                    // The client has received this from another thread, which was ahead of this one.
                    continue;
                }
                let spell = || placed.frame(member.format(), level, &self.topic);
                let frame = match placed.suits(member.format()) {
                    true => frames[member.format().index()].get_or_insert_with(spell).as_ref(),
                    false => None,
                };
                let Some(frame) = frame else {
                    // Only bytes count as skipped. A JSON publication without a frame has no name in
                    // the member's protocol, so it is not meant for clients of that protocol.
                    skipped += usize::from(is_bytes);
                    continue;
                };
                let published = (sampled == Some(nth)).then(|| placed.taken_at());
                let wake = |waker: &Waker| wakers.push(waker.clone());
                if member.outbox.deliver_with(frame, member.id, published, wake) {
                    delivered += 1;
                    bytes += frame.size_bytes() as u64;
                    if (is_bytes || member.format().tells_positions_of_json())
                        && let Some(position) = position_of(member.format())
                    {
                        let wake = |waker: &Waker| wakers.push(waker.clone());
                        let is_told = member.outbox.deliver_with(&position, member.id, None, wake);
                        positions += usize::from(is_told);
                    }
                }
            }
        }
        // The counters are updated once for all subscribers, because many threads share them.
        counted.traffic.delivered(delivered, bytes);
        counted.usage.delivered(delivered, placed.payload_bytes());
        placed.note_delivered(delivered);
        if skipped > 0 {
            counted.traffic.skipped(skipped as u64);
            placed.skip(skipped);
        }
        let each_max = usize::from(delivered > 0) + usize::from(positions > 0);
        AddedFrames { all: delivered as usize + positions, each_max }
    }

    /// The members except for one session, in two slices, each with the index of its first member.
    /// The session is looked up once, so that it is not compared with every member.
    fn parts(&self, except: Option<SessionId>) -> [(usize, &Slice<SessionId, TopicSubscriber>); 2] {
        let members = self.members.as_slice();
        let Some(nth) = except.and_then(|session| self.members.get_index_of(&session)) else {
            return [(0, members), (members.len(), Slice::new())];
        };
        let (ahead, behind) = members.split_at(nth);
        let behind = behind.split_first().map_or(Slice::new(), |(_, behind)| behind);
        [(0, ahead), (nth + 1, behind)]
    }

    fn tell_count(
        &self,
        count: usize,
        backlog: &Backlog,
        traffic: &Traffic,
        wakers: &mut Vec<Waker>,
    ) -> AddedFrames {
        let mut spelled: Option<Frame> = None;
        let (mut delivered, mut bytes) = (0, 0);
        for member in self.members.values() {
            let Some(encode) = member.format().encode_count else { continue };
            let frame = spelled.get_or_insert_with(|| backlog.count(encode(&self.topic, count)));
            let wake = |waker: &Waker| wakers.push(waker.clone());
            if member.outbox.deliver_with(frame, member.id, None, wake) {
                delivered += 1;
                bytes += frame.size_bytes() as u64;
            }
        }
        traffic.delivered(delivered, bytes);
        AddedFrames { all: delivered as usize, each_max: usize::from(delivered > 0) }
    }

    fn announce(
        &self,
        announcement: &Announcement,
        part: &Range<usize>,
        traffic: &Traffic,
        wakers: &mut Vec<Waker>,
    ) -> (AddedFrames, bool) {
        let mut frames: [Option<Arc<[ChangeFrame]>>; Format::COUNT] = Default::default();
        let (mut delivered, mut bytes, mut each_max, mut is_more) = (0, 0, 0, false);
        for (session, member) in &self.members {
            if !member.is_tracked {
                continue;
            }
            let spell = || announcement.frames(member.format(), &self.topic);
            let frames = frames[member.format().index()].get_or_insert_with(spell);
            is_more |= frames.len() > part.end;
            let frames = frames.get(part.start..part.end.min(frames.len())).unwrap_or_default();
            each_max = each_max.max(frames.len());
            for ChangeFrame { frame, except } in frames {
                if *except == Some(*session) {
                    continue;
                }
                let wake = |waker: &Waker| wakers.push(waker.clone());
                if member.outbox.deliver_with(frame, member.id, None, wake) {
                    delivered += 1;
                    bytes += frame.size_bytes() as u64;
                }
            }
        }
        traffic.delivered(delivered, bytes);
        (AddedFrames { all: delivered as usize, each_max }, is_more)
    }
}

/// Decides when the latency is measured, and at which member.
#[derive(Default)]
pub(super) struct Sampler {
    last: Cell<Option<Instant>>,
    turns: Cell<usize>,
}

impl Sampler {
    /// Returns a number if a measurement is due. Modulo the number of members, it is the index of the member at
    /// which the latency is measured. The caller passes the time, so that no clock is read for it.
    pub(super) fn turn(&self, now: Instant) -> Option<usize> {
        let is_early = |last| now.saturating_duration_since(last) < SAMPLE_INTERVAL;
        if self.last.get().is_some_and(is_early) {
            return None;
        }
        self.last.set(Some(now));
        Some(self.turns.replace(self.turns.get().wrapping_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_the_size_of_its_fields_and_no_padding_beyond_one_byte() {
        assert_eq!(size_of::<TopicSubscriber>(), 40);
    }
}
