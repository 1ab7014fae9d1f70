//! `cargo bench --bench joins`: see `herald_load::scenario::Scenario::Joins`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Joins, env!("CARGO_BIN_EXE_herald"))
}
