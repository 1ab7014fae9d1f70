//! Secrets, tokens, query strings and payloads are never written to a log, nor by `{:?}`.
//!
//! Every entry point is called, with valid and with invalid requests. Each secret, token, query string and payload
//! contains a *canary*, a text that must not appear. All lines that Herald's own crates log at trace level are kept
//! and searched for it.

use std::sync::Once;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use herald::{
    app::{
        Apps, Slug,
        audit::ChangedBy,
        change,
        key_pair::Overlap,
        store::{AppStore, MissingFile},
        token::TokenPair,
    },
    phoenix::admission::ConnectCredentials,
    settings::Settings,
};
use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use sea_orm::{ConnectionTrait, Database};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    raw::exchange,
    server::ADMIN,
    tokens::{signed, token},
    *,
};

/// The lines that Herald's crates have logged in this process, by this and by every other test of it.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Ear;

impl Log for Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("herald")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}: {}", record.level(), record.target(), record.args());
            LOGGED.lock().push(line);
        }
    }

    fn flush(&self) {}
}

fn listen_to_the_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_boxed_logger(Box::new(Ear)).expect("no other logger in this process");
        log::set_max_level(LevelFilter::Trace);
    });
}

fn logged() -> Vec<String> {
    LOGGED.lock().clone()
}

/// Every canary begins with this, so that half of one is found as well.
const CANARY: &str = "kanari3";

/// A value that must not be logged or printed.
fn canary(of: &str) -> String {
    format!("{CANARY}-{of}-0123456789abcdef")
}

/// The texts that must not be found: the beginning of each canary, as it is and in base64, parts of the tokens, and
/// each whole token in base64.
fn needles(tokens: &[String]) -> Vec<String> {
    let mut needles = vec![CANARY.to_owned()];
    // Base64 encodes three bytes at a time, and a canary may begin at any of them. Only the groups that lie within
    // the canary are the same everywhere.
    let canary = canary("");
    needles.extend([0, 1, 2].map(|skipped| STANDARD_NO_PAD.encode(&canary[skipped..skipped + 6])));
    for token in tokens {
        needles.push(STANDARD_NO_PAD.encode(token));
        // The first part, the header, is the same in many tokens.
        needles.extend(token.split('.').skip(1).filter(|p| p.len() > 8).map(str::to_owned));
    }
    needles
}

/// Checks that a line was logged that the calls must cause. Without it, the search for canaries would prove nothing.
fn assert_heard(logged: &[String], words: &str) {
    assert!(logged.iter().any(|line| line.contains(words)), "{words:?} is not in {logged:#?}");
}

#[tokio::test]
async fn at_trace_level_no_secret_no_token_no_query_and_no_payload_is_logged() {
    listen_to_the_log();
    let password = canary("admin-password");
    let guardian = canary("guardian-secret");
    let server = TestServer::start_with(|settings| {
        settings.admin.password = SecretString::from(password.clone());
        settings.secrets.guardian_secret = Some(SecretString::from(guardian.clone()));
        settings.limits.outbox_frames_max = 64;
        settings.log.filter = "trace".to_owned();
    });
    let admin = |method: &str, path: &str, body: Value| {
        let request = request(method, server.url(path)).basic(ADMIN.0, &password);
        request.json(&body).send()
    };
    let fields = json!({"app": {
        "name": "foo-app", "secret": canary("app-secret"), "key": canary("app-key"),
        "client_events": "authorized", "shared_tokens": true,
    }});
    let created = admin("POST", "/api/admin/apps", fields).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let app = App { slug: "foo-app".into(), key: canary("app-key"), secret: canary("app-secret") };
    let claims = json!({"listen": ["private:*"], "publish": ["private:*"], "sub": canary("sub")});
    let good = token(&app, &claims);
    let operators = signed(&guardian, &claims);
    let forged = signed(&canary("another-key"), &claims);
    let expired = token(&app, &json!({"exp": 1, "listen": ["private:*"], "sub": canary("sub")}));
    let mut tokens = vec![good.clone(), operators.clone(), forged.clone(), expired.clone()];

    sockets(&server, &tokens).await;
    let sessions = long_polls(&server, &tokens).await;
    tokens.extend(sessions);
    let (of_console, watching) = console(&server, &password, &app).await;
    tokens.extend(of_console);
    triggers(&server, &app, &tokens).await;
    drop(watching);
    admin_api(&server, &password).await;
    broken_requests(&server, &good).await;
    a_slow_client(&server).await;
    rotations(&server, &password, &app, &tokens).await;
    app_changes_and_an_outage(&server, &password).await;
    drop(server);

    let logged = logged();
    for words in [
        "wrong admin credentials",
        "is refused; to let it in",
        "refused a join of \"public:foo-app:t\"",
        "refused POST \"/api/publish\"",
        "broke the framing",
        "is dropped",
        "Herald continues with the apps as they were last read",
        "all sessions are closed",
    ] {
        assert_heard(&logged, words);
    }
    let needles = needles(&tokens);
    for line in &logged {
        for needle in &needles {
            assert!(!line.contains(needle), "a canary is logged: {line}");
        }
    }
}

