//! Idempotency keys whose publications belong to several partitions.

use super::*;

/// Enough keys that some belong to the partition of each scope, and some to neither.
fn all_keys() -> impl Iterator<Item = (usize, IdempotencyKey)> {
    let key = |nth| IdempotencyKey::parse(&format!("k{nth}"), KeyOwner::Application);
    (0..12).map(move |nth| (nth, key(nth).expect("a key")))
}

/// Two nodes, two scopes in different partitions, and a probe of each scope.
async fn start() -> (Nodes, [ScopeKey; 2], [Probe; 2]) {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let others = (0..).map(|nth| key(1, &format!("scope-{nth}")));
    let scopes = [scope.clone(), elsewhere(&nodes.brokers[0], &scope, others)];
    let [one, _] = nodes.listeners(&whole(&scopes[0])).await;
    let [other, _] = nodes.listeners(&whole(&scopes[1])).await;
    (nodes, scopes, [one, other])
}

/// Publishes an event in each scope, and checks that the probes hear it next.
async fn hear_only(nodes: &Nodes, scopes: &[ScopeKey; 2], probes: &mut [Probe; 2], event: &str) {
    for (scope, probe) in scopes.iter().zip(probes) {
        publish(&nodes.brokers[0], publication(scope, "room", event)).await;
        assert_eq!(probe.next().await, format!("* room:{event}"));
    }
}

#[actix_web::test]
async fn a_bulk_that_is_in_the_log_in_part_is_completed_and_holds_nothing_afterwards() {
    let (nodes, scopes, mut probes) = start().await;
    let heads = nodes.brokers[0].topics.cluster().expect("a cluster").heads();
    let [_, second] = scopes.each_ref().map(|scope| heads.partition_of(scope));
    for (nth, key) in all_keys() {
        let event = format!("bulk-{nth}");
        let once = async |node: usize| {
            let bulk = scopes.each_ref().map(|scope| publication(scope, "room", &event));
            nodes.brokers[node].topics.publish_once(key, bulk.into()).await
        };
        nodes.shared.refuse(second, true);
        assert_eq!(once(0).await.err(), Some(OnceError::Refused(PublishError::Busy)), "{nth}");
        nodes.shared.refuse(second, false);
        let completed = once(0).await;
        let Ok(Published::Now(receipt)) = completed else { panic!("{nth}: {completed:?}") };
        let again = once(1).await;
        let Ok(Published::Before(again)) = again else { panic!("{nth}: {again:?}") };
        assert_eq!(receipt.positions(), again.positions(), "{nth}");
        for probe in &mut probes {
            assert_eq!(probe.next().await, format!("* room:{event}"));
        }
        for broker in &nodes.brokers {
            until_idle(broker).await;
        }
    }
    hear_only(&nodes, &scopes, &mut probes, "nothing came twice").await;
}

#[actix_web::test]
async fn a_key_belongs_to_one_content_whichever_scope_the_content_is_for() {
    let (nodes, scopes, mut probes) = start().await;
    for (nth, key) in all_keys() {
        let once = async |node: usize, events: &[(&ScopeKey, &str)]| {
            let all = events.iter().map(|(scope, event)| publication(scope, "room", event));
            let published = nodes.brokers[node].topics.publish_once(key, all.collect()).await;
            published.map(|published| matches!(published, Published::Now(_)))
        };
        let (one, other) = (&scopes[0], &scopes[1]);
        let event = format!("first-{nth}");
        assert_eq!(once(0, &[(one, &event)]).await, Ok(true), "{nth}");
        let refused = Err(OnceError::OtherContent);
        assert_eq!(once(1, &[(other, "another scope")]).await, refused, "{nth}");
        assert_eq!(once(1, &[(one, "in part"), (other, "in part")]).await, refused, "{nth}");
        assert_eq!(once(0, &[(other, "in part"), (one, &event)]).await, refused, "{nth}");
        assert_eq!(once(1, &[(one, &event)]).await, Ok(false), "{nth}: the same content");
        assert_eq!(probes[0].next().await, format!("* room:{event}"));
    }
    hear_only(&nodes, &scopes, &mut probes, "nothing else came").await;
    for broker in &nodes.brokers {
        until_idle(broker).await;
    }
}

