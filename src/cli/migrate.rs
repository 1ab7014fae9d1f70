//! `herald migrate`: the state of the database's tables.

use clap::Subcommand;
use serde_json::json;

use super::{CommandFailure, confirm::confirm, table::table, with_store};
use crate::app::store::{AppStore, Migration, MissingFile};

pub(super) const AFTER_HELP: &str = "\
Examples:
  herald migrate up
  herald migrate status --json
  herald migrate down --steps 1 --yes";

#[derive(Debug, Subcommand)]
pub(super) enum MigrateCommand {
    /// Apply all pending migrations, or the next few
    Up {
        /// The number of migrations to apply; without it all of them
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        steps: Option<u32>,
    },
    /// Revert the last migrations, and drop the data of their tables and columns; asks first on a
    /// terminal
    Down {
        /// The number of migrations to revert
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        steps: u32,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// List the migrations and whether they are applied
    Status {
        /// Answer as JSON: [{"name": …, "applied": …}]
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &MigrateCommand) -> Result<String, CommandFailure> {
    let missing = match *command {
        MigrateCommand::Up { .. } => MissingFile::Make,
        MigrateCommand::Down { .. } | MigrateCommand::Status { .. } => MissingFile::Refuse,
    };
    with_store(missing, async |store, _| {
        let before = store.migrations().await?;
        match *command {
            MigrateCommand::Up { steps } => store.migrate_up(steps).await?,
            MigrateCommand::Down { steps, yes } => {
                if !yes {
                    ask(&before, steps)?;
                }
                store.migrate_down(steps).await?;
            }
            MigrateCommand::Status { json: true } => return Ok(as_json(&before)),
            MigrateCommand::Status { json: false } => return Ok(as_text(store.name(), &before)),
        }
        report(&store, &before).await
    })
}

/// Asks whether to revert the last `steps` migrations, if there are any.
fn ask(all: &[Migration], steps: u32) -> Result<(), CommandFailure> {
    let applied = all.iter().rev().filter(|migration| migration.is_applied);
    let names: Vec<_> =
        applied.map(|m| m.name.as_str()).zip(0..steps).map(|(name, _)| name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let names = names.join(", ");
    confirm(&format!("revert {names}, and drop the data of their tables and columns"), "yes")
}

/// Names the migrations whose state has changed.
async fn report(store: &AppStore, before: &[Migration]) -> Result<String, CommandFailure> {
    let after = store.migrations().await?;
    let changed = after.iter().filter(|migration| !before.contains(migration));
    let lines: String = changed
        .map(|migration| match migration.is_applied {
            true => format!("applied {} to {}\n", migration.name, store.name()),
            false => format!("reverted {} from {}\n", migration.name, store.name()),
        })
        .collect();
    let nothing = || format!("nothing to do in {}\n", store.name());
    Ok(if lines.is_empty() { nothing() } else { lines })
}

fn as_json(migrations: &[Migration]) -> String {
    let entry = |m: &Migration| json!({"name": m.name, "applied": m.is_applied});
    super::json(&migrations.iter().map(entry).collect())
}

fn as_text(database: &str, migrations: &[Migration]) -> String {
    let state = |is_applied| if is_applied { "applied" } else { "pending" };
    let row = |m: &Migration| [m.name.clone(), state(m.is_applied).to_owned()];
    let table = table(["migration", "state"], &migrations.iter().map(row).collect::<Vec<_>>());
    format!("{database}\n\n{table}")
}
