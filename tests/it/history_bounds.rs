//! SPEC.md, *History and recovery*: the bounds on retained and replayed publications hold for every publisher, and
//! each bound that is reached is counted.

use crate::support::{
    figures::{Figures, becomes, becomes_hit},
    nodes::until,
    recovery::{ROOM, ask, begin, complete, hear, publish, publish_as},
    *,
};
use serde_json::{Value, json};

/// Publishes events of the seeded app, a hundred in one call.
async fn publish_in_bulk(server: &TestServer, events: impl IntoIterator<Item = (String, Value)>) {
    let mut events = events.into_iter().peekable();
    while events.peek().is_some() {
        let event = |(channel, payload)| {
            let topic = format!("public:test-app:{channel}");
            json!({ "topic": topic, "event": "msg", "payload": payload })
        };
        let body = json!({ "events": events.by_ref().take(100).map(event).collect::<Vec<_>>() });
        let call = request("POST", server.url("/api/publish/bulk"));
        let call = call.header("authorization", &App::seeded().secret).json(&body);
        assert_eq!(call.send().await.status, 200);
    }
}

/// The recovery that a client is told when it comes back with a position.
async fn told(server: &TestServer, topic: &str, since: &str) -> Value {
    ask(&mut Socket::connect(server, V2).await, topic, json!({ "since": since })).await
}

#[tokio::test]
async fn of_too_many_channels_the_quietest_are_forgotten_and_that_is_counted() {
    // The default of `history.channels_max`.
    const CHANNELS: usize = 10_000;
    let server = TestServer::start();
    let zero = begin(&mut Socket::connect(&server, V2).await, ROOM).await;
    publish(&server, "room", 1..=1).await;
    let channels = |range: std::ops::Range<usize>| {
        range.map(|nth| (format!("stranger-{nth}"), json!({ "n": nth })))
    };
    publish_in_bulk(&server, channels(0..CHANNELS - 1)).await;
    assert_eq!(told(&server, ROOM, &zero).await, complete(&zero, 1), "as many as are allowed");
    assert_eq!(Figures::of(&server).await.hits("history_channels_max"), 0.0);
    publish_in_bulk(&server, channels(CHANNELS - 1..CHANNELS)).await;
    becomes_hit(&server, "history_channels_max", 1.0).await;
    assert_eq!(told(&server, ROOM, &zero).await["reason"], "expired");
    let newest = format!("public:test-app:stranger-{}", CHANNELS - 1);
    assert_eq!(told(&server, &newest, &zero).await, complete(&zero, 1), "it is retained");
    let mut socket = Socket::connect(&server, V2).await;
    let recovery = ask(&mut socket, &newest, json!({ "history": 9 })).await;
    assert_eq!(recovery["replayed"], 1);
}

#[tokio::test]
async fn an_app_that_floods_loses_its_own_oldest_and_another_app_keeps_all_of_its() {
    const BYTES: usize = 1 << 20;
    let server = TestServer::start_with(|settings| {
        settings.history.app_bytes_max = BYTES;
        settings.history.bytes_max = 2 * BYTES;
        settings.history.replay_max = 50;
    });
    let quiet = server.create_app(json!({ "name": "Quiet", "slug": "quiet" })).await;
    let topic = "public:quiet:room";
    let quiet_zero = begin(&mut Socket::connect(&server, V2).await, topic).await;
    publish_as(&server, &quiet, "room", 1..=20).await;
    let zero = begin(&mut Socket::connect(&server, V2).await, ROOM).await;
    publish(&server, "room", 1..=1).await;
    // Channels with names of their own, and payloads of 100 KB.
    let large = |nth: usize| (format!("flood-{nth}"), json!({ "x": "x".repeat(100_000) }));
    for nth in 0..10 {
        publish_in_bulk(&server, [large(nth)]).await;
    }
    assert_eq!(told(&server, ROOM, &zero).await, complete(&zero, 1), "within the bound");
    assert_eq!(Figures::of(&server).await.hits("history_app_bytes_max"), 0.0);
    for nth in 10..30 {
        publish_in_bulk(&server, [large(nth)]).await;
    }
    let figures = Figures::of(&server).await;
    assert!(figures.hits("history_app_bytes_max") > 0.0);
    assert_eq!(figures.hits("history_bytes_max"), 0.0);
    assert!(figures.get("herald_history_bytes") <= (BYTES + BYTES / 16) as f64);
    assert_eq!(told(&server, ROOM, &zero).await["reason"], "expired");
    assert_eq!(told(&server, "public:test-app:flood-29", &zero).await["replayed"], 1);
    let mut socket = Socket::connect(&server, V2).await;
    let recovery = ask(&mut socket, topic, json!({ "since": quiet_zero })).await;
    assert_eq!(recovery, complete(&quiet_zero, 20));
    hear(&mut socket, 1..=20).await;
}

