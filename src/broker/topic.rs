//! A topic: one actor per scope of an app, which gives its publications one order.

use std::{collections::HashMap, sync::Arc};

use actix::{fut::wrap_future, prelude::*};
use log::{debug, error};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    announcement::Announcement,
    fanout::{Announce, Dispatch, Fanout, Introduce, Opens, TopicLost, WorkerId},
    gathering::Gathering,
    listeners::ListenersId,
    opened::Opened,
    placed::Batch,
    presence::{Full, Persona, Roster},
    publication::JsonObject,
    subscriber::{Format, ScopeKey, SessionId, SubscriptionId},
    topic_name::ChannelName,
    topics::Topics,
};

/// A worker thread now has subscribers. Idempotent; answered once they will miss nothing, and neither
/// will those who join them there (see [`Opened`]).
#[derive(Message)]
#[rtype(result = "Result<(), Full>")]
pub(super) struct Open {
    pub(super) worker: WorkerId,
    pub(super) fanout: Addr<Fanout>,
    /// Among whom the subscriber is there.
    pub(super) listeners: ListenersId,
    /// The subscriber, if it is to be tracked.
    pub(super) entrant: Option<Entrant>,
}

/// Who joins a channel where it is tracked. It has been attached at the fan-out before.
#[derive(Clone)]
pub(super) struct Entrant {
    pub(super) session: SessionId,
    pub(super) id: SubscriptionId,
    pub(super) channel: ChannelName,
    pub(super) persona: Persona,
    pub(super) format: Format,
}

/// A worker thread's last subscriber has left.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Close {
    pub(super) worker: WorkerId,
}

/// A worker thread's fan-out is gone, and all its subscribers with it.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct FanoutLost {
    pub(super) worker: WorkerId,
}

/// A tracked session has left a channel, whatever the reason. Once is enough, twice is the same.
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

/// Who is on a channel? Those who were announced, with all that happened since.
#[derive(Message)]
#[rtype(result = "Roster")]
pub(super) struct WhoIsThere(pub(super) ChannelName);

/// Publications, whose place in the order is the one that they have in the mailbox.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Publish(pub(super) Arc<Batch>);

/// Gives the publications of one scope their order and hands them to the threads that have
/// subscribers.
///
/// It knows *which* threads those are, not how many subscribers each has: a set, because opening
/// and closing twice must not drift, as counts would. When the set is empty the topic retires:
/// it leaves the directory and stops within one turn, so whoever still sends to it is told that it
/// is gone and looks anew. That is why a publication is never taken by a topic nobody listens to
/// while its successor has listeners.
///
/// Where subscribers are tracked it knows them one by one, and has their fan-outs announce what
/// changes among them. It answers for that alone: who is subscribed is the fan-outs' knowledge, and
/// they tell it of everybody who leaves.
///
/// The mailbox is bounded by the permits that publications hold, by one message per join or update,
/// and by one per tracked session that leaves.
pub(super) struct Topic {
    key: ScopeKey,
    directory: Topics,
    threads: HashMap<WorkerId, Addr<Fanout>>,
    /// What the threads know of that.
    opened: Arc<Opened>,
    gatherings: HashMap<ChannelName, Gathering>,
    retired: bool,
}

impl Topic {
    pub(super) fn new(key: ScopeKey, directory: Topics, opened: Arc<Opened>) -> Self {
        let (threads, gatherings) = (HashMap::new(), HashMap::new());
        Self { key, directory, threads, opened, gatherings, retired: false }
    }

    /// Hands something to every thread with subscribers. Never waits: what is under way is bounded
    /// by the permit that each publication and announcement holds. A thread that is lost is
    /// forgotten.
    fn hand_out<M>(&mut self, message: impl Fn() -> M, ctx: &mut Context<Self>)
    where
        M: Message<Result = ()> + Send + 'static,
        Fanout: Handler<M>,
        Context<Fanout>: actix::dev::ToEnvelope<Fanout, M>,
    {
        let lost: Vec<_> =
            self.threads.iter().filter(|(_, f)| !f.connected()).map(|(w, _)| *w).collect();
        for worker in lost {
            self.lose(worker, ctx);
        }
        for fanout in self.threads.values() {
            fanout.do_send(message());
        }
    }

    /// Takes in who joins: first it is told who was announced so far, then it is announced itself.
    fn welcome(
        &mut self,
        entrant: Entrant,
        worker: WorkerId,
        fanout: &Addr<Fanout>,
        ctx: &mut Context<Self>,
    ) -> Result<(), Full> {
        // Nobody would ever tell that it has left: its fan-out was lost, and has said so before.
        if !fanout.connected() {
            return Ok(());
        }
        let Entrant { session, id, channel, persona, format } = entrant;
        let members_max = self.directory.limits().presence_members_max;
        let gathering = self.gatherings.entry(channel.clone());
        let gathering = gathering.or_insert_with(|| Gathering::new(members_max));
        gathering.presence.track(session, worker, persona, self.directory.reference())?;
        let members = gathering.spelled(format);
        let key = self.key.clone();
        fanout.do_send(Introduce { key, channel: channel.clone(), session, id, members });
        self.announce_if_due(&channel, ctx);
        Ok(())
    }

