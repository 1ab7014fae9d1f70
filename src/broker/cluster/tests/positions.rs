//! Positions of the log: what a join with one is told, on whichever node.

use super::*;

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

#[actix_web::test]
async fn publications_of_another_database_s_app_of_the_same_id_are_left_out() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let room = channel(&scope, "room");
    let at = publish(&nodes.brokers[0], publication(&scope, "room", "before")).await;
    let is_read = async || nodes.brokers.iter().all(|broker| broker.head(&scope) == Some(at));
    until("both have read it", is_read).await;
    let mut probes = nodes.listeners(&room).await;
    // The apps of these tests were created at 0.
    for (event, created_us) in [("foreign", Some(1)), ("own", Some(0)), ("unnamed", None)] {
        let foreign = publication(&scope, "room", event);
        let body = record::write_publication(&foreign, 7, now_ms(), created_us);
        let record = Record { scope: scope_bytes(&scope).into(), body };
        let append = Append { records: vec![record], terms: Terms::None };
        let partition = Partition::of(&scope_bytes(&scope), 4);
        nodes.engines[0].append(partition, append, Instant::now() + DEADLINE).await.expect("room");
    }
    publish(&nodes.brokers[1], publication(&scope, "room", "after")).await;
    for probe in &mut probes {
        for event in ["own", "unnamed", "after"] {
            assert_eq!(probe.next().await, format!("room {event}"));
        }
    }
    let (_, late) = nodes.another().await;
    let since = Since::Position(at);
    until("it has read the log", async || late.head(&scope) == nodes.brokers[0].head(&scope)).await;
    let probe = late.session(late.topics.node().number(1)).await;
    assert_eq!(join_since(&late, &probe, room, since).await, (None, 3));
}

#[actix_web::test]
async fn a_scope_that_gave_way_to_others_of_its_app_is_expired_when_it_is_opened_again() {
    let nodes = Nodes::start().await;
    // The app may have two scopes. Of scopes that were last used in the same millisecond, the first by name gives way.
    let [first, second, third] = ["a", "b", "c"].map(|name| key(1, name));
    let since = publish(&nodes.brokers[0], publication(&first, "room", "known")).await;
    for scope in [&first, &second, &third] {
        let at = publish(&nodes.brokers[0], publication(scope, "room", "missed")).await;
        // The partitions of the scopes are read in any order.
        for broker in &nodes.brokers {
            until("it is read", async || broker.head(scope) == Some(at)).await;
        }
    }
    for broker in &nodes.brokers {
        assert_eq!(broker.head(&first), None, "it gave way");
        let probe = broker.session(broker.topics.node().number(1)).await;
        let (room, since) = (channel(&first, "room"), Since::Position(since));
        let recovery = join_since(broker, &probe, room, since).await;
        assert_eq!(recovery, (Some(Incomplete::Expired), 0));
    }
}

#[actix_web::test]
async fn publications_that_an_app_did_not_retain_are_expired_after_it_has_begun_to_retain() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    nodes.retain(0);
    let since = publish(&nodes.brokers[0], publication(&scope, "room", "known")).await;
    publish(&nodes.brokers[0], publication(&scope, "room", "missed")).await;
    for nth in 0..2 {
        nodes.until_taken(nth).await;
        assert_eq!(nodes.brokers[nth].head(&scope), None, "nothing is retained");
    }
    nodes.retain(100);
    publish(&nodes.brokers[0], publication(&scope, "room", "kept")).await;
    for broker in &nodes.brokers {
        until("it is kept", async || broker.head(&scope).is_some()).await;
        let probe = broker.session(broker.topics.node().number(1)).await;
        let (room, since) = (channel(&scope, "room"), Since::Position(since));
        let recovery = join_since(broker, &probe, room, since).await;
        assert_eq!(recovery, (Some(Incomplete::Expired), 0));
    }
}
