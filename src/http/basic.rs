//! HTTP Basic credentials.

use actix_web::http::header::{self, HeaderMap};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::app::pair_digests::TextDigest;

/// The digest of `<user name>:<password>` in the `Authorization` header; `None` unless there is exactly one such
/// header and it is Basic.
pub fn login(headers: &HeaderMap) -> Option<TextDigest> {
    let mut lines = headers.get_all(header::AUTHORIZATION);
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let (scheme, encoded) = line.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    decoded.contains(&b':').then(|| TextDigest::of(&decoded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn given(lines: &[&str]) -> Option<TextDigest> {
        let mut request = TestRequest::default();
        for line in lines {
            request = request.append_header((header::AUTHORIZATION, *line));
        }
        login(request.to_http_request().headers())
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    fn is_login(pair: &str, username: &str, password: &str) -> bool {
        let expected = TextDigest::of_login(username, &password.into());
        given(&[&basic(pair)]).expect("credentials").is(&expected).into()
    }

    #[test]
    fn a_pair_is_the_text_around_its_first_colon() {
        for (case, pair, username, password) in [
            ("plain", "user:pass", "user", "pass"),
            ("colon in the password", "user:pa:ss", "user", "pa:ss"),
            ("no password", "user:", "user", ""),
            ("no user", ":pass", "", "pass"),
            ("UTF-8", "us\u{e9}r:p\u{e4}ss", "us\u{e9}r", "p\u{e4}ss"),
        ] {
            assert!(is_login(pair, username, password), "{case}");
        }
    }

    #[test]
    fn both_parts_must_be_right() {
        for (username, password) in
            [("user", "wrong"), ("wrong", "pass"), ("user", ""), ("", "pass"), ("user", "passs")]
        {
            assert!(!is_login("user:pass", username, password), "{username}:{password}");
        }
    }

    #[test]
    fn a_header_that_is_not_basic_gives_no_credentials() {
        let right = basic("user:pass");
        for (case, lines) in [
            ("nothing", vec![]),
            ("empty", vec![""]),
            ("scheme alone", vec!["Basic"]),
            ("another scheme", vec!["Bearer dXNlcjpwYXNz"]),
            ("no base64", vec!["Basic user:pass"]),
            ("no colon", vec!["Basic dXNlcg=="]),
            ("two lines", vec![right.as_str(), right.as_str()]),
        ] {
            assert!(given(&lines).is_none(), "{case}");
        }
        let lower = right.replace("Basic", "basic");
        assert!(given(&[&lower]).is_some(), "the scheme's case does not matter");
    }
}
