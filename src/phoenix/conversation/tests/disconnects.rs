//! Joins that their application ends.

use super::*;

/// The joins with a token of app 1 that has this `sub`.
fn joins_of(sub: &str) -> Disconnect {
    let raw = serde_json::from_str(sub).expect("JSON");
    Disconnect::Subject { app: AppId(1), subject: Subject::of(raw).expect("a subject") }
}

/// The joins with a token of app 1 whose `sub` has these members.
fn joins_with(members: &str) -> Disconnect {
    let raw = serde_json::from_str(members).expect("JSON");
    Disconnect::Members { app: AppId(1), members: SubjectMembers::of(raw).expect("members") }
}

/// The joins of a place of app 1.
fn joins_at(scope: &str, channel: Option<&str>) -> Disconnect {
    let scope = Scope::parse(scope).expect("a scope");
    let channel = channel.map(|channel| ChannelName::parse(channel).expect("a channel"));
    Disconnect::Place(Place { key: ScopeKey { app: AppId(1), scope }, channel })
}

/// Joins a topic with a token that has this `sub`.
fn join_as(sub: &serde_json::Value, topic: &str, nth: u8) -> String {
    let claims = json!({"sub": sub, "listen": ["private:foo-app:*", "private:bar-app"]});
    let payload = json!({ "guardian_token": token(claims) });
    format!(r#"["{nth}","{nth}","{topic}","phx_join",{payload}]"#)
}

#[test]
fn e100_a_session_of_one_app_is_closed_if_any_of_its_joins_is_meant() {
    for (case, disconnect, is_meant) in [
        ("sub", joins_of("5"), true),
        ("another sub", joins_of(r#""5""#), false),
        ("topic", joins_at("private", Some("a")), true),
        ("another channel", joins_at("private", Some("b")), false),
        ("the scope, which was not joined", joins_at("private", None), false),
        ("another scope", joins_at("public", Some("a")), false),
    ] {
        let mut talk = Talk::v2();
        talk.say(&join_as(&json!(5), "private:foo-app:a", 1));
        talk.say(r#"["2","2","public:foo-app","phx_join",{}]"#);
        let expected: &[&str] = if is_meant { &["close 1001"] } else { &[] };
        assert_eq!(talk.disconnect(&disconnect), expected, "{case}");
    }
}

#[test]
fn a_session_of_several_apps_loses_the_joins_that_are_meant_and_no_other() {
    for version in [Version::V1, Version::V2] {
        for (case, disconnect) in
            [("sub", joins_of("5")), ("topic", joins_at("private", Some("a")))]
        {
            let mut talk = Talk::new(version, ConnectCredentials::default());
            let end = match version {
                Version::V1 => {
                    r#"{"topic":"private:foo-app:a","event":"phx_error","ref":"1","payload":{"reason":"channel_crash"}}"#
                }
                Version::V2 => {
                    r#"["1","1","private:foo-app:a","phx_error",{"reason":"channel_crash"}]"#
                }
            };
            for (sub, topic, nth) in [
                (json!(5), "private:foo-app:a", 1),
                (json!("5"), "private:foo-app:b", 2),
                (json!(5), "private:bar-app", 3),
            ] {
                let mut join = join_as(&sub, topic, nth);
                if version == Version::V1 {
                    join = as_version_1(&join);
                }
                assert_eq!(talk.say(&join).len(), 2, "{case} {topic}");
            }
            let ended = talk.disconnect(&disconnect);
            assert_eq!(ended, ["unsubscribe 1/private/a", end], "{case}");
            assert_eq!(talk.disconnect(&disconnect), [""; 0], "{case}: it is gone");
        }
    }
}

/// The same message as version 1 spells it.
fn as_version_1(message: &str) -> String {
    let parts: serde_json::Value = serde_json::from_str(message).expect("JSON");
    json!({"topic": parts[2], "event": parts[3], "payload": parts[4], "ref": parts[1]}).to_string()
}

#[test]
fn a_token_that_was_not_needed_counts_and_one_that_failed_does_not() {
    let caller = |token: String| ConnectCredentials {
        tokens: TokenPair { token: Some(token.into()), csrf: None },
        ..ConnectCredentials::default()
    };
    for (case, given, expected) in [
        ("not needed", token(json!({"sub": 5})), ["close 1001"].as_slice()),
        ("failed", format!("{}x", token(json!({"sub": 5}))), &[]),
        ("expired", token(json!({"sub": 5, "exp": 1})), &[]),
        ("nobody's", token(json!({})), &[]),
    ] {
        let mut talk = Talk::new(Version::V2, caller(given));
        talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
        assert_eq!(talk.disconnect(&joins_of("5")), expected, "{case}");
    }
}

#[test]
fn a_join_under_way_that_is_meant_is_refused_and_may_be_tried_again() {
    let join = join_as(&json!(5), "private:foo-app:a", 1);
    for (disconnect, is_meant) in [
        (joins_of("5"), true),
        (joins_at("private", Some("a")), true),
        (joins_of("6"), false),
        (joins_at("private", Some("b")), false),
    ] {
        let mut talk = Talk::v2();
        talk.ask(&join);
        assert_eq!(talk.disconnect(&disconnect), [""; 0], "it is answered in its turn");
        let joined = r#"["1","1","private:foo-app:a","phx_reply",{"status":"ok","response":{"message":"Joined"}}]"#;
        let refused = [
            "unsubscribe 1/private/a",
            r#"["1","1","private:foo-app:a","phx_reply",{"status":"error","response":{"reason":"disconnected"}}]"#,
        ];
        let expected: &[&str] = if is_meant { &refused } else { &[joined] };
        assert_eq!(talk.answer(Ok(())), expected, "{disconnect:?}");
        talk.say(r#"[null,"9","private:foo-app:a","phx_leave",{}]"#);
        assert_eq!(talk.say(&join), ["subscribe 1/private/a", joined], "{disconnect:?}");
    }
}

#[test]
fn joins_are_meant_if_the_members_of_their_sub_are() {
    let join = join_as(&json!({"id": 7, "name": "Ada"}), "private:foo-app:a", 1);
    for (disconnect, is_meant) in [
        (joins_with(r#"{"id":7}"#), true),
        (joins_with(r#"{"name":"Ada"}"#), true),
        (joins_with(r#"{"id":7,"name":"Bob"}"#), false),
        (joins_of(r#"{"id":7}"#), false),
    ] {
        let mut talk = Talk::v2();
        talk.say(&join);
        let expected: &[&str] = if is_meant { &["close 1001"] } else { &[] };
        assert_eq!(talk.disconnect(&disconnect), expected, "{disconnect:?}");
    }
}

#[test]
fn the_joins_that_are_meant_are_counted_each_once_also_while_under_way() {
    let mut talk = Talk::v2();
    talk.say(&join_as(&json!(5), "private:foo-app:a", 1));
    // Another app's join keeps the session open.
    talk.say(r#"["2","2","public:bar-app","phx_join",{}]"#);
    talk.ask(&join_as(&json!(5), "private:foo-app:b", 3));
    let mut ended = |disconnect: &Disconnect| talk.disconnect_counted(disconnect).1;
    assert_eq!(ended(&joins_at("private", Some("x"))), 0);
    assert_eq!(ended(&joins_of("5")), 2);
    assert_eq!(ended(&joins_of("5")), 0, "one is gone, the other is refused already");
}

#[test]
fn another_apps_join_under_way_keeps_its_session_open() {
    for is_change in [true, false] {
        let mut talk = Talk::v2();
        talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
        talk.ask(r#"["2","2","public:bar-app","phx_join",{}]"#);
        let ended = match is_change {
            true => talk.change(1, [app(2, "bar-app")].into_iter().collect()),
            false => talk.disconnect(&joins_at("public", None)),
        };
        let crash = r#"["1","1","public:foo-app","phx_error",{"reason":"channel_crash"}]"#;
        assert_eq!(ended, ["unsubscribe 1/public/*", crash]);
        let reply = r#"["2","2","public:bar-app","phx_reply",{"status":"ok","response":{}}]"#;
        assert_eq!(talk.answer(Ok(())), [reply]);
    }
}
