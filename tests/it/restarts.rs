//! SPEC.md, *Restarts*: an orderly stop loses nothing. After any other end a new epoch begins, and the clients
//! are told.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, thread, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{databases::TestDatabase, support::*};

const TOPIC: &str = "public:test-app:room";

/// The name of the history file, which lies beside the database of a process.
const FILE: &str = "herald.db-history";

/// Limits that the number of publications in these tests does not reach.
const ROOMY: [(&str, &str); 4] = [
    ("HERALD__HISTORY__PUBLICATIONS", "100000"),
    ("HERALD__HISTORY__PUBLICATIONS_MAX", "100000"),
    ("HERALD__HISTORY__REPLAY_MAX", "100000"),
    ("HERALD__LIMITS__OUTBOX_FRAMES_MAX", "200000"),
];

/// Publishes an event with this number and this filler; answers its position, or `None` if it was refused.
async fn try_publish(server: &TestServer, n: u64, filler: &str) -> Option<String> {
    let payload = json!({ "n": n, "filler": filler });
    let event = json!({ "topic": "room", "event": "msg", "payload": payload, "position": true });
    let app = App::seeded();
    let request = request("POST", server.url("/api/apps/test-app/events"));
    let answer = request.basic(&app.key, &app.secret).json(&event).send().await;
    match answer.status {
        200 => Some(answer.json()["position"].as_str().expect("a position").to_owned()),
        503 => None,
        _ => panic!("{} {}", answer.status, answer.body),
    }
}

async fn publish(server: &TestServer, n: u64) -> String {
    try_publish(server, n, "").await.expect("it is taken")
}

fn epoch(position: &str) -> &str {
    position.split_once(':').expect("a position").0
}

/// Joins with a position; answers what the reply says of the recovery, and the numbers of the events
/// that are replayed.
async fn rejoin(socket: &mut Socket, since: &str) -> (Value, Vec<u64>) {
    let reply = socket.try_join(TOPIC, json!({ "since": since })).await;
    let recovery = reply["response"]["recovery"].clone();
    let mut replayed = Vec::new();
    for _ in 0..recovery["replayed"].as_u64().unwrap_or_else(|| panic!("{reply}")) {
        let frame = socket.next().await;
        replayed.push(frame[4]["n"].as_u64().unwrap_or_else(|| panic!("{frame}")));
    }
    (recovery, replayed)
}

async fn recovered(server: &TestServer, since: &str) -> (Value, Vec<u64>) {
    rejoin(&mut Socket::connect(server, V2).await, since).await
}

/// Whether a position belongs to the present epoch of its scope. If it does not, the client must be told so.
async fn is_known(server: &TestServer, since: &str) -> bool {
    let (recovery, replayed) = recovered(server, since).await;
    let is_known = recovery["complete"] == true;
    if !is_known {
        assert_eq!(recovery["reason"], "epoch", "{recovery}");
        assert_eq!(replayed, [0; 0]);
    }
    is_known
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("one").file_name();
    let mut names: Vec<_> = entries.map(|entry| name(entry).display().to_string()).collect();
    names.retain(|name| name.contains("history"));
    names.sort();
    names
}

/// A folder with the file that a stop has saved, and the position of the publication in this file.
async fn stopped() -> (TempDir, String) {
    let process = Process::start(&[]);
    let position = publish(&process.server, 1).await;
    (process.stop(), position)
}

