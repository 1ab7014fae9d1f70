//! One topic, many subscribers.

use std::io;

use super::{
    Scenario,
    stage::{Measured, Pace, Plan, measure},
};
use crate::{
    options::Options,
    protocol::Protocol,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
};

/// 1,000 subscribers, 50 events a second of 128 bytes.
pub(super) fn steady(options: &Options, target: &Target) -> io::Result<Report> {
    let plan = plan(options, 1_000, 128, Pace::PerSecond(50));
    let turns = Turns::take(options, target, plan)?;
    Ok(turns.report(Scenario::FanoutSteady, Bound::RatioAtMost(1.15), Bound::None))
}

/// The same, with eight events under way.
pub(super) fn saturated(options: &Options, target: &Target) -> io::Result<Report> {
    let plan = plan(options, 1_000, 128, Pace::Window(8));
    let turns = Turns::take(options, target, plan)?;
    let (cpu, rate) = (Bound::RatioAtMost(0.38), Bound::RatioAtLeast(2.5));
    Ok(turns.report(Scenario::FanoutSaturated, cpu, rate))
}

/// `fanout-steady` with 10,000 subscribers, compared with what 1,000 cost: at the same rate of events,
/// and at a tenth of it, where as much is delivered and each event goes alone.
///
/// The floor comes along only at the latter: it cannot keep up with the former.
pub(super) fn large(options: &Options, target: &Target) -> io::Result<Report> {
    let large = plan(options, 10_000, 128, Pace::PerSecond(50));
    let alone = Plan { pace: Pace::PerSecond(5), ..large };
    let small = Plan { subscribers: 1_000, ..large };
    let (mut few, mut many, mut many_alone) = (Vec::new(), Vec::new(), Vec::new());
    let (mut floor_few, mut floor_alone) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(3) {
        say(&format!("round {}: {} and 1,000 subscribers", round + 1, large.subscribers));
        floor_few.push(measure(Subject::floor(target)?, small)?);
        few.push(measure(Subject::server(target)?, small)?);
        floor_alone.push(measure(Subject::floor(target)?, alone)?);
        many_alone.push(measure(Subject::server(target)?, alone)?);
        many.push(measure(Subject::server(target)?, large)?);
    }
    let mut report =
        report(Scenario::FanoutLarge, &many, &few, Bound::RatioAtMost(1.2), Bound::None);
    report.base = "at 1,000";
    for measured in many_alone.iter().chain(&floor_alone).chain(&floor_few) {
        report.remarks.extend(measured.remarks.clone());
        report.faults.extend(measured.faults.clone());
    }
    let cpu = |name: &str, at_many: &[Measured], at_few: &[Measured]| {
        let [at_many, at_few] = [at_many, at_few]
            .map(|measured| measured.iter().map(Measured::cpu_per_delivery_us).collect());
        Figure::new(name, at_many, at_few, Bound::None)
    };
    let name = "CPU per delivery where each event goes alone, us";
    report.figures.insert(1, cpu(name, &many_alone, &few));
    report.figures.insert(2, cpu("the same of the floor, us", &floor_alone, &floor_few));
    Ok(report)
}

/// 1,000 subscribers, 10 KB of payload.
pub(super) fn with_payload(options: &Options, target: &Target) -> io::Result<Report> {
    let plan = plan(options, 1_000, 10 * 1024, Pace::PerSecond(20));
    let turns = Turns::take(options, target, plan)?;
    Ok(turns.report(Scenario::FanoutPayload, Bound::RatioAtMost(1.25), Bound::None))
}

pub(super) fn plan(
    options: &Options,
    subscribers: usize,
    payload_bytes: usize,
    pace: Pace,
) -> Plan {
    Plan {
        subscribers: options.connections.unwrap_or(subscribers),
        payload_bytes,
        pace,
        lasting: options.lasting(5),
    }
}

/// The measurements of all rounds.
#[derive(Default)]
struct Turns {
    server: Vec<Measured>,
    floor: Vec<Measured>,
    /// The same server with subscribers that speak Phoenix, where the others speak Pusher.
    phoenix: Vec<Measured>,
}

impl Turns {
    /// The floor, the server, the floor, the server, … A server that runs already may speak nothing but
    /// Pusher, so it has no turn with subscribers that speak Phoenix.
    fn take(options: &Options, target: &Target, plan: Plan) -> io::Result<Self> {
        let phoenix = (target.protocol == Protocol::Pusher && target.running.is_none())
            .then(|| target.speaking(Protocol::Phoenix));
        let mut turns = Self::default();
        for round in 0..options.rounds(5) {
            say(&format!("round {}: {} subscribers", round + 1, plan.subscribers));
            turns.floor.push(measure(Subject::floor(target)?, plan)?);
            if let Some(phoenix) = &phoenix {
                turns.phoenix.push(measure(Subject::server(phoenix)?, plan)?);
            }
            turns.server.push(measure(Subject::server(target)?, plan)?);
        }
        Ok(turns)
    }

    fn report(&self, scenario: Scenario, cpu_bound: Bound, rate_bound: Bound) -> Report {
        let mut report = report(scenario, &self.server, &self.floor, cpu_bound, rate_bound);
        if !self.phoenix.is_empty() {
            let [pusher, phoenix] = [&self.server, &self.phoenix]
                .map(|measured| measured.iter().map(Measured::cpu_per_delivery_us).collect());
            let name = "CPU per delivery, beside Phoenix's clients, us";
            let figure = Figure::new(name, pusher, phoenix, Bound::RatioAtMost(1.03));
            report.figures.insert(1, figure);
            report.remarks.extend(self.phoenix.iter().flat_map(|of| of.remarks.clone()));
            report.faults.extend(self.phoenix.iter().flat_map(|of| of.faults.clone()));
        }
        report
    }
}

pub(super) fn report(
    scenario: Scenario,
    ours: &[Measured],
    base: &[Measured],
    cpu_bound: Bound,
    rate_bound: Bound,
) -> Report {
    let figure = |name: &str, value: &dyn Fn(&Measured) -> f64, bound| {
        let values = |measured: &[Measured]| measured.iter().map(value).collect();
        Figure::new(name, values(ours), values(base), bound)
    };
    let all = || ours.iter().chain(base);
    Report {
        scenario: scenario.name(),
        base: "floor",
        figures: vec![
            figure("CPU per delivery, us", &Measured::cpu_per_delivery_us, cpu_bound),
            figure("deliveries per second", &Measured::deliveries_per_s, rate_bound),
            figure("latency p50, ms", &|measured| measured.latency_ms(0.5), Bound::None),
            figure("latency p99, ms", &|measured| measured.latency_ms(0.99), Bound::None),
            figure(
                "resident memory, MB",
                &|measured| measured.resident_bytes as f64 / 1e6,
                Bound::None,
            ),
        ],
        remarks: all().flat_map(|measured| measured.remarks.clone()).collect(),
        faults: all().flat_map(|measured| measured.faults.clone()).collect(),
    }
}
