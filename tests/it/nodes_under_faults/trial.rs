//! Clients and publishers on several nodes while something breaks, and the check of their observations afterwards.
//!
//! Each node has a client that joins with `since`, one that joins without it, and a publisher over HTTP. A
//! client that loses its connection goes on to the next node.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async, tungstenite::protocol::Message,
};

use crate::support::{
    nodes::{Nodes, until_ready},
    *,
};

const TOPIC: &str = "public:test-app:room";

/// The number of the last publication.
const END: u64 = 999_999_999;

/// The time under load before the fault, and again after it.
const LOAD: Duration = Duration::from_millis(300);

/// The pause of a client before it tries again.
const RETRY: Duration = Duration::from_millis(20);

/// The time within which all clients must have heard the last publication.
const PATIENCE: Duration = Duration::from_secs(60);

/// A position: epoch and offset.
type Position = (String, u64);

fn position(value: &Value) -> Position {
    let text = value.as_str().unwrap_or_else(|| panic!("no position: {value}"));
    let (epoch, offset) = text.split_once(':').expect("epoch and offset");
    (epoch.to_owned(), offset.parse().expect("an offset"))
}

/// An observation of a client.
#[derive(Debug)]
enum Observed {
    /// A join with `since` was answered: where it begins, and why something is missing before that.
    Joined(Position, Option<String>),
    /// An event with its number, and its position where one was asked for.
    Heard(Option<Position>, u64),
}

/// The ports of the nodes that clients and publishers use.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports(Arc<Mutex<Vec<u16>>>);

impl Ports {
    fn nth(&self, nth: usize) -> u16 {
        let ports = self.0.lock().expect("ports");
        ports[nth % ports.len()]
    }

    pub(super) fn set(&self, nth: usize, port: u16) {
        self.0.lock().expect("ports")[nth] = port;
    }
}

/// Publications over HTTP, by their outcome.
#[derive(Debug, Default)]
struct Published {
    accepted: Vec<(u64, Position)>,
    refused: usize,
    /// The node did not answer.
    unanswered: usize,
}

/// Nodes under load.
pub(super) struct Trial {
    pub(super) nodes: Nodes,
    pub(super) ports: Ports,
    publishers: Vec<JoinHandle<Published>>,
    returning: Vec<JoinHandle<Vec<Observed>>>,
    plain: Vec<JoinHandle<Vec<Observed>>>,
    is_over: Arc<AtomicBool>,
}

/// The observations of a trial.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) accepted: usize,
    pub(super) refused: usize,
    pub(super) unanswered: usize,
    /// The reasons of incomplete recoveries, over all clients.
    pub(super) reasons: Vec<String>,
    /// The numbers of all events that clients with `since` have heard.
    pub(super) heard: BTreeSet<u64>,
}

impl Trial {
    /// Puts these nodes under load.
    pub(super) async fn start(nodes: Nodes) -> Self {
        let ports = Ports::default();
        *ports.0.lock().expect("ports") = nodes.servers().map(|server| server.port).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        let count = nodes.all.len();
        let (mut returning, mut plain) = (Vec::new(), Vec::new());
        let joined = Arc::new(tokio::sync::Semaphore::new(0));
        for nth in 0..count {
            returning.push(tokio::spawn(listen(ports.clone(), nth, true, joined.clone())));
            plain.push(tokio::spawn(listen(ports.clone(), nth, false, joined.clone())));
        }
        let all = timeout(PATIENCE, joined.acquire_many(2 * count as u32)).await;
        drop(all.expect("all clients have joined in time"));
        let publishers = (0..count)
            .map(|nth| tokio::spawn(publish(ports.clone(), nth, is_over.clone())))
            .collect();
        tokio::time::sleep(LOAD).await;
        Self { nodes, ports, publishers, returning, plain, is_over }
    }

    /// Waits for each node until it is not ready, and checks that it then refuses triggers.
    pub(super) async fn assert_refused(&self) {
        for server in self.nodes.servers() {
            until_ready(server, false).await;
            for n in 0..3 {
                let answer = trigger(server.port, END + 1 + n).await.expect("an answer");
                assert_eq!(answer.status, 503, "{}", answer.body);
                assert!(answer.header("retry-after").is_some(), "{answer:?}");
            }
        }
    }

