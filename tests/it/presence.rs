//! Sections 10 and 14.10 of the protocol document: presence.

use std::time::Duration;

use herald::app::Slug;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    presence::{ROOM, change, diff, enter, join, plain, shown, shown_diff, ticket, ticket_of},
    tokens::{now_s, token},
    *,
};

const OPERATORS: &str = "the operator's own key, 32 bytes and more";

#[tokio::test]
async fn e112_e161_the_state_follows_the_reply_and_precedes_ones_own_announcement() {
    for way in WAYS {
        let server = TestServer::start();
        let mut socket = Socket::connect(&server, way).await;
        let before_ms = now_s() * 1_000;
        socket.push(json!(["5", "7", ROOM, "phx_join", ticket_of("ada")])).await;
        let joined = json!({"status": "ok", "response": {"message": "Joined"}});
        let join_ref = if way.starts_with('2') { json!("5") } else { json!(null) };
        let reply = json!([join_ref, "7", ROOM, "phx_reply", joined]);
        assert_eq!(socket.next().await, reply, "{way}");
        let state = json!([join_ref, null, ROOM, "presence_state", {}]);
        assert_eq!(socket.next().await, state, "{way}");
        let told = diff(&mut socket).await;
        assert_eq!(shown_diff(&told), change(&["ada"], &[]), "{way}");
        let meta = &told["joins"]["ada"]["metas"][0];
        let online_at = meta["online_at"].as_i64().expect("milliseconds");
        assert!((before_ms..=(now_s() + 1) * 1_000).contains(&online_at), "{way}: {meta}");
        assert_eq!(meta.as_object().map(serde_json::Map::len), Some(2), "{way}: {meta}");
        socket.assert_quiet().await;
    }
}

/// Leaves the room; the next frames are the reply and the close.
async fn leave(socket: &mut Socket) {
    socket.push(json!([null, "99", ROOM, "phx_leave", {}])).await;
    assert_eq!(socket.next().await[4], json!({"status": "ok", "response": {}}));
    assert_eq!(socket.next().await[3], "phx_close");
}

#[tokio::test]
async fn e162_a_second_member_is_announced_to_all_and_sees_the_first() {
    for (first, second) in [(V1, V2_POLLED), (V2, V1), (V1_POLLED, V2), (V2_POLLED, V1_POLLED)] {
        let server = TestServer::start();
        let (mut ada, _, _) = enter(&server, first, ticket_of("ada")).await;
        let (mut bob, state, told) = enter(&server, second, ticket_of("bob")).await;
        assert_eq!(shown(&state[4]), plain(&["ada"]), "{second}");
        assert_eq!(shown_diff(&told), change(&["bob"], &[]), "{second}");
        assert_eq!(diff(&mut ada).await, told, "{first}: the same announcement");
        leave(&mut bob).await;
        assert_eq!(shown_diff(&diff(&mut ada).await), change(&[], &["bob"]));
    }
}

/// How a client may end.
#[derive(Debug, Clone, Copy)]
enum End {
    Leaves,
    Closes,
    IsGone,
    TalksNonsense,
    IsSilent,
    IsSentAway,
}

