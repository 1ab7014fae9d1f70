//! The questions of an app about its topics: which are occupied, by how many subscribers, and at which position.

use crate::support::{http::Request, tokens::token, *};
use herald::app::Slug;
use serde_json::{Value, json};
use tokio::time::timeout;

async fn ask(server: &TestServer, app: &App, path: &str) -> (u16, Value) {
    let answer = get_as(server, app, "GET", path).send().await;
    (answer.status, answer.json())
}

fn get_as(server: &TestServer, app: &App, method: &str, path: &str) -> Request {
    let path = format!("/api/apps/{}/channels{path}", app.slug);
    request(method, server.url(&path)).basic(&app.key, &app.secret)
}

fn listed(topic: &str, scope: &str, channel: Option<&str>, subscribers: usize) -> Value {
    json!({ "topic": topic, "scope": scope, "channel": channel, "subscribers": subscribers })
}

/// The answer about a single topic, without its position, which every answer must have.
async fn show(server: &TestServer, app: &App, path: &str) -> (u16, Value) {
    let (status, mut answer) = ask(server, app, path).await;
    let position = answer["data"].as_object_mut().and_then(|data| data.remove("position"));
    let position = position.as_ref().and_then(Value::as_str);
    let is_position = position.is_some_and(|position| position.contains(':'));
    assert!(is_position, "{path}: {position:?} in {answer}");
    (status, answer)
}

async fn ticketed(server: &TestServer, way: &str, app: &App, topics: &[&str]) -> Socket {
    let ticket = json!({ "guardian_token": token(app, &json!({ "listen": ["private:*"] })) });
    let mut socket = Socket::connect(server, way).await;
    for topic in topics {
        socket.join(topic, ticket.clone()).await;
    }
    socket
}

#[tokio::test]
async fn occupied_topics_are_listed_with_their_subscribers_over_all_threads_and_ways() {
    let server = TestServer::start_with(|settings| settings.server.workers = 4);
    let app = server.create_app(json!({ "name": "foo-app" })).await;
    let other = server.create_app(json!({ "name": "bar-app" })).await;
    assert_eq!(ask(&server, &app, "").await, (200, json!({ "data": [], "next": null })));
    let mut sockets = Vec::new();
    for nth in 0..8 {
        let way = WAYS[nth % WAYS.len()];
        // One socket may hold topics of both apps.
        let mut socket = ticketed(&server, way, &app, &["public:foo-app:room-1"]).await;
        socket.join("public:bar-app", json!({})).await;
        if nth < 4 {
            socket.join("public:foo-app", json!({})).await;
            // A client that joins again is still one subscriber.
            socket.push(json!(["2", "2", "public:foo-app:room-1", "phx_join", {}])).await;
        }
        sockets.push(socket);
    }
    let private = ticketed(&server, V2, &app, &["private:foo-app:room:1", "public:foo-app:a/b"]);
    let mut private = private.await;
    for socket in &mut sockets[..4] {
        // The reply to the second join: from here on it has replaced the first.
        socket.next().await;
    }
    let topics = [
        listed("private:foo-app:room:1", "private", Some("room:1"), 1),
        listed("public:foo-app", "public", None, 4),
        listed("public:foo-app:a/b", "public", Some("a/b"), 1),
        listed("public:foo-app:room-1", "public", Some("room-1"), 8),
    ];
    for (query, expected, next) in [
        ("", &topics[..], Value::Null),
        ("?scope=private", &topics[..1], Value::Null),
        ("?scope=none", &[], Value::Null),
        ("?prefix=room", &[topics[0].clone(), topics[3].clone()], Value::Null),
        ("?prefix=a%2F", &topics[2..3], Value::Null),
        ("?scope=public&prefix=room-", &topics[3..], Value::Null),
        ("?limit=2", &topics[..2], json!("public:foo-app")),
        ("?limit=2&after=public:foo-app", &topics[2..], Value::Null),
        ("?limit=1&after=public:foo-app", &topics[2..3], json!("public:foo-app:a/b")),
        ("?limit=4", &topics[..], Value::Null),
    ] {
        let answer = ask(&server, &app, query).await;
        assert_eq!(answer, (200, json!({ "data": expected, "next": next })), "{query}");
    }
    let others = json!({ "data": [listed("public:bar-app", "public", None, 8)], "next": null });
    assert_eq!(ask(&server, &other, "").await, (200, others));
    for (path, expected) in [
        ("/public", listed("public:foo-app", "public", None, 4)),
        ("/private", listed("private:foo-app", "private", None, 0)),
        ("/public/room-1", topics[3].clone()),
        ("/public/room-2", listed("public:foo-app:room-2", "public", Some("room-2"), 0)),
        ("/private/room:1", topics[0].clone()),
        ("/private/room%3A1", topics[0].clone()),
        ("/public/a%2Fb", topics[2].clone()),
        ("/public/a/b", topics[2].clone()),
    ] {
        let answer = show(&server, &app, path).await;
        assert_eq!(answer, (200, json!({ "data": expected })), "{path}");
    }
    private.push(json!([null, "5", "public:foo-app:a/b", "phx_leave", {}])).await;
    private.next().await;
    let nobody = json!({ "data": listed("public:foo-app:a/b", "public", Some("a/b"), 0) });
    let left = repeat_until(async || show(&server, &app, "/public/a%2Fb").await.1 == nobody);
    timeout(DEADLINE, left).await.expect("a client that left is not counted");
    drop(sockets);
    // The sessions over WebSocket end with their connections, those over long-poll only after a time without a poll.
    let rest = json!({ "data": [
        topics[0],
        listed("public:foo-app", "public", None, 2),
        listed("public:foo-app:room-1", "public", Some("room-1"), 4),
    ], "next": null });
    let gone = repeat_until(async || ask(&server, &app, "").await.1 == rest);
    timeout(DEADLINE, gone).await.expect("clients that are gone are not counted");
}

