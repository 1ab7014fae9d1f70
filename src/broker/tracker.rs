//! A tracker: one actor per scope in which members are tracked, which knows who is there.

use std::{collections::HashMap, sync::Weak};

use actix::{fut::wrap_future, prelude::*};
use log::error;

use super::{
    announcement::Announcement,
    fanout::{Entered, Fanout, WorkerId},
    gathering::Gathering,
    permits::Permit,
    presence::{Persona, Roster},
    publication::JsonObject,
    stream::Stream,
    subscriber::{Format, Place, ScopeKey, SessionId, SubscriptionId},
    topic_name::ChannelName,
    topics::Topics,
};

/// A session joins a channel where it is tracked. Its fan-out is told with [`Entered`] what came of
/// it, ahead of every announcement of what changes from then on.
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

/// The fan-out of a thread is gone, and with it all sessions of the thread.
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

/// A tracked session shows another meta from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Update {
    pub(super) channel: ChannelName,
    pub(super) session: SessionId,
    pub(super) meta: JsonObject,
}

/// Asks for the members of a channel: those that were announced, with all that happened since.
#[derive(Message)]
#[rtype(result = "Roster")]
pub(super) struct WhoIsThere(pub(super) ChannelName);

/// Tracks the members of the channels of one scope, over all threads, and announces what changes
/// among them.
///
/// It is started for the first member and lives as long as the scope's [`Stream`], which holds its
/// address. The fan-outs tell it of every session that leaves. Its announcements go through the
/// stream, so all members are told in one order.
///
/// The mailbox is bounded by one message per join or update, for which the session waits, and by one
/// per tracked session that leaves.
pub(super) struct Tracker {
    key: ScopeKey,
    stream: Weak<Stream>,
    topics: Topics,
    pub(super) gatherings: HashMap<ChannelName, Gathering>,
}

impl Tracker {
    pub(super) fn new(key: ScopeKey, stream: Weak<Stream>, topics: Topics) -> Self {
        Self { key, stream, topics, gatherings: HashMap::new() }
    }

    /// Takes in a session: first it is told who was announced so far, then it is announced itself.
    fn enter(&mut self, enter: EnterChannel, ctx: &mut Context<Self>) {
        let EnterChannel { worker, fanout, place, session, id, persona, format } = enter;
        // Nobody asks to be tracked in a whole scope.
        let Some(channel) = place.channel.clone() else { return };
        let members_max = self.topics.limits().presence_members_max;
        let gathering = self.gatherings.entry(channel.clone());
        let gathering = gathering.or_insert_with(|| Gathering::new(members_max));
        let reference = self.topics.reference();
        let tracked = gathering.presence.track(session, worker, persona, reference);
        let members = tracked.map(|()| gathering.spelled(format));
        fanout.do_send(Entered { place, session, id, members });
        self.announce_if_due(&channel, ctx);
    }

    /// Forgets a thread whose fan-out is gone.
    fn lose(&mut self, worker: WorkerId, ctx: &mut Context<Self>) {
        let channels: Vec<_> = self.gatherings.keys().cloned().collect();
        for channel in channels {
            if let Some(gathering) = self.gatherings.get_mut(&channel) {
                gathering.presence.untrack_worker(worker);
            }
            self.announce_if_due(&channel, ctx);
        }
    }

    /// Announces what has changed on a channel, unless it rests: then once it has rested.
    fn announce_if_due(&mut self, channel: &ChannelName, ctx: &mut Context<Self>) {
        let Some(gathering) = self.gatherings.get_mut(channel) else { return };
        if gathering.is_over() {
            self.gatherings.remove(channel);
            return;
        }
        if !gathering.wants_to_announce() {
            return;
        }
        let channel = channel.clone();
        let app = self.key.app;
        match self.topics.permits().take_at_once(app) {
            Some(permit) => self.announce(channel, permit, ctx),
            // More happens while the announcement waits its turn; it will tell all of it.
            None => {
                let permits = self.topics.permits().clone();
                let permit = async move { permits.take(app, 1).await };
                ctx.spawn(wrap_future::<_, Self>(permit).map(move |permit, tracker, ctx| {
                    // There is none any more once the server stops.
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
        // All of it may have been taken back while it waited for its permit.
        if !change.is_empty()
            && let Some(stream) = self.stream.upgrade()
        {
            let key = self.key.clone();
            stream.announce(Announcement::new(key, channel.clone(), change, permit));
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
    /// A tracker that goes before its stream was broken by a panic: the sessions that it tracked must
    /// come back, or what they know of each other would never change again.
    fn drop(&mut self) {
        if let Some(stream) = self.stream.upgrade() {
            error!("the tracker of a scope of app {} is lost", self.key.app.0);
            stream.tracker_lost();
        }
    }
}

impl Handler<EnterChannel> for Tracker {
    type Result = ();

    fn handle(&mut self, enter: EnterChannel, ctx: &mut Self::Context) {
        self.enter(enter, ctx);
    }
}

impl Handler<FanoutLost> for Tracker {
    type Result = ();

    fn handle(&mut self, FanoutLost { worker }: FanoutLost, ctx: &mut Self::Context) {
        self.lose(worker, ctx);
    }
}

impl Handler<Untrack> for Tracker {
    type Result = ();

    fn handle(&mut self, Untrack { channel, session }: Untrack, ctx: &mut Self::Context) {
        if let Some(gathering) = self.gatherings.get_mut(&channel) {
            gathering.presence.untrack(session);
        }
        self.announce_if_due(&channel, ctx);
    }
}

impl Handler<Update> for Tracker {
    type Result = ();

    fn handle(&mut self, Update { channel, session, meta }: Update, ctx: &mut Self::Context) {
        if let Some(gathering) = self.gatherings.get_mut(&channel) {
            gathering.presence.update(session, meta, self.topics.reference());
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
