//! The store and the registry: the same tests on SQLite and on a real PostgreSQL.
//!
//! `HERALD_TEST_POSTGRES_URL` names the PostgreSQL, with a user that may create databases, because each test makes
//! one of its own. Without the variable the tests on PostgreSQL fail; they are not skipped.

mod apps;
mod migrations;
mod outages;
mod pairs;
mod registry;
mod trail;

use std::{env, fmt::Debug, future::Future, pin::pin, sync::Arc, time::Duration};

use actix::{Actor, ActorContext, Addr, Context, Handler, Message};
use futures_util::future::join_all;
use herald::{
    app::{
        App, AppDirectory, AppId, Slug,
        audit::{AuditPage, ChangedBy, Of},
        change::{self, ChangeError},
        fields::{AppFields, AppValues, Draft, Faults},
        key_pair::{LastUse, NewPair, Overlap, Pair, PairUse},
        registry::{
            AppChanged, AppRegistry, DatabaseHealth, DatabaseState, ReviewChanges, Times,
            WatchApps, WriteUses, create_app, delete_app, list_apps, read_audit, rotate_app,
            show_app, update_app,
        },
        seed,
        store::{AppStore, MissingFile, StoreError, UniqueField, UnreadableRow},
    },
    metrics::Metrics,
    settings,
};
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, DbBackend, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use uuid::Uuid;

use crate::support::{DEADLINE, repeat_until};

/// Longer than any test: a registry with this refresh does not read the table again.
const NEVER: Duration = Duration::from_secs(3600);
/// So short that a test hardly waits.
const OFTEN: Duration = Duration::from_millis(10);

/// Runs each test once per database.
macro_rules! on_both_databases {
    ($($test:ident)*) => {
        mod sqlite {
            $(#[actix_web::test]
            async fn $test() {
                let database = super::TestDatabase::sqlite();
                super::$test(&database).await;
            })*
        }

        mod postgres {
            $(#[actix_web::test]
            async fn $test() {
                let database = super::TestDatabase::postgres().await;
                super::$test(&database).await;
                database.remove().await;
            })*
        }
    };
}

pub(crate) use on_both_databases;

/// The database of a single test.
pub(crate) struct TestDatabase {
    url: String,
    folder: Option<TempDir>,
}

impl TestDatabase {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}/a folder/herald.db", folder.path().display());
        Self { url, folder: Some(folder) }
    }

    pub(crate) async fn postgres() -> Self {
        let name = format!("herald_test_{}", Uuid::new_v4().simple());
        sql(&postgres_url(), &format!("CREATE DATABASE {name}")).await;
        let (server, _) = postgres_url_split();
        Self { url: format!("{server}/{name}"), folder: None }
    }

    pub(crate) async fn remove(&self) {
        let (_, name) = self.url.rsplit_once('/').expect("a name in the URL");
        sql(&postgres_url(), &format!("DROP DATABASE {name} WITH (FORCE)")).await;
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn settings(&self) -> settings::Database {
        database_settings(&self.url)
    }

    /// Connects as one more process would.
    async fn connect(&self) -> AppStore {
        AppStore::connect(&self.settings(), MissingFile::MakeWithFolder)
            .await
            .expect("a connection")
    }

    async fn migrated(&self) -> AppStore {
        let store = self.connect().await;
        store.migrate_up(None).await.expect("migrations");
        store
    }

    /// Runs a statement over a connection of its own, as from an SQL prompt.
    async fn sql(&self, statement: &str) {
        sql(&self.url, statement).await;
    }

    /// The number in the column `n` of a query's only row.
    async fn count(&self, query: &str) -> i64 {
        let connection = self.connection().await;
        let backend = connection.get_database_backend();
        let statement = sea_orm::Statement::from_string(backend, query);
        let row = connection.query_one_raw(statement).await.expect("an answer").expect("a row");
        connection.close().await.expect("an orderly end");
        row.try_get("", "n").expect("a number")
    }

    pub(crate) async fn connection(&self) -> DatabaseConnection {
        Database::connect(&self.url).await.expect("a connection")
    }
}

fn postgres_url() -> String {
    env::var("HERALD_TEST_POSTGRES_URL").expect(
        "HERALD_TEST_POSTGRES_URL must name a PostgreSQL to test on, such as \
         postgres://postgres@127.0.0.1:5432/postgres (./scripts/test starts one)",
    )
}

fn postgres_url_split() -> (String, String) {
    let url = postgres_url();
    let (server, name) = url.rsplit_once('/').expect("a database in HERALD_TEST_POSTGRES_URL");
    (server.to_owned(), name.to_owned())
}

fn database_settings(url: &str) -> settings::Database {
    settings::Database {
        url: url.into(),
        connections_max: 4,
        connect_retry: Duration::ZERO,
        query_timeout: DEADLINE,
        migrate: false,
        seed: false,
    }
}

pub(crate) async fn sql(url: &str, statement: &str) {
    let connection = Database::connect(url).await.expect("a connection");
    connection.execute_unprepared(statement).await.expect("the statement");
    connection.close().await.expect("an orderly end");
}

