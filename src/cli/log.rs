//! The logger: one line per record, to standard error.
//!
//! It never waits for the reader of standard error, see [`lines`].

mod lines;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    borrow::Cow,
    io::{self, Write},
    panic,
    time::Duration,
};

use env_logger::{Builder, Target};
use log::LevelFilter;

use crate::settings::{SettingsError, parse_log_filter};

pub(super) use lines::Lines;

/// The log level of commands other than `serve`: warnings and errors only.
pub(super) const COMMANDS: &str = "warn";

/// The time for which an exit waits for lines that are still queued.
pub(super) const EXIT_WAIT_MAX: Duration = Duration::from_secs(1);

/// Starts the thread that writes to standard error.
pub(super) fn to_standard_error() -> Lines {
    Lines::to(io::stderr())
}

/// The variable that replaces the filter of the settings.
const VARIABLE: &str = "RUST_LOG";

/// Starts logging the records that `filter` lets through; `RUST_LOG` takes precedence if it is set.
///
/// # Errors
/// [`SettingsError`] if `RUST_LOG` is not a filter: a mistyped level would silence the whole log.
pub(super) fn start(filter: &str, lines: &Lines) -> Result<(), SettingsError> {
    let wanted = std::env::var_os(VARIABLE).filter(|wanted| !wanted.is_empty());
    let wanted = wanted.map(|wanted| parse_log_filter(VARIABLE, wanted)).transpose()?;
    let mut builder = Builder::new();
    builder
        .parse_filters(wanted.as_deref().unwrap_or(filter))
        // Statements may hold values, so they are not logged at any level.
        .filter_module("sqlx::query", LevelFilter::Off)
        .target(Target::Pipe(Box::new(lines.clone())))
        .format(|out, record| {
            let message = record.args().to_string();
            let (level, target) = (record.level(), record.target());
            writeln!(out, "{} {level:<5} {target}: {}", out.timestamp_millis(), one_line(&message))
        });
    // Only a second start can fail, and then logging already works.
    builder.try_init().ok();
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Logs a panic. The standard library would write it to standard error itself, and could block
/// there.
fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => log::error!("{panic}\n{trace}"),
        _ => log::error!("{panic}"),
    }
}

/// Escapes control characters: text from outside must not forge a line or move the cursor.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_stays_on_its_line() {
        for (text, expected) in [
            ("plain caf\u{e9}", "plain caf\u{e9}"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[31mred\u{7f}\u{85}", "\\u{1b}[31mred\\u{7f}\\u{85}"),
        ] {
            assert_eq!(one_line(text), expected, "{text:?}");
        }
    }
}
