//! The members of one place, and the delivery to them.

use std::{iter, sync::Arc};

use bytestring::ByteString;
use indexmap::{
    IndexMap,
    map::{Entry, Slice},
};
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::{app::visitor::ShownSub, metrics::apps::Traffic};

use super::{
    super::{
        announcement::Announcement,
        backlog::Backlog,
        growth,
        outbox::{ChangeFrames, Load, Outbox, PendingChanges},
        placed::{Level, Placed},
        recovery::Wanted,
        subscriber::{Encoders, Format, Frame, Place, SessionId, SubscriptionId},
    },
    AddedFrames, DeliveryCounters,
};

/// The result of removing subscriptions of a session from a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::broker) enum Departure {
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
pub(in crate::broker) struct Group {
    place: Arc<Place>,
    first: Naming,
    others: Vec<Naming>,
    /// The sessions that wait for the answer of the scope's tracker, each with the name that it joins. A session
    /// that is a member already remains one meanwhile, because its client may buffer changes until the answer,
    /// and none may be missing.
    entering: FxHashMap<SessionId, EnteringSession>,
}

/// A session that waits for the tracker's answer.
struct EnteringSession {
    topic: ByteString,
    member: TopicSubscriber,
    wanted: Option<Wanted>,
}

/// A session that the tracker has accepted.
pub(in crate::broker) struct TakenIn {
    pub(in crate::broker) topic: ByteString,
    pub(in crate::broker) format: Format,
    /// The offset after which every publication is delivered to it.
    pub(in crate::broker) attached: u64,
    pub(in crate::broker) wanted: Option<Wanted>,
}

/// The members of one place that use the same name for it.
pub(in crate::broker) struct Naming {
    topic: ByteString,
    members: IndexMap<SessionId, TopicSubscriber, FxBuildHasher>,
}

/// One subscriber of a topic.
///
/// An idle session has at least one of these, so the struct is as small as its fields: the parts of
/// the [`Format`] are separate fields, because the format as a whole would be padded.
pub(in crate::broker) struct TopicSubscriber {
    pub(in crate::broker) outbox: Arc<Outbox>,
    /// The user of its join. The grant of the join shares this value.
    pub(in crate::broker) user: Option<Arc<ShownSub>>,
    /// The offset after which every publication has been delivered to it, over all its joins. No publication up
    /// to this offset is delivered.
    pub(in crate::broker) attached: u64,
    encoders: &'static Encoders,
    pub(in crate::broker) id: SubscriptionId,
    slot: u8,
    positions_follow_json: bool,
    /// Whether it is a tracked member of the channel.
    pub(in crate::broker) is_tracked: bool,
}

impl TopicSubscriber {
    /// A subscriber without a user, which is not tracked and receives all publications after `attached`.
    pub(in crate::broker) fn new(
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
    pub(in crate::broker) fn format(&self) -> Format {
        let Self { slot, positions_follow_json, encoders, .. } = *self;
        Format { slot, positions_follow_json, encoders }
    }
}

impl Group {
    pub(super) fn new(place: Place, topic: ByteString) -> Self {
        let (place, first) = (Arc::new(place), Naming::new(topic));
        Self { place, first, others: Vec::new(), entering: FxHashMap::default() }
    }

    /// The place, in memory that all its members on this thread share.
    pub(in crate::broker) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// The users of a session's joins, at most one under each name.
    pub(in crate::broker) fn users_of(
        &self,
        session: SessionId,
    ) -> impl Iterator<Item = &ShownSub> {
        let members = self.namings().filter_map(move |naming| naming.members.get(&session));
        members.filter_map(|member| member.user.as_deref())
    }

    /// The number of members. A session counts once for each name by which it joined.
    pub(in crate::broker) fn len(&self) -> usize {
        self.namings().map(|naming| naming.members.len()).sum()
    }

