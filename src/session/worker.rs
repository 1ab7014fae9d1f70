//! The state that the sessions of one worker thread share.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
use bytes::{Bytes, BytesMut};
use log::error;
use uuid::Uuid;

use crate::{
    broker::{
        Topics,
        fanout::{Fanout, Leave, Relieve, ThreadFanout},
        node::NodeId,
        outbox::{Load, Outbox},
        subscriber::SessionId,
    },
    metrics::{Metrics, labels::Limit, writes::ThreadWrites},
};

use super::{answer::Pieces, bucket::PerSecond, requests::WorkQueue, unfinished::Unfinished};

/// The most bytes that are read from a socket at once.
const READ_BYTES_MAX: usize = 64 * 1024;

/// The number of times within an idle timeout that a thread checks its silent sessions.
const LOOKS_PER_IDLE_TIMEOUT: u32 = 64;

/// The highest first number of a session, which is half of the numbers that a node has for its sessions.
const FIRST_NUMBER_MAX: u64 = (1 << 47) - 1;

/// Bounds of one session. See `config/default.toml` for what each protects.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// The most bytes of one message after reassembly.
    pub message_bytes_max: usize,
    /// The most bytes of one message before the session has joined anything.
    pub unjoined_message_bytes_max: usize,
    /// The longest time from the first byte of a message to its last.
    pub message_timeout: Duration,
    /// The most frames that a client may send within a second.
    pub frames_per_second_max: PerSecond,
    /// The most frames that may wait in the outbox.
    pub outbox_frames_max: usize,
    /// The most bytes that may wait in the outbox.
    pub outbox_bytes_max: usize,
    /// The time without inbound bytes after which the conversation decides whether the session ends.
    pub idle_timeout: Duration,
    /// A write without progress for this long ends the session.
    pub write_timeout: Duration,
}

/// Counts the sessions of the whole server against their limit.
#[derive(Debug, Clone)]
pub struct SessionCounter {
    open: Arc<AtomicUsize>,
    next_id: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
    max: usize,
    node: NodeId,
    unfinished: Unfinished,
    metrics: Arc<Metrics>,
}

impl SessionCounter {
    /// A count of zero, with at most `max` sessions at the same time; their unfinished work shares
    /// a budget.
    pub fn new(max: usize, unfinished: Unfinished, metrics: Arc<Metrics>) -> Self {
        Self {
            open: Arc::default(),
            next_id: Arc::new(AtomicU64::new(first_number())),
            closed: Arc::default(),
            max,
            node: NodeId::ONLY,
            unfinished,
            metrics,
        }
    }

    /// Sets the node of a cluster, so that the sessions of different nodes have different ids.
    pub fn of_node(mut self, node: NodeId) -> Self {
        self.node = node;
        self
    }

    /// The metrics of the server.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The number of open sessions.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// The most sessions that may be open.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// The budget of the sessions' unfinished work.
    pub(super) fn unfinished(&self) -> &Unfinished {
        &self.unfinished
    }

    /// Refuses further sessions.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Returns whether further sessions are refused.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Takes a place; `None` if all are taken, or the server stops.
    pub(super) fn admit(&self) -> Option<Admission> {
        if self.closed.load(Relaxed) {
            return None;
        }
        let admitted =
            self.open.fetch_update(Relaxed, Relaxed, |n| (n < self.max).then_some(n + 1));
        if admitted.is_err() {
            self.metrics.hit(Limit::Sessions);
            return None;
        }
        let id = SessionId::new(self.node, self.next_id.fetch_add(1, Relaxed));
        Some(Admission { id, open: self.open.clone() })
    }
}

/// The number of a process's first session. It is random, so that the number of a session of an earlier
/// process is not that of another session now. At least half of the numbers are above it.
fn first_number() -> u64 {
    Uuid::new_v4().as_u128() as u64 & FIRST_NUMBER_MAX
}

/// A session's place among all sessions. Dropping this gives it back.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) id: SessionId,
    open: Arc<AtomicUsize>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
    }
}

/// The fan-out that a session entered. Dropping this leaves it.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) session: SessionId,
    pub(super) fanout: Rc<ThreadFanout>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.fanout.addr.do_send(Leave(self.session));
    }
}

