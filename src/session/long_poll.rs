//! A session over long-poll: an actor that keeps what its client has not fetched yet.
//!
//! It drives the same conversation as a WebSocket does, through the same [`driver`];
//! what HTTP makes of it (tokens, statuses, bodies) is the protocol's matter. A client fetches with
//! one parked request at a time and sends with others; it is gone when it has not fetched for one
//! and a half windows, or has never fetched within half a one. A session costs its client a single
//! request: so those that were never fetched are few among all, and the oldest gives way.
//! When the server stops between two fetches, what waits is kept a little longer for the next one.

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
        outbox::{Ending, Load, Outbox, ToSession},
        subscriber::{Frame, SubscriptionId},
    },
    metrics::labels::Limit,
};

use super::{
    CloseCode, Conversation, Received,
    bucket::{Bucket, PerSecond},
    driver::{self, Carrier, Driver},
    pace::{self, Pace},
    unfinished::Holding,
    worker::{Admission, SessionLimits, Worker},
};
use newcomers::{Newcomer, Newcomers};

/// Messages that may wait for their turn, over all requests of one session. What one request brings
/// is bounded where requests are read.
const INBOX_MESSAGES_MAX: usize = 400;

/// Bytes that may wait for their turn before another request's messages join them.
const INBOX_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// Fetches that may wait because they come too fast, one beside the other. Clients have one at a time.
const LATE_FETCHES_MAX: usize = 16;

/// One of so many parts of what may wait may be replays when another join is looked at.
const WAITING_SHARE: usize = 8;

/// One of so many places of the server may be taken by sessions that were never fetched: enough for
/// a crowd that comes at once, too few to keep anybody out.
const NEWCOMERS_SHARE: usize = 4;

/// How long a session that a stopping server closes keeps what waits for its client's next fetch.
/// Somebody who keeps up is back within a round trip; a stop that is hurried waits longer than this.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// How a long-poll session keeps time.
#[derive(Debug, Clone, Copy)]
pub struct LongPollTimes {
    /// How long a request waits for something to come, and how long a message for its turn.
    pub window: Duration,
    /// How long a session may live without a joined topic.
    pub unjoined_max: Duration,
}

impl LongPollTimes {
    /// How long a session may live without being fetched. Clients fetch as soon as they have opened
    /// it, and again as soon as a fetch is answered.
    fn patience(&self, is_newcomer: bool) -> Duration {
        if is_newcomer { self.window / 2 } else { self.window * 3 / 2 }
    }
}

/// What a fetch brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Polled {
    /// Everything that waited, oldest first; nothing if nothing came in time, or if another fetch
    /// took over.
    Frames(Vec<Frame>),
    /// There is no such session.
    Gone,
}

/// What became of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// All were looked at, in order.
    Done,
    /// They did not get their turn in time; some may still.
    Late,
    /// There is no such session, or it ended over them.
    Gone,
}

/// Finds the long-poll sessions of all threads. Cheap to clone.
pub struct LongPolls<C: Conversation + Unpin> {
    sessions: Arc<RwLock<HashMap<Uuid, Addr<LongPoll<C>>>>>,
    newcomers: Newcomers,
    times: LongPollTimes,
}

impl<C: Conversation + Unpin> Clone for LongPolls<C> {
    fn clone(&self) -> Self {
        let (sessions, newcomers) = (self.sessions.clone(), self.newcomers.clone());
        Self { sessions, newcomers, times: self.times }
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
        Self { sessions: Arc::default(), newcomers: Newcomers::default(), times }
    }

