//! The fetches that other nodes pass to this one, and the frames with which they were answered.
//!
//! A session has one such fetch at a time. A later fetch makes an earlier one give up, and begins only once
//! the earlier one is over: by then, frames with which the session has answered the earlier fetch are back.
//! So no frame is lost, and none arrives twice or late.
//!
//! After an interruption of the engine, a recall may overtake its fetch. The numbers of such recalls are kept,
//! and their fetches give up at once.

use std::{
    collections::{HashMap, VecDeque},
    future::{Future, pending},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::broker::subscriber::Frame;

/// The most recalls of a session that are kept because their fetches have not arrived.
const EARLY_RECALLS_MAX: usize = 4;

/// The last fetch of each session that other nodes have passed on. Clones share the list.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedPassed(Arc<Mutex<PassedFetches>>);

impl SharedPassed {
    /// Locks the list. Frames are put back before it is unlocked, so that the next fetch finds them.
    pub(super) fn lock(&self) -> MutexGuard<'_, PassedFetches> {
        self.0.lock()
    }
}

/// The last fetch of each session that other nodes have passed on.
#[derive(Debug, Default)]
pub(super) struct PassedFetches {
    last: HashMap<Uuid, PassedFetch>,
    /// The numbers of the fetches of each live session that were recalled and have not arrived. A number whose fetch
    /// never arrives stays until the session ends, or until others take its place.
    early_recalls: HashMap<Uuid, VecDeque<Uuid>>,
}

#[derive(Debug)]
enum PassedFetch {
    /// The fetch waits.
    Waits(WaitingFetch),
    /// The fetch was answered.
    Answered(AnsweredFetch),
}

#[derive(Debug)]
struct WaitingFetch {
    number: Uuid,
    /// Turns true when the fetch is to give up.
    gives_up: watch::Sender<bool>,
    /// Resolves when the fetch is over.
    is_over: oneshot::Receiver<()>,
    /// The previous fetch, if it was answered: it may still be recalled.
    before: Option<AnsweredFetch>,
}

/// A fetch that was answered with these frames.
#[derive(Debug)]
struct AnsweredFetch {
    number: Uuid,
    frames: Vec<Frame>,
}

/// A passed fetch while it is served. Dropping this ends it.
#[derive(Debug)]
pub(super) struct ServedFetch {
    number: Uuid,
    gives_up: watch::Receiver<bool>,
    /// Resolves when the earlier fetch is over.
    earlier: Option<oneshot::Receiver<()>>,
    _over: oneshot::Sender<()>,
}

impl PassedFetches {
    /// Begins to serve a fetch of a session. An earlier fetch that still waits gives up. A fetch that was recalled
    /// before it arrived gives up itself, and changes nothing.
    pub(super) fn begin(&mut self, id: Uuid, number: Uuid) -> ServedFetch {
        let (over, is_over) = oneshot::channel();
        if self.is_recalled(id, number) {
            let (_, gives_up) = watch::channel(true);
            return ServedFetch { number, gives_up, earlier: None, _over: over };
        }
        let (before, earlier) = match self.last.remove(&id) {
            Some(PassedFetch::Answered(before)) => (Some(before), None),
            Some(PassedFetch::Waits(earlier)) => {
                earlier.gives_up.send_replace(true);
                (earlier.before, Some(earlier.is_over))
            }
            None => (None, None),
        };
        let (give_up, gives_up) = watch::channel(false);
        let waiting = WaitingFetch { number, gives_up: give_up, is_over, before };
        self.last.insert(id, PassedFetch::Waits(waiting));
        ServedFetch { number, gives_up, earlier, _over: over }
    }

    /// Notes that a fetch was answered with these frames.
    ///
    /// # Errors
    /// The frames, if the fetch has given up: they have to be put back.
    pub(super) fn end(
        &mut self,
        id: Uuid,
        fetch: &ServedFetch,
        frames: Vec<Frame>,
    ) -> Result<(), Vec<Frame>> {
        let has_given_up = *fetch.gives_up.borrow();
        // If it is not the last one, a later fetch waits for it. If there is none, the session was fetched at
        // this node meanwhile, or has ended: then this fetch is answered, and cannot be recalled.
        let is_last = matches!(
            self.last.get(&id),
            Some(PassedFetch::Waits(waiting)) if waiting.number == fetch.number
        );
        let before = match is_last.then(|| self.last.remove(&id)).flatten() {
            Some(PassedFetch::Waits(waiting)) => waiting.before,
            _ => None,
        };
        if has_given_up {
            self.last.extend(before.map(|before| (id, PassedFetch::Answered(before))));
            return Err(frames);
        }
        if is_last {
            let answered = AnsweredFetch { number: fetch.number, frames };
            self.last.insert(id, PassedFetch::Answered(answered));
        }
        Ok(())
    }