    /// Ends the load, and checks the observations: see [`judge`].
    pub(super) async fn judge(self) -> Outcome {
        for server in self.nodes.servers() {
            until_ready(server, true).await;
        }
        tokio::time::sleep(LOAD).await;
        self.is_over.store(true, Relaxed);
        let mut published = Published::default();
        for publisher in self.publishers {
            let of_one = publisher.await.expect("a publisher does not panic");
            published.accepted.extend(of_one.accepted);
            published.refused += of_one.refused;
            published.unanswered += of_one.unanswered;
        }
        let end = async {
            while trigger(self.ports.nth(0), END).await.is_none_or(|answer| answer.status != 200) {
                tokio::time::sleep(RETRY).await;
            }
        };
        timeout(PATIENCE, end).await.expect("the last publication is accepted");
        let (returning, plain) = (heard_by(self.returning).await, heard_by(self.plain).await);
        judge(&published, &returning, &plain)
    }
}

async fn heard_by(clients: Vec<JoinHandle<Vec<Observed>>>) -> Vec<Vec<Observed>> {
    let all = futures_util::future::join_all(clients);
    let all = timeout(PATIENCE, all).await.expect("all clients hear the last publication");
    all.into_iter().map(|client| client.expect("a client does not panic")).collect()
}

async fn trigger(port: u16, n: u64) -> Option<http::Answer> {
    let app = App::seeded();
    let payload = json!({ "n": n });
    let event = json!({ "topic": "room", "event": "msg", "payload": payload, "position": true });
    let url = format!("http://127.0.0.1:{port}/api/apps/test-app/events");
    request("POST", url).basic(&app.key, &app.secret).json(&event).try_send().await
}

