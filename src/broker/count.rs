//! The figures of outboxes and joined topics, which the fan-outs compute on request.

use std::{collections::HashMap, time::Duration};

use actix::prelude::*;

use super::{fanout::Fanout, fanouts::Asked, outbox::Load, topics::Topics};

/// Asks a fan-out for its [`Count`].
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Count")]
pub(super) struct CountAll;

/// The figures of one thread, or of all threads together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Count {
    frames: usize,
    bytes: usize,
    frames_most: usize,
    bytes_most: usize,
    /// Topics joined, by the number of the app.
    pub(super) subscriptions: HashMap<i32, u64>,
}

impl Count {
    /// Adds the frames that wait for one session.
    pub(super) fn add(&mut self, load: Load) {
        self.frames += load.frames;
        self.bytes += load.bytes;
        self.frames_most = self.frames_most.max(load.frames);
        self.bytes_most = self.bytes_most.max(load.bytes);
    }

    fn join(mut self, other: Self) -> Self {
        for (app, joined) in other.subscriptions {
            *self.subscriptions.entry(app).or_default() += joined;
        }
        Self {
            frames: self.frames + other.frames,
            bytes: self.bytes + other.bytes,
            frames_most: self.frames_most.max(other.frames_most),
            bytes_most: self.bytes_most.max(other.bytes_most),
            subscriptions: self.subscriptions,
        }
    }
}

impl Handler<CountAll> for Fanout {
    type Result = MessageResult<CountAll>;

    fn handle(&mut self, _: CountAll, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.count())
    }
}

impl Topics {
    /// Updates the metrics that only the fan-outs can compute. Waits at most `wait_max` for each thread.
    pub async fn measure(&self, wait_max: Duration) {
        let mut count = Count::default();
        let mut silent_threads = 0;
        for asked in self.fanouts().ask(CountAll, wait_max).await {
            match asked {
                Asked::Answered(of_thread) => count = count.join(of_thread),
                Asked::Lost => {}
                Asked::Late => silent_threads += 1,
            }
        }
        let figure = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let outboxes = &self.metrics().outboxes;
        outboxes.frames.set(figure(count.frames));
        outboxes.bytes.set(figure(count.bytes));
        outboxes.frames_most.set(figure(count.frames_most));
        outboxes.bytes_most.set(figure(count.bytes_most));
        outboxes.silent_threads.set(silent_threads);
        let retained = self.directory().retained();
        let history = &self.metrics().history;
        history.bytes.set(figure(retained.bytes));
        history.publications.set(figure(retained.publications));
        self.metrics().apps.count_subscriptions(&count.subscriptions);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        subscriber::{Frame, SubscriptionId},
        testing::{Broker, DEADLINE, channel, key, whole},
    };
    use super::*;

    #[actix_web::test]
    async fn waiting_frames_and_subscriptions_are_counted_over_all_threads() {
        let broker = Broker::start();
        broker.topics.start_fanout();
        let (one, other) = (broker.stuck_session(1, 100).await, broker.stuck_session(2, 100).await);
        for (probe, place) in [
            (&one, whole(&key(1, "public"))),
            (&one, channel(&key(1, "public"), "room")),
            (&other, whole(&key(1, "public"))),
            (&other, whole(&key(2, "public"))),
        ] {
            broker.join(probe, place).await.expect("a place");
        }
        for (probe, size) in [(&one, 100), (&one, 20), (&other, 200)] {
            let frame = Frame::Text("x".repeat(size).into());
            assert!(probe.outbox.deliver(&frame, SubscriptionId(7), None));
        }
        one.outbox.keeps(Load { frames: 3, bytes: 5 });
        let counts = broker.topics.fanouts().ask(CountAll, DEADLINE).await;
        let [Asked::Answered(count), Asked::Answered(empty)] = &counts[..] else {
            panic!("{counts:?}");
        };
        let expected = Count {
            frames: 6,
            bytes: 325,
            frames_most: 5,
            bytes_most: 200,
            subscriptions: HashMap::from([(1, 3), (2, 1)]),
        };
        assert_eq!(count, &expected);
        assert_eq!(empty, &Count::default());
        broker.topics.measure(DEADLINE).await;
        let shown = &broker.topics.metrics().outboxes;
        assert_eq!((shown.frames.get(), shown.bytes_most.get()), (6, 200));
        assert_eq!(shown.silent_threads.get(), 0);
    }
}
