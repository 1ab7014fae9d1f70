//! `cargo bench --bench fanout-payload`: see `herald_load::scenario::Scenario::FanoutPayload`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::FanoutPayload, env!("CARGO_BIN_EXE_herald"))
}
