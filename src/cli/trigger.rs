//! `herald trigger`: posts an event to a running server, as a web application would.

use std::{io::Read, time::Duration};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json, value::RawValue};
use url::{Host, Url};

use super::{
    Failure,
    apps::{find, parse_slug},
    with_tables,
};
use crate::{
    app::{Slug, store::MissingFile},
    broker::{
        idempotency::{IdempotencyKey, KeyOwner},
        publication::{Destination, EventName, JsonObject},
        topic_name::Scope,
    },
};

const KEY: &str = "HERALD_APP_KEY";
const SECRET: &str = "HERALD_APP_SECRET";
/// How long a server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How many bytes of an answer are read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

pub(super) const AFTER_HELP: &str = "\
The app's key and secret come from the database of the settings; where HERALD_APP_KEY and
HERALD_APP_SECRET are set, from there, and neither settings nor database are needed.

Examples:
  herald trigger --app test-app --channel foo-topic --event msg --payload '{\"message\":\"hi\"}'
  herald trigger --app test-app --channel '#general' --event msg
  echo '{\"message\":\"hi\"}' | herald trigger --app test-app --channel foo-topic --event msg --payload -
  base64 photo.jpg | herald trigger --app test-app --channel foo-topic --event photo --payload-base64 -
  herald trigger --app test-app --channel orders --event paid --idempotency-key order-4711-paid --position
  HERALD_APP_KEY=… HERALD_APP_SECRET=… herald trigger --url https://herald.example.com \\
      --app foo-app --scope private --channel room-1 --event msg";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The app
    #[arg(long, value_name = "SLUG", value_parser = parse_slug)]
    app: Slug,
    /// The channel, or #general for everyone in the scope
    #[arg(long, value_parser = parse_channel)]
    channel: String,
    /// The event's name
    #[arg(long, value_parser = parse_event)]
    event: String,
    /// A JSON object, or - to read it from standard input
    #[arg(long, value_name = "JSON", default_value = "{}")]
    payload: String,
    /// Bytes instead, in base64, or - to read that from standard input
    #[arg(long, value_name = "BASE64", conflicts_with = "payload")]
    payload_base64: Option<String>,
    /// Who may hear it
    #[arg(long, default_value = "public", value_parser = parse_scope)]
    scope: String,
    /// Text of 1 to 128 bytes: if the event was already sent with it within 5 minutes, the server
    /// does not send it again and answers as it did
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    idempotency_key: Option<String>,
    /// Print the event's position in the order of its scope
    #[arg(long)]
    position: bool,
    /// The server; without it the one of the settings on this machine, else port 4000
    // Judged later: the parser's own message would repeat a secret that has no business here.
    #[arg(long)]
    url: Option<String>,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
}

fn parse_channel(raw: &str) -> Result<String, String> {
    Destination::parse(raw).map(|_| raw.to_owned()).map_err(|e| e.to_string())
}

fn parse_event(raw: &str) -> Result<String, String> {
    EventName::parse(raw).map(|_| raw.to_owned()).map_err(|e| e.to_string())
}

fn parse_scope(raw: &str) -> Result<String, String> {
    Scope::parse(raw).map(|_| raw.to_owned()).map_err(|e| e.to_string())
}

fn parse_key(raw: &str) -> Result<String, String> {
    IdempotencyKey::parse(raw, KeyOwner::Application)
        .map(|_| raw.to_owned())
        .map_err(|e| e.to_string())
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

/// The server's address and the app's credentials.
struct RemoteServer {
    url: Url,
    key: String,
    secret: SecretString,
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    let body = body(args)?;
    let remote = remote(args)?;
    let answer = send(args, &remote, &body)?;
    Ok(match args.json {
        true => format!("{answer}\n"),
        false => {
            let (position, skipped) = (position(&answer), skipped(&answer));
            format!("sent {} to {} of {}{position}{skipped}\n", args.event, args.channel, args.app)
        }
    })
}

/// The event's position, in words; empty if the answer has none.
fn position(answer: &Value) -> String {
    let position = answer.get("position").and_then(Value::as_str);
    position.map(|position| format!(" at {position}")).unwrap_or_default()
}

/// The number of subscribers that were not sent the bytes, in words; empty if there were none.
fn skipped(answer: &Value) -> String {
    match answer.get("skipped") {
        None => String::new(),
        Some(count) if count == 0 => String::new(),
        Some(Value::Number(count)) => format!("; {count} who cannot be sent bytes were skipped"),
        Some(_) => "; how many were skipped is not known".to_owned(),
    }
}

/// The request's body.
fn body(args: &Args) -> Result<String, Failure> {
    #[derive(serde::Serialize)]
    struct Event<'a> {
        topic: &'a str,
        event: &'a str,
        scope: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        payload: Option<Box<RawValue>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        payload_base64: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        idempotency_key: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        position: Option<bool>,
    }
    let (payload, payload_base64) = match &args.payload_base64 {
        Some(given) => (None, Some(base64_of(given)?)),
        None => (Some(object_of(&args.payload)?), None),
    };
    let Args { channel: topic, event, scope, .. } = args;
    let idempotency_key = args.idempotency_key.as_deref();
    let position = args.position.then_some(true);
    let event = Event { topic, event, scope, payload, payload_base64, idempotency_key, position };
    serde_json::to_string(&event).map_err(|e| Failure::new(format!("cannot spell the event: {e}")))
}

