//! `herald serve`: runs the server until a signal stops it.

use std::sync::Arc;

use crate::{
    app::{App, Slug, seed},
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
    logger::start(&settings.log.filter, lines)?;
    actix_rt::System::new().block_on(serve(settings, lines))
}

async fn serve(settings: Settings, lines: &Lines) -> Result<String, CommandFailure> {
    let server = Server::build(settings.clone()).await?;
    lines.count_dropped_in(&server.metrics().log_lines_dropped);
    let address = server.address();
    let greeting = match settings.env {
        Environment::Development => {
            banner(&settings, address.port(), seeded(&settings, &server).as_deref())
        }
        Environment::Test | Environment::Production => String::new(),
    };
    // The greeting is printed by a task, which runs once the server handles signals: a reader of
    // the greeting can then stop Herald in an orderly way.
    actix_rt::spawn(async move {
        log::info!("listening on {address}");
        // The server goes on if the greeting cannot be printed.
        super::print(&greeting).ok();
    });
    server.run_until_stopped().await;
    Ok(String::new())
}

/// The seeded app as the server has it: its key and secret may have been changed since it was seeded.
///
/// A second connection to the database could fail, and would find an empty database if that is in memory.
fn seeded(settings: &Settings, server: &Server) -> Option<Arc<App>> {
    let slug = Slug::parse(seed::SLUG).filter(|slug| {
        settings.database.seed && settings.single_app.as_ref().is_none_or(|only| only == slug)
    })?;
    server.app(&slug).filter(|app| app.settings.active)
}
