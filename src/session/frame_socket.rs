//! The socket of a WebSocket session, and the writing of frames to it.
//!
//! The reader, the pump and the fan-out of the thread share a socket. Usually the fan-out has the frames
//! of a publication written without running the session; see [`FrameWriter`]. The pump writes everything else: the
//! answers of the session, the bytes that the socket did not take at once, frames behind news, what exceeds one write, and
//! all frames while further publications are on their way to the thread.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    mem,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use actix_codec::{AsyncRead, AsyncWrite};
use actix_http::ws::{OpCode, Parser};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};

use super::{gate::Gate, worker::Worker};
use crate::broker::{
    outbox::{NextItem, Outbox},
    subscriber::{Frame, FrameKind, Split},
    writers::FrameWriter,
};

/// The size up to which frames are gathered into one write: at most this much is copied for a
/// client at a time.
const GATHERED_BYTES_MAX: usize = 32 * 1024;

/// The second part of a frame is copied into the gathered write if it is at most this large: a copy of
/// so little costs less than a write of its own.
pub(super) const COPIED_BYTES_MAX: usize = 8 * 1024;

/// The size from which on a session's own bytes count in the backlog while they wait. Smaller ones, such as the
/// answer to a heartbeat, are not worth the counting.
const COUNTED_BYTES_MIN: usize = 1_024;

/// The operations of a socket beyond reading and writing.
pub(super) trait SocketTransport: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Makes the next close a reset, because the client no longer reads.
    fn give_up(&self);

    /// The bytes that have arrived and were not read, as far as the system can tell.
    fn unread_bytes(&self) -> u64;

    /// Writes two byte strings, of which the second may be empty, as far as the socket takes them at once. Returns the
    /// number of bytes. If it is 0, a later [`poll_write`](AsyncWrite::poll_write) finds out why.
    fn write_at_once(&self, parts: [&[u8]; 2]) -> usize;
}

impl SocketTransport for tokio::net::TcpStream {
    fn give_up(&self) {
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn unread_bytes(&self) -> u64 {
        rustix::io::ioctl_fionread(self).unwrap_or_default()
    }

    /// This does not check the readiness that the runtime keeps, which would be one more cache miss. `write` instead of
    /// `send` would pass through the kernel's file layer, which takes 5 % longer for 200 bytes. A closed connection
    /// is an error, because Rust programs ignore the signal for it.
    fn write_at_once(&self, [first, second]: [&[u8]; 2]) -> usize {
        let sent = match second {
            [] => send(self, first, SendFlags::empty()),
            second => {
                let parts = [IoSlice::new(first), IoSlice::new(second)];
                sendmsg(self, &parts, &mut SendAncillaryBuffer::default(), SendFlags::empty())
            }
        };
        sent.unwrap_or_default()
    }
}

/// The socket of a session, which its reader, its pump and the fan-out share.
pub(super) struct FrameSocket<T> {
    /// The socket itself.
    pub(super) io: RefCell<T>,
    pub(super) worker: Rc<Worker>,
    pub(super) outbox: Arc<Outbox>,
    /// The bytes that the socket did not take at once.
    unwritten: RefCell<Option<Box<Unwritten>>>,
    /// The gate of the reader.
    pub(super) gate: Rc<Gate>,
}

/// Bytes that a socket has not taken.
struct Unwritten {
    /// The next bytes; never empty.
    first: Bytes,
    /// The bytes that follow: the second part of a frame, which other sessions may share.
    second: Bytes,
    /// The time of publication of the first of these frames whose latency is sampled.
    sampled: Option<Instant>,
}

impl<T> FrameSocket<T> {
    /// A socket that is read from and written to from now on.
    pub(super) fn new(io: T, gate: Rc<Gate>, worker: Rc<Worker>, outbox: Arc<Outbox>) -> Self {
        Self { io: io.into(), worker, outbox, unwritten: RefCell::default(), gate }
    }

    /// The number of bytes that the socket did not take at once.
    pub(super) fn unwritten_bytes(&self) -> usize {
        let unwritten = self.unwritten.borrow();
        unwritten.as_ref().map_or(0, |rest| rest.first.len() + rest.second.len())
    }

    /// Returns whether the socket has taken all bytes.
    pub(super) fn has_taken_all(&self) -> bool {
        self.unwritten.borrow().is_none()
    }

