//! Entries 40 to 66 and 97 to 104 of the protocol document of Pusher: public, private, encrypted and cache
//! channels.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    pusher::{event, trigger},
    pusher_socket::auth,
    *,
};

/// The message with which an event reaches a subscriber of a channel.
fn message(channel: &str, data: &str) -> String {
    json_text(&[("event", "msg"), ("channel", channel), ("data", data)])
}

/// An object with these members in this order.
fn json_text(members: &[(&str, &str)]) -> String {
    let members: Vec<_> =
        members.iter().map(|(k, v)| format!("{}:{}", json!(k), json!(v))).collect();
    format!("{{{}}}", members.join(","))
}

#[tokio::test]
async fn p040_p041_p042_p043_p044_p045_p142_public_channels_need_no_signature() {
    let server = TestServer::start();
    let mut client = PusherSocket::connect(&server).await;
    for data in [json!({ "channel": "foo", "auth": "" }), json!({ "channel": "bar" })] {
        client.command("pusher:subscribe", data.clone()).await;
        let channel = data["channel"].as_str().expect("a channel");
        client
            .hears(&format!(
                r#"{{"event":"pusher_internal:subscription_succeeded","channel":"{channel}","data":"{{}}"}}"#
            ))
            .await;
    }
    client.ask("foo", None).await;
    client.hears_error().await;
    trigger(&server, event(&["foo"], "{\"a\" : 1.0}")).await;
    client.hears(&message("foo", "{\"a\" : 1.0}")).await;
    for channel in ["foo", "foo", "never"] {
        client.command("pusher:unsubscribe", json!({ "channel": channel })).await;
    }
    client.assert_quiet().await;
    trigger(&server, event(&["foo", "bar"], "2")).await;
    client.hears(&message("bar", "2")).await;
    client.subscribe("foo").await;
    trigger(&server, event(&["foo"], "")).await;
    client.hears(&message("foo", "")).await;
    client.assert_quiet().await;
}

#[tokio::test]
async fn p046_p047_p048_p050_names_are_checked() {
    let server = TestServer::start();
    let mut client = PusherSocket::connect(&server).await;
    let (longest, too_long) = ("c".repeat(200), "c".repeat(201));
    for name in ["a b", "a/b", "a:b", "é", "", &too_long, "#foo", "#server-to-user-", "private-"] {
        client.ask(name, None).await;
        client.hears_refusal(name).await;
    }
    for name in ["AZaz09_-=@,.;", &longest] {
        client.subscribe(name).await;
    }
}

#[tokio::test]
async fn p051_p052_names_are_compared_by_case_and_apps_are_apart() {
    let server = TestServer::start();
    let app = server.create_app(json!({ "name": "other-app" })).await;
    let mut other = PusherSocket::of(&server, &app).await;
    let mut client = PusherSocket::connect(&server).await;
    other.subscribe("foo").await;
    client.subscribe("Foo").await;
    trigger(&server, event(&["foo"], "1")).await;
    trigger(&server, event(&["Foo"], "2")).await;
    client.hears(&message("Foo", "2")).await;
    other.assert_quiet().await;
}

