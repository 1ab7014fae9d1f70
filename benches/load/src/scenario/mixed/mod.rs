//! A mixed load: clients of both versions over both transports, which connect, disconnect and publish, and a web
//! application that triggers.
//!
//! A client joins one of many channels and checks that it receives the events of each publisher on that channel
//! without a gap, in order and once ([`events`]). [`client`] handles the messages of one client, [`hall`] owns the
//! sockets of all, and [`audience`] passes received bytes to the clients and collects the bytes to write.

mod audience;
mod client;
mod doors;
mod events;
mod hall;
mod tally;

use std::{
    io,
    ops::Range,
    time::{Duration, Instant},
};

use super::{Scenario, stage::ARRIVE_MAX};
use crate::{
    observe::{Seen, Watch},
    options::Options,
    report::{Bound, Figure, PROGRESS, Report, say},
    subject::{Subject, Target},
};
use hall::{Hall, PER_CHANNEL};
use tally::Tally;

/// Clients, 25 to a channel.
const CLIENTS: usize = 5_000;

/// Seconds of a whole run: its fifths are minutes.
const LASTING_S: u64 = 300;

/// How often the web application publishes on each channel.
const TRIGGER: Duration = Duration::from_millis(500);

/// How often each client that publishes does.
const PUSH: Duration = Duration::from_secs(3);

/// How often each client leaves its channel for another. Once in the first minute everybody has, and
/// has come back: the memory that this takes is taken by then, and what comes later is growth.
const LEAVE: Duration = Duration::from_secs(60);

/// How often each client comes back over another connection.
const RECONNECT: Duration = Duration::from_secs(60);

/// How often each client sends a heartbeat: so often that the connection on which long-poll clients
/// send is kept (15 s), and that what they send has once filled the buffer which an HTTP server keeps
/// for each connection before the first minute is over: it takes memory page by page.
const HEARTBEAT: Duration = Duration::from_secs(4);

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(500);

/// 5,000 clients on 200 channels, for five minutes.
pub(super) fn mixed(options: &Options, target: &Target) -> io::Result<Report> {
    let clients = options.connections.unwrap_or(CLIENTS).max(PER_CHANNEL);
    let lasting = options.lasting_short(LASTING_S, 30);
    say(&format!("{clients} clients on {} channels", clients / PER_CHANNEL));
    let mut hall = Hall::open(Subject::server(target)?, clients)?;
    let run = Run::of(&mut hall, clients, lasting)?;
    hall.settle(ARRIVE_MAX)?;
    Ok(report(&run, &hall.audience.tally, lasting))
}

/// The results of a run in addition to the tally.
struct Run {
    seen: Seen,
    deliveries: u64,
    /// Resident memory, with the time of the run.
    resident_mb: Vec<(Duration, f64)>,
}

impl Run {
    /// Has everybody do what they do, for so long.
    fn of(hall: &mut Hall, clients: usize, lasting: Duration) -> io::Result<Self> {
        hall.audience.tally.forget_latencies();
        let mut beats = Beats::new(clients);
        let (mut sample, mut progress) = (Metronome::new(SAMPLE, 1), Metronome::new(PROGRESS, 1));
        let mut resident_mb = Vec::new();
        let watch = Watch::begin(hall.observed())?;
        let mut lately = Lately::new(hall)?;
        let began = Instant::now();
        while began.elapsed() < lasting {
            beats.play(hall)?;
            for _ in sample.due() {
                let bytes = hall.observed().resident_bytes()?;
                resident_mb.push((began.elapsed(), bytes as f64 / 1e6));
            }
            for _ in progress.due() {
                say(&format!("{} s: {}", began.elapsed().as_secs(), lately.told(hall)?));
            }
            hall.listen(Duration::from_millis(2))?;
        }
        Ok(Self { seen: watch.seen()?, deliveries: hall.audience.tally.deliveries(), resident_mb })
    }

    /// Resident memory within the n-th fifth of the run, from 0.
    fn fifth_mb(&self, nth: u32, lasting: Duration) -> Vec<f64> {
        let fifth = lasting / 5 * nth..lasting / 5 * (nth + 1);
        let within = self.resident_mb.iter().filter(|(at, _)| fifth.contains(at));
        within.map(|(_, mb)| *mb).collect()
    }
}

/// The schedule of everything that the clients and the web application do repeatedly.
struct Beats {
    clients: usize,
    triggers: Metronome,
    pushes: Metronome,
    leaves: Metronome,
    reconnects: Metronome,
    heartbeats: Metronome,
}

impl Beats {
    fn new(clients: usize) -> Self {
        let channels = clients / PER_CHANNEL;
        Self {
            clients,
            triggers: Metronome::new(TRIGGER, channels),
            pushes: Metronome::new(PUSH, channels * events::SPEAKERS),
            leaves: Metronome::new(LEAVE, clients),
            reconnects: Metronome::new(RECONNECT, clients),
            heartbeats: Metronome::new(HEARTBEAT, clients),
        }
    }

