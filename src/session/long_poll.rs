//! A session over long-poll: an actor that keeps the frames that its client has not fetched yet.
//!
//! It drives the same conversation as a WebSocket does, through the same [`driver`]; the protocol
//! decides about its HTTP side (tokens, statuses, bodies). A client fetches with one parked request
//! at a time and sends with others. A session ends after 1.5 windows without a fetch, or half a
//! window after it began if it was never fetched. A session costs its client a single request, so
//! the number of sessions that were never fetched is bounded, and the oldest of them gives way.
//! When the server stops between two fetches, the waiting frames are kept a little longer for the
//! next one.

mod elsewhere;
mod newcomers;

use std::{
    collections::{HashMap, VecDeque},
    fmt, mem,
    pin::Pin,
    rc::Rc,
    sync::{Arc, PoisonError, RwLock},
    task,
    time::{Duration, Instant},
};

use actix::prelude::*;
use futures_util::Stream;
use log::debug;
use tokio::{
    sync::oneshot::{self, Receiver, Sender},
    time::timeout,
};
use uuid::Uuid;

use crate::{
    broker::{
        Topics,
        outbox::{Ending, Load, Outbox, ToSession},
        subscriber::{Frame, SubscriptionId},
    },
    metrics::labels::Limit,
};

use super::{
    Close, Conversation, Received,
    bucket::{Bucket, PerSecond},
    driver::{self, Carrier, Driver},
    pace::{self, FramePace},
    unfinished::Holding,
    worker::{Admission, SessionLimits, Worker},
};
use elsewhere::{PassedOn, SharedPassed};
use newcomers::{Newcomer, Newcomers};

/// Messages that may wait for their turn, over all requests of one session. The messages of one
/// request are bounded where requests are read.
const INBOX_MESSAGES_MAX: usize = 400;

/// Bytes that may wait for their turn before another request's messages join them.
const INBOX_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// Fetches that may wait at the same time because they come too fast. Clients have one at a time.
const LATE_FETCHES_MAX: usize = 16;

/// The fraction of the outbox's limit that replays may fill when another join is handled.
const WAITING_SHARE: usize = 8;

/// The fraction of the server's sessions that may be ones that were never fetched: enough for many
/// clients that come at once, too few to keep others out.
const NEWCOMERS_SHARE: usize = 4;

/// The time for which a session that a stopping server closes keeps the frames that wait for its
/// client's next fetch. A client that keeps up is back within a round trip, and even a hurried stop
/// waits longer than this.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// The times of a long-poll session.
#[derive(Debug, Clone, Copy)]
pub struct LongPollTimes {
    /// The time for which a request waits for a frame, and a message for its turn.
    pub window: Duration,
    /// The time for which a session may live without a joined topic.
    pub unjoined_max: Duration,
}

impl LongPollTimes {
    /// The time for which a session may live without a fetch. Clients fetch as soon as they have
    /// opened a session, and again as soon as a fetch is answered.
    fn patience(&self, is_newcomer: bool) -> Duration {
        if is_newcomer { self.window / 2 } else { self.window * 3 / 2 }
    }
}

/// The result of a fetch.
#[derive(Debug, PartialEq, Eq)]
pub enum Polled {
    /// All waiting frames, oldest first; none if nothing came in time, or if another fetch took
    /// over.
    Frames(Vec<Frame>),
    /// There is no such session.
    Gone,
}

/// The result of posting messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// All were handled, in order.
    Done,
    /// They did not all get their turn in time; some may still be handled.
    Late,
    /// There is no such session, or it ended because of them.
    Gone,
}

/// Finds the long-poll sessions of all threads, and of other nodes if it is [shared](Self::share). Cheap
/// to clone.
pub struct LongPolls<C: Conversation + Unpin> {
    sessions: Arc<RwLock<HashMap<Uuid, Addr<LongPoll<C>>>>>,
    newcomers: Newcomers,
    times: LongPollTimes,
    /// The fetches that other nodes have passed on.
    passed: SharedPassed,
    /// The connection to other nodes, if there may be any.
    topics: Option<Topics>,
}

impl<C: Conversation + Unpin> Clone for LongPolls<C> {
    fn clone(&self) -> Self {
        let (sessions, newcomers) = (self.sessions.clone(), self.newcomers.clone());
        let (passed, topics) = (self.passed.clone(), self.topics.clone());
        Self { sessions, newcomers, times: self.times, passed, topics }
    }
}

