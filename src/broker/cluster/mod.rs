//! The cluster: this broker as one of several nodes that share a log.
//!
//! A publication is written as a [`record`] and appended to the log. Every node, including the publisher's,
//! delivers only publications that it has read from the log: so all nodes have one order, and a node that
//! cannot reach the log delivers nothing that others miss. `publish` appends, `pending` keeps what this node
//! has appended and not read yet, and `follower` reads. `recent_keys` bounds the idempotency keys that this
//! node has remembered in the log, and `remote_flights` the publications of other nodes that it has not
//! delivered yet. `disconnects` writes disconnects into the log, for nodes that cannot be asked.
//!
//! `peers` carries questions and messages between nodes. `questions` has those of the broker, `counts`
//! shares the numbers of subscribers that clients are sent, and `users` shares which users are signed in.
//! `last_events` transfers the last events of cache channels to a starting node, because the log may no
//! longer have them.

mod counts;
mod disconnects;
mod follower;
mod last_events;
mod peers;
mod pending;
mod publish;
mod questions;
mod recent_keys;
mod record;
mod remote_flights;
#[cfg(test)]
mod tests;
mod users;

use std::sync::{Arc, Once};

use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    app::AppId,
    engine::{Engine, EngineState},
};

use super::{
    numbering::Heads,
    topics::{TopicLimits, Topics},
};

use counts::SharedCounts;
use disconnects::RecentDisconnects;
use follower::BrokerFollower;
use last_events::LastEventsLack;
use peers::Peers;
use pending::PendingPublications;
pub(super) use questions::ClusterQuestion;
use recent_keys::RecentKeys;
pub(super) use record::{MemberRecord, MemberValue, MembersEntry};
pub(super) use remote_flights::RemoteFlight;
use remote_flights::RemoteFlights;

/// The most publications of other nodes that may be under way before this node pauses its reading of the
/// log, as a multiple of the publications that one app may have under way.
const REMOTE_FLIGHTS_FACTOR: usize = 8;

/// This broker as one of several nodes.
pub(super) struct Cluster {
    engine: Arc<dyn Engine>,
    state: watch::Receiver<EngineState>,
    heads: Arc<Heads>,
    pending: PendingPublications,
    recent_keys: RecentKeys,
    remote_flights: RemoteFlights,
    peers: Peers,
    counts: SharedCounts,
    disconnects: RecentDisconnects,
    /// Whether this node may lack last events of cache channels.
    lack: LastEventsLack,
    /// Completed once the operator was told of records of another database.
    foreign_records: Once,
}

impl Cluster {
    /// A node that has not read the log yet.
    pub(super) fn new(engine: Arc<dyn Engine>, limits: &TopicLimits) -> Self {
        // The first ticket is random, so that no ticket of an earlier process of this node is used again.
        let (_, first_ticket) = Uuid::new_v4().as_u64_pair();
        let remote_flights_max = REMOTE_FLIGHTS_FACTOR * limits.publications_in_flight_max;
        Self {
            state: engine.state(),
            heads: Arc::new(Heads::new(engine.partitions())),
            pending: PendingPublications::new(first_ticket),
            recent_keys: RecentKeys::new(limits.idempotency_keys_max),
            remote_flights: RemoteFlights::new(engine.clone(), remote_flights_max),
            peers: Peers::default(),
            counts: SharedCounts::default(),
            disconnects: RecentDisconnects::default(),
            lack: LastEventsLack::new(),
            foreign_records: Once::new(),
            engine,
        }
    }

    /// Begins to read the log.
    pub(super) fn follow(&self, topics: &Topics) {
        questions::register(topics);
        counts::register(topics);
        users::register(topics);
        self.engine.follow(Arc::new(BrokerFollower::new(topics)));
    }

    /// The idempotency keys that this node has used lately.
    pub(super) fn recent_keys(&self) -> &RecentKeys {
        &self.recent_keys
    }

    /// Tells the operator, once, that the log has publications of another app with the id of one of this database.
    fn tell_foreign_records(&self, AppId(app): AppId) {
        self.foreign_records.call_once(|| {
            log::warn!(
                "the log in Redis has events of another database, for example of its app {app}, which was created at \
                 another time than app {app} of this one: these events are left out; give each database another \
                 engine.prefix, and delete the keys of the prefix in Redis when you restore a database"
            );
        });
    }

    /// The engine.
    pub(super) fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// The state of the engine: whether the log can be written and is read.
    pub(super) fn state(&self) -> EngineState {
        *self.state.borrow()
    }

    /// The positions up to which this node has read each partition.
    pub(super) fn heads(&self) -> &Arc<Heads> {
        &self.heads
    }
}
