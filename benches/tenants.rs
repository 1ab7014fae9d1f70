//! `cargo bench --bench tenants`: see `herald_load::scenario::Scenario::Tenants`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::Tenants, env!("CARGO_BIN_EXE_herald"))
}
