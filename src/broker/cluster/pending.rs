//! The publications of this node that it has not read from the log yet, with their permits.
//!
//! A publication stays here until its record is read, until its append fails or turns out to be a
//! repetition, or until its caller gives up. A record may also be acknowledged and never be read: Redis
//! restarts without its data, fails over to a replica that lags, or trims the log before this node has read
//! it. The engine then continues the partition at a later position, and the publications before that position
//! are given up. A permit is therefore never held for a record that will not come.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;

use crate::{
    broker::placed::Accepted,
    engine::{LogPosition, Partition},
};

/// The publications by their tickets, which are written into their records.
pub(super) struct PendingPublications {
    first_ticket: u64,
    next_ticket: AtomicU64,
    by_ticket: Mutex<HashMap<u64, PendingPublication>>,
}

struct PendingPublication {
    accepted: Accepted,
    partition: Partition,
    /// The position of its record; `None` until the log has acknowledged it.
    at: Option<LogPosition>,
    /// The position at which its partition was last continued while it waited for the acknowledgement.
    went_on: Option<LogPosition>,
}

impl PendingPublication {
    /// Returns whether a partition that continues at this position has left out the record, so that this node
    /// will not read it.
    ///
    /// A record of a later epoch, which this node has not begun to read, counts as left out as well: epochs
    /// have no order by which it could be told apart. It then arrives like a record of another node, and is counted
    /// twice in the usage. For that, a partition must have a gap and then a new epoch within one append.
    fn is_left_out(&self, next: LogPosition) -> bool {
        self.at.is_some_and(|at| at.epoch != next.epoch || at.offset < next.offset)
    }
}

/// The tickets of one call. Their publications are given up when this is dropped, unless
/// [`PendingTickets::leave_but`] was called. If they are in the log nevertheless, they arrive like those of
/// another node.
pub(super) struct PendingTickets<'a> {
    pending: &'a PendingPublications,
    tickets: Vec<u64>,
}

impl PendingTickets<'_> {
    /// Leaves the publications to the reading of the log, but for these, whose records are not in it.
    pub(super) fn leave_but(mut self, others: Vec<u64>) {
        self.tickets = others;
    }
}

impl Drop for PendingTickets<'_> {
    fn drop(&mut self) {
        self.pending.give_up(&self.tickets);
    }
}

impl PendingPublications {
    /// No publications. `first_ticket` must be random, so that no ticket of an earlier process of this node is
    /// given again.
    pub(super) fn new(first_ticket: u64) -> Self {
        let next_ticket = AtomicU64::new(first_ticket);
        Self { first_ticket, next_ticket, by_ticket: Mutex::default() }
    }

    /// Reserves `count` consecutive tickets, and returns the first one.
    pub(super) fn reserve(&self, count: usize) -> u64 {
        self.next_ticket.fetch_add(count as u64, Relaxed)
    }

    /// Returns whether this process has reserved the ticket.
    pub(super) fn has_reserved(&self, ticket: u64) -> bool {
        let reserved = self.next_ticket.load(Relaxed).wrapping_sub(self.first_ticket);
        ticket.wrapping_sub(self.first_ticket) < reserved
    }

