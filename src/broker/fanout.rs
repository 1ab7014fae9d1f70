//! A fan-out: one actor per worker thread, which hands each subscriber living there its frame.

use std::{
    cell::Cell,
    collections::{HashMap, hash_map},
    mem,
    rc::Rc,
    sync::{Arc, Weak},
    time::Instant,
};

use actix::prelude::*;
use bytestring::ByteString;
use indexmap::IndexMap;
use log::{error, warn};

use crate::{
    app::{AppId, registry::AppChanged},
    metrics::{apps::Traffic, labels::Limit},
};

use super::{
    announcement::Announcement,
    count::Count,
    disconnection::Disconnection,
    listeners::{Departure, Group, Listeners, Member, Sampler, TakenIn},
    now_ms,
    occupancy::Rank,
    outbox::{Ending, Excess, News, Outbox},
    placed::{Batch, Level, Placed, Spoken},
    position::StreamPosition,
    presence::Full,
    publication::Destination,
    recovery::{Incomplete, Missed, Reading, Recovery, Wanted},
    replays::{self, Replays},
    retained::{Retained, RetainedPayload},
    stream::Stream,
    subscriber::{
        Format, Frame, Joined, Place, ScopeKey, SessionId, SubscribeError, Subscription,
        SubscriptionId,
    },
    topic_name::{ChannelName, Scope},
    topics::Topics,
    tracker::{EnterChannel, FanoutLost, Untrack},
    turns::Turns,
};

/// How many groups are handed a publication before the sockets get a turn, and then the next app that
/// has something to be handed out. Without it a burst, or one `#general` to a client of many channels,
/// fills healthy outboxes; with it several frames leave in one write.
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
    /// The newest batch up to which it has begun to hand out all that it was sent.
    pub(super) handed: Rc<Cell<u64>>,
}

/// A session has begun. If no fan-out ever takes it in, because this one is gone, the session is ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Enter(Option<Arc<Outbox>>);

impl Enter {
    /// The session with this outbox has begun.
    pub fn new(outbox: Arc<Outbox>) -> Self {
        Self(Some(outbox))
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        if let Some(outbox) = self.0.take() {
            outbox.end(Ending::Broken);
        }
    }
}

/// A session has ended; all its subscriptions go with it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Leave(pub SessionId);

/// A session subscribes. Idempotent: one session hears one place once under each name it has for it.
/// The answer comes through its outbox, see [`News::Joined`].
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

/// Publications to hand out, in their order.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Dispatch(pub(super) Arc<Batch>);

/// The tracker has taken in a session that joins, or not. What is announced from now on is for it,
/// too.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Entered {
    pub(super) place: Place,
    pub(super) session: SessionId,
    /// The join that it belongs to: the session may have left and joined again since.
    pub(super) id: SubscriptionId,
    /// Who is there, spelled for its client.
    pub(super) members: Result<ByteString, Full>,
}

/// What has changed among the members of a channel.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Announce(pub(super) Arc<Announcement>);

/// The tracker of a scope was broken by a panic: end the sessions that it tracked.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct TrackerLost(pub(super) ScopeKey);

/// Hands publications to the subscribers of its thread: deliveries never cross threads one by one.
///
/// It opens a scope with its first subscriber here and closes it with the last one. For each open
/// scope it knows the newest publication that it has handed out, which is the exact boundary of a
/// join: while a batch of an app is under way, everything that concerns the joins of this app waits
/// behind it.
///
/// A batch that takes longer than a turn waits in a queue of its app, and so does everything of the
/// app that comes after it. The apps that have a queue take turns, so a slow batch of one app delays
/// another app by a turn and not by the batch. An app without a queue is served at once, unless it
/// has something to hand out while others wait to.
///
/// A session that cannot take a frame at once is ended; nobody is waited for. The mailbox takes
/// batches without limit because each publication holds a permit (see [`Topics`]), and at most three
/// messages per join besides.
pub struct Fanout {
    worker: WorkerId,
    topics: Topics,
    /// Not a `HashMap`: its table doubles as members come and go; here only that of the indices does.
    sessions: IndexMap<SessionId, Present>,
    scopes: HashMap<ScopeKey, Listeners>,
    handed_this_turn: usize,
    /// The tasks that could not be done at once. While there is any, `take_turn` is scheduled.
    turns: Turns<Task>,
    /// The number of the newest batch that has come.
    newest: u64,
    /// How many batches wait in `turns` that have not been begun.
    waiting: usize,
    handed: Rc<Cell<u64>>,
    sampler: Sampler,
    /// The session that gives way to the others, until it is over.
    relieving: Option<Weak<Outbox>>,
    /// The frames that joins were replayed lately.
    replays: Replays,
    /// Whether the server stops: who was on its way in meanwhile is ended like the others.
    stopping: bool,
}

