//! A request that its head decides is answered before its body is read, or asked for.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    raw,
    server::ADMIN,
    tokens::{now_s, signed, token},
    *,
};

const EVENTS: &str = "/api/apps/test-app/events";
const EVENT: &str = r#"{"topic":"t","event":"e","payload":{}}"#;
const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

fn basic(user: &str, password: &str) -> String {
    let line = request("GET", "").basic(user, password);
    format!("authorization: {}\r\n", line.header_value("authorization").expect("a header"))
}

/// Requests that are decided by their head: the case, the head without the length of the body, and the status.
fn decided_by_the_head(session: &str) -> Vec<(&'static str, String, u16)> {
    let app = App::seeded();
    let (right, wrong) = (basic(&app.key, &app.secret), basic(&app.key, "wrong"));
    let alone = format!("authorization: {}\r\n", app.secret);
    let bearer = |token: String| format!("authorization: Bearer {token}\r\n");
    let strangers = bearer(signed("a stranger's own secret", &json!({"publish": ["public:*"]})));
    let late = bearer(token(&app, &json!({"publish": ["public:*"], "exp": now_s() - 1_000})));
    let json = "content-type: application/json\r\n";
    let post = |path: &str, fields: &[&str]| {
        format!("POST {path} HTTP/1.1\r\nhost: h\r\n{}", fields.concat())
    };
    let long_poll = format!("/socket/longpoll?vsn=2.0.0&token={session}");
    let admin = basic(ADMIN.0, ADMIN.1);
    vec![
        ("no credentials", post(EVENTS, &[json]), 401),
        ("a wrong secret", post(EVENTS, &[json, &wrong]), 401),
        ("an unknown app", post("/api/apps/x/events", &[json, &right]), 401),
        ("no credentials to publish", post("/api/publish", &[json]), 401),
        ("the secret of no app", post("/api/publish", &[json, "authorization: secret\r\n"]), 401),
        ("key and secret where the secret is wanted", post("/api/publish", &[json, &right]), 401),
        ("no app's token", post("/api/publish", &[json, &strangers]), 401),
        ("a token of the past", post("/api/publish", &[json, &late]), 401),
        ("no token", post("/api/publish", &[json, "authorization: Bearer a.b.c\r\n"]), 401),
        ("the secret of no app, many", post("/api/publish/bulk", &["authorization: x\r\n"]), 401),
        ("no app's token, many", post("/api/publish/bulk", &[json, &strangers]), 401),
        ("a wrong secret to disconnect", post("/api/apps/test-app/disconnect", &[&wrong]), 401),
        ("no operator", post("/api/admin/apps", &[json, &wrong]), 401),
        ("text", post(EVENTS, &["content-type: text/plain\r\n", &right]), 415),
        ("text to publish", post("/api/publish", &["content-type: text/plain\r\n", &alone]), 415),
        ("gzip", post(EVENTS, &[json, "content-encoding: gzip\r\n", &right]), 415),
        ("too large", post(EVENTS, &[json, &right]), 413),
        ("too large to publish", post("/api/publish", &[json, &alone]), 413),
        ("too large for the operator", post("/api/admin/apps", &[json, &admin]), 413),
        ("too large a batch", post(&long_poll, &["content-type: application/x-ndjson\r\n"]), 400),
        ("no session", post("/socket/longpoll?vsn=2.0.0", &[]), 200),
        ("another site", post(EVENTS, &[json, &right, "sec-fetch-site: cross-site\r\n"]), 403),
        ("another method", format!("PUT {EVENTS} HTTP/1.1\r\nhost: h\r\n{right}"), 405),
        ("no such resource", post("/api/x", &[json, &right]), 404),
        ("nothing there", post("/x", &[json]), 404),
    ]
}

/// The length of the body that is announced: more than any body may have, if it is to be refused for that.
fn length_of(status: u16) -> usize {
    if matches!(status, 413 | 400) { 10_000_000 } else { 1_000 }
}

