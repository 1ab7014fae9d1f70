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
    const ATTEMPTS: u32 = 10;
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
    let events = json!({ "events": vec![event; EVENTS] });
    let series = r#"herald_deliveries_total{app="test-app"}"#;
    let mut came_first = Vec::new();
    // The figure is read by a request of its own, and the server goes on until that request arrives. A machine under
    // load may delay it, so several attempts are made. A server that delivers all of the busy app's events first fails
    // in each of them.
    for attempt in 0..ATTEMPTS {
        let before = TOTAL * f64::from(attempt);
        let bulk = request("POST", server.url("/api/publish/bulk"));
        let bulk = bulk.header("authorization", &App::seeded().secret);
        assert_eq!(bulk.json(&events).send().await.status, 200);

        server.trigger(&quiet, json!({ "topic": "#general", "event": "msg" })).await;
        let heard: Value = listener.next().await;
        assert_eq!(heard, json!([null, null, "public:quiet", "msg", {}]));
        let meanwhile = Figures::of(&server).await.get(series) - before;
        becomes(&server, series, before + TOTAL).await;
        if meanwhile < TOTAL / 2.0 {
            return;
        }
        came_first.push(meanwhile);
    }
    panic!("of {TOTAL} deliveries, {came_first:?} came first");
}
