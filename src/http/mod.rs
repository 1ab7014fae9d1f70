//! The HTTP API: one table of all URLs, and one file per resource.
//!
//! | URL | file |
//! |---|---|
//! | `/api/admin/apps`, `/api/admin/apps/<slug>` | [`apps`], behind the login of [`admin`] |
//! | `/api/admin/apps/<slug>/rotate` | [`apps`], behind the login of [`admin`] |
//! | `/api/admin/audit` | [`audit`], behind the login of [`admin`] |
//! | `/api/apps/<slug>/audit` | [`audit`] |
//! | `/api/apps/<slug>`, `/api/apps/<slug>/rotate` | [`own_app`] |
//! | `/api/apps/<slug>/events` | [`events`] |
//! | `/api/apps/<slug>/channels`, `…/<scope>`, `…/<scope>/<channel>` | [`channels`] |
//! | `/api/apps/<slug>/channels/<scope>/<channel>/history` | [`history`] |
//! | `/api/apps/<slug>/connections`, `…/<id>` | [`connections`] |
//! | `/api/apps/<slug>/disconnect` | [`disconnect`] |
//! | `/api/apps/<slug>/usage` | [`usage`] |
//! | `/api/admin/usage` | [`usage`], behind the login of [`admin`] |
//! | `/api/publish`, `/api/publish/bulk` | [`publish`] |
//! | `/api/openapi.json` | [`openapi`] |
//! | `/health`, `/ready` | [`health`] |
//! | `/metrics` | [`metrics`], behind the login of [`admin`] or on a listener of its own |
//! | `/api/admin/nodes` | [`nodes`], behind the login of [`admin`] |
//! | `/api/admin/overview` | [`console::overview`], behind the login of [`admin`] |
//! | `/api/apps/<slug>/secret` | [`console::secret`] |
//! | `/apps/…`, `/users/…` | [`pusher`], below the setting `pusher.path_prefix` |
//! | `/console`, `/console/…` | [`console`], where switched on |
//! | `/` and the demo page's files | [`pages`], where switched on |
//!
//! `session::path` removes empty segments from paths before they arrive here. [`error`] is the only
//! file that turns an error into a status, except that [`pusher::error`] does so for [`pusher`]. No
//! endpoint here supports CORS.

pub mod admin;
pub mod apps;
pub mod audit;
pub mod auth;
pub mod basic;
pub mod body;
pub mod change_pace;
pub mod channels;
pub mod client;
pub mod connections;
pub mod console;
pub mod cross_site;
pub mod disconnect;
pub mod error;
pub mod events;
mod files;
mod guard;
pub mod health;
pub mod history;
mod json;
pub mod metrics;
pub mod nodes;
pub mod openapi;
pub mod own_app;
mod own_host;
pub mod pace;
pub mod pages;
pub mod publish;
pub mod pusher;
mod query;
mod tally;
mod trigger;
pub mod usage;

#[cfg(test)]
mod testing;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use actix::Addr;
use actix_web::{
    FromRequest, Handler, HttpResponse, Resource, Responder, ResponseError, Route, guard as method,
    middleware::from_fn, web,
};

use crate::{
    app::{AppDirectory, refusals::Refusals, registry::AppRegistry},
    broker::{Addressing, Topics},
    metrics::Metrics,
    session::{body::BodyBudget, public_id::PublicIds},
    settings::Settings,
    usage::{keeper::UsageKeeper, seat::Seat},
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
    /// The actor that keeps the usage of apps.
    pub usage: Addr<UsageKeeper>,
    /// The seat under which this node counts usage.
    pub seat: Seat,
    /// The broker, which takes publications.
    pub topics: Topics,
    /// Counts failed admin logins.
    pub admin_throttle: Arc<admin::Throttle>,
    /// Whether a shutdown is under way.
    pub draining: Arc<AtomicBool>,
    /// The rate limit on triggers by tokens.
    pub pace: pace::TokenPace,
    /// The rate limit on apps' changes to themselves.
    pub changes: change_pace::ChangePace,
    /// The budget of request bodies.
    pub bodies: BodyBudget,
    /// The names by which clients know their sessions.
    pub public_ids: PublicIds,
    /// The log of refusals.
    pub refusals: Arc<Refusals>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The console's sessions.
    pub console: console::session::LoginSessions,
    /// The samples that the console shows of the last hour.
    pub overview: console::overview::Overview,
    /// The address that this server listens on, once it does.
    pub address: OnceLock<SocketAddr>,
}

impl Services {
    /// The spelling of topics on this server.
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
            .wrap(from_fn(guard::guard))
            .configure(apps::configure)
            .service(read("/admin/usage", usage::list_all).wrap(from_fn(admin::require_login)))
            .service(read("/admin/nodes", nodes::list).wrap(from_fn(admin::require_login)))
            .service(
                read("/admin/overview", console::overview::show)
                    .wrap(from_fn(admin::require_login)),
            )
            .service(
                // A pattern is a regular expression and costs time per byte, while a plain prefix
                // costs next to nothing: the routes that need no pattern stand outside of it.
                web::scope("/apps")
                    .service(post("/{slug}/events").route(web::post().to(events::create)))
                    .service(read("/{slug}/usage", usage::list))
                    .service(post("/{slug}/disconnect").route(web::post().to(disconnect::create)))
                    .service(post("/{slug}/secret").route(web::post().to(console::secret::show)))
                    .service(read("/{slug}/connections", connections::list))
                    .service(
                        web::resource("/{slug}/connections/{id}")
                            .route(web::delete().to(connections::delete))
                            .default_service(answer_with(ApiError::MethodNotAllowed {
                                allow: "DELETE",
                            })),
                    )
                    .service(own_app::resource("/{slug}"))
                    .service(post("/{slug}/rotate").route(web::post().to(own_app::rotate)))
                    .service(read("/{slug}/audit", audit::list_own))
                    .service(read("/{slug}/channels", channels::list))
                    .service(read("/{slug}/channels/{scope}", channels::show_scope))
                    .service(read("/{slug}/channels/{scope}/{channel:.+}/history", history::list))
                    .service(read("/{slug}/channels/{scope}/{channel:.+}", channels::show_channel))
                    .default_service(answer_with(ApiError::NotFound)),
            )
            .service(read("/openapi.json", openapi::show))
            .service(post("/publish").route(web::post().to(publish::create)))
            .service(post("/publish/bulk").route(web::post().to(publish::create_all)))
            .default_service(answer_with(ApiError::NotFound)),
    );
    cfg.configure(|cfg| pusher::configure(cfg, settings));
    cfg.configure(health::configure);
    metrics::configure(cfg, settings.metrics.listen.is_some());
    if settings.console.enabled {
        cfg.configure(console::configure);
    }
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
    let is_read = method::Any(method::Get()).or(method::Head());
    web::resource(path)
        .route(web::route().guard(is_read).to(handler))
        .default_service(answer_with(ApiError::MethodNotAllowed { allow: "GET, HEAD" }))
}

async fn refuse_method(allow: &'static str) -> Result<HttpResponse, ApiError> {
    Err(ApiError::MethodNotAllowed { allow })
}

/// A route whose only answer is this error.
fn answer_with(error: ApiError) -> Route {
    web::to(move || {
        let response = error.error_response();
        async { response }
    })
}
