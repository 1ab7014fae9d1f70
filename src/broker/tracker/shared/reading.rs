//! The reading of the members of a channel, when its first member of this node joins.

use std::time::Instant;

use actix::{fut::wrap_future, prelude::*};

use super::{LogChange, SharedMembers, Tracker, place_bytes};
use crate::{
    broker::{
        cluster::MemberValue,
        gathering::Gathering,
        presence::Home,
        subscriber::{SessionId, SubscribeError},
        topic_name::ChannelName,
    },
    engine::{Snapshot, Unavailable},
};

/// The members of a channel are being read.
pub(super) struct RosterReading {
    /// The number of this reading. The answer to an earlier reading of the channel lacks changes that this one
    /// has not kept.
    number: u64,
    /// The changes that were read from the log meanwhile, with their offsets.
    kept: Vec<(u64, LogChange)>,
}

impl RosterReading {
    /// Keeps a change that was read from the log at this offset.
    pub(super) fn keep(&mut self, offset: u64, change: LogChange) {
        self.kept.push((offset, change));
    }
}

impl Tracker {
    /// Returns whether the members of a channel are being read.
    pub(super) fn is_reading(&self, channel: &ChannelName) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.reading.contains_key(channel))
    }

    /// Reads the members of a channel. Changes from the log wait meanwhile.
    pub(super) fn read_members(&mut self, channel: &ChannelName, ctx: &mut Context<Self>) {
        self.gatherings.insert(channel.clone(), Gathering::new(usize::MAX));
        let Some(shared) = self.shared.as_deref_mut() else { return };
        shared.readings += 1;
        let number = shared.readings;
        shared.reading.insert(channel.clone(), RosterReading { number, kept: Vec::new() });
        let Some(cluster) = self.topics.cluster() else { return };
        let (partition, place) =
            (cluster.heads().partition_of(&self.key), place_bytes(&self.key, channel));
        let deadline = Instant::now() + self.topics.wait_max();
        let members = cluster.engine().members(partition, place.into(), deadline);
        let channel = channel.clone();
        ctx.spawn(wrap_future::<_, Self>(members).map(move |members, tracker, ctx| {
            tracker.members_read(&channel, number, members, ctx);
        }));
    }

    /// Takes the answer to a reading, unless the channel was left since.
    fn members_read(
        &mut self,
        channel: &ChannelName,
        number: u64,
        members: Result<Snapshot, Unavailable>,
        ctx: &mut Context<Self>,
    ) {
        let Some(shared) = self.shared.as_deref_mut() else { return };
        if shared.reading.get(channel).is_none_or(|reading| reading.number != number) {
            return;
        }
        let Some(RosterReading { kept, .. }) = shared.reading.remove(channel) else { return };
        let Ok(Snapshot { at, members }) = members else { return self.give_up(channel, ctx) };
        let Some(gathering) = self.gatherings.get_mut(channel) else { return };
        for member in members {
            let session =
                member.member.first_chunk().map(|bytes| SessionId(u64::from_be_bytes(*bytes)));
            let Some((session, value)) = session.zip(MemberValue::read(&member.value)) else {
                continue;
            };
            let Some(persona) = value.persona() else { continue };
            let home = Home::Node(member.node);
            // The limit does not apply here: the engine has enforced it for all nodes.
            let _ = gathering.presence.track(session, home, persona, value.reference.into());
        }
        gathering.adopt();
        for (_, change) in kept.into_iter().filter(|(offset, _)| *offset >= at.offset) {
            self.take(channel, change);
        }
        self.announce_if_due(channel, ctx);
        self.write_channel(channel, ctx);
    }

    /// Refuses the pending joins of a channel whose members cannot be read. No session stays there. The members
    /// that the log may have are removed from it.
    fn give_up(&mut self, channel: &ChannelName, ctx: &mut Context<Self>) {
        self.gatherings.remove(channel);
        let Some(shared) = self.shared() else { return };
        shared.present.remove(channel);
        let mut unlogged = Vec::new();
        for (key, own) in shared.own.range_mut(SharedMembers::keys_of(channel)) {
            own.refuse(SubscribeError::Unavailable);
            own.is_dirty |= own.wanted.take().is_some();
            if !own.may_be_logged {
                unlogged.push(key.clone());
            }
        }
        for key in unlogged {
            shared.own.remove(&key);
        }
        self.retry_later(ctx);
    }
}