/// A function that makes a new fan-out known to the rest of the server.
type Introduce = Box<dyn Fn(&Addr<Fanout>)>;

/// The state that the sessions of one worker thread share.
pub struct Worker {
    /// The broker.
    pub(super) topics: Topics,
    /// The bounds of each session.
    pub(super) limits: SessionLimits,
    /// The count of all sessions.
    pub(super) sessions: SessionCounter,
    /// The other metrics.
    pub(super) metrics: Arc<Metrics>,
    /// The thread's writes of frames.
    pub(super) frame_writes: Arc<ThreadWrites>,
    /// The buffer into which sockets are read; each session keeps only unfinished messages.
    pub(super) scratch: RefCell<Box<[u8]>>,
    /// The buffer in which the frames of one write are gathered; each session keeps only the bytes
    /// that its socket does not take.
    pub(super) gathered: RefCell<BytesMut>,
    /// The queue in which unauthenticated clients wait for their turn.
    pub(super) work_queue: Rc<WorkQueue>,
    fanout: RefCell<Rc<ThreadFanout>>,
    on_fanout: Introduce,
    started: Instant,
}

impl Worker {
    /// Sets up the calling worker thread. `on_fanout` is called with each new fan-out of the thread; there is a
    /// second one only after a panic of the first.
    pub fn start(
        topics: Topics,
        limits: SessionLimits,
        sessions: SessionCounter,
        on_fanout: impl Fn(&Addr<Fanout>) + 'static,
    ) -> Rc<Self> {
        topics.add_worker();
        let fanout = RefCell::new(start_fanout(&topics, &on_fanout));
        Rc::new(Self {
            work_queue: WorkQueue::start(),
            metrics: topics.metrics().clone(),
            frame_writes: topics.metrics().frame_writes.of_new_thread(),
            topics,
            limits,
            sessions,
            scratch: RefCell::new(vec![0; READ_BYTES_MAX].into_boxed_slice()),
            gathered: RefCell::default(),
            fanout,
            on_fanout: Box::new(on_fanout),
            started: Instant::now(),
        })
    }

    /// The body of an answer with the frames that waited for a session. It counts in the backlog until it has
    /// been sent to the client.
    pub fn waiting_body(&self, body: Bytes) -> Pieces {
        Pieces::new(self.topics.backlog().counted(body))
    }

    /// Has the session ended for which the most bytes wait, if too much waits for all sessions together. It is
    /// called after a session has added something to the backlog itself.
    pub(super) fn relieve(&self) {
        if self.topics.backlog().is_exceeded() {
            self.fanout().addr.do_send(Relieve);
        }
    }

    /// The outbox of a new session.
    pub(super) fn outbox(&self, admission: &Admission) -> Arc<Outbox> {
        let SessionLimits { outbox_frames_max: frames, outbox_bytes_max: bytes, .. } = self.limits;
        Outbox::new(admission.id, Load { frames, bytes })
    }

    /// The thread's fan-out, started again after a panic, because actix does not restart actors.
    pub(super) fn fanout(&self) -> Rc<ThreadFanout> {
        let mut fanout = self.fanout.borrow_mut();
        if !fanout.addr.connected() {
            error!("fan-out {} is lost by a panic; this thread starts another", fanout.worker.0);
            *fanout = start_fanout(&self.topics, &self.on_fanout);
        }
        fanout.clone()
    }

    /// The time at which to check whether a session has been silent until `deadline`: a little
    /// later, together with other sessions. Most have sent something by then, and a wake-up costs
    /// more than the check.
    pub(super) fn look_after(&self, deadline: Instant) -> Instant {
        let pause = (self.limits.idle_timeout / LOOKS_PER_IDLE_TIMEOUT).as_nanos().max(1);
        let until = deadline.saturating_duration_since(self.started).as_nanos();
        let late = (pause - until % pause) % pause;
        deadline + Duration::from_nanos(u64::try_from(late).unwrap_or_default())
    }

    /// A moment in seconds, for buckets.
    pub(super) fn seconds_at(&self, moment: Instant) -> f64 {
        // The count does not begin at zero, because a bucket that is empty from the start must not
        // look full.
        1.0 + moment.saturating_duration_since(self.started).as_secs_f64()
    }

    /// Returns whether publications may be on their way to this thread's sessions.
    pub(super) fn awaits_more(&self) -> bool {
        self.fanout.borrow().awaits_more()
    }
}

