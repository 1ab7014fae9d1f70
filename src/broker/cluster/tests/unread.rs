//! Publications whose records this node does not read.

use super::*;

/// Lets the log forget records of a partition.
type LogLoss = fn(&Nodes, Partition);

/// Publishes events at the first node, which reads them, while another one cannot read. Then the log forgets
/// them.
async fn lose_unread(nodes: &Nodes, reader: usize, events: &[Publication], forget: LogLoss) {
    let cluster = nodes.brokers[reader].topics.cluster().expect("a cluster");
    let scope = ScopeKey::of(&events[0]);
    let partition = cluster.heads().partition_of(&scope);
    // The thread that reads the partition waits for this lock when it has the first record.
    let wedge = cluster.heads().lock(partition);
    for event in events {
        let sent = nodes.brokers[0].topics.publish(event.clone()).await;
        sent.expect("room for one more");
    }
    until_idle(&nodes.brokers[0]).await;
    forget(nodes, partition);
    drop(wedge);
}

const FORGET: [(&str, LogLoss); 3] = [
    ("a restart without data", |nodes, _| nodes.shared.restart_empty()),
    ("a failover that loses the tail", |nodes, partition| nodes.shared.lose_tail(partition, 2)),
    ("trimming", |nodes, partition| nodes.shared.trim(partition)),
];

#[actix_web::test]
async fn acknowledged_publications_that_are_never_read_hold_no_permits() {
    for (case, forget) in FORGET {
        let nodes = Nodes::start().await;
        let scope = key(1, "public");
        let _probes = nodes.listeners(&whole(&scope)).await;
        let payload = Payload::Bytes(Bytes::from_static(b"x"));
        let bytes = Publication { payload, ..publication(&scope, "room", "bytes") };
        let [broker, _] = &nodes.brokers;
        let cluster = broker.topics.cluster().expect("a cluster");
        let wedge = cluster.heads().lock(cluster.heads().partition_of(&scope));
        for event in ["1", "2"] {
            publish(broker, publication(&scope, "room", event)).await;
        }
        let receipt = broker.topics.publish(bytes).await.expect("room for one more");
        assert!(!cluster.pending.is_empty(), "{case}: they wait for their records");
        forget(&nodes, cluster.heads().partition_of(&scope));
        drop(wedge);
        until_idle(broker).await;
        assert_eq!(receipt.skipped().await, None, "{case}: nobody has counted");
    }
}

#[actix_web::test]
async fn last_events_from_before_a_gap_are_not_served_after_it() {
    for (case, forget) in FORGET {
        let nodes = Nodes::start().await;
        let scope = key(1, "public");
        let others = (2..).map(|app| key(app, "public"));
        let other = elsewhere(&nodes.brokers[0], &scope, others);
        let room = channel(&scope, "cache-room");
        let last = |nth: usize, place: &Place| {
            let last = nodes.brokers[nth].topics.last_event(place);
            last.map(|last| last.event.as_str().to_owned())
        };
        publish(&nodes.brokers[0], publication(&scope, "cache-room", "old")).await;
        publish(&nodes.brokers[0], publication(&other, "cache-room", "elsewhere")).await;
        for nth in 0..2 {
            until("both are kept", async || {
                last(nth, &room).is_some() && last(nth, &channel(&other, "cache-room")).is_some()
            })
            .await;
        }
        let events = ["-", "new", "-"].map(|event| {
            let to = if event == "new" { "cache-room" } else { "room" };
            publication(&scope, to, event)
        });
        lose_unread(&nodes, 1, &events, forget).await;
        until(case, async || last(1, &room).is_none()).await;
        if case == "trimming" {
            until("the other node has read it", async || last(0, &room).as_deref() == Some("new"))
                .await;
            let there = last(1, &channel(&other, "cache-room"));
            assert_eq!(there.as_deref(), Some("elsewhere"), "another partition has no gap");
        }
    }
}

#[actix_web::test]
async fn publications_that_are_read_with_a_record_of_another_version_hold_no_permits() {
    let nodes = Nodes::start().await;
    nodes.shared.join_appends(3);
    let scope = key(1, "public");
    let [broker, _] = &nodes.brokers;
    let heads = broker.topics.cluster().expect("a cluster").heads();
    let partition = heads.partition_of(&scope);
    // The node waits for this lock when it has the first record. It then reads the other two in one call.
    let wedge = heads.lock(partition);
    for event in ["first", "beside the other record"] {
        publish(broker, publication(&scope, "room", event)).await;
    }
    let body = Bytes::from_static(b"\x02\x01\0\0whatever");
    let record = Record { scope: scope_bytes(&scope).into(), body };
    let (append, deadline) = (Append::records(vec![record]), Instant::now() + DEADLINE);
    let appended = nodes.engines[1].append(partition, append, deadline).await;
    assert!(matches!(appended, Ok(Appended::At(_))), "{appended:?}");
    drop(wedge);
    until_idle(broker).await;
    let counted: u64 =
        broker.topics.metrics().usage.take(0).iter().map(|taken| taken.figures.publications).sum();
    assert_eq!(counted, 2);
}
