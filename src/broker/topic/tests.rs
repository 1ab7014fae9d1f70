//! Topics among fan-outs and probes.

use futures_util::FutureExt;
use tokio::{sync::oneshot, time::timeout};

use super::super::{
    testing::{Break, Broker, DEADLINE, channel, key, publication, whole},
    topics::SubscribeError,
};
use super::*;

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

/// Keeps a topic from its messages until the other end of this is dropped.
#[derive(Message)]
#[rtype(result = "()")]
struct Stall(oneshot::Receiver<()>);

impl Handler<Stall> for Topic {
    type Result = ();

    fn handle(&mut self, Stall(end): Stall, ctx: &mut Self::Context) {
        ctx.wait(wrap_future(async { drop(end.await) }));
    }
}

#[actix_web::test]
async fn who_joins_where_its_thread_listens_already_does_not_wait_for_the_topic() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let (first, mut second) = (broker.session(1).await, broker.session(2).await);
    let elsewhere = broker.another_thread();
    let third = elsewhere.session(3).await;
    broker.join(&first, whole(&scope)).await.expect("a place");
    let topic = broker.topics.find(&scope).expect("a topic");
    let (end, stalled) = oneshot::channel();
    topic.send(Stall(stalled)).await.expect("a topic");
    broker.join(&second, channel(&scope, "room")).await.expect("a place at once");

    let mut asks = Box::pin(elsewhere.join(&third, whole(&scope)));
    let turns = async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = &mut asks => panic!("its thread is nothing to the topic yet"),
        () = turns => {}
    }
    drop(end);
    asks.await.expect("a place");
    broker.publish(&scope, "room", "msg").await;
    assert_eq!(second.next().await, "room msg");
}

#[actix_web::test]
async fn who_joins_where_the_last_has_just_left_hears_nothing_with_a_gap_behind_it() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let elsewhere = broker.another_thread();
    let (first, mut second) = (broker.session(1).await, broker.session(2).await);
    let mut witness = elsewhere.session(3).await;
    broker.join(&first, whole(&scope)).await.expect("a place");
    elsewhere.join(&witness, whole(&scope)).await.expect("a place");
    let topic = broker.topics.find(&scope).expect("a topic");
    let (end, stalled) = oneshot::channel();
    topic.send(Stall(stalled)).await.expect("a topic");
    // In its mailbox, in this order: the topic hands the first out before it hears that the thread is
    // deserted, and the second before it hears that it no longer is.
    let publish = |event| broker.topics.publish(publication(&scope, "#general", event));
    publish("last of the old").await.expect("room");
    broker.leave(&first, whole(&scope)).await;
    publish("in between").await.expect("room");
    let joining = broker.join(&second, whole(&scope));
    let release = async {
        // Behind the second's place at the fan-out: what the first was answered, or somebody with it.
        let late = Opens(scope.clone(), ListenersId::default());
        broker.fanout.send(late).await.expect("a fan-out");
        drop(end);
    };
    tokio::join!(joining, release).0.expect("a place");
    broker.publish(&scope, "#general", "first of the new").await;
    assert_eq!(second.next().await, "* first of the new");
    for event in ["last of the old", "in between", "first of the new"] {
        assert_eq!(witness.next().await, format!("* {event}"));
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
async fn what_is_published_once_a_topic_has_broken_passes_it_by() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let mut deaf = broker.session(1).await;
    broker.join(&deaf, whole(&scope)).await.expect("a place");
    let topic = broker.topics.find(&scope).expect("a topic");
    assert!(topic.send(Break).await.is_err());
    assert_eq!(deaf.next().await, "end: Broken");
    broker.publish(&scope, "#general", "lost").await;
    assert!(broker.topics.find(&scope).is_none(), "it is looked up no more");
    assert!(deaf.has_heard_nothing());
}

#[actix_web::test]
async fn a_publisher_waits_for_its_place_in_the_order_and_not_for_the_topic() {
    let (broker, scope) = (Broker::start(), key(1, "public"));
    let mut probe = broker.session(1).await;
    broker.join(&probe, whole(&scope)).await.expect("a place");
    let in_flight_max = broker.topics.limits().publications_in_flight_max;
    for n in 0..in_flight_max {
        let event = format!("e{n}");
        let publish = broker.topics.publish(publication(&scope, "#general", &event));
        // Nobody else had a turn since.
        assert!(publish.now_or_never().is_some_and(|taken| taken.is_ok()), "{event}");
        assert!(probe.has_heard_nothing(), "{event}");
    }
    let one_more = broker.topics.publish(publication(&scope, "#general", "one more"));
    assert!(one_more.now_or_never().is_none(), "there is room for so many and no more");
    for n in 0..in_flight_max {
        assert_eq!(probe.next().await, format!("* e{n}"));
    }
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

/// How many channels are remembered for who is on them?
#[derive(Message)]
#[rtype(result = "usize")]
struct Gatherings;

impl Handler<Gatherings> for Topic {
    type Result = usize;

    fn handle(&mut self, _: Gatherings, _: &mut Self::Context) -> usize {
        self.gatherings.len()
    }
}

#[actix_web::test]
async fn a_channel_that_nobody_is_left_on_is_forgotten_while_its_topic_lives_on() {
    let (broker, scope) = (Broker::start(), key(1, "presence"));
    let stays = broker.session(1).await;
    broker.join(&stays, whole(&scope)).await.expect("a place");
    let topic = broker.topics.find(&scope).expect("a topic");
    for session in 2..5 {
        let (ada, room) = (broker.session(session).await, channel(&scope, "room"));
        let persona = Persona { key: "ada".into(), meta: JsonObject::empty() };
        broker.enter(&ada, room.clone(), persona).await.expect("a place");
        assert_eq!(topic.send(Gatherings).await, Ok(1), "session {session}");
        broker.leave(&ada, room).await;
        let forgotten = async { while topic.send(Gatherings).await != Ok(0) {} };
        timeout(DEADLINE, forgotten).await.expect("in time");
    }
    assert!(topic.connected());
}
