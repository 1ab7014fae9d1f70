//! Settings that load, and those that are refused, with their messages.

use secrecy::ExposeSecret;

use super::*;

mod files;
mod refusals;
mod secrets;

const PASSWORD: &str = "correct-horse-battery";
const KEY: &str = "0123456789abcdef0123456789abcdef";
/// Enough for production.
const PRODUCTION: [(&str, &str); 4] = [
    ("HERALD_ENV", "production"),
    ("PUSHER_ADMIN_PASSWORD", PASSWORD),
    ("DATABASE_URL", "postgres://herald@db/herald"),
    ("SECRET_KEY_BASE", KEY),
];
/// Development that leaves no file behind.
const DEVELOPMENT: [(&str, &str); 1] = [("SECRET_KEY_BASE", "k")];

fn load_in(dir: Option<&Path>, env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    Settings::load_from(env.iter().map(|(n, v)| ((*n).into(), (*v).into())), dir)
}

/// Loads with `env` on top of `base`, whose variables it may replace.
fn load(base: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let kept = base.iter().filter(|(name, _)| env.iter().all(|(n, _)| n != name));
    load_in(None, &kept.chain(env).copied().collect::<Vec<_>>())
}

fn loaded(base: &[(&str, &str)], env: &[(&str, &str)]) -> Settings {
    load(base, env).expect("settings that can be honoured")
}

fn refusal(base: &[(&str, &str)], env: &[(&str, &str)]) -> String {
    load(base, env).map(|_| "nothing").expect_err("a refusal").to_string()
}

#[test]
fn development_is_a_laptop() {
    let settings = loaded(&DEVELOPMENT, &[]);

    assert_eq!(settings.env, Environment::Development);
    assert_eq!(
        (settings.server.host.to_string(), settings.server.port),
        ("127.0.0.1".into(), 4000)
    );
    assert_eq!(settings.database.url.expose_secret(), "sqlite://data/herald.db");
    assert!(settings.database.migrate && settings.database.seed && settings.server.demo_page);
    assert_eq!(settings.admin.username, "pusher_admin_username");
    assert_eq!(settings.admin.password.expose_secret(), "pusher_admin_password");
    assert_eq!(settings.single_app, None);
    assert!(settings.secrets.guardian_secret.is_none());
    assert!(matches!(settings.socket.check_origin, OriginPolicy::Off));
}

#[test]
fn production_listens_everywhere_and_does_nothing_by_itself() {
    let settings = loaded(&PRODUCTION, &[]);

    assert_eq!((settings.server.host.to_string(), settings.server.port), ("0.0.0.0".into(), 4000));
    assert!(!settings.database.migrate && !settings.database.seed && !settings.server.demo_page);
}

#[test]
fn the_test_environment_wants_a_database_and_keeps_nothing() {
    let test = [("HERALD_ENV", "test")];
    assert!(refusal(&test, &[]).starts_with("database.url"));

    let url = [("DATABASE_URL", "sqlite:///tmp/x.db")];
    let (first, second) = (loaded(&test, &url), loaded(&test, &url));
    assert_eq!(first.server.port, 0);
    let key = |settings: &Settings| settings.secrets.secret_key_base.expose_secret().to_owned();
    assert_ne!(key(&first), key(&second));
}

