//! Every command, run as a process: its answer, its exit code, and what it keeps to itself.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, value::RawValue};
use tempfile::TempDir;

use crate::databases::sql;

/// A folder to run `herald` in, with an environment of nothing but what a test gives.
pub(crate) struct Place {
    folder: TempDir,
    env: Vec<(String, String)>,
}

/// The exit code and the output of a finished process.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), env: Vec::new() }
    }

    /// A place with a folder for its database, which no command but a server's start makes.
    pub(crate) fn with_folder() -> Self {
        let place = Self::new();
        std::fs::create_dir(place.path().join("data")).expect("a folder");
        place
    }

    /// The name of its database in messages.
    fn database(&self) -> String {
        let folder = self.path().canonicalize().expect("a folder");
        format!("sqlite://{}/data/herald.db", folder.display())
    }

    /// A place whose database has its tables and the seeded app.
    pub(crate) fn seeded() -> Self {
        let place = Self::with_folder();
        assert_eq!(place.run(&["seed"]).succeeded(), "created test-app\n");
        place
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.args(args).current_dir(self.path()).env_clear().stdin(Stdio::null());
        command.envs(self.env.iter().cloned());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Done {
        Done::from(self.command(args).output().expect("herald runs"))
    }

    /// Runs with `text` on standard input.
    fn run_with_input(&self, args: &[&str], text: &str) -> Done {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("herald runs");
        let mut input = child.stdin.take().expect("its standard input");
        input.write_all(text.as_bytes()).expect("it reads");
        drop(input);
        Done::from(child.wait_with_output().expect("it ends"))
    }

    fn secret_of(&self, slug: &str) -> String {
        let app = self.run(&["apps", "show", slug, "--json"]).json();
        app["data"]["secret"].as_str().expect("a secret").to_owned()
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Done {
    #[track_caller]
    pub(crate) fn succeeded(&self) -> &str {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        &self.out
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.succeeded()).expect("JSON")
    }

    /// Asserts one line on standard error, nothing on standard output, and gives the line.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32) -> &str {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        self.err.trim_end()
    }

    #[track_caller]
    pub(crate) fn never_says(&self, secret: &str) {
        assert!(!self.out.contains(secret) && !self.err.contains(secret), "{self:?}");
    }
}

#[test]
fn every_command_has_help_with_examples() {
    let place = Place::new();
    for command in [
        &["--help"][..],
        &["serve", "--help"],
        &["migrate", "--help"],
        &["seed", "--help"],
        &["check-config", "--help"],
        &["apps", "--help"],
        &["token", "--help"],
        &["trigger", "--help"],
        &["history", "--help"],
        &["audit", "--help"],
        &["usage", "--help"],
        &["nodes", "--help"],
    ] {
        let help = place.run(command);
        assert!(help.succeeded().contains("Examples:\n  "), "{command:?}: {help:?}");
        assert!(help.out.contains("herald "), "{command:?}");
        // An example that is broken in two cannot be copied.
        let narrow = Place::new().with("COLUMNS", "80").run(command);
        let after = |help: &Done| help.out.split_once("Examples:").map(|(_, it)| it.to_owned());
        assert_eq!(after(&narrow), after(&help), "{command:?} in a terminal of 80 columns");
    }
    for command in [
        &["migrate", "up", "--help"][..],
        &["migrate", "down", "--help"],
        &["migrate", "status", "--help"],
        &["apps", "list", "--help"],
        &["apps", "create", "--help"],
        &["apps", "show", "--help"],
        &["apps", "update", "--help"],
        &["apps", "delete", "--help"],
        &["help"],
        &["--version"],
    ] {
        assert!(!place.run(command).succeeded().is_empty(), "{command:?}");
    }
    assert!(place.run(&["--help"]).out.contains("Exit codes:"));
    assert_eq!(std::fs::read_dir(place.path()).expect("a folder").count(), 0, "help needs nothing");
}

#[test]
fn the_allocator_returns_memory_within_two_seconds() {
    let place = Place::new();
    let mut command = place.command(&["--version"]);
    let output = command.env("_RJEM_MALLOC_CONF", "stats_print:true").output().expect("an end");
    let options = String::from_utf8_lossy(&output.stderr);
    assert!(options.contains("opt.dirty_decay_ms: 2000"), "{options}");
}

