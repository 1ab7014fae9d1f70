//! Two apps on one server: a busy app hardly delays the events of a quiet one.

use crate::support::{
    figures::{Figures, becomes},
    *,
};
use serde_json::{Value, json};

/// The clients of the busy app read nothing. Their frames stay in their outboxes, so that only the server decides
/// when the event of the quiet app arrives.
#[tokio::test]
async fn an_event_of_a_quiet_app_does_not_wait_for_all_that_a_busy_app_has_published() {
    const SESSIONS: usize = 10;
    const CHANNELS: usize = 100;
    const EVENTS: usize = 100;
    const TOTAL: f64 = (SESSIONS * CHANNELS * EVENTS) as f64;
    let server = TestServer::start_with(|settings| {
        settings.server.workers = 1;
        settings.limits.outbox_frames_max = 1_000_000;
        settings.limits.outbox_bytes_max = 1_000_000_000;
    });
    let quiet = server.create_app(json!({ "name": "quiet" })).await;
    let mut listener = Socket::connect(&server, V2).await;
    listener.join("public:quiet", json!({})).await;
    let mut deaf = Vec::new();
    for _ in 0..SESSIONS {
        let mut socket = Socket::connect(&server, V2).await;
        for nth in 0..CHANNELS {
            socket.join(&format!("public:test-app:{nth}"), json!({})).await;
        }
        deaf.push(socket);
    }
    let event = json!({ "topic": "public:test-app", "event": "msg" });
    let events = vec![event; EVENTS];
    let bulk = request("POST", server.url("/api/publish/bulk"));
    let bulk = bulk.header("authorization", &App::seeded().secret);
    assert_eq!(bulk.json(&json!({ "events": events })).send().await.status, 200);

    server.trigger(&quiet, json!({ "topic": "#general", "event": "msg" })).await;
    let heard: Value = listener.next().await;
    assert_eq!(heard, json!([null, null, "public:quiet", "msg", {}]));
    let series = r#"herald_deliveries_total{app="test-app"}"#;
    let meanwhile = Figures::of(&server).await.get(series);
    assert!(meanwhile < TOTAL / 2.0, "{meanwhile} of {TOTAL} deliveries came first");
    becomes(&server, series, TOTAL).await;
}
