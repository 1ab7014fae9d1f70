//! Pusher's HTTP API, for its server SDKs.
//!
//! It implements sections 10 to 13 of the document of Pusher's protocol. Every call is signed with the
//! secret of one of the app's key pairs, and [`caller`] checks the signature before the body is read.
//! [`events`] publishes, [`channels`] lists channels and users, [`users`] ends connections, and
//! [`attributes`] counts for the first two. Every error is one line of plain text: see [`error`].
//!
//! | URL, below the setting `pusher.path_prefix` | |
//! |---|---|
//! | `/apps/<app>/events`, `/apps/<app>/batch_events` | [`events`] |
//! | `/apps/<app>/channels`, `…/<channel>`, `…/<channel>/users` | [`channels`] |
//! | `/apps/<app>/users/<user>/terminate_connections` | [`users`] |
//! | `/users/<user>/terminate_connections` | [`users`]: the path that PyPI's `pusher` calls |
//!
//! An app is named by its number, or by its slug if that does not consist of digits.

mod attributes;
mod caller;
mod channels;
pub mod error;
mod events;
mod users;

use actix_web::{FromRequest, Handler, Resource, Responder, ResponseError, Route, guard, web};

use super::Services;
use crate::settings::Settings;
use error::PusherError;

/// Registers the URLs of this API.
pub(super) fn configure(cfg: &mut web::ServiceConfig, settings: &Settings) {
    let prefix = &settings.pusher.path_prefix;
    cfg.service(
        web::scope(&below(prefix, "/apps"))
            .service(posted("/{app}/events", events::create))
            .service(posted("/{app}/batch_events", events::create_all))
            .service(read("/{app}/channels", channels::list))
            .service(read("/{app}/channels/{channel}", channels::show))
            .service(read("/{app}/channels/{channel}/users", channels::list_users))
            .service(posted("/{app}/users/{user}/terminate_connections", users::terminate))
            .default_service(answer_with(PusherError::NotFound(
                "there is nothing at this address",
            ))),
    );
    let terminate = below(prefix, "/users/{user}/terminate_connections");
    cfg.service(posted(&terminate, users::terminate));
}

/// Returns whether a path is one of this API, whose errors are plain text.
pub(super) fn is_call(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|path| {
        let is_of_user = path.starts_with("/users/") && path.ends_with("/terminate_connections");
        path == "/apps" || path.starts_with("/apps/") || is_of_user
    })
}

fn below(prefix: &str, path: &str) -> String {
    [prefix, path].concat()
}

fn posted<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let refusal = answer_with(PusherError::MethodNotAllowed { allow: "POST" });
    web::resource(path).route(web::post().to(handler)).default_service(refusal)
}

fn read<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let is_read = guard::Any(guard::Get()).or(guard::Head());
    let refusal = answer_with(PusherError::MethodNotAllowed { allow: "GET, HEAD" });
    web::resource(path).route(web::route().guard(is_read).to(handler)).default_service(refusal)
}

/// A route whose only answer is this error.
fn answer_with(error: PusherError) -> Route {
    web::to(move || {
        let response = error.error_response();
        async { response }
    })
}