#[test]
fn an_invalid_command_line_is_a_usage_error() {
    let place = Place::new();
    for args in [
        &["bogus"][..],
        &["--bogus"],
        &["serve", "now"],
        &["migrate"],
        &["migrate", "sideways"],
        &["migrate", "down", "--steps", "0"],
        &["migrate", "up", "--steps", "-1"],
        &["apps"],
        &["apps", "create"],
        &["apps", "show"],
        &["apps", "show", "Foo App"],
        &["apps", "update", "foo-app", "--active", "maybe"],
        &["apps", "update", "foo-app", "--client-events", "some"],
        &["apps", "update", "foo-app", "--new-key", "--key", "k"],
        &["apps", "update", "foo-app", "--any-origin", "--origin", "https://a.b"],
        &["token"],
        &["token", "--app", "test-app", "--listen", "*"],
        &["token", "--app", "test-app", "--listen", ""],
        &["token", "--app", "test-app", "--sub", "{\"id\":1"],
        &["token", "--app", "test-app", "--sub", "\"ada"],
        &["token", "--app", "test-app", "--sub", "[1,]"],
        &["token", "--app", "test-app", "--sub", ""],
        &["token", "--app", "test-app", "--sub", "1e999"],
        &["token", "--app", "test-app", "--sub", "{\"id\":1,\"id\":2}"],
        &["token", "--app", "test-app", "--ttl", "9000years"],
        &["token", "--app", "test-app", "--ttl", "soon"],
        &["token", "--app", "test-app", "--ttl", "0s"],
        &["token", "--app", "test-app", "--algorithm", "none"],
        &["token", "--app", "test-app", "--aud", "x", "--csrf", "y"],
        &["trigger", "--app", "test-app", "--channel", "foo"],
        &["trigger", "--app", "test-app", "--channel", "#x", "--event", "msg"],
        &["trigger", "--app", "test-app", "--channel", "foo", "--event", "phx_join"],
        &["trigger", "--app", "test-app", "--channel", "a\nb", "--event", "msg"],
        &["trigger", "--app", "test-app", "--channel", "foo", "--event", "msg", "--scope", "a b"],
        &["trigger", "--app", "test-app", "--channel", "foo", "--event", "msg", "--payload", "[]"],
        &["trigger", "--app", "test-app", "--channel", "foo", "--event", "msg", "--payload", "{"],
        &["trigger", "--app", "a", "--channel", "c", "--event", "e", "--payload-base64", "e"],
        &["trigger", "--app", "a", "--channel", "c", "--event", "e", "--payload-base64", "-__-"],
        &["trigger", "--app=a", "--channel=c", "--event=e", "--payload-base64=", "--payload={}"],
        &["trigger", "--app=a", "--channel=c", "--event=e", "--idempotency-key="],
    ] {
        let done = place.run(args);
        assert_eq!((done.code, done.out.as_str()), (Some(2), ""), "{args:?}: {done:?}");
        assert!(!done.err.is_empty(), "{args:?}");
    }
    assert_eq!(
        std::fs::read_dir(place.path()).expect("a folder").count(),
        0,
        "nothing was touched"
    );
}

#[test]
fn migrations_go_up_and_down() {
    let place = Place::with_folder();
    let database = place.database();
    let state = |place: &Place| {
        let migrations = place.run(&["migrate", "status", "--json"]).json();
        let all = migrations.as_array().expect("a list").iter();
        all.map(|m| m["applied"].as_bool().expect("a flag")).collect::<Vec<_>>()
    };
    let up = place.run(&["migrate", "up"]);
    assert!(up.succeeded().starts_with("applied m"), "{up:?}");
    assert!(up.out.ends_with(&format!(" to {database}\n")), "{up:?}");
    let all = state(&place);
    assert!(all.iter().all(|applied| *applied));
    let again = place.run(&["migrate", "up", "--steps", "1"]);
    assert_eq!(again.succeeded(), format!("nothing to do in {database}\n"));
    let status = place.run(&["migrate", "status"]);
    assert!(status.succeeded().starts_with(&format!("{database}\n\nmigration ")), "{status:?}");
    assert!(status.out.contains("  applied\n"), "{status:?}");
    let down = place.run(&["migrate", "down", "--steps", &all.len().to_string()]);
    assert!(down.succeeded().starts_with("reverted m"), "{down:?}");
    assert!(down.out.ends_with(&format!(" from {database}\n")), "{down:?}");
    assert!(state(&place).iter().all(|applied| !*applied));
    assert!(place.run(&["migrate", "status"]).succeeded().contains("  pending\n"));
}

#[test]
fn no_command_leaves_a_database_in_the_wrong_folder() {
    let place = Place::new();
    let database = place.database();
    let no_file = "there is no such file; run this in the folder where the server runs, or name the \
                   server's database in DATABASE_URL";
    let no_folder = "its folder does not exist; make the folder first, run this where the server \
                     runs, or name the server's database in DATABASE_URL";
    for (args, why) in [
        (&["apps", "list"][..], no_file),
        (&["apps", "create", "--name", "Foo app"], no_file),
        (&["apps", "show", "foo-app"], no_file),
        (&["apps", "update", "foo-app", "--active", "false"], no_file),
        (&["apps", "delete", "foo-app", "--yes"], no_file),
        (&["token", "--app", "test-app", "--listen", "private:test-app:*"], no_file),
        (&["trigger", "--app", "test-app", "--channel", "foo", "--event", "msg"], no_file),
        (&["migrate", "status"], no_file),
        (&["migrate", "down"], no_file),
        (&["migrate", "up"], no_folder),
        (&["seed"], no_folder),
    ] {
        let expected = format!("herald: database cannot be used: {database}: {why}");
        assert_eq!(place.run(args).failed(1), expected, "{args:?}");
    }
    assert_eq!(std::fs::read_dir(place.path()).expect("a folder").count(), 0);
}

#[test]
fn commands_name_the_migration_that_is_pending() {
    let place = Place::with_folder().with("HERALD__DATABASE__MIGRATE", "false");
    place.run(&["migrate", "up"]).succeeded();
    place.run(&["migrate", "down", "--steps", "99"]).succeeded();
    for args in [
        &["apps", "list"][..],
        &["seed"],
        &["token", "--app", "test-app"],
        &["trigger", "--app", "test-app", "--channel", "foo", "--event", "msg"],
    ] {
        let done = place.run(args);
        let database = place.database();
        let expected = format!(
            "herald: the database {database} has pending migrations: run `herald migrate up`"
        );
        assert_eq!(done.failed(1), expected, "{args:?}");
    }
}

