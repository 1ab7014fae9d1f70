//! Reading: from a socket's bytes to whole messages.
//!
//! Decodes before it reads, and reads no more than [`TURN_BYTES_MAX`] before others of the thread get
//! a turn, so a flooding client is held back by its own socket. Between messages it holds no buffer
//! at all.

use std::{
    cell::{Cell, RefCell},
    mem,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use actix_codec::{AsyncRead, Decoder, ReadBuf};
use actix_http::ws::{Codec, Frame, Item, ProtocolError};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures_util::Stream;

use super::{
    CloseCode, Received,
    bucket::PerSecond,
    pace::{self, Pace},
    requests::{Ticket, Turnstile, Work},
    unfinished::Holding,
    worker::Worker,
};
use crate::{
    broker::outbox::{Ending, Outbox},
    metrics::labels::Limit,
};

/// Bytes read before other tasks of the thread get a turn. Frames that amount to nothing, such as
/// pongs and empty fragments, would else be read for as long as they keep coming.
const TURN_BYTES_MAX: usize = 64 * 1024;

/// Frames taken before other sessions of the thread get a turn: a flood of heartbeats costs others
/// no more than these at a time.
const TURN_FRAMES_MAX: u32 = 16;

/// The mask in the head of every frame from a client.
const MASK_BYTES: usize = 4;

/// What a client's bytes amount to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inbound {
    /// A whole message.
    Message(Received),
    /// To be answered with a pong of the same payload.
    Ping(Bytes),
    /// The client closes.
    Close,
    /// The client broke a rule: close with this code.
    Broken(CloseCode),
}

impl Inbound {
    /// Its size in bytes.
    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.size_bytes(),
            Self::Ping(payload) => payload.len(),
            Self::Close | Self::Broken(_) => 0,
        }
    }

    /// The same in memory of its own.
    pub(super) fn detached(self) -> Self {
        let copy = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
        match self {
            Self::Message(Received::Text(text)) => Self::Message(Received::Text((&*text).into())),
            Self::Message(Received::Binary(bytes)) => Self::Message(Received::Binary(copy(bytes))),
            Self::Ping(payload) => Self::Ping(copy(payload)),
            Self::Close | Self::Broken(_) => self,
        }
    }
}

/// What reader and writer of one socket share.
pub(super) struct Socket<T> {
    /// The socket itself.
    pub(super) io: RefCell<T>,
    /// Whether the reader may read, and what it has heard.
    pub(super) gate: Rc<Gate>,
}

impl<T> Socket<T> {
    /// A socket that is read from and written to from now on.
    pub(super) fn new(io: T, gate: Rc<Gate>) -> Self {
        Self { io: io.into(), gate }
    }
}

/// Holds a reader back while as much of what it has read waits as may, and keeps the times by which
/// its client is judged.
pub(super) struct Gate {
    is_shut: Cell<bool>,
    has_joined: Cell<bool>,
    /// Frames taken in this turn.
    turn_frames: Cell<u32>,
    turnstile: Rc<Turnstile>,
    /// While the session waits at the turnstile for another turn.
    ticket: RefCell<Option<Box<Ticket>>>,
    /// How fast frames come, and whether that is too fast.
    pace: Cell<Pace>,
    /// When bytes last came in, or when the gate was last opened again.
    heard: Cell<Instant>,
    /// When the first byte of the message arrived that is not complete yet.
    unfinished_since: Cell<Option<Instant>>,
    waker: Cell<Option<Waker>>,
}

impl Gate {
    /// Lets everything through, turn by turn.
    pub(super) fn new(turnstile: Rc<Turnstile>) -> Self {
        Self {
            is_shut: Cell::default(),
            has_joined: Cell::default(),
            turn_frames: Cell::default(),
            turnstile,
            ticket: RefCell::default(),
            pace: Cell::default(),
            heard: Instant::now().into(),
            unfinished_since: Cell::default(),
            waker: Cell::default(),
        }
    }

    /// Lets nothing through from now on.
    pub(super) fn shut(&self) {
        self.is_shut.set(true);
    }

