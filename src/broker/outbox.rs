//! Outboxes: the bounded queues from the broker to the sessions.
//!
//! An outbox replaces an actor's mailbox, because deliveries are the most frequent operation: one
//! uncontended lock, one slot in a queue, and one write, or one wake-up, for all
//! frames until then.
//! An empty queue keeps one slot, so that most deliveries allocate nothing.

mod bodies;
mod changes;
mod news;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::subscriber::{Frame, Joined, SessionId, Split, SubscribeError, SubscriptionId};

use bodies::SharedBodies;
pub(super) use changes::{ChangeFrames, PendingChanges};
pub use news::{Ending, Excess, News};

/// The capacity that an empty queue keeps. Further capacity is freed, because every session that once had
/// two frames at a time would otherwise keep memory for four.
const SLOTS_KEPT: usize = 1;

/// A load of at most this fraction (1/8) of the limit is small: the frames of another turn still fit.
const LITTLE_SHARE: usize = 8;

/// The fraction of the limit (1/2) that a replay may take.
const REPLAY_SHARE: usize = 2;

/// The slot of a session's writer if the session has none.
const NO_WRITER: u32 = u32::MAX;

/// A message from the broker to a session.
#[derive(Debug)]
pub enum ToSession {
    /// A frame for the client, with the time of its publication if its latency is sampled.
    Frame(Frame, Option<Instant>),
    /// A message for the session itself.
    News(News),
}

/// The load of an outbox, or its limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The number of frames. A message of news counts as one.
    pub frames: usize,
    /// The bytes of the frames.
    pub bytes: usize,
}

impl Load {
    pub(super) fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }

    fn remove(&mut self, other: Self) {
        self.frames -= other.frames;
        self.bytes -= other.bytes;
    }

    /// The part that exceeds `max`, if any does.
    pub fn excess(self, max: Self) -> Option<Excess> {
        match () {
            () if self.frames > max.frames => Some(Excess::Frames),
            () if self.bytes > max.bytes => Some(Excess::Bytes),
            () => None,
        }
    }
}

/// The kind of the next item in an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextItem {
    /// A frame.
    Frame,
    /// News, or [`wake_session`](Outbox::wake_session) was called.
    News,
    /// The outbox is empty, and the session will be served or woken for the next item.
    Nothing,
    /// The outbox is closed, and will have no more items.
    Closed,
}

/// The bounded queue to one session: the fan-out fills it, and the session or its writer takes from it.
///
/// The session takes no frame of a subscription that it has left. The answer to a join keeps its
/// place among the frames: the frames of the subscription ahead of it belong to an earlier join, and
/// those behind it to this one.
///
/// An outbox is also a [`Waker`]: it wakes the session and notes that the reason is not a frame. A
/// session that is woken for a frame therefore need not poll everything else that it waits for.
pub struct Outbox {
    session: SessionId,
    /// The most frames that may wait. It has four bytes, so that the outbox fits into two cache lines.
    frames_max: u32,
    /// The slot of the session's writer among those of its thread, see [`FrameWriters`](super::writers::FrameWriters).
    writer: AtomicU32,
    /// The most bytes that may wait.
    bytes_max: usize,
    state: Mutex<State>,
}

/// The state that each delivery reads or changes. Together with the rest of the outbox it fits into two
/// cache lines.
#[derive(Default)]
struct State {
    queue: VecDeque<OutboxEntry>,
    /// The load of `queue`.
    load: Load,
    /// The waker of the session.
    waker: Option<Waker>,
    /// The rarely needed state, while there is any.
    aside: Option<Box<Aside>>,
    ending: Option<Ending>,
    /// Whether `wake_session` was called since the session last polled.
    was_woken: bool,
    /// Whether the session is over, and takes no more items.
    is_closed: bool,
}

/// The rarely needed state of an outbox.
#[derive(Default)]
struct Aside {
    /// The subscriptions that the session has left and that the fan-out has not detached yet. Their frames are
    /// dropped.
    left: Vec<SubscriptionId>,
    /// The load of the frames that the session has taken and keeps until its client fetches them.
    kept: Load,
    /// The bodies of the split frames in the queue.
    bodies: SharedBodies,
    /// The frames that precede the queue.
    replay: PendingReplay,
}

/// The frames that are replayed to a join after its answer.
#[derive(Default)]
struct PendingReplay {
    /// The subscription to which the frames belong.
    of: Option<SubscriptionId>,
    frames: VecDeque<Frame>,
}

struct OutboxEntry {
    what: Waiting,
    /// The subscription of a frame; `None` for news, and for a frame that belongs to no subscription.
    of: Option<SubscriptionId>,
}

/// An item of the queue.
enum Waiting {
    /// A frame, with the time of its publication if its latency is sampled.
    Frame(Frame, Option<Instant>),
    /// The frames of an announcement.
    Changes(PendingChanges),
    News(News),
}

