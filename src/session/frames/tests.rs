//! The bytes of a client become the same messages, whatever the pieces in which they arrive.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Wake, Waker},
};

use actix_http::ws::Message;
use futures_util::StreamExt;
use tokio::{
    io::{AsyncWriteExt, duplex},
    time::timeout,
};

use super::*;
use crate::session::{
    gate::{Gate, TURN_FRAMES_MAX},
    testing::{Bench, DEADLINE, limits, masked},
    unfinished::Unfinished,
    worker::{SessionLimits, Worker},
};

const LIMIT: usize = 1_000;

fn frames<T: AsyncRead + Unpin>(io: T, early: &[u8]) -> Frames<T> {
    frames_of(Bench::new(limits()).worker, io, early)
}

fn frames_of<T: AsyncRead + Unpin>(worker: Rc<Worker>, io: T, early: &[u8]) -> Frames<T> {
    let gate = Rc::new(Gate::new(worker.work_queue.clone()));
    let admission = worker.sessions.admit().expect("room for a session");
    let outbox = worker.outbox(&admission);
    let socket = FrameSocket::new(io, gate, worker, outbox);
    Frames::new(Rc::new(socket), BytesMut::from(early))
}

/// All units that are decoded from these bytes, if this many arrive at a time.
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
        ("two", [frame(0x81, b"a"), frame(0x81, b"b")].concat(), vec![text_of("a"), text_of("b")]),
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
async fn a_client_that_breaks_a_rule_is_told_which_and_not_read_any_more() {
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
        ("the same by its head", frame(0x81, &[b'x'; LIMIT + 1])[..4].to_vec(), CloseCode::TOO_BIG),
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
async fn bytes_that_arrived_with_the_handshake_are_read_first() {
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
    assert_eq!(frames.unread.allocated_bytes(), 0);
}

#[actix_web::test]
async fn a_claimed_length_allocates_nothing_for_bytes_that_have_not_arrived() {
    let (mut near, far) = duplex(4_096);
    let mut frames = frames(far, &[]);
    near.write_all(&frame(0x81, &[b'x'; LIMIT])[..10]).await.expect("room");
    let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
    assert!(frames.poll_next_unpin(&mut cx).is_pending());
    assert!(frames.unread.allocated_bytes() < LIMIT / 2, "{}", frames.unread.allocated_bytes());
}

/// Polls until all bytes that have arrived are decoded. They must not contain a whole message.
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

/// The bytes that are held in buffers.
fn held<T>(frames: &Frames<T>) -> usize {
    let fragments = frames.partial.as_ref().and_then(|partial| partial.fragments.as_ref());
    frames.unread.allocated_bytes() + fragments.map_or(0, |fragments| fragments.payload.capacity())
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

/// A client that sends the same unit again and again, as fast as it is read.
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

#[actix_web::test]
async fn a_session_reads_nothing_while_clients_that_gave_way_hold_too_much() {
    const BUDGET_BYTES: usize = 100_000;
    let budget = Unfinished::new(BUDGET_BYTES);
    let worker = Bench::sharing(budget.clone(), limits()).worker;
    let (mut near, far) = duplex(64);
    near.write_all(&frame(0x81, b"hi")).await.expect("room");
    let mut frames = frames_of(worker, far, &[]);
    let outbox = frames.socket.outbox.clone();
    let mut holdings = [0; 2].map(|_| budget.hold(outbox.clone()));
    for holding in &mut holdings {
        holding.set(BUDGET_BYTES * 2 / 3);
    }
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    for polls in 1..=2 {
        let polled = frames.poll_next_unpin(&mut Context::from_waker(&waker));
        assert!(polled.is_pending(), "{polled:?}");
        assert_eq!(wakes.0.load(Relaxed), polls, "it asks to be polled again");
        assert!(frames.unread.is_empty());
    }
    drop(holdings);
    assert_eq!(frames.next().await, Some(text_of("hi")));
}
