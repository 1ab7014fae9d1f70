//! A fan-out: one actor per worker thread, which hands each subscriber living there its frame.

use std::{
    cell::Cell,
    collections::HashMap,
    mem,
    rc::Rc,
    sync::{Arc, Weak},
};

use actix::prelude::*;
use bytestring::ByteString;
use indexmap::IndexMap;
use log::{error, warn};

use crate::{
    app::{AppId, registry::AppChanged},
    metrics::apps::Traffic,
};

use super::{
    announcement::Announcement,
    count::Count,
    disconnection::Disconnection,
    listeners::{Departure, Group, Listeners, ListenersId, Member, Sampler, Tracking},
    occupancy::Rank,
    outbox::{Ending, Excess, News, Outbox},
    placed::{Batch, Level, Placed},
    publication::Destination,
    subscriber::{Place, ScopeKey, SessionId, Subscription, SubscriptionId},
    topic_name::{ChannelName, Scope},
    topics::Topics,
};

/// How many topics are handed a publication before the sockets get a turn. Without it a burst, or one
/// `#general` to a client of many channels, fills healthy outboxes; with it several frames leave in
/// one write.
const HANDED_PER_TURN: usize = 16;

/// A worker thread, unique for the life of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerId(pub u64);

/// The fan-out of one thread, as the sessions there know it.
#[derive(Debug)]
pub struct ThreadFanout {
    /// Whose it is.
    pub worker: WorkerId,
    /// Where it is.
    pub addr: Addr<Fanout>,
    /// The newest batch that it has begun to hand out.
    pub(super) handed: Rc<Cell<u64>>,
}

/// A session has begun.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Enter(pub Arc<Outbox>);

/// A session has ended; all its subscriptions go with it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Leave(pub SessionId);

/// A session subscribes. Idempotent: one session hears one place once under each name it has for it.
/// Answers among which listeners it is.
#[derive(Debug, Message)]
#[rtype(result = "ListenersId")]
pub struct Attach {
    /// Who.
    pub session: SessionId,
    /// Under which id its frames are delivered.
    pub id: SubscriptionId,
    /// To what.
    pub subscription: Subscription,
}

/// A session unsubscribes.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Detach {
    /// Who.
    pub session: SessionId,
    /// Under which id it was subscribed.
    pub id: SubscriptionId,
    /// From what.
    pub place: Place,
}

/// The server stops: end every session of this thread. Answers how many there were.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "usize")]
pub(super) struct EndAll;

/// An app wants some of its joins ended: tell the sessions that may have any.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub(super) struct EndJoins(pub(super) Arc<Disconnection>);

/// More waits for all sessions than may, and a session keeps more of it.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Relieve;

/// The server stops: end so many sessions of this thread, if there are.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Ended")]
pub(super) struct EndSome(pub(super) usize);

/// What ending some sessions of a thread has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// So many are being ended.
    pub(super) ended: usize,
    /// So many are not.
    pub(super) left: usize,
}

/// A topic has opened for listeners of this thread: from here on it hands over all that is published.
/// What it sent before was for others, who have left.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Opens(pub(super) ScopeKey, pub(super) ListenersId);

/// Publications to hand out, in their order.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Dispatch(pub(super) Arc<Batch>);

/// Somebody who joined where it is tracked is told who is there. What is announced from now on is
/// for it, too.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Introduce {
    pub(super) key: ScopeKey,
    pub(super) channel: ChannelName,
    pub(super) session: SessionId,
    /// The join it belongs to: the session may have left and joined again since.
    pub(super) id: SubscriptionId,
    /// Who is there, spelled for its client.
    pub(super) members: ByteString,
}

/// What has changed among the members of a channel.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Announce(pub(super) Arc<Announcement>);

/// A topic was broken by a panic: end the sessions that listened to it.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct TopicLost(pub(super) ScopeKey);

