//! `/api/admin/apps`: the admin API. Basic auth, forms or JSON in, JSON out.

mod view;

use actix_web::{HttpRequest, HttpResponse, guard, http::header, middleware::from_fn, web};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::{
    Services, admin, audit, auth::PREVIOUS_PAIR, body::Body, client::client_of, error::ApiError,
    read, refuse_method,
};
use crate::{
    app::{
        audit::ChangedBy,
        change::ChangeError,
        fields::{AppFields, FieldWriter},
        key_pair::Overlap,
        registry::{self, RegistryTask},
    },
    session::body::BudgetShare,
};
pub use view::AppView;

/// Adds `/admin/apps`; call it in the scope `/api`.
pub fn configure(cfg: &mut web::ServiceConfig) {
    let reading = || guard::Any(guard::Get()).or(guard::Head());
    let all = web::resource("")
        .route(web::route().guard(reading()).to(list))
        .route(web::post().to(create))
        .default_service(web::to(|| refuse_method("GET, HEAD, POST")));
    let one = web::resource("/{slug}")
        .route(web::route().guard(reading()).to(show))
        .route(web::put().to(update))
        .route(web::patch().to(update))
        .route(web::delete().to(delete))
        .default_service(web::to(|| refuse_method("GET, HEAD, PUT, PATCH, DELETE")));
    let rotation = web::resource("/{slug}/rotate")
        .route(web::post().to(rotate))
        .default_service(web::to(|| refuse_method("POST")));
    cfg.service(
        web::scope("/admin/apps")
            .wrap(from_fn(admin::require_login))
            .service(all)
            .service(one)
            .service(rotation)
            .default_service(web::to(not_found)),
    );
    cfg.service(read("/admin/audit", audit::list_all).wrap(from_fn(admin::require_login)));
}

/// Spells a time as the API does.
pub(super) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotFound => Self::NotFound,
            ChangeError::NotPermitted => Self::Unauthorized,
            ChangeError::PreviousPair => Self::Forbidden(PREVIOUS_PAIR),
            ChangeError::Invalid(faults) => Self::Invalid(faults),
            ChangeError::Store(_) => Self::Unavailable,
        }
    }
}

async fn list(
    services: web::Data<Services>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let apps = ask(&services, registry::list_apps()).await?;
    let views = apps.iter().map(|app| AppView::from(app).guarded_for(&request));
    let views: Vec<AppView> = views.collect();
    Ok(HttpResponse::Ok().json(json!({ "data": views })))
}

async fn show(
    services: web::Data<Services>,
    slug: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let app = ask(&services, registry::show_app(slug.into_inner())).await?;
    let view = AppView::from(&app).guarded_for(&request);
    Ok(HttpResponse::Ok().json(json!({ "data": view })))
}

async fn create(
    services: web::Data<Services>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let fields = read_fields(&services, &request, payload, FieldWriter::Operator).await?;
    let by = by_admin(&services, &request);
    let app = ask(&services, registry::create_app(by, fields)).await?;
    let location = format!("/api/admin/apps/{}", app.slug);
    Ok(HttpResponse::Created()
        .insert_header((header::LOCATION, location))
        .json(json!({ "data": AppView::from(&app) })))
}

async fn update(
    services: web::Data<Services>,
    slug: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let fields = read_fields(&services, &request, payload, FieldWriter::Operator).await?;
    let is_secret_new = fields.have_secret();
    let by = by_admin(&services, &request);
    let app = ask(&services, registry::update_app(by, slug.into_inner(), fields)).await?;
    let view = match AppView::from(&app) {
        view if is_secret_new => view,
        view => view.guarded_for(&request),
    };
    Ok(HttpResponse::Ok().json(json!({ "data": view })))
}

async fn rotate(
    services: web::Data<Services>,
    slug: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let overlap = read_overlap(&services, &request, payload).await?;
    let by = by_admin(&services, &request);
    let app = ask(&services, registry::rotate_app(by, slug.into_inner(), overlap)).await?;
    Ok(HttpResponse::Ok().json(json!({ "data": AppView::from(&app) })))
}

async fn delete(
    services: web::Data<Services>,
    slug: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let by = by_admin(&services, &request);
    ask(&services, registry::delete_app(by, slug.into_inner())).await?;
    Ok(HttpResponse::NoContent().finish())
}

fn by_admin(services: &Services, request: &HttpRequest) -> ChangedBy {
    ChangedBy::admin(client_of(request, &services.settings.server).address)
}

async fn not_found() -> Result<HttpResponse, ApiError> {
    Err(ApiError::NotFound)
}

/// Reads the `app` object of a request's body.
pub(super) async fn read_fields(
    services: &Services,
    request: &HttpRequest,
    payload: web::Payload,
    writer: FieldWriter,
) -> Result<AppFields, ApiError> {
    let body = Body::read(services, request, payload, BudgetShare::Whole).await?.to_map()?;
    match body.get("app") {
        Some(Value::Object(app)) => Ok(AppFields::read_by(writer, app)),
        _ => Err(ApiError::Malformed("request body must hold an object named app".into())),
    }
}

/// Reads the overlap of a rotation from a request's body.
pub(super) async fn read_overlap(
    services: &Services,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<Overlap, ApiError> {
    let body = Body::read(services, request, payload, BudgetShare::Whole).await?.to_map()?;
    Overlap::read(body.get("overlap_seconds")).map_err(ApiError::Invalid)
}

/// Asks the registry. A registry that has died is reported as an unavailable database.
pub(super) async fn ask<T: Send + 'static>(
    services: &Services,
    task: RegistryTask<T>,
) -> Result<T, ApiError> {
    match services.registry.send(task).await {
        Ok(outcome) => Ok(outcome?),
        Err(error) => {
            log::error!("app registry does not answer: {error}");
            Err(ApiError::Unavailable)
        }
    }
}

#[cfg(test)]
mod tests;
