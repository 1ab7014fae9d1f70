//! `cargo bench --bench strangers`: see `herald_load::scenario::Scenario::Strangers`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Strangers, env!("CARGO_BIN_EXE_herald"))
}
