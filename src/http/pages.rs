//! The demo page: a few files, built into the program, that need no other server.

use actix_web::{HttpResponse, web};

use super::files::File;

/// The page's content security policy: it may run this server's files and connect to this server's
/// sockets. Some browsers do not count `ws:` to the same host as `'self'`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; \
    object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// The page's icon.
pub(super) const ICON: File = file("image/svg+xml", include_bytes!("../../static/herald.svg"));
/// The module that recovers what a page missed.
pub(super) const RECOVERY: File = file(SCRIPT, include_bytes!("../../static/herald-recovery.mjs"));
/// The colours and fonts.
pub(super) const PALETTE: File = file(STYLE, include_bytes!("../../static/palette.css"));
/// The client library.
pub(super) const PHOENIX: File = file(SCRIPT, include_bytes!("../../static/phoenix.mjs"));

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// The files of the page by their paths.
static FILES: [(&str, File); 9] = [
    ("/", file("text/html; charset=utf-8", include_bytes!("../../static/index.html"))),
    ("/palette.css", PALETTE),
    ("/herald.css", file(STYLE, include_bytes!("../../static/herald.css"))),
    ("/herald.js", file(SCRIPT, include_bytes!("../../static/herald.js"))),
    ("/feed.js", file(SCRIPT, include_bytes!("../../static/feed.js"))),
    ("/copy.js", file(SCRIPT, include_bytes!("../../static/copy.js"))),
    ("/herald.svg", ICON),
    ("/herald-recovery.mjs", RECOVERY),
    ("/phoenix.mjs", PHOENIX),
];

const fn file(content_type: &'static str, bytes: &'static [u8]) -> File {
    File { content_type, bytes, content_security_policy: CONTENT_SECURITY_POLICY }
}

/// Registers the page and its files.
pub fn configure(cfg: &mut web::ServiceConfig) {
    for (path, file) in FILES {
        cfg.service(file.at(path));
    }
}

/// Answers every request that has no other answer.
pub async fn not_found() -> HttpResponse {
    HttpResponse::NotFound().content_type("text/plain; charset=utf-8").body("not found\n")
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
        for (path, file) in FILES {
            let response = services.respond(TestRequest::get().uri(path)).await;
            assert_eq!(response.status(), 200, "{path}");
            for (name, expected) in [
                ("content-type", file.content_type),
                ("content-security-policy", CONTENT_SECURITY_POLICY),
                ("x-content-type-options", "nosniff"),
                ("cache-control", "no-cache"),
            ] {
                let value = response.headers().get(name).and_then(|value| value.to_str().ok());
                assert_eq!(value, Some(expected), "{path} {name}");
            }
            let body = actix_web::body::to_bytes(response.into_body()).await.expect("a body");
            assert_eq!(body, file.bytes, "{path}");
        }
    }

    #[actix_web::test]
    async fn a_browser_that_has_the_file_is_told_so() {
        let services = TestServices::start().await;
        let current = FILES[0].1.etag();
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
