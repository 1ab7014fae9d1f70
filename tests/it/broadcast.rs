//! Section 14.7 of the protocol document: broadcasts on the wire. The module `audience` tests which subscribers
//! receive them.

use crate::support::*;
use serde_json::{Value, json};

const TOPIC: &str = "public:test-app";

/// A payload that must arrive byte for byte as it was sent: members in their order, numbers and escapes
/// as they were spelled.
const PAYLOAD: &str =
    r#"{"z":1.50,"a":"\u00e9\/","n":null,"big":12345678901234567890,"o":{"b":[]}}"#;

async fn joined(server: &TestServer, vsn: &str) -> Socket {
    let mut socket = Socket::connect(server, vsn).await;
    socket.join(TOPIC, json!({})).await;
    socket
}

async fn trigger_text(server: &TestServer, body: String) -> u16 {
    let app = App::seeded();
    let call = request("POST", server.url("/api/apps/test-app/events"));
    let call = call.basic(&app.key, &app.secret).header("content-type", "application/json");
    call.body(body).send().await.status
}

#[tokio::test]
async fn e107_e109_version_2_hears_an_array_with_both_refs_null_the_sender_too() {
    let server = TestServer::start();
    let (mut sender, mut other) = (joined(&server, V2).await, joined(&server, V2_POLLED).await);
    sender.text(format!(r#"["1","7","{TOPIC}","user_entered",{PAYLOAD}]"#)).await;
    let expected = format!(r#"[null,null,"{TOPIC}","user_entered",{PAYLOAD}]"#);
    for socket in [&mut sender, &mut other] {
        assert_eq!(socket.frame().await, expected);
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e108_e109_version_1_hears_an_object_with_a_null_ref_the_sender_too() {
    let server = TestServer::start();
    let (mut sender, mut other) = (joined(&server, V1).await, joined(&server, V1).await);
    let event = r#""event":"user_entered","ref":"7""#;
    sender.text(format!(r#"{{"topic":"{TOPIC}",{event},"payload":{PAYLOAD}}}"#)).await;
    let payload: Value = serde_json::from_str(PAYLOAD).expect("JSON");
    for socket in [&mut sender, &mut other] {
        let frame = socket.frame().await;
        assert!(frame.contains(PAYLOAD), "the payload keeps its text: {frame}");
        let frame: Value = serde_json::from_str(&frame).expect("JSON");
        let expected =
            json!({ "topic": TOPIC, "event": "user_entered", "ref": null, "payload": payload });
        assert_eq!(frame, expected);
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e113_each_hears_its_own_version_whichever_was_spoken() {
    let server = TestServer::start();
    let (mut v1, mut v2) = (joined(&server, V1).await, joined(&server, V2).await);
    for sender in [V1, V2, "HTTP"] {
        let payload = json!({ "sent by": sender });
        let push = json!([null, "5", TOPIC, "msg", payload]);
        match sender {
            V1 => v1.push(push).await,
            V2 => v2.push(push).await,
            _ => {
                let event = json!({ "topic": "#general", "event": "msg", "payload": payload });
                server.trigger(&App::seeded(), event).await;
            }
        }
        let object: Value = serde_json::from_str(&v1.frame().await).expect("JSON");
        let expected = json!({ "topic": TOPIC, "event": "msg", "ref": null, "payload": payload });
        assert_eq!(object, expected, "{sender}");
        let array = format!(r#"[null,null,"{TOPIC}","msg",{payload}]"#);
        assert_eq!(v2.frame().await, array, "{sender}");
    }
}

#[tokio::test]
async fn e114_a_trigger_looks_like_any_broadcast() {
    let server = TestServer::start();
    let (mut v1, mut v2) = (joined(&server, V1).await, joined(&server, V2).await);
    let mut polled = joined(&server, V2_POLLED).await;
    let body = format!(r#"{{"topic":"foo-topic","event":"msg","payload":{PAYLOAD}}}"#);
    assert_eq!(trigger_text(&server, body).await, 200);
    let expected = format!(r#"[null,null,"{TOPIC}","foo-topic:msg",{PAYLOAD}]"#);
    assert_eq!(v2.frame().await, expected);
    assert_eq!(polled.frame().await, expected);
    let payload: Value = serde_json::from_str(PAYLOAD).expect("JSON");
    let expected = json!([null, null, TOPIC, "foo-topic:msg", payload]);
    assert_eq!(v1.next().await, expected);
    for socket in [&mut v1, &mut v2] {
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e115_publications_of_one_publisher_arrive_in_its_order() {
    let server = TestServer::start();
    let mut sender = joined(&server, V2_POLLED).await;
    let mut listener = joined(&server, V1).await;
    for n in 0..200 {
        sender.push(json!([null, null, TOPIC, "msg", { "n": n }])).await;
    }
    for n in 0..50 {
        let event = json!({ "topic": "t", "event": "msg", "payload": { "n": n } });
        server.trigger(&App::seeded(), event).await;
    }
    for socket in [&mut sender, &mut listener] {
        let mut heard = [Vec::new(), Vec::new()];
        for _ in 0..250 {
            let frame = socket.next().await;
            let from = usize::from(frame[3] == "t:msg");
            heard[from].push(frame[4]["n"].as_u64().expect("a number"));
        }
        let [pushed, triggered] = heard;
        assert!(pushed.into_iter().eq(0..200) && triggered.into_iter().eq(0..50));
    }
}

#[tokio::test]
async fn e116_a_payload_that_is_no_object_is_refused_at_its_publisher() {
    let server = TestServer::start();
    let (mut v1, mut v2) = (joined(&server, V1).await, joined(&server, V2).await);
    let refused = json!({
        "status": "error", "response": { "reason": "payload must be an object" },
    });
    for payload in ["[]", "[{}]", "\"{}\"", "1", "null", "true"] {
        let given: Value = serde_json::from_str(payload).expect("JSON");
        v2.push(json!(["1", "8", TOPIC, "msg", given])).await;
        let reply = json!(["1", "8", TOPIC, "phx_reply", refused]);
        assert_eq!(v2.next().await, reply, "{payload} from version 2");
        v1.push(json!([null, "8", TOPIC, "msg", given])).await;
        let reply = json!([null, "8", TOPIC, "phx_reply", refused]);
        assert_eq!(v1.next().await, reply, "{payload} from version 1");
        // Over HTTP, `null` stands for an empty object, and a string may hold an object.
        if !matches!(payload, "null" | "\"{}\"") {
            let body = format!(r##"{{"topic":"#general","event":"msg","payload":{payload}}}"##);
            assert_eq!(trigger_text(&server, body).await, 422, "{payload} over HTTP");
        }
        for socket in [&mut v1, &mut v2] {
            socket.assert_quiet().await;
        }
    }
}
