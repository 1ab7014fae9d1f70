//! Sockets that are written to by hand, and pumps that are polled by hand.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    task::Wake,
};

use actix_codec::ReadBuf;
use futures_util::{SinkExt, stream};
use tokio_tungstenite::tungstenite;

use super::*;
use crate::{
    broker::{
        outbox::{Load, News},
        subscriber::SubscriptionId,
    },
    session::{
        pump::Pump,
        testing::{Bench, limits, text},
        worker::SessionLimits,
    },
};

const PIPE_BYTES: usize = 1_024;

/// A socket that takes everything, and remembers each write.
struct Memo(Rc<RefCell<Vec<Vec<u8>>>>);

impl AsyncRead for Memo {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Memo {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().push(bytes.into());
        Poll::Ready(Ok(bytes.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl SocketTransport for Memo {
    fn give_up(&self) {}

    fn unread_bytes(&self) -> u64 {
        0
    }

    fn write_at_once(&self, parts: [&[u8]; 2]) -> usize {
        let bytes = parts.concat();
        self.0.borrow_mut().push(bytes.clone());
        bytes.len()
    }
}

/// Goes up when woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Flag {
    /// Takes it down; `true` if it was up.
    fn lower(&self) -> bool {
        self.0.swap(false, SeqCst)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// The body of an actor that never says anything.
type Silence = stream::Pending<Result<Bytes, ()>>;

/// A session with a silent actor, whose pump is polled by hand.
struct ByHand<T> {
    socket: Rc<FrameSocket<T>>,
    pump: Pump<T, Silence>,
    is_woken: Arc<Flag>,
}

impl<T: SocketTransport> ByHand<T> {
    fn new(bench: &Bench, io: T) -> Self {
        let places = bench.places();
        let outbox = bench.worker.outbox(&places.0);
        let gate = Rc::new(Gate::new(bench.worker.work_queue.clone()));
        let socket = Rc::new(FrameSocket::new(io, gate, bench.worker.clone(), outbox));
        let pump = Pump::new(socket.clone(), places, stream::pending());
        let mut session = Self { socket, pump, is_woken: Arc::default() };
        session.run();
        session
    }

    /// Polls the pump once.
    fn run(&mut self) {
        let waker = Waker::from(self.is_woken.clone());
        assert!(Pin::new(&mut self.pump).poll(&mut Context::from_waker(&waker)).is_pending());
    }

    /// Queues a frame. Returns whether the session was woken for it.
    fn deliver(&self, frame: &Frame) -> bool {
        assert!(self.socket.outbox.deliver(frame, SubscriptionId(0), None));
        self.is_woken.lower()
    }

    fn deliver_text(&self, text: &'static str) -> bool {
        self.deliver(&Frame::Text(text.into()))
    }
}

#[actix_web::test]
async fn publications_under_way_are_let_go_first_but_only_once() {
    let bench = Bench::new(limits());
    let (mut witness, _pump) = bench.connect(PIPE_BYTES).websocket().await;
    witness.send(tungstenite::Message::text("join")).await.expect("an open socket");
    assert_eq!(text(&mut witness).await, "joined");
    let written = Rc::new(RefCell::new(Vec::new()));
    let mut session = ByHand::new(&bench, Memo(written.clone()));
    let take_turn = |session: &mut ByHand<Memo>| {
        session.run();
        written.take().concat()
    };
    assert_eq!(take_turn(&mut session), b"");
    assert!(session.deliver_text("a"));
    assert_eq!(take_turn(&mut session), b"\x81\x01a", "nothing is under way");

    // It is under way until another task of this thread has had a turn.
    bench.publish("{}").await;
    for _ in 0..2 {
        assert!(session.deliver_text("b"));
        assert_eq!(take_turn(&mut session), b"", "it gives way");
        assert!(session.is_woken.lower(), "and comes back");
        assert!(!session.deliver_text("c"));
        assert_eq!(take_turn(&mut session), b"\x81\x01b\x81\x01c");
        assert!(!session.is_woken.lower());
    }

    assert!(session.deliver_text("d"));
    for _ in 0..=limits().outbox_frames_max / 8 {
        session.deliver_text("e");
    }
    let waited = take_turn(&mut session);
    assert!(waited.starts_with(b"\x81\x01d\x81\x01e"), "too much waits: {waited:?}");

    assert_eq!(text(&mut witness).await, "{}");
    assert!(session.deliver_text("d"));
    assert_eq!(take_turn(&mut session), b"\x81\x01d", "nothing is under way any more");
}

#[actix_web::test]
async fn frames_are_written_without_the_session_unless_something_else_waits() {
    let bench = Bench::new(limits());
    let written = Rc::new(RefCell::new(Vec::new()));
    let mut session = ByHand::new(&bench, Memo(written.clone()));
    let socket = session.socket.clone();
    session.deliver_text("a");
    session.deliver(&Frame::Binary(Bytes::from_static(b"b")));
    assert!(socket.write_waiting());
    assert_eq!(written.take(), [b"\x81\x01a\x82\x01b"], "both are one write");
    assert_eq!(socket.outbox.load(), Load::default());
    assert!(socket.write_waiting() && written.take().is_empty(), "nothing is left");
    assert!(session.deliver_text("c"), "the next frame finds an idle session");
    assert!(socket.write_waiting());
    assert_eq!(written.take(), [b"\x81\x01c"]);

    session.deliver_text("d");
    socket.outbox.tell(News::Confirmed);
    session.deliver_text("e");
    assert!(!socket.write_waiting(), "the session has to take the news");
    assert_eq!(written.take(), [b"\x81\x01d"]);
    assert!(!socket.write_waiting() && written.take().is_empty(), "the frame behind it waits");
    assert!(matches!(socket.outbox.take_news(), Some(News::Confirmed)));
    assert!(socket.write_waiting());
    assert_eq!(written.take(), [b"\x81\x01e"]);

    socket.outbox.wake_session();
    session.deliver_text("f");
    assert!(!socket.write_waiting(), "the session was woken for another reason");
    assert_eq!(written.take(), [b"\x81\x01f"]);
    let next = || socket.outbox.take_frames(Some(Waker::noop()), |_, _| true);
    assert_eq!([next(), next()], [NextItem::News, NextItem::Nothing], "it still learns of it");

    let large = Frame::Text("x".repeat(GATHERED_BYTES_MAX).into());
    session.deliver(&large);
    session.deliver(&large);
    assert!(!socket.write_waiting(), "a second write would be one too many");
    session.run();
    assert_eq!(written.take().len(), 2);
}

#[actix_web::test]
async fn bytes_that_a_socket_does_not_take_go_ahead_of_all_that_is_delivered_later() {
    let bench = Bench::new(limits());
    let taken = Rc::new(RefCell::new(Vec::new()));
    let sips = Sips { bytes: 5, is_full: false, taken: taken.clone() };
    let mut session = ByHand::new(&bench, sips);
    let socket = session.socket.clone();
    session.deliver_text("abcdef");
    assert!(!socket.write_waiting());
    assert_eq!(*taken.borrow(), b"\x81\x06abc");
    session.deliver_text("ghi");
    assert!(!socket.write_waiting(), "the rest goes first");
    assert_eq!(*taken.borrow(), b"\x81\x06abc");
    assert_eq!((socket.unwritten_bytes(), socket.has_taken_all()), (3, false));
    for _ in 0..10 {
        session.run();
    }
    assert_eq!(*taken.borrow(), b"\x81\x06abcdef\x81\x03ghi");
    assert!(socket.has_taken_all());
    session.deliver_text("j");
    assert!(socket.write_waiting());
    assert!(taken.borrow().ends_with(b"\x81\x01j"));
}

#[actix_web::test]
async fn bytes_of_a_session_that_wait_are_counted_and_keep_no_others_in_memory() {
    const BYTES: usize = 10_000;
    let bench = Bench::with_backlog_of(BYTES - 6, limits());
    let sips = Sips { bytes: 5, is_full: false, taken: Rc::default() };
    let session = ByHand::new(&bench, sips);
    let own = Bytes::from(vec![b'x'; BYTES]);
    session.socket.write(own.clone(), Bytes::new());
    assert!(own.is_unique(), "what was written is given back");
    assert_eq!(session.socket.unwritten_bytes(), BYTES - 5);
    assert!(bench.topics.backlog().is_exceeded(), "the rest is one byte too many");
    drop(session);
    assert!(!bench.topics.backlog().is_exceeded());
}

/// A socket that takes this many bytes at a time, and is full in between.
struct Sips {
    bytes: usize,
    is_full: bool,
    taken: Rc<RefCell<Vec<u8>>>,
}

impl AsyncRead for Sips {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Sips {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_full = !self.is_full;
        if self.is_full {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let all = parts.iter().flat_map(|part| part.iter().copied());
        let taken: Vec<u8> = all.take(self.bytes).collect();
        self.taken.borrow_mut().extend_from_slice(&taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl SocketTransport for Sips {
    fn give_up(&self) {}

    fn unread_bytes(&self) -> u64 {
        0
    }

    fn write_at_once(&self, parts: [&[u8]; 2]) -> usize {
        let bytes = parts.concat();
        let taken = &bytes[..self.bytes.min(bytes.len())];
        self.taken.borrow_mut().extend_from_slice(taken);
        taken.len()
    }
}

#[actix_web::test]
async fn a_frame_in_two_parts_is_written_like_a_whole_one_wherever_the_socket_stops() {
    // A busy machine takes minutes for it, and this client never says anything.
    let long = Duration::from_secs(3_600);
    let bench = Bench::new(SessionLimits { idle_timeout: long, write_timeout: long, ..limits() });
    for body_bytes in [0, 1, 123, 124, COPIED_BYTES_MAX, COPIED_BYTES_MAX + 1, 66_000] {
        for (sip, is_written_at_once) in
            [1_usize, 3, 9, 4_000, 70_000].into_iter().flat_map(|sip| [(sip, false), (sip, true)])
        {
            // A byte at a time is enough where the parts meet; beyond, it would take long.
            if sip < 9 && body_bytes > 200 && body_bytes != COPIED_BYTES_MAX + 1 {
                continue;
            }
            let body = Bytes::from(vec![b'x'; body_bytes]);
            let whole = Frame::Text("before".into());
            let split = |kind, head: &'static str| {
                Frame::Split(Arc::new(Split { kind, head: head.into(), body: body.clone() }))
            };
            let frames =
                [whole.clone(), split(FrameKind::Text, "ab"), split(FrameKind::Binary, "c"), whole];
            let mut expected = BytesMut::new();
            for frame in &frames {
                assert_eq!(gather(&frame.clone().into_whole(), &mut expected), None);
            }
            let taken = Rc::new(RefCell::new(Vec::new()));
            let sips = Sips { bytes: sip, is_full: false, taken: taken.clone() };
            let mut session = ByHand::new(&bench, sips);
            for frame in &frames {
                session.deliver(frame);
            }
            // The first frames are written by the fan-out in one case, and all by the pump in the other.
            if is_written_at_once {
                session.socket.write_waiting();
            }
            let polls_max = 2 * expected.len() + 20;
            let mut polls = 0;
            while taken.borrow().len() < expected.len() && polls < polls_max {
                polls += 1;
                session.run();
            }
            assert!(*taken.borrow() == expected[..], "{body_bytes} {sip}");
            assert!(session.socket.has_taken_all());
        }
    }
}
