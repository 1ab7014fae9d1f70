//! Subscribers: who hears, in which spelling, and how much may wait for them.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use actix::prelude::*;
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::task::AtomicWaker;

use crate::app::{AppId, subject::Subject};

use super::{
    presence::{Change, Persona, Roster},
    publication::JsonObject,
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
}

impl Frame {
    /// How large it is, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
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
}

/// How a kind of client wants publications spelled.
#[derive(Clone, Copy)]
pub struct Format {
    /// This format's place among the server's formats, less than [`Format::COUNT`].
    pub slot: usize,
    /// Spells an object.
    pub encode: fn(&Delivery<'_, JsonObject>) -> Frame,
    /// Spells bytes; `None` for clients that cannot be sent any. Formats that differ in nothing
    /// else may share a slot.
    pub encode_bytes: Option<EncodeBytes>,
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
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Format").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// One scope of one app: what a topic actor stands for. Scopes never hear each other.
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
}

impl Disconnect {
    /// Whose joins these are.
    pub fn app(&self) -> AppId {
        match self {
            Self::Place(place) => place.key.app,
            Self::Subject { app, .. } => *app,
        }
    }

    /// Whether there may be such a join at a place.
    pub(super) fn may_concern(&self, place: &Place) -> bool {
        match self {
            Self::Place(concerned) => concerned == place,
            Self::Subject { app, .. } => place.key.app == *app,
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
}

/// What reaches a session from the broker.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum ToSession {
    /// A frame for the client, if it still has that subscription: what was on its way when a session
    /// unsubscribed still arrives here, and must not come between a leave and the next join. With it,
    /// if it is of interest when it is written: when it was published.
    Deliver(Frame, SubscriptionId, Option<Instant>),
    /// Who is there, spelled by [`Format::spell_members`], under the same condition. Changes follow
    /// as frames.
    Members(ByteString, SubscriptionId),
    /// An app was changed or deleted: judge its joins anew.
    AppChanged(AppId),
    /// An app wants some of its joins ended.
    Disconnect(Arc<Disconnect>),
    /// Close.
    End(Ending),
}

/// Why the broker ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It does not take what it is sent: more waits for it than may.
    SlowConsumer(Excess),
    /// It took nothing of what was written to it for too long.
    Stuck,
    /// Nothing was heard of it for too long.
    Idle,
    /// It did not come for what waits, where clients fetch.
    NotFetching,
    /// It was opened, and its client never came for anything.
    NeverFetched,
    /// It joined nothing, where that costs its place.
    Unjoined,
    /// It sent more than may wait for its turn.
    InboxFull,
    /// The server stops.
    Shutdown,
    /// An actor it depended on is gone: it must come back to be heard again.
    Broken,
}

/// How much waits: frames and their bytes in one number, so that counting both costs one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load(u64);

impl Load {
    /// Bytes are below, frames above: a terabyte and sixteen million, far beyond any limit.
    const BYTES_BITS: u32 = 40;

    /// So many frames of so many bytes in all.
    pub fn new(frames: usize, bytes: usize) -> Self {
        Self((frames as u64) << Self::BYTES_BITS | bytes as u64)
    }

    /// One frame.
    pub fn of(frame: &Frame) -> Self {
        Self::new(1, frame.size_bytes())
    }

    /// How many frames.
    pub fn frames(self) -> usize {
        (self.0 >> Self::BYTES_BITS) as usize
    }

    /// How many bytes.
    pub fn bytes(self) -> usize {
        (self.0 & ((1 << Self::BYTES_BITS) - 1)) as usize
    }
}

/// Of what there is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Frames.
    Frames,
    /// Bytes.
    Bytes,
}

/// The bounded way to one session, kept by the fan-out of its thread.
///
/// The session's mailbox is the outbox: while a socket cannot be written to, its actor is not
/// polled and the mailbox fills. The bound in frames is the mailbox's capacity, which holds only as
/// long as this is the one retained address; the bound in bytes is counted here.
pub struct Outbox {
    session: SessionId,
    mailbox: Recipient<ToSession>,
    /// What is queued, as [`Load`] packs it.
    queued: AtomicU64,
    /// What the session has taken and keeps for its client to fetch.
    kept: AtomicU64,
    bytes_max: usize,
    /// Whether the session has asked for a subscription that may not have been attached yet.
    joining: AtomicBool,
    ending: OnceLock<Ending>,
    waker: AtomicWaker,
}

