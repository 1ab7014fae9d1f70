//! Requests that no proper client sends: each gets a clear answer or a closed connection, and all other clients are
//! served as before.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{
    raw::{self, exchange},
    server::ADMIN,
    *,
};

const EVENTS: &str = "/api/apps/test-app/events";
const CREDENTIALS: &str = "Basic dGVzdC1hcHAtZmFrZS1rZXk6dGVzdC1hcHAtZmFrZS1zZWNyZXQ=";

/// Checks that the server still works: a trigger reaches a subscriber.
async fn assert_well(server: &TestServer) {
    let mut socket = Socket::connect(server, V2).await;
    socket.join("public:test-app", json!({})).await;
    server.trigger(&App::seeded(), json!({"topic": "t", "event": "e", "payload": {}})).await;
    assert_eq!(socket.frame().await, r#"[null,null,"public:test-app","t:e",{}]"#);
}

#[tokio::test]
async fn absurd_request_lines_are_answered_or_hung_up_on() {
    let server = TestServer::start();
    let long = "a".repeat(200_000);
    let end = "host: h\r\nconnection: close\r\n\r\n";
    for (case, line, statuses) in [
        ("as it should be", "GET /health HTTP/1.1", &[200][..]),
        ("a method of one's own", "FOO /health HTTP/1.1", &[405]),
        ("a method in small letters", "get /health HTTP/1.1", &[405]),
        ("a long method", &format!("{} /health HTTP/1.1", &long[..5_000]), &[405]),
        ("a method of no letters", "G\u{e9}T /health HTTP/1.1", &[400]),
        ("no method", " /health HTTP/1.1", &[400]),
        ("CONNECT elsewhere", "CONNECT example.com:443 HTTP/1.1", &[404]),
        ("CONNECT here", "CONNECT /socket/websocket HTTP/1.1", &[400]),
        ("OPTIONS of everything", "OPTIONS * HTTP/1.1", &[404]),
        ("TRACE", "TRACE /health HTTP/1.1", &[405]),
        ("HTTP/2 without warning", "PRI * HTTP/2.0", &[400]),
        ("HTTP/3.0", "GET /health HTTP/3.0", &[400]),
        ("HTTP/0.9", "GET /health", &[400]),
        ("nonsense", "\u{1}\u{2}\u{3}", &[400]),
        ("a TLS greeting", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0", &[400]),
        ("another site's URL", "GET http://evil.example/health HTTP/1.1", &[200]),
        ("an endless path", &format!("GET /{long} HTTP/1.1"), &[431]),
        ("a path that is too long", &format!("GET /{} HTTP/1.1", &long[..70_000]), &[414]),
        ("a long path", &format!("GET /{} HTTP/1.1", &long[..30_000]), &[404]),
        ("a long query", &format!("GET /health?{} HTTP/1.1", &long[..30_000]), &[200]),
        ("a space in the path", "GET /a b HTTP/1.1", &[400]),
        ("bytes that are no text", "GET /\u{e9}\u{202e} HTTP/1.1", &[400]),
    ] {
        let got = exchange(&server, format!("{line}\r\n{end}").as_bytes()).await;
        assert_eq!(got.statuses(), statuses, "{case}: {}", got.text());
        assert!(got.is_closed, "{case}");
    }
    assert_well(&server).await;
}

#[tokio::test]
async fn paths_that_want_to_be_others_are_not() {
    let server = TestServer::start();
    for (path, status) in [
        ("/%00", 404),
        ("/health%00", 404),
        ("/..", 404),
        ("/../../etc/passwd", 404),
        ("/static/../../Cargo.toml", 404),
        ("/..%2f..%2fetc%2fpasswd", 404),
        ("/%2e%2e/%2e%2e/etc/passwd", 404),
        ("//etc/passwd", 404),
        ("/phoenix.js/../herald.js", 404),
        ("/\\..\\..\\windows", 404),
        ("/health/../api/admin/apps", 404),
        ("/api/admin/../admin/apps", 404),
        ("/api/admin/apps/%2e%2e", 401),
        ("/api/admin/apps/..%2f..%2fhealth", 401),
        ("/api/admin/apps/%00", 401),
        ("/API/ADMIN/APPS", 404),
        ("/api//admin/apps", 401),
        ("/health/", 200),
        ("/socket/longpoll/../websocket", 404),
        ("/%ff%fe", 404),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        let got = exchange(&server, request.as_bytes()).await;
        assert_eq!(got.statuses(), [status], "{path}: {}", got.text());
        assert!(!got.text().contains("root:"), "{path}");
        let upgrade = format!(
            "GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close, upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let got = exchange(&server, upgrade.as_bytes()).await;
        assert_eq!(got.statuses(), [status], "an upgrade of {path}: {}", got.text());
        assert!(got.is_closed, "{path}");
    }
    for slug in ["%00", "..", "%2e%2e%2fx", "%F0%9F%98%80", "a%0d%0aset-cookie:x", "%ed%a0%80"] {
        let answer = server.admin("GET", &format!("/api/admin/apps/{slug}"), None).await;
        assert_eq!(answer.status, 404, "{slug}");
        assert!(answer.header("set-cookie").is_none(), "{slug}");
    }
    assert_well(&server).await;
}

#[tokio::test]
async fn an_upgrade_that_is_none_of_ours_is_ignored_and_no_request_hides_behind_one_that_is() {
    let server = TestServer::start();
    let hidden = "GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    for (case, head, statuses) in [
        ("of another path", "GET /health HTTP/1.1\r\nupgrade: websocket", &[200, 200][..]),
        ("of the admin API", "GET /api/admin/apps HTTP/1.1\r\nupgrade: websocket", &[401, 200]),
        ("of a trigger", &format!("POST {EVENTS} HTTP/1.1\r\nupgrade: websocket"), &[401, 200]),
        ("by POST", "POST /socket/websocket HTTP/1.1\r\nupgrade: websocket", &[400, 200]),
        ("without a key", "GET /socket/websocket HTTP/1.1\r\nupgrade: websocket", &[400]),
        (
            "of an old version",
            "GET /socket/websocket HTTP/1.1\r\nupgrade: websocket\r\nsec-websocket-version: 8\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
            &[400],
        ),
        ("twice", "GET /x HTTP/1.1\r\nupgrade: websocket\r\nupgrade: websocket", &[404, 200]),
    ] {
        let request = format!("{head}\r\nhost: h\r\nconnection: upgrade\r\n\r\n{hidden}");
        let got = exchange(&server, request.as_bytes()).await;
        assert_eq!(got.statuses(), statuses, "{case}: {}", got.text());
        assert!(got.is_closed, "{case}");
    }
    // A client that merely offers HTTP/2 is answered over HTTP/1.1.
    let h2c = "GET /health HTTP/1.1\r\nhost: h\r\nconnection: upgrade, http2-settings, close\r\n\
               upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
    assert_eq!(exchange(&server, h2c.as_bytes()).await.statuses(), [200]);
    assert_well(&server).await;
}

#[tokio::test]
async fn a_body_that_can_be_read_two_ways_is_read_in_none() {
    let server = TestServer::start();
    let head = |rest: &str| {
        format!("POST {EVENTS} HTTP/1.1\r\nhost: h\r\nauthorization: {CREDENTIALS}\r\n{rest}")
    };
    let hidden = "GET /health HTTP/1.1\r\nhost: h\r\n\r\n";
    let (length, chunked) = ("content-length: 5\r\n", "transfer-encoding: chunked\r\n");
    let behind = |fields: &str| head(&format!("{fields}\r\n0\r\n\r\n{hidden}"));
    for (case, request) in [
        ("a length and chunks", behind(&format!("{length}{chunked}"))),
        ("chunks and a length", behind(&format!("{chunked}{length}"))),
        ("two lengths", behind(&format!("{length}content-length: 6\r\n"))),
        ("two equal lengths", behind(&format!("{length}{length}"))),
        ("a list of lengths", behind("content-length: 5, 5\r\n")),
        ("a length with a sign", behind("content-length: +5\r\n")),
        ("a length in hexadecimal", behind("content-length: 0x5\r\n")),
        ("a length with a space within", behind("content-length: 5 5\r\n")),
        ("an empty length", behind("content-length: \r\n")),
        ("chunks twice", behind(&format!("{chunked}{chunked}"))),
        ("chunks that are not last", behind("transfer-encoding: chunked, gzip\r\n")),
        ("something like chunks", behind("transfer-encoding: xchunked\r\n")),
        ("chunks in quotes", behind("transfer-encoding: \"chunked\"\r\n")),
        ("chunks behind a tab", behind("transfer-encoding:\u{b}chunked\r\n")),
        ("a name with a space", behind("transfer-encoding : chunked\r\n")),
        ("a folded line", behind("x: y\r\n transfer-encoding: chunked\r\n")),
        ("a chunk size with a sign", head(&format!("{chunked}\r\n+5\r\n12345\r\n{hidden}"))),
        ("a chunk size that is none", head(&format!("{chunked}\r\n5x\r\n12345\r\n{hidden}"))),
        (
            "a chunk longer than said",
            head(&format!("{chunked}\r\n2\r\n12345\r\n0\r\n\r\n{hidden}")),
        ),
    ] {
        let got = exchange(&server, request.as_bytes()).await;
        assert_eq!(got.statuses(), [400], "{case}: {}", got.text());
        assert!(got.is_closed, "{case}");
    }
    assert_well(&server).await;
}

#[tokio::test]
async fn headers_beyond_reason_are_refused() {
    let server = TestServer::start();
    let kb_200 = "x".repeat(200_000);
    let token = "t".repeat(20_000);
    let many = "x: y\r\n".repeat(1_000);
    for (case, fields, statuses) in [
        ("as it should be", format!("authorization: {CREDENTIALS}\r\n"), &[200][..]),
        ("a header without end", format!("x: {kb_200}\r\n"), &[431]),
        ("a thousand headers", many, &[431]),
        ("a name of 20 KB", format!("{token}: x\r\nauthorization: {CREDENTIALS}\r\n"), &[200]),
        ("a token of 20 KB", format!("authorization: Bearer {token}\r\n"), &[401]),
        ("a token of three dots", "authorization: Bearer ...\r\n".into(), &[401]),
        ("a token of nothing", "authorization: Bearer \r\n".into(), &[401]),
        ("a token without a signature", "authorization: Bearer e30.e30.\r\n".into(), &[401]),
        ("credentials of 20 KB", format!("authorization: Basic {token}\r\n"), &[401]),
        ("credentials that are no base64", "authorization: Basic ====\r\n".into(), &[401]),
        ("credentials without a colon", "authorization: Basic YWJj\r\n".into(), &[401]),
        ("credentials of NULs", "authorization: Basic AAAAAA==\r\n".into(), &[401]),
        ("credentials that are no text", "authorization: \u{ff}\u{fe}\r\n".into(), &[401]),
        ("a scheme of one's own", "authorization: Digest x\r\n".into(), &[401]),
        (
            "wrong and right credentials",
            format!("authorization: Basic YTpi\r\nauthorization: {CREDENTIALS}\r\n"),
            &[401],
        ),
        (
            "right and wrong credentials",
            format!("authorization: {CREDENTIALS}\r\nauthorization: Basic YTpi\r\n"),
            &[401],
        ),
        ("none", String::new(), &[401]),
        ("a NUL in a header", "x: a\0b\r\n".into(), &[400]),
        ("a bare carriage return", "x: a\rb\r\n".into(), &[400]),
        ("no name", ": x\r\n".into(), &[400]),
    ] {
        let body = r#"{"topic":"t","event":"e"}"#;
        let request = format!(
            "POST {EVENTS} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{fields}content-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let got = exchange(&server, request.as_bytes()).await;
        assert_eq!(got.statuses(), statuses, "{case}: {}", got.text());
        assert!(got.is_closed, "{case}");
    }
    assert_well(&server).await;
}

#[tokio::test]
async fn odd_names_are_refused_or_travel_unharmed() {
    let server = TestServer::start();
    let url = server.url(EVENTS);
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    for (case, name, status) in [
        ("NUL", r"a\u0000b", 422),
        ("line feed", r"a\nb", 422),
        ("delete", r"a\u007fb", 422),
        ("a control character beyond ASCII", r"a\u0085b", 422),
        ("half a surrogate pair", r"a\ud800b", 422),
        ("the other half", r"\udc00", 422),
        ("halves in the wrong order", r"\udc00\ud800", 422),
        ("written from right to left", "\u{202e}gnissem\u{202c}", 200),
        ("combining", "e\u{301}", 200),
        ("emoji", "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}", 200),
        ("a pair of escapes", r"\ud83d\ude00", 200),
        ("no width", "\u{200b}", 200),
        ("a byte order mark", "\u{feff}", 200),
        ("markup", "<script>alert(1)</script>", 200),
        ("quotes", r#"\"]]"#, 200),
        ("a path", "../../etc/passwd", 200),
        ("SQL", "'; DROP TABLE apps; --", 200),
    ] {
        for (as_what, body) in [
            ("topic", format!(r#"{{"topic":"{name}","event":"e"}}"#)),
            ("event", format!(r#"{{"topic":"t","event":"{name}"}}"#)),
        ] {
            let request = request("POST", &url).header("authorization", CREDENTIALS);
            let answer = request.header("content-type", "application/json").body(body).send().await;
            assert_eq!(answer.status, status, "{case} as {as_what}: {}", answer.body);
            if status == 200 {
                let name = serde_json::from_str::<String>(&format!(r#""{name}""#));
                let name = name.expect("a string");
                let event =
                    if as_what == "topic" { format!("{name}:e") } else { format!("t:{name}") };
                let expected = json!([null, null, "public:test-app", event, {}]);
                assert_eq!(socket.next().await, expected, "{case} as {as_what}");
            }
        }
    }
    socket.assert_quiet().await;
}

#[tokio::test]
async fn hostile_admin_bodies_are_refused_and_make_no_app() {
    let server = TestServer::start();
    let deep = format!(r#"{{"app":{}1{}}}"#, r#"{"name":"#.repeat(100_000), "}".repeat(100_000));
    let deep_form = format!("app{}=1", "[name]".repeat(10_000));
    let (json_type, form) = ("application/json", "application/x-www-form-urlencoded");
    for (case, content_type, body, status) in [
        ("nothing", json_type, Vec::new(), 400),
        ("half", json_type, br#"{"app":{"#.to_vec(), 400),
        ("no object", json_type, b"[]".to_vec(), 400),
        ("an app that is none", json_type, br#"{"app":1}"#.to_vec(), 400),
        ("an app that is a list", json_type, br#"{"app":[]}"#.to_vec(), 400),
        ("no app", json_type, b"{}".to_vec(), 400),
        ("not UTF-8", json_type, b"{\"app\":{\"name\":\"\xff\xff\xff\xff\xff\"}}".to_vec(), 400),
        ("deep", json_type, deep.into_bytes(), 400),
        ("deep form", form, deep_form.into_bytes(), 422),
        ("wrong types", json_type, br#"{"app":{"name":{},"active":[],"key":1}}"#.to_vec(), 422),
        ("a control character", json_type, br#"{"app":{"name":"foo\u0000app"}}"#.to_vec(), 422),
        ("half a pair", json_type, br#"{"app":{"name":"foo-app\ud800"}}"#.to_vec(), 400),
        (
            "a name that leaves no slug",
            json_type,
            "{\"app\":{\"name\":\"\u{202e}\u{301}!?..\"}}".into(),
            422,
        ),
        ("a name of 1 MB", form, format!("app[name]={}", "x".repeat(1_000_000)).into(), 422),
        ("a NUL in a form", form, b"app[name]=foo%00app".to_vec(), 422),
        ("10 MB", form, vec![b'a'; 10_000_000], 413),
        ("text", "text/plain", b"x".to_vec(), 415),
    ] {
        let head = format!(
            "POST /api/admin/apps HTTP/1.1\r\nhost: h\r\nconnection: close\r\nauthorization: Basic \
             {}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
            base64::Engine::encode(
                &base64::engine::general_purpose::STANDARD,
                format!("{}:{}", ADMIN.0, ADMIN.1)
            ),
            body.len()
        );
        let got = exchange(&server, &[head.as_bytes(), &body].concat()).await;
        assert_eq!(got.statuses(), [status], "{case}: {}", got.text());
        assert!(got.is_closed, "{case}");
        let errors = got.text();
        assert!(errors.contains(r#"{"errors":{"#) && errors.len() < 1_000, "{case}: {errors}");
    }
    let apps = server.admin("GET", "/api/admin/apps", None).await.json();
    assert_eq!(apps["data"].as_array().map(Vec::len), Some(1), "{apps}");
}

#[tokio::test]
async fn ten_megabytes_at_once_from_many_leave_the_memory_as_it_was() {
    let process = Process::start(&[]);
    let server = &process.server;
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\nauthorization: {CREDENTIALS}\r\ncontent-type: \
             application/json\r\n"
        )
    };
    let body = vec![b'['; 10_000_000];
    let sized = format!("{}content-length: 10000000\r\n\r\n", head(EVENTS));
    let sized = [sized.as_bytes(), &body].concat();
    // The server can find the end of a body in chunks, so the connection can be used again.
    let chunked = format!("{}transfer-encoding: chunked\r\n\r\n989680\r\n", head(EVENTS));
    let again = "\r\n0\r\n\r\nGET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let chunked = [chunked.as_bytes(), &body, again.as_bytes()].concat();
    assert_well(server).await;
    let before = process.resident_bytes();
    let mut most = before;
    for _ in 0..3 {
        let requests = (0..10).flat_map(|_| [(&sized, &[413][..]), (&chunked, &[413, 200])]);
        let all = requests
            .map(|(bytes, statuses)| async move { (exchange(server, bytes).await, statuses) });
        for (got, statuses) in join_all(all).await {
            assert_eq!(got.statuses(), statuses, "{}", got.text());
            assert!(got.is_closed);
        }
        most = most.max(process.resident_bytes());
    }
    let grown = most.saturating_sub(before);
    assert!(grown < 48 << 20, "grown by {grown} bytes");
    assert_well(server).await;
}

#[tokio::test]
async fn a_thousand_that_stop_within_a_second_request_end_and_hold_nobody_up() {
    const COUNT: usize = 1_000;
    let idle_timeout = Duration::from_secs(6);
    let server = TestServer::start_with(|settings| settings.socket.idle_timeout = idle_timeout);
    let halves = [
        "GET /hea".to_owned(),
        "GET /health HTTP/1.1\r\nhost".to_owned(),
        format!(
            "POST {EVENTS} HTTP/1.1\r\nauthorization: {CREDENTIALS}\r\ncontent-length: 99\r\n\
                 content-type: application/json\r\nhost: h\r\n\r\n{{"
        ),
        format!(
            "POST {EVENTS} HTTP/1.1\r\nauthorization: {CREDENTIALS}\r\nhost: h\r\ncontent-type: \
                 application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{{"
        ),
    ];
    let server = &server;
    let half = |nth: usize| {
        let second = halves[nth % halves.len()].clone();
        async move {
            let mut stream = raw::connect(server).await;
            let first = "GET /health HTTP/1.1\r\nhost: h\r\n\r\n";
            stream.write_all(first.as_bytes()).await.expect("room");
            assert_eq!(raw::answer(&mut stream).await, (200, r#"{"status":"ok"}"#.to_owned()));
            stream.write_all(second.as_bytes()).await.expect("room");
            stream
        }
    };
    let mut streams = join_all((0..COUNT).map(half)).await;
    let began = Instant::now();
    assert_well(server).await;
    assert_eq!(get(server.url("/ready")).await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(4), "others wait: {:?}", began.elapsed());
    join_all(streams.iter_mut().map(raw::hung_up)).await;
    assert_well(server).await;
}
