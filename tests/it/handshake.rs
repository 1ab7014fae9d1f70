//! Sections 14.1 and 14.2 of the protocol document: the handshakes that open a socket, and those that are refused.

use crate::support::{tokens::token, *};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use herald::app::origin::OriginPolicy;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const PATH: &str = "/socket/websocket?vsn=2.0.0";
const JOINED: &str = r#"
    > ["1","1","private:test-app","phx_join",{}]
    < ["1","1","private:test-app","phx_reply",{"status":"ok","response":{"message":"Joined"}}]
"#;

/// Sends the request for an upgrade as bytes; answers the stream and the head of the response in lower case.
async fn upgrade(server: &TestServer, path: &str, headers: &[&str]) -> (TcpStream, String) {
    let mut tcp = TcpStream::connect(("127.0.0.1", server.port)).await.expect("a connection");
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nUpgrade: websocket\r\n{headers}\r\n",
        server.port
    );
    tcp.write_all(request.as_bytes()).await.expect("the request is taken");
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.expect("a whole head"));
        }
    };
    timeout(DEADLINE, read).await.expect("an answer in time");
    (tcp, String::from_utf8(head).expect("text").to_lowercase())
}

const PROPER: [&str; 3] = [
    "Connection: keep-alive, Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// A proper upgrade with one more header.
async fn upgrade_with(server: &TestServer, header: &str) -> (TcpStream, String) {
    let [connection, version, key] = PROPER;
    upgrade(server, PATH, &[connection, version, key, header]).await
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).expect("a status")
}

#[tokio::test]
async fn e001_e002_e003_e006_e012_the_version_is_negotiated() {
    let server = TestServer::start();
    for (query, expected) in [
        ("?vsn=2.0.0", V2),
        ("?vsn=1.0.0", V1),
        ("", V1),
        ("?other=2.0.0", V1),
        ("?vsn=1.0.7", V1),
        ("?vsn=2.0.9", V2),
        ("?vsn=2.0.1-rc.1", V2),
        ("?vsn=2.0.0%2Bx", V2),
        ("?vsn=1.0.0&vsn=2.0.0", V2),
        ("?vsn=2.0.0&vsn=1.0.0", V1),
    ] {
        let mut socket = Socket::open(&server, &format!("/socket/websocket{query}")).await;
        let (sent, reply) = match expected {
            V1 => (
                r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}"#,
                json!({
                    "topic": "phoenix", "event": "phx_reply", "ref": "1",
                    "payload": {"status": "ok", "response": {}},
                }),
            ),
            _ => (
                r#"[null,"1","phoenix","heartbeat",{}]"#,
                json!([null, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}]),
            ),
        };
        socket.text(sent).await;
        let frame: Value = serde_json::from_str(&socket.frame().await).expect("JSON");
        assert_eq!(frame, reply, "{query}");
    }
}

#[tokio::test]
async fn e004_e005_e007_a_version_that_nobody_speaks_is_refused() {
    let server = TestServer::start();
    for query in [
        "vsn=123.1.1",
        "vsn=2.0",
        "vsn=2",
        "vsn=",
        "vsn[]=2.0.0",
        "vsn=1.1.0",
        "vsn=2.1.0",
        "vsn=2.0.0-rc.1",
        "vsn=0.9.0",
        "vsn=02.0.0",
        "vsn=%202.0.0",
        "vsn=2.0.0&vsn=3.0.0",
    ] {
        let refused = Socket::refused(&server, &format!("/socket/websocket?{query}"), &[]).await;
        assert_eq!(refused, (403, String::new()), "{query}");
    }
}

#[tokio::test]
async fn e011_empty_pairs_and_nested_keys_do_no_harm() {
    let server = TestServer::start();
    let token = token(&App::seeded(), &json!({"listen": ["private:*"]}));
    for query in [
        format!("a=1&&b[c]=2&guardian_token={token}&vsn=2.0.0&"),
        format!("&&a=1&b%5Bc%5D=2&&vsn=2.0.0&guardian_token={token}&&"),
        format!("=&b[c][d][]=2&vsn=2.0.0&=x&guardian_token=old&guardian_token={token}"),
    ] {
        let mut socket = Socket::open(&server, &format!("/socket/websocket?{query}")).await;
        socket.play(JOINED).await;
    }
}

