//! Clients that stop reading or fetching are dropped, counted and logged once each, and other clients do not notice.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::{
    figures::{Figures, becomes, becomes_hit},
    *,
};

const TOPIC: &str = "public:test-app";

/// Joins over a socket with a small kernel buffer, and reads nothing from then on.
async fn deaf(server: &TestServer) -> TcpStream {
    let join = r#"["1","1","public:test-app","phx_join",{}]"#;
    deaf_client(server, "/socket/websocket?vsn=2.0.0", join, b"\"response\":{}}]").await
}

/// A client of Pusher that subscribes to the channel `general` in the same way.
async fn deaf_to_pusher(server: &TestServer) -> TcpStream {
    let path = pusher_socket::path(&App::seeded());
    let subscribe = r#"{"event":"pusher:subscribe","data":{"channel":"general"}}"#;
    deaf_client(server, &path, subscribe, br#""channel":"general","data":"{}"}"#).await
}

/// Joins with a message, whose answer ends as given, and reads nothing after it.
async fn deaf_client(server: &TestServer, path: &str, join: &str, answer_ends: &[u8]) -> TcpStream {
    let tcp = TcpSocket::new_v4().expect("a socket");
    tcp.set_recv_buffer_size(4_096).expect("a small buffer");
    let stream = tcp.connect(([127, 0, 0, 1], server.port).into()).await.expect("a connection");
    let mut stream = stream;
    let handshake = format!(
        "GET {path} HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(handshake.as_bytes()).await.expect("room");
    until(&mut stream, b"\r\n\r\n").await;
    // A mask of zeros leaves the text as it is.
    let length = 0x80 | u8::try_from(join.len()).expect("a short message");
    stream.write_all(&[&[0x81, length, 0, 0, 0, 0], join.as_bytes()].concat()).await.expect("room");
    until(&mut stream, answer_ends).await;
    stream
}

async fn until(stream: &mut TcpStream, end: &[u8]) {
    let mut got = Vec::new();
    while !got.ends_with(end) {
        got.push(timeout(DEADLINE, stream.read_u8()).await.expect("in time").expect("more"));
    }
}

async fn trigger(server: &TestServer, n: usize, filler: usize) {
    let payload = json!({"n": n, "x": "x".repeat(filler)});
    let event = json!({"topic": "#general", "event": "e", "payload": payload});
    server.trigger(&App::seeded(), event).await;
}

/// A socket that reads everything: it must miss nothing.
struct Witness(Socket, usize);

impl Witness {
    async fn joined(server: &TestServer) -> Self {
        let mut socket = Socket::connect(server, V2).await;
        socket.join(TOPIC, json!({})).await;
        Self(socket, 0)
    }

    async fn sees_one_more(&mut self, server: &TestServer, filler: usize) {
        trigger(server, self.1, filler).await;
        assert_eq!(self.0.next().await[4]["n"], self.1);
        self.1 += 1;
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_is_dropped_for_frames_or_bytes_whichever_comes_first() {
    for (limit, reason, filler) in [
        ("outbox_frames_max", "outbox_frames", 30_000),
        ("outbox_bytes_max", "outbox_bytes", 90_000),
    ] {
        let server = TestServer::start_with(|settings| match limit {
            "outbox_frames_max" => settings.limits.outbox_frames_max = 8,
            _ => settings.limits.outbox_bytes_max = 400_000,
        });
        let mut witness = Witness::joined(&server).await;
        let mut deaf = deaf(&server).await;
        let dropped = async {
            while Figures::of(&server).await.ended(reason) < 1.0 {
                witness.sees_one_more(&server, filler).await;
            }
        };
        timeout(3 * DEADLINE, dropped).await.expect("it is dropped in time");
        let figures = becomes_hit(&server, limit, 1.0).await;
        assert_eq!(figures.get(r#"herald_sessions{transport="websocket",version="2"}"#), 1.0);
        raw::hung_up(&mut deaf).await;
        witness.sees_one_more(&server, filler).await;
    }
}

#[tokio::test]
async fn a_write_that_makes_no_progress_ends_the_session_however_roomy_its_outbox() {
    let server = TestServer::start_with(|settings| {
        settings.socket.write_timeout = Duration::from_millis(300);
    });
    let mut witness = Witness::joined(&server).await;
    let mut deaf = deaf(&server).await;
    // In all this is less than an outbox may hold, but more than the kernel buffers.
    for _ in 0..20 {
        witness.sees_one_more(&server, 90_000).await;
    }
    let dropped = repeat_until(async || Figures::of(&server).await.ended("write_timeout") >= 1.0);
    timeout(3 * DEADLINE, dropped).await.expect("it is dropped in time");
    let figures = becomes_hit(&server, "write_timeout", 1.0).await;
    assert_eq!((figures.ended("outbox_bytes"), figures.ended("outbox_frames")), (0.0, 0.0));
    raw::hung_up(&mut deaf).await;
    witness.sees_one_more(&server, 10).await;
}

/// While a write is stuck, only bytes from the client count as a sign of life. A client that sends pongs stays,
/// also beyond the idle timeout. A client that sends nothing is dropped before the write times out.
#[tokio::test]
async fn a_client_that_reads_nothing_is_idle_when_it_says_nothing_either() {
    let idle_timeout = Duration::from_secs(2);
    let server = TestServer::start_with(|settings| {
        settings.socket.idle_timeout = idle_timeout;
        settings.socket.long_poll_window = Duration::from_secs(1);
        settings.socket.write_timeout = Duration::from_secs(600);
    });
    let mut stopped = deaf(&server).await;
    let mut lively = deaf(&server).await;
    let mut pace = tokio::time::interval(idle_timeout / 10);
    // An unsolicited pong, which the server accepts and does not answer.
    let beat = [0x8a, 0x80, 0, 0, 0, 0];
    let mut beats = 0;
    let began = Instant::now();
    let mut stopped_after = None;
    while stopped_after.is_none() || began.elapsed() < idle_timeout * 3 {
        pace.tick().await;
        // In all this is more than the kernel buffers, and less than an outbox may hold.
        if beats < 40 {
            trigger(&server, beats, 90_000).await;
        }
        lively.write_all(&beat).await.expect("it is not dropped");
        beats += 1;
        if Figures::of(&server).await.ended("idle") > 0.0 {
            stopped_after.get_or_insert_with(|| began.elapsed());
        }
        assert!(began.elapsed() < DEADLINE * 3, "the stopped one is dropped in time");
    }
    let figures = becomes_hit(&server, "idle_timeout", 1.0).await;
    assert_eq!(figures.ended("idle"), 1.0);
    assert_eq!(figures.get(r#"herald_sessions{transport="websocket",version="2"}"#), 1.0);
    raw::hung_up(&mut stopped).await;
    // Now the other client is silent, too.
    becomes_hit(&server, "idle_timeout", 2.0).await;
    raw::hung_up(&mut lively).await;
}

/// A page of Pusher's that only receives says nothing for `activity_timeout`, so its silence must not end it as soon
/// as it takes a moment to read.
#[tokio::test]
async fn p025_a_quiet_client_of_pusher_that_reads_nothing_has_all_of_the_write_timeout() {
    let server = TestServer::start_with(|settings| {
        settings.socket.idle_timeout = Duration::from_millis(200);
        settings.socket.long_poll_window = Duration::from_millis(100);
        settings.socket.write_timeout = Duration::from_secs(2);
        settings.pusher.activity_timeout = Duration::from_secs(600);
    });
    let mut deaf = deaf_to_pusher(&server).await;
    // In all this is more than the kernel buffers, and less than an outbox may hold.
    for n in 0..40 {
        trigger(&server, n, 90_000).await;
    }
    let dropped = repeat_until(async || {
        let figures = Figures::of(&server).await;
        assert_eq!(figures.ended("idle"), 0.0);
        figures.ended("write_timeout") >= 1.0
    });
    timeout(3 * DEADLINE, dropped).await.expect("it is dropped in time");
    raw::hung_up(&mut deaf).await;
}

#[tokio::test]
async fn a_client_that_stops_fetching_is_dropped_too() {
    let server = TestServer::start_with(|settings| {
        settings.socket.long_poll_window = Duration::from_secs(2);
    });
    let mut witness = Witness::joined(&server).await;
    let mut polled = Socket::polled(Poller::connect(&server, V2).await, V2);
    polled.join(TOPIC, json!({})).await;
    witness.sees_one_more(&server, 10).await;
    let figures =
        becomes(&server, r#"herald_sessions_ended_total{reason="not_fetching"}"#, 1.0).await;
    assert_eq!(figures.hits("long_poll_window"), 1.0);
    assert_eq!(polled.into_poller().fetch().await, json!({"status": 500}));
    witness.sees_one_more(&server, 10).await;
}

#[tokio::test]
async fn many_deaf_clients_in_a_flood_cost_what_their_outboxes_hold_and_one_line_each() {
    const CLIENTS: usize = 40;
    let process = Process::start(&[
        ("HERALD__LIMITS__OUTBOX_BYTES_MAX", "500000"),
        ("HERALD__LIMITS__PRESENCE_MEMBERS_MAX", "100"),
        ("HERALD__HISTORY__REPLAY_BYTES_MAX", "100000"),
        ("HERALD__SOCKET__WRITE_TIMEOUT", "60s"),
    ]);
    let server = &process.server;
    let mut deaf_ones = Vec::new();
    for _ in 0..CLIENTS {
        deaf_ones.push(deaf(server).await);
    }
    let mut witness = Witness::joined(server).await;
    let before = process.resident_bytes();
    let mut most = before;
    // The events are 20 MB for each client and 800 MB in all, of which each outbox may hold half a megabyte.
    for _ in 0..200 {
        witness.sees_one_more(server, 100_000).await;
        most = most.max(process.resident_bytes());
    }
    let grown = most.saturating_sub(before);
    assert!(grown < 60_000_000, "{grown} bytes for clients that read nothing");
    let dropped = r#"herald_sessions_ended_total{reason="outbox_bytes"}"#;
    let figures = becomes(server, dropped, CLIENTS as f64).await;
    assert_eq!(figures.hits("outbox_bytes_max"), CLIENTS as f64);
    for stream in &mut deaf_ones {
        raw::hung_up(stream).await;
    }
    let lines = process.logged("is dropped: outbox_bytes", CLIENTS);
    assert_eq!(lines.len(), CLIENTS, "{lines:?}");
    let mut sessions: Vec<_> =
        lines.iter().filter_map(|line| line.split_once("session ")?.1.split(' ').next()).collect();
    sessions.sort_unstable();
    sessions.dedup();
    assert_eq!(sessions.len(), CLIENTS, "each session once: {lines:?}");
    assert!(lines.iter().all(|line| line.contains("INFO") && !line.contains("xxx")), "{lines:?}");
}

#[tokio::test]
async fn the_backlog_of_all_clients_is_bounded_and_the_fullest_outbox_gives_way() {
    let server = TestServer::start_with(|settings| {
        settings.server.workers = 1;
        settings.limits.outboxes_bytes_max = Some(1_000_000);
        // None of these clients is to be taken for one that has gone.
        settings.socket.long_poll_window = Duration::from_secs(19);
    });
    let app = App::seeded();
    let event = |channel: &str| {
        let payload = json!({ "text": "x".repeat(90_000) });
        json!({ "topic": channel, "event": "msg", "payload": payload })
    };
    let mut listener = Socket::connect(&server, V2).await;
    listener.join("public:test-app:live", json!({})).await;
    let mut pollers = Vec::new();
    for channel in ["fullest", "second", "third"] {
        let poller = Poller::connect(&server, V2).await;
        let mut socket = Socket::polled(poller, V2);
        socket.join(&format!("public:test-app:{channel}"), json!({})).await;
        pollers.push(socket.into_poller());
    }
    for (channel, events) in [("fullest", 5), ("second", 3), ("third", 3)] {
        for _ in 0..events {
            server.trigger(&app, event(channel)).await;
        }
    }
    // With this event, the 990,000 bytes of text that wait already, and the frames around them, are too much.
    server.trigger(&app, event("live")).await;
    assert_eq!(listener.next().await[3], "msg");
    let figures = becomes_hit(&server, "outboxes_bytes_max", 1.0).await;
    assert_eq!(figures.ended("outboxes_bytes"), 1.0);
    let mut pollers = pollers.into_iter();
    let mut gone = pollers.next().expect("the fullest");
    assert_eq!(gone.fetch().await, json!({ "status": 500 }), "its session has ended");
    for mut poller in pollers {
        let fetched = poller.fetch().await;
        assert_eq!(fetched["messages"].as_array().map(Vec::len), Some(3), "the others keep theirs");
    }
    server.trigger(&app, event("live")).await;
    assert_eq!(listener.next().await[3], "msg", "there is room again");
    assert_eq!(becomes_hit(&server, "outboxes_bytes_max", 1.0).await.ended("outboxes_bytes"), 1.0);
}