/// Who is told of the history, and from where to where.
struct Reader<'a> {
    place: &'a Place,
    outbox: &'a Outbox,
    topic: &'a ByteString,
    format: Format,
    /// The offset behind which the session is handed everything.
    attached: u64,
    boundary: StreamPosition,
}

/// A session of this thread and where it sits.
struct Present {
    outbox: Arc<Outbox>,
    places: Vec<Place>,
}

/// Something that waits for the turn of its app.
enum Task {
    /// Handing out a batch, or the rest of one.
    HandOut(Course),
    /// Whatever else a message asks for.
    Other(Box<Act>),
}

/// The work that a message asks of the fan-out.
type Act = dyn FnOnce(&mut Fanout, &mut Context<Fanout>);

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

    /// The next publication, with its scope.
    fn begin(&mut self) -> Option<(&ScopeKey, &Placed)> {
        let placed = self.batch.publications.get(self.begun)?;
        self.begun += 1;
        Some((&self.batch.key, placed))
    }

    /// The next channel that the last publication begun has yet to reach.
    fn go_on(&mut self) -> Option<(&ScopeKey, &Placed, ChannelName)> {
        let channel = self.channels.pop()?;
        let placed = self.batch.publications.get(self.begun.checked_sub(1)?)?;
        Some((&self.batch.key, placed, channel))
    }
}

impl Fanout {
    /// Makes the fan-out of one worker thread; start it on that thread.
    pub(super) fn new(worker: WorkerId, topics: Topics, handed: Rc<Cell<u64>>) -> Self {
        let replays = Replays::new(topics.backlog().clone(), Instant::now());
        Self {
            worker,
            topics,
            replays,
            sessions: IndexMap::new(),
            scopes: HashMap::new(),
            handed_this_turn: 0,
            turns: Turns::new(),
            newest: 0,
            waiting: 0,
            handed,
            sampler: Sampler::default(),
            relieving: None,
            stopping: false,
        }
    }

    /// Makes a session a member of a place and answers it, so that everything that it is handed from
    /// here on lies behind the answer in its outbox. Where it is to be tracked, the tracker of the
    /// scope is asked first.
    fn attach(&mut self, attach: Attach, ctx: &mut Context<Self>) {
        let Attach { session, id, subscription } = attach;
        let Subscription { place, topic, format, persona, wanted } = subscription;
        // Nobody is tracked in a whole scope.
        let persona = persona.filter(|_| place.channel.is_some());
        // A session that has left waits for no answer.
        let Some(present) = self.sessions.get_mut(&session) else { return };
        let outbox = present.outbox.clone();
        let listeners = match self.scopes.entry(place.key.clone()) {
            hash_map::Entry::Occupied(open) => open.into_mut(),
            hash_map::Entry::Vacant(closed) => {
                match self.topics.open(closed.key(), self.worker, ctx.address(), now_ms()) {
                    Ok(listeners) => closed.insert(listeners),
                    Err(refused) => return outbox.answer(id, Err(refused)),
                }
            }
        };
        let boundary = listeners.heard();
        let (is_tracked, attached) = (persona.is_some(), boundary.offset);
        let member = Member { outbox: outbox.clone(), id, format, attached, is_tracked };
        let group = listeners.group_mut(place.channel.as_ref(), &topic);
        let attached = group.attached(session, &topic).unwrap_or(attached);
        let is_new = match persona {
            None => group.join(session, topic.clone(), member),
            Some(_) => group.expect(session, topic.clone(), member, wanted),
        };
        if is_new {
            if present.places.is_empty() {
                // One is the common case, and an idle session should not keep room for four.
                present.places.reserve_exact(1);
            }
            present.places.push(place.clone());
        }
        let Some(persona) = persona else {
            let stream = listeners.stream.clone();
            let (place, topic, outbox) = (&place, &topic, &*outbox);
            let reader = Reader { place, outbox, topic, format, attached, boundary };
            let recovery = self.recover(&stream, &reader, wanted, ctx);
            return outbox.answer(id, Ok(Joined { boundary, members: None, recovery }));
        };
        let stream = &listeners.stream;
        let Some(tracker) = stream.tracker_or_start(|| self.topics.start_tracker(stream)) else {
            outbox.answer(id, Err(SubscribeError::Unavailable));
            return self.detach(&Detach { session, id, place });
        };
        let (worker, fanout) = (self.worker, ctx.address());
        tracker.do_send(EnterChannel { worker, fanout, place, session, id, persona, format });
    }

