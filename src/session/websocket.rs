//! A session over a WebSocket.
//!
//! This is the only file that uses `WebsocketContext`. The actor gets the messages of its client
//! and news from the broker; frames from the broker go from the [`Outbox`] to the socket without it
//! (see `frame_socket`). While the broker works on a join or a publication, further messages wait in their
//! order, up to a bound; then nothing more is read. Only heartbeats are answered ahead of their
//! turn, because a client that checks its connection must not wait for a slow topic.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use actix::prelude::{Actor, ActorContext, AsyncContext, SpawnHandle, StreamHandler};
use actix_http::ws;
use actix_web_actors::ws::WebsocketContext;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use log::debug;

use crate::broker::{
    outbox::{Ending, News, Outbox},
    subscriber::{Frame, SubscriptionId},
};

use super::{
    Close, CloseCode, HeldConversation, Patience,
    connection::ConnectionSlot,
    driver::{self, Carrier, Driver},
    frame_socket::{FrameSocket, SocketTransport},
    frames::{Frames, Inbound},
    gate::{Due, Gate},
    pump::Pump,
    unfinished::Holding,
    worker::{Admission, Worker},
};

/// The most messages that may wait for their turn. A client that has just connected sends all its joins, and
/// then a heartbeat.
const INBOX_MESSAGES_MAX: usize = 128;

/// The bytes of waiting messages from which on nothing more is read: enough for [`INBOX_MESSAGES_MAX`] joins
/// with a token each.
const INBOX_BYTES_MAX: usize = 256 * 1024;

/// One WebSocket connection.
pub(super) struct WebSocket<C: HeldConversation> {
    driver: Driver<C>,
    /// The gate is shut while the inbox is full: then nothing is read.
    gate: Rc<Gate>,
    /// The stream of the client's messages.
    frames: SpawnHandle,
    /// Whether the broker works on an earlier message, so that further ones wait.
    is_held: bool,
    inbox: Option<Box<Inbox>>,
}

/// The messages that wait for their turn, in order.
struct Inbox {
    waiting: VecDeque<Inbound>,
    bytes: usize,
    /// The bytes that are held for the messages, counted among those of all sessions.
    holding: Holding,
    /// Whether the client sends no further message.
    is_last: bool,
}

impl Inbox {
    fn new(holding: Holding) -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, holding, is_last: false }
    }

    fn push(&mut self, inbound: Inbound) {
        self.bytes += inbound.size_bytes();
        // A slice of the read bytes would keep all of them in memory, which is far more than is counted here.
        self.waiting.push_back(inbound.detached());
        self.holding.set(self.bytes);
    }

    fn pop(&mut self) -> Option<Inbound> {
        let inbound = self.waiting.pop_front()?;
        self.bytes -= inbound.size_bytes();
        self.holding.set(self.bytes);
        Some(inbound)
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= INBOX_MESSAGES_MAX || self.bytes >= INBOX_BYTES_MAX
    }
}

/// Starts a session on a socket whose handshake is done; the returned pump is its task.
pub(super) fn start<T: SocketTransport, C: HeldConversation>(
    io: T,
    early: BytesMut,
    conversation: C,
    places: (Admission, ConnectionSlot),
    worker: Rc<Worker>,
) -> Pump<T, impl Stream<Item = Result<Bytes, actix_web::Error>>> {
    let gate = Rc::new(Gate::new(worker.work_queue.clone()));
    let outbox = worker.outbox(&places.0);
    let socket = FrameSocket::new(io, gate.clone(), worker.clone(), outbox.clone());
    let socket = Rc::new(socket);
    let frames = Frames::new(socket.clone(), early);
    let silence_max = conversation.silence_max(worker.limits.idle_timeout);
    let body = WebsocketContext::with_factory(stream::empty(), move |ctx| {
        ctx.add_stream(NewsOf(outbox.clone()));
        let frames = ctx.add_stream(frames);
        let driver = Driver::enter(conversation, outbox, worker);
        WebSocket { driver, gate, frames, is_held: false, inbox: None }
    });
    Pump::new(socket, places, body).with_silence_max(silence_max)
}

