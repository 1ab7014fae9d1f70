//! Apps as rows: what is stored is read back, and what must be unique stays so.

use super::*;

on_both_databases! {
    an_app_is_read_back_as_it_was_stored
    ids_are_never_used_again
    an_app_that_is_renamed_just_before_its_deletion_stays
    the_database_itself_keeps_names_slugs_and_keys_apart
    a_change_leaves_columns_alone_that_it_does_not_name
    a_change_of_a_row_that_is_no_longer_valid_is_not_written
    faults_that_only_the_database_knows_come_with_the_others
    a_number_is_set_and_left_to_the_server_again
    a_row_that_is_no_app_is_not_served
    the_seeded_app_may_be_renamed_or_get_another_key
}

async fn an_app_that_is_renamed_just_before_its_deletion_stays(database: &TestDatabase) {
    let store = database.migrated().await;
    let app = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    let other = database.connection().await;
    let rename = other.begin().await.expect("a transaction");
    let renamed = "UPDATE apps SET name = 'bar-app', slug = 'bar-app'";
    rename.execute_unprepared(renamed).await.expect("a change");
    let mut deletion = pin!(store.delete(&ChangedBy::CLI, &app.slug));
    // The deletion waits for the lock that the rename holds.
    assert!(timeout(Duration::from_millis(300), &mut deletion).await.is_err());
    rename.commit().await.expect("a commit");
    assert_eq!(deletion.await, Ok(None));
    other.close().await.expect("an orderly end");
    assert!(store.find(&slug("bar-app")).await.expect("a look").is_some());
    assert_eq!(trail(&store).await.len(), 1, "the creation");
}

