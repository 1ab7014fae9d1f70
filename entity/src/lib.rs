//! Herald's database tables as SeaORM entities. Only the store of the apps uses them.

pub mod apps;
pub mod prelude;
