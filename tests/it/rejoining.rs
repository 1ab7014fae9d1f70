//! SPEC.md, *History and recovery*: clients disconnect at any moment and come back with `since`, under load. As
//! long as a client is told that its recovery is complete, the events that it hears are a contiguous part of the
//! one order of its scope, without a repetition.
//!
//! The test runs for three seconds, or as long as `HERALD_TEST_SECONDS` says.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    env,
    time::{Duration, Instant},
};

use crate::support::*;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{join, sync::Notify};
use tokio_tungstenite::tungstenite::Message;

const SCOPE: &str = "public:test-app";

/// An event: its publisher, and its number among the events of that publisher. The remainder of the number by 3
/// says whether it goes to `#general`, to `room` or to `other`.
type Id = (usize, u64);

/// Whether a client hears an event.
fn hears(topic: &str, id: Id) -> bool {
    !topic.ends_with(":room") || id.1 % 3 != 2
}

fn id_of(frame: &Value) -> Id {
    let number = |nth: usize| frame[4]["id"][nth].as_u64().unwrap_or_else(|| panic!("{frame}"));
    (usize::try_from(number(0)).expect("a publisher"), number(1))
}

/// The state that all clients of the test share.
#[derive(Default)]
struct Load {
    is_over: Cell<bool>,
    /// The number of events that each publisher has published.
    published: RefCell<HashMap<usize, u64>>,
    /// The number of events of each publisher that the witness has heard.
    witnessed: RefCell<HashMap<usize, u64>>,
    /// Wakes the publishers that wait for the witness.
    heard: Notify,
}

impl Load {
    fn next(&self, publisher: usize) -> Id {
        let mut published = self.published.borrow_mut();
        let number = published.entry(publisher).or_default();
        *number += 1;
        (publisher, *number - 1)
    }

    fn ahead(&self, publisher: usize) -> u64 {
        let count = |of: &RefCell<HashMap<_, u64>>| of.borrow().get(&publisher).copied();
        count(&self.published).unwrap_or(0) - count(&self.witnessed).unwrap_or(0)
    }

    /// Waits until the witness has heard all but `ahead_max` of the events of a publisher.
    async fn keep_pace(&self, publisher: usize, ahead_max: u64) {
        while self.ahead(publisher) > ahead_max {
            self.heard.notified().await;
        }
    }
}

async fn witness(load: &Load, mut socket: Socket) -> Vec<Id> {
    let mut heard = Vec::new();
    loop {
        let frame = socket.next().await;
        if frame[3] == "end" {
            return heard;
        }
        let id = id_of(&frame);
        *load.witnessed.borrow_mut().entry(id.0).or_default() += 1;
        load.heard.notify_waiters();
        heard.push(id);
    }
}

async fn publish_in_bulk(server: &TestServer, load: &Load, publisher: usize) {
    while !load.is_over.get() {
        let event = |_| {
            let id = load.next(publisher);
            let topic = ["#general", "room", "other"][(id.1 % 3) as usize];
            let topic = if topic == "#general" { SCOPE.into() } else { format!("{SCOPE}:{topic}") };
            json!({ "topic": topic, "event": "msg", "payload": { "id": id } })
        };
        let body = json!({ "events": (0..9).map(event).collect::<Vec<_>>() });
        let call = request("POST", server.url("/api/publish/bulk"));
        let call = call.header("authorization", &App::seeded().secret).json(&body);
        assert_eq!(call.send().await.status, 200);
        load.keep_pace(publisher, 40).await;
    }
}

async fn publish_as_client(load: &Load, mut socket: Socket, publisher: usize) {
    while !load.is_over.get() {
        let id = load.next(publisher);
        let event = ["msg", "room:msg", "other:msg"][(id.1 % 3) as usize];
        socket.push(json!([null, null, SCOPE, event, { "id": id }])).await;
        while id_of(&socket.next().await) != id {}
        load.keep_pace(publisher, 8).await;
    }
}

/// Consecutive events that a client heard without a gap.
struct Piece {
    case: String,
    topic: String,
    heard: Vec<Id>,
}

/// The outcomes of the joins of a client.
#[derive(Default)]
struct Told {
    outcomes: BTreeMap<String, u64>,
    replayed: u64,
    cut_off_in_mid_replay: u64,
    /// The number of sessions that the server ended.
    ended: u64,
    pieces: Vec<Piece>,
}

/// Pseudo-random numbers, which are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        (self.0 >> 33) % bound
    }
}

/// The next frame; `None` if the server has ended the session, because this test reads too slowly.
async fn next(socket: &mut Socket) -> Option<Value> {
    let Message::Text(text) = socket.message().await else { return None };
    Some(match serde_json::from_str(text.as_str()).expect("JSON") {
        Value::Object(frame) => {
            json!([null, frame["ref"], frame["topic"], frame["event"], frame["payload"]])
        }
        frame => frame,
    })
}

