//! Pipelined requests, which a client sends ahead of the answers to earlier ones. Each is answered in its turn, and
//! costs no more than any other.

use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::*;

const CREDENTIALS: &str = "Basic dGVzdC1hcHAtZmFrZS1rZXk6dGVzdC1hcHAtZmFrZS1zZWNyZXQ=";

/// A connection with a small receive buffer, into which only a few KB of unread answers fit.
async fn connect(server: &TestServer) -> TcpStream {
    let tcp = TcpSocket::new_v4().expect("a socket");
    tcp.set_recv_buffer_size(4_096).expect("a small buffer");
    tcp.connect(([127, 0, 0, 1], server.port).into()).await.expect("a connection")
}

#[tokio::test]
async fn requests_whose_answers_are_not_read_cost_no_memory_and_are_served_once_they_are() {
    const CONNECTIONS: usize = 20;
    // A thread begins at most 8,000 requests a second that were sent ahead, so all of them are ten seconds of work
    // for one thread.
    const REQUESTS: usize = 4_000;
    let process = Process::start(&[]);
    let server = &process.server;
    // The answer to this request has no body, so actix's HTTP server alone would serve all of them at once.
    let request = "OPTIONS /socket/websocket HTTP/1.1\r\nhost: h\r\n\r\n";
    let last = "GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let bytes = format!("{}{last}", request.repeat(REQUESTS - 1));
    get(server.url("/health")).await;
    let before = process.resident_bytes();
    let clients = join_all((0..CONNECTIONS).map(|_| connect(server))).await;
    let mut halves = Vec::new();
    for client in clients {
        let (reading, mut writing) = client.into_split();
        let bytes = bytes.clone();
        let written = tokio::spawn(async move {
            writing.write_all(bytes.as_bytes()).await.expect("all are read in the end");
            writing
        });
        halves.push((reading, written));
    }
    // The server has begun to serve every client once each has an answer to read.
    for (reading, _) in &mut halves {
        timeout(DEADLINE, reading.peek(&mut [0])).await.expect("an answer in time").expect("room");
    }
    for _ in 0..100 {
        let answer = get(server.url("/health")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"status":"ok"}"#));
    }
    let grown = process.resident_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "grown by {grown} bytes");
    let all = halves.into_iter().map(|(mut reading, written)| async move {
        let mut answers = String::new();
        let read = timeout(3 * DEADLINE, reading.read_to_string(&mut answers)).await;
        read.expect("an end in time").expect("text");
        written.await.expect("no panic");
        answers
    });
    for answers in join_all(all).await {
        assert_eq!(answers.matches("HTTP/1.1 400 Bad Request\r\n").count(), REQUESTS - 1);
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 1);
        assert!(answers.ends_with(r#"{"status":"ok"}"#), "the last one comes last");
    }
}

#[tokio::test]
async fn a_request_that_merely_offers_an_upgrade_is_served_like_any_other() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let body = r#"{"topic":"t","event":"e","payload":{}}"#;
    let mut client = raw::connect(&server).await;
    for offer in [
        "connection: upgrade",
        "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk",
        "connection: upgrade\r\nupgrade: websocket",
        "connection: keep-alive, Upgrade\r\nupgrade: websocket, h2c",
        "upgrade: websocket",
        "connection: upgrade\r\nconnection: keep-alive\r\nupgrade: foo/1, h2c\r\nupgrade: bar",
    ] {
        let trigger = format!(
            "POST /api/apps/test-app/events HTTP/1.1\r\nhost: h\r\nauthorization: {CREDENTIALS}\r\n\
             content-type: application/json\r\n{offer}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let health = format!("GET /health HTTP/1.1\r\nhost: h\r\n{offer}\r\n\r\n");
        for (request, path) in [(trigger, "a trigger"), (health, "/health")] {
            client.write_all(request.as_bytes()).await.expect("a connection that is kept");
            assert_eq!(raw::answer(&mut client).await.0, 200, "{path} with {offer}");
        }
        assert_eq!(socket.frame().await, r#"[null,null,"public:test-app","t:e",{}]"#, "{offer}");
    }
}

#[tokio::test]
async fn triggers_that_are_sent_ahead_are_published_in_their_order() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let head = format!(
        "POST /api/apps/test-app/events HTTP/1.1\r\nhost: h\r\nauthorization: {CREDENTIALS}\r\n\
         content-type: application/json\r\n"
    );
    let mut client = raw::connect(&server).await;
    let mut bytes = String::new();
    for n in 0..20 {
        let body = format!(r#"{{"topic":"t","event":"e","payload":{{"n":{n}}}}}"#);
        let (length, half) = (body.len(), body.len() / 2);
        bytes += &match n % 2 {
            0 => format!("{head}content-length: {length}\r\n\r\n{body}"),
            _ => format!(
                "{head}transfer-encoding: chunked\r\n\r\n{half:x}\r\n{}\r\n{:x};x=y\r\n{}\r\n\
                 0\r\n\r\n",
                &body[..half],
                length - half,
                &body[half..]
            ),
        };
    }
    client.write_all(bytes.as_bytes()).await.expect("room");
    for n in 0..20 {
        assert_eq!(raw::answer(&mut client).await.0, 200, "{n}");
        let expected = json!([null, null, "public:test-app", "t:e", {"n": n}]);
        assert_eq!(socket.next().await, expected);
    }
}

#[tokio::test]
async fn fetches_that_are_parked_and_sent_ahead_cost_neither_memory_nor_time() {
    const CONNECTIONS: usize = 20;
    const FETCHES: usize = 5_000;
    let process = Process::start(&[("HERALD__SOCKET__LONG_POLL_WINDOW", "1s")]);
    let server = &process.server;
    let mut sessions = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut socket = Socket::polled(Poller::connect(server, V2).await, V2);
        socket.join("public:test-app", json!({})).await;
        sessions.push(socket.into_poller());
    }
    let before = process.resident_bytes();
    let mut halves = Vec::new();
    for session in &sessions {
        let fetch = format!(
            "GET /socket/longpoll?vsn=2.0.0&token={} HTTP/1.1\r\nhost: h\r\n\r\n",
            session.token
        );
        let (reading, mut writing) = connect(server).await.into_split();
        // The bytes that the kernel does not buffer are written when the server reads on.
        let written = tokio::spawn(async move {
            for _ in 0..FETCHES {
                if writing.write_all(fetch.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        halves.push((reading, written));
    }
    // The fetches of a session are answered one after the other, each when its window is over.
    let empty =
        |session: &Poller| format!(r#"{{"status":204,"token":"{}","messages":[]}}"#, session.token);
    let mut answered = async || {
        for ((reading, _), session) in halves.iter_mut().zip(&sessions) {
            assert_eq!(raw::answer(reading).await, (200, empty(session)));
        }
    };
    answered().await;
    let began = process.cpu_time();
    for _ in 0..3 {
        answered().await;
    }
    let took = process.cpu_time() - began;
    // A single connection whose task is polled without end would use a whole core for these three seconds.
    assert!(took < std::time::Duration::from_millis(1_000), "{took:?}");
    let grown = process.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "grown by {grown} bytes");
    for (_, written) in halves {
        written.abort();
    }
}
