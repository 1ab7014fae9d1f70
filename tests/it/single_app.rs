//! The setting `single_app`, with which Herald is the server of the second article: topics need not name the app,
//! pages connect to `/events`, and the application calls `/api/publish`.

use crate::support::{tokens::token, *};
use herald::app::Slug;
use serde_json::{Value, json};

fn start() -> (TestServer, App) {
    let server = TestServer::start_with(|settings| settings.single_app = Slug::parse("test-app"));
    (server, App::seeded())
}

/// A client on `/events`, as on the article's page.
async fn client(server: &TestServer, vsn: &str) -> Socket {
    Socket::open(server, &format!("/events/websocket?vsn={vsn}")).await
}

fn ticket(app: &App) -> Value {
    let claims = json!({
        "sub": {},
        "listen": ["deploys:web", "private:123:456", "private:7:*"],
        "publish": ["private:123:*"],
    });
    json!({ "guardian_token": token(app, &claims) })
}

/// Calls `/api/publish` or `/api/publish/bulk` with the app's secret alone in `Authorization`.
async fn publish(server: &TestServer, app: &App, path: &str, body: Value) -> (u16, Value) {
    let call = request("POST", server.url(path)).header("authorization", &app.secret);
    let answer = call.json(&body).send().await;
    (answer.status, answer.json())
}

fn published() -> (u16, Value) {
    (200, json!({}))
}

