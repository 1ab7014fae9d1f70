//! REST: the one table of URLs, then one file per resource.

pub mod admin;
pub mod apps;
pub mod basic;
pub mod body;
pub mod client;
pub mod cross_site;
pub mod error;

use std::sync::{Arc, atomic::AtomicBool};

use actix::Addr;

use crate::{
    app::{AppDirectory, registry::AppRegistry},
    broker::Topics,
    settings::Settings,
};

/// What every handler shares; comes in as `web::Data<Services>`.
pub struct Services {
    /// The settings.
    pub settings: Arc<Settings>,
    /// The snapshot of all apps.
    pub directory: AppDirectory,
    /// The only writer of apps.
    pub registry: Addr<AppRegistry>,
    /// The door for publications.
    pub topics: Topics,
    /// Counts failed admin logins.
    pub admin_throttle: Arc<admin::Throttle>,
    /// Whether a shutdown is under way.
    pub draining: Arc<AtomicBool>,
}
