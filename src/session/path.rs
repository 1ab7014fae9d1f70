//! Request paths as Plug, Phoenix's HTTP layer, reads them: a list of segments, in which an empty
//! segment does not count.
//!
//! `/socket//websocket`, `//socket/websocket` and `/socket/websocket/` all name `/socket/websocket`.
//! Clients build such URLs by joining a base that ends with a slash to a path that begins with one:
//! `new Socket("/socket/")` dials `/socket//websocket`. The path of a request is rewritten before
//! anything reads it, so that routes, exemptions and the handshake judge one spelling.
//!
//! Nothing else changes: `.` and `..` are segments like any other, and an escaped slash (`%2F`) is
//! part of its segment, so `a%2F%2Fb` keeps its empty middle.

use actix_http::{Request, Uri, uri::PathAndQuery};
use actix_service::Service;

/// Calls an actix-web app with the request's empty path segments dropped. `apply_fn_factory` wraps the app
/// in this function.
pub fn without_empty_segments<S: Service<Request>>(mut request: Request, app: &S) -> S::Future {
    drop_empty_segments(request.uri_mut());
    app.call(request)
}

/// Removes the empty segments of the path; the query stays as it is.
///
/// A path without empty segments costs one scan and no allocation.
pub(super) fn drop_empty_segments(uri: &mut Uri) {
    let path = uri.path();
    let has_empty_segment = path.contains("//") || (path.len() > 1 && path.ends_with('/'));
    if !has_empty_segment {
        return;
    }
    let mut kept =
        String::with_capacity(uri.path_and_query().map_or(0, |whole| whole.as_str().len()));
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        kept.push('/');
        kept.push_str(segment);
    }
    if kept.is_empty() {
        kept.push('/');
    }
    if let Some(query) = uri.query() {
        kept.push('?');
        kept.push_str(query);
    }
    // A valid path without its empty segments is valid, so both conversions succeed. If one did not, the path
    // would stay unchanged.
    let Ok(path_and_query) = PathAndQuery::try_from(kept) else { return };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query);
    if let Ok(rewritten) = Uri::from_parts(parts) {
        *uri = rewritten;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_segments_are_dropped_and_nothing_else_changes() {
        for (given, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("///?a=1", "/?a=1"),
            ("/socket/websocket", "/socket/websocket"),
            ("/socket//websocket?vsn=2.0.0", "/socket/websocket?vsn=2.0.0"),
            ("//socket/websocket", "/socket/websocket"),
            ("/socket/websocket/", "/socket/websocket"),
            ("///socket////websocket///?", "/socket/websocket?"),
            ("/a?b=//c/&d//", "/a?b=//c/&d//"),
            ("/a/?b=//c/", "/a?b=//c/"),
            ("/a%2F%2Fb/%2f//c", "/a%2F%2Fb/%2f/c"),
            ("/./a//../%2E/b", "/./a/../%2E/b"),
            ("/caf%C3%A9//%FF", "/caf%C3%A9/%FF"),
            (
                "http://herald.example:4000//api//publish?x",
                "http://herald.example:4000/api/publish?x",
            ),
            ("*", "*"),
            ("herald.example:4000", "herald.example:4000"),
        ] {
            let mut uri: Uri = given.parse().expect("a URI");
            drop_empty_segments(&mut uri);
            assert_eq!(uri.to_string(), expected, "{given}");
        }
    }

    #[test]
    fn a_path_that_needs_no_change_is_not_copied() {
        for path in ["/", "/api/apps/foo-app/events", "/socket/websocket?vsn=2.0.0&a=//"] {
            let mut uri: Uri = path.parse().expect("a URI");
            let before = uri.path().as_ptr();
            drop_empty_segments(&mut uri);
            assert_eq!(uri.path().as_ptr(), before, "{path}");
        }
    }
}