#[tokio::test]
async fn e015_a_plain_request_is_told_what_it_lacks() {
    let server = TestServer::start();
    let answer = get(server.url(PATH)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("'connection' header"), "{}", answer.body);
    for (missing, at) in [("connection", 0), ("sec-websocket-version", 1), ("sec-websocket-key", 2)]
    {
        let mut headers = PROPER.to_vec();
        headers.remove(at);
        headers.push("Connection: close");
        let (mut tcp, head) = upgrade(&server, PATH, &headers).await;
        let mut body = String::new();
        let read = timeout(DEADLINE, tcp.read_to_string(&mut body)).await;
        read.expect("a body in time").expect("a body");
        assert_eq!(status(&head), "400", "{missing}: {head}");
        assert!(body.contains(missing), "{missing}: {body}");
    }
}

#[tokio::test]
async fn connection_and_upgrade_are_lists_in_any_order_and_case_on_any_lines() {
    let server = TestServer::start();
    for fields in [
        "connection: Upgrade\r\nupgrade: websocket",
        "connection: close, Upgrade\r\nupgrade: websocket",
        "connection: upgrade, close\r\nupgrade: WebSocket, h2c",
        "UPGRADE: h2c,WEBSOCKET\r\nCONNECTION: keep-alive ,UPGRADE",
        "connection: keep-alive\r\nupgrade: h2c\r\nconnection: upgrade\r\nupgrade: websocket",
        "connection: close\r\nconnection: upgrade\r\nupgrade: websocket\r\nupgrade: h2c",
    ] {
        let mut tcp = TcpStream::connect(("127.0.0.1", server.port)).await.expect("a connection");
        let request = format!(
            "GET {PATH} HTTP/1.1\r\nhost: h\r\n{fields}\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        tcp.write_all(request.as_bytes()).await.expect("the request is taken");
        let (status, body) = raw::answer(&mut tcp).await;
        assert_eq!((status, body.as_str()), (101, ""), "{fields}");
        Socket::over(tcp, V2).await.assert_quiet().await;
    }
}

#[tokio::test]
async fn a_handshake_that_is_both_refused_and_malformed_is_refused() {
    let server = TestServer::start();
    let answer = get(server.url("/socket/websocket?vsn=3.0.0")).await;
    assert_eq!((answer.status, answer.body.as_str()), (403, ""));
    let (_, head) = upgrade(&server, "/socket/websocket?vsn=3.0.0", &[]).await;
    assert_eq!(status(&head), "403", "{head}");
}

#[tokio::test]
async fn e017_other_methods_are_bad_requests() {
    let server = TestServer::start();
    for method in ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"] {
        let answer = request(method, server.url(PATH)).send().await;
        assert_eq!((answer.status, answer.body.as_str()), (400, ""), "{method}");
        assert_eq!(answer.header("content-type"), None, "{method}");
    }
}

