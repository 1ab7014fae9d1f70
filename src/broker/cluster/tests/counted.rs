//! Publications in the usage of their app: each counts once, on the node that has accepted it.

use super::*;

/// The publications, and the bytes of their payloads, that each node has counted since the last call.
fn counted(nodes: &Nodes) -> [(u64, u64); 2] {
    nodes.brokers.each_ref().map(|broker| {
        let taken = broker.topics.metrics().usage.take(0);
        let figures =
            taken.iter().map(|taken| (taken.figures.publications, taken.figures.bytes_in));
        figures.fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1))
    })
}

/// Two nodes, and a listener at the first one.
async fn start() -> (Nodes, ScopeKey, Probe) {
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    let [probe, _] = nodes.listeners(&whole(&scope)).await;
    (nodes, scope, probe)
}

fn event(scope: &ScopeKey, event: &str) -> Publication {
    let payload = Payload::Json(crate::broker::JsonText::of_text("12345678"));
    Publication { payload, ..publication(scope, "room", event) }
}

#[actix_web::test]
async fn a_publication_whose_caller_hangs_up_before_the_log_answers_counts() {
    let (nodes, scope, mut probe) = start().await;
    let mut call = Box::pin(nodes.brokers[0].topics.publish(event(&scope, "msg")));
    assert!(futures_util::poll!(&mut call).is_pending());
    drop(call);
    assert_eq!(probe.next().await, "* room:msg");
    until_idle(&nodes.brokers[0]).await;
    assert_eq!(counted(&nodes), [(1, 10), (0, 0)]);
}

#[actix_web::test]
async fn a_publication_of_which_the_caller_does_not_learn_that_it_is_in_the_log_counts_once() {
    let (nodes, scope, mut probe) = start().await;
    let heads = nodes.brokers[0].topics.cluster().expect("a cluster").heads();
    let partition = heads.partition_of(&scope);
    let key = IdempotencyKey::parse("k", KeyOwner::Application).expect("a key");
    let once = async |node: usize| {
        nodes.brokers[node].topics.publish_once(key, vec![event(&scope, "once")]).await
    };
    nodes.shared.lose_answers(partition, true);
    let refused = nodes.brokers[0].topics.publish(event(&scope, "msg")).await;
    assert_eq!(refused.err(), Some(PublishError::Busy));
    assert_eq!(once(0).await.err(), Some(OnceError::Refused(PublishError::Busy)));
    nodes.shared.lose_answers(partition, false);
    for node in [0, 1] {
        let again = once(node).await;
        assert!(matches!(again, Ok(Published::Before(_))), "{again:?}");
    }
    publish(&nodes.brokers[1], event(&scope, "last")).await;
    for event in ["msg", "once", "last"] {
        assert_eq!(probe.next().await, format!("* room:{event}"));
    }
    until("the other node has read it", async || {
        nodes.brokers[0].head(&scope) == nodes.brokers[1].head(&scope)
    })
    .await;
    assert_eq!(counted(&nodes), [(2, 20), (1, 10)]);
}

#[actix_web::test]
async fn an_acknowledged_publication_that_the_log_loses_before_it_is_read_counts() {
    let (nodes, scope, _probe) = start().await;
    let cluster = nodes.brokers[0].topics.cluster().expect("a cluster");
    // The thread that reads the partition waits for this lock when it has the first record.
    let wedge = cluster.heads().lock(cluster.heads().partition_of(&scope));
    for name in ["1", "2", "3"] {
        publish(&nodes.brokers[0], event(&scope, name)).await;
    }
    nodes.shared.restart_empty();
    drop(wedge);
    until_idle(&nodes.brokers[0]).await;
    assert_eq!(counted(&nodes), [(3, 30), (0, 0)]);
}
