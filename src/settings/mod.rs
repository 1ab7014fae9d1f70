//! Settings: typed, layered, validated once.
//!
//! `config/default.toml` documents every key; the structs here mirror it field by field. `layers`
//! joins three layers (the defaults, the environment's file, the process environment), `kinds` checks
//! each value's type, range and form, serde puts them into the structs, and `judge` checks the rules
//! that concern several settings. A [`Settings`] has always passed these checks, because loading is the only way
//! to make one.
//!
//! A new setting needs an entry in `config/default.toml` and a field here, and a line in `kinds` only
//! if its range is not the usual one. A key without a field, or a field without a key, fails every
//! test that loads settings.
//!
//! Only [`Settings::load`], [`Settings::explain`] and [`raise_file_limit`] touch the process
//! environment, so the tests are tables over [`Settings::load_from`].

mod engine;
mod error;
mod files;
mod history;
mod judge;
mod kinds;
mod layers;
mod memory;
mod pusher;
mod secret_key_base;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::app::{Slug, origin::OriginPolicy, registry::Times};

pub use crate::app::database::Database;

pub use engine::{DEFAULT_PORT as REDIS_PORT, EngineKind, EngineSettings, MESSAGE_BYTES_MAX};
pub use error::SettingsError;
pub use files::raise_file_limit;
pub use history::{AppHistory, HistoryFile, HistorySettings};
pub use kinds::parse_log_filter;
pub use layers::Effective;
pub use pusher::PusherSettings;

/// The folder of the operator's files, unless `HERALD_CONFIG_DIR` names another.
const CONFIG_DIR: &str = "config";

/// The environment of this process (`HERALD_ENV`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Environment {
    /// A developer's machine: loopback, SQLite, a seeded app.
    #[default]
    Development,
    /// The test suite.
    Test,
    /// Production: weak settings stop the start.
    Production,
}

impl Environment {
    /// Parses the value of `HERALD_ENV`.
    pub fn parse(raw: &str) -> Option<Self> {
        [Self::Development, Self::Test, Self::Production].into_iter().find(|e| e.as_str() == raw)
    }

    /// The value of `HERALD_ENV`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Test => "test",
            Self::Production => "production",
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The environment.
    #[serde(skip)]
    pub env: Environment,
    /// The only app, whose topics are all `<scope>:<channel>`; `None` serves several apps.
    #[serde(deserialize_with = "kinds::slug")]
    pub single_app: Option<Slug>,
    /// The section `server`: listening, proxies and shutdown.
    pub server: ServerSettings,
    /// The section `database`.
    pub database: Database,
    /// The section `admin`: the credentials of the admin API.
    pub admin: AdminSettings,
    /// The section `secrets`: the keys of the server.
    pub secrets: SecretSettings,
    /// The section `registry`: the table of apps in memory.
    pub registry: RegistrySettings,
    /// The section `audit`: the audit trail.
    pub audit: AuditSettings,
    /// The section `socket`: sessions over WebSocket and long-poll.
    pub socket: SocketSettings,
    /// The section `limits`: the most that clients, apps and the server may use.
    pub limits: LimitSettings,
    /// The section `history`: how much is retained and replayed.
    pub history: HistorySettings,
    /// The section `engine`: the connection with other servers.
    pub engine: EngineSettings,
    /// The section `pusher`: clients of Pusher.
    pub pusher: PusherSettings,
    /// The section `console`: the pages for the administrator and for apps.
    pub console: ConsoleSettings,
    /// The section `metrics`: the figures of the server.
    pub metrics: MetricsSettings,
    /// The section `usage`: the counts of what each app uses.
    pub usage: UsageSettings,
    /// The section `log`: logging.
    pub log: LogSettings,
}

impl Settings {
    /// How often the registry reads its table, and how long the audit trail is kept.
    pub fn registry_times(&self) -> Times {
        let days = u64::from(self.audit.retention_days);
        Times {
            refresh: self.registry.refresh,
            audit_retention: Duration::from_secs(days * 24 * 60 * 60),
        }
    }

    /// Loads the settings of this process from its environment, and from the folder `config` if there is
    /// one.
    ///
    /// # Errors
    /// [`SettingsError`] names the first setting that cannot be honoured.
    pub fn load() -> Result<Self, SettingsError> {
        Self::explain().map(|(settings, _)| settings)
    }

    /// Loads settings from the environment variables `env`, and from the files in `dir`, which may be
    /// missing; `HERALD_CONFIG_DIR` among `env` wins over `dir`.
    ///
    /// # Errors
    /// [`SettingsError`] names the first setting that cannot be honoured.
    pub fn load_from(
        env: impl Iterator<Item = (String, String)>,
        dir: Option<&Path>,
    ) -> Result<Self, SettingsError> {
        Self::explain_from(env, dir).map(|(settings, _)| settings)
    }

