//! The contract of engines: tests that every engine passes, and the follower that they use.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    Append, AppendError, Appended, Engine, EngineState, Flow, Follower, Incarnation, LogEpoch,
    LogPosition, Logged, MemberChange, NodeId, NodeInfo, Partition, Record, Terms,
};

/// The longest time that a test waits for something that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The server that several nodes share.
pub(crate) trait Servers {
    /// Adds a node.
    fn node(&self) -> BoxFuture<'_, Arc<dyn Engine>>;

    /// Lets a node die.
    fn kill(&self, node: NodeId);
}

/// Everything that a follower has received, in order.
#[derive(Debug, Default)]
pub(crate) struct Told {
    events: Vec<Event>,
    pause: bool,
    told: Vec<(NodeId, String)>,
    told_lost: usize,
    live: Vec<NodeId>,
    incarnations: Vec<Incarnation>,
    asked: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Record(Partition, LogPosition, String),
    NewEpoch(Partition, LogEpoch, u64),
    Lost(Partition, u64, u64),
    Left(Partition, LogPosition, NodeId, Incarnation),
}

impl Told {
    pub(crate) fn events(&self, partition: u16) -> Vec<Event> {
        let is_of = |event: &&Event| match event {
            Event::Record(of, ..)
            | Event::NewEpoch(of, ..)
            | Event::Lost(of, ..)
            | Event::Left(of, ..) => of.0 == partition,
        };
        self.events.iter().filter(is_of).cloned().collect()
    }

    pub(crate) fn bodies(&self, partition: u16) -> Vec<String> {
        let events = self.events.iter();
        let bodies = events.filter_map(|event| match event {
            Event::Record(of, _, body) if of.0 == partition => Some(body.clone()),
            _ => None,
        });
        bodies.collect()
    }

    pub(crate) fn positions(&self, partition: u16) -> Vec<LogPosition> {
        let events = self.events.iter();
        let positions = events.filter_map(|event| match event {
            Event::Record(of, at, _) | Event::Left(of, at, ..) if of.0 == partition => Some(*at),
            _ => None,
        });
        positions.collect()
    }

    pub(crate) fn last_offset(&self, partition: u16) -> u64 {
        self.positions(partition).last().map_or(0, |at| at.offset)
    }

    pub(crate) fn epochs(&self, partition: u16) -> Vec<(LogEpoch, u64)> {
        let events = self.events.iter();
        let epochs = events.filter_map(|event| match event {
            Event::NewEpoch(of, epoch, next) if of.0 == partition => Some((*epoch, *next)),
            _ => None,
        });
        epochs.collect()
    }

    pub(crate) fn lost(&self, partition: u16) -> Vec<(u64, u64)> {
        let events = self.events.iter();
        let lost = events.filter_map(|event| match event {
            Event::Lost(of, first, next) if of.0 == partition => Some((*first, *next)),
            _ => None,
        });
        lost.collect()
    }

    pub(crate) fn left(&self) -> Vec<(NodeId, Incarnation)> {
        let events = self.events.iter();
        let left = events.filter_map(|event| match event {
            Event::Left(_, _, node, incarnation) => Some((*node, *incarnation)),
            _ => None,
        });
        left.collect()
    }

    pub(crate) fn told(&self) -> &[(NodeId, String)] {
        &self.told
    }

    pub(crate) fn told_lost(&self) -> usize {
        self.told_lost
    }

    pub(crate) fn live(&self) -> &[NodeId] {
        &self.live
    }

    pub(crate) fn incarnations(&self) -> Vec<Incarnation> {
        self.incarnations.clone()
    }

    /// The nodes that have asked this one.
    pub(crate) fn asked(&self) -> Vec<NodeId> {
        self.asked.clone()
    }
}

/// A follower that records everything.
#[derive(Debug)]
pub(crate) struct Heard {
    told: Mutex<Told>,
    changes: watch::Sender<()>,
}