impl<C: Conversation + Unpin> fmt::Debug for LongPolls<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongPolls").field("times", &self.times).finish_non_exhaustive()
    }
}

impl<C: Conversation + Unpin> LongPolls<C> {
    /// No session yet.
    pub fn new(times: LongPollTimes) -> Self {
        let (sessions, newcomers, passed) = Default::default();
        Self { sessions, newcomers, times, passed, topics: None }
    }

    /// Starts a session on the calling thread; `None` if the server has no room for another. If too
    /// many were never fetched, the oldest of them ends: a client that listens has fetched by then,
    /// unless new sessions come faster than its round trip. `limits.sessions_per_address_max`
    /// protects against one address that opens many.
    pub fn open(&self, conversation: C, worker: &Rc<Worker>) -> Option<Uuid> {
        let admission = worker.sessions.admit()?;
        let id = elsewhere::number_on(worker.topics.node());
        let newcomers_max = (worker.sessions.max() / NEWCOMERS_SHARE).max(1);
        let (newcomer, oldest) = self.newcomers.enter(admission.id, id, newcomers_max);
        if let Some(oldest) = oldest.and_then(|oldest| self.find(oldest)) {
            oldest.do_send(GiveWay);
        }
        let (sessions, passed) = (self.sessions.clone(), self.passed.clone());
        let listing = SessionEntry { id, sessions, passed, newcomer: Some(newcomer) };
        let (times, worker) = (self.times, worker.clone());
        let addr = LongPoll::create(move |ctx| {
            LongPoll::new(conversation, admission, worker, listing, times, ctx)
        });
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).insert(id, addr);
        Some(id)
    }

    /// Fetches the frames that wait for a session's client, or that come within the window.
    pub async fn poll(&self, id: Uuid) -> Polled {
        if let Some((polled, passed_on)) = self.poll_elsewhere(id).await {
            passed_on.into_iter().for_each(PassedOn::answered);
            return polled;
        }
        let polled = self.poll_here(id).await;
        if self.topics.is_some() {
            // The client has come to this node, so an earlier fetch through another node is over.
            self.passed.forget(id);
        }
        polled
    }

    async fn poll_here(&self, id: Uuid) -> Polled {
        let Some(session) = self.find(id) else { return Polled::Gone };
        let (answer, mut answered) = oneshot::channel();
        let poll = async {
            session.send(Poll(answer)).await.ok()?;
            (&mut answered).await.ok()
        };
        match timeout(self.times.window, poll).await {
            Ok(Some(frames)) => Polled::Frames(frames),
            Ok(None) => Polled::Gone,
            Err(_) => late(answered),
        }
    }

    /// Makes the session handle messages, in order.
    pub async fn post(&self, id: Uuid, messages: Vec<Received>) -> Posted {
        if let Some(posted) = self.post_elsewhere(id, &messages).await {
            return posted;
        }
        let Some(session) = self.find(id) else { return Posted::Gone };
        let (answer, answered) = oneshot::channel();
        // `send` is not used here: its message would be dropped unread if the client leaves now.
        match session.try_send(Post { messages, answer }) {
            Ok(()) => {}
            Err(SendError::Full(_)) => return Posted::Late,
            Err(SendError::Closed(_)) => return Posted::Gone,
        }
        match timeout(self.times.window, answered).await {
            Ok(Ok(())) => Posted::Done,
            Ok(Err(_)) => Posted::Gone,
            Err(_) => Posted::Late,
        }
    }

    fn find(&self, id: Uuid) -> Option<Addr<LongPoll<C>>> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&id).cloned()
    }
}

/// The bytes of messages.
fn bytes_of(messages: &[Received]) -> usize {
    messages.iter().map(Received::size_bytes).sum()
}

/// The end of a window. Frames that the session sent in that very moment must not be lost.
fn late(mut answered: Receiver<Vec<Frame>>) -> Polled {
    answered.close();
    Polled::Frames(answered.try_recv().unwrap_or_default())
}

/// A session's entry in the list of all, removed when the session ends, whatever ended it.
struct SessionEntry<C: Conversation + Unpin> {
    id: Uuid,
    sessions: Arc<RwLock<HashMap<Uuid, Addr<LongPoll<C>>>>>,
    passed: SharedPassed,
    /// The place among the sessions that were never fetched, until the first fetch.
    newcomer: Option<Newcomer>,
}

