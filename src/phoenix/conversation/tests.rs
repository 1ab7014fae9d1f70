//! Frames in, effects out: the rules of section 5 without a socket.

use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use secrecy::SecretString;
use serde_json::json;

use super::*;
use crate::{
    admission::Judge,
    app::{
        App, AppDirectory, Apps, ClientEvents, Slug,
        refusals::Refusals,
        settings::AppSettings,
        subject::{Subject, SubjectMembers},
        token::{SigningAlgorithm, TokenPair, mint},
    },
    broker::{
        Addressing, ChannelName, Payload, PayloadError, Scope,
        feed::Feed,
        subscriber::{Place, ScopeKey},
    },
    metrics::Metrics,
    phoenix::presence::{self, MetaFault},
    session::{Conversation as _, bucket::PerSecond, places::Places},
};

const NOW_S: f64 = 1_700_000_000.0;
const SECRET: &str = "foo-app-secret-0123";

fn app(id: i32, slug: &str) -> App {
    App {
        id: AppId(id),
        name: slug.to_owned(),
        slug: Slug::parse(slug).expect("a slug"),
        key: "key".to_owned(),
        secret: SecretString::from(SECRET),
        last_use: Default::default(),
        previous: None,
        settings: AppSettings { client_events: ClientEvents::All, ..AppSettings::default() },
        inserted_at: Utc::now(),
        updated_at: Utc::now(),
    }
}

fn inactive() -> AppSettings {
    AppSettings { active: false, ..AppSettings::default() }
}

fn rules() -> Arc<PhoenixRules> {
    of(shared_rules())
}

fn shared_rules() -> admission::Rules {
    let directory = AppDirectory::default();
    directory.replace([app(1, "foo-app"), app(2, "bar-app")].into_iter().collect());
    let metrics = Metrics::new(10);
    let refusals = Arc::new(Refusals::new(Duration::from_secs(60), metrics.clone()));
    admission::Rules {
        feed: Feed::default(),
        directory,
        judge: Judge { refusals },
        channels_max: 3,
        client_event_bytes_max: 32,
        client_events_max: PerSecond(1_000),
        joins_max: PerSecond(1_000),
        app_sessions: Places::new(None),
        metrics,
    }
}

fn of(shared: admission::Rules) -> Arc<PhoenixRules> {
    let shared = Arc::new(shared);
    let judge = TokenJudge {
        addressing: Addressing::ManyApps,
        guardian_secret: None,
        token_bytes_max: 8_192,
        shared: shared.clone(),
    };
    Arc::new(PhoenixRules { shared, judge, ref_bytes_max: 64 })
}

/// A conversation whose broker grants every request at once, with effects as the tests compare
/// them.
struct Talk {
    conversation: PhoenixConversation,
    rules: Arc<PhoenixRules>,
}

impl Talk {
    fn v2() -> Self {
        Self::new(Version::V2, ConnectCredentials::default())
    }

    fn v1() -> Self {
        Self::new(Version::V1, ConnectCredentials::default())
    }

    fn new(version: Version, caller: ConnectCredentials) -> Self {
        let rules = rules();
        let conversation =
            PhoenixConversation::new(version, Transport::WebSocket, caller, rules.clone());
        Self { conversation, rules }
    }

    /// The effects of a message, up to the request to the broker.
    fn ask(&mut self, text: &str) -> Vec<String> {
        let effects = self.conversation.received(Received::Text(text.into()), NOW_S);
        effects.iter().map(shown).collect()
    }

    /// The effects of a push in a binary frame, including those of the broker's grant.
    fn push(&mut self, names: [&str; 4], payload: &[u8]) -> Vec<String> {
        let lengths = names.map(|name| u8::try_from(name.len()).expect("a short name"));
        let frame = [&[0], &lengths[..], names.concat().as_bytes(), payload].concat();
        let effects = self.conversation.received(Received::Binary(frame.into()), NOW_S);
        self.settle(effects.iter().map(shown).collect())
    }

    /// The effects of a message, including those of the broker's grant.
    fn say(&mut self, text: &str) -> Vec<String> {
        let all = self.ask(text);
        self.settle(all)
    }

