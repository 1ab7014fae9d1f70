//! One topic, many subscribers that read at once, and a publisher that has one connection.

use std::{
    io::{self, Write},
    net::TcpStream,
};

use super::{
    Scenario,
    fanout::plan,
    stage::{Measured, Pace, Plan, gather, measure, play_over},
};
use crate::{
    options::Options,
    publisher::read_answer,
    report::{Bound, Compared, Figure, Report, say},
    subject::{Subject, Target},
};

/// The events that are under way at the same time.
const WINDOW: usize = 8;

/// The channel of the events by which the thread of a connection is found; it has no subscribers.
const UNHEARD_CHANNEL: &str = "unheard";

/// The number of events that one connection publishes so that the thread of the connection is recognised by
/// its CPU time.
const PROBING_EVENTS: usize = 300;

/// The connections that are tried in search of another thread.
const TRIED_MAX: usize = 24;

/// 1,000 subscribers and eight events under way, published over one connection, which lies on each
/// thread of the server by turns.
pub(super) fn window(options: &Options, target: &Target) -> io::Result<Report> {
    let plan =
        Plan { lasting: options.lasting(3), ..plan(options, 1_000, 128, Pace::OneByOne(WINDOW)) };
    let (mut floor, mut rounds) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(10) {
        floor.push(measure(Subject::floor(target)?, plan)?);
        let measured = measure_on(Subject::server(target)?, plan, round)?;
        let Round { thread, measured: server, .. } = &measured;
        let rates = [server, &floor[round]].map(|of| of.deliveries_per_s());
        say(&format!(
            "round {}: publisher on thread {}, {:.2} times the floor",
            round + 1,
            thread + 1,
            rates[0] / rates[1]
        ));
        rounds.push(measured);
    }
    Ok(report(&rounds, &floor))
}

/// A measurement of the server.
struct Round {
    /// The thread on which the publisher's connection was: the first one is 0.
    thread: usize,
    measured: Measured,
    /// The server's writes of frames meanwhile, and the frames in them, if it counts them.
    written: Option<(f64, f64)>,
}

impl Round {
    fn frames_per_write(&self) -> Option<f64> {
        let (writes, frames) = self.written?;
        (writes > 0.0).then(|| frames / writes)
    }
}

/// Measures with the publisher's connection on the n-th thread, counted round and round.
fn measure_on(mut subject: Subject, plan: Plan, nth: usize) -> io::Result<Round> {
    let crowd = gather(&mut subject, plan)?;
    let mut connections = connections_by_thread(&subject)?;
    let thread = nth % connections.len();
    let connection = connections.swap_remove(thread);
    drop(connections);
    let before = writes(&subject)?;
    let measured = play_over(&mut subject, crowd, plan, Some(connection))?;
    let written = before.zip(writes(&subject)?);
    let written = written.map(|(before, after)| (after.0 - before.0, after.1 - before.1));
    Ok(Round { thread, measured, written })
}

/// One connection for each thread that serves any, in the order of the threads.
///
/// The thread of a connection is the one that works while the connection brings events.
fn connections_by_thread(subject: &Subject) -> io::Result<Vec<TcpStream>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let body = format!(r#"{{"topic":"{UNHEARD_CHANNEL}","event":"msg","payload":{{}}}}"#);
    let request = subject.trigger(&body);
    let mut found: Vec<(u32, TcpStream)> = Vec::new();
    for _ in 0..TRIED_MAX {
        let mut socket = TcpStream::connect(subject.address)?;
        socket.set_nodelay(true)?;
        let busiest = subject.observed.busiest_thread(|| {
            for _ in 0..PROBING_EVENTS {
                socket.write_all(&request)?;
                read_answer(&mut socket)?;
            }
            Ok(())
        })?;
        if found.iter().all(|(thread, _)| *thread != busiest) {
            found.push((busiest, socket));
        }
        if found.len() >= threads {
            break;
        }
    }
    found.sort_by_key(|(thread, _)| *thread);
    Ok(found.into_iter().map(|(_, socket)| socket).collect())
}

/// The writes of frames that the server has counted, and the frames in them.
fn writes(subject: &Subject) -> io::Result<Option<(f64, f64)>> {
    let Some(metrics) = subject.metrics()? else { return Ok(None) };
    let figure = |name: &str| {
        let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(found, _)| *found == name)?.1.parse::<f64>().ok()
    };
    Ok(figure("herald_frame_writes_total").zip(figure("herald_written_frames_total")))
}

fn report(rounds: &[Round], floor: &[Measured]) -> Report {
    let values = |value: &dyn Fn(&Measured) -> f64, thread: Option<usize>| {
        let is_meant = |round: &Round| thread.is_none_or(|thread| round.thread == thread);
        let pairs = rounds.iter().zip(floor).filter(|(round, _)| is_meant(round));
        pairs.map(|(round, floor)| (value(&round.measured), value(floor))).unzip()
    };
    let figure = |name: &str, value: &dyn Fn(&Measured) -> f64, compared, bound| {
        let (ours, base) = values(value, None);
        Figure { name: name.to_owned(), ours, base, compared, bound }
    };
    let rate = &Measured::deliveries_per_s;
    let cpu = &Measured::cpu_per_delivery_us;
    let mut figures = vec![
        figure(
            "deliveries per second, worst round",
            rate,
            Compared::WorstPair,
            Bound::RatioAtLeast(2.0),
        ),
        figure("CPU per delivery, worst round, us", cpu, Compared::WorstPair, Bound::None),
        figure("CPU per delivery, us", cpu, Compared::Pairs, Bound::None),
    ];
    let threads = rounds.iter().map(|round| round.thread + 1).max().unwrap_or_default();
    for thread in 0..threads {
        let (ours, base) = values(rate, Some(thread));
        let name = format!("deliveries per second, on thread {}", thread + 1);
        figures.push(Figure::new(&name, ours, base, Bound::None).in_pairs());
    }
    let per_write: Vec<_> = rounds.iter().filter_map(Round::frames_per_write).collect();
    let least = per_write.iter().copied().reduce(f64::min);
    let alone = |name: &str, values| Figure::new(name, values, Vec::new(), Bound::None);
    figures.push(alone("frames per write", per_write));
    figures.push(alone("frames per write, worst round", least.into_iter().collect()));
    for (name, quantile) in [("latency p50, ms", 0.5), ("latency p99, ms", 0.99)] {
        figures.push(figure(
            name,
            &|measured| measured.latency_ms(quantile),
            Compared::Pairs,
            Bound::None,
        ));
    }
    let cores = &Measured::own_cores;
    figures.push(figure("cores that the generator uses", cores, Compared::Medians, Bound::None));
    let all = || rounds.iter().map(|round| &round.measured).chain(floor);
    Report {
        scenario: Scenario::FanoutWindow.name(),
        base: "floor",
        figures,
        remarks: all().flat_map(|measured| measured.remarks.clone()).collect(),
        faults: all().flat_map(|measured| measured.faults.clone()).collect(),
    }
}