impl<C: HeldConversation> WebSocket<C> {
    /// Ends the actor; the pump learns of it from the outbox.
    fn stop(&mut self, ctx: &mut <Self as Actor>::Context) {
        self.driver.outbox().close();
        // The last bytes may take long to write, and none of these messages is handled any more, nor is one that
        // is not complete.
        self.inbox = None;
        ctx.cancel_future(self.frames);
        ctx.stop();
    }

    /// The inbox, which is created on first use.
    fn inbox(&mut self) -> &mut Inbox {
        self.inbox.get_or_insert_with(|| {
            let unfinished = self.driver.worker().sessions.unfinished();
            Box::new(Inbox::new(unfinished.hold(self.driver.outbox().clone())))
        })
    }

    fn look_at(&mut self, inbound: Inbound, ctx: &mut <Self as Actor>::Context) {
        match inbound {
            Inbound::Message(message) => driver::received(self, message, ctx),
            Inbound::Ping(payload) => ctx.pong(&payload),
            Inbound::Close => self.close(CloseCode::ANSWER.into(), ctx),
            Inbound::Broken(code) => {
                debug!("session {} broke the framing: {}", self.driver.session(), code.0);
                self.close(code.into(), ctx);
            }
        }
    }
}

impl<C: HeldConversation> Carrier for WebSocket<C> {
    type Protocol = C;

    fn driver(&mut self) -> &mut Driver<C> {
        &mut self.driver
    }

    fn send(&mut self, frame: Frame, _: &mut Self::Context) {
        self.gate.say(&frame);
    }

    /// Passes the frames to the pump, which writes them as fast as the client reads.
    fn replay(&mut self, of: SubscriptionId, frames: Vec<Frame>, _: &mut Self::Context) {
        self.driver.outbox().replay(of, frames);
    }

    /// Sends a close frame and ends the actor. The pump writes the frame and closes the connection.
    fn close(&mut self, Close { code, reason }: Close, ctx: &mut Self::Context) {
        let code = ws::CloseCode::from(code.0);
        ctx.close(Some(match reason {
            "" => code.into(),
            reason => (code, reason).into(),
        }));
        self.stop(ctx);
    }

    fn silent(&mut self, ctx: &mut Self::Context) {
        let silence = self.gate.silence();
        if silence < self.driver.worker().limits.idle_timeout {
            // The client has sent something meanwhile.
            return;
        }
        match self.driver.patience(silence) {
            Patience::End => driver::end(self, Ending::Idle, ctx),
            Patience::Wait(longer) => self.gate.tolerate(longer, Due::Question),
            Patience::Probe(frame, longer) => {
                self.gate.tolerate(longer, Due::End);
                self.send(frame, ctx);
            }
        }
    }

    fn hold(&mut self) {
        self.is_held = true;
    }

    fn note_joined(&mut self) {
        self.gate.joined();
    }

    /// Handles the waiting messages, until one needs the broker. None is handled once the session has ended.
    fn resume(&mut self, ctx: &mut Self::Context) {
        if ctx.state().stopping() || !mem::take(&mut self.is_held) {
            return;
        }
        while let Some(inbound) = self.inbox.as_mut().and_then(|inbox| inbox.pop()) {
            self.look_at(inbound, ctx);
            if ctx.state().stopping() {
                return;
            }
            if self.is_held {
                if !self.inbox().is_full() {
                    self.gate.open();
                }
                return;
            }
        }
        if self.inbox.take().is_some_and(|inbox| inbox.is_last) {
            return self.stop(ctx);
        }
        self.gate.open();
    }
}

impl<C: HeldConversation> Actor for WebSocket<C> {
    type Context = WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        driver::begin(self, ctx);
    }
}

