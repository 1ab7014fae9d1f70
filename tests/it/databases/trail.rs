//! The audit trail, written in the transaction of each change.

use super::*;

on_both_databases! {
    every_change_leaves_an_entry_that_outlives_the_app
    a_change_of_an_app_that_was_renamed_meanwhile_is_noted_under_its_new_slug
    a_page_of_the_audit_trail_ends_before_an_entry
    old_entries_are_removed_and_others_stay
    an_entry_that_cannot_be_written_undoes_the_change
}

async fn every_change_leaves_an_entry_that_outlives_the_app(database: &TestDatabase) {
    let store = database.migrated().await;
    let address = "2001:db8::1".parse().expect("an address");
    let (admin, cli) = (ChangedBy::admin(address), ChangedBy::CLI);
    let given = json!({ "name": "foo-app", "client_events": "all", "active": true });
    let created = change::create(&store, &admin, fields(given)).await.expect("an app");
    let other = App { id: AppId(created.id.0 + 1), ..created.clone() };
    let (app, other) = (ChangedBy::app(&created, address), ChangedBy::app(&other, address));
    let foreign = change::update(&store, &other, &created.slug, fields(json!({ "key": "" }))).await;
    assert!(matches!(foreign, Err(ChangeError::NotPermitted)), "an app changes itself only");
    let foreign = change::rotate(&store, &other, &created.slug, overlap(60)).await;
    assert!(matches!(foreign, Err(ChangeError::NotPermitted)), "an app rotates itself only");
    for (by, given) in [
        (&app, json!({ "history_seconds": 7, "client_events": "all" })),
        (&cli, json!({ "history_seconds": "7", "nonsense": 1 })),
        (&cli, json!({})),
        (&admin, json!({ "secret": "", "active": false, "allowed_origins": ["//a.example"] })),
    ] {
        change::update(&store, by, &created.slug, fields(given)).await.expect("a change");
    }
    let faulty = fields(json!({ "name": "x" }));
    change::update(&store, &cli, &created.slug, faulty).await.expect_err("a fault");
    let with_new_secret = store.find(&created.slug).await.expect("a look").expect("an app");
    let app = ChangedBy::app(&with_new_secret, address);
    change::rotate(&store, &app, &created.slug, overlap(60)).await.expect("a rotation");
    let renamed = fields(json!({ "name": "bar-app" }));
    let bar = change::update(&store, &admin, &created.slug, renamed).await.expect("a change");
    change::delete(&store, &admin, &bar.slug).await.expect("a deletion");
    change::delete(&store, &admin, &bar.slug).await.expect_err("it is gone");
    assert_eq!(seed::seed(&store).await.expect("a seed"), seed::Seeded::Created);
    assert_eq!(seed::seed(&store).await.expect("a seed"), seed::Seeded::Present);
    let expected = [
        ("admin", true, "create", "foo-app", "name slug key secret client_events"),
        ("app", true, "update", "foo-app", "history_seconds"),
        ("admin", true, "update", "foo-app", "secret active allowed_origins"),
        ("app", true, "rotate", "foo-app", "key secret"),
        ("admin", true, "update", "bar-app", "name slug"),
        ("admin", true, "delete", "bar-app", ""),
        ("cli", false, "create", "test-app", "name slug key secret client_events"),
    ];
    let expected = expected.map(|(actor, has_address, action, app, fields)| {
        let address = has_address.then(|| "2001:db8::1".to_owned());
        (actor.to_owned(), address, action.to_owned(), app.to_owned(), fields.to_owned())
    });
    assert_eq!(trail(&store).await, expected);
    let of = async |of| store.audit(&AuditPage { of, ..all(9) }).await.expect("a trail").len();
    assert_eq!(of(Of::App(created.id)).await, 6, "under all its slugs");
    assert_eq!(of(Of::Slug(slug("foo-app"))).await, 4);
    assert_eq!(of(Of::App(AppId(created.id.0 + 9))).await, 0);
}

