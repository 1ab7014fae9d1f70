//! A limit is counted when it is hit, and no other limit is counted with it.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use herald::metrics::{closed::Closed, labels::Limit};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::support::{
    figures::becomes_hit,
    presence::{ROOM, enter, ticket_of},
    server::ADMIN,
    tokens::token,
    *,
};

const TOPIC: &str = "public:test-app";
const EVENTS: &str = "/api/apps/test-app/events";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The settings of `config/default.toml`, with their values as they are written there.
fn defaults() -> BTreeMap<String, String> {
    let text = read("config/default.toml");
    let mut section = "";
    let mut found = BTreeMap::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#'))
        {
            found.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    found
}

#[test]
fn the_page_lists_every_limit_with_its_setting_its_default_and_its_counter() {
    let page = read("docs/limits.md");
    // The table of attacks further down names no settings.
    let is_limit = |line: &&str| {
        let name = line.strip_prefix("| `").and_then(|rest| rest.split_once('`'));
        name.is_some_and(|(name, _)| name.contains('.'))
    };
    let rows = page.lines().filter(is_limit);
    let listed: BTreeMap<String, String> = rows
        .map(|row| {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [setting, default, what, beyond] = cells[..] else { panic!("four cells: {row}") };
            assert!(!what.is_empty() && !beyond.is_empty(), "{row}");
            (setting.trim_matches('`').to_owned(), default.to_owned())
        })
        .collect();
    let defaults = defaults();
    for (setting, default) in &listed {
        assert_eq!(defaults.get(setting), Some(default), "{setting}");
    }
    for setting in defaults.keys().filter(|key| key.starts_with("limits.")) {
        assert!(listed.contains_key(setting), "{setting} is not on the page");
    }
    // The counter of a limit of the history names the section, too.
    let counted_as = |setting: &String| match setting.split_once('.') {
        Some(("history", name)) => format!("history_{name}"),
        Some((_, name)) => name.to_owned(),
        None => panic!("{setting} is in no section"),
    };
    let mut of_page: Vec<_> = listed.keys().map(counted_as).collect();
    let mut of_code: Vec<_> = Limit::ALL.iter().map(|limit| limit.as_str().to_owned()).collect();
    of_page.sort();
    of_code.sort();
    assert_eq!(of_page, of_code);
}

/// Waits until a limit was hit this many times; no other limit may have been hit.
async fn only(server: &TestServer, limit: &str, times: f64) {
    let figures = becomes_hit(server, limit, times).await;
    let others = figures.all().filter(|(series, value)| {
        let is_hit = series.starts_with("herald_limit_hits_total") && *value > 0.0;
        is_hit && !series.contains(&format!("\"{limit}\""))
    });
    assert_eq!(others.collect::<Vec<_>>(), [], "besides {limit}");
}

async fn trigger(server: &TestServer, body: &Value) -> u16 {
    let app = App::seeded();
    let call = request("POST", server.url(EVENTS)).basic(&app.key, &app.secret);
    call.json(body).send().await.status
}

fn padded(bytes: usize) -> Value {
    json!({"x": "x".repeat(bytes)})
}

#[tokio::test]
async fn payloads_bodies_and_tokens_that_are_too_large() {
    let small = || {
        TestServer::start_with(|settings| {
            settings.limits.trigger_payload_bytes_max = 1_000;
            settings.limits.client_event_bytes_max = 1_000;
            settings.limits.request_body_bytes_max = 4_000;
            settings.limits.message_bytes_max = 3_000;
            settings.limits.token_bytes_max = 1_000;
        })
    };
    let server = small();
    let event = json!({"topic": "t", "event": "e", "payload": padded(1_000)});
    assert_eq!(trigger(&server, &event).await, 413);
    only(&server, "trigger_payload_bytes_max", 1.0).await;

    let server = small();
    let publisher = token(&App::seeded(), &json!({"publish": ["public:*"]}));
    let call = request("POST", server.url(EVENTS)).bearer(&publisher);
    assert_eq!(call.json(&event).send().await.status, 413);
    for (nth, way) in WAYS.into_iter().enumerate() {
        let mut socket = Socket::connect(&server, way).await;
        socket.join(TOPIC, json!({})).await;
        socket.push(json!(["1", "2", TOPIC, "t:e", padded(1_000)])).await;
        assert_eq!(socket.next().await[4]["status"], "error", "{way}");
        only(&server, "client_event_bytes_max", nth as f64 + 2.0).await;
    }

    let server = small();
    let body = json!({"topic": "t", "event": "e", "payload": padded(4_000)});
    assert_eq!(trigger(&server, &body).await, 413);
    let app = json!({"app": {"name": "x".repeat(4_000)}});
    assert_eq!(server.admin("POST", "/api/admin/apps", Some(app)).await.status, 413);
    let mut poller = Poller::connect(&server, V2).await;
    assert_eq!(poller.post_raw(None, &[b'x'; 4_001]).await.0, 400);
    only(&server, "request_body_bytes_max", 3.0).await;

    let server = small();
    let mut socket = Socket::connect(&server, V2).await;
    socket.text("x".repeat(3_001)).await;
    assert_eq!(socket.closed().await, 1009);
    let mut poller = Poller::connect(&server, V2).await;
    assert_eq!(poller.post_raw(None, &[b'x'; 3_001]).await.0, 400);
    only(&server, "message_bytes_max", 2.0).await;

    let server = small();
    let long = "x".repeat(1_001);
    let mut socket = Socket::connect(&server, V2).await;
    let refused = json!({"status": "error", "response": {"error": "invalid_token"}});
    let payload = json!({"guardian_token": long});
    assert_eq!(socket.try_join("private:test-app", payload).await, refused);
    let call = request("POST", server.url(EVENTS)).bearer(&long);
    assert_eq!(call.json(&json!({"topic": "t", "event": "e"})).send().await.status, 401);
    let path = format!("/socket/websocket?vsn=2.0.0&guardian_token={long}");
    Socket::open(&server, &path).await.join(TOPIC, json!({})).await;
    only(&server, "token_bytes_max", 3.0).await;
}

#[tokio::test]
async fn refs_that_are_too_long_or_nested() {
    let server = TestServer::start();
    let long = "r".repeat(65);
    let message = |reference: &str| format!(r#"[null,{reference},"t","phx_leave",{{}}]"#);
    for (nth, reference) in [format!("\"{long}\""), "[1]".to_owned()].iter().enumerate() {
        let mut socket = Socket::connect(&server, V2).await;
        socket.text(message(reference)).await;
        assert_eq!(socket.closed().await, 1011, "{reference}");
        let mut poller = Poller::connect(&server, V2).await;
        assert_eq!(poller.post(&message(reference)).await, 410, "{reference}");
        only(&server, "ref_bytes_max", 2.0 * (nth as f64 + 1.0)).await;
    }
    let mut socket = Socket::connect(&server, V2).await;
    socket.text("{}").await;
    assert_eq!(socket.closed().await, 1011, "malformed, but within all limits");
    only(&server, "ref_bytes_max", 4.0).await;
}

#[tokio::test]
async fn channels_and_scopes_that_are_too_many() {
    let server = TestServer::start_with(|settings| {
        settings.limits.channels_per_transport_max = 1;
    });
    for (nth, way) in WAYS.into_iter().enumerate() {
        let mut socket = Socket::connect(&server, way).await;
        socket.join(TOPIC, json!({})).await;
        let refused =
            json!({"status": "error", "response": {"reason": "too many channels joined"}});
        assert_eq!(socket.try_join("public:test-app:t", json!({})).await, refused, "{way}");
        only(&server, "channels_per_transport_max", nth as f64 + 1.0).await;
    }

    let server = TestServer::start_with(|settings| settings.limits.scopes_per_app_max = 1);
    let payload = json!({"guardian_token": token(&App::seeded(), &json!({"listen": ["two:*"]}))});
    let mut socket = Socket::connect(&server, V2).await;
    socket.join(TOPIC, json!({})).await;
    let refused = json!({"status": "error", "response": {"reason": "too many scopes"}});
    assert_eq!(socket.try_join("two:test-app", payload).await, refused);
    only(&server, "scopes_per_app_max", 1.0).await;
}

#[tokio::test]
async fn members_that_are_too_many() {
    let server = TestServer::start_with(|settings| settings.limits.presence_members_max = 1);
    let (_inside, _, _) = enter(&server, V2, ticket_of("ada")).await;
    let refused = json!({"status": "error", "response": {"reason": "presence channel full"}});
    for (nth, way) in WAYS.into_iter().enumerate() {
        let mut late = Socket::connect(&server, way).await;
        assert_eq!(late.try_join(ROOM, ticket_of("late")).await, refused, "{way}");
        only(&server, "presence_members_max", nth as f64 + 1.0).await;
    }
}

/// A bulk with more events than may be under way waits until its time is over and is refused, even if nothing else
/// is under way. So is a push if no publication may be under way.
#[tokio::test]
async fn publications_that_are_too_many_at_a_time() {
    let with = |in_flight_max| {
        TestServer::start_with(move |settings| {
            settings.limits.publications_in_flight_max = in_flight_max;
            settings.socket.topic_timeout = Duration::from_secs(2);
        })
    };
    let server = with(2);
    let publish = |count: usize| {
        let events = vec![json!({"topic": TOPIC, "event": "e"}); count];
        let call = request("POST", server.url("/api/publish/bulk"));
        let call = call.header("authorization", &App::seeded().secret);
        call.json(&json!({ "events": events })).send()
    };
    assert_eq!(publish(2).await.status, 200, "as many as are allowed");
    let answer = publish(3).await;
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true));
    only(&server, "publications_in_flight_max", 1.0).await;

    let server = with(0);
    let mut sockets = Vec::new();
    for way in WAYS {
        let mut socket = Socket::connect(&server, way).await;
        socket.join(TOPIC, json!({})).await;
        socket.push(json!(["1", "2", TOPIC, "t:e", {}])).await;
        sockets.push(socket);
    }
    let refused = json!({"status": "error", "response": {"reason": "unavailable"}});
    for (way, socket) in WAYS.into_iter().zip(&mut sockets) {
        assert_eq!(socket.next().await[4], refused, "{way}");
    }
    only(&server, "publications_in_flight_max", WAYS.len() as f64).await;
}