impl<C: HeldConversation> StreamHandler<Inbound> for WebSocket<C> {
    fn handle(&mut self, inbound: Inbound, ctx: &mut Self::Context) {
        if !self.is_held {
            return self.look_at(inbound, ctx);
        }
        match inbound {
            Inbound::Ping(payload) => ctx.pong(&payload),
            Inbound::Message(message) if driver::answer_meanwhile(self, &message, ctx) => {}
            inbound => {
                let inbox = self.inbox();
                inbox.push(inbound);
                if inbox.is_full() {
                    self.gate.shut();
                }
            }
        }
    }

    /// The client is gone; its earlier messages are still handled.
    fn finished(&mut self, ctx: &mut Self::Context) {
        match self.is_held {
            true => self.inbox().is_last = true,
            false => self.stop(ctx),
        }
    }
}

/// The context requires a stream of bytes; it gets an empty one (see `frames`).
impl<C: HeldConversation> StreamHandler<Result<ws::Message, ws::ProtocolError>> for WebSocket<C> {
    fn handle(&mut self, _: Result<ws::Message, ws::ProtocolError>, _: &mut Self::Context) {}

    /// The end of the empty stream has no meaning.
    fn finished(&mut self, _: &mut Self::Context) {}
}

/// The stream of the broker's messages to the session itself. It registers no waker: the pump sees
/// the next item of the outbox, and polls the actor if that item is news.
struct NewsOf(Arc<Outbox>);

impl Stream for NewsOf {
    type Item = News;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<News>> {
        self.0.take_news().map_or(Poll::Pending, |news| Poll::Ready(Some(news)))
    }
}

