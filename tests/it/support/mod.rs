//! The tools that tests of a whole server share: the server itself, sockets, HTTP, tokens.
//!
//! Every receive has a deadline. No test sleeps to show that nothing arrives: it makes a round trip, whose answer
//! would arrive after anything that was still on its way. A state that no event announces is polled with
//! [`repeat_until`] or [`repeat_until_some`].

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

/// Repeats a check until it holds.
pub async fn repeat_until(mut check: impl AsyncFnMut() -> bool) {
    repeat_until_some(async || check().await.then_some(())).await;
}

/// Repeats an attempt until it returns something. It sleeps between the attempts, because a loop without a pause
/// takes a processor from the servers and from other tests. The caller sets a deadline with a timeout.
pub async fn repeat_until_some<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(result) = attempt().await {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
