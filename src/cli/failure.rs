//! Why a command failed: one line and an exit code.

use std::process::ExitCode;

use super::log::{Lines, one_line};
use crate::{
    app::{change::ChangeError, store::StoreError},
    server::StartError,
    settings::SettingsError,
};

/// The command was understood and could not be done.
const FAILED: u8 = 1;
/// The command line was not understood; clap's own code.
pub(super) const USAGE: u8 = 2;

/// A line for standard error and the exit code that goes with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// It could not be done.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: FAILED }
    }

    /// It was not understood.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: USAGE }
    }

    /// Leaves the line to be written and gives the code, which speaks also where nobody reads.
    pub(super) fn report(self, lines: &Lines) -> ExitCode {
        lines.push(format!("herald: {}\n", one_line(&self.message)).as_bytes());
        ExitCode::from(self.code)
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        Self::new(error.to_string())
    }
}