#[tokio::test]
async fn over_all_apps_the_one_that_retains_the_most_gives_way() {
    const BYTES: usize = 1 << 20;
    let server = TestServer::start_with(|settings| {
        settings.history.app_bytes_max = BYTES;
        settings.history.bytes_max = BYTES;
    });
    let mut apps = Vec::new();
    for slug in ["one", "two", "three"] {
        apps.push(server.create_app(json!({ "name": format!("App {slug}"), "slug": slug })).await);
    }
    let zero = begin(&mut Socket::connect(&server, V2).await, "public:one:room").await;
    publish_as(&server, &apps[0], "room", 1..=5).await;
    let large = json!({ "topic": "room", "event": "msg", "payload": { "x": "x".repeat(90_000) } });
    for nth in 0..40 {
        server.trigger(&apps[1 + nth % 2], large.clone()).await;
        let retained = Figures::of(&server).await.get("herald_history_bytes");
        assert!(retained <= BYTES as f64, "{retained}");
    }
    assert!(Figures::of(&server).await.hits("history_bytes_max") > 0.0);
    let recovery = told(&server, "public:one:room", &zero).await;
    assert_eq!(recovery, complete(&zero, 5), "the app that retains little keeps it");
    for app in &apps[1..] {
        let path = format!("/api/apps/{}/channels/public/room/history", app.slug);
        let answer = request("GET", server.url(&path)).basic(&app.key, &app.secret).send().await;
        let left = answer.json()["data"].as_array().map_or(0, Vec::len);
        assert!(left >= 4, "{}: the others give way by turns, {left} are left", app.slug);
    }
}

#[tokio::test]
async fn of_too_many_scopes_the_one_that_has_been_unheard_the_longest_is_forgotten() {
    let server = TestServer::start_with(|settings| settings.limits.scopes_per_app_max = 2);
    let mut heard = Socket::connect(&server, V2).await;
    let zero = begin(&mut heard, ROOM).await;
    publish(&server, "room", 1..=1).await;
    hear(&mut heard, [1]).await;
    let private = "private:test-app:room";
    let mut socket = Socket::connect(&server, V2).await;
    let private_zero = begin(&mut socket, private).await;
    drop(socket);
    becomes(&server, "herald_subscriptions{app=\"test-app\"}", 1.0).await;
    publish(&server, private, 1..=1).await;
    assert_eq!(told(&server, private, &private_zero).await, complete(&private_zero, 1));
    becomes(&server, "herald_subscriptions{app=\"test-app\"}", 1.0).await;
    publish(&server, "presence:test-app:room", 1..=1).await;
    let figures = becomes(&server, "herald_history_publications", 2.0).await;
    assert_eq!(figures.hits("scopes_per_app_max"), 0.0, "nobody was refused");
    assert_eq!(told(&server, private, &private_zero).await["reason"], "epoch");
    assert_eq!(told(&server, ROOM, &zero).await, complete(&zero, 1), "a scope that is heard stays");
}

/// The number of channels. Their replays together are many times larger than the outbox of a session, and larger
/// than the buffers of the kernel.
const CHANNELS: usize = 20;
/// The publications of each channel.
const EACH: usize = 200;
const OUTBOX_BYTES: usize = 1_600_000;

