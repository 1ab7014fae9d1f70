//! Several brokers with one log between them, and probes at each.

mod counted;
mod keys;
mod last_events;
mod members;
mod positions;
mod questions;
mod unread;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::super::{
    ChannelName,
    fanout::{Confirm, Leave},
    idempotency::{IdempotencyKey, KeyOwner, REMEMBERED},
    node::NodeId,
    now_ms,
    numbering::scope_bytes,
    occupancy::Survey,
    position::StreamPosition,
    presence::{Meta, Persona},
    publication::{Payload, Publication},
    recovery::{Incomplete, Since, Wanted},
    subscriber::{Disconnect, Format, Frame, Place, ScopeKey, SubscribeError, Subscription},
    testing::{
        Broker, COUNTING, DEADLINE, FORMAT, Probe, ROOMY, SUBSCRIPTION, Stall, apps, channel, key,
        publication, shown, until, until_up, whole,
    },
    topics::{OnceError, PublishError, Published, TopicLimits, Unanswered},
    users::{OnlineChange, SignedIn},
};
use super::record;
use crate::{
    app::{App, AppDirectory, AppId, settings::UpTo},
    engine::{
        Append, Appended, Engine, EngineState, MESSAGE_BYTES_MAX, Partition, Record, Terms,
        memory::{MemoryCluster, MemoryEngine},
    },
    metrics::labels::Limit,
};

/// The brokers of two nodes.
struct Nodes {
    shared: MemoryCluster,
    engines: [Arc<MemoryEngine>; 2],
    brokers: [Broker; 2],
    /// The apps that both nodes know.
    apps: AppDirectory,
}

impl Nodes {
    async fn start() -> Self {
        Self::start_with(|limits| limits.history = ROOMY).await
    }

    async fn start_with(change: fn(&mut TopicLimits)) -> Self {
        let shared = MemoryCluster::new(4);
        let engines = [shared.node(), shared.node()];
        let apps = apps();
        let broker =
            |engine: &Arc<MemoryEngine>| Broker::of_node_with(engine.clone(), apps.clone(), change);
        let brokers = engines.each_ref().map(broker);
        for engine in &engines {
            until_up(&**engine).await;
        }
        Self { shared, engines, brokers, apps }
    }

    /// Sets how many publications of each channel the apps retain.
    fn retain(&self, publications: u64) {
        let apps = self.apps.load();
        let changed = apps.iter().map(|app| {
            let mut app = App::clone(app);
            app.settings.history_publications = UpTo::new(publications);
            app
        });
        self.apps.replace(changed.collect());
    }

    /// Another node, which reads what the log retains.
    async fn another(&self) -> (Arc<MemoryEngine>, Broker) {
        let engine = self.shared.node();
        let broker = Broker::of_node(engine.clone(), |limits| limits.history = ROOMY);
        until_up(&*engine).await;
        (engine, broker)
    }

    /// Waits until a node has taken all that the engine has for it so far.
    async fn until_taken(&self, nth: usize) {
        let (node, deadline) = (self.engines[nth].node(), Instant::now() + DEADLINE);
        let answered = self.engines[nth].ask(Some(node), Bytes::new(), deadline).await;
        answered.expect("an answer");
    }

    /// A session at each node that hears a place.
    async fn listeners(&self, place: &Place) -> [Probe; 2] {
        let [one, other] = [0, 1].map(async |nth| {
            let (broker, node) = (&self.brokers[nth], self.engines[nth].node());
            let probe = broker.session(node.number(1)).await;
            broker.join(&probe, place.clone()).await.expect("a place");
            probe
        });
        [one.await, other.await]
    }
}

/// Waits until no publication of a node holds a permit any more.
async fn until_idle(broker: &Broker) {
    until("nothing is held", async || {
        let cluster = broker.topics.cluster();
        !broker.topics.permits().is_any_held() && cluster.is_some_and(|of| of.pending.is_empty())
    })
    .await;
}

/// The first of these scopes that belongs to another partition than `other`.
fn elsewhere(
    broker: &Broker,
    other: &ScopeKey,
    mut scopes: impl Iterator<Item = ScopeKey>,
) -> ScopeKey {
    let heads = broker.topics.cluster().expect("a cluster").heads();
    let is_elsewhere = |scope: &ScopeKey| heads.partition_of(scope) != heads.partition_of(other);
    scopes.find(is_elsewhere).expect("a scope")
}

