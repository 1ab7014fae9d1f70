//! Entries 164 to 174 of the protocol document of Pusher: questions about channels, the last event of a
//! cache channel, and the end of a user's connections.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    figures::Figures,
    presence::{enter, ticket_of},
    pusher::{Call, call, event, trigger},
    *,
};

async fn asked(call: Call<'_>) -> Value {
    let answer = call.send().await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

fn get<'a>(server: &'a TestServer, path: &str) -> Call<'a> {
    call(server, "GET", path)
}

async fn joined(server: &TestServer, channel: &str) -> Socket {
    let mut socket = Socket::connect(server, V2).await;
    socket.join(&format!("public:test-app:{channel}"), json!({})).await;
    socket
}

#[tokio::test]
async fn p164_p165_p166_p174_channels_with_subscribers_are_listed() {
    let server = TestServer::start();
    assert_eq!(get(&server, "/channels").send().await.body, r#"{"channels":{}}"#);
    let _a = joined(&server, "a").await;
    let _ab = joined(&server, "ab").await;
    let _whole_scope = {
        let mut socket = Socket::connect(&server, V2).await;
        socket.join("public:test-app", json!({})).await;
        socket
    };
    // These have no name in Pusher's alphabet, or one that means another channel.
    let _unspelled = joined(&server, "a:b").await;
    let _ambiguous = joined(&server, "private-a").await;
    let (_one, ..) = enter(&server, V2, ticket_of("u1")).await;
    let (_again, ..) = enter(&server, V2, ticket_of("u1")).await;
    let (_two, ..) = enter(&server, V2, ticket_of("u2")).await;
    let all = json!({ "a": {}, "ab": {}, "presence-room": {} });
    for (params, expected) in [
        (vec![], all.clone()),
        (vec![("filter_by_prefix", "")], all),
        (vec![("filter_by_prefix", "a")], json!({ "a": {}, "ab": {} })),
        (vec![("filter_by_prefix", "ab")], json!({ "ab": {} })),
        (vec![("filter_by_prefix", "pre")], json!({ "presence-room": {} })),
        (vec![("filter_by_prefix", "presence-")], json!({ "presence-room": {} })),
        (vec![("filter_by_prefix", "presence-r")], json!({ "presence-room": {} })),
        (vec![("filter_by_prefix", "presence-x")], json!({})),
        (vec![("filter_by_prefix", "private-")], json!({})),
        (
            vec![("filter_by_prefix", "presence-"), ("info", "user_count")],
            json!({ "presence-room": { "user_count": 2 } }),
        ),
        (
            vec![("filter_by_prefix", "presence-"), ("info", "user_count,subscription_count")],
            json!({ "presence-room": { "user_count": 2, "subscription_count": 3 } }),
        ),
        (
            vec![("info", "subscription_count"), ("filter_by_prefix", "a")],
            json!({ "a": { "subscription_count": 1 }, "ab": { "subscription_count": 1 } }),
        ),
    ] {
        let call = params
            .iter()
            .fold(get(&server, "/channels"), |call, (name, value)| call.param(name, value));
        assert_eq!(asked(call).await, json!({ "channels": expected }), "{params:?}");
    }
    for params in [
        vec![("info", "user_count")],
        vec![("info", "user_count"), ("filter_by_prefix", "presence")],
        vec![("info", "cache")],
        vec![("info", "nonsense")],
    ] {
        let call = params
            .iter()
            .fold(get(&server, "/channels"), |call, (name, value)| call.param(name, value));
        assert_eq!(call.send().await.status, 400, "{params:?}");
    }
}

#[tokio::test]
async fn p167_a_channel_disappears_with_its_last_subscriber() {
    let server = TestServer::start();
    let mut socket = joined(&server, "a").await;
    assert_eq!(asked(get(&server, "/channels")).await, json!({ "channels": { "a": {} } }));
    socket.push(json!(["1", "9", "public:test-app:a", "phx_leave", {}])).await;
    assert_eq!(socket.next().await[4]["status"], "ok");
    assert_eq!(asked(get(&server, "/channels")).await, json!({ "channels": {} }));
}

#[tokio::test]
async fn p103_p168_p169_a_single_channel_is_occupied_or_not() {
    let server = TestServer::start();
    let _a = joined(&server, "a").await;
    let (_one, ..) = enter(&server, V2, ticket_of("u1")).await;
    for (path, info, expected) in [
        ("/channels/a", "", json!({ "occupied": true })),
        ("/channels/b", "", json!({ "occupied": false })),
        ("/channels/a", "subscription_count", json!({ "occupied": true, "subscription_count": 1 })),
        (
            "/channels/b",
            "subscription_count",
            json!({ "occupied": false, "subscription_count": 0 }),
        ),
        (
            "/channels/presence-room",
            "user_count,subscription_count",
            json!({ "occupied": true, "user_count": 1, "subscription_count": 1 }),
        ),
        ("/channels/presence-b", "user_count", json!({ "occupied": false, "user_count": 0 })),
    ] {
        assert_eq!(asked(get(&server, path).param("info", info)).await, expected, "{path} {info}");
    }
    for (path, info) in [
        ("/channels/a", "user_count"),
        ("/channels/private-a", "user_count"),
        ("/channels/a", "cache"),
        ("/channels/private-my-cache-x", "cache"),
        ("/channels/a", "nonsense"),
        ("/channels/a%20b", ""),
        ("/channels/%FF", ""),
        ("/channels/a%2Fb", ""),
    ] {
        let answer = get(&server, path).param("info", info).send().await;
        assert_eq!(answer.status, 400, "{path} {info}");
    }
}

#[tokio::test]
async fn p170_p171_the_users_of_a_presence_channel_are_listed_once_each() {
    let server = TestServer::start();
    let empty = asked(get(&server, "/channels/presence-room/users")).await;
    assert_eq!(empty, json!({ "users": [] }));
    let (_one, ..) = enter(&server, V2, ticket_of("u1")).await;
    let (_again, ..) = enter(&server, V2, ticket_of("u1")).await;
    let (_two, ..) = enter(&server, V2, ticket_of("u2")).await;
    let users = asked(get(&server, "/channels/presence-room/users")).await;
    assert_eq!(users, json!({ "users": [{ "id": "u1" }, { "id": "u2" }] }));
    for path in ["/channels/room/users", "/channels/private-room/users"] {
        assert_eq!(get(&server, path).send().await.status, 400, "{path}");
    }
}

#[tokio::test]
async fn p172_a_name_in_a_path_is_signed_as_it_is_sent_and_found_decoded() {
    let server = TestServer::start();
    let _socket = joined(&server, "a@b=c,d;e.f").await;
    for name in ["a@b=c,d;e.f", "a%40b%3Dc%2Cd%3Be.f", "a%40b=c,d;e%2ef"] {
        let told = asked(get(&server, &format!("/channels/{name}"))).await;
        assert_eq!(told, json!({ "occupied": true }), "{name}");
    }
    let decoded = get(&server, "/channels/a%40b").signing("/apps/test-app/channels/a@b");
    assert_eq!(decoded.send().await.status, 401);
    let user = asked(get(&server, "/channels/%23server-to-user-1")).await;
    assert_eq!(user, json!({ "occupied": false }));
}

#[tokio::test]
async fn p173_connections_are_terminated_under_both_addresses() {
    let server = TestServer::start();
    for path in ["/apps/test-app/users/42/terminate_connections", "/users/42/terminate_connections"]
    {
        let post = || Call::of(&server, App::seeded(), "POST", path.to_owned());
        for call in [post(), post().body("{}")] {
            assert_eq!(call.outcome().await, (200, "{}".to_owned()), "{path}");
        }
        let stranger = App { key: "unknown".into(), ..App::seeded() };
        assert_eq!(post().by(&stranger).send().await.status, 401, "{path}");
        assert_eq!(post().body("{}").digest("").send().await.status, 401, "{path}");
    }
}

async fn cache(server: &TestServer, channel: &str) -> Value {
    let path = format!("/channels/{channel}");
    asked(get(server, &path).param("info", "cache")).await["cache"].clone()
}

#[tokio::test]
async fn p105_a_cache_channel_tells_its_last_event_until_its_time_is_over() {
    let start = |cache_ttl: Duration| {
        TestServer::start_with(|settings| {
            settings.pusher.cache_ttl = cache_ttl;
            // It is kept whatever the history settings are.
            settings.history.publications_max = 0;
            settings.history.publications = 0;
        })
    };
    let server = start(Duration::from_secs(100));
    let names = ["cache-x", "private-cache-x", "private-encrypted-cache-x", "presence-cache-x"];
    for name in names {
        assert_eq!(cache(&server, name).await, Value::Null, "{name}");
    }
    trigger(&server, event(&names, r#"{"n" : 1.0}"#)).await;
    for name in names {
        let told = cache(&server, name).await;
        assert_eq!(told["data"], r#"{"n" : 1.0}"#, "{name}");
        assert!(told["ttl"].as_u64().is_some_and(|ttl| (1..=100).contains(&ttl)), "{told}");
    }
    let app = App::seeded();
    server.trigger(&app, json!({ "topic": "cache-x", "event": "e", "payload": { "n": 2 } })).await;
    assert_eq!(cache(&server, "cache-x").await["data"], r#"{"n":2}"#, "through either API");
    let ttl = Duration::from_secs(1);
    let server = start(ttl);
    let kept = Instant::now();
    trigger(&server, event(&["cache-x"], "x")).await;
    let gone = repeat_until(async || cache(&server, "cache-x").await == Value::Null);
    tokio::time::timeout(DEADLINE, gone).await.expect("its time is over");
    assert!(kept.elapsed() >= ttl);
}

#[tokio::test]
async fn an_app_that_is_inactive_for_a_moment_forgets_its_last_events() {
    let server = TestServer::start();
    trigger(&server, event(&["cache-x"], "x")).await;
    assert_eq!(cache(&server, "cache-x").await["data"], "x");
    server.update_app("test-app", json!({ "active": false })).await;
    server.update_app("test-app", json!({ "active": true })).await;
    assert_eq!(cache(&server, "cache-x").await, Value::Null);
}

#[tokio::test]
async fn the_events_that_cache_channels_keep_are_bounded_and_counted() {
    let server = TestServer::start_with(|settings| {
        settings.pusher.cache_app_bytes_max = 8_000;
        settings.pusher.cache_bytes_max = 8_000;
    });
    let large = "x".repeat(3_000);
    for n in 0..3 {
        trigger(&server, event(&[&format!("cache-{n}")], &large)).await;
    }
    assert_eq!(cache(&server, "cache-0").await, Value::Null);
    assert_eq!(cache(&server, "cache-2").await["data"], large.as_str());
    let figures = Figures::of(&server).await;
    let hits = [figures.hits("cache_app_bytes_max"), figures.hits("cache_bytes_max")];
    assert_eq!(hits.map(|hits| hits as u32), [1, 0]);
}
