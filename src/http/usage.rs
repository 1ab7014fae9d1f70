//! `GET /api/apps/<slug>/usage` and `GET /api/admin/usage`: the usage of apps by the hour, day or month.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{ACCEPT, CACHE_CONTROL},
    web,
};
use chrono::Utc;
use serde_json::{Map, Value};

use super::{
    Services, auth::Credentials, channels::param, error::ApiError, json::FieldFault,
    trigger::Findings,
};
use crate::{
    broker::topics::Unanswered,
    form,
    usage::{
        keeper::AskUsage,
        ledger::{ReportError, UsageQuestion, Whose},
        report::Report,
        span::{Span, Wording},
    },
};

/// The content type of CSV with a header line.
const CSV: &str = "text/csv; charset=utf-8; header=present";

/// The name of the question by which a node asks another to write its counts to the database.
pub const WRITE_USAGE: &str = "write_usage";

/// The format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReportFormat {
    Json,
    Csv,
}

/// Answers the usage of an app.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Invalid`] for a bad query, [`ApiError::Unavailable`] if the
/// database does not answer.
pub async fn list(
    request: HttpRequest,
    slug: web::Path<String>,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let app = Credentials::of(&request, &services)?.authenticate_application(&services, &slug)?;
    let query = form::parse_query(request.query_string().as_bytes())?;
    let (span, format) = read(&request, &query, &mut Findings::default())?;
    answer(&services, UsageQuestion { whose: Whose::App(app.id), span }, format).await
}

/// Answers the usage of all apps, or of those that have or last had the slug that the query names.
/// Deleted apps are included.
///
/// # Errors
/// [`ApiError::NotFound`] if no app has or had the slug of the query, otherwise as [`list`]'s.
pub async fn list_all(
    request: HttpRequest,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let query = form::parse_query(request.query_string().as_bytes())?;
    let mut findings = Findings::default();
    let app = findings.note("app", param(&query, "app"));
    let (span, format) = read(&request, &query, &mut findings)?;
    let whose = app.flatten().map_or(Whose::All, |slug| Whose::Slug(slug.to_owned()));
    answer(&services, UsageQuestion { whose, span }, format).await
}

/// Reads the span and the format of either call, and refuses a query that has faults.
fn read(
    request: &HttpRequest,
    query: &Map<String, Value>,
    findings: &mut Findings,
) -> Result<(Span, ReportFormat), ApiError> {
    let [from, to, by] =
        ["from", "to", "by"].map(|field| findings.note(field, param(query, field)).flatten());
    let format = findings.note("format", format(request, query));
    let span = Wording { from, to, by }.span(Utc::now());
    match (span, format) {
        (Ok(span), Some(format)) if findings.is_clean() => Ok((span, format)),
        (span, _) => {
            span.err().into_iter().for_each(|faults| findings.extend(&faults));
            Err(std::mem::take(findings).into())
        }
    }
}

/// The format that the parameter `format` names, or else the one that the caller accepts.
fn format(request: &HttpRequest, query: &Map<String, Value>) -> Result<ReportFormat, FieldFault> {
    match param(query, "format")? {
        None if accepts_csv(request) => Ok(ReportFormat::Csv),
        None | Some("json") => Ok(ReportFormat::Json),
        Some("csv") => Ok(ReportFormat::Csv),
        Some(_) => Err("must be json or csv".into()),
    }
}

/// Returns whether the `Accept` header has CSV and does not have JSON.
fn accepts_csv(request: &HttpRequest) -> bool {
    let accepted = request.headers().get_all(ACCEPT).filter_map(|value| value.to_str().ok());
    let types = accepted.flat_map(|value| value.split(','));
    let mut types = types.filter_map(|range| range.split(';').next()).map(str::trim);
    let names = |name: &'static str| move |range: &str| range.eq_ignore_ascii_case(name);
    types.clone().any(names("text/csv")) && !types.any(names("application/json"))
}

async fn answer(
    services: &Services,
    question: UsageQuestion,
    format: ReportFormat,
) -> Result<HttpResponse, ApiError> {
    // The other nodes write their counts first, because the figures would be too low without them.
    let written = services.topics.ask_nodes(WRITE_USAGE, b"", services.topics.wait_max()).await;
    written.map_err(|Unanswered| ApiError::Unavailable)?;
    let asked = services.usage.send(AskUsage(question)).await;
    let report: Report = match asked {
        Ok(Ok(report)) => report,
        Ok(Err(ReportError::UnknownApp)) => return Err(ApiError::NotFound),
        Ok(Err(error @ ReportError::TooManyRows)) => {
            return Err(ApiError::invalid("from", error.to_string()));
        }
        Ok(Err(ReportError::Store(error))) => {
            log::warn!("the usage cannot be read: {error}");
            return Err(ApiError::Unavailable);
        }
        Err(error) => {
            log::error!("the keeper of the usage does not answer: {error}");
            return Err(ApiError::Unavailable);
        }
    };
    let mut response = HttpResponse::Ok();
    response.insert_header((CACHE_CONTROL, "no-store"));
    Ok(match format {
        ReportFormat::Json => response.json(report),
        ReportFormat::Csv => response.content_type(CSV).body(report.to_csv()),
    })
}
