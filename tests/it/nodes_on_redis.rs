//! Several server processes with a Redis between them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    command_line::Place,
    support::{
        nodes::{NODE_TIMEOUT, Nodes, redis_url, until, until_ready},
        presence::{change, diff, enter, plain, shown, shown_diff, ticket_of},
        recovery::{ask, begin, hear, publish},
        redis_server::RedisServer,
        server::ADMIN,
        *,
    },
};

const TOPIC: &str = "public:test-app:room";

#[tokio::test]
async fn joins_under_a_flood_from_all_nodes_miss_nothing_and_hear_one_order() {
    const EACH: u64 = 60;
    let nodes = Nodes::start(3);
    let mut first = Socket::connect(nodes.server(0), V2).await;
    let since = begin(&mut first, TOPIC).await;
    let flood = async {
        let publishers = (0..3).map(async |nth: u64| {
            publish(nodes.server(nth as usize), "room", (0..EACH).map(|n| nth * 1_000 + n)).await;
        });
        futures_util::future::join_all(publishers).await;
    };
    let joiners = async {
        let mut sockets = Vec::new();
        for nth in 0..9 {
            let mut socket = Socket::connect(nodes.server(nth), V2).await;
            let recovery = ask(&mut socket, TOPIC, json!({ "since": since })).await;
            assert_eq!(recovery["complete"], true, "{recovery}");
            sockets.push(socket);
        }
        sockets
    };
    let ((), mut sockets) = tokio::join!(flood, joiners);
    sockets.push(first);
    let mut orders = Vec::new();
    for socket in &mut sockets {
        let mut order = Vec::new();
        while order.len() < 3 * EACH as usize {
            let frame = socket.next().await;
            order.push((frame[1].to_string(), frame[4]["n"].as_u64().expect("a number")));
        }
        orders.push(order);
    }
    for order in &orders {
        assert_eq!(order, &orders[0], "all have heard one order, with the same positions");
    }
    for nth in 0..3 {
        let of_one: Vec<_> =
            orders[0].iter().map(|(_, n)| *n).filter(|n| n / 1_000 == nth).collect();
        assert!(of_one.is_sorted(), "the order of each publisher is kept");
    }
}

#[tokio::test]
async fn events_of_another_database_that_has_used_the_same_redis_are_never_delivered() {
    let (url, base) = (redis_url(), "a secret key base of one of two installations".repeat(2));
    for other_base in [base.clone(), base.replace("one", "the other")] {
        let prefix = format!("test-{}", uuid::Uuid::new_v4());
        let start = |base: &str| {
            let dir = tempfile::TempDir::new().expect("a temporary folder");
            // Each of them makes a database of its own, and the app of the other one anew.
            let database = format!("sqlite://{}/herald.db", dir.path().display());
            let env = [
                ("DATABASE_URL", &*database),
                ("HERALD__ENGINE__KIND", "redis"),
                ("REDIS_URL", &*url),
                ("HERALD__ENGINE__PREFIX", &*prefix),
                ("SECRET_KEY_BASE", base),
            ];
            Process::start_in(dir, &env)
        };
        let first = start(&base);
        publish(&first.server, "room", 1..=3).await;
        let mut socket = Socket::connect(&first.server, V2).await;
        let recovery = ask(&mut socket, TOPIC, json!({ "history": 3 })).await;
        assert_eq!(recovery["replayed"], 3, "{recovery}");
        first.stop();

        let second = start(&other_base);
        let mut socket = Socket::connect(&second.server, V2).await;
        let recovery = ask(&mut socket, TOPIC, json!({ "history": 3 })).await;
        assert_eq!(recovery["replayed"], 0, "{recovery}");
        publish(&second.server, "room", [4]).await;
        assert_eq!(socket.next().await[4], json!({ "n": 4 }));
        second.signal("TERM");
        let log = second.rest_of_log();
        let warnings = log.iter().filter(|line| line.contains("has events of another database"));
        assert_eq!(warnings.count(), 1, "{log:#?}");
    }
}

