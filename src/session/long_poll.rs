//! A session over long-poll: an actor that keeps what its client has not fetched yet.
//!
//! It drives the same conversation as a WebSocket does, through the same [`driver`];
//! what HTTP makes of it (tokens, statuses, bodies) is the protocol's matter. A client fetches with
//! one parked request at a time and sends with others; it is gone when it has not fetched for one
//! and a half windows.

use std::{
    collections::{HashMap, VecDeque},
    fmt, mem,
    rc::Rc,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use actix::prelude::*;
use log::debug;
use tokio::{
    sync::oneshot::{self, Receiver, Sender},
    time::timeout,
};
use uuid::Uuid;

use crate::broker::subscriber::{Frame, ToSession};

use super::{
    CloseCode, Conversation, Received,
    driver::{self, Carrier, Driver},
    worker::{Admission, Worker},
};

/// Messages that may wait for their turn, over all requests of one session. What one request brings
/// is bounded where requests are read.
const INBOX_MESSAGES_MAX: usize = 400;

/// Bytes that may wait for their turn before another request's messages join them.
const INBOX_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// How a long-poll session keeps time.
#[derive(Debug, Clone, Copy)]
pub struct LongPollTimes {
    /// How long a request waits for something to come, and how long a message for its turn.
    pub window: Duration,
    /// How long a session may live without a joined topic.
    pub unjoined_max: Duration,
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
    times: LongPollTimes,
}

impl<C: Conversation + Unpin> Clone for LongPolls<C> {
    fn clone(&self) -> Self {
        Self { sessions: self.sessions.clone(), times: self.times }
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
        Self { sessions: Arc::default(), times }
    }

    /// Starts a session on the calling thread; `None` if the server has no room for another.
    pub fn open(&self, conversation: C, worker: &Rc<Worker>) -> Option<Uuid> {
        let admission = worker.sessions.admit()?;
        let id = Uuid::new_v4();
        let listing = Listing { id, sessions: self.sessions.clone() };
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

/// What waits for its turn.
enum Inbound {
    Message(Received),
    /// All messages of one request were looked at.
    End(Sender<()>),
}

/// One long-poll session.
pub(super) struct LongPoll<C: Conversation + Unpin> {
    driver: Driver<C>,
    times: LongPollTimes,
    inbox: VecDeque<Inbound>,
    inbox_bytes: usize,
    is_held: bool,
    waiting: VecDeque<Frame>,
    waiting_bytes: usize,
    frames_max: usize,
    bytes_max: usize,
    parked: Option<Parked>,
    /// When the client was last there to fetch.
    fetched: Instant,
    /// Since when nothing is joined.
    unjoined_since: Option<Instant>,
    is_closed: bool,
    _listing: Listing<C>,
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
        let limits = worker.limits;
        // Fetches and messages come this way, too; what waits for the client is bounded below.
        ctx.set_mailbox_capacity(limits.outbox_frames_max);
        let mailbox = ctx.address().recipient();
        Self {
            driver: Driver::enter(conversation, admission, worker, mailbox),
            times,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            is_held: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            frames_max: limits.outbox_frames_max,
            bytes_max: limits.outbox_bytes_max,
            parked: None,
            fetched: Instant::now(),
            unjoined_since: Some(Instant::now()),
            is_closed: false,
            _listing: listing,
        }
    }

    /// Whether more messages may wait for their turn. Where nothing else weighs, one request may bring
    /// as much as the limit on bodies lets through.
    fn has_room_for(&self, messages: &[Received]) -> bool {
        let is_light =
            self.inbox_bytes == 0 || self.inbox_bytes + bytes_of(messages) <= INBOX_BYTES_MAX;
        is_light && self.inbox.len() + messages.len() <= INBOX_MESSAGES_MAX
    }

    /// Looks at messages until one has to wait for the broker.
    fn work(&mut self, ctx: &mut Context<Self>) {
        while !self.is_held && !self.is_closed {
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
        self.flush();
    }

    /// Whether more waits for the client than may.
    fn is_full(&self) -> bool {
        self.waiting.len() > self.frames_max || self.waiting_bytes > self.bytes_max
    }

    /// Answers the parked fetch if there is something to bring. A fetch whose client has left keeps
    /// nothing from the next one.
    fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let Some(parked) = self.parked.take() else { return };
        match parked.send(mem::take(&mut self.waiting).into()) {
            Ok(()) => {
                self.waiting_bytes = 0;
                self.fetched = Instant::now();
            }
            Err(unfetched) => self.waiting = unfetched.into(),
        }
    }

    /// Ends a session whose client has gone, or never joined anything.
    fn check_life(&mut self, ctx: &mut Context<Self>) {
        if self.parked.as_ref().is_some_and(|parked| !parked.is_closed()) {
            self.fetched = Instant::now();
        }
        if self.driver.is_subscribed() {
            self.unjoined_since = None;
        } else if self.unjoined_since.is_none() {
            self.unjoined_since = Some(Instant::now());
        }
        let is_silent = self.fetched.elapsed() > self.times.window * 3 / 2;
        let is_idle =
            self.unjoined_since.is_some_and(|since| since.elapsed() > self.times.unjoined_max);
        if is_silent || is_idle {
            debug!(
                "session {} is over: nobody fetches, or nothing is joined",
                self.driver.session()
            );
            self.close(CloseCode::GOING_AWAY, ctx);
        }
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

    /// Keeps a frame for the next fetch. A client that lets too much pile up is not silently deaf:
    /// its session ends, and it comes back.
    fn send(&mut self, frame: Frame, ctx: &mut Self::Context) {
        if self.is_closed {
            return;
        }
        self.waiting_bytes += frame.size_bytes();
        self.waiting.push_back(frame);
        if self.is_full() {
            self.flush();
        }
        if self.is_full() {
            self.close(CloseCode::TRY_LATER, ctx);
        }
    }

    /// Brings what is left to who waits for it, then is gone.
    fn close(&mut self, code: CloseCode, ctx: &mut Self::Context) {
        debug!("session {} is closed: {}", self.driver.session(), code.0);
        self.flush();
        self.is_closed = true;
        // Whoever still waits for an answer learns by this that the session is gone.
        self.parked = None;
        self.inbox.clear();
        ctx.stop();
    }

    fn hold(&mut self) {
        self.is_held = true;
    }

    fn resume(&mut self, ctx: &mut Self::Context) {
        self.is_held = false;
        self.work(ctx);
    }
}

impl<C: Conversation + Unpin> Handler<Poll> for LongPoll<C> {
    type Result = ();

    fn handle(&mut self, Poll(answer): Poll, _: &mut Self::Context) {
        if answer.is_closed() {
            // Its client has left, or its window ended, before its turn came.
            return;
        }
        self.fetched = Instant::now();
        if let Some(earlier) = self.parked.replace(answer) {
            // The client has given up on it, or has two: the later one counts.
            let _ = earlier.send(Vec::new());
        }
        self.flush();
    }
}

impl<C: Conversation + Unpin> Handler<Post> for LongPoll<C> {
    type Result = ();

    fn handle(&mut self, Post { messages, answer }: Post, ctx: &mut Self::Context) {
        if !self.has_room_for(&messages) {
            // The dropped answer tells the client that its session is over.
            return self.close(CloseCode::TRY_LATER, ctx);
        }
        self.inbox_bytes += bytes_of(&messages);
        self.inbox.extend(messages.into_iter().map(Inbound::Message));
        self.inbox.push_back(Inbound::End(answer));
        self.work(ctx);
    }
}

impl<C: Conversation + Unpin> Handler<ToSession> for LongPoll<C> {
    type Result = ();

    fn handle(&mut self, message: ToSession, ctx: &mut Self::Context) {
        driver::heard(self, message, ctx);
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::session::{
        testing::{Bench, DEADLINE, Obedient, limits},
        worker::SessionLimits,
    };

    /// A thread's long-poll sessions.
    struct Polls {
        bench: Bench,
        all: LongPolls<Obedient>,
    }

    impl Polls {
        fn new(limits: SessionLimits, times: LongPollTimes) -> Self {
            Self { bench: Bench::new(limits), all: LongPolls::new(times) }
        }

        fn roomy() -> Self {
            Self::new(limits(), times(DEADLINE))
        }

        fn open(&self) -> Uuid {
            self.all.open(Obedient, &self.bench.worker).expect("room for a session")
        }

        async fn post(&self, id: Uuid, orders: &[&str]) -> Posted {
            self.all.post(id, texts(orders)).await
        }

        /// A fetch that is parked in its session.
        async fn parked(&self, id: Uuid) -> tokio::task::JoinHandle<Polled> {
            let all = self.all.clone();
            let fetch = tokio::task::spawn_local(async move { all.poll(id).await });
            // It asks before this one does, and is asked about in the same mailbox.
            tokio::task::yield_now().await;
            assert_eq!(self.post(id, &[]).await, Posted::Done);
            fetch
        }

        /// Waits until no session is left, neither listed nor counted.
        async fn until_none(&self) {
            let none = async {
                while self.bench.sessions.open() > 0 || !lock(&self.all).is_empty() {
                    tokio::task::yield_now().await;
                }
            };
            timeout(DEADLINE, none).await.expect("sessions end in time");
        }
    }

    fn lock(all: &LongPolls<Obedient>) -> Vec<Uuid> {
        all.sessions.read().expect("no panic holds it").keys().copied().collect()
    }

    fn times(window: Duration) -> LongPollTimes {
        LongPollTimes { window, unjoined_max: DEADLINE }
    }

    fn texts(orders: &[&str]) -> Vec<Received> {
        orders.iter().map(|&order| Received::Text(order.into())).collect()
    }

    fn frames(texts: &[&str]) -> Polled {
        Polled::Frames(texts.iter().map(|&text| Frame::Text(text.into())).collect())
    }

    #[actix_web::test]
    async fn what_waits_is_fetched_at_once_and_once() {
        let polls = Polls::new(limits(), times(Duration::from_millis(500)));
        let id = polls.open();
        assert_eq!(polls.post(id, &["a", "b"]).await, Posted::Done);
        assert_eq!(polls.post(id, &["c"]).await, Posted::Done);
        assert_eq!(polls.all.poll(id).await, frames(&["a", "b", "c"]));
        assert_eq!(polls.all.poll(id).await, frames(&[]), "after its window");
    }

    #[actix_web::test]
    async fn a_parked_fetch_brings_what_comes() {
        let polls = Polls::roomy();
        let id = polls.open();
        let parked = polls.parked(id).await;
        assert_eq!(polls.post(id, &["join", "a"]).await, Posted::Done);
        assert_eq!(parked.await.expect("a fetch"), frames(&["joined", "a"]));
        let parked = polls.parked(id).await;
        polls.bench.publish(r#"{"n":1}"#).await;
        assert_eq!(parked.await.expect("a fetch"), frames(&[r#"{"n":1}"#]));
    }

    #[actix_web::test]
    async fn the_later_of_two_fetches_counts() {
        let polls = Polls::roomy();
        let id = polls.open();
        let first = polls.parked(id).await;
        let second = polls.parked(id).await;
        assert_eq!(first.await.expect("a fetch"), frames(&[]));
        assert_eq!(polls.post(id, &["a"]).await, Posted::Done);
        assert_eq!(second.await.expect("a fetch"), frames(&["a"]));
    }

    #[actix_web::test]
    async fn a_fetch_that_was_given_up_keeps_nothing_and_takes_nothing_over() {
        let polls = Polls::roomy();
        let id = polls.open();
        let parked = polls.parked(id).await;
        parked.abort();
        assert!(parked.await.is_err(), "given up");
        assert_eq!(polls.post(id, &["a"]).await, Posted::Done);
        assert_eq!(polls.all.poll(id).await, frames(&["a"]));
        // One that is given up before its turn comes does not push out a live one.
        let live = polls.parked(id).await;
        let (answer, _) = oneshot::channel();
        polls.all.find(id).expect("a session").send(Poll(answer)).await.expect("a session");
        assert_eq!(polls.post(id, &["b"]).await, Posted::Done);
        assert_eq!(live.await.expect("a fetch"), frames(&["b"]));
    }

    #[test]
    fn what_is_handed_over_in_the_last_moment_is_brought_or_kept() {
        let (send, receive) = oneshot::channel();
        send.send(vec![Frame::Text("a".into())]).expect("somebody waits");
        assert_eq!(late(receive), frames(&["a"]), "before the end");
        let (send, receive) = oneshot::channel();
        assert_eq!(late(receive), frames(&[]));
        assert_eq!(
            send.send(vec![Frame::Text("a".into())]),
            Err(vec![Frame::Text("a".into())]),
            "after it"
        );
    }

    #[actix_web::test]
    async fn what_comes_on_the_very_edge_of_a_window_is_not_lost() {
        const MESSAGES: usize = 500;
        const WINDOW: Duration = Duration::from_millis(1);
        let all = LongPolls::<Obedient>::new(times(DEADLINE));
        let elsewhere = Arbiter::new();
        let (opened, opens) = oneshot::channel();
        let theirs = all.clone();
        elsewhere.spawn_fn(move || {
            let id = theirs.open(Obedient, &Bench::new(limits()).worker);
            opened.send(id.expect("room for a session")).expect("the test waits");
        });
        let id = opens.await.expect("a session");
        // The session has time; only these fetches have none.
        let hasty = LongPolls { sessions: all.sessions.clone(), times: times(WINDOW) };
        let posts = async {
            let mut pace = tokio::time::interval(WINDOW);
            for n in 0..MESSAGES {
                pace.tick().await;
                assert_eq!(all.post(id, texts(&[&n.to_string()])).await, Posted::Done);
            }
        };
        let (mut heard, mut empty) = (Vec::new(), 0);
        let fetches = async {
            while heard.len() < MESSAGES {
                match hasty.poll(id).await {
                    Polled::Frames(frames) if frames.is_empty() => empty += 1,
                    Polled::Frames(frames) => heard.extend(frames),
                    Polled::Gone => panic!("it lives"),
                }
            }
        };
        timeout(DEADLINE, async { tokio::join!(posts, fetches) }).await.expect("none is missing");
        let expected = (0..MESSAGES).map(|n| Frame::Text(n.to_string().into()));
        assert!(heard.into_iter().eq(expected));
        assert!(empty > 0, "windows have ended");
        elsewhere.stop();
    }

    #[actix_web::test]
    async fn who_lets_too_much_pile_up_is_gone() {
        for (case, limits) in [
            ("frames", SessionLimits { outbox_frames_max: 3, ..limits() }),
            ("bytes", SessionLimits { outbox_bytes_max: 3, ..limits() }),
        ] {
            let polls = Polls::new(limits, times(DEADLINE));
            let (id, keeps_up) = (polls.open(), polls.open());
            for id in [id, keeps_up] {
                assert_eq!(polls.post(id, &["a", "b", "c"]).await, Posted::Done, "{case}");
            }
            assert_eq!(polls.all.poll(keeps_up).await, frames(&["a", "b", "c"]), "{case}");
            for id in [id, keeps_up] {
                let expected = if id == keeps_up { Posted::Done } else { Posted::Gone };
                assert_eq!(polls.post(id, &["d"]).await, expected, "{case}");
            }
            assert_eq!(polls.all.poll(id).await, Polled::Gone, "{case}");
            assert_eq!(polls.bench.sessions.open(), 1, "{case}");
        }
    }

    #[actix_web::test]
    async fn a_fetch_that_waits_makes_room_in_the_middle_of_a_batch() {
        let limits = SessionLimits { outbox_frames_max: 3, ..limits() };
        let polls = Polls::new(limits, times(DEADLINE));
        let id = polls.open();
        let parked = polls.parked(id).await;
        assert_eq!(polls.post(id, &["a", "b", "c", "d", "e", "f"]).await, Posted::Done);
        assert_eq!(parked.await.expect("a fetch"), frames(&["a", "b", "c", "d"]));
        assert_eq!(polls.all.poll(id).await, frames(&["e", "f"]));
    }

    #[actix_web::test]
    async fn who_sends_more_than_may_wait_for_its_turn_is_gone() {
        let large = "x".repeat(INBOX_BYTES_MAX / 2);
        for (case, order, requests, messages, expected) in [
            ("as many as may", "x", 4, 99, Posted::Done),
            ("too many", "x", 5, 99, Posted::Gone),
            ("one large request", large.as_str(), 1, 3, Posted::Done),
            ("too heavy", large.as_str(), 4, 1, Posted::Gone),
        ] {
            let limits = SessionLimits { outbox_bytes_max: 1 << 30, ..limits() };
            let polls = Polls::new(limits, times(DEADLINE));
            let id = polls.open();
            // The first message has to wait for the broker, and all others behind it.
            let first = polls.post(id, &["publish"]);
            let orders = vec![order; messages];
            let others = (0..requests).map(|_| polls.post(id, &orders));
            let (_, posted) = tokio::join!(first, join_all(others));
            assert_eq!(posted, vec![expected; requests], "{case}");
        }
    }

    #[actix_web::test]
    async fn e149_messages_that_do_not_get_their_turn_in_time_are_late() {
        let all = LongPolls::<Obedient>::new(times(Duration::from_secs(2)));
        let busy = Arbiter::new();
        let (opened, opens) = oneshot::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let theirs = all.clone();
        busy.spawn_fn(move || {
            let id = theirs.open(Obedient, &Bench::new(limits()).worker);
            opened.send(id.expect("room for a session")).expect("the test waits");
            // Nothing happens on that thread until it is released.
            held.recv().ok();
        });
        let id = opens.await.expect("a session");
        assert_eq!(all.post(id, texts(&["a"])).await, Posted::Late);
        release.send(()).expect("a thread that waits");
        assert_eq!(all.poll(id).await, frames(&["a"]), "late, not lost");
        busy.stop();
    }

    #[actix_web::test]
    async fn a_session_that_nobody_fetches_is_over_though_it_is_posted_to() {
        let window = Duration::from_millis(40);
        let polls = Polls::new(limits(), times(window));
        let (began, id) = (Instant::now(), polls.open());
        let posts = async { while polls.post(id, &["leave"]).await != Posted::Gone {} };
        timeout(DEADLINE, posts).await.expect("an end in time");
        assert!(began.elapsed() > window * 3 / 2);
        assert_eq!(polls.all.poll(id).await, Polled::Gone);
        polls.until_none().await;
    }

    #[actix_web::test]
    async fn a_session_that_is_fetched_lives_as_long_as_it_has_joined() {
        let times = LongPollTimes {
            window: Duration::from_millis(300),
            unjoined_max: Duration::from_millis(500),
        };
        let polls = Polls::new(limits(), times);
        let id = polls.open();
        assert_eq!(polls.post(id, &["join"]).await, Posted::Done);
        assert_eq!(polls.all.poll(id).await, frames(&["joined"]));
        let began = Instant::now();
        while began.elapsed() < 2 * times.unjoined_max {
            assert_eq!(polls.all.poll(id).await, frames(&[]));
        }
        assert_eq!(polls.post(id, &["leave"]).await, Posted::Done);
        let began = Instant::now();
        while polls.all.poll(id).await != Polled::Gone {}
        assert!(began.elapsed() >= times.unjoined_max);
        polls.until_none().await;
    }

    #[actix_web::test]
    async fn a_session_that_ends_lets_everybody_know() {
        for order in ["close", "panic"] {
            let polls = Polls::roomy();
            let id = polls.open();
            let parked = polls.parked(id).await;
            assert_eq!(polls.post(id, &["a", order, "b"]).await, Posted::Gone, "{order}");
            let parked = parked.await.expect("a fetch");
            // What was said before it closed is still brought; who panics says nothing more.
            let last = if order == "close" { frames(&["a"]) } else { Polled::Gone };
            assert_eq!(parked, last, "{order}");
            assert_eq!(polls.all.poll(id).await, Polled::Gone, "{order}");
            polls.until_none().await;
        }
    }

    #[actix_web::test]
    async fn there_is_room_for_so_many_and_for_nobody_while_it_stops() {
        let polls = Polls::roomy();
        let ids: Vec<_> = (0..100).map(|_| polls.open()).collect();
        assert_eq!(polls.all.open(Obedient, &polls.bench.worker), None, "full");
        assert_eq!(polls.post(ids[0], &["close"]).await, Posted::Gone);
        polls.open();
        assert_eq!(polls.post(ids[1], &["close"]).await, Posted::Gone);
        polls.bench.sessions.close();
        assert_eq!(polls.all.open(Obedient, &polls.bench.worker), None, "stopping");
    }

    #[actix_web::test]
    async fn a_session_that_never_was_is_gone() {
        let polls = Polls::roomy();
        assert_eq!(polls.all.poll(Uuid::new_v4()).await, Polled::Gone);
        assert_eq!(polls.post(Uuid::new_v4(), &["a"]).await, Posted::Gone);
    }
}