async fn much_to_replay() -> TestServer {
    let server = TestServer::start_with(|settings| {
        settings.limits.outbox_frames_max = 256;
        settings.limits.outbox_bytes_max = OUTBOX_BYTES;
        settings.history.publications = EACH;
        settings.history.replay_bytes_max = OUTBOX_BYTES / 4;
    });
    let event = |nth: usize| {
        (format!("c{}", nth % CHANNELS), json!({ "n": nth / CHANNELS, "x": "x".repeat(1_900) }))
    };
    publish_in_bulk(&server, (0..CHANNELS * EACH).map(event)).await;
    server
}

/// Reads the replies to all joins, and their replays. The topics may come in any order.
async fn hear_all(socket: &mut Socket) {
    let mut heard = vec![0; CHANNELS];
    for _ in 0..CHANNELS * (EACH + 1) {
        let frame = socket.next().await;
        let topic = frame[2].as_str().expect("a topic");
        let nth: usize = topic.rsplit_once(":c").expect("a channel").1.parse().expect("a number");
        if frame[3] == "phx_reply" {
            assert_eq!(frame[4]["response"]["recovery"]["replayed"], EACH, "{frame}");
            continue;
        }
        assert_eq!(frame[4]["n"], heard[nth], "{frame}");
        heard[nth] += 1;
    }
    assert_eq!(heard, vec![EACH; CHANNELS]);
    socket.assert_quiet().await;
}

fn join_of(nth: usize) -> Value {
    let (reference, topic) = (format!("j{nth}"), format!("public:test-app:c{nth}"));
    json!([reference, reference, topic, "phx_join", { "history": EACH }])
}

#[tokio::test]
async fn a_client_that_reads_gets_replays_that_are_together_more_than_may_wait_for_it() {
    for vsn in [V1, V2] {
        let server = much_to_replay().await;
        let mut socket = Socket::connect(&server, vsn).await;
        for nth in 0..CHANNELS {
            socket.push(join_of(nth)).await;
        }
        // The client has read nothing yet. At most two replays wait at the same time, for any number of joins.
        let mut last = 0.0;
        until("the server can write no more", async || {
            let most = Figures::of(&server).await.get("herald_outbox_bytes_most");
            assert!(most <= 0.5 * OUTBOX_BYTES as f64, "{most}");
            most > 0.0 && most.total_cmp(&std::mem::replace(&mut last, most)).is_eq()
        })
        .await;
        hear_all(&mut socket).await;
        assert_eq!(Figures::of(&server).await.hits("outbox_bytes_max"), 0.0, "{vsn}");
    }
}

#[tokio::test]
async fn a_client_over_long_poll_that_joins_many_topics_in_one_request_gets_all_replays() {
    let server = much_to_replay().await;
    let poller = Poller::connect(&server, V2).await;
    let mut sender = poller.again(&server).await;
    let lines: Vec<_> = (0..CHANNELS).map(|nth| join_of(nth).to_string()).collect();
    let mut socket = Socket::polled(poller, V2);
    let lines = lines.join("\n");
    let (status, ()) = tokio::join!(sender.post_batch(&lines), hear_all(&mut socket));
    assert_eq!(status, 200);
    let figures = Figures::of(&server).await;
    for limit in ["outbox_frames_max", "outbox_bytes_max"] {
        assert_eq!(figures.hits(limit), 0.0, "{limit}");
    }
}

/// A server that retains 1,000 events whose frames do not fit into half of an outbox, and the position before them.
/// Their payloads alone are much less than `replay_bytes_max`.
async fn more_frames_than_fit_into_an_outbox() -> (TestServer, String) {
    let server = TestServer::start_with(|settings| {
        settings.limits.outbox_bytes_max = 100_000;
        settings.history.replay_bytes_max = 99_999;
        settings.history.publications = 1_000;
    });
    let zero = begin(&mut Socket::connect(&server, V2).await, ROOM).await;
    publish_in_bulk(&server, (0..1_000).map(|n| ("room".to_owned(), json!({ "n": n })))).await;
    (server, zero)
}

#[tokio::test]
async fn a_replay_whose_frames_would_fill_the_outbox_is_too_much() {
    let (server, zero) = more_frames_than_fit_into_an_outbox().await;
    let mut socket = Socket::connect(&server, V2).await;
    let recovery = ask(&mut socket, ROOM, json!({ "since": zero })).await;
    assert_eq!((&recovery["reason"], &recovery["replayed"]), (&json!("too_much"), &json!(0)));
    assert_eq!(Figures::of(&server).await.hits("history_replay_bytes_max"), 1.0);
    publish(&server, "room", 7..=7).await;
    hear(&mut socket, [7]).await;
}