#[tokio::test]
async fn the_articles_topics_are_joined_and_published_to() {
    let (server, app) = start();
    for vsn in [V1, V2] {
        let mut socket = client(&server, vsn).await;
        for topic in ["public:news", "deploys:web", "private:123:456"] {
            let reply = socket.try_join(topic, ticket(&app)).await;
            let public = json!({ "status": "ok", "response": {} });
            let joined = json!({ "status": "ok", "response": { "message": "Joined" } });
            let expected = if topic.starts_with("public") { public } else { joined };
            assert_eq!(reply, expected, "{topic}");
        }
        for topic in ["public:news", "deploys:web", "private:123:456"] {
            let body = json!({ "topic": topic, "event": "msg", "payload": { "on": topic } });
            assert_eq!(publish(&server, &app, "/api/publish", body).await, published());
            let expected = json!([null, null, topic, "msg", { "on": topic }]);
            assert_eq!(socket.next().await, expected, "{topic} to {vsn}");
        }
        socket.push(json!(["1", "2", "private:123:456", "msg", { "a": 1 }])).await;
        let heard = json!([null, null, "private:123:456", "msg", { "a": 1 }]);
        assert_eq!(socket.next().await, heard, "{vsn}");
        socket.push(json!(["1", "3", "deploys:web", "msg", {}])).await;
        let reply = socket.next().await;
        assert_eq!(reply[4], json!({ "status": "error", "response": {} }), "{vsn}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn both_mounts_lead_to_the_same_topics() {
    let (server, app) = start();
    let mut sockets = Vec::new();
    for path in ["/events/websocket", "/events", "/socket/websocket", "/socket"] {
        let mut socket = Socket::open(&server, &format!("{path}?vsn=2.0.0")).await;
        socket.join("deploys:web", ticket(&app)).await;
        sockets.push(socket);
    }
    let body = json!({ "topic": "deploys:web", "event": "done" });
    assert_eq!(publish(&server, &app, "/api/publish", body).await, published());
    for socket in &mut sockets {
        assert_eq!(socket.frame().await, r#"[null,null,"deploys:web","done",{}]"#);
    }
}

#[tokio::test]
async fn scopes_and_channels_of_the_same_names_hear_nothing_of_each_other() {
    let (server, app) = start();
    let claims = json!({ "listen": ["private:*", "deploys:*"] });
    let payload = json!({ "guardian_token": token(&app, &claims) });
    // A channel whose name begins with the app's slug, such as `test-app:web`, needs the spelling with the slug in
    // front.
    let channels = ["web", "web:1", "1", "test-app:test-app", "test-app:test-app:web"];
    let mut sockets = Vec::new();
    for vsn in [V1, V2] {
        for scope in ["public", "private", "deploys"] {
            for channel in channels {
                let topic = format!("{scope}:{channel}");
                let mut socket = client(&server, vsn).await;
                socket.join(&topic, payload.clone()).await;
                sockets.push((topic, socket));
            }
        }
    }
    let topics: Vec<String> = sockets[..15].iter().map(|(topic, _)| topic.clone()).collect();
    for topic in &topics {
        let body = json!({ "topic": topic, "event": "msg", "payload": { "to": topic } });
        assert_eq!(publish(&server, &app, "/api/publish", body).await, published());
    }
    let everyone = |scope: &str| json!({ "topic": "#general", "event": "end", "scope": scope });
    for scope in ["public", "private", "deploys"] {
        server.trigger(&app, everyone(scope)).await;
    }
    for (topic, socket) in &mut sockets {
        let own = json!([null, null, topic, "msg", { "to": topic }]);
        assert_eq!(socket.next().await, own, "{topic}");
        let end = json!([null, null, topic, "#general:end", {}]);
        assert_eq!(socket.next().await, end, "{topic}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn both_articles_run_on_one_herald() {
    let (server, app) = start();
    for way in WAYS {
        // The first article's page joins the whole scope, by a topic that names the app.
        let mut page = Socket::connect(&server, way).await;
        page.join("public:test-app", json!({})).await;
        // The second article's page.
        let mut article = Socket::connect(&server, way).await;
        article.join("deploys:web", ticket(&app)).await;
        // The page's own curl command.
        let form = "event=msg&topic=foo-topic&payload=%7B%22name%22%3A%22curl%22%7D";
        let curl = request("POST", server.url("/api/apps/test-app/events"));
        let curl = curl.basic(&app.key, &app.secret);
        let curl = curl.header("content-type", "application/x-www-form-urlencoded");
        let answer = curl.body(form.as_bytes().to_vec()).send().await;
        assert_eq!((answer.status, answer.json()), published());
        let heard = json!([null, null, "public:test-app", "foo-topic:msg", { "name": "curl" }]);
        assert_eq!(page.next().await, heard, "{way}");
        let body = json!({ "topic": "deploys:web", "event": "msg" });
        assert_eq!(publish(&server, &app, "/api/publish", body).await, published());
        assert_eq!(article.next().await, json!([null, null, "deploys:web", "msg", {}]), "{way}");
        page.assert_quiet().await;
        article.assert_quiet().await;
    }
}

/// The names under which an event of one channel arrives, by the topic that the client has joined: the
/// channel in either spelling, or the whole scope.
const SPELLINGS: [(&str, &str); 3] = [
    ("private:7:room", "msg"),
    ("private:test-app:7:room", "msg"),
    ("private:test-app", "7:room:msg"),
];

#[tokio::test]
async fn every_client_hears_a_topic_by_the_name_that_it_joined() {
    let (server, app) = start();
    let claims = json!({ "listen": ["private:*"], "publish": ["private:*"] });
    let payload = json!({ "guardian_token": token(&app, &claims) });
    let mut sockets = Vec::new();
    for way in WAYS {
        for (topic, event) in SPELLINGS {
            let mut socket = Socket::connect(&server, way).await;
            let joined = json!({ "status": "ok", "response": { "message": "Joined" } });
            assert_eq!(socket.try_join(topic, payload.clone()).await, joined, "{topic} {way}");
            sockets.push((topic, event, way, socket));
        }
    }
    let heard_by_all = async |sockets: &mut Vec<(&str, &str, &str, Socket)>, n: usize| {
        for (topic, event, way, socket) in sockets {
            let expected = json!([null, null, topic, event, { "n": n }]);
            assert_eq!(socket.next().await, expected, "{way}");
        }
    };
    let event = |topic: &str, event: &str, n: usize| json!({ "topic": topic, "event": event, "payload": { "n": n } });
    // A publication to the whole scope can name only a channel without colons.
    let whole = event("private:test-app", "other:msg", 9);
    for (n, (path, body)) in [
        ("/api/publish", event("private:7:room", "msg", 0)),
        ("/api/publish", event("private:test-app:7:room", "msg", 1)),
        ("/api/publish/bulk", json!({ "events": [event("private:7:room", "msg", 2)] })),
        ("/api/publish/bulk", json!({ "events": [event("private:test-app:7:room", "msg", 3)] })),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(publish(&server, &app, path, body).await, published(), "{n}");
        heard_by_all(&mut sockets, n).await;
    }
    let body =
        json!({ "topic": "7:room", "scope": "private", "event": "msg", "payload": { "n": 4 } });
    server.trigger(&app, body).await;
    heard_by_all(&mut sockets, 4).await;
    for at in 0..sockets.len() {
        let (topic, event, ..) = sockets[at];
        // A channel with a colon in its name cannot be pushed to from the whole scope.
        if event == "msg" {
            let push = json!([null, "2", topic, "msg", { "n": at }]);
            sockets[at].3.push(push).await;
            heard_by_all(&mut sockets, at).await;
        }
    }
    assert_eq!(publish(&server, &app, "/api/publish", whole).await, published());
    for (topic, _, way, socket) in &mut sockets {
        if *topic == "private:test-app" {
            let expected = json!([null, null, topic, "other:msg", { "n": 9 }]);
            assert_eq!(socket.next().await, expected, "{way}");
        }
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_client_that_joined_by_both_names_hears_both_until_it_leaves_one() {
    let (server, app) = start();
    let (short, long) = ("public:web", "public:test-app:web");
    let done = async |n: usize| {
        let body = json!({ "topic": short, "event": "done", "payload": { "n": n } });
        assert_eq!(publish(&server, &app, "/api/publish", body).await, published());
    };
    let heard = |topic: &str, n: usize| json!([null, null, topic, "done", { "n": n }]);
    for way in WAYS {
        let mut socket = Socket::connect(&server, way).await;
        socket.join(short, json!({})).await;
        socket.join(long, json!({})).await;
        done(1).await;
        // Which of the two topics hears it first is not promised.
        let both = [socket.next().await, socket.next().await];
        let expected = [heard(short, 1), heard(long, 1)];
        assert!(expected.iter().all(|frame| both.contains(frame)), "{way}: {both:?}");
        // A leave is answered by a reply and a close.
        socket.push(json!(["1", "5", short, "phx_leave", {}])).await;
        for event in ["phx_reply", "phx_close"] {
            let frame = socket.next().await;
            assert_eq!((&frame[2], &frame[3]), (&json!(short), &json!(event)), "{way}");
        }
        done(2).await;
        assert_eq!(socket.next().await, heard(long, 2), "{way}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_tokens_patterns_cover_the_same_topics_in_either_spelling() {
    let (server, app) = start();
    let topics = [
        "private:room",
        "private:test-app:room",
        "private:test-app",
        "private:7:room",
        "private:test-app:7:room",
        "private:test-app:test-app",
        "private:test-app:test-app:room",
    ];
    let rooms = &topics[..2];
    let sevens = &topics[3..5];
    let channels = [rooms, &topics[3..]].concat();
    for (pattern, covered) in [
        ("private:*", &topics[..]),
        ("private:test-app:*", &channels[..]),
        ("private:test-app", &topics[2..3]),
        ("private:room", rooms),
        ("private:test-app:room", rooms),
        ("private:7:*", sevens),
        ("private:test-app:7:*", sevens),
        ("private:*:room", &[sevens, &topics[6..]].concat()),
        ("private:test-app:test-app", &topics[5..6]),
        ("private:test-app:test-app:*", &topics[6..]),
        ("private:other-app:*", &[]),
        ("private:", &[]),
    ] {
        let payload = json!({ "guardian_token": token(&app, &json!({ "listen": [pattern] })) });
        let publisher = token(&app, &json!({ "publish": [pattern] }));
        for topic in topics {
            let is_covered = covered.contains(&topic);
            let expected = match is_covered {
                true => json!({ "status": "ok", "response": { "message": "Joined" } }),
                false => json!({ "status": "error", "response": "authentication_required" }),
            };
            let mut socket = client(&server, V2).await;
            let reply = socket.try_join(topic, payload.clone()).await;
            assert_eq!(reply, expected, "{pattern} on {topic}");
            // A right to publish to the whole scope covers its channels.
            let may_publish = is_covered || pattern == "private:test-app";
            let call = request("POST", server.url("/api/publish")).bearer(&publisher);
            let answer = call.json(&json!({ "topic": topic, "event": "msg" })).send().await;
            let status = if may_publish { 200 } else { 403 };
            assert_eq!(answer.status, status, "{pattern} on {topic}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn a_client_pushes_in_the_spelling_that_it_joined_by_a_right_in_the_other() {
    let (server, app) = start();
    for (way, publish, topic, is_permitted) in WAYS.into_iter().flat_map(|way| {
        [
            (way, "private:room", "private:test-app:room", true),
            (way, "private:test-app:room", "private:room", true),
            (way, "private:test-app:*", "private:room", true),
            (way, "private:test-app", "private:room", true),
            (way, "private:*:room", "private:test-app:room", false),
            (way, "private:test-app:*", "private:test-app", false),
            (way, "private:*", "private:test-app", true),
        ]
    }) {
        let claims = json!({ "listen": ["private:*"], "publish": [publish] });
        let mut socket = Socket::connect(&server, way).await;
        socket.join(topic, json!({ "guardian_token": token(&app, &claims) })).await;
        socket.push(json!(["1", "2", topic, "msg", {}])).await;
        let told = match is_permitted {
            true => json!([null, null, topic, "msg", {}]),
            false => json!(["1", "2", topic, "phx_reply", { "status": "error", "response": {} }]),
        };
        let told = if way.starts_with('1') { without_join_ref(told) } else { told };
        assert_eq!(socket.next().await, told, "{publish} on {topic} {way}");
    }
}

/// A frame as version 1 has it.
fn without_join_ref(mut frame: Value) -> Value {
    frame[0] = Value::Null;
    frame
}

#[tokio::test]
async fn members_see_each_other_by_the_names_that_they_joined() {
    let (server, app) = start();
    let ticket = |sub: &str| {
        let claims = json!({ "sub": sub, "listen": ["presence:lobby"] });
        json!({ "guardian_token": token(&app, &claims) })
    };
    for way in WAYS {
        let mut ada = Socket::connect(&server, way).await;
        ada.join("presence:lobby", ticket("ada")).await;
        let state = ada.next().await;
        assert_eq!(
            json!([state[2], state[3], state[4]]),
            json!(["presence:lobby", "presence_state", {}])
        );
        assert_eq!(diff(&mut ada, "presence:lobby").await, (vec!["ada".to_owned()], vec![]));
        let mut bob = Socket::connect(&server, way).await;
        bob.join("presence:test-app:lobby", ticket("bob")).await;
        let state = bob.next().await;
        let named = json!(["presence:test-app:lobby", "presence_state"]);
        assert_eq!(json!([state[2], state[3]]), named, "{way}");
        assert_eq!(state[4].as_object().expect("keys").keys().collect::<Vec<_>>(), ["ada"]);
        let came = (vec!["bob".to_owned()], vec![]);
        assert_eq!(diff(&mut bob, "presence:test-app:lobby").await, came, "{way}");
        assert_eq!(diff(&mut ada, "presence:lobby").await, came, "{way}");
        ada.push(json!(["1", "2", "presence:lobby", "phx_leave", {}])).await;
        let left = (vec![], vec!["ada".to_owned()]);
        assert_eq!(diff(&mut bob, "presence:test-app:lobby").await, left, "{way}");
        bob.push(json!(["1", "2", "presence:test-app:lobby", "phx_leave", {}])).await;
        for event in ["phx_reply", "phx_close"] {
            assert_eq!(bob.next().await[3], event, "{way}");
        }
        bob.assert_quiet().await;
    }
}

/// The keys that joined and the keys that left, according to the next frame, a `presence_diff` on this topic.
async fn diff(socket: &mut Socket, topic: &str) -> (Vec<String>, Vec<String>) {
    let frame = socket.next().await;
    assert_eq!(json!([frame[2], frame[3]]), json!([topic, "presence_diff"]), "{frame}");
    let keys = |side: &str| {
        frame[4][side].as_object().expect("an object").keys().cloned().collect::<Vec<_>>()
    };
    (keys("joins"), keys("leaves"))
}

#[tokio::test]
async fn both_spellings_name_the_same_joins_in_queries_and_disconnects() {
    let (server, app) = start();
    let claims = json!({ "listen": ["private:*"] });
    let payload = json!({ "guardian_token": token(&app, &claims) });
    let call = async |method: &str, path: &str, body: Option<Value>| {
        let url = server.url(&format!("/api/apps/test-app{path}"));
        let call = request(method, url).basic(&app.key, &app.secret);
        let call = match &body {
            Some(body) => call.json(body),
            None => call,
        };
        let answer = call.send().await;
        (answer.status, answer.json())
    };
    let listed = |topic: &str, channel: Option<&str>, subscribers: usize| json!({ "topic": topic, "scope": "private", "channel": channel, "subscribers": subscribers });
    for ended in ["private:web", "private:test-app:web"] {
        let mut sockets = Vec::new();
        for way in WAYS {
            for topic in ["private:web", "private:test-app:web", "private:test-app"] {
                let mut socket = Socket::connect(&server, way).await;
                socket.join(topic, payload.clone()).await;
                sockets.push((topic, way, socket));
            }
        }
        let (whole, web) =
            (listed("private:test-app", None, 4), listed("private:web", Some("web"), 8));
        for (path, expected) in [
            ("/channels", json!({ "data": [whole, web], "next": null })),
            ("/channels?after=private:test-app", json!({ "data": [web], "next": null })),
            ("/channels?after=private:test-app:web", json!({ "data": [], "next": null })),
            ("/channels?limit=1", json!({ "data": [whole], "next": "private:test-app" })),
        ] {
            assert_eq!(call("GET", path, None).await, (200, expected), "{path}");
        }
        for (path, mut expected) in [("/channels/private", whole), ("/channels/private/web", web)] {
            let (status, answer) = call("GET", path, None).await;
            let position = &answer["data"]["position"];
            assert!(position.is_string(), "{path}: {answer}");
            expected["position"] = position.clone();
            assert_eq!((status, &answer), (200, &json!({ "data": expected })), "{path}");
        }
        let body = json!({ "topic": ended, "count": true });
        let answer = call("POST", "/disconnect", Some(body)).await;
        assert_eq!(answer, (200, json!({ "ended": 8 })), "{ended}");
        for (topic, way, socket) in &mut sockets {
            if *topic == "private:test-app" {
                socket.assert_quiet().await;
                continue;
            }
            let code = (!way.ends_with("polled")).then_some(1001);
            assert_eq!(socket.ended_with().await, code, "{topic} {way}");
        }
        let body = json!({ "topic": "private:test-app", "count": true });
        assert_eq!(call("POST", "/disconnect", Some(body)).await.1, json!({ "ended": 4 }));
    }
}

#[tokio::test]
async fn a_bulk_reaches_each_topic_in_order() {
    let (server, app) = start();
    let mut sockets = Vec::new();
    for topic in ["deploys:web", "private:123:456", "private:7:8"] {
        let mut socket = client(&server, V2).await;
        socket.join(topic, ticket(&app)).await;
        sockets.push((topic, socket));
    }
    let event = |n: usize| {
        let topic = sockets[n % 3].0;
        json!({ "topic": topic, "event": "msg", "payload": { "n": n } })
    };
    let events: Vec<_> = (0..99).map(event).collect();
    let body = json!({ "events": events });
    assert_eq!(publish(&server, &app, "/api/publish/bulk", body).await, published());
    for (nth, (topic, socket)) in sockets.iter_mut().enumerate() {
        for n in (nth..99).step_by(3) {
            let expected = format!(r#"[null,null,"{topic}","msg",{{"n":{n}}}]"#);
            assert_eq!(socket.frame().await, expected);
        }
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_join_of_an_invalid_topic_is_refused_as_unmatched() {
    let (server, app) = start();
    let unmatched = json!({ "status": "error", "response": { "reason": "unmatched topic" } });
    let topics = [
        "",
        "deploys",
        "deploys:",
        ":web",
        "de ploys:web",
        "deploys:#web",
        "deploys:a\tb",
        "deploys:test-app:",
        "deploys:test-app:#web",
    ];
    for topic in topics {
        for vsn in [V1, V2] {
            let mut socket = client(&server, vsn).await;
            assert_eq!(socket.try_join(topic, ticket(&app)).await, unmatched, "{topic:?}");
        }
        let body = json!({ "topic": topic, "event": "msg" });
        let (status, _) = publish(&server, &app, "/api/publish", body).await;
        assert_eq!(status, 422, "{topic:?}");
    }
}

#[tokio::test]
async fn another_app_of_the_database_has_no_part_in_it() {
    let (server, app) = start();
    let other = server.create_app(json!({ "name": "other-app" })).await;
    let mut socket = client(&server, V2).await;
    let by_other = json!({ "guardian_token": token(&other, &json!({ "listen": ["deploys:*"] })) });
    let bad = json!({ "status": "error", "response": { "error": "invalid_token" } });
    assert_eq!(socket.try_join("deploys:web", by_other).await, bad);
    socket.join("deploys:web", ticket(&app)).await;
    let body = json!({ "topic": "deploys:web", "event": "msg" });
    let (status, _) = publish(&server, &other, "/api/publish", body).await;
    assert_eq!(status, 401);
    let event = json!({ "topic": "web", "event": "msg", "scope": "deploys" });
    let call = request("POST", server.url("/api/apps/other-app/events"));
    let answer = call.basic(&other.key, &other.secret).json(&event).send().await;
    assert_eq!(answer.status, 401);
    socket.assert_quiet().await;
}

#[tokio::test]
async fn a_setting_that_names_no_active_app_is_told_at_the_start_and_for_each_join() {
    for (slug, found, why) in [
        ("no-app", "no app of this database", "there is no such app"),
        ("idle-app", "an inactive app", "the app is inactive"),
    ] {
        let process = Process::start(&[]);
        let idle = json!({ "name": "idle-app", "active": false });
        process.server.create_app(idle).await;
        let process = Process::start_in(process.crash(), &[("HERALD__SINGLE_APP", slug)]);
        process.until_logged(&format!(
            "single_app = \"{slug}\" names {found}: until there is an active app with this slug, no \
             topic can be joined and no trigger is accepted"
        ));
        for way in WAYS {
            let mut socket = Socket::connect(&process.server, way).await;
            let reply = socket.try_join("public:web", json!({})).await;
            let unmatched = json!({ "reason": "unmatched topic" });
            assert_eq!(reply, json!({ "status": "error", "response": unmatched }), "{slug} {way}");
        }
        process.until_logged(&format!(
            "refused a join of \"public:web\" from 127.0.0.1 at app {slug}, which single_app names: {why}"
        ));
        // The app is created while the server runs.
        if slug == "no-app" {
            process.server.create_app(json!({ "name": slug })).await;
            let mut socket = Socket::connect(&process.server, V2).await;
            socket.join("public:web", json!({})).await;
        }
    }
}
