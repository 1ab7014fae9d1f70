//! SPEC.md, *Keys*: a new key pair without an outage, and the end of the previous one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    databases::TestDatabase,
    support::{server::ADMIN, tokens::token, *},
};

const FOO: &str = "/api/admin/apps/foo-app";
const ROTATE: &str = "/api/admin/apps/foo-app/rotate";
const PRIVATE: &str = "private:foo-app:room";

async fn foo_app(server: &TestServer) -> App {
    server.create_app(json!({ "name": "foo-app" })).await
}

async fn rotate(server: &TestServer, overlap_seconds: u64) -> (App, Value) {
    let body = json!({ "overlap_seconds": overlap_seconds });
    let answer = server.admin("POST", ROTATE, Some(body)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let data = answer.json()["data"].clone();
    let text = |field: &str| data[field].as_str().expect("text").to_owned();
    (App { slug: text("slug"), key: text("key"), secret: text("secret") }, data)
}

async fn shown(server: &TestServer) -> Value {
    server.admin("GET", FOO, None).await.json()["data"].clone()
}

fn ticket(app: &App) -> Value {
    let claims = json!({ "listen": ["private:*"], "publish": ["private:*"] });
    json!({ "guardian_token": token(app, &claims) })
}

fn time(value: &Value) -> DateTime<Utc> {
    let text = value.as_str().unwrap_or_else(|| panic!("no time: {value}"));
    DateTime::parse_from_rfc3339(text).expect("a time").to_utc()
}

/// Makes a call in each way in which a pair can authenticate one: three triggers and a query. Answers the statuses.
async fn triggers(server: &TestServer, app: &App) -> [u16; 4] {
    let event = json!({ "topic": "room", "event": "e", "scope": "private" });
    let whole = json!({ "topic": PRIVATE, "event": "e" });
    let claims = json!({ "aud": "trigger", "publish": ["private:*"] });
    let events = || request("POST", server.url("/api/apps/foo-app/events"));
    let publish = || request("POST", server.url("/api/publish"));
    let list = request("GET", server.url("/api/apps/foo-app/channels"));
    [
        events().basic(&app.key, &app.secret).json(&event).send().await.status,
        publish().header("authorization", &app.secret).json(&whole).send().await.status,
        publish().bearer(&token(app, &claims)).json(&whole).send().await.status,
        list.basic(&app.key, &app.secret).send().await.status,
    ]
}

/// Waits until a moment has come.
async fn wait_until(moment: DateTime<Utc>) {
    sleep((moment - Utc::now()).to_std().unwrap_or_default()).await;
}

#[tokio::test]
async fn a_rotation_makes_a_pair_and_keeps_the_one_before_it() {
    let server = TestServer::start();
    let old = foo_app(&server).await;
    let before = shown(&server).await;
    for field in ["key_last_used_at", "previous_key", "previous_key_expires_at"] {
        assert_eq!(before[field], Value::Null, "{field}");
    }
    assert_eq!(before["previous_key_last_used_at"], Value::Null);
    let (new, data) = rotate(&server, 3_600).await;
    assert_ne!((&new.key, &new.secret), (&old.key, &old.secret));
    assert_eq!(data["previous_key"], json!(old.key));
    let left = time(&data["previous_key_expires_at"]) - Utc::now();
    assert!((3_590..=3_600).contains(&left.num_seconds()), "{left}");
    assert_eq!(shown(&server).await, data, "the answer is the app as GET shows it");
    assert!(!data.to_string().contains(&old.secret), "the previous secret is not shown again");
    for app in [&old, &new] {
        assert_eq!(triggers(&server, app).await, [200; 4]);
        let mut socket = Socket::connect(&server, V2).await;
        socket.join(PRIVATE, ticket(app)).await;
    }
    let mixed = App { secret: old.secret.clone(), ..new.clone() };
    let event = json!({ "topic": "t", "event": "e" });
    let call = request("POST", server.url("/api/apps/foo-app/events"));
    let call = call.basic(&mixed.key, &mixed.secret).json(&event);
    assert_eq!(call.send().await.status, 401, "the key of one pair, the secret of the other");
}

#[tokio::test]
async fn a_request_says_the_overlap_as_a_form_or_as_json() {
    let server = TestServer::start();
    foo_app(&server).await;
    let call = |content_type: &'static str, body: &str| {
        let mut call = request("POST", server.url(ROTATE)).basic(ADMIN.0, ADMIN.1);
        if !content_type.is_empty() {
            call = call.header("content-type", content_type);
        }
        call.body(body.to_owned()).send()
    };
    let (form, json) = ("application/x-www-form-urlencoded", "application/json");
    for (content_type, body, seconds) in [
        ("", "", 86_400),
        (form, "", 86_400),
        (form, "overlap_seconds=", 86_400),
        (form, "overlap_seconds=60", 60),
        (form, "overlap_seconds=2592000&more=1", 2_592_000),
        (json, "{}", 86_400),
        (json, r#"{"overlap_seconds":null}"#, 86_400),
        (json, r#"{"overlap_seconds":60}"#, 60),
        (json, r#"{"overlap_seconds":"60"}"#, 60),
    ] {
        let answer = call(content_type, body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        let end = time(&answer.json()["data"]["previous_key_expires_at"]);
        let left = (end - Utc::now()).num_seconds();
        assert!((seconds - 10..=seconds).contains(&left), "{body}: {left}");
    }
    let before = shown(&server).await;
    let range = json!({ "overlap_seconds": ["must be a whole number from 0 to 2592000"] });
    let invalid = json!({ "overlap_seconds": ["is invalid"] });
    for (content_type, body, faults) in [
        (form, "overlap_seconds=-1", &range),
        (form, "overlap_seconds=1e9", &range),
        (form, "overlap_seconds=x", &range),
        (form, "overlap_seconds=2592001", &range),
        (form, "overlap_seconds[]=1", &invalid),
        (json, r#"{"overlap_seconds":-1}"#, &range),
        (json, r#"{"overlap_seconds":1e9}"#, &range),
        (json, r#"{"overlap_seconds":0.5}"#, &range),
        (json, r#"{"overlap_seconds":"x"}"#, &range),
        (json, r#"{"overlap_seconds":99999999999999999999}"#, &range),
        (json, r#"{"overlap_seconds":true}"#, &invalid),
        (json, r#"{"overlap_seconds":{}}"#, &invalid),
    ] {
        let answer = call(content_type, body).await;
        assert_eq!((answer.status, &answer.json()["errors"]), (422, faults), "{body}");
    }
    for (content_type, body, status) in
        [(json, "[]", 400), (json, "{", 400), ("text/plain", "", 415)]
    {
        assert_eq!(call(content_type, body).await.status, status, "{body}");
    }
    assert_eq!(shown(&server).await, before, "a refused rotation changes nothing");
    let without_login = request("POST", server.url(ROTATE)).send().await;
    assert_eq!(without_login.status, 401);
    let unknown = server.admin("POST", "/api/admin/apps/no-app/rotate", Some(json!({}))).await;
    assert_eq!(unknown.status, 404);
    let get = server.admin("GET", ROTATE, None).await;
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
}

#[tokio::test]
async fn without_an_overlap_the_old_pair_ends_at_once_with_the_joins_of_its_tokens() {
    let server = TestServer::start();
    let first = foo_app(&server).await;
    let (second, _) = rotate(&server, 3_600).await;
    let mut sockets = Vec::new();
    for app in [&first, &second] {
        let mut socket = Socket::connect(&server, V2).await;
        socket.join(PRIVATE, ticket(app)).await;
        sockets.push(socket);
    }
    let (third, data) = rotate(&server, 0).await;
    assert_eq!(data["previous_key"], Value::Null);
    assert_eq!(data["previous_key_expires_at"], Value::Null);
    for socket in &mut sockets {
        assert_eq!(socket.closed().await, 1001);
    }
    for (app, status) in [(&first, 401), (&second, 401), (&third, 200)] {
        assert_eq!(triggers(&server, app).await, [status; 4]);
    }
}

#[tokio::test]
async fn a_second_rotation_ends_the_oldest_pair_and_no_other() {
    let server = TestServer::start();
    let first = foo_app(&server).await;
    let (second, _) = rotate(&server, 3_600).await;
    let mut of_first = Socket::connect(&server, V1).await;
    of_first.join("public:test-app", json!({})).await;
    of_first.join(PRIVATE, ticket(&first)).await;
    let mut of_second = Socket::connect(&server, V2).await;
    of_second.join(PRIVATE, ticket(&second)).await;
    let mut visitor = Socket::connect(&server, V2).await;
    visitor.join("public:foo-app", json!({})).await;
    let (third, data) = rotate(&server, 3_600).await;
    assert_eq!(data["previous_key"], json!(second.key));
    let ended = json!([null, "1", PRIVATE, "phx_error", { "reason": "channel_crash" }]);
    assert_eq!(of_first.next().await, ended);
    of_first.assert_quiet().await;
    of_second.assert_quiet().await;
    visitor.assert_quiet().await;
    for (app, status) in [(&first, 401), (&second, 200), (&third, 200)] {
        assert_eq!(triggers(&server, app).await, [status; 4]);
    }
}

#[tokio::test]
async fn the_end_of_the_overlap_ends_the_joins_of_the_old_pair_and_no_other() {
    // The server does not read the database again meanwhile, so the pair ends by the clock.
    let server = TestServer::start_with(|settings| {
        settings.registry.refresh = Duration::from_secs(3_600);
    });
    let old = foo_app(&server).await;
    let (new, data) = rotate(&server, 3).await;
    let mut joined = Vec::new();
    for app in [&old, &new] {
        let mut socket = Socket::connect(&server, V2).await;
        socket.join("public:test-app", json!({})).await;
        socket.join(PRIVATE, ticket(app)).await;
        socket.join("public:foo-app", ticket(app)).await;
        joined.push(socket);
    }
    let path = format!(
        "/socket/websocket?vsn=2.0.0&guardian_token={}",
        ticket(&old)["guardian_token"].as_str().expect("a token")
    );
    let mut optional = Socket::open(&server, &path).await;
    optional.join("public:foo-app", json!({})).await;
    let mut visitor = Socket::connect(&server, V2).await;
    visitor.join("public:foo-app", json!({})).await;

    let end = time(&data["previous_key_expires_at"]);
    assert!(Utc::now() < end, "the machine is too slow for this test");
    let [of_old, of_new] = &mut joined[..] else { panic!("two") };
    for topic in [PRIVATE, "public:foo-app"] {
        let frame = of_old.next().await;
        assert_eq!(frame, json!(["1", "1", topic, "phx_error", { "reason": "channel_crash" }]));
    }
    assert!(Utc::now() >= end, "not before the end");
    for socket in [of_old, of_new, &mut optional, &mut visitor] {
        socket.assert_quiet().await;
    }
    for (app, status) in [(&old, 401), (&new, 200)] {
        assert_eq!(triggers(&server, app).await, [status; 4]);
    }
    let after = shown(&server).await;
    assert_eq!(after["previous_key"], Value::Null);
    assert_eq!(after["key"], json!(new.key));
    // The key of a pair that has ended is free.
    server.create_app(json!({ "name": "Bar App", "key": old.key })).await;
}

#[tokio::test]
async fn a_key_is_unique_among_the_current_and_the_previous_ones() {
    let server = TestServer::start();
    let old = foo_app(&server).await;
    let (new, _) = rotate(&server, 3_600).await;
    server.create_app(json!({ "name": "bar-app" })).await;
    let taken = json!({ "errors": { "key": ["has already been taken"] } });
    for key in [&old.key, &new.key] {
        let create = json!({ "app": { "name": "Another", "key": key } });
        let change = json!({ "app": { "key": key } });
        for (method, path, body) in
            [("POST", "/api/admin/apps", create), ("PATCH", "/api/admin/apps/bar-app", change)]
        {
            let answer = server.admin(method, path, Some(body)).await;
            assert_eq!((answer.status, answer.json()), (422, taken.clone()), "{method}");
        }
    }
    let own = server.admin("PATCH", FOO, Some(json!({ "app": { "key": old.key } }))).await;
    assert_eq!((own.status, own.json()), (422, taken), "the app's own previous key");
    server.update_app("foo-app", json!({ "key": new.key })).await;
    rotate(&server, 3_600).await;
    server.update_app("bar-app", json!({ "key": old.key })).await;
}

#[tokio::test]
async fn a_changed_secret_ends_the_current_pair_and_leaves_the_previous_one() {
    let server = TestServer::start();
    let old = foo_app(&server).await;
    let (new, _) = rotate(&server, 3_600).await;
    let mut socket = Socket::connect(&server, V2).await;
    socket.join(PRIVATE, ticket(&old)).await;
    let changed = server.update_app("foo-app", json!({ "secret": "" })).await;
    socket.assert_quiet().await;
    for (app, status) in [(&old, 200), (&new, 401), (&changed, 200)] {
        assert_eq!(triggers(&server, app).await, [status; 4]);
    }
}

#[tokio::test]
async fn both_pairs_survive_a_restart_and_so_do_their_last_uses() {
    let dir = TempDir::new().expect("a temporary folder");
    let process = Process::start_in(dir, &[]);
    let old = foo_app(&process.server).await;
    let begin = Utc::now() - Duration::from_secs(60);
    assert_eq!(triggers(&process.server, &old).await, [200; 4]);
    let (new, data) = rotate(&process.server, 3_600).await;
    assert!(time(&data["previous_key_last_used_at"]) >= begin, "{data}");
    assert_eq!(data["key_last_used_at"], Value::Null);
    let mut socket = Socket::connect(&process.server, V2).await;
    socket.join(PRIVATE, ticket(&new)).await;
    let before = shown(&process.server).await;
    assert!(time(&before["key_last_used_at"]) >= begin, "a token is a use: {before}");
    drop(socket);

    let process = Process::start_in(process.stop(), &[]);
    assert_eq!(shown(&process.server).await, before);
    for app in [&old, &new] {
        assert_eq!(triggers(&process.server, app).await, [200; 4]);
    }
}

#[tokio::test]
async fn a_pair_that_ends_while_no_server_runs_is_over() {
    let process = Process::start(&[]);
    let old = foo_app(&process.server).await;
    let (new, data) = rotate(&process.server, 1).await;
    let dir = process.stop();
    wait_until(time(&data["previous_key_expires_at"])).await;
    let process = Process::start_in(dir, &[]);
    for (app, status) in [(&old, 401), (&new, 200)] {
        assert_eq!(triggers(&process.server, app).await, [status; 4]);
    }
    assert_eq!(shown(&process.server).await["previous_key"], Value::Null);
}

#[tokio::test]
async fn the_last_use_says_the_minute_and_only_of_the_pair_that_was_right() {
    let server = TestServer::start();
    let app = foo_app(&server).await;
    let used = async |field: &str| shown(&server).await[field].clone();
    let wrong = App { secret: "wrong".into(), ..app.clone() };
    assert_eq!(triggers(&server, &wrong).await, [401; 4]);
    assert_eq!(used("key_last_used_at").await, Value::Null, "wrong credentials do not count");
    let earliest = Utc::now() - Duration::from_secs(60);
    assert_eq!(triggers(&server, &app).await, [200; 4]);
    let at = time(&used("key_last_used_at").await);
    assert!(earliest < at && at <= Utc::now(), "{at}");
    assert_eq!(at.timestamp() % 60, 0);
    let before = shown(&server).await["updated_at"].clone();
    assert_eq!(triggers(&server, &app).await, [200; 4]);
    assert_eq!(shown(&server).await["updated_at"], before, "a use is not a change");
    // Another minute may have begun.
    let at = time(&used("key_last_used_at").await);

    let (new, _) = rotate(&server, 3_600).await;
    assert_eq!(time(&used("previous_key_last_used_at").await), at);
    assert_eq!(used("key_last_used_at").await, Value::Null);
    let changed = server.update_app("foo-app", json!({ "active": true })).await;
    assert_eq!(changed.key, new.key);
    assert_eq!(time(&used("previous_key_last_used_at").await), at);
}

/// The traffic while an app's pair is rotated: triggers and joins with a pair, none of which may
/// fail.
struct Load {
    calls: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    fn start(port: u16, app: &App) -> Self {
        let (calls, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let (calls, stop, app) = (calls.clone(), stop.clone(), app.clone());
            tasks.spawn(async move {
                let dir = TempDir::new().expect("a temporary folder");
                let server = TestServer::elsewhere(port, dir);
                while !stop.load(SeqCst) {
                    assert_eq!(triggers(&server, &app).await, [200; 4]);
                    let mut socket = Socket::connect(&server, V2).await;
                    socket.join(PRIVATE, ticket(&app)).await;
                    calls.fetch_add(1, SeqCst);
                }
            });
        }
        Self { calls, stop, tasks }
    }

    /// Waits until this number of further rounds has succeeded.
    async fn rounds(&mut self, count: u64) {
        let enough = self.calls.load(SeqCst) + count;
        while self.calls.load(SeqCst) < enough {
            if let Some(ended) = self.tasks.try_join_next() {
                ended.expect("nothing fails");
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(mut self) {
        self.stop.store(true, SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("nothing fails");
        }
    }
}

/// Rotates three times under load. After a rotation, the previous pair and the new one are both in use for a while.
async fn nothing_fails_during_rotations(env: &[(&str, &str)]) {
    let process = Process::start(env);
    let server = &process.server;
    let mut current = Load::start(server.port, &foo_app(server).await);
    let mut listener = Socket::connect(server, V2).await;
    listener.join("public:foo-app", json!({})).await;
    for _ in 0..3 {
        current.rounds(3).await;
        let (app, _) = rotate(server, 3_600).await;
        let mut next = Load::start(server.port, &app);
        next.rounds(3).await;
        current.rounds(3).await;
        current.stop().await;
        current = next;
    }
    current.stop().await;
    listener.assert_quiet().await;
    process.stop();
}

#[tokio::test]
async fn nothing_fails_during_rotations_on_sqlite() {
    nothing_fails_during_rotations(&[]).await;
}

#[tokio::test]
async fn nothing_fails_during_rotations_on_postgresql() {
    let database = TestDatabase::postgres().await;
    nothing_fails_during_rotations(&[("DATABASE_URL", database.url())]).await;
    database.remove().await;
}
