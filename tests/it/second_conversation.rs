//! A second protocol beside Phoenix's, in one server and in the same topics. It differs from Phoenix's wherever
//! the broker and the sessions might take Phoenix's way for granted.
//!
//! The server sends the first message, the reply to a join contains the members of the channel, a payload may be
//! any JSON, a publication leaves its sender out, each frame tells one arrival or departure, and the close codes
//! differ.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering::SeqCst},
    },
    time::Duration,
};

use herald::{
    app::AppId,
    broker::{
        ChannelName, Destination, EventName, JsonText, Payload, Publication, PublicationOrigin,
        PublishError, Scope, Sender,
        outbox::Ending,
        presence::{Change, Meta, Persona, Roster},
        reserved,
        subscriber::{
            ChangeFrame, Delivery, Disconnect, Encoders, Format, Frame, Joined, Place, ScopeKey,
            SessionId, SubscribeError, Subscription,
        },
    },
    metrics::labels::{ProtocolVersion, SessionKind, Transport},
    session::{
        Close, CloseCode, Conversation, Effect, Farewell, Patience, Received,
        public_id::PublicIds,
        upgrade::{Handshake, Protocol, TurnedAway, Welcome},
    },
};
use serde_json::{Map, Value, json, value::RawValue};

use crate::support::*;

const PATH: &str = "/second";

/// The protocol, which begins a conversation for each client.
struct Second {
    app: AtomicI32,
    ids: PublicIds,
}

impl Protocol for Second {
    fn is_socket(&self, path: &str) -> bool {
        path == PATH
    }

    fn welcome(&self, _: &Handshake<'_>) -> Result<Welcome<Box<dyn Conversation>>, TurnedAway> {
        let conversation = Talk {
            app: AppId(self.app.load(SeqCst)),
            ids: self.ids.clone(),
            session: None,
            user: None,
            joining: None,
        };
        Ok(Welcome { conversation: Box::new(conversation), subprotocol: None, when_full: None })
    }
}

/// The conversation with one client.
struct Talk {
    app: AppId,
    ids: PublicIds,
    session: Option<SessionId>,
    user: Option<Persona>,
    joining: Option<String>,
}

static ENCODERS: Encoders = Encoders {
    slot: 6,
    roster_slot: 2,
    tail_bytes: None,
    has_event: |_| true,
    carry: |json, _, _| Cow::Borrowed(json),
    encode: spell,
    encode_bytes: None,
    encode_position: None,
    encode_count: None,
    positions_follow_json: false,
    begins_with_last_event: false,
    spell_members: |roster| spell_roster(roster).to_string().into(),
    encode_change: spell_change,
};

