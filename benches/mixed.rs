//! `cargo bench --bench mixed`: see `herald_load::scenario::Scenario::Mixed`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Mixed, env!("CARGO_BIN_EXE_herald"))
}
