//! `cargo bench --bench fanout-steady`: see `herald_load::scenario::Scenario::FanoutSteady`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::FanoutSteady, env!("CARGO_BIN_EXE_herald"))
}