async fn an_app_is_read_back_as_it_was_stored(database: &TestDatabase) {
    let store = database.migrated().await;
    for (case, given) in [
        ("defaults", json!({ "name": "foo-app" })),
        (
            "everything chosen",
            json!({
                "name": "Caf\u{e9} \u{1f980} '); DROP TABLE apps;-- \"\\%_",
                "key": "k.Z_9~-",
                "secret": "s\u{e9}cret '); DROP TABLE apps;--",
                "active": false,
                "allowed_origins": ["https://a.example", "//*.b.example:81"],
                "client_events": "none",
                "shared_tokens": true,
                "history_publications": 100_000,
                "history_seconds": 0,
                "pusher": false,
                "subscription_count": false,
                "authorized_only": true,
            }),
        ),
        (
            "as long as is allowed",
            json!({
                "name": "\u{1f980}a".repeat(127),
                "slug": "s".repeat(63),
                "key": "k".repeat(64),
                "secret": "\u{e9}".repeat(255),
            }),
        ),
    ] {
        let values = values(given);
        let stored = store.insert(&ChangedBy::CLI, &values).await.expect(case);
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
    let first = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    assert_eq!(store.delete(&ChangedBy::CLI, &first.slug).await, Ok(Some(first.id)));
    assert_eq!(store.delete(&ChangedBy::CLI, &first.slug).await, Ok(None));
    let second = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    assert!(second.id > first.id);
}

async fn the_database_itself_keeps_names_slugs_and_keys_apart(database: &TestDatabase) {
    let store = database.migrated().await;
    let app = values(json!({ "name": "Foo App", "key": "slug" }));
    store.insert(&ChangedBy::CLI, &app).await.expect("an app");
    let other = store.insert(&ChangedBy::CLI, &named("Bar App")).await.expect("an app");
    let same_name = values(json!({ "name": "Foo App", "slug": "another" }));
    let same_slug = values(json!({ "name": "Another", "slug": "foo-app" }));
    let same_key = values(json!({ "name": "Another", "key": "slug" }));
    for (case, values, field) in [
        ("name", same_name, UniqueField::Name),
        ("slug", same_slug, UniqueField::Slug),
        ("key", same_key, UniqueField::Key),
    ] {
        let taken = StoreError::Taken(field);
        assert_eq!(
            store.insert(&ChangedBy::CLI, &values).await.err(),
            Some(taken.clone()),
            "insert {case}"
        );
        assert_eq!(
            store.update(&ChangedBy::CLI, &other, &values).await.err(),
            Some(taken),
            "update {case}"
        );
    }
}

async fn a_change_leaves_columns_alone_that_it_does_not_name(database: &TestDatabase) {
    let store = database.migrated().await;
    let before = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    // Another writer changes the row between the read and the write of this one.
    database.sql("UPDATE apps SET client_events = 'none'").await;
    let mut values = AppValues::from(&before);
    values.settings.active = false;
    store.update(&ChangedBy::CLI, &before, &values).await.expect("a change").expect("an app");
    let after = store.find(&before.slug).await.expect("a look").expect("an app");
    assert!(!after.settings.active);
    assert_eq!(after.settings.client_events.as_str(), "none");
    assert!(after.updated_at > before.updated_at);

    store.delete(&ChangedBy::CLI, &before.slug).await.expect("a deletion");
    let gone = store.update(&ChangedBy::CLI, &before, &values).await.expect("no error");
    assert!(gone.is_none(), "a deleted app is not changed");
}

async fn a_change_of_a_row_that_is_no_longer_valid_is_not_written(database: &TestDatabase) {
    let store = database.migrated().await;
    let before = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    database.sql("UPDATE apps SET history_seconds = 604801").await;
    let mut values = AppValues::from(&before);
    values.settings.active = false;
    let update = store.update(&ChangedBy::CLI, &before, &values).await.err();
    let rotate =
        store.rotate(&ChangedBy::CLI, &before, &NewPair::random(), Overlap::NONE).await.err();
    for refused in [update, rotate] {
        let Some(StoreError::Unavailable(reason)) = refused else { panic!("{refused:?}") };
        assert!(reason.contains("history_seconds is not valid"), "{reason}");
    }
    database.sql("UPDATE apps SET history_seconds = 0").await;
    let after = store.find(&before.slug).await.expect("a look").expect("an app");
    assert!(after.settings.active);
    assert_eq!(after.key, before.key);
    assert_eq!(after.updated_at, before.updated_at);
}

async fn faults_that_only_the_database_knows_come_with_the_others(database: &TestDatabase) {
    let store = database.migrated().await;
    let app = change::create(&store, &ChangedBy::CLI, fields(json!({ "name": "Foo App" })))
        .await
        .expect("an app");
    let given = json!({ "name": "Foo App", "secret": "x" });
    let Err(ChangeError::Invalid(found)) =
        change::create(&store, &ChangedBy::CLI, fields(given)).await
    else {
        panic!("the name was free");
    };
    let mut expected = name_taken();
    expected["secret"] = json!(["should be at least 16 character(s)"]);
    assert_eq!(as_json(&found), expected);

    let given = json!({ "name": "foo app" });
    let Err(ChangeError::Invalid(found)) =
        change::create(&store, &ChangedBy::CLI, fields(given)).await
    else {
        panic!("the slug was free");
    };
    assert_eq!(as_json(&found), json!({ "slug": ["has already been taken"] }));

    let given = || fields(json!({ "name": "Bar App", "key": app.key }));
    let key_taken = json!({ "key": ["has already been taken"] });
    let Err(ChangeError::Invalid(found)) = change::create(&store, &ChangedBy::CLI, given()).await
    else {
        panic!("the key was free");
    };
    assert_eq!(as_json(&found), key_taken);
    let bar = change::create(&store, &ChangedBy::CLI, fields(json!({ "name": "Bar App" })))
        .await
        .expect("an app");
    let Err(ChangeError::Invalid(found)) =
        change::update(&store, &ChangedBy::CLI, &bar.slug, given()).await
    else {
        panic!("the key was free");
    };
    assert_eq!(as_json(&found), key_taken);

    let own = fields(json!({ "name": "foo app", "key": app.key }));
    let own = change::update(&store, &ChangedBy::CLI, &app.slug, own).await;
    assert_eq!(own.expect("an app may keep its slug and its key").slug, app.slug);
}

async fn a_number_is_set_and_left_to_the_server_again(database: &TestDatabase) {
    let store = database.migrated().await;
    let app = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
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
        change::update(&store, &ChangedBy::CLI, &app.slug, fields(given)).await.expect(case);
        let settings = store.find(&app.slug).await.expect(case).expect(case).settings;
        let publications = settings.history_publications.map(|number| number.get());
        let seconds = settings.history_seconds.map(|number| number.get());
        assert_eq!((publications, seconds), expected, "{case}");
    }
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
    // A row can also be deleted while it is not a valid app.
    database.sql("UPDATE apps SET key = '' WHERE name = 'foo-app'").await;
    assert_eq!(running.next_seen().await, (app.id, None));
    running.delete("foo-app").await.expect("a deletion");
    assert_eq!(store.id_by_slug(&slug("foo-app")).await, Ok(None));
}

async fn the_seeded_app_may_be_renamed_or_get_another_key(database: &TestDatabase) {
    let store = database.migrated().await;
    for (case, slug, change) in [
        ("renamed", seed::SLUG, json!({ "name": "My demo" })),
        ("named again", "my-demo", json!({ "name": "Test App" })),
        ("another key", seed::SLUG, json!({ "key": "another-key" })),
    ] {
        seed::seed(&store).await.expect(case);
        let slug = Slug::parse(slug).expect("a slug");
        change::update(&store, &ChangedBy::CLI, &slug, fields(change)).await.expect(case);
        assert_eq!(seed::seed(&store).await.expect(case), seed::Seeded::Present, "{case}");
    }
    assert_eq!(store.list().await.expect("a list").apps.len(), 1);
}
