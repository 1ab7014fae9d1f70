//! A load generator: real connections over loopback against a server in a process of its own.
//!
//! Every figure is a ratio within one run: the floor's measurement and the server's take turns, and
//! medians are compared, because a machine is shared and noisy. Each [`scenario`] has a file of its own.
//! [`subject`] starts the process that is measured, [`floor`] costs what the kernel alone costs, [`crowd`] has
//! the subscribers, [`publisher`] publishes events, [`observe`] reads the CPU and the memory of a process, and
//! [`report`] prints. [`protocol`] has the messages of subscribers in each protocol. Where the floor does less
//! than what is measured, [`bare`] and [`handler`] do the least that a server can. [`redis`] starts
//! the Redis that several servers share, and [`schedule`] says when clients run that stand for other machines.
//!
//! Run one with `cargo bench --bench <scenario>`; `-- --help` lists what can be chosen.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that is run by hand, and reports"
)]

pub mod bare;
pub mod crowd;
pub mod floor;
pub mod handler;
pub mod observe;
pub mod options;
pub mod protocol;
pub mod publisher;
pub mod redis;
pub mod report;
pub mod scenario;
pub mod schedule;
pub mod subject;
pub mod wire;

use std::process::ExitCode;

use clap::ValueEnum;

use protocol::Protocol;

/// The channel that most scenarios share.
pub const CHANNEL: &str = "bench";

/// The first event's number; all have as many digits.
pub const FIRST: u64 = 1_000_000_000;

/// The tail of a message: an event's name and its payload, which carries a number and padding.
pub fn event(name: &str, number: &str, payload_bytes: usize) -> String {
    format!(r#""{name}",{}"#, payload(number, payload_bytes))
}

/// A payload of this number of bytes, or more if the number of the event needs more.
pub fn payload(number: &str, payload_bytes: usize) -> String {
    padded(&format!(r#""n":{number}"#), payload_bytes)
}

/// An object with these fields, padded to this number of bytes.
pub fn padded(fields: &str, bytes: usize) -> String {
    let bare = r#"{,"pad":""}"#.len() + fields.len();
    format!(r#"{{{fields},"pad":"{}"}}"#, "x".repeat(bytes.saturating_sub(bare)))
}

/// The body of a trigger on [`CHANNEL`].
pub fn trigger_body(number: u64, payload_bytes: usize) -> String {
    let payload = payload(&number.to_string(), payload_bytes);
    format!(r#"{{"topic":"{CHANNEL}","event":"msg","payload":{payload}}}"#)
}

/// The body of the same trigger for Pusher's API.
pub fn pusher_body(number: u64, payload_bytes: usize) -> String {
    let data = serde_json::Value::from(payload(&number.to_string(), payload_bytes));
    format!(r#"{{"name":"msg","channel":"{CHANNEL}","data":{data}}}"#)
}

/// Runs a scenario as the command line says; `server` is the program it measures.
pub fn main(scenario: scenario::Scenario, server: &str) -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let done = match arguments.next().as_deref() {
        Some(floor::ARGUMENT) => {
            let protocol = Protocol::from_str(&arguments.next().unwrap_or_default(), false);
            let topic = arguments.next().unwrap_or_default();
            protocol.and_then(|protocol| {
                floor::run(protocol, &topic).map_err(|error| error.to_string())
            })
        }
        Some(bare::ARGUMENT) => {
            bare::run(&arguments.next().unwrap_or_default()).map_err(|error| error.to_string())
        }
        Some(handler::ARGUMENT) => handler::run().map_err(|error| error.to_string()),
        _ => options::Options::read().and_then(|options| scenario.run(&options, server)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{}: {why}", scenario.name());
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_as_large_as_it_shall_be() {
        assert_eq!(payload(&FIRST.to_string(), 128).len(), 128);
        assert_eq!(payload(&FIRST.to_string(), 10_240).len(), 10_240);
        assert_eq!(payload("7", 0), r#"{"n":7,"pad":""}"#);
    }
}
