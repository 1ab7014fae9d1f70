//! Several servers that share their topics through an engine in memory. Clients and web applications get the same
//! answers from every node.

use std::sync::Arc;

use herald::{engine::Engine, settings::Settings};
use serde_json::{Value, json};

use crate::{
    memory_engine::MemoryCluster,
    support::{
        presence::{change, diff, enter, plain, shown, shown_diff, ticket_of},
        recovery::{ask, begin, complete, hear, publish},
        *,
    },
};

const TOPIC: &str = "public:test-app:room";

/// Two nodes that share an engine and a database.
pub struct Nodes {
    pub cluster: MemoryCluster,
    // The second node is dropped before the first, because the first holds the database.
    pub second: TestServer,
    pub first: TestServer,
}

impl Nodes {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub fn start_with(change: fn(&mut Settings)) -> Self {
        let cluster = MemoryCluster::new(4);
        let first = TestServer::node(cluster.node(), None, change);
        let second = TestServer::node(cluster.node(), Some(&first), change);
        Self { cluster, second, first }
    }

    pub fn both(&self) -> [&TestServer; 2] {
        [&self.first, &self.second]
    }

    /// A client at each node that has joined [`TOPIC`].
    async fn listeners(&self) -> Vec<Socket> {
        let mut sockets = Vec::new();
        for server in self.both() {
            let mut socket = Socket::connect(server, V2).await;
            socket.join(TOPIC, json!({})).await;
            sockets.push(socket);
        }
        sockets
    }

    /// Starts another node, and returns it with its engine, so that the test can kill it.
    pub fn another(&self) -> (TestServer, Arc<dyn Engine>) {
        self.another_with(|_| {})
    }

    pub fn another_with(&self, change: fn(&mut Settings)) -> (TestServer, Arc<dyn Engine>) {
        let engine = self.cluster.node();
        (TestServer::node(engine.clone(), Some(&self.first), change), engine)
    }
}

/// Repeats a check until it holds.
pub async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    let in_time = tokio::time::timeout(DEADLINE, repeat_until(holds));
    in_time.await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_publication_on_any_node_is_heard_on_all_in_one_order_and_replayed_on_another() {
    let nodes = Nodes::start();
    let mut sockets = Vec::new();
    for server in nodes.both() {
        for way in [V2, V2_POLLED] {
            let mut socket = Socket::connect(server, way).await;
            let position = begin(&mut socket, TOPIC).await;
            sockets.push((socket, position));
        }
    }
    for n in 0..10 {
        publish(nodes.both()[n % 2], "room", [n as u64]).await;
    }
    let mut last = Vec::new();
    for (socket, _) in &mut sockets {
        last.push(hear(socket, 0..10).await);
    }
    last.dedup();
    assert_eq!(last.len(), 1, "all have heard the same positions: {last:?}");
    // A position is valid at both nodes.
    let since = sockets[0].1.clone();
    for server in nodes.both() {
        let mut socket = Socket::connect(server, V2).await;
        let recovery = ask(&mut socket, TOPIC, json!({ "since": since })).await;
        assert_eq!(recovery, complete(&since, 10));
        assert_eq!(hear(&mut socket, 0..10).await, last[0]);
    }
    // A new node has the publications that were retained before it began.
    let (third, _) = nodes.another();
    let mut socket = Socket::connect(&third, V2).await;
    let recovery = ask(&mut socket, TOPIC, json!({ "since": since })).await;
    assert_eq!(recovery, complete(&since, 10));
    assert_eq!(hear(&mut socket, 0..10).await, last[0]);
}

#[tokio::test]
async fn clients_of_all_nodes_hear_what_a_client_publishes() {
    let nodes = Nodes::start();
    let mut sockets = nodes.listeners().await;
    sockets[1].push(json!(["1", "9", TOPIC, "msg", { "n": 7 }])).await;
    for socket in &mut sockets {
        assert_eq!(socket.next().await[4], json!({ "n": 7 }));
    }
}

#[tokio::test]
async fn a_change_of_an_app_acts_on_all_nodes_before_it_is_answered() {
    let nodes = Nodes::start();
    let app = nodes.first.create_app(json!({ "name": "foo-app" })).await;
    // All nodes know the app as soon as it is created. The event goes to a channel that nobody joins, because a call
    // may be answered before its event has come through the log.
    let event = json!({ "topic": "elsewhere", "event": "msg", "payload": {} });
    nodes.second.trigger(&app, event.clone()).await;
    let mut socket = Socket::connect(&nodes.second, V2).await;
    socket.join("public:foo-app:room", json!({})).await;
    let inactive = json!({ "active": false });
    nodes.first.update_app("foo-app", inactive).await;
    assert_eq!(socket.closed().await, 1001, "its only app");
    let path = "/api/apps/foo-app/events";
    let call = http::request("POST", nodes.second.url(path)).basic(&app.key, &app.secret);
    assert_eq!(call.json(&event).send().await.status, 401);
}

