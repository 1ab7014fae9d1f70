//! Entries 110 to 123 of the protocol document of Pusher: users.

use serde_json::{Value, json};

use crate::support::{
    figures::{self, Figures},
    pusher::{call, event, trigger},
    *,
};

async fn signed_in(server: &TestServer, user_data: &str) -> PusherSocket {
    let mut client = PusherSocket::connect(server).await;
    client.sign_in(user_data).await;
    let data = json!(user_data);
    client
        .hears(&format!(r#"{{"event":"pusher:signin_success","data":{{"user_data":{data}}}}}"#))
        .await;
    client
}

#[tokio::test]
async fn p110_p111_p112_p113_p114_a_connection_signs_in_as_one_user() {
    let server = TestServer::start();
    let mut client = PusherSocket::connect(&server).await;
    let forged = json!({ "auth": "test-app-fake-key:00", "user_data": r#"{"id":"1"}"# });
    client.command("pusher:signin", forged).await;
    assert_eq!(client.hears_error().await, 4009);
    for data in [r#"{"id":7}"#, r#"{"id":""}"#, "{}", "x", r#"["1"]"#] {
        client.sign_in(data).await;
        assert_eq!(client.hears_error().await, Value::Null, "{data}");
    }
    client.command("pusher:signin", json!({ "auth": "k:h" })).await;
    assert_eq!(client.hears_error().await, Value::Null);
    let mut client = signed_in(&server, r#"{"id":"12345"}"#).await;
    client.sign_in(r#"{"id":"12345","user_info":{}}"#).await;
    assert_eq!(client.next().await["event"], "pusher:signin_success");
    client.sign_in(r#"{"id":"2"}"#).await;
    assert_eq!(client.hears_error().await, Value::Null);
    client.subscribe("#server-to-user-12345").await;
}

#[tokio::test]
async fn p115_p116_p117_the_events_of_a_user_reach_that_user_alone() {
    let server = TestServer::start();
    let mine = "#server-to-user-12345";
    let mut first = signed_in(&server, r#"{"id":"12345"}"#).await;
    let mut second = signed_in(&server, r#"{"id":"12345"}"#).await;
    let mut other = signed_in(&server, r#"{"id":"1234"}"#).await;
    let mut nobody = PusherSocket::connect(&server).await;
    for client in [&mut first, &mut second] {
        client.subscribe(mine).await;
    }
    for client in [&mut other, &mut nobody] {
        client.ask(mine, None).await;
        assert_eq!(client.hears_refusal(mine).await, 401);
    }
    trigger(&server, event(&[mine], r#"{"n":1}"#)).await;
    for client in [&mut first, &mut second] {
        client
            .hears(r##"{"event":"msg","channel":"#server-to-user-12345","data":"{\"n\":1}"}"##)
            .await;
    }
    other.assert_quiet().await;
    nobody.assert_quiet().await;
}

#[tokio::test]
async fn p118_a_user_that_is_signed_in_is_a_member_without_channel_data() {
    let server = TestServer::start();
    let mut client = signed_in(&server, r#"{"id":"u1","user_info":{"name":"Ana"}}"#).await;
    let roster = client.subscribe("presence-a").await["presence"].clone();
    assert_eq!(roster, json!({ "ids": ["u1"], "hash": { "u1": { "name": "Ana" } }, "count": 1 }));
    // The member that the application has signed for the channel takes precedence.
    let roster = client.enter("presence-b", r#"{"user_id":"other"}"#).await;
    assert_eq!(roster["ids"], json!(["other"]));
}

#[tokio::test]
async fn p120_the_connections_of_a_user_are_terminated() {
    let server = TestServer::start();
    let mut first = signed_in(&server, r#"{"id":"12345"}"#).await;
    let mut second = signed_in(&server, r#"{"id":"12345"}"#).await;
    let mut other = signed_in(&server, r#"{"id":"2"}"#).await;
    let path = "/users/12345/terminate_connections";
    let answer = call(&server, "POST", path).body("{}").outcome().await;
    assert_eq!(answer, (200, "{}".to_owned()));
    assert_eq!(first.closed().await, 4009);
    assert_eq!(second.closed().await, 4009);
    other.assert_quiet().await;
}

#[tokio::test]
async fn p150_p151_the_connection_that_a_trigger_names_is_left_out() {
    let server = TestServer::start();
    let (mut c, mut a) =
        (PusherSocket::connect(&server).await, PusherSocket::connect(&server).await);
    c.subscribe("foo").await;
    a.subscribe("foo").await;
    let mut event = event(&["foo"], "1");
    event["socket_id"] = json!(c.id);
    trigger(&server, event).await;
    a.hears(r#"{"event":"msg","channel":"foo","data":"1"}"#).await;
    c.assert_quiet().await;
}

#[tokio::test]
async fn p150_a_connection_is_left_out_on_every_kind_of_channel_and_in_a_batch() {
    let server = TestServer::start();
    let mut c = signed_in(&server, r#"{"id":"u"}"#).await;
    let mut a = signed_in(&server, r#"{"id":"u"}"#).await;
    let channels =
        ["foo", "private-foo", "private-encrypted-foo", "cache-foo", "#server-to-user-u"];
    for client in [&mut c, &mut a] {
        for channel in channels {
            client.subscribe(channel).await;
            if channel.starts_with("cache-") {
                assert_eq!(client.next().await["event"], "pusher:cache_miss");
            }
        }
        client.enter("presence-foo", r#"{"user_id":"u"}"#).await;
    }
    let channels: Vec<_> = channels.into_iter().chain(["presence-foo"]).collect();
    let mut heard = Vec::new();
    let mut event = event(&channels, "1");
    event["socket_id"] = json!(c.id);
    trigger(&server, event).await;
    for _ in &channels {
        heard.push(a.next().await["channel"].as_str().expect("a channel").to_owned());
    }
    heard.sort();
    let mut expected: Vec<_> = channels.iter().map(|channel| (*channel).to_owned()).collect();
    expected.sort();
    assert_eq!(heard, expected);
    let of = |channel: &str, except: Option<&str>| {
        let mut event = json!({ "name": "msg", "channel": channel, "data": "2" });
        if let Some(except) = except {
            event["socket_id"] = except.into();
        }
        event
    };
    let batch = json!({ "batch": [of("foo", Some(&c.id)), of("private-foo", None), of("foo", Some(&a.id))] });
    let answer = call(&server, "POST", "/batch_events").json(&batch).outcome().await;
    assert_eq!(answer, (200, "{}".to_owned()));
    let message = |channel: &str| format!(r#"{{"event":"msg","channel":"{channel}","data":"2"}}"#);
    for (client, channels) in [(&mut a, ["foo", "private-foo"]), (&mut c, ["private-foo", "foo"])] {
        for channel in channels {
            client.hears(&message(channel)).await;
        }
        client.assert_quiet().await;
    }
    // A replay leaves out nobody: the connection that subscribes anew is sent the last event.
    c.command("pusher:unsubscribe", json!({ "channel": "cache-foo" })).await;
    c.subscribe("cache-foo").await;
    c.hears(r#"{"event":"msg","channel":"cache-foo","data":"1"}"#).await;
}

/// The users in the next message of the watchlist: those that are online, and those that are not.
pub(crate) async fn watched(client: &mut PusherSocket) -> (Value, Value) {
    let message = client.next().await;
    assert_eq!(message["event"], "pusher_internal:watchlist_events", "{message}");
    assert!(message.get("channel").is_none(), "{message}");
    let data: Value = serde_json::from_str(message["data"].as_str().expect("text")).expect("JSON");
    let of = |name: &str| {
        let events = data["events"].as_array().expect("a list");
        let mut of = events.iter().filter(|event| event["name"] == name);
        let users = of.next().map_or(json!([]), |event| event["user_ids"].clone());
        assert_eq!(of.next(), None, "{data}");
        users
    };
    (of("online"), of("offline"))
}

#[tokio::test]
async fn p121_p122_watched_users_are_told_as_they_are_and_as_they_change() {
    let server = TestServer::start();
    let app = server.create_app(json!({ "name": "other app" })).await;
    let _u2 = signed_in(&server, r#"{"id":"u2"}"#).await;
    let mut client = signed_in(&server, r#"{"id":"u1","watchlist":["u2","u3"]}"#).await;
    client
        .hears(
            r#"{"event":"pusher_internal:watchlist_events","data":"{\"events\":[{\"name\":\"online\",\"user_ids\":[\"u2\"]},{\"name\":\"offline\",\"user_ids\":[\"u3\"]}]}"}"#,
        )
        .await;
    let mut elsewhere = PusherSocket::of(&server, &app).await;
    elsewhere.sign_in(r#"{"id":"u3"}"#).await;
    assert_eq!(elsewhere.next().await["event"], "pusher:signin_success");
    client.assert_quiet().await;
    let first = signed_in(&server, r#"{"id":"u3"}"#).await;
    assert_eq!(watched(&mut client).await, (json!(["u3"]), json!([])));
    let mut second = signed_in(&server, r#"{"id":"u3"}"#).await;
    // Nor does a second sign-in as the same user cause a message.
    second.sign_in(r#"{"id":"u3","user_info":{}}"#).await;
    assert_eq!(second.next().await["event"], "pusher:signin_success");
    client.assert_quiet().await;
    // A session is signed out before the number of sessions falls.
    let sessions = r#"herald_sessions{transport="websocket",version="pusher"}"#;
    let before = Figures::of(&server).await.get(sessions);
    drop(first);
    figures::becomes(&server, sessions, before - 1.0).await;
    client.assert_quiet().await;
    drop(second);
    assert_eq!(watched(&mut client).await, (json!([]), json!(["u3"])));
    client.assert_quiet().await;
}

#[tokio::test]
async fn p123_the_first_hundred_of_a_watchlist_are_watched() {
    let server = TestServer::start();
    let ids: Vec<_> = (0..101).map(|nth| format!("w{nth}")).collect();
    let _first = signed_in(&server, r#"{"id":"w0"}"#).await;
    for (count, is_too_long) in [(100, false), (101, true)] {
        let data = json!({ "id": "u1", "watchlist": ids[..count] }).to_string();
        let mut client = signed_in(&server, &data).await;
        if is_too_long {
            assert_eq!(client.hears_error().await, 4302);
        }
        assert_eq!(watched(&mut client).await, (json!(["w0"]), json!(ids[1..100])));
        let last = signed_in(&server, r#"{"id":"w99"}"#).await;
        assert_eq!(watched(&mut client).await, (json!(["w99"]), json!([])));
        drop(last);
        assert_eq!(watched(&mut client).await, (json!([]), json!(["w99"])));
        let _beyond = signed_in(&server, r#"{"id":"w100"}"#).await;
        client.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_watchlist_that_is_no_list_of_ids_is_an_error_and_nobody_is_signed_in() {
    let server = TestServer::start();
    let mut client = PusherSocket::connect(&server).await;
    for list in
        [json!("u2"), json!({}), json!([7]), json!([""]), json!(["u".repeat(129)]), json!(7)]
    {
        client.sign_in(&json!({ "id": "u1", "watchlist": list }).to_string()).await;
        assert_eq!(client.hears_error().await, Value::Null, "{list}");
    }
    client.ask("#server-to-user-u1", None).await;
    assert_eq!(client.hears_refusal("#server-to-user-u1").await, 401);
    // A watchlist without users causes no message. A user that is listed twice is told once.
    for (list, expected) in
        [(json!(null), None), (json!([]), None), (json!(["a", "a"]), Some(json!(["a"])))]
    {
        client.sign_in(&json!({ "id": "u1", "watchlist": list }).to_string()).await;
        assert_eq!(client.next().await["event"], "pusher:signin_success");
        match expected {
            Some(offline) => assert_eq!(watched(&mut client).await, (json!([]), offline)),
            None => client.assert_quiet().await,
        }
    }
}

#[tokio::test]
async fn p080_the_ids_of_users_may_be_names_that_javascript_objects_have() {
    let server = TestServer::start();
    let mut client =
        signed_in(&server, r#"{"id":"constructor","watchlist":["u2","__proto__","toString"]}"#)
            .await;
    let offline = json!(["u2", "__proto__", "toString"]);
    assert_eq!(watched(&mut client).await, (json!([]), offline));
    let _other = signed_in(&server, r#"{"id":"__proto__"}"#).await;
    assert_eq!(watched(&mut client).await, (json!(["__proto__"]), json!([])));
    let mine = "#server-to-user-constructor";
    client.subscribe(mine).await;
    trigger(&server, event(&[mine], "1")).await;
    client.hears(r##"{"event":"msg","channel":"#server-to-user-constructor","data":"1"}"##).await;
    // Phoenix's clients see the members of presence channels, and older ones would fail on this key.
    client.ask("presence-a", None).await;
    client.hears_refusal("presence-a").await;
}
