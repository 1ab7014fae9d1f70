//! `GET /health` and `GET /ready`: whether the process runs, and whether it accepts new clients.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use actix::MailboxError;
use actix_web::{HttpResponse, HttpResponseBuilder, http::header, web};
use serde_json::json;

use super::{Services, read};
use crate::{
    app::registry::{DatabaseHealth, DatabaseState},
    engine::EngineState,
};

/// The time for which `/ready` waits for the registry, which answers from memory.
const REGISTRY_WAIT_MAX: Duration = Duration::from_millis(500);

/// Registers both endpoints.
pub fn configure(cfg: &mut web::ServiceConfig) {
    cfg.service(read("/health", health)).service(read("/ready", ready));
}

/// Answers that the process runs, without asking any other part of the server.
async fn health() -> HttpResponse {
    answer(HttpResponse::Ok(), json!({ "status": "ok" }))
}

/// Answers 200 if this server accepts new clients, or else 503: the registry is loaded, every worker
/// thread accepts connections, the engine of a cluster is up, and no shutdown is under way.
///
/// The state of the database is shown, but does not change the status: only the admin API needs it.
async fn ready(services: web::Data<Services>) -> HttpResponse {
    let (is_loaded, database) = match ask_registry(&services).await {
        Ok(DatabaseHealth::Ok) => (true, "ok"),
        Ok(DatabaseHealth::Failed) => (true, "failed"),
        Err(_) => (services.registry.connected(), "unknown"),
    };
    let engine = services.topics.engine_state();
    let is_engine_down = engine.is_some_and(|state| state != EngineState::Up);
    let status = match () {
        () if services.draining.load(Relaxed) => "draining",
        () if !is_loaded => "registry is down",
        () if services.metrics.accept_panics.get() > 0 => "a worker thread is broken",
        () if is_engine_down => "the engine is down",
        () => "ready",
    };
    let mut body = json!({ "status": status, "database": database });
    // A server of one node has no engine.
    if engine.is_some() {
        body["engine"] = if is_engine_down { "down" } else { "ok" }.into();
    }
    if status == "ready" {
        return answer(HttpResponse::Ok(), body);
    }
    let mut response = HttpResponse::ServiceUnavailable();
    response.insert_header((header::RETRY_AFTER, "1"));
    answer(response, body)
}

async fn ask_registry(services: &Services) -> Result<DatabaseHealth, MailboxError> {
    services.registry.send(DatabaseState).timeout(REGISTRY_WAIT_MAX).await
}

fn answer(mut response: HttpResponseBuilder, body: serde_json::Value) -> HttpResponse {
    response.insert_header((header::CACHE_CONTROL, "no-store")).json(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::TestServices;
    use actix_web::test::TestRequest;

    #[actix_web::test]
    async fn the_process_is_up_and_ready_until_it_drains() {
        let services = TestServices::start().await;
        let get = |path| services.call(TestRequest::get().uri(path));
        let ready = json!({ "status": "ready", "database": "ok" });
        assert_eq!(get("/health").await, (200, json!({ "status": "ok" })));
        assert_eq!(get("/ready").await, (200, ready));
        services.services.draining.store(true, Relaxed);
        let draining = json!({ "status": "draining", "database": "ok" });
        assert_eq!(get("/health").await, (200, json!({ "status": "ok" })));
        assert_eq!(get("/ready").await, (503, draining));
    }

    #[actix_web::test]
    async fn a_server_with_a_broken_thread_is_up_and_not_ready() {
        let services = TestServices::start().await;
        services.services.metrics.accept_panics.inc();
        let get = |path| services.call(TestRequest::get().uri(path));
        let broken = json!({ "status": "a worker thread is broken", "database": "ok" });
        assert_eq!(get("/ready").await, (503, broken));
        assert_eq!(get("/health").await, (200, json!({ "status": "ok" })));
    }

    #[actix_web::test]
    async fn probes_may_be_sent_as_head_and_not_as_post() {
        let services = TestServices::start().await;
        for path in ["/health", "/ready"] {
            let head = TestRequest::default().method(actix_web::http::Method::HEAD).uri(path);
            assert_eq!(services.call(head).await.0, 200, "{path}");
            let (status, body) = services.call(TestRequest::post().uri(path)).await;
            let refused = json!({ "errors": { "detail": "method not allowed" } });
            assert_eq!((status, body), (405, refused), "{path}");
        }
    }
}
