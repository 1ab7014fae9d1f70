//! Outboxes: the bounded way from the broker to one session.
//!
//! A queue of our own rather than an actor's mailbox, for a delivery is what Herald does most: one
//! lock that nobody else wants, one slot in a queue, and one wake-up for all that comes until the
//! session has had its turn. Nothing is allocated but room in the queue, where more than one waits.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use crate::app::AppId;

use super::{
    disconnection::Disconnection,
    subscriber::{Frame, Joined, SessionId, Split, SubscribeError, SubscriptionId},
};

/// Slots that an empty queue keeps; what a burst needed beyond is given back, or every session that
/// once heard two at a time would keep room for four.
const SLOTS_KEPT: usize = 1;

/// One of so many parts of what may wait is little: with that, as much as a turn brings still fits.
const LITTLE_SHARE: usize = 8;

/// A replay may take one of so many parts of what may wait.
const REPLAY_SHARE: usize = 2;

/// What reaches a session from the broker.
#[derive(Debug)]
pub enum ToSession {
    /// A frame for the client. With it, if it is of interest when it is written: when it was
    /// published.
    Frame(Frame, Option<Instant>),
    /// What the session itself has to look at.
    News(News),
}

/// What a session has to look at, in its order among the frames.
#[derive(Debug)]
pub enum News {
    /// What came of a subscription that the session asked for.
    Joined(SubscriptionId, Result<Box<Joined>, SubscribeError>),
    /// An app was changed or deleted: judge its joins anew.
    AppChanged(AppId),
    /// An app wants some of its joins ended.
    Disconnect(Arc<Disconnection>),
    /// Close.
    End(Ending),
}

impl News {
    /// What it takes of the outbox's bytes.
    fn size_bytes(&self) -> usize {
        match self {
            Self::Joined(_, Ok(joined)) => {
                let Joined { members, recovery, .. } = &**joined;
                let members = members.as_ref().map_or(0, |spelled| spelled.len());
                let frames = recovery.iter().flat_map(|recovery| &recovery.frames);
                members + frames.map(Frame::size_bytes).sum::<usize>()
            }
            _ => 0,
        }
    }
}

/// Why the broker ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It does not take what it is sent: more waits for it than may.
    SlowConsumer(Excess),
    /// It took nothing of what was written to it for too long.
    Stuck,
    /// Nothing was heard of it for too long.
    Idle,
    /// It began a message and did not complete it in time.
    SlowMessage,
    /// It went on sending more frames than may be within a second.
    TooManyFrames,
    /// It held the most of what all sessions hold of unfinished messages, and that was too much.
    Unfinished,
    /// It did not come for what waits, where clients fetch.
    NotFetching,
    /// It was opened, and its client never came for anything.
    NeverFetched,
    /// It joined nothing, where that costs its place.
    Unjoined,
    /// It sent more than may wait for its turn.
    InboxFull,
    /// The server stops.
    Shutdown,
    /// An actor it depended on is gone: it must come back to be heard again.
    Broken,
}

/// Of what there is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Frames.
    Frames,
    /// Bytes.
    Bytes,
    /// Bytes of all sessions together, of which most waited for this one.
    AllBytes,
}

/// How much waits, or may wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Frames; news counts as one.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Load {
    fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }

    fn remove(&mut self, other: Self) {
        self.frames -= other.frames;
        self.bytes -= other.bytes;
    }

    /// What is beyond `max`, if anything is.
    pub fn excess(self, max: Self) -> Option<Excess> {
        match () {
            () if self.frames > max.frames => Some(Excess::Frames),
            () if self.bytes > max.bytes => Some(Excess::Bytes),
            () => None,
        }
    }
}

/// What comes next in an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A frame.
    Frame,
    /// News, or somebody rang.
    News,
    /// Nothing; who asked is woken once there is something.
    Nothing,
    /// Nothing ever again.
    Closed,
}

/// The bounded way to one session: its fan-out fills it, the session takes.
///
/// What belongs to a subscription that was left never reaches the session. The answer to a join has its
/// place among the frames: what comes ahead of it was sent before the join, what comes behind it
/// belongs to the join.
///
/// It is also a bell: made a [`Waker`], it wakes who takes and says that it was not for a frame. So
/// who is woken for a frame need not look at all else that it waits for.
pub struct Outbox {
    session: SessionId,
    max: Load,
    state: Mutex<State>,
}

