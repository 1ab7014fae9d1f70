//! Every setting, read once; then what only several of them together can break.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use url::Host;

use super::{
    Admin, Database, Effective, Environment, Limits, Log, Metrics, Registry, Secrets, Server,
    Settings, SettingsError, Socket, layers::Layers, reader::Reader, secret_key_base,
};
use crate::app::{Slug, database::shown_url, origin::OriginPolicy};

/// The articles' admin password: known to all, so good for loopback only.
const DEFAULT_PASSWORD: &str = "pusher_admin_password";
/// The least characters of an admin password in production.
const PASSWORD_CHARS_MIN: usize = 12;
/// The least bytes of a key in production: what HMAC-SHA256 can use.
const KEY_BYTES_MIN: usize = 32;

const MOMENT: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const GIGABYTE: u64 = 1 << 30;
const MANY: u64 = 1_000_000;

/// Turns joined layers into settings, and tells what is in effect.
pub(super) fn read(layers: Layers) -> Result<(Settings, Vec<Effective>), SettingsError> {
    let env = layers.env;
    let mut reader = Reader::new(layers.values);
    let r = &mut reader;
    let single_app = single_app(r)?;
    let server = server(r)?;
    let settings = Settings {
        env,
        single_app,
        database: database(r)?,
        admin: admin(r)?,
        secrets: secrets(r, env)?,
        registry: Registry { refresh: r.duration("registry.refresh", 10 * MOMENT..=HOUR)? },
        socket: socket(r, &server.public_host)?,
        limits: limits(r)?,
        metrics: metrics(r)?,
        log: Log {
            filter: filter(r)?,
            refusal_interval: r.duration("log.refusal_interval", 100 * MOMENT..=DAY)?,
        },
        server,
    };
    judge_admin(&settings, r)?;
    judge_limits(&settings.limits, r)?;
    if env == Environment::Production {
        judge_production(&settings, r)?;
    }
    Ok((settings, reader.into_effective()))
}

fn single_app(r: &mut Reader) -> Result<Option<Slug>, SettingsError> {
    let key = "single_app";
    match r.text(key)?.as_str() {
        "" => Ok(None),
        raw => match Slug::parse(raw) {
            Some(slug) => Ok(Some(slug)),
            None => Err(r.not(key, "an app's slug, 1 to 63 of a-z, 0-9 and -")),
        },
    }
}

fn server(r: &mut Reader) -> Result<Server, SettingsError> {
    Ok(Server {
        host: host(r)?,
        port: r.number("server.port", 0..=65_535)?,
        workers: r.number("server.workers", 0..=512)?,
        public_host: public_host(r)?,
        trusted_proxies: trusted_proxies(r)?,
        force_ssl: r.flag("server.force_ssl")?,
        demo_page: r.flag("server.demo_page")?,
        keep_alive: r.duration("server.keep_alive", MOMENT..=HOUR)?,
        shutdown_timeout: r.duration("server.shutdown_timeout", MOMENT..=HOUR)?,
        drain_batch_sessions: r.number("server.drain_batch_sessions", 1..=MANY)?,
        drain_interval: Duration::from_millis(r.number("server.drain_interval_ms", 1..=60_000)?),
    })
}

fn host(r: &mut Reader) -> Result<IpAddr, SettingsError> {
    let key = "server.host";
    let right = "an IP address such as 127.0.0.1 or 0.0.0.0";
    r.text(key)?.parse().map_err(|_| r.not(key, right))
}

fn public_host(r: &mut Reader) -> Result<String, SettingsError> {
    let key = "server.public_host";
    let right = "a host name such as \"herald.example.com\", without scheme and port";
    Ok(Host::parse(&r.text(key)?).map_err(|_| r.not(key, right))?.to_string())
}

fn trusted_proxies(r: &mut Reader) -> Result<Vec<IpNet>, SettingsError> {
    let key = "server.trusted_proxies";
    let parse = |raw: &String| raw.parse().or_else(|_| raw.parse::<IpAddr>().map(IpNet::from)).ok();
    let proxies = r.list(key)?.iter().map(parse).collect::<Option<_>>();
    proxies.ok_or_else(|| r.not(key, "addresses or networks such as 10.0.0.7 or 10.0.0.0/8"))
}

fn database(r: &mut Reader) -> Result<Database, SettingsError> {
    Ok(Database {
        url: database_url(r)?,
        connections_max: r.number("database.connections_max", 1..=1_000)?,
        connect_retry: r.duration("database.connect_retry", Duration::ZERO..=HOUR)?,
        query_timeout: r.duration("database.query_timeout", 10 * MOMENT..=HOUR)?,
        migrate: r.flag("database.migrate")?,
        seed: r.flag("database.seed")?,
    })
}