#[tokio::test]
async fn idempotency_keys_that_are_too_many() {
    let server = TestServer::start_with(|settings| settings.limits.idempotency_keys_max = 2);
    let mut socket = Socket::connect(&server, V2).await;
    socket.join(TOPIC, json!({})).await;
    let event = |key| json!({"topic": "t", "event": "e", "idempotency_key": key});
    for key in ["a", "b", "a", "c"] {
        assert_eq!(trigger(&server, &event(key)).await, 200, "{key}");
    }
    only(&server, "idempotency_keys_max", 1.0).await;
    // The oldest key is forgotten, and the others are not.
    for key in ["c", "b", "a"] {
        assert_eq!(trigger(&server, &event(key)).await, 200, "{key}");
    }
    only(&server, "idempotency_keys_max", 2.0).await;
    for nth in 1..=4 {
        assert_eq!(socket.next().await, json!([null, null, TOPIC, "t:e", {}]), "{nth}");
    }
    socket.assert_quiet().await;
}

#[tokio::test]
async fn events_beyond_the_rate_are_refused_and_the_session_goes_on() {
    const RATE: u32 = 5;
    let server = TestServer::start_with(|settings| {
        settings.limits.client_events_per_second_max = RATE;
    });
    let refused = json!({"status": "error", "response": {"reason": "too many events"}});
    let mut hits = 0.0;
    for way in WAYS {
        let mut socket = Socket::connect(&server, way).await;
        socket.join(TOPIC, json!({})).await;
        let (mut published, mut denied) = (0, 0);
        // Without pauses until some are denied, so that the number depends on the speed of the machine.
        while denied < 3 {
            socket.push(json!(["1", "e", TOPIC, "t:e", {"n": published}])).await;
            let frame = socket.next().await;
            match frame[3].as_str() {
                Some("t:e") => published += 1,
                Some("phx_reply") => {
                    assert_eq!((&frame[1], &frame[4]), (&json!("e"), &refused), "{way}");
                    denied += 1;
                    assert!(published >= RATE, "{way}: a burst is let through");
                }
                _ => panic!("{way}: {frame}"),
            }
        }
        hits += f64::from(denied);
        only(&server, "client_events_per_second_max", hits).await;
        socket.assert_quiet().await;
        // Soon afterwards an event is accepted again.
        let let_through = repeat_until(async || {
            socket.push(json!(["1", "e", TOPIC, "t:e", {}])).await;
            let is_through = socket.next().await[3] == "t:e";
            hits += f64::from(!is_through);
            is_through
        });
        timeout(DEADLINE, let_through).await.expect("the next in time");
    }
}

