//! Several nodes for their operator: the console, usage, the audit trail and the rotation of keys are the same
//! at every node.

use std::{collections::BTreeSet, time::Duration};

use herald::broker::node::NodeId;
use serde_json::{Value, json};

use crate::{
    console::{admin, app_login, call, is_in, log_in, two_apps},
    live_feed::{entries_until, entry, fed, watching},
    nodes::{Nodes, until},
    support::{
        nodes::{Two, on_two_nodes},
        tokens::token,
        *,
    },
};

/// A page that has joined a topic of the first app.
async fn page(server: &TestServer, params: Value) -> Socket {
    let mut page = Socket::connect(server, V2).await;
    page.join("private:first-app:room", params).await;
    page
}

fn event(name: &str) -> Value {
    json!({ "topic": "room", "event": name, "scope": "private" })
}

/// A socket that watches the first app at one node, when the other node knows that the app is watched.
async fn watching_both(watched: &TestServer, other: &TestServer, app: &App) -> Socket {
    let mut console = watching(watched, "first-app").await;
    let is_probe = |entry: &Value| entry["event"] == "probe";
    let is_told = |payload: &Value| {
        payload["events"].as_array().is_some_and(|events| events.iter().any(is_probe))
    };
    // The probe has no subscribers, so the node that accepts it is the only one that reports it.
    let probe = json!({ "topic": "elsewhere", "event": "probe" });
    let probes = async {
        loop {
            other.trigger(app, probe.clone()).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = fed(&mut console, "events", is_told) => {}
        () = probes => {}
    }
    other.trigger(app, event("begin")).await;
    entries_until(&mut console, "begin").await;
    console
}

async fn live_events_are_those_of_all_nodes(two: Two<'_>) {
    let [app, _] = two_apps(two[0]).await;
    for (watched, other) in [(two[0], two[1]), (two[1], two[0])] {
        let mut console = watching_both(watched, other, &app).await;
        let ticket = |sub: &str| json!({ "guardian_token": token(&app, &json!({ "listen": ["private:*"], "sub": sub })) });
        let mut pages = Vec::new();
        for (server, sub) in [(watched, "here"), (other, "there")] {
            pages.push(page(server, ticket(sub)).await);
            let joined = entry(&mut console, "join").await;
            assert_eq!(
                (&joined["topic"], &joined["sub"]),
                (&json!("private:first-app:room"), &json!(sub))
            );
        }
        // Each publication is one entry with the deliveries of both nodes, whichever node accepted it.
        for server in [watched, other] {
            server.trigger(&app, event("both")).await;
        }
        for page in &mut pages {
            assert_eq!(
                [page.next().await[3].clone(), page.next().await[3].clone()],
                ["both", "both"]
            );
        }
        other.trigger(&app, event("end")).await;
        let entries = entries_until(&mut console, "end").await;
        let both: Vec<_> = entries.iter().filter(|entry| entry["event"] == "both").collect();
        let deliveries: Vec<_> = both.iter().map(|entry| entry["deliveries"].clone()).collect();
        assert_eq!(deliveries, [2, 2], "{both:?}");
        let mut refused = Socket::connect(other, V2).await;
        refused.push(json!(["1", "1", "private:first-app:room", "phx_join", {}])).await;
        let told = entry(&mut console, "refusal").await;
        assert_eq!(
            (&told["of"], &told["topic"]),
            (&json!("join"), &json!("private:first-app:room"))
        );
        let sample = fed(&mut console, "sample", |sample| sample["sessions"] == 2).await;
        assert_eq!(sample["app"], "first-app");
        let rate = fed(&mut console, "sample", |sample| sample["publications"] == 0.0).await;
        assert_eq!(rate["deliveries"], 0.0);
        drop(pages.pop());
        let left = entry(&mut console, "leave").await;
        assert_eq!(left["sub"], "there");
        drop(pages);
        assert_eq!(entry(&mut console, "leave").await["sub"], "here");
    }
}

async fn the_overview_and_the_connections_are_those_of_all_nodes(two: Two<'_>) {
    let mut sockets = Vec::new();
    for server in [two[0], two[1], two[1]] {
        let mut socket = Socket::connect(server, V2).await;
        socket.join("public:test-app", json!({})).await;
        sockets.push(socket);
    }
    let (cookie, _) = log_in(two[0], &admin()).await;
    for server in two {
        let get = async |path: &str| call(server, "GET", path, &cookie).send().await.json();
        let overview = get("/api/admin/overview").await;
        let data = &overview["data"];
        assert_eq!(data["now"]["sessions"], json!({ "websocket": 3, "longpoll": 0 }), "{data}");
        let nodes = data["nodes"].as_array().expect("a list");
        let told: BTreeSet<_> = nodes
            .iter()
            .map(|node| (node["address"].to_string(), node["sessions"]["websocket"].to_string()))
            .collect();
        let address = |server: &TestServer| json!(format!("127.0.0.1:{}", server.port)).to_string();
        let expected = [(address(two[0]), "1".to_owned()), (address(two[1]), "2".to_owned())];
        assert_eq!(told, expected.into());
        let ids: BTreeSet<_> = nodes.iter().map(|node| node["id"].to_string()).collect();
        assert_eq!(ids.len(), 2, "{data}");
        until("all sessions are in a sample", async || {
            let samples = get("/api/admin/overview").await["data"]["samples"]["sessions"].clone();
            samples.as_array().and_then(|all| all.last()?.as_i64()) == Some(3)
        })
        .await;
        let list = get("/api/apps/test-app/connections").await;
        assert_eq!((&list["total"], list["data"].as_array().map(Vec::len)), (&json!(3), Some(3)));
    }
    // The first node lists the connections of both page by page, and ends each of them.
    let mut after = String::new();
    let mut ids = BTreeSet::new();
    for _ in 0..3 {
        let path = format!("/api/apps/test-app/connections?limit=1&after={after}");
        let list = call(two[0], "GET", &path, &cookie).send().await.json();
        after = list["data"][0]["id"].as_str().expect("an id").to_owned();
        ids.insert(after.clone());
    }
    assert_eq!(ids.len(), 3);
    for id in ids {
        let path = format!("/api/apps/test-app/connections/{id}");
        assert_eq!(call(two[0], "DELETE", &path, &cookie).send().await.status, 204);
    }
    for socket in &mut sockets {
        assert_eq!(socket.closed().await, 1001);
    }
}

async fn sessions_and_the_audit_trail_are_shared(two: Two<'_>) {
    let app = two[0].create_app(json!({ "name": "foo-app" })).await;
    let mut cookies = Vec::new();
    for (nth, credentials) in [admin(), app_login(&app)].into_iter().enumerate() {
        cookies.push(log_in(two[nth], &credentials).await.0);
        for server in two {
            assert!(is_in(server, &cookies[nth]).await);
        }
    }
    let change = json!({ "app": { "client_events": "none" } });
    let changed = call(two[1], "PATCH", "/api/apps/foo-app", &cookies[1]).json(&change);
    assert_eq!(changed.send().await.status, 200);
    let mut trails = Vec::new();
    for server in two {
        let trail = call(server, "GET", "/api/apps/foo-app/audit", &cookies[0]).send().await.json();
        let told: Vec<_> = trail["data"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|entry| (entry["actor"].clone(), entry["action"].clone()))
            .collect();
        trails.push(told);
    }
    let expected = [(json!("app"), json!("update")), (json!("admin"), json!("create"))];
    assert_eq!(trails, [expected.clone(), expected]);
    let log_out = call(two[0], "POST", "/console/logout", &cookies[0]).json(&json!({}));
    assert!(log_out.send().await.status < 300);
    until("it has ended at the other, too", async || !is_in(two[1], &cookies[0]).await).await;
    // The session of an app rests on its key.
    let rotated = json!({ "overlap_seconds": 0 });
    let path = "/api/admin/apps/foo-app/rotate";
    assert_eq!(two[0].admin("POST", path, Some(rotated)).await.status, 200);
    for server in two {
        until("the session has ended", async || !is_in(server, &cookies[1]).await).await;
    }
}

async fn a_rotation_acts_on_all_nodes_before_it_is_answered(two: Two<'_>) {
    let app = two[0].create_app(json!({ "name": "bar-app" })).await;
    let rotate = async |server: &TestServer, seconds: u64| {
        let body = json!({ "overlap_seconds": seconds });
        let answer = server.admin("POST", "/api/admin/apps/bar-app/rotate", Some(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let text = |field: &str| answer.json()["data"][field].as_str().expect("text").to_owned();
        App { slug: text("slug"), key: text("key"), secret: text("secret") }
    };
    let status = async |server: &TestServer, app: &App| {
        let call = request("POST", server.url("/api/apps/bar-app/events"));
        let event = json!({ "topic": "elsewhere", "event": "e" });
        call.basic(&app.key, &app.secret).json(&event).send().await.status
    };
    let ticket =
        |app: &App| json!({ "guardian_token": token(app, &json!({ "listen": ["private:*"] })) });
    let mut page = Socket::connect(two[1], V2).await;
    page.join("private:bar-app:room", ticket(&app)).await;
    let mut pusher = PusherSocket::of(two[1], &app).await;
    pusher.subscribe("private-room").await;
    let second = rotate(two[0], 600).await;
    // Both pairs are valid at all nodes at once.
    for server in two {
        assert_eq!([status(server, &app).await, status(server, &second).await], [200, 200]);
    }
    let third = rotate(two[0], 0).await;
    for (app, expected) in [(&app, 401), (&second, 401), (&third, 200)] {
        for server in two {
            assert_eq!(status(server, app).await, expected);
        }
    }
    assert_eq!(page.closed().await, 1001);
    assert_eq!(pusher.closed().await, 4200);
}

async fn usage_is_summed_with_its_peak(two: Two<'_>) {
    let app = two[0].create_app(json!({ "name": "baz-app" })).await;
    let mut pages = Vec::new();
    for server in [two[0], two[1], two[1]] {
        let mut page = Socket::connect(server, V2).await;
        page.join("public:baz-app:room", json!({})).await;
        pages.push(page);
    }
    for server in two {
        server.trigger(&app, json!({ "topic": "room", "event": "e" })).await;
        for page in &mut pages {
            assert_eq!(page.next().await[3], "e");
        }
    }
    // The end of a session does not lower the peak.
    drop(pages.pop());
    for server in two {
        until("the figures are those of both", async || {
            let usage =
                server.admin("GET", "/api/admin/usage?app=baz-app&by=day", None).await.json();
            // A day may end while the test runs.
            let sum = |field: &str| -> u64 {
                let rows = usage["data"].as_array().expect("rows").iter();
                rows.filter_map(|row| row[field].as_u64()).sum()
            };
            let figures = ["publications", "deliveries", "joins"].map(sum);
            figures == [2, 6, 3] && sum("connections_peak") >= 3
        })
        .await;
    }
}

on_two_nodes! {
    on redis: the_operators_side_is_that_of_all_nodes_on_redis;

    the_overview_is_that_of_all_nodes: the_overview_and_the_connections_are_those_of_all_nodes,
    a_console_is_told_the_events_of_all_nodes: live_events_are_those_of_all_nodes,
    a_login_counts_at_all_nodes: sessions_and_the_audit_trail_are_shared,
    a_rotation_acts_on_all_nodes: a_rotation_acts_on_all_nodes_before_it_is_answered,
    usage_is_that_of_all_nodes: usage_is_summed_with_its_peak,
}

/// The numbers of the nodes, in the order in which the nodes were started.
async fn numbers(nodes: &Nodes) -> Vec<NodeId> {
    let listed = nodes.first.admin("GET", "/api/admin/nodes", None).await.json();
    let ids = listed["data"].as_array().expect("a list").iter();
    let ids = ids.map(|node| node["id"].as_u64().and_then(|id| id.try_into().ok()));
    let mut ids: Vec<_> = ids.map(|id| NodeId(id.expect("a number"))).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn there_is_no_overview_while_a_node_does_not_answer() {
    let nodes = Nodes::start_with(|settings| {
        settings.socket.topic_timeout = Duration::from_millis(500);
    });
    let status = async || nodes.first.admin("GET", "/api/admin/overview", None).await.status;
    assert_eq!(status().await, 200);
    let second = numbers(&nodes).await[1];
    nodes.cluster.mute(second, true);
    assert_eq!(status().await, 503, "there is no overview without the second node");
    nodes.cluster.mute(second, false);
    until("there is one again", async || status().await == 200).await;
}

#[tokio::test]
async fn another_node_reports_when_the_one_that_did_is_gone() {
    let nodes = Nodes::start();
    let [app, _] = two_apps(&nodes.first).await;
    let mut console = watching_both(&nodes.second, &nodes.first, &app).await;
    nodes.cluster.kill(numbers(&nodes).await[0]);
    nodes.second.trigger(&app, event("after")).await;
    entries_until(&mut console, "after").await;
    let sample = fed(&mut console, "sample", |sample| sample["sessions"] == 0).await;
    assert_eq!(sample["app"], "first-app");
}
