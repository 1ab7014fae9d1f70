//! A tracker: one actor per scope in which members are tracked.

mod shared;

use std::{collections::HashMap, sync::Weak};

use actix::{fut::wrap_future, prelude::*};
use log::error;

use super::{
    announcement::Announcement,
    fanout::{Entered, Fanout, WorkerId},
    gathering::Gathering,
    permits::Permit,
    presence::{ChannelFull, Persona, Roster},
    publication::JsonText,
    stream::Stream,
    subscriber::{Format, Place, ScopeKey, SessionId, SubscribeError, SubscriptionId},
    topic_name::ChannelName,
    topics::Topics,
};

use shared::SharedMembers;
pub(super) use shared::{MembersLeft, MembersRead, OrderInterrupted, Reincarnated};

/// A session joins a channel where it is tracked. The tracker answers the fan-out with [`Entered`], before
/// it sends any later announcement.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct EnterChannel {
    pub(super) worker: WorkerId,
    pub(super) fanout: Addr<Fanout>,
    pub(super) place: Place,
    pub(super) session: SessionId,
    pub(super) id: SubscriptionId,
    pub(super) persona: Persona,
    pub(super) format: Format,
}

/// The fan-out of a thread has ended, and with it all sessions of the thread.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct FanoutLost {
    pub(super) worker: WorkerId,
}

/// A tracked session has left a channel, whatever the reason. Idempotent.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Untrack {
    pub(super) channel: ChannelName,
    pub(super) session: SessionId,
}

/// A tracked session has new custom data.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct UpdateMember {
    pub(super) channel: ChannelName,
    pub(super) session: SessionId,
    pub(super) custom: JsonText,
}

/// Asks for the present members of a channel, including changes that are not announced yet.
#[derive(Message)]
#[rtype(result = "Roster")]
pub(super) struct WhoIsThere(pub(super) ChannelName);

/// Tracks the members of the channels of one scope, over all threads, and announces changes among
/// them.
///
/// It is started for the first member and lives as long as the scope's [`Stream`], which holds its
/// address. The fan-outs send it every session that leaves. Its announcements go through the
/// stream, so all members receive them in one order.
///
/// In a cluster, each node's tracker writes the changes among its own members to the log, and takes all
/// changes, including its own, from the log: see [`shared`].
///
/// The mailbox is bounded by one message per join or update, for which the session waits, and by one
/// per tracked session that leaves.
pub(super) struct Tracker {
    key: ScopeKey,
    stream: Weak<Stream>,
    topics: Topics,
    pub(super) gatherings: HashMap<ChannelName, Gathering>,
    /// The members that this node shares with the other nodes of a cluster.
    shared: Option<Box<SharedMembers>>,
}

impl Tracker {
    pub(super) fn new(key: ScopeKey, stream: Weak<Stream>, topics: Topics) -> Self {
        let shared = topics.is_clustered().then(Box::default);
        Self { key, stream, topics, gatherings: HashMap::new(), shared }
    }

    /// Adds a session: first it is sent the announced members, then it is announced itself.
    fn enter(&mut self, enter: EnterChannel, ctx: &mut Context<Self>) {
        let EnterChannel { worker, fanout, place, session, id, persona, format } = enter;
        // No session is tracked in a whole scope.
        let Some(channel) = place.channel.clone() else { return };
        let members_max = self.topics.limits().presence_members_max;
        let gathering = self.gatherings.entry(channel.clone());
        let gathering = gathering.or_insert_with(|| Gathering::new(members_max));
        let reference = self.topics.reference();
        let tracked = gathering.presence.track(session, worker, persona, reference);
        let members = tracked.map(|()| gathering.spelled(format));
        let members = members.map_err(|ChannelFull| SubscribeError::TooManyMembers);
        fanout.do_send(Entered { place, session, id, members });
        self.announce_if_due(&channel, ctx);
    }

    /// Removes the sessions of a thread whose fan-out has ended.
    fn lose(&mut self, worker: WorkerId, ctx: &mut Context<Self>) {
        let channels: Vec<_> = self.gatherings.keys().cloned().collect();
        for channel in channels {
            if let Some(gathering) = self.gatherings.get_mut(&channel) {
                gathering.presence.untrack_home(worker);
            }
            self.announce_if_due(&channel, ctx);
        }
    }

