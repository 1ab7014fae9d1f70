//! A running server, as a web application or the administrator reaches it: its address and the caller's
//! credentials.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use super::{
    CommandFailure,
    apps::{find, parse_slug},
    with_tables,
};
use crate::{
    app::{Slug, store::MissingFile},
    broker::topic_name::Scope,
    http::client::{NOT_SECURE, is_this_machine},
    settings::Settings,
};

const KEY: &str = "HERALD_APP_KEY";
const SECRET: &str = "HERALD_APP_SECRET";
const USERNAME: &str = "PUSHER_ADMIN_USERNAME";
const PASSWORD: &str = "PUSHER_ADMIN_PASSWORD";
/// The time that a server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The most bytes of an answer that are read: more than any answer of a Herald has.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// The end of a message about a call that may be repeated.
pub(super) const TRY_AGAIN: &str = ", try again";
/// The address of a server whose settings cannot be read: that of the default settings.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4000);

/// The options that all commands about a scope of an app have in common: which scope, on which server,
/// and how the answer is printed.
#[derive(Debug, clap::Args)]
pub(super) struct RemoteArgs {
    /// The app
    #[arg(long, value_name = "SLUG", value_parser = parse_slug)]
    pub(super) app: Slug,
    /// The scope of the channel
    #[arg(long, default_value = "public", value_parser = parse_scope)]
    pub(super) scope: String,
    /// The server; without it the server of this machine's settings, or else 127.0.0.1:4000. With
    /// server.force_ssl give the https:// address of the proxy
    // Judged later: the argument parser's own message would repeat a password in the URL.
    #[arg(long)]
    url: Option<String>,
    /// Answer as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl RemoteArgs {
    /// The server, with the credentials of the app.
    pub(super) fn remote(&self) -> Result<Remote, CommandFailure> {
        Remote::of(&self.app, self.url.as_deref())
    }
}

fn parse_scope(raw: &str) -> Result<String, String> {
    Scope::parse(raw).map(|_| raw.to_owned()).map_err(|e| e.to_string())
}

/// The server's address and the caller's credentials.
pub(super) struct Remote {
    caller: CallCredentials,
    server: Url,
    /// The app's key, or the administrator's name.
    user: String,
    /// The app's secret, or the administrator's password.
    password: SecretString,
}

/// The party in whose name the server is called.
enum CallCredentials {
    App(Slug),
    Admin,
}

impl Remote {
    /// The server at this URL, or else the one of this machine's settings, for an app. The credentials are those in
    /// the environment, or else those in the database of the settings.
    pub(super) fn of(app: &Slug, url: Option<&str>) -> Result<Self, CommandFailure> {
        let caller = CallCredentials::App(app.clone());
        let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (given(KEY), given(SECRET)) {
            (Some(user), Some(secret)) => {
                let own = || Settings::load().map_or(ADDRESS, |settings| address(&settings));
                let server = server(url, own, &caller)?;
                Ok(Self { caller, server, user, password: secret.into() })
            }
            (None, None) => with_tables(MissingFile::Refuse, async |store, settings| {
                let server = server(url, || address(&settings), &caller)?;
                let found = find(&store, app).await?;
                Ok(Self { caller, server, user: found.key, password: found.secret })
            }),
            _ => {
                let why = format!("{KEY} and {SECRET} belong together: set both or neither");
                Err(CommandFailure::new(why))
            }
        }
    }

    /// The server at this URL, or else the one of this machine's settings, for the administrator, whose name and
    /// password are those of the settings.
    pub(super) fn of_admin(url: Option<&str>) -> Result<Self, CommandFailure> {
        let settings = Settings::load()?;
        let caller = CallCredentials::Admin;
        let server = server(url, || address(&settings), &caller)?;
        let (user, password) = (settings.admin.username, settings.admin.password);
        Ok(Self { caller, server, user, password })
    }