    /// The tracker has answered for a session. If it took the session in, the session is told of the
    /// members, and of what is announced from here on.
    fn entered(&mut self, entered: Entered, ctx: &mut Context<Self>) {
        let Entered { place, session, id, members } = entered;
        let Some(listeners) = self.scopes.get_mut(&place.key) else { return };
        let (boundary, stream) = (listeners.heard(), listeners.stream.clone());
        let Some(group) = listeners.group(place.channel.as_ref()) else { return };
        let Some(outbox) = group.expected(session, id) else { return };
        match members {
            Ok(members) => {
                let Some(taken_in) = group.take_in(session, boundary.offset) else { return };
                let TakenIn { topic, format, attached, wanted } = taken_in;
                let (place, topic, outbox) = (&place, &topic, &*outbox);
                let reader = Reader { place, outbox, topic, format, attached, boundary };
                let recovery = self.recover(&stream, &reader, wanted, ctx);
                outbox.answer(id, Ok(Joined { boundary, members: Some(members), recovery }));
            }
            Err(Full) => {
                self.topics.metrics().hit(Limit::PresenceMembers);
                outbox.answer(id, Err(SubscribeError::TooManyMembers));
                self.detach(&Detach { session, id, place });
            }
        }
    }

    /// What a join that wanted it is told of the history, and sent of it.
    fn recover(
        &mut self,
        stream: &Stream,
        reader: &Reader<'_>,
        wanted: Option<Wanted>,
        ctx: &mut Context<Self>,
    ) -> Option<Box<Recovery>> {
        let Reader { place, outbox, topic, attached, boundary, .. } = *reader;
        let reading = Reading { channel: place.channel.as_ref(), attached, boundary };
        let missed = stream.missed(&reading, wanted?, now_ms());
        let Missed { mut incomplete, mut limit, mut position, mut attached, publications } = missed;
        let (mut replayed, mut frames) = self.replay(reader, &publications, ctx);
        if frames.iter().map(Frame::size_bytes).sum::<usize>() > outbox.replay_bytes_max() {
            (incomplete, limit) = (Some(Incomplete::TooMuch), Some(Limit::HistoryReplayBytes));
            (position, attached) = (boundary, reader.attached);
            (replayed, frames) = (0, Vec::new());
        }
        limit.into_iter().for_each(|limit| self.topics.metrics().hit(limit));
        let listeners = self.scopes.get_mut(&place.key);
        let group = listeners.and_then(|listeners| listeners.group(place.channel.as_ref()));
        if let Some(group) = group {
            group.set_attached(outbox.session(), topic, attached);
        }
        Some(Box::new(Recovery { incomplete, position, replayed, frames }))
    }

    /// The frames of what is replayed, and how many publications they are.
    fn replay(
        &mut self,
        reader: &Reader<'_>,
        publications: &[(u64, Retained)],
        ctx: &mut Context<Self>,
    ) -> (usize, Vec<Frame>) {
        let Reader { place, topic, format, boundary, .. } = *reader;
        let level = if place.channel.is_some() { Level::Channel } else { Level::Scope };
        let (now, was_empty) = (Instant::now(), self.replays.is_empty());
        let (mut replayed, mut frames) = (0, Vec::with_capacity(publications.len()));
        for (offset, retained) in publications {
            let (channel, event, payload) =
                (retained.channel(), retained.event(), retained.payload());
            let position = StreamPosition { offset: *offset, ..boundary };
            let spoken = Spoken { channel, event, payload, position };
            let Some(frame) = self.replays.frame(&spoken, format, level, topic, now) else {
                continue;
            };
            replayed += 1;
            frames.push(frame);
            if let (RetainedPayload::Bytes(_), Some(encode)) = (payload, format.encode_position) {
                frames.push(self.topics.backlog().count(encode(topic, position)));
            }
        }
        if was_empty && !self.replays.is_empty() {
            Self::forget_replays(ctx);
        }
        (replayed, frames)
    }

