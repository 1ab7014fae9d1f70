//! Pusher's clients as operators see them: in the metrics, the usage, the live feed, the list of connections and
//! the overview. The audit trail tells changes of the app's settings for them.

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    console::{admin, call, log_in},
    support::{
        figures::{Figures, becomes},
        pusher::{self, event, trigger},
        *,
    },
};

const SESSIONS: &str = r#"herald_sessions{transport="websocket",version="pusher"}"#;

/// Subscribes to a private channel with an invalid signature.
async fn is_refused(client: &mut PusherSocket, channel: &str) {
    client.command("pusher:subscribe", json!({ "channel": channel, "auth": "k:h" })).await;
    assert_eq!(client.hears_refusal(channel).await, 401);
}

#[tokio::test]
async fn metrics_and_the_overview_tell_sessions_by_protocol() {
    let server = TestServer::start();
    let mut first = PusherSocket::connect(&server).await;
    let mut second = PusherSocket::connect(&server).await;
    let mut phoenix = Socket::connect(&server, V2).await;
    phoenix.join("public:test-app:room", json!({})).await;
    for client in [&mut first, &mut second] {
        client.subscribe("private-room").await;
        client.subscribe("room").await;
    }
    is_refused(&mut first, "private-other").await;
    trigger(&server, event(&["room"], "1")).await;
    first.say(json!({ "event": "client-e", "channel": "private-room", "data": 1 })).await;
    assert_eq!(second.next().await["channel"], "room");
    assert_eq!(second.next().await["event"], "client-e");
    phoenix.frame().await;
    let from_client = r#"herald_publications_total{app="test-app",source="client"}"#;
    let figures = becomes(&server, from_client, 1.0).await;
    for (series, expected) in [
        (SESSIONS, 2.0),
        (r#"herald_sessions{transport="websocket",version="2"}"#, 1.0),
        (r#"herald_sessions_opened_total{transport="websocket",version="pusher"}"#, 2.0),
        (r#"herald_joins_total{outcome="ok"}"#, 5.0),
        (r#"herald_joins_total{outcome="bad_token"}"#, 1.0),
        (r#"herald_publications_total{app="test-app",source="trigger"}"#, 1.0),
        (r#"herald_subscriptions{app="test-app"}"#, 5.0),
    ] {
        assert_eq!(figures.get(series), expected, "{series}");
    }
    let (cookie, _) = log_in(&server, &admin()).await;
    let overview = call(&server, "GET", "/api/admin/overview", &cookie).send().await.json();
    let now = &overview["data"]["now"];
    assert_eq!(now["sessions"], json!({ "websocket": 3, "longpoll": 0 }));
    assert_eq!(now["protocols"], json!({ "phoenix": 1, "pusher": 2 }));
    drop((first, second));
    let figures = becomes(&server, SESSIONS, 0.0).await;
    assert_eq!(figures.get(r#"herald_sessions{transport="websocket",version="2"}"#), 1.0);
}

/// Waits until `is_all` holds for the usage of the seeded app, and returns the usage.
async fn used(server: &TestServer, is_all: impl Fn(&Value) -> bool) -> Value {
    let app = App::seeded();
    let mut last = Value::Null;
    let told = async {
        while !is_all(&last) {
            let url = server.url("/api/apps/test-app/usage?by=day");
            let answer = request("GET", url).basic(&app.key, &app.secret).send().await;
            last = answer.json()["data"][0].clone();
        }
    };
    let is_told = timeout(DEADLINE, told).await.is_ok();
    assert!(is_told, "{last}");
    last
}

#[tokio::test]
async fn usage_counts_clients_of_pusher_to_the_event() {
    let server = TestServer::start();
    server.update_app("test-app", json!({ "subscription_count": false })).await;
    let mut first = PusherSocket::connect(&server).await;
    let mut second = PusherSocket::connect(&server).await;
    let mut phoenix = Socket::connect(&server, V2).await;
    phoenix.join("public:test-app:room", json!({})).await;
    for client in [&mut first, &mut second] {
        client.subscribe("room").await;
        client.subscribe("private-room").await;
    }
    is_refused(&mut second, "private-other").await;
    // One event on two channels is two publications: three deliveries and two.
    trigger(&server, event(&["room", "private-room"], "1")).await;
    // The sender is left out of its own event.
    first.say(json!({ "event": "client-e", "channel": "private-room", "data": 1 })).await;
    for _ in 0..3 {
        second.next().await;
    }
    let mut late = PusherSocket::connect(&server).await;
    let position = server_position(&server).await;
    trigger(&server, event(&["private-room"], "2")).await;
    late.ask("private-room", Some(&json!({ "since": position }).to_string())).await;
    late.succeeded("private-room").await;
    assert_eq!(late.next().await["event"], "herald:recovery");
    assert_eq!(late.next().await["data"], "2");
    let counted = |usage: &Value| usage["deliveries"].as_u64() >= Some(3 + 2 + 1 + 2);
    let usage = used(&server, counted).await;
    for (field, expected) in [
        ("publications", 4),
        ("deliveries", 8),
        ("joins", 6),
        ("refused_joins", 1),
        ("connections_peak", 4),
        ("replayed", 1),
    ] {
        assert_eq!(usage[field], expected, "{field} of {usage}");
    }
    let bytes = |field: &str| usage[field].as_u64().expect("a number");
    assert!(bytes("bytes_in") > 0 && bytes("bytes_out") > bytes("bytes_in"), "{usage}");
}

/// The newest position of the private scope of the seeded app.
async fn server_position(server: &TestServer) -> Value {
    let app = App::seeded();
    let url = server.url("/api/apps/test-app/channels/private/room");
    let answer = request("GET", url).basic(&app.key, &app.secret).send().await;
    answer.json()["data"]["position"].clone()
}

/// A console that watches the seeded app, and the entries that it is told.
struct Console(Socket);

impl Console {
    async fn watching(server: &TestServer) -> Self {
        let (cookie, _) = log_in(server, &admin()).await;
        let body = json!({ "app": "test-app" });
        let answer = call(server, "POST", "/console/live", &cookie).json(&body).send().await;
        let data = answer.json()["data"].clone();
        let mut socket = Socket::connect(server, V2).await;
        let topic = data["topic"].as_str().expect("a topic");
        socket.join(topic, json!({ "guardian_token": data["token"], "since": "" })).await;
        Self(socket)
    }

    /// The next entry of this kind.
    async fn entry(&mut self, kind: &str) -> Value {
        let search = async {
            loop {
                let frame = self.0.next().await;
                let entries = frame[4]["events"].as_array().cloned().unwrap_or_default();
                if let Some(entry) = entries.into_iter().find(|entry| entry["kind"] == kind) {
                    return entry;
                }
            }
        };
        timeout(DEADLINE, search).await.expect("in time")
    }
}

#[tokio::test]
async fn the_live_feed_tells_what_clients_of_pusher_do_and_no_payload() {
    let server = TestServer::start();
    let mut console = Console::watching(&server).await;
    let mut client = PusherSocket::connect(&server).await;
    client.subscribe("private-room").await;
    let joined = console.entry("join").await;
    assert_eq!(joined["topic"], "private-room", "{joined}");
    is_refused(&mut client, "private-other").await;
    let refusal = console.entry("refusal").await;
    for (field, expected) in [
        ("of", "join"),
        ("topic", "private-other"),
        ("reason", "bad_token"),
        ("address", "127.0.0.1"),
    ] {
        assert_eq!(refusal[field], expected, "{refusal}");
    }
    trigger(&server, event(&["private-room"], r#"{"text":"kanari4-not-shown"}"#)).await;
    let published = console.entry("publication").await;
    assert!(!published.to_string().contains("kanari4"), "{published}");
    for (field, expected) in [
        ("topic", json!("private:test-app:room")),
        ("event", json!("msg")),
        ("deliveries", json!(1)),
        ("by", json!("http")),
    ] {
        assert_eq!(published[field], expected, "{field} of {published}");
    }
    client.say(json!({ "event": "client-e", "channel": "private-room", "data": 1 })).await;
    let published = console.entry("publication").await;
    assert_eq!((&published["event"], &published["by"]), (&json!("client-e"), &json!("client")));
    assert_eq!(published["deliveries"], 0, "the sender is left out: {published}");
    client.command("pusher:unsubscribe", json!({ "channel": "private-room" })).await;
    let left = console.entry("leave").await;
    for field in ["topic", "session"] {
        assert_eq!(left[field], joined[field], "{left}");
    }
}

#[tokio::test]
async fn connections_of_pusher_are_listed_and_ended() {
    let server = TestServer::start();
    let app = App::seeded();
    let mut client = PusherSocket::connect(&server).await;
    let _idle = PusherSocket::connect(&server).await;
    client.subscribe("private-room").await;
    client.subscribe("room").await;
    let url = server.url("/api/apps/test-app/connections");
    let listed = request("GET", url.clone()).basic(&app.key, &app.secret).send().await.json();
    assert_eq!(listed["total"], 2, "a connection that is subscribed to nothing is one: {listed}");
    let of = |field: &str| {
        let all = listed["data"].as_array().expect("a list");
        let mut found = all.iter().filter(|of| of["topics"] != json!([]));
        found.next().expect("the client")[field].clone()
    };
    for (field, expected) in [
        ("protocol", json!("pusher")),
        ("transport", json!("websocket")),
        ("vsn", json!("7")),
        ("address", json!("127.0.0.1")),
        ("topics", json!(["private:test-app:room", "public:test-app:room"])),
    ] {
        assert_eq!(of(field), expected, "{listed}");
    }
    let id = of("id");
    assert_ne!(id, client.id, "the id in the list is not the socket id");
    let url = format!("{url}/{}", id.as_str().expect("an id"));
    let ended = request("DELETE", url).basic(&app.key, &app.secret).send().await;
    assert_eq!(ended.status, 204);
    assert_eq!(client.closed().await, 4200);
    becomes(&server, SESSIONS, 1.0).await;
}

#[tokio::test]
async fn the_audit_trail_tells_changes_of_pushers_settings_and_nothing_that_clients_do() {
    let server = TestServer::start();
    let trail = async || {
        let answer = request("GET", server.url("/api/apps/test-app/audit"));
        let app = App::seeded();
        let entries = answer.basic(&app.key, &app.secret).send().await.json()["data"].clone();
        let entries = entries.as_array().expect("entries").clone();
        entries.iter().map(|of| (of["action"].clone(), of["fields"].clone())).collect::<Vec<_>>()
    };
    let before = trail().await;
    let mut client = PusherSocket::connect(&server).await;
    client.subscribe("private-room").await;
    is_refused(&mut client, "private-other").await;
    trigger(&server, event(&["private-room"], "1")).await;
    let path = "/users/1/terminate_connections";
    assert_eq!(pusher::call(&server, "POST", path).send().await.status, 200);
    assert_eq!(trail().await, before);
    for (field, value) in
        [("pusher", false), ("subscription_count", false), ("authorized_only", true)]
    {
        server.update_app("test-app", json!({ field: value })).await;
        assert_eq!(trail().await[0], (json!("update"), json!([field])));
    }
    assert_eq!(trail().await.len(), before.len() + 3);
}

#[tokio::test]
async fn nothing_that_a_client_of_pusher_says_becomes_a_label() {
    let server = TestServer::start();
    let mut client = PusherSocket::connect(&server).await;
    for name in ["kanari5", "private-kanari5", "presence-kanari5"] {
        client.command("pusher:subscribe", json!({ "channel": name, "auth": "kanari5:h" })).await;
        while client.next().await["event"] == "pusher:subscription_error" {}
    }
    client.say(json!({ "event": "client-kanari5", "channel": "kanari5", "data": 1 })).await;
    client.hears_error().await;
    let page = Figures::of(&server).await.text;
    assert!(!page.contains("kanari5"), "{page}");
}
