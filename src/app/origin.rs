//! Origins: the web pages that may connect and join.
//!
//! Only browsers send an `Origin` header, and a page cannot forge its own. A request without the
//! header is therefore always allowed, and an unreadable header is refused by every check. The
//! grammar of the entries is that of section 3.4 of the protocol document.

use serde::Serialize;
use url::{Host, Url};

/// The scheme of an entry without one. It has no default port.
const ANY_SCHEME: &str = "any";

/// The origin of a page, as in a browser's `Origin` header, or that of the address to which a request was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// Parses `scheme://host[:port]`; the port defaults from the scheme where that has one.
    ///
    /// `None` for any other text: `null`, an empty text or host (`file://`), an invalid host, a
    /// path, a list. No browser sends more than these three parts.
    pub fn parse(header: &str) -> Option<Self> {
        // The URL parser accepts input that no browser sends as an origin: it trims white space,
        // takes an empty port for an absent one, decodes percent signs, and drops user, path, query
        // and fragment.
        const ELSEWHERE: [char; 7] = ['/', '\\', '?', '#', '@', '%', '*'];
        let (_, authority) = header.split_once("://")?;
        let is_plain = !authority.contains(ELSEWHERE) && !authority.ends_with(':');
        if !is_plain || header.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return None;
        }
        let url = Url::parse(header).ok()?;
        // The parser leaves the host unchanged if it does not know the scheme.
        let host = Host::parse(url.host_str()?).ok()?.to_string();
        let has_empty_label = host.starts_with('.') || host.contains("..");
        let (scheme, port) = (url.scheme().to_owned(), url.port_or_known_default());
        (!has_empty_label).then_some(Self { scheme, host, port })
    }

    /// The origin of this scheme and `host[:port]`, for example of a request and its `Host` header.
    pub fn of(scheme: &str, authority: &str) -> Option<Self> {
        Self::parse(&format!("{scheme}://{authority}"))
    }
}

/// An entry that is not an origin pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{entry:?} {fault}")]
pub struct OriginPatternError {
    /// The entry as given, cut to a length that can be shown.
    pub entry: String,
    /// Its fault, to be read after the entry.
    pub fault: &'static str,
}

// Without `//` a host cannot be told from a scheme.
const NO_SLASHES: &str = "needs a // before the host, as in //example.com or https://example.com";
const BAD_SCHEME: &str = "has no valid scheme before the ://";
const BAD_HOST: &str = "has no valid host; a * may only stand first, as in //*.example.com";
const BAD_PORT: &str = "has no valid port";
const TOO_LONG: &str = "is too long";
const TOO_MANY: &str = "is one origin too many";
// An empty list would allow nothing; there is a separate value that turns the check off.
const NO_ENTRIES: &str = "holds no origin";

impl OriginPatternError {
    fn new(entry: &str, fault: &'static str) -> Self {
        Self { entry: entry.chars().take(80).collect(), fault }
    }
}

/// One entry of a list of origins: a URI whose missing parts match anything.
///
/// `//example.com`, `https://example.com` (port 443 only), `//example.com:81`, and
/// `//*.example.com` for that host and every subdomain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginPattern {
    scheme: Option<String>,
    host: String,
    with_subdomains: bool,
    port: Option<u16>,
}

impl OriginPattern {
    /// The longest entry; a host has at most 253 bytes.
    pub const BYTES_MAX: usize = 300;

    /// Parses an entry.
    ///
    /// # Errors
    /// [`OriginPatternError`] with the entry and its fault.
    pub fn parse(entry: &str) -> Result<Self, OriginPatternError> {
        Self::parse_parts(entry).map_err(|fault| OriginPatternError::new(entry, fault))
    }

