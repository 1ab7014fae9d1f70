//! The store and the registry, the same suite on SQLite and on a real PostgreSQL.
//!
//! PostgreSQL is whatever `HERALD_TEST_POSTGRES_URL` names, with a user who may create databases:
//! each test has one of its own. Without the variable that half fails, it is not skipped.

use std::{env, future::Future, sync::Arc, time::Duration};

use actix::{Actor, ActorContext, Addr, Context, Handler, Message};
use futures_util::future::join_all;
use herald::{
    app::{
        App, AppDirectory, AppId, Slug,
        change::{self, ChangeError},
        fields::{AppFields, AppValues, Draft, Faults},
        registry::{
            AppChanged, AppRegistry, CreateApp, DatabaseHealth, DatabaseState, DeleteApp, ListApps,
            RegistryError, ShowApp, UpdateApp, Watch,
        },
        seed,
        store::{AppStore, MissingFile, StoreError, UniqueField, UnreadableRow},
    },
    metrics::Metrics,
    settings,
};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, TransactionTrait};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use uuid::Uuid;

/// How long anything here may take before it counts as missing.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longer than any test: the table is not read anew.
const NEVER: Duration = Duration::from_secs(3600);
/// As good as at once.
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

on_both_databases! {
    migrations_go_up_down_and_up_again
    an_app_is_read_back_as_it_was_stored
    ids_are_never_used_again
    the_database_itself_keeps_names_slugs_and_keys_apart
    a_change_leaves_columns_alone_that_it_does_not_name
    faults_that_only_the_database_knows_come_with_the_others
    the_migration_to_unique_keys_names_the_apps_that_share_one
    the_migration_to_history_keeps_the_apps_up_and_down
    a_number_is_set_and_left_to_the_server_again
    racing_changes_to_one_key_leave_it_to_one_app
    racing_creates_of_one_name_leave_one_app
    racing_creates_of_two_processes_leave_one_app
    racing_changes_are_all_kept
    a_refresh_under_way_undoes_no_change
    the_registry_starts_with_what_is_there
    a_change_is_in_the_directory_and_announced_before_it_is_answered
    a_change_that_changes_nothing_is_not_announced
    what_others_write_is_noticed
    a_row_that_is_no_app_is_not_served
    an_outage_leaves_the_snapshot_alone
    a_write_whose_commit_fails_is_an_outage_and_changes_nothing
    a_database_that_hangs_is_given_up_in_time
    dead_watchers_are_forgotten
    there_is_no_app_under_a_name_that_is_no_slug
}

/// A database of one test's own.
pub(crate) struct TestDatabase {
    url: String,
    folder: Option<TempDir>,
}

