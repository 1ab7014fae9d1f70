//! A fan-out: one actor per worker thread, which puts each publication's frame into the outboxes of
//! the thread's subscribers.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap, hash_map},
    mem,
    ops::Bound,
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
    metrics::labels::Limit,
};

use super::{
    announcement::Announcement,
    connections::{About, Connected},
    count::Count,
    counts::Cause,
    growth,
    last_events::LastEvent,
    listeners::{
        DeliveryCounters, Departure, Group, Sampler, ScopeSubscribers, TakenIn, TopicSubscriber,
    },
    node::NodeId,
    now_ms,
    occupancy::Rank,
    outbox::{Ending, Excess, News, Outbox},
    placed::{Batch, Level, Placed, SpokenPublication},
    position::StreamPosition,
    publication::{Destination, Sender},
    recovery::{Incomplete, Missed, Reading, Recovery, Wanted},
    replays::{self, Replays},
    reserved,
    retained::{Retained, RetainedPayload},
    stream::Stream,
    subscriber::{
        Cached, Format, Frame, Joined, Place, ScopeKey, SessionId, SubscribeError, Subscription,
        SubscriptionId,
    },
    topic_name::{ChannelName, Scope},
    topics::Topics,
    tracker::{EnterChannel, FanoutLost, Untrack},
    turns::Turns,
};
pub(super) use messages::{
    Announce, Dispatch, EndAll, EndJoins, EndSome, EndedSessions, Entered, Interrupt, TellCount,
    TrackerLost,
};
pub use messages::{Attach, Detach, Enter, Leave, Relieve};
use pause::pause;
use recovering::RecoveringJoin;
use waking::Waking;

/// The most publications of an app that are handed out in one turn. Before the app's next turn, all its
/// sessions that were handed frames get to write. Without this limit a burst would fill the outboxes of
/// healthy sessions; with it several frames still leave in one write.
const PUBLICATIONS_PER_TURN: usize = 16;

/// The most groups (see [`Group`]) that are handed a publication in one turn of an app. If a session has a small
/// outbox, the limit is lower, see [`Outbox::frames_per_turn`]. By default a session may join 100 channels,
/// so all its frames of one `#general` leave in one write.
const GROUPS_PER_TURN: usize = 128;

/// When an app has used this fraction (1/8) of a turn's groups, a round is scheduled even if no session waits, so
/// that the app begins a new turn. Below it, the rest of the turn has room for one `#general` to the 100
/// channels that a session may join by default.
const RENEWED_SHARE: usize = 8;

/// The number of deliveries after which a fan-out lets the other tasks of the thread run: about 100 µs. A round
/// may exceed it, because the deliveries to one group are never divided.
const DELIVERIES_PER_ROUND: usize = 1_024;

/// The number of deliveries that take about as long as a join, or as another task that is not a
/// publication.
const DELIVERIES_PER_ACT: usize = 16;

/// The id of a fan-out and of its worker thread, unique among all nodes for the life of their processes. If a
/// thread starts another fan-out after a panic, it gets a new id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerId(pub u64);

impl WorkerId {
    /// The id of the `nth` fan-out of a node.
    pub(super) fn new(node: NodeId, nth: u64) -> Self {
        Self(node.number(nth))
    }
}

/// The fan-out of one thread, for the sessions of the thread.
#[derive(Debug)]
pub struct ThreadFanout {
    /// The id of the fan-out.
    pub worker: WorkerId,
    /// The address of the fan-out.
    pub addr: Addr<Fanout>,
    /// The number of the newest batch that the fan-out has received. It is updated when a batch is begun and no
    /// other batch waits.
    pub(super) handed: Rc<Cell<u64>>,
}

