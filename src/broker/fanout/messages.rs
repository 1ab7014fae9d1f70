//! The messages that a fan-out handles.

use std::{sync::Arc, time::Instant};

use actix::prelude::*;
use bytestring::ByteString;

use crate::app::AppId;

use super::super::{
    announcement::Announcement,
    connections::About,
    disconnection::Disconnection,
    outbox::{Ending, Outbox},
    placed::Batch,
    position::StreamPosition,
    stream::Beginning,
    subscriber::{Place, ScopeKey, SessionId, SubscribeError, Subscription, SubscriptionId},
    topic_name::ChannelName,
    users::{EncodeOnline, WatchedUsers},
};

/// A session has begun. If this fan-out has ended and never handles the message, the session is
/// ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Enter(pub(super) Option<Arc<Outbox>>, pub(super) About);

impl Enter {
    /// The session with this outbox has begun.
    pub fn new(outbox: Arc<Outbox>, about: About) -> Self {
        Self(Some(outbox), about)
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        if let Some(outbox) = self.0.take() {
            outbox.end(Ending::Broken);
        }
    }
}

/// A session has ended; all its subscriptions go with it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Leave(pub SessionId);

/// A session subscribes. It has at most one subscription to a place under each name, so a repeated request
/// replaces the earlier one. The answer comes through its outbox, see
/// [`News::Joined`](super::super::outbox::News::Joined).
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Attach {
    /// The session.
    pub session: SessionId,
    /// The id under which its frames are delivered.
    pub id: SubscriptionId,
    /// The place, and the form in which its frames are delivered.
    pub subscription: Subscription,
}

/// A session unsubscribes.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Detach {
    /// The session.
    pub session: SessionId,
    /// The id under which it was subscribed.
    pub id: SubscriptionId,
    /// The place that it leaves.
    pub place: Place,
}

/// A session waits until the publications at these positions have been handed out on this thread. The answer
/// comes through its outbox, see [`News::Confirmed`](super::super::outbox::News::Confirmed).
///
/// Without a cluster they are ahead in the mailbox. In a cluster this node may not have read them from the log
/// yet, and the session waits for that until `until` at the latest.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Confirm {
    /// The session.
    pub session: SessionId,
    /// The publications.
    pub publications: Vec<(ScopeKey, StreamPosition)>,
    /// The time at which the session waits no longer.
    pub until: Instant,
}

/// The server stops: end every session of this thread. The answer is their number.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "usize")]
pub(in crate::broker) struct EndAll;

/// An app ends some of its joins: tell the sessions that may have any.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct EndJoins(pub(in crate::broker) Arc<Disconnection>);

/// The backlog exceeds its limit, and a session holds more of it than before.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Relieve;

/// The server stops: end this many sessions of this thread, or all if there are fewer.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "EndedSessions")]
pub(in crate::broker) struct EndSome(pub(in crate::broker) usize);

/// The result of ending some sessions of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::broker) struct EndedSessions {
    /// The number of sessions that are being ended.
    pub(in crate::broker) ended: usize,
    /// The number of sessions that are left.
    pub(in crate::broker) left: usize,
}

/// Publications to hand out, in their order.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct Dispatch(pub(in crate::broker) Arc<Batch>);

/// The tracker has accepted or refused a session that joins. An accepted session is sent all further
/// announcements.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct Entered {
    pub(in crate::broker) place: Place,
    pub(in crate::broker) session: SessionId,
    /// The subscription to which the answer belongs: the session may have left and joined again since.
    pub(in crate::broker) id: SubscriptionId,
    /// The present members, encoded for its client.
    pub(in crate::broker) members: Result<ByteString, SubscribeError>,
}

/// The tracker has no place any more for a session that had entered a channel, because others have filled the
/// channel while the node was taken for dead: end the joins of the channel that the session has.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct PlaceLost {
    pub(in crate::broker) place: Place,
    pub(in crate::broker) session: SessionId,
}

/// Changes among the members of a channel, to send to those of this thread.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct Announce(pub(in crate::broker) Arc<Announcement>);

/// The number of subscribers that a channel has on all threads of all nodes, for the subscribers that are sent
/// it.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct TellCount {
    pub(in crate::broker) key: ScopeKey,
    pub(in crate::broker) channel: ChannelName,
    pub(in crate::broker) count: usize,
}

/// A session watches users from now on, instead of those that it watched before.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct Watch {
    pub(in crate::broker) session: SessionId,
    pub(in crate::broker) app: AppId,
    pub(in crate::broker) watched: WatchedUsers,
    /// For each of these users, whether it is online.
    pub(in crate::broker) are_online: Vec<bool>,
    pub(in crate::broker) encode: EncodeOnline,
}

/// A user has come online or gone offline: tell the sessions that watch it.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct TellOnline {
    pub(in crate::broker) app: AppId,
    pub(in crate::broker) user: Arc<str>,
    /// Whether the user is online now; `None` if that is known already.
    pub(in crate::broker) change: Option<bool>,
}

/// A panic has ended the tracker of a scope: end the sessions that it tracked.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct TrackerLost(pub(in crate::broker) ScopeKey);

/// Publications to a scope may be missing up to this point: end all joins of it.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct Interrupt {
    pub(in crate::broker) key: ScopeKey,
    pub(in crate::broker) begin: Beginning,
}
