//! The rules that conversations of both protocols share.

use std::{sync::Arc, time::Duration};

use herald::{
    admission::{Judge, Rules},
    app::{App, AppDirectory, refusals::Refusals},
    broker::feed::Feed,
    metrics::Metrics,
    session::{bucket::PerSecond, places::Places},
};

/// Rules for some apps, under which a session has no reason to pause.
pub(crate) fn rules(
    apps: impl IntoIterator<Item = App>,
    channels_max: usize,
    client_event_bytes_max: usize,
) -> Arc<Rules> {
    let metrics = Metrics::new(1);
    let directory = AppDirectory::default();
    directory.replace(apps.into_iter().collect());
    let refusals = Arc::new(Refusals::new(Duration::from_secs(60), metrics.clone()));
    Arc::new(Rules {
        directory,
        feed: Feed::default(),
        judge: Judge { refusals },
        channels_max,
        client_event_bytes_max,
        client_events_max: PerSecond(1_000),
        joins_max: PerSecond(1_000),
        app_sessions: Places::new(None),
        metrics,
    })
}
