//! What it costs to retain publications: an app of a server that does, beside one of the same server that does not.
//!
//! The two apps take turns that are too short for the machine to change meanwhile, and share what differs from one
//! process to the next: its memory, and the threads on which the publisher's connections lie.
//!
//! A server retains as much as it may within the first minutes, and from then on evicts as much as it retains. That
//! state is measured, so the server may retain so little that it is reached at once.

use std::{io, time::Duration};

use super::{
    Scenario,
    fanout::plan,
    stage::{Pace, Stage, gather},
    topics::Circle,
    triggers::Heard,
};
use crate::{
    observe::Watch,
    options::Options,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
};

/// The time after which the app with a history retains as much as it may, with 10,000 topics.
const FILLED: Duration = Duration::from_secs(4);

/// Topics of each app. With 10,000, as in `topics-many`, the two apps together would need more open files than many
/// machines allow, which is 20,000.
const TOPICS: usize = 9_000;

/// Pauses before each turn: what a turn leaves to do is not counted to the next one.
const SETTLED: Duration = Duration::from_millis(20);

/// Triggers, deliveries to many and deliveries to one of many, with history and without.
pub(super) fn history(options: &Options, target: &Target) -> io::Result<Report> {
    let mut turns =
        Turns { options, target, figures: Vec::new(), remarks: Vec::new(), faults: Vec::new() };
    turns.triggers()?;
    turns.fanout("fanout-steady", Pace::PerSecond(50))?;
    turns.fanout("fanout-saturated", Pace::Window(8))?;
    turns.topics()?;
    let Turns { figures, remarks, faults, .. } = turns;
    Ok(Report { scenario: Scenario::History.name(), base: "no history", figures, remarks, faults })
}

/// The turns of the two apps so far.
struct Turns<'a> {
    options: &'a Options,
    target: &'a Target,
    figures: Vec<Figure>,
    remarks: Vec<String>,
    faults: Vec<String>,
}

impl Turns<'_> {
    fn triggers(&mut self) -> io::Result<()> {
        let server = Subject::server_with_full_history(self.target)?;
        let apps = apps(&server)?.map(Heard::open);
        let mut apps = apps.into_iter().collect::<io::Result<Vec<_>>>()?;
        self.take("CPU per trigger, one hears, us", 1.05, &server, |app, lasting| {
            apps.get_mut(app).ok_or(io::ErrorKind::NotFound)?.play(lasting)
        })
    }

    fn fanout(&mut self, like: &str, pace: Pace) -> io::Result<()> {
        let server = Subject::server_with_full_history(self.target)?;
        let plan = plan(self.options, 1_000, 128, pace);
        let mut apps = apps(&server)?;
        let stages = apps.each_mut().map(|app| {
            let crowd = gather(app, plan)?;
            Stage::new(app, crowd, None, plan)
        });
        let mut stages = stages.into_iter().collect::<io::Result<Vec<_>>>()?;
        let name = format!("CPU per delivery as in {like}, us");
        self.take(&name, 1.02, &server, |app, lasting| {
            let stage = stages.get_mut(app).ok_or(io::ErrorKind::NotFound)?;
            stage.forget();
            stage.play(lasting)?;
            Ok(stage.heard())
        })?;
        self.faults.extend(stages.iter().flat_map(Stage::faults));
        Ok(())
    }

    fn topics(&mut self) -> io::Result<()> {
        let server = Subject::server_with_full_history(self.target)?;
        let topics = self.options.connections.unwrap_or(TOPICS);
        let mut apps = apps(&server)?;
        let mut circles = Vec::new();
        for app in &mut apps {
            circles.push(Circle::gather(app, topics)?);
        }
        self.take("CPU per delivery as in topics-many, us", 1.05, &server, |app, lasting| {
            let circle = circles.get_mut(app).ok_or(io::ErrorKind::NotFound)?;
            circle.forget();
            circle.play(lasting)?;
            Ok(circle.heard())
        })?;
        self.faults.extend(circles.iter().filter_map(Circle::fault));
        Ok(())
    }

    /// Lets the apps take turns in pairs, each first by turns. `play` does the work of the n-th app for so long, and
    /// answers how many units it was.
    fn take(
        &mut self,
        name: &str,
        ratio_max: f64,
        server: &Subject,
        mut play: impl FnMut(usize, Duration) -> io::Result<u64>,
    ) -> io::Result<()> {
        let (pairs, lasting) = (self.options.rounds(30), self.options.lasting_short(1, 1));
        say(&format!("{name}: {pairs} pairs"));
        for app in [WITHOUT, WITH] {
            play(app, FILLED)?;
        }
        let mut costs = [Vec::new(), Vec::new()];
        for pair in 0..pairs {
            let order = if pair % 2 == 0 { [WITHOUT, WITH] } else { [WITH, WITHOUT] };
            for app in order {
                std::thread::sleep(SETTLED);
                let watch = Watch::begin(server.observed)?;
                let units = play(app, lasting)?;
                let seen = watch.seen()?;
                let cost = seen.cpu.as_secs_f64() * 1e6 / units.max(1) as f64;
                costs.get_mut(app).ok_or(io::ErrorKind::NotFound)?.push(cost);
                self.remarks.extend(seen.limit(1).map(|limit| format!("{name}: {limit}")));
            }
        }
        let [without, with] = costs;
        self.figures
            .push(Figure::new(name, with, without, Bound::RatioAtMost(ratio_max)).in_pairs());
        Ok(())
    }
}

/// The number of the app that retains nothing.
const WITHOUT: usize = 0;

/// The number of the app that retains what the server's settings let it.
const WITH: usize = 1;

/// By how much the numbers of the apps' first clients differ: as many clients as one may have.
const APART: usize = 20_000;

/// The two apps of a server, by their numbers.
fn apps(server: &Subject) -> io::Result<[Subject; 2]> {
    Ok([
        server.app("without-history", r#","history_publications":0"#, 0)?,
        server.app("with-history", "", APART)?,
    ])
}