    /// Takes notice that a fetch has arrived. Returns whether it was recalled before.
    fn is_recalled(&mut self, id: Uuid, number: Uuid) -> bool {
        let Some(recalls) = self.early_recalls.get_mut(&id) else { return false };
        let before = recalls.len();
        recalls.retain(|recalled| *recalled != number);
        recalls.len() < before
    }

    /// Forgets the fetch with this number, or makes it give up if it waits, or as soon as it arrives. Returns the
    /// frames with which it was answered; none if it was not answered, or if a later fetch was. The session must be
    /// alive.
    pub(super) fn recall(&mut self, id: Uuid, number: Uuid) -> Vec<Frame> {
        let recalled = match self.last.get_mut(&id) {
            Some(PassedFetch::Waits(waiting)) if waiting.number == number => {
                waiting.gives_up.send_replace(true);
                return Vec::new();
            }
            // The client has fetched again already, and that fetch still waits.
            Some(PassedFetch::Waits(waiting)) => {
                waiting.before.take_if(|before| before.number == number)
            }
            Some(PassedFetch::Answered(fetch)) if fetch.number == number => {
                match self.last.remove(&id) {
                    Some(PassedFetch::Answered(fetch)) => Some(fetch),
                    _ => None,
                }
            }
            Some(PassedFetch::Answered(_)) | None => None,
        };
        match recalled {
            Some(fetch) => fetch.frames,
            None => {
                // The fetch may be under way still.
                let recalls = self.early_recalls.entry(id).or_default();
                if !recalls.contains(&number) {
                    recalls.truncate(EARLY_RECALLS_MAX - 1);
                    recalls.push_front(number);
                }
                Vec::new()
            }
        }
    }

    /// Returns whether a fetch of a session waits.
    #[cfg(test)]
    pub(super) fn is_waiting(&self, id: Uuid) -> bool {
        matches!(self.last.get(&id), Some(PassedFetch::Waits(_)))
    }

    /// Returns whether nothing is kept of any session.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.last.is_empty() && self.early_recalls.is_empty()
    }

    /// Forgets the fetches of a session that was fetched at this node. One that was recalled before it has arrived
    /// still gives up.
    pub(super) fn forget_fetches(&mut self, id: Uuid) {
        self.last.remove(&id);
    }

    /// Forgets a session that has ended.
    pub(super) fn forget(&mut self, id: Uuid) {
        self.last.remove(&id);
        self.early_recalls.remove(&id);
    }
}