const DATABASE_URL: &str = "database.url";

fn database_url(r: &mut Reader) -> Result<SecretString, SettingsError> {
    let key = DATABASE_URL;
    let Some(url) = r.secret(key)? else {
        return Err(r.fault(key, "must be set, for example DATABASE_URL=sqlite://data/herald.db"));
    };
    let Some(shown) = shown_url(url.expose_secret()) else {
        // The value may hold a password: it is not quoted.
        let right = "must be sqlite://<file> or postgres://user:password@host/database";
        return Err(r.fault(key, right));
    };
    r.show(key, &shown);
    Ok(url)
}

fn admin(r: &mut Reader) -> Result<Admin, SettingsError> {
    let username = r.text("admin.username")?;
    if username.is_empty() || username.contains(':') || username.contains(char::is_control) {
        return Err(r.not("admin.username", "a name without colons and control characters"));
    }
    let Some(password) = r.secret("admin.password")? else {
        return Err(r.fault("admin.password", "must be set: PUSHER_ADMIN_PASSWORD=<password>"));
    };
    Ok(Admin { username, password })
}

fn secrets(r: &mut Reader, env: Environment) -> Result<Secrets, SettingsError> {
    let guardian_secret = r.secret("secrets.guardian_secret")?;
    let (secret_key_base, unmade_file) = secret_key_base(r, env)?;
    Ok(Secrets { guardian_secret, secret_key_base, unmade_file })
}

const SECRET_KEY_BASE: &str = "secrets.secret_key_base";
const SECRET_KEY_BASE_FILE: &str = "secrets.secret_key_base_file";

/// The key, and the file that a start is to keep it in where that is missing.
fn secret_key_base(
    r: &mut Reader,
    env: Environment,
) -> Result<(SecretString, Option<PathBuf>), SettingsError> {
    let given = r.secret(SECRET_KEY_BASE)?;
    let file = r.text(SECRET_KEY_BASE_FILE)?;
    if let Some(given) = given {
        return Ok((given, None));
    }
    let is_production = env == Environment::Production;
    if file.is_empty() && is_production {
        let how = "SECRET_KEY_BASE=<32 bytes or more>, `openssl rand -hex 32` makes one";
        return Err(r.fault(SECRET_KEY_BASE, format!("must be set in production: {how}")));
    }
    let path = Path::new(&file);
    let (key, unmade_file, origin) = match secret_key_base::read(path) {
        _ if file.is_empty() => (secret_key_base::generate(), None, "made for this run".to_owned()),
        Ok(key) => (key, None, format!("the file {file}")),
        Err(e) if e.kind() == io::ErrorKind::NotFound && !is_production => {
            let origin = format!("the file {file}, which the first start makes");
            (secret_key_base::generate(), Some(path.to_owned()), origin)
        }
        Err(e) => return Err(r.fault(SECRET_KEY_BASE_FILE, unusable(path, &e))),
    };
    r.mask(SECRET_KEY_BASE, &origin);
    Ok((key, unmade_file))
}

fn unusable(path: &Path, error: &io::Error) -> String {
    format!("{:?} cannot be used: {error}", path.display().to_string())
}

/// Keeps a key that was made while the settings were read in the file that was missing.
///
/// # Errors
/// The file cannot be made.
pub(super) fn keep_secret_key_base(secrets: &mut Secrets) -> Result<(), SettingsError> {
    let Some(path) = secrets.unmade_file.take() else { return Ok(()) };
    let kept = secret_key_base::keep(&secrets.secret_key_base, &path);
    let fault = |e| SettingsError::new(SECRET_KEY_BASE_FILE, unusable(&path, &e));
    secrets.secret_key_base = kept.map_err(fault)?;
    Ok(())
}

const LONG_POLL_WINDOW: &str = "socket.long_poll_window";

fn socket(r: &mut Reader, public_host: &str) -> Result<Socket, SettingsError> {
    let socket = Socket {
        check_origin: check_origin(r, public_host)?,
        idle_timeout: r.duration("socket.idle_timeout", 10 * MOMENT..=DAY)?,
        handshake_timeout: r.duration("socket.handshake_timeout", 10 * MOMENT..=HOUR)?,
        message_timeout: r.duration("socket.message_timeout", 10 * MOMENT..=HOUR)?,
        write_timeout: r.duration("socket.write_timeout", 10 * MOMENT..=HOUR)?,
        long_poll_window: r.duration(LONG_POLL_WINDOW, 10 * MOMENT..=19_000 * MOMENT)?,
        long_poll_unjoined_timeout: r
            .duration("socket.long_poll_unjoined_timeout", 10 * MOMENT..=DAY)?,
        presence_interval: r.duration("socket.presence_interval", MOMENT..=10_000 * MOMENT)?,
        topic_timeout: r.duration("socket.topic_timeout", 10 * MOMENT..=HOUR)?,
    };
    if socket.long_poll_window >= socket.idle_timeout {
        // A parked request is silent for that long, and its connection would be closed under it.
        return Err(r.fault(LONG_POLL_WINDOW, "must be shorter than socket.idle_timeout"));
    }
    Ok(socket)
}

