//! `herald token`: mints a JWT, as a web application would.

use std::{
    io::{self, Write},
    time::Duration,
};

use chrono::Utc;
use clap::builder::NonEmptyStringValueParser;
use humantime_serde::re::humantime;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    CommandFailure,
    apps::{find, parse_slug},
    with_tables,
};
use crate::app::{
    Slug,
    store::MissingFile,
    subject::Subject,
    token::{SigningAlgorithm, YEAR_10000_S, csrf_signature, mint},
};

pub(super) const AFTER_HELP: &str = "\
Prints the token and nothing else. It is signed with the app's secret, read
from the database; with --secret-env no settings and no database are needed.

Patterns name topics; `:*` stands for a colon and anything after it.

Examples:
  herald token --app test-app --listen 'private:test-app:*'
  herald token --app test-app --listen private:test-app:room-1 \\
      --publish private:test-app:room-1 \\
      --sub '{\"User\":1}' --ttl 15m
  herald token --app test-app --listen 'presence:test-app:*' --sub ada
  herald token --app test-app --publish 'public:test-app:*' --aud trigger
  herald token --app test-app --listen 'private:test-app:*' \\
      --csrf <the page's CSRF token>
  herald token --secret-env APP_SECRET --listen 'private:test-app:*' \\
      --algorithm HS512";

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("key").required(true).args(["app", "secret_env"])))]
pub(super) struct TokenArgs {
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
    /// The user for whom it is minted: any JSON; other text, such as a bare word, is a string
    #[arg(long, value_name = "JSON", value_parser = parse_sub)]
    sub: Option<Box<RawValue>>,
    /// The time for which it is valid
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
    /// Its audience; `trigger` makes it one of the web application itself
    #[arg(long, value_name = "AUDIENCE", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "csrf")]
    aud: Option<String>,
    /// Bind it to a page's CSRF token: audience `csrf`, with a signature of that token
    #[arg(long, value_name = "TOKEN", value_parser = NonEmptyStringValueParser::new())]
    csrf: Option<String>,
    /// The algorithm that signs it
    #[arg(long, value_name = "ALGORITHM", default_value = "HS256", value_parser = parse_algorithm)]
    algorithm: SigningAlgorithm,
}

fn parse_pattern(raw: &str) -> Result<String, String> {
    match raw {
        "" | "*" => Err("allows nothing; `private:my-app:*` is a pattern".into()),
        pattern => Ok(pattern.to_owned()),
    }
}

/// Reads any JSON, with numbers as they are written. Other text is a string, unless it looks like
/// truncated or misspelled JSON.
fn parse_sub(raw: &str) -> Result<Box<RawValue>, String> {
    match serde_json::from_str::<Box<RawValue>>(raw) {
        Ok(json) => match Subject::of(&json) {
            Ok(_) => Ok(json),
            Err(fault) => Err(fault.to_string()),
        },
        Err(_) if raw.trim().is_empty() => Err("must not be empty".into()),
        Err(_) if raw.trim_start().starts_with(['{', '[', '"']) => {
            Err("begins like JSON and is not valid JSON".into())
        }
        Err(_) => to_raw_value(raw).map_err(|e| e.to_string()),
    }
}

fn parse_ttl(raw: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(raw).ok().filter(|ttl| ttl.as_secs() > 0);
    // No server accepts an `exp` beyond the year 9999.
    let left_s = YEAR_10000_S.saturating_sub(Utc::now().timestamp() + 1);
    let ttl = ttl.filter(|ttl| i64::try_from(ttl.as_secs()).is_ok_and(|s| s < left_s));
    ttl.ok_or_else(|| {
        "must be a duration of a second or more that ends before the year 10000, such as 15m, 1h or \
         30days"
            .into()
    })
}

fn parse_algorithm(raw: &str) -> Result<SigningAlgorithm, String> {
    SigningAlgorithm::parse(raw).ok_or_else(|| "must be HS256 or HS512".into())
}

pub(super) fn run(args: &TokenArgs) -> Result<String, CommandFailure> {
    // On a server with a single app, topics do not name the app.
    let (secret, named) = match (&args.app, &args.secret_env) {
        (_, Some(variable)) => (secret_of(variable)?, None),
        (Some(slug), None) => with_tables(MissingFile::Refuse, async |store, settings| {
            let named = settings.single_app.is_none().then_some(slug);
            Ok((find(&store, slug).await?.secret, named))
        })?,
        (None, None) => {
            return Err(CommandFailure::usage(
                "give --app or --secret-env: its secret signs the token",
            ));
        }
    };
    let claims = MintedClaims::of(args, &secret, Utc::now().timestamp());
    let token = mint(&claims, &secret, args.algorithm)?;
    for warning in warnings(args, named) {
        let warning = super::log::one_line(&warning);
        // A warning is lost if standard error is closed.
        writeln!(io::stderr(), "herald: warning: {warning}").ok();
    }
    Ok(format!("{token}\n"))
}

/// Warnings about likely mistakes: a token that permits nothing, and topics of other apps.
fn warnings(args: &TokenArgs, app: Option<&Slug>) -> Vec<String> {
    let mut warnings = Vec::new();
    if args.listen.is_empty() && args.publish.is_empty() {
        let warning = "the token permits nothing: it has neither --listen nor --publish";
        warnings.push(warning.to_owned());
    }
    let Some(app) = app else { return warnings };
    for pattern in args.listen.iter().chain(&args.publish) {
        match pattern.split(':').nth(1) {
            None => warnings.push(format!("{pattern} matches no topic: `<scope>:{app}` is one")),
            Some(slug) if slug == app.as_str() || slug.starts_with('*') => {}
            Some(_) => warnings.push(format!("{pattern} matches no topic of {app}")),
        }
    }
    warnings
}

/// Reads a secret from the environment variable `name`.
pub(super) fn secret_of(name: &str) -> Result<SecretString, CommandFailure> {
    match std::env::var(name) {
        Ok(secret) if !secret.is_empty() => Ok(SecretString::from(secret)),
        _ => Err(CommandFailure::new(format!("the environment variable {name} holds no secret"))),
    }
}

/// The claims of the token.
#[derive(Serialize)]
struct MintedClaims<'a> {
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    listen: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    publish: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    s_csrf: Option<String>,
}

impl<'a> MintedClaims<'a> {
    fn of(args: &'a TokenArgs, secret: &SecretString, now_s: i64) -> Self {
        Self {
            iat: now_s,
            exp: now_s.saturating_add_unsigned(args.ttl.as_secs()),
            listen: &args.listen,
            publish: &args.publish,
            sub: args.sub.as_deref(),
            aud: args.csrf.as_ref().map(|_| "csrf").or(args.aud.as_deref()),
            s_csrf: args.csrf.as_ref().map(|csrf| csrf_signature(secret, csrf)),
        }
    }
}