#[test]
fn seeding_twice_changes_nothing_and_production_refuses() {
    let place = Place::seeded();
    place.run(&["apps", "update", "test-app", "--client-events", "none"]).succeeded();
    assert_eq!(place.run(&["seed"]).succeeded(), "test-app exists already\n");
    let app = place.run(&["apps", "show", "test-app", "--json"]).json();
    assert_eq!(app["data"]["client_events"], "none");
    assert_eq!(app["data"]["key"], "test-app-fake-key");
    assert_eq!(app["data"]["secret"], "test-app-fake-secret");

    let production = Place::new()
        .with("HERALD_ENV", "production")
        .with("PUSHER_ADMIN_PASSWORD", "correct-horse-battery")
        .with("DATABASE_URL", "sqlite://herald.db")
        .with("SECRET_KEY_BASE", "0123456789abcdef0123456789abcdef");
    production.run(&["migrate", "up"]).succeeded();
    let refused = production.run(&["seed"]);
    assert!(refused.failed(1).contains("production seeds nothing"), "{refused:?}");
    assert_eq!(production.run(&["apps", "list"]).succeeded(), "slug  name  key  state\n");
}

#[test]
fn an_app_lives_from_create_to_delete() {
    let place = Place::seeded();
    place.run(&["apps", "delete", "test-app", "--yes"]).succeeded();
    let create = ["apps", "create", "--name", "Foo app", "--origin", "//*.example.com", "--json"];
    let created = place.run(&create).json();
    assert_eq!(created["data"]["slug"], "foo-app");
    assert_eq!(created["data"]["allowed_origins"], serde_json::json!(["//*.example.com"]));
    assert_eq!(created["data"]["client_events"], "authorized");

    assert_eq!(place.run(&["apps", "show", "foo-app", "--json"]).json(), created);
    let secret = created["data"]["secret"].as_str().expect("a secret");
    let shown = place.run(&["apps", "show", "foo-app"]);
    let line = |field: &str, value: &str| format!("\n{field:<20}  {value}\n");
    assert!(shown.succeeded().contains(&line("secret", secret)), "{shown:?}");
    assert!(shown.succeeded().contains(&line("history_seconds", "default")), "{shown:?}");

    let update = ["apps", "update", "foo-app", "--active", "false", "--any-origin", "--new-secret"];
    place.run(&update).succeeded().contains("false");
    let updated = place.run(&["apps", "show", "foo-app", "--json"]).json();
    assert_eq!(updated["data"]["active"], false);
    assert_eq!(updated["data"]["allowed_origins"], serde_json::json!([]));
    assert_eq!(updated["data"]["key"], created["data"]["key"]);
    assert_ne!(updated["data"]["secret"], created["data"]["secret"]);

    let renamed = place.run(&["apps", "update", "foo-app", "--name", "Bar app", "--json"]).json();
    assert_eq!(renamed["data"]["slug"], "bar-app");

    assert_eq!(place.run(&["apps", "delete", "bar-app", "--yes"]).succeeded(), "deleted bar-app\n");
    assert_eq!(place.run(&["apps", "list", "--json"]).json(), serde_json::json!({"data": []}));
}

#[test]
fn an_app_is_given_a_new_pair_and_keeps_the_old_one_for_a_while() {
    let place = Place::seeded();
    let old = place.run(&["apps", "show", "test-app", "--json"]).json();
    let rotate = ["apps", "rotate", "test-app", "--overlap-seconds", "60"];
    let rotated = place.run(&rotate);
    let shown = place.run(&["apps", "show", "test-app"]);
    assert_eq!(rotated.succeeded(), shown.succeeded());
    let line = |field: &str, value: &str| format!("\n{field:<25}  {value}\n");
    assert!(shown.out.contains(&line("previous_key", "test-app-fake-key")), "{shown:?}");
    assert!(shown.out.contains(&line("previous_key_last_used_at", "never")), "{shown:?}");
    assert!(shown.out.contains("\nprevious_key_expires_at    20"), "{shown:?}");
    rotated.never_says("test-app-fake-secret");
    let new = place.run(&["apps", "show", "test-app", "--json"]).json();
    assert_eq!(new["data"]["previous_key"], old["data"]["key"]);
    for field in ["key", "secret"] {
        assert_ne!(new["data"][field], old["data"][field]);
    }
    let again = place.run(&["apps", "rotate", "test-app", "--json"]).json();
    assert_eq!(again["data"]["previous_key"], new["data"]["key"]);
    let ended = place.run(&["apps", "rotate", "test-app", "--overlap-seconds", "0", "--json"]);
    assert_eq!(ended.json()["data"]["previous_key"], Value::Null);
    for overlap in ["-1", "1e9", "x", "2592001"] {
        let flag = format!("--overlap-seconds={overlap}");
        let refused = place.run(&["apps", "rotate", "test-app", &flag]);
        let expected = "overlap_seconds must be a whole number from 0 to 2592000";
        assert!(refused.failed(1).contains(expected), "{refused:?}");
    }
    place.run(&["apps", "rotate", "no-app"]).failed(1);
}

