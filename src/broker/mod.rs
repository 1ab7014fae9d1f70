//! The core: topics, and how one publication reaches everyone who should hear it.
//!
//! No word of any wire protocol lives here. [`Topics`] is the single door through which every
//! publication passes; behind it each scope of an app has one [`topic`] actor that gives order,
//! and each worker thread one [`fanout`] actor that knows the subscribers living on it. Where
//! subscribers are tracked the topic keeps a [`presence`] per channel, and the fan-outs announce
//! what changes in it.

pub mod addressing;
mod announcement;
pub mod backlog;
mod count;
pub mod disconnection;
pub mod fanout;
mod fanouts;
mod gathering;
pub mod history;
mod listeners;
pub mod occupancy;
mod opened;
pub mod outbox;
mod placed;
pub mod position;
pub mod presence;
pub mod publication;
mod reference;
mod spellings;
pub mod subscriber;
#[cfg(test)]
mod testing;
mod topic;
pub mod topic_name;
pub mod topics;

pub use addressing::Addressing;
pub use publication::{
    Destination, EventName, JsonObject, NameError, Payload, PayloadError, Publication, address,
};
pub use topic_name::{ChannelName, Scope, TopicName};
pub use topics::{PublishError, Receipt, Topics};
