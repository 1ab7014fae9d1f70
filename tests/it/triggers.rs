//! Triggers over HTTP: which callers may trigger, which triggers are accepted, and how the events arrive.

use crate::support::{http::Request, tokens::*, *};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const EVENTS: &str = "/api/apps/test-app/events";

fn post(server: &TestServer, path: &str) -> Request {
    request("POST", server.url(path))
}

/// A trigger with the seeded app's key and secret.
fn trigger(server: &TestServer) -> Request {
    let app = App::seeded();
    post(server, EVENTS).basic(&app.key, &app.secret)
}

async fn answer(request: Request) -> (u16, Value) {
    let answer = request.send().await;
    (answer.status, answer.json())
}

fn refused(status: u16, detail: &str) -> (u16, Value) {
    (status, json!({ "errors": { "detail": detail } }))
}

#[tokio::test]
async fn a_payload_arrives_as_the_text_in_which_it_was_sent() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let json = "application/json";
    let form = "application/x-www-form-urlencoded";
    for (case, content_type, body, arrives) in [
        (
            "the first article's form",
            form,
            "topic=foo-topic&event=msg&scope=public&payload=%7B%22message%22%3A+%22h%C3%A9%22%7D",
            r#"[null,null,"public:test-app","foo-topic:msg",{"message": "hé"}]"#,
        ),
        (
            "a form to everyone",
            form,
            "topic=%23general&event=msg&payload=%7B%22n%22%3A1.0%7D",
            r#"[null,null,"public:test-app","msg",{"n":1.0}]"#,
        ),
        (
            "a form without a payload",
            form,
            "topic=foo-topic&event=msg",
            r#"[null,null,"public:test-app","foo-topic:msg",{}]"#,
        ),
        (
            "an object",
            json,
            r#"{"topic":"t","event":"e","payload":{ "b":1.50, "a":[1e2,"\u00e9\/"], "c":2 }}"#,
            r#"[null,null,"public:test-app","t:e",{ "b":1.50, "a":[1e2,"\u00e9\/"], "c":2 }]"#,
        ),
        (
            "a string",
            json,
            r#"{"topic":"t","event":"e","payload":"{\"a\" : \"\\\"\"}"}"#,
            r#"[null,null,"public:test-app","t:e",{"a" : "\""}]"#,
        ),
        (
            "null",
            json,
            r#"{"topic":"t","event":"e","payload":null}"#,
            r#"[null,null,"public:test-app","t:e",{}]"#,
        ),
        (
            "names that need escaping",
            json,
            r#"{"topic":"a\"b","event":"\ud83d\ude00"}"#,
            r#"[null,null,"public:test-app","a\"b:😀",{}]"#,
        ),
        (
            "the last of duplicates",
            json,
            r#"{"topic":"x","event":"e","topic":"t"}"#,
            r#"[null,null,"public:test-app","t:e",{}]"#,
        ),
    ] {
        let request = trigger(&server).header("content-type", content_type).body(body);
        assert_eq!(answer(request).await, (200, json!({})), "{case}");
        assert_eq!(socket.frame().await, arrives, "{case}");
    }
    socket.assert_quiet().await;
}

#[tokio::test]
async fn the_largest_payload_arrives_whole_and_a_larger_one_not_at_all() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app:t", json!({})).await;
    let event = |bytes: usize| {
        let filler = "x".repeat(bytes - r#"{"a":""}"#.len());
        json!({ "topic": "t", "event": "e", "payload": { "a": filler } })
    };
    let beyond = trigger(&server).json(&event(102_401));
    let too_large = refused(413, "payload is larger than 102400 bytes");
    assert_eq!(answer(beyond).await, too_large);
    server.trigger(&App::seeded(), event(102_400)).await;
    let frame = socket.next().await;
    assert_eq!(frame[4]["a"].as_str().map(str::len), Some(102_392));
    socket.assert_quiet().await;
}

