//! Settings as a process finds them: files beside it, its environment, and what stops the start.

use serde_json::Value;

use crate::command_line::Place;

const PASSWORD: &str = "correct-horse-battery";
const KEY: &str = "0123456789abcdef0123456789abcdef";

fn production() -> Place {
    Place::new().with("HERALD_ENV", "production")
}

fn value(config: &Value, key: &str) -> (Value, String) {
    let setting = &config["settings"][key];
    let origin = setting["origin"].as_str().expect("an origin").to_owned();
    (setting["value"].clone(), origin)
}

#[test]
fn check_config_shows_values_and_where_they_came_from() {
    let place = Place::new().with("PORT", "5000").with("HERALD__REGISTRY__REFRESH", "250ms");
    std::fs::create_dir(place.path().join("config")).expect("a folder");
    let file = place.path().join("config/default.toml");
    std::fs::write(file, "[limits]\noutbox_frames_max = 7\n").expect("a file");

    let config = place.run(&["check-config", "--json"]).json();

    assert_eq!(config["environment"], "development");
    for (key, expected, origin) in [
        ("server.port", Value::from(5000), "PORT"),
        ("registry.refresh", "250ms".into(), "HERALD__REGISTRY__REFRESH"),
        ("limits.outbox_frames_max", 7.into(), "config/default.toml"),
        ("limits.ref_bytes_max", 64.into(), "the built-in default.toml"),
        ("database.seed", true.into(), "the built-in development.toml"),
        (
            "secrets.secret_key_base",
            "********".into(),
            "the file data/secret_key_base, which the first start creates",
        ),
    ] {
        assert_eq!(value(&config, key), (expected, origin.into()), "{key}");
    }
    let text = place.run(&["check-config"]);
    assert!(text.succeeded().starts_with("environment: development\n\nsetting "), "{text:?}");
    assert!(!place.path().join("data").exists(), "a look at the settings leaves nothing behind");
}

#[test]
fn check_config_masks_every_secret() {
    let place = production()
        .with("PUSHER_ADMIN_PASSWORD", "hush-hush-admin-password")
        .with("SECRET_KEY_BASE", "hush-hush-base-0123456789abcdef-0123456789")
        .with("GUARDIAN_SECRET", "hush-hush-guardian-0123456789abcdef-012345")
        .with("DATABASE_URL", "postgres://herald:hush-hush-db@db/herald?password=hush-hush");
    for args in [&["check-config"][..], &["check-config", "--json"]] {
        let done = place.run(args);
        assert!(done.succeeded().contains("postgres://herald:********@db/herald"), "{done:?}");
        done.never_says("hush-hush");
    }
}

#[test]
fn a_setting_that_cannot_be_honoured_stops_every_command_that_needs_it() {
    let place = Place::new().with("HERALD__SERVER__PROT", "1");
    let expected = "herald: server.prot (from HERALD__SERVER__PROT): there is no such setting; \
                    default.toml lists them all";
    for args in [
        &[][..],
        &["serve"],
        &["check-config"],
        &["migrate", "up"],
        &["seed"],
        &["apps", "list"],
        &["token", "--app", "test-app"],
    ] {
        assert_eq!(place.run(args).failed(1), expected, "{args:?}");
    }
}

#[test]
fn a_mistyped_rust_log_stops_every_command_as_log_filter_does() {
    let right = "must be levels by module, such as \"info\" or \"warn,herald=debug\"";
    let place = Place::new().with("RUST_LOG", "herald=inof");
    let expected = format!("herald: RUST_LOG: {right}, not \"herald=inof\"");
    for args in [&[][..], &["serve"], &["check-config"], &["apps", "list"]] {
        assert_eq!(place.run(args).failed(1), expected, "{args:?}");
    }
    let place = Place::new().with("HERALD__LOG__FILTER", "herald=inof");
    let expected =
        format!("herald: log.filter (from HERALD__LOG__FILTER): {right}, not \"herald=inof\"");
    assert_eq!(place.run(&["check-config"]).failed(1), expected);
    for wrong in ["inof", "inf,herald=debug", "warning"] {
        let run = Place::new().with("RUST_LOG", wrong).run(&["check-config"]);
        let failed = run.failed(1);
        assert!(failed.ends_with(&format!("not \"{wrong}\"")), "{failed}");
    }
    // An empty variable counts as unset.
    for right in ["", "info", "warn,herald=debug", "off", "herald", "INFO/slow"] {
        Place::new().with("RUST_LOG", right).run(&["check-config"]).succeeded();
    }
}

