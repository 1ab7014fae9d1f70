//! Reports: one readable table, or the same as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::options::Options;

/// How often a long run says how far it is.
pub const PROGRESS: Duration = Duration::from_secs(5);

/// Prints a line about the progress to standard error; it is never part of the result.
pub fn say(words: &str) {
    eprintln!("{words}");
}

/// The bound of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// The ratio is at least this.
    RatioAtLeast(f64),
    /// The server's own value is at most this.
    ValueAtMost(f64),
    /// The server's own value is at least this.
    ValueAtLeast(f64),
    /// Shown, not judged.
    None,
}

/// The values of a figure that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// The medians of all rounds.
    Medians,
    /// The two of each round; the median of these ratios counts.
    Pairs,
    /// The two of each round; the worst of these ratios counts: the lowest where a higher one is better,
    /// and otherwise the highest.
    WorstPair,
}

/// One figure over all rounds.
#[derive(Debug, Clone)]
pub struct Figure {
    /// The name of the figure, with its unit.
    pub name: String,
    /// The server's values.
    pub ours: Vec<f64>,
    /// The values it is compared with; empty where there are none.
    pub base: Vec<f64>,
    /// How they are compared.
    pub compared: Compared,
    /// The bound that it must keep.
    pub bound: Bound,
}

/// The results of a scenario.
#[derive(Debug, Clone)]
pub struct Report {
    /// The scenario.
    pub scenario: &'static str,
    /// The title of the second column, usually the floor.
    pub base: &'static str,
    /// The figures.
    pub figures: Vec<Figure>,
    /// Remarks for the reader of the report.
    pub remarks: Vec<String>,
    /// The faults of the server; empty if there are none.
    pub faults: Vec<String>,
}

impl Figure {
    /// A figure whose medians are compared.
    pub fn new(name: &str, ours: Vec<f64>, base: Vec<f64>, bound: Bound) -> Self {
        Self { name: name.to_owned(), ours, base, compared: Compared::Medians, bound }
    }

    /// The same, with the two of each round compared.
    pub fn in_pairs(self) -> Self {
        Self { compared: Compared::Pairs, ..self }
    }

    /// The ratio of the two, where there is something to compare with.
    pub fn ratio(&self) -> Option<f64> {
        match self.compared {
            Compared::Medians => {
                let base = median(&self.base).filter(|base| *base > 0.0)?;
                Some(median(&self.ours)? / base)
            }
            Compared::Pairs => median(&self.ratios().collect::<Vec<_>>()),
            Compared::WorstPair => match self.bound {
                Bound::RatioAtLeast(_) | Bound::ValueAtLeast(_) => self.ratios().reduce(f64::min),
                _ => self.ratios().reduce(f64::max),
            },
        }
    }

    /// The ratios of the rounds.
    fn ratios(&self) -> impl Iterator<Item = f64> {
        let pairs = self.ours.iter().zip(&self.base);
        pairs.filter(|(_, base)| **base > 0.0).map(|(ours, base)| ours / base)
    }

    /// By which factor the bound is missed; at most 1 where it is kept.
    pub fn excess(&self) -> Option<f64> {
        match self.bound {
            Bound::RatioAtMost(bound) => self.ratio().map(|ratio| ratio / bound),
            Bound::RatioAtLeast(bound) => self.ratio().map(|ratio| bound / ratio),
            Bound::ValueAtMost(bound) => median(&self.ours).map(|value| value / bound),
            Bound::ValueAtLeast(bound) => median(&self.ours).map(|value| bound / value),
            Bound::None => None,
        }
    }

    fn bound(&self) -> String {
        match self.bound {
            Bound::RatioAtMost(bound) => format!("ratio <= {bound}"),
            Bound::RatioAtLeast(bound) => format!("ratio >= {bound}"),
            Bound::ValueAtMost(bound) => format!("<= {bound}"),
            Bound::ValueAtLeast(bound) => format!(">= {bound}"),
            Bound::None => String::new(),
        }
    }

    fn verdict(&self) -> &'static str {
        match self.excess() {
            None => "",
            Some(excess) if excess <= 1.0 => "kept",
            Some(_) => "MISSED",
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "ours": self.ours, "base": self.base, "ratio": self.ratio(),
            "bound": self.bound(), "verdict": self.verdict(),
        })
    }
}

