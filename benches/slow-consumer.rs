//! `cargo bench --bench slow-consumer`: see `herald_load::scenario::Scenario::SlowConsumer`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::SlowConsumer, env!("CARGO_BIN_EXE_herald"))
}
