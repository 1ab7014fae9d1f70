//! Whole conversations: for every message of a client and every event meanwhile, each message has few
//! effects, replies quote what they answer, and what was given up was had.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use bytestring::ByteString;
use chrono::DateTime;
use herald::{
    app::{
        App, AppId, ClientEvents, Slug,
        settings::AppSettings,
        subject::Subject,
        token::{SigningAlgorithm, TokenPair, mint},
    },
    broker::{
        Addressing, Payload, PublishError, TopicName,
        subscriber::{Disconnect, Frame, Joined, Place, ScopeKey, SubscribeError},
    },
    metrics::labels::Transport,
    phoenix::{
        PhoenixConversation, PhoenixRules,
        admission::{ConnectCredentials, TokenJudge},
        message::{ClientMessage, Version},
    },
    session::{CloseCode, Conversation as _, Effect, Received},
};
use secrecy::SecretString;
use serde_json::{Value, json, value::RawValue};

use super::rules::rules;

const NOW_S: f64 = 1_700_000_000.0;
const SECRET: &str = "foo-app-secret-0123";
const CHANNELS_MAX: usize = 3;
const CLIENT_EVENT_BYTES_MAX: usize = 32;
const REF_BYTES_MAX: usize = 64;

/// Effects of one message or answer at most: a reply, the place and the end of the join that it
/// replaces, and the members of the channel.
const EFFECTS_MAX: usize = 4;

/// The first line says how the client came: `1` or `2` for its version, `l` for long-poll, `t` for a
/// token among its params. Each line after it happens in turn:
///
/// - `!` and letters: the first app is now inactive (`i`), has another key (`k`), another slug (`s`),
///   takes no client events (`n`), or is gone (`g`); with `q` the conversation is not told yet;
/// - `-` and a topic: the app wants its joins ended; with none, those of a token's subject;
/// - `?` and a letter: what the broker says next, `n` for unavailable, `m` for too many scopes, `f`
///   for a full channel;
/// - `@`: the broker accepts the join and returns the members;
/// - `%` and text: a binary message, in which `/` and two hex digits stand for a byte;
/// - anything else: a text message, in which `$L` and `$P` stand for tokens.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let mut talk = Talk::new(lines.next().unwrap_or_default());
    for line in lines {
        if talk.is_closed {
            return;
        }
        match line.split_at_checked(1) {
            Some(("!", letters)) => talk.change(letters),
            Some(("-", topic)) => talk.disconnect(topic),
            Some(("?", letter)) => talk.answer(letter),
            Some(("@", _)) => talk.answer("@"),
            Some(("%", escaped)) => talk.receive(Received::Binary(unescaped(escaped))),
            _ => talk.receive(Received::Text(with_tokens(line).into())),
        }
    }
}

/// A conversation, and what must be true of it.
struct Talk {
    conversation: PhoenixConversation,
    version: Version,
    transport: Transport,
    rules: Arc<PhoenixRules>,
    /// The places that the session hears according to its effects, each with its topic.
    places: Vec<(Place, ByteString)>,
    asked: Option<Asked>,
    is_closed: bool,
}

/// A question to the broker, and the values that its reply must quote.
struct Asked {
    is_join: bool,
    reference: String,
    topic: String,
}

impl Talk {
    fn new(how: &str) -> Self {
        let version = if how.contains('1') { Version::V1 } else { Version::V2 };
        let transport = if how.contains('l') { Transport::LongPoll } else { Transport::WebSocket };
        let token = how.contains('t').then(|| token("listen").into());
        let caller = ConnectCredentials {
            tokens: TokenPair { token, csrf: None },
            ..ConnectCredentials::default()
        };
        let apps = [app(1, ""), app(2, "")].into_iter().flatten();
        let shared = rules(apps, CHANNELS_MAX, CLIENT_EVENT_BYTES_MAX);
        let judge = TokenJudge {
            addressing: Addressing::ManyApps,
            guardian_secret: None,
            token_bytes_max: 8_192,
            shared: shared.clone(),
        };
        let rules = Arc::new(PhoenixRules { shared, judge, ref_bytes_max: REF_BYTES_MAX });
        let conversation = PhoenixConversation::new(version, transport, caller, rules.clone());
        Self {
            conversation,
            version,
            transport,
            rules,
            places: Vec::new(),
            asked: None,
            is_closed: false,
        }
    }

