//! The values that each setting may have: its type, its range and its form.
//!
//! The default of a setting determines its type. A number has the range of [`numbers`], a duration that of
//! [`durations`], and a text the form of [`form`]; a setting whose range differs from the usual one is listed
//! there. A variable is always a text, so numbers, flags and lists are accepted as text, too.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use config::{Value, ValueKind};
use humantime_serde::re::humantime::{format_duration, parse_duration};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value as Json;
use url::Host;

use super::{SettingsError, engine::shown_urls, history::HistoryFile, layers::NOT_TEXT, pusher};
use crate::app::{
    Slug,
    database::shown_url,
    origin::OriginPolicy,
    settings::{HISTORY_PUBLICATIONS_MAX, HISTORY_SECONDS_MAX},
};

/// The settings whose values are never shown as they are, not even in an error. Of a URL only the parts that may hold
/// a password are masked.
pub(super) const SECRETS: [&str; 6] = [
    "admin.password",
    "database.url",
    "engine.redis_url",
    "engine.sentinel_password",
    "secrets.guardian_secret",
    "secrets.secret_key_base",
];
/// The text that is shown instead of a secret.
pub(super) const MASK: &str = "********";

/// The length of the prefix `::ffff:0:0/96`, which all IPv4-mapped addresses have.
const IPV4_MAPPED_BITS: u8 = 96;

const HOUR_MS: u64 = 3_600_000;
const GIGABYTE: u64 = 1 << 30;
const MANY: u64 = 1_000_000;

fn numbers(key: &str) -> RangeInclusive<u64> {
    match key {
        "server.port" => 0..=65_535,
        "server.workers" => 0..=512,
        "server.drain_interval_ms" => 1..=60_000,
        "database.connections_max" => 1..=1_000,
        "limits.trigger_payload_bytes_max" | "limits.client_event_bytes_max" => 2..=GIGABYTE,
        "limits.client_events_per_second_max" | "limits.joins_per_second_max" => 1..=10_000,
        "limits.message_bytes_max" | "limits.request_body_bytes_max" => 512..=GIGABYTE,
        "limits.unfinished_bytes_max" => 512..=64 * GIGABYTE,
        "limits.bodies_bytes_max" => 1_024..=64 * GIGABYTE,
        "limits.outbox_bytes_max" => 1_024..=GIGABYTE,
        "limits.token_bytes_max" => 64..=MANY,
        "limits.publications_in_flight_max" => 100..=MANY,
        "metrics.apps_max" => 0..=10_000,
        "usage.retention_days" => 1..=10_000,
        "audit.retention_days" => 1..=36_500,
        "history.publications" | "history.publications_max" => 0..=HISTORY_PUBLICATIONS_MAX.into(),
        "engine.partitions" => 1..=256,
        "engine.log_records_max" => 1..=1_000 * MANY,
        "engine.log_bytes_max" => 1_024..=64 * GIGABYTE,
        "history.app_bytes_max"
        | "history.bytes_max"
        | "pusher.cache_app_bytes_max"
        | "pusher.cache_bytes_max" => 1_024..=64 * GIGABYTE,
        "history.replay_bytes_max" | "pusher.event_bytes_max" => 1..=GIGABYTE,
        // No channel of the broker has a longer name.
        "pusher.channel_bytes_max" => 1..=200,
        _ => 1..=MANY,
    }
}

fn durations(key: &str) -> RangeInclusive<Duration> {
    let (least_ms, most_ms) = match key {
        "log.refusal_interval" => (100, 24 * HOUR_MS),
        "server.keep_alive" | "server.shutdown_timeout" => (1, HOUR_MS),
        "database.connect_retry" => (0, HOUR_MS),
        "socket.idle_timeout" | "socket.long_poll_unjoined_timeout" => (10, 24 * HOUR_MS),
        "socket.long_poll_window" => (10, 19_000),
        "socket.presence_interval" => (1, 10_000),
        "usage.write_interval" => (10, 60_000),
        "engine.probe_interval" => (50, 60_000),
        "engine.node_timeout" => (250, HOUR_MS),
        "engine.connect_retry" => (0, HOUR_MS),
        "engine.log_age" => (1_000, 1_000 * u64::from(HISTORY_SECONDS_MAX)),
        "pusher.cache_ttl" => (10, 24 * HOUR_MS),
        "history.age" | "history.age_max" => (1_000, 1_000 * u64::from(HISTORY_SECONDS_MAX)),
        _ => (10, HOUR_MS),
    };
    Duration::from_millis(least_ms)..=Duration::from_millis(most_ms)
}

