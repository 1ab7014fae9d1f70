//! SPEC.md, *History and recovery*: joins with `since` and `history`, over real sockets.

use crate::support::{
    recovery::{ROOM, ask, begin, complete, hear, next, publish, publish_as},
    *,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

/// A whole scope and a channel of each kind of scope.
const TOPICS: [&str; 6] = [
    "public:test-app",
    ROOM,
    "private:test-app",
    "private:test-app:room",
    "presence:test-app",
    "presence:test-app:room",
];

/// Checks the recovery that a join is told if its gap is not closed.
fn incomplete(recovery: &Value, reason: &str, replayed: usize) {
    let position = &recovery["position"];
    let expected = json!({
        "complete": false, "reason": reason, "position": position, "replayed": replayed,
    });
    assert_eq!(*recovery, expected);
}

fn is_tracked(topic: &str) -> bool {
    topic == "presence:test-app:room"
}

/// On a presence channel, the next frames must be the state of the members and the announcement of this one.
async fn enter(socket: &mut Socket, topic: &str) {
    if is_tracked(topic) {
        let state = socket.next().await;
        assert_eq!([&state[1], &state[3]], [&json!(null), &json!("presence_state")], "{state}");
        let diff = socket.next().await;
        assert_eq!([&diff[1], &diff[3]], [&json!(null), &json!("presence_diff")], "{diff}");
    }
}

#[tokio::test]
async fn a_join_with_a_position_is_sent_exactly_what_it_missed_of_every_kind_of_topic() {
    for way in WAYS {
        let server = TestServer::start();
        for topic in TOPICS {
            let scope = topic.strip_suffix(":room").unwrap_or(topic);
            let is_channel = scope != topic;
            let mut socket = Socket::connect(&server, way).await;
            begin(&mut socket, topic).await;
            enter(&mut socket, topic).await;
            publish(&server, &format!("{scope}:room"), 1..=2).await;
            let first = hear(&mut socket, [1]).await;
            hear(&mut socket, [2]).await;
            drop(socket);
            publish(&server, &format!("{scope}:room"), 3..=4).await;
            publish(&server, &format!("{scope}:other"), 5..=6).await;
            publish(&server, scope, 7..=7).await;

            let mut socket = Socket::connect(&server, way).await;
            let missed: &[u64] = if is_channel { &[2, 3, 4, 7] } else { &[2, 3, 4, 5, 6, 7] };
            let recovered = ask(&mut socket, topic, json!({ "since": first })).await;
            assert_eq!(recovered, complete(&first, missed.len()), "{way} {topic}");
            hear(&mut socket, missed.iter().copied()).await;
            if is_tracked(topic) {
                assert_eq!(socket.next().await[3], "presence_state", "{way}: behind the replay");
            }
            publish(&server, &format!("{scope}:room"), 8..=8).await;
            loop {
                let frame = socket.next().await;
                if frame[3] != "presence_diff" {
                    assert_eq!(frame[4], json!({ "n": 8 }), "{way} {topic}: live events follow");
                    break;
                }
                // Presence is not retained, and has no position.
                assert_eq!(frame[1], json!(null), "{frame}");
            }
            match is_tracked(topic) {
                true => socket.assert_quiet_but_for_diffs().await,
                false => socket.assert_quiet().await,
            }
        }
    }
}

#[tokio::test]
async fn names_and_frames_are_as_they_were_live_and_carry_their_position() {
    let server = TestServer::start();
    for topic in ["public:test-app", ROOM] {
        let mut live = Socket::connect(&server, V2).await;
        let zero = begin(&mut live, topic).await;
        publish(&server, "room", 1..=1).await;
        publish(&server, "#general", 2..=2).await;
        let heard = [live.frame().await, live.frame().await];
        let mut late = Socket::connect(&server, V2).await;
        ask(&mut late, topic, json!({ "since": zero })).await;
        assert_eq!([late.frame().await, late.frame().await], heard, "{topic}");
    }
}

#[tokio::test]
async fn a_join_that_does_not_ask_is_sent_frames_without_positions() {
    for way in WAYS {
        let server = TestServer::start();
        publish(&server, "room", 1..=2).await;
        let mut socket = Socket::connect(&server, way).await;
        let reply = socket.try_join(ROOM, json!({ "x": { "since": "" } })).await;
        assert_eq!(reply, json!({ "status": "ok", "response": {} }), "{way}");
        publish(&server, "room", 3..=3).await;
        assert_eq!(socket.next().await, json!([null, null, ROOM, "msg", { "n": 3 }]), "{way}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn without_a_position_nothing_is_replayed_and_positions_are_told() {
    for way in WAYS {
        let server = TestServer::start();
        publish(&server, "room", 1..=2).await;
        for since in [json!(""), json!(null)] {
            let mut socket = Socket::connect(&server, way).await;
            let recovery = ask(&mut socket, ROOM, json!({ "since": since })).await;
            let position = recovery["position"].as_str().expect("a position");
            assert_eq!(recovery, complete(position, 0), "{way}");
            publish(&server, "room", 3..=3).await;
            assert_ne!(next(&mut socket).await, (position.to_owned(), 3), "{way}");
            socket.assert_quiet().await;
        }
    }
}

#[tokio::test]
async fn positions_that_are_none_of_this_topic_never_refuse_a_join() {
    let server = TestServer::start();
    let other = server.create_app(json!({ "name": "Other", "slug": "other" })).await;
    publish_as(&server, &other, "room", 1..=1).await;
    publish(&server, "room", 1..=1).await;
    publish(&server, "private:test-app:room", 1..=1).await;
    let mut socket = Socket::connect(&server, V2).await;
    let own = begin(&mut socket, ROOM).await;
    let of_another_app = begin(&mut socket, "public:other:room").await;
    let of_another_scope = begin(&mut socket, "private:test-app:room").await;
    let future = format!("{own}0");
    for way in WAYS {
        for since in [
            json!(of_another_app),
            json!(of_another_scope),
            json!(future),
            json!("nonsense"),
            json!(format!("{own} ")),
            json!(17),
            json!({ "a": [] }),
            json!(false),
        ] {
            let mut socket = Socket::connect(&server, way).await;
            let recovery = ask(&mut socket, ROOM, json!({ "since": since })).await;
            incomplete(&recovery, "unknown", 0);
            assert_eq!(recovery["position"], own, "{way} {since}");
            socket.assert_quiet().await;
        }
        for history in [json!(-1), json!("5"), json!(null), json!(1.5), json!([]), json!(0)] {
            let mut socket = Socket::connect(&server, way).await;
            let recovery = ask(&mut socket, ROOM, json!({ "history": history })).await;
            assert_eq!(recovery, complete(&own, 0), "{way} {history}");
            socket.assert_quiet().await;
        }
    }
}

#[tokio::test]
async fn history_replays_the_newest_unless_the_gap_is_closed() {
    for way in WAYS {
        let server = TestServer::start_with(|settings| settings.history.publications = 5);
        let mut socket = Socket::connect(&server, way).await;
        let zero = begin(&mut socket, ROOM).await;
        publish(&server, "room", 1..=9).await;
        hear(&mut socket, 1..=8).await;
        let (last, _) = next(&mut socket).await;
        for (params, expected, reason) in [
            (json!({ "history": 3 }), &[7, 8, 9][..], None),
            (json!({ "history": 100 }), &[5, 6, 7, 8, 9], None),
            (json!({ "history": 3, "since": "" }), &[7, 8, 9], None),
            (json!({ "history": 3, "since": last }), &[], None),
            (json!({ "history": 3, "since": zero }), &[7, 8, 9], Some("expired")),
            (json!({ "history": 0, "since": zero }), &[], Some("expired")),
            (json!({ "history": 2, "since": "x" }), &[8, 9], Some("unknown")),
        ] {
            let mut socket = Socket::connect(&server, way).await;
            let recovery = ask(&mut socket, ROOM, params.clone()).await;
            match reason {
                None => assert_eq!(recovery["complete"], true, "{way} {params}"),
                Some(reason) => incomplete(&recovery, reason, expected.len()),
            }
            assert_eq!(recovery["replayed"], expected.len(), "{way} {params}");
            hear(&mut socket, expected.iter().copied()).await;
            socket.assert_quiet().await;
            drop(socket);
            // The position lies before the replay, so a client that is cut off amid the replay misses nothing.
            let mut again = Socket::connect(&server, way).await;
            let since = &recovery["position"];
            let recovery = ask(&mut again, ROOM, json!({ "since": since })).await;
            assert_eq!(recovery["complete"], true, "{way} {params}");
            hear(&mut again, expected.iter().copied()).await;
            again.assert_quiet().await;
        }
    }
}

#[tokio::test]
async fn a_topic_that_is_idle_does_not_expire_because_others_are_busy() {
    for way in WAYS {
        let server = TestServer::start_with(|settings| settings.history.publications = 5);
        publish(&server, "room", 1..=1).await;
        let mut socket = Socket::connect(&server, way).await;
        let since = begin(&mut socket, ROOM).await;
        drop(socket);
        publish(&server, "busy", 2..=40).await;
        for topic in [ROOM, "public:test-app:never-used"] {
            let mut socket = Socket::connect(&server, way).await;
            let recovery = ask(&mut socket, topic, json!({ "since": since })).await;
            assert_eq!((&recovery["complete"], &recovery["replayed"]), (&json!(true), &json!(0)));
        }
        for topic in ["public:test-app", "public:test-app:busy"] {
            let mut socket = Socket::connect(&server, way).await;
            incomplete(&ask(&mut socket, topic, json!({ "since": since })).await, "expired", 0);
            publish(&server, "busy", 41..=41).await;
            hear(&mut socket, [41]).await;
        }
    }
}

#[tokio::test]
async fn more_than_may_be_replayed_is_too_much() {
    for way in WAYS {
        let server = TestServer::start_with(|settings| {
            settings.history.replay_max = 4;
            settings.history.replay_bytes_max = 1_000;
        });
        let mut socket = Socket::connect(&server, way).await;
        let zero = begin(&mut socket, ROOM).await;
        publish(&server, "room", 1..=4).await;
        let first = hear(&mut socket, [1]).await;
        let mut at_the_bound = Socket::connect(&server, way).await;
        let recovery = ask(&mut at_the_bound, ROOM, json!({ "since": zero })).await;
        assert_eq!(recovery, complete(&zero, 4), "{way}");
        publish(&server, "room", 5..=5).await;
        let mut beyond = Socket::connect(&server, way).await;
        incomplete(&ask(&mut beyond, ROOM, json!({ "since": zero })).await, "too_much", 0);
        let mut within = Socket::connect(&server, way).await;
        let recovery = ask(&mut within, ROOM, json!({ "since": first })).await;
        assert_eq!(recovery, complete(&first, 4), "{way}");

        let large =
            json!({ "topic": "large", "event": "msg", "payload": { "x": "x".repeat(492) } });
        let topic = "public:test-app:large";
        let mut socket = Socket::connect(&server, way).await;
        let since = begin(&mut socket, topic).await;
        server.trigger(&App::seeded(), large.clone()).await;
        server.trigger(&App::seeded(), large.clone()).await;
        let mut at_the_bound = Socket::connect(&server, way).await;
        let recovery = ask(&mut at_the_bound, topic, json!({ "since": since })).await;
        assert_eq!(recovery, complete(&since, 2), "{way}: 1,000 bytes");
        publish(&server, "large", 1..=1).await;
        let mut beyond = Socket::connect(&server, way).await;
        incomplete(&ask(&mut beyond, topic, json!({ "since": since })).await, "too_much", 0);
        let mut newest = Socket::connect(&server, way).await;
        let asks = json!({ "since": since, "history": 4 });
        incomplete(&ask(&mut newest, topic, asks).await, "too_much", 2);
        let figures = figures::Figures::of(&server).await;
        assert_eq!(figures.hits("history_replay_max"), 1.0, "{way}");
        assert_eq!(figures.hits("history_replay_bytes_max"), 2.0, "{way}");
    }
}

#[tokio::test]
async fn a_rejoin_on_the_same_session_replays_only_what_it_was_not_sent() {
    for way in WAYS {
        let server = TestServer::start();
        publish(&server, "room", 1..=2).await;
        let mut socket = Socket::connect(&server, way).await;
        let recovery = ask(&mut socket, ROOM, json!({ "history": 9 })).await;
        let before = recovery["position"].clone();
        let first = hear(&mut socket, [1]).await;
        hear(&mut socket, [2]).await;
        publish(&server, "room", 3..=3).await;
        let last = hear(&mut socket, [3]).await;
        for since in [before, json!(first), json!(last)] {
            for params in [json!({ "since": since }), json!({ "since": since, "history": 9 })] {
                let recovery = ask(&mut socket, ROOM, params).await;
                assert_eq!(recovery, complete(&last, 0), "{way}: all of it was sent");
                if way.starts_with('2') {
                    let closed = socket.next().await;
                    assert_eq!(closed, json!(["1", "1", ROOM, "phx_close", {}]), "{way}");
                }
            }
        }
        let recovery = ask(&mut socket, ROOM, json!({ "history": 9 })).await;
        assert_eq!(recovery, complete(&last, 0), "{way}: nor are the newest sent twice");
    }
}

#[tokio::test]
async fn frames_of_a_rejoin_follow_the_close_of_the_join_that_it_replaces() {
    for way in V2_WAYS {
        let server = TestServer::start();
        let mut socket = Socket::connect(&server, way).await;
        publish(&server, "room", 1..=2).await;
        socket.join(ROOM, json!({})).await;
        assert_eq!(ask(&mut socket, ROOM, json!({ "history": 5 })).await["replayed"], 2, "{way}");
        assert_eq!(socket.next().await[3], "phx_close", "{way}");
        hear(&mut socket, 1..=2).await;
        publish(&server, "room", 3..=3).await;
        hear(&mut socket, [3]).await;
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn bytes_are_followed_by_their_position_and_skipped_where_they_cannot_be_sent() {
    let bytes = |bytes: &[u8]| {
        let payload = STANDARD.encode(bytes);
        json!({ "topic": "room", "event": "bin", "payload_base64": payload })
    };
    for way in WAYS {
        let server = TestServer::start();
        let mut socket = Socket::connect(&server, way).await;
        let since = begin(&mut socket, ROOM).await;
        for event in [bytes(b"\x00\xff"), bytes(b"")] {
            let app = App::seeded();
            let call = request("POST", server.url("/api/apps/test-app/events"));
            let answer = call.basic(&app.key, &app.secret).json(&event).send().await;
            assert_eq!(answer.status, 200);
        }
        publish(&server, "room", 3..=3).await;
        let mut late = Socket::connect(&server, way).await;
        let recovery = ask(&mut late, ROOM, json!({ "since": since })).await;
        let can_be_sent = way == V2;
        let replayed = if can_be_sent { 3 } else { 1 };
        assert_eq!(recovery, complete(&since, replayed), "{way}");
        for socket in [&mut socket, &mut late] {
            let mut positions = Vec::new();
            if can_be_sent {
                for payload in [&b"\x00\xff"[..], b""] {
                    let frame = [&b"\x02\x14\x03public:test-app:roombin"[..], payload].concat();
                    assert_eq!(socket.message().await, Message::binary(frame));
                    let position = socket.next().await;
                    let expected = json!([null, position[1], ROOM, "herald_position", {}]);
                    assert_eq!(position, expected);
                    positions.push(position[1].as_str().expect("a position").to_owned());
                }
            }
            positions.push(hear(socket, [3]).await);
            socket.assert_quiet().await;
            let offset = |position: &String| {
                let (_, offset) = position.split_once(':').expect("a colon");
                offset.parse::<u64>().expect("a number")
            };
            assert!(positions.is_sorted_by_key(offset), "{positions:?}");
        }
    }
}

#[tokio::test]
async fn an_app_chooses_its_retention_and_discards_at_once_when_it_retains_less() {
    for way in [V1, V2_POLLED] {
        let server = TestServer::start();
        let figure = "herald_history_publications";
        for (change, reason, left) in [
            (json!({ "history_publications": 2 }), "expired", 2.0),
            (json!({ "history_publications": 0 }), "off", 0.0),
            (json!({ "history_seconds": 0 }), "off", 0.0),
        ] {
            let settings = json!({ "history_publications": 3, "history_seconds": 600 });
            server.update_app("test-app", settings).await;
            let mut socket = Socket::connect(&server, way).await;
            let zero = begin(&mut socket, ROOM).await;
            publish(&server, "room", 1..=3).await;
            let first = hear(&mut socket, [1]).await;
            hear(&mut socket, 2..=3).await;
            let mut late = Socket::connect(&server, way).await;
            let recovery = ask(&mut late, ROOM, json!({ "since": zero })).await;
            assert_eq!(recovery, complete(&zero, 3), "{way}: three are retained");
            publish(&server, "room", 4..=4).await;
            let mut late = Socket::connect(&server, way).await;
            incomplete(&ask(&mut late, ROOM, json!({ "since": zero })).await, "expired", 0);
            let retained = figures::becomes(&server, figure, 3.0).await;
            assert!(retained.get("herald_history_bytes") > 0.0);

            server.update_app("test-app", change.clone()).await;
            figures::becomes(&server, figure, left).await;
            let mut late = Socket::connect(&server, way).await;
            let recovery = ask(&mut late, ROOM, json!({ "since": first })).await;
            incomplete(&recovery, reason, 0);
            if left == 0.0 {
                figures::becomes(&server, "herald_history_bytes", 0.0).await;
            }
        }
    }
}

#[tokio::test]
async fn an_app_that_is_deactivated_or_deleted_retains_nothing() {
    let server = TestServer::start();
    for is_deleted in [false, true] {
        let app = server.create_app(json!({ "name": "Other", "slug": "other" })).await;
        let mut socket = Socket::connect(&server, V2).await;
        let since = begin(&mut socket, "public:other:room").await;
        publish_as(&server, &app, "room", 1..=3).await;
        hear(&mut socket, 1..=3).await;
        figures::becomes(&server, "herald_history_publications", 3.0).await;
        if !is_deleted {
            server.update_app("other", json!({ "active": false })).await;
            figures::becomes(&server, "herald_history_bytes", 0.0).await;
            server.update_app("other", json!({ "active": true })).await;
            let mut socket = Socket::connect(&server, V2).await;
            let recovery = ask(&mut socket, "public:other:room", json!({ "since": since })).await;
            let reason = recovery["reason"].as_str().expect("a reason");
            assert!(["epoch", "expired"].contains(&reason), "{recovery}");
        }
        let deleted = server.admin("DELETE", "/api/admin/apps/other", None).await;
        assert!(deleted.status < 300, "{}", deleted.body);
        figures::becomes(&server, "herald_history_bytes", 0.0).await;
        figures::becomes(&server, "herald_history_publications", 0.0).await;
    }
}
