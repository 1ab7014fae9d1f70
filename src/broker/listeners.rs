//! The subscribers of one scope on one thread, and the delivery of publications to them.

mod group;
mod sampler;

use std::{cell::Cell, collections::HashMap, ops::AddAssign, sync::Arc};

use bytestring::ByteString;

use crate::metrics::{apps::Traffic, usage::AppUsage};

use super::{
    outbox::Load,
    position::StreamPosition,
    stream::{Beginning, Stream},
    subscriber::{Place, SessionId, SubscriptionId},
    topic_name::ChannelName,
};
pub(super) use group::{Departure, Group, TakenIn, TopicSubscriber};
pub(super) use sampler::Sampler;

/// The subscribers of one scope on one thread. It exists from the first subscriber to the last one.
pub(super) struct ScopeSubscribers {
    pub(super) stream: Arc<Stream>,
    /// The position of the newest publication that was delivered to the subscribers; before the first
    /// delivery, the position after which they are sent publications.
    heard: Cell<StreamPosition>,
    /// The number of interruptions of the stream before that position.
    interruptions: u64,
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
    /// A scope without subscribers, which will receive all publications after `begin`.
    pub(super) fn new(stream: Arc<Stream>, begin: Beginning, counted: DeliveryCounters) -> Self {
        let Beginning { head, interruptions } = begin;
        let (whole, channels) = (None, HashMap::new());
        Self { stream, heard: Cell::new(head), interruptions, counted, whole, channels }
    }

    /// The position of the newest publication that was delivered to the subscribers; before the first
    /// delivery, the position after which they are sent publications.
    pub(super) fn heard(&self) -> StreamPosition {
        self.heard.get()
    }

    /// Notes that a publication is about to be delivered. Returns `false` if it must not be: it was on its way
    /// to earlier subscribers of this thread, which have left, or belongs to an epoch that was forgotten.
    pub(super) fn hear(&self, position: StreamPosition) -> bool {
        let is_next = self.is_to_hear(position);
        if is_next {
            self.heard.set(position);
        }
        is_next
    }

    /// Returns whether a position is after that of the newest publication that was delivered, in the same epoch.
    pub(super) fn is_to_hear(&self, position: StreamPosition) -> bool {
        let heard = self.heard.get();
        position.epoch == heard.epoch && position.offset > heard.offset
    }

    /// Continues after a point up to which publications may be missing. Returns `false` if the scope was opened
    /// after that interruption, which was on its way to earlier subscribers of this thread: `begin` may then be older
    /// than what is heard.
    pub(super) fn interrupt(&mut self, begin: Beginning) -> bool {
        let is_new = begin.interruptions > self.interruptions;
        if is_new {
            self.heard.set(begin.head);
            self.interruptions = begin.interruptions;
        }
        is_new
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
#[derive(Clone, Copy, Default)]
pub(super) struct AddedFrames {
    /// The number of frames in all outboxes together.
    pub(super) all: usize,
    /// The most that one outbox may have got, without a body that many frames share.
    pub(super) each_max: Load,
}

impl AddAssign for AddedFrames {
    /// Adds a delivery to other subscriptions. They may be of the same sessions.
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.each_max.add(other.each_max);
    }
}
