//! Attacks by clients without credentials, and their effect on the server and on a well-behaved client.
//!
//! Each attack runs against a server of its own, with the default settings of a machine with 512 MB. A
//! [`neighbour`] measures its latency before the attack and during it. [`attacks`] lists what the
//! attackers send, and [`assault`] sends it. The attack ends when all its connections are closed; the neighbour stops
//! then, too, so that memory has to come back without further traffic.

mod assault;
mod attacks;
mod neighbour;
mod script;

use std::{
    io, thread,
    time::{Duration, Instant},
};

use super::Scenario;
use crate::{
    options::{Options, chosen},
    report::{Bound, Figure, PROGRESS, Report, median, say},
    subject::{Subject, Target},
};
use assault::Played;
use attacks::{ATTACKS, Attack};
use neighbour::{Neighbour, Noticed, WARM_UP};

/// Resident memory at most, while any number of connections of one kind attacks.
const PEAK_MB_MAX: f64 = 300.0;

/// Latency of the neighbour during the attack, over that before it.
const P99_RATIO_MAX: f64 = 2.0;

/// Resident memory above that before the attack, after [`RECOVERY_MAX`].
const LEFT_MB_MAX: f64 = 50.0;

/// How long memory may take to come back.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// How long the neighbour is measured before the attack, at most.
const CALM_MAX: Duration = Duration::from_secs(5);

/// The results of one attack.
struct Outcome {
    start_mb: f64,
    peak_mb: f64,
    left_mb: f64,
    recovery: Duration,
    played: Played,
    calm: Noticed,
    attacked: Noticed,
    faults: Vec<String>,
    remarks: Vec<String>,
}

/// All attacks, or those that the options name, one after another.
pub(super) fn strangers(options: &Options, target: &Target) -> io::Result<Report> {
    let (mut figures, mut faults, mut remarks) = (Vec::new(), Vec::new(), Vec::new());
    for attack in chosen("attack", &options.attack, ATTACKS, |one| one.name)? {
        let mut rows = rows(attack.name);
        for _ in 0..options.rounds(1) {
            let outcome = measure(attack, options, target)?;
            outcome.say(attack.name);
            let Outcome { calm, attacked, .. } = &outcome;
            let values = [
                (vec![outcome.peak_mb], vec![outcome.start_mb]),
                (vec![outcome.left_mb], Vec::new()),
                (vec![outcome.played.cores], Vec::new()),
                (attacked.p99_ms.clone(), calm.p99_ms.clone()),
                (vec![attacked.health_ms], vec![calm.health_ms]),
            ];
            for (row, (ours, base)) in rows.iter_mut().zip(values) {
                row.ours.extend(ours);
                row.base.extend(base);
            }
            faults.extend(outcome.faults);
            remarks.extend(outcome.remarks);
        }
        figures.extend(rows);
    }
    let scenario = Scenario::Strangers.name();
    Ok(Report { scenario, base: "before", figures, remarks, faults })
}

fn rows(attack: &str) -> [Figure; 5] {
    [
        ("peak memory, MB", Bound::ValueAtMost(PEAK_MB_MAX)),
        ("memory left, MB", Bound::ValueAtMost(LEFT_MB_MAX)),
        ("CPU, cores", Bound::None),
        ("p99 of others, ms", Bound::RatioAtMost(P99_RATIO_MAX)),
        ("slowest /health, ms", Bound::None),
    ]
    .map(|(what, bound)| Figure::new(&format!("{attack}: {what}"), Vec::new(), Vec::new(), bound))
}

fn measure(attack: &Attack, options: &Options, target: &Target) -> io::Result<Outcome> {
    let subject = Subject::server_as_shipped(target)?;
    let connections = attack.connections(options);
    let lasting = options.lasting_short(8, 4);
    say(&format!("{}: {connections} connections, each of which {}", attack.name, attack.about));
    let neighbour = Neighbour::start(&subject)?;
    thread::sleep(WARM_UP);
    let calm = Instant::now();
    thread::sleep(lasting.min(CALM_MAX));
    let start = subject.observed.resident_bytes()?;
    let played = assault::play(attack, &subject, connections, lasting)?;
    let heard = neighbour.stop()?;
    let (left, recovery) = recovered(&subject, start)?;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let named = |words: String| format!("{}: {words}", attack.name);
    let Played { began, ended, entered, .. } = played;
    let remarks = [
        (entered < connections).then(|| format!("only {entered} of {connections} got in")),
        played.is_called_off.then(|| format!("called off at {:.0} MB", mb(assault::MEMORY_MAX))),
    ];
    Ok(Outcome {
        start_mb: mb(start),
        // The server may still work on received bytes after the attackers have disconnected.
        peak_mb: mb(subject.observed.peak_bytes()?),
        left_mb: mb(left),
        recovery,
        calm: heard.between(calm, began),
        attacked: heard.between(began, ended),
        faults: heard.faults.into_iter().map(named).collect(),
        remarks: remarks.into_iter().flatten().map(named).collect(),
        played,
    })
}

/// Waits until the memory is back, and stays; returns what is left of the attack, and the time
/// that it took.
fn recovered(subject: &Subject, start: u64) -> io::Result<(u64, Duration)> {
    /// Memory that has not shrunk for this long is taken for final.
    const STEADY: Duration = Duration::from_secs(4);
    let began = Instant::now();
    let (mut lowest, mut lowest_at, mut said) = (u64::MAX, began, began);
    while began.elapsed() < RECOVERY_MAX {
        let left = subject.observed.resident_bytes()?.saturating_sub(start);
        // A difference below a megabyte is noise.
        if left + 1_000_000 < lowest {
            (lowest, lowest_at) = (left, Instant::now());
        }
        let is_back = lowest as f64 <= LEFT_MB_MAX * 1e6;
        if is_back && lowest_at.elapsed() > STEADY {
            break;
        }
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            say(&format!("{} MB are left after {} s", left / 1_000_000, began.elapsed().as_secs()));
        }
        thread::sleep(Duration::from_millis(100));
    }
    let left = subject.observed.resident_bytes()?.saturating_sub(start);
    Ok((left, lowest_at - began))
}

impl Outcome {
    /// Says it in one line.
    fn say(&self, name: &str) {
        let p99 = |noticed: &Noticed| median(&noticed.p99_ms).unwrap_or_default();
        let (calm, attacked) = (p99(&self.calm), p99(&self.attacked));
        let Played { began, ended, entered, open, cores, .. } = self.played;
        say(&format!(
            "{name}: {entered} connections for {:.0} s, {open} open at the end; memory {:.0} MB, peak \
             {:.0}, left {:.0} after {:.0} s; {cores:.2} cores; p99 {calm:.2} ms, attacked \
             {attacked:.2} (x {:.1}); /health {:.0} ms",
            (ended - began).as_secs_f64(),
            self.start_mb,
            self.peak_mb,
            self.left_mb,
            self.recovery.as_secs_f64(),
            attacked / calm.max(0.001),
            self.attacked.health_ms,
        ));
    }
}