    /// Posts JSON to a resource of the app and returns the server's answer. A failure ends with `advice` if the server
    /// may have done what was asked.
    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &str,
        advice: &str,
    ) -> Result<T, CommandFailure> {
        let url = self.url(&[path]);
        let request = agent(&url).post(url.as_str()).header("authorization", self.basic());
        self.answer(request.header("content-type", "application/json").send(body), advice)
    }

    /// Reads a resource of the app or of the admin API, whose path is given in segments.
    pub(super) fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, CommandFailure> {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = agent(&url).get(url.as_str()).header("authorization", self.basic());
        self.answer(request.call(), TRY_AGAIN)
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().push("api");
            match &self.caller {
                CallCredentials::App(app) => segments.extend(["apps", app.as_str()]),
                CallCredentials::Admin => segments.push("admin"),
            };
            segments.extend(path);
        }
        url
    }

    fn basic(&self) -> String {
        let credentials = format!("{}:{}", self.user, self.password.expose_secret());
        format!("Basic {}", BASE64_STANDARD.encode(credentials))
    }

    fn answer<T: DeserializeOwned>(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        advice: &str,
    ) -> Result<T, CommandFailure> {
        let server = self.server.origin().ascii_serialization();
        let mut response = response.map_err(|error| unreachable(&server, &error, advice))?;
        let answer = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let answer = answer.unwrap_or_default();
        match response.status().as_u16() {
            200 => serde_json::from_str(&answer).map_err(|_| {
                CommandFailure::new(format!("{server} does not answer as a Herald does"))
            }),
            status => Err(self.refused(status, &answer, advice)),
        }
    }

    fn refused(&self, status: u16, answer: &str, advice: &str) -> CommandFailure {
        let server = self.server.origin().ascii_serialization();
        let words = detail(answer);
        let needs_tls = words.as_deref() == Some(NOT_SECURE);
        let detail = words.map_or(" without a reason".into(), |words| format!(": {words}"));
        CommandFailure::new(match (status, &self.caller) {
            (401, CallCredentials::App(app)) => format!(
                "{server} answers 401: it has no active app {app} with this key and secret (right after \
                 a change it may need a moment)"
            ),
            (401, CallCredentials::Admin) => format!(
                "{server} answers 401: its administrator has another name or password than the settings \
                 here say"
            ),
            (300..=399, _) => {
                format!(
                    "{server} answers {status}, a redirect: give --url the address to which it redirects"
                )
            }
            (404, _) => format!("{server} answers 404: this is not a Herald server"),
            (503, _) => format!("{server} answers 503: it cannot take the request now{advice}"),
            // A proxy could not reach the server, or had no answer from it in time.
            (502 | 504, _) => format!("{server} answers {status}{detail}{advice}"),
            _ if needs_tls => format!(
                "{server} answers {status}{detail}; give --url the address of the proxy that has the \
                 certificate, such as https://herald.example.com"
            ),
            _ => format!("{server} answers {status}{detail}"),
        })
    }
}

/// The server's address: the given URL, or else `own`.
fn server(
    given: Option<&str>,
    own: impl FnOnce() -> SocketAddr,
    caller: &CallCredentials,
) -> Result<Url, CommandFailure> {
    let raw = given.map_or_else(|| format!("http://{}", own()), ToOwned::to_owned);
    let mut url =
        parse_url(&raw, caller).map_err(|e| CommandFailure::usage(format!("--url: {e}")))?;
    url.set_query(None);
    Ok(url)
}

/// The address at which this machine reaches the server of these settings.
fn address(settings: &Settings) -> SocketAddr {
    reachable(settings.server.host, settings.server.port)
}

/// The address at which this machine reaches a server that listens on `host`: a server on every interface is
/// reached over the loopback one.
pub(super) fn reachable(host: IpAddr, port: u16) -> SocketAddr {
    let host = match host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    SocketAddr::new(host, port)
}

fn parse_url(raw: &str, caller: &CallCredentials) -> Result<Url, String> {
    let url = Url::parse(raw).map_err(|_| "must be a URL such as http://127.0.0.1:4000")?;
    match url.scheme() {
        "http" | "https" if !url.username().is_empty() || url.password().is_some() => {
            Err(match caller {
                CallCredentials::App(_) => {
                    format!("must not hold a key and secret: set {KEY} and {SECRET}")
                }
                CallCredentials::Admin => {
                    format!("must not hold a name and password: set {USERNAME} and {PASSWORD}")
                }
            })
        }
        "http" | "https" => Ok(url),
        _ => Err("must begin with http:// or https://".into()),
    }
}

