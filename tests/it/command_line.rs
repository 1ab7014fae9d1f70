//! Every command, run as a process: its output, its exit code, and the secrets that it never prints.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, value::RawValue};
use tempfile::TempDir;

use crate::databases::sql;

mod apps;
mod database;
mod remote;
mod serving;
mod token;
mod trigger;

/// A folder in which `herald` runs, and its whole environment: the variables that a test sets.
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

    /// A place with a folder for its database. Only the start of a server makes this folder, no other command does.
    pub(crate) fn with_folder() -> Self {
        let place = Self::new();
        std::fs::create_dir(place.path().join("data")).expect("a folder");
        place
    }

    /// The name that messages give to its database.
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

    /// Runs a command with `text` on standard input.
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

/// Starts a server for one request, whose thread returns the head and the body of that request.
fn serve_once(
    status: &'static str,
    answer: &'static str,
) -> (String, thread::JoinHandle<(String, String)>) {
    let (address, served) = serve_once_at(Ipv4Addr::LOCALHOST, status, answer);
    (format!("http://{address}"), served)
}

/// Like [`serve_once`], on an address of this machine.
fn serve_once_at(
    host: Ipv4Addr,
    status: &'static str,
    answer: &'static str,
) -> (SocketAddr, thread::JoinHandle<(String, String)>) {
    let listener = TcpListener::bind((host, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let served = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).expect("a line") > 0, "the head ends");
        }
        let head = head.to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut body = vec![0; length.map_or(0, |n| n.parse().expect("a length"))];
        reader.read_exact(&mut body).expect("a body");
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
            answer.len()
        );
        reader.into_inner().write_all(answer.as_bytes()).expect("the client reads");
        (head, String::from_utf8(body).expect("UTF-8"))
    });
    (address, served)
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

    /// Checks the exit code, and that there is one line on standard error and none on standard output; answers the
    /// line.
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
        assert!(!help.out.contains(r#"\""#), "{command:?} escapes a quote");
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
        let help = place.run(command);
        assert!(!help.succeeded().is_empty(), "{command:?}");
        assert!(!help.out.contains(r#"\""#), "{command:?} escapes a quote");
    }
    assert!(place.run(&["--help"]).out.contains("Exit codes:"));
    assert_eq!(std::fs::read_dir(place.path()).expect("a folder").count(), 0, "help makes no file");
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
        "no file or folder was made"
    );
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
