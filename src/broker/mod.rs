//! The core: how one publication reaches everyone who should hear it, in one order per scope.
//!
//! No word of any wire protocol lives here. [`Topics`] is the entry point: every publication
//! passes through it. Behind it the `directory` finds the `stream` of the scope, where the order
//! lives: it numbers publications, retains the newest of them in a [`history`], and hands them to one
//! [`fanout`] actor per worker thread, which knows the subscribers living there. The lock of the
//! stream is held from the number to the last mailbox, so each fan-out gets them in this order.
//!
//! The `ledger` knows how much each app retains and may retain. A join that knows a [`position`] is
//! given a [`recovery`]: the fan-out asks the stream for what was missed, and spells it as `replays`.
//!
//! [`saving`] writes what is retained to an [`archive`] when the server stops, and takes it up again when
//! the next one starts.
//!
//! A publisher may name an [`idempotency`] key, so that it can repeat a request without publishing
//! twice: [`Topics::publish_once`].
//!
//! Apps share the server. `permits` bound how many publications of one app are under way, and a
//! fan-out hands out to apps by `turns`, so a busy app delays the others little.
//!
//! Where subscribers are tracked, one `tracker` actor per scope keeps a [`presence`] per channel. It
//! announces what changes through the stream, so announcements share the order.

pub mod addressing;
mod announcement;
pub mod archive;
pub mod backlog;
mod count;
mod directory;
pub mod disconnection;
pub mod fanout;
mod fanouts;
mod gathering;
pub mod history;
pub mod idempotency;
mod ledger;
mod listeners;
pub mod occupancy;
pub mod outbox;
mod permits;
mod placed;
pub mod position;
pub mod presence;
pub mod publication;
pub mod recovery;
mod reference;
mod replays;
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

pub use addressing::Addressing;
pub use publication::{
    Destination, EventName, JsonObject, NameError, Payload, PayloadError, Publication, address,
};
pub use topic_name::{ChannelName, Scope, TopicName};
pub use topics::{OnceError, PublishError, Published, Receipt, Topics};

/// Unix milliseconds, by the system's clock.
fn now_ms() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or_default()
}
