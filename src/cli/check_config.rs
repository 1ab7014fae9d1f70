//! `herald check-config`: every setting in effect, or the fault that would stop the start.

use serde_json::{Map, Value, json};

use super::{CommandFailure, table::table};
use crate::{
    engine::EngineError,
    settings::{Effective, EngineKind, Environment, Settings},
};

pub(super) const AFTER_HELP: &str = "\
If the settings would stop the start, the command names the first fault and
exits with 1.

Examples:
  herald check-config
  HERALD_ENV=production herald check-config --json";

#[derive(Debug, clap::Args)]
pub(super) struct CheckConfigArgs {
    /// Answer as JSON: {"environment": …, "settings": {"server.port": {"value": …, "origin": …}}}
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CheckConfigArgs) -> Result<String, CommandFailure> {
    let (settings, effective) = Settings::explain()?;
    if settings.engine.kind == EngineKind::Redis {
        settings.engine.authorities().map_err(EngineError::authorities)?;
    }
    // The limit on open files is one of the settings that the machine must support.
    let file_limit = crate::settings::raise_file_limit();
    settings.sessions_max(file_limit)?;
    settings.http_connections_max(file_limit)?;
    settings.check_history_file()?;
    Ok(match args.json {
        true => super::json(&as_json(settings.env, effective)),
        false => as_text(settings.env, &effective),
    })
}

fn as_json(env: Environment, effective: Vec<Effective>) -> Value {
    let entry = |e: Effective| (e.key, json!({"value": e.value, "origin": e.origin}));
    let settings: Map<String, Value> = effective.into_iter().map(entry).collect();
    json!({"environment": env.as_str(), "settings": settings})
}

fn as_text(env: Environment, effective: &[Effective]) -> String {
    let row = |e: &Effective| [e.key.clone(), plain(&e.value), e.origin.clone()];
    let rows: Vec<_> = effective.iter().map(row).collect();
    format!("environment: {env}\n\n{}", table(["setting", "value", "from"], &rows))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "(empty)".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
