//! This node's lease, and what it knows of the leases of others.
//!
//! A lease is renewed five times within `node_timeout` and runs out after three fifths of it, by the clock
//! of Redis. A node that sees that another's lease has run out *condemns* it, *buries* it in every log, and
//! *forgets* it. Each step can be repeated, by any node, so it does not matter where a node stops.
//!
//! A node buries others only if its own renewals have been answered in time for as long as a lease lasts.
//! After an outage of Redis every node thus has the time to come back before anybody buries it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::engine::{
    Incarnation, NodeId, NodeInfo,
    request::{Instance, LeaseEntry, LogIndex, Renew},
};

/// The node that is buried.
pub(super) type Life = (NodeId, Incarnation);

/// This node's lease.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    instance: Instance,
    info: bytes::Bytes,
    timeout: Duration,
    /// The incarnation has had no lease yet.
    is_first: bool,
    /// The incarnation has a lease, as far as this node knows.
    pub(super) is_held: bool,
    /// A renewal is under way since then.
    asked_at: Option<Instant>,
    next_at: Option<Instant>,
    healthy_since: Option<Instant>,
    /// The incarnation has ended, and its members have yet to be removed from these logs. Only then does
    /// another one take its lease: as long as the lease is that of the one that ended, other nodes remove
    /// its members, too, if this node cannot.
    ended_in: Option<Vec<LogIndex>>,
    /// The follower has to be told of a new incarnation.
    pub(super) is_reborn: bool,
    pub(super) live: Arc<[NodeInfo]>,
    /// The burials that this node has begun, with the logs that are still to be done.
    burials: BTreeMap<(NodeId, u64), Vec<LogIndex>>,
}

impl Lease {
    /// A lease that does not exist yet, or (`is_first` false) one that was taken when the node started.
    pub(super) fn new(
        (node, incarnation): Life,
        instance: Instance,
        timeout: Duration,
        is_first: bool,
    ) -> Self {
        Self {
            node,
            incarnation,
            instance,
            info: bytes::Bytes::new(),
            timeout,
            is_first,
            is_held: false,
            asked_at: None,
            next_at: None,
            healthy_since: None,
            ended_in: None,
            is_reborn: false,
            live: Arc::new([]),
            burials: BTreeMap::new(),
        }
    }

    fn ttl(&self) -> Duration {
        self.timeout * 3 / 5
    }

    fn interval(&self) -> Duration {
        self.timeout / 5
    }

    /// Sets what the node publishes about itself, and renews soon.
    pub(super) fn describe(&mut self, info: bytes::Bytes, now: Instant) {
        self.info = info;
        self.next_at = self.next_at.map(|at| at.min(now));
    }

    /// Takes note that the connection is there: the lease is renewed at once.
    pub(super) fn connected(&mut self, now: Instant) {
        (self.next_at, self.asked_at) = (Some(now), None);
    }

    /// Takes note that the connection broke.
    pub(super) fn disconnected(&mut self) {
        (self.next_at, self.asked_at, self.healthy_since) = (None, None, None);
        self.is_held = false;
        self.burials.clear();
    }

