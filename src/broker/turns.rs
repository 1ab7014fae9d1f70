//! Turns: what one thread has yet to do for each app, a queue per app.

use std::collections::{HashMap, VecDeque};

use crate::app::AppId;

/// A queue of tasks for each app that has any. The tasks of one app are done in their order, those of
/// several by turns.
pub(super) struct Turns<T> {
    queues: HashMap<AppId, VecDeque<T>>,
    /// The apps that have a queue. It is the turn of the first.
    order: VecDeque<AppId>,
}

impl<T> Turns<T> {
    /// There is nothing to do.
    pub(super) fn new() -> Self {
        Self { queues: HashMap::new(), order: VecDeque::new() }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether an app has something that must be done before anything else of it.
    pub(super) fn has(&self, app: AppId) -> bool {
        // In the common case the table is empty, and nothing is hashed.
        !self.is_empty() && self.queues.contains_key(&app)
    }

    /// Adds the last task of an app.
    pub(super) fn push(&mut self, app: AppId, task: T) {
        let order = &mut self.order;
        let queue = self.queues.entry(app).or_insert_with(|| {
            order.push_back(app);
            VecDeque::new()
        });
        queue.push_back(task);
    }

    /// Whether it can be the turn of an app that `may` picks.
    pub(super) fn any(&self, may: impl Fn(AppId) -> bool) -> bool {
        self.order.iter().any(|app| may(*app))
    }

    /// Takes the next task of the app whose turn it is, or of the one after it if that has no more, or
    /// `may` does not pick it.
    pub(super) fn next(&mut self, may: impl Fn(AppId) -> bool) -> Option<T> {
        for _ in 0..self.order.len() {
            let app = *self.order.front()?;
            if !may(app) {
                self.order.rotate_left(1);
                continue;
            }
            if let Some(task) = self.queues.get_mut(&app).and_then(VecDeque::pop_front) {
                return Some(task);
            }
            self.queues.remove(&app);
            self.order.pop_front();
        }
        None
    }

    /// Puts back what was taken last and is not done yet: it comes next when it is this app's turn.
    pub(super) fn put_back(&mut self, task: T) {
        if let Some(queue) = self.order.front().and_then(|app| self.queues.get_mut(app)) {
            queue.push_front(task);
        }
    }

    /// Ends the turn of the first app; it is forgotten if it has no more to do.
    pub(super) fn pass(&mut self) {
        let Some(app) = self.order.pop_front() else { return };
        if self.queues.get(&app).is_some_and(|queue| !queue.is_empty()) {
            self.order.push_back(app);
        } else {
            self.queues.remove(&app);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    #[test]
    fn apps_take_turns_and_the_tasks_of_each_keep_their_order() {
        let mut turns = Turns::new();
        for (app, tasks) in [(1, 0..5), (2, 10..11), (3, 20..23)] {
            tasks.for_each(|task| turns.push(AppId(app), task));
        }
        assert!(turns.has(AppId(1)) && !turns.has(AppId(4)));
        // Two tasks per turn, of which the first is taken up twice.
        let mut done = Vec::new();
        while let Some(begun) = turns.next(|_| true) {
            turns.put_back(begun);
            done.extend(iter::from_fn(|| turns.next(|_| true)).take(2));
            turns.pass();
        }
        assert_eq!(done, [0, 1, 10, 20, 2, 3, 21, 22, 4]);
        assert!(turns.is_empty() && !turns.has(AppId(1)));
    }

    #[test]
    fn an_app_that_may_not_have_its_turn_keeps_its_tasks_and_the_next_one_has_it() {
        let mut turns = Turns::new();
        for (app, task) in [(1, 10), (2, 20), (1, 11)] {
            turns.push(AppId(app), task);
        }
        let not_first = |app| app != AppId(1);
        assert!(turns.any(not_first));
        assert_eq!(turns.next(not_first), Some(20));
        assert_eq!(turns.next(not_first), None);
        turns.pass();
        assert!(!turns.any(not_first) && turns.has(AppId(1)));
        assert_eq!([turns.next(|_| true), turns.next(|_| true)], [Some(10), Some(11)]);
        assert_eq!(turns.next(|_| true), None);
        assert!(turns.is_empty());
    }
}