impl OutboxEntry {
    /// The load of this entry alone, without the body that it shares with other frames.
    fn load(&self) -> Load {
        let bytes = match &self.what {
            Waiting::Frame(frame, _) => frame.own_bytes(),
            Waiting::Changes(changes) => changes.left_bytes(),
            Waiting::News(news) => news.size_bytes(),
        };
        Load { frames: 1, bytes }
    }

    fn split(&self) -> Option<&Split> {
        match &self.what {
            Waiting::Frame(Frame::Split(split), _) => Some(split),
            _ => None,
        }
    }
}

impl Aside {
    fn is_empty(&self) -> bool {
        let Self { left, kept, bodies, replay } = self;
        let is_unused = left.is_empty() && *kept == Load::default();
        is_unused && bodies.is_empty() && replay.frames.is_empty()
    }
}

impl State {
    /// Changes the rarely needed state, which is made if there is none, and dropped if nothing in it is used.
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

    /// Registers `waker`.
    fn register(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|registered| registered.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    /// Queues an item, and returns whether the session must be served or woken.
    fn push(&mut self, entry: OutboxEntry) -> bool {
        self.load.add(entry.load());
        if let Some(split) = entry.split() {
            self.load.bytes += self.beside(|aside| aside.bodies.add(split));
        }
        let was_empty = self.queue.is_empty();
        if self.queue.capacity() == 0 {
            // One item is the common case, and a session with few deliveries should not keep room
            // for many.
            self.queue.reserve_exact(1);
        }
        self.queue.push_back(entry);
        // A session with items that it has not taken was woken for the first of them, or will be served.
        was_empty
    }

    fn pop(&mut self) -> Option<ToSession> {
        if self.replays() {
            let replayed = self.beside(|aside| aside.replay.frames.pop_front());
            return replayed.map(|frame| ToSession::Frame(frame, None));
        }
        if let Waiting::Changes(changes) = &mut self.queue.front_mut()?.what
            && changes.left() > 1
        {
            let frame = changes.take()?;
            self.load.bytes -= frame.size_bytes();
            return Some(ToSession::Frame(frame, None));
        }
        let entry = self.queue.pop_front()?;
        self.load.remove(entry.load());
        if let Some(split) = entry.split() {
            self.load.bytes -= self.beside(|aside| aside.bodies.remove(split));
        }
        if self.queue.is_empty() && self.queue.capacity() > SLOTS_KEPT {
            self.queue = VecDeque::new();
        }
        match entry.what {
            Waiting::Frame(frame, published) => Some(ToSession::Frame(frame, published)),
            Waiting::Changes(mut last) => last.take().map(|frame| ToSession::Frame(frame, None)),
            Waiting::News(news) => Some(ToSession::News(news)),
        }
    }

    /// The bytes that the body of one more frame adds.
    fn added_bytes(&self, split: &Split) -> usize {
        self.aside.as_ref().map_or(split.body.len(), |aside| aside.bodies.added_bytes(split))
    }

    /// Returns whether frames of a replay precede the queue.
    fn replays(&self) -> bool {
        self.aside.as_ref().is_some_and(|aside| !aside.replay.frames.is_empty())
    }

    fn next(&self) -> NextItem {
        if self.replays() {
            return NextItem::Frame;
        }
        match self.queue.front().map(|entry| &entry.what) {
            Some(Waiting::Frame(..) | Waiting::Changes(_)) => NextItem::Frame,
            Some(Waiting::News(_)) => NextItem::News,
            None if self.is_closed => NextItem::Closed,
            None => NextItem::Nothing,
        }
    }

    fn end(&mut self, ending: Ending) {
        if self.ending.is_none() && !self.is_closed {
            self.ending = Some(ending);
            self.push(OutboxEntry { what: Waiting::News(News::End(ending)), of: None });
            // The session is woken even if it is stuck in a write and does not poll the outbox.
            self.wake();
        }
    }
}

impl Outbox {
    /// Makes the outbox of a session, with the limit `max`.
    pub fn new(session: SessionId, max: Load) -> Arc<Self> {
        let frames_max = u32::try_from(max.frames).unwrap_or(u32::MAX);
        let (bytes_max, writer) = (max.bytes, NO_WRITER.into());
        Arc::new(Self { session, frames_max, writer, bytes_max, state: Mutex::default() })
    }

    /// The most bytes that a replay may have. The rest is left for live frames. Without it they would overflow
    /// the outbox during the replay, the session would end, and its client would rejoin for the same replay.
    pub(super) fn replay_bytes_max(&self) -> usize {
        self.bytes_max / REPLAY_SHARE
    }

