//! The helpers that the tests of this room share: the parts of a worker thread, sessions over
//! pipes, and a protocol whose messages say what it does.

use std::{
    borrow::Cow,
    rc::Rc,
    sync::{Arc, mpsc},
    time::Duration,
};

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
    Close, CloseCode, Conversation, Effect, Farewell, Patience, Received,
    bucket::PerSecond,
    connection::ConnectionSlot,
    frame_socket::SocketTransport,
    unfinished::Unfinished,
    websocket,
    worker::{Admission, SessionCounter, SessionLimits, Worker},
};
use crate::{
    app::{AppDirectory, AppId},
    broker::{
        ChannelName, Destination, EventName, JsonObject, Payload, Publication, PublicationOrigin,
        PublishError, Scope, Topics,
        outbox::{Ending, Outbox},
        presence::{Meta, Persona},
        subscriber::{
            ChangeFrame, Delivery, Disconnect, Encoders, Format, Frame, Joined, Place, ScopeKey,
            SessionId, SubscribeError, Subscription,
        },
        testing::{HISTORY_OFF, LAST_EVENTS},
        topics::TopicLimits,
        users::ONLINE_INTERVAL,
    },
    engine::Engine,
    metrics::{
        Metrics,
        labels::{ProtocolVersion, SessionKind, Transport},
    },
};

/// The time that anything may take before a test fails.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

impl SocketTransport for DuplexStream {
    fn give_up(&self) {}

    fn unread_bytes(&self) -> u64 {
        0
    }

    fn write_at_once(&self, _: [&[u8]; 2]) -> usize {
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
    pub(super) sessions: SessionCounter,
    pub(super) topics: Topics,
}

impl Bench {
    pub(super) fn new(limits: SessionLimits) -> Self {
        Self::sharing(Unfinished::new(1 << 30), limits)
    }

    /// A bench whose sessions share this budget of unfinished work.
    pub(super) fn sharing(unfinished: Unfinished, limits: SessionLimits) -> Self {
        Self::start_with(Topics::new, unfinished, limits, DEADLINE)
    }

    /// A bench whose broker may take this long to answer, and tracks one member of each channel.
    pub(super) fn waiting(wait_max: Duration) -> Self {
        let of_topics = |of, apps, metrics| {
            Topics::new(TopicLimits { presence_members_max: 1, ..of }, apps, metrics)
        };
        Self::start_with(of_topics, Unfinished::new(1 << 30), limits(), wait_max)
    }

    /// A bench with this limit on the bytes that wait for all sessions together.
    pub(super) fn with_backlog_of(outboxes_bytes_max: usize, limits: SessionLimits) -> Self {
        let of_topics = |of, apps, metrics| {
            Topics::new(TopicLimits { outboxes_bytes_max, ..of }, apps, metrics)
        };
        Self::start_with(of_topics, Unfinished::new(1 << 30), limits, DEADLINE)
    }

    /// The bench of a node of a cluster.
    pub(super) fn of_node(engine: Arc<dyn Engine>, limits: SessionLimits) -> Self {
        let of_topics = |limits, apps, metrics| Topics::of_node(limits, apps, metrics, engine);
        Self::start_with(of_topics, Unfinished::new(1 << 30), limits, DEADLINE)
    }

    fn start_with(
        topics: impl FnOnce(TopicLimits, AppDirectory, Arc<Metrics>) -> Topics,
        unfinished: Unfinished,
        limits: SessionLimits,
        wait_max: Duration,
    ) -> Self {
        let of_topics = TopicLimits {
            outboxes_bytes_max: 1 << 30,
            publications_in_flight_max: 64,
            scopes_per_app_max: 4,
            presence_members_max: 4,
            idempotency_keys_max: 4,
            presence_interval: Duration::from_millis(5),
            online_interval: ONLINE_INTERVAL,
            wait_max,
            history: HISTORY_OFF,
            last_events: LAST_EVENTS,
        };
        let metrics = Metrics::new(10);
        let topics = topics(of_topics, AppDirectory::default(), metrics.clone());
        let sessions = SessionCounter::new(100, unfinished, metrics);
        let worker = Worker::start(topics.clone(), limits, sessions.clone(), |_| {});
        Self { worker, sessions, topics }
    }

