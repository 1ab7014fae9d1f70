//! Writing: from a session's outbox and its actor to the socket, and the clock of a connection.
//!
//! The pump is the task of a WebSocket. Frames from the broker it takes from the outbox itself, as
//! many as are there for one write. The actor is polled only when something is there for it: its
//! client, news, an answer. While a write is pending neither is looked at, so the outbox of a
//! client that does not read fills up to its bound.
//!
//! Who is woken while publications are on their way lets them go first, once, if little waits.
//! Otherwise the fan-out would wait behind hundreds of sessions that each write one frame.

use std::{
    future::Future,
    mem,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use actix_codec::{AsyncRead, AsyncWrite, ReadBuf};
use actix_http::ws::{OpCode, Parser};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use tokio::time::Sleep;

use crate::broker::{
    outbox::{Ending, Next, Outbox},
    subscriber::Frame,
};

use super::{
    frames::Socket,
    worker::{Admission, Worker},
};

/// Writes before other tasks of the thread get a turn.
const WRITES_PER_POLL: usize = 16;

/// Frames are gathered into one write until it is this large: of what a client that wakes up finds
/// waiting, so much is copied for it at a time.
const GATHERED_BYTES_MAX: usize = 32 * 1024;

/// How long a client may take to hang up after the close frame.
const LINGER: Duration = Duration::from_secs(2);

/// What a socket needs beyond reading and writing.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Makes the next close a reset: the client is not there to hear anything else.
    fn give_up(&self);
}

impl Transport for tokio::net::TcpStream {
    fn give_up(&self) {
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

/// Drives one WebSocket until it is closed. What each write touches stands together, at the end.
pub(super) struct Pump<T, B> {
    /// Until when the client may hang up by itself.
    linger_until: Option<Instant>,
    /// When the timer rings at the latest; too early is harmless, so most reads leave it as it is.
    wakes_at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    /// Since when writing makes no progress.
    stuck_since: Option<Instant>,
    /// The place that the connection takes until it is closed.
    _admission: Admission,
    /// Rings the outbox's bell. It is what the actor and the timer are polled with: a frame from the
    /// broker is written without a look at either.
    bell: Waker,
    /// The actor's outgoing bytes; `None` once it has stopped.
    body: Option<Pin<Box<B>>>,
    /// When the first that is of interest among what is being written was published.
    sampled: Option<Instant>,
    worker: Rc<Worker>,
    outbox: Arc<Outbox>,
    socket: Rc<Socket<T>>,
    /// What the socket has not taken yet.
    unwritten: Bytes,
    is_actor_due: bool,
    is_timer_due: bool,
    /// Whether it has looked for publications to let go first since all was written.
    gave_way: bool,
}

/// A frame as it goes over the wire.
fn gather(frame: &Frame, gathered: &mut BytesMut) {
    let (payload, code) = match frame {
        Frame::Text(text) => (&text.as_bytes()[..], OpCode::Text),
        Frame::Binary(bytes) => (&bytes[..], OpCode::Binary),
    };
    Parser::write_message(gathered, payload, code, true, false);
}

/// Why writing pauses.
enum Paused {
    /// There is nothing to write.
    Drained,
    /// The socket takes no more.
    Stuck,
    /// Others shall have a turn.
    Turn,
    /// All is written and the actor has stopped.
    Finished,
    /// The socket is broken.
    Broken,
}

impl<T, B, E> Pump<T, B>
where
    T: Transport,
    B: Stream<Item = Result<Bytes, E>>,
{
    pub(super) fn new(
        socket: Rc<Socket<T>>,
        worker: Rc<Worker>,
        outbox: Arc<Outbox>,
        admission: Admission,
        body: B,
    ) -> Self {
        Self {
            socket,
            timer: Box::pin(tokio::time::sleep(worker.limits.idle_timeout)),
            bell: outbox.clone().into(),
            // Both have yet to be polled for the first time.
            is_actor_due: true,
            is_timer_due: true,
            gave_way: false,
            wakes_at: None,
            worker,
            outbox,
            body: Some(Box::pin(body)),
            unwritten: Bytes::new(),
            sampled: None,
            stuck_since: None,
            linger_until: None,
            _admission: admission,
        }
    }

    /// Writes until something is in the way.
    fn write(&mut self, cx: &mut Context<'_>) -> Paused {
        for _ in 0..WRITES_PER_POLL {
            match self.flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(broken)) => return broken,
                Poll::Pending => return Paused::Stuck,
            }
            // What is published meanwhile leaves in the same write: with as much under way as goes,
            // CPU per delivery was 0.34 to 0.35 of the floor's with this, 0.43 to 0.55 without.
            if !mem::replace(&mut self.gave_way, true)
                && self.worker.awaits_more()
                && self.outbox.holds_little()
            {
                return Paused::Turn;
            }
            let next = match self.write_frames(cx) {
                Ok(next) => next,
                Err(broken) => return broken,
            };
            if matches!(next, Next::News | Next::Closed) {
                (self.is_actor_due, self.is_timer_due) = (true, true);
            }
            let Some(body) = &mut self.body else { return Paused::Finished };
            if next == Next::Frame || !self.unwritten.is_empty() {
                continue;
            }
            if !self.is_actor_due {
                return Paused::Drained;
            }
            // It has been polled until there was nothing more to do for it; what it has just let out
            // of the outbox comes next. One that stops closes the outbox, and is polled to its end.
            self.is_actor_due = false;
            match body.as_mut().poll_next(&mut Context::from_waker(&self.bell)) {
                Poll::Ready(Some(Ok(chunk))) => self.unwritten = chunk,
                Poll::Ready(_) => self.body = None,
                Poll::Pending => {}
            }
        }
        Paused::Turn
    }