    /// Forgets a thread whose fan-out is gone.
    fn lose(&mut self, worker: WorkerId, ctx: &mut Context<Self>) {
        self.threads.remove(&worker);
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
        match self.directory.permit_at_once() {
            Some(permit) => self.announce(channel, permit, ctx),
            // More happens while the announcement waits its turn; it will tell all of it.
            None => {
                let permit = wrap_future::<_, Self>(self.directory.permit_in_turn());
                ctx.spawn(permit.map(move |permit, topic, ctx| {
                    // There is none any more once the server stops.
                    if let Some(permit) = permit {
                        topic.announce(channel, permit, ctx);
                    }
                }));
            }
        }
    }

    fn announce(
        &mut self,
        channel: ChannelName,
        permit: OwnedSemaphorePermit,
        ctx: &mut Context<Self>,
    ) {
        let Some(gathering) = self.gatherings.get_mut(&channel) else { return };
        let change = gathering.announce();
        // All of it may have been taken back while it waited for its permit.
        if !change.is_empty() {
            let key = self.key.clone();
            let announcement = Announcement::new(key, channel.clone(), change, permit);
            let announcement = Arc::new(announcement);
            self.hand_out(|| Announce(announcement.clone()), ctx);
        }
        ctx.run_later(self.directory.limits().presence_interval, move |topic, ctx| {
            if let Some(gathering) = topic.gatherings.get_mut(&channel) {
                gathering.wake();
            }
            topic.announce_if_due(&channel, ctx);
        });
    }

    /// Retires if nobody listens any more.
    fn retire_if_deserted(&mut self, ctx: &mut Context<Self>) {
        if !self.threads.is_empty() {
            return;
        }
        debug!("topic of app {} retires", self.key.app.0);
        self.retired = true;
        self.directory.forget(&self.key, &ctx.address());
        ctx.stop();
    }
}

impl Actor for Topic {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(Topics::MAILBOX_CAPACITY);
    }
}

impl Drop for Topic {
    /// A topic that goes without having retired was broken by a panic: its subscribers must come
    /// back, or they would be joined but deaf.
    fn drop(&mut self) {
        if self.retired || self.threads.is_empty() {
            return;
        }
        error!("topic of app {} is lost; its sessions are ended", self.key.app.0);
        // First: who joins once they have heard of it must find nothing open.
        self.opened.lose();
        for fanout in self.threads.values() {
            fanout.do_send(TopicLost(self.key.clone()));
        }
    }
}

impl Handler<Open> for Topic {
    type Result = Result<(), Full>;

    fn handle(&mut self, open: Open, ctx: &mut Self::Context) -> Self::Result {
        let Open { worker, fanout, listeners, entrant } = open;
        self.threads.insert(worker, fanout.clone());
        fanout.do_send(Opens(self.key.clone(), listeners));
        entrant.map_or(Ok(()), |entrant| self.welcome(entrant, worker, &fanout, ctx))
    }
}

impl Handler<Close> for Topic {
    type Result = ();

    fn handle(&mut self, Close { worker }: Close, ctx: &mut Self::Context) {
        // Those of its subscribers who were tracked were told of one by one.
        self.threads.remove(&worker);
        self.retire_if_deserted(ctx);
    }
}

impl Handler<FanoutLost> for Topic {
    type Result = ();

    fn handle(&mut self, FanoutLost { worker }: FanoutLost, ctx: &mut Self::Context) {
        self.lose(worker, ctx);
        self.retire_if_deserted(ctx);
    }
}

impl Handler<Untrack> for Topic {
    type Result = ();

    fn handle(&mut self, Untrack { channel, session }: Untrack, ctx: &mut Self::Context) {
        if let Some(gathering) = self.gatherings.get_mut(&channel) {
            gathering.presence.untrack(session);
        }
        self.announce_if_due(&channel, ctx);
    }
}

impl Handler<Update> for Topic {
    type Result = ();

    fn handle(&mut self, Update { channel, session, meta }: Update, ctx: &mut Self::Context) {
        if let Some(gathering) = self.gatherings.get_mut(&channel) {
            gathering.presence.update(session, meta, self.directory.reference());
        }
        self.announce_if_due(&channel, ctx);
    }
}

impl Handler<WhoIsThere> for Topic {
    type Result = MessageResult<WhoIsThere>;

    fn handle(&mut self, WhoIsThere(channel): WhoIsThere, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.gatherings.get(&channel).map(Gathering::members).unwrap_or_default())
    }
}

impl Handler<Publish> for Topic {
    type Result = ();

    fn handle(&mut self, Publish(batch): Publish, ctx: &mut Self::Context) {
        let had_threads = !self.threads.is_empty();
        self.hand_out(|| Dispatch(batch.clone()), ctx);
        if had_threads {
            self.retire_if_deserted(ctx);
        }
    }
}

#[cfg(test)]
mod tests;
