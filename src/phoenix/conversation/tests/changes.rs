//! An app that changes, also while its joins are under way.

use super::*;

#[test]
fn an_app_that_changes_while_its_join_is_under_way_is_not_joined() {
    let mut talk = Talk::v2();
    talk.ask(r#"["1","1","public:foo-app","phx_join",{}]"#);
    talk.rules
        .shared
        .directory
        .replace([App { settings: inactive(), ..app(1, "foo-app") }].into_iter().collect());
    let reply = r#"["1","1","public:foo-app","phx_reply",{"status":"error","response":{"reason":"app changed"}}]"#;
    assert_eq!(talk.answer(Ok(())), ["unsubscribe 1/public/*", reply]);
}

#[test]
fn a_change_that_ends_joins_closes_a_session_of_one_app_and_spares_another_apps() {
    let apps = || [App { settings: inactive(), ..app(1, "foo-app") }, app(2, "bar-app")];
    let mut one = Talk::v2();
    one.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    assert_eq!(one.change(1, apps().into_iter().collect()), ["close 1001"]);
    let mut two = Talk::v2();
    two.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    two.say(r#"["2","2","public:bar-app","phx_join",{}]"#);
    assert_eq!(
        two.change(1, apps().into_iter().collect()),
        [
            "unsubscribe 1/public/*",
            r#"["1","1","public:foo-app","phx_error",{"reason":"channel_crash"}]"#,
        ]
    );
    assert_eq!(
        two.say(r#"["2","3","public:bar-app","msg",{}]"#),
        ["publish 2/public/#general msg {}"]
    );
    assert_eq!(two.change(2, apps().into_iter().collect()), [""; 0], "what is allowed goes on");
}

#[test]
fn claims_hold_until_the_join_ends_also_when_their_token_has_expired() {
    let claims =
        json!({"listen": ["private:foo-app"], "publish": ["private:foo-app"], "exp": NOW_S});
    let payload = json!({ "guardian_token": token(claims) });
    let join = format!(r#"["1","1","private:foo-app","phx_join",{payload}]"#);
    let later_s = NOW_S + 1_000_000.0;
    let mut talk = Talk::v2();
    assert_eq!(talk.say(&join).len(), 2);
    let push = Received::Text(r#"["1","2","private:foo-app","msg",{}]"#.into());
    let published = talk.conversation.received(push, later_s);
    assert_eq!(shown(&published[0]), "publish 1/private/#general msg {}");
    talk.answer(Ok(()));
    assert_eq!(talk.change(1, [app(1, "foo-app")].into_iter().collect()), [""; 0]);
    let again = talk.conversation.received(Received::Text(join.into()), later_s);
    let expired = r#"["1","1","private:foo-app","phx_reply",{"status":"error","response":{"error":"token_expired"}}]"#;
    assert_eq!(shown(&again[0]), expired);
}

#[test]
fn an_event_that_a_change_forbids_is_not_published_even_before_the_session_receives_the_change() {
    let old = || app(1, "foo-app");
    let changed = [
        ("deactivated", App { settings: inactive(), ..old() }),
        ("renamed", app(1, "new-app")),
        ("new secret", App { secret: SecretString::from("another-secret-0123"), ..old() }),
        (
            "no client events",
            App {
                settings: AppSettings {
                    client_events: ClientEvents::None,
                    ..AppSettings::default()
                },
                ..old()
            },
        ),
    ];
    let claims = json!({"listen": ["private:foo-app"], "publish": ["private:foo-app"]});
    let payload = json!({ "guardian_token": token(claims) });
    for (case, changed) in changed {
        let mut talk = Talk::v2();
        talk.say(&format!(r#"["1","1","private:foo-app","phx_join",{payload}]"#));
        let push = r#"["1","2","private:foo-app","msg",{}]"#;
        assert_eq!(talk.say(push), ["publish 1/private/#general msg {}"], "{case}");
        talk.rules.shared.directory.replace([changed].into_iter().collect());
        let denied = r#"["1","2","private:foo-app","phx_reply",{"status":"error","response":{}}]"#;
        assert_eq!(talk.say(push), [denied], "{case}");
    }
}

#[test]
fn a_slug_that_passed_to_another_app_takes_no_subscription_along() {
    let mut talk = Talk::v2();
    talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    // One refresh brings both changes: app 1 was renamed, and app 2 now has its slug.
    talk.rules
        .shared
        .directory
        .replace([app(1, "new-app"), app(2, "foo-app")].into_iter().collect());
    assert_eq!(
        talk.say(r#"["2","2","public:foo-app","phx_join",{}]"#),
        [
            "subscribe 2/public/*",
            "unsubscribe 1/public/*",
            r#"["2","2","public:foo-app","phx_reply",{"status":"ok","response":{}}]"#,
            r#"["1","1","public:foo-app","phx_close",{}]"#,
        ]
    );
}

#[test]
fn a_renamed_apps_new_name_goes_on_hearing_when_its_old_one_ends() {
    let renamed = || [app(1, "new-app"), app(2, "bar-app")];
    let mut talk = Talk::v2();
    talk.say(r#"["9","9","public:bar-app","phx_join",{}]"#);
    talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    talk.rules.shared.directory.replace(renamed().into_iter().collect());
    // The topic was joined by its new name before this session receives the change: the place is
    // the same.
    talk.say(r#"["2","2","public:new-app","phx_join",{}]"#);
    let given_up = |effects: Vec<Effect>| -> Vec<String> {
        let topic = |effect: &Effect| match effect {
            Effect::Unsubscribe(_, topic) => Some(topic.to_string()),
            _ => None,
        };
        effects.iter().filter_map(topic).collect()
    };
    let ended = talk.conversation.app_changed(AppId(1), NOW_S);
    let crash = r#"["1","1","public:foo-app","phx_error",{"reason":"channel_crash"}]"#;
    assert_eq!(ended.iter().map(shown).collect::<Vec<_>>(), ["unsubscribe 1/public/*", crash]);
    assert_eq!(given_up(ended), ["public:foo-app"]);
    let left = Received::Text(r#"["2","3","public:new-app","phx_leave",{}]"#.into());
    let left = talk.conversation.received(left, NOW_S);
    assert_eq!(given_up(left), ["public:new-app"]);
}

#[test]
fn a_rejoin_under_way_is_not_detached_by_the_end_of_the_join_it_replaces() {
    let secret = "another-secret-0123";
    let changed =
        || [App { secret: SecretString::from(secret), ..app(1, "foo-app") }, app(2, "bar-app")];
    let claims = json!({"listen": ["private:foo-app"]});
    let join = |token: String, nth: u8| {
        let payload = json!({ "guardian_token": token });
        format!(r#"["{nth}","{nth}","private:foo-app","phx_join",{payload}]"#)
    };
    let mut talk = Talk::v2();
    talk.say(r#"["9","9","public:bar-app","phx_join",{}]"#);
    talk.say(&join(token(claims.clone()), 1));
    talk.rules.shared.directory.replace(changed().into_iter().collect());
    let fresh = mint(&claims, &SecretString::from(secret), SigningAlgorithm::Hs256);
    assert_eq!(talk.ask(&join(fresh.expect("a token"), 2)), ["subscribe 1/private/*"]);
    let crash = r#"["1","1","private:foo-app","phx_error",{"reason":"channel_crash"}]"#;
    assert_eq!(talk.change(1, changed().into_iter().collect()), [crash]);
    let reply = r#"["2","2","private:foo-app","phx_reply",{"status":"ok","response":{"message":"Joined"}}]"#;
    assert_eq!(talk.answer(Ok(())), [reply]);
}

#[test]
fn claims_of_a_secret_that_was_changed_are_gone_also_where_the_join_stays() {
    let tokens =
        TokenPair { token: Some(token(json!({"publish": ["public:foo-app"]})).into()), csrf: None };
    let mut talk =
        Talk::new(Version::V2, ConnectCredentials { tokens, ..ConnectCredentials::default() });
    let authorized = |secret: &str| App {
        settings: AppSettings::default(),
        secret: SecretString::from(secret),
        ..app(1, "foo-app")
    };
    talk.change(1, [authorized(SECRET)].into_iter().collect());
    talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    let push = r#"["1","2","public:foo-app","msg",{}]"#;
    assert_eq!(talk.say(push), ["publish 1/public/#general msg {}"]);
    assert_eq!(talk.change(1, [authorized("another-secret-0123")].into_iter().collect()), [""; 0]);
    let denied = r#"["1","2","public:foo-app","phx_reply",{"status":"error","response":{}}]"#;
    assert_eq!(talk.say(push), [denied]);
}