    /// Starts a session over a pipe that holds this many bytes each way.
    pub(super) fn connect(&self, pipe_bytes: usize) -> Client {
        self.connect_with(Obedient::default(), pipe_bytes)
    }

    /// Starts a session with a conversation that is patient from the beginning.
    pub(super) fn connect_patient(&self, pipe_bytes: usize) -> Client {
        self.connect_with(Obedient { is_patient: true, ..Obedient::default() }, pipe_bytes)
    }

    fn connect_with(&self, conversation: Obedient, pipe_bytes: usize) -> Client {
        let (near, far) = duplex(pipe_bytes);
        let conversation: Box<dyn Conversation> = Box::new(conversation);
        let places = self.places();
        let pump =
            websocket::start(far, BytesMut::new(), conversation, places, self.worker.clone());
        let outbox = pump.outbox().clone();
        Client { near, pump: tokio::task::spawn_local(pump), outbox }
    }

    /// The places of another connection.
    pub(super) fn places(&self) -> (Admission, ConnectionSlot) {
        let admission = self.sessions.admit().expect("room for a session");
        (admission, ConnectionSlot::take(&Arc::default()))
    }

    /// Keeps the fan-out of the thread from its messages until it is released: a client that joins
    /// meanwhile gets no answer.
    pub(super) async fn standstill(&self) -> Standstill {
        let (release, held) = oneshot::channel();
        self.worker.fanout().stall(held).await;
        Standstill(release)
    }

    /// Places trackers on a thread on which nothing runs until the sender is used or dropped.
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

    /// Publishes to every session that sent `join`.
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

/// The client's end of a session's pipe, and the session's task and outbox.
pub(super) struct Client {
    pub(super) near: DuplexStream,
    pub(super) pump: JoinHandle<()>,
    pub(super) outbox: Arc<Outbox>,
}

impl Client {
    /// A WebSocket client on this end, and the task of the session.
    pub(super) async fn websocket(self) -> (WebSocketStream<DuplexStream>, JoinHandle<()>) {
        (WebSocketStream::from_raw_socket(self.near, Role::Client, None).await, self.pump)
    }

    /// Reads exactly this many bytes.
    pub(super) async fn next_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = timeout(DEADLINE, self.near.read_exact(&mut bytes)).await;
        read.expect("so many in time").expect("an open pipe");
        bytes
    }

    /// Reads until the session closes the connection, without ever answering.
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

/// The time that a patient conversation waits each time.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// A protocol of commands: `join`, `enter`, `enter other`, `leave`, `publish`, `panic`, `close`; anything else is
/// echoed, and a message that begins with `now` at once. `patient` has it wait when the client is
/// silent, then probe.
#[derive(Default)]
pub(super) struct Obedient {
    is_patient: bool,
    has_waited: bool,
}

impl Conversation for Obedient {
    fn begun(&mut self, _: SessionId, _: f64) -> Vec<Effect> {
        Vec::new()
    }

    fn received(&mut self, message: Received, _: f64) -> Vec<Effect> {
        let Received::Text(text) = message else { return Vec::new() };
        match &*text {
            "join" => vec![Effect::Subscribe(Subscription {
                place: place(),
                topic: "everything".into(),
                format: FORMAT,
                persona: None,
                user: None,
                wanted: None,
            })],
            "enter" => vec![enter("room")],
            "enter other" => vec![enter("other")],
            "leave" => vec![Effect::Unsubscribe(place(), "everything".into())],
            "publish" => vec![Effect::Publish(publication("{}"))],
            "patient" => {
                self.is_patient = true;
                Vec::new()
            }
            "panic" => panic!("as told"),
            "close" => vec![Effect::Close(CloseCode::INTERNAL.into())],
            _ => vec![Effect::Send(Frame::Text(text))],
        }
    }

    fn meanwhile(&self, message: &Received) -> Option<Frame> {
        match message {
            Received::Text(text) if text.starts_with("now") => Some(Frame::Text(text.clone())),
            _ => None,
        }
    }