#[actix_web::test]
async fn a_publication_is_confirmed_to_a_session_once_this_node_has_read_it_and_handed_it_out() {
    let Nodes { engines: [_, engine], brokers: [one, other], .. } = Nodes::start().await;
    let scope = key(1, "public");
    let mut probe = other.session(engine.node().number(1)).await;
    other.join(&probe, whole(&scope)).await.expect("a place");
    let head = other.head(&scope).expect("a stream");
    let next = StreamPosition { offset: head.offset + 1, ..head };
    let session = probe.session;
    let confirm = |position, until| {
        let publications = vec![(scope.clone(), position)];
        Confirm { session, publications, until }
    };
    let now = Instant::now();
    let (in_time, elsewhere) =
        (now + DEADLINE, StreamPosition { epoch: Default::default(), ..next });
    for (position, until) in [(head, in_time), (elsewhere, in_time), (next, now)] {
        other.fanout.send(confirm(position, until)).await.expect("a fan-out");
        assert_eq!(probe.next().await, "confirmed", "nothing is waited for");
    }
    other.fanout.send(confirm(next, in_time)).await.expect("a fan-out");
    other.fanout.send(confirm(head, in_time)).await.expect("a fan-out");
    assert_eq!(probe.next().await, "confirmed", "the second, because the first waits");
    assert_eq!(publish(&one, publication(&scope, "#general", "msg")).await, next);
    assert_eq!([probe.next().await, probe.next().await], ["* msg", "confirmed"]);
}

async fn publish(broker: &Broker, publication: Publication) -> StreamPosition {
    broker.topics.publish(publication).await.expect("room for one more").positions()[0]
}

#[actix_web::test]
async fn all_nodes_hear_all_publications_in_the_order_of_their_positions() {
    const EACH: usize = 200;
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let mut probes = nodes.listeners(&whole(&scope)).await;
    let publishers = nodes.brokers.iter().enumerate().map(async |(nth, broker)| {
        let mut told = Vec::new();
        for count in 0..EACH {
            let event = format!("n{nth}-{count}");
            let at = publish(broker, publication(&scope, "room", &event)).await;
            told.push((at.offset, format!("* room:{event}")));
        }
        told
    });
    let mut expected: Vec<_> = join_all(publishers).await.into_iter().flatten().collect();
    expected.sort();
    for probe in &mut probes {
        for (_, frame) in &expected {
            assert_eq!(probe.next().await, *frame);
        }
    }
    let offsets: BTreeSet<_> = expected.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets.len(), 2 * EACH, "no place is given twice");
    let heads = nodes.brokers.each_ref().map(|broker| broker.head(&scope).expect("a head"));
    assert_eq!(heads[0], heads[1]);
}

#[actix_web::test]
async fn while_the_log_is_away_nothing_is_taken_and_nothing_is_heard_on_one_node_alone() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let mut probes = nodes.listeners(&whole(&scope)).await;
    nodes.shared.stop();
    until("both notice", async || {
        nodes.brokers.iter().all(|b| b.topics.engine_state() != Some(EngineState::Up))
    })
    .await;
    for broker in &nodes.brokers {
        let refused = broker.topics.publish(publication(&scope, "room", "lost")).await;
        assert_eq!(refused.err(), Some(PublishError::Busy));
        assert_eq!(broker.topics.subscribers(whole(&scope)).await, Err(Unanswered));
        assert!(!broker.topics.permits().is_any_held(), "nothing is held for it");
    }
    nodes.shared.start();
    for engine in &nodes.engines {
        until_up(&**engine).await;
    }
    publish(&nodes.brokers[0], publication(&scope, "room", "heard")).await;
    for probe in &mut probes {
        assert_eq!(probe.next().await, "* room:heard");
    }
}

#[actix_web::test]
async fn the_number_of_subscribers_is_sent_after_an_outage_in_which_it_could_not_be_counted() {
    let nodes = Nodes::start_with(|limits| {
        limits.wait_max = std::time::Duration::from_millis(300);
    })
    .await;
    let (broker, room) = (&nodes.brokers[0], channel(&key(1, "public"), "room"));
    let join = async |nth| {
        let probe = broker.session(broker.topics.node().number(nth)).await;
        let (place, topic, format) = (room.clone(), "room".into(), Format::of(&COUNTING));
        let join = Subscription { place, topic, format, persona: None, user: None, wanted: None };
        broker.begin_attach(SUBSCRIPTION, &probe, join).await;
        probe
    };
    let mut early = join(1).await;
    assert_eq!(early.next().await, "room: 1");
    nodes.shared.stop();
    let mut late = join(2).await;
    // The question of the join's own count came before this one.
    assert_eq!(broker.topics.subscribers(room.clone()).await, Err(Unanswered));
    nodes.shared.start();
    for probe in [&mut early, &mut late] {
        assert_eq!(probe.next().await, "room: 2");
    }
}

