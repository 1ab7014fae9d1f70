//! Section 14.8 of the protocol document: payloads of bytes in binary frames, compared byte for byte. The entries
//! that Herald does not implement, 119 and 120, are in `conformance::entries`.

use crate::support::{http::Answer, tokens::token, *};
use base64::{Engine, engine::general_purpose::STANDARD};
use herald::app::Slug;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

const TOPIC: &str = "public:test-app";
const ROOM: &str = "public:test-app:room";

/// Bytes that no text could hold, and bytes that JSON would have to escape.
const PAYLOAD: &[u8] = b"\x00\xff\xfe\"\\{\r\n\x80";

/// A push as phoenix.js encodes it: kind 0.
fn push([join_ref, reference, topic, event]: [&str; 4], payload: &[u8]) -> Message {
    let names = [join_ref, reference, topic, event];
    let lengths = names.map(|name| u8::try_from(name.len()).expect("a short name"));
    Message::binary([&[0], &lengths[..], names.concat().as_bytes(), payload].concat())
}

/// A broadcast as phoenix.js reads it: kind 2.
fn broadcast(topic: &str, event: &str, payload: &[u8]) -> Message {
    let lengths = [topic, event].map(|name| u8::try_from(name.len()).expect("a short name"));
    let names = [topic, event].concat();
    Message::binary([&[2], &lengths[..], names.as_bytes(), payload].concat())
}

async fn joined(server: &TestServer, vsn: &str, topic: &str) -> Socket {
    let mut socket = Socket::connect(server, vsn).await;
    socket.join(topic, json!({})).await;
    socket
}

/// Triggers with the seeded app's key and secret.
async fn trigger(server: &TestServer, event: &Value) -> (u16, Value) {
    let app = App::seeded();
    let call = request("POST", server.url("/api/apps/test-app/events"));
    told(call.basic(&app.key, &app.secret).json(event).send().await)
}

/// Triggers with the seeded app's secret alone.
async fn publish(server: &TestServer, path: &str, body: &Value) -> (u16, Value) {
    let call = request("POST", server.url(path));
    told(call.header("authorization", &App::seeded().secret).json(body).send().await)
}

fn told(answer: Answer) -> (u16, Value) {
    (answer.status, answer.json())
}