    /// Writes a generated secret key base to its file, so that the next start finds it. Only a server
    /// calls this, so that no other command leaves a file behind.
    ///
    /// # Errors
    /// [`SettingsError`] if the file cannot be created.
    pub fn keep(&mut self) -> Result<(), SettingsError> {
        self.secrets.keep_key_base()
    }

    /// Loads the settings as [`Settings::load`] does, and returns each setting's value and origin, too.
    ///
    /// # Errors
    /// [`SettingsError`] names the first setting that cannot be honoured.
    pub fn explain() -> Result<(Self, Vec<Effective>), SettingsError> {
        Self::explain_from(layers::process_environment()?.into_iter(), Some(Path::new(CONFIG_DIR)))
    }

    /// Loads the settings as [`Settings::load_from`] does, and returns each setting's value and origin,
    /// too. Secrets are masked.
    ///
    /// # Errors
    /// [`SettingsError`] names the first setting that cannot be honoured.
    pub fn explain_from(
        env: impl Iterator<Item = (String, String)>,
        dir: Option<&Path>,
    ) -> Result<(Self, Vec<Effective>), SettingsError> {
        let mut layers = layers::Layers::collect(env, dir)?;
        let mut settings: Self = layers.read()?;
        settings.env = layers.env;
        if let OriginPolicy::PublicHost(host) = &mut settings.socket.check_origin {
            host.clone_from(&settings.server.public_host);
        }
        settings.secrets.guardian_secret.take_if(|key| key.expose_secret().is_empty());
        settings.secrets.find_key_base(&mut layers)?;
        judge::judge(&settings, &layers)?;
        Ok((settings, layers.effective))
    }
}

/// The section `server`: listening, proxies and shutdown.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSettings {
    /// The address to listen on.
    pub host: IpAddr,
    /// The port to listen on; 0 takes a free one.
    pub port: u16,
    /// The number of worker threads; 0 is one per core.
    pub workers: usize,
    /// The host name by which browsers know this server.
    #[serde(deserialize_with = "kinds::host")]
    pub public_host: String,
    /// Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are trusted.
    #[serde(deserialize_with = "kinds::networks")]
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Whether requests that did not come over TLS are refused.
    pub force_ssl: bool,
    /// Whether the demo page is served.
    pub demo_page: bool,
    /// The time for which a connection is kept for another request.
    pub keep_alive: Duration,
    /// The time that a shutdown may take.
    pub shutdown_timeout: Duration,
    /// The number of sessions that a shutdown closes at once.
    pub drain_batch_sessions: usize,
    /// The pause between two such batches.
    #[serde(rename = "drain_interval_ms", deserialize_with = "kinds::milliseconds")]
    pub drain_interval: Duration,
}

/// The section `admin`: the credentials of the admin API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminSettings {
    /// The administrator's user name.
    pub username: String,
    /// The administrator's password.
    pub password: SecretString,
}

/// The section `secrets`: the keys of the server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretSettings {
    /// The operator's own token key, for apps with `shared_tokens`; empty is unset.
    pub guardian_secret: Option<SecretString>,
    /// The key from which Herald derives the keys that sign its own tokens.
    pub secret_key_base: SecretString,
    /// The file that holds `secret_key_base`, if one does.
    secret_key_base_file: Option<String>,
    /// Whether `secret_key_base` was generated at this start, because its file is missing, and is not
    /// saved yet.
    #[serde(skip)]
    is_unmade: bool,
}

/// The section `registry`: the table of apps in memory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySettings {
    /// The interval at which the table is read again.
    pub refresh: Duration,
}

/// The section `audit`: the audit trail.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSettings {
    /// For how many days entries are kept.
    pub retention_days: u32,
}

/// The section `socket`: sessions over WebSocket and long-poll.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketSettings {
    /// The global origin check at the handshake.
    #[serde(deserialize_with = "kinds::origin_policy")]
    pub check_origin: OriginPolicy,
    /// A session without inbound bytes for this long is closed.
    pub idle_timeout: Duration,
    /// A connection that has not sent the head of its first request after this time is closed.
    pub handshake_timeout: Duration,
    /// A message must be complete this long after its first byte.
    pub message_timeout: Duration,
    /// A write without progress for this long ends the session.
    pub write_timeout: Duration,
    /// The time for which a long-poll request waits for a frame.
    pub long_poll_window: Duration,
    /// A long-poll session without a joined topic for this long ends.
    pub long_poll_unjoined_timeout: Duration,
    /// The time for which changes of a presence channel are collected before they are announced
    /// together.
    pub presence_interval: Duration,
    /// The time for which a join or a publication may wait, for example for the tracker of its scope or for
    /// a permit.
    pub topic_timeout: Duration,
}

