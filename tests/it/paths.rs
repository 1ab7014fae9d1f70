//! Paths with empty segments, which clients send that concatenate a base URL and a path.

use crate::support::{http::Answer, *};
use serde_json::{Value, json};

/// Calls with an app's key and secret.
async fn call(server: &TestServer, method: &str, path: &str, body: &Value) -> Answer {
    let App { key, secret, .. } = App::seeded();
    request(method, server.url(path)).basic(&key, &secret).json(body).send().await
}

#[tokio::test]
async fn a_websocket_is_opened_wherever_its_path_has_empty_segments() {
    let server = TestServer::start();
    for path in [
        "/socket//websocket",
        "//socket/websocket",
        "/socket/websocket/",
        "///events///websocket///",
        "/socket/",
        "//events//",
    ] {
        let mut socket = Socket::open(&server, &format!("{path}?vsn=2.0.0")).await;
        socket.text(r#"["1","1","public:test-app","phx_join",{}]"#).await;
        let expected = r#"["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]"#;
        assert_eq!(socket.frame().await, expected, "{path}");
    }
}

#[tokio::test]
async fn a_long_poll_session_is_opened_wherever_its_path_has_empty_segments() {
    let server = TestServer::start();
    for path in
        ["/socket//longpoll", "//socket/longpoll", "/socket/longpoll/", "//events//longpoll//"]
    {
        let poller = Poller::open(&server, &format!("{path}?vsn=2.0.0&")).await;
        let mut socket = Socket::polled(poller, V2);
        socket.text(r#"["1","1","public:test-app","phx_join",{}]"#).await;
        let expected = r#"["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]"#;
        assert_eq!(socket.frame().await, expected, "{path}");
    }
}

#[tokio::test]
async fn the_http_api_is_found_wherever_its_path_has_empty_segments() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.text(r#"["1","1","public:test-app","phx_join",{}]"#).await;
    socket.frame().await;
    let event = json!({"scope": "public", "topic": "news", "event": "msg", "payload": {"n": 1}});
    for path in [
        "//api/apps/test-app/events",
        "/api/apps/test-app/events/",
        "/api//apps///test-app//events//",
    ] {
        let answer = call(&server, "POST", path, &event).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "{}"), "{path}");
        let heard = r#"[null,null,"public:test-app","news:msg",{"n":1}]"#;
        assert_eq!(socket.frame().await, heard, "{path}");
    }
    for path in ["/health/", "//ready", "//"] {
        assert_eq!(get(server.url(path)).await.status, 200, "{path}");
    }
    for path in ["//api/admin/apps", "/api/admin/apps/", "/api/admin//apps//test-app", "/metrics/"]
    {
        assert_eq!(server.admin("GET", path, None).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_listener_of_the_metrics_reads_paths_alike() {
    let server = TestServer::start_with(|settings| {
        settings.metrics.listen = Some("127.0.0.1:0".parse().expect("an address"));
    });
    let port = server.metrics_port.expect("a listener for metrics");
    for path in ["/metrics", "//metrics", "/metrics/"] {
        let answer = get(format!("http://127.0.0.1:{port}{path}")).await;
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[tokio::test]
async fn an_empty_segment_of_a_channel_name_counts_only_if_its_slashes_are_escaped() {
    let server = TestServer::start();
    for (path, channel) in [
        ("/a/b", Some("a/b")),
        ("//a//b/", Some("a/b")),
        ("/a%2F%2Fb%2f", Some("a//b/")),
        ("/%2Fa", Some("/a")),
        ("/a%252Fb", Some("a%2Fb")),
        ("/", None),
    ] {
        let path = format!("/api/apps/test-app/channels/public{path}");
        let answer = call(&server, "GET", &path, &json!(null)).await;
        let topic = channel.map_or("public:test-app".into(), |c| format!("public:test-app:{c}"));
        let told: Value = answer.json();
        let position = &told["data"]["position"];
        assert!(position.is_string(), "{path}: {told}");
        let expected = json!({
            "data": {
                "topic": topic, "scope": "public", "channel": channel, "subscribers": 0,
                "position": position,
            },
        });
        assert_eq!((answer.status, &told), (200, &expected), "{path}");
    }
}

#[tokio::test]
async fn an_unknown_path_under_api_is_answered_in_json() {
    let server = TestServer::start();
    let expected = (404, Some("application/json"), r#"{"errors":{"detail":"not found"}}"#);
    for path in [
        "/api",
        "//api//",
        "//api/nothing",
        "/api/nothing/",
        "/api/apps//",
        "/api//admin",
        "/api/apps/test-app/events/more",
    ] {
        for method in ["GET", "POST", "OPTIONS"] {
            let answer = call(&server, method, path, &json!({})).await;
            let got = (answer.status, answer.header("content-type"), answer.body.as_str());
            assert_eq!(got, expected, "{method} {path}");
        }
    }
    for path in ["/apis", "//nothing/api", "/api%2Fpublish"] {
        let answer = get(server.url(path)).await;
        assert_eq!((answer.status, answer.body.as_str()), (404, "not found\n"), "{path}");
    }
}
