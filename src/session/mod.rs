//! Sessions: one for each connected client, in any protocol.
//!
//! This room is the interface between protocols and the broker. A protocol is a [`Conversation`]: a
//! state machine without I/O, clock or tasks, which turns the messages of a client into
//! [`Effect`]s. Two transports drive it, [`websocket`] and [`long_poll`], through the same
//! [`driver`]. The rules of a protocol can therefore be tested as tables, and the two transports
//! cannot disagree. A conversation may send first, decides whether a session with a silent client
//! continues, and has its own close codes.
//!
//! The bytes of plain HTTP requests go through `requests`, which passes one request at a time to the HTTP
//! server.
//!
//! For a WebSocket, [`upgrade`] takes the bare socket from the HTTP server, `frames` reads it, the
//! [`websocket`] actor turns effects into frames. `pump` writes these frames, and `frame_socket` those of the broker.
//! `docs/performance.md` shows the costs of a session, which keeps nothing of the HTTP connection from
//! which it came.

pub mod answer;
pub mod body;
pub mod bucket;
pub mod client;
pub mod connection;
mod driver;
mod expect;
mod frame_socket;
mod frames;
mod gate;
pub mod listener;
pub mod long_poll;
mod pace;
pub mod path;
pub mod places;
pub mod public_id;
mod pump;
pub mod requests;
#[cfg(test)]
mod testing;
pub mod unfinished;
pub mod upgrade;
mod websocket;
pub mod worker;

use std::{net::IpAddr, ops::DerefMut, time::Duration};

use bytes::Bytes;
use bytestring::ByteString;

use crate::{
    app::AppId,
    broker::{
        JsonText, Publication, PublishError,
        outbox::Ending,
        subscriber::{Disconnect, Frame, Joined, Place, SessionId, SubscribeError, Subscription},
        users::SignedIn,
    },
    metrics::labels::SessionKind,
};

/// The code that tells why a socket is closed (RFC 6455, section 7.4). Protocols may have their own
/// codes from 4000 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// The client closed first.
    pub const ANSWER: Self = Self(1000);
    /// The server ends the session, because the session is idle or no longer allowed.
    pub const GOING_AWAY: Self = Self(1001);
    /// The framing is broken.
    pub const PROTOCOL: Self = Self(1002);
    /// Text that is not UTF-8.
    pub const NOT_UTF8: Self = Self(1007);
    /// A message of the client took too long to arrive, or the client sends too many frames.
    pub const POLICY: Self = Self(1008);
    /// A message beyond the limit.
    pub const TOO_BIG: Self = Self(1009);
    /// A message that cannot be read, or an error of the server.
    pub const INTERNAL: Self = Self(1011);
    /// The server restarts.
    pub const RESTART: Self = Self(1012);
    /// The client does not keep up with the frames that it is sent, or sends more messages than may wait.
    pub const TRY_LATER: Self = Self(1013);
}

/// The content of a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// The code.
    pub code: CloseCode,
    /// The reason as text; empty where the protocol has none.
    pub reason: &'static str,
}

impl From<CloseCode> for Close {
    fn from(code: CloseCode) -> Self {
        Self { code, reason: "" }
    }
}

/// The last frames that a conversation sends to its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Farewell {
    /// The last message.
    pub last: Option<Frame>,
    /// The close frame.
    pub close: Close,
}

/// The decision about a session whose client is silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Patience {
    /// The session ends.
    End,
    /// The client may be silent for this time longer. Then the conversation is asked again.
    Wait(Duration),
    /// The client is sent this frame, and the session ends unless the client sends anything within
    /// this time.
    Probe(Frame, Duration),
}

/// A whole message from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A text message, which is valid UTF-8.
    Text(ByteString),
    /// A binary message.
    Binary(Bytes),
}

impl Received {
    /// The size of the message in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// An action that a conversation requests. Actions are carried out in order.
///
/// [`Effect::Subscribe`] is answered through [`Conversation::subscribed`], [`Effect::Publish`] and
/// [`Effect::Update`] are answered through [`Conversation::answered`], before anything else is
/// received. These three effects come last among the effects of one call. Between an effect and its
/// answer an app may change.
#[derive(Debug)]
pub enum Effect {
    /// Write this to the client, after its own publications.
    Send(Frame),
    /// Write this to the client at once, because it concerns no topic.
    SendAhead(Frame),
    /// Write the frames that follow the answer to a join.
    Replay(Replay),
    /// Subscribe to a topic.
    Subscribe(Subscription),
    /// End the subscription to a place under this name, which is the topic of its [`Subscription`].
    Unsubscribe(Place, ByteString),
    /// Publish.
    Publish(Publication),
    /// Change the custom data of the session's member at this place.
    Update(Place, JsonText),
    /// Sign the session in as a user, or change the watched users of a session that is signed in.
    /// The client is sent the watched users that are online, and later changes among them.
    SignIn(SignedIn),
    /// Call [`Conversation::reminded`] after this time.
    Remind(Duration),
    /// Close the connection; nothing is sent after.
    Close(Close),
}

impl Effect {
    /// Returns whether this effect would reach the client ahead of its own publications if they are still on
    /// their way, or would drop them.
    fn overtakes(&self) -> bool {
        matches!(self, Self::Send(_) | Self::Subscribe(_) | Self::Unsubscribe(..) | Self::Close(_))
    }

