//! The demo page: a few files, built into the program, that need no other server.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::read;

/// The page's content security policy: it may run this server's files and connect to this server's
/// sockets. Some browsers do not count `ws:` to the same host as `'self'`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; \
    object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// One file of the page.
struct File {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

const FILES: [File; 8] = [
    File {
        path: "/",
        content_type: "text/html; charset=utf-8",
        bytes: include_bytes!("../../static/index.html"),
    },
    File {
        path: "/herald.css",
        content_type: "text/css; charset=utf-8",
        bytes: include_bytes!("../../static/herald.css"),
    },
    File {
        path: "/herald.js",
        content_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../static/herald.js"),
    },
    File {
        path: "/feed.js",
        content_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../static/feed.js"),
    },
    File {
        path: "/copy.js",
        content_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../static/copy.js"),
    },
    File {
        path: "/herald.svg",
        content_type: "image/svg+xml",
        bytes: include_bytes!("../../static/herald.svg"),
    },
    File {
        path: "/herald-recovery.mjs",
        content_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../static/herald-recovery.mjs"),
    },
    File {
        path: "/phoenix.mjs",
        content_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../static/phoenix.mjs"),
    },
];

/// Registers the page and its files.
pub fn configure(cfg: &mut web::ServiceConfig) {
    for file in &FILES {
        let etag = etag(file.bytes);
        let serve = move |request: HttpRequest| {
            let response = answer(file, &etag, &request);
            async move { response }
        };
        cfg.service(read(file.path, serve));
    }
}

/// Answers every request that has no other answer.
pub async fn not_found() -> HttpResponse {
    HttpResponse::NotFound().content_type("text/plain; charset=utf-8").body("not found\n")
}

fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", URL_SAFE_NO_PAD.encode(&Sha256::digest(bytes)[..12]))
}

/// Answers with a file, unless the browser has the same version. The browser asks each time, so
/// that an upgrade shows at once.
fn answer(file: &'static File, etag: &str, request: &HttpRequest) -> HttpResponse {
    let known = request.headers().get_all(header::IF_NONE_MATCH);
    let mut known = known.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    let is_known = known.any(|tag| matches!(tag.trim(), "*") || tag.trim().ends_with(etag));
    let mut response = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::ETAG, etag.to_owned()))
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"));
    if is_known {
        return response.finish();
    }
    response.content_type(file.content_type).body(file.bytes)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use serde_json::json;

    use super::*;
    use crate::http::testing::TestServices;

    #[actix_web::test]
    async fn each_file_comes_with_its_type_and_its_fences() {
        let services = TestServices::start().await;
        for file in &FILES {
            let response = services.respond(TestRequest::get().uri(file.path)).await;
            assert_eq!(response.status(), 200, "{}", file.path);
            for (name, expected) in [
                ("content-type", file.content_type),
                ("content-security-policy", CONTENT_SECURITY_POLICY),
                ("x-content-type-options", "nosniff"),
                ("cache-control", "no-cache"),
            ] {
                let value = response.headers().get(name).and_then(|value| value.to_str().ok());
                assert_eq!(value, Some(expected), "{} {name}", file.path);
            }
            let body = actix_web::body::to_bytes(response.into_body()).await.expect("a body");
            assert_eq!(body, file.bytes, "{}", file.path);
        }
    }

    #[actix_web::test]
    async fn a_browser_that_has_the_file_is_told_so() {
        let services = TestServices::start().await;
        let current = etag(FILES[0].bytes);
        for (case, known, status) in [
            ("the same", current.clone(), 304),
            ("the same, weakly", format!("W/{current}"), 304),
            ("among others", format!("\"x\", {current}"), 304),
            ("any", "*".to_owned(), 304),
            ("another", "\"x\"".to_owned(), 200),
        ] {
            let request = TestRequest::get().uri("/").insert_header(("If-None-Match", known));
            assert_eq!(services.call(request).await.0, status, "{case}");
        }
    }

    #[actix_web::test]
    async fn a_missing_page_is_reported_in_the_format_of_its_path() {
        let services = TestServices::start().await;
        let detail = json!({ "errors": { "detail": "not found" } });
        for (path, body) in [
            ("/api", detail.clone()),
            ("/api/", detail.clone()),
            ("/api/nothing", detail),
            ("/nothing", json!("not found\n")),
            ("/static/../Cargo.toml", json!("not found\n")),
            ("/apiary", json!("not found\n")),
        ] {
            assert_eq!(services.call(TestRequest::get().uri(path)).await, (404, body), "{path}");
        }
    }
}
