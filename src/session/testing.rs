//! What the tests of this room share: a worker thread's parts, sessions over pipes, and a protocol
//! that does as it is told.

use std::{rc::Rc, sync::mpsc, time::Duration};

use actix::Arbiter;
use actix_http::ws::{Codec, Message};
use bytes::BytesMut;
use bytestring::ByteString;
use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, DuplexStream, duplex},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

use super::{
    CloseCode, Conversation, Effect, Failure, Received,
    bucket::PerSecond,
    pump::Transport,
    unfinished::Unfinished,
    websocket,
    worker::{SessionLimits, Sessions, Worker},
};
use crate::{
    app::{AppDirectory, AppId},
    broker::{
        ChannelName, Destination, EventName, JsonObject, Payload, Publication, Scope, Topics,
        presence::Persona,
        subscriber::{Delivery, Disconnect, Format, Frame, Joined, Place, ScopeKey, Subscription},
        testing::HISTORY_OFF,
        topics::TopicLimits,
    },
    metrics::{
        Metrics,
        labels::{SessionKind, Transport as Carried, Version},
    },
};

/// How long anything may take before a test fails.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

impl Transport for DuplexStream {
    fn give_up(&self) {}

    fn unread_bytes(&self) -> u64 {
        0
    }
}

/// Roomy limits; a test tightens the one that it is about.
pub(super) fn limits() -> SessionLimits {
    SessionLimits {
        message_bytes_max: 1_000,
        unjoined_message_bytes_max: 1_000,
        message_timeout: Duration::from_secs(60),
        frames_per_second_max: PerSecond(1_000_000),
        outbox_frames_max: 1_024,
        outbox_bytes_max: 1_000_000,
        idle_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(60),
    }
}

/// A broker and the calling thread as its only worker.
pub(super) struct Bench {
    pub(super) worker: Rc<Worker>,
    pub(super) sessions: Sessions,
    pub(super) topics: Topics,
}

impl Bench {
    pub(super) fn new(limits: SessionLimits) -> Self {
        Self::sharing(Unfinished::new(1 << 30), limits)
    }

    /// One whose sessions share this budget of unfinished work.
    pub(super) fn sharing(unfinished: Unfinished, limits: SessionLimits) -> Self {
        Self::start(unfinished, limits, DEADLINE)
    }

    /// One whose broker may take so long to answer.
    pub(super) fn waiting(wait_max: Duration) -> Self {
        Self::start(Unfinished::new(1 << 30), limits(), wait_max)
    }

    fn start(unfinished: Unfinished, limits: SessionLimits, wait_max: Duration) -> Self {
        let of_topics = TopicLimits {
            outboxes_bytes_max: 1 << 30,
            publications_in_flight_max: 64,
            scopes_per_app_max: 4,
            presence_members_max: 4,
            idempotency_keys_max: 4,
            presence_interval: Duration::from_millis(5),
            wait_max,
            history: HISTORY_OFF,
        };
        let metrics = Metrics::new(10);
        let topics = Topics::new(of_topics, AppDirectory::default(), metrics.clone());
        let sessions = Sessions::new(100, unfinished, metrics);
        let worker = Worker::start(topics.clone(), limits, sessions.clone(), |_| {});
        Self { worker, sessions, topics }
    }

    /// Starts a session over a pipe that holds this many bytes each way.
    pub(super) fn connect(&self, pipe_bytes: usize) -> Client {
        let (near, far) = duplex(pipe_bytes);
        let admission = self.sessions.admit().expect("room for a session");
        let pump = websocket::start(far, BytesMut::new(), Obedient, admission, self.worker.clone());
        Client { near, pump: tokio::task::spawn_local(pump) }
    }

    /// Keeps the fan-out of the thread from its messages until it is released: whoever joins
    /// meanwhile gets no answer.
    pub(super) async fn standstill(&self) -> Standstill {
        let (release, held) = oneshot::channel();
        self.worker.fanout().stall(held).await;
        Standstill(release)
    }

    /// Has trackers live on a thread on which nothing happens until the sender is told or dropped.
    pub(super) async fn stall_trackers(&self) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel();
        let (ready, is_ready) = oneshot::channel();
        let topics = self.topics.clone();
        Arbiter::new().spawn_fn(move || {
            topics.place_here_only();
            ready.send(()).expect("the test waits");
            held.recv().ok();
        });
        is_ready.await.expect("a thread");
        release
    }

    /// Publishes to everyone who said `join`.
    pub(super) async fn publish(&self, payload: &str) {
        self.topics.publish(publication(payload)).await.expect("to be taken");
    }
}

/// A fan-out that hands out and answers nothing.
pub(super) struct Standstill(oneshot::Sender<()>);

impl Standstill {
    /// Lets it go on.
    pub(super) fn release(self) {
        self.0.send(()).expect("a fan-out that waits");
    }
}

/// The far end of a session, in bytes.
pub(super) struct Client {
    pub(super) near: DuplexStream,
    pub(super) pump: JoinHandle<()>,
}

