//! Triggers that are repeated with an idempotency key, and the positions in answers.

use std::{collections::BTreeSet, time::Duration};

use crate::support::{
    http::{Answer, Request},
    raw,
    tokens::token,
    *,
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

const TOPIC: &str = "public:test-app";
const ROOM: &str = "public:test-app:room";
const EVENTS: &str = "/api/apps/test-app/events";
const PUBLISH: &str = "/api/publish";
const BULK: &str = "/api/publish/bulk";

/// A call with the application's own credentials.
fn call(server: &TestServer, path: &str) -> Request {
    let app = App::seeded();
    let call = request("POST", server.url(path));
    match path {
        EVENTS => call.basic(&app.key, &app.secret),
        _ => call.header("authorization", &app.secret),
    }
}

async fn told(request: Request) -> (u16, Value) {
    let answer = request.send().await;
    (answer.status, answer.json())
}

/// The body of a 200.
async fn ok(request: Request) -> String {
    let Answer { status, body, .. } = request.send().await;
    assert_eq!(status, 200, "{body}");
    body
}

fn invalid(field: &str, fault: &str) -> (u16, Value) {
    (422, json!({ "errors": { field: [fault] } }))
}

fn other_content() -> (u16, Value) {
    invalid("idempotency_key", "was used with other content within the last 5 minutes")
}

/// The event `msg` to the channel `room`, as each of the two calls spells it.
fn event(path: &str, more: Value) -> Value {
    let topic = if path == EVENTS { "room" } else { ROOM };
    merged(json!({ "topic": topic, "event": "msg", "payload": { "a": 1 } }), more)
}

/// An object with the members of another.
fn merged(mut object: Value, more: Value) -> Value {
    let (Some(all), Value::Object(more)) = (object.as_object_mut(), more) else {
        panic!("no objects")
    };
    all.extend(more);
    object
}

async fn listener(server: &TestServer) -> Socket {
    let mut socket = Socket::connect(server, V2).await;
    socket.join(TOPIC, json!({})).await;
    socket
}

/// The socket hears `msg` once, and nothing more.
async fn hears_once(socket: &mut Socket) {
    assert_eq!(socket.next().await, json!([null, null, TOPIC, "room:msg", {"a": 1}]));
    socket.assert_quiet().await;
}

/// The position in an answer that consists of nothing else.
fn position(body: &str) -> String {
    let answer: Value = serde_json::from_str(body).expect("JSON");
    let position = answer["position"].as_str().expect("a position").to_owned();
    assert_eq!(answer, json!({ "position": position }));
    let (epoch, offset) = position.split_once(':').expect("two parts");
    assert!(!epoch.is_empty() && offset.parse::<u64>().is_ok_and(|offset| offset > 0));
    assert!(position.len() <= 64, "{position}");
    position
}

#[tokio::test]
async fn a_position_is_told_only_to_clients_that_ask_for_it() {
    let server = TestServer::start();
    let _listener = listener(&server).await;
    for path in [EVENTS, PUBLISH] {
        for more in [
            json!({}),
            json!({ "position": false }),
            json!({ "position": null }),
            json!({ "position": "false" }),
            json!({ "position": "" }),
            json!({ "idempotency_key": null }),
            json!({ "idempotency_key": format!("{path} k") }),
        ] {
            let body = ok(call(&server, path).json(&event(path, more.clone()))).await;
            assert_eq!(body, "{}", "{path} {more}");
        }
        let asks = event(path, json!({ "position": true }));
        let one = position(&ok(call(&server, path).json(&asks)).await);
        let two = position(&ok(call(&server, path).json(&asks)).await);
        let parts = |position: &str| {
            let (epoch, offset) = position.split_once(':').expect("two parts");
            (epoch.to_owned(), offset.parse::<u64>().expect("a number"))
        };
        let ((epoch, offset), next) = (parts(&one), parts(&two));
        assert_eq!(next, (epoch, offset + 1), "{path}");
    }
    for (flag, asks) in [("true", true), ("1", true), ("false", false), ("0", false), ("", false)] {
        let form = format!("topic=room&event=msg&position={flag}");
        let body = ok(call(&server, EVENTS).form(&form)).await;
        assert_eq!(body != "{}", asks, "{flag}: {body}");
    }
}

#[tokio::test]
async fn a_repetition_delivers_nothing_and_answers_like_the_first() {
    let server = TestServer::start();
    let mut socket = listener(&server).await;
    for path in [EVENTS, PUBLISH] {
        let key = format!("job of {path}");
        let plain = event(path, json!({ "idempotency_key": key }));
        let asks = event(path, json!({ "idempotency_key": key, "position": true }));
        assert_eq!(ok(call(&server, path).json(&plain)).await, "{}", "{path}");
        let first = position(&ok(call(&server, path).json(&asks)).await);
        assert_eq!(position(&ok(call(&server, path).json(&asks)).await), first, "{path}");
        assert_eq!(ok(call(&server, path).json(&plain)).await, "{}", "{path}");
        // The key belongs to the publication, not to the path by which it was requested.
        let payload = r#"{"a":1}"#;
        let other = if path == EVENTS { PUBLISH } else { EVENTS };
        let spelled = [
            (path, json!({ "payload": payload, "x": 1 })),
            (path, json!({ "scope": "public" })),
            (other, json!({})),
        ];
        for (path, more) in spelled {
            let again = event(path, json!({ "idempotency_key": key, "position": "1" }));
            let again = merged(again, more);
            assert_eq!(position(&ok(call(&server, path).json(&again)).await), first, "{again}");
        }
        hears_once(&mut socket).await;

        for (name, value) in [
            ("event", json!("other")),
            ("payload", json!({ "a": 2 })),
            ("payload", json!(r#"{"a": 1}"#)),
            ("topic", if path == EVENTS { json!("rooms") } else { json!("public:test-app:rooms") }),
        ] {
            let mut changed = asks.clone();
            changed[name] = value;
            let answer = told(call(&server, path).json(&changed)).await;
            assert_eq!(answer, other_content(), "{path} {name}");
        }
        assert_eq!(position(&ok(call(&server, path).json(&asks)).await), first, "{path}");
    }
    let form = "topic=room&event=msg&payload=%7B%22a%22%3A1%7D&position=true&idempotency_key=form";
    let first = position(&ok(call(&server, EVENTS).form(form)).await);
    assert_eq!(position(&ok(call(&server, EVENTS).form(form)).await), first);
    hears_once(&mut socket).await;
}

#[tokio::test]
async fn a_bulk_has_one_key_and_a_position_for_each_event() {
    let server = TestServer::start();
    let (mut public, mut private) = (listener(&server).await, Socket::connect(&server, V2).await);
    let ticket = token(&App::seeded(), &json!({ "listen": ["private:*"] }));
    private.join("private:test-app", json!({ "guardian_token": ticket })).await;
    let to = |scope: &str, n: u32| json!({ "topic": format!("{scope}:test-app:t"), "event": "e", "payload": { "n": n } });
    let events = json!([to("public", 1), to("private", 2), to("public", 3)]);
    let bulk = json!({ "events": events, "idempotency_key": "k", "position": true });
    let first = ok(call(&server, BULK).json(&bulk)).await;
    let answer: Value = serde_json::from_str(&first).expect("JSON");
    let positions: Vec<&str> =
        answer["positions"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(answer, json!({ "positions": positions }));
    let parts: Vec<_> = positions.iter().filter_map(|position| position.split_once(':')).collect();
    let [(public_epoch, one), (private_epoch, _), (same_epoch, two)] = parts[..] else {
        panic!("{first}")
    };
    assert_eq!(public_epoch, same_epoch);
    assert_ne!(public_epoch, private_epoch);
    assert_eq!(one.parse::<u64>().map(|one| one + 1), two.parse());

    assert_eq!(ok(call(&server, BULK).json(&bulk)).await, first);
    let plain = json!({ "events": events, "idempotency_key": "k" });
    assert_eq!(ok(call(&server, BULK).json(&plain)).await, "{}");
    let shuffled = json!([to("public", 3), to("private", 2), to("public", 1)]);
    let fewer = json!([to("public", 1), to("private", 2)]);
    for events in [shuffled, fewer] {
        let other = json!({ "events": events, "idempotency_key": "k" });
        assert_eq!(told(call(&server, BULK).json(&other)).await, other_content());
    }
    for n in [1, 3] {
        assert_eq!(public.next().await, json!([null, null, TOPIC, "t:e", { "n": n }]));
    }
    let heard = json!([null, null, "private:test-app", "t:e", { "n": 2 }]);
    assert_eq!(private.next().await, heard);
    public.assert_quiet().await;
    private.assert_quiet().await;
}

#[tokio::test]
async fn of_twenty_at_once_one_is_delivered() {
    let server = TestServer::start();
    let mut socket = listener(&server).await;
    for round in 0..5 {
        let more = json!({ "idempotency_key": format!("round {round}"), "position": true });
        let calls = (0..20).map(|nth| {
            let path = if nth % 2 == 0 { EVENTS } else { PUBLISH };
            tokio::spawn(ok(call(&server, path).json(&event(path, more.clone()))))
        });
        let mut positions = BTreeSet::new();
        for call in calls.collect::<Vec<_>>() {
            positions.insert(position(&call.await.expect("an answer")));
        }
        assert_eq!(positions.len(), 1, "{positions:?}");
        assert_eq!(socket.next().await, json!([null, null, TOPIC, "room:msg", {"a": 1}]));
    }
    socket.assert_quiet().await;
}

#[tokio::test]
async fn apps_and_visitors_have_keys_of_their_own() {
    let server = TestServer::start();
    let app = App::seeded();
    let other = server.create_app(json!({ "name": "other-app" })).await;
    let bearer = |claims: Value| {
        let all = merged(json!({ "publish": ["public:*"] }), claims);
        request("POST", server.url(EVENTS)).bearer(&token(&app, &all))
    };
    let with = |payload: Value| json!({ "topic": "room", "event": "msg", "payload": payload, "idempotency_key": "k" });
    // Each owner publishes an event of its own with the same key, and repeats it.
    let owners: [(&str, &dyn Fn() -> Request); 8] = [
        ("a visitor", &|| bearer(json!({ "sub": 1 }))),
        ("another visitor", &|| bearer(json!({ "sub": 2 }))),
        ("a token without a subject", &|| bearer(json!({}))),
        ("another such token", &|| bearer(json!({ "exp": 4_000_000_000_i64 }))),
        ("the application's token", &|| bearer(json!({ "aud": "trigger" }))),
        ("the application's token for a job", &|| bearer(json!({ "aud": "trigger", "sub": 1 }))),
        ("the application", &|| call(&server, EVENTS)),
        ("another app", &|| {
            let events = server.url("/api/apps/other-app/events");
            request("POST", events).basic(&other.key, &other.secret)
        }),
    ];
    let mut socket = listener(&server).await;
    for (nth, (who, call)) in owners.iter().enumerate() {
        for _ in 0..2 {
            assert_eq!(
                told(call().json(&with(json!({ "n": nth })))).await,
                (200, json!({})),
                "{who}"
            );
        }
        let changed = told(call().json(&with(json!({ "n": "other" })))).await;
        assert_eq!(changed, other_content(), "{who}");
    }
    for nth in 0..owners.len() - 1 {
        assert_eq!(socket.next().await, json!([null, null, TOPIC, "room:msg", { "n": nth }]));
    }
    socket.assert_quiet().await;

    // A visitor's key outlives the token, because it belongs to the subject.
    let renewed = bearer(json!({ "sub": 1, "exp": 4_000_000_000_i64 }));
    assert_eq!(told(renewed.json(&with(json!({ "n": "other" })))).await, other_content());
}

#[tokio::test]
async fn a_caller_that_may_not_publish_learns_nothing_of_keys() {
    let server = TestServer::start();
    let app = App::seeded();
    let mine = event(EVENTS, json!({ "idempotency_key": "k", "position": true }));
    let visitor = |publish: &str| {
        let claims = json!({ "sub": 1, "publish": [publish] });
        request("POST", server.url(EVENTS)).bearer(&token(&app, &claims))
    };
    for published in [call(&server, EVENTS), visitor("public:*")] {
        position(&ok(published.json(&mine)).await);
    }
    let (mut same, mut other) = (mine.clone(), mine.clone());
    same["position"] = json!(true);
    other["event"] = json!("other");
    for body in [same, other] {
        let forbidden =
            json!({ "errors": { "detail": "the token does not permit publishing there" } });
        assert_eq!(told(visitor("private:*").json(&body)).await, (403, forbidden));
        let stranger = request("POST", server.url(EVENTS)).basic(&app.key, "wrong").json(&body);
        let unknown = json!({ "errors": { "detail": "authentication required" } });
        assert_eq!(told(stranger).await, (401, unknown));
    }
}

#[tokio::test]
async fn bad_keys_and_flags_are_faults_of_their_fields() {
    let server = TestServer::start();
    let mut socket = listener(&server).await;
    let (longest, too_long) = ("k".repeat(128), "k".repeat(129));
    let key = |key: Value| json!({ "idempotency_key": key });
    let flag = |flag: Value| json!({ "position": flag });
    for (more, field, fault) in [
        (key(json!("")), "idempotency_key", "must not be empty"),
        (key(json!(too_long)), "idempotency_key", "is too long: at most 128 bytes"),
        (key(json!(1)), "idempotency_key", "must be a string"),
        (key(json!(["k"])), "idempotency_key", "must be a string"),
        (key(json!(true)), "idempotency_key", "must be a string"),
        (flag(json!(1)), "position", "must be true or false"),
        (flag(json!("yes")), "position", "must be true or false"),
        (flag(json!({})), "position", "must be true or false"),
    ] {
        for path in [EVENTS, PUBLISH] {
            let answer = told(call(&server, path).json(&event(path, more.clone()))).await;
            assert_eq!(answer, invalid(field, fault), "{path} {more}");
        }
        let mut bulk = more.clone();
        bulk["events"] = json!([event(PUBLISH, json!({}))]);
        let answer = told(call(&server, BULK).json(&bulk)).await;
        assert_eq!(answer, invalid(field, fault), "{more}");
    }
    let all = json!({ "topic": "room", "event": "", "idempotency_key": 1, "position": 1 });
    let faults = json!({ "errors": {
        "event": ["must not be empty"],
        "idempotency_key": ["must be a string"],
        "position": ["must be true or false"],
    } });
    assert_eq!(told(call(&server, EVENTS).json(&all)).await, (422, faults));
    let within = json!({ "events": [event(PUBLISH, json!({ "idempotency_key": "k" }))] });
    let beside = "0: idempotency_key must stand beside events, one for all of them";
    assert_eq!(told(call(&server, BULK).json(&within)).await, invalid("events", beside));
    for form in [
        format!("topic=room&event=msg&idempotency_key={too_long}"),
        "topic=room&event=msg&idempotency_key=".into(),
        "topic=room&event=msg&idempotency_key[]=k".into(),
        "topic=room&event=msg&position=yes".into(),
    ] {
        assert_eq!(call(&server, EVENTS).form(&form).send().await.status, 422, "{form}");
    }
    socket.assert_quiet().await;
    ok(call(&server, EVENTS).json(&event(EVENTS, key(json!(longest))))).await;
    hears_once(&mut socket).await;
}

#[tokio::test]
async fn a_repetition_also_says_how_many_were_skipped() {
    let server = TestServer::start();
    let mut old = Socket::connect(&server, V1).await;
    old.join(TOPIC, json!({})).await;
    let bytes =
        json!({ "topic": "room", "event": "e", "payload_base64": "AP8=", "idempotency_key": "k" });
    let mut asks = bytes.clone();
    asks["position"] = json!(true);
    assert_eq!(told(call(&server, EVENTS).json(&bytes)).await, (200, json!({ "skipped": 1 })));
    // This client would be skipped as well if the event were published again.
    let mut late = Socket::connect(&server, V1).await;
    late.join(TOPIC, json!({})).await;
    assert_eq!(told(call(&server, EVENTS).json(&bytes)).await, (200, json!({ "skipped": 1 })));
    let (status, answer) = told(call(&server, EVENTS).json(&asks)).await;
    assert_eq!((status, &answer["skipped"]), (200, &json!(1)));
    assert!(answer["position"].is_string() && answer.as_object().is_some_and(|all| all.len() == 2));
    let text = merged(bytes, json!({ "payload_base64": null }));
    assert_eq!(told(call(&server, EVENTS).json(&text)).await, other_content());
}

/// A bulk of three events. A server that allows two publications at once lets it wait until it is refused.
fn endless(key: &str) -> Value {
    let events = vec![json!({ "topic": ROOM, "event": "msg", "payload": { "a": 1 } }); 3];
    json!({ "events": events, "idempotency_key": key })
}

#[tokio::test]
async fn a_key_is_free_again_after_a_refusal() {
    let server = TestServer::start_with(|settings| {
        settings.limits.publications_in_flight_max = 2;
        settings.socket.topic_timeout = Duration::from_millis(200);
    });
    let mut socket = listener(&server).await;
    let calls = (0..3).map(|_| tokio::spawn(call(&server, BULK).json(&endless("k")).send()));
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.expect("an answer").status, 503);
    }
    socket.assert_quiet().await;
    let one = event(PUBLISH, json!({ "idempotency_key": "k" }));
    assert_eq!(ok(call(&server, PUBLISH).json(&one)).await, "{}");
    hears_once(&mut socket).await;
}

/// Sends a bulk that waits, and holds its key meanwhile.
async fn hold_key(server: &TestServer, key: &str) -> TcpStream {
    let body = endless(key).to_string();
    let (secret, length) = (App::seeded().secret, body.len());
    let head = format!("POST {BULK} HTTP/1.1\r\nhost: h\r\nauthorization: {secret}\r\n");
    let rest = format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
    let mut client = raw::connect(server).await;
    client.write_all(format!("{head}{rest}").as_bytes()).await.expect("a request");
    client
}

#[tokio::test]
async fn a_key_is_free_again_when_its_client_is_gone() {
    let server = TestServer::start_with(|settings| {
        settings.limits.publications_in_flight_max = 2;
        settings.socket.topic_timeout = Duration::from_secs(600);
    });
    let mut socket = listener(&server).await;
    let attempt = async |key: &str| {
        let event = event(PUBLISH, json!({ "idempotency_key": key }));
        call(&server, PUBLISH).json(&event).send().await.status
    };
    // An attempt that overtakes the bulk finds the key free and publishes. Then another key is tried.
    let claimed = async {
        let mut nth = 0;
        loop {
            nth += 1;
            let key = format!("key {nth}");
            let client = hold_key(&server, &key).await;
            match attempt(&key).await {
                422 => return (client, key),
                status => assert_eq!(status, 200),
            }
            hears_once(&mut socket).await;
        }
    };
    let (client, key) = timeout(DEADLINE, claimed).await.expect("a claim in time");
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("a reset");
    drop(client);
    let freed = repeat_until(async || attempt(&key).await == 200);
    timeout(DEADLINE, freed).await.expect("a free key in time");
    hears_once(&mut socket).await;
}
