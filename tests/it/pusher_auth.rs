//! Entries 126 to 141 of the protocol document of Pusher: the authentication of calls of the HTTP API.

use serde_json::{Value, json};

use crate::support::{
    self,
    pusher::{Call, call, event},
    tokens::now_s,
    *,
};

/// The status of an answer whose text is one line, as it has to be for every refusal.
async fn refusal(call: Call<'_>) -> u16 {
    let answer = call.send().await;
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"), "{answer:?}");
    assert!(answer.body.ends_with('\n') && answer.body.lines().count() == 1, "{:?}", answer.body);
    answer.status
}

fn post(server: &TestServer) -> Call<'_> {
    call(server, "POST", "/events").json(&event(&["room"], "x"))
}

fn get(server: &TestServer) -> Call<'_> {
    call(server, "GET", "/channels")
}

#[tokio::test]
async fn p126_a_valid_call_is_answered_with_an_empty_object() {
    let server = TestServer::start();
    let answer = post(&server).send().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "{}"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    // The server ignores the content type of the body.
    for content_type in ["text/plain", "application/x-www-form-urlencoded", ""] {
        let call = post(&server);
        let request = call.request(&call.query()).header("content-type", content_type);
        assert_eq!(request.send().await.status, 200, "{content_type:?}");
    }
}

#[tokio::test]
async fn p127_another_signature_is_refused_and_the_refusal_says_what_was_to_be_signed() {
    let server = TestServer::start();
    let call = post(&server);
    let mut query = call.query();
    let good = query.pop().expect("a signature");
    let mut bad = good.clone();
    let last = bad.pop().expect("a digit");
    bad.push(if last == '0' { '1' } else { '0' });
    query.push(bad);
    let answer = call.request(&query).send().await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.header("www-authenticate"), Some(r#"Pusher realm="Herald""#));
    let expected =
        format!("\"POST\\n/apps/test-app/events\\n{}\"", query[..query.len() - 1].join("&"));
    assert!(answer.body.contains(&expected), "{}", answer.body);
    let (_, signature) = good.split_once('=').expect("a signature");
    assert!(!answer.body.contains(signature), "the refusal does not show the right signature");
}

#[tokio::test]
async fn p128_another_key_is_refused() {
    let server = TestServer::start();
    let other = server.create_app(json!({ "name": "other-app" })).await;
    let unknown = App { key: "unknown".into(), ..App::seeded() };
    let crossed = App { key: other.key.clone(), ..App::seeded() };
    for app in [other, unknown, crossed] {
        assert_eq!(refusal(post(&server).by(&app)).await, 401, "{app:?}");
    }
}

#[tokio::test]
async fn p129_a_call_is_good_for_ten_minutes_either_way() {
    let server = TestServer::start();
    let now = now_s();
    for (off, status) in [(590, 200), (-590, 200)] {
        assert_eq!(post(&server).at(now + off).send().await.status, status, "{off}");
    }
    for off in [611, -611] {
        assert_eq!(refusal(post(&server).at(now + off)).await, 401, "{off}");
    }
    for time in ["auth_timestamp=now", "x=1"] {
        let call = post(&server);
        let mut query = call.query();
        let given = query.iter_mut().find(|pair| pair.starts_with("auth_timestamp"));
        *given.expect("a time") = time.to_owned();
        assert_eq!(call.request(&query).send().await.status, 401, "{time}");
    }
}

#[tokio::test]
async fn p130_another_version_is_refused() {
    let server = TestServer::start();
    for version in ["2.0", ""] {
        assert_eq!(refusal(post(&server).version(version)).await, 401, "{version:?}");
    }
}

#[tokio::test]
async fn p131_p132_a_body_that_was_not_signed_is_refused() {
    let server = TestServer::start();
    let call = post(&server);
    let query = call.query();
    let other = call.request(&query).body(event(&["room"], "y").to_string());
    assert_eq!(other.send().await.status, 401);
    let answer = post(&server).digest("").send().await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.body, "body_md5 is missing, and the body is not empty\n");
}

#[tokio::test]
async fn p133_the_digest_of_an_empty_body_is_accepted() {
    let server = TestServer::start();
    let md5_of_nothing = "d41d8cd98f00b204e9800998ecf8427e";
    assert_eq!(get(&server).digest(md5_of_nothing).send().await.status, 200);
}

#[tokio::test]
async fn p134_p135_p136_p137_the_query_may_be_spelled_in_every_way_of_the_sdks() {
    let server = TestServer::start();
    let asked = || get(&server).param("filter_by_prefix", "presence-");
    let value = "user_count,subscription_count";
    for sent in ["info=user_count%2Csubscription_count", "info=user_count,subscription_count"] {
        let answer = asked().param_sent_as("info", value, sent).send().await;
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"channels":{}}"#), "{sent}");
    }
    let mixed = asked().param_sent_as("info", "user_count", "iNFo=user_count");
    assert_eq!(mixed.send().await.status, 200, "names in mixed case");
    let shuffled = asked();
    let mut query = shuffled.query();
    query.reverse();
    assert_eq!(shuffled.request(&query).send().await.status, 200, "another order");
    let list = asked().param("channels[]", "b").param("channels[]", "a");
    assert_eq!(list.send().await.status, 200, "a list as Ruby signs it");
}

