//! `herald serve`: runs the server until a signal stops it.

use crate::{
    app::{
        App, Slug, seed,
        store::{AppStore, MissingFile},
    },
    server::Server,
    settings::{Environment, Settings},
};

use super::{
    CommandFailure,
    banner::banner,
    log::{self as logger, Lines},
};

pub(super) const AFTER_HELP: &str = "\
On SIGTERM or SIGINT the server delivers all events that it has accepted and
closes every session, within server.shutdown_timeout.

Examples:
  herald serve
  PORT=5000 herald serve
  HERALD_ENV=production herald serve";

pub(super) fn run(lines: &Lines) -> Result<String, CommandFailure> {
    let settings = Settings::load()?;
    logger::start(&settings.log.filter, lines);
    actix_rt::System::new().block_on(serve(settings, lines))
}

async fn serve(settings: Settings, lines: &Lines) -> Result<String, CommandFailure> {
    let server = Server::build(settings.clone()).await?;
    lines.count_dropped_in(&server.metrics().log_lines_dropped);
    let address = server.address();
    // The greeting is printed by a task, because it asks the database once more: the server meanwhile serves, and
    // handles signals.
    actix_rt::spawn(async move {
        log::info!("listening on {address}");
        let greeting = match settings.env {
            Environment::Development => {
                // The server goes on if the database does not answer now.
                let app = seeded(&settings).await.ok().flatten();
                banner(&settings, address.port(), app.as_ref())
            }
            Environment::Test | Environment::Production => String::new(),
        };
        // The server goes on if the greeting cannot be printed.
        super::print(&greeting).ok();
    });
    server.run_until_stopped().await;
    Ok(String::new())
}

/// The seeded app as it is in the database: its key and secret may have been changed since.
async fn seeded(settings: &Settings) -> Result<Option<App>, CommandFailure> {
    let slug = Slug::parse(seed::SLUG).filter(|slug| {
        settings.database.seed && settings.single_app.as_ref().is_none_or(|only| only == slug)
    });
    let Some(slug) = slug else { return Ok(None) };
    let store = AppStore::connect(&settings.database, MissingFile::Refuse).await?;
    let app = store.find(&slug).await?;
    store.close().await;
    Ok(app.filter(|app| app.settings.active))
}