impl<C: HeldConversation> StreamHandler<News> for WebSocket<C> {
    fn handle(&mut self, news: News, ctx: &mut Self::Context) {
        driver::heard(self, news, ctx);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{SinkExt, StreamExt};
    use tokio::{
        io::{AsyncWriteExt, DuplexStream},
        task::JoinHandle,
        time::timeout,
    };
    use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

    use super::*;
    use crate::{
        app::AppId,
        broker::{outbox::Load, subscriber::SessionId},
        session::{
            Received,
            testing::{Bench, Client, DEADLINE, limits, text},
            unfinished::Unfinished,
            worker::SessionLimits,
        },
    };

    const PIPE_BYTES: usize = 1 << 20;

    async fn say(client: &mut WebSocketStream<DuplexStream>, orders: &[&str]) {
        for order in orders {
            client.send(Message::text(*order)).await.expect("room");
        }
    }

    async fn hears(client: &mut WebSocketStream<DuplexStream>, expected: &[&str]) {
        for expected in expected {
            assert_eq!(text(client).await, *expected);
        }
    }

    /// A client that has joined, and the task of its session.
    async fn joined(client: Client) -> (WebSocketStream<DuplexStream>, JoinHandle<()>) {
        let (mut client, pump) = client.websocket().await;
        say(&mut client, &["join"]).await;
        hears(&mut client, &["joined"]).await;
        (client, pump)
    }

    /// The next frame is a close frame with this code, and the session ends.
    async fn is_closed_with(
        code: u16,
        mut client: WebSocketStream<DuplexStream>,
        pump: JoinHandle<()>,
    ) {
        let end = timeout(DEADLINE, client.next()).await.expect("in time");
        let end = end.expect("a close frame").expect("a frame");
        let found = match &end {
            Message::Close(Some(frame)) => Some(u16::from(frame.code)),
            _ => None,
        };
        assert_eq!(found, Some(code), "{end}");
        drop(client);
        timeout(DEADLINE, pump).await.expect("an end").expect("no panic");
    }

    #[actix_web::test]
    async fn e070_messages_that_need_not_wait_are_answered_while_a_join_hangs() {
        let bench = Bench::new(limits());
        let standstill = bench.standstill().await;
        let (mut client, _pump) = bench.connect(PIPE_BYTES).websocket().await;
        say(&mut client, &["join", "a", "now 1", "join", "b"]).await;
        hears(&mut client, &["now 1"]).await;
        client.send(Message::Ping("2".into())).await.expect("room");
        let pong = timeout(DEADLINE, client.next()).await.expect("in time");
        assert_eq!(pong.expect("a session").expect("a frame"), Message::Pong("2".into()));
        say(&mut client, &["now 3", "c"]).await;
        hears(&mut client, &["now 3"]).await;
        standstill.release();
        hears(&mut client, &["joined", "a", "joined", "b", "c"]).await;
        say(&mut client, &["d"]).await;
        hears(&mut client, &["d"]).await;
    }

    #[actix_web::test]
    async fn a_session_queues_up_to_its_maximum_and_reads_no_further() {
        for (case, order, waiting, is_answered) in [
            ("fewer than may", "x".to_owned(), INBOX_MESSAGES_MAX - 1, true),
            ("as many as may", "x".to_owned(), INBOX_MESSAGES_MAX, false),
            ("many more", "x".to_owned(), 3 * INBOX_MESSAGES_MAX, false),
            ("as heavy as may be", "x".repeat(INBOX_BYTES_MAX / 4), 4, false),
        ] {
            let bytes = SessionLimits { message_bytes_max: INBOX_BYTES_MAX, ..limits() };
            let unjoined_message_bytes_max = INBOX_BYTES_MAX;
            let bench = Bench::new(SessionLimits { unjoined_message_bytes_max, ..bytes });
            let standstill = bench.standstill().await;
            let (mut client, _pump) = bench.connect(PIPE_BYTES).websocket().await;
            let orders = vec![order.as_str(); waiting];
            say(&mut client, &["join"]).await;
            say(&mut client, &orders).await;
            say(&mut client, &["now"]).await;
            if is_answered {
                hears(&mut client, &["now"]).await;
            }
            standstill.release();
            // A message that was not read could not be answered ahead of its turn.
            hears(&mut client, &["joined"]).await;
            hears(&mut client, &orders).await;
            if !is_answered {
                assert_eq!(text(&mut client).await, "now", "{case}");
            }
        }
    }

    #[actix_web::test]
    async fn a_client_that_is_not_read_from_does_not_count_as_silent() {
        let idle_timeout = Duration::from_millis(200);
        let bench = Bench::new(SessionLimits { idle_timeout, ..limits() });
        let standstill = bench.standstill().await;
        let (mut client, _pump) = bench.connect(PIPE_BYTES).websocket().await;
        let orders = vec!["x"; INBOX_MESSAGES_MAX];
        say(&mut client, &["join"]).await;
        say(&mut client, &orders).await;
        say(&mut client, &["unread"]).await;
        tokio::time::sleep(4 * idle_timeout).await;
        standstill.release();
        hears(&mut client, &["joined"]).await;
        hears(&mut client, &orders).await;
        hears(&mut client, &["unread"]).await;
    }

    #[test]
    fn a_waiting_message_does_not_keep_the_buffer_from_which_it_was_read() {
        let read = Bytes::from(b"text bytes and much more".to_vec());
        let text = read.slice(..4).try_into().expect("UTF-8");
        let (bytes, ping) = (read.slice(5..10), read.slice(11..14));
        let unfinished = Unfinished::new(1_000);
        let outbox = Outbox::new(SessionId(1), Load::default());
        let mut inbox = Inbox::new(unfinished.hold(outbox.clone()));
        for (inbound, size_bytes) in [
            (Inbound::Message(Received::Text(text)), 4),
            (Inbound::Message(Received::Binary(bytes)), 9),
            (Inbound::Ping(ping), 12),
            (Inbound::Close, 12),
        ] {
            inbox.push(inbound);
            assert_eq!(inbox.bytes, size_bytes);
        }
        assert!(read.is_unique());
        let all: Vec<_> = std::iter::from_fn(|| inbox.pop()).collect();
        let expected = [
            Inbound::Message(Received::Text("text".into())),
            Inbound::Message(Received::Binary(Bytes::from_static(b"bytes"))),
            Inbound::Ping(Bytes::from_static(b"and")),
            Inbound::Close,
        ];
        assert_eq!(all, expected);
    }

    #[actix_web::test]
    async fn messages_before_the_end_are_carried_out_however_the_session_ends() {
        for is_polite in [true, false] {
            let bench = Bench::new(limits());
            let standstill = bench.standstill().await;
            let (mut listener, _pump) = bench.connect(PIPE_BYTES).websocket().await;
            say(&mut listener, &["join", "now"]).await;
            hears(&mut listener, &["now"]).await;
            let (mut leaver, pump) = bench.connect(PIPE_BYTES).websocket().await;
            say(&mut leaver, &["join", "publish", "publish", "now"]).await;
            hears(&mut leaver, &["now"]).await;
            // Only the reading half is closed: a client to which nothing can be written any more is
            // dropped at once.
            match is_polite {
                true => leaver.close(None).await.expect("an open socket"),
                false => leaver.get_mut().shutdown().await.expect("an open pipe"),
            }
            standstill.release();
            hears(&mut listener, &["joined", "{}", "{}"]).await;
            timeout(DEADLINE, pump).await.expect("it ends, too").expect("no panic");
        }
    }

    #[actix_web::test]
    async fn e069_e109_no_answer_overtakes_the_client_s_own_publications_and_no_leave_drops_them() {
        let bench = Bench::new(limits());
        let (mut client, pump) = joined(bench.connect(PIPE_BYTES)).await;
        for (last, answers) in [("a", vec!["a"]), ("leave", vec![]), ("close", vec![])] {
            say(&mut client, &["join"]).await;
            hears(&mut client, &["joined"]).await;
            let standstill = bench.standstill().await;
            say(&mut client, &["publish", "publish", last, "now"]).await;
            hears(&mut client, &["now"]).await;
            standstill.release();
            hears(&mut client, &["{}", "{}"]).await;
            hears(&mut client, &answers).await;
        }
        is_closed_with(1011, client, pump).await;
    }

    #[actix_web::test]
    async fn a_join_behind_the_clients_own_publications_is_answered_before_later_messages() {
        let bench = Bench::new(limits());
        let (mut client, _pump) = joined(bench.connect(PIPE_BYTES)).await;
        let standstill = bench.standstill().await;
        say(&mut client, &["publish", "join", "a", "now"]).await;
        hears(&mut client, &["now"]).await;
        standstill.release();
        hears(&mut client, &["{}", "joined", "a"]).await;
    }

    #[actix_web::test]
    async fn a_leave_that_waits_is_carried_out_before_a_change_of_the_app_is_handled() {
        let bench = Bench::new(limits());
        let client = bench.connect(PIPE_BYTES);
        let outbox = client.outbox.clone();
        let (mut client, _pump) = joined(client).await;
        let standstill = bench.standstill().await;
        say(&mut client, &["publish", "leave", "now 1"]).await;
        hears(&mut client, &["now 1"]).await;
        outbox.tell(News::AppChanged(AppId(1)));
        say(&mut client, &["now 2", "a"]).await;
        hears(&mut client, &["now 2"]).await;
        standstill.release();
        // Its own publication would be next if the session had not left before.
        hears(&mut client, &["a"]).await;
    }

    #[actix_web::test]
    async fn nothing_is_answered_behind_a_close_that_waits_for_the_clients_own_publications() {
        let bench = Bench::new(limits());
        let (mut client, pump) = joined(bench.connect(PIPE_BYTES)).await;
        let standstill = bench.standstill().await;
        say(&mut client, &["publish", "close", "a", "now"]).await;
        hears(&mut client, &["now"]).await;
        standstill.release();
        hears(&mut client, &["{}"]).await;
        is_closed_with(1011, client, pump).await;
    }

    #[actix_web::test]
    async fn a_message_that_closes_ends_the_session_whatever_waits_behind_it() {
        let bench = Bench::new(limits());
        let standstill = bench.standstill().await;
        let (mut client, pump) = bench.connect(PIPE_BYTES).websocket().await;
        say(&mut client, &["join", "close", "a", "panic", "now"]).await;
        hears(&mut client, &["now"]).await;
        standstill.release();
        hears(&mut client, &["joined"]).await;
        is_closed_with(1011, client, pump).await;
    }
}