fn spell(delivery: &Delivery<'_, str>) -> Option<Frame> {
    let Delivery { topic, event, payload, sender, .. } = delivery;
    if reserved::is_pusher_event(event) {
        return None;
    }
    let from = match sender {
        Sender::Session(Some(user)) => format!(r#","from":"{user}""#),
        _ => String::new(),
    };
    let text = format!(r#"{{"channel":"{topic}","event":"{event}","data":{payload}{from}}}"#);
    Some(Frame::Text(text.into()))
}

/// The info of the newest member of each key.
fn spell_roster(roster: &Roster) -> Value {
    let newest = roster.iter().filter_map(|(key, members)| {
        let info = members.last()?.persona.meta.info_text();
        Some((key.to_owned(), serde_json::from_str(info).expect("an object")))
    });
    Value::Object(newest.collect())
}

fn spell_change(topic: &str, change: &Change) -> Vec<ChangeFrame> {
    let frame = |what: &str, key: &str, except| {
        let text = format!(r#"{{"channel":"{topic}","{what}":"{key}"}}"#);
        ChangeFrame { frame: Frame::Text(text.into()), except }
    };
    let arrived = change
        .arrived
        .iter()
        .map(|arrival| frame("arrived", &arrival.member.persona.key, arrival.sessions.clone()));
    let departed = change.departed.iter().map(|key| frame("departed", key, Vec::new()));
    arrived.chain(departed).collect()
}

impl Talk {
    fn place(&self, scope: &str, channel: &str) -> Place {
        let scope = Scope::parse(scope).expect("a scope");
        let channel = ChannelName::parse(channel).expect("a channel");
        Place { key: ScopeKey { app: self.app, scope }, channel: Some(channel) }
    }

    fn join(&mut self, order: &Map<String, Value>) -> Effect {
        let channel = order["channel"].as_str().expect("a channel").to_owned();
        let persona = order.get("user").map(|user| {
            let said = order["info"].to_string();
            let said: &RawValue = serde_json::from_str(&said).expect("JSON");
            let key = user.as_str().expect("a user").to_owned().into();
            Persona { key, meta: Meta::new(1, Some(said)).expect("strict JSON") }
        });
        let scope = if persona.is_some() { "presence" } else { "public" };
        self.user = persona.clone().or(self.user.take());
        self.joining = Some(channel.clone());
        Effect::Subscribe(Subscription {
            place: self.place(scope, &channel),
            topic: format!("{scope}/{channel}").into(),
            format: Format::of(&ENCODERS),
            persona,
            user: None,
            wanted: None,
        })
    }
}

/// A publication to the public channel `room`, to all but its sender.
#[derive(serde::Deserialize)]
struct Order<'a> {
    event: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl Conversation for Talk {
    fn begun(&mut self, session: SessionId, _: f64) -> Vec<Effect> {
        self.session = Some(session);
        assert_eq!(self.ids.read(&self.ids.spell(session)), Some(session));
        let hello = format!(r#"{{"hello":"{}"}}"#, self.ids.spell(session));
        vec![Effect::Send(Frame::Text(hello.into()))]
    }

    fn received(&mut self, message: Received, _: f64) -> Vec<Effect> {
        let Received::Text(text) = message else { panic!("only text") };
        let order: Map<String, Value> = serde_json::from_str(&text).expect("an object");
        if order.contains_key("quit") {
            return vec![Effect::Close(Close { code: CloseCode(4001), reason: "as asked" })];
        }
        if !order.contains_key("event") {
            return vec![self.join(&order)];
        }
        let Order { event, data } = serde_json::from_str(&text).expect("an order");
        let Place { key, channel } = self.place("public", "room");
        vec![Effect::Publish(Publication {
            app: key.app,
            scope: key.scope,
            destination: Destination::Channel(channel.expect("a channel")),
            event: EventName::parse(event).expect("an event"),
            payload: Payload::Json(JsonText::from_raw(data).expect("strict JSON")),
            origin: PublicationOrigin::Session {
                user: self.user.as_ref().map(|user| user.key.clone()),
            },
            except: self.session,
        })]
    }

    fn meanwhile(&self, _: &Received) -> Option<Frame> {
        None
    }

    fn subscribed(&mut self, outcome: Result<Joined, SubscribeError>, _: f64) -> Vec<Effect> {
        let members = outcome.expect("a join").members.map(|members| {
            // The roster has the members that were announced, so this client may be missing from it.
            let mut members: Map<String, Value> = serde_json::from_str(&members).expect("members");
            let Persona { key, meta } = self.user.as_ref().expect("a user");
            let info = serde_json::from_str(meta.info_text()).expect("an object");
            members.insert(key.to_string(), info);
            members
        });
        let text = json!({ "joined": self.joining.take(), "members": members }).to_string();
        vec![Effect::Send(Frame::Text(text.into()))]
    }

    fn answered(&mut self, outcome: Result<(), PublishError>, _: f64) -> Vec<Effect> {
        outcome.expect("a publication that is taken");
        Vec::new()
    }

    fn app_changed(&mut self, _: AppId, _: f64) -> Vec<Effect> {
        Vec::new()
    }

    fn disconnected(&mut self, _: &Disconnect) -> (Vec<Effect>, usize) {
        (Vec::new(), 0)
    }

    fn silent(&mut self, _: Duration) -> Patience {
        Patience::Probe(Frame::Text(r#"{"probe":true}"#.into()), Duration::from_millis(100))
    }

    fn farewell(&mut self, ending: Ending) -> Farewell {
        let (code, reason) = match ending {
            Ending::Shutdown => (4200, "come back"),
            _ => (4201, "gone"),
        };
        let last = Some(Frame::Text(format!(r#"{{"bye":{code}}}"#).into()));
        Farewell { last, close: Close { code: CloseCode(code), reason } }
    }

    fn kind(&self) -> SessionKind {
        SessionKind { transport: Transport::WebSocket, version: ProtocolVersion::V2 }
    }

    fn address(&self) -> std::net::IpAddr {
        std::net::Ipv4Addr::LOCALHOST.into()
    }
}

/// A server that speaks both protocols.
async fn both() -> TestServer {
    let ids = PublicIds::new(&"key base".into());
    let second = Arc::new(Second { app: AtomicI32::default(), ids });
    let server = TestServer::speaking(|_| {}, vec![second.clone()]);
    let answer = server.admin("GET", "/api/admin/apps/test-app", None).await;
    let id = answer.json()["data"]["id"].as_i64().expect("an id");
    second.app.store(i32::try_from(id).expect("a small id"), SeqCst);
    server
}

async fn connect(server: &TestServer) -> Socket {
    let mut socket = Socket::open(server, PATH).await;
    let hello = socket.frame().await;
    assert!(hello.starts_with(r#"{"hello":""#), "the server speaks first: {hello}");
    socket
}

async fn hears(socket: &mut Socket, expected: &str) {
    assert_eq!(socket.frame().await, expected);
}

#[tokio::test]
async fn a_publication_of_one_protocol_is_heard_in_the_words_of_the_other() {
    let server = both().await;
    let mut phoenix = Socket::connect(&server, V2).await;
    phoenix.join("public:test-app:room", json!({})).await;
    let (mut sender, mut other) = (connect(&server).await, connect(&server).await);
    for socket in [&mut sender, &mut other] {
        socket.text(r#"{"channel":"room"}"#).await;
        hears(socket, r#"{"joined":"room","members":null}"#).await;
    }
    for (data, object) in [
        ("[1, 2.0]", r#"{"data":[1, 2.0]}"#),
        (r#""{\"a\" : 1}""#, r#"{"a" : 1}"#),
        (r#""text""#, r#"{"data":"text"}"#),
        (r#"{"b":[ ]}"#, r#"{"b":[ ]}"#),
    ] {
        sender.text(format!(r#"{{"event":"msg","data":{data}}}"#)).await;
        let frame = format!(r#"{{"channel":"public/room","event":"msg","data":{data}}}"#);
        hears(&mut other, &frame).await;
        let frame = format!(r#"[null,null,"public:test-app:room","msg",{object}]"#);
        hears(&mut phoenix, &frame).await;
    }
    // The sender has heard none of its own publications: the first one that it hears is that of Phoenix's client,
    // which hears itself. The second protocol has no name for an event of Pusher's.
    for event in ["pusher:x", "msg"] {
        let push = format!(r#"[null,"5","public:test-app:room","{event}",{{"x":1}}]"#);
        phoenix.text(push).await;
        let frame = format!(r#"[null,null,"public:test-app:room","{event}",{{"x":1}}]"#);
        hears(&mut phoenix, &frame).await;
    }
    let general = json!({ "topic": "#general", "event": "all", "payload": { "y": 2 } });
    server.trigger(&App::seeded(), general).await;
    for socket in [&mut sender, &mut other] {
        hears(socket, r#"{"channel":"public/room","event":"msg","data":{"x":1}}"#).await;
        hears(socket, r##"{"channel":"public/room","event":"#general:all","data":{"y":2}}"##).await;
    }
}

#[tokio::test]
async fn both_protocols_see_one_list_of_members_each_in_its_own_way() {
    let server = both().await;
    let room = "presence:test-app:room";
    let mut phoenix = Socket::connect(&server, V2).await;
    let claims = json!({ "sub": "p", "listen": ["presence:test-app:*"], "exp": tokens::now_s() + 60, "presence": { "name": "P" } });
    let token = tokens::token(&App::seeded(), &claims);
    phoenix.join(room, json!({ "guardian_token": token })).await;
    assert_eq!(phoenix.next().await[3], "presence_state");
    assert_eq!(phoenix.next().await[4]["joins"]["p"]["metas"][0]["name"], "P");
    let mut sockets = Vec::new();
    for (user, members) in [
        ("u", json!({ "p": { "name": "P" }, "u": { "n": 1 } })),
        // Another connection of the same user.
        ("u", json!({ "p": { "name": "P" }, "u": { "n": 1 } })),
        ("v", json!({ "p": { "name": "P" }, "u": { "n": 1 }, "v": { "n": 1 } })),
    ] {
        let mut socket = connect(&server).await;
        let info = r#"{"n":1,"phx_ref":"not mine"}"#;
        socket.text(format!(r#"{{"channel":"room","user":"{user}","info":{info}}}"#)).await;
        let joined: Value = serde_json::from_str(&socket.frame().await).expect("JSON");
        assert_eq!(joined, json!({ "joined": "room", "members": members }));
        let meta = &phoenix.next().await[4]["joins"][user]["metas"][0];
        assert_eq!((&meta["n"], &meta["online_at"]), (&json!(1), &json!(1)), "{meta}");
        assert_ne!(meta["phx_ref"], "not mine");
        sockets.push(socket);
    }
    // The first member of a key is told to the others, but not to itself. A further member of the same key is not
    // told.
    let [first, second, third] = &mut sockets[..] else { panic!("three") };
    for socket in [&mut *first, &mut *second] {
        hears(socket, r#"{"channel":"presence/room","arrived":"v"}"#).await;
    }
    first.text(r#"{"quit":1}"#).await;
    assert_eq!(first.closed().await, 4001);
    assert!(phoenix.next().await[4]["leaves"]["u"].is_object());
    second.text(r#"{"quit":1}"#).await;
    assert_eq!(second.closed().await, 4001);
    hears(third, r#"{"channel":"presence/room","departed":"u"}"#).await;
    // Phoenix's client is a member like the others.
    phoenix.text(format!(r#"[null,"9","{room}","phx_leave",{{}}]"#)).await;
    hears(third, r#"{"channel":"presence/room","departed":"p"}"#).await;
}

#[tokio::test]
async fn each_protocol_takes_leave_in_its_own_words() {
    let mut server = both().await;
    let mut phoenix = Socket::connect(&server, V2).await;
    phoenix.join("public:test-app:room", json!({})).await;
    let mut second = connect(&server).await;
    server.begin_stop();
    hears(&mut second, r#"{"bye":4200}"#).await;
    assert_eq!(second.closed().await, 4200);
    assert_eq!(phoenix.closed().await, 1012);
    server.stop();
}