#[test]
fn an_app_says_how_much_history_it_has_or_leaves_it_to_the_server() {
    let place = Place::seeded();
    let history = |app: &serde_json::Value| {
        (app["data"]["history_publications"].clone(), app["data"]["history_seconds"].clone())
    };
    let create = ["apps", "create", "--name", "foo-app", "--history-publications", "0", "--json"];
    let created = place.run(&create).json();
    assert_eq!(history(&created), (0.into(), serde_json::Value::Null));

    for (publications, seconds, expected) in [
        ("500", "86400", (500.into(), 86_400.into())),
        ("default", "60", (serde_json::Value::Null, 60.into())),
        ("7", "default", (7.into(), serde_json::Value::Null)),
    ] {
        let flags =
            ["--history-publications", publications, "--history-seconds", seconds, "--json"];
        let updated = place.run(&[&["apps", "update", "foo-app"][..], &flags].concat()).json();
        assert_eq!(history(&updated), expected, "{publications} {seconds}");
    }
    let shown = place.run(&["apps", "show", "foo-app"]);
    let expected = "\nhistory_publications  7\nhistory_seconds       default\n";
    assert!(shown.succeeded().contains(expected), "{shown:?}");

    let flags = ["--history-publications", "100001", "--history-seconds", "5m"];
    let refused = place.run(&[&["apps", "update", "foo-app"][..], &flags].concat());
    assert_eq!(
        refused.failed(1),
        "herald: history_publications must be a whole number from 0 to 100000; \
         history_seconds must be a whole number from 0 to 604800"
    );
    let help = place.run(&["apps", "update", "--help"]);
    assert!(help.succeeded().contains("--history-seconds <NUMBER|default>"), "{help:?}");
}

#[test]
fn the_list_of_apps_shows_no_secret() {
    let place = Place::seeded();
    let list = place.run(&["apps", "list"]);
    assert_eq!(
        list.succeeded(),
        "slug      name      key                state\n\
         test-app  Test App  test-app-fake-key  active\n"
    );
    list.never_says("test-app-fake-secret");
    let data = place.run(&["apps", "list", "--json"]).json();
    assert_eq!(data["data"][0]["slug"], "test-app");
}

#[test]
fn an_app_that_is_not_valid_is_refused_with_all_its_faults() {
    let place = Place::seeded();
    let done = place.run(&["apps", "create", "--name", "Foo", "--origin", "example.com"]);
    let line = done.failed(1);
    assert!(line.contains("name should be at least 5 character(s)"), "{line}");
    assert!(line.contains("allowed_origins"), "{line}");

    let taken = place.run(&["apps", "create", "--name", "Test App"]);
    assert!(taken.failed(1).contains("name has already been taken"), "{taken:?}");

    let key = ["--key", "test-app-fake-key"];
    let taken = place.run(&[&["apps", "create", "--name", "Foo app"][..], &key].concat());
    assert_eq!(taken.failed(1), "herald: key has already been taken");
    place.run(&["apps", "create", "--name", "Foo app"]).succeeded();
    let taken = place.run(&[&["apps", "update", "foo-app"][..], &key].concat());
    assert_eq!(taken.failed(1), "herald: key has already been taken");
}

#[test]
fn an_app_is_not_seeded_beside_another_with_its_key() {
    let place = Place::seeded().with("PORT", "0");
    place.run(&["apps", "delete", "test-app", "--yes"]).succeeded();
    let other = ["apps", "create", "--name", "Other app", "--key", "test-app-fake-key"];
    place.run(&other).succeeded();
    let why = "key has already been taken";
    assert_eq!(
        place.run(&["seed"]).failed(1),
        format!("herald: cannot create the app test-app: {why}")
    );
    let start = place.run(&["serve"]);
    let expected =
        format!("herald: cannot create the app test-app, as database.seed asks for: {why}");
    assert_eq!((start.code, start.err.lines().last()), (Some(1), Some(&*expected)));
}

#[test]
fn a_migration_that_people_must_prepare_says_how() {
    let place = Place::with_folder().with("PORT", "0");
    place.run(&["migrate", "up", "--steps", "1"]).succeeded();
    let runtime = actix::System::new();
    for slug in ["foo-app", "bar-app"] {
        let app = format!(
            "INSERT INTO apps (name, slug, key, secret) VALUES ('{slug}', '{slug}', 'k', 's')"
        );
        runtime.block_on(sql(&place.database(), &app));
    }
    let database = place.database();
    let expected = format!(
        "herald: database cannot be used: {database}: a migration failed: apps have the same key \
         (foo-app, bar-app), and keys must be unique from this version on; let one app of each group \
         keep it and give every other a key of its own, in SQL (UPDATE apps SET key = '<new key>' \
         WHERE slug = '<slug>') or with the previous version (herald apps update <slug> --new-key), \
         then migrate again"
    );
    for args in [&["migrate", "up"][..], &["serve"], &["apps", "list"]] {
        let done = place.run(args);
        assert_eq!((done.code, done.err.lines().last()), (Some(1), Some(&*expected)), "{args:?}");
    }
}

#[test]
fn an_app_that_is_not_there_is_named() {
    let place = Place::seeded();
    for args in [
        &["apps", "show", "nope"][..],
        &["apps", "update", "nope", "--active", "true"],
        &["apps", "delete", "nope", "--yes"],
        &["token", "--app", "nope"],
        &["trigger", "--app", "nope", "--channel", "foo", "--event", "msg"],
    ] {
        let expected = "herald: there is no app nope: `herald apps list` shows all";
        assert_eq!(place.run(args).failed(1), expected, "{args:?}");
    }
}

