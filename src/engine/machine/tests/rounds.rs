//! The rounds in which the batches of a line leave.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    model::{Model, identity_of},
    node::Node,
    world::PARTITIONS,
};
use crate::engine::{
    machine::{
        LineId, Output,
        rounds::{GATHERS_FROM, GATHERS_MAX},
    },
    request::{CallId, LogIndex, LogRequest, Reply, RequestFailure},
};

const LINE: LineId = LineId(1);

/// A node and its Redis, which answers when it is told to.
struct Rounds {
    node: Node,
    redis: Model,
    now: Instant,
}

/// A batch that a node has sent.
struct Sent(CallId, LogIndex, LogRequest);

impl Rounds {
    /// A node that has read all logs.
    fn new() -> Self {
        let now = Instant::now();
        let (node, redis) = (Node::new(1, 1, now), Model::new(PARTITIONS + 1, 1));
        let mut rounds = Self { node, redis, now };
        let logs = (0..=PARTITIONS).map(LogIndex).collect();
        rounds.node.machine.line_up(LINE, identity_of(1), logs, now);
        rounds.settle();
        rounds
    }

    /// Answers all requests until the node sends no more.
    fn settle(&mut self) {
        loop {
            let sent = self.sent();
            if sent.is_empty() {
                return;
            }
            sent.into_iter().for_each(|sent| self.answer(sent));
        }
    }

    /// The requests that the node sends now.
    fn sent(&mut self) -> Vec<Sent> {
        let outputs = self.node.machine.outputs(self.now).into_iter();
        let sent = |output| match output {
            Output::Call(id, _, log, request) => Some(Sent(id, log, request)),
            _ => None,
        };
        outputs.filter_map(sent).collect()
    }

    /// The logs of the batches that the node sends now.
    fn logs(sent: &[Sent]) -> Vec<u16> {
        let of = |Sent(_, log, request): &Sent| {
            assert!(matches!(request, LogRequest::Commit(_)), "{request:?}");
            log.0
        };
        sent.iter().map(of).collect()
    }

    fn append(&mut self, partition: u16) {
        self.node.append(partition, Bytes::from_static(b"x"), None, self.now);
    }

    fn answer(&mut self, Sent(id, log, request): Sent) {
        let (reply, pushed) = self.redis.handle(log, request, 0);
        self.replied(id, reply);
        if let Some((_, push)) = pushed {
            self.node.machine.pushed(LINE, push, self.now);
        }
    }

    fn replied(&mut self, id: CallId, reply: Result<Reply, RequestFailure>) {
        self.node.machine.replied(id, reply, self.now);
    }
}

#[test]
fn the_batches_of_all_logs_leave_together_once_the_round_before_is_answered() {
    let mut rounds = Rounds::new();
    rounds.append(0);
    let mut first = rounds.sent();
    assert_eq!(Rounds::logs(&first), [0], "nothing is under way, so nothing waits");
    rounds.append(1);
    rounds.append(0);
    rounds.append(1);
    assert!(rounds.sent().is_empty(), "a round is under way");
    rounds.answer(first.remove(0));
    let second = rounds.sent();
    assert_eq!(Rounds::logs(&second), [0, 1]);
    assert_eq!(rounds.node.machine.gathers_until(), None, "three appends are few");
    rounds.append(0);
    for sent in second {
        assert!(rounds.sent().is_empty(), "the round ends with its last batch");
        rounds.answer(sent);
    }
    assert_eq!(Rounds::logs(&rounds.sent()), [0]);
}

/// Rounds whose first one had three appends and is answered after `round_trip`, while `waiting` further appends wait.
fn gathering(round_trip: Duration, waiting: usize) -> Rounds {
    let mut rounds = Rounds::new();
    (0..3).for_each(|_| rounds.append(0));
    let first = rounds.sent().remove(0);
    [0, 1].into_iter().cycle().take(waiting).for_each(|partition| rounds.append(partition));
    rounds.now += round_trip;
    rounds.answer(first);
    rounds
}

