//! Subscribers: who hears what, and in which spelling.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use bytestring::ByteString;

use crate::app::{
    AppId,
    subject::{Subject, SubjectMembers},
};

use super::{
    position::StreamPosition,
    presence::{Change, Persona, Roster},
    recovery::{Recovery, Wanted},
    topic_name::{ChannelName, Scope},
};

/// A connected client, unique for the life of this process; who came later has a higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What goes to a client as it is; cheap to clone, shared by all who get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Text.
    Text(ByteString),
    /// Bytes.
    Binary(Bytes),
    /// Either of them, in two parts.
    Split(Arc<Split>),
}

/// A frame in two parts, the second of which it shares with other frames: one publication that
/// reaches many topics is kept once, and for each topic a head.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// Whether both parts together are text.
    pub kind: Kind,
    /// The first part.
    pub head: Bytes,
    /// The second part.
    pub body: Bytes,
}

/// What a frame consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// Bytes.
    Binary,
}

impl Frame {
    /// How large it is, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Split(split) => split.size_bytes(),
        }
    }

    /// The same frame in one part.
    pub fn into_whole(self) -> Self {
        let Self::Split(split) = self else { return self };
        let whole = Bytes::from([&split.head[..], &split.body].concat());
        match split.kind {
            // The parts of what is text are text; the check is the price of a safe conversion.
            Kind::Text => Self::Text(ByteString::try_from(whole).unwrap_or_default()),
            Kind::Binary => Self::Binary(whole),
        }
    }
}

impl Split {
    /// How large both parts together are, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// What an encoder is given: a publication as one joined topic sees it.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a, P: ?Sized> {
    /// The topic the client joined, as it spelled it.
    pub topic: &'a str,
    /// The event under the name it has there.
    pub event: &'a str,
    /// The payload.
    pub payload: &'a P,
    /// Its place in the order of the scope.
    pub position: StreamPosition,
}

/// How a kind of client wants publications spelled.
#[derive(Clone, Copy)]
pub struct Format {
    /// This format's place among the server's formats, less than [`Format::COUNT`]. A byte, because
    /// every subscriber keeps its format.
    pub slot: u8,
    /// How many bytes come behind the payload in a spelled object, if the payload stands there
    /// unchanged. Then bytes stand unchanged at the end of the frame that carries them, and the frames
    /// of many topics can share both.
    pub tail_bytes: Option<u8>,
    /// Spells an object, which is given as JSON text.
    pub encode: fn(&Delivery<'_, str>) -> Frame,
    /// Spells bytes; `None` for clients that cannot be sent any. Formats that differ in nothing
    /// else may share a slot.
    pub encode_bytes: Option<EncodeBytes>,
    /// Spells the position of bytes that a topic was sent just before, for clients that are told
    /// positions and whose frames of bytes have no room for one.
    pub encode_position: Option<fn(&str, StreamPosition) -> Frame>,
    /// Spells who is there, for what the session makes of it: one text for clients of all formats.
    pub spell_members: fn(&Roster) -> ByteString,
    /// Spells what has changed among the members of a topic.
    pub encode_change: fn(&str, &Change) -> Frame,
}

/// Spells bytes; `None` if their names do not fit into the frame.
pub type EncodeBytes = fn(&Delivery<'_, [u8]>) -> Option<Frame>;

impl Format {
    /// How many formats a server may have.
    pub const COUNT: usize = 4;

    /// The place of what is kept for this format in a list that has one for each.
    pub(super) fn index(self) -> usize {
        usize::from(self.slot)
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Format").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// One scope of one app: what has one order. Scopes never hear each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScopeKey {
    /// Whose it is.
    pub app: AppId,
    /// Who may hear.
    pub scope: Scope,
}

/// Where in the broker a subscription sits: a whole scope, or one channel of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The scope.
    pub key: ScopeKey,
    /// The channel; `None` hears all of the scope.
    pub channel: Option<ChannelName>,
}

/// Which joins an app wants ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disconnect {
    /// Those of one place.
    Place(Place),
    /// Those that came with a token of the app, minted for this subject.
    Subject {
        /// The app.
        app: AppId,
        /// Whom it was minted for.
        subject: Subject,
    },
    /// Those that came with a token of the app whose subject has these members.
    Members {
        /// The app.
        app: AppId,
        /// What the subject must have.
        members: SubjectMembers,
    },
}

impl Disconnect {
    /// Whose joins these are.
    pub fn app(&self) -> AppId {
        match self {
            Self::Place(place) => place.key.app,
            Self::Subject { app, .. } | Self::Members { app, .. } => *app,
        }
    }

    /// Whether there may be such a join at a place.
    pub(super) fn may_concern(&self, place: &Place) -> bool {
        match self {
            Self::Place(concerned) => concerned == place,
            Self::Subject { app, .. } | Self::Members { app, .. } => place.key.app == *app,
        }
    }
}

/// Tells a session's subscriptions apart; unique for the life of the session, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionId(pub u32);

/// What a session asks for when it joins.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Where it sits.
    pub place: Place,
    /// The topic as the client spelled it.
    pub topic: ByteString,
    /// How the client wants it spelled back.
    pub format: Format,
    /// As whom it is tracked there; only on a channel, and `None` where nobody is. Who is tracked
    /// is told who else is.
    pub persona: Option<Persona>,
    /// What it wants of the history; `None` if it wants nothing and is told no positions.
    pub wanted: Option<Wanted>,
}

/// What a session learns when its subscription was taken.
///
/// It reaches the session in its order among the frames: everything that the session is sent of the
/// subscription comes behind it, except what the session heard of the same subscription before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined {
    /// The newest publication of the scope that had been handed out: the session is sent everything
    /// after it, and nothing up to it.
    pub boundary: StreamPosition,
    /// The members of the channel, spelled by [`Format::spell_members`], if the session is tracked
    /// there. What changes among them from then on follows in frames.
    pub members: Option<ByteString>,
    /// What came of the history, if the session wanted any.
    pub recovery: Option<Box<Recovery>>,
}

/// Why a subscription was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The app has subscribers in as many scopes as it may.
    #[error("too many scopes")]
    TooManyScopes,
    /// As many are on the channel as may be tracked there.
    #[error("too many members")]
    TooManyMembers,
    /// The broker cannot take it now.
    #[error("the broker is unavailable")]
    Unavailable,
}
