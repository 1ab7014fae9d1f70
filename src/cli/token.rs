//! `herald token`: mints a JWT, as a web application would.

use std::time::Duration;

use chrono::Utc;
use clap::builder::NonEmptyStringValueParser;
use humantime_serde::re::humantime;
use secrecy::SecretString;
use serde_json::{Map, Value};

use super::{
    Failure,
    apps::{find, parse_slug},
    with_tables,
};
use crate::app::{
    Slug,
    store::MissingFile,
    token::{SigningAlgorithm, csrf_signature, mint},
};

pub(super) const AFTER_HELP: &str = "\
Prints the token and nothing else. It is signed with the app's secret, read from the database; with
--secret-env no settings and no database are needed.

Patterns name topics; `:*` stands for a colon and anything after it.

Examples:
  herald token --app test-app --listen 'private:test-app:*'
  herald token --app test-app --listen private:test-app:room-1 --publish private:test-app:room-1 \\
      --sub '{\"User\":1}' --ttl 15m
  herald token --app test-app --publish 'public:test-app:*' --aud trigger
  herald token --app test-app --listen 'private:test-app:*' --csrf <the page's CSRF token>
  herald token --secret-env APP_SECRET --listen 'private:test-app:*' --algorithm HS512";

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("key").required(true).args(["app", "secret_env"])))]
pub(super) struct Args {
    /// The app whose secret signs, from the database
    #[arg(long, value_name = "SLUG", value_parser = parse_slug)]
    app: Option<Slug>,
    /// The environment variable that holds the secret that signs
    #[arg(long, value_name = "VARIABLE")]
    secret_env: Option<String>,
    /// A topic that may be joined, or a pattern; may be repeated
    #[arg(long, value_name = "TOPIC", value_parser = parse_pattern)]
    listen: Vec<String>,
    /// A topic that may be published to, or a pattern; may be repeated
    #[arg(long, value_name = "TOPIC", value_parser = parse_pattern)]
    publish: Vec<String>,
    /// Whom it is for: any JSON
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    sub: Option<Value>,
    /// How long it is good for
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
    /// Its audience; `trigger` makes it one of the web application itself
    #[arg(long, value_name = "AUDIENCE", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "csrf")]
    aud: Option<String>,
    /// Bind it to a page's CSRF token: audience `csrf`, with a signature of that token
    #[arg(long, value_name = "TOKEN", value_parser = NonEmptyStringValueParser::new())]
    csrf: Option<String>,
    /// How it is signed
    #[arg(long, value_name = "ALGORITHM", default_value = "HS256", value_parser = parse_algorithm)]
    algorithm: SigningAlgorithm,
}

fn parse_pattern(raw: &str) -> Result<String, String> {
    match raw {
        "" | "*" => Err("allows nothing; `private:my-app:*` is a pattern".into()),
        pattern => Ok(pattern.to_owned()),
    }
}

fn parse_json(raw: &str) -> Result<Value, String> {
    serde_json::from_str(raw)
        .map_err(|_| "must be JSON; a text needs its quotes: '\"user-1\"'".into())
}

fn parse_ttl(raw: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(raw).ok().filter(|ttl| ttl.as_secs() > 0);
    let ttl = ttl.filter(|ttl| i64::try_from(ttl.as_secs()).is_ok_and(|s| s < i64::MAX / 2));
    ttl.ok_or_else(|| "must be a duration of a second or more, such as 15m, 1h or 30days".into())
}

fn parse_algorithm(raw: &str) -> Result<SigningAlgorithm, String> {
    SigningAlgorithm::parse(raw).ok_or_else(|| "must be HS256 or HS512".into())
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    let secret = match (&args.app, &args.secret_env) {
        (_, Some(variable)) => secret_of(variable)?,
        (Some(app), None) => {
            with_tables(MissingFile::Refuse, async |store, _| Ok(find(&store, app).await?.secret))?
        }
        (None, None) => return Err(Failure::usage("--app or --secret-env says who signs")),
    };
    let claims = claims(args, &secret, Utc::now().timestamp());
    let token = mint(&claims, &secret, args.algorithm).map_err(|e| Failure::new(e.to_string()))?;
    Ok(format!("{token}\n"))
}

/// Reads a secret from the environment variable `name`.
pub(super) fn secret_of(name: &str) -> Result<SecretString, Failure> {
    match std::env::var(name) {
        Ok(secret) if !secret.is_empty() => Ok(SecretString::from(secret)),
        _ => Err(Failure::new(format!("the environment variable {name} holds no secret"))),
    }
}

fn claims(args: &Args, secret: &SecretString, now_s: i64) -> Value {
    let mut claims = Map::new();
    let mut set = |claim: &str, value: Value| drop(claims.insert(claim.to_owned(), value));
    set("iat", now_s.into());
    set("exp", now_s.saturating_add_unsigned(args.ttl.as_secs()).into());
    if !args.listen.is_empty() {
        set("listen", args.listen.clone().into());
    }
    if !args.publish.is_empty() {
        set("publish", args.publish.clone().into());
    }
    if let Some(sub) = &args.sub {
        set("sub", sub.clone());
    }
    if let Some(aud) = &args.aud {
        set("aud", aud.as_str().into());
    }
    if let Some(csrf) = &args.csrf {
        set("aud", "csrf".into());
        set("s_csrf", csrf_signature(secret, csrf).into());
    }
    claims.into()
}
