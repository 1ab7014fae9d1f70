//! The entry point of the broker: every publication passes through it, and so does every question
//! that all threads must answer. The submodules are [`publishing`], [`ending`], [`members`] and
//! [`retaining`].
//!
//! A server without a cluster numbers publications itself. In a cluster, the shared log numbers them.

mod ending;
mod members;
mod publishing;
mod retaining;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
use bytestring::ByteString;
use parking_lot::RwLock;

pub(super) use members::place_bytes;

use crate::{
    app::AppDirectory,
    engine::{Engine, EngineState},
    metrics::Metrics,
    settings::HistorySettings,
};

use super::{
    backlog::Backlog,
    cluster::Cluster,
    directory::{Directory, TooManyScopes},
    fanout::{Fanout, FanoutAddr, ThreadFanout, WorkerId},
    fanouts::Fanouts,
    feed::Feed,
    idempotency::IdempotencyKeys,
    last_events::LastEventLimits,
    ledger::RetentionLedger,
    listeners::{DeliveryCounters, ScopeSubscribers},
    numbering::Numbering,
    permits::Permits,
    receipt::Receipt,
    reference::References,
    subscriber::{ScopeKey, SubscribeError},
    users::Users,
};

/// The reason why a publication was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Too many publications are under way, and nothing was published; or the log of the cluster does not
    /// answer, and may already have the publication. A retry may succeed, and with an idempotency key it
    /// publishes nothing twice.
    #[error("too many publications are under way, or the log of all nodes does not answer")]
    Busy,
    /// The publications of the call are larger than the log of the cluster takes at once, and nothing was published.
    #[error("the publications of one call are too large together")]
    TooLarge,
}

/// The reason why publications with an idempotency key were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OnceError {
    /// They were not accepted for the same reasons as without a key, or because the first request with this key is
    /// still under way. A retry with the key publishes nothing twice.
    #[error(transparent)]
    Refused(#[from] PublishError),
    /// Other content was published with this key, or is being published.
    #[error("the idempotency key was used with other content")]
    OtherContent,
}

/// The outcome of publications with an idempotency key.
#[derive(Debug)]
pub enum Published {
    /// The publications were published now.
    Now(Receipt),
    /// The publications had been published before, with this receipt.
    Before(Receipt),
}

/// The error of a question that not every thread, or not every node, answered in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a thread did not answer in time")]
pub struct Unanswered;

/// The bounds of the broker.
#[derive(Debug, Clone)]
pub struct TopicLimits {
    /// The most publications of one app between their publisher and the last fan-out. There may be twice as
    /// many of all apps together.
    pub publications_in_flight_max: usize,
    /// The most scopes with subscribers of one app.
    pub scopes_per_app_max: usize,
    /// The most bytes of all frames that wait for clients.
    pub outboxes_bytes_max: usize,
    /// The most members tracked on one channel.
    pub presence_members_max: usize,
    /// The time for which a channel's changes of members are gathered before they are announced
    /// together.
    pub presence_interval: Duration,
    /// The shortest time between two changes of a user that its watchers are told of.
    pub online_interval: Duration,
    /// The most idempotency keys that are remembered of an app's web application, and as many of the app's
    /// visitors.
    pub idempotency_keys_max: usize,
    /// The time for which a publisher, a join or a question may wait.
    pub wait_max: Duration,
    /// The bounds of retention and replay.
    pub history: HistorySettings,
    /// The bounds of the last events of cache channels.
    pub last_events: LastEventLimits,
}

/// Accepts publications and passes them to the streams; sends questions and commands to all
/// threads. Cheap to clone; all threads share it.
#[derive(Clone)]
pub struct Topics(Arc<TopicsInner>);

pub(super) struct TopicsInner {
    limits: TopicLimits,
    /// The cluster, if this server is one of several nodes.
    cluster: Option<Box<Cluster>>,
    permits: Permits,
    directory: Directory,
    workers: RwLock<Vec<ArbiterHandle>>,
    fanouts: Fanouts,
    next_worker: AtomicU64,
    references: References,
    backlog: Backlog,
    keys: IdempotencyKeys<Receipt>,
    feed: Feed,
    users: Users,
    metrics: Arc<Metrics>,
}

impl Topics {
    /// The mailbox capacity of trackers and fan-outs. It is more than the permits and joins can fill.
    pub(super) const MAILBOX_CAPACITY: usize = 1 << 16;

    /// The broker of a server without a cluster. The settings of the apps decide how much is retained.
    pub fn new(limits: TopicLimits, apps: AppDirectory, metrics: Arc<Metrics>) -> Self {
        Self::of_cluster(limits, apps, metrics, None)
    }

    /// The broker of a node of a cluster. It begins to read the log. The settings of the apps decide how much
    /// is retained.
    pub fn of_node(
        limits: TopicLimits,
        apps: AppDirectory,
        metrics: Arc<Metrics>,
        engine: Arc<dyn Engine>,
    ) -> Self {
        let cluster = Cluster::new(engine, &limits);
        let topics = Self::of_cluster(limits, apps, metrics, Some(Box::new(cluster)));
        if let Some(cluster) = topics.cluster() {
            cluster.follow(&topics);
        }
        topics
    }