    fn parse_parts(entry: &str) -> Result<Self, &'static str> {
        if entry.len() > Self::BYTES_MAX {
            return Err(TOO_LONG);
        }
        let (before, authority) = entry.split_once("//").ok_or(NO_SLASHES)?;
        let scheme = match before.strip_suffix(':') {
            Some(scheme) => Some(scheme),
            None if before.is_empty() => None,
            None => return Err(BAD_SCHEME),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (with_subdomains, authority) = match authority.strip_prefix("*.") {
            Some(parent) => (true, parent),
            None => (false, authority),
        };
        let read = |authority| Origin::of(scheme.unwrap_or(ANY_SCHEME), authority);
        let Some(Origin { scheme: spelled, host, port }) = read(authority) else {
            let has_bad_port = authority.rsplit_once(':').is_some_and(|(host, port)| {
                let is_number = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
                is_number && Origin::of(ANY_SCHEME, host).is_some()
            });
            return Err(match read("host") {
                None => BAD_SCHEME,
                Some(_) if has_bad_port => BAD_PORT,
                Some(_) => BAD_HOST,
            });
        };
        if with_subdomains && !matches!(Host::parse(&host), Ok(Host::Domain(_))) {
            return Err(BAD_HOST);
        }
        Ok(Self { scheme: scheme.map(|_| spelled), host, with_subdomains, port })
    }

    /// Returns whether the origin of this header can be an entry, which then matches it.
    pub fn can_be(header: &str) -> bool {
        let origin = Origin::parse(header);
        let matches = |entry: Self| origin.is_some_and(|origin| entry.matches(&origin));
        Self::parse(header).is_ok_and(matches)
    }

    /// Returns whether the entry matches this origin.
    pub fn matches(&self, origin: &Origin) -> bool {
        self.scheme.as_ref().is_none_or(|scheme| *scheme == origin.scheme)
            && self.port.is_none_or(|port| Some(port) == origin.port)
            && self.matches_host(&origin.host)
    }

    fn matches_host(&self, host: &str) -> bool {
        match host.strip_suffix(&*self.host) {
            Some("") => true,
            // The dot keeps `evilexample.com` out of `//*.example.com`.
            Some(subdomain) => self.with_subdomains && subdomain.ends_with('.'),
            None => false,
        }
    }
}

/// The origins whose pages may join an app's topics; empty allows any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AllowedOrigins {
    given: Vec<String>,
    #[serde(skip)]
    patterns: Vec<OriginPattern>,
}

impl AllowedOrigins {
    /// The most entries of one list.
    pub const COUNT_MAX: usize = 100;

    /// Parses a list of entries.
    ///
    /// # Errors
    /// [`OriginPatternError`] of the first bad entry.
    pub fn parse(given: Vec<String>) -> Result<Self, OriginPatternError> {
        if let Some(beyond) = given.get(Self::COUNT_MAX) {
            return Err(OriginPatternError::new(beyond, TOO_MANY));
        }
        let patterns = parse_patterns(&given)?;
        Ok(Self { given, patterns })
    }

    /// The entries exactly as they were given, to be stored and shown.
    pub fn as_strings(&self) -> &[String] {
        &self.given
    }

    /// Returns whether a page with this `Origin` header may join. A request without the header does not come
    /// from a browser and is allowed.
    pub fn allow(&self, origin: Option<&str>) -> bool {
        self.patterns.is_empty() || is_listed(&self.patterns, origin)
    }
}

/// The global origin check at the handshake (section 3.4 of the protocol document).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OriginPolicy {
    /// Allow every origin.
    #[default]
    Off,
    /// The origin's host must equal this public host, which is spelled as browsers spell it.
    PublicHost(String),
    /// Scheme, host and port must equal those of the request itself.
    Connection,
    /// One of the patterns must match.
    List(Vec<OriginPattern>),
}

