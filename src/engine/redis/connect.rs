//! Connections to Redis: to one server, to the one that Sentinel names, or to the nodes of a Redis Cluster.

use std::{collections::BTreeMap, io, time::Duration};

use bytes::Bytes;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue,
    IntoConnectionInfo, RedisError, TlsCertificates, Value,
    aio::{MultiplexedConnection, PubSubStream},
    io::tcp::TcpSettings,
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::keys::{Channels, RedisKeys};
use crate::{
    engine::request::{Identity, LogIndex},
    settings::{EngineSettings, REDIS_PORT},
};

/// The time that each step of making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The reason why no connection could be made. The text contains no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct ConnectFault(pub(super) String);

impl From<RedisError> for ConnectFault {
    fn from(error: RedisError) -> Self {
        Self(describe(&error))
    }
}

/// The text of an error of the Redis client, for a log line. It contains no password.
pub(super) fn describe(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        (None, _) => error.to_string(),
    }
}

/// The addresses of the servers.
#[derive(Debug)]
pub(super) struct RedisTarget {
    urls: Vec<Url>,
    authorities: Option<Vec<u8>>,
    sentinel_master: Option<String>,
    sentinel_password: SecretString,
    is_cluster: bool,
    keys: RedisKeys,
}

/// The address of a server, and the logs that are stored on it.
struct RedisServer {
    info: ConnectionInfo,
    logs: Vec<LogIndex>,
}

/// A connection to a server, whose channels are subscribed.
pub(super) struct RedisConnection {
    pub(super) identity: Identity,
    pub(super) logs: Vec<LogIndex>,
    pub(super) commands: MultiplexedConnection,
    pub(super) pushes: PubSubStream,
}

/// The facts that a server states about itself.
#[derive(Debug)]
pub(super) struct Info(String);

impl Info {
    async fn read(commands: &mut MultiplexedConnection) -> Result<Self, ConnectFault> {
        let mut text = String::new();
        for section in ["server", "replication", "memory"] {
            text += &ask::<String>(commands, redis::cmd("INFO").arg(section)).await?;
        }
        Ok(Self(text))
    }

    /// The value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// The identity of the server's process and its data, in the spelling of the scripts: that of the process
    /// alone if it has been no replica, because it then changes its `master_replid` without having other data.
    fn identity(&self) -> Option<Identity> {
        let [run, replication] = [self.field("run_id")?, self.field("master_replid")?];
        let second = self.field("master_replid2");
        let was_replica = second.is_none_or(|second| second.contains(|digit| digit != '0'));
        let replication = if was_replica { replication } else { "" };
        Some(Identity(Bytes::from(format!("{run}{replication}"))))
    }
}

/// Sends a command, and waits for its answer for a limited time.
pub(super) async fn ask<T: FromRedisValue>(
    commands: &mut MultiplexedConnection,
    command: &Cmd,
) -> Result<T, ConnectFault> {
    match tokio::time::timeout(CONNECT_TIMEOUT, command.query_async(commands)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ConnectFault("it did not answer in time".to_owned())),
    }
}