/// Returns whether a text has the form of its setting, and a description of that form.
fn form(key: &str, text: &str) -> (bool, &'static str) {
    let is_flawed = |c: char| c == ':' || c.is_control();
    let is_in_prefix = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    let is_formed = match key {
        "single_app" => text.is_empty() || Slug::parse(text).is_some(),
        "server.host" => text.parse::<IpAddr>().is_ok(),
        "server.public_host" => OriginPolicy::parse(&["true".to_owned()], text).is_ok(),
        "admin.username" => !text.is_empty() && !text.contains(is_flawed),
        "metrics.listen" => text.is_empty() || text.parse::<SocketAddr>().is_ok(),
        "history.file" => !text.is_empty() && !text.contains('\0') && !text.ends_with('/'),
        "engine.kind" => ["local", "redis"].contains(&text),
        "engine.prefix" => (1..=64).contains(&text.len()) && text.chars().all(is_in_prefix),
        "engine.ca_file" | "engine.sentinel_master" => !text.contains(char::is_control),
        "pusher.path_prefix" => pusher::is_prefix(text),
        "log.filter" => is_log_filter(text),
        _ => true,
    };
    let right = match key {
        "single_app" => "an app's slug, 1 to 63 of a-z, 0-9 and -",
        "server.host" => "an IP address such as 127.0.0.1 or 0.0.0.0",
        "server.public_host" => {
            "a host name such as \"herald.example.com\", without scheme and port"
        }
        "admin.username" => "a name without colons and control characters",
        "metrics.listen" => "an address and a port such as 127.0.0.1:9568, or empty",
        "history.file" => "\"auto\", \"off\" or the path of a file",
        "engine.kind" => "\"local\" or \"redis\"",
        "engine.prefix" => "1 to 64 of a-z, A-Z, 0-9, '.', '_', ':' and '-'",
        "engine.ca_file" => "the path of a file, or empty",
        "pusher.path_prefix" => {
            "empty, or a path such as /pusher that is not one of Herald's own, without a slash at its end"
        }
        "log.filter" => "levels by module, such as \"info\" or \"warn,herald=debug\"",
        _ => "a text",
    };
    (is_formed, right)
}

/// Returns whether a text is a filter of env_logger. A word alone must be a level, `herald` or a path of modules:
/// otherwise a mistyped level would count as the name of a module, and silence all others.
fn is_log_filter(text: &str) -> bool {
    let is_clear = |word: &str| {
        let is_level = word.parse::<log::LevelFilter>().is_ok();
        word.is_empty() || is_level || word == "herald" || word.contains(['=', ':'])
    };
    // The pattern after the slash selects lines by their text.
    let levels = text.split('/').next().unwrap_or_default();
    levels.split(',').map(str::trim).all(is_clear)
        && env_filter::Builder::new().try_parse(text).is_ok()
}

/// A setting that was read: the value for serde, and the value for people.
pub(super) type ReadSetting = (ValueKind, Json);

/// Reads a setting by the kind of its default.
///
/// # Errors
/// A text that says what the value must be. It quotes the value, unless it is secret.
pub(super) fn read(key: &str, given: Value, default: &ValueKind) -> Result<ReadSetting, String> {
    let json = Json::deserialize(given).unwrap_or_default();
    if SECRETS.contains(&key) {
        return read_secret(key, &json).map_err(|right| format!("must be {right}"));
    }
    let read = match default {
        ValueKind::Boolean(_) if key == "socket.check_origin" && flag(&json).is_none() => {
            texts(&json).map(same)
        }
        ValueKind::Boolean(_) => flag(&json).map(same).ok_or_else(|| "true or false".to_owned()),
        ValueKind::I64(_) => {
            let (range, number) = (numbers(key), whole(&json));
            let number = number.filter(|number| range.contains(number)).map(same);
            let (least, most) = range.into_inner();
            number.ok_or_else(|| format!("a whole number from {least} to {most}"))
        }
        ValueKind::Array(_) => {
            texts(&json).and_then(|list| match list.iter().all(|raw| network(raw).is_some()) {
                true => Ok(same(list)),
                false => Err("addresses or networks such as 10.0.0.7 or 10.0.0.0/8".to_owned()),
            })
        }
        ValueKind::String(word) if is_number_or_word(key, word) => match json.as_str() {
            Some(text) if text == word => Ok((ValueKind::Nil, json.clone())),
            _ => whole(&json)
                .filter(|number| *number > 0)
                .map(same)
                .ok_or_else(|| format!("\"{word}\" or a whole number from 1")),
        },
        ValueKind::String(text) if parse_duration(text).is_ok() => read_duration(key, &json),
        _ => match json.as_str() {
            // An empty text means no value if the default is no value.
            Some("") if *default == "".into() => Ok((ValueKind::Nil, json.clone())),
            text => {
                let (is_formed, right) = form(key, text.unwrap_or_default());
                let text = text.filter(|_| is_formed).map(|text| same(text.to_owned()));
                text.ok_or_else(|| right.to_owned())
            }
        },
    };
    read.map_err(|right| must_be(&right, &json))
}

fn must_be(right: &str, given: &Json) -> String {
    let shown: String = given.to_string().chars().take(80).collect();
    format!("must be {right}, not {shown}")
}

/// Reads the value of a variable that replaces `log.filter`, by the rule of that setting.
///
/// # Errors
/// [`SettingsError`] names the variable.
pub fn parse_log_filter(variable: &str, value: OsString) -> Result<String, SettingsError> {
    let fault = |fault: String| SettingsError::new(variable, fault);
    let text = value.into_string().map_err(|_| fault(NOT_TEXT.into()))?;
    match form("log.filter", &text) {
        (true, _) => Ok(text),
        (false, right) => Err(fault(must_be(right, &text.into()))),
    }
}

