//! The log of refusals: each refusal is counted, and logged once a minute per app and reason.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use log::{info, warn};
use parking_lot::Mutex;

use crate::metrics::{Metrics, labels::RefusalReason};

use super::{
    Slug,
    origin::{OriginPattern, OriginPolicy},
    token::TokenError,
};

/// The most characters of a client's text that a line shows.
const SHOWN_CHARS_MAX: usize = 200;

/// Counts refusals by reason, and logs them at level `info`.
///
/// The first refusal of an app for a reason is logged. Those that follow within the interval are only
/// counted; the first one after it is logged with their number. A line never holds a token, a secret
/// or a payload; it holds the topic and the client's address.
#[derive(Debug)]
pub struct Refusals {
    interval_s: f64,
    logged: Mutex<HashMap<LineKey, Last>>,
    /// The origins that were logged, each with its remedy.
    origins: Mutex<HashSet<(String, String)>>,
    metrics: Arc<Metrics>,
}

/// The refusals that share a line.
type LineKey = (RefusingApp, RefusalReason);

/// An app as a key. All apps that do not exist share one key, because clients can invent slugs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum RefusingApp {
    App(Slug),
    Unknown,
    Unnamed,
}

/// The last line of its kind.
#[derive(Debug)]
struct Last {
    at_s: f64,
    /// The number of refusals since.
    suppressed: u64,
}

/// One refusal, as a line of the log describes it.
#[derive(Debug, Clone, Copy)]
pub struct Refused<'a> {
    /// The client's attempt.
    pub attempt: Attempt<'a>,
    /// The app at which the attempt was directed.
    pub app: Target<'a>,
    /// The client's address.
    pub address: IpAddr,
    /// The reason why it was refused.
    pub reason: RefusalReason,
}

