//! A running server, as a web application or the administrator reaches it: its address and the caller's
//! credentials.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::{Host, Url};

use super::{
    CommandFailure,
    apps::{find, parse_slug},
    with_tables,
};
use crate::{
    app::{Slug, store::MissingFile},
    broker::topic_name::Scope,
    settings::Settings,
};

const KEY: &str = "HERALD_APP_KEY";
const SECRET: &str = "HERALD_APP_SECRET";
/// The time that a server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The most bytes of an answer that are read: more than any answer of a Herald has.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// The port of a server whose settings are not read.
const PORT: u16 = 4000;

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
    /// The server; without it the server of this machine's settings, or else port 4000
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
        let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (given(KEY), given(SECRET)) {
            (Some(key), Some(secret)) => {
                let secret = SecretString::from(secret);
                Ok(Self::new(app, server(url, PORT)?, key, secret))
            }
            (None, None) => with_tables(MissingFile::Refuse, async |store, settings| {
                let server = server(url, settings.server.port)?;
                let found = find(&store, app).await?;
                Ok(Self::new(app, server, found.key, found.secret))
            }),
            _ => {
                let why = format!("{KEY} and {SECRET} belong together: set both or neither");
                Err(CommandFailure::new(why))
            }
        }
    }

    /// The server at this URL, for the administrator, whose name and password are those of the settings.
    pub(super) fn of_admin(url: &str) -> Result<Self, CommandFailure> {
        let Settings { admin, .. } = Settings::load()?;
        let server = server(Some(url), PORT)?;
        Ok(Self {
            caller: CallCredentials::Admin,
            server,
            user: admin.username,
            password: admin.password,
        })
    }

    fn new(app: &Slug, server: Url, key: String, secret: SecretString) -> Self {
        Self { caller: CallCredentials::App(app.clone()), server, user: key, password: secret }
    }

    /// Posts JSON to a resource of the app and returns the server's answer.
    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &str,
    ) -> Result<T, CommandFailure> {
        let url = self.url(&[path]);
        let request = agent(&url).post(url.as_str()).header("authorization", self.basic());
        self.answer(request.header("content-type", "application/json").send(body))
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
        self.answer(agent(&url).get(url.as_str()).header("authorization", self.basic()).call())
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
    ) -> Result<T, CommandFailure> {
        let server = self.server.origin().ascii_serialization();
        let mut response = response.map_err(|error| unreachable(&server, &error))?;
        let answer = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let answer = answer.unwrap_or_default();
        match response.status().as_u16() {
            200 => serde_json::from_str(&answer).map_err(|_| {
                CommandFailure::new(format!("{server} does not answer as a Herald does"))
            }),
            status => Err(refused(&self.caller, &server, status, &answer)),
        }
    }
}

fn server(given: Option<&str>, port: u16) -> Result<Url, CommandFailure> {
    let here = format!("http://127.0.0.1:{port}");
    let mut url = parse_url(given.unwrap_or(&here))
        .map_err(|e| CommandFailure::usage(format!("--url: {e}")))?;
    url.set_query(None);
    Ok(url)
}

fn parse_url(raw: &str) -> Result<Url, String> {
    let url = Url::parse(raw).map_err(|_| "must be a URL such as http://127.0.0.1:4000")?;
    match url.scheme() {
        "http" | "https" if !url.username().is_empty() || url.password().is_some() => {
            Err(format!("must not hold a key and secret: set {KEY} and {SECRET}"))
        }
        "http" | "https" => Ok(url),
        _ => Err("must begin with http:// or https://".into()),
    }
}

fn agent(url: &Url) -> ureq::Agent {
    let is_here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
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

fn refused(caller: &CallCredentials, server: &str, status: u16, answer: &str) -> CommandFailure {
    let detail = detail(answer).map_or(" without a reason".into(), |words| format!(": {words}"));
    CommandFailure::new(match (status, caller) {
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
        (503, _) => format!("{server} answers 503: it cannot take the request now, try again"),
        _ => format!("{server} answers {status}{detail}"),
    })
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

fn unreachable(server: &str, error: &ureq::Error) -> CommandFailure {
    CommandFailure::new(match error {
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            format!("nothing listens on {server}: is the server running?")
        }
        ureq::Error::ConnectionFailed => {
            format!("nothing listens on {server}: is the server running?")
        }
        ureq::Error::Timeout(_) => {
            format!("{server} did not answer within {} s", ANSWER_TIMEOUT.as_secs())
        }
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
            let found = parse_url(raw);
            assert_eq!(found.is_ok(), expected, "{raw}: {found:?}");
            assert!(found.is_ok() || !format!("{found:?}").contains("hush"));
        }
    }
}
