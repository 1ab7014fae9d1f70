//! The values on which all nodes agree, after Redis has lost them.

use std::time::{Duration, Instant};

use super::{OWNER, RedisServer, node_at, proxy::Proxy, settings};
use crate::{
    engine::{Engine as _, EngineState, RedisEngine, contract},
    metrics::Metrics,
};

const EIGHT: [(&str, &str); 1] = [("HERALD__ENGINE__PARTITIONS", "8")];

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + contract::PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nodes_that_connect_again_restore_what_an_empty_redis_has_lost() {
    let mut server = RedisServer::start(&[]);
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let node = node_at(&server.url(), &[]).await;
        node.follow(contract::Heard::new());
        contract::up(&*node).await;
        nodes.push(node);
    }
    let values = ["partitions", "owner", "format"];
    let meta = |server: &RedisServer| {
        let ask = |field| server.ask::<Option<String>>(&["HGET", "herald{c}:meta", field]);
        values.map(ask)
    };
    let before = meta(&server);
    assert!(before.iter().all(Option::is_some), "{before:?}");
    server.kill();
    server.run();
    until("the values are restored", || meta(&server) == before).await;
    for node in &nodes {
        contract::up(&**node).await;
    }
    let started =
        RedisEngine::start(&settings(&server.url(), &EIGHT), OWNER, Metrics::new(0)).await;
    let text = started.expect_err("it does not fit the others").to_string();
    assert!(text.contains("engine.partitions is 8"), "{text}");
}

#[tokio::test]
async fn a_node_does_not_come_back_to_nodes_with_other_values() {
    let (server, other) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let proxy = Proxy::before(server.port).await;
    let node = node_at(&proxy.url(), &[]).await;
    node.follow(contract::Heard::new());
    contract::up(&*node).await;
    // Another Redis takes the place of the first one, with a node that has begun there.
    let stranger = node_at(&other.url(), &EIGHT).await;
    stranger.follow(contract::Heard::new());
    contract::up(&*stranger).await;
    let subscribed = || {
        let stats: String = other.ask(&["INFO", "commandstats"]);
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_subscribe:calls="));
        let calls = calls.and_then(|calls| calls.split(',').next()?.parse().ok());
        calls.unwrap_or(0_u64)
    };
    let before = subscribed();
    proxy.lead_to(other.port);
    // A connection subscribes before the values are compared, so two attempts are over by the third.
    until("it tries again and again", || subscribed() >= before + 3).await;
    assert!(matches!(*node.state().borrow(), EngineState::Down { .. }));
    assert_eq!(other.ask::<String>(&["HGET", "herald{c}:meta", "partitions"]), "8");
    assert_eq!(stranger.nodes().len(), 1, "the other one does not take part");

    proxy.lead_to(server.port);
    contract::up(&*node).await;
}
