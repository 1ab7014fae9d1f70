//! Spans: the times between which usage is requested, and the periods into which they are divided.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, Timelike, Utc};

use crate::app::{
    fields::Faults,
    store::usage::{Hour, Periods},
};

/// The number of periods that a span has at most.
pub const PERIODS_MAX: usize = 1_000;

const NO_TIME: &str = "must be a date such as 2026-11-28, or a time such as 2026-11-28T12:00:00Z";
const NO_PERIOD: &str = "must be hour, day or month";

/// The length of a period. All periods begin and end in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeriodLength {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A month of the calendar.
    Month,
}

impl PeriodLength {
    /// Reads `hour`, `day` or `month`.
    pub fn parse(raw: &str) -> Option<Self> {
        match raw {
            "hour" => Some(Self::Hour),
            "day" => Some(Self::Day),
            "month" => Some(Self::Month),
            _ => None,
        }
    }

    /// The beginning of the period at a time.
    fn start(self, at: DateTime<Utc>) -> DateTime<Utc> {
        let date = at.date_naive();
        let (date, hour) = match self {
            Self::Hour => (date, at.hour()),
            Self::Day => (date, 0),
            Self::Month => (date.with_day(1).unwrap_or(date), 0),
        };
        midnight(date) + chrono::Duration::hours(i64::from(hour))
    }

    /// The beginning of the next period, or `start` if the calendar has no later time.
    fn next(self, start: DateTime<Utc>) -> DateTime<Utc> {
        let next = match self {
            Self::Hour => start.checked_add_signed(chrono::Duration::hours(1)),
            Self::Day => start.checked_add_days(Days::new(1)),
            Self::Month => start.checked_add_months(Months::new(1)),
        };
        next.unwrap_or(start)
    }

    /// The beginning of a span without a `from`: 24 hours, 30 days or 12 months before its end.
    fn default_from(self, to: DateTime<Utc>) -> DateTime<Utc> {
        let from = match self {
            Self::Hour => to.checked_sub_signed(chrono::Duration::hours(24)),
            Self::Day => to.checked_sub_days(Days::new(30)),
            Self::Month => to.checked_sub_months(Months::new(12)),
        };
        from.unwrap_or(DateTime::UNIX_EPOCH).max(DateTime::UNIX_EPOCH)
    }
}

/// Whole hours from one time to another, in periods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The first hour.
    pub from: Hour,
    /// The hour after the last one.
    pub to: Hour,
    by: PeriodLength,
}

/// The parameters by which a caller describes a span, as raw text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wording<'a> {
    /// The beginning, included.
    pub from: Option<&'a str>,
    /// The end, excluded.
    pub to: Option<&'a str>,
    /// The length of the periods: `hour`, `day` or `month`.
    pub by: Option<&'a str>,
}

impl Wording<'_> {
    /// Parses a span. Times are dates or RFC 3339; a time within an hour selects the whole hour. Without
    /// a `to` the span ends with the present period, without a `from` it begins 24 hours, 30 days or
    /// 12 months before its end, and without a `by` its periods are hours.
    ///
    /// # Errors
    /// [`Faults`] by parameter, all at once.
    pub fn span(&self, now: DateTime<Utc>) -> Result<Span, Faults> {
        let mut faults = Faults::default();
        let by = self.by.map_or(Some(PeriodLength::Hour), PeriodLength::parse);
        if by.is_none() {
            faults.add("by", NO_PERIOD);
        }
        let mut read = |field, raw: Option<&str>| match raw.map(parse_time) {
            Some(None) => {
                faults.add(field, NO_TIME);
                None
            }
            Some(time) => time,
            None => None,
        };
        let (from, to) = (read("from", self.from), read("to", self.to));
        let Some(by) = by.filter(|_| faults.is_empty()) else { return Err(faults) };
        let to = to.unwrap_or_else(|| by.next(by.start(now)));
        let from = from.unwrap_or_else(|| by.default_from(to));
        let span = Span { from: hour(from), to: hour(to + ALMOST_AN_HOUR), by };
        if span.from >= span.to {
            faults.add("from", "must be before to");
        } else if span.starts().take(PERIODS_MAX + 1).count() > PERIODS_MAX {
            let fault = "makes more than 1000 periods of this time: ask for less time, or for longer periods";
            faults.add("by", fault);
        } else {
            return Ok(span);
        }
        Err(faults)
    }
}

/// The time that is added to an end within an hour, so that rounding down yields the next full hour.
const ALMOST_AN_HOUR: chrono::Duration = chrono::Duration::milliseconds(3_599_999);

impl Span {
    /// The periods of this span, for a query of the database.
    pub fn periods(&self) -> Periods {
        match self.by {
            PeriodLength::Hour => Periods::OfHours(1),
            PeriodLength::Day => Periods::OfHours(24),
            PeriodLength::Month => Periods::From(self.starts().collect()),
        }
    }

    /// The first hour of a period of this span and the hour after its last. `start` is the answer of
    /// [`Periods::start_of`].
    pub fn bounds(&self, start: Hour) -> (Hour, Hour) {
        let end = hour(self.by.next(self.by.start(time(start))));
        (start.max(self.from), end.min(self.to))
    }

    /// The first hours of all periods.
    fn starts(&self) -> impl Iterator<Item = Hour> {
        let next = |start: &Hour| Some(self.bounds(*start).1).filter(|next| *next < self.to);
        std::iter::successors(Some(self.from), next)
    }
}

/// The time at which an hour begins.
pub fn time(hour: Hour) -> DateTime<Utc> {
    DateTime::from_timestamp(hour.0.saturating_mul(3_600), 0).unwrap_or_default()
}

