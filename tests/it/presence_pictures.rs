//! After any sequence of steps on a presence channel, the members that each client knows, its *picture*, are those
//! that the server has.

use std::{collections::BTreeMap, time::Duration};

use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    picture::{New, Old, Picture, references},
    presence::{ROOM, ticket_of},
    *,
};

/// The version and the transport of each client.
const CLIENTS: [&str; 6] = [V2, V1, V2, V1, V2_POLLED, V1_POLLED];

/// The window of long-poll. A session ends after 1.5 windows without a fetch, and the clients of this test fetch
/// only when a step lets them read.
const PATIENCE: Duration = Duration::from_secs(19);

/// The key of the client that joins last. The pictures of the others are compared with its own.
const WITNESS: &str = "witness";

/// A step of one client. Clients read only where the step says so, or where they must.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A client joins under a key, or joins anew, and reads nothing yet.
    Join(usize, u8),
    /// It changes its `custom`.
    Update(usize),
    /// It leaves, and reads until that is answered.
    Leave(usize),
    /// Its connection is cut.
    Vanish(usize),
    /// It closes its connection with a close frame.
    Close(usize),
    /// It sends a heartbeat, and reads until that is answered.
    Read(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = 0..CLIENTS.len();
    let step = prop_oneof![
        6 => (client.clone(), 0_u8..3).prop_map(|(client, key)| Step::Join(client, key)),
        4 => client.clone().prop_map(Step::Update),
        2 => client.clone().prop_map(Step::Leave),
        1 => client.clone().prop_map(Step::Vanish),
        1 => client.clone().prop_map(Step::Close),
        4 => client.prop_map(Step::Read),
    ];
    proptest::collection::vec(step, 20..80)
}

/// A page with one channel, as clients of both kinds keep it.
struct Client {
    way: &'static str,
    socket: Option<Socket>,
    /// The ref of its last join.
    join_ref: u32,
    /// The ref of its last message.
    asked: u32,
    /// The key under which it is joined, and its `custom`.
    joined: Option<(String, Value)>,
    old: Old,
    new: New,
}

impl Client {
    fn new(way: &'static str) -> Self {
        let (old, new) = Default::default();
        Self { way, socket: None, join_ref: 0, asked: 0, joined: None, old, new }
    }

    async fn take(&mut self, server: &TestServer, step: Step, nth: usize) {
        match step {
            Step::Join(_, key) => self.joins(server, &format!("k{key}")).await,
            Step::Update(_) => {
                let Some((_, custom)) = &mut self.joined else { return };
                *custom = json!(nth);
                self.asked += 1;
                self.push("presence_metadata", json!({ "custom": nth })).await;
            }
            Step::Leave(_) if self.joined.take().is_some() => {
                self.asked += 1;
                self.push("phx_leave", json!({})).await;
                self.read_until(self.asked).await;
                // A page that comes back to it has a new channel, and a new picture.
                (self.old, self.new) = Default::default();
            }
            Step::Vanish(_) if !self.way.ends_with("polled") => {
                self.reads_its_state().await;
                self.joined = None;
                self.socket = None;
            }
            Step::Close(_) if !self.way.ends_with("polled") => {
                self.reads_its_state().await;
                self.joined = None;
                if let Some(mut socket) = self.socket.take() {
                    socket.send(Message::Close(None)).await;
                }
            }
            Step::Read(_) if self.socket.is_some() => {
                self.asked += 1;
                let reference = self.asked.to_string();
                let heartbeat = json!([null, reference, "phoenix", "heartbeat", {}]);
                self.socket().push(heartbeat).await;
                self.read_until(self.asked).await;
            }
            _ => {}
        }
    }

    /// Joins, or joins anew, and reads nothing yet. The picture stays, also over reconnects.
    async fn joins(&mut self, server: &TestServer, key: &str) {
        if self.socket.is_none() {
            let mut socket = Socket::connect(server, self.way).await;
            // A long-poll session that has not fetched yet would end after half a window.
            socket.assert_quiet().await;
            self.socket = Some(socket);
        }
        self.asked += 1;
        self.join_ref = self.asked;
        self.joined = Some((key.to_owned(), Value::Null));
        self.push("phx_join", ticket_of(key)).await;
    }

    /// Reads until it has the state of its last join. A client from 1.4 on keeps the changes that come
    /// before this state, to apply them after it. If its connection is cut before the state comes, it
    /// applies them after the state of its next join, and nothing that a server sends could undo them.
    async fn reads_its_state(&mut self) {
        while self.joined.is_some() && !self.new.is_synced(self.join_ref) {
            self.read().await;
        }
    }