#[tokio::test]
async fn a_token_may_trigger_as_often_as_a_client_may_push() {
    let server = TestServer::start_with(|settings| {
        settings.limits.client_events_per_second_max = 2;
    });
    let publisher =
        |name: &str| token(&App::seeded(), &json!({"sub": name, "publish": ["public:*"]}));
    let event = json!({"topic": "public:test-app:t", "event": "e"});
    let send = |token: String, count: usize| {
        let events = vec![event.clone(); count];
        let call = request("POST", server.url("/api/publish/bulk")).bearer(&token);
        call.json(&json!({"events": events})).send()
    };
    let answer = send(publisher("one"), 3).await;
    let fault = json!({"errors": {"events": ["must be at most 2 with a client's token"]}});
    assert_eq!((answer.status, answer.json()), (422, fault), "it would never be accepted");
    assert_eq!(send(publisher("one"), 2).await.status, 200, "what was refused used up nothing");
    assert_eq!(send(publisher("other"), 2).await.status, 200, "another token");
    let trusted = token(&App::seeded(), &json!({"aud": "trigger", "publish": ["public:*"]}));
    assert_eq!(send(trusted, 100).await.status, 200, "the web application's own");
    only(&server, "client_events_per_second_max", 1.0).await;
    let beyond = async {
        loop {
            let call = request("POST", server.url(EVENTS)).bearer(&publisher("third"));
            let answer = call.json(&json!({"topic": "t", "event": "e"})).send().await;
            match answer.status {
                200 => {}
                429 => return assert_eq!(answer.header("retry-after"), Some("1")),
                other => panic!("{other}: {}", answer.body),
            }
        }
    };
    timeout(DEADLINE, beyond).await.expect("a trigger is refused in time");
}

