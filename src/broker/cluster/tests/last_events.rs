//! Last events of cache channels, which a node fetches from the others.

use super::*;
use crate::broker::last_events::LastEvent;

async fn starting(engine: Arc<MemoryEngine>) -> Broker {
    let broker = Broker::of_node(engine.clone(), |limits| {
        limits.wait_max = std::time::Duration::from_millis(300);
    });
    until_up(&*engine).await;
    broker
}

fn last(broker: &Broker, scope: &ScopeKey) -> Option<String> {
    let last = broker.topics.last_event(&channel(scope, "cache-room"));
    last.map(|LastEvent { event, .. }| event.as_str().to_owned())
}

#[actix_web::test]
async fn a_node_that_is_fetching_last_events_itself_does_not_answer_for_all() {
    let shared = MemoryCluster::new(4);
    // This node has the lowest number, so that it is asked first.
    let first = shared.node();
    let old = starting(shared.node()).await;
    assert_eq!(old.topics.fetch_last_events().await, Err(Unanswered), "the first one is silent");
    let scope = key(1, "public");
    publish(&old, publication(&scope, "cache-room", "kept")).await;
    until("it is kept", async || last(&old, &scope).is_some()).await;
    for partition in 0..4 {
        shared.trim(Partition(partition));
    }
    let first = starting(first).await;
    let late = starting(shared.node()).await;
    assert_eq!(late.topics.fetch_last_events().await, Ok(()));
    assert_eq!(last(&late, &scope).as_deref(), Some("kept"));
    // The nodes that have fetched answer for all.
    assert_eq!(first.topics.fetch_last_events().await, Ok(()));
    assert_eq!(last(&first, &scope).as_deref(), Some("kept"));
}

#[actix_web::test]
async fn a_node_that_has_dropped_last_events_is_asked_for_what_it_has_only_if_no_other_has_all() {
    let shared = MemoryCluster::new(4);
    let [dropping, keeping] = [starting(shared.node()).await, starting(shared.node()).await];
    for node in [&dropping, &keeping] {
        node.topics.fetch_last_events().await.expect("an answer, if only in part");
    }
    // Only one of the two waits until what it may lack has expired.
    keeping.topics.cluster().expect("a cluster").lack.dropped(0);
    let [gone, stays] = [1, 2].map(|app| key(app, "public"));
    for scope in [&gone, &stays] {
        publish(&keeping, publication(scope, "cache-room", "kept")).await;
        for node in [&dropping, &keeping] {
            until("it is kept", async || last(node, scope).is_some()).await;
        }
    }
    dropping.topics.drop_last_events(|scope| *scope == gone);
    for partition in 0..4 {
        shared.trim(Partition(partition));
    }
    let late = starting(shared.node()).await;
    assert_eq!(late.topics.fetch_last_events().await, Ok(()));
    assert_eq!(last(&late, &gone).as_deref(), Some("kept"), "the other node has all");

    for node in [&keeping, &late] {
        node.topics.drop_last_events(|scope| *scope == gone);
    }
    let last_one = starting(shared.node()).await;
    assert_eq!(last_one.topics.fetch_last_events().await, Ok(()));
    assert_eq!(last(&last_one, &stays).as_deref(), Some("kept"), "each was asked for its part");
    assert_eq!(last(&last_one, &gone), None);
}

#[actix_web::test]
async fn a_last_event_of_an_epoch_that_has_ended_here_is_not_adopted() {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    publish(&nodes.brokers[0], publication(&scope, "cache-room", "old")).await;
    for broker in &nodes.brokers {
        until("it is kept", async || last(broker, &scope).is_some()).await;
    }
    // The first node answers, and the second one hears of a new epoch before it has the answer.
    let page = nodes.brokers[0].topics.directory().ledger().last_events().page(None, usize::MAX);
    nodes.shared.restart_empty();
    until("it is dropped", async || last(&nodes.brokers[1], &scope).is_none()).await;
    for told in page {
        assert_eq!(nodes.brokers[1].topics.adopt(told), None);
    }
    assert_eq!(last(&nodes.brokers[1], &scope), None);
}

#[actix_web::test]
async fn every_kind_of_cache_channel_has_its_last_event_on_nodes_that_retain_nothing() {
    let shared = MemoryCluster::new(4);
    let [one, other] = [starting(shared.node()).await, starting(shared.node()).await];
    for (scope, name) in
        [("public", "cache-room"), ("private", "cache-room"), ("private", "encrypted-cache-room")]
    {
        let scope = key(1, scope);
        publish(&one, publication(&scope, name, "kept")).await;
        for broker in [&one, &other] {
            let last = async || broker.topics.last_event(&channel(&scope, name)).is_some();
            until(&format!("{name} of {}", scope.scope), last).await;
        }
    }
}