#[actix_web::test]
async fn a_call_that_is_too_large_publishes_nothing_and_leaves_its_key_free() {
    let (nodes, scopes, mut probes) = start().await;
    let large = crate::broker::JsonText::of_text(&"x".repeat(17 << 20));
    let large = Payload::Json(large);
    for (nth, key) in all_keys() {
        let event = format!("small-{nth}");
        let small = scopes.each_ref().map(|scope| publication(scope, "room", &event));
        let mut too_large = small.clone();
        too_large[1].payload = large.clone();
        let topics = &nodes.brokers[0].topics;
        if nth == 0 {
            let without_key = topics.publish_all(too_large.clone().into()).await;
            assert_eq!(without_key.err(), Some(PublishError::TooLarge));
        }
        let refused = topics.publish_once(key, too_large.into()).await;
        assert_eq!(refused.err(), Some(OnceError::Refused(PublishError::TooLarge)), "{nth}");
        topics.publish_once(key, small.into()).await.expect("a free key");
        for probe in &mut probes {
            assert_eq!(probe.next().await, format!("* room:{event}"));
        }
    }
    until_idle(&nodes.brokers[0]).await;
}

#[actix_web::test]
async fn a_call_whose_caller_is_dropped_goes_on() {
    let (nodes, scopes, mut probes) = start().await;
    for (nth, key) in all_keys() {
        let event = format!("bulk-{nth}");
        let bulk = scopes.each_ref().map(|scope| publication(scope, "room", &event));
        let mut call = Box::pin(nodes.brokers[0].topics.publish_once(key, bulk.into()));
        assert!(futures_util::poll!(&mut call).is_pending());
        drop(call);
        for probe in &mut probes {
            assert_eq!(probe.next().await, format!("* room:{event}"));
        }
    }
    until_idle(&nodes.brokers[0]).await;
}

#[actix_web::test]
async fn keys_beyond_the_limit_of_a_node_are_remembered_for_a_moment_only() {
    const MAX: usize = 4;
    let nodes = Nodes::start_with(|limits| limits.idempotency_keys_max = MAX).await;
    let (broker, scope) = (&nodes.brokers[0], key(1, "public"));
    for (_, key) in all_keys().take(MAX + 2) {
        for is_new in [true, false] {
            let event = vec![publication(&scope, "room", "msg")];
            let published = broker.topics.publish_once(key, event).await;
            let is_now = matches!(published, Ok(Published::Now(_)));
            // Repetitions count as well, because the node does not know that they are some.
            assert_eq!(is_now, is_new, "{published:?}");
        }
    }
    let long = nodes.shared.ttls().concat().into_iter().filter(|ttl| *ttl >= REMEMBERED).count();
    // A call has a claim of its key in another partition, unless its events belong to that one.
    assert!((MAX / 2..=MAX).contains(&long), "{long}");
    let hits = broker.topics.metrics().limit_hits.of(Limit::IdempotencyKeys).get();
    assert_eq!(hits, (2 * (MAX + 2) - MAX) as u64);
}

#[actix_web::test]
async fn a_claim_is_remembered_for_longer_than_the_parts_that_are_appended_after_it() {
    let (nodes, scopes, _probes) = start().await;
    let heads = nodes.brokers[0].topics.cluster().expect("a cluster").heads();
    let partitions = scopes.each_ref().map(|scope| heads.partition_of(scope));
    let id = |key: &IdempotencyKey| [&1_i32.to_le_bytes()[..], &key.to_bytes()].concat();
    let is_elsewhere = |key: &IdempotencyKey| !partitions.contains(&Partition::of(&id(key), 4));
    let (_, key) = all_keys().find(|(_, key)| is_elsewhere(key)).expect("a key");
    let bulk = scopes.each_ref().map(|scope| publication(scope, "room", "bulk"));
    nodes.brokers[0].topics.publish_once(key, bulk.into()).await.expect("room for two");
    let ttls = nodes.shared.ttls();
    let of = |partition: Partition| ttls[usize::from(partition.0)].clone();
    let [part, other_part] = partitions.map(of);
    assert_eq!((part.len(), &part), (1, &other_part));
    let longer = part[0] + nodes.brokers[0].topics.wait_max();
    assert_eq!(of(Partition::of(&id(&key), 4)), [longer]);
}
