//! A database or a history on a full disk: a change that was answered as done is stored, any other is undone.
//!
//! Where a test may mount a file system, it fills one of its own. Elsewhere it limits the size of the files. The
//! assertions are the same.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use herald_migration::{Migration, Migrator, MigratorTrait};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    command_line::Done,
    support::{figures::Figures, server::App, *},
};

/// More writes than the files of the database have room for once the disk is full.
const WRITES: usize = 40;
/// The largest size of a file of the database where no file system can be mounted, in bytes.
const FILE_BYTES_MAX: u64 = 96 * 1_024;

/// A folder whose disk can be filled.
struct SmallDisk {
    folder: TempDir,
    is_mounted: bool,
}

impl SmallDisk {
    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path());
        let is_mounted = mount.output().is_ok_and(|done| done.status.success());
        Self { folder, is_mounted }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn url(&self, file: &str) -> String {
        format!("sqlite://{}", self.path(file).display())
    }

    fn start_server(&self) -> Process {
        let url = self.url("herald.db");
        let env = [
            ("DATABASE_URL", url.as_str()),
            ("HERALD__DATABASE__SEED", "false"),
            ("HERALD__REGISTRY__REFRESH", "100ms"),
        ];
        let dir = TempDir::new().expect("a temporary folder");
        Process::start_through(herald("trap '' XFSZ"), dir, &env)
    }

    fn fill(&self, process: &Process) {
        if self.is_mounted {
            fill(&self.path("filler"));
        } else {
            process.limit_file_bytes(FILE_BYTES_MAX);
        }
    }

    fn empty(&self, process: &Process) {
        if self.is_mounted {
            std::fs::remove_file(self.path("filler")).expect("the filler");
        } else {
            process.limit_file_bytes(rlimit::INFINITY);
        }
    }

    /// Runs a command on the database that the server uses as well.
    fn run(&self, args: &[&str]) -> Done {
        self.run_on("herald.db", FILE_BYTES_MAX, args)
    }

    /// Runs a command on a database. Where no file system is mounted, its files may be this large at most.
    fn run_on(&self, database: &str, file_bytes_max: u64, args: &[&str]) -> Done {
        let limit = format!("trap '' XFSZ; ulimit -f {}", file_bytes_max / 512);
        let mut herald = herald(if self.is_mounted { ":" } else { &limit });
        let herald = herald.args(args).current_dir(self.folder.path()).env_clear();
        let herald = herald.env("HERALD_ENV", "test").env("DATABASE_URL", self.url(database));
        Done::from(herald.output().expect("herald runs"))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.is_mounted {
            // Lazily, because a server that was just killed may still have its files open.
            Command::new("umount").arg("-l").arg(self.folder.path()).output().ok();
        }
    }
}

/// A shell that runs a command in preparation, and then becomes `herald`.
fn herald(preparation: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("{preparation}; exec \"$0\" \"$@\"")]);
    shell.arg(env!("CARGO_BIN_EXE_herald"));
    shell
}

