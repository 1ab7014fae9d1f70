//! The console from outside: logins, sessions, and what a session may do.

use serde_json::{Value, json};

use crate::support::{
    http::{Answer, Request, request},
    server::{ADMIN, App, TestServer},
    tokens::token,
    *,
};

/// The cookie of a new session, and the answer that set it.
pub(crate) async fn log_in(server: &TestServer, credentials: &Value) -> (String, Answer) {
    let answer = try_to_log_in(server, credentials).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    (cookie_of(&answer), answer)
}

async fn try_to_log_in(server: &TestServer, credentials: &Value) -> Answer {
    request("POST", server.url("/console/login")).json(credentials).send().await
}

/// The `name=value` of the cookie that an answer sets.
fn cookie_of(answer: &Answer) -> String {
    let cookie = answer.header("set-cookie").expect("a cookie");
    cookie.split(';').next().expect("a value").to_owned()
}

pub(crate) fn admin() -> Value {
    json!({ "user": ADMIN.0, "password": ADMIN.1 })
}

pub(crate) fn app_login(app: &App) -> Value {
    json!({ "key": app.key, "secret": app.secret })
}

/// A call as a page of the console makes it.
pub(crate) fn call(server: &TestServer, method: &str, path: &str, cookie: &str) -> Request {
    request(method, server.url(path))
        .header("cookie", cookie)
        .header("sec-fetch-site", "same-origin")
}

pub(crate) async fn is_in(server: &TestServer, cookie: &str) -> bool {
    let answer = call(server, "GET", "/console/session", cookie).send().await;
    assert!(matches!(answer.status, 200 | 401), "{} {}", answer.status, answer.body);
    answer.status == 200
}

pub(crate) async fn two_apps(server: &TestServer) -> [App; 2] {
    let name = |name| json!({ "name": name });
    [server.create_app(name("first-app")).await, server.create_app(name("second-app")).await]
}

