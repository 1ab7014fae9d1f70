//! `cargo bench --bench idle`: see `herald_load::scenario::Scenario::Idle`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Idle, env!("CARGO_BIN_EXE_herald"))
}
