//! `/api/admin/apps`: the admin API. Basic auth, forms or JSON in, JSON out.

use actix::{Message, dev::ToEnvelope};
use actix_web::{HttpRequest, HttpResponse, guard, http::header, middleware::from_fn, web};
use chrono::SecondsFormat;
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Services, admin, body::Body, error::ApiError};
use crate::app::{
    App,
    fields::AppFields,
    registry::{AppRegistry, CreateApp, DeleteApp, ListApps, RegistryError, ShowApp, UpdateApp},
};

/// Adds `/admin/apps`; belongs into the scope `/api`.
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
    cfg.service(
        web::scope("/admin/apps")
            .wrap(from_fn(admin::require_login))
            .service(all)
            .service(one)
            .default_service(web::to(not_found)),
    );
}

/// An app as the admin sees it: the only place where a secret is written out.
#[derive(Debug, Serialize)]
pub struct AppView {
    id: i32,
    name: String,
    slug: String,
    key: String,
    secret: String,
    active: bool,
    allowed_origins: Vec<String>,
    client_events: &'static str,
    shared_tokens: bool,
    inserted_at: String,
    updated_at: String,
}

impl From<&App> for AppView {
    fn from(app: &App) -> Self {
        Self {
            id: app.id.0,
            name: app.name.clone(),
            slug: app.slug.to_string(),
            key: app.key.clone(),
            secret: app.secret.expose_secret().to_owned(),
            active: app.active,
            allowed_origins: app.allowed_origins.as_strings().to_vec(),
            client_events: app.client_events.as_str(),
            shared_tokens: app.shared_tokens,
            inserted_at: app.inserted_at.to_rfc3339_opts(SecondsFormat::Micros, true),
            updated_at: app.updated_at.to_rfc3339_opts(SecondsFormat::Micros, true),
        }
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::NotFound => Self::NotFound,
            RegistryError::Invalid(faults) => Self::Invalid(faults),
            RegistryError::Unavailable => Self::Unavailable,
        }
    }
}

async fn list(services: web::Data<Services>) -> Result<HttpResponse, ApiError> {
    let apps = ask(&services, ListApps).await?;
    let views: Vec<AppView> = apps.iter().map(AppView::from).collect();
    Ok(HttpResponse::Ok().json(json!({ "data": views })))
}

async fn show(
    services: web::Data<Services>,
    slug: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let app = ask(&services, ShowApp(slug.into_inner())).await?;
    Ok(HttpResponse::Ok().json(json!({ "data": AppView::from(&app) })))
}

async fn create(
    services: web::Data<Services>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let fields = read_fields(&services, &request, payload).await?;
    let app = ask(&services, CreateApp(fields)).await?;
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
    let fields = read_fields(&services, &request, payload).await?;
    let app = ask(&services, UpdateApp { slug: slug.into_inner(), fields }).await?;
    Ok(HttpResponse::Ok().json(json!({ "data": AppView::from(&app) })))
}

async fn delete(
    services: web::Data<Services>,
    slug: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    ask(&services, DeleteApp(slug.into_inner())).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn refuse_method(allow: &'static str) -> Result<HttpResponse, ApiError> {
    Err(ApiError::MethodNotAllowed { allow })
}

async fn not_found() -> Result<HttpResponse, ApiError> {
    Err(ApiError::NotFound)
}

/// Reads the `app` object of a request's body.
async fn read_fields(
    services: &Services,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<AppFields, ApiError> {
    let bytes_max = services.settings.limits.request_body_bytes_max;
    let body = Body::read(request, payload, bytes_max).await?.to_map()?;
    match body.get("app") {
        Some(Value::Object(app)) => Ok(AppFields::read(app)),
        _ => Err(ApiError::Malformed("request body must hold an object named app".into())),
    }
}

/// Asks the registry; one that died counts as an unavailable database.
async fn ask<M, T>(services: &Services, message: M) -> Result<T, ApiError>
where
    M: Message<Result = Result<T, RegistryError>> + Send + 'static,
    T: Send + 'static,
    AppRegistry: actix::Handler<M>,
    actix::Context<AppRegistry>: ToEnvelope<AppRegistry, M>,
{
    match services.registry.send(message).await {
        Ok(outcome) => Ok(outcome?),
        Err(error) => {
            log::error!("app registry does not answer: {error}");
            Err(ApiError::Unavailable)
        }
    }
}
