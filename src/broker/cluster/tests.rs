//! Several brokers with one log between them, and probes at each.

mod counted;
mod keys;
mod last_events;
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
    idempotency::{IdempotencyKey, KeyOwner},
    node::NodeId,
    numbering::scope_bytes,
    occupancy::Survey,
    position::StreamPosition,
    presence::{Meta, Persona},
    publication::{Payload, Publication},
    recovery::{Incomplete, Since, Wanted},
    subscriber::{Disconnect, Format, Place, ScopeKey, SubscribeError, Subscription},
    testing::{
        Broker, COUNTING, DEADLINE, FORMAT, Probe, ROOMY, SUBSCRIPTION, Stall, channel, key,
        publication, shown, until, until_up, whole,
    },
    topics::{OnceError, PublishError, Published, TopicLimits, Unanswered},
    users::SignedIn,
};
use crate::{
    app::AppId,
    engine::{
        Append, Appended, Engine, EngineState, MESSAGE_BYTES_MAX, Partition, Record,
        memory::{MemoryCluster, MemoryEngine},
    },
};

/// The brokers of two nodes.
struct Nodes {
    shared: MemoryCluster,
    engines: [Arc<MemoryEngine>; 2],
    brokers: [Broker; 2],
}

impl Nodes {
    async fn start() -> Self {
        Self::start_with(|limits| limits.history = ROOMY).await
    }

    async fn start_with(change: fn(&mut TopicLimits)) -> Self {
        let shared = MemoryCluster::new(4);
        let engines = [shared.node(), shared.node()];
        let brokers = engines.each_ref().map(|engine| Broker::of_node(engine.clone(), change));
        for engine in &engines {
            until_up(&**engine).await;
        }
        Self { shared, engines, brokers }
    }

    /// Another node, which reads what the log retains.
    async fn another(&self) -> (Arc<MemoryEngine>, Broker) {
        let engine = self.shared.node();
        let broker = Broker::of_node(engine.clone(), |limits| limits.history = ROOMY);
        until_up(&*engine).await;
        (engine, broker)
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

/// Joins with a position; answers why the gap is not closed, and how much is replayed.
async fn join_since(
    broker: &Broker,
    probe: &Probe,
    place: Place,
    since: Since,
) -> (Option<Incomplete>, usize) {
    let wanted = Some(Wanted { since, newest_max: 0 });
    let (topic, format) = ("again".into(), FORMAT);
    let subscription = Subscription { place, topic, format, persona: None, user: None, wanted };
    broker.begin_attach(SUBSCRIPTION, probe, subscription).await;
    let joined = probe.joined().await.expect("a place");
    let recovery = joined.recovery.expect("a recovery");
    (recovery.incomplete, recovery.replayed)
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
async fn a_position_of_one_node_is_good_on_another_also_on_one_that_has_just_begun() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let room = channel(&scope, "room");
    let mut positions = Vec::new();
    for (nth, event) in ["a", "b", "c"].into_iter().enumerate() {
        let broker = &nodes.brokers[nth % 2];
        positions.push(publish(broker, publication(&scope, "room", event)).await);
    }
    let (_, third) = nodes.another().await;
    for (nth, broker) in nodes.brokers.iter().chain([&third]).enumerate() {
        let is_read = |head: StreamPosition| head.offset >= positions[2].offset;
        until("it has read the log", async || broker.head(&scope).is_some_and(is_read)).await;
        assert_eq!(broker.head(&scope).map(|head| head.epoch), Some(positions[2].epoch));
        let mut probe = broker.session(broker.topics.node().number(7)).await;
        let since = Since::Position(positions[0]);
        let (incomplete, replayed) = join_since(broker, &probe, room.clone(), since).await;
        assert_eq!(incomplete, None);
        assert!((2..=2 + nth).contains(&replayed), "{replayed} of {nth}");
        // Replayed frames come with the answer; live ones follow.
        publish(&third, publication(&scope, "room", "live")).await;
        while probe.next().await != "again live" {}
        broker.fanout.send(Leave(probe.session)).await.expect("a fan-out");
    }
}

#[actix_web::test]
async fn a_node_that_lags_takes_a_position_of_the_log_that_it_has_yet_to_read() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let at = publish(&nodes.brokers[0], publication(&scope, "room", "a")).await;
    let broker = &nodes.brokers[1];
    until("it has read the log", async || broker.head(&scope) == Some(at)).await;
    let ahead = StreamPosition { offset: at.offset + 5, ..at };
    let mut probe = broker.session(broker.topics.node().number(7)).await;
    let since = Since::Position(ahead);
    let room = channel(&scope, "room");
    assert_eq!(join_since(broker, &probe, room, since).await, (None, 0));
    for event in ["1", "2", "3", "4", "5", "new"] {
        publish(&nodes.brokers[0], publication(&scope, "room", event)).await;
    }
    assert_eq!(probe.next().await, "again new", "the client knows what came up to its position");
}

#[actix_web::test]
async fn a_position_that_no_node_can_have_given_is_unknown_and_keeps_nothing_from_its_join() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let at = publish(&nodes.brokers[0], publication(&scope, "room", "a")).await;
    let broker = &nodes.brokers[1];
    until("it has read the log", async || broker.head(&scope) == Some(at)).await;
    let room = channel(&scope, "room");
    for (nth, offset) in [(1, at.offset + 20_000), (2, u64::MAX)] {
        let made_up = Since::Position(StreamPosition { offset, ..at });
        let mut probe = broker.session(broker.topics.node().number(nth)).await;
        let recovery = join_since(broker, &probe, room.clone(), made_up).await;
        assert_eq!(recovery, (Some(Incomplete::Unknown), 0), "{offset}");
        let name = room.channel.as_ref().expect("a channel");
        let page = broker.topics.history(&scope, name, made_up, 10);
        assert_eq!(page.incomplete, Some(Incomplete::Unknown), "{offset}");
        publish(&nodes.brokers[0], publication(&scope, "room", "live")).await;
        assert_eq!(probe.next().await, "again live", "{offset}");
    }
}

