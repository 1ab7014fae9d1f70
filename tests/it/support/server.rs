//! A server per test: its own thread, port and database.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use herald::{
    app::store::{AppStore, MissingFile},
    engine::Engine,
    server::{Server, Stop},
    session::upgrade::Protocol,
    settings::{Database, Settings},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{DEADLINE, database, http};

/// The administrator's credentials in the articles, which the test environment has as well.
pub const ADMIN: (&str, &str) = ("pusher_admin_username", "pusher_admin_password");

/// A running server, stopped when it goes out of scope.
pub struct TestServer {
    /// The port on which it listens.
    pub port: u16,
    /// The port of its metrics, if they have one of their own.
    pub metrics_port: Option<u16>,
    /// The folder of its database.
    pub dir: TempDir,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

/// An app as the admin API shows it.
#[derive(Debug, Clone)]
pub struct App {
    pub slug: String,
    pub key: String,
    pub secret: String,
}

impl App {
    fn from_answer(app: &Value) -> Self {
        let field = |name: &str| app[name].as_str().expect("a string").to_owned();
        Self { slug: field("slug"), key: field("key"), secret: field("secret") }
    }

    /// The app that is seeded.
    pub fn seeded() -> Self {
        let [slug, key, secret] =
            ["test-app", "test-app-fake-key", "test-app-fake-secret"].map(str::to_owned);
        Self { slug, key, secret }
    }
}

impl TestServer {
    /// Starts a server with the settings of the test environment.
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts a server with some settings changed.
    pub fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::speaking(change, Vec::new())
    }

    /// Starts a server that speaks further protocols beside Phoenix's.
    pub fn speaking(change: impl FnOnce(&mut Settings), protocols: Vec<Arc<dyn Protocol>>) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let database = database::url_in(dir.path());
        let env = [("HERALD_ENV", "test"), ("DATABASE_URL", &database)];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut settings = Settings::load_from(env.into_iter(), None).expect("test settings");
        change(&mut settings);
        Self::run(settings, protocols, None, dir)
    }

    /// Starts a node, which has an engine in common with others, and the database of another node if one
    /// is given.
    pub fn node(
        engine: Arc<dyn Engine>,
        with: Option<&Self>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let database = database::url_in(with.map_or(dir.path(), |with| with.dir.path()));
        let env = [
            ("HERALD_ENV", "test"),
            ("DATABASE_URL", &database),
            ("SECRET_KEY_BASE", "the key base that all nodes have in common"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut settings = Settings::load_from(env.into_iter(), None).expect("test settings");
        change(&mut settings);
        Self::run(settings, Vec::new(), Some(engine), dir)
    }

    fn run(
        settings: Settings,
        protocols: Vec<Arc<dyn Protocol>>,
        engine: Option<Arc<dyn Engine>>,
        dir: TempDir,
    ) -> Self {
        let Database { url, migrate, seed, .. } = &settings.database;
        if *migrate && *seed && *url.expose_secret() == *database::url_in(dir.path()) {
            database::put_into(dir.path());
        }
        let (started, starting) = mpsc::channel();
        let serve = move || {
            actix::System::new().block_on(async move {
                let server = Server::build_node(settings, protocols, engine).await;
                let server = server.expect("the server starts");
                let metrics_port = server.metrics_address().map(|address| address.port());
                let up = (server.port(), metrics_port, server.stop_handle());
                started.send(up).expect("the test waits");
                server.run_until_stopped().await;
            });
        };
        let thread = std::thread::spawn(serve);
        let up = starting.recv_timeout(3 * DEADLINE);
        let (port, metrics_port, stop) = up.expect("the server is up");
        Self { port, metrics_port, dir, stop, thread: Some(thread) }
    }

    /// A server that is started and stopped elsewhere, for the calls of this type.
    pub fn elsewhere(port: u16, dir: TempDir) -> Self {
        Self { port, metrics_port: None, dir, stop: Stop::default(), thread: None }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The server's database over a connection of its own, as the command line uses it.
    pub async fn store(&self) -> AppStore {
        let url = database::url_in(self.dir.path());
        let env = [("HERALD_ENV", "test"), ("DATABASE_URL", &url)];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = Settings::load_from(env.into_iter(), None).expect("test settings");
        let store = AppStore::connect(&settings.database, MissingFile::Refuse).await;
        store.expect("the same database")
    }

    /// Creates an app with these fields.
    pub async fn create_app(&self, fields: Value) -> App {
        let answer = self.admin("POST", "/api/admin/apps", Some(json!({ "app": fields }))).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        App::from_answer(&answer.json()["data"])
    }

    /// Changes an app.
    pub async fn update_app(&self, slug: &str, fields: Value) -> App {
        let path = format!("/api/admin/apps/{slug}");
        let answer = self.admin("PATCH", &path, Some(json!({ "app": fields }))).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        App::from_answer(&answer.json()["data"])
    }

    /// Calls the admin API.
    pub async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> http::Answer {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let mut request = http::request(method, self.url(path)).basic(ADMIN.0, ADMIN.1);
        if !body.is_empty() {
            request = request.header("content-type", "application/json").body(body);
        }
        request.send().await
    }

    /// Triggers an event with an app's key and secret; it must be accepted.
    pub async fn trigger(&self, app: &App, event: Value) {
        let path = format!("/api/apps/{}/events", app.slug);
        let request = http::request("POST", self.url(&path)).basic(&app.key, &app.secret);
        let answer = request.json(&event).send().await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "{}"));
    }

    /// Begins the shutdown, and does not wait for its end.
    pub fn begin_stop(&self) {
        self.stop.stop();
    }

    /// Stops the server and waits until it has stopped.
    pub fn stop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server's thread ends in order");
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server's thread has panicked");
        }
    }
}
