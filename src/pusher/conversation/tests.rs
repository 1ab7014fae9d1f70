//! Frames in, effects out: the rules without a socket.

use std::{net::Ipv4Addr, time::Duration};

use serde_json::{Value, json};

use super::*;
use crate::{
    admission::{Judge, Rules},
    app::{AppDirectory, refusals::Refusals, settings::AppSettings, testing},
    broker::feed::Feed,
    metrics::Metrics,
    pusher::signature::sign,
    session::{Conversation as _, bucket::PerSecond, places::Places},
};

const KEY: &str = "some-key";
const SECRET: &str = "some-secret";
const NOW_S: f64 = 1_700_000_000.0;

struct Talk {
    conversation: PusherConversation,
    rules: Arc<PusherRules>,
    now_s: f64,
}

/// An effect in one line: a message as it is, any other effect in words.
fn shown(effect: &Effect) -> String {
    match effect {
        Effect::Send(Frame::Text(text)) => text.to_string(),
        Effect::Subscribe(asked) => {
            let who =
                asked.persona.as_ref().map_or(String::new(), |who| format!(" as {}", who.key));
            format!("subscribe {}/{}{who}", asked.place.key.scope, asked.topic)
        }
        Effect::Unsubscribe(place, topic) => format!("unsubscribe {}/{topic}", place.key.scope),
        Effect::Publish(publication) => {
            let (event, except) = (&publication.event, publication.except.map(|session| session.0));
            format!(
                "publish {}/{} {event} but {except:?}",
                publication.scope,
                publication.destination.as_str()
            )
        }
        Effect::Remind(after) => format!("remind {after:?}"),
        Effect::Close(close) => format!("close {}", close.code.0),
        other => panic!("unexpected: {other:?}"),
    }
}

impl Talk {
    fn new(settings: AppSettings) -> Self {
        let directory = AppDirectory::default();
        directory.replace([App { settings, ..testing::app(KEY, SECRET) }].into_iter().collect());
        let metrics = Metrics::new(10);
        let refusals = Arc::new(Refusals::new(Duration::from_secs(60), metrics.clone()));
        let shared = Arc::new(Rules {
            feed: Feed::default(),
            directory,
            judge: Judge { refusals },
            channels_max: 2,
            client_event_bytes_max: 32,
            client_events_max: PerSecond(1_000),
            joins_max: PerSecond(1_000),
            app_sessions: Places::new(None),
            metrics,
        });
        let app = AppId(3);
        let place_in_app = shared.place_in(app).expect("a place");
        let rules = Arc::new(PusherRules {
            shared,
            ids: PublicIds::new(&"key base".into()),
            activity_timeout: Duration::from_secs(120),
            pong_timeout: Duration::from_secs(30),
            authorization_timeout: Duration::from_secs(20),
            channel_bytes_max: 100,
        });
        let guest = Guest {
            app,
            key: KEY.into(),
            version: PusherVersion::LATEST,
            origin: None,
            address: Ipv4Addr::LOCALHOST.into(),
            place: HeldPlace::default(),
            place_in_app,
        };
        Self { conversation: PusherConversation::new(guest, rules.clone()), rules, now_s: NOW_S }
    }

    /// A conversation that has begun.
    fn begun() -> Self {
        let mut talk = Self::new(AppSettings::default());
        talk.conversation.begun(SessionId(7), NOW_S);
        talk
    }

    fn say(&mut self, text: &str) -> Vec<String> {
        let effects = self.conversation.received(Received::Text(text.into()), NOW_S);
        effects.iter().map(shown).collect()
    }

    /// The message with which the client subscribes with a signature.
    fn signed(&self, channel: &str) -> String {
        let id = self.conversation.socket_id();
        let auth = format!("{KEY}:{}", sign(&SECRET.into(), &[&id, ":", channel]));
        json!({ "event": "pusher:subscribe", "data": { "channel": channel, "auth": auth } })
            .to_string()
    }

