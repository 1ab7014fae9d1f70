//! A fan-out: one actor per worker thread, which hands each subscriber living there its frame.

use std::{cell::Cell, collections::HashMap, mem, sync::Arc, time::Instant};

use actix::prelude::*;
use bytestring::ByteString;
use indexmap::IndexMap;
use log::{error, warn};

use crate::{
    app::{AppId, registry::AppChanged},
    metrics::{SAMPLE_INTERVAL, apps::Traffic},
};

use super::{
    announcement::Announcement,
    count::Count,
    occupancy::Rank,
    placed::{Level, Placed},
    presence::Persona,
    publication::Destination,
    subscriber::{
        Disconnect, Ending, Format, Frame, Outbox, Place, ScopeKey, SessionId, Subscription,
        SubscriptionId, ToSession,
    },
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

/// A session has begun.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Enter(pub Arc<Outbox>);

/// A session has ended; all its subscriptions go with it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Leave(pub SessionId);

/// A session subscribes. Idempotent: one session hears one place once, in its latest spelling.
#[derive(Debug, Message)]
#[rtype(result = "()")]
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
pub(super) struct EndJoins(pub(super) Arc<Disconnect>);

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

/// A publication to hand out.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Dispatch(pub(super) Arc<Placed>);

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
/// [`Topics`]), and at most one message per session besides.
pub struct Fanout {
    worker: WorkerId,
    topics: Topics,
    sessions: HashMap<SessionId, Present>,
    scopes: HashMap<ScopeKey, Listeners>,
    handed_this_turn: usize,
    sampler: Sampler,
    /// Whether the server stops: who was on its way in meanwhile is ended like the others.
    stopping: bool,
}

/// A session of this thread and where it sits.
struct Present {
    outbox: Arc<Outbox>,
    places: Vec<Place>,
}

/// Who listens to one scope.
struct Listeners {
    traffic: Arc<Traffic>,
    whole: Option<Group>,
    channels: HashMap<ChannelName, Group>,
}

/// Who joined one and the same topic.
struct Group {
    topic: ByteString,
    members: IndexMap<SessionId, Member>,
}

struct Member {
    outbox: Arc<Outbox>,
    id: SubscriptionId,
    format: Format,
    tracking: Tracking,
}

/// Whether a member is itself among those who are there, and knows the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracking {
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
    fn of(persona: Option<&Persona>, before: Option<&Member>) -> Self {
        match (persona, before.map(|member| member.tracking)) {
            (None, _) => Self::Untracked,
            (Some(_), Some(Self::Introduced)) => Self::Introduced,
            (Some(_), _) => Self::Expected,
        }
    }
}

impl Listeners {
    fn counted_by(traffic: Arc<Traffic>) -> Self {
        Self { traffic, whole: None, channels: HashMap::new() }
    }
}

impl Fanout {
    /// Makes the fan-out of one worker thread; start it on that thread.
    pub fn new(worker: WorkerId, topics: Topics) -> Self {
        Self {
            worker,
            topics,
            sessions: HashMap::new(),
            scopes: HashMap::new(),
            handed_this_turn: 0,
            sampler: Sampler::default(),
            stopping: false,
        }
    }

    fn attach(&mut self, Attach { session, id, subscription }: Attach) {
        let Some(present) = self.sessions.get_mut(&session) else { return };
        let Subscription { place, topic, format, persona } = subscription;
        let listeners = self.scopes.entry(place.key.clone());
        let traffic = || self.topics.metrics().app(place.key.app.0);
        let listeners = listeners.or_insert_with(|| Listeners::counted_by(traffic()));
        let new_group = || Group { topic: topic.clone(), members: IndexMap::new() };
        let group = match &place.channel {
            None => listeners.whole.get_or_insert_with(new_group),
            Some(channel) => listeners.channels.entry(channel.clone()).or_insert_with(new_group),
        };
        // An app that was renamed is spelled anew by whoever joins; who joined before is on its way out.
        group.topic = topic;
        let before = group.members.get(&session).filter(|member| member.id == id);
        let tracking = Tracking::of(persona.as_ref(), before);
        let member = Member { outbox: present.outbox.clone(), id, format, tracking };
        if group.members.insert(session, member).is_none() {
            present.places.push(place);
        }
    }

