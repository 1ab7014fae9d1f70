//! Pumps over pipes, and one that is polled by hand.

use actix_http::ws::Message;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_tungstenite::tungstenite;

use crate::{
    metrics::{SAMPLE_INTERVAL, labels::SessionEnd},
    session::{
        CloseCode,
        testing::{Bench, Client, DEADLINE, PATIENCE, close_frame, limits, masked, text},
        unfinished::Unfinished,
        worker::SessionLimits,
    },
};

use super::*;

const PIPE_BYTES: usize = 1_024;

async fn order(client: &mut Client, text: &'static str) {
    client.near.write_all(&masked(Message::Text(text.into()))).await.expect("room in the pipe");
}

/// A client that has joined and does not read, with what is being written to it.
async fn stuck(bench: &Bench) -> (Client, Vec<u8>) {
    get_stuck(bench.connect(64)).await
}

/// A client that joins over a pipe of 64 bytes and then does not read, with what is being written to it.
async fn get_stuck(mut deaf: Client) -> (Client, Vec<u8>) {
    const ECHO: &str = "a hundred bytes, which are more than the pipe of that client can take, \
                        and so whatever comes behind waits";
    order(&mut deaf, "join").await;
    order(&mut deaf, ECHO).await;
    // Once the first bytes of the echo have arrived, the rest of it is certain to wait in the way.
    let head = [0x81, u8::try_from(ECHO.len()).expect("a short frame")];
    assert_eq!(deaf.next_bytes(10).await, [b"\x81\x06joined", &head[..]].concat());
    (deaf, ECHO.into())
}

async fn ends(client: Client) {
    timeout(DEADLINE, client.pump).await.expect("an end in time").expect("no panic");
}

#[actix_web::test]
async fn frames_of_a_session_are_written_and_a_close_is_answered() {
    let bench = Bench::new(limits());
    let (mut socket, pump) = bench.connect(PIPE_BYTES).websocket().await;
    for said in ["hello", "", "caf\u{e9}"] {
        socket.send(tungstenite::Message::text(said)).await.expect("an open socket");
        assert_eq!(text(&mut socket).await, said);
    }
    socket.send(tungstenite::Message::Ping("p".into())).await.expect("an open socket");
    let pong = socket.next().await.expect("an open socket").expect("a message");
    assert_eq!(pong, tungstenite::Message::Pong("p".into()));
    socket.close(None).await.expect("an open socket");
    while let Some(Ok(message)) = socket.next().await {
        assert!(message.is_close(), "{message}");
    }
    timeout(DEADLINE, pump).await.expect("an end in time").expect("no panic");
    assert_eq!(bench.sessions.open(), 0);
}

