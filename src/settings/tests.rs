//! Settings that load, and those that are refused, with their messages.

use secrecy::ExposeSecret;

use super::*;

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
fn variables_that_are_not_ours_are_left_alone() {
    for name in
        ["HERALD_SERVICE_HOST", "HERALD_PORT", "HERALD_APP_KEY", "herald__server__port", "P"]
    {
        assert!(load(&DEVELOPMENT, &[(name, "tcp://10.0.0.1:80")]).is_ok(), "{name}");
    }
}

#[test]
fn a_value_that_cannot_be_honoured_is_refused_by_name() {
    for (name, value, expected) in [
        ("HERALD_ENV", "prod", "HERALD_ENV: must be development, test or production, not \"prod\""),
        ("HERALD_ENV", "", "HERALD_ENV: must be development, test or production, not \"\""),
        (
            "HERALD_CONFIG_DIR",
            "/no\n/such",
            "HERALD_CONFIG_DIR: must be a folder, and \"/no\\n/such\" is not one",
        ),
        (
            "HERALD__SERVER__PROT",
            "1",
            "server.prot (from HERALD__SERVER__PROT): there is no such setting; default.toml lists them all",
        ),
        (
            "HERALD__SERVER",
            "1",
            "server (from HERALD__SERVER): there is no such setting; default.toml lists them all",
        ),
        (
            "HERALD__",
            "1",
            " (from HERALD__): there is no such setting; default.toml lists them all",
        ),
        ("HERALD_SERVER__PORT", "1", "HERALD_SERVER__PORT: settings begin with HERALD__"),
        (
            "PORT",
            "http",
            "server.port (from PORT): must be a whole number from 0 to 65535, not \"http\"",
        ),
        (
            "PORT",
            "65536",
            "server.port (from PORT): must be a whole number from 0 to 65535, not \"65536\"",
        ),
        (
            "PORT",
            "-1",
            "server.port (from PORT): must be a whole number from 0 to 65535, not \"-1\"",
        ),
        (
            "PORT",
            "+1",
            "server.port (from PORT): must be a whole number from 0 to 65535, not \"+1\"",
        ),
        (
            "PORT",
            " 1",
            "server.port (from PORT): must be a whole number from 0 to 65535, not \" 1\"",
        ),
        (
            "HERALD__SOCKET__IDLE_TIMEOUT",
            "10s",
            "socket.long_poll_window (from the built-in default.toml): must be shorter than socket.idle_timeout",
        ),
        (
            "HERALD__SERVER__WORKERS",
            "513",
            "server.workers (from HERALD__SERVER__WORKERS): must be a whole number from 0 to 512, not \"513\"",
        ),
        (
            "HERALD__SERVER__DRAIN_BATCH_SESSIONS",
            "0",
            "server.drain_batch_sessions (from HERALD__SERVER__DRAIN_BATCH_SESSIONS): must be a whole number from 1 to 1000000, not \"0\"",
        ),
        (
            "HERALD__SERVER__DRAIN_INTERVAL_MS",
            "60001",
            "server.drain_interval_ms (from HERALD__SERVER__DRAIN_INTERVAL_MS): must be a whole number from 1 to 60000, not \"60001\"",
        ),
        (
            "HERALD__SERVER__HOST",
            "localhost",
            "server.host (from HERALD__SERVER__HOST): must be an IP address such as 127.0.0.1 or 0.0.0.0, not \"localhost\"",
        ),
        (
            "HERALD__SERVER__PUBLIC_HOST",
            "https://a.b",
            "server.public_host (from HERALD__SERVER__PUBLIC_HOST): must be a host name such as \"herald.example.com\", without scheme and port, not \"https://a.b\"",
        ),
        (
            "HERALD__SERVER__TRUSTED_PROXIES",
            "10.0.0.0/8,proxy",
            "server.trusted_proxies (from HERALD__SERVER__TRUSTED_PROXIES): must be addresses or networks such as 10.0.0.7 or 10.0.0.0/8, not \"10.0.0.0/8,proxy\"",
        ),
        (
            "HERALD__SERVER__FORCE_SSL",
            "maybe",
            "server.force_ssl (from HERALD__SERVER__FORCE_SSL): must be true or false, not \"maybe\"",
        ),
        (
            "HERALD__REGISTRY__REFRESH",
            "5",
            "registry.refresh (from HERALD__REGISTRY__REFRESH): must be a duration such as \"5s\", from 10ms to 1h, not \"5\"",
        ),
        (
            "HERALD__REGISTRY__REFRESH",
            "0s",
            "registry.refresh (from HERALD__REGISTRY__REFRESH): must be a duration such as \"5s\", from 10ms to 1h, not \"0s\"",
        ),
        (
            "HERALD__SINGLE_APP",
            "Foo App",
            "single_app (from HERALD__SINGLE_APP): must be an app's slug, 1 to 63 of a-z, 0-9 and -, not \"Foo App\"",
        ),
        (
            "HERALD__SOCKET__CHECK_ORIGIN",
            "example.com",
            "socket.check_origin (from HERALD__SOCKET__CHECK_ORIGIN): must be false, true, \"conn\" or a list of origins: \"example.com\" needs a // before the host, as in //example.com or https://example.com",
        ),
        (
            "HERALD__LIMITS__OUTBOX_FRAMES_MAX",
            "0",
            "limits.outbox_frames_max (from HERALD__LIMITS__OUTBOX_FRAMES_MAX): must be a whole number from 1 to 1000000, not \"0\"",
        ),
        (
            "HERALD__LIMITS__PUBLICATIONS_IN_FLIGHT_MAX",
            "99",
            "limits.publications_in_flight_max (from HERALD__LIMITS__PUBLICATIONS_IN_FLIGHT_MAX): must be a whole number from 100 to 1000000, not \"99\"",
        ),
        (
            "HERALD__LIMITS__MESSAGE_BYTES_MAX",
            "32768",
            "limits.message_bytes_max (from HERALD__LIMITS__MESSAGE_BYTES_MAX): must be more than limits.client_event_bytes_max, 32768 bytes, not 32768",
        ),
        (
            "HERALD__LIMITS__REQUEST_BODY_BYTES_MAX",
            "1000",
            "limits.request_body_bytes_max (from HERALD__LIMITS__REQUEST_BODY_BYTES_MAX): must be more than limits.trigger_payload_bytes_max, 102400 bytes, not 1000",
        ),
        (
            "HERALD__LIMITS__PRESENCE_MEMBERS_MAX",
            "0",
            "limits.presence_members_max (from HERALD__LIMITS__PRESENCE_MEMBERS_MAX): must be a whole number from 1 to 1000000, not \"0\"",
        ),
        (
            "HERALD__LIMITS__PRESENCE_MEMBERS_MAX",
            "1024",
            "limits.outbox_bytes_max (from the built-in default.toml): must be more than the size of all members of a full presence channel (presence_members_max), 4194304 bytes, not 4194304",
        ),
        (
            "HERALD__PUSHER__PATH_PREFIX",
            "/realtime/",
            "pusher.path_prefix (from HERALD__PUSHER__PATH_PREFIX): must be empty, or a path such as /pusher that is not one of Herald's own, without a slash at its end, not \"/realtime/\"",
        ),
        (
            "HERALD__PUSHER__CACHE_APP_BYTES_MAX",
            "134217729",
            "pusher.cache_app_bytes_max (from HERALD__PUSHER__CACHE_APP_BYTES_MAX): must be at most pusher.cache_bytes_max, 134217728, not 134217729",
        ),
        (
            "HERALD__HISTORY__PUBLICATIONS",
            "1001",
            "history.publications (from HERALD__HISTORY__PUBLICATIONS): must be at most history.publications_max, 1000, not 1001",
        ),
        (
            "HERALD__HISTORY__PUBLICATIONS_MAX",
            "100001",
            "history.publications_max (from HERALD__HISTORY__PUBLICATIONS_MAX): must be a whole number from 0 to 100000, not \"100001\"",
        ),
        (
            "HERALD__HISTORY__AGE",
            "25h",
            "history.age (from HERALD__HISTORY__AGE): must be at most history.age_max, 1day, not 1day 1h",
        ),
        (
            "HERALD__HISTORY__AGE",
            "300",
            "history.age (from HERALD__HISTORY__AGE): must be a duration such as \"5s\", from 1s to 7days, not \"300\"",
        ),
        (
            "HERALD__HISTORY__AGE_MAX",
            "8days",
            "history.age_max (from HERALD__HISTORY__AGE_MAX): must be a duration such as \"5s\", from 1s to 7days, not \"8days\"",
        ),
        (
            "HERALD__HISTORY__APP_BYTES_MAX",
            "268435457",
            "history.app_bytes_max (from HERALD__HISTORY__APP_BYTES_MAX): must be at most history.bytes_max, 268435456, not 268435457",
        ),
        (
            "HERALD__HISTORY__REPLAY_BYTES_MAX",
            "4194304",
            "history.replay_bytes_max (from HERALD__HISTORY__REPLAY_BYTES_MAX): must be less than limits.outbox_bytes_max, 4194304, not 4194304, because what is replayed waits in the session's outbox: lower it (a quarter leaves room for live events), or raise limits.outbox_bytes_max",
        ),
        (
            "HERALD__HISTORY__CHANNELS_MAX",
            "0",
            "history.channels_max (from HERALD__HISTORY__CHANNELS_MAX): must be a whole number from 1 to 1000000, not \"0\"",
        ),
        (
            "HERALD__HISTORY__FILE",
            "",
            "history.file (from HERALD__HISTORY__FILE): must be \"auto\", \"off\" or the path of a file, not \"\"",
        ),
        (
            "HERALD__HISTORY__FILE",
            "./data/herald.db",
            "history.file (from HERALD__HISTORY__FILE): must be a file of its own, not the database or the secrets.secret_key_base_file",
        ),
        (
            "HERALD__HISTORY__FILE",
            "data/secret_key_base",
            "history.file (from HERALD__HISTORY__FILE): must be a file of its own, not the database or the secrets.secret_key_base_file",
        ),
        (
            "HERALD__SOCKET__PRESENCE_INTERVAL",
            "11s",
            "socket.presence_interval (from HERALD__SOCKET__PRESENCE_INTERVAL): must be a duration such as \"5s\", from 1ms to 10s, not \"11s\"",
        ),
        (
            "HERALD__LIMITS__SESSIONS_MAX",
            "0",
            "limits.sessions_max (from HERALD__LIMITS__SESSIONS_MAX): must be \"auto\" or a whole number from 1, not \"0\"",
        ),
        (
            "HERALD__LOG__FILTER",
            "herald=loud",
            "log.filter (from HERALD__LOG__FILTER): must be levels by module, such as \"info\" or \"warn,herald=debug\", not \"herald=loud\"",
        ),
        (
            "PUSHER_ADMIN_USERNAME",
            "a:b",
            "admin.username (from PUSHER_ADMIN_USERNAME): must be a name without colons and control characters, not \"a:b\"",
        ),
    ] {
        assert_eq!(refusal(&DEVELOPMENT, &[(name, value)]), expected, "{name}={value}");
    }
}

