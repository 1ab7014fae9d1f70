//! The gate through which a session reads: it stops the reader of a client that is too fast, and keeps
//! the times by which the client is judged.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use super::{
    bucket::PerSecond,
    frame_socket,
    pace::{self, FramePace},
    requests::{Ticket, Work, WorkQueue},
};
use crate::broker::subscriber::Frame;

/// The frames that a session may take before other sessions of the thread get a turn: a flood of
/// heartbeats delays the others by no more frames than these at a time.
pub(super) const TURN_FRAMES_MAX: u32 = 16;

/// Stops the reader of a session while its inbox is full, or while its client exceeds the frame rate,
/// and keeps the times by which the client is judged.
pub(super) struct Gate {
    is_shut: Cell<bool>,
    pub(super) has_joined: Cell<bool>,
    /// Frames taken in this turn.
    pub(super) turn_frames: Cell<u32>,
    work_queue: Rc<WorkQueue>,
    /// The session's ticket while it waits at the work queue for another turn.
    ticket: RefCell<Option<Box<Ticket>>>,
    /// The rate of the frames, and its pauses.
    pub(super) pace: Cell<FramePace>,
    /// The time at which bytes last came in, or at which the gate was last opened again.
    pub(super) heard: Cell<Instant>,
    /// The arrival of the first byte of the message that is not complete yet.
    pub(super) unfinished_since: Cell<Option<Instant>>,
    /// The time for which the conversation tolerates the present silence.
    tolerance: Cell<Option<Box<Tolerance>>>,
    waker: Cell<Option<Waker>>,
    /// The frames that the actor has sent and the pump has yet to take, as they go over the wire.
    said: Cell<Option<Box<BytesMut>>>,
}

/// The time for which a silence is tolerated.
struct Tolerance {
    /// The last arrival of anything from the client: the tolerance is for the silence since then.
    heard: Instant,
    until: Instant,
    due: Due,
}

/// The action that is due at the end of a tolerated silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// The conversation decides what happens to the session.
    Question,
    /// The session ends.
    End,
}

impl Gate {
    /// An open gate.
    pub(super) fn new(work_queue: Rc<WorkQueue>) -> Self {
        Self {
            is_shut: Cell::default(),
            has_joined: Cell::default(),
            turn_frames: Cell::default(),
            work_queue,
            ticket: RefCell::default(),
            pace: Cell::default(),
            heard: Instant::now().into(),
            unfinished_since: Cell::default(),
            tolerance: Cell::default(),
            waker: Cell::default(),
            said: Cell::default(),
        }
    }

    /// Sends a frame: the pump takes it once it has polled the actor.
    ///
    /// The queue of the actor's context is not used, because it keeps room for four messages from its
    /// first one on, which is 160 bytes of every idle session.
    pub(super) fn say(&self, frame: &Frame) {
        let mut said = self.said.take().unwrap_or_default();
        frame_socket::gather_whole(frame, &mut said);
        self.said.set(Some(said));
    }

    /// Takes the frames that the actor has sent.
    pub(super) fn take_said(&self) -> Bytes {
        self.said.take().map(|said| said.freeze()).unwrap_or_default()
    }

    /// Shuts the gate.
    pub(super) fn shut(&self) {
        self.is_shut.set(true);
    }

    /// Lets the reader go on. The time in which the client was not read from does not count as its
    /// silence.
    pub(super) fn open(&self) {
        if self.is_shut.replace(false) {
            self.go_on();
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The time in which the session did not read counts neither as the client's silence nor
    /// towards the timeout of the message that it has begun. That timeout is extended by this time
    /// and does not start again, because a client that is too fast now and then could otherwise
    /// hold half a message for ever.
    fn go_on(&self) {
        let now = Instant::now();
        let unheard = now.saturating_duration_since(self.heard.replace(now));
        let since = self.unfinished_since.get();
        self.unfinished_since.set(since.map(|since| (since + unheard).min(now)));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_shut.get() || self.pace.get().is_paused()
    }

    /// Takes a frame. Returns `false` if it exceeds the rate: the frame is not taken, and the session pauses.
    pub(super) fn take_frame(&self, rate: PerSecond, now_s: f64) -> bool {
        let mut pace = self.pace.get();
        let may_be = pace.take(rate, now_s);
        self.pace.set(pace);
        if may_be {
            self.turn_frames.set(self.turn_frames.get() + 1);
        }
        may_be
    }

    /// Ends a pause if enough frames may be taken again. If the pause continues, returns the time at which to
    /// call this next.
    pub(super) fn end_pause(&self, rate: PerSecond, now: Instant, now_s: f64) -> Option<Instant> {
        let mut pace = self.pace.get();
        if !pace.is_paused() {
            return None;
        }
        if !pace.resume(rate, now_s) {
            return Some(now + pace::LOOK);
        }
        self.pace.set(pace);
        self.go_on();
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        None
    }

    /// Whether the session has been too fast for too long.
    pub(super) fn is_flooded(&self) -> bool {
        self.pace.get().is_flooded()
    }

    /// Begins a turn of the session's actor, which is about to be polled: it may take [`TURN_FRAMES_MAX`] frames,
    /// unless it waits at the work queue for its next turn.
    pub(super) fn begin_turn(&self) {
        if !self.is_in_queue() {
            self.turn_frames.set(0);
        }
    }

    pub(super) fn is_in_queue(&self) -> bool {
        self.ticket.borrow().is_some()
    }

    pub(super) fn is_turn_over(&self) -> bool {
        self.turn_frames.get() >= TURN_FRAMES_MAX
    }

    /// Notes that the session has joined a topic: from now on its messages may have the full size.
    pub(super) fn joined(&self) {
        self.has_joined.set(true);
    }

    /// Notes that something from the client has arrived.
    pub(super) fn hear(&self, now: Instant) {
        self.heard.set(now);
    }

    /// The last arrival of anything from the client.
    pub(super) fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// The beginning of the client's silence: now, while the client is not read from, because it
    /// may have sent anything meanwhile.
    pub(super) fn silent_since(&self) -> Instant {
        if self.is_read() { self.heard.get() } else { Instant::now() }
    }

    fn is_read(&self) -> bool {
        !self.is_closed() && !self.is_in_queue()
    }

    /// The length of the client's silence.
    pub(super) fn silence(&self) -> Duration {
        self.silent_since().elapsed()
    }

    /// Tolerates the present silence for this much longer.
    pub(super) fn tolerate(&self, longer: Duration, due: Due) {
        let (heard, until) = (self.heard.get(), Instant::now() + longer);
        self.tolerance.set(Some(Box::new(Tolerance { heard, until, due })));
    }

    /// The end of the tolerance for the present silence, if there is one, and the action that is
    /// due then.
    pub(super) fn tolerated(&self) -> Option<(Instant, Due)> {
        let tolerance = self.tolerance.take().filter(|given| given.heard == self.heard.get())?;
        let tolerated = (tolerance.until, tolerance.due);
        self.tolerance.set(Some(tolerance));
        // A client that is not read from may have answered.
        self.is_read().then_some(tolerated)
    }

    /// The arrival of the first byte of an incomplete message; `None` while the client is not read
    /// from.
    pub(super) fn unfinished_since(&self) -> Option<Instant> {
        self.unfinished_since.get().filter(|_| !self.is_closed())
    }

    pub(super) fn poll_pass(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_closed() {
            self.waker.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        if self.is_turn_over() {
            let ticket = &mut *self.ticket.borrow_mut();
            ready!(self.work_queue.poll_pass(ticket, Work::FramesAhead, cx));
            self.turn_frames.set(0);
        }
        Poll::Ready(())
    }
}
