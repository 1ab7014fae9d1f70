//! Members come, change and go on three nodes, one of which is killed again and again. In the end every client sees
//! exactly the members that are there, and Redis lists no others.
//!
//! The test runs for four seconds, or as long as `HERALD_TEST_SECONDS` says.

use std::{
    collections::BTreeMap,
    env,
    panic::resume_unwind,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _, SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async, tungstenite::protocol::Message,
};

use super::NODES;
use crate::support::{
    nodes::{Nodes, until, until_ready},
    picture::New,
    presence::{ROOM, ticket_of},
    redis_server::RedisServer,
    *,
};

/// The number of keys. A key may have several members.
const KEYS: u64 = 12;

/// The most members that are there at the same time.
const MEMBERS_MAX: usize = 40;

/// The time between two kills of a node.
const KILL_EVERY: Duration = Duration::from_millis(1_500);

/// The pause after each change.
const PAUSE: Duration = Duration::from_millis(10);

/// The number of members of each key.
type Counts = BTreeMap<String, usize>;

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A client that has joined the room, and keeps its picture of the members.
struct Member {
    key: String,
    node: usize,
    writes: SplitSink<Stream, Message>,
    reads: JoinHandle<()>,
    picture: Arc<Mutex<New>>,
}

impl Member {
    async fn enter(server: &TestServer, node: usize, key: String) -> Self {
        let url = format!("ws://127.0.0.1:{}/socket/websocket?vsn=2.0.0", server.port);
        let (stream, _) = connect_async(url).await.expect("a connection");
        let (mut writes, reads) = stream.split();
        let picture = Arc::new(Mutex::new(New::default()));
        let reads = tokio::spawn(read(reads, picture.clone()));
        let join = json!(["1", "1", ROOM, "phx_join", ticket_of(&key)]);
        writes.send(Message::text(join.to_string())).await.expect("it is sent");
        Self { key, node, writes, reads, picture }
    }

    async fn push(&mut self, event: &str, payload: Value) {
        let frame = json!(["1", "2", ROOM, event, payload]);
        self.writes.send(Message::text(frame.to_string())).await.expect("it is sent");
    }

    fn counts(&self) -> Counts {
        let picture = self.picture.lock().expect("a picture");
        let members = picture.picture().iter();
        members.map(|(key, metas)| (key.clone(), metas.len())).collect()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // The connection is closed with its two halves.
        self.reads.abort();
        // A failure while reading is a failure of the test.
        if let Some(Err(error)) = (&mut self.reads).now_or_never()
            && error.is_panic()
            && !thread::panicking()
        {
            resume_unwind(error.into_panic());
        }
    }
}

/// Reads until the connection ends.
async fn read(mut reads: SplitStream<Stream>, picture: Arc<Mutex<New>>) {
    while let Some(Ok(message)) = reads.next().await {
        let Message::Text(text) = message else { continue };
        let frame: Value = serde_json::from_str(text.as_str()).expect("JSON");
        let mut picture = picture.lock().expect("a picture");
        match frame[3].as_str() {
            Some("presence_state") => picture.state(&frame[4], 1),
            Some("presence_diff") => picture.diff(&frame[4], 1),
            Some("phx_reply") => assert_eq!(frame[4]["status"], "ok", "{frame}"),
            _ => panic!("no join ends: {frame}"),
        }
    }
}

/// A random number below `end`.
fn below(end: u64) -> u64 {
    (uuid::Uuid::new_v4().as_u128() % u128::from(end)) as u64
}

/// The number of members of each key.
fn expected(members: &[Member]) -> Counts {
    let mut counts = Counts::new();
    for member in members {
        *counts.entry(member.key.clone()).or_default() += 1;
    }
    counts
}

/// The number of members that Redis lists.
fn listed(redis: &RedisServer) -> usize {
    let places: Vec<String> = redis.ask(&["KEYS", "*:m:*"]);
    places.iter().map(|place| redis.ask::<usize>(&["HLEN", place])).sum()
}

/// The counts that a node answers; `None` if it cannot answer now.
async fn counts_at(server: &TestServer) -> Option<Counts> {
    let app = App::seeded();
    let call = http::request("GET", server.url("/api/apps/test-app/channels/presence/room"));
    let answer = call.basic(&app.key, &app.secret).send().await;
    // The node may still ask one that was killed a moment ago, and refuse.
    let members = (answer.status == 200).then(|| answer.json()["data"]["members"].clone())?;
    let count = |metas: &Value| metas["metas"].as_array().map_or(0, Vec::len);
    let members = members.as_object().expect("members").iter();
    Some(members.map(|(key, metas)| (key.clone(), count(metas))).collect())
}

#[tokio::test]
async fn members_that_come_and_go_while_nodes_die_leave_nobody_behind() {
    let seconds = env::var("HERALD_TEST_SECONDS").ok();
    let seconds = seconds.map_or(4, |seconds| seconds.parse().expect("a number of seconds"));
    let redis = RedisServer::start(&[]);
    let mut nodes = Nodes::start_on(&vec![redis.url(); NODES], &[]);
    let (mut members, mut changes, mut kills) = (Vec::<Member>::new(), 0, 0);
    let (end, mut killed) = (Instant::now() + Duration::from_secs(seconds), Instant::now());
    while Instant::now() < end {
        let nth = below(members.len().max(1) as u64) as usize;
        match below(6) {
            0 | 1 if !members.is_empty() => {
                let mut member = members.swap_remove(nth);
                // Half of the members leave; the others only close their connections.
                if below(2) == 0 {
                    // Nobody reads the answer, nor the end of the join.
                    member.reads.abort();
                    member.push("phx_leave", json!({})).await;
                }
            }
            2 if !members.is_empty() => {
                members[nth].push("presence_metadata", json!({ "custom": changes })).await;
            }
            _ if members.len() < MEMBERS_MAX => {
                let (node, key) = (below(NODES as u64) as usize, format!("k{}", below(KEYS)));
                members.push(Member::enter(nodes.server(node), node, key).await);
            }
            _ => {}
        }
        changes += 1;
        if killed.elapsed() > KILL_EVERY {
            let node = below(NODES as u64) as usize;
            let next = nodes.another(&redis.url());
            until_ready(&next.server, true).await;
            drop(std::mem::replace(&mut nodes.all[node], next).crash());
            members.retain(|member| member.node != node);
            (killed, kills) = (Instant::now(), kills + 1);
        }
        tokio::time::sleep(PAUSE).await;
    }
    assert!(kills > 0 && changes > 20, "{kills} kills, {changes} changes");
    let expected = expected(&members);
    until("Redis lists the members that are there", async || listed(&redis) == members.len()).await;
    for server in nodes.servers() {
        until("a node counts them", async || counts_at(server).await.as_ref() == Some(&expected))
            .await;
    }
    until("all clients see them", async || {
        members.iter().all(|member| member.counts() == expected)
    })
    .await;
    members.clear();
    until("nobody is left", async || listed(&redis) == 0).await;
}