/// Hands publications to the subscribers of its thread. A batch crosses threads as one message, whatever
/// the number of subscribers.
///
/// The fan-out opens a scope with its first subscriber on this thread and closes it with the last one. For
/// each open scope it keeps the position of the newest publication that it has handed out, which is the exact
/// boundary of a join: while a batch of an app is under way, the joins of this app wait behind it.
///
/// The fan-out works in *rounds* of about 100 µs. After each round the other tasks of the thread run, and the
/// thread looks at its sockets.
///
/// A batch that takes longer than a turn or a round waits in a queue of its app, and so do all later tasks of
/// the app. The apps that have a queue take turns, so a slow batch of one app delays another app by a round and
/// not by the batch. The task of an app without a queue is done at once, except for publications and
/// announcements: they wait if another app has a queue, or if the turn of their own app is over.
///
/// Writing to a socket takes about a hundred times as long as a delivery, so the sessions that were handed
/// frames are not woken all together: each round wakes a few, and the apps take turns. The sessions
/// that wait meanwhile are handed further frames, and write all of them at once. An app whose turn is
/// over *rests* until all its sessions that were handed frames have been woken and have run.
///
/// A session that cannot take a frame at once is ended; the fan-out never waits for one. Senders do not wait
/// for room in the mailbox. It is bounded because each publication and announcement holds a permit (see
/// [`Topics`]), and a join causes at most three messages.
pub struct Fanout {
    worker: WorkerId,
    topics: Topics,
    /// This is not a `HashMap`, because a table of whole entries would double when it is full. Here only the
    /// table of indices doubles.
    sessions: IndexMap<SessionId, Present>,
    /// The sessions that have joined anything of an app, or belong to it as a whole.
    by_app: HashMap<AppId, BTreeSet<SessionId>>,
    scopes: HashMap<ScopeKey, ScopeSubscribers>,
    /// The tasks that could not be done at once. While there is one of an app that does not rest,
    /// `take_turn` is scheduled.
    turns: Turns<Task>,
    /// Whether `take_turn` is scheduled.
    is_turn_due: bool,
    /// The work of each app's present turn.
    handed_out: HashMap<AppId, HandedOut>,
    /// Whether so much of one of these turns is used up that the next publication may not fit into the rest. The
    /// next round is then scheduled even if no session waits, so that the app begins a new turn.
    is_any_to_renew: bool,
    /// The most groups that are handed a publication in one turn of an app.
    groups_per_turn: usize,
    /// The sessions that have been handed frames and are not woken yet. While there is one,
    /// the end of this round is scheduled.
    waking: Waking,
    delivered_this_round: usize,
    /// The number of this round.
    round: u64,
    /// Whether the end of this round is scheduled.
    is_round_ending: bool,
    /// The number of the newest batch that was received.
    newest: u64,
    /// The number of batches in `turns` that have not been begun.
    waiting: usize,
    handed: Rc<Cell<u64>>,
    sampler: Sampler,
    /// The outbox of the session that was last ended because the backlog exceeded its limit.
    relieving: Option<Weak<Outbox>>,
    /// The frames that were replayed lately, which further joins share.
    replays: Replays,
    /// Whether the server stops: a session that enters meanwhile is ended like the others.
    stopping: bool,
}

/// The work of one turn of an app.
#[derive(Default)]
struct HandedOut {
    publications: usize,
    groups: usize,
    /// The number of frames, over all sessions of the app.
    frames: usize,
    /// The number of sessions that have to be woken for these frames.
    sessions: usize,
    /// Whether the turn is used up. The app gets its next turn once its sessions have run.
    is_all: bool,
}

impl HandedOut {
    /// Returns whether the turn is used up.
    fn is_used_up(&self, groups_per_turn: usize) -> bool {
        self.publications >= PUBLICATIONS_PER_TURN || self.groups >= groups_per_turn
    }

    /// Returns whether so much of the turn is used up that the next publication may not fit into the rest.
    fn is_to_renew(&self, groups_per_turn: usize) -> bool {
        self.publications >= PUBLICATIONS_PER_TURN / 2
            || self.groups >= groups_per_turn / RENEWED_SHARE
    }
}

/// A session of this thread and the places that it joined.
struct Present {
    outbox: Arc<Outbox>,
    /// A place has one entry for each name by which the session joined it.
    places: Vec<Arc<Place>>,
    about: About,
}