impl Heard {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { told: Mutex::default(), changes: watch::Sender::new(()) })
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock())
    }

    fn add(&self, add: impl FnOnce(&mut Told)) {
        add(&mut self.told.lock());
        self.changes.send_replace(());
    }

    /// Pauses the partition of the next records after it has taken them.
    pub(crate) fn pause_after_next(&self) {
        self.add(|told| told.pause = true);
    }

    /// Waits until a condition holds.
    pub(crate) async fn until(&self, is_so: impl Fn(&Told) -> bool) {
        let mut changes = self.changes.subscribe();
        let waited = tokio::time::timeout(PATIENCE, changes.wait_for(|()| self.with(&is_so)));
        let is_done = waited.await.is_ok();
        assert!(is_done, "waited in vain; heard: {:?}", self.with(|told| format!("{told:?}")));
    }
}

impl Follower for Heard {
    fn records(&self, partition: Partition, epoch: LogEpoch, records: &[Logged]) -> Flow {
        let mut flow = Flow::Continue;
        self.add(|told| {
            for Logged { offset, body, .. } in records {
                let at = LogPosition { epoch, offset: *offset };
                let body = String::from_utf8_lossy(body).into_owned();
                told.events.push(Event::Record(partition, at, body));
            }
            if std::mem::take(&mut told.pause) {
                flow = Flow::Pause;
            }
        });
        flow
    }

    fn new_epoch(&self, partition: Partition, epoch: LogEpoch, next_offset: u64) {
        self.add(|told| told.events.push(Event::NewEpoch(partition, epoch, next_offset)));
    }

    fn lost(&self, partition: Partition, _epoch: LogEpoch, first: u64, next: u64) {
        self.add(|told| told.events.push(Event::Lost(partition, first, next)));
    }

    fn members_left(
        &self,
        partition: Partition,
        at: LogPosition,
        node: NodeId,
        incarnation: Incarnation,
    ) {
        self.add(|told| told.events.push(Event::Left(partition, at, node, incarnation)));
    }

    fn reincarnated(&self, incarnation: Incarnation) {
        self.add(|told| told.incarnations.push(incarnation));
    }

    fn told(&self, from: NodeId, message: Bytes) {
        let message = String::from_utf8_lossy(&message).into_owned();
        self.add(|told| told.told.push((from, message)));
    }

    fn told_lost(&self) {
        self.add(|told| told.told_lost += 1);
    }

    fn asked(&self, from: NodeId, question: Bytes) -> BoxFuture<'static, Bytes> {
        let question = String::from_utf8_lossy(&question).into_owned();
        self.add(|told| told.asked.push(from));
        Box::pin(async move {
            if question == "never" {
                std::future::pending::<()>().await;
            }
            format!("{question} of {}", from.0).into()
        })
    }

    fn nodes_changed(&self, live: &[NodeInfo]) {
        self.add(|told| told.live = live.iter().map(|info| info.node).collect());
    }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

pub(crate) fn record(body: &str) -> Record {
    Record { scope: Bytes::from_static(b"scope"), body: Bytes::copy_from_slice(body.as_bytes()) }
}

pub(crate) async fn append(
    node: &dyn Engine,
    partition: u16,
    body: &str,
) -> Result<Appended, AppendError> {
    node.append(Partition(partition), Append::records(vec![record(body)]), soon()).await
}

pub(crate) async fn put(
    node: &dyn Engine,
    partition: u16,
    place: &str,
    member: &str,
    members_max: u32,
) -> Result<Appended, AppendError> {
    let [place, name] = [place, member].map(|text| Bytes::copy_from_slice(text.as_bytes()));
    let change = MemberChange::Put { place, member: name.clone(), value: name, members_max };
    let records = vec![record(&format!("+{member}"))];
    let append = Append { records, terms: Terms::Member(change) };
    node.append(Partition(partition), append, soon()).await
}