/// A client's attempt. The texts are the client's own.
#[derive(Debug, Clone, Copy)]
pub enum Attempt<'a> {
    /// An attempt to join a topic.
    Join(&'a str),
    /// An attempt to publish to a topic that the client has joined.
    Push(&'a str),
    /// A call of the API, or an attempt to open a session.
    Call {
        /// The method.
        method: &'a str,
        /// The path, without the query.
        path: &'a str,
        /// The topic, where it is known yet.
        topic: Option<&'a str>,
    },
}

/// The app at which an attempt was directed, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// An app that exists.
    App(&'a Slug),
    /// No app has this slug.
    Unknown(&'a str),
    /// The app that the setting `single_app` names: every topic of this server belongs to it.
    Configured(&'a Slug),
    /// The request was refused before it named an app.
    Unnamed,
}

/// The setting that refuses an origin.
#[derive(Debug, Clone, Copy)]
pub enum OriginSetting<'a> {
    /// `allowed_origins` of this app.
    AllowedOrigins(&'a Slug),
    /// `socket.check_origin`, with this value.
    CheckOrigin(&'a OriginPolicy),
}

impl Refusals {
    /// The most apps and reasons whose lines are remembered. Refusals beyond them are only counted.
    const LOGGED_MAX: usize = 10_000;

    /// The most origins and settings whose lines are remembered; those beyond are refused without a line.
    const ORIGINS_MAX: usize = 1_000;

    /// Starts without refusals; refusals of one app and reason are logged once per `interval`.
    pub fn new(interval: Duration, metrics: Arc<Metrics>) -> Self {
        let (logged, origins) = (Mutex::default(), Mutex::default());
        Self { interval_s: interval.as_secs_f64(), logged, origins, metrics }
    }

    /// Counts a refusal, and logs it if a line is due. `now_s` is the Unix time in seconds.
    pub fn note(&self, refused: &Refused<'_>, now_s: f64) {
        self.metrics.refusals.of(refused.reason).inc();
        if let Some(suppressed) = self.due(refused, now_s) {
            info!("{}", LogLine { refused, suppressed });
        }
    }

    /// The number of refusals since the last line, if another line is due.
    fn due(&self, refused: &Refused<'_>, now_s: f64) -> Option<u64> {
        let owner = match refused.app {
            Target::App(slug) | Target::Configured(slug) => RefusingApp::App(slug.clone()),
            Target::Unknown(_) => RefusingApp::Unknown,
            Target::Unnamed => RefusingApp::Unnamed,
        };
        let logged = (owner, refused.reason);
        // After the clock was set back, lines must not stay suppressed until the clock has caught
        // up.
        let is_recent = |last: &Last| (0.0..self.interval_s).contains(&(now_s - last.at_s));
        let mut all = self.logged.lock();
        let last = all.get_mut(&logged);
        if let Some(last) = last {
            if is_recent(last) {
                last.suppressed += 1;
                return None;
            }
            let suppressed = last.suppressed;
            *last = Last { at_s: now_s, suppressed: 0 };
            return Some(suppressed);
        }
        if all.len() >= Self::LOGGED_MAX {
            all.retain(|_, last| is_recent(last));
        }
        if all.len() >= Self::LOGGED_MAX {
            return None;
        }
        all.insert(logged, Last { at_s: now_s, suppressed: 0 });
        Some(0)
    }

    /// Counts an origin that a setting refuses, and logs its first refusal with a change that would let it in.
    pub fn note_origin(&self, origin: &str, setting: OriginSetting<'_>) {
        self.metrics.refusals.of(RefusalReason::OriginNotAllowed).inc();
        let remedy = remedy(origin, setting);
        // A query or a fragment is not part of an origin, and may hold secrets that must not be
        // logged.
        let shown = quoted(origin.split(['?', '#']).next().unwrap_or_default());
        let mut seen = self.origins.lock();
        if seen.len() < Self::ORIGINS_MAX && seen.insert((shown.clone(), remedy.clone())) {
            warn!("origin {shown} is refused; {remedy}");
        }
    }
}

/// Describes a change that would let a refused origin in.
fn remedy(origin: &str, setting: OriginSetting<'_>) -> String {
    use OriginSetting::{AllowedOrigins, CheckOrigin};
    match (OriginPattern::can_be(origin), setting) {
        (true, AllowedOrigins(slug)) => {
            format!("to let it in, add it to allowed_origins of app {slug}")
        }
        (false, AllowedOrigins(slug)) => {
            format!(
                "no entry can name it, so only an empty allowed_origins of app {slug} lets it in"
            )
        }
        (false, CheckOrigin(_)) => {
            "no entry can name it, so only socket.check_origin = false lets it in".to_owned()
        }
        (true, CheckOrigin(OriginPolicy::PublicHost(_))) => {
            "to let it in, set server.public_host to its host, or replace \
             socket.check_origin = true by a list of origins"
                .to_owned()
        }
        (true, CheckOrigin(OriginPolicy::Connection)) => {
            "to let it in, replace socket.check_origin = \"conn\" by a list of origins".to_owned()
        }
        (true, CheckOrigin(OriginPolicy::List(_) | OriginPolicy::Off)) => {
            "to let it in, add it to the setting socket.check_origin".to_owned()
        }
    }
}

/// A line of the log.
struct LogLine<'a> {
    refused: &'a Refused<'a>,
    suppressed: u64,
}

impl fmt::Display for LogLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { attempt, app, address, reason } = self.refused;
        write!(f, "refused {attempt} from {address}{app}: {}", why(*reason))?;
        match self.suppressed {
            0 => Ok(()),
            more => write!(f, " (and {more} more since the last line)"),
        }
    }
}

impl fmt::Display for Attempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(topic) => write!(f, "a join of {}", quoted(topic)),
            Self::Push(topic) => write!(f, "a push to {}", quoted(topic)),
            Self::Call { method, path, topic: None } => write!(f, "{method} {}", quoted(path)),
            Self::Call { method, path, topic: Some(topic) } => {
                write!(f, "{method} {} to {}", quoted(path), quoted(topic))
            }
        }
    }
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(slug) => write!(f, " at app {slug}"),
            Self::Unknown(slug) => write!(f, " at app {}", quoted(slug)),
            Self::Configured(slug) => write!(f, " at app {slug}, which single_app names"),
            Self::Unnamed => Ok(()),
        }
    }
}