#[tokio::test]
async fn a_node_that_is_killed_takes_its_members_with_it_and_its_clients_recover_on_another() {
    let mut nodes = Nodes::start(2);
    let (mut ada, _, _) = enter(nodes.server(0), V2, ticket_of("ada")).await;
    let (bob, state, _) = enter(nodes.server(1), V2, ticket_of("bob")).await;
    assert_eq!(shown(&state[4]), plain(&["ada"]));
    assert_eq!(shown_diff(&diff(&mut ada).await), change(&["bob"], &[]));
    let mut listener = Socket::connect(nodes.server(1), V2).await;
    let since = begin(&mut listener, TOPIC).await;
    let killed = nodes.all.pop().expect("the second");
    let at = Instant::now();
    drop(killed.crash());
    drop(bob);
    publish(nodes.server(0), "room", [1, 2]).await;
    let mut again = Socket::connect(nodes.server(0), V2).await;
    let recovery = ask(&mut again, TOPIC, json!({ "since": since })).await;
    assert_eq!((&recovery["complete"], &recovery["replayed"]), (&json!(true), &json!(2)));
    hear(&mut again, [1, 2]).await;
    assert_eq!(shown_diff(&diff(&mut ada).await), change(&[], &["bob"]));
    assert!(at.elapsed() <= NODE_TIMEOUT + Duration::from_secs(6), "{:?}", at.elapsed());
    // A new node has the earlier publications, and the same members as the node that was not killed.
    nodes.add(&redis_url());
    let mut late = Socket::connect(nodes.server(1), V2).await;
    let recovery = ask(&mut late, TOPIC, json!({ "since": since })).await;
    assert_eq!((&recovery["complete"], &recovery["replayed"]), (&json!(true), &json!(2)));
    let (_eve, state, _) = enter(nodes.server(1), V2, ticket_of("eve")).await;
    assert_eq!(shown(&state[4]), plain(&["ada"]), "no member of the killed node is listed");
    assert_eq!(shown_diff(&diff(&mut ada).await), change(&["eve"], &[]));
}

#[tokio::test]
async fn a_long_poll_session_goes_through_a_round_robin_without_stickiness() {
    let nodes = Nodes::start(3);
    let first = Poller::connect(nodes.server(0), "2.0.0").await;
    let mut pollers = Vec::new();
    for server in nodes.servers() {
        pollers.push(first.again(server).await);
    }
    let join = json!(["1", "1", TOPIC, "phx_join", {}]).to_string();
    assert_eq!(pollers[1].post(&join).await, 200);
    let reply = pollers[2].fetch().await;
    assert!(
        reply["messages"][0].as_str().is_some_and(|text| text.contains("phx_reply")),
        "{reply}"
    );
    for n in 0..12 {
        publish(nodes.server(n + 1), "room", [n as u64]).await;
        let fetched = pollers[n % 3].fetch().await;
        let text = fetched["messages"][0].as_str().unwrap_or_else(|| panic!("{fetched}"));
        let message: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(message[4], json!({ "n": n }));
    }
}

#[tokio::test]
async fn the_command_line_lists_all_nodes_as_each_of_them_knows_them() {
    let nodes = Nodes::start(2);
    let mut socket = Socket::connect(nodes.server(1), V2).await;
    socket.join(TOPIC, json!({})).await;
    let place =
        Place::new().with("PUSHER_ADMIN_USERNAME", ADMIN.0).with("PUSHER_ADMIN_PASSWORD", ADMIN.1);
    let mut addresses: Vec<_> =
        nodes.servers().map(|server| format!("127.0.0.1:{}", server.port)).collect();
    addresses.sort_unstable();
    for server in nodes.servers() {
        let (url, mut listed) = (server.url(""), Vec::new());
        until("both are listed with what they say of themselves", async || {
            let answer = place.run(&["nodes", "--url", &url, "--json"]).json();
            listed = answer["data"].as_array().expect("a list").clone();
            let is_told = |node: &Value| node["sessions"].is_u64() && node["address"] != "";
            listed.len() == 2 && listed.iter().all(is_told) && listed.iter().any(has_a_session)
        })
        .await;
        let text = |node: &Value, field: &str| node[field].as_str().expect("text").to_owned();
        let mut found: Vec<_> = listed.iter().map(|node| text(node, "address")).collect();
        found.sort_unstable();
        assert_eq!(found, addresses);
        for node in &listed {
            let is_asked = text(node, "address") == format!("127.0.0.1:{}", server.port);
            assert_eq!(node["this"], is_asked, "{node}");
            assert_eq!(text(node, "version"), env!("CARGO_PKG_VERSION"));
        }
        let table = place.run(&["nodes", "--url", &url]);
        let lines: Vec<_> = table.succeeded().lines().collect();
        let words: Vec<_> = lines[0].split_whitespace().collect();
        let head = ["ID", "ADDRESS", "VERSION", "STARTED", "SESSIONS", "SCOPES", "LAG", "SEEN"];
        assert_eq!(words, head);
        assert_eq!(lines.len(), 3, "{lines:?}");
    }
    let gone = nodes.server(0).url("");
    drop(nodes);
    let failed = place.run(&["nodes", "--url", &gone]);
    assert!(failed.failed(1).contains(&gone), "{failed:?}");
}

