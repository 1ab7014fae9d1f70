//! The second article's world: one app, topics without its name, its mount, its trigger.

use crate::support::{tokens::token, *};
use herald::app::Slug;
use serde_json::{Value, json};

fn start() -> (TestServer, App) {
    let server = TestServer::start_with(|settings| settings.single_app = Slug::parse("test-app"));
    (server, App::seeded())
}

/// A client as the article's page has it: on `/events`, its token in the join payload.
async fn client(server: &TestServer, vsn: &str) -> Socket {
    Socket::open(server, &format!("/events/websocket?vsn={vsn}")).await
}

fn ticket(app: &App) -> Value {
    let claims = json!({
        "sub": {},
        "listen": ["deploys:web", "private:123:456", "private:7:*"],
        "publish": ["private:123:*"],
    });
    json!({ "guardian_token": token(app, &claims) })
}

/// `/api/publish`, or its bulk, with the secret as it is.
async fn publish(server: &TestServer, app: &App, path: &str, body: Value) -> (u16, Value) {
    let call = request("POST", server.url(path)).header("authorization", &app.secret);
    let answer = call.json(&body).send().await;
    (answer.status, answer.json())
}

fn published() -> (u16, Value) {
    (200, json!({}))
}

#[tokio::test]
async fn the_articles_topics_are_joined_and_published_to() {
    let (server, app) = start();
    for vsn in [V1, V2] {
        let mut socket = client(&server, vsn).await;
        for topic in ["public:news", "deploys:web", "private:123:456"] {
            let reply = socket.try_join(topic, ticket(&app)).await;
            let public = json!({ "status": "ok", "response": {} });
            let joined = json!({ "status": "ok", "response": { "message": "Joined" } });
            let expected = if topic.starts_with("public") { public } else { joined };
            assert_eq!(reply, expected, "{topic}");
        }
        for topic in ["public:news", "deploys:web", "private:123:456"] {
            let body = json!({ "topic": topic, "event": "msg", "payload": { "on": topic } });
            assert_eq!(publish(&server, &app, "/api/publish", body).await, published());
            let expected = json!([null, null, topic, "msg", { "on": topic }]);
            assert_eq!(socket.next().await, expected, "{topic} to {vsn}");
        }
        socket.push(json!(["1", "2", "private:123:456", "msg", { "a": 1 }])).await;
        let heard = json!([null, null, "private:123:456", "msg", { "a": 1 }]);
        assert_eq!(socket.next().await, heard, "{vsn}");
        socket.push(json!(["1", "3", "deploys:web", "msg", {}])).await;
        let reply = socket.next().await;
        assert_eq!(reply[4], json!({ "status": "error", "response": {} }), "{vsn}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn both_mounts_lead_to_the_same_topics() {
    let (server, app) = start();
    let mut sockets = Vec::new();
    for path in ["/events/websocket", "/events", "/socket/websocket", "/socket"] {
        let mut socket = Socket::open(&server, &format!("{path}?vsn=2.0.0")).await;
        socket.join("deploys:web", ticket(&app)).await;
        sockets.push(socket);
    }
    let body = json!({ "topic": "deploys:web", "event": "done" });
    assert_eq!(publish(&server, &app, "/api/publish", body).await, published());
    for socket in &mut sockets {
        assert_eq!(socket.frame().await, r#"[null,null,"deploys:web","done",{}]"#);
    }
}

#[tokio::test]
async fn scopes_and_channels_of_the_same_names_hear_nothing_of_each_other() {
    let (server, app) = start();
    let claims = json!({ "listen": ["private:*", "deploys:*"] });
    let payload = json!({ "guardian_token": token(&app, &claims) });
    // A slug means nothing here: these are channels like any other.
    let channels = ["web", "web:1", "1", "test-app", "test-app:web"];
    let mut sockets = Vec::new();
    for vsn in [V1, V2] {
        for scope in ["public", "private", "deploys"] {
            for channel in channels {
                let topic = format!("{scope}:{channel}");
                let mut socket = client(&server, vsn).await;
                socket.join(&topic, payload.clone()).await;
                sockets.push((topic, socket));
            }
        }
    }
    let topics: Vec<String> = sockets[..15].iter().map(|(topic, _)| topic.clone()).collect();
    for topic in &topics {
        let body = json!({ "topic": topic, "event": "msg", "payload": { "to": topic } });
        assert_eq!(publish(&server, &app, "/api/publish", body).await, published());
    }
    let everyone = |scope: &str| json!({ "topic": "#general", "event": "end", "scope": scope });
    for scope in ["public", "private", "deploys"] {
        server.trigger(&app, everyone(scope)).await;
    }
    for (topic, socket) in &mut sockets {
        let own = json!([null, null, topic, "msg", { "to": topic }]);
        assert_eq!(socket.next().await, own, "{topic}");
        let end = json!([null, null, topic, "#general:end", {}]);
        assert_eq!(socket.next().await, end, "{topic}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_bulk_reaches_each_topic_in_order() {
    let (server, app) = start();
    let mut sockets = Vec::new();
    for topic in ["deploys:web", "private:123:456", "private:7:8"] {
        let mut socket = client(&server, V2).await;
        socket.join(topic, ticket(&app)).await;
        sockets.push((topic, socket));
    }
    let event = |n: usize| {
        let topic = sockets[n % 3].0;
        json!({ "topic": topic, "event": "msg", "payload": { "n": n } })
    };
    let events: Vec<_> = (0..99).map(event).collect();
    let body = json!({ "events": events });
    assert_eq!(publish(&server, &app, "/api/publish/bulk", body).await, published());
    for (nth, (topic, socket)) in sockets.iter_mut().enumerate() {
        for n in (nth..99).step_by(3) {
            let expected = format!(r#"[null,null,"{topic}","msg",{{"n":{n}}}]"#);
            assert_eq!(socket.frame().await, expected);
        }
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn what_is_no_topic_here_is_told_so() {
    let (server, app) = start();
    let unmatched = json!({ "status": "error", "response": { "reason": "unmatched topic" } });
    for topic in ["", "deploys", "deploys:", ":web", "de ploys:web", "deploys:#web", "deploys:a\tb"]
    {
        for vsn in [V1, V2] {
            let mut socket = client(&server, vsn).await;
            assert_eq!(socket.try_join(topic, ticket(&app)).await, unmatched, "{topic:?}");
        }
        let body = json!({ "topic": topic, "event": "msg" });
        let (status, _) = publish(&server, &app, "/api/publish", body).await;
        assert_eq!(status, 422, "{topic:?}");
    }
}

#[tokio::test]
async fn another_app_of_the_database_has_no_part_in_it() {
    let (server, app) = start();
    let other = server.create_app(json!({ "name": "other-app" })).await;
    let mut socket = client(&server, V2).await;
    let by_other = json!({ "guardian_token": token(&other, &json!({ "listen": ["deploys:*"] })) });
    let bad = json!({ "status": "error", "response": { "error": "invalid_token" } });
    assert_eq!(socket.try_join("deploys:web", by_other).await, bad);
    socket.join("deploys:web", ticket(&app)).await;
    let body = json!({ "topic": "deploys:web", "event": "msg" });
    let (status, _) = publish(&server, &other, "/api/publish", body).await;
    assert_eq!(status, 401);
    let event = json!({ "topic": "web", "event": "msg", "scope": "deploys" });
    let call = request("POST", server.url("/api/apps/other-app/events"));
    let answer = call.basic(&other.key, &other.secret).json(&event).send().await;
    assert_eq!(answer.status, 401);
    socket.assert_quiet().await;
}