impl<C: Conversation + Unpin> Drop for SessionEntry<C> {
    fn drop(&mut self) {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.passed.forget(self.id);
    }
}

/// A fetch; it is answered when there are frames, or when another fetch takes over.
#[derive(Message)]
#[rtype(result = "()")]
struct Poll(ParkedFetch);

/// The channel on which a parked fetch waits for its frames.
type ParkedFetch = Sender<Vec<Frame>>;

/// Messages of the client; answered when all were handled.
#[derive(Message)]
#[rtype(result = "()")]
struct Post {
    messages: Vec<Received>,
    answer: Sender<()>,
}

/// Tells the session that the waiting frames were fetched, and that it goes on with the messages
/// that it held back.
#[derive(Message)]
#[rtype(result = "()")]
struct GoOn;

/// Too many sessions were never fetched: this one ends, unless it was fetched meanwhile.
#[derive(Message)]
#[rtype(result = "()")]
struct GiveWay;

/// A message that waits for its turn.
enum QueuedMessage {
    Message(Received),
    /// The end of one request's messages.
    End(Sender<()>),
}

/// One long-poll session.
pub(super) struct LongPoll<C: Conversation + Unpin> {
    driver: Driver<C>,
    _admission: Admission,
    times: LongPollTimes,
    inbox: VecDeque<QueuedMessage>,
    inbox_bytes: usize,
    /// The bytes that are held for the inbox, counted among those of all sessions.
    holding: Holding,
    is_held: bool,
    waiting: VecDeque<Frame>,
    waiting_bytes: usize,
    /// The number of waiting frames that do not count: all frames that are replayed to a join count
    /// as one.
    uncounted: usize,
    /// Whether there are replays among them.
    has_replays: bool,
    max: Load,
    parked: Option<ParkedFetch>,
    /// The rate of messages, and of fetches that take over from others.
    pace: FramePace,
    /// The rate of the client's fetches.
    fetches: Bucket,
    /// Fetches that wait because they came too often.
    late: VecDeque<ParkedFetch>,
    /// The time of publication of a waiting frame whose latency is sampled.
    sampled: Option<Instant>,
    /// The time at which the client last fetched.
    fetched: Instant,
    /// The time since which the session has no joined topic.
    unjoined_since: Option<Instant>,
    is_closed: bool,
    listing: SessionEntry<C>,
}

impl<C: Conversation + Unpin> LongPoll<C> {
    fn new(
        conversation: C,
        admission: Admission,
        worker: Rc<Worker>,
        listing: SessionEntry<C>,
        times: LongPollTimes,
        ctx: &mut Context<Self>,
    ) -> Self {
        let SessionLimits { outbox_frames_max: frames, outbox_bytes_max: bytes, .. } =
            worker.limits;
        // Fetches and messages.
        ctx.set_mailbox_capacity(frames);
        let outbox = worker.outbox(&admission);
        ctx.add_stream(Arrivals(outbox.clone()));
        let holding = worker.sessions.unfinished().hold(outbox.clone());
        Self {
            driver: Driver::enter(conversation, outbox, worker),
            _admission: admission,
            times,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            holding,
            is_held: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            uncounted: 0,
            has_replays: false,
            max: Load { frames, bytes },
            parked: None,
            pace: FramePace::default(),
            fetches: Bucket::default(),
            late: VecDeque::new(),
            sampled: None,
            fetched: Instant::now(),
            unjoined_since: Some(Instant::now()),
            is_closed: false,
            listing,
        }
    }

    /// Answers messages that need not wait although the broker still works on an earlier one.
    fn answer_meanwhile(&mut self, ctx: &mut Context<Self>) {
        for inbound in mem::take(&mut self.inbox) {
            let may_be = !self.is_closed && !self.pace.is_paused();
            match inbound {
                QueuedMessage::Message(message)
                    if may_be && driver::answer_meanwhile(self, &message, ctx) =>
                {
                    self.inbox_bytes -= message.size_bytes();
                    self.take_frame(ctx);
                }
                inbound => self.inbox.push_back(inbound),
            }
        }
        self.holding.set(self.inbox_bytes);
        self.flush(ctx);
    }

