//! `GET /metrics`: the figures of the server, for Prometheus.
//!
//! The endpoint is on the main port behind the admin's login or, where `metrics.listen` is set, on
//! a separate listener without a login, but never on both. It waits at most [`THREAD_WAIT_MAX`] for each
//! thread, answers even when the process has no file handles left, and answers while the server drains.

use std::time::Duration;

use actix_web::{
    App as WebApp, Error, HttpResponse,
    dev::{ServiceFactory, ServiceRequest, ServiceResponse},
    http::header,
    middleware::from_fn,
    web,
};

use super::{Services, admin, answer_with, error::ApiError, health, read};
use crate::metrics;

/// The time that a thread may take to report its figures.
const THREAD_WAIT_MAX: Duration = Duration::from_millis(500);

/// The most connections of the separate listener.
pub const CONNECTIONS_MAX: usize = 64;

/// Registers the endpoint on the main port, unless it has a separate listener.
pub fn configure(cfg: &mut web::ServiceConfig, has_own_listener: bool) {
    if !has_own_listener {
        cfg.service(read("/metrics", show).wrap(from_fn(admin::require_login)));
    }
}

/// The endpoints of the separate listener: this one, `/health` and `/ready`, and no others.
pub fn app(
    services: web::Data<Services>,
) -> WebApp<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse,
        Error = Error,
        InitError = (),
    >,
> {
    WebApp::new()
        .app_data(services)
        .service(read("/metrics", show))
        .configure(health::configure)
        .default_service(answer_with(ApiError::NotFound))
}

/// Shows every figure as of now.
async fn show(services: web::Data<Services>) -> HttpResponse {
    services.topics.measure(THREAD_WAIT_MAX).await;
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, metrics::CONTENT_TYPE))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(services.metrics.encode())
}

#[cfg(test)]
mod tests {
    use actix_web::{http::Method, test::TestRequest};
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;
    use crate::http::testing::TestServices;

    const ADMIN: [(&str, &str); 2] =
        [("PUSHER_ADMIN_USERNAME", "admin"), ("PUSHER_ADMIN_PASSWORD", "pa:ss")];

    fn request(method: Method, credentials: Option<&str>) -> TestRequest {
        let request = TestRequest::default().method(method).uri("/metrics");
        match credentials {
            Some(pair) => {
                request.insert_header(("Authorization", format!("Basic {}", STANDARD.encode(pair))))
            }
            None => request,
        }
    }

    #[actix_web::test]
    async fn only_the_admin_sees_it_and_it_is_only_read() {
        let services = TestServices::start_with(&ADMIN).await;
        for (case, method, credentials, expected) in [
            ("nobody", Method::GET, None, 401),
            ("somebody", Method::GET, Some("admin:pass"), 401),
            ("the admin", Method::GET, Some("admin:pa:ss"), 200),
            ("a probe", Method::HEAD, Some("admin:pa:ss"), 200),
            ("a call", Method::POST, Some("admin:pa:ss"), 405),
        ] {
            let response = services.respond(request(method, credentials)).await;
            assert_eq!(response.status(), expected, "{case}");
        }
        let response = services.respond(request(Method::GET, Some("admin:pa:ss"))).await;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("content-type"), Some(metrics::CONTENT_TYPE));
        assert_eq!(header("cache-control"), Some("no-store"));
    }

    #[actix_web::test]
    async fn guessing_here_is_guessing_there() {
        let limit = ("HERALD__LIMITS__FAILED_ADMIN_LOGINS_PER_MINUTE_MAX", "10");
        let services = TestServices::start_with(&[ADMIN[0], ADMIN[1], limit]).await;
        for _ in 0..10 {
            let wrong = services.respond(request(Method::GET, Some("admin:wrong"))).await;
            assert_eq!(wrong.status(), 401);
        }
        let right = services.respond(request(Method::GET, Some("admin:pa:ss"))).await;
        assert_eq!(right.status(), 429);
        let apps = request(Method::GET, Some("admin:pa:ss")).uri("/api/admin/apps");
        assert_eq!(services.respond(apps).await.status(), 429);
    }

    #[actix_web::test]
    async fn where_it_has_a_listener_of_its_own_the_main_port_has_it_not() {
        let listen = ("HERALD__METRICS__LISTEN", "127.0.0.1:9568");
        let services = TestServices::start_with(&[ADMIN[0], ADMIN[1], listen]).await;
        let response = services.respond(request(Method::GET, Some("admin:pa:ss"))).await;
        assert_eq!(response.status(), 404);
    }
}
