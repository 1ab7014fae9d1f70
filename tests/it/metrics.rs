//! The server's metrics: they are complete, correct, bounded and without secrets, at any time.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    figures::{Figures, becomes},
    server::ADMIN,
    tokens::token,
    *,
};

const SESSIONS_V2: &str = r#"herald_sessions{transport="websocket",version="2"}"#;

/// The metrics that the server reports, or that the page lists, by the names of their samples: the type of each, and
/// the names of its labels.
type Metrics = BTreeMap<String, (String, Vec<String>)>;

/// The metrics of a scrape.
fn told(figures: &Figures) -> Metrics {
    let mut told = Metrics::new();
    for line in figures.text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            told.insert(name.to_owned(), (kind.to_owned(), Vec::new()));
        }
    }
    for (series, _) in figures.all() {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let of = |metric: &&String| {
            let suffix = name.strip_prefix(metric.as_str());
            suffix
                .is_some_and(|s| ["", "_total", "_info", "_sum", "_count", "_bucket"].contains(&s))
        };
        let metric = told.keys().find(of).expect("a metric of that name").clone();
        let labels = labels.trim_end_matches('}').split(',').filter_map(|l| l.split_once('='));
        let mut labels: Vec<_> = labels.map(|(label, _)| label.to_owned()).collect();
        labels.retain(|label| label != "le");
        let (_, known) = told.get_mut(&metric).expect("it was found");
        if known.is_empty() {
            *known = labels;
        }
    }
    let shown = told.into_iter().map(|(metric, (kind, labels))| {
        let suffix = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            "histogram" => "_bucket",
            _ => "",
        };
        let name = metric + suffix;
        let is_shown = figures.all().any(|(series, _)| series.split('{').next() == Some(&name));
        assert!(is_shown, "{name}");
        (name, (kind, labels))
    });
    shown.collect()
}

/// The metrics that `docs/metrics.md` lists: rows of name, type, labels, meaning.
fn listed() -> Metrics {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = fs::read_to_string(path).expect("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("four cells: {row}") };
        assert!(!meaning.is_empty(), "{row}");
        let names = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (name.trim_matches('`').to_owned(), (kind.to_owned(), names))
    })
    .collect()
}

#[tokio::test]
async fn the_page_lists_what_is_told_and_nothing_else() {
    let server = TestServer::start();
    assert_eq!(listed(), told(&Figures::of(&server).await));
}

