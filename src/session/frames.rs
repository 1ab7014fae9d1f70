//! Reading: from a socket's bytes to whole messages.
//!
//! Decodes before it reads, and reads at most once per poll, so a flooding client is held back by
//! its own socket. Between messages it holds no buffer at all.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use actix_codec::{AsyncRead, Decoder, ReadBuf};
use actix_http::ws::{Codec, Frame, Item, ProtocolError};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures_util::Stream;

use super::{CloseCode, Received, worker::Worker};

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

/// What reader and writer of one socket share.
pub(super) struct Socket<T> {
    /// The socket itself.
    pub(super) io: RefCell<T>,
    /// When bytes last came in.
    pub(super) heard: Cell<Instant>,
}

/// Holds a reader back while a client's last message is not answered yet.
#[derive(Default)]
pub(super) struct Gate {
    is_shut: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Gate {
    /// Lets nothing through from now on.
    pub(super) fn shut(&self) {
        self.is_shut.set(true);
    }

    /// Lets the reader go on.
    pub(super) fn open(&self) {
        self.is_shut.set(false);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll_pass(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_shut.get() {
            self.waker.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// A message whose last fragment has not come yet.
enum Fragments {
    Text(BytesMut),
    Binary(BytesMut),
}

/// The messages of one socket. Ends when the client is gone, or after a [`Inbound::Broken`].
pub(super) struct Frames<T> {
    socket: Rc<Socket<T>>,
    worker: Rc<Worker>,
    gate: Rc<Gate>,
    codec: Codec,
    unread: BytesMut,
    fragments: Option<Box<Fragments>>,
    message_bytes_max: usize,
    done: bool,
}

impl<T: AsyncRead + Unpin> Frames<T> {
    /// Reads from `socket`, beginning with what came in behind the handshake.
    pub(super) fn new(
        socket: Rc<Socket<T>>,
        worker: Rc<Worker>,
        gate: Rc<Gate>,
        early: BytesMut,
    ) -> Self {
        let message_bytes_max = worker.limits.message_bytes_max;
        Self {
            socket,
            worker,
            gate,
            codec: Codec::new().max_size(message_bytes_max),
            unread: early,
            fragments: None,
            message_bytes_max,
            done: false,
        }
    }

    /// The next thing that the bytes at hand amount to, if they suffice.
    fn decode(&mut self) -> Result<Option<Inbound>, CloseCode> {
        while !self.unread.is_empty() {
            if claimed_bytes(&self.unread) > self.message_bytes_max as u64 {
                return Err(CloseCode::TOO_BIG);
            }
            let Some(frame) = self.codec.decode(&mut self.unread).map_err(|e| close_code(&e))?
            else {
                break;
            };
            if let Some(inbound) = self.accept(frame)? {
                return Ok(Some(inbound));
            }
        }
        if self.unread.is_empty() {
            // Between messages a session keeps no buffer.
            self.unread = BytesMut::new();
        }
        Ok(None)
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
        let (bytes, is_last) = match item {
            Item::FirstText(bytes) => {
                self.fragments = Some(Box::new(Fragments::Text(BytesMut::from(&bytes[..]))));
                return Ok(None);
            }
            Item::FirstBinary(bytes) => {
                self.fragments = Some(Box::new(Fragments::Binary(BytesMut::from(&bytes[..]))));
                return Ok(None);
            }
            Item::Continue(bytes) => (bytes, false),
            Item::Last(bytes) => (bytes, true),
        };
        let Some(Fragments::Text(whole) | Fragments::Binary(whole)) = self.fragments.as_deref_mut()
        else {
            return Err(CloseCode::PROTOCOL);
        };
        if whole.len() + bytes.len() > self.message_bytes_max {
            return Err(CloseCode::TOO_BIG);
        }
        whole.extend_from_slice(&bytes);
        if !is_last {
            return Ok(None);
        }
        match self.fragments.take().map(|fragments| *fragments) {
            Some(Fragments::Text(whole)) => Ok(Some(Received::Text(text(whole.freeze())?))),
            Some(Fragments::Binary(whole)) => Ok(Some(Received::Binary(whole.freeze()))),
            None => Err(CloseCode::PROTOCOL),
        }
    }

    /// Reads once. `Ready(false)` when the client is gone.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut scratch = self.worker.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let mut io = self.socket.io.borrow_mut();
        let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer));
        if read.is_err() || buffer.filled().is_empty() {
            return Poll::Ready(false);
        }
        self.socket.heard.set(Instant::now());
        self.unread.extend_from_slice(buffer.filled());
        Poll::Ready(true)
    }
}

impl<T: AsyncRead + Unpin> Stream for Frames<T> {
    type Item = Inbound;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Inbound>> {
        let this = &mut *self;
        ready!(this.gate.poll_pass(cx));
        while !this.done {
            match this.decode() {
                Ok(Some(inbound)) => return Poll::Ready(Some(inbound)),
                Ok(None) => this.done = !ready!(this.poll_read(cx)),
                Err(code) => {
                    this.done = true;
                    return Poll::Ready(Some(Inbound::Broken(code)));
                }
            }
        }
        Poll::Ready(None)
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

/// How long the frame at the head says it is. The codec would only judge it once it is all there,
/// and collect it until then.
fn claimed_bytes(head: &[u8]) -> u64 {
    match head {
        [_, b, hi, lo, ..] if b & 0x7f == 126 => u64::from(u16::from_be_bytes([*hi, *lo])),
        [_, b, rest @ ..] if b & 0x7f == 127 => match rest.first_chunk::<8>() {
            Some(length) => u64::from_be_bytes(*length),
            None => 0,
        },
        _ => 0,
    }
}
