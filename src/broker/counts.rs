//! Counts: channels whose subscribers are sent the number of the channel's subscribers.
//!
//! The format of a subscriber decides whether it is sent the number. A channel without such
//! subscribers has no state here, and a join costs one check of a flag. On a channel with some, each
//! new number is sent once: immediately, or at intervals if the subscribers are many.
//!
//! A *count* asks all threads and nodes for the subscribers of one channel, and sends the sum.

use std::{
    collections::HashMap,
    mem,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;

use super::topic_name::ChannelName;

/// A channel with more subscribers than this is sent its number at intervals.
const MANY: usize = 100;

/// The shortest time between two numbers that are sent to more than [`MANY`] subscribers.
const MANY_INTERVAL: Duration = Duration::from_secs(5);

/// The time after which a count is repeated if not all threads and nodes answered.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The time after which a count that was not begun, or not ended, is regarded as lost together with its thread.
const LATE: Duration = Duration::from_secs(30);

/// The channels of a scope whose subscribers are sent their number.
#[derive(Debug, Default)]
pub(super) struct SubscriberCounts {
    is_any: AtomicBool,
    /// The number of counts that were scheduled.
    scheduled: AtomicU64,
    channels: Mutex<HashMap<ChannelName, Telling>>,
}

#[derive(Debug, Default)]
struct Telling {
    /// The number of subscribers that are sent the number.
    told: usize,
    /// The number that was sent last, and the time, in Unix milliseconds.
    last: Option<(usize, u64)>,
    /// Whether the number is sent next even if it equals the last one.
    is_needed: bool,
    stage: Stage,
}

/// The stage of a channel's count. A channel has only one count at a time: of two that are under way
/// at once, the result of the older one could be sent last, and the subscribers would keep it.
#[derive(Debug, Default, Clone, Copy)]
enum Stage {
    #[default]
    Idle,
    /// The count with this number begins at this time, in Unix milliseconds.
    Scheduled { number: u64, due_ms: u64 },
    /// The threads and nodes are asked for their numbers.
    Counting {
        number: u64,
        begun_ms: u64,
        /// Whether the number has changed since, so that it is counted once more.
        is_outdated: bool,
    },
}

/// The node on which the number of subscribers of a channel has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// On this node. The number is sent in any case, because a new subscriber does not know it.
    Here,
    /// On another node. The number is sent only if it differs from the last one.
    Elsewhere,
}

/// A count of a channel's subscribers that the caller must begin after some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) struct ScheduledCount {
    number: u64,
    /// The time until the count must begin.
    pub(super) wait: Duration,
}

/// A count of the subscribers of one channel, from [`SubscriberCounts::begin`] to
/// [`SubscriberCounts::end`].
#[derive(Debug)]
#[must_use]
pub(super) struct BegunCount {
    number: u64,
    /// Whether the number is sent even if it equals the last one.
    is_needed: bool,
}

impl Telling {
    /// Schedules the next count.
    fn schedule(&mut self, number: u64, now_ms: u64) -> ScheduledCount {
        self.schedule_after(self.pause(now_ms), number, now_ms)
    }

    /// The time until a number may be sent again.
    fn pause(&self, now_ms: u64) -> Duration {
        match self.last {
            Some((count, at_ms)) if count > MANY => {
                MANY_INTERVAL.saturating_sub(Duration::from_millis(now_ms.saturating_sub(at_ms)))
            }
            _ => Duration::ZERO,
        }
    }

    fn schedule_after(&mut self, wait: Duration, number: u64, now_ms: u64) -> ScheduledCount {
        self.stage = Stage::Scheduled { number, due_ms: now_ms + wait.as_millis() as u64 };
        ScheduledCount { number, wait }
    }

    /// Returns whether the count is this channel's present one. It is not if the channel was
    /// forgotten meanwhile, or if the count was regarded as lost.
    fn is_at(&self, begun: &BegunCount) -> bool {
        matches!(self.stage, Stage::Counting { number, .. } if number == begun.number)
    }
}

