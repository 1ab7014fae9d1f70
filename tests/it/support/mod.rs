//! The tools that tests of a whole server share: the server itself, sockets, HTTP, tokens.
//!
//! Every receive has a deadline. No test sleeps to show that nothing arrives: it makes a round trip, whose answer
//! would arrive after anything that was still on its way.

pub mod database;
pub mod figures;
pub mod generated;
pub mod http;
pub mod nodes;
pub mod other_version;
pub mod picture;
pub mod poller;
pub mod presence;
pub mod process;
pub mod proxy;
pub mod pusher;
pub mod pusher_socket;
pub mod raw;
pub mod recovery;
pub mod redis_server;
pub mod server;
pub mod socket;
pub mod sources;
pub mod tokens;

pub use http::{get, request};
pub use poller::Poller;
pub use process::Process;
pub use pusher_socket::PusherSocket;
pub use server::{App, TestServer};
pub use socket::{Socket, V1, V1_POLLED, V2, V2_POLLED, V2_WAYS, WAYS};

use std::time::Duration;

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(10);
