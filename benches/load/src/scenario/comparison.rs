//! The processor time that the same loads cost two servers, which take turns.

use std::{io, time::Duration};

use super::{
    fanout::plan,
    joins,
    stage::{self, Pace},
    topics, triggers,
};
use crate::{
    options::Options,
    report::{Bound, Figure, Report, say},
    subject::Subject,
};

/// The time after which a server with [`Subject::server_with_full_history`] retains as much as it may with 10,000
/// topics.
const FILLED: Duration = Duration::from_secs(3);

/// A load, and the unit of work whose processor time is compared.
#[derive(Debug, Clone, Copy)]
pub(super) enum Load {
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
                let measured = topics::measure(subject, clients, FILLED, lasting)?;
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

/// Starts a server.
pub(super) type Start<'a> = &'a dyn Fn() -> io::Result<Subject>;

/// The figures, remarks and faults of the loads that were compared so far.
pub(super) struct Comparison<'a> {
    options: &'a Options,
    ours: Start<'a>,
    base: Start<'a>,
    figures: Vec<Figure>,
    remarks: Vec<String>,
    faults: Vec<String>,
}

impl<'a> Comparison<'a> {
    /// Nothing is compared yet.
    pub(super) fn new(options: &'a Options, ours: Start<'a>, base: Start<'a>) -> Self {
        let (figures, remarks, faults) = Default::default();
        Self { options, ours, base, figures, remarks, faults }
    }

    /// Measures both servers in pairs, each first by turns. Their ratio may be `ratio_max`.
    ///
    /// # Errors
    /// If a server does not start, or stops answering.
    pub(super) fn measure(&mut self, load: Load, ratio_max: f64) -> io::Result<()> {
        let (mut ours, mut base) = (Vec::new(), Vec::new());
        for round in 0..self.options.rounds(9) {
            say(&format!("{}, round {}", load.name(), round + 1));
            let mut turns = [(self.base, &mut base), (self.ours, &mut ours)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (start, costs) in turns {
                let cost = load.measure(start()?, self.options)?;
                costs.push(cost.cpu_us);
                self.remarks.extend(cost.remarks);
                self.faults.extend(cost.faults);
            }
        }
        let figure = Figure::new(load.name(), ours, base, Bound::RatioAtMost(ratio_max));
        self.figures.push(figure.in_pairs());
        Ok(())
    }

    /// The report of all that was measured; `base` names the server that ours is compared with.
    pub(super) fn report(self, scenario: &'static str, base: &'static str) -> Report {
        let Self { figures, remarks, faults, .. } = self;
        Report { scenario, base, figures, remarks, faults }
    }
}