impl Client {
    /// A WebSocket client on this end, and the task of the session.
    pub(super) async fn websocket(self) -> (WebSocketStream<DuplexStream>, JoinHandle<()>) {
        (WebSocketStream::from_raw_socket(self.near, Role::Client, None).await, self.pump)
    }

    /// Reads just so many bytes.
    pub(super) async fn next_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = timeout(DEADLINE, self.near.read_exact(&mut bytes)).await;
        read.expect("so many in time").expect("an open pipe");
        bytes
    }

    /// Reads all there is until the session hangs up, without ever answering.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = timeout(DEADLINE, self.near.read_to_end(&mut bytes)).await;
        read.expect("the session hangs up in time").expect("a pipe does not fail");
        bytes
    }
}

/// The next message's text.
pub(super) async fn text(socket: &mut WebSocketStream<DuplexStream>) -> String {
    let next = timeout(DEADLINE, socket.next()).await.expect("a message in time");
    let message = next.expect("an open socket").expect("a whole message");
    message.into_text().expect("text").as_str().to_owned()
}

/// A close frame from the server, as bytes.
pub(super) fn close_frame(code: CloseCode) -> Vec<u8> {
    [&[0x88, 2][..], &code.0.to_be_bytes()].concat()
}

/// A client's message as bytes.
pub(super) fn masked(message: Message) -> Vec<u8> {
    use actix_codec::Encoder;
    let mut bytes = BytesMut::new();
    Codec::new().client_mode().encode(message, &mut bytes).expect("a frame");
    bytes.to_vec()
}

/// A protocol of orders: `join`, `enter`, `leave`, `publish`, `panic`, `close`; anything else comes back, and
/// what begins with `now` at once.
pub(super) struct Obedient;

impl Conversation for Obedient {
    fn received(&mut self, message: Received, _: f64) -> Vec<Effect> {
        let Received::Text(text) = message else { return Vec::new() };
        match &*text {
            "join" => vec![Effect::Subscribe(Subscription {
                place: place(),
                topic: "everything".into(),
                format: FORMAT,
                persona: None,
                wanted: None,
            })],
            "enter" => vec![Effect::Subscribe(Subscription {
                place: room(),
                topic: "room".into(),
                format: FORMAT,
                persona: Some(Persona { key: "k".into(), meta: JsonObject::empty() }),
                wanted: None,
            })],
            "leave" => vec![Effect::Unsubscribe(place(), "everything".into())],
            "publish" => vec![Effect::Publish(publication("{}"))],
            "panic" => panic!("as told"),
            "close" => vec![Effect::Close(CloseCode::INTERNAL)],
            _ => vec![Effect::Send(Frame::Text(text))],
        }
    }

    fn meanwhile(&self, message: &Received) -> Option<Frame> {
        match message {
            Received::Text(text) if text.starts_with("now") => Some(Frame::Text(text.clone())),
            _ => None,
        }
    }

    fn subscribed(&mut self, outcome: Result<Joined, Failure>, _: f64) -> Vec<Effect> {
        let answer = if outcome.is_ok() { "joined" } else { "refused" };
        vec![Effect::Send(Frame::Text(answer.into()))]
    }

    fn answered(&mut self, outcome: Result<(), Failure>, _: f64) -> Vec<Effect> {
        let answer = if outcome.is_ok() { "done" } else { "refused" };
        vec![Effect::Send(Frame::Text(answer.into()))]
    }

    fn app_changed(&mut self, _: AppId, _: f64) -> Vec<Effect> {
        Vec::new()
    }

    fn disconnected(&mut self, _: &Disconnect) -> (Vec<Effect>, usize) {
        (vec![Effect::Send(Frame::Text("disconnected".into()))], 1)
    }

    fn kind(&self) -> SessionKind {
        SessionKind { transport: Carried::WebSocket, version: Version::V2 }
    }
}

const FORMAT: Format = Format {
    slot: 0,
    encode,
    tail_bytes: None,
    encode_bytes: None,
    encode_position: None,
    spell_members: |members| format!("members: {}", members.iter().count()).into(),
    encode_change: |_, change| Frame::Text(format!("{change:?}").into()),
};

fn encode(delivery: &Delivery<'_, str>) -> Frame {
    Frame::Text(ByteString::from(delivery.payload))
}

fn publication(payload: &str) -> Publication {
    let Place { key: ScopeKey { app, scope }, .. } = place();
    let event = EventName::parse("e").expect("an event's name");
    let payload = Payload::Object(JsonObject::parse(payload).expect("a payload"));
    Publication { app, scope, destination: Destination::General, event, payload }
}

/// What `enter` joins, to be tracked there.
fn room() -> Place {
    Place { channel: Some(ChannelName::parse("room").expect("a channel")), ..place() }
}

/// What `join` joins.
pub(super) fn place() -> Place {
    let scope = Scope::parse("public").expect("a scope");
    Place { key: ScopeKey { app: AppId(1), scope }, channel: None }
}