    fn socket(&mut self) -> &mut Socket {
        self.socket.as_mut().expect("a connection")
    }

    async fn push(&mut self, event: &str, payload: Value) {
        let (join_ref, reference) = (self.join_ref.to_string(), self.asked.to_string());
        let join_ref = if self.way.starts_with('2') { json!(join_ref) } else { json!(null) };
        self.socket().push(json!([join_ref, reference, ROOM, event, payload])).await;
    }

    /// Reads up to the reply to what it asked under this ref.
    async fn read_until(&mut self, asked: u32) {
        let asked = asked.to_string();
        loop {
            let frame = self.read().await;
            if frame[3] == "phx_reply" && frame[1] == asked {
                assert_eq!(frame[4]["status"], "ok", "{frame}");
                return;
            }
        }
    }

    /// Reads one frame and applies it as phoenix.js does.
    async fn read(&mut self) -> Value {
        let frame = self.socket().next().await;
        // Newer clients drop frames that carry the ref of a join that they have replaced.
        let is_stale =
            !frame[0].is_null() && frame[0].as_str() != Some(&*self.join_ref.to_string());
        match frame[3].as_str() {
            Some("presence_state") => {
                self.old.state(&frame[4]);
                if !is_stale {
                    self.new.state(&frame[4], self.join_ref);
                }
            }
            Some("presence_diff") => {
                self.old.diff(&frame[4]);
                self.new.diff(&frame[4], self.join_ref);
            }
            Some("phx_reply") => assert_eq!(frame[4]["status"], "ok", "{frame}"),
            Some("phx_close") => {}
            _ => panic!("nothing else is sent: {frame}"),
        }
        frame
    }

    /// Reads until both pictures show the expected members.
    async fn settle(&mut self, expected: &Shown) {
        let settled = async {
            while shown(self.old.picture()) != *expected || shown(self.new.picture()) != *expected {
                self.read().await;
            }
        };
        if timeout(DEADLINE, settled).await.is_err() {
            let (old, new) = (self.old.picture(), self.new.picture());
            panic!("{}: {expected:?} is not what is seen: {old:?} {new:?}", self.way);
        }
    }
}

/// Keys with the `custom` of each meta, in order.
type Shown = BTreeMap<String, Vec<String>>;

fn shown(picture: &Picture) -> Shown {
    let customs = |metas: &Vec<Value>| {
        let mut customs: Vec<_> = metas.iter().map(|meta| meta["custom"].to_string()).collect();
        customs.sort();
        customs
    };
    picture.iter().map(|(key, metas)| (key.clone(), customs(metas))).collect()
}

async fn play(steps: Vec<Step>) {
    let server = TestServer::start_with(|settings| settings.socket.long_poll_window = PATIENCE);
    let mut clients: Vec<_> = CLIENTS.into_iter().map(Client::new).collect();
    for (nth, step) in steps.into_iter().enumerate() {
        let (Step::Join(client, _)
        | Step::Update(client)
        | Step::Leave(client)
        | Step::Vanish(client)
        | Step::Close(client)
        | Step::Read(client)) = step;
        clients[client].take(&server, step, nth).await;
    }
    let mut expected = Shown::new();
    for (key, custom) in clients.iter().filter_map(|client| client.joined.as_ref()) {
        expected.entry(key.clone()).or_default().push(custom.to_string());
    }
    expected.values_mut().for_each(|customs| customs.sort());
    for client in clients.iter_mut().filter(|client| client.joined.is_some()) {
        client.settle(&expected).await;
    }
    // The witness begins without a picture, so its picture is the state that the server sends.
    let mut witness = Client::new(V2);
    witness.joins(&server, WITNESS).await;
    expected.insert(WITNESS.to_owned(), vec![Value::Null.to_string()]);
    witness.settle(&expected).await;
    let told = references(witness.old.picture());
    for client in clients.iter_mut().filter(|client| client.joined.is_some()) {
        client.settle(&expected).await;
        for picture in [client.old.picture(), client.new.picture()] {
            assert_eq!(references(picture), told, "{}", client.way);
        }
    }
}

#[test]
fn e168_e169_every_clients_picture_ends_as_the_servers() {
    let config =
        Config { cases: 24, max_shrink_iters: 8, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let played = TestRunner::new(config).run(&steps(), |steps| {
        let played = runtime.block_on(async { tokio::spawn(play(steps)).await });
        played.map_err(|panic| TestCaseError::fail(panic.to_string()))
    });
    played.unwrap_or_else(|failure| panic!("{failure}"));
}