/// Writes to a file until the disk is full.
fn fill(path: &Path) {
    let mut filler = File::create(path).expect("a file");
    let error = loop {
        if let Err(error) = filler.write_all(&[0; 4_096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}

/// Whether a call succeeded. If not, it must have been refused as unavailable.
#[track_caller]
fn is_done(answer: &http::Answer, status: u16) -> bool {
    let is_done = answer.status == status;
    if !is_done {
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert!(answer.header("retry-after").is_some());
        assert!(!answer.body.contains("disk"), "it tells the reason: {}", answer.body);
    }
    is_done
}

/// Whether a command succeeded. If not, it must have said so with one line and its exit code.
#[track_caller]
fn has_succeeded(done: &Done) -> bool {
    let has_succeeded = done.code == Some(0);
    if !has_succeeded {
        let line = done.failed(1);
        // The server names the setting as well.
        let starts = ["herald: database ", "herald: database.url: database "];
        assert!(starts.iter().any(|start| line.starts_with(start)), "{line}");
    }
    has_succeeded
}

async fn apps(server: &TestServer) -> Vec<Value> {
    let listed = server.admin("GET", "/api/admin/apps", None).await;
    assert_eq!(listed.status, 200, "{}", listed.body);
    listed.json()["data"].as_array().expect("a list").clone()
}

async fn slugs(server: &TestServer) -> Vec<String> {
    let slug = |app: &Value| app["slug"].as_str().expect("a string").to_owned();
    apps(server).await.iter().map(slug).collect()
}

async fn trigger_status(server: &TestServer, app: &App) -> u16 {
    let url = server.url(&format!("/api/apps/{}/events", app.slug));
    let request = request("POST", url).basic(&app.key, &app.secret);
    request.json(&json!({"topic": "t", "event": "e"})).send().await.status
}

/// Waits until the table of apps was read twice more. The first read may have begun before this call, but the second
/// has put into memory what is stored.
async fn until_refreshed(server: &TestServer) {
    let series = r#"herald_registry_refreshes_total{outcome="ok"}"#;
    let before = Figures::of(server).await.get(series);
    let refreshed = repeat_until(async || Figures::of(server).await.get(series) >= before + 2.0);
    tokio::time::timeout(DEADLINE, refreshed).await.expect("a refresh in time");
}

#[tokio::test]
async fn a_server_on_a_full_disk_has_done_what_it_answers_and_nothing_else() {
    let disk = SmallDisk::new();
    let process = disk.start_server();
    let server = &process.server;
    let mut app = server.create_app(json!({"name": "foo-app"})).await;
    disk.fill(&process);

    let mut created = vec![app.slug.clone()];
    for n in 0..WRITES {
        let slug = format!("app-{n}");
        let fields = json!({"app": {"name": slug}});
        if is_done(&server.admin("POST", "/api/admin/apps", Some(fields)).await, 201) {
            created.push(slug);
        }
    }
    assert!(created.len() < WRITES, "the disk is full");
    assert_eq!(slugs(server).await, created, "in the database");

    // A small change may find room where a creation finds none, but only a few times.
    let (mut withdrawn, mut is_full) = (Vec::new(), false);
    for _ in 0..WRITES {
        let fields = json!({"app": {"secret": ""}});
        let answer = server.admin("PATCH", "/api/admin/apps/foo-app", Some(fields)).await;
        if is_done(&answer, 200) {
            let secret = answer.json()["data"]["secret"].as_str().expect("a string").to_owned();
            withdrawn.push(std::mem::replace(&mut app.secret, secret));
        } else {
            is_full = true;
        }
    }
    assert!(is_full, "the disk is full");
    let fields = json!({"app": {"active": false}});
    let answer = server.admin("PATCH", "/api/admin/apps/foo-app", Some(fields)).await;
    assert!(!is_done(&answer, 200));
    for slug in &created {
        let answer = server.admin("DELETE", &format!("/api/admin/apps/{slug}"), None).await;
        assert!(!is_done(&answer, 204), "{slug}");
    }

    until_refreshed(server).await;
    assert_eq!(slugs(server).await, created, "nothing was deleted");
    assert_eq!(trigger_status(server, &app).await, 200, "active, with the last secret answered");
    for secret in withdrawn {
        let withdrawn = App { secret, ..app.clone() };
        assert_eq!(trigger_status(server, &withdrawn).await, 401, "a withdrawn secret");
    }

    disk.empty(&process);
    created.push(server.create_app(json!({"name": "bar-app"})).await.slug);
    server.update_app("foo-app", json!({"active": false})).await;
    process.crash();
    let process = disk.start_server();
    let server = &process.server;
    assert_eq!(slugs(server).await, created, "every answered change is stored");
    assert_eq!(trigger_status(server, &app).await, 401, "so did the last change");
}

#[tokio::test]
async fn a_command_on_a_full_disk_has_done_what_its_exit_code_says() {
    let disk = SmallDisk::new();
    // A server has the database open, as is usual when the command line is used.
    let process = disk.start_server();
    let server = &process.server;
    server.create_app(json!({"name": "foo-app"})).await;
    disk.fill(&process);

    let mut created = vec!["foo-app".to_owned()];
    for n in 0..WRITES {
        let slug = format!("app-{n}");
        if has_succeeded(&disk.run(&["apps", "create", "--name", &slug])) {
            created.push(slug);
        } else {
            break;
        }
    }
    assert!(created.len() < WRITES, "the disk is full");
    // Small changes use up the rest of the room.
    let update = |n| {
        let origin = format!("https://{n}.example");
        let args = ["apps", "update", "foo-app", "--origin", &origin];
        has_succeeded(&disk.run(&args)).then_some(origin)
    };
    let updated: Vec<_> = (0..WRITES).map_while(update).collect();
    assert!(updated.len() < WRITES, "the disk is full");
    let before = apps(server).await;
    let last: Vec<_> = updated.last().into_iter().collect();
    assert_eq!(before[0]["allowed_origins"], json!(last));
    assert_eq!(slugs(server).await, created);
    for args in [
        &["apps", "create", "--name", "bar-app"][..],
        &["apps", "update", "foo-app", "--active", "false"],
        &["apps", "update", "foo-app", "--new-secret"],
        &["apps", "delete", "foo-app", "--yes"],
    ] {
        assert!(!has_succeeded(&disk.run(args)), "{args:?}");
    }
    let seed = disk.run(&["seed"]);
    let line = seed.failed(1);
    assert!(line.starts_with("herald: cannot create the app test-app: database "), "{line}");
    assert_eq!(apps(server).await, before, "nothing was changed");

    disk.empty(&process);
    server.create_app(json!({"name": "bar-app"})).await;
}

#[tokio::test]
async fn migrations_on_a_full_disk_fail_and_leave_nothing_half_done() {
    let disk = SmallDisk::new();
    let process = disk.start_server();
    disk.fill(&process);
    for args in [&["migrate", "up"][..], &["seed"], &["serve"]] {
        assert!(!has_succeeded(&disk.run_on("new.db", 4_096, args)), "{args:?}");
    }
    disk.empty(&process);
    let done = disk.run_on("new.db", FILE_BYTES_MAX, &["migrate", "up"]);
    let url = disk.url("new.db");
    let line = |migration: &Migration| format!("applied {} to {url}\n", migration.name());
    let applied: String = Migrator::get_migration_files().iter().map(line).collect();
    assert_eq!(done.succeeded(), applied, "none was applied before");
}

/// Publishes more than the disk has room for; answers the last position.
async fn more_than_there_is_room_for(process: &Process) -> String {
    let app = App::seeded();
    let mut position = String::new();
    for _ in 0..20 {
        let payload = json!({ "filler": "x".repeat(90_000) });
        let event = json!({"topic": "t", "event": "e", "payload": payload, "position": true});
        let url = process.server.url("/api/apps/test-app/events");
        let answer = request("POST", url).basic(&app.key, &app.secret).json(&event).send().await;
        position = answer.json()["position"].as_str().expect("a position").to_owned();
    }
    position
}

/// The recovery that a client with a position is told.
async fn recovery(process: &Process, since: &str) -> Value {
    let mut socket = Socket::connect(&process.server, V2).await;
    let reply = socket.try_join("public:test-app:t", json!({ "since": since })).await;
    reply["response"]["recovery"].clone()
}

#[tokio::test]
async fn a_history_that_finds_no_room_on_the_disk_is_given_up_and_said_to_be() {
    let disk = SmallDisk::new();
    let file = disk.path("history").display().to_string();
    let start = |dir: TempDir| {
        let env = [("HERALD__HISTORY__FILE", file.as_str())];
        Process::start_through(herald("trap '' XFSZ"), dir, &env)
    };
    let process = start(TempDir::new().expect("a temporary folder"));
    let lost = more_than_there_is_room_for(&process).await;
    if !disk.is_mounted {
        process.limit_file_bytes(FILE_BYTES_MAX);
    }
    process.signal("TERM");
    let log = process.rest_of_log();
    assert!(log.iter().any(|line| line.contains("cannot save the history file")), "{log:#?}");
    let names = std::fs::read_dir(disk.folder.path()).expect("a folder").count();
    assert_eq!(names, 1, "no half-written file is left");
    let process = start(process.crash());
    process.until_logged("is empty, because the last server did not save it");
    assert_eq!(recovery(&process, &lost).await["reason"], "epoch");
    let app = App::seeded();
    process.server.trigger(&app, json!({"topic": "t", "event": "e"})).await;
    let saved = recovery(&process, "").await["position"].as_str().expect("a position").to_owned();
    let dir = process.stop();
    if !disk.is_mounted {
        return;
    }

    // If there is no room to mark the file as in use, the server gives up what the file holds.
    fill(&disk.path("filler"));
    let process = start(dir);
    process.until_logged("cannot use the history file");
    assert_eq!(recovery(&process, &saved).await["reason"], "epoch");
    process.server.trigger(&app, json!({"topic": "t", "event": "e"})).await;
    let new = recovery(&process, "").await["position"].as_str().expect("a position").to_owned();
    // Once there is room again, the stop saves as usual, and the old file is not loaded a second time.
    std::fs::remove_file(disk.path("filler")).expect("the filler");
    let process = start(process.stop());
    assert_eq!(recovery(&process, &saved).await["reason"], "epoch");
    assert_eq!(recovery(&process, &new).await["complete"], true);
}
