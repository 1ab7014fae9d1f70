//! SPEC.md, *History and recovery*, *HTTP*: the publications that a channel retains, and the callers that may ask
//! for them.

use crate::support::{tokens::token, *};
use serde_json::{Value, json};

const ROOM: &str = "/api/apps/test-app/channels/public/room/history";

async fn publish(server: &TestServer, topic: &str, n: u64) {
    let event = json!({ "topic": topic, "event": "msg", "payload": { "n": n } });
    server.trigger(&App::seeded(), event).await;
}

async fn asked(server: &TestServer, path: &str) -> (u16, Value) {
    let app = App::seeded();
    let answer = request("GET", server.url(path)).basic(&app.key, &app.secret).send().await;
    (answer.status, answer.json())
}

/// The numbers of the publications on a page.
fn numbers(page: &Value) -> Vec<u64> {
    let data = page["data"].as_array().unwrap_or_else(|| panic!("{page}"));
    data.iter().map(|one| one["payload"]["n"].as_u64().expect("a number")).collect()
}

#[tokio::test]
async fn the_newest_are_listed_oldest_first_with_positions_and_times() {
    let server = TestServer::start();
    for (topic, n) in [("room", 1), ("other", 2), ("#general", 3), ("room", 4)] {
        publish(&server, topic, n).await;
    }
    let (status, page) = asked(&server, ROOM).await;
    assert_eq!((status, numbers(&page)), (200, vec![1, 3, 4]));
    assert_eq!(page["complete"], true);
    assert_eq!(page["reason"], Value::Null);
    assert_eq!(page["position"], page["data"][2]["position"]);
    let first = &page["data"][0];
    assert_eq!((&first["topic"], &first["event"]), (&json!("room"), &json!("msg")));
    assert_eq!(page["data"][1]["topic"], "#general");
    let time = first["time"].as_str().expect("a time");
    assert!(chrono_like(time), "{time}");
    let (_, page) = asked(&server, &format!("{ROOM}?limit=2")).await;
    assert_eq!(numbers(&page), [3, 4]);
    let (_, page) = asked(&server, &ROOM.replace("room", "never")).await;
    assert_eq!(numbers(&page), [3], "#general belongs also to a channel that was never used");
}

/// Whether a time has the form of `2026-11-28T20:00:00.000Z`.
fn chrono_like(time: &str) -> bool {
    let shape = time.bytes().map(|b| if b.is_ascii_digit() { b'0' } else { b });
    shape.eq(*b"0000-00-00T00:00:00.000Z")
}

#[tokio::test]
async fn pages_follow_each_other_until_nothing_is_left() {
    let server = TestServer::start();
    let (_, empty) = asked(&server, ROOM).await;
    assert_eq!((numbers(&empty), &empty["complete"]), (vec![], &json!(true)));
    let mut since = empty["position"].as_str().expect("a position").to_owned();
    for n in 1..=5 {
        publish(&server, "room", n).await;
    }
    publish(&server, "other", 6).await;
    for expected in [vec![1, 2], vec![3, 4], vec![5], vec![]] {
        let (_, page) = asked(&server, &format!("{ROOM}?limit=2&since={since}")).await;
        assert_eq!((numbers(&page), &page["complete"]), (expected, &json!(true)), "{page}");
        since = page["position"].as_str().expect("a position").to_owned();
    }
    // A join continues at the position at which the pages ended.
    publish(&server, "room", 7).await;
    let mut socket = Socket::connect(&server, V2).await;
    let joined = socket.try_join("public:test-app:room", json!({ "since": since })).await;
    assert_eq!(joined["response"]["recovery"]["replayed"], 1);
    assert_eq!(socket.next().await[4]["n"], 7);
}

#[tokio::test]
async fn a_history_that_may_be_incomplete_says_so() {
    let server = TestServer::start_with(|settings| settings.history.publications = 2);
    let (_, before) = asked(&server, ROOM).await;
    let position = before["position"].as_str().expect("a position");
    let elsewhere = asked(&server, "/api/apps/test-app/channels/private/room/history").await.1;
    let elsewhere = elsewhere["position"].as_str().expect("a position");
    for n in 1..=3 {
        publish(&server, "room", n).await;
    }
    for (since, reason) in [(position, "expired"), (elsewhere, "unknown"), ("x", "unknown")] {
        let (status, page) = asked(&server, &format!("{ROOM}?since={since}")).await;
        let said = (status, &page["complete"], &page["reason"], numbers(&page));
        assert_eq!(said, (200, &json!(false), &json!(reason), vec![2, 3]), "{since}");
    }
    let off = TestServer::start_with(|settings| settings.history.publications = 0);
    let (_, page) = asked(&off, ROOM).await;
    assert_eq!(page, json!({ "data": [], "complete": true, "position": null }));
    let (_, page) = asked(&off, &format!("{ROOM}?since={position}")).await;
    let expected = json!({ "data": [], "complete": false, "reason": "off", "position": null });
    assert_eq!(page, expected);
}

#[tokio::test]
async fn payloads_come_as_they_were_sent() {
    let server = TestServer::start();
    let app = App::seeded();
    for event in [
        r#"{"topic":"room","event":"e","payload":{ "a" : 1.50 }}"#,
        r#"{"topic":"room","event":"b","payload_base64":"/w8="}"#,
    ] {
        let call = request("POST", server.url("/api/apps/test-app/events"));
        let call = call.basic(&app.key, &app.secret).header("content-type", "application/json");
        assert_eq!(call.body(event).send().await.status, 200);
    }
    let call = request("GET", server.url(ROOM)).basic(&app.key, &app.secret);
    let answer = call.send().await;
    assert!(answer.body.contains(r#""payload":{ "a" : 1.50 }"#), "{}", answer.body);
    assert_eq!(answer.json()["data"][1]["payload_base64"], "/w8=");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn only_the_application_asks_and_only_for_what_is_its_own() {
    let server = TestServer::start();
    publish(&server, "room", 1).await;
    let app = App::seeded();
    let other = server.create_app(json!({ "name": "Other App" })).await;
    let visitor = token(&app, &json!({ "listen": ["public:*"], "publish": ["public:*"] }));
    for (case, call) in [
        ("nobody", request("GET", server.url(ROOM))),
        ("another app", request("GET", server.url(ROOM)).basic(&other.key, &other.secret)),
        ("a visitor", request("GET", server.url(ROOM)).bearer(&visitor)),
    ] {
        assert_eq!(call.send().await.status, 401, "{case}");
    }
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("since[]=x", "since"),
    ] {
        let (status, answer) = asked(&server, &format!("{ROOM}?{query}")).await;
        assert_eq!(status, 422, "{query}: {answer}");
        assert!(answer["errors"][field].is_array(), "{query}: {answer}");
    }
    for (path, expected) in [
        ("/api/apps/test-app/channels/pub%20lic/room/history", 422),
        ("/api/apps/test-app/channels/public/%23general/history", 422),
        ("/api/apps/test-app/channels/public/a%2Fhistory", 200),
        ("/api/apps/test-app/channels/public/history", 200),
    ] {
        assert_eq!(asked(&server, path).await.0, expected, "{path}");
    }
}
