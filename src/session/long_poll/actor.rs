//! The actor of a long-poll session.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task,
    time::{Duration, Instant},
};

use actix::prelude::*;
use futures_util::Stream;
use log::debug;
use tokio::sync::oneshot::Sender;

use super::{LongPollTimes, SessionEntry};
use crate::{
    broker::{
        outbox::{Ending, Load, Outbox, ToSession},
        subscriber::{Frame, SubscriptionId},
    },
    metrics::labels::Limit,
    session::{
        Close, Conversation, Received,
        bucket::{Bucket, PerSecond},
        driver::{self, Carrier, Driver},
        pace::{self, FramePace},
        unfinished::Holding,
        worker::{Admission, SessionLimits, Worker},
    },
};

/// The most messages that may wait for their turn, over all requests of one session. The code that reads
/// requests bounds the messages of each.
const INBOX_MESSAGES_MAX: usize = 400;

/// The most bytes of waiting messages with which those of a further request are accepted.
pub(super) const INBOX_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// The most fetches that may wait at the same time because they come too fast. Clients send one at a time.
pub(super) const LATE_FETCHES_MAX: usize = 16;

/// The fraction (1/8) of the outbox's limit that waiting replays may fill when another join is handled.
const WAITING_SHARE: usize = 8;

/// The time for which a session keeps its waiting frames for its client's next fetch after its conversation, or a
/// stopping server, has closed it. A client that keeps up fetches again within a round trip, and even a hurried stop waits
/// longer than this.
pub(super) const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// A fetch. It is answered when there are frames, or when another fetch takes over.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Poll(pub(super) ParkedFetch);

/// The channel on which a parked fetch waits for its frames.
pub(super) type ParkedFetch = Sender<Vec<Frame>>;

/// Messages of the client. They are answered when all were handled.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Post {
    pub(super) messages: Vec<Received>,
    pub(super) answer: Sender<()>,
}

/// The session continues with the messages that it held back, because the waiting frames were fetched.
#[derive(Message)]
#[rtype(result = "()")]
struct GoOn;

/// The session ends unless it was fetched meanwhile, because too many sessions were never fetched.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct GiveWay;

/// The session ends, because frames of it are lost.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct EndBroken;

/// Puts back the frames of a fetch that have not reached the client.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct PutBack(pub(super) Vec<Frame>);

/// A message that waits for its turn.
enum QueuedMessage {
    Message(Received),
    /// The end of one request's messages.
    End(Sender<()>),
}

/// One long-poll session.
pub(super) struct LongPoll {
    driver: Driver<Box<dyn Conversation>>,
    _admission: Admission,
    times: LongPollTimes,
    inbox: VecDeque<QueuedMessage>,
    inbox_bytes: usize,
    /// The bytes that are held for the inbox, counted among those of all sessions.
    holding: Holding,
    is_held: bool,
    waiting: VecDeque<Frame>,
    waiting_bytes: usize,
    /// The number of waiting frames that do not count towards the limit, because all frames that are replayed to
    /// a join count as one.
    uncounted: usize,
    /// Whether there are replays among the waiting frames.
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
    listing: SessionEntry,
}

impl LongPoll {
    pub(super) fn new(
        conversation: Box<dyn Conversation>,
        admission: Admission,
        worker: Rc<Worker>,
        listing: SessionEntry,
        times: LongPollTimes,
        ctx: &mut Context<Self>,
    ) -> Self {
        let SessionLimits { outbox_frames_max: frames, outbox_bytes_max: bytes, .. } =
            worker.limits;
        // The mailbox receives fetches and posted messages.
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

    /// Returns whether more messages may wait for their turn. If none wait, one request may have as many bytes as
    /// the limit on bodies permits.
    fn has_room_for(&self, messages: &[Received]) -> bool {
        let is_light =
            self.inbox_bytes == 0 || self.inbox_bytes + bytes_of(messages) <= INBOX_BYTES_MAX;
        is_light && self.inbox.len() + messages.len() <= INBOX_MESSAGES_MAX
    }

    /// Counts a frame towards the rate. Returns `false` if the rate is exceeded: then the session pauses, or ends
    /// after too many pauses.
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

    /// Continues with the waiting messages, if the pause is over.
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
            // The client has abandoned the earlier fetch, or sent two; only the later one counts.
            let _ = earlier.send(Vec::new());
        }
        // Items that are already in the outbox are included, although this actor would take them later.
        while let Some(arrival) = self.driver.outbox().take() {
            self.arrived(arrival, ctx);
        }
        self.flush(ctx);
        if self.is_closed && self.waiting.is_empty() {
            ctx.stop();
        }
    }

    /// Returns whether a fetch of the client waits.
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
                    // A request that no longer waits was answered with `Posted::Late`.
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

    /// The load of the waiting frames, as it counts towards the limit.
    fn load(&self) -> Load {
        Load { frames: self.waiting.len() - self.uncounted, bytes: self.waiting_bytes }
    }

    /// Returns whether the waiting replays leave room for another one. The next join of a client that joins many
    /// topics at once is handled after a fetch. Otherwise the replays would exceed the limit, the session would
    /// end, and the client would request the same replays again.
    fn has_room(&self) -> bool {
        !self.has_replays || self.waiting_bytes <= self.max.bytes / WAITING_SHARE
    }

    /// Answers the parked fetch if frames wait. If its client has disconnected, the frames wait for the next fetch.
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

    /// Measures the latency of the sampled frame, if there is one: no frame waits any more.
    fn note_fetched(&mut self) {
        if let Some(published) = self.sampled.take() {
            let took = published.elapsed().as_secs_f64();
            self.driver.worker().metrics.publish_to_write_s.observe(took);
        }
    }

    /// Ends the session if its client does not fetch, or has not joined any topic in time.
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

    /// Keeps a frame for the next fetch. If too many frames wait, the session ends, so that its client reconnects
    /// and does not miss frames silently.
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

    /// Ends the session. The client learns it from the status of its next request.
    fn end(&mut self, ending: Ending, ctx: &mut Context<Self>) {
        self.driver.outbox().end(ending);
        self.shut(ctx);
    }

    /// Answers the parked fetch with the remaining frames, then ends. If the conversation closes the session, or the
    /// server stops, while the client is between two fetches, the next fetch is still answered, because accepted
    /// publications must reach it.
    fn shut(&mut self, ctx: &mut Context<Self>) {
        if self.parked.is_none() {
            self.parked = self.late.pop_front();
        }
        self.flush(ctx);
        self.is_closed = true;
        let may_fetch = matches!(self.driver.outbox().ended(), None | Some(Ending::Shutdown));
        if may_fetch && !self.waiting.is_empty() {
            self.inbox.retain(|inbound| matches!(inbound, QueuedMessage::End(_)));
            ctx.run_later(FAREWELL_MAX, |_, ctx| ctx.stop());
            return;
        }
        // Waiting requests learn from their dropped senders that the session is gone.
        self.parked = None;
        self.late.clear();
        self.inbox.clear();
        ctx.stop();
    }
}

