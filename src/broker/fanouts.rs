//! The fan-outs of all worker threads, for questions and commands to every thread.

use std::time::Duration;

use actix::{dev::ToEnvelope, prelude::*};
use futures_util::future::join_all;
use parking_lot::RwLock;
use tokio::time::timeout;

use super::fanout::Fanout;

/// The outcome of a question to one fan-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked<T> {
    /// The fan-out answered.
    Answered(T),
    /// The fan-out ended before it answered, and its sessions ended with it.
    Lost,
    /// The fan-out did not answer in time. It may still carry out the command.
    Late,
}

/// Every fan-out that was started and has not ended. One that has ended stays in the list until the next one is
/// added, and is passed over.
#[derive(Default)]
pub(super) struct Fanouts(RwLock<Vec<Addr<Fanout>>>);

impl Fanouts {
    /// Adds a fan-out that was just started.
    pub(super) fn add(&self, fanout: Addr<Fanout>) {
        let mut all = self.0.write();
        // A thread starts another fan-out only after its first one has panicked, so the old one is removed
        // here.
        all.retain(Addr::connected);
        all.push(fanout);
    }

    /// Asks all fan-outs at the same time, and waits at most `wait_max` for each.
    ///
    /// A fan-out that has ended is not asked, because its sessions ended with it.
    pub(super) async fn ask<M>(&self, message: M, wait_max: Duration) -> Vec<Asked<M::Result>>
    where
        M: Message<Result: Send> + Clone + Send + 'static,
        Fanout: Handler<M>,
        Context<Fanout>: ToEnvelope<Fanout, M>,
    {
        join_all(self.all().into_iter().map(|fanout| {
            let asked = timeout(wait_max, fanout.send(message.clone()));
            async {
                match asked.await {
                    Ok(Ok(answer)) => Asked::Answered(answer),
                    Ok(Err(_)) => Asked::Lost,
                    Err(_) => Asked::Late,
                }
            }
        }))
        .await
    }

    /// Sends a command to all fan-outs. A fan-out carries it out before all that it is sent afterwards.
    pub(super) fn tell<M>(&self, command: &M)
    where
        M: Message<Result: Send> + Clone + Send + 'static,
        Fanout: Handler<M>,
        Context<Fanout>: ToEnvelope<Fanout, M>,
    {
        self.all().iter().for_each(|fanout| fanout.do_send(command.clone()));
    }

    /// The fan-outs that have not ended.
    pub(super) fn all(&self) -> Vec<Addr<Fanout>> {
        let all = self.0.read();
        all.iter().filter(|fanout| fanout.connected()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        fanout::WorkerId,
        testing::{Broker, DEADLINE},
    };
    use super::*;

    /// Makes a fan-out answer with this number or panic, or this one never answer.
    #[derive(Clone, Copy, Message)]
    #[rtype(result = "u32")]
    enum FanoutOrder {
        Answer(u32),
        Break,
        Stall(WorkerId),
    }

    impl Handler<FanoutOrder> for Fanout {
        type Result = ResponseActFuture<Self, u32>;

        fn handle(&mut self, order: FanoutOrder, _: &mut Self::Context) -> Self::Result {
            match order {
                FanoutOrder::Answer(number) => Box::pin(actix::fut::ready(number)),
                FanoutOrder::Break => panic!("on purpose"),
                FanoutOrder::Stall(worker) if worker == self.worker() => {
                    Box::pin(actix::fut::wrap_future(std::future::pending()))
                }
                FanoutOrder::Stall(_) => Box::pin(actix::fut::ready(0)),
            }
        }
    }

    #[actix_web::test]
    async fn all_are_asked_and_one_that_breaks_or_stalls_keeps_none_of_the_others() {
        let broker = Broker::start();
        broker.topics.start_fanout();
        let fanouts = broker.topics.fanouts();
        let answers = fanouts.ask(FanoutOrder::Answer(5), DEADLINE).await;
        assert_eq!(answers, [Asked::Answered(5), Asked::Answered(5)]);

        let stall = FanoutOrder::Stall(broker.worker);
        let stalled = fanouts.ask(stall, Duration::from_millis(10)).await;
        assert_eq!(stalled, [Asked::Late, Asked::Answered(0)], "the first one stalls");

        broker.fanout.do_send(FanoutOrder::Break);
        let answers = fanouts.ask(FanoutOrder::Answer(6), DEADLINE).await;
        assert_eq!(answers, [Asked::Lost, Asked::Answered(6)], "the first one broke");
        let answers = fanouts.ask(FanoutOrder::Answer(7), DEADLINE).await;
        assert_eq!(answers, [Asked::Answered(7)], "a lost fan-out is not asked");

        broker.topics.start_fanout();
        let answers = fanouts.ask(FanoutOrder::Answer(8), DEADLINE).await;
        assert_eq!(answers, [Asked::Answered(8), Asked::Answered(8)], "a new one is asked");
    }
}
