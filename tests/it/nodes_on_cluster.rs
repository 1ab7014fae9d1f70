//! Several server processes over a Redis Cluster of three masters.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{
    nodes::Nodes,
    presence::{change, diff, enter, plain, shown, shown_diff, ticket_of},
    recovery::{hear, publish},
    redis_server::RedisServer,
    tokens::token,
    *,
};

/// The number of scopes: enough for several partitions on each master.
const SCOPES: usize = 12;

fn topic(nth: usize) -> String {
    format!("s{nth}:test-app:room")
}

/// Joins with a position, and a token that opens all topics. Answers the `recovery` of the reply.
async fn join(socket: &mut Socket, topic: &str, since: &str) -> Value {
    let listen: Vec<_> = (0..SCOPES).map(topic_of_scope).collect();
    let ticket = token(&App::seeded(), &json!({ "sub": "ada", "listen": listen }));
    let params = json!({ "guardian_token": ticket, "since": since });
    let reply = socket.try_join(topic, params).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    reply["response"]["recovery"].clone()
}

fn topic_of_scope(nth: usize) -> String {
    format!("s{nth}:test-app:*")
}

#[tokio::test]
async fn servers_share_the_masters_of_a_cluster_and_each_partition_is_on_one_of_them() {
    let masters = RedisServer::cluster();
    // Each server is given the URL of one master, and learns from it where the others are.
    let urls = masters.each_ref().map(RedisServer::url);
    let more = [("HERALD__ENGINE__CLUSTER", "true"), ("HERALD__ENGINE__PARTITIONS", "16")];
    let nodes = Nodes::start_on(&urls, &more);

    // An event that one server accepts in any scope is heard at the next one, and replayed at the third.
    for nth in 0..SCOPES {
        let (mut socket, topic) = (Socket::connect(nodes.server(nth), V2).await, topic(nth));
        let begun = join(&mut socket, &topic, "").await;
        publish(nodes.server(nth + 1), &topic, 0..3).await;
        hear(&mut socket, 0..3).await;
        let mut other = Socket::connect(nodes.server(nth + 2), V2).await;
        let since = begun["position"].as_str().expect("a position");
        // The client receives the events live that this server has not read yet.
        assert_eq!(join(&mut other, &topic, since).await["complete"], true);
        hear(&mut other, 0..3).await;
        let mut last = Socket::connect(nodes.server(nth + 2), V2).await;
        let recovery = join(&mut last, &topic, since).await;
        assert_eq!((&recovery["complete"], &recovery["replayed"]), (&json!(true), &json!(3)));
        hear(&mut last, 0..3).await;
    }

    // A call with an idempotency key publishes once, wherever it is repeated.
    let app = App::seeded();
    let mut positions = BTreeSet::new();
    for server in nodes.servers() {
        let event = json!({
            "topic": "room", "scope": "s1", "event": "msg", "payload": {}, "idempotency_key": "k",
            "position": true,
        });
        let call = http::request("POST", server.url("/api/apps/test-app/events"));
        let answer = call.basic(&app.key, &app.secret).json(&event).send().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        positions.insert(answer.json()["position"].to_string());
    }
    assert_eq!(positions.len(), 1, "{positions:?}");

    // All servers have the same list of members, and the same count.
    let (mut ada, ..) = enter(nodes.server(0), V2, ticket_of("ada")).await;
    let (bob, state, _) = enter(nodes.server(1), V2, ticket_of("bob")).await;
    assert_eq!(shown(&state[4]), plain(&["ada"]));
    assert_eq!(shown_diff(&diff(&mut ada).await), change(&["bob"], &[]));
    let call =
        http::request("GET", nodes.server(2).url("/api/apps/test-app/channels/presence/room"));
    let answer = call.basic(&app.key, &app.secret).send().await;
    assert_eq!(answer.json()["data"]["subscribers"], 2, "{}", answer.body);
    drop(bob);
    assert_eq!(shown_diff(&diff(&mut ada).await), change(&[], &["bob"]));

    // All keys of a partition are on one master, and all masters have some.
    let mut places: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for master in &masters {
        // Some names end with binary numbers, which are not text.
        let keys: Vec<Vec<u8>> = master.ask(&["KEYS", "*"]);
        for key in keys {
            let key = String::from_utf8_lossy(&key);
            let tag = key.split(['{', '}']).nth(1).unwrap_or_else(|| panic!("a hash tag: {key}"));
            places.entry(tag.to_owned()).or_default().insert(master.port);
        }
    }
    assert!(places.values().all(|masters| masters.len() == 1), "{places:?}");
    let used: BTreeSet<_> = places.values().flatten().collect();
    assert_eq!(used.len(), masters.len(), "{places:?}");
}
