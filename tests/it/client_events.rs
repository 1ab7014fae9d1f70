//! The events that clients publish, in both wire versions: which clients may, how they are answered, and
//! how the events arrive.

use crate::support::{tokens::token, *};
use serde_json::{Value, json};

/// A join payload whose token has this `publish` claim, and rights to listen to all topics of the app.
fn ticket(app: &App, publish: &[&str]) -> Value {
    let listen = ["private:foo-app", "private:foo-app:*", "public:foo-app", "public:foo-app:*"];
    json!({ "guardian_token": token(app, &json!({ "listen": listen, "publish": publish })) })
}

async fn app_with(server: &TestServer, client_events: &str) -> App {
    server.create_app(json!({ "name": "foo-app", "client_events": client_events })).await
}

/// The payload of the reply to a push that is not permitted, as the articles' clients expect it.
fn denied() -> Value {
    json!({ "status": "error", "response": {} })
}

/// Pushes `msg`; `true` if it arrives, `false` if it is denied. Nothing else may happen.
async fn is_published(socket: &mut Socket, vsn: &str, topic: &str, case: &str) -> bool {
    let payload = json!({ "case": case });
    socket.push(json!(["1", "9", topic, "msg", payload])).await;
    let frame = socket.next().await;
    let join_ref = if vsn == V2 { json!("1") } else { Value::Null };
    let is_published = frame == json!([null, null, topic, "msg", payload]);
    if !is_published {
        assert_eq!(frame, json!([join_ref, "9", topic, "phx_reply", denied()]), "{case}");
    }
    socket.assert_quiet().await;
    is_published
}

#[tokio::test]
async fn the_app_decides_which_clients_may_publish() {
    const OWN: &[&str] = &["public:foo-app", "private:foo-app"];
    const NONE: &[&str] = &[];
    for (client_events, topic, publish, expected) in [
        ("authorized", "public:foo-app", None, false),
        ("authorized", "public:foo-app", Some(NONE), false),
        ("authorized", "public:foo-app", Some(OWN), true),
        ("authorized", "private:foo-app", Some(NONE), false),
        ("authorized", "private:foo-app", Some(OWN), true),
        ("all", "public:foo-app", None, true),
        ("all", "public:foo-app", Some(NONE), true),
        ("all", "private:foo-app", Some(NONE), false),
        ("all", "private:foo-app", Some(OWN), true),
        ("none", "public:foo-app", None, false),
        ("none", "public:foo-app", Some(OWN), false),
        ("none", "private:foo-app", Some(OWN), false),
    ] {
        let server = TestServer::start();
        let app = app_with(&server, client_events).await;
        for vsn in [V1, V2] {
            let case = format!("{client_events}, {topic}, {publish:?}, {vsn}");
            let mut socket = Socket::connect(&server, vsn).await;
            let payload = publish.map_or_else(|| json!({}), |publish| ticket(&app, publish));
            socket.join(topic, payload).await;
            let is_published = is_published(&mut socket, vsn, topic, &case).await;
            assert_eq!(is_published, expected, "{case}");
        }
    }
}

#[tokio::test]
async fn a_publish_claim_must_match_the_topic_and_a_right_to_the_scope_covers_its_channels() {
    let server = TestServer::start();
    let app = app_with(&server, "authorized").await;
    for (pattern, topic, expected) in [
        ("private:foo-app", "private:foo-app", true),
        ("private:foo-app", "private:foo-app:room", true),
        ("private:foo-app", "private:foo-app:room:1", true),
        ("private:foo-app:room", "private:foo-app:room", true),
        ("private:foo-app:room", "private:foo-app:room:1", false),
        ("private:foo-app:room", "private:foo-app:other", false),
        ("private:foo-app:room", "private:foo-app", false),
        ("private:foo-app:*", "private:foo-app:room:1", true),
        ("private:foo-app:*", "private:foo-app", false),
        ("private:*", "private:foo-app", true),
        ("private:*", "private:foo-app:room", true),
        ("private:*", "public:foo-app", false),
        ("private:foo", "private:foo-app", false),
        ("private:foo-app-2", "private:foo-app", false),
        ("*", "private:foo-app", false),
        (".*", "private:foo-app", false),
    ] {
        for vsn in [V1, V2] {
            let case = format!("{pattern} on {topic} by {vsn}");
            let mut socket = Socket::connect(&server, vsn).await;
            socket.join(topic, ticket(&app, &[pattern])).await;
            let is_published = is_published(&mut socket, vsn, topic, &case).await;
            assert_eq!(is_published, expected, "{case}");
        }
    }
}

