//! How a connection learns, from any thread, that it holds too much.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Waker,
};

use futures_util::task::AtomicWaker;

use crate::session::unfinished::{Holder, Holding, Unfinished};

/// What a connection holds of requests, counted among the unfinished work of all clients.
pub(super) struct Held {
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

impl Held {
    pub(super) fn new(budget: &Unfinished) -> Self {
        let eviction = Arc::<Eviction>::default();
        Self { holding: budget.hold(eviction.clone()), eviction }
    }

    /// Notes that the connection holds this much; `false` if it has to end. `waker` is woken if it has
    /// to later.
    pub(super) fn set(&mut self, bytes: usize, waker: &Waker) -> bool {
        // In this order: what is noted may make this very connection the one that ends.
        self.eviction.waker.register(waker);
        self.holding.set(bytes);
        !self.eviction.is_due.load(SeqCst)
    }
}
