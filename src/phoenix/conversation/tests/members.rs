//! Presence channels.

use super::*;

const ROOM: &str = "presence:foo-app:room";

fn ticket(claims: serde_json::Value) -> serde_json::Value {
    let mut all = json!({"listen": ["presence:foo-app", "presence:foo-app:*"]});
    all.as_object_mut().expect("claims").extend(claims.as_object().expect("claims").clone());
    json!({ "guardian_token": token(all) })
}

#[test]
fn a_client_that_joins_a_presence_channel_is_tracked_by_its_key_with_its_meta() {
    let claims = json!({"sub": 7, "presence": {"name": "Ada"}});
    let mut talk = Talk::v2();
    let join = format!(r#"["1","1","{ROOM}","phx_join",{}]"#, ticket(claims.clone()));
    let subscribed = r#"subscribe 1/presence/room as 7 {"online_at":1700000000000,"name":"Ada"}"#;
    let joined = r#"{"status":"ok","response":{"message":"Joined"}}"#;
    assert_eq!(
        talk.say(&join),
        [subscribed, &format!(r#"["1","1","{ROOM}","phx_reply",{joined}]"#)]
    );
    // The whole scope is a topic like any other.
    let whole = format!(r#"["2","2","presence:foo-app","phx_join",{}]"#, ticket(claims));
    assert_eq!(talk.ask(&whole), ["subscribe 1/presence/*"]);
}

#[test]
fn e168_the_state_carries_the_ref_of_the_join_that_stands() {
    let there = || Joined { members: Some("{\"k\":1}".into()), ..Joined::default() };
    let ok = r#"{"status":"ok","response":{"message":"Joined"}}"#;
    let mut talk = Talk::v2();
    let mut replaced = None;
    for join_ref in ["\"1\"", "7", "null"] {
        let payload = ticket(json!({"sub": "ada"}));
        talk.ask(&format!(r#"[{join_ref},"9","{ROOM}","phx_join",{payload}]"#));
        let stands = if join_ref == "null" { "\"9\"" } else { join_ref };
        let reply = format!(r#"[{join_ref},"9","{ROOM}","phx_reply",{ok}]"#);
        let closed = replaced.map(|old| format!(r#"[{old},{old},"{ROOM}","phx_close",{{}}]"#));
        let state = format!(r#"[{stands},null,"{ROOM}","presence_state",{{"k":1}}]"#);
        let expected: Vec<_> = [reply].into_iter().chain(closed).chain([state]).collect();
        assert_eq!(talk.answer_join(Ok(there())), expected);
        replaced = Some(stands);
    }
    let mut old = Talk::v1();
    let payload = ticket(json!({"sub": "ada"}));
    old.ask(&format!(r#"{{"topic":"{ROOM}","event":"phx_join","payload":{payload},"ref":"1"}}"#));
    let reply = format!(r#"{{"topic":"{ROOM}","event":"phx_reply","ref":"1","payload":{ok}}}"#);
    let state =
        format!(r#"{{"topic":"{ROOM}","event":"presence_state","ref":null,"payload":{{"k":1}}}}"#);
    assert_eq!(old.answer_join(Ok(there())), [reply, state]);
}

#[test]
fn joins_that_cannot_be_tracked_are_refused_with_a_reason() {
    let anonymous = r#"{"reason":"presence needs a sub, id or email of at most 128 bytes"}"#;
    let too_large = r#"{"reason":"presence metadata too large"}"#;
    let too_deep = r#"{"reason":"presence metadata is nested too deeply"}"#;
    let nested = (0..127).fold(json!(1), |inner, _| json!([inner]));
    for (claims, response) in [
        (json!({}), anonymous),
        (json!({"sub": {"id": "k".repeat(129)}}), anonymous),
        (json!({"sub": "ada", "presence": {"a": "x".repeat(1_024)}}), too_large),
        (json!({"sub": "ada", "presence": {"a": [nested]}}), too_deep),
        (json!({"sub": "ada", "listen": []}), "\"authentication_required\""),
    ] {
        let mut talk = Talk::v2();
        let join = format!(r#"["1","1","{ROOM}","phx_join",{}]"#, ticket(claims.clone()));
        let reply =
            format!(r#"["1","1","{ROOM}","phx_reply",{{"status":"error","response":{response}}}]"#);
        assert_eq!(talk.say(&join), [reply], "{claims}");
    }
    let mut talk = Talk::v2();
    talk.ask(&format!(r#"["1","1","{ROOM}","phx_join",{}]"#, ticket(json!({"sub": "ada"}))));
    let reply = format!(
        r#"["1","1","{ROOM}","phx_reply",{{"status":"error","response":{{"reason":"presence channel full"}}}}]"#
    );
    let refused = talk.answer(Err(SubscribeError::TooManyMembers));
    assert_eq!(refused, ["unsubscribe 1/presence/room".to_owned(), reply]);
}

#[test]
fn an_update_replaces_custom_and_is_answered_only_where_it_is_refused() {
    let mut talk = Talk::v2();
    let claims = json!({"sub": "ada", "presence": {"name": "Ada", "custom": 1}});
    talk.say(&format!(r#"["1","1","{ROOM}","phx_join",{}]"#, ticket(claims)));
    let push = |payload: &str| format!(r#"["1","2","{ROOM}","presence_metadata",{payload}]"#);
    let error = |response: &str| {
        format!(r#"["1","2","{ROOM}","phx_reply",{{"status":"error","response":{response}}}]"#)
    };
    let no_custom = error(r#"{"reason":"payload must have a custom"}"#);
    for (payload, expected) in [
        (r#"{"custom":"\ud800"}"#, error(r#"{"reason":"invalid payload"}"#)),
        (r#"{"custom":-1e400}"#, error(r#"{"reason":"invalid payload"}"#)),
        (r#"{"custom":1,"custom":2}"#, error(r#"{"reason":"invalid payload"}"#)),
        (r#"{"custom":[2]}"#, "update 1/presence/room [2]".to_owned()),
        (r#"{"custom":null}"#, "update 1/presence/room null".to_owned()),
        ("{}", no_custom.clone()),
        ("[]", no_custom),
        (
            // The limit on client events in these rules.
            &format!(r#"{{"custom":"{}"}}"#, "x".repeat(40)),
            error(r#"{"reason":"payload too large"}"#),
        ),
    ] {
        assert_eq!(talk.say(&push(payload)), [expected], "{payload}");
    }
    let binary = talk.push(["1", "2", ROOM, "presence_metadata"], b"{\"custom\":1}");
    assert_eq!(binary, [error(r#"{"reason":"payload must have a custom"}"#)]);
    talk.ask(&push(r#"{"custom":3}"#));
    let unavailable = error(r#"{"reason":"unavailable"}"#);
    assert_eq!(talk.answer(Err(SubscribeError::Unavailable)), [unavailable]);
    // An event that its app no longer allows, even before the session receives the change.
    let changed = App { secret: SecretString::from("another-secret-0123"), ..app(1, "foo-app") };
    talk.rules.shared.directory.replace([changed].into_iter().collect());
    assert_eq!(talk.say(&push(r#"{"custom":4}"#)), [error("{}")]);
}
