//! Key pairs: rotations, the overlap with the previous pair, and last uses.

use super::*;

on_both_databases! {
    a_rotation_keeps_the_pair_before_it_with_its_last_use
    racing_rotations_lose_no_pair_that_was_answered
    an_application_whose_pair_has_ended_since_it_was_judged_changes_nothing
    a_previous_pair_that_is_incomplete_is_none
    a_pair_that_has_ended_is_removed_and_leaves_its_key
    of_two_last_uses_the_later_one_is_kept
    servers_that_write_last_uses_do_not_deadlock
    the_registry_ends_a_pair_in_time_even_during_an_outage
    the_registry_writes_last_uses_and_announces_none
}

fn previous_of(app: &App) -> Option<(String, String)> {
    let pair = app.previous.as_ref()?;
    Some((pair.key.clone(), pair.secret.expose_secret().to_owned()))
}

async fn a_rotation_keeps_the_pair_before_it_with_its_last_use(database: &TestDatabase) {
    let store = database.migrated().await;
    let first = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    let other = store.insert(&ChangedBy::CLI, &named("bar-app")).await.expect("an app");
    let at = "2026-11-28T10:00:00Z".parse().expect("a time");
    store.write_uses(&[use_of(&first, at)]).await.expect("a use");
    let rotate = async |seconds| {
        let rotated = change::rotate(&store, &ChangedBy::CLI, &first.slug, overlap(seconds)).await;
        let rotated = rotated.expect("a rotation");
        let found = store.find(&first.slug).await.expect("a look").expect("an app");
        for app in [&rotated, &found] {
            assert_eq!((app.id, &app.name), (first.id, &first.name));
            assert_eq!(pair_of(app), pair_of(&rotated));
            assert_eq!(previous_of(app), previous_of(&rotated));
            assert!(app.updated_at > first.updated_at && app.inserted_at == first.inserted_at);
        }
        rotated
    };
    let second = rotate(60).await;
    assert_eq!(previous_of(&second), Some(pair_of(&first)));
    assert_ne!(pair_of(&second), pair_of(&first));
    let previous = second.previous.as_ref().expect("a previous pair");
    assert_eq!((previous.last_use.at(), second.last_use.at()), (Some(at), None));
    assert_eq!(previous.expires_at, second.updated_at + Duration::from_secs(60));
    let third = rotate(60).await;
    assert_eq!(previous_of(&third), Some(pair_of(&second)));
    assert_eq!(third.previous.as_ref().and_then(|pair| pair.last_use.at()), None);
    let fourth = rotate(0).await;
    assert_eq!(previous_of(&fourth), None);
    let untouched = store.find(&other.slug).await.expect("a look").expect("an app");
    assert_eq!((pair_of(&untouched), untouched.updated_at), (pair_of(&other), other.updated_at));
    let unknown =
        change::rotate(&store, &ChangedBy::CLI, &slug("no-app"), Overlap::default()).await;
    assert!(matches!(unknown, Err(ChangeError::NotFound)), "{unknown:?}");
}

async fn racing_rotations_lose_no_pair_that_was_answered(database: &TestDatabase) {
    let one = database.migrated().await;
    let other = database.connect().await;
    let app = one.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    for _ in 0..5 {
        let racers = [&one, &other];
        let racers =
            racers.map(|store| change::rotate(store, &ChangedBy::CLI, &app.slug, overlap(60)));
        let rotated = join_all(racers).await;
        let mut answered: Vec<_> =
            rotated.iter().map(|app| pair_of(app.as_ref().expect("a rotation"))).collect();
        let now = one.find(&app.slug).await.expect("a look").expect("an app");
        let mut valid = vec![pair_of(&now), previous_of(&now).expect("a previous pair")];
        answered.sort();
        valid.sort();
        assert_eq!(valid, answered);
    }
}

async fn an_application_whose_pair_has_ended_since_it_was_judged_changes_nothing(
    database: &TestDatabase,
) {
    let store = database.migrated().await;
    let mut judged = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    for seconds in [60, 0] {
        let by = ChangedBy::app(&judged, "192.0.2.1".parse().expect("an address"));
        let now = change::rotate(&store, &ChangedBy::CLI, &judged.slug, overlap(seconds)).await;
        let now = now.expect("a rotation");
        let is_refusal = |error: ChangeError| match error {
            ChangeError::PreviousPair => seconds > 0,
            ChangeError::NotPermitted => seconds == 0,
            _ => false,
        };
        for given in [json!({}), json!({ "history_seconds": 7 }), json!({ "secret": "" })] {
            let changed = change::update(&store, &by, &judged.slug, fields(given)).await;
            assert!(is_refusal(changed.expect_err("a refusal")), "{seconds}");
        }
        let rotated = change::rotate(&store, &by, &judged.slug, overlap(0)).await;
        assert!(is_refusal(rotated.expect_err("a refusal")), "{seconds}");
        // The rotation may also come after the look at the row, and before the change of it.
        let values = AppValues { key: "chosen".into(), ..AppValues::from(&judged) };
        let late = store.update(&by, &judged, &values).await.expect("an answer");
        assert!(late.is_none(), "{seconds}");
        let pair = NewPair::random();
        let late = store.rotate(&by, &judged, &pair, overlap(0)).await.expect("an answer");
        assert!(late.is_none(), "{seconds}");
        let found = store.find(&judged.slug).await.expect("a look").expect("an app");
        assert_eq!((pair_of(&found), found.updated_at), (pair_of(&now), now.updated_at));
        judged = found;
    }
    let by = ChangedBy::app(&judged, "192.0.2.1".parse().expect("an address"));
    change::rotate(&store, &by, &judged.slug, overlap(0)).await.expect("its current pair may");
}

