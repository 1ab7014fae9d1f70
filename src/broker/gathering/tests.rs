//! Gatherings as their tracker and the fan-outs make them, heard by probes.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::super::{
    ChannelName, JsonObject,
    fanout::{Leave, ThreadFanout},
    presence::{Meta, Persona},
    subscriber::{Place, SubscribeError, Subscription, SubscriptionId},
    testing::{
        Break, Broker, DEADLINE, FORMAT, Probe, SUBSCRIPTION, Stall, channel, key, shown, whole,
    },
    tracker::Tracker,
};

fn persona(key: &str) -> Persona {
    Persona { key: key.into(), meta: Meta::default() }
}

/// The room of these tests.
fn room() -> Place {
    channel(&key(1, "presence"), "room")
}

async fn enter(broker: &Broker, session: u64, name: &str) -> Probe {
    let probe = broker.session(session).await;
    broker.enter(&probe, room(), persona(name)).await.expect("a place");
    probe
}

async fn here(broker: &Broker) -> String {
    let name = ChannelName::parse("room").expect("a channel");
    let roster = broker.topics.members(&room().key, &name).await.expect("an answer");
    shown(&roster)
}

/// No two announcements within the life of a test, but for the first.
fn slow() -> Broker {
    Broker::start_with(|limits| limits.presence_interval = Duration::from_secs(3_600))
}

#[actix_web::test]
async fn a_new_member_is_sent_the_members_and_then_announced_to_its_channel_alone() {
    let broker = Broker::start();
    let (mut all, mut other) = (broker.session(8).await, broker.session(9).await);
    broker.join(&all, whole(&room().key)).await.expect("a place");
    let elsewhere = channel(&room().key, "other");
    broker.enter(&other, elsewhere, persona("o")).await.expect("a place");
    assert_eq!([other.next().await, other.next().await], ["[]", "other +[o={}] -[]"]);
    let mut ada = enter(&broker, 1, "ada").await;
    assert_eq!([ada.next().await, ada.next().await], ["[]", "room +[ada={}] -[]"]);
    let mut bob = enter(&broker, 2, "bob").await;
    assert_eq!([bob.next().await, bob.next().await], ["[ada={}]", "room +[bob={}] -[]"]);
    assert_eq!(ada.next().await, "room +[bob={}] -[]");
    assert_eq!(here(&broker).await, "[ada={} bob={}]");
    broker.publish(&room().key, "room", "msg").await;
    assert_eq!(all.next().await, "* room:msg", "and no announcement before");
    assert!(other.has_heard_nothing());
}

#[actix_web::test]
async fn a_member_that_leaves_is_announced_once_however_it_leaves() {
    let broker = Broker::start();
    let mut watcher = enter(&broker, 1, "watcher").await;
    assert_eq!([watcher.next().await, watcher.next().await], ["[]", "room +[watcher={}] -[]"]);
    for session in 2..4 {
        let probe = enter(&broker, session, "ada").await;
        assert_eq!(watcher.next().await, "room +[ada={}] -[]");
        if session == 2 {
            broker.leave(&probe, room()).await;
        }
        broker.fanout.send(Leave(probe.session)).await.expect("a fan-out");
        assert_eq!(watcher.next().await, "room +[] -[ada={}]");
        // The next announcement holds nothing else.
        let (key, meta) = (room().key, JsonObject::empty().into());
        let updated = broker.topics.update(&key, name(), watcher.session, meta).await;
        updated.expect("to be taken");
        assert_eq!(watcher.next().await, "room +[watcher={}] -[watcher={}]");
    }
    assert_eq!(here(&broker).await, "[watcher={}]");
}

fn name() -> ChannelName {
    ChannelName::parse("room").expect("a channel")
}

#[actix_web::test]
async fn changes_while_a_channel_rests_are_not_in_the_state_and_are_announced_together() {
    let broker = Broker::start_with(|limits| limits.presence_interval = Duration::from_millis(200));
    let mut ada = enter(&broker, 1, "ada").await;
    assert_eq!([ada.next().await, ada.next().await], ["[]", "room +[ada={}] -[]"]);
    // All of this within the rest that has begun.
    let mut bob = enter(&broker, 2, "bob").await;
    let eve = enter(&broker, 3, "eve").await;
    broker.leave(&eve, room()).await;
    let object = JsonObject::parse("{\"a\":1}").expect("an object");
    broker
        .topics
        .update(&room().key, name(), ada.session, object.into())
        .await
        .expect("to be taken");
    assert_eq!(here(&broker).await, "[ada={\"a\":1} bob={}]", "as it is");
    let told = "room +[ada={\"a\":1} bob={}] -[ada={}]";
    assert_eq!([bob.next().await, bob.next().await], ["[ada={}]", told]);
    assert_eq!(ada.next().await, told);
}

