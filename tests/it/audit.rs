//! SPEC.md, *Usage and audit*: the entries that the admin API and the command line leave when they change an app.

use serde_json::{Value, json};

use crate::{
    command_line::Place,
    databases::TestDatabase,
    support::{server::ADMIN, *},
};

const AUDIT: &str = "/api/admin/audit";

async fn entries(server: &TestServer, path: &str) -> Vec<Value> {
    let answer = server.admin("GET", path, None).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["data"].as_array().expect("a list").clone()
}

/// The fields of an entry besides its id and its time.
fn told(entry: &Value) -> Value {
    json!([entry["actor"], entry["address"], entry["action"], entry["app"], entry["fields"]])
}

#[tokio::test]
async fn the_admin_api_leaves_an_entry_for_each_change_and_none_for_anything_else() {
    let server = TestServer::start_with(|settings| {
        settings.server.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
    });
    let admin = |method: &str, path: &str, body: Value| {
        let call = request(method, server.url(path)).basic(ADMIN.0, ADMIN.1);
        call.header("x-forwarded-for", "203.0.113.7").json(&body).send()
    };
    let secret = "a-secret-that-is-not-shown";
    for (method, path, body, status) in [
        ("POST", "/api/admin/apps", json!({ "app": { "name": "foo-app", "secret": secret } }), 201),
        ("POST", "/api/admin/apps", json!({ "app": { "name": "foo-app" } }), 422),
        ("GET", "/api/admin/apps/foo-app", json!({}), 200),
        ("PATCH", "/api/admin/apps/foo-app", json!({ "app": { "client_events": "none" } }), 200),
        ("PUT", "/api/admin/apps/foo-app", json!({ "app": { "client_events": "none" } }), 200),
        ("PATCH", "/api/admin/apps/foo-app", json!({ "app": { "client_events": "x" } }), 422),
        ("POST", "/api/admin/apps/foo-app/rotate", json!({ "overlap_seconds": "x" }), 422),
        ("POST", "/api/admin/apps/foo-app/rotate", json!({}), 200),
        ("DELETE", "/api/admin/apps/foo-app", json!({}), 204),
        ("DELETE", "/api/admin/apps/foo-app", json!({}), 404),
    ] {
        let answer = admin(method, path, body.clone()).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.body);
    }
    let wrong = request("DELETE", server.url("/api/admin/apps/test-app")).basic("x", "y");
    assert_eq!(wrong.send().await.status, 401);
    let found = entries(&server, AUDIT).await;
    let address = "203.0.113.7";
    let expected = [
        json!(["admin", address, "delete", "foo-app", []]),
        json!(["admin", address, "rotate", "foo-app", ["key", "secret"]]),
        json!(["admin", address, "update", "foo-app", ["client_events"]]),
        json!(["admin", address, "create", "foo-app", ["name", "slug", "key", "secret"]]),
        json!([
            "cli",
            null,
            "create",
            "test-app",
            ["name", "slug", "key", "secret", "client_events"]
        ]),
    ];
    assert_eq!(found.iter().map(told).collect::<Vec<_>>(), expected);
    let whole = Value::from(found.clone()).to_string();
    assert!(!whole.contains(secret), "{whole}");
    let time = found[0]["at"].as_str().expect("a time");
    assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok(), "{time}");
    let of_one = entries(&server, &format!("{AUDIT}?app=test-app")).await;
    assert_eq!(of_one, found[4..]);
    assert_eq!(entries(&server, &format!("{AUDIT}?app=no-app")).await, [Value::Null; 0]);
    let second = found[1]["id"].as_i64().expect("an id");
    let page = entries(&server, &format!("{AUDIT}?before={second}&limit=2")).await;
    assert_eq!(page, found[2..4]);
}

#[tokio::test]
async fn a_text_that_is_no_slug_has_no_entries_and_does_not_reach_the_database() {
    let database = TestDatabase::postgres().await;
    let url = database.url().to_owned();
    let server = TestServer::start_with(move |settings| settings.database.url = url.into());
    for text in ["%00", "Foo", "a%20b", "", &"a".repeat(64)] {
        let found = entries(&server, &format!("{AUDIT}?app={text}")).await;
        assert_eq!(found, [Value::Null; 0], "{text}");
    }
    assert_eq!(get(server.url("/ready")).await.json()["database"], "ok");
    let faulty = server.admin("GET", &format!("{AUDIT}?app=%00&limit=0"), None).await;
    assert_eq!(faulty.status, 422);
    drop(server);
    database.remove().await;
}