/// Hands publications to the subscribers of its thread: deliveries never cross threads one by one.
///
/// Whoever cannot take a frame at once has its session ended; nobody is waited for.
/// The mailbox takes dispatches without limit because each holds a permit (see
/// [`Topics`]), and at most three messages per join besides.
pub struct Fanout {
    worker: WorkerId,
    topics: Topics,
    /// Not a `HashMap`: its table doubles as members come and go; here only that of the indices does.
    sessions: IndexMap<SessionId, Present>,
    scopes: HashMap<ScopeKey, Listeners>,
    next_listeners: ListenersId,
    handed_this_turn: usize,
    handed: Rc<Cell<u64>>,
    sampler: Sampler,
    /// The session that gives way to the others, until it is over.
    relieving: Option<Weak<Outbox>>,
    /// Whether the server stops: who was on its way in meanwhile is ended like the others.
    stopping: bool,
}

/// A session of this thread and where it sits.
struct Present {
    outbox: Arc<Outbox>,
    places: Vec<Place>,
}

/// How far handing out a batch has got.
struct Course {
    batch: Arc<Batch>,
    /// So many of it have been begun.
    begun: usize,
    /// Channels that the last one begun has yet to reach.
    channels: Vec<ChannelName>,
}

impl Course {
    fn is_over(&self) -> bool {
        self.channels.is_empty() && self.begun >= self.batch.publications.len()
    }

    /// The next publication.
    fn begin(&mut self) -> Option<&Placed> {
        let placed = self.batch.publications.get(self.begun)?;
        self.begun += 1;
        Some(placed)
    }

    /// The next channel that the last publication begun has yet to reach.
    fn go_on(&mut self) -> Option<(&Placed, ChannelName)> {
        let channel = self.channels.pop()?;
        Some((self.batch.publications.get(self.begun.checked_sub(1)?)?, channel))
    }
}

impl Fanout {
    /// Makes the fan-out of one worker thread; start it on that thread.
    pub(super) fn new(worker: WorkerId, topics: Topics, handed: Rc<Cell<u64>>) -> Self {
        Self {
            worker,
            topics,
            sessions: IndexMap::new(),
            scopes: HashMap::new(),
            next_listeners: ListenersId::default(),
            handed_this_turn: 0,
            handed,
            sampler: Sampler::default(),
            relieving: None,
            stopping: false,
        }
    }

    fn attach(&mut self, Attach { session, id, subscription }: Attach) -> ListenersId {
        let none = self.next_listeners;
        let Some(present) = self.sessions.get_mut(&session) else { return none };
        let Subscription { place, topic, format, persona } = subscription;
        let listeners = self.scopes.entry(place.key.clone());
        let listeners = listeners.or_insert_with(|| {
            let traffic = self.topics.metrics().app(place.key.app.0);
            let id = self.next_listeners;
            self.next_listeners = ListenersId(id.0 + 1);
            Listeners::new(id, traffic, self.topics.is_open(&place.key, self.worker))
        });
        let listeners_id = listeners.id;
        let naming = listeners.naming_mut(place.channel.as_ref(), topic);
        let before = naming.members.get(&session).filter(|member| member.id == id);
        let tracking = Tracking::of(persona.as_ref(), before);
        let member = Member { outbox: present.outbox.clone(), id, format, tracking };
        if naming.members.insert(session, member).is_none() {
            if present.places.is_empty() {
                // One is the common case, and an idle session should not keep room for four.
                present.places.reserve_exact(1);
            }
            present.places.push(place);
        }
        listeners_id
    }

    fn detach(&mut self, Detach { session, id, place }: &Detach) {
        let departure = self.vacate(*session, place, Some(*id));
        let Some(present) = self.sessions.get_mut(session) else { return };
        present.outbox.detached(*id);
        // Listed once for each name by which the session joined it.
        let held = present.places.iter().position(|held| held == place);
        if let Some(nth) = held.filter(|_| departure != Departure::Absent) {
            present.places.swap_remove(nth);
        }
    }

