//! Joins with `since` and `history`, and the frames that they are sent.

use serde_json::{Value, json};

use super::{App, Socket, TestServer, tokens::token};

/// The first channel that tests publish to.
pub const ROOM: &str = "public:test-app:room";

/// Publishes `{"n": n}` for each number to a topic of the seeded app; to a whole scope it is sent as `#general`.
pub async fn publish(server: &TestServer, topic: &str, numbers: impl IntoIterator<Item = u64>) {
    publish_as(server, &App::seeded(), topic, numbers).await;
}

/// Publishes as [`publish`] does, to a topic of any app.
pub async fn publish_as(
    server: &TestServer,
    app: &App,
    topic: &str,
    numbers: impl IntoIterator<Item = u64>,
) {
    // The trigger takes the scope and the channel of a whole topic as two fields.
    let mut parts = topic.split(':');
    let (scope, channel) = match (parts.next(), parts.next(), parts.next()) {
        (Some(scope), Some(_), channel) => (scope, channel.unwrap_or("#general")),
        _ => ("public", topic),
    };
    for n in numbers {
        let payload = json!({ "n": n });
        let event = json!({ "topic": channel, "scope": scope, "event": "msg", "payload": payload });
        server.trigger(app, event).await;
    }
}

/// A join payload with these parameters, and with a token that opens every topic of the seeded app.
pub fn with_token(params: &Value) -> Value {
    let listen =
        ["private:test-app", "private:test-app:*", "presence:test-app", "presence:test-app:*"];
    let claims = json!({ "sub": "ada", "listen": listen });
    let mut all = json!({ "guardian_token": token(&App::seeded(), &claims) });
    all.as_object_mut().expect("an object").extend(params.as_object().expect("params").clone());
    all
}

/// Joins with these parameters, and a token where one is needed; answers the `recovery` of the reply, to which
/// it must be the only addition.
pub async fn ask(socket: &mut Socket, topic: &str, params: Value) -> Value {
    let is_public = topic.starts_with("public");
    let params = if is_public { params } else { with_token(&params) };
    let reply = socket.try_join(topic, params).await;
    let recovery = reply["response"]["recovery"].clone();
    assert!(recovery["position"].is_string(), "{reply}");
    let response = match is_public {
        true => json!({ "recovery": recovery }),
        false => json!({ "message": "Joined", "recovery": recovery }),
    };
    assert_eq!(reply, json!({ "status": "ok", "response": response }));
    recovery
}

/// Joins with `since: ""`; answers the position in the reply.
pub async fn begin(socket: &mut Socket, topic: &str) -> String {
    let recovery = ask(socket, topic, json!({ "since": "" })).await;
    let position = recovery["position"].as_str().expect("a position").to_owned();
    assert!(position.len() <= 64 && position.contains(':'), "{position}");
    assert_eq!(recovery, complete(&position, 0));
    position
}

/// The recovery in a reply if nothing is missing.
pub fn complete(position: &str, replayed: usize) -> Value {
    json!({ "complete": true, "position": position, "replayed": replayed })
}

/// The position and the number of the next event.
pub async fn next(socket: &mut Socket) -> (String, u64) {
    let frame = socket.next().await;
    let position = frame[1].as_str().unwrap_or_else(|| panic!("{frame}")).to_owned();
    (position, frame[4]["n"].as_u64().unwrap_or_else(|| panic!("{frame}")))
}

/// The next events must have these numbers; answers the position of the last one.
pub async fn hear(socket: &mut Socket, numbers: impl IntoIterator<Item = u64>) -> String {
    let mut last = String::new();
    for expected in numbers {
        let (position, n) = next(socket).await;
        assert_eq!(n, expected);
        last = position;
    }
    last
}
