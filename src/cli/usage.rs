//! `herald usage`: the usage of apps, from the database or from a running server.

use std::sync::Arc;

use chrono::Utc;
use serde_json::json;

use super::{CommandFailure, apps::parse_slug, remote::Remote, table::table, with_tables};
use crate::{
    app::{Slug, store::MissingFile},
    metrics::Metrics,
    usage::{
        ledger::{UsageLedger, UsageQuestion, Whose},
        report::{PeriodUsage, Report},
        span::{Span, Wording},
    },
};

pub(super) const AFTER_HELP: &str = "\
Without --url the figures come from the database of the settings. A running
server writes them there at least once a minute, so the last minute may be
missing. With --url the running server answers, up to this moment. The command
logs in as the app that --app names or, without --app, as the administrator of
the settings.

Times are dates or RFC 3339, and mean whole hours; all periods begin and end by
UTC.

Examples:
  herald usage
  herald usage --app foo-app --by day
  herald usage --from 2026-11-01 --to 2026-12-01 --by month --csv
  herald usage --app foo-app --url http://127.0.0.1:4000 --json";

#[derive(Debug, clap::Args)]
pub(super) struct UsageArgs {
    /// The app; without it all apps, also deleted ones
    #[arg(long, value_name = "SLUG", value_parser = parse_slug)]
    app: Option<Slug>,
    /// The first time; without it 24 hours, 30 days or 12 months before the end
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// The end, which is not included; without it the end of the present period
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// The periods: hour, day or month
    #[arg(long, value_name = "PERIOD", default_value = "hour")]
    by: String,
    /// The server to ask instead of the database. With server.force_ssl give the https:// address of
    /// the proxy
    #[arg(long)]
    url: Option<String>,
    /// Answer as JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Answer as CSV
    #[arg(long)]
    csv: bool,
}

pub(super) fn run(args: &UsageArgs) -> Result<String, CommandFailure> {
    let (from, to, by) = (args.from.as_deref(), args.to.as_deref(), Some(args.by.as_str()));
    let span = Wording { from, to, by }.span(Utc::now());
    let span = span.map_err(|faults| CommandFailure::usage(faults.to_string()))?;
    let report = match &args.url {
        Some(url) => of_server(args, url)?,
        None => of_database(args, span)?,
    };
    Ok(match (args.json, args.csv) {
        (true, _) => super::json(&json!(report)),
        (_, true) => report.to_csv(),
        _ => shown(&report),
    })
}

fn of_database(args: &UsageArgs, span: Span) -> Result<Report, CommandFailure> {
    let whose = args.app.as_ref().map_or(Whose::All, |slug| Whose::Slug(slug.to_string()));
    with_tables(MissingFile::Refuse, async |store, _| {
        let metrics: Arc<Metrics> = Metrics::new(0);
        Ok(UsageLedger::new(store, metrics).report(&UsageQuestion { whose, span }).await?)
    })
}

fn of_server(args: &UsageArgs, url: &str) -> Result<Report, CommandFailure> {
    let mut query = vec![("by", args.by.clone())];
    let times = [("from", &args.from), ("to", &args.to)];
    query.extend(times.into_iter().filter_map(|(name, time)| Some((name, time.clone()?))));
    match &args.app {
        Some(app) => Remote::of(app, Some(url))?.get(&["usage"], &query),
        None => Remote::of_admin(Some(url))?.get(&["usage"], &query),
    }
}

/// A table; the sizes are in bytes.
fn shown(report: &Report) -> String {
    let rows: Vec<_> = report.data.iter().map(PeriodUsage::values).collect();
    match rows.is_empty() {
        true => "nothing was used\n".into(),
        false => table(
            PeriodUsage::COLUMNS
                .map(|(name, _)| name.to_uppercase())
                .each_ref()
                .map(String::as_str),
            &rows,
        ),
    }
}