#[tokio::test]
async fn p054_p055_p056_p057_p058_p059_p060_p062_p063_private_channels_need_the_apps_signature() {
    let server = TestServer::start();
    let (app, other_app) = (App::seeded(), server.create_app(json!({ "name": "other-app" })).await);
    let mut client = PusherSocket::connect(&server).await;
    client.subscribe("private-ok").await;
    let id = client.id.clone();
    let good = auth(&app, &[&id, ":private-a"]);
    let (key, hex) = good.split_once(':').expect("a colon");
    let data = r#"{"user_id":"u1"}"#;
    for (case, auth, channel_data) in [
        ("wrong", format!("{key}:{}", "0".repeat(64)), None),
        ("another key", format!("{}:{hex}", other_app.key), None),
        ("another app", auth(&other_app, &[&id, ":private-a"]), None),
        ("empty", String::new(), None),
        ("no colon", hex.to_owned(), None),
        ("upper case", format!("{key}:{}", hex.to_uppercase()), None),
        ("another socket", auth(&app, &["1.1", ":private-a"]), None),
        ("another channel", auth(&app, &[&id, ":private-b"]), None),
        ("data not signed", good.clone(), Some(data)),
        (
            "data spaced otherwise",
            auth(&app, &[&id, ":private-a:", data]),
            Some(r#"{"user_id": "u1"}"#),
        ),
    ] {
        let mut ask = json!({ "channel": "private-a", "auth": auth });
        if let Some(data) = channel_data {
            ask["channel_data"] = data.into();
        }
        client.command("pusher:subscribe", ask).await;
        assert_eq!(client.hears_refusal("private-a").await, 401, "{case}");
    }
    client.command("pusher:subscribe", json!({ "channel": "private-a" })).await;
    assert_eq!(client.hears_refusal("private-a").await, 401);
    trigger(&server, event(&["private-a", "private-ok"], "1")).await;
    client.hears(&message("private-ok", "1")).await;
    client.assert_quiet().await;
}

#[tokio::test]
async fn p053_p061_p064_p065_p066_a_good_signature_opens_private_and_encrypted_channels() {
    let server = TestServer::start();
    let mut client = PusherSocket::connect(&server).await;
    client.ask("private-a", Some(r#"{"user_id":"u1"}"#)).await;
    client.succeeded("private-a").await;
    client.subscribe("private-encrypted-x").await;
    let data = r#"{"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYX","ciphertext":"7WImdiuE+3O15iaUnPWIZksGIjg3kJE/YoFtnVMk5QjV"}"#;
    trigger(&server, event(&["private-encrypted-x"], data)).await;
    client.hears(&message("private-encrypted-x", data)).await;
}

#[tokio::test]
async fn p097_p098_p099_p100_p102_p103_cache_channels_begin_with_their_last_event() {
    let server = TestServer::start();
    let mut first = PusherSocket::connect(&server).await;
    let miss = |channel: &str| {
        format!(r#"{{"event":"pusher:cache_miss","channel":"{channel}","data":"{{}}"}}"#)
    };
    let channels = ["cache-x", "private-cache-x", "private-encrypted-cache-x", "presence-cache-x"];
    for channel in channels {
        match channel.starts_with("presence-") {
            true => drop(first.enter(channel, r#"{"user_id":"a"}"#).await),
            false => drop(first.subscribe(channel).await),
        }
        first.hears(&miss(channel)).await;
    }
    for data in ["1", "2"] {
        for channel in channels {
            trigger(&server, event(&[channel], data)).await;
            first.hears(&message(channel, data)).await;
        }
    }
    drop(first);
    let mut second = PusherSocket::connect(&server).await;
    for channel in channels {
        match channel.starts_with("presence-") {
            true => drop(second.enter(channel, r#"{"user_id":"b"}"#).await),
            false => drop(second.subscribe(channel).await),
        }
        second.hears(&message(channel, "2")).await;
    }
    second.subscribe("private-my-cache-x").await;
    second.assert_quiet().await;
}

#[tokio::test]
async fn p095_p101_p104_a_cached_event_expires_and_no_client_replaces_it() {
    let ttl = Duration::from_millis(1_000);
    let server = TestServer::start_with(|settings| settings.pusher.cache_ttl = ttl);
    let (mut sender, mut listener) =
        (PusherSocket::connect(&server).await, PusherSocket::connect(&server).await);
    for client in [&mut sender, &mut listener] {
        client.subscribe("private-cache-x").await;
        assert_eq!(client.next().await["event"], "pusher:cache_miss");
    }
    let kept = Instant::now();
    trigger(&server, event(&["private-cache-x"], "1")).await;
    sender.hears(&message("private-cache-x", "1")).await;
    listener.hears(&message("private-cache-x", "1")).await;
    sender.say(json!({ "event": "client-e", "channel": "private-cache-x", "data": 2 })).await;
    listener.hears(r#"{"event":"client-e","channel":"private-cache-x","data":2}"#).await;
    let mut other = PusherSocket::connect(&server).await;
    other.subscribe("private-cache-x").await;
    let first = other.frame().await;
    assert!(first == message("private-cache-x", "1") || kept.elapsed() > ttl, "{first}");
    let expires = repeat_until(async || {
        let mut late = PusherSocket::connect(&server).await;
        late.subscribe("private-cache-x").await;
        late.next().await["event"] == "pusher:cache_miss"
    });
    tokio::time::timeout(DEADLINE, expires).await.expect("in time");
    assert!(kept.elapsed() >= ttl);
}

#[tokio::test]
async fn the_limits_of_sessions_hold_for_subscriptions() {
    let server = TestServer::start_with(|settings| settings.limits.channels_per_transport_max = 2);
    let mut client = PusherSocket::connect(&server).await;
    client.subscribe("a").await;
    client.subscribe("b").await;
    client.ask("c", None).await;
    assert_eq!(client.hears_refusal("c").await, 4100);
    let server = TestServer::start_with(|settings| settings.limits.joins_per_second_max = 2);
    let mut client = PusherSocket::connect(&server).await;
    // Without pauses until one is refused, so that the number depends on the speed of the machine.
    let mut subscribed = 0;
    let refusal = loop {
        client.ask(&format!("channel-{subscribed}"), None).await;
        let answer = client.next().await;
        if answer["event"] == "pusher:subscription_error" {
            break answer;
        }
        subscribed += 1;
    };
    assert!(subscribed >= 2, "a burst is let through");
    assert_eq!(refusal["data"]["status"], 4301);
}

/// The next message must tell this number of subscribers of `foo`.
async fn hears_count(client: &mut PusherSocket, count: usize) {
    let data = json!(format!(r#"{{"subscription_count":{count}}}"#));
    let event = "pusher_internal:subscription_count";
    client.hears(&format!(r#"{{"event":"{event}","channel":"foo","data":{data}}}"#)).await;
}

#[tokio::test]
async fn p106_p107_p108_subscribers_are_told_how_many_they_are() {
    let server = TestServer::start();
    let mut first = PusherSocket::connect(&server).await;
    first.hears_counts = true;
    first.subscribe("foo").await;
    hears_count(&mut first, 1).await;
    let mut second = PusherSocket::connect(&server).await;
    second.hears_counts = true;
    second.subscribe("foo").await;
    hears_count(&mut first, 2).await;
    hears_count(&mut second, 2).await;
    // A client of Phoenix's counts, too.
    let mut phoenix = Socket::connect(&server, V2).await;
    phoenix.join("public:test-app:foo", json!({})).await;
    hears_count(&mut first, 3).await;
    hears_count(&mut second, 3).await;
    drop(second);
    hears_count(&mut first, 2).await;
    phoenix.push(json!(["1", "2", "public:test-app:foo", "phx_leave", {}])).await;
    hears_count(&mut first, 1).await;
    first.enter("presence-a", r#"{"user_id":"u"}"#).await;
    first.assert_quiet().await;
    server.update_app("test-app", json!({ "subscription_count": false })).await;
    first.subscribe("bar").await;
    first.assert_quiet().await;
}

#[tokio::test]
async fn p109_many_subscribers_are_told_their_number_every_five_seconds_at_most() {
    let server = TestServer::start();
    let mut watcher = PusherSocket::connect(&server).await;
    watcher.hears_counts = true;
    watcher.subscribe("foo").await;
    let mut crowd = Vec::new();
    let mut join = async |count: usize| {
        for _ in 0..count {
            let mut client = PusherSocket::connect(&server).await;
            client.subscribe("foo").await;
            crowd.push(client);
        }
    };
    let next = async |watcher: &mut PusherSocket| {
        let message = watcher.next().await;
        assert_eq!(message["event"], "pusher_internal:subscription_count", "{message}");
        let data: Value =
            serde_json::from_str(message["data"].as_str().expect("text")).expect("JSON");
        let count = data["subscription_count"].as_u64().expect("a number");
        (count, Instant::now())
    };
    join(100).await;
    let (mut told, mut at) = next(&mut watcher).await;
    while told < 101 {
        (told, at) = next(&mut watcher).await;
    }
    join(50).await;
    let (count, then) = next(&mut watcher).await;
    assert_eq!(count, 151, "all that joined meanwhile are told of together");
    // The first of the two messages may have been read late, which makes the interval shorter.
    let interval = then - at;
    assert!(interval > Duration::from_millis(4_500), "{interval:?}");
    watcher.assert_quiet().await;
}