#[tokio::test]
async fn e018_unknown_paths_are_not_found() {
    let server = TestServer::start();
    for (path, status) in [
        // A page and a call of the API, which are no sockets.
        ("/", 200),
        ("/api/apps/test-app/events", 405),
        ("/websocket", 404),
        ("/sockets/websocket", 404),
        ("/socket/websocket/x", 404),
        ("/socket/nothing", 404),
        ("/Socket/websocket", 404),
    ] {
        let refused = Socket::refused(&server, &format!("{path}?vsn=2.0.0"), &[]).await;
        assert_eq!(refused.0, status, "{path}");
        assert_eq!(get(server.url(path)).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn sockets_are_mounted_where_the_articles_and_old_clients_look() {
    let server = TestServer::start();
    for path in
        ["/socket/websocket", "/events/websocket", "/socket", "/events", "/socket/websocket/"]
    {
        let mut socket = Socket::open(&server, &format!("{path}?vsn=2.0.0")).await;
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e019_compression_is_not_agreed_to() {
    let server = TestServer::start();
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits";
    let (tcp, head) = upgrade_with(&server, offer).await;
    assert_eq!(status(&head), "101", "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    assert!(!head.contains("sec-websocket-extensions"), "{head}");
    Socket::over(tcp, V2).await.assert_quiet().await;
}

/// A server with a global origin check.
fn with_origins(setting: &[&str]) -> TestServer {
    let setting: Vec<String> = setting.iter().map(|&entry| entry.to_owned()).collect();
    let policy = OriginPolicy::parse(&setting, "herald.example").expect("a policy");
    TestServer::start_with(|settings| settings.socket.check_origin = policy)
}

/// Opens a socket as a page of each origin; the handshake must be accepted, or refused with an empty 403.
async fn assert_judged(server: &TestServer, cases: &[(Option<&str>, bool)]) {
    for (origin, is_allowed) in cases {
        let headers: Vec<_> = origin.iter().map(|origin| ("origin", *origin)).collect();
        let (status, body) = Socket::refused(server, PATH, &headers).await;
        assert_eq!(status, if *is_allowed { 101 } else { 403 }, "{origin:?}");
        assert_eq!(body, "", "{origin:?}");
    }
}

#[tokio::test]
async fn e020_a_client_without_an_origin_is_allowed() {
    for setting in [&["false"][..], &["true"], &["conn"], &["//example.com"]] {
        assert_judged(&with_origins(setting), &[(None, true)]).await;
    }
}

/// Opens sockets as pages of these origins at a server with a list that is always the same.
async fn assert_listed(cases: &[(&str, bool)]) {
    let entries =
        ["//example.com", "//*.wild.com", "//ex.com", "http://scheme.com", "//port.com:81"];
    let cases: Vec<_> = cases.iter().map(|(origin, ok)| (Some(*origin), *ok)).collect();
    assert_judged(&with_origins(&entries), &cases).await;
}

#[tokio::test]
async fn e021_e022_a_list_admits_its_hosts_and_no_others() {
    let cases = [
        ("https://example.com", true),
        ("http://example.com", true),
        ("https://example.com:8443", true),
        ("http://notallowed.com", false),
        ("https://example.com.notallowed.com", false),
        ("https://notexample.com", false),
    ];
    assert_listed(&cases).await;
}

#[tokio::test]
async fn e023_e024_a_wildcard_covers_subdomains_and_the_apex() {
    let cases = [
        ("https://a.b.wild.com", true),
        ("https://wild.com", true),
        ("https://evilwild.com", false),
        ("https://wild.com.evil.com", false),
    ];
    assert_listed(&cases).await;
}

#[tokio::test]
async fn e025_without_a_wildcard_subdomains_are_not_covered() {
    assert_listed(&[("https://ex.com", true), ("https://org1.ex.com", false)]).await;
}

#[tokio::test]
async fn e026_e027_an_entry_insists_on_the_scheme_and_port_it_spells_out() {
    let cases = [
        ("http://scheme.com", true),
        ("http://scheme.com:80", true),
        ("https://scheme.com", false),
        ("http://scheme.com:8080", false),
        ("https://port.com:81", true),
        ("http://port.com:81", true),
        ("https://port.com:82", false),
        ("https://port.com", false),
    ];
    assert_listed(&cases).await;
}

const NO_ORIGINS: [&str; 5] = ["null", "", "file://", "example.com", "http://"];

#[tokio::test]
async fn e028_an_invalid_origin_is_refused_wherever_a_check_is_on() {
    for setting in ["//example.com", "true", "conn"] {
        let server = with_origins(&[setting]);
        assert_judged(&server, &NO_ORIGINS.map(|origin| (Some(origin), false))).await;
    }
}

#[tokio::test]
async fn e029_with_the_check_off_any_origin_will_do() {
    let server = with_origins(&["false"]);
    assert_judged(&server, &NO_ORIGINS.map(|origin| (Some(origin), true))).await;
    assert_judged(&server, &[(Some("https://anywhere.example"), true)]).await;
}

#[tokio::test]
async fn e030_the_public_host_is_allowed_over_any_scheme_and_port() {
    let cases = [
        ("https://herald.example", true),
        ("http://herald.example", true),
        ("http://herald.example:4000", true),
        ("https://www.herald.example", false),
        ("https://localhost", false),
    ];
    assert_judged(&with_origins(&["true"]), &cases.map(|(origin, ok)| (Some(origin), ok))).await;
}

#[tokio::test]
async fn e031_the_connections_own_origin_is_compared_whole() {
    let server = with_origins(&["conn"]);
    let origin = |scheme: &str, host: &str, port: u16| format!("{scheme}://{host}:{port}");
    for (origin, is_allowed) in [
        (origin("http", "127.0.0.1", server.port), true),
        (origin("https", "127.0.0.1", server.port), false),
        (origin("ws", "127.0.0.1", server.port), false),
        (origin("http", "localhost", server.port), false),
        (origin("http", "127.0.0.1", server.port ^ 1), false),
        ("http://127.0.0.1".to_owned(), false),
    ] {
        assert_judged(&server, &[(Some(&origin), is_allowed)]).await;
    }
}

/// Offers subprotocols; answers the stream, the head, and the subprotocol that was chosen.
async fn offer(server: &TestServer, offered: &str) -> (TcpStream, String, Option<String>) {
    let (tcp, head) = upgrade_with(server, &format!("Sec-WebSocket-Protocol: {offered}")).await;
    let mut lines = head.lines();
    let chosen = lines.find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
    let chosen = chosen.map(str::to_owned);
    (tcp, head, chosen)
}

fn bearer() -> String {
    let token = token(&App::seeded(), &json!({"listen": ["private:*"]}));
    format!("base64url.bearer.phx.{}", STANDARD_NO_PAD.encode(token))
}

#[tokio::test]
async fn e035_a_token_among_the_subprotocols_is_taken_and_never_echoed() {
    let server = TestServer::start();
    let (tcp, head, chosen) = offer(&server, "phoenix, base64url.bearer.phx.aGVsbG8").await;
    assert_eq!((status(&head), chosen.as_deref()), ("101", Some("phoenix")), "{head}");
    assert!(!head.contains("bearer"), "{head}");
    // The token is not a JWT. Only a join that needs a token notices this.
    let invalid = r#"
        > ["1","1","private:test-app","phx_join",{}]
        < ["1","1","private:test-app","phx_reply",{"status":"error","response":{"error":"invalid_token"}}]
    "#;
    Socket::over(tcp, V2).await.play(invalid).await;
    let (tcp, head, chosen) = offer(&server, &format!("phoenix, {}", bearer())).await;
    assert_eq!((status(&head), chosen.as_deref()), ("101", Some("phoenix")), "{head}");
    Socket::over(tcp, V2).await.play(JOINED).await;
}

#[tokio::test]
async fn e036_a_token_alone_is_taken_and_no_subprotocol_chosen() {
    let server = TestServer::start();
    let (tcp, head, chosen) = offer(&server, &bearer()).await;
    assert_eq!((status(&head), chosen), ("101", None), "{head}");
    Socket::over(tcp, V2).await.play(JOINED).await;
}

#[tokio::test]
async fn e037_e038_other_subprotocols_and_unreadable_tokens_are_refused() {
    let server = TestServer::start();
    for offered in [
        "mqtt",
        "mqtt, base64url.bearer.phx.aGVsbG8",
        "base64url.bearer.phx.aGVsbG8, base64url.bearer.phx.aGVsbG8",
        "phoenix, base64url.bearer.phx.!",
        "phoenix, base64url.bearer.phx.aGVsb",
        "phoenix, base64url.bearer.phx._w",
    ] {
        let (_, head, chosen) = offer(&server, offered).await;
        assert_eq!((status(&head), chosen), ("403", None), "{offered}: {head}");
    }
    let (tcp, head, chosen) = offer(&server, "mqtt, phoenix").await;
    assert_eq!((status(&head), chosen.as_deref()), ("101", Some("phoenix")), "{head}");
    Socket::over(tcp, V2).await.assert_quiet().await;
}