#[tokio::test]
async fn e156_a_long_poll_session_is_fetched_and_sent_to_at_any_node() {
    let nodes = Nodes::start();
    let mut here = Poller::connect(&nodes.first, "2.0.0").await;
    let mut there = here.again(&nodes.second).await;
    let join = json!(["1", "1", TOPIC, "phx_join", {}]).to_string();
    assert_eq!(there.post(&join).await, 200);
    let reply = there.fetch().await;
    assert_eq!(reply["status"], 200, "{reply}");
    assert!(reply["messages"][0].as_str().is_some_and(|text| text.contains("phx_reply")));
    for n in 0..6 {
        publish(nodes.both()[n % 2], "room", [n as u64]).await;
        let poller = if n % 3 == 0 { &mut here } else { &mut there };
        let fetched = poller.fetch().await;
        let text = fetched["messages"][0].as_str().unwrap_or_else(|| panic!("{fetched}"));
        let message: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(message[4], json!({ "n": n }));
    }
    // A fetch whose client has hung up ends with the next fetch.
    there.park().await;
    there.hang_up(&nodes.second).await;
    there.park().await;
    // Until a node notices that a client has hung up, it may send messages to it in vain.
    let publishes = async {
        for n in 7.. {
            publish(&nodes.first, "room", [n]).await;
        }
    };
    let fetched = async {
        loop {
            let fetched = there.parked().await;
            if fetched["status"] == 200 {
                break fetched;
            }
            there.park().await;
        }
    };
    tokio::select! {
        fetched = fetched => assert!(fetched["messages"][0].is_string(), "{fetched}"),
        () = publishes => {}
    }
    // The token of a session on a node that is gone.
    let (mut third, engine) = nodes.another();
    let elsewhere = Poller::connect(&third, "2.0.0").await;
    let mut elsewhere = elsewhere.again(&nodes.first).await;
    nodes.cluster.kill(engine.node());
    assert_eq!(elsewhere.fetch().await["status"], 500, "clients reconnect");
    third.stop();
}

#[tokio::test]
async fn members_counts_and_disconnects_are_those_of_all_nodes() {
    let nodes = Nodes::start();
    let (mut ada, _, _) = enter(&nodes.first, V2, ticket_of("ada")).await;
    let (mut bob, state, told) = enter(&nodes.second, V1, ticket_of("bob")).await;
    assert_eq!(shown(&state[4]), plain(&["ada"]));
    assert_eq!(shown_diff(&told), change(&["bob"], &[]));
    assert_eq!(diff(&mut ada).await, told, "both are sent the same announcement");
    let app = App::seeded();
    for server in nodes.both() {
        let get = |path: &str| {
            let path = format!("/api/apps/test-app/{path}");
            http::request("GET", server.url(&path)).basic(&app.key, &app.secret).send()
        };
        let room = get("channels/presence/room").await.json()["data"].clone();
        assert_eq!(room["subscribers"], 2, "{room}");
        assert_eq!(shown(&room["members"]), plain(&["ada", "bob"]));
        let connections = get("connections").await.json();
        assert_eq!(connections["total"], 2, "{connections}");
    }
    let call = http::request("POST", nodes.first.url("/api/apps/test-app/disconnect"));
    let call = call.basic(&app.key, &app.secret).json(&json!({ "sub": "bob", "count": true }));
    assert_eq!(call.send().await.json(), json!({ "ended": 1 }));
    assert_eq!(bob.closed().await, 1001);
    assert_eq!(shown_diff(&diff(&mut ada).await), change(&[], &["bob"]));
}

#[tokio::test]
async fn members_of_a_node_that_dies_leave() {
    let nodes = Nodes::start();
    let (third, engine) = nodes.another();
    let (mut ada, _, _) = enter(&nodes.first, V2, ticket_of("ada")).await;
    let (_bob, _, _) = enter(&third, V2, ticket_of("bob")).await;
    assert_eq!(shown_diff(&diff(&mut ada).await), change(&["bob"], &[]));
    nodes.cluster.kill(engine.node());
    assert_eq!(shown_diff(&diff(&mut ada).await), change(&[], &["bob"]));
}

