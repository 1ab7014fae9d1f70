//! A session's place among those of an app.

use std::sync::{Arc, OnceLock};

use crate::{
    app::AppId,
    metrics::usage::{AppConnection, AppUsage},
    session::places::HeldPlace,
};

/// A session's place among those of an app; its joins of the app share it.
pub struct PlaceInApp {
    _held: HeldPlace<AppId>,
    /// From the first join that is granted on.
    connection: OnceLock<AppConnection>,
}

impl PlaceInApp {
    pub(super) fn new(held: HeldPlace<AppId>) -> Arc<Self> {
        Arc::new(Self { _held: held, connection: OnceLock::new() })
    }

    /// A join is granted, so the session is connected to the app; `usage` finds the app's counters.
    pub fn connect(&self, usage: impl FnOnce() -> Arc<AppUsage>) -> &AppUsage {
        self.connection.get_or_init(|| usage().connect()).usage()
    }
}
