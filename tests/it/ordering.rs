//! All subscribers of a scope see one order, and no publication is missing after a join's reply, under the load
//! of several publishers.
//!
//! A publisher sends more only when it has heard its earlier events, or has the answer to its last call. The
//! load is therefore as much as this machine bears, and no more.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
};

use crate::support::*;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{join, sync::Notify};

const SCOPE: &str = "public:test-app";

/// One event: who published it, and its number among that publisher's.
type Id = (usize, u64);

fn start() -> TestServer {
    TestServer::start_with(|settings| {
        settings.server.workers = 3;
    })
}

fn id_of(frame: &Value) -> Id {
    let number = |nth: usize| frame[4]["id"][nth].as_u64().unwrap_or_else(|| panic!("{frame}"));
    (usize::try_from(number(0)).expect("a publisher"), number(1))
}

fn is_event(frame: &Value) -> bool {
    frame[3].as_str().is_some_and(|event| event.ends_with("msg"))
}

async fn joined(server: &TestServer, nth: usize, topic: &str) -> Socket {
    let vsn = if nth.is_multiple_of(2) { V2 } else { V1 };
    let mut socket = Socket::connect(server, vsn).await;
    socket.join(topic, json!({})).await;
    socket
}

/// Reads `total` events.
async fn listen(mut socket: Socket, total: usize) -> (Socket, Vec<Id>) {
    let mut heard = Vec::with_capacity(total);
    while heard.len() < total {
        heard.push(id_of(&socket.next().await));
    }
    (socket, heard)
}

/// Pushes `own` events, never more than a few ahead of what it hears, and reads `total`.
async fn push_and_listen(
    mut socket: Socket,
    publisher: usize,
    (own, total): (u64, usize),
) -> (Socket, Vec<Id>) {
    const AHEAD_MAX: u64 = 16;
    let (mut pushed, mut came_back) = (0, 0);
    let mut heard = Vec::with_capacity(total);
    while heard.len() < total {
        while pushed < own && pushed - came_back < AHEAD_MAX {
            // Every second event goes to one channel only.
            let event = if pushed.is_multiple_of(2) { "room:msg" } else { "msg" };
            let payload = json!({ "id": [publisher, pushed] });
            socket.push(json!([null, null, SCOPE, event, payload])).await;
            pushed += 1;
        }
        let id = id_of(&socket.next().await);
        came_back += u64::from(id.0 == publisher);
        heard.push(id);
    }
    (socket, heard)
}

async fn trigger_all(server: &TestServer, publisher: usize, own: u64) {
    for n in 0..own {
        let topic = if n.is_multiple_of(2) { "room" } else { "#general" };
        let event = json!({ "topic": topic, "event": "msg", "payload": { "id": [publisher, n] } });
        server.trigger(&App::seeded(), event).await;
    }
}

#[tokio::test]
async fn all_subscribers_of_a_scope_see_one_and_the_same_order() {
    const CLIENTS: usize = 6;
    const OVER_HTTP: usize = 3;
    const OWN: u64 = 240;
    const TOTAL: usize = (CLIENTS + OVER_HTTP) * OWN as usize;
    let server = start();
    let mut clients = Vec::new();
    for nth in 0..CLIENTS {
        let socket = joined(&server, nth, SCOPE).await;
        clients.push(push_and_listen(socket, nth, (OWN, TOTAL)));
    }
    let mut listeners = Vec::new();
    for (nth, (topic, total)) in [
        (SCOPE.to_owned(), TOTAL),
        (format!("{SCOPE}:room"), TOTAL),
        (format!("{SCOPE}:other"), TOTAL / 2),
    ]
    .into_iter()
    .cycle()
    .take(12)
    .enumerate()
    {
        listeners.push(listen(joined(&server, nth, &topic).await, total));
    }
    let over_http = (CLIENTS..CLIENTS + OVER_HTTP).map(|nth| trigger_all(&server, nth, OWN));
    let (heard, others, _) = join!(join_all(clients), join_all(listeners), join_all(over_http));

    let order = heard[0].1.clone();
    let distinct: HashSet<_> = order.iter().collect();
    assert_eq!(distinct.len(), TOTAL, "each event comes once");
    for publisher in 0..CLIENTS + OVER_HTTP {
        let own: Vec<_> = order.iter().filter(|id| id.0 == publisher).map(|id| id.1).collect();
        assert!(own.iter().copied().eq(0..OWN), "publisher {publisher}: its own order");
    }
    let general: Vec<_> = order.iter().copied().filter(|id| id.1 % 2 == 1).collect();
    for (nth, (mut socket, heard)) in heard.into_iter().chain(others).enumerate() {
        let expected = if heard.len() == TOTAL { &order } else { &general };
        assert!(heard == *expected, "subscriber {nth} has another order");
        socket.assert_quiet().await;
    }
}