#[test]
fn an_engine_must_be_reachable_by_what_its_settings_say() {
    for (env, expected) in [
        (
            vec![("HERALD__ENGINE__KIND", "nats")],
            "engine.kind (from HERALD__ENGINE__KIND): must be \"local\" or \"redis\", not \"nats\"",
        ),
        (
            vec![("HERALD__ENGINE__KIND", "redis")],
            "engine.redis_url (from default.toml): must be set for engine.kind = \"redis\": REDIS_URL=redis://user:password@host:6379",
        ),
        (
            vec![("REDIS_URL", "http://hush")],
            "engine.redis_url (from REDIS_URL): must be redis://user:password@host:6379, or rediss:// for TLS; several are separated by commas",
        ),
        (
            vec![("REDIS_URL", "redis://a,redis://b")],
            "engine.redis_url (from REDIS_URL): must be one URL, unless engine.sentinel_master or engine.cluster is set",
        ),
        (
            vec![("REDIS_URL", "redis://a,rediss://b"), ("HERALD__ENGINE__CLUSTER", "true")],
            "engine.redis_url (from REDIS_URL): must be all redis:// or all rediss://",
        ),
        (
            vec![("REDIS_URL", "redis://a/1"), ("HERALD__ENGINE__CLUSTER", "true")],
            "engine.redis_url (from REDIS_URL): must name no database but 0 with engine.cluster",
        ),
        (
            vec![("HERALD__ENGINE__SENTINEL_MASTER", "m"), ("HERALD__ENGINE__CLUSTER", "true")],
            "engine.cluster (from HERALD__ENGINE__CLUSTER): must be false with engine.sentinel_master: a cluster fails over by itself",
        ),
        (
            vec![("REDIS_URL", "redis://a"), ("HERALD__ENGINE__CA_FILE", "ca.pem")],
            "engine.ca_file (from HERALD__ENGINE__CA_FILE): needs rediss:// in engine.redis_url",
        ),
        (
            vec![("HERALD__ENGINE__NODE_TIMEOUT", "5s")],
            "engine.node_timeout (from HERALD__ENGINE__NODE_TIMEOUT): must be more than engine.probe_interval",
        ),
        (
            vec![("HERALD__ENGINE__PREFIX", "a{b}")],
            "engine.prefix (from HERALD__ENGINE__PREFIX): must be 1 to 64 of a-z, A-Z, 0-9, '.', '_', ':' and '-', not \"a{b}\"",
        ),
        (
            vec![("HERALD__ENGINE__PREFIX", "")],
            "engine.prefix (from HERALD__ENGINE__PREFIX): must be 1 to 64 of a-z, A-Z, 0-9, '.', '_', ':' and '-', not \"\"",
        ),
        (
            vec![("HERALD__ENGINE__PARTITIONS", "0")],
            "engine.partitions (from HERALD__ENGINE__PARTITIONS): must be a whole number from 1 to 256, not \"0\"",
        ),
    ] {
        assert_eq!(refusal(&DEVELOPMENT, &env).replace("the built-in ", ""), expected);
    }
    let several =
        [("REDIS_URL", "redis://:p@a:1,redis://:p@b:2"), ("HERALD__ENGINE__CLUSTER", "true")];
    assert_eq!(loaded(&DEVELOPMENT, &several).engine.urls().len(), 2);
}