#[tokio::test]
async fn p138_p139_an_unknown_app_is_not_found_and_a_disabled_one_forbidden() {
    let server = TestServer::start();
    let app = server.create_app(json!({ "name": "foo-app" })).await;
    let shown = server.admin("GET", "/api/admin/apps/foo-app", None).await.json();
    let id = shown["data"]["id"].to_string();
    let of = |name: &str| Call::of(&server, app.clone(), "GET", format!("/apps/{name}/channels"));
    for name in ["foo-app", &id] {
        assert_eq!(of(name).send().await.status, 200, "{name}");
    }
    for name in ["bar-app", "999999", "99999999999999999999", "Foo-App", "_console", "%00"] {
        assert_eq!(refusal(of(name)).await, 404, "{name}");
    }
    for (fields, expected) in [
        (json!({ "pusher": false }), "this app takes no calls of Pusher's SDKs\n"),
        (json!({ "pusher": true, "active": false }), "this app is inactive\n"),
    ] {
        server.update_app("foo-app", fields).await;
        assert_eq!(of("foo-app").outcome().await, (403, expected.to_owned()));
    }
    let stranger = App { secret: "wrong".into(), ..app.clone() };
    assert_eq!(refusal(of("foo-app").by(&stranger)).await, 401, "the state of the app is not told");
    server.update_app("foo-app", json!({ "active": true })).await;
    assert_eq!(of("foo-app").send().await.status, 200);
}

#[tokio::test]
async fn an_app_whose_slug_consists_of_digits_is_found_by_its_number_only() {
    let server = TestServer::start();
    let app = server.create_app(json!({ "name": "digits", "slug": "77" })).await;
    let shown = server.admin("GET", "/api/admin/apps/77", None).await.json();
    let id = shown["data"]["id"].to_string();
    for (name, status) in [("77", 404), (id.as_str(), 200)] {
        let call = Call::of(&server, app.clone(), "GET", format!("/apps/{name}/channels"));
        assert_eq!(call.send().await.status, status, "{name}");
    }
}

#[tokio::test]
async fn p140_an_ambiguous_request_is_refused() {
    let server = TestServer::start();
    let call = get(&server);
    for twice in ["auth_signature=x", "auth_key=x", "auth_version=1.0", "AUTH_TIMESTAMP=1"] {
        let mut query = call.query();
        query.push(twice.to_owned());
        assert_eq!(call.request(&query).send().await.status, 401, "{twice}");
    }
}

#[tokio::test]
async fn a_call_that_was_not_signed_is_refused() {
    let server = TestServer::start();
    let app = App::seeded();
    let url = server.url("/apps/test-app/channels");
    assert_eq!(support::get(url.clone()).await.status, 401);
    let basic = request("GET", url).basic(&app.key, &app.secret).send().await;
    assert_eq!(basic.status, 401, "key and secret alone are not enough");
}

#[tokio::test]
async fn both_pairs_of_a_rotation_sign_until_the_overlap_has_passed() {
    let server = TestServer::start();
    let old = server.create_app(json!({ "name": "foo-app" })).await;
    let rotate = async |seconds: u64| {
        let body = json!({ "overlap_seconds": seconds });
        let answer = server.admin("POST", "/api/admin/apps/foo-app/rotate", Some(body)).await;
        let data = answer.json()["data"].clone();
        let text = |field: &str| data[field].as_str().expect("text").to_owned();
        App { slug: text("slug"), key: text("key"), secret: text("secret") }
    };
    let status = async |app: &App| {
        let path = "/apps/foo-app/channels".to_owned();
        Call::of(&server, app.clone(), "GET", path).send().await.status
    };
    let new = rotate(60).await;
    assert_eq!((status(&old).await, status(&new).await), (200, 200));
    let shown = server.admin("GET", "/api/admin/apps/foo-app", None).await.json()["data"].clone();
    assert!(shown["key_last_used_at"].is_string(), "{shown}");
    assert!(shown["previous_key_last_used_at"].is_string(), "{shown}");
    let newest = rotate(0).await;
    let all = (status(&old).await, status(&new).await, status(&newest).await);
    assert_eq!(all, (401, 401, 200));
}

#[tokio::test]
async fn other_methods_and_addresses_are_refused_with_plain_text() {
    let server = TestServer::start();
    for (method, path, status) in [
        ("GET", "/events", 405),
        ("PUT", "/batch_events", 405),
        ("POST", "/channels", 405),
        ("DELETE", "/channels/room", 405),
        ("GET", "/users/1/terminate_connections", 405),
        ("GET", "/nothing", 404),
        ("GET", "/channels/room/nothing", 404),
    ] {
        assert_eq!(refusal(call(&server, method, path)).await, status, "{method} {path}");
    }
}

#[tokio::test]
async fn p019_the_path_prefix_is_not_signed() {
    let server =
        TestServer::start_with(|settings| settings.pusher.path_prefix = "/realtime".into());
    let inner = "/apps/test-app/channels";
    let call = |path: &str| Call::of(&server, App::seeded(), "GET", path.to_owned()).signing(inner);
    assert_eq!(call("/realtime/apps/test-app/channels").send().await.status, 200);
    assert_eq!(call(inner).send().await.status, 404, "there is nothing without the prefix");
    let answer =
        call("/realtime/apps/test-app/channels").signing("/realtime/apps/test-app/channels");
    assert_eq!(answer.send().await.status, 401);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413() {
    let server = TestServer::start();
    let body = Value::from("x".repeat(1_100_000)).to_string();
    let answer = post(&server).body(body).send().await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.body, "the request body exceeds the allowed maximum (1048576 bytes)\n");
}