#[actix_web::test]
async fn a_panic_ends_that_session_alone() {
    let bench = Bench::new(limits());
    let (mut other, _pump) = bench.connect(PIPE_BYTES).websocket().await;
    let mut client = bench.connect(PIPE_BYTES);
    order(&mut client, "join").await;
    other.send(tungstenite::Message::text("join")).await.expect("an open socket");
    assert_eq!(text(&mut other).await, "joined");
    order(&mut client, "panic").await;
    assert_eq!(client.rest().await, b"\x81\x06joined", "the socket is closed");
    let outcome = timeout(DEADLINE, client.pump).await.expect("an end in time");
    assert!(outcome.is_err_and(|error| error.is_panic()));
    assert_eq!(bench.sessions.open(), 1, "its place is free again");

    bench.publish(r#"{"n":1}"#).await;
    assert_eq!(text(&mut other).await, r#"{"n":1}"#, "the other goes on");
}

#[actix_web::test]
async fn a_client_that_hangs_up_without_a_word_is_gone() {
    let bench = Bench::new(limits());
    let client = bench.connect(PIPE_BYTES);
    drop(client.near);
    timeout(DEADLINE, client.pump).await.expect("an end in time").expect("no panic");
    assert_eq!(bench.sessions.open(), 0);
}

#[actix_web::test]
async fn a_session_that_is_closed_hangs_up_and_reads_away_what_still_comes() {
    let bench = Bench::new(limits());
    let mut client = bench.connect(PIPE_BYTES);
    order(&mut client, "close").await;
    let mut frame = [0; 4];
    client.near.read_exact(&mut frame).await.expect("a close frame");
    assert_eq!(frame[..], close_frame(CloseCode::INTERNAL));
    for _ in 0..100 {
        // Once the session is gone nothing reads it.
        if client.near.write_all(&[b'x'; PIPE_BYTES]).await.is_err() {
            break;
        }
    }
    assert_eq!(client.rest().await, b"");
    drop(client.near);
    timeout(DEADLINE, client.pump).await.expect("an end in time").expect("no panic");
    assert_eq!(bench.sessions.open(), 0);
}

#[actix_web::test]
async fn a_client_that_never_hangs_up_is_not_waited_for() {
    let bench = Bench::new(limits());
    let mut client = bench.connect(PIPE_BYTES);
    order(&mut client, "close").await;
    assert_eq!(client.rest().await, close_frame(CloseCode::INTERNAL));
    ends(client).await;
    assert_eq!(bench.sessions.open(), 0);
}

#[actix_web::test]
async fn a_session_that_idles_is_let_go() {
    let idle_timeout = Duration::from_millis(50);
    let bench = Bench::new(SessionLimits { idle_timeout, ..limits() });
    let mut client = bench.connect(PIPE_BYTES);
    assert_eq!(client.rest().await, close_frame(CloseCode::GOING_AWAY));
    ends(client).await;
}

#[actix_web::test]
async fn a_patient_conversation_waits_and_probes_before_a_silent_client_is_let_go() {
    let idle_timeout = Duration::from_millis(100);
    let bench = Bench::new(SessionLimits { idle_timeout, ..limits() });
    let mut client = bench.connect(PIPE_BYTES);
    let started = Instant::now();
    order(&mut client, "patient").await;
    let probe = b"\x81\x0eare you there?";
    // The first silence is waited through.
    assert_eq!(client.next_bytes(probe.len()).await, probe);
    assert!(started.elapsed() >= idle_timeout + PATIENCE, "{:?}", started.elapsed());
    // An answer begins a new silence, which is not waited through again.
    order(&mut client, "yes").await;
    let answered = Instant::now();
    assert_eq!(client.next_bytes(5).await, b"\x81\x03yes");
    assert_eq!(client.next_bytes(probe.len()).await, probe);
    assert!(answered.elapsed() >= idle_timeout, "{:?}", answered.elapsed());
    let end = [&b"\x81\x08farewell\x88\x06"[..], &1001_u16.to_be_bytes(), b"gone"].concat();
    assert_eq!(client.rest().await, end);
    assert!(answered.elapsed() >= idle_timeout + PATIENCE, "{:?}", answered.elapsed());
    ends(client).await;
}

#[actix_web::test]
async fn a_session_ends_one_timeout_after_its_last_message() {
    let idle_timeout = Duration::from_millis(600);
    let bench = Bench::new(SessionLimits { idle_timeout, ..limits() });
    let mut client = bench.connect(PIPE_BYTES);
    tokio::time::sleep(idle_timeout / 3).await;
    let spoke = Instant::now();
    order(&mut client, "still here").await;
    assert_eq!(client.next_bytes(12).await, b"\x81\x0astill here");
    assert_eq!(client.rest().await, close_frame(CloseCode::GOING_AWAY));
    assert!(spoke.elapsed() >= idle_timeout, "{:?}", spoke.elapsed());
    ends(client).await;
}

#[actix_web::test]
async fn a_client_that_does_not_read_is_dropped_once_its_outbox_is_full() {
    for (case, tight) in [
        ("frames", SessionLimits { outbox_frames_max: 4, ..limits() }),
        ("bytes", SessionLimits { outbox_bytes_max: 2_000, ..limits() }),
    ] {
        let bench = Bench::new(tight);
        let (mut reader, _pump) = bench.connect(1 << 20).websocket().await;
        reader.send(tungstenite::Message::text("join")).await.expect("an open socket");
        assert_eq!(text(&mut reader).await, "joined", "{case}");
        let mut deaf = bench.connect(64);
        order(&mut deaf, "join").await;
        while !deaf.pump.is_finished() {
            let payload = format!(r#"{{"filler":"{}"}}"#, "x".repeat(200));
            bench.publish(&payload).await;
            assert_eq!(text(&mut reader).await, payload, "{case}: the other gets them all");
        }
        assert!(deaf.rest().await.len() <= 64, "{case}: what was in the pipe");
        assert_eq!(bench.sessions.open(), 1, "{case}");
    }
}

#[actix_web::test]
async fn answers_that_are_not_read_count_for_all_and_the_session_with_the_most_of_them_is_dropped()
{
    let large =
        SessionLimits { message_bytes_max: 10_000, unjoined_message_bytes_max: 10_000, ..limits() };
    let bench = Bench::with_backlog_of(10_000, large);
    let echo_unread = async |bytes: usize| {
        let mut deaf = bench.connect(64);
        let order = masked(Message::Text("x".repeat(bytes).into()));
        deaf.near.write_all(&order).await.expect("it is read");
        deaf
    };
    let mut first = echo_unread(6_000).await;
    let waits = async {
        while first.outbox.load().bytes == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, waits).await.expect("its answer waits");
    let second = echo_unread(8_000).await;
    timeout(DEADLINE, second.pump).await.expect("it is dropped").expect("no panic");
    let too_much = Ending::SlowConsumer(outbox::Excess::AllBytes);
    assert_eq!(second.outbox.ended(), Some(too_much));
    assert_eq!(first.outbox.ended(), None);
    assert!(!bench.topics.backlog().is_exceeded());
    first.next_bytes(4 + 6_000).await;
    assert_eq!(first.outbox.load(), Load::default(), "nothing waits any more");
}

#[actix_web::test]
async fn a_session_that_has_closed_gives_its_memory_up_before_any_other_has_to_end() {
    let large =
        SessionLimits { message_bytes_max: 10_000, unjoined_message_bytes_max: 10_000, ..limits() };
    let bench = Bench::with_backlog_of(10_000, large);
    // One ends with a close frame, which waits behind the answer, and one without.
    for last in [&masked(Message::Text("close".into()))[..], &[]] {
        let mut closed = bench.connect(64);
        let answered = masked(Message::Text("x".repeat(8_000).into()));
        closed.near.write_all(&[&answered[..], last].concat()).await.expect("it is read");
        if last.is_empty() {
            closed.near.shutdown().await.expect("an open pipe");
        }
        let is_closed = async {
            while !closed.outbox.is_closed() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, is_closed).await.expect("it ends");
        let mut other = bench.connect(64);
        let order = masked(Message::Text("y".repeat(6_000).into()));
        other.near.write_all(&order).await.expect("it is read");
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        // The fan-out knows it until its last frame is written; without one it has as long as a close may take.
        assert!(closed.pump.is_finished() || last.is_empty(), "it is dropped at once");
        timeout(DEADLINE, closed.pump).await.expect("it is dropped").expect("no panic");
        assert!(!bench.topics.backlog().is_exceeded());
        other.next_bytes(4 + 6_000).await;
        assert_eq!(other.outbox.ended(), None);
    }
}

#[actix_web::test]
async fn a_session_that_has_closed_holds_no_unfinished_message_while_its_last_bytes_wait() {
    const ECHO_BYTES: usize = 8_000;
    let large =
        SessionLimits { message_bytes_max: 10_000, unjoined_message_bytes_max: 10_000, ..limits() };
    let unfinished = Unfinished::new(10_000);
    let bench = Bench::sharing(unfinished.clone(), large);
    // The echo fills the pipe to its client, so the close frame has to wait.
    let mut client = bench.connect(4 + ECHO_BYTES);
    let echoed = masked(Message::Text("x".repeat(ECHO_BYTES).into()));
    client.near.write_all(&echoed).await.expect("it is read");
    let mut fragment = masked(Message::Text("y".repeat(6_000).into()));
    fragment[0] &= 0x7f;
    client.near.write_all(&fragment).await.expect("it is read");
    let until = async |is_so: &dyn Fn() -> bool| {
        let waits = async {
            while !is_so() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, waits).await.expect("in time");
    };
    until(&|| unfinished.held_bytes() >= 6_000).await;
    client.near.write_all(&masked(Message::Close(None))).await.expect("it is read");
    until(&|| client.outbox.is_closed()).await;
    assert!(!client.pump.is_finished(), "the close frame waits");
    assert_eq!(unfinished.held_bytes(), 0);
    client.next_bytes(4 + ECHO_BYTES).await;
    assert_eq!(client.rest().await.first(), Some(&0x88), "the close frame is still written");
}

#[actix_web::test]
async fn an_outbox_holds_its_maximum_of_frames_though_some_are_measured_and_one_more_ends_it() {
    const FRAMES_MAX: usize = 8;
    let bench = Bench::new(SessionLimits { outbox_frames_max: FRAMES_MAX, ..limits() });
    for frames in [FRAMES_MAX, FRAMES_MAX + 1] {
        let (mut deaf, mut waits) = stuck(&bench).await;
        let (mut witness, _pump) = bench.connect(1 << 20).websocket().await;
        witness.send(tungstenite::Message::text("join")).await.expect("an open socket");
        assert_eq!(text(&mut witness).await, "joined");
        for n in 0..frames {
            // Each time somebody is to be measured, and it is not always the witness.
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            let payload = format!(r#"{{"n":{n}}}"#);
            bench.publish(&payload).await;
            assert_eq!(text(&mut witness).await, payload);
            waits.extend([0x81, 7]);
            waits.extend(payload.as_bytes());
        }
        if frames > FRAMES_MAX {
            ends(deaf).await;
        } else {
            assert_eq!(deaf.next_bytes(waits.len()).await, waits);
        }
    }
}

#[actix_web::test]
async fn the_oldest_of_the_frames_that_are_written_together_is_measured() {
    let bench = Bench::new(limits());
    let (mut deaf, mut waits) = stuck(&bench).await;
    let (mut witness, _pump) = bench.connect(1 << 20).websocket().await;
    witness.send(tungstenite::Message::text("join")).await.expect("an open socket");
    assert_eq!(text(&mut witness).await, "joined");
    let mut first_heard = None;
    // They are measured by turns, each of them twice.
    for _ in 0..4 {
        bench.publish("{}").await;
        assert_eq!(text(&mut witness).await, "{}");
        first_heard.get_or_insert_with(Instant::now);
        waits.extend(b"\x81\x02{}");
        tokio::time::sleep(10 * SAMPLE_INTERVAL).await;
    }
    let waited_s = first_heard.expect("a moment").elapsed().as_secs_f64();
    assert_eq!(deaf.next_bytes(waits.len()).await, waits);
    let figures = bench.worker.metrics.encode();
    let figure = |name: &str| {
        let name = format!("herald_publish_to_write_seconds_{name} ");
        let line = figures.lines().find_map(|line| line.strip_prefix(&name));
        line.and_then(|figure| figure.parse::<f64>().ok()).expect("a figure")
    };
    assert_eq!(figure("count"), 3.0, "two of the witness, and one for all that waited");
    assert!(figure("sum") >= waited_s, "{} of {waited_s} s", figure("sum"));
}

#[actix_web::test]
async fn publications_that_come_one_by_one_leave_together_while_sessions_write() {
    const SESSIONS: usize = 96;
    const EVENTS: usize = 24;
    let bench = Rc::new(Bench::new(limits()));
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        let (mut client, pump) = bench.connect(1 << 16).websocket().await;
        client.send(tungstenite::Message::text("join")).await.expect("an open socket");
        assert_eq!(text(&mut client).await, "joined");
        clients.push((client, pump));
    }
    let payload = |n: usize| format!(r#"{{"n":{n}}}"#);
    let publishing = bench.clone();
    // A publisher's next request is read when the thread has looked at its sockets.
    let publisher = actix_rt::spawn(async move {
        for n in 0..EVENTS {
            publishing.publish(&payload(n)).await;
            tokio::task::yield_now().await;
        }
    });
    timeout(DEADLINE, publisher).await.expect("in time").expect("no panic");
    for (client, _) in &mut clients {
        for n in 0..EVENTS {
            assert_eq!(text(client).await, payload(n));
        }
    }
    let (writes, frames) = bench.worker.metrics.frame_writes.totals();
    assert_eq!(frames, (SESSIONS * EVENTS) as u64);
    assert!(3 * writes <= frames, "{frames} frames left in {writes} writes");
}

#[actix_web::test]
async fn a_session_that_gives_way_to_a_burst_is_not_drowned_by_it() {
    let bench = Bench::new(SessionLimits { outbox_frames_max: 32, ..limits() });
    let (mut client, _pump) = bench.connect(PIPE_BYTES).websocket().await;
    client.send(tungstenite::Message::text("join")).await.expect("an open socket");
    assert_eq!(text(&mut client).await, "joined");
    let payloads: Vec<_> = (0..60).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
    for payload in &payloads {
        bench.publish(payload).await;
    }
    for payload in &payloads {
        assert_eq!(text(&mut client).await, *payload);
    }
}

#[actix_web::test]
async fn a_write_without_progress_ends_the_session() {
    let write_timeout = Duration::from_millis(50);
    let bench = Bench::new(SessionLimits { write_timeout, ..limits() });
    let mut client = bench.connect(64);
    for _ in 0..2 {
        order(&mut client, "forty bytes of an echo that fill the pipe").await;
    }
    let mut pump = client.pump;
    timeout(DEADLINE, &mut pump).await.expect("an end in time").expect("no panic");
    assert_eq!(bench.sessions.open(), 0);
}

#[actix_web::test]
async fn a_silent_client_is_silent_also_while_a_write_is_stuck() {
    let idle_timeout = Duration::from_millis(200);
    let bench = Bench::new(SessionLimits { idle_timeout, ..limits() });
    let (client, _) = stuck(&bench).await;
    let Client { near: _near, pump, .. } = client;
    timeout(DEADLINE, pump).await.expect("an end in time").expect("no panic");
    let ended = &bench.worker.metrics.sessions_ended;
    assert_eq!((ended.of(SessionEnd::Idle).get(), ended.of(SessionEnd::Stuck).get()), (1, 0));
}

#[actix_web::test]
async fn a_patient_conversation_tolerates_its_clients_silence_also_while_a_write_is_stuck() {
    let idle_timeout = Duration::from_millis(100);
    let bench = Bench::new(SessionLimits { idle_timeout, ..limits() });
    let began = Instant::now();
    let (client, _) = get_stuck(bench.connect_patient(64)).await;
    let Client { near: _near, pump, .. } = client;
    timeout(DEADLINE, pump).await.expect("an end in time").expect("no panic");
    // The client cannot be probed, and still has as much time as with a probe.
    assert!(began.elapsed() >= idle_timeout + 2 * PATIENCE, "{:?}", began.elapsed());
    let ended = &bench.worker.metrics.sessions_ended;
    assert_eq!((ended.of(SessionEnd::Idle).get(), ended.of(SessionEnd::Stuck).get()), (1, 0));
}

#[actix_web::test]
async fn a_message_that_trickles_ends_the_session_when_its_time_is_over() {
    let message_timeout = Duration::from_millis(300);
    let bench = Bench::new(SessionLimits { message_timeout, ..limits() });
    let began = Instant::now();
    let mut client = bench.connect(PIPE_BYTES);
    let message = masked(Message::Text("x".repeat(900).into()));
    client.near.write_all(&message[..20]).await.expect("room");
    let (mut reading, mut writing) = tokio::io::split(client.near);
    let mut trickle = Box::pin(async {
        for byte in &message[20..] {
            tokio::time::sleep(message_timeout / 20).await;
            // Bytes behind the end are read away.
            let _ = writing.write_all(&[*byte]).await;
        }
    });
    let mut said = Vec::new();
    let end = async { reading.read_to_end(&mut said).await.expect("a pipe does not fail") };
    tokio::select! {
        ended = timeout(DEADLINE, end) => { ended.expect("an end in time"); }
        () = &mut trickle => panic!("all of it was read"),
    }
    assert!(began.elapsed() >= message_timeout);
    assert_eq!(said, close_frame(CloseCode::POLICY));
}

#[actix_web::test]
async fn beyond_what_all_may_hold_the_largest_unfinished_message_gives_way() {
    const BYTES_MAX: usize = 400_000;
    let large = SessionLimits { message_bytes_max: 60_000, ..limits() };
    let large = SessionLimits { unjoined_message_bytes_max: 60_000, ..large };
    let bench = Bench::sharing(Unfinished::new(BYTES_MAX), large);
    let begin = async |bytes: usize| {
        let mut client = bench.connect(80_000);
        let message = masked(Message::Text("x".repeat(bytes).into()));
        client.near.write_all(&message[..bytes]).await.expect("room");
        (client, message[bytes..].to_vec())
    };
    let (mut largest, _) = begin(60_000).await;
    let (mut small, rest) = begin(20_000).await;
    let mut others = Vec::new();
    // As soon as they hold more than all may, the largest ends.
    for _ in 0..=BYTES_MAX / 40_000 {
        others.push(begin(40_000).await.0);
    }
    assert_eq!(largest.rest().await, close_frame(CloseCode::TOO_BIG));
    small.near.write_all(&rest).await.expect("room");
    let head = [0x81, 126, 0x4e, 0x20];
    assert_eq!(small.next_bytes(20_004).await, [&head[..], &[b'x'; 20_000]].concat());
}
