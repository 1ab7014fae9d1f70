//! The messages of Pusher's clients: each is read as the plain rule says, and has few effects, which its
//! signatures permit.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, sync::Arc, time::Duration};

use herald::{
    app::{App, AppId, ClientEvents, subject::Subject},
    broker::{
        Payload, PublishError,
        subscriber::{Disconnect, Frame, Joined, SessionId, SubscribeError},
        users::{EncodeOnline, OnlineChange},
    },
    pusher::{
        conversation::{Guest, PusherConversation, PusherRules},
        version::PusherVersion,
    },
    session::{Conversation as _, Effect, Received, places::HeldPlace, public_id::PublicIds},
};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, value::RawValue};

use super::{
    pusher_signature::{KEY, app, hmac},
    rules::rules,
};

const NOW_S: f64 = 1_353_088_179.0;
const SESSION: SessionId = SessionId(7);
const CHANNELS_MAX: usize = 3;
const CLIENT_EVENT_BYTES_MAX: usize = 64;
const WATCHED_MAX: usize = 100;

/// Effects of one message or answer at most: the success, an error, what was missed, and a sign-in.
const EFFECTS_MAX: usize = 4;

/// Brackets of a command's data up to which the reference reads it.
const BRACKETS_MAX: usize = 100;

/// Each line happens in turn:
///
/// - `!` and letters: the app is now inactive (`i`), has another key (`k`), takes no client events (`n`),
///   or is gone (`g`);
/// - `-` and a letter: the app wants joins ended, those of a user (`u`), of a subject (`s`), or all;
/// - `?` and a letter: what the broker says next, `n` for unavailable, `m` for too many scopes, `f` for a
///   full channel;
/// - `@`: the broker accepts the subscription and returns the members;
/// - `+`: a watched user is online;
/// - `%`: a binary message;
/// - anything else: a text message, in which the `auth` `$A` stands for the right one.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut talk = Talk::new();
    for line in text.split('\n') {
        if talk.is_closed {
            return;
        }
        match line.split_at_checked(1) {
            Some(("!", letters)) => talk.change(letters),
            Some(("-", letter)) => talk.disconnect(letter),
            Some(("?", letter)) => talk.answer(letter),
            Some(("@", _)) => talk.answer("@"),
            Some(("+", user)) => talk.online(user),
            Some(("%", rest)) => talk.receive_bytes(rest),
            _ => talk.receive(line),
        }
    }
}

/// The meaning of a message, by the plain rule.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Read {
    /// It cannot be read, or is no message of clients.
    Fault,
    Ping,
    Pong,
    Unsubscribe(String),
    Subscribe {
        channel: String,
        auth: String,
        channel_data: Option<String>,
        /// Whether `channel_data` is a text, if it is there.
        is_text: bool,
    },
    SignIn {
        auth: String,
        user_data: String,
    },
    Event {
        event: String,
        channel: String,
        data: String,
    },
    /// The reference does not look that deep.
    Deep,
}

/// The members of an object in their order, repeated ones included.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(given: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(Members(all))
            }
        }
        given.deserialize_map(All)
    }
}

impl Members {
    /// The members with these names; `None` if one of them stands twice.
    fn once(self, names: &[&str]) -> Option<BTreeMap<String, Box<RawValue>>> {
        let mut found = BTreeMap::new();
        for (name, value) in self.0.into_iter().filter(|(name, _)| names.contains(&name.as_str())) {
            if found.insert(name, value).is_some() {
                return None;
            }
        }
        Some(found)
    }
}

fn read(text: &str) -> Read {
    let members: Option<Members> = serde_json::from_str(text).ok();
    let members = members.and_then(|members| members.once(&["event", "channel", "data"]));
    let Some(members) = members else { return Read::Fault };
    let string = |name: &str| members.get(name).and_then(|raw| held(raw));
    let Some(event) = string("event") else { return Read::Fault };
    let data = members.get("data").map(|raw| raw.get());
    match event.as_str() {
        "pusher:ping" => Read::Ping,
        "pusher:pong" => Read::Pong,
        "pusher:subscribe" | "pusher:unsubscribe" | "pusher:signin" => command(&event, data),
        event if event.starts_with("client-") => match (string("channel"), data) {
            (Some(channel), Some(data)) => {
                Read::Event { event: event.to_owned(), channel, data: data.to_owned() }
            }
            _ => Read::Fault,
        },
        _ => Read::Fault,
    }
}

