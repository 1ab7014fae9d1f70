//! Trackers among fan-outs and probes.

use tokio::{sync::oneshot, time::timeout};

use super::super::{
    fanout::Leave,
    presence::Meta,
    testing::{Break, Broker, DEADLINE, Probe, channel, key, whole},
};
use super::*;

async fn enter(broker: &Broker, session: u64, room: &Place) -> Probe {
    let probe = broker.session(session).await;
    let persona = Persona { key: "ada".into(), meta: Meta::default() };
    broker.enter(&probe, room.clone(), persona).await.expect("a place");
    probe
}

#[actix_web::test]
async fn a_tracker_that_breaks_ends_those_it_tracked_alone() {
    let (broker, scope) = (Broker::start(), key(1, "presence"));
    let elsewhere = broker.another_thread();
    let mut lost = [
        enter(&broker, 1, &channel(&scope, "room")).await,
        enter(&elsewhere, 2, &channel(&scope, "other")).await,
    ];
    let mut listeners = [broker.session(3).await, broker.session(4).await];
    broker.join(&listeners[0], whole(&scope)).await.expect("a place");
    broker.join(&listeners[1], channel(&key(1, "private"), "room")).await.expect("a place");
    let tracker = broker.topics.tracker(&scope).expect("a tracker");
    assert!(tracker.send(Break).await.is_err());
    for probe in &mut lost {
        while probe.next().await != "end: Broken" {}
    }
    broker.publish(&scope, "room", "msg").await;
    assert_eq!(listeners[0].next().await, "* room:msg", "its order goes on");
    assert!(listeners.iter_mut().all(Probe::has_heard_nothing));

    for (probe, at) in lost.iter().zip([&broker, &elsewhere]) {
        at.fanout.send(Leave(probe.session)).await.expect("a fan-out");
    }
    let mut back = enter(&broker, 5, &channel(&scope, "room")).await;
    assert_eq!([back.next().await, back.next().await], ["[]", "room +[ada={}] -[]"]);
}

/// Asks a tracker for how many channels it has members, or is to announce that it has none.
#[derive(Message)]
#[rtype(result = "usize")]
struct Gatherings;

impl Handler<Gatherings> for Tracker {
    type Result = usize;

    fn handle(&mut self, _: Gatherings, _: &mut Self::Context) -> usize {
        self.gatherings.len()
    }
}

#[actix_web::test]
async fn a_channel_that_nobody_is_left_on_is_forgotten_while_its_tracker_lives_on() {
    let (broker, scope) = (Broker::start(), key(1, "presence"));
    let stays = broker.session(1).await;
    broker.join(&stays, whole(&scope)).await.expect("a place");
    assert!(broker.topics.tracker(&scope).is_none(), "nobody is tracked");
    for session in 2..5 {
        let room = channel(&scope, "room");
        let ada = enter(&broker, session, &room).await;
        let tracker = broker.topics.tracker(&scope).expect("a tracker");
        assert_eq!(tracker.send(Gatherings).await, Ok(1), "session {session}");
        broker.leave(&ada, room).await;
        let forgotten = async { while tracker.send(Gatherings).await != Ok(0) {} };
        timeout(DEADLINE, forgotten).await.expect("in time");
    }
}

#[actix_web::test]
async fn a_tracker_ends_with_its_stream() {
    let (broker, scope) = (Broker::start(), key(1, "presence"));
    let room = channel(&scope, "room");
    let ada = enter(&broker, 1, &room).await;
    let tracker = broker.topics.tracker(&scope).expect("a tracker").downgrade();
    broker.leave(&ada, room).await;
    let ended = async {
        while tracker.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, ended).await.expect("in time");
    assert!(broker.head(&scope).is_none());
}

#[actix_web::test]
async fn a_tracker_whose_thread_has_ended_is_replaced() {
    let (broker, scope) = (Broker::start(), key(1, "presence"));
    let stays = broker.session(1).await;
    broker.join(&stays, whole(&scope)).await.expect("a place");
    let arbiter = Arbiter::new();
    let (topics, (ready, is_ready)) = (broker.topics.clone(), oneshot::channel());
    arbiter.spawn_fn(move || {
        topics.place_here_only();
        ready.send(()).expect("the test waits");
    });
    is_ready.await.expect("a thread");
    let _first = enter(&broker, 2, &channel(&scope, "room")).await;
    arbiter.stop();
    arbiter.join().expect("no panic");
    broker.topics.add_worker();
    let mut second = enter(&broker, 3, &channel(&scope, "room")).await;
    assert_eq!([second.next().await, second.next().await], ["[]", "room +[ada={}] -[]"]);
}