async fn a_change_of_an_app_that_was_renamed_meanwhile_is_noted_under_its_new_slug(
    database: &TestDatabase,
) {
    let store = database.migrated().await;
    let read = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    let renamed = fields(json!({ "name": "bar-app" }));
    change::update(&store, &ChangedBy::CLI, &read.slug, renamed).await.expect("a change");
    let values = AppValues { key: "chosen".into(), ..AppValues::from(&read) };
    let late = store.update(&ChangedBy::CLI, &read, &values).await.expect("an answer");
    assert_eq!(late.expect("an app").slug.as_str(), "bar-app");
    let apps: Vec<_> = trail(&store).await.into_iter().map(|entry| entry.3).collect();
    assert_eq!(apps, ["foo-app", "bar-app", "bar-app"]);
}

async fn a_page_of_the_audit_trail_ends_before_an_entry(database: &TestDatabase) {
    let store = database.migrated().await;
    for name in ["foo-app", "bar-app", "baz-app", "qux-app", "one-app"] {
        store.insert(&ChangedBy::CLI, &named(name)).await.expect("an app");
    }
    let (mut before, mut read) = (None, Vec::new());
    loop {
        let page = store.audit(&AuditPage { before, ..all(2) }).await.expect("a page");
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        read.extend(page.into_iter().map(|entry| entry.app));
        // Entries that are added meanwhile do not shift the pages.
        store
            .insert(&ChangedBy::CLI, &named(&format!("more-{}", read.len())))
            .await
            .expect("an app");
    }
    assert_eq!(read, ["one-app", "qux-app", "baz-app", "bar-app", "foo-app"]);
}

async fn old_entries_are_removed_and_others_stay(database: &TestDatabase) {
    let store = database.migrated().await;
    for name in ["old-app", "foo-app"] {
        store.insert(&ChangedBy::CLI, &named(name)).await.expect("an app");
    }
    let garbled = "UPDATE audit SET at = '2026-01-01 00:00:00+00:00', fields = '{' \
                   WHERE app = 'old-app'";
    database.sql(garbled).await;
    let entries = store.audit(&all(9)).await.expect("a trail");
    assert_eq!((entries.len(), entries[1].fields.len()), (2, 0), "one garbled row hides no other");
    let running = Running::start(store.clone(), NEVER).await;
    let swept = repeat_until(async || trail(&store).await.len() <= 1);
    before_the_deadline("the sweep", swept).await;
    let left = running.registry.send(read_audit(all(9))).await.expect("a living registry");
    let left: Vec<_> = left.expect("a trail").into_iter().map(|entry| entry.app).collect();
    assert_eq!(left, ["foo-app"]);
    store.forget_audit(chrono::Utc::now()).await.expect("a sweep");
    assert_eq!(trail(&store).await, []);
    assert_eq!(store.list().await.expect("a list").apps.len(), 2, "the apps stay");
}

async fn an_entry_that_cannot_be_written_undoes_the_change(database: &TestDatabase) {
    let store = database.migrated().await;
    let app = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    database.sql("ALTER TABLE audit RENAME TO elsewhere").await;
    let given = || fields(json!({ "active": false }));
    let created =
        change::create(&store, &ChangedBy::CLI, fields(json!({ "name": "bar-app" }))).await;
    assert_unavailable(&created);
    assert_unavailable(&change::update(&store, &ChangedBy::CLI, &app.slug, given()).await);
    assert_unavailable(&change::rotate(&store, &ChangedBy::CLI, &app.slug, overlap(60)).await);
    assert_unavailable(&change::delete(&store, &ChangedBy::CLI, &app.slug).await);
    database.sql("ALTER TABLE elsewhere RENAME TO audit").await;
    let apps = store.list().await.expect("a list").apps;
    let [only] = apps.as_slice() else { panic!("{apps:?}") };
    assert_eq!((pair_of(only), only.settings.active), (pair_of(&app), true));
    assert_eq!(trail(&store).await.len(), 1);
}
