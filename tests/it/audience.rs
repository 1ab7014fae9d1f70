//! "Who receives what": the specification's table over real sockets, for both wire versions.
//!
//! To show that nothing else arrives, the tests then publish one more event to each scope: within a scope there is
//! one order, so every earlier event has arrived before it.

use crate::support::{tokens::token, *};
use serde_json::{Value, json};

/// The part of a topic after the app: empty for the whole scope, otherwise one of its channels.
const LEVELS: [&str; 4] = ["", ":room", ":other", ":room:1"];

/// The scopes of the tests: one needs no token, two do.
const SCOPES: [&str; 3] = ["public", "private", "deploys"];

/// A way to publish.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// `/api/apps/<slug>/events` with this `topic` and `event`.
    Trigger(&'static str, &'static str),
    /// `/api/publish` to the topic of this level.
    Publish(&'static str, &'static str),
    /// A client's push on the topic of this level.
    Push(&'static str, &'static str),
}

/// The levels that hear a publication, and the name under which each hears it.
type Heard = &'static [(&'static str, &'static str)];

const TO_ROOM: Heard = &[("", "room:msg"), (":room", "msg")];
const TO_ROOM_1: Heard = &[("", "room:1:msg"), (":room:1", "msg")];
const TO_GENERAL: Heard = &[
    ("", "msg"),
    (":room", "#general:msg"),
    (":other", "#general:msg"),
    (":room:1", "#general:msg"),
];

/// The table.
const TABLE: &[(Way, Heard)] = &[
    (Way::Trigger("room", "msg"), TO_ROOM),
    (Way::Trigger("room:1", "msg"), TO_ROOM_1),
    (Way::Trigger("#general", "msg"), TO_GENERAL),
    (Way::Trigger("nobody", "msg"), &[("", "nobody:msg")]),
    (Way::Trigger("room", "1:msg"), &[("", "room:1:msg"), (":room", "1:msg")]),
    (Way::Publish(":room", "msg"), TO_ROOM),
    (Way::Publish("", "room:msg"), TO_ROOM),
    (Way::Publish(":room:1", "msg"), TO_ROOM_1),
    (Way::Publish("", "msg"), TO_GENERAL),
    (Way::Push(":room", "msg"), TO_ROOM),
    (Way::Push("", "room:msg"), TO_ROOM),
    (Way::Push(":room:1", "msg"), TO_ROOM_1),
    // From the whole scope, a channel with a colon cannot be addressed.
    (Way::Push("", "room:1:msg"), &[("", "room:1:msg"), (":room", "1:msg")]),
    (Way::Push(":room", "other:msg"), &[("", "room:other:msg"), (":room", "other:msg")]),
    (Way::Push("", "msg"), TO_GENERAL),
];

/// A socket with one joined topic.
struct Listener {
    socket: Socket,
    vsn: &'static str,
    scope: &'static str,
    app: String,
    level: &'static str,
}

impl Listener {
    async fn join(
        server: &TestServer,
        vsn: &'static str,
        (scope, app, level): (&'static str, &App, &'static str),
    ) -> Self {
        let mut socket = Socket::connect(server, vsn).await;
        socket.join(&format!("{scope}:{}{level}", app.slug), ticket(app)).await;
        Self { socket, vsn, scope, app: app.slug.clone(), level }
    }

    fn topic(&self) -> String {
        format!("{}:{}{}", self.scope, self.app, self.level)
    }

    fn is_in(&self, scope: &str, app: &App) -> bool {
        self.scope == scope && self.app == app.slug
    }

    /// The next frame must be exactly this event. Version 2 is compared as text, version 1 as JSON.
    async fn hears(&mut self, event: &str, payload: &str, case: &str) {
        let (frame, topic) = (self.socket.frame().await, self.topic());
        let who = format!("{topic} {} on {case}", self.vsn);
        if self.vsn == V2 {
            assert_eq!(frame, format!(r#"[null,null,"{topic}","{event}",{payload}]"#), "{who}");
        } else {
            let payload: Value = serde_json::from_str(payload).expect("JSON");
            let expected =
                json!({ "topic": topic, "event": event, "ref": null, "payload": payload });
            let frame: Value = serde_json::from_str(&frame).expect("JSON");
            assert_eq!(frame, expected, "{who}");
        }
    }
}

/// A join payload that opens every scope of an app for listening and publishing.
fn ticket(app: &App) -> Value {
    let topics: Vec<_> = SCOPES
        .iter()
        .flat_map(|s| [format!("{s}:{}", app.slug), format!("{s}:{}:*", app.slug)])
        .collect();
    json!({ "guardian_token": token(app, &json!({ "listen": topics, "publish": topics })) })
}

/// Two apps whose scopes and channels have the same names.
async fn two_apps(server: &TestServer) -> [App; 2] {
    let mut apps = Vec::new();
    for name in ["foo-app", "foo-app-2"] {
        apps.push(server.create_app(json!({ "name": name })).await);
    }
    apps.try_into().expect("two apps")
}

async fn listen_everywhere(server: &TestServer, apps: &[App]) -> Vec<Listener> {
    let mut listeners = Vec::new();
    for app in apps {
        for scope in SCOPES {
            for level in LEVELS {
                for vsn in [V1, V2] {
                    listeners.push(Listener::join(server, vsn, (scope, app, level)).await);
                }
            }
        }
    }
    listeners
}

/// Publishes; a push is done by the first listener of that topic and version.
async fn publish(
    server: &TestServer,
    listeners: &mut [Listener],
    (way, scope, app, vsn): (Way, &str, &App, &str),
    payload: &Value,
) {
    match way {
        Way::Trigger(topic, event) => {
            let event =
                json!({ "topic": topic, "event": event, "scope": scope, "payload": payload });
            server.trigger(app, event).await;
        }
        Way::Publish(level, event) => {
            let topic = format!("{scope}:{}{level}", app.slug);
            let body = json!({ "topic": topic, "event": event, "payload": payload });
            let call = request("POST", server.url("/api/publish"));
            let answer = call.header("authorization", &app.secret).json(&body).send().await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "{}"), "{way:?}");
        }
        Way::Push(level, event) => {
            let pusher = listeners
                .iter_mut()
                .find(|l| l.is_in(scope, app) && l.level == level && l.vsn == vsn)
                .expect("a listener that has joined it");
            let topic = pusher.topic();
            pusher.socket.push(json!([null, "9", topic, event, payload])).await;
        }
    }
}

