//! `cargo bench --bench history`: see `herald_load::scenario::Scenario::History`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::History, env!("CARGO_BIN_EXE_herald"))
}