    /// Removes what a session joined at a place under this id, or all that it joined there, and tells
    /// the topic if the session is tracked there no longer. With the last member of a scope the topic
    /// stops sending to this thread.
    fn vacate(
        &mut self,
        session: SessionId,
        place: &Place,
        id: Option<SubscriptionId>,
    ) -> Departure {
        let Some(listeners) = self.scopes.get_mut(&place.key) else { return Departure::Absent };
        let departure = listeners.remove(place.channel.as_ref(), session, id);
        let is_deserted = listeners.whole.is_none() && listeners.channels.is_empty();
        if let (Departure::LeftPresence, Some(channel)) = (departure, &place.channel) {
            self.topics.untrack(&place.key, channel, session);
        }
        if is_deserted {
            self.scopes.remove(&place.key);
            self.topics.close(&place.key, self.worker);
        }
        departure
    }

    fn leave(&mut self, session: SessionId) {
        let Some(present) = self.sessions.swap_remove(&session) else { return };
        for place in &present.places {
            self.vacate(session, place, None);
        }
    }

    /// Hands a publication out: here channels and `#general` are decided. What is left are channels
    /// that `#general` has yet to reach.
    fn dispatch(&mut self, placed: &Placed) -> Vec<ChannelName> {
        let listeners = self.scopes.get(placed.key()).filter(|listeners| listeners.is_open);
        let Some(listeners) = listeners else { return Vec::new() };
        if let Some(whole) = &listeners.whole {
            self.hand(whole, placed, Level::Scope, &listeners.traffic);
        }
        self.handed_this_turn += 1;
        match placed.destination() {
            Destination::Channel(channel) => {
                if let Some(group) = listeners.channels.get(channel) {
                    self.hand(group, placed, Level::Channel, &listeners.traffic);
                }
                Vec::new()
            }
            Destination::General => listeners.channels.keys().cloned().collect(),
        }
    }

    /// Hands a publication to one of the channels that `#general` reaches.
    fn spread(&mut self, placed: &Placed, channel: &ChannelName) {
        let Some(listeners) = self.scopes.get(placed.key()) else { return };
        if let Some(group) = listeners.channels.get(channel) {
            self.hand(group, placed, Level::Channel, &listeners.traffic);
            self.handed_this_turn += 1;
        }
    }

    /// Hands a publication to those who joined one topic, and now and then asks one of them how long
    /// it takes.
    fn hand(&self, group: &Group, placed: &Placed, level: Level, traffic: &Traffic) {
        let turn = self.sampler.turn(placed.taken_at());
        let sampled = turn.map(|turn| turn % group.len().max(1));
        group.deliver(placed, level, sampled, traffic);
    }

    /// Goes on handing out, turn by turn. Nothing else is handed out in between, so all see one order.
    fn proceed(&mut self, mut course: Course, ctx: &mut Context<Self>) {
        while !course.is_over() {
            if self.handed_this_turn >= HANDED_PER_TURN {
                return Self::rest(ctx, |fanout, ctx| fanout.proceed(course, ctx));
            }
            if let Some((placed, channel)) = course.go_on() {
                self.spread(placed, &channel);
            } else if let Some(placed) = course.begin() {
                course.channels = self.dispatch(placed);
            }
        }
        self.relieve();
        self.rest_if_due(ctx);
    }

    /// Ends the session of this thread for which most waits, if more waits for all sessions than may.
    /// Its memory is free once it is over; until then nothing shows whether another has to go.
    fn relieve(&mut self) {
        if !self.topics.backlog().is_exceeded() {
            return;
        }
        let relieving = self.relieving.as_ref().and_then(Weak::upgrade);
        if relieving.is_some_and(|outbox| !outbox.is_closed()) {
            return;
        }
        let open = self.sessions.values().map(|present| &present.outbox);
        let open = open.filter(|outbox| outbox.ended().is_none());
        let fullest = open.max_by_key(|outbox| outbox.load().bytes);
        if let Some(outbox) = fullest.filter(|outbox| outbox.load().bytes > 0) {
            outbox.end(Ending::SlowConsumer(Excess::AllBytes));
            self.relieving = Some(Arc::downgrade(outbox));
        }
    }

    /// Lets the sockets have their turn once enough was handed out.
    fn rest_if_due(&self, ctx: &mut Context<Self>) {
        if self.handed_this_turn >= HANDED_PER_TURN {
            Self::rest(ctx, |_, _| {});
        }
    }

