//! Enrolment: the checks that a node makes before it takes part, and the way in which it takes its
//! number.

use std::time::{Duration, Instant};

use bytes::Bytes;
use log::{info, warn};
use redis::aio::MultiplexedConnection;

use super::{
    EngineError, RedisNode,
    agreement::CheckResult,
    connect::{ConnectFault, Info},
    driver, retention, script,
};
use crate::{
    engine::{
        Incarnation, NodeId,
        request::{Instance, Life, LogRequest, Renew, Renewal, Reply},
    },
    settings::EngineSettings,
};

/// The time between two attempts to reach Redis.
const RETRY: Duration = Duration::from_millis(250);

/// The oldest version of Redis that has all commands of the scripts.
const VERSION_MIN: (u32, u32) = (6, 2);

/// Waits for Redis, checks it, and takes a number for this node.
///
/// # Errors
/// [`EngineError`]: after the time limit if Redis cannot be reached, at once if Redis refuses or does not
/// fit the settings.
pub(super) async fn enroll(node: &RedisNode, instance: Instance) -> Result<Life, EngineError> {
    let (settings, begun) = (&node.settings, Instant::now());
    let mut is_told = false;
    loop {
        let fault = match attempt(node, instance).await {
            Ok(Ok(life)) => return Ok(life),
            Ok(Err(refusal)) => return Err(refusal),
            Err(fault) => fault.0,
        };
        if begun.elapsed() >= settings.connect_retry {
            let (name, waited) = (settings.name(), settings.connect_retry);
            return Err(EngineError(format!(
                "cannot reach {name} within {waited:?}: {fault}; engine.redis_url says where it is"
            )));
        }
        if !std::mem::replace(&mut is_told, true) {
            warn!(
                "cannot reach {}: {fault}; trying for {:?}",
                settings.name(),
                settings.connect_retry
            );
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn attempt(node: &RedisNode, instance: Instance) -> CheckResult<Life> {
    let (mut commands, info) = node.target.look().await?;
    if let Err(refusal) = judge(&node.settings, &info) {
        return Ok(Err(refusal));
    }
    if info.field("role") != Some("master") {
        return Err(ConnectFault("it is a replica".to_owned()));
    }
    if let Err(refusal) = node.agreement.check(&mut commands).await? {
        return Ok(Err(refusal));
    }
    take_number(node, instance, commands).await.map(Ok)
}

fn judge(settings: &EngineSettings, info: &Info) -> Result<(), EngineError> {
    let name = settings.name();
    let version = info.field("redis_version").unwrap_or_default();
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    let found = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if found < VERSION_MIN {
        return Err(EngineError(format!(
            "{name} is Redis {version}; Herald needs Redis 6.2 or newer, or Valkey"
        )));
    }
    let is_cluster = info.field("redis_mode") == Some("cluster");
    if is_cluster != settings.cluster {
        let is = if is_cluster { "is" } else { "is not" };
        return Err(EngineError(format!(
            "{name} {is} a Redis Cluster: set engine.cluster = {is_cluster}"
        )));
    }
    let policy = info.field("maxmemory_policy").unwrap_or("noeviction");
    if policy != "noeviction" && info.field("maxmemory") != Some("0") {
        warn!(
            "{name} evicts keys when its memory is full (maxmemory-policy {policy}), so records and \
             idempotency keys may be lost: set it to noeviction"
        );
    }
    Ok(())
}

async fn take_number(
    node: &RedisNode,
    instance: Instance,
    commands: MultiplexedConnection,
) -> Result<Life, ConnectFault> {
    let settings = &node.settings;
    let incarnation = Incarnation((uuid::Uuid::new_v4().as_u128() as u64).max(1));
    for _ in 0..u16::MAX {
        // The number is random, so that two nodes hardly ever have the same one, even if Redis has forgotten
        // which numbers are taken.
        let number = NodeId((uuid::Uuid::new_v4().as_u128() as u16).max(1));
        let renew = LogRequest::Renew(Renew {
            life: (number, incarnation),
            instance,
            ttl: settings.node_timeout,
            is_first: true,
            info: Bytes::new(),
        });
        let read = script::reader_of(&renew);
        let spelling = script::spell(&node.keys, node.keys.control(), renew, retention(settings));
        match driver::ask(commands.clone(), spelling, read).await {
            Ok(Reply::Renewed { outcome: Renewal::Held, .. }) => {
                info!("this is node {} of {}", number.0, settings.name());
                return Ok((number, incarnation));
            }
            Ok(_) => {}
            Err(failure) => return Err(ConnectFault(failure.to_string())),
        }
    }
    Err(ConnectFault("all numbers are taken".to_owned()))
}