#[tokio::test]
async fn e118_e121_a_push_of_bytes_is_broadcast_as_bytes_to_the_sender_too() {
    let server = TestServer::start();
    let (mut sender, mut other) =
        (joined(&server, V2, TOPIC).await, joined(&server, V2, ROOM).await);
    sender.send(push(["1", "2", TOPIC, "room:bin"], PAYLOAD)).await;
    assert_eq!(sender.message().await, broadcast(TOPIC, "room:bin", PAYLOAD));
    assert_eq!(other.message().await, broadcast(ROOM, "bin", PAYLOAD));
    other.send(push(["1", "2", ROOM, "bin"], b"")).await;
    assert_eq!(sender.message().await, broadcast(TOPIC, "room:bin", b""));
    assert_eq!(other.message().await, broadcast(ROOM, "bin", b""));
    sender.send(push(["1", "2", TOPIC, "bin"], b"{\"n\":1}")).await;
    assert_eq!(sender.message().await, broadcast(TOPIC, "bin", b"{\"n\":1}"));
    assert_eq!(other.message().await, broadcast(ROOM, "#general:bin", b"{\"n\":1}"));
    for socket in [&mut sender, &mut other] {
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e121_a_broadcast_is_as_worked_out() {
    let server = TestServer::start_with(|settings| settings.single_app = Slug::parse("test-app"));
    let mut socket = joined(&server, V2, "public:bin").await;
    let body = json!({ "topic": "public:bin", "event": "binbc", "payload_base64": "Bw==" });
    assert_eq!(publish(&server, "/api/publish", &body).await, (200, json!({ "skipped": 0 })));
    let expected = Message::binary(b"\x02\x0a\x05public:binbinbc\x07".to_vec());
    assert_eq!(socket.message().await, expected);
}

#[tokio::test]
async fn e122_a_name_too_long_for_its_length_byte_is_refused_at_its_publisher() {
    let server = TestServer::start();
    // 15 + 1 + 200 bytes are the longest topic here; 54 + 1 + 200 the longest event.
    let (c54, c55, c200) = ("c".repeat(54), "c".repeat(55), "c".repeat(200));
    let e200 = "e".repeat(200);
    let longest = format!("{TOPIC}:{c200}");
    let mut long = joined(&server, V2, &longest).await;
    let mut whole = joined(&server, V2, TOPIC).await;
    let event = |topic: &str| json!({ "topic": topic, "event": e200, "payload_base64": "eA" });
    assert_eq!(trigger(&server, &event(&c54)).await, (200, json!({ "skipped": 0 })));
    assert_eq!(whole.message().await, broadcast(TOPIC, &format!("{c54}:{e200}"), b"x"));
    assert_eq!(trigger(&server, &event("#general")).await, (200, json!({ "skipped": 0 })));
    assert_eq!(long.message().await, broadcast(&longest, &format!("#general:{e200}"), b"x"));
    assert_eq!(whole.message().await, broadcast(TOPIC, &e200, b"x"));
    let fault = "is too long: a whole topic, and channel:event, have at most 255 bytes";
    let refused = json!({ "errors": { "event": [fault] } });
    assert_eq!(trigger(&server, &event(&c55)).await, (422, refused));
    // The push itself fits into its frame, but `C:E` would not fit into the frames for the whole scope.
    long.send(push(["1", "7", &longest, &"e".repeat(56)], b"x")).await;
    let reply = json!(["1", "7", longest, "phx_reply",
        { "status": "error", "response": { "reason": "invalid event" } }]);
    assert_eq!(long.next().await, reply);
    for socket in [&mut long, &mut whole] {
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e123_other_kinds_and_heads_longer_than_the_frame_close_with_1011() {
    let server = TestServer::start();
    let mut bystander = joined(&server, V2, TOPIC).await;
    for (case, frame) in [
        ("kind 9", b"\x09\x01\x01\x0f\x0117public:test-appmx".as_slice()),
        ("a reply", b"\x01\x01\x01\x0f\x0212public:test-appok"),
        ("a broadcast", b"\x02\x0f\x01public:test-appmx"),
        ("lengths and nothing else", b"\x00\xff\xff\xff\xff"),
        ("one byte short", b"\x00\x01\x01\x0f\x0317public:test-appms"),
        ("half a head", b"\x00\x01\x01"),
        ("a kind alone", b"\x00"),
        ("nothing", b""),
        ("text", b"[null,\"1\",\"phoenix\",\"heartbeat\",{}]"),
        ("a topic that is not UTF-8", b"\x00\x01\x01\x01\x0117\xffm"),
        ("a long ref", &[b"\x00\x01\x41\x01\x011".as_slice(), &[b'r'; 65], b"tm"].concat()),
    ] {
        let mut socket = joined(&server, V2, TOPIC).await;
        socket.send(Message::binary(frame.to_vec())).await;
        assert_eq!(socket.closed().await, 1011, "{case}");
    }
    bystander.assert_quiet().await;
}

#[tokio::test]
async fn e124_an_empty_join_ref_is_stale() {
    let server = TestServer::start();
    let mut socket = joined(&server, V2, TOPIC).await;
    for join_ref in ["", "2", "null"] {
        socket.send(push([join_ref, "5", TOPIC, "msg"], b"x")).await;
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e125_a_push_to_an_unjoined_topic_is_answered_in_text() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    let refused = r#"{"status":"error","response":{"reason":"unmatched topic"}}"#;
    for (join_ref, reference) in [("1", "5"), ("", ""), ("", "\"")] {
        socket.send(push([join_ref, reference, ROOM, "msg"], b"x")).await;
        let expected = format!(r#"[null,{},"{ROOM}","phx_reply",{refused}]"#, json!(reference));
        assert_eq!(socket.frame().await, expected);
    }
    socket.send(push(["", "", "phoenix", "heartbeat"], b"")).await;
    let ok = r#"[null,"","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(socket.frame().await, ok);
}

#[tokio::test]
async fn e126_lengths_count_bytes_of_utf_8() {
    let server = TestServer::start();
    let cafe = "public:test-app:caf\u{e9} \u{1f600}";
    let mut socket = joined(&server, V2, cafe).await;
    socket.send(push(["1", "2", cafe, "na\u{ef}ve"], "\u{e9}".as_bytes())).await;
    let expected = [b"\x02\x1a\x06", cafe.as_bytes(), b"na\xc3\xafve\xc3\xa9"].concat();
    assert_eq!(socket.message().await, Message::binary(expected));
}

#[tokio::test]
async fn bytes_reach_version_2_over_a_websocket_in_order_and_the_answer_counts_the_others() {
    let server = TestServer::start_with(|settings| settings.server.workers = 2);
    let (mut v1, mut v2) = (joined(&server, V1, TOPIC).await, joined(&server, V2, TOPIC).await);
    v1.join(ROOM, json!({})).await;
    let bytes = STANDARD.encode(PAYLOAD);
    let event = |topic: &str, scope: &str| json!({ "topic": topic, "event": "msg", "scope": scope, "payload_base64": bytes });
    let text = json!({ "topic": "room", "event": "text" });
    for (case, event, expected) in [
        (
            "`room` would reach both joins of version 1",
            event("room", "public"),
            json!({ "skipped": 2 }),
        ),
        ("`other` would reach one of them", event("other", "public"), json!({ "skipped": 1 })),
        ("`#general` would reach both", event("#general", "public"), json!({ "skipped": 2 })),
        ("there is no subscriber", event("room", "private"), json!({ "skipped": 0 })),
        ("an object skips nobody", text.clone(), json!({})),
    ] {
        assert_eq!(trigger(&server, &event).await, (200, expected), "{case}");
    }
    for event in ["room:msg", "other:msg", "msg"] {
        assert_eq!(v2.message().await, broadcast(TOPIC, event, PAYLOAD));
    }
    assert_eq!(v2.next().await, json!([null, null, TOPIC, "room:text", {}]));
    let mut heard = [v1.next().await, v1.next().await];
    heard.sort_by_key(|frame| frame[2].as_str().map(str::len));
    assert_eq!(heard[0], json!([null, null, TOPIC, "room:text", {}]));
    assert_eq!(heard[1], json!([null, null, ROOM, "text", {}]));
    v2.send(push(["1", "2", TOPIC, "room:bin"], PAYLOAD)).await;
    assert_eq!(v2.message().await, broadcast(TOPIC, "room:bin", PAYLOAD));
    for socket in [&mut v1, &mut v2] {
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn every_trigger_takes_bytes() {
    let server = TestServer::start();
    let mut socket = joined(&server, V2, TOPIC).await;
    let app = App::seeded();
    let form = "topic=room&event=msg&payload_base64=AP%2B%2F";
    let call = request("POST", server.url("/api/apps/test-app/events"));
    let answer = call.basic(&app.key, &app.secret).form(form).send().await;
    assert_eq!(told(answer), (200, json!({ "skipped": 0 })));
    assert_eq!(socket.message().await, broadcast(TOPIC, "room:msg", b"\x00\xff\xbf"));

    let event = json!({ "topic": TOPIC, "event": "msg", "payload_base64": "AP8" });
    assert_eq!(publish(&server, "/api/publish", &event).await, (200, json!({ "skipped": 0 })));
    assert_eq!(socket.message().await, broadcast(TOPIC, "msg", b"\x00\xff"));

    let mut v1 = joined(&server, V1, TOPIC).await;
    let text = json!({ "topic": TOPIC, "event": "text", "payload": { "n": 1 } });
    let events = json!({ "events": [event, text, event] });
    let answer = publish(&server, "/api/publish/bulk", &events).await;
    assert_eq!(answer, (200, json!({ "skipped": 2 })));
    assert_eq!(socket.message().await, broadcast(TOPIC, "msg", b"\x00\xff"));
    assert_eq!(socket.next().await, json!([null, null, TOPIC, "text", { "n": 1 }]));
    assert_eq!(socket.message().await, broadcast(TOPIC, "msg", b"\x00\xff"));
    assert_eq!(v1.next().await, json!([null, null, TOPIC, "text", { "n": 1 }]));

    let answer = publish(&server, "/api/publish/bulk", &json!({ "events": [text] })).await;
    assert_eq!(answer, (200, json!({})));
    assert_eq!(socket.next().await, json!([null, null, TOPIC, "text", { "n": 1 }]));
    v1.next().await;
    for socket in [&mut v1, &mut socket] {
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_trigger_that_holds_no_bytes_publishes_nothing() {
    let server = TestServer::start();
    let mut socket = joined(&server, V2, TOPIC).await;
    let invalid = |fault: &str| json!({ "errors": { "payload_base64": [fault] } });
    for (case, fields, expected) in [
        (
            "both",
            json!({ "payload": {}, "payload_base64": "eA==" }),
            invalid("cannot come together with payload"),
        ),
        ("no base64", json!({ "payload_base64": "e" }), invalid("is not valid base64")),
        ("base64url", json!({ "payload_base64": "-__-" }), invalid("is not valid base64")),
        ("no string", json!({ "payload_base64": [7] }), invalid("must be a string")),
    ] {
        let mut event = json!({ "topic": "room", "event": "msg" });
        event.as_object_mut().expect("an object").extend(fields.as_object().cloned().expect("one"));
        assert_eq!(trigger(&server, &event).await, (422, expected), "{case}");
        event["topic"] = json!(TOPIC);
        let good = json!({ "topic": TOPIC, "event": "msg", "payload_base64": "eA" });
        let answer =
            publish(&server, "/api/publish/bulk", &json!({ "events": [good, event] })).await;
        assert_eq!(answer.0, 422, "{case}, in bulk");
    }
    socket.assert_quiet().await;
}

#[tokio::test]
async fn the_limits_of_payloads_are_those_of_their_bytes() {
    let server = TestServer::start_with(|settings| {
        settings.limits.trigger_payload_bytes_max = 100;
        settings.limits.client_event_bytes_max = 10;
    });
    let mut socket = joined(&server, V2, TOPIC).await;
    let bearer = token(&App::seeded(), &json!({ "publish": ["public:*"] }));
    for (case, bytes, is_client, expected) in [
        ("a trigger at the limit", 100, false, (200, json!({ "skipped": 0 }))),
        (
            "beyond",
            101,
            false,
            (413, json!({ "errors": { "detail": "payload is larger than 100 bytes" } })),
        ),
        ("a client's at the limit", 10, true, (200, json!({ "skipped": 0 }))),
        (
            "beyond",
            11,
            true,
            (413, json!({ "errors": { "detail": "payload is larger than 10 bytes" } })),
        ),
    ] {
        let payload = vec![0; bytes];
        let event =
            json!({ "topic": "room", "event": "msg", "payload_base64": STANDARD.encode(&payload) });
        let call = request("POST", server.url("/api/apps/test-app/events"));
        let app = App::seeded();
        let call = match is_client {
            true => call.bearer(&bearer),
            false => call.basic(&app.key, &app.secret),
        };
        let answer = told(call.json(&event).send().await);
        assert_eq!(answer, expected, "{case}");
        if expected.0 == 200 {
            assert_eq!(socket.message().await, broadcast(TOPIC, "room:msg", &payload), "{case}");
        }
    }
    socket.send(push(["1", "4", TOPIC, "msg"], &[7; 10])).await;
    assert_eq!(socket.message().await, broadcast(TOPIC, "msg", &[7; 10]));
    socket.send(push(["1", "5", TOPIC, "msg"], &[7; 11])).await;
    let reply = json!(["1", "5", TOPIC, "phx_reply",
        { "status": "error", "response": { "reason": "payload too large" } }]);
    assert_eq!(socket.next().await, reply);
    socket.assert_quiet().await;
}

#[tokio::test]
async fn e145_long_poll_takes_bytes_and_is_sent_none() {
    let server = TestServer::start();
    let mut socket = joined(&server, V2, TOPIC).await;
    let mut poller = Poller::connect(&server, V2).await;
    let frame = push(["1", "2", TOPIC, "bin"], PAYLOAD).into_data();
    let lines = [
        json!(["1", "1", TOPIC, "phx_join", {}]).to_string(),
        STANDARD.encode(frame),
        json!(["1", "3", TOPIC, "text", {}]).to_string(),
    ];
    assert_eq!(poller.post_batch(&lines.join("\n")).await, 200);
    assert_eq!(socket.message().await, broadcast(TOPIC, "bin", PAYLOAD));
    assert_eq!(socket.next().await, json!([null, null, TOPIC, "text", {}]));
    let event = json!({ "topic": "room", "event": "msg", "payload_base64": "eA==" });
    assert_eq!(trigger(&server, &event).await, (200, json!({ "skipped": 1 })));
    let event = json!({ "topic": "room", "event": "end" });
    assert_eq!(trigger(&server, &event).await, (200, json!({})));
    let ok = r#"{"status":"ok","response":{}}"#;
    for expected in [
        format!(r#"["1","1","{TOPIC}","phx_reply",{ok}]"#),
        format!(r#"[null,null,"{TOPIC}","text",{{}}]"#),
        format!(r#"[null,null,"{TOPIC}","room:end",{{}}]"#),
    ] {
        assert_eq!(poller.next().await, Some(expected));
    }
}