    /// Writes what the outbox has, as much as fits into one write; answers what comes next there.
    fn write_frames(&mut self, cx: &mut Context<'_>) -> Result<Next, Paused> {
        let worker = self.worker.clone();
        let gathered = &mut *worker.gathered.borrow_mut();
        gathered.clear();
        let mut sampled = None;
        let next = self.outbox.take_frames(cx.waker(), |frame, published| {
            gather(&frame, gathered);
            sampled = sampled.or(published);
            gathered.len() < GATHERED_BYTES_MAX
        });
        if gathered.is_empty() {
            return Ok(next);
        }
        self.sampled = self.sampled.or(sampled);
        let mut io = self.socket.io.borrow_mut();
        let written = match Pin::new(&mut *io).poll_write(cx, gathered) {
            Poll::Ready(Ok(0) | Err(_)) => return Err(Paused::Broken),
            Poll::Ready(Ok(written)) => written,
            Poll::Pending => 0,
        };
        drop(io);
        if written == gathered.len() {
            self.note_written();
        } else {
            self.unwritten = Bytes::copy_from_slice(&gathered[written..]);
        }
        if gathered.capacity() > 4 * GATHERED_BYTES_MAX {
            // One large frame must not be paid for ever after.
            *gathered = BytesMut::new();
        }
        Ok(next)
    }

