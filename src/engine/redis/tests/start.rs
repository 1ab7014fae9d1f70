//! Faults that stop a start, and the permissions that a node needs on Redis.

use std::sync::Arc;

use super::{OWNER, RedisServer, node_at, redis_server::free_port, settings};
use crate::{
    engine::{Engine as _, RedisEngine, contract},
    metrics::Metrics,
};

async fn refusal(url: &str, owner: [u8; 16], more: &[(&str, &str)]) -> String {
    let started = RedisEngine::start(&settings(url, more), owner, Metrics::new(0)).await;
    started.expect_err("it does not start").to_string()
}

#[tokio::test]
async fn a_redis_that_cannot_be_reached_stops_the_start_in_time() {
    let port = free_port();
    let url = format!("redis://user:hush@127.0.0.1:{port}");
    let text = refusal(&url, OWNER, &[("HERALD__ENGINE__CONNECT_RETRY", "600ms")]).await;
    let expected = format!("cannot reach redis://127.0.0.1:{port} within 600ms: ");
    assert!(text.starts_with(&expected) && !text.contains("hush"), "{text}");
}

#[tokio::test]
async fn a_redis_that_comes_late_is_waited_for() {
    let port = free_port();
    let url = format!("redis://127.0.0.1:{port}");
    let starting = tokio::spawn(async move { node_at(&url, &[]).await });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let _server = RedisServer::start_on(port, &[]);
    starting.await.expect("it starts");
}

#[tokio::test]
async fn another_number_of_partitions_stops_the_start() {
    let server = RedisServer::start(&[]);
    let _node = node_at(&server.url(), &[]).await;
    let text = refusal(&server.url(), OWNER, &[("HERALD__ENGINE__PARTITIONS", "8")]).await;
    let expected = "engine.partitions is 8, but the servers of the prefix \"herald\" use 4: set it to 4, or \
                    choose another engine.prefix";
    assert_eq!(text, expected);
}

#[tokio::test]
async fn another_owner_of_the_prefix_stops_the_start_while_a_node_lives() {
    let server = RedisServer::start(&[]);
    let node = node_at(&server.url(), &[]).await;
    node.follow(contract::Heard::new());
    contract::up(&*node).await;
    let text = refusal(&server.url(), [7; 16], &[]).await;
    let expected = "engine.prefix \"herald\" is used by servers with another SECRET_KEY_BASE: set the same, \
                    or choose another prefix";
    assert_eq!(text, expected);

    node.leave(contract::soon()).await;
    let started = RedisEngine::start(&settings(&server.url(), &[]), [7; 16], Metrics::new(0)).await;
    assert!(started.is_ok(), "the secret may change while no node lives");
}

#[tokio::test]
async fn another_format_of_the_log_stops_the_start_while_a_node_lives() {
    let server = RedisServer::start(&[]);
    let node = node_at(&server.url(), &[]).await;
    node.follow(contract::Heard::new());
    contract::up(&*node).await;
    server.ask::<()>(&["HSET", "herald{c}:meta", "format", "3"]);
    let expected = "the servers of the prefix \"herald\" write their log in format 3, and this version of \
                    Herald in format 2: stop them first, or choose another engine.prefix";
    assert_eq!(refusal(&server.url(), OWNER, &[]).await, expected);
    // The first builds wrote no format.
    server.ask::<()>(&["HDEL", "herald{c}:meta", "format"]);
    let text = refusal(&server.url(), OWNER, &[]).await;
    assert_eq!(text, expected.replace("format 3", "format 1"));

    node.leave(contract::soon()).await;
    let late = node_at(&server.url(), &[]).await;
    late.follow(contract::Heard::new());
    contract::up(&*late).await;
    let format: String = server.ask(&["HGET", "herald{c}:meta", "format"]);
    assert_eq!(format, "2");
}

