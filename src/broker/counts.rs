//! Counts: channels whose subscribers are sent their own number.
//!
//! The format of a subscriber decides whether it is sent the number. A channel without such
//! subscribers has no state here, and a join costs one check of a flag. A channel with some sends
//! each new number once: immediately, or at intervals if the subscribers are many.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use super::topic_name::ChannelName;

/// A channel with more subscribers than this is sent its number at intervals.
const MANY: usize = 100;

/// The interval at which their number is sent.
const MANY_INTERVAL: Duration = Duration::from_secs(5);

/// The delay after which a scheduled announcement counts as lost, together with its thread.
const LATE: Duration = Duration::from_secs(30);

/// The channels of a scope whose subscribers are sent their own number.
#[derive(Debug, Default)]
pub(super) struct SubscriberCounts {
    is_any: AtomicBool,
    channels: Mutex<HashMap<ChannelName, Telling>>,
}

#[derive(Debug, Default)]
struct Telling {
    /// The number of subscribers that are sent the number.
    told: usize,
    /// The number that was sent last, and the time, in Unix milliseconds.
    last: Option<(usize, u64)>,
    /// The time at which the number is announced next, in Unix milliseconds, if an announcement is
    /// scheduled.
    due_ms: Option<u64>,
    /// Whether the number is sent then even if it equals the last one.
    is_needed: bool,
}

/// The place where the number of subscribers of a channel has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// On this node. The number is sent in any case, because a new subscriber does not know it.
    Here,
    /// On another node. The number is sent only if it differs from the last one.
    Elsewhere,
}

impl SubscriberCounts {
    /// Returns whether any subscriber of the scope is sent a number.
    pub(super) fn is_any(&self) -> bool {
        self.is_any.load(Relaxed)
    }

    /// Notes a new subscriber that is sent the number. Returns whether it is the first such one of its channel.
    /// The map never has more channels than the scope has subscribers.
    pub(super) fn came(&self, channel: &ChannelName) -> bool {
        let mut channels = self.channels();
        let telling = channels.entry(channel.detached()).or_default();
        telling.told += 1;
        let is_first = telling.told == 1;
        self.is_any.store(true, Relaxed);
        is_first
    }

    /// The channels with subscribers that are sent the number.
    pub(super) fn all(&self) -> Vec<ChannelName> {
        self.channels().keys().cloned().collect()
    }

    /// Notes that a subscriber that was sent the number has left.
    pub(super) fn left(&self, channel: &ChannelName) {
        let mut channels = self.channels();
        if let Some(telling) = channels.get_mut(channel) {
            telling.told = telling.told.saturating_sub(1);
            if telling.told == 0 {
                channels.remove(channel);
            }
        }
        self.is_any.store(!channels.is_empty(), Relaxed);
    }

    /// Notes that the number of subscribers has changed. Returns the time after which the caller must send it;
    /// `None` if no subscriber is sent it, or if it is scheduled already.
    pub(super) fn changed(
        &self,
        channel: &ChannelName,
        cause: Cause,
        now_ms: u64,
    ) -> Option<Duration> {
        let mut channels = self.channels();
        let telling = channels.get_mut(channel)?;
        telling.is_needed |= cause == Cause::Here;
        let is_under_way =
            telling.due_ms.is_some_and(|due_ms| now_ms < due_ms + LATE.as_millis() as u64);
        if is_under_way {
            return None;
        }
        let wait = match telling.last {
            Some((count, at_ms)) if count > MANY => {
                MANY_INTERVAL.saturating_sub(Duration::from_millis(now_ms.saturating_sub(at_ms)))
            }
            _ => Duration::ZERO,
        };
        telling.due_ms = Some(now_ms + wait.as_millis() as u64);
        Some(wait)
    }

    /// Notes that the number is about to be counted, so that a later change schedules it once more. Returns
    /// whether it must be sent even if it equals the last one.
    pub(super) fn begin(&self, channel: &ChannelName) -> bool {
        let mut channels = self.channels();
        let Some(telling) = channels.get_mut(channel) else { return false };
        telling.due_ms = None;
        mem::take(&mut telling.is_needed)
    }

    /// The number that was sent last.
    pub(super) fn last(&self, channel: &ChannelName) -> Option<usize> {
        self.channels().get(channel)?.last.map(|(count, _)| count)
    }

    /// Notes that the number is sent.
    pub(super) fn note_told(&self, channel: &ChannelName, count: usize, now_ms: u64) {
        if let Some(telling) = self.channels().get_mut(channel) {
            telling.last = Some((count, now_ms));
        }
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<ChannelName, Telling>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p106_p109_a_change_is_told_once_and_at_intervals_where_they_are_many() {
        let channel = ChannelName::parse("a").expect("a channel");
        let counts = SubscriberCounts::default();
        assert_eq!(counts.changed(&channel, Cause::Here, 0), None, "nobody is told");
        assert!(counts.came(&channel));
        assert!(!counts.came(&channel), "it is not the first");
        assert_eq!(counts.all(), std::slice::from_ref(&channel));
        assert!(counts.is_any());
        assert_eq!(counts.changed(&channel, Cause::Here, 0), Some(Duration::ZERO));
        assert_eq!(counts.changed(&channel, Cause::Here, 0), None, "it is about to be told");
        assert!(counts.begin(&channel));
        assert_eq!(
            counts.changed(&channel, Cause::Elsewhere, 1),
            Some(Duration::ZERO),
            "once more"
        );
        assert!(!counts.begin(&channel), "whoever was told the number is not told it again");
        assert_eq!(counts.last(&channel), None);
        counts.note_told(&channel, 101, 1_000);
        assert_eq!(counts.last(&channel), Some(101));
        assert_eq!(counts.changed(&channel, Cause::Here, 3_000), Some(Duration::from_secs(3)));
        assert_eq!(counts.changed(&channel, Cause::Here, 5_000), None);
        assert_eq!(
            counts.changed(&channel, Cause::Here, 36_000),
            Some(Duration::ZERO),
            "the telling was lost"
        );
        counts.left(&channel);
        assert!(counts.is_any());
        counts.left(&channel);
        assert!(!counts.is_any());
        assert_eq!(counts.changed(&channel, Cause::Here, 50_000), None);
    }
}
