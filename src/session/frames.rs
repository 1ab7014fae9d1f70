//! Reading: from a socket's bytes to whole messages.
//!
//! Decodes before it reads, and reads no more than [`TURN_BYTES_MAX`] before others of the thread get
//! a turn, so a flooding client is held back by its own socket. Between messages it holds no buffer
//! at all.

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
use crate::metrics::labels::Limit;

/// Bytes read before other tasks of the thread get a turn. Frames that amount to nothing, such as
/// pongs and empty fragments, would else be read for as long as they keep coming.
const TURN_BYTES_MAX: usize = 64 * 1024;

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
    /// When bytes last came in.
    pub(super) heard: Cell<Instant>,
    /// Whether the reader may read.
    pub(super) gate: Rc<Gate>,
}

impl<T> Socket<T> {
    /// A socket that is read from and written to from now on.
    pub(super) fn new(io: T, gate: Rc<Gate>) -> Self {
        Self { io: io.into(), heard: Instant::now().into(), gate }
    }

    /// Since when its client is silent, as far as anybody listens: who is not read from may have
    /// said anything.
    pub(super) fn silent_since(&self) -> Instant {
        if self.gate.is_shut.get() {
            return Instant::now();
        }
        let heard = self.heard.get();
        self.gate.opened.get().map_or(heard, |opened| opened.max(heard))
    }
}

/// Holds a reader back while as much of what it has read waits as may.
#[derive(Default)]
pub(super) struct Gate {
    is_shut: Cell<bool>,
    /// When it last was opened again.
    opened: Cell<Option<Instant>>,
    waker: Cell<Option<Waker>>,
}

impl Gate {
    /// Lets nothing through from now on.
    pub(super) fn shut(&self) {
        self.is_shut.set(true);
    }

    /// Lets the reader go on.
    pub(super) fn open(&self) {
        if self.is_shut.replace(false) {
            self.opened.set(Some(Instant::now()));
        }
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
    codec: Codec,
    unread: BytesMut,
    fragments: Option<Box<Fragments>>,
    message_bytes_max: usize,
    turn_bytes: usize,
    done: bool,
}

impl<T: AsyncRead + Unpin> Frames<T> {
    /// Reads from `socket`, beginning with what came in behind the handshake.
    pub(super) fn new(socket: Rc<Socket<T>>, worker: Rc<Worker>, early: BytesMut) -> Self {
        let message_bytes_max = worker.limits.message_bytes_max;
        Self {
            socket,
            worker,
            codec: Codec::new().max_size(message_bytes_max),
            unread: early,
            fragments: None,
            message_bytes_max,
            turn_bytes: 0,
            done: false,
        }
    }

    /// The next thing that the bytes at hand amount to, if they suffice.
    fn decode(&mut self) -> Result<Option<Inbound>, CloseCode> {
        while !self.unread.is_empty() {
            match whole_frame_bytes(&self.unread, self.message_bytes_max)? {
                Some(bytes) if bytes <= self.unread.len() => {}
                _ => break,
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
        if self.turn_bytes >= TURN_BYTES_MAX {
            self.turn_bytes = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut scratch = self.worker.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let mut io = self.socket.io.borrow_mut();
        let Poll::Ready(read) = Pin::new(&mut *io).poll_read(cx, &mut buffer) else {
            self.turn_bytes = 0;
            return Poll::Pending;
        };
        if read.is_err() || buffer.filled().is_empty() {
            return Poll::Ready(false);
        }
        self.socket.heard.set(Instant::now());
        self.unread.extend_from_slice(buffer.filled());
        self.turn_bytes += buffer.filled().len();
        Poll::Ready(true)
    }
}

impl<T: AsyncRead + Unpin> Stream for Frames<T> {
    type Item = Inbound;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Inbound>> {
        let this = &mut *self;
        ready!(this.socket.gate.poll_pass(cx));
        while !this.done {
            match this.decode() {
                Ok(Some(inbound)) => return Poll::Ready(Some(inbound)),
                Ok(None) => this.done = !ready!(this.poll_read(cx)),
                Err(code) => {
                    if code == CloseCode::TOO_BIG {
                        this.worker.metrics.hit(Limit::MessageBytes);
                    }
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

/// How long the frame at the front is with its head, once that can be told.
///
/// The head is read here before the codec does, for the codec judges a length only once all of the
/// frame is there, and makes room for it until then: a megabyte for who merely claims one.
///
/// # Errors
/// What breaks a rule whatever may follow.
fn whole_frame_bytes(bytes: &[u8], payload_bytes_max: usize) -> Result<Option<usize>, CloseCode> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (is_last, is_control) = (first & 0x80 != 0, first & 0x08 != 0);
    let (is_masked, length) = (second & 0x80 != 0, second & 0x7f);
    if !is_masked || first & 0x70 != 0 || is_control && (length > 125 || !is_last) {
        return Err(CloseCode::PROTOCOL);
    }
    let length = match length {
        126 => rest.first_chunk().map(|length| (2, u64::from(u16::from_be_bytes(*length)))),
        127 => rest.first_chunk().map(|length| (8, u64::from_be_bytes(*length))),
        length => Some((0, u64::from(length))),
    };
    let Some((length_bytes, payload_bytes)) = length else { return Ok(None) };
    match usize::try_from(payload_bytes) {
        Ok(payload_bytes) if payload_bytes <= payload_bytes_max => {
            Ok(Some(2 + length_bytes + MASK_BYTES + payload_bytes))
        }
        _ => Err(CloseCode::TOO_BIG),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use actix_http::ws::Message;
    use futures_util::{StreamExt, task::noop_waker};
    use tokio::{
        io::{AsyncWriteExt, duplex},
        time::timeout,
    };

    use super::*;
    use crate::session::testing::{Bench, DEADLINE, limits, masked};

    const LIMIT: usize = 1_000;

    fn frames<T: AsyncRead + Unpin>(io: T, early: &[u8]) -> Frames<T> {
        let worker = Bench::new(limits()).worker;
        let socket = Rc::new(Socket::new(io, Rc::default()));
        Frames::new(socket, worker, BytesMut::from(early))
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

    #[actix_web::test]
    async fn a_flood_of_nothing_gives_others_a_turn() {
        for (case, early, unit) in [
            ("pongs", vec![], frame(0x8a, b"")),
            ("empty fragments", frame(0x01, b""), frame(0x00, b"")),
        ] {
            let read_bytes = Rc::new(std::cell::Cell::new(0));
            let mut frames = frames(Flood { unit, read_bytes: read_bytes.clone() }, &early);
            let waker = noop_waker();
            for turn in 1..=3 {
                let polled = frames.poll_next_unpin(&mut Context::from_waker(&waker));
                assert!(polled.is_pending(), "{case}: {polled:?}");
                assert!(read_bytes.get() <= 2 * turn * TURN_BYTES_MAX, "{case}, turn {turn}");
                assert!(frames.unread.len() < 16, "{case}: all was decoded");
            }
        }
    }
}