    /// Renews the lease at once, if nothing is under way.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.next_at = self.next_at.map(|at| at.min(now));
    }

    /// The renewal to send now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Renew> {
        let may_ask = self.asked_at.is_none() && self.ended_in.is_none();
        let next_at = self.next_at.filter(|at| *at <= now && may_ask)?;
        if now.duration_since(next_at) > self.interval() {
            // This process was stopped, or could not keep up.
            self.healthy_since = None;
        }
        self.asked_at = Some(now);
        self.next_at = Some(now + self.interval());
        Some(Renew {
            node: self.node,
            incarnation: self.incarnation,
            instance: self.instance,
            ttl: self.ttl(),
            is_first: self.is_first,
            info: self.info.clone(),
        })
    }

    /// Takes note that a renewal was not answered with leases.
    pub(super) fn refused(&mut self) {
        (self.asked_at, self.healthy_since) = (None, None);
    }

    /// Takes note that the lease is held. Answers whether the live nodes have changed.
    pub(super) fn held(&mut self, now: Instant, leases: &[LeaseEntry]) -> bool {
        let was_slow = self.asked_at.take().is_none_or(|at| now - at > self.interval() / 2);
        (self.is_held, self.is_first) = (true, false);
        if was_slow {
            self.healthy_since = None;
        } else {
            self.healthy_since.get_or_insert(now);
        }
        let live = leases.iter().filter(|lease| !lease.is_condemned).map(|lease| NodeInfo {
            node: lease.node,
            incarnation: lease.incarnation,
            info: lease.info.clone(),
            since_ms: lease.since_ms,
            seen_ms: lease.seen_ms,
        });
        let mut live: Vec<_> = live.collect();
        live.sort_by_key(|info| info.node);
        let is_same = |(a, b): (&NodeInfo, &NodeInfo)| {
            (a.node, a.incarnation, &a.info) == (b.node, b.incarnation, &b.info)
        };
        let has_changed =
            live.len() != self.live.len() || !live.iter().zip(&*self.live).all(is_same);
        self.live = live.into();
        has_changed
    }

    /// Takes note that the incarnation has no lease any more. Its members are to be removed from these logs.
    pub(super) fn lapsed(&mut self, logs: Vec<LogIndex>) {
        self.ended_in = Some(logs);
        (self.is_held, self.asked_at, self.healthy_since) = (false, None, None);
    }

    /// The incarnation that ended, and the logs that still have its members.
    pub(super) fn ended(&self) -> Option<(Life, Vec<LogIndex>)> {
        Some(((self.node, self.incarnation), self.ended_in.clone()?))
    }

    /// Takes note that the members of the incarnation that ended are removed from a log. Answers whether they
    /// are removed from all.
    pub(super) fn removed(&mut self, life: Life, log: LogIndex) -> bool {
        let own = (self.node, self.incarnation);
        let Some(logs) = self.ended_in.as_mut().filter(|_| life == own) else { return false };
        logs.retain(|left| *left != log);
        logs.is_empty()
    }

    /// Continues as another incarnation.
    pub(super) fn reborn(&mut self, now: Instant, fresh: Incarnation) {
        self.incarnation = fresh;
        (self.is_first, self.is_reborn, self.ended_in) = (true, true, None);
        self.next_at = Some(now);
    }

    /// The nodes to be buried by this node.
    pub(super) fn overdue(&self, now: Instant, now_ms: u64, leases: &[LeaseEntry]) -> Vec<Life> {
        let is_healthy = self.healthy_since.is_some_and(|since| now - since >= self.ttl());
        if !is_healthy {
            return Vec::new();
        }
        let is_over = |lease: &&LeaseEntry| {
            let is_other = lease.node != self.node;
            is_other && (lease.is_condemned || lease.until_ms <= now_ms)
        };
        let is_begun = |life: &Life| self.burials.contains_key(&(life.0, life.1.0));
        let lives = leases.iter().filter(is_over).map(|lease| (lease.node, lease.incarnation));
        lives.filter(|life| !is_begun(life)).collect()
    }

    /// Begins a burial in these logs.
    pub(super) fn bury(&mut self, life: Life, logs: Vec<LogIndex>) {
        self.burials.insert((life.0, life.1.0), logs);
    }

    /// Takes note that a burial is done in a log. Answers whether it is done in all.
    pub(super) fn buried(&mut self, life: Life, log: LogIndex) -> bool {
        let key = (life.0, life.1.0);
        let Some(logs) = self.burials.get_mut(&key) else { return false };
        logs.retain(|left| *left != log);
        let is_done = logs.is_empty();
        if is_done {
            self.burials.remove(&key);
        }
        is_done
    }

    /// Gives a burial up; it is begun anew after a later renewal.
    pub(super) fn give_up(&mut self, life: Life) {
        self.burials.remove(&(life.0, life.1.0));
    }
}
