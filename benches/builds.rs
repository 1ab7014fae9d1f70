//! `cargo bench --bench builds`: see `herald_load::scenario::Scenario::Builds`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Builds, env!("CARGO_BIN_EXE_herald"))
}
