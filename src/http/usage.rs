//! `GET /api/apps/<slug>/usage` and `GET /api/admin/usage`: the usage of apps by the hour, day or month.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{ACCEPT, CACHE_CONTROL},
    web,
};
use chrono::Utc;

use super::{Services, auth::Credentials, error::ApiError, query::Query};
use crate::{
    broker::topics::Unanswered,
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
    let (span, format) = read(&request, Query::of(&request)?)?;
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
    let mut query = Query::of(&request)?;
    let whose = query.text("app").map_or(Whose::All, Whose::Slug);
    let (span, format) = read(&request, query)?;
    answer(&services, UsageQuestion { whose, span }, format).await
}

/// Reads the span and the format of either call, and refuses a query that has faults.
fn read(request: &HttpRequest, mut query: Query) -> Result<(Span, ReportFormat), ApiError> {
    let [from, to, by] = ["from", "to", "by"].map(|field| query.text(field));
    let format = query.read("format", |format| match format {
        "json" => Ok(ReportFormat::Json),
        "csv" => Ok(ReportFormat::Csv),
        _ => Err("must be json or csv".into()),
    });
    let wording = Wording { from: from.as_deref(), to: to.as_deref(), by: by.as_deref() };
    let span = query.check(wording.span(Utc::now()))?;
    Ok((span, format.unwrap_or_else(|| accepted_format(request))))
}

/// The format of an answer whose query names none.
fn accepted_format(request: &HttpRequest) -> ReportFormat {
    if accepts_csv(request) { ReportFormat::Csv } else { ReportFormat::Json }
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