fn has_a_session(node: &Value) -> bool {
    node["sessions"] == 1
}

#[tokio::test]
async fn a_change_of_an_app_acts_on_all_nodes() {
    let nodes = Nodes::start(2);
    let app = nodes.server(0).create_app(json!({ "name": "foo-app" })).await;
    let event = json!({ "topic": "room", "event": "msg", "payload": {} });
    nodes.server(1).trigger(&app, event).await;
    let mut socket = Socket::connect(nodes.server(1), V2).await;
    socket.join("public:foo-app:room", json!({})).await;
    nodes.server(0).update_app("foo-app", json!({ "active": false })).await;
    assert_eq!(socket.closed().await, 1001);
}

#[tokio::test]
async fn a_start_warns_of_a_log_that_is_shorter_than_what_an_app_retains() {
    for (log_age, warnings) in [("4m", 1), ("5m", 0)] {
        let nodes = Nodes::start_on(&[redis_url()], &[("HERALD__ENGINE__LOG_AGE", log_age)]);
        nodes.all[0].signal("TERM");
        let log = nodes.all[0].rest_of_log();
        let told = log.iter().filter(|line| line.contains("engine.log_age")).count();
        assert_eq!(told, warnings, "{log_age}: {log:#?}");
    }
}

#[tokio::test]
async fn while_redis_is_away_nothing_is_taken_and_when_it_comes_back_empty_clients_are_told() {
    let mut redis = RedisServer::start(&[]);
    let nodes = Nodes::start_on(&vec![redis.url(); 2], &[]);
    let mut sockets = Vec::new();
    let mut positions = Vec::new();
    for server in nodes.servers() {
        let mut socket = Socket::connect(server, V2).await;
        positions.push(begin(&mut socket, TOPIC).await);
        sockets.push(socket);
    }
    publish(nodes.server(0), "room", [1]).await;
    for socket in &mut sockets {
        hear(socket, [1]).await;
    }
    redis.kill();
    for nth in 0..2 {
        until_ready(nodes.server(nth), false).await;
        let app = App::seeded();
        let call = http::request("POST", nodes.server(nth).url("/api/apps/test-app/events"));
        let event = json!({ "topic": "room", "event": "msg", "payload": { "n": 2 } });
        let answer = call.basic(&app.key, &app.secret).json(&event).send().await;
        assert_eq!(answer.status, 503);
    }
    redis.run();
    for server in nodes.servers() {
        until_ready(server, true).await;
    }
    for (socket, since) in sockets.iter_mut().zip(&positions) {
        let ended = socket.next().await;
        assert_eq!((&ended[2], &ended[3]), (&json!(TOPIC), &json!("phx_error")));
        let recovery = ask(socket, TOPIC, json!({ "since": since })).await;
        assert_eq!((&recovery["complete"], &recovery["reason"]), (&json!(false), &json!("epoch")));
    }
    publish(nodes.server(1), "room", [3]).await;
    for socket in &mut sockets {
        hear(socket, [3]).await;
    }
}