    /// Lets the reader go on. The client is not to blame for the time in which nobody read.
    pub(super) fn open(&self) {
        if self.is_shut.replace(false) {
            self.go_on();
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The time in which nobody read is not held against the client: neither as silence, nor for the
    /// message that it has begun. No more than that, or a client could hold half a message for ever by
    /// being too fast now and then.
    fn go_on(&self) {
        let now = Instant::now();
        let unheard = now.saturating_duration_since(self.heard.replace(now));
        let since = self.unfinished_since.get();
        self.unfinished_since.set(since.map(|since| (since + unheard).min(now)));
    }

    fn is_closed(&self) -> bool {
        self.is_shut.get() || self.pace.get().is_paused()
    }

    /// Whether a frame may be taken now. One too many within a second pauses the session.
    fn take_frame(&self, rate: PerSecond, now_s: f64) -> bool {
        let mut pace = self.pace.get();
        let may_be = pace.take(rate, now_s);
        self.pace.set(pace);
        if may_be {
            self.turn_frames.set(self.turn_frames.get() + 1);
        }
        may_be
    }

    /// Ends a pause as soon as enough may be taken again, and answers when to ask next.
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

    /// The session's task is polled: it may take as many frames as make a turn, unless it waits for its
    /// next turn at the turnstile.
    pub(super) fn begin_turn(&self) {
        if !self.is_in_queue() {
            self.turn_frames.set(0);
        }
    }

    fn is_in_queue(&self) -> bool {
        self.ticket.borrow().is_some()
    }

    fn is_turn_over(&self) -> bool {
        self.turn_frames.get() >= TURN_FRAMES_MAX
    }

    /// The session has joined a topic: from now on it may send messages of any size that may be.
    pub(super) fn joined(&self) {
        self.has_joined.set(true);
    }

    /// Something of the client has arrived.
    pub(super) fn hear(&self, now: Instant) {
        self.heard.set(now);
    }

    /// When something of it last did.
    pub(super) fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// Since when the client is silent, as far as anybody listens: a client that is not read from
    /// may have said anything.
    pub(super) fn silent_since(&self) -> Instant {
        let is_read = !self.is_closed() && !self.is_in_queue();
        if is_read { self.heard.get() } else { Instant::now() }
    }

    /// Since when a message is on its way that is not complete, as far as it is read.
    pub(super) fn unfinished_since(&self) -> Option<Instant> {
        self.unfinished_since.get().filter(|_| !self.is_closed())
    }

    fn poll_pass(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_closed() {
            self.waker.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        if self.is_turn_over() {
            let ticket = &mut *self.ticket.borrow_mut();
            ready!(self.turnstile.poll_pass(ticket, Work::FramesAhead, cx));
            self.turn_frames.set(0);
        }
        Poll::Ready(())
    }
}

/// What has come of a message that is not complete.
struct Partial {
    /// What its fragments amount to so far, if it comes in fragments.
    fragments: Option<Fragments>,
    /// What is held for it, among that of all sessions.
    holding: Holding,
}

/// The payload of fragments, of which the last has not come yet.
struct Fragments {
    is_text: bool,
    payload: Vec<u8>,
}

impl Fragments {
    /// Appends a fragment. The buffer grows by a quarter at least, so that many small fragments do
    /// not copy it each time, but not beyond what the message may be.
    fn append(&mut self, fragment: &[u8], bytes_max: usize) {
        let needed = self.payload.len() + fragment.len();
        if needed > self.payload.capacity() {
            let roomy = (self.payload.len() + self.payload.len() / 4).min(bytes_max);
            self.payload.reserve_exact(needed.max(roomy) - self.payload.len());
        }
        self.payload.extend_from_slice(fragment);
    }

    fn finish(self) -> Result<Received, CloseCode> {
        let payload = Bytes::from(self.payload);
        Ok(if self.is_text { Received::Text(text(payload)?) } else { Received::Binary(payload) })
    }
}

/// The messages of one socket. Ends when the client is gone, or after a [`Inbound::Broken`].
pub(super) struct Frames<T> {
    socket: Rc<Socket<T>>,
    worker: Rc<Worker>,
    outbox: Arc<Outbox>,
    codec: Codec,
    unread: BytesMut,
    /// The size of the buffer behind `unread`, of which frames may have been cut off already.
    allocated_bytes: usize,
    /// How long the frame at the front of `unread` is going to be, once its head has said so.
    awaited_bytes: usize,
    partial: Option<Box<Partial>>,
    turn_bytes: usize,
    done: bool,
}

impl<T: AsyncRead + Unpin> Frames<T> {
    /// Reads from `socket`, beginning with what came in behind the handshake.
    pub(super) fn new(
        socket: Rc<Socket<T>>,
        worker: Rc<Worker>,
        outbox: Arc<Outbox>,
        early: BytesMut,
    ) -> Self {
        let codec = Codec::new().max_size(worker.limits.message_bytes_max);
        Self {
            socket,
            worker,
            outbox,
            codec,
            allocated_bytes: early.capacity(),
            unread: early,
            awaited_bytes: 0,
            partial: None,
            turn_bytes: 0,
            done: false,
        }
    }

    /// How large a message may be, all its fragments together.
    fn message_bytes_max(&self) -> usize {
        let limits = &self.worker.limits;
        match self.socket.gate.has_joined.get() {
            true => limits.message_bytes_max,
            false => limits.unjoined_message_bytes_max,
        }
    }

    fn fragments(&mut self) -> Option<&mut Fragments> {
        self.partial.as_deref_mut().and_then(|partial| partial.fragments.as_mut())
    }

    /// The next thing that the bytes at hand amount to, if they suffice.
    fn decode(&mut self) -> Result<Option<Inbound>, CloseCode> {
        while !self.unread.is_empty() {
            let Some(head) = Head::read(&self.unread)? else {
                self.awaited_bytes = 0;
                break;
            };
            self.awaited_bytes = self.frame_bytes(&head)?;
            if self.awaited_bytes > self.unread.len() || !self.may_take_frame() {
                break;
            }
            let Some(frame) = self.codec.decode(&mut self.unread).map_err(|e| close_code(&e))?
            else {
                break;
            };
            self.awaited_bytes = 0;
            let accepted = self.accept(frame)?;
            if self.fragments().is_none() {
                self.socket.gate.unfinished_since.set(None);
            }
            if accepted.is_some() {
                return Ok(accepted);
            }
        }
        if self.unread.is_empty() {
            // Between messages a session keeps no buffer.
            self.replace_unread(0);
        }
        Ok(None)
    }

    /// Whether the frame at the front has its turn, and comes within the session's rate.
    fn may_take_frame(&self) -> bool {
        let gate = &self.socket.gate;
        if gate.is_turn_over() {
            return false;
        }
        // The clock need not be asked: frames are taken when they were read, or after a pause.
        let now_s = self.worker.seconds_at(gate.heard.get());
        let may_be = gate.take_frame(self.worker.limits.frames_per_second_max, now_s);
        if !may_be {
            self.worker.metrics.hit(Limit::FramesPerSecond);
            if gate.is_flooded() {
                self.outbox.end(Ending::TooManyFrames);
            }
        }
        may_be
    }

    /// How long a frame with this head is.
    ///
    /// # Errors
    /// If it cannot belong here, or makes its message larger than it may be.
    fn frame_bytes(&mut self, head: &Head) -> Result<usize, CloseCode> {
        let bytes_max = self.message_bytes_max();
        let bytes_max = match (head.kind, self.fragments()) {
            (Kind::Control, _) | (Kind::First, None) => bytes_max,
            (Kind::Continuation, Some(fragments)) => {
                bytes_max.saturating_sub(fragments.payload.len())
            }
            (Kind::First, Some(_)) | (Kind::Continuation, None) => {
                return Err(CloseCode::PROTOCOL);
            }
        };
        match usize::try_from(head.payload_bytes) {
            Ok(payload_bytes) if payload_bytes <= bytes_max => Ok(head.bytes + payload_bytes),
            _ => Err(CloseCode::TOO_BIG),
        }
    }

    fn accept(&mut self, frame: Frame) -> Result<Option<Inbound>, CloseCode> {
        Ok(match frame {
            Frame::Text(bytes) => Some(Inbound::Message(Received::Text(text(bytes)?))),
            Frame::Binary(bytes) => Some(Inbound::Message(Received::Binary(bytes))),
            Frame::Continuation(item) => self.reassemble(item)?.map(Inbound::Message),
            Frame::Ping(payload) => Some(Inbound::Ping(payload)),
            Frame::Pong(_) => None,
            Frame::Close(_) => Some(Inbound::Close),
        })
    }

    fn reassemble(&mut self, item: Item) -> Result<Option<Received>, CloseCode> {
        let bytes_max = self.message_bytes_max();
        let (fragment, is_last) = match item {
            Item::FirstText(first) => {
                self.partial().fragments =
                    Some(Fragments { is_text: true, payload: first.to_vec() });
                return Ok(None);
            }
            Item::FirstBinary(first) => {
                self.partial().fragments =
                    Some(Fragments { is_text: false, payload: first.to_vec() });
                return Ok(None);
            }
            Item::Continue(fragment) => (fragment, false),
            Item::Last(fragment) => (fragment, true),
        };
        let partial = self.partial();
        let mut fragments = partial.fragments.take().ok_or(CloseCode::PROTOCOL)?;
        fragments.append(&fragment, bytes_max);
        if is_last {
            return fragments.finish().map(Some);
        }
        partial.fragments = Some(fragments);
        Ok(None)
    }

    fn partial(&mut self) -> &mut Partial {
        self.partial.get_or_insert_with(|| {
            let holding = self.worker.sessions.unfinished().hold(self.outbox.clone());
            Box::new(Partial { fragments: None, holding })
        })
    }

    /// Reads once. `Ready(false)` when the client is gone.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.turn_bytes >= TURN_BYTES_MAX || self.worker.sessions.unfinished().is_congested() {
            self.turn_bytes = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let worker = self.worker.clone();
        let mut scratch = worker.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let mut io = self.socket.io.borrow_mut();
        let Poll::Ready(read) = Pin::new(&mut *io).poll_read(cx, &mut buffer) else {
            self.turn_bytes = 0;
            return Poll::Pending;
        };
        drop(io);
        let read_bytes = buffer.filled();
        if read.is_err() || read_bytes.is_empty() {
            return Poll::Ready(false);
        }
        self.socket.gate.hear(Instant::now());
        self.turn_bytes += read_bytes.len();
        self.keep(read_bytes);
        Poll::Ready(true)
    }

    /// Appends what was read to what is unread. The buffer doubles as it grows, but not beyond the
    /// frame that is awaited: a message holds about its size once.
    fn keep(&mut self, read: &[u8]) {
        let needed = self.unread.len() + read.len();
        if needed > self.unread.capacity() {
            self.replace_unread(needed.max(self.awaited_bytes.min(2 * self.unread.len())));
        }
        self.unread.extend_from_slice(read);
    }

    /// Moves what is unread to a buffer of this size.
    fn replace_unread(&mut self, bytes: usize) {
        let outgrown = mem::replace(&mut self.unread, BytesMut::with_capacity(bytes));
        self.unread.extend_from_slice(&outgrown);
        self.allocated_bytes = bytes;
    }

    /// Notes what is held while others have their turn; without an unfinished message, nothing.
    fn note_unfinished(&mut self) {
        if self.unread.is_empty() && self.fragments().is_none() {
            self.partial = None;
            return;
        }
        if self.unread.len() < self.allocated_bytes / 2 && self.awaited_bytes < self.allocated_bytes
        {
            // A few bytes would keep the whole buffer that they were read into.
            self.replace_unread(self.unread.len());
        }
        let gate = &self.socket.gate;
        gate.unfinished_since.set(gate.unfinished_since.get().or(Some(gate.heard.get())));
        let unread_bytes = self.allocated_bytes;
        let Partial { fragments, holding } = self.partial();
        let fragment_bytes = fragments.as_ref().map_or(0, |fragments| fragments.payload.capacity());
        holding.set(unread_bytes + fragment_bytes);
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Poll<Option<Inbound>> {
        ready!(self.socket.gate.poll_pass(cx));
        while !self.done {
            match self.decode() {
                Ok(Some(inbound)) => return Poll::Ready(Some(inbound)),
                Ok(None) if self.must_wait() => {
                    ready!(self.socket.gate.poll_pass(cx));
                }
                Ok(None) => self.done = !ready!(self.poll_read(cx)),
                Err(code) => {
                    if code == CloseCode::TOO_BIG {
                        self.worker.metrics.hit(Limit::MessageBytes);
                    }
                    self.done = true;
                    self.forget();
                    return Poll::Ready(Some(Inbound::Broken(code)));
                }
            }
        }
        self.forget();
        Poll::Ready(None)
    }

    /// Whether what is there has to wait although it may be whole.
    fn must_wait(&self) -> bool {
        self.socket.gate.is_closed() || self.socket.gate.is_turn_over()
    }

    /// Lets go of what will never be complete.
    fn forget(&mut self) {
        self.unread = BytesMut::new();
        self.partial = None;
    }
}

impl<T: AsyncRead + Unpin> Stream for Frames<T> {
    type Item = Inbound;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Inbound>> {
        let polled = self.poll_inbound(cx);
        if polled.is_pending() {
            self.note_unfinished();
        }
        polled
    }
}

fn text(bytes: Bytes) -> Result<ByteString, CloseCode> {
    ByteString::try_from(bytes).map_err(|_| CloseCode::NOT_UTF8)
}

fn close_code(error: &ProtocolError) -> CloseCode {
    match error {
        ProtocolError::Overflow => CloseCode::TOO_BIG,
        _ => CloseCode::PROTOCOL,
    }
}

/// Where a frame belongs.
#[derive(Clone, Copy)]
enum Kind {
    /// Between any others.
    Control,
    /// At the beginning of a message.
    First,
    /// Behind the beginning of a message.
    Continuation,
}

/// What the head of a frame says.
///
/// The head is read here before the codec does, for the codec judges a length only once all of the
/// frame is there, and makes room for it until then: a megabyte for a client that merely claims one.
struct Head {
    kind: Kind,
    /// Its own length.
    bytes: usize,
    payload_bytes: u64,
}

impl Head {
    /// Reads the head of the frame at the front; `None` while its length cannot be told.
    ///
    /// # Errors
    /// What breaks a rule whatever may follow.
    fn read(bytes: &[u8]) -> Result<Option<Self>, CloseCode> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        let kind = match first & 0x0f {
            0x00 => Kind::Continuation,
            opcode if opcode & 0x08 != 0 => Kind::Control,
            _ => Kind::First,
        };
        let (is_last, is_control) = (first & 0x80 != 0, matches!(kind, Kind::Control));
        let (is_masked, length) = (second & 0x80 != 0, second & 0x7f);
        if !is_masked || first & 0x70 != 0 || is_control && (length > 125 || !is_last) {
            return Err(CloseCode::PROTOCOL);
        }
        let length = match length {
            126 => rest.first_chunk().map(|length| (2, u64::from(u16::from_be_bytes(*length)))),
            127 => rest.first_chunk().map(|length| (8, u64::from_be_bytes(*length))),
            length => Some((0, u64::from(length))),
        };
        Ok(length.map(|(length_bytes, payload_bytes)| Self {
            kind,
            bytes: 2 + length_bytes + MASK_BYTES,
            payload_bytes,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        task::Wake,
    };

    use actix_http::ws::Message;
    use futures_util::StreamExt;
    use tokio::{
        io::{AsyncWriteExt, duplex},
        time::timeout,
    };

    use super::*;
    use crate::session::{
        testing::{Bench, DEADLINE, limits, masked},
        worker::SessionLimits,
    };

    const LIMIT: usize = 1_000;

    fn frames<T: AsyncRead + Unpin>(io: T, early: &[u8]) -> Frames<T> {
        frames_of(Bench::new(limits()).worker, io, early)
    }

    fn frames_of<T: AsyncRead + Unpin>(worker: Rc<Worker>, io: T, early: &[u8]) -> Frames<T> {
        let gate = Rc::new(Gate::new(worker.turnstile.clone()));
        let socket = Rc::new(Socket::new(io, gate));
        let admission = worker.sessions.admit().expect("room for a session");
        let outbox = worker.outbox(&admission);
        Frames::new(socket, worker, outbox, BytesMut::from(early))
    }

    /// Everything that these bytes amount to, if they arrive so many at a time.
    async fn inbound(bytes: &[u8], at_once: usize) -> Vec<Inbound> {
        let (mut near, far) = duplex(at_once);
        let bytes = bytes.to_vec();
        let writing = tokio::task::spawn_local(async move {
            // Frames that were broken are not read to their end.
            let _ = near.write_all(&bytes).await;
        });
        let all = timeout(DEADLINE, frames(far, &[]).collect()).await.expect("an end in time");
        writing.abort();
        all
    }

    /// A masked frame by hand, whose mask is zero: first byte, then the payload.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = payload.len();
        let mut bytes = vec![first];
        match u8::try_from(length) {
            Ok(short) if short < 126 => bytes.push(0x80 | short),
            _ => {
                let length = u16::try_from(length).expect("a frame of the middle size");
                bytes.push(0x80 | 126);
                bytes.extend(length.to_be_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    /// The head of a masked frame that claims a length of eight bytes, and nothing after it.
    fn claim(first: u8, length: u64) -> Vec<u8> {
        [&[first, 0x80 | 127][..], &length.to_be_bytes()].concat()
    }

    fn text_of(text: &str) -> Inbound {
        Inbound::Message(Received::Text(text.into()))
    }

    #[actix_web::test]
    async fn bytes_become_messages() {
        let long = "x".repeat(LIMIT);
        let half = &long[..LIMIT / 2];
        let ping = || Inbound::Ping(Bytes::from_static(b"p"));
        for (case, bytes, expected) in [
            ("text", frame(0x81, b"hi"), vec![text_of("hi")]),
            ("really masked", masked(Message::Text("hi".into())), vec![text_of("hi")]),
            ("empty text", frame(0x81, b""), vec![text_of("")]),
            (
                "binary",
                frame(0x82, b"\xff\0"),
                vec![Inbound::Message(Received::Binary(Bytes::from_static(b"\xff\0")))],
            ),
            (
                "two",
                [frame(0x81, b"a"), frame(0x81, b"b")].concat(),
                vec![text_of("a"), text_of("b")],
            ),
            ("just the limit", frame(0x81, long.as_bytes()), vec![text_of(&long)]),
            (
                "fragments of just the limit",
                [frame(0x01, half.as_bytes()), frame(0x80, half.as_bytes())].concat(),
                vec![text_of(&long)],
            ),
            (
                "fragments with control frames between",
                [
                    frame(0x01, b"a"),
                    frame(0x89, b"p"),
                    frame(0x00, b""),
                    frame(0x8a, b"q"),
                    frame(0x80, b"b"),
                ]
                .concat(),
                vec![ping(), text_of("ab")],
            ),
            (
                "a character cut by fragments",
                [frame(0x01, b"\xc3"), frame(0x80, b"\xa9")].concat(),
                vec![text_of("\u{e9}")],
            ),
            (
                "binary fragments",
                [frame(0x02, b"\xff"), frame(0x80, b"")].concat(),
                vec![Inbound::Message(Received::Binary(Bytes::from_static(b"\xff")))],
            ),
            ("ping", frame(0x89, b"p"), vec![ping()]),
            ("pong", frame(0x8a, b"p"), vec![]),
            ("close", frame(0x88, b"\x03\xe8"), vec![Inbound::Close]),
            ("close without words", frame(0x88, b""), vec![Inbound::Close]),
            ("half a frame", frame(0x81, b"hi")[..7].to_vec(), vec![]),
            ("half a head", vec![0x81], vec![]),
        ] {
            assert_eq!(inbound(&bytes, 4_096).await, expected, "{case}");
            assert_eq!(inbound(&bytes, 1).await, expected, "{case}, byte by byte");
        }
    }

    #[actix_web::test]
    async fn who_breaks_a_rule_is_told_which_and_not_heard_any_more() {
        let long = vec![b'x'; LIMIT];
        let mut unmasked = frame(0x81, b"");
        unmasked[1] = 2;
        for (case, bytes, code) in [
            ("unmasked", unmasked, CloseCode::PROTOCOL),
            ("reserved bit 1", frame(0xc1, b"hi"), CloseCode::PROTOCOL),
            ("reserved bit 2", frame(0xa1, b"hi"), CloseCode::PROTOCOL),
            ("reserved bit 3", frame(0x91, b"hi"), CloseCode::PROTOCOL),
            ("opcode 3", frame(0x83, b"hi"), CloseCode::PROTOCOL),
            ("opcode 7", frame(0x87, b""), CloseCode::PROTOCOL),
            ("opcode 11", frame(0x8b, b""), CloseCode::PROTOCOL),
            ("opcode 15", frame(0x8f, b""), CloseCode::PROTOCOL),
            ("ping in fragments", frame(0x09, b"p"), CloseCode::PROTOCOL),
            ("huge ping by its head", claim(0x89, 1 << 40), CloseCode::PROTOCOL),
            ("long ping", frame(0x89, &[0; 126]), CloseCode::PROTOCOL),
            ("continuation of nothing", frame(0x80, b"x"), CloseCode::PROTOCOL),
            ("middle of nothing", frame(0x00, b"x"), CloseCode::PROTOCOL),
            (
                "text within fragments",
                [frame(0x01, b"a"), frame(0x81, b"b")].concat(),
                CloseCode::PROTOCOL,
            ),
            (
                "text within fragments, by its head",
                [frame(0x01, b"a"), frame(0x81, b"b")[..2].to_vec()].concat(),
                CloseCode::PROTOCOL,
            ),
            (
                "fragments beyond the limit, by the head of the last",
                [frame(0x01, &long[1..]), frame(0x80, b"xy")[..2].to_vec()].concat(),
                CloseCode::TOO_BIG,
            ),
            (
                "fragments within fragments",
                [frame(0x01, b"a"), frame(0x02, b"b")].concat(),
                CloseCode::PROTOCOL,
            ),
            ("close of one byte", frame(0x88, b"\x03"), CloseCode::PROTOCOL),
            ("not UTF-8", frame(0x81, b"\xff"), CloseCode::NOT_UTF8),
            ("half a surrogate pair", frame(0x81, b"\xed\xa0\x80"), CloseCode::NOT_UTF8),
            (
                "not UTF-8 in fragments",
                [frame(0x01, b"\xc3"), frame(0x80, b"x")].concat(),
                CloseCode::NOT_UTF8,
            ),
            ("one byte too many", frame(0x81, &[b'x'; LIMIT + 1]), CloseCode::TOO_BIG),
            (
                "the same by its head",
                frame(0x81, &[b'x'; LIMIT + 1])[..4].to_vec(),
                CloseCode::TOO_BIG,
            ),
            ("a terabyte by its head", claim(0x82, 1 << 40), CloseCode::TOO_BIG),
            ("more than there can be", claim(0x81, u64::MAX), CloseCode::TOO_BIG),
            ("a fragment of a terabyte", claim(0x01, 1 << 40), CloseCode::TOO_BIG),
            (
                "fragments beyond the limit",
                [frame(0x01, &long), frame(0x00, b""), frame(0x80, b"x")].concat(),
                CloseCode::TOO_BIG,
            ),
            (
                "endless fragments",
                [frame(0x02, b""), frame(0x00, &[0; 10]).repeat(LIMIT)].concat(),
                CloseCode::TOO_BIG,
            ),
        ] {
            let expected = [Inbound::Broken(code)];
            let more = [&bytes[..], &frame(0x81, b"more")].concat();
            assert_eq!(inbound(&more, 65_536).await, expected, "{case}");
            assert_eq!(inbound(&bytes, 1).await, expected, "{case}, byte by byte");
        }
    }

    #[actix_web::test]
    async fn what_came_behind_the_handshake_comes_first() {
        let (mut near, far) = duplex(64);
        near.write_all(&frame(0x81, b"later")[3..]).await.expect("room");
        drop(near);
        let early = [frame(0x81, b"early"), frame(0x81, b"later")[..3].to_vec()].concat();
        let all: Vec<_> = frames(far, &early).collect().await;
        assert_eq!(all, [text_of("early"), text_of("later")]);
    }

    #[actix_web::test]
    async fn between_messages_no_buffer_is_kept() {
        let (mut near, far) = duplex(4_096);
        let mut frames = frames(far, &[]);
        near.write_all(&frame(0x81, &[b'x'; LIMIT])).await.expect("room");
        assert!(frames.next().await.is_some());
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        assert!(frames.poll_next_unpin(&mut cx).is_pending());
        assert_eq!(frames.unread.capacity(), 0);
    }

    #[actix_web::test]
    async fn a_claim_makes_no_room_for_what_has_not_come() {
        let (mut near, far) = duplex(4_096);
        let mut frames = frames(far, &[]);
        near.write_all(&frame(0x81, &[b'x'; LIMIT])[..10]).await.expect("room");
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        assert!(frames.poll_next_unpin(&mut cx).is_pending());
        assert!(frames.unread.capacity() < LIMIT / 2, "{}", frames.unread.capacity());
    }

    /// Polls until all is decoded that is there, when there must be nothing whole.
    async fn is_pending<T: AsyncRead + Unpin>(frames: &mut Frames<T>) {
        loop {
            frames.socket.gate.begin_turn();
            let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
            let polled = frames.poll_next_unpin(&mut cx);
            assert!(polled.is_pending(), "{polled:?}");
            if !frames.socket.gate.is_in_queue() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// What is held in buffers.
    fn held<T>(frames: &Frames<T>) -> usize {
        let fragments = frames.partial.as_ref().and_then(|partial| partial.fragments.as_ref());
        frames.allocated_bytes + fragments.map_or(0, |fragments| fragments.payload.capacity())
    }

    #[actix_web::test]
    async fn a_message_is_held_once_in_whatever_pieces_it_comes() {
        const MESSAGE: usize = 60_000;
        for (case, fragments, at_once) in [
            ("one frame", vec![MESSAGE], 1_000),
            ("one frame, slowly", vec![MESSAGE], 7),
            ("a fragment and the rest", vec![MESSAGE / 2, MESSAGE / 2], 1_000),
            ("many small fragments", vec![60; MESSAGE / 60], 1_000),
            ("a fragment and a drip", vec![MESSAGE - 10, 10], 1),
        ] {
            let large = SessionLimits { unjoined_message_bytes_max: MESSAGE, ..limits() };
            let worker = Bench::new(SessionLimits { message_bytes_max: MESSAGE, ..large }).worker;
            let (mut near, far) = duplex(MESSAGE);
            let mut frames = frames_of(worker, far, &[]);
            let last = fragments.len() - 1;
            let mut all = Vec::new();
            for (nth, length) in fragments.iter().enumerate() {
                let first = if nth == 0 { 0x02 } else { 0x00 };
                let is_last = if nth == last { 0x80 } else { 0x00 };
                all.extend(frame(first | is_last, &vec![b'x'; *length]));
            }
            let (all_but_one, last) = all.split_at(all.len() - 1);
            for piece in all_but_one.chunks(at_once) {
                near.write_all(piece).await.expect("room");
                is_pending(&mut frames).await;
                assert!(held(&frames) <= MESSAGE + 100, "{case}: {}", held(&frames));
            }
            near.write_all(last).await.expect("room");
            let whole = Received::Binary(vec![b'x'; MESSAGE].into());
            assert_eq!(frames.next().await, Some(Inbound::Message(whole)), "{case}");
            is_pending(&mut frames).await;
            assert_eq!(held(&frames), 0, "{case}");
        }
    }

    #[actix_web::test]
    async fn the_beginning_of_a_message_keeps_no_buffer_of_what_came_before_it() {
        let (mut near, far) = duplex(60_000);
        let mut frames = frames(far, &[]);
        near.write_all(&frame(0x81, &[b'x'; LIMIT]).repeat(50)).await.expect("room");
        near.write_all(&frame(0x81, b"next")[..3]).await.expect("room");
        for _ in 0..50 {
            assert!(frames.next().await.is_some());
        }
        is_pending(&mut frames).await;
        assert_eq!(held(&frames), 3);
    }

    #[actix_web::test]
    async fn a_message_is_timed_from_its_first_byte_until_it_is_complete() {
        let (mut near, far) = duplex(4_096);
        let mut frames = frames(far, &[]);
        let since = |frames: &Frames<_>| frames.socket.gate.unfinished_since();
        is_pending(&mut frames).await;
        assert_eq!(since(&frames), None);
        near.write_all(&[0x01]).await.expect("room");
        is_pending(&mut frames).await;
        let began = since(&frames).expect("a message has begun");
        let text = frame(0x01, b"ab");
        for (case, bytes) in [
            ("the rest of a fragment", &text[1..]),
            ("a pong between", &frame(0x8a, b"")),
            ("an empty fragment", &frame(0x00, b"")),
            ("a byte of the last one", &frame(0x80, b"")[..1]),
        ] {
            near.write_all(bytes).await.expect("room");
            is_pending(&mut frames).await;
            assert_eq!(since(&frames), Some(began), "{case}");
        }
        near.write_all(&frame(0x80, b"c")[1..]).await.expect("room");
        assert_eq!(frames.next().await, Some(text_of("abc")));
        is_pending(&mut frames).await;
        assert_eq!(since(&frames), None);
        near.write_all(&frame(0x8a, b"half a pong")[..9]).await.expect("room");
        is_pending(&mut frames).await;
        assert!(since(&frames).is_some_and(|since| since > began), "also of a control frame");
        frames.socket.gate.shut();
        assert_eq!(since(&frames), None, "nobody reads");
        frames.socket.gate.open();
        assert!(since(&frames).is_some());
    }

    #[actix_web::test]
    async fn a_session_without_a_join_sends_no_larger_message_than_a_join_can_be() {
        let worker = || {
            let small = SessionLimits { unjoined_message_bytes_max: 100, ..limits() };
            Bench::new(small).worker
        };
        let (fits, too_big) = ([b'x'; 100], [b'x'; 101]);
        let in_fragments = [frame(0x01, &fits[..60]), frame(0x80, &fits[..41])].concat();
        let whole = |bytes: &[u8]| {
            Inbound::Message(Received::Text(str::from_utf8(bytes).expect("text").into()))
        };
        for (case, bytes, expected) in [
            ("as large as may be", frame(0x81, &fits), whole(&fits)),
            ("larger", frame(0x81, &too_big), Inbound::Broken(CloseCode::TOO_BIG)),
            ("larger, in fragments", in_fragments, Inbound::Broken(CloseCode::TOO_BIG)),
        ] {
            let (_near, far) = duplex(64);
            let mut frames = frames_of(worker(), far, &bytes);
            assert_eq!(frames.next().await, Some(expected), "{case}");
        }
        let (_near, far) = duplex(64);
        let mut frames = frames_of(worker(), far, &frame(0x81, &too_big));
        frames.socket.gate.joined();
        assert_eq!(frames.next().await, Some(whole(&too_big)), "after a join");
    }

    /// A client that sends one and the same as fast as it is read.
    struct Flood {
        unit: Vec<u8>,
        read_bytes: Rc<std::cell::Cell<usize>>,
    }

    impl AsyncRead for Flood {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            while buffer.remaining() >= self.unit.len() {
                buffer.put_slice(&self.unit);
            }
            self.read_bytes.set(self.read_bytes.get() + buffer.filled().len());
            Poll::Ready(Ok(()))
        }
    }

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[actix_web::test]
    async fn a_flood_of_nothing_gives_others_a_turn_however_often_it_is_polled() {
        for (case, early, unit) in [
            ("pongs", vec![], frame(0x8a, b"")),
            ("empty fragments", frame(0x01, b""), frame(0x00, b"")),
        ] {
            let read_bytes = Rc::new(std::cell::Cell::new(0));
            let mut frames = frames(Flood { unit, read_bytes: read_bytes.clone() }, &early);
            let gate = frames.socket.gate.clone();
            let wakes = Arc::new(Wakes::default());
            let waker = Waker::from(wakes.clone());
            for turn in 0..3 {
                let is_its_turn = async {
                    while wakes.0.load(Relaxed) < turn {
                        tokio::task::yield_now().await;
                    }
                };
                timeout(DEADLINE, is_its_turn).await.expect("its turn, in time");
                let mut taken = Vec::new();
                for _ in 0..3 {
                    gate.begin_turn();
                    let polled = frames.poll_next_unpin(&mut Context::from_waker(&waker));
                    assert!(polled.is_pending(), "{case}: {polled:?}");
                    assert!(gate.is_in_queue(), "{case}");
                    assert_eq!(gate.turn_frames.get(), TURN_FRAMES_MAX, "{case}");
                    taken.push(gate.pace.get());
                }
                taken.dedup();
                assert_eq!(taken.len(), 1, "{case}: nothing is taken while it waits");
                assert!(read_bytes.get() <= TURN_BYTES_MAX, "{case}, turn {turn}");
            }
        }
    }
}
