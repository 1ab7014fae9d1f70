//! Each refusal is counted, and a line in the log says why, once per app, reason and interval. The client is not
//! told the exact reason.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{
    figures::{Figures, becomes},
    server::ADMIN,
    tokens::{signed, token},
    *,
};

const GUARDIAN_SECRET: &str = "the operator's own key, for all!";

/// The beginning of a line of this kind, after its time.
const TRACE: &str = "INFO  herald::app::refusals: ";

/// A server with one worker thread, which handles one request after the other. It has an inactive app, and an app
/// that takes no client events.
async fn start(env: &[(&str, &str)]) -> Process {
    let common = [("GUARDIAN_SECRET", GUARDIAN_SECRET), ("HERALD__SERVER__WORKERS", "1")];
    let process = Process::start(&[&common, env].concat());
    process.server.create_app(json!({"name": "idle-app", "active": false})).await;
    process.server.create_app(json!({"name": "silent-app", "client_events": "none"})).await;
    process
}

/// The refusals in these lines of a log, without their times.
fn traces(log: &[String]) -> Vec<&str> {
    log.iter().filter_map(|line| Some(line.split_once(TRACE)?.1)).collect()
}

/// Stops a server, and answers all that it has logged.
fn end(mut process: Process) -> Vec<String> {
    process.signal("TERM");
    assert!(process.ended().success());
    process.rest_of_log()
}

