//! Entries 83 to 96 of the protocol document of Pusher: events that clients publish.

use serde_json::{Value, json};

use crate::support::*;

async fn pair(server: &TestServer, channel: &str) -> (PusherSocket, PusherSocket) {
    let (mut c, mut a) = (PusherSocket::connect(server).await, PusherSocket::connect(server).await);
    c.subscribe(channel).await;
    a.subscribe(channel).await;
    (c, a)
}

fn event(channel: &str, data: Value) -> Value {
    json!({ "event": "client-e", "channel": channel, "data": data })
}

#[tokio::test]
async fn p083_p084_p086_p087_p094_an_event_reaches_the_others_as_it_was_sent() {
    let server = TestServer::start();
    for channel in ["private-x", "private-encrypted-x"] {
        let (mut c, mut a) = pair(&server, channel).await;
        for data in [r#"{"a" : 1.0}"#, r#""text""#, r#""{\"a\":1}""#, "[1, 2]", "7", "null"] {
            c.socket
                .text(format!(r#"{{"event":"client-e","channel":"{channel}","data":{data},"user_id":"forged","x":1}}"#))
                .await;
            a.hears(&format!(r#"{{"event":"client-e","channel":"{channel}","data":{data}}}"#))
                .await;
        }
        c.assert_quiet().await;
    }
}

#[tokio::test]
async fn p085_on_a_presence_channel_the_others_are_told_the_sender() {
    let server = TestServer::start();
    let (mut c, mut a) =
        (PusherSocket::connect(&server).await, PusherSocket::connect(&server).await);
    a.enter("presence-x", r#"{"user_id":"a"}"#).await;
    c.enter("presence-x", r#"{"user_id":7}"#).await;
    assert_eq!(a.next().await["event"], "pusher_internal:member_added");
    c.say(event("presence-x", json!({ "n": 1 }))).await;
    a.hears(r#"{"event":"client-e","channel":"presence-x","user_id":"7","data":{"n":1}}"#).await;
    c.assert_quiet().await;
}

#[tokio::test]
async fn p088_p089_p090_p096_events_that_are_not_taken_are_answered_with_an_error() {
    let server = TestServer::start();
    let (mut c, mut a) = pair(&server, "private-x").await;
    c.subscribe("foo").await;
    a.subscribe("foo").await;
    a.subscribe("private-y").await;
    let long = format!("client-{}", "e".repeat(194));
    for message in [
        event("foo", json!(1)),
        event("private-y", json!(1)),
        event("é", json!(1)),
        json!({ "event": "e", "channel": "private-x", "data": 1 }),
        json!({ "event": "client-e", "channel": "private-x" }),
        json!({ "event": "client-e", "data": 1 }),
        json!({ "event": long, "channel": "private-x", "data": 1 }),
    ] {
        c.say(message.clone()).await;
        assert_eq!(c.hears_error().await, Value::Null, "{message}");
    }
    c.socket.text(r#"{"event":"client-e","channel":"private-x","data":{"a":1,"a":2}}"#).await;
    assert_eq!(c.hears_error().await, Value::Null, "a repeated key");
    a.assert_quiet().await;
}

#[tokio::test]
async fn p091_an_app_may_take_no_client_events() {
    let server = TestServer::start();
    let (mut c, mut a) = pair(&server, "private-x").await;
    server.update_app("test-app", json!({ "client_events": "none" })).await;
    c.say(event("private-x", json!(1))).await;
    assert_eq!(c.hears_error().await, Value::Null);
    server.update_app("test-app", json!({ "client_events": "authorized" })).await;
    c.say(event("private-x", json!(2))).await;
    a.hears(r#"{"event":"client-e","channel":"private-x","data":2}"#).await;
}

#[tokio::test]
async fn p092_p093_the_limits_on_client_events_are_4301_and_close_nothing() {
    let server = TestServer::start_with(|settings| {
        settings.limits.client_events_per_second_max = 10;
        settings.limits.client_event_bytes_max = 100;
    });
    let (mut c, mut a) = pair(&server, "private-x").await;
    c.say(event("private-x", json!("x".repeat(100)))).await;
    assert_eq!(c.hears_error().await, 4301);
    // Ten times the rate, so that some are refused on a slow machine, too.
    for nth in 0..100 {
        c.say(event("private-x", json!(nth))).await;
    }
    for nth in 0..10 {
        a.hears(&format!(r#"{{"event":"client-e","channel":"private-x","data":{nth}}}"#)).await;
    }
    // An unknown command is the last message that is answered, because nothing is closed.
    c.command("pusher:foo", json!({})).await;
    let mut refused = 0;
    loop {
        match c.hears_error().await {
            Value::Null => break,
            code => assert_eq!(code, 4301),
        }
        refused += 1;
    }
    assert!((1..=90).contains(&refused), "{refused}");
}