fn check_origin(r: &mut Reader, public_host: &str) -> Result<OriginPolicy, SettingsError> {
    let key = "socket.check_origin";
    let entries = r.flag_or_list(key)?;
    OriginPolicy::parse(&entries, public_host).map_err(|e| {
        r.fault(key, format!("must be false, true, \"conn\" or a list of origins: {e}"))
    })
}

fn limits(r: &mut Reader) -> Result<Limits, SettingsError> {
    Ok(Limits {
        trigger_payload_bytes_max: r.number("limits.trigger_payload_bytes_max", 2..=GIGABYTE)?,
        client_event_bytes_max: r.number("limits.client_event_bytes_max", 2..=GIGABYTE)?,
        client_events_per_second_max: r
            .number("limits.client_events_per_second_max", 1..=10_000)?,
        joins_per_second_max: r.number("limits.joins_per_second_max", 1..=10_000)?,
        message_bytes_max: r.number("limits.message_bytes_max", 512..=GIGABYTE)?,
        frames_per_second_max: r.number("limits.frames_per_second_max", 1..=MANY)?,
        unfinished_bytes_max: r.number("limits.unfinished_bytes_max", 512..=64 * GIGABYTE)?,
        request_body_bytes_max: r.number("limits.request_body_bytes_max", 512..=GIGABYTE)?,
        bodies_bytes_max: r.number("limits.bodies_bytes_max", 1_024..=64 * GIGABYTE)?,
        token_bytes_max: r.number("limits.token_bytes_max", 64..=MANY)?,
        ref_bytes_max: r.number("limits.ref_bytes_max", 1..=MANY)?,
        channels_per_transport_max: r.number("limits.channels_per_transport_max", 1..=MANY)?,
        scopes_per_app_max: r.number("limits.scopes_per_app_max", 1..=MANY)?,
        presence_members_max: r.number("limits.presence_members_max", 1..=MANY)?,
        outbox_frames_max: r.number("limits.outbox_frames_max", 1..=MANY)?,
        outbox_bytes_max: r.number("limits.outbox_bytes_max", 1_024..=GIGABYTE)?,
        outboxes_bytes_max: r.number_or("limits.outboxes_bytes_max", "auto")?,
        publications_in_flight_max: r.number("limits.publications_in_flight_max", 100..=MANY)?,
        failed_admin_logins_per_minute_max: r
            .number("limits.failed_admin_logins_per_minute_max", 1..=MANY)?,
        sessions_max: r.number_or("limits.sessions_max", "auto")?,
        http_connections_max: r.number_or("limits.http_connections_max", "auto")?,
        sessions_per_app_max: r.number_or("limits.sessions_per_app_max", "off")?,
        sessions_per_address_max: r.number_or("limits.sessions_per_address_max", "off")?,
    })
}

fn metrics(r: &mut Reader) -> Result<Metrics, SettingsError> {
    let key = "metrics.listen";
    let listen = match r.text(key)?.as_str() {
        "" => None,
        raw => {
            let right = "an address and a port such as 127.0.0.1:9100, or empty";
            Some(raw.parse().map_err(|_| r.not(key, right))?)
        }
    };
    Ok(Metrics { listen, apps_max: r.number("metrics.apps_max", 0..=10_000)? })
}

fn filter(r: &mut Reader) -> Result<String, SettingsError> {
    let key = "log.filter";
    let filter = r.text(key)?;
    match env_filter::Builder::new().try_parse(&filter) {
        Ok(_) => Ok(filter),
        Err(_) => Err(r.not(key, "levels by module, such as \"info\" or \"warn,herald=debug\"")),
    }
}

/// The password that everybody knows opens the admin API to nobody but this machine.
fn judge_admin(settings: &Settings, r: &Reader) -> Result<(), SettingsError> {
    let known_to_all = settings.admin.password.expose_secret() == DEFAULT_PASSWORD;
    let host = settings.server.host;
    if !known_to_all || (host.is_loopback() && settings.env != Environment::Production) {
        return Ok(());
    }
    let fault = format!(
        "must not be the default, which is known to all, on {host}: set PUSHER_ADMIN_PASSWORD, or \
         listen on 127.0.0.1 in development"
    );
    Err(r.fault("admin.password", fault))
}