/// A client's text, cut and escaped.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A reason in words.
fn why(reason: RefusalReason) -> &'static str {
    use RefusalReason as R;
    match reason {
        R::UnknownApp => "there is no such app",
        R::InactiveApp => "the app is inactive",
        R::OriginNotAllowed => "the origin is not allowed",
        R::NoToken => "the scope needs a token, and none was sent",
        R::NotPermitted => "the token's `listen` does not permit this topic",
        R::PublishNotPermitted => "no `publish` of a token permits this topic",
        R::NoClientEvents => "the app takes no client events",
        R::NoCredentials => "there is not exactly one Authorization header",
        R::WrongCredentials => "wrong key or secret",
        R::TokenTooLong => "the token is too long",
        R::TokenMalformed => "the token is malformed",
        R::TokenUnsupported => "the token is not a plain HS256 or HS512 token",
        R::TokenForged => "the token is forged, or signed with another secret",
        R::TokenNotShared => {
            "the token is valid with GUARDIAN_SECRET, but the app does not have shared_tokens"
        }
        R::TokenNotInSeconds => "the token's times are not in seconds",
        R::TokenExpired => "the token has expired",
        R::TokenNotYetValid => "the token is not valid yet",
        R::TokenWithoutCsrf => "the token needs its CSRF token, which is missing or does not fit",
    }
}

impl From<TokenError> for RefusalReason {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::TooLong => Self::TokenTooLong,
            TokenError::Malformed => Self::TokenMalformed,
            TokenError::Unsupported => Self::TokenUnsupported,
            TokenError::Forged => Self::TokenForged,
            TokenError::NotShared => Self::TokenNotShared,
            TokenError::NotInSeconds => Self::TokenNotInSeconds,
            TokenError::Expired => Self::TokenExpired,
            TokenError::NotYetValid => Self::TokenNotYetValid,
            TokenError::InvalidCsrf => Self::TokenWithoutCsrf,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::metrics::closed::Closed;

    const NOW_S: f64 = 1_700_000_000.0;

    fn refusals() -> Refusals {
        Refusals::new(Duration::from_secs(60), Metrics::new(1))
    }

    fn slug(raw: &str) -> Slug {
        Slug::parse(raw).expect("a slug")
    }