    /// The session to which this outbox belongs.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The most that may wait.
    fn max(&self) -> Load {
        Load { frames: self.frames_max as usize, bytes: self.bytes_max }
    }

    /// The slot of the session's writer.
    pub(super) fn writer(&self) -> Option<usize> {
        let slot = self.writer.load(Relaxed);
        (slot != NO_WRITER).then_some(slot as usize)
    }

    /// Sets the slot of the session's writer.
    pub(super) fn set_writer(&self, slot: Option<usize>) {
        let slot = slot.and_then(|slot| u32::try_from(slot).ok());
        self.writer.store(slot.unwrap_or(NO_WRITER), Relaxed);
    }

    /// Queues a frame without waiting. Returns `false` if the session cannot take it: the session is
    /// then ended, because it must not miss frames silently. A frame of a subscription that the
    /// session has left is dropped, and `true` is returned. If `published` is given, the session
    /// measures the time from then until the frame is written.
    pub fn deliver(&self, frame: &Frame, to: SubscriptionId, published: Option<Instant>) -> bool {
        let mut is_idle = false;
        let is_taken = self.deliver_with(frame, to, published, || is_idle = true);
        if is_idle {
            self.wake_for_frames();
        }
        is_taken
    }

    /// Queues a frame like [`deliver`](Self::deliver). If the session has to be served for it, `on_idle` is called
    /// instead.
    pub(super) fn deliver_with(
        &self,
        frame: &Frame,
        to: SubscriptionId,
        published: Option<Instant>,
        on_idle: impl FnOnce(),
    ) -> bool {
        let what = || Waiting::Frame(frame.clone(), published);
        let bytes = |state: &State| match frame {
            Frame::Split(split) => split.head.len() + state.added_bytes(split),
            frame => frame.size_bytes(),
        };
        self.queue(bytes, Some(to), what, |_| on_idle())
    }

    /// Queues a frame that belongs to no subscription. If the session has to be woken for it, `on_idle` is called
    /// instead. Returns `false` if the session cannot take it, and is ended.
    pub(super) fn deliver_to_session(&self, frame: &Frame, on_idle: impl FnOnce()) -> bool {
        let what = || Waiting::Frame(frame.clone(), None);
        self.queue(|_| frame.size_bytes(), None, what, |_| on_idle())
    }

    /// Queues the frames of an announcement like [`deliver_with`](Self::deliver_with).
    pub(super) fn deliver_changes(
        &self,
        changes: PendingChanges,
        to: SubscriptionId,
        on_idle: impl FnOnce(),
    ) -> bool {
        let bytes = changes.left_bytes();
        self.queue(|_| bytes, Some(to), || Waiting::Changes(changes), |_| on_idle())
    }

    /// The load that a fan-out may add for an app before the session runs. It is low enough that the frames of
    /// several apps fit at the same time.
    pub(super) fn load_per_turn(&self) -> Load {
        let part = |max: usize| (max / LITTLE_SHARE).max(1);
        let Load { frames, bytes } = self.max();
        Load { frames: part(frames), bytes: part(bytes) }
    }

    /// Answers a join. The answer has its place among the frames. Like [`Outbox::tell`], this ends a
    /// session whose outbox is full.
    pub(super) fn answer(&self, join: SubscriptionId, outcome: Result<Joined, SubscribeError>) {
        self.tell(News::Joined(join, outcome.map(Box::new)));
    }

    /// Queues news for the session without waiting. A session whose outbox is full is ended as a
    /// whole: the news may end joins, which must not go on because a client does not keep up.
    pub fn tell(&self, news: News) {
        let bytes = news.size_bytes();
        self.queue(|_| bytes, None, || Waiting::News(news), Waker::wake_by_ref);
    }

    fn queue(
        &self,
        bytes: impl FnOnce(&State) -> usize,
        of: Option<SubscriptionId>,
        what: impl FnOnce() -> Waiting,
        wake: impl FnOnce(&Waker),
    ) -> bool {
        let mut state = self.state.lock();
        if state.is_closed || state.ending.is_some() {
            return false;
        }
        let was_left = |aside: &Aside| of.is_some_and(|of| aside.left.contains(&of));
        if state.aside.as_deref().is_some_and(was_left) {
            return true;
        }
        let mut load = state.load;
        load.add(Load { frames: 1, bytes: bytes(&state) });
        if let Some(excess) = load.excess(self.max()) {
            state.end(Ending::SlowConsumer(excess));
            return false;
        }
        if state.push(OutboxEntry { what: what(), of })
            && let Some(waker) = &state.waker
        {
            wake(waker);
        }
        true
    }