#[test]
fn the_defaults_are_those_of_the_specification() {
    let settings = loaded(&DEVELOPMENT, &[]);
    let limits = settings.limits;
    for (name, found, expected) in [
        ("trigger payload", limits.trigger_payload_bytes_max, 100 * 1024),
        ("client event", limits.client_event_bytes_max, 32 * 1024),
        ("message", limits.message_bytes_max, 1024 * 1024),
        ("message before a join", limits.unjoined_message_bytes_max(), 51_706),
        ("unfinished", limits.unfinished_bytes_max, 64 * 1024 * 1024),
        ("request body", limits.request_body_bytes_max, 1024 * 1024),
        ("token", limits.token_bytes_max, 8 * 1024),
        ("ref", limits.ref_bytes_max, 64),
        ("channels", limits.channels_per_transport_max, 100),
        ("scopes", limits.scopes_per_app_max, 100),
        ("presence members", limits.presence_members_max, 1_000),
        ("idempotency keys", limits.idempotency_keys_max, 10_000),
        ("outbox frames", limits.outbox_frames_max, 1024),
        ("outbox bytes", limits.outbox_bytes_max, 4 * 1024 * 1024),
        ("publications retained", settings.history.publications, 100),
        ("publications of an app", settings.history.publications_max, 1_000),
        ("bytes retained of an app", settings.history.app_bytes_max, 16 * 1024 * 1024),
        ("bytes retained", settings.history.bytes_max, 256 * 1024 * 1024),
        ("channels remembered", settings.history.channels_max, 10_000),
        ("publications replayed", settings.history.replay_max, 1_000),
        ("bytes replayed", settings.history.replay_bytes_max, limits.outbox_bytes_max / 4),
        ("data of a Pusher event", settings.pusher.event_bytes_max, 10 * 1024),
        ("cache of an app", settings.pusher.cache_app_bytes_max, 16 * 1024 * 1024),
        ("caches", settings.pusher.cache_bytes_max, 128 * 1024 * 1024),
        ("name of a Pusher channel", settings.pusher.channel_bytes_max, 200),
        ("failed logins", limits.failed_admin_logins_per_minute_max as usize, 10),
    ] {
        assert_eq!(found, expected, "{name}");
    }
    assert_eq!(limits.sessions_max, None);
    assert_eq!(settings.registry.refresh, Duration::from_secs(5));
    assert_eq!(settings.socket.idle_timeout, Duration::from_secs(60));
    assert_eq!(settings.server.keep_alive, Duration::from_secs(75));
    assert_eq!(settings.socket.handshake_timeout, Duration::from_secs(10));
    assert_eq!(settings.socket.message_timeout, Duration::from_secs(30));
    assert_eq!(settings.database.connect_retry, Duration::from_secs(30));
    assert_eq!(settings.history.age, Duration::from_secs(300));
    assert_eq!(settings.history.age_max, Duration::from_secs(86_400));
    let pusher = &settings.pusher;
    assert_eq!(pusher.activity_timeout, Duration::from_secs(120));
    assert_eq!(pusher.pong_timeout, Duration::from_secs(30));
    assert_eq!(pusher.authorization_timeout, Duration::from_secs(30));
    assert_eq!(pusher.cache_ttl, Duration::from_secs(1_800));
    assert_eq!((pusher.path_prefix.as_str(), pusher.strict_protocol), ("", false));
}

#[test]
fn every_key_of_the_defaults_is_read_and_shown() {
    let env = DEVELOPMENT.map(|(n, v)| (n.to_owned(), v.to_owned()));
    let (_, effective) = Settings::explain_from(env.into_iter(), None).expect("settings");

    let mut shown: Vec<_> = effective.iter().map(|setting| setting.key.to_owned()).collect();
    shown.sort();
    let origins: Vec<_> = effective.iter().filter(|setting| setting.origin.is_empty()).collect();
    assert_eq!(shown, layers::default_keys());
    assert_eq!(origins, Vec::<&Effective>::new(), "every value comes from somewhere");
}

#[test]
fn the_articles_names_work() {
    let settings = loaded(
        &[],
        &[
            ("PORT", "5000"),
            ("DATABASE_URL", "postgres://herald:pw@db/herald"),
            ("PUSHER_ADMIN_USERNAME", "root"),
            ("PUSHER_ADMIN_PASSWORD", "p:w"),
            ("GUARDIAN_SECRET", "shared"),
            ("SECRET_KEY_BASE", "base"),
            ("REDIS_URL", "redis://cache"),
        ],
    );

    assert_eq!(settings.server.port, 5000);
    assert_eq!(settings.database.url.expose_secret(), "postgres://herald:pw@db/herald");
    assert_eq!(settings.admin.username, "root");
    assert_eq!(settings.admin.password.expose_secret(), "p:w");
    let guardian = settings.secrets.guardian_secret.expect("a guardian secret");
    assert_eq!(guardian.expose_secret(), "shared");
    assert_eq!(settings.secrets.secret_key_base.expose_secret(), "base");
    assert_eq!(settings.engine.redis_url.expose_secret(), "redis://cache");
}