#[tokio::test]
async fn sessions_joins_publications_and_deliveries_are_counted() {
    let server = TestServer::start();
    let app = App::seeded();
    let mut sockets = Vec::new();
    for way in WAYS {
        let mut socket = Socket::connect(&server, way).await;
        socket.join("public:test-app:room", json!({})).await;
        sockets.push(socket);
    }
    sockets[0].try_join("private:test-app", json!({})).await;
    sockets[0].try_join("public:nobody", json!({})).await;
    let bad = json!({"guardian_token": "bad"});
    sockets[0].try_join("public:test-app", bad).await;
    server.trigger(&app, json!({"topic": "room", "event": "e"})).await;
    for socket in &mut sockets {
        socket.next().await;
    }
    sockets[1].push(json!(["1", "2", "public:test-app:room", "e", {}])).await;
    for socket in &mut sockets {
        socket.next().await;
    }
    let from_client = r#"herald_publications_total{app="test-app",source="client"}"#;
    let figures = becomes(&server, from_client, 1.0).await;
    for transport in ["websocket", "longpoll"] {
        for version in ["1", "2"] {
            let labels = format!(r#"{{transport="{transport}",version="{version}"}}"#);
            assert_eq!(figures.get(&format!("herald_sessions{labels}")), 1.0, "{labels}");
            let opened = figures.get(&format!("herald_sessions_opened_total{labels}"));
            assert_eq!(opened, 1.0, "{labels}");
        }
    }
    for (series, expected) in [
        (r#"herald_joins_total{outcome="ok"}"#, 4.0),
        (r#"herald_joins_total{outcome="no_token"}"#, 1.0),
        (r#"herald_joins_total{outcome="unknown_app"}"#, 1.0),
        (r#"herald_joins_total{outcome="bad_token"}"#, 1.0),
        (r#"herald_publications_total{app="test-app",source="trigger"}"#, 1.0),
        (r#"herald_deliveries_total{app="test-app"}"#, 8.0),
        (r#"herald_subscriptions{app="test-app"}"#, 4.0),
        (r#"herald_skipped_deliveries_total{app="test-app"}"#, 0.0),
        ("herald_silent_threads", 0.0),
    ] {
        assert_eq!(figures.get(series), expected, "{series}");
    }
    let v2 = r#"[null,null,"public:test-app:room","e",{}]"#.len();
    let v1 = r#"{"topic":"public:test-app:room","event":"e","payload":{},"ref":null}"#.len();
    let bytes = figures.get(r#"herald_delivered_bytes_total{app="test-app"}"#);
    assert_eq!(bytes, (4 * (v1 + v2)) as f64);

    let bytes = json!({"topic": "room", "event": "e", "payload_base64": "AA=="});
    let call = request("POST", server.url("/api/apps/test-app/events"));
    let answer = call.basic(&app.key, &app.secret).json(&bytes).send().await;
    assert_eq!(answer.json(), json!({"skipped": 3}));
    drop(sockets);
    let figures = becomes(&server, SESSIONS_V2, 0.0).await;
    assert_eq!(figures.get(r#"herald_skipped_deliveries_total{app="test-app"}"#), 3.0);
}

#[tokio::test]
async fn how_long_publications_take_to_the_socket_is_measured_over_every_transport() {
    for way in WAYS {
        let server = TestServer::start();
        let mut socket = Socket::connect(&server, way).await;
        socket.join("public:test-app", json!({})).await;
        let began = Instant::now();
        server.trigger(&App::seeded(), json!({"topic": "t", "event": "e"})).await;
        socket.next().await;
        let count = "herald_publish_to_write_seconds_count";
        let figures = becomes(&server, count, 1.0).await;
        let sum = figures.get("herald_publish_to_write_seconds_sum");
        assert!(sum > 0.0 && sum < 10.0, "{way}: {sum} s");
        for n in 0..200 {
            let event = json!({"topic": "t", "event": "e", "payload": {"n": n}});
            server.trigger(&App::seeded(), event).await;
        }
        for _ in 0..200 {
            socket.next().await;
        }
        let sampled = Figures::of(&server).await.get(count);
        // One thread delivers all of them, and it measures once in ten milliseconds at most.
        let most = began.elapsed().as_secs_f64() * 100.0 + 1.0;
        assert!((1.0..=most).contains(&sampled), "{way}: {sampled} of {most}");
    }
}

#[tokio::test]
async fn apps_come_and_go_and_those_beyond_the_bound_are_summed() {
    let server = TestServer::start_with(|settings| settings.metrics.apps_max = 2);
    let seeded = App::seeded();
    let own = server.create_app(json!({"name": "own-series"})).await;
    let beyond = server.create_app(json!({"name": "one-of-the-rest"})).await;
    for app in [&seeded, &own, &beyond, &beyond] {
        server.trigger(app, json!({"topic": "t", "event": "e"})).await;
    }
    let published =
        |app: &str| format!(r#"herald_publications_total{{app="{app}",source="trigger"}}"#);
    let figures = Figures::of(&server).await;
    for (app, expected) in [("test-app", 1.0), ("own-series", 1.0), ("_other", 2.0)] {
        assert_eq!(figures.get(&published(app)), expected, "{app}");
    }
    assert!(!figures.has(&published("one-of-the-rest")));
    server.admin("DELETE", "/api/admin/apps/own-series", None).await;
    let figures = Figures::of(&server).await;
    assert!(!figures.text.contains("own-series"), "nothing is left of it");
    assert_eq!(figures.get(&published("_other")), 2.0);
}

#[tokio::test]
async fn nothing_that_a_client_says_becomes_a_label() {
    let server = TestServer::start();
    let app = App::seeded();
    let claims = json!({"sub": "sub-7", "listen": ["private-7:*"], "publish": ["private-7:*"]});
    let token = token(&app, &claims);
    for way in WAYS {
        let mut socket = Socket::connect(&server, way).await;
        let payload = json!({"guardian_token": token});
        socket.join("private-7:test-app:channel-7", payload).await;
        socket.try_join("public:app-7", json!({})).await;
        let push = json!(["1", "2", "private-7:test-app:channel-7", "event-7", {"a": "payload-7"}]);
        socket.push(push).await;
        socket.next().await;
    }
    let text = Figures::of(&server).await.text;
    for told in [
        &token,
        "sub-7",
        "private-7",
        "channel-7",
        "event-7",
        "payload-7",
        "app-7",
        &app.key,
        &app.secret,
    ] {
        assert!(!text.contains(told), "{told} in {text}");
    }
}

#[tokio::test]
async fn on_a_listener_of_its_own_it_needs_no_login_and_only_probes_are_there_besides() {
    let server = TestServer::start_with(|settings| {
        settings.metrics.listen = Some(([127, 0, 0, 1], 0).into());
    });
    let port = server.metrics_port.expect("a port of its own");
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    assert!(Figures::read(&get(url("/metrics")).await).has(SESSIONS_V2));
    for (method, path, expected) in [
        ("HEAD", "/metrics", 200),
        ("POST", "/metrics", 405),
        ("GET", "/", 404),
        ("GET", "/health", 200),
        ("GET", "/ready", 200),
        ("GET", "/api/admin/apps", 404),
    ] {
        let request = request(method, url(path)).basic(ADMIN.0, ADMIN.1);
        assert_eq!(request.send().await.status, expected, "{method} {path}");
    }
    let main = request("GET", server.url("/metrics")).basic(ADMIN.0, ADMIN.1);
    assert_eq!(main.send().await.status, 404, "the main port has no metrics then");
}

#[tokio::test]
async fn it_answers_while_the_server_drains() {
    let server = TestServer::start_with(|settings| {
        settings.metrics.listen = Some(([127, 0, 0, 1], 0).into());
        settings.server.shutdown_timeout = Duration::from_secs(600);
        settings.server.drain_batch_sessions = 1;
        settings.server.drain_interval = Duration::from_secs(60);
    });
    let url = format!("http://127.0.0.1:{}/metrics", server.metrics_port.expect("a port"));
    // One session is closed at once, the other a minute later.
    let mut sockets = [Socket::connect(&server, V2).await, Socket::connect(&server, V2).await];
    for socket in &mut sockets {
        // A session that has answered is known to its thread, so that no stop overlooks it.
        socket.assert_quiet().await;
    }
    server.begin_stop();
    let drained = repeat_until_some(async || {
        let figures = Figures::read(&get(url.clone()).await);
        (figures.ended("shutdown") > 0.0).then_some(figures)
    });
    let figures = tokio::time::timeout(DEADLINE, drained).await.expect("an end in time");
    assert_eq!((figures.ended("shutdown"), figures.get(SESSIONS_V2)), (1.0, 1.0));
}

#[tokio::test]
async fn malformed_requests_to_the_metrics_listener_are_not_logged_as_errors() {
    let mut process = Process::start(&[("HERALD__METRICS__LISTEN", "127.0.0.1:0")]);
    let said = process.logged("metrics on 127.0.0.1:", 1);
    let port = said[0].rsplit(':').next().and_then(|port| port.trim().parse().ok());
    process.server.metrics_port = port;
    let port = port.expect("a port");
    let malformed = [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    ];
    for bytes in malformed.into_iter().chain([&b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n"[..]]) {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        stream.write_all(bytes).await.expect("room");
        let answer = raw::hung_up(&mut stream).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    }
    // Half a request, which is broken off, is not malformed.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhos").await.expect("room");
    stream.shutdown().await.expect("half a connection");
    assert_eq!(raw::hung_up(&mut stream).await, b"");
    let figures = Figures::of(&process.server).await;
    assert_eq!(figures.get("herald_malformed_requests_total"), malformed.len() as f64);
    process.signal("TERM");
    assert!(process.ended().success());
    let log = process.rest_of_log();
    assert!(!log.iter().any(|line| line.contains("ERROR")), "{log:#?}");
}
