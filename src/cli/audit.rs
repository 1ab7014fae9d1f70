//! `herald audit`: the changes to apps, from the database.

use chrono::SecondsFormat;
use serde_json::json;

use super::{CommandFailure, apps::parse_slug, table::table, with_tables};
use crate::{
    app::{
        Slug,
        audit::{AuditEntry, AuditPage, Of},
        store::MissingFile,
    },
    http::audit::{LIMIT_DEFAULT, LIMIT_MAX},
};

pub(super) const AFTER_HELP: &str = "\
The newest entry comes first. An entry names the fields that a change set, and
never their values. Entries are kept for audit.retention_days, also those of
deleted apps.

Examples:
  herald audit
  herald audit --app foo-app --limit 10
  herald audit --before 4711 --json";

#[derive(Debug, clap::Args)]
pub(super) struct AuditArgs {
    /// Show only the entries of apps that had this slug at that time
    #[arg(long, value_name = "SLUG", value_parser = parse_slug)]
    app: Option<Slug>,
    /// Show only entries that are older than the one with this id
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    before: Option<i64>,
    /// The most entries to show, 1 to 1000
    #[arg(long, value_name = "NUMBER", default_value_t = LIMIT_DEFAULT,
        value_parser = clap::value_parser!(u64).range(1..=LIMIT_MAX))]
    limit: u64,
    /// Answer as JSON, in the shape of the admin API
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: AuditArgs) -> Result<String, CommandFailure> {
    let AuditArgs { app, before, limit, json } = args;
    let of = app.map_or(Of::All, Of::Slug);
    with_tables(MissingFile::Refuse, async |store, _| {
        let entries = store.audit(&AuditPage { of, before, limit }).await?;
        Ok(if json { super::json(&json!({ "data": entries })) } else { as_table(&entries) })
    })
}

fn as_table(entries: &[AuditEntry]) -> String {
    let row = |entry: &AuditEntry| {
        [
            entry.id.to_string(),
            entry.at.to_rfc3339_opts(SecondsFormat::Secs, true),
            entry.actor.clone(),
            entry.address.clone().unwrap_or_else(|| "-".to_owned()),
            entry.action.clone(),
            entry.app.clone(),
            entry.fields.join(", "),
        ]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    table(["id", "at", "actor", "address", "action", "app", "fields"], &rows)
}
