//! `cargo bench --bench fanout-window`: see `herald_load::scenario::Scenario::FanoutWindow`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::FanoutWindow, env!("CARGO_BIN_EXE_herald"))
}