    fn refused(app: Target<'_>, reason: RefusalReason) -> Refused<'_> {
        let address = Ipv4Addr::new(192, 0, 2, 7).into();
        Refused { attempt: Attempt::Join("private:foo-app"), app, address, reason }
    }

    fn line(attempt: Attempt<'_>, app: Target<'_>, suppressed: u64) -> String {
        let reason = RefusalReason::TokenExpired;
        let refused = Refused { attempt, ..refused(app, reason) };
        LogLine { refused: &refused, suppressed }.to_string()
    }

    #[test]
    fn each_app_and_reason_has_a_line_per_interval_that_tells_the_number_of_those_without_one() {
        let refusals = refusals();
        let (foo, bar) = (slug("foo-app"), slug("bar-app"));
        let (foo, bar) = (Target::App(&foo), Target::App(&bar));
        let (expired, forged) = (RefusalReason::TokenExpired, RefusalReason::TokenForged);
        for (case, after_s, app, reason, expected) in [
            ("the first", 0.0, foo, expired, Some(0)),
            ("again", 0.0, foo, expired, None),
            ("another reason", 1.0, foo, forged, Some(0)),
            ("another app", 2.0, bar, expired, Some(0)),
            ("an unknown app", 3.0, Target::Unknown("x"), expired, Some(0)),
            ("another unknown app", 3.0, Target::Unknown("foo-app"), expired, None),
            ("no app", 3.0, Target::Unnamed, expired, Some(0)),
            ("just before the interval is over", 59.999, foo, expired, None),
            ("after it", 60.0, foo, expired, Some(2)),
            ("again", 119.0, foo, expired, None),
            ("much later", 1_000.0, foo, expired, Some(1)),
            ("with the clock set back", 900.0, foo, expired, Some(0)),
            (
                "another unknown app after the interval",
                900.0,
                Target::Unknown(""),
                expired,
                Some(1),
            ),
        ] {
            assert_eq!(refusals.due(&refused(app, reason), NOW_S + after_s), expected, "{case}");
        }
    }

    #[test]
    fn memory_is_bounded_and_lines_that_are_no_longer_recent_make_room() {
        let refusals = refusals();
        let due = |n: usize, after_s| {
            let slug = slug(&format!("app-{n}"));
            refusals.due(&refused(Target::App(&slug), RefusalReason::NoToken), NOW_S + after_s)
        };
        for n in 0..Refusals::LOGGED_MAX {
            assert_eq!(due(n, 0.0), Some(0), "{n}");
        }
        assert_eq!(due(Refusals::LOGGED_MAX, 59.0), None, "no room");
        assert_eq!(due(0, 59.0), None);
        assert_eq!(due(Refusals::LOGGED_MAX, 60.0), Some(0), "all others are old");
        assert_eq!(refusals.logged.lock().len(), 1);
    }

    #[test]
    fn every_refusal_is_counted_with_a_line_or_without() {
        let refusals = refusals();
        for _ in 0..3 {
            refusals.note(&refused(Target::Unnamed, RefusalReason::NoToken), NOW_S);
            let setting = OriginSetting::CheckOrigin(&OriginPolicy::Connection);
            refusals.note_origin("https://evil.example", setting);
        }
        let count = |reason| refusals.metrics.refusals.of(reason).get();
        for &reason in RefusalReason::ALL {
            let is_noted =
                matches!(reason, RefusalReason::NoToken | RefusalReason::OriginNotAllowed);
            assert_eq!(count(reason), if is_noted { 3 } else { 0 }, "{reason:?}");
        }
    }

    #[test]
    fn a_line_names_the_attempt_the_address_and_the_reason() {
        let foo = slug("foo-app");
        let join = Attempt::Join("private:foo-app:room");
        let call = |topic| Attempt::Call { method: "POST", path: "/api/publish", topic };
        for (attempt, app, suppressed, expected) in [
            (
                join,
                Target::App(&foo),
                0,
                r#"refused a join of "private:foo-app:room" from 192.0.2.7 at app foo-app: the token has expired"#,
            ),
            (
                join,
                Target::App(&foo),
                41,
                r#"refused a join of "private:foo-app:room" from 192.0.2.7 at app foo-app: the token has expired (and 41 more since the last line)"#,
            ),
            (
                Attempt::Push("public:foo-app"),
                Target::App(&foo),
                0,
                r#"refused a push to "public:foo-app" from 192.0.2.7 at app foo-app: the token has expired"#,
            ),
            (
                call(None),
                Target::Unnamed,
                1,
                r#"refused POST "/api/publish" from 192.0.2.7: the token has expired (and 1 more since the last line)"#,
            ),
            (
                call(Some("public:foo-app")),
                Target::Unknown("b\u{e4}r\n\u{202e}"),
                0,
                r#"refused POST "/api/publish" to "public:foo-app" from 192.0.2.7 at app "bär\n\u{202e}": the token has expired"#,
            ),
        ] {
            assert_eq!(line(attempt, app, suppressed), expected);
        }
    }

    #[test]
    fn the_pages_list_every_reason_by_its_label_and_by_the_words_of_the_log() {
        let operating = include_str!("../../docs/operating.md");
        let metrics = include_str!("../../docs/metrics.md");
        for &reason in RefusalReason::ALL {
            let label = reason.as_str();
            assert!(metrics.contains(&format!("`{label}`")), "{label}");
            let row = format!("\n| {} | `{label}` | ", why(reason));
            // The line of an origin has words of its own.
            let is_listed = reason == RefusalReason::OriginNotAllowed || operating.contains(&row);
            assert!(is_listed, "{row}");
        }
    }

    #[test]
    fn a_line_shows_no_more_than_the_beginning_of_a_clients_text() {
        let exact = "\u{e9}".repeat(SHOWN_CHARS_MAX);
        assert_eq!(quoted(&exact), format!("\"{exact}\""));
        assert_eq!(quoted(&format!("{exact}xy")), format!("\"{exact}\"…"));
    }
}
