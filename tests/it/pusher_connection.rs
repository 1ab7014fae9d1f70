//! Entries 1 to 39 and 185 to 187 of the protocol document of Pusher: connecting, staying, being closed.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{pusher_socket::path, *};

/// All that a client hears before it is closed, and the code.
async fn turned_away(server: &TestServer, path: &str) -> (Vec<String>, u16) {
    Socket::open(server, path).await.rest().await
}

#[tokio::test]
async fn p001_p002_p003_p008_p011_p018_a_client_is_told_its_socket_id_first() {
    let server = TestServer::start();
    let mut ids = Vec::new();
    for query in
        ["?protocol=7&client=js&version=8.6.0&flash=false", "?protocol=6", "?protocol=5", ""]
    {
        let socket = Socket::open(&server, &format!("/app/test-app-fake-key{query}")).await;
        ids.push(PusherSocket::over(socket, &App::seeded()).await.id);
    }
    let (first, second) = (ids[0].clone(), ids.len());
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), second, "{first} and the others differ");
}

#[tokio::test]
async fn p004_p007_p009_p010_p012_p013_a_client_that_is_not_let_in_is_told_by_a_close_code() {
    let server = TestServer::start();
    let error = |code: u16, text: &str| {
        format!(r#"{{"event":"pusher:error","data":{{"code":{code},"message":"{text}"}}}}"#)
    };
    let unknown = error(4001, "no app has this key");
    let unsupported = error(4007, "protocol must be 4, 5, 6 or 7");
    for (path, code, last) in [
        ("/app/nobody?protocol=7", 4001, None),
        ("/app/nobody?protocol=6", 4001, None),
        ("/app/nobody?protocol=5", 4001, Some(unknown)),
        ("/app", 4005, None),
        ("/app/?protocol=7", 4005, None),
        ("/app/test-app-fake-key/more?protocol=7", 4005, None),
        ("/app/test-app-fake-key?protocol=8", 4007, None),
        ("/app/test-app-fake-key?protocol=0", 4007, Some(unsupported.clone())),
        ("/app/test-app-fake-key?protocol=3", 4007, Some(unsupported)),
        ("/app/test-app-fake-key?protocol=abc", 4007, None),
    ] {
        assert_eq!(turned_away(&server, path).await, (last.into_iter().collect(), code), "{path}");
    }
    assert_eq!(Socket::refused(&server, "/foo", &[]).await.0, 404);
}

#[tokio::test]
async fn p011_a_strict_server_closes_a_client_that_does_not_say_its_version() {
    let server = TestServer::start_with(|settings| settings.pusher.strict_protocol = true);
    let closed = turned_away(&server, "/app/test-app-fake-key?client=js").await;
    assert_eq!(closed, (Vec::new(), 4008));
    PusherSocket::connect(&server).await;
}

#[tokio::test]
async fn p005_p006_p020_p021_apps_and_limits_close_a_client_with_their_codes() {
    let server = TestServer::start_with(|settings| settings.limits.sessions_per_app_max = Some(1));
    let app = server.create_app(json!({ "name": "limited" })).await;
    let first = PusherSocket::of(&server, &app).await;
    assert_eq!(turned_away(&server, &path(&app)).await, (Vec::new(), 4004));
    drop(first);
    // The app has room again once the server has noticed that the first client is gone.
    let again = repeat_until_some(async || {
        let mut socket = Socket::open(&server, &path(&app)).await;
        match socket.message().await {
            Message::Text(text) => Some(text),
            Message::Close(_) => None,
            other => panic!("{other:?}"),
        }
    });
    let text = tokio::time::timeout(DEADLINE, again).await.expect("in time");
    assert!(text.contains("connection_established"), "{text}");
    for (name, fields, code) in [
        ("inactive", json!({ "active": false }), 4003),
        ("without pusher", json!({ "pusher": false }), 4003),
        ("with origins", json!({ "allowed_origins": ["https://shop.example"] }), 4009),
    ] {
        let mut all = json!({ "name": name });
        all.as_object_mut()
            .expect("an object")
            .extend(fields.as_object().cloned().expect("fields"));
        let app = server.create_app(all).await;
        let origin = [("origin", "https://other.example")];
        let (mut socket, _) = Socket::open_with(&server, &path(&app), &origin).await.expect("101");
        assert_eq!(socket.rest().await, (Vec::new(), code), "{name}");
    }
}

#[tokio::test]
async fn p020_a_full_server_and_a_full_address_close_a_client_with_4100() {
    let server = TestServer::start_with(|settings| settings.limits.sessions_max = Some(1));
    let _first = PusherSocket::connect(&server).await;
    let per_address =
        TestServer::start_with(|settings| settings.limits.sessions_per_address_max = Some(1));
    let _other = PusherSocket::connect(&per_address).await;
    let old = "/app/test-app-fake-key?protocol=5";
    let error = r#"{"event":"pusher:error","data":{"code":4100,"message":"too many connections"}}"#;
    for server in [&server, &per_address] {
        assert_eq!(turned_away(server, &path(&App::seeded())).await, (Vec::new(), 4100));
        assert_eq!(turned_away(server, old).await, (vec![error.to_owned()], 4100));
    }
}

#[tokio::test]
async fn p014_where_tls_is_forced_plain_clients_are_closed_with_4000_and_plain_calls_refused() {
    let server = TestServer::start_with(|settings| {
        settings.server.force_ssl = true;
        settings.server.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
    });
    for (proto, is_refused) in [(None, true), (Some("http"), true), (Some("https"), false)] {
        let headers: Vec<_> = proto.map(|proto| ("x-forwarded-proto", proto)).into_iter().collect();
        let opened = Socket::open_with(&server, &path(&App::seeded()), &headers).await;
        let (mut socket, _) = opened.expect("101");
        match is_refused {
            true => assert_eq!(socket.rest().await, (Vec::new(), 4000), "{proto:?}"),
            false => drop(PusherSocket::over(socket, &App::seeded()).await),
        }
        for path in ["/apps/test-app/channels", "/apps", "/users/7/terminate_connections"] {
            let method = if path.starts_with("/users") { "POST" } else { "GET" };
            let call = pusher::Call::of(&server, App::seeded(), method, path.to_owned());
            let call = call.request(&call.query());
            let call = headers.iter().fold(call, |call, (name, value)| call.header(name, value));
            let answer = call.send().await;
            let refusal = (403, "this server takes requests over https only\n");
            assert_eq!((answer.status, &*answer.body) == refusal, is_refused, "{proto:?} {path}");
        }
        let call = http::request("GET", server.url("/api/openapi.json"));
        let call = headers.iter().fold(call, |call, (name, value)| call.header(name, value));
        assert_eq!(call.send().await.body.starts_with(r#"{"errors""#), is_refused, "as JSON");
    }
}

#[tokio::test]
async fn p015_p016_p017_the_subprotocol_is_echoed_where_it_is_offered() {
    let server = TestServer::start();
    for (offered, expected) in [
        (Some("pusher-channels-protocol-7"), Some("pusher-channels-protocol-7")),
        (Some("x, pusher-channels-protocol-7"), Some("pusher-channels-protocol-7")),
        (None, None),
    ] {
        let headers: Vec<_> =
            offered.map(|offered| ("sec-websocket-protocol", offered)).into_iter().collect();
        let opened = Socket::open_with(&server, &path(&App::seeded()), &headers).await;
        let (socket, response) = opened.expect("to be let in");
        let echoed = response.headers().get("sec-websocket-protocol");
        assert_eq!(echoed.map(|echoed| echoed.to_str().expect("text")), expected);
        PusherSocket::over(socket, &App::seeded()).await;
    }
    // A client that offers only another subprotocol is answered without one. The WebSocket client of these tests
    // would refuse this answer, so the request is written by hand.
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: other\r\n\r\n",
        path(&App::seeded())
    );
    let mut stream = raw::connect(&server).await;
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.expect("room");
    let (status, head) = raw::answer(&mut stream).await;
    assert_eq!(status, 101);
    assert!(!head.to_lowercase().contains("sec-websocket-protocol"), "{head}");
}

#[tokio::test]
async fn p019_a_prefix_of_the_path_is_taken() {
    let server = TestServer::start_with(|settings| settings.pusher.path_prefix = "/pusher".into());
    let path = format!("/pusher{}", path(&App::seeded()));
    PusherSocket::over(Socket::open(&server, &path).await, &App::seeded()).await;
}

#[tokio::test]
async fn p022_p023_p024_p029_pings_are_answered_and_pongs_are_not() {
    let server = TestServer::start();
    let mut client = PusherSocket::connect(&server).await;
    for ping in [r#"{"event":"pusher:ping","data":{}}"#, r#"{"event":"pusher:ping"}"#] {
        client.socket.text(ping).await;
        client.hears(r#"{"event":"pusher:pong","data":"{}"}"#).await;
    }
    client.command("pusher:pong", json!({})).await;
    client.assert_quiet().await;
    client.socket.send(Message::Ping(b"abc".as_slice().into())).await;
    assert_eq!(client.socket.message().await, Message::Pong(b"abc".as_slice().into()));
}

#[tokio::test]
async fn p025_p026_p027_p071_p186_a_silent_client_is_probed_and_closed_if_it_is_deaf() {
    let server = TestServer::start_with(|settings| {
        settings.socket.idle_timeout = Duration::from_millis(100);
        settings.pusher.activity_timeout = Duration::from_millis(300);
        settings.pusher.pong_timeout = Duration::from_secs(3);
    });
    let probe = r#"{"event":"pusher:ping","data":"{}"}"#;
    let (mut lively, mut deaf) =
        (PusherSocket::connect(&server).await, PusherSocket::connect(&server).await);
    lively.enter("presence-a", r#"{"user_id":"lively"}"#).await;
    assert_eq!(deaf.enter("presence-a", r#"{"user_id":"deaf"}"#).await["count"], 2);
    deaf.hears(probe).await;
    // A message that the server sends is not a sign of life from the client.
    pusher::trigger(&server, pusher::event(&["presence-a"], "1")).await;
    let message = r#"{"event":"msg","channel":"presence-a","data":"1"}"#;
    deaf.hears(message).await;
    let (mut probes, mut heard) = (0, Vec::new());
    let lives = async {
        // The second probe shows that the answer to the first one was accepted.
        while probes < 2 || heard.len() < 3 {
            let text = lively.frame().await;
            if text == probe {
                probes += 1;
                lively.command("pusher:pong", json!({})).await;
            } else {
                heard.push(text);
            }
        }
    };
    let (in_time, rest) = tokio::join!(tokio::time::timeout(DEADLINE, lives), deaf.socket.rest());
    assert_eq!(rest, (Vec::new(), 4201), "no second probe");
    in_time.expect("probes, and the end of the other, in time");
    let of_member = |event: &str, data: &str| {
        let (event, data) = (format!("pusher_internal:{event}"), json!(data));
        format!(r#"{{"event":"{event}","channel":"presence-a","data":{data}}}"#)
    };
    let added = of_member("member_added", r#"{"user_id":"deaf","user_info":null}"#);
    let removed = of_member("member_removed", r#"{"user_id":"deaf"}"#);
    assert_eq!(heard, [added.as_str(), message, &removed]);
}

#[tokio::test]
async fn p028_a_client_that_sends_events_is_never_probed() {
    // Many times the pause between two events, so that the client is in time on a slow machine too.
    let activity_timeout = Duration::from_millis(1_500);
    let server = TestServer::start_with(|settings| {
        settings.socket.idle_timeout = Duration::from_millis(100);
        settings.pusher.activity_timeout = activity_timeout;
    });
    let (mut client, mut other) =
        (PusherSocket::connect(&server).await, PusherSocket::connect(&server).await);
    client.subscribe("private-a").await;
    other.subscribe("private-a").await;
    let began = std::time::Instant::now();
    let mut ticks = tokio::time::interval(activity_timeout / 30);
    while began.elapsed() < 2 * activity_timeout {
        ticks.tick().await;
        client.say(json!({ "event": "client-e", "channel": "private-a", "data": 1 })).await;
    }
    client.assert_quiet().await;
}

#[tokio::test]
async fn p030_p031_p032_p033_p034_p035_p036_p038_an_invalid_message_is_answered_with_an_error() {
    let server = TestServer::start();
    let (mut client, mut other) =
        (PusherSocket::connect(&server).await, PusherSocket::connect(&server).await);
    client.subscribe("private-a").await;
    other.subscribe("private-a").await;
    for text in [
        "x",
        "[1]",
        "7",
        "{}",
        r#"{"event":7}"#,
        r#"{"event":"pusher:foo","data":{}}"#,
        r#"{"event":"pusher_internal:member_added","channel":"private-a","data":"{}"}"#,
        r#"{"event":"msg","channel":"private-a","data":{}}"#,
        r#"{"event":"pusher:subscribe","data":{}}"#,
        r#"{"event":"pusher:subscribe","data":{"channel":7}}"#,
    ] {
        client.socket.text(text).await;
        assert_eq!(client.hears_error().await, Value::Null, "{text}");
    }
    other.assert_quiet().await;
    client.command("pusher:subscribe", json!(r#"{"channel":"foo"}"#)).await;
    client.succeeded("foo").await;
    client.socket.send(Message::Binary(b"x".as_slice().into())).await;
    assert_eq!(client.closed().await, 1003);
}

#[tokio::test]
async fn p037_a_message_that_is_too_large_closes_its_client_alone() {
    let server = TestServer::start();
    let mut other = PusherSocket::connect(&server).await;
    let mut client = PusherSocket::connect(&server).await;
    client.socket.text("x".repeat(2 << 20)).await;
    assert_eq!(client.closed().await, 1009);
    other.assert_quiet().await;
}

/// A frame of a client, whose mask is zero.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short payload");
    assert!(length < 126, "a longer length is spelled otherwise");
    [&[first, 0x80 | length], &[0; 4][..], payload].concat()
}

#[tokio::test]
async fn p039_text_that_is_not_utf8_closes_its_client_alone() {
    let server = TestServer::start();
    let mut other = PusherSocket::connect(&server).await;
    let whole = r#"{"event":"pusher:ping","data":"é"}"#.as_bytes();
    let at = whole.iter().position(|byte| *byte == 0xc3).expect("an é");
    let mut broken = whole.to_vec();
    broken[at] = 0xff;
    let text = |payload: &[u8]| frame(0x81, payload);
    for (case, bytes, code) in [
        ("a byte that UTF-8 never has", text(&broken), Some(1007)),
        ("half a character", text(&whole[..=at]), Some(1007)),
        ("a surrogate", text(b"\xed\xa0\x80"), Some(1007)),
        ("an overlong form", text(b"\xc0\xaf"), Some(1007)),
        (
            "a fragment that does not complete the character before it",
            [frame(0x01, &whole[..=at]), frame(0x80, b"x")].concat(),
            Some(1007),
        ),
        (
            "a character in two fragments",
            [frame(0x01, &whole[..=at]), frame(0x80, &whole[at + 1..])].concat(),
            None,
        ),
    ] {
        let mut client = PusherSocket::connect(&server).await;
        tokio::io::AsyncWriteExt::write_all(client.socket.tcp(), &bytes).await.expect("room");
        match code {
            Some(code) => assert_eq!(client.socket.rest().await, (Vec::new(), code), "{case}"),
            None => client.hears(r#"{"event":"pusher:pong","data":"{}"}"#).await,
        }
    }
    other.assert_quiet().await;
}

#[tokio::test]
async fn p185_a_server_that_stops_closes_with_4200_in_slices() {
    let interval = Duration::from_millis(300);
    let mut server = TestServer::start_with(|settings| {
        settings.server.drain_batch_sessions = 2;
        settings.server.drain_interval = interval;
    });
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = PusherSocket::connect(&server).await;
        client.subscribe("foo").await;
        clients.push(client);
    }
    server.begin_stop();
    let closed = clients.iter_mut().map(|client| async {
        assert_eq!(client.closed().await, 4200);
        std::time::Instant::now()
    });
    let mut at = futures_util::future::join_all(closed).await;
    at.sort();
    server.stop();
    // The first slice and the last one are two intervals apart. A close that is read late may shorten that, so one
    // interval is enough.
    let lasted = at[5] - at[0];
    assert!(lasted > interval, "all six were closed within {lasted:?}");
}

#[tokio::test]
async fn p187_a_client_that_comes_back_is_another_connection_and_leaves_no_member_behind() {
    let server = TestServer::start();
    let app = App::seeded();
    let mut watcher = PusherSocket::connect(&server).await;
    watcher.enter("presence-a", r#"{"user_id":"w"}"#).await;
    let told = |event: &str, data: &str| {
        let data = json!(data);
        format!(r#"{{"event":"pusher_internal:{event}","channel":"presence-a","data":{data}}}"#)
    };
    let (added, removed) = (
        told("member_added", r#"{"user_id":"u","user_info":null}"#),
        told("member_removed", r#"{"user_id":"u"}"#),
    );
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut client = PusherSocket::connect(&server).await;
        let roster = client.enter("presence-a", r#"{"user_id":"u"}"#).await;
        assert_eq!(roster["ids"], json!(["u", "w"]));
        client.subscribe("private-mine").await;
        watcher.hears(&added).await;
        let request = http::request("POST", server.url("/api/apps/test-app/disconnect"));
        let topic = json!({ "topic": "private:test-app:mine" });
        let answer = request.basic(&app.key, &app.secret).json(&topic).send().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(client.closed().await, 4200);
        ids.push(client.id);
        watcher.hears(&removed).await;
    }
    ids.push(watcher.id.clone());
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "each connection has a socket id of its own");
    watcher.assert_quiet().await;
    let users = pusher::call(&server, "GET", "/channels/presence-a/users").send().await;
    assert_eq!(users.json(), json!({ "users": [{ "id": "w" }] }));
}

#[tokio::test]
async fn a_change_of_the_app_closes_its_clients_with_its_code() {
    let server = TestServer::start();
    for (name, change, code) in [
        ("deactivated", Some(json!({ "active": false })), 4003),
        ("pusher off", Some(json!({ "pusher": false })), 4003),
        ("origins tightened", Some(json!({ "allowed_origins": ["https://a.example"] })), 4009),
        ("another key", Some(json!({ "key": "another-key" })), 4200),
        ("another secret", Some(json!({ "secret": "another-secret-of-length" })), 4200),
        ("deleted", None, 4001),
    ] {
        let app = server.create_app(json!({ "name": name })).await;
        let origin = [("origin", "https://b.example")];
        let (socket, _) = Socket::open_with(&server, &path(&app), &origin).await.expect("101");
        let mut client = PusherSocket::over(socket, &app).await;
        if name == "another secret" {
            client.subscribe("private-a").await;
        }
        let path = format!("/api/admin/apps/{}", app.slug);
        match change {
            Some(change) => drop(server.update_app(&app.slug, change).await),
            None => assert_eq!(server.admin("DELETE", &path, None).await.status, 204),
        }
        assert_eq!(client.closed().await, code, "{name}");
    }
}

#[tokio::test]
async fn p124_a_client_of_an_app_that_wants_signatures_is_closed_without_one() {
    let server = TestServer::start_with(|settings| {
        settings.pusher.authorization_timeout = Duration::from_secs(2);
    });
    let app = server.create_app(json!({ "name": "strict", "authorized_only": true })).await;
    let mut idle = PusherSocket::of(&server, &app).await;
    let mut public = PusherSocket::of(&server, &app).await;
    let mut private = PusherSocket::of(&server, &app).await;
    let mut user = PusherSocket::of(&server, &app).await;
    private.subscribe("private-a").await;
    public.subscribe("a").await;
    user.sign_in(r#"{"id":"7"}"#).await;
    assert_eq!(user.next().await["event"], "pusher:signin_success");
    assert_eq!(idle.closed().await, 4009);
    assert_eq!(public.closed().await, 4009);
    private.assert_quiet().await;
    user.assert_quiet().await;
}