    fn detach(&mut self, session: SessionId, place: &Place) {
        if let Some(present) = self.sessions.get_mut(&session) {
            present.places.retain(|held| held != place);
        }
        self.vacate(session, place);
    }

    /// Removes a member, and has its topic know if it was tracked; the last one of a scope closes
    /// this thread there.
    fn vacate(&mut self, session: SessionId, place: &Place) {
        let Some(listeners) = self.scopes.get_mut(&place.key) else { return };
        let left = listeners.remove(session, place.channel.as_ref());
        let is_deserted = listeners.whole.is_none() && listeners.channels.is_empty();
        if let (Some(member), Some(channel)) = (left, &place.channel)
            && member.tracking != Tracking::Untracked
        {
            self.topics.untrack(&place.key, channel, session);
        }
        if is_deserted {
            self.scopes.remove(&place.key);
            self.topics.close(&place.key, self.worker);
        }
    }

    fn leave(&mut self, session: SessionId) {
        let Some(present) = self.sessions.remove(&session) else { return };
        for place in &present.places {
            self.vacate(session, place);
        }
    }

    /// Hands a publication out: here channels and `#general` are decided. What is left for the
    /// turns to come are channels that `#general` has yet to reach.
    fn dispatch(&mut self, placed: &Placed) -> Vec<ChannelName> {
        let Some(listeners) = self.scopes.get(placed.key()) else { return Vec::new() };
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

    /// Hands a publication to those who joined one topic, and now and then asks one of them how long
    /// it takes.
    fn hand(&self, group: &Group, placed: &Placed, level: Level, traffic: &Traffic) {
        let turn = self.sampler.turn(placed.taken_at());
        let sampled = turn.map(|turn| turn % group.members.len().max(1));
        group.deliver(placed, level, sampled, traffic);
    }

    /// Hands a publication to channel after channel, turn by turn. Nothing else is handed out in
    /// between, so all see one order.
    fn spread(
        &mut self,
        placed: Arc<Placed>,
        mut channels: Vec<ChannelName>,
        ctx: &mut Context<Self>,
    ) {
        while self.handed_this_turn < HANDED_PER_TURN {
            let Some(channel) = channels.pop() else { return };
            let Some(listeners) = self.scopes.get(placed.key()) else { return };
            if let Some(group) = listeners.channels.get(&channel) {
                self.hand(group, &placed, Level::Channel, &listeners.traffic);
                self.handed_this_turn += 1;
            }
        }
        let turn = actix::fut::wrap_future::<_, Self>(tokio::task::yield_now());
        ctx.wait(turn.map(move |(), fanout, ctx| {
            fanout.handed_this_turn = 0;
            fanout.spread(placed, channels, ctx);
        }));
    }

    /// Lets the sockets have their turn once enough was handed out.
    fn rest_if_due(&self, ctx: &mut Context<Self>) {
        if self.handed_this_turn >= HANDED_PER_TURN {
            let turn = actix::fut::wrap_future::<_, Self>(tokio::task::yield_now());
            ctx.wait(turn.map(|(), fanout, _| fanout.handed_this_turn = 0));
        }
    }

    fn introduce(&mut self, introduce: Introduce) {
        let Introduce { key, channel, session, id, members } = introduce;
        let listeners = self.scopes.get_mut(&key);
        let group = listeners.and_then(|all| all.channels.get_mut(&channel));
        let Some(member) = group.and_then(|group| group.members.get_mut(&session)) else { return };
        if member.id == id && member.outbox.introduce(members, id) {
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
            let joined: usize = groups.map(|group| group.members.len()).sum();
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
            whole.chain(channels).map(|(channel, group)| {
                (Rank { scope: key.scope.clone(), channel }, group.members.len())
            })
        })
    }