    fn of_cluster(
        limits: TopicLimits,
        apps: AppDirectory,
        metrics: Arc<Metrics>,
        cluster: Option<Box<Cluster>>,
    ) -> Self {
        let numbering = match &cluster {
            Some(cluster) => Numbering::Log(cluster.heads().clone()),
            None => Numbering::own(),
        };
        let backlog = Backlog::new(limits.outboxes_bytes_max);
        let ledger = RetentionLedger::new(apps, limits.history.clone(), limits.last_events);
        let directory =
            Directory::new(limits.scopes_per_app_max, numbering, backlog.clone(), ledger);
        let permits = Permits::new(limits.publications_in_flight_max);
        let keys = IdempotencyKeys::new(limits.idempotency_keys_max);
        Self(Arc::new(TopicsInner {
            limits,
            cluster,
            permits,
            directory,
            workers: RwLock::default(),
            fanouts: Fanouts::default(),
            next_worker: AtomicU64::new(0),
            references: References::new(),
            backlog,
            keys,
            feed: Feed::default(),
            users: Users::default(),
            metrics,
        }))
    }

    /// The count of all frames that wait for clients.
    pub fn backlog(&self) -> &Backlog {
        &self.0.backlog
    }

    /// The events of apps, for consoles.
    pub fn feed(&self) -> &Feed {
        &self.0.feed
    }

    /// The users that are signed in.
    pub fn signed_in(&self) -> &Users {
        &self.0.users
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Allows trackers to be started on the calling worker thread.
    pub fn add_worker(&self) {
        if let Some(arbiter) = Arbiter::try_current() {
            self.0.workers.write().push(arbiter);
        }
    }

    /// Makes new trackers start on the calling thread, and on no other.
    #[cfg(test)]
    pub(crate) fn place_here_only(&self) {
        *self.0.workers.write() = vec![Arbiter::current()];
    }

    /// Starts a fan-out for the sessions of the calling worker thread.
    pub fn start_fanout(&self) -> ThreadFanout {
        let worker = WorkerId::new(self.node(), self.0.next_worker.fetch_add(1, Relaxed));
        let thread = Fanout::start_on_this_thread(worker, self.clone());
        self.0.fanouts.add(thread.addr.clone());
        thread
    }

    /// The number of scopes that have subscribers or retained publications here.
    pub fn scopes(&self) -> usize {
        self.0.directory.all().len()
    }

    /// Ends publishing: every further publisher gets [`PublishError::Busy`]. Waits, at most `wait_max`, until
    /// every accepted publication has reached the outboxes of its subscribers.
    pub async fn finish(&self, wait_max: Duration) {
        self.0.permits.finish(wait_max).await;
    }

    /// Removes this node from the cluster, if it is in one: its members leave on all nodes, and it can neither
    /// publish nor read any more. Waits at most `wait_max`.
    pub async fn leave_nodes(&self, wait_max: Duration) {
        if let Some(cluster) = self.cluster() {
            cluster.engine().leave(Instant::now() + wait_max).await;
        }
    }

    /// The permits, which bound the publications and announcements that are under way.
    pub(super) fn permits(&self) -> &Permits {
        &self.0.permits
    }

    /// A unique name.
    pub(super) fn reference(&self) -> ByteString {
        self.0.references.give()
    }

    /// The bounds.
    pub(super) fn limits(&self) -> &TopicLimits {
        &self.0.limits
    }

    /// The cluster, if this server is a node of one.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.0.cluster.as_deref()
    }

    /// The engine of the cluster, if this server is a node of one.
    pub fn engine(&self) -> Option<&Arc<dyn Engine>> {
        self.cluster().map(Cluster::engine)
    }

    /// The state of the engine; `None` without a cluster.
    pub fn engine_state(&self) -> Option<EngineState> {
        self.cluster().map(Cluster::state)
    }

    /// A reference that does not keep the broker alive.
    pub(super) fn downgrade(&self) -> Weak<TopicsInner> {
        Arc::downgrade(&self.0)
    }

    /// The broker of such a reference, if it still exists.
    pub(super) fn upgrade(weak: &Weak<TopicsInner>) -> Option<Self> {
        weak.upgrade().map(Self)
    }

    /// The streams.
    pub(super) fn directory(&self) -> &Directory {
        &self.0.directory
    }

    /// Opens a scope for a thread that gets its first subscriber: its fan-out is sent all further
    /// publications.
    ///
    /// # Errors
    /// [`SubscribeError::TooManyScopes`].
    pub(super) fn open(
        &self,
        key: &ScopeKey,
        fanout: FanoutAddr,
        now_ms: u64,
    ) -> Result<ScopeSubscribers, SubscribeError> {
        let opened = self.0.directory.open(key, fanout, now_ms);
        let (stream, begin) = opened.map_err(|TooManyScopes| SubscribeError::TooManyScopes)?;
        let metrics = &self.0.metrics;
        let counted = DeliveryCounters {
            traffic: metrics.app(key.app.0),
            usage: metrics.usage.of(key.app.0),
        };
        Ok(ScopeSubscribers::new(stream, begin, counted))
    }

    /// The time within which questions must be answered.
    pub fn wait_max(&self) -> Duration {
        self.0.limits.wait_max
    }

    /// The fan-outs of all threads.
    pub(super) fn fanouts(&self) -> &Fanouts {
        &self.0.fanouts
    }
}
