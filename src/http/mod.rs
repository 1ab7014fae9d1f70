//! REST: the one table of URLs, then one file per resource.
//!
//! | URL | file |
//! |---|---|
//! | `/api/admin/apps`, `/api/admin/apps/<slug>` | [`apps`], behind the login of [`admin`] |
//! | `/api/apps/<slug>/events` | [`events`] |
//! | `/api/apps/<slug>/channels`, `…/<scope>`, `…/<scope>/<channel>` | [`channels`] |
//! | `/api/apps/<slug>/channels/<scope>/<channel>/history` | [`history`] |
//! | `/api/apps/<slug>/disconnect` | [`disconnect`] |
//! | `/api/publish`, `/api/publish/bulk` | [`publish`] |
//! | `/health`, `/ready` | [`health`] |
//! | `/metrics` | [`metrics`], behind the login of [`admin`] or on a listener of its own |
//! | `/` and the demo page's files | [`pages`], where switched on |
//!
//! `session::path` removes empty segments from paths before they arrive here. [`error`] is the only
//! file that turns an error into a status; no endpoint here supports CORS.

pub mod admin;
pub mod apps;
pub mod auth;
pub mod basic;
pub mod body;
pub mod channels;
pub mod client;
pub mod cross_site;
pub mod disconnect;
pub mod error;
pub mod events;
pub mod health;
pub mod history;
mod json;
pub mod metrics;
mod own_host;
pub mod pace;
pub mod pages;
pub mod publish;
mod tally;
mod trigger;

#[cfg(test)]
mod testing;

use std::sync::{Arc, atomic::AtomicBool};

use actix::Addr;
use actix_web::{
    FromRequest, Handler, Resource, Responder, ResponseError, Route, guard, middleware::from_fn,
    web,
};

use crate::{
    app::{AppDirectory, refusals::Refusals, registry::AppRegistry},
    broker::{Addressing, Topics},
    metrics::Metrics,
    session::body::Bodies,
    settings::Settings,
};
use error::ApiError;

/// The values that all handlers share; a handler takes them as `web::Data<Services>`.
pub struct Services {
    /// The settings.
    pub settings: Arc<Settings>,
    /// The snapshot of all apps.
    pub directory: AppDirectory,
    /// The only writer of apps.
    pub registry: Addr<AppRegistry>,
    /// The broker, which takes publications.
    pub topics: Topics,
    /// Counts failed admin logins.
    pub admin_throttle: Arc<admin::Throttle>,
    /// Whether a shutdown is under way.
    pub draining: Arc<AtomicBool>,
    /// How often tokens may trigger.
    pub pace: pace::TokenPace,
    /// The budget of request bodies.
    pub bodies: Bodies,
    /// The log of refusals.
    pub refusals: Arc<Refusals>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Services {
    /// How topics are spelled on this server.
    pub fn addressing(&self) -> Addressing {
        match &self.settings.single_app {
            Some(slug) => Addressing::SingleApp(slug.clone()),
            None => Addressing::ManyApps,
        }
    }
}

/// Registers every URL of this room that the settings enable on the main port. Needs [`Services`]
/// as app data; wrap the whole app in [`client::require_tls`].
pub fn configure(cfg: &mut web::ServiceConfig, settings: &Settings) {
    cfg.service(
        web::scope("/api")
            .wrap(from_fn(cross_site::guard))
            .configure(apps::configure)
            .service(
                // A pattern is a regular expression and costs time per byte, while a plain prefix
                // costs next to nothing: the routes that need no pattern stand outside of it.
                web::scope("/apps")
                    .service(post("/{slug}/events").route(web::post().to(events::create)))
                    .service(post("/{slug}/disconnect").route(web::post().to(disconnect::create)))
                    .service(read("/{slug}/channels", channels::list))
                    .service(read("/{slug}/channels/{scope}", channels::show_scope))
                    .service(read("/{slug}/channels/{scope}/{channel:.+}/history", history::list))
                    .service(read("/{slug}/channels/{scope}/{channel:.+}", channels::show_channel))
                    .default_service(answer_with(ApiError::NotFound)),
            )
            .service(post("/publish").route(web::post().to(publish::create)))
            .service(post("/publish/bulk").route(web::post().to(publish::create_all)))
            .default_service(answer_with(ApiError::NotFound)),
    );
    cfg.configure(health::configure);
    metrics::configure(cfg, settings.metrics.listen.is_some());
    if settings.server.demo_page {
        cfg.configure(pages::configure);
    }
    cfg.default_service(web::to(pages::not_found));
}

/// A resource that only accepts `POST`.
fn post(path: &str) -> Resource {
    web::resource(path).default_service(answer_with(ApiError::MethodNotAllowed { allow: "POST" }))
}

/// A resource that is only read: `GET`, and `HEAD`, which probes often send.
fn read<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let is_read = guard::Any(guard::Get()).or(guard::Head());
    web::resource(path)
        .route(web::route().guard(is_read).to(handler))
        .default_service(answer_with(ApiError::MethodNotAllowed { allow: "GET, HEAD" }))
}

/// A route whose only answer is this error.
fn answer_with(error: ApiError) -> Route {
    web::to(move || {
        let response = error.error_response();
        async { response }
    })
}
