//! Three server processes under load while Redis, the network or a node fails: accepted events are delivered
//! everywhere, or clients that return are told that something is missing.
//!
//! `HERALD_TEST_RUNS=20` repeats each fault that number of times, each time after another pause.

mod churn;
mod trial;
mod versions;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    nodes::{NODE_TIMEOUT, Nodes, until, until_ready},
    presence::{self, change, diff, enter, plain, shown, shown_diff, ticket_of},
    proxy::{Mode, Proxy},
    redis_server::RedisServer,
    *,
};
use trial::{Outcome, Trial};

const NODES: usize = 3;

/// The pauses before the faults of each run.
fn pauses() -> impl Iterator<Item = Duration> {
    let runs = std::env::var("HERALD_TEST_RUNS").ok().and_then(|runs| runs.parse().ok());
    // The pauses are random, so that they differ between the runs of a test.
    let pause = |_: u64| Duration::from_millis((uuid::Uuid::new_v4().as_u128() % 400) as u64);
    (0..runs.unwrap_or(1)).map(pause)
}

async fn wait(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Nodes under load, connected with this Redis directly.
async fn under_load(redis: &RedisServer, pause: Duration) -> Trial {
    let trial = Trial::start(Nodes::start_on(&vec![redis.url(); NODES], &[])).await;
    wait(pause).await;
    trial
}

/// Checks that no client was told that something is missing.
fn assert_complete(outcome: &Outcome) {
    assert!(outcome.accepted > 20, "{outcome:?}");
    assert_eq!(outcome.reasons, [""; 0], "{outcome:?}");
}

/// Checks that the clients that returned were told of a new epoch, and nothing else.
fn assert_new_epoch(outcome: &Outcome) {
    assert!(outcome.accepted > 20 && outcome.refused > 0, "{outcome:?}");
    assert!(outcome.reasons.len() >= NODES, "{outcome:?}");
    assert!(outcome.reasons.iter().all(|reason| reason == "epoch"), "{outcome:?}");
}

#[tokio::test]
async fn a_redis_that_comes_back_empty() {
    for pause in pauses() {
        let mut redis = RedisServer::start(&[]);
        let trial = under_load(&redis, pause).await;
        redis.kill();
        trial.assert_refused().await;
        redis.run();
        assert_new_epoch(&trial.judge().await);
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_with_its_data() {
    for pause in pauses() {
        let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
        let trial = under_load(&redis, pause).await;
        redis.shut_down();
        trial.assert_refused().await;
        redis.run();
        assert_new_epoch(&trial.judge().await);
    }
}

#[tokio::test]
async fn a_replica_that_lags_and_takes_the_place_of_its_master() {
    for pause in pauses() {
        let mut master = RedisServer::start(&[]);
        let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
        let proxy = Proxy::before(master.port).await;
        let trial = Trial::start(Nodes::start_on(&vec![proxy.url(); NODES], &[])).await;
        replica.until_replicates().await;
        // The replica receives nothing more, while the master goes on.
        replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        wait(pause + Duration::from_millis(200)).await;
        master.kill();
        trial.assert_refused().await;
        proxy.lead_to(replica.port);
        assert_new_epoch(&trial.judge().await);
    }
}

#[tokio::test]
async fn a_failover_that_sentinel_makes() {
    for pause in pauses() {
        let mut master = RedisServer::start(&[]);
        let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
        replica.until_replicates().await;
        let sentinel = RedisServer::sentinel(master.port);
        let more = [("HERALD__ENGINE__SENTINEL_MASTER", "herald")];
        let trial = Trial::start(Nodes::start_on(&vec![sentinel.url(); NODES], &more)).await;
        until("the sentinel knows the replica", async || {
            sentinel.ask::<String>(&["INFO", "sentinel"]).contains("slaves=1")
        })
        .await;
        wait(pause).await;
        master.kill();
        assert_new_epoch(&trial.judge().await);
    }
}

#[tokio::test]
async fn a_redis_that_stands_still_for_longer_than_the_probe() {
    for pause in pauses() {
        let redis = RedisServer::start(&[]);
        let trial = under_load(&redis, pause).await;
        redis.signal("STOP");
        let begun = Instant::now();
        trial.assert_refused().await;
        // Two intervals of 500 ms, and some time for a machine under load.
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
        redis.signal("CONT");
        assert_complete(&trial.judge().await);
    }
}

/// The master that stands still has some of the partitions. The others declare that it has failed, and then the
/// whole cluster refuses commands.
#[tokio::test]
async fn a_master_of_a_cluster_that_stands_still() {
    for pause in pauses() {
        let masters = RedisServer::cluster();
        let more = [("HERALD__ENGINE__CLUSTER", "true"), ("HERALD__ENGINE__PARTITIONS", "16")];
        let trial = Trial::start(Nodes::start_on(&vec![masters[0].url(); NODES], &more)).await;
        wait(pause).await;
        masters[1].signal("STOP");
        for server in trial.nodes.servers() {
            until_ready(server, false).await;
        }
        masters[1].signal("CONT");
        assert_complete(&trial.judge().await);
    }
}

#[tokio::test]
async fn a_redis_that_is_slow() {
    for pause in pauses() {
        let redis = RedisServer::start(&[]);
        let proxy = Proxy::before(redis.port).await;
        let trial = Trial::start(Nodes::start_on(&vec![proxy.url(); NODES], &[])).await;
        proxy.set(Mode::Delay(Duration::from_millis(100)));
        wait(Duration::from_secs(1) + pause).await;
        let outcome = trial.judge().await;
        assert_complete(&outcome);
    }
}

#[tokio::test]
async fn connections_that_redis_closes() {
    for pause in pauses() {
        let redis = RedisServer::start(&[]);
        let trial = under_load(&redis, pause).await;
        for kind in ["pubsub", "normal", "pubsub"] {
            redis.ask::<()>(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
            wait(Duration::from_millis(100)).await;
        }
        assert_complete(&trial.judge().await);
    }
}

#[tokio::test]
async fn a_network_that_cuts_swallows_and_halves() {
    for pause in pauses() {
        for mode in [Mode::Cut, Mode::Blackhole, Mode::Deaf, Mode::Halve] {
            let redis = RedisServer::start(&[]);
            let proxy = Proxy::before(redis.port).await;
            let urls = [redis.url(), redis.url(), proxy.url()];
            let trial = Trial::start(Nodes::start_on(&urls, &[])).await;
            wait(pause).await;
            proxy.set(mode);
            until_ready(trial.nodes.server(2), false).await;
            for nth in 0..2 {
                let ready = get(trial.nodes.server(nth).url("/ready")).await;
                assert_eq!(ready.status, 200, "the others go on");
            }
            proxy.set(Mode::Pass);
            assert_complete(&trial.judge().await);
        }
    }
}

/// A stopped node reads nothing, and Redis closes its connection when the buffer is full. The log retains
/// what the node has missed.
#[tokio::test]
async fn a_node_that_stands_still_until_redis_gives_it_up() {
    for pause in pauses() {
        let limit = ["--client-output-buffer-limit", "pubsub", "1mb", "1mb", "0"];
        let redis = RedisServer::start(&limit);
        let trial = under_load(&redis, pause).await;
        let listeners = || {
            let clients: String = redis.ask(&["CLIENT", "LIST", "TYPE", "pubsub"]);
            clients.lines().count()
        };
        assert_eq!(listeners(), NODES);
        trial.nodes.all[2].signal("STOP");
        let filler = "x".repeat(50_000);
        until("redis gives the node up", async || {
            let event = json!({ "topic": "filler", "event": "msg", "payload": { "x": filler } });
            trial.nodes.server(0).trigger(&App::seeded(), event).await;
            listeners() < NODES
        })
        .await;
        trial.nodes.all[2].signal("CONT");
        assert_complete(&trial.judge().await);
    }
}

/// Replaces all nodes one after the other: starts a new node, then stops the old one.
async fn replace_all(trial: &mut Trial, redis: &RedisServer) {
    for nth in 0..NODES {
        let next = trial.nodes.another(&redis.url());
        until_ready(&next.server, true).await;
        let before = std::mem::replace(&mut trial.nodes.all[nth], next);
        trial.ports.set(nth, trial.nodes.server(nth).port);
        drop(before.stop());
    }
}

#[tokio::test]
async fn all_nodes_are_replaced_one_after_the_other() {
    for pause in pauses() {
        let redis = RedisServer::start(&[]);
        let mut trial = under_load(&redis, pause).await;
        replace_all(&mut trial, &redis).await;
        let outcome = trial.judge().await;
        // A request that was on its way when its node began to stop may be refused.
        assert!(outcome.refused <= NODES && outcome.unanswered == 0, "{outcome:?}");
        assert_complete(&outcome);
    }
}

/// The members that leave with the next announcement. Nobody may join with it.
async fn left(socket: &mut Socket) -> Value {
    let diff = diff(socket).await;
    assert_eq!(diff["joins"], json!({}), "{diff}");
    diff["leaves"].clone()
}

#[tokio::test]
async fn members_of_a_killed_node_leave_once_everywhere() {
    for pause in pauses() {
        let redis = RedisServer::start(&[]);
        let mut nodes = Nodes::start_on(&vec![redis.url(); NODES], &[]);
        let (mut ada, ..) = enter(nodes.server(0), V2, ticket_of("ada")).await;
        let (mut bob, ..) = enter(nodes.server(1), V2, ticket_of("bob")).await;
        assert_eq!(shown_diff(&diff(&mut ada).await), change(&["bob"], &[]));
        let mut members = Vec::new();
        for key in ["cleo", "dan", "eve"] {
            members.push(enter(nodes.server(2), V2, ticket_of(key)).await);
            for socket in [&mut ada, &mut bob] {
                assert_eq!(shown_diff(&diff(socket).await), change(&[key], &[]));
            }
        }
        wait(pause).await;
        let killed = nodes.all.pop().expect("the third");
        let at = Instant::now();
        drop(killed.crash());
        // A question to all nodes waits until the killed one is known to be gone, and no longer.
        let app = App::seeded();
        let call =
            http::request("GET", nodes.server(0).url("/api/apps/test-app/channels/presence/room"));
        let answer = call.basic(&app.key, &app.secret).send().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(at.elapsed() <= NODE_TIMEOUT + Duration::from_secs(6), "{:?}", at.elapsed());
        for socket in [&mut ada, &mut bob] {
            let mut gone = Vec::new();
            while gone.len() < 3 {
                let leaves = left(socket).await;
                gone.extend(keys(&leaves));
            }
            assert!(at.elapsed() <= NODE_TIMEOUT + Duration::from_secs(6), "{:?}", at.elapsed());
            gone.sort();
            assert_eq!(gone, ["cleo", "dan", "eve"]);
        }
        // Nobody leaves a second time: the next announcement is that of a member who enters afterwards.
        wait(NODE_TIMEOUT).await;
        let (_fay, state, _) = enter(nodes.server(1), V2, ticket_of("fay")).await;
        assert_eq!(shown(&state[4]), plain(&["ada", "bob"]));
        for socket in [&mut ada, &mut bob] {
            assert_eq!(shown_diff(&diff(socket).await), change(&["fay"], &[]));
        }
    }
}

/// The keys that a client sees on the presence channel.
struct Seen(BTreeSet<String>);

impl Seen {
    fn of(state: &Value, first: &Value) -> Self {
        let mut seen = Self(keys(state).collect());
        seen.change(first);
        seen
    }

    fn change(&mut self, diff: &Value) {
        for key in keys(&diff["leaves"]) {
            self.0.remove(&key);
        }
        self.0.extend(keys(&diff["joins"]));
    }

    /// Reads announcements until these keys are there.
    async fn until(&mut self, socket: &mut Socket, expected: &[&str]) {
        while !self.0.iter().map(String::as_str).eq(expected.iter().copied()) {
            self.change(&diff(socket).await);
        }
    }
}

fn keys(members: &Value) -> impl Iterator<Item = String> {
    members.as_object().expect("keys").keys().cloned().collect::<Vec<_>>().into_iter()
}

#[tokio::test]
async fn joins_that_were_ended_hear_nothing_later_on_a_node_that_was_cut_off() {
    for pause in pauses() {
        let redis = RedisServer::start(&[]);
        let proxy = Proxy::before(redis.port).await;
        let nodes = Nodes::start_on(&[redis.url(), proxy.url()], &[]);
        let (app, [asked, cut_off]) = (App::seeded(), [0, 1].map(|nth| nodes.server(nth)));
        let (ended, kept) = (["a", "b", "c"], "d");
        let topic = |channel: &str| format!("presence:test-app:{channel}");
        let mut sockets = Vec::new();
        for channel in ended.into_iter().chain([kept]) {
            let mut socket = Socket::connect(cut_off, V2).await;
            socket.join(&topic(channel), ticket_of(channel)).await;
            assert_eq!(socket.next().await[3], "presence_state");
            assert_eq!(socket.next().await[3], "presence_diff");
            sockets.push(socket);
        }
        proxy.set(Mode::Cut);
        wait(pause).await;
        for body in [json!({ "sub": "a" }), json!({ "topic": topic("b") }), json!({ "sub": "c" })] {
            let url = asked.url("/api/apps/test-app/disconnect");
            let call = || http::request("POST", url.clone()).basic(&app.key, &app.secret);
            // The call is refused as long as the node counts as alive.
            until("the others go on", async || call().json(&body).send().await.status == 200).await;
        }
        for channel in ended.into_iter().chain([kept]) {
            let event = json!({ "topic": channel, "event": "later", "scope": "presence" });
            asked.trigger(&app, event).await;
        }
        proxy.set(Mode::Pass);
        let mut last = sockets.pop().expect("a socket");
        while last.next().await[3] != "later" {}
        for (mut socket, channel) in sockets.into_iter().zip(ended) {
            let (frames, code) = socket.rest().await;
            assert_eq!(code, 1001, "{channel}");
            assert!(frames.iter().all(|frame| !frame.contains("later")), "{channel}: {frames:?}");
        }
    }
}

#[tokio::test]
async fn a_node_that_stands_still_beyond_its_lease_puts_its_members_again() {
    for pause in pauses() {
        let redis = RedisServer::start(&[]);
        let nodes = Nodes::start_on(&vec![redis.url(); NODES], &[]);
        let (mut ada, ..) = enter(nodes.server(0), V2, ticket_of("ada")).await;
        let (mut bob, state, own) = enter(nodes.server(2), V2, ticket_of("bob")).await;
        let mut bob_sees = Seen::of(&state[4], &own);
        assert_eq!(shown_diff(&diff(&mut ada).await), change(&["bob"], &[]));
        wait(pause).await;
        nodes.all[2].signal("STOP");
        assert_eq!(shown(&left(&mut ada).await), plain(&["bob"]));
        let (_eve, state, _) = enter(nodes.server(1), V2, ticket_of("eve")).await;
        assert_eq!(shown(&state[4]), plain(&["ada"]));
        assert_eq!(shown_diff(&diff(&mut ada).await), change(&["eve"], &[]));

        nodes.all[2].signal("CONT");
        assert_eq!(shown_diff(&diff(&mut ada).await), change(&["bob"], &[]), "bob comes back once");
        // The node may still be reading what it missed: its clients see all of it in the end.
        let (mut fay, state, first) = enter(nodes.server(2), V2, ticket_of("fay")).await;
        let mut fay_sees = Seen::of(&state[4], &first);
        fay_sees.until(&mut fay, &["ada", "bob", "eve", "fay"]).await;
        bob_sees.until(&mut bob, &["ada", "bob", "eve", "fay"]).await;
        assert_eq!(shown_diff(&diff(&mut ada).await), change(&["fay"], &[]));
        fay.push(json!(["1", "2", presence::ROOM, "phx_leave", {}])).await;
        assert_eq!(shown(&left(&mut ada).await), plain(&["fay"]));
    }
}