    /// Signs in as the user that the application has signed.
    fn sign_in(&mut self, user_data: &Value) -> Vec<String> {
        let (id, user_data) = (self.conversation.socket_id(), user_data.to_string());
        let auth = format!("{KEY}:{}", sign(&SECRET.into(), &[&id, "::user::", &user_data]));
        let data = json!({ "auth": auth, "user_data": user_data });
        let effects = self.conversation.received(
            Received::Text(json!({ "event": "pusher:signin", "data": data }).to_string().into()),
            NOW_S,
        );
        let sent = effects.iter().filter(|effect| matches!(effect, Effect::Send(_)));
        sent.map(shown).collect()
    }

    /// Subscribes with a signature; the broker takes the subscription.
    fn subscribe(&mut self, channel: &str) -> Vec<String> {
        let mut effects = self.say(&self.signed(channel));
        let granted = self.conversation.subscribed(Ok(Joined::default()), NOW_S);
        effects.extend(granted.iter().map(shown));
        effects
    }

    /// Changes the app without telling the conversation.
    fn change_silently(&self, change: impl FnOnce(&mut App)) {
        let mut app = testing::app(KEY, SECRET);
        change(&mut app);
        self.rules.shared.directory.replace([app].into_iter().collect());
    }

    fn change(&mut self, change: impl FnOnce(&mut App)) -> Vec<String> {
        self.change_silently(change);
        self.conversation.app_changed(AppId(3), self.now_s).iter().map(shown).collect()
    }

    /// Reminds the conversation after this time.
    fn remind_after(&mut self, seconds: f64) -> Vec<String> {
        self.now_s += seconds;
        self.conversation.reminded(self.now_s).iter().map(shown).collect()
    }
}

#[test]
fn p001_p124_it_speaks_first_and_asks_to_be_reminded_where_signatures_are_wanted() {
    let mut talk = Talk::new(AppSettings { authorized_only: true, ..AppSettings::default() });
    let effects: Vec<_> = talk.conversation.begun(SessionId(7), NOW_S).iter().map(shown).collect();
    let id = talk.rules.ids.spell(SessionId(7));
    let first = format!(
        r#"{{"event":"pusher:connection_established","data":"{{\"socket_id\":\"{id}\",\"activity_timeout\":120}}"}}"#
    );
    assert_eq!(effects, [first.as_str(), "remind 20s"]);
    assert_eq!(talk.remind_after(20.0), ["close 4009"]);
    talk.subscribe("private-a");
    assert!(talk.remind_after(20.0).is_empty());
    let mut talk = Talk::new(AppSettings { authorized_only: true, ..AppSettings::default() });
    talk.conversation.begun(SessionId(7), NOW_S);
    talk.say(&talk.signed("private-a"));
    assert!(talk.remind_after(20.0).is_empty(), "the client waits for the broker's answer");
    let refused = talk.conversation.subscribed(Err(SubscribeError::Unavailable), NOW_S);
    assert!(refused.iter().all(|effect| !matches!(effect, Effect::Close(_))), "{refused:?}");
}

#[test]
fn p124_an_app_that_begins_to_want_signatures_gives_open_connections_the_same_time() {
    let mut talk = Talk::begun();
    let wants = |app: &mut App| app.settings.authorized_only = true;
    assert_eq!(talk.change(wants), ["remind 20s"]);
    assert!(talk.change(wants).is_empty(), "the time is running");
    assert!(talk.change(|_| {}).is_empty());
    assert!(talk.remind_after(20.0).is_empty(), "no signature is wanted any more");
    assert_eq!(talk.change(wants), ["remind 20s"]);
    assert_eq!(talk.remind_after(20.0), ["close 4009"]);
    // The app wants none for a while, and again shortly before the time is over.
    let mut talk = Talk::begun();
    assert_eq!(talk.change(wants), ["remind 20s"]);
    talk.now_s += 19.0;
    assert!(talk.change(|_| {}).is_empty());
    assert!(talk.change(wants).is_empty(), "the conversation will be reminded anyway");
    assert_eq!(talk.remind_after(1.0), ["remind 19s"]);
    assert_eq!(talk.remind_after(19.0), ["close 4009"]);
    let mut talk = Talk::begun();
    talk.subscribe("private-a");
    assert!(talk.change(wants).is_empty(), "the client has shown a signature");
}

