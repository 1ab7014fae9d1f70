//! `/console`: the pages of the console, and its login.
//!
//! The pages are static and contain no data of any app: they request it from the JSON API, which accepts
//! the cookie of a [`session`] in place of `Authorization`.

mod assets;
pub mod live;
mod login;
pub mod overview;
pub mod reporter;
pub(crate) mod secret;
pub mod session;
mod watching;

use actix_web::{middleware::from_fn, web};

use super::{answer_with, error::ApiError, guard, post, read};

/// Registers the console's URLs.
pub fn configure(cfg: &mut web::ServiceConfig) {
    // The files are outside of the guarded scope: they are the same for everybody, and a browser must get them
    // when the sessions cannot be read.
    cfg.configure(assets::configure).service(
        web::scope("/console")
            .wrap(from_fn(guard::guard))
            .service(post("/login").route(web::post().to(login::create)))
            .service(post("/logout").route(web::post().to(login::delete)))
            .service(post("/live").route(web::post().to(live::create)))
            .service(read("/session", login::show))
            .default_service(answer_with(ApiError::NotFound)),
    );
}
