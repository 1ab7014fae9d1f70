//! The values on which all nodes of a prefix agree: the number of partitions, the owner, and the format of the
//! log. Redis has them under a key of their own.
//!
//! A node checks them when it starts, and again whenever it has connected: a Redis that has lost its data has
//! lost these values as well, and the first node that comes back restores them. Without that, a node with other
//! values could start meanwhile, and neither side would notice that they do not read each other's records.

use redis::aio::MultiplexedConnection;

use super::{
    EngineError,
    connect::{ConnectFault, ask},
    keys::RedisKeys,
    script::FORMAT,
};
use crate::settings::EngineSettings;

const AGREE: &str = include_str!("scripts/agree.lua");

/// The result of something that Redis may refuse for good, and that may also fail because of the connection.
pub(super) type CheckResult<T> = Result<Result<T, EngineError>, ConnectFault>;

/// The values of one node.
#[derive(Debug, Clone)]
pub(super) struct Agreement {
    keys: RedisKeys,
    prefix: String,
    partitions: u16,
    owner: String,
    format: String,
}

impl Agreement {
    /// The values of a node with these settings. `owner` is the same for all nodes that may share the prefix.
    pub(super) fn new(settings: &EngineSettings, keys: RedisKeys, owner: [u8; 16]) -> Self {
        let owner = owner.iter().map(|byte| format!("{byte:02x}")).collect();
        // Before this format, the channels of databases other than 0 had names without the number of the database.
        let format = match settings.database() {
            0 => FORMAT.to_string(),
            _ => format!("{FORMAT}b"),
        };
        Self {
            keys,
            prefix: settings.prefix.clone(),
            partitions: settings.partitions,
            owner,
            format,
        }
    }

    /// Compares the values with those in Redis, and writes them if Redis has none. The connection must lead to
    /// the server of the leases.
    ///
    /// # Errors
    /// The inner one: Redis has other values.
    pub(super) async fn check(&self, commands: &mut MultiplexedConnection) -> CheckResult<()> {
        let mut command = redis::cmd("EVAL");
        command.arg(AGREE).arg(2).arg(self.keys.meta()).arg(self.keys.nodes());
        command.arg(self.partitions).arg(&self.owner).arg(&self.format);
        let (verdict, found) = ask::<(String, String)>(commands, &command).await?;
        let (prefix, wanted, format) = (&self.prefix, self.partitions, &self.format);
        Ok(Err(EngineError(match verdict.as_str() {
            "ok" => return Ok(Ok(())),
            "partitions" => format!(
                "engine.partitions is {wanted}, but the servers of the prefix \"{prefix}\" use {found}: set it to \
                 {found}, or choose another engine.prefix"
            ),
            "owner" => format!(
                "engine.prefix \"{prefix}\" is used by servers with another SECRET_KEY_BASE: set the same, or choose \
                 another prefix"
            ),
            "format" => format!(
                "the servers of the prefix \"{prefix}\" write their log in format {found}, and this version of \
                 Herald in format {format}: stop them first, or choose another engine.prefix"
            ),
            _ => format!(
                "engine.prefix \"{prefix}\" is used by something else in this Redis: choose another one"
            ),
        })))
    }
}
