//! `GET /api/admin/audit` and `GET /api/apps/<slug>/audit`: the changes to apps, newest first.
//!
//! The administrator reads the entries of all apps, also of deleted ones. An app reads those of its
//! own id: an app that was created anew under an old slug does not see those of the older app.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Services,
    apps::{ask, rfc3339},
    auth::Credentials,
    channels::{answer, param},
    error::ApiError,
    json::FieldFault,
    trigger::Findings,
};
use crate::{
    app::{
        Slug,
        audit::{AuditEntry, AuditPage, Of},
        registry::ReadAudit,
    },
    form,
};

/// The number of entries that one answer has by default.
pub const LIMIT_DEFAULT: u64 = 100;
/// The most entries of one answer.
pub const LIMIT_MAX: u64 = 1_000;

/// An entry as it is answered.
#[derive(Debug, Serialize)]
pub struct EntryView {
    id: i64,
    at: String,
    actor: String,
    address: Option<String>,
    action: String,
    app: String,
    fields: Vec<String>,
}

impl From<AuditEntry> for EntryView {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { id, at, actor, address, action, app, fields } = entry;
        Self { id, at: rfc3339(at), actor, address, action, app, fields }
    }
}

/// Lists the entries of all apps, or of those that had the slug `app`.
///
/// # Errors
/// [`ApiError::Invalid`] for a bad query, [`ApiError::Unavailable`].
pub async fn list_all(
    request: HttpRequest,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let query = form::parse_query(request.query_string().as_bytes())?;
    let mut findings = Findings::default();
    let app = findings.note("app", param(&query, "app"));
    let page = page(&query, findings)?;
    let of = match app.flatten().map(Slug::parse) {
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
    let query = form::parse_query(request.query_string().as_bytes())?;
    let page = page(&query, Findings::default())?;
    list(&services, AuditPage { of: Of::App(app.id), ..page }).await
}

async fn list(services: &Services, page: AuditPage) -> Result<HttpResponse, ApiError> {
    Ok(shown(ask(services, ReadAudit(page)).await?))
}

fn shown(entries: Vec<AuditEntry>) -> HttpResponse {
    let data: Vec<EntryView> = entries.into_iter().map(EntryView::from).collect();
    answer(&json!({ "data": data }))
}

fn page(query: &Map<String, Value>, mut findings: Findings) -> Result<AuditPage, ApiError> {
    let before = param(query, "before").and_then(|raw| raw.map(parse_before).transpose());
    let before = findings.note("before", before);
    let limit = param(query, "limit").and_then(|raw| raw.map_or(Ok(LIMIT_DEFAULT), parse_limit));
    let limit = findings.note("limit", limit);
    let (Some(before), Some(limit)) = (before, limit) else { return Err(findings.into()) };
    findings.check()?;
    Ok(AuditPage { of: Of::All, before, limit })
}

fn parse_before(raw: &str) -> Result<i64, FieldFault> {
    let before = raw.parse().ok().filter(|before| *before > 0);
    before.ok_or_else(|| "must be the id of an entry".into())
}

fn parse_limit(raw: &str) -> Result<u64, FieldFault> {
    let limit = raw.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| format!("must be a number from 1 to {LIMIT_MAX}").into())
}
