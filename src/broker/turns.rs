//! Turns: the waiting tasks of one thread, in a queue for each app.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::app::AppId;

/// A queue of tasks for each app that has any. The tasks of each app are done in order, and the apps take
/// turns.
pub(super) struct Turns<T> {
    queues: FxHashMap<AppId, VecDeque<T>>,
    /// The apps that have a queue. It is the turn of the first one.
    order: VecDeque<AppId>,
}

impl<T> Turns<T> {
    /// Begins without tasks.
    pub(super) fn new() -> Self {
        Self { queues: FxHashMap::default(), order: VecDeque::new() }
    }

    /// Returns whether there are no tasks.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Returns whether an app has a queue, behind which its next task must wait.
    pub(super) fn has(&self, app: AppId) -> bool {
        // In the common case the table is empty, and nothing is hashed.
        !self.is_empty() && self.queues.contains_key(&app)
    }

    /// Adds a task at the end of an app's queue.
    pub(super) fn push(&mut self, app: AppId, task: T) {
        let order = &mut self.order;
        let queue = self.queues.entry(app).or_insert_with(|| {
            order.push_back(app);
            VecDeque::new()
        });
        queue.push_back(task);
    }

    /// Returns whether an app that `may` accepts has a queue.
    pub(super) fn any(&self, may: impl Fn(AppId) -> bool) -> bool {
        self.order.iter().any(|app| may(*app))
    }

    /// Takes the next task of the app whose turn it is. An app that `may` does not accept is moved to the end of
    /// the order, and one without tasks is removed.
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

    /// Puts back the task that was taken last and is not done yet. It becomes the first of its app's queue again.
    pub(super) fn put_back(&mut self, task: T) {
        if let Some(queue) = self.order.front().and_then(|app| self.queues.get_mut(app)) {
            queue.push_front(task);
        }
    }

    /// Ends the turn of the first app, which is removed if it has no more tasks.
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
