//! `herald migrate` and `herald seed`, and a database that is not ready.

use super::*;

#[test]
fn migrations_go_up_and_down() {
    let place = Place::with_folder();
    let database = place.database();
    let state = |place: &Place| {
        let migrations = place.run(&["migrate", "status", "--json"]).json();
        let all = migrations.as_array().expect("a list").iter();
        all.map(|m| m["applied"].as_bool().expect("a flag")).collect::<Vec<_>>()
    };
    let up = place.run(&["migrate", "up"]);
    assert!(up.succeeded().starts_with("applied m"), "{up:?}");
    assert!(up.out.ends_with(&format!(" to {database}\n")), "{up:?}");
    let all = state(&place);
    assert!(all.iter().all(|applied| *applied));
    let again = place.run(&["migrate", "up", "--steps", "1"]);
    assert_eq!(again.succeeded(), format!("nothing to do in {database}\n"));
    let status = place.run(&["migrate", "status"]);
    assert!(status.succeeded().starts_with(&format!("{database}\n\nmigration ")), "{status:?}");
    assert!(status.out.contains("  applied\n"), "{status:?}");
    let steps = all.len().to_string();
    let down = ["migrate", "down", "--steps", &steps];
    let unasked = place.run_with_input(&down, "yes\n");
    let names = place.run(&["migrate", "status", "--json"]).json();
    let names = names.as_array().expect("a list").iter().rev();
    let names: Vec<_> = names.map(|m| m["name"].as_str().expect("a name")).collect();
    let expected = format!(
        "herald: standard input is no terminal to ask at: confirm with --yes to revert {}, and drop the \
         data of their tables and columns",
        names.join(", ")
    );
    assert_eq!(unasked.failed(2), expected);
    assert_eq!(state(&place), all);
    let down = place.run(&[&down[..], &["--yes"]].concat());
    assert!(down.succeeded().starts_with("reverted m"), "{down:?}");
    assert!(down.out.ends_with(&format!(" from {database}\n")), "{down:?}");
    assert!(state(&place).iter().all(|applied| !*applied));
    assert!(place.run(&["migrate", "status"]).succeeded().contains("  pending\n"));
    let again = place.run(&["migrate", "down"]);
    assert_eq!(again.succeeded(), format!("nothing to do in {database}\n"), "nobody is asked");
}

#[test]
fn a_database_that_a_newer_version_has_migrated_says_how_to_go_back() {
    let place = Place::with_folder().with("PORT", "0");
    place.run(&["migrate", "up"]).succeeded();
    let runtime = actix::System::new();
    for name in ["m20991231_000002_later", "m20991231_000001_late"] {
        let applied = format!("INSERT INTO seaql_migrations VALUES ('{name}', 0)");
        runtime.block_on(sql(&place.database(), &applied));
    }
    let expected = format!(
        "herald: database cannot be used: {}: a newer Herald has migrated it (its newest migration is \
         m20991231_000002_later): use that version, or let it undo what this version does not know: \
         `herald migrate down --steps 2`",
        place.database()
    );
    for args in [
        &["migrate", "up"][..],
        &["migrate", "down", "--yes"],
        &["migrate", "status"],
        &["serve"],
        &["apps", "list"],
    ] {
        let done = place.run(args);
        assert_eq!((done.code, done.err.lines().last()), (Some(1), Some(&*expected)), "{args:?}");
    }
}

#[test]
fn no_command_leaves_a_database_in_the_wrong_folder() {
    let place = Place::new();
    let database = place.database();
    let no_file = "there is no such file; run this in the folder where the server runs, or name the \
                   server's database in DATABASE_URL";
    let no_folder = "its folder does not exist; make the folder first, run this where the server \
                     runs, or name the server's database in DATABASE_URL";
    for (args, why) in [
        (&["apps", "list"][..], no_file),
        (&["apps", "create", "--name", "Foo app"], no_file),
        (&["apps", "show", "foo-app"], no_file),
        (&["apps", "update", "foo-app", "--active", "false"], no_file),
        (&["apps", "delete", "foo-app", "--yes"], no_file),
        (&["token", "--app", "test-app", "--listen", "private:test-app:*"], no_file),
        (&["trigger", "--app", "test-app", "--channel", "foo", "--event", "msg"], no_file),
        (&["migrate", "status"], no_file),
        (&["migrate", "down"], no_file),
        (&["migrate", "up"], no_folder),
        (&["seed"], no_folder),
    ] {
        let expected = format!("herald: database cannot be used: {database}: {why}");
        assert_eq!(place.run(args).failed(1), expected, "{args:?}");
    }
    assert_eq!(std::fs::read_dir(place.path()).expect("a folder").count(), 0);
}