    fn settle(&mut self, mut all: Vec<String>) -> Vec<String> {
        if all.last().is_some_and(|last| {
            ["subscribe", "publish", "update"].iter().any(|w| last.starts_with(w))
        }) {
            all.extend(self.answer(Ok(())));
        }
        all
    }

    /// The immediate effects of a message that arrives while a request to the broker is pending.
    fn meanwhile(&self, message: Received) -> Option<String> {
        self.conversation.meanwhile(&message).map(|frame| shown(&Effect::Send(frame)))
    }

    fn answer(&mut self, outcome: Result<(), Failure>) -> Vec<String> {
        match self.conversation.pushed.is_some() {
            true => self.conversation.answered(outcome, NOW_S).iter().map(shown).collect(),
            false => self.answer_join(outcome.map(|()| Joined::default())),
        }
    }

    fn answer_join(&mut self, outcome: Result<Joined, Failure>) -> Vec<String> {
        self.conversation.subscribed(outcome, NOW_S).iter().map(shown).collect()
    }

    fn disconnect(&mut self, disconnect: &Disconnect) -> Vec<String> {
        self.disconnect_counted(disconnect).0
    }

    /// The effects, and the number of joins that were ended.
    fn disconnect_counted(&mut self, disconnect: &Disconnect) -> (Vec<String>, usize) {
        let (effects, ended) = self.conversation.disconnected(disconnect);
        (effects.iter().map(shown).collect(), ended)
    }

    fn change(&mut self, id: i32, apps: Apps) -> Vec<String> {
        self.rules.shared.directory.replace(apps);
        self.conversation.app_changed(AppId(id), NOW_S).iter().map(shown).collect()
    }
}

/// An effect in one line: a frame as it is, any other effect in words.
fn shown(effect: &Effect) -> String {
    let place = |place: &Place| {
        let channel = place.channel.as_ref().map_or("*", |channel| channel.as_str());
        format!("{}/{}/{channel}", place.key.app.0, place.key.scope)
    };
    match effect {
        Effect::Send(Frame::Text(text)) => text.to_string(),
        Effect::Send(Frame::Binary(bytes)) => format!("{bytes:?}"),
        Effect::Send(Frame::Split(split)) => format!("{split:?}"),
        Effect::Replay(Replay { frames, members, .. }) => {
            let frames = frames.iter().chain(members);
            let shown: Vec<_> = frames.map(|frame| shown(&Effect::Send(frame.clone()))).collect();
            format!("replay {}", shown.join(" "))
        }
        Effect::Subscribe(Subscription { place: joined, persona, .. }) => match persona {
            None => format!("subscribe {}", place(joined)),
            Some(Persona { key, meta }) => {
                let lasting = presence::lasting(meta);
                let custom = meta.custom.as_ref();
                let custom = custom.map(|custom| format!(",\"custom\":{}", custom.as_str()));
                format!(
                    "subscribe {} as {key} {lasting}{}}}",
                    place(joined),
                    custom.unwrap_or_default()
                )
            }
        },
        Effect::Update(tracked, custom) => {
            format!("update {} {}", place(tracked), custom.as_str())
        }
        Effect::Unsubscribe(left, _) => format!("unsubscribe {}", place(left)),
        Effect::Publish(p) => {
            let destination = p.destination.as_str();
            let payload = match &p.payload {
                Payload::Json(json) => json.as_str().to_owned(),
                Payload::Bytes(bytes) => format!("{bytes:?}"),
            };
            format!("publish {}/{}/{destination} {} {payload}", p.app.0, p.scope, p.event)
        }
        Effect::SignIn(signed_in) => format!("sign in {signed_in:?}"),
        Effect::Remind(after) => format!("remind {after:?}"),
        Effect::Close(close) => format!("close {}", close.code.0),
    }
}

fn token(claims: serde_json::Value) -> String {
    let key = SecretString::from(SECRET);
    mint(&claims, &key, SigningAlgorithm::Hs256).expect("a token")
}