    /// Whether more messages may wait for their turn. If none wait, one request may bring as much
    /// as the limit on bodies permits.
    fn has_room_for(&self, messages: &[Received]) -> bool {
        let is_light =
            self.inbox_bytes == 0 || self.inbox_bytes + bytes_of(messages) <= INBOX_BYTES_MAX;
        is_light && self.inbox.len() + messages.len() <= INBOX_MESSAGES_MAX
    }

    /// Counts a frame towards the rate. The session pauses if the rate is exceeded, and ends if
    /// that goes on.
    fn take_frame(&mut self, ctx: &mut Context<Self>) -> bool {
        if self.pace.is_paused() {
            return false;
        }
        let (rate, now_s) = self.rate();
        let may_be = self.pace.take(rate, now_s);
        if !may_be {
            self.driver.worker().metrics.hit(Limit::FramesPerSecond);
            match self.pace.is_flooded() {
                true => self.end(Ending::TooManyFrames, ctx),
                false => drop(ctx.run_later(pace::LOOK, Self::try_resume)),
            }
        }
        may_be
    }

    /// Goes on with the waiting messages, if the pause is over.
    fn try_resume(&mut self, ctx: &mut Context<Self>) {
        let (rate, now_s) = self.rate();
        if self.pace.resume(rate, now_s) {
            self.work(ctx);
        } else {
            ctx.run_later(pace::LOOK, Self::try_resume);
        }
    }

    /// The rate of frames, and the time by which it is judged.
    fn rate(&self) -> (PerSecond, f64) {
        let worker = self.driver.worker();
        (worker.limits.frames_per_second_max, worker.seconds_at(Instant::now()))
    }

    /// Parks the waiting fetches whose time has come.
    fn take_late(&mut self, ctx: &mut Context<Self>) {
        while let Some(first) = self.late.front() {
            if first.is_closed() {
                self.late.pop_front();
                continue;
            }
            let (rate, now_s) = self.rate();
            if self.pace.is_paused() || !self.fetches.take(1, rate, now_s) {
                let wait = match self.pace.is_paused() {
                    true => pace::LOOK,
                    false => {
                        self.driver.worker().metrics.hit(Limit::FramesPerSecond);
                        self.fetches.wait(1, rate, now_s)
                    }
                };
                ctx.run_later(wait, Self::take_late);
                return;
            }
            if let Some(fetch) = self.late.pop_front() {
                self.park(fetch, ctx);
            }
        }
    }

    /// Parks a fetch, or answers it at once if there are frames.
    fn park(&mut self, fetch: ParkedFetch, ctx: &mut Context<Self>) {
        if let Some(earlier) = self.parked.replace(fetch) {
            // The client has abandoned the earlier fetch, or has two: the later one counts.
            let _ = earlier.send(Vec::new());
        }
        // Items that have arrived by now are fetched as well, although their turn would come later.
        while let Some(arrival) = self.driver.outbox().take() {
            self.arrived(arrival, ctx);
        }
        self.flush(ctx);
        if self.is_closed && self.waiting.is_empty() {
            ctx.stop();
        }
    }

    /// Whether a fetch of the client is parked.
    fn is_fetched(&self) -> bool {
        self.parked.iter().chain(&self.late).any(|fetch| !fetch.is_closed())
    }

    /// Handles messages until one has to wait, for the broker or for the rate.
    fn work(&mut self, ctx: &mut Context<Self>) {
        while !self.is_held && !self.is_closed && self.has_room() {
            let is_message = matches!(self.inbox.front(), Some(QueuedMessage::Message(_)));
            if is_message && !self.take_frame(ctx) {
                break;
            }
            match self.inbox.pop_front() {
                Some(QueuedMessage::Message(message)) => {
                    self.inbox_bytes -= message.size_bytes();
                    driver::received(self, message, ctx);
                }
                Some(QueuedMessage::End(answer)) => {
                    // A request that no longer waits was answered that it is late.
                    let _ = answer.send(());
                }
                None => break,
            }
        }
        self.holding.set(self.inbox_bytes);
        self.flush(ctx);
    }

    /// Takes the broker's items.
    fn arrived(&mut self, arrival: ToSession, ctx: &mut Context<Self>) {
        match arrival {
            ToSession::Frame(frame, published) => {
                self.keep(frame, ctx);
                self.sampled = self.sampled.or(published);
            }
            ToSession::News(news) => driver::heard(self, news, ctx),
        }
    }

