//! A quiet app beside a busy app of the same server: what the quiet app notices of the busy one.
//!
//! Each [`Neighbour`] is a busy app that keeps all limits. It runs against a server of its own. The quiet
//! app is measured before the sessions of the busy app connect, and then beside it.

mod busy;
mod quiet;

use std::{
    io, thread,
    time::{Duration, Instant},
};

use super::Scenario;
use crate::{
    options::{Options, chosen},
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
};
use busy::{Busy, Publishes, Reads};
use quiet::Quiet;

/// The p99 latency of the quiet app, over that without the busy app.
const P99_RATIO_MAX: f64 = 3.0;

/// Resident memory at most, where the sessions of the busy app do not read.
const PEAK_MB_MAX: f64 = 200.0;

/// Channels that each session of the busy app joins: as many as it may.
const CHANNELS: usize = 100;

/// How long everything runs before anything counts.
const WARM_UP: Duration = Duration::from_secs(1);

/// A remark for the reader of the report.
const NOT_PROMPT: &str = "this user may not run threads in real time, so the quiet app's client waits for the processor \
                          while the server has it, and its latency includes that";

/// A busy app.
struct Neighbour {
    name: &'static str,
    about: &'static str,
    sessions: usize,
    reads: Reads,
    publishes: Publishes,
}

/// The busy apps. All that they publish goes to `#general`, which reaches each session once on every
/// channel that it joined.
const NEIGHBOURS: [Neighbour; 4] = [
    Neighbour {
        name: "pushes",
        about: "200 sessions; one client pushes 20 bytes 30 times a second",
        sessions: 200,
        reads: Reads::Everything,
        publishes: Publishes::Pushes { payload_bytes: 20, per_second: 30 },
    },
    Neighbour {
        name: "joins",
        about: "400 sessions; 128 bytes are triggered 10 times a second",
        sessions: 400,
        reads: Reads::Everything,
        publishes: Publishes::Triggers { payload_bytes: 128, per_second: 10 },
    },
    Neighbour {
        name: "deaf",
        about: "1,000 sessions that do not read; one client pushes 32 KB once",
        sessions: 1_000,
        reads: Reads::Nothing,
        publishes: Publishes::OnePush { payload_bytes: 32 * 1024 },
    },
    Neighbour {
        name: "slow",
        about: "a session that reads 20 Mbit/s; 100 KB are triggered once",
        sessions: 1,
        reads: Reads::BytesPerSecond(2_500_000),
        publishes: Publishes::OneTrigger { payload_bytes: 100 * 1024 },
    },
];

/// A quiet app beside each busy app, or beside those that the options name.
pub(super) fn tenants(options: &Options, target: &Target) -> io::Result<Report> {
    let (mut figures, mut faults, mut remarks) = (Vec::new(), Vec::new(), Vec::new());
    for neighbour in chosen("neighbour", &options.neighbour, &NEIGHBOURS, |one| one.name)? {
        let mut rows = rows(neighbour);
        for round in 0..options.rounds(if options.short { 1 } else { 3 }) {
            say(&format!("{}, round {}: {}", neighbour.name, round + 1, neighbour.about));
            let outcome = measure(neighbour, options, target)?;
            for (row, (ours, base)) in rows.iter_mut().zip(outcome.values) {
                row.ours.push(ours);
                row.base.extend(base);
            }
            let named = |words| format!("{}: {words}", neighbour.name);
            faults.extend(outcome.faults.into_iter().map(named));
            remarks.extend(outcome.remarks.into_iter().map(named));
        }
        figures.extend(rows);
    }
    let scenario = Scenario::Tenants.name();
    Ok(Report { scenario, base: "alone", figures, remarks, faults })
}

fn rows(neighbour: &Neighbour) -> [Figure; 5] {
    let is_deaf = matches!(neighbour.reads, Reads::Nothing);
    let hears_one = matches!(neighbour.publishes, Publishes::OneTrigger { .. });
    [
        ("p99 of the quiet app, ms", Bound::RatioAtMost(P99_RATIO_MAX)),
        ("p50 of the quiet app, ms", Bound::None),
        ("peak memory, MB", if is_deaf { Bound::ValueAtMost(PEAK_MB_MAX) } else { Bound::None }),
        (
            "deliveries of the busy app",
            if hears_one { Bound::ValueAtLeast(CHANNELS as f64) } else { Bound::None },
        ),
        ("sessions that were dropped", Bound::None),
    ]
    .map(|(what, bound)| {
        Figure::new(&format!("{}: {what}", neighbour.name), Vec::new(), Vec::new(), bound)
    })
}

/// The results of one round.
struct Outcome {
    /// Of each row, beside the busy app and, where it is compared, without it.
    values: [(f64, Option<f64>); 5],
    faults: Vec<String>,
    remarks: Vec<String>,
}

fn measure(neighbour: &Neighbour, options: &Options, target: &Target) -> io::Result<Outcome> {
    let subject = Subject::server(target)?;
    let lasting = options.lasting_short(8, 4);
    let quiet = Quiet::start(&subject)?;
    thread::sleep(WARM_UP);
    let alone = Instant::now();
    thread::sleep(lasting);
    let until = Instant::now();
    let busy = Busy::connect(&subject, neighbour.sessions, neighbour.reads)?;
    let connected_mb = mb(subject.observed.resident_bytes()?);
    let played = busy.play(&subject, neighbour.publishes, WARM_UP, lasting)?;
    let heard = quiet.stop()?;
    let (alone, beside) = (heard.between(alone, until), heard.between(played.from, played.until));
    let ms =
        |of: &hdrhistogram::Histogram<u64>, quantile| of.value_at_quantile(quantile) as f64 / 1e3;
    say(&format!(
        "p99 of the quiet app alone {:.2} ms, beside it {:.2} ms; {} deliveries, {} dropped; {:.0} MB",
        ms(&alone, 0.99),
        ms(&beside, 0.99),
        played.deliveries,
        played.dropped,
        mb(subject.observed.peak_bytes()?),
    ));
    let figure = |quantile| (ms(&beside, quantile), Some(ms(&alone, quantile)));
    Ok(Outcome {
        values: [
            figure(0.99),
            figure(0.5),
            (mb(subject.observed.peak_bytes()?), Some(connected_mb)),
            (played.deliveries as f64, None),
            (played.dropped as f64, None),
        ],
        faults: heard.faults,
        remarks: played
            .remark
            .into_iter()
            .chain((!heard.is_prompt).then(|| NOT_PROMPT.to_owned()))
            .collect(),
    })
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