#[actix_web::test]
async fn a_node_reads_no_more_while_its_fan_outs_are_behind_and_loses_nothing() {
    const COUNT: usize = 500;
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let mut probes = nodes.listeners(&whole(&scope)).await;
    let (go_on, stalled) = oneshot::channel::<()>();
    nodes.brokers[1].fanout.send(Stall(stalled)).await.expect("a fan-out");
    for count in 0..COUNT {
        publish(&nodes.brokers[0], publication(&scope, "room", &format!("{count}"))).await;
    }
    for count in 0..COUNT {
        assert_eq!(probes[0].next().await, format!("* room:{count}"));
    }
    let cluster = nodes.brokers[1].topics.cluster().expect("a cluster");
    nodes.until_taken(1).await;
    // Eight times as many as one app may have under way, and the one that exceeds this limit.
    assert_eq!(cluster.remote_flights.count(), 8 * 8 + 1);
    drop(go_on);
    for count in 0..COUNT {
        assert_eq!(probes[1].next().await, format!("* room:{count}"));
    }
    until("all is handed out", async || !cluster.remote_flights.is_any()).await;
}

#[actix_web::test]
async fn a_key_publishes_once_on_whichever_node_it_is_used() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let mut probes = nodes.listeners(&whole(&scope)).await;
    let key = IdempotencyKey::parse("k", KeyOwner::Application).expect("a key");
    let once = async |nth: usize, events: &[&str]| {
        let all = events.iter().map(|event| publication(&scope, "room", event)).collect();
        nodes.brokers[nth].topics.publish_once(key, all).await
    };
    let first = once(0, &["a", "b"]).await;
    let Ok(Published::Now(first)) = first else { panic!("{first:?}") };
    let again = once(1, &["a", "b"]).await;
    let Ok(Published::Before(again)) = again else { panic!("{again:?}") };
    assert_eq!(first.positions(), again.positions());
    assert_eq!(once(1, &["a", "c"]).await.err(), Some(OnceError::OtherContent));
    publish(&nodes.brokers[1], publication(&scope, "room", "end")).await;
    for probe in &mut probes {
        for event in ["a", "b", "end"] {
            assert_eq!(probe.next().await, format!("* room:{event}"));
        }
    }
    for broker in &nodes.brokers {
        until_idle(broker).await;
    }
}

#[actix_web::test]
async fn subscribers_that_cannot_be_sent_bytes_are_counted_where_they_were_published() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let _probes = nodes.listeners(&whole(&scope)).await;
    let payload = Payload::Bytes(bytes::Bytes::from_static(b"x"));
    let bytes = Publication { payload, ..publication(&scope, "room", "msg") };
    let receipt = nodes.brokers[0].topics.publish(bytes).await.expect("room for one more");
    assert_eq!(receipt.skipped().await, Some(1), "this node's alone");
}

/// Signs a session in as a user that watches others.
fn sign_in(broker: &Broker, probe: &Probe, user: &str, watched: &[&str]) {
    let watched = watched.iter().map(|user| (*user).into()).collect();
    let encode = |change: &OnlineChange| Frame::Text(format!("{change:?}").into());
    let signed_in = SignedIn { app: AppId(1), user: user.into(), watched, encode };
    broker.topics.signed_in().sign_in(&broker.thread, probe.session, &signed_in, None);
}