impl Outbox {
    /// Makes the outbox of a session whose mailbox capacity is already set.
    pub fn new(session: SessionId, mailbox: Recipient<ToSession>, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            session,
            mailbox,
            queued: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            bytes_max,
            joining: AtomicBool::new(false),
            ending: OnceLock::new(),
            waker: AtomicWaker::new(),
        })
    }

    /// Whose outbox this is.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Queues a frame, never waits. `false` if the session cannot take it: it is then being ended,
    /// for it must never be silently deaf.
    pub fn deliver(&self, frame: &Frame, to: SubscriptionId) -> bool {
        self.deliver_sampled(frame, to, None)
    }

    /// Queues a frame like [`Outbox::deliver`]; if `published` is given, the session measures how
    /// long it takes from then until the frame is written. The frame itself carries the question, or
    /// that would take the place of another one.
    pub fn deliver_sampled(
        &self,
        frame: &Frame,
        to: SubscriptionId,
        published: Option<Instant>,
    ) -> bool {
        self.queue(frame.size_bytes(), || ToSession::Deliver(frame.clone(), to, published))
    }

    /// Queues word of who is there, like [`Outbox::deliver`].
    pub fn introduce(&self, members: ByteString, to: SubscriptionId) -> bool {
        self.queue(members.len(), || ToSession::Members(members, to))
    }

    fn queue(&self, bytes: usize, message: impl FnOnce() -> ToSession) -> bool {
        if self.ending.get().is_some() {
            return false;
        }
        let load = Load::new(1, bytes);
        let queued = Load(self.queued.fetch_add(load.0, Relaxed));
        if queued.bytes() + load.bytes() > self.bytes_max {
            self.end(Ending::SlowConsumer(Excess::Bytes));
            return false;
        }
        match self.mailbox.try_send(message()) {
            Ok(()) => true,
            Err(SendError::Full(_)) => {
                self.end(Ending::SlowConsumer(Excess::Frames));
                false
            }
            // It is over already.
            Err(SendError::Closed(_)) => false,
        }
    }

    /// Notes that the session has taken so much out.
    pub fn taken(&self, load: Load) {
        self.queued.fetch_sub(load.0, Relaxed);
    }

    /// Notes how much the session itself keeps for its client.
    pub fn keeps(&self, load: Load) {
        self.kept.store(load.0, Relaxed);
    }

    /// How much waits for the client.
    pub fn load(&self) -> Load {
        Load(self.queued.load(Relaxed).saturating_add(self.kept.load(Relaxed)))
    }

    /// Tells the session of something that ends some of its joins. One that cannot even be told is
    /// ended as a whole: what must end must not go on because a client does not keep up.
    pub(super) fn tell(&self, news: ToSession) {
        if let Err(SendError::Full(_)) = self.mailbox.try_send(news) {
            self.end(Ending::SlowConsumer(Excess::Frames));
        }
    }

    /// Notes whether a join of the session is under way. Its fan-out may know nothing of it yet.
    pub fn set_joining(&self, joining: bool) {
        self.joining.store(joining, Relaxed);
    }

    /// Whether a join of the session is under way.
    pub(super) fn is_joining(&self) -> bool {
        self.joining.load(Relaxed)
    }

    /// Ends the session. It hears of it in its mailbox, and at once through [`Outbox::ending`] if
    /// it is stuck in a write. The first reason stands.
    pub fn end(&self, ending: Ending) {
        if self.ending.set(ending).is_ok() {
            self.mailbox.do_send(ToSession::End(ending));
            self.waker.wake();
        }
    }

    /// Why the session is to end, if it is.
    pub fn ended(&self) -> Option<Ending> {
        self.ending.get().copied()
    }

    /// Why the session is to end, if it is; wakes `waker` when that changes.
    pub fn ending(&self, waker: &std::task::Waker) -> Option<Ending> {
        self.waker.register(waker);
        self.ending.get().copied()
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("session", &self.session).finish_non_exhaustive()
    }
}
