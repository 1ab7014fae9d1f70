//! News: messages from the broker for a session itself.

use std::sync::Arc;

use crate::{
    app::AppId,
    broker::{
        disconnection::Disconnection,
        subscriber::{Cached, Frame, Joined, Place, SubscribeError, SubscriptionId},
    },
};

/// A message for the session itself, which keeps its place among the frames.
#[derive(Debug)]
pub enum News {
    /// The answer to a subscription that the session requested.
    Joined(SubscriptionId, Result<Box<Joined>, SubscribeError>),
    /// An app was changed or deleted: the session's joins of it are judged again.
    AppChanged(AppId),
    /// An app ends some of its joins.
    Disconnect(Arc<Disconnection>),
    /// Publications to these places may be missing, or the session is no longer tracked there: their joins end,
    /// so that their clients join again and learn of it.
    Interrupted(Vec<Arc<Place>>),
    /// The publications of a [`Confirm`](super::super::fanout::Confirm) are ahead in the outbox.
    Confirmed,
    /// The client has sent nothing for the idle timeout. The conversation decides whether the session
    /// continues.
    Silent,
    /// The session must close.
    End(Ending),
}

impl News {
    /// The bytes that this news adds to the load of the outbox.
    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Joined(_, Ok(joined)) => {
                let Joined { members, recovery, cached, .. } = &**joined;
                let members = members.as_ref().map_or(0, |spelled| spelled.len());
                let cached = match cached {
                    Some(Cached::Event(frame)) => frame.size_bytes(),
                    _ => 0,
                };
                let frames = recovery.iter().flat_map(|recovery| &recovery.frames);
                members + cached + frames.map(Frame::size_bytes).sum::<usize>()
            }
            _ => 0,
        }
    }
}

/// The reason why the broker ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The session does not take its frames: its outbox exceeds its limit.
    SlowConsumer(Excess),
    /// The client accepted no bytes of a write for too long.
    Stuck,
    /// The client sent nothing for too long.
    Idle,
    /// The client began a message and did not complete it in time.
    SlowMessage,
    /// The client kept exceeding its frames per second.
    TooManyFrames,
    /// The unfinished messages of all sessions exceeded their limit, and the session held the most
    /// of them.
    Unfinished,
    /// The client of a long-poll session did not fetch its frames.
    NotFetching,
    /// The client of a long-poll session never fetched anything.
    NeverFetched,
    /// The session joined no topic in time.
    Unjoined,
    /// The client sent more messages than may wait to be processed.
    InboxFull,
    /// The server stops.
    Shutdown,
    /// An actor on which the session depended is gone, so its client must reconnect.
    Broken,
}

/// The part of a load that exceeds its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// The number of frames.
    Frames,
    /// The bytes of the frames.
    Bytes,
    /// The bytes of all sessions together, of which this session held the most.
    AllBytes,
}
