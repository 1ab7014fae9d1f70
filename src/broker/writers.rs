//! The writers of a thread's sessions, by which the fan-out writes frames to sockets itself.
//!
//! A delivery usually finds a session that waits for nothing else than the next frame. Its writer then takes
//! the frame from the outbox and writes it, and the task of the session does not run: to wake and poll it would take
//! as long as all the rest that Herald does for a delivery.

use std::{cell::RefCell, fmt, ptr, rc::Rc, sync::Arc};

use slab::Slab;

use super::{growth, outbox::Outbox};

/// Writes the frames of one outbox to the socket of its session.
pub trait FrameWriter {
    /// The outbox whose frames it writes.
    fn outbox(&self) -> &Arc<Outbox>;

    /// Writes what waits in the outbox, as far as one write takes it. Returns `false` if the session has to run: something
    /// other than a frame waits, more than one write waits, or the socket does not take everything at once.
    fn write_waiting(&self) -> bool;
}

/// The writers of all sessions of one thread. A session without one, such as one over long-poll, is woken for each
/// delivery.
#[derive(Default)]
pub(super) struct FrameWriters(RefCell<Slab<Rc<dyn FrameWriter>>>);

impl FrameWriters {
    /// Adds the writer of a session until the returned value is dropped.
    pub(super) fn add(self: &Rc<Self>, writer: Rc<dyn FrameWriter>) -> WriterPlace {
        let mut all = self.0.borrow_mut();
        if all.len() == all.capacity() {
            let more = growth::more_room(all.len());
            all.reserve_exact(more);
        }
        let outbox = writer.outbox().clone();
        let slot = all.insert(writer);
        outbox.set_writer(Some(slot));
        WriterPlace { writers: self.clone(), slot, outbox }
    }

    /// Has the writer of a session write what waits in its outbox. Returns `false` if the session has to run, or has no
    /// writer here.
    pub(super) fn write_waiting(&self, outbox: &Outbox) -> bool {
        let all = self.0.borrow();
        let writer = outbox.writer().and_then(|slot| all.get(slot));
        // A slot may be one of another fan-out of this thread, which has panicked.
        writer.is_some_and(|writer| ptr::eq(&**writer.outbox(), outbox) && writer.write_waiting())
    }
}

impl fmt::Debug for FrameWriters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FrameWriters").field(&self.0.borrow().len()).finish()
    }
}

/// The place of a session's writer among those of its thread. Dropping this removes the writer.
pub struct WriterPlace {
    writers: Rc<FrameWriters>,
    slot: usize,
    outbox: Arc<Outbox>,
}

impl Drop for WriterPlace {
    fn drop(&mut self) {
        self.outbox.set_writer(None);
        let writer = self.writers.0.borrow_mut().remove(self.slot);
        // The socket is closed after the list is free again.
        drop(writer);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        task::{Wake, Waker},
    };

    use super::*;
    use crate::broker::{
        outbox::Load,
        subscriber::SessionId,
        testing::{Broker, Probe, key, publication, whole},
    };

    /// Takes all frames of its outbox, or refuses to.
    struct Counting {
        outbox: Arc<Outbox>,
        takes: Cell<bool>,
        /// The number of times it was called.
        calls: Cell<usize>,
    }

    impl Counting {
        fn new(outbox: &Arc<Outbox>) -> Rc<Self> {
            let (outbox, takes, calls) = (outbox.clone(), true.into(), Cell::default());
            Rc::new(Self { outbox, takes, calls })
        }
    }

    impl FrameWriter for Counting {
        fn outbox(&self) -> &Arc<Outbox> {
            &self.outbox
        }

        fn write_waiting(&self) -> bool {
            self.calls.set(self.calls.get() + 1);
            if self.takes.get() {
                self.outbox.take_frames(None, |_, _| true);
            }
            self.takes.get()
        }
    }

    /// Goes up when woken.
    #[derive(Default)]
    struct WokenFlag(AtomicBool);

    impl Wake for WokenFlag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    /// A session without a task, which has joined a scope.
    struct Idle {
        broker: Broker,
        probe: Probe,
        is_woken: Arc<WokenFlag>,
    }

    impl Idle {
        async fn new() -> Self {
            let broker = Broker::start();
            let probe = broker.stuck_session(1, 16).await;
            broker.join(&probe, whole(&key(1, "public"))).await.expect("a place");
            let session = Self { broker, probe, is_woken: Arc::default() };
            session.take_all();
            session
        }

        /// Takes all that waits, as the session's task does.
        fn take_all(&self) {
            let waker = Waker::from(self.is_woken.clone());
            while self.probe.outbox.take().is_some() {}
            self.probe.outbox.take_frames(Some(&waker), |_, _| true);
        }

        /// Publishes an event. Returns whether the session was woken for it, and takes all that waits.
        async fn is_woken_by_event(&self) -> bool {
            self.broker.publish(&key(1, "public"), "#general", "msg").await;
            let is_woken = self.is_woken.0.swap(false, Relaxed);
            self.take_all();
            is_woken
        }
    }

    #[actix_web::test]
    async fn a_session_is_woken_only_if_it_has_no_writer_or_its_writer_leaves_something() {
        let session = Idle::new().await;
        let outbox = &session.probe.outbox;
        assert!(session.is_woken_by_event().await, "it has no writer");

        let writer = Counting::new(outbox);
        let place = session.broker.writers.add(writer.clone());
        assert!(!session.is_woken_by_event().await);
        assert_eq!(writer.calls.get(), 1);
        writer.takes.set(false);
        assert!(session.is_woken_by_event().await);
        assert_eq!(writer.calls.get(), 2);

        drop(place);
        assert!(session.is_woken_by_event().await, "its writer is gone");
        assert_eq!((writer.calls.get(), Rc::strong_count(&writer)), (2, 1));
    }

    #[actix_web::test]
    async fn a_writer_that_has_the_place_of_an_earlier_one_never_writes_for_its_session() {
        let session = Idle::new().await;
        let other = session.broker.stuck_session(2, 16).await;
        let writers = Rc::<FrameWriters>::default();
        // The session is at this place among the writers of a fan-out that is gone.
        let _place = writers.add(Counting::new(&session.probe.outbox));
        let writer = Counting::new(&other.outbox);
        let _other_place = session.broker.writers.add(writer.clone());
        assert_eq!(session.probe.outbox.writer(), other.outbox.writer());
        assert!(session.is_woken_by_event().await);
        assert_eq!(writer.calls.get(), 0);
    }

    #[actix_web::test]
    async fn while_more_is_on_its_way_sessions_are_woken_so_that_it_leaves_together() {
        let session = Idle::new().await;
        let writer = Counting::new(&session.probe.outbox);
        let _place = session.broker.writers.add(writer.clone());
        for event in ["a", "b"] {
            let publication = publication(&key(1, "public"), "#general", event);
            session.broker.topics.publish(publication).await.expect("room for both");
        }
        assert!(session.is_woken_by_event().await);
        assert_eq!(writer.calls.get(), 0);
        assert!(!session.is_woken_by_event().await, "nothing more is on its way");
        assert_eq!(writer.calls.get(), 1);
    }

    #[test]
    fn a_list_of_writers_has_little_room_more_than_it_needs() {
        let writers = Rc::<FrameWriters>::default();
        let outbox = Outbox::new(SessionId(1), Load::default());
        let places: Vec<_> = (0..1_000).map(|_| writers.add(Counting::new(&outbox))).collect();
        assert!(writers.0.borrow().capacity() <= 1_000 + 1_000 / 8 + 1);
        drop(places);
        assert!(writers.0.borrow().is_empty());
    }
}
