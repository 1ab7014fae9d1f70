//! A fan-out: one actor per worker thread, which puts each publication's frame into the outboxes of
//! the thread's subscribers.

use std::{
    collections::{BTreeSet, HashMap, hash_map},
    mem,
    ops::Bound,
    rc::Rc,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use actix::prelude::*;
use bytestring::ByteString;
use indexmap::IndexMap;
use log::{error, warn};
use rustc_hash::{FxBuildHasher, FxHashMap};

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
        AddedFrames, DeliveryCounters, Departure, Group, Sampler, ScopeSubscribers, TakenIn,
        TopicSubscriber,
    },
    node::NodeId,
    now_ms,
    occupancy::Rank,
    outbox::{Ending, Excess, Load, News, Outbox},
    placed::{Batch, Level, Placed, SpokenPublication},
    position::StreamPosition,
    publication::{Destination, Sender},
    recovery::{Incomplete, Missed, Reading, Recovery, Since, Wanted},
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
    users::OnlineChange,
    writers::FrameWriters,
};
use delivering::Course;
pub(super) use messages::{
    Announce, Dispatch, EndAll, EndJoins, EndSome, EndedSessions, Entered, Interrupt, PlaceLost,
    TellCount, TellOnline, TrackerLost, Watch,
};
pub use messages::{Attach, Confirm, Detach, Enter, Leave, Relieve};
use pause::pause;
use recovering::RecoveringJoin;
use rounds::{FRAMES_PER_TURN, HandedOut, Task};
use serving::Serving;
pub(super) use thread::FanoutAddr;
pub use thread::ThreadFanout;
use thread::{BatchCounts, JoiningSessions};
use watching::Watchlists;

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

/// Delivers publications to the subscribers of its thread. A batch crosses threads as one message, whatever
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
/// not by the batch. The task of an app without a queue is done at once, unless the turn of this app is over. A task
/// that hands out frames (a publication, an announcement, a count of subscribers) also waits if another app has a
/// queue.
///
/// Writing to a socket takes about a hundred times as long as a delivery, so the frames are not
/// written to all sessions at once: each round serves a few sessions, and the apps take turns. The sessions
/// that wait meanwhile are handed further frames, and all of them leave together. An app whose turn is
/// over *rests* until all its sessions that were handed frames have been served.
///
/// The fan-out writes to the socket of a session itself, through its [`FrameWriter`](super::writers::FrameWriter), and
/// wakes the session if it cannot, or while further publications are on their way: the sessions then let these go first.
///
/// A session that cannot take a frame at once is ended; the fan-out never waits for one. A turn ends before it fills
/// the outbox of a session that runs in between. Senders do not wait for room in the mailbox: each publication
/// and announcement holds a permit (see [`Topics`]), a join causes at most three messages, and the other messages
/// are small.
///
/// The ids of apps and sessions are given by the server, so maps by them need no hash that withstands chosen keys.
pub struct Fanout {
    worker: WorkerId,
    topics: Topics,
    /// This is not a `HashMap`, because a table of whole entries would double when it is full. Here only the
    /// table of indices doubles.
    sessions: IndexMap<SessionId, Present, FxBuildHasher>,
    /// The sessions that have joined anything of an app, or belong to it as a whole.
    by_app: FxHashMap<AppId, BTreeSet<SessionId>>,
    scopes: HashMap<ScopeKey, ScopeSubscribers>,
    /// The tasks that could not be done at once. While there is one of an app that does not rest,
    /// `take_turn` is scheduled.
    turns: Turns<Task>,
    /// Whether `take_turn` is scheduled.
    is_turn_due: bool,
    /// The work of each app's present turn.
    handed_out: FxHashMap<AppId, HandedOut>,
    /// Whether so much of one of these turns is used up that the next publication may not fit into the rest. The
    /// next round is then scheduled even if no session waits, so that the app begins a new turn.
    is_any_to_renew: bool,
    /// The load of one session at which a turn of an app ends.
    load_per_turn: Load,
    /// The sessions that have been handed frames and are not served yet. While there is one,
    /// the end of this round is scheduled.
    serving: Serving,
    /// The writers of the sessions.
    writers: Rc<FrameWriters>,
    /// The sessions with a join under way.
    joining: Rc<JoiningSessions>,
    watchlists: Watchlists,
    delivered_this_round: usize,
    /// The number of this round.
    round: u64,
    /// Whether the end of this round is scheduled.
    is_round_ending: bool,
    /// The batches that it was sent, and those that it has begun.
    batches: BatchCounts,
    sampler: Sampler,
    /// The outbox of the session that was last ended because the backlog exceeded its limit.
    relieving: Option<Weak<Outbox>>,
    /// The frames that were replayed lately, which further joins share.
    replays: Replays,
    /// Whether the server stops: a session that enters meanwhile is ended like the others.
    stopping: bool,
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

impl Fanout {
    fn new(worker: WorkerId, topics: Topics) -> Self {
        let replays = Replays::new(topics.backlog().clone(), Instant::now());
        Self {
            worker,
            topics,
            replays,
            sessions: IndexMap::default(),
            by_app: FxHashMap::default(),
            scopes: HashMap::new(),
            turns: Turns::new(),
            is_turn_due: false,
            handed_out: FxHashMap::default(),
            is_any_to_renew: false,
            load_per_turn: Load { frames: FRAMES_PER_TURN, bytes: usize::MAX },
            serving: Serving::new(),
            writers: Rc::default(),
            joining: Rc::default(),
            watchlists: Watchlists::default(),
            delivered_this_round: 0,
            round: 0,
            is_round_ending: false,
            batches: BatchCounts::default(),
            sampler: Sampler::default(),
            relieving: None,
            stopping: false,
        }
    }