    /// Puts the frames that are replayed to a join, whose answer the session has just taken, ahead
    /// of the queue. The frames are shared with other sessions and do not count towards the limit: only live
    /// frames fill the outbox. The session can take the next answer only after these frames, so one
    /// replay never replaces another.
    pub fn replay(&self, of: SubscriptionId, frames: Vec<Frame>) {
        let mut state = self.state.lock();
        if !state.is_closed {
            state.beside(|aside| {
                aside.replay = PendingReplay { of: Some(of), frames: frames.into() }
            });
        }
    }

    /// Takes frames until `take` returns `false` or the next item is no frame. Returns the kind of the next
    /// item. If the session itself calls this, `waker` is its own. It is woken when an item comes into an empty outbox,
    /// when [`wake_session`](Self::wake_session) is called, and when the session is to end.
    pub fn take_frames(
        &self,
        waker: Option<&Waker>,
        mut take: impl FnMut(Frame, Option<Instant>) -> bool,
    ) -> NextItem {
        let mut state = self.state.lock();
        if let Some(waker) = waker {
            state.register(waker);
        }
        let mut wants_more = true;
        while wants_more && state.next() == NextItem::Frame {
            let Some(ToSession::Frame(frame, published)) = state.pop() else { break };
            wants_more = take(frame, published);
        }
        match state.next() {
            NextItem::Nothing if state.was_woken => {
                state.was_woken = waker.is_none();
                NextItem::News
            }
            next => next,
        }
    }

    /// Wakes the session for its frames.
    pub(super) fn wake_for_frames(&self) {
        self.state.lock().wake();
    }

    /// Wakes the session, and notes that the reason is not a frame.
    pub fn wake_session(&self) {
        let mut state = self.state.lock();
        state.was_woken = true;
        state.wake();
    }

    /// Takes the next item if it is news.
    pub fn take_news(&self) -> Option<News> {
        let mut state = self.state.lock();
        if state.next() != NextItem::News {
            return None;
        }
        match state.pop() {
            Some(ToSession::News(news)) => Some(news),
            _ => None,
        }
    }

    /// Takes the next item, if there is one.
    pub fn take(&self) -> Option<ToSession> {
        self.state.lock().pop()
    }

    /// Takes the next item, once there is one.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<ToSession> {
        let mut state = self.state.lock();
        state.register(cx.waker());
        state.pop().map_or(Poll::Pending, Poll::Ready)
    }

    /// The load that waits for the client, here and in the session.
    pub fn load(&self) -> Load {
        let state = self.state.lock();
        let mut load = state.load;
        if let Some(aside) = &state.aside {
            let Aside { kept, replay: PendingReplay { frames, .. }, .. } = &**aside;
            let bytes = frames.iter().map(Frame::size_bytes).sum();
            load.add(*kept);
            load.add(Load { frames: frames.len(), bytes });
        }
        load
    }

    /// Returns whether the load of the queue is so small that the frames of another turn still fit.
    pub fn holds_little(&self) -> bool {
        let Load { frames, bytes } = self.state.lock().load;
        let max = self.max();
        frames <= max.frames / LITTLE_SHARE && bytes <= max.bytes / LITTLE_SHARE
    }

    /// Notes the load that the session itself keeps for its client. It does not count towards the limit.
    pub fn keeps(&self, load: Load) {
        self.state.lock().beside(|aside| aside.kept = load);
    }

    /// Notes that the session has left a subscription, and drops the subscription's waiting frames.
    pub fn leave(&self, id: SubscriptionId) {
        let mut state = self.state.lock();
        let mut gone = Load::default();
        let mut bodies = state.beside(|aside| std::mem::take(&mut aside.bodies));
        let mut stays = |entry: &OutboxEntry| {
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
                aside.replay = PendingReplay::default();
            }
        });
        state.load.remove(gone);
    }

    /// Notes that the fan-out has detached a subscription.
    pub(super) fn detached(&self, id: SubscriptionId) {
        let mut state = self.state.lock();
        if state.aside.is_some() {
            state.beside(|aside| aside.left.retain(|of| *of != id));
        }
    }

    /// Ends the session. The session finds the reason behind all waiting items, and is woken at once in case it
    /// is stuck in a write. If it is being ended already, the first reason stands.
    pub fn end(&self, ending: Ending) {
        self.state.lock().end(ending);
    }

    /// Returns whether the session is over, and takes no more items.
    pub fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// The reason why the session is to end, if it is.
    pub fn ended(&self) -> Option<Ending> {
        self.state.lock().ending
    }

    /// Notes that the session is over, and drops all waiting items.
    pub fn close(&self) {
        let mut state = self.state.lock();
        let State { waker, was_woken, ending, .. } = std::mem::take(&mut *state);
        // The waker stays, because the session still has frames to write that it has taken.
        *state = State { waker, was_woken, ending, is_closed: true, ..State::default() };
    }
}

impl Wake for Outbox {
    fn wake(self: Arc<Self>) {
        self.wake_session();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_session();
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("session", &self.session).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
