//! The Phoenix Channels protocol, in both of its wire versions.
//!
//! The protocol document that comes with the project's specification is authoritative; the tests here and in
//! `tests/` carry the numbers of its entries. In reading order:
//!
//! - [`connect`] accepts or refuses handshakes.
//! - [`message`] has the parts that both wire versions share. [`v1`] and [`v2`] encode them, and [`binary`]
//!   encodes version 2 with payloads of bytes. `payload` converts JSON of other protocols into objects.
//! - [`presence`] encodes the presence events, and `recovery` the history that a join requests.
//! - [`admission`] decides by tokens which clients may join.
//! - [`conversation`] is the state machine of a connection, with its `joins`; `farewell` has its close codes.
//! - [`long_poll`] carries conversations over plain requests: [`batch`] parses their bodies, and a
//!   [`session_token`] names their session.
//! - [`routes`] answers plain requests to the URLs of sockets.

pub mod admission;
pub mod batch;
pub mod binary;
pub mod connect;
pub mod conversation;
mod farewell;
mod joins;
pub mod long_poll;
pub mod message;
mod payload;
pub mod presence;
mod recovery;
pub mod routes;
pub mod session_token;
pub mod v1;
pub mod v2;

pub use conversation::{PhoenixConversation, PhoenixRules};
