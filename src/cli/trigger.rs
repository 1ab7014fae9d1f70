//! `herald trigger`: posts an event to a running server, as a web application would.

use std::io::Read;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use serde_json::{Value, value::RawValue};

use super::{
    CommandFailure,
    remote::{RemoteArgs, TRY_AGAIN},
};
use crate::broker::{
    idempotency::{IdempotencyKey, KeyOwner},
    publication::{Destination, EventName, JsonObject},
};

pub(super) const AFTER_HELP: &str = "\
The command reads the app's key and secret from HERALD_APP_KEY and
HERALD_APP_SECRET. If neither is set, it reads them from the database of the
settings. With both set it needs no settings and no database.

Examples:
  herald trigger --app test-app --channel foo-topic --event msg \\
      --payload '{\"message\":\"hi\"}'
  herald trigger --app test-app --channel '#general' --event msg
  echo '{\"message\":\"hi\"}' |
      herald trigger --app test-app --channel foo-topic --event msg --payload -
  base64 photo.jpg |
      herald trigger --app test-app --channel foo-topic --event photo \\
          --payload-base64 -
  herald trigger --app test-app --channel orders --event paid \\
      --idempotency-key order-4711-paid --position
  HERALD_APP_KEY=… HERALD_APP_SECRET=… \\
      herald trigger --url https://herald.example.com \\
      --app foo-app --scope private --channel room-1 --event msg";

/// The end of a message about a trigger that cannot be repeated safely.
const MAYBE_PUBLISHED: &str = ", but the event may have been published: another try may publish it twice, \
    unless both have the same --idempotency-key";

#[derive(Debug, clap::Args)]
pub(super) struct TriggerArgs {
    #[command(flatten)]
    remote: RemoteArgs,
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
    /// Text of 1 to 128 bytes: if the event was already sent with it within 5 minutes, the server
    /// does not send it again and answers as it did
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    idempotency_key: Option<String>,
    /// Print the event's position in the order of its scope
    #[arg(long)]
    position: bool,
}

fn parse_channel(raw: &str) -> Result<String, String> {
    Destination::parse(raw).map(|_| raw.to_owned()).map_err(|e| e.to_string())
}

fn parse_event(raw: &str) -> Result<String, String> {
    EventName::parse(raw).map(|_| raw.to_owned()).map_err(|e| e.to_string())
}

fn parse_key(raw: &str) -> Result<String, String> {
    IdempotencyKey::parse(raw, KeyOwner::Application)
        .map(|_| raw.to_owned())
        .map_err(|e| e.to_string())
}

pub(super) fn run(args: &TriggerArgs) -> Result<String, CommandFailure> {
    let body = body(args)?;
    let RemoteArgs { app, json, .. } = &args.remote;
    let advice = if args.idempotency_key.is_some() { TRY_AGAIN } else { MAYBE_PUBLISHED };
    let answer: Value = args.remote.remote()?.post("events", &body, advice)?;
    Ok(match json {
        true => format!("{answer}\n"),
        false => {
            let (position, skipped) = (position(&answer), skipped(&answer));
            format!("sent {} to {} of {app}{position}{skipped}\n", args.event, args.channel)
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
        Some(Value::Number(count)) => {
            format!("; {count} subscriber(s) that cannot be sent bytes were skipped")
        }
        Some(_) => "; how many were skipped is not known".to_owned(),
    }
}

/// The request's body.
fn body(args: &TriggerArgs) -> Result<String, CommandFailure> {
    #[derive(serde::Serialize)]
    struct TriggerBody<'a> {
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
    let TriggerArgs { remote: RemoteArgs { scope, .. }, channel: topic, event, .. } = args;
    let idempotency_key = args.idempotency_key.as_deref();
    let position = args.position.then_some(true);
    let event =
        TriggerBody { topic, event, scope, payload, payload_base64, idempotency_key, position };
    serde_json::to_string(&event)
        .map_err(|e| CommandFailure::new(format!("cannot spell the event: {e}")))
}

/// A JSON object that keeps its own text.
fn object_of(given: &str) -> Result<Box<RawValue>, CommandFailure> {
    let object = JsonObject::parse(&read(given)?)
        .map_err(|e| CommandFailure::usage(format!("--payload: {e}")))?;
    RawValue::from_string(object.as_str().to_owned())
        .map_err(|_| CommandFailure::usage("--payload: payload is not valid JSON"))
}

/// Bytes in base64. Some programs break it into lines, which the server would refuse.
fn base64_of(given: &str) -> Result<String, CommandFailure> {
    let mut text = read(given)?;
    text.retain(|c| !c.is_ascii_whitespace());
    match BASE64_STANDARD.decode(&text).or_else(|_| BASE64_STANDARD_NO_PAD.decode(&text)) {
        Ok(_) => Ok(text),
        Err(_) => Err(CommandFailure::usage("--payload-base64: payload is not valid base64")),
    }
}

/// The given text, or standard input if the text is `-`.
fn read(given: &str) -> Result<String, CommandFailure> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut payload = String::new();
    match std::io::stdin().lock().read_to_string(&mut payload) {
        Ok(_) => Ok(payload),
        Err(e) => {
            Err(CommandFailure::new(format!("cannot read the payload from standard input: {e}")))
        }
    }
}
