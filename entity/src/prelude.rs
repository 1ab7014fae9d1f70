//! Each table's entity under the table's own name.

pub use super::apps::Entity as Apps;
