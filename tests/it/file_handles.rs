//! When file handles run out, connected sessions go on, and so do health, admin and metrics.

use std::process::Command;

use rlimit::Resource;
use serde_json::json;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{figures::Figures, http::Answer, server::ADMIN, *};

/// Sends a request over a connection that stays open.
async fn ask(stream: &mut TcpStream, path: &str) -> (u16, String) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let login = STANDARD.encode(format!("{}:{}", ADMIN.0, ADMIN.1));
    let head = format!("GET {path} HTTP/1.1\r\nhost: h\r\nauthorization: Basic {login}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("an open connection");
    raw::answer(stream).await
}

fn figures(status: u16, body: String) -> Figures {
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let headers = vec![("content-type".to_owned(), media_type.to_owned())];
    Figures::read(&Answer { status, headers, body })
}

#[tokio::test]
async fn when_file_handles_run_out_sessions_health_and_admin_go_on() {
    let process = Process::start(&[]);
    let server = &process.server;
    let mut sockets = Vec::new();
    for way in WAYS {
        let mut socket = Socket::connect(server, way).await;
        socket.join("public:test-app", json!({})).await;
        sockets.push(socket);
    }
    let mut open = raw::connect(server).await;
    assert_eq!(ask(&mut open, "/api/admin/apps").await.0, 200);
    let before = rlimit::getrlimit(Resource::NOFILE).expect("this process's limit");

    // The limit is the number of files that are open now, so there is no handle for a further connection.
    let files = process.open_files();
    process.limit_files((files, before.1));
    let mut late = raw::connect(server).await;
    let head = b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n";
    late.write_all(head).await.expect("room in the kernel");
    for path in ["/health", "/ready", "/api/admin/apps", "/api/admin/apps/test-app"] {
        assert_eq!(ask(&mut open, path).await.0, 200, "{path}");
    }
    let (status, body) = ask(&mut open, "/metrics").await;
    let figures = figures(status, body);
    assert_eq!(figures.get("process_max_fds"), files as f64);
    assert!(figures.get("process_resident_memory_bytes") > 0.0, "read without a file of its own");
    for socket in &mut sockets {
        socket.push(json!(["1", "2", "public:test-app", "t:e", {}])).await;
    }
    for socket in &mut sockets {
        for _ in 0..WAYS.len() {
            assert_eq!(socket.next().await[3], "t:e", "each client receives the events of all");
        }
    }
    process.limit_files(before);
    assert_eq!(raw::answer(&mut late).await.0, 200, "the connection that had to wait is answered");
}

#[tokio::test]
async fn connections_that_never_finish_a_request_take_no_handle_that_is_kept() {
    let mut herald = Command::new("sh");
    herald.args(["-c", "ulimit -n 800 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_herald")]);
    let dir = TempDir::new().expect("a temporary folder");
    let process = Process::start_through(herald, dir, &[]);
    let server = &process.server;
    let mut socket = Socket::connect(server, V2).await;
    socket.join("public:test-app", json!({})).await;
    herald::settings::raise_file_limit();

    // Beside the sessions there is room for 550 of them. Each is answered once, and then sends half a head.
    let mut half = Vec::new();
    for _ in 0..900 {
        let mut stream = raw::connect(server).await;
        let head = b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n";
        stream.write_all(head).await.expect("an open connection");
        assert_eq!(raw::answer(&mut stream).await.0, 200);
        stream.write_all(b"GET /half").await.expect("room in the kernel");
        half.push(stream);
    }
    for path in ["/health", "/ready", "/api/admin/apps"] {
        let mut fresh = raw::connect(server).await;
        assert_eq!(ask(&mut fresh, path).await.0, 200, "{path}");
    }
    let mut fresh = raw::connect(server).await;
    let (status, body) = ask(&mut fresh, "/metrics").await;
    let gave_way =
        figures(status, body).get("herald_limit_hits_total{limit=\"http_connections_max\"}");
    assert!(gave_way >= 350.0, "{gave_way}");
    assert!(process.open_files() <= 700, "{}", process.open_files());
    socket.push(json!(["1", "2", "public:test-app", "t:e", {}])).await;
    assert_eq!(socket.next().await[3], "t:e", "a connected client goes on");
}

