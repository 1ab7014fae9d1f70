//! Databases that fail, hang or cannot be used, and the data that survives.

use super::*;

on_both_databases! {
    an_outage_leaves_the_snapshot_alone
    a_write_whose_commit_fails_is_an_outage_and_changes_nothing
    a_database_that_hangs_is_given_up_in_time
}

async fn an_outage_leaves_the_snapshot_alone(database: &TestDatabase) {
    let store = database.migrated().await;
    let mut running = Running::start(store, OFTEN).await;
    running.create(json!({ "name": "foo-app" })).await.expect("an app");
    database.sql("ALTER TABLE apps RENAME TO elsewhere").await;

    let wait = repeat_until(async || running.database().await != DatabaseHealth::Ok);
    before_the_deadline("the outage shows", wait).await;
    let list = running.registry.send(list_apps()).await.expect("a living registry");
    assert_unavailable(&list);
    assert_unavailable(&running.show("foo-app").await);
    let created = running.create(json!({ "name": "bar-app" })).await;
    assert_unavailable(&created);
    let updated = running.update("foo-app", json!({ "active": false })).await;
    assert_unavailable(&updated);
    assert_unavailable(&running.delete("foo-app").await);
    assert_eq!(running.name_of("foo-app").as_deref(), Some("foo-app"), "the snapshot stands");
    assert!(running.seen.try_recv().is_err(), "nothing was announced");

    database.sql("ALTER TABLE elsewhere RENAME TO apps").await;
    let wait = repeat_until(async || running.database().await != DatabaseHealth::Failed);
    before_the_deadline("the recovery shows", wait).await;
    running.update("foo-app", json!({ "active": false })).await.expect("a change");
}

