//! The settings of the engine: whether this server is a node of a cluster, and through which Redis.

use std::{fs, io, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use crate::app::database::masked;

/// The kind of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// No engine: this server is not part of a cluster.
    Local,
    /// A Redis that the nodes of a cluster share.
    Redis,
}

/// The section `engine`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSettings {
    /// Whether there is an engine, and of which kind it is.
    pub kind: EngineKind,
    /// The URLs of the Redis servers, separated by commas; holds passwords.
    pub redis_url: SecretString,
    /// The first part of the name of every key and channel in Redis.
    pub prefix: String,
    /// The number of partitions of the log.
    pub partitions: u16,
    /// The interval at which a node tests its connections by a round trip through Redis.
    pub probe_interval: Duration,
    /// The longest time after which a silent node is removed from the cluster.
    pub node_timeout: Duration,
    /// The time for which a starting server retries to reach Redis.
    pub connect_retry: Duration,
    /// The most records that each partition of the log retains.
    pub log_records_max: u64,
    /// The most bytes that each partition of the log retains.
    pub log_bytes_max: u64,
    /// The time for which a partition retains records.
    pub log_age: Duration,
    /// The file with the certificates of the authorities that TLS trusts, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// The name under which Sentinel knows the Redis; then the URLs are those of the Sentinels.
    pub sentinel_master: Option<String>,
    /// The password of the Sentinels.
    pub sentinel_password: SecretString,
    /// Whether the URLs are those of nodes of a Redis Cluster.
    pub cluster: bool,
}

impl EngineSettings {
    /// The certificates of the authorities in `ca_file`, as the bytes of the file; `None` without such a file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn authorities(&self) -> io::Result<Option<Vec<u8>>> {
        self.ca_file.as_ref().map(fs::read).transpose()
    }

    /// The URLs of the Redis servers.
    pub fn urls(&self) -> Vec<Url> {
        let urls = self.redis_url.expose_secret().split(',');
        urls.filter_map(|url| Url::parse(url.trim()).ok()).collect()
    }

    /// The number of the database in Redis, which all URLs name.
    pub fn database(&self) -> u16 {
        self.urls().first().map_or(0, database_of)
    }

    /// The hosts of the Redis servers, as they may be shown.
    pub fn name(&self) -> String {
        let hosts = self.urls().into_iter().map(|url| {
            let host = url.host_str().unwrap_or_default().to_owned();
            format!("{}://{host}:{}", url.scheme(), url.port().unwrap_or(DEFAULT_PORT))
        });
        hosts.collect::<Vec<_>>().join(",")
    }
}

/// The most bytes of a question, an answer or a message between the nodes of a cluster.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// The port of a Redis whose URL does not name one.
pub const DEFAULT_PORT: u16 = 6379;

/// The number of the database that a URL of Redis names.
pub(super) fn database_of(url: &Url) -> u16 {
    url.path().trim_start_matches('/').parse().unwrap_or_default()
}

/// URLs of Redis servers without passwords; `None` if one of them is not such a URL.
pub(super) fn shown_urls(raw: &str) -> Option<String> {
    let shown = raw.split(',').map(|url| shown_url(url.trim())).collect::<Option<Vec<_>>>()?;
    Some(shown.join(","))
}

fn shown_url(raw: &str) -> Option<String> {
    let url = masked(raw, ["redis", "rediss"])?;
    let database = url.path().trim_start_matches('/');
    let is_database = database.is_empty() || database.parse::<u16>().is_ok();
    let is_plain = is_database && url.query().is_none() && url.fragment().is_none();
    is_plain.then(|| url.to_string())
}