#[tokio::test]
async fn e099_e163_every_way_in_which_a_client_ends_causes_one_leave() {
    for (way, end) in [
        (V1, End::Leaves),
        (V2, End::Leaves),
        (V2_POLLED, End::Leaves),
        (V1, End::Closes),
        (V2, End::IsGone),
        (V1, End::TalksNonsense),
        (V2_POLLED, End::TalksNonsense),
        (V2, End::IsSilent),
        (V1_POLLED, End::IsSilent),
        (V2, End::IsSentAway),
    ] {
        let server = TestServer::start_with(|settings| {
            settings.socket.long_poll_window = Duration::from_secs(2);
            settings.socket.idle_timeout = Duration::from_secs(3);
        });
        let (mut watcher, _, _) = enter(&server, V2, ticket_of("watcher")).await;
        let (mut client, _, told) = enter(&server, way, ticket_of("client")).await;
        assert_eq!(diff(&mut watcher).await, told, "{way} {end:?}");
        let mut is_kept = None;
        match end {
            End::Leaves => leave(&mut client).await,
            End::Closes => client.send(Message::Close(None)).await,
            End::IsGone => drop(client),
            End::TalksNonsense if way == V2_POLLED => {
                client.into_poller().post_raw(None, b"x").await;
            }
            End::TalksNonsense => client.text("x").await,
            End::IsSilent => is_kept = Some(client),
            End::IsSentAway => {
                let app = App::seeded();
                let call = request("POST", server.url("/api/apps/test-app/disconnect"));
                let call = call.basic(&app.key, &app.secret).json(&json!({"sub": "client"}));
                assert_eq!(call.send().await.status, 200);
                assert_eq!(client.closed().await, 1001);
            }
        }
        let gone = loop {
            // Heartbeats keep the watcher itself from being closed as idle.
            watcher.push(json!([null, "7", "phoenix", "heartbeat", {}])).await;
            let frame = watcher.next().await;
            if frame[3] == "presence_diff" {
                break frame[4].clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(gone["leaves"], told["joins"], "{way} {end:?}: the meta with which it joined");
        assert_eq!(gone["joins"], json!({}), "{way} {end:?}");
        // No other change is announced before the next one, or together with it.
        watcher.push(json!([null, "8", ROOM, "presence_metadata", {"custom": 1}])).await;
        let next = loop {
            let frame = watcher.next().await;
            if frame[3] == "presence_diff" {
                break frame[4].clone();
            }
            assert_eq!(frame[2], "phoenix", "{frame}");
        };
        let keys: Vec<_> = next["leaves"].as_object().expect("keys").keys().collect();
        assert_eq!(keys, ["watcher"], "{way} {end:?}");
        drop(is_kept);
    }
}

#[tokio::test]
async fn a_join_that_its_app_no_longer_allows_ends_in_one_leave_too() {
    let server = TestServer::start_with(|settings| {
        settings.secrets.guardian_secret = Some(OPERATORS.into());
    });
    server.update_app("test-app", json!({"shared_tokens": true})).await;
    let by_operator = |sub: &str| {
        let claims = json!({"sub": sub, "listen": ["presence:test-app:*"]});
        json!({ "guardian_token": tokens::signed(OPERATORS, &claims) })
    };
    let (mut watcher, ..) = enter(&server, V2, by_operator("bob")).await;
    // A session that holds another app's join stays, and sees the change.
    let other = server.create_app(json!({"name": "other-app"})).await;
    let theirs = json!({"sub": "x", "listen": ["presence:other-app:*"]});
    let theirs = json!({ "guardian_token": token(&other, &theirs) });
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("presence:other-app:room", theirs).await;
    assert_eq!(
        [socket.next().await[3].clone(), socket.next().await[3].clone()],
        ["presence_state", "presence_diff"]
    );
    join(&mut socket, "2", ticket_of("ada")).await;
    assert_eq!(shown_diff(&diff(&mut watcher).await), change(&["ada"], &[]));
    server.update_app("test-app", json!({"secret": "another-secret-0123456789"})).await;
    let error = socket.next().await;
    assert_eq!((&error[2], &error[3]), (&json!(ROOM), &json!("phx_error")));
    assert_eq!(shown_diff(&diff(&mut watcher).await), change(&[], &["ada"]));
    // Ada has left once: the next announcement is that of the next member.
    let (_carol, state, _) = enter(&server, V2, by_operator("carol")).await;
    assert_eq!(shown(&state[4]), plain(&["bob"]));
    assert_eq!(shown_diff(&diff(&mut watcher).await), change(&["carol"], &[]));
    watcher.assert_quiet().await;
    socket.assert_quiet().await;
}

#[tokio::test]
async fn e165_an_update_leaves_with_its_old_meta_and_joins_with_its_new_one() {
    for way in WAYS {
        let server = TestServer::start();
        let claims = json!({"sub": "ada", "presence": {"name": "Ada", "custom": 0}});
        let (mut ada, _, told) = enter(&server, way, ticket(claims)).await;
        let (mut bob, _, _) = enter(&server, V2, ticket_of("bob")).await;
        diff(&mut ada).await;
        let mut old = told["joins"]["ada"]["metas"][0].clone();
        assert_eq!((&old["name"], &old["custom"]), (&json!("Ada"), &json!(0)));
        for custom in [json!({"is": ["typing"]}), json!(null), json!("x")] {
            let payload = json!({ "custom": custom });
            ada.push(json!(["1", "2", ROOM, "presence_metadata", payload])).await;
            let told = diff(&mut ada).await;
            assert_eq!(diff(&mut bob).await, told, "{way}");
            assert_eq!(told["leaves"], json!({"ada": {"metas": [old]}}), "{way}");
            let new = told["joins"]["ada"]["metas"][0].clone();
            assert_ne!(new["phx_ref"], old["phx_ref"], "{way}");
            let expected = json!({
                "online_at": old["online_at"], "name": "Ada", "custom": custom,
                "phx_ref": new["phx_ref"], "phx_ref_prev": old["phx_ref"],
            });
            assert_eq!(new, expected, "{way}");
            assert_eq!(told["joins"].as_object().map(serde_json::Map::len), Some(1), "{way}");
            old = new;
        }
        // An update has no reply, and a newcomer sees the last meta.
        let (_eve, state, _) = enter(&server, V1, ticket_of("eve")).await;
        assert_eq!(state[4]["ada"]["metas"], json!([old]), "{way}");
        for socket in [&mut ada, &mut bob] {
            assert_eq!(shown_diff(&diff(socket).await), change(&["eve"], &[]));
            socket.assert_quiet().await;
        }
    }
}

#[tokio::test]
async fn e166_connections_of_one_key_are_metas_of_their_own() {
    let server = TestServer::start();
    let (mut watcher, _, _) = enter(&server, V2, ticket_of("watcher")).await;
    let (mut one, _, first) = enter(&server, V1, ticket_of("ada")).await;
    assert_eq!(diff(&mut watcher).await, first);
    let (two, state, second) = enter(&server, V2, ticket_of("ada")).await;
    assert_eq!(diff(&mut watcher).await, second);
    assert_eq!(diff(&mut one).await, second);
    let (first, second) = (&first["joins"]["ada"]["metas"], &second["joins"]["ada"]["metas"]);
    assert_eq!(&state[4]["ada"]["metas"], first);
    assert_ne!(first[0]["phx_ref"], second[0]["phx_ref"]);
    drop(two);
    for socket in [&mut one, &mut watcher] {
        let told = diff(socket).await;
        assert_eq!(told, json!({"joins": {}, "leaves": {"ada": {"metas": second}}}));
    }
    let (_, state, _) = enter(&server, V2, ticket_of("late")).await;
    assert_eq!(&state[4]["ada"]["metas"], first, "the key stays with its other connection");
}

#[tokio::test]
async fn e167_the_key_is_text_whatever_the_token_says() {
    for (case, claims, key) in [
        ("an integer", json!({"sub": 7}), "7"),
        ("a string", json!({"sub": "ada", "id": 1}), "ada"),
        ("its id", json!({"sub": {"id": 8, "email": "a@b.c"}}), "8"),
        ("its email", json!({"sub": {"name": "Ada", "email": "a@b.c"}}), "a@b.c"),
        ("an id beside", json!({"id": 9}), "9"),
        ("quotes", json!({"sub": "a\"b\\"}), "a\"b\\"),
        ("the longest", json!({"sub": "k".repeat(128)}), &"k".repeat(128)),
    ] {
        let server = TestServer::start();
        let (_, _, told) = enter(&server, V2, ticket(claims)).await;
        assert_eq!(shown_diff(&told), change(&[key], &[]), "{case}");
    }
}

#[tokio::test]
async fn e168_a_client_that_joins_again_is_told_the_state_again() {
    for way in V2_WAYS {
        let server = TestServer::start();
        let (mut bob, _, _) = enter(&server, V2, ticket_of("bob")).await;
        let (mut ada, _, first) = enter(&server, way, ticket_of("ada")).await;
        diff(&mut bob).await;
        // It joins again without a leave: the second join replaces the first.
        ada.push(json!(["9", "9", ROOM, "phx_join", ticket_of("ada")])).await;
        assert_eq!(ada.next().await[0], "9");
        assert_eq!(ada.next().await, json!(["1", "1", ROOM, "phx_close", {}]));
        let state = ada.next().await;
        assert_eq!(json!([state[0], state[1], state[3]]), json!(["9", null, "presence_state"]));
        assert_eq!(shown(&state[4]), plain(&["ada", "bob"]), "{way}: as it was announced");
        let told = diff(&mut ada).await;
        assert_eq!(diff(&mut bob).await, told, "{way}");
        assert_eq!(told["leaves"], first["joins"], "{way}: the first join ends");
        assert_eq!(shown_diff(&told), change(&["ada"], &["ada"]), "{way}");
        // It leaves and joins again.
        leave(&mut ada).await;
        assert_eq!(diff(&mut bob).await["leaves"], told["joins"], "{way}");
        let (state, told) = join(&mut ada, "11", ticket_of("ada")).await;
        assert_eq!((&state[0], shown(&state[4])), (&json!("11"), plain(&["bob"])), "{way}");
        assert_eq!(diff(&mut bob).await, told, "{way}");
    }
}

#[tokio::test]
async fn e169_nobody_is_in_its_state_and_in_a_join_with_the_same_reference() {
    let server = TestServer::start();
    let mut sockets = Vec::new();
    for nth in 0..10 {
        for way in WAYS {
            let mut socket = Socket::connect(&server, way).await;
            let ticket = ticket_of(&format!("v{}", nth % 3));
            socket.push(json!(["1", "1", ROOM, "phx_join", ticket])).await;
            sockets.push((way, socket));
        }
    }
    for (way, socket) in &mut sockets {
        assert_eq!(socket.next().await[3], "phx_reply", "{way}");
        let state = socket.next().await;
        assert_eq!(state[3], "presence_state", "{way}");
        let mut known = references(&state[4]);
        while known.len() < 40 {
            let told = diff(socket).await;
            for reference in references(&told["joins"]) {
                assert!(!known.contains(&reference), "{way}: twice");
                known.push(reference);
            }
            assert_eq!(told["leaves"], json!({}), "{way}");
        }
    }
}

/// All references of some members.
fn references(members: &Value) -> Vec<String> {
    let metas = members.as_object().expect("keys").values().flat_map(|presence| {
        presence["metas"].as_array().expect("metas").iter().map(|meta| meta["phx_ref"].to_string())
    });
    metas.collect()
}

#[tokio::test]
async fn e171_an_update_where_nobody_is_tracked_changes_nothing() {
    let server = TestServer::start();
    let (mut ada, _, _) = enter(&server, V2, ticket_of("ada")).await;
    let mut bob = Socket::connect(&server, V2).await;
    let update = json!(["1", "2", ROOM, "presence_metadata", {"custom": 1}]);
    bob.push(update.clone()).await;
    assert_eq!(bob.next().await[4]["response"], json!({"reason": "unmatched topic"}));
    join(&mut bob, "1", ticket_of("bob")).await;
    diff(&mut ada).await;
    leave(&mut bob).await;
    bob.push(update).await;
    assert_eq!(bob.next().await[4]["response"], json!({"reason": "unmatched topic"}));
    assert_eq!(shown_diff(&diff(&mut ada).await), change(&[], &["bob"]));
    ada.push(json!(["1", "3", ROOM, "presence_metadata", {"custom": 2}])).await;
    let told = diff(&mut ada).await;
    assert_eq!(told["joins"].as_object().map(serde_json::Map::len), Some(1), "{told}");
}

#[tokio::test]
async fn a_client_that_joined_the_whole_scope_is_not_tracked_and_hears_no_announcements() {
    let server = TestServer::start();
    let claims = json!({"sub": "all", "publish": ["presence:test-app:*", "presence:test-app"]});
    let mut all = Socket::connect(&server, V2).await;
    all.join("presence:test-app", ticket(claims.clone())).await;
    let (mut ada, state, _) =
        enter(&server, V2, ticket(json!({"sub": "ada", "publish": [ROOM]}))).await;
    assert_eq!(state[4], json!({}), "a client of the whole scope is not a member");
    // Publications to a presence channel are heard as those to any other channel.
    ada.push(json!(["1", "2", ROOM, "msg", {"n": 1}])).await;
    assert_eq!(ada.next().await, json!([null, null, ROOM, "msg", {"n": 1}]));
    let heard = json!([null, null, "presence:test-app", "room:msg", {"n": 1}]);
    assert_eq!(all.next().await, heard, "and nothing before");
    server
        .trigger(
            &App::seeded(),
            json!({"scope": "presence", "topic": "room", "event": "presence_metadata"}),
        )
        .await;
    assert_eq!(ada.next().await, json!([null, null, ROOM, "presence_metadata", {}]));
    assert_eq!(all.next().await[3], "room:presence_metadata");
    // On a topic without members, this event is like any other.
    all.push(json!(["1", "2", "presence:test-app", "presence_metadata", {"custom": 1}])).await;
    let heard = json!([null, null, "presence:test-app", "presence_metadata", {"custom": 1}]);
    assert_eq!(all.next().await, heard);
    assert_eq!(ada.next().await[3], "#general:presence_metadata");
    let mut public = Socket::connect(&server, V2).await;
    public.join("public:test-app:room", json!({})).await;
    public.push(json!(["1", "2", "public:test-app:room", "presence_metadata", {}])).await;
    let heard = json!([null, null, "public:test-app:room", "presence_metadata", {}]);
    assert_eq!(public.next().await, heard);
    for socket in [&mut ada, &mut all, &mut public] {
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn the_wires_own_events_cannot_be_forged_and_updates_need_no_right_to_publish() {
    let server = TestServer::start();
    let claims = json!({"sub": "ada", "publish": [ROOM]});
    let (mut ada, _, _) = enter(&server, V2, ticket(claims)).await;
    for event in ["presence_state", "presence_diff"] {
        ada.push(json!(["1", "2", ROOM, event, {"joins": {}, "leaves": {}}])).await;
        let reply = ada.next().await;
        assert_eq!(reply[4]["response"], json!({"reason": "invalid event"}), "{event}");
        let path = "/api/apps/test-app/events";
        let app = App::seeded();
        let call = request("POST", server.url(path)).basic(&app.key, &app.secret);
        let body = json!({"scope": "presence", "topic": "room", "event": event});
        assert_eq!(call.json(&body).send().await.status, 422, "{event}");
    }
    let (mut bob, _, _) = enter(&server, V2, ticket_of("bob")).await;
    diff(&mut ada).await;
    bob.push(json!(["1", "2", ROOM, "msg", {}])).await;
    let denied = json!(["1", "2", ROOM, "phx_reply", {"status": "error", "response": {}}]);
    assert_eq!(bob.next().await, denied);
    bob.push(json!(["1", "3", ROOM, "presence_metadata", {"custom": true}])).await;
    assert_eq!(diff(&mut bob).await["joins"]["bob"]["metas"][0]["custom"], true);
}

#[tokio::test]
async fn the_second_articles_topics_track_as_well() {
    let claims = json!({"sub": {"email": "ada@example.com"}, "listen": ["presence:*"]});
    let ticket = json!({ "guardian_token": token(&App::seeded(), &claims) });
    for vsn in [V1, V2] {
        let server =
            TestServer::start_with(|settings| settings.single_app = Slug::parse("test-app"));
        let mut socket = Socket::open(&server, &format!("/events/websocket?vsn={vsn}")).await;
        socket.join("presence:lobby", ticket.clone()).await;
        let state = socket.next().await;
        assert_eq!((&state[2], &state[3]), (&json!("presence:lobby"), &json!("presence_state")));
        let told = socket.next().await;
        assert_eq!(shown_diff(&told[4]), change(&["ada@example.com"], &[]));
        socket.assert_quiet().await;
    }
}
