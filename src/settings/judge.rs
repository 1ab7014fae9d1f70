//! The rules that join several settings, and those of production.

use std::path::{self, PathBuf};

use humantime_serde::re::humantime::format_duration;
use secrecy::{ExposeSecret, SecretString};

use super::{
    EngineKind, Environment, LimitSettings, MESSAGE_BYTES_MAX, Settings, SettingsError,
    engine::database_of, layers::Layers,
};

/// The admin password of the two articles that Herald follows. It is public, so it is accepted on loopback only.
const DEFAULT_PASSWORD: &str = "pusher_admin_password";
/// The fewest characters of an admin password in production.
const PASSWORD_CHARS_MIN: usize = 12;
/// The fewest bytes of a key in production: as many as HMAC-SHA256 uses.
const KEY_BYTES_MIN: usize = 32;
/// The most bytes of one member in a frame with the members of a whole presence channel: its old and its new
/// meta of 1 KB each, and with each its references and its key, 128 bytes that may all be escaped.
const PRESENCE_MEMBER_BYTES: usize = 4_096;

/// The most bytes of the body of a long-poll request that a node can pass to another, which adds names, ids and the
/// lengths of the parts.
const PASSED_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 4_096;
/// The most bytes of a payload that a node can send to another as the last event of its channel: the JSON text becomes a
/// string in JSON, in which each byte may need two.
const PASSED_PAYLOAD_BYTES_MAX: usize = PASSED_BYTES_MAX / 2;
/// The same for the data of an event of Pusher's protocol: the payload is the data as a string, so a byte may need seven.
const PASSED_DATA_BYTES_MAX: usize = PASSED_BYTES_MAX / 8;

/// The text for a URL that names another database than 0: a Redis Cluster has no other.
const CLUSTER_DATABASE: &str = "must name no database but 0 with engine.cluster";

