//! `herald nodes`: the nodes of a cluster, as a running server knows them.

use serde_json::{Value, json};

use super::{CommandFailure, remote::Remote, table::table};

pub(super) const AFTER_HELP: &str = "\
The command asks a running server, and logs in as the administrator of the
settings. A server that is not part of a cluster lists itself alone, with the
id 0.

SESSIONS are the open ones. SCOPES have subscribers or retain something on the
node. LAG is the number of records of the log that the node has yet to read.
SEEN is the age of the node's last sign of life, in milliseconds. The node that
has answered is marked with an asterisk.

Examples:
  herald nodes
  herald nodes --url https://herald.example.com --json";

#[derive(Debug, clap::Args)]
pub(super) struct NodesArgs {
    /// The server to ask; without it the server of this machine's settings. With server.force_ssl
    /// give the https:// address of the proxy
    #[arg(long)]
    url: Option<String>,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &NodesArgs) -> Result<String, CommandFailure> {
    let answer: Value = Remote::of_admin(args.url.as_deref())?.get(&["nodes"], &[])?;
    let nodes = answer["data"].as_array().cloned().unwrap_or_default();
    Ok(match args.json {
        true => super::json(&json!({ "data": nodes })),
        false => shown(&nodes),
    })
}

fn shown(nodes: &[Value]) -> String {
    let cell = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let row = |node: &Value| {
        let mark = if node["this"] == true { "*" } else { "" };
        [
            format!("{}{mark}", cell(&node["id"])),
            cell(&node["address"]),
            cell(&node["version"]),
            cell(&node["started_at"]),
            cell(&node["sessions"]),
            cell(&node["scopes"]),
            cell(&node["lag"]),
            cell(&node["seen_ms_ago"]),
        ]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    table(["ID", "ADDRESS", "VERSION", "STARTED", "SESSIONS", "SCOPES", "LAG", "SEEN"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_shown_in_a_table_and_the_one_that_answered_is_marked() {
        let node = |id: u16, this: bool| {
            json!({
                "id": id, "address": "10.0.0.1:4000", "version": "0.1.0", "started_at": "now",
                "sessions": 3, "scopes": 2, "lag": 0, "seen_ms_ago": 5, "this": this,
            })
        };
        let expected = "\
ID  ADDRESS        VERSION  STARTED  SESSIONS  SCOPES  LAG  SEEN
1   10.0.0.1:4000  0.1.0    now      3         2       0    5
2*  10.0.0.1:4000  0.1.0    now      3         2       0    5
";
        assert_eq!(shown(&[node(1, false), node(2, true)]), expected);
    }
}
