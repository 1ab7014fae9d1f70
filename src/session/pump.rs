//! Writing: from a session's outbox and its actor to the socket, and the deadlines of a connection.
//!
//! The pump is the task of a WebSocket. Most frames are written by the fan-out, without the pump: see
//! [`FrameSocket`]. Where the fan-out leaves this to the session, the pump takes the frames from the outbox
//! itself, as many as fit into one write. It polls the actor only if the actor has work: a message of its client, news of the broker, an answer. While a write is pending,
//! the pump polls neither the outbox nor the actor, so the outbox of a client that does not read fills up
//! to its bound.
//!
//! A session that is woken while publications are on their way lets the fan-out run first, once, if
//! little waits in its outbox. Otherwise the fan-out would wait behind hundreds of sessions that each
//! write one frame.

use std::{
    future::Future,
    mem,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use actix_codec::ReadBuf;
use bytes::Bytes;
use futures_util::Stream;
use tokio::time::Sleep;

use crate::broker::{
    outbox::{self, Ending, Load, News},
    writers::WriterPlace,
};

use super::{
    connection::ConnectionSlot,
    frame_socket::{FrameSocket, SocketTransport},
    gate::Due,
    worker::Admission,
};

/// Writes before other tasks of the thread get a turn.
const WRITES_PER_POLL: usize = 16;

/// Bytes that a session may write before other tasks of the thread get a turn, in whole writes.
const BYTES_PER_POLL: usize = 256 * 1024;

/// The number of times within an idle timeout that a session which is stuck in a write is checked
/// for a silent client.
const STUCK_LOOKS: u32 = 8;

/// The time within which a client must close the connection after the close frame.
const LINGER: Duration = Duration::from_secs(2);

/// Drives one WebSocket until it is closed.
///
/// The fields are in the order of their use: those that the pump's write of frames reads lie in the cache line of the
/// task's header and the next one. With ten thousand sessions, each further line is a wait for the memory.
#[repr(C)]
pub(super) struct Pump<T, B> {
    is_actor_due: bool,
    is_timer_due: bool,
    /// Whether the session has let the fan-out run first since it last had nothing left to write.
    gave_way: bool,
    socket: Rc<FrameSocket<T>>,
    /// The actor's outgoing bytes; `None` once it has stopped.
    body: Option<Pin<Box<B>>>,
    /// The state of a client that is not read from, because a write is stuck.
    stuck: Option<Box<Stuck>>,
    /// Wakes the session through its outbox. The actor and the timer are polled with it: a frame
    /// from the broker is written without polling either.
    waker: Waker,
    timer: Pin<Box<Sleep>>,
    /// The latest time at which the timer wakes the task. Waking too early is harmless, so most
    /// reads leave the timer as it is.
    wakes_at: Option<Instant>,
    /// The longest silence of the client while it cannot be probed.
    silence_max: Duration,
    /// The time until which the client may close the connection itself, once the actor has stopped and all is
    /// written.
    linger_until: Option<Instant>,
    /// The place of the socket among the writers of the fan-out.
    _writer: WriterPlace,
    /// The places that the connection takes until it is closed: one among all sessions, and one among the
    /// connections of its thread. The socket is dropped before them.
    _places: (Admission, ConnectionSlot),
}

/// The state of a client since something was last read from it.
struct Stuck {
    /// The time since which writing makes no progress.
    since: Option<Instant>,
    /// The bytes that the client has sent meanwhile.
    unread_bytes: u64,
    /// The bytes that the outbox has been told to wait for the socket.
    kept_bytes: usize,
}

/// The action that a session takes at its next deadline.
enum NextDeadline {
    /// Its conversation decides what happens to it, because its client is silent.
    Question,
    /// It ends.
    End(Ending),
}

/// The reason why writing pauses.
enum Paused {
    /// There is nothing to write.
    Drained,
    /// The socket takes no more.
    Stuck,
    /// Other tasks get a turn.
    Turn,
    /// All is written and the actor has stopped.
    Finished,
    /// The socket is broken.
    Broken,
}

impl<T, B, E> Pump<T, B>
where
    T: SocketTransport,
    B: Stream<Item = Result<Bytes, E>>,
{
    pub(super) fn new(
        socket: Rc<FrameSocket<T>>,
        places: (Admission, ConnectionSlot),
        body: B,
    ) -> Self {
        let idle_timeout = socket.worker.limits.idle_timeout;
        Self {
            silence_max: idle_timeout,
            timer: Box::pin(tokio::time::sleep(idle_timeout)),
            waker: socket.outbox.clone().into(),
            // The actor and the timer have yet to be polled for the first time.
            is_actor_due: true,
            is_timer_due: true,
            gave_way: false,
            wakes_at: None,
            body: Some(Box::pin(body)),
            stuck: None,
            linger_until: None,
            _writer: socket.worker.fanout().add_writer(socket.clone()),
            _places: places,
            socket,
        }
    }

    /// Sets the longest silence of the client while it cannot be probed; otherwise it is the idle timeout.
    pub(super) fn with_silence_max(self, silence_max: Duration) -> Self {
        Self { silence_max, ..self }
    }

    #[cfg(test)]
    pub(super) fn outbox(&self) -> &std::sync::Arc<outbox::Outbox> {
        &self.socket.outbox
    }

    /// Writes until the socket is full or a turn is over.
    fn write(&mut self, cx: &mut Context<'_>) -> Paused {
        let (mut taken_bytes, mut has_begun) = (0, false);
        for _ in 0..WRITES_PER_POLL {
            match self.flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(broken)) => return broken,
                Poll::Pending => return Paused::Stuck,
            }
            // Publications that come meanwhile leave in the same write: under full load the CPU per
            // delivery was 0.34 to 0.35 of that of the floor (the bare `write()` calls of
            // `docs/performance.md`) with this, and 0.43 to 0.55 without.
            if !mem::replace(&mut self.gave_way, true)
                && self.socket.worker.awaits_more()
                && self.socket.outbox.holds_little()
            {
                return Paused::Turn;
            }
            if taken_bytes >= BYTES_PER_POLL {
                break;
            }
            let (next, bytes) = self.socket.write_frames(Some(cx.waker()));
            taken_bytes += bytes;
            if matches!(next, outbox::NextItem::News | outbox::NextItem::Closed) {
                (self.is_actor_due, self.is_timer_due) = (true, true);
            }
            let Some(body) = &mut self.body else { return Paused::Finished };
            if next == outbox::NextItem::Frame || !self.socket.has_taken_all() {
                continue;
            }
            if !self.is_actor_due {
                return Paused::Drained;
            }
            // The actor has been polled until it had nothing more to do; frames that it has just
            // released in the outbox come next. An actor that stops closes the outbox, and is
            // polled to its end.
            self.is_actor_due = false;
            self.stuck = None;
            if !mem::replace(&mut has_begun, true) {
                self.socket.gate.begin_turn();
            }
            let polled = body.as_mut().poll_next(&mut Context::from_waker(&self.waker));
            let said = self.socket.gate.take_said();
            match polled {
                Poll::Ready(Some(Ok(chunk))) => self.socket.write(said, chunk),
                Poll::Ready(_) => {
                    self.body = None;
                    self.socket.write(said, Bytes::new());
                }
                Poll::Pending => self.socket.write(said, Bytes::new()),
            }
        }
        Paused::Turn
    }

    /// Tells the outbox how many bytes wait for the socket. The fan-out compares these loads when the backlog is
    /// exceeded, so it is asked for relief afterwards.
    fn note_kept(&mut self) {
        let kept_bytes = self.socket.unwritten_bytes();
        if let Some(stuck) = &mut self.stuck
            && mem::replace(&mut stuck.kept_bytes, kept_bytes) != kept_bytes
        {
            self.socket.outbox.keeps(Load { frames: 0, bytes: kept_bytes });
            self.socket.worker.relieve();
        }
    }

    /// Writes the bytes that the socket did not take before.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Paused>> {
        let before = self.socket.unwritten_bytes();
        if before == 0 {
            return Poll::Ready(Ok(()));
        }
        let flushed = self.socket.poll_flush(cx);
        if let Some(stuck) = &mut self.stuck
            && self.socket.unwritten_bytes() < before
        {
            stuck.since = None;
        }
        if flushed.is_ready() {
            self.note_kept();
        }
        flushed.map_err(|_| Paused::Broken)
    }

    /// Returns whether only the last bytes of the session are written.
    fn is_ending(&self) -> bool {
        self.socket.outbox.ended().is_some() || self.socket.outbox.is_closed()
    }

    /// The client does not read: the connection is dropped without a close frame.
    fn drop_slow(&mut self) {
        self.socket.io.borrow().give_up();
    }

    /// Checks the deadlines; `false` if the connection is to be dropped. A session that is to end
    /// has less time than one that may go on.
    fn on_time(&mut self, stuck: bool) -> bool {
        self.is_timer_due = false;
        let now = Instant::now();
        if stuck {
            self.listen(now);
        }
        let rate = self.socket.worker.limits.frames_per_second_max;
        let gate = &self.socket.gate;
        let resumes_at = gate.end_pause(rate, now, self.socket.worker.seconds_at(now));
        let is_pressed = stuck || resumes_at.is_some() || gate.unfinished_since().is_some();
        if !is_pressed && self.wakes_at.is_some_and(|wakes_at| now < wakes_at) {
            return true;
        }
        let (deadline, next) = self.deadline(stuck, now);
        if deadline <= now {
            match next {
                NextDeadline::Question => self.socket.outbox.tell(News::Silent),
                NextDeadline::End(ending) => self.socket.outbox.end(ending),
            }
            if stuck {
                self.drop_slow();
                return false;
            }
            // The rest is the actor's task; this is checked again in case the actor does nothing.
            self.timer.as_mut().reset((now + LINGER).into());
        } else {
            let wakes_at = match next {
                // Nothing wakes the pump when more arrives that is not read.
                _ if stuck => {
                    deadline.min(now + self.socket.worker.limits.idle_timeout / STUCK_LOOKS)
                }
                NextDeadline::Question | NextDeadline::End(Ending::Idle) => {
                    self.socket.worker.look_after(deadline)
                }
                _ => deadline,
            };
            let wakes_at = resumes_at.map_or(wakes_at, |resumes_at| resumes_at.min(wakes_at));
            self.wakes_at = Some(wakes_at);
            self.timer.as_mut().reset(wakes_at.into());
        }
        // A wake-up that is too early is harmless, but a missing one is not.
        if self.timer.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready() {
            self.socket.outbox.wake_session();
        }
        true
    }

    /// Notes whether the client has sent anything although nothing is read from it.
    fn listen(&mut self, now: Instant) {
        let unread_bytes = self.socket.io.borrow().unread_bytes();
        let stuck = self
            .stuck
            .get_or_insert_with(|| Box::new(Stuck { since: None, unread_bytes: 0, kept_bytes: 0 }));
        stuck.since.get_or_insert(now);
        if unread_bytes > stuck.unread_bytes {
            stuck.unread_bytes = unread_bytes;
            self.socket.gate.hear(now);
        }
        self.note_kept();
    }

    /// The first action that the session takes if nothing comes from its client, and its time.
    fn deadline(&self, stuck: bool, now: Instant) -> (Instant, NextDeadline) {
        let limits = self.socket.worker.limits;
        let gate = &self.socket.gate;
        // While a write is stuck, arriving bytes count as a sign of life even if the gate is shut.
        let silence = match (stuck, gate.tolerated()) {
            // A client that takes nothing cannot be probed, so it has the time of a probe as well.
            (true, tolerated) => {
                let until = gate.heard() + self.silence_max;
                let until = tolerated.map_or(until, |(tolerated, _)| tolerated.max(until));
                (until, NextDeadline::End(Ending::Idle))
            }
            (false, Some((until, Due::Question))) => (until, NextDeadline::Question),
            (false, Some((until, Due::End))) => (until, NextDeadline::End(Ending::Idle)),
            (false, None) => (gate.silent_since() + limits.idle_timeout, NextDeadline::Question),
        };
        let message = gate
            .unfinished_since()
            .map(|since| (since + limits.message_timeout, NextDeadline::End(Ending::SlowMessage)));
        let write = stuck.then(|| {
            let patience = match self.is_ending() {
                true => LINGER.min(limits.write_timeout),
                false => limits.write_timeout,
            };
            let since = self.stuck.as_ref().and_then(|stuck| stuck.since).unwrap_or(now);
            (since + patience, NextDeadline::End(Ending::Stuck))
        });
        let others = message.into_iter().chain(write);
        others.fold(silence, |first, other| if other.0 < first.0 { other } else { first })
    }

    /// Closes the connection: first its writing half, then everything that the client still sends
    /// is read and dropped, because a close with unread bytes would be a reset that overtakes the
    /// close frame.
    fn poll_hang_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let mut io = self.socket.io.borrow_mut();
        let until = match self.linger_until {
            Some(until) => until,
            None => {
                ready!(Pin::new(&mut *io).poll_shutdown(cx)).ok();
                let until = now + LINGER;
                self.timer.as_mut().reset(until.into());
                *self.linger_until.insert(until)
            }
        };
        let mut scratch = self.socket.worker.scratch.borrow_mut();
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && Instant::now() < until => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.timer.as_mut().poll(cx),
            }
        }
    }
}

impl<T, B, E> Future for Pump<T, B>
where
    T: SocketTransport,
    B: Stream<Item = Result<Bytes, E>>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        // The first condition implies the second one. It lies in a cache line that is read anyway.
        if this.body.is_some() || this.linger_until.is_none() {
            match this.write(cx) {
                Paused::Broken => return Poll::Ready(()),
                Paused::Finished => {}
                Paused::Turn => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Paused::Stuck => {
                    let must_free = match this.socket.outbox.ended() {
                        Some(Ending::SlowConsumer(_) | Ending::Unfinished) => true,
                        _ => this.is_ending() && this.socket.worker.topics.backlog().is_exceeded(),
                    };
                    if must_free {
                        // The memory that it holds is released now.
                        this.drop_slow();
                        return Poll::Ready(());
                    }
                    return if this.on_time(true) { Poll::Pending } else { Poll::Ready(()) };
                }
                Paused::Drained if this.is_timer_due && !this.on_time(false) => {
                    return Poll::Ready(());
                }
                Paused::Drained => {
                    this.gave_way = false;
                    return Poll::Pending;
                }
            }
        }
        this.poll_hang_up(cx)
    }
}

#[cfg(test)]
mod tests;
