//! The cost of retaining publications: an app with history beside an app without it on the same server.
//!
//! The two apps share what differs from one process to the next, such as its memory. They take turns that are too short
//! for the machine to change meanwhile. A turn right after one of the same app costs less, because the caches hold its
//! sessions; so each app has as many of these as the other one. Each round has a server of its own, where the other app
//! is the first.
//!
//! A server retains as much as it may within the first minutes, and from then on evicts as much as it retains. That
//! state is measured, so the server may retain so little that it is reached at once.

use std::{io, time::Duration};

use super::{
    Scenario,
    fanout::plan,
    stage::{Pace, Stage, gather},
    topics::Circle,
    triggers::{CONNECTIONS, Heard},
};
use crate::{
    observe::Watch,
    options::{Options, chosen},
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
};

/// The time after which the app with a history retains as much as it may, with [`TOPICS`].
const FILLED: Duration = Duration::from_secs(3);

/// A turn of one app.
const TURN: Duration = Duration::from_secs(1);

/// How often the two apps have two turns each in a round.
const GROUPS: usize = 3;

/// By how much the numbers of the apps' first clients differ: as many clients as one may have.
const APART: usize = 20_000;

/// Topics of each app. With 10,000, as in `topics-many`, the two apps together would need more open files than many
/// machines allow, which is 20,000.
const TOPICS: usize = 9_000;

/// A part that can be run alone.
type Part = (&'static str, fn(&mut Turns<'_>) -> io::Result<()>);

const PARTS: [Part; 4] = [
    ("triggers", |turns| turns.triggers()),
    ("steady", |turns| turns.fanout("fanout-steady", Pace::PerSecond(50))),
    ("saturated", |turns| turns.fanout("fanout-saturated", Pace::Window(8))),
    ("topics", |turns| turns.topics()),
];

/// Triggers, deliveries to many and deliveries to one of many, with history and without.
pub(super) fn history(options: &Options, target: &Target) -> io::Result<Report> {
    let mut turns =
        Turns { options, target, figures: Vec::new(), remarks: Vec::new(), faults: Vec::new() };
    for part in chosen("part", &options.part, &PARTS, |part| part.0)? {
        (part.1)(&mut turns)?;
    }
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
        self.compare("CPU per trigger, one hears, us", 1.05, |turns, server, names, costs| {
            let apps = names.map(|name| Heard::open(app(server, name)?));
            let mut apps = apps.into_iter().collect::<io::Result<Vec<_>>>()?;
            turns.take(server, costs, CONNECTIONS, |nth, lasting| {
                nth_of(&mut apps, nth)?.play(lasting)
            })
        })
    }

    fn fanout(&mut self, like: &str, pace: Pace) -> io::Result<()> {
        let plan = plan(self.options, 1_000, 128, pace);
        let name = format!("CPU per delivery as in {like}, us");
        self.compare(&name, 1.02, |turns, server, names, costs| {
            let apps = names.map(|name| app(server, name));
            let mut apps = apps.into_iter().collect::<io::Result<Vec<_>>>()?;
            let gathered = apps.iter_mut().map(|app| {
                let crowd = gather(app, plan)?;
                Stage::new(app, crowd, None, plan)
            });
            let mut stages = gathered.collect::<io::Result<Vec<_>>>()?;
            turns.take(server, costs, 1, |nth, lasting| {
                let stage = nth_of(&mut stages, nth)?;
                stage.forget();
                stage.play(lasting)?;
                Ok(stage.heard())
            })?;
            turns.faults.extend(stages.iter().flat_map(Stage::faults));
            Ok(())
        })
    }

    fn topics(&mut self) -> io::Result<()> {
        let topics = self.options.connections.unwrap_or(TOPICS);
        self.compare(
            "CPU per delivery as in topics-many, us",
            1.05,
            |turns, server, names, costs| {
                let apps = names.map(|name| app(server, name));
                let mut apps = apps.into_iter().collect::<io::Result<Vec<_>>>()?;
                let gathered = apps.iter_mut().map(|app| Circle::gather(app, topics));
                let mut circles = gathered.collect::<io::Result<Vec<_>>>()?;
                turns.take(server, costs, 1, |nth, lasting| {
                    let circle = nth_of(&mut circles, nth)?;
                    circle.forget();
                    circle.play(lasting)?;
                    Ok(circle.heard())
                })?;
                turns.faults.extend(circles.iter().filter_map(Circle::fault));
                Ok(())
            },
        )
    }

    /// Compares the two apps in rounds. `round` has them take turns on a server, in the order in which it is given
    /// their names, and adds what they cost.
    fn compare(
        &mut self,
        name: &str,
        ratio_max: f64,
        round: impl Fn(&mut Self, &Subject, [AppName; 2], &mut [Vec<f64>; 2]) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for nth in 0..self.options.rounds(6) {
            say(&format!("{name}: round {}", nth + 1));
            let server = Subject::server_with_full_history(self.target)?;
            let mut names = [AppName::With, AppName::Without];
            if nth % 2 == 1 {
                names.reverse();
            }
            let mut costs = [Vec::new(), Vec::new()];
            round(self, &server, names, &mut costs)?;
            for (name, costs) in names.into_iter().zip(costs) {
                match name {
                    AppName::With => with.extend(costs),
                    AppName::Without => without.extend(costs),
                }
            }
        }
        let figure = Figure::new(name, with, without, Bound::RatioAtMost(ratio_max));
        self.figures.push(figure.in_pairs());
        Ok(())
    }

    /// Lets the two apps of a server take turns, and adds the cost of a unit of their work in microseconds. `play` does
    /// the work of the n-th app for so long, and answers how many units it was.
    fn take(
        &mut self,
        server: &Subject,
        costs: &mut [Vec<f64>; 2],
        generator_threads: usize,
        mut play: impl FnMut(usize, Duration) -> io::Result<u64>,
    ) -> io::Result<()> {
        for app in [0, 1] {
            play(app, FILLED)?;
        }
        for _ in 0..GROUPS {
            let (mut cpu_us, mut units) = ([0.0; 2], [0; 2]);
            for app in [0, 1, 1, 0] {
                let watch = Watch::begin(server.observed)?;
                units[app] += play(app, TURN)?;
                let seen = watch.seen()?;
                cpu_us[app] += seen.cpu.as_secs_f64() * 1e6;
                self.remarks.extend(seen.limit(generator_threads).map(str::to_owned));
            }
            for app in [0, 1] {
                costs[app].push(cpu_us[app] / units[app].max(1) as f64);
            }
        }
        Ok(())
    }
}

/// One of the two apps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AppName {
    /// It retains what the server's settings let it.
    With,
    /// It retains nothing.
    Without,
}

fn app(server: &Subject, name: AppName) -> io::Result<Subject> {
    match name {
        AppName::With => server.app("with-history", "", 0),
        AppName::Without => server.app("without-history", r#","history_publications":0"#, APART),
    }
}

fn nth_of<T>(all: &mut [T], nth: usize) -> io::Result<&mut T> {
    all.get_mut(nth).ok_or(io::ErrorKind::NotFound.into())
}
