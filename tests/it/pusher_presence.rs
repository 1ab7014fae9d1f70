//! Entries 67 to 82 of the protocol document of Pusher: presence channels.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::support::*;

const ROOM: &str = "presence-room";

/// A client that has entered the room; answers it with the roster.
async fn enter(server: &TestServer, data: &str) -> (PusherSocket, Value) {
    let mut client = PusherSocket::connect(server).await;
    let roster = client.enter(ROOM, data).await;
    (client, roster)
}

fn added(user: &str, info: &str) -> String {
    let data = json!(format!(r#"{{"user_id":"{user}","user_info":{info}}}"#));
    format!(r#"{{"event":"pusher_internal:member_added","channel":"{ROOM}","data":{data}}}"#)
}

fn removed(user: &str) -> String {
    let data = json!(format!(r#"{{"user_id":"{user}"}}"#));
    format!(r#"{{"event":"pusher_internal:member_removed","channel":"{ROOM}","data":{data}}}"#)
}

#[tokio::test]
async fn p067_p068_p069_p070_p072_p073_members_are_users_and_not_connections() {
    let server = TestServer::start();
    let (mut c, roster) = enter(&server, r#"{"user_id":"u1","user_info":{"name":"A"}}"#).await;
    assert_eq!(roster, json!({ "ids": ["u1"], "hash": { "u1": { "name": "A" } }, "count": 1 }));
    let (mut b, roster) = enter(&server, r#"{"user_id":10}"#).await;
    let both =
        json!({ "ids": ["10", "u1"], "hash": { "10": null, "u1": { "name": "A" } }, "count": 2 });
    assert_eq!(roster, both);
    c.hears(&added("10", "null")).await;
    let (mut again, roster) = enter(&server, r#"{"user_id":"10"}"#).await;
    assert_eq!(roster, both);
    again.command("pusher:unsubscribe", json!({ "channel": ROOM })).await;
    again.assert_quiet().await;
    b.command("pusher:unsubscribe", json!({ "channel": ROOM })).await;
    c.hears(&removed("10")).await;
    b.assert_quiet().await;
    c.assert_quiet().await;
}

#[tokio::test]
async fn p068_p069_connections_of_a_user_that_join_together_are_not_told_of_their_own_user() {
    let server = TestServer::start_with(|settings| {
        settings.server.workers = 1;
        settings.socket.presence_interval = Duration::from_secs(1);
    });
    let (mut x, _) = enter(&server, r#"{"user_id":"u1"}"#).await;
    // The first member is announced at once, and then it takes an interval until there is another announcement.
    let (mut a, _) = enter(&server, r#"{"user_id":"u2"}"#).await;
    let (mut b, roster) = enter(&server, r#"{"user_id":"u2"}"#).await;
    assert_eq!(roster["ids"], json!(["u1", "u2"]));
    x.hears(&added("u2", "null")).await;
    a.assert_quiet().await;
    b.assert_quiet().await;
    x.assert_quiet().await;
}

#[tokio::test]
async fn p071_a_member_whose_connection_is_cut_is_removed() {
    let server = TestServer::start();
    let (mut c, _) = enter(&server, r#"{"user_id":"u1"}"#).await;
    let (b, _) = enter(&server, r#"{"user_id":"u2","user_info":{"n":1}}"#).await;
    c.hears(&added("u2", r#"{"n":1}"#)).await;
    drop(b);
    c.hears(&removed("u2")).await;
}

#[tokio::test]
async fn p074_p075_p076_p078_p079_p080_p119_members_that_cannot_be_shown_are_refused() {
    let server = TestServer::start();
    let mut client = PusherSocket::connect(&server).await;
    let long = "i".repeat(129);
    for data in [
        "{}".to_owned(),
        r#"{"user_id":null}"#.into(),
        r#"{"user_id":""}"#.into(),
        r#"{"user_id":{}}"#.into(),
        r#"{"user_id":true}"#.into(),
        r#"{"user_id":"u","user_info":"A"}"#.into(),
        "x".into(),
        format!(r#"{{"user_id":"u","user_info":{{"n":"{}"}}}}"#, "x".repeat(1_024)),
        format!(r#"{{"user_id":"{long}"}}"#),
        r#"{"user_id":"__proto__"}"#.into(),
        r#"{"user_id":"constructor"}"#.into(),
    ] {
        client.ask(ROOM, Some(&data)).await;
        client.hears_refusal(ROOM).await;
    }
    client.ask(ROOM, None).await;
    assert_eq!(client.hears_refusal(ROOM).await, 401, "without channel data, and not signed in");
    let longest = "i".repeat(128);
    let roster = client.enter(ROOM, &format!(r#"{{"user_id":"{longest}"}}"#)).await;
    assert_eq!(roster["ids"], json!([longest]));
}

#[tokio::test]
async fn p077_a_full_channel_refuses_further_connections() {
    let server = TestServer::start_with(|settings| settings.limits.presence_members_max = 2);
    let (_a, _) = enter(&server, r#"{"user_id":"a"}"#).await;
    let (b, _) = enter(&server, r#"{"user_id":"b"}"#).await;
    let mut c = PusherSocket::connect(&server).await;
    // Also one of a user that is a member already: unlike Pusher's, the bound counts connections.
    for user in ["c", "a"] {
        c.ask(ROOM, Some(&format!(r#"{{"user_id":"{user}"}}"#))).await;
        assert_eq!(c.hears_refusal(ROOM).await, 4100, "{user}");
    }
    drop(b);
    let enters = repeat_until(async || {
        c.ask(ROOM, Some(r#"{"user_id":"c"}"#)).await;
        let is_in = c.next().await["event"] == "pusher_internal:subscription_succeeded";
        if !is_in {
            c.hears_error().await;
        }
        is_in
    });
    tokio::time::timeout(DEADLINE, enters).await.expect("room again");
}

#[tokio::test]
async fn p081_the_newest_info_of_a_user_is_in_later_rosters() {
    let server = TestServer::start();
    let (_first, _) = enter(&server, r#"{"user_id":"u1","user_info":{"n":1}}"#).await;
    let (_second, roster) = enter(&server, r#"{"user_id":"u1","user_info":{"n":2}}"#).await;
    assert_eq!(roster["hash"], json!({ "u1": { "n": 2 } }));
    // A roster shows the members as they were last announced, and announcements are made at intervals.
    let shown = repeat_until(async || {
        let (_third, roster) = enter(&server, r#"{"user_id":"u3"}"#).await;
        let is_newest = roster["hash"] == json!({ "u1": { "n": 2 }, "u3": null });
        assert!(is_newest || roster["hash"] == json!({ "u1": { "n": 1 }, "u3": null }), "{roster}");
        is_newest
    });
    tokio::time::timeout(DEADLINE, shown).await.expect("in time");
}

#[tokio::test]
async fn p082_clients_that_join_together_end_with_the_same_members() {
    let server = TestServer::start();
    let names: BTreeSet<String> = (0..10).map(|nth| format!("u{nth}")).collect();
    let mut clients = Vec::new();
    for _ in &names {
        clients.push(PusherSocket::connect(&server).await);
    }
    for (client, name) in clients.iter_mut().zip(&names) {
        client.ask(ROOM, Some(&format!(r#"{{"user_id":"{name}"}}"#))).await;
    }
    for client in &mut clients {
        let roster = client.succeeded(ROOM).await["presence"].clone();
        let ids = roster["ids"].as_array().expect("ids");
        let mut known: BTreeSet<String> =
            ids.iter().map(|id| id.as_str().expect("text").to_owned()).collect();
        assert_eq!(roster["count"], ids.len());
        while known != names {
            let message = client.next().await;
            assert_eq!(message["event"], "pusher_internal:member_added");
            let data: Value =
                serde_json::from_str(message["data"].as_str().expect("text")).expect("JSON");
            known.insert(data["user_id"].as_str().expect("text").to_owned());
        }
    }
}

#[tokio::test]
async fn members_who_leave_together_end_no_session_that_reads_what_it_is_sent() {
    const MEMBERS: usize = 100;
    let server = TestServer::start_with(|settings| {
        // One announcement tells all that happens within a second, with more frames than an outbox may hold.
        settings.socket.presence_interval = Duration::from_secs(1);
        settings.limits.outbox_frames_max = MEMBERS / 2;
    });
    let (mut watcher, _) = enter(&server, r#"{"user_id":"watcher"}"#).await;
    let mut members = Vec::new();
    for nth in 0..MEMBERS {
        members.push(enter(&server, &format!(r#"{{"user_id":"u{nth}"}}"#)).await.0);
    }
    let users: BTreeSet<String> = (0..MEMBERS).map(|nth| format!("u{nth}")).collect();
    let told = async |watcher: &mut PusherSocket, event: &str| {
        let mut told = BTreeSet::new();
        while told.len() < MEMBERS {
            let message = watcher.next().await;
            assert_eq!(message["event"], event);
            let data = message["data"].as_str().expect("text");
            let data: Value = serde_json::from_str(data).expect("JSON");
            told.insert(data["user_id"].as_str().expect("text").to_owned());
        }
        told
    };
    assert_eq!(told(&mut watcher, "pusher_internal:member_added").await, users);
    drop(members);
    assert_eq!(told(&mut watcher, "pusher_internal:member_removed").await, users);
    watcher.assert_quiet().await;
}
