//! `cargo bench --bench nodes`: see `herald_load::scenario::Scenario::Nodes`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Nodes, env!("CARGO_BIN_EXE_herald"))
}