impl OriginPolicy {
    /// Parses the setting: `false` or `off`, `true` or `host` (which compares with `public_host`),
    /// `conn`, or a list of entries.
    ///
    /// # Errors
    /// [`OriginPatternError`] of the first bad entry, of an invalid public host, or of an empty
    /// list.
    pub fn parse(setting: &[String], public_host: &str) -> Result<Self, OriginPatternError> {
        let bad = |fault| OriginPatternError::new(public_host, fault);
        match setting.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => Err(OriginPatternError::new("", NO_ENTRIES)),
            ["false" | "off"] => Ok(Self::Off),
            ["conn"] => Ok(Self::Connection),
            ["true" | "host"] => match Origin::of(ANY_SCHEME, public_host) {
                Some(Origin { host, port: None, .. }) => Ok(Self::PublicHost(host)),
                _ => Err(bad(BAD_HOST)),
            },
            _ => parse_patterns(setting).map(Self::List),
        }
    }

    /// Returns whether a handshake with this `Origin` header is allowed; one without the header is. `target`
    /// returns the origin that the request itself was sent to, if it names one; it is called only for the policy
    /// that compares with it.
    pub fn allow(&self, origin: Option<&str>, target: impl FnOnce() -> Option<Origin>) -> bool {
        match self {
            Self::Off => true,
            Self::List(patterns) => is_listed(patterns, origin),
            Self::PublicHost(host) => passes(origin, |origin| origin.host == *host),
            Self::Connection => {
                passes(origin, |origin| target().is_some_and(|target| target == *origin))
            }
        }
    }
}

fn is_listed(patterns: &[OriginPattern], origin: Option<&str>) -> bool {
    passes(origin, |origin| patterns.iter().any(|pattern| pattern.matches(origin)))
}

/// Returns whether an origin passes a check. A request without an origin passes, an unreadable one fails.
fn passes(origin: Option<&str>, check: impl FnOnce(&Origin) -> bool) -> bool {
    match origin {
        None => true,
        Some(header) => Origin::parse(header).as_ref().is_some_and(check),
    }
}

