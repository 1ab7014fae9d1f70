//! `POST /api/apps/<slug>/secret`: the secret of an app, on request.
//!
//! No other answer contains a secret, except the answer to the call that made it.

use actix_web::{HttpRequest, HttpResponse, http::header::CACHE_CONTROL, web};
use secrecy::ExposeSecret;
use serde_json::json;

use crate::http::{Services, auth::Credentials, error::ApiError};

/// Answers the app's current secret.
///
/// # Errors
/// [`ApiError::Unauthorized`]; [`ApiError::Forbidden`] for a session of another app, and for the
/// previous key and secret.
pub(crate) async fn show(
    request: HttpRequest,
    slug: web::Path<String>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let app = Credentials::of(&request, &services)?.authenticate_current(&services, &slug)?.app;
    let secret = app.secret.expose_secret();
    Ok(HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(json!({ "data": { "secret": secret } })))
}
