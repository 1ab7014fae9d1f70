//! Section 14.3 of the protocol document: the encoding of messages, and texts that are not messages.

use crate::support::*;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

#[tokio::test]
async fn e039_e043_a_v1_heartbeat_is_answered_with_four_keys() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V1).await;
    socket.text(r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}"#).await;
    let frame: Value = serde_json::from_str(&socket.frame().await).expect("JSON");
    let expected = json!({
        "topic": "phoenix", "event": "phx_reply", "ref": "1",
        "payload": {"status": "ok", "response": {}},
    });
    assert_eq!(frame, expected);
}

#[tokio::test]
async fn e040_e041_a_v2_heartbeat_is_answered_without_join_ref() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    let script = r#"
        > [null,"1","phoenix","heartbeat",{}]
        < [null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]
        > ["9","2","phoenix","heartbeat",{}]
        < [null,"2","phoenix","phx_reply",{"status":"ok","response":{}}]
        > ["9","3","phoenix","heartbeat",[1,2]]
        < [null,"3","phoenix","phx_reply",{"status":"ok","response":{}}]
    "#;
    socket.play(script).await;
}

#[tokio::test]
async fn e042_refs_come_back_as_they_were_sent() {
    let server = TestServer::start();
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(&server, vsn).await;
        for reference in ["7", "null", "\"\"", "\"7\"", "1.50", "true", "\"é\\\"\"", "\"\\n\""] {
            let script = format!(
                r#"
                > [null,{reference},"phoenix","heartbeat",{{}}]
                < [null,{reference},"phoenix","phx_reply",{{"status":"ok","response":{{}}}}]
                "#
            );
            socket.play(&script).await;
        }
    }
}

#[tokio::test]
async fn e043_every_message_to_a_v1_client_has_four_keys() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V1).await;
    for (sent, event) in [
        (
            r#"{"join_ref":"1","topic":"public:test-app","event":"phx_join","payload":{},"ref":"1"}"#,
            "phx_reply",
        ),
        (
            r#"{"join_ref":"1","topic":"public:test-app","event":"c:msg","payload":{},"ref":"2"}"#,
            "c:msg",
        ),
        (
            r#"{"join_ref":"1","topic":"public:test-app","event":"c:msg","payload":[],"ref":"3"}"#,
            "phx_reply",
        ),
        (
            r#"{"join_ref":"1","topic":"public:nowhere","event":"phx_join","payload":{},"ref":"4"}"#,
            "phx_reply",
        ),
        (
            r#"{"join_ref":"1","topic":"public:test-app","event":"phx_leave","payload":{},"ref":"5"}"#,
            "phx_reply",
        ),
        ("", "phx_close"),
    ] {
        if !sent.is_empty() {
            socket.text(sent).await;
        }
        let frame: Value = serde_json::from_str(&socket.frame().await).expect("JSON");
        let mut keys: Vec<_> = frame.as_object().expect("an object").keys().collect();
        keys.sort();
        assert_eq!(keys, ["event", "payload", "ref", "topic"], "{frame}");
        assert_eq!(frame["event"], event, "{frame}");
    }
}

#[tokio::test]
async fn e044_a_v1_client_may_say_which_join_it_means() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V1).await;
    let topic = "public:test-app";
    socket.push(json!(["7", "1", topic, "phx_join", {}])).await;
    let joined = json!([null, "1", topic, "phx_reply", {"status": "ok", "response": {}}]);
    assert_eq!(socket.next().await, joined);
    for stale in ["6", "1"] {
        socket.push(json!([stale, "2", topic, "c:stale", {}])).await;
        socket.push(json!([stale, "3", topic, "phx_leave", {}])).await;
    }
    socket.push(json!(["7", "4", topic, "c:msg", {"x": null}])).await;
    assert_eq!(socket.next().await, json!([null, null, topic, "c:msg", {"x": null}]));
    socket.push(json!(["7", "5", topic, "phx_leave", {}])).await;
    let left = json!([null, "5", topic, "phx_reply", {"status": "ok", "response": {}}]);
    assert_eq!(socket.next().await, left);
    assert_eq!(socket.next().await, json!([null, "7", topic, "phx_close", {}]));
    socket.assert_quiet().await;
}

/// Sends each message over a joined socket of its own, which must be closed with 1011 and without any other frame.
async fn assert_malformed(vsn: &str, messages: &[&str]) {
    let server = TestServer::start();
    for message in messages {
        let mut socket = Socket::connect(&server, vsn).await;
        socket.join("public:test-app", json!({})).await;
        socket.text(*message).await;
        assert_eq!(socket.rest().await, (Vec::new(), 1011), "{vsn}: {message}");
        socket.ended().await;
    }
}

