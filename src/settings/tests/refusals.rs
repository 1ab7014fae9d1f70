//! Values that are refused, with their messages.

use super::*;

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
            "data/history/",
            "history.file (from HERALD__HISTORY__FILE): must be \"auto\", \"off\" or the path of a file, not \"data/history/\"",
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
            vec![("REDIS_URL", "redis://a/1,redis://b"), ("HERALD__ENGINE__SENTINEL_MASTER", "m")],
            "engine.redis_url (from REDIS_URL): must name the same database in all URLs",
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
fn a_value_given_twice_is_refused_unless_it_is_the_same() {
    let twice = |other| [("PORT", "5000"), ("HERALD__SERVER__PORT", other)];
    assert_eq!(loaded(&DEVELOPMENT, &twice("5000")).server.port, 5000);
    assert_eq!(
        refusal(&DEVELOPMENT, &twice("6000")),
        "server.port: is given twice, by PORT and by HERALD__SERVER__PORT: keep one of them"
    );
}

#[test]
fn a_node_of_a_cluster_accepts_nothing_that_is_too_large_for_a_message_to_another() {
    let roomy = [
        ("HERALD__LIMITS__REQUEST_BODY_BYTES_MAX", "4190208"),
        ("HERALD__LIMITS__MESSAGE_BYTES_MAX", "8000000"),
        ("HERALD__LIMITS__OUTBOX_BYTES_MAX", "8000000"),
    ];
    let redis = [("HERALD__ENGINE__KIND", "redis"), ("REDIS_URL", "redis://a")];
    for (var, key, most, more) in [
        (
            "HERALD__LIMITS__TRIGGER_PAYLOAD_BYTES_MAX",
            "limits.trigger_payload_bytes_max",
            "2095104",
            "2095105",
        ),
        (
            "HERALD__LIMITS__CLIENT_EVENT_BYTES_MAX",
            "limits.client_event_bytes_max",
            "2095104",
            "2095105",
        ),
        (
            "HERALD__LIMITS__REQUEST_BODY_BYTES_MAX",
            "limits.request_body_bytes_max",
            "4190208",
            "4190209",
        ),
        ("HERALD__PUSHER__EVENT_BYTES_MAX", "pusher.event_bytes_max", "523776", "523777"),
    ] {
        let others = roomy.into_iter().filter(|(other, _)| *other != var);
        let with = |value| others.clone().chain([(var, value)]).collect::<Vec<_>>();
        loaded(&DEVELOPMENT, &with(more));
        loaded(&DEVELOPMENT, &[with(most), redis.into()].concat());
        let expected = format!(
            "{key} (from {var}): must be at most {most} with engine.kind = \"redis\", because a message between \
             servers has at most 4194304 bytes, not {more}"
        );
        assert_eq!(refusal(&DEVELOPMENT, &[with(more), redis.into()].concat()), expected);
    }
}
