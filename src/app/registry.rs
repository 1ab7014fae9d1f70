//! The registry: the server's only writer of apps.

use actix::prelude::*;

use super::AppId;

/// An app was changed or deleted.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct AppChanged(pub AppId);

/// The actor that owns the apps.
pub struct AppRegistry;

impl Actor for AppRegistry {
    type Context = Context<Self>;
}
