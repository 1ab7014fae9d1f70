//! Secrets: weak ones are refused in production, and none is shown.

use super::*;

#[test]
fn production_refuses_weak_secrets() {
    for (name, value, expected) in [
        (
            "PUSHER_ADMIN_PASSWORD",
            "",
            "admin.password (from the built-in default.toml): must be set",
        ),
        (
            "DATABASE_URL",
            "",
            "database.url (from the built-in default.toml): must be set in production: DATABASE_URL=",
        ),
        (
            "PUSHER_ADMIN_PASSWORD",
            "elevenchars",
            "admin.password (from PUSHER_ADMIN_PASSWORD): must have 12 characters or more in production",
        ),
        (
            "PUSHER_ADMIN_PASSWORD",
            "pusher_admin_password",
            "admin.password (from PUSHER_ADMIN_PASSWORD): must not be the default",
        ),
        (
            "SECRET_KEY_BASE",
            "",
            "secrets.secret_key_base (from the built-in default.toml): must be set in production",
        ),
        (
            "SECRET_KEY_BASE",
            &KEY[1..],
            "secrets.secret_key_base (from SECRET_KEY_BASE): must have 32 bytes or more in production",
        ),
        (
            "GUARDIAN_SECRET",
            &KEY[1..],
            "secrets.guardian_secret (from GUARDIAN_SECRET): must have 32 bytes or more in production",
        ),
        (
            "HERALD__DATABASE__SEED",
            "true",
            "database.seed (from HERALD__DATABASE__SEED): must be false in production",
        ),
    ] {
        let found = refusal(&PRODUCTION, &[(name, value)]);
        assert!(found.starts_with(expected), "{name}={value}: {found}");
        assert!(value.len() < 8 || !found.contains(value), "{found}");
    }
    assert!(load(&PRODUCTION, &[("PUSHER_ADMIN_PASSWORD", "twelve chars")]).is_ok());
    assert!(load(&PRODUCTION, &[("GUARDIAN_SECRET", KEY)]).is_ok());
}

#[test]
fn the_default_password_is_for_loopback_only() {
    for (env, host, expected) in [
        ("development", "127.0.0.1", true),
        ("development", "127.8.8.8", true),
        ("development", "::1", true),
        ("development", "0.0.0.0", false),
        ("development", "::", false),
        ("development", "192.168.1.5", false),
        ("test", "0.0.0.0", false),
        ("production", "127.0.0.1", false),
    ] {
        let env = [
            ("HERALD_ENV", env),
            ("HERALD__SERVER__HOST", host),
            ("PUSHER_ADMIN_PASSWORD", "pusher_admin_password"),
            ("DATABASE_URL", "sqlite://x.db"),
            ("SECRET_KEY_BASE", KEY),
        ];
        let found = load(&[], &env).map(|_| ());
        assert_eq!(found.is_ok(), expected, "{env:?}: {found:?}");
    }
    let own = [("HERALD__SERVER__HOST", "0.0.0.0"), ("PUSHER_ADMIN_PASSWORD", "mine")];
    assert!(load(&DEVELOPMENT, &own).is_ok(), "one's own password opens it to the network");
}

#[test]
fn no_secret_is_shown_or_printed() {
    let env = [
        ("DATABASE_URL", "postgres://herald:hush-1@db.example:5433/herald?password=hush-2"),
        ("PUSHER_ADMIN_PASSWORD", "hush-3"),
        ("GUARDIAN_SECRET", "hush-4"),
        ("SECRET_KEY_BASE", "hush-5"),
        ("REDIS_URL", "rediss://herald:hush-6@a.example:6380/1"),
        ("HERALD__ENGINE__SENTINEL_PASSWORD", "hush-7"),
    ];
    let vars = env.map(|(n, v)| (n.to_owned(), v.to_owned()));
    let (settings, effective) = Settings::explain_from(vars.into_iter(), None).expect("settings");

    let shown = |key| effective.iter().find(|e| e.key == key).expect("a setting").value.clone();
    assert_eq!(shown("database.url"), "postgres://herald:********@db.example:5433/herald?********");
    assert_eq!(shown("admin.password"), "********");
    assert_eq!(shown("secrets.guardian_secret"), "********");
    assert_eq!(shown("secrets.secret_key_base"), "********");
    assert_eq!(shown("engine.redis_url"), "rediss://herald:********@a.example:6380/1");
    assert_eq!(shown("engine.sentinel_password"), "********");
    assert_eq!(settings.engine.name(), "rediss://a.example:6380");
    let printed = format!("{settings:?}{effective:?}");
    assert!(!printed.contains("hush"), "{printed}");
}

#[test]
fn every_secret_is_among_those_that_are_masked() {
    let sources = [
        include_str!("../mod.rs"),
        include_str!("../engine.rs"),
        include_str!("../../app/database.rs"),
    ];
    let fields = sources.iter().flat_map(|source| source.lines()).filter_map(|line| {
        let (name, of_type) = line.trim().trim_start_matches("pub ").split_once(": ")?;
        ["SecretString,", "Option<SecretString>,"].contains(&of_type).then_some(name)
    });
    let mut fields: Vec<_> = fields.collect();
    let key = |secret: &'static str| secret.split_once('.').expect("a section").1;
    let mut masked: Vec<_> = kinds::SECRETS.into_iter().map(key).collect();
    fields.sort_unstable();
    masked.sort_unstable();
    assert_eq!(fields, masked);
}