/// What each delivery touches; with the rest of the outbox it fits into two cache lines.
#[derive(Default)]
struct State {
    queue: VecDeque<Entry>,
    /// How much waits in `queue`.
    load: Load,
    /// Wakes who takes.
    waker: Option<Waker>,
    /// What there is now and then, as long as there is any.
    aside: Option<Box<Aside>>,
    ending: Option<Ending>,
    /// Whether somebody rang since the last look.
    has_rung: bool,
    /// Whether nobody takes any more.
    is_closed: bool,
}

#[derive(Default)]
struct Aside {
    /// Whether a join is under way.
    is_joining: bool,
    /// Subscriptions that were left, until the fan-out knows of it.
    left: Vec<SubscriptionId>,
    /// What the session has taken and keeps for its client to fetch.
    kept: Load,
    bodies: Bodies,
    /// What comes ahead of all that waits.
    replay: Replay,
}

/// What is replayed to a join that was answered.
#[derive(Default)]
struct Replay {
    /// The subscription it belongs to.
    of: Option<SubscriptionId>,
    frames: VecDeque<Frame>,
}

/// The bodies that split frames in the queue share. Each is counted once, as it lies in memory once.
///
/// Frames come and go in one order, so the one that is looked for is nearly always the last or the
/// first of few.
#[derive(Debug, Default, PartialEq, Eq)]
struct Bodies(VecDeque<Waiting>);

/// A body that frames in the queue share.
#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    /// Where it lies.
    at: usize,
    frames: usize,
}

struct Entry {
    what: ToSession,
    /// The subscription it belongs to.
    of: Option<SubscriptionId>,
}

impl Entry {
    /// How much it takes by itself, without what it shares with other frames.
    fn load(&self) -> Load {
        let bytes = match &self.what {
            ToSession::Frame(Frame::Split(split), _) => split.head.len(),
            ToSession::Frame(frame, _) => frame.size_bytes(),
            ToSession::News(news) => news.size_bytes(),
        };
        Load { frames: 1, bytes }
    }

    fn split(&self) -> Option<&Split> {
        match &self.what {
            ToSession::Frame(Frame::Split(split), _) => Some(split),
            _ => None,
        }
    }
}

impl Bodies {
    /// The bytes that one more frame with this body adds.
    fn added_bytes(&self, split: &Split) -> usize {
        let at = address(split);
        let is_known = self.0.iter().rev().any(|waiting| waiting.at == at);
        if is_known { 0 } else { split.body.len() }
    }

    /// Adds a frame; answers the bytes that this adds.
    fn add(&mut self, split: &Split) -> usize {
        let at = address(split);
        if let Some(waiting) = self.0.iter_mut().rev().find(|waiting| waiting.at == at) {
            waiting.frames += 1;
            return 0;
        }
        self.0.push_back(Waiting { at, frames: 1 });
        split.body.len()
    }

    /// Removes a frame; answers the bytes that this frees.
    fn remove(&mut self, split: &Split) -> usize {
        let at = address(split);
        let Some(nth) = self.0.iter().position(|waiting| waiting.at == at) else { return 0 };
        let waiting = &mut self.0[nth];
        waiting.frames -= 1;
        if waiting.frames > 0 {
            return 0;
        }
        self.0.remove(nth);
        split.body.len()
    }
}

/// Tells bodies apart: a frame in the queue keeps its body where it is.
fn address(split: &Split) -> usize {
    split.body.as_ptr().addr()
}

impl Aside {
    fn is_empty(&self) -> bool {
        let Self { is_joining, left, kept, bodies, replay } = self;
        let is_unused = !is_joining && left.is_empty() && *kept == Load::default();
        is_unused && bodies.0.is_empty() && replay.frames.is_empty()
    }
}