fn parse_patterns(entries: &[String]) -> Result<Vec<OriginPattern>, OriginPatternError> {
    entries.iter().map(|entry| OriginPattern::parse(entry)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(entry: &str, origin: &str) -> bool {
        let allowed = AllowedOrigins::parse(vec![entry.to_owned()]).expect("an entry");
        allowed.allow(Some(origin))
    }

    fn target() -> Option<Origin> {
        Origin::of("https", "herald.example")
    }

    fn policies() -> [OriginPolicy; 3] {
        let list = OriginPattern::parse("//example.com").expect("an entry");
        [
            OriginPolicy::PublicHost("example.com".into()),
            OriginPolicy::Connection,
            OriginPolicy::List(vec![list]),
        ]
    }

    #[test]
    fn e020_no_origin_is_allowed() {
        for policy in policies() {
            assert!(policy.allow(None, target), "{policy:?}");
        }
        let list = AllowedOrigins::parse(vec!["//example.com".into()]).expect("a list");
        assert!(list.allow(None));
    }

    #[test]
    fn e021_e022_e023_e024_e025_e026_e027_entries_match_what_they_spell_out() {
        for (entry, origin, expected) in [
            ("//example.com", "https://example.com", true), // e021
            ("//example.com", "http://example.com", true),  // e021
            ("//example.com", "http://example.com:81", true), // e021
            ("//example.com", "http://notallowed.com", false), // e022
            ("//*.wild.com", "http://a.b.wild.com", true),  // e023
            ("//*.wild.com", "https://wild.com:8443", true), // e023
            ("//*.wild.com", "http://evilwild.com", false), // e024
            ("//*.wild.com", "http://wild.com.evil.com", false), // e024
            ("//*.wild.com", "http://.wild.com", false),    // e024
            ("//ex.com", "http://org1.ex.com", false),      // e025
            ("http://scheme.com", "http://scheme.com", true), // e026
            ("http://scheme.com", "http://scheme.com:80", true), // e026
            ("http://scheme.com", "https://scheme.com", false), // e026
            ("http://scheme.com", "http://scheme.com:8080", false), // e026
            ("https://scheme.com", "https://scheme.com:443", true), // e026
            ("http://scheme.com:443", "https://scheme.com", false), // e026
            ("//port.com:81", "http://port.com:81", true),  // e027
            ("//port.com:81", "https://port.com:81", true), // e027
            ("//port.com:81", "http://port.com:82", false), // e027
            ("//port.com:80", "http://port.com", true),     // e027
            ("http://*.foo.example.com", "http://foo.example.com", true),
            ("http://*.foo.example.com", "http://a.foo.example.com", true),
            ("http://*.foo.example.com", "http://a.foo.example.com:81", false),
            ("http://*.foo.example.com", "https://a.foo.example.com", false),
            ("//EXAMPLE.com", "https://example.com", true),
            ("//example.com", "HTTPS://Example.COM", true),
            ("//[::1]:4000", "http://[::1]:4000", true),
            ("//[0:0:0:0:0:0:0:1]", "http://[::1]", true),
            ("//[::1]", "http://[::2]", false),
            ("//127.0.0.1", "http://127.0.0.1:4000", true),
            ("//b\u{fc}cher.example", "https://xn--bcher-kva.example", true),
            ("//xn--bcher-kva.example", "https://xn--bcher-kva.example", true),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("capacitor://localhost", "http://localhost", false),
            ("https://example.com/", "https://example.com", true),
            ("//example.com", "https://example.com.", false),
        ] {
            assert_eq!(listed(entry, origin), expected, "{entry} and {origin}");
        }
    }

    #[test]
    fn e028_e029_an_invalid_origin_is_refused_wherever_a_check_is_on() {
        for origin in [
            "null",
            "",
            "file://",
            "file:///",
            "example.com",
            "//example.com",
            "://example.com",
            "http://",
            "http:///example.com",
            "http:example.com",
            "http:\\\\example.com",
            "http://example.com:",
            "http://example.com:x",
            "http://example.com:+80",
            "http://example.com:65536",
            "http://example.com/path",
            "http://example.com?q",
            "http://example.com#f",
            "http://evil.com@example.com",
            "http://example.com@evil.com",
            "http://example.com http://evil.com",
            "http://evil.com, http://example.com",
            " http://example.com",
            "http://example.com ",
            "http://exa\tmple.com",
            "http://exa%6dple.com",
            "http://*.example.com",
            "http://[::1",
            "http://::1",
            "1http://example.com",
            "h\u{e9}://example.com",
        ] {
            for policy in policies() {
                assert!(!policy.allow(Some(origin), target), "e028 {policy:?} {origin:?}");
            }
            assert!(!listed("//example.com", origin), "e028 {origin:?}");
            assert!(OriginPolicy::Off.allow(Some(origin), target), "e029 {origin:?}");
            assert!(AllowedOrigins::default().allow(Some(origin)), "e029 {origin:?}");
        }
    }

    #[test]
    fn e030_the_public_host_is_compared_whatever_the_scheme_and_port() {
        let policy = OriginPolicy::parse(&["true".into()], "Example.com").expect("a policy");
        for (origin, expected) in [
            ("http://example.com", true),
            ("https://example.com:8443", true),
            ("app://example.com", true),
            ("http://www.example.com", false),
            ("http://herald.example", false),
        ] {
            assert_eq!(policy.allow(Some(origin), target), expected, "{origin}");
        }
    }

    #[test]
    fn e031_the_connection_is_compared_in_scheme_host_and_port() {
        for (origin, expected) in [
            ("https://herald.example", true),
            ("https://herald.example:443", true),
            ("https://HERALD.example", true),
            ("http://herald.example", false),
            ("wss://herald.example", false),
            ("https://herald.example:8443", false),
            ("https://www.herald.example", false),
        ] {
            assert_eq!(OriginPolicy::Connection.allow(Some(origin), target), expected, "{origin}");
        }
    }

    #[test]
    fn a_request_target_is_read_from_its_host_header() {
        for (scheme, header, expected) in [
            ("http", "localhost:4000", Some("http://localhost:4000")),
            ("http", "Example.com", Some("http://example.com:80")),
            ("https", "example.com", Some("https://example.com:443")),
            ("http", "[::1]:4000", Some("http://[::1]:4000")),
            ("http", "", None),
            ("http", "a b", None),
            ("http", "example.com/x", None),
        ] {
            let expected = expected.map(|origin| Origin::parse(origin).expect("an origin"));
            assert_eq!(Origin::of(scheme, header), expected, "{header:?}");
        }
    }

    #[test]
    fn an_entry_that_cannot_be_honoured_is_an_error() {
        let long = format!("//{}.com", "a".repeat(OriginPattern::BYTES_MAX));
        for (entry, fault) in [
            ("example.com", NO_SLASHES),
            ("*.foo.com", NO_SLASHES),
            ("", NO_SLASHES),
            ("*", NO_SLASHES),
            ("null", NO_SLASHES),
            ("https//example.com", BAD_SCHEME),
            ("://example.com", BAD_SCHEME),
            ("ht tp://example.com", BAD_SCHEME),
            ("*://example.com", BAD_SCHEME),
            ("//", BAD_HOST),
            ("https://", BAD_HOST),
            ("file://", BAD_HOST),
            ("//*", BAD_HOST),
            ("//*.", BAD_HOST),
            ("//*.*.com", BAD_HOST),
            ("//a.*.com", BAD_HOST),
            ("//*wild.com", BAD_HOST),
            ("//*.127.0.0.1", BAD_HOST),
            ("//user@example.com", BAD_HOST),
            ("//example.com/path", BAD_HOST),
            ("//example.com:", BAD_HOST),
            ("//example.com:x", BAD_HOST),
            ("//example.com:65536", BAD_PORT),
            ("//exam ple.com", BAD_HOST),
            (&long, TOO_LONG),
        ] {
            let parsed = OriginPattern::parse(entry).map_err(|e| e.fault);
            assert_eq!(parsed, Err(fault), "{entry:.40}");
        }
        let error = OriginPattern::parse("example.com").expect_err("no slashes");
        assert!(error.to_string().starts_with("\"example.com\" needs a //"), "{error}");
    }

    #[test]
    fn a_list_keeps_its_entries_as_given() {
        let given = vec!["https://Example.com/".to_owned(), "//*.example.org".to_owned()];
        let list = AllowedOrigins::parse(given.clone()).expect("a list");
        assert_eq!(list.as_strings(), given);
        assert!(AllowedOrigins::default().allow(Some("https://anywhere.example")));
    }

    #[test]
    fn a_list_has_a_limit() {
        let list = |count| vec!["//example.com".to_owned(); count];
        assert!(AllowedOrigins::parse(list(AllowedOrigins::COUNT_MAX)).is_ok());
        let beyond = AllowedOrigins::parse(list(AllowedOrigins::COUNT_MAX + 1));
        assert_eq!(beyond.map_err(|e| e.fault), Err(TOO_MANY));
    }

    #[test]
    fn the_setting_names_a_policy() {
        let list = OriginPattern::parse("//example.com").expect("an entry");
        for (setting, public_host, expected) in [
            (&["false"][..], "", Ok(OriginPolicy::Off)),
            (&["off"], "", Ok(OriginPolicy::Off)),
            (&["true"], "localhost", Ok(OriginPolicy::PublicHost("localhost".into()))),
            (&["host"], "LOCALHOST", Ok(OriginPolicy::PublicHost("localhost".into()))),
            (&["conn"], "", Ok(OriginPolicy::Connection)),
            (&["//example.com"], "", Ok(OriginPolicy::List(vec![list]))),
            (&[], "localhost", Err(NO_ENTRIES)),
            (&["true"], "", Err(BAD_HOST)),
            (&["true"], "a host", Err(BAD_HOST)),
            (&["example.com"], "", Err(NO_SLASHES)),
            (&["//example.com", "conn"], "", Err(NO_SLASHES)),
        ] {
            let setting: Vec<String> = setting.iter().map(|s| (*s).to_owned()).collect();
            let parsed = OriginPolicy::parse(&setting, public_host).map_err(|e| e.fault);
            assert_eq!(parsed, expected, "{setting:?}");
        }
    }
}