    /// Writes what the socket did not take before.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Paused>> {
        if self.unwritten.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut io = self.socket.io.borrow_mut();
        while !self.unwritten.is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, &self.unwritten)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Paused::Broken)),
                Ok(written) => {
                    self.unwritten.advance(written);
                    self.stuck_since = None;
                }
            }
        }
        drop(io);
        // A session that idles should not keep its last bytes.
        self.unwritten = Bytes::new();
        self.note_written();
        Poll::Ready(Ok(()))
    }

    /// All that was said is with the kernel.
    fn note_written(&mut self) {
        if let Some(published) = self.sampled.take() {
            let took = published.elapsed().as_secs_f64();
            self.worker.metrics.publish_to_write_s.observe(took);
        }
    }

    /// The client does not take what it is sent: drop it without ceremony.
    fn drop_slow(&mut self) {
        self.socket.io.borrow().give_up();
    }

    /// Sees to the deadlines; `false` if the connection is to be dropped. A session that is to end is
    /// not waited for as long as one that may go on.
    fn on_time(&mut self, stuck: bool) -> bool {
        self.is_timer_due = false;
        let now = Instant::now();
        if !stuck && self.wakes_at.is_some_and(|wakes_at| now < wakes_at) {
            return true;
        }
        let limits = self.worker.limits;
        let deadline = if stuck {
            let patience = match self.outbox.ended() {
                Some(_) => LINGER.min(limits.write_timeout),
                None => limits.write_timeout,
            };
            *self.stuck_since.get_or_insert(now) + patience
        } else {
            self.socket.silent_since() + limits.idle_timeout
        };
        if deadline <= now {
            if stuck {
                self.outbox.end(Ending::Stuck);
                self.drop_slow();
                return false;
            }
            self.outbox.end(Ending::Idle);
            // What is left is the actor's close frame; should it not come, this asks again.
            self.timer.as_mut().reset((now + LINGER).into());
        } else {
            self.wakes_at = Some(deadline);
            self.timer.as_mut().reset(deadline.into());
        }
        // Being woken too early is harmless; being woken never is not.
        if self.timer.as_mut().poll(&mut Context::from_waker(&self.bell)).is_ready() {
            self.outbox.ring();
        }
        true
    }

    /// Hangs up: no more from us, then whatever the client still sends is read away, for closing
    /// with unread bytes would be a reset that overtakes the close frame.
    fn poll_hang_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let mut io = self.socket.io.borrow_mut();
        let until = match self.linger_until {
            Some(until) => until,
            None => {
                ready!(Pin::new(&mut *io).poll_shutdown(cx)).ok();
                let until = now + LINGER;
                self.timer.as_mut().reset(until.into());
                *self.linger_until.insert(until)
            }
        };
        let mut scratch = self.worker.scratch.borrow_mut();
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && Instant::now() < until => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.timer.as_mut().poll(cx),
            }
        }
    }
}

