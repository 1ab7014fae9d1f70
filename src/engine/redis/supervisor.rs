//! The supervisor of the connections: it makes them, and makes them anew when one breaks, without limit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use log::error;
use redis::aio::{MultiplexedConnection, PubSubStream};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    agreement::{Agreement, CheckResult},
    connect::{RedisConnection, RedisTarget},
    driver::DriverEvent,
    keys::Channels,
};
use crate::engine::{
    machine::LineId,
    request::{Identity, LogIndex},
};

/// The most pushed bytes that may wait for the engine's thread. Beyond them the connection is closed, and
/// the missing messages are read from the log, at the pace of the thread.
const PUSHED_BYTES_MAX: usize = 64 << 20;

/// The shortest and the longest time between two attempts to connect. Up to half of the time is randomly added or
/// subtracted.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The longest time is also at most `node_timeout` divided by this: after an outage every node must have
/// renewed its lease before another node finds it expired.
const BACKOFF_PART: u32 = 10;

/// The time after which a connection counts as a success, so that the next attempt is made soon.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// The time that finding and connecting all servers may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// A connection that was made.
pub(super) struct Up {
    pub(super) line: LineId,
    pub(super) identity: Identity,
    pub(super) logs: Vec<LogIndex>,
    pub(super) commands: MultiplexedConnection,
    /// The bytes that were pushed and have not been taken yet.
    pub(super) waiting: Arc<AtomicUsize>,
}

/// The maker and the keeper of the connections.
pub(super) struct Supervisor {
    pub(super) target: RedisTarget,
    pub(super) agreement: Agreement,
    pub(super) channels: Channels,
    pub(super) node_timeout: Duration,
    pub(super) events: mpsc::UnboundedSender<DriverEvent>,
}

impl Supervisor {
    /// Keeps the connections until the driver is gone. All of them are made anew when one breaks, because a
    /// Redis Cluster may have moved logs to other servers.
    pub(super) async fn run(self, mut breaks: mpsc::UnboundedReceiver<(LineId, String)>) {
        let (mut lines, mut attempt, mut refused) = (0, 0, String::new());
        let longest = BACKOFF_MAX.min(self.node_timeout / BACKOFF_PART);
        while !self.events.is_closed() {
            let made = tokio::time::timeout(CONNECT_MAX, self.connect()).await;
            let begun = Instant::now();
            let reason = match made {
                Ok(Ok(Ok(connections))) => {
                    refused.clear();
                    let first = lines + 1;
                    lines += connections.len() as u64;
                    let reason = self.keep(first, connections, &mut breaks).await;
                    for line in first..=lines {
                        let _ = self.events.send(DriverEvent::Down(LineId(line), reason.clone()));
                    }
                    reason
                }
                Ok(Ok(Err(refusal))) => {
                    let text = refusal.to_string();
                    // The other attempts meet the same refusal until somebody acts.
                    if refused != text {
                        error!("this node does not connect to redis again: {text}");
                        refused.clone_from(&text);
                    }
                    text
                }
                Ok(Err(fault)) => fault.to_string(),
                Err(_) => "it cannot be reached in time".to_owned(),
            };
            attempt = if begun.elapsed() > STABLE_AFTER { 0 } else { attempt + 1 };
            let _ = self.events.send(DriverEvent::Down(LineId(0), reason));
            tokio::select! {
                () = tokio::time::sleep(backoff(attempt, longest)) => {}
                () = self.events.closed() => {}
            }
        }
    }

    /// Connects to all servers. Redis may have lost its data since the last time, and other nodes may have begun
    /// to use it, so the values on which all nodes agree are checked again.
    async fn connect(&self) -> CheckResult<Vec<RedisConnection>> {
        let mut connections = self.target.connect(&self.channels).await?;
        let control = self.target.control();
        for RedisConnection { logs, commands, .. } in &mut connections {
            if logs.contains(&control)
                && let Err(refusal) = self.agreement.check(commands).await?
            {
                return Ok(Err(refusal));
            }
        }
        Ok(Ok(connections))
    }

    /// Uses connections until one of them breaks. Returns the reason.
    async fn keep(
        &self,
        first: u64,
        connections: Vec<RedisConnection>,
        breaks: &mut mpsc::UnboundedReceiver<(LineId, String)>,
    ) -> String {
        let mut forwarding = JoinSet::new();
        for (line, connected) in (first..).map(LineId).zip(connections) {
            let RedisConnection { identity, logs, commands, pushes } = connected;
            let waiting = Arc::new(AtomicUsize::new(0));
            let up = Up { line, identity, logs, commands, waiting: waiting.clone() };
            if self.events.send(DriverEvent::Up(up)).is_err() {
                return String::new();
            }
            let (channels, events) = (self.channels.clone(), self.events.clone());
            forwarding.spawn(forward(line, pushes, channels, events, waiting));
        }
        loop {
            tokio::select! {
                ended = forwarding.join_next() => {
                    return ended.and_then(Result::ok).unwrap_or_default().to_owned();
                }
                asked = breaks.recv() => match asked {
                    // A request for a line of earlier connections is out of date.
                    Some((line, reason)) if line.0 >= first => return reason,
                    Some(_) => {}
                    None => return String::new(),
                },
            }
        }
    }
}

/// Passes pushes to the driver until the connection ends. Returns the reason.
async fn forward(
    line: LineId,
    mut pushes: PubSubStream,
    channels: Channels,
    events: mpsc::UnboundedSender<DriverEvent>,
    waiting: Arc<AtomicUsize>,
) -> &'static str {
    while let Some(message) = pushes.next().await {
        let channel = message.get_channel_name().to_owned();
        let Ok(payload) = message.get_payload::<Vec<u8>>() else { continue };
        let bytes = payload.len();
        let Some(push) = channels.read(&channel, Bytes::from(payload)) else { continue };
        if waiting.fetch_add(bytes, Relaxed) + bytes > PUSHED_BYTES_MAX {
            return "this server cannot keep up with what redis delivers";
        }
        if events.send(DriverEvent::Pushed(line, push, bytes)).is_err() {
            break;
        }
    }
    "the connection broke"
}

fn backoff(attempt: u32, longest: Duration) -> Duration {
    let longest = BACKOFF_MIN.saturating_mul(1 << attempt.min(10)).min(longest);
    // Between half and one and a half of the time, so that nodes do not all connect at the same moment.
    let chance = (uuid::Uuid::new_v4().as_u128() % 1_000) as u32;
    longest / 2 + longest * chance / 1_000
}