impl Present {
    /// Returns whether the session has joined anything of an app, or belongs to it as a whole.
    fn is_of(&self, app: AppId) -> bool {
        self.about.app() == Some(app) || self.places.iter().any(|place| place.key.app == app)
    }
}

/// Something that waits for the turn of its app.
enum Task {
    /// Handing out a batch, or the rest of one.
    HandOut(Course),
    /// Any other work that a message requests.
    Other(AppId, Box<Act>),
}

/// The work that a message requests from the fan-out.
type Act = dyn FnOnce(&mut Fanout, &mut Context<Fanout>);

/// The progress of handing out a batch.
struct Course {
    batch: Arc<Batch>,
    /// The number of its publications that have been begun.
    begun: usize,
    /// The channels that the last begun publication has yet to reach.
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

    /// The next channel that the last begun publication has yet to reach.
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
            by_app: HashMap::new(),
            scopes: HashMap::new(),
            turns: Turns::new(),
            is_turn_due: false,
            handed_out: HashMap::new(),
            is_any_to_renew: false,
            groups_per_turn: GROUPS_PER_TURN,
            waking: Waking::new(),
            delivered_this_round: 0,
            round: 0,
            is_round_ending: false,
            newest: 0,
            waiting: 0,
            handed,
            sampler: Sampler::default(),
            relieving: None,
            stopping: false,
        }
    }

    /// Makes a session a member of a place and answers its join. All further frames of the place
    /// follow the answer in the session's outbox. If the session is to be tracked, the tracker of the
    /// scope decides first.
    fn attach(&mut self, attach: Attach, ctx: &mut Context<Self>) {
        let Attach { session, id, subscription } = attach;
        let Subscription { place, topic, format, persona, user, wanted } = subscription;
        // A whole scope has no tracked members.
        let persona = persona.filter(|_| place.channel.is_some());
        // A session that has left needs no answer.
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
        let mut member = TopicSubscriber::new(outbox.clone(), id, format, attached);
        (member.user, member.is_tracked) = (user, is_tracked);
        let group = listeners.group_mut(&place, &topic);
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
            present.places.push(group.place().clone());
            self.by_app.entry(place.key.app).or_default().insert(session);
        }
        let Some(persona) = persona else {
            let stream = listeners.stream.clone();
            if is_new && let Some(channel) = &place.channel {
                if format.encode_count.is_some() && stream.counts().came(channel) {
                    self.topics.want_count(&place);
                }
                self.note_size(&place, &stream);
            }
            let (place, topic, outbox) = (&place, &topic, &*outbox);
            let reader = RecoveringJoin { place, outbox, topic, format, attached, boundary };
            let recovery = self.recover(&stream, &reader, wanted, ctx);
            let cached = self.cached(&reader, ctx);
            return outbox.answer(id, Ok(Joined { boundary, members: None, recovery, cached }));
        };
        let stream = &listeners.stream;
        let Some(tracker) = stream.tracker_or_start(|| self.topics.start_tracker(stream)) else {
            outbox.answer(id, Err(SubscribeError::Unavailable));
            return self.detach(&Detach { session, id, place });
        };
        let (worker, fanout) = (self.worker, ctx.address());
        tracker.do_send(EnterChannel { worker, fanout, place, session, id, persona, format });
    }

    /// Handles the tracker's answer for a session. If the tracker accepted the session, it is sent
    /// the members, and all further announcements.
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
                let reader = RecoveringJoin { place, outbox, topic, format, attached, boundary };
                let recovery = self.recover(&stream, &reader, wanted, ctx);
                let cached = self.cached(&reader, ctx);
                let members = Some(members);
                outbox.answer(id, Ok(Joined { boundary, members, recovery, cached }));
            }
            Err(refused) => {
                if refused == SubscribeError::TooManyMembers {
                    self.topics.metrics().hit(Limit::PresenceMembers);
                }
                outbox.answer(id, Err(refused));
                self.detach(&Detach { session, id, place });
            }
        }
    }

    fn detach(&mut self, Detach { session, id, place }: &Detach) {
        let departure = self.vacate(*session, place, Some(*id));
        let Some(present) = self.sessions.get_mut(session) else { return };
        present.outbox.detached(*id);
        // The place is listed once for each name by which the session joined it.
        let held = present.places.iter().position(|held| **held == *place);
        if let Some(nth) = held.filter(|_| departure != Departure::Absent) {
            present.places.swap_remove(nth);
            if !present.is_of(place.key.app) {
                self.forget_in_app(*session, place.key.app);
            }
        }
    }

    fn forget_in_app(&mut self, session: SessionId, app: AppId) {
        let Some(sessions) = self.by_app.get_mut(&app) else { return };
        sessions.remove(&session);
        if sessions.is_empty() {
            self.by_app.remove(&app);
        }
    }

    /// Removes the subscription that a session has at a place under this id, or, without an id, all its
    /// subscriptions there. Tells the tracker if the session is no longer tracked there, and closes the scope
    /// for this thread if no member is left.
    fn vacate(
        &mut self,
        session: SessionId,
        place: &Place,
        id: Option<SubscriptionId>,
    ) -> Departure {
        let Some(listeners) = self.scopes.get_mut(&place.key) else { return Departure::Absent };
        let stream = &listeners.stream;
        let is_counted = stream.counts().is_any() || self.topics.is_any_count_wanted();
        let counted = place.channel.as_ref().filter(|_| is_counted);
        let is_told = counted.is_some_and(|channel| listeners.is_told_count(channel, session));
        let departure = listeners.remove(place.channel.as_ref(), session, id);
        let counted = counted.filter(|_| departure != Departure::Absent);
        let counted = counted.map(|channel| (channel.clone(), listeners.stream.clone()));
        if let (Departure::LeftPresence, Some(channel)) = (departure, &place.channel) {
            listeners.stream.tell_tracker(Untrack { channel: channel.clone(), session });
        }
        if listeners.is_empty() {
            self.scopes.remove(&place.key);
            self.topics.directory().close(&place.key, self.worker, now_ms());
        }
        if let Some((channel, stream)) = counted {
            if is_told {
                stream.counts().left(&channel);
            }
            self.note_size(place, &stream);
        }
        departure
    }

    /// Notes that the number of a channel's subscribers has changed. If subscribers here or on other nodes are
    /// sent the number, it is counted and sent to them.
    fn note_size(&self, place: &Place, stream: &Arc<Stream>) {
        self.topics.note_count_changed(place);
        let Some(channel) = place.channel.as_ref().filter(|_| stream.counts().is_any()) else {
            return;
        };
        if let Some(count) = stream.counts().changed(channel, Cause::Here, now_ms()) {
            let (topics, place, stream) = (self.topics.clone(), place.clone(), stream.clone());
            actix::spawn(
                async move { topics.tell_count_until_settled(count, place, stream).await },
            );
        }
    }

    fn leave(&mut self, session: SessionId) {
        let Some(present) = self.sessions.swap_remove(&session) else { return };
        self.topics.backlog().leave();
        if let Some(app) = present.about.app() {
            self.forget_in_app(session, app);
        }
        for place in &present.places {
            self.forget_in_app(session, place.key.app);
            self.vacate(session, place, None);
        }
    }

    /// Hands out a publication to the subscribers of the whole scope and of its channel. For `#general`,
    /// returns the channels that it has yet to reach.
    fn dispatch(&mut self, key: &ScopeKey, placed: &Placed) -> Vec<ChannelName> {
        let listeners = self.scopes.get(key).filter(|all| all.hear(placed.position()));
        let Some(listeners) = listeners else { return Vec::new() };
        let mut members = 0;
        if let Some(whole) = &listeners.whole {
            members += self.hand(whole, placed, Level::Scope, &listeners.counted);
        }
        let left = match placed.destination() {
            Destination::Channel(channel) => {
                if let Some(group) = listeners.channels.get(channel) {
                    members += self.hand(group, placed, Level::Channel, &listeners.counted);
                }
                Vec::new()
            }
            Destination::General => listeners.channels.keys().cloned().collect(),
        };
        self.note_delivered(key.app, 1, members);
        left
    }

    /// Hands a publication to one of the channels that `#general` reaches.
    fn spread(&mut self, key: &ScopeKey, placed: &Placed, channel: &ChannelName) {
        let Some(listeners) = self.scopes.get(key) else { return };
        if let Some(group) = listeners.channels.get(channel) {
            let members = self.hand(group, placed, Level::Channel, &listeners.counted);
            self.note_delivered(key.app, 0, members);
        }
    }

    /// Sends the tracked members of a channel the changes among them.
    fn announce(&mut self, announcement: &Announcement) {
        let Some(listeners) = self.scopes.get(&announcement.key) else { return };
        if let Some(group) = listeners.channels.get(&announcement.channel) {
            group.announce(announcement, &listeners.counted.traffic, &mut self.waking.new_wakers());
            let members = group.len();
            self.note_delivered(announcement.key.app, 1, members);
        }
    }

    /// Hands a publication to the members of one group, and samples the latency of one of them
    /// now and then. Returns their number.
    fn hand(
        &self,
        group: &Group,
        placed: &Placed,
        level: Level,
        counted: &DeliveryCounters,
    ) -> usize {
        let (turn, members) = (self.sampler.turn(placed.taken_at()), group.len());
        let sampled = turn.map(|turn| turn % members.max(1));
        group.deliver(placed, level, sampled, counted, &mut self.waking.new_wakers());
        members
    }

    /// Notes that this many members were handed a frame, and that this many publications were begun with
    /// it. The sessions that were idle wait to be woken.
    fn note_delivered(&mut self, app: AppId, publications: usize, members: usize) {
        let sessions = self.waking.take_new(app);
        let handed_out = self.note_handed_out(app, publications, 1 + members);
        handed_out.frames += members;
        handed_out.sessions += sessions;
    }

    /// Counts work for an app towards its turn and this round. It counts as one group. Most outboxes have got at
    /// most one frame; more if their sessions joined the scope and the channel, joined under several names, or
    /// are sent positions or changes of members in several frames.
    fn note_handed_out(
        &mut self,
        app: AppId,
        publications: usize,
        deliveries: usize,
    ) -> &mut HandedOut {
        self.delivered_this_round += deliveries;
        let handed_out = self.handed_out.entry(app).or_default();
        handed_out.publications += publications;
        handed_out.groups += 1;
        handed_out.is_all = handed_out.is_used_up(self.groups_per_turn);
        self.is_any_to_renew |= handed_out.is_to_renew(self.groups_per_turn);
        handed_out
    }

    /// Returns whether an app rests: its turn is over, and its sessions get to write.
    fn rests(&self, app: AppId) -> bool {
        self.handed_out.get(&app).is_some_and(|handed_out| handed_out.is_all)
    }

    /// Returns whether this round is over: the other tasks of the thread run before more is handed out.
    fn is_round_over(&self) -> bool {
        self.delivered_this_round >= DELIVERIES_PER_ROUND
    }

    /// Hands out a batch until it is done, or until this round or the turn of its app is over. Returns the
    /// rest.
    fn proceed(&mut self, mut course: Course) -> Option<Course> {
        let app = course.batch.key.app;
        while !course.is_over() {
            if self.is_round_over() || self.rests(app) {
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

    /// Does a task immediately, or after all waiting tasks of this app: all members see one order,
    /// and a join finds a batch either handed out as a whole, or not begun.
    fn in_order(
        &mut self,
        app: AppId,
        ctx: &mut Context<Self>,
        act: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
    ) {
        match self.turns.has(app) {
            true => self.turns.push(app, Task::Other(app, Box::new(act))),
            false => act(self, ctx),
        }
    }

    /// Does waiting tasks, as many as fit into one round.
    fn take_turn(&mut self, ctx: &mut Context<Self>) {
        self.is_turn_due = false;
        while !self.is_round_over() {
            let handed_out = &self.handed_out;
            let rests = |app| handed_out.get(&app).is_some_and(|handed_out| handed_out.is_all);
            match self.turns.next(|app| !rests(app)) {
                Some(Task::HandOut(course)) => {
                    if course.begun == 0 {
                        self.waiting -= 1;
                        self.note_handed();
                    }
                    if let Some(rest) = self.proceed(course) {
                        self.turns.put_back(Task::HandOut(rest));
                    }
                }
                Some(Task::Other(app, act)) => {
                    act(self, ctx);
                    self.note_handed_out(app, 0, DELIVERIES_PER_ACT);
                }
                None => break,
            }
        }
        self.turns.pass();
        self.go_on(ctx);
    }

    /// Wakes sessions, and schedules the next round if this one is over, if a session has yet to be woken, or
    /// if an app is to begin a new turn. Also schedules the waiting tasks of apps that do not rest. If this
    /// round is over, `ctx.wait` keeps the fan-out from messages and tasks until the next one.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        self.wake();
        if self.is_round_over() {
            ctx.wait(self.rest_of_round());
        } else if !self.is_round_ending && (self.is_any_to_renew || !self.waking.is_empty()) {
            ctx.spawn(self.rest_of_round());
        }
        if !self.is_turn_due && self.turns.any(|app| !self.rests(app)) {
            self.is_turn_due = true;
            let turn = actix::fut::ready(()).into_actor(self);
            ctx.spawn(turn.map(|(), fanout, ctx| fanout.take_turn(ctx)));
        }
    }

    /// Waits until all sessions that were woken have run, and begins the next round. A round that is waited for
    /// already may then turn out to be over. It is then waited for twice, and ends once.
    fn rest_of_round(&mut self) -> impl ActorFuture<Self, Output = ()> + use<> {
        self.is_round_ending = true;
        let round = self.round;
        pause().into_actor(self).map(move |(), fanout, ctx| {
            if fanout.round == round {
                fanout.begin_round(ctx);
            }
        })
    }

    /// Begins a round. Each app without a session that waits to be woken begins a new turn: all its sessions
    /// have run.
    fn begin_round(&mut self, ctx: &mut Context<Self>) {
        self.round += 1;
        (self.is_round_ending, self.delivered_this_round) = (false, 0);
        self.waking.begin_round();
        self.handed_out.retain(|app, _| self.waking.has(*app));
        let is_to_renew = |of: &HandedOut| of.is_to_renew(self.groups_per_turn);
        self.is_any_to_renew = self.handed_out.values().any(is_to_renew);
        self.go_on(ctx);
    }

    /// Wakes as many sessions as fit into this round. While an app has waiting tasks and its turn is not over,
    /// its sessions are not woken, so that they write all of the turn at once.
    fn wake(&mut self) {
        if self.waking.is_empty() {
            return;
        }
        let (turns, all) = (&self.turns, &self.handed_out);
        let per_session = |app| {
            let HandedOut { frames, sessions, is_all, .. } = all.get(&app)?;
            (*is_all || !turns.has(app)).then(|| frames.div_ceil((*sessions).max(1)))
        };
        self.waking.wake_some(per_session);
    }

    /// Notes that a batch is begun. The number of the newest batch is published only while no batch
    /// waits, because the waiting one may be older.
    fn note_handed(&self) {
        if self.waiting == 0 {
            self.handed.set(self.newest);
        }
    }

    /// If the backlog exceeds its limit, ends the session of this thread with the most waiting bytes. Its memory
    /// is freed when the session closes its outbox. No other session is ended before that, because it may not
    /// be necessary. A session that holds less than its equal part is spared, because the excess is on another
    /// thread.
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
}

impl Actor for Fanout {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(Topics::MAILBOX_CAPACITY);
    }
}

impl Drop for Fanout {
    /// A fan-out is dropped when its thread stops, or by a panic. In both cases its sessions would
    /// receive nothing any more.
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
        // One message to each tracker stands for all its members on this thread.
        for (key, listeners) in mem::take(&mut self.scopes) {
            listeners.stream.tell_tracker(FanoutLost { worker: self.worker });
            self.topics.directory().close(&key, self.worker, now_ms());
        }
    }
}

mod figures;
mod handlers;
mod messages;
mod pause;
mod recovering;
mod waking;

#[cfg(test)]
mod tests;
