//! The attacks: what each connection does before it attacks, and what it sends then.

use std::{
    io::{self, Write},
    net::TcpStream,
    rc::Rc,
    time::Duration,
};

use super::script::Script;
use crate::{options::Options, subject::Subject, wire};

/// The size of the receive buffer of a connection that reads no answers: nearly nothing.
const RECEIVE_BYTES: usize = 4 * 1024;

/// A megabyte: the default bound of a body and of a message.
const MEGABYTE: usize = 1_048_576;

/// Requests that are sent in one piece, again and again.
const PIECE: usize = 100;

/// Small frames that are sent in one piece, again and again.
const FRAMES: usize = 1_000;

/// How long one answer may take before an attacker attacks.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A connection that is ready to attack.
pub(super) struct Hostile {
    /// The connection.
    pub(super) socket: TcpStream,
    /// The bytes that it sends.
    pub(super) script: Script,
}

/// Makes the n-th connection.
type Hostiles<'a> = Box<dyn FnMut(usize) -> io::Result<Hostile> + 'a>;

/// One kind of attack.
pub(super) struct Attack {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// The action of each of its connections, as the rest of a sentence.
    pub(super) about: &'static str,
    /// Makes its connections, whose number it is given.
    pub(super) arm: for<'a> fn(&'a Subject, usize) -> Hostiles<'a>,
    size: Size,
}

/// How many connections take part.
enum Size {
    /// This number, unless the options say otherwise.
    AsChosen(usize),
    /// This number, whatever the options say: the point is how few they are.
    Fixed(usize),
}

impl Attack {
    /// How many connections take part.
    pub(super) fn connections(&self, options: &Options) -> usize {
        match self.size {
            Size::Fixed(connections) => connections,
            Size::AsChosen(connections) => options.connections.unwrap_or(connections).max(1),
        }
    }
}

