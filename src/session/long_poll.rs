//! Sessions over long-poll: each is an actor that keeps the frames that its client has not fetched yet.
//!
//! A session drives the same conversation as a WebSocket does, through the same
//! [`driver`](super::driver); the protocol decides about its HTTP side (tokens, statuses, bodies). A client
//! fetches with one parked request at a time and sends with others. A session ends after 1.5 windows
//! without a fetch, or half a window after it began if it was never fetched. A session costs its client a
//! single request, so the number of sessions that were never fetched is bounded, and beyond the bound the
//! oldest of them ends. When the conversation closes the session or the server stops between two fetches,
//! the waiting frames are kept a little longer for the next one.

mod actor;
mod elsewhere;
mod newcomers;
mod passed;
mod unfetched;

use std::{collections::HashMap, fmt, rc::Rc, sync::Arc, time::Duration};

use actix::prelude::*;
use parking_lot::RwLock;
use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use super::{Conversation, Received, worker::Worker};
use crate::broker::{Topics, subscriber::Frame};
use actor::{GiveWay, LongPoll, Poll, Post};
use newcomers::{Newcomer, Newcomers};
use passed::SharedPassed;
use unfetched::Unfetched;

/// The fraction (1/4) of the server's sessions that may be ones that were never fetched: enough for
/// many clients that come at once, too few to keep others out.
const NEWCOMERS_SHARE: usize = 4;

/// The times of a long-poll session.
#[derive(Debug, Clone, Copy)]
pub struct LongPollTimes {
    /// The time for which a request waits for a frame, and a message for its turn.
    pub window: Duration,
    /// The time for which a session may live without a joined topic.
    pub unjoined_max: Duration,
}

impl LongPollTimes {
    /// The time for which a session may live without a fetch. Clients fetch as soon as they have
    /// opened a session, and again as soon as a fetch is answered.
    fn patience(&self, is_newcomer: bool) -> Duration {
        if is_newcomer { self.window / 2 } else { self.window * 3 / 2 }
    }
}

/// The result of a fetch.
#[derive(Debug, PartialEq, Eq)]
pub enum Polled {
    /// All waiting frames, oldest first. There are none if no frame came in time, or if another fetch took
    /// over.
    Frames(Vec<Frame>),
    /// There is no such session.
    Gone,
}

/// The result of posting messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// All messages were handled, in order.
    Done,
    /// Some messages did not get their turn in time, or their node did not answer. They may still be handled.
    Late,
    /// There is no such session, or it ended because of the messages.
    Gone,
}

/// Finds the long-poll sessions of all threads, and of other nodes if it is [shared](Self::share). Cheap
/// to clone.
#[derive(Clone)]
pub struct LongPolls {
    sessions: Arc<RwLock<HashMap<Uuid, Addr<LongPoll>>>>,
    newcomers: Newcomers,
    times: LongPollTimes,
    /// The fetches that other nodes have passed on.
    passed: SharedPassed,
    /// The broker, by which other nodes are asked; `None` without a cluster.
    topics: Option<Topics>,
}

impl fmt::Debug for LongPolls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongPolls").field("times", &self.times).finish_non_exhaustive()
    }
}

impl LongPolls {
    /// Begins without sessions.
    pub fn new(times: LongPollTimes) -> Self {
        let (sessions, newcomers, passed) = Default::default();
        Self { sessions, newcomers, times, passed, topics: None }
    }

    /// Starts a session on the calling thread; `None` if the server has no room for another. If too many
    /// sessions were never fetched, the oldest of them ends: a well-behaved client has fetched by then, unless
    /// new sessions begin faster than its round trip. `limits.sessions_per_address_max` protects against one
    /// address that opens many.
    pub fn open(&self, conversation: impl Conversation, worker: &Rc<Worker>) -> Option<Uuid> {
        let admission = worker.sessions.admit()?;
        let id = elsewhere::number_on(worker.topics.node());
        let newcomers_max = (worker.sessions.max() / NEWCOMERS_SHARE).max(1);
        let (newcomer, oldest) = self.newcomers.enter(admission.id, id, newcomers_max);
        if let Some(oldest) = oldest.and_then(|oldest| self.find(oldest)) {
            oldest.do_send(GiveWay);
        }
        let (sessions, passed) = (self.sessions.clone(), self.passed.clone());
        let listing = SessionEntry { id, sessions, passed, newcomer: Some(newcomer) };
        let (times, worker) = (self.times, worker.clone());
        let conversation: Box<dyn Conversation> = Box::new(conversation);
        let addr = LongPoll::create(move |ctx| {
            LongPoll::new(conversation, admission, worker, listing, times, ctx)
        });
        self.sessions.write().insert(id, addr);
        Some(id)
    }

    /// Fetches the frames that wait for a session's client, or that come within the window. Frames of a fetch
    /// that is dropped wait for the next one.
    pub async fn poll(&self, id: Uuid) -> Polled {
        if let Some((polled, passed_on)) = self.poll_elsewhere(id).await {
            passed_on.answered();
            return polled;
        }
        let polled = self.poll_here(id).await;
        if self.topics.is_some() {
            // The client fetches at this node now, so an earlier fetch through another node is over.
            self.passed.lock().forget_fetches(id);
        }
        polled
    }

    async fn poll_here(&self, id: Uuid) -> Polled {
        let Some(session) = self.find(id) else { return Polled::Gone };
        let (answer, answered) = oneshot::channel();
        let mut unfetched = Unfetched::new(session.clone().recipient(), answered);
        let poll = async {
            session.send(Poll(answer)).await.ok()?;
            unfetched.take().await
        };
        match timeout(self.times.window, poll).await {
            Ok(Some(frames)) => Polled::Frames(frames),
            Ok(None) => Polled::Gone,
            // Frames that the session has sent at this moment must not be lost.
            Err(_) => Polled::Frames(unfetched.take_late()),
        }
    }

    /// Makes the session handle messages, in order.
    pub async fn post(&self, id: Uuid, messages: Vec<Received>) -> Posted {
        if let Some(posted) = self.post_elsewhere(id, &messages).await {
            return posted;
        }
        let Some(session) = self.find(id) else { return Posted::Gone };
        let (answer, answered) = oneshot::channel();
        // `send` would drop the message unread if the client disconnects now.
        match session.try_send(Post { messages, answer }) {
            Ok(()) => {}
            Err(SendError::Full(_)) => return Posted::Late,
            Err(SendError::Closed(_)) => return Posted::Gone,
        }
        match timeout(self.times.window, answered).await {
            Ok(Ok(())) => Posted::Done,
            Ok(Err(_)) => Posted::Gone,
            Err(_) => Posted::Late,
        }
    }

    fn find(&self, id: Uuid) -> Option<Addr<LongPoll>> {
        let sessions = self.sessions.read();
        sessions.get(&id).cloned()
    }
}

/// A session's entry in the list of all sessions. Dropping this removes it.
struct SessionEntry {
    id: Uuid,
    sessions: Arc<RwLock<HashMap<Uuid, Addr<LongPoll>>>>,
    passed: SharedPassed,
    /// The place among the sessions that were never fetched, until the first fetch.
    newcomer: Option<Newcomer>,
}

impl Drop for SessionEntry {
    fn drop(&mut self) {
        self.sessions.write().remove(&self.id);
        self.passed.lock().forget(self.id);
    }
}

#[cfg(test)]
mod tests;
