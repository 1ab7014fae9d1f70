//! `herald apps`.

use super::*;

#[test]
fn an_app_lives_from_create_to_delete() {
    let place = Place::seeded();
    place.run(&["apps", "delete", "test-app", "--yes"]).succeeded();
    let create = ["apps", "create", "--name", "Foo app", "--origin", "//*.example.com", "--json"];
    let created = place.run(&create).json();
    assert_eq!(created["data"]["slug"], "foo-app");
    assert_eq!(created["data"]["allowed_origins"], serde_json::json!(["//*.example.com"]));
    assert_eq!(created["data"]["client_events"], "authorized");

    assert_eq!(place.run(&["apps", "show", "foo-app", "--json"]).json(), created);
    let secret = created["data"]["secret"].as_str().expect("a secret");
    let shown = place.run(&["apps", "show", "foo-app"]);
    let line = |field: &str, value: &str| format!("\n{field:<20}  {value}\n");
    assert!(shown.succeeded().contains(&line("secret", secret)), "{shown:?}");
    assert!(shown.succeeded().contains(&line("history_seconds", "default")), "{shown:?}");

    let update = ["apps", "update", "foo-app", "--active", "false", "--any-origin", "--new-secret"];
    let shown = place.run(&update);
    assert!(shown.succeeded().contains(&line("active", "false")), "{shown:?}");
    let updated = place.run(&["apps", "show", "foo-app", "--json"]).json();
    assert_eq!(updated["data"]["active"], false);
    assert_eq!(updated["data"]["allowed_origins"], serde_json::json!([]));
    assert_eq!(updated["data"]["key"], created["data"]["key"]);
    assert_ne!(updated["data"]["secret"], created["data"]["secret"]);

    let renamed = place.run(&["apps", "update", "foo-app", "--name", "Bar app", "--json"]).json();
    assert_eq!(renamed["data"]["slug"], "bar-app");

    assert_eq!(place.run(&["apps", "delete", "bar-app", "--yes"]).succeeded(), "deleted bar-app\n");
    assert_eq!(place.run(&["apps", "list", "--json"]).json(), serde_json::json!({"data": []}));
}

#[test]
fn an_app_is_given_a_new_pair_and_keeps_the_old_one_for_a_while() {
    let place = Place::seeded();
    let old = place.run(&["apps", "show", "test-app", "--json"]).json();
    let rotate = ["apps", "rotate", "test-app", "--overlap-seconds", "60"];
    let rotated = place.run(&rotate);
    let shown = place.run(&["apps", "show", "test-app"]);
    assert_eq!(rotated.succeeded(), shown.succeeded());
    let line = |field: &str, value: &str| format!("\n{field:<25}  {value}\n");
    assert!(shown.out.contains(&line("previous_key", "test-app-fake-key")), "{shown:?}");
    assert!(shown.out.contains(&line("previous_key_last_used_at", "never")), "{shown:?}");
    assert!(shown.out.contains("\nprevious_key_expires_at    20"), "{shown:?}");
    rotated.never_says("test-app-fake-secret");
    let new = place.run(&["apps", "show", "test-app", "--json"]).json();
    assert_eq!(new["data"]["previous_key"], old["data"]["key"]);
    for field in ["key", "secret"] {
        assert_ne!(new["data"][field], old["data"][field]);
    }
    let again = place.run(&["apps", "rotate", "test-app", "--json"]).json();
    assert_eq!(again["data"]["previous_key"], new["data"]["key"]);
    let ended = place.run(&["apps", "rotate", "test-app", "--overlap-seconds", "0", "--json"]);
    assert_eq!(ended.json()["data"]["previous_key"], Value::Null);
    for overlap in ["-1", "1e9", "x", "2592001"] {
        let flag = format!("--overlap-seconds={overlap}");
        let refused = place.run(&["apps", "rotate", "test-app", &flag]);
        let expected = "overlap_seconds must be a whole number from 0 to 2592000";
        assert!(refused.failed(1).contains(expected), "{refused:?}");
    }
    place.run(&["apps", "rotate", "no-app"]).failed(1);
}