#[tokio::test]
async fn a_fault_is_told_and_nothing_is_published() {
    let server = TestServer::start();
    let app = app_with(&server, "all").await;
    let reason = |reason: &str| json!({ "reason": reason });
    let invalid = reason("invalid event");
    let longest = "e".repeat(200);
    let long_together = format!("{}:{longest}", "c".repeat(55));
    let long_channel = format!("{}:msg", "c".repeat(201));
    let limit = 32_768;
    let sized = |bytes: usize| json!({ "x": "y".repeat(bytes - r#"{"x":""}"#.len()) });
    let empty = || json!({});
    for (case, event, payload, expected) in [
        ("empty", json!(""), empty(), &invalid),
        ("the wire's own", json!("phx_error"), empty(), &invalid),
        ("the wire's own on a channel", json!("room:phx_reply"), empty(), &invalid),
        ("an old reply", json!("chan_reply_1"), empty(), &invalid),
        ("presence", json!("presence_diff"), empty(), &invalid),
        ("reserved", json!("#general"), empty(), &invalid),
        ("to everyone by name", json!("#general:msg"), empty(), &invalid),
        ("control character", json!("a\u{0}b"), empty(), &invalid),
        ("newline", json!("msg\n"), empty(), &invalid),
        ("no text", json!(5), empty(), &invalid),
        ("no event", json!("room:"), empty(), &invalid),
        ("no channel", json!(":msg"), empty(), &invalid),
        ("201 bytes", json!(format!("{longest}e")), empty(), &invalid),
        ("256 bytes together", json!(long_together), empty(), &invalid),
        ("a channel of 201 bytes", json!(long_channel), empty(), &invalid),
        ("array", json!("msg"), json!([]), &reason("payload must be an object")),
        ("null", json!("msg"), json!(null), &reason("payload must be an object")),
        ("text", json!("msg"), json!("{}"), &reason("payload must be an object")),
        ("too large", json!("msg"), sized(limit + 1), &reason("payload too large")),
    ] {
        for vsn in [V1, V2] {
            let mut socket = Socket::connect(&server, vsn).await;
            let topic = "public:foo-app";
            socket.join(topic, json!({})).await;
            socket.push(json!(["1", "9", topic, event, payload])).await;
            let join_ref = if vsn == V2 { json!("1") } else { Value::Null };
            let status = json!({ "status": "error", "response": expected });
            let reply = json!([join_ref, "9", topic, "phx_reply", status]);
            assert_eq!(socket.next().await, reply, "{case} by {vsn}");
            socket.assert_quiet().await;
        }
    }
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:foo-app", json!({})).await;
    for (event, payload) in [(longest.as_str(), empty()), ("msg", sized(limit))] {
        socket.push(json!(["1", "9", "public:foo-app", event, payload])).await;
        let published = socket.next().await;
        assert_eq!(published, json!([null, null, "public:foo-app", event, payload]));
    }
    drop(app);
}

#[tokio::test]
async fn a_client_that_may_not_publish_learns_nothing_of_what_else_is_wrong() {
    let server = TestServer::start();
    app_with(&server, "none").await;
    let mut socket = Socket::connect(&server, V2).await;
    let topic = "public:foo-app";
    socket.join(topic, json!({})).await;
    for (event, payload) in [("phx_x", json!({})), ("msg", json!([])), ("", json!(1))] {
        socket.push(json!(["1", "9", topic, event, payload])).await;
        assert_eq!(socket.next().await, json!(["1", "9", topic, "phx_reply", denied()]));
    }
}

#[tokio::test]
async fn a_denied_push_reaches_nobody() {
    let server = TestServer::start();
    let app = app_with(&server, "authorized").await;
    let topic = "private:foo-app";
    let mut listener = Socket::connect(&server, V2).await;
    listener.join(topic, ticket(&app, &[])).await;
    for vsn in [V1, V2] {
        let mut pusher = Socket::connect(&server, vsn).await;
        pusher.join(topic, ticket(&app, &["private:foo-app:room"])).await;
        for event in ["msg", "room:msg"] {
            pusher.push(json!([null, "9", topic, event, {}])).await;
            assert_eq!(pusher.next().await[4], denied());
        }
        let end = json!({ "topic": "#general", "event": "end", "scope": "private" });
        server.trigger(&app, end).await;
        for socket in [&mut listener, &mut pusher] {
            assert_eq!(socket.next().await, json!([null, null, topic, "end", {}]));
        }
    }
}

#[tokio::test]
async fn a_bearer_over_http_counts_as_a_client_unless_its_audience_is_trigger() {
    let server = TestServer::start();
    let app = server.create_app(json!({ "name": "foo-app", "client_events": "none" })).await;
    let mut listener = Socket::connect(&server, V2).await;
    listener.join("public:foo-app", json!({})).await;
    let publish = json!(["public:foo-app"]);
    let visitor = token(&app, &json!({ "publish": publish }));
    let application = token(&app, &json!({ "publish": publish, "aud": "trigger" }));
    let event = |n: u64| {
        let body = json!({ "topic": "public:foo-app", "event": "msg", "payload": { "n": n } });
        request("POST", server.url("/api/publish")).json(&body)
    };
    for (n, client_events, visitor_status) in
        [(0, "none", 403), (10, "authorized", 200), (20, "all", 200)]
    {
        server.update_app("foo-app", json!({ "client_events": client_events })).await;
        let by_visitor = event(n).bearer(&visitor).send().await;
        assert_eq!(by_visitor.status, visitor_status, "{client_events}: {}", by_visitor.body);
        assert_eq!(event(n + 1).bearer(&application).send().await.status, 200, "{client_events}");
        let expected = if visitor_status == 200 { vec![n, n + 1] } else { vec![n + 1] };
        for n in expected {
            let frame = format!(r#"[null,null,"public:foo-app","msg",{{"n":{n}}}]"#);
            assert_eq!(listener.frame().await, frame, "{client_events}");
        }
    }
    listener.assert_quiet().await;
}
