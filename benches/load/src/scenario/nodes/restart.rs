//! A Redis that goes away under load and comes back empty, and the time until all clients are current again.

use std::{
    collections::VecDeque,
    io,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{PAYLOAD_BYTES, cluster::Cluster};
use crate::{
    CHANNEL, FIRST,
    crowd::{Arrival, Crowd},
    options::Options,
    publisher::read_answer,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
    wire,
};

/// Clients in all, and in the short form.
const CLIENTS: usize = 10_000;
const SHORT: usize = 2_000;

/// Events a second.
const PER_SECOND: u32 = 5;

/// The time for which Redis is away.
const AWAY: Duration = Duration::from_secs(2);

/// The pause of a client that was refused.
const RETRY: Duration = Duration::from_millis(200);

/// The time within which all must be current.
const CURRENT_MAX: Duration = Duration::from_secs(60);

/// Redis is killed while events go on, and starts again with nothing in it.
pub(super) fn restart(options: &Options, target: &Target, report: &mut Report) -> io::Result<()> {
    let clients = options.connections.unwrap_or(if options.short { SHORT } else { CLIENTS });
    let (mut accepted, mut current) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(3) {
        say(&format!("round {}: {clients} clients", round + 1));
        let Restarted { accepts, last_is_current } = measure(target, clients)?;
        accepted.push(accepts.as_secs_f64());
        match last_is_current {
            Ok(after) => current.push(after.as_secs_f64()),
            Err(late) => report.faults.push(format!("{late} clients are not current in time")),
        }
    }
    let name = format!("Redis is back to the last of {clients} current, s");
    report.figures.extend([
        Figure::new("Redis is back to the first trigger, s", accepted, Vec::new(), Bound::None),
        Figure::new(&name, current, Vec::new(), Bound::None),
    ]);
    Ok(())
}

/// Times since Redis was back.
struct Restarted {
    /// The time until a trigger was accepted.
    accepts: Duration,
    /// The time until the last client was current, or the number of those that never were.
    last_is_current: Result<Duration, usize>,
}

fn measure(target: &Target, clients: usize) -> io::Result<Restarted> {
    let mut cluster = Cluster::start(target, 2)?;
    let mut audience = Audience::connect(&cluster, clients)?;
    let is_over = AtomicBool::new(false);
    let request = |node: &Subject| node.trigger(&crate::trigger_body(FIRST, PAYLOAD_BYTES));
    let nodes = [0, 1].map(|nth| (cluster.nth(nth).address, request(cluster.nth(nth))));
    thread::scope(|scope| {
        let publisher = scope.spawn(|| publish(&nodes, &is_over));
        let played = play(&mut cluster, &mut audience);
        is_over.store(true, Relaxed);
        let accepted = publisher.join().map_err(|_| io::Error::other("the publisher panicked"))?;
        let (back, last) = played?;
        let first = accepted.iter().find(|at| **at > back);
        let first = first.ok_or_else(|| io::Error::other("no trigger is accepted any more"))?;
        let late = audience.clients.iter().filter(|client| !client.is_current).count();
        let last_is_current = last.map(|last| last - back).ok_or(late);
        Ok(Restarted { accepts: *first - back, last_is_current })
    })
}

/// Takes Redis away. Answers when it was back, and when the last client was current.
fn play(cluster: &mut Cluster, audience: &mut Audience) -> io::Result<(Instant, Option<Instant>)> {
    audience.listen_until(Instant::now() + AWAY)?;
    cluster.redis.kill()?;
    audience.listen_until(Instant::now() + AWAY)?;
    audience.forget();
    cluster.redis.start_again()?;
    let back = Instant::now();
    Ok((back, audience.listen_until_current(back + CURRENT_MAX)?))
}

/// Triggers on one node and the other until it is over. Answers the times at which triggers were accepted.
fn publish(nodes: &[(std::net::SocketAddr, Vec<u8>)], is_over: &AtomicBool) -> Vec<Instant> {
    let (mut accepted, mut due) = (Vec::new(), Instant::now());
    for (address, request) in nodes.iter().cycle() {
        if is_over.load(Relaxed) {
            break;
        }
        // A trigger is refused while Redis is away.
        if trigger(*address, request).is_ok() {
            accepted.push(Instant::now());
        }
        due = (due + Duration::from_secs(1) / PER_SECOND).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    accepted
}

fn trigger(address: std::net::SocketAddr, request: &[u8]) -> io::Result<()> {
    let mut socket = TcpStream::connect(address)?;
    io::Write::write_all(&mut socket, request)?;
    read_answer(&mut socket)
}

/// A client: the position of the last event that it has heard, and whether it has joined since it was told
/// that its join ended, and has heard an event afterwards.
#[derive(Debug, Clone, Default)]
struct Client {
    since: String,
    has_rejoined: bool,
    is_current: bool,
}

/// Clients that join again with `since` as soon as their join ends.
struct Audience {
    crowd: Crowd,
    clients: Vec<Client>,
    /// The clients that are to join again, and when.
    rejoining: VecDeque<(Instant, usize)>,
    topic: String,
    current: usize,
}

impl Audience {
    fn connect(cluster: &Cluster, clients: usize) -> io::Result<Self> {
        let topic = cluster.nth(0).target().topic(CHANNEL);
        let text = join(&topic, "");
        let connect = |nth| cluster.nth(nth).connect(nth, Some(&text));
        let sockets = (0..clients).map(connect).collect::<io::Result<_>>()?;
        let crowd = Crowd::new(sockets)?;
        let clients = vec![Client::default(); clients];
        Ok(Self { crowd, clients, rejoining: VecDeque::new(), topic, current: 0 })
    }

    /// Nobody has joined again so far.
    fn forget(&mut self) {
        self.current = 0;
        for client in &mut self.clients {
            client.is_current = false;
        }
    }

    fn listen_until(&mut self, end: Instant) -> io::Result<()> {
        while Instant::now() < end {
            self.listen()?;
        }
        Ok(())
    }

    /// Listens until all are current, and answers when that was.
    fn listen_until_current(&mut self, end: Instant) -> io::Result<Option<Instant>> {
        while self.current < self.clients.len() {
            if Instant::now() > end || self.crowd.lost() > 0 {
                return Ok(None);
            }
            self.listen()?;
        }
        Ok(Some(Instant::now()))
    }

    fn listen(&mut self) -> io::Result<()> {
        let Self { crowd, clients, rejoining, current, .. } = self;
        crowd.listen(Duration::from_millis(10), |Arrival { member, at, payload }| {
            let client = &mut clients[member];
            if wire::sequence(payload).is_some() {
                // `[null,"<position>",…`
                let position = payload.split(|byte| *byte == b'"').nth(1).unwrap_or_default();
                client.since.clear();
                client.since.push_str(std::str::from_utf8(position).unwrap_or_default());
                *current += usize::from(client.has_rejoined && !client.is_current);
                client.is_current = client.has_rejoined;
            } else if memchr::memmem::find(payload, br#""phx_error""#).is_some() {
                client.has_rejoined = false;
                rejoining.push_back((at, member));
            } else if memchr::memmem::find(payload, br#""status":"ok""#).is_some() {
                client.has_rejoined = true;
            } else {
                rejoining.push_back((at + RETRY, member));
            }
        })?;
        while let Some((due, member)) = self.rejoining.front().copied() {
            if due > Instant::now() {
                break;
            }
            self.rejoining.pop_front();
            let text = join(&self.topic, &self.clients[member].since);
            self.crowd.write(member, &wire::client_frame(&text))?;
        }
        Ok(())
    }
}

fn join(topic: &str, since: &str) -> String {
    format!(r#"["1","1","{topic}","phx_join",{{"since":"{since}"}}]"#)
}
