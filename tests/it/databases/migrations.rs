//! Migrations, forwards and backwards.

use super::*;

on_both_databases! {
    migrations_go_up_down_and_up_again
    servers_that_start_together_on_a_new_database_all_migrate_it
    migrations_wait_for_those_of_another_process_no_longer_than_they_may
    migrations_of_a_newer_version_are_named_with_the_way_back
    the_migration_to_unique_keys_names_the_apps_that_share_one
    the_migration_to_history_keeps_the_apps_up_and_down
    the_migration_to_rotation_keeps_the_apps_up_and_down
    the_migration_to_pusher_names_the_apps_that_share_a_key_and_keeps_all_others
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
    store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");

    let steps = u32::try_from(all.len()).expect("few migrations");
    store.migrate_down(steps).await.expect("down");
    let all = store.migrations().await.expect("all");
    assert!(all.iter().all(|migration| !migration.is_applied));
    assert!(store.list().await.is_err(), "the table is gone");

    store.migrate_up(Some(steps)).await.expect("up once more");
    assert!(store.list().await.expect("a table").apps.is_empty());
}

async fn servers_that_start_together_on_a_new_database_all_migrate_it(database: &TestDatabase) {
    let start = async || {
        // A pool of one connection has none left for the lock.
        let settings = settings::Database {
            connections_max: 1,
            connect_retry: DEADLINE,
            ..database.settings()
        };
        let store = AppStore::connect(&settings, MissingFile::MakeWithFolder).await?;
        store.migrate_up(None).await?;
        seed::seed(&store).await.expect("an app");
        store.has_pending().await
    };
    let starts = join_all((0..8).map(|_| start()));
    let started = before_the_deadline("all have started", starts).await;
    assert_eq!(started, vec![Ok(false); 8]);
    assert_eq!(database.connect().await.list().await.expect("a list").apps.len(), 1);
}

async fn migrations_wait_for_those_of_another_process_no_longer_than_they_may(
    database: &TestDatabase,
) {
    let connect_retry = Duration::from_millis(300);
    let query_timeout = Duration::from_secs(1);
    let settings = settings::Database { connect_retry, query_timeout, ..database.settings() };
    let store = AppStore::connect(&settings, MissingFile::MakeWithFolder).await.expect("a store");
    let connection = database.connection().await;
    let lock = async || {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let other = connection.begin_with_options(options).await.expect("a transaction");
        if connection.get_database_backend() == DbBackend::Postgres {
            // The letters of `herald`.
            let lock = "SELECT pg_advisory_xact_lock(x'686572616c64'::bigint)";
            other.execute_unprepared(lock).await.expect("the lock");
        }
        other
    };
    let other = lock().await;
    let expected = StoreError::Unavailable(format!(
        "{}: another process migrates it, and has not finished within 300ms (database.connect_retry)",
        store.name()
    ));
    let up = before_the_deadline("giving up", store.migrate_up(None)).await;
    assert_eq!(up, Err(expected.clone()));
    let down = before_the_deadline("giving up", store.migrate_down(1)).await;
    assert_eq!(down, Err(expected));
    other.rollback().await.expect("an end");
    store.migrate_up(None).await.expect("migrations");
    let other = lock().await;
    store.migrate_up(None).await.expect("there is nothing to wait for");
    other.rollback().await.expect("an end");
    connection.close().await.expect("an end");
}

