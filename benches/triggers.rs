//! `cargo bench --bench triggers`: see `herald_load::scenario::Scenario::Triggers`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Triggers, env!("CARGO_BIN_EXE_herald"))
}
