//! HTTP Basic credentials.

use actix_web::http::header::{self, HeaderMap};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::app::pair_digests::TextDigest;

/// A user name and a password, as received.
#[derive(Clone)]
pub struct BasicCredentials {
    decoded: Vec<u8>,
    /// The index of the first colon in `decoded`.
    colon: usize,
}

impl BasicCredentials {
    /// Reads the `Authorization` header; `None` unless there is exactly one and it is Basic.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(header::AUTHORIZATION);
        let (line, None) = (lines.next()?, lines.next()) else { return None };
        let (scheme, encoded) = line.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = STANDARD.decode(encoded.trim()).ok()?;
        let colon = decoded.iter().position(|&b| b == b':')?;
        Some(Self { decoded, colon })
    }

    /// The user name, if it is text.
    pub fn username(&self) -> Option<&str> {
        std::str::from_utf8(&self.decoded[..self.colon]).ok()
    }

    /// Returns whether both parts match. The comparison takes as long for a wrong pair as for the right
    /// one.
    pub fn are(&self, username: &str, password: &str) -> bool {
        // Both parts are always compared, so that the time does not reveal which one is wrong.
        let [given_name, given_password] =
            [&self.decoded[..self.colon], &self.decoded[self.colon + 1..]].map(TextDigest::of);
        (given_name.is_of(username) & given_password.is_of(password)).into()
    }

    /// The digest of both parts with their colon.
    pub fn digest(&self) -> TextDigest {
        TextDigest::of(&self.decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn credentials(lines: &[&str]) -> Option<BasicCredentials> {
        let mut request = TestRequest::default();
        for line in lines {
            request = request.append_header((header::AUTHORIZATION, *line));
        }
        BasicCredentials::of(request.to_http_request().headers())
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[test]
    fn a_pair_is_split_at_the_first_colon() {
        for (case, pair, username, password) in [
            ("plain", "user:pass", "user", "pass"),
            ("colon in the password", "user:pa:ss", "user", "pa:ss"),
            ("no password", "user:", "user", ""),
            ("no user", ":pass", "", "pass"),
            ("UTF-8", "us\u{e9}r:p\u{e4}ss", "us\u{e9}r", "p\u{e4}ss"),
        ] {
            let credentials = credentials(&[&basic(pair)]).expect("credentials");
            assert!(credentials.are(username, password), "{case}");
            assert_eq!(credentials.username(), Some(username), "{case}");
        }
    }

    #[test]
    fn both_parts_must_be_right() {
        let credentials = credentials(&[&basic("user:pass")]).expect("credentials");
        for (username, password) in
            [("user", "wrong"), ("wrong", "pass"), ("user", ""), ("", "pass"), ("user", "passs")]
        {
            assert!(!credentials.are(username, password), "{username}:{password}");
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
            assert!(credentials(&lines).is_none(), "{case}");
        }
        let lower = right.replace("Basic", "basic");
        assert!(credentials(&[&lower]).is_some(), "the scheme's case does not matter");
    }
}