impl SubscriberCounts {
    /// Returns whether any subscriber of the scope is sent a number.
    pub(super) fn is_any(&self) -> bool {
        self.is_any.load(Relaxed)
    }

    /// Notes a new subscriber that is sent the number. Returns whether it is the first such one of its channel.
    /// The map never has more channels than the scope has subscribers.
    pub(super) fn came(&self, channel: &ChannelName) -> bool {
        let mut channels = self.channels.lock();
        let telling = channels.entry(channel.detached()).or_default();
        telling.told += 1;
        let is_first = telling.told == 1;
        self.is_any.store(true, Relaxed);
        is_first
    }

    /// The channels with subscribers that are sent the number.
    pub(super) fn all(&self) -> Vec<ChannelName> {
        self.channels.lock().keys().cloned().collect()
    }

    /// Notes that a subscriber that was sent the number has left.
    pub(super) fn left(&self, channel: &ChannelName) {
        let mut channels = self.channels.lock();
        if let Some(telling) = channels.get_mut(channel) {
            telling.told = telling.told.saturating_sub(1);
            if telling.told == 0 {
                channels.remove(channel);
            }
        }
        self.is_any.store(!channels.is_empty(), Relaxed);
    }

    /// Notes that the number of subscribers has changed. Returns the count that the caller must begin;
    /// `None` if no subscriber is sent the number, or if another caller counts it.
    pub(super) fn changed(
        &self,
        channel: &ChannelName,
        cause: Cause,
        now_ms: u64,
    ) -> Option<ScheduledCount> {
        let mut channels = self.channels.lock();
        let telling = channels.get_mut(channel)?;
        telling.is_needed |= cause == Cause::Here;
        let is_lost = |expected_ms: u64| now_ms >= expected_ms + LATE.as_millis() as u64;
        match &mut telling.stage {
            Stage::Scheduled { due_ms, .. } if !is_lost(*due_ms) => return None,
            Stage::Counting { begun_ms, is_outdated, .. } if !is_lost(*begun_ms) => {
                *is_outdated = true;
                return None;
            }
            // The subscribers for whom the lost count was needed still wait for their number.
            Stage::Counting { .. } => telling.is_needed = true,
            Stage::Scheduled { .. } | Stage::Idle => {}
        }
        Some(telling.schedule(self.next_number(), now_ms))
    }

    /// Notes that the number is about to be counted. Returns the count, which the caller must end;
    /// `None` if no subscriber is sent the number any more, or if the count was lost and another one
    /// takes its place.
    pub(super) fn begin(
        &self,
        channel: &ChannelName,
        scheduled: ScheduledCount,
        now_ms: u64,
    ) -> Option<BegunCount> {
        let mut channels = self.channels.lock();
        let telling = channels.get_mut(channel)?;
        let number = match telling.stage {
            Stage::Scheduled { number, .. } if number == scheduled.number => number,
            _ => return None,
        };
        telling.stage = Stage::Counting { number, begun_ms: now_ms, is_outdated: false };
        Some(BegunCount { number, is_needed: mem::take(&mut telling.is_needed) })
    }

    /// Notes the number that was counted. Returns whether the caller must send it.
    pub(super) fn counted(
        &self,
        channel: &ChannelName,
        begun: &BegunCount,
        count: usize,
        now_ms: u64,
    ) -> bool {
        let mut channels = self.channels.lock();
        let Some(telling) = channels.get_mut(channel).filter(|all| all.is_at(begun)) else {
            return false;
        };
        if !begun.is_needed && telling.last.is_some_and(|(last, _)| last == count) {
            return false;
        }
        telling.last = Some((count, now_ms));
        true
    }

