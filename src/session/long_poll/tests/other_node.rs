//! Sessions whose client fetches and posts at another node, while the engine or their own node fails.

use futures_util::FutureExt;

use super::*;
use crate::{
    engine::{EngineState, MESSAGE_BYTES_MAX, memory::MemoryCluster},
    session::long_poll::elsewhere::number_on,
};

/// The node of the sessions, and the one at which their clients are.
struct Nodes {
    cluster: MemoryCluster,
    own: Polls,
    other: Polls,
}

impl Nodes {
    async fn start(window: Duration) -> Self {
        let cluster = MemoryCluster::new(1);
        let limits = SessionLimits { outbox_bytes_max: 1 << 30, ..limits() };
        let [own, other] = [(); 2].map(|()| {
            let bench = Bench::of_node(cluster.node(), limits);
            let mut all = LongPolls::new(times(window));
            all.share(&bench.topics);
            Polls { bench, all }
        });
        let nodes = Self { cluster, own, other };
        nodes.until_up().await;
        nodes
    }

    async fn until_up(&self) {
        for polls in [&self.own, &self.other] {
            let up = polls.bench.topics.until_engine(|state| state == EngineState::Up);
            timeout(DEADLINE, up).await.expect("an engine in time");
        }
    }
}

#[actix_web::test]
async fn a_session_outlives_an_outage_of_the_engine_and_loses_no_frame() {
    let nodes = Nodes::start(DEADLINE).await;
    let id = nodes.own.open();
    let mut fetch = Box::pin(nodes.other.all.poll(id));
    let parked = async {
        while !nodes.own.all.passed.lock().is_waiting(id) {
            assert_eq!((&mut fetch).now_or_never(), None);
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, parked).await.expect("it is passed on in time");
    nodes.cluster.stop();
    assert_eq!((&mut fetch).now_or_never(), None, "it waits for the engine");
    // The session answers the fetch, and the answer is lost.
    assert_eq!(nodes.own.post(id, &["a"]).await, Posted::Done);
    let mut post = Box::pin(nodes.other.post(id, &["b"]));
    assert_eq!((&mut post).now_or_never(), None, "it waits for the engine, too");
    nodes.cluster.start();
    assert_eq!(tokio::join!(fetch, post), (frames(&[]), Posted::Done));
    assert_eq!(nodes.other.all.poll(id).await, frames(&["a", "b"]));
}

#[actix_web::test]
async fn a_fetch_that_begins_without_an_engine_is_answered_when_there_is_one_or_after_its_window() {
    let nodes = Nodes::start(DEADLINE).await;
    let id = nodes.own.open_and_fetch().await;
    nodes.cluster.stop();
    // The session has time; only these requests have none.
    let hasty = LongPolls { times: times(Duration::from_millis(100)), ..nodes.other.all.clone() };
    let both = async { tokio::join!(hasty.poll(id), hasty.post(id, texts(&["a"]))) };
    assert_eq!(both.await, (frames(&[]), Posted::Late));
    let mut fetch = Box::pin(nodes.other.all.poll(id));
    assert_eq!((&mut fetch).now_or_never(), None);
    nodes.cluster.start();
    assert_eq!(fetch.await, frames(&[]));
    assert_eq!(nodes.other.post(id, &["b"]).await, Posted::Done);
    assert_eq!(nodes.other.all.poll(id).await, frames(&["b"]));
}

#[actix_web::test]
async fn a_session_is_gone_if_its_node_does_not_confirm_that_no_frame_is_lost() {
    let nodes = Nodes::start(Duration::from_millis(10)).await;
    let node = nodes.own.bench.topics.node();
    let id = number_on(node);
    nodes.cluster.mute(node, true);
    // The messages may have been handled, so their client is not told that there is no session.
    let both = async { tokio::join!(nodes.other.all.poll(id), nodes.other.post(id, &["a"])) };
    let both = timeout(DEADLINE, both).await.expect("answers in time");
    assert_eq!(both, (Polled::Gone, Posted::Late));
    nodes.cluster.kill(node);
    let both = async { tokio::join!(nodes.other.all.poll(id), nodes.other.post(id, &["a"])) };
    let both = timeout(DEADLINE, both).await.expect("answers in time");
    assert_eq!(both, (Polled::Gone, Posted::Gone), "the node has left");
}

#[actix_web::test]
async fn a_session_ends_if_another_node_cannot_fetch_its_frame() {
    let nodes = Nodes::start(DEADLINE).await;
    let id = nodes.own.open_and_fetch().await;
    let large = "x".repeat(MESSAGE_BYTES_MAX - 64);
    assert_eq!(nodes.own.post(id, &["a", &large, "b"]).await, Posted::Done);
    assert_eq!(nodes.other.all.poll(id).await, frames(&["a"]));
    assert_eq!(nodes.other.all.poll(id).await, frames(&[&large]));
    assert_eq!(nodes.other.all.poll(id).await, frames(&["b"]));
    assert_eq!(nodes.own.post(id, &[&(large + "x")]).await, Posted::Done);
    assert_eq!(nodes.other.all.poll(id).await, Polled::Gone);
    nodes.own.until_none().await;
    let ended = &nodes.own.bench.worker.metrics.sessions_ended;
    assert_eq!(ended.of(SessionEnd::Broken).get(), 1);
}