#[actix_web::test]
async fn an_announcement_waits_for_a_permit_and_tells_all_that_happens_meanwhile() {
    let broker = slow();
    let mut permits: Vec<_> =
        std::iter::from_fn(|| broker.topics.permit_at_once()).take(100).collect();
    assert_eq!(permits.len(), 8, "all there are");
    let mut ada = enter(&broker, 1, "ada").await;
    let mut bob = enter(&broker, 2, "bob").await;
    assert_eq!([ada.next().await, bob.next().await], ["[]", "[]"]);
    assert!(ada.has_heard_nothing() && bob.has_heard_nothing());
    permits.pop();
    for probe in [&mut ada, &mut bob] {
        assert_eq!(probe.next().await, "room +[ada={} bob={}] -[]");
    }
    // It is given back once all have been told.
    let free = async {
        while broker.topics.permit_at_once().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, free).await.expect("the permit");
}

#[actix_web::test]
async fn a_full_channel_admits_nobody_and_keeps_nothing_of_a_refused_join() {
    let broker = Broker::start();
    let mut probes = Vec::new();
    for session in 1..=4 {
        probes.push(enter(&broker, session, "ada").await);
    }
    let late = broker.session(5).await;
    let refused = broker.enter(&late, room(), persona("late")).await;
    assert_eq!(refused, Err(SubscribeError::TooManyMembers));
    broker.leave(&late, room()).await;
    assert_eq!(here(&broker).await, "[ada={} ada={} ada={} ada={}]");
    broker.leave(&probes[0], room()).await;
    broker.enter(&late, room(), persona("late")).await.expect("the place that became free");
}

/// Asks a tracker whether the room rests.
#[derive(Message)]
#[rtype(result = "bool")]
struct IsResting;

impl Handler<IsResting> for Tracker {
    type Result = bool;

    fn handle(&mut self, _: IsResting, _: &mut Self::Context) -> bool {
        self.gatherings.get(&name()).is_some_and(|room| room.is_resting)
    }
}

fn subscription(name: &str) -> Subscription {
    Subscription {
        place: room(),
        topic: "room".into(),
        format: FORMAT,
        persona: Some(persona(name)),
        user: None,
        wanted: None,
    }
}

/// Keeps the tracker of the room from its messages until what is answered is dropped.
async fn stall(broker: &Broker) -> oneshot::Sender<()> {
    let tracker = broker.topics.tracker(&room().key).expect("a tracker");
    let (end, stalled) = oneshot::channel();
    tracker.send(Stall(stalled)).await.expect("a tracker");
    end
}

#[actix_web::test]
async fn a_join_hears_no_announcement_before_its_state_and_a_rejoin_misses_none() {
    let broker = Broker::start();
    let mut ada = enter(&broker, 1, "ada").await;
    assert_eq!([ada.next().await, ada.next().await], ["[]", "room +[ada={}] -[]"]);
    let (mut bob, mut eve) = (broker.session(2).await, broker.session(3).await);
    let tracker = broker.topics.tracker(&room().key).expect("a tracker");
    let rested = async { while tracker.send(IsResting).await != Ok(false) {} };
    tokio::time::timeout(DEADLINE, rested).await.expect("in time");
    let end = stall(&broker).await;
    // The tracker is asked for these in this order, for ada once more.
    for (probe, name) in [(&bob, "bob"), (&ada, "ada"), (&eve, "eve")] {
        broker.begin_attach(SUBSCRIPTION, probe, subscription(name)).await;
    }
    broker.publish(&room().key, "room", "msg").await;
    assert_eq!(ada.next().await, "room msg", "who is there goes on hearing");
    assert!(bob.has_heard_nothing() && eve.has_heard_nothing(), "they have yet to be answered");
    drop(end);
    let (first, second) = ("room +[bob={}] -[]", "room +[ada={} eve={}] -[ada={}]");
    assert_eq!([bob.next().await, bob.next().await], ["[ada={}]", first]);
    assert_eq!([ada.next().await, ada.next().await], [first, "[ada={} bob={}]"]);
    assert_eq!(eve.next().await, "[ada={} bob={}]");
    for probe in [&mut ada, &mut bob, &mut eve] {
        assert_eq!(probe.next().await, second);
    }
}