    /// Starts a session on the calling thread; `None` if the server has no room for another. If too
    /// many were never fetched, the oldest of them ends: who really wants to listen has fetched by
    /// then, unless they come faster than a client's round trip. Against one address that opens so
    /// many, there is `limits.sessions_per_address_max`.
    pub fn open(&self, conversation: C, worker: &Rc<Worker>) -> Option<Uuid> {
        let admission = worker.sessions.admit()?;
        let id = Uuid::new_v4();
        let newcomers_max = (worker.sessions.max() / NEWCOMERS_SHARE).max(1);
        let (newcomer, oldest) = self.newcomers.enter(admission.id, id, newcomers_max);
        if let Some(oldest) = oldest.and_then(|oldest| self.find(oldest)) {
            oldest.do_send(GiveWay);
        }
        let sessions = self.sessions.clone();
        let listing = Listing { id, sessions, newcomer: Some(newcomer) };
        let (times, worker) = (self.times, worker.clone());
        let addr = LongPoll::create(move |ctx| {
            LongPoll::new(conversation, admission, worker, listing, times, ctx)
        });
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).insert(id, addr);
        Some(id)
    }

    /// Fetches what waits for a session's client, or what comes within the window.
    pub async fn poll(&self, id: Uuid) -> Polled {
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

    /// Has messages looked at, in order.
    pub async fn post(&self, id: Uuid, messages: Vec<Received>) -> Posted {
        let Some(session) = self.find(id) else { return Posted::Gone };
        let (answer, answered) = oneshot::channel();
        // Not `send`: what it carries would be dropped unread with a client that leaves now.
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

/// What messages weigh.
fn bytes_of(messages: &[Received]) -> usize {
    messages.iter().map(Received::size_bytes).sum()
}

/// The window is over. What the session handed over in that very moment must not be lost.
fn late(mut answered: Receiver<Vec<Frame>>) -> Polled {
    answered.close();
    Polled::Frames(answered.try_recv().unwrap_or_default())
}

/// A session's entry among all, removed when it ends, whatever ended it.
struct Listing<C: Conversation + Unpin> {
    id: Uuid,
    sessions: Arc<RwLock<HashMap<Uuid, Addr<LongPoll<C>>>>>,
    /// Until the first fetch.
    newcomer: Option<Newcomer>,
}

impl<C: Conversation + Unpin> Drop for Listing<C> {
    fn drop(&mut self) {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// A fetch is here; it is answered when there is something, or when another takes over.
#[derive(Message)]
#[rtype(result = "()")]
struct Poll(Parked);

/// Where a parked fetch waits for its frames.
type Parked = Sender<Vec<Frame>>;

/// Messages are here; answered when all were looked at.
#[derive(Message)]
#[rtype(result = "()")]
struct Post {
    messages: Vec<Received>,
    answer: Sender<()>,
}

/// What waited was fetched: go on with what was held back.
#[derive(Message)]
#[rtype(result = "()")]
struct GoOn;

/// Too many sessions were never fetched: this one ends, unless it was meanwhile.
#[derive(Message)]
#[rtype(result = "()")]
struct GiveWay;

/// What waits for its turn.
enum Inbound {
    Message(Received),
    /// All messages of one request were looked at.
    End(Sender<()>),
}

/// One long-poll session.
pub(super) struct LongPoll<C: Conversation + Unpin> {
    driver: Driver<C>,
    _admission: Admission,
    times: LongPollTimes,
    inbox: VecDeque<Inbound>,
    inbox_bytes: usize,
    /// What is held for the inbox, among that of all sessions.
    holding: Holding,
    is_held: bool,
    waiting: VecDeque<Frame>,
    waiting_bytes: usize,
    /// How many of the frames that wait count nothing: what is replayed to a join counts as one.
    uncounted: usize,
    /// Whether there are replays among them.
    has_replays: bool,
    max: Load,
    parked: Option<Parked>,
    /// How fast messages come, and fetches that take over from others.
    pace: Pace,
    /// How often the client has fetched.
    fetches: Bucket,
    /// Fetches whose time has not come, because that was too often.
    late: VecDeque<Parked>,
    /// When something that waits was published, if that is of interest.
    sampled: Option<Instant>,
    /// When the client was last there to fetch.
    fetched: Instant,
    /// Since when nothing is joined.
    unjoined_since: Option<Instant>,
    is_closed: bool,
    listing: Listing<C>,
}

impl<C: Conversation + Unpin> LongPoll<C> {
    fn new(
        conversation: C,
        admission: Admission,
        worker: Rc<Worker>,
        listing: Listing<C>,
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
            pace: Pace::default(),
            fetches: Bucket::default(),
            late: VecDeque::new(),
            sampled: None,
            fetched: Instant::now(),
            unjoined_since: Some(Instant::now()),
            is_closed: false,
            listing,
        }
    }

    /// Answers what need not wait although the broker is asked for something before it.
    fn answer_meanwhile(&mut self, ctx: &mut Context<Self>) {
        for inbound in mem::take(&mut self.inbox) {
            let may_be = !self.is_closed && !self.pace.is_paused();
            match inbound {
                Inbound::Message(message)
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

    /// Whether more messages may wait for their turn. Where nothing else weighs, one request may bring
    /// as much as the limit on bodies lets through.
    fn has_room_for(&self, messages: &[Received]) -> bool {
        let is_light =
            self.inbox_bytes == 0 || self.inbox_bytes + bytes_of(messages) <= INBOX_BYTES_MAX;
        is_light && self.inbox.len() + messages.len() <= INBOX_MESSAGES_MAX
    }

    /// Takes a frame of those that may come within a second. One too many, and the session pauses; if
    /// it goes on like that, it ends.
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

    /// Goes on with what waits, if the pause is over.
    fn try_resume(&mut self, ctx: &mut Context<Self>) {
        let (rate, now_s) = self.rate();
        if self.pace.resume(rate, now_s) {
            self.work(ctx);
        } else {
            ctx.run_later(pace::LOOK, Self::try_resume);
        }
    }

    /// How many frames there may be, and the time that they are judged by.
    fn rate(&self) -> (PerSecond, f64) {
        let worker = self.driver.worker();
        (worker.limits.frames_per_second_max, worker.seconds_at(Instant::now()))
    }

    /// Parks the fetches that have waited for their time to come, as far as it has.
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

    /// Parks a fetch, or answers it at once if there is something to bring.
    fn park(&mut self, fetch: Parked, ctx: &mut Context<Self>) {
        if let Some(earlier) = self.parked.replace(fetch) {
            // The client has given up on it, or has two: the later one counts.
            let _ = earlier.send(Vec::new());
        }
        // What has arrived by now is fetched with it, though its turn would come later.
        while let Some(arrival) = self.driver.outbox().take() {
            self.arrived(arrival, ctx);
        }
        self.flush(ctx);
        if self.is_closed && self.waiting.is_empty() {
            ctx.stop();
        }
    }

    /// Whether a client is there that waits for something to come.
    fn is_fetched(&self) -> bool {
        self.parked.iter().chain(&self.late).any(|fetch| !fetch.is_closed())
    }

    /// Looks at messages until one has to wait, for the broker or for its time.
    fn work(&mut self, ctx: &mut Context<Self>) {
        while !self.is_held && !self.is_closed && self.has_room() {
            let is_message = matches!(self.inbox.front(), Some(Inbound::Message(_)));
            if is_message && !self.take_frame(ctx) {
                break;
            }
            match self.inbox.pop_front() {
                Some(Inbound::Message(message)) => {
                    self.inbox_bytes -= message.size_bytes();
                    driver::received(self, message, ctx);
                }
                Some(Inbound::End(answer)) => {
                    // Who does not wait for it any more was told that it is late.
                    let _ = answer.send(());
                }
                None => break,
            }
        }
        self.holding.set(self.inbox_bytes);
        self.flush(ctx);
    }

    /// Takes what the broker has for it.
    fn arrived(&mut self, arrival: ToSession, ctx: &mut Context<Self>) {
        match arrival {
            ToSession::Frame(frame, published) => {
                self.keep(frame, ctx);
                self.sampled = self.sampled.or(published);
            }
            ToSession::News(news) => driver::heard(self, news, ctx),
        }
    }

    /// What waits for the client.
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

    /// Nothing waits any more.
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

    /// Keeps a frame for the next fetch. A client that lets too much pile up is not silently deaf:
    /// its session ends, and it comes back.
    fn keep(&mut self, frame: Frame, ctx: &mut Context<Self>) {
        if self.is_closed {
            return;
        }
        self.waiting_bytes += frame.size_bytes();
        self.waiting.push_back(frame);
        self.bound(ctx);
    }

    /// Ends the session if too much waits even after the parked fetch is answered.
    fn bound(&mut self, ctx: &mut Context<Self>) {
        if self.load().excess(self.max).is_some() {
            self.flush(ctx);
        }
        self.driver.outbox().keeps(self.load());
        if let Some(excess) = self.load().excess(self.max) {
            self.driver.outbox().end(Ending::SlowConsumer(excess));
            self.close(CloseCode::TRY_LATER, ctx);
        }
    }

    fn end(&mut self, ending: Ending, ctx: &mut Context<Self>) {
        self.driver.outbox().end(ending);
        self.close(CloseCode::GOING_AWAY, ctx);
    }
}

impl<C: Conversation + Unpin> Actor for LongPoll<C> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.times.window / 4, Self::check_life);
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

    /// Brings what is left to who waits for it, then is gone. Where the server stops, what was
    /// accepted must reach also a client that is between two fetches: it gets its next one.
    fn close(&mut self, code: CloseCode, ctx: &mut Self::Context) {
        debug!("session {} is closed: {}", self.driver.session(), code.0);
        if self.parked.is_none() {
            self.parked = self.late.pop_front();
        }
        self.flush(ctx);
        self.is_closed = true;
        if code == CloseCode::RESTART && !self.waiting.is_empty() {
            self.inbox.retain(|inbound| matches!(inbound, Inbound::End(_)));
            ctx.run_later(FAREWELL_MAX, |_, ctx| ctx.stop());
            return;
        }
        // Whoever still waits for an answer learns by this that the session is gone.
        self.parked = None;
        self.late.clear();
        self.inbox.clear();
        ctx.stop();
    }

    fn hold(&mut self) {
        self.is_held = true;
    }

    /// Requests are bounded where they are read, whatever was joined.
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
            // To answer one with another costs its client nothing, as a frame does.
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
            // It learns that the session is over when it is: told now, it would not fetch again.
            return self.inbox.push_back(Inbound::End(answer));
        }
        if !self.has_room_for(&messages) {
            self.driver.outbox().end(Ending::InboxFull);
            // The dropped answer tells the client that its session is over.
            return self.close(CloseCode::TRY_LATER, ctx);
        }
        self.inbox_bytes += bytes_of(&messages);
        self.inbox.extend(messages.into_iter().map(Inbound::Message));
        self.inbox.push_back(Inbound::End(answer));
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

/// What the broker has for the session.
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