#[tokio::test]
async fn everyone_hears_what_the_table_says_and_nothing_else() {
    let server = TestServer::start_with(|settings| settings.server.workers = 2);
    let apps = two_apps(&server).await;
    let mut listeners = listen_everywhere(&server, &apps).await;
    let mut idle = Socket::connect(&server, V2).await;
    let mut n = 0;
    for (way, heard) in TABLE {
        for scope in SCOPES {
            for app in &apps {
                n += 1;
                let vsn = if n % 2 == 0 { V1 } else { V2 };
                let case = format!("{way:?} in {scope} of {} by {vsn}", app.slug);
                let payload = json!({ "n": n, "text": "caf\u{e9} \u{1f600} \" \\ </script>" });
                publish(&server, &mut listeners, (*way, scope, app, vsn), &payload).await;
                let payload = payload.to_string();
                for listener in listeners.iter_mut().filter(|l| l.is_in(scope, app)) {
                    if let Some((_, event)) =
                        heard.iter().find(|(level, _)| *level == listener.level)
                    {
                        listener.hears(event, &payload, &case).await;
                    }
                }
            }
        }
        sound_everywhere(&server, &apps, &mut listeners, &format!("{way:?}")).await;
    }
    idle.assert_quiet().await;
}

/// Publishes to every scope, and checks that this event is the next that each listener hears.
async fn sound_everywhere(
    server: &TestServer,
    apps: &[App],
    listeners: &mut [Listener],
    after: &str,
) {
    for app in apps {
        for scope in SCOPES {
            let event = json!({ "topic": "#general", "event": "end", "scope": scope });
            server.trigger(app, event).await;
        }
    }
    for listener in listeners {
        let event = if listener.level.is_empty() { "end" } else { "#general:end" };
        listener.hears(event, "{}", &format!("the end of {after}")).await;
    }
}

#[tokio::test]
async fn a_socket_that_joined_several_topics_hears_each_under_its_own_name() {
    let server = TestServer::start();
    let apps = two_apps(&server).await;
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(&server, vsn).await;
        for app in &apps {
            for scope in SCOPES {
                for level in LEVELS {
                    socket.join(&format!("{scope}:{}{level}", app.slug), ticket(app)).await;
                }
            }
        }
        for (topic, expected) in [("room", TO_ROOM), ("#general", TO_GENERAL)] {
            for app in &apps {
                for scope in SCOPES {
                    let event = json!({ "topic": topic, "event": "msg", "scope": scope });
                    server.trigger(app, event).await;
                    let mut heard = Vec::new();
                    for _ in expected {
                        heard.push(socket.next().await.to_string());
                    }
                    heard.sort();
                    let name = |(level, event): &(&str, &str)| {
                        let topic = format!("{scope}:{}{level}", app.slug);
                        json!([null, null, topic, event, {}]).to_string()
                    };
                    let mut expected: Vec<_> = expected.iter().map(name).collect();
                    expected.sort();
                    assert_eq!(heard, expected, "{topic} in {scope} of {} by {vsn}", app.slug);
                }
            }
        }
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_client_that_was_refused_or_has_left_hears_nothing() {
    let server = TestServer::start();
    let [app, other] = two_apps(&server).await;
    for vsn in [V1, V2] {
        let topic = "private:foo-app";
        let mut refused = Socket::connect(&server, vsn).await;
        for payload in [json!({}), ticket(&other), json!({ "guardian_token": "a.b.c" })] {
            assert_eq!(refused.try_join(topic, payload).await["status"], "error");
        }
        let mut left = Socket::connect(&server, vsn).await;
        left.join(topic, ticket(&app)).await;
        left.push(json!(["1", "2", topic, "phx_leave", {}])).await;
        assert_eq!(left.next().await[3], "phx_reply");
        assert_eq!(left.next().await[3], "phx_close");
        let mut stays = Listener::join(&server, vsn, ("private", &app, "")).await;
        for event in ["room:msg", "msg"] {
            stays.socket.push(json!([null, "3", topic, event, {}])).await;
            stays.hears(event, "{}", "a push").await;
        }
        refused.assert_quiet().await;
        left.assert_quiet().await;
    }
}