/// All attacks.
pub(super) const ATTACKS: &[Attack] = &[
    Attack {
        name: "unread-health",
        about: "pipelines 3,000 requests for /health and reads no answer",
        arm: |subject, _| unread(subject, "/health", 3_000),
        size: Size::AsChosen(300),
    },
    Attack {
        name: "unread-refused",
        about: "pipelines 20,000 requests that get 401 and reads no answer",
        arm: |subject, _| unread(subject, "/api/admin/apps", 20_000),
        size: Size::AsChosen(100),
    },
    Attack {
        name: "unread-opens",
        about: "opens 3,000 long-poll sessions and reads no answer",
        arm: |subject, _| unread(subject, &long_poll(subject, ""), 3_000),
        size: Size::AsChosen(100),
    },
    Attack {
        name: "one-pipeline",
        about: "pipelines 20,000 requests, reads no answer, and stays",
        arm: |subject, _| unread(subject, "/health", 20_000),
        size: Size::Fixed(1),
    },
    Attack {
        name: "parked-polls",
        about: "pipelines 1,000 fetches of a long-poll session that has nothing to fetch",
        arm: |subject, _| Box::new(|nth| parked_polls(subject, nth)),
        size: Size::AsChosen(50),
    },
    Attack {
        name: "half-bodies",
        about: "announces a trigger of 1 MB with wrong credentials and sends half of it",
        arm: |subject, _| {
            half_bodies(subject, &format!("/api/apps/{}/events", subject.target().app))
        },
        size: Size::AsChosen(1_000),
    },
    Attack {
        name: "half-publishes",
        about: "announces 1 MB to /api/publish with any credentials and sends half of it",
        arm: |subject, _| half_bodies(subject, "/api/publish"),
        size: Size::AsChosen(1_000),
    },
    Attack {
        name: "half-posts",
        about: "announces 1 MB to a long-poll session of its own and sends half of it",
        arm: |subject, _| Box::new(half_posts(subject)),
        size: Size::AsChosen(1_000),
    },
    Attack {
        name: "half-messages",
        about: "sends half of a WebSocket message of 1 MB",
        arm: |subject, _| over_websocket(subject, half_message()),
        size: Size::AsChosen(1_000),
    },
    Attack {
        name: "trickled-messages",
        about: "sends half of a WebSocket message of 1 MB, then a byte each second",
        arm: |subject, _| {
            over_websocket(subject, half_message().dripping(*b"x", Duration::from_secs(1)))
        },
        size: Size::AsChosen(1_000),
    },
    Attack {
        name: "endless-fragments",
        about: "sends fragments of a message up to 1 MB, then one of a byte each second",
        arm: |subject, _| over_websocket(subject, endless_fragments()),
        size: Size::AsChosen(1_000),
    },
    Attack {
        name: "dripped-fragment",
        about: "sends a fragment of 1 MB and nearly another one, then a byte every 2 s",
        arm: |subject, _| over_websocket(subject, dripped_fragment()),
        size: Size::AsChosen(1_000),
    },
    Attack {
        name: "deep-forms",
        about: "sends three forms of 1 MB of deep keys to /api/publish",
        arm: |subject, _| deep_forms(subject),
        size: Size::AsChosen(30),
    },
    Attack {
        name: "unfetched-polls",
        about: "lets 4 MB wait for a long-poll session of its own and does not fetch them",
        arm: |subject, connections| unfetched_polls(subject, connections),
        size: Size::AsChosen(300),
    },
    Attack {
        name: "one-heartbeats",
        about: "sends heartbeats as fast as it can",
        arm: |subject, _| over_websocket(subject, heartbeats()),
        size: Size::Fixed(1),
    },
    Attack {
        name: "heartbeats",
        about: "sends heartbeats as fast as it can",
        arm: |subject, _| over_websocket(subject, heartbeats()),
        size: Size::AsChosen(20),
    },
    Attack {
        name: "pings",
        about: "sends pings as fast as it can",
        arm: |subject, _| over_websocket(subject, endless(&[], &[0x89, 0x80, 0, 0, 0, 0])),
        size: Size::AsChosen(20),
    },
    Attack {
        name: "empty-fragments",
        about: "sends empty fragments as fast as it can",
        arm: |subject, _| {
            let [first, next] = [[0x01, 0x80, 0, 0, 0, 0], [0x00, 0x80, 0, 0, 0, 0]];
            over_websocket(subject, endless(&first, &next))
        },
        size: Size::AsChosen(20),
    },
    Attack {
        name: "silent",
        about: "sends half a first head",
        arm: |subject, _| plain(subject, "GET /health HTTP/1.1\r\nHost: a\r\nX-Half: "),
        size: Size::AsChosen(5_000),
    },
    Attack {
        name: "idle-plain",
        about: "asks for /health once and stays",
        arm: |subject, _| plain(subject, &get(subject, "/health")),
        size: Size::AsChosen(5_000),
    },
    Attack {
        name: "half-heads",
        about: "asks for /health once, then sends half a second head",
        arm: |subject, _| {
            let half = "GET /health HTTP/1.1\r\nHost: a\r\nX-Half: ";
            plain(subject, &(get(subject, "/health") + half))
        },
        size: Size::AsChosen(5_000),
    },
    Attack {
        name: "idle-sockets",
        about: "joins a topic over a WebSocket and stays",
        arm: |subject, _| over_websocket(subject, Script::once([])),
        size: Size::AsChosen(5_000),
    },
];

fn get(subject: &Subject, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", subject.address)
}

/// The path of a long-poll session, or of none yet.
fn long_poll(subject: &Subject, token: &str) -> String {
    let path = subject.target().path.replace("/websocket", "/longpoll");
    if token.is_empty() { path } else { format!("{path}&token={token}") }
}

/// Connections that read nothing.
fn unread<'a>(subject: &'a Subject, path: &str, requests: usize) -> Hostiles<'a> {
    let piece: Rc<[u8]> = get(subject, path).repeat(PIECE).into_bytes().into();
    Box::new(move |nth| {
        let socket = subject.dial(nth, Some(RECEIVE_BYTES))?;
        Ok(Hostile { socket, script: Script::once([]).then(piece.clone(), requests / PIECE) })
    })
}

