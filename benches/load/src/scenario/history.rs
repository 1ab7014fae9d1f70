//! What it costs to retain publications: a server that does, beside one that does not.

use std::io;

use super::{
    Scenario,
    fanout::plan,
    stage::{self, Pace},
    topics, triggers,
};
use crate::{
    options::Options,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
};

/// Triggers, deliveries to many and deliveries to one of many, with history and without.
pub(super) fn history(options: &Options, target: &Target) -> io::Result<Report> {
    let steady = plan(options, 1_000, 128, Pace::PerSecond(50));
    let saturated = plan(options, 1_000, 128, Pace::Window(8));
    let (on, off) = (Subject::server, Subject::server_without_history);
    let mut figures = Vec::new();
    let (mut remarks, mut faults) = (Vec::new(), Vec::new());
    let mut compare =
        |name: &str, ratio_max, measure: &mut dyn FnMut(Subject) -> io::Result<Costs>| {
            let (mut with, mut without) = (Vec::new(), Vec::new());
            for round in 0..options.rounds(9) {
                say(&format!("{name}, round {}", round + 1));
                let mut turns = [(off as Start, &mut without), (on as Start, &mut with)];
                if round % 2 == 1 {
                    turns.reverse();
                }
                for (start, costs) in turns {
                    let measured = measure(start(target)?)?;
                    costs.push(measured.cpu_us);
                    remarks.extend(measured.remarks);
                    faults.extend(measured.faults);
                }
            }
            let figure = Figure::new(name, with, without, Bound::RatioAtMost(ratio_max));
            figures.push(figure.in_pairs());
            io::Result::Ok(())
        };
    let lasting = options.lasting(4);
    compare("CPU per trigger, one hears, us", 1.05, &mut |subject| {
        let measured = triggers::heard(subject, lasting)?;
        let remarks = measured.remark().into_iter().collect();
        Ok(Costs { cpu_us: measured.cpu_us(), remarks, faults: Vec::new() })
    })?;
    for (name, plan) in [
        ("CPU per delivery as in fanout-steady, us", steady),
        ("CPU per delivery as in fanout-saturated, us", saturated),
    ] {
        compare(name, 1.02, &mut |subject| {
            let measured = stage::measure(subject, plan)?;
            let cpu_us = measured.cpu_per_delivery_us();
            Ok(Costs { cpu_us, remarks: measured.remarks, faults: measured.faults })
        })?;
    }
    let topics = options.connections.unwrap_or(10_000);
    compare("CPU per delivery as in topics-many, us", 1.05, &mut |subject| {
        let measured = topics::measure(subject, topics, lasting)?;
        let remarks = measured.remark.iter().cloned().collect();
        let faults = measured.fault.iter().cloned().collect();
        Ok(Costs { cpu_us: measured.cpu_us(), remarks, faults })
    })?;
    let scenario = Scenario::History.name();
    Ok(Report { scenario, base: "no history", figures, remarks, faults })
}

type Start = fn(&Target) -> io::Result<Subject>;

/// The result of one measurement.
struct Costs {
    cpu_us: f64,
    remarks: Vec<String>,
    faults: Vec<String>,
}
