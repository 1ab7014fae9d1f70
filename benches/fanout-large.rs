//! `cargo bench --bench fanout-large`: see `herald_load::scenario::Scenario::FanoutLarge`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::FanoutLarge, env!("CARGO_BIN_EXE_herald"))
}