#[actix_web::test]
async fn a_starting_node_learns_all_users_of_a_node_also_after_a_change_of_one() {
    let nodes = Nodes::start().await;
    let [one, other] = &nodes.brokers;
    let session =
        async |broker: &Broker, nth| broker.session(broker.topics.node().number(nth)).await;
    actix::spawn(one.topics.clone().keep_users());
    let mut witness = session(other, 1).await;
    sign_in(other, &witness, "witness", &["early"]);
    assert_eq!(witness.next().await, r#"OnlineChange { online: [], offline: ["early"] }"#);
    let early = session(one, 1).await;
    sign_in(one, &early, "early", &[]);
    assert_eq!(witness.next().await, r#"OnlineChange { online: ["early"], offline: [] }"#);

    let (_, late) = nodes.another().await;
    let mut watcher = session(&late, 1).await;
    sign_in(&late, &watcher, "watcher", &["early", "now"]);
    let nobody = r#"OnlineChange { online: [], offline: ["early", "now"] }"#;
    assert_eq!(watcher.next().await, nobody);
    let now = session(one, 2).await;
    sign_in(one, &now, "now", &[]);
    assert_eq!(watcher.next().await, r#"OnlineChange { online: ["now"], offline: [] }"#);
    actix::spawn(late.topics.clone().keep_users());
    assert_eq!(watcher.next().await, r#"OnlineChange { online: ["early"], offline: [] }"#);
}

#[actix_web::test]
async fn users_that_come_online_while_messages_are_lost_are_learned_afterwards() {
    let nodes = Nodes::start().await;
    let [one, other] = &nodes.brokers;
    for broker in &nodes.brokers {
        actix::spawn(broker.topics.clone().keep_users());
    }
    let session =
        async |broker: &Broker, nth| broker.session(broker.topics.node().number(nth)).await;
    let mut watcher = session(other, 1).await;
    sign_in(other, &watcher, "watcher", &["early", "user"]);
    let nobody = r#"OnlineChange { online: [], offline: ["early", "user"] }"#;
    assert_eq!(watcher.next().await, nobody);
    let early = session(one, 1).await;
    sign_in(one, &early, "early", &[]);
    assert_eq!(watcher.next().await, r#"OnlineChange { online: ["early"], offline: [] }"#);
    // This begins to ask again if a node is unknown, but the keeper asks as well.
    until("all is learned", async || {
        other.topics.signed_in().with_elsewhere(|all| {
            all.begin_asking(&nodes.engines[1].nodes(), nodes.engines[1].node()).is_empty()
        })
    })
    .await;

    let node = nodes.engines[1].node();
    nodes.shared.lose_told(node);
    let user = session(one, 2).await;
    sign_in(one, &user, "user", &[]);
    until("a message is lost", async || nodes.shared.missed(node) > 0).await;
    nodes.shared.end_loss(node);
    nodes.until_taken(1).await;
    // A change on this node wakes it, so that it need not wait for the next tick.
    let witness = session(other, 2).await;
    sign_in(other, &witness, "witness", &[]);
    assert_eq!(watcher.next().await, r#"OnlineChange { online: ["user"], offline: [] }"#);
}

#[actix_web::test]
async fn users_of_whom_no_node_could_be_told_are_told_after_the_outage() {
    const USERS: usize = 2_001;
    let nodes = Nodes::start().await;
    let [broker, _] = &nodes.brokers;
    let probe = broker.session(broker.topics.node().number(1)).await;
    for nth in 0..USERS {
        sign_in(broker, &probe, &format!("user-{nth}"), &[]);
    }
    nodes.shared.stop();
    let mut told = 0;
    let mut telling = Box::pin(broker.topics.tell_users(&mut told));
    assert!(futures_util::poll!(&mut telling).is_pending(), "it backs off");
    drop(telling);
    let left = broker.topics.signed_in().take_changed();
    assert_eq!(left.len(), USERS, "those of the failed message, and those of the next one");
}

#[actix_web::test]
async fn a_number_of_subscribers_that_changes_while_messages_are_lost_is_asked_for_afterwards() {
    let nodes = Nodes::start().await;
    let [one, other] = &nodes.brokers;
    for broker in &nodes.brokers {
        actix::spawn(broker.topics.clone().keep_counts());
    }
    let room = channel(&key(1, "public"), "room");
    let mut counting = other.session(other.topics.node().number(1)).await;
    let (place, topic, format) = (room.clone(), "room".into(), Format::of(&COUNTING));
    let join = Subscription { place, topic, format, persona: None, user: None, wanted: None };
    other.begin_attach(SUBSCRIPTION, &counting, join).await;
    assert_eq!(counting.next().await, "room: 1");
    until("it is known to be wanted", async || one.topics.is_any_count_wanted()).await;
    let node = nodes.engines[1].node();
    nodes.shared.lose_told(node);
    let probe = one.session(one.topics.node().number(1)).await;
    one.join(&probe, room).await.expect("a place");
    until("a message is lost", async || nodes.shared.missed(node) > 0).await;
    nodes.shared.end_loss(node);
    assert_eq!(counting.next().await, "room: 2");
}

#[test]
fn a_node_has_a_number_of_its_own() {
    let shared = MemoryCluster::new(1);
    let nodes = [shared.node().node(), shared.node().node()];
    assert!(nodes[0] != nodes[1] && !nodes.contains(&NodeId::ONLY));
}
