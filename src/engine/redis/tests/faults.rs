//! Faults of Redis and of the network: after each of them, every record that was acknowledged has been
//! delivered everywhere, or its loss was announced.
//!
//! `HERALD_TEST_RUNS=20` repeats each fault 20 times, each time after another pause.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::{
    super::{
        driver,
        keys::RedisKeys,
        script::{self, LogRetention},
    },
    node_at,
    proxy::{Mode, Proxy},
    redis_server::RedisServer,
    trial::Trial,
};
use crate::engine::{
    Engine as _, EngineState, LogEpoch, MemberChange, Terms, contract,
    request::{Commit, Identity, LineId, LogIndex, LogRequest, Reply, RequestFailure, Segment},
    wire::{self, BatchId},
};

/// The pauses before the faults of each run.
fn pauses() -> impl Iterator<Item = Duration> {
    let runs = std::env::var("HERALD_TEST_RUNS").ok().and_then(|runs| runs.parse().ok());
    (0..runs.unwrap_or(1)).map(|run: u64| Duration::from_millis(run * 37 % 200))
}

async fn wait(time: Duration) {
    tokio::time::sleep(time).await;
}

fn twice(url: String) -> [String; 2] {
    [url.clone(), url]
}

#[tokio::test]
async fn a_redis_that_forgot_everything_begins_a_new_epoch() {
    for pause in pauses() {
        let mut server = RedisServer::start(&[]);
        let trial = Trial::start(&twice(server.url()), &[]).await;
        wait(pause).await;
        server.kill();
        trial.until_up(0, false).await;
        trial.until_up(1, false).await;
        let refused = contract::append(&*trial.nodes[0].0, 0, "x").await;
        assert!(refused.is_err(), "no order can be given");
        server.run();
        let outcome = trial.judge().await;
        assert!(outcome.epochs == 2 && outcome.refused > 0, "{outcome:?}");
        assert!(outcome.acknowledged > 100, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_with_its_data_loses_nothing_that_is_not_announced() {
    for pause in pauses() {
        let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
        let trial = Trial::start(&twice(server.url()), &[]).await;
        wait(pause).await;
        server.shut_down();
        trial.until_up(0, false).await;
        server.run();
        let outcome = trial.judge().await;
        assert_eq!(outcome.epochs, 2, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_redis_that_stands_still_is_noticed_and_nothing_is_lost() {
    for pause in pauses() {
        let server = RedisServer::start(&[]);
        let trial = Trial::start(&twice(server.url()), &[]).await;
        wait(pause).await;
        let begun = Instant::now();
        server.signal("STOP");
        trial.until_up(0, false).await;
        trial.until_up(1, false).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        server.signal("CONT");
        let outcome = trial.judge().await;
        assert_eq!(outcome.epochs, 1, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_short_standstill_of_redis_breaks_nothing() {
    let server = RedisServer::start(&[]);
    let trial = Trial::start(&twice(server.url()), &[]).await;
    let mut pause = server.stand_still_briefly();
    let ended = tokio::task::spawn_blocking(move || pause.wait()).await.expect("a thread");
    assert!(ended.expect("an end").success());
    let outcome = trial.judge().await;
    assert_eq!((outcome.epochs, outcome.refused), (1, 0), "{outcome:?}");
}

#[tokio::test]
async fn killed_connections_are_made_anew_and_nothing_is_lost() {
    for pause in pauses() {
        let server = RedisServer::start(&[]);
        let trial = Trial::start(&twice(server.url()), &[]).await;
        wait(pause).await;
        for kind in ["pubsub", "normal", "pubsub"] {
            server.ask::<()>(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
            wait(Duration::from_millis(100)).await;
        }
        let outcome = trial.judge().await;
        assert_eq!(outcome.epochs, 1, "{outcome:?}");
    }
}

async fn network_fault(mode: Mode, lasts: Duration, goes_down: bool) {
    for pause in pauses() {
        let server = RedisServer::start(&[]);
        let proxy = Proxy::before(server.port).await;
        let trial = Trial::start(&[server.url(), proxy.url()], &[]).await;
        wait(pause).await;
        let begun = Instant::now();
        proxy.set(mode);
        if goes_down {
            trial.until_up(1, false).await;
            // Two intervals of 250 ms, and what a machine under load needs.
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            assert_eq!(*trial.nodes[0].0.state().borrow(), EngineState::Up);
        }
        wait(lasts).await;
        proxy.set(Mode::Pass);
        let outcome = trial.judge().await;
        assert_eq!(outcome.epochs, 1, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_network_that_is_cut() {
    network_fault(Mode::Cut, Duration::from_millis(400), true).await;
}

#[tokio::test]
async fn a_network_that_swallows_everything() {
    network_fault(Mode::Blackhole, Duration::from_millis(400), true).await;
}

#[tokio::test]
async fn a_connection_that_looks_alive_and_receives_nothing() {
    network_fault(Mode::Deaf, Duration::from_millis(400), true).await;
}

#[tokio::test]
async fn a_slow_network() {
    network_fault(Mode::Delay(Duration::from_millis(50)), Duration::from_secs(1), false).await;
}

#[tokio::test]
async fn a_node_that_is_silent_for_too_long_comes_back_as_another() {
    let server = RedisServer::start(&[]);
    let proxy = Proxy::before(server.port).await;
    let trial = Trial::start(&[server.url(), proxy.url()], &[]).await;
    let [(near, near_heard), (far, far_heard)] = &trial.nodes[..] else { panic!("two nodes") };
    contract::put(&**far, 2, "room", "far", 9).await.expect("put");
    contract::put(&**near, 2, "room", "near", 9).await.expect("put");
    let before = (far.node(), far.incarnation());

    proxy.set(Mode::Cut);
    let begun = Instant::now();
    near_heard.until(|told| told.left() == [before]).await;
    // The settings of the tests say 1.5 s.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(contract::members(&**near, 2, "room").await, ["near"]);

    proxy.set(Mode::Pass);
    far_heard.until(|told| !told.incarnations().is_empty()).await;
    assert_ne!(far.incarnation(), before.1);
    contract::put(&**far, 2, "room", "far", 9).await.expect("put again");
    assert_eq!(contract::members(&**near, 2, "room").await, ["far", "near"]);
    far_heard.until(|told| told.left() == [before]).await;
    trial.judge().await;
}

#[tokio::test]
async fn an_outage_of_redis_buries_nobody() {
    let server = RedisServer::start(&[]);
    let proxy = Proxy::before(server.port).await;
    let trial = Trial::start(&twice(proxy.url()), &[]).await;
    for (node, _) in &trial.nodes {
        contract::put(&**node, 1, "room", &format!("{}", node.node().0), 9).await.expect("put");
    }
    proxy.set(Mode::Cut);
    // Longer than a lease.
    wait(Duration::from_secs(3)).await;
    proxy.set(Mode::Pass);
    for node in 0..2 {
        trial.until_up(node, true).await;
    }
    wait(Duration::from_secs(3)).await;
    assert_eq!(contract::members(&*trial.nodes[0].0, 1, "room").await.len(), 2);
    assert_eq!(trial.nodes[0].1.with(contract::Told::left), []);
    trial.judge().await;
}

#[tokio::test]
async fn a_failover_that_sentinel_makes_is_followed() {
    let mut master = RedisServer::start(&[]);
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    replica.until_replicates().await;
    let deadline = Instant::now() + contract::PATIENCE;
    let sentinel = RedisServer::sentinel(master.port);
    let more = [("HERALD__ENGINE__SENTINEL_MASTER", "herald")];
    let trial = Trial::start(&twice(sentinel.url()), &more).await;
    let knows_replica = || {
        let info: String = sentinel.ask(&["INFO", "sentinel"]);
        info.contains("slaves=1")
    };
    while !knows_replica() {
        assert!(Instant::now() < deadline, "the sentinel knows the replica in time");
        wait(Duration::from_millis(50)).await;
    }
    master.kill();
    trial.until_up(0, false).await;
    let outcome = trial.judge().await;
    assert_eq!(outcome.epochs, 2, "{outcome:?}");
}

#[tokio::test]
async fn a_replica_that_lags_loses_only_what_is_announced() {
    for pause in pauses() {
        let mut master = RedisServer::start(&[]);
        let port = master.port;
        let trial = Trial::start(&twice(master.url()), &[]).await;
        let mut replica = RedisServer::start(&["--replicaof", "127.0.0.1", &port.to_string()]);
        wait(Duration::from_millis(800)).await;
        // The replica hears nothing more, while the master goes on.
        replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        wait(pause + Duration::from_millis(200)).await;
        master.kill();
        trial.until_up(0, false).await;
        // The replica takes the master's place: its data is saved, and a server on the master's port reads it.
        replica.ask::<()>(&["SAVE"]);
        let saved = replica.folder().join("dump.rdb");
        std::fs::copy(saved, master.folder().join("dump.rdb")).expect("the data is copied");
        replica.kill();
        master.run();
        let outcome = trial.judge().await;
        assert_eq!(outcome.epochs, 2, "{outcome:?}");
    }
}

/// The id of a server's data. It changes when a replica is attached, or was absent for long.
fn data_id(server: &RedisServer) -> String {
    let info: String = server.ask(&["INFO", "replication"]);
    let id = info.lines().find_map(|line| line.strip_prefix("master_replid:"));
    id.expect("an id").to_owned()
}

/// Makes all nodes connect anew.
async fn reconnect(server: &RedisServer, trial: &Trial) {
    server.ask::<()>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    wait(Duration::from_millis(300)).await;
    for node in 0..trial.nodes.len() {
        trial.until_up(node, true).await;
    }
}

/// Sends a request over a connection of its own, as if the network had delayed it.
async fn send_late(server: &RedisServer, request: LogRequest) -> Result<Reply, RequestFailure> {
    let client = redis::Client::open(server.url()).expect("a client");
    let commands = client.get_multiplexed_async_connection().await.expect("a connection");
    let kept = LogRetention { records_max: 1_000, bytes_max: 1 << 20, age_ms: 60_000 };
    let read = script::reader_of(&request);
    let spelling = script::spell(&RedisKeys::new("herald", 4, 0), LogIndex(2), request, kept);
    driver::ask(commands, spelling, read).await
}

#[tokio::test]
async fn a_delayed_request_of_an_earlier_connection_or_of_a_dead_node_changes_nothing() {
    let server = RedisServer::start(&[]);
    let trial = Trial::start(&twice(server.url()), &[]).await;
    let [(near, near_heard), (far, _)] = &trial.nodes[..] else { panic!("two nodes") };
    contract::put(&**far, 2, "room", "far", 9).await.expect("put");
    reconnect(&server, &trial).await;
    contract::put(&**far, 2, "room", "again", 9).await.expect("put");
    let life = (far.node(), far.incarnation());
    let late = |line| {
        let (place, member) = ("room".into(), "ghost".into());
        let put = MemberChange::Put { place, member, value: Bytes::new(), members_max: 9 };
        let mut records = BytesMut::new();
        wire::put_records(&[contract::record("ghost")], &mut records);
        let records = records.freeze();
        let plain = Segment { count: 1, records: records.clone(), terms: Terms::None };
        let segments = vec![plain, Segment { count: 1, records, terms: Terms::Member(put) }];
        let (head, identity) = (wire::batch_head(BatchId(7), 0, life.0), Identity(Bytes::new()));
        LogRequest::Commit(Commit { identity, fresh: LogEpoch(7), life, line, head, segments })
    };
    let (first, later) = (LineId(1), LineId(1_000));
    for _ in 0..2 {
        send_late(&server, LogRequest::Register(life, first)).await.expect("an answer");
        let refused = send_late(&server, late(first)).await;
        // If it was the node's present line, the node connects once more.
        let Err(RequestFailure::Refused { is_elsewhere: true, .. }) = refused else {
            panic!("{refused:?}");
        };
    }
    assert_eq!(contract::members(&**near, 2, "room").await, ["again", "far"]);

    // The node dies after it has connected once more.
    send_late(&server, LogRequest::Register(life, later)).await.expect("an answer");
    far.crash();
    near_heard.until(|told| told.left() == [life]).await;
    send_late(&server, LogRequest::Register(life, later)).await.expect("an answer");
    let refused = send_late(&server, late(later)).await;
    assert!(matches!(refused, Err(RequestFailure::Refused { .. })), "{refused:?}");
    assert!(contract::members(&**near, 2, "room").await.is_empty());
    let has_ghost = |told: &contract::Told| told.bodies(2).iter().any(|body| body == "ghost");
    assert!(!near_heard.with(has_ghost));
}

#[tokio::test]
async fn a_replica_that_comes_and_goes_changes_nothing() {
    let server =
        RedisServer::start(&["--repl-backlog-ttl", "1", "--repl-diskless-sync-delay", "0"]);
    let trial = Trial::start(&twice(server.url()), &[]).await;
    let mut before = data_id(&server);
    let mut replica = RedisServer::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    replica.until_replicates().await;
    for _ in 0..2 {
        let deadline = Instant::now() + contract::PATIENCE;
        while data_id(&server) == before {
            assert!(Instant::now() < deadline, "the data have another id in time");
            wait(Duration::from_millis(50)).await;
        }
        before = data_id(&server);
        reconnect(&server, &trial).await;
        replica.kill();
    }
    let outcome = trial.judge().await;
    assert_eq!(outcome.epochs, 1, "{outcome:?}");
}

#[tokio::test]
async fn a_redis_that_was_a_replica_meanwhile_begins_a_new_epoch() {
    let server = RedisServer::start(&["--repl-diskless-sync-delay", "0"]);
    let (node, heard) = (node_at(&server.url(), &[]).await, contract::Heard::new());
    node.follow(heard.clone());
    contract::up(&*node).await;
    contract::append(&*node, 0, "a").await.expect("appended");
    let copy = RedisServer::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    copy.until_replicates().await;
    copy.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    // The server takes over the data of its former replica. The node cannot tell that they are the same.
    server.ask::<()>(&["REPLICAOF", "127.0.0.1", &copy.port.to_string()]);
    server.until_replicates().await;
    server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    server.ask::<()>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    wait(Duration::from_millis(300)).await;
    contract::up(&*node).await;
    contract::append(&*node, 0, "b").await.expect("appended");
    heard.until(|told| told.bodies(0) == ["a", "b"]).await;
    assert_eq!(heard.with(|told| told.epochs(0).len()), 2);
}

#[tokio::test]
async fn the_nodes_of_a_cluster_share_the_logs() {
    let servers = RedisServer::cluster();
    let more = [("HERALD__ENGINE__CLUSTER", "true")];
    let trial = Trial::start(&twice(servers[0].url()), &more).await;
    let (node, _) = &trial.nodes[0];
    contract::put(&**node, 3, "room", "m", 9).await.expect("put");
    assert_eq!(contract::members(&*trial.nodes[1].0, 3, "room").await, ["m"]);
    let used = servers.iter().filter(|server| server.ask::<usize>(&["DBSIZE"]) > 0).count();
    assert!(used > 1, "the logs are on several servers");
    servers[1].ask::<()>(&["CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"]);
    let outcome = trial.judge().await;
    assert_eq!(outcome.epochs, 1, "{outcome:?}");
}
