//! The state of a node's engine that other threads can read.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{EngineState, Incarnation, NodeInfo};

/// Incarnation, live nodes and state, written by the engine's thread.
#[derive(Debug)]
pub(super) struct EngineShared {
    incarnation: AtomicU64,
    nodes: ArcSwap<Vec<NodeInfo>>,
    pub(super) state: watch::Sender<EngineState>,
}

impl EngineShared {
    pub(super) fn new(incarnation: Incarnation) -> Arc<Self> {
        Arc::new(Self {
            incarnation: AtomicU64::new(incarnation.0),
            nodes: ArcSwap::default(),
            state: watch::Sender::new(EngineState::Starting),
        })
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Relaxed))
    }

    pub(super) fn set_incarnation(&self, incarnation: Incarnation) {
        self.incarnation.store(incarnation.0, Relaxed);
    }

    pub(super) fn nodes(&self) -> Arc<[NodeInfo]> {
        self.nodes.load().as_slice().into()
    }

    pub(super) fn set_nodes(&self, nodes: &[NodeInfo]) {
        self.nodes.store(Arc::new(nodes.to_vec()));
    }
}
