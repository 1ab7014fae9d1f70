//! SPEC.md, *History and recovery*: joins with `since` and `history`, over real sockets.

use crate::support::*;
use serde_json::{Value, json};

const ROOM: &str = "public:test-app:room";

/// Each version over each transport.
const WAYS: [(&str, bool); 4] = [(V1, false), (V2, false), (V1, true), (V2, true)];

async fn connect(server: &TestServer, (vsn, is_polled): (&str, bool)) -> Socket {
    match is_polled {
        true => Socket::polled(Poller::connect(server, vsn).await, vsn),
        false => Socket::connect(server, vsn).await,
    }
}

/// Publishes `{"n": n}` to the channel for each of these.
async fn publish(server: &TestServer, channel: &str, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        let event = json!({ "topic": channel, "event": "msg", "payload": { "n": n } });
        server.trigger(&App::seeded(), event).await;
    }
}

/// Joins with these parameters; answers what the reply says of the recovery.
async fn join(socket: &mut Socket, topic: &str, params: Value) -> Value {
    let reply = socket.try_join(topic, params).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    reply["response"]["recovery"].clone()
}

/// The position and the number of the next event.
async fn next(socket: &mut Socket) -> (String, u64) {
    let frame = socket.next().await;
    let position = frame[1].as_str().unwrap_or_else(|| panic!("{frame}")).to_owned();
    (position, frame[4]["n"].as_u64().unwrap_or_else(|| panic!("{frame}")))
}

#[tokio::test]
async fn a_join_with_a_position_is_sent_exactly_what_it_missed() {
    for way in WAYS {
        let server = TestServer::start();
        let mut socket = connect(&server, way).await;
        let began = join(&mut socket, ROOM, json!({ "since": "" })).await;
        let zero = began["position"].as_str().expect("a position").to_owned();
        assert_eq!(began, json!({ "complete": true, "position": zero, "replayed": 0 }), "{way:?}");
        publish(&server, "room", 1..=2).await;
        let (first, n) = next(&mut socket).await;
        assert_eq!(n, 1);
        assert_eq!(next(&mut socket).await.1, 2);
        drop(socket);
        publish(&server, "room", 3..=4).await;
        publish(&server, "other", 5..=6).await;
        publish(&server, "#general", 7..=7).await;

        let mut socket = connect(&server, way).await;
        let recovered = join(&mut socket, ROOM, json!({ "since": first })).await;
        let expected = json!({ "complete": true, "position": first, "replayed": 4 });
        assert_eq!(recovered, expected, "{way:?}");
        let mut last = first;
        for expected in [2, 3, 4, 7] {
            let (position, n) = next(&mut socket).await;
            assert_eq!(n, expected, "{way:?}");
            last = position;
        }
        publish(&server, "room", 8..=8).await;
        assert_eq!(next(&mut socket).await.1, 8, "{way:?}: and then what is live");
        // On the same session nothing was missed.
        let again = join(&mut socket, ROOM, json!({ "since": last })).await;
        assert_eq!((&again["complete"], &again["replayed"]), (&json!(true), &json!(0)), "{way:?}");
        if way.0 == V2 {
            assert_eq!(socket.next().await[3], "phx_close", "of the join that this one replaced");
        }
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_join_that_does_not_ask_is_told_nothing() {
    let server = TestServer::start();
    publish(&server, "room", 1..=2).await;
    let mut socket = connect(&server, (V2, false)).await;
    assert_eq!(socket.try_join(ROOM, json!({})).await["response"], json!({}));
    publish(&server, "room", 3..=3).await;
    assert_eq!(socket.next().await, json!([null, null, ROOM, "msg", { "n": 3 }]));
}