impl Report {
    /// Prints the report.
    ///
    /// # Errors
    /// If there were faults, or a figure is too far beyond its bound, where the options ask for that.
    pub fn publish(&self, options: &Options) -> Result<(), String> {
        match options.json {
            true => println!("{}", self.json()),
            false => print!("{}", self.table()),
        }
        if let Some(file) = &options.json_to {
            let written = std::fs::write(file, format!("{}\n", self.json()));
            written.map_err(|error| format!("{}: {error}", file.display()))?;
        }
        if let Some(fault) = self.faults.first() {
            return Err(fault.clone());
        }
        let Some(factor) = options.fail_beyond else { return Ok(()) };
        let far = |figure: &&Figure| figure.excess().is_some_and(|excess| excess > factor);
        match self.figures.iter().find(far) {
            Some(figure) => Err(format!("{} is beyond {} times its bound", figure.name, factor)),
            None => Ok(()),
        }
    }

    fn json(&self) -> Value {
        let figures: Vec<Value> = self.figures.iter().map(Figure::json).collect();
        json!({
            "scenario": self.scenario, "base": self.base, "figures": figures,
            "remarks": distinct(&self.remarks), "faults": distinct(&self.faults),
        })
    }

    fn table(&self) -> String {
        let mut table = format!(
            "{:<44} {:>12} {:>12} {:>7}  {:<14} {}\n",
            self.scenario, "ours", self.base, "ratio", "bound", ""
        );
        for figure in &self.figures {
            let shown = |values: &[f64]| median(values).map(significant).unwrap_or_default();
            let ratio = figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            table += &format!(
                "  {:<42} {:>12} {:>12} {ratio:>7}  {:<14} {}\n",
                figure.name,
                shown(&figure.ours),
                shown(&figure.base),
                figure.bound(),
                figure.verdict()
            );
        }
        for remark in distinct(&self.remarks) {
            table += &format!("  ! {remark}\n");
        }
        for fault in distinct(&self.faults) {
            table += &format!("  FAULT {fault}\n");
        }
        table
    }
}

/// Each of them once, with how often it was said.
fn distinct(said: &[String]) -> Vec<String> {
    let mut counted: Vec<(&String, usize)> = Vec::new();
    for words in said {
        match counted.iter_mut().find(|(known, _)| *known == words) {
            Some((_, times)) => *times += 1,
            None => counted.push((words, 1)),
        }
    }
    let spell = |(words, times): (&String, usize)| match times {
        1 => words.clone(),
        _ => format!("{words} ({times} times)"),
    };
    counted.into_iter().map(spell).collect()
}

/// The value in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => Some((sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0),
        _ => sorted.get(middle).copied(),
    }
}

/// Three digits or so, whatever the size.
fn significant(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: &[f64], base: &[f64], bound: Bound) -> Figure {
        Figure::new("a figure", ours.to_vec(), base.to_vec(), bound)
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0]), Some(5.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn pairs_are_compared_one_by_one() {
        let medians = figure(&[1.0, 20.0, 30.0], &[1.0, 10.0, 60.0], Bound::None);
        assert_eq!(medians.ratio(), Some(2.0));
        assert_eq!(medians.in_pairs().ratio(), Some(1.0));
    }

    #[test]
    fn the_worst_pair_is_the_one_that_is_farthest_from_the_good_side() {
        let worst = |bound| Figure {
            compared: Compared::WorstPair,
            ..figure(&[4.0, 30.0, 9.0], &[1.0, 10.0, 1.0], bound)
        };
        assert_eq!(worst(Bound::RatioAtLeast(2.0)).ratio(), Some(3.0));
        assert_eq!(worst(Bound::RatioAtMost(2.0)).ratio(), Some(9.0));
        assert_eq!(worst(Bound::None).ratio(), Some(9.0));
    }

    #[test]
    fn a_repeated_remark_is_printed_once() {
        let said = ["a", "b", "a"].map(str::to_owned);
        assert_eq!(distinct(&said), ["a (2 times)", "b"]);
    }

    #[test]
    fn a_bound_is_kept_up_to_itself() {
        for (bound, ours, expected) in [
            (Bound::RatioAtMost(1.25), 2.5, "kept"),
            (Bound::RatioAtMost(1.25), 2.6, "MISSED"),
            (Bound::RatioAtLeast(2.0), 4.0, "kept"),
            (Bound::RatioAtLeast(2.0), 3.9, "MISSED"),
            (Bound::ValueAtMost(5.0), 5.0, "kept"),
            (Bound::ValueAtMost(5.0), 5.1, "MISSED"),
            (Bound::ValueAtLeast(5.0), 5.0, "kept"),
            (Bound::ValueAtLeast(5.0), 4.9, "MISSED"),
            (Bound::None, 5.0, ""),
        ] {
            assert_eq!(figure(&[ours], &[2.0], bound).verdict(), expected, "{bound:?} {ours}");
        }
        assert_eq!(figure(&[1.0], &[], Bound::RatioAtMost(1.0)).verdict(), "");
    }
}
