//! Joins, events and heartbeats at their limits.

use super::*;

#[test]
fn a_session_joins_up_to_the_maximum_of_topics_and_a_rejoin_needs_no_further_place() {
    let mut talk = Talk::v2();
    talk.say(r#"["1","1","public:foo-app:a","phx_join",{}]"#);
    talk.say(r#"["2","2","public:foo-app:b","phx_join",{}]"#);
    talk.say(r#"["5","5","public:bar-app","phx_join",{}]"#);
    let refused = r#"["3","3","public:foo-app:c","phx_reply",{"status":"error","response":{"reason":"too many channels joined"}}]"#;
    assert_eq!(talk.say(r#"["3","3","public:foo-app:c","phx_join",{}]"#), [refused]);
    assert_eq!(talk.ask(r#"["4","4","public:foo-app:b","phx_join",{}]"#), ["subscribe 1/public/b"]);
}

/// A conversation under the default rates.
fn paced() -> Talk {
    let (client_events_max, joins_max) = (PerSecond(30), PerSecond(200));
    let rules = of(admission::Rules { client_events_max, joins_max, ..shared_rules() });
    let conversation = PhoenixConversation::new(
        Version::V2,
        Transport::WebSocket,
        ConnectCredentials::default(),
        rules.clone(),
    );
    Talk { conversation, rules }
}

#[test]
fn thirty_events_within_a_second_are_published_and_the_next_is_refused() {
    let mut talk = paced();
    talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    let push = r#"["1","2","public:foo-app","msg",{}]"#;
    for nth in 0..30 {
        assert_eq!(talk.say(push), ["publish 1/public/#general msg {}"], "{nth}");
    }
    let refused = r#"["1","2","public:foo-app","phx_reply",{"status":"error","response":{"reason":"too many events"}}]"#;
    assert_eq!(talk.say(push), [refused]);
    assert_eq!(talk.push(["1", "2", "public:foo-app", "msg"], b"x"), [refused], "bytes as well");
    let ok = r#"[null,"3","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(talk.say(r#"[null,"3","phoenix","heartbeat",{}]"#), [ok], "it goes on");
    let later = talk.conversation.received(Received::Text(push.into()), NOW_S + 0.1);
    assert_eq!(shown(&later[0]), "publish 1/public/#general msg {}");
}

#[test]
fn two_hundred_joins_within_a_second_are_judged_and_the_next_is_refused_whatever_it_brings() {
    let mut talk = paced();
    let join = r#"["1","1","private:foo-app","phx_join",{"guardian_token":"bad"}]"#;
    let reply = |response: &str| {
        format!(
            r#"["1","1","private:foo-app","phx_reply",{{"status":"error","response":{response}}}]"#
        )
    };
    for nth in 0..200 {
        assert_eq!(talk.say(join), [reply(r#"{"error":"invalid_token"}"#)], "{nth}");
    }
    assert_eq!(talk.say(join), [reply(r#"{"reason":"too many joins"}"#)]);
    let later = talk.conversation.received(Received::Text(join.into()), NOW_S + 0.1);
    assert_eq!(shown(&later[0]), reply(r#"{"error":"invalid_token"}"#));
}

#[test]
fn e070_heartbeats_alone_are_answered_while_the_broker_is_asked() {
    let reply = r#"[null,"9","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    let mut talk = Talk::v2();
    talk.ask(r#"["1","1","public:foo-app","phx_join",{}]"#);
    let long = format!(r#"[null,"9","phoenix","heartbeat",{{"x":"{}"}}]"#, "x".repeat(512));
    for (case, text, expected) in [
        ("a heartbeat", r#"[null,"9","phoenix","heartbeat",{}]"#, Some(reply)),
        ("its join_ref is not echoed", r#"["1","9","phoenix","heartbeat",{}]"#, Some(reply)),
        ("too long to be looked at", &long, None),
        ("spelled as nobody does", r#"[null,"9","phoenix","\u0068eartbeat",{}]"#, None),
        ("another event", r#"[null,"9","phoenix","beat",{}]"#, None),
        ("another topic", r#"["1","9","public:foo-app","heartbeat",{}]"#, None),
        ("another join", r#"["1","9","public:foo-app:heartbeat","phx_join",{}]"#, None),
        ("what cannot be read", r#"[null,"9","phoenix","heartbeat"]"#, None),
        (
            "another version",
            r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"9"}"#,
            None,
        ),
    ] {
        assert_eq!(talk.meanwhile(Received::Text(text.into())).as_deref(), expected, "{case}");
    }
    let binary = Bytes::from_static(b"\0\0\x01\x07\x099phoenixheartbeat");
    assert_eq!(talk.meanwhile(Received::Binary(binary)).as_deref(), Some(reply));
    let joined = r#"["1","1","public:foo-app","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(talk.answer(Ok(())), [joined], "the join has not noticed");
    let text = r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"9"}"#;
    let reply = r#"{"topic":"phoenix","event":"phx_reply","ref":"9","payload":{"status":"ok","response":{}}}"#;
    for received in
        [Received::Text(text.into()), Received::Binary(Bytes::from_static(text.as_bytes()))]
    {
        assert_eq!(Talk::v1().meanwhile(received).as_deref(), Some(reply));
    }
}
