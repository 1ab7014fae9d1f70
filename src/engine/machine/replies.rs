//! The answers of Redis.

use std::time::Instant;

use log::{error, warn};

use super::{
    Call, LineId, LogIndex, Machine, Output, REFUSALS_LOGGED_EVERY, reading::Acknowledged,
};
use crate::engine::{
    LogPosition, Unavailable,
    request::{CallId, LeaseEntry, Life, LogRequest, Renewal, Reply, RequestFailure},
    wire::{self, BatchId},
};

impl Machine {
    /// Takes the answer to a call. The answer is dropped if the line of the call broke meanwhile.
    pub(in crate::engine) fn replied(
        &mut self,
        id: CallId,
        reply: Result<Reply, RequestFailure>,
        now: Instant,
    ) {
        let Some((line, call)) = self.take_call(id) else { return };
        match reply {
            Ok(reply) => self.succeeded(id, line, call, reply, now),
            Err(RequestFailure::Broken) => {
                self.outputs.push(Output::Reconnect(line, RequestFailure::Broken.to_string()));
                self.put_call(id, line, call);
            }
            Err(RequestFailure::Refused { text, is_elsewhere }) => {
                self.refused(line, call, &text, is_elsewhere, now);
            }
        }
        self.judge_state(now);
    }

    fn succeeded(&mut self, id: CallId, line: LineId, call: Call, reply: Reply, now: Instant) {
        match (call, reply) {
            (Call::Commit(log, sent), Reply::Committed { epoch, outcomes }) => {
                self.metrics.engine.round_trip_s.observe((now - sent).as_secs_f64());
                let settled = self.log(log).commits.committed(epoch, outcomes);
                if let Some((id, offset, end)) = settled.appended {
                    let at = LogPosition { epoch, offset };
                    let need = self.log(log).reading.acknowledged(Acknowledged { at, end, id });
                    self.advance(log, Vec::new(), need);
                }
                let is_other = self.log(log).reading.at().is_some_and(|at| at.epoch != epoch);
                if is_other && self.log(log).reading.must_read() {
                    self.read(log);
                }
                if settled.is_lapsed {
                    self.register_after_renewal(log);
                }
                self.filled.insert(log);
            }
            (Call::Read(log), Reply::Read(range)) => {
                let (mut steps, had_read) = (Vec::new(), self.log(log).reading.has_read());
                let need = self.log(log).reading.read(range, &mut steps);
                if self.advance(log, steps, need) && !had_read {
                    self.log(log).reading.unread();
                }
            }
            (Call::Break(log), Reply::Done) => {
                if self.log(log).reading.must_read() {
                    self.read(log);
                }
            }
            (Call::Register(log, life), Reply::Done) => {
                if self.log(log).registering == Some(id) && life == self.lease.life() {
                    (self.log(log).is_registered, self.log(log).registering) = (true, None);
                    self.registered();
                    self.filled.insert(log);
                }
            }
            (Call::Renew, Reply::Renewed { outcome, now_ms, leases }) => {
                self.renewed(outcome, now_ms, &leases, now);
            }
            (Call::Condemn(life), Reply::Condemned(is_condemned)) => {
                self.condemned(life, is_condemned, now);
            }
            (Call::Bury(log, life), Reply::Done) => {
                if self.lease.removed(life, log) {
                    self.left(life);
                    let fresh = self.rng.incarnation();
                    self.lease.reborn(now, fresh);
                    self.shared.set_incarnation(fresh);
                    self.renew(now);
                } else if self.lease.buried(life, log) {
                    self.call(self.control(), Call::Forget(life), LogRequest::Forget(life));
                }
            }
            (Call::Forget(life), Reply::Done) => {
                self.left(life);
                self.lease.hurry(now);
                self.renew(now);
            }
            (Call::Probe, Reply::Probed(places)) => {
                let probe = self.lines.get_mut(&line).and_then(|line| line.probe.as_mut());
                if let Some(probe) = probe {
                    probe.places = Some(places);
                    self.finish_probe(line);
                }
            }
            (Call::Members(None, _), Reply::Members(_)) => {}
            (Call::Members(Some(asker), _), Reply::Members(snapshot)) => {
                let _ = asker.send(Ok(snapshot));
            }
            (Call::Post(..), Reply::Done) => {}
            (call, _) => {
                let text = "the answer has an unexpected form";
                self.refused(line, call, text, true, now);
            }
        }
    }