/// The times of a registry that keeps entries of the audit trail for a minute.
fn times(refresh: Duration) -> Times {
    Times { refresh, audit_retention: Duration::from_secs(60) }
}

fn slug(text: &str) -> Slug {
    Slug::parse(text).expect("a slug")
}

fn fields(given: Value) -> AppFields {
    AppFields::read(given.as_object().expect("an object"))
}

fn values(given: Value) -> AppValues {
    Draft::of_new(fields(given)).finish().expect("valid values")
}

fn named(name: &str) -> AppValues {
    values(json!({ "name": name }))
}

async fn before_the_deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not before the deadline"))
}

/// An actor that passes on each announcement, with the name that the directory has for the app at that moment.
struct Witness {
    directory: AppDirectory,
    seen: UnboundedSender<(AppId, Option<String>)>,
}

impl Actor for Witness {
    type Context = Context<Self>;
}

impl Handler<AppChanged> for Witness {
    type Result = ();

    fn handle(&mut self, AppChanged(id): AppChanged, _: &mut Self::Context) {
        let name = self.directory.load().by_id(id).map(|app| app.name.clone());
        // The test may be over already.
        drop(self.seen.send((id, name)));
    }
}

/// Ends a witness.
#[derive(Message)]
#[rtype(result = "()")]
struct Die;

impl Handler<Die> for Witness {
    type Result = ();

    fn handle(&mut self, _: Die, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// A registry with its directory and a witness of its announcements.
struct Running {
    registry: Addr<AppRegistry>,
    directory: AppDirectory,
    seen: UnboundedReceiver<(AppId, Option<String>)>,
}

impl Running {
    async fn start(store: AppStore, refresh: Duration) -> Self {
        let directory = AppDirectory::default();
        let registry =
            AppRegistry::start(store, directory.clone(), times(refresh), Metrics::new(10)).await;
        let registry = registry.expect("a registry");
        let (sender, seen) = unbounded_channel();
        let witness = Witness { directory: directory.clone(), seen: sender }.start();
        registry.send(WatchApps(witness.recipient())).await.expect("a living registry");
        Self { registry, directory, seen }
    }

    async fn create(&self, given: Value) -> Result<App, ChangeError> {
        let task = create_app(ChangedBy::CLI, fields(given));
        self.registry.send(task).await.expect("a living registry")
    }

    async fn update(&self, slug: &str, given: Value) -> Result<App, ChangeError> {
        let task = update_app(ChangedBy::CLI, slug.to_owned(), fields(given));
        self.registry.send(task).await.expect("a living registry")
    }

    async fn rotate(&self, slug: &str, overlap: Overlap) -> Result<App, ChangeError> {
        let task = rotate_app(ChangedBy::CLI, slug.to_owned(), overlap);
        self.registry.send(task).await.expect("a living registry")
    }

    async fn delete(&self, slug: &str) -> Result<(), ChangeError> {
        let task = delete_app(ChangedBy::CLI, slug.to_owned());
        self.registry.send(task).await.expect("a living registry").map(drop)
    }

    async fn show(&self, slug: &str) -> Result<App, ChangeError> {
        self.registry.send(show_app(slug.to_owned())).await.expect("a living registry")
    }

    async fn database(&self) -> DatabaseHealth {
        let answer = self.registry.send(DatabaseState);
        before_the_deadline("the state", answer).await.expect("a living registry")
    }

    fn name_of(&self, slug: &str) -> Option<String> {
        self.directory.load().by_slug(slug).map(|app| app.name.clone())
    }

    async fn next_seen(&mut self) -> (AppId, Option<String>) {
        before_the_deadline("an announcement", self.seen.recv()).await.expect("a living witness")
    }

    /// Waits until the directory fulfils a condition, for changes that are not announced.
    async fn until(&self, what: &str, is_so: impl Fn(&AppDirectory) -> bool) {
        before_the_deadline(what, repeat_until(async || is_so(&self.directory))).await;
    }
}

fn assert_unavailable<T: Debug>(outcome: &Result<T, ChangeError>) {
    assert!(matches!(outcome, Err(ChangeError::Store(_))), "{outcome:?}");
}

fn name_taken() -> Value {
    json!({ "name": ["has already been taken"], "slug": ["has already been taken"] })
}

fn as_json(faults: &Faults) -> Value {
    serde_json::to_value(faults).expect("faults are JSON")
}

fn pair_of(app: &App) -> (String, String) {
    (app.key.clone(), app.secret.expose_secret().to_owned())
}

fn overlap(seconds: u32) -> Overlap {
    Overlap::read(Some(&json!(seconds))).expect("an overlap")
}

fn all(limit: u64) -> AuditPage {
    AuditPage { of: Of::All, before: None, limit }
}

/// All entries, oldest first: actor, address, action, app and fields.
async fn trail(store: &AppStore) -> Vec<(String, Option<String>, String, String, String)> {
    let mut entries = store.audit(&all(1_000)).await.expect("a trail");
    entries.reverse();
    assert!(entries.is_sorted_by(|one, other| one.id < other.id && one.at <= other.at));
    let told = entries
        .into_iter()
        .map(|entry| (entry.actor, entry.address, entry.action, entry.app, entry.fields.join(" ")));
    told.collect()
}