/// Logins to the console, right and wrong ones, a secret that is shown, and an app that is watched from
/// then on. Returns the cookies and the token of the feed.
async fn console(server: &TestServer, password: &str, app: &App) -> (Vec<String>, Socket) {
    let log_in = |body: Value| request("POST", server.url("/console/login")).json(&body).send();
    let wrong = json!({"key": app.key, "secret": canary("wrong-secret")});
    assert_eq!(log_in(wrong).await.status, 401);
    assert_eq!(log_in(json!({"user": [canary("user")], "password": password})).await.status, 422);
    let mut tokens = Vec::new();
    for credentials in [
        json!({"user": ADMIN.0, "password": password}),
        json!({"key": app.key, "secret": app.secret}),
    ] {
        let answer = log_in(credentials).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let cookie = answer.header("set-cookie").and_then(|cookie| cookie.split(';').next());
        // The dot makes the value a second part, which `needles` looks for.
        tokens.push(cookie.expect("a cookie").replace("herald_console=", "."));
    }
    let post = |path: &str| {
        let cookie = format!("herald_console={}", &tokens[1][1..]);
        let call = request("POST", server.url(path)).header("cookie", &cookie);
        call.header("sec-fetch-site", "same-origin")
    };
    assert_eq!(post("/api/apps/foo-app/secret").send().await.status, 200);
    let live = post("/console/live").json(&json!({})).send().await.json()["data"].clone();
    let token = live["token"].as_str().expect("a token").to_owned();
    let mut socket = Socket::connect(server, V2).await;
    let topic = live["topic"].as_str().expect("a topic");
    socket.join(topic, json!({"guardian_token": token, "since": ""})).await;
    tokens.push(token);
    (tokens, socket)
}