/// The state of a flood of publications, which all tasks of the test share on one thread.
struct Flood {
    /// The number of events that each publisher has begun to publish. An event with this number or a higher one
    /// begins later.
    begun: RefCell<Vec<u64>>,
    /// The number of events of each publisher that the witness has heard.
    witnessed: RefCell<Vec<u64>>,
    /// Wakes the publishers that wait for the witness.
    heard: Notify,
    over: Cell<bool>,
}

impl Flood {
    fn new(publishers: usize) -> Self {
        let none = || RefCell::new(vec![0; publishers]);
        Self { begun: none(), witnessed: none(), heard: Notify::new(), over: Cell::new(false) }
    }

    /// Begins the next event of a publisher, and returns its id.
    fn begin(&self, publisher: usize) -> Id {
        let number = &mut self.begun.borrow_mut()[publisher];
        *number += 1;
        (publisher, *number - 1)
    }

    fn ahead(&self, publisher: usize) -> u64 {
        self.begun.borrow()[publisher] - self.witnessed.borrow()[publisher]
    }
}

/// Hears all events, from before the first one to the last one. The other clients' events are compared with this
/// order.
async fn witness(flood: &Flood, mut socket: Socket) -> Vec<Id> {
    let mut heard = Vec::new();
    loop {
        let frame = socket.next().await;
        if frame[3] == "end" {
            return heard;
        }
        let id = id_of(&frame);
        flood.witnessed.borrow_mut()[id.0] += 1;
        flood.heard.notify_waiters();
        heard.push(id);
    }
}

/// Publishes over a socket of its own until the flood is over.
async fn flood_by_push(flood: &Flood, mut socket: Socket, publisher: usize) {
    let (mut pushed, mut came_back) = (0, 0);
    while !flood.over.get() || came_back < pushed {
        while !flood.over.get() && pushed - came_back < 16 {
            let id = flood.begin(publisher);
            socket.push(json!([null, null, SCOPE, "msg", { "id": id }])).await;
            pushed += 1;
        }
        if id_of(&socket.next().await).0 == publisher {
            came_back += 1;
        }
    }
}

/// Publishes over HTTP, twenty events at a time, until the flood is over.
async fn flood_in_bulk(server: &TestServer, flood: &Flood, publisher: usize) {
    while !flood.over.get() {
        let event = |_| json!({ "topic": SCOPE, "event": "msg", "payload": { "id": flood.begin(publisher) } });
        let body = json!({ "events": (0..20).map(event).collect::<Vec<_>>() });
        let call = request("POST", server.url("/api/publish/bulk"));
        let call = call.header("authorization", &App::seeded().secret).json(&body);
        assert_eq!(call.send().await.status, 200);
        while flood.ahead(publisher) > 40 {
            flood.heard.notified().await;
        }
    }
}

/// The events that one join heard.
struct Run {
    case: String,
    /// The number of events that each publisher had begun when the reply was read.
    begun: Vec<u64>,
    marker: Id,
    heard: Vec<Id>,
}

/// How a client comes to join.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Entry {
    NewSocket,
    AfterLeaving,
    RightBehindTheLeave,
    Twice,
}

