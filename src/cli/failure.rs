//! The failure of a command: one line and an exit code.

use std::process::ExitCode;

use super::log::{Lines, one_line};

/// The exit code of a command that failed.
const FAILED: u8 = 1;
/// The exit code of a command line that is not valid; clap uses the same code.
pub(super) const USAGE: u8 = 2;

/// A line for standard error and the exit code that goes with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CommandFailure {
    message: String,
    code: u8,
}

impl CommandFailure {
    /// The command failed.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: FAILED }
    }

    /// The command line is not valid.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: USAGE }
    }

    /// Queues the line and returns the exit code, which reports the failure even if standard error
    /// is not read.
    pub(super) fn report(self, lines: &Lines) -> ExitCode {
        lines.push(format!("herald: {}\n", one_line(&self.message)).as_bytes());
        ExitCode::from(self.code)
    }
}

impl<E: std::error::Error> From<E> for CommandFailure {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}
