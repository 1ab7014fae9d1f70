//! Changes of an app with running sessions: they act at once, on all of them, wherever they were made. The
//! module `apps` tests the admin API itself.

use std::time::{Duration, Instant};

use crate::support::{
    pusher::{self, Call},
    tokens::{signed, token},
    *,
};
use herald::app::{Slug, audit::ChangedBy, change, fields::AppFields};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const OPERATORS: &str = "the operator's own key, 32 bytes and more";
const PRIVATE: &str = "private:foo-app";
const PUBLIC: &str = "public:foo-app";

async fn foo_app(server: &TestServer) -> App {
    server.create_app(json!({ "name": "foo-app", "client_events": "all" })).await
}

fn claims() -> Value {
    json!({ "listen": ["private:*"], "publish": ["private:*", "public:*"] })
}

fn ticket(app: &App) -> Value {
    json!({ "guardian_token": token(app, &claims()) })
}

fn ended(topic: &str) -> Value {
    json!([null, null, topic, "phx_error", { "reason": "channel_crash" }])
}

/// The next frame must be the end of a join, as this version encodes it: its refs are those of the join.
async fn hears_the_end(socket: &mut Socket, vsn: &str, topic: &str, case: &str) {
    let mut expected = ended(topic);
    expected[1] = json!("1");
    expected[0] = if vsn == V2 { json!("1") } else { Value::Null };
    assert_eq!(socket.next().await, expected, "{case}");
}

#[tokio::test]
async fn a_session_of_several_apps_loses_what_is_forbidden_and_keeps_the_rest() {
    for (case, change, keeps_public) in [
        ("deactivated", json!({ "active": false }), false),
        ("renamed", json!({ "name": "new-app" }), false),
        ("new secret", json!({ "secret": "a-new-secret-of-length" }), true),
        ("another site's", json!({ "allowed_origins": ["https://other.example"] }), false),
    ] {
        let server = TestServer::start();
        let app = foo_app(&server).await;
        let mut sockets = Vec::new();
        for vsn in [V1, V2] {
            let path = format!("/socket/websocket?vsn={vsn}");
            let origin = [("origin", "https://own.example")];
            let (mut socket, _) = Socket::open_with(&server, &path, &origin).await.expect("let in");
            socket.join("public:test-app", json!({})).await;
            socket.join(PRIVATE, ticket(&app)).await;
            socket.join(PUBLIC, json!({})).await;
            sockets.push((vsn, socket));
        }
        server.update_app("foo-app", change).await;
        for (vsn, socket) in &mut sockets {
            let case = format!("{case}, {vsn}");
            hears_the_end(socket, vsn, PRIVATE, &case).await;
            if !keeps_public {
                hears_the_end(socket, vsn, PUBLIC, &case).await;
            }
            socket.assert_quiet().await;
            let refused = socket.try_join(PRIVATE, ticket(&app)).await;
            assert_eq!(refused["status"], "error", "{case}");
            socket.push(json!([null, "5", PRIVATE, "msg", {}])).await;
            let unmatched =
                json!({ "status": "error", "response": { "reason": "unmatched topic" } });
            assert_eq!(socket.next().await[4], unmatched, "{case}");
        }
        let event = json!({ "topic": "t", "event": "e" });
        server.trigger(&App::seeded(), event).await;
        for (vsn, socket) in &mut sockets {
            let goes_on = json!([null, null, "public:test-app", "t:e", {}]);
            assert_eq!(socket.next().await, goes_on, "{case}, {vsn}");
        }
    }
}