/// Makes the commit of every transaction fail that has a statement of this kind on `apps`. The statements
/// themselves succeed.
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

    refuse_commits_after("INSERT", database).await;
    let created = running.create(json!({ "name": "bar-app" })).await;
    assert_unavailable(&created);
    assert_eq!(running.database().await, DatabaseHealth::Failed);
    let seeded = seed::seed(&store).await;
    assert_unavailable(&seeded);
    accept_commits(database).await;

    refuse_commits_after("UPDATE", database).await;
    let changes = json!({ "active": false, "secret": "" });
    assert_unavailable(&running.update("foo-app", changes).await);
    let rotated = running.rotate("foo-app", Overlap::default()).await;
    assert_unavailable(&rotated);
    accept_commits(database).await;

    refuse_commits_after("DELETE", database).await;
    assert_unavailable(&running.delete("foo-app").await);
    accept_commits(database).await;

    let entries = trail(&store).await;
    assert_eq!(entries.len(), 1, "a change that was not committed leaves no entry: {entries:?}");
    let stored = database.connect().await.list().await.expect("a list").apps;
    let directory = running.directory.load();
    let known: Vec<_> = directory.iter().map(|app| App::clone(app)).collect();
    for (place, apps) in [("the database", stored), ("the directory", known)] {
        let [only] = apps.as_slice() else { panic!("{place}: {apps:?}") };
        assert_eq!((only.id, only.settings.active), (app.id, true), "{place}");
        assert_eq!(pair_of(only), pair_of(&app), "{place}: the key and the secret");
        assert!(only.previous.is_none(), "{place}");
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
    assert_unavailable(&created);
    running
        .until("the app is known", |directory| directory.load().by_slug("foo-app").is_some())
        .await;
    let again = running.create(json!({ "name": "foo-app" })).await;
    let Err(ChangeError::Invalid(faults)) = again else { panic!("{again:?}") };
    assert_eq!(as_json(&faults), name_taken());

    // The command line, too, says that the outcome is not known.
    let fields = fields(json!({ "name": "bar-app" }));
    let Err(ChangeError::Store(error)) = change::create(&store, &ChangedBy::CLI, fields).await
    else {
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
    let patience = Duration::from_secs(1);
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
    assert_unavailable(&outcome);
    assert_eq!(health, DatabaseHealth::Ok, "asked while the change was waiting");
    assert_eq!(running.database().await, DatabaseHealth::Failed);
    transaction.rollback().await.expect("an end");
    connection.close().await.expect("an end");

    let wait =
        repeat_until(async || running.update("foo-app", json!({ "active": false })).await.is_ok());
    before_the_deadline("the recovery", wait).await;
    assert!(!running.show("foo-app").await.expect("the app").settings.active);
}

#[actix_web::test]
async fn a_postgresql_that_hangs_does_not_hold_up_the_look_for_pending_migrations() {
    let database = TestDatabase::postgres().await;
    database.migrated().await;
    let patience = Duration::from_secs(1);
    let settings = settings::Database { query_timeout: patience, ..database.settings() };
    let store = AppStore::connect(&settings, MissingFile::Refuse).await.expect("a connection");
    let connection = database.connection().await;
    let transaction = connection.begin().await.expect("a transaction");
    let statement = "LOCK TABLE seaql_migrations IN ACCESS EXCLUSIVE MODE";
    transaction.execute_unprepared(statement).await.expect("a lock");
    let looked = before_the_deadline("giving up", store.has_pending()).await;
    let expected = format!("{}: no answer within 1s", store.name());
    assert_eq!(looked, Err(StoreError::Unavailable(expected)));
    transaction.rollback().await.expect("an end");
    connection.close().await.expect("an end");
    assert_eq!(store.has_pending().await, Ok(false));
    database.remove().await;
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
    assert_unavailable(&running.show("foo-app").await);
    assert_eq!(running.name_of("foo-app").as_deref(), Some("foo-app"));

    sql(&admin, &format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")).await;
    let wait = repeat_until(async || running.show("foo-app").await.is_ok());
    before_the_deadline("the recovery", wait).await;
    drop(running);
    database.remove().await;
}

#[actix_web::test]
async fn a_postgresql_that_is_not_there_is_waited_for_and_never_quoted() {
    let (server, _) = postgres_url_split();
    let host = server.rsplit_once('@').map_or(server.as_str(), |(_, host)| host);

    // A failed attempt is followed by another one.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let url = format!("postgres://herald:hunter2pass@127.0.0.1:{port}/herald");
    let settings = settings::Database { connect_retry: NEVER, ..database_settings(&url) };
    let twice = async {
        for _ in 0..2 {
            drop(listener.accept().await.expect("an attempt"));
        }
    };
    let attempts = async {
        tokio::select! {
            () = twice => {}
            result = AppStore::connect(&settings, MissingFile::MakeWithFolder) => {
                panic!("after one attempt: {:?}", result.err())
            }
        }
    };
    before_the_deadline("another attempt", attempts).await;

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
async fn writes_that_sqlite_has_answered_survive_a_killed_process() {
    let database = TestDatabase::sqlite();
    let store = database.migrated().await;
    store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    // A killed process leaves its files as they are now, while the database is open.
    let folder = database.folder.as_ref().expect("a folder").path();
    let (left, copy) = (folder.join("a folder"), folder.join("copy"));
    std::fs::create_dir(&copy).expect("a folder");
    for entry in std::fs::read_dir(&left).expect("files") {
        let name = entry.expect("a file").file_name();
        // The index of the log is not copied: the next process that opens the database rebuilds it.
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
    revived.insert(&ChangedBy::CLI, &named("bar-app")).await.expect("it can be written to");
}

#[cfg(unix)]
#[actix_web::test]
async fn an_sqlite_file_is_read_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;

    let database = TestDatabase::sqlite();
    let store = database.migrated().await;
    store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    let folder = database.folder.as_ref().expect("a folder").path().join("a folder");
    for entry in std::fs::read_dir(folder).expect("files") {
        let entry = entry.expect("a file");
        let mode = entry.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", entry.file_name());
    }
}

#[actix_web::test]
async fn an_sqlite_in_memory_keeps_its_data() {
    let store =
        AppStore::connect(&database_settings("sqlite::memory:"), MissingFile::MakeWithFolder)
            .await
            .expect("memory");
    store.migrate_up(None).await.expect("migrations");
    let store = Arc::new(store);
    let names = (0..8).map(|n| format!("foo-app {n}"));
    let inserts = names.map(|name| {
        let store = store.clone();
        async move { store.insert(&ChangedBy::CLI, &named(&name)).await }
    });
    for outcome in join_all(inserts).await {
        outcome.expect("an app");
    }
    assert_eq!(store.list().await.expect("a list").apps.len(), 8);
}
