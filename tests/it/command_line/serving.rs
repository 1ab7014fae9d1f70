//! `herald serve`: its first start, and a start that fails.

use super::*;

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

    /// Reads standard output up to a line that holds `last`; panics if the process ends before.
    fn read_until(&mut self, last: &str) -> String {
        let mut text = String::new();
        while text.lines().last().is_none_or(|line| !line.contains(last)) {
            assert!(self.out.read_line(&mut text).expect("text") > 0, "it ended after: {text}");
        }
        text
    }

    /// Stops it with a signal, as an init system does, and returns its exit code and the rest of its output.
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
    // Without a command, `herald` serves.
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
    assert_eq!(repeated(), first, "with the same key it is sent once");
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
fn a_database_in_memory_serves_the_app_that_the_start_prints() {
    for url in ["sqlite::memory:", "sqlite://herald.db?mode=memory"] {
        let place = Place::new()
            .with("HERALD__SERVER__PORT", "0")
            .with("PATH", "/usr/bin:/bin")
            .with("DATABASE_URL", url);
        let mut server = Serving::start(&place, &[]);
        let banner = server.read_until("curl ");
        assert!(banner.contains("  app     test-app\n"), "{banner}");

        let pasted = format!("{} --silent --fail", banner.lines().last().expect("a line").trim());
        let sent = Command::new("sh").args(["-c", &pasted]).output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&sent.stdout), "{}", "{url}: {sent:?}");
        let left = server.stop();
        assert_eq!(left.code, Some(0), "{url}: {left:?}");
        let folder = std::fs::read_dir(place.path()).expect("a folder");
        let files: Vec<_> = folder.map(|entry| entry.expect("a file").file_name()).collect();
        assert_eq!(files, ["data"], "{url}: the folder of the secret key base alone");
    }
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

/// Waits until the log says that the server listens, then stops the server.
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
    let metrics = format!("127.0.0.1:{port}");
    for (name, value, expected) in [
        (
            "PORT",
            port.as_str(),
            format!("server.host and server.port: cannot listen on 127.0.0.1:{port}"),
        ),
        (
            "HERALD__METRICS__LISTEN",
            &metrics,
            format!("metrics.listen: cannot listen on {metrics}"),
        ),
        (
            "DATABASE_URL",
            "sqlite:///dev/null/herald.db",
            "database.url: database cannot be used: ".into(),
        ),
        ("HERALD__SECRETS__SECRET_KEY_BASE_FILE", "/dev/null/key", "/dev/null/key".into()),
        (
            "HERALD__HISTORY__FILE",
            "/no/such/history",
            "history.file: there is no folder \"/no/such\"".into(),
        ),
        (
            "HERALD__HISTORY__FILE",
            "/dev",
            "history.file: \"/dev\" is a folder: name a file in it".into(),
        ),
        (
            "HERALD__HISTORY__FILE",
            "/dev/null",
            "history.file: \"/dev/null\" is not a regular file".into(),
        ),
        ("HERALD__SERVER__WORKERS", "many", "server.workers (from HERALD__SERVER__WORKERS)".into()),
    ] {
        let place = Place::new().with("HERALD__LOG__FILTER", "error").with(name, value);
        let done = place.run(&["serve"]);
        assert!(done.failed(1).contains(&expected), "{name}={value}: {done:?}");
    }
}

#[test]
fn check_config_finds_a_history_file_that_no_start_can_use() {
    let place = |file| Place::new().with("HERALD__HISTORY__FILE", file);
    let done = place("/no/such/history").run(&["check-config"]);
    let expected = "herald: history.file: there is no folder \"/no/such\": make it first";
    assert_eq!(done.failed(1), expected);
    // The first start makes the folder of the database.
    place("data/history").run(&["check-config"]).succeeded();
    let made = place("kept/history");
    std::fs::create_dir(made.path().join("kept")).expect("a folder");
    made.run(&["check-config"]).succeeded();
    let file = made.path().join("kept/history");
    std::fs::write(&file, "of whatever content").expect("a file");
    made.run(&["check-config"]).succeeded();
    std::fs::rename(&file, made.path().join("elsewhere")).expect("a file");
    std::os::unix::fs::symlink("../elsewhere", &file).expect("a link");
    let expected = "herald: history.file: \"kept/history\" is not a regular file";
    assert_eq!(made.run(&["check-config"]).failed(1), expected);
    std::fs::remove_file(&file).expect("a link");
    std::fs::create_dir(&file).expect("a folder");
    let expected = "herald: history.file: \"kept/history\" is a folder: name a file in it";
    assert_eq!(made.run(&["check-config"]).failed(1), expected);
}