    /// Drops the frames of replays once they have been of no use for a while.
    fn forget_replays(ctx: &mut Context<Self>) {
        ctx.run_later(replays::GENERATION_AGE, |fanout, ctx| {
            fanout.replays.turn(Instant::now());
            if !fanout.replays.is_empty() {
                Self::forget_replays(ctx);
            }
        });
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
    /// the tracker if the session is tracked there no longer. With the last member of a scope the
    /// scope is closed for this thread.
    fn vacate(
        &mut self,
        session: SessionId,
        place: &Place,
        id: Option<SubscriptionId>,
    ) -> Departure {
        let Some(listeners) = self.scopes.get_mut(&place.key) else { return Departure::Absent };
        let departure = listeners.remove(place.channel.as_ref(), session, id);
        if let (Departure::LeftPresence, Some(channel)) = (departure, &place.channel) {
            listeners.stream.tell_tracker(Untrack { channel: channel.clone(), session });
        }
        if listeners.is_empty() {
            self.scopes.remove(&place.key);
            self.topics.directory().close(&place.key, self.worker, now_ms());
        }
        departure
    }

    fn leave(&mut self, session: SessionId) {
        let Some(present) = self.sessions.swap_remove(&session) else { return };
        self.topics.backlog().leave();
        for place in &present.places {
            self.vacate(session, place, None);
        }
    }

    /// Hands a publication out: here channels and `#general` are decided. What is left are channels
    /// that `#general` has yet to reach.
    fn dispatch(&mut self, key: &ScopeKey, placed: &Placed) -> Vec<ChannelName> {
        let listeners = self.scopes.get(key).filter(|all| all.hear(placed.position()));
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
    fn spread(&mut self, key: &ScopeKey, placed: &Placed, channel: &ChannelName) {
        let Some(listeners) = self.scopes.get(key) else { return };
        if let Some(group) = listeners.channels.get(channel) {
            self.hand(group, placed, Level::Channel, &listeners.traffic);
            self.handed_this_turn += 1;
        }
    }

    /// Tells the tracked members of a channel what has changed among them.
    fn announce(&mut self, announcement: &Announcement) {
        if let Some(listeners) = self.scopes.get(&announcement.key)
            && let Some(group) = listeners.channels.get(&announcement.channel)
        {
            group.announce(announcement, &listeners.traffic);
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

    /// Hands a batch out as far as this turn goes. What is left is returned.
    fn proceed(&mut self, mut course: Course) -> Option<Course> {
        while !course.is_over() {
            if self.handed_this_turn >= HANDED_PER_TURN {
                return Some(course);
            }
            if let Some((key, placed, channel)) = course.go_on() {
                self.spread(key, placed, &channel);
            } else if let Some((key, placed)) = course.begin() {
                course.channels = self.dispatch(key, placed);
            }
        }
        self.relieve();
        None
    }

    /// Does something at once, or behind all of this app that waits for its turn: all members see one
    /// order, and a join finds a batch either handed out as a whole, or not begun.
    fn in_order(
        &mut self,
        app: AppId,
        ctx: &mut Context<Self>,
        act: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
    ) {
        match self.turns.has(app) {
            true => self.turns.push(app, Task::Other(Box::new(act))),
            false => act(self, ctx),
        }
    }

    /// Does what waits, as much as fits into one turn. The mailbox is read between two turns, so that
    /// an app which has just come gets the next one.
    fn take_turn(&mut self, ctx: &mut Context<Self>) {
        while self.handed_this_turn < HANDED_PER_TURN {
            match self.turns.next() {
                Some(Task::HandOut(course)) => {
                    if course.begun == 0 {
                        self.waiting -= 1;
                        self.note_handed();
                    }
                    if let Some(rest) = self.proceed(course) {
                        self.turns.put_back(Task::HandOut(rest));
                    }
                }
                Some(Task::Other(act)) => {
                    act(self, ctx);
                    self.handed_this_turn += 1;
                }
                None => break,
            }
        }
        self.turns.pass();
        self.go_on(ctx);
    }

    /// Schedules the next turn if anything waits, and lets the sockets have theirs before.
    fn go_on(&self, ctx: &mut Context<Self>) {
        self.rest_if_due(ctx);
        if !self.turns.is_empty() {
            let turn = actix::fut::ready(()).into_actor(self);
            ctx.spawn(turn.map(|(), fanout, ctx| fanout.take_turn(ctx)));
        }
    }

    /// Notes that a batch is begun. Sessions are told of the newest only when none is left behind.
    fn note_handed(&self) {
        if self.waiting == 0 {
            self.handed.set(self.newest);
        }
    }

    /// Ends the session of this thread for which most waits, if more waits for all sessions than may.
    /// Its memory is free once it is over; until then nothing shows whether another has to go. A session
    /// that keeps less than its equal part is spared: what is too much waits on another thread.
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
        let least = self.topics.backlog().equal_part().max(1);
        if let Some(outbox) = fullest.filter(|outbox| outbox.load().bytes >= least) {
            outbox.end(Ending::SlowConsumer(Excess::AllBytes));
            self.relieving = Some(Arc::downgrade(outbox));
        }
    }

    /// Lets the sockets have their turn once enough was handed out; nothing else happens here until
    /// then.
    fn rest_if_due(&self, ctx: &mut Context<Self>) {
        if self.handed_this_turn >= HANDED_PER_TURN {
            let turn = actix::fut::wrap_future::<_, Self>(tokio::task::yield_now());
            ctx.wait(turn.map(|(), fanout, _| fanout.handed_this_turn = 0));
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
            let groups = whole
                .chain(channels)
                .map(|(channel, group)| (Rank { scope: key.scope.clone(), channel }, group.len()));
            // Sessions that are about to be members are none yet.
            groups.filter(|(_, members)| *members > 0)
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
        // The trackers will not be told of these sessions one by one.
        for (key, listeners) in mem::take(&mut self.scopes) {
            listeners.stream.tell_tracker(FanoutLost { worker: self.worker });
            self.topics.directory().close(&key, self.worker, now_ms());
        }
    }
}

impl Handler<Enter> for Fanout {
    type Result = ();

    fn handle(&mut self, mut enter: Enter, _: &mut Self::Context) {
        let Some(outbox) = enter.0.take() else { return };
        if self.stopping {
            outbox.end(Ending::Shutdown);
        }
        let present = Present { outbox, places: Vec::new() };
        if self.sessions.insert(present.outbox.session(), present).is_none() {
            self.topics.backlog().enter();
        }
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

    fn handle(&mut self, attach: Attach, ctx: &mut Self::Context) {
        let app = attach.subscription.place.key.app;
        self.in_order(app, ctx, |fanout, ctx| fanout.attach(attach, ctx));
    }
}

impl Handler<Detach> for Fanout {
    type Result = ();

    fn handle(&mut self, detach: Detach, ctx: &mut Self::Context) {
        self.in_order(detach.place.key.app, ctx, move |fanout, _| fanout.detach(&detach));
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
        // Batches of several scopes may come in another order than they were published in.
        self.newest = self.newest.max(batch.number);
        let app = batch.key.app;
        let course = Course { batch, begun: 0, channels: Vec::new() };
        if !self.turns.is_empty() {
            self.waiting += 1;
            return self.turns.push(app, Task::HandOut(course));
        }
        self.note_handed();
        match self.proceed(course) {
            None => self.rest_if_due(ctx),
            Some(rest) => {
                self.turns.push(app, Task::HandOut(rest));
                self.go_on(ctx);
            }
        }
    }
}

impl Handler<Entered> for Fanout {
    type Result = ();

    fn handle(&mut self, entered: Entered, ctx: &mut Self::Context) {
        self.in_order(entered.place.key.app, ctx, |fanout, ctx| fanout.entered(entered, ctx));
    }
}

impl Handler<Announce> for Fanout {
    type Result = ();

    fn handle(&mut self, Announce(announcement): Announce, ctx: &mut Self::Context) {
        let app = announcement.key.app;
        if !self.turns.is_empty() {
            let announce = move |fanout: &mut Self, _: &mut _| fanout.announce(&announcement);
            return self.turns.push(app, Task::Other(Box::new(announce)));
        }
        self.announce(&announcement);
        self.rest_if_due(ctx);
    }
}

impl Handler<AppChanged> for Fanout {
    type Result = ();

    fn handle(&mut self, AppChanged(app): AppChanged, ctx: &mut Self::Context) {
        self.topics.review(app);
        self.in_order(app, ctx, move |fanout, _| {
            for outbox in fanout.sessions_of(|place| place.key.app == app) {
                outbox.tell(News::AppChanged(app));
            }
        });
    }
}

impl Handler<TrackerLost> for Fanout {
    type Result = ();

    fn handle(&mut self, TrackerLost(key): TrackerLost, ctx: &mut Self::Context) {
        self.in_order(key.app, ctx, move |fanout, _| {
            let Some(listeners) = fanout.scopes.get(&key) else { return };
            let mut ended = 0;
            for outbox in listeners.channels.values().flat_map(Group::tracked) {
                outbox.end(Ending::Broken);
                ended += 1;
            }
            warn!("{ended} sessions of a lost tracker are ended");
        });
    }
}

impl Handler<EndJoins> for Fanout {
    type Result = ();

    /// Who is about to join is told as well, whatever it joins: its place may be on its way here.
    fn handle(&mut self, EndJoins(disconnection): EndJoins, ctx: &mut Self::Context) {
        self.in_order(disconnection.joins.app(), ctx, move |fanout, _| {
            let joins = &disconnection.joins;
            for Present { outbox, places } in fanout.sessions.values() {
                if outbox.is_joining() || places.iter().any(|place| joins.may_concern(place)) {
                    outbox.tell(News::Disconnect(disconnection.clone()));
                }
            }
        });
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