    /// Keeps publications, each of which belongs to a partition, under consecutive tickets.
    pub(super) fn hold(
        &self,
        first_ticket: u64,
        publications: impl Iterator<Item = (Partition, Accepted)>,
    ) -> PendingTickets<'_> {
        let mut by_ticket = self.by_ticket.lock();
        let mut tickets = Vec::new();
        for (nth, (partition, accepted)) in (0..).zip(publications) {
            let ticket = first_ticket.wrapping_add(nth);
            let (at, went_on) = (None, None);
            by_ticket.insert(ticket, PendingPublication { accepted, partition, at, went_on });
            tickets.push(ticket);
        }
        drop(by_ticket);
        PendingTickets { pending: self, tickets }
    }

    /// Takes a publication whose record this node reads; `None` if this node does not hold it.
    pub(super) fn take(&self, ticket: u64) -> Option<Accepted> {
        Some(self.by_ticket.lock().remove(&ticket)?.accepted)
    }

    /// Notes the position of a record that the log has acknowledged. Takes out its publication if this node will not
    /// read the record, because its partition was interrupted before. This node may also have read it before.
    pub(super) fn acknowledged(&self, ticket: u64, at: LogPosition) -> Option<Accepted> {
        let mut by_ticket = self.by_ticket.lock();
        let pending = by_ticket.get_mut(&ticket)?;
        pending.at = Some(at);
        pending.went_on.filter(|next| pending.is_left_out(*next))?;
        Some(by_ticket.remove(&ticket)?.accepted)
    }

    /// Takes out the publications of a partition whose records this node will not read, because the partition
    /// continues at this position.
    pub(super) fn interrupt(&self, partition: Partition, next: LogPosition) -> Vec<Accepted> {
        let mut by_ticket = self.by_ticket.lock();
        let left_out = by_ticket.extract_if(|_, pending| {
            pending.partition == partition && {
                pending.went_on = Some(next);
                pending.is_left_out(next)
            }
        });
        left_out.map(|(_, pending)| pending.accepted).collect()
    }

    fn give_up(&self, tickets: &[u64]) {
        if tickets.is_empty() {
            return;
        }
        let mut by_ticket = self.by_ticket.lock();
        let given_up: Vec<_> = tickets.iter().filter_map(|each| by_ticket.remove(each)).collect();
        drop(by_ticket);
        // Giving up a permit may wake publishers, so the lock is released first.
        given_up.into_iter().for_each(|pending| pending.accepted.give_up());
    }

    /// Returns whether no publication is held.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_ticket.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{key, publication};
    use super::*;
    use crate::{broker::placed::Accepted, engine::LogEpoch};

    const PARTITION: Partition = Partition(3);

    fn at(epoch: u64, offset: u64) -> LogPosition {
        LogPosition { epoch: LogEpoch(epoch), offset }
    }

    /// Holds a publication of the partition, and leaves it to the reading of the log.
    fn hold(pending: &PendingPublications) -> u64 {
        let ticket = pending.reserve(1);
        let publication = publication(&key(1, "public"), "room", "msg");
        let (accepted, _) = Accepted::new(publication, std::time::Instant::now(), None);
        pending.hold(ticket, [(PARTITION, accepted)].into_iter()).leave_but(Vec::new());
        ticket
    }

    #[test]
    fn an_acknowledged_publication_is_given_up_when_its_partition_continues_without_it() {
        for (case, acknowledged, next, is_left_out) in [
            ("another epoch", at(1, 5), at(2, 1), true),
            ("lost", at(1, 5), at(1, 6), true),
            ("the next one to be read", at(1, 5), at(1, 5), false),
            ("behind the gap", at(1, 5), at(1, 3), false),
        ] {
            let pending = PendingPublications::new(u64::MAX);
            let ticket = hold(&pending);
            pending.acknowledged(ticket, acknowledged);
            pending.interrupt(Partition(0), at(9, 9));
            assert!(!pending.is_empty(), "{case}: another partition");
            pending.interrupt(PARTITION, next);
            assert_eq!(pending.is_empty(), is_left_out, "{case}");
            // The acknowledgement may come after the interruption as well.
            let ticket = hold(&pending);
            pending.interrupt(PARTITION, next);
            assert!(pending.by_ticket.lock().contains_key(&ticket), "{case}: not acknowledged yet");
            pending.acknowledged(ticket, acknowledged);
            assert_eq!(pending.is_empty(), is_left_out, "{case}: acknowledged later");
        }
    }

    #[test]
    fn a_publication_that_was_held_after_an_interruption_waits_for_its_record() {
        let pending = PendingPublications::new(1);
        pending.interrupt(PARTITION, at(1, 10));
        let ticket = hold(&pending);
        // The engine may learn of a later epoch by the acknowledgement.
        pending.acknowledged(ticket, at(2, 1));
        assert!(pending.take(ticket).is_some());
        assert!(pending.is_empty());
    }
}
