//! Reading: from a socket's bytes to whole messages.
//!
//! [`Frames`] decodes before it reads, and reads no more than [`TURN_BYTES_MAX`] before other tasks
//! of the thread get a turn: the bytes that a flooding client sends meanwhile wait in the kernel.
//! Between messages it holds no buffer.

mod head;

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use actix_codec::{AsyncRead, Decoder, ReadBuf};
use actix_http::ws::{Codec, Frame, Item, ProtocolError};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures_util::Stream;

use head::{FrameClass, FrameHead};

use super::{
    CloseCode, Received, frame_socket::FrameSocket, requests::UnreadBytes, unfinished::Holding,
};
use crate::{broker::outbox::Ending, metrics::labels::Limit};

/// Bytes read before other tasks of the thread get a turn. Frames without effect, such as pongs and
/// empty fragments, would otherwise be read for as long as they keep coming.
const TURN_BYTES_MAX: usize = 64 * 1024;

/// A unit that was read from a client's bytes.
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

    /// A copy in its own memory.
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

/// The part of an incomplete message that has come.
struct Partial {
    /// The fragments so far, if the message comes in fragments.
    fragments: Option<Fragments>,
    /// The bytes that are held for the message, counted among those of all sessions.
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

/// The messages of one socket. The stream ends when the client is gone, or after
/// [`Inbound::Broken`].
pub(super) struct Frames<T> {
    socket: Rc<FrameSocket<T>>,
    codec: Codec,
    unread: UnreadBytes,
    /// The length of the frame at the front of `unread`, once its head was read.
    awaited_bytes: usize,
    partial: Option<Box<Partial>>,
    turn_bytes: usize,
    done: bool,
}

impl<T: AsyncRead + Unpin> Frames<T> {
    /// Reads from `socket`, beginning with what came in behind the handshake.
    pub(super) fn new(socket: Rc<FrameSocket<T>>, early: BytesMut) -> Self {
        Self {
            codec: Codec::new().max_size(socket.worker.limits.message_bytes_max),
            socket,
            unread: early.into(),
            awaited_bytes: 0,
            partial: None,
            turn_bytes: 0,
            done: false,
        }
    }

    /// The most bytes that a message may have, all its fragments together.
    fn message_bytes_max(&self) -> usize {
        let limits = &self.socket.worker.limits;
        match self.socket.gate.has_joined.get() {
            true => limits.message_bytes_max,
            false => limits.unjoined_message_bytes_max,
        }
    }

    fn fragments(&mut self) -> Option<&mut Fragments> {
        self.partial.as_deref_mut().and_then(|partial| partial.fragments.as_mut())
    }

    /// Decodes the next unit from the bytes at hand, if they suffice.
    fn decode(&mut self) -> Result<Option<Inbound>, CloseCode> {
        while !self.unread.is_empty() {
            let Some(head) = FrameHead::read(&self.unread)? else {
                self.awaited_bytes = 0;
                break;
            };
            self.awaited_bytes = self.frame_bytes(&head)?;
            if self.awaited_bytes > self.unread.len() || !self.may_take_frame() {
                break;
            }
            let Some(frame) =
                self.codec.decode(self.unread.bytes_mut()).map_err(|e| close_code(&e))?
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
            self.unread = UnreadBytes::default();
        }
        Ok(None)
    }

    /// Whether the frame at the front may be taken: the turn is not over, and the session is within
    /// its rate.
    fn may_take_frame(&self) -> bool {
        let gate = &self.socket.gate;
        if gate.is_turn_over() {
            return false;
        }
        // The clock need not be read: frames are taken right after they were read, or right after a
        // pause, and `heard` is set at both.
        let now_s = self.socket.worker.seconds_at(gate.heard.get());
        let may_be = gate.take_frame(self.socket.worker.limits.frames_per_second_max, now_s);
        if !may_be {
            self.socket.worker.metrics.hit(Limit::FramesPerSecond);
            if gate.is_flooded() {
                self.socket.outbox.end(Ending::TooManyFrames);
            }
        }
        may_be
    }

    /// The length of a frame with this head.
    ///
    /// # Errors
    /// The close code, if the frame cannot come at this point, or makes its message too large.
    fn frame_bytes(&mut self, head: &FrameHead) -> Result<usize, CloseCode> {
        let bytes_max = self.message_bytes_max();
        let bytes_max = match (head.kind, self.fragments()) {
            (FrameClass::Control, _) | (FrameClass::First, None) => bytes_max,
            (FrameClass::Continuation, Some(fragments)) => {
                bytes_max.saturating_sub(fragments.payload.len())
            }
            (FrameClass::First, Some(_)) | (FrameClass::Continuation, None) => {
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
            let FrameSocket { worker, outbox, .. } = &*self.socket;
            let holding = worker.sessions.unfinished().hold(outbox.clone());
            Box::new(Partial { fragments: None, holding })
        })
    }

    /// Reads once. `Ready(false)` when the client is gone.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.turn_bytes >= TURN_BYTES_MAX
            || self.socket.worker.sessions.unfinished().is_congested()
        {
            self.turn_bytes = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let worker = self.socket.worker.clone();
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
        // The buffer does not grow beyond the awaited frame, so that a message takes about its own size.
        self.unread.append(read_bytes, self.awaited_bytes);
        Poll::Ready(true)
    }

    /// Notes the bytes that are held between turns; without an unfinished message there are none.
    fn note_unfinished(&mut self) {
        if self.unread.is_empty() && self.fragments().is_none() {
            self.partial = None;
            return;
        }
        if self.awaited_bytes < self.unread.allocated_bytes() {
            // A few bytes would keep the whole buffer that they were read into.
            self.unread.shrink();
        }
        let gate = &self.socket.gate;
        gate.unfinished_since.set(gate.unfinished_since.get().or(Some(gate.heard.get())));
        let unread_bytes = self.unread.allocated_bytes();
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
                        self.socket.worker.metrics.hit(Limit::MessageBytes);
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

    /// Whether the session must not decode now, even if a whole message is there.
    fn must_wait(&self) -> bool {
        self.socket.gate.is_closed() || self.socket.gate.is_turn_over()
    }

    /// Drops a message that will never be complete.
    fn forget(&mut self) {
        self.unread = UnreadBytes::default();
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

#[cfg(test)]
mod tests;
