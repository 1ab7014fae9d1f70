//! A Redis that does not answer while many requests wait for it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{model::Model, node::Node, world::PARTITIONS};
use crate::engine::{
    AppendError, EngineState, NodeId, Partition, Unavailable,
    machine::{LETTERS_BYTES_MAX, LineId, MEMBERS_CALLS_MAX, Output},
    request::{Commit, LogRequest},
};

const LINE: LineId = LineId(1);

/// The bytes of one batch, and of what waits for one log: see `commits`.
const BATCH_BYTES_MAX: usize = 1 << 20;
const QUEUED_BYTES_MAX: usize = 32 << 20;

/// The requests that a node sends now.
fn requests(node: &mut Node, now: Instant) -> Vec<LogRequest> {
    let outputs = node.machine.outputs(now).into_iter();
    let request = |output| match output {
        Output::Call(_, _, _, request) => Some(request),
        _ => None,
    };
    outputs.filter_map(request).collect()
}

fn node_that_is_up(now: Instant) -> Node {
    let (mut node, mut redis) = (Node::new(1, 1, now), Model::new(PARTITIONS + 1, 1));
    node.connect(LINE, &redis, now);
    node.exchange(&mut redis, now, 0, |_| false);
    assert_eq!(*node.shared.state.borrow(), EngineState::Up);
    node
}

#[test]
fn one_batch_of_a_log_is_sent_and_what_waits_behind_it_is_bounded() {
    const APPENDS: usize = 20_000;
    let now = Instant::now();
    let mut node = node_that_is_up(now);
    let body = Bytes::from(vec![b'x'; 10_000]);
    let mut sent = Vec::new();
    for _ in 0..APPENDS {
        node.append(0, body.clone(), None, now);
        sent.extend(requests(&mut node, now));
    }
    let [LogRequest::Commit(Commit { segments, .. })] = &sent[..] else { panic!("one batch") };
    let bytes: usize = segments.iter().map(|segment| segment.records.len()).sum();
    assert!(bytes <= BATCH_BYTES_MAX, "{bytes}");
    let refused = node.waiting.iter_mut().filter_map(|waiting| waiting.outcome.try_recv().ok());
    let refused: Vec<_> = refused.collect();
    assert!(refused.iter().all(|outcome| *outcome == Err(AppendError::Unavailable)));
    let waiting = APPENDS - refused.len();
    assert!(waiting * body.len() <= BATCH_BYTES_MAX + QUEUED_BYTES_MAX, "{waiting}");
    assert!(waiting > 3_000, "{waiting}");
}

#[test]
fn letters_and_readings_of_members_that_wait_are_bounded_until_the_line_is_given_up() {
    let now = Instant::now();
    let mut node = node_that_is_up(now);
    for id in 0..100 {
        node.machine.answered(id, NodeId(2), vec![0; 1 << 20].into());
    }
    let letters = requests(&mut node, now).into_iter().map(|request| match request {
        LogRequest::Post { letter, .. } => letter.len(),
        other => panic!("{other:?}"),
    });
    let letters: Vec<_> = letters.collect();
    let bytes: usize = letters.iter().sum();
    assert!(bytes <= LETTERS_BYTES_MAX && letters.len() == 31, "{bytes} in {}", letters.len());

    let deadline = now + Duration::from_secs(1);
    let mut members = || {
        let (snapshot, answer) = oneshot::channel();
        node.machine.members(Partition(0), Bytes::from_static(b"room"), deadline, snapshot);
        answer
    };
    let mut answers: Vec<_> = (0..MEMBERS_CALLS_MAX + 10).map(|_| members()).collect();
    let (sent, refused) = answers.split_at_mut(MEMBERS_CALLS_MAX);
    for answer in refused {
        assert_eq!(answer.try_recv().expect("an answer"), Err(Unavailable));
    }
    assert!(sent.iter_mut().all(|answer| answer.try_recv().is_err()));
    assert_eq!(requests(&mut node, now).len(), MEMBERS_CALLS_MAX);

    // A probe is not answered either, so the line is given up with all that it holds.
    node.machine.tick(now + Duration::from_millis(200));
    node.machine.outputs(now);
    node.machine.tick(now + Duration::from_millis(400));
    let given_up = node.machine.outputs(now);
    assert!(matches!(given_up[..], [Output::Reconnect(LINE, _)]));
    node.machine.line_down(LINE, "it stood still", now);
    for answer in sent {
        assert_eq!(answer.try_recv().expect("an answer"), Err(Unavailable));
    }
    assert_eq!((node.machine.letters_bytes, node.machine.members_calls), (0, 0));
}