/// Tokens that the seeded app refuses: each with the error that clients are told, the label of the metric, and the
/// words in the log.
fn bad_tokens() -> [(String, &'static str, &'static str, &'static str); 9] {
    let app = &App::seeded();
    let listen = json!({"listen": ["private:*"], "publish": ["private:*"]});
    let with = |name: &str, value: Value| {
        let mut claims = listen.clone();
        claims[name] = value;
        claims
    };
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#);
    [
        ("x".repeat(9_000), "invalid_token", "token_too_long", "the token is too long"),
        ("a-bad-one".into(), "invalid_token", "token_malformed", "the token is malformed"),
        (
            format!("{header}.e30.c2lnbmVk"),
            "invalid_token",
            "token_unsupported",
            "the token is not a plain HS256 or HS512 token",
        ),
        (
            signed("another secret", &listen),
            "invalid_token",
            "token_forged",
            "the token is forged, or signed with another secret",
        ),
        (
            signed(GUARDIAN_SECRET, &listen),
            "invalid_token",
            "token_not_shared",
            "the token is valid with GUARDIAN_SECRET, but the app does not have shared_tokens",
        ),
        (
            token(app, &with("exp", json!(1_700_000_000_000_u64))),
            "token_time_not_in_seconds",
            "token_not_in_seconds",
            "the token's times are not in seconds",
        ),
        (
            token(app, &with("exp", json!(1))),
            "token_expired",
            "token_expired",
            "the token has expired",
        ),
        (
            token(app, &with("nbf", json!(100_000_000_000_u64))),
            "token_not_yet_valid",
            "token_not_yet_valid",
            "the token is not valid yet",
        ),
        (
            token(app, &with("aud", json!("csrf"))),
            "invalid_csrf",
            "token_without_csrf",
            "the token needs its CSRF token, which is missing or does not fit",
        ),
    ]
}

/// The series that counts refusals for a reason.
fn series(reason: &str) -> String {
    format!(r#"herald_refusals_total{{reason="{reason}"}}"#)
}

/// Checks that no part of a token is in the log.
fn assert_secret(log: &[String], tokens: &[String]) {
    for token in tokens {
        for part in token.split('.').filter(|part| part.len() > 4) {
            assert!(!log.iter().any(|line| line.contains(part)), "{part} is in {log:#?}");
        }
    }
}

#[tokio::test]
async fn a_join_that_is_refused_leaves_a_line_and_a_count_for_its_reason_over_every_transport() {
    for way in [V1, V2_POLLED] {
        let process = start(&[]).await;
        let server = &process.server;
        let mut socket = Socket::connect(server, way).await;
        let elsewhere = token(&App::seeded(), &json!({"listen": ["private:test-app:other"]}));
        let (topic, unmatched) = ("private:test-app:room", json!({"reason": "unmatched topic"}));
        let required = json!("authentication_required");
        let none = String::new();
        let mut cases = vec![
            (
                "private:nobody:room",
                none.clone(),
                unmatched.clone(),
                "unknown_app",
                "there is no such app",
            ),
            (
                "private:idle-app",
                none.clone(),
                unmatched.clone(),
                "inactive_app",
                "the app is inactive",
            ),
            (
                topic,
                none,
                required.clone(),
                "no_token",
                "the scope needs a token, and none was sent",
            ),
            (
                topic,
                elsewhere,
                required,
                "not_permitted",
                "the token's `listen` does not permit this topic",
            ),
        ];
        for (token, told, label, words) in bad_tokens() {
            cases.push((topic, token, json!({"error": told}), label, words));
        }
        let mut expected = Vec::new();
        for (topic, token, told, _, words) in &cases {
            let app = topic.split(':').nth(1).expect("an app");
            let app = if app == "nobody" { "\"nobody\"" } else { app };
            expected
                .push(format!("refused a join of {topic:?} from 127.0.0.1 at app {app}: {words}"));
            // The second refusal leaves no line, because it comes within the same minute.
            for _ in 0..2 {
                let reply = socket.try_join(topic, json!({"guardian_token": token})).await;
                assert_eq!(reply["response"], *told, "{words}");
            }
        }
        let reply = socket.try_join("nonsense", json!({})).await;
        assert_eq!(reply["response"], unmatched);
        let figures = Figures::of(server).await;
        for (.., label, _) in &cases {
            assert_eq!(figures.get(&series(label)), 2.0, "{label}");
        }
        for (outcome, expected) in [
            ("unmatched_topic", 1.0),
            ("unknown_app", 2.0),
            ("inactive_app", 2.0),
            ("no_token", 2.0),
            ("not_permitted", 2.0),
            ("bad_token", 18.0),
        ] {
            let joins = format!(r#"herald_joins_total{{outcome="{outcome}"}}"#);
            assert_eq!(figures.get(&joins), expected, "{outcome}");
        }
        drop(socket);
        let log = end(process);
        assert_eq!(traces(&log), expected, "{way}");
        let tokens: Vec<_> = cases.into_iter().map(|(_, token, ..)| token).collect();
        assert_secret(&log, &tokens);
    }
}

#[tokio::test]
async fn a_handshake_whose_token_cannot_be_decoded_leaves_a_line_and_a_count() {
    let process = start(&[]).await;
    let path = "/socket/websocket?vsn=2.0.0&csrf_token=query";
    for offered in ["phoenix, base64url.bearer.phx.!", "mqtt"] {
        let headers = [("sec-websocket-protocol", offered)];
        assert_eq!(Socket::refused(&process.server, path, &headers).await.0, 403, "{offered}");
    }
    let figures = Figures::of(&process.server).await;
    assert_eq!(figures.get(&series("token_malformed")), 1.0);
    let expected = r#"refused GET "/socket/websocket" from 127.0.0.1: the token is malformed"#;
    assert_eq!(traces(&end(process)), [expected]);
}

#[tokio::test]
async fn a_push_that_is_not_permitted_leaves_a_line_and_a_count() {
    let process = start(&[]).await;
    let server = &process.server;
    server.create_app(json!({"name": "foo-app"})).await;
    let mut socket = Socket::connect(server, V2).await;
    for topic in ["public:foo-app", "public:silent-app:room"] {
        socket.join(topic, json!({})).await;
        socket.push(json!(["1", "2", topic, "msg", {}])).await;
        let reply = socket.next().await;
        assert_eq!(reply[4], json!({"status": "error", "response": {}}), "{topic}");
    }
    let figures = Figures::of(server).await;
    for reason in ["publish_not_permitted", "no_client_events"] {
        assert_eq!(figures.get(&series(reason)), 1.0, "{reason}");
    }
    drop(socket);
    assert_eq!(
        traces(&end(process)),
        [
            r#"refused a push to "public:foo-app" from 127.0.0.1 at app foo-app: no `publish` of a token permits this topic"#,
            r#"refused a push to "public:silent-app:room" from 127.0.0.1 at app silent-app: the app takes no client events"#,
        ]
    );
}

/// A call of the API, the status of its answer, the label of the metric, and the line in the log.
struct Call {
    request: http::Request,
    status: u16,
    label: &'static str,
    line: String,
}

/// Makes each call in turn, and checks its status, its count and its line.
async fn assert_traces(process: Process, calls: Vec<Call>, tokens: &[String]) {
    let mut expected = Vec::new();
    for Call { request, status, label, line } in calls {
        let before = Figures::of(&process.server).await.get(&series(label));
        let answer = request.send().await;
        assert_eq!(answer.status, status, "{line}: {}", answer.body);
        if status == 401 {
            assert_eq!(answer.json(), json!({"errors": {"detail": "authentication required"}}));
        }
        // The refusal may be counted a moment after the answer has arrived.
        becomes(&process.server, &series(label), before + 1.0).await;
        expected.push(line);
    }
    let log = end(process);
    assert_eq!(traces(&log), expected);
    assert_secret(&log, tokens);
}

#[tokio::test]
async fn a_call_for_an_app_in_the_path_that_is_refused_leaves_a_line_and_a_count_for_its_reason() {
    let process = start(&[]).await;
    let App { key, secret, .. } = App::seeded();
    let event = json!({"topic": "room", "event": "msg", "scope": "private"});
    let post = |path: &str| request("POST", process.server.url(path)).json(&event);
    let events = |slug: &str| post(&format!("/api/apps/{slug}/events?x=query"));
    let line = |path: &str, app: &str, words: &str| {
        format!("refused POST {path:?} from 127.0.0.1 at app {app}: {words}")
    };
    let of_events = |words: &str| line("/api/apps/test-app/events", "test-app", words);
    let mut calls = vec![
        Call {
            request: events("test-app"),
            status: 401,
            label: "no_credentials",
            line:
                "refused POST \"/api/apps/test-app/events\" from 127.0.0.1: there is not exactly \
                   one Authorization header"
                    .into(),
        },
        Call {
            request: events("test-app").basic(&key, "wrong"),
            status: 401,
            label: "wrong_credentials",
            line: of_events("wrong key or secret"),
        },
        Call {
            request: events("nobody").basic(&key, &secret),
            status: 401,
            label: "unknown_app",
            line: line("/api/apps/nobody/events", "\"nobody\"", "there is no such app"),
        },
        Call {
            request: events("idle-app").basic(&key, &secret),
            status: 401,
            label: "inactive_app",
            line: line("/api/apps/idle-app/events", "idle-app", "the app is inactive"),
        },
        Call {
            request: post("/api/apps/silent-app/disconnect").basic(&key, &secret),
            status: 401,
            label: "wrong_credentials",
            line: line("/api/apps/silent-app/disconnect", "silent-app", "wrong key or secret"),
        },
    ];
    let mut tokens = vec![secret.clone()];
    for (token, _, label, words) in bad_tokens() {
        let request = events("test-app").bearer(&token);
        calls.push(Call { request, status: 401, label, line: of_events(words) });
        tokens.push(token);
    }
    let elsewhere = token(&App::seeded(), &json!({"publish": ["private:test-app:other"]}));
    calls.push(Call {
        request: events("test-app").bearer(&elsewhere),
        status: 403,
        label: "publish_not_permitted",
        line: "refused POST \"/api/apps/test-app/events\" to \"room\" from 127.0.0.1 at app \
               test-app: no `publish` of a token permits this topic"
            .into(),
    });
    assert_traces(process, calls, &tokens).await;
}

#[tokio::test]
async fn a_call_that_names_its_app_in_the_body_leaves_a_line_and_a_count_for_its_reason() {
    let process = start(&[]).await;
    let secret = App::seeded().secret;
    let publish = |topic: &str| {
        let event = json!({"topic": topic, "event": "msg"});
        request("POST", process.server.url("/api/publish")).json(&event)
    };
    let topic = "private:test-app:room";
    let before_body =
        |words: &str| format!("refused POST \"/api/publish\" from 127.0.0.1: {words}");
    let after_body = |topic: &str, app: &str, words: &str| {
        format!("refused POST \"/api/publish\" to {topic:?} from 127.0.0.1 at app {app}: {words}")
    };
    let mut calls = vec![
        Call {
            request: publish(topic),
            status: 401,
            label: "no_credentials",
            line: before_body("there is not exactly one Authorization header"),
        },
        Call {
            request: publish(topic).header("authorization", "wrong"),
            status: 401,
            label: "wrong_credentials",
            line: before_body("wrong key or secret"),
        },
        Call {
            request: publish("private:nobody").header("authorization", &secret),
            status: 401,
            label: "unknown_app",
            line: after_body("private:nobody", "\"nobody\"", "there is no such app"),
        },
        Call {
            request: publish("private:idle-app").header("authorization", &secret),
            status: 401,
            label: "inactive_app",
            line: after_body("private:idle-app", "idle-app", "the app is inactive"),
        },
        Call {
            request: publish("private:silent-app").header("authorization", &secret),
            status: 401,
            label: "wrong_credentials",
            line: after_body("private:silent-app", "silent-app", "wrong key or secret"),
        },
    ];
    let mut tokens = vec![secret.clone()];
    for (token, _, label, words) in bad_tokens() {
        let request = publish(topic).bearer(&token);
        // This token is valid with GUARDIAN_SECRET, so the server reads the body, which names the app.
        let line = match label {
            "token_not_shared" => after_body(topic, "test-app", words),
            _ => before_body(words),
        };
        calls.push(Call { request, status: 401, label, line });
        tokens.push(token);
    }
    let elsewhere = token(&App::seeded(), &json!({"publish": ["private:test-app:other"]}));
    calls.push(Call {
        request: publish(topic).bearer(&elsewhere),
        status: 403,
        label: "publish_not_permitted",
        line: after_body(topic, "test-app", "no `publish` of a token permits this topic"),
    });
    let bulk = json!({"events": [
        {"topic": "private:silent-app:a", "event": "msg"},
        {"topic": "private:silent-app:b", "event": "msg"},
    ]});
    let silent = process.server.admin("GET", "/api/admin/apps/silent-app", None).await.json();
    let silent = silent["data"]["secret"].as_str().expect("a secret").to_owned();
    let visitor = signed(&silent, &json!({"publish": ["private:*"]}));
    let url = process.server.url("/api/publish/bulk");
    calls.push(Call {
        request: request("POST", url).json(&bulk).bearer(&visitor),
        status: 403,
        label: "no_client_events",
        line: "refused POST \"/api/publish/bulk\" to \"private:silent-app:a\" from 127.0.0.1 at \
               app silent-app: the app takes no client events"
            .into(),
    });
    tokens.push(visitor);
    assert_traces(process, calls, &tokens).await;
}

#[tokio::test]
async fn the_next_line_tells_how_many_refusals_came_since_the_last_one() {
    let process = start(&[("HERALD__LOG__REFUSAL_INTERVAL", "500ms")]).await;
    let mut socket = Socket::connect(&process.server, V2).await;
    let mut lines = Vec::new();
    let mut tried = 0;
    let third_line = async {
        while lines.len() < 3 {
            socket.try_join(&format!("private:test-app:{tried}"), json!({})).await;
            tried += 1;
            lines.extend(process.logged(TRACE, 0));
        }
    };
    timeout(DEADLINE, third_line).await.expect("lines in time");
    let mut last = None;
    for line in traces(&lines) {
        // Each join is of another topic, so a line shows which refusal it is about.
        let nth = line.split(['"', ':']).nth(3).and_then(|nth| nth.parse::<usize>().ok());
        let nth = nth.unwrap_or_else(|| panic!("a number in {line}"));
        let more = match last {
            None => String::new(),
            Some(last) => format!(" (and {} more since the last line)", nth - last - 1),
        };
        let expected = format!(
            "refused a join of \"private:test-app:{nth}\" from 127.0.0.1 at app test-app: the \
             scope needs a token, and none was sent{more}"
        );
        assert_eq!(line, expected);
        last = Some(nth);
    }
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_lines_name_the_clients_own_address() {
    let process = start(&[("HERALD__SERVER__TRUSTED_PROXIES", "127.0.0.1")]).await;
    let server = &process.server;
    let forwarded = ("x-forwarded-for", "2001:db8::7");
    let path = format!("/socket/websocket?vsn={V2}");
    let opened = Socket::open_with(server, &path, &[forwarded]).await;
    let mut socket = opened.expect("let in").0;
    socket.try_join("private:test-app", json!({})).await;
    let header = format!("{}: {}\r\n", forwarded.0, forwarded.1);
    let poller = Poller::open_with(server, "/socket/longpoll?vsn=2.0.0&", &header).await;
    let mut polled = Socket::polled(poller, V2);
    polled.try_join("private:silent-app", json!({})).await;
    let call = request("POST", server.url("/api/apps/test-app/events"));
    let call = call.header(forwarded.0, forwarded.1).basic("test-app-fake-key", ADMIN.1);
    assert_eq!(call.send().await.status, 401);
    becomes(server, &series("wrong_credentials"), 1.0).await;
    drop((socket, polled));
    assert_eq!(
        traces(&end(process)),
        [
            r#"refused a join of "private:test-app" from 2001:db8::7 at app test-app: the scope needs a token, and none was sent"#,
            r#"refused a join of "private:silent-app" from 2001:db8::7 at app silent-app: the scope needs a token, and none was sent"#,
            r#"refused POST "/api/apps/test-app/events" from 2001:db8::7 at app test-app: wrong key or secret"#,
        ]
    );
}

/// The lines about refused origins, from the name of the origin on.
fn origin_lines(log: &[String]) -> Vec<&str> {
    let lines = log.iter().filter_map(|line| line.split_once("WARN  herald::app::refusals: "));
    lines.map(|(_, line)| line).collect()
}

const PATH: &str = "/socket/websocket?vsn=2.0.0";

#[tokio::test]
async fn an_origin_refused_at_the_handshake_leaves_a_line_with_a_change_that_lets_it_in() {
    let none = "no entry can name it, so only socket.check_origin = false lets it in";
    let list = "to let it in, add it to the setting socket.check_origin";
    let host = "to let it in, set server.public_host to its host, or replace \
                socket.check_origin = true by a list of origins";
    let connection = "to let it in, replace socket.check_origin = \"conn\" by a list of origins";
    for (policy, advice) in [("//a.example", list), ("true", host), ("conn", connection)] {
        let process = start(&[("HERALD__SOCKET__CHECK_ORIGIN", policy)]).await;
        let named = ["https://b.example", "http://[2001:db8::1]:8080", "capacitor://b.example"];
        let unnamed = ["null", "", "file://", "https://b.example/path", "about:blank"];
        for origin in named.into_iter().chain(unnamed) {
            for _ in 0..2 {
                let headers = [("origin", origin)];
                assert_eq!(Socket::refused(&process.server, PATH, &headers).await.0, 403);
            }
        }
        let of = |origin, advice| format!("origin {origin:?} is refused; {advice}");
        let expected = named.map(|origin| of(origin, advice)).into_iter();
        let expected: Vec<_> = expected.chain(unnamed.map(|origin| of(origin, none))).collect();
        assert_eq!(origin_lines(&end(process)), expected, "{policy}");
    }
}

#[tokio::test]
async fn an_origin_refused_at_a_join_leaves_a_line_with_a_change_that_lets_it_in() {
    let process = start(&[]).await;
    let server = &process.server;
    server.create_app(json!({"name": "foo-app", "allowed_origins": ["//a.example"]})).await;
    let long = format!("https://{}.example", "b".repeat(400));
    let origins = ["https://b.example", "null", "file://", &long];
    let refused = json!({"status": "error", "response": {"reason": "origin not allowed"}});
    for origin in origins {
        let opened = Socket::open_with(server, PATH, &[("origin", origin)]).await;
        let joined = opened.expect("let in").0.try_join("public:foo-app", json!({})).await;
        assert_eq!(joined, refused, "{origin}");
    }
    // The advice is right.
    let entry = json!({"allowed_origins": ["//a.example", "https://b.example"]});
    server.update_app("foo-app", entry).await;
    let opened = Socket::open_with(server, PATH, &[("origin", origins[0])]).await;
    opened.expect("let in").0.join("public:foo-app", json!({})).await;

    let none = "is refused; no entry can name it, so only an empty allowed_origins of app foo-app \
                lets it in";
    assert_eq!(
        origin_lines(&end(process)),
        [
            "origin \"https://b.example\" is refused; to let it in, add it to allowed_origins of app foo-app",
            &format!("origin \"null\" {none}"),
            &format!("origin \"file://\" {none}"),
            &format!("origin {:?}… {none}", &long[..200]),
        ]
    );
}