    /// Runs the tasks that are due.
    fn play(&mut self, hall: &mut Hall) -> io::Result<()> {
        self.triggers.due().for_each(|nth| hall.trigger(nth));
        self.pushes.due().for_each(|nth| hall.push(nth));
        self.leaves.due().for_each(|nth| hall.leave(nth));
        self.heartbeats.due().for_each(|nth| hall.heartbeat(nth));
        // Half a minute after it has left a channel.
        self.reconnects.due().try_for_each(|nth| hall.reconnect(nth + self.clients / 2))
    }
}

/// Ticks a given number of times within each period.
struct Metronome {
    every: Duration,
    next: Instant,
    ticks: usize,
}

impl Metronome {
    fn new(period: Duration, count: usize) -> Self {
        let every = period / u32::try_from(count).unwrap_or(u32::MAX).max(1);
        Self { every, next: Instant::now() + every, ticks: 0 }
    }

    /// The ticks since it was last asked, counted from 0.
    fn due(&mut self) -> Range<usize> {
        self.due_at(Instant::now())
    }

    fn due_at(&mut self, now: Instant) -> Range<usize> {
        let first = self.ticks;
        while self.next <= now {
            self.next += self.every;
            self.ticks += 1;
        }
        first..self.ticks
    }
}

/// The counts since progress was last reported.
struct Lately {
    watch: Watch,
    deliveries: u64,
}

impl Lately {
    fn new(hall: &Hall) -> io::Result<Self> {
        let deliveries = hall.audience.tally.deliveries();
        Ok(Self { watch: Watch::begin(hall.observed())?, deliveries })
    }

    fn told(&mut self, hall: &mut Hall) -> io::Result<String> {
        let seen = self.watch.seen()?;
        let deliveries = hall.audience.tally.deliveries();
        let per_s = (deliveries - self.deliveries) as f64 / seen.elapsed.as_secs_f64();
        let p99_ms = hall.audience.tally.lately_us.value_at_quantile(0.99) as f64 / 1e3;
        hall.audience.tally.lately_us.reset();
        *self = Self::new(hall)?;
        let resident_mb = hall.observed().resident_bytes()? as f64 / 1e6;
        let (cores, own, wrong) = (seen.cores(), seen.own_cores(), hall.audience.tally.wrong());
        let limit = seen.limit(1).map(|limit| format!("; {limit}")).unwrap_or_default();
        Ok(format!(
            "{per_s:.0} deliveries a second, p99 {p99_ms:.1} ms, {wrong} wrong; \
             server {resident_mb:.1} MB, {cores:.2} cores; generator {own:.2}{limit}"
        ))
    }
}

fn report(run: &Run, tally: &Tally, lasting: Duration) -> Report {
    let is_whole = lasting.as_secs() >= LASTING_S;
    let alone = |name: &str, value: f64| Figure::new(name, vec![value], Vec::new(), Bound::None);
    let ms = |latency_us: u64| latency_us as f64 / 1e3;
    let [sockets, polls] = [&tally.sockets_us, &tally.polls_us];
    let slope_max = if is_whole { Bound::RatioAtMost(1.01) } else { Bound::None };
    let [second, last] = [1, 4].map(|nth| run.fifth_mb(nth, lasting));
    let deliveries = run.deliveries as f64;
    let cpu_us = run.seen.cpu.as_secs_f64() * 1e6 / deliveries.max(1.0);
    let mut remarks: Vec<String> = run.seen.limit(1).map(str::to_owned).into_iter().collect();
    if !is_whole {
        remarks.push(format!("shorter than {LASTING_S} s: a minute is a fifth of it here"));
    }
    Report {
        scenario: Scenario::Mixed.name(),
        base: "2nd minute",
        figures: vec![
            Figure::new("resident memory of the last minute, MB", last, second, slope_max),
            alone("latency p50 over WebSocket, ms", ms(sockets.value_at_quantile(0.5))),
            alone("latency p99 over WebSocket, ms", ms(sockets.value_at_quantile(0.99))),
            alone("latency p99 over long-poll, ms", ms(polls.value_at_quantile(0.99))),
            alone("deliveries per second", deliveries / run.seen.elapsed.as_secs_f64()),
            alone("CPU per delivery, all else included, us", cpu_us),
            alone("triggers", tally.triggers as f64),
            alone("events by clients", tally.pushes as f64),
            alone("joins", tally.joins as f64),
            alone("connections that came back", tally.reconnects as f64),
            alone("missing, out of order, twice or astray", tally.wrong() as f64),
        ],
        remarks,
        faults: tally.faults(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metronome_leaves_out_no_tick() {
        let mut metronome = Metronome::new(Duration::from_secs(10), 10);
        let began = metronome.next;
        let mut due = |seconds| metronome.due_at(began + Duration::from_secs(seconds));
        assert_eq!((due(0), due(0), due(3), due(4)), (0..1, 1..1, 1..4, 4..5));
    }
}