    /// A message comes. Unless it can be answered ahead of its turn, it waits until the broker has
    /// answered what was asked before it.
    fn receive(&mut self, received: Received) {
        if self.asked.is_some() && self.is_answered_meanwhile(&received) {
            return;
        }
        self.answer("");
        if self.is_closed {
            return;
        }
        let message = self.version.decode(&received, REF_BYTES_MAX);
        let effects = self.conversation.received(received.clone(), NOW_S);
        let Ok(message) = message else {
            let closes = matches!(effects.as_slice(), [Effect::Close(close)] if close.code == CloseCode::INTERNAL);
            assert!(closes, "what cannot be read ends it: {effects:?}");
            self.is_closed = true;
            return;
        };
        assert!(effects.len() <= EFFECTS_MAX, "{effects:?}");
        let (reference, topic) = quoted(&message);
        let replies = self.carry_out(effects, Some(&message));
        assert!(replies.len() <= 1, "a message has one reply: {replies:?}");
        for reply in &replies {
            reply.quotes(&reference, &topic);
        }
        if is_heartbeat(&message) {
            assert_eq!(replies.len(), 1, "a heartbeat is always answered");
            assert_eq!(replies[0].payload, json!({"status": "ok", "response": {}}));
        }
    }

    /// A heartbeat is answered as it would be in its turn, and nothing else is.
    fn is_answered_meanwhile(&mut self, received: &Received) -> bool {
        let Some(frame) = self.conversation.meanwhile(received) else { return false };
        let message = self.version.decode(received, REF_BYTES_MAX).expect("a message");
        assert!(is_heartbeat(&message), "{message:?} has to wait");
        let in_turn = PhoenixConversation::new(
            self.version,
            self.transport,
            ConnectCredentials::default(),
            self.rules.clone(),
        )
        .received(received.clone(), NOW_S);
        let [Effect::SendAhead(expected)] = in_turn.as_slice() else { panic!("{in_turn:?}") };
        assert_eq!(frame, *expected);
        true
    }

    /// The broker answers, if it was asked.
    fn answer(&mut self, letter: &str) {
        let Some(Asked { is_join, reference, topic }) = self.asked.take() else { return };
        let outcome = match letter {
            "n" => Err(SubscribeError::Unavailable),
            "m" => Err(SubscribeError::TooManyScopes),
            "f" => Err(SubscribeError::TooManyMembers),
            _ => Ok(()),
        };
        let members = (letter == "@").then(|| "{\"k\":{\"metas\":[]}}".into());
        let effects = match is_join {
            true => {
                let joined = outcome.map(|()| Joined { members, ..Joined::default() });
                self.conversation.subscribed(joined, NOW_S)
            }
            false => self.conversation.answered(outcome.map_err(|_| PublishError::Busy), NOW_S),
        };
        assert!(effects.len() <= EFFECTS_MAX, "{effects:?}");
        let replies = self.carry_out(effects, None);
        assert!(self.asked.is_none(), "an answer asks for nothing");
        assert_eq!(replies.len(), usize::from(is_join || outcome.is_err()), "{replies:?}");
        for reply in &replies {
            reply.quotes(&reference, &topic);
        }
        if outcome.is_err() {
            assert!(replies.iter().all(|reply| reply.payload["status"] == "error"));
        }
    }

    /// The first app changes.
    fn change(&mut self, letters: &str) {
        self.rules
            .shared
            .directory
            .replace([app(1, letters), app(2, "")].into_iter().flatten().collect());
        if letters.contains('q') {
            return;
        }
        let effects = self.conversation.app_changed(AppId(1), NOW_S);
        self.told(effects);
    }