#[tokio::test]
async fn both_logins_set_a_cookie_that_no_script_can_read_and_that_is_new_each_time() {
    let server = TestServer::start();
    let app = App::seeded();
    let mut cookies = Vec::new();
    for (credentials, login, slug) in [
        (admin(), "admin", Value::Null),
        (admin(), "admin", Value::Null),
        (app_login(&app), "app", json!("test-app")),
    ] {
        let (cookie, answer) = log_in(&server, &credentials).await;
        let attributes: Vec<_> =
            answer.header("set-cookie").expect("a cookie").split("; ").collect();
        let expected = ["Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Strict"];
        assert_eq!(attributes[1..], expected, "without TLS the cookie is not Secure");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let data = &answer.json()["data"];
        assert_eq!((&data["as"], &data["app"]), (&json!(login), &slug));
        assert_eq!(data["app_id"].is_i64(), slug.is_string(), "{data}");
        assert!(data["expires_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{data}");
        let shown = call(&server, "GET", "/console/session", &cookie).send().await;
        assert_eq!((shown.status, &shown.json()["data"]), (200, data));
        assert!(!cookies.contains(&cookie), "a fresh value each time");
        cookies.push(cookie);
    }
}

#[tokio::test]
async fn a_session_changes_its_app_and_the_audit_trail_tells_whose_it_was() {
    let server = TestServer::start();
    let [app, _] = two_apps(&server).await;
    let (as_admin, _) = log_in(&server, &admin()).await;
    let (as_app, _) = log_in(&server, &app_login(&app)).await;
    let path = "/api/apps/first-app";
    let change = |cookie: &str, path: &str, value: &str| {
        let body = json!({ "app": { "client_events": value } });
        call(&server, "PATCH", path, cookie).json(&body).send()
    };
    for (cookie, value) in [(&as_app, "all"), (&as_admin, "none")] {
        let changed = change(cookie, path, value).await;
        assert_eq!(
            (changed.status, &changed.json()["data"]["client_events"]),
            (200, &json!(value))
        );
        assert!(!changed.body.contains(&app.secret), "{}", changed.body);
        let read = call(&server, "GET", path, cookie).send().await;
        assert!(read.status == 200 && !read.body.contains(&app.secret), "{}", read.body);
    }
    assert_eq!(change(&as_app, "/api/apps/second-app", "all").await.status, 403);
    for foreign in ["/api/apps/second-app", "/api/apps/second-app/audit", "/api/admin/audit"] {
        assert_eq!(call(&server, "GET", foreign, &as_app).send().await.status, 403, "{foreign}");
    }
    let rotate = |cookie: &str| {
        let rotate = call(&server, "POST", "/api/apps/first-app/rotate", cookie);
        rotate.json(&json!({ "overlap_seconds": 60 })).send()
    };
    let rotated = rotate(&as_app).await;
    assert_eq!(rotated.status, 200, "{}", rotated.body);
    assert!(rotated.json()["data"]["secret"].is_string(), "the new secret, once");
    assert_eq!(change(&as_app, path, "all").await.status, 200, "the session goes on");

    // A session of the previous pair may read, but it may not change anything, and is not shown the new secret.
    let (as_old, _) = log_in(&server, &app_login(&app)).await;
    assert_eq!(call(&server, "GET", path, &as_old).send().await.status, 200);
    assert_eq!(change(&as_old, path, "none").await.status, 403);
    assert_eq!(rotate(&as_old).await.status, 403);
    let secret = call(&server, "POST", "/api/apps/first-app/secret", &as_old).send().await;
    assert_eq!(secret.status, 403, "{}", secret.body);

    let audit = call(&server, "GET", "/api/apps/first-app/audit", &as_app).send().await.json();
    let told = |entry: &Value| json!([entry["actor"], entry["address"], entry["action"]]);
    let told: Vec<_> = audit["data"].as_array().expect("a list").iter().map(told).collect();
    let expected = [
        json!(["app", "127.0.0.1", "update"]),
        json!(["app", "127.0.0.1", "rotate"]),
        json!(["admin", "127.0.0.1", "update"]),
        json!(["app", "127.0.0.1", "update"]),
        json!(["admin", "127.0.0.1", "create"]),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_value_that_the_client_brings_never_becomes_a_session() {
    let server = TestServer::start();
    let (own, _) = log_in(&server, &admin()).await;
    for chosen in ["herald_console=chosen", "herald_console=AAAA.AAAA", &own[..own.len() - 2]] {
        assert!(!is_in(&server, chosen).await, "{chosen}");
        let login = request("POST", server.url("/console/login")).header("cookie", chosen);
        let answer = login.json(&admin()).send().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_ne!(cookie_of(&answer), chosen);
        assert!(!is_in(&server, chosen).await, "{chosen}");
    }
    let both = format!("{own}; herald_console=x");
    assert!(!is_in(&server, &both).await, "of two cookies of this name neither counts");
    // A login with the cookie of a session ends that session.
    let answer = call(&server, "POST", "/console/login", &own).json(&admin()).send().await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(is_in(&server, &cookie_of(&answer)).await && !is_in(&server, &own).await);
}

#[tokio::test]
async fn wrong_credentials_are_refused_alike_counted_and_throttled() {
    let server = TestServer::start_with(|settings| {
        settings.limits.failed_admin_logins_per_minute_max = 6;
    });
    let app = App::seeded();
    for wrong in [
        json!({ "user": ADMIN.0, "password": "wrong" }),
        json!({ "user": "wrong", "password": ADMIN.1 }),
        json!({ "key": app.key, "secret": "wrong" }),
        json!({ "key": "unknown", "secret": app.secret }),
        json!({ "key": "unknown", "secret": "00000000-0000-0000-0000-000000000000" }),
        json!({ "key": app.slug, "secret": app.secret }),
    ] {
        let answer = try_to_log_in(&server, &wrong).await;
        let expected = json!({ "errors": { "detail": "authentication required" } });
        assert_eq!((answer.status, answer.json()), (401, expected), "{wrong}");
        assert_eq!(answer.header("set-cookie"), None);
        assert_eq!(answer.header("www-authenticate"), None, "the browser opens no prompt");
    }
    for right in [admin(), app_login(&app)] {
        let answer = try_to_log_in(&server, &right).await;
        assert_eq!(answer.status, 429, "{}", answer.body);
        assert!(answer.header("retry-after").is_some());
    }
}

#[tokio::test]
async fn a_body_without_credentials_says_what_is_missing() {
    let server = TestServer::start();
    for (body, field) in [
        (json!({}), "user"),
        (json!({ "user": "x" }), "password"),
        (json!({ "key": "x" }), "secret"),
        (json!({ "user": 1, "password": "x" }), "user"),
    ] {
        let answer = try_to_log_in(&server, &body).await;
        assert_eq!(answer.status, 422, "{body}");
        assert!(answer.json()["errors"][field].is_array(), "{body} {}", answer.body);
    }
}

#[tokio::test]
async fn without_tls_only_this_machine_logs_in_and_behind_tls_the_cookie_is_secure() {
    let behind_a_proxy = |is_insecure| {
        TestServer::start_with(move |settings| {
            settings.server.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
            settings.console.insecure = is_insecure;
        })
    };
    let log_in = async |server: &TestServer, proto: &str| {
        let login = request("POST", server.url("/console/login"))
            .header("x-forwarded-for", "192.0.2.1")
            .header("x-forwarded-proto", proto);
        login.json(&admin()).send().await
    };
    let server = behind_a_proxy(false);
    let refused = log_in(&server, "http").await;
    assert_eq!((refused.status, refused.header("set-cookie")), (403, None), "{}", refused.body);
    let taken = log_in(&server, "https").await;
    assert_eq!(taken.status, 200, "{}", taken.body);
    assert!(taken.header("set-cookie").expect("a cookie").ends_with("; Secure"));
    let insecure = behind_a_proxy(true);
    assert_eq!(log_in(&insecure, "http").await.status, 200);
    // A proxy on this machine that is not among the trusted proxies.
    let server = TestServer::start();
    assert_eq!(log_in(&server, "https").await.status, 403);
    let named = request("POST", server.url("/console/login")).header("host", "herald.example");
    assert_eq!(named.json(&admin()).send().await.status, 403);
}

#[tokio::test]
async fn a_session_ends_with_logout_and_with_whatever_it_rests_on() {
    let server = TestServer::start();
    let (cookie, _) = log_in(&server, &admin()).await;
    let left = call(&server, "POST", "/console/logout", &cookie).send().await;
    assert_eq!(left.status, 204, "{}", left.body);
    assert!(left.header("set-cookie").expect("a cookie").contains("Max-Age=0"));
    assert!(!is_in(&server, &cookie).await, "the session is gone, not only its cookie");
    let again = call(&server, "POST", "/console/logout", &cookie).send().await;
    assert_eq!(again.status, 401);

    for (case, method, path, body) in [
        ("rotated", "POST", "/rotate", json!({})),
        ("changed", "PATCH", "", json!({ "app": { "secret": "" } })),
        ("deactivated", "PATCH", "", json!({ "app": { "active": false } })),
        ("deleted", "DELETE", "", json!({})),
    ] {
        let app = server.create_app(json!({ "name": format!("app-{case}") })).await;
        let (cookie, _) = log_in(&server, &app_login(&app)).await;
        assert!(is_in(&server, &cookie).await, "{case}");
        let path = format!("/api/admin/apps/{}{path}", app.slug);
        let changed = server.admin(method, &path, Some(body)).await;
        assert!(changed.status < 300, "{case}: {}", changed.body);
        assert!(!is_in(&server, &cookie).await, "{case}");
    }
    // Both pairs log in while both are valid.
    let app = server.create_app(json!({ "name": "app-both" })).await;
    let rotated = server.admin("POST", "/api/admin/apps/app-both/rotate", Some(json!({}))).await;
    let data = &rotated.json()["data"];
    for pair in [json!({ "key": data["key"], "secret": data["secret"] }), app_login(&app)] {
        let (cookie, _) = log_in(&server, &pair).await;
        assert!(is_in(&server, &cookie).await);
    }
    let (cookie, _) = log_in(&server, &app_login(&app)).await;
    let end = json!({ "overlap_seconds": 0 });
    server.admin("POST", "/api/admin/apps/app-both/rotate", Some(end)).await;
    assert!(!is_in(&server, &cookie).await);
    assert_eq!(try_to_log_in(&server, &app_login(&app)).await.status, 401, "the old pair is over");
}

#[tokio::test]
async fn a_changed_admin_password_ends_sessions_on_every_node_and_a_restart_does_not() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let node = |password: &'static str| {
        let database = format!("sqlite://{}/shared.db", dir.path().display());
        TestServer::start_with(move |settings| {
            settings.database.url = database.into();
            settings.secrets.secret_key_base = "one key for all nodes, 32 bytes!".into();
            settings.admin.password = password.into();
        })
    };
    let first = node(ADMIN.1);
    let (cookie, _) = log_in(&first, &admin()).await;
    assert!(is_in(&node(ADMIN.1), &cookie).await, "at another node, or after a restart");
    assert!(!is_in(&node("another password"), &cookie).await);
    let second = node(ADMIN.1);
    assert!(is_in(&second, &cookie).await);
    assert_eq!(call(&first, "POST", "/console/logout", &cookie).send().await.status, 204);
    assert!(!is_in(&first, &cookie).await, "the node of the logout ends it at once");
    let ended = repeat_until(async || !is_in(&second, &cookie).await);
    tokio::time::timeout(crate::support::DEADLINE, ended).await.expect("the other node does soon");
}

#[tokio::test]
async fn a_writing_call_with_the_cookie_needs_proof_that_a_page_of_this_server_sent_it() {
    let server = TestServer::start();
    let (cookie, _) = log_in(&server, &admin()).await;
    let own = format!("http://127.0.0.1:{}", server.port);
    for (case, header, expected) in [
        ("nothing", None, 403),
        ("cross-site", Some(("sec-fetch-site", "cross-site")), 403),
        ("same-site", Some(("sec-fetch-site", "same-site")), 403),
        ("typed in", Some(("sec-fetch-site", "none")), 403),
        ("another origin", Some(("origin", "https://evil.example")), 403),
        ("no origin", Some(("origin", "null")), 403),
        ("same origin", Some(("sec-fetch-site", "same-origin")), 201),
        ("own origin", Some(("origin", own.as_str())), 201),
    ] {
        let name = format!("app of {case}");
        let mut create = request("POST", server.url("/api/admin/apps")).header("cookie", &cookie);
        if let Some((name, value)) = header {
            create = create.header(name, value);
        }
        let answer = create.json(&json!({ "app": { "name": name } })).send().await;
        assert_eq!(answer.status, expected, "{case}: {}", answer.body);
        let leave = request("POST", server.url("/console/logout")).header("cookie", &cookie);
        if header.is_none() {
            assert_eq!(leave.send().await.status, 403, "another page cannot log out, either");
        }
    }
    let read = request("GET", server.url("/api/admin/apps")).header("cookie", &cookie).send().await;
    assert_eq!((read.status, read.header("cache-control")), (200, Some("no-store")));
}

fn with_body(call: Request, body: &Value) -> Request {
    if body.is_null() { call } else { call.json(body) }
}

#[tokio::test]
async fn a_secret_is_answered_when_it_is_made_and_when_it_is_asked_for() {
    let server = TestServer::start();
    let (cookie, _) = log_in(&server, &admin()).await;
    let create = call(&server, "POST", "/api/admin/apps", &cookie);
    let made = create.json(&json!({ "app": { "name": "made-app" } })).send().await.json();
    let secret = made["data"]["secret"].as_str().expect("a secret that was made").to_owned();
    let all = [
        ("GET", "/api/admin/apps", Value::Null),
        ("GET", "/api/admin/apps/made-app", Value::Null),
        ("PATCH", "/api/admin/apps/made-app", json!({ "app": { "client_events": "none" } })),
    ];
    for (method, path, body) in all {
        let answer = with_body(call(&server, method, path, &cookie), &body).send().await;
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        assert!(!answer.body.contains(&secret), "{method} {path}: {}", answer.body);
        assert!(!answer.body.contains("\"secret\""), "{method} {path}: {}", answer.body);
    }
    let show = || call(&server, "POST", "/api/apps/made-app/secret", &cookie);
    let shown = show().send().await;
    assert_eq!(shown.json(), json!({ "data": { "secret": secret } }));
    assert_eq!(shown.header("cache-control"), Some("no-store"));
    for (method, path, body) in [
        ("PATCH", "/api/admin/apps/made-app", json!({ "app": { "secret": "" } })),
        ("POST", "/api/admin/apps/made-app/rotate", json!({})),
    ] {
        let answer = call(&server, method, path, &cookie).json(&body).send().await.json();
        let new = answer["data"]["secret"].as_str().expect("the new secret").to_owned();
        assert_eq!(show().send().await.json(), json!({ "data": { "secret": new } }));
    }
    // A call with credentials instead of a cookie is still shown the secret.
    let listed = server.admin("GET", "/api/admin/apps/made-app", None).await.json();
    assert!(listed["data"]["secret"].is_string());
}

#[tokio::test]
async fn a_session_that_has_ended_opens_no_prompt_of_the_browser() {
    let server = TestServer::start();
    let fetch = |path: &str| request("GET", server.url(path)).header("sec-fetch-mode", "cors");
    for answer in [
        fetch("/api/admin/apps").send().await,
        fetch("/api/apps/test-app/channels").send().await,
        request("GET", server.url("/console/session")).send().await,
        call(&server, "GET", "/api/admin/apps", "herald_console=old").send().await,
    ] {
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, None));
    }
    let plain = request("GET", server.url("/api/admin/apps")).send().await;
    assert_eq!(plain.header("www-authenticate"), Some(r#"Basic realm="Herald""#));
}

#[tokio::test]
async fn connections_are_listed_page_by_page_and_ended_one_by_one() {
    let server = TestServer::start();
    let [first, second] = two_apps(&server).await;
    let (cookie, _) = log_in(&server, &app_login(&first)).await;
    let mut sockets = Vec::new();
    for way in [V2, V1, V2_POLLED] {
        let mut socket = Socket::connect(&server, way).await;
        socket.join("public:first-app:room", json!({})).await;
        sockets.push(socket);
    }
    let mut other = Socket::connect(&server, V2).await;
    other.join("public:second-app:room", json!({})).await;
    other.join("public:first-app", json!({})).await;
    let list = async |query: &str| {
        let path = format!("/api/apps/first-app/connections{query}");
        let answer = call(&server, "GET", &path, &cookie).send().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    };
    let all = list("").await;
    let shown = |nth: usize, field: &str| all["data"][nth][field].clone();
    assert_eq!((all["total"].clone(), all["data"].as_array().map(Vec::len)), (json!(4), Some(4)));
    let kinds: Vec<_> = (0..4).map(|n| (shown(n, "transport"), shown(n, "vsn"))).collect();
    let (websocket, longpoll) = (json!("websocket"), json!("longpoll"));
    let (v1, v2) = (json!("1.0.0"), json!("2.0.0"));
    let expected = [(&websocket, &v2), (&websocket, &v1), (&longpoll, &v2), (&websocket, &v2)];
    assert_eq!(kinds, expected.map(|(a, b)| (a.clone(), b.clone())));
    assert_eq!(shown(0, "topics"), json!(["public:first-app:room"]));
    assert_eq!(shown(3, "topics"), json!(["public:first-app"]), "no topic of another app");
    assert_eq!((shown(0, "protocol"), shown(0, "address")), (json!("phoenix"), json!("127.0.0.1")));
    assert_eq!(shown(0, "queue"), json!({ "frames": 0, "bytes": 0 }));
    assert!(shown(0, "since").as_str().is_some_and(|since| since.ends_with('Z')));

    let page = list("?limit=2").await;
    let last = page["data"][1]["id"].as_str().expect("an id").to_owned();
    let rest = list(&format!("?limit=2&after={last}")).await;
    assert_eq!((&rest["data"][0]["id"], &rest["total"]), (&all["data"][2]["id"], &json!(4)));
    for bad in ["?limit=0", "?limit=1001", "?after=x"] {
        let path = format!("/api/apps/first-app/connections{bad}");
        assert_eq!(call(&server, "GET", &path, &cookie).send().await.status, 422, "{bad}");
    }

    let end = async |app: &App, id: &Value| {
        let path = format!("/api/apps/{}/connections/{}", app.slug, id.as_str().expect("an id"));
        request("DELETE", server.url(&path)).basic(&app.key, &app.secret).send().await.status
    };
    assert_eq!(end(&second, &shown(0, "id")).await, 404, "not a session of this app");
    assert_eq!(end(&first, &json!("AAAAAAAAAAA")).await, 404);
    assert_eq!(end(&first, &shown(0, "id")).await, 204);
    assert_eq!(sockets[0].closed().await, 1001);
    // A session that has joins of another app keeps them.
    assert_eq!(end(&first, &shown(3, "id")).await, 204);
    assert_eq!(other.next().await[3], "phx_error");
    other.assert_quiet().await;
    let left = repeat_until(async || list("").await["total"] == 2);
    tokio::time::timeout(DEADLINE, left).await.expect("both to be gone");
}

#[tokio::test]
async fn connections_are_listed_with_the_users_as_whom_they_have_joined() {
    let server = TestServer::start();
    let app = App::seeded();
    let of = |sub: Value| {
        let claims = json!({ "listen": ["private:*"], "sub": sub });
        json!({ "guardian_token": token(&app, &claims) })
    };
    let mut sockets = Vec::new();
    let joins = [
        vec![("public:test-app:room", json!({}))],
        vec![
            ("private:test-app:one", of(json!("zoe"))),
            ("private:test-app:two", of(json!("ada"))),
        ],
        // A session that has joined a topic again as another user is listed as the new one.
        vec![
            ("private:test-app:one", of(json!(1))),
            ("private:test-app:one", of(json!({ "id": 2 }))),
        ],
    ];
    for topics in joins {
        let mut socket = Socket::connect(&server, V2).await;
        for (topic, payload) in topics {
            socket.join(topic, payload).await;
        }
        sockets.push(socket);
    }
    let mut member = PusherSocket::connect(&server).await;
    member.enter("presence-room", r#"{"user_id":"grace"}"#).await;
    let mut user = PusherSocket::connect(&server).await;
    user.sign_in(r#"{"id":"12345"}"#).await;
    assert_eq!(user.next().await["event"], "pusher:signin_success");
    user.subscribe("room").await;
    let answer = request("GET", server.url("/api/apps/test-app/connections"));
    let listed = answer.basic(&app.key, &app.secret).send().await.json();
    let listed = listed["data"].as_array().expect("a list").clone();
    let subs: Vec<_> = listed.iter().map(|connection| connection["subs"].clone()).collect();
    let users =
        [json!([]), json!(["ada", "zoe"]), json!(["2"]), json!(["grace"]), json!(["12345"])];
    assert_eq!(subs, users);
}

#[tokio::test]
async fn the_overview_is_the_administrators() {
    let server = TestServer::start();
    let (cookie, _) = log_in(&server, &admin()).await;
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let overview = call(&server, "GET", "/api/admin/overview", &cookie).send().await.json();
    let data = &overview["data"];
    assert_eq!(data["now"]["sessions"], json!({ "websocket": 1, "longpoll": 0 }));
    assert_eq!(data["now"]["apps"], 1);
    assert_eq!(data["samples"]["every_seconds"], 5);
    assert_eq!(data["nodes"][0]["version"], env!("CARGO_PKG_VERSION"));
    assert!(data["limits"].as_array().is_some_and(|limits| limits.len() > 20));
    let unknown = request("GET", server.url("/api/admin/overview")).send().await;
    assert_eq!(unknown.status, 401);
}
