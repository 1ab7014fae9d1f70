//! One request of a connection at a time.
//!
//! actix-http decodes every request that has arrived, serves it, and keeps the answers until the
//! client reads them; while its read buffer is full it polls without end. A client that pipelines
//! requests and reads no answer thus costs 19 MB and a core. [`HttpStream`] lies between the socket
//! and actix-http: it finds where each request ends ([`head`], [`chunks`]), hands over one, and the
//! next only once the answer to it has been written. The bytes that a client sends ahead stay in the kernel,
//! except for [`READ_AHEAD_BYTES_MAX`].
//!
//! A request that offers an upgrade is served like any other, unless it asks for a WebSocket on the
//! path of a socket: [`offer`] removes what is not accepted from its head.
//!
//! Incomplete heads, large heads, and bytes that are read ahead count towards the budget of all unfinished
//! work. Through [`eviction`] a connection learns that it must end because it holds the most.
//!
//! Connections are bounded: if a new one finds no room, [`waiting`] ends the one that has waited longest for
//! its client. [`anybody`] limits the rate of requests that need no authentication, and ends them early if
//! their room is needed while they are parked. [`work_queue`] begins only a few requests of unauthenticated
//! clients at a time.
//!
//! A request that cannot be read never reaches actix-http. This room answers it and closes the
//! connection. It also owns every deadline of a connection that is not a session.

mod anybody;
mod chunks;
mod eviction;
mod farewells;
mod head;
mod offer;
mod rules;
mod stream;
#[cfg(test)]
mod tests;
mod turn;
mod unread;
mod waiting;
mod work_queue;

pub use anybody::{in_its_time, unless_in_the_way};
pub(super) use rules::ConnectionRules;
pub(super) use stream::HttpStream;
pub use turn::trust;
pub(super) use turn::{InTurn, Turn};
pub(super) use unread::UnreadBytes;
pub use waiting::ConnectionLimit;
pub(super) use waiting::LeavingConnection;
pub(super) use work_queue::{Ticket, Work, WorkQueue};

/// Bytes of a connection that are read while its request is being served. Reading on notices a
/// client that goes away.
const READ_AHEAD_BYTES_MAX: usize = 1024;