    /// How many subscribers of this thread a place has.
    pub(super) fn subscribers_of(&self, place: &Place) -> usize {
        let Some(listeners) = self.scopes.get(&place.key) else { return 0 };
        let group = match &place.channel {
            None => listeners.whole.as_ref(),
            Some(channel) => listeners.channels.get(channel),
        };
        group.map_or(0, |group| group.members.len())
    }

    /// The sessions that listen to places which `concerned` picks, each once.
    fn sessions_of(&self, concerned: impl Fn(&Place) -> bool) -> impl Iterator<Item = &Outbox> {
        let concerns = move |p: &&Present| p.places.iter().any(&concerned);
        self.sessions.values().filter(concerns).map(|p| &*p.outbox)
    }
}

/// Says when to measure, and whom.
#[derive(Default)]
struct Sampler {
    last: Cell<Option<Instant>>,
    turns: Cell<usize>,
}

impl Sampler {
    /// Whose turn it is, if it is time for another; nobody reads a clock for it.
    fn turn(&self, now: Instant) -> Option<usize> {
        let is_early = |last| now.saturating_duration_since(last) < SAMPLE_INTERVAL;
        if self.last.get().is_some_and(is_early) {
            return None;
        }
        self.last.set(Some(now));
        Some(self.turns.replace(self.turns.get().wrapping_add(1)))
    }
}