    fn subscribed(&mut self, outcome: Result<Joined, SubscribeError>, _: f64) -> Vec<Effect> {
        let answer = if outcome.is_ok() { "joined" } else { "refused" };
        vec![Effect::Send(Frame::Text(answer.into()))]
    }

    fn answered(&mut self, outcome: Result<(), PublishError>, _: f64) -> Vec<Effect> {
        let refusal = outcome.err().map(|_| Effect::Send(Frame::Text("refused".into())));
        refusal.into_iter().collect()
    }

    fn app_changed(&mut self, _: AppId, _: f64) -> Vec<Effect> {
        Vec::new()
    }

    fn disconnected(&mut self, _: &Disconnect) -> (Vec<Effect>, usize) {
        (vec![Effect::Send(Frame::Text("disconnected".into()))], 1)
    }

    fn silent(&mut self, _: Duration) -> Patience {
        match (self.is_patient, std::mem::replace(&mut self.has_waited, self.is_patient)) {
            (false, _) => Patience::End,
            (true, false) => Patience::Wait(PATIENCE),
            (true, true) => Patience::Probe(Frame::Text("are you there?".into()), PATIENCE),
        }
    }

    fn silence_max(&self, idle_timeout: Duration) -> Duration {
        idle_timeout + if self.is_patient { 2 * PATIENCE } else { Duration::ZERO }
    }

    fn farewell(&mut self, ending: Ending) -> Farewell {
        let last = self.is_patient.then(|| Frame::Text("farewell".into()));
        let reason = if self.is_patient { "gone" } else { "" };
        Farewell { last, close: Close { code: code(ending), reason } }
    }

    fn kind(&self) -> SessionKind {
        SessionKind { transport: Transport::WebSocket, version: ProtocolVersion::V2 }
    }

    fn address(&self) -> std::net::IpAddr {
        std::net::Ipv4Addr::LOCALHOST.into()
    }
}

fn code(ending: Ending) -> CloseCode {
    match ending {
        Ending::Idle => CloseCode::GOING_AWAY,
        Ending::SlowMessage | Ending::TooManyFrames => CloseCode::POLICY,
        Ending::Unfinished => CloseCode::TOO_BIG,
        Ending::Shutdown => CloseCode::RESTART,
        Ending::Broken => CloseCode::INTERNAL,
        _ => CloseCode::TRY_LATER,
    }
}

const FORMAT: Format = Format::of(&Encoders {
    slot: 0,
    roster_slot: 0,
    has_event: |_| true,
    carry: |json, _, _| Cow::Borrowed(json),
    encode,
    tail_bytes: None,
    encode_bytes: None,
    encode_position: None,
    encode_count: None,
    positions_follow_json: false,
    begins_with_last_event: false,
    spell_members: |members| format!("members: {}", members.iter().count()).into(),
    encode_change: |_, change| {
        vec![ChangeFrame { frame: Frame::Text(format!("{change:?}").into()), except: Vec::new() }]
    },
});

fn encode(delivery: &Delivery<'_, str>) -> Option<Frame> {
    Some(Frame::Text(ByteString::from(delivery.payload)))
}

fn publication(payload: &str) -> Publication {
    let Place { key: ScopeKey { app, scope }, .. } = place();
    let event = EventName::parse("e").expect("an event's name");
    let payload = Payload::from(JsonObject::parse(payload).expect("a payload"));
    let (destination, origin) = (Destination::General, PublicationOrigin::Session { user: None });
    Publication { app, scope, destination, event, payload, origin, except: None }
}

/// Joins a channel, to be tracked there.
fn enter(channel: &str) -> Effect {
    let place = Place { channel: ChannelName::parse(channel).ok(), ..place() };
    Effect::Subscribe(Subscription {
        place,
        topic: channel.into(),
        format: FORMAT,
        persona: Some(Persona { key: "k".into(), meta: Meta::default() }),
        user: None,
        wanted: None,
    })
}

/// The place that `join` joins.
pub(super) fn place() -> Place {
    let scope = Scope::parse("public").expect("a scope");
    Place { key: ScopeKey { app: AppId(1), scope }, channel: None }
}