#[test]
fn a_part_of_the_sessions_is_no_more_than_all_of_them() {
    for (var, key) in [
        ("HERALD__LIMITS__SESSIONS_PER_APP_MAX", "sessions_per_app_max"),
        ("HERALD__LIMITS__SESSIONS_PER_ADDRESS_MAX", "sessions_per_address_max"),
    ] {
        let all = ("HERALD__LIMITS__SESSIONS_MAX", "12");
        loaded(&DEVELOPMENT, &[all, (var, "12")]);
        loaded(&DEVELOPMENT, &[(var, "13")]);
        assert_eq!(
            refusal(&DEVELOPMENT, &[all, (var, "13")]),
            format!("limits.{key} (from {var}): must be at most limits.sessions_max, 12, not 13")
        );
    }
}

#[test]
fn each_setting_of_history_may_be_as_large_as_the_one_that_bounds_it() {
    let settings = loaded(
        &DEVELOPMENT,
        &[
            ("HERALD__HISTORY__PUBLICATIONS", "1000"),
            ("HERALD__HISTORY__AGE", "1day"),
            ("HERALD__HISTORY__APP_BYTES_MAX", "268435456"),
            ("HERALD__HISTORY__REPLAY_BYTES_MAX", "4194303"),
        ],
    );
    let history = settings.history;
    assert_eq!((history.publications, history.publications_max), (1_000, 1_000));
    assert_eq!((history.age, history.age_max), (Duration::from_secs(86_400), history.age));
    assert_eq!((history.app_bytes_max, history.bytes_max), (268_435_456, 268_435_456));
    assert_eq!((history.replay_max, history.replay_bytes_max), (1_000, 4_194_303));
    assert_eq!(history.channels_max, 10_000);
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
fn a_value_given_twice_is_refused_unless_it_is_the_same() {
    let twice = |other| [("PORT", "5000"), ("HERALD__SERVER__PORT", other)];
    assert_eq!(loaded(&DEVELOPMENT, &twice("5000")).server.port, 5000);
    assert_eq!(
        refusal(&DEVELOPMENT, &twice("6000")),
        "server.port: is given twice, by PORT and by HERALD__SERVER__PORT: keep one of them"
    );
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
fn own_files_replace_the_built_in_ones() {
    let dir = tempfile::tempdir().expect("a folder");
    let write =
        |file: &str, text: &str| std::fs::write(dir.path().join(file), text).expect("a file");
    write("default.toml", "[server]\nport = 5000\nworkers = 7\n");
    write("development.toml", "[server]\nport = 6000\n[admin]\npassword = \"own\"\n");

    let settings = load_in(Some(dir.path()), &DEVELOPMENT).expect("settings");
    assert_eq!((settings.server.port, settings.server.workers), (6000, 7));
    assert!(!settings.database.seed, "the built-in development.toml is not read beside one's own");
    assert_eq!(settings.registry.refresh, Duration::from_secs(5), "what is left out stays");

    let named = dir.path().to_string_lossy();
    let env = [DEVELOPMENT[0], ("HERALD_CONFIG_DIR", &named)];
    assert_eq!(load_in(None, &env).expect("settings").server.port, 6000);
    let elsewhere = load_in(Some(&dir.path().join("none")), &DEVELOPMENT).expect("settings");
    assert_eq!(elsewhere.server.port, 4000, "a folder that nobody asked for may be missing");
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
fn broken_files_are_refused_without_quoting_them() {
    for (text, expected) in [
        ("[server]\nprot = 1", "server.prot (from DIR/development.toml): there is no such setting"),
        ("server = 1", "server (from DIR/development.toml): there is no such setting"),
        (
            "[server.port]\na = 1",
            "server.port.a (from DIR/development.toml): there is no such setting",
        ),
        (
            "[server]\nport = \"x\"",
            "server.port (from DIR/development.toml): must be a whole number",
        ),
        ("[server]\nport = 1.5", "server.port (from DIR/development.toml): must be a whole number"),
        (
            "[admin]\npassword = 123454321",
            "admin.password (from DIR/development.toml): must be a text",
        ),
        (
            "[admin]\npassword = [\"s3cret\"]",
            "admin.password (from DIR/development.toml): must be a text",
        ),
        ("[admin]\npassword = \"s3cret", "DIR/development.toml: TOML parse error at line 2"),
        (
            "[server]\ntrusted_proxies = [1]",
            "server.trusted_proxies (from DIR/development.toml): must be a list",
        ),
        (
            "[socket]\ncheck_origin = []\n[admin]\npassword = \"p\"",
            "socket.check_origin (from DIR/development.toml): must be false, true",
        ),
        (
            "[limits]\nsessions_max = -1\n[admin]\npassword = \"p\"",
            "limits.sessions_max (from DIR/development.toml): must be \"auto\"",
        ),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("development.toml"), text).expect("a file");
        let found = load_in(Some(dir.path()), &DEVELOPMENT).map(|_| ()).expect_err("a refusal");
        let found = found.to_string().replace(&dir.path().display().to_string(), "DIR");
        assert!(found.starts_with(expected), "{text}: {found}");
        assert!(!found.contains("s3cret") && !found.contains("123454321"), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn the_secret_key_base_is_made_once_and_kept_private() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("data/secret_key_base");
    let text = path.to_string_lossy();
    let env = [("HERALD__SECRETS__SECRET_KEY_BASE_FILE", text.as_ref())];
    let key = |mut settings: Settings| {
        settings.keep().expect("a file");
        settings.secrets.secret_key_base.expose_secret().to_owned()
    };

    let (read_only, second) = (loaded(&[], &env), loaded(&[], &env));
    assert_eq!(read_only.secrets.secret_key_base.expose_secret().len(), 64);
    assert!(!path.exists(), "reading the settings leaves nothing behind");
    let first = key(read_only);
    assert_eq!(first.len(), 64);
    assert_eq!(key(second), first, "of two that start at once the second takes the first one's");
    assert_eq!(key(loaded(&[], &env)), first);
    let in_production = [PRODUCTION[0], PRODUCTION[1], PRODUCTION[2], env[0]];
    assert_eq!(key(loaded(&[], &in_production)), first, "production reads such a file too");

    let files = std::fs::read_dir(dir.path().join("data")).expect("a folder").count();
    assert_eq!(files, 1, "no draft is left behind");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_secret_key_base_file_that_cannot_be_used_stops_the_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    std::fs::write(&file, "\n").expect("a file");
    for (base, path) in [
        (&DEVELOPMENT[..0], file.clone()),
        (&DEVELOPMENT[..0], file.join("below-a-file")),
        (&DEVELOPMENT[..0], dir.path().to_owned()),
        (&PRODUCTION[..3], dir.path().join("missing")),
    ] {
        let path = path.to_string_lossy();
        let started = load(base, &[("HERALD__SECRETS__SECRET_KEY_BASE_FILE", &path)]);
        let started = started.and_then(|mut settings| settings.keep());
        let found = started.expect_err("a refusal").to_string();
        assert!(found.starts_with("secrets.secret_key_base_file"), "{found}");
        assert!(found.contains(" cannot be used: "), "{found}");
    }
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
    let sources =
        [include_str!("mod.rs"), include_str!("engine.rs"), include_str!("../app/database.rs")];
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
