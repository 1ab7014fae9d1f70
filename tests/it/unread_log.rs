//! Standard error is a full pipe: the server loses lines of its log, and nothing else.

use chrono::DateTime;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{figures::Figures, *};

const DROPPED: &str = "herald_log_lines_dropped_total";
/// The first bytes of a request that is logged: a login with wrong credentials.
const LOGGED: &str =
    "GET /api/admin/apps HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic eDp5\r\n\r\n";

/// A server that logs all it can, and whose log nobody reads once it listens.
fn start() -> Process {
    let guesses = ("HERALD__LIMITS__FAILED_ADMIN_LOGINS_PER_MINUTE_MAX", "1000000");
    Process::start_unread(&[("RUST_LOG", "trace"), guesses])
}

/// Makes the server log until the pipe is full and lines are dropped. Each request must be answered.
async fn fill_log(process: &Process) {
    let server = &process.server;
    let mut stream: TcpStream = raw::connect(server).await;
    while Figures::of(server).await.get(DROPPED) == 0.0 {
        for _ in 0..100 {
            stream.write_all(LOGGED.as_bytes()).await.expect("an open connection");
            assert_eq!(raw::answer(&mut stream).await.0, 401);
        }
    }
}

/// Whether a line is as the logger writes it: a time, a level, a module, a message.
fn is_whole(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let is_time = words.next().is_some_and(|time| DateTime::parse_from_rfc3339(time).is_ok());
    let levels = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];
    let is_level = words.next().is_some_and(|level| levels.contains(&level));
    is_time && is_level && words.next().is_some() && !line.ends_with("[cut off]")
}

#[tokio::test]
async fn a_server_whose_log_nobody_reads_serves_and_stops_as_any_other() {
    let mut process = start();
    fill_log(&process).await;
    let server = &process.server;
    for path in ["/health", "/ready"] {
        assert_eq!(get(server.url(path)).await.status, 200, "{path}");
    }
    let mut sockets = Vec::new();
    for way in WAYS {
        let mut socket = Socket::connect(server, way).await;
        socket.join("public:test-app", json!({})).await;
        sockets.push(socket);
    }
    server.trigger(&App::seeded(), json!({"topic": "t", "event": "e"})).await;
    for socket in &mut sockets {
        assert_eq!(socket.next().await[3], "t:e");
    }

    process.signal("TERM");
    assert!(process.ended().success(), "the stop does not wait for a reader of the log");
    process.read_log();
    let log = process.rest_of_log();
    assert!(log.len() > 100, "the pipe was full");
    for line in log {
        assert!(is_whole(&line), "{line}");
    }
}

#[tokio::test]
async fn a_log_that_is_read_again_says_how_many_lines_are_missing() {
    let process = start();
    fill_log(&process).await;
    process.read_log();
    let said = process.logged("log lines were dropped", 1);
    let missing = said[0].split_whitespace().find_map(|word| word.parse::<u64>().ok());
    assert!(is_whole(&said[0]) && missing.is_some_and(|lines| lines > 0), "{said:?}");

    let mut stream = raw::connect(&process.server).await;
    stream.write_all(LOGGED.as_bytes()).await.expect("an open connection");
    assert_eq!(raw::answer(&mut stream).await.0, 401);
    process.until_logged("wrong admin credentials from 127.0.0.1");
}
