//! SPEC.md, *The console* and *What it must never do*: the credentials of one app reach nothing of another.
//!
//! The calls come from the description of the API, which has every route of the router, so a new call is tested
//! without being listed here. If its statuses or its body are unknown here, the test fails and asks for them.

use herald::{app::Slug, http::openapi::DOCUMENT};
use serde_json::{Value, json};

use crate::{
    console::{admin, app_login, call, log_in, two_apps},
    support::{
        http::{Answer, Request},
        tokens::token,
        *,
    },
};

/// A call of the description.
struct Operation {
    id: String,
    method: String,
    path: String,
    /// Whether it has a body.
    has_body: bool,
}

fn operations() -> Vec<Operation> {
    let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("an item") {
            let Some(id) = operation["operationId"].as_str() else { continue };
            all.push(Operation {
                id: id.to_owned(),
                method: method.to_uppercase(),
                path: path.clone(),
                has_body: operation.get("requestBody").is_some(),
            });
        }
    }
    all
}

/// A body that the call takes and that concerns the app with this slug.
fn body_of(operation: &Operation, slug: &str) -> Value {
    let topic = format!("public:{slug}:room");
    let event = json!({ "topic": topic, "event": "msg", "payload": {} });
    match operation.id.as_str() {
        _ if !operation.has_body => Value::Null,
        "createApp" => json!({ "app": { "name": "one more app" } }),
        "replaceApp" | "updateApp" | "updateOwnApp" => json!({ "app": { "client_events": "all" } }),
        "rotateApp" | "rotateOwnApp" => json!({ "overlap_seconds": 0 }),
        "triggerEvent" => json!({ "topic": "room", "event": "msg", "payload": {} }),
        "publishEvent" => event,
        "publishEvents" => json!({ "events": [event] }),
        "endJoins" => json!({ "topic": topic }),
        "mintLiveToken" => json!({ "app": slug }),
        "pusherTrigger" => json!({ "name": "msg", "channel": "room", "data": "{}" }),
        "pusherTriggerBatch" => {
            json!({ "batch": [{ "name": "msg", "channel": "room", "data": "{}" }] })
        }
        "pusherTerminate" | "pusherTerminateByKey" => json!({}),
        other => panic!("{other} has a body, and this test has none for it"),
    }
}

fn address_of(operation: &Operation, slug: &str) -> String {
    let path = operation.path.replace("{slug}", slug).replace("{scope}", "public");
    let path = path.replace("{app}", slug).replace("{user}", "1");
    path.replace("{channel}", "room").replace("{id}", "AAAAAAAAAAA")
}

/// The statuses with which a call must answer the session, and the credentials, of an app that it does
/// not concern; `None` for calls that concern no app.
fn expected(operation: &Operation) -> Option<[&'static [u16]; 2]> {
    let (path, id) = (operation.path.as_str(), operation.id.as_str());
    match id {
        "logIn" | "logOut" | "showSession" | "describe" | "health" | "ready" => None,
        // The page of metrics takes no session.
        "metrics" => Some([&[401], &[401]]),
        // The live token is the console's own.
        "mintLiveToken" => Some([&[403], &[401, 403]]),
        _ if path.starts_with("/api/admin/") => Some([&[403], &[401]]),
        _ if path.starts_with("/api/apps/{slug}") => Some([&[403], &[401]]),
        // Where the body names the app, a session does not count.
        _ if path.starts_with("/api/publish") => Some([&[401], &[401, 403]]),
        // Calls of Pusher's SDKs are signed. Nothing else counts there.
        _ if path.starts_with("/apps/{app}") => Some([&[401, 404], &[401, 404]]),
        _ if path.starts_with("/users/{user}") => Some([&[401], &[401]]),
        _ => panic!("{id} {path}: what does it answer to the credentials of another app?"),
    }
}

/// Whether a call is one of an app and ends neither a key pair nor a connection, which is tested elsewhere.
fn lasts(operation: &Operation) -> bool {
    let of_app = operation.path.starts_with("/api/apps/{slug}");
    of_app && !["rotateOwnApp", "endConnection"].contains(&operation.id.as_str())
}

fn send(request: Request, body: &Value) -> impl Future<Output = Answer> {
    let request = if body.is_null() { request } else { request.json(body) };
    request.send()
}

