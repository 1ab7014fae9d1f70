//! Sessions that were opened and not fetched yet.
//!
//! A session costs its client only one request, so the number of such sessions is bounded. If new ones were
//! refused at the bound, a client that opens many would keep all others out. Therefore the oldest one ends
//! instead; a client that fetches as soon as its session is open has done so long before.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::broker::subscriber::SessionId;

/// The sessions of all threads that were not fetched yet, oldest first. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Newcomers(Arc<Mutex<BTreeMap<SessionId, Uuid>>>);

impl Newcomers {
    /// Adds a session. Returns the oldest one, which must end, if there are more than `max`.
    pub(super) fn enter(
        &self,
        session: SessionId,
        id: Uuid,
        max: usize,
    ) -> (Newcomer, Option<Uuid>) {
        let mut waiting = self.0.lock();
        waiting.insert(session, id);
        let oldest = if waiting.len() > max { waiting.pop_first() } else { None };
        (Newcomer { session, all: self.clone() }, oldest.map(|(_, id)| id))
    }
}

/// A session's place among the newcomers, given up on drop.
#[derive(Debug)]
pub(super) struct Newcomer {
    session: SessionId,
    all: Newcomers,
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_more_than_may_be_the_oldest_gives_way() {
        let newcomers = Newcomers::default();
        let ids: Vec<_> = (0..5).map(|_| Uuid::new_v4()).collect();
        let enter = |nth: usize| newcomers.enter(SessionId(nth as u64), ids[nth], 2);
        let (first, nobody) = enter(0);
        assert_eq!(nobody, None);
        let (second, nobody) = enter(1);
        assert_eq!(nobody, None, "as many as may be");
        let (third, oldest) = enter(2);
        assert_eq!(oldest, Some(ids[0]));
        drop(first);
        drop(second);
        let (fourth, nobody) = enter(3);
        assert_eq!(nobody, None, "who fetched left a place");
        let (fifth, oldest) = enter(4);
        assert_eq!(oldest, Some(ids[2]), "and does not give way");
        drop([third, fourth, fifth]);
        assert!(newcomers.0.lock().is_empty());
    }
}
