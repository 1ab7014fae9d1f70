//! Whole servers beside a node of another version: the previous one, the next one, and versions that they cannot
//! read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;

use super::{NODES, assert_complete, pauses, replace_all, trial::Trial, wait};
use crate::{
    command_line::Place,
    support::{
        nodes::{Nodes, until, until_ready},
        other_version::{NODE, OtherNode, SETTINGS, Version},
        recovery::{ask, begin, hear, publish},
        redis_server::RedisServer,
        server::ADMIN,
        *,
    },
};

const TOPIC: &str = "public:test-app:room";

const OTHER_TOPIC: &str = "private:test-app:room";

/// The numbers of the events of the other node begin here.
const FIRST: u64 = 500_000_000;

#[tokio::test]
async fn all_nodes_are_replaced_while_one_of_another_version_publishes_and_reads() {
    for pause in pauses() {
        for version in [Version::Previous, Version::Next] {
            let redis = RedisServer::start(&[]);
            // On a slow machine a client that is away misses more events than are retained by default.
            let more = ("HERALD__HISTORY__PUBLICATIONS", "1000");
            let settings = [&SETTINGS[..], &[more]].concat();
            let nodes = Nodes::start_on(&vec![redis.url(); NODES], &settings);
            let mut trial = Trial::start(nodes).await;
            wait(pause).await;
            let (mut other, is_over) =
                (OtherNode::new(&redis, version), Arc::new(AtomicBool::new(false)));
            let until = is_over.clone();
            let publishing = tokio::task::spawn_blocking(move || {
                let mut published = 0;
                while !until.load(Relaxed) {
                    other.publish(FIRST + published);
                    published += 1;
                    std::thread::sleep(Duration::from_millis(50));
                }
                (other, published)
            });
            replace_all(&mut trial, &redis).await;
            is_over.store(true, Relaxed);
            let (other, published) = publishing.await.expect("it does not panic");
            let outcome = trial.judge().await;
            assert_complete(&outcome);
            assert!(published > 10, "{published} events of the other node");
            let missing = (FIRST..FIRST + published).find(|n| !outcome.heard.contains(n));
            assert_eq!(missing, None, "the servers have delivered all events of the other node");
            if version == Version::Previous {
                let read: std::collections::BTreeSet<_> = other.read().into_iter().collect();
                let missing = outcome.heard.iter().find(|n| !read.contains(n));
                assert_eq!(missing, None, "the other node has read all events of the servers");
            }
        }
    }
}

/// Two servers and a Redis, with a client on each of two topics at both.
struct Stage {
    nodes: Nodes,
    redis: RedisServer,
    sockets: Vec<(Socket, String)>,
    others: Vec<(Socket, String)>,
}

impl Stage {
    async fn start() -> Self {
        let redis = RedisServer::start(&[]);
        let nodes = Nodes::start_on(&vec![redis.url(); 2], &SETTINGS);
        let (mut sockets, mut others) = (Vec::new(), Vec::new());
        for server in nodes.servers() {
            for (topic, all) in [(TOPIC, &mut sockets), (OTHER_TOPIC, &mut others)] {
                let mut socket = Socket::connect(server, V2).await;
                let position = begin(&mut socket, topic).await;
                all.push((socket, position));
            }
        }
        Self { nodes, redis, sockets, others }
    }

    /// Checks that all servers are ready.
    async fn assert_ready(&self) {
        for server in self.nodes.servers() {
            let answer = get(server.url("/ready")).await;
            let ready = json!({ "status": "ready", "database": "ok", "engine": "ok" });
            assert_eq!((answer.status, answer.json()), (200, ready));
        }
    }
}

/// Checks that the joins of a topic end, and that clients that return are told that something is missing.
async fn assert_expired(sockets: &mut [(Socket, String)], topic: &str) {
    for (socket, since) in sockets {
        let ended = socket.next().await;
        assert_eq!((&ended[2], &ended[3]), (&json!(topic), &json!("phx_error")), "{ended}");
        let recovery = ask(socket, topic, json!({ "since": since })).await;
        assert_eq!(recovery["complete"], false, "{recovery}");
        assert_eq!(recovery["reason"], "expired", "{recovery}");
    }
}

#[tokio::test]
async fn records_of_a_version_that_cannot_be_read_end_the_joins_of_their_scope_alone() {
    let mut stage = Stage::start().await;
    OtherNode::new(&stage.redis, Version::OtherRecords).publish(1);
    assert_expired(&mut stage.sockets, TOPIC).await;
    for process in &stage.nodes.all {
        process.until_logged(
            "another version of Herald wrote records of the app with the number 1 that this one cannot read",
        );
    }
    for (socket, _) in &mut stage.others {
        socket.assert_quiet().await;
    }
    stage.assert_ready().await;
    publish(stage.nodes.server(0), "room", [2]).await;
    for (socket, _) in &mut stage.sockets {
        hear(socket, [2]).await;
    }
}