#[tokio::test]
async fn e045_e046_e050_an_invalid_v1_message_closes_the_connection() {
    let messages = [
        r#"{"event":"heartbeat","payload":{},"ref":"1"}"#,
        r#"{"topic":"phoenix","payload":{},"ref":"1"}"#,
        r#"{"topic":"phoenix","event":"heartbeat","ref":"1"}"#,
        r#"{"topic":"phoenix","event":"heartbeat","payload":{}}"#,
        r#"[null,"1","phoenix","heartbeat",{}]"#,
        "[]",
        "{}",
        "null",
        "hello",
        "",
        " ",
        r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"} x"#,
        r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}{}"#,
        r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1""#,
    ];
    assert_malformed(V1, &messages).await;
}

#[tokio::test]
async fn e048_e050_an_invalid_v2_message_closes_the_connection() {
    let messages = [
        r#"["1","1","phoenix","heartbeat"]"#,
        r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}"#,
        "[]",
        "null",
        "1",
        "hello",
        "",
        " ",
        r#"[null,"1","phoenix","heartbeat",{}] x"#,
        r#"[null,"1","phoenix","heartbeat",{}][]"#,
        r#"[null,"1","phoenix","heartbeat",{}"#,
    ];
    assert_malformed(V2, &messages).await;
}

#[tokio::test]
async fn e047_v1_takes_json_in_a_binary_frame() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V1).await;
    let heartbeat = r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}"#;
    socket.send(Message::binary(heartbeat.as_bytes().to_vec())).await;
    let reply = json!([null, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}]);
    assert_eq!(socket.next().await, reply);
}

#[tokio::test]
async fn e049_elements_beyond_the_fifth_are_ignored() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    let script = r#"
        > [null,"1","phoenix","heartbeat",{},{"six":6}]
        < [null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]
        > ["1","2","public:test-app","phx_join",{},null,7]
        < ["1","2","public:test-app","phx_reply",{"status":"ok","response":{}}]
    "#;
    socket.play(script).await;
}

fn part(bytes: &[u8], kind: Data, is_last: bool) -> Message {
    Message::Frame(Frame::message(bytes.to_vec(), OpCode::Data(kind), is_last))
}

#[tokio::test]
async fn e051_a_message_in_pieces_is_put_together() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    let join = r#"["1","é","public:test-app","phx_join",{}]"#;
    let reply = r#"["1","é","public:test-app","phx_reply",{"status":"ok","response":{}}]"#;
    let inside_the_letter = join.find('é').expect("the letter") + 1;
    for cuts in [vec![1], vec![inside_the_letter], vec![0, 3, 3, inside_the_letter, join.len()]] {
        let mut from = 0;
        for (at, cut) in cuts.iter().enumerate() {
            let kind = if at == 0 { Data::Text } else { Data::Continue };
            socket.send(part(&join.as_bytes()[from..*cut], kind, false)).await;
            // A control frame may stand between the pieces.
            socket.send(Message::Frame(Frame::ping(vec![7]))).await;
            assert_eq!(socket.message().await, Message::Pong(vec![7].into()));
            from = *cut;
        }
        socket.send(part(&join.as_bytes()[from..], Data::Continue, true)).await;
        assert_eq!(socket.frame().await, reply, "{cuts:?}");
        socket
            .play(
                r#"
            > ["1","2","public:test-app","phx_leave",{}]
            < ["1","2","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["1","1","public:test-app","phx_close",{}]
        "#,
            )
            .await;
    }
}

#[tokio::test]
async fn e052_text_that_is_not_utf8_closes_the_connection() {
    let server = TestServer::start();
    let latin1 = b"[null,\"\xe9\",\"phoenix\",\"heartbeat\",{}]";
    for (case, frames) in [
        ("whole", vec![part(latin1, Data::Text, true)]),
        ("half a letter at the end", vec![part(b"[\xc3", Data::Text, true)]),
        ("a surrogate", vec![part(b"\"\xed\xa0\x80\"", Data::Text, true)]),
        (
            "in pieces",
            vec![part(&latin1[..8], Data::Text, false), part(&latin1[8..], Data::Continue, true)],
        ),
    ] {
        for vsn in [V1, V2] {
            let mut socket = Socket::connect(&server, vsn).await;
            for frame in frames.clone() {
                socket.send(frame).await;
            }
            assert_eq!(socket.closed().await, 1007, "{vsn}: {case}");
        }
    }
}

#[tokio::test]
async fn e053_a_topic_that_is_no_string_matches_nothing_and_is_echoed() {
    let server = TestServer::start();
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(&server, vsn).await;
        for topic in ["123", "null", "true", r#"["public:test-app"]"#, r#"{"a":1}"#] {
            for event in ["phx_join", "msg"] {
                let script = format!(
                    r#"
                    > ["1","1",{topic},"{event}",{{}}]
                    < [null,"1",{topic},"phx_reply",{{"status":"error","response":{{"reason":"unmatched topic"}}}}]
                    "#
                );
                socket.play(&script).await;
            }
        }
    }
}
