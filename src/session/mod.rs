//! Sessions: one connected client each, whatever it speaks.
//!
//! This is the narrow waist. A protocol is a [`Conversation`]: a state machine without I/O, clock or
//! tasks, which turns what a client sends into [`Effect`]s. Two transports drive it, [`websocket`]
//! and [`long_poll`], through the same [`driver`]. The rules of a protocol are thereby tables to
//! test, and the two transports cannot disagree.
//!
//! How a request's bytes travel: `requests` hands one at a time to the HTTP server.
//!
//! How a WebSocket's bytes travel: [`upgrade`] takes the bare socket from the HTTP server, `frames`
//! reads it, the [`websocket`] actor turns effects into frames, `pump` writes them, and those that
//! the broker has for it. What a session costs stands in `docs/performance.md`; nothing of the HTTP
//! connection it came from survives.

pub mod answer;
pub mod body;
pub mod bucket;
pub mod client;
pub mod connection;
mod driver;
mod expect;
mod frames;
pub mod listener;
pub mod long_poll;
mod pace;
pub mod path;
pub mod places;
mod pump;
pub mod requests;
#[cfg(test)]
mod testing;
pub mod unfinished;
pub mod upgrade;
mod websocket;
pub mod worker;

use bytes::Bytes;
use bytestring::ByteString;

use crate::{
    app::AppId,
    broker::{
        JsonObject, Publication,
        subscriber::{Disconnect, Frame, Joined, Place, SubscribeError, Subscription},
    },
    metrics::labels::SessionKind,
};

/// Why a socket is closed (RFC 6455, section 7.4; section 8 of the protocol document).
///
/// Never 1000: clients from 1.6.3 to 1.8.15 would not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// The client closed first: the one case for 1000.
    pub const ANSWER: Self = Self(1000);
    /// The server lets this client go: idle, or no longer allowed.
    pub const GOING_AWAY: Self = Self(1001);
    /// The framing is broken.
    pub const PROTOCOL: Self = Self(1002);
    /// Text that is not UTF-8.
    pub const NOT_UTF8: Self = Self(1007);
    /// The client takes its time, or more than its share.
    pub const POLICY: Self = Self(1008);
    /// A message beyond the limit.
    pub const TOO_BIG: Self = Self(1009);
    /// A message that cannot be understood, or a fault of ours.
    pub const INTERNAL: Self = Self(1011);
    /// The server restarts.
    pub const RESTART: Self = Self(1012);
    /// The client does not keep up.
    pub const TRY_LATER: Self = Self(1013);
}

/// A whole message from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Valid UTF-8.
    Text(ByteString),
    /// Anything.
    Binary(Bytes),
}

impl Received {
    /// Its size in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// What a conversation wants done, in order.
///
/// [`Effect::Subscribe`] is answered through [`Conversation::subscribed`], [`Effect::Publish`] and
/// [`Effect::Update`] are answered through [`Conversation::answered`], before anything else is
/// received. They come last among the effects of one call. Between an effect and its answer an app
/// may change.
#[derive(Debug)]
pub enum Effect {
    /// Write this to the client.
    Send(Frame),
    /// Write to the client what a join is sent ahead of everything that belongs to it.
    Replay(Replay),
    /// Hear a topic.
    Subscribe(Subscription),
    /// No longer hear a place by this name of it, which is the topic of its [`Subscription`].
    Unsubscribe(Place, ByteString),
    /// Publish.
    Publish(Publication),
    /// Show another meta where it is tracked.
    Update(Place, JsonObject),
    /// Close the connection; nothing is sent after.
    Close(CloseCode),
}

/// What a join is sent once it is answered: frames of the history, then who is there.
#[derive(Debug)]
pub struct Replay {
    /// What was joined.
    pub place: Place,
    /// By which name.
    pub topic: ByteString,
    /// What is replayed; sessions share these frames.
    pub frames: Vec<Frame>,
    /// Who is there, if the session is tracked.
    pub members: Option<Frame>,
}

/// Why the broker did not do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The app has subscribers in as many scopes as it may.
    TooManyScopes,
    /// The channel tracks as many members as it may.
    TooManyMembers,
    /// It did not answer in time.
    Unavailable,
}

impl From<SubscribeError> for Failure {
    fn from(refused: SubscribeError) -> Self {
        match refused {
            SubscribeError::TooManyScopes => Self::TooManyScopes,
            SubscribeError::TooManyMembers => Self::TooManyMembers,
            SubscribeError::Unavailable => Self::Unavailable,
        }
    }
}

/// A wire protocol's side of one connection. Unix time in seconds is passed in.
pub trait Conversation: 'static {
    /// The client sent a message.
    fn received(&mut self, message: Received, now_s: f64) -> Vec<Effect>;

    /// What a message can be answered with before its turn has come: it was sent while the broker is
    /// still asked for an earlier one. `None` if it has to wait; then it will be received as any other.
    fn meanwhile(&self, message: &Received) -> Option<Frame>;

    /// The broker has taken the last [`Effect::Subscribe`], or not. What is sent here leaves ahead of
    /// everything that belongs to the join.
    fn subscribed(&mut self, outcome: Result<Joined, Failure>, now_s: f64) -> Vec<Effect>;

    /// The broker answered the last [`Effect::Publish`] or [`Effect::Update`].
    fn answered(&mut self, outcome: Result<(), Failure>, now_s: f64) -> Vec<Effect>;

    /// An app was changed or deleted: joins that its new state does not allow must end.
    fn app_changed(&mut self, app: AppId, now_s: f64) -> Vec<Effect>;

    /// An app wants some of its joins ended; a client whose joins are not among them notices nothing.
    /// Returns with the effects how many joins were meant.
    fn disconnected(&mut self, disconnect: &Disconnect) -> (Vec<Effect>, usize);

    /// What is spoken here, and over what, to be counted by.
    fn kind(&self) -> SessionKind;
}