impl ServedFetch {
    /// Waits for the earlier fetch to be over, and then for `poll`; `None` if the fetch gives up.
    pub(super) async fn unless_given_up<T>(&mut self, poll: impl Future<Output = T>) -> Option<T> {
        if let Some(earlier) = self.earlier.take() {
            // The sender is dropped when it is over.
            let _ = earlier.await;
        }
        let gives_up = async {
            if self.gives_up.wait_for(|gives_up| *gives_up).await.is_err() {
                // It was forgotten, so nobody makes it give up.
                pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = gives_up => None,
            polled = poll => Some(polled),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Whether a fetch whose session does not answer gives up.
    fn gives_up(fetch: &mut ServedFetch) -> bool {
        fetch.unless_given_up(pending::<()>()).now_or_never().is_some()
    }

    #[test]
    fn a_fetch_is_recalled_until_the_next_one_is_answered() {
        let (mut passed, id) = (PassedFetches::default(), Uuid::new_v4());
        let frames = vec![Frame::Text("a".into())];
        let number = Uuid::new_v4();
        let mut fetch = passed.begin(id, number);
        assert!(!gives_up(&mut fetch));
        assert_eq!(passed.recall(id, number), []);
        assert!(gives_up(&mut fetch));
        assert_eq!(passed.end(id, &fetch, frames.clone()), Err(frames.clone()), "put back");
        assert_eq!(passed.recall(id, number), [], "it was not answered");

        let answer = |passed: &mut PassedFetches| {
            let number = Uuid::new_v4();
            let fetch = passed.begin(id, number);
            assert_eq!(passed.end(id, &fetch, frames.clone()), Ok(()));
            number
        };
        let first = answer(&mut passed);
        assert_eq!(passed.recall(id, Uuid::new_v4()), [], "another one's");
        assert_eq!(passed.recall(id, first), frames);
        assert_eq!(passed.recall(id, first), [], "once");
        let first = answer(&mut passed);
        let mut fetch = passed.begin(id, Uuid::new_v4());
        assert_eq!(passed.recall(id, first), frames, "the next one waits");
        assert!(!gives_up(&mut fetch));
        let [first, _second] = [(); 2].map(|()| answer(&mut passed));
        assert_eq!(passed.recall(id, first), [], "the next one was answered");
        // The second one is given up before it is answered, so the first one may still be recalled.
        let (first, second) = (answer(&mut passed), Uuid::new_v4());
        let fetch = passed.begin(id, second);
        assert_eq!(passed.recall(id, second), []);
        assert_eq!(passed.end(id, &fetch, Vec::new()), Err(Vec::new()));
        assert_eq!(passed.recall(id, first), frames);
    }

    #[test]
    fn a_later_fetch_makes_an_earlier_one_give_up_and_waits_until_it_is_over() {
        let (mut passed, id) = (PassedFetches::default(), Uuid::new_v4());
        let [first, second, third] = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
        let frames = vec![Frame::Text("a".into())];
        let mut earlier = passed.begin(id, first);
        let mut later = passed.begin(id, second);
        assert!(gives_up(&mut earlier));
        {
            let mut served = Box::pin(later.unless_given_up(async {}));
            assert_eq!(served.as_mut().now_or_never(), None, "the earlier one is not over");
            assert_eq!(passed.end(id, &earlier, frames.clone()), Err(frames.clone()));
            drop(earlier);
            assert_eq!(served.as_mut().now_or_never(), Some(Some(())));
        }
        // It ends only once the one before it has, even if it gives up itself.
        let mut last = passed.begin(id, third);
        assert!(gives_up(&mut later));
        assert!(!gives_up(&mut last));
        assert_eq!(passed.end(id, &later, Vec::new()), Err(Vec::new()));
        drop(later);
        assert_eq!(passed.end(id, &last, frames.clone()), Ok(()));
        assert_eq!(passed.recall(id, third), frames);
    }

    #[test]
    fn a_fetch_that_is_forgotten_goes_on_and_cannot_be_recalled() {
        let (mut passed, id, number) = (PassedFetches::default(), Uuid::new_v4(), Uuid::new_v4());
        let mut fetch = passed.begin(id, number);
        passed.forget_fetches(id);
        assert!(!gives_up(&mut fetch));
        assert_eq!(passed.end(id, &fetch, vec![Frame::Text("a".into())]), Ok(()));
        assert_eq!(passed.recall(id, number), []);
    }

    #[test]
    fn a_fetch_that_arrives_after_its_recall_gives_up_and_takes_nothing() {
        let (mut passed, id) = (PassedFetches::default(), Uuid::new_v4());
        let [late, next] = [Uuid::new_v4(), Uuid::new_v4()];
        assert_eq!(passed.recall(id, late), []);
        assert_eq!(passed.recall(id, late), [], "it was not confirmed");
        let mut following = passed.begin(id, next);
        // The client fetches at this node, too.
        passed.forget_fetches(id);
        let mut fetch = passed.begin(id, late);
        assert!(gives_up(&mut fetch));
        assert_eq!(passed.end(id, &fetch, Vec::new()), Err(Vec::new()));
        assert!(!gives_up(&mut following), "it is not disturbed");
        assert!(!gives_up(&mut passed.begin(id, late)), "a number is recalled once");
        passed.forget(id);
        assert!(passed.last.is_empty() && passed.early_recalls.is_empty());
    }

    #[test]
    fn recalls_whose_fetches_never_arrive_are_few() {
        let (mut passed, id) = (PassedFetches::default(), Uuid::new_v4());
        let numbers: Vec<_> = (0..=EARLY_RECALLS_MAX).map(|_| Uuid::new_v4()).collect();
        for number in &numbers {
            passed.recall(id, *number);
        }
        assert_eq!(passed.early_recalls[&id].len(), EARLY_RECALLS_MAX);
        assert!(!gives_up(&mut passed.begin(id, numbers[0])), "the oldest is forgotten");
        assert!(gives_up(&mut passed.begin(id, numbers[EARLY_RECALLS_MAX])));
    }
}
