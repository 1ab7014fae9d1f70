//! Messages in binary frames.

use super::*;

#[test]
fn a_push_in_a_binary_frame_obeys_the_rules_of_all_pushes() {
    const TOPIC: &str = "public:foo-app:room";
    let error = |refs: &str, response: &str| {
        let reply = format!(r#"{{"status":"error","response":{response}}}"#);
        vec![format!(r#"[{refs},"{TOPIC}","phx_reply",{reply}]"#)]
    };
    let unmatched = error(r#"null,"5""#, r#"{"reason":"unmatched topic"}"#);
    let mut talk = Talk::v2();
    assert_eq!(talk.push(["1", "5", TOPIC, "msg"], b"x"), unmatched, "before the join");
    talk.say(r#"["1","1","public:foo-app:room","phx_join",{}]"#);
    let ok = r#"[null,"","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    let (most, more) = ([7; 32], [7; 33]);
    let published = |payload: &str| vec![format!("publish 1/public/room msg {payload}")];
    for (case, names, payload, expected) in [
        ("heartbeat", ["", "", "phoenix", "heartbeat"], b"".as_slice(), vec![ok.to_owned()]),
        ("ours", ["1", "5", TOPIC, "msg"], b"\0\xff", published(r#"b"\0\xff""#)),
        ("no bytes", ["1", "", TOPIC, "msg"], b"", published("b\"\"")),
        ("what looks like JSON", ["1", "5", TOPIC, "msg"], b"{}", published("b\"{}\"")),
        ("no join_ref", ["", "5", TOPIC, "msg"], b"x", vec![]),
        ("a stale one", ["2", "5", TOPIC, "msg"], b"x", vec![]),
        (
            "a name of the wire's own",
            ["1", "5", TOPIC, "phx_x"],
            b"x",
            error(r#""1","5""#, r#"{"reason":"invalid event"}"#),
        ),
        (
            "the most",
            ["1", "5", TOPIC, "msg"],
            &most,
            published(&format!("b\"{}\"", "\\x07".repeat(32))),
        ),
        (
            "more",
            ["1", "5", TOPIC, "msg"],
            &more,
            error(r#""1","5""#, r#"{"reason":"payload too large"}"#),
        ),
    ] {
        assert_eq!(talk.push(names, payload), expected, "{case}");
    }
    let left = talk.push(["1", "6", TOPIC, "phx_leave"], b"x");
    let reply = format!(r#"["1","6","{TOPIC}","phx_reply",{{"status":"ok","response":{{}}}}]"#);
    let close = format!(r#"["1","1","{TOPIC}","phx_close",{{}}]"#);
    assert_eq!(left, ["unsubscribe 1/public/room", &reply, &close]);
}

#[test]
fn a_join_in_a_binary_frame_brings_no_token_and_has_an_empty_join_ref() {
    let mut talk = Talk::v2();
    let joined = talk.push(["", "1", "public:foo-app", "phx_join"], b"{\"guardian_token\":1}");
    let reply = r#"["","1","public:foo-app","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(joined, ["subscribe 1/public/*", reply]);
    let pushed = talk.push(["", "2", "public:foo-app", "msg"], b"x");
    assert_eq!(pushed, [r#"publish 1/public/#general msg b"x""#]);
    let refused = talk.push(["", "1", "private:foo-app", "phx_join"], b"");
    let reply = r#"["","1","private:foo-app","phx_reply",{"status":"error","response":"authentication_required"}]"#;
    assert_eq!(refused, [reply]);
}

#[test]
fn only_version_2_over_a_websocket_can_be_sent_bytes() {
    for (version, transport, expected) in [
        (Version::V1, Transport::WebSocket, false),
        (Version::V1, Transport::LongPoll, false),
        (Version::V2, Transport::WebSocket, true),
        (Version::V2, Transport::LongPoll, false),
    ] {
        for has_positions in [false, true] {
            let format = version.format(transport, has_positions);
            assert_eq!(format.encode_bytes.is_some(), expected, "{version:?} {transport:?}");
        }
    }
}