    /// Returns whether a channel has no members left on this server.
    fn is_over(&self, channel: &ChannelName, gathering: &Gathering) -> bool {
        match &self.shared {
            None => gathering.is_over(),
            Some(shared) => !shared.hears(channel),
        }
    }

    /// Announces the changes on a channel, or schedules this for the end of the present interval.
    fn announce_if_due(&mut self, channel: &ChannelName, ctx: &mut Context<Self>) {
        let Some(gathering) = self.gatherings.get(channel) else { return };
        if self.is_over(channel, gathering) {
            self.gatherings.remove(channel);
            return;
        }
        let Some(gathering) = self.gatherings.get_mut(channel) else { return };
        if !gathering.wants_to_announce() {
            return;
        }
        let channel = channel.clone();
        let app = self.key.app;
        match self.topics.permits().take_at_once(app) {
            Some(permit) => self.announce(channel, permit, ctx),
            // Changes that happen while the announcement waits for its permit become part of it.
            None => {
                let permits = self.topics.permits().clone();
                let permit = async move { permits.take(app, 1).await };
                ctx.spawn(wrap_future::<_, Self>(permit).map(move |permit, tracker, ctx| {
                    // While the server stops, no permits are given any more.
                    if let Some(permit) = permit {
                        tracker.announce(channel, permit, ctx);
                    }
                }));
            }
        }
    }

    fn announce(&mut self, channel: ChannelName, permit: Permit, ctx: &mut Context<Self>) {
        let Some(gathering) = self.gatherings.get_mut(&channel) else { return };
        let change = gathering.announce();
        // All changes may have been undone while the announcement waited for its permit.
        if !change.is_empty()
            && let Some(stream) = self.stream.upgrade()
        {
            let (key, backlog) = (self.key.clone(), self.topics.backlog().clone());
            stream.announce(Announcement::new(key, channel.clone(), change, permit, backlog));
        }
        ctx.run_later(self.topics.limits().presence_interval, move |tracker, ctx| {
            if let Some(gathering) = tracker.gatherings.get_mut(&channel) {
                gathering.wake();
            }
            tracker.announce_if_due(&channel, ctx);
        });
    }
}

impl Actor for Tracker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(Topics::MAILBOX_CAPACITY);
    }
}

impl Drop for Tracker {
    /// A tracker that is dropped before its stream has panicked: the sessions that it tracked must
    /// join again, or their lists of members would never change again.
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.withdraw(&self.key, &self.topics);
        }
        if let Some(stream) = self.stream.upgrade() {
            error!(
                "a panic has ended the tracker of a scope of the app with the number {}: the sessions that it \
                 tracked end, and their clients reconnect",
                self.key.app.0
            );
            stream.tracker_lost();
        }
    }
}

impl Handler<EnterChannel> for Tracker {
    type Result = ();

    fn handle(&mut self, enter: EnterChannel, ctx: &mut Self::Context) {
        match self.shared {
            None => self.enter(enter, ctx),
            Some(_) => self.enter_shared(enter, ctx),
        }
    }
}

impl Handler<FanoutLost> for Tracker {
    type Result = ();

    fn handle(&mut self, FanoutLost { worker }: FanoutLost, ctx: &mut Self::Context) {
        match self.shared {
            None => self.lose(worker, ctx),
            Some(_) => self.lose_shared(worker, ctx),
        }
    }
}

impl Handler<Untrack> for Tracker {
    type Result = ();

    fn handle(&mut self, Untrack { channel, session }: Untrack, ctx: &mut Self::Context) {
        if self.shared.is_some() {
            return self.leave_shared(&channel, session, ctx);
        }
        if let Some(gathering) = self.gatherings.get_mut(&channel) {
            gathering.presence.untrack(session);
        }
        self.announce_if_due(&channel, ctx);
    }
}

impl Handler<UpdateMember> for Tracker {
    type Result = ();

    fn handle(
        &mut self,
        UpdateMember { channel, session, custom }: UpdateMember,
        ctx: &mut Self::Context,
    ) {
        if self.shared.is_some() {
            return self.update_shared(&channel, session, &custom, ctx);
        }
        if let Some(gathering) = self.gatherings.get_mut(&channel) {
            gathering.presence.update(session, custom, self.topics.reference());
        }
        self.announce_if_due(&channel, ctx);
    }
}

impl Handler<WhoIsThere> for Tracker {
    type Result = MessageResult<WhoIsThere>;

    fn handle(&mut self, WhoIsThere(channel): WhoIsThere, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.gatherings.get(&channel).map(Gathering::members).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