    /// The frames that wait for the client.
    fn load(&self) -> Load {
        Load { frames: self.waiting.len() - self.uncounted, bytes: self.waiting_bytes }
    }

    /// Whether replays that wait leave room for another one. A client that joins many topics at once
    /// is sent the next replay when it has fetched: it would be ended, and come back for the same.
    fn has_room(&self) -> bool {
        !self.has_replays || self.waiting_bytes <= self.max.bytes / WAITING_SHARE
    }

    /// Answers the parked fetch if there is something to bring. A fetch whose client has left keeps
    /// nothing from the next one.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        if self.waiting.is_empty() {
            return self.note_fetched();
        }
        let Some(parked) = self.parked.take() else { return };
        match parked.send(mem::take(&mut self.waiting).into()) {
            Ok(()) => {
                (self.waiting_bytes, self.uncounted, self.has_replays) = (0, 0, false);
                self.driver.outbox().keeps(Load::default());
                self.fetched = Instant::now();
                self.note_fetched();
                if !self.inbox.is_empty() {
                    ctx.notify(GoOn);
                }
            }
            Err(unfetched) => self.waiting = unfetched.into(),
        }
    }

    /// Clears the waiting frames.
    fn note_fetched(&mut self) {
        if let Some(published) = self.sampled.take() {
            let took = published.elapsed().as_secs_f64();
            self.driver.worker().metrics.publish_to_write_s.observe(took);
        }
    }

    /// Ends a session whose client has gone, or never joined anything.
    fn check_life(&mut self, ctx: &mut Context<Self>) {
        if self.is_fetched() {
            self.fetched = Instant::now();
        }
        if self.driver.is_subscribed() {
            self.unjoined_since = None;
        } else if self.unjoined_since.is_none() {
            self.unjoined_since = Some(Instant::now());
        }
        let is_newcomer = self.listing.newcomer.is_some();
        let is_silent = self.fetched.elapsed() > self.times.patience(is_newcomer);
        let is_idle =
            self.unjoined_since.is_some_and(|since| since.elapsed() > self.times.unjoined_max);
        let ending = match (is_silent, is_idle) {
            (true, _) if is_newcomer => Ending::NeverFetched,
            (true, _) => Ending::NotFetching,
            (false, true) => Ending::Unjoined,
            (false, false) => return,
        };
        self.end(ending, ctx);
    }

    /// Keeps a frame for the next fetch. If a client lets too many frames wait, its session ends,
    /// so that the client comes back instead of missing frames silently.
    fn keep(&mut self, frame: Frame, ctx: &mut Context<Self>) {
        if self.is_closed {
            return;
        }
        self.waiting_bytes += frame.size_bytes();
        self.waiting.push_back(frame);
        self.bound(ctx);
    }

    /// Ends the session if its limit is exceeded even after the parked fetch is answered.
    fn bound(&mut self, ctx: &mut Context<Self>) {
        if self.load().excess(self.max).is_some() {
            self.flush(ctx);
        }
        self.driver.outbox().keeps(self.load());
        if let Some(excess) = self.load().excess(self.max) {
            self.end(Ending::SlowConsumer(excess), ctx);
        }
    }

    /// Ends the session. Its client is told by the status of its next request.
    fn end(&mut self, ending: Ending, ctx: &mut Context<Self>) {
        self.driver.outbox().end(ending);
        self.shut(ctx);
    }

    /// Answers the parked fetch with the remaining frames, then ends. When the server stops,
    /// accepted publications must also reach a client between two fetches: its next fetch is still
    /// answered.
    fn shut(&mut self, ctx: &mut Context<Self>) {
        if self.parked.is_none() {
            self.parked = self.late.pop_front();
        }
        self.flush(ctx);
        self.is_closed = true;
        let is_shutdown = self.driver.outbox().ended() == Some(Ending::Shutdown);
        if is_shutdown && !self.waiting.is_empty() {
            self.inbox.retain(|inbound| matches!(inbound, QueuedMessage::End(_)));
            ctx.run_later(FAREWELL_MAX, |_, ctx| ctx.stop());
            return;
        }
        // The dropped senders tell waiting requests that the session is gone.
        self.parked = None;
        self.late.clear();
        self.inbox.clear();
        ctx.stop();
    }
}