#[tokio::test]
async fn of_the_newest_events_as_many_are_replayed_as_fit_into_the_outbox() {
    let (server, zero) = more_frames_than_fit_into_an_outbox().await;
    for (since, is_complete) in [("", true), (&zero, false)] {
        let mut socket = Socket::connect(&server, V1).await;
        let recovery = ask(&mut socket, ROOM, json!({ "since": since, "history": 1_000 })).await;
        assert_eq!(recovery["complete"], is_complete, "{recovery}");
        let replayed = recovery["replayed"].as_u64().expect("a number");
        assert!((100..1_000).contains(&replayed), "{recovery}");
        let last = hear(&mut socket, 1_000 - replayed..1_000).await;
        // The position lies before the first of them, and they are not replayed again.
        for (since, count) in
            [(recovery["position"].as_str().expect("a text"), replayed), (&last, 0)]
        {
            let mut other = Socket::connect(&server, V1).await;
            let again = ask(&mut other, ROOM, json!({ "since": since })).await;
            assert_eq!((&again["complete"], &again["replayed"]), (&json!(true), &json!(count)));
            let again = ask(&mut socket, ROOM, json!({ "since": since })).await;
            assert_eq!((&again["complete"], &again["replayed"]), (&json!(true), &json!(0)));
        }
    }
    let hits = Figures::of(&server).await.hits("history_replay_bytes_max");
    assert_eq!(hits, 1.0, "that of the gap alone");
}

/// The resident memory of a process: the least of several readings.
async fn resident_bytes(server: &TestServer) -> f64 {
    let mut least = f64::MAX;
    for _ in 0..20 {
        least = least.min(Figures::of(server).await.get("process_resident_memory_bytes"));
    }
    least
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the figures are what a long run is for")]
async fn resident_memory_grows_by_what_is_counted_and_little_more() {
    const BYTES: usize = 16 << 20;
    const PAYLOAD_BYTES: usize = 128;
    for channels in [1, 10_000] {
        let process = Process::start(&[
            ("HERALD__HISTORY__BYTES_MAX", &BYTES.to_string()),
            ("HERALD__HISTORY__APP_BYTES_MAX", &BYTES.to_string()),
            ("HERALD__HISTORY__PUBLICATIONS", "100000"),
            ("HERALD__HISTORY__PUBLICATIONS_MAX", "100000"),
            // The allocator returns free memory at once, so that it is in no reading.
            ("_RJEM_MALLOC_CONF", "dirty_decay_ms:0"),
        ]);
        let server = &process.server;
        let event = |nth: usize| {
            let payload = json!({ "x": "x".repeat(PAYLOAD_BYTES - 8) });
            (format!("c{}", nth % channels), payload)
        };
        // The memory that publishing itself takes is allocated before the first reading.
        publish_in_bulk(server, (0..2_000).map(event)).await;
        server.update_app("test-app", json!({ "history_publications": 0 })).await;
        becomes(server, "herald_history_bytes", 0.0).await;
        let before = resident_bytes(server).await;
        server.update_app("test-app", json!({ "history_publications": 100_000 })).await;
        publish_in_bulk(server, (0..65_000).map(event)).await;
        let grown = resident_bytes(server).await - before;
        let figures = Figures::of(server).await;
        let counted = figures.get("herald_history_bytes");
        let publications = figures.get("herald_history_publications");
        let each = grown / publications - PAYLOAD_BYTES as f64;
        println!(
            "{channels} channels: {publications} publications, {counted} bytes counted, {grown} bytes \
             of memory, {each:.0} bytes each beside the payload"
        );
        assert!(counted > 0.6 * BYTES as f64, "{counted}");
        assert!(grown <= 1.3 * counted, "{channels}: {grown} bytes, {counted} counted");
        assert!(each <= 200.0, "{channels}: {each} bytes each beside the payload");
    }
}
