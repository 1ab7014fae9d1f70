//! The registry: the server's only writer of apps.

use actix::{Actor, Context};

/// The actor that owns the apps.
pub struct AppRegistry;

impl Actor for AppRegistry {
    type Context = Context<Self>;
}
