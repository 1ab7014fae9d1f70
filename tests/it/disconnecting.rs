//! The call with which an app ends joins: which joins it ends, what their clients are sent, and which joins stay.

use crate::support::{
    http::Request,
    tokens::{signed, token},
    *,
};
use futures_util::future::join_all;
use herald::app::Slug;
use serde_json::{Value, json, value::RawValue};

const OPERATORS: &str = "the operator's own key, 32 bytes and more";
const CRASHED: &str = "phx_error";

async fn two_apps(server: &TestServer) -> (App, App) {
    let app = server.create_app(json!({ "name": "foo-app", "client_events": "all" })).await;
    let other = server.create_app(json!({ "name": "bar-app", "client_events": "all" })).await;
    (app, other)
}

/// A join payload with an app's token for this `sub`.
fn ticket(app: &App, sub: &Value) -> Value {
    let claims = json!({ "sub": sub, "listen": ["private:*", "deploys:*"] });
    json!({ "guardian_token": token(app, &claims) })
}

fn call(server: &TestServer, app: &App) -> Request {
    let path = format!("/api/apps/{}/disconnect", app.slug);
    request("POST", server.url(&path)).basic(&app.key, &app.secret)
}

/// Ends joins; the call must succeed.
async fn disconnect(server: &TestServer, app: &App, body: Value) {
    let answer = call(server, app).json(&body).send().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "{}"), "{body}");
}

/// The close code of a session whose client shall come back; over long-poll there is none.
fn going_away(way: &str) -> Option<u16> {
    (!way.ends_with("polled")).then_some(1001)
}

/// The frame that ends a join with `join_ref` 1, as this version encodes it.
fn end_of(topic: &str, way: &str) -> Value {
    let join_ref = if way.starts_with('2') { json!("1") } else { Value::Null };
    json!([join_ref, "1", topic, CRASHED, { "reason": "channel_crash" }])
}

#[tokio::test]
async fn e100_e151_a_session_of_that_app_alone_is_closed_and_its_client_may_come_back() {
    let server = TestServer::start();
    let (app, _) = two_apps(&server).await;
    for way in WAYS {
        for (case, body) in
            [("sub", json!({ "sub": 5 })), ("topic", json!({ "topic": "private:foo-app:a" }))]
        {
            let mut socket = Socket::connect(&server, way).await;
            socket.join("private:foo-app:a", ticket(&app, &json!(5))).await;
            socket.join("public:foo-app", json!({})).await;
            disconnect(&server, &app, body).await;
            assert_eq!(socket.ended_with().await, going_away(way), "{way} {case}");
            if way.ends_with("polled") {
                let mut poller = socket.into_poller();
                assert_eq!(poller.fetch().await, json!({ "status": 500 }), "{way} {case}");
                let push = r#"[null,"9","phoenix","heartbeat",{}]"#;
                assert_eq!(poller.post(push).await, 410, "{way} {case}");
            }
            let mut again = Socket::connect(&server, way).await;
            again.join("private:foo-app:a", ticket(&app, &json!(5))).await;
        }
    }
}

#[tokio::test]
async fn a_session_of_two_apps_loses_what_is_meant_and_hears_the_rest() {
    let server = TestServer::start();
    let (app, other) = two_apps(&server).await;
    for way in WAYS {
        for (case, body) in [
            ("sub", json!({ "sub": { "id": 7, "name": "Ada" } })),
            ("topic", json!({ "topic": "private:foo-app:a" })),
        ] {
            let sub = json!({ "name": "Ada", "id": 7.0 });
            let mut socket = Socket::connect(&server, way).await;
            socket.join("private:foo-app:a", ticket(&app, &sub)).await;
            socket.join("private:foo-app:b", ticket(&app, &json!("7"))).await;
            socket.join("public:foo-app", json!({})).await;
            socket.join("private:bar-app:a", ticket(&other, &sub)).await;
            disconnect(&server, &app, body).await;
            for triggered in [&app, &other] {
                for (scope, channel) in [("private", "a"), ("private", "b"), ("public", "a")] {
                    let event = json!({ "topic": channel, "event": "e", "scope": scope });
                    server.trigger(triggered, event).await;
                }
            }
            let case = format!("{way} {case}");
            assert_eq!(socket.next().await, end_of("private:foo-app:a", way), "{case}");
            // Only events of one scope have an order.
            let mut heard = [socket.next().await, socket.next().await, socket.next().await];
            heard.sort_by_key(|message| message[2].as_str().map(str::to_owned));
            let expected =
                [("private:bar-app:a", "e"), ("private:foo-app:b", "e"), ("public:foo-app", "a:e")]
                    .map(|(topic, event)| json!([null, null, topic, event, {}]));
            assert_eq!(heard, expected, "{case}");
            socket.assert_quiet().await;
            let pushed = json!([null, "2", "private:foo-app:a", "e", {}]);
            socket.push(pushed).await;
            let unmatched =
                json!({ "status": "error", "response": { "reason": "unmatched topic" } });
            assert_eq!(socket.next().await[4], unmatched, "{case}");
            socket.join("private:foo-app:a", ticket(&app, &sub)).await;
        }
    }
}

