//! The question that a command asks before it destroys something.

use std::io::{self, BufRead, IsTerminal, Write};

use super::CommandFailure;

/// Asks on the terminal whether to go on with `action`; the answer is `expected`.
///
/// # Errors
/// Any other answer, and standard input that is no terminal.
pub(super) fn confirm(action: &str, expected: &str) -> Result<(), CommandFailure> {
    let mut input = io::stdin().lock();
    if !input.is_terminal() {
        return Err(CommandFailure::usage(format!(
            "standard input is no terminal to ask at: confirm with --yes to {action}"
        )));
    }
    let mut err = io::stderr();
    let asked =
        write!(err, "This will {action}. Type {expected} to confirm: ").and_then(|()| err.flush());
    let mut answer = String::new();
    asked
        .and_then(|()| input.read_line(&mut answer))
        .map_err(|e| CommandFailure::new(format!("cannot ask: {e}")))?;
    match answer.trim() == expected {
        true => Ok(()),
        false => Err(CommandFailure::new("not confirmed: nothing was changed")),
    }
}