    /// Lets the sockets have their turn; nothing else happens here until then.
    fn rest(ctx: &mut Context<Self>, then: impl FnOnce(&mut Self, &mut Context<Self>) + 'static) {
        let turn = actix::fut::wrap_future::<_, Self>(tokio::task::yield_now());
        ctx.wait(turn.map(|(), fanout, ctx| {
            fanout.handed_this_turn = 0;
            then(fanout, ctx);
        }));
    }

    fn introduce(&mut self, introduce: Introduce) {
        let Introduce { key, channel, session, id, members } = introduce;
        let listeners = self.scopes.get_mut(&key);
        let group = listeners.and_then(|all| all.channels.get_mut(&channel));
        let Some(member) = group.and_then(|group| group.member_mut(session, id)) else { return };
        if member.outbox.introduce(members, id) {
            member.tracking = Tracking::Introduced;
        }
    }

    /// How much waits for the sessions of this thread, and how much they joined.
    pub(super) fn count(&self) -> Count {
        let mut count = Count::default();
        for load in self.sessions.values().map(|present| present.outbox.load()) {
            count.add(load);
        }
        for (key, listeners) in &self.scopes {
            let groups = listeners.whole.iter().chain(listeners.channels.values());
            let joined: usize = groups.map(Group::len).sum();
            *count.subscriptions.entry(key.app.0).or_default() += joined as u64;
        }
        count
    }

    /// The places of an app that have subscribers on this thread, of one scope or of all.
    pub(super) fn occupied(
        &self,
        app: AppId,
        scope: Option<&Scope>,
    ) -> impl Iterator<Item = (Rank, usize)> {
        let is_asked_for =
            move |key: &ScopeKey| key.app == app && scope.is_none_or(|scope| key.scope == *scope);
        let scopes = self.scopes.iter().filter(move |(key, _)| is_asked_for(key));
        scopes.flat_map(|(key, Listeners { whole, channels, .. })| {
            let whole = whole.iter().map(|group| (None, group));
            let channels = channels.iter().map(|(channel, group)| (Some(channel.clone()), group));
            whole
                .chain(channels)
                .map(|(channel, group)| (Rank { scope: key.scope.clone(), channel }, group.len()))
        })
    }

    /// How many subscribers of this thread a place has.
    pub(super) fn subscribers_of(&self, place: &Place) -> usize {
        let Some(listeners) = self.scopes.get(&place.key) else { return 0 };
        let group = match &place.channel {
            None => listeners.whole.as_ref(),
            Some(channel) => listeners.channels.get(channel),
        };
        group.map_or(0, Group::len)
    }

    /// The sessions that listen to places which `concerned` picks, each once.
    fn sessions_of(&self, concerned: impl Fn(&Place) -> bool) -> impl Iterator<Item = &Outbox> {
        let concerns = move |p: &&Present| p.places.iter().any(&concerned);
        self.sessions.values().filter(concerns).map(|p| &*p.outbox)
    }
}

impl Actor for Fanout {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(Topics::MAILBOX_CAPACITY);
    }
}

impl Drop for Fanout {
    /// A fan-out goes when its thread stops, or by a panic. Either way its sessions would be deaf.
    fn drop(&mut self) {
        if !self.sessions.is_empty() {
            error!(
                "fan-out {} is lost; its {} sessions are ended",
                self.worker.0,
                self.sessions.len()
            );
        }
        for present in mem::take(&mut self.sessions).into_values() {
            present.outbox.end(Ending::Broken);
        }
        // They will not be told one by one who of its subscribers has left.
        for key in self.scopes.keys() {
            self.topics.fanout_lost(key, self.worker);
        }
    }
}

impl Handler<Enter> for Fanout {
    type Result = ();

    fn handle(&mut self, Enter(outbox): Enter, _: &mut Self::Context) {
        if self.stopping {
            outbox.end(Ending::Shutdown);
        }
        self.sessions.insert(outbox.session(), Present { outbox, places: Vec::new() });
    }
}

impl Handler<Leave> for Fanout {
    type Result = ();