#[test]
fn deleting_asks_first() {
    let place = Place::seeded();
    let unasked = place.run_with_input(&["apps", "delete", "test-app"], "test-app\n");
    assert!(unasked.failed(2).contains("confirm with --yes"), "{unasked:?}");
    assert!(place.run(&["apps", "list"]).succeeded().contains("test-app"));
    let nothing = place.run(&["apps", "update", "test-app"]);
    assert!(nothing.failed(2).contains("nothing to change"), "{nothing:?}");
}

#[test]
fn a_secret_comes_from_the_environment_not_from_the_command_line() {
    let place = Place::seeded().with("APP_SECRET", "hush-hush-hush-hush");
    let create =
        ["apps", "create", "--name", "Foo app", "--secret-env", "APP_SECRET", "--key", "k1"];
    place.run(&create).succeeded();
    assert_eq!(place.secret_of("foo-app"), "hush-hush-hush-hush");

    let short = Place::seeded().with("APP_SECRET", "hush");
    let refused = short.run(&create);
    assert!(refused.failed(1).contains("secret"), "{refused:?}");
    refused.never_says("hush");
    let missing = Place::new().run(&create);
    assert!(missing.failed(1).contains("APP_SECRET holds no secret"), "{missing:?}");
}

/// The claims of a token whose signature `secret` verifies.
fn claims(token: &str, secret: &str, algorithm: jsonwebtoken::Algorithm) -> Value {
    let mut rules = jsonwebtoken::Validation::new(algorithm);
    rules.validate_aud = false;
    let key = jsonwebtoken::DecodingKey::from_secret(secret.as_bytes());
    let decoded = jsonwebtoken::decode::<Value>(token.trim_end(), &key, &rules);
    decoded.expect("a token that verifies").claims
}

#[test]
fn a_token_is_printed_alone_and_says_what_was_asked() {
    let place = Place::seeded();
    let args = [
        "token",
        "--app",
        "test-app",
        "--listen",
        "private:test-app:*",
        "--listen",
        "x:test-app",
        "--publish",
        "private:test-app:room-1",
        "--sub",
        "\"user-1\"",
        "--ttl",
        "15m",
        "--aud",
        "trigger",
    ];
    let done = place.run(&args);
    let token = done.succeeded();
    assert_eq!((token.lines().count(), token.matches('.').count()), (1, 2), "{token}");

    let claims = claims(token, "test-app-fake-secret", jsonwebtoken::Algorithm::HS256);
    assert_eq!(claims["listen"], serde_json::json!(["private:test-app:*", "x:test-app"]));
    assert_eq!(claims["publish"], serde_json::json!(["private:test-app:room-1"]));
    assert_eq!((claims["sub"].as_str(), claims["aud"].as_str()), (Some("user-1"), Some("trigger")));
    let lifetime = claims["exp"].as_i64().zip(claims["iat"].as_i64()).map(|(exp, iat)| exp - iat);
    assert_eq!(lifetime, Some(900));
}

#[test]
fn a_token_can_be_signed_without_settings_and_database() {
    let place = Place::new()
        .with("APP_SECRET", "a secret of some length")
        // Settings that nobody could load.
        .with("PORT", "nonsense");
    let args = [
        "token",
        "--secret-env",
        "APP_SECRET",
        "--publish",
        "any:topic",
        "--csrf",
        "page-token",
        "--algorithm",
        "HS512",
    ];
    let done = place.run(&args);

    let claims =
        claims(done.succeeded(), "a secret of some length", jsonwebtoken::Algorithm::HS512);
    assert_eq!(claims["aud"], "csrf");
    assert_eq!(claims["s_csrf"].as_str().map(str::len), Some(43), "base64url of 32 bytes");
    assert!(claims.get("listen").is_none());
    done.never_says("page-token");
    assert_eq!(std::fs::read_dir(place.path()).expect("a folder").count(), 0);
    let missing = Place::new().run(&args);
    assert!(missing.failed(1).contains("APP_SECRET holds no secret"), "{missing:?}");
}