pub(crate) async fn remove(
    node: &dyn Engine,
    partition: u16,
    place: &str,
    member: &str,
) -> Result<Appended, AppendError> {
    let [place, name] = [place, member].map(|text| Bytes::copy_from_slice(text.as_bytes()));
    let change = MemberChange::Remove { place, member: name };
    let records = vec![record(&format!("-{member}"))];
    let append = Append { records, terms: Terms::Member(change) };
    node.append(Partition(partition), append, soon()).await
}

pub(crate) async fn members(node: &dyn Engine, partition: u16, place: &str) -> Vec<String> {
    let place = Bytes::copy_from_slice(place.as_bytes());
    let snapshot = node.members(Partition(partition), place, soon()).await.expect("members");
    let members = snapshot.members.into_iter();
    let mut names: Vec<_> =
        members.map(|m| String::from_utf8_lossy(&m.member).into_owned()).collect();
    names.sort();
    names
}

pub(crate) async fn up(node: &dyn Engine) {
    let mut state = node.state();
    let waited = state.wait_for(|state| *state == EngineState::Up);
    let waited = tokio::time::timeout(PATIENCE, waited).await;
    assert!(waited.is_ok(), "the engine is up in time");
}

/// A node with a follower that has read the log.
pub(crate) async fn followed(servers: &dyn Servers) -> (Arc<dyn Engine>, Arc<Heard>) {
    let (node, heard) = (servers.node().await, Heard::new());
    node.follow(heard.clone());
    up(&*node).await;
    (node, heard)
}

pub(crate) mod cases {
    use super::*;
    use crate::engine::{NodeUnanswered, OnceKey};

    pub(crate) async fn all_nodes_hear_all_records_in_one_order(servers: &dyn Servers) {
        let (a, heard_a) = followed(servers).await;
        let (b, heard_b) = followed(servers).await;
        let publish = async |node: &dyn Engine, name: &str| {
            for n in 0..50 {
                append(node, n % 4, &format!("{name}{n}")).await.expect("appended");
            }
        };
        tokio::join!(publish(&*a, "a"), publish(&*b, "b"), publish(&*a, "c"));

        for partition in 0..4 {
            let count = |told: &Told| told.bodies(partition).len();
            let expected = (0..50).filter(|n| n % 4 == partition).count() * 3;
            heard_a.until(|told| count(told) >= expected).await;
            heard_b.until(|told| count(told) >= expected).await;
            let [heard_a, heard_b] = [&heard_a, &heard_b].map(|heard| {
                heard.with(|told| (told.bodies(partition), told.positions(partition)))
            });
            assert_eq!(heard_a, heard_b);
            let offsets: Vec<_> = heard_a.1.iter().map(|at| at.offset).collect();
            assert_eq!(offsets, (1..=expected as u64).collect::<Vec<_>>());
        }
    }

    pub(crate) async fn an_append_is_answered_with_its_position(servers: &dyn Servers) {
        let (node, heard) = followed(servers).await;
        let records = vec![record("a"), record("b")];
        let first = node.append(Partition(1), Append::records(records), soon()).await;
        let second = append(&*node, 1, "c").await;
        heard.until(|told| told.bodies(1) == ["a", "b", "c"]).await;
        let at = heard.with(|told| told.positions(1));
        assert_eq!(first, Ok(Appended::At(at[0])));
        assert_eq!(second, Ok(Appended::At(at[2])));
    }

    pub(crate) async fn a_node_that_starts_reads_what_is_retained(servers: &dyn Servers) {
        let (node, _heard) = followed(servers).await;
        for body in ["a", "b"] {
            append(&*node, 0, body).await.expect("appended");
        }
        let (_late, late) = followed(servers).await;
        assert_eq!(late.with(|told| told.bodies(0)), ["a", "b"], "all is read before it is up");
        append(&*node, 0, "c").await.expect("appended");
        late.until(|told| told.bodies(0) == ["a", "b", "c"]).await;
    }