#[tokio::test]
async fn a_session_of_this_app_alone_is_closed_to_come_back_and_be_judged_anew() {
    for vsn in [V1, V2] {
        let server = TestServer::start();
        let app = foo_app(&server).await;
        let mut idle = Socket::connect(&server, vsn).await;
        let mut socket = Socket::connect(&server, vsn).await;
        socket.join(PRIVATE, ticket(&app)).await;
        socket.join(PUBLIC, json!({})).await;
        let changed = server.update_app("foo-app", json!({ "secret": "" })).await;
        assert_eq!(socket.rest().await, (vec![], 1001), "{vsn}");
        let mut again = Socket::connect(&server, vsn).await;
        again.join(PRIVATE, ticket(&changed)).await;
        idle.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_new_secret_takes_the_old_claims_also_from_a_join_that_stays() {
    let server = TestServer::start();
    let app = server.create_app(json!({ "name": "foo-app" })).await;
    let path = format!("/socket/websocket?vsn=2.0.0&guardian_token={}", token(&app, &claims()));
    let mut socket = Socket::open(&server, &path).await;
    socket.join(PUBLIC, json!({})).await;
    let push = json!(["1", "5", PUBLIC, "msg", {}]);
    socket.push(push.clone()).await;
    assert_eq!(socket.next().await, json!([null, null, PUBLIC, "msg", {}]));
    server.update_app("foo-app", json!({ "secret": "" })).await;
    socket.push(push).await;
    let denied = json!(["1", "5", PUBLIC, "phx_reply", { "status": "error", "response": {} }]);
    assert_eq!(socket.next().await, denied);
    let bad = json!({ "status": "error", "response": { "error": "invalid_token" } });
    assert_eq!(socket.try_join("private:foo-app", json!({})).await, bad);
}

#[tokio::test]
async fn switching_off_shared_tokens_ends_the_joins_that_the_operators_key_opened() {
    let server = TestServer::start_with(|settings| {
        settings.secrets.guardian_secret = Some(OPERATORS.into());
    });
    let app = server.create_app(json!({ "name": "foo-app", "shared_tokens": true })).await;
    let shared = json!({ "guardian_token": signed(OPERATORS, &claims()) });
    let (mut by_operator, mut by_app) =
        (Socket::connect(&server, V2).await, Socket::connect(&server, V1).await);
    by_operator.join(PRIVATE, shared.clone()).await;
    by_app.join(PRIVATE, ticket(&app)).await;
    server.update_app("foo-app", json!({ "shared_tokens": false })).await;
    assert_eq!(by_operator.closed().await, 1001);
    by_app.assert_quiet().await;
    let mut again = Socket::connect(&server, V2).await;
    let bad = json!({ "status": "error", "response": { "error": "invalid_token" } });
    assert_eq!(again.try_join(PRIVATE, shared.clone()).await, bad);
    server.update_app("foo-app", json!({ "shared_tokens": true })).await;
    again.join(PRIVATE, shared).await;
}

#[tokio::test]
async fn client_events_switched_act_on_the_very_next_push() {
    let server = TestServer::start();
    foo_app(&server).await;
    let mut sockets = Vec::new();
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(&server, vsn).await;
        socket.join(PUBLIC, json!({})).await;
        sockets.push(socket);
    }
    for client_events in ["none", "all", "authorized", "all"] {
        server.update_app("foo-app", json!({ "client_events": client_events })).await;
        for pusher in 0..sockets.len() {
            sockets[pusher].push(json!([null, "5", PUBLIC, "msg", { "by": pusher }])).await;
            if client_events != "all" {
                let reply = sockets[pusher].next().await;
                let denied = json!({ "status": "error", "response": {} });
                assert_eq!(reply[4], denied, "{client_events}");
                continue;
            }
            for socket in &mut sockets {
                let expected = json!([null, null, PUBLIC, "msg", { "by": pusher }]);
                assert_eq!(socket.next().await, expected);
            }
        }
    }
    for socket in &mut sockets {
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_deleted_app_leaves_nothing_to_one_that_takes_its_name() {
    let server = TestServer::start();
    let old = foo_app(&server).await;
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    socket.join(PRIVATE, ticket(&old)).await;
    assert_eq!(server.admin("DELETE", "/api/admin/apps/foo-app", None).await.status, 204);
    let new = foo_app(&server).await;
    hears_the_end(&mut socket, V2, PRIVATE, "deleted").await;
    let mut own = Socket::connect(&server, V2).await;
    own.join(PRIVATE, ticket(&new)).await;
    server.trigger(&new, json!({ "topic": "t", "event": "e", "scope": "private" })).await;
    assert_eq!(own.next().await, json!([null, null, PRIVATE, "t:e", {}]));
    socket.assert_quiet().await;
    let bad = json!({ "status": "error", "response": { "error": "invalid_token" } });
    assert_eq!(socket.try_join(PRIVATE, ticket(&old)).await, bad);
}

/// Changes an app as the command line does: over a connection of its own, without the server's registry.
async fn change_behind_its_back(server: &TestServer, fields: Value) {
    let store = server.store().await;
    let slug = Slug::parse("foo-app").expect("a slug");
    let fields = AppFields::read(fields.as_object().expect("fields"));
    change::update(&store, &ChangedBy::CLI, &slug, fields).await.expect("a change");
    store.close().await;
}

#[tokio::test]
async fn a_change_made_elsewhere_acts_within_the_refresh() {
    let refresh = Duration::from_millis(50);
    let server = TestServer::start_with(|settings| settings.registry.refresh = refresh);
    let app = foo_app(&server).await;
    let (mut alone, mut shared) =
        (Socket::connect(&server, V2).await, Socket::connect(&server, V1).await);
    alone.join(PUBLIC, json!({})).await;
    shared.join("public:test-app", json!({})).await;
    shared.join(PRIVATE, ticket(&app)).await;
    change_behind_its_back(&server, json!({ "active": false })).await;
    let since = Instant::now();
    assert_eq!(alone.closed().await, 1001);
    hears_the_end(&mut shared, V1, PRIVATE, "deactivated elsewhere").await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    let unmatched = json!({ "status": "error", "response": { "reason": "unmatched topic" } });
    assert_eq!(shared.try_join(PUBLIC, json!({})).await, unmatched);
    let url = server.url("/api/apps/foo-app/events");
    let event = json!({ "topic": "t", "event": "e" });
    let call = request("POST", url).basic(&app.key, &app.secret).json(&event);
    assert_eq!(call.send().await.status, 401);
}

#[tokio::test]
async fn a_trigger_whose_body_was_on_its_way_is_judged_by_the_app_as_it_is_then() {
    let server = TestServer::start();
    let app = foo_app(&server).await;
    let mut listener = Socket::connect(&server, V2).await;
    listener.join("public:test-app", json!({})).await;
    let basic = request("POST", "").basic(&app.key, &app.secret);
    let credentials = basic.header_value("authorization").expect("credentials");
    let head =
        format!("POST /api/apps/foo-app/events HTTP/1.1\r\nauthorization: {credentials}\r\n");
    let body = r#"{"topic":"t","event":"e"}"#;
    let change = json!({ "secret": "" });
    let answer = answer_after_a_change(&server, &head, body, change).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    listener.assert_quiet().await;
}

/// Sends a `POST` whose body is on its way while the app changes, and returns the answer. `head` has the first line, and
/// the headers that are not the same for each call.
async fn answer_after_a_change(
    server: &TestServer,
    head: &str,
    body: &str,
    change: Value,
) -> String {
    let head = format!(
        "{head}host: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\nconnection: close\r\n\r\n",
        body.len(),
    );
    let mut slow = TcpStream::connect(("127.0.0.1", server.port)).await.expect("a connection");
    slow.write_all(head.as_bytes()).await.expect("sent");
    // The server asks for the body once it has accepted the caller.
    assert_eq!(raw::answer(&mut slow).await.0, 100);
    slow.write_all(&body.as_bytes()[..5]).await.expect("sent");
    server.update_app("foo-app", change).await;
    slow.write_all(&body.as_bytes()[5..]).await.expect("sent");
    let mut answer = String::new();
    let read = tokio::io::AsyncReadExt::read_to_string(&mut slow, &mut answer);
    tokio::time::timeout(DEADLINE, read).await.expect("in time").expect("an answer");
    answer
}

#[tokio::test]
async fn a_signed_call_whose_body_was_on_its_way_is_judged_by_the_app_as_it_is_then() {
    let server = TestServer::start();
    let app = foo_app(&server).await;
    let body = pusher::event(&["room"], "x");
    for (change, back, status) in [
        (json!({ "pusher": false }), json!({ "pusher": true }), 403),
        (json!({ "active": false }), json!({ "active": true }), 403),
        (json!({ "secret": "" }), json!({}), 401),
    ] {
        let path = "/apps/foo-app/events";
        let call = Call::of(&server, app.clone(), "POST", path.to_owned()).json(&body);
        let head = format!("POST {path}?{} HTTP/1.1\r\n", call.query().join("&"));
        let answer = answer_after_a_change(&server, &head, &body.to_string(), change.clone()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{change}: {answer}");
        server.update_app("foo-app", back).await;
    }
}

#[tokio::test]
async fn a_join_that_crosses_a_deactivation_never_survives_it() {
    const CLIENTS: usize = 48;
    const ROUNDS: usize = 5;
    let server = TestServer::start_with(|settings| settings.server.workers = 3);
    let app = foo_app(&server).await;
    let mut pacer = Socket::connect(&server, V2).await;
    // Checking a large token takes a while, during which the change may happen.
    let patterns: Vec<_> = (0..240).map(|n| format!("private:foo-app:{n}")).collect();
    let listen = [patterns, vec![PRIVATE.to_owned()]].concat();
    let slow = json!({ "guardian_token": token(&app, &json!({ "listen": listen })) });
    for round in 0..ROUNDS {
        let mut sockets = Vec::new();
        for nth in 0..CLIENTS {
            let vsn = if nth % 2 == 0 { V1 } else { V2 };
            let mut socket = Socket::connect(&server, vsn).await;
            // Another app's topic keeps the session open, so that a join that survives would be noticed.
            socket.join("public:test-app", json!({})).await;
            sockets.push(socket);
        }
        let joins = async {
            for socket in &mut sockets {
                socket.push(json!(["1", "1", PRIVATE, "phx_join", slow])).await;
                // There is a round trip between two joins, so that some come before the change and some after it.
                pacer.assert_quiet().await;
            }
        };
        let deactivation = server.update_app("foo-app", json!({ "active": false }));
        tokio::join!(joins, deactivation);
        for (nth, socket) in sockets.iter_mut().enumerate() {
            let reply = socket.next().await;
            assert_eq!((&reply[1], &reply[3]), (&json!("1"), &json!("phx_reply")), "{reply}");
            if reply[4]["status"] == "ok" {
                let end = socket.next().await;
                assert_eq!(end[3], "phx_error", "round {round}, client {nth}: {end}");
            }
            socket.push(json!([null, "5", PRIVATE, "msg", {}])).await;
            let unmatched =
                json!({ "status": "error", "response": { "reason": "unmatched topic" } });
            assert_eq!(socket.next().await[4], unmatched, "round {round}, client {nth}");
        }
        let app = server.update_app("foo-app", json!({ "active": true })).await;
        let event = json!({ "topic": "#general", "event": "msg", "scope": "private" });
        server.trigger(&app, event).await;
        for socket in &mut sockets {
            socket.assert_quiet().await;
        }
    }
}
