//! The engine of several nodes that share a Redis.
//!
//! Each partition of the log, and the log of the messages to all nodes, is a counter, a trimmed Redis stream,
//! and a channel; this room calls each of them a log. One script takes a batch, assigns its offsets, adds it
//! to the stream and publishes it; the script's answer is the acknowledgement. `scripts/` has the scripts,
//! `script` encodes their calls and decodes their answers, and `keys` has the names of their keys and
//! channels.
//!
//! The protocol is in [`machine`](super::machine). This module connects it with Redis: `connect` and
//! `supervisor` make connections and replace broken ones, `driver` is the engine's thread with a runtime of
//! its own, `agreement` checks whether this node and the others of the prefix have the same settings, and
//! `enroll` checks at the start whether this node may join the cluster.

mod agreement;
mod connect;
mod driver;
mod enroll;
mod keys;
mod script;
mod supervisor;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    sync::{Arc, Mutex},
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
};

use super::{
    Append, AppendError, Appended, Engine, EngineState, Follower, INFO_BYTES_MAX, Incarnation,
    NodeId, NodeInfo, NodeUnanswered, Partition, Snapshot, Unavailable,
    machine::{Config, Machine},
    request::Instance,
    shared::EngineShared,
};
use crate::{metrics::Metrics, settings::EngineSettings};
use agreement::Agreement;
use connect::RedisTarget;
use driver::{DriverEvent, MachineDriver};
use keys::{Channels, RedisKeys};
use script::LogRetention;
use supervisor::Supervisor;

/// The reason why a node cannot take part, as a text for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(String);

impl EngineError {
    /// The file of authorities cannot be read.
    pub fn authorities(error: io::Error) -> Self {
        Self(format!("cannot read engine.ca_file: {error}"))
    }

    fn thread(error: io::Error) -> Self {
        Self(format!("cannot start the thread of the engine: {error}"))
    }
}

/// The connection of one node to the others through Redis.
pub struct RedisEngine {
    node: NodeId,
    partitions: u16,
    shared: Arc<EngineShared>,
    events: mpsc::UnboundedSender<DriverEvent>,
    /// The thread ends when this is dropped.
    _stop: Mutex<Option<oneshot::Sender<()>>>,
}

impl fmt::Debug for RedisEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisEngine").field("node", &self.node).finish_non_exhaustive()
    }
}

impl RedisEngine {
    /// Starts the engine's thread, checks Redis, and takes a node's number. `owner` is the same for all
    /// servers that may share the prefix.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn start(
        settings: &EngineSettings,
        owner: [u8; 16],
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, EngineError> {
        let keys = RedisKeys::new(&settings.prefix, settings.partitions, settings.database());
        let target = RedisTarget::new(settings, keys.clone()).map_err(EngineError::authorities)?;
        let (settings, (stop, stopped)) = (settings.clone(), oneshot::channel());
        let (started, start) = oneshot::channel();
        let run = move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => {
                    let agreement = Agreement::new(&settings, keys.clone(), owner);
                    let node = RedisNode { settings, agreement, metrics, keys, target };
                    runtime.block_on(node.run(started, stopped));
                }
                Err(error) => {
                    let _ = started.send(Err(EngineError::thread(error)));
                }
            }
        };
        let thread = thread::Builder::new().name("engine".to_owned()).spawn(run);
        thread.map_err(EngineError::thread)?;
        let ended = || EngineError::thread(io::Error::other("it ended"));
        let Started { node, partitions, shared, events } = start.await.map_err(|_| ended())??;
        let _stop = Mutex::new(Some(stop));
        Ok(Arc::new(Self { node, partitions, shared, events, _stop }))
    }

    fn request(&self, request: impl FnOnce(&mut Machine, Instant) + Send + 'static) {
        // Without the thread the answer's channel is dropped, which its receiver takes for a failure.
        let _ = self.events.send(DriverEvent::Requested(Box::new(request)));
    }

    /// Ends the thread without giving up the lease, as a crash does.
    #[cfg(test)]
    fn crash(&self) {
        self._stop.lock().expect("no panic").take();
    }
}

struct Started {
    node: NodeId,
    partitions: u16,
    shared: Arc<EngineShared>,
    events: mpsc::UnboundedSender<DriverEvent>,
}

/// A node on its own thread.
struct RedisNode {
    settings: EngineSettings,
    agreement: Agreement,
    metrics: Arc<Metrics>,
    keys: RedisKeys,
    target: RedisTarget,
}

