//! `GET /api/admin/audit` and `GET /api/apps/<slug>/audit`: the changes to apps, newest first.
//!
//! The administrator reads the entries of all apps, also of deleted ones. An app reads those of its
//! own id: an app that was created anew under an old slug does not see those of the older app.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use super::{
    Services, apps::ask, auth::Credentials, channels::answer, error::ApiError, json::FieldFault,
    query::Query,
};
use crate::app::{
    Slug,
    audit::{AuditEntry, AuditPage, Of},
    registry::read_audit,
};

/// The number of entries that one answer has by default.
pub const LIMIT_DEFAULT: u64 = 100;
/// The most entries of one answer.
pub const LIMIT_MAX: u64 = 1_000;

/// Lists the entries of all apps, or of those that had the slug `app`.
///
/// # Errors
/// [`ApiError::Invalid`] for a bad query, [`ApiError::Unavailable`].
pub async fn list_all(
    request: HttpRequest,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let mut query = Query::of(&request)?;
    let app = query.text("app");
    let page = page(query)?;
    let of = match app.as_deref().map(Slug::parse) {
        None => Of::All,
        Some(Some(slug)) => Of::Slug(slug),
        // No app has ever had such a slug. The text does not reach the database, which need not accept it.
        Some(None) => return Ok(shown(Vec::new())),
    };
    list(&services, AuditPage { of, ..page }).await
}

/// Lists the entries of one app, for the app itself.
///
/// # Errors
/// As [`list_all`]'s, and [`ApiError::Unauthorized`].
pub async fn list_own(
    request: HttpRequest,
    slug: web::Path<String>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let app = Credentials::of(&request, &services)?.authenticate_application(&services, &slug)?;
    let page = page(Query::of(&request)?)?;
    list(&services, AuditPage { of: Of::App(app.id), ..page }).await
}

async fn list(services: &Services, page: AuditPage) -> Result<HttpResponse, ApiError> {
    Ok(shown(ask(services, read_audit(page)).await?))
}

fn shown(entries: Vec<AuditEntry>) -> HttpResponse {
    answer(&json!({ "data": entries }))
}

fn page(mut query: Query) -> Result<AuditPage, ApiError> {
    let before = query.read("before", parse_before);
    let limit = query.limit(LIMIT_DEFAULT, LIMIT_MAX);
    query.check(Ok(AuditPage { of: Of::All, before, limit }))
}

fn parse_before(raw: &str) -> Result<i64, FieldFault> {
    let before = raw.parse().ok().filter(|before| *before > 0);
    before.ok_or_else(|| "must be the id of an entry".into())
}
