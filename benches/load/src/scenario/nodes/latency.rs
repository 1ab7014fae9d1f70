//! The time from a trigger to the arrival of its event, while nothing else happens.

use std::{
    io::{self, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    PAYLOAD_BYTES, WARM_UP, by_turns,
    cluster::{self, Cluster},
};
use crate::{
    CHANNEL, FIRST,
    options::Options,
    publisher::read_answer,
    redis::{Redis, command, read_lines},
    report::{Bound, Figure, Report},
    scenario::stage::histogram,
    subject::{Subject, Target},
    wire,
};

/// The pause after each event, in which everybody falls asleep.
const PAUSE: Duration = Duration::from_millis(2);

/// From a trigger on one node to its arrival on another, beside a server alone, in round trips to Redis.
pub(super) fn latency(options: &Options, target: &Target, report: &mut Report) -> io::Result<()> {
    let lasting = options.lasting(4);
    let (mut ours, mut base) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let (mut commits, mut pings) = (Vec::new(), Vec::new());
    by_turns(options.rounds(5), |is_clustered| {
        let (latency, all) = if is_clustered {
            let cluster = Cluster::start(target, 2)?;
            let (first, second) = (cluster.nth(0), cluster.nth(1));
            let mut line = Line::open(first, second, Some(&cluster.redis))?;
            line.play(WARM_UP)?;
            let before = round_trips(first)?;
            let Heard { event, ping } = line.play(lasting)?;
            let after = round_trips(first)?;
            commits.push(1e6 * (after.0 - before.0) / (after.1 - before.1).max(1.0));
            pings.push(ping.value_at_quantile(0.5) as f64);
            (event, &mut ours)
        } else {
            let server = Subject::server(target)?;
            let mut line = Line::open(&server, &server, None)?;
            line.play(WARM_UP)?;
            (line.play(lasting)?.event, &mut base)
        };
        let [p50, p99] = all;
        p50.push(latency.value_at_quantile(0.5) as f64);
        p99.push(latency.value_at_quantile(0.99) as f64);
        Ok(())
    })?;
    let [p50, p99] = ours;
    let [base_p50, base_p99] = base;
    let added: Vec<_> = p50.iter().zip(&base_p50).map(|(ours, base)| ours - base).collect();
    report.figures.extend([
        Figure::new("latency p50, other node over local, us", p50, base_p50, Bound::None),
        Figure::new("latency p99, other node over local, us", p99, base_p99, Bound::None),
        Figure::new(
            "added p50 over a round trip to Redis, us",
            added.clone(),
            commits,
            Bound::RatioAtMost(2.0),
        ),
        Figure::new("added p50 over a PING of the bench, us", added, pings, Bound::None),
    ]);
    Ok(())
}

/// The round trips of a node to Redis: the sum of the seconds, and their number.
fn round_trips(node: &Subject) -> io::Result<(f64, f64)> {
    let metrics = cluster::get(node, "/metrics")?;
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|value| value.trim().parse().ok());
        value.ok_or_else(|| io::Error::other(format!("the server has no metric {name}")))
    };
    let name = "herald_engine_round_trip_seconds";
    Ok((value(&format!("{name}_sum"))?, value(&format!("{name}_count"))?))
}

/// A publisher, a subscriber, and a client of Redis.
struct Line<'a> {
    publisher: &'a Subject,
    triggers: TcpStream,
    subscriber: TcpStream,
    redis: Option<TcpStream>,
    next: u64,
}

/// Times in microseconds.
struct Heard {
    event: Histogram<u64>,
    ping: Histogram<u64>,
}

impl<'a> Line<'a> {
    fn open(publisher: &'a Subject, heard_at: &Subject, redis: Option<&Redis>) -> io::Result<Self> {
        let subscriber = heard_at.connect(0, Some(&heard_at.join(CHANNEL)))?;
        let triggers = TcpStream::connect(publisher.address)?;
        triggers.set_nodelay(true)?;
        let redis = redis.map(Redis::connect).transpose()?;
        Ok(Self { publisher, triggers, subscriber, redis, next: FIRST })
    }

    fn play(&mut self, lasting: Duration) -> io::Result<Heard> {
        let (began, mut heard) = (Instant::now(), Heard { event: histogram(), ping: histogram() });
        let ping = command(&["PING"]);
        while began.elapsed() < lasting {
            let request = self.publisher.trigger(&crate::trigger_body(self.next, PAYLOAD_BYTES));
            thread::sleep(PAUSE);
            let sent = Instant::now();
            self.triggers.write_all(&request)?;
            let message = wire::read_message(&mut self.subscriber)?;
            heard.event.saturating_record(micros(sent));
            if wire::sequence(&message) != Some(self.next) {
                return Err(io::Error::other(String::from_utf8_lossy(&message).into_owned()));
            }
            read_answer(&mut self.triggers)?;
            self.next += 1;
            thread::sleep(PAUSE);
            if let Some(redis) = &mut self.redis {
                let sent = Instant::now();
                redis.write_all(&ping)?;
                read_lines(redis, 1)?;
                heard.ping.saturating_record(micros(sent));
            }
        }
        Ok(heard)
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