/// A rule: the setting at fault, whether the rule is broken, and the text of the error.
type Rule = (&'static str, bool, String);

/// Checks required settings, the rules that concern several settings, and those of production.
///
/// # Errors
/// The first rule that is broken.
pub(super) fn judge(settings: &Settings, layers: &Layers) -> Result<(), SettingsError> {
    let mut rules = access(settings);
    rules.extend(limits(&settings.limits));
    rules.extend(history(settings));
    rules.extend(engine(settings));
    rules.extend(passed_on(settings));
    rules.push(pusher(settings));
    if settings.env == Environment::Production {
        rules.extend(production(settings, layers));
    }
    match rules.into_iter().find(|(_, is_broken, _)| *is_broken) {
        Some((key, _, fault)) => Err(layers.fault(key, fault)),
        None => Ok(()),
    }
}

fn access(settings: &Settings) -> Vec<Rule> {
    let Settings { admin, server, socket, env, database, .. } = settings;
    let (url, password) = (database.url.expose_secret(), admin.password.expose_secret());
    // The public password opens the admin API to this machine only.
    let is_private = server.host.is_loopback() && *env != Environment::Production;
    let known = format!(
        "must not be the default, which is known to all, on {}: set PUSHER_ADMIN_PASSWORD, or \
         listen on 127.0.0.1 in development",
        server.host
    );
    let no_url = "must be set, for example DATABASE_URL=sqlite://data/herald.db";
    let no_password = "must be set: PUSHER_ADMIN_PASSWORD=<password>";
    // A long-poll request is silent while it waits, and an idle connection is closed.
    let is_cut_off = socket.long_poll_window >= socket.idle_timeout;
    let cut_off = "must be shorter than socket.idle_timeout";
    vec![
        ("database.url", url.is_empty(), no_url.into()),
        ("admin.password", password.is_empty(), no_password.into()),
        ("admin.password", password == DEFAULT_PASSWORD && !is_private, known),
        ("socket.long_poll_window", is_cut_off, cut_off.into()),
    ]
}

/// Checks that each limit can be reached under the other limits.
fn limits(limits: &LimitSettings) -> Vec<Rule> {
    let more = |key, larger: usize, than: &str, smaller: usize| {
        let fault = format!("must be more than {than}, {smaller} bytes, not {larger}");
        (key, larger <= smaller, fault)
    };
    let at_most = |key, part: Option<usize>| {
        let all = limits.sessions_max.unwrap_or(usize::MAX);
        let part = part.unwrap_or_default();
        (key, part > all, format!("must be at most limits.sessions_max, {all}, not {part}"))
    };
    let (message, body) = (limits.message_bytes_max, limits.request_body_bytes_max);
    let (trigger, event) = (limits.trigger_payload_bytes_max, limits.client_event_bytes_max);
    let (bodies, unfinished) = (limits.bodies_bytes_max, limits.unfinished_bytes_max);
    let (token, outbox) = (limits.token_bytes_max, limits.outbox_bytes_max);
    let outboxes = limits.outboxes_bytes_max.unwrap_or(usize::MAX);
    let two = "two bodies (request_body_bytes_max), since visitors' may fill half of it";
    let payload = "the largest payload (trigger_payload_bytes_max, client_event_bytes_max)";
    let picture = "the size of all members of a full presence channel (presence_members_max)";
    let members_bytes = limits.presence_members_max.saturating_mul(PRESENCE_MEMBER_BYTES);
    let few = format!("must be at least limits.outbox_bytes_max, {outbox}, not {outboxes}");
    vec![
        more("limits.message_bytes_max", message, "limits.client_event_bytes_max", event),
        more("limits.message_bytes_max", message, "limits.token_bytes_max", token),
        more("limits.unfinished_bytes_max", unfinished, "limits.message_bytes_max", message),
        more("limits.request_body_bytes_max", body, "limits.trigger_payload_bytes_max", trigger),
        more("limits.bodies_bytes_max", bodies, two, body.saturating_mul(2)),
        more("limits.outbox_bytes_max", outbox, payload, trigger.max(event)),
        more("limits.outbox_bytes_max", outbox, picture, members_bytes),
        ("limits.outboxes_bytes_max", outboxes < outbox, few),
        at_most("limits.sessions_per_app_max", limits.sessions_per_app_max),
        at_most("limits.sessions_per_address_max", limits.sessions_per_address_max),
    ]
}

/// Checks that each default is within its maximum, that a replay leaves room in the outbox, and that the file
/// of the history replaces no other file.
fn history(settings: &Settings) -> Vec<Rule> {
    let Settings { history, limits, secrets, .. } = settings;
    let at_most = |key, value: usize, most_key, most: usize| {
        (key, value > most, format!("must be at most {most_key}, {most}, not {value}"))
    };
    let (publications, publications_max) = (history.publications, history.publications_max);
    let (app_bytes, bytes) = (history.app_bytes_max, history.bytes_max);
    let (age, age_max) = (format_duration(history.age), format_duration(history.age_max));
    let old = format!("must be at most history.age_max, {age_max}, not {age}");
    let (replay, outbox) = (history.replay_bytes_max, limits.outbox_bytes_max);
    let no_room = format!(
        "must be less than limits.outbox_bytes_max, {outbox}, not {replay}, because what is replayed \
         waits in the session's outbox: lower it (a quarter leaves room for live events), or raise \
         limits.outbox_bytes_max"
    );
    let whole = |path: PathBuf| path::absolute(&path).unwrap_or(path);
    let own = settings.history_file().map(whole);
    let others =
        [settings.database.file(), secrets.secret_key_base_file.as_ref().map(PathBuf::from)];
    let is_taken = others.into_iter().flatten().any(|other| own.as_ref() == Some(&whole(other)));
    let taken = "must be a file of its own, not the database or the secrets.secret_key_base_file";
    vec![
        at_most("history.publications", publications, "history.publications_max", publications_max),
        ("history.age", history.age > history.age_max, old),
        at_most("history.app_bytes_max", app_bytes, "history.bytes_max", bytes),
        ("history.replay_bytes_max", replay >= outbox, no_room),
        ("history.file", is_taken, taken.into()),
    ]
}

/// Checks that the settings of the engine can reach a Redis, and that its times fit together.
fn engine(settings: &Settings) -> Vec<Rule> {
    let Settings { engine, database, env, .. } = settings;
    let is_shared = engine.kind == EngineKind::Redis;
    let (urls, has_sentinel) = (engine.urls(), engine.sentinel_master.is_some());
    let is_one = urls.len() < 2 || has_sentinel || engine.cluster;
    let is_mixed = urls.iter().any(|url| url.scheme() != urls[0].scheme());
    let is_divided = urls.iter().any(|url| database_of(url) != engine.database());
    let is_private = engine.ca_file.is_some() && urls.iter().any(|url| url.scheme() == "redis");
    let is_sqlite = database.file().is_some() || database.is_in_memory();
    let is_alone = is_shared && *env == Environment::Production && is_sqlite;
    let no_url =
        "must be set for engine.kind = \"redis\": REDIS_URL=redis://user:password@host:6379";
    let several = "must be one URL, unless engine.sentinel_master or engine.cluster is set";
    let twice = "must be false with engine.sentinel_master: a cluster fails over by itself";
    let alone = "must be PostgreSQL in production with engine.kind = \"redis\": all servers share one \
                 database";
    vec![
        ("engine.redis_url", is_shared && urls.is_empty(), no_url.into()),
        ("engine.redis_url", !is_one, several.into()),
        ("engine.redis_url", is_mixed, "must be all redis:// or all rediss://".into()),
        ("engine.redis_url", is_divided, "must name the same database in all URLs".into()),
        ("engine.redis_url", engine.cluster && engine.database() != 0, CLUSTER_DATABASE.into()),
        ("engine.cluster", engine.cluster && has_sentinel, twice.into()),
        ("engine.ca_file", is_private, "needs rediss:// in engine.redis_url".into()),
        (
            "engine.node_timeout",
            engine.node_timeout <= engine.probe_interval,
            "must be more than engine.probe_interval".into(),
        ),
        ("database.url", is_alone, alone.into()),
    ]
}

/// Checks that whatever a node of a cluster accepts fits into a message to another node.
fn passed_on(Settings { engine, limits, pusher, .. }: &Settings) -> Vec<Rule> {
    let at_most = |key, bytes: usize, most: usize| {
        let fault = format!(
            "must be at most {most} with engine.kind = \"redis\", because a message between servers has at most \
             {MESSAGE_BYTES_MAX} bytes, not {bytes}"
        );
        (key, engine.kind == EngineKind::Redis && bytes > most, fault)
    };
    let (trigger, event) = (limits.trigger_payload_bytes_max, limits.client_event_bytes_max);
    let (body, data) = (limits.request_body_bytes_max, pusher.event_bytes_max);
    vec![
        at_most("limits.trigger_payload_bytes_max", trigger, PASSED_PAYLOAD_BYTES_MAX),
        at_most("limits.client_event_bytes_max", event, PASSED_PAYLOAD_BYTES_MAX),
        at_most("limits.request_body_bytes_max", body, PASSED_BYTES_MAX),
        at_most("pusher.event_bytes_max", data, PASSED_DATA_BYTES_MAX),
    ]
}

/// Checks that the bytes of one app's cache channels fit into those of all apps.
fn pusher(Settings { pusher, .. }: &Settings) -> Rule {
    let (of_app, of_all) = (pusher.cache_app_bytes_max, pusher.cache_bytes_max);
    let much = format!("must be at most pusher.cache_bytes_max, {of_all}, not {of_app}");
    ("pusher.cache_app_bytes_max", of_app > of_all, much)
}

/// Checks that production has strong secrets, and a database that the operator has chosen.
fn production(settings: &Settings, layers: &Layers) -> Vec<Rule> {
    let Settings { admin, secrets, database, .. } = settings;
    let is_short = |key: &SecretString| key.expose_secret().len() < KEY_BYTES_MIN;
    let guardian_is_short = secrets.guardian_secret.as_ref().is_some_and(is_short);
    let password_chars = admin.password.expose_secret().chars().count();
    let url = "DATABASE_URL=postgres://user:password@host/database, or sqlite://<file>";
    let no_url = format!("must be set in production: {url}");
    let weak = format!("must have {PASSWORD_CHARS_MIN} characters or more in production");
    let short = format!("must have {KEY_BYTES_MIN} bytes or more in production");
    let seeded = "must be false in production: its secret is known to all";
    vec![
        ("database.url", layers.is_default("database.url"), no_url),
        ("admin.password", password_chars < PASSWORD_CHARS_MIN, weak),
        ("secrets.guardian_secret", guardian_is_short, short.clone()),
        ("secrets.secret_key_base", is_short(&secrets.secret_key_base), short),
        ("database.seed", database.seed, seeded.into()),
    ]
}
