//! Entries 142 to 163 of the protocol document of Pusher: triggers. Clients of Phoenix, which join the same topics,
//! show here which events arrive.

use serde_json::{Value, json};

use crate::support::{
    presence::{enter, ticket_of},
    pusher::{call, event, trigger},
    tokens::token,
    *,
};

/// A client that hears everything of a scope.
async fn listener(server: &TestServer, scope: &str) -> Socket {
    let mut socket = Socket::connect(server, V2).await;
    let topic = format!("{scope}:test-app");
    let claims = json!({ "listen": [topic] });
    let ticket = json!({ "guardian_token": token(&App::seeded(), &claims) });
    let reply = socket.try_join(&topic, ticket).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    socket
}

/// The event and the payload of the next frame.
async fn heard(socket: &mut Socket) -> (String, Value) {
    let frame = socket.next().await;
    (frame[3].as_str().expect("an event").to_owned(), frame[4].clone())
}

/// The answer to an event, or to any other body.
async fn answered(server: &TestServer, body: &Value) -> (u16, String) {
    call(server, "POST", "/events").json(body).outcome().await
}

async fn batch(server: &TestServer, events: Value) -> (u16, String) {
    call(server, "POST", "/batch_events").json(&json!({ "batch": events })).outcome().await
}

#[tokio::test]
async fn p142_p143_p161_each_channel_gets_the_event_once() {
    let server = TestServer::start();
    let mut public = listener(&server, "public").await;
    let mut private = listener(&server, "private").await;
    trigger(&server, event(&["a", "private-x", "b", "a", "private-encrypted-y"], r#"{"n" : 1.0}"#))
        .await;
    for name in ["a:msg", "b:msg"] {
        assert_eq!(heard(&mut public).await, (name.to_owned(), json!({ "n": 1.0 })));
    }
    for name in ["x:msg", "encrypted-y:msg"] {
        assert_eq!(heard(&mut private).await, (name.to_owned(), json!({ "n": 1.0 })));
    }
    let single = json!({ "name": "msg", "channel": "c", "data": "hello" });
    trigger(&server, single).await;
    assert_eq!(heard(&mut public).await, ("c:msg".to_owned(), json!({ "data": "hello" })));
    let both = json!({ "name": "msg", "channel": "c", "channels": ["d"], "data": "[1]" });
    trigger(&server, both).await;
    assert_eq!(heard(&mut public).await, ("d:msg".to_owned(), json!({ "data": "[1]" })));
    public.assert_quiet().await;
    private.assert_quiet().await;
}

#[tokio::test]
async fn p144_an_event_goes_to_one_hundred_channels_at_most() {
    let server = TestServer::start();
    let names = |count: usize| (0..count).map(|n| format!("c{n}")).collect::<Vec<_>>();
    let of = |count| json!({ "name": "msg", "channels": names(count), "data": "x" });
    assert_eq!(answered(&server, &of(100)).await, (200, "{}".to_owned()));
    let (status, text) = answered(&server, &of(101)).await;
    assert_eq!(
        (status, text.as_str()),
        (400, "channels has 101 channels, at most 100 may be given\n")
    );
    assert_eq!(answered(&server, &of(0)).await.0, 400);
}

#[tokio::test]
async fn half_of_a_surrogate_pair_is_told_apart_from_a_value_that_is_not_a_string() {
    let server = TestServer::start();
    let half = r#""\ud83d""#;
    for (name, data, more, text) in [
        (half, r#""x""#, "", "name is not valid text"),
        (r#""e""#, half, "", "data is not valid text"),
        (r#""e""#, "7", "", "data must be a string"),
        (r#""e""#, "null", "", "data must be a string"),
        (r#""e""#, r#""x""#, r#","info":"\ud83d""#, "info is not valid text"),
        (r#""e""#, r#""x""#, r#","info":7"#, "info must be a string"),
        (r#""e""#, r#""x""#, r#","socket_id":7"#, "socket_id must be two numbers with a dot"),
    ] {
        let body = format!(r#"{{"name":{name},"channel":"a","data":{data}{more}}}"#);
        let answer = call(&server, "POST", "/events").body(body.as_str()).outcome().await;
        assert_eq!(answer, (400, format!("{text}\n")), "{body}");
    }
}

#[tokio::test]
async fn p145_p146_p156_p149_an_event_that_is_not_valid_is_not_published() {
    let server = TestServer::start();
    let mut public = listener(&server, "public").await;
    let changed = |field: &str, value: Value| {
        let mut event = event(&["a"], "x");
        event[field] = value;
        event
    };
    let without = |field: &str| {
        let mut event = event(&["a"], "x");
        event.as_object_mut().expect("an object").remove(field);
        event
    };
    let long = "c".repeat(201);
    for body in [
        without("name"),
        changed("name", json!(7)),
        changed("name", json!("")),
        changed("name", json!("n".repeat(201))),
        changed("name", json!("pusher:x")),
        changed("name", json!("herald:position")),
        changed("name", json!("pusher_internal:member_added")),
        without("data"),
        changed("data", json!({ "an": "object" })),
        changed("data", Value::Null),
        without("channels"),
        changed("channels", json!("a")),
        changed("channels", json!(["a", 1])),
        changed("channels", json!(["a", "b c"])),
        changed("channels", json!(["a", "#foo"])),
        changed("channels", json!(["a", "private-"])),
        changed("channels", json!(["a", long])),
        changed("socket_id", json!("1.2.3")),
        changed("socket_id", json!("abc")),
        changed("socket_id", json!("1.")),
        changed("socket_id", json!(1.2)),
        changed("info", json!(["user_count"])),
        json!([]),
        json!("{}"),
        Value::Null,
    ] {
        let (status, text) = answered(&server, &body).await;
        assert_eq!(status, 400, "{body} {text}");
    }
    let (status, text) = answered(&server, &changed("name", json!("é".repeat(101)))).await;
    assert_eq!((status, text.trim_end()), (400, "name has more than 200 bytes"));
    for (name, data) in [("n".repeat(200), "x"), ("client-x".into(), ""), ("é".repeat(100), "x")] {
        let body = json!({ "name": name, "channel": "a", "data": data });
        assert_eq!(answered(&server, &body).await, (200, "{}".to_owned()), "{name}");
        let expected = json!({ "data": data });
        assert_eq!(heard(&mut public).await, (format!("a:{name}"), expected));
    }
    public.assert_quiet().await;
}

#[tokio::test]
async fn p147_p148_p160_the_data_of_an_event_has_10240_bytes_at_most() {
    let server = TestServer::start();
    let mut public = listener(&server, "public").await;
    let text = "The data content of this event exceeds the allowed maximum (10240 bytes)\n";
    let too_large = (413, text.to_owned());
    for (data, expected) in [
        ("x".repeat(10_240), (200, "{}".to_owned())),
        ("x".repeat(10_241), too_large.clone()),
        ("é".repeat(5_120), (200, "{}".to_owned())),
        (format!("{}x", "é".repeat(5_120)), too_large.clone()),
    ] {
        assert_eq!(answered(&server, &event(&["a"], &data)).await, expected);
        if expected.0 == 200 {
            assert_eq!(heard(&mut public).await.1, json!({ "data": data }));
        }
    }
    let item = |data: String| json!({ "name": "msg", "channel": "a", "data": data });
    let events = json!([item("x".into()), item("x".repeat(10_241)), item("x".into())]);
    assert_eq!(batch(&server, events).await, too_large);
    public.assert_quiet().await;
}

#[tokio::test]
async fn p151_a_socket_id_that_nobody_has_leaves_out_nobody() {
    let server = TestServer::start();
    let mut public = listener(&server, "public").await;
    for id in ["1.1", "123456.7654321", "99999999999999999999999999.1"] {
        let mut event = event(&["a"], "x");
        event["socket_id"] = json!(id);
        trigger(&server, event).await;
        assert_eq!(heard(&mut public).await.0, "a:msg", "{id}");
    }
}

#[tokio::test]
async fn p152_p153_p154_the_answer_says_what_is_asked_of_the_channels() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app:a", json!({})).await;
    let mut scope = listener(&server, "public").await;
    let (_one, ..) = enter(&server, V2, ticket_of("u1")).await;
    let (_again, ..) = enter(&server, V2, ticket_of("u1")).await;
    let channels = ["a", "empty", "presence-room", "presence-empty"];
    for (info, expected) in [
        (
            "subscription_count",
            json!({
                "a": { "subscription_count": 1 },
                "empty": { "subscription_count": 0 },
                "presence-room": { "subscription_count": 2 },
                "presence-empty": { "subscription_count": 0 },
            }),
        ),
        (
            "user_count,subscription_count",
            json!({
                "a": { "subscription_count": 1 },
                "empty": { "subscription_count": 0 },
                "presence-room": { "subscription_count": 2, "user_count": 1 },
                "presence-empty": { "subscription_count": 0, "user_count": 0 },
            }),
        ),
        (
            "user_count, nonsense",
            json!({
                "a": {},
                "empty": {},
                "presence-room": { "user_count": 1 },
                "presence-empty": { "user_count": 0 },
            }),
        ),
    ] {
        let mut event = event(&channels, "x");
        event["info"] = json!(info);
        let (status, text) = answered(&server, &event).await;
        let told: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((status, &told["channels"]), (200, &expected), "{info}");
        assert_eq!(heard(&mut scope).await.0, "a:msg");
        assert_eq!(heard(&mut scope).await.0, "empty:msg");
    }
}

#[tokio::test]
async fn p155_a_body_that_is_no_json_is_400() {
    let server = TestServer::start();
    for path in ["/events", "/batch_events"] {
        for body in ["{", "name=msg&channel=a&data=x", "{} {}", "", "\u{feff}{}"] {
            let (status, text) = call(&server, "POST", path).body(body).outcome().await;
            assert_eq!(status, 400, "{path} {body:?} {text}");
            assert!(!text.contains("name=msg"), "the body is not repeated: {text}");
        }
    }
}

#[tokio::test]
async fn p157_p158_p159_a_batch_is_published_in_its_order_and_has_ten_events_at_most() {
    let server = TestServer::start();
    let mut public = listener(&server, "public").await;
    let item = |n: usize| json!({ "name": format!("e{n}"), "channel": "a", "data": "{}" });
    let events = |count: usize| Value::from((0..count).map(item).collect::<Vec<_>>());
    assert_eq!(batch(&server, events(10)).await, (200, "{}".to_owned()));
    for n in 0..10 {
        assert_eq!(heard(&mut public).await.0, format!("a:e{n}"));
    }
    let (status, text) = batch(&server, events(11)).await;
    assert_eq!((status, text.as_str()), (400, "Batch too large: at most 10 events, not 11\n"));
    let mut asked = events(3);
    asked[1]["info"] = json!("subscription_count,user_count");
    let (status, text) = batch(&server, asked).await;
    let expected = r#"{"batch":[{},{"subscription_count":0},{}]}"#;
    assert_eq!((status, text.as_str()), (200, expected));
    for n in 0..3 {
        assert_eq!(heard(&mut public).await.0, format!("a:e{n}"));
    }
    let mut bad = events(3);
    bad[2]["channel"] = json!("b c");
    let mut plural = events(1);
    plural[0]["channels"] = json!(["a"]);
    for events in [bad, plural, json!([]), json!({}), json!(["a"]), Value::Null] {
        assert_eq!(batch(&server, events.clone()).await.0, 400, "{events}");
    }
    public.assert_quiet().await;
}

#[tokio::test]
async fn p162_p163_a_thousand_events_arrive_in_their_order_wherever_nobody_listens_too() {
    let server = TestServer::start();
    trigger(&server, event(&["nobody", "presence-nobody", "private-nobody"], "x")).await;
    let mut public = listener(&server, "public").await;
    let heard = tokio::spawn(async move {
        let mut names = Vec::new();
        for _ in 0..1_000 {
            names.push(heard(&mut public).await.0);
        }
        names
    });
    for n in 0..1_000 {
        trigger(&server, json!({ "name": format!("e{n}"), "channel": "a", "data": "{}" })).await;
    }
    let expected: Vec<_> = (0..1_000).map(|n| format!("a:e{n}")).collect();
    assert_eq!(heard.await.expect("the listener"), expected);
}

#[tokio::test]
async fn events_for_users_reach_no_topic() {
    let server = TestServer::start();
    let (mut public, mut private) =
        (listener(&server, "public").await, listener(&server, "private").await);
    trigger(&server, event(&["#server-to-user-12345"], "secret")).await;
    public.assert_quiet().await;
    private.assert_quiet().await;
    for topic in
        ["#user:test-app:user-12345", "#user:test-app", "public:test-app:#server-to-user-12345"]
    {
        let mut socket = Socket::connect(&server, V2).await;
        let claims = json!({ "listen": [topic, "#user:*"] });
        let ticket = json!({ "guardian_token": token(&App::seeded(), &claims) });
        let reply = socket.try_join(topic, ticket).await;
        assert_eq!(reply["response"]["reason"], "unmatched topic", "{topic} {reply}");
    }
}

#[tokio::test]
async fn a_trigger_is_counted_and_can_be_recovered() {
    let server = TestServer::start();
    let app = App::seeded();
    let get = async |path: &str| {
        let call = request("GET", server.url(path)).basic(&app.key, &app.secret);
        call.send().await.json()
    };
    let head = get("/api/apps/test-app/channels/public/a").await["data"]["position"].clone();
    trigger(&server, event(&["a", "b"], r#"{"n":1}"#)).await;
    let mut socket = Socket::connect(&server, V2).await;
    let reply = socket.try_join("public:test-app:a", json!({ "since": head })).await;
    assert_eq!(reply["response"]["recovery"]["replayed"], 1, "{reply}");
    assert_eq!(socket.next().await[4], json!({ "n": 1 }));
    let usage = get("/api/apps/test-app/usage").await;
    assert_eq!(usage["data"][0]["publications"], 2, "{usage}");
}
