//! The middleware of `/api` and `/console`: it refuses writing calls from other sites' pages, and
//! recognises the console's session where a call has no `Authorization`.

use actix_web::{
    Error, HttpMessage, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        StatusCode,
        header::{self, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};

use super::{
    Services,
    client::client_of,
    console::session::{self, Session},
    cross_site,
    error::ApiError,
};
use crate::app::key_pair::NewPair;

/// The header in which a browser states how a request came about: `navigate` for a page that a person
/// opens, another value for a request of a script.
static SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Middleware: answers refused calls itself. Needs [`Services`]. A session is an extension of the
/// request from here on.
///
/// Its future is copied with each request, so the futures that only calls of the console need are boxed.
///
/// # Errors
/// Any error of the wrapped service; the refusal itself is an answer.
pub(super) async fn guard<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    // Fails closed: without settings the request's own scheme is unknown.
    let Some(services) = request.app_data::<web::Data<Services>>().cloned() else {
        let refusal = ApiError::Unavailable.error_response();
        return Ok(request.into_response(refusal).map_into_right_body());
    };
    let session = match judge(&request, &services).await {
        Ok(session) => session,
        Err(refusal) => {
            return Ok(request.into_response(refusal.error_response()).map_into_right_body());
        }
    };
    if let Some(session) = &session {
        request.extensions_mut().insert(session.clone());
    }
    let is_prompt_of_use = is_prompt_of_use(&request);
    let mut response = next.call(request).await?;
    if let Some(session) = session {
        let no_store = HeaderValue::from_static("no-store");
        response.headers_mut().insert(header::CACHE_CONTROL, no_store);
        // The handler names the pair that the call has made. The present pair may be that of another party,
        // whose change is meant to end this session.
        let made = response.request().extensions_mut().remove::<NewPair>();
        if let Some(made) = made {
            Box::pin(services.console.renew(&services, &session, &made)).await;
        }
    }
    if response.status() == StatusCode::UNAUTHORIZED && !is_prompt_of_use {
        response.headers_mut().remove(header::WWW_AUTHENTICATE);
    }
    Ok(response.map_into_left_body())
}

async fn judge(request: &ServiceRequest, services: &Services) -> Result<Option<Session>, ApiError> {
    let (method, headers) = (request.method(), request.headers());
    let scheme = || client_of(request.request(), &services.settings.server).scheme();
    if !cross_site::is_reading(method) {
        cross_site::check(method, headers, scheme())?;
    }
    if headers.contains_key(header::AUTHORIZATION) || !headers.contains_key(header::COOKIE) {
        return Ok(None);
    }
    let session = Box::pin(services.console.find(services, headers)).await?;
    let Some(session) = session else { return Ok(None) };
    // A browser attaches the cookie to requests of any page, so the cookie alone does not prove that a
    // page of this server sent the call.
    if !cross_site::is_reading(method) && !cross_site::is_proven(headers, scheme()) {
        return Err(ApiError::Forbidden(session::NO_EVIDENCE));
    }
    Ok(Some(session))
}

/// Returns whether the answer may have `WWW-Authenticate`, with which a browser opens its own prompt for
/// a password. The prompt helps a person who opens a page. A script of a page shows a login of its own.
fn is_prompt_of_use(request: &ServiceRequest) -> bool {
    let headers = request.headers();
    if headers.contains_key(header::AUTHORIZATION) {
        return true;
    }
    let is_script = headers.get(&SEC_FETCH_MODE).is_some_and(|mode| mode != "navigate");
    let is_of_console = request.path().starts_with("/console") || session::has_cookie(headers);
    !(is_script || is_of_console)
}

#[cfg(test)]
mod tests {
    use actix_web::body::BoxBody;

    use super::*;

    #[test]
    fn the_future_of_the_middleware_is_small_because_each_request_copies_it() {
        fn size<F: Future>(_: impl Fn(ServiceRequest, Next<BoxBody>) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(guard::<BoxBody>);
        assert!(bytes <= 1024, "{bytes} bytes");
    }
}
