//! The protocol of Pusher Channels.
//!
//! The protocol document of Pusher that comes with the project's specification is authoritative; the
//! tests here and in `tests/` carry the numbers of its entries. In reading order: [`channel`] maps Pusher's
//! channels to the broker's, and [`payload`] its data to the broker's JSON. [`signature`] judges signed HTTP requests, and [`auth`] the signatures that an
//! application gives its pages. [`endpoint`] lets WebSockets in or closes them, [`message`] reads what
//! clients send, `frame` and `format` spell what they are sent, `member` the members of presence channels,
//! and [`conversation`] is the state machine with its `subscriptions`. `closing` has the close codes,
//! `refusal` the reasons of refused subscriptions, and `cursor` the recovery that Pusher does not have.

pub mod auth;
pub mod channel;
mod closing;
pub mod conversation;
mod cursor;
pub mod endpoint;
mod format;
mod frame;
mod member;
pub mod message;
pub mod payload;
mod refusal;
pub mod signature;
mod subscriptions;

#[cfg(test)]
mod testing;
