//! The cluster: this broker as one of several nodes that share a log.
//!
//! A publication is written as a [`record`] and appended to the log. Every node, including the publisher's,
//! delivers only publications that it has read from the log: so all nodes have one order, and a node that
//! cannot reach the log delivers nothing that others miss. `publish` appends, `pending` keeps what this node
//! has appended and not read yet, and `follower` reads. `remote_flights` bounds the publications of other
//! nodes that this node has not delivered yet.
//!
//! `peers` carries questions and messages between nodes. `questions` has those of the broker, `counts`
//! shares the numbers of subscribers that clients are sent, and `users` shares which users are signed in.
//! `last_events` transfers the last events of cache channels to a starting node, because the log may no
//! longer have them.

mod counts;
mod follower;
mod last_events;
mod peers;
mod pending;
mod publish;
mod questions;
mod record;
mod remote_flights;
#[cfg(test)]
mod tests;
mod users;

use std::sync::{Arc, atomic::AtomicBool};

use tokio::sync::watch;
use uuid::Uuid;

use crate::engine::{Engine, EngineState};

use super::{
    node::NodeId,
    numbering::{Heads, Numbering},
    topics::Topics,
};

use counts::SharedCounts;
use follower::BrokerFollower;
use last_events::LastEventsLack;
use peers::Peers;
use pending::PendingPublications;
pub(super) use questions::ClusterQuestion;
pub(super) use record::{MemberRecord, MemberValue, MembersEntry};
pub(super) use remote_flights::RemoteFlight;
use remote_flights::RemoteFlights;

/// The most publications of other nodes that may be under way before this node pauses its reading of the
/// log, as a multiple of the publications that one app may have under way.
const REMOTE_FLIGHTS_FACTOR: usize = 8;

/// The source of the order of publications: this server alone, or a log that several nodes share.
pub(super) enum Order {
    /// This server is the only one.
    Own,
    /// This server is one of several nodes.
    Log(Box<Cluster>),
}

/// This broker as one of several nodes.
pub(super) struct Cluster {
    engine: Arc<dyn Engine>,
    state: watch::Receiver<EngineState>,
    heads: Arc<Heads>,
    pending: PendingPublications,
    remote_flights: RemoteFlights,
    peers: Peers,
    counts: SharedCounts,
    /// Whether this node may lack last events of cache channels.
    lack: LastEventsLack,
    /// Whether messages about users of other nodes may have been missed.
    are_users_missed: Arc<AtomicBool>,
}

impl Order {
    /// The order of this server alone, and its numbering.
    pub(super) fn own() -> (Self, Numbering) {
        (Self::Own, Numbering::own())
    }

    /// The order of a log, and its numbering. `in_flight_per_app_max` is the most publications of one app that
    /// may be under way.
    pub(super) fn of_log(
        engine: Arc<dyn Engine>,
        in_flight_per_app_max: usize,
    ) -> (Self, Numbering) {
        let heads = Arc::new(Heads::new(engine.partitions()));
        // The first ticket is random, so that no ticket of an earlier process of this node is used again.
        let (_, first_ticket) = Uuid::new_v4().as_u64_pair();
        let cluster = Cluster {
            state: engine.state(),
            heads: heads.clone(),
            pending: PendingPublications::new(first_ticket),
            remote_flights: RemoteFlights::new(
                engine.clone(),
                REMOTE_FLIGHTS_FACTOR * in_flight_per_app_max,
            ),
            peers: Peers::new(engine.clone()),
            counts: SharedCounts::default(),
            lack: LastEventsLack::new(),
            are_users_missed: Arc::default(),
            engine,
        };
        (Self::Log(Box::new(cluster)), Numbering::Log(heads))
    }

    /// Begins to read the log, if there is one.
    pub(super) fn follow(&self, topics: &Topics) {
        if let Self::Log(cluster) = self {
            questions::register(&cluster.peers, topics);
            counts::register(&cluster.peers, topics);
            users::register(&cluster.peers, topics, &cluster.are_users_missed);
            cluster.engine.follow(Arc::new(BrokerFollower::new(topics)));
        }
    }

    /// The cluster, if this server is one of several nodes.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Own => None,
            Self::Log(cluster) => Some(cluster),
        }
    }

    /// The number of this server among the nodes.
    pub(super) fn node(&self) -> NodeId {
        self.cluster().map_or(NodeId::ONLY, |cluster| cluster.engine.node())
    }

    /// Returns whether publications of other nodes are on their way to the fan-outs.
    pub(super) fn is_any_under_way(&self) -> bool {
        self.cluster().is_some_and(|cluster| cluster.remote_flights.is_any())
    }
}

impl Cluster {
    /// The engine.
    pub(super) fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// The state of the engine: whether the log can be written and is read.
    pub(super) fn state(&self) -> EngineState {
        *self.state.borrow()
    }

    /// The positions up to which this node has read each partition.
    pub(super) fn heads(&self) -> &Heads {
        &self.heads
    }
}
