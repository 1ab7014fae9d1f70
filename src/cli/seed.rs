//! `herald seed`: creates the app `test-app`, for development.

use super::{CommandFailure, with_tables};
use crate::{
    app::{
        seed::{self, Seeded},
        store::MissingFile,
    },
    settings::Environment,
};

pub(super) const AFTER_HELP: &str = "\
The key and secret of this app are known to the whole world, so production
refuses. In development a start does the same by itself (database.seed).

Examples:
  herald seed";

pub(super) fn run() -> Result<String, CommandFailure> {
    with_tables(MissingFile::Make, async |store, settings| {
        if settings.env == Environment::Production {
            let why = "production seeds nothing: the secret of test-app is known to all";
            return Err(CommandFailure::new(why));
        }
        let seeded = seed::seed(&store).await.map_err(|error| {
            CommandFailure::new(format!("cannot create the app {}: {error}", seed::SLUG))
        })?;
        Ok(match seeded {
            Seeded::Created => format!("created {}\n", seed::SLUG),
            Seeded::Present => {
                format!("an app with the slug or the key of {} exists already\n", seed::SLUG)
            }
        })
    })
}