/// Joins, hears events for a while, disconnects, and comes back with the last position that it knows: again and
/// again, until the time is up.
async fn come_and_go(server: &TestServer, nth: usize, until: Instant) -> Told {
    let vsn = WAYS[nth % WAYS.len()];
    let topic = if nth.is_multiple_of(3) { SCOPE.into() } else { format!("{SCOPE}:room") };
    let mut dice = Dice(nth as u64 + 1);
    let mut told = Told::default();
    let mut piece: Vec<Id> = Vec::new();
    let mut since = String::new();
    let mut socket = Socket::connect(server, vsn).await;
    let mut is_joined = false;
    let mut is_ended = false;
    'rounds: for round in 0.. {
        told.ended += u64::from(is_ended);
        if is_ended || (is_joined && dice.below(4) > 0) {
            socket = Socket::connect(server, vsn).await;
            is_joined = false;
        }
        // Each `continue` below means that the server has ended the session. The end of the round resets this.
        is_ended = true;
        let case = format!("{nth}, round {round}, {vsn}, {topic}, again {is_joined}");
        let join_ref = format!("j{round}");
        let join = json!([join_ref, join_ref, topic, "phx_join", { "since": since }]);
        socket.push(join).await;
        let reply = loop {
            let Some(frame) = next(&mut socket).await else { continue 'rounds };
            if frame[3] == "phx_reply" {
                break frame;
            }
            assert!(is_joined, "{case}: {frame} before the reply");
            since = frame[1].as_str().unwrap_or_else(|| panic!("{case}: {frame}")).to_owned();
            piece.push(id_of(&frame));
        };
        let recovery = &reply[4]["response"]["recovery"];
        since = recovery["position"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned();
        let outcome = recovery["reason"].as_str().unwrap_or("complete");
        *told.outcomes.entry(outcome.to_owned()).or_default() += 1;
        if recovery["complete"] == false {
            let heard = std::mem::take(&mut piece);
            told.pieces.push(Piece { case: case.clone(), topic: topic.clone(), heard });
        }
        if is_joined && vsn.starts_with(V2) {
            let Some(frame) = next(&mut socket).await else { continue 'rounds };
            assert_eq!(frame[3], "phx_close", "{case}");
        }
        is_joined = true;
        if Instant::now() > until {
            told.pieces.push(Piece { case, topic, heard: piece });
            return told;
        }
        let replayed = recovery["replayed"].as_u64().expect("a number");
        let to_hear = match dice.below(4) {
            0 => 0,
            1 => dice.below(replayed + 1),
            _ => dice.below(150),
        };
        told.replayed += replayed;
        told.cut_off_in_mid_replay += u64::from(to_hear < replayed);
        for _ in 0..to_hear {
            let Some(frame) = next(&mut socket).await else { continue 'rounds };
            since = frame[1].as_str().unwrap_or_else(|| panic!("{case}: {frame}")).to_owned();
            piece.push(id_of(&frame));
        }
        is_ended = false;
    }
    unreachable!("the rounds never end")
}

fn check(Piece { case, topic, heard }: &Piece, order: &[Id], places: &HashMap<Id, usize>) {
    let Some(first) = heard.first() else { return };
    let from = *places.get(first).unwrap_or_else(|| panic!("{case}: {first:?} was not published"));
    let expected = order[from..].iter().copied().filter(|id| hears(topic, *id));
    for (nth, (heard, expected)) in heard.iter().copied().zip(expected).enumerate() {
        assert_eq!(heard, expected, "the {nth}th of a piece that ends before {case}");
    }
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the figures are what a long run is for")]
async fn a_client_that_comes_back_has_missed_nothing_and_hears_nothing_twice_or_is_told_so() {
    const CLIENTS: usize = 16;
    let seconds = env::var("HERALD_TEST_SECONDS").ok();
    let seconds = seconds.map_or(3, |seconds| seconds.parse().expect("a number of seconds"));
    let server = TestServer::start_with(|settings| {
        settings.server.workers = 3;
        settings.history.publications = 400;
        // A long-poll client disconnects without telling the server, so its outbox fills up until its session ends.
        // On a slow machine, clients also read slowly.
        settings.limits.outbox_frames_max = 100_000;
        // The witness sends nothing, and must not be closed as idle.
        settings.socket.idle_timeout = Duration::from_secs(seconds + 60);
        // All clients share one thread, so a client may wait long for its turn to fetch.
        settings.socket.long_poll_window = Duration::from_secs(120);
    });
    let load = Load::default();
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut socket = Socket::connect(&server, V2).await;
        socket.join(SCOPE, json!({})).await;
        sockets.push(socket);
    }
    let witness = witness(&load, sockets.pop().expect("a socket"));
    let pushers = sockets.into_iter().enumerate();
    let pushers = pushers.map(|(nth, socket)| publish_as_client(&load, socket, nth));
    let in_bulk = (2..4).map(|nth| publish_in_bulk(&server, &load, nth));
    let until = Instant::now() + Duration::from_secs(seconds);
    let clients = async {
        let clients = (0..CLIENTS).map(|nth| come_and_go(&server, nth, until));
        let told = join_all(clients).await;
        load.is_over.set(true);
        told
    };
    let all_but_witness = async {
        let (told, ..) = join!(clients, join_all(pushers), join_all(in_bulk));
        server.trigger(&App::seeded(), json!({ "topic": "#general", "event": "end" })).await;
        told
    };
    let (order, told) = join!(witness, all_but_witness);

    let places: HashMap<Id, usize> = order.iter().copied().zip(0..).collect();
    assert_eq!(places.len(), order.len(), "each event comes once");
    let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut replayed, mut cut_off, mut ended, mut heard) = (0, 0, 0, 0);
    for told in &told {
        for (outcome, count) in &told.outcomes {
            *outcomes.entry(outcome).or_default() += count;
        }
        (replayed, cut_off) = (replayed + told.replayed, cut_off + told.cut_off_in_mid_replay);
        ended += told.ended;
        for piece in &told.pieces {
            check(piece, &order, &places);
            heard += piece.heard.len();
        }
    }
    println!(
        "{seconds} s: {} published, {heard} heard in pieces, joins {outcomes:?}, {replayed} replayed, \
         {cut_off} cut off before the end of their replay, {ended} ended by the server",
        order.len()
    );
    assert!(outcomes["complete"] > 50, "too few came back: {outcomes:?}");
    assert!(replayed > 500 && cut_off > 10, "too little was replayed: {replayed}, {cut_off}");
}