#[tokio::test]
async fn joins_beyond_the_rate_are_refused_before_their_tokens_are_looked_at() {
    const RATE: u32 = 4;
    let server = TestServer::start_with(|settings| settings.limits.joins_per_second_max = RATE);
    let refused = json!({"status": "error", "response": {"reason": "too many joins"}});
    let mut hits = 0.0;
    for way in WAYS {
        let mut socket = Socket::connect(&server, way).await;
        let (mut looked_at, mut denied) = (0, 0);
        while denied < 3 {
            let payload = json!({"guardian_token": "bad"});
            let reply = socket.try_join("private:test-app", payload).await;
            if reply == refused {
                denied += 1;
                assert!(looked_at >= RATE, "{way}: a burst is let through");
            } else {
                assert_eq!(reply["response"]["error"], "invalid_token", "{way}");
                looked_at += 1;
            }
        }
        hits += f64::from(denied);
        only(&server, "joins_per_second_max", hits).await;
        let let_in = repeat_until(async || {
            let is_refused = socket.try_join(TOPIC, json!({})).await == refused;
            hits += f64::from(is_refused);
            !is_refused
        });
        timeout(DEADLINE, let_in).await.expect("a join in time");
    }
}

#[tokio::test]
async fn frames_beyond_the_rate_wait_and_a_session_that_goes_on_is_ended() {
    let server = TestServer::start_with(|settings| settings.limits.frames_per_second_max = 100);
    let mut bystander = Socket::connect(&server, V2).await;
    // Empty frames, with a mask of zeros, of each kind that no other limit covers.
    let empty = |first: u8| [first, 0x80, 0, 0, 0, 0];
    let heartbeat = br#"[null,"1","phoenix","heartbeat",{}]"#;
    let length = u8::try_from(heartbeat.len()).expect("a short message");
    let heartbeat = [&[0x81, 0x80 | length, 0, 0, 0, 0], &heartbeat[..]].concat();
    let mut hits = 0.0;
    for (case, first, unit, last) in [
        ("heartbeats", &[][..], heartbeat, &[][..]),
        ("pings", &[], empty(0x89).to_vec(), &[]),
        ("pongs", &[], empty(0x8a).to_vec(), &[]),
        ("fragments", &empty(0x02), empty(0x00).to_vec(), &empty(0x80)),
    ] {
        // Twice the permitted burst: all are accepted, in time.
        let mut socket = Socket::connect(&server, V2).await;
        let all = [first, &unit.repeat(200), last].concat();
        let begun = std::time::Instant::now();
        socket.tcp().write_all(&all).await.expect("room");
        let taken = async {
            match case {
                "heartbeats" => {
                    for _ in 0..200 {
                        socket.next().await;
                    }
                }
                "pings" => {
                    for _ in 0..200 {
                        assert!(socket.message().await.is_pong());
                    }
                }
                "pongs" => socket.assert_quiet().await,
                // An empty message is malformed.
                _ => assert_eq!(socket.closed().await, 1011),
            }
        };
        timeout(DEADLINE, taken).await.expect("all in time");
        assert!(begun.elapsed() > Duration::from_millis(700), "{case}: they had to wait");
        let now = figures::Figures::of(&server).await.hits("frames_per_second_max");
        assert!(now > hits, "{case}: it is counted");
        hits = now;
        bystander.assert_quiet().await;
    }
    // A client that never stops.
    let (mut reading, mut writing) = Socket::connect(&server, V2).await.into_tcp().into_split();
    let flood = tokio::spawn(async move {
        let pongs = empty(0x8a).repeat(1_000);
        while writing.write_all(&pongs).await.is_ok() {}
    });
    let mut said = [0; 4];
    let end = timeout(4 * DEADLINE, reading.read_exact(&mut said)).await.expect("an end in time");
    end.expect("a close frame");
    assert_eq!(said, [0x88, 2, 0x03, 0xf0], "1008");
    flood.abort();
    let ended = r#"herald_sessions_ended_total{reason="frames_per_second"}"#;
    figures::becomes(&server, ended, 1.0).await;
    bystander.assert_quiet().await;
}

