//! Which worker threads a topic is known to hand publications to.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::fanout::WorkerId;

/// The threads that a topic knows, as far as the threads themselves can tell: who joins on one of
/// them need not ask the topic, which a crowd of newcomers would all have to wait for.
///
/// A thread that is noted here is one of the topic's, but not always the other way round. Each thread
/// notes and crosses out itself, and does so *before* it tells the topic that nobody listens any
/// more; a topic that breaks crosses out all before it tells the threads.
#[derive(Debug, Default)]
pub(super) struct Opened(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    /// As many as there are threads.
    workers: HashSet<WorkerId>,
    /// How often one was crossed out.
    closings: u64,
    is_lost: bool,
}

/// The moment at which a topic was asked to open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    closings: u64,
}

impl Opened {
    /// Whether the topic hands this thread all that is published.
    pub(super) fn is_open(&self, worker: WorkerId) -> bool {
        self.noted().workers.contains(&worker)
    }

    /// Begins to ask the topic.
    pub(super) fn ask(&self) -> Asked {
        Asked { closings: self.noted().closings }
    }

    /// Notes that the topic has opened for a thread that asked. If any has closed since, it may have
    /// been this one, and the topic may hear of it only now: then whoever is next asks again.
    pub(super) fn open(&self, worker: WorkerId, asked: Asked) {
        let mut noted = self.noted();
        if noted.closings == asked.closings && !noted.is_lost {
            noted.workers.insert(worker);
        }
    }

    /// Crosses out a thread whose last subscriber has left.
    pub(super) fn close(&self, worker: WorkerId) {
        let mut noted = self.noted();
        noted.workers.remove(&worker);
        noted.closings += 1;
    }

    /// Crosses out all threads for good: the topic is no more.
    pub(super) fn lose(&self) {
        let mut noted = self.noted();
        noted.workers.clear();
        noted.is_lost = true;
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: WorkerId = WorkerId(1);
    const OTHER: WorkerId = WorkerId(2);

    #[test]
    fn a_thread_is_open_from_the_topics_answer_until_it_closes() {
        let opened = Opened::default();
        let asked = opened.ask();
        assert!(!opened.is_open(ONE), "it has only asked");
        opened.open(ONE, asked);
        assert!(opened.is_open(ONE));
        assert!(!opened.is_open(OTHER));
        opened.close(ONE);
        assert!(!opened.is_open(ONE));
    }

    #[test]
    fn an_answer_that_a_close_has_overtaken_opens_nothing() {
        let opened = Opened::default();
        let asked = opened.ask();
        opened.close(ONE);
        opened.open(ONE, asked);
        assert!(!opened.is_open(ONE));
        opened.open(ONE, opened.ask());
        assert!(opened.is_open(ONE));
    }

    #[test]
    fn nothing_opens_at_a_topic_that_is_lost() {
        let opened = Opened::default();
        let asked = opened.ask();
        opened.open(ONE, asked);
        opened.lose();
        opened.open(OTHER, asked);
        assert!(!opened.is_open(ONE) && !opened.is_open(OTHER));
    }
}