#[actix_web::test]
async fn a_position_of_a_busy_partition_is_known_in_its_quiet_scope() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let broker = &nodes.brokers[1];
    let first = publish(&nodes.brokers[0], publication(&scope, "room", "a")).await;
    until("it has read the log", async || broker.head(&scope) == Some(first)).await;
    let partition = Partition::of(&scope_bytes(&scope), 4);
    let busy = (0..).map(|app| key(app, "busy"));
    let busy = busy.map(|scope| scope_bytes(&scope));
    let busy = busy.into_iter().find(|busy| Partition::of(busy, 4) == partition);
    let busy: Bytes = busy.expect("a scope").into();
    let records = vec![Record { scope: busy, body: Bytes::new() }; 11_000];
    let deadline = std::time::Instant::now() + DEADLINE;
    let appended = nodes.engines[0].append(partition, Append::records(records), deadline).await;
    let Ok(Appended::At(at)) = appended else { panic!("{appended:?}") };
    let head = StreamPosition { offset: at.offset + 10_999, ..first };
    until("it has read the log", async || broker.topics.directory().log_head(&scope) == Some(head))
        .await;
    // Another node without a stream of the scope gives clients this position.
    let mut probe = broker.session(broker.topics.node().number(1)).await;
    let since = Since::Position(head);
    assert_eq!(join_since(broker, &probe, channel(&scope, "room"), since).await, (None, 0));
    publish(&nodes.brokers[0], publication(&scope, "room", "live")).await;
    assert_eq!(probe.next().await, "again live");
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
async fn a_new_epoch_ends_the_joins_and_is_told_to_clients_with_a_position() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let room = channel(&scope, "room");
    let mut probes = nodes.listeners(&room).await;
    let before = publish(&nodes.brokers[0], publication(&scope, "room", "before")).await;
    for probe in &mut probes {
        assert_eq!(probe.next().await, "room before");
    }
    nodes.shared.restart_empty();
    for (probe, broker) in probes.iter_mut().zip(&nodes.brokers) {
        assert_eq!(probe.next().await, "interrupted: room");
        broker.leave(probe, room.clone()).await;
        let since = Since::Position(before);
        let recovery = join_since(broker, probe, room.clone(), since).await;
        assert_eq!(recovery, (Some(Incomplete::Epoch), 0));
    }
    let after = publish(&nodes.brokers[1], publication(&scope, "room", "after")).await;
    assert_ne!(before.epoch, after.epoch);
    for probe in &mut probes {
        assert_eq!(probe.next().await, "again after");
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
    assert!(cluster.remote_flights.is_any());
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

#[actix_web::test]
async fn questions_are_answered_by_all_nodes_or_not_at_all() {
    let nodes = Nodes::start_with(|limits| {
        limits.wait_max = std::time::Duration::from_millis(300);
    })
    .await;
    let scope = key(1, "public");
    let room = channel(&scope, "room");
    let mut probes = nodes.listeners(&room).await;
    let topics = &nodes.brokers[0].topics;
    let survey =
        Survey { app: scope.app, scope: None, prefix: String::new(), after: None, places_max: 10 };
    assert_eq!(topics.subscribers(room.clone()).await, Ok(2));
    let occupied = topics.occupied(survey.clone()).await.expect("answers");
    assert_eq!(occupied.into_values().collect::<Vec<_>>(), [2]);
    let connections = topics.connections(scope.app, None, 10).await.expect("answers");
    let sessions: Vec<_> = connections.sessions.iter().map(|each| each.session).collect();
    assert_eq!(sessions, probes.each_ref().map(|probe| probe.session));
    let elsewhere = probes[1].session;
    assert_eq!(topics.end_connection(scope.app, elsewhere).await, Ok(true));
    assert_eq!(probes[1].next().await, "disconnect: App(AppId(1))");
    let joins = Disconnect::Place(room.clone());
    topics.disconnect(joins).await.expect("all nodes have heard");
    for probe in &mut probes {
        assert!(probe.next().await.starts_with("disconnect: Place"), "at each node");
    }
    nodes.shared.mute(nodes.engines[1].node(), true);
    assert_eq!(topics.subscribers(room.clone()).await, Err(Unanswered));
    assert_eq!(topics.occupied(survey).await.err(), Some(Unanswered));
    let joins = Disconnect::App(scope.app);
    assert_eq!(topics.disconnect_counted(joins).await, Err(Unanswered));
}

#[actix_web::test]
async fn lists_are_complete_that_are_larger_than_one_answer() {
    const EACH: usize = 100;
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    // Each quote takes two bytes in JSON.
    let name = |session: usize, nth: usize| format!("{session:03}-{nth:03}{}", "\"".repeat(190));
    let (mut places, mut sessions) = (BTreeMap::new(), Vec::new());
    let all = (0..EACH).map(|session| (0, session, EACH)).chain([(1, 0, 1), (1, EACH, 1)]);
    for (node, session, count) in all {
        let broker = &nodes.brokers[node];
        let number = broker.topics.node().number(session as u64 + 1);
        let probe = broker.stuck_session(number, 2 * EACH).await;
        for nth in 0..count {
            let name = name(session, nth);
            broker.join(&probe, channel(&scope, &name)).await.expect("a place");
            *places.entry(name).or_insert(0) += 1;
        }
        sessions.push((probe.session, count));
    }
    let topics = &nodes.brokers[1].topics;
    for places_max in [EACH * EACH + 2, 3] {
        let (app, prefix) = (scope.app, String::new());
        let survey = Survey { app, scope: None, prefix, after: None, places_max };
        let found = topics.occupied(survey).await.expect("answers");
        let name = |channel: Option<ChannelName>| channel.expect("a channel").as_str().to_owned();
        let found = found.into_iter().map(|(rank, count)| (name(rank.channel), count));
        assert!(found.eq(places.clone().into_iter().take(places_max)), "{places_max} places");
    }
    for sessions_max in [EACH + 3, 3] {
        let found = topics.connections(scope.app, None, sessions_max).await.expect("answers");
        assert_eq!(found.total, EACH + 2);
        let found = found.sessions.iter().map(|each| (each.session, each.places.len()));
        let expected = sessions.iter().copied().take(sessions_max);
        assert!(found.eq(expected), "{sessions_max} sessions");
    }
}

#[actix_web::test]
async fn an_answer_that_is_too_large_fails_its_question_at_once() {
    let nodes = Nodes::start().await;
    let [asker, asked] = nodes.brokers.each_ref().map(|broker| &broker.topics);
    for (bytes, is_answered) in [(MESSAGE_BYTES_MAX - 1, true), (MESSAGE_BYTES_MAX, false)] {
        asked.on_question("large", move |_| async move { Some(vec![0_u8; bytes].into()) });
        let answer = asker.ask_node(asked.node(), "large", b"", 10 * DEADLINE);
        let answer = tokio::time::timeout(DEADLINE, answer).await.expect("an answer in time");
        assert_eq!(answer.is_ok_and(|answer| answer.len() == bytes), is_answered);
    }
}

/// Enters a presence channel under a key.
async fn enter(
    broker: &Broker,
    nth: u64,
    room: &Place,
    who: &str,
) -> (Probe, Result<(), SubscribeError>) {
    let probe = broker.session(broker.topics.node().number(nth)).await;
    let persona = Persona { key: who.to_owned().into(), meta: Meta::default() };
    let entered = broker.enter(&probe, room.clone(), persona).await;
    (probe, entered)
}

/// The members that the nodes list for a channel, as keys.
async fn listed(broker: &Broker, scope: &ScopeKey) -> String {
    let room = channel(scope, "room").channel.expect("a channel");
    shown(&broker.topics.members(scope, &room).await.expect("an answer"))
}

#[actix_web::test]
async fn members_of_all_nodes_are_in_one_picture() {
    let nodes = Nodes::start().await;
    let scope = key(1, "presence");
    let room = channel(&scope, "room");
    let [one, other] = &nodes.brokers;
    let (mut ada, entered) = enter(one, 1, &room, "ada").await;
    entered.expect("a place");
    assert_eq!([ada.next().await, ada.next().await], ["[]", "room +[ada={}] -[]"]);
    let (mut bob, entered) = enter(other, 1, &room, "bob").await;
    entered.expect("a place");
    assert_eq!([bob.next().await, bob.next().await], ["[ada={}]", "room +[bob={}] -[]"]);
    assert_eq!(ada.next().await, "room +[bob={}] -[]");
    for broker in &nodes.brokers {
        assert_eq!(listed(broker, &scope).await, "[ada={} bob={}]");
    }
    let custom = super::super::JsonText::of_text("busy");
    let channel = room.channel.clone().expect("a channel");
    other.topics.update(&scope, channel, bob.session, custom).await.expect("a tracker");
    for probe in [&mut ada, &mut bob] {
        assert_eq!(probe.next().await, "room +[bob=\"busy\"] -[bob={}]");
    }
    other.leave(&bob, room.clone()).await;
    assert_eq!(ada.next().await, "room +[] -[bob=\"busy\"]");
    one.leave(&ada, room.clone()).await;
    until("nobody is listed", async || listed(other, &scope).await == "[]").await;
}

#[actix_web::test]
async fn members_of_a_node_that_dies_leave_once_and_those_of_one_that_was_taken_for_dead_come_back()
{
    let nodes = Nodes::start().await;
    let scope = key(1, "presence");
    let room = channel(&scope, "room");
    let [one, other] = &nodes.brokers;
    let (mut ada, _) = enter(one, 1, &room, "ada").await;
    assert_eq!([ada.next().await, ada.next().await], ["[]", "room +[ada={}] -[]"]);
    let (mut bob, _) = enter(other, 1, &room, "bob").await;
    assert_eq!(ada.next().await, "room +[bob={}] -[]");
    assert_eq!([bob.next().await, bob.next().await], ["[ada={}]", "room +[bob={}] -[]"]);

    nodes.shared.lapse(nodes.engines[1].node());
    // It leaves and comes back; both may be told at once.
    let mut told = Vec::new();
    until("bob is back", async || {
        told.push(ada.next().await);
        told.last().is_some_and(|last| last.starts_with("room +[bob={}]"))
    })
    .await;
    assert!(told.len() <= 2, "{told:?}");
    until("both are listed", async || listed(one, &scope).await == "[ada={} bob={}]").await;

    nodes.shared.kill(nodes.engines[1].node());
    assert_eq!(ada.next().await, "room +[] -[bob={}]");
    until("bob is gone", async || listed(one, &scope).await == "[ada={}]").await;
    publish(one, publication(&scope, "room", "msg")).await;
    assert_eq!(ada.next().await, "room msg", "nobody leaves twice");
}

#[actix_web::test]
async fn the_limit_of_members_holds_for_all_nodes_together() {
    let nodes = Nodes::start().await;
    let scope = key(1, "presence");
    let room = channel(&scope, "room");
    let mut there = Vec::new();
    for nth in 0..4 {
        let broker = &nodes.brokers[nth % 2];
        let (probe, entered) = enter(broker, nth as u64, &room, &format!("m{nth}")).await;
        assert_eq!(entered, Ok(()), "{nth}");
        there.push(probe);
    }
    for broker in &nodes.brokers {
        let (_, entered) = enter(broker, 9, &room, "late").await;
        assert_eq!(entered, Err(SubscribeError::TooManyMembers));
    }
    nodes.brokers[0].leave(&there[0], room.clone()).await;
    until("there is room", async || {
        listed(&nodes.brokers[1], &scope).await.matches('=').count() == 3
    })
    .await;
    let (_, entered) = enter(&nodes.brokers[1], 10, &room, "next").await;
    assert_eq!(entered, Ok(()));
}

#[actix_web::test]
async fn nobody_enters_while_the_log_is_away_and_members_that_left_are_gone_when_it_is_back() {
    let nodes = Nodes::start_with(|limits| {
        limits.wait_max = std::time::Duration::from_millis(300);
    })
    .await;
    let scope = key(1, "presence");
    let room = channel(&scope, "room");
    let [one, other] = &nodes.brokers;
    let (ada, _) = enter(one, 1, &room, "ada").await;
    let (mut bob, _) = enter(other, 1, &room, "bob").await;
    while bob.next().await != "room +[bob={}] -[]" {}
    nodes.shared.stop();
    until("both notice", async || {
        nodes.brokers.iter().all(|b| b.topics.engine_state() != Some(EngineState::Up))
    })
    .await;
    let (_, entered) = enter(one, 2, &room, "eve").await;
    assert_eq!(entered, Err(SubscribeError::Unavailable));
    one.leave(&ada, room.clone()).await;
    nodes.shared.start();
    assert_eq!(bob.next().await, "room +[] -[ada={}]");
    until("bob is alone", async || {
        let room = room.channel.clone().expect("a channel");
        let members = other.topics.members(&scope, &room).await;
        members.is_ok_and(|members| shown(&members) == "[bob={}]")
    })
    .await;
}

#[actix_web::test]
async fn a_record_of_another_version_ends_the_joins_of_its_scope_and_is_expired() {
    let nodes = Nodes::start().await;
    let (scope, other) = (key(1, "public"), key(2, "public"));
    let mut probes = nodes.listeners(&channel(&scope, "room")).await;
    let mut elsewhere = nodes.brokers[1].session(nodes.engines[1].node().number(2)).await;
    nodes.brokers[1].join(&elsewhere, channel(&other, "room")).await.expect("a place");
    let cached = publication(&scope, "cache-room", "kept");
    publish(&nodes.brokers[0], cached).await;
    let since = publish(&nodes.brokers[0], publication(&scope, "room", "before")).await;
    let bytes = scope_bytes(&scope);
    let partition = Partition::of(&bytes, 4);
    let (scope_bytes, body) = (bytes.into(), Bytes::from_static(b"\x02\x01\0\0whatever"));
    let record = Record { scope: scope_bytes, body };
    let deadline = std::time::Instant::now() + DEADLINE;
    let appended =
        nodes.engines[1].append(partition, Append::records(vec![record]), deadline).await;
    assert!(matches!(appended, Ok(Appended::At(_))), "{appended:?}");
    for (nth, probe) in probes.iter_mut().enumerate() {
        assert_eq!(probe.next().await, "room before");
        assert_eq!(probe.next().await, "interrupted: room");
        let broker = &nodes.brokers[nth];
        let last = broker.topics.last_event(&channel(&scope, "cache-room"));
        assert_eq!(last, None, "the record may have a newer one");
        let again = broker.session(nodes.engines[nth].node().number(7)).await;
        let place = channel(&scope, "room");
        let (incomplete, replayed) =
            join_since(broker, &again, place, Since::Position(since)).await;
        assert_eq!((incomplete, replayed), (Some(Incomplete::Expired), 0));
    }
    // Everything else goes on.
    publish(&nodes.brokers[0], publication(&other, "room", "after")).await;
    assert_eq!(elsewhere.next().await, "room after");
}

#[actix_web::test]
async fn a_gap_that_the_log_no_longer_holds_ends_the_joins_and_is_expired() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let room = channel(&scope, "room");
    let at = publish(&nodes.brokers[0], publication(&scope, "room", "a")).await;
    for partition in 0..4 {
        nodes.shared.trim(Partition(partition));
    }
    let (_, late) = nodes.another().await;
    let probe = late.session(late.topics.node().number(1)).await;
    let before = StreamPosition { offset: at.offset - 1, ..at };
    let since = Since::Position(before);
    let recovery = join_since(&late, &probe, room.clone(), since).await;
    assert_eq!(recovery, (Some(Incomplete::Expired), 0), "a node that began too late");
    let probe = late.session(late.topics.node().number(2)).await;
    let since = Since::Position(at);
    assert_eq!(join_since(&late, &probe, room, since).await, (None, 0), "nothing has come since");
}

/// Signs a session in as a user that watches others.
fn sign_in(broker: &Broker, probe: &Probe, user: &str, watched: &[&str]) {
    let watched = watched.iter().map(|user| (*user).into()).collect();
    let signed_in = SignedIn { app: AppId(1), user: user.into(), watched };
    broker.topics.signed_in().sign_in(&probe.outbox, &signed_in, None);
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

#[test]
fn a_node_has_a_number_of_its_own() {
    let shared = MemoryCluster::new(1);
    let nodes = [shared.node().node(), shared.node().node()];
    assert!(nodes[0] != nodes[1] && !nodes.contains(&NodeId::ONLY));
}
