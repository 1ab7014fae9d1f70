//! The core: delivers each publication to all its subscribers, in one order per scope.
//!
//! This room has no wire protocol. [`Topics`] is the entry point: every publication passes through it.
//! The `directory` finds the `stream` of the scope, which defines the order: it numbers publications,
//! retains the newest of them in a [`history`], and passes them to one [`fanout`] actor per worker thread,
//! which has the subscribers of its thread. The lock of the stream is held from the numbering until all
//! mailboxes have the publications, so each fan-out receives them in this order.
//!
//! The `ledger` counts how much each app retains and may retain. A join that names a [`position`]
//! gets a [`recovery`]: the fan-out asks the stream for the missed publications, and encodes them
//! as `replays`.
//!
//! [`saving`] writes the retained publications to an [`archive`] when the server stops, and loads
//! them when the next one starts.
//!
//! A publisher may name an [`idempotency`] key, so that it can repeat a request without publishing
//! twice: [`Topics::publish_once`].
//!
//! Apps share the server. `permits` bound how many publications of one app are under way, and a
//! fan-out serves the apps by `turns`, so a busy app delays the others little. It writes frames to sockets through
//! the [`writers`] of its sessions.
//!
//! A server without a cluster gives publications their numbers itself. In a cluster, several nodes share a
//! log: the `cluster` appends publications to it and passes those that it reads to the streams, and its
//! offsets are the numbers: see `numbering`.
//!
//! Lists over all nodes are answered in `pages`.
//!
//! Sessions may be signed in as [`users`], and watch which other users are online. [`other_nodes`] keeps what the
//! nodes of a cluster tell each other of such state.
//!
//! Where subscribers are tracked, one `tracker` actor per scope keeps a [`presence`] per channel.
//! It announces changes through the stream, so announcements share the order.

pub mod addressing;
mod announcement;
pub mod archive;
pub mod backlog;
mod cluster;
pub mod connections;
mod count;
mod counts;
mod directory;
pub mod disconnection;
pub mod fanout;
mod fanouts;
pub mod feed;
mod gathering;
mod growth;
pub mod history;
pub mod idempotency;
pub mod last_events;
mod ledger;
mod listeners;
pub mod node;
mod numbering;
pub mod occupancy;
pub mod other_nodes;
pub mod outbox;
mod pages;
mod permits;
mod placed;
pub mod position;
pub mod presence;
pub mod publication;
mod receipt;
pub mod recovery;
mod reference;
mod replays;
pub mod reserved;
pub mod retained;
pub mod saving;
mod spellings;
mod stream;
pub mod subscriber;
#[cfg(test)]
pub(crate) mod testing;
pub mod topic_name;
pub mod topics;
mod tracker;
mod turns;
pub mod users;
pub mod writers;

pub use addressing::Addressing;
pub use publication::{
    Destination, EventName, JsonObject, JsonText, NameError, Payload, PayloadError, Publication,
    PublicationOrigin, Sender, address,
};
pub use receipt::Receipt;
pub use topic_name::{ChannelName, Scope, TopicName};
pub use topics::{OnceError, PublishError, Published, Topics};

/// The time in Unix milliseconds, by the system's clock.
fn now_ms() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or_default()
}