#[tokio::test]
async fn strangers_get_one_and_the_same_answer() {
    let server = TestServer::start();
    let idle = server.create_app(json!({ "name": "idle-app", "active": false })).await;
    let seeded = App::seeded();
    let event = json!({ "topic": "t", "event": "e" });
    let topic = |slug: &str| json!({ "topic": format!("public:{slug}:t"), "event": "e" });
    let mut answers = Vec::new();
    for (case, request) in [
        (
            "unknown app",
            post(&server, "/api/apps/no-app/events").basic(&seeded.key, &seeded.secret),
        ),
        ("inactive app", post(&server, "/api/apps/idle-app/events").basic(&idle.key, &idle.secret)),
        ("wrong secret", post(&server, EVENTS).basic(&seeded.key, "wrong")),
        ("wrong key", post(&server, EVENTS).basic("wrong", &seeded.secret)),
        ("another app's", post(&server, EVENTS).basic(&idle.key, &idle.secret)),
        ("no credentials", post(&server, EVENTS)),
        ("forged token", post(&server, EVENTS).bearer(&signed("forged", &json!({})))),
        ("truncated token", post(&server, EVENTS).bearer(&token(&seeded, &json!({}))[..40])),
        ("expired token", post(&server, EVENTS).bearer(&token(&seeded, &json!({ "exp": 1 })))),
    ] {
        answers.push((case, request.json(&event).send().await));
    }
    for (case, slug, secret) in [
        ("publish: unknown app", "no-app", &seeded.secret),
        ("publish: inactive app", "idle-app", &idle.secret),
        ("publish: another app's", "test-app", &idle.secret),
    ] {
        let request = post(&server, "/api/publish").header("authorization", secret);
        answers.push((case, request.json(&topic(slug)).send().await));
    }
    for (case, answer) in &answers {
        assert_eq!(answer.status, 401, "{case}");
        assert_eq!(answer.body, answers[0].1.body, "{case}");
        let challenge = answer.header("www-authenticate");
        assert_eq!(challenge, Some(r#"Basic realm="Herald""#), "{case}");
    }
}

#[tokio::test]
async fn a_changed_app_is_judged_anew_at_once() {
    let server = TestServer::start();
    let old = server.create_app(json!({ "name": "changing-app" })).await;
    let event = json!({ "topic": "t", "event": "e" });
    server.trigger(&old, event.clone()).await;
    let new = server.update_app(&old.slug, json!({ "secret": "" })).await;
    let path = format!("/api/apps/{}/events", old.slug);
    let with = |app: &App| post(&server, &path).basic(&app.key, &app.secret).json(&event);
    assert_eq!(with(&old).send().await.status, 401, "the old secret");
    assert_eq!(with(&new).send().await.status, 200, "the new secret");
    server.update_app(&old.slug, json!({ "active": false })).await;
    assert_eq!(with(&new).send().await.status, 401, "deactivated");
    server.update_app(&old.slug, json!({ "active": true })).await;
    assert_eq!(with(&new).send().await.status, 200, "activated");
}

#[tokio::test]
async fn a_token_counts_as_a_client_unless_it_is_the_applications_own() {
    let server = TestServer::start();
    let open = server.create_app(json!({ "name": "open-app" })).await;
    let silent = json!({ "name": "silent-app", "client_events": "none" });
    let silent = server.create_app(silent).await;
    let csrf = herald::app::token::csrf_signature(&open.secret.clone().into(), "page");
    let claims = |publish: &str, aud: &str| json!({ "publish": [publish], "aud": aud, "s_csrf": csrf, "sub": {} });
    let (forbidden, no_clients) = (
        refused(403, "the token does not permit publishing there"),
        refused(403, "this app takes no client events"),
    );
    let too_large = refused(413, "payload is larger than 32768 bytes");
    let (small, large) = (json!({}), json!({ "a": "x".repeat(40_000) }));
    for (case, app, claims, page, payload, expected) in [
        ("the channel", &open, claims("private:open-app:t", "web"), None, &small, (200, json!({}))),
        ("the scope", &open, claims("private:open-app", "web"), None, &small, (200, json!({}))),
        (
            "another channel",
            &open,
            claims("private:open-app:x", "web"),
            None,
            &small,
            forbidden.clone(),
        ),
        ("another scope", &open, claims("public:*", "web"), None, &small, forbidden.clone()),
        ("a bare star", &open, claims("*", "web"), None, &small, forbidden.clone()),
        ("a client's limit", &open, claims("private:*", "web"), None, &large, too_large),
        (
            "the application's",
            &open,
            claims("private:*", "trigger"),
            None,
            &large,
            (200, json!({})),
        ),
        (
            "the application's, elsewhere",
            &open,
            claims("public:*", "trigger"),
            None,
            &small,
            forbidden,
        ),
        ("no client events", &silent, claims("private:*", "web"), None, &small, no_clients),
        (
            "but the application's",
            &silent,
            claims("private:*", "trigger"),
            None,
            &small,
            (200, json!({})),
        ),
        (
            "with its CSRF token",
            &open,
            claims("private:*", "csrf"),
            Some("page"),
            &small,
            (200, json!({})),
        ),
        (
            "without",
            &open,
            claims("private:*", "csrf"),
            None,
            &small,
            refused(401, "authentication required"),
        ),
    ] {
        let token = token(app, &claims);
        let with_page = |request: Request| match page {
            Some(page) => request.header("x-csrf-token", page),
            None => request,
        };
        let event = json!({ "topic": "t", "event": "e", "scope": "private", "payload": payload });
        let events = post(&server, &format!("/api/apps/{}/events", app.slug));
        let request = with_page(events.bearer(&token)).json(&event);
        assert_eq!(answer(request).await, expected, "{case}");

        let topic = format!("private:{}:t", app.slug);
        let event = json!({ "topic": topic, "event": "e", "payload": payload });
        let request = with_page(post(&server, "/api/publish").bearer(&token)).json(&event);
        assert_eq!(answer(request).await, expected, "{case}, to publish");

        let request = with_page(post(&server, "/api/publish/bulk").bearer(&token));
        let request = request.json(&json!({ "events": [event] }));
        assert_eq!(answer(request).await, expected, "{case}, to publish in bulk");
    }
}

#[tokio::test]
async fn publishing_to_a_topic_means_what_a_push_on_it_would() {
    let server = TestServer::start();
    let app = App::seeded();
    let mut scope = Socket::connect(&server, V2).await;
    scope.join("public:test-app", json!({})).await;
    let mut channel = Socket::connect(&server, V2).await;
    channel.join("public:test-app:room:1", json!({})).await;
    for (topic, event, on_scope, on_channel) in [
        ("public:test-app:room:1", "msg", "room:1:msg", Some("msg")),
        ("public:test-app", "msg", "msg", Some("#general:msg")),
        ("public:test-app", "room:1:msg", "room:1:msg", None),
    ] {
        let body = json!({ "topic": topic, "event": event, "payload": { "on": topic } });
        let request = post(&server, "/api/publish").header("authorization", &app.secret);
        assert_eq!(answer(request.json(&body)).await, (200, json!({})), "{topic} {event}");
        assert_eq!(scope.next().await[3], on_scope, "{topic} {event}");
        if let Some(expected) = on_channel {
            let frame = channel.next().await;
            assert_eq!((&frame[3], &frame[4]), (&json!(expected), &json!({ "on": topic })));
        }
        channel.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_bulk_arrives_in_order_and_whole_or_not_at_all() {
    let server = TestServer::start();
    let app = App::seeded();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app:t", json!({})).await;
    let event = |n: usize| json!({ "topic": "public:test-app:t", "event": format!("e{n}") });
    let bulk = |events: Vec<Value>| {
        let request = post(&server, "/api/publish/bulk").header("authorization", &app.secret);
        request.json(&json!({ "events": events }))
    };
    let bad = json!({ "topic": "public:test-app:t", "event": "phx_close" });
    let other = server.create_app(json!({ "name": "other-app" })).await;
    let foreign = json!({ "topic": format!("public:{}:t", other.slug), "event": "e" });
    for (case, last, errors) in [
        ("a bad one", bad, json!({ "events": ["99: event is reserved"] })),
        ("another app's", foreign, json!({ "events": ["must be of one app"] })),
    ] {
        let events = (0..99).map(event).chain([last]).collect();
        assert_eq!(answer(bulk(events)).await, (422, json!({ "errors": errors })), "{case}");
        socket.assert_quiet().await;
    }
    let too_many = json!({ "errors": { "events": ["must be at most 100"] } });
    assert_eq!(answer(bulk((0..101).map(event).collect())).await, (422, too_many));
    assert_eq!(answer(bulk((0..100).map(event).collect())).await, (200, json!({})));
    for n in 0..100 {
        assert_eq!(socket.next().await[3], format!("e{n}"));
    }
    socket.assert_quiet().await;
}

#[tokio::test]
async fn with_a_single_app_topics_are_the_second_articles() {
    let server = TestServer::start_with(|settings| {
        settings.single_app = herald::app::Slug::parse("test-app");
    });
    let app = App::seeded();
    let mut socket = Socket::connect(&server, V2).await;
    let listen = token(&app, &json!({ "listen": ["deploys:web"], "publish": ["deploys:web"] }));
    socket.join("deploys:web", json!({ "guardian_token": listen })).await;
    let publish = |topic: &str| {
        let body = json!({ "topic": topic, "event": "done", "payload": { "ok": true } });
        post(&server, "/api/publish").json(&body)
    };
    let by_secret = publish("deploys:web").header("authorization", &app.secret);
    assert_eq!(answer(by_secret).await, (200, json!({})));
    let expected = r#"[null,null,"deploys:web","done",{"ok":true}]"#;
    assert_eq!(socket.frame().await, expected);
    assert_eq!(answer(publish("deploys:web").bearer(&listen)).await, (200, json!({})));
    assert_eq!(socket.frame().await, expected);
    let elsewhere = answer(publish("deploys:db").bearer(&listen)).await;
    assert_eq!(elsewhere, refused(403, "the token does not permit publishing there"));

    let everyone = json!({ "topic": "#general", "event": "e", "scope": "deploys" });
    let reach_all = |publish: &str| {
        let token = token(&app, &json!({ "publish": [publish] }));
        post(&server, EVENTS).bearer(&token).json(&everyone)
    };
    let narrow = answer(reach_all("deploys:web")).await;
    assert_eq!(narrow, refused(403, "the token does not permit publishing there"));
    assert_eq!(answer(reach_all("deploys:*")).await, (200, json!({})));
    assert_eq!(socket.next().await[3], "#general:e");
    socket.assert_quiet().await;
}

#[tokio::test]
async fn invalid_bodies_are_refused_and_the_server_goes_on() {
    let server = TestServer::start();
    let deep = format!(r#"{{"topic":"t","event":"e","payload":{}}}"#, r#"{"a":"#.repeat(100_000));
    let deep_whole = format!(
        r#"{{"topic":"t","event":"e","payload":{}1{}}}"#,
        r#"{"a":"#.repeat(100_000),
        "}".repeat(100_000)
    );
    let deep_unknown = format!(r#"{{"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    for (case, content_type, body, status) in [
        ("nothing", json, Vec::new(), 400),
        ("half an object", json, b"{\"topic\":".to_vec(), 400),
        ("two objects", json, b"{}{}".to_vec(), 400),
        ("an array", json, b"[]".to_vec(), 400),
        ("null", json, b"null".to_vec(), 400),
        ("not UTF-8", json, b"{\"topic\":\"\xff\",\"event\":\"e\"}".to_vec(), 400),
        ("nul bytes", json, vec![0; 1_000], 400),
        ("deep and broken", json, deep.into_bytes(), 400),
        ("deep and whole", json, deep_whole.into_bytes(), 422),
        ("deep where nobody looks", json, deep_unknown.into_bytes(), 422),
        ("an empty object", json, b"{}".to_vec(), 422),
        ("wrong types", json, br#"{"topic":{},"event":[],"scope":1}"#.to_vec(), 422),
        ("payload a number", json, br#"{"topic":"t","event":"e","payload":1}"#.to_vec(), 422),
        ("payload half text", json, br#"{"topic":"t","event":"e","payload":"{"}"#.to_vec(), 422),
        ("half a surrogate pair", json, br#"{"topic":"\ud800","event":"e"}"#.to_vec(), 422),
        ("an empty form", form, Vec::new(), 422),
        ("a form that is JSON", form, br#"{"topic":"t","event":"e"}"#.to_vec(), 422),
        ("a form not UTF-8", form, b"topic=t&event=%ff%00&payload={}".to_vec(), 400),
        ("a form of brackets", form, format!("{}=1", "topic[a]".repeat(10_000)).into(), 422),
        ("plain text", "text/plain", b"{}".to_vec(), 415),
        ("XML", "text/xml", b"<a/>".to_vec(), 415),
        ("multipart", "multipart/form-data; boundary=x", b"--x--".to_vec(), 415),
        ("a type that is none", "json", b"{}".to_vec(), 415),
        ("10 MB", json, vec![b'{'; 10_000_000], 413),
    ] {
        let request = trigger(&server).header("content-type", content_type).body(body);
        if case == "10 MB" {
            // The server need not read to the end, so the writing itself may fail.
            assert_eq!(raw_status(&server, 10_000_000, &[b'{'; 2_000_000]).await, 413, "{case}");
            continue;
        }
        let answer = request.send().await;
        assert_eq!(answer.status, status, "{case}: {}", answer.body);
        assert!(answer.json()["errors"].is_object(), "{case}: {}", answer.body);
    }
    server.trigger(&App::seeded(), json!({ "topic": "t", "event": "e" })).await;
}

/// Sends a head that promises a body of some length, then these bytes; answers the status.
async fn raw_status(server: &TestServer, content_length: usize, body: &[u8]) -> u16 {
    let head = format!("content-length: {content_length}\r\n\r\n");
    raw(server, &[head.as_bytes(), body].concat()).await
}

/// Sends a trigger whose head ends and whose body begins with these bytes; answers the status, 0 if
/// the server hangs up without one.
async fn raw(server: &TestServer, rest: &[u8]) -> u16 {
    let head = format!(
        "POST {EVENTS} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-type: application/json\r\n\
         authorization: Basic dGVzdC1hcHAtZmFrZS1rZXk6dGVzdC1hcHAtZmFrZS1zZWNyZXQ=\r\n",
        server.port
    );
    let stream = TcpStream::connect(("127.0.0.1", server.port)).await.expect("a connection");
    let (mut reading, mut writing) = stream.into_split();
    let bytes = [head.as_bytes(), rest].concat();
    let written = tokio::spawn(async move {
        // A server that has answered may stop reading, and only its answer counts.
        let _ = writing.write_all(&bytes).await;
        writing
    });
    let mut first = [0; 12];
    let read = timeout(DEADLINE, reading.read_exact(&mut first)).await.expect("an answer in time");
    written.abort();
    match read {
        Ok(_) => std::str::from_utf8(&first[9..]).ok().and_then(|it| it.parse().ok()).unwrap_or(0),
        Err(_) => 0,
    }
}

#[tokio::test]
async fn broken_http_bodies_are_refused_and_the_server_goes_on() {
    let server = TestServer::start();
    let event = r#"{"topic":"t","event":"e"}"#;
    let sized = |length: &str| format!("content-length: {length}\r\n\r\n{event}");
    let chunked = |chunks: &str| format!("transfer-encoding: chunked\r\n\r\n{chunks}");
    for (case, rest, expected) in [
        ("as it should be", sized("25"), 200),
        ("chunked", chunked(&format!("19\r\n{event}\r\n0\r\n\r\n")), 200),
        ("length shorter than the body", sized("24"), 400),
        ("length negative", sized("-1"), 400),
        ("length no number", sized("x"), 400),
        ("length beyond any number", sized("99999999999999999999999"), 400),
        ("two lengths", format!("content-length: 25\r\n{}", sized("24")), 400),
        ("a length and chunks", format!("content-length: 25\r\n{}", chunked("0\r\n\r\n")), 400),
        ("a chunk size that is none", chunked("zz\r\n"), 400),
        ("a chunk size beyond any number", chunked("fffffffffffffffffffff\r\n"), 400),
        ("a header without a name", format!(": x\r\n{}", sized("25")), 400),
        ("a header with a nul", format!("x: \0\r\n{}", sized("25")), 400),
        ("a compressed body", format!("content-encoding: gzip\r\n{}", sized("25")), 415),
    ] {
        assert_eq!(raw(&server, rest.as_bytes()).await, expected, "{case}");
    }
    server.trigger(&App::seeded(), json!({ "topic": "t", "event": "e" })).await;
}

#[tokio::test]
async fn a_page_of_another_site_cannot_trigger() {
    let server = TestServer::start();
    let event = json!({ "topic": "t", "event": "e" });
    let own = format!("http://127.0.0.1:{}", server.port);
    for (case, name, value, status) in [
        ("another site", "sec-fetch-site", "cross-site", 403),
        ("another origin", "origin", "https://evil.example", 403),
        ("an origin of nobody", "origin", "null", 403),
        ("its own page", "origin", own.as_str(), 200),
    ] {
        let answer = trigger(&server).header(name, value).json(&event).send().await;
        assert_eq!(answer.status, status, "{case}");
        let shared = answer.headers.iter().any(|(name, _)| name.starts_with("access-control-"));
        assert!(!shared, "{case}: {:?}", answer.headers);
    }
}