#[tokio::test]
async fn a_request_that_its_head_decides_is_answered_without_100() {
    let server = TestServer::start();
    let session = Poller::connect(&server, V2).await;
    for (case, head, status) in decided_by_the_head(&session.token) {
        let length = format!("content-length: {}\r\n", length_of(status));
        let expect = "expect: 100-continue\r\n\r\n";
        let got = raw::exchange(&server, format!("{head}{length}{expect}").as_bytes()).await;
        assert_eq!(got.statuses(), [status], "{case}: {}", got.text());
        assert!(got.text().to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{case}");
        assert!(got.is_closed, "{case}: the next request cannot be told from the body");
        if length_of(status) > 1_000 {
            // The head of a body in chunks does not say how large it is.
            continue;
        }
        let mut stream = raw::connect(&server).await;
        let chunked = format!("{head}transfer-encoding: chunked\r\n{expect}");
        stream.write_all(chunked.as_bytes()).await.expect("it is read");
        assert_eq!(raw::answer(&mut stream).await.0, status, "{case}, in chunks");
    }
}

#[tokio::test]
async fn a_request_that_its_head_decides_is_answered_before_the_rest_of_its_body_arrives() {
    let server = TestServer::start();
    let session = Poller::connect(&server, V2).await;
    for (case, head, status) in decided_by_the_head(&session.token) {
        let length = length_of(status);
        let half = "x".repeat(length.min(1_000) / 2);
        let mut stream = raw::connect(&server).await;
        let begun = format!("{head}content-length: {length}\r\n\r\n{half}");
        stream.write_all(begun.as_bytes()).await.expect("it is read");
        assert_eq!(raw::answer(&mut stream).await.0, status, "{case}");
    }
}

/// The next bytes must be this text.
async fn heard(stream: &mut TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    timeout(DEADLINE, stream.read_exact(&mut bytes)).await.expect("in time").expect("an answer");
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

#[tokio::test]
async fn a_body_that_is_wanted_is_asked_for_and_its_connection_kept() {
    let server = TestServer::start();
    let app = App::seeded();
    let (right, admin) = (basic(&app.key, &app.secret), basic(ADMIN.0, ADMIN.1));
    let alone = format!("authorization: {}\r\n", app.secret);
    let event = r#"{"topic":"public:test-app","event":"t:e"}"#;
    let bulk = format!(r#"{{"events":[{event}]}}"#);
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let session = Poller::connect(&server, V2).await;
    let long_poll = format!("/socket/longpoll?vsn=2.0.0&token={}", session.token);
    let mut stream = raw::connect(&server).await;
    for (path, credentials, body, status) in [
        (EVENTS, &right, EVENT, 200),
        ("/api/publish", &alone, event, 200),
        ("/api/publish/bulk", &alone, &bulk, 200),
        ("/api/admin/apps", &admin, r#"{"app":{"name":"foo"}}"#, 422),
        (&long_poll, &String::new(), r#"[null,"1","phoenix","heartbeat",{}]"#, 200),
    ] {
        let length = body.len();
        let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
        for (framing, framed) in [
            (format!("content-length: {length}"), body),
            ("transfer-encoding: chunked".to_owned(), chunked.as_str()),
        ] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: h\r\n{credentials}content-type: application/json\r\n\
                 expect: 100-continue\r\n{framing}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.expect("it is read");
            heard(&mut stream, CONTINUE).await;
            stream.write_all(framed.as_bytes()).await.expect("it is read");
            assert_eq!(raw::answer(&mut stream).await.0, status, "{path} {framing}");
        }
    }
    for _ in 0..6 {
        assert_eq!(socket.frame().await, r#"[null,null,"public:test-app","t:e",{}]"#);
    }
}

#[tokio::test]
async fn a_body_that_comes_unasked_is_read_once() {
    let server = TestServer::start();
    let app = App::seeded();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let mut stream = raw::connect(&server).await;
    let whole = format!(
        "POST {EVENTS} HTTP/1.1\r\nhost: h\r\n{}content-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: {}\r\n\r\n{EVENT}",
        basic(&app.key, &app.secret),
        EVENT.len(),
    );
    stream.write_all(whole.as_bytes()).await.expect("it is read");
    let (status, body) = raw::answer(&mut stream).await;
    // A server may ask for a body that it does not know to be on its way.
    let answer = if status == 100 { raw::answer(&mut stream).await } else { (status, body) };
    assert_eq!(answer, (200, "{}".to_owned()));
    assert_eq!(socket.frame().await, r#"[null,null,"public:test-app","t:e",{}]"#);
    socket.assert_quiet().await;
}

/// Sends a trigger with half of its body; the other half can be sent later.
async fn half_a_trigger(server: &TestServer, body: &str) -> TcpStream {
    let app = App::seeded();
    let (half, _) = body.split_at(body.len() / 2);
    let head = format!(
        "POST {EVENTS} HTTP/1.1\r\nhost: h\r\n{}content-type: application/json\r\n\
         content-length: {}\r\n\r\n{half}",
        basic(&app.key, &app.secret),
        body.len(),
    );
    let mut stream = raw::connect(server).await;
    stream.write_all(head.as_bytes()).await.expect("it is read");
    stream
}

fn padded(bytes: usize) -> String {
    format!("{EVENT}{}", " ".repeat(bytes - EVENT.len()))
}

/// Triggers as the web application until the answer has this status.
async fn triggers_until(server: &TestServer, bytes: usize, status: u16) -> http::Answer {
    let app = App::seeded();
    let authorization = format!("Basic {}", STANDARD.encode(format!("{}:{}", app.key, app.secret)));
    answered(server, &authorization, padded(bytes), status).await
}

/// Triggers as a visitor until the answer has this status. Visitors may fill half of the budget. The event takes so
/// little of it that no other request is refused because of it.
async fn visits_until(server: &TestServer, status: u16) {
    let visitor = token(&App::seeded(), &json!({"publish": ["public:*"]}));
    answered(server, &format!("Bearer {visitor}"), EVENT.to_owned(), status).await;
}

async fn answered(server: &TestServer, by: &str, body: String, status: u16) -> http::Answer {
    let trying = repeat_until_some(async || {
        let call = request("POST", server.url(EVENTS)).header("authorization", by);
        let call = call.header("content-type", "application/json").body(body.clone());
        Some(call.send().await).filter(|answer| answer.status == status)
    });
    timeout(3 * DEADLINE, trying).await.expect("that answer in time")
}

/// A server with a budget of 40,000 bytes, of which visitors may fill 20,000.
fn frugal() -> TestServer {
    TestServer::start_with(|settings| {
        settings.limits.request_body_bytes_max = 20_100;
        settings.limits.bodies_bytes_max = 40_000;
    })
}

/// Sends halves of bodies that leave one byte too little for a visitor's event. The event is refused once their
/// last byte has arrived, and not before.
async fn all_but_room_for_a_visitor(server: &TestServer) -> Vec<(TcpStream, String)> {
    let mut held = Vec::new();
    for half in [8_000, 8_000, 4_001 - EVENT.len()] {
        let body = padded(2 * half);
        held.push((half_a_trigger(server, &body).await, body));
    }
    visits_until(server, 503).await;
    held
}

#[tokio::test]
async fn bodies_under_way_share_a_budget_and_those_of_visitors_half_of_it() {
    let server = frugal();
    let app = App::seeded();
    let mut held = all_but_room_for_a_visitor(&server).await;
    let unavailable = json!({"errors": {"detail": "service unavailable, try again later"}});
    let refused = triggers_until(&server, 20_100, 503).await;
    assert_eq!((refused.json(), refused.header("retry-after")), (unavailable.clone(), Some("1")));
    assert_eq!(triggers_until(&server, 14_000, 200).await.body, "{}");

    let visitor = token(&app, &json!({"publish": ["public:*"]}));
    let call = request("POST", server.url(EVENTS)).bearer(&visitor);
    let answer = call.json(&serde_json::from_str(EVENT).expect("JSON")).send().await;
    assert_eq!((answer.status, answer.json()), (503, unavailable), "a visitor's");
    let mut poller = Poller::connect(&server, V2).await;
    // This is not shorter than the event that found no room.
    let heartbeat = br#"[null,"12345678","phoenix","heartbeat",{}]"#;
    let refused = poller.post_raw(Some("application/json"), heartbeat).await;
    assert_eq!(refused, (503, r#"{"status":503}"#.to_owned()), "over long-poll");
    let login = json!({"user": ADMIN.0, "password": ADMIN.1}).to_string();
    let login = format!("{login}{}", " ".repeat(EVENT.len()));
    let call = request("POST", server.url("/console/login"));
    let call = call.header("content-type", "application/json").body(login);
    assert_eq!(call.send().await.status, 503, "a login");
    let hits = figures::Figures::of(&server).await.hits("bodies_bytes_max");
    assert!(hits >= 4.0, "{hits}");

    // The requests that waited go on and are accepted; then there is room again for everybody.
    for (stream, body) in &mut held {
        stream.write_all(&body.as_bytes()[body.len() / 2..]).await.expect("it is read");
        assert_eq!(raw::answer(stream).await, (200, "{}".to_owned()));
    }
    triggers_until(&server, 20_100, 200).await;
    let mut poller = poller.again(&server).await;
    assert_eq!(poller.post_raw(Some("application/json"), heartbeat).await.0, 200);
}

#[tokio::test]
async fn visitors_that_announce_bodies_and_send_none_shut_out_no_visitor_and_no_operator() {
    const ROOM: usize = 512;
    let server = TestServer::start();
    let mut poller = Poller::connect(&server, V2).await;
    let head = format!(
        "POST /socket/longpoll?vsn=2.0.0&token={} HTTP/1.1\r\nhost: h\r\n\
         content-type: application/json\r\ncontent-length: 1000000\r\n\r\n",
        poller.token
    );
    let mut stalled = Vec::new();
    for _ in 0..ROOM + 8 {
        let mut stream = raw::connect(&server).await;
        stream.write_all(head.as_bytes()).await.expect("it is read");
        stalled.push(stream);
    }
    let all_arrived =
        repeat_until(async || figures::Figures::of(&server).await.hits("bodies_bytes_max") >= 8.0);
    timeout(DEADLINE, all_arrived).await.expect("those without room are refused");

    let heartbeat = br#"[null,"1","phoenix","heartbeat",{}]"#;
    for _ in 0..8 {
        let answer = poller.post_raw(Some("application/json"), heartbeat).await;
        assert_eq!(answer, (200, r#"{"status":200}"#.to_owned()));
    }
    let login = json!({"user": ADMIN.0, "password": ADMIN.1});
    let login = request("POST", server.url("/console/login")).json(&login).send().await;
    assert_eq!(login.status, 200, "{}", login.body);
    // Those that made room are told so.
    let answers = stalled.iter_mut().map(|stream| Box::pin(raw::answer(stream)));
    let (first, ..) = futures_util::future::select_all(answers).await;
    assert_eq!(first, (503, r#"{"status":503}"#.to_owned()));
}

#[tokio::test]
async fn a_body_that_breaks_off_gives_its_part_of_the_budget_back() {
    let server = frugal();
    let held = all_but_room_for_a_visitor(&server).await;
    triggers_until(&server, 20_100, 503).await;
    drop(held);
    visits_until(&server, 200).await;
    triggers_until(&server, 20_100, 200).await;
}

#[tokio::test]
async fn publishing_is_judged_by_the_head_as_far_as_that_goes_and_then_by_the_app() {
    let server = TestServer::start();
    let (first, second) = (App::seeded(), server.create_app(json!({"name": "second-app"})).await);
    let shut = server.create_app(json!({"name": "shut-app"})).await;
    server.update_app(&shut.slug, json!({"active": false})).await;
    let to = |app: &App| json!({"topic": format!("public:{}", app.slug), "event": "e"});
    let publish = async |authorization: &str, body: &Value| {
        let call = request("POST", server.url("/api/publish"));
        call.header("authorization", authorization).json(body).send().await.status
    };
    let broken = json!([]);
    for (case, authorization, body, status) in [
        ("its own", first.secret.clone(), to(&first), 200),
        ("its own", second.secret.clone(), to(&second), 200),
        ("another app's", first.secret.clone(), to(&second), 401),
        ("an inactive app's", shut.secret.clone(), to(&shut), 401),
        ("an inactive app's, before the body is read", shut.secret.clone(), broken.clone(), 401),
        ("an app's, after the body is read", second.secret.clone(), broken.clone(), 400),
        ("an app's, longer", format!("{}x", second.secret), broken.clone(), 401),
        ("none", "x".to_owned(), broken.clone(), 401),
        ("an app's key", second.key.clone(), broken.clone(), 401),
    ] {
        assert_eq!(publish(&authorization, &body).await, status, "{case}");
    }
    for (case, key, claims, body, status) in [
        ("its own", &second.secret, json!({"publish": ["public:*"]}), to(&second), 200),
        (
            "the application's",
            &second.secret,
            json!({"aud": "trigger", "publish": ["public:*"]}),
            to(&second),
            200,
        ),
        ("another app's", &first.secret, json!({"publish": ["public:*"]}), to(&second), 401),
        ("an inactive app's", &shut.secret, json!({"publish": ["public:*"]}), broken.clone(), 401),
        ("an app's", &second.secret, json!({"publish": ["public:*"]}), broken.clone(), 400),
        ("nobody's", &"nobody's secret".to_owned(), json!({"publish": ["public:*"]}), broken, 401),
    ] {
        let authorization = format!("Bearer {}", signed(key, &claims));
        assert_eq!(publish(&authorization, &body).await, status, "a token: {case}");
    }
    let new = server.update_app("second-app", json!({"secret": ""})).await;
    assert_eq!(publish(&second.secret, &json!([])).await, 401, "a withdrawn secret is no app's");
    assert_eq!(publish(&new.secret, &to(&new)).await, 200);
}

/// Of two connections that wait, the one whose last request was not authenticated ends first.
#[tokio::test]
async fn a_connection_whose_request_was_authenticated_by_its_head_does_not_give_way_to_strangers() {
    let server = TestServer::start_with(|settings| {
        settings.server.workers = 1;
        settings.limits.http_waiting_max = 2;
    });
    let app = server.create_app(json!({ "name": "foo-app" })).await;
    let (right, alone) =
        (basic(&app.key, &app.secret), format!("authorization: {}\r\n", app.secret));
    let event = json!({ "topic": "public:foo-app", "event": "msg" });
    let own_event = json!({ "topic": "room", "event": "msg" });
    let signed_event = pusher::event(&["room"], "x");
    let path = "/apps/foo-app/events";
    let signed = pusher::Call::of(&server, app.clone(), "POST", path.to_owned());
    let signed = signed.json(&signed_event).query().join("&");
    let head = |text: &str| text.to_owned();
    for (first, credentials, body) in [
        (head("POST /api/apps/foo-app/events"), &right, own_event),
        (head("POST /api/publish"), &alone, event.clone()),
        (head("POST /api/publish/bulk"), &alone, json!({ "events": [event] })),
        (format!("POST {path}?{signed}"), &String::new(), signed_event),
        (head("POST /api/apps/foo-app/disconnect"), &right, json!({ "sub": "ada" })),
        (head("PATCH /api/apps/foo-app"), &right, json!({ "app": { "client_events": "all" } })),
        (head("POST /api/apps/foo-app/rotate"), &right, json!({})),
    ] {
        let body = body.to_string();
        let call = format!(
            "{first} HTTP/1.1\r\nhost: h\r\n{credentials}content-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let health = "GET /health HTTP/1.1\r\nhost: h\r\n\r\n";
        let ask = async |stream: &mut TcpStream, request: &str| {
            stream.write_all(request.as_bytes()).await.expect("it is read");
            raw::answer(stream).await.0
        };
        let mut own = raw::connect(&server).await;
        assert_eq!(ask(&mut own, &call).await, 200, "{first}");
        let mut strangers = Vec::new();
        for _ in 0..2 {
            let mut stranger = raw::connect(&server).await;
            assert_eq!(ask(&mut stranger, health).await, 200, "{first}");
            strangers.push(stranger);
        }
        assert_eq!(raw::hung_up(&mut strangers[0]).await, b"", "{first}");
        assert_eq!(ask(&mut own, health).await, 200, "{first}");
    }
}