#[tokio::test]
async fn of_a_presence_channel_the_members_are_told_as_its_clients_have_them() {
    let server = TestServer::start();
    let app = server.create_app(json!({ "name": "foo-app" })).await;
    let topic = "presence:foo-app:room";
    let empty = json!({
        "topic": topic, "scope": "presence", "channel": "room", "subscribers": 0, "members": {},
    });
    assert_eq!(show(&server, &app, "/presence/room").await, (200, json!({ "data": empty })));
    let mut sockets = Vec::new();
    for (way, sub) in [(V2, json!("ada")), (V1_POLLED, json!("ada")), (V1, json!(7))] {
        let claims = json!({
            "sub": sub, "listen": ["presence:*"], "presence": { "name": format!("{sub} over {way}") },
        });
        let mut socket = Socket::connect(&server, way).await;
        socket.join(topic, json!({ "guardian_token": token(&app, &claims) })).await;
        sockets.push(socket);
    }
    let (status, answer) = ask(&server, &app, "/presence/room").await;
    assert_eq!((status, &answer["data"]["subscribers"]), (200, &json!(3)), "{answer}");
    let members = &answer["data"]["members"];
    let names = |key: &str| -> Vec<_> {
        let metas = members[key]["metas"].as_array().expect("metas").iter();
        metas.map(|meta| meta["name"].as_str().expect("a name").to_owned()).collect()
    };
    let way = |sub: &str, way: &str| format!("{sub} over {way}");
    assert_eq!(names("ada"), [way("\"ada\"", V2), way("\"ada\"", V1_POLLED)]);
    assert_eq!(names("7"), [way("7", V1)]);
    let is_whole = |meta: &Value| meta["phx_ref"].is_string() && meta["online_at"].is_number();
    assert!(is_whole(&members["7"]["metas"][0]), "{members}");
    let list = ask(&server, &app, "").await.1;
    let entry = json!([listed(topic, "presence", Some("room"), 3)]);
    assert_eq!(list["data"], entry, "a list has counts and no members");
    let whole = listed("presence:foo-app", "presence", None, 0);
    assert_eq!(show(&server, &app, "/presence").await, (200, json!({ "data": whole })));
}

#[tokio::test]
async fn publications_after_an_answer_are_replayed_to_a_join_with_its_position() {
    let server = TestServer::start();
    let app = server.create_app(json!({ "name": "foo-app" })).await;
    let event =
        |topic: &str, n: u64| json!({ "topic": topic, "event": "msg", "payload": { "n": n } });
    for (path, topic) in [
        ("/public/untouched", "public:foo-app:untouched"),
        ("/public", "public:foo-app"),
        ("/public/untouched", "public:foo-app:untouched"),
    ] {
        let position = ask(&server, &app, path).await.1["data"]["position"].clone();
        server.trigger(&app, event("untouched", 1)).await;
        server.trigger(&app, event("#general", 2)).await;
        let mut socket = Socket::connect(&server, V2).await;
        let reply = socket.try_join(topic, json!({ "since": position })).await;
        let recovery = json!({ "complete": true, "position": position, "replayed": 2 });
        assert_eq!(reply["response"]["recovery"], recovery, "{path}");
        for n in [1, 2] {
            assert_eq!(socket.next().await[4], json!({ "n": n }), "{path}");
        }
        let again = ask(&server, &app, path).await.1["data"]["position"].clone();
        assert_ne!(again, position, "{path}");
        assert_eq!(ask(&server, &app, path).await.1["data"]["position"], again, "{path}");
    }
    let of_other_scope = ask(&server, &app, "/private").await.1["data"]["position"].clone();
    let mut socket = Socket::connect(&server, V2).await;
    let reply = socket.try_join("public:foo-app", json!({ "since": of_other_scope })).await;
    assert_eq!(reply["response"]["recovery"]["reason"], "unknown");
}

