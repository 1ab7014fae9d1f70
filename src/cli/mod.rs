//! The command line: the operator's tasks without an HTTP client.
//!
//! Each command is a file with its arguments, its help and one `run`, which returns the text to
//! print or a `CommandFailure`; only the `run` of this module prints and chooses the exit code. No command
//! panics on a closed pipe, therefore, and every failure is reported in one line.

mod apps;
mod audit;
mod banner;
mod check_config;
mod confirm;
mod failure;
mod history;
mod log;
mod migrate;
mod nodes;
mod remote;
mod seed;
mod serve;
mod table;
mod token;
mod trigger;
mod usage;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    app::store::{AppStore, MissingFile},
    settings::Settings,
};

use failure::CommandFailure;
use log::Lines;

const AFTER_HELP: &str = "\
Without a command Herald serves.

Settings come from the files that `config/default.toml` explains and from the
environment; `herald check-config` shows them. The commands apps, audit,
migrate, seed, token and, without --url, usage work on the database of the
settings. A running server sees a change of an app within registry.refresh.

Exit codes:
  0  done
  1  it could not be done; one line on standard error says why
  2  the command line was not understood

Examples:
  herald                                   serve in the development environment
  HERALD_ENV=production herald migrate up  bring the database up to date
  herald apps create --name foo-app        add an app, print its key and secret
  herald token --app foo-app --listen 'private:foo-app:*'
  herald trigger --app foo-app --channel foo-topic --event msg \\
      --payload '{\"message\":\"hi\"}'";

#[derive(Debug, Parser)]
#[command(
    name = "herald",
    version,
    about = "A self-hosted realtime broker that speaks Phoenix Channels and Pusher's protocol"
)]
#[command(after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; the default without a command
    #[command(after_help = serve::AFTER_HELP)]
    Serve,
    /// Change or show the state of the database's tables
    #[command(after_help = migrate::AFTER_HELP)]
    Migrate {
        #[command(subcommand)]
        command: migrate::MigrateCommand,
    },
    /// Create the articles' app `test-app` where it is missing; not in production
    #[command(after_help = seed::AFTER_HELP)]
    Seed,
    /// Show every setting in effect, with its source; secrets are masked
    #[command(after_help = check_config::AFTER_HELP)]
    CheckConfig(check_config::CheckConfigArgs),
    /// List, create, show, update, rotate and delete apps in the database
    #[command(after_help = apps::AFTER_HELP)]
    Apps {
        #[command(subcommand)]
        command: apps::AppsCommand,
    },
    /// Show the changes of apps: which fields, when and by whom
    #[command(after_help = audit::AFTER_HELP)]
    Audit(audit::AuditArgs),
    /// Mint a token for an app's visitors, or for the web application itself
    #[command(after_help = token::AFTER_HELP)]
    Token(token::TokenArgs),
    /// Trigger an event on a running server
    #[command(after_help = trigger::AFTER_HELP)]
    Trigger(trigger::TriggerArgs),
    /// Show the publications that a running server retains for a channel
    #[command(after_help = history::AFTER_HELP)]
    History(history::HistoryArgs),
    /// Show the usage of apps by the hour, day or month
    #[command(after_help = usage::AFTER_HELP)]
    Usage(usage::UsageArgs),
    /// Show the nodes of the cluster
    #[command(after_help = nodes::AFTER_HELP)]
    Nodes(nodes::NodesArgs),
}

/// Runs the command line `args`, whose first one is the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // Help and version also arrive as errors; clap knows the stream and the code for each.
        Err(answer) => {
            // A failure to print cannot be reported, because the output is closed.
            answer.print().ok();
            return ExitCode::from(if answer.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    let lines = log::to_standard_error();
    let done = execute(cli.command.unwrap_or(Command::Serve), &lines);
    let code = match done.and_then(|text| print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(&lines),
    };
    lines.flush(log::EXIT_WAIT_MAX);
    code
}

/// Runs the command and returns the text for standard output.
fn execute(command: Command, lines: &Lines) -> Result<String, CommandFailure> {
    if !matches!(command, Command::Serve) {
        log::start(log::COMMANDS, lines)?;
    }
    match command {
        Command::Serve => serve::run(lines),
        Command::Migrate { command } => migrate::run(&command),
        Command::Seed => seed::run(),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Apps { command } => apps::run(command),
        Command::Audit(args) => audit::run(args),
        Command::Token(args) => token::run(&args),
        Command::Trigger(args) => trigger::run(&args),
        Command::History(args) => history::run(&args),
        Command::Usage(args) => usage::run(&args),
        Command::Nodes(args) => nodes::run(&args),
    }
}

fn print(text: &str) -> Result<(), CommandFailure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that closed the pipe, for example `herald apps list | head -1`, has all it
        // wants.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => {
            done.map_err(|e| CommandFailure::new(format!("cannot write to standard output: {e}")))
        }
    }
}

/// Runs `task` on the database of the settings, and closes the database afterwards.
///
/// Only a server's start creates the folder of a database: a command that runs in a folder other
/// than the server's would otherwise create a new empty database, and report that there are no
/// apps.
fn with_store<T>(
    missing: MissingFile,
    task: impl AsyncFnOnce(AppStore, Settings) -> Result<T, CommandFailure>,
) -> Result<T, CommandFailure> {
    let settings = Settings::load()?;
    actix_rt::System::new().block_on(async {
        let store = AppStore::connect(&settings.database, missing).await?;
        let closing = store.clone();
        let done = task(store, settings).await;
        closing.close().await;
        done
    })
}

/// Like [`with_store`], for commands that need the tables to exist and to be up to date.
fn with_tables<T>(
    missing: MissingFile,
    task: impl AsyncFnOnce(AppStore, Settings) -> Result<T, CommandFailure>,
) -> Result<T, CommandFailure> {
    with_store(missing, async |store, settings| {
        if store.has_pending().await? && settings.database.migrate {
            store.migrate_up(None).await?;
        } else if store.has_pending().await? {
            let name = store.name();
            return Err(CommandFailure::new(format!(
                "the database {name} has pending migrations: run `herald migrate up`"
            )));
        }
        task(store, settings).await
    })
}

/// Spells a value as indented JSON, with a final newline.
fn json(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}