impl Listeners {
    /// Removes a member; a channel that nobody is left on goes with it.
    fn remove(&mut self, session: SessionId, channel: Option<&ChannelName>) -> Option<Member> {
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

impl Group {
    /// Hands everyone its frame, but those who can be sent none like it; the one at the place
    /// `sampled` is to measure. Who cannot take it is ended by its outbox, and leaves with its session.
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
            if member.outbox.deliver_sampled(frame, member.id, published) {
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
    fn announce(&self, announcement: &Announcement, traffic: &Traffic) {
        let mut frames: [Option<Frame>; Format::COUNT] = Default::default();
        let (mut delivered, mut bytes) = (0, 0);
        for member in self.members.values() {
            if member.tracking != Tracking::Introduced {
                continue;
            }
            let spell = || announcement.frame(member.format, &self.topic);
            let frame = frames[member.format.slot].get_or_insert_with(spell);
            if member.outbox.deliver(frame, member.id) {
                delivered += 1;
                bytes += frame.size_bytes() as u64;
            }
        }
        traffic.delivered(delivered, bytes);
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
    type Result = ();

    fn handle(&mut self, attach: Attach, _: &mut Self::Context) {
        self.attach(attach);
    }
}

impl Handler<Detach> for Fanout {
    type Result = ();

    fn handle(&mut self, Detach { session, place }: Detach, _: &mut Self::Context) {
        self.detach(session, &place);
    }
}

impl Handler<Dispatch> for Fanout {
    type Result = ();

    fn handle(&mut self, Dispatch(placed): Dispatch, ctx: &mut Self::Context) {
        let channels = self.dispatch(&placed);
        self.spread(placed, channels, ctx);
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
            outbox.tell(ToSession::AppChanged(app));
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
    fn handle(&mut self, EndJoins(disconnect): EndJoins, _: &mut Self::Context) {
        for Present { outbox, places } in self.sessions.values() {
            if outbox.is_joining() || places.iter().any(|place| disconnect.may_concern(place)) {
                outbox.tell(ToSession::Disconnect(disconnect.clone()));
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
mod tests {
    use futures_util::task::noop_waker;

    use super::super::subscriber::{Excess, Load};
    use super::super::{
        Payload, Publication,
        testing::{Broker, DEADLINE, Probe, channel, key, publication, whole},
    };
    use super::*;
    use crate::app::subject::Subject;

    /// Makes a fan-out panic.
    #[derive(Message)]
    #[rtype(result = "()")]
    struct Break;

    impl Handler<Break> for Fanout {
        type Result = ();

        fn handle(&mut self, _: Break, _: &mut Self::Context) {
            panic!("on purpose");
        }
    }

    #[actix_web::test]
    async fn each_hears_what_it_joined_and_each_place_once() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let (mut all, mut room, mut other) =
            (broker.session(1).await, broker.session(2).await, broker.session(3).await);
        for (probe, place) in [
            (&all, whole(&scope)),
            (&all, whole(&scope)),
            (&room, channel(&scope, "room")),
            (&other, channel(&scope, "other")),
            (&other, whole(&key(2, "public"))),
        ] {
            broker.join(probe, place).await.expect("a place");
        }
        for destination in ["room", "#general"] {
            broker.publish(&scope, destination, "msg").await;
        }
        assert_eq!([all.next().await, all.next().await], ["* room:msg", "* msg"]);
        assert_eq!([room.next().await, room.next().await], ["room msg", "room #general:msg"]);
        assert_eq!(other.next().await, "other #general:msg");
        for probe in [&mut all, &mut room, &mut other] {
            assert!(probe.has_heard_nothing(), "{:?}", probe.session);
        }
    }

    #[actix_web::test]
    async fn who_joins_a_renamed_app_hears_it_by_its_new_name_though_others_have_not_left() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let (old, mut new) = (broker.session(1).await, broker.session(2).await);
        for (probe, topic) in [(&old, "public:old"), (&new, "public:new")] {
            broker.join_as(probe, whole(&scope), topic).await.expect("a place");
        }
        broker.publish(&scope, "#general", "msg").await;
        assert_eq!(new.next().await, "public:new msg");
    }

    #[actix_web::test]
    async fn one_for_all_channels_lets_those_who_keep_up_take_their_turn() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let mut probe = broker.session(1).await;
        // More channels than its outbox has room for.
        for nth in 0..64 {
            let place = channel(&scope, &format!("c{nth}"));
            broker.join(&probe, place).await.expect("a place");
        }
        broker.publish(&scope, "#general", "first").await;
        broker.publish(&scope, "c5", "second").await;
        let mut heard = Vec::new();
        for _ in 0..64 {
            heard.push(probe.next().await);
        }
        assert!(heard.iter().all(|frame| frame.ends_with(" #general:first")), "{heard:?}");
        assert_eq!(heard.iter().collect::<std::collections::HashSet<_>>().len(), 64);
        assert_eq!(probe.next().await, "c5 second", "in order, behind all of the first");
    }

    #[actix_web::test]
    async fn who_does_not_take_its_frames_is_ended_and_nobody_waits_for_it() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let stuck = broker.stuck_session(1, 1).await;
        let mut healthy = broker.session(2).await;
        for probe in [&stuck, &healthy] {
            broker.join(probe, whole(&scope)).await.expect("a place");
        }
        let waker = noop_waker();
        for n in 0..100 {
            broker.publish(&scope, "#general", &format!("e{n}")).await;
            assert_eq!(healthy.next().await, format!("* e{n}"));
        }
        let ending = Some(Ending::SlowConsumer(Excess::Frames));
        assert_eq!(stuck.outbox.ending(&waker), ending);
        assert_eq!(healthy.outbox.ending(&waker), None);
    }

    #[actix_web::test]
    async fn bytes_are_handed_to_who_can_be_sent_any_and_the_others_are_counted() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let (mut all, mut room, mut text) =
            (broker.session(1).await, broker.session(2).await, broker.session(3).await);
        broker.join_for_bytes(&all, whole(&scope)).await;
        broker.join_for_bytes(&room, channel(&scope, "room")).await;
        for place in [whole(&scope), channel(&scope, "room"), channel(&scope, "other")] {
            broker.join(&text, place).await.expect("a place");
        }
        let bytes = |destination| Publication {
            payload: Payload::Bytes(b"\x00!".as_slice().into()),
            ..publication(&scope, destination, "msg")
        };
        for (publications, skipped) in [
            (vec![bytes("room")], Some(2)),
            (vec![bytes("#general")], Some(3)),
            (vec![bytes("room"), publication(&scope, "room", "msg"), bytes("room")], Some(4)),
            (vec![Publication { app: AppId(2), ..bytes("room") }], Some(0)),
        ] {
            let receipt = broker.topics.publish_all(publications).await.expect("a receipt");
            assert!(receipt.may_skip());
            assert_eq!(receipt.skipped().await, skipped);
        }
        for expected in ["* room:msg", "* msg", "* room:msg", "* room:msg", "* room:msg"] {
            let heard = all.next().await;
            let is_text = heard == expected;
            assert!(is_text || heard == format!("b\"{expected} \\0!\""), "{heard}");
        }
        let heard = [room.next().await, room.next().await, room.next().await];
        assert_eq!(
            heard,
            ["b\"room msg \\0!\"", "b\"room #general:msg \\0!\"", "b\"room msg \\0!\""]
        );
        let mut heard = [text.next().await, text.next().await];
        heard.sort();
        assert_eq!(heard, ["* room:msg", "room msg"], "the object alone");
        assert!(text.has_heard_nothing());
    }

    #[actix_web::test]
    async fn what_a_broken_fan_out_never_handed_out_is_not_waited_for() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let deaf = broker.session(1).await;
        broker.join(&deaf, whole(&scope)).await.expect("a place");
        broker.fanout.do_send(Break);
        let payload = Payload::Bytes(b"x".as_slice().into());
        let bytes = Publication { payload, ..publication(&scope, "room", "msg") };
        let receipt = broker.topics.publish(bytes).await.expect("a receipt");
        assert_eq!(receipt.skipped().await, Some(0));
    }

    #[actix_web::test]
    async fn an_outbox_is_bounded_in_bytes_too() {
        let broker = Broker::start();
        let probe = broker.stuck_session(1, 100).await;
        let frame = Frame::Text("x".repeat(400_000).into());
        let id = SubscriptionId(7);
        assert!(probe.outbox.deliver(&frame, id));
        assert!(probe.outbox.deliver(&frame, id));
        probe.outbox.taken(Load::of(&frame));
        assert!(probe.outbox.deliver(&frame, id), "what was taken makes room");
        assert!(!probe.outbox.deliver(&frame, id));
        let ending = Some(Ending::SlowConsumer(Excess::Bytes));
        assert_eq!(probe.outbox.ending(&noop_waker()), ending);
        probe.outbox.taken(Load::of(&frame));
        assert!(!probe.outbox.deliver(&frame, id), "who is ended is sent nothing more");
    }

    #[actix_web::test]
    async fn whoever_has_a_join_of_a_changed_app_is_told_once() {
        let broker = Broker::start();
        let (mut one, mut other) = (broker.session(1).await, broker.session(2).await);
        for place in [whole(&key(1, "public")), channel(&key(1, "public"), "room")] {
            broker.join(&one, place).await.expect("a place");
        }
        broker.join(&other, whole(&key(2, "public"))).await.expect("a place");
        for app in [1, 2] {
            broker.fanout.send(AppChanged(AppId(app))).await.expect("a fan-out");
        }
        assert_eq!(one.next().await, "app 1 changed");
        assert_eq!(other.next().await, "app 2 changed");
        assert!(one.has_heard_nothing() && other.has_heard_nothing());
    }

    #[actix_web::test]
    async fn whoever_may_have_a_join_that_is_to_end_is_told_once_also_who_is_about_to_join() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let mut probes = Vec::new();
        for (id, places) in [
            (1, vec![channel(&scope, "room"), channel(&scope, "other")]),
            (2, vec![whole(&scope)]),
            (3, vec![channel(&key(1, "private"), "room")]),
            (4, vec![channel(&key(2, "public"), "room")]),
            (5, vec![]),
            (6, vec![]),
        ] {
            let probe = broker.session(id).await;
            for place in places {
                broker.join(&probe, place).await.expect("a place");
            }
            probe.outbox.set_joining(id == 6);
            probes.push(probe);
        }
        let subject = Subject::of(serde_json::from_str("1").expect("JSON")).expect("a subject");
        for (disconnect, concerned) in [
            (Disconnect::Place(channel(&scope, "room")), [1, 6].as_slice()),
            (Disconnect::Place(whole(&scope)), &[2, 6]),
            (Disconnect::Place(channel(&scope, "empty")), &[6]),
            (Disconnect::Subject { app: AppId(1), subject }, &[1, 2, 3, 6]),
        ] {
            broker.topics.disconnect(disconnect.clone()).await.expect("all to be told");
            for probe in &mut probes {
                if concerned.contains(&probe.session.0) {
                    assert_eq!(probe.next().await, format!("disconnect: {disconnect:?}"));
                }
                assert!(probe.has_heard_nothing(), "{:?} {disconnect:?}", probe.session);
            }
        }
    }

    #[actix_web::test]
    async fn who_cannot_be_told_what_ends_its_joins_is_ended() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        for change in [None, Some(Disconnect::Place(whole(&scope)))] {
            let stuck = broker.stuck_session(1, 1).await;
            broker.join(&stuck, whole(&scope)).await.expect("a place");
            let waker = noop_waker();
            // What fits into its mailbox is not lost; the session comes to it when it can.
            let mut told = 0;
            while stuck.outbox.ending(&waker).is_none() && told < 100 {
                match change.clone() {
                    None => broker.fanout.send(AppChanged(scope.app)).await.expect("a fan-out"),
                    Some(joins) => broker.topics.disconnect(joins).await.expect("to be told"),
                }
                told += 1;
            }
            assert_eq!(stuck.outbox.ending(&waker), Some(Ending::SlowConsumer(Excess::Frames)));
            assert!(told > 1, "there was room for one");
            broker.fanout.send(Leave(stuck.session)).await.expect("a fan-out");
        }
    }

    #[actix_web::test]
    async fn at_the_end_every_session_is_told_also_who_joined_nothing() {
        let broker = Broker::start();
        let (mut joined, mut idle) = (broker.session(1).await, broker.session(2).await);
        let left = broker.session(3).await;
        broker.join(&joined, whole(&key(1, "public"))).await.expect("a place");
        broker.fanout.send(Leave(left.session)).await.expect("a fan-out");
        assert_eq!(broker.fanout.send(EndAll).await.expect("a fan-out"), 2);
        for probe in [&mut joined, &mut idle] {
            assert_eq!(probe.next().await, "end: Shutdown");
        }
    }

    #[actix_web::test]
    async fn some_are_ended_at_a_time_over_all_threads_together() {
        let broker = Broker::start();
        let other = broker.another_thread();
        let mut probes = Vec::new();
        for (at, id) in [(&broker, 1), (&broker, 2), (&broker, 3), (&other, 4), (&other, 5)] {
            probes.push(at.session(id).await);
        }
        let waker = noop_waker();
        for (batch, left) in [(2, 3), (2, 1), (2, 0), (2, 0)] {
            assert_eq!(broker.topics.end_some(batch, DEADLINE).await, left);
            let is_open = |probe: &&Probe| probe.outbox.ending(&waker).is_none();
            assert_eq!(probes.iter().filter(is_open).count(), left);
        }
        for probe in &mut probes {
            assert_eq!(probe.next().await, "end: Shutdown");
            assert!(probe.has_heard_nothing());
        }
    }

    #[actix_web::test]
    async fn who_was_on_its_way_in_when_the_end_came_is_told_as_well() {
        let broker = Broker::start();
        assert_eq!(broker.fanout.send(EndAll).await.expect("a fan-out"), 0);
        assert_eq!(broker.session(1).await.next().await, "end: Shutdown");
    }

    #[actix_web::test]
    async fn a_fan_out_that_breaks_ends_its_sessions_and_another_takes_its_place() {
        let (mut broker, scope) = (Broker::start(), key(1, "public"));
        let mut deaf = broker.session(1).await;
        broker.join(&deaf, whole(&scope)).await.expect("a place");
        assert!(broker.fanout.send(Break).await.is_err());
        assert_eq!(deaf.next().await, "end: Broken");
        (broker.worker, broker.fanout) = broker.topics.start_fanout();
        let mut back = broker.session(2).await;
        broker.join(&back, whole(&scope)).await.expect("a place");
        broker.publish(&scope, "#general", "msg").await;
        assert_eq!(back.next().await, "* msg");
    }
}
