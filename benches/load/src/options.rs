//! The options of the command line.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;

use crate::{protocol::Protocol, report::say, subject::Target};

/// Rounds of the short form: fewer have no median.
const SHORT_ROUNDS: usize = 3;

/// Seconds of one of its measurements, as a rule.
const SHORT_S: u64 = 2;

/// Options of every scenario; what is not given, the scenario chooses.
#[derive(Debug, Clone, Parser)]
#[command(
    no_binary_name = true,
    disable_version_flag = true,
    about = "Measures a realtime server against what the kernel alone charges"
)]
pub struct Options {
    /// How often the floor and the server take turns
    #[arg(long)]
    pub rounds: Option<usize>,
    /// How long one measurement lasts
    #[arg(long)]
    pub seconds: Option<u64>,
    /// How many connections take part
    #[arg(long)]
    pub connections: Option<usize>,
    /// Only this attack of `strangers`; may be given several times
    #[arg(long, value_name = "NAME")]
    pub attack: Vec<String>,
    /// Only this busy app of `tenants`; may be given several times
    #[arg(long, value_name = "NAME")]
    pub neighbour: Vec<String>,
    /// The program of the server that `builds` compares with
    #[arg(long, value_name = "PATH", conflicts_with = "address")]
    pub before: Option<String>,
    /// Only this part of `nodes` or `history`; may be given several times
    #[arg(long, value_name = "NAME")]
    pub part: Vec<String>,
    /// Few short rounds, for a quick look
    #[arg(long)]
    pub short: bool,
    /// Fail where a figure is beyond its bound by this factor
    #[arg(long, value_name = "FACTOR")]
    pub fail_beyond: Option<f64>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write JSON to this file, too
    #[arg(long, value_name = "FILE")]
    pub json_to: Option<PathBuf>,
    /// Measure this running server instead of starting one: its IP address and port
    #[arg(long, requires = "pid", value_name = "IP:PORT")]
    pub address: Option<SocketAddr>,
    /// The process to observe, where --address names a running server
    #[arg(long, requires = "address")]
    pub pid: Option<u32>,
    /// The protocol of the subscribers: fanout-steady, fanout-saturated and idle know both
    #[arg(long, value_enum, default_value_t = Protocol::Phoenix)]
    pub protocol: Protocol,
    /// The path of its WebSocket, where it is not the usual one of the protocol
    #[arg(long)]
    pub path: Option<String>,
    /// The app, by its slug: the one every development server has. Other servers of Pusher's protocol
    /// know it by its number
    #[arg(long, default_value = "test-app")]
    pub app: String,
    /// The app's key, for triggers
    #[arg(long, default_value = "test-app-fake-key")]
    pub key: String,
    /// The app's secret, for triggers and tokens
    #[arg(long, default_value = "test-app-fake-secret")]
    pub secret: String,
    /// The argument that cargo adds
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    /// Reads the command line, and lets this process have as many connections as it may.
    ///
    /// # Errors
    /// If that is not allowed.
    pub fn read() -> Result<Self, String> {
        let options = Self::parse_from(std::env::args_os().skip(1));
        let files = rlimit::increase_nofile_limit(u64::MAX).map_err(|error| error.to_string())?;
        if files < 20_000 {
            say(&format!("only {files} files may be open; the larger scenarios need 20,000"));
        }
        Ok(options)
    }

    /// Where the server is, or the program that it is started from.
    pub fn target(&self, program: &str) -> Target {
        Target {
            program: program.to_owned(),
            running: self.address.zip(self.pid),
            protocol: self.protocol,
            path: self.path.clone().unwrap_or_else(|| self.protocol.path(&self.key)),
            app: self.app.clone(),
            credentials: (self.key.clone(), self.secret.clone()),
        }
    }

    /// How often to measure, by default so often.
    pub fn rounds(&self, default: usize) -> usize {
        let short = default.min(SHORT_ROUNDS);
        self.rounds.unwrap_or(if self.short { short } else { default }).max(1)
    }

    /// How long to measure, by default so long.
    pub fn lasting(&self, default_s: u64) -> Duration {
        self.lasting_short(default_s, SHORT_S)
    }

    /// The same, where the short form has a length of its own.
    pub fn lasting_short(&self, default_s: u64, short_s: u64) -> Duration {
        Duration::from_secs(
            self.seconds.unwrap_or(if self.short { short_s } else { default_s }).max(1),
        )
    }
}

/// Of `all`, those that the command line names, or all if it names none. `kind` says in an error what they are.
///
/// # Errors
/// If a name is unknown.
pub fn chosen<'a, T>(
    kind: &str,
    names: &[String],
    all: &'a [T],
    name_of: impl Fn(&T) -> &str,
) -> io::Result<Vec<&'a T>> {
    if names.is_empty() {
        return Ok(all.iter().collect());
    }
    let known = || all.iter().map(&name_of).collect::<Vec<_>>().join(", ");
    let unknown =
        |name| io::Error::other(format!("no {kind} is called {name}; there are {}", known()));
    let find = |name: &String| all.iter().find(|one| name_of(one) == name);
    names.iter().map(|name| find(name).ok_or_else(|| unknown(name))).collect()
}
