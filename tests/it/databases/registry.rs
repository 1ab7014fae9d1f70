//! The registry: changes that race, its snapshot, and the announcements of what has changed.

use super::*;

on_both_databases! {
    racing_changes_to_one_key_leave_it_to_one_app
    racing_creates_of_one_name_leave_one_app
    racing_creates_of_two_processes_leave_one_app
    racing_changes_are_all_kept
    a_refresh_under_way_undoes_no_change
    the_registry_starts_with_what_is_there
    a_change_is_in_the_directory_and_announced_before_it_is_answered
    each_change_is_reviewed_before_the_next_one_is_made
    a_change_that_changes_nothing_is_not_announced
    changes_by_other_writers_are_noticed
    dead_watchers_are_forgotten
    there_is_no_app_under_a_name_that_is_no_slug
}

async fn racing_changes_to_one_key_leave_it_to_one_app(database: &TestDatabase) {
    let one = database.migrated().await;
    let other = database.connect().await;
    let names = ["Foo App", "Bar App", "Baz App", "Qux App"];
    for name in names {
        change::create(&one, &ChangedBy::CLI, fields(json!({ "name": name })))
            .await
            .expect("an app");
    }
    for round in 0..5 {
        let given = || fields(json!({ "key": format!("key-{round}") }));
        let racers = ["foo-app", "bar-app", "baz-app", "qux-app"].map(slug);
        let stores = [&one, &other, &one, &other];
        let racers = racers
            .iter()
            .zip(stores)
            .map(|(slug, store)| change::update(store, &ChangedBy::CLI, slug, given()));
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
        let ChangeError::Invalid(faults) = loser else { panic!("{loser:?}") };
        assert_eq!(as_json(faults), name_taken());
    }
}

async fn racing_creates_of_two_processes_leave_one_app(database: &TestDatabase) {
    let one = database.migrated().await;
    let other = database.connect().await;
    for round in 0..5 {
        let name = format!("foo-app {round}");
        let given = || fields(json!({ "name": name }));
        let racers = [&one, &other, &one, &other]
            .map(|store| change::create(store, &ChangedBy::CLI, given()));
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
        // Long enough for the end of a refresh that had read the table before the change.
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
    let refused = AppRegistry::start(unmigrated, directory, times(NEVER), Metrics::new(10)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "without a table nothing starts");

    let store = database.migrated().await;
    store
        .insert(&ChangedBy::CLI, &values(json!({ "name": "foo-app", "active": false })))
        .await
        .expect("an app");
    let running = Running::start(store, NEVER).await;
    assert_eq!(running.name_of("foo-app").as_deref(), Some("foo-app"));
    assert_eq!(running.database().await, DatabaseHealth::Ok);
}

async fn a_change_is_in_the_directory_and_announced_before_it_is_answered(database: &TestDatabase) {
    let store = database.migrated().await;
    let mut running = Running::start(store.clone(), NEVER).await;
    let app = running.create(json!({ "name": "Foo App" })).await.expect("an app");
    assert_eq!(running.name_of("foo-app").as_deref(), Some("Foo App"));
    assert!(running.seen.try_recv().is_err(), "no join depends on a new app");

    let renamed = running.update("foo-app", json!({ "name": "Bar App" })).await.expect("a change");
    assert_eq!((renamed.id, renamed.slug.as_str()), (app.id, "bar-app"));
    assert_eq!(running.name_of("foo-app"), None, "the old slug is gone");
    assert_eq!(running.name_of("bar-app").as_deref(), Some("Bar App"));
    assert_eq!(running.next_seen().await, (app.id, Some("Bar App".into())));
    let old = running.update("foo-app", json!({})).await;
    assert_eq!(old.err(), Some(ChangeError::NotFound));

    running.delete("bar-app").await.expect("a deletion");
    assert_eq!(running.name_of("bar-app"), None);
    assert_eq!(running.next_seen().await, (app.id, None));
    assert!(store.list().await.expect("a list").apps.is_empty());
    let again = running.delete("bar-app").await;
    assert_eq!(again.err(), Some(ChangeError::NotFound));
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

async fn changes_by_other_writers_are_noticed(database: &TestDatabase) {
    let other = database.migrated().await;
    let mut running = Running::start(database.connect().await, OFTEN).await;
    let app = change::create(&other, &ChangedBy::CLI, fields(json!({ "name": "foo-app" })))
        .await
        .expect("an app");
    running.until("a new app", |apps| apps.load().by_slug("foo-app").is_some()).await;

    // By SQL, which does not touch `updated_at`.
    database.sql("UPDATE apps SET secret = 'another secret altogether'").await;
    assert_eq!(running.next_seen().await.0, app.id);
    let known = running.directory.load().by_id(app.id).cloned().expect("the app");
    assert_eq!(known.secret.expose_secret(), "another secret altogether");

    change::delete(&other, &ChangedBy::CLI, &slug("foo-app")).await.expect("a deletion");
    assert_eq!(running.next_seen().await, (app.id, None));
}

async fn each_change_is_reviewed_before_the_next_one_is_made(database: &TestDatabase) {
    let running = Running::start(database.migrated().await, NEVER).await;
    let app = running.create(json!({ "name": "foo-app" })).await.expect("an app");
    let (sender, mut seen) = unbounded_channel();
    let directory = running.directory.clone();
    let review = move |id| {
        let is_active = directory.load().by_id(id).map(|app| app.settings.active);
        sender.send((id, is_active)).expect("the test listens");
    };
    running.registry.send(ReviewChanges(Arc::new(review))).await.expect("a living registry");
    let changes =
        [false, true, false].map(|active| running.update("foo-app", json!({ "active": active })));
    for changed in join_all(changes).await {
        changed.expect("a change");
    }
    running.delete("foo-app").await.expect("a deletion");
    for expected in [Some(false), Some(true), Some(false), None] {
        assert_eq!(seen.try_recv(), Ok((app.id, expected)), "before the answer");
    }
}

async fn dead_watchers_are_forgotten(database: &TestDatabase) {
    let mut running = Running::start(database.migrated().await, NEVER).await;
    running.create(json!({ "name": "foo-app" })).await.expect("an app");
    let (sender, mut seen) = unbounded_channel();
    let dying = Witness { directory: running.directory.clone(), seen: sender }.start();
    running.registry.send(WatchApps(dying.clone().recipient())).await.expect("a living registry");
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
        let missing = Some(ChangeError::NotFound);
        assert_eq!(running.show(name).await.err(), missing, "show {name:.20?}");
        assert_eq!(running.update(name, json!({})).await.err(), missing, "update {name:.20?}");
        assert_eq!(running.delete(name).await.err(), missing, "delete {name:.20?}");
    }
    assert_eq!(running.database().await, DatabaseHealth::Ok, "no query has failed");
}