/// Joins again and again, in each way of [`Entry`].
async fn join_again(
    server: &TestServer,
    flood: &Flood,
    publisher: usize,
    rounds: usize,
) -> Vec<Run> {
    use Entry::{AfterLeaving, NewSocket, RightBehindTheLeave, Twice};
    let vsn = if publisher.is_multiple_of(2) { V2 } else { V1 };
    let topic =
        if publisher.is_multiple_of(3) { SCOPE.to_owned() } else { format!("{SCOPE}:room") };
    let mut socket = Socket::connect(server, vsn).await;
    let mut runs = Vec::new();
    for round in 0..rounds {
        let entry = match round {
            0 => NewSocket,
            _ => [NewSocket, AfterLeaving, RightBehindTheLeave, Twice][(round + publisher) % 4],
        };
        let case = format!("{publisher}, round {round}, {entry:?}, {vsn}");
        let (old, new) = (format!("j{}", round.wrapping_sub(1)), format!("j{round}"));
        let join = json!([new, new, topic, "phx_join", {}]);
        let leave = json!([old, "leave", topic, "phx_leave", {}]);
        match entry {
            NewSocket => {
                if round > 0 {
                    socket = Socket::connect(server, vsn).await;
                }
            }
            AfterLeaving => {
                socket.push(leave).await;
                while socket.next().await[3] != "phx_close" {}
            }
            RightBehindTheLeave => socket.push(leave).await,
            Twice => {}
        }
        socket.push(join).await;
        let mut may_hear = matches!(entry, RightBehindTheLeave | Twice);
        loop {
            let frame = socket.next().await;
            match frame[3].as_str() {
                Some("phx_reply") if frame[1] == json!(new) => {
                    assert_eq!(frame[4], json!({ "status": "ok", "response": {} }), "{case}");
                    break;
                }
                Some("phx_reply") => assert_eq!(frame[1], "leave", "{case}"),
                Some("phx_close") => may_hear = false,
                _ => assert!(may_hear && is_event(&frame), "{case}: {frame} before the reply"),
            }
        }
        let begun = flood.begun.borrow().clone();
        if entry == Twice && vsn == V2 {
            assert_eq!(socket.next().await, json!([old, old, topic, "phx_close", {}]), "{case}");
        }
        let marker = flood.begin(publisher);
        let event = json!({ "topic": "#general", "event": "msg", "payload": { "id": marker } });
        server.trigger(&App::seeded(), event).await;
        let mut heard: Vec<Id> = Vec::new();
        let mut behind_marker = 0;
        while behind_marker < 20 {
            let frame = socket.next().await;
            assert!(is_event(&frame), "{case}: {frame}");
            heard.push(id_of(&frame));
            behind_marker += usize::from(heard.contains(&marker));
        }
        runs.push(Run { case, begun, marker, heard });
    }
    runs
}

/// Checks that a run is a contiguous part of the witness's order, and that it contains every event that was begun
/// after the reply.
fn check(run: &Run, order: &[Id], places: &HashMap<Id, usize>) {
    let Run { case, begun, marker, heard } = run;
    let from = places[&heard[0]];
    let expected = &order[from..][..heard.len()];
    let differs = heard.iter().zip(expected).position(|(heard, expected)| heard != expected);
    assert_eq!(differs, None, "{case}: {heard:?}, not {expected:?}");
    assert!(heard.contains(marker), "{case}");
    for missed in &order[..from] {
        assert!(missed.1 < begun[missed.0], "{case}: missed {missed:?}, begun after the reply");
    }
}

