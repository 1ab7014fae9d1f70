//! The files of the console: all of `static/console`, and the files that it shares with the demo page.

use actix_web::web;

use crate::http::{answer_with, error::ApiError, files::File, pages};

/// The console may only run files of this server and only connect to this server; no page may show it in
/// a frame. `ws:` and `wss:` are listed because some browsers do not match them by `'self'`.
pub(super) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; \
    style-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; object-src 'none'; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// The paths and contents of the files, which the build script reads from the folder.
static FOLDER: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/console_files.rs"));

/// The page itself.
const INDEX: &str = "index.html";

/// The files that the console shares with the demo page.
const SHARED: [(&str, File); 4] = [
    ("herald.svg", pages::ICON),
    ("palette.css", pages::PALETTE),
    ("herald-recovery.mjs", pages::RECOVERY),
    ("phoenix.mjs", pages::PHOENIX),
];

/// Registers the page and its files.
pub(super) fn configure(cfg: &mut web::ServiceConfig) {
    let mut assets = web::scope("/console/assets");
    for (path, bytes) in FOLDER {
        match *path {
            INDEX => drop(cfg.service(file(path, bytes).at("/console"))),
            _ => assets = assets.service(file(path, bytes).at(&format!("/{path}"))),
        }
    }
    for (path, shared) in SHARED {
        assets = assets.service(fenced(shared).at(&format!("/{path}")));
    }
    cfg.service(assets.default_service(answer_with(ApiError::NotFound)));
}

fn file(path: &str, bytes: &'static [u8]) -> File {
    fenced(File { content_type: content_type(path), bytes, content_security_policy: "" })
}

fn fenced(file: File) -> File {
    File { content_security_policy: CONTENT_SECURITY_POLICY, ..file }
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{body::to_bytes, http::header::COOKIE, test::TestRequest};
    use serde_json::json;

    use super::*;
    use crate::http::{console::session::COOKIE_NAME, testing::TestServices};

    fn url(path: &str) -> String {
        if path == INDEX { "/console".into() } else { format!("/console/assets/{path}") }
    }

    #[actix_web::test]
    async fn every_file_comes_with_its_type_and_its_fences_also_to_a_browser_with_a_session() {
        let services = TestServices::start().await;
        let begun = services.services.console.begin(&services.services.settings, None).await;
        let (value, _) = begun.expect("a session");
        let shared = SHARED.map(|(path, file)| (path, file.bytes));
        for (path, bytes) in FOLDER.iter().copied().chain(shared) {
            let request = TestRequest::get().uri(&url(path));
            let request = request.insert_header((COOKIE, format!("{COOKIE_NAME}={value}")));
            let response = services.respond(request).await;
            assert_eq!(response.status(), 200, "{path}");
            for (name, expected) in [
                ("content-type", content_type(path)),
                ("content-security-policy", CONTENT_SECURITY_POLICY),
                ("x-content-type-options", "nosniff"),
                ("x-frame-options", "DENY"),
                ("referrer-policy", "no-referrer"),
                ("cache-control", "no-cache"),
            ] {
                let value = response.headers().get(name).and_then(|value| value.to_str().ok());
                assert_eq!(value, Some(expected), "{path} {name}");
            }
            assert!(response.headers().contains_key("etag"), "{path}");
            assert_eq!(to_bytes(response.into_body()).await.expect("a body"), bytes, "{path}");
        }
    }

    #[test]
    fn the_page_has_no_script_or_style_that_the_policy_would_stop() {
        let (_, page) = FOLDER.iter().find(|(path, _)| *path == INDEX).expect("the page");
        let page = std::str::from_utf8(page).expect("text");
        assert!(!CONTENT_SECURITY_POLICY.contains("unsafe"));
        let scripts = page.matches("<script").count();
        assert!(scripts > 0 && scripts == page.matches("<script type=\"module\" src=\"/").count());
        for stopped in ["<style", " style=", " onclick=", " onload=", "javascript:"] {
            assert!(!page.contains(stopped), "{stopped}");
        }
    }

    #[actix_web::test]
    async fn other_paths_are_not_found_and_none_exists_where_the_console_is_off() {
        let services = TestServices::start().await;
        let detail = json!({ "errors": { "detail": "not found" } });
        for path in ["/console/nothing", "/console/assets", "/console/assets/../../Cargo.toml"] {
            let answer = services.call(TestRequest::get().uri(path)).await;
            assert_eq!(answer, (404, detail.clone()), "{path}");
        }
        let off = TestServices::start_with(&[("HERALD__CONSOLE__ENABLED", "false")]).await;
        for path in ["/console", "/console/assets/phoenix.mjs", "/console/session"] {
            let answer = off.call(TestRequest::get().uri(path)).await;
            assert_eq!(answer, (404, json!("not found\n")), "{path}");
        }
    }
}
