//! Limits that hold for all nodes together.

use serde_json::json;

use crate::{
    nodes::{Nodes, until},
    support::{pusher_socket::path, recovery::publish, *},
};

const TOPIC: &str = "public:test-app:room";

/// A client that has joined; `None` if it was refused because the app has as many sessions as it may have.
async fn try_to_join(server: &TestServer) -> Option<Socket> {
    let mut socket = Socket::connect(server, V2).await;
    socket.push(json!(["1", "1", TOPIC, "phx_join", {}])).await;
    let answer = socket.next().await[4].clone();
    match answer["status"] == "ok" {
        true => Some(socket),
        false => {
            assert_eq!(answer["response"], json!({ "reason": "too many sessions" }));
            None
        }
    }
}

#[tokio::test]
async fn sessions_that_came_while_the_nodes_could_not_hear_each_other_are_ended_if_they_are_too_many()
 {
    let nodes = Nodes::start_with(|settings| settings.limits.sessions_per_app_max = Some(2));
    nodes.cluster.stop();
    let ready = async |server: &TestServer| get(server.url("/ready")).await.status;
    for server in nodes.both() {
        until("the engine is down", async || ready(server).await == 503).await;
    }
    let mut sockets = Vec::new();
    for server in [&nodes.first, &nodes.first, &nodes.second, &nodes.second] {
        sockets.push(try_to_join(server).await.expect("there is room, as far as this node knows"));
    }
    nodes.cluster.start();
    for socket in &mut sockets[2..] {
        assert_eq!(socket.closed().await, 1001);
    }
    for server in nodes.both() {
        until("it is ready", async || ready(server).await == 200).await;
        assert!(try_to_join(server).await.is_none(), "it is full");
    }
    publish(&nodes.second, "room", [1]).await;
    for socket in &mut sockets[..2] {
        assert_eq!(socket.next().await[4], json!({ "n": 1 }), "the others have stayed");
    }
}

#[tokio::test]
async fn an_app_has_as_many_sessions_over_all_nodes_as_it_may() {
    let nodes = Nodes::start_with(|settings| settings.limits.sessions_per_app_max = Some(3));
    let [first, second] = nodes.both();
    let mut sockets = Vec::new();
    for server in [first, first, second] {
        sockets.push(try_to_join(server).await.expect("there is room"));
    }
    for server in nodes.both() {
        // The other node may learn of the join a moment after it is answered.
        until("it is full", async || try_to_join(server).await.is_none()).await;
        let mut pusher = Socket::open(server, &path(&App::seeded())).await;
        let (frames, code) = pusher.rest().await;
        assert_eq!(code, 4004, "{frames:?}");
    }
    // When a session ends at one node, the other one has room for another.
    drop(sockets.pop());
    let mut last = None;
    until("there is room", async || {
        last = try_to_join(first).await;
        last.is_some()
    })
    .await;
    until("it is full", async || try_to_join(second).await.is_none()).await;
    // The sessions of a node that is gone are not counted.
    let (mut third, engine) = nodes.another_with(|settings| {
        settings.limits.sessions_per_app_max = Some(3);
    });
    assert!(try_to_join(&third).await.is_none(), "a new node knows the counts");
    last = None;
    until("there is room", async || {
        last = try_to_join(&third).await;
        last.is_some()
    })
    .await;
    until("it is full", async || try_to_join(second).await.is_none()).await;
    nodes.cluster.kill(engine.node());
    until("its place is free", async || {
        let socket = try_to_join(second).await;
        socket.is_some()
    })
    .await;
    third.stop();
}