#[test]
fn heartbeats_are_answered_whatever_else_they_say() {
    let ok = r#""phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    for (message, refs) in [
        (r#"[null,"1","phoenix","heartbeat",{}]"#, r#"[null,"1","#),
        (r#"["9","1","phoenix","heartbeat",{}]"#, r#"[null,"1","#),
        (r#"[null,7,"phoenix","heartbeat",null]"#, "[null,7,"),
        (r#"[null,null,"phoenix","heartbeat",{}]"#, "[null,null,"),
    ] {
        assert_eq!(Talk::v2().say(message), [format!("{refs}{ok}")], "{message}");
    }
}

#[test]
fn a_join_is_asked_of_the_broker_before_it_is_answered() {
    let mut talk = Talk::v2();
    let join = r#"["11","1","public:foo-app:room","phx_join",{}]"#;
    assert_eq!(talk.ask(join), ["subscribe 1/public/room"]);
    let reply = r#"["11","1","public:foo-app:room","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(talk.answer(Ok(())), [reply]);
}

#[test]
fn a_broker_that_says_no_refuses_the_join() {
    for (failure, reason) in
        [(Failure::TooManyScopes, "too many scopes"), (Failure::Unavailable, "unavailable")]
    {
        let mut talk = Talk::v2();
        talk.ask(r#"["1","1","public:foo-app","phx_join",{}]"#);
        let reply = format!(
            r#"["1","1","public:foo-app","phx_reply",{{"status":"error","response":{{"reason":"{reason}"}}}}]"#
        );
        assert_eq!(talk.answer(Err(failure)), ["unsubscribe 1/public/*".to_owned(), reply]);
        let unmatched = r#"[null,"2","public:foo-app","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#;
        assert_eq!(talk.say(r#"["1","2","public:foo-app","msg",{}]"#), [unmatched]);
    }
}

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
fn a_topic_that_is_not_joined_is_unmatched_and_left_with_an_ok() {
    let mut talk = Talk::v2();
    let unmatched = r#","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#;
    for (message, expected) in [
        (
            r#"["1","1","public:foo-app","msg",{}]"#,
            format!(r#"[null,"1","public:foo-app"{unmatched}"#),
        ),
        (r#"["1","2","nonsense","phx_join",{}]"#, format!(r#"[null,"2","nonsense"{unmatched}"#)),
        (r#"["1","3",123,"phx_join",{}]"#, format!(r#"[null,"3",123{unmatched}"#)),
        (
            r#"["1","4","public:no-app","phx_join",{}]"#,
            format!(r#"[null,"4","public:no-app"{unmatched}"#),
        ),
        (r#"["1","5","phoenix","phx_join",{}]"#, format!(r#"[null,"5","phoenix"{unmatched}"#)),
        (r#"[null,"6","phoenix","other",{}]"#, format!(r#"[null,"6","phoenix"{unmatched}"#)),
        (r#"["1","7","public:foo-app",5,{}]"#, format!(r#"[null,"7","public:foo-app"{unmatched}"#)),
        (
            r#"["1","8","never","phx_leave",{}]"#,
            r#"["1","8","never","phx_reply",{"status":"ok","response":{}}]"#.to_owned(),
        ),
    ] {
        assert_eq!(talk.say(message), [expected], "{message}");
    }
}

#[test]
fn leaving_is_answered_and_then_closed() {
    let mut talk = Talk::v2();
    talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    assert_eq!(
        talk.say(r#"["1","2","public:foo-app","phx_leave",{}]"#),
        [
            "unsubscribe 1/public/*",
            r#"["1","2","public:foo-app","phx_reply",{"status":"ok","response":{}}]"#,
            r#"["1","1","public:foo-app","phx_close",{}]"#,
        ]
    );
}

#[test]
fn stale_join_refs_meet_silence_and_null_is_never_stale() {
    let mut talk = Talk::v2();
    talk.say(r#"[1,"1","public:foo-app","phx_join",{}]"#);
    for stale in [r#""1""#, "2", r#""""#] {
        assert_eq!(talk.say(&format!(r#"[{stale},"2","public:foo-app","msg",{{}}]"#)), [""; 0]);
        assert_eq!(
            talk.say(&format!(r#"[{stale},"2","public:foo-app","phx_leave",{{}}]"#)),
            [""; 0]
        );
    }
    for meant in ["1", "null"] {
        let push = format!(r#"[{meant},"3","public:foo-app","msg",{{}}]"#);
        assert_eq!(talk.say(&push), ["publish 1/public/#general msg {}"]);
    }
}

#[test]
fn a_duplicate_join_replaces_the_first_and_closes_it_for_version_2_alone() {
    let mut talk = Talk::v2();
    talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    assert_eq!(
        talk.say(r#"["2","2","public:foo-app","phx_join",{}]"#),
        [
            "subscribe 1/public/*",
            r#"["2","2","public:foo-app","phx_reply",{"status":"ok","response":{}}]"#,
            r#"["1","1","public:foo-app","phx_close",{}]"#,
        ]
    );
    let mut old = Talk::v1();
    let join = r#"{"topic":"public:foo-app","event":"phx_join","payload":{},"ref":"1"}"#;
    let reply = r#"{"topic":"public:foo-app","event":"phx_reply","ref":"1","payload":{"status":"ok","response":{}}}"#;
    assert_eq!(old.say(join), ["subscribe 1/public/*", reply]);
    assert_eq!(old.say(join), ["subscribe 1/public/*", reply]);
}

#[test]
fn a_duplicate_join_that_is_refused_ends_the_first_as_well() {
    let mut talk = Talk::v2();
    talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    assert_eq!(
        talk.say(r#"["2","2","public:foo-app","phx_join",{"guardian_token":"a.b.c"}]"#),
        [
            r#"["2","2","public:foo-app","phx_reply",{"status":"error","response":{"error":"invalid_token"}}]"#,
            r#"["1","1","public:foo-app","phx_close",{}]"#,
            "unsubscribe 1/public/*",
        ]
    );
    assert_eq!(
        talk.say(r#"["3","3","public:foo-app","phx_join",{}]"#).len(),
        2,
        "its place is free"
    );
}

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

#[test]
fn pushes_are_addressed_by_topic_and_prefix_and_faults_are_told() {
    let error = |response: &str| {
        format!(
            r#"["1","2","public:foo-app","phx_reply",{{"status":"error","response":{response}}}]"#
        )
    };
    let invalid = error(r#"{"reason":"invalid event"}"#);
    let long = format!(r#""msg",{{"a":"{}"}}"#, "x".repeat(40));
    for (event_and_payload, expected) in [
        (r#""room:msg",{"a":1}"#, r#"publish 1/public/room msg {"a":1}"#.to_owned()),
        (r#""msg",{}"#, "publish 1/public/#general msg {}".to_owned()),
        (r#""phx_reply",{}"#, invalid.clone()),
        (r#""room:phx_close",{}"#, invalid.clone()),
        (r#"":msg",{}"#, invalid.clone()),
        (r##""#general:msg",{}"##, invalid.clone()),
        (r#"5,{}"#, invalid.clone()),
        (r#""",{}"#, invalid),
        (r#""msg",[1]"#, error(r#"{"reason":"payload must be an object"}"#)),
        (r#""msg",null"#, error(r#"{"reason":"payload must be an object"}"#)),
        (&long, error(r#"{"reason":"payload too large"}"#)),
        (r#""msg",{"a":"\ud800"}"#, error(r#"{"reason":"invalid payload"}"#)),
        (r#""msg",{"\ude00\ud83d":1}"#, error(r#"{"reason":"invalid payload"}"#)),
        (r#""msg",{"a":[1e999]}"#, error(r#"{"reason":"invalid payload"}"#)),
        (r#""msg",{"n":1,"n":2}"#, error(r#"{"reason":"invalid payload"}"#)),
        (r#""msg",{"a":{"n":1,"\u006e":2}}"#, error(r#"{"reason":"invalid payload"}"#)),
    ] {
        let mut talk = Talk::v2();
        talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
        let message = format!(r#"["1","2","public:foo-app",{event_and_payload}]"#);
        assert_eq!(talk.say(&message), [expected], "{message}");
    }
}

#[test]
fn a_publication_that_is_not_taken_is_told() {
    let mut talk = Talk::v2();
    talk.say(r#"["1","1","public:foo-app","phx_join",{}]"#);
    talk.ask(r#"[null,"2","public:foo-app","msg",{}]"#);
    let reply = r#"["1","2","public:foo-app","phx_reply",{"status":"error","response":{"reason":"unavailable"}}]"#;
    assert_eq!(talk.answer(Err(Failure::Unavailable)), [reply]);
}

#[test]
fn joins_of_one_session_share_the_grant_of_one_token() {
    let claims = |sub: &str, publish: &str| {
        json!({ "guardian_token": token(json!({
            "sub": sub, "listen": ["private:*"], "publish": [publish], "iat": 1
        })) })
    };
    let (ada, bob) = (claims("ada", "private:*"), claims("bob", "private:*"));
    let (silent, again) = (claims("ada", "public:*"), claims("ada", "private:*"));
    let mut talk = Talk::v2();
    let mut join = |topic: &str, payload: &serde_json::Value| {
        talk.say(&format!(r#"["1","1","{topic}","phx_join",{payload}]"#));
        let joins = &talk.conversation.joins;
        let join = joins.position(&Label::from(topic)).expect("a join");
        joins.at(join).footing.credential.clone().expect("a grant")
    };
    let first = join("private:foo-app:a", &ada);
    let second = join("private:foo-app:b", &again);
    assert!(Arc::ptr_eq(&first, &second), "one token");
    assert!(Arc::ptr_eq(&first, &join("private:foo-app:a", &ada)), "a rejoin");
    assert!(!Arc::ptr_eq(&first, &join("private:foo-app:b", &bob)), "another subject");
    assert!(!Arc::ptr_eq(&first, &join("private:foo-app:b", &silent)), "other patterns");
}

#[test]
fn private_topics_need_a_listen_claim_and_obey_the_publish_claim() {
    let claims = json!({"listen": ["private:foo-app:*"], "publish": ["private:foo-app:open"]});
    let payload = json!({ "guardian_token": token(claims) });
    let mut talk = Talk::v2();
    let join = |topic: &str| format!(r#"["1","1","{topic}","phx_join",{payload}]"#);
    let joined = |topic: &str| {
        format!(
            r#"["1","1","{topic}","phx_reply",{{"status":"ok","response":{{"message":"Joined"}}}}]"#
        )
    };
    let (open, quiet) = ("private:foo-app:open", "private:foo-app:quiet");
    assert_eq!(talk.say(&join(open))[1], joined(open));
    assert_eq!(talk.say(&join(quiet))[1], joined(quiet));
    let refused = r#"["1","1","secret:foo-app","phx_reply",{"status":"error","response":"authentication_required"}]"#;
    talk.say(&format!(r#"["1","9","{quiet}","phx_leave",{{}}]"#));
    assert_eq!(talk.say(&join("secret:foo-app")), [refused]);
    assert_eq!(talk.say(&join(quiet)).len(), 2);
    let push = |topic: &str| format!(r#"["1","2","{topic}","msg",{{}}]"#);
    assert_eq!(talk.say(&push(open)), ["publish 1/private/open msg {}"]);
    let denied = format!(r#"["1","2","{quiet}","phx_reply",{{"status":"error","response":{{}}}}]"#);
    assert_eq!(talk.say(&push(quiet)), [denied]);
}

#[test]
fn a_message_that_cannot_be_read_closes_the_connection() {
    for message in ["", "x", "{}", r#"["1","1","t","e"]"#, r#"[[],"1","t","e",{}]"#] {
        assert_eq!(Talk::v2().say(message), ["close 1011"], "{message}");
    }
    let mut talk = Talk::v1();
    let binary = Received::Binary(bytes::Bytes::from_static(b"\xff"));
    assert_eq!(shown(&talk.conversation.received(binary, NOW_S)[0]), "close 1011");
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
    let refused = talk.answer(Err(Failure::TooManyMembers));
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
    assert_eq!(talk.answer(Err(Failure::Unavailable)), [unavailable]);
    // An event that its app no longer allows, even before the session receives the change.
    let changed = App { secret: SecretString::from("another-secret-0123"), ..app(1, "foo-app") };
    talk.rules.shared.directory.replace([changed].into_iter().collect());
    assert_eq!(talk.say(&push(r#"{"custom":4}"#)), [error("{}")]);
}

mod page;

#[test]
fn the_credentials_that_a_session_keeps_fit_into_96_bytes_a_size_of_the_allocator() {
    assert!(size_of::<ConnectCredentials>() <= 96, "{}", size_of::<ConnectCredentials>());
}