#[test]
fn an_empty_article_name_counts_as_unset() {
    let empty = [
        ("PORT", ""),
        ("DATABASE_URL", ""),
        ("PUSHER_ADMIN_USERNAME", ""),
        ("PUSHER_ADMIN_PASSWORD", ""),
        ("GUARDIAN_SECRET", ""),
    ];
    let settings = loaded(&DEVELOPMENT, &empty);
    assert_eq!(settings.server.port, 4000);
    assert_eq!(settings.database.url.expose_secret(), "sqlite://data/herald.db");
    assert!(settings.secrets.guardian_secret.is_none());
}

#[test]
fn the_environment_sets_every_kind_of_value() {
    let settings = loaded(
        &DEVELOPMENT,
        &[
            ("HERALD__SINGLE_APP", "deploys"),
            ("HERALD__REGISTRY__REFRESH", "250ms"),
            ("HERALD__SERVER__WORKERS", "3"),
            ("HERALD__SERVER__FORCE_SSL", "true"),
            ("HERALD__SERVER__DRAIN_BATCH_SESSIONS", "7"),
            ("HERALD__SERVER__DRAIN_INTERVAL_MS", "250"),
            ("HERALD__SERVER__HOST", "::1"),
            ("HERALD__SERVER__TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.7,::1"),
            ("HERALD__SERVER__PUBLIC_HOST", "Herald.Example.com"),
            ("HERALD__LIMITS__SESSIONS_MAX", "12"),
            ("HERALD__LOG__FILTER", "herald=debug"),
            ("HERALD__ADMIN__PASSWORD", "0012"),
            ("HERALD__HISTORY__PUBLICATIONS", "0"),
            ("HERALD__HISTORY__AGE_MAX", "7days"),
            ("HERALD__HISTORY__FILE", "/var/lib/herald/history"),
            ("HERALD__PUSHER__PATH_PREFIX", "/realtime"),
            ("HERALD__PUSHER__CACHE_TTL", "24h"),
        ],
    );

    assert_eq!(
        settings.single_app.as_ref().map(|slug| slug.to_string()).as_deref(),
        Some("deploys")
    );
    assert_eq!(settings.registry.refresh, Duration::from_millis(250));
    assert_eq!(settings.server.workers, 3);
    assert_eq!(settings.server.drain_batch_sessions, 7);
    assert_eq!(settings.server.drain_interval, Duration::from_millis(250));
    assert!(settings.server.force_ssl);
    assert_eq!(settings.server.host.to_string(), "::1");
    let proxies: Vec<_> = settings.server.trusted_proxies.iter().map(|p| p.to_string()).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "192.0.2.7/32", "::1/128"]);
    assert_eq!(settings.server.public_host, "herald.example.com");
    assert_eq!(settings.limits.sessions_max, Some(12));
    assert_eq!(settings.log.filter, "herald=debug");
    assert_eq!(settings.admin.password.expose_secret(), "0012", "digits stay text");
    assert_eq!(settings.history.publications, 0);
    assert_eq!(settings.history.age_max, Duration::from_secs(7 * 86_400));
    assert_eq!(settings.history_file(), Some("/var/lib/herald/history".into()));
    assert_eq!(settings.pusher.path_prefix, "/realtime");
    assert_eq!(settings.pusher.cache_ttl, Duration::from_secs(86_400));
}

#[test]
fn the_origin_check_has_four_forms() {
    for (raw, expected) in [
        ("false", "Off"),
        ("true", "PublicHost(\"herald.example\")"),
        ("conn", "Connection"),
        ("https://a.example, //*.b.example", "List"),
    ] {
        let env = [
            ("HERALD__SOCKET__CHECK_ORIGIN", raw),
            ("HERALD__SERVER__PUBLIC_HOST", "herald.example"),
        ];
        let policy = format!("{:?}", loaded(&DEVELOPMENT, &env).socket.check_origin);
        assert!(policy.starts_with(expected), "{raw}: {policy}");
    }
}