impl<T, B, E> Future for Pump<T, B>
where
    T: Transport,
    B: Stream<Item = Result<Bytes, E>>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.linger_until.is_none() {
            match this.write(cx) {
                Paused::Broken => return Poll::Ready(()),
                Paused::Finished => {}
                Paused::Turn => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Paused::Stuck => {
                    if let Some(Ending::SlowConsumer(_)) = this.outbox.ended() {
                        this.drop_slow();
                        return Poll::Ready(());
                    }
                    return if this.on_time(true) { Poll::Pending } else { Poll::Ready(()) };
                }
                Paused::Drained if this.is_timer_due && !this.on_time(false) => {
                    return Poll::Ready(());
                }
                Paused::Drained => {
                    this.gave_way = false;
                    return Poll::Pending;
                }
            }
        }
        this.poll_hang_up(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        io,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
        task::Wake,
    };

    use actix_http::ws::Message;
    use futures_util::{SinkExt, StreamExt, stream};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };
    use tokio_tungstenite::tungstenite;

    use crate::{
        broker::subscriber::SubscriptionId,
        metrics::SAMPLE_INTERVAL,
        session::{
            CloseCode,
            testing::{Bench, Client, DEADLINE, close_frame, limits, masked, text},
            worker::SessionLimits,
        },
    };

    use super::*;

    const PIPE_BYTES: usize = 1_024;

    async fn order(client: &mut Client, text: &'static str) {
        client.near.write_all(&masked(Message::Text(text.into()))).await.expect("room in the pipe");
    }

    /// A client that has joined and does not read, with what is being written to it.
    async fn stuck(bench: &Bench) -> (Client, Vec<u8>) {
        const ECHO: &str = "a hundred bytes, which are more than the pipe of that client can take, \
                            and so whatever comes behind waits";
        let mut deaf = bench.connect(64);
        order(&mut deaf, "join").await;
        order(&mut deaf, ECHO).await;
        // With the first bytes of the echo comes the certainty that the rest is in the way.
        let head = [0x81, u8::try_from(ECHO.len()).expect("a short frame")];
        assert_eq!(deaf.next_bytes(10).await, [b"\x81\x06joined", &head[..]].concat());
        (deaf, ECHO.into())
    }

    /// A socket that takes everything, and remembers each write.
    struct Memo(Rc<RefCell<Vec<Vec<u8>>>>);

    impl AsyncRead for Memo {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Memo {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.borrow_mut().push(bytes.into());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Transport for Memo {
        fn give_up(&self) {}
    }

    /// Goes up when woken.
    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Flag {
        /// Takes it down; `true` if it was up.
        fn lower(&self) -> bool {
            self.0.swap(false, SeqCst)
        }
    }

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }

    async fn ends(client: Client) {
        timeout(DEADLINE, client.pump).await.expect("an end in time").expect("no panic");
    }

    #[actix_web::test]
    async fn what_a_session_says_is_written_and_a_close_is_answered() {
        let bench = Bench::new(limits());
        let (mut socket, pump) = bench.connect(PIPE_BYTES).websocket().await;
        for said in ["hello", "", "caf\u{e9}"] {
            socket.send(tungstenite::Message::text(said)).await.expect("an open socket");
            assert_eq!(text(&mut socket).await, said);
        }
        socket.send(tungstenite::Message::Ping("p".into())).await.expect("an open socket");
        let pong = socket.next().await.expect("an open socket").expect("a message");
        assert_eq!(pong, tungstenite::Message::Pong("p".into()));
        socket.close(None).await.expect("an open socket");
        while let Some(Ok(message)) = socket.next().await {
            assert!(message.is_close(), "{message}");
        }
        timeout(DEADLINE, pump).await.expect("an end in time").expect("no panic");
        assert_eq!(bench.sessions.open(), 0);
    }

    #[actix_web::test]
    async fn a_panic_ends_that_session_alone() {
        let bench = Bench::new(limits());
        let (mut other, _pump) = bench.connect(PIPE_BYTES).websocket().await;
        let mut client = bench.connect(PIPE_BYTES);
        order(&mut client, "join").await;
        other.send(tungstenite::Message::text("join")).await.expect("an open socket");
        assert_eq!(text(&mut other).await, "joined");
        order(&mut client, "panic").await;
        assert_eq!(client.rest().await, b"\x81\x06joined", "the socket is closed");
        let outcome = timeout(DEADLINE, client.pump).await.expect("an end in time");
        assert!(outcome.is_err_and(|error| error.is_panic()));
        assert_eq!(bench.sessions.open(), 1, "its place is free again");

        bench.publish(r#"{"n":1}"#).await;
        assert_eq!(text(&mut other).await, r#"{"n":1}"#, "the other goes on");
    }

    #[actix_web::test]
    async fn a_client_that_hangs_up_without_a_word_is_gone() {
        let bench = Bench::new(limits());
        let client = bench.connect(PIPE_BYTES);
        drop(client.near);
        timeout(DEADLINE, client.pump).await.expect("an end in time").expect("no panic");
        assert_eq!(bench.sessions.open(), 0);
    }

    #[actix_web::test]
    async fn a_session_that_is_closed_hangs_up_and_reads_away_what_still_comes() {
        let bench = Bench::new(limits());
        let mut client = bench.connect(PIPE_BYTES);
        order(&mut client, "close").await;
        let mut frame = [0; 4];
        client.near.read_exact(&mut frame).await.expect("a close frame");
        assert_eq!(frame[..], close_frame(CloseCode::INTERNAL));
        for _ in 0..100 {
            // Once the session is gone there is nobody to read it.
            if client.near.write_all(&[b'x'; PIPE_BYTES]).await.is_err() {
                break;
            }
        }
        assert_eq!(client.rest().await, b"");
        drop(client.near);
        timeout(DEADLINE, client.pump).await.expect("an end in time").expect("no panic");
        assert_eq!(bench.sessions.open(), 0);
    }

    #[actix_web::test]
    async fn a_client_that_never_hangs_up_is_not_waited_for() {
        let bench = Bench::new(limits());
        let mut client = bench.connect(PIPE_BYTES);
        order(&mut client, "close").await;
        assert_eq!(client.rest().await, close_frame(CloseCode::INTERNAL));
        ends(client).await;
        assert_eq!(bench.sessions.open(), 0);
    }

    #[actix_web::test]
    async fn a_session_that_idles_is_let_go() {
        let idle_timeout = Duration::from_millis(50);
        let bench = Bench::new(SessionLimits { idle_timeout, ..limits() });
        let mut client = bench.connect(PIPE_BYTES);
        assert_eq!(client.rest().await, close_frame(CloseCode::GOING_AWAY));
        ends(client).await;
    }

    #[actix_web::test]
    async fn a_session_that_speaks_is_let_go_so_long_after_it_last_did() {
        let idle_timeout = Duration::from_millis(600);
        let bench = Bench::new(SessionLimits { idle_timeout, ..limits() });
        let mut client = bench.connect(PIPE_BYTES);
        tokio::time::sleep(idle_timeout / 3).await;
        let spoke = Instant::now();
        order(&mut client, "still here").await;
        assert_eq!(client.next_bytes(12).await, b"\x81\x0astill here");
        assert_eq!(client.rest().await, close_frame(CloseCode::GOING_AWAY));
        assert!(spoke.elapsed() >= idle_timeout, "{:?}", spoke.elapsed());
        ends(client).await;
    }

    #[actix_web::test]
    async fn a_client_that_does_not_read_is_dropped_once_its_outbox_is_full() {
        for (case, tight) in [
            ("frames", SessionLimits { outbox_frames_max: 4, ..limits() }),
            ("bytes", SessionLimits { outbox_bytes_max: 2_000, ..limits() }),
        ] {
            let bench = Bench::new(tight);
            let (mut reader, _pump) = bench.connect(1 << 20).websocket().await;
            reader.send(tungstenite::Message::text("join")).await.expect("an open socket");
            assert_eq!(text(&mut reader).await, "joined", "{case}");
            let mut deaf = bench.connect(64);
            order(&mut deaf, "join").await;
            while !deaf.pump.is_finished() {
                let payload = format!(r#"{{"filler":"{}"}}"#, "x".repeat(200));
                bench.publish(&payload).await;
                assert_eq!(text(&mut reader).await, payload, "{case}: the other gets them all");
            }
            assert!(deaf.rest().await.len() <= 64, "{case}: what was in the pipe");
            assert_eq!(bench.sessions.open(), 1, "{case}");
        }
    }

    #[actix_web::test]
    async fn as_many_frames_wait_as_may_though_some_are_measured_and_one_more_ends_it() {
        const FRAMES_MAX: usize = 8;
        let bench = Bench::new(SessionLimits { outbox_frames_max: FRAMES_MAX, ..limits() });
        for frames in [FRAMES_MAX, FRAMES_MAX + 1] {
            let (mut deaf, mut waits) = stuck(&bench).await;
            let (mut witness, _pump) = bench.connect(1 << 20).websocket().await;
            witness.send(tungstenite::Message::text("join")).await.expect("an open socket");
            assert_eq!(text(&mut witness).await, "joined");
            for n in 0..frames {
                // Each time somebody is to be measured, and it is not always the witness.
                tokio::time::sleep(SAMPLE_INTERVAL).await;
                let payload = format!(r#"{{"n":{n}}}"#);
                bench.publish(&payload).await;
                assert_eq!(text(&mut witness).await, payload);
                waits.extend([0x81, 7]);
                waits.extend(payload.as_bytes());
            }
            if frames > FRAMES_MAX {
                ends(deaf).await;
            } else {
                assert_eq!(deaf.next_bytes(waits.len()).await, waits);
            }
        }
    }

    #[actix_web::test]
    async fn of_what_is_written_together_the_oldest_is_measured() {
        let bench = Bench::new(limits());
        let (mut deaf, mut waits) = stuck(&bench).await;
        let (mut witness, _pump) = bench.connect(1 << 20).websocket().await;
        witness.send(tungstenite::Message::text("join")).await.expect("an open socket");
        assert_eq!(text(&mut witness).await, "joined");
        let mut first_heard = None;
        // They are measured by turns, each of them twice.
        for _ in 0..4 {
            bench.publish("{}").await;
            assert_eq!(text(&mut witness).await, "{}");
            first_heard.get_or_insert_with(Instant::now);
            waits.extend(b"\x81\x02{}");
            tokio::time::sleep(10 * SAMPLE_INTERVAL).await;
        }
        let waited_s = first_heard.expect("a moment").elapsed().as_secs_f64();
        assert_eq!(deaf.next_bytes(waits.len()).await, waits);
        let figures = bench.worker.metrics.encode();
        let figure = |name: &str| {
            let name = format!("herald_publish_to_write_seconds_{name} ");
            let line = figures.lines().find_map(|line| line.strip_prefix(&name));
            line.and_then(|figure| figure.parse::<f64>().ok()).expect("a figure")
        };
        assert_eq!(figure("count"), 3.0, "two of the witness, and one for all that waited");
        assert!(figure("sum") >= waited_s, "{} of {waited_s} s", figure("sum"));
    }

    #[actix_web::test]
    async fn publications_under_way_are_let_go_first_but_only_once() {
        let bench = Bench::new(limits());
        let (mut witness, _pump) = bench.connect(PIPE_BYTES).websocket().await;
        witness.send(tungstenite::Message::text("join")).await.expect("an open socket");
        assert_eq!(text(&mut witness).await, "joined");
        let admission = bench.sessions.admit().expect("room for a session");
        let outbox = bench.worker.outbox(&admission);
        let written = Rc::new(RefCell::new(Vec::new()));
        let socket = Rc::new(Socket::new(Memo(written.clone()), Rc::default()));
        let body = stream::pending::<Result<Bytes, ()>>();
        let mut pump = Pump::new(socket, bench.worker.clone(), outbox.clone(), admission, body);
        let is_woken = Arc::new(Flag::default());
        let waker = Waker::from(is_woken.clone());
        let mut take_turn = || {
            assert!(Pin::new(&mut pump).poll(&mut Context::from_waker(&waker)).is_pending());
            written.take().concat()
        };
        let deliver = |text: &'static str| {
            assert!(outbox.deliver(&Frame::Text(text.into()), SubscriptionId(0), None));
            assert!(is_woken.lower(), "{text}");
        };
        assert_eq!(take_turn(), b"");
        deliver("a");
        assert_eq!(take_turn(), b"\x81\x01a", "nothing is under way");

        // It is under way until another task of this thread has had a turn.
        bench.publish("{}").await;
        for _ in 0..2 {
            deliver("b");
            assert_eq!(take_turn(), b"", "it gives way");
            assert!(is_woken.lower(), "and comes back");
            assert!(outbox.deliver(&Frame::Text("c".into()), SubscriptionId(0), None));
            assert_eq!(take_turn(), b"\x81\x01b\x81\x01c");
            assert!(!is_woken.lower());
        }

        deliver("d");
        for _ in 0..=limits().outbox_frames_max / 8 {
            assert!(outbox.deliver(&Frame::Text("e".into()), SubscriptionId(0), None));
        }
        let waited = take_turn();
        assert!(waited.starts_with(b"\x81\x01d\x81\x01e"), "too much waits: {waited:?}");

        assert_eq!(text(&mut witness).await, "{}");
        deliver("d");
        assert_eq!(take_turn(), b"\x81\x01d", "nothing is under way any more");
    }

    #[actix_web::test]
    async fn who_gives_way_to_a_burst_is_not_drowned_by_it() {
        let bench = Bench::new(SessionLimits { outbox_frames_max: 32, ..limits() });
        let (mut client, _pump) = bench.connect(PIPE_BYTES).websocket().await;
        client.send(tungstenite::Message::text("join")).await.expect("an open socket");
        assert_eq!(text(&mut client).await, "joined");
        let payloads: Vec<_> = (0..60).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
        for payload in &payloads {
            bench.publish(payload).await;
        }
        for payload in &payloads {
            assert_eq!(text(&mut client).await, *payload);
        }
    }

    #[actix_web::test]
    async fn a_write_without_progress_ends_the_session() {
        let write_timeout = Duration::from_millis(50);
        let bench = Bench::new(SessionLimits { write_timeout, ..limits() });
        let mut client = bench.connect(64);
        for _ in 0..2 {
            order(&mut client, "forty bytes of an echo that fill the pipe").await;
        }
        let mut pump = client.pump;
        timeout(DEADLINE, &mut pump).await.expect("an end in time").expect("no panic");
        assert_eq!(bench.sessions.open(), 0);
    }
}