#[tokio::test]
async fn sessions_beyond_those_of_an_app_are_refused_until_another_has_left() {
    let server = TestServer::start_with(|settings| settings.limits.sessions_per_app_max = Some(2));
    let other = server.create_app(json!({"name": "other-app"})).await;
    let refused = json!({"status": "error", "response": {"reason": "too many sessions"}});
    let mut inside = Socket::connect(&server, V2).await;
    for channel in ["a", "b", "a"] {
        inside.push(json!(["1", "1", format!("{TOPIC}:{channel}"), "phx_join", {}])).await;
        assert_eq!(inside.next().await[4]["status"], "ok", "one session counts once");
    }
    assert_eq!(inside.next().await[3], "phx_close", "of the join that was replaced");
    let mut polled = Socket::connect(&server, V2_POLLED).await;
    polled.join(TOPIC, json!({})).await;
    for (nth, way) in WAYS.into_iter().enumerate() {
        let mut outside = Socket::connect(&server, way).await;
        assert_eq!(outside.try_join(TOPIC, json!({})).await, refused, "{way}");
        only(&server, "sessions_per_app_max", nth as f64 + 1.0).await;
        outside.join(&format!("public:{}", other.slug), json!({})).await;
    }
    let mut outside = Socket::connect(&server, V2).await;
    inside.push(json!(["1", "2", format!("{TOPIC}:a"), "phx_leave", {}])).await;
    assert_eq!([&inside.next().await[3], &inside.next().await[3]], ["phx_reply", "phx_close"]);
    assert_eq!(outside.try_join(TOPIC, json!({})).await, refused, "it still has a topic");
    drop(inside);
    let let_in = repeat_until(async || outside.try_join(TOPIC, json!({})).await != refused);
    timeout(DEADLINE, let_in).await.expect("a place in time");
}

