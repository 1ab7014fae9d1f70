//! Two builds of the server, to measure what a change costs.

use std::io;

use super::{
    Scenario,
    fanout::plan,
    joins,
    stage::{self, Pace},
    topics, triggers,
};
use crate::{
    options::Options,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
};

/// A change may make nothing dearer by more than this.
const RATIO_MAX: f64 = 1.03;

/// Triggers, deliveries and joins, with this build and with the one that `--before` names. The two are measured in
/// pairs, each first by turns.
pub(super) fn builds(options: &Options, target: &Target) -> io::Result<Report> {
    let Some(before) = &options.before else {
        let missing = "builds compares two programs: -- --before PATH names the other one";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, missing));
    };
    let earlier = Target { program: before.clone(), ..target.clone() };
    let (mut figures, mut remarks, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for load in [Load::Triggers, Load::Steady, Load::Saturated, Load::Topics, Load::Joins] {
        let (mut ours, mut base) = (Vec::new(), Vec::new());
        for round in 0..options.rounds(9) {
            say(&format!("{}, round {}", load.name(), round + 1));
            let mut turns = [(&earlier, &mut base), (target, &mut ours)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (target, costs) in turns {
                let cost = load.measure(Subject::server(target)?, options)?;
                costs.push(cost.cpu_us);
                remarks.extend(cost.remarks);
                faults.extend(cost.faults);
            }
        }
        let bound = Bound::RatioAtMost(RATIO_MAX);
        figures.push(Figure::new(load.name(), ours, base, bound).in_pairs());
    }
    let scenario = Scenario::Builds.name();
    Ok(Report { scenario, base: "before", figures, remarks, faults })
}

/// A load, and the unit of work whose processor time is compared.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// Triggers that one subscriber hears.
    Triggers,
    /// Deliveries to 1,000 subscribers, 50 events a second.
    Steady,
    /// Deliveries to 1,000 subscribers with eight events under way.
    Saturated,
    /// Deliveries to 10,000 topics of one subscriber each.
    Topics,
    /// Joins of 10,000 clients.
    Joins,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Triggers => "CPU per trigger, one hears, us",
            Self::Steady => "CPU per delivery as in fanout-steady, us",
            Self::Saturated => "CPU per delivery as in fanout-saturated, us",
            Self::Topics => "CPU per delivery as in topics-many, us",
            Self::Joins => "CPU per public join, us",
        }
    }

    fn measure(self, subject: Subject, options: &Options) -> io::Result<Cost> {
        let lasting = options.lasting(4);
        let fanout = |subject, pace| {
            let measured = stage::measure(subject, plan(options, 1_000, 128, pace))?;
            let cpu_us = measured.cpu_per_delivery_us();
            Ok(Cost { cpu_us, remarks: measured.remarks, faults: measured.faults })
        };
        let clients = options.connections.unwrap_or(10_000);
        match self {
            Self::Triggers => {
                let measured = triggers::heard(subject, lasting)?;
                let remarks = measured.remark().into_iter().collect();
                Ok(Cost { cpu_us: measured.cpu_us(), remarks, faults: Vec::new() })
            }
            Self::Steady => fanout(subject, Pace::PerSecond(50)),
            Self::Saturated => fanout(subject, Pace::Window(8)),
            Self::Topics => {
                let measured = topics::measure(subject, clients, lasting)?;
                let remarks = measured.remark.iter().cloned().collect();
                let faults = measured.fault.iter().cloned().collect();
                Ok(Cost { cpu_us: measured.cpu_us(), remarks, faults })
            }
            Self::Joins => {
                let measured = joins::public(subject, clients)?;
                let remarks = measured.remark().into_iter().collect();
                Ok(Cost { cpu_us: measured.cpu_us(), remarks, faults: Vec::new() })
            }
        }
    }
}

/// The result of one measurement.
struct Cost {
    cpu_us: f64,
    remarks: Vec<String>,
    faults: Vec<String>,
}
