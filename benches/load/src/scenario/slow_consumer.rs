//! A few subscribers that stop reading, and the latency of the others.

use std::{io, net::TcpStream};

use super::{
    Scenario,
    fanout::plan,
    stage::{Measured, Pace, Plan, gather, measure, play},
};
use crate::{
    CHANNEL, FIRST,
    options::Options,
    payload,
    publisher::Publisher,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
};

/// The channel that they alone hear, too.
const OWN_CHANNEL: &str = "deaf";

/// How many stop reading.
const DEAF: usize = 10;

/// The size of the receive buffer of a subscriber that stops reading: nearly nothing.
const RECEIVE_BYTES: usize = 4 * 1024;

/// Frames that only they are sent before anything is measured, 2 KB each: the first 130 KB fill what
/// the kernel keeps unsent of a socket, the rest all but the last places of their outboxes (1,024).
/// So they press on the server from the first event on, and are dropped while it is measured.
const FILLING: usize = 1_000;

const FILLING_BYTES: usize = 2 * 1024;

/// Events that one request brings.
const BULK: usize = 100;

/// `fanout-steady`, and the same with ten that stop reading, nine times.
pub(super) fn slow_consumer(options: &Options, target: &Target) -> io::Result<Report> {
    let plan =
        Plan { lasting: options.lasting(4), ..plan(options, 1_000, 128, Pace::PerSecond(50)) };
    let (mut with, mut without, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds(9) {
        say(&format!("round {}: {} subscribers, {DEAF} of them deaf", round + 1, plan.subscribers));
        // The two also take turns in coming first.
        let is_even = round % 2 == 0;
        if is_even {
            without.push(measure(Subject::server(target)?, plan)?);
        }
        let (measured, gone) = measure_with_deaf(Subject::server(target)?, plan)?;
        with.push(measured);
        dropped.push(gone as f64);
        if !is_even {
            without.push(measure(Subject::server(target)?, plan)?);
        }
    }
    Ok(report(&with, &without, dropped))
}

fn report(with: &[Measured], without: &[Measured], dropped: Vec<f64>) -> Report {
    let figure = |name: &str, value: &dyn Fn(&Measured) -> f64, bound| {
        let values = |measured: &[Measured]| measured.iter().map(value).collect();
        Figure::new(name, values(with), values(without), bound).in_pairs()
    };
    let all = || with.iter().chain(without);
    let mut remarks: Vec<_> = all().flat_map(|measured| measured.remarks.clone()).collect();
    if dropped.iter().any(|dropped| *dropped < DEAF as f64) {
        remarks
            .push("some of the deaf were never dropped: the server felt less of them".to_owned());
    }
    Report {
        scenario: Scenario::SlowConsumer.name(),
        base: "all hear",
        figures: vec![
            figure(
                "latency p99 of the others, ms",
                &|m| m.latency_ms(0.99),
                Bound::RatioAtMost(1.2),
            ),
            figure("latency p50 of the others, ms", &|m| m.latency_ms(0.5), Bound::None),
            figure("CPU per delivery, us", &Measured::cpu_per_delivery_us, Bound::None),
            figure("resident memory, MB", &|m| m.resident_bytes as f64 / 1e6, Bound::None),
            Figure::new("deaf subscribers dropped", dropped, Vec::new(), Bound::None),
        ],
        remarks,
        faults: all().flat_map(|measured| measured.faults.clone()).collect(),
    }
}

/// The deliveries to the others, and the number of deaf subscribers that were dropped meanwhile.
fn measure_with_deaf(mut subject: Subject, plan: Plan) -> io::Result<(Measured, usize)> {
    let others = Plan { subscribers: plan.subscribers.saturating_sub(DEAF).max(1), ..plan };
    let crowd = gather(&mut subject, others)?;
    let deaf = turn_deaf(&subject, plan.subscribers)?;
    let measured = play(&mut subject, crowd, others)?;
    let is_dropped = |socket: &&TcpStream| matches!(socket.take_error(), Ok(Some(_)));
    Ok((measured, deaf.iter().filter(is_dropped).count()))
}

/// Subscribers that hear the shared topic, and one of their own, and never read again.
fn turn_deaf(subject: &Subject, first: usize) -> io::Result<Vec<TcpStream>> {
    let joins = [subject.join(CHANNEL), subject.join(OWN_CHANNEL)];
    let connect = |nth| subject.connect_to(first + nth, Some(RECEIVE_BYTES), &joins);
    let deaf = (0..DEAF).map(connect).collect::<io::Result<Vec<_>>>()?;
    let payload = payload(&FIRST.to_string(), FILLING_BYTES);
    let event = format!(
        r#"{{"topic":"{}","event":"fill","payload":{payload}}}"#,
        subject.target().topic(OWN_CHANNEL)
    );
    let events = vec![event; BULK].join(",");
    let request = subject.bulk(&format!(r#"{{"events":[{events}]}}"#));
    let mut publisher = Publisher::open(subject, 1)?;
    for _ in 0..FILLING / BULK {
        publisher.send(&request)?;
    }
    publisher.settle()?;
    Ok(deaf)
}