#[tokio::test]
async fn a_number_beyond_64_bits_is_nobody_elses() {
    let server = TestServer::start();
    let (app, _) = two_apps(&server).await;
    // As 64-bit floating-point numbers all of these are equal.
    let subs = ["18446744073709551617", "18446744073709551618", "18446744073709551617.5"];
    let mut sockets = Vec::new();
    for sub in subs {
        let claims = format!(r#"{{"sub":{{"id":{sub}}},"listen":["private:*"]}}"#);
        let claims: &RawValue = serde_json::from_str(&claims).expect("JSON");
        let mut socket = Socket::connect(&server, V2).await;
        let payload = json!({ "guardian_token": signed(&app.secret, &claims) });
        socket.join("private:foo-app:a", payload).await;
        sockets.push(socket);
    }
    let body = format!(r#"{{"sub":{{"id":{}}}}}"#, subs[0]);
    let request = call(&server, &app).header("content-type", "application/json").body(body);
    let answer = request.send().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "{}"));
    assert_eq!(sockets[0].ended_with().await, Some(1001));
    for (socket, sub) in sockets[1..].iter_mut().zip(&subs[1..]) {
        server.trigger(&app, json!({ "topic": "a", "event": "e", "scope": "private" })).await;
        let event = json!([null, null, "private:foo-app:a", "e", {}]);
        assert_eq!(socket.next().await, event, "{sub}");
    }
}

#[tokio::test]
async fn nobody_else_notices() {
    let server = TestServer::start();
    let (app, other) = two_apps(&server).await;
    let five = json!(5);
    let mut bystanders = Vec::new();
    for way in WAYS {
        for (topic, payload) in [
            ("private:foo-app:a", ticket(&app, &json!("5"))),
            ("private:foo-app:a", ticket(&app, &json!([5]))),
            ("private:foo-app:a", ticket(&app, &Value::Null)),
            ("private:foo-app", ticket(&app, &json!("whole"))),
            ("private:foo-app:ab", ticket(&app, &json!(55))),
            ("public:foo-app:a", json!({})),
            ("private:bar-app:a", ticket(&other, &five)),
            ("public:bar-app", ticket(&other, &five)),
        ] {
            let mut socket = Socket::connect(&server, way).await;
            socket.join(topic, payload.clone()).await;
            let is_text = payload == ticket(&app, &json!("5"));
            bystanders.push((way, is_text, socket));
        }
    }
    let mut target = Socket::connect(&server, V2).await;
    target.join("private:foo-app:target", ticket(&app, &five)).await;
    for body in [
        json!({ "sub": 5 }),
        json!({ "topic": "private:foo-app:target" }),
        json!({ "topic": "deploys:foo-app:a" }),
        json!({ "sub": "nobody" }),
    ] {
        disconnect(&server, &app, body).await;
    }
    assert_eq!(target.closed().await, 1001);
    for (_, _, socket) in &mut bystanders {
        socket.assert_quiet().await;
    }
    // In a form every value is text, so this call ends the joins of the subject "5".
    let answer = call(&server, &app).form("sub=5").send().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "{}"));
    for (way, is_text, socket) in &mut bystanders {
        match is_text {
            true => assert_eq!(socket.ended_with().await, going_away(way)),
            false => socket.assert_quiet().await,
        }
    }
}

#[tokio::test]
async fn a_token_that_a_public_join_did_not_need_counts_and_so_does_the_operators() {
    let server = TestServer::start_with(|settings| {
        settings.secrets.guardian_secret = Some(OPERATORS.into());
    });
    let app = server.create_app(json!({ "name": "foo-app", "shared_tokens": true })).await;
    let claims = json!({ "sub": "User:1", "listen": ["private:*"] });
    let (own, shared) = (token(&app, &claims), signed(OPERATORS, &claims));
    for jwt in [&own, &shared] {
        let path = format!("/socket/websocket?vsn=2.0.0&guardian_token={jwt}");
        let mut by_connect = Socket::open(&server, &path).await;
        by_connect.join("public:foo-app", json!({})).await;
        let mut by_join = Socket::connect(&server, V1).await;
        by_join.join("private:foo-app", json!({ "guardian_token": jwt })).await;
        let answer = call(&server, &app).form("sub=User%3A1").send().await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "{}"));
        assert_eq!(by_connect.closed().await, 1001);
        assert_eq!(by_join.closed().await, 1001);
    }
}

