//! Long-poll at its limits: hostile bodies, slow clients, full servers, stops, connections without TLS.

use std::time::{Duration, Instant};

use crate::support::{figures::becomes_hit, *};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;

const TOPIC: &str = "public:test-app";
const TEXT: Option<&str> = Some("text/plain");
const BATCH: Option<&str> = Some("application/x-ndjson");
const HEARTBEAT: &str = r#"[null,"1","phoenix","heartbeat",{}]"#;
const REPLY: &str = r#"[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]"#;

async fn joined(server: &TestServer) -> Poller {
    let mut socket = Socket::polled(Poller::connect(server, V2).await, V2);
    socket.join(TOPIC, json!({})).await;
    socket.into_poller()
}

/// A server of one thread, which handles requests in the order of their arrival, also over several connections.
fn of_one_thread() -> TestServer {
    TestServer::start_with(|settings| settings.server.workers = 1)
}

async fn opens(server: &TestServer) -> Value {
    get(server.url("/socket/longpoll?vsn=2.0.0&")).await.json()["status"].clone()
}

async fn trigger(server: &TestServer, n: usize, filler: usize) {
    let payload = json!({"n": n, "x": "x".repeat(filler)});
    let event = json!({"topic": "#general", "event": "msg", "payload": payload});
    server.trigger(&App::seeded(), event).await;
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_refused_and_the_session_goes_on() {
    let server = TestServer::start_with(|settings| {
        settings.limits.request_body_bytes_max = 2_000;
        settings.limits.message_bytes_max = 1_000;
    });
    let mut poller = Poller::connect(&server, V2).await;
    let padded = |bytes: usize| format!("{HEARTBEAT}{}", " ".repeat(bytes - HEARTBEAT.len()));
    let (fits, too_large, body_too_large) = (padded(1_000), padded(1_001), padded(2_001));
    let two = format!("{fits}\n{}", padded(999));
    for (case, content_type, body, expected) in [
        ("a message that just fits", TEXT, fits.as_bytes(), 200),
        ("one that is too large", TEXT, too_large.as_bytes(), 400),
        ("a body that just fits", BATCH, two.as_bytes(), 200),
        ("a line that is too large", BATCH, too_large.as_bytes(), 400),
        ("a body that is too large", TEXT, body_too_large.as_bytes(), 400),
        ("no text", TEXT, b"\xff\xfe", 400),
        ("no text in a batch", BATCH, b"[\xff]", 400),
        ("neither text nor base64", BATCH, b"[null]\n!!!", 400),
        ("an object in a batch", BATCH, br#"{"topic":"t"}"#, 400),
    ] {
        // The server may hang up after a body that it has refused to read.
        let mut again = poller.again(&server).await;
        assert_eq!(again.post_raw(content_type, body).await.0, expected, "{case}");
    }
    for _ in 0..3 {
        assert_eq!(poller.next().await.as_deref(), Some(REPLY), "what was refused did nothing");
    }
    assert_eq!(poller.post(HEARTBEAT).await, 200);
    assert_eq!(poller.next().await.as_deref(), Some(REPLY));
}

#[tokio::test]
async fn a_message_that_cannot_be_understood_ends_the_session_as_it_closes_a_socket() {
    let server = of_one_thread();
    for (vsn, message) in [
        (V2, ""),
        (V2, "{}"),
        (V2, "[]"),
        (V2, r#"["1","1","t","e"]"#),
        (V2, r#"[[1],"1","public:test-app","phx_join",{}]"#),
        (V2, "nonsense"),
        (V1, r#"["1","1","t","e",{}]"#),
        (V1, r#"{"topic":"t","event":"e","payload":{}}"#),
        (V1, "null"),
    ] {
        let mut poller = Poller::connect(&server, vsn).await;
        assert_eq!(poller.post(message).await, 410, "{vsn} {message:?}");
        assert_eq!(poller.fetch().await, json!({"status": 500}), "{vsn} {message:?}");
    }
    let mut poller = Poller::connect(&server, V2).await;
    let batch = format!("{HEARTBEAT}\n[]\n{HEARTBEAT}");
    let mut other = poller.again(&server).await;
    for fetching in [&mut poller, &mut other] {
        fetching.park().await;
    }
    // The second fetch to arrive has ended the first, so that the second one is certainly parked.
    let mut parked = tokio::select! {
        _ = poller.parked() => other,
        _ = other.parked() => poller,
    };
    assert_eq!(parked.post_batch(&batch).await, 410);
    assert_eq!(parked.parked().await["messages"], json!([REPLY]), "what came before is answered");
}

#[tokio::test]
async fn a_client_that_does_not_fetch_in_time_is_dropped_and_no_other_notices() {
    const FRAMES_MAX: usize = 50;
    let server = TestServer::start_with(|s| s.limits.outbox_frames_max = FRAMES_MAX);
    let (mut slow, mut just_so) = (joined(&server).await, joined(&server).await);
    let mut others = Socket::connect(&server, V2).await;
    others.join(TOPIC, json!({})).await;
    for n in 0..FRAMES_MAX {
        trigger(&server, n, 0).await;
        others.frame().await;
    }
    for n in 0..FRAMES_MAX {
        let frame = just_so.next().await.expect("as many as are allowed");
        assert!(frame.contains(&format!(r#""n":{n},"#)), "{n}: {frame}");
    }
    trigger(&server, FRAMES_MAX, 0).await;
    assert!(just_so.next().await.is_some());
    others.frame().await;
    assert_eq!(slow.post(HEARTBEAT).await, 410, "one more than is allowed");
    assert_eq!(slow.fetch().await, json!({"status": 500}));
    let figures = becomes_hit(&server, "outbox_frames_max", 1.0).await;
    assert_eq!((figures.hits("outbox_bytes_max"), figures.ended("outbox_frames")), (0.0, 1.0));
}

#[tokio::test]
async fn a_client_that_never_fetches_costs_little_and_then_nothing() {
    const CLIENTS: usize = 40;
    let process = Process::start(&[
        ("HERALD__LIMITS__OUTBOX_BYTES_MAX", "500000"),
        // The outbox must have room for the roster of a full presence channel, and for a replay.
        ("HERALD__LIMITS__PRESENCE_MEMBERS_MAX", "100"),
        ("HERALD__HISTORY__REPLAY_BYTES_MAX", "100000"),
        ("HERALD__LIMITS__SESSIONS_MAX", "41"),
        // The first fetch must arrive within half of the window, also on a loaded machine.
        ("HERALD__SOCKET__LONG_POLL_WINDOW", "10s"),
    ]);
    let server = &process.server;
    let mut silent = Vec::new();
    for _ in 0..CLIENTS {
        silent.push(joined(server).await);
    }
    let mut witness = Socket::connect(server, V2).await;
    witness.join(TOPIC, json!({})).await;
    let before = process.resident_bytes();
    // 20 MB are published; the outbox of each client may hold half a megabyte.
    for n in 0..200 {
        trigger(server, n, 100_000).await;
        witness.frame().await;
    }
    let grown = process.resident_bytes().saturating_sub(before);
    assert!(grown < 40_000_000, "{grown} bytes for clients that fetch nothing");
    // The sessions have ended because of their full outboxes, before one and a half windows have passed.
    let gone = repeat_until(async || opens(server).await != 500);
    timeout(DEADLINE, gone).await.expect("their places are free");
    for poller in &mut silent {
        assert_eq!(poller.fetch().await, json!({"status": 500}));
    }
}

#[tokio::test]
async fn a_full_server_opens_no_session_and_says_come_back() {
    let server = TestServer::start_with(|settings| settings.limits.sessions_max = Some(2));
    let (mut inside, socket) = (joined(&server).await, Socket::connect(&server, V2).await);
    for _ in 0..3 {
        assert_eq!(opens(&server).await, 500);
    }
    assert_eq!(inside.post(HEARTBEAT).await, 200);
    assert_eq!(inside.next().await.as_deref(), Some(REPLY));
    drop(socket);
    let room = repeat_until(async || opens(&server).await != 500);
    timeout(DEADLINE, room).await.expect("room in time");
}

#[tokio::test]
async fn sessions_that_are_never_fetched_keep_nobody_out() {
    // On one thread, a session that gives way has ended before the next request is read.
    let server = TestServer::start_with(|settings| {
        settings.server.workers = 1;
        settings.limits.sessions_max = Some(8);
    });
    let (mut inside, mut first) = (joined(&server).await, Poller::connect(&server, V2).await);
    for n in 0..100 {
        assert_eq!(opens(&server).await, 410, "{n}");
    }
    assert_eq!(first.fetch().await, json!({"status": 500}), "it gave way");
    let mut comes = joined(&server).await;
    for n in 0..100 {
        assert_eq!(opens(&server).await, 410, "{n}");
    }
    let _socket = Socket::connect(&server, V2).await;
    for poller in [&mut inside, &mut comes] {
        assert_eq!(poller.post(HEARTBEAT).await, 200);
        assert_eq!(poller.next().await.as_deref(), Some(REPLY), "a session that fetches stays");
    }
}

#[tokio::test]
async fn a_server_that_stops_answers_parked_fetches_and_is_gone_at_once() {
    let mut server = TestServer::start_with(|settings| {
        settings.server.workers = 2;
        settings.server.shutdown_timeout = Duration::from_secs(600);
        settings.socket.long_poll_window = 3 * DEADLINE;
    });
    let mut pollers = Vec::new();
    for _ in 0..20 {
        let mut poller = joined(&server).await;
        poller.park().await;
        pollers.push(poller);
    }
    let mut silent = joined(&server).await;
    let mut late = silent.again(&server).await;
    let began = Instant::now();
    server.begin_stop();
    let answers = join_all(pollers.iter_mut().map(Poller::parked)).await;
    assert!(answers.iter().all(|answer| *answer == json!({"status": 500})), "{answers:?}");
    // A client that asks on a connection that is still open is told the same; others find no server.
    let ends = async { tokio::join!(silent.try_fetch(), late.try_fetch()) };
    let (first, second) = timeout(DEADLINE, ends).await.expect("an end in time");
    for answer in [first, second].into_iter().flatten() {
        assert_eq!(answer, json!({"status": 500}));
    }
    server.stop();
    // The stop has waited neither for a window nor for the timeout of idle connections.
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_publication_accepted_before_a_stop_reaches_a_client_whose_poll_waits() {
    let server = of_one_thread();
    let mut poller = joined(&server).await;
    poller.park().await;
    trigger(&server, 7, 0).await;
    server.begin_stop();
    let answer = poller.parked().await;
    assert_eq!(answer["messages"].as_array().map(Vec::len), Some(1), "{answer}");
}

#[tokio::test]
async fn a_publication_accepted_before_a_stop_reaches_a_client_between_two_polls() {
    let server = of_one_thread();
    let mut poller = joined(&server).await;
    let mut witness = Socket::connect(&server, V2).await;
    witness.join(TOPIC, json!({})).await;
    let mut elsewhere = poller.again(&server).await;
    trigger(&server, 7, 0).await;
    assert_eq!(witness.next().await[4]["n"], 7);
    server.begin_stop();
    // Both sessions end in the same batch, so the end of the other one is on its way, too.
    assert_eq!(witness.closed().await, 1012);
    let answer = poller.fetch().await;
    assert_eq!(answer["status"], 200, "{answer}");
    let messages = answer["messages"].as_array().expect("messages");
    assert_eq!(messages.len(), 1, "{answer}");
    assert!(messages[0].as_str().is_some_and(|frame| frame.contains(r#""n":7,"#)), "{answer}");
    // A fetch over another connection that is still open is told that the session has ended.
    let after = timeout(DEADLINE, elsewhere.try_fetch()).await.expect("an end in time");
    if let Some(answer) = after {
        assert_eq!(answer, json!({"status": 500}));
    }
}

#[tokio::test]
async fn where_tls_is_forced_plain_requests_are_refused() {
    let server = TestServer::start_with(|settings| {
        settings.server.force_ssl = true;
        settings.server.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
    });
    for (proto, is_refused) in [(None, true), (Some("http"), true), (Some("https"), false)] {
        for method in ["GET", "POST", "OPTIONS"] {
            let call = request(method, server.url("/socket/longpoll?vsn=2.0.0&"));
            let call =
                proto.into_iter().fold(call, |c, proto| c.header("x-forwarded-proto", proto));
            let answer = call.send().await;
            // The refusal is in the body: clients throw on any other HTTP status, and do not come back.
            assert_eq!(answer.status, 200, "{method} {proto:?}");
            assert_eq!(answer.body == r#"{"status":403}"#, is_refused, "{method} {proto:?}");
        }
    }
}

#[tokio::test]
async fn an_apps_own_origins_are_judged_by_the_page_that_opened_the_session() {
    let server = TestServer::start();
    let origins = json!(["https://own.example"]);
    server.create_app(json!({"name": "foo-app", "allowed_origins": origins})).await;
    let refused = json!({"status": "error", "response": {"reason": "origin not allowed"}});
    let ok = json!({"status": "ok", "response": {}});
    for (origin, expected) in [
        ("origin: https://own.example\r\n", &ok),
        ("origin: https://foreign.example\r\n", &refused),
        ("", &ok),
    ] {
        let poller = Poller::open_with(&server, "/socket/longpoll?vsn=2.0.0&", origin).await;
        let mut socket = Socket::polled(poller, V2);
        let reply = socket.try_join("public:foo-app", json!({})).await;
        assert_eq!(reply, *expected, "{origin}");
    }
}
