//! A session's place among the sessions of an app.

use std::sync::{Arc, OnceLock};

use crate::{
    app::AppId,
    metrics::usage::{AppConnection, AppUsage},
    session::places::HeldPlace,
};

/// A session's place among the sessions of an app. All joins of the app by this session share it.
pub struct PlaceInApp {
    _held: HeldPlace<AppId>,
    /// The connection for the usage, which begins with the first granted join.
    connection: OnceLock<AppConnection>,
}

impl PlaceInApp {
    pub(super) fn new(held: HeldPlace<AppId>) -> Arc<Self> {
        Arc::new(Self { _held: held, connection: OnceLock::new() })
    }

    /// Notes that a join is granted, and returns the app's counters. At the first one, `usage` finds the counters,
    /// and the session counts as connected to the app from then on.
    pub fn connect(&self, usage: impl FnOnce() -> Arc<AppUsage>) -> &AppUsage {
        self.connection.get_or_init(|| usage().connect()).usage()
    }
}
