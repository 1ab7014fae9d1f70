//! Two builds of the server, for the effect of a change on what everything costs.

use std::io;

use super::{
    Scenario,
    comparison::{Comparison, Load},
};
use crate::{
    options::Options,
    report::Report,
    subject::{Subject, Target},
};

/// A change may make nothing dearer by more than this.
const RATIO_MAX: f64 = 1.03;

/// Triggers, deliveries and joins, with this build and with the one that `--before` names.
pub(super) fn builds(options: &Options, target: &Target) -> io::Result<Report> {
    let Some(before) = &options.before else {
        let missing = "builds compares two programs: -- --before PATH names the other one";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, missing));
    };
    let earlier = Target { program: before.clone(), ..target.clone() };
    let (ours, base) = (|| Subject::server(target), || Subject::server(&earlier));
    let mut comparison = Comparison::new(options, &ours, &base);
    for load in [Load::Triggers, Load::Steady, Load::Saturated, Load::Topics, Load::Joins] {
        comparison.measure(load, RATIO_MAX)?;
    }
    Ok(comparison.report(Scenario::Builds.name(), "before"))
}
