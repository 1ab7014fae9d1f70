//! The work queue: the work of unauthenticated clients is begun a little at a time.
//!
//! A thread runs its tasks in the order in which they become ready. Thousands of connections that are ready
//! at once would make all other tasks wait for all of them. Therefore only [`COST_PER_TURN`] of their work
//! begins before every other task of the thread has run.
//!
//! A client that sends ahead waits behind all others: with HTTP a client that does not wait for the
//! answer to its previous request, over a WebSocket one that sends more frames than make a turn. The
//! work of all such clients of a thread together begins no faster than [`COST_PER_TURN`] in every
//! [`WINDOW`]. Connections whose last request was authenticated do not come here.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::yield_now,
    time::{Instant, sleep_until},
};

/// The work that begins in one turn. The unit is a request.
const COST_PER_TURN: usize = 16;

/// The time in which at most [`COST_PER_TURN`] of the work that was sent ahead begins.
const WINDOW: Duration = Duration::from_millis(2);

/// The kind of a piece of work. It decides what the work waits behind, and what it costs in
/// requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum Work {
    /// A request that the client sent after it had received all answers.
    Request,
    /// A request that the client sent ahead.
    RequestAhead,
    /// A turn of a WebSocket whose client has already had one.
    FramesAhead,
}

impl Work {
    fn is_ahead(self) -> bool {
        self != Self::Request
    }

    fn cost(self) -> usize {
        match self {
            Self::Request | Self::RequestAhead => 1,
            Self::FramesAhead => COST_PER_TURN / 2,
        }
    }
}

/// The work queue of one thread.
#[derive(Debug, Default)]
pub(in crate::session) struct WorkQueue {
    /// The work that has begun in this turn.
    begun: Cell<usize>,
    next: Cell<u64>,
    queue: RefCell<BTreeMap<WorkQueueKey, WorkQueueWaiter>>,
    crowded: Notify,
}

/// Whether the work was sent ahead, and a number that orders equal ones by arrival.
type WorkQueueKey = (bool, u64);

#[derive(Debug)]
struct WorkQueueWaiter {
    work: Work,
    waker: Waker,
    is_admitted: Rc<Cell<bool>>,
}

/// A place in the queue, for a piece of work that waits. Dropping this leaves the queue.
#[derive(Debug)]
pub(in crate::session) struct Ticket {
    work_queue: Rc<WorkQueue>,
    key: WorkQueueKey,
    is_admitted: Rc<Cell<bool>>,
}

impl WorkQueue {
    /// A work queue for the calling thread, and the task that lets work begin there, turn by turn.
    pub(in crate::session) fn start() -> Rc<Self> {
        let work_queue = Rc::new(Self::default());
        actix_rt::spawn(work_queue.clone().keep());
        work_queue
    }

    async fn keep(self: Rc<Self>) {
        let (mut window_ends, mut ahead) = (Instant::now(), 0);
        loop {
            match self.is_first_ahead() {
                Some(true) if ahead >= COST_PER_TURN => tokio::select! {
                    () = sleep_until(window_ends) => {}
                    () = self.crowded.notified() => yield_now().await,
                },
                Some(_) => yield_now().await,
                None => {
                    self.crowded.notified().await;
                    yield_now().await;
                }
            }
            if Instant::now() >= window_ends {
                (window_ends, ahead) = (Instant::now() + WINDOW, 0);
            }
            ahead += self.turn(COST_PER_TURN.saturating_sub(ahead));
        }
    }

    /// Begins a turn, in which at most `ahead_max` of the work that was sent ahead may begin. Returns how much
    /// of it does.
    pub(super) fn turn(&self, ahead_max: usize) -> usize {
        self.begun.set(0);
        let mut ahead = 0;
        while self.begun.get() < COST_PER_TURN {
            let mut queue = self.queue.borrow_mut();
            let Some(first) = queue.first_entry() else { break };
            let work = first.get().work;
            if work.is_ahead() {
                if ahead >= ahead_max {
                    break;
                }
                ahead += work.cost();
            }
            let waiter = first.remove();
            drop(queue);
            self.begun.set(self.begun.get() + work.cost());
            waiter.is_admitted.set(true);
            waiter.waker.wake();
        }
        ahead
    }

    /// Returns whether the first work in the queue was sent ahead; `None` if the queue is empty.
    fn is_first_ahead(&self) -> Option<bool> {
        self.queue.borrow().first_key_value().map(|((is_ahead, _), _)| *is_ahead)
    }

    /// Waits until a piece of work may begin. While the work waits, `ticket` holds its place in the queue.
    pub(in crate::session) fn poll_pass(
        self: &Rc<Self>,
        ticket: &mut Option<Box<Ticket>>,
        work: Work,
        cx: &Context<'_>,
    ) -> Poll<()> {
        match ticket {
            Some(held) if held.is_admitted.get() => {
                *ticket = None;
                Poll::Ready(())
            }
            Some(held) => {
                held.wake_by(cx.waker());
                Poll::Pending
            }
            None if self.is_clear(work) => {
                self.begun.set(self.begun.get() + work.cost());
                if self.begun.get() >= COST_PER_TURN {
                    self.crowded.notify_one();
                }
                Poll::Ready(())
            }
            None => {
                *ticket = Some(self.enter(work, cx.waker()));
                Poll::Pending
            }
        }
    }

