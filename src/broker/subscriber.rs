//! Subscribers: sessions, their subscriptions, and the formats in which they are sent publications.

use std::{borrow::Cow, fmt, ops::Deref, sync::Arc};

use bytes::Bytes;
use bytestring::ByteString;
use serde::{Deserialize, Serialize};

use crate::app::{
    AppId,
    subject::{Subject, SubjectMembers},
    visitor::ShownSub,
};

use super::{
    node::NodeId,
    position::StreamPosition,
    presence::{Change, Persona, Roster},
    publication::{Publication, Sender},
    recovery::{Recovery, Wanted},
    topic_name::{ChannelName, Scope},
};

/// The id of a session, unique among all nodes for the life of their processes. Of two sessions of one
/// node, the one that began later has the higher id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u64);

impl SessionId {
    /// The `nth` session of a node.
    pub fn new(node: NodeId, nth: u64) -> Self {
        Self(node.number(nth))
    }

    /// The node to which the client is connected.
    pub fn node(self) -> NodeId {
        NodeId::of(self.0)
    }
}

/// The encoded text or bytes that a client is sent. Cheap to clone; all recipients share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Text.
    Text(ByteString),
    /// Bytes.
    Binary(Bytes),
    /// Either of them, in two parts.
    Split(Arc<Split>),
}

/// A frame in two parts, the second of which it shares with other frames: of a publication to many topics,
/// the payload is in memory once, and only the head once for each topic.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// Whether both parts together are text.
    pub kind: FrameKind,
    /// The first part.
    pub head: Bytes,
    /// The second part.
    pub body: Bytes,
}

/// The kind of a frame's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Text.
    Text,
    /// Bytes.
    Binary,
}

impl Frame {
    /// The size in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Split(split) => split.size_bytes(),
        }
    }

    /// The size of the frame without the body that it shares with other frames.
    pub fn own_bytes(&self) -> usize {
        match self {
            Self::Split(split) => split.head.len(),
            whole => whole.size_bytes(),
        }
    }

    /// The same frame in one part.
    pub fn into_whole(self) -> Self {
        let Self::Split(split) = self else { return self };
        let whole = Bytes::from([&split.head[..], &split.body].concat());
        match split.kind {
            // Both parts of a text are text, so the check always succeeds.
            FrameKind::Text => Self::Text(ByteString::try_from(whole).unwrap_or_default()),
            FrameKind::Binary => Self::Binary(whole),
        }
    }
}

impl Split {
    /// The size of both parts together, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// The input of an encoder: a publication as one joined topic sees it.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a, P: ?Sized> {
    /// The topic that the client joined, as the client spelled it.
    pub topic: &'a str,
    /// The name of the event on this topic.
    pub event: &'a str,
    /// The payload.
    pub payload: &'a P,
    /// Its position in the order of the scope.
    pub position: StreamPosition,
    /// The publisher.
    pub sender: Sender<'a>,
}

/// The format in which publications are encoded for a kind of client. Every subscriber has one.
#[derive(Clone, Copy)]
pub struct Format {
    /// The slot of the encoders, copied because every delivery needs it.
    pub(super) slot: u8,
    /// The field of the encoders, copied for the same reason.
    pub(super) positions_follow_json: bool,
    pub(super) encoders: &'static Encoders,
}

/// The functions and properties that define a format.
#[derive(Clone, Copy)]
pub struct Encoders {
    /// The index of this format among those of the server, below [`Format::COUNT`].
    pub slot: u8,
    /// The index that this format shares with formats that encode members in the same way, below
    /// [`Format::ROSTERS`].
    pub roster_slot: u8,
    /// The number of bytes after the payload in an encoded JSON value, if the encoder leaves the
    /// payload unchanged. A payload of bytes is then at the end of its frame, unchanged as well, so
    /// that the frames of many topics can share either.
    pub tail_bytes: Option<u8>,
    /// Returns whether an event that was published under this name may be sent. An event that may not be
    /// sent is not encoded.
    pub has_event: fn(&str) -> bool,
    /// Converts a payload, which is any JSON value, into the JSON that this format carries. The
    /// result may depend on the event and on the publisher.
    pub carry: Carry,
    /// Encodes JSON that `carry` has made; `None` for a publication without a name in the protocol.
    pub encode: fn(&Delivery<'_, str>) -> Option<Frame>,
    /// Encodes bytes; `None` for clients that cannot be sent any. Formats that differ only in this may share a
    /// slot.
    pub encode_bytes: Option<EncodeBytes>,
    /// Encodes the position of the preceding frame, for clients that are told positions and whose
    /// frames cannot carry one: frames of bytes, or all frames.
    pub encode_position: Option<fn(&str, StreamPosition) -> Frame>,
    /// Whether positions are encoded like that for JSON as well.
    pub positions_follow_json: bool,
    /// Whether a new subscription to a cache channel is sent the last event first.
    pub begins_with_last_event: bool,
    /// Encodes the number of a topic's subscribers, for clients that are sent each change of it.
    pub encode_count: Option<fn(&str, usize) -> Frame>,
    /// Encodes the members of a channel, for the conversation.
    pub spell_members: fn(&Roster) -> ByteString,
    /// Encodes the changes among the members of a topic, in one or more frames.
    pub encode_change: fn(&str, &Change) -> Vec<ChangeFrame>,
}

/// Converts a payload, an event and a publisher into the JSON that stands for the payload.
pub type Carry = for<'a> fn(&'a str, &str, Sender<'_>) -> Cow<'a, str>;

/// A frame with changes among the members of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeFrame {
    /// The frame.
    pub frame: Frame,
    /// The sessions to which the frame is not sent.
    pub except: Vec<SessionId>,
}