async fn a_previous_pair_that_is_incomplete_is_none(database: &TestDatabase) {
    let store = database.migrated().await;
    let first = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    for column in ["previous_key", "previous_secret", "previous_key_expires_at"] {
        let new = change::rotate(&store, &ChangedBy::CLI, &first.slug, overlap(60))
            .await
            .expect("a rotation");
        database.sql(&format!("UPDATE apps SET {column} = NULL")).await;
        let found = store.find(&first.slug).await.expect("a look").expect("an app");
        assert_eq!((pair_of(&found), previous_of(&found)), (pair_of(&new), None), "{column}");
    }
    for column in ["previous_key", "previous_secret"] {
        change::rotate(&store, &ChangedBy::CLI, &first.slug, overlap(60))
            .await
            .expect("a rotation");
        database.sql(&format!("UPDATE apps SET {column} = ''")).await;
        let found = store.find(&first.slug).await.expect("a look").expect("an app");
        assert_eq!(previous_of(&found), None, "an empty {column}");
    }
}

/// Sets the end of the overlap of all previous pairs to a time in the past.
async fn end_all_overlaps(database: &TestDatabase) {
    database.sql("UPDATE apps SET previous_key_expires_at = '2026-11-28 00:00:00+00:00'").await;
}

async fn a_pair_that_has_ended_is_removed_and_leaves_its_key(database: &TestDatabase) {
    let store = database.migrated().await;
    let first = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    let kept = store.insert(&ChangedBy::CLI, &named("bar-app")).await.expect("an app");
    change::rotate(&store, &ChangedBy::CLI, &first.slug, overlap(60)).await.expect("a rotation");
    end_all_overlaps(database).await;
    let kept =
        change::rotate(&store, &ChangedBy::CLI, &kept.slug, overlap(60)).await.expect("a rotation");
    let listing = store.list().await.expect("a list");
    assert!(listing.has_ended_pairs);
    assert_eq!(
        listing.apps.iter().map(previous_of).collect::<Vec<_>>(),
        [None, previous_of(&kept)]
    );

    // The row still holds the previous key, but another app may take it.
    let fields = fields(json!({ "name": "Another", "key": first.key }));
    let another = change::create(&store, &ChangedBy::CLI, fields).await.expect("the key is free");
    change::rotate(&store, &ChangedBy::CLI, &another.slug, overlap(60)).await.expect("a rotation");
    end_all_overlaps(database).await;
    assert!(store.list().await.expect("a list").has_ended_pairs);
    store.forget_ended_pairs().await.expect("a sweep");
    assert!(!store.list().await.expect("a list").has_ended_pairs);
    let row = "SELECT COUNT(*) AS n FROM apps WHERE previous_secret IS NOT NULL \
               OR previous_key IS NOT NULL OR previous_key_last_used_at IS NOT NULL";
    assert_eq!(database.count(row).await, 0, "nothing of the pairs is left");
}

/// A use of an app's current pair.
fn use_of(app: &App, at: chrono::DateTime<chrono::Utc>) -> PairUse {
    let (key, secret) = (app.key.clone(), app.secret.clone());
    PairUse { app: app.id, key, secret, at, last_use: Arc::default() }
}

async fn of_two_last_uses_the_later_one_is_kept(database: &TestDatabase) {
    let store = database.migrated().await;
    let first = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    let at = |minute: u32| {
        format!("2026-11-28T10:{minute:02}:00Z").parse::<chrono::DateTime<chrono::Utc>>()
    };
    let at = |minute| at(minute).expect("a time");
    let look = async || {
        let app = store.find(&first.slug).await.expect("a look").expect("an app");
        (app.last_use.at(), app.previous.and_then(|pair| pair.last_use.at()), app.updated_at)
    };
    for (minute, expected) in [(5, 5), (3, 5), (7, 7)] {
        store.write_uses(&[use_of(&first, at(minute))]).await.expect("a use");
        assert_eq!(look().await, (Some(at(expected)), None, first.updated_at), "{minute}");
    }
    let second = change::rotate(&store, &ChangedBy::CLI, &first.slug, overlap(60))
        .await
        .expect("a rotation");
    let uses = [use_of(&first, at(9)), use_of(&second, at(8))];
    store.write_uses(&uses).await.expect("uses");
    assert_eq!(look().await, (Some(at(8)), Some(at(9)), second.updated_at));
    let third = change::rotate(&store, &ChangedBy::CLI, &first.slug, overlap(60))
        .await
        .expect("a rotation");
    store.write_uses(&uses).await.expect("a pair that has ended is no fault");
    assert_eq!(look().await, (None, Some(at(8)), third.updated_at));
    let given = fields(json!({ "secret": "" }));
    store.write_uses(&[use_of(&third, at(10))]).await.expect("a use");
    change::update(&store, &ChangedBy::CLI, &first.slug, given).await.expect("a change");
    let (current, previous, _) = look().await;
    assert_eq!((current, previous), (None, Some(at(8))), "a new secret makes a new pair");
}