#[tokio::test]
async fn while_the_engine_is_down_nothing_is_taken_and_sessions_stay() {
    let nodes = Nodes::start();
    let mut sockets = nodes.listeners().await;
    let app = App::seeded();
    let ready = async |server: &TestServer| get(server.url("/ready")).await;
    let answer = ready(&nodes.first).await;
    assert_eq!(answer.json(), json!({ "status": "ready", "database": "ok", "engine": "ok" }));
    nodes.cluster.stop();
    until("it is not ready", async || ready(&nodes.first).await.status == 503).await;
    let answer = ready(&nodes.first).await;
    let down = json!({ "status": "the engine is down", "database": "ok", "engine": "down" });
    assert_eq!(answer.json(), down);
    until("the other is not, either", async || ready(&nodes.second).await.status == 503).await;
    let event = json!({ "topic": "room", "event": "msg", "payload": {} });
    for path in ["/api/apps/test-app/events", "/api/apps/test-app/disconnect"] {
        let body = if path.ends_with("events") { event.clone() } else { json!({ "sub": 1 }) };
        let call = http::request("POST", nodes.first.url(path)).basic(&app.key, &app.secret);
        let answer = call.json(&body).send().await;
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.header("retry-after").is_some(), "{path}");
    }
    assert_eq!(nodes.first.admin("GET", "/api/admin/nodes", None).await.status, 503);
    sockets[0].push(json!(["1", "9", TOPIC, "msg", {}])).await;
    let refused = json!({ "status": "error", "response": { "reason": "unavailable" } });
    assert_eq!(sockets[0].next().await[4], refused);
    nodes.cluster.start();
    for server in nodes.both() {
        until("it is ready again", async || ready(server).await.status == 200).await;
    }
    publish(&nodes.second, "room", [1]).await;
    for socket in &mut sockets {
        assert_eq!(socket.next().await[4], json!({ "n": 1 }), "nothing else was heard");
    }
}

#[tokio::test]
async fn a_new_epoch_ends_joins_and_not_sessions() {
    let nodes = Nodes::start();
    let mut socket = Socket::connect(&nodes.second, V2).await;
    let position = begin(&mut socket, TOPIC).await;
    publish(&nodes.first, "room", [1]).await;
    hear(&mut socket, [1]).await;
    nodes.cluster.restart_empty();
    let ended = socket.next().await;
    assert_eq!((&ended[2], &ended[3]), (&json!(TOPIC), &json!("phx_error")));
    let recovery = ask(&mut socket, TOPIC, json!({ "since": position })).await;
    assert_eq!((&recovery["complete"], &recovery["reason"]), (&json!(false), &json!("epoch")));
    publish(&nodes.first, "room", [2]).await;
    hear(&mut socket, [2]).await;
}

#[tokio::test]
async fn a_key_publishes_once_wherever_the_call_is_repeated() {
    let nodes = Nodes::start();
    let mut socket = Socket::connect(&nodes.second, V2).await;
    socket.join(TOPIC, json!({})).await;
    let app = App::seeded();
    let mut positions = Vec::new();
    for (server, n, status) in
        [(&nodes.first, 1, 200), (&nodes.second, 1, 200), (&nodes.second, 2, 422)]
    {
        let event = json!({
            "topic": "room", "event": "msg", "payload": { "n": n },
            "idempotency_key": "k", "position": true,
        });
        let call = http::request("POST", server.url("/api/apps/test-app/events"));
        let answer = call.basic(&app.key, &app.secret).json(&event).send().await;
        assert_eq!(answer.status, status, "{}", answer.body);
        positions.push(answer.json()["position"].clone());
    }
    assert_eq!(positions[0], positions[1]);
    publish(&nodes.first, "room", [3]).await;
    for n in [1, 3] {
        assert_eq!(socket.next().await[4], json!({ "n": n }));
    }
}

#[tokio::test]
async fn nodes_are_listed_and_usage_is_summed() {
    let nodes = Nodes::start();
    let mut socket = Socket::connect(&nodes.second, V2).await;
    socket.join(TOPIC, json!({})).await;
    for n in 0..4 {
        publish(nodes.both()[n % 2], "room", [n as u64]).await;
        assert_eq!(socket.next().await[4], json!({ "n": n }));
    }
    until("both are listed with what they say of themselves", async || {
        let listed = nodes.first.admin("GET", "/api/admin/nodes", None).await.json();
        let listed = listed["data"].as_array().expect("a list").clone();
        let mut addresses: Vec<_> =
            listed.iter().map(|node| node["address"].as_str().unwrap_or_default()).collect();
        addresses.sort_unstable();
        let mut expected = nodes.both().map(|server| format!("127.0.0.1:{}", server.port));
        expected.sort_unstable();
        let sessions: i64 = listed.iter().filter_map(|node| node["sessions"].as_i64()).sum();
        addresses == expected.each_ref().map(String::as_str) && sessions == 1
    })
    .await;
    for server in nodes.both() {
        let usage = server.admin("GET", "/api/admin/usage?app=test-app", None).await.json();
        let sum = |field: &str| {
            let rows = usage["data"].as_array().expect("rows").iter();
            rows.filter_map(|row| row[field].as_u64()).sum::<u64>()
        };
        assert_eq!((sum("publications"), sum("deliveries")), (4, 4), "{usage}");
    }
}
