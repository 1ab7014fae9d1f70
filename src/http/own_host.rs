//! Refuses admin calls under a name that is not this server's, in development.
//!
//! The password of development is public, and its listener has a loopback address. Another site's
//! page can still reach that address if its own name resolves to it (DNS rebinding), because the
//! browser then takes the server for the page's own. The `Host` header still holds the other site's
//! name.

use actix_web::http::header::{HOST, HeaderMap};
use url::{Host, Url};

use super::error::ApiError;
use crate::settings::{Environment, Settings};

const REFUSAL: &str = "in development admin calls must be sent to localhost, to an IP address or to \
    server.public_host (HERALD__SERVER__PUBLIC_HOST)";

/// Judges the host name that a request was sent to.
///
/// # Errors
/// [`ApiError::Forbidden`] in development, for a missing name and for a name that anybody could
/// have made to resolve to this machine.
pub(super) fn check(headers: &HeaderMap, settings: &Settings) -> Result<(), ApiError> {
    let is_own = settings.env != Environment::Development
        || host_of(headers).is_some_and(|host| is_own(&host, &settings.server.public_host));
    if is_own { Ok(()) } else { Err(ApiError::Forbidden(REFUSAL)) }
}

/// The host that the only `Host` header names.
fn host_of(headers: &HeaderMap) -> Option<Host<String>> {
    let mut all = headers.get_all(HOST);
    let (Some(host), None) = (all.next(), all.next()) else { return None };
    let url = Url::parse(&format!("http://{}/", host.to_str().ok()?)).ok()?;
    let is_host_alone = url.username().is_empty() && url.password().is_none() && url.path() == "/";
    url.host().filter(|_| is_host_alone).map(|host| host.to_owned())
}

/// Returns whether no other site can have this name: an IP address is not looked up, and `localhost` and
/// the server's public name cannot belong to another site.
fn is_own(host: &Host<String>, public_host: &str) -> bool {
    match host {
        Host::Ipv4(_) | Host::Ipv6(_) => true,
        Host::Domain(name) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            name == "localhost" || name == public_host
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{http::header::HeaderValue, test::TestRequest};

    use super::*;

    fn settings(env: &str) -> Settings {
        let vars = [
            ("HERALD_ENV", env),
            ("DATABASE_URL", "sqlite://unused.db"),
            ("PUSHER_ADMIN_PASSWORD", "correct-horse-battery"),
            ("SECRET_KEY_BASE", "0123456789abcdef0123456789abcdef"),
            ("HERALD__SERVER__PUBLIC_HOST", "herald.example"),
        ];
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Settings::load_from(vars.into_iter(), None).expect("settings")
    }

    #[test]
    fn development_answers_the_admin_under_its_own_names_alone() {
        let (development, production) = (settings("development"), settings("production"));
        for (hosts, is_own) in [
            (&["localhost"][..], true),
            (&["localhost:4000"], true),
            (&["LOCALHOST.:4000"], true),
            (&["127.0.0.1:4000"], true),
            (&["192.0.2.7"], true),
            (&["[::1]:4000"], true),
            (&["herald.example:4000"], true),
            (&["evil.example"], false),
            (&["evil.example:4000"], false),
            (&["localhost.evil.example"], false),
            (&["127.0.0.1.evil.example"], false),
            (&["localhost@evil.example"], false),
            (&["evil.example/localhost"], false),
            (&["localhost", "evil.example"], false),
            (&["\u{e9}vil.example"], false),
            (&[""], false),
            (&[], false),
        ] {
            let mut request = TestRequest::default();
            for host in hosts {
                let host = HeaderValue::from_bytes(host.as_bytes()).expect("bytes of a header");
                request = request.append_header((HOST, host));
            }
            let request = request.to_http_request();
            let expected = if is_own { Ok(()) } else { Err(ApiError::Forbidden(REFUSAL)) };
            assert_eq!(check(request.headers(), &development), expected, "{hosts:?}");
            assert_eq!(check(request.headers(), &production), Ok(()), "{hosts:?}");
        }
    }
}
