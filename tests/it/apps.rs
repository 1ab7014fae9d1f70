//! The admin API from outside: its changes of apps take effect at once, on joins and on triggers.

use crate::support::*;
use base64::{Engine, engine::general_purpose::STANDARD};
use herald::settings::Environment;
use serde_json::{Value, json};

const CHANNEL: &str = "public:foo-app";

async fn foo_app(server: &TestServer) -> App {
    server.create_app(json!({ "name": "foo-app" })).await
}

async fn try_trigger(server: &TestServer, app: &App) -> u16 {
    let event = json!({ "topic": "#general", "event": "msg", "payload": {} });
    let url = server.url(&format!("/api/apps/{}/events", app.slug));
    request("POST", url).basic(&app.key, &app.secret).json(&event).send().await.status
}

async fn change(server: &TestServer, method: &str, body: Option<Value>) -> u16 {
    let body = body.map(|app| json!({ "app": app }));
    server.admin(method, "/api/admin/apps/foo-app", body).await.status
}

#[tokio::test]
async fn the_articles_call_makes_an_app_that_works_at_once() {
    let server = TestServer::start();
    let (user, password) = server::ADMIN;
    let call = request("POST", server.url("/api/admin/apps")).basic(user, password);
    let answer = call.form("app[name]=foo-app").send().await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    assert_eq!(answer.header("location"), Some("/api/admin/apps/foo-app"));
    let data = answer.json()["data"].clone();
    let text = |field: &str| data[field].as_str().expect("text").to_owned();
    let app = App { slug: text("slug"), key: text("key"), secret: text("secret") };

    let mut socket = Socket::connect(&server, V2).await;
    socket.join(CHANNEL, json!({})).await;
    assert_eq!(try_trigger(&server, &app).await, 200);
    assert_eq!(socket.frame().await, format!(r#"[null,null,"{CHANNEL}","msg",{{}}]"#));
}

#[tokio::test]
async fn each_secret_that_is_accepted_works_alone_in_its_header() {
    let server = TestServer::start();
    for (n, secret) in [
        "correct horse  battery",
        "Bearer 0123456789abcdef",
        "Basic Zm9vOmJhcg== and more",
        "\u{fc}ber\u{20ac}-\u{1f980}-0123456789",
        "\"quoted\", and, more: a;b",
    ]
    .into_iter()
    .enumerate()
    {
        let app = server.create_app(json!({ "name": format!("app-{n}"), "secret": secret })).await;
        assert_eq!(try_trigger(&server, &app).await, 200, "{secret}");
        let topic = format!("public:{}", app.slug);
        let event = json!({ "topic": topic, "event": "msg", "payload": {} }).to_string();
        let call = format!(
            "POST /api/publish HTTP/1.1\r\nhost: localhost\r\nauthorization: {secret}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{event}",
            event.len(),
        );
        let answers = raw::exchange(&server, call.as_bytes()).await;
        assert_eq!(answers.statuses(), [200], "{secret}: {}", answers.text());
    }
}

#[tokio::test]
async fn a_secret_that_no_header_carries_is_refused_in_json_and_in_a_form() {
    let server = TestServer::start();
    let (user, password) = server::ADMIN;
    let expected = json!({ "errors": { "secret": ["must not begin or end with white space"] } });
    for secret in [" 0123456789abcdef", "0123456789abcdef "] {
        let app = json!({ "app": { "name": "foo-app", "secret": secret } });
        let call = request("POST", server.url("/api/admin/apps")).basic(user, password);
        let by_json = call.json(&app).send().await;
        assert_eq!((by_json.status, by_json.json()), (422, expected.clone()), "{secret:?}");
        let form = format!("app[name]=foo-app&app[secret]={}", secret.replace(' ', "+"));
        let call = request("POST", server.url("/api/admin/apps")).basic(user, password);
        let by_form = call.form(&form).send().await;
        assert_eq!((by_form.status, by_form.json()), (422, expected.clone()), "{secret:?}");
    }
}

#[tokio::test]
async fn joins_that_are_no_longer_allowed_end_at_once() {
    for (case, method, body, status) in [
        ("deactivated", "PATCH", Some(json!({ "active": false })), 200),
        ("renamed", "PUT", Some(json!({ "name": "bar-app" })), 200),
        ("deleted", "DELETE", None, 204),
    ] {
        let server = TestServer::start();
        let app = foo_app(&server).await;
        let mut alone = Socket::connect(&server, V2).await;
        alone.join(CHANNEL, json!({})).await;
        let mut shared = Socket::connect(&server, V2).await;
        shared.join("public:test-app", json!({})).await;
        shared.join(CHANNEL, json!({})).await;

        assert_eq!(change(&server, method, body).await, status, "{case}");
        assert_eq!(alone.closed().await, 1001, "{case}");
        let error = shared.next().await;
        let crash = json!({ "reason": "channel_crash" });
        assert_eq!(error, json!(["1", "1", CHANNEL, "phx_error", crash]), "{case}");
        let joined = shared.try_join(CHANNEL, json!({})).await;
        let refused = json!({ "status": "error", "response": { "reason": "unmatched topic" } });
        assert_eq!(joined, refused, "{case}");
        assert_eq!(try_trigger(&server, &app).await, 401, "{case}");
    }
}

#[tokio::test]
async fn a_new_secret_counts_at_once_and_ends_the_joins_of_the_old_one() {
    let server = TestServer::start();
    let old = foo_app(&server).await;
    let claims = json!({ "exp": tokens::now_s() + 60, "listen": ["private:foo-app"] });
    let payload = json!({ "guardian_token": tokens::token(&old, &claims) });
    let mut private = Socket::connect(&server, V2).await;
    private.join("private:foo-app", payload.clone()).await;
    let mut public = Socket::connect(&server, V2).await;
    public.join(CHANNEL, json!({})).await;

    let new = server.update_app("foo-app", json!({ "secret": "" })).await;
    assert_eq!(private.closed().await, 1001);
    let mut again = Socket::connect(&server, V2).await;
    let refused = again.try_join("private:foo-app", payload).await;
    let expected = json!({ "status": "error", "response": { "error": "invalid_token" } });
    assert_eq!(refused, expected);
    assert_eq!(try_trigger(&server, &old).await, 401);
    public.assert_quiet().await;
    assert_eq!(try_trigger(&server, &new).await, 200);
}

#[tokio::test]
async fn tightened_origins_end_the_joins_of_pages_from_elsewhere() {
    let server = TestServer::start();
    foo_app(&server).await;
    let path = "/socket/websocket?vsn=2.0.0";
    let mut pages = Vec::new();
    for origin in ["https://a.example", "https://b.example"] {
        let opened = Socket::open_with(&server, path, &[("origin", origin)]).await;
        let (mut socket, _) = opened.expect("a handshake");
        socket.join(CHANNEL, json!({})).await;
        pages.push(socket);
    }
    let only_a = json!({ "allowed_origins": ["https://a.example"] });
    assert_eq!(change(&server, "PATCH", Some(only_a)).await, 200);
    assert_eq!(pages[1].closed().await, 1001);
    pages[0].assert_quiet().await;
}

#[tokio::test]
async fn a_change_that_forbids_nothing_ends_nothing() {
    let server = TestServer::start();
    foo_app(&server).await;
    let mut socket = Socket::connect(&server, V2).await;
    socket.join(CHANNEL, json!({})).await;
    for given in [json!({ "client_events": "none" }), json!({ "shared_tokens": true })] {
        assert_eq!(change(&server, "PATCH", Some(given)).await, 200);
    }
    socket.assert_quiet().await;
}

#[tokio::test]
async fn an_app_says_how_much_history_it_has_and_the_api_shows_it() {
    const URL: &str = "/api/admin/apps/foo-app";
    let server = TestServer::start();
    foo_app(&server).await;
    let (user, password) = server::ADMIN;
    let form =
        |body: &'static str| request("PATCH", server.url(URL)).basic(user, password).form(body);
    let history = |answer: &Value| {
        let data = &answer["data"];
        (data["history_publications"].clone(), data["history_seconds"].clone())
    };
    let shown = server.admin("GET", URL, None).await.json();
    assert_eq!(history(&shown), (Value::Null, Value::Null), "the server's defaults hold");

    let given = json!({ "app": { "history_publications": 500, "history_seconds": 0 } });
    let changed = server.admin("PATCH", URL, Some(given)).await.json();
    assert_eq!(history(&changed), (500.into(), 0.into()));
    let body = "app[history_publications]=&app[history_seconds]=604800";
    assert_eq!(history(&form(body).send().await.json()), (Value::Null, 604_800.into()));

    let refused = form("app[history_publications]=100001&app[history_seconds]=1.5").send().await;
    let expected = json!({ "errors": {
        "history_publications": ["must be a whole number from 0 to 100000"],
        "history_seconds": ["must be a whole number from 0 to 604800"],
    } });
    assert_eq!((refused.status, refused.json()), (422, expected));
    let shown = server.admin("GET", URL, None).await.json();
    assert_eq!(history(&shown), (Value::Null, 604_800.into()), "nothing was changed");
    let reset = json!({ "app": { "history_seconds": null } });
    let changed = server.admin("PATCH", URL, Some(reset)).await.json();
    assert_eq!(history(&changed), (Value::Null, Value::Null));
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_answered_and_the_server_goes_on() {
    let server = TestServer::start();
    let (user, password) = server::ADMIN;
    let url = server.url("/api/admin/apps");
    let body = format!("app[name]={}", "x".repeat(10_000_000));
    let answer = request("POST", url).basic(user, password).form(&body).send().await;
    assert_eq!(answer.status, 413);
    assert_eq!(server.admin("GET", "/api/admin/apps", None).await.status, 200);
}

#[tokio::test]
async fn in_development_a_strangers_name_for_this_machine_opens_nothing() {
    let server = TestServer::start_with(|settings| settings.env = Environment::Development);
    let (user, password) = server::ADMIN;
    let credentials = STANDARD.encode(format!("{user}:{password}"));
    for (path, host, expected) in [
        ("/api/admin/apps", "evil.example:4000", 403),
        ("/api/admin/apps/test-app", "evil.example", 403),
        ("/metrics", "evil.example", 403),
        ("/health", "evil.example", 200),
        ("/api/admin/apps", "localhost:4000", 200),
        ("/metrics", "127.0.0.1", 200),
    ] {
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Basic {credentials}\r\n\
             connection: close\r\n\r\n"
        );
        let exchange = raw::exchange(&server, head.as_bytes()).await;
        assert_eq!(exchange.statuses(), [expected], "{path} of {host}");
        assert_eq!(exchange.text().contains("HERALD__SERVER__PUBLIC_HOST"), expected == 403);
    }
}
