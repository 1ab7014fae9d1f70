//! The Phoenix Channels protocol, in both of its wire versions.
//!
//! The protocol document that comes with the project's specification is authoritative; the tests
//! here and in `tests/` carry the numbers of its entries. In reading order: [`connect`] accepts or
//! refuses handshakes. [`message`] has the parts that both wire versions share, [`v1`] and [`v2`]
//! spell them, `payload` makes objects of other JSON, and [`binary`] is version 2 for payloads of
//! bytes. [`presence`] makes and spells the
//! presence events. [`admission`] decides by tokens which clients may join, and [`conversation`] is the state
//! machine with its `joins`, and `farewell` has its close codes. [`long_poll`] carries it over plain requests: [`batch`] reads their
//! bodies, and a [`session_token`] names their session. [`routes`] is the table of URLs.

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
