//! Plain HTTP connections, counted and bounded. If a new connection finds no room, the connection that has
//! waited longest for its client gives way. The new one is refused only if no connection of its
//! thread waits, and no request is parked there.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Poll, Waker},
};

use tokio::sync::oneshot;

use super::Turn;
use crate::{
    metrics::Metrics,
    session::{connection::ConnectionSlot, unfinished::Unfinished, worker::SessionCounter},
};

/// The most connections that a thread accepts before it does anything else.
const ACCEPTED_IN_A_ROW_MAX: usize = 128;

/// The limit on plain HTTP connections at the same time, over all threads. Clones share the count.
///
/// Sessions and plain connections share the file handles of the process. Some handles are reserved
/// for plain connections whatever the number of sessions, so that health checks still work.
#[derive(Debug, Clone)]
pub struct ConnectionLimit {
    open: Arc<AtomicUsize>,
    /// The limit of the setting; `None` if it is `auto`.
    max: Option<usize>,
    /// The number of file handles for sessions and plain connections together.
    handles: usize,
    /// The most connections that all threads may accept before any of them is counted.
    near: usize,
    sessions: SessionCounter,
}

impl ConnectionLimit {
    /// Begins without connections. There may be at most `max` over all `threads`, and at most `handles` together
    /// with all `sessions`.
    pub fn new(
        max: Option<usize>,
        handles: usize,
        threads: usize,
        sessions: SessionCounter,
    ) -> Self {
        let near = threads * ACCEPTED_IN_A_ROW_MAX;
        Self { open: Arc::default(), max, handles, near, sessions }
    }

    /// The metrics of the server.
    pub fn metrics(&self) -> &Arc<Metrics> {
        self.sessions.metrics()
    }

    /// The budget of the unfinished work of connections, which sessions share.
    pub(in crate::session) fn unfinished(&self) -> &Unfinished {
        self.sessions.unfinished()
    }

    /// Returns whether more connections are open than may be.
    pub fn is_exceeded(&self) -> bool {
        self.open.load(Relaxed) > self.max()
    }

    /// Returns whether connections that are accepted in a row, before any of them is counted, may exceed the
    /// limit.
    pub fn is_near(&self) -> bool {
        self.open.load(Relaxed) + self.near > self.max()
    }

    fn max(&self) -> usize {
        let room = self.handles.saturating_sub(self.sessions.open());
        self.max.map_or(room, |max| max.min(room))
    }

    /// Counts a connection until the returned value is dropped.
    pub(super) fn count(&self) -> ConnectionSlot {
        ConnectionSlot::take(&self.open)
    }
}

/// The connections of one thread that can be ended to make room for a new one: those for whose clients the
/// server waits (for a head, for the rest of a request, for the next request, or for the client to read),
/// and those whose requests are parked. In both groups, the one that has waited longest ends first; in the
/// first group, connections whose last request was authenticated end after all others.
#[derive(Debug, Default)]
pub(in crate::session) struct WaitingConnections {
    next: Cell<u64>,
    connections: RefCell<BTreeMap<WaitingKey, WaitingConnection>>,
    parked: RefCell<BTreeMap<u64, oneshot::Sender<()>>>,
}

/// Whether the last request was authenticated, and a number that orders equal ones by arrival.
type WaitingKey = (bool, u64);

#[derive(Debug)]
struct WaitingConnection {
    turn: Turn,
    /// Wakes the connection's task, once it has been polled.
    waker: Option<Waker>,
}

impl WaitingConnections {
    /// The number of connections that wait for their clients.
    pub(super) fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Ends the connection that has waited longest. If there is none, the request that was parked first is
    /// answered as the last one of its connection. Returns `false` if there is neither.
    pub(super) fn make_room(&self) -> bool {
        if let Some((_, waiter)) = self.connections.borrow_mut().pop_first() {
            waiter.turn.give_way();
            if let Some(waker) = waiter.waker {
                waker.wake();
            }
            return true;
        }
        let mut parked = self.parked.borrow_mut();
        // A request that was answered in this very moment no longer receives.
        while let Some((_, parked)) = parked.pop_first() {
            if parked.send(()).is_ok() {
                return true;
            }
        }
        false
    }

    fn next_key(&self) -> u64 {
        let key = self.next.get();
        self.next.set(key + 1);
        key
    }
}

/// A parked request, which may have to be answered early to make room.
#[derive(Debug)]
pub(super) struct Parked {
    waiting: Rc<WaitingConnections>,
    key: u64,
    told: oneshot::Receiver<()>,
}

impl Parked {
    /// Parks a request behind the others of its thread.
    pub(super) fn among(waiting: &Rc<WaitingConnections>) -> Self {
        let (tell, told) = oneshot::channel();
        let key = waiting.next_key();
        waiting.parked.borrow_mut().insert(key, tell);
        Self { waiting: waiting.clone(), key, told }
    }

    /// Waits until another connection needs the room.
    pub(super) async fn give_way(&mut self) {
        // The sender is used, or dropped together with the server.
        let _ = (&mut self.told).await;
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.waiting.parked.borrow_mut().remove(&self.key);
    }
}

/// A connection's place in the queue of those that wait, if it has one. Dropping this leaves the queue.
#[derive(Debug)]
pub(super) struct QueuePlace {
    waiting: Rc<WaitingConnections>,
    key: Option<WaitingKey>,
}

impl QueuePlace {
    pub(super) fn new(waiting: Rc<WaitingConnections>) -> Self {
        Self { waiting, key: None }
    }

    /// Returns whether the connection is in the queue.
    pub(super) fn is_taken(&self) -> bool {
        self.key.is_some()
    }

    /// Joins the end of the queue, or stays where it is.
    pub(super) fn enter(&mut self, turn: &Turn) {
        if self.key.is_some() {
            return;
        }
        let key = (turn.is_trusted(), self.waiting.next_key());
        let waiter = WaitingConnection { turn: turn.clone(), waker: None };
        self.waiting.connections.borrow_mut().insert(key, waiter);
        self.key = Some(key);
    }

    /// Sets the task to wake.
    pub(super) fn wake_by(&self, waker: &Waker) {
        let mut connections = self.waiting.connections.borrow_mut();
        let waiter = self.key.and_then(|key| connections.get_mut(&key));
        if let Some(waiter) = waiter
            && !waiter.waker.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            waiter.waker = Some(waker.clone());
        }
    }

    pub(super) fn leave(&mut self) {
        if let Some(key) = self.key.take() {
            self.waiting.connections.borrow_mut().remove(&key);
        }
    }
}

/// A connection that has left its stream for an upgrade, and that still counts as a plain one.
#[derive(Debug)]
pub(in crate::session) struct LeavingConnection {
    _counted: ConnectionSlot,
    slot: ConnectionSlot,
    place: QueuePlace,
    turn: Turn,
}

impl LeavingConnection {
    pub(super) fn new(
        counted: ConnectionSlot,
        slot: ConnectionSlot,
        place: QueuePlace,
        turn: Turn,
    ) -> Self {
        Self { _counted: counted, slot, place, turn }
    }

    /// The place among the connections of the thread, which a session keeps. It is no plain connection any more.
    pub(in crate::session) fn into_slot(self) -> ConnectionSlot {
        self.slot
    }

    /// Enters the queue of connections that wait, and waits until another connection needs the room.
    pub(in crate::session) async fn give_way(&mut self) {
        self.place.enter(&self.turn);
        poll_fn(|cx| {
            self.place.wake_by(cx.waker());
            if self.turn.gives_way() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.leave();
    }
}