#[test]
fn a_proxy_in_ipv4_mapped_form_is_the_ipv4_proxy_that_it_stands_for() {
    for (given, expected) in [
        ("::ffff:127.0.0.1", "127.0.0.1/32"),
        ("::ffff:7f00:1", "127.0.0.1/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.0.0.7/128", "10.0.0.7/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        // These also have addresses of other forms.
        ("::fffe:0:0/95", "::fffe:0:0/95"),
        ("::/0", "::/0"),
        ("::fffe:a00:1", "::fffe:a00:1/128"),
    ] {
        let settings = loaded(&DEVELOPMENT, &[("HERALD__SERVER__TRUSTED_PROXIES", given)]);
        let proxies = settings.server.trusted_proxies.iter().map(|proxy| proxy.to_string());
        assert_eq!(proxies.collect::<Vec<_>>(), [expected], "{given}");
    }
}

#[test]
fn variables_that_are_not_ours_are_left_alone() {
    for name in
        ["HERALD_SERVICE_HOST", "HERALD_PORT", "HERALD_APP_KEY", "herald__server__port", "P"]
    {
        assert!(load(&DEVELOPMENT, &[(name, "tcp://10.0.0.1:80")]).is_ok(), "{name}");
    }
}

#[test]
fn history_is_saved_beside_the_database_unless_a_setting_says_otherwise() {
    for (file, url, expected) in [
        ("auto", "sqlite://data/herald.db", Some("data/herald.db-history")),
        (
            "auto",
            "sqlite:///var/my%20lib/herald.db?mode=rwc",
            Some("/var/my lib/herald.db-history"),
        ),
        ("auto", "sqlite::memory:", None),
        ("auto", "postgres://db/herald", Some("herald-history")),
        ("off", "sqlite://data/herald.db", None),
        ("./off", "sqlite://data/herald.db", Some("./off")),
        ("saved", "sqlite::memory:", Some("saved")),
        ("/srv/saved", "postgres://db/herald", Some("/srv/saved")),
    ] {
        let env = [("HERALD__HISTORY__FILE", file), ("DATABASE_URL", url)];
        let found = loaded(&DEVELOPMENT, &env).history_file();
        assert_eq!(found, expected.map(Into::into), "{file}, {url}");
    }
}

#[test]
fn databases_are_sqlite_files_or_postgres() {
    for (url, expected) in [
        ("sqlite://data/herald.db", true),
        ("sqlite:///var/lib/herald.db?mode=rwc", true),
        ("sqlite:herald.db", true),
        ("postgres://u:p@h/d", true),
        ("postgresql://h:5432/d?sslmode=require", true),
        ("sqlite://", false),
        ("sqlite::memory:", true),
        ("mysql://u:s3cret@h/d", false),
        ("postgres:s3cret", false),
        ("postgres://", false),
        ("s3cret", false),
        (" postgres://u:s3cret@h/d\u{0}", false),
    ] {
        let found = load(&DEVELOPMENT, &[("DATABASE_URL", url)]).map(|_| ());
        assert_eq!(found.is_ok(), expected, "{url}: {found:?}");
        if let Err(fault) = found {
            let expected = "database.url (from DATABASE_URL): must be sqlite://<file> or \
                            postgres://user:password@host/database";
            assert_eq!(fault.to_string(), expected);
        }
    }
}

#[test]
fn production_wants_a_database_that_somebody_chose() {
    let in_folder = |file: &str, url: &str| {
        let dir = tempfile::tempdir().expect("a folder");
        let text = format!("[database]\nurl = {url:?}\n[server]\nhost = \"0.0.0.0\"\n");
        std::fs::write(dir.path().join(file), text).expect("a file");
        let env: Vec<_> = PRODUCTION.into_iter().filter(|(n, _)| *n != "DATABASE_URL").collect();
        load_in(Some(dir.path()), &env).map(drop)
    };
    let laptop = "sqlite://data/herald.db";
    let copied = in_folder("default.toml", laptop).expect_err("a copy of default.toml");
    assert!(copied.to_string().contains("must be set in production: DATABASE_URL="), "{copied}");
    assert_eq!(in_folder("default.toml", "sqlite:///var/lib/herald.db"), Ok(()), "edited");
    assert_eq!(in_folder("production.toml", laptop), Ok(()), "production's own file says so");
    assert!(load(&PRODUCTION, &[("DATABASE_URL", laptop)]).is_ok(), "the environment says so");
}

#[test]
fn http_connections_are_counted_against_the_file_limit() {
    let with = |sessions, wanted| {
        loaded(
            &DEVELOPMENT,
            &[
                ("HERALD__SERVER__WORKERS", "64"),
                ("HERALD__LIMITS__SESSIONS_MAX", sessions),
                ("HERALD__LIMITS__HTTP_CONNECTIONS_MAX", wanted),
            ],
        )
    };
    for (sessions, wanted, expected) in [
        ("auto", "auto", Some(None)),
        ("auto", "750", Some(Some(750))),
        ("auto", "751", None),
        ("500", "250", Some(Some(250))),
        ("500", "251", None),
    ] {
        let found = with(sessions, wanted).http_connections_max(1_000);
        assert_eq!(found.ok(), expected, "{wanted} beside {sessions}");
    }
    let fault = with("500", "251").http_connections_max(1_000).expect_err("a refusal").to_string();
    assert_eq!(
        fault,
        "limits.http_connections_max: must be at most 250, not 251: the limit on open files is 1000; \
         raise it (ulimit -n) or lower this"
    );
}

#[test]
fn sessions_are_counted_against_the_file_limit() {
    let with_threads = |threads, wanted| {
        let threads = ("HERALD__SERVER__WORKERS", threads);
        loaded(&DEVELOPMENT, &[("HERALD__LIMITS__SESSIONS_MAX", wanted), threads])
    };
    let with = |wanted| with_threads("64", wanted);
    assert_eq!(with_threads("66", "auto").sessions_max(20_000).ok(), Some(19_490));
    for (wanted, file_limit, expected) in [
        ("auto", 20_000, Some(19_500)),
        ("auto", 501, Some(1)),
        ("auto", 500, None),
        ("auto", 0, None),
        ("auto", u64::MAX, Some(10_000_000)),
        ("19500", 20_000, Some(19_500)),
        ("19501", 20_000, None),
        ("1", 500, None),
    ] {
        let found = with(wanted).sessions_max(file_limit);
        assert_eq!(found.ok(), expected, "{wanted} of {file_limit}");
    }
    let fault = with("9").sessions_max(505).expect_err("a refusal").to_string();
    assert_eq!(
        fault,
        "limits.sessions_max: must be at most 5, not 9: the limit on open files is 505, less 500; \
         raise it (ulimit -n) or lower this"
    );
}

#[test]
fn values_are_shown_as_what_they_stand_for() {
    let env = [
        ("SECRET_KEY_BASE", "k"),
        ("HERALD__SERVER__FORCE_SSL", "true"),
        ("HERALD__SERVER__TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
        ("HERALD__SERVER__WORKERS", "03"),
        ("HERALD__SOCKET__IDLE_TIMEOUT", "90s"),
        ("HERALD__SOCKET__CHECK_ORIGIN", "//a.example,//b.example"),
        ("HERALD__LIMITS__SESSIONS_MAX", "12"),
        ("HERALD__LIMITS__SESSIONS_PER_APP_MAX", "off"),
        ("HERALD__ADMIN__USERNAME", "12"),
    ];
    let vars = env.map(|(n, v)| (n.to_owned(), v.to_owned()));
    let (_, effective) = Settings::explain_from(vars.into_iter(), None).expect("settings");
    for (key, expected) in [
        ("admin.username", serde_json::json!("12")),
        ("limits.sessions_max", 12.into()),
        ("limits.sessions_per_app_max", "off".into()),
        ("server.force_ssl", true.into()),
        ("server.trusted_proxies", serde_json::json!(["10.0.0.0/8", "::1"])),
        ("server.workers", 3.into()),
        ("single_app", "".into()),
        ("socket.check_origin", serde_json::json!(["//a.example", "//b.example"])),
        ("socket.idle_timeout", "1m 30s".into()),
    ] {
        let shown = effective.iter().find(|setting| setting.key == key).expect("a setting");
        assert_eq!(shown.value, expected, "{key}");
    }
}