    fn handle(&mut self, Leave(session): Leave, _: &mut Self::Context) {
        self.leave(session);
    }
}

impl Handler<Attach> for Fanout {
    type Result = MessageResult<Attach>;

    fn handle(&mut self, attach: Attach, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.attach(attach))
    }
}

impl Handler<Detach> for Fanout {
    type Result = ();

    fn handle(&mut self, detach: Detach, _: &mut Self::Context) {
        self.detach(&detach);
    }
}

impl Handler<Opens> for Fanout {
    type Result = ();

    fn handle(&mut self, Opens(key, id): Opens, _: &mut Self::Context) {
        if let Some(listeners) = self.scopes.get_mut(&key) {
            // Who asked may have been the last of others, and have left before it was answered.
            listeners.is_open |= listeners.id == id;
        }
    }
}

impl Handler<Relieve> for Fanout {
    type Result = ();

    fn handle(&mut self, Relieve: Relieve, _: &mut Self::Context) {
        self.relieve();
    }
}

impl Handler<Dispatch> for Fanout {
    type Result = ();

    fn handle(&mut self, Dispatch(batch): Dispatch, ctx: &mut Self::Context) {
        // Batches of several topics may come in another order than they were published in.
        self.handed.set(self.handed.get().max(batch.number));
        self.proceed(Course { batch, begun: 0, channels: Vec::new() }, ctx);
    }
}

impl Handler<Introduce> for Fanout {
    type Result = ();

    fn handle(&mut self, introduce: Introduce, _: &mut Self::Context) {
        self.introduce(introduce);
    }
}

impl Handler<Announce> for Fanout {
    type Result = ();

    fn handle(&mut self, Announce(announcement): Announce, ctx: &mut Self::Context) {
        if let Some(listeners) = self.scopes.get(&announcement.key)
            && let Some(group) = listeners.channels.get(&announcement.channel)
        {
            group.announce(&announcement, &listeners.traffic);
            self.handed_this_turn += 1;
        }
        self.rest_if_due(ctx);
    }
}

impl Handler<AppChanged> for Fanout {
    type Result = ();

    fn handle(&mut self, AppChanged(app): AppChanged, _: &mut Self::Context) {
        for outbox in self.sessions_of(|place| place.key.app == app) {
            outbox.tell(News::AppChanged(app));
        }
    }
}

impl Handler<TopicLost> for Fanout {
    type Result = ();

    fn handle(&mut self, TopicLost(lost): TopicLost, _: &mut Self::Context) {
        let mut ended = 0;
        for outbox in self.sessions_of(|place| place.key == lost) {
            outbox.end(Ending::Broken);
            ended += 1;
        }
        warn!("{ended} sessions of a lost topic are ended");
    }
}

impl Handler<EndJoins> for Fanout {
    type Result = ();

    /// Who is about to join is told as well, whatever it joins: its place may be on its way here.
    fn handle(&mut self, EndJoins(disconnection): EndJoins, _: &mut Self::Context) {
        let joins = &disconnection.joins;
        for Present { outbox, places } in self.sessions.values() {
            if outbox.is_joining() || places.iter().any(|place| joins.may_concern(place)) {
                outbox.tell(News::Disconnect(disconnection.clone()));
            }
        }
    }
}

impl Handler<EndAll> for Fanout {
    type Result = usize;

    fn handle(&mut self, _: EndAll, _: &mut Self::Context) -> usize {
        self.stopping = true;
        for present in self.sessions.values() {
            present.outbox.end(Ending::Shutdown);
        }
        self.sessions.len()
    }
}

impl Handler<EndSome> for Fanout {
    type Result = MessageResult<EndSome>;

    fn handle(&mut self, EndSome(sessions_max): EndSome, _: &mut Self::Context) -> Self::Result {
        let open = || self.sessions.values().filter(|present| present.outbox.ended().is_none());
        let mut ended = 0;
        for present in open().take(sessions_max) {
            present.outbox.end(Ending::Shutdown);
            ended += 1;
        }
        MessageResult(Ended { ended, left: open().count() })
    }
}

#[cfg(test)]
mod tests;
