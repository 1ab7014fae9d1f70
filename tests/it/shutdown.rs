//! How a server ends: in order when asked, and without damage when it is not asked.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::support::{raw, server::ADMIN, *};

/// Ample time for a stop that waits for nobody, on a loaded machine too. The timeouts that such a stop must not
/// wait for are set far longer.
const SOON: Duration = Duration::from_secs(20);

/// Waits until `/ready` is no longer answered with 200. The server must still be listening.
async fn until_draining(server: &TestServer) {
    let draining = repeat_until(async || get(server.url("/ready")).await.status != 200);
    timeout(DEADLINE, draining).await.expect("the shutdown begins in time");
}

/// Waits until the server no longer listens. From then on, only requests under way hold the stop up.
async fn until_deaf(server: &TestServer) {
    let address = ("127.0.0.1", server.port);
    let deaf = repeat_until(async || TcpStream::connect(address).await.is_err());
    timeout(DEADLINE, deaf).await.expect("the listener closes in time");
}

/// A client that holds a stop up for as long as the server lets it: it is connected and never reads.
async fn stuck(server: &TestServer) -> Socket {
    let mut socket = Socket::connect(server, V2).await;
    socket.join("public:test-app:stuck", json!({})).await;
    let filler = "x".repeat(100_000);
    for _ in 0..60 {
        let event = json!({"topic": "stuck", "event": "e", "payload": {"x": filler}});
        server.trigger(&App::seeded(), event).await;
    }
    socket
}

/// Half of a trigger, on a connection that never sends the rest.
async fn half_a_trigger(server: &TestServer) -> TcpStream {
    let mut half = raw::connect(server).await;
    let head = "POST /api/apps/test-app/events HTTP/1.1\r\nhost: h\r\n\
                authorization: Basic dGVzdC1hcHAtZmFrZS1rZXk6dGVzdC1hcHAtZmFrZS1zZWNyZXQ=\r\n\
                content-type: application/json\r\ncontent-length: 100\r\n\
                expect: 100-continue\r\n\r\n{\"topic\":";
    half.write_all(head.as_bytes()).await.expect("room");
    // The server sends `100 Continue` when it begins to read the body.
    assert_eq!(raw::answer(&mut half).await.0, 100);
    half
}

/// A process that may take this time to stop, and clients that hold it up: a session that reads nothing,
/// for two seconds, and half a request, for as long as the stop may take.
async fn held_up(shutdown_timeout: &str) -> (Process, (Socket, TcpStream)) {
    let process = Process::start(&[
        ("HERALD__SERVER__SHUTDOWN_TIMEOUT", shutdown_timeout),
        ("HERALD__LIMITS__OUTBOX_BYTES_MAX", "1000000000"),
        ("HERALD__SOCKET__WRITE_TIMEOUT", "10m"),
        ("HERALD__SOCKET__IDLE_TIMEOUT", "10m"),
    ]);
    let half = half_a_trigger(&process.server).await;
    let stuck = stuck(&process.server).await;
    (process, (stuck, half))
}

/// Raises the limits that would end a stuck client before the stop does.
fn patient(settings: &mut herald::settings::Settings) {
    settings.limits.outbox_bytes_max = 1 << 30;
    settings.limits.outbox_frames_max = 100_000;
    settings.socket.write_timeout = Duration::from_secs(600);
}