    /// An app wants joins ended: those of a topic, or else of the one subject that there is.
    fn disconnect(&mut self, topic: &str) {
        let disconnect = match TopicName::parse(topic, &Addressing::ManyApps) {
            Ok(TopicName { scope, app, channel, .. }) => {
                let app = AppId(if app.as_str() == "bar-app" { 2 } else { 1 });
                Disconnect::Place(Place { key: ScopeKey { app, scope }, channel })
            }
            Err(_) => Disconnect::Subject { app: AppId(1), subject: subject() },
        };
        let (effects, _) = self.conversation.disconnected(&disconnect);
        self.told(effects);
    }

    /// Checks effects that answer no message of the client.
    fn told(&mut self, effects: Vec<Effect>) {
        assert!(effects.len() <= 2 * CHANNELS_MAX, "{effects:?}");
        let replies = self.carry_out(effects, None);
        assert!(replies.is_empty(), "nobody asked: {replies:?}");
    }

    /// Checks effects one by one, and gives back the replies among them.
    fn carry_out(&mut self, effects: Vec<Effect>, message: Option<&ClientMessage>) -> Vec<Reply> {
        let mut replies = Vec::new();
        let last = effects.len().saturating_sub(1);
        for (nth, effect) in effects.into_iter().enumerate() {
            match effect {
                Effect::SignIn(_) => panic!("Phoenix's conversations sign nobody in"),
                Effect::Remind(_) => panic!("Phoenix's conversations are not reminded"),
                Effect::Send(frame) | Effect::SendAhead(frame) => {
                    replies.extend(self.sent(&frame));
                }
                Effect::Replay(replay) => {
                    let heard = (replay.place, replay.topic);
                    assert!(self.places.contains(&heard), "only who joined is replayed anything");
                    assert!(!replay.frames.is_empty(), "something is replayed");
                }
                Effect::Subscribe(subscription) => {
                    assert_eq!(nth, last, "who asks, waits");
                    self.ask(message, true);
                    let heard = (subscription.place, subscription.topic);
                    if !self.places.contains(&heard) {
                        self.places.push(heard);
                    }
                    // A rejoin of a renamed app's topic may hold two places for a moment.
                    assert!(self.places.len() <= CHANNELS_MAX + 1, "joins are bounded");
                }
                Effect::Publish(publication) => {
                    assert_eq!(nth, last, "who asks, waits");
                    self.ask(message, false);
                    assert!(publication.payload.size_bytes() <= CLIENT_EVENT_BYTES_MAX);
                    let is_heard = |(place, _): &(Place, _)| place.key.app == publication.app;
                    assert!(self.places.iter().any(is_heard), "only who joined publishes");
                    let is_bytes = matches!(publication.payload, Payload::Bytes(_));
                    assert!(!is_bytes || self.version == Version::V2);
                }
                Effect::Update(place, meta) => {
                    assert_eq!(nth, last, "who asks, waits");
                    self.ask(message, false);
                    let is_there = self.places.iter().any(|(heard, _)| *heard == place);
                    assert!(is_there, "only who is there updates");
                    assert!(meta.as_str().len() <= 1_024, "{meta:?}");
                }
                Effect::Unsubscribe(place, topic) => {
                    let left = (place, topic);
                    let at = self.places.iter().position(|heard| *heard == left);
                    self.places.swap_remove(at.expect("what is given up was had"));
                }
                Effect::Close(close) => {
                    assert_eq!((nth, last, close.code), (0, 0, CloseCode::GOING_AWAY));
                    assert!(message.is_none(), "no message that can be read ends it");
                    self.is_closed = true;
                }
            }
        }
        replies
    }

    fn ask(&mut self, message: Option<&ClientMessage>, is_join: bool) {
        let message = message.expect("only a message asks");
        let (reference, topic) = quoted(message);
        self.asked = Some(Asked { is_join, reference, topic });
    }