fn agent(url: &Url) -> ureq::Agent {
    let is_here = is_this_machine(url);
    let mut config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        // A client that follows a redirect turns a POST into a GET, so the new address is reported
        // instead.
        .max_redirects(0)
        .timeout_global(Some(ANSWER_TIMEOUT));
    if is_here {
        // A proxy cannot reach this machine's own loopback address.
        config = config.proxy(None);
    }
    config.build().into()
}

/// The reason in an answer: `{"errors":{"detail":"…"}}` or `{"errors":{"<field>":["…"]}}`.
fn detail(answer: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    let words = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    let faults =
        answer.get("errors")?.as_object()?.iter().map(|(field, value)| match field.as_str() {
            "detail" => words(value),
            field => format!("{field} {}", words(value)),
        });
    Some(faults.collect::<Vec<_>>().join("; ")).filter(|detail| !detail.is_empty())
}

fn unreachable(server: &str, error: &ureq::Error, advice: &str) -> CommandFailure {
    CommandFailure::new(match error {
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            format!("nothing listens on {server}: is the server running?")
        }
        ureq::Error::ConnectionFailed => {
            format!("nothing listens on {server}: is the server running?")
        }
        ureq::Error::Timeout(_) => {
            format!("{server} did not answer within {} s{advice}", ANSWER_TIMEOUT.as_secs())
        }
        ureq::Error::Io(error) => format!("the connection to {server} failed: {error}{advice}"),
        ureq::Error::HostNotFound => format!("there is no host {server}"),
        other => format!("{server} cannot be reached: {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        for (answer, expected) in [
            (r#"{"errors":{"detail":"topic is missing"}}"#, Some("topic is missing")),
            (
                r#"{"errors":{"topic":["can't be blank","is bad"]}}"#,
                Some("topic can't be blank, is bad"),
            ),
            (r#"{"errors":{}}"#, None),
            (r#"{"errors":[]}"#, None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(detail(answer).as_deref(), expected, "{answer}");
        }
    }

    #[test]
    fn a_server_on_every_interface_is_reached_over_loopback() {
        for (host, expected) in [
            ("127.0.0.1", "http://127.0.0.1:4001/"),
            ("0.0.0.0", "http://127.0.0.1:4001/"),
            ("10.1.2.3", "http://10.1.2.3:4001/"),
            ("::", "http://[::1]:4001/"),
            ("fd00::7", "http://[fd00::7]:4001/"),
        ] {
            let own = || reachable(host.parse().expect("an address"), 4001);
            let found = server(None, own, &CallCredentials::Admin).expect("a URL");
            assert_eq!(found.as_str(), expected);
        }
    }

    #[test]
    fn credentials_in_a_url_have_a_remedy_that_the_caller_can_use() {
        let app = CallCredentials::App(Slug::parse("foo-app").expect("a slug"));
        for (caller, remedy) in [
            (app, "a key and secret: set HERALD_APP_KEY and HERALD_APP_SECRET"),
            (
                CallCredentials::Admin,
                "a name and password: set PUSHER_ADMIN_USERNAME and PUSHER_ADMIN_PASSWORD",
            ),
        ] {
            let found = parse_url("http://somebody:hush@h", &caller);
            assert_eq!(found, Err(format!("must not hold {remedy}")));
        }
    }

    #[test]
    fn urls_are_http_without_credentials() {
        for (raw, expected) in [
            ("http://127.0.0.1:4000", true),
            ("https://herald.example.com/", true),
            ("http://key:hush@h", false),
            ("http://key@h", false),
            ("ftp://h", false),
            ("h:4000", false),
            ("", false),
        ] {
            let found = parse_url(raw, &CallCredentials::Admin);
            assert_eq!(found.is_ok(), expected, "{raw}: {found:?}");
            assert!(found.is_ok() || !format!("{found:?}").contains("hush"));
        }
    }
}
