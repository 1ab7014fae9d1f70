//! Publications whose records this node does not read.

use super::*;

/// Lets the log forget records of a partition.
type LogLoss = fn(&Nodes, Partition);

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