#[actix_web::test]
async fn an_answer_that_comes_late_is_not_taken_for_that_of_another_join() {
    let broker = slow();
    let _first = enter(&broker, 1, "first").await;
    let mut ada = broker.session(2).await;
    let end = stall(&broker).await;
    let early = SubscriptionId(6);
    broker.begin_attach(early, &ada, subscription("ada")).await;
    broker.leave_under(early, &ada, room()).await;
    broker.begin_attach(SUBSCRIPTION, &ada, subscription("eve")).await;
    drop(end);
    assert_eq!(ada.next().await, "[first={}]", "the answer to the second join, and no other");
    assert_eq!(here(&broker).await, "[eve={} first={}]");
    broker.publish(&room().key, "room", "msg").await;
    assert_eq!(ada.next().await, "room msg");
}

#[actix_web::test]
async fn a_join_that_is_left_before_it_is_answered_leaves_nothing_behind() {
    let broker = slow();
    let first = enter(&broker, 1, "first").await;
    let ada = broker.session(2).await;
    let end = stall(&broker).await;
    broker.begin_attach(SUBSCRIPTION, &ada, subscription("ada")).await;
    broker.leave(&first, room()).await;
    assert!(broker.head(&room().key).is_some(), "somebody is about to come");
    broker.fanout.send(Leave(ada.session)).await.expect("a fan-out");
    assert!(broker.head(&room().key).is_none());
    drop(end);
    assert_eq!(here(&broker).await, "[]");
}

#[actix_web::test]
async fn a_session_that_entered_by_two_names_is_one_member_until_it_has_left_both() {
    let broker = Broker::start();
    let mut ada = enter(&broker, 1, "ada").await;
    assert_eq!([ada.next().await, ada.next().await], ["[]", "room +[ada={}] -[]"]);
    let mut bob = enter(&broker, 2, "bob").await;
    assert_eq!([bob.next().await, bob.next().await], ["[ada={}]", "room +[bob={}] -[]"]);
    assert_eq!(ada.next().await, "room +[bob={}] -[]");
    let by_another_name = SubscriptionId(101);
    broker
        .enter_under(by_another_name, &bob, room(), "long", persona("bob"))
        .await
        .expect("a place");
    // It has come anew, as by a rejoin, and hears so under both names.
    let anew = "+[bob={}] -[bob={}]";
    assert_eq!(ada.next().await, format!("room {anew}"));
    assert_eq!(bob.next().await, "[ada={} bob={}]", "its state");
    assert_eq!(bob.next().await, format!("room {anew}"));
    assert_eq!(bob.next().await, format!("long {anew}"));
    assert_eq!(here(&broker).await, "[ada={} bob={}]");
    broker.leave(&bob, room()).await;
    let mut eve = enter(&broker, 3, "eve").await;
    assert_eq!([eve.next().await, eve.next().await], ["[ada={} bob={}]", "room +[eve={}] -[]"]);
    assert_eq!(ada.next().await, "room +[eve={}] -[]", "and nothing of bob");
    assert_eq!(bob.next().await, "long +[eve={}] -[]");
    broker.leave_under(by_another_name, &bob, room()).await;
    assert_eq!(ada.next().await, "room +[] -[bob={}]");
    assert_eq!(here(&broker).await, "[ada={} eve={}]");
    assert!(bob.has_heard_nothing());
}

#[actix_web::test]
async fn a_fan_out_that_breaks_takes_its_members_along() {
    let mut broker = Broker::start();
    let _doomed = enter(&broker, 1, "doomed").await;
    let broken = broker.fanout.clone();
    let ThreadFanout { worker, addr, .. } = broker.topics.start_fanout();
    (broker.worker, broker.fanout) = (worker, addr);
    let mut watcher = enter(&broker, 2, "watcher").await;
    assert_eq!(watcher.next().await, "[doomed={}]");
    assert_eq!(watcher.next().await, "room +[watcher={}] -[]");
    assert!(broken.send(Break).await.is_err());
    assert_eq!(watcher.next().await, "room +[] -[doomed={}]");
    assert_eq!(here(&broker).await, "[watcher={}]");
}