    /// If the backlog exceeds its limit, ends the session of this thread with the most waiting bytes. Its memory
    /// is freed when the session closes its outbox. No other session is ended before that, because it may not
    /// be necessary. A session that holds less than its equal part is spared, because the excess is on another
    /// thread. A session that is over already, and still writes its last bytes, is woken, and gives them up.
    fn relieve(&mut self) {
        if !self.topics.backlog().is_exceeded() {
            return;
        }
        let relieving = self.relieving.as_ref().and_then(Weak::upgrade);
        if relieving.is_some_and(|outbox| !outbox.is_closed()) {
            return;
        }
        let outboxes = self.sessions.values().map(|present| &present.outbox);
        let not_ended = outboxes.filter(|outbox| outbox.ended().is_none());
        let fullest = not_ended.max_by_key(|outbox| outbox.load().bytes);
        let least = self.topics.backlog().equal_part().max(1);
        let Some(outbox) = fullest.filter(|outbox| outbox.load().bytes >= least) else { return };
        if outbox.is_closed() {
            return outbox.wake_session();
        }
        outbox.end(Ending::SlowConsumer(Excess::AllBytes));
        self.relieving = Some(Arc::downgrade(outbox));
    }
}

impl Fanout {
    /// Takes a session of this fan-out, which is lost, from the subscribers of a channel that are sent their number.
    /// The others are sent the new number with the next change.
    fn uncount(&self, session: SessionId, place: &Place) {
        let (Some(channel), Some(listeners)) = (&place.channel, self.scopes.get(&place.key)) else {
            return;
        };
        if listeners.is_told_count(channel, session) {
            listeners.stream.counts().left(channel);
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
        for (session, present) in mem::take(&mut self.sessions) {
            present.outbox.end(Ending::Broken);
            self.topics.backlog().leave();
            present.places.iter().for_each(|place| self.uncount(session, place));
        }
        // One message to each tracker stands for all its members on this thread.
        for (key, listeners) in mem::take(&mut self.scopes) {
            listeners.stream.tell_tracker(FanoutLost { worker: self.worker });
            self.topics.directory().close(&key, self.worker, now_ms());
        }
    }
}

mod delivering;
mod figures;
mod handlers;
mod joining;
mod messages;
mod pause;
mod recovering;
mod rounds;
mod serving;
mod thread;
mod watching;

#[cfg(test)]
mod tests;