#[test]
fn commands_name_the_migration_that_is_pending() {
    let place = Place::with_folder().with("HERALD__DATABASE__MIGRATE", "false");
    place.run(&["migrate", "up"]).succeeded();
    place.run(&["migrate", "down", "--steps", "99", "--yes"]).succeeded();
    for args in [
        &["apps", "list"][..],
        &["seed"],
        &["token", "--app", "test-app"],
        &["trigger", "--app", "test-app", "--channel", "foo", "--event", "msg"],
    ] {
        let done = place.run(args);
        let database = place.database();
        let expected = format!(
            "herald: the database {database} has pending migrations: run `herald migrate up`"
        );
        assert_eq!(done.failed(1), expected, "{args:?}");
    }
}

#[test]
fn seeding_twice_changes_nothing_and_production_refuses() {
    let place = Place::seeded();
    place.run(&["apps", "update", "test-app", "--client-events", "none"]).succeeded();
    assert_eq!(
        place.run(&["seed"]).succeeded(),
        "an app with the slug or the key of test-app exists already\n"
    );
    let app = place.run(&["apps", "show", "test-app", "--json"]).json();
    assert_eq!(app["data"]["client_events"], "none");
    assert_eq!(app["data"]["key"], "test-app-fake-key");
    assert_eq!(app["data"]["secret"], "test-app-fake-secret");

    let production = Place::new()
        .with("HERALD_ENV", "production")
        .with("PUSHER_ADMIN_PASSWORD", "correct-horse-battery")
        .with("DATABASE_URL", "sqlite://herald.db")
        .with("SECRET_KEY_BASE", "0123456789abcdef0123456789abcdef");
    production.run(&["migrate", "up"]).succeeded();
    let refused = production.run(&["seed"]);
    assert!(refused.failed(1).contains("production seeds nothing"), "{refused:?}");
    assert_eq!(production.run(&["apps", "list"]).succeeded(), "slug  name  key  state\n");
}

#[test]
fn an_app_is_not_seeded_beside_another_with_its_name() {
    let place = Place::seeded().with("PORT", "0");
    place.run(&["apps", "delete", "test-app", "--yes"]).succeeded();
    let other = ["apps", "create", "--name", "Test App", "--slug", "other-app"];
    place.run(&other).succeeded();
    let why = "name has already been taken";
    assert_eq!(
        place.run(&["seed"]).failed(1),
        format!("herald: cannot create the app test-app: {why}")
    );
    let start = place.run(&["serve"]);
    let expected = format!(
        "herald: cannot create the app test-app, which database.seed = true requires: {why}"
    );
    assert_eq!((start.code, start.err.lines().last()), (Some(1), Some(&*expected)));
}

#[test]
fn a_migration_that_people_must_prepare_says_how() {
    let place = Place::with_folder().with("PORT", "0");
    place.run(&["migrate", "up", "--steps", "1"]).succeeded();
    let runtime = actix::System::new();
    for slug in ["foo-app", "bar-app"] {
        let app = format!(
            "INSERT INTO apps (name, slug, key, secret) VALUES ('{slug}', '{slug}', 'k', 's')"
        );
        runtime.block_on(sql(&place.database(), &app));
    }
    let database = place.database();
    let expected = format!(
        "herald: database cannot be used: {database}: a migration failed: apps have the same key \
         (foo-app, bar-app), and keys must be unique from this version on; let one app of each group \
         keep it and give every other a key of its own, in SQL (UPDATE apps SET key = '<new key>' \
         WHERE slug = '<slug>') or with the previous version (herald apps update <slug> --new-key), \
         then migrate again"
    );
    for args in [&["migrate", "up"][..], &["serve"], &["apps", "list"]] {
        let done = place.run(args);
        assert_eq!((done.code, done.err.lines().last()), (Some(1), Some(&*expected)), "{args:?}");
    }
}

#[test]
fn a_database_that_cannot_be_used_is_one_line_without_its_password() {
    let file = Place::new().with("DATABASE_URL", "sqlite:///dev/null/below/herald.db");
    assert!(file.run(&["apps", "list"]).failed(1).starts_with("herald: database cannot be used"));

    let away = Place::new()
        .with("DATABASE_URL", "postgres://herald:hush-hush@127.0.0.1:1/herald")
        .with("HERALD__DATABASE__CONNECT_RETRY", "0s");
    let done = away.run(&["migrate", "up"]);
    assert!(done.failed(1).starts_with("herald: database is unavailable"), "{done:?}");
    done.never_says("hush-hush");
}
