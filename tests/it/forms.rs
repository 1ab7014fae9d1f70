//! Forms, query strings, media types and other text in requests: each is read as its client meant it, or refused.

use herald::app::token::csrf_signature;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::support::{http::Answer, raw, tokens::token, *};

const EVENTS: &str = "/api/apps/test-app/events";

async fn post_form(server: &TestServer, form: &str) -> Answer {
    let app = App::seeded();
    request("POST", server.url(EVENTS)).basic(&app.key, &app.secret).form(form).send().await
}

#[tokio::test]
async fn a_form_of_nested_names_arrives_as_rack_would_read_it() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    for (form, payload) in [
        (
            "payload[items][][id]=1&payload[items][][n]=a&payload[items][][id]=2&payload[items][][n]=b",
            r#"{"items":[{"id":"1","n":"a"},{"id":"2","n":"b"}]}"#,
        ),
        (
            "payload%5Bitems%5D%5B%5D%5Bid%5D=1&payload%5Bitems%5D%5B%5D%5Btags%5D%5B%5D=x\
             &payload%5Bitems%5D%5B%5D%5Btags%5D%5B%5D=y&payload%5Bitems%5D%5B%5D%5Bid%5D=2",
            r#"{"items":[{"id":"1","tags":["x","y"]},{"id":"2"}]}"#,
        ),
        ("payload[b]=1&payload[a][c]=2", r#"{"a":{"c":"2"},"b":"1"}"#),
        ("payload={\"x\":  1}&utf8=%E2%9C%93&commit=", "{\"x\":  1}"),
    ] {
        let answer = post_form(&server, &format!("topic=t&event=e&{form}")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "{}"), "{form}");
        let expected = format!(r#"[null,null,"public:test-app","t:e",{payload}]"#);
        assert_eq!(socket.frame().await, expected, "{form}");
    }
}

#[tokio::test]
async fn a_form_that_cannot_be_read_is_refused_and_nothing_is_published() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let deep = format!("payload{}", "[a]".repeat(40));
    for (form, name) in [
        ("payload[a=1", "payload[a"),
        ("payload[a]b=1", "payload[a]b"),
        ("payload={\"x\":1}&payload[a]=1", "payload[a]"),
        ("payload[a]=1&payload={\"x\":1}", "payload"),
        ("payload[a]=1&payload[a][b]=2", "payload[a][b]"),
        ("payload[]=1&payload[a]=2", "payload[a]"),
        ("payload[a][][]=1", "payload[a][][]"),
        (&format!("{deep}=1"), &deep[..100]),
    ] {
        let answer = post_form(&server, &format!("topic=t&event=e&{form}")).await;
        let faults = answer.json()["errors"].clone();
        let named: Vec<_> = faults.as_object().expect("faults").keys().collect();
        assert_eq!((answer.status, named), (422, vec![&name.to_owned()]), "{form}");
    }
    let many = "a=&".repeat(5_000);
    assert_eq!(post_form(&server, &format!("topic=t&event=e&{many}")).await.status, 422);
    socket.assert_quiet().await;
}

#[tokio::test]
async fn text_that_is_not_utf8_is_400_in_forms_and_query_strings() {
    let server = TestServer::start();
    for form in ["topic=t&event=e&payload[a]=%ff", "topic=%c3&event=e", "%ff=1&topic=t&event=e"] {
        let answer = post_form(&server, form).await;
        let detail = json!({"errors": {"detail": "request body is not a valid form"}});
        assert_eq!((answer.status, answer.json()), (400, detail), "{form}");
    }
    let app = App::seeded();
    let asked = server.url("/api/apps/test-app/channels?prefix=%ff");
    let answer = request("GET", asked).basic(&app.key, &app.secret).send().await;
    let detail = json!({"errors": {"detail": "query string is not valid UTF-8"}});
    assert_eq!((answer.status, answer.json()), (400, detail));
    for path in [
        "/socket/websocket?vsn=2.0.0&x=%ff",
        "/socket/longpoll?vsn=2.0.0&x=%ff",
        "/socket/longpoll?vsn=2.0.0&token=%ff",
    ] {
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let headers = if path.contains("websocket") { upgrade } else { "connection: close\r\n" };
        let head = format!("GET {path} HTTP/1.1\r\nhost: h\r\n{headers}\r\n");
        let got = raw::exchange(&server, head.as_bytes()).await;
        assert_eq!(got.statuses(), [400], "{path}: {}", got.text());
    }
    let posted = "POST /socket/longpoll?token=%ff HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\
                  content-length: 0\r\n\r\n";
    assert_eq!(raw::exchange(&server, posted.as_bytes()).await.statuses(), [400]);
}