#[tokio::test]
async fn while_it_drains_it_says_so_lets_nobody_in_and_ends_in_time_though_one_is_stuck() {
    let shutdown_timeout = Duration::from_secs(10);
    let mut server = TestServer::start_with(|settings| {
        patient(settings);
        settings.server.shutdown_timeout = shutdown_timeout;
    });
    let mut socket = Socket::connect(&server, V2).await;
    let _stuck = stuck(&server).await;
    let began = Instant::now();
    server.begin_stop();
    assert_eq!(socket.closed().await, 1012);
    until_draining(&server).await;
    let ready = get(server.url("/ready")).await;
    assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("draining")));
    assert_eq!(ready.header("connection"), Some("close"), "the connection is closed after it");
    let health = get(server.url("/health")).await;
    assert_eq!((health.status, health.body.as_str()), (200, r#"{"status":"ok"}"#));
    for vsn in [V1, V2] {
        let path = format!("/socket/websocket?vsn={vsn}");
        assert_eq!(Socket::refused(&server, &path, &[]).await.0, 503, "{vsn}");
    }
    // Pusher's close codes for these would keep the client from another server.
    for path in ["/app/nobody?protocol=7", "/app/test-app-fake-key?protocol=8"] {
        assert_eq!(Socket::refused(&server, path, &[]).await.0, 503, "{path}");
    }
    let app = App::seeded();
    let trigger = request("POST", server.url("/api/apps/test-app/events"));
    let event = json!({"topic": "t", "event": "e"});
    let answer = trigger.basic(&app.key, &app.secret).json(&event).send().await;
    assert_eq!(answer.status, 503, "nobody would hear it: {}", answer.body);
    assert!(answer.header("retry-after").is_some());
    // All these answers came while the server drained: afterwards nothing listens.
    server.stop();
    assert!(began.elapsed() < shutdown_timeout + SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn every_session_is_told_to_come_back_and_the_server_is_gone_at_once() {
    let mut server = TestServer::start_with(|settings| {
        settings.server.workers = 2;
        settings.server.shutdown_timeout = Duration::from_secs(600);
        settings.socket.handshake_timeout = Duration::from_secs(60);
    });
    let mut sockets = Vec::new();
    for nth in 0..40 {
        let mut socket = Socket::connect(&server, [V1, V2][nth % 2]).await;
        if nth % 4 < 2 {
            socket.join("public:test-app", json!({})).await;
        }
        sockets.push(socket);
    }
    // A connection that is kept alive without a request, and one whose request is incomplete.
    let mut idle = raw::connect(&server).await;
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("room");
    assert_eq!(raw::answer(&mut idle).await.0, 200);
    let mut half = raw::connect(&server).await;
    half.write_all(b"GET /hea").await.expect("room");
    let began = Instant::now();
    server.begin_stop();
    let codes = join_all(sockets.iter_mut().map(Socket::closed)).await;
    assert_eq!(codes.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([1012]));
    drop(sockets);
    raw::hung_up(&mut idle).await;
    raw::hung_up(&mut half).await;
    server.stop();
    // A connection without a request is kept for much longer.
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

/// Sessions of every kind, spread over all threads.
async fn crowd(server: &TestServer, sessions: usize) -> Vec<Socket> {
    let mut sockets = Vec::new();
    for nth in 0..sessions {
        let mut socket = Socket::connect(server, WAYS[nth % WAYS.len()]).await;
        socket.join("public:test-app", json!({})).await;
        sockets.push(socket);
    }
    sockets
}

/// The moments at which these sessions are closed, earliest first. Over long-poll there is no code.
async fn closed_at(sockets: &mut [Socket]) -> Vec<Instant> {
    let mut closed = join_all(sockets.iter_mut().map(async |socket| {
        let code = socket.ended_or_gone().await;
        assert!(matches!(code, Some(1012) | None), "{code:?}");
        Instant::now()
    }))
    .await;
    closed.sort();
    closed
}

#[tokio::test]
async fn e101_sessions_are_closed_batch_by_batch_over_all_threads_together() {
    let interval = Duration::from_millis(300);
    let mut server = TestServer::start_with(|settings| {
        settings.server.workers = 3;
        settings.server.shutdown_timeout = Duration::from_secs(60);
        settings.server.drain_batch_sessions = 2;
        settings.server.drain_interval = interval;
    });
    let mut sockets = crowd(&server, 8).await;
    let began = Instant::now();
    server.begin_stop();
    let closed = closed_at(&mut sockets).await;
    // The n-th batch can be seen later than it was closed, never earlier.
    for (nth, closed) in closed.iter().enumerate() {
        let batch = u32::try_from(nth / 2).expect("few");
        let took = *closed - began;
        assert!(took >= interval * batch, "session {nth} was closed after {took:?}");
    }
    drop(sockets);
    server.stop();
}

#[tokio::test]
async fn a_client_that_comes_back_meanwhile_is_told_to_wait_and_those_left_are_served() {
    let server = TestServer::start_with(|settings| {
        // At the end of the test, the stop waits until the sessions over long-poll have ended for lack of polls.
        settings.socket.long_poll_window = Duration::from_secs(2);
        settings.server.shutdown_timeout = Duration::from_secs(600);
        settings.server.drain_batch_sessions = 1;
        settings.server.drain_interval = Duration::from_secs(60);
    });
    let mut sockets = crowd(&server, 4).await;
    server.begin_stop();
    let first = futures_util::future::select_all(
        sockets.iter_mut().map(|socket| Box::pin(socket.ended_with())),
    );
    let (code, nth, rest) = timeout(DEADLINE, first).await.expect("the first is closed");
    drop(rest);
    assert!(matches!(code, Some(1012) | None), "{code:?}");
    sockets.remove(nth);
    assert_eq!(Socket::refused(&server, "/socket/websocket?vsn=2.0.0", &[]).await.0, 503);
    let answer = get(server.url("/socket/longpoll?vsn=2.0.0")).await;
    assert_eq!(answer.json(), json!({ "status": 500 }));
    for socket in &mut sockets {
        socket.push(json!([null, "9", "phoenix", "heartbeat", {}])).await;
        let reply = socket.next().await;
        assert_eq!((&reply[1], &reply[4]["status"]), (&json!("9"), &json!("ok")), "{reply}");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_batches_when_all_have_left_by_themselves() {
    let mut server = TestServer::start_with(|settings| {
        settings.server.shutdown_timeout = Duration::from_secs(600);
        settings.server.drain_batch_sessions = 1;
        settings.server.drain_interval = Duration::from_secs(60);
    });
    let sockets = [Socket::connect(&server, V1).await, Socket::connect(&server, V2).await];
    server.begin_stop();
    until_draining(&server).await;
    drop(sockets);
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn batches_grow_where_the_pace_would_take_longer_than_a_stop_may() {
    let interval = Duration::from_secs(1);
    let mut server = TestServer::start_with(|settings| {
        settings.server.shutdown_timeout = Duration::from_secs(8);
        settings.server.drain_batch_sessions = 1;
        settings.server.drain_interval = interval;
    });
    let mut sockets = crowd(&server, 40).await;
    let began = Instant::now();
    server.begin_stop();
    // One by one it would take 40 s; clients that are left when time is up are told nothing.
    let closed = closed_at(&mut sockets).await;
    assert!(closed[closed.len() - 1] - began >= interval, "not all at once");
    drop(sockets);
    server.stop();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn e101_a_second_signal_closes_at_once_what_is_left() {
    let mut process = Process::start(&[
        ("HERALD__SERVER__SHUTDOWN_TIMEOUT", "10m"),
        ("HERALD__SERVER__DRAIN_BATCH_SESSIONS", "1"),
        ("HERALD__SERVER__DRAIN_INTERVAL_MS", "60000"),
    ]);
    let mut sockets = crowd(&process.server, 8).await;
    process.signal("TERM");
    process.until_logged("SIGTERM: shutting down");
    let began = Instant::now();
    process.signal("INT");
    closed_at(&mut sockets).await;
    drop(sockets);
    assert_eq!(process.ended().code(), Some(0));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_third_signal_ends_it_all() {
    let (mut process, _held) = held_up("10m").await;
    process.signal("TERM");
    process.until_logged("SIGTERM: shutting down");
    // After the second signal alone the process would soon end by itself. It is suspended, so that it finds the
    // second and the third signal together.
    process.signal("STOP");
    process.signal("INT");
    process.signal("TERM");
    process.signal("CONT");
    process.until_logged("again: closing the remaining sessions at once");
    process.until_logged("a third signal: stopping at once");
    assert_eq!(process.ended().code(), Some(0));
}

#[tokio::test]
async fn accepted_publications_are_delivered_before_the_close() {
    const PUBLISHERS: usize = 8;
    let server = TestServer::start_with(|settings| {
        settings.server.workers = 2;
        settings.server.shutdown_timeout = Duration::from_secs(60);
    });
    let mut sockets = Vec::new();
    for nth in 0..6 {
        let mut socket = Socket::connect(&server, [V1, V2][nth % 2]).await;
        socket.join("public:test-app", json!({})).await;
        sockets.push(socket);
    }
    let url = server.url("/api/apps/test-app/events");
    let publishers = (0..PUBLISHERS).map(|publisher| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent =
                ureq::Agent::config_builder().http_status_as_error(false).build().into();
            let mut accepted = Vec::new();
            for n in 0.. {
                let id = format!("{publisher}-{n}");
                let event = json!({"topic": "t", "event": "e", "payload": {"id": id}});
                let request = agent.post(&url).header("content-type", "application/json").header(
                    "authorization",
                    "Basic dGVzdC1hcHAtZmFrZS1rZXk6dGVzdC1hcHAtZmFrZS1zZWNyZXQ=",
                );
                match request.send(event.to_string()) {
                    Ok(answer) if answer.status() == 200 => accepted.push(id),
                    // The event is refused or the server is gone, because the stop has begun.
                    _ => return accepted,
                }
            }
            accepted
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let receiving = sockets.into_iter().map(|mut socket| {
        tokio::spawn(async move {
            let (frames, code) = socket.rest().await;
            (frames, code)
        })
    });
    let receiving: Vec<_> = receiving.collect();
    // The stop begins under load, when one more client has received a hundred events.
    let mut witness = Socket::connect(&server, V2).await;
    witness.join("public:test-app", json!({})).await;
    for _ in 0..100 {
        witness.frame().await;
    }
    server.begin_stop();
    assert_eq!(witness.rest().await.1, 1012);
    let accepted = timeout(2 * DEADLINE, join_all(publishers)).await.expect("an end in time");
    let accepted: Vec<String> =
        accepted.into_iter().flat_map(|one| one.expect("a publisher")).collect();
    assert!(accepted.len() >= 100, "{}", accepted.len());
    for received in join_all(receiving).await {
        let (frames, code) = received.expect("a receiver");
        assert_eq!(code, 1012);
        for id in &accepted {
            let needle = format!(r#"{{"id":"{id}"}}"#);
            let times = frames.iter().filter(|frame| frame.contains(&needle)).count();
            assert_eq!(times, 1, "{id} was accepted");
        }
    }
}

#[tokio::test]
async fn a_signal_ends_the_process_in_order_and_in_time() {
    for name in ["TERM", "INT"] {
        let mut process = Process::start(&[("HERALD__SERVER__SHUTDOWN_TIMEOUT", "10m")]);
        let mut joined = Socket::connect(&process.server, V2).await;
        joined.join("public:test-app", json!({})).await;
        let mut idle = Socket::connect(&process.server, V1).await;
        let began = Instant::now();
        process.signal(name);
        for socket in [&mut joined, &mut idle] {
            assert_eq!(socket.closed().await, 1012, "{name}");
        }
        drop((joined, idle));
        assert_eq!(process.ended().code(), Some(0), "{name}");
        assert!(began.elapsed() < SOON, "{name}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_stuck_client_holds_a_signalled_process_no_longer_than_it_may() {
    let (mut process, _held) = held_up("3s").await;
    let began = Instant::now();
    process.signal("TERM");
    assert_eq!(process.ended().code(), Some(0));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let (mut process, _held) = held_up("10m").await;
    process.signal("TERM");
    process.until_logged("SIGTERM: shutting down");
    let began = Instant::now();
    process.signal("TERM");
    process.until_logged("SIGTERM again: closing the remaining sessions at once");
    assert_eq!(process.ended().code(), Some(0));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn half_a_body_holds_a_stop_no_longer_than_it_may_and_a_second_signal_not_at_all() {
    for (shutdown_timeout, signals, least) in
        [("2s", 1, Duration::from_secs(2)), ("10m", 2, Duration::ZERO)]
    {
        let env = [("HERALD__SERVER__SHUTDOWN_TIMEOUT", shutdown_timeout)];
        let mut process = Process::start(&env);
        let _half = half_a_trigger(&process.server).await;
        let began = Instant::now();
        for nth in 0..signals {
            if nth > 0 {
                until_deaf(&process.server).await;
            }
            process.signal("TERM");
        }
        assert_eq!(process.ended().code(), Some(0), "{shutdown_timeout}");
        let took = began.elapsed();
        assert!(least <= took && took < SOON, "{shutdown_timeout}: {took:?}");
    }
}

#[tokio::test]
async fn a_crash_amid_writes_leaves_the_database_whole_and_what_was_answered_in_it() {
    let mut process = Process::start(&[]);
    let mut answered = BTreeSet::from(["test-app".to_owned()]);
    for round in 0..3 {
        let url = process.server.url("/api/admin/apps");
        let writers = (0..4).map(|writer| {
            let url = url.clone();
            tokio::task::spawn_blocking(move || write_until_it_dies(&url, round, writer))
        });
        let writers: Vec<_> = writers.collect();
        // The crash comes while the writers are at work: it waits until they have created some apps.
        let swing = repeat_until(async || {
            let apps = process.server.admin("GET", "/api/admin/apps", None).await.json();
            apps["data"].as_array().is_some_and(|apps| apps.len() > answered.len() + 8)
        });
        timeout(DEADLINE, swing).await.expect("writers write");
        let dir = process.crash();
        let written = timeout(DEADLINE, join_all(writers)).await.expect("an end in time");
        answered.extend(written.into_iter().flat_map(|one| one.expect("a writer")));

        let database = format!("sqlite://{}/herald.db", dir.path().display());
        let connection = Database::connect(database).await.expect("a database");
        let check = Statement::from_string(DbBackend::Sqlite, "PRAGMA integrity_check");
        let verdict = connection.query_one_raw(check).await.expect("a check").expect("a verdict");
        assert_eq!(verdict.try_get_by_index::<String>(0).expect("text"), "ok");
        connection.close().await.expect("an end");

        process = Process::start_in(dir, &[]);
        let apps = process.server.admin("GET", "/api/admin/apps", None).await.json();
        let apps = apps["data"].as_array().expect("a list").iter();
        let slugs: BTreeSet<_> =
            apps.map(|app| app["slug"].as_str().expect("a slug").to_owned()).collect();
        let lost: Vec<_> = answered.difference(&slugs).collect();
        assert!(lost.is_empty(), "answered with 201, and gone: {lost:?}");
        answered = slugs;
        let mut socket = Socket::connect(&process.server, V2).await;
        socket.join("public:test-app", json!({})).await;
        process.server.trigger(&App::seeded(), json!({"topic": "t", "event": "e"})).await;
        assert_eq!(socket.next().await[3], "t:e");
    }
}

/// Creates apps until the server is gone; answers the slugs of those whose creation was answered with 201.
fn write_until_it_dies(url: &str, round: u32, writer: u32) -> Vec<String> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let credentials = format!("{}:{}", ADMIN.0, ADMIN.1);
    let credentials =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, credentials);
    let mut written = Vec::new();
    for n in 0.. {
        let slug = format!("app-{round}-{writer}-{n}");
        let request = agent.post(url).header("authorization", format!("Basic {credentials}"));
        let body = format!("app[name]={slug}");
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        match request.send(body) {
            Ok(answer) if answer.status() == 201 => written.push(slug),
            _ => break,
        }
    }
    written
}
