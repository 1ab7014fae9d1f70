//! This node's lease, and the leases of other nodes.
//!
//! A lease is renewed five times within `engine.node_timeout` and expires three fifths of it after the last
//! renewal, by the clock of Redis. A node that finds another's lease expired removes that node in three steps: it
//! *condemns* the lease, which marks it as ended for good; it *buries* the incarnation in every log, which
//! removes its members there; and it *forgets* the lease, which deletes it. Any node can repeat each step,
//! so a node may stop between two of them.
//!
//! A node removes others only if its own renewals have been answered in time for the duration of a lease.
//! So after an outage of Redis every node has the time to renew its lease before another one removes it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::engine::{
    Incarnation, NodeId, NodeInfo,
    request::{Instance, LeaseEntry, Life, LogIndex, Renew},
};

/// This node's lease.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    instance: Instance,
    info: bytes::Bytes,
    timeout: Duration,
    /// Whether the incarnation has had no lease yet.
    is_first: bool,
    /// Whether the incarnation has a lease, as far as this node knows.
    pub(super) is_held: bool,
    /// The time at which the renewal under way was sent.
    asked_at: Option<Instant>,
    next_at: Option<Instant>,
    /// The number of renewals that were sent.
    renewals: u64,
    healthy_since: Option<Instant>,
    /// The logs from which the members of an ended incarnation have yet to be removed; `None` while the
    /// incarnation lasts. The next incarnation takes a lease only afterwards: until then, the lease is that
    /// of the ended one, and other nodes remove its members if this node cannot.
    ended_in: Option<Vec<LogIndex>>,
    /// Whether the follower has yet to be told of a new incarnation.
    pub(super) is_reborn: bool,
    pub(super) live: Arc<[NodeInfo]>,
    /// The incarnations of other nodes that this node is burying, each with the logs that still have its
    /// members.
    burials: BTreeMap<Life, Vec<LogIndex>>,
}

impl Lease {
    /// A lease that does not exist yet, or (`is_first` is false) one that the node took when it started.
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
            renewals: 0,
            healthy_since: None,
            ended_in: None,
            is_reborn: false,
            live: Arc::new([]),
            burials: BTreeMap::new(),
        }
    }

    /// This node in its present incarnation.
    pub(super) fn life(&self) -> Life {
        (self.node, self.incarnation)
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

    /// Notes that the connection was made: the lease is renewed at once.
    pub(super) fn connected(&mut self, now: Instant) {
        (self.next_at, self.asked_at) = (Some(now), None);
    }

    /// Notes that the connection broke.
    pub(super) fn disconnected(&mut self) {
        (self.next_at, self.asked_at, self.healthy_since) = (None, None, None);
        self.is_held = false;
        self.burials.clear();
    }

    /// Makes the next renewal due now, unless one is under way.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.next_at = self.next_at.map(|at| at.min(now));
    }

    /// The renewal to send now, if one is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Renew> {
        let may_ask = self.asked_at.is_none() && self.ended_in.is_none();
        let next_at = self.next_at.filter(|at| *at <= now && may_ask)?;
        if now.duration_since(next_at) > self.interval() {
            // This process was suspended or overloaded.
            self.healthy_since = None;
        }
        self.asked_at = Some(now);
        self.next_at = Some(now + self.interval());
        self.renewals += 1;
        Some(Renew {
            life: self.life(),
            instance: self.instance,
            ttl: self.ttl(),
            is_first: self.is_first,
            info: self.info.clone(),
        })
    }

    /// The number of renewals that were sent. One is sent only after the answer to the one before.
    pub(super) fn renewals(&self) -> u64 {
        self.renewals
    }

    /// Notes that a renewal failed: Redis refused it, or another process has this node's number.
    pub(super) fn refused(&mut self) {
        (self.asked_at, self.healthy_since) = (None, None);
    }

    /// Notes that the lease is held. Returns whether the live nodes have changed.
    pub(super) fn held(&mut self, now: Instant, leases: &[LeaseEntry]) -> bool {
        let was_slow = self.asked_at.take().is_none_or(|at| now - at > self.interval() / 2);
        (self.is_held, self.is_first) = (true, false);
        if was_slow {
            self.healthy_since = None;
        } else {
            self.healthy_since.get_or_insert(now);
        }
        let live = leases.iter().filter(|lease| !lease.is_condemned);
        let mut live: Vec<_> = live.map(|lease| lease.info.clone()).collect();
        live.sort_by_key(|info| info.node);
        let is_same = |(a, b): (&NodeInfo, &NodeInfo)| {
            (a.node, a.incarnation, &a.info) == (b.node, b.incarnation, &b.info)
        };
        let has_changed =
            live.len() != self.live.len() || !live.iter().zip(&*self.live).all(is_same);
        self.live = live.into();
        has_changed
    }

    /// Notes that the incarnation has no lease any more. Its members must be removed from these logs.
    pub(super) fn lapsed(&mut self, logs: Vec<LogIndex>) {
        self.ended_in = Some(logs);
        (self.is_held, self.asked_at, self.healthy_since) = (false, None, None);
    }

    /// The incarnation that ended, and the logs that still have its members.
    pub(super) fn ended(&self) -> Option<(Life, Vec<LogIndex>)> {
        Some((self.life(), self.ended_in.clone()?))
    }

    /// Notes that the members of this node's ended incarnation are removed from a log. Returns whether they
    /// are now removed from all logs.
    pub(super) fn removed(&mut self, life: Life, log: LogIndex) -> bool {
        let own = self.life();
        let Some(logs) = self.ended_in.as_mut().filter(|_| life == own) else { return false };
        logs.retain(|left| *left != log);
        logs.is_empty()
    }

    /// Continues as a new incarnation.
    pub(super) fn reborn(&mut self, now: Instant, fresh: Incarnation) {
        self.incarnation = fresh;
        (self.is_first, self.is_reborn, self.ended_in) = (true, true, None);
        self.next_at = Some(now);
    }

    /// The incarnations whose leases have expired and which this node must remove.
    pub(super) fn overdue(&self, now: Instant, now_ms: u64, leases: &[LeaseEntry]) -> Vec<Life> {
        let is_healthy = self.healthy_since.is_some_and(|since| now - since >= self.ttl());
        if !is_healthy {
            return Vec::new();
        }
        let is_over = |lease: &&LeaseEntry| {
            let is_other = lease.info.node != self.node;
            is_other && (lease.is_condemned || lease.until_ms <= now_ms)
        };
        let lives = leases.iter().filter(is_over).map(LeaseEntry::life);
        lives.filter(|life| !self.burials.contains_key(life)).collect()
    }

    /// Begins to bury an incarnation in these logs.
    pub(super) fn bury(&mut self, life: Life, logs: Vec<LogIndex>) {
        self.burials.insert(life, logs);
    }

    /// Notes that an incarnation is buried in a log. Returns whether it is now buried in all logs.
    pub(super) fn buried(&mut self, life: Life, log: LogIndex) -> bool {
        let Some(logs) = self.burials.get_mut(&life) else { return false };
        logs.retain(|left| *left != log);
        let is_done = logs.is_empty();
        if is_done {
            self.burials.remove(&life);
        }
        is_done
    }

    /// Abandons a burial; it begins anew after a later renewal.
    pub(super) fn give_up(&mut self, life: Life) {
        self.burials.remove(&life);
    }
}
