//! `cargo bench --bench watched`: see `herald_load::scenario::Scenario::Watched`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Watched, env!("CARGO_BIN_EXE_herald"))
}