/// What one member of a presence channel may weigh when all of them are told of at once: its old meta
/// and its new one of 1 KB each, and for each a key of 128 bytes with all of them escaped, references.
const PRESENCE_MEMBER_BYTES: usize = 4_096;

/// A limit that another one makes unreachable is a mistake.
fn judge_limits(limits: &Limits, r: &Reader) -> Result<(), SettingsError> {
    let payload = limits.trigger_payload_bytes_max.max(limits.client_event_bytes_max);
    let members = limits.presence_members_max.saturating_mul(PRESENCE_MEMBER_BYTES);
    for (key, larger, smaller_key, smaller) in [
        (
            "limits.message_bytes_max",
            limits.message_bytes_max,
            "limits.client_event_bytes_max",
            limits.client_event_bytes_max,
        ),
        (
            "limits.message_bytes_max",
            limits.message_bytes_max,
            "limits.token_bytes_max",
            limits.token_bytes_max,
        ),
        (
            "limits.unfinished_bytes_max",
            limits.unfinished_bytes_max,
            "limits.message_bytes_max",
            limits.message_bytes_max,
        ),
        (
            "limits.request_body_bytes_max",
            limits.request_body_bytes_max,
            "limits.trigger_payload_bytes_max",
            limits.trigger_payload_bytes_max,
        ),
        (
            "limits.bodies_bytes_max",
            limits.bodies_bytes_max,
            "two bodies (request_body_bytes_max), since visitors' may fill half of it",
            limits.request_body_bytes_max.saturating_mul(2),
        ),
        (
            "limits.outbox_bytes_max",
            limits.outbox_bytes_max,
            "the largest payload (trigger_payload_bytes_max, client_event_bytes_max)",
            payload,
        ),
        (
            "limits.outbox_bytes_max",
            limits.outbox_bytes_max,
            "what all members of a presence channel may weigh (presence_members_max)",
            members,
        ),
    ] {
        if larger <= smaller {
            let fault = format!("must be more than {smaller_key}, {smaller} bytes, not {larger}");
            return Err(r.fault(key, fault));
        }
    }
    if let Some(all) = limits.outboxes_bytes_max.filter(|all| *all < limits.outbox_bytes_max) {
        let one = limits.outbox_bytes_max;
        let fault = format!("must be at least limits.outbox_bytes_max, {one}, not {all}");
        return Err(r.fault("limits.outboxes_bytes_max", fault));
    }
    judge_session_limits(limits, r)
}

/// A part of the sessions is no more than all of them, where their number is given.
fn judge_session_limits(limits: &Limits, r: &Reader) -> Result<(), SettingsError> {
    let Some(all) = limits.sessions_max else { return Ok(()) };
    for (key, part) in [
        ("limits.sessions_per_app_max", limits.sessions_per_app_max),
        ("limits.sessions_per_address_max", limits.sessions_per_address_max),
    ] {
        if let Some(part) = part.filter(|part| *part > all) {
            let fault = format!("must be at most limits.sessions_max, {all}, not {part}");
            return Err(r.fault(key, fault));
        }
    }
    Ok(())
}

/// Production starts with nothing weak, and with a database that somebody chose.
fn judge_production(settings: &Settings, r: &Reader) -> Result<(), SettingsError> {
    if r.comes_from_default(DATABASE_URL, settings.database.url.expose_secret()) {
        let how = "DATABASE_URL=postgres://user:password@host/database, or sqlite://<file>";
        return Err(r.fault(DATABASE_URL, format!("must be set in production: {how}")));
    }
    let password = settings.admin.password.expose_secret();
    if password.chars().count() < PASSWORD_CHARS_MIN {
        let fault = format!("must have {PASSWORD_CHARS_MIN} characters or more in production");
        return Err(r.fault("admin.password", fault));
    }
    let keys = [
        ("secrets.guardian_secret", settings.secrets.guardian_secret.as_ref()),
        ("secrets.secret_key_base", Some(&settings.secrets.secret_key_base)),
    ];
    for (key, secret) in keys {
        if secret.is_some_and(|secret| secret.expose_secret().len() < KEY_BYTES_MIN) {
            let fault = format!("must have {KEY_BYTES_MIN} bytes or more in production");
            return Err(r.fault(key, fault));
        }
    }
    if settings.database.seed {
        return Err(
            r.fault("database.seed", "must be false in production: its secret is known to all")
        );
    }
    Ok(())
}