impl TestDatabase {
    fn sqlite() -> Self {
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

    fn settings(&self) -> settings::Database {
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

    /// Does what somebody at an SQL prompt does.
    async fn sql(&self, statement: &str) {
        sql(&self.url, statement).await;
    }

    async fn connection(&self) -> DatabaseConnection {
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

/// Passes on what is announced, with the name that the directory had for the app at that moment.
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
            AppRegistry::start(store, directory.clone(), refresh, Metrics::new(10)).await;
        let registry = registry.expect("a registry");
        let (sender, seen) = unbounded_channel();
        let witness = Witness { directory: directory.clone(), seen: sender }.start();
        registry.send(Watch(witness.recipient())).await.expect("a living registry");
        Self { registry, directory, seen }
    }

    async fn create(&self, given: Value) -> Result<App, RegistryError> {
        self.registry.send(CreateApp(fields(given))).await.expect("a living registry")
    }

    async fn update(&self, slug: &str, given: Value) -> Result<App, RegistryError> {
        let message = UpdateApp { slug: slug.to_owned(), fields: fields(given) };
        self.registry.send(message).await.expect("a living registry")
    }

    async fn delete(&self, slug: &str) -> Result<(), RegistryError> {
        self.registry.send(DeleteApp(slug.to_owned())).await.expect("a living registry")
    }

    async fn show(&self, slug: &str) -> Result<App, RegistryError> {
        self.registry.send(ShowApp(slug.to_owned())).await.expect("a living registry")
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

    /// Waits until the directory is as wanted: for changes that nobody is told of.
    async fn until(&self, what: &str, is_so: impl Fn(&AppDirectory) -> bool) {
        let wait = async {
            while !is_so(&self.directory) {
                tokio::task::yield_now().await;
            }
        };
        before_the_deadline(what, wait).await;
    }
}

fn name_taken() -> Value {
    json!({ "name": ["has already been taken"], "slug": ["has already been taken"] })
}

fn as_json(faults: &Faults) -> Value {
    serde_json::to_value(faults).expect("faults are JSON")
}

async fn migrations_go_up_down_and_up_again(database: &TestDatabase) {
    let store = database.connect().await;
    assert!(store.has_pending().await.expect("a look"), "a new database has nothing");
    assert!(store.list().await.is_err(), "looking changed nothing");

    store.migrate_up(None).await.expect("up");
    assert!(!store.has_pending().await.expect("a look"));
    let all = store.migrations().await.expect("all");
    assert!(!all.is_empty() && all.iter().all(|migration| migration.is_applied));
    store.migrate_up(None).await.expect("up again does nothing");
    store.insert(&named("foo-app")).await.expect("an app");

    let steps = u32::try_from(all.len()).expect("few migrations");
    store.migrate_down(steps).await.expect("down");
    let all = store.migrations().await.expect("all");
    assert!(all.iter().all(|migration| !migration.is_applied));
    assert!(store.list().await.is_err(), "the table is gone");

    store.migrate_up(Some(steps)).await.expect("up once more");
    assert!(store.list().await.expect("a table").apps.is_empty());
}

async fn an_app_is_read_back_as_it_was_stored(database: &TestDatabase) {
    let store = database.migrated().await;
    for (case, given) in [
        ("defaults", json!({ "name": "foo-app" })),
        (
            "everything chosen",
            json!({
                "name": "Caf\u{e9} \u{1f980} '); DROP TABLE apps;-- \"\\%_",
                "key": "k!\"#'%\\",
                "secret": "s\u{e9}cret '); DROP TABLE apps;--",
                "active": false,
                "allowed_origins": ["https://a.example", "//*.b.example:81"],
                "client_events": "none",
                "shared_tokens": true,
                "history_publications": 100_000,
                "history_seconds": 0,
            }),
        ),
        (
            "as long as may be",
            json!({
                "name": "\u{1f980}a".repeat(127),
                "slug": "s".repeat(63),
                "key": "k".repeat(255),
                "secret": "\u{e9}".repeat(255),
            }),
        ),
    ] {
        let values = values(given);
        let stored = store.insert(&values).await.expect(case);
        let found = store.find(&values.slug).await.expect(case).expect(case);
        assert!(values.are_those_of(&stored) && values.are_those_of(&found), "{case}");
        assert_eq!(found.id, stored.id, "{case}");
        assert_eq!(found.inserted_at, stored.inserted_at, "{case}");
        assert_eq!(found.updated_at, stored.updated_at, "{case}");
        assert_eq!(store.id_by_name(&values.name).await, Ok(Some(stored.id)), "{case}");
    }
    let all = store.list().await.expect("a list").apps;
    assert_eq!(all.len(), 3);
    assert!(all.is_sorted_by_key(|app| app.id), "newest last");
}

async fn ids_are_never_used_again(database: &TestDatabase) {
    let store = database.migrated().await;
    let first = store.insert(&named("foo-app")).await.expect("an app");
    assert_eq!(store.delete(&first.slug).await, Ok(Some(first.id)));
    assert_eq!(store.delete(&first.slug).await, Ok(None));
    let second = store.insert(&named("foo-app")).await.expect("an app");
    assert!(second.id > first.id);
}

async fn the_database_itself_keeps_names_slugs_and_keys_apart(database: &TestDatabase) {
    let store = database.migrated().await;
    let app = values(json!({ "name": "Foo App", "key": "slug" }));
    store.insert(&app).await.expect("an app");
    let other = store.insert(&named("Bar App")).await.expect("an app");
    let same_name = values(json!({ "name": "Foo App", "slug": "another" }));
    let same_slug = values(json!({ "name": "Another", "slug": "foo-app" }));
    let same_key = values(json!({ "name": "Another", "key": "slug" }));
    for (case, values, field) in [
        ("name", same_name, UniqueField::Name),
        ("slug", same_slug, UniqueField::Slug),
        ("key", same_key, UniqueField::Key),
    ] {
        let taken = StoreError::Taken(field);
        assert_eq!(store.insert(&values).await.err(), Some(taken.clone()), "insert {case}");
        assert_eq!(store.update(&other, &values).await.err(), Some(taken), "update {case}");
    }
}

async fn a_change_leaves_columns_alone_that_it_does_not_name(database: &TestDatabase) {
    let store = database.migrated().await;
    let before = store.insert(&named("foo-app")).await.expect("an app");
    // Between somebody's look and write, somebody else writes.
    database.sql("UPDATE apps SET client_events = 'none'").await;
    let mut values = AppValues::from(&before);
    values.settings.active = false;
    store.update(&before, &values).await.expect("a change").expect("an app");
    let after = store.find(&before.slug).await.expect("a look").expect("an app");
    assert!(!after.settings.active);
    assert_eq!(after.settings.client_events.as_str(), "none");
    assert!(after.updated_at > before.updated_at);

    store.delete(&before.slug).await.expect("a deletion");
    let gone = store.update(&before, &values).await.expect("no error");
    assert!(gone.is_none(), "who is gone is not changed");
}

async fn faults_that_only_the_database_knows_come_with_the_others(database: &TestDatabase) {
    let store = database.migrated().await;
    let app = change::create(&store, fields(json!({ "name": "Foo App" }))).await.expect("an app");
    let given = json!({ "name": "Foo App", "secret": "x" });
    let Err(ChangeError::Invalid(found)) = change::create(&store, fields(given)).await else {
        panic!("the name was free");
    };
    let mut expected = name_taken();
    expected["secret"] = json!(["should be at least 16 character(s)"]);
    assert_eq!(as_json(&found), expected);

    let given = json!({ "name": "foo app" });
    let Err(ChangeError::Invalid(found)) = change::create(&store, fields(given)).await else {
        panic!("the slug was free");
    };
    assert_eq!(as_json(&found), json!({ "slug": ["has already been taken"] }));

    let given = || fields(json!({ "name": "Bar App", "key": app.key }));
    let key_taken = json!({ "key": ["has already been taken"] });
    let Err(ChangeError::Invalid(found)) = change::create(&store, given()).await else {
        panic!("the key was free");
    };
    assert_eq!(as_json(&found), key_taken);
    let bar = change::create(&store, fields(json!({ "name": "Bar App" }))).await.expect("an app");
    let Err(ChangeError::Invalid(found)) = change::update(&store, &bar.slug, given()).await else {
        panic!("the key was free");
    };
    assert_eq!(as_json(&found), key_taken);

    let own = fields(json!({ "name": "foo app", "key": app.key }));
    let own = change::update(&store, &app.slug, own).await;
    assert_eq!(own.expect("one's own slug is free").app.slug, app.slug);
}

async fn the_migration_to_unique_keys_names_the_apps_that_share_one(database: &TestDatabase) {
    let store = database.connect().await;
    store.migrate_up(Some(1)).await.expect("the table");
    for (slug, key) in [
        ("foo-app", "one"),
        ("bar-app", "two"),
        ("baz-app", "one"),
        ("qux-app", "three"),
        ("bar-app-2", "two"),
        ("bar-app-3", "two"),
    ] {
        // The store writes columns that later migrations add.
        database.sql(&app_of_the_first_version(slug, key)).await;
    }
    let Err(StoreError::Unusable(refused)) = store.migrate_up(None).await else {
        panic!("keys are shared");
    };
    let expected = format!(
        "{}: a migration failed: apps have the same key (foo-app, baz-app; bar-app, bar-app-2, \
         bar-app-3), and keys must be unique from this version on; let one app of each group keep it \
         and give every other a key of its own, in SQL (UPDATE apps SET key = '<new key>' WHERE slug \
         = '<slug>') or with the previous version (herald apps update <slug> --new-key), then migrate \
         again",
        store.name()
    );
    assert_eq!(refused, expected);
    let all = store.migrations().await.expect("all");
    assert_eq!((all[0].is_applied, all[1].is_applied), (true, false));

    for (slug, key) in [("baz-app", "four"), ("bar-app", "five"), ("bar-app-3", "six")] {
        database.sql(&format!("UPDATE apps SET key = '{key}' WHERE slug = '{slug}'")).await;
    }
    store.migrate_up(None).await.expect("the keys differ now");
    assert!(!store.has_pending().await.expect("a look"));
    let again = values(json!({ "name": "Another", "key": "one" }));
    assert_eq!(store.insert(&again).await.err(), Some(StoreError::Taken(UniqueField::Key)));
    let steps = u32::try_from(all.len() - 1).expect("few migrations");
    store.migrate_down(steps).await.expect("down");
    // Keys may be shared again.
    database.sql(&app_of_the_first_version("another", "one")).await;
}

fn app_of_the_first_version(slug: &str, key: &str) -> String {
    format!("INSERT INTO apps (name, slug, key, secret) VALUES ('{slug}', '{slug}', '{key}', 's')")
}

async fn the_migration_to_history_keeps_the_apps_up_and_down(database: &TestDatabase) {
    let store = database.connect().await;
    store.migrate_up(Some(2)).await.expect("the table");
    database.sql(&app_of_the_first_version("old-app", "one")).await;
    store.migrate_up(None).await.expect("up");
    let old = store.find(&slug("old-app")).await.expect("a look").expect("an app");
    assert_eq!((old.settings.history_publications, old.settings.history_seconds), (None, None));

    let given = fields(json!({ "history_publications": 7 }));
    change::update(&store, &old.slug, given).await.expect("a change");
    let steps = u32::try_from(store.migrations().await.expect("all").len() - 2).expect("few");
    store.migrate_down(steps).await.expect("down");
    store.migrate_up(None).await.expect("up again");
    let again = store.find(&slug("old-app")).await.expect("a look").expect("an app");
    assert!(AppValues::from(&again).are_those_of(&old), "what it said about history is gone");
}

async fn a_number_is_set_and_left_to_the_server_again(database: &TestDatabase) {
    let store = database.migrated().await;
    let app = store.insert(&named("foo-app")).await.expect("an app");
    for (case, given, expected) in [
        (
            "both",
            json!({ "history_publications": 7, "history_seconds": "60" }),
            (Some(7), Some(60)),
        ),
        ("one", json!({ "history_publications": 0 }), (Some(0), Some(60))),
        ("the other left to the server", json!({ "history_seconds": null }), (Some(0), None)),
        ("another field", json!({ "active": false }), (Some(0), None)),
        ("a form's blank", json!({ "history_publications": "" }), (None, None)),
    ] {
        change::update(&store, &app.slug, fields(given)).await.expect(case);
        let settings = store.find(&app.slug).await.expect(case).expect(case).settings;
        let publications = settings.history_publications.map(|number| number.get());
        let seconds = settings.history_seconds.map(|number| number.get());
        assert_eq!((publications, seconds), expected, "{case}");
    }
}

async fn racing_changes_to_one_key_leave_it_to_one_app(database: &TestDatabase) {
    let one = database.migrated().await;
    let other = database.connect().await;
    let names = ["Foo App", "Bar App", "Baz App", "Qux App"];
    for name in names {
        change::create(&one, fields(json!({ "name": name }))).await.expect("an app");
    }
    for round in 0..5 {
        let given = || fields(json!({ "key": format!("key-{round}") }));
        let racers = ["foo-app", "bar-app", "baz-app", "qux-app"].map(slug);
        let stores = [&one, &other, &one, &other];
        let racers =
            racers.iter().zip(stores).map(|(slug, store)| change::update(store, slug, given()));
        let outcomes = join_all(racers).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        for refused in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert_eq!(refused.to_string(), "key has already been taken");
        }
    }
}

async fn racing_creates_of_one_name_leave_one_app(database: &TestDatabase) {
    let running = Running::start(database.migrated().await, NEVER).await;
    let racers = (0..10).map(|_| running.create(json!({ "name": "foo-app" })));
    let outcomes = join_all(racers).await;
    let losers: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(losers.len(), 9);
    for loser in losers {
        let RegistryError::Invalid(faults) = loser else { panic!("{loser:?}") };
        assert_eq!(as_json(faults), name_taken());
    }
}

async fn racing_creates_of_two_processes_leave_one_app(database: &TestDatabase) {
    let one = database.migrated().await;
    let other = database.connect().await;
    for round in 0..5 {
        let name = format!("foo-app {round}");
        let given = || fields(json!({ "name": name }));
        let racers = [&one, &other, &one, &other].map(|store| change::create(store, given()));
        let outcomes = join_all(racers).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        for outcome in outcomes {
            assert!(matches!(outcome, Ok(_) | Err(ChangeError::Invalid(_))), "{outcome:?}");
        }
    }
}

async fn racing_changes_are_all_kept(database: &TestDatabase) {
    let running = Running::start(database.migrated().await, OFTEN).await;
    running.create(json!({ "name": "foo-app" })).await.expect("an app");
    let changes = [
        json!({ "active": false }),
        json!({ "client_events": "none" }),
        json!({ "shared_tokens": true }),
        json!({ "allowed_origins": ["//a.example"] }),
        json!({ "key": "chosen" }),
    ];
    for outcome in join_all(changes.map(|given| running.update("foo-app", given))).await {
        outcome.expect("a change");
    }
    let stored = running.show("foo-app").await.expect("the app");
    let known = running.directory.load().by_slug("foo-app").cloned().expect("the app");
    assert!(AppValues::from(&stored).are_those_of(&known));
    assert!(!stored.settings.active && stored.settings.shared_tokens && stored.key == "chosen");
    assert_eq!(stored.settings.client_events.as_str(), "none");
    assert_eq!(stored.settings.allowed_origins.as_strings(), ["//a.example"]);
}

async fn a_refresh_under_way_undoes_no_change(database: &TestDatabase) {
    let running = Running::start(database.migrated().await, Duration::from_millis(1)).await;
    running.create(json!({ "name": "foo-app" })).await.expect("an app");
    for round in 0..100 {
        let key = format!("key-{round}");
        running.update("foo-app", json!({ "key": key })).await.expect("a change");
        // Long enough for a table that was read before the change to be believed after it.
        for _ in 0..100 {
            tokio::task::yield_now().await;
            let known = running.directory.load().by_slug("foo-app").map(|app| app.key.clone());
            assert_eq!(known.as_ref(), Some(&key));
        }
    }
}

async fn the_registry_starts_with_what_is_there(database: &TestDatabase) {
    let unmigrated = database.connect().await;
    let directory = AppDirectory::default();
    let refused = AppRegistry::start(unmigrated, directory, NEVER, Metrics::new(10)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "without a table nothing starts");

    let store = database.migrated().await;
    store.insert(&values(json!({ "name": "foo-app", "active": false }))).await.expect("an app");
    let running = Running::start(store, NEVER).await;
    assert_eq!(running.name_of("foo-app").as_deref(), Some("foo-app"));
    assert_eq!(running.database().await, DatabaseHealth::Ok);
}

async fn a_change_is_in_the_directory_and_announced_before_it_is_answered(database: &TestDatabase) {
    let store = database.migrated().await;
    let mut running = Running::start(store.clone(), NEVER).await;
    let app = running.create(json!({ "name": "Foo App" })).await.expect("an app");
    assert_eq!(running.name_of("foo-app").as_deref(), Some("Foo App"));
    assert!(running.seen.try_recv().is_err(), "nobody had joined what is new");

    let renamed = running.update("foo-app", json!({ "name": "Bar App" })).await.expect("a change");
    assert_eq!((renamed.id, renamed.slug.as_str()), (app.id, "bar-app"));
    assert_eq!(running.name_of("foo-app"), None, "the old slug is gone");
    assert_eq!(running.name_of("bar-app").as_deref(), Some("Bar App"));
    assert_eq!(running.next_seen().await, (app.id, Some("Bar App".into())));
    let old = running.update("foo-app", json!({})).await;
    assert_eq!(old.err(), Some(RegistryError::NotFound));

    running.delete("bar-app").await.expect("a deletion");
    assert_eq!(running.name_of("bar-app"), None);
    assert_eq!(running.next_seen().await, (app.id, None));
    assert!(store.list().await.expect("a list").apps.is_empty());
    let again = running.delete("bar-app").await;
    assert_eq!(again.err(), Some(RegistryError::NotFound));
}

async fn a_change_that_changes_nothing_is_not_announced(database: &TestDatabase) {
    let mut running = Running::start(database.migrated().await, NEVER).await;
    let app = running.create(json!({ "name": "foo-app" })).await.expect("an app");
    let same = json!({ "name": "foo-app", "active": true, "allowed_origins": [] });
    let after = running.update("foo-app", same).await.expect("no change");
    assert_eq!(after.updated_at, app.updated_at);
    running.update("foo-app", json!({ "active": false })).await.expect("a change");
    running.next_seen().await;
    assert!(running.seen.try_recv().is_err(), "one change, one announcement");
}

async fn what_others_write_is_noticed(database: &TestDatabase) {
    let other = database.migrated().await;
    let mut running = Running::start(database.connect().await, OFTEN).await;
    let app = change::create(&other, fields(json!({ "name": "foo-app" }))).await.expect("an app");
    running.until("a new app", |apps| apps.load().by_slug("foo-app").is_some()).await;

    // By SQL, which does not touch `updated_at`.
    database.sql("UPDATE apps SET secret = 'another secret altogether'").await;
    assert_eq!(running.next_seen().await.0, app.id);
    let known = running.directory.load().by_id(app.id).cloned().expect("the app");
    assert_eq!(known.secret.expose_secret(), "another secret altogether");

    change::delete(&other, &slug("foo-app")).await.expect("a deletion");
    assert_eq!(running.next_seen().await, (app.id, None));
}

async fn a_row_that_is_no_app_is_not_served(database: &TestDatabase) {
    let store = database.migrated().await;
    let mut running = Running::start(store.clone(), OFTEN).await;
    running.create(json!({ "name": "sound app" })).await.expect("an app");
    let app = running.create(json!({ "name": "foo-app" })).await.expect("an app");
    for (column, bad, good) in [
        ("allowed_origins", "nonsense", "[]"),
        ("allowed_origins", "[\"no origin\"]", "[]"),
        ("client_events", "sometimes", "authorized"),
        ("history_publications", "-1", "0"),
        ("history_seconds", "604801", "604800"),
        ("history_seconds", "99999999999", "0"),
        ("secret", "", "0123456789abcdef"),
        ("key", "", "key"),
        ("slug", "No Slug", "foo-app"),
    ] {
        let set = |value| format!("UPDATE apps SET {column} = '{value}' WHERE name = 'foo-app'");
        database.sql(&set(bad)).await;
        assert_eq!(running.next_seen().await, (app.id, None), "{column}");
        let listing = store.list().await.expect("a list");
        assert_eq!(listing.unreadable, [UnreadableRow { id: app.id, column }]);
        let sound = running.name_of("sound-app");
        assert_eq!(sound.as_deref(), Some("sound app"), "{column}: others are served");

        database.sql(&set(good)).await;
        let is_back = |apps: &AppDirectory| apps.load().by_id(app.id).is_some();
        running.until("the app is back", is_back).await;
    }
    // The last repair but one changed the secret; the row can also be deleted while it is bad.
    database.sql("UPDATE apps SET key = '' WHERE name = 'foo-app'").await;
    assert_eq!(running.next_seen().await, (app.id, None));
    running.delete("foo-app").await.expect("a deletion");
    assert_eq!(store.id_by_slug(&slug("foo-app")).await, Ok(None));
}

async fn an_outage_leaves_the_snapshot_alone(database: &TestDatabase) {
    let store = database.migrated().await;
    let mut running = Running::start(store, OFTEN).await;
    running.create(json!({ "name": "foo-app" })).await.expect("an app");
    database.sql("ALTER TABLE apps RENAME TO elsewhere").await;

    let wait = async {
        while running.database().await == DatabaseHealth::Ok {
            tokio::task::yield_now().await;
        }
    };
    before_the_deadline("the outage shows", wait).await;
    let list = running.registry.send(ListApps).await.expect("a living registry");
    assert_eq!(list.err(), Some(RegistryError::Unavailable));
    assert_eq!(running.show("foo-app").await.err(), Some(RegistryError::Unavailable));
    let created = running.create(json!({ "name": "bar-app" })).await;
    assert_eq!(created.err(), Some(RegistryError::Unavailable));
    let updated = running.update("foo-app", json!({ "active": false })).await;
    assert_eq!(updated.err(), Some(RegistryError::Unavailable));
    assert_eq!(running.delete("foo-app").await.err(), Some(RegistryError::Unavailable));
    assert_eq!(running.name_of("foo-app").as_deref(), Some("foo-app"), "the snapshot stands");
    assert!(running.seen.try_recv().is_err(), "nothing was announced");

    database.sql("ALTER TABLE elsewhere RENAME TO apps").await;
    let wait = async {
        while running.database().await == DatabaseHealth::Failed {
            tokio::task::yield_now().await;
        }
    };
    before_the_deadline("the recovery shows", wait).await;
    running.update("foo-app", json!({ "active": false })).await.expect("a change");
}

/// Makes every commit fail that ends a transaction with this kind of statement on `apps` in it. The
/// statements themselves succeed.
async fn refuse_commits_after(statement: &str, database: &TestDatabase) {
    let statements: &[String] = if database.url.starts_with("sqlite:") {
        &[
            "CREATE TABLE accepted (id INTEGER PRIMARY KEY)".into(),
            "CREATE TABLE refused (id INTEGER REFERENCES accepted (id) \
             DEFERRABLE INITIALLY DEFERRED)"
                .into(),
            format!(
                "CREATE TRIGGER refuse AFTER {statement} ON apps \
                 BEGIN INSERT INTO refused VALUES (1); END"
            ),
        ]
    } else {
        &[
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql \
             AS 'BEGIN RAISE EXCEPTION ''refused at the commit''; END'"
                .into(),
            format!(
                "CREATE CONSTRAINT TRIGGER refuse AFTER {statement} ON apps \
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"
            ),
        ]
    };
    for statement in statements {
        database.sql(statement).await;
    }
}

/// Takes back [`refuse_commits_after`].
async fn accept_commits(database: &TestDatabase) {
    let statements: &[&str] = if database.url.starts_with("sqlite:") {
        &["DROP TRIGGER refuse", "DROP TABLE refused", "DROP TABLE accepted"]
    } else {
        &["DROP TRIGGER refuse ON apps", "DROP FUNCTION refuse"]
    };
    for statement in statements {
        database.sql(statement).await;
    }
}

async fn a_write_whose_commit_fails_is_an_outage_and_changes_nothing(database: &TestDatabase) {
    let store = database.migrated().await;
    let mut running = Running::start(store.clone(), NEVER).await;
    let app = running.create(json!({ "name": "foo-app" })).await.expect("an app");
    let unavailable = Some(RegistryError::Unavailable);

    refuse_commits_after("INSERT", database).await;
    let created = running.create(json!({ "name": "bar-app" })).await;
    assert_eq!(created.err(), unavailable, "a creation");
    assert_eq!(running.database().await, DatabaseHealth::Failed);
    let seeded = seed::seed(&store).await;
    assert!(matches!(seeded, Err(ChangeError::Store(_))), "a seed: {seeded:?}");
    accept_commits(database).await;

    refuse_commits_after("UPDATE", database).await;
    let changes = json!({ "active": false, "secret": "" });
    assert_eq!(running.update("foo-app", changes).await.err(), unavailable, "a change");
    accept_commits(database).await;

    refuse_commits_after("DELETE", database).await;
    assert_eq!(running.delete("foo-app").await.err(), unavailable, "a deletion");
    accept_commits(database).await;

    let stored = database.connect().await.list().await.expect("a list").apps;
    let directory = running.directory.load();
    let known: Vec<_> = directory.iter().map(|app| App::clone(app)).collect();
    for (place, apps) in [("the database", stored), ("the directory", known)] {
        let [only] = apps.as_slice() else { panic!("{place}: {apps:?}") };
        let secrets = [&app, only].map(|app| app.secret.expose_secret().to_owned());
        assert_eq!((only.id, only.settings.active), (app.id, true), "{place}");
        assert_eq!(secrets[0], secrets[1], "{place}: the secret");
    }
    assert!(running.seen.try_recv().is_err(), "nothing was announced");
    running.update("foo-app", json!({ "active": false })).await.expect("a change");
    running.create(json!({ "name": "bar-app" })).await.expect("a creation");
    let apps = database.connect().await.list().await.expect("a list").apps;
    let apps: Vec<_> = apps.iter().map(|app| (app.slug.as_str(), app.settings.active)).collect();
    assert_eq!(apps, [("foo-app", false), ("bar-app", true)]);
}

#[actix_web::test]
async fn a_commit_that_is_not_answered_in_time_is_seen_once_it_has_happened() {
    let database = TestDatabase::postgres().await;
    database.migrated().await;
    let settings =
        settings::Database { query_timeout: Duration::from_secs(1), ..database.settings() };
    let store =
        AppStore::connect(&settings, MissingFile::MakeWithFolder).await.expect("a connection");
    let running = Running::start(store.clone(), OFTEN).await;
    for statement in [
        "CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql \
         AS 'BEGIN PERFORM pg_sleep(3); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER sleep AFTER INSERT ON apps \
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sleep()",
    ] {
        database.sql(statement).await;
    }
    let created = running.create(json!({ "name": "foo-app" })).await;
    assert_eq!(created.err(), Some(RegistryError::Unavailable));
    running
        .until("the app is known", |directory| directory.load().by_slug("foo-app").is_some())
        .await;
    let again = running.create(json!({ "name": "foo-app" })).await;
    let Err(RegistryError::Invalid(faults)) = again else { panic!("{again:?}") };
    assert_eq!(as_json(&faults), name_taken());

    // The command line says that nobody knows, too.
    let fields = fields(json!({ "name": "bar-app" }));
    let Err(ChangeError::Store(error)) = change::create(&store, fields).await else {
        panic!("its commit takes longer than it may")
    };
    assert!(
        error.to_string().ends_with("no answer within 1s; the change may have been made"),
        "{error}"
    );
    running
        .until("the app is known", |directory| directory.load().by_slug("bar-app").is_some())
        .await;
    database.remove().await;
}

async fn a_database_that_hangs_is_given_up_in_time(database: &TestDatabase) {
    database.migrated().await;
    let patience = Duration::from_millis(200);
    let settings = settings::Database { query_timeout: patience, ..database.settings() };
    let store =
        AppStore::connect(&settings, MissingFile::MakeWithFolder).await.expect("a connection");
    let running = Running::start(store, NEVER).await;
    running.create(json!({ "name": "foo-app" })).await.expect("an app");

    let connection = database.connection().await;
    let transaction = connection.begin().await.expect("a transaction");
    let statement = "UPDATE apps SET active = active";
    transaction.execute_unprepared(statement).await.expect("a lock on every row");
    let change = running.update("foo-app", json!({ "active": false }));
    let state = running.database();
    let (outcome, health) =
        before_the_deadline("giving up", async { tokio::join!(change, state) }).await;
    assert_eq!(outcome.err(), Some(RegistryError::Unavailable));
    assert_eq!(health, DatabaseHealth::Ok, "asked while the change was waiting");
    assert_eq!(running.database().await, DatabaseHealth::Failed);
    transaction.rollback().await.expect("an end");
    connection.close().await.expect("an end");

    let wait =
        async { while running.update("foo-app", json!({ "active": false })).await.is_err() {} };
    before_the_deadline("the recovery", wait).await;
    assert!(!running.show("foo-app").await.expect("the app").settings.active);
}

async fn dead_watchers_are_forgotten(database: &TestDatabase) {
    let mut running = Running::start(database.migrated().await, NEVER).await;
    running.create(json!({ "name": "foo-app" })).await.expect("an app");
    let (sender, mut seen) = unbounded_channel();
    let dying = Witness { directory: running.directory.clone(), seen: sender }.start();
    running.registry.send(Watch(dying.clone().recipient())).await.expect("a living registry");
    dying.send(Die).await.expect("a last word");
    assert!(before_the_deadline("a death", seen.recv()).await.is_none());
    running.update("foo-app", json!({ "active": false })).await.expect("a change");
    running.next_seen().await;
    running.update("foo-app", json!({ "active": true })).await.expect("a change");
    running.next_seen().await;
}

async fn there_is_no_app_under_a_name_that_is_no_slug(database: &TestDatabase) {
    let running = Running::start(database.migrated().await, NEVER).await;
    let long = "x".repeat(100_000);
    for name in ["", "\u{0}", "Foo", "'", "%", "foo-app\n", "\u{1f980}", &long] {
        let missing = Some(RegistryError::NotFound);
        assert_eq!(running.show(name).await.err(), missing, "show {name:.20?}");
        assert_eq!(running.update(name, json!({})).await.err(), missing, "update {name:.20?}");
        assert_eq!(running.delete(name).await.err(), missing, "delete {name:.20?}");
    }
    assert_eq!(running.database().await, DatabaseHealth::Ok, "no query was even made");
}

#[actix_web::test]
async fn a_postgresql_that_shuts_everybody_out_is_used_again_when_it_returns() {
    let database = TestDatabase::postgres().await;
    let running = Running::start(database.migrated().await, OFTEN).await;
    running.create(json!({ "name": "foo-app" })).await.expect("an app");
    let (_, name) = database.url.rsplit_once('/').expect("a name in the URL");
    let admin = postgres_url();
    sql(&admin, &format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")).await;
    let end_all =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    sql(&admin, &end_all).await;
    assert_eq!(running.show("foo-app").await.err(), Some(RegistryError::Unavailable));
    assert_eq!(running.name_of("foo-app").as_deref(), Some("foo-app"));

    sql(&admin, &format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")).await;
    let wait = async { while running.show("foo-app").await.is_err() {} };
    before_the_deadline("the recovery", wait).await;
    drop(running);
    database.remove().await;
}

#[actix_web::test]
async fn a_postgresql_that_is_not_there_is_waited_for_and_never_quoted() {
    let (server, _) = postgres_url_split();
    let host = server.rsplit_once('@').map_or(server.as_str(), |(_, host)| host);
    for (case, url) in [
        ("nobody listens", "postgres://herald:hunter2pass@127.0.0.1:1/herald".to_owned()),
        ("no such user", format!("postgres://nobody:hunter2pass@{host}/postgres")),
        ("no such database", format!("{server}/nowhere?password=hunter2pass")),
    ] {
        let settings = settings::Database {
            connect_retry: Duration::from_millis(20),
            ..database_settings(&url)
        };
        let error =
            before_the_deadline(case, AppStore::connect(&settings, MissingFile::MakeWithFolder))
                .await;
        let error = error.expect_err(case);
        assert!(matches!(error, StoreError::Unavailable(_)), "{case}: {error:?}");
        let printed = format!("{error} {error:?} {settings:?}");
        assert!(!printed.contains("hunter2pass"), "{case}: {printed}");
    }
}

#[actix_web::test]
async fn a_database_that_cannot_be_used_is_said_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "this is no database, whatever its length may be".repeat(100))
        .expect("a file");
    let file = file.display();
    for (case, url) in [
        ("another database", "mysql://root:hunter2pass@localhost/herald".to_owned()),
        ("nothing", String::new()),
        ("a port that is none", "postgres://herald:hunter2pass@localhost:port/herald".to_owned()),
        ("a password with a slash", "postgres://herald:hunter2pass/x@localhost/herald".to_owned()),
        ("a file for a folder", format!("sqlite://{file}/herald.db?mode=hunter2pass")),
        ("a file under a file", format!("sqlite://{file}/herald.db")),
        ("a folder for a file", format!("sqlite://{}", folder.path().display())),
        ("not a database", format!("sqlite://{file}")),
    ] {
        let settings = settings::Database { connect_retry: NEVER, ..database_settings(&url) };
        let error =
            before_the_deadline(case, AppStore::connect(&settings, MissingFile::MakeWithFolder))
                .await;
        let error = error.expect_err(case);
        assert!(matches!(error, StoreError::Unusable(_)), "{case}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("hunter2pass"), "{case}: {error}");
    }
}

#[actix_web::test]
async fn what_sqlite_has_answered_survives_a_killed_process() {
    let database = TestDatabase::sqlite();
    let store = database.migrated().await;
    store.insert(&named("foo-app")).await.expect("an app");
    // What a killed process leaves: its files as they are at this moment, nothing tidied up.
    let folder = database.folder.as_ref().expect("a folder").path();
    let (left, copy) = (folder.join("a folder"), folder.join("copy"));
    std::fs::create_dir(&copy).expect("a folder");
    for entry in std::fs::read_dir(&left).expect("files") {
        let name = entry.expect("a file").file_name();
        // The index of the log is rebuilt by whoever opens it next.
        if !name.to_string_lossy().ends_with("-shm") {
            std::fs::copy(left.join(&name), copy.join(&name)).expect("a copy");
        }
    }
    let url = format!("sqlite://{}/herald.db", copy.display());
    let revived = AppStore::connect(&database_settings(&url), MissingFile::MakeWithFolder)
        .await
        .expect("a sound database");
    assert!(!revived.has_pending().await.expect("a look"));
    assert!(revived.find(&slug("foo-app")).await.expect("a look").is_some());
    revived.insert(&named("bar-app")).await.expect("it can be written to");
}

#[cfg(unix)]
#[actix_web::test]
async fn an_sqlite_file_is_read_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;

    let database = TestDatabase::sqlite();
    let store = database.migrated().await;
    store.insert(&named("foo-app")).await.expect("an app");
    let folder = database.folder.as_ref().expect("a folder").path().join("a folder");
    for entry in std::fs::read_dir(folder).expect("files") {
        let entry = entry.expect("a file");
        let mode = entry.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", entry.file_name());
    }
}

#[actix_web::test]
async fn an_sqlite_in_memory_keeps_what_it_is_told() {
    let store =
        AppStore::connect(&database_settings("sqlite::memory:"), MissingFile::MakeWithFolder)
            .await
            .expect("memory");
    store.migrate_up(None).await.expect("migrations");
    let store = Arc::new(store);
    let names = (0..8).map(|n| format!("foo-app {n}"));
    let inserts = names.map(|name| {
        let store = store.clone();
        async move { store.insert(&named(&name)).await }
    });
    for outcome in join_all(inserts).await {
        outcome.expect("an app");
    }
    assert_eq!(store.list().await.expect("a list").apps.len(), 8);
}
