//! While the database is away, everything but the admin API continues to work, and once it returns the admin API
//! works again. The test starts a PostgreSQL server of its own and stops it.

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use secrecy::SecretString;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{tokens::token, *};

/// A PostgreSQL server of the test's own, stopped when it goes out of scope.
struct Postgres {
    dir: TempDir,
    url: String,
}

impl Postgres {
    fn start() -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        open_to_others(dir.path());
        let url = run(&["start", &dir.path().display().to_string()]);
        Self { dir, url }
    }

    fn stop(&self) {
        run(&["stop", &self.path()]);
    }

    /// Starts it again in the same folder, on the same port.
    fn start_again(&self) {
        let port = self.url.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next());
        assert_eq!(run(&["start", &self.path(), port.expect("a port")]), self.url);
    }

    fn path(&self) -> String {
        self.dir.path().display().to_string()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A failure here is ignored, because it would hide the reason why the test failed.
        let _ = script(&["stop", &self.path()]);
    }
}

/// Lets other users enter the folder: PostgreSQL refuses to run as root, so the script runs it as another user.
fn open_to_others(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir, open).expect("a folder of ours");
}

fn script(args: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres");
    Command::new(script).args(args).output().expect("the script runs")
}

/// Runs the script; it must succeed. Answers what it prints.
fn run(args: &[&str]) -> String {
    let output = script(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// Waits until `/ready` reports this state of the database. The server must be ready throughout.
async fn until_database_is(server: &TestServer, state: &str) {
    let told = repeat_until(async || {
        let ready = get(server.url("/ready")).await;
        assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ready")));
        ready.json()["database"] == state
    });
    timeout(2 * DEADLINE, told).await.unwrap_or_else(|_| panic!("the database is never {state}"));
}

#[tokio::test]
async fn without_its_database_a_server_goes_on_and_with_it_all_is_well_again() {
    let postgres = Postgres::start();
    let url = SecretString::from(postgres.url.clone());
    let server = TestServer::start_with(|settings| {
        settings.database.url = url;
        settings.database.query_timeout = Duration::from_secs(2);
        settings.registry.refresh = Duration::from_millis(200);
    });
    let app = server.create_app(json!({"name": "foo-app"})).await;
    let mut running = Socket::connect(&server, V2).await;
    running.join("public:foo-app", json!({})).await;
    until_database_is(&server, "ok").await;

    postgres.stop();
    until_database_is(&server, "failed").await;
    server.trigger(&app, json!({"topic": "t", "event": "during"})).await;
    assert_eq!(running.next().await[3], "t:during", "a running session goes on");
    let mut newcomer = Socket::connect(&server, V1).await;
    let claims = json!({"listen": ["private:*"]});
    let payload = json!({"guardian_token": token(&app, &claims)});
    newcomer.join("private:foo-app", payload).await;
    server.trigger(&app, json!({"topic": "t", "event": "e", "scope": "private"})).await;
    assert_eq!(newcomer.next().await[3], "t:e", "a join works from the snapshot");
    let fields = json!({"app": {"name": "bar-app"}});
    for (method, path, body) in [
        ("GET", "/api/admin/apps", None),
        ("GET", "/api/admin/apps/foo-app", None),
        ("POST", "/api/admin/apps", Some(fields.clone())),
        ("PATCH", "/api/admin/apps/foo-app", Some(json!({"app": {"active": false}}))),
        ("DELETE", "/api/admin/apps/foo-app", None),
    ] {
        let answer = server.admin(method, path, body).await;
        assert_eq!(answer.status, 503, "{method} {path}: {}", answer.body);
        assert!(answer.header("retry-after").is_some(), "{method} {path}");
        assert!(!answer.body.contains("postgres"), "{method} {path}: {}", answer.body);
    }
    let wrong = request("GET", server.url("/api/admin/apps")).basic("x", "y").send().await;
    assert_eq!(wrong.status, 401, "credentials are still checked");
    assert_eq!(get(server.url("/health")).await.status, 200);

    postgres.start_again();
    until_database_is(&server, "ok").await;
    let created = server.admin("POST", "/api/admin/apps", Some(fields)).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let apps = server.admin("GET", "/api/admin/apps", None).await.json();
    let slugs = apps["data"].as_array().expect("a list").iter().map(|app| app["slug"].clone());
    assert_eq!(slugs.collect::<Vec<_>>(), ["test-app", "foo-app", "bar-app"]);
    for socket in [&mut running, &mut newcomer] {
        socket.assert_quiet().await;
    }
    server.update_app("foo-app", json!({"active": false})).await;
    for socket in [&mut running, &mut newcomer] {
        assert_eq!(socket.closed().await, 1001, "a change acts again");
    }
}
