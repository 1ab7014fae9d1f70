//! Several nodes under load while something breaks, and the law that holds afterwards.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::task::JoinHandle;

use super::node_at;
use crate::engine::{
    AppendError, Appended, Engine as _, EngineState, LogEpoch, LogPosition, RedisEngine,
    contract::{self, Event, Heard},
};

const PARTITIONS: u16 = 4;

/// The time under load before and after the fault.
const LOAD: Duration = Duration::from_millis(300);

/// An acknowledged record.
type Acknowledged = (u16, LogPosition, String);

/// Nodes, and what each of them heard.
pub(super) struct Trial {
    pub(super) nodes: Vec<(Arc<RedisEngine>, Arc<Heard>)>,
    publishers: Vec<JoinHandle<(Vec<Acknowledged>, usize)>>,
    is_over: Arc<AtomicBool>,
}

/// The observations of a trial.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) acknowledged: usize,
    pub(super) refused: usize,
    /// The epochs of the first partition.
    pub(super) epochs: usize,
}

impl Trial {
    /// Starts a node for each URL, and publishes through all of them.
    pub(super) async fn start(urls: &[String], more: &[(&str, &str)]) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (mut nodes, mut publishers) = (Vec::new(), Vec::new());
        for url in urls {
            let (node, heard) = (node_at(url, more).await, Heard::new());
            node.follow(heard.clone());
            contract::up(&*node).await;
            nodes.push((node, heard));
        }
        for (number, (node, _)) in nodes.iter().enumerate() {
            publishers.push(tokio::spawn(publish(number, node.clone(), is_over.clone())));
        }
        tokio::time::sleep(LOAD).await;
        Self { nodes, publishers, is_over }
    }

    /// Waits until a node is up, or is not.
    pub(super) async fn until_up(&self, node: usize, is_up: bool) {
        let mut state = self.nodes[node].0.state();
        let wanted = state.wait_for(|state| (*state == EngineState::Up) == is_up);
        let waited = tokio::time::timeout(contract::PATIENCE, wanted).await;
        assert!(waited.is_ok(), "node {node} is up: {is_up}");
    }

    /// Ends the load, and checks the law.
    pub(super) async fn judge(self) -> Outcome {
        for node in 0..self.nodes.len() {
            self.until_up(node, true).await;
        }
        tokio::time::sleep(LOAD).await;
        self.is_over.store(true, Relaxed);
        let (mut acknowledged, mut refused) = (Vec::new(), 0);
        for publisher in self.publishers {
            let (own, failed) = publisher.await.expect("a publisher does not panic");
            acknowledged.extend(own);
            refused += failed;
        }
        for partition in 0..PARTITIONS {
            contract::append(&*self.nodes[0].0, partition, "end").await.expect("it is up");
        }
        let mut order = HashMap::new();
        for (_, heard) in &self.nodes {
            for partition in 0..PARTITIONS {
                let is_end = |body: &String| body == "end";
                heard.until(|told| told.bodies(partition).last().is_some_and(is_end)).await;
                judge_one(heard, partition, &acknowledged, &mut order);
            }
        }
        let epochs = self.nodes[0].1.with(|told| told.epochs(0).len());
        Outcome { acknowledged: acknowledged.len(), refused, epochs }
    }
}

async fn publish(
    number: usize,
    node: Arc<RedisEngine>,
    is_over: Arc<AtomicBool>,
) -> (Vec<Acknowledged>, usize) {
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    for n in 0.. {
        if is_over.load(Relaxed) {
            break;
        }
        let (partition, body) = (n % PARTITIONS, format!("{number}:{n}"));
        match contract::append(&*node, partition, &body).await {
            Ok(Appended::At(at)) => acknowledged.push((partition, at, body)),
            Err(AppendError::Unavailable) => refused += 1,
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (acknowledged, refused)
}

/// Checks that within an epoch every offset came once and in order or is lost, that all nodes agree, and that every
/// acknowledged record came, or another epoch was announced after it.
fn judge_one(
    heard: &Heard,
    partition: u16,
    acknowledged: &[Acknowledged],
    order: &mut HashMap<(u16, LogEpoch, u64), String>,
) {
    let events = heard.with(|told| told.events(partition));
    let mut run: Option<(LogEpoch, u64, u64)> = None;
    let mut lost = Vec::new();
    for event in &events {
        match event {
            Event::NewEpoch(_, epoch, next) => run = Some((*epoch, *next, *next)),
            Event::Record(_, at, _) | Event::Left(_, at, ..) => {
                let (epoch, _, next) = run.as_mut().expect("an epoch has begun");
                assert_eq!((at.epoch, at.offset), (*epoch, *next));
                *next += 1;
            }
            Event::Lost(_, first, end) => {
                let (_, _, next) = run.as_mut().expect("an epoch has begun");
                assert_eq!(first, next);
                *next = *end;
                lost.push((*first, *end));
            }
        }
        if let Event::Record(_, at, body) = event {
            let known = order.entry((partition, at.epoch, at.offset)).or_insert(body.clone());
            assert_eq!(known, body, "two nodes heard different records at {at:?}");
        }
    }
    let (epoch, first, next) = run.expect("an epoch has begun");
    for (_, at, body) in acknowledged.iter().filter(|(of, ..)| *of == partition) {
        let is_announced = at.epoch != epoch
            || at.offset < first
            || lost.iter().any(|(from, to)| (*from..*to).contains(&at.offset));
        if !is_announced {
            let found = order.get(&(partition, epoch, at.offset));
            assert!(at.offset < next && found == Some(body), "{body} at {at:?} was heard");
        }
    }
}