#[tokio::test]
async fn nothing_published_after_a_joins_reply_is_missing_under_load() {
    const PUSHERS: usize = 4;
    const IN_BULK: usize = 2;
    const JOINERS: usize = 12;
    const ROUNDS: usize = 12;
    const FLOODERS: usize = PUSHERS + IN_BULK;
    let server = start();
    let flood = Flood::new(FLOODERS + JOINERS);
    let witness = witness(&flood, joined(&server, 0, SCOPE).await);
    let mut pushers = Vec::new();
    for nth in 0..PUSHERS {
        pushers.push(flood_by_push(&flood, joined(&server, nth, SCOPE).await, nth));
    }
    let in_bulk = (PUSHERS..FLOODERS).map(|nth| flood_in_bulk(&server, &flood, nth));
    let joiners = async {
        let nths = FLOODERS..FLOODERS + JOINERS;
        let runs = join_all(nths.map(|nth| join_again(&server, &flood, nth, ROUNDS))).await;
        flood.over.set(true);
        runs
    };
    let all_but_witness = async {
        let (runs, ..) = join!(joiners, join_all(pushers), join_all(in_bulk));
        server.trigger(&App::seeded(), json!({ "topic": "#general", "event": "end" })).await;
        runs
    };
    let (order, runs) = join!(witness, all_but_witness);

    let places: HashMap<Id, usize> = order.iter().copied().zip(0..).collect();
    assert_eq!(places.len(), order.len(), "each event comes once");
    assert!(order.len() > 2_000, "only {} events: that is too few for a load", order.len());
    let runs: Vec<Run> = runs.into_iter().flatten().collect();
    assert_eq!(runs.len(), JOINERS * ROUNDS);
    for run in &runs {
        check(run, &order, &places);
    }
}

#[tokio::test]
async fn a_client_that_waits_for_its_turn_to_publish_goes_on_hearing() {
    const CLIENTS: usize = 150;
    let server = TestServer::start_with(|settings| {
        settings.limits.publications_in_flight_max = 1;
        settings.limits.outbox_frames_max = 64;
    });
    let mut clients = Vec::new();
    for nth in 0..CLIENTS {
        clients.push(joined(&server, nth, SCOPE).await);
    }
    for (nth, client) in clients.iter_mut().enumerate() {
        client.push(json!([null, null, SCOPE, "msg", { "id": [nth, 0] }])).await;
    }
    let heard = join_all(clients.into_iter().map(|client| listen(client, CLIENTS))).await;
    let (_, order) = &heard[0];
    for (nth, (_, heard)) in heard.iter().enumerate() {
        assert!(heard == order, "subscriber {nth} has another order");
    }
}

#[tokio::test]
async fn a_client_of_many_channels_keeps_up_with_what_is_for_all_of_them() {
    const CHANNELS: usize = 100;
    const IN_BULK: usize = 20;
    let server = TestServer::start_with(|settings| settings.server.workers = 1);
    let mut client = Socket::connect(&server, V2).await;
    for nth in 0..CHANNELS {
        client.join(&format!("{SCOPE}:{nth}"), json!({})).await;
    }
    // 20 times 100 frames are about twice as many as may wait in an outbox.
    let small = |n: usize| json!({ "topic": SCOPE, "event": "small", "payload": { "n": n } });
    let bulk = json!({ "events": (0..IN_BULK).map(small).collect::<Vec<_>>() });
    let triggers = async {
        let publish = request("POST", server.url("/api/publish/bulk"));
        let publish = publish.header("authorization", &App::seeded().secret).json(&bulk);
        assert_eq!(publish.send().await.status, 200);
    };
    let hearing = async {
        let mut heard: HashMap<String, Vec<Value>> = HashMap::new();
        for _ in 0..CHANNELS * IN_BULK {
            let frame = client.next().await;
            let topic = frame[2].as_str().expect("a topic").to_owned();
            heard.entry(topic).or_default().push(frame[4]["n"].clone());
        }
        heard
    };
    let ((), heard) = join!(triggers, hearing);
    let expected: Vec<Value> = (0..IN_BULK).map(|n| json!(n)).collect();
    assert_eq!(heard.len(), CHANNELS);
    for (topic, numbers) in heard {
        assert_eq!(numbers, expected, "{topic}");
    }
    client.assert_quiet().await;
}