impl State {
    /// Looks at, and changes, what there is now and then.
    fn beside<R>(&mut self, change: impl FnOnce(&mut Aside) -> R) -> R {
        let aside = self.aside.get_or_insert_default();
        let changed = change(aside);
        if aside.is_empty() {
            self.aside = None;
        }
        changed
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Wakes `waker` from now on.
    fn register(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|registered| registered.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    fn push(&mut self, entry: Entry) {
        self.load.add(entry.load());
        if let Some(split) = entry.split() {
            self.load.bytes += self.beside(|aside| aside.bodies.add(split));
        }
        let was_empty = self.queue.is_empty();
        if self.queue.capacity() == 0 {
            // One is the common case, and a session that hears little should not keep room for many.
            self.queue.reserve_exact(1);
        }
        self.queue.push_back(entry);
        // Who has not come for the first has yet to come for all.
        if was_empty {
            self.wake();
        }
    }

    fn pop(&mut self) -> Option<ToSession> {
        if self.replays() {
            let replayed = self.beside(|aside| aside.replay.frames.pop_front());
            return replayed.map(|frame| ToSession::Frame(frame, None));
        }
        let entry = self.queue.pop_front()?;
        self.load.remove(entry.load());
        if let Some(split) = entry.split() {
            self.load.bytes -= self.beside(|aside| aside.bodies.remove(split));
        }
        if self.queue.is_empty() && self.queue.capacity() > SLOTS_KEPT {
            self.queue = VecDeque::new();
        }
        Some(entry.what)
    }

    /// The bytes that the body of one more frame adds.
    fn added_bytes(&self, split: &Split) -> usize {
        self.aside.as_ref().map_or(split.body.len(), |aside| aside.bodies.added_bytes(split))
    }

    /// Whether something is to be replayed first.
    fn replays(&self) -> bool {
        self.aside.as_ref().is_some_and(|aside| !aside.replay.frames.is_empty())
    }

    fn next(&self) -> Next {
        if self.replays() {
            return Next::Frame;
        }
        match self.queue.front().map(|entry| &entry.what) {
            Some(ToSession::Frame(..)) => Next::Frame,
            Some(ToSession::News(_)) => Next::News,
            None if self.is_closed => Next::Closed,
            None => Next::Nothing,
        }
    }

    fn end(&mut self, ending: Ending) {
        if self.ending.is_none() && !self.is_closed {
            self.ending = Some(ending);
            self.push(Entry { what: ToSession::News(News::End(ending)), of: None });
            // Also if it is stuck in a write and does not look here.
            self.wake();
        }
    }
}

impl Outbox {
    /// Makes the outbox of a session in which at most so much may wait.
    pub fn new(session: SessionId, max: Load) -> Arc<Self> {
        Arc::new(Self { session, max, state: Mutex::default() })
    }

    /// The most bytes that a replay may have. The rest has room for live frames: a replay that filled
    /// the outbox would end the session, and its client would come back for the same replay.
    pub(super) fn replay_bytes_max(&self) -> usize {
        self.max.bytes / REPLAY_SHARE
    }

    /// Whose outbox this is.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The state; a panic beside it does not break it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame, never waits. `false` if the session cannot take it: it is then being ended,
    /// for it must never be silently deaf. If `published` is given, the session measures how long it
    /// takes from then until the frame is written.
    pub fn deliver(&self, frame: &Frame, to: SubscriptionId, published: Option<Instant>) -> bool {
        let what = || ToSession::Frame(frame.clone(), published);
        let bytes = |state: &State| match frame {
            Frame::Split(split) => split.head.len() + state.added_bytes(split),
            frame => frame.size_bytes(),
        };
        self.queue(bytes, Some(to), what)
    }

    /// Answers a join, in its order among the frames; like [`Outbox::tell`], this ends a session that
    /// cannot even be told.
    pub(super) fn answer(&self, join: SubscriptionId, outcome: Result<Joined, SubscribeError>) {
        self.tell(News::Joined(join, outcome.map(Box::new)));
    }

    /// Tells the session of something that ends some of its joins. One that cannot even be told is
    /// ended as a whole: what must end must not go on because a client does not keep up.
    pub(super) fn tell(&self, news: News) {
        let bytes = news.size_bytes();
        self.queue(|_| bytes, None, || ToSession::News(news));
    }

    fn queue(
        &self,
        bytes: impl FnOnce(&State) -> usize,
        of: Option<SubscriptionId>,
        what: impl FnOnce() -> ToSession,
    ) -> bool {
        let mut state = self.state();
        if state.is_closed || state.ending.is_some() {
            return false;
        }
        let was_left = |aside: &Aside| of.is_some_and(|of| aside.left.contains(&of));
        if state.aside.as_deref().is_some_and(was_left) {
            return true;
        }
        let mut load = state.load;
        load.add(Load { frames: 1, bytes: bytes(&state) });
        if let Some(excess) = load.excess(self.max) {
            state.end(Ending::SlowConsumer(excess));
            return false;
        }
        state.push(Entry { what: what(), of });
        true
    }

    /// Puts what is replayed to a join, which the session has just taken the answer of, ahead of all
    /// that waits. The frames are shared with other sessions, and they count as little here as in the
    /// answer: only live frames fill the outbox.
    pub fn replay(&self, of: SubscriptionId, frames: Vec<Frame>) {
        let mut state = self.state();
        if !state.is_closed {
            state.beside(|aside| aside.replay = Replay { of: Some(of), frames: frames.into() });
        }
    }

    /// Takes frames for as long as `take` wants more; answers what comes next. `waker` is woken when
    /// something comes into an empty outbox, when somebody rings, and when the session is to end.
    pub fn take_frames(
        &self,
        waker: &Waker,
        mut take: impl FnMut(Frame, Option<Instant>) -> bool,
    ) -> Next {
        let mut state = self.state();
        state.register(waker);
        let mut wants_more = true;
        while wants_more && state.next() == Next::Frame {
            let Some(ToSession::Frame(frame, published)) = state.pop() else { break };
            wants_more = take(frame, published);
        }
        match state.next() {
            Next::Nothing if std::mem::take(&mut state.has_rung) => Next::News,
            next => next,
        }
    }

    /// Wakes who takes, and says that it is not for a frame.
    pub fn ring(&self) {
        let mut state = self.state();
        state.has_rung = true;
        state.wake();
    }

    /// Takes news, if that comes next.
    pub fn take_news(&self) -> Option<News> {
        let mut state = self.state();
        if state.next() != Next::News {
            return None;
        }
        match state.pop() {
            Some(ToSession::News(news)) => Some(news),
            _ => None,
        }
    }

    /// Takes whatever comes next, if there is something.
    pub fn take(&self) -> Option<ToSession> {
        self.state().pop()
    }

    /// Takes whatever comes next, once there is something.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<ToSession> {
        let mut state = self.state();
        state.register(cx.waker());
        state.pop().map_or(Poll::Pending, Poll::Ready)
    }

    /// How much waits for the client.
    pub fn load(&self) -> Load {
        let state = self.state();
        let mut load = state.load;
        if let Some(aside) = &state.aside {
            let Aside { kept, replay: Replay { frames, .. }, .. } = &**aside;
            let bytes = frames.iter().map(Frame::size_bytes).sum();
            load.add(*kept);
            load.add(Load { frames: frames.len(), bytes });
        }
        load
    }

    /// Whether so little waits that more may come before any is taken.
    pub fn holds_little(&self) -> bool {
        let Load { frames, bytes } = self.state().load;
        frames <= self.max.frames / LITTLE_SHARE && bytes <= self.max.bytes / LITTLE_SHARE
    }

    /// Notes how much the session itself keeps for its client.
    pub fn keeps(&self, load: Load) {
        self.state().beside(|aside| aside.kept = load);
    }

    /// A join is under way, until [`end_join`](Self::end_join).
    pub fn begin_join(&self) {
        self.state().beside(|aside| aside.is_joining = true);
    }

    /// The join has been answered.
    pub fn end_join(&self) {
        self.state().beside(|aside| aside.is_joining = false);
    }

    /// Whether a join of the session is under way. Its fan-out may know nothing of it yet.
    pub(super) fn is_joining(&self) -> bool {
        self.state().aside.as_ref().is_some_and(|aside| aside.is_joining)
    }

    /// A subscription is left: nothing of it comes out any more.
    pub fn leave(&self, id: SubscriptionId) {
        let mut state = self.state();
        let mut gone = Load::default();
        let mut bodies = state.beside(|aside| std::mem::take(&mut aside.bodies));
        let mut stays = |entry: &Entry| {
            let stays = entry.of != Some(id);
            if !stays {
                gone.add(entry.load());
                gone.bytes += entry.split().map_or(0, |split| bodies.remove(split));
            }
            stays
        };
        state.queue.retain(&mut stays);
        state.beside(|aside| {
            aside.left.push(id);
            aside.bodies = bodies;
            if aside.replay.of == Some(id) {
                aside.replay = Replay::default();
            }
        });
        state.load.remove(gone);
    }

    /// The fan-out sends nothing to a subscription any more.
    pub(super) fn detached(&self, id: SubscriptionId) {
        let mut state = self.state();
        if state.aside.is_some() {
            state.beside(|aside| aside.left.retain(|of| *of != id));
        }
    }

    /// Ends the session: it hears of it in its turn, and is woken at once in case it is stuck in a
    /// write. The first reason stands.
    pub fn end(&self, ending: Ending) {
        self.state().end(ending);
    }

    /// Whether the session is over, and lets go of all that waited.
    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Why the session is to end, if it is.
    pub fn ended(&self) -> Option<Ending> {
        self.state().ending
    }

    /// The session is over: nothing is taken any more, so nothing is kept.
    pub fn close(&self) {
        let mut state = self.state();
        let State { waker, has_rung, ending, .. } = std::mem::take(&mut *state);
        // What remains to be written still needs its bell.
        *state = State { waker, has_rung, ending, is_closed: true, ..State::default() };
    }
}

impl Wake for Outbox {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("session", &self.session).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
