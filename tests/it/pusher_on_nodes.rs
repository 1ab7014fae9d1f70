//! Pusher's clients and HTTP API on several nodes: everything that concerns one connection, one user or one
//! channel works at every node that a call may reach.

use std::collections::BTreeSet;

use herald::engine::Partition;
use serde_json::json;

use crate::{
    nodes::{Nodes, until},
    pusher_users::watched,
    support::{
        figures,
        nodes::{Two, on_two_nodes},
        pusher::{call, event, trigger},
        *,
    },
};

fn message(channel: &str, data: &str) -> String {
    let data = json!(data);
    format!(r#"{{"event":"msg","channel":"{channel}","data":{data}}}"#)
}

async fn signed_in(server: &TestServer, user: &str) -> PusherSocket {
    let mut client = PusherSocket::connect(server).await;
    client.sign_in(&json!({ "id": user }).to_string()).await;
    assert_eq!(client.next().await["event"], "pusher:signin_success");
    client
}

/// A client at each server that has subscribed to a channel.
async fn pair(two: Two<'_>, channel: &str) -> [PusherSocket; 2] {
    let mut clients = [PusherSocket::connect(two[0]).await, PusherSocket::connect(two[1]).await];
    for client in &mut clients {
        client.subscribe(channel).await;
    }
    clients
}

async fn ids_differ_and_a_trigger_at_any_node_leaves_out_its_sender(two: Two<'_>) {
    let mut ids = BTreeSet::new();
    let mut clients = Vec::new();
    for nth in 0..20 {
        let client = PusherSocket::connect(two[nth % 2]).await;
        assert!(ids.insert(client.id.clone()), "{ids:?}");
        clients.push(client);
    }
    let [mut here, mut there] = pair(two, "foo").await;
    for (nth, server) in two.into_iter().chain(two).enumerate() {
        let (excluded, data) = (nth / 2, nth.to_string());
        let mut left_out = event(&["foo"], &data);
        left_out["socket_id"] = json!([&here, &there][excluded].id);
        trigger(server, left_out).await;
        trigger(server, event(&["foo"], "all")).await;
        for (of, client) in [&mut here, &mut there].into_iter().enumerate() {
            if of != excluded {
                client.hears(&message("foo", &data)).await;
            }
            client.hears(&message("foo", "all")).await;
        }
    }
    // A socket id with the number of a session and a wrong signature leaves out nobody.
    let (number, _) = there.id.split_once('.').expect("two numbers");
    let mut guessed = event(&["foo"], "guessed");
    guessed["socket_id"] = json!(format!("{number}.1"));
    trigger(two[0], guessed).await;
    there.hears(&message("foo", "guessed")).await;
}

async fn client_events_reach_the_others_at_all_nodes(two: Two<'_>) {
    let [mut here, mut there] = pair(two, "private-x").await;
    here.say(json!({ "event": "client-e", "channel": "private-x", "data": 1 })).await;
    there.hears(r#"{"event":"client-e","channel":"private-x","data":1}"#).await;
    there.say(json!({ "event": "client-e", "channel": "private-x", "data": 2 })).await;
    // The client does not hear its own event, which would have come first.
    here.hears(r#"{"event":"client-e","channel":"private-x","data":2}"#).await;
}

async fn a_user_is_sent_events_and_terminated_at_all_nodes(two: Two<'_>) {
    let mine = "#server-to-user-ada";
    let mut here = signed_in(two[0], "ada").await;
    let mut there = signed_in(two[1], "ada").await;
    let mut other = signed_in(two[1], "bob").await;
    other.ask(mine, None).await;
    assert_eq!(other.hears_refusal(mine).await, 401);
    for client in [&mut here, &mut there] {
        client.subscribe(mine).await;
    }
    for server in two {
        trigger(server, event(&[mine], "1")).await;
        for client in [&mut here, &mut there] {
            client.hears(&message(mine, "1")).await;
        }
    }
    let path = "/users/ada/terminate_connections";
    let answer = call(two[0], "POST", path).body("{}").outcome().await;
    assert_eq!(answer, (200, "{}".to_owned()));
    assert_eq!([here.closed().await, there.closed().await], [4009, 4009]);
    other.assert_quiet().await;
}

#[tokio::test]
async fn a_trigger_that_is_too_large_for_the_log_is_refused_for_good() {
    let nodes = Nodes::start_with(|settings| settings.pusher.event_bytes_max = 200_000);
    let mut client = PusherSocket::connect(&nodes.second).await;
    client.subscribe("foo-0").await;
    let channels: Vec<_> = (0..100).map(|nth| format!("foo-{nth}")).collect();
    let channels: Vec<_> = channels.iter().map(String::as_str).collect();
    let large = event(&channels, &"x".repeat(170_000));
    let answer = call(&nodes.first, "POST", "/events").json(&large).outcome().await;
    let text = "the events of this request exceed the allowed maximum (16777216 bytes)\n";
    assert_eq!(answer, (413, text.to_owned()));
    trigger(&nodes.first, event(&channels, "small")).await;
    client.hears(&message("foo-0", "small")).await;
}

async fn presence_and_counts_are_those_of_all_nodes(two: Two<'_>) {
    let room = "presence-room";
    let mut here = PusherSocket::connect(two[0]).await;
    here.enter(room, r#"{"user_id":"ada","user_info":{"n":1}}"#).await;
    let mut there = PusherSocket::connect(two[1]).await;
    let roster = there.enter(room, r#"{"user_id":"bob"}"#).await;
    let hash = json!({ "ada": { "n": 1 }, "bob": null });
    assert_eq!(roster, json!({ "ids": ["ada", "bob"], "hash": hash, "count": 2 }));
    assert_eq!(here.next().await["event"], "pusher_internal:member_added");
    // A second connection of a user, at another node than the first, is no other member.
    let mut again = PusherSocket::connect(two[1]).await;
    let roster = again.enter(room, r#"{"user_id":"ada","user_info":{"n":1}}"#).await;
    assert_eq!(roster["count"], 2);
    again.subscribe("foo").await;
    here.subscribe("foo").await;
    for server in two {
        let json = async |path: &str, info: &str| {
            let answer = call(server, "GET", path).param("info", info).send().await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            answer.json()
        };
        let found = json("/channels/presence-room", "user_count,subscription_count").await;
        let expected = json!({ "occupied": true, "user_count": 2, "subscription_count": 3 });
        assert_eq!(found, expected);
        let users = call(server, "GET", "/channels/presence-room/users").send().await.json();
        let users = users["users"].as_array().expect("a list").iter();
        let ids: BTreeSet<_> = users.map(|user| user["id"].as_str()).collect();
        assert_eq!(ids, BTreeSet::from([Some("ada"), Some("bob")]));
        let found = json("/channels", "subscription_count").await;
        assert_eq!(found["channels"]["foo"]["subscription_count"], 2, "{found}");
        let mut asked = event(&["foo"], "1");
        asked["info"] = json!("subscription_count");
        let told = call(server, "POST", "/events").json(&asked).send().await.json();
        assert_eq!(told, json!({ "channels": { "foo": { "subscription_count": 2 } } }));
    }
    again.command("pusher:unsubscribe", json!({ "channel": room })).await;
    there.command("pusher:unsubscribe", json!({ "channel": room })).await;
    for data in ["1", "1"] {
        here.hears(&message("foo", data)).await;
    }
    let removed = here.next().await;
    assert_eq!(removed["event"], "pusher_internal:member_removed", "{removed}");
    assert!(removed["data"].as_str().is_some_and(|data| data.contains("bob")), "{removed}");
}

async fn a_cache_channel_has_its_last_event_at_all_nodes(two: Two<'_>) {
    for (nth, channel) in ["cache-a", "private-cache-b"].into_iter().enumerate() {
        trigger(two[nth], event(&[channel], "old")).await;
        trigger(two[1 - nth], event(&[channel], "new")).await;
        for server in two {
            let answer = async || {
                let path = format!("/channels/{channel}");
                let answer = call(server, "GET", &path).param("info", "cache").send().await;
                answer.json()["cache"]["data"].clone()
            };
            // The answer to a trigger may come before the log has brought its event to this node.
            until("it is cached", async || answer().await == "new").await;
            let mut client = PusherSocket::connect(server).await;
            client.subscribe(channel).await;
            client.hears(&message(channel, "new")).await;
        }
    }
}

/// The client must be told this number of subscribers of a channel. Numbers before it may be those of one
/// node, while those of the other are on their way.
async fn hears_count(client: &mut PusherSocket, channel: &str, count: usize) {
    loop {
        let message = client.next().await;
        assert_eq!(message["event"], "pusher_internal:subscription_count", "{message}");
        assert_eq!(message["channel"], channel, "{message}");
        let data = message["data"].as_str().expect("a text");
        if data == format!(r#"{{"subscription_count":{count}}}"#) {
            return;
        }
    }
}

async fn subscribers_are_told_how_many_they_are_over_all_nodes(two: Two<'_>) {
    let mut here = PusherSocket::connect(two[0]).await;
    here.hears_counts = true;
    here.subscribe("bar").await;
    hears_count(&mut here, "bar", 1).await;
    let mut there = PusherSocket::connect(two[1]).await;
    there.hears_counts = true;
    there.subscribe("bar").await;
    hears_count(&mut here, "bar", 2).await;
    hears_count(&mut there, "bar", 2).await;
    // A client of Phoenix's counts, too.
    let mut phoenix = Socket::connect(two[1], V2).await;
    phoenix.join("public:test-app:bar", json!({})).await;
    hears_count(&mut here, "bar", 3).await;
    hears_count(&mut there, "bar", 3).await;
    drop(there);
    hears_count(&mut here, "bar", 2).await;
    phoenix.push(json!(["1", "2", "public:test-app:bar", "phx_leave", {}])).await;
    hears_count(&mut here, "bar", 1).await;
}

async fn a_user_is_online_while_it_is_signed_in_at_any_node(two: Two<'_>) {
    let list = json!({ "id": "eve", "watchlist": ["u2", "u3"] }).to_string();
    let mut watcher = PusherSocket::connect(two[0]).await;
    watcher.sign_in(&list).await;
    assert_eq!(watcher.next().await["event"], "pusher:signin_success");
    assert_eq!(watched(&mut watcher).await, (json!([]), json!(["u2", "u3"])));
    let there = signed_in(two[1], "u2").await;
    assert_eq!(watched(&mut watcher).await, (json!(["u2"]), json!([])));
    let here = signed_in(two[0], "u2").await;
    drop(here);
    // A session is signed out before the number of sessions falls. Those of earlier scenarios have ended, too, once
    // only the watcher's is left.
    let sessions = r#"herald_sessions{transport="websocket",version="pusher"}"#;
    figures::becomes(two[0], sessions, 1.0).await;
    let third = signed_in(two[1], "u3").await;
    assert_eq!(watched(&mut watcher).await, (json!(["u3"]), json!([])), "u2 was never away");
    // A watcher that signs in later is told the present state.
    let mut late = PusherSocket::connect(two[0]).await;
    late.sign_in(&list).await;
    assert_eq!(late.next().await["event"], "pusher:signin_success");
    assert_eq!(watched(&mut late).await, (json!(["u2", "u3"]), json!([])));
    drop(there);
    for client in [&mut watcher, &mut late] {
        assert_eq!(watched(client).await, (json!([]), json!(["u2"])));
    }
    drop(third);
    assert_eq!(watched(&mut watcher).await, (json!([]), json!(["u3"])));
}

on_two_nodes! {
    on redis: pushers_clients_have_all_of_it_on_redis;

    a_socket_id_is_known_at_all_nodes: ids_differ_and_a_trigger_at_any_node_leaves_out_its_sender,
    the_others_hear_a_client_event_at_all_nodes: client_events_reach_the_others_at_all_nodes,
    a_user_is_known_at_all_nodes: a_user_is_sent_events_and_terminated_at_all_nodes,
    members_and_subscribers_of_all_nodes_count: presence_and_counts_are_those_of_all_nodes,
    a_last_event_is_known_at_all_nodes: a_cache_channel_has_its_last_event_at_all_nodes,
    a_changed_count_is_told_at_all_nodes: subscribers_are_told_how_many_they_are_over_all_nodes,
    watchers_are_told_of_the_users_of_all_nodes: a_user_is_online_while_it_is_signed_in_at_any_node,
}

#[tokio::test]
async fn a_node_that_begins_knows_last_events_that_the_log_has_no_longer() {
    let nodes = Nodes::start();
    trigger(&nodes.first, event(&["cache-a"], "1")).await;
    let is_cached = async |server: &TestServer| {
        let answer = call(server, "GET", "/channels/cache-a").param("info", "cache");
        answer.send().await.json()["cache"]["data"] == "1"
    };
    for server in [&nodes.first, &nodes.second] {
        until("it is cached", async || is_cached(server).await).await;
    }
    for partition in 0..4 {
        nodes.cluster.trim(Partition(partition));
    }
    let (third, _) = nodes.another();
    assert!(is_cached(&third).await);
    let mut client = PusherSocket::connect(&third).await;
    client.subscribe("cache-a").await;
    client.hears(&message("cache-a", "1")).await;
}

#[tokio::test]
async fn users_that_were_signed_in_before_a_node_began_or_when_it_died_are_known() {
    let nodes = Nodes::start();
    let (mut third, engine) = nodes.another();
    let _there = signed_in(&third, "u2").await;
    let (fourth, _) = nodes.another();
    let list = json!({ "id": "eve", "watchlist": ["u2"] }).to_string();
    let mut watcher = PusherSocket::connect(&fourth).await;
    watcher.sign_in(&list).await;
    assert_eq!(watcher.next().await["event"], "pusher:signin_success");
    // The fourth node may learn of the user a moment after it has begun. The watcher is told then.
    if watched(&mut watcher).await != (json!(["u2"]), json!([])) {
        assert_eq!(watched(&mut watcher).await, (json!(["u2"]), json!([])));
    }
    nodes.cluster.kill(engine.node());
    assert_eq!(watched(&mut watcher).await, (json!([]), json!(["u2"])));
    third.stop();
}

#[tokio::test]
async fn subscribers_of_a_node_that_dies_count_no_longer() {
    let nodes = Nodes::start();
    let (mut third, engine) = nodes.another();
    let mut phoenix = Socket::connect(&third, V2).await;
    phoenix.join("public:test-app:bar", json!({})).await;
    let mut here = PusherSocket::connect(&nodes.first).await;
    here.hears_counts = true;
    here.subscribe("bar").await;
    hears_count(&mut here, "bar", 2).await;
    nodes.cluster.kill(engine.node());
    hears_count(&mut here, "bar", 1).await;
    third.stop();
}
