//! A topic: one actor per scope of an app, which gives its publications one order.

use std::{collections::HashMap, sync::Arc};

use actix::prelude::*;
use log::{debug, error};

use super::{
    fanout::{Dispatch, Fanout, TopicLost, WorkerId},
    placed::Placed,
    subscriber::ScopeKey,
    topics::Topics,
};

/// A worker thread now has subscribers. Idempotent; answered once they will miss nothing.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Open {
    pub(super) worker: WorkerId,
    pub(super) fanout: Addr<Fanout>,
}

/// A worker thread's last subscriber has left.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Close {
    pub(super) worker: WorkerId,
}

/// A publication wants its place in the order; answered once it has it.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Publish(pub(super) Arc<Placed>);

/// Gives the publications of one scope their order and hands them to the threads that have
/// subscribers.
///
/// It knows *which* threads those are, not how many subscribers each has: a set, because opening
/// and closing twice must not drift, as counts would. When the set is empty the topic retires:
/// it leaves the directory and stops within one turn, so whoever still sends to it is told that it
/// is gone and looks anew. That is why a publication is never taken by a topic nobody listens to
/// while its successor has listeners.
///
/// The mailbox is bounded by the permits that publications hold, and by one message per join.
pub(super) struct Topic {
    key: ScopeKey,
    directory: Topics,
    threads: HashMap<WorkerId, Addr<Fanout>>,
    retired: bool,
}

impl Topic {
    pub(super) fn new(key: ScopeKey, directory: Topics) -> Self {
        Self { key, directory, threads: HashMap::new(), retired: false }
    }

    /// Hands a publication to every thread with subscribers. Never waits: what is under way is
    /// bounded by the permit that each publication holds. Answers whether a thread was lost.
    fn publish(&mut self, placed: &Arc<Placed>) -> bool {
        let before = self.threads.len();
        self.threads.retain(|_, fanout| fanout.connected());
        for fanout in self.threads.values() {
            fanout.do_send(Dispatch(placed.clone()));
        }
        self.threads.len() < before
    }

    fn retire(&mut self, ctx: &mut Context<Self>) {
        debug!("topic of app {} retires", self.key.app.0);
        self.retired = true;
        self.directory.forget(&self.key, &ctx.address());
        ctx.stop();
    }
}

impl Actor for Topic {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(Topics::MAILBOX_CAPACITY);
    }
}

impl Drop for Topic {
    /// A topic that goes without having retired was broken by a panic: its subscribers must come
    /// back, or they would be joined but deaf.
    fn drop(&mut self) {
        if self.retired || self.threads.is_empty() {
            return;
        }
        error!("topic of app {} is lost; its sessions are ended", self.key.app.0);
        for fanout in self.threads.values() {
            fanout.do_send(TopicLost(self.key.clone()));
        }
    }
}

impl Handler<Open> for Topic {
    type Result = ();

    fn handle(&mut self, open: Open, _: &mut Self::Context) {
        self.threads.insert(open.worker, open.fanout);
    }
}

impl Handler<Close> for Topic {
    type Result = ();

    fn handle(&mut self, close: Close, ctx: &mut Self::Context) {
        self.threads.remove(&close.worker);
        if self.threads.is_empty() {
            self.retire(ctx);
        }
    }
}

impl Handler<Publish> for Topic {
    type Result = ();

    fn handle(&mut self, publish: Publish, ctx: &mut Self::Context) {
        let lost = self.publish(&publish.0);
        if lost && self.threads.is_empty() {
            self.retire(ctx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        testing::{Broker, channel, key, whole},
        topics::SubscribeError,
    };
    use super::*;

    /// Makes a topic panic.
    #[derive(Message)]
    #[rtype(result = "()")]
    struct Break;

    impl Handler<Break> for Topic {
        type Result = ();

        fn handle(&mut self, _: Break, _: &mut Self::Context) {
            panic!("on purpose");
        }
    }

    #[actix_web::test]
    async fn a_topic_retires_with_its_last_subscriber_and_comes_back_with_the_next() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let mut probe = broker.session(1).await;
        for round in 0..3 {
            for place in [whole(&scope), channel(&scope, "room")] {
                broker.join(&probe, place).await.expect("a place");
            }
            broker.leave(&probe, whole(&scope)).await;
            broker.publish(&scope, "room", "heard").await;
            assert_eq!(probe.next().await, "room heard", "round {round}");
            broker.leave(&probe, channel(&scope, "room")).await;
            broker.publish(&scope, "room", "missed").await;
            assert!(broker.topics.find(&scope).is_none(), "round {round}: it has retired");
            assert!(probe.has_heard_nothing(), "round {round}");
        }
    }

    #[actix_web::test]
    async fn a_topic_stays_while_a_join_and_a_leave_cross() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let (going, mut coming) = (broker.session(1).await, broker.session(2).await);
        broker.join(&going, whole(&scope)).await.expect("a place");
        for round in 0..50 {
            let leaving = broker.leave(&going, whole(&scope));
            let joining = broker.join(&coming, whole(&scope));
            let (_, joined) = tokio::join!(leaving, joining);
            joined.expect("a place");
            broker.publish(&scope, "#general", "msg").await;
            assert_eq!(coming.next().await, "* msg", "round {round}");
            broker.leave(&coming, whole(&scope)).await;
            broker.join(&going, whole(&scope)).await.expect("a place");
        }
    }

    #[actix_web::test]
    async fn a_topic_that_breaks_ends_those_who_listened_to_it_alone() {
        let (broker, scope) = (Broker::start(), key(1, "public"));
        let (mut deaf, mut other) = (broker.session(1).await, broker.session(2).await);
        broker.join(&deaf, channel(&scope, "room")).await.expect("a place");
        broker.join(&other, whole(&key(1, "private"))).await.expect("a place");
        let topic = broker.topics.find(&scope).expect("a topic");
        assert!(topic.send(Break).await.is_err());
        assert_eq!(deaf.next().await, "end: Broken");

        let mut back = broker.session(3).await;
        broker.join(&back, whole(&scope)).await.expect("a place");
        broker.publish(&scope, "#general", "msg").await;
        assert_eq!(back.next().await, "* msg");
        assert!(other.has_heard_nothing());
    }

    #[actix_web::test]
    async fn an_app_has_subscribers_in_so_many_scopes_and_no_more() {
        let broker = Broker::start();
        let probe = broker.session(1).await;
        for scope in ["one", "two"] {
            broker.join(&probe, whole(&key(1, scope))).await.expect("a place");
        }
        let third = whole(&key(1, "three"));
        let refused = broker.join(&probe, third.clone()).await;
        assert_eq!(refused, Err(SubscribeError::TooManyScopes));
        broker.leave(&probe, third.clone()).await;
        broker.join(&probe, whole(&key(2, "three"))).await.expect("another app's");
        broker.leave(&probe, whole(&key(1, "one"))).await;
        // It retires in order behind this.
        broker.publish(&key(1, "one"), "#general", "msg").await;
        broker.join(&probe, third).await.expect("a place that became free");
    }
}