/// Connections that send these bytes, and read what is answered.
fn plain<'a>(subject: &'a Subject, said: &str) -> Hostiles<'a> {
    let script = Script::once(said.as_bytes()).reading();
    Box::new(move |nth| Ok(Hostile { socket: subject.dial(nth, None)?, script: script.clone() }))
}

/// WebSocket sessions of one public topic, on which nothing is published: what the neighbour's events
/// would cost with thousands of subscribers is no part of the attack.
fn over_websocket(subject: &Subject, script: Script) -> Hostiles<'_> {
    let join = subject.join("strangers");
    let script = script.reading();
    Box::new(move |nth| {
        Ok(Hostile { socket: subject.connect(nth, Some(&join))?, script: script.clone() })
    })
}

/// Asks on a connection, and waits for the whole answer.
fn ask(socket: &mut TcpStream, request: &[u8]) -> io::Result<Vec<u8>> {
    socket.write_all(request)?;
    let answer = wire::read_until(socket, |read| wire::answer(read).is_some())?;
    Ok(wire::answer(&answer).and_then(|body| answer.get(body)).unwrap_or_default().to_vec())
}

/// Opens a long-poll session, whose token it answers.
fn open_long_poll(subject: &Subject, nth: usize) -> io::Result<(TcpStream, String)> {
    let mut socket = subject.dial(nth, None)?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    let answer = ask(&mut socket, get(subject, &long_poll(subject, "")).as_bytes())?;
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    match answer.get("token").and_then(|token| token.as_str()) {
        Some(token) => Ok((socket, token.to_owned())),
        None => Err(io::Error::other(format!("no session: {answer}"))),
    }
}

fn parked_polls(subject: &Subject, nth: usize) -> io::Result<Hostile> {
    let (socket, token) = open_long_poll(subject, nth)?;
    let piece = get(subject, &long_poll(subject, &token)).repeat(PIECE);
    Ok(Hostile {
        socket,
        script: Script::once([]).then(piece.into_bytes(), 1_000 / PIECE).reading(),
    })
}

/// The head of a request whose body is a megabyte, and half of that.
fn half_body(head: &str) -> Vec<u8> {
    let head = format!(
        "{head}\r\nContent-Type: application/json\r\nContent-Length: {MEGABYTE}\r\n\r\n{{\"topic\":\""
    );
    let mut half = head.into_bytes();
    half.resize(half.len() + MEGABYTE / 2, b'x');
    half
}

fn half_bodies<'a>(subject: &'a Subject, path: &str) -> Hostiles<'a> {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Basic YTpi", subject.address);
    let script = Script::once(half_body(&head)).reading();
    Box::new(move |nth| Ok(Hostile { socket: subject.dial(nth, None)?, script: script.clone() }))
}

fn half_posts(subject: &Subject) -> impl FnMut(usize) -> io::Result<Hostile> {
    // All share the bytes of the body; only the head is of each one's own.
    let body: Rc<[u8]> = vec![b'x'; MEGABYTE / 2].into();
    move |nth| {
        let (socket, token) = open_long_poll(subject, nth)?;
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {MEGABYTE}\r\n\r\n",
            long_poll(subject, &token),
            subject.address
        );
        Ok(Hostile {
            socket,
            script: Script::once(head.as_bytes()).then(body.clone(), 1).reading(),
        })
    }
}

/// The head of a masked frame of this number of bytes; the mask is zero.
fn frame_head(first: u8, bytes: usize) -> Vec<u8> {
    let mut head = vec![first, 0xff];
    head.extend_from_slice(&(bytes as u64).to_be_bytes());
    head.extend_from_slice(&[0; 4]);
    head
}

fn half_message() -> Script {
    let mut half = frame_head(0x81, MEGABYTE);
    half.resize(half.len() + MEGABYTE / 2, b'x');
    Script::once(half)
}