    /// Returns whether the group has no members, and no pending ones.
    pub(super) fn is_deserted(&self) -> bool {
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

    /// Makes a session a member under this name. If it was one before, it keeps the offset after which every
    /// publication has been delivered to it, which is returned.
    pub(in crate::broker) fn join(
        &mut self,
        session: SessionId,
        topic: ByteString,
        mut member: TopicSubscriber,
    ) -> Option<u64> {
        let members = &mut self.naming_mut(topic).members;
        growth::make_room(members);
        match members.entry(session) {
            Entry::Occupied(mut before) => {
                member.attached = before.get().attached;
                Some(before.insert(member).attached)
            }
            Entry::Vacant(new) => {
                new.insert(member);
                None
            }
        }
    }

    /// The offset after which every publication has been delivered to a session under this name.
    pub(in crate::broker) fn attached(
        &self,
        session: SessionId,
        topic: &ByteString,
    ) -> Option<u64> {
        let naming = self.namings().find(|naming| naming.topic == *topic)?;
        naming.members.get(&session).map(|member| member.attached)
    }

    /// Sets the offset after which every publication is delivered to a session under this name.
    pub(in crate::broker) fn set_attached(
        &mut self,
        session: SessionId,
        topic: &ByteString,
        attached: u64,
    ) {
        let mut namings = iter::once(&mut self.first).chain(&mut self.others);
        let naming = namings.find(|naming| naming.topic == *topic);
        if let Some(member) = naming.and_then(|naming| naming.members.get_mut(&session)) {
            member.attached = attached;
        }
    }

    /// Notes that the tracker is asked about a session. Returns `true` if the session was neither a member under
    /// this name nor about to become one.
    pub(in crate::broker) fn expect(
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
    pub(in crate::broker) fn expected(
        &self,
        session: SessionId,
        id: SubscriptionId,
    ) -> Option<Arc<Outbox>> {
        let EnteringSession { member, .. } = self.entering.get(&session)?;
        (member.id == id).then(|| member.outbox.clone())
    }

    /// Makes a session that waited for the tracker's answer a member. Unless it was one before, it receives all
    /// publications after the offset `boundary`.
    pub(in crate::broker) fn take_in(
        &mut self,
        session: SessionId,
        boundary: u64,
    ) -> Option<TakenIn> {
        let EnteringSession { topic, mut member, wanted } = self.entering.remove(&session)?;
        let attached = self.attached(session, &topic).unwrap_or(boundary);
        let format = member.format();
        member.attached = attached;
        self.join(session, topic.clone(), member);
        Some(TakenIn { topic, format, attached, wanted })
    }

    /// The outboxes of the members and of the sessions that wait for the tracker's answer. One session may have
    /// several names for the place, and is then listed for each of them.
    pub(in crate::broker) fn outboxes(&self) -> impl Iterator<Item = &Arc<Outbox>> {
        let members = self.namings().flat_map(|naming| naming.members.values());
        let members = members.chain(self.entering.values().map(|entering| &entering.member));
        members.map(|member| &member.outbox)
    }

    /// The sessions that are tracked, or about to be.
    pub(in crate::broker) fn tracked(&self) -> impl Iterator<Item = &Outbox> {
        let members = self.namings().flat_map(|naming| naming.members.values());
        let members = members.chain(self.entering.values().map(|entering| &entering.member));
        members.filter(|member| member.is_tracked).map(|member| &*member.outbox)
    }

    pub(super) fn remove(&mut self, session: SessionId, id: Option<SubscriptionId>) -> Departure {
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

    pub(super) fn is_told_count(&self, session: SessionId) -> bool {
        let mut members = self.namings().filter_map(|naming| naming.members.get(&session));
        members.any(|member| member.format().encode_count.is_some())
    }

    /// Sends the number of the channel's subscribers, on all threads of all nodes, to the members whose format
    /// asks for it.
    pub(in crate::broker) fn tell_count(
        &self,
        count: usize,
        backlog: &Backlog,
        traffic: &Traffic,
        idle: &mut Vec<Arc<Outbox>>,
    ) -> AddedFrames {
        let mut added = AddedFrames::default();
        for naming in self.namings() {
            added += naming.tell_count(count, backlog, traffic, idle);
        }
        added
    }

    fn tracks(&self, session: SessionId) -> bool {
        let mut members = self.namings().filter_map(|naming| naming.members.get(&session));
        self.entering.contains_key(&session) || members.any(|member| member.is_tracked)
    }

    /// Delivers a publication to all members; the latency is measured at the one with the index
    /// `sampled`. The outboxes of sessions that have to be served are added to `idle`.
    pub(in crate::broker) fn deliver(
        &self,
        placed: &Placed,
        level: Level,
        mut sampled: Option<usize>,
        counted: &DeliveryCounters,
        idle: &mut Vec<Arc<Outbox>>,
    ) -> AddedFrames {
        let mut added = AddedFrames::default();
        for naming in self.namings() {
            added += naming.deliver(placed, level, sampled, counted, idle);
            sampled = sampled.and_then(|nth| nth.checked_sub(naming.members.len()));
        }
        added
    }

    /// Sends the tracked members the changes among them. The outboxes of sessions that have to be
    /// served are added to `idle`.
    pub(in crate::broker) fn announce(
        &self,
        announcement: &Announcement,
        traffic: &Traffic,
        idle: &mut Vec<Arc<Outbox>>,
    ) -> AddedFrames {
        let mut added = AddedFrames::default();
        for naming in self.namings() {
            added += naming.announce(announcement, traffic, idle);
        }
        added
    }
}

impl Naming {
    fn new(topic: ByteString) -> Self {
        Self { topic, members: IndexMap::default() }
    }

    /// Delivers the frame that names this topic to every member whose format can carry it. An
    /// outbox that cannot take the frame ends its session, which then leaves.
    fn deliver(
        &self,
        placed: &Placed,
        level: Level,
        sampled: Option<usize>,
        counted: &DeliveryCounters,
        idle: &mut Vec<Arc<Outbox>>,
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
                let on_idle = || idle.push(member.outbox.clone());
                if member.outbox.deliver_with(frame, member.id, published, on_idle) {
                    delivered += 1;
                    bytes += frame.size_bytes() as u64;
                    if (is_bytes || member.format().tells_positions_of_json())
                        && let Some(position) = position_of(member.format())
                    {
                        let on_idle = || idle.push(member.outbox.clone());
                        let is_told =
                            member.outbox.deliver_with(&position, member.id, None, on_idle);
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
        let mut each_max = Load::default();
        if delivered > 0 {
            let sizes = frames.iter().flatten().flatten().map(Frame::own_bytes);
            each_max.add(Load { frames: 1, bytes: sizes.max().unwrap_or_default() });
        }
        if let Some(Some(position)) = position {
            each_max.add(Load { frames: 1, bytes: position.size_bytes() });
        }
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
        idle: &mut Vec<Arc<Outbox>>,
    ) -> AddedFrames {
        let mut spelled: Option<Frame> = None;
        let (mut delivered, mut bytes) = (0, 0);
        for member in self.members.values() {
            let Some(encode) = member.format().encode_count else { continue };
            let frame = spelled.get_or_insert_with(|| backlog.count(encode(&self.topic, count)));
            let on_idle = || idle.push(member.outbox.clone());
            if member.outbox.deliver_with(frame, member.id, None, on_idle) {
                delivered += 1;
                bytes += frame.size_bytes() as u64;
            }
        }
        traffic.delivered(delivered, bytes);
        let each_max = spelled
            .map_or_else(Load::default, |frame| Load { frames: 1, bytes: frame.size_bytes() });
        AddedFrames { all: delivered as usize, each_max }
    }

    fn announce(
        &self,
        announcement: &Announcement,
        traffic: &Traffic,
        idle: &mut Vec<Arc<Outbox>>,
    ) -> AddedFrames {
        let mut frames: [Option<Arc<ChangeFrames>>; Format::COUNT] = Default::default();
        let (mut delivered, mut bytes, mut each_max) = (0, 0, Load::default());
        for (session, member) in &self.members {
            if !member.is_tracked {
                continue;
            }
            let spell = || announcement.frames(member.format(), &self.topic);
            let frames = frames[member.format().index()].get_or_insert_with(spell);
            let Some(changes) = PendingChanges::new(frames, *session) else { continue };
            let (of_session, size_bytes) = (changes.left(), changes.left_bytes());
            let on_idle = || idle.push(member.outbox.clone());
            if member.outbox.deliver_changes(changes, member.id, on_idle) {
                delivered += of_session;
                bytes += size_bytes as u64;
                each_max = Load { frames: 1, bytes: each_max.bytes.max(size_bytes) };
            }
        }
        traffic.delivered(delivered as u64, bytes);
        AddedFrames { all: delivered, each_max }
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
