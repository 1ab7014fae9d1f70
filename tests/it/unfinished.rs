//! Incomplete messages and request heads. Each has a time limit, and before a join also a smaller size limit, and
//! all of them together have a limit in bytes. A client that completes one in time notices nothing.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{figures::becomes_hit, *};

const TOPIC: &str = "public:test-app";

/// The head of a masked frame that announces this many bytes, with a mask of zeros.
fn head(first: u8, bytes: usize) -> Vec<u8> {
    let length = u64::try_from(bytes).expect("a length").to_be_bytes();
    [&[first, 0x80 | 127][..], &length, &[0; 4]].concat()
}

/// A heartbeat of this many bytes, and its reply.
fn heartbeat(bytes: usize) -> (String, &'static str) {
    let around = r#"[null,"1","phoenix","heartbeat",{"x":""}]"#;
    let filler = "x".repeat(bytes - around.len());
    let text = format!(r#"[null,"1","phoenix","heartbeat",{{"x":"{filler}"}}]"#);
    (text, r#"[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]"#)
}

/// A session that has joined a topic.
async fn joined(server: &TestServer) -> Socket {
    let mut socket = Socket::connect(server, V2).await;
    socket.join(TOPIC, json!({})).await;
    socket
}

/// Sends a message of this many bytes without its last byte.
async fn begin(socket: &mut Socket, bytes: usize) {
    let begun = [head(0x82, bytes), vec![b'x'; bytes - 1]].concat();
    // The session may be ended before all has arrived.
    let _ = socket.tcp().write_all(&begun).await;
}

#[tokio::test]
async fn half_messages_of_many_sessions_share_a_budget_and_the_largest_give_way() {
    const CROWD: usize = 30;
    const HALF: usize = 100_000;
    let server = TestServer::start_with(|settings| {
        settings.limits.message_bytes_max = 400_000;
        settings.limits.unfinished_bytes_max = 1_000_000;
    });
    let mut small = joined(&server).await;
    let (text, reply) = heartbeat(50_000);
    let framed = [head(0x81, text.len()), text.into_bytes()].concat();
    let (first, rest) = framed.split_at(25_000);
    small.tcp().write_all(first).await.expect("room");
    let mut largest = joined(&server).await;
    begin(&mut largest, 400_000).await;
    let mut crowd = join_all((0..CROWD).map(|_| joined(&server))).await;
    join_all(crowd.iter_mut().map(|socket| begin(socket, HALF))).await;
    assert_eq!(largest.closed().await, 1009);
    // The crowd has begun 3,000,000 bytes, and the server may hold no more than a third of them.
    let least_ended = CROWD - 1_000_000 / (HALF - 4_096);
    let ended = repeat_until_some(async || {
        let figures = figures::Figures::of(&server).await;
        (figures.ended("unfinished_bytes") >= least_ended as f64).then_some(figures)
    });
    let figures = tokio::time::timeout(DEADLINE, ended).await.expect("enough end in time");
    assert_eq!(figures.hits("unfinished_bytes_max"), figures.ended("unfinished_bytes"));
    small.tcp().write_all(rest).await.expect("room");
    assert_eq!(small.frame().await, reply, "one that holds little goes on");
    joined(&server).await.assert_quiet().await;
}

#[tokio::test]
async fn a_message_that_trickles_ends_on_time_whatever_it_is_made_of() {
    const MESSAGE: usize = 1 << 20;
    let message_timeout = Duration::from_millis(1_500);
    let server = TestServer::start_with(|settings| {
        settings.socket.message_timeout = message_timeout;
    });
    let fragment = [head(0x01, MESSAGE / 2), vec![b'x'; MESSAGE / 2]].concat();
    let one_short = [head(0x80, MESSAGE / 2), vec![b'x'; MESSAGE / 2 - 100]].concat();
    let trickle = [0; 1].as_slice();
    let endless = [0x00, 0x80, 0, 0, 0, 0].as_slice();
    for (case, begun, drip) in [
        ("half a frame", head(0x81, 1_000), trickle),
        ("half a head", vec![0x81], &[]),
        ("a fragment and most of another", [fragment, one_short].concat(), trickle),
        ("endless fragments", vec![0x01, 0x80, 0, 0, 0, 0], endless),
        ("half a ping", vec![0x89, 0x80 | 100], trickle),
    ] {
        let mut socket = joined(&server).await;
        let began = Instant::now();
        socket.tcp().write_all(&begun).await.expect("room");
        let mut pace = tokio::time::interval(message_timeout / 10);
        let end = async {
            loop {
                tokio::select! {
                    code = socket.closed() => return code,
                    _ = pace.tick() => {}
                }
                // The session may have ended already.
                let _ = socket.tcp().write_all(drip).await;
            }
        };
        assert_eq!(tokio::time::timeout(DEADLINE, end).await.expect(case), 1008, "{case}");
        assert!(began.elapsed() >= message_timeout, "{case}");
    }
    let figures = becomes_hit(&server, "message_timeout", 5.0).await;
    assert_eq!(figures.ended("message_timeout"), 5.0);
}

#[tokio::test]
async fn a_message_that_comes_slowly_but_in_time_is_taken() {
    let server = TestServer::start();
    let mut socket = joined(&server).await;
    let (text, reply) = heartbeat(300_000);
    let framed = [head(0x81, text.len()), text.into_bytes()].concat();
    for piece in framed.chunks(30_000) {
        socket.tcp().write_all(piece).await.expect("room");
        assert_eq!(get(server.url("/health")).await.status, 200, "others have their turn");
    }
    assert_eq!(socket.frame().await, reply);
}

#[tokio::test]
async fn before_it_has_joined_a_session_sends_no_larger_message_than_a_join_can_be() {
    let server = TestServer::start();
    let refused = json!({"status": "error", "response": {"reason": "unmatched topic"}});
    // Tokens and other parameters in a join, and an event that comes before any join.
    let token = "t".repeat(8_192);
    let params = json!({"guardian_token": token, "csrf_token": token, "x": "x".repeat(32_000)});
    let event = json!({"x": "x".repeat(32_000)});
    let mut socket = Socket::connect(&server, V2).await;
    socket.push(json!(["1", "1", "nowhere:test-app", "phx_join", params])).await;
    assert_eq!(socket.next().await[4]["status"], "error", "read, and refused");
    socket.push(json!(["1", "2", TOPIC, "msg", event])).await;
    assert_eq!(socket.next().await[4], refused);
    let (large, reply) = heartbeat(100_000);
    let mut other = joined(&server).await;
    other.text(large.clone()).await;
    assert_eq!(other.frame().await, reply, "after a join it is accepted");
    socket.text(large).await;
    assert_eq!(socket.closed().await, 1009);
    becomes_hit(&server, "message_bytes_max", 1.0).await;
}

#[tokio::test]
async fn a_client_that_is_too_fast_now_and_then_has_no_more_time_for_a_message() {
    let message_timeout = Duration::from_secs(2);
    let server = TestServer::start_with(|settings| {
        settings.socket.message_timeout = message_timeout;
        settings.limits.frames_per_second_max = 50;
    });
    let mut socket = joined(&server).await;
    let empty = |first: u8| [first, 0x80, 0, 0, 0, 0];
    let began = Instant::now();
    socket.tcp().write_all(&empty(0x01)).await.expect("room");
    // More pongs than may come at once, and fewer than may come between two ticks: at each tick the session
    // pauses for about a quarter of a second.
    let pongs = empty(0x8a).repeat(60);
    let mut pace = tokio::time::interval(Duration::from_millis(1_500));
    let end = async {
        loop {
            tokio::select! {
                code = socket.closed() => return code,
                _ = pace.tick() => {}
            }
            // The session may have ended already.
            let _ = socket.tcp().write_all(&pongs).await;
        }
    };
    assert_eq!(tokio::time::timeout(DEADLINE, end).await.expect("an end in time"), 1008);
    assert!(began.elapsed() >= message_timeout);
    let figures = becomes_hit(&server, "message_timeout", 1.0).await;
    assert_eq!(figures.ended("message_timeout"), 1.0);
    assert!(figures.hits("frames_per_second_max") >= 1.0, "it paused");
}

/// A request whose head is this large, in two halves.
fn halves(bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let filler = "x".repeat(bytes - 60);
    let head = format!("GET /health HTTP/1.1\r\nhost: h\r\nx-filler: {filler}\r\n\r\n");
    let (first, second) = head.as_bytes().split_at(head.len() / 2);
    (first.to_vec(), second.to_vec())
}

#[tokio::test]
async fn half_heads_share_the_budget_with_half_messages_and_the_largest_give_way() {
    const CROWD: usize = 40;
    const HEAD: usize = 100_000;
    let server = TestServer::start_with(|settings| {
        settings.limits.message_bytes_max = 400_000;
        settings.limits.unfinished_bytes_max = 500_000;
    });
    let mut socket = joined(&server).await;
    let (text, reply) = heartbeat(10_000);
    let framed = [head(0x81, text.len()), text.into_bytes()].concat();
    let (first, rest) = framed.split_at(5_000);
    socket.tcp().write_all(first).await.expect("room");
    let (first, second) = halves(6_000);
    let mut small = raw::connect(&server).await;
    small.write_all(&first).await.expect("room");

    // The crowd begins 2,000,000 bytes, and the server may hold no more than a quarter of them.
    let (first, second_of_large) = halves(HEAD);
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let mut stream = raw::connect(&server).await;
        stream.write_all(&first).await.expect("room");
        crowd.push(stream);
    }
    let least_ended = CROWD - 500_000 / (HEAD / 2);
    let ended = repeat_until(async || {
        let figures = figures::Figures::of(&server).await;
        figures.hits("unfinished_bytes_max") >= least_ended as f64
    });
    tokio::time::timeout(DEADLINE, ended).await.expect("enough end in time");
    small.write_all(&second).await.expect("room");
    assert_eq!(raw::answer(&mut small).await.0, 200, "one that holds little goes on");
    socket.tcp().write_all(rest).await.expect("room");
    assert_eq!(socket.frame().await, reply, "and so does a session");
    let mut statuses = Vec::new();
    for stream in &mut crowd {
        // A connection that was answered with 503 takes no more bytes.
        let _ = stream.write_all(&second_of_large).await;
        statuses.push(raw::answer(stream).await.0);
    }
    let answered = |status| statuses.iter().filter(|answer| **answer == status).count();
    assert!(answered(503) >= least_ended, "{statuses:?}");
    assert!(answered(200) >= 1, "{statuses:?}");
    assert_eq!(answered(503) + answered(200), CROWD, "{statuses:?}");
    let figures = figures::Figures::of(&server).await;
    assert_eq!(figures.hits("unfinished_bytes_max"), answered(503) as f64);
}
