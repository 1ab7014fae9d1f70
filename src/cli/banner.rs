//! The text that a starting server prints in development: the address of the demo page, and an example.

use std::net::SocketAddr;

use secrecy::ExposeSecret;

use super::remote::reachable;
use crate::{app::App, settings::Settings};

/// Spells the page's address and, for the seeded app, how to send it an event.
pub(super) fn banner(settings: &Settings, port: u16, seeded: Option<&App>) -> String {
    let address = reachable(settings.server.host, port);
    let mut text = format!("\nHerald {} listens\n\n", env!("CARGO_PKG_VERSION"));
    if settings.server.demo_page {
        text += &format!("  page    http://{address}/\n");
    } else {
        text += &format!("  server  http://{address}\n");
    }
    if let Some(app) = seeded {
        text += &introduce(app, address);
    }
    text
}

fn introduce(app: &App, address: SocketAddr) -> String {
    let App { slug, key, .. } = app;
    let secret = app.secret.expose_secret();
    let payload = r#"{"name":"curl","message":"Hello from a terminal"}"#;
    format!(
        "  app     {slug}\n  key     {key}\n  secret  {secret}\n\n\
         Open the page, then send it an event:\n\n  \
         curl -d topic=foo-topic -d event=msg -d 'payload={payload}' \
         http://{key}:{secret}@{address}/api/apps/{slug}/events\n\n"
    )
}