async fn migrations_of_a_newer_version_are_named_with_the_way_back(database: &TestDatabase) {
    let store = database.connect().await;
    store.migrate_up(None).await.expect("up");
    database.sql("INSERT INTO seaql_migrations VALUES ('m20991231_000001_late', 0)").await;
    let expected = StoreError::Unusable(format!(
        "{}: a newer Herald has migrated it (its newest migration is m20991231_000001_late): use that \
         version, or let it undo what this version does not know: `herald migrate down --steps 1`",
        store.name()
    ));
    assert_eq!(store.has_pending().await, Err(expected.clone()));
    assert_eq!(store.migrate_up(None).await, Err(expected));
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
        // This is done in SQL, because the store writes columns that later migrations add.
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
    assert_eq!(
        store.insert(&ChangedBy::CLI, &again).await.err(),
        Some(StoreError::Taken(UniqueField::Key))
    );
    let steps = u32::try_from(all.len() - 1).expect("few migrations");
    store.migrate_down(steps).await.expect("down");
    // Apps may have the same key again.
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
    change::update(&store, &ChangedBy::CLI, &old.slug, given).await.expect("a change");
    let steps = u32::try_from(store.migrations().await.expect("all").len() - 2).expect("few");
    store.migrate_down(steps).await.expect("down");
    store.migrate_up(None).await.expect("up again");
    let again = store.find(&slug("old-app")).await.expect("a look").expect("an app");
    assert!(AppValues::from(&again).are_those_of(&old), "its settings of the history are gone");
}

async fn the_migration_to_rotation_keeps_the_apps_up_and_down(database: &TestDatabase) {
    let store = database.connect().await;
    store.migrate_up(Some(2)).await.expect("the table");
    database.sql(&app_of_the_first_version("old-app", "one")).await;
    store.migrate_up(None).await.expect("up");
    let old = store.find(&slug("old-app")).await.expect("a look").expect("an app");
    assert!(old.previous.is_none() && old.last_use.at().is_none());
    let new = change::rotate(&store, &ChangedBy::CLI, &old.slug, Overlap::default())
        .await
        .expect("a rotation");
    let steps = u32::try_from(store.migrations().await.expect("all").len() - 3).expect("few");
    store.migrate_down(steps).await.expect("down");
    store.migrate_up(None).await.expect("up again");
    let again = store.find(&slug("old-app")).await.expect("a look").expect("an app");
    assert_eq!(pair_of(&again), pair_of(&new));
    assert!(again.previous.is_none(), "the previous pair is gone");
}

async fn the_migration_to_pusher_names_the_apps_that_share_a_key_and_keeps_all_others(
    database: &TestDatabase,
) {
    let store = database.connect().await;
    store.migrate_up(Some(7)).await.expect("the tables");
    for (slug, key, previous) in [
        ("foo-app", "one", "NULL"),
        ("bar-app", "two", "'one'"),
        ("baz-app", "three", "'four'"),
        ("own-app", "five", "'five'"),
    ] {
        database.sql(&app_of_the_first_version(slug, key)).await;
        let set = format!("UPDATE apps SET previous_key = {previous} WHERE slug = '{slug}'");
        database.sql(&set).await;
    }
    let Err(StoreError::Unusable(refused)) = store.migrate_up(None).await else {
        panic!("a key is shared");
    };
    let expected = format!(
        "{}: a migration failed: the key of an app is the previous key of another (foo-app, bar-app), \
         and a key must name one app from this version on; end the previous pair in SQL (UPDATE apps \
         SET previous_key = NULL, previous_secret = NULL, previous_key_expires_at = NULL WHERE slug = \
         '<slug>') or give the other app another key (UPDATE apps SET key = '<new key>' WHERE slug = \
         '<slug>'), then migrate again",
        store.name()
    );
    assert_eq!(refused, expected);
    database.sql("UPDATE apps SET previous_key = NULL WHERE slug = 'bar-app'").await;
    store.migrate_up(None).await.expect("the keys differ now");
    let old = store.find(&slug("foo-app")).await.expect("a look").expect("an app");
    let told = |app: &App| {
        let settings = &app.settings;
        (settings.pusher, settings.subscription_count, settings.authorized_only)
    };
    assert_eq!(told(&old), (true, true, false));
    let given = fields(json!({ "pusher": false }));
    let changed =
        change::update(&store, &ChangedBy::CLI, &old.slug, given).await.expect("a change");
    assert_eq!(told(&changed), (false, true, false));
    let steps = u32::try_from(store.migrations().await.expect("all").len() - 7).expect("few");
    store.migrate_down(steps).await.expect("down");
    store.migrate_up(None).await.expect("up again");
    let again = store.find(&slug("foo-app")).await.expect("a look").expect("an app");
    assert_eq!(told(&again), (true, true, false), "its settings are gone");
}