#[tokio::test]
async fn a_socket_takes_whatever_names_its_query_has() {
    let server = TestServer::start();
    let many: String = (0..5_000).map(|n| format!("{n}=&")).collect();
    let deep = format!("a{}=1&", "[b]".repeat(5_000));
    for query in ["a[b=1&", "a=1&a[b]=2&a[]=3&", "[]=1&a[][]=2&", "a=%zz&", &deep, &many] {
        let path = format!("/socket/longpoll?{query}vsn=2.0.0&");
        let mut poller = Poller::open(&server, &path).await;
        assert_eq!(poller.post(r#"[null,"1","phoenix","heartbeat",{}]"#).await, 200, "{query:.40}");
    }
}

#[tokio::test]
async fn media_types_are_read_in_any_case_and_with_parameters() {
    let server = TestServer::start();
    let app = App::seeded();
    let mut poller = Poller::connect(&server, V2).await;
    let batch =
        b"[null,\"1\",\"phoenix\",\"heartbeat\",{}]\n[null,\"2\",\"phoenix\",\"heartbeat\",{}]";
    for media_type in [
        "application/x-ndjson",
        "Application/X-NDJSON; charset=utf-8",
        "APPLICATION/X-NDJSON;charset=UTF-8",
        "application/x-ndjson ; q",
        "application/x-ndjson;",
    ] {
        let answer = poller.post_raw(Some(media_type), batch).await;
        assert_eq!(answer, (200, r#"{"status":200}"#.to_owned()), "{media_type}");
        for nth in ["1", "2"] {
            let reply = format!(
                r#"[null,"{nth}","phoenix","phx_reply",{{"status":"ok","response":{{}}}}]"#
            );
            assert_eq!(poller.next().await, Some(reply), "{media_type}");
        }
    }
    let (json, form) = (r#"{"topic":"t","event":"e"}"#, "topic=t&event=e");
    for (media_type, body) in [
        ("Application/JSON; Charset=UTF-8", json),
        ("application/json;", json),
        ("Application/VND.api+JSON;x=y", json),
        ("Application/X-WWW-Form-URLencoded; charset=utf-8", form),
        ("application/x-www-form-urlencoded;", form),
    ] {
        let call = request("POST", server.url(EVENTS)).basic(&app.key, &app.secret);
        let answer = call.header("content-type", media_type).body(body).send().await;
        assert_eq!(answer.status, 200, "{media_type}");
    }
}

#[tokio::test]
async fn the_texts_of_pages_for_a_missing_csrf_token_count_as_absent_over_http_too() {
    let server = TestServer::start();
    let app = App::seeded();
    for (csrf, is_told) in [("page", true), ("", false), ("null", false), ("undefined", false)] {
        let s_csrf = csrf_signature(&SecretString::from(app.secret.as_str()), csrf);
        let claims = json!({"aud": "csrf", "s_csrf": s_csrf, "publish": ["public:*"], "listen": ["private:*"]});
        let token = token(&app, &claims);
        for path in [EVENTS, "/api/publish"] {
            let topic = if path == EVENTS { "t" } else { "public:test-app" };
            let call = request("POST", server.url(path)).bearer(&token);
            let call =
                call.header("x-csrf-token", csrf).json(&json!({"topic": topic, "event": "e"}));
            let status = call.send().await.status;
            assert_eq!(status, if is_told { 200 } else { 401 }, "{csrf:?} {path}");
        }
        let mut socket = Socket::connect(&server, V2).await;
        let params = json!({"guardian_token": token, "csrf_token": csrf});
        let reply = socket.try_join("private:test-app", params).await;
        let refused = json!({"status": "error", "response": {"error": "invalid_csrf"}});
        assert_eq!(reply == refused, !is_told, "{csrf:?}: {reply}");
    }
}

#[tokio::test]
async fn a_blank_in_a_list_of_origins_lets_nobody_in() {
    let server = TestServer::start();
    server.create_app(json!({"name": "foo-app", "allowed_origins": ["//a.example"]})).await;
    let path = "/api/admin/apps/foo-app";
    let blank = json!({"errors": {"allowed_origins": ["can't be blank"]}});
    for origins in [json!([""]), json!(["", ""])] {
        let body = json!({"app": {"allowed_origins": origins}});
        let answer = server.admin("PATCH", path, Some(body.clone())).await;
        assert_eq!((answer.status, answer.json()), (422, blank.clone()), "{body}");
        let mut new = body;
        new["app"]["name"] = json!("bar-app");
        let answer = server.admin("POST", "/api/admin/apps", Some(new)).await;
        assert_eq!((answer.status, answer.json()), (422, blank.clone()));
    }
    let stored =
        async || server.admin("GET", path, None).await.json()["data"]["allowed_origins"].clone();
    assert_eq!(stored().await, json!(["//a.example"]));

    let form = async |form: &str| {
        let (user, password) = crate::support::server::ADMIN;
        request("PATCH", server.url(path)).basic(user, password).form(form).send().await
    };
    for (fields, status, expected) in [
        ("app[allowed_origins][]=&app[allowed_origins][]=//b.example", 200, json!(["//b.example"])),
        ("app[allowed_origins][]=", 422, json!(["//b.example"])),
        ("app[allowed_origins]=", 200, json!([])),
    ] {
        let answer = form(fields).await;
        assert_eq!(answer.status, status, "{fields}: {}", answer.body);
        assert_eq!(stored().await, expected, "{fields}");
    }
    let emptied = json!({"app": {"allowed_origins": []}});
    let answer = server.admin("PATCH", path, Some(emptied)).await;
    assert_eq!(
        (answer.status, &answer.json()["data"]["allowed_origins"]),
        (200, &Value::Array(vec![]))
    );
}
