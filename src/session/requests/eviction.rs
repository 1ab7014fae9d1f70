//! The signal, from any thread, that a connection holds too much.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Waker,
};

use futures_util::task::AtomicWaker;

use crate::session::unfinished::{Holder, Holding, Unfinished};

/// The bytes that a connection holds of requests, counted among the unfinished work of all clients.
pub(super) struct HeldWork {
    holding: Holding,
    eviction: Arc<Eviction>,
}

#[derive(Default)]
struct Eviction {
    is_due: AtomicBool,
    /// Wakes the connection's task.
    waker: AtomicWaker,
}

impl Holder for Eviction {
    fn give_way(&self) {
        self.is_due.store(true, SeqCst);
        self.waker.wake();
    }
}

impl HeldWork {
    pub(super) fn new(budget: &Unfinished) -> Self {
        let eviction = Arc::<Eviction>::default();
        Self { holding: budget.hold(eviction.clone()), eviction }
    }

    /// Notes that the connection holds `bytes`. Returns `false` if it must end now; if it must end later, `waker`
    /// is woken.
    pub(super) fn set(&mut self, bytes: usize, waker: &Waker) -> bool {
        // The waker is registered first, because the next call may decide that this connection must end.
        self.eviction.waker.register(waker);
        self.holding.set(bytes);
        !self.eviction.is_due.load(SeqCst)
    }
}
