//! stub
use super::AppId;
use actix::prelude::*;

/// An app was changed or deleted.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct AppChanged(pub AppId);