#[tokio::test]
async fn no_call_lets_the_credentials_of_an_app_reach_another() {
    let server = TestServer::start_with(|settings| {
        settings.limits.failed_admin_logins_per_minute_max = 10_000;
    });
    let [first, second] = two_apps(&server).await;
    let before = server.admin("GET", "/api/admin/apps", None).await.json();
    let (cookie, _) = log_in(&server, &app_login(&first)).await;
    let all = json!({
        "aud": "trigger", "sub": "User:1", "listen": ["public:*", "private:*"],
        "publish": ["public:*", "public:second-app", "public:second-app:*"],
    });
    let of_trigger = token(&first, &all);
    let mut listener = Socket::connect(&server, V2).await;
    listener.join("public:second-app", json!({})).await;
    let mut judged = 0;
    for operation in operations() {
        let Some([to_session, to_credentials]) = expected(&operation) else { continue };
        for slug in ["second-app", "no-such-app"] {
            let (address, method) = (address_of(&operation, slug), operation.method.as_str());
            let body = body_of(&operation, slug);
            let of_page = ("sec-fetch-site", "same-origin");
            let plain = || request(method, server.url(&address)).header(of_page.0, of_page.1);
            for (with, request, expected) in [
                ("the session", plain().header("cookie", &cookie), to_session),
                ("key and secret", plain().basic(&first.key, &first.secret), to_credentials),
                ("a token", plain().bearer(&of_trigger), to_credentials),
                ("the secret", plain().header("authorization", &first.secret), to_credentials),
                ("nothing", plain(), to_credentials),
            ] {
                let answer = send(request, &body).await;
                let case = format!("{method} {address} with {with}: {}", answer.status);
                assert!(expected.contains(&answer.status), "{case} {}", answer.body);
                for known in [&second.key, &second.secret] {
                    assert!(!answer.body.contains(known.as_str()), "{case} {}", answer.body);
                }
                judged += 1;
            }
        }
    }
    assert!(judged > 200, "{judged}");
    listener.assert_quiet().await;
    let after = server.admin("GET", "/api/admin/apps", None).await.json();
    let told = |apps: &Value| {
        let shown = apps["data"].as_array().expect("apps").iter();
        shown.map(|app| json!([app["slug"], app["secret"], app["updated_at"]])).collect::<Vec<_>>()
    };
    assert_eq!(told(&before), told(&after), "nothing was changed");
    let shown = call(&server, "GET", "/console/session", &cookie).send().await;
    assert_eq!(shown.status, 200, "the session goes on");
}

#[tokio::test]
async fn a_session_asks_about_its_own_app_and_the_administrators_about_every_app() {
    let server = TestServer::start();
    let [first, _] = two_apps(&server).await;
    let (cookie, _) = log_in(&server, &app_login(&first)).await;
    let (admin_cookie, _) = log_in(&server, &admin()).await;
    for operation in operations().into_iter().filter(lasts) {
        for (cookie, slug) in [(&cookie, "first-app"), (&admin_cookie, "second-app")] {
            let (address, body) = (address_of(&operation, slug), body_of(&operation, slug));
            let answer = send(call(&server, &operation.method, &address, cookie), &body).await;
            assert_eq!(answer.status, 200, "{} {address}: {}", operation.method, answer.body);
        }
    }
    let unknown = call(&server, "GET", "/api/apps/no-such-app/channels", &admin_cookie);
    assert_eq!(unknown.send().await.status, 404);
}

#[tokio::test]
async fn the_administrators_session_reads_an_app_that_is_not_served_and_sends_no_event_for_it() {
    let many = TestServer::start();
    let single = TestServer::start_with(|settings| settings.single_app = Slug::parse("test-app"));
    for (server, active, why, by_topic) in [
        (many, false, "the app is inactive", 200),
        (single, true, "this server does not serve the app", 422),
    ] {
        let app = server.create_app(json!({ "name": "kept-back", "active": active })).await;
        let (cookie, _) = log_in(&server, &admin()).await;
        for operation in operations().into_iter().filter(lasts) {
            let body = match operation.id.as_str() {
                "endJoins" => json!({ "sub": "User:1" }),
                _ => body_of(&operation, &app.slug),
            };
            let address = address_of(&operation, &app.slug);
            let answer = send(call(&server, &operation.method, &address, &cookie), &body).await;
            let is_event = operation.id == "triggerEvent";
            let expected = if is_event { 403 } else { 200 };
            assert_eq!(answer.status, expected, "{address}: {}", answer.body);
            assert_eq!(answer.body.contains(why), is_event, "{address}: {}", answer.body);
        }
        // A topic of this app has no name on a server for a single app.
        let address = format!("/api/apps/{}/disconnect", app.slug);
        let topic = json!({ "topic": format!("public:{}:room", app.slug) });
        let answer = send(call(&server, "POST", &address, &cookie), &topic).await;
        assert_eq!(answer.status, by_topic, "{}", answer.body);
    }
}
