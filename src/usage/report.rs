//! Reports: the usage of apps, period by period, as JSON and as CSV.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::span::{Span, time};
use crate::app::store::usage::UsageRow;

/// The answer to a question for usage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The rows, ordered by period and by the apps' numbers. There is no row for a period in which an
    /// app used nothing.
    pub data: Vec<PeriodUsage>,
}

/// The figures of an app for a period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeriodUsage {
    /// The slug of the app, or the last slug of a deleted app; `_` and the app's number if no slug is
    /// known.
    pub app: String,
    /// The number of the app. An app that was created under the slug of a deleted one has another
    /// number.
    pub app_id: i32,
    /// The beginning of the period, or of the requested part of it, as RFC 3339.
    pub from: String,
    /// The end of the period, or of the requested part of it, as RFC 3339.
    pub to: String,
    /// Publications that were accepted.
    pub publications: u64,
    /// Publications that were delivered to subscribers, once for each subscriber.
    pub deliveries: u64,
    /// Payload bytes of the publications.
    pub bytes_in: u64,
    /// Payload bytes of the deliveries.
    pub bytes_out: u64,
    /// Joins that were granted.
    pub joins: u64,
    /// Joins that were refused.
    pub refused_joins: u64,
    /// The most sessions that held a join of the app at once.
    pub connections_peak: u64,
    /// The average number of sessions that held a join of the app, over the part of the period that has
    /// passed, rounded to three decimals.
    pub connections_average: f64,
    /// Publications replayed to joins.
    pub replayed: u64,
}

/// The name of a field, and its value as text.
pub type UsageColumn = (&'static str, fn(&PeriodUsage) -> String);

impl PeriodUsage {
    /// The fields, in order.
    pub const COLUMNS: [UsageColumn; 13] = [
        ("app", |usage| usage.app.clone()),
        ("app_id", |usage| usage.app_id.to_string()),
        ("from", |usage| usage.from.clone()),
        ("to", |usage| usage.to.clone()),
        ("publications", |usage| usage.publications.to_string()),
        ("deliveries", |usage| usage.deliveries.to_string()),
        ("bytes_in", |usage| usage.bytes_in.to_string()),
        ("bytes_out", |usage| usage.bytes_out.to_string()),
        ("joins", |usage| usage.joins.to_string()),
        ("refused_joins", |usage| usage.refused_joins.to_string()),
        ("connections_peak", |usage| usage.connections_peak.to_string()),
        ("connections_average", |usage| usage.connections_average.to_string()),
        ("replayed", |usage| usage.replayed.to_string()),
    ];

    /// The usage of an app with this slug in a period of the span, as of now.
    pub(super) fn new(slug: String, row: &UsageRow, span: &Span, now: DateTime<Utc>) -> Self {
        let UsageRow { app, hour, figures } = row;
        let (from, to) = span.bounds(*hour);
        let (from, to) = (time(from), time(to));
        let passed_ms = (to.min(now) - from).num_milliseconds().max(1);
        let average = figures.connection_ms as f64 / passed_ms as f64;
        let text = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
        Self {
            app: slug,
            app_id: app.0,
            from: text(from),
            to: text(to),
            publications: figures.publications,
            deliveries: figures.deliveries,
            bytes_in: figures.bytes_in,
            bytes_out: figures.bytes_out,
            joins: figures.joins,
            refused_joins: figures.refused_joins,
            connections_peak: figures.connections_peak,
            connections_average: (average * 1_000.0).round() / 1_000.0,
            replayed: figures.replayed,
        }
    }

    /// The values of the fields, in order.
    pub fn values(&self) -> [String; 13] {
        Self::COLUMNS.map(|(_, value)| value(self))
    }
}

impl Report {
    /// The report as CSV (RFC 4180), with a header line.
    pub fn to_csv(&self) -> String {
        let mut csv = line(PeriodUsage::COLUMNS.map(|(name, _)| name.to_owned()));
        for usage in &self.data {
            csv.push_str(&line(usage.values()));
        }
        csv
    }
}

fn line<const N: usize>(values: [String; N]) -> String {
    format!("{}\r\n", values.map(|value| cell(&value)).join(","))
}

/// Quotes a value, and marks it with an apostrophe if a spreadsheet would take it for a formula: a slug
/// may begin with a hyphen.
fn cell(value: &str) -> String {
    let is_formula = value.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let value = if is_formula { format!("'{value}") } else { value.to_owned() };
    match value.contains(['"', ',', '\r', '\n']) {
        true => format!("\"{}\"", value.replace('"', "\"\"")),
        false => value,
    }
}

#[cfg(test)]
mod tests {
    use super::super::span::Wording;
    use super::*;
    use crate::{
        app::{AppId, store::usage::Hour},
        metrics::usage::Figures,
    };

    fn usage(now: &str) -> PeriodUsage {
        let now: DateTime<Utc> = now.parse().expect("a time");
        let wording = Wording { from: Some("2026-11-28T12:00:00Z"), to: None, by: None };
        let span = wording.span(now).expect("a span");
        let figures = Figures {
            publications: 1,
            deliveries: 2,
            bytes_in: 3,
            bytes_out: 4,
            joins: 5,
            refused_joins: 6,
            connections_peak: 7,
            connection_ms: 3_600_000,
            replayed: 9,
        };
        let row = UsageRow { app: AppId(8), hour: Hour(span.from.0), figures };
        PeriodUsage::new("-1-2".into(), &row, &span, now)
    }

    #[test]
    fn a_period_that_is_not_over_has_the_average_up_to_now() {
        assert_eq!(usage("2026-11-28T12:20:00Z").connections_average, 3.0);
        assert_eq!(usage("2026-11-28T12:59:59.999Z").connections_average, 1.0);
        assert_eq!(usage("2026-11-28T13:30:00Z").connections_average, 1.0);
    }

    #[test]
    fn json_and_csv_have_the_same_fields_in_the_same_order() {
        let report = Report { data: vec![usage("2026-11-28T13:00:00Z")] };
        let csv = report.to_csv();
        let lines: Vec<_> = csv.split("\r\n").collect();
        let expected = "'-1-2,8,2026-11-28T12:00:00Z,2026-11-28T13:00:00Z,1,2,3,4,5,6,7,1,9";
        assert_eq!(lines[1..], [expected, ""]);
        let json = serde_json::to_string(&report.data[0]).expect("JSON");
        let named = lines[0].split(',').map(|name| json.find(&format!("\"{name}\":")).expect(name));
        assert!(named.is_sorted(), "{json}");
        assert_eq!(json.matches("\":").count(), PeriodUsage::COLUMNS.len());
    }

    #[test]
    fn no_cell_breaks_its_line_or_is_a_formula() {
        for (value, expected) in [
            ("foo-app", "foo-app"),
            ("", ""),
            ("a,b", "\"a,b\""),
            ("a\"b", "\"a\"\"b\""),
            ("a\r\nb", "\"a\r\nb\""),
            ("-1", "'-1"),
            ("=1+1", "'=1+1"),
            ("@x,\"", "\"'@x,\"\"\""),
        ] {
            assert_eq!(cell(value), expected, "{value:?}");
        }
    }
}