    /// Keeps what the socket did not take: the rest of the bytes of this session alone, which count in the backlog
    /// for as long as they wait, and of those that it may share.
    fn keep(&self, own: Bytes, shared: Bytes, sampled: Option<Instant>) {
        let (first, second) = match own.is_empty() {
            true => (shared, own),
            false => (self.counted(own), shared),
        };
        *self.unwritten.borrow_mut() = Some(Box::new(Unwritten { first, second, sampled }));
    }

    /// Counts bytes of this session alone in the backlog for as long as they wait, unless they are few.
    fn counted(&self, bytes: Bytes) -> Bytes {
        if bytes.len() < COUNTED_BYTES_MIN {
            return bytes;
        }
        self.worker.topics.backlog().counted(bytes)
    }

    /// Measures the latency of the sampled frame, if there is one: the kernel has all the bytes.
    fn note_written(&self, sampled: Option<Instant>) {
        if let Some(published) = sampled {
            let took = published.elapsed().as_secs_f64();
            self.worker.metrics.publish_to_write_s.observe(took);
        }
    }
}

impl<T: SocketTransport> FrameSocket<T> {
    /// Writes frames of the outbox, as many as fit into one write, once the socket has taken all earlier bytes. Returns
    /// the kind of the next item in the outbox, and the number of bytes that left it. The pump calls this with the waker
    /// of the session.
    pub(super) fn write_frames(&self, waker: Option<&Waker>) -> (NextItem, usize) {
        let gathered = &mut *self.worker.gathered.borrow_mut();
        gathered.clear();
        let (mut sampled, mut body, mut frames) = (None, None, 0);
        let next = self.outbox.take_frames(waker, |frame, published| {
            body = gather(&frame, gathered);
            frames += 1;
            sampled = sampled.or(published);
            body.is_none() && gathered.len() < GATHERED_BYTES_MAX
        });
        if gathered.is_empty() {
            return (next, 0);
        }
        self.worker.frame_writes.wrote(frames);
        let mut body = body.unwrap_or_default();
        let bytes = gathered.len() + body.len();
        let written = self.io.borrow().write_at_once([gathered, &body]);
        if written == bytes {
            self.note_written(sampled);
        } else {
            let rest = gathered.get(written..).unwrap_or_default();
            body.advance(written.saturating_sub(gathered.len()));
            self.keep(Bytes::copy_from_slice(rest), body, sampled);
        }
        if gathered.capacity() > 4 * GATHERED_BYTES_MAX {
            // A buffer that one large frame has grown is given back.
            *gathered = BytesMut::new();
        }
        (next, bytes)
    }

    /// Writes two byte strings of the session itself, each of which may be empty, once the socket has taken all earlier
    /// bytes.
    pub(super) fn write(&self, first: Bytes, mut second: Bytes) {
        let bytes = first.len() + second.len();
        if bytes == 0 {
            return;
        }
        let written = self.io.borrow().write_at_once([&first, &second]);
        if written < bytes {
            // A slice would keep all of the bytes in memory, and only its own length would be counted.
            let rest = first.get(written..).unwrap_or_default();
            second.advance(written.saturating_sub(first.len()));
            self.keep(Bytes::copy_from_slice(rest), second, None);
        }
    }

    /// Writes the bytes that the socket did not take at once.
    ///
    /// # Errors
    /// The socket is broken.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut unwritten = self.unwritten.borrow_mut();
        while let Some(rest) = unwritten.as_deref_mut() {
            let mut io = self.io.borrow_mut();
            let written = ready!(Pin::new(&mut *io).poll_write(cx, &rest.first))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            rest.first.advance(written);
            if rest.first.is_empty() {
                rest.first = mem::take(&mut rest.second);
            }
            if rest.first.is_empty() {
                self.note_written(rest.sampled);
                *unwritten = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: SocketTransport> FrameWriter for FrameSocket<T> {
    fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    fn write_waiting(&self) -> bool {
        self.has_taken_all()
            && matches!(self.write_frames(None), (NextItem::Nothing, _))
            && self.has_taken_all()
    }
}

/// Appends a whole frame as it goes over the wire.
pub(super) fn gather_whole(frame: &Frame, gathered: &mut BytesMut) {
    if let Some(body) = gather(frame, gathered) {
        gathered.put_slice(&body);
    }
}

/// Appends a frame as it goes over the wire. A large shared part is returned instead, to be written
/// without a copy.
pub(super) fn gather(frame: &Frame, gathered: &mut BytesMut) -> Option<Bytes> {
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
        FrameKind::Text => OpCode::Text,
        FrameKind::Binary => OpCode::Binary,
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

#[cfg(test)]
mod tests;