/// Stops and starts a server, while a publisher continues and clients of each kind come back.
async fn an_orderly_stop_loses_nothing(env: &[(&str, &str)], file: &str) {
    let env = [&ROOMY, env].concat();
    let mut process = Process::start_in(TempDir::new().expect("a temporary folder"), &env);
    let mut clients = Vec::new();
    for way in WAYS {
        let mut socket = Socket::connect(&process.server, way).await;
        let (began, _) = rejoin(&mut socket, "").await;
        clients.push((way, socket, began["position"].as_str().expect("a position").to_owned()));
    }
    let idle = request("GET", process.server.url("/api/apps/test-app/channels/public/idle"));
    let app = App::seeded();
    assert_eq!(idle.basic(&app.key, &app.secret).send().await.status, 200);
    let first = publish(&process.server, 0).await;
    let (mut accepted, mut n) = (vec![0], 1);
    // Publications continue until one is refused, because the server stops.
    loop {
        if n == 40 {
            process.signal("TERM");
        }
        let server = &process.server;
        match try_publish(server, n, "").await {
            Some(position) => assert_eq!(epoch(&position), epoch(&first)),
            None => break,
        }
        accepted.push(n);
        n += 1;
    }
    // This drops the sockets, which would hold the stop up.
    let clients: Vec<_> = clients.into_iter().map(|(way, _, since)| (way, since)).collect();
    assert!(process.ended().success());
    let dir = process.crash();
    assert!(accepted.len() >= 40, "{n}");
    assert_eq!(names(dir.path()), [file]);
    let mode = fs::metadata(dir.path().join(file)).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let process = Process::start_in(dir, &env);
    let [line] = &process.logged("loaded the history file", 1)[..] else { panic!("one line") };
    let expected = format!("{file}: {} publications of 1 scopes, ", accepted.len());
    assert!(line.contains(&expected), "{line}");
    let last = publish(&process.server, n).await;
    accepted.push(n);
    assert_eq!(epoch(&last), epoch(&first), "the numbering goes on");
    for (way, since) in clients {
        let mut socket = Socket::connect(&process.server, way).await;
        let (recovery, replayed) = rejoin(&mut socket, &since).await;
        assert_eq!(recovery["complete"], true, "{way:?} {recovery}");
        assert_eq!(replayed, accepted, "{way:?}");
    }
    let (recovery, replayed) = recovered(&process.server, &last).await;
    assert_eq!((&recovery["complete"], replayed), (&json!(true), Vec::new()));
    // The file is not loaded a second time.
    let dir = process.crash();
    let process = Process::start_in(dir, &env);
    process.until_logged("is empty, because the last server did not save it");
    assert!(!is_known(&process.server, &last).await);
}

#[tokio::test]
async fn an_orderly_stop_loses_nothing_beside_sqlite() {
    an_orderly_stop_loses_nothing(&[], FILE).await;
}

#[tokio::test]
async fn an_orderly_stop_loses_nothing_with_postgresql() {
    let database = TestDatabase::postgres().await;
    an_orderly_stop_loses_nothing(&[("DATABASE_URL", database.url())], "herald-history").await;
    database.remove().await;
}

#[tokio::test]
async fn a_client_with_the_newest_position_of_a_scope_that_retains_nothing_has_missed_nothing() {
    let env = [("HERALD__HISTORY__AGE", "1s")];
    let process = Process::start(&env);
    let (began, _) = recovered(&process.server, "").await;
    let nothing = began["position"].as_str().expect("a position").to_owned();
    let process = Process::start_in(process.stop(), &env);
    assert!(is_known(&process.server, &nothing).await);
    let newest = publish(&process.server, 1).await;
    thread::sleep(Duration::from_millis(1_100));
    let process = Process::start_in(process.stop(), &env);
    assert!(is_known(&process.server, &newest).await);
    let (recovery, _) = recovered(&process.server, &nothing).await;
    assert_eq!(recovery["reason"], "expired");
}

/// Publishes with an idempotency key through `/api/publish` or `/api/publish/bulk`; answers the status and the
/// body.
async fn publish_with_key(server: &TestServer, events: &[Value], key: &str) -> (u16, String) {
    let (path, mut body) = match events {
        [event] => ("/api/publish", event.clone()),
        _ => ("/api/publish/bulk", json!({ "events": events })),
    };
    body["idempotency_key"] = key.into();
    body["position"] = true.into();
    let call = request("POST", server.url(path));
    let answer = call.header("authorization", &App::seeded().secret).json(&body).send().await;
    (answer.status, answer.body)
}