#[tokio::test]
async fn a_session_that_is_ended_leaves_its_presence_channel_once() {
    let server = TestServer::start();
    let (app, other) = two_apps(&server).await;
    let topic = "presence:foo-app:room";
    let ticket = |app: &App, sub: &str| {
        let claims = json!({ "sub": sub, "listen": ["presence:*"] });
        json!({ "guardian_token": token(app, &claims) })
    };
    let mut watch = Socket::connect(&server, V2).await;
    watch.join(topic, ticket(&app, "watch")).await;
    assert_eq!(watch.next().await[3], "presence_state");
    for way in WAYS {
        let mut target = Socket::connect(&server, way).await;
        target.join("public:bar-app", ticket(&other, "ada")).await;
        target.join(topic, ticket(&app, "ada")).await;
        // Skips all frames up to the announcement of Ada's join; the next one must announce that she has left.
        while watch.next().await[4]["joins"]["ada"] == Value::Null {}
        disconnect(&server, &app, json!({ "sub": "ada" })).await;
        let left = watch.next().await;
        assert_eq!(left[3], "presence_diff", "{way}: {left}");
        assert_eq!(left[4]["joins"], json!({}), "{way}: {left}");
        let keys = left[4]["leaves"].as_object().expect("leaves").keys();
        assert_eq!(keys.collect::<Vec<_>>(), ["ada"], "{way}: {left}");
        watch.assert_quiet().await;
    }
}

#[tokio::test]
async fn with_a_single_app_topics_are_spelled_without_its_name() {
    let server = TestServer::start_with(|settings| settings.single_app = Slug::parse("test-app"));
    let app = App::seeded();
    let (mut web, mut news) =
        (Socket::connect(&server, V2).await, Socket::connect(&server, V1_POLLED).await);
    web.join("deploys:web", ticket(&app, &json!(1))).await;
    news.join("public:news", json!({})).await;
    disconnect(&server, &app, json!({ "topic": "deploys:web" })).await;
    assert_eq!(web.closed().await, 1001);
    news.assert_quiet().await;
    disconnect(&server, &app, json!({ "topic": "public:news" })).await;
    assert_eq!(news.ended_with().await, None);
}

#[tokio::test]
async fn every_thread_is_told() {
    let server = TestServer::start_with(|settings| settings.server.workers = 4);
    let (app, _) = two_apps(&server).await;
    let mut sockets = Vec::new();
    for nth in 0..32 {
        let mut socket = Socket::connect(&server, WAYS[nth % WAYS.len()]).await;
        socket.join("private:foo-app", ticket(&app, &json!({ "id": nth % 2 }))).await;
        sockets.push(socket);
    }
    disconnect(&server, &app, json!({ "sub": { "id": 1 } })).await;
    let event = json!({ "topic": "#general", "event": "e", "scope": "private" });
    server.trigger(&app, event).await;
    let heard = sockets.iter_mut().enumerate().map(async |(nth, socket)| match nth % 2 {
        0 => assert_eq!(socket.next().await[3], "e"),
        _ => assert_eq!(socket.ended_with().await, going_away(WAYS[nth % WAYS.len()]), "{nth}"),
    });
    join_all(heard).await;
}

#[tokio::test]
async fn it_says_how_many_joins_it_ended_when_asked() {
    let server = TestServer::start_with(|settings| settings.server.workers = 4);
    let (app, other) = two_apps(&server).await;
    for way in WAYS {
        let seven = json!({ "id": 7, "name": "Ada" });
        let mut sockets = Vec::new();
        for (sub, topic) in [
            (&seven, "private:foo-app:a"),
            (&json!({ "id": 7, "name": "Bob" }), "private:foo-app:a"),
            (&json!({ "id": 8, "name": "Ada" }), "private:foo-app:b"),
            (&json!(7), "private:foo-app:b"),
        ] {
            let mut socket = Socket::connect(&server, way).await;
            socket.join(topic, ticket(&app, sub)).await;
            sockets.push(socket);
        }
        // A join of another app keeps this session open; its two joins of `app` are ended.
        let mut both = Socket::connect(&server, way).await;
        both.join("private:bar-app", ticket(&other, &seven)).await;
        both.join("private:foo-app:a", ticket(&app, &seven)).await;
        both.join("private:foo-app:b", ticket(&app, &seven)).await;
        for (body, ended) in [
            (json!({ "sub": { "id": 9 }, "match": "members", "count": true }), json!(0)),
            (json!({ "sub": { "id": 7 }, "count": true }), json!(0)),
            (json!({ "sub": { "id": 7 }, "match": "members", "count": true }), json!(4)),
            (json!({ "sub": { "id": 7 }, "match": "members", "count": true }), json!(0)),
            (json!({ "topic": "private:foo-app:b", "count": true }), json!(2)),
        ] {
            let answer = call(&server, &app).json(&body).send().await;
            let expected = (200, json!({ "ended": ended }));
            assert_eq!((answer.status, answer.json()), expected, "{way} {body}");
        }
        for socket in sockets {
            let mut socket = socket;
            assert_eq!(socket.ended_with().await, going_away(way), "{way}");
        }
        for topic in ["private:foo-app:a", "private:foo-app:b"] {
            assert_eq!(both.next().await[2], topic, "{way}");
        }
        both.assert_quiet().await;
        // This ends the session that is still open, before the round of the next way.
        disconnect(&server, &other, json!({ "topic": "private:bar-app" })).await;
    }
}