impl RedisNode {
    async fn run(
        self,
        started: oneshot::Sender<Result<Started, EngineError>>,
        stopped: oneshot::Receiver<()>,
    ) {
        let (seed, instance) = (uuid::Uuid::new_v4(), Instance(*uuid::Uuid::new_v4().as_bytes()));
        let enrolled = enroll::enroll(&self, instance).await;
        let (node, incarnation) = match enrolled {
            Ok(life) => life,
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        let Self { settings, agreement, metrics, keys, target } = self;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since_epoch.as_millis()).unwrap_or_default();
        let config = Config {
            partitions: settings.partitions,
            node,
            incarnation,
            instance,
            is_first: false,
            probe_interval: settings.probe_interval,
            node_timeout: settings.node_timeout,
            clock: (Instant::now(), now_ms),
            seed: seed.as_u128() as u64,
        };
        let kept = retention(&settings);
        let shared = EngineShared::new(incarnation);
        let machine = Machine::new(config, shared.clone(), metrics);
        let (events, received) = mpsc::unbounded_channel();
        let (breaks, broken) = mpsc::unbounded_channel();
        let channels = Channels::new(keys.clone(), node);
        let supervisor = Supervisor {
            target,
            agreement,
            channels,
            node_timeout: settings.node_timeout,
            events: events.clone(),
        };
        let supervisor = tokio::spawn(supervisor.run(broken));
        let driver = MachineDriver::new(machine, keys, kept, events.clone(), breaks);
        let partitions = settings.partitions;
        let made = Started { node, partitions, shared: shared.clone(), events };
        if started.send(Ok(made)).is_ok() {
            driver.run(received, stopped).await;
        }
        supervisor.abort();
        shared.state.send_replace(EngineState::Down { since: Instant::now() });
    }
}

fn retention(settings: &EngineSettings) -> LogRetention {
    LogRetention {
        records_max: settings.log_records_max,
        bytes_max: settings.log_bytes_max,
        age_ms: u64::try_from(settings.log_age.as_millis()).unwrap_or(u64::MAX),
    }
}

impl Engine for RedisEngine {
    fn node(&self) -> NodeId {
        self.node
    }

    fn incarnation(&self) -> Incarnation {
        self.shared.incarnation()
    }

    fn partitions(&self) -> u16 {
        self.partitions
    }

    fn follow(&self, follower: Arc<dyn Follower>) {
        self.request(move |machine, now| machine.follow(follower, now));
    }

    fn append(
        &self,
        partition: Partition,
        append: Append,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let (appended, answer) = oneshot::channel();
        self.request(move |machine, _| machine.append(partition, append, deadline, appended));
        async { answer.await.unwrap_or(Err(AppendError::Unavailable)) }.boxed()
    }

    fn tell(
        &self,
        message: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(), Unavailable>> {
        let (told, answer) = oneshot::channel();
        self.request(move |machine, _| machine.tell(message, deadline, told));
        async {
            match answer.await {
                Ok(Ok(_)) => Ok(()),
                _ => Err(Unavailable),
            }
        }
        .boxed()
    }

    fn ask(
        &self,
        to: Option<NodeId>,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<(NodeId, Bytes)>, NodeUnanswered>> {
        let (answered, answers) = oneshot::channel();
        self.request(move |machine, now| machine.ask(to, question, deadline, answered, now));
        async { answers.await.unwrap_or(Err(NodeUnanswered)) }.boxed()
    }

    fn members(
        &self,
        partition: Partition,
        place: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Snapshot, Unavailable>> {
        let (snapshot, answer) = oneshot::channel();
        self.request(move |machine, _| machine.members(partition, place, deadline, snapshot));
        async { answer.await.unwrap_or(Err(Unavailable)) }.boxed()
    }

    fn nodes(&self) -> Arc<[NodeInfo]> {
        self.shared.nodes()
    }

    fn describe(&self, info: Bytes) {
        debug_assert!(info.len() <= INFO_BYTES_MAX, "what a node publishes about itself is short");
        self.request(move |machine, now| machine.describe(info, now));
    }

    fn state(&self) -> watch::Receiver<EngineState> {
        self.shared.state.subscribe()
    }

    fn resume(&self, partition: Partition) {
        self.request(move |machine, _| machine.resume(partition));
    }

    fn leave(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let (done, left) = oneshot::channel();
        self.request(move |machine, now| machine.leave(deadline, done, now));
        async {
            let _ = left.await;
        }
        .boxed()
    }
}
