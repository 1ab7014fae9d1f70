//! `cargo bench --bench recovery`: see `herald_load::scenario::Scenario::Recovery`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Recovery, env!("CARGO_BIN_EXE_herald"))
}