/// A JSON object that keeps its own text.
fn object_of(given: &str) -> Result<Box<RawValue>, Failure> {
    let object =
        JsonObject::parse(&read(given)?).map_err(|e| Failure::usage(format!("--payload: {e}")))?;
    RawValue::from_string(object.as_str().to_owned())
        .map_err(|_| Failure::usage("--payload: payload is not valid JSON"))
}

/// Bytes in base64. Some programs break it into lines, which the server would refuse.
fn base64_of(given: &str) -> Result<String, Failure> {
    let mut text = read(given)?;
    text.retain(|c| !c.is_ascii_whitespace());
    match BASE64_STANDARD.decode(&text).or_else(|_| BASE64_STANDARD_NO_PAD.decode(&text)) {
        Ok(_) => Ok(text),
        Err(_) => Err(Failure::usage("--payload-base64: payload is not valid base64")),
    }
}

/// The given text, or standard input if the text is `-`.
fn read(given: &str) -> Result<String, Failure> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut payload = String::new();
    match std::io::stdin().lock().read_to_string(&mut payload) {
        Ok(_) => Ok(payload),
        Err(e) => Err(Failure::new(format!("cannot read the payload from standard input: {e}"))),
    }
}

fn remote(args: &Args) -> Result<RemoteServer, Failure> {
    let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (given(KEY), given(SECRET)) {
        (Some(key), Some(secret)) => {
            Ok(RemoteServer { url: url(args, 4000)?, key, secret: SecretString::from(secret) })
        }
        (None, None) => with_tables(MissingFile::Refuse, async |store, settings| {
            let app = find(&store, &args.app).await?;
            Ok(RemoteServer {
                url: url(args, settings.server.port)?,
                key: app.key,
                secret: app.secret,
            })
        }),
        _ => Err(Failure::new(format!("{KEY} and {SECRET} belong together: set both or neither"))),
    }
}

fn url(args: &Args, port: u16) -> Result<Url, Failure> {
    let here = format!("http://127.0.0.1:{port}");
    let given = args.url.as_deref().unwrap_or(&here);
    let mut url = parse_url(given).map_err(|e| Failure::usage(format!("--url: {e}")))?;
    url.set_path(&format!("/api/apps/{}/events", args.app));
    url.set_query(None);
    Ok(url)
}

/// Posts the event and returns the server's answer.
fn send(args: &Args, remote: &RemoteServer, body: &str) -> Result<Value, Failure> {
    let credentials = format!("{}:{}", remote.key, remote.secret.expose_secret());
    let server = remote.url.origin().ascii_serialization();
    let response = agent(&remote.url)
        .post(remote.url.as_str())
        .header("authorization", format!("Basic {}", BASE64_STANDARD.encode(credentials)))
        .header("content-type", "application/json")
        .send(body);
    let mut response = response.map_err(|error| unreachable(&server, &error))?;
    let answer = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
    let answer = answer.unwrap_or_default();
    match response.status().as_u16() {
        200 => Ok(serde_json::from_str(&answer).unwrap_or_else(|_| json!({}))),
        status => Err(refused(args, &server, status, &answer)),
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

fn refused(args: &Args, server: &str, status: u16, answer: &str) -> Failure {
    let detail = detail(answer).map_or(" without a reason".into(), |words| format!(": {words}"));
    let app = &args.app;
    Failure::new(match status {
        401 => format!(
            "{server} answers 401: it has no active app {app} with this key and secret (right after \
             a change it may need a moment)"
        ),
        300..=399 => format!("{server} answers {status}, a redirect: give --url as it should be"),
        404 => format!("{server} answers 404: that is no Herald"),
        503 => format!("{server} answers 503: it cannot take the event now, try again"),
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

fn unreachable(server: &str, error: &ureq::Error) -> Failure {
    Failure::new(match error {
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