#[tokio::test]
async fn a_prefix_of_another_program_stops_the_start() {
    let server = RedisServer::start(&[]);
    server.ask::<()>(&["SET", "herald{c}:meta", "x"]);
    let text = refusal(&server.url(), OWNER, &[]).await;
    let expected =
        "engine.prefix \"herald\" is used by something else in this Redis: choose another one";
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_cluster_that_is_none_stops_the_start() {
    let server = RedisServer::start(&[]);
    let text = refusal(&server.url(), OWNER, &[("HERALD__ENGINE__CLUSTER", "true")]).await;
    assert!(
        text.ends_with(
            "This instance has cluster support disabled; engine.redis_url says where it is"
        ) || text.ends_with("is not a Redis Cluster: set engine.cluster = false"),
        "{text}"
    );
}

#[tokio::test]
async fn two_prefixes_and_two_databases_hear_nothing_of_each_other() {
    for (database, prefix) in [(0, "other"), (1, "herald")] {
        let server = RedisServer::start(&[]);
        let url = format!("{}/{database}", server.url());
        let one = node_at(&server.url(), &[]).await;
        let other = node_at(&url, &[("HERALD__ENGINE__PREFIX", prefix)]).await;
        let second = node_at(&server.url(), &[]).await;
        let [one_heard, other_heard, second_heard] = [(); 3].map(|()| contract::Heard::new());
        for (node, heard) in [(&one, &one_heard), (&other, &other_heard), (&second, &second_heard)]
        {
            node.follow(heard.clone());
            contract::up(&**node).await;
        }
        one_heard.until(|told| told.live().len() == 2).await;
        contract::append(&*one, 0, "one").await.expect("appended");
        contract::append(&*other, 0, "other").await.expect("appended");
        one_heard.until(|told| told.bodies(0) == ["one"]).await;
        other_heard.until(|told| told.bodies(0) == ["other"]).await;
        assert_eq!((one.nodes().len(), other.nodes().len()), (2, 1), "{url} {prefix}");
        let answers = one.ask(None, "who?".into(), contract::soon()).await.expect("answers");
        assert_eq!(answers.len(), 2);
        other.ask(None, "who?".into(), contract::soon()).await.expect("an answer");
        let asked = |heard: &contract::Heard| heard.with(contract::Told::asked);
        assert_eq!(asked(&second_heard), [one.node()], "{url} {prefix}");
        assert_eq!(asked(&other_heard), [other.node()], "{url} {prefix}");
    }
}

#[tokio::test]
async fn a_user_with_rights_to_the_prefix_alone_is_enough() {
    let server = RedisServer::start(&[]);
    server.ask::<()>(&[
        "ACL",
        "SETUSER",
        "herald",
        "on",
        ">pass word",
        "~herald{*",
        "&herald{*",
        "-@all",
        "+eval",
        "+evalsha",
        "+get",
        "+set",
        "+unlink",
        "+hset",
        "+hget",
        "+hdel",
        "+hlen",
        "+hexists",
        "+hkeys",
        "+hvals",
        "+hgetall",
        "+hincrby",
        "+rpush",
        "+lpop",
        "+lrange",
        "+xadd",
        "+xrange",
        "+xrevrange",
        "+xtrim",
        "+publish",
        "+subscribe",
        "+info",
        "+time",
        "+type",
        "+pexpire",
        "+ping",
        "+select",
        "+client",
    ]);
    let url = format!("redis://herald:pass%20word@127.0.0.1:{}", server.port);
    let (node, heard) = (node_at(&url, &[]).await, contract::Heard::new());
    node.follow(heard.clone());
    contract::up(&*node).await;
    contract::append(&*node, 0, "a").await.expect("appended");
    contract::put(&*node, 1, "room", "m", 9).await.expect("put");
    assert_eq!(contract::members(&*node, 1, "room").await, ["m"]);
    heard.until(|told| told.bodies(0) == ["a"]).await;
    node.leave(contract::soon()).await;

    let wrong = format!("redis://herald:hush@127.0.0.1:{}", server.port);
    let text = refusal(&wrong, OWNER, &[("HERALD__ENGINE__CONNECT_RETRY", "0s")]).await;
    assert!(text.contains("WRONGPASS") || text.contains("authentication"), "{text}");
    assert!(!text.contains("hush"), "{text}");
}

#[tokio::test]
async fn a_log_outlives_a_clock_that_is_set_back() {
    let server = RedisServer::start(&[]);
    let (node, heard) = (node_at(&server.url(), &[]).await, contract::Heard::new());
    node.follow(heard.clone());
    contract::up(&*node).await;
    contract::append(&*node, 0, "a").await.expect("appended");
    // The time of the last mark, in milliseconds, lies in the future.
    let mut state: Vec<u8> = server.ask(&["GET", "herald{p0}:state"]);
    state[32..40].copy_from_slice(&(1_u64 << 45).to_be_bytes());
    let client = redis::Client::open(server.url()).expect("a client");
    let mut connection = client.get_connection().expect("a connection");
    let set = redis::cmd("SET").arg("herald{p0}:state").arg(&state[..]).exec(&mut connection);
    set.expect("the state is written");
    server.ask::<()>(&["PEXPIRE", "herald{p0}:log", "60000"]);
    contract::append(&*node, 0, "b").await.expect("appended");
    let expires_ms: u64 = server.ask(&["PTTL", "herald{p0}:log"]);
    assert!(expires_ms > 60_000, "{expires_ms}");
    heard.until(|told| told.bodies(0) == ["a", "b"]).await;
}

#[tokio::test]
async fn a_log_to_which_nothing_is_appended_forgets_what_is_too_old() {
    let server = RedisServer::start(&[]);
    let more = [("HERALD__ENGINE__LOG_AGE", "1s")];
    let (node, heard) = (node_at(&server.url(), &more).await, contract::Heard::new());
    node.follow(heard.clone());
    contract::up(&*node).await;
    contract::append(&*node, 0, "a").await.expect("appended");
    assert_eq!(server.ask::<usize>(&["EXISTS", "herald{p0}:log"]), 1);
    let deadline = std::time::Instant::now() + contract::PATIENCE;
    while server.ask::<usize>(&["EXISTS", "herald{p0}:log", "herald{p0}:marks"]) > 0 {
        assert!(std::time::Instant::now() < deadline, "it is forgotten in time");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // The numbering goes on, and a node that starts knows that something came before.
    let late = contract::Heard::new();
    let other = node_at(&server.url(), &more).await;
    other.follow(late.clone());
    contract::up(&*other).await;
    contract::append(&*node, 0, "b").await.expect("appended");
    heard.until(|told| told.bodies(0) == ["a", "b"]).await;
    late.until(|told| told.bodies(0) == ["b"]).await;
    assert_eq!(late.with(|told| told.epochs(0)[0].1), 2);
    assert_eq!((heard.with(|told| told.lost(0)), late.with(|told| told.lost(0))), (vec![], vec![]));
}

#[tokio::test]
async fn the_log_is_trimmed_to_what_it_may_retain() {
    let server = RedisServer::start(&[]);
    let more =
        [("HERALD__ENGINE__LOG_RECORDS_MAX", "1000"), ("HERALD__ENGINE__LOG_BYTES_MAX", "200000")];
    let (node, heard) = (node_at(&server.url(), &more).await, contract::Heard::new());
    node.follow(heard.clone());
    contract::up(&*node).await;
    let body = Arc::new("x".repeat(1_000));
    for _ in 0..600 {
        contract::append(&*node, 0, &body).await.expect("appended");
    }
    let length: usize = server.ask(&["XLEN", "herald{p0}:log"]);
    assert!((150..250).contains(&length), "200,000 bytes are about 195 records, not {length}");
    let late = contract::Heard::new();
    let other = node_at(&server.url(), &more).await;
    other.follow(late.clone());
    contract::up(&*other).await;
    let first = late.with(|told| told.epochs(0)[0].1);
    assert_eq!(first, 601 - late.with(|told| told.bodies(0).len() as u64));
    assert_eq!(late.with(|told| told.lost(0)), []);
}
