//! What it costs to retain publications: a server that does, beside one that does not.
//!
//! A server retains as much as it may within the first minutes, and from then on evicts as much as it retains. That
//! state is measured, so the server may retain so little that it is reached at once.

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

/// Triggers, deliveries to many and deliveries to one of many, with history and without.
pub(super) fn history(options: &Options, target: &Target) -> io::Result<Report> {
    let (with, without) =
        (|| Subject::server_with_full_history(target), || Subject::server_without_history(target));
    let mut comparison = Comparison::new(options, &with, &without);
    for (load, ratio_max) in [
        (Load::Triggers, 1.05),
        (Load::Steady, 1.02),
        (Load::Saturated, 1.02),
        (Load::Topics, 1.05),
    ] {
        comparison.measure(load, ratio_max)?;
    }
    Ok(comparison.report(Scenario::History.name(), "no history"))
}