fn endless_fragments() -> Script {
    const FRAGMENT: usize = 16 * 1024;
    let fragment = |first| {
        let mut fragment = frame_head(first, FRAGMENT);
        fragment.resize(fragment.len() + FRAGMENT, b'x');
        fragment
    };
    // The last megabyte minus one fragment, so that the bound of a message is not hit.
    let times = MEGABYTE / FRAGMENT - 2;
    let one_byte = [&[0x00, 0x81, 0, 0, 0, 0], b"x".as_slice()].concat();
    Script::once(fragment(0x01))
        .then(fragment(0x00), times)
        .dripping(one_byte, Duration::from_secs(1))
}

fn dripped_fragment() -> Script {
    /// The bytes that are still to be sent one at a time.
    const LEFT: usize = 64;
    let mut first = frame_head(0x01, MEGABYTE);
    first.resize(first.len() + MEGABYTE, b'x');
    let mut next = frame_head(0x00, MEGABYTE);
    next.resize(next.len() + MEGABYTE - LEFT, b'x');
    Script::once(first).then(next, 1).dripping(*b"x", Duration::from_secs(2))
}

/// A first piece, then frames without end.
fn endless(first: &[u8], frame: &[u8]) -> Script {
    Script::once(first).then(frame.repeat(FRAMES), usize::MAX)
}

fn heartbeats() -> Script {
    endless(&[], &wire::client_frame(r#"[null,"2","phoenix","heartbeat",{}]"#))
}

fn deep_forms(subject: &Subject) -> Hostiles<'_> {
    let mut form = String::new();
    let mut nth = 0;
    while form.len() < MEGABYTE - PIECE {
        form += &format!("payload[{nth}]{}=1&", "[a]".repeat(14));
        nth += 1;
    }
    let request = format!(
        "POST /api/publish HTTP/1.1\r\nHost: {}\r\nAuthorization: anything\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        subject.address,
        form.len()
    );
    let request: Rc<[u8]> = request.into_bytes().into();
    Box::new(move |nth| {
        let script = Script::once([]).then(request.clone(), 3).reading();
        Ok(Hostile { socket: subject.dial(nth, None)?, script })
    })
}

/// Sessions of a channel of their own, so that no two share the bytes that wait. An application triggers
/// the events one after another: how much memory its own triggers take is no part of the attack.
fn unfetched_polls(subject: &Subject, connections: usize) -> Hostiles<'_> {
    /// The most bytes that wait for one session: a little less than `limits.outbox_bytes_max`.
    const WAITING_MAX: usize = 3_900_000;
    /// The bytes that are sent to all sessions together: many times `limits.outboxes_bytes_max`.
    const ALL_WAITING: usize = 2_400_000_000;
    /// The bodies that the generator keeps, all together.
    const BODIES: usize = 200_000_000;
    let payload_bytes = (BODIES / connections).min(100_000);
    let events = (ALL_WAITING / connections).min(WAITING_MAX) / payload_bytes;
    // The application has a connection of its own: those of the attackers show no right.
    let mut application = None;
    Box::new(move |nth| {
        let application = match &mut application {
            Some(open) => open,
            closed => closed.insert(TcpStream::connect(subject.address)?),
        };
        let (mut socket, token) = open_long_poll(subject, nth)?;
        let topic = subject.target().topic(&format!("s{nth}"));
        let path = long_poll(subject, &token);
        ask(&mut socket, &subject.post(&path, "none", &crate::subject::join(&topic)))?;
        // One fetch, for sessions that were never fetched have a bound of their own.
        ask(&mut socket, get(subject, &path).as_bytes())?;
        let payload = crate::payload("1", payload_bytes);
        let body = format!(r#"{{"topic":"s{nth}","event":"msg","payload":{payload}}}"#);
        let trigger = subject.trigger(&body);
        for _ in 0..events {
            ask(application, &trigger)?;
        }
        Ok(Hostile { socket, script: Script::once([]).reading() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_has_a_name_of_its_own() {
        let mut names: Vec<_> = ATTACKS.iter().map(|attack| attack.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ATTACKS.len());
    }
}
