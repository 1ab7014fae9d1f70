//! SPEC.md, *The console*: what an app's own login may see and change of its app.

use std::time::Duration;

use herald::{
    app::{Slug, audit::ChangedBy, change, key_pair::Overlap},
    http::change_pace::CHANGES_PER_MINUTE_MAX,
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::support::{tokens::token, *};

const OWN: &str = "/api/apps/foo-app";
const PRIVATE: &str = "private:foo-app:room";

async fn foo_app(server: &TestServer) -> App {
    server.create_app(json!({ "name": "foo-app" })).await
}

/// Calls the app's own endpoints with its key and secret.
async fn call(
    server: &TestServer,
    app: &App,
    method: &str,
    path: &str,
    body: Value,
) -> http::Answer {
    let url = server.url(&format!("{OWN}{path}"));
    request(method, url).basic(&app.key, &app.secret).json(&body).send().await
}

async fn change(server: &TestServer, app: &App, fields: Value) -> http::Answer {
    call(server, app, "PATCH", "", json!({ "app": fields })).await
}

fn pair(answer: &http::Answer) -> App {
    let data = &answer.json()["data"];
    let text = |field: &str| data[field].as_str().expect("text").to_owned();
    App { slug: text("slug"), key: text("key"), secret: text("secret") }
}

async fn as_admin_sees_it(server: &TestServer) -> Value {
    server.admin("GET", "/api/admin/apps/foo-app", None).await.json()["data"].clone()
}

#[tokio::test]
async fn an_app_sees_itself_without_its_secret() {
    let server = TestServer::start();
    let app = foo_app(&server).await;
    let shown = call(&server, &app, "GET", "", json!({})).await;
    assert_eq!((shown.status, shown.header("cache-control")), (200, Some("no-store")));
    let mut expected = as_admin_sees_it(&server).await;
    expected.as_object_mut().expect("an object").remove("secret");
    assert_eq!(shown.json()["data"], expected);
    assert!(!shown.body.contains(&app.secret));
    let put = call(&server, &app, "PUT", "", json!({})).await;
    assert_eq!((put.status, put.header("allow")), (405, Some("GET, HEAD, PATCH")));
    let delete = call(&server, &app, "DELETE", "", json!({})).await;
    assert_eq!(delete.status, 405, "an app does not delete itself");
    let get = call(&server, &app, "GET", "/rotate", json!({})).await;
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
}

#[tokio::test]
async fn an_app_changes_its_settings_and_nothing_else() {
    let server = TestServer::start();
    let app = foo_app(&server).await;
    let before = as_admin_sees_it(&server).await;
    let given = json!({
        "allowed_origins": ["https://a.example"], "client_events": "none", "shared_tokens": true,
        "history_publications": 7, "history_seconds": 8, "id": 99, "previous_key": "x",
        "pusher": false, "subscription_count": false, "authorized_only": true,
    });
    let answer = change(&server, &app, given).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let mut expected = as_admin_sees_it(&server).await;
    expected.as_object_mut().expect("an object").remove("secret");
    assert_eq!(answer.json()["data"], expected);
    assert_eq!(expected["client_events"], "none");
    assert_eq!((&expected["id"], &expected["key"]), (&before["id"], &before["key"]));

    let now = as_admin_sees_it(&server).await;
    let forbidden = json!(["can be changed by the administrator only"]);
    for (given, faults) in [
        (json!({ "active": false }), json!({ "active": forbidden })),
        (json!({ "name": "another", "client_events": "all" }), json!({ "name": forbidden })),
        (
            json!({ "name": "x", "active": 7, "client_events": "x" }),
            json!({ "name": forbidden, "active": forbidden, "client_events": ["is invalid"] }),
        ),
        (json!({ "secret": "x" }), json!({ "secret": ["should be at least 16 character(s)"] })),
        (json!({ "key": "test-app-fake-key" }), json!({ "key": ["has already been taken"] })),
    ] {
        let answer = change(&server, &app, given.clone()).await;
        assert_eq!((answer.status, &answer.json()["errors"]), (422, &faults), "{given}");
    }
    let slug = change(&server, &app, json!({ "slug": "another" })).await;
    assert_eq!(slug.status, 200, "the field is ignored, as it is in a change by the administrator");
    assert_eq!(as_admin_sees_it(&server).await, now, "a refused change changes nothing");
    let form = request("PATCH", server.url(OWN)).basic(&app.key, &app.secret);
    let form = form.form("app[client_events]=all&app[allowed_origins]=").send().await;
    assert_eq!((form.status, &form.json()["data"]["client_events"]), (200, &json!("all")));
    for (body, status) in [(json!({}), 400), (json!({ "app": 1 }), 400), (json!([]), 400)] {
        assert_eq!(call(&server, &app, "PATCH", "", body).await.status, status);
    }
    let entries = server.admin("GET", "/api/admin/audit?limit=2", None).await.json();
    let told =
        |entry: &Value| json!([entry["actor"], entry["address"], entry["action"], entry["fields"]]);
    let expected = [
        json!(["app", "127.0.0.1", "update", ["allowed_origins", "client_events"]]),
        json!([
            "app",
            "127.0.0.1",
            "update",
            [
                "allowed_origins",
                "client_events",
                "shared_tokens",
                "history_publications",
                "history_seconds",
                "pusher",
                "subscription_count",
                "authorized_only",
            ]
        ]),
    ];
    assert_eq!(
        entries["data"].as_array().expect("a list").iter().map(told).collect::<Vec<_>>(),
        expected
    );
}

#[tokio::test]
async fn a_secret_that_an_app_changes_is_in_that_answer_alone() {
    let server = TestServer::start();
    let app = foo_app(&server).await;
    let claims = json!({ "listen": ["private:*"] });
    let mut socket = Socket::connect(&server, V2).await;
    socket.join(PRIVATE, json!({ "guardian_token": token(&app, &claims) })).await;
    let answer = change(&server, &app, json!({ "secret": "" })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let changed = pair(&answer);
    assert_ne!(changed.secret, app.secret);
    assert_eq!(socket.closed().await, 1001);
    assert_eq!(change(&server, &app, json!({})).await.status, 401, "the old secret has ended");
    let again = change(&server, &changed, json!({ "secret": changed.secret })).await;
    assert_eq!(again.status, 200);
    assert!(!again.body.contains(&changed.secret), "an unchanged secret is not shown");
    let other = change(&server, &changed, json!({ "client_events": "all" })).await;
    assert!(!other.body.contains(&changed.secret), "{}", other.body);
}

#[tokio::test]
async fn an_app_rotates_its_pair_and_the_previous_one_may_only_read() {
    let server = TestServer::start();
    let old = foo_app(&server).await;
    let answer = call(&server, &old, "POST", "/rotate", json!({ "overlap_seconds": 60 })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let new = pair(&answer);
    assert_eq!(answer.json()["data"], as_admin_sees_it(&server).await);
    assert_eq!(answer.json()["data"]["previous_key"], json!(old.key));
    let event = json!({ "topic": "t", "event": "e" });
    for app in [&old, &new] {
        server.trigger(app, event.clone()).await;
        let shown = call(&server, app, "GET", "", json!({})).await;
        assert_eq!(shown.status, 200);
        for secret in [&old.secret, &new.secret] {
            assert!(!shown.body.contains(secret), "{}", shown.body);
        }
        assert_eq!(call(&server, app, "GET", "/audit", json!({})).await.status, 200);
    }
    let now = as_admin_sees_it(&server).await;
    let refused =
        json!({ "errors": { "detail": "the previous key and secret do not permit this" } });
    let secret = call(&server, &old, "POST", "/secret", json!({})).await;
    assert_eq!((secret.status, secret.json()), (403, refused.clone()), "it gets no new secret");
    let secret = call(&server, &new, "POST", "/secret", json!({})).await;
    assert_eq!((secret.status, &secret.json()["data"]["secret"]), (200, &json!(new.secret)));
    let by_old = change(&server, &old, json!({ "secret": "" })).await;
    assert_eq!((by_old.status, by_old.json()), (403, refused.clone()));
    let by_old = call(&server, &old, "POST", "/rotate", json!({})).await;
    assert_eq!((by_old.status, by_old.json()), (403, refused));
    assert_eq!(as_admin_sees_it(&server).await, now);
    let bad = call(&server, &new, "POST", "/rotate", json!({ "overlap_seconds": -1 })).await;
    assert_eq!(bad.status, 422);
    let none = call(&server, &new, "POST", "/rotate", json!({ "overlap_seconds": 0 })).await;
    assert_eq!((none.status, &none.json()["data"]["previous_key"]), (200, &Value::Null));
    for app in [&old, &new] {
        assert_eq!(call(&server, app, "GET", "", json!({})).await.status, 401);
    }
    let entries = server.admin("GET", "/api/admin/audit?limit=2", None).await.json();
    for entry in entries["data"].as_array().expect("a list") {
        assert_eq!((&entry["actor"], &entry["action"]), (&json!("app"), &json!("rotate")));
        assert_eq!(entry["fields"], json!(["key", "secret"]));
    }
}

#[tokio::test]
async fn the_old_pair_gets_nothing_from_a_server_that_has_not_read_a_rotation_yet() {
    for (method, path, body) in [
        ("PATCH", "", json!({ "app": { "pusher": true } })),
        ("PATCH", "", json!({ "app": { "client_events": "all" } })),
        ("PATCH", "", json!({ "app": { "secret": "" } })),
        ("POST", "/rotate", json!({ "overlap_seconds": 0 })),
    ] {
        for (overlap, status) in [(json!(0), 401), (json!(60), 403)] {
            let server = TestServer::start_with(|settings| {
                settings.registry.refresh = Duration::from_secs(3_600);
            });
            let old = foo_app(&server).await;
            let (store, slug) = (server.store().await, Slug::parse("foo-app").expect("a slug"));
            let given = Overlap::read(Some(&overlap)).expect("an overlap");
            let rotation = change::rotate(&store, &ChangedBy::CLI, &slug, given);
            let rotated = rotation.await.expect("a rotation");
            let secret = rotated.secret.expose_secret();
            let read = async || call(&server, &old, "GET", "/audit", json!({})).await.status;
            assert_eq!(read().await, 200, "the server still accepts the old pair");
            let answer = call(&server, &old, method, path, body.clone()).await;
            let case = format!("{overlap}: {method} {path} {body}: {}", answer.body);
            assert_eq!(answer.status, status, "{case}");
            assert!(!answer.body.contains(secret) && !answer.body.contains(&rotated.key), "{case}");
            let found = store.find(&slug).await.expect("a look").expect("an app");
            assert_eq!((&found.key, found.updated_at), (&rotated.key, rotated.updated_at));
            assert_eq!(found.secret.expose_secret(), secret);
            // The server reads the apps at once, because it has seen that they have changed.
            if status == 401 {
                nodes::until("the old pair ends", async || read().await == 401).await;
            }
            store.close().await;
        }
    }
}

#[tokio::test]
async fn nobody_but_the_app_itself_is_let_in() {
    let server = TestServer::start();
    let app = foo_app(&server).await;
    let other = server.create_app(json!({ "name": "bar-app" })).await;
    let idle = server.create_app(json!({ "name": "idle-app", "active": false })).await;
    let before = as_admin_sees_it(&server).await;
    let body = json!({ "app": { "client_events": "all" } });
    let claims = json!({ "aud": "trigger", "listen": ["*"], "publish": ["*"] });
    for (method, path) in [("GET", OWN), ("PATCH", OWN), ("POST", "/api/apps/foo-app/rotate")] {
        let bare = || request(method, server.url(path)).json(&body);
        for (case, call, status) in [
            ("nothing", bare(), 401),
            ("another app", bare().basic(&other.key, &other.secret), 401),
            ("wrong secret", bare().basic(&app.key, "wrong"), 401),
            ("secret alone", bare().header("authorization", &app.secret), 401),
            ("a token", bare().bearer(&token(&app, &claims)), 401),
            ("the administrator", bare().basic(server::ADMIN.0, server::ADMIN.1), 401),
        ] {
            assert_eq!(call.send().await.status, status, "{method} {path}: {case}");
        }
        let elsewhere =
            bare().basic(&app.key, &app.secret).header("origin", "https://evil.example");
        let expected = if method == "GET" { 200 } else { 403 };
        assert_eq!(elsewhere.send().await.status, expected, "{method} {path}");
    }
    let own = request("GET", server.url("/api/apps/idle-app")).basic(&idle.key, &idle.secret);
    assert_eq!(own.send().await.status, 401, "an inactive app");
    let mut after = as_admin_sees_it(&server).await;
    // The GET from another origin was permitted, so it counts as a use of the key.
    after["key_last_used_at"] = before["key_last_used_at"].clone();
    assert_eq!(after, before);
}

#[tokio::test]
async fn an_app_that_changes_itself_too_often_is_refused_and_the_administrator_is_not() {
    let server = TestServer::start();
    let app = foo_app(&server).await;
    for n in 0..CHANGES_PER_MINUTE_MAX / 2 {
        let answer = change(&server, &app, json!({ "history_seconds": n })).await;
        assert_eq!(answer.status, 200, "{n}: {}", answer.body);
    }
    // Half of the changes may come at once. On a slow machine the limit permits further ones meanwhile.
    let mut refused = change(&server, &app, json!({ "history_seconds": 1 })).await;
    while refused.status == 200 {
        refused = change(&server, &app, json!({ "history_seconds": 1 })).await;
    }
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.header("retry-after").is_some_and(|wait| wait.parse::<u64>().is_ok()));
    let rotation = call(&server, &app, "POST", "/rotate", json!({})).await;
    assert_eq!(rotation.status, 429, "a rotation is a change");
    let shown = call(&server, &app, "GET", "", json!({})).await;
    assert_eq!(shown.status, 200);
    server.update_app("foo-app", json!({ "history_seconds": 2 })).await;
}
