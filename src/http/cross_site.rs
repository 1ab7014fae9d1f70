//! Refuses writing calls that a browser sends from another site's page.
//!
//! A browser attaches the Basic credentials that it remembers to the requests of every page, so
//! another site's page could act as the operator. Programs other than browsers send neither
//! `Sec-Fetch-Site` nor `Origin`, and are not affected.

use actix_web::http::{
    Method,
    header::{self, HeaderMap, HeaderName},
};
use url::Url;

use super::error::ApiError;

/// The header in which a browser states the relation between the page and the address it calls.
static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Judges a call by its method, its headers and the scheme that its client used.
///
/// # Errors
/// [`ApiError::Forbidden`] for a writing call from another site's page.
pub fn check(method: &Method, headers: &HeaderMap, scheme: &str) -> Result<(), ApiError> {
    if is_reading(method) {
        return Ok(());
    }
    let is_foreign_fetch = headers
        .get_all(&SEC_FETCH_SITE)
        .any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    let is_foreign_origin = headers
        .get_all(header::ORIGIN)
        .any(|origin| !is_own(origin.to_str().unwrap_or_default(), headers, scheme));
    if is_foreign_fetch || is_foreign_origin {
        return Err(ApiError::Forbidden("writing calls from another site's page are refused"));
    }
    Ok(())
}

/// Returns whether `origin` is exactly the scheme, host and port that this request was sent to.
///
/// An opaque origin (`null`) equals no origin, not even itself.
fn is_own(origin: &str, headers: &HeaderMap, scheme: &str) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let own = host.and_then(|host| Url::parse(&format!("{scheme}://{host}")).ok());
    match (Url::parse(origin), own) {
        (Ok(origin), Some(own)) => origin.origin() == own.origin(),
        _ => false,
    }
}

/// Returns whether a call with this method changes nothing.
pub fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Returns whether the headers prove that a page of this server sent the call. Requests without either
/// header prove nothing.
pub fn is_proven(headers: &HeaderMap, scheme: &str) -> bool {
    let mut sites = headers.get_all(&SEC_FETCH_SITE);
    match (sites.next(), sites.next()) {
        (Some(site), None) if site.as_bytes() == b"same-origin" => return true,
        (None, _) => {}
        _ => return false,
    }
    let mut origins = headers.get_all(header::ORIGIN);
    let (Some(origin), None) = (origins.next(), origins.next()) else { return false };
    is_own(origin.to_str().unwrap_or_default(), headers, scheme)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn is_taken(method: Method, headers: &[(&str, &str)], scheme: &str) -> bool {
        let mut request = TestRequest::default();
        for header in headers {
            request = request.append_header(*header);
        }
        check(&method, request.to_http_request().headers(), scheme).is_ok()
    }

    #[test]
    fn writing_calls_from_other_sites_are_refused() {
        let site = "Sec-Fetch-Site";
        let origin = "Origin";
        let host = ("Host", "herald.example");
        let with_port = ("Host", "127.0.0.1:4000");
        for (case, headers, scheme, expected) in [
            ("curl", vec![host], "http", true),
            ("no host at all", vec![], "http", true),
            ("same origin", vec![host, (site, "same-origin")], "http", true),
            ("typed by the user", vec![host, (site, "none")], "http", true),
            ("cross site", vec![host, (site, "cross-site")], "http", false),
            ("a sibling", vec![host, (site, "same-site")], "http", false),
            ("a word of the future", vec![host, (site, "other")], "http", false),
            ("said twice", vec![host, (site, "none"), (site, "cross-site")], "http", false),
            ("own origin", vec![host, (origin, "http://herald.example")], "http", true),
            ("own in capitals", vec![host, (origin, "http://HERALD.example")], "http", true),
            ("own default port", vec![host, (origin, "https://herald.example:443")], "https", true),
            ("own port", vec![with_port, (origin, "http://127.0.0.1:4000")], "http", true),
            ("other port", vec![with_port, (origin, "http://127.0.0.1:3000")], "http", false),
            ("other scheme", vec![host, (origin, "http://herald.example")], "https", false),
            ("other host", vec![host, (origin, "http://evil.example")], "http", false),
            ("longer host", vec![host, (origin, "http://herald.example.evil")], "http", false),
            ("null", vec![host, (origin, "null")], "http", false),
            ("empty", vec![host, (origin, "")], "http", false),
            ("a file", vec![host, (origin, "file://")], "http", false),
            ("not text", vec![host, (origin, "http://caf\u{e9}")], "http", false),
            ("no host to compare", vec![(origin, "http://herald.example")], "http", false),
            (
                "same origin by one header only",
                vec![host, (site, "same-origin"), (origin, "http://evil.example")],
                "http",
                false,
            ),
        ] {
            assert_eq!(is_taken(Method::POST, &headers, scheme), expected, "{case}");
        }
    }

    #[test]
    fn only_one_of_the_two_headers_that_says_so_proves_a_page_of_this_server() {
        let (site, origin) = ("Sec-Fetch-Site", "Origin");
        let (own, evil) = ((origin, "https://herald.example"), (origin, "https://evil.example"));
        for (case, headers, expected) in [
            ("nothing", vec![], false),
            ("same origin", vec![(site, "same-origin")], true),
            ("same site", vec![(site, "same-site"), own], false),
            ("typed in", vec![(site, "none"), own], false),
            ("said twice", vec![(site, "same-origin"), (site, "same-origin")], false),
            ("own origin", vec![own], true),
            ("two origins", vec![own, own], false),
            ("another's", vec![evil], false),
            ("null", vec![(origin, "null")], false),
            ("another scheme", vec![(origin, "http://herald.example")], false),
        ] {
            let mut request = TestRequest::default().insert_header(("Host", "herald.example"));
            for header in headers {
                request = request.append_header(header);
            }
            let request = request.to_http_request();
            assert_eq!(is_proven(request.headers(), "https"), expected, "{case}");
        }
    }

    #[test]
    fn only_writing_calls_are_judged() {
        let headers = [("Host", "herald.example"), ("Sec-Fetch-Site", "cross-site")];
        for (method, expected) in [
            (Method::GET, true),
            (Method::HEAD, true),
            (Method::OPTIONS, true),
            (Method::POST, false),
            (Method::PUT, false),
            (Method::PATCH, false),
            (Method::DELETE, false),
        ] {
            assert_eq!(is_taken(method.clone(), &headers, "http"), expected, "{method}");
        }
    }
}
