//! Where both protocols meet: the same topics, members and limits, in both directions.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    figures,
    pusher::{Call, call, event, trigger},
    *,
};

/// A client of Phoenix's that has joined a topic with every right.
async fn phoenix(server: &TestServer, topic: &str) -> Socket {
    let mut socket = Socket::connect(server, V2).await;
    let claims = json!({
        "sub": "p", "listen": [topic], "publish": [topic], "exp": tokens::now_s() + 60,
        "presence": { "name": "P" },
    });
    let token = tokens::token(&App::seeded(), &claims);
    socket.join(topic, json!({ "guardian_token": token })).await;
    socket
}

#[tokio::test]
async fn clients_of_both_protocols_hear_triggers_of_either_api_in_their_own_words() {
    let server = TestServer::start();
    for (topic, channel) in [
        ("public:test-app:room", "room"),
        ("private:test-app:room", "private-room"),
        ("private:test-app:encrypted-x", "private-encrypted-x"),
    ] {
        let mut phoenix = phoenix(&server, topic).await;
        let mut pusher = PusherSocket::connect(&server).await;
        pusher.subscribe(channel).await;
        for (data, object) in [
            (r#"{"a" : 1.0}"#, r#"{"a" : 1.0}"#),
            ("[1, 2]", r#"{"data":"[1, 2]"}"#),
            ("text", r#"{"data":"text"}"#),
            ("7", r#"{"data":"7"}"#),
            ("{broken", r#"{"data":"{broken"}"#),
            ("", r#"{"data":""}"#),
        ] {
            trigger(&server, event(&[channel], data)).await;
            let text = json!(data);
            pusher
                .hears(&format!(r#"{{"event":"msg","channel":"{channel}","data":{text}}}"#))
                .await;
            assert_eq!(phoenix.frame().await, format!(r#"[null,null,"{topic}","msg",{object}]"#));
        }
        let (scope, name) = match topic.strip_prefix("public:test-app:") {
            Some(name) => ("public", name),
            None => ("private", &topic["private:test-app:".len()..]),
        };
        let own = json!({ "topic": name, "event": "own", "scope": scope, "payload": { "b": 2 } });
        server.trigger(&App::seeded(), own).await;
        pusher
            .hears(&format!(r#"{{"event":"own","channel":"{channel}","data":"{{\"b\":2}}"}}"#))
            .await;
        assert_eq!(phoenix.frame().await, format!(r#"[null,null,"{topic}","own",{{"b":2}}]"#));
        let general = json!({ "topic": "#general", "event": "all", "scope": scope, "payload": {} });
        server.trigger(&App::seeded(), general).await;
        pusher
            .hears(&format!(r##"{{"event":"#general:all","channel":"{channel}","data":"{{}}"}}"##))
            .await;
        assert_eq!(
            phoenix.frame().await,
            format!(r##"[null,null,"{topic}","#general:all",{{}}]"##)
        );
    }
}

#[tokio::test]
async fn an_event_without_a_name_in_the_other_protocol_is_not_heard_there() {
    let server = TestServer::start();
    let mut phoenix = phoenix(&server, "private:test-app:room").await;
    let mut pusher = PusherSocket::connect(&server).await;
    pusher.subscribe("private-room").await;
    for name in ["pusher:x", "pusher_internal:member_added", "herald:recovery"] {
        let push = json!(["1", "5", "private:test-app:room", name, {}]);
        phoenix.push(push).await;
        assert_eq!(phoenix.next().await[3], name);
    }
    pusher.assert_quiet().await;
    // Clients of Phoenix act on events with these names, so they are not sent any.
    let mut whole = self::phoenix(&server, "private:test-app").await;
    let names =
        ["phx_x", "phx_close", "phx_reply", "chan_reply_1", "presence_state", "presence_diff"];
    for name in names {
        let event = json!({ "name": name, "channels": ["private-room"], "data": "{}" });
        trigger(&server, event).await;
        pusher
            .hears(&format!(r#"{{"event":"{name}","channel":"private-room","data":"{{}}"}}"#))
            .await;
    }
    trigger(&server, event(&["private-room"], "{}")).await;
    pusher.hears(r#"{"event":"msg","channel":"private-room","data":"{}"}"#).await;
    let msg = |topic: &str, event: &str| format!(r#"[null,null,"{topic}","{event}",{{}}]"#);
    assert_eq!(phoenix.frame().await, msg("private:test-app:room", "msg"));
    assert_eq!(whole.frame().await, msg("private:test-app", "room:msg"));
    // These events are retained, but they are not replayed to a client of Phoenix either.
    let mut late = Socket::connect(&server, V2).await;
    let claims = json!({ "listen": ["private:*"], "exp": tokens::now_s() + 60 });
    let token = tokens::token(&App::seeded(), &claims);
    let join = json!({ "guardian_token": token, "history": 100 });
    let reply = late.try_join("private:test-app:room", join).await;
    let replayed = reply["response"]["recovery"]["replayed"].as_u64().expect("a number");
    for _ in 0..replayed {
        let name = late.next().await[3].clone();
        assert!(names.iter().all(|of_phoenix| name != *of_phoenix), "{name}");
    }
    late.assert_quiet().await;
    // Herald's own API refuses such names.
    let own = json!({ "topic": "room", "scope": "private", "event": "phx_x", "payload": {} });
    let app = App::seeded();
    let request = request("POST", server.url("/api/apps/test-app/events"));
    assert_eq!(request.basic(&app.key, &app.secret).json(&own).send().await.status, 422);
    // A public channel with the name of a private one is no channel of Pusher's.
    let odd = json!({ "topic": "private-room", "event": "e", "payload": {} });
    server.trigger(&App::seeded(), odd).await;
    pusher.assert_quiet().await;
}

#[tokio::test]
async fn an_event_that_is_too_long_together_with_its_channel_does_not_reach_joins_of_the_whole_scope()
 {
    let server = TestServer::start();
    let (channel, fits, too_long) = ("c".repeat(155), "e".repeat(99), "e".repeat(100));
    let mut whole = phoenix(&server, "private:test-app").await;
    let mut joined = phoenix(&server, &format!("private:test-app:{channel}")).await;
    let private = format!("private-{channel}");
    let mut pusher = PusherSocket::connect(&server).await;
    pusher.subscribe(&private).await;
    let mut sender = PusherSocket::connect(&server).await;
    sender.subscribe(&private).await;
    let client_fits = format!("client-{}", "e".repeat(92));
    let client_too_long = format!("{client_fits}e");
    for name in [&too_long, &fits] {
        trigger(&server, json!({ "name": name, "channels": [private], "data": "{}" })).await;
        assert_eq!(sender.next().await["event"], **name);
    }
    for name in [&client_too_long, &client_fits] {
        sender.say(json!({ "event": name, "channel": private, "data": {} })).await;
    }
    for name in [&too_long, &fits, &client_too_long, &client_fits] {
        assert_eq!(pusher.next().await["event"], **name);
        assert_eq!(joined.next().await[3], **name);
    }
    for name in [&fits, &client_fits] {
        assert_eq!(whole.next().await[3], format!("{channel}:{name}"));
    }
    whole.assert_quiet().await;
    // All of them are retained. A join of the whole scope is replayed those that it would have received live.
    let mut late = Socket::connect(&server, V2).await;
    let claims = json!({ "listen": ["private:*"], "exp": tokens::now_s() + 60 });
    let token = tokens::token(&App::seeded(), &claims);
    let reply =
        late.try_join("private:test-app", json!({ "guardian_token": token, "history": 100 }));
    assert_eq!(reply.await["response"]["recovery"]["replayed"], 2);
    for name in [&fits, &client_fits] {
        assert_eq!(late.next().await[3], format!("{channel}:{name}"));
    }
    late.assert_quiet().await;
}

#[tokio::test]
async fn client_events_leave_out_a_sender_of_pusher_and_not_one_of_phoenix() {
    let server = TestServer::start();
    let topic = "presence:test-app:room";
    let mut phoenix = phoenix(&server, topic).await;
    assert_eq!(phoenix.next().await[3], "presence_state");
    assert_eq!(phoenix.next().await[3], "presence_diff");
    let mut pusher = PusherSocket::connect(&server).await;
    pusher.enter("presence-room", r#"{"user_id":"u","user_info":{"n":1}}"#).await;
    assert_eq!(phoenix.next().await[3], "presence_diff");
    pusher
        .say(json!({ "event": "client-e", "channel": "presence-room", "data": { "a": 1 } }))
        .await;
    assert_eq!(phoenix.frame().await, format!(r#"[null,null,"{topic}","client-e",{{"a":1}}]"#));
    pusher.assert_quiet().await;
    phoenix.push(json!(["1", "5", topic, "client-e", { "b": 2 }])).await;
    assert_eq!(phoenix.frame().await, format!(r#"[null,null,"{topic}","client-e",{{"b":2}}]"#));
    pusher
        .hears(r#"{"event":"client-e","channel":"presence-room","user_id":"p","data":{"b":2}}"#)
        .await;
    phoenix.push(json!(["1", "6", topic, "other", { "b": 2 }])).await;
    phoenix.frame().await;
    pusher
        .hears(r#"{"event":"other","channel":"presence-room","user_id":"p","data":"{\"b\":2}"}"#)
        .await;
}

#[tokio::test]
async fn there_is_one_list_of_members() {
    let server = TestServer::start();
    let topic = "presence:test-app:room";
    let mut phoenix = phoenix(&server, topic).await;
    assert_eq!(phoenix.next().await[3], "presence_state");
    assert_eq!(phoenix.next().await[3], "presence_diff");
    let mut first = PusherSocket::connect(&server).await;
    let roster = first.enter("presence-room", r#"{"user_id":"u","user_info":{"n":1}}"#).await;
    let both =
        json!({ "ids": ["p", "u"], "hash": { "p": { "name": "P" }, "u": { "n": 1 } }, "count": 2 });
    assert_eq!(roster, both);
    let diff = phoenix.next().await;
    let meta = &diff[4]["joins"]["u"]["metas"][0];
    assert_eq!(meta["n"], 1, "{diff}");
    assert!(meta["online_at"].is_u64() && meta["phx_ref"].is_string(), "{meta}");
    // Another connection of the same user is news for Phoenix, where each join has a meta.
    let mut second = PusherSocket::connect(&server).await;
    assert_eq!(second.enter("presence-room", r#"{"user_id":"u","user_info":{"n":1}}"#).await, both);
    assert_eq!(phoenix.next().await[4]["joins"]["u"]["metas"][0]["n"], 1);
    first.assert_quiet().await;
    // The data that a Phoenix client sends about itself is in later rosters.
    phoenix.push(json!(["1", "7", topic, "presence_metadata", { "custom": "away" }])).await;
    assert_eq!(phoenix.next().await[3], "presence_diff");
    let mut third = PusherSocket::connect(&server).await;
    let roster = third.enter("presence-room", r#"{"user_id":"v"}"#).await;
    assert_eq!(roster["hash"]["p"], json!({ "name": "P", "custom": "away" }));
    phoenix.push(json!(["1", "8", topic, "phx_leave", {}])).await;
    let removed = |message: &Value| {
        message["event"] == "pusher_internal:member_removed"
            && message["data"] == r#"{"user_id":"p"}"#
    };
    assert!(removed(&third.next().await));
}

#[tokio::test]
async fn disconnections_reach_both_and_clients_of_pusher_come_back() {
    let server = TestServer::start();
    let mut phoenix = phoenix(&server, "private:test-app:room").await;
    let mut meant = PusherSocket::connect(&server).await;
    meant.subscribe("private-room").await;
    let mut other = PusherSocket::connect(&server).await;
    other.subscribe("private-else").await;
    let app = App::seeded();
    let disconnect = json!({ "topic": "private:test-app:room" });
    let request = request("POST", server.url("/api/apps/test-app/disconnect"));
    let answer = request.basic(&app.key, &app.secret).json(&disconnect).send().await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(meant.closed().await, 4200);
    assert_eq!(phoenix.closed().await, 1001);
    other.assert_quiet().await;
}

/// The answer of Herald's own API to a call of the seeded app.
async fn own_api(server: &TestServer, path: &str) -> Value {
    let app = App::seeded();
    let request = request("GET", server.url(&format!("/api/apps/test-app{path}")));
    let answer = request.basic(&app.key, &app.secret).send().await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["data"].clone()
}

#[tokio::test]
async fn both_are_counted_over_either_api() {
    let server = TestServer::start();
    let mut phoenixes = Vec::new();
    for topic in ["private:test-app:room", "private:test-app", "public:test-app:room"] {
        phoenixes.push(phoenix(&server, topic).await);
    }
    let mut pushers = Vec::new();
    for _ in 0..2 {
        let mut pusher = PusherSocket::connect(&server).await;
        pusher.subscribe("private-room").await;
        pushers.push(pusher);
    }
    let mut signed_in = PusherSocket::connect(&server).await;
    signed_in.sign_in(r#"{"id":"u"}"#).await;
    assert_eq!(signed_in.next().await["event"], "pusher:signin_success");
    signed_in.subscribe("#server-to-user-u").await;
    // A client that has joined the scope as a whole counts for none of its channels.
    let answer = call(&server, "GET", "/channels/private-room").param("info", "subscription_count");
    let counted = json!({ "occupied": true, "subscription_count": 3 });
    assert_eq!(answer.send().await.json(), counted);
    let answer = call(&server, "GET", "/channels").send().await.json();
    assert_eq!(answer, json!({ "channels": { "private-room": {}, "room": {} } }));
    let event = json!({ "name": "e", "channels": ["private-room", "room"], "data": "1", "info": "subscription_count" });
    let answer = call(&server, "POST", "/events").json(&event).send().await.json();
    let counts =
        json!({ "private-room": { "subscription_count": 3 }, "room": { "subscription_count": 1 } });
    assert_eq!(answer, json!({ "channels": counts }));
    assert_eq!(own_api(&server, "/channels/private/room").await["subscribers"], 3);
    assert_eq!(own_api(&server, "/channels/private").await["subscribers"], 1);
    let listed = own_api(&server, "/channels").await;
    let listed: Vec<_> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|of| (of["topic"].clone(), of["subscribers"].clone()))
        .collect();
    let expected =
        [("private:test-app", 1), ("private:test-app:room", 3), ("public:test-app:room", 1)];
    assert_eq!(listed, expected.map(|(topic, count)| (json!(topic), json!(count))));
}

#[tokio::test]
async fn members_are_listed_over_either_api() {
    let server = TestServer::start();
    let mut phoenix = phoenix(&server, "presence:test-app:room").await;
    assert_eq!(phoenix.next().await[3], "presence_state");
    let mut pushers = Vec::new();
    for (user, info) in [("u", r#"{"n":1}"#), ("u", r#"{"n":2}"#), ("v", "null")] {
        let mut pusher = PusherSocket::connect(&server).await;
        let member = format!(r#"{{"user_id":"{user}","user_info":{info}}}"#);
        pusher.enter("presence-room", &member).await;
        pushers.push(pusher);
    }
    let users = call(&server, "GET", "/channels/presence-room/users").send().await.json();
    assert_eq!(users, json!({ "users": [{ "id": "p" }, { "id": "u" }, { "id": "v" }] }));
    let info = "subscription_count,user_count";
    let answer = call(&server, "GET", "/channels/presence-room").param("info", info).send().await;
    let counted = json!({ "occupied": true, "subscription_count": 4, "user_count": 3 });
    assert_eq!(answer.json(), counted);
    let own = own_api(&server, "/channels/presence/room").await;
    assert_eq!(own["subscribers"], 4, "{own}");
    let metas = |user: &str| own["members"][user]["metas"].as_array().expect("metas").clone();
    assert_eq!(metas("p")[0]["name"], "P", "{own}");
    assert_eq!(metas("u").iter().map(|of| of["n"].clone()).collect::<Vec<_>>(), [1, 2], "{own}");
    assert_eq!(metas("v").len(), 1, "{own}");
}

#[tokio::test]
async fn bytes_reach_clients_of_phoenix_alone_and_those_of_pusher_are_counted_as_skipped() {
    let server = TestServer::start();
    let mut phoenix = phoenix(&server, "private:test-app:room").await;
    let mut pushers = Vec::new();
    for _ in 0..2 {
        let mut pusher = PusherSocket::connect(&server).await;
        pusher.subscribe("private-room").await;
        pushers.push(pusher);
    }
    let app = App::seeded();
    let bytes =
        json!({ "topic": "room", "scope": "private", "event": "bytes", "payload_base64": "AP//" });
    let call = request("POST", server.url("/api/apps/test-app/events"));
    let answer = call.basic(&app.key, &app.secret).json(&bytes).send().await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "skipped": 2 })));
    let heard = phoenix.message().await.into_data();
    assert!(heard.ends_with(b"bytes\x00\xff\xff"), "{heard:?}");
    for pusher in &mut pushers {
        pusher.assert_quiet().await;
    }
    // Bytes that a Phoenix client pushes do not reach them either.
    let (topic, name) = ("private:test-app:room", "push");
    let head = [0, 1, 1, topic.len() as u8, name.len() as u8];
    let frame = [&head[..], b"1", b"9", topic.as_bytes(), name.as_bytes(), &[0, 255]].concat();
    phoenix.send(Message::Binary(frame.into())).await;
    assert!(phoenix.message().await.into_data().ends_with(b"push\x00\xff"));
    for pusher in &mut pushers {
        pusher.assert_quiet().await;
    }
    figures::becomes(&server, r#"herald_skipped_deliveries_total{app="test-app"}"#, 4.0).await;
    // A cache channel keeps no bytes for them.
    let mut cached = bytes.clone();
    cached["topic"] = "cache-room".into();
    let call = request("POST", server.url("/api/apps/test-app/events"));
    assert_eq!(call.basic(&app.key, &app.secret).json(&cached).send().await.status, 200);
    pushers[0].subscribe("private-cache-room").await;
    assert_eq!(pushers[0].next().await["event"], "pusher:cache_miss");
}

#[tokio::test]
async fn a_subject_and_a_user_are_disconnected_where_they_are_meant() {
    let server = TestServer::start();
    let app = App::seeded();
    let disconnect = async |body: Value| {
        let request = request("POST", server.url("/api/apps/test-app/disconnect"));
        let answer = request.basic(&app.key, &app.secret).json(&body).send().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    let mut other = PusherSocket::connect(&server).await;
    other.enter("presence-room", r#"{"user_id":"q"}"#).await;
    // The token of `phoenix` has the subject `p`.
    for how in ["signs in", "is a member"] {
        let mut phoenix = phoenix(&server, "private:test-app:room").await;
        let mut meant = PusherSocket::connect(&server).await;
        match how {
            "signs in" => {
                meant.sign_in(r#"{"id":"p"}"#).await;
                assert_eq!(meant.next().await["event"], "pusher:signin_success");
            }
            _ => drop(meant.enter("presence-else", r#"{"user_id":"p"}"#).await),
        }
        disconnect(json!({ "sub": "p" })).await;
        assert_eq!(meant.closed().await, 4200, "{how}");
        assert_eq!(phoenix.closed().await, 1001, "{how}");
    }
    // A termination closes the connections that are signed in as the user. Members of presence channels and
    // subjects of tokens stay.
    let mut phoenix = phoenix(&server, "private:test-app:room").await;
    let mut member = PusherSocket::connect(&server).await;
    member.enter("presence-else", r#"{"user_id":"p"}"#).await;
    let mut user = PusherSocket::connect(&server).await;
    user.sign_in(r#"{"id":"p"}"#).await;
    assert_eq!(user.next().await["event"], "pusher:signin_success");
    let terminate = call(&server, "POST", "/users/p/terminate_connections");
    assert_eq!(terminate.outcome().await, (200, "{}".to_owned()));
    assert_eq!(user.closed().await, 4009);
    phoenix.assert_quiet().await;
    member.assert_quiet().await;
    other.assert_quiet().await;
}

#[tokio::test]
async fn apps_are_apart_in_both_protocols() {
    let server = TestServer::start();
    let foreign = server.create_app(json!({ "name": "foreign" })).await;
    let mut phoenix = phoenix(&server, "private:test-app:room").await;
    let mut mine = PusherSocket::connect(&server).await;
    let mut theirs = PusherSocket::of(&server, &foreign).await;
    for client in [&mut mine, &mut theirs] {
        client.subscribe("private-room").await;
        client.enter("presence-room", r#"{"user_id":"u"}"#).await;
    }
    trigger(&server, event(&["private-room"], "1")).await;
    mine.hears(r#"{"event":"msg","channel":"private-room","data":"1"}"#).await;
    assert_eq!(phoenix.next().await[3], "msg");
    let path = format!("/apps/{}/events", foreign.slug);
    let call =
        Call::of(&server, foreign.clone(), "POST", path).json(&event(&["private-room"], "2"));
    assert_eq!(call.outcome().await, (200, "{}".to_owned()));
    theirs.hears(r#"{"event":"msg","channel":"private-room","data":"2"}"#).await;
    let path = format!("/apps/{}/users/u/terminate_connections", foreign.slug);
    assert_eq!(Call::of(&server, foreign, "POST", path).outcome().await, (200, "{}".to_owned()));
    for client in [&mut mine, &mut theirs] {
        client.assert_quiet().await;
    }
    phoenix.assert_quiet().await;
}

#[tokio::test]
async fn a_signed_cursor_is_followed_by_what_was_missed() {
    let server = TestServer::start();
    let data = |text: &str| json!(text).to_string();
    let position = |channel: &str, position: &str| {
        format!(r#"{{"event":"herald:position","channel":"{channel}","data":"{position}"}}"#)
    };
    for (channel, member) in [
        ("private-room", ""),
        ("private-encrypted-room", ""),
        ("presence-room", r#""user_id":"u","#),
    ] {
        let mut first = PusherSocket::connect(&server).await;
        first.ask(channel, Some(&format!(r#"{{{member}"since":""}}"#))).await;
        first.succeeded(channel).await;
        let begun = first.next().await;
        assert_eq!(begun["event"], "herald:recovery", "{begun}");
        trigger(&server, event(&[channel], "1")).await;
        first.hears(&format!(r#"{{"event":"msg","channel":"{channel}","data":"1"}}"#)).await;
        let told = first.next().await;
        assert_eq!(told["event"], "herald:position");
        let since = told["data"].as_str().expect("a position").to_owned();
        drop(first);
        for data in ["2", "3"] {
            trigger(&server, event(&[channel], data)).await;
        }
        let mut again = PusherSocket::connect(&server).await;
        again.ask(channel, Some(&format!(r#"{{{member}"since":"{since}"}}"#))).await;
        again.succeeded(channel).await;
        let recovery = data(&format!(r#"{{"complete":true,"position":"{since}","replayed":2}}"#));
        again
            .hears(&format!(
                r#"{{"event":"herald:recovery","channel":"{channel}","data":{recovery}}}"#
            ))
            .await;
        let mut positions = vec![since];
        for text in ["2", "3"] {
            again
                .hears(&format!(r#"{{"event":"msg","channel":"{channel}","data":"{text}"}}"#))
                .await;
            let told = again.frame().await;
            let at = serde_json::from_str::<Value>(&told).expect("JSON")["data"].clone();
            let at = at.as_str().expect("a position").to_owned();
            assert_eq!(told, position(channel, &at));
            assert!(!positions.contains(&at), "{at} and {positions:?}");
            positions.push(at);
        }
        again.assert_quiet().await;
        let mut lost = PusherSocket::connect(&server).await;
        lost.ask(channel, Some(&format!(r#"{{{member}"since":"nowhere"}}"#))).await;
        lost.succeeded(channel).await;
        let recovery = lost.next().await;
        let recovery: Value =
            serde_json::from_str(recovery["data"].as_str().expect("text")).expect("JSON");
        assert_eq!(
            (&recovery["complete"], &recovery["reason"]),
            (&json!(false), &json!("unknown"))
        );
    }
}