async fn publish(ports: Ports, nth: usize, is_over: Arc<AtomicBool>) -> Published {
    let mut published = Published::default();
    for n in nth as u64 * 1_000_000.. {
        if is_over.load(Relaxed) {
            break;
        }
        match trigger(ports.nth(nth), n).await {
            None => published.unanswered += 1,
            Some(answer) if answer.status == 503 => published.refused += 1,
            Some(answer) => {
                assert_eq!(answer.status, 200, "{}", answer.body);
                published.accepted.push((n, position(&answer.json()["position"])));
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    published
}

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(port: u16) -> Option<Stream> {
    let url = format!("ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0");
    let (stream, _) = timeout(Duration::from_secs(2), connect_async(url)).await.ok()?.ok()?;
    Some(stream)
}

async fn join(stream: &mut Stream, returns: bool, since: &str) -> Option<()> {
    let params = if returns { json!({ "since": since }) } else { json!({}) };
    let frame = json!(["1", "1", TOPIC, "phx_join", params]);
    stream.send(Message::text(frame.to_string())).await.ok()
}

/// The next frame; `None` if the connection has ended.
async fn next(stream: &mut Stream) -> Option<Value> {
    loop {
        match stream.next().await?.ok()? {
            Message::Text(text) => return serde_json::from_str(text.as_str()).ok(),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

/// Listens until the last publication has come, however often the connection breaks.
async fn listen(
    ports: Ports,
    nth: usize,
    returns: bool,
    joined: Arc<tokio::sync::Semaphore>,
) -> Vec<Observed> {
    let (mut observed, mut since, mut has_joined) = (Vec::new(), String::new(), false);
    for attempt in nth.. {
        let Some(mut stream) = connect(ports.nth(attempt)).await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        if join(&mut stream, returns, &since).await.is_none() {
            continue;
        }
        while let Some(frame) = next(&mut stream).await {
            match frame[3].as_str() {
                Some("phx_reply") if frame[4]["status"] == "ok" => {
                    if !std::mem::replace(&mut has_joined, true) {
                        joined.add_permits(1);
                    }
                    if returns {
                        let recovery = &frame[4]["response"]["recovery"];
                        let reason = recovery["reason"].as_str().map(str::to_owned);
                        assert_eq!(recovery["complete"], reason.is_none(), "{recovery}");
                        let begin = &recovery["position"];
                        since = begin.as_str().expect("a position").to_owned();
                        observed.push(Observed::Joined(position(begin), reason));
                    }
                }
                Some("phx_reply" | "phx_error") => {
                    tokio::time::sleep(RETRY).await;
                    if join(&mut stream, returns, &since).await.is_none() {
                        break;
                    }
                }
                Some("msg") => {
                    let n = frame[4]["n"].as_u64().expect("a number");
                    let at = returns.then(|| position(&frame[1]));
                    if returns {
                        since = frame[1].as_str().expect("a position").to_owned();
                    }
                    observed.push(Observed::Heard(at, n));
                    if n == END {
                        return observed;
                    }
                }
                _ => {}
            }
        }
    }
    observed
}

/// An uninterrupted piece of the order that a client has heard. The offset `after` is not part of it.
struct Piece {
    epoch: String,
    after: u64,
    up_to: u64,
}

impl Piece {
    fn covers(&self, (epoch, offset): &Position) -> bool {
        self.epoch == *epoch && (self.after < *offset && *offset <= self.up_to)
    }
}

/// The events that a client which returns has heard.
#[derive(Default)]
struct Hearing {
    pieces: Vec<Piece>,
    heard: HashSet<u64>,
    reasons: Vec<String>,
}

impl Hearing {
    /// Reads what a client observed, and adds to the order of all.
    fn of(observed: &[Observed], order: &mut BTreeMap<Position, u64>) -> Self {
        let mut hearing = Self::default();
        for one in observed {
            match one {
                Observed::Joined((epoch, offset), reason) => {
                    match (reason, hearing.pieces.last()) {
                        (None, Some(piece)) => {
                            let so_far = (&piece.epoch, piece.up_to);
                            assert_eq!((epoch, *offset), so_far, "it goes on where it was");
                        }
                        _ => {
                            hearing.reasons.extend(reason.clone());
                            let (epoch, after) = (epoch.clone(), *offset);
                            hearing.pieces.push(Piece { epoch, after, up_to: after });
                        }
                    }
                }
                Observed::Heard(at, n) => {
                    let at = at.clone().expect("positions were asked for");
                    let piece = hearing.pieces.last_mut().expect("a join came before");
                    assert_eq!(piece.epoch, at.0, "another epoch ends the join");
                    assert!(piece.up_to < at.1, "{n} at {at:?} comes after {}", piece.up_to);
                    piece.up_to = at.1;
                    assert!(hearing.heard.insert(*n), "{n} comes once");
                    let known = *order.entry(at.clone()).or_insert(*n);
                    assert_eq!(known, *n, "all hear the same at {at:?}");
                }
            }
        }
        hearing
    }
}

/// Checks that each client has heard all events that were accepted or that another client has heard, in one order
/// and once, or was told that something is missing.
fn judge(published: &Published, returning: &[Vec<Observed>], plain: &[Vec<Observed>]) -> Outcome {
    let mut order = BTreeMap::new();
    let hearings: Vec<_> =
        returning.iter().map(|observed| Hearing::of(observed, &mut order)).collect();
    for (n, at) in &published.accepted {
        if let Some(found) = order.get(at) {
            assert_eq!(found, n, "the position of an answer is that of the event");
        }
    }
    // A client may miss an event only if it was told that something is missing, and if its pieces do not cover it.
    let all = order.iter().map(|(at, n)| (*n, at));
    for (n, at) in all.chain(published.accepted.iter().map(|(n, at)| (*n, at))) {
        for (nth, hearing) in hearings.iter().enumerate() {
            let is_covered = hearing.pieces.iter().any(|piece| piece.covers(at));
            assert!(
                hearing.heard.contains(&n) || (!is_covered && !hearing.reasons.is_empty()),
                "client {nth} hears {n} at {at:?}, or is told that it is missing: {:?}",
                hearing.reasons
            );
        }
    }
    let is_announced = hearings.iter().any(|hearing| !hearing.reasons.is_empty());
    let places: HashMap<u64, &Position> = order.iter().map(|(at, n)| (*n, at)).collect();
    for observed in plain {
        judge_plain(observed, &places, is_announced);
    }
    Outcome {
        accepted: published.accepted.len(),
        refused: published.refused,
        unanswered: published.unanswered,
        reasons: hearings.into_iter().flat_map(|hearing| hearing.reasons).collect(),
        heard: order.values().copied().collect(),
    }
}

/// Checks that a client without `since` has heard no event twice, and its events in the order of all clients.
fn judge_plain(observed: &[Observed], places: &HashMap<u64, &Position>, is_announced: bool) {
    let (mut heard, mut last) = (HashSet::new(), None::<&Position>);
    let mut ended = HashSet::new();
    for one in observed {
        let Observed::Heard(_, n) = one else { continue };
        assert!(heard.insert(*n), "{n} comes once");
        let Some(at) = places.get(n).copied() else {
            assert!(is_announced, "{n} was delivered to one client alone");
            continue;
        };
        if let Some(last) = last {
            if last.0 == at.0 {
                assert!(last.1 < at.1, "{n} at {at:?} comes after {last:?}");
            } else {
                ended.insert(&last.0);
            }
        }
        assert!(!ended.contains(&at.0), "{n} at {at:?} is of an epoch that has ended");
        last = Some(at);
    }
}
