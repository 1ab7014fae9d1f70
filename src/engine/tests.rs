//! The contract of engines, over the engine in memory.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{
    Engine, EngineState, NodeId, Partition, contract,
    memory::{MemoryCluster, MemoryEngine},
};

impl contract::Servers for MemoryCluster {
    fn node(&self) -> BoxFuture<'_, Arc<dyn Engine>> {
        Box::pin(async { MemoryCluster::node(self) as Arc<dyn Engine> })
    }

    fn kill(&self, node: NodeId) {
        MemoryCluster::kill(self, node);
    }
}

contract::suite!(MemoryCluster::new(4));

async fn followed(cluster: &MemoryCluster) -> (Arc<MemoryEngine>, Arc<contract::Heard>) {
    let (node, heard) = (cluster.node(), contract::Heard::new());
    node.follow(heard.clone());
    contract::up(&*node).await;
    (node, heard)
}

#[tokio::test]
async fn an_outage_fails_appends_and_ends_with_all_that_was_missed() {
    let cluster = MemoryCluster::new(1);
    let (node, heard) = followed(&cluster).await;
    contract::append(&*node, 0, "a").await.expect("appended");
    heard.until(|heard| heard.bodies(0) == ["a"]).await;

    cluster.stop();
    assert!(matches!(*node.state().borrow(), EngineState::Down { .. }));
    assert!(contract::append(&*node, 0, "b").await.is_err());

    cluster.start();
    contract::append(&*node, 0, "c").await.expect("appended");
    heard.until(|heard| heard.bodies(0) == ["a", "c"]).await;
}

#[tokio::test]
async fn a_lost_tail_begins_a_new_epoch_on_every_node() {
    let cluster = MemoryCluster::new(1);
    let (node, heard) = followed(&cluster).await;
    let (_other, other) = followed(&cluster).await;
    for body in ["a", "b", "c"] {
        contract::append(&*node, 0, body).await.expect("appended");
    }
    heard.until(|heard| heard.bodies(0) == ["a", "b", "c"]).await;

    cluster.lose_tail(Partition(0), 2);
    contract::append(&*node, 0, "d").await.expect("appended");

    for heard in [&heard, &other] {
        heard.until(|heard| heard.bodies(0).last().is_some_and(|body| body == "d")).await;
        let (epochs, offset) = heard.with(|log| (log.epochs(0), log.last_offset(0)));
        assert_eq!((epochs.len(), epochs[1].1, offset), (2, 2, 2));
    }
}

#[tokio::test]
async fn trimmed_records_are_lost_for_a_node_that_had_not_read_them() {
    let cluster = MemoryCluster::new(1);
    let (node, heard) = followed(&cluster).await;
    contract::append(&*node, 0, "a").await.expect("appended");
    heard.until(|heard| heard.bodies(0) == ["a"]).await;
    heard.pause_after_next();
    contract::append(&*node, 0, "b").await.expect("appended");
    heard.until(|heard| heard.bodies(0) == ["a", "b"]).await;

    contract::append(&*node, 0, "c").await.expect("appended");
    cluster.trim(Partition(0));
    contract::append(&*node, 0, "d").await.expect("appended");
    node.resume(Partition(0));

    heard.until(|heard| heard.bodies(0) == ["a", "b", "d"]).await;
    assert_eq!(heard.with(|log| log.lost(0)), [(3, 4)]);
}

#[tokio::test]
async fn a_lapsed_node_continues_as_a_new_incarnation_without_members() {
    let cluster = MemoryCluster::new(1);
    let (node, heard) = followed(&cluster).await;
    contract::put(&*node, 0, "room", "m", 10).await.expect("put");
    let before = node.incarnation();

    cluster.lapse(node.node());

    heard.until(|heard| heard.incarnations() == [node.incarnation()]).await;
    assert_ne!(node.incarnation(), before);
    heard.until(|heard| heard.left() == [(node.node(), before)]).await;
    assert_eq!(contract::members(&*node, 0, "room").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_server_that_forgot_everything_begins_again() {
    let cluster = MemoryCluster::new(2);
    let (node, heard) = followed(&cluster).await;
    contract::append(&*node, 1, "a").await.expect("appended");
    contract::put(&*node, 1, "room", "m", 10).await.expect("put");

    cluster.restart_empty();

    heard.until(|heard| heard.told_lost() == 1 && heard.epochs(1).len() == 2).await;
    assert_eq!(contract::members(&*node, 1, "room").await, Vec::<String>::new());
    contract::append(&*node, 1, "b").await.expect("appended");
    heard.until(|heard| heard.bodies(1).last().is_some_and(|body| body == "b")).await;
    assert_eq!(heard.with(|heard| heard.last_offset(1)), 1);
}