#[tokio::test]
async fn connections_that_were_answered_and_idle_give_way() {
    const CONNECTIONS_MAX: u64 = 20;
    let process = Process::start(&[
        ("HERALD__LIMITS__HTTP_CONNECTIONS_MAX", "20"),
        ("HERALD__SERVER__WORKERS", "1"),
    ]);
    let server = &process.server;
    let before = process.open_files();
    let mut idle = Vec::new();
    for _ in 0..5 * CONNECTIONS_MAX {
        let mut stream = raw::connect(server).await;
        assert_eq!(ask(&mut stream, "/health").await.0, 200);
        idle.push(stream);
    }
    // A connection that has just been told to close may still be open.
    let few = async || process.open_files() <= before + CONNECTIONS_MAX + 5;
    nodes::until("most connections are closed", few).await;
    assert_eq!(raw::hung_up(&mut idle[0]).await, b"");
    let mut last = idle.pop().expect("a connection");
    assert_eq!(ask(&mut last, "/health").await.0, 200, "it has waited least");
}

#[tokio::test]
async fn handshakes_that_are_refused_and_do_not_hang_up_count_until_they_are_gone() {
    const CONNECTIONS_MAX: u64 = 20;
    let process = Process::start(&[("HERALD__LIMITS__HTTP_CONNECTIONS_MAX", "20")]);
    let server = &process.server;
    let before = process.open_files();
    let handshake = b"GET /socket/websocket HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\n\
                      upgrade: websocket\r\nsec-websocket-version: 1\r\n\r\n";
    let mut refused = Vec::new();
    for _ in 0..5 * CONNECTIONS_MAX {
        let mut stream = raw::connect(server).await;
        stream.write_all(handshake).await.expect("an open connection");
        assert_eq!(raw::answer(&mut stream).await.0, 400);
        refused.push(stream);
    }
    let open = process.open_files();
    // A connection that has just been told to close may still be open.
    assert!(open <= before + CONNECTIONS_MAX + 5, "{open} files are open, {before} before");
    raw::hung_up(&mut refused[0]).await;
    let mut fresh = raw::connect(server).await;
    assert_eq!(ask(&mut fresh, "/health").await.0, 200);
}

#[tokio::test]
async fn fetches_that_are_parked_give_way_where_nothing_else_can() {
    const FETCHES: usize = 30;
    let process = Process::start(&[
        ("HERALD__LIMITS__HTTP_CONNECTIONS_MAX", "20"),
        ("HERALD__SERVER__WORKERS", "1"),
        ("HERALD__SOCKET__LONG_POLL_WINDOW", "19s"),
    ]);
    let server = &process.server;
    let mut parked = Vec::new();
    for _ in 0..FETCHES {
        let mut stream = raw::connect(server).await;
        stream
            .write_all(b"GET /socket/longpoll?vsn=2.0.0 HTTP/1.1\r\nhost: h\r\n\r\n")
            .await
            .expect("room");
        let (status, body) = raw::answer(&mut stream).await;
        assert_eq!(status, 200, "{body}");
        let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let token = answer["token"].as_str().expect("a token").to_owned();
        let fetch =
            format!("GET /socket/longpoll?vsn=2.0.0&token={token} HTTP/1.1\r\nhost: h\r\n\r\n");
        stream.write_all(fetch.as_bytes()).await.expect("room");
        parked.push((stream, token));
        for path in ["/health", "/api/admin/apps"] {
            let mut fresh = raw::connect(server).await;
            assert_eq!(ask(&mut fresh, path).await.0, 200, "{path}");
        }
    }
    // The first fetch was answered without messages, and its connection was closed.
    let (stream, token) = &mut parked[0];
    let (status, body) = raw::answer(stream).await;
    assert_eq!(
        (status, body),
        (200, format!(r#"{{"status":204,"token":"{token}","messages":[]}}"#))
    );
    assert_eq!(raw::hung_up(stream).await, b"");
    let path = format!("/socket/longpoll?vsn=2.0.0&token={token}");
    let mut again = raw::connect(server).await;
    let body = r#"[null,"1","phoenix","heartbeat",{}]"#;
    let post =
        format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    again.write_all(post.as_bytes()).await.expect("room");
    assert_eq!(raw::answer(&mut again).await.1, r#"{"status":200}"#, "its session goes on");
}
