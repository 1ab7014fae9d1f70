//! `cargo bench --bench topics-many`: see `herald_load::scenario::Scenario::TopicsMany`.

use std::process::ExitCode;

fn main() -> ExitCode {
    herald_load::main(herald_load::scenario::Scenario::TopicsMany, env!("CARGO_BIN_EXE_herald"))
}
