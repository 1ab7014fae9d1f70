//! Limits of size and number, at their value and one beyond it: a request that just fits is accepted, a larger one
//! gets a clear answer, and a client that keeps to the limit goes on.
//!
//! Limits of time are tested in `hostile_http` and `hostile_sockets`, beside the clients that exceed them.

use serde_json::{Value, json};

use crate::support::{server::ADMIN, tokens::token, *};

const EVENTS: &str = "/api/apps/test-app/events";

/// A heartbeat of exactly this number of bytes, and its reply.
fn heartbeat(bytes: usize) -> (String, &'static str) {
    let around = r#"[null,"1","phoenix","heartbeat",{"x":""}]"#;
    let filler = "x".repeat(bytes - around.len());
    let text = format!(r#"[null,"1","phoenix","heartbeat",{{"x":"{filler}"}}]"#);
    assert_eq!(text.len(), bytes);
    (text, r#"[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]"#)
}

/// A payload whose JSON has exactly this number of bytes.
fn payload(bytes: usize) -> Value {
    let payload = json!({"x": "x".repeat(bytes - r#"{"x":""}"#.len())});
    assert_eq!(payload.to_string().len(), bytes);
    payload
}

fn detail(text: &str) -> Value {
    json!({"errors": {"detail": text}})
}

async fn post(server: &TestServer, body: &Value) -> (u16, Value) {
    let app = App::seeded();
    let request = request("POST", server.url(EVENTS)).basic(&app.key, &app.secret);
    let answer = request.json(body).send().await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_message_of_the_limit_is_read_and_a_larger_one_closes_with_1009() {
    const MAX: usize = 1_048_576;
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let (text, reply) = heartbeat(MAX);
    socket.text(text).await;
    assert_eq!(socket.frame().await, reply);
    socket.text(heartbeat(MAX + 1).0).await;
    assert_eq!(socket.closed().await, 1009);
}

#[tokio::test]
async fn a_message_limit_of_ones_own_counts() {
    let server = TestServer::start_with(|settings| settings.limits.message_bytes_max = 1_000);
    let mut socket = Socket::connect(&server, V2).await;
    let (text, reply) = heartbeat(1_000);
    socket.text(text).await;
    assert_eq!(socket.frame().await, reply);
    socket.text(heartbeat(1_001).0).await;
    assert_eq!(socket.closed().await, 1009);
}

#[tokio::test]
async fn a_ref_of_the_limit_is_echoed_and_a_longer_one_closes_with_1011() {
    let server = TestServer::start();
    let (fits, too_long) = ("r".repeat(64), "r".repeat(65));
    let (digits, more_digits) = ("9".repeat(64), "9".repeat(65));
    let quoted = |text: &str| format!(r#""{text}""#);
    // Each emoji has four bytes, so sixteen of them fit.
    let (emoji, more_emoji) = ("\u{1f600}".repeat(16), "\u{1f600}".repeat(17));
    for (case, join_ref, reference, is_let_in) in [
        ("ref at the limit", "null".to_owned(), quoted(&fits), true),
        ("ref beyond", "null".to_owned(), quoted(&too_long), false),
        ("join_ref at the limit", quoted(&fits), quoted("1"), true),
        ("join_ref beyond", quoted(&too_long), quoted("1"), false),
        ("number at the limit", "null".to_owned(), digits, true),
        ("number beyond", "null".to_owned(), more_digits, false),
        ("bytes count, not characters: at", "null".to_owned(), quoted(&emoji), true),
        ("bytes count, not characters: beyond", "null".to_owned(), quoted(&more_emoji), false),
        ("nested", "null".to_owned(), r#"["1"]"#.to_owned(), false),
        ("an object", r#"{"a":1}"#.to_owned(), quoted("1"), false),
    ] {
        let mut socket = Socket::connect(&server, V2).await;
        socket.text(format!(r#"[{join_ref},{reference},"nowhere","phx_leave",{{}}]"#)).await;
        if is_let_in {
            let expected = format!(
                r#"[{join_ref},{reference},"nowhere","phx_reply",{{"status":"ok","response":{{}}}}]"#
            );
            assert_eq!(socket.frame().await, expected, "{case}");
        } else {
            assert_eq!(socket.closed().await, 1011, "{case}");
        }
    }
}

#[tokio::test]
async fn a_channel_beyond_the_limit_is_refused_until_another_is_left() {
    let server = TestServer::start_with(|settings| settings.limits.channels_per_transport_max = 2);
    let refused = json!({"status": "error", "response": {"reason": "too many channels joined"}});
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(&server, vsn).await;
        for channel in ["a", "b"] {
            socket.join(&format!("public:test-app:{channel}"), json!({})).await;
        }
        assert_eq!(socket.try_join("public:test-app:c", json!({})).await, refused, "{vsn}");
        assert_eq!(socket.try_join("public:test-app", json!({})).await, refused, "{vsn}");
        socket.push(json!(["1", "2", "public:test-app:a", "phx_leave", {}])).await;
        assert_eq!(socket.next().await[4]["status"], "ok", "{vsn}");
        assert_eq!(socket.next().await[3], "phx_close", "{vsn}");
        socket.join("public:test-app:c", json!({})).await;
        assert_eq!(socket.try_join("public:test-app:d", json!({})).await, refused, "{vsn}");
    }
}

#[tokio::test]
async fn a_join_anew_of_a_channel_that_is_held_is_no_further_one() {
    let server = TestServer::start_with(|settings| settings.limits.channels_per_transport_max = 1);
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    socket.push(json!(["2", "2", "public:test-app", "phx_join", {}])).await;
    let ok = json!({"status": "ok", "response": {}});
    let closed = json!(["1", "1", "public:test-app", "phx_close", {}]);
    let mut both = [socket.next().await, socket.next().await];
    both.sort_by_key(|frame| frame[3].to_string());
    assert_eq!(both, [closed, json!(["2", "2", "public:test-app", "phx_reply", ok])]);
}

#[tokio::test]
async fn a_scope_beyond_the_limit_is_refused_until_another_is_empty() {
    let server = TestServer::start_with(|settings| settings.limits.scopes_per_app_max = 2);
    let app = App::seeded();
    let other = server.create_app(json!({"name": "other-app"})).await;
    let any = json!({"listen": ["one:*", "two:*"]});
    let payload = json!({"guardian_token": token(&app, &any)});
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    socket.join("one:test-app:a", payload.clone()).await;
    socket.join("one:test-app:b", payload.clone()).await;
    let refused = json!({"status": "error", "response": {"reason": "too many scopes"}});
    assert_eq!(socket.try_join("two:test-app", payload.clone()).await, refused);
    let elsewhere = json!({"guardian_token": token(&other, &any)});
    socket.join("two:other-app", elsewhere).await;

    socket.push(json!(["1", "2", "public:test-app", "phx_leave", {}])).await;
    assert_eq!(socket.next().await[4]["status"], "ok");
    assert_eq!(socket.next().await[3], "phx_close");
    // The scope becomes free some time after the reply to the leave.
    let let_in =
        repeat_until(async || socket.try_join("two:test-app", payload.clone()).await != refused);
    tokio::time::timeout(DEADLINE, let_in).await.expect("a place in time");
    server.trigger(&app, json!({"topic": "t", "event": "e", "scope": "two"})).await;
    assert_eq!(socket.next().await[3], "t:e", "the scope that was refused before works");
}

#[tokio::test]
async fn a_token_of_the_limit_is_read_and_a_longer_one_is_not() {
    const MAX: usize = 8_192;
    let server = TestServer::start();
    let app = App::seeded();
    let of_bytes = |bytes: usize| {
        // Three bytes of claims become four bytes of token, so the filler is searched from just below its length.
        let mint = |filler: usize| {
            token(&app, &json!({"listen": ["*", "private:*"], "x": "x".repeat(filler)}))
        };
        let shortest = mint(0).len();
        let filler = (0..).skip((bytes - shortest) * 3 / 4 - 8).find(|n| mint(*n).len() >= bytes);
        mint(filler.expect("some filler"))
    };
    let (fits, too_long) = (of_bytes(MAX), of_bytes(MAX + 1));
    assert_eq!((fits.len(), too_long.len() > MAX), (MAX, true));
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("private:test-app", json!({"guardian_token": fits})).await;
    let reply = socket.try_join("private:test-app:t", json!({"guardian_token": too_long})).await;
    assert_eq!(reply["status"], "error", "{reply}");
    assert!(reply["response"]["error"].is_string(), "{reply}");
    let answer = |token: String| {
        let event = json!({"topic": "t", "event": "e"});
        request("POST", server.url(EVENTS)).bearer(&token).json(&event).send()
    };
    assert_eq!(answer(fits).await.status, 403, "read, but it permits no publishing");
    assert_eq!(answer(too_long).await.status, 401);
}

#[tokio::test]
async fn a_trigger_of_the_limit_arrives_and_a_larger_one_is_413() {
    const MAX: usize = 102_400;
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let event = |bytes| json!({"topic": "t", "event": "e", "payload": payload(bytes)});
    assert_eq!(post(&server, &event(MAX)).await, (200, json!({})));
    assert_eq!(socket.next().await[4], payload(MAX));
    let refused = detail("payload is larger than 102400 bytes");
    assert_eq!(post(&server, &event(MAX + 1)).await, (413, refused.clone()));
    let as_text = json!({"topic": "t", "event": "e", "payload": payload(MAX + 1).to_string()});
    assert_eq!(post(&server, &as_text).await, (413, refused));
    socket.assert_quiet().await;
}

#[tokio::test]
async fn a_client_event_of_the_limit_arrives_and_a_larger_one_is_refused() {
    const MAX: usize = 32_768;
    let server = TestServer::start();
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(&server, vsn).await;
        socket.join("public:test-app", json!({})).await;
        socket.push(json!(["1", "2", "public:test-app", "t:e", payload(MAX)])).await;
        let arrived = json!([null, null, "public:test-app", "t:e", payload(MAX)]);
        assert_eq!(socket.next().await, arrived, "{vsn}");
        socket.push(json!(["1", "3", "public:test-app", "t:e", payload(MAX + 1)])).await;
        let reply = socket.next().await;
        let refused = json!({"status": "error", "response": {"reason": "payload too large"}});
        assert_eq!((&reply[1], &reply[4]), (&json!("3"), &refused), "{vsn}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_body_of_the_limit_is_read_and_a_larger_one_is_413() {
    const MAX: usize = 1_048_576;
    let server = TestServer::start();
    let body = |bytes: usize| {
        let event = r#"{"topic":"t","event":"e"}"#;
        format!("{event}{}", " ".repeat(bytes - event.len()))
    };
    let send = |path: &str, body: String| {
        let app = App::seeded();
        let request = request("POST", server.url(path)).header("content-type", "application/json");
        let request = match path {
            EVENTS => request.basic(&app.key, &app.secret),
            _ => request.basic(ADMIN.0, ADMIN.1),
        };
        request.body(body).send()
    };
    for (path, fits) in [(EVENTS, 200), ("/api/admin/apps", 400)] {
        assert_eq!(send(path, body(MAX)).await.status, fits, "{path}");
        let answer = send(path, body(MAX + 1)).await;
        let refused = detail("request body is larger than 1048576 bytes");
        assert_eq!((answer.status, answer.json()), (413, refused), "{path}");
    }
}

#[tokio::test]
async fn a_session_beyond_the_limit_is_503_until_another_has_gone() {
    let server = TestServer::start_with(|settings| settings.limits.sessions_max = Some(2));
    let path = "/socket/websocket?vsn=2.0.0";
    let mut first = Socket::connect(&server, V2).await;
    let second = Socket::connect(&server, V2).await;
    for _ in 0..3 {
        let refused = Socket::refused(&server, path, &[]).await;
        assert_eq!(refused, (503, "no room for another session".to_owned()));
    }
    first.assert_quiet().await;
    for probe in ["/health", "/ready"] {
        assert_eq!(get(server.url(probe)).await.status, 200, "{probe}");
    }
    assert_eq!(server.admin("GET", "/api/admin/apps", None).await.status, 200);
    drop(second);
    // The server may not have noticed yet that the second session is gone.
    let let_in = repeat_until_some(async || Socket::open_with(&server, path, &[]).await.ok());
    let (mut socket, _) = tokio::time::timeout(DEADLINE, let_in).await.expect("a place in time");
    socket.assert_quiet().await;
}

#[tokio::test]
async fn after_ten_failed_logins_the_eleventh_waits_even_with_the_right_password() {
    let server = TestServer::start();
    let login = |password: &str| {
        request("GET", server.url("/api/admin/apps")).basic(ADMIN.0, password).send()
    };
    assert_eq!(login(ADMIN.1).await.status, 200);
    for nth in 1..=10 {
        assert_eq!(login("wrong").await.status, 401, "failure {nth}");
    }
    for password in ["wrong", ADMIN.1] {
        let answer = login(password).await;
        let expected = detail("too many attempts, try again later");
        assert_eq!((answer.status, answer.json()), (429, expected), "{password}");
        let wait = answer.header("retry-after").and_then(|wait| wait.parse::<u64>().ok());
        assert!(wait.is_some_and(|seconds| (1..=60).contains(&seconds)), "{wait:?}");
    }
    // Only the admin API is throttled.
    assert_eq!(post(&server, &json!({"topic": "t", "event": "e"})).await.0, 200);
    assert_eq!(get(server.url("/ready")).await.status, 200);
}

#[tokio::test]
async fn a_bulk_of_the_limit_is_taken_and_a_larger_one_is_refused_whole() {
    let server = TestServer::start();
    let app = App::seeded();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let send = |count: usize| {
        let event =
            |n: usize| json!({"topic": "public:test-app:t", "event": "e", "payload": {"n": n}});
        let events: Vec<_> = (0..count).map(event).collect();
        let request = request("POST", server.url("/api/publish/bulk"));
        request.header("authorization", &app.secret).json(&json!({"events": events})).send()
    };
    let answer = send(101).await;
    let expected = json!({"errors": {"events": ["must be at most 100"]}});
    assert_eq!((answer.status, answer.json()), (422, expected));
    socket.assert_quiet().await;
    assert_eq!(send(100).await.status, 200);
    for n in 0..100 {
        assert_eq!(socket.next().await[4], json!({"n": n}));
    }
    socket.assert_quiet().await;
}