    /// Returns whether a piece of work may begin without waiting.
    fn is_clear(&self, work: Work) -> bool {
        !work.is_ahead() && self.begun.get() < COST_PER_TURN && self.is_first_ahead() != Some(false)
    }

    fn enter(self: &Rc<Self>, work: Work, waker: &Waker) -> Box<Ticket> {
        let key = (work.is_ahead(), self.next.replace(self.next.get() + 1));
        let is_admitted = Rc::new(Cell::new(false));
        let waiter =
            WorkQueueWaiter { work, waker: waker.clone(), is_admitted: is_admitted.clone() };
        self.queue.borrow_mut().insert(key, waiter);
        self.crowded.notify_one();
        Box::new(Ticket { work_queue: self.clone(), key, is_admitted })
    }
}

impl Ticket {
    /// Sets the task to wake.
    fn wake_by(&self, waker: &Waker) {
        if let Some(waiter) = self.work_queue.queue.borrow_mut().get_mut(&self.key)
            && !waiter.waker.will_wake(waker)
        {
            waiter.waker = waker.clone();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.work_queue.queue.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };
    use std::task::Wake;

    use super::*;

    /// A client with a piece of work, and the number of times that it was woken.
    struct Client {
        work: Work,
        ticket: Option<Box<Ticket>>,
        wakes: Arc<Wakes>,
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    impl Client {
        fn many(work: Work, count: usize) -> Vec<Self> {
            let client = || Self { work, ticket: None, wakes: Arc::default() };
            std::iter::repeat_with(client).take(count).collect()
        }

        fn begins(&mut self, work_queue: &Rc<WorkQueue>) -> bool {
            let waker = Waker::from(self.wakes.clone());
            let cx = Context::from_waker(&waker);
            work_queue.poll_pass(&mut self.ticket, self.work, &cx).is_ready()
        }
    }

    /// Lets all of them try, and returns those that begin.
    fn begun(clients: &mut [Client], work_queue: &Rc<WorkQueue>) -> Vec<usize> {
        let begins = |(nth, client): (usize, &mut Client)| client.begins(work_queue).then_some(nth);
        clients.iter_mut().enumerate().filter_map(begins).collect()
    }

    fn numbers(range: std::ops::Range<usize>) -> Vec<usize> {
        range.collect()
    }

    #[test]
    fn requests_begin_a_turns_worth_at_a_time_in_the_order_in_which_they_came() {
        let work_queue = Rc::new(WorkQueue::default());
        let mut clients = Client::many(Work::Request, 40);
        assert_eq!(begun(&mut clients, &work_queue), numbers(0..16));
        let mut waiting = clients.split_off(16);
        for expected in [16, 8, 0] {
            assert_eq!(begun(&mut waiting, &work_queue), numbers(0..0), "before the next turn");
            work_queue.turn(0);
            let woken: usize = waiting.iter().map(|client| client.wakes.0.load(Relaxed)).sum();
            assert_eq!(woken, expected);
            assert_eq!(begun(&mut waiting, &work_queue), numbers(0..expected));
            waiting.drain(..expected);
        }
    }

    #[test]
    fn requests_sent_ahead_wait_behind_those_that_were_not() {
        let work_queue = Rc::new(WorkQueue::default());
        let mut ahead = Client::many(Work::RequestAhead, 3);
        assert_eq!(begun(&mut ahead, &work_queue), numbers(0..0), "also where nobody else is");
        let mut prompt = Client::many(Work::Request, 17);
        assert_eq!(begun(&mut prompt, &work_queue), numbers(0..16));
        work_queue.turn(2);
        assert_eq!(begun(&mut prompt[16..], &work_queue), [0]);
        assert_eq!(begun(&mut ahead, &work_queue), [0, 1], "as many as may");
        work_queue.turn(2);
        assert_eq!(begun(&mut ahead[2..], &work_queue), [0]);
    }

    #[test]
    fn a_turn_of_frames_costs_as_much_as_several_requests() {
        let work_queue = Rc::new(WorkQueue::default());
        let mut sessions = Client::many(Work::FramesAhead, 5);
        assert_eq!(begun(&mut sessions, &work_queue), numbers(0..0));
        assert_eq!(work_queue.turn(COST_PER_TURN), COST_PER_TURN);
        assert_eq!(begun(&mut sessions, &work_queue), [0, 1]);
    }

    #[test]
    fn a_client_that_goes_away_leaves_its_place() {
        let work_queue = Rc::new(WorkQueue::default());
        let mut clients = Client::many(Work::RequestAhead, 3);
        begun(&mut clients, &work_queue);
        drop(clients.remove(0));
        assert_eq!(work_queue.turn(1), 1);
        assert_eq!(begun(&mut clients, &work_queue), [0]);
        drop(clients);
        assert_eq!(work_queue.is_first_ahead(), None);
    }

    #[tokio::test]
    async fn the_keeper_lets_everybody_begin_in_the_end() {
        let work_queue = Rc::new(WorkQueue::default());
        let mut clients = Client::many(Work::Request, 100);
        clients.extend(Client::many(Work::RequestAhead, 100));
        clients.extend(Client::many(Work::FramesAhead, 10));
        let all = async {
            while !clients.is_empty() {
                clients.retain_mut(|client| !client.begins(&work_queue));
                yield_now().await;
            }
        };
        let kept = async {
            tokio::select! {
                () = all => {}
                () = work_queue.clone().keep() => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(10), kept).await.expect("in time");
    }
}