/// The text that a JSON string holds.
fn held(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

fn command(event: &str, data: Option<&str>) -> Read {
    let data = data.unwrap_or("null");
    let data = serde_json::from_str::<String>(data).unwrap_or_else(|_| data.to_owned());
    if data.matches(['[', '{']).count() > BRACKETS_MAX {
        return Read::Deep;
    }
    let names = ["channel", "auth", "channel_data", "user_data"];
    let members: Option<Members> = serde_json::from_str(&data).ok();
    let members = members.and_then(|members| members.once(&names)).unwrap_or_default();
    let values: Option<BTreeMap<_, Value>> = members
        .iter()
        .map(|(name, raw)| Some((name.as_str(), serde_json::from_str(raw.get()).ok()?)))
        .collect();
    let values = values.unwrap_or_default();
    let string = |name: &str| values.get(name).and_then(Value::as_str).map(str::to_owned);
    let auth = string("auth").unwrap_or_default();
    let read = match event {
        "pusher:signin" => string("user_data").map(|user_data| Read::SignIn { auth, user_data }),
        "pusher:unsubscribe" => string("channel").map(Read::Unsubscribe),
        _ => {
            let given = values.get("channel_data").filter(|given| !given.is_null());
            let is_text = given.is_none_or(Value::is_string);
            let channel_data = string("channel_data");
            let channel = string("channel");
            channel.map(|channel| Read::Subscribe { channel, auth, channel_data, is_text })
        }
    };
    read.unwrap_or(Read::Fault)
}

/// A conversation, and what must be true of it.
struct Talk {
    conversation: PusherConversation,
    rules: Arc<PusherRules>,
    socket: String,
    /// The channels that it hears by its effects.
    subscribed: Vec<String>,
    /// The channel that the broker is asked for.
    joining: Option<String>,
    is_publishing: bool,
    user: Option<String>,
    /// The encoding of what it is told of the users that it watches, once it is signed in.
    encode: Option<EncodeOnline>,
    is_closed: bool,
}

impl Talk {
    fn new() -> Self {
        let shared = rules([app()], CHANNELS_MAX, CLIENT_EVENT_BYTES_MAX);
        let place_in_app = shared.place_in(app().id).expect("a place");
        let rules = Arc::new(PusherRules {
            shared,
            ids: PublicIds::new(&"key base".into()),
            activity_timeout: Duration::from_secs(120),
            pong_timeout: Duration::from_secs(30),
            authorization_timeout: Duration::from_secs(30),
            channel_bytes_max: 200,
        });
        let guest = Guest {
            app: app().id,
            key: KEY.into(),
            version: PusherVersion::LATEST,
            origin: None,
            address: Ipv4Addr::LOCALHOST.into(),
            place: HeldPlace::default(),
            place_in_app,
        };
        let mut conversation = PusherConversation::new(guest, rules.clone());
        let begun = conversation.begun(SESSION, NOW_S);
        assert!(matches!(begun.as_slice(), [Effect::Send(_)]), "{begun:?}");
        let socket = rules.ids.spell(SESSION);
        Self {
            conversation,
            rules,
            socket,
            subscribed: Vec::new(),
            joining: None,
            is_publishing: false,
            user: None,
            encode: None,
            is_closed: false,
        }
    }

    /// The text that the application signs for a message.
    fn signed_text(&self, message: &Read) -> Option<String> {
        let socket = &self.socket;
        match message {
            Read::Subscribe { channel, channel_data: Some(data), .. } => {
                Some(format!("{socket}:{channel}:{data}"))
            }
            Read::Subscribe { channel, channel_data: None, .. } => {
                Some(format!("{socket}:{channel}"))
            }
            Read::SignIn { user_data, .. } => Some(format!("{socket}::user::{user_data}")),
            _ => None,
        }
    }

    /// A message comes. Unless it can be answered ahead of its turn, it waits until the broker has
    /// answered what was asked before it.
    fn receive(&mut self, line: &str) {
        let mut text = line.to_owned();
        if let Some(signed) = self.signed_text(&read(line)) {
            text = text.replace("$A", &format!("{KEY}:{}", hmac(&signed)));
        }
        let message = read(&text);
        let received = Received::Text(text.as_str().into());
        let meanwhile = self.conversation.meanwhile(&received);
        assert!(
            meanwhile.is_none() || message == Read::Ping,
            "only a ping is answered ahead of its turn: {text}"
        );
        if self.joining.is_some() || self.is_publishing {
            if meanwhile.is_some() {
                return;
            }
            self.answer("");
        }
        if self.is_closed {
            return;
        }
        let effects = self.conversation.received(received, NOW_S);
        if matches!(message, Read::Fault) {
            let is_error = matches!(effects.as_slice(), [Effect::Send(_)]);
            assert!(is_error, "{text} is answered with an error: {effects:?}");
        }
        self.carry_out(effects, Some(&message));
    }

    fn receive_bytes(&mut self, rest: &str) {
        self.answer("");
        if self.is_closed {
            return;
        }
        let effects = self.conversation.received(Received::Binary(rest.to_owned().into()), NOW_S);
        assert!(matches!(effects.as_slice(), [Effect::Close(_)]), "{effects:?}");
        self.carry_out(effects, None);
    }

    /// The broker answers what it was asked, if it was asked anything.
    fn answer(&mut self, how: &str) {
        let failure = match how {
            "n" => Some(SubscribeError::Unavailable),
            "m" => Some(SubscribeError::TooManyScopes),
            "f" => Some(SubscribeError::TooManyMembers),
            _ => None,
        };
        if std::mem::take(&mut self.is_publishing) {
            let outcome = failure.map_or(Ok(()), |_| Err(PublishError::Busy));
            let effects = self.conversation.answered(outcome, NOW_S);
            self.carry_out(effects, None);
        } else if let Some(channel) = self.joining.take() {
            let members = (how == "@").then(|| "{}".into());
            let joined = Joined { members, ..Joined::default() };
            let effects = self.conversation.subscribed(failure.map_or(Ok(joined), Err), NOW_S);
            self.subscribed.push(channel);
            self.carry_out(effects, None);
        }
    }

    fn change(&mut self, letters: &str) {
        let mut changed = app();
        for letter in letters.chars() {
            match letter {
                'i' => changed.settings.active = false,
                'n' => changed.settings.client_events = ClientEvents::None,
                'k' => changed.key = "another-key".to_owned(),
                _ => {}
            }
        }
        let apps: Vec<App> = if letters.contains('g') { Vec::new() } else { vec![changed] };
        self.rules.shared.directory.replace(apps.into_iter().collect());
        let effects = self.conversation.app_changed(AppId(99), NOW_S);
        assert!(effects.is_empty(), "another app concerns nobody here: {effects:?}");
        let effects = self.conversation.app_changed(app().id, NOW_S);
        self.carry_out(effects, None);
    }

    fn disconnect(&mut self, letter: &str) {
        let app = app().id;
        let user = self.user.clone().unwrap_or_else(|| "nobody".to_owned());
        let disconnect = match letter {
            "u" => Disconnect::User { app, user },
            "s" => {
                let raw = RawValue::from_string(Value::from(user).to_string()).expect("JSON");
                let Ok(subject) = Subject::of(&raw) else { return };
                Disconnect::Subject { app, subject }
            }
            _ => Disconnect::App(app),
        };
        let (effects, count) = self.conversation.disconnected(&disconnect);
        assert_eq!(effects.is_empty(), count == 0, "whoever is meant is closed");
        self.carry_out(effects, None);
    }

    fn online(&self, user: &str) {
        let change = OnlineChange { online: vec![user.into()], offline: Vec::new() };
        if let Some(encode) = self.encode {
            is_message(&encode(&change));
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>, message: Option<&Read>) {
        assert!(effects.len() <= EFFECTS_MAX, "{effects:?}");
        let last = effects.len().saturating_sub(1);
        for (nth, effect) in effects.into_iter().enumerate() {
            match effect {
                Effect::Send(frame) => is_message(&frame),
                Effect::Subscribe(subscription) => {
                    assert_eq!(nth, last, "who asks, waits");
                    let Some(Read::Subscribe { channel, auth, is_text, .. }) = message else {
                        panic!("nobody asked for {subscription:?}")
                    };
                    assert_eq!(subscription.topic, channel.as_str());
                    assert!(!self.subscribed.contains(channel), "{channel} is subscribed already");
                    assert!(self.subscribed.len() < CHANNELS_MAX, "too many channels");
                    let is_signed = is_signed(channel);
                    let right = self.signed_text(message.expect("one")).map(|text| hmac(&text));
                    let right = format!("{KEY}:{}", right.unwrap_or_default());
                    let is_right = *is_text && *auth == right;
                    assert!(!is_signed || is_right, "{auth} opens {channel}");
                    if let Some(user) = channel.strip_prefix("#server-to-user-") {
                        assert_eq!(self.user.as_deref(), Some(user), "another user's channel");
                    }
                    let is_presence = channel.starts_with("presence-");
                    assert_eq!(subscription.persona.is_some(), is_presence, "{channel}");
                    self.joining = Some(channel.clone());
                }
                Effect::Unsubscribe(_, topic) => {
                    let held = self.subscribed.iter().position(|held| topic == held.as_str());
                    self.subscribed.remove(held.expect("what is given up was had"));
                }
                Effect::Publish(publication) => {
                    assert_eq!(nth, last, "who publishes, waits");
                    let Some(Read::Event { event, channel, data }) = message else {
                        panic!("nobody published {publication:?}")
                    };
                    assert!(self.subscribed.contains(channel) && is_signed(channel), "{channel}");
                    assert!(data.len() <= CLIENT_EVENT_BYTES_MAX, "{data}");
                    assert_eq!(publication.event.as_str(), event);
                    assert_eq!(publication.except, Some(SESSION), "the sender is left out");
                    let Payload::Json(json) = &publication.payload else { panic!("no JSON") };
                    assert_eq!(json.as_str(), data, "the data is passed on as it is");
                    self.is_publishing = true;
                }
                Effect::SignIn(signed_in) => {
                    let Some(Read::SignIn { auth, user_data }) = message else {
                        panic!("nobody signed in")
                    };
                    let right = hmac(&format!("{}::user::{user_data}", self.socket));
                    assert_eq!(*auth, format!("{KEY}:{right}"));
                    let user = signed_in.user.to_string();
                    assert!(self.user.as_ref().is_none_or(|before| *before == user), "{user}");
                    let mut watched = signed_in.watched.to_vec();
                    watched.sort();
                    watched.dedup();
                    assert_eq!(watched.len(), signed_in.watched.len(), "each once");
                    assert!(watched.len() <= WATCHED_MAX);
                    self.user = Some(user);
                    self.encode = Some(signed_in.encode);
                }
                Effect::Close(close) => {
                    assert!(close.code.0 < 4_300, "clients would never come back: {close:?}");
                    assert_eq!(nth, last, "nothing is sent after a close");
                    self.is_closed = true;
                }
                other => panic!("{other:?} is no effect of Pusher's conversations"),
            }
        }
    }
}

/// Whether a channel needs a signature.
fn is_signed(channel: &str) -> bool {
    channel.starts_with("private-") || channel.starts_with("presence-")
}

/// A frame is an object with an event, and with data as a text, or as an object where the protocol has one.
fn is_message(frame: &Frame) {
    let Frame::Text(text) = frame else { panic!("{frame:?} is no text") };
    assert!(text.len() < 40_000, "{} bytes", text.len());
    let message: Value = serde_json::from_str(text).expect("JSON");
    let event = message["event"].as_str().expect("an event");
    let data = &message["data"];
    match event {
        "pusher:error" => {
            assert!(data["code"].is_null() || data["code"].is_u64(), "{text}");
            assert!(data["message"].is_string(), "{text}");
        }
        "pusher:subscription_error" => assert!(data["status"].is_u64(), "{text}"),
        "pusher:signin_success" => assert!(data["user_data"].is_string(), "{text}"),
        _ => {
            let data = data.as_str().expect("text");
            assert!(serde_json::from_str::<Value>(data).is_ok(), "{text}");
        }
    }
}