#[tokio::test]
async fn without_history_a_scope_has_a_position_only_while_somebody_listens() {
    let server = TestServer::start();
    let app = json!({ "name": "foo-app", "history_publications": 0 });
    let app = server.create_app(app).await;
    let shown = async |path| ask(&server, &app, path).await.1["data"]["position"].clone();
    assert_eq!(shown("/public/room").await, Value::Null);
    assert_eq!(shown("/public").await, Value::Null);
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:foo-app:other", json!({})).await;
    assert!(shown("/public/room").await.is_string());
    assert_eq!(shown("/private/room").await, Value::Null);
}

#[tokio::test]
async fn with_a_single_app_topics_are_spelled_without_its_name() {
    let server = TestServer::start_with(|settings| settings.single_app = Slug::parse("test-app"));
    let app = App::seeded();
    let _socket = ticketed(&server, V2, &app, &["public:news", "private:7:a"]).await;
    let expected = [
        listed("private:7:a", "private", Some("7:a"), 1),
        listed("public:news", "public", Some("news"), 1),
    ];
    let all = json!({ "data": expected, "next": null });
    assert_eq!(ask(&server, &app, "").await, (200, all));
    let rest = json!({ "data": expected[1..], "next": null });
    assert_eq!(ask(&server, &app, "?after=private:7:a").await, (200, rest));
    let one = json!({ "data": expected[0] });
    assert_eq!(show(&server, &app, "/private/7:a").await, (200, one));
    let whole = json!({ "data": listed("public:test-app", "public", None, 0) });
    assert_eq!(show(&server, &app, "/public").await, (200, whole));
}

#[tokio::test]
async fn only_the_app_itself_is_answered_and_an_impossible_question_is_refused() {
    let server = TestServer::start();
    let app = server.create_app(json!({ "name": "foo-app" })).await;
    let other = server.create_app(json!({ "name": "bar-app" })).await;
    let idle = server.create_app(json!({ "name": "idle-app", "active": false })).await;
    let jwt =
        token(&app, &json!({ "aud": "trigger", "listen": ["public:*"], "publish": ["public:*"] }));
    let stranger = json!({ "errors": { "detail": "authentication required" } });
    for path in ["", "/public", "/public/room-1"] {
        let url = server.url(&format!("/api/apps/foo-app/channels{path}"));
        let unknown = App { slug: "no-app".into(), ..app.clone() };
        for (case, request) in [
            ("nothing", request("GET", &url)),
            ("a token", request("GET", &url).bearer(&jwt)),
            ("secret alone", request("GET", &url).header("authorization", &app.secret)),
            ("wrong secret", request("GET", &url).basic(&app.key, "x")),
            ("another app", request("GET", &url).basic(&other.key, &other.secret)),
            ("the admin", request("GET", &url).basic(server::ADMIN.0, server::ADMIN.1)),
            ("inactive", get_as(&server, &idle, "GET", path)),
            ("unknown", get_as(&server, &unknown, "GET", path)),
        ] {
            let answer = request.send().await;
            assert_eq!((answer.status, answer.json()), (401, stranger.clone()), "{case} {path}");
            assert!(answer.header("www-authenticate").is_some(), "{case} {path}");
        }
        for (method, status) in [("HEAD", 200), ("POST", 405), ("DELETE", 405), ("OPTIONS", 405)] {
            let answer = get_as(&server, &app, method, path).send().await;
            assert_eq!(answer.status, status, "{method} {path}");
            assert_eq!(answer.header("access-control-allow-origin"), None, "{method} {path}");
            match status {
                405 => assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method} {path}"),
                _ => assert_eq!(answer.body, "", "{method} {path}"),
            }
        }
        let answer = get_as(&server, &app, "GET", path).send().await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
    for (path, field, fault) in [
        ("?limit=0", "limit", "must be a number from 1 to 10000"),
        ("?limit=10001", "limit", "must be a number from 1 to 10000"),
        ("?scope=a%20b", "scope", "has a character that is not allowed"),
        ("?after=public:bar-app", "after", "must be one of this app's"),
        ("/a%20b", "scope", "has a character that is not allowed"),
        ("/public/%23general", "channel", "is reserved"),
        ("/public/%00", "channel", "has a character that is not allowed"),
        ("/public/%FF", "channel", "is not valid text"),
    ] {
        let expected = json!({ "errors": { field: [fault] } });
        assert_eq!(ask(&server, &app, path).await, (422, expected), "{path}");
    }
    // Empty segments of a path are ignored.
    assert_eq!(ask(&server, &app, "/public/").await, ask(&server, &app, "/public").await);
}
