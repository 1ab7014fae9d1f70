//! The rules that all conversations of a server share.

use std::sync::Arc;

use crate::{
    app::{AppDirectory, AppId},
    broker::feed::Feed,
    metrics::{
        Metrics,
        labels::{JoinOutcome, Limit},
    },
    session::{
        bucket::PerSecond,
        places::{Full, Places},
    },
};

use super::{Judge, PlaceInApp};

/// The rules that all conversations of a server share, in every protocol.
#[derive(Debug)]
pub struct Rules {
    /// The apps.
    pub directory: AppDirectory,
    /// Judges joins.
    pub judge: Judge,
    /// The most topics that one session may join.
    pub channels_max: usize,
    /// The most bytes in the payload of a client event.
    pub client_event_bytes_max: usize,
    /// The rate of events that a client may publish.
    pub client_events_max: PerSecond,
    /// The rate of joins that a client may attempt.
    pub joins_max: PerSecond,
    /// The sessions of each app, and their maximum.
    pub app_sessions: Places<AppId>,
    /// The events of apps, for consoles.
    pub feed: Feed,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Rules {
    /// Takes a place among the sessions of an app.
    ///
    /// # Errors
    /// [`Full`].
    pub fn place_in(&self, app: AppId) -> Result<Arc<PlaceInApp>, Full> {
        self.app_sessions.take(&app).map(PlaceInApp::new)
    }

    /// Counts a refused join, for the app if the topic names any, and the limit that refused it.
    pub fn count_refused(&self, outcome: JoinOutcome, limit: Option<Limit>, app: Option<AppId>) {
        if let Some(app) = app {
            self.metrics.usage.of(app.0).refused();
        }
        self.metrics.joins.of(outcome).inc();
        if let Some(limit) = limit {
            self.metrics.hit(limit);
        }
    }
}