fn start_fanout(topics: &Topics, introduce: &dyn Fn(&Addr<Fanout>)) -> Rc<ThreadFanout> {
    let fanout = topics.start_fanout();
    introduce(&fanout.addr);
    Rc::new(fanout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::testing::{Bench, limits};

    #[test]
    fn as_many_are_admitted_as_may_be_and_a_place_that_is_left_is_free() {
        let sessions = SessionCounter::new(2, Unfinished::new(1_000), Metrics::new(0));
        let first = sessions.admit().expect("room");
        let second = sessions.admit().expect("room");
        assert_ne!(first.id, second.id);
        assert!(sessions.admit().is_none());
        assert_eq!(sessions.open(), 2);
        drop(first);
        let third = sessions.admit().expect("room again");
        assert_ne!(third.id, second.id);
        assert!(sessions.admit().is_none());
    }

    #[test]
    fn the_numbers_of_two_processes_differ_and_grow() {
        let [one, other] = [1, 2].map(|_| {
            let sessions = SessionCounter::new(2, Unfinished::new(1_000), Metrics::new(0));
            let [first, second] = [1, 2].map(|_| sessions.admit().expect("room").id);
            assert!(first < second && first.node() == NodeId::ONLY);
            first
        });
        assert!(one.0.abs_diff(other.0) > 1_000, "{one:?} {other:?}");
    }

    #[test]
    fn nobody_is_admitted_to_a_server_that_stops() {
        let sessions = SessionCounter::new(2, Unfinished::new(1_000), Metrics::new(0));
        let inside = sessions.admit();
        sessions.close();
        assert!(sessions.admit().is_none());
        assert_eq!(sessions.open(), 1, "who is inside stays");
        drop(inside);
        assert_eq!(sessions.open(), 0);
    }

    #[test]
    fn simultaneous_admissions_never_exceed_the_limit() {
        let sessions = SessionCounter::new(100, Unfinished::new(1_000), Metrics::new(0));
        let admitted: usize = std::thread::scope(|scope| {
            let crowd = || {
                let places: Vec<_> = (0..100).filter_map(|_| sessions.admit()).collect();
                assert!(sessions.open() <= 100);
                let count = places.len();
                std::mem::forget(places);
                count
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(crowd)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!((admitted, sessions.open()), (100, 100));
    }

    #[actix_web::test]
    async fn silence_is_looked_after_soon_enough_and_for_many_at_once() {
        let idle_timeout = Duration::from_secs(64);
        let worker = Bench::new(SessionLimits { idle_timeout, ..limits() }).worker;
        let deadlines = (0..10_000).map(|ms| worker.started + Duration::from_millis(ms));
        let mut looks: Vec<_> = deadlines
            .map(|deadline| {
                let look = worker.look_after(deadline);
                assert!(look >= deadline, "too early, a look is in vain");
                assert!(look < deadline + idle_timeout / LOOKS_PER_IDLE_TIMEOUT);
                look
            })
            .collect();
        looks.dedup();
        assert_eq!(looks.len(), 11, "one at the start, and one at each second's end");
    }

    #[actix_web::test]
    async fn a_fan_out_that_is_gone_is_replaced() {
        let worker = Bench::new(limits()).worker;
        let first = worker.fanout();
        assert_eq!(worker.fanout().addr, first.addr);
        let mut broken = worker.topics.start_fanout();
        broken.addr = gone(&worker.topics).await;
        let number = broken.worker;
        *worker.fanout.borrow_mut() = Rc::new(broken);
        let second = worker.fanout();
        assert!(second.addr.connected());
        assert!(![first.worker, number].contains(&second.worker));
    }

    /// The address of a fan-out that has ended.
    async fn gone(topics: &Topics) -> Addr<Fanout> {
        let arbiter = Arbiter::new();
        let (send, receive) = tokio::sync::oneshot::channel();
        let topics = topics.clone();
        arbiter.spawn_fn(move || {
            let _ = send.send(topics.start_fanout().addr);
        });
        let addr = receive.await.expect("a fan-out on a thread of its own");
        arbiter.stop();
        let ended = async {
            while addr.connected() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(crate::session::testing::DEADLINE, ended).await.expect("in time");
        addr
    }
}