    /// Returns whether the client's next message waits until the broker has answered this effect.
    fn holds(&self) -> bool {
        matches!(self, Self::Subscribe(_) | Self::Publish(_) | Self::Update(..))
    }
}

/// The frames that follow the answer to a join: those of the history, then the members of the
/// channel.
#[derive(Debug)]
pub struct Replay {
    /// The place that was joined.
    pub place: Place,
    /// The name by which it was joined.
    pub topic: ByteString,
    /// The frames of the history; sessions share them.
    pub frames: Vec<Frame>,
    /// The members of the channel, if the session is tracked.
    pub members: Option<Frame>,
}

/// A wire protocol's side of one connection. Unix time in seconds is passed in.
pub trait Conversation: 'static {
    /// Called with the session's id when the session has begun. The effects may send the client its first
    /// frames.
    fn begun(&mut self, session: SessionId, now_s: f64) -> Vec<Effect>;

    /// Called for each message of the client.
    fn received(&mut self, message: Received, now_s: f64) -> Vec<Effect>;

    /// The answer to a message that arrives while the broker still works on an earlier one. `None` if the
    /// message must wait for its turn.
    fn meanwhile(&self, message: &Received) -> Option<Frame>;

    /// Called with the broker's answer to the last [`Effect::Subscribe`]. The frames that are sent here precede
    /// all frames of the join.
    fn subscribed(&mut self, outcome: Result<Joined, SubscribeError>, now_s: f64) -> Vec<Effect>;

    /// Called with the broker's answer to the last [`Effect::Publish`] or [`Effect::Update`].
    fn answered(&mut self, outcome: Result<(), PublishError>, now_s: f64) -> Vec<Effect>;

    /// Called when an app was changed or deleted: joins that its new state does not allow must end.
    fn app_changed(&mut self, app: AppId, now_s: f64) -> Vec<Effect>;

    /// Called when an app ends some of its joins. Returns the effects, and the number of joins of this session
    /// that end, which may be zero.
    fn disconnected(&mut self, disconnect: &Disconnect) -> (Vec<Effect>, usize);

    /// Called when publications to a place may be missing: its joins must end, so that the client rejoins and
    /// learns of the gap. Other joins continue.
    fn interrupted(&mut self, place: &Place) -> Vec<Effect> {
        self.disconnected(&Disconnect::Place(place.clone())).0
    }

    /// Called when the client has sent nothing for this time, which is at least the idle timeout. It is called
    /// for WebSockets only, and not while a write is stuck: then [`Conversation::silence_max`] decides.
    fn silent(&mut self, lasted: Duration) -> Patience;

    /// The longest silence after which the session of a client that is stuck in a write ends, given the idle
    /// timeout. It includes the time for the answer to a probe, because such a client cannot be probed.
    fn silence_max(&self, idle_timeout: Duration) -> Duration {
        idle_timeout
    }

    /// Called when the time of an [`Effect::Remind`] is over.
    fn reminded(&mut self, _now_s: f64) -> Vec<Effect> {
        Vec::new()
    }

    /// The last frames of a session that ends for this reason.
    fn farewell(&mut self, ending: Ending) -> Farewell;

    /// The app to which the whole connection belongs, in protocols whose connections belong to one app. The
    /// session learns of changes of this app even before it has joined anything.
    fn app(&self) -> Option<AppId> {
        None
    }

    /// The protocol version and the transport, as labels of metrics.
    fn kind(&self) -> SessionKind;

    /// The client's address, as far as it is known.
    fn address(&self) -> IpAddr;
}

/// A pointer to a conversation, as a session keeps it.
pub trait HeldConversation: DerefMut<Target = dyn Conversation> + Unpin + 'static {}

impl<C: DerefMut<Target = dyn Conversation> + Unpin + 'static> HeldConversation for C {}