    fn refused(&mut self, line: LineId, call: Call, text: &str, is_elsewhere: bool, now: Instant) {
        let is_logged = self.refusal_logged.is_some_and(|at| now - at < REFUSALS_LOGGED_EVERY);
        if !is_logged {
            self.refusal_logged = Some(now);
            warn!("redis refuses a command of this node: {text}");
        }
        let mut breaks = is_elsewhere;
        match call {
            Call::Commit(log, _) => {
                self.log(log).commits.refused();
                self.filled.insert(log);
            }
            Call::Renew => self.lease.refused(),
            Call::Bury(_, life) | Call::Condemn(life) => {
                self.lease.give_up(life);
                self.left(life);
                breaks |= self.lease.ended().is_some_and(|(ended, _)| ended == life);
            }
            Call::Forget(life) => self.left(life),
            Call::Post(Some(question), _) => self.questions.fail(question),
            Call::Members(Some(snapshot), _) => {
                let _ = snapshot.send(Err(Unavailable));
            }
            Call::Post(None, _) | Call::Members(None, _) => {}
            // A line on which these calls fail is useless, so it is closed; the next attempt follows after a pause.
            Call::Read(_) | Call::Break(_) | Call::Register(..) | Call::Probe => breaks = true,
        }
        if breaks {
            self.outputs.push(Output::Reconnect(line, text.to_owned()));
        }
    }

    /// Tells the follower of a new incarnation once the incarnation may put members into all logs.
    fn registered(&mut self) {
        let is_complete = self.logs.iter().all(|log| log.is_registered);
        if is_complete
            && std::mem::take(&mut self.lease.is_reborn)
            && let Some(follower) = self.follower.clone()
        {
            follower.reincarnated(self.lease.incarnation);
        }
    }

    fn renewed(&mut self, outcome: Renewal, now_ms: u64, leases: &[LeaseEntry], now: Instant) {
        match outcome {
            Renewal::Held => self.held(now_ms, leases, now),
            Renewal::Lapsed => {
                warn!(
                    "the lease of this node expired, because it did not renew it in time; the node continues \
                 with a new one, and its members join again"
                );
                for log in self.all_logs() {
                    self.log(log).is_registered = false;
                }
                self.lease.lapsed(self.all_logs().collect());
                self.remove_own(now);
            }
            Renewal::Taken => {
                error!(
                    "another node has this node's number {}; restart this node, so that it takes \
                     another one",
                    self.lease.node.0
                );
                self.lease.refused();
                self.lease.is_held = false;
            }
        }
    }

    /// Removes the members of this node's last incarnation from the logs that still have them.
    pub(super) fn remove_own(&mut self, now: Instant) {
        let Some((life, logs)) = self.lease.ended() else { return };
        for log in logs {
            self.bury(log, life, now);
        }
    }

    fn held(&mut self, now_ms: u64, leases: &[LeaseEntry], now: Instant) {
        let was_held = self.lease.is_held;
        let has_changed = self.lease.held(now, leases);
        let renewals = self.lease.renewals();
        for log in self.all_logs() {
            match self.log(log).registers_after {
                Some(after) if was_held && renewals <= after => self.must_renew = true,
                None if was_held => {}
                _ => self.register(log),
            }
        }
        let live = self.lease.live.clone();
        self.shared.set_nodes(&live);
        if has_changed {
            self.questions.keep_to(&live);
        }
        if let Some(follower) = self.follower.clone().filter(|_| has_changed) {
            follower.nodes_changed(&live);
        }
        for life in self.lease.overdue(now, now_ms, leases) {
            let condemn = LogRequest::Condemn { life, is_forced: false };
            self.lease.bury(life, self.all_logs().collect());
            self.call(self.control(), Call::Condemn(life), condemn);
        }
    }

    fn condemned(&mut self, life: Life, is_condemned: bool, now: Instant) {
        if !is_condemned {
            self.lease.give_up(life);
            self.left(life);
            return;
        }
        warn_of_death(life, self.lease.node);
        let logs: Vec<_> = self.all_logs().collect();
        self.lease.bury(life, logs.clone());
        for log in logs {
            if !self.bury(log, life, now) {
                self.lease.give_up(life);
            }
        }
    }

    /// Removes an incarnation's members from a log. Returns `false` if the log has no connection.
    fn bury(&mut self, log: LogIndex, life: Life, now: Instant) -> bool {
        let Some(identity) = self.identity_of(log) else { return false };
        let now_ms = self.now_ms(now);
        let id = BatchId(self.rng.next());
        let leaver = wire::leaver(id, now_ms, self.lease.node, life);
        let fresh = self.rng.epoch();
        let bury = LogRequest::Bury { identity, life, leaver, fresh };
        self.call(log, Call::Bury(log, life), bury).is_some()
    }
}

fn warn_of_death(life: Life, own: crate::engine::NodeId) {
    if life.0 != own {
        warn!("node {} has not renewed its lease in time, and its members leave", life.0.0);
    }
}