#[test]
fn after_a_round_with_many_appends_the_next_one_gathers_as_long_as_the_round_took() {
    const SHORT: Duration = Duration::from_micros(300);
    for (round_trip, gathers) in [(SHORT, SHORT), (Duration::from_millis(70), GATHERS_MAX)] {
        let mut rounds = gathering(round_trip, GATHERS_FROM);
        assert!(rounds.sent().is_empty());
        let until = rounds.node.machine.gathers_until().expect("it gathers");
        assert_eq!(until - rounds.now, gathers);
        rounds.append(1);
        assert!(rounds.sent().is_empty());
        rounds.now = until;
        let second = rounds.sent();
        assert_eq!(Rounds::logs(&second), [0, 1]);
        assert_eq!(rounds.node.machine.gathers_until(), None, "the driver does not spin");
        second.into_iter().for_each(|sent| rounds.answer(sent));
        rounds.append(1);
        assert_eq!(Rounds::logs(&rounds.sent()), [1], "an idle line waits for nothing");
    }
}

#[test]
fn a_round_stops_gathering_once_twice_as_many_wait_as_the_one_before_had() {
    let mut rounds = gathering(GATHERS_MAX, 5);
    assert!(rounds.sent().is_empty());
    rounds.append(0);
    assert_eq!(Rounds::logs(&rounds.sent()), [0, 1]);
    assert_eq!(rounds.node.machine.gathers_until(), None);
    for waiting in [GATHERS_FROM - 1, 6] {
        let mut rounds = gathering(GATHERS_MAX, waiting);
        assert_eq!(Rounds::logs(&rounds.sent()), [0, 1], "{waiting}");
    }
}

#[test]
fn a_full_batch_waits_for_nothing() {
    let mut rounds = Rounds::new();
    (0..512).for_each(|_| rounds.append(0));
    let first = rounds.sent().remove(0);
    (0..512).for_each(|_| rounds.append(0));
    rounds.now += GATHERS_MAX;
    rounds.answer(first);
    assert_eq!(Rounds::logs(&rounds.sent()), [0]);
}

#[test]
fn a_round_ends_also_if_its_batches_are_refused_or_its_line_breaks() {
    let mut rounds = Rounds::new();
    rounds.append(0);
    let Sent(id, ..) = rounds.sent().remove(0);
    rounds.append(1);
    let refused = RequestFailure::Refused { text: "OOM".into(), is_elsewhere: false };
    rounds.replied(id, Err(refused));
    assert_eq!(Rounds::logs(&rounds.sent()), [1]);
    rounds.append(0);
    rounds.node.machine.line_down(LINE, "cut", rounds.now);
    assert!(rounds.sent().is_empty());
    let logs = (0..=PARTITIONS).map(LogIndex).collect();
    rounds.node.machine.line_up(LINE, identity_of(1), logs, rounds.now);
    rounds.settle();
    rounds.append(0);
    assert_eq!(Rounds::logs(&rounds.sent()), [0]);
}

/// A Redis that begins a new epoch may have forgotten the node's lease as well, so the lease comes first.
#[test]
fn a_node_registers_in_a_new_epoch_only_after_a_further_renewal() {
    let mut rounds = Rounds::new();
    let is_registration = |sent: &Sent| matches!(sent.2, LogRequest::Register { .. });
    let is_renewal = |sent: &Sent| matches!(sent.2, LogRequest::Renew(_));
    let (place, _) = rounds.redis.logs[0].state.clone().expect("a log");
    let fresh = crate::engine::LogEpoch(place.epoch.0 ^ 1);
    let done = rounds.redis.handle(LogIndex(0), LogRequest::Break { seen: place.epoch, fresh }, 0);
    done.0.expect("it is the epoch of the log");
    // The answer to an append reveals the new epoch, and the node reads it.
    rounds.append(0);
    let mut seen = Vec::new();
    for _ in 0..20 {
        for sent in rounds.sent() {
            seen.push((is_renewal(&sent), is_registration(&sent)));
            rounds.answer(sent);
        }
    }
    let renewed = seen.iter().position(|(is_renewal, _)| *is_renewal).expect("a renewal");
    let registered = seen.iter().position(|(_, is_registration)| *is_registration);
    assert!(renewed < registered.expect("a registration"), "{seen:?}");
    assert_eq!(seen.iter().filter(|(_, is_registration)| *is_registration).count(), 1, "{seen:?}");
}