    pub(crate) async fn a_key_appends_once_on_whichever_node(servers: &dyn Servers) {
        let (a, heard) = followed(servers).await;
        let (b, _heard) = followed(servers).await;
        let once = |body: &str, key: &'static str, note: &'static str| Append {
            records: vec![record(body)],
            terms: Terms::Once(OnceKey {
                id: Bytes::from_static(key.as_bytes()),
                note: Bytes::from_static(note.as_bytes()),
                ttl: Duration::from_secs(60),
            }),
        };
        let first = a.append(Partition(0), once("a", "k", "n"), soon()).await.expect("appended");
        let Appended::At(at) = first else { panic!("{first:?}") };
        let again = b.append(Partition(0), once("b", "k", "m"), soon()).await;
        assert_eq!(again, Ok(Appended::Repeated { at, note: Bytes::from_static(b"n") }));
        let other = b.append(Partition(0), once("c", "l", ""), soon()).await;
        assert!(matches!(other, Ok(Appended::At(_))), "{other:?}");
        heard.until(|told| told.bodies(0) == ["a", "c"]).await;
    }

    pub(crate) async fn a_key_without_records_is_remembered_and_is_no_part_of_the_log(
        servers: &dyn Servers,
    ) {
        let (a, heard_a) = followed(servers).await;
        let (b, heard_b) = followed(servers).await;
        let claim = async |node: &dyn Engine, key: String, note: &'static str| {
            let (id, note) = (Bytes::from(key), Bytes::from_static(note.as_bytes()));
            let terms = Terms::Once(OnceKey { id, note, ttl: Duration::from_secs(60) });
            node.append(Partition(0), Append { records: vec![], terms }, soon()).await
        };
        // The nodes take turns, so that records of one node come right after a key of the other.
        for n in 0..40 {
            let body = n.to_string();
            let claimed = claim(&*a, format!("k{n}"), "n");
            let (claimed, appended) = tokio::join!(claimed, append(&*b, 0, &body));
            assert!(matches!(claimed, Ok(Appended::At(_))), "{claimed:?}");
            appended.expect("appended");
            let again = claim(&*b, format!("k{n}"), "m").await;
            assert!(
                matches!(&again, Ok(Appended::Repeated { note, .. }) if note == "n"),
                "{again:?}"
            );
        }
        for heard in [heard_a, heard_b] {
            heard.until(|told| told.bodies(0).len() == 40).await;
            let (epochs, lost) = heard.with(|told| (told.epochs(0).len(), told.lost(0)));
            assert_eq!((epochs, lost), (1, vec![]));
            assert_eq!(heard.with(|told| told.last_offset(0)), 40);
        }
    }

    pub(crate) async fn one_of_many_with_the_same_key_is_appended(servers: &dyn Servers) {
        let (node, heard) = followed(servers).await;
        let once = || {
            Terms::Once(OnceKey {
                id: Bytes::from_static(b"k"),
                note: Bytes::new(),
                ttl: Duration::from_secs(60),
            })
        };
        let appends = (0..20).map(|n| {
            let records = vec![record(&format!("{n}"))];
            node.append(Partition(0), Append { records, terms: once() }, soon())
        });
        let appended = futures_util::future::join_all(appends).await;
        let count = appended.iter().filter(|a| matches!(a, Ok(Appended::At(_)))).count();
        assert_eq!(count, 1, "{appended:?}");
        append(&*node, 0, "end").await.expect("appended");
        heard.until(|told| told.bodies(0).last().is_some_and(|body| body == "end")).await;
        assert_eq!(heard.with(|told| told.bodies(0).len()), 2);
    }

    pub(crate) async fn an_append_that_is_too_large_is_refused(servers: &dyn Servers) {
        let (node, _heard) = followed(servers).await;
        let large = Record { scope: Bytes::from(vec![0; 2_000]), body: Bytes::new() };
        for records in [vec![], vec![large]] {
            let refused = node.append(Partition(0), Append::records(records), soon()).await;
            assert_eq!(refused, Err(AppendError::TooLarge));
        }
        append(&*node, 0, &"x".repeat(3 << 20)).await.expect("three megabytes are not too much");
    }

    pub(crate) async fn members_change_with_the_log(servers: &dyn Servers) {
        let (a, _heard) = followed(servers).await;
        let (b, heard) = followed(servers).await;
        put(&*a, 2, "room", "x", 2).await.expect("put");
        put(&*b, 2, "room", "y", 2).await.expect("put");
        assert_eq!(put(&*b, 2, "room", "z", 2).await, Err(AppendError::PlaceFull));
        put(&*a, 2, "room", "x", 2).await.expect("a member may change in a full place");
        assert_eq!(members(&*a, 2, "room").await, ["x", "y"]);
        assert_eq!(members(&*a, 2, "other").await, Vec::<String>::new());
        remove(&*b, 2, "room", "x").await.expect("of another node: nothing is removed");
        assert_eq!(members(&*a, 2, "room").await, ["x", "y"]);
        remove(&*a, 2, "room", "x").await.expect("removed");
        let place = Bytes::from_static(b"room");
        let snapshot = a.members(Partition(2), place, soon()).await.expect("members");
        assert_eq!(snapshot.members.len(), 1);
        assert_eq!(snapshot.members[0].node, b.node());
        assert_eq!(snapshot.members[0].incarnation, b.incarnation());
        heard.until(|told| told.bodies(2) == ["+x", "+y", "+x", "-x", "-x"]).await;
        assert_eq!(heard.with(|told| told.last_offset(2)) + 1, snapshot.at.offset);
    }

    pub(crate) async fn the_members_of_a_dead_node_leave_once(servers: &dyn Servers) {
        let (a, heard) = followed(servers).await;
        let (b, _heard) = followed(servers).await;
        let (c, heard_c) = followed(servers).await;
        heard.until(|told| told.live() == sorted([a.node(), b.node(), c.node()])).await;
        put(&*b, 2, "room", "x", 9).await.expect("put");
        put(&*b, 3, "hall", "x", 9).await.expect("put");
        put(&*a, 2, "room", "y", 9).await.expect("put");
        let dead = (b.node(), b.incarnation());

        servers.kill(b.node());

        heard.until(|told| told.live() == sorted([a.node(), c.node()])).await;
        for heard in [&heard, &heard_c] {
            heard.until(|told| told.left() == [dead, dead]).await;
        }
        assert_eq!(members(&*a, 2, "room").await, ["y"]);
        assert_eq!(members(&*a, 3, "hall").await, Vec::<String>::new());
    }

    pub(crate) async fn the_members_of_a_node_that_leaves_go_at_once(servers: &dyn Servers) {
        let (a, heard) = followed(servers).await;
        let (b, _heard) = followed(servers).await;
        put(&*b, 1, "room", "x", 9).await.expect("put");
        let gone = (b.node(), b.incarnation());
        b.leave(soon()).await;
        assert_eq!(members(&*a, 1, "room").await, Vec::<String>::new());
        heard.until(|told| told.left() == [gone] && told.live() == [a.node()]).await;
    }

    pub(crate) async fn every_node_is_told(servers: &dyn Servers) {
        let (a, heard_a) = followed(servers).await;
        let (_b, heard_b) = followed(servers).await;
        a.tell(Bytes::from_static(b"one"), soon()).await.expect("told");
        a.tell(Bytes::from_static(b"two"), soon()).await.expect("told");
        let expected = [(a.node(), "one".to_owned()), (a.node(), "two".to_owned())];
        for heard in [heard_a, heard_b] {
            heard.until(|told| told.told() == expected).await;
        }
        let (_late, late) = followed(servers).await;
        a.tell(Bytes::from_static(b"three"), soon()).await.expect("told");
        late.until(|told| !told.told().is_empty()).await;
        assert_eq!(late.with(|told| told.told().to_vec()), [(a.node(), "three".to_owned())]);
    }

    pub(crate) async fn every_live_node_is_asked_and_answers(servers: &dyn Servers) {
        let (a, heard) = followed(servers).await;
        let (b, _heard) = followed(servers).await;
        let both = sorted([a.node(), b.node()]);
        heard.until(|told| told.live() == both).await;
        let answers = a.ask(None, Bytes::from_static(b"q"), soon()).await.expect("answers");
        let expected: Vec<_> =
            both.iter().map(|node| (*node, Bytes::from(format!("q of {}", a.node().0)))).collect();
        assert_eq!(answers, expected);
        let one = a.ask(Some(b.node()), Bytes::from_static(b"q"), soon()).await;
        assert_eq!(one, Ok(vec![(b.node(), expected[0].1.clone())]));
        let nobody = a.ask(Some(NodeId(u16::MAX)), Bytes::from_static(b"q"), soon()).await;
        assert_eq!(nobody, Err(NodeUnanswered));
        let begun = Instant::now();
        let late = begun + Duration::from_millis(200);
        assert_eq!(a.ask(None, Bytes::from_static(b"never"), late).await, Err(NodeUnanswered));
        assert!((200..5_000).contains(&begun.elapsed().as_millis()));
    }

    pub(crate) async fn a_paused_partition_continues_where_it_was(servers: &dyn Servers) {
        let (node, heard) = followed(servers).await;
        heard.pause_after_next();
        append(&*node, 0, "a").await.expect("appended");
        heard.until(|told| told.bodies(0) == ["a"]).await;
        for body in ["b", "c"] {
            append(&*node, 0, body).await.expect("appended");
        }
        append(&*node, 1, "other").await.expect("appended");
        heard.until(|told| told.bodies(1) == ["other"]).await;
        assert_eq!(heard.with(|told| told.bodies(0)), ["a"]);
        node.resume(Partition(0));
        heard.until(|told| told.bodies(0) == ["a", "b", "c"]).await;
    }

    pub(crate) async fn nodes_see_how_each_node_describes_itself(servers: &dyn Servers) {
        let (a, _heard) = followed(servers).await;
        let (b, heard) = followed(servers).await;
        a.describe(Bytes::from_static(b"version 1"));
        let info = || {
            let nodes = b.nodes();
            nodes.iter().find(|info| info.node == a.node()).map(|info| info.info.clone())
        };
        heard.until(|_| info() == Some(Bytes::from_static(b"version 1"))).await;
    }

    fn sorted<const N: usize>(mut nodes: [NodeId; N]) -> Vec<NodeId> {
        nodes.sort();
        nodes.to_vec()
    }
}

/// Makes a test of each case, over the servers that an expression makes.
macro_rules! suite {
    ($servers:expr) => {
        $crate::engine::contract::suite!(@cases $servers;
            all_nodes_hear_all_records_in_one_order,
            an_append_is_answered_with_its_position,
            a_node_that_starts_reads_what_is_retained,
            a_key_appends_once_on_whichever_node,
            a_key_without_records_is_remembered_and_is_no_part_of_the_log,
            one_of_many_with_the_same_key_is_appended,
            an_append_that_is_too_large_is_refused,
            members_change_with_the_log,
            the_members_of_a_dead_node_leave_once,
            the_members_of_a_node_that_leaves_go_at_once,
            every_node_is_told,
            every_live_node_is_asked_and_answers,
            a_paused_partition_continues_where_it_was,
            nodes_see_how_each_node_describes_itself,
        );
    };
    (@cases $servers:expr; $($case:ident,)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let servers = $servers;
                $crate::engine::contract::cases::$case(&servers).await;
            }
        )*
    };
}
pub(crate) use suite;