#[test]
fn an_app_says_how_much_history_it_has_or_leaves_it_to_the_server() {
    let place = Place::seeded();
    let history = |app: &serde_json::Value| {
        (app["data"]["history_publications"].clone(), app["data"]["history_seconds"].clone())
    };
    let create = ["apps", "create", "--name", "foo-app", "--history-publications", "0", "--json"];
    let created = place.run(&create).json();
    assert_eq!(history(&created), (0.into(), serde_json::Value::Null));

    for (publications, seconds, expected) in [
        ("500", "86400", (500.into(), 86_400.into())),
        ("default", "60", (serde_json::Value::Null, 60.into())),
        ("7", "default", (7.into(), serde_json::Value::Null)),
    ] {
        let flags =
            ["--history-publications", publications, "--history-seconds", seconds, "--json"];
        let updated = place.run(&[&["apps", "update", "foo-app"][..], &flags].concat()).json();
        assert_eq!(history(&updated), expected, "{publications} {seconds}");
    }
    let shown = place.run(&["apps", "show", "foo-app"]);
    let expected = "\nhistory_publications  7\nhistory_seconds       default\n";
    assert!(shown.succeeded().contains(expected), "{shown:?}");

    let flags = ["--history-publications", "100001", "--history-seconds", "5m"];
    let refused = place.run(&[&["apps", "update", "foo-app"][..], &flags].concat());
    assert_eq!(
        refused.failed(1),
        "herald: history_publications must be a whole number from 0 to 100000; \
         history_seconds must be a whole number from 0 to 604800"
    );
    let help = place.run(&["apps", "update", "--help"]);
    assert!(help.succeeded().contains("--history-seconds <NUMBER|default>"), "{help:?}");
}

#[test]
fn the_list_of_apps_shows_no_secret() {
    let place = Place::seeded();
    let list = place.run(&["apps", "list"]);
    assert_eq!(
        list.succeeded(),
        "slug      name      key                state\n\
         test-app  Test App  test-app-fake-key  active\n"
    );
    list.never_says("test-app-fake-secret");
    let data = place.run(&["apps", "list", "--json"]).json();
    assert_eq!(data["data"][0]["slug"], "test-app");
}

#[test]
fn an_app_that_is_not_valid_is_refused_with_all_its_faults() {
    let place = Place::seeded();
    let done = place.run(&["apps", "create", "--name", "Foo", "--origin", "example.com"]);
    let line = done.failed(1);
    assert!(line.contains("name should be at least 5 character(s)"), "{line}");
    assert!(line.contains("allowed_origins"), "{line}");

    let taken = place.run(&["apps", "create", "--name", "Test App"]);
    assert!(taken.failed(1).contains("name has already been taken"), "{taken:?}");

    let key = ["--key", "test-app-fake-key"];
    let taken = place.run(&[&["apps", "create", "--name", "Foo app"][..], &key].concat());
    assert_eq!(taken.failed(1), "herald: key has already been taken");
    place.run(&["apps", "create", "--name", "Foo app"]).succeeded();
    let taken = place.run(&[&["apps", "update", "foo-app"][..], &key].concat());
    assert_eq!(taken.failed(1), "herald: key has already been taken");
}

#[test]
fn an_app_that_is_not_there_is_named() {
    let place = Place::seeded();
    for args in [
        &["apps", "show", "nope"][..],
        &["apps", "update", "nope", "--active", "true"],
        &["apps", "delete", "nope", "--yes"],
        &["token", "--app", "nope"],
        &["trigger", "--app", "nope", "--channel", "foo", "--event", "msg"],
    ] {
        let expected = "herald: there is no app nope: `herald apps list` shows all";
        assert_eq!(place.run(args).failed(1), expected, "{args:?}");
    }
}

#[test]
fn a_deletion_without_a_terminal_needs_yes_and_an_update_needs_a_change() {
    let place = Place::seeded();
    let unasked = place.run_with_input(&["apps", "delete", "test-app"], "test-app\n");
    let expected = "herald: standard input is no terminal to ask at: confirm with --yes to delete \
                    test-app, its key and secret, for good";
    assert_eq!(unasked.failed(2), expected);
    assert!(place.run(&["apps", "list"]).succeeded().contains("test-app"));
    let nothing = place.run(&["apps", "update", "test-app"]);
    assert!(nothing.failed(2).contains("nothing to change"), "{nothing:?}");
}

#[test]
fn a_secret_comes_from_the_environment_not_from_the_command_line() {
    let place = Place::seeded().with("APP_SECRET", "hush-hush-hush-hush");
    let create =
        ["apps", "create", "--name", "Foo app", "--secret-env", "APP_SECRET", "--key", "k1"];
    place.run(&create).succeeded();
    assert_eq!(place.secret_of("foo-app"), "hush-hush-hush-hush");

    let short = Place::seeded().with("APP_SECRET", "hush");
    let refused = short.run(&create);
    assert!(refused.failed(1).contains("secret"), "{refused:?}");
    refused.never_says("hush");
    let padded = Place::seeded().with("APP_SECRET", "hush-hush-hush-hush ").run(&create);
    let expected = "herald: secret must not begin or end with white space";
    assert_eq!(padded.failed(1), expected);
    let missing = Place::new().run(&create);
    assert!(missing.failed(1).contains("APP_SECRET holds no secret"), "{missing:?}");
}
