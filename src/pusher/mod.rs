//! The protocol of Pusher Channels.
//!
//! The document of Pusher's protocol that comes with the project's specification is authoritative; the
//! tests here and in `tests/` carry the numbers of its entries. In reading order:
//!
//! - [`channel`] maps Pusher's channels to the broker's, and [`payload`] its data to the broker's JSON.
//! - [`signature`] checks signed HTTP requests, and [`auth`] the signatures that an application gives its
//!   pages.
//! - [`endpoint`] accepts or refuses WebSockets, each in its [`version`] of the protocol.
//! - [`message`] parses the messages of clients; `frame`, `format` and `member` encode the messages to
//!   them.
//! - [`conversation`] is the state machine of a connection, with its `subscriptions`.
//! - `closing` has the close codes, and `refusal` the reasons of refused subscriptions.
//! - `cursor` adds recovery, which Pusher's protocol does not have.

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
pub mod version;
