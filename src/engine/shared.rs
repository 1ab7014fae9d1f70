//! The state of a node's engine that other threads can read.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{EngineFigures, EngineState, Incarnation, NodeInfo};

/// Figures, live nodes and state, written by the engine's thread.
#[derive(Debug)]
pub(super) struct EngineShared {
    incarnation: AtomicU64,
    nodes: ArcSwap<Vec<NodeInfo>>,
    figures: Mutex<EngineFigures>,
    probed_at: Mutex<Option<Instant>>,
    pub(super) state: watch::Sender<EngineState>,
}

impl EngineShared {
    pub(super) fn new(incarnation: Incarnation) -> Arc<Self> {
        Arc::new(Self {
            incarnation: AtomicU64::new(incarnation.0),
            nodes: ArcSwap::default(),
            figures: Mutex::default(),
            probed_at: Mutex::default(),
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

    pub(super) fn figures(&self) -> EngineFigures {
        let probed_at = *self.probed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let age_ms = probed_at.map(|at| at.elapsed().as_millis());
        EngineFigures {
            probe_age_ms: age_ms.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            ..*self.figures.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    pub(super) fn probed(&self, now: Instant) {
        *self.probed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut EngineFigures)) {
        change(&mut self.figures.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
