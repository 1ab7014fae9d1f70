//! Frames in, effects out: the rules of section 5 without a socket.

use std::time::Duration;

use bytes::Bytes;
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
        testing,
        token::{SigningAlgorithm, TokenPair, mint},
    },
    broker::{
        Addressing, ChannelName, Payload, PayloadError, Scope,
        feed::Feed,
        subscriber::{Place, ScopeKey},
    },
    metrics::Metrics,
    phoenix::{
        message::TOPIC_JSON_BYTES_MAX,
        presence::{self, MetaFault},
    },
    session::{Conversation as _, bucket::PerSecond, places::Places},
};

mod binary;
mod changes;
mod disconnects;
mod limits;
mod members;
mod page;

const NOW_S: f64 = 1_700_000_000.0;
const SECRET: &str = "foo-app-secret-0123";

fn app(id: i32, slug: &str) -> App {
    App {
        id: AppId(id),
        name: slug.to_owned(),
        slug: Slug::parse(slug).expect("a slug"),
        settings: AppSettings { client_events: ClientEvents::All, ..AppSettings::default() },
        ..testing::app("key", SECRET)
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

    fn answer(&mut self, outcome: Result<(), SubscribeError>) -> Vec<String> {
        match self.conversation.pushed.is_some() {
            true => {
                let outcome = outcome.map_err(|_| PublishError::Busy);
                self.conversation.answered(outcome, NOW_S).iter().map(shown).collect()
            }
            false => self.answer_join(outcome.map(|()| Joined::default())),
        }
    }

    fn answer_join(&mut self, outcome: Result<Joined, SubscribeError>) -> Vec<String> {
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
        Effect::SendAhead(frame) => shown(&Effect::Send(frame.clone())),
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
    for (failure, reason) in [
        (SubscribeError::TooManyScopes, "too many scopes"),
        (SubscribeError::Unavailable, "unavailable"),
    ] {
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
fn a_topic_that_is_too_long_is_unmatched_and_one_beyond_what_a_reply_repeats_closes() {
    let longest = format!("\"{}\"", "t".repeat(TOPIC_JSON_BYTES_MAX - 2));
    let number = "1".repeat(TOPIC_JSON_BYTES_MAX);
    for event in ["phx_join", "msg"] {
        for topic in [&longest, &number] {
            let message = |topic: &str| format!(r#"["1","2",{topic},"{event}",{{}}]"#);
            let unmatched = format!(
                r#"[null,"2",{topic},"phx_reply",{{"status":"error","response":{{"reason":"unmatched topic"}}}}]"#
            );
            assert_eq!(Talk::v2().say(&message(topic)), [unmatched]);
            let longer = topic.replacen(['t', '1'], "22", 1);
            assert_eq!(Talk::v2().say(&message(&longer)), ["close 1011"], "{event}");
        }
    }
    let v1 = |topic| {
        let leave = format!(r#"{{"topic":{topic},"event":"phx_leave","payload":{{}},"ref":"1"}}"#);
        Talk::v1().say(&leave)
    };
    let left = format!(
        r#"{{"topic":{longest},"event":"phx_reply","ref":"1","payload":{{"status":"ok","response":{{}}}}}}"#
    );
    assert_eq!(v1(longest), [left]);
    assert_eq!(v1(format!("{number}1")), ["close 1011"]);
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
    assert_eq!(talk.answer(Err(SubscribeError::Unavailable)), [reply]);
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
        let join = joins.position(topic).expect("a join");
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
fn the_credentials_that_a_session_keeps_fit_into_96_bytes_a_size_of_the_allocator() {
    assert!(size_of::<ConnectCredentials>() <= 96, "{}", size_of::<ConnectCredentials>());
}
