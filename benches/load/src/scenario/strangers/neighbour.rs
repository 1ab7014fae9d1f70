//! A well-behaved client beside the attackers, and its latency.
//!
//! Subscribers of one topic, spread over the server's threads, hear events that are triggered at a
//! steady pace over kept connections. Latency counts from the moment when an event was due, so a
//! stalled server cannot hide events that it kept from being sent. Beside them, somebody asks for
//! `/health` on a new connection several times a second.

use std::{
    io::{self, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::super::stage::{ARRIVE_MAX, histogram};
use crate::{
    CHANNEL, FIRST,
    crowd::{Crowd, Cut},
    subject::Subject,
    trigger_body, wire,
};

/// The number of subscribers, which is large enough that every worker thread has some.
const SUBSCRIBERS: usize = 8;

/// Connections that bring the triggers, in turn.
const PUBLISHERS: usize = 4;

/// Events a second.
const PER_SECOND: u32 = 100;

/// The number of events after which a subscriber sends a message, so that the server does not close it as idle.
const EVENTS_PER_HEARTBEAT: u64 = 10 * PER_SECOND as u64;

/// Bytes of a payload.
const PAYLOAD_BYTES: usize = 128;

/// Latencies of one slice make one percentile; the median of several slices counts.
const SLICE: Duration = Duration::from_secs(1);

/// Where its clients connect from: beyond the ports of the attackers.
const FIRST_CLIENT: usize = 40_000;

/// How long the neighbour works before anything counts.
pub(super) const WARM_UP: Duration = Duration::from_secs(1);

/// How often `/health` is asked for.
const HEALTH_EVERY: Duration = Duration::from_millis(200);

/// How long its answer may take.
const HEALTH_MAX: Duration = Duration::from_secs(15);

/// Clients at work, in threads of their own.
pub(super) struct Neighbour {
    stops: Arc<AtomicBool>,
    events: JoinHandle<io::Result<Heard>>,
    health: JoinHandle<Vec<(Instant, Duration)>>,
}

/// The measurements of a neighbour.
pub(super) struct Heard {
    began: Instant,
    slices: Vec<Histogram<u64>>,
    health: Vec<(Instant, Duration)>,
    /// The faults, which no attack may cause.
    pub(super) faults: Vec<String>,
}

/// Its measurements within an interval.
pub(super) struct Noticed {
    /// The 99th percentile of latency in each slice.
    pub(super) p99_ms: Vec<f64>,
    /// The slowest answer to a request on a new connection.
    pub(super) health_ms: f64,
}

impl Neighbour {
    /// Connects, and begins to measure.
    ///
    /// # Errors
    /// If the server does not let it in.
    pub(super) fn start(subject: &Subject) -> io::Result<Self> {
        let stops = Arc::new(AtomicBool::new(false));
        let mut work = Work::prepare(subject)?;
        let address = subject.address;
        let (stops_events, stops_health) = (stops.clone(), stops.clone());
        let events = thread::spawn(move || {
            while !stops_events.load(Relaxed) {
                work.step()?;
            }
            work.finish()
        });
        let health = thread::spawn(move || {
            let mut asked = Vec::new();
            while !stops_health.load(Relaxed) {
                let began = Instant::now();
                // A request that fails is one without an answer in time.
                let took = ask_health(address).map_or(HEALTH_MAX, |()| began.elapsed());
                asked.push((began, took));
                thread::sleep(HEALTH_EVERY.saturating_sub(began.elapsed()));
            }
            asked
        });
        Ok(Self { stops, events, health })
    }

    /// Waits for what is under way, and stops.
    ///
    /// # Errors
    /// If the server hung up on it.
    pub(super) fn stop(self) -> io::Result<Heard> {
        self.stops.store(true, Relaxed);
        let panicked = |_| io::Error::other("the neighbour panicked");
        let heard = self.events.join().map_err(panicked)??;
        let health = self.health.join().map_err(panicked)?;
        Ok(Heard { health, ..heard })
    }
}

impl Heard {
    /// The measurements between two moments; a slice counts if at least half of it lies between them.
    pub(super) fn between(&self, from: Instant, to: Instant) -> Noticed {
        let starts = (0_u32..).map(|nth| self.began + SLICE * nth);
        let within = |start: &Instant| (from..to).contains(&(*start + SLICE / 2));
        let slices = self.slices.iter().zip(starts).filter(|(_, start)| within(start));
        let p99_ms = |slice: &Histogram<u64>| slice.value_at_quantile(0.99) as f64 / 1e3;
        let asked = self.health.iter().filter(|(at, _)| (from..to).contains(at));
        Noticed {
            p99_ms: slices.map(|(slice, _)| p99_ms(slice)).collect(),
            health_ms: asked.map(|(_, took)| took.as_secs_f64() * 1e3).fold(0.0, f64::max),
        }
    }
}

/// Events under way.
struct Work {
    crowd: Crowd,
    /// A request, and where the event's number stands in it.
    request: (Vec<u8>, usize),
    began: Instant,
    next: u64,
    /// How many subscribers have not heard each event.
    missing: Vec<usize>,
    slices: Vec<Histogram<u64>>,
    refused: Option<String>,
    unsent: usize,
}

impl Work {
    fn prepare(subject: &Subject) -> io::Result<Self> {
        let mut crowd = Crowd::new(Vec::new())?;
        let join = subject.join(CHANNEL);
        for nth in 0..SUBSCRIBERS {
            crowd.add(subject.connect(FIRST_CLIENT + nth, Some(&join))?, Cut::Frames)?;
        }
        for nth in 0..PUBLISHERS {
            crowd.add(subject.dial(FIRST_CLIENT + SUBSCRIBERS + nth, None)?, Cut::Answers)?;
        }
        let request = subject.trigger(&trigger_body(FIRST, PAYLOAD_BYTES));
        let number = memchr::memmem::find(&request, FIRST.to_string().as_bytes());
        let number = number.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            crowd,
            request: (request, number),
            began: Instant::now(),
            next: FIRST,
            missing: Vec::new(),
            slices: Vec::new(),
            refused: None,
            unsent: 0,
        })
    }

    fn due(&self, number: u64) -> Instant {
        let nth = u32::try_from(number - FIRST).unwrap_or(u32::MAX);
        self.began + Duration::from_secs(1) / PER_SECOND * nth
    }

    /// Triggers what is due, and listens until the next event is.
    fn step(&mut self) -> io::Result<()> {
        while self.due(self.next) <= Instant::now() {
            let publisher = SUBSCRIBERS + (self.next - FIRST) as usize % PUBLISHERS;
            let (request, at) = &mut self.request;
            // All numbers have as many digits.
            let digits = self.next.to_string();
            request.splice(*at..*at + digits.len(), digits.into_bytes());
            match self.crowd.write(publisher, request) {
                Ok(()) => self.missing.push(SUBSCRIBERS),
                Err(_) => {
                    self.unsent += 1;
                    self.missing.push(0);
                }
            }
            self.next += 1;
            if self.next.is_multiple_of(EVENTS_PER_HEARTBEAT) {
                self.heartbeat();
            }
        }
        self.listen(self.due(self.next).saturating_duration_since(Instant::now()))
    }

    /// Has every subscriber send a heartbeat; one that cannot is found lost in the end.
    fn heartbeat(&mut self) {
        let heartbeat = wire::client_frame(r#"[null,"1","phoenix","heartbeat",{}]"#);
        (0..SUBSCRIBERS).for_each(|nth| drop(self.crowd.write(nth, &heartbeat)));
    }

    fn listen(&mut self, wait_max: Duration) -> io::Result<()> {
        let (began, per_second) = (self.began, PER_SECOND);
        let Self { crowd, missing, slices, refused, .. } = self;
        crowd.listen(wait_max, |arrival| {
            if arrival.member >= SUBSCRIBERS {
                if !arrival.payload.starts_with(b"HTTP/1.1 200") {
                    refused.get_or_insert_with(|| {
                        String::from_utf8_lossy(arrival.payload).lines().next().unwrap_or("").into()
                    });
                }
                return;
            }
            let Some(nth) = wire::sequence(arrival.payload).and_then(|n| n.checked_sub(FIRST))
            else {
                return;
            };
            let Some(left) = missing.get_mut(nth as usize) else { return };
            *left = left.saturating_sub(1);
            let due = began + Duration::from_secs(1) / per_second * nth as u32;
            record(slices, nth, arrival.at.saturating_duration_since(due));
        })
    }

    fn finish(mut self) -> io::Result<Heard> {
        let over = Instant::now();
        while self.missing.iter().any(|left| *left > 0) && over.elapsed() < ARRIVE_MAX {
            self.listen(Duration::from_millis(10))?;
        }
        let mut unheard = 0;
        for (nth, left) in (0_u64..).zip(&self.missing) {
            unheard += left;
            for _ in 0..*left {
                record(&mut self.slices, nth, ARRIVE_MAX);
            }
        }
        let lost = self.crowd.lost();
        let faults = [
            (unheard > 0).then(|| format!("{unheard} deliveries are missing")),
            (self.unsent > 0).then(|| format!("{} triggers were not taken", self.unsent)),
            (lost > 0).then(|| format!("{lost} of the neighbours were hung up on")),
            self.refused.map(|answer| format!("a trigger was answered {answer}")),
        ];
        Ok(Heard {
            began: self.began,
            slices: self.slices,
            health: Vec::new(),
            faults: faults.into_iter().flatten().collect(),
        })
    }
}

/// Adds a latency to the slice in which the event was due.
fn record(slices: &mut Vec<Histogram<u64>>, nth: u64, latency: Duration) {
    let slice = nth as usize / (SLICE.as_secs() as usize * PER_SECOND as usize);
    while slices.len() <= slice {
        slices.push(histogram());
    }
    if let Some(slice) = slices.get_mut(slice) {
        slice.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }
}

fn ask_health(address: std::net::SocketAddr) -> io::Result<()> {
    let mut socket = TcpStream::connect_timeout(&address, HEALTH_MAX)?;
    socket.set_read_timeout(Some(HEALTH_MAX))?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    crate::publisher::read_answer(&mut socket)
}