fn hour(time: DateTime<Utc>) -> Hour {
    Hour(time.timestamp().div_euclid(3_600))
}

fn midnight(date: NaiveDate) -> DateTime<Utc> {
    date.and_time(NaiveTime::MIN).and_utc()
}

/// Parses a date, which means its midnight in UTC, or an RFC 3339 time; years from 1970 to 9999.
fn parse_time(raw: &str) -> Option<DateTime<Utc>> {
    let is_date = raw.len() == 10 && raw.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    let time = match is_date {
        true => midnight(NaiveDate::parse_from_str(raw, "%Y-%m-%d").ok()?),
        false => DateTime::parse_from_rfc3339(raw).ok()?.to_utc(),
    };
    (1970..=9999).contains(&time.year()).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(raw: &str) -> DateTime<Utc> {
        parse_time(raw).expect("a time")
    }

    fn span(from: Option<&str>, to: Option<&str>, by: Option<&str>) -> Result<Span, String> {
        let span = Wording { from, to, by }.span(at("2026-11-28T12:30:00Z"));
        span.map_err(|faults| serde_json::to_string(&faults).expect("JSON"))
    }

    fn shown(span: &Span) -> (String, String, usize) {
        let text = |hour| time(hour).format("%Y-%m-%dT%H").to_string();
        (text(span.from), text(span.to), span.starts().count())
    }

    #[test]
    fn a_span_is_of_whole_hours_and_has_defaults() {
        for (from, to, by, expected) in [
            (None, None, None, ("2026-11-27T13", "2026-11-28T13", 24)),
            (None, None, Some("day"), ("2026-10-30T00", "2026-11-29T00", 30)),
            (None, None, Some("month"), ("2025-12-01T00", "2026-12-01T00", 12)),
            (Some("2026-11-28"), None, None, ("2026-11-28T00", "2026-11-28T13", 13)),
            (None, Some("2026-11-01"), None, ("2026-10-31T00", "2026-11-01T00", 24)),
            (
                Some("2026-11-28T11:59:59.999Z"),
                Some("2026-11-28T14:00:00.001+02:00"),
                Some("hour"),
                ("2026-11-28T11", "2026-11-28T13", 2),
            ),
            (
                Some("2026-01-31T23:00:00Z"),
                Some("2026-03-01"),
                Some("month"),
                ("2026-01-31T23", "2026-03-01T00", 2),
            ),
            (
                Some("2024-02-28"),
                Some("2024-03-02"),
                Some("day"),
                ("2024-02-28T00", "2024-03-02T00", 3),
            ),
            (None, Some("1970-01-01T05:00:00Z"), None, ("1970-01-01T00", "1970-01-01T05", 5)),
            (
                Some("2026-11-28"),
                Some("2026-11-28T00:00:00.500Z"),
                None,
                ("2026-11-28T00", "2026-11-28T01", 1),
            ),
        ] {
            let span = span(from, to, by).expect("a span");
            let (first, last, periods) = shown(&span);
            assert_eq!(
                (first.as_str(), last.as_str(), periods),
                expected,
                "{from:?} {to:?} {by:?}"
            );
        }
    }

    #[test]
    fn nonsense_is_refused_with_all_its_faults() {
        let order = r#"{"from":["must be before to"]}"#;
        let many =
            "makes more than 1000 periods of this time: ask for less time, or for longer periods";
        let many = format!(r#"{{"by":["{many}"]}}"#);
        for (from, to, by, expected) in [
            (Some("2026-11-28"), Some("2026-11-28"), None, order),
            (Some("2026-11-29"), None, None, order),
            (Some("2026-01-01"), None, None, &many),
            (Some("1970-01-01"), Some("9999-12-31"), Some("month"), &many),
            (Some("1970-01-01"), Some("9999-12-31T23:59:59Z"), Some("hour"), &many),
        ] {
            assert_eq!(
                span(from, to, by).expect_err("a fault"),
                expected,
                "{from:?} {to:?} {by:?}"
            );
        }
        for raw in [
            "",
            "now",
            "2026",
            "2026-02-30",
            "28.11.2026",
            "2026-11-28T12",
            "2026-11-28 12:00",
            "1969-12-31",
            "10000-01-01",
            "-001-01-01",
            "2026-11-28T24:00:00Z",
            "1795867200",
            "+2026-1-01",
        ] {
            let faults = span(Some(raw), Some(raw), Some(raw)).expect_err("faults");
            for field in ["from", "to", "by"] {
                assert!(faults.contains(&format!("\"{field}\":[\"must be")), "{raw}: {faults}");
            }
        }
    }

    #[test]
    fn periods_are_cut_at_the_ends_of_the_span() {
        let of = |by| span(Some("2026-01-30T22:00:00Z"), Some("2026-03-02T05:00:00Z"), Some(by));
        for by in ["day", "month"] {
            let span = of(by).expect("a span");
            let periods = span.periods();
            let mut bounds = Vec::new();
            for hour in span.from.0..span.to.0 {
                let (from, to) = span.bounds(periods.start_of(Hour(hour)));
                assert!((from.0..to.0).contains(&hour), "{by} {hour}");
                if bounds.last() != Some(&(from, to)) {
                    bounds.push((from, to));
                }
            }
            let starts: Vec<_> = bounds.iter().map(|(from, _)| *from).collect();
            assert_eq!(starts, span.starts().collect::<Vec<_>>(), "{by}");
            assert!(bounds.windows(2).all(|pair| pair[0].1 == pair[1].0), "{by}: without a gap");
            assert_eq!(bounds.last().map(|(_, to)| *to), Some(span.to));
        }
    }
}