impl Actor for LongPoll {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.times.window / 4, Self::check_life);
        driver::begin(self, ctx);
    }
}

impl Carrier for LongPoll {
    type Protocol = Box<dyn Conversation>;

    fn driver(&mut self) -> &mut Driver<Box<dyn Conversation>> {
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

    /// Does nothing, because [`check_life`](LongPoll::check_life) finds clients that do not fetch.
    fn silent(&mut self, _: &mut Self::Context) {}

    fn hold(&mut self) {
        self.is_held = true;
    }

    /// Does nothing, because the limits on requests are the same before and after the first join.
    fn note_joined(&mut self) {}

    fn resume(&mut self, ctx: &mut Self::Context) {
        self.is_held = false;
        self.work(ctx);
    }
}

impl Handler<Poll> for LongPoll {
    type Result = ();

    fn handle(&mut self, Poll(answer): Poll, ctx: &mut Self::Context) {
        if answer.is_closed() {
            // The client has disconnected, or the window has ended, before this message was handled.
            return;
        }
        let takes_over = self.is_fetched();
        self.fetched = Instant::now();
        self.listing.newcomer = None;
        if self.is_closed {
            return self.park(answer, ctx);
        }
        if takes_over {
            // A fetch that takes over counts like a frame, because it makes the server answer the earlier one.
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

impl Handler<GoOn> for LongPoll {
    type Result = ();

    fn handle(&mut self, _: GoOn, ctx: &mut Self::Context) {
        self.work(ctx);
    }
}

impl Handler<GiveWay> for LongPoll {
    type Result = ();

    fn handle(&mut self, _: GiveWay, ctx: &mut Self::Context) {
        if self.listing.newcomer.is_some() {
            self.end(Ending::NeverFetched, ctx);
        }
    }
}

impl Handler<EndBroken> for LongPoll {
    type Result = ();

    fn handle(&mut self, EndBroken: EndBroken, ctx: &mut Self::Context) {
        self.end(Ending::Broken, ctx);
    }
}

impl Handler<PutBack> for LongPoll {
    type Result = ();

    fn handle(&mut self, PutBack(frames): PutBack, ctx: &mut Self::Context) {
        // They were within the limit before, and replays may be among them. So together they count as one, as
        // a replay does.
        self.uncounted += frames.len().saturating_sub(1);
        self.has_replays = true;
        self.waiting_bytes += frames.iter().map(Frame::size_bytes).sum::<usize>();
        frames.into_iter().rev().for_each(|frame| self.waiting.push_front(frame));
        self.flush(ctx);
        self.bound(ctx);
    }
}

impl Handler<Post> for LongPoll {
    type Result = ();

    fn handle(&mut self, Post { messages, answer }: Post, ctx: &mut Self::Context) {
        if self.is_closed {
            // The client must learn from its next fetch that the session is over. If this request told it,
            // the client would not fetch the remaining frames.
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

impl StreamHandler<ToSession> for LongPoll {
    fn handle(&mut self, arrival: ToSession, ctx: &mut Self::Context) {
        self.arrived(arrival, ctx);
        self.flush(ctx);
    }
}

/// The bytes of messages.
fn bytes_of(messages: &[Received]) -> usize {
    messages.iter().map(Received::size_bytes).sum()
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