#[tokio::test]
async fn messages_of_a_version_that_cannot_be_read_end_the_joins_of_their_partition() {
    let mut stage = Stage::start().await;
    OtherNode::new(&stage.redis, Version::OtherMessages).publish(1);
    assert_expired(&mut stage.sockets, TOPIC).await;
    assert_expired(&mut stage.others, OTHER_TOPIC).await;
    for process in &stage.nodes.all {
        process.until_logged("1 records of partition 0 could not be read");
    }
    stage.assert_ready().await;
    publish(stage.nodes.server(1), "room", [2]).await;
    for (socket, _) in &mut stage.sockets {
        hear(socket, [2]).await;
    }
}

#[tokio::test]
async fn records_of_a_kind_that_is_not_known_are_skipped() {
    let mut stage = Stage::start().await;
    OtherNode::new(&stage.redis, Version::Next).append_other_kind();
    publish(stage.nodes.server(0), "room", [2]).await;
    for (socket, _) in &mut stage.sockets {
        hear(socket, [2]).await;
    }
}

#[tokio::test]
async fn nodes_of_another_version_are_listed_with_their_version() {
    let stage = Stage::start().await;
    let place =
        Place::new().with("PUSHER_ADMIN_USERNAME", ADMIN.0).with("PUSHER_ADMIN_PASSWORD", ADMIN.1);
    let description = json!({ "version": "0.0.9", "address": "elsewhere:1", "new": [] });
    OtherNode::new(&stage.redis, Version::Next).hold_lease(20_000, &description);
    let url = stage.nodes.server(0).url("");
    until("the other node is listed", async || {
        let listed = place.run(&["nodes", "--url", &url, "--json"]).json();
        let listed = listed["data"].as_array().expect("a list").clone();
        let other = listed.iter().find(|node| node["id"] == NODE);
        other.is_some_and(|node| node["version"] == "0.0.9" && node["sessions"] == 0)
    })
    .await;
}

/// Rewrites the log's state into another format, which has the identity of the Redis server at another place.
fn write_other_format(redis: &RedisServer) {
    redis.ask::<u64>(&["HSET", "versions{c}:meta", "format", "3"]);
    let script = "local state = redis.call('GET', KEYS[1]) \
                  redis.call('SET', KEYS[1], string.sub(state, 1, 48) .. 'more' .. string.sub(state, 49)) \
                  return 1";
    redis.ask::<u64>(&["EVAL", script, "1", "versions{p0}:state"]);
}

#[tokio::test]
async fn a_server_does_not_start_beside_servers_of_another_format_and_starts_when_they_have_stopped()
 {
    let Stage { mut nodes, redis, mut sockets, .. } = Stage::start().await;
    publish(nodes.server(0), "room", [1]).await;
    for (socket, since) in &mut sockets {
        *since = hear(socket, [1]).await;
    }
    // From now on the running servers count as servers of another format.
    redis.ask::<u64>(&["HSET", "versions{c}:meta", "format", "3"]);
    let place = Place::with_folder()
        .with("HERALD_ENV", "test")
        .with("DATABASE_URL", "sqlite://data/herald.db")
        .with("SECRET_KEY_BASE", "the key base that all nodes have in common")
        .with("HERALD__ENGINE__KIND", "redis")
        .with("REDIS_URL", &redis.url());
    let place = SETTINGS.iter().fold(place, |place, (name, value)| place.with(name, value));
    let refused = place.run(&["serve"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let expected = "the servers of the prefix \"versions\" write their log in format 3, and this version of \
                    Herald in format 2: stop them first, or choose another engine.prefix";
    assert!(refused.err.contains(expected), "{refused:?}");
    for server in nodes.servers() {
        until_ready(server, true).await;
    }

    for node in nodes.all.drain(..) {
        drop(node.stop());
    }
    write_other_format(&redis);
    nodes.add(&redis.url());
    let mut socket = Socket::connect(nodes.server(0), V2).await;
    let recovery = ask(&mut socket, TOPIC, json!({ "since": sockets[0].1 })).await;
    assert_eq!((&recovery["complete"], &recovery["reason"]), (&json!(false), &json!("epoch")));
    publish(nodes.server(0), "room", [2]).await;
    hear(&mut socket, [2]).await;
}