#[test]
fn a_bare_word_is_a_subject_and_a_number_keeps_its_digits() {
    let place = Place::new().with("APP_SECRET", "a secret of some length");
    for (given, expected) in [
        ("ada", r#""ada""#),
        ("user-1", r#""user-1""#),
        ("ada@example.com", r#""ada@example.com""#),
        ("Ada Lovelace", r#""Ada Lovelace""#),
        ("007", r#""007""#),
        ("nil", r#""nil""#),
        (r#""7""#, r#""7""#),
        ("7", "7"),
        ("18446744073709551617", "18446744073709551617"),
        (r#"{"User": 1.0}"#, r#"{"User": 1.0}"#),
        ("null", "null"),
    ] {
        let args = ["token", "--secret-env", "APP_SECRET", "--listen", "a:b", "--sub", given];
        let done = place.run(&args);
        let payload = done.succeeded().split('.').nth(1).expect("a payload");
        let payload = URL_SAFE_NO_PAD.decode(payload).expect("base64url");
        let claims: HashMap<&str, &RawValue> = serde_json::from_slice(&payload).expect("claims");
        assert_eq!(claims["sub"].get(), expected, "{given}");
    }
}

#[test]
fn a_token_that_permits_nothing_or_names_other_apps_is_minted_with_a_warning() {
    let place = Place::seeded();
    let nothing =
        "herald: warning: the token permits nothing: it has neither --listen nor --publish";
    let other = |pattern: &str| format!("herald: warning: {pattern} matches no topic of test-app");
    let no_topic = "herald: warning: private matches no topic: `<scope>:test-app` is one";
    for (patterns, expected) in [
        (&[][..], vec![nothing.to_owned()]),
        (&["private:test-app"], vec![]),
        (&["private:*", "private:test-app:*", "private:test-app:a:b"], vec![]),
        (&["private:bar-app:*"], vec![other("private:bar-app:*")]),
        (
            &["public:test-app2", "public:test-app", "a:b"],
            vec![other("public:test-app2"), other("a:b")],
        ),
        (&["private"], vec![no_topic.to_owned()]),
    ] {
        for flag in ["--listen", "--publish"] {
            let mut args = vec!["token", "--app", "test-app", "--sub", "ada"];
            args.extend(patterns.iter().flat_map(|pattern| [flag, *pattern]));
            let done = place.run(&args);
            let warned: Vec<_> = done.err.lines().collect();
            assert_eq!(
                (done.code, warned),
                (Some(0), expected.iter().map(String::as_str).collect())
            );
            claims(&done.out, "test-app-fake-secret", jsonwebtoken::Algorithm::HS256);
        }
    }
    let single = Place::seeded().with("HERALD__SINGLE_APP", "test-app");
    single.run(&["token", "--app", "test-app", "--listen", "deploys:web"]).succeeded();
}

/// A server for one request: answers it and returns the request's head and body.
fn serve_once(
    status: &'static str,
    answer: &'static str,
) -> (String, thread::JoinHandle<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let served = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).expect("a line") > 0, "the head ends");
        }
        let head = head.to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut body = vec![0; length.and_then(|n| n.parse().ok()).expect("a length")];
        reader.read_exact(&mut body).expect("a body");
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
            answer.len()
        );
        reader.into_inner().write_all(answer.as_bytes()).expect("the client reads");
        (head, String::from_utf8(body).expect("UTF-8"))
    });
    (url, served)
}

#[test]
fn trigger_posts_the_event_as_the_app() {
    let place = Place::seeded();
    let (url, served) = serve_once("200 OK", "{}");
    let payload = "{\"message\": \"hi\", \"n\": 1.0}";
    let args = ["trigger", "--app", "test-app", "--channel", "foo-topic", "--event", "msg"];
    let done = place.run(&[&args[..], &["--payload", payload, "--url", &url]].concat());

    assert_eq!(done.succeeded(), "sent msg to foo-topic of test-app\n");
    let (head, body) = served.join().expect("served");
    assert!(head.starts_with("post /api/apps/test-app/events http/1.1\r\n"), "{head}");
    // test-app-fake-key:test-app-fake-secret
    let credentials = "dGVzdC1hcHAtZmFrZS1rZXk6dGVzdC1hcHAtZmFrZS1zZWNyZXQ=".to_ascii_lowercase();
    assert!(head.contains(&format!("\r\nauthorization: basic {credentials}\r\n")), "{head}");
    assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
    let expected = r##"{"topic":"foo-topic","event":"msg","scope":"public","payload":{"message": "hi", "n": 1.0}}"##;
    assert_eq!(body, expected, "the payload's own text is kept");
}

#[test]
fn trigger_takes_credentials_from_the_environment_and_the_payload_from_standard_input() {
    let place = Place::new()
        .with("HERALD_APP_KEY", "k")
        .with("HERALD_APP_SECRET", "hush-hush")
        .with("PORT", "nonsense");
    let (url, served) = serve_once("200 OK", "{}");
    let args =
        ["trigger", "--app", "foo-app", "--channel", "#general", "--event", "msg", "--scope"];
    let args = [&args[..], &["private", "--payload", "-", "--json", "--url", &url]].concat();
    let done = place.run_with_input(&args, "{\"a\":1}\n");

    assert_eq!(done.succeeded(), "{}\n");
    done.never_says("hush-hush");
    let (head, body) = served.join().expect("served");
    assert!(head.contains("\r\nauthorization: basic azpodxnolwh1c2g=\r\n"), "{head}");
    assert_eq!(body, r##"{"topic":"#general","event":"msg","scope":"private","payload":{"a":1}}"##);
}

#[test]
fn trigger_sends_bytes_and_prints_the_number_of_skipped_subscribers() {
    let place = Place::seeded();
    let args = ["trigger", "--app", "test-app", "--channel", "foo-topic", "--event", "img"];
    for (given, input, answer, sent, said) in [
        ("AP8=", "", r#"{"skipped":0}"#, "AP8=", ""),
        (
            "AP8",
            "",
            r#"{"skipped":2}"#,
            "AP8",
            "; 2 subscriber(s) that cannot be sent bytes were skipped",
        ),
        ("", "", r#"{"skipped":null}"#, "", "; how many were skipped is not known"),
        // As the command base64 breaks its lines.
        ("-", "AAEC\nAwQF\nBg==\n", r#"{"skipped":0}"#, "AAECAwQFBg==", ""),
    ] {
        let (url, served) = serve_once("200 OK", answer);
        let bytes = ["--payload-base64", given, "--url", &url];
        let done = place.run_with_input(&[&args[..], &bytes].concat(), input);
        assert_eq!(done.succeeded(), format!("sent img to foo-topic of test-app{said}\n"));
        let (_, body) = served.join().expect("served");
        let expected = format!(
            r#"{{"topic":"foo-topic","event":"img","scope":"public","payload_base64":"{sent}"}}"#
        );
        assert_eq!(body, expected, "{given:?}");
    }
    let (url, served) = serve_once("200 OK", r#"{"skipped":1}"#);
    let bytes = ["--payload-base64", "eA", "--json", "--url", &url];
    assert_eq!(place.run(&[&args[..], &bytes].concat()).succeeded(), "{\"skipped\":1}\n");
    served.join().expect("served");
}

#[test]
fn trigger_sends_an_idempotency_key_and_prints_the_position() {
    let place = Place::new().with("HERALD_APP_KEY", "k").with("HERALD_APP_SECRET", "hush-hush");
    let event = r#"{"topic":"c","event":"e","scope":"public","payload":{}"#;
    let answer = r#"{"position":"epoch:7"}"#;
    for (args, answer, sent, said) in [
        (&["--idempotency-key", "job 1"][..], "{}", r#","idempotency_key":"job 1"}"#, "\n"),
        (&["--position"], answer, r#","position":true}"#, " at epoch:7\n"),
        (
            &["--position", "--idempotency-key=k"],
            r#"{"position":"epoch:7","skipped":1}"#,
            r#","idempotency_key":"k","position":true}"#,
            " at epoch:7; 1 subscriber(s) that cannot be sent bytes were skipped\n",
        ),
    ] {
        let (url, served) = serve_once("200 OK", answer);
        let trigger = ["trigger", "--app", "foo-app", "--channel", "c", "--event", "e"];
        let done = place.run(&[&trigger[..], &["--url", &url], args].concat());
        assert_eq!(done.succeeded(), format!("sent e to c of foo-app{said}"), "{args:?}");
        let (_, body) = served.join().expect("served");
        assert_eq!(body, format!("{event}{sent}"), "{args:?}");
    }
}

#[test]
fn trigger_prints_why_the_server_refused_it() {
    let faulty = r#"{"errors":{"topic":["is too long"]}}"#;
    let large = r#"{"errors":{"detail":"payload is too large"}}"#;
    for (status, answer, expected) in [
        ("401 Unauthorized", "{}", "401: it has no active app foo-app with this key and secret"),
        ("422 Unprocessable Entity", faulty, "422: topic is too long"),
        ("413 Payload Too Large", large, "413: payload is too large"),
        ("418 I'm a teapot", "<html>", "418 without a reason"),
        ("301 Moved\r\nlocation: https://x", "", "301, a redirect: give --url as it should be"),
        ("404 Not Found", "", "404: this is not a Herald server"),
        ("503 Service Unavailable", "", "503: it cannot take the request now, try again"),
    ] {
        let place = Place::new().with("HERALD_APP_KEY", "k").with("HERALD_APP_SECRET", "hush-hush");
        let (url, served) = serve_once(status, answer);
        let args = ["trigger", "--app", "foo-app", "--channel", "c", "--event", "e", "--url", &url];
        let done = place.run(&args);
        served.join().expect("served");
        let expected = format!("herald: {url} answers {expected}");
        assert!(done.failed(1).starts_with(&expected), "{expected}: {done:?}");
        done.never_says("hush-hush");
    }
}

#[test]
fn trigger_tells_when_nobody_listens() {
    let place = Place::new().with("HERALD_APP_KEY", "k").with("HERALD_APP_SECRET", "hush-hush");
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let url = format!("http://{free}");
    let args = ["trigger", "--app", "foo-app", "--channel", "c", "--event", "e", "--url"];
    let done = place.run(&[&args[..], &[&url]].concat());
    assert_eq!(done.failed(1), format!("herald: nothing listens on {url}: is the server running?"));

    let leaky = place.run(&[&args[..], &["http://key:hush-hush@127.0.0.1"]].concat());
    assert!(leaky.failed(2).contains("must not hold a key and secret"), "{leaky:?}");
    leaky.never_says("hush-hush");

    let half = Place::new().with("HERALD_APP_KEY", "k");
    let half = half.run(&args.iter().chain(&[url.as_str()]).copied().collect::<Vec<_>>());
    assert!(half.failed(1).contains("belong together"), "{half:?}");
}

#[test]
fn a_database_that_cannot_be_used_is_one_line_without_its_password() {
    let file = Place::new().with("DATABASE_URL", "sqlite:///dev/null/below/herald.db");
    assert!(file.run(&["apps", "list"]).failed(1).starts_with("herald: database cannot be used"));

    let away = Place::new()
        .with("DATABASE_URL", "postgres://herald:hush-hush@127.0.0.1:1/herald")
        .with("HERALD__DATABASE__CONNECT_RETRY", "0s");
    let done = away.run(&["migrate", "up"]);
    assert!(done.failed(1).starts_with("herald: database is unavailable"), "{done:?}");
    done.never_says("hush-hush");
}

#[test]
fn a_closed_pipe_is_no_fault() {
    let place = Place::seeded();
    let mut command = place.command(&["apps", "list"]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let done = Done::from(command.stdout(writer).stderr(Stdio::piped()).output().expect("it runs"));
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
}

/// A server in a process of its own, which ends with the test.
struct Serving {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Serving {
    fn start(place: &Place, args: &[&str]) -> Self {
        let mut command = place.command(args);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("herald");
        let out = BufReader::new(child.stdout.take().expect("its standard output"));
        Self { child, out }
    }

    /// Reads standard output until a line that holds `last`; ends with it if that never comes.
    fn read_until(&mut self, last: &str) -> String {
        let mut text = String::new();
        while text.lines().last().is_none_or(|line| !line.contains(last)) {
            assert!(self.out.read_line(&mut text).expect("text") > 0, "it ended after: {text}");
        }
        text
    }

    /// Asks it to stop, as an init system does, and returns what it left behind.
    fn stop(mut self) -> Done {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        let mut out = String::new();
        self.out.read_to_string(&mut out).expect("text");
        let mut err = String::new();
        let stderr = self.child.stderr.take();
        stderr.expect("its standard error").read_to_string(&mut err).expect("text");
        Done { code: self.child.wait().expect("it ends").code(), out, err }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_first_start_prints_what_a_newcomer_needs_and_it_works() {
    let place = Place::new().with("HERALD__SERVER__PORT", "0").with("PATH", "/usr/bin:/bin");
    // Without a command it serves.
    let mut server = Serving::start(&place, &[]);
    let banner = server.read_until("curl ");
    for line in ["  app     test-app\n", "  key     test-app-fake-key\n"] {
        assert!(banner.contains(line), "{banner}");
    }
    let page = banner.lines().find_map(|line| line.strip_prefix("  page    ")).expect("the page");

    let curl = banner.lines().last().expect("a line").trim();
    let pasted = format!("{curl} --silent --fail");
    let sent = Command::new("sh").args(["-c", &pasted]).output().expect("a shell");
    assert_eq!(String::from_utf8_lossy(&sent.stdout), "{}", "{sent:?}");

    let url = page.trim_end_matches('/');
    let args =
        ["trigger", "--app", "test-app", "--channel", "foo-topic", "--event", "msg", "--url"];
    let triggered = place.run(&[&args[..], &[url]].concat());
    assert_eq!(triggered.succeeded(), "sent msg to foo-topic of test-app\n");
    let repeated = || {
        let more = [url, "--position", "--idempotency-key", "job-1"];
        place.run(&[&args[..], &more].concat()).succeeded().to_owned()
    };
    let first = repeated();
    assert!(first.starts_with("sent msg to foo-topic of test-app at "), "{first}");
    assert_eq!(repeated(), first, "with its key it is sent once");
    let wrong = place
        .command(&[&args[..], &[url]].concat())
        .envs([
            ("HERALD_APP_KEY", "test-app-fake-key"),
            ("HERALD_APP_SECRET", "hush-hush-hush-hush"),
        ])
        .output();
    let wrong = Done::from(wrong.expect("herald runs"));
    assert!(wrong.failed(1).contains("answers 401"), "{wrong:?}");
    wrong.never_says("hush-hush");

    let left = server.stop();
    assert_eq!(left.code, Some(0), "{left:?}");
    assert!(!left.err.contains("test-app-fake-secret"), "the log holds no secret: {left:?}");

    let mut again = Serving::start(&place, &["serve"]);
    again.read_until("curl ");
    assert_eq!(again.stop().code, Some(0), "a second start finds its data again");
}

#[test]
fn production_prints_no_secret_and_names_the_pending_migration() {
    let place = Place::new()
        .with("HERALD_ENV", "production")
        .with("HERALD__SERVER__HOST", "127.0.0.1")
        .with("PORT", "0")
        .with("PATH", "/usr/bin:/bin")
        .with("PUSHER_ADMIN_PASSWORD", "correct-horse-battery")
        .with("DATABASE_URL", "sqlite://herald.db")
        .with("SECRET_KEY_BASE", "0123456789abcdef0123456789abcdef");
    let pending = place.run(&["serve"]);
    assert_eq!(pending.code, Some(1), "{pending:?}");
    assert!(
        pending.err.lines().last().is_some_and(|l| l.contains("`herald migrate up`")),
        "{pending:?}"
    );

    place.run(&["migrate", "up"]).succeeded();
    let server = Serving::start(&place, &["serve"]);
    let left = stop_once_it_logs(server);
    assert_eq!((left.code, left.out.as_str()), (Some(0), ""), "{left:?}");
    left.never_says("correct-horse-battery");
    left.never_says("0123456789abcdef");
}

/// Waits for the first line of the log that says it listens, then stops it.
fn stop_once_it_logs(mut server: Serving) -> Done {
    let mut log = BufReader::new(server.child.stderr.take().expect("its standard error"));
    let mut text = String::new();
    while !text.contains("listening") {
        assert!(log.read_line(&mut text).expect("text") > 0, "it ended after: {text}");
    }
    let pid = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    log.read_to_string(&mut text).expect("text");
    let mut out = String::new();
    server.out.read_to_string(&mut out).expect("text");
    Done { code: server.child.wait().expect("it ends").code(), out, err: text }
}

#[test]
fn a_failure_to_start_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for (name, value, expected) in [
        ("PORT", port.as_str(), format!("cannot listen on 127.0.0.1:{port}")),
        ("DATABASE_URL", "sqlite:///dev/null/herald.db", "/dev/null".into()),
        ("HERALD__SECRETS__SECRET_KEY_BASE_FILE", "/dev/null/key", "/dev/null/key".into()),
        ("HERALD__SERVER__WORKERS", "many", "server.workers (from HERALD__SERVER__WORKERS)".into()),
    ] {
        let place = Place::new().with("HERALD__LOG__FILTER", "error").with(name, value);
        let done = place.run(&["serve"]);
        assert!(done.failed(1).contains(&expected), "{name}={value}: {done:?}");
    }
}