/// Joins of all kinds, and messages of all kinds.
async fn sockets(server: &TestServer, tokens: &[String]) {
    for token in tokens.iter().map(String::as_str).chain([canary("no-token").as_str()]) {
        let in_payload = json!({"guardian_token": token, "csrf_token": canary("csrf"),
                                "more": canary("payload")});
        let path = format!(
            "/socket/websocket?vsn=2.0.0&guardian_token={token}&csrf_token={}&x={}",
            canary("csrf"),
            canary("query")
        );
        let bearer = STANDARD_NO_PAD.encode(token);
        let protocol = format!("phoenix, base64url.bearer.phx.{bearer}");
        let plain = format!("/socket/websocket?vsn=1.0.0&{}", canary("query"));
        for (path, headers) in [
            (path.as_str(), vec![]),
            (plain.as_str(), vec![("sec-websocket-protocol", protocol.as_str())]),
        ] {
            let (mut socket, _) = Socket::open_with(server, path, &headers).await.expect("let in");
            // A topic that names an app is logged when a join of it is refused. An invalid topic never is.
            socket.try_join(&canary("topic"), json!({})).await;
            socket.try_join(&format!("public:{}", canary("NoApp")), json!({})).await;
            for topic in ["public:foo-app", "private:foo-app", "private:nobody"] {
                socket.try_join(topic, json!({})).await;
                socket.try_join(&format!("{topic}:t"), in_payload.clone()).await;
            }
            let event = json!([null, "9", "private:foo-app:t", "msg", {"x": canary("event")}]);
            socket.push(event).await;
            socket.next().await;
            let event = json!([null, "9", "public:foo-app", "msg", canary("event")]);
            socket.push(event).await;
            socket.next().await;
            socket.text(canary("nonsense")).await;
            assert_eq!(socket.rest().await.1, 1011);
        }
    }
    let mut socket = Socket::connect(server, V2).await;
    socket.send(Message::binary(canary("binary").into_bytes())).await;
    socket.closed().await;
    let mut socket = Socket::connect(server, V2).await;
    let broken = [&[0xff, 0x80 | 40, 0, 0, 0, 0][..], canary("frame").as_bytes()].concat();
    tokio::io::AsyncWriteExt::write_all(socket.tcp(), &broken).await.expect("room");
    socket.closed().await;
    for path in ["/nowhere", "/socket/websocket?vsn=9", "/events/x"] {
        let joiner = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{joiner}guardian_token={}", canary("query"));
        let headers = [("authorization", canary("header")), ("cookie", canary("cookie"))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        assert_ne!(Socket::refused(server, &path, &headers).await.0, 101);
    }
}

/// The same over long-poll; answers the tokens of the sessions.
async fn long_polls(server: &TestServer, tokens: &[String]) -> Vec<String> {
    let mut sessions = Vec::new();
    for token in tokens {
        let path =
            format!("/socket/longpoll?vsn=2.0.0&guardian_token={token}&token={}&", canary("query"));
        let header = format!("x-phoenix-authtoken: {token}\r\n");
        let poller = Poller::open_with(server, &path, &header).await;
        sessions.push(poller.token.clone());
        let mut socket = Socket::polled(poller, V2);
        socket.try_join("private:foo-app:t", json!({"guardian_token": token})).await;
        let mut poller = socket.into_poller();
        let push = json!([null, "9", "private:foo-app:t", "msg", {"x": canary("event")}]);
        assert_eq!(poller.post_batch(&push.to_string()).await, 200);
        assert!(poller.next().await.is_some());
        assert_eq!(poller.post_raw(None, canary("body\u{ff}").as_bytes()).await.0, 200);
        assert_eq!(poller.fetch().await, json!({"status": 500}), "the invalid body has ended it");
    }
    sessions
}

async fn triggers(server: &TestServer, app: &App, tokens: &[String]) {
    let event = json!({"topic": "t", "event": "e", "scope": "private",
                       "payload": {"x": canary("payload")}});
    let path = format!("/api/apps/foo-app/events?{}", canary("query"));
    let post = || request("POST", server.url(&path));
    assert_eq!(post().basic(&app.key, &app.secret).json(&event).send().await.status, 200);
    assert_eq!(post().basic(&app.key, &canary("wrong")).json(&event).send().await.status, 401);
    let form = format!("topic=t&event=e&payload={}", canary("payload"));
    assert_eq!(post().basic(&app.key, &app.secret).form(&form).send().await.status, 422);
    for body in [format!("{{{}", canary("body")), format!("[\"{}\"]", canary("body"))] {
        let post = post().basic(&app.key, &app.secret).header("content-type", "application/json");
        assert_eq!(post.body(body).send().await.status, 400);
    }
    let large = json!({"topic": "t", "event": "e", "payload": {"x": canary("x").repeat(10_000)}});
    assert_eq!(post().basic(&app.key, &app.secret).json(&large).send().await.status, 413);
    for token in tokens {
        let csrf = post().bearer(token).header("x-csrf-token", &canary("csrf"));
        csrf.json(&event).send().await;
    }
    let whole = json!({"topic": "private:foo-app:t", "event": "e", "payload": {"x": canary("p")}});
    for (path, body) in
        [("/api/publish", whole.clone()), ("/api/publish/bulk", json!({"events": [whole]}))]
    {
        for (secret, status) in [(app.secret.as_str(), 200), (&canary("wrong"), 401)] {
            let request = request("POST", server.url(path)).header("authorization", secret);
            assert_eq!(request.json(&body).send().await.status, status, "{path}");
        }
    }
    let elsewhere = post().basic(&app.key, &app.secret).header("origin", "https://evil.example");
    assert_eq!(elsewhere.json(&event).send().await.status, 403);
}

async fn admin_api(server: &TestServer, password: &str) {
    let path = format!("/api/admin/apps?{}", canary("query"));
    let call =
        |method: &str, password: &str| request(method, server.url(&path)).basic(ADMIN.0, password);
    assert_eq!(call("GET", &canary("wrong-password")).send().await.status, 401);
    let user = request("GET", server.url(&path)).basic(&canary("user"), password);
    assert_eq!(user.send().await.status, 401);
    for (body, status) in [
        (json!({"app": {"name": "x", "secret": canary("s"), "key": 1}}), 422),
        (json!({"app": {"name": "foo-app", "secret": canary("app-secret")}}), 422),
        (json!({"app": {"name": "bar-app", "secret": format!("{CANARY}")}}), 422),
        (json!({"app": canary("app")}), 400),
    ] {
        let answer = call("POST", password).json(&body).send().await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
    assert_eq!(call("GET", password).send().await.status, 200);
    assert_eq!(call("DELETE", password).send().await.status, 405);
}

async fn broken_requests(server: &TestServer, token: &str) {
    let canary = canary("raw");
    for request in [
        format!("{canary}\r\n\r\n"),
        format!("GET /{canary}?{canary} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"),
        format!("GET /health HTTP/1.1\r\nauthorization: {canary}\r\ncontent-length: x\r\n\r\n"),
        format!("GET /health HTTP/1.1\r\n: {token}\r\n\r\n"),
        format!(
            "POST /api/publish HTTP/1.1\r\nhost: h\r\nauthorization: {canary}\r\n\
             transfer-encoding: chunked\r\n\r\nzz{canary}\r\n"
        ),
        format!(
            "GET /socket/websocket?guardian_token={token} HTTP/1.1\r\nhost: h\r\nconnection: \
             upgrade\r\nupgrade: websocket\r\nsec-websocket-key: {canary}\r\n\r\n"
        ),
    ] {
        exchange(server, request.as_bytes()).await;
    }
}

/// A client that is dropped with its outbox full of payloads.
async fn a_slow_client(server: &TestServer) {
    let mut slow = Socket::connect(server, V2).await;
    slow.join("public:test-app", json!({})).await;
    let payload = json!({"x": canary("payload").repeat(2_000)});
    let dropped = async {
        while !logged().iter().any(|line| line.contains("is dropped")) {
            let event = json!({"topic": "t", "event": "e", "payload": payload});
            server.trigger(&App::seeded(), event).await;
        }
    };
    timeout(2 * DEADLINE, dropped).await.expect("it is dropped");
}

/// Rotations of an app's pair: they show the previous secret to nobody.
async fn rotations(server: &TestServer, password: &str, app: &App, tokens: &[String]) {
    let rotate = |seconds: Value| {
        let path = format!("/api/admin/apps/foo-app/rotate?{}", canary("query"));
        let request = request("POST", server.url(&path)).basic(ADMIN.0, password);
        request.json(&json!({"overlap_seconds": seconds, "x": canary("body")})).send()
    };
    assert_eq!(rotate(json!(canary("overlap"))).await.status, 422);
    let rotated = rotate(json!(60)).await;
    assert_eq!(rotated.status, 200, "{}", rotated.body);
    assert!(!rotated.body.contains(&app.secret), "{}", rotated.body);
    triggers(server, app, tokens).await;
    let shown = request("GET", server.url("/api/admin/apps/foo-app")).basic(ADMIN.0, password);
    let shown = shown.send().await;
    assert!(shown.body.contains(&app.key) && !shown.body.contains(&app.secret), "{}", shown.body);
    assert_eq!(rotate(json!(0)).await.status, 200);
}

async fn app_changes_and_an_outage(server: &TestServer, password: &str) {
    let path = format!("/api/admin/apps/foo-app?{}", canary("query"));
    let change = |fields: Value| {
        let request = request("PATCH", server.url(&path)).basic(ADMIN.0, password);
        request.json(&json!({"app": fields})).send()
    };
    let mut listening = Socket::connect(server, V2).await;
    listening.join("public:foo-app", json!({})).await;
    let allowed =
        json!({"allowed_origins": ["https://example.com"], "secret": canary("new-secret")});
    assert_eq!(change(allowed).await.status, 200);
    for origin in ["https://evil.example", &format!("https://evil.example/?{}", canary("origin"))] {
        let path = format!("/socket/websocket?vsn=2.0.0&x={}", canary("query"));
        let opened = Socket::open_with(server, &path, &[("origin", origin)]).await;
        let mut socket = opened.expect("let in").0;
        let reply = socket.try_join("public:foo-app", json!({"x": canary("payload")})).await;
        assert_eq!(reply["response"], json!({"reason": "origin not allowed"}), "{origin}");
    }
    assert_eq!(change(json!({"active": false})).await.status, 200);
    assert_eq!(listening.closed().await, 1001);

    let database = format!("sqlite://{}/herald.db", server.dir.path().display());
    let database = Database::connect(database).await.expect("a database");
    database.execute_unprepared("ALTER TABLE apps RENAME TO elsewhere").await.expect("a change");
    let create = json!({"app": {"name": "bar-app", "secret": canary("bar-secret")}});
    let created = request("POST", server.url("/api/admin/apps")).basic(ADMIN.0, password);
    assert_eq!(created.json(&create).send().await.status, 503);
    assert_eq!(change(json!({"secret": canary("newer-secret")})).await.status, 503);
    database.execute_unprepared("ALTER TABLE elsewhere RENAME TO apps").await.expect("a change");
    database.close().await.expect("an end");
}

#[tokio::test]
async fn types_that_hold_a_secret_do_not_print_it() {
    let env = [
        ("HERALD_ENV", "test".to_owned()),
        ("DATABASE_URL", format!("postgres://herald:{}@localhost/herald", canary("database"))),
        ("PUSHER_ADMIN_PASSWORD", canary("admin")),
        ("GUARDIAN_SECRET", canary("guardian")),
        ("SECRET_KEY_BASE", canary("key-base")),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value));
    let settings = Settings::load_from(env, None).expect("settings");
    let mut shown = vec![("settings", format!("{settings:?} {settings:#?}"))];

    let server = TestServer::start();
    let fields = json!({"name": "foo-app", "secret": canary("app-secret")});
    server.create_app(fields).await;
    let mut database = settings.database.clone();
    let url = format!("sqlite://{}/herald.db", server.dir.path().display());
    database.url = SecretString::from(url);
    let store = AppStore::connect(&database, MissingFile::MakeWithFolder).await.expect("a store");
    let slug = Slug::parse("foo-app").expect("a slug");
    change::rotate(&store, &ChangedBy::CLI, &slug, Overlap::default()).await.expect("a rotation");
    let apps = store.list().await.expect("a listing").apps;
    assert_eq!(apps.len(), 2);
    assert!(apps[1].previous.is_some());
    shown.push(("an app", format!("{:#?}", apps[1])));
    shown.push(("all apps", format!("{:?}", apps.into_iter().collect::<Apps>())));
    store.close().await;

    let params = json!({"guardian_token": canary("token"), "csrf_token": canary("csrf")});
    let tokens = TokenPair::from_params(params.as_object().expect("an object"));
    assert!(tokens.token.is_some());
    shown.push(("tokens", format!("{tokens:?}")));
    let bearer = Some(canary("bearer").into_boxed_str());
    shown.push((
        "a caller",
        format!(
            "{:?}",
            ConnectCredentials { origin: None, tokens, bearer, ..ConnectCredentials::default() }
        ),
    ));
    for (what, shown) in shown {
        assert!(shown.len() > 10, "{what}");
        assert!(!shown.contains(CANARY), "{what}: {shown}");
    }
}