    /// Ends a count, after the number was sent. Returns the count that the caller must begin next; `None` if
    /// the number has not changed since this count began, or if it was lost.
    pub(super) fn end(
        &self,
        channel: &ChannelName,
        begun: &BegunCount,
        now_ms: u64,
    ) -> Option<ScheduledCount> {
        let mut channels = self.channels.lock();
        let telling = channels.get_mut(channel).filter(|all| all.is_at(begun))?;
        match telling.stage {
            Stage::Counting { is_outdated: true, .. } => {
                Some(telling.schedule(self.next_number(), now_ms))
            }
            _ => {
                telling.stage = Stage::Idle;
                None
            }
        }
    }

    /// Ends a count to which not all threads and nodes answered. Returns the next count; `None` if this one was lost.
    pub(super) fn fail(
        &self,
        channel: &ChannelName,
        begun: &BegunCount,
        now_ms: u64,
    ) -> Option<ScheduledCount> {
        let mut channels = self.channels.lock();
        let telling = channels.get_mut(channel).filter(|all| all.is_at(begun))?;
        telling.is_needed |= begun.is_needed;
        let wait = telling.pause(now_ms).max(RETRY_INTERVAL);
        Some(telling.schedule_after(wait, self.next_number(), now_ms))
    }

    fn next_number(&self) -> u64 {
        self.scheduled.fetch_add(1, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn told(channel: &ChannelName) -> SubscriberCounts {
        let counts = SubscriberCounts::default();
        assert!(counts.came(channel));
        counts
    }

    fn wait(scheduled: Option<ScheduledCount>) -> Option<Duration> {
        scheduled.map(|scheduled| scheduled.wait)
    }

    /// Counts once. Returns whether the number must be sent, and when it must be counted once more.
    fn count(
        counts: &SubscriberCounts,
        channel: &ChannelName,
        scheduled: Option<ScheduledCount>,
        number: usize,
        now_ms: u64,
    ) -> (bool, Option<ScheduledCount>) {
        let begun = counts.begin(channel, scheduled.expect("it is due"), now_ms);
        let begun = begun.expect("somebody is told");
        (counts.counted(channel, &begun, number, now_ms), counts.end(channel, &begun, now_ms))
    }

    #[test]
    fn p106_p109_a_change_is_told_once_and_at_intervals_where_they_are_many() {
        let channel = ChannelName::parse("a").expect("a channel");
        let counts = SubscriberCounts::default();
        assert_eq!(counts.changed(&channel, Cause::Here, 0), None, "nobody is told");
        assert!(counts.came(&channel));
        assert!(!counts.came(&channel), "it is not the first");
        assert_eq!(counts.all(), std::slice::from_ref(&channel));
        assert!(counts.is_any());
        let due = counts.changed(&channel, Cause::Here, 0);
        assert_eq!(wait(due), Some(NOW));
        assert_eq!(counts.changed(&channel, Cause::Here, 0), None, "it is about to be told");
        assert_eq!(count(&counts, &channel, due, 101, 1_000), (true, None));
        let due = counts.changed(&channel, Cause::Elsewhere, 6_001);
        assert_eq!(wait(due), Some(NOW));
        assert_eq!(
            count(&counts, &channel, due, 101, 6_001),
            (false, None),
            "all know this number"
        );
        let due = counts.changed(&channel, Cause::Here, 3_000);
        assert_eq!(wait(due), Some(Duration::from_secs(3)));
        assert_eq!(counts.changed(&channel, Cause::Here, 5_000), None);
        assert_eq!(count(&counts, &channel, due, 101, 6_000), (true, None), "a new one does not");
        counts.left(&channel);
        assert!(counts.is_any());
        counts.left(&channel);
        assert!(!counts.is_any());
        assert_eq!(counts.changed(&channel, Cause::Here, 50_000), None);
    }

    #[test]
    fn a_change_during_a_count_causes_another_count_and_not_a_second_one_beside_it() {
        let channel = ChannelName::parse("a").expect("a channel");
        let counts = told(&channel);
        let due = counts.changed(&channel, Cause::Here, 0).expect("it is due");
        let begun = counts.begin(&channel, due, 0).expect("somebody is told");
        assert_eq!(counts.changed(&channel, Cause::Here, 1), None, "no count begins beside it");
        assert_eq!(counts.changed(&channel, Cause::Elsewhere, 2), None);
        assert!(counts.counted(&channel, &begun, 100, 3));
        let due = counts.end(&channel, &begun, 3).expect("it has changed");
        assert_eq!(due.wait, NOW);
        let begun = counts.begin(&channel, due, 3).expect("somebody is told");
        assert_eq!(counts.changed(&channel, Cause::Here, 4), None);
        assert!(counts.counted(&channel, &begun, 101, 5));
        let due = counts.end(&channel, &begun, 5);
        assert_eq!(wait(due), Some(Duration::from_secs(5)), "they are many now");
    }

    #[test]
    fn a_failed_count_is_repeated_soon_and_not_beside_that_of_a_change() {
        let channel = ChannelName::parse("a").expect("a channel");
        let counts = told(&channel);
        let due = counts.changed(&channel, Cause::Here, 0);
        assert_eq!(count(&counts, &channel, due, 1, 0), (true, None));
        let due = counts.changed(&channel, Cause::Here, 1).expect("it is due");
        let begun = counts.begin(&channel, due, 1).expect("somebody is told");
        let due = counts.fail(&channel, &begun, 2);
        assert_eq!(wait(due), Some(RETRY_INTERVAL));
        assert_eq!(counts.changed(&channel, Cause::Elsewhere, 3), None, "it is counted anyway");
        let told = count(&counts, &channel, due, 1, 2_002);
        assert_eq!(told, (true, None), "a subscriber still waits for it");
    }

    #[test]
    fn a_count_that_was_lost_with_its_thread_is_replaced_and_does_not_come_back() {
        let channel = ChannelName::parse("a").expect("a channel");
        let counts = told(&channel);
        let unbegun = counts.changed(&channel, Cause::Here, 0).expect("it is due");
        assert_eq!(counts.changed(&channel, Cause::Here, 29_999), None);
        let due = counts.changed(&channel, Cause::Here, 30_000).expect("the first one is lost");
        assert!(counts.begin(&channel, unbegun, 30_000).is_none());
        let unended = counts.begin(&channel, due, 30_000).expect("somebody is told");
        assert_eq!(counts.changed(&channel, Cause::Elsewhere, 59_999), None);
        let due = counts.changed(&channel, Cause::Elsewhere, 60_000);
        assert!(!counts.counted(&channel, &unended, 7, 60_000));
        assert_eq!(counts.end(&channel, &unended, 60_000), None);
        assert_eq!(count(&counts, &channel, due, 1, 60_000), (true, None));
    }

    #[test]
    fn a_count_of_a_channel_that_was_forgotten_says_nothing_about_its_successor() {
        let channel = ChannelName::parse("a").expect("a channel");
        let counts = told(&channel);
        let scheduled = counts.changed(&channel, Cause::Here, 0).expect("it is due");
        counts.left(&channel);
        assert!(counts.came(&channel));
        assert!(counts.begin(&channel, scheduled, 0).is_none());
        let due = counts.changed(&channel, Cause::Here, 0).expect("it is due");
        let old = counts.begin(&channel, due, 0).expect("somebody is told");
        counts.left(&channel);
        assert!(!counts.counted(&channel, &old, 7, 1));
        assert!(counts.came(&channel));
        let due = counts.changed(&channel, Cause::Here, 1).expect("it is due");
        let new = counts.begin(&channel, due, 1).expect("somebody is told");
        assert!(!counts.counted(&channel, &old, 7, 2));
        assert_eq!(counts.changed(&channel, Cause::Here, 2), None);
        assert_eq!(counts.end(&channel, &old, 2), None, "the other count goes on");
        assert!(counts.counted(&channel, &new, 1, 3));
        assert_eq!(wait(counts.end(&channel, &new, 3)), Some(NOW));
    }
}
