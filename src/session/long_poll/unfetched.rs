//! The frames with which a session has answered a fetch, until the fetch has taken them.

use actix::Recipient;
use tokio::sync::oneshot::Receiver;

use super::actor::PutBack;
use crate::broker::subscriber::Frame;

/// The answer that a fetch awaits. If the fetch is dropped first, its frames go back to the session, where
/// they wait for the next fetch: its client may have disconnected, or may have been answered early, at the
/// very moment at which another thread sent them.
pub(super) struct Unfetched {
    session: Recipient<PutBack>,
    answered: Receiver<Vec<Frame>>,
}

impl Unfetched {
    /// The answer of this session.
    pub(super) fn new(session: Recipient<PutBack>, answered: Receiver<Vec<Frame>>) -> Self {
        Self { session, answered }
    }

    /// Waits for the frames; `None` if the session has ended.
    pub(super) async fn take(&mut self) -> Option<Vec<Frame>> {
        (&mut self.answered).await.ok()
    }

    /// The frames that have come so far. The session keeps all others.
    pub(super) fn take_late(&mut self) -> Vec<Frame> {
        self.answered.close();
        self.answered.try_recv().unwrap_or_default()
    }
}

impl Drop for Unfetched {
    fn drop(&mut self) {
        let frames = self.take_late();
        if !frames.is_empty() {
            self.session.do_send(PutBack(frames));
        }
    }
}
