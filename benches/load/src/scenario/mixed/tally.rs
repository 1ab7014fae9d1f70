//! The counts of a run.

use hdrhistogram::Histogram;

use super::events::Fault;
use crate::{report::say, scenario::stage::histogram};

/// Faults that are told at once, with what is known of them; all further ones are counted.
const TOLD_MAX: u64 = 20;

/// The operations of a run, their durations, and the faults.
pub(super) struct Tally {
    /// From publishing to arrival over WebSocket.
    pub(super) sockets_us: Histogram<u64>,
    /// The same over long-poll, where a fetch has to come first.
    pub(super) polls_us: Histogram<u64>,
    /// The same of either, since progress was last told.
    pub(super) lately_us: Histogram<u64>,
    pub(super) triggers: u64,
    pub(super) pushes: u64,
    pub(super) joins: u64,
    pub(super) reconnects: u64,
    told: u64,
    missing: u64,
    out_of_order: u64,
    twice: u64,
    strayed: u64,
    failed: u64,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            sockets_us: histogram(),
            polls_us: histogram(),
            lately_us: histogram(),
            triggers: 0,
            pushes: 0,
            joins: 0,
            reconnects: 0,
            told: 0,
            missing: 0,
            out_of_order: 0,
            twice: 0,
            strayed: 0,
            failed: 0,
        }
    }

    /// Forgets how long everything took so far.
    pub(super) fn forget_latencies(&mut self) {
        self.sockets_us.reset();
        self.polls_us.reset();
        self.lately_us.reset();
    }

    /// The number of deliveries so far.
    pub(super) fn deliveries(&self) -> u64 {
        self.sockets_us.len() + self.polls_us.len()
    }

    /// Counts a delivery that is not as it must be.
    pub(super) fn fault(&mut self, fault: Fault, what: &str) {
        match fault {
            Fault::Missing(count) => self.missing += count,
            Fault::OutOfOrder => self.out_of_order += 1,
            Fault::Twice => self.twice += 1,
            Fault::Stray => self.strayed += 1,
        }
        self.tell(&format!("{fault:?}: {what}"));
    }

    /// Counts a request that was refused, or a connection that was hung up on.
    pub(super) fn failed(&mut self, what: &str) {
        self.failed += 1;
        self.tell(what);
    }

    fn tell(&mut self, what: &str) {
        self.told += 1;
        if self.told <= TOLD_MAX {
            say(what);
        }
    }

    /// Deliveries that were not as they must be.
    pub(super) fn wrong(&self) -> u64 {
        self.missing + self.out_of_order + self.twice + self.strayed
    }

    /// The faults, in words.
    pub(super) fn faults(&self) -> Vec<String> {
        [
            (self.missing, "deliveries are missing"),
            (self.out_of_order, "deliveries are out of order"),
            (self.twice, "deliveries came twice"),
            (self.strayed, "deliveries came to who had not joined"),
            (self.failed, "requests were refused, or connections hung up on"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}
