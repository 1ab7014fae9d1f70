//! Section 14.9 of the protocol document: the requests of long-poll. The module `long_poll_sessions` tests how its
//! sessions live and end; `joining`, `pushing`, `leaving` and `broadcast` test the conversation over both
//! transports.

use std::time::{Duration, Instant};

use crate::support::{http::Answer, tokens::token, *};
use herald::app::origin::OriginPolicy;
use serde_json::{Value, json};

const PATH: &str = "/socket/longpoll";
const JOIN: &str = r#"["1","1","public:test-app","phx_join",{}]"#;
const JOINED: &str = r#"["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]"#;

fn push(n: u32) -> String {
    format!(r#"["1","{}","public:test-app","msg",{{"n":{n}}}]"#, n + 1)
}

fn event(n: u32) -> String {
    format!(r#"[null,null,"public:test-app","msg",{{"n":{n}}}]"#)
}

/// A session that has joined `public:test-app` and fetched the reply.
async fn joined(server: &TestServer) -> Poller {
    let mut poller = Poller::connect(server, V2).await;
    assert_eq!(poller.post(JOIN).await, 200);
    assert_eq!(poller.next().await.as_deref(), Some(JOINED));
    poller
}

/// The body of the answer to a request with this query; the HTTP status must be 200.
async fn fetched(server: &TestServer, query: &str) -> Value {
    let answer = get(server.url(&format!("{PATH}?{query}"))).await;
    assert_eq!(answer.status, 200, "{query}");
    answer.json()
}

fn has_new_session(body: &Value) -> bool {
    let token = body["token"].as_str().unwrap_or_default();
    !token.is_empty() && *body == json!({"status": 410, "token": token, "messages": []})
}

#[tokio::test]
async fn e128_a_client_without_a_token_gets_one() {
    let server = TestServer::start();
    for mount in ["/socket", "/events"] {
        for query in ["", "?vsn=1.0.0&", "?vsn=2.0.0", "?a=1&&b[c]=2&vsn=2.0.0&"] {
            let answer = get(server.url(&format!("{mount}/longpoll{query}"))).await;
            assert_eq!(answer.status, 200);
            assert!(has_new_session(&answer.json()), "{query}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn e129_messages_are_answered_in_the_next_poll_in_order() {
    let server = TestServer::start();
    let mut poller = Poller::connect(&server, V2).await;
    for message in [JOIN, &push(1), &push(2)] {
        assert_eq!(poller.post(message).await, 200);
    }
    let mut messages = Vec::new();
    // One fetch usually brings all three messages.
    while messages.len() < 3 {
        let mut answer = poller.fetch().await;
        let Value::Array(brought) = answer["messages"].take() else { panic!("{answer}") };
        assert!(!brought.is_empty());
        messages.extend(brought);
        assert_eq!(answer, json!({"status": 200, "token": poller.token, "messages": null}));
    }
    assert_eq!(messages, [JOINED.to_owned(), event(1), event(2)]);
}

#[tokio::test]
async fn e130_a_fetch_without_anything_to_bring_waits_for_its_window() {
    let window = Duration::from_secs(2);
    let server = TestServer::start_with(|settings| settings.socket.long_poll_window = window);
    let mut poller = joined(&server).await;
    for _ in 0..2 {
        let since = Instant::now();
        let empty = json!({"status": 204, "token": poller.token, "messages": []});
        assert_eq!(poller.fetch().await, empty);
        assert!(since.elapsed() >= window, "{:?}", since.elapsed());
    }
    assert_eq!(poller.post(&push(1)).await, 200);
    assert_eq!(poller.next().await, Some(event(1)), "the session has lived on");
}

#[tokio::test]
async fn e131_frames_that_arrive_during_a_poll_are_delivered_at_once() {
    // Longer than any answer may take.
    let server = TestServer::start_with(|settings| settings.socket.long_poll_window = 3 * DEADLINE);
    let mut poller = joined(&server).await;
    for n in 1..=5 {
        poller.park().await;
        assert_eq!(poller.post(&push(n)).await, 200);
        let body = json!({"status": 200, "token": poller.token, "messages": [event(n)]});
        assert_eq!(poller.parked().await, body);
        poller.park().await;
        let trigger = json!({"topic": "#general", "event": "msg", "payload": {"n": n}});
        server.trigger(&App::seeded(), trigger).await;
        assert_eq!(poller.parked().await, body);
    }
}

#[tokio::test]
async fn e132_e133_items_are_text_in_version_2_and_objects_in_version_1() {
    let payload = r#"{"z":1.50,"a":"\u00e9\"\\","o":{"b":[null]}}"#;
    let server = TestServer::start();
    for (vsn, message, item) in [
        (
            V2,
            format!(r#"["1","2","public:test-app","é:\"",{payload}]"#),
            json!(format!(r#"[null,null,"public:test-app","é:\"",{payload}]"#)).to_string(),
        ),
        (
            V1,
            format!(
                r#"{{"topic":"public:test-app","event":"é:\"","payload":{payload},"ref":"2"}}"#
            ),
            format!(
                r#"{{"topic":"public:test-app","event":"é:\"","ref":null,"payload":{payload}}}"#
            ),
        ),
    ] {
        let mut socket = Socket::polled(Poller::connect(&server, vsn).await, vsn);
        socket.join("public:test-app", json!({})).await;
        let mut poller = socket.into_poller();
        assert_eq!(poller.post(&message).await, 200);
        // Another version, or none, in a later request changes nothing: the session has its own.
        for query in ["", "vsn=1.0.0&", "vsn=2.0.0&", "vsn=nonsense&"] {
            let (token, path) = (&poller.token, format!("{PATH}?{query}token={}", poller.token));
            let body = get(server.url(&path)).await.body;
            assert_eq!(body, format!(r#"{{"status":200,"token":"{token}","messages":[{item}]}}"#));
            assert_eq!(poller.post(&message).await, 200);
        }
    }
}

#[tokio::test]
async fn e135_a_version_that_is_not_spoken_is_403() {
    let server = TestServer::start();
    for vsn in ["123.1.1", "2", "", "1.1.0", "2.0.0-rc.1", "02.0.0"] {
        let body = fetched(&server, &format!("vsn={vsn}")).await;
        assert_eq!(body, json!({"status": 403}), "{vsn:?}");
    }
    assert_eq!(fetched(&server, "vsn[]=2.0.0").await, json!({"status": 403}));
}

#[tokio::test]
async fn e136_a_foreign_page_is_403_for_every_request() {
    let server = TestServer::start_with(|settings| {
        let own = ["//own.example".to_owned()];
        settings.socket.check_origin = OriginPolicy::parse(&own, "localhost").expect("a policy");
    });
    let poller = joined(&server).await;
    let token = &poller.token;
    for origin in ["http://foreign.example", "null", "", "file://"] {
        for method in ["GET", "POST", "OPTIONS"] {
            for query in ["vsn=2.0.0&".to_owned(), format!("vsn=2.0.0&token={token}")] {
                let url = server.url(&format!("{PATH}?{query}"));
                let call = request(method, url).header("origin", origin);
                let answer = call.send().await;
                let found = (answer.status, answer.body.as_str());
                assert_eq!(found, (200, r#"{"status":403}"#), "{method} {origin:?}");
            }
        }
    }
    for origin in ["https://own.example", "http://own.example:8080"] {
        let url = server.url(&format!("{PATH}?vsn=2.0.0&"));
        let answer = request("GET", url).header("origin", origin).send().await;
        assert!(has_new_session(&answer.json()), "{origin}: {}", answer.body);
    }
}

#[tokio::test]
async fn e137_e138_an_invalid_token_posts_nothing_and_opens_a_session() {
    let server = TestServer::start();
    let mut other = TestServer::start();
    let foreign = Poller::connect(&other, V2).await.token;
    other.stop();
    let ours = Poller::connect(&server, V2).await.token;
    let cut = &ours[..ours.len() - 1];
    for token in ["", "bogus", "a.b", &foreign, cut, &format!("{ours}x")] {
        let url = server.url(&format!("{PATH}?vsn=2.0.0&token={token}"));
        let answer = request("POST", url).body(JOIN).send().await;
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"status":410}"#), "{token}");
        let body = fetched(&server, &format!("vsn=2.0.0&token={token}")).await;
        assert!(has_new_session(&body), "{token}: {body}");
    }
    let answer = request("POST", server.url(PATH)).body(JOIN).send().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"status":410}"#));
    assert!(has_new_session(&fetched(&server, "vsn=2.0.0&token[a]=b").await));
}

#[tokio::test]
async fn e139_an_apps_own_token_param_stays_its_own() {
    let server = TestServer::start();
    let claims = json!({"listen": ["private:*"]});
    let jwt = token(&App::seeded(), &claims);
    let path = format!("{PATH}?guardian_token={jwt}&token=APP&vsn=2.0.0&");
    let mut poller = Poller::open(&server, &path).await;
    assert_eq!(poller.post(r#"["1","1","private:test-app","phx_join",{}]"#).await, 200);
    let reply = r#"["1","1","private:test-app","phx_reply",{"status":"ok","response":{"message":"Joined"}}]"#;
    assert_eq!(poller.next().await.as_deref(), Some(reply), "params of the first request count");
}

#[tokio::test]
async fn e140_e141_e142_the_token_may_come_by_header_which_wins() {
    const HEADER: &str = "X-Phoenix-Longpoll-Token";
    let server = TestServer::start();
    let mut poller = joined(&server).await;
    let token = poller.token.clone();
    let fetch = async |query: &str, header: Option<&str>| -> Value {
        let call = request("GET", server.url(&format!("{PATH}?vsn=2.0.0&{query}")));
        let call = header.into_iter().fold(call, |call, header| call.header(HEADER, header));
        call.send().await.json()
    };
    let by_param = format!("token={token}");
    for (case, query, header) in [
        ("param", by_param.as_str(), None),
        ("header", "", Some(token.as_str())),
        ("header over another param", "token=bogus", Some(&token)),
    ] {
        let call = request("POST", server.url(&format!("{PATH}?{query}")));
        let call = header.into_iter().fold(call, |call, header| call.header(HEADER, header));
        assert_eq!(call.body(push(1)).send().await.body, r#"{"status":200}"#, "{case}");
        let body = json!({"status": 200, "token": token, "messages": [event(1)]});
        assert_eq!(fetch(query, header).await, body, "{case}");
    }
    assert!(has_new_session(&fetch(&by_param, Some("bogus")).await), "an invalid header wins, too");
    let late = format!("token=bogus&{by_param}");
    assert_eq!(poller.post(&push(2)).await, 200);
    assert_eq!(fetch(&late, None).await["status"], 200, "of two params the last counts");
}

#[tokio::test]
async fn e143_a_message_that_leads_nowhere_was_dispatched_all_the_same() {
    let server = TestServer::start();
    let mut poller = Poller::connect(&server, V2).await;
    assert_eq!(poller.post(r#"["1","1","nomatch","phx_join",{}]"#).await, 200);
    assert_eq!(poller.post(r#"["1","2","private:test-app","phx_join",{}]"#).await, 200);
    let unmatched = r#"[null,"1","nomatch","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]"#;
    let denied = r#"["1","2","private:test-app","phx_reply",{"status":"error","response":"authentication_required"}]"#;
    let body = json!({"status": 200, "token": poller.token, "messages": [unmatched, denied]});
    assert_eq!(poller.fetch().await, body);
}

/// The next messages of a session.
async fn take(poller: &mut Poller, count: usize) -> Vec<String> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(poller.next().await.expect("a session"));
    }
    taken
}

#[tokio::test]
async fn e144_e147_the_lines_of_a_batch_are_taken_in_order() {
    let server = TestServer::start();
    for (case, batch) in [
        ("bare", [push(1), push(2), push(3)].join("\n")),
        ("CRLF", [push(1), push(2), push(3)].join("\r\n")),
        ("trailing newline", format!("{}\n{}\r\n{}\n", push(1), push(2), push(3))),
        ("empty lines", format!("\n\n{}\r\n\r\n{}\n\n\n{}\r\n", push(1), push(2), push(3))),
    ] {
        let mut poller = joined(&server).await;
        assert_eq!(poller.post_batch(&batch).await, 200, "{case}");
        let expected = [event(1), event(2), event(3)];
        assert_eq!(take(&mut poller, 3).await, expected, "{case}");
    }
    let stale = r#"["0","9","public:test-app","msg",{"n":9}]"#.to_owned();
    let mut poller = joined(&server).await;
    assert_eq!(poller.post_batch(&[push(1), stale, push(2)].join("\n")).await, 200);
    assert_eq!(take(&mut poller, 2).await, [event(1), event(2)]);
    assert_eq!(poller.post_batch("").await, 200, "an empty batch is accepted");
}

#[tokio::test]
async fn e146_of_a_batch_the_first_hundred_lines_count() {
    let server = TestServer::start();
    let mut poller = joined(&server).await;
    let lines: Vec<_> = (1..=120).map(push).collect();
    assert_eq!(poller.post_batch(&lines.join("\n")).await, 200);
    assert_eq!(poller.post(&push(1_000)).await, 200);
    let expected: Vec<_> = (1..=100).chain([1_000]).map(event).collect();
    assert_eq!(take(&mut poller, 101).await, expected);
}

#[tokio::test]
async fn e148_a_body_of_any_other_type_is_one_message() {
    let server = TestServer::start();
    let mut poller = joined(&server).await;
    for (n, content_type) in [
        None,
        Some(""),
        Some("application/json"),
        Some("text/plain"),
        Some("text/plain;charset=UTF-8"),
        Some("application/x-www-form-urlencoded"),
        Some("application/x-ndjson; charset=utf-8"),
        Some("nonsense"),
    ]
    .into_iter()
    .enumerate()
    {
        let n = u32::try_from(n).expect("few");
        let answer = poller.post_raw(content_type, push(n).as_bytes()).await;
        assert_eq!(answer, (200, r#"{"status":200}"#.to_owned()), "{content_type:?}");
        assert_eq!(poller.next().await, Some(event(n)), "{content_type:?}");
    }
}

fn is_open_to_all(answer: &Answer) -> bool {
    answer.header("cache-control") == Some("no-store")
        && answer.header("access-control-allow-origin") == Some("*")
        && answer.header("access-control-allow-credentials").is_none()
}

#[tokio::test]
async fn e153_no_answer_is_kept_and_any_page_may_read_it() {
    let server = TestServer::start();
    let gone = Poller::connect(&server, V2).await;
    for (method, query, status) in [
        ("GET", "vsn=2.0.0&".to_owned(), 410),
        ("GET", "vsn=9.0.0".to_owned(), 403),
        ("POST", "vsn=2.0.0&token=bogus".to_owned(), 410),
        ("POST", format!("vsn=2.0.0&token={}", gone.token), 200),
        ("GET", format!("vsn=2.0.0&token={}", gone.token), 200),
    ] {
        let mut call = request(method, server.url(&format!("{PATH}?{query}")));
        if method == "POST" {
            call = call.body(r#"[null,"1","phoenix","heartbeat",{}]"#);
        }
        let answer = call.send().await;
        assert_eq!((answer.status, &answer.json()["status"]), (200, &json!(status)), "{query}");
        assert!(is_open_to_all(&answer), "{method} {query}: {:?}", answer.headers);
        let content_type = answer.header("content-type");
        assert_eq!(content_type, Some("application/json; charset=utf-8"), "{query}");
    }
}

#[tokio::test]
async fn e154_a_preflight_is_granted_what_it_asks_for_and_opens_nothing() {
    let server = TestServer::start_with(|settings| settings.limits.sessions_max = Some(1));
    for asked in [None, Some("content-type"), Some("x-phoenix-authtoken,content-type")] {
        let call = request("OPTIONS", server.url(&format!("{PATH}?vsn=2.0.0&")));
        let call = call.header("origin", "https://anywhere.example");
        let call = call.header("access-control-request-method", "POST");
        let asks =
            |call: http::Request, asked| call.header("access-control-request-headers", asked);
        let answer = asked.into_iter().fold(call, asks).send().await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        assert!(is_open_to_all(&answer), "{:?}", answer.headers);
        for (header, expected) in [
            ("access-control-allow-headers", asked),
            ("access-control-allow-methods", Some("get, post, options")),
            ("access-control-max-age", Some("3600")),
        ] {
            assert_eq!(answer.header(header), expected, "{header}");
        }
    }
    assert!(has_new_session(&fetched(&server, "vsn=2.0.0&").await), "the only place is free");
}

#[tokio::test]
async fn e155_other_methods_are_400() {
    let server = TestServer::start();
    let poller = Poller::connect(&server, V2).await;
    for method in ["PUT", "DELETE", "HEAD", "PATCH", "TRACE", "PROPFIND"] {
        let url = server.url(&format!("{PATH}?vsn=2.0.0&token={}", poller.token));
        let answer = request(method, url).send().await;
        assert_eq!((answer.status, answer.body.as_str()), (400, ""), "{method}");
        assert!(is_open_to_all(&answer), "{method}");
    }
}

#[tokio::test]
async fn e157_the_auth_token_of_the_first_request_is_the_joins() {
    let server = TestServer::start();
    let jwt = token(&App::seeded(), &json!({"listen": ["private:*"]}));
    let (path, header) = (format!("{PATH}?vsn=2.0.0&"), format!("x-phoenix-authtoken: {jwt}\r\n"));
    let with = Poller::open_with(&server, &path, &header).await;
    let without = Poller::open(&server, &path).await;
    let joined = json!({"status": "ok", "response": {"message": "Joined"}});
    let denied = json!({"status": "error", "response": "authentication_required"});
    for (poller, expected) in [(with, joined), (without, denied)] {
        let mut socket = Socket::polled(poller, V2);
        assert_eq!(socket.try_join("private:test-app", json!({})).await, expected);
    }
}
