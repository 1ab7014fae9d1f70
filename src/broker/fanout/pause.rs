//! A pause, during which the other tasks of this thread run.

use std::{
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;
use tokio::task::yield_now;

/// The waker of a pause, which the runtime wakes at its end.
#[derive(Default)]
struct PauseWaker {
    /// Whether the pause is over.
    has: AtomicBool,
    /// The waker of the task that waits for the pause.
    waker: AtomicWaker,
}

impl Wake for PauseWaker {
    fn wake(self: Arc<Self>) {
        self.has.store(true, Relaxed);
        self.waker.wake();
    }
}

/// Resolves once the tasks that are due on this thread have run and the thread has looked at its
/// sockets.
///
/// Tokio's `yield_now` alone does not suffice: it resolves at the second poll, and an actor polls
/// all its futures again as soon as it has handled a message or one of the futures has made progress.
pub(super) fn pause() -> impl Future<Output = ()> {
    let passed = Arc::new(PauseWaker::default());
    let mut begun = false;
    poll_fn(move |cx| {
        passed.waker.register(cx.waker());
        if !mem::replace(&mut begun, true) {
            let waker = Waker::from(passed.clone());
            // The runtime wakes this waker after it has polled the sockets.
            let _ = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
        }
        if passed.has.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
    })
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;

    #[actix_web::test]
    async fn a_pause_lasts_until_the_others_have_run_however_often_it_is_polled() {
        let others = Rc::new(Cell::new(0));
        let count = others.clone();
        actix::spawn(async move { count.set(1) });
        let mut pause = pin!(pause());
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            let polled = [(); 3].map(|()| pause.as_mut().poll(cx).is_ready());
            if polled[2] { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert!(polls > 1, "the pause was over before the thread ran other tasks");
        assert_eq!(others.get(), 1);
    }
}