/// Encodes bytes; `None` if the names do not fit into the frame.
pub type EncodeBytes = fn(&Delivery<'_, [u8]>) -> Option<Frame>;

impl Format {
    /// The most formats that a server may have.
    pub const COUNT: usize = 7;

    /// The number of ways in which the formats of a server may encode members.
    pub const ROSTERS: usize = 3;

    /// The format that these functions encode.
    pub const fn of(encoders: &'static Encoders) -> Self {
        let Encoders { slot, positions_follow_json, .. } = *encoders;
        Self { slot, positions_follow_json, encoders }
    }

    /// Returns whether a frame of JSON is followed by a frame with its position.
    pub(super) fn tells_positions_of_json(self) -> bool {
        self.positions_follow_json
    }

    /// The index of this format in a list with one entry for each.
    pub(super) fn index(self) -> usize {
        usize::from(self.slot)
    }
}

impl Deref for Format {
    type Target = Encoders;

    fn deref(&self) -> &Encoders {
        self.encoders
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Format").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// One scope of one app, which has one order. No scope receives the publications of another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ScopeKey {
    /// The app.
    pub app: AppId,
    /// The scope.
    pub scope: Scope,
}

impl ScopeKey {
    /// The scope of a publication.
    pub fn of(publication: &Publication) -> Self {
        Self { app: publication.app, scope: publication.scope.clone() }
    }
}

/// The place of a subscription in the broker: a whole scope, or one channel of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The scope.
    pub key: ScopeKey,
    /// The channel; `None` is the whole scope.
    pub channel: Option<ChannelName>,
}

/// The joins that an app ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disconnect {
    /// All joins of the app.
    App(AppId),
    /// The joins of one place.
    Place(Place),
    /// The joins with a token of the app for this subject.
    Subject {
        /// The app.
        app: AppId,
        /// The subject of the token.
        subject: Subject,
    },
    /// The joins with a token of the app whose subject has these members.
    Members {
        /// The app.
        app: AppId,
        /// The members that the subject must have.
        members: SubjectMembers,
    },
    /// The joins of the sessions that are signed in as this user.
    User {
        /// The app.
        app: AppId,
        /// The user.
        user: String,
    },
}

impl Disconnect {
    /// The app whose joins these are.
    pub fn app(&self) -> AppId {
        match self {
            Self::App(app) => *app,
            Self::Place(place) => place.key.app,
            Self::Subject { app, .. } | Self::Members { app, .. } | Self::User { app, .. } => *app,
        }
    }

    /// Returns whether there may be such a join at a place.
    pub(super) fn may_concern(&self, place: &Place) -> bool {
        match self {
            Self::Place(concerned) => concerned == place,
            Self::App(app)
            | Self::Subject { app, .. }
            | Self::Members { app, .. }
            | Self::User { app, .. } => place.key.app == *app,
        }
    }
}

/// The id of a subscription, unique within its session and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionId(pub u32);

/// The request with which a session joins a place.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The place.
    pub place: Place,
    /// The topic as the client spelled it.
    pub topic: ByteString,
    /// The format of the frames that the session is sent.
    pub format: Format,
    /// The identity under which the session is tracked; `None` if it is not tracked. Only channels
    /// track, and tracked sessions are sent the members.
    pub persona: Option<Persona>,
    /// The user of the join, as the console shows it; `None` without one.
    pub user: Option<Arc<ShownSub>>,
    /// The requested part of the history; `None` if the join requests none, and is sent no positions.
    pub wanted: Option<Wanted>,
}

/// The answer to a subscription that was accepted.
///
/// The answer has a place among the session's frames: all frames of the subscription follow it, except
/// those that the session was sent under the same subscription before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined {
    /// The position of the newest publication that its thread has delivered. The session is sent every
    /// publication after it, and none up to it.
    pub boundary: StreamPosition,
    /// The members of the channel, encoded by [`Encoders::spell_members`], if the session is
    /// tracked there. Later changes follow in frames.
    pub members: Option<ByteString>,
    /// The result of the recovery, if the session requested history.
    pub recovery: Option<Box<Recovery>>,
    /// The last event of a cache channel, for formats that [begin with it](Encoders::begins_with_last_event).
    pub cached: Option<Cached>,
}

/// The beginning of a subscription to a cache channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cached {
    /// The last event that was triggered.
    Event(Frame),
    /// The last event was triggered after the boundary, so the session receives it live.
    ComesLive,
    /// There is no such event, or it is no longer kept.
    Miss,
}

/// The reason why a subscription was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The app has subscribers in as many scopes as it may.
    #[error("too many scopes")]
    TooManyScopes,
    /// The channel has as many members as may be tracked there.
    #[error("too many members")]
    TooManyMembers,
    /// The broker cannot accept it now.
    #[error("the broker is unavailable")]
    Unavailable,
}