#[tokio::test]
async fn sessions_beyond_those_of_an_address_are_429_until_another_has_gone() {
    let server = TestServer::start_with(|settings| {
        settings.limits.sessions_per_address_max = Some(2);
        settings.server.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
    });
    let path = "/socket/websocket?vsn=2.0.0";
    let from = |address: &'static str| [("x-forwarded-for", address)];
    let mut inside = Vec::new();
    for address in ["2001:db8::1", "2001:db8::2"] {
        let (socket, _) = Socket::open_with(&server, path, &from(address)).await.expect("a place");
        inside.push(socket);
    }
    let refused = Socket::refused(&server, path, &from("2001:db8::3")).await;
    assert_eq!(refused, (429, "too many sessions from this address".to_owned()));
    only(&server, "sessions_per_address_max", 1.0).await;
    let polls = |address: &str| {
        let call = request("GET", server.url("/socket/longpoll?vsn=2.0.0&"));
        call.header("x-forwarded-for", address).send()
    };
    let answer = polls("2001:db8::3").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"status": 500})));
    only(&server, "sessions_per_address_max", 2.0).await;
    assert_eq!(polls("2001:db8:0:1::3").await.json()["status"], 410, "another network");
    assert_eq!(polls("192.0.2.1").await.json()["status"], 410, "another address");
    inside.pop();
    let let_in =
        repeat_until(async || Socket::open_with(&server, path, &from("2001:db8::3")).await.is_ok());
    timeout(DEADLINE, let_in).await.expect("a place in time");
}

#[tokio::test]
async fn a_full_server_and_failed_logins() {
    let server = TestServer::start_with(|settings| settings.limits.sessions_max = Some(1));
    let _inside = Socket::connect(&server, V2).await;
    let refused = Socket::refused(&server, "/socket/websocket?vsn=2.0.0", &[]).await;
    assert_eq!(refused.0, 503);
    let polled = get(server.url("/socket/longpoll?vsn=2.0.0&")).await;
    assert_eq!(polled.json(), json!({"status": 500}));
    only(&server, "sessions_max", 2.0).await;

    let server = TestServer::start_with(|settings| {
        settings.metrics.listen = Some(([127, 0, 0, 1], 0).into());
        settings.limits.failed_admin_logins_per_minute_max = 2;
    });
    let login = |password: &str| {
        request("GET", server.url("/api/admin/apps")).basic(ADMIN.0, password).send()
    };
    for (password, expected) in [("wrong", 401), ("wrong", 401), ("wrong", 429), (ADMIN.1, 429)] {
        assert_eq!(login(password).await.status, expected);
    }
    only(&server, "failed_admin_logins_per_minute_max", 2.0).await;
}

#[tokio::test]
async fn those_of_time() {
    let moment = Duration::from_millis(200);
    let server = TestServer::start_with(|settings| {
        // A scrape must not hit this short timeout itself: at a port of their own, metrics need no login.
        settings.metrics.listen = Some(([127, 0, 0, 1], 0).into());
        settings.socket.handshake_timeout = moment;
    });
    let mut stream = raw::connect(&server).await;
    stream.write_all(b"GET /socket/websocket HTTP/1.1\r\nx: ").await.expect("room");
    let rest = raw::hung_up(&mut stream).await;
    assert!(rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    only(&server, "handshake_timeout", 1.0).await;

    let quick = |settings: &mut herald::settings::Settings| {
        // Here, a scrape must not be taken for an idle client.
        settings.metrics.listen = Some(([127, 0, 0, 1], 0).into());
        settings.socket.idle_timeout = Duration::from_secs(2);
    };
    let server = TestServer::start_with(quick);
    let mut socket = Socket::connect(&server, V2).await;
    assert_eq!(socket.closed().await, 1001);
    assert_eq!(becomes_hit(&server, "idle_timeout", 1.0).await.ended("idle"), 1.0);

    let server = TestServer::start_with(|s| s.socket.long_poll_window = moment);
    let poller = Poller::connect(&server, V2).await;
    only(&server, "long_poll_window", 1.0).await;
    assert_eq!(poller.again(&server).await.fetch().await, json!({"status": 500}));

    let server = TestServer::start_with(|settings| {
        // Long enough for the first fetch to arrive in time.
        settings.socket.long_poll_window = Duration::from_secs(4);
        settings.socket.long_poll_unjoined_timeout = moment;
    });
    let mut poller = Poller::connect(&server, V2).await;
    while poller.fetch().await != json!({"status": 500}) {}
    only(&server, "long_poll_unjoined_timeout", 1.0).await;
}
