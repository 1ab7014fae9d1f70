//! `/api/apps/<slug>`: an app as the web application itself sees and changes it, with its key and
//! secret.
//!
//! A session of the console may do the same: that of the administrator for every app, that of an app for
//! itself. The previous pair of a rotation may read, but change nothing. An answer contains the secret
//! only if the call has made or changed it. [`change_pace`](super::change_pace) limits the changes of an
//! app within a minute.
//!
//! The snapshot that authenticates a caller may be older than the database, because another process may have
//! rotated the keys. A change therefore judges the caller's pair once more by the row that it changes.

use std::time::Instant;

use actix_web::{HttpMessage, HttpRequest, HttpResponse, Resource, guard, web};
use secrecy::ExposeSecret;
use serde_json::json;

use super::{
    Services,
    apps::{AppView, ask, read_fields, read_overlap},
    auth::{Credentials, Owner},
    channels::answer,
    client::client_of,
    error::ApiError,
    refuse_method,
};
use crate::{
    app::{
        App,
        audit::{Actor, ChangedBy},
        fields::FieldWriter,
        key_pair::NewPair,
        registry::{rotate_app, show_app, update_app},
    },
    session::requests::trust,
};

/// The resource of an app.
pub fn resource(path: &str) -> Resource {
    let reading = guard::Any(guard::Get()).or(guard::Head());
    web::resource(path)
        .route(web::route().guard(reading).to(show))
        .route(web::patch().to(update))
        .default_service(web::to(|| refuse_method("GET, HEAD, PATCH")))
}

/// Shows the app, without its secret.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Unavailable`].
async fn show(
    request: HttpRequest,
    slug: web::Path<String>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let own = Credentials::of(&request, &services)?.authenticate_application(&services, &slug)?;
    let app = ask(&services, show_app(slug.into_inner())).await?;
    // The slug may have passed to another app meanwhile.
    if app.id != own.id {
        return Err(ApiError::Unauthorized);
    }
    Ok(answer(&json!({ "data": AppView::without_secret(&app) })))
}

/// Changes the fields that an app may change itself.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Forbidden`] to the previous pair,
/// [`ApiError::TooManyRequests`], [`ApiError::Invalid`], [`ApiError::Unavailable`].
async fn update(
    request: HttpRequest,
    slug: web::Path<String>,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let before = authenticate(&request, &services, &slug)?;
    trust(&request);
    let fields = read_fields(&services, &request, payload, FieldWriter::App).await?;
    let sets_secret = fields.have_secret();
    let by = by(&request, &services, &slug, &before)?;
    let app = ask(&services, update_app(by, slug.into_inner(), fields)).await?;
    // The administrator may have rotated the keys meanwhile: a secret that differs was not necessarily set by
    // this call.
    let is_other_secret = app.secret.expose_secret() != before.app.secret.expose_secret();
    let is_new_secret = sets_secret && is_other_secret;
    if is_other_secret || app.key != before.app.key {
        note_new_pair(&request, &app);
    }
    let view = if is_new_secret { AppView::from(&app) } else { AppView::without_secret(&app) };
    Ok(answer(&json!({ "data": view })))
}

/// Gives the app a new key pair, and shows it.
///
/// # Errors
/// As [`update`]'s.
pub async fn rotate(
    request: HttpRequest,
    slug: web::Path<String>,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let before = authenticate(&request, &services, &slug)?;
    trust(&request);
    let overlap = read_overlap(&services, &request, payload).await?;
    let by = by(&request, &services, &slug, &before)?;
    let app = ask(&services, rotate_app(by, slug.into_inner(), overlap)).await?;
    note_new_pair(&request, &app);
    Ok(answer(&json!({ "data": AppView::from(&app) })))
}

/// Notes the pair that this call has given to the app, for the session of the console that makes the call.
fn note_new_pair(request: &HttpRequest, app: &App) {
    let pair = NewPair { key: app.key.clone(), secret: app.secret.clone() };
    request.extensions_mut().insert(pair);
}

/// Finds the app, if the credentials are its current pair.
fn authenticate(request: &HttpRequest, services: &Services, slug: &str) -> Result<Owner, ApiError> {
    Credentials::of(request, services)?.authenticate_current(services, slug)
}

/// Judges the caller again, because the app may have changed while the body was read, and returns the
/// author of the change. An app changes itself only, even if its slug has passed to another app.
fn by(
    request: &HttpRequest,
    services: &Services,
    slug: &str,
    before: &Owner,
) -> Result<ChangedBy, ApiError> {
    let owner = authenticate(request, services, slug)?;
    if owner.app.id != before.app.id {
        return Err(ApiError::Unauthorized);
    }
    if let Actor::App(app) = owner.actor {
        services.changes.take(app, Instant::now())?;
    }
    let address = client_of(request, &services.settings.server).address;
    Ok(match owner.actor {
        Actor::App(_) => ChangedBy::app(&owner.app, address),
        Actor::Admin | Actor::Cli => ChangedBy::admin(address),
    })
}
