//! A node that leaves while it removes another one.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{model::Model, node::Node, world::PARTITIONS};
use crate::engine::{
    Incarnation, NodeId,
    machine::LineId,
    request::{Instance, LogIndex, LogRequest, Renew},
};

#[test]
fn a_node_has_left_when_its_own_members_are_removed_and_not_those_of_another() {
    let (start, control) = (Instant::now(), LogIndex(PARTITIONS));
    let (mut node, mut redis) = (Node::new(1, 1, start), Model::new(PARTITIONS + 1, 1));
    let dead = (NodeId(2), Incarnation(9));
    let (instance, ttl) = (Instance([2; 16]), Duration::from_millis(1));
    let lease = Renew { life: dead, instance, ttl, is_first: true, info: Bytes::new() };
    redis.handle(control, LogRequest::Renew(lease), 0).0.expect("a lease");
    node.connect(LineId(1), &redis, start);

    let is_last = |request: &LogRequest| *request == LogRequest::Forget(dead);
    let (mut now, mut now_ms, mut held) = (start, 0, Vec::new());
    while held.is_empty() {
        (now, now_ms) = (now + Duration::from_millis(50), now_ms + 50);
        assert!(now_ms < 10_000, "the node removes the other one");
        node.machine.tick(now);
        held = node.exchange(&mut redis, now, now_ms, is_last);
    }
    let (done, mut left) = oneshot::channel();
    node.machine.leave(now + Duration::from_secs(10), done, now);
    for (id, log, request) in held {
        let (reply, _) = redis.handle(log, request, now_ms);
        node.machine.replied(id, reply, now);
    }
    assert!(left.try_recv().is_err(), "its own members are still there");
    node.exchange(&mut redis, now, now_ms, |_| false);
    assert_eq!(left.try_recv(), Ok(()));
}
