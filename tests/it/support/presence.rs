//! Presence channels: join payloads for them, and the frames that are sent there.

use serde_json::{Value, json};

use super::{App, Socket, TestServer, tokens::token};

/// The channel that tests of presence meet on.
pub const ROOM: &str = "presence:test-app:room";

/// The join payload of a visitor whose token has these claims, and a right to listen to all presence channels.
pub fn ticket(claims: Value) -> Value {
    let mut all = json!({ "listen": ["presence:test-app", "presence:test-app:*"] });
    all.as_object_mut().expect("an object").extend(claims.as_object().expect("claims").clone());
    json!({ "guardian_token": token(&App::seeded(), &all) })
}

/// The join payload of a visitor with this subject.
pub fn ticket_of(sub: &str) -> Value {
    ticket(json!({ "sub": sub }))
}

/// A client that has joined [`ROOM`], the frame with the members that it was sent, and the first announcement, which
/// is its own.
pub async fn enter(server: &TestServer, way: &str, ticket: Value) -> (Socket, Value, Value) {
    let mut socket = Socket::connect(server, way).await;
    let (state, diff) = join(&mut socket, "1", ticket).await;
    (socket, state, diff)
}

/// Joins [`ROOM`] under a ref; answers as [`enter`] does.
pub async fn join(socket: &mut Socket, reference: &str, ticket: Value) -> (Value, Value) {
    socket.push(json!([reference, reference, ROOM, "phx_join", ticket])).await;
    let reply = socket.next().await;
    assert_eq!(reply[4], json!({"status": "ok", "response": {"message": "Joined"}}), "{reply}");
    let state = socket.next().await;
    assert_eq!([&state[1], &state[3]], [&json!(null), &json!("presence_state")], "{state}");
    (state, diff(socket).await)
}

/// The next frame, which must be an announcement; answers its payload.
pub async fn diff(socket: &mut Socket) -> Value {
    let frame = socket.next().await;
    let head = json!([frame[0], frame[1], frame[2], frame[3]]);
    assert_eq!(head, json!([null, null, ROOM, "presence_diff"]), "{frame}");
    frame[4].clone()
}

/// Keys with the part of each meta that the application sets: without time and references.
pub fn shown(members: &Value) -> Value {
    let mut members = members.clone();
    for presence in members.as_object_mut().expect("keys").values_mut() {
        for meta in presence["metas"].as_array_mut().expect("metas") {
            let meta = meta.as_object_mut().expect("a meta");
            assert!(meta.remove("online_at").is_some_and(|at| at.is_u64()), "{meta:?}");
            assert!(meta.remove("phx_ref").is_some_and(|r| r.is_string()), "{meta:?}");
            meta.remove("phx_ref_prev");
        }
    }
    members
}

/// An announcement as [`shown`] has it, which must have both sides and nothing else.
pub fn shown_diff(diff: &Value) -> Value {
    let sides = diff.as_object().expect("an announcement");
    assert_eq!(sides.len(), 2, "{diff}");
    json!({ "joins": shown(&diff["joins"]), "leaves": shown(&diff["leaves"]) })
}

/// Keys, each with one empty meta.
pub fn plain(keys: &[&str]) -> Value {
    keys.iter().map(|key| ((*key).to_owned(), json!({"metas": [{}]}))).collect()
}

/// An announcement of the keys that came and that left, all with empty metas.
pub fn change(joins: &[&str], leaves: &[&str]) -> Value {
    json!({ "joins": plain(joins), "leaves": plain(leaves) })
}