/// Returns whether a setting is a number or the word that is its default. `history.file` has such a word, too,
/// but its other values are paths.
fn is_number_or_word(key: &str, default: &str) -> bool {
    ["auto", "off"].contains(&default) && key != "history.file"
}

fn read_secret(key: &str, json: &Json) -> Result<ReadSetting, &'static str> {
    let text = json.as_str().ok_or("a text, in quotes")?;
    let right = "sqlite://<file> or postgres://user:password@host/database";
    let right_redis = "redis://user:password@host:6379, or rediss:// for TLS; several are separated \
                       by commas";
    let shown = match (key, text) {
        (_, "") => String::new(),
        ("database.url", url) => shown_url(url).ok_or(right)?,
        ("engine.redis_url", urls) => shown_urls(urls).ok_or(right_redis)?,
        _ => MASK.to_owned(),
    };
    Ok((text.into(), shown.into()))
}

/// A duration, for serde as seconds and nanoseconds.
fn read_duration(key: &str, json: &Json) -> Result<ReadSetting, String> {
    let (least, most) = durations(key).into_inner();
    let given = json.as_str().and_then(|text| parse_duration(text).ok());
    let Some(given) = given.filter(|given| (least..=most).contains(given)) else {
        let (least, most) = (format_duration(least), format_duration(most));
        return Err(format!("a duration such as \"5s\", from {least} to {most}"));
    };
    let parts = vec![given.as_secs(), given.subsec_nanos().into()];
    Ok((parts.into(), format_duration(given).to_string().into()))
}

fn same<T: Clone + Into<ValueKind> + Into<Json>>(value: T) -> ReadSetting {
    (value.clone().into(), value.into())
}

fn flag(json: &Json) -> Option<bool> {
    json.as_bool().or_else(|| json.as_str()?.parse().ok())
}

fn whole(json: &Json) -> Option<u64> {
    match json {
        // Digits alone: `parse` would take a plus sign too.
        Json::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => json.as_u64(),
    }
}

/// A list of texts, or one text that is split at its commas.
fn texts(json: &Json) -> Result<Vec<String>, String> {
    let list = match json {
        Json::String(text) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(items.map(String::from).collect())
        }
        _ => json
            .as_array()
            .and_then(|items| items.iter().map(|i| Some(i.as_str()?.into())).collect()),
    };
    list.ok_or_else(|| "a list of texts".to_owned())
}

/// Parses an address or a network. One in IPv4-mapped form, such as `::ffff:10.0.0.0/104`, becomes that of IPv4,
/// because the addresses of clients are turned into IPv4 in the same way before they are compared with it.
fn network(raw: &str) -> Option<IpNet> {
    let network = raw.parse().or_else(|_| raw.parse().map(IpAddr::into)).ok()?;
    let IpNet::V6(wide) = network else { return Some(network) };
    match (wide.addr().to_ipv4_mapped(), wide.prefix_len().checked_sub(IPV4_MAPPED_BITS)) {
        (Some(address), Some(bits)) => IpNet::new(address.into(), bits).ok(),
        _ => Some(network),
    }
}

pub(super) fn networks<'de, D: Deserializer<'de>>(given: D) -> Result<Vec<IpNet>, D::Error> {
    Ok(Vec::<String>::deserialize(given)?.iter().filter_map(|raw| network(raw)).collect())
}

pub(super) fn host<'de, D: Deserializer<'de>>(given: D) -> Result<String, D::Error> {
    let host = Host::parse(&String::deserialize(given)?).map_err(D::Error::custom)?;
    Ok(host.to_string())
}

pub(super) fn milliseconds<'de, D: Deserializer<'de>>(given: D) -> Result<Duration, D::Error> {
    u64::deserialize(given).map(Duration::from_millis)
}

/// A text whose default is empty.
pub(super) fn text<'de, D: Deserializer<'de>>(given: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(given)?.unwrap_or_default())
}

pub(super) fn slug<'de, D: Deserializer<'de>>(given: D) -> Result<Option<Slug>, D::Error> {
    Ok(Option::<String>::deserialize(given)?.and_then(|slug| Slug::parse(&slug)))
}

pub(super) fn history_file<'de, D: Deserializer<'de>>(given: D) -> Result<HistoryFile, D::Error> {
    let text = String::deserialize(given)?;
    Ok(match text.as_str() {
        "auto" => HistoryFile::Auto,
        "off" => HistoryFile::Off,
        path => HistoryFile::At(path.into()),
    })
}

/// An origin policy. The policy `PublicHost` gets its host later, because that is another setting.
pub(super) fn origin_policy<'de, D: Deserializer<'de>>(given: D) -> Result<OriginPolicy, D::Error> {
    let entries = match Json::deserialize(given)? {
        Json::Bool(flag) => vec![flag.to_string()],
        list => texts(&list).map_err(D::Error::custom)?,
    };
    let right = "must be false, true, \"conn\" or a list of origins";
    OriginPolicy::parse(&entries, "localhost")
        .map_err(|e| D::Error::custom(format!("{right}: {e}")))
}
