//! `herald history`: shows the publications that a running server retains for a channel.

use serde_json::Value;

use super::{CommandFailure, remote::RemoteArgs, table::table};
use crate::{
    broker::ChannelName,
    http::history::{HistoryAnswer, RetainedPublication},
};

/// The most characters of a payload that a table shows.
const PAYLOAD_CHARS: usize = 60;

pub(super) const AFTER_HELP: &str = "\
The command reads the app's key and secret from HERALD_APP_KEY and
HERALD_APP_SECRET. If neither is set, it reads them from the database of the
settings. With both set it needs no settings and no database.

Examples:
  herald history --app test-app --channel foo-topic
  herald history --app test-app --channel foo-topic --limit 10 --json
  herald history --app test-app --scope private --channel room-1 \\
      --since \"$position\"";

#[derive(Debug, clap::Args)]
pub(super) struct HistoryArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    /// The channel
    #[arg(long, value_parser = parse_channel)]
    channel: String,
    /// Show the publications after this position, oldest first; without it the newest
    #[arg(long, value_name = "POSITION")]
    since: Option<String>,
    /// The most publications to show; without it 100, or fewer if the server replays fewer
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
}

fn parse_channel(raw: &str) -> Result<String, String> {
    ChannelName::parse(raw).map(|_| raw.to_owned()).map_err(|e| e.to_string())
}

pub(super) fn run(args: &HistoryArgs) -> Result<String, CommandFailure> {
    let HistoryArgs { remote, channel, since, limit } = args;
    let limit = limit.map(|limit| ("limit", limit.to_string()));
    let since = since.clone().map(|since| ("since", since));
    let query: Vec<_> = limit.into_iter().chain(since).collect();
    let path = ["channels", &remote.scope, channel, "history"];
    let page: HistoryAnswer = remote.remote()?.get(&path, &query)?;
    match remote.json {
        true => {
            let page = serde_json::to_string_pretty(&page);
            page.map(|page| format!("{page}\n"))
                .map_err(|e| CommandFailure::new(format!("cannot spell the history: {e}")))
        }
        false => Ok(shown(&page)),
    }
}

/// A table of the publications, a note if it is incomplete, and the position with which to continue.
fn shown(page: &HistoryAnswer) -> String {
    let rows: Vec<_> = page.data.iter().map(row).collect();
    let mut text = match rows.is_empty() {
        true => String::from("nothing is retained\n"),
        false => table(["TIME", "TOPIC", "EVENT", "PAYLOAD", "POSITION"], &rows),
    };
    if !page.complete {
        let reason = page.reason.as_deref().unwrap_or("unknown");
        text.push_str(&format!(
            "incomplete ({reason}): publications before these may be missing\n"
        ));
    }
    if let Some(position) = &page.position {
        text.push_str(&format!("continue with --since {position}\n"));
    }
    text
}

fn row(publication: &RetainedPublication) -> [String; 5] {
    let RetainedPublication { position, time, topic, event, payload, payload_base64 } = publication;
    let payload = match (payload, payload_base64) {
        (Some(payload), _) => payload.get().to_owned(),
        (None, Some(base64)) => format!("(bytes) {base64}"),
        (None, None) => Value::Null.to_string(),
    };
    let payload = match payload.char_indices().nth(PAYLOAD_CHARS) {
        Some((at, _)) => format!("{}…", &payload[..at]),
        None => payload,
    };
    [time.clone(), topic.clone(), event.clone(), payload, position.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_a_table_and_what_to_know_of_it() {
        let answer = format!(
            r#"{{"data":[{{"position":"e:1","time":"2026-11-28T20:00:00.000Z","topic":"room",
            "event":"msg","payload":{{"text":"{}"}}}},{{"position":"e:2",
            "time":"2026-11-28T20:00:01.000Z","topic":"\u0023general","event":"b",
            "payload_base64":"Bw=="}}],"complete":false,"reason":"expired","position":"e:2"}}"#,
            "x".repeat(100)
        );
        let text = shown(&serde_json::from_str(&answer).expect("a page"));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[1].contains("room") && lines[1].contains("xxx…"), "{text}");
        assert!(lines[2].contains("#general") && lines[2].contains("(bytes) Bw=="), "{text}");
        assert!(lines[3].starts_with("incomplete (expired)"), "{text}");
        assert_eq!(lines[4], "continue with --since e:2");
        let empty = r#"{"data":[],"complete":true,"position":null}"#;
        assert_eq!(shown(&serde_json::from_str(empty).expect("a page")), "nothing is retained\n");
    }
}