#[test]
fn production_refuses_weak_secrets_without_repeating_them() {
    for (name, weak, expected) in [
        ("PUSHER_ADMIN_PASSWORD", "", "admin.password"),
        ("PUSHER_ADMIN_PASSWORD", "weak-secret", "admin.password (from PUSHER_ADMIN_PASSWORD)"),
        ("PUSHER_ADMIN_PASSWORD", "pusher_admin_password", "admin.password"),
        ("SECRET_KEY_BASE", "", "secrets.secret_key_base"),
        ("SECRET_KEY_BASE", "weak-secret", "secrets.secret_key_base (from SECRET_KEY_BASE)"),
        ("GUARDIAN_SECRET", "weak-secret", "secrets.guardian_secret (from GUARDIAN_SECRET)"),
        ("DATABASE_URL", "", "database.url (from the built-in default.toml): must be set"),
    ] {
        let database = ("DATABASE_URL", "sqlite://herald.db");
        let strong = [("PUSHER_ADMIN_PASSWORD", PASSWORD), ("SECRET_KEY_BASE", KEY), database];
        let strong = strong.into_iter().filter(|(other, _)| *other != name);
        let place = strong.fold(production(), |place, (name, value)| place.with(name, value));
        for args in [&[][..], &["check-config"]] {
            let mut command = place.command(args);
            let done = command.env(name, weak).output().expect("herald runs").into();
            let done: crate::command_line::Done = done;
            assert!(done.failed(1).starts_with(&format!("herald: {expected}")), "{done:?}");
            assert!(weak.is_empty() || !done.err.contains(weak), "{done:?}");
        }
    }
}

#[test]
fn the_default_password_does_not_meet_the_network() {
    let place = Place::new().with("HERALD__SERVER__HOST", "0.0.0.0");
    let done = place.run(&["serve"]);
    assert!(
        done.failed(1).starts_with("herald: admin.password (from the built-in development.toml)")
    );
    done.never_says("pusher_admin_password");
}

#[test]
fn more_sessions_than_files_stop_the_start() {
    let place = Place::new().with("HERALD__LIMITS__SESSIONS_MAX", "9999999");
    let done = place.run(&["check-config"]);
    assert!(
        done.failed(1).starts_with("herald: limits.sessions_max: must be at most "),
        "{done:?}"
    );
}

#[test]
fn a_file_of_authorities_that_cannot_be_read_is_told_before_the_start() {
    let place = Place::new()
        .with("HERALD__ENGINE__KIND", "redis")
        .with("REDIS_URL", "rediss://localhost")
        .with("HERALD__ENGINE__CA_FILE", "absent.pem");
    let expected = "herald: cannot read engine.ca_file: No such file or directory (os error 2)";
    for args in [&["check-config"][..], &["serve"]] {
        let done = place.run(args);
        assert!(done.code == Some(1) && done.err.trim_end().ends_with(expected), "{done:?}");
    }
    // Commands that do not use Redis need no such file.
    place.run(&["migrate", "up"]).succeeded();
}

#[cfg(unix)]
#[test]
fn a_setting_that_is_not_text_is_named() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let place = Place::new();
    let run = |name: &str| {
        let mut command = place.command(&["check-config"]);
        command.env(name, OsStr::from_bytes(b"\xff"));
        crate::command_line::Done::from(command.output().expect("herald runs"))
    };
    for name in ["SECRET_KEY_BASE", "RUST_LOG"] {
        assert_eq!(run(name).failed(1), format!("herald: {name}: must be UTF-8"));
    }
    run("SOMEBODY_ELSES").succeeded();
}