impl<C: Conversation + Unpin> Actor for LongPoll<C> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.times.window / 4, Self::check_life);
        driver::begin(self, ctx);
    }
}

impl<C: Conversation + Unpin> Carrier for LongPoll<C> {
    type Protocol = C;

    fn driver(&mut self) -> &mut Driver<C> {
        &mut self.driver
    }

    fn send(&mut self, frame: Frame, ctx: &mut Self::Context) {
        let frame = self.driver.count(frame);
        self.keep(frame, ctx);
    }

    fn replay(&mut self, _: SubscriptionId, frames: Vec<Frame>, ctx: &mut Self::Context) {
        if self.is_closed {
            return;
        }
        self.uncounted += frames.len().saturating_sub(1);
        self.has_replays = true;
        self.waiting_bytes += frames.iter().map(Frame::size_bytes).sum::<usize>();
        self.waiting.extend(frames);
        self.bound(ctx);
    }

    fn close(&mut self, close: Close, ctx: &mut Self::Context) {
        debug!("session {} is closed: {}", self.driver.session(), close.code.0);
        self.shut(ctx);
    }

    /// Long-poll clients are judged by their fetches.
    fn silent(&mut self, _: &mut Self::Context) {}

    fn hold(&mut self) {
        self.is_held = true;
    }

    /// Requests are bounded where they are read, whether or not a topic was joined.
    fn note_joined(&mut self) {}

    fn resume(&mut self, ctx: &mut Self::Context) {
        self.is_held = false;
        self.work(ctx);
    }
}

impl<C: Conversation + Unpin> Handler<Poll> for LongPoll<C> {
    type Result = ();

    fn handle(&mut self, Poll(answer): Poll, ctx: &mut Self::Context) {
        if answer.is_closed() {
            // Its client has left, or its window ended, before its turn came.
            return;
        }
        let takes_over = self.is_fetched();
        self.fetched = Instant::now();
        self.listing.newcomer = None;
        if self.is_closed {
            return self.park(answer, ctx);
        }
        if takes_over {
            // A client could make fetches answer each other at no cost, so they count like frames.
            self.take_frame(ctx);
        }
        if self.late.len() >= LATE_FETCHES_MAX {
            return self.end(Ending::TooManyFrames, ctx);
        }
        self.late.push_back(answer);
        if self.late.len() == 1 {
            self.take_late(ctx);
        }
    }
}

impl<C: Conversation + Unpin> Handler<GoOn> for LongPoll<C> {
    type Result = ();

    fn handle(&mut self, _: GoOn, ctx: &mut Self::Context) {
        self.work(ctx);
    }
}

impl<C: Conversation + Unpin> Handler<GiveWay> for LongPoll<C> {
    type Result = ();

    fn handle(&mut self, _: GiveWay, ctx: &mut Self::Context) {
        if self.listing.newcomer.is_some() {
            self.end(Ending::NeverFetched, ctx);
        }
    }
}

impl<C: Conversation + Unpin> Handler<Post> for LongPoll<C> {
    type Result = ();

    fn handle(&mut self, Post { messages, answer }: Post, ctx: &mut Self::Context) {
        if self.is_closed {
            // The client learns that the session is over by its next fetch: if it were told now, it
            // would not fetch again.
            return self.inbox.push_back(QueuedMessage::End(answer));
        }
        if !self.has_room_for(&messages) {
            // The dropped answer tells the client that its session is over.
            return self.end(Ending::InboxFull, ctx);
        }
        self.inbox_bytes += bytes_of(&messages);
        self.inbox.extend(messages.into_iter().map(QueuedMessage::Message));
        self.inbox.push_back(QueuedMessage::End(answer));
        self.work(ctx);
        if self.is_held && !self.is_closed {
            self.answer_meanwhile(ctx);
        }
    }
}

impl<C: Conversation + Unpin> StreamHandler<ToSession> for LongPoll<C> {
    fn handle(&mut self, arrival: ToSession, ctx: &mut Self::Context) {
        self.arrived(arrival, ctx);
        self.flush(ctx);
    }
}

/// The stream of everything that the broker sends to the session.
struct Arrivals(Arc<Outbox>);

impl Stream for Arrivals {
    type Item = ToSession;

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> task::Poll<Option<ToSession>> {
        self.0.poll_take(cx).map(Some)
    }
}

#[cfg(test)]
mod tests;
