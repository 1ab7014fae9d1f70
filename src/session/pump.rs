//! Writing: from a session's outbox and its actor to the socket, and the clock of a connection.
//!
//! The pump is the task of a WebSocket. Frames from the broker it takes from the outbox itself, as
//! many as are there for one write. The actor is polled only when something is there for it: its
//! client, news, an answer. While a write is pending neither is looked at, so the outbox of a
//! client that does not read fills up to its bound.
//!
//! Who is woken while publications are on their way lets them go first, once, if little waits.
//! Otherwise the fan-out would wait behind hundreds of sessions that each write one frame.

use std::{
    future::Future,
    io::IoSlice,
    mem,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use actix_codec::{AsyncRead, AsyncWrite, ReadBuf};
use actix_http::ws::{OpCode, Parser};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::Stream;
use tokio::time::Sleep;

use crate::broker::{
    outbox::{Ending, Next, Outbox},
    subscriber::{Frame, Kind, Split},
};

use super::{
    frames::Socket,
    worker::{Admission, Worker},
};

/// Writes before other tasks of the thread get a turn.
const WRITES_PER_POLL: usize = 16;

/// Frames are gathered into one write until it is this large: of what a client that wakes up finds
/// waiting, so much is copied for it at a time.
const GATHERED_BYTES_MAX: usize = 32 * 1024;

/// The second part of a frame is copied into the gathered write if it is at most this large: a copy of
/// so little costs less than a write of its own.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// Bytes that a session may write before other tasks of the thread get a turn, in whole writes.
const BYTES_PER_POLL: usize = 256 * 1024;

/// How often within an idle timeout a session that is stuck in a write is looked at, in case its
/// client is silent.
const STUCK_LOOKS: u32 = 8;

/// How long a client may take to hang up after the close frame.
const LINGER: Duration = Duration::from_secs(2);

/// What a socket needs beyond reading and writing.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Makes the next close a reset: the client is not there to hear anything else.
    fn give_up(&self);

    /// How many bytes have arrived that nobody has read, as far as that can be told.
    fn unread_bytes(&self) -> u64;
}