impl RedisTarget {
    /// Reads the settings, and the file of certificate authorities if there is one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn new(settings: &EngineSettings, keys: RedisKeys) -> io::Result<Self> {
        Ok(Self {
            urls: settings.urls(),
            authorities: settings.authorities()?,
            sentinel_master: settings.sentinel_master.clone(),
            sentinel_password: settings.sentinel_password.clone(),
            is_cluster: settings.cluster,
            keys,
        })
    }

    /// The log whose server has the leases.
    pub(super) fn control(&self) -> LogIndex {
        self.keys.control()
    }

    /// Connects to the server of the leases, and reads its `INFO`.
    pub(super) async fn look(&self) -> Result<(MultiplexedConnection, Info), ConnectFault> {
        let control = self.control();
        let servers = self.servers().await?;
        let server = servers.into_iter().find(|server| server.logs.contains(&control));
        let server = server.ok_or_else(|| ConnectFault("no server has the leases".to_owned()))?;
        let mut commands = self.commands(&self.client(server.info)?).await?;
        let info = Info::read(&mut commands).await?;
        Ok((commands, info))
    }

    /// Connects to all servers, and subscribes to a node's channels.
    pub(super) async fn connect(
        &self,
        channels: &Channels,
    ) -> Result<Vec<RedisConnection>, ConnectFault> {
        let servers = self.servers().await?;
        let connected = servers.into_iter().map(|server| self.connect_to(server, channels));
        futures_util::future::try_join_all(connected).await
    }

    async fn connect_to(
        &self,
        RedisServer { info, logs }: RedisServer,
        channels: &Channels,
    ) -> Result<RedisConnection, ConnectFault> {
        let client = self.client(info)?;
        let mut commands = self.commands(&client).await?;
        let subscribed = async {
            let (mut sink, pushes) = client.get_async_pubsub().await?.split();
            // The call completes when the server has confirmed every channel.
            sink.subscribe(channels.of(&logs)).await?;
            Ok::<_, RedisError>(pushes)
        };
        let Ok(pushes) = tokio::time::timeout(CONNECT_TIMEOUT, subscribed).await else {
            return Err(ConnectFault("it did not confirm the subscriptions in time".to_owned()));
        };
        let (pushes, info) = (pushes?, Info::read(&mut commands).await?);
        if info.field("role") != Some("master") {
            return Err(ConnectFault("it is a replica".to_owned()));
        }
        let unknown = || ConnectFault("it does not say which server it is".to_owned());
        let identity = info.identity().ok_or_else(unknown)?;
        Ok(RedisConnection { identity, logs, commands, pushes })
    }

    async fn commands(&self, client: &Client) -> Result<MultiplexedConnection, ConnectFault> {
        // A call has no timeout of its own, because the machine's probes find a server that does not answer.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        let made = client.get_multiplexed_async_connection_with_config(&config);
        match tokio::time::timeout(CONNECT_TIMEOUT * 2, made).await {
            Ok(made) => Ok(made?),
            Err(_) => Err(ConnectFault("it did not accept the connection in time".to_owned())),
        }
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, ConnectFault> {
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let info = info
            .set_redis_settings(settings)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(match &self.authorities {
            None => Client::open(info)?,
            Some(authorities) => {
                let root_cert = Some(authorities.clone());
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })?
            }
        })
    }

    async fn servers(&self) -> Result<Vec<RedisServer>, ConnectFault> {
        let mut fault = ConnectFault("engine.redis_url names no server".to_owned());
        for url in &self.urls {
            let found = match &self.sentinel_master {
                Some(master) => self.ask_sentinel(url, master).await,
                None if self.is_cluster => self.ask_cluster(url).await,
                None => {
                    let logs = self.keys.logs().collect();
                    Ok(vec![RedisServer { info: url.clone().into_connection_info()?, logs }])
                }
            };
            match found {
                Ok(servers) => return Ok(servers),
                Err(found) => fault = found,
            }
        }
        Err(fault)
    }

    /// Asks a Sentinel for the address of the server. The user, the password and the database of the URL are
    /// those of the server.
    async fn ask_sentinel(
        &self,
        url: &Url,
        master: &str,
    ) -> Result<Vec<RedisServer>, ConnectFault> {
        let server = url.clone().into_connection_info()?;
        let mut sentinel = server.clone();
        let mut settings = redis::RedisConnectionInfo::default();
        let password = self.sentinel_password.expose_secret();
        if !password.is_empty() {
            settings = settings.set_password(password);
        }
        let default_port = 26_379;
        let port = url.port().unwrap_or(default_port);
        let address = with_address(server.addr(), url.host_str().unwrap_or_default(), port);
        sentinel = sentinel.set_redis_settings(settings).set_addr(address);
        let mut commands = self.commands(&self.client(sentinel)?).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(master);
        let Some((host, port)) = ask::<Option<(String, u16)>>(&mut commands, &command).await?
        else {
            return Err(ConnectFault(format!("Sentinel does not know the master {master}")));
        };
        let address = with_address(server.addr(), &host, port);
        Ok(vec![RedisServer { info: server.set_addr(address), logs: self.keys.logs().collect() }])
    }

    /// Asks a node of a Redis Cluster which nodes have the logs.
    async fn ask_cluster(&self, url: &Url) -> Result<Vec<RedisServer>, ConnectFault> {
        let seed = url.clone().into_connection_info()?;
        let mut commands = self.commands(&self.client(seed.clone())?).await?;
        let slots: Value = ask(&mut commands, redis::cmd("CLUSTER").arg("SLOTS")).await?;
        let ranges = read_slots(&slots).unwrap_or_default();
        let mut servers = BTreeMap::<(String, u16), Vec<LogIndex>>::new();
        for log in self.keys.logs() {
            let slot = self.keys.slot(log);
            let found = ranges.iter().find(|(range, _)| range.contains(&slot));
            let Some((_, (host, port))) = found else {
                return Err(ConnectFault(format!("no node of the cluster has the slot {slot}")));
            };
            // A node that does not know its own address leaves it empty.
            let seed_host = url.host_str().unwrap_or_default();
            let host = if host.is_empty() { seed_host } else { host };
            servers.entry((host.to_owned(), *port)).or_default().push(log);
        }
        let servers = servers.into_iter().map(|((host, port), logs)| {
            let address = with_address(seed.addr(), &host, port);
            RedisServer { info: seed.clone().set_addr(address), logs }
        });
        Ok(servers.collect())
    }
}

/// The address of another host and port, with the kind and the TLS of an address.
fn with_address(like: &ConnectionAddr, host: &str, port: u16) -> ConnectionAddr {
    let host = host.trim_matches(['[', ']']).to_owned();
    match like {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, if port == 0 { REDIS_PORT } else { port }),
    }
}

type Slots = (std::ops::RangeInclusive<u16>, (String, u16));

fn read_slots(value: &Value) -> Option<Vec<Slots>> {
    let Value::Array(ranges) = value else { return None };
    let ranges = ranges.iter().map(|range| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else {
            return None;
        };
        let [host, Value::Int(port), ..] = &master[..] else { return None };
        let host = match host {
            Value::BulkString(host) => String::from_utf8(host.clone()).ok()?,
            _ => String::new(),
        };
        let slots = u16::try_from(*first).ok()?..=u16::try_from(*last).ok()?;
        Some((slots, (host, u16::try_from(*port).ok()?)))
    });
    ranges.collect()
}
