//! `cargo bench --bench fanout-saturated`: see `herald_load::scenario::Scenario::FanoutSaturated`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(
        herald_load::scenario::Scenario::FanoutSaturated,
        env!("CARGO_BIN_EXE_herald"),
    )
}