impl Transport for tokio::net::TcpStream {
    fn give_up(&self) {
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn unread_bytes(&self) -> u64 {
        rustix::io::ioctl_fionread(self).unwrap_or_default()
    }
}

/// Drives one WebSocket until it is closed. What each write touches stands together, at the end.
pub(super) struct Pump<T, B> {
    /// Until when the client may hang up by itself.
    linger_until: Option<Instant>,
    /// When the timer rings at the latest; too early is harmless, so most reads leave it as it is.
    wakes_at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    /// What is known of a client that nothing is read from, because a write is stuck.
    stuck: Option<Box<Stuck>>,
    /// The place that the connection takes until it is closed.
    _admission: Admission,
    /// Rings the outbox's bell. It is what the actor and the timer are polled with: a frame from the
    /// broker is written without a look at either.
    bell: Waker,
    /// The actor's outgoing bytes; `None` once it has stopped.
    body: Option<Pin<Box<B>>>,
    /// When the first that is of interest among what is being written was published.
    sampled: Option<Instant>,
    worker: Rc<Worker>,
    outbox: Arc<Outbox>,
    socket: Rc<Socket<T>>,
    /// What the socket has not taken yet.
    unwritten: Bytes,
    /// What comes behind it: the second part of a frame, which other sessions may share.
    unwritten_body: Option<Box<Bytes>>,
    is_actor_due: bool,
    is_timer_due: bool,
    /// Whether it has looked for publications to let go first since all was written.
    gave_way: bool,
}

/// What is known of a client since something was last read from it.
struct Stuck {
    /// Since when writing makes no progress.
    since: Option<Instant>,
    /// What it has sent meanwhile.
    unread_bytes: u64,
}

/// A frame as it goes over the wire. A large part that it shares is returned, to be written from where
/// it lies.
fn gather(frame: &Frame, gathered: &mut BytesMut) -> Option<Bytes> {
    let (payload, code) = match frame {
        Frame::Text(text) => (&text.as_bytes()[..], OpCode::Text),
        Frame::Binary(bytes) => (&bytes[..], OpCode::Binary),
        Frame::Split(split) => return gather_split(split, gathered),
    };
    Parser::write_message(gathered, payload, code, true, false);
    None
}

fn gather_split(split: &Split, gathered: &mut BytesMut) -> Option<Bytes> {
    /// The bit that says that a message ends with this frame.
    const FIN: u8 = 0x80;
    let Split { kind, head, body } = split;
    let code = match kind {
        Kind::Text => OpCode::Text,
        Kind::Binary => OpCode::Binary,
    };
    let bytes = split.size_bytes();
    gathered.put_u8(FIN | u8::from(code));
    match (bytes, u16::try_from(bytes)) {
        (short @ ..126, _) => gathered.put_u8(short as u8),
        (_, Ok(middle)) => {
            gathered.put_u8(126);
            gathered.put_u16(middle);
        }
        _ => {
            gathered.put_u8(127);
            gathered.put_u64(bytes as u64);
        }
    }
    gathered.put_slice(head);
    if body.len() > COPIED_BYTES_MAX {
        return Some(body.clone());
    }
    gathered.put_slice(body);
    None
}

/// Why writing pauses.
enum Paused {
    /// There is nothing to write.
    Drained,
    /// The socket takes no more.
    Stuck,
    /// Others shall have a turn.
    Turn,
    /// All is written and the actor has stopped.
    Finished,
    /// The socket is broken.
    Broken,
}

impl<T, B, E> Pump<T, B>
where
    T: Transport,
    B: Stream<Item = Result<Bytes, E>>,
{
    pub(super) fn new(
        socket: Rc<Socket<T>>,
        worker: Rc<Worker>,
        outbox: Arc<Outbox>,
        admission: Admission,
        body: B,
    ) -> Self {
        Self {
            socket,
            timer: Box::pin(tokio::time::sleep(worker.limits.idle_timeout)),
            bell: outbox.clone().into(),
            // Both have yet to be polled for the first time.
            is_actor_due: true,
            is_timer_due: true,
            gave_way: false,
            wakes_at: None,
            worker,
            outbox,
            body: Some(Box::pin(body)),
            unwritten: Bytes::new(),
            unwritten_body: None,
            sampled: None,
            stuck: None,
            linger_until: None,
            _admission: admission,
        }
    }

    /// Writes until something is in the way.
    fn write(&mut self, cx: &mut Context<'_>) -> Paused {
        let mut taken_bytes = 0;
        for _ in 0..WRITES_PER_POLL {
            match self.flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(broken)) => return broken,
                Poll::Pending => return Paused::Stuck,
            }
            // What is published meanwhile leaves in the same write: with as much under way as goes,
            // CPU per delivery was 0.34 to 0.35 of the floor's with this, 0.43 to 0.55 without.
            if !mem::replace(&mut self.gave_way, true)
                && self.worker.awaits_more()
                && self.outbox.holds_little()
            {
                return Paused::Turn;
            }
            if taken_bytes >= BYTES_PER_POLL {
                break;
            }
            let next = match self.write_frames(cx, &mut taken_bytes) {
                Ok(next) => next,
                Err(broken) => return broken,
            };
            if matches!(next, Next::News | Next::Closed) {
                (self.is_actor_due, self.is_timer_due) = (true, true);
            }
            let Some(body) = &mut self.body else { return Paused::Finished };
            if next == Next::Frame || !self.unwritten.is_empty() {
                continue;
            }
            if !self.is_actor_due {
                return Paused::Drained;
            }
            // It has been polled until there was nothing more to do for it; what it has just let out
            // of the outbox comes next. One that stops closes the outbox, and is polled to its end.
            self.is_actor_due = false;
            self.stuck = None;
            match body.as_mut().poll_next(&mut Context::from_waker(&self.bell)) {
                Poll::Ready(Some(Ok(chunk))) => self.unwritten = chunk,
                Poll::Ready(_) => self.body = None,
                Poll::Pending => {}
            }
        }
        Paused::Turn
    }

    /// Writes what the outbox has, as much as fits into one write; answers what comes next there, and
    /// adds up the bytes that were taken.
    fn write_frames(
        &mut self,
        cx: &mut Context<'_>,
        taken_bytes: &mut usize,
    ) -> Result<Next, Paused> {
        let worker = self.worker.clone();
        let gathered = &mut *worker.gathered.borrow_mut();
        gathered.clear();
        let (mut sampled, mut body) = (None, None);
        let next = self.outbox.take_frames(cx.waker(), |frame, published| {
            body = gather(&frame, gathered);
            sampled = sampled.or(published);
            body.is_none() && gathered.len() < GATHERED_BYTES_MAX
        });
        if gathered.is_empty() {
            return Ok(next);
        }
        self.sampled = self.sampled.or(sampled);
        let mut io = self.socket.io.borrow_mut();
        let socket = Pin::new(&mut *io);
        let (polled, body_bytes) = match &body {
            None => (socket.poll_write(cx, gathered), 0),
            Some(body) => {
                let parts = [IoSlice::new(gathered), IoSlice::new(body)];
                (socket.poll_write_vectored(cx, &parts), body.len())
            }
        };
        drop(io);
        let written = match polled {
            Poll::Ready(Ok(0) | Err(_)) => return Err(Paused::Broken),
            Poll::Ready(Ok(written)) => written,
            Poll::Pending => 0,
        };
        *taken_bytes += gathered.len() + body_bytes;
        if written == gathered.len() + body_bytes {
            self.note_written();
        } else {
            self.keep_unwritten(gathered, body, written);
        }
        if gathered.capacity() > 4 * GATHERED_BYTES_MAX {
            // One large frame must not be paid for ever after.
            *gathered = BytesMut::new();
        }
        Ok(next)
    }

    /// Keeps what the socket did not take of a write: of what was gathered a copy, of the part that is
    /// shared a reference.
    fn keep_unwritten(&mut self, gathered: &[u8], body: Option<Bytes>, written: usize) {
        let rest = gathered.get(written..).unwrap_or_default();
        let body = body.map(|mut body| {
            body.advance(written.saturating_sub(gathered.len()));
            body
        });
        match body {
            Some(body) if rest.is_empty() => self.unwritten = body,
            body => {
                self.unwritten = Bytes::copy_from_slice(rest);
                self.unwritten_body = body.map(Box::new);
            }
        }
    }

    /// Writes what the socket did not take before.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Paused>> {
        if self.unwritten.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut io = self.socket.io.borrow_mut();
        while !self.unwritten.is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, &self.unwritten)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Paused::Broken)),
                Ok(written) => {
                    self.unwritten.advance(written);
                    if let Some(stuck) = &mut self.stuck {
                        stuck.since = None;
                    }
                    if self.unwritten.is_empty()
                        && let Some(body) = self.unwritten_body.take()
                    {
                        self.unwritten = *body;
                    }
                }
            }
        }
        drop(io);
        // A session that idles should not keep its last bytes.
        self.unwritten = Bytes::new();
        self.note_written();
        Poll::Ready(Ok(()))
    }

    /// All that was said is with the kernel.
    fn note_written(&mut self) {
        if let Some(published) = self.sampled.take() {
            let took = published.elapsed().as_secs_f64();
            self.worker.metrics.publish_to_write_s.observe(took);
        }
    }

    /// The client does not take what it is sent: drop it without ceremony.
    fn drop_slow(&mut self) {
        self.socket.io.borrow().give_up();
    }

    /// Sees to the deadlines; `false` if the connection is to be dropped. A session that is to end is
    /// not waited for as long as one that may go on.
    fn on_time(&mut self, stuck: bool) -> bool {
        self.is_timer_due = false;
        let now = Instant::now();
        if stuck {
            self.listen(now);
        }
        let rate = self.worker.limits.frames_per_second_max;
        let gate = &self.socket.gate;
        let resumes_at = gate.end_pause(rate, now, self.worker.seconds_at(now));
        let is_pressed = stuck || resumes_at.is_some() || gate.unfinished_since().is_some();
        if !is_pressed && self.wakes_at.is_some_and(|wakes_at| now < wakes_at) {
            return true;
        }
        let (deadline, ending) = self.deadline(stuck, now);
        if deadline <= now {
            self.outbox.end(ending);
            if stuck {
                self.drop_slow();
                return false;
            }
            // What is left is the actor's close frame; should it not come, this asks again.
            self.timer.as_mut().reset((now + LINGER).into());
        } else {
            let wakes_at = match ending {
                // Nothing wakes the pump when more arrives that is not read.
                _ if stuck => deadline.min(now + self.worker.limits.idle_timeout / STUCK_LOOKS),
                Ending::Idle => self.worker.look_after(deadline),
                _ => deadline,
            };
            let wakes_at = resumes_at.map_or(wakes_at, |resumes_at| resumes_at.min(wakes_at));
            self.wakes_at = Some(wakes_at);
            self.timer.as_mut().reset(wakes_at.into());
        }
        // Being woken too early is harmless; being woken never is not.
        if self.timer.as_mut().poll(&mut Context::from_waker(&self.bell)).is_ready() {
            self.outbox.ring();
        }
        true
    }

    /// Notes whether the client was heard although nothing is read from it.
    fn listen(&mut self, now: Instant) {
        let unread_bytes = self.socket.io.borrow().unread_bytes();
        let stuck =
            self.stuck.get_or_insert_with(|| Box::new(Stuck { since: None, unread_bytes: 0 }));
        stuck.since.get_or_insert(now);
        if unread_bytes > stuck.unread_bytes {
            stuck.unread_bytes = unread_bytes;
            self.socket.gate.hear(now);
        }
    }

    /// What ends the session next if nothing happens, and when: whichever comes first.
    fn deadline(&self, stuck: bool, now: Instant) -> (Instant, Ending) {
        let limits = self.worker.limits;
        let gate = &self.socket.gate;
        // While a write is stuck, what arrives is heard even if the gate is shut.
        let silent_since = if stuck { gate.heard() } else { gate.silent_since() };
        let silence = (silent_since + limits.idle_timeout, Ending::Idle);
        let message = gate
            .unfinished_since()
            .map(|since| (since + limits.message_timeout, Ending::SlowMessage));
        let write = stuck.then(|| {
            let patience = match self.outbox.ended() {
                Some(_) => LINGER.min(limits.write_timeout),
                None => limits.write_timeout,
            };
            let since = self.stuck.as_ref().and_then(|stuck| stuck.since).unwrap_or(now);
            (since + patience, Ending::Stuck)
        });
        let others = message.into_iter().chain(write);
        others.fold(silence, |first, other| if other.0 < first.0 { other } else { first })
    }

    /// Hangs up: no more from us, then whatever the client still sends is read away, for closing
    /// with unread bytes would be a reset that overtakes the close frame.
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
        let mut scratch = self.worker.scratch.borrow_mut();
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
    T: Transport,
    B: Stream<Item = Result<Bytes, E>>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.linger_until.is_none() {
            this.socket.gate.begin_turn();
            match this.write(cx) {
                Paused::Broken => return Poll::Ready(()),
                Paused::Finished => {}
                Paused::Turn => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Paused::Stuck => {
                    if let Some(Ending::SlowConsumer(_) | Ending::Unfinished) = this.outbox.ended()
                    {
                        // What it holds is wanted back now.
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