#[test]
fn p012_a_client_of_an_old_version_is_told_by_an_error_before_each_close() {
    let error = |code: u16, text: &str| {
        format!(r#"{{"event":"pusher:error","data":{{"code":{code},"message":"{text}"}}}}"#)
    };
    for (version, is_told) in [("4", true), ("5", true), ("6", false), ("7", false)] {
        let mut talk = Talk::begun();
        let version = PusherVersion::read(&format!("protocol={version}"), true);
        talk.conversation.guest.version = version.expect("a version");
        let told = |close: Close| {
            let error = is_told.then(|| error(close.code.0, close.reason));
            error.into_iter().chain([format!("close {}", close.code.0)]).collect::<Vec<_>>()
        };
        let farewell = talk.conversation.farewell(Ending::Shutdown);
        let last = farewell.last.map(Effect::Send);
        let effects: Vec<_> =
            last.into_iter().chain([Effect::Close(farewell.close)]).map(|e| shown(&e)).collect();
        assert_eq!(effects, told(closing::AGAIN));
        let terminated = Disconnect::App(AppId(3));
        let (effects, _) = talk.conversation.disconnected(&terminated);
        assert_eq!(effects.iter().map(shown).collect::<Vec<_>>(), told(closing::AGAIN));
        assert_eq!(talk.change(|app| app.settings.active = false), told(closing::DISABLED));
    }
}

#[test]
fn p040_p042_p043_p054_a_subscription_is_asked_for_once_and_left() {
    let mut talk = Talk::begun();
    let success = |channel: &str| {
        format!(
            r#"{{"event":"pusher_internal:subscription_succeeded","channel":"{channel}","data":"{{}}"}}"#
        )
    };
    assert_eq!(talk.subscribe("a"), ["subscribe public/a", &success("a")]);
    assert_eq!(talk.subscribe("private-a"), ["subscribe private/private-a", &success("private-a")]);
    let again = talk.subscribe("a");
    assert_eq!(again.len(), 1, "one error: {again:?}");
    assert!(again[0].contains("existing subscription"), "{again:?}");
    let third = talk.subscribe("b");
    assert!(third[0].contains("LimitReached"), "{third:?}");
    let leave = r#"{"event":"pusher:unsubscribe","data":{"channel":"a"}}"#;
    assert_eq!(talk.say(leave), ["unsubscribe public/a"]);
    assert!(talk.say(leave).is_empty());
}

#[test]
fn p040_p041_p055_p076_channel_data_that_is_no_text_is_ignored_on_public_channels_and_refused_elsewhere()
 {
    let ask = |channel: &str| {
        let mut talk = Talk::begun();
        let data = format!(r#"{{"channel":"{channel}","auth":"{KEY}:x","channel_data":{{}}}}"#);
        talk.say(&format!(r#"{{"event":"pusher:subscribe","data":{data}}}"#))
    };
    assert_eq!(ask("a"), ["subscribe public/a"]);
    let text = "channel_data must be a string, because the application signs its text";
    for channel in ["private-a", "private-encrypted-a", "presence-a"] {
        let of_channel = format!(
            r#"{{"event":"pusher:subscription_error","channel":"{channel}","data":{{"type":"AuthError","error":"{text}","status":401}}}}"#
        );
        let of_connection =
            format!(r#"{{"event":"pusher:error","data":{{"code":null,"message":"{text}"}}}}"#);
        assert_eq!(ask(channel), [of_channel, of_connection]);
    }
}

#[test]
fn the_refusal_of_a_long_channel_has_the_number_of_bytes_that_the_setting_allows() {
    let mut talk = Talk::begun();
    assert_eq!(talk.subscribe(&"c".repeat(100)).len(), 2);
    for bytes in [101, 200, 201] {
        let channel = "c".repeat(bytes);
        let of_channel = format!(
            r#"{{"event":"pusher:subscription_error","channel":"{channel}","data":{{"type":"LimitReached","error":"a channel name must have at most 100 bytes","status":4009}}}}"#
        );
        assert_eq!(talk.subscribe(&channel)[0], of_channel);
    }
}

#[test]
fn every_user_that_signs_in_can_subscribe_to_its_own_channel() {
    for (id, is_valid) in [
        ("u".repeat(128), true),
        ("u".repeat(129), false),
        ("#a b:\u{e9}\"".to_owned(), true),
        ("constructor".to_owned(), true),
        ("a\nb".to_owned(), false),
        ("a\u{7f}".to_owned(), false),
        ("\u{80}".to_owned(), false),
        (String::new(), false),
    ] {
        let mut talk = Talk::begun();
        let answer = talk.sign_in(&json!({ "id": id }));
        let is_signed_in = answer[0].contains("pusher:signin_success");
        assert_eq!((answer.len(), is_signed_in), (1, is_valid), "{id:?} {answer:?}");
        let watched = talk.sign_in(&json!({ "id": "u", "watchlist": [id] }));
        let is_watched = watched[0].contains("pusher:signin_success");
        assert_eq!(is_watched, is_valid && id == "u", "{id:?} {watched:?}");
        let subscribed = talk.subscribe(&format!("#server-to-user-{id}"));
        assert_eq!(subscribed[0].starts_with("subscribe #user/"), is_valid, "{subscribed:?}");
        if !is_valid {
            assert!(
                answer[0].contains("of 1 to 128 bytes without control characters"),
                "{answer:?}"
            );
        }
    }
    let mut talk = Talk::begun();
    let refused = talk.subscribe("#server-to-user-a\nb");
    assert!(
        refused[0].contains("the id of a user must not have control characters"),
        "{refused:?}"
    );
}

#[test]
fn p083_p087_a_client_event_leaves_out_its_sender() {
    let mut talk = Talk::begun();
    talk.subscribe("private-a");
    let event = r#"{"event":"client-e","channel":"private-a","data":1,"user_id":"forged"}"#;
    assert_eq!(talk.say(event), ["publish private/a client-e but Some(7)"]);
    let failed = talk.conversation.answered(Err(PublishError::Busy), NOW_S);
    assert!(shown(&failed[0]).contains("cannot take the event now"));
}

#[test]
fn a_subscription_that_the_broker_refuses_is_left_and_told() {
    let mut talk = Talk::begun();
    for failure in
        [SubscribeError::TooManyScopes, SubscribeError::TooManyMembers, SubscribeError::Unavailable]
    {
        talk.say(r#"{"event":"pusher:subscribe","data":{"channel":"a"}}"#);
        let refused = talk.conversation.subscribed(Err(failure), NOW_S);
        let refused: Vec<_> = refused.iter().map(shown).collect();
        assert_eq!(refused.len(), 3, "{refused:?}");
        assert_eq!(refused[0], "unsubscribe public/a");
        assert!(refused[1].contains("pusher:subscription_error"), "{refused:?}");
    }
}

#[test]
fn an_app_that_changes_closes_the_connections_that_it_no_longer_allows() {
    let mut talk = Talk::begun();
    talk.subscribe("private-a");
    assert!(talk.change(|app| app.name = "another".into()).is_empty());
    assert!(talk.change(|app| app.settings.subscription_count = false).is_empty());
    assert_eq!(talk.change(|app| app.settings.active = false), ["close 4003"]);
    assert_eq!(talk.change(|app| app.settings.pusher = false), ["close 4003"]);
    assert_eq!(talk.change(|app| app.key = "other".into()), ["close 4200"]);
    assert_eq!(talk.change(|app| app.secret = "other".into()), ["close 4200"]);
    assert_eq!(talk.change(|app| app.id = AppId(4)), ["close 4001"]);
    assert!(talk.conversation.app_changed(AppId(9), NOW_S).is_empty(), "another app");
}

#[test]
fn a_connection_whose_app_has_changed_since_the_handshake_is_closed_as_soon_as_it_begins() {
    type Change = fn(&mut App);
    let changes: [(Change, &str); 4] = [
        (|app| app.settings.active = false, "close 4003"),
        (|app| app.settings.pusher = false, "close 4003"),
        (|app| app.key = "other".into(), "close 4200"),
        (|app| app.id = AppId(4), "close 4001"),
    ];
    for (change, close) in changes {
        let mut talk = Talk::new(AppSettings::default());
        talk.change_silently(change);
        let effects = talk.conversation.begun(SessionId(7), NOW_S);
        let effects: Vec<_> = effects.iter().map(shown).collect();
        assert_eq!((effects.len(), effects[1].as_str()), (2, close), "{effects:?}");
    }
}

#[test]
fn a_client_event_on_a_subscription_whose_secret_was_replaced_a_moment_ago_is_refused() {
    let mut talk = Talk::begun();
    talk.subscribe("private-a");
    talk.change_silently(|app| app.secret = "other".into());
    let told = talk.say(r#"{"event":"client-e","channel":"private-a","data":1}"#);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("pusher:error"), "{told:?}");
}

#[test]
fn a_subject_is_the_user_whose_id_it_spells_as_text_or_as_a_number() {
    for (id, subject, is_meant) in [
        ("u1", r#""u1""#, true),
        ("u1", r#""u2""#, false),
        ("10", r#""10""#, true),
        ("10", "10", true),
        ("10", "11", false),
        ("10", r#"{"id":10}"#, false),
        ("010", "10", false),
        ("10 ", "10", false),
        ("-1.5", "-1.5", true),
        ("9007199254740993", "9007199254740992", false),
        ("true", "true", false),
        ("null", "null", false),
        ("[1]", "[1]", false),
    ] {
        let raw = serde_json::from_str(subject).expect("JSON");
        let sought = Subject::of(raw).expect("a subject");
        assert_eq!(PusherConversation::is_subject(id, &sought), is_meant, "{id} {subject}");
    }
}

#[test]
fn p025_p026_a_silent_client_is_waited_for_and_then_probed() {
    let mut talk = Talk::begun();
    let silent = |talk: &mut Talk, s| talk.conversation.silent(Duration::from_secs(s));
    assert_eq!(silent(&mut talk, 60), Patience::Wait(Duration::from_secs(60)));
    let probe = Patience::Probe(frame::ping(), Duration::from_secs(30));
    assert_eq!(silent(&mut talk, 120), probe);
    assert_eq!(silent(&mut talk, 500), probe);
}

#[test]
fn p022_a_ping_is_answered_ahead_of_its_turn_and_nothing_else_is() {
    let talk = Talk::begun();
    let meanwhile = |text: &str| talk.conversation.meanwhile(&Received::Text(text.into()));
    assert_eq!(meanwhile(r#"{"event":"pusher:ping","data":{}}"#), Some(frame::pong()));
    for text in [r#"{"event":"pusher:pong"}"#, r#"["pusher:ping"]"#, "pusher:ping"] {
        assert_eq!(meanwhile(text), None, "{text}");
    }
    let long = format!(r#"{{"event":"pusher:ping","data":"{}"}}"#, "x".repeat(PING_BYTES_MAX));
    assert_eq!(meanwhile(&long), None);
}