async fn servers_that_write_last_uses_do_not_deadlock(database: &TestDatabase) {
    let store = database.migrated().await;
    let first = store.insert(&ChangedBy::CLI, &named("foo-app")).await.expect("an app");
    let second = store.insert(&ChangedBy::CLI, &named("bar-app")).await.expect("an app");
    // Another server writes its uses of the first app, and then those of the second one.
    let other = database.connection().await;
    let transaction = other.begin().await.expect("a transaction");
    let touch = async |app: &App| {
        let touch = format!("UPDATE apps SET updated_at = updated_at WHERE id = {}", app.id.0);
        before_the_deadline("the lock", transaction.execute_unprepared(&touch)).await
    };
    touch(&first).await.expect("a lock");
    let at = "2026-11-28T10:00:00Z".parse().expect("a time");
    let uses = [use_of(&second, at), use_of(&first, at)];
    let mut write = pin!(store.write_uses(&uses));
    // The server waits for the other one.
    assert!(timeout(Duration::from_millis(300), &mut write).await.is_err());
    touch(&second).await.expect("a lock");
    transaction.commit().await.expect("a commit");
    write.await.expect("the uses are written");
    other.close().await.expect("an orderly end");
    let apps = store.list().await.expect("a list").apps;
    assert!(apps.iter().all(|app| app.last_use.at() == Some(at)), "{apps:?}");
}

async fn the_registry_ends_a_pair_in_time_even_during_an_outage(database: &TestDatabase) {
    let store = database.migrated().await;
    let mut running = Running::start(store.clone(), NEVER).await;
    let app = running.create(json!({ "name": "foo-app" })).await.expect("an app");
    running.create(json!({ "name": "bar-app" })).await.expect("an app");
    running.rotate("bar-app", Overlap::default()).await.expect("a rotation");
    let rotated = running.rotate("foo-app", overlap(1)).await.expect("a rotation");
    let end = rotated.previous.as_ref().expect("a previous pair").expires_at;
    for _ in 0..2 {
        running.next_seen().await;
    }
    database.sql("ALTER TABLE apps RENAME TO elsewhere").await;
    let (id, _) = running.next_seen().await;
    assert!(id == app.id && chrono::Utc::now() >= end);
    let previous =
        |slug: &str| running.directory.load().by_slug(slug).expect("an app").previous.is_some();
    assert_eq!((previous("foo-app"), previous("bar-app")), (false, true));
    database.sql("ALTER TABLE elsewhere RENAME TO apps").await;
    assert_eq!(previous_of(&running.show("foo-app").await.expect("an app")), None);

    // While the database is available, the pair is removed from it, too.
    running.rotate("foo-app", overlap(1)).await.expect("a rotation");
    let held = "SELECT COUNT(*) AS n FROM apps WHERE previous_key IS NOT NULL";
    assert_eq!(database.count(held).await, 2);
    let removed = repeat_until(async || database.count(held).await <= 1);
    before_the_deadline("the removal", removed).await;
}

async fn the_registry_writes_last_uses_and_announces_none(database: &TestDatabase) {
    let store = database.migrated().await;
    let mut running = Running::start(store.clone(), OFTEN).await;
    running.create(json!({ "name": "foo-app" })).await.expect("an app");
    let directory = running.directory.clone();
    let used = |pair: Pair| directory.load().by_slug("foo-app").expect("an app").note_use(pair);
    used(Pair::Current);
    let shown = running.show("foo-app").await.expect("an app");
    let at = shown.last_use.at().expect("a use that is not written yet");
    let stored = async || store.find(&slug("foo-app")).await.expect("a look").expect("an app");
    assert_eq!(stored().await.last_use.at(), None);
    running.rotate("foo-app", Overlap::default()).await.expect("a rotation");
    running.next_seen().await;
    used(Pair::Current);
    running.registry.send(WriteUses).await.expect("a living registry");
    let app = stored().await;
    assert!(
        app.previous.expect("a pair").last_use.at() == Some(at) && app.last_use.at() >= Some(at)
    );
    assert!(running.seen.try_recv().is_err(), "a use is no change");

    // Another server with the same database has noted a later use.
    let later = LastUse::of_database(Some(at + Duration::from_secs(600))).at().expect("a time");
    let current = stored().await;
    store.write_uses(&[use_of(&current, later)]).await.expect("a use");
    used(Pair::Current);
    running.registry.send(WriteUses).await.expect("a living registry");
    assert_eq!(running.show("foo-app").await.expect("an app").last_use.at(), Some(later));
    assert_eq!(stored().await.last_use.at(), Some(later));
}