#[tokio::test]
async fn a_repetition_after_a_restart_delivers_nothing_and_is_answered_like_the_first() {
    let one = |n: u64| json!({ "topic": TOPIC, "event": "msg", "payload": { "n": n } });
    let bytes = json!({ "topic": TOPIC, "event": "msg", "payload_base64": "AAE=" });
    let calls = [
        ("single", vec![one(1)]),
        ("bulk", vec![one(2), json!({ "topic": "private:test-app:x", "event": "msg" }), one(3)]),
        ("bytes", vec![bytes]),
    ];
    for env in [&[][..], &[("HERALD__HISTORY__PUBLICATIONS", "0")]] {
        let process = Process::start(env);
        // Binary payloads cannot be sent to a client of version 1.
        let mut old = Socket::connect(&process.server, V1).await;
        old.try_join(TOPIC, json!({})).await;
        let mut answers = Vec::new();
        for (key, events) in &calls {
            let answer = publish_with_key(&process.server, events, key).await;
            assert_eq!(answer.0, 200, "{}", answer.1);
            answers.push(answer);
        }
        assert!(answers[2].1.contains(r#""skipped":1"#), "{}", answers[2].1);
        drop(old);
        // There are two restarts, and the server between them receives no repetition.
        let process = Process::start_in(Process::start_in(process.stop(), env).stop(), env);
        let [line] = &process.logged("loaded the history file", 1)[..] else { panic!("one line") };
        assert!(line.contains(" 3 idempotency keys, "), "{line}");
        let mut socket = Socket::connect(&process.server, V2).await;
        socket.try_join(TOPIC, json!({})).await;
        for ((key, events), answer) in calls.iter().zip(&answers) {
            assert_eq!(&publish_with_key(&process.server, events, key).await, answer, "{key}");
            let (status, text) = publish_with_key(&process.server, &[one(9)], key).await;
            assert!(status == 422 && text.contains("other content"), "{key} {text}");
        }
        // The first event that the client hears is the first new one.
        let (status, _) = publish_with_key(&process.server, &[one(4)], "new").await;
        assert_eq!(status, 200);
        assert_eq!(socket.next().await[4], json!({ "n": 4 }));
    }
}

#[tokio::test]
async fn a_key_that_was_used_while_the_server_stopped_is_known_to_the_next_one() {
    let mut process = Process::start(&ROOMY);
    let mut socket = Socket::connect(&process.server, V2).await;
    let (began, _) = rejoin(&mut socket, "").await;
    let since = began["position"].as_str().expect("a position").to_owned();
    let event = |n: u64| json!({ "topic": TOPIC, "event": "msg", "payload": { "n": n } });
    let (mut accepted, mut n) = (Vec::new(), 0);
    // Publications continue until one is refused, because the server stops.
    loop {
        if n == 20 {
            process.signal("TERM");
        }
        match publish_with_key(&process.server, &[event(n)], &n.to_string()).await {
            (200, answer) => accepted.push(answer),
            (503, _) => break,
            (status, answer) => panic!("{status} {answer}"),
        }
        n += 1;
    }
    drop(socket);
    assert!(process.ended().success());
    let process = Process::start_in(process.crash(), &ROOMY);
    for (n, answer) in (0..).zip(&accepted) {
        let repeated = publish_with_key(&process.server, &[event(n)], &n.to_string()).await;
        assert_eq!(repeated, (200, answer.clone()));
    }
    let (recovery, replayed) = recovered(&process.server, &since).await;
    assert_eq!((&recovery["complete"], replayed.len()), (&json!(true), accepted.len()));
}

#[tokio::test]
async fn an_app_that_was_deactivated_or_deleted_meanwhile_has_nothing_left() {
    let herald = |dir: &TempDir, args: &[&str]| {
        let mut herald = Command::new(env!("CARGO_BIN_EXE_herald"));
        let url = format!("sqlite://{}/herald.db", dir.path().display());
        let herald = herald.env_clear().env("HERALD_ENV", "test").env("DATABASE_URL", url);
        assert!(herald.args(args).status().expect("herald runs").success());
    };
    for (changes, reason) in [
        (
            [
                &["apps", "update", "test-app", "--active", "false"][..],
                &["apps", "update", "test-app", "--active", "true"],
            ],
            "epoch",
        ),
        // A new app has another id.
        ([&["apps", "delete", "test-app", "--yes"], &["seed"]], "unknown"),
    ] {
        let (dir, position) = stopped().await;
        herald(&dir, changes[0]);
        let process = Process::start_in(dir, &[("HERALD__DATABASE__SEED", "false")]);
        process.until_logged("loaded the history file");
        herald(&process.server.dir, changes[1]);
        let process = Process::start_in(process.stop(), &[]);
        let (recovery, _) = recovered(&process.server, &position).await;
        assert_eq!(recovery["reason"], reason, "{changes:?}");
    }
}

mod file;
