//! The thread that feeds one node's follower.

use std::{sync::Arc, thread};

use bytes::Bytes;
use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
};

use super::{
    MemoryCluster,
    cluster::{PartitionNews, ReadCursor},
};
use crate::engine::{EngineState, Flow, Follower, Incarnation, NodeId, NodeInfo, Partition};

/// A request to a node's thread.
pub(super) enum NodeCall {
    /// Feed this follower.
    Follow(Arc<dyn Follower>),
    /// Read the next part of a partition, which may have new records.
    Advance(Partition),
    /// Continue with a partition that the follower has paused.
    Resume(Partition),
    /// Tell the follower of a new incarnation.
    Reincarnated(Incarnation),
    /// Pass on a message of this node.
    Told(NodeId, Bytes),
    /// Tell the follower that messages may have been missed.
    ToldLost,
    /// Pass on a question of this node.
    Asked(NodeId, Bytes, oneshot::Sender<Bytes>),
    /// Tell the follower the live nodes.
    Nodes(Arc<[NodeInfo]>),
}

/// Starts a node's thread, which ends when `calls` is closed.
pub(super) fn start(
    cluster: MemoryCluster,
    partitions: u16,
    calls: mpsc::UnboundedReceiver<NodeCall>,
    state: watch::Sender<EngineState>,
) -> runtime::Handle {
    let runtime = runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let handle = runtime.handle().clone();
    let cursors = (0..partitions).map(|_| ReadCursor::default()).collect();
    let feed = NodeFeed { cluster, cursors, state };
    thread::spawn(move || runtime.block_on(feed.run(calls)));
    handle
}

struct NodeFeed {
    cluster: MemoryCluster,
    cursors: Vec<ReadCursor>,
    state: watch::Sender<EngineState>,
}

impl NodeFeed {
    async fn run(mut self, mut calls: mpsc::UnboundedReceiver<NodeCall>) {
        // Calls that arrive before the follower are kept for it.
        let mut early = Vec::new();
        let follower = loop {
            match calls.recv().await {
                Some(NodeCall::Follow(follower)) => break follower,
                Some(NodeCall::Advance(_)) => {}
                Some(call) => early.push(call),
                None => return,
            }
        };
        for partition in 0..self.cursors.len() {
            self.advance(&*follower, Partition(partition as u16));
        }
        self.state.send_if_modified(|state| {
            let is_starting = *state == EngineState::Starting;
            if is_starting {
                *state = EngineState::Up;
            }
            is_starting
        });
        for call in early {
            self.handle(&*follower, call);
        }
        while let Some(call) = calls.recv().await {
            self.handle(&*follower, call);
        }
    }

    fn handle(&mut self, follower: &dyn Follower, call: NodeCall) {
        match call {
            NodeCall::Follow(_) => {}
            NodeCall::Advance(partition) => self.advance(follower, partition),
            NodeCall::Resume(partition) => {
                self.cursors[usize::from(partition.0)].is_paused = false;
                self.advance(follower, partition);
            }
            NodeCall::Reincarnated(incarnation) => follower.reincarnated(incarnation),
            NodeCall::Told(from, message) => follower.told(from, message),
            NodeCall::ToldLost => follower.told_lost(),
            NodeCall::Asked(from, question, answer) => {
                let asked = follower.asked(from, question);
                tokio::spawn(async { answer.send(asked.await) });
            }
            NodeCall::Nodes(live) => follower.nodes_changed(&live),
        }
    }

    fn advance(&mut self, follower: &dyn Follower, partition: Partition) {
        let cursor = &mut self.cursors[usize::from(partition.0)];
        while !cursor.is_paused {
            let Some(news) = self.cluster.read(partition, cursor) else { return };
            match news {
                PartitionNews::NewEpoch(at) => follower.new_epoch(partition, at.epoch, at.offset),
                PartitionNews::Lost(epoch, first, next) => {
                    follower.lost(partition, epoch, first, next)
                }
                PartitionNews::Left(at, node, incarnation) => {
                    follower.members_left(partition, at, node, incarnation);
                }
                PartitionNews::Records(epoch, records) => {
                    let flow = follower.records(partition, epoch, &records);
                    cursor.is_paused = flow == Flow::Pause;
                }
            }
        }
    }
}