/// The section `limits`: the most that clients, apps and the server may use. The name of a field
/// says the unit.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSettings {
    /// The most bytes in the payload of one trigger.
    pub trigger_payload_bytes_max: usize,
    /// The most bytes in the payload of one client event.
    pub client_event_bytes_max: usize,
    /// The most events that one session may publish within a second.
    pub client_events_per_second_max: u32,
    /// The most joins that one session may try within a second.
    pub joins_per_second_max: u32,
    /// The most bytes of one socket message, all its fragments together.
    pub message_bytes_max: usize,
    /// The most frames that one session may send within a second.
    pub frames_per_second_max: u32,
    /// The most bytes of the incomplete requests and messages of all clients together.
    pub unfinished_bytes_max: usize,
    /// The most bytes of one request's body.
    pub request_body_bytes_max: usize,
    /// The most bytes of the bodies of all requests under way.
    pub bodies_bytes_max: usize,
    /// The most bytes of one token.
    pub token_bytes_max: usize,
    /// The most bytes of one `ref` or `join_ref`.
    pub ref_bytes_max: usize,
    /// The most topics that one session may have joined.
    pub channels_per_transport_max: usize,
    /// The most scopes with subscribers per app.
    pub scopes_per_app_max: usize,
    /// The most members tracked on one presence channel.
    pub presence_members_max: usize,
    /// The most frames that may wait for one session.
    pub outbox_frames_max: usize,
    /// The most bytes of frames that may wait for one session.
    pub outbox_bytes_max: usize,
    /// The most publications of one app that may be under way. All apps together may have twice as many.
    pub publications_in_flight_max: usize,
    /// The most idempotency keys that are remembered per app.
    pub idempotency_keys_max: usize,
    /// The most failed admin logins per minute and address.
    pub failed_admin_logins_per_minute_max: u32,
    /// The most sessions in all; `None` is as many as there are file handles for.
    pub sessions_max: Option<usize>,
    /// The most bytes of frames that may wait for all sessions together; `None` is a quarter of the
    /// available memory.
    pub outboxes_bytes_max: Option<usize>,
    /// The most plain HTTP connections; `None` is as many as there are file handles for.
    pub http_connections_max: Option<usize>,
    /// The most plain HTTP connections that wait for their clients.
    pub http_waiting_max: usize,
    /// The most sessions of one app; `None` is no bound.
    pub sessions_per_app_max: Option<usize>,
    /// The most sessions from one address; `None` is no bound.
    pub sessions_per_address_max: Option<usize>,
}

impl LimitSettings {
    /// The largest message that a session may send before it has joined a topic: the size of the largest
    /// join, or of the largest event, which a client may send before its join is answered.
    ///
    /// A join carries a guardian token and a CSRF token, and may carry parameters of the app's own
    /// beside them; these have as much room as the payload of an event. Topic and event name share
    /// 255 bytes, and JSON needs at most six for one.
    pub fn unjoined_message_bytes_max(&self) -> usize {
        const NAMES_BYTES_MAX: usize = 255;
        const PUNCTUATION_BYTES: usize = 256;
        let tokens = self.token_bytes_max.saturating_mul(2);
        let names = (NAMES_BYTES_MAX + 2 * self.ref_bytes_max).saturating_mul(6);
        let join = tokens.saturating_add(self.client_event_bytes_max).saturating_add(names);
        join.saturating_add(PUNCTUATION_BYTES).min(self.message_bytes_max)
    }

    /// The most bytes that may wait for all sessions together: the value of the setting, or else a
    /// quarter of the available memory, but at least as much as may wait for one session.
    pub fn outboxes_bytes_max(&self) -> usize {
        let quarter = || {
            let bytes = memory::available_bytes().map_or(usize::MAX, |all| (all / 4) as usize);
            bytes.max(self.outbox_bytes_max)
        };
        self.outboxes_bytes_max.unwrap_or_else(quarter)
    }
}

/// The section `console`: the pages for the administrator and for apps.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSettings {
    /// Whether the console is served.
    pub enabled: bool,
    /// Whether logins that did not come over TLS are accepted from other machines, too.
    pub insecure: bool,
}

/// The section `metrics`: the figures of the server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSettings {
    /// The address on which `GET /metrics` is answered without a login; `None` answers on the main
    /// port, with a login.
    pub listen: Option<SocketAddr>,
    /// The most apps that have series of their own.
    pub apps_max: usize,
}

/// The section `usage`: the counts of what each app uses.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageSettings {
    /// The interval at which the counts are written to the database.
    pub write_interval: Duration,
    /// The number of days for which the counts are kept.
    pub retention_days: u32,
}

/// The section `log`: logging.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// An `env_logger` filter, such as `info` or `herald=debug`.
    pub filter: String,
    /// The interval at which refusals of one app and reason are logged.
    pub refusal_interval: Duration,
}
