//! The rules of the connections of a thread: how long each waits, and what they share.

use std::{rc::Rc, sync::Arc, time::Duration};

use super::{
    waiting::{ConnectionLimit, WaitingConnections},
    work_queue::WorkQueue,
};
use crate::{
    metrics::Metrics,
    session::{unfinished::Unfinished, upgrade::IsSocket},
};

/// The time for which a connection that is being closed is read from. The kernel resets a
/// connection that is closed with unread bytes, and the reset may overtake the last answer.
const LINGER: Duration = Duration::from_secs(1);

/// The rules and the state that the connections of one thread share.
pub(in crate::session) struct ConnectionRules {
    /// The time within which the first request head must be complete.
    pub(in crate::session) handshake_timeout: Duration,
    /// The time within which a further request, or the rest of the first one, must be complete, and
    /// for which a client may take nothing of an answer.
    pub(in crate::session) idle_timeout: Duration,
    /// The time for which a connection is kept for another request.
    pub(in crate::session) keep_alive: Duration,
    /// Whether a WebSocket may be requested on a path.
    pub(in crate::session) is_socket: IsSocket,
    pub(in crate::session) metrics: Arc<Metrics>,
    /// The budget of heads that are not complete, of large ones, and of what is read ahead.
    pub(in crate::session) unfinished: Unfinished,
    /// The limit on plain connections.
    pub(in crate::session) limit: ConnectionLimit,
    /// The connections of this thread that may give way.
    pub(in crate::session) waiting: Rc<WaitingConnections>,
    /// The most connections in `waiting`.
    pub(in crate::session) waiting_max: usize,
    /// The connections of this thread whose clients take nothing of an answer, or have yet to
    /// close.
    pub(in crate::session) stuck: Rc<WaitingConnections>,
    /// The queue in which the requests of unauthenticated clients wait for their turn.
    pub(in crate::session) work_queue: Rc<WorkQueue>,
}

/// The reason why the deadline is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// For the first head.
    First,
    /// For the rest of a request.
    Rest,
    /// For the next request.
    Next,
    /// For its turn in the work queue.
    Turn,
    /// For the client to read.
    Write,
    /// For the client to close.
    Close,
}

impl ConnectionRules {
    /// The time for which a connection waits.
    pub(super) fn time_for(&self, wait: Wait) -> Duration {
        match wait {
            Wait::First => self.handshake_timeout,
            Wait::Rest | Wait::Turn | Wait::Write => self.idle_timeout,
            Wait::Next => self.keep_alive,
            Wait::Close => LINGER,
        }
    }
}