    /// A frame is well formed in its version; a reply among them is given back.
    fn sent(&self, frame: &Frame) -> Option<Reply> {
        let Frame::Text(text) = frame else { panic!("only deliveries are bytes: {frame:?}") };
        // As text: what a client quotes need not be a number that anybody can hold.
        let [reference, topic, event, payload] = match self.version {
            Version::V1 => {
                let keys: HashMap<&str, &RawValue> = serde_json::from_str(text).expect("an object");
                assert_eq!(keys.len(), 4, "{text}");
                ["ref", "topic", "event", "payload"].map(|key| keys[key].get())
            }
            Version::V2 => {
                let [_, rest @ ..]: [&RawValue; 5] = serde_json::from_str(text).expect("an array");
                rest.map(RawValue::get)
            }
        };
        match event {
            r#""phx_reply""# => Some(Reply {
                reference: reference.to_owned(),
                topic: topic.to_owned(),
                payload: serde_json::from_str(payload).expect("JSON"),
            }),
            r#""phx_close""# | r#""phx_error""# | r#""presence_state""# => None,
            _ => panic!("{text} is no frame of the wire's own"),
        }
    }
}

/// A reply to one message.
#[derive(Debug)]
struct Reply {
    reference: String,
    topic: String,
    payload: Value,
}

impl Reply {
    fn quotes(&self, reference: &str, topic: &str) {
        assert_eq!((&*self.reference, &*self.topic), (reference, topic), "{self:?}");
        assert!(matches!(self.payload["status"].as_str(), Some("ok" | "error")), "{self:?}");
    }
}

/// The values that the reply to a message must quote, as JSON.
fn quoted(message: &ClientMessage) -> (String, String) {
    (message.reference.as_json().to_owned(), message.topic.to_json())
}

fn is_heartbeat(message: &ClientMessage) -> bool {
    message.topic.as_text() == Some("phoenix") && message.event.as_text() == Some("heartbeat")
}

/// The app of that number as letters change it; none if they delete it.
fn app(id: i32, letters: &str) -> Option<App> {
    let has = |letter: char| letters.contains(letter);
    let slug = match (id, has('s')) {
        (1, false) => "foo-app",
        (1, true) => "foo-two",
        _ => "bar-app",
    };
    let client_events = if has('n') { ClientEvents::None } else { ClientEvents::All };
    let secret = if has('k') { "another secret 4567" } else { SECRET };
    (!has('g')).then(|| App {
        id: AppId(id),
        name: slug.to_owned(),
        slug: Slug::parse(slug).expect("a slug"),
        key: "key".to_owned(),
        secret: SecretString::from(secret),
        last_use: Default::default(),
        previous: None,
        digests: Default::default(),
        settings: AppSettings { active: !has('i'), client_events, ..AppSettings::default() },
        inserted_at: DateTime::UNIX_EPOCH,
        updated_at: DateTime::UNIX_EPOCH,
    })
}

/// The subject of all tokens.
fn subject() -> Subject {
    let one = serde_json::value::to_raw_value(&1).expect("JSON");
    Subject::of(&one).expect("a number is a subject")
}

fn with_tokens(line: &str) -> String {
    match line.contains('$') {
        true => line.replace("$L", &token("listen")).replace("$P", &token("publish")),
        false => line.to_owned(),
    }
}

/// A token that may listen to most, or publish to it as well.
fn token(right: &str) -> String {
    let topics = ["private:foo-app:*", "private:bar-app", "public:foo-app", "presence:foo-app:*"];
    let claims = match right {
        "publish" => json!({"sub": 1, "listen": topics, "publish": topics}),
        _ => json!({"sub": 1, "listen": topics}),
    };
    mint(&claims, &SecretString::from(SECRET), SigningAlgorithm::Hs256).expect("a token")
}

/// Bytes that a line of text stands for.
fn unescaped(text: &str) -> Bytes {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, after)) = rest.split_once('/') {
        bytes.extend(plain.as_bytes());
        let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(b'/'));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    bytes.extend(rest.as_bytes());
    bytes.into()
}