#[tokio::test]
async fn a_refused_disconnect_says_why_and_ends_nothing() {
    let server = TestServer::start_with(|settings| settings.limits.request_body_bytes_max = 1_000);
    let (app, other) = two_apps(&server).await;
    let idle = server.create_app(json!({ "name": "idle-app", "active": false })).await;
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("private:foo-app:a", ticket(&app, &json!(5))).await;
    let path = "/api/apps/foo-app/disconnect";
    let bare = |method: &str| request(method, server.url(path));
    let five = json!({ "sub": 5 });
    let json_type = ("content-type", "application/json");
    let malformed = |body: &str| call(&server, &app).header(json_type.0, json_type.1).body(body);
    let invalid = |field: &str, fault: &str| json!({ "errors": { field: [fault] } });
    let detail = |text: &str| json!({ "errors": { "detail": text } });
    let stranger = detail("authentication required");
    let trigger = token(&app, &json!({ "aud": "trigger", "publish": ["private:*"] }));
    for (case, request, status, body) in [
        ("nothing", bare("POST").json(&five), 401, stranger.clone()),
        ("secret", bare("POST").basic(&app.key, "x").json(&five), 401, stranger.clone()),
        ("key", bare("POST").basic("x", &app.secret).json(&five), 401, stranger.clone()),
        (
            "another app",
            bare("POST").basic(&other.key, &other.secret).json(&five),
            401,
            stranger.clone(),
        ),
        (
            "the admin",
            bare("POST").basic(server::ADMIN.0, server::ADMIN.1).json(&five),
            401,
            stranger.clone(),
        ),
        (
            "secret alone",
            bare("POST").header("authorization", &app.secret).json(&five),
            401,
            stranger.clone(),
        ),
        ("a token", bare("POST").bearer(&trigger).json(&five), 401, stranger.clone()),
        ("inactive", call(&server, &idle).json(&five), 401, stranger.clone()),
        (
            "unknown",
            call(&server, &App { slug: "no-app".into(), ..app.clone() }).json(&five),
            401,
            stranger,
        ),
        ("no JSON", malformed("{"), 400, detail("request body is not valid JSON")),
        ("a list", malformed("[]"), 400, detail("request body must be a JSON object")),
        (
            "another type",
            call(&server, &app).header("content-type", "text/plain").body("sub=5"),
            415,
            detail("content type must be application/json or application/x-www-form-urlencoded"),
        ),
        (
            "large",
            malformed(&" ".repeat(1_001)),
            413,
            detail("request body is larger than 1000 bytes"),
        ),
        ("neither", malformed("{}"), 422, invalid("sub", "must be given, or else topic")),
        (
            "neither, as a form",
            call(&server, &app).form("x=1"),
            422,
            invalid("sub", "must be given, or else topic"),
        ),
        (
            "both",
            malformed(r#"{"sub":5,"topic":"private:foo-app:a"}"#),
            422,
            invalid("sub", "cannot come together with topic"),
        ),
        (
            "another app's topic",
            malformed(r#"{"topic":"private:bar-app:a"}"#),
            422,
            invalid("topic", "must be one of this app's"),
        ),
        (
            "no topic",
            call(&server, &app).form("topic=private"),
            422,
            invalid("topic", "is not a whole topic"),
        ),
        (
            "another site",
            call(&server, &app).header("sec-fetch-site", "cross-site").json(&five),
            403,
            Value::Null,
        ),
        ("GET", bare("GET").basic(&app.key, &app.secret), 405, detail("method not allowed")),
    ] {
        let answer = request.send().await;
        assert_eq!(answer.status, status, "{case}: {}", answer.body);
        if body != Value::Null {
            assert_eq!(answer.json(), body, "{case}");
        }
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{case}");
        assert_eq!(answer.header("allow"), (status == 405).then_some("POST"), "{case}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{case}");
    }
    socket.assert_quiet().await;
}
