//! REST: stub.
pub mod error;
