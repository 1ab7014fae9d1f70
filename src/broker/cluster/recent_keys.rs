//! The idempotency keys that this node has used lately, by number.
//!
//! The log remembers a key for [`REMEMBERED`], in memory that all apps share. This bounds the keys that a node has
//! remembered there of each party of an app, so that no app and no visitor fills that memory.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use parking_lot::Mutex;

use crate::{
    app::AppId,
    broker::idempotency::{Party, REMEMBERED},
};

/// The times at which keys were used.
pub(in crate::broker) struct RecentKeys {
    /// The most keys of one party of an app.
    keys_max: usize,
    /// The times of the keys that are remembered, oldest first.
    used: Mutex<HashMap<(AppId, Party), VecDeque<Instant>>>,
}

impl RecentKeys {
    /// Has room for `keys_max` keys of an app's web application, and for as many of its visitors.
    pub(super) fn new(keys_max: usize) -> Self {
        Self { keys_max, used: Mutex::default() }
    }

    /// Notes that a key is used, if there is room for it. Returns whether there is.
    pub(super) fn note(&self, app: AppId, party: Party, now: Instant) -> bool {
        let mut used = self.used.lock();
        let used = used.entry((app, party)).or_default();
        expire(used, now);
        let has_room = used.len() < self.keys_max;
        if has_room {
            used.push_back(now);
        }
        has_room
    }

    /// Drops the times of keys that are not remembered any more.
    pub(in crate::broker) fn expire(&self, now: Instant) {
        self.used.lock().retain(|_, used| {
            expire(used, now);
            !used.is_empty()
        });
    }
}

fn expire(used: &mut VecDeque<Instant>, now: Instant) {
    let is_over = |at: &Instant| now.saturating_duration_since(*at) >= REMEMBERED;
    while used.front().is_some_and(is_over) {
        used.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_party_of_each_app_has_room_for_its_keys_until_they_are_forgotten() {
        let (keys, began) = (RecentKeys::new(2), Instant::now());
        let after = |seconds| began + Duration::from_secs(seconds);
        let (app, visitors) = (AppId(1), Party::Visitors);
        for (seconds, has_room) in [(0, true), (10, true), (299, false), (300, true), (301, false)]
        {
            assert_eq!(keys.note(app, visitors, after(seconds)), has_room, "{seconds}");
        }
        assert!(keys.note(app, Party::Application, after(301)));
        assert!(keys.note(AppId(2), visitors, after(301)));
        assert!(keys.note(app, visitors, after(310)), "the second one is forgotten");
        keys.expire(after(600));
        assert_eq!(keys.used.lock().len(), 3);
        keys.expire(after(610));
        assert!(keys.used.lock().is_empty());
    }
}