#[tokio::test]
async fn an_app_reads_its_own_entries_and_none_of_another() {
    let server = TestServer::start();
    let old = server.create_app(json!({ "name": "foo-app" })).await;
    assert_eq!(server.admin("DELETE", "/api/admin/apps/foo-app", None).await.status, 204);
    let app = server.create_app(json!({ "name": "foo-app" })).await;
    let other = server.create_app(json!({ "name": "bar-app" })).await;
    server.update_app("bar-app", json!({ "client_events": "none" })).await;
    let path = "/api/apps/foo-app/audit";
    let read = |key: &str, secret: &str| request("GET", server.url(path)).basic(key, secret).send();
    let own = read(&app.key, &app.secret).await;
    assert_eq!((own.status, own.header("cache-control")), (200, Some("no-store")));
    let data = own.json()["data"].as_array().expect("a list").clone();
    let created =
        json!(["admin", "127.0.0.1", "create", "foo-app", ["name", "slug", "key", "secret"]]);
    assert_eq!(data.iter().map(told).collect::<Vec<_>>(), [created], "none of the older app");
    for stranger in [&old, &other] {
        assert_eq!(read(&stranger.key, &stranger.secret).await.status, 401);
    }
    let claims = json!({ "aud": "trigger", "publish": ["*"], "listen": ["*"] });
    let token = request("GET", server.url(path)).bearer(&tokens::token(&app, &claims)).send();
    assert_eq!(token.await.status, 401, "a token does not replace key and secret");
    assert_eq!(request("GET", server.url(path)).send().await.status, 401);
    for path in [AUDIT, path] {
        let post = request("POST", server.url(path)).basic(ADMIN.0, ADMIN.1).send().await;
        assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
}

#[tokio::test]
async fn a_bad_query_is_told_with_all_its_faults() {
    let server = TestServer::start();
    let app = App::seeded();
    let before = json!(["must be the id of an entry"]);
    let limit = json!(["must be a number from 1 to 1000"]);
    for (query, faults) in [
        ("before=x&limit=0", json!({ "before": before, "limit": limit })),
        ("before=0", json!({ "before": before })),
        ("before=-1", json!({ "before": before })),
        ("before=", json!({ "before": before })),
        ("before=99999999999999999999", json!({ "before": before })),
        ("limit=1001", json!({ "limit": limit })),
        ("limit=1.5", json!({ "limit": limit })),
        ("limit[]=1", json!({ "limit": ["must be a string"] })),
    ] {
        let own = request("GET", server.url(&format!("/api/apps/test-app/audit?{query}")));
        let own = own.basic(&app.key, &app.secret).send().await;
        let all = server.admin("GET", &format!("{AUDIT}?{query}"), None).await;
        for answer in [own, all] {
            assert_eq!((answer.status, &answer.json()["errors"]), (422, &faults), "{query}");
        }
    }
}

#[test]
fn the_command_line_leaves_entries_and_shows_them() {
    let place = Place::seeded();
    place.run(&["apps", "create", "--name", "foo-app"]).succeeded();
    let update = ["apps", "update", "foo-app", "--active", "false", "--any-origin"];
    place.run(&update).succeeded();
    place.run(&update).succeeded();
    let secret =
        place.run(&["apps", "rotate", "foo-app", "--json"]).json()["data"]["secret"].clone();
    place.run(&["apps", "delete", "foo-app", "--yes"]).succeeded();
    let shown = place.run(&["audit", "--json"]).json();
    let expected = [
        json!(["cli", null, "delete", "foo-app", []]),
        json!(["cli", null, "rotate", "foo-app", ["key", "secret"]]),
        json!(["cli", null, "update", "foo-app", ["active"]]),
        json!(["cli", null, "create", "foo-app", ["name", "slug", "key", "secret"]]),
        json!([
            "cli",
            null,
            "create",
            "test-app",
            ["name", "slug", "key", "secret", "client_events"]
        ]),
    ];
    let data = shown["data"].as_array().expect("a list");
    assert_eq!(data.iter().map(told).collect::<Vec<_>>(), expected);
    let rows = place.run(&["audit", "--app", "foo-app", "--limit", "2"]);
    let lines: Vec<Vec<&str>> =
        rows.succeeded().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["id", "at", "actor", "address", "action", "app", "fields"]);
    assert_eq!(lines[1][2..], ["cli", "-", "delete", "foo-app"]);
    assert_eq!(lines[2][2..], ["cli", "-", "rotate", "foo-app", "key,", "secret"]);
    assert_eq!(lines.len(), 3);
    place.run(&["audit"]).never_says(secret.as_str().expect("a secret"));
    let before = place.run(&["audit", "--before", lines[2][0], "--json"]).json();
    assert_eq!(before["data"].as_array().expect("a list")[..], data[2..]);
    for wrong in [["--limit", "0"], ["--limit", "1001"], ["--before", "x"], ["--app", "No Slug"]] {
        let refused = place.run(&["audit", wrong[0], wrong[1]]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
    }
}
