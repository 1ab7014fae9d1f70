//! Metrics: what this server counts, and how it is told to Prometheus.
//!
//! One [`Metrics`] is made at the start and passed to whoever counts; there is no global registry,
//! so two servers in one process do not mix. Labels are closed sets ([`labels`]) or the slugs of
//! apps, which are bounded ([`apps`]): nothing that a client chooses becomes a label, and every
//! series of a closed set is there from the start, at zero.
//!
//! Counting must not show in what is counted. A delivery adds to plain integers of its thread, which
//! go into the app's counters once per publication and thread. How long a publication takes to its
//! subscribers' sockets is measured by sample ([`SAMPLE_INTERVAL`]). How much waits in outboxes is
//! found out only when somebody asks. `docs/metrics.md` lists all, and a test compares it with this.

pub mod apps;
pub mod closed;
pub mod labels;
pub mod process;

use std::{sync::Arc, time::Duration};

pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::{
    encoding::text,
    metrics::{gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use apps::{AppSeries, Described, Traffic};
use closed::Each;
use labels::{JoinOutcome, Limit, RefreshOutcome, RefusalReason, SessionEnd, SessionKind};

/// How often, at most, a thread measures how long a publication takes to one of its subscribers.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);

/// The media type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the publish-to-write histogram, seconds: from what one dispatch costs up to what
/// a client may stand still.
const WRITE_BUCKETS_S: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Everything that is counted, as handles to count with.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open sessions.
    pub sessions: Each<SessionKind, Gauge>,
    /// Sessions that were begun.
    pub sessions_opened: Each<SessionKind, Counter>,
    /// Sessions that are over, by why.
    pub sessions_ended: Each<SessionEnd, Counter>,
    /// Joins that were answered.
    pub joins: Each<JoinOutcome, Counter>,
    /// What clients were not allowed to do, by why.
    pub refusals: Each<RefusalReason, Counter>,
    /// How often a limit was hit.
    pub limit_hits: Each<Limit, Counter>,
    /// Requests that cannot be read.
    pub malformed_requests: Counter,
    /// Worker threads that accept no more connections, because accepting panicked.
    pub accept_panics: Counter,
    /// From the moment a publication was taken to the moment it was written to a socket.
    pub publish_to_write_s: Histogram,
    /// How often the apps were read anew.
    pub registry_refreshes: Each<RefreshOutcome, Counter>,
    /// Lines of the log that found no room because standard error was not read.
    pub log_lines_dropped: Counter,
    /// What waits in outboxes; measured when it is asked for.
    pub outboxes: Outboxes,
    /// What is counted per app.
    pub apps: AppSeries,
}

/// How much waits for clients. Set by whoever is about to show it.
#[derive(Debug, Default)]
pub struct Outboxes {
    /// Frames, over all sessions.
    pub frames: Gauge,
    /// Bytes, over all sessions.
    pub bytes: Gauge,
    /// Frames of the session that has the most.
    pub frames_most: Gauge,
    /// Bytes of the session that has the most.
    pub bytes_most: Gauge,
    /// Worker threads that did not say in time; what they hold is not in the other figures.
    pub silent_threads: Gauge,
}

impl Metrics {
    /// Nothing counted yet. So many apps, at most, have series of their own.
    pub fn new(apps_max: usize) -> Arc<Self> {
        let metrics = Self {
            registry: Registry::default(),
            sessions: Each::default(),
            sessions_opened: Each::default(),
            sessions_ended: Each::default(),
            joins: Each::default(),
            refusals: Each::default(),
            limit_hits: Each::default(),
            malformed_requests: Counter::default(),
            accept_panics: Counter::default(),
            publish_to_write_s: Histogram::new(WRITE_BUCKETS_S),
            registry_refreshes: Each::default(),
            log_lines_dropped: Counter::default(),
            outboxes: Outboxes::default(),
            apps: AppSeries::new(apps_max),
        };
        Arc::new(metrics.registered())
    }

    /// Gives every metric its name and its help; `docs/metrics.md` says more.
    fn registered(mut self) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process::now()));
        let herald = registry.sub_registry_with_prefix("herald");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        herald.register("build", "The program that runs", version);
        herald.register("sessions", "Open sessions", self.sessions.clone());
        herald.register("sessions_opened", "Sessions begun", self.sessions_opened.clone());
        herald.register("sessions_ended", "Sessions over, by why", self.sessions_ended.clone());
        herald.register("joins", "Joins answered, by outcome", self.joins.clone());
        herald.register("refusals", "What was not allowed, by why", self.refusals.clone());
        herald.register("limit_hits", "How often a limit was hit", self.limit_hits.clone());
        herald.register(
            "malformed_requests",
            "Requests that cannot be read",
            self.malformed_requests.clone(),
        );
        herald.register(
            "accept_panics",
            "Worker threads that accept no more connections",
            self.accept_panics.clone(),
        );
        herald.register(
            "registry_refreshes",
            "Readings of the table of apps",
            self.registry_refreshes.clone(),
        );
        herald.register(
            "log_lines_dropped",
            "Lines of the log that nobody read in time",
            self.log_lines_dropped.clone(),
        );
        herald.register_with_unit(
            "publish_to_write",
            "From taking a publication to writing it to a socket, sampled",
            Unit::Seconds,
            self.publish_to_write_s.clone(),
        );
        self.outboxes.register(herald);
        herald.register_collector(Box::new(Described(self.apps.clone())));
        self.registry = registry;
        self
    }

    /// All of it as text, of type [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // A `String` takes whatever is written to it.
        let _ = text::encode(&mut text, &self.registry);
        text
    }

    /// Counts a limit that was hit.
    pub fn hit(&self, limit: Limit) {
        self.limit_hits.of(limit).inc();
    }

    /// The counters of the app with this number in the database.
    pub fn app(&self, id: i32) -> Arc<Traffic> {
        self.apps.of(id)
    }
}

impl Outboxes {
    fn register(&self, herald: &mut Registry) {
        for (name, help, gauge) in [
            ("outbox_frames", "Frames waiting for clients", &self.frames),
            ("outbox_bytes", "Bytes waiting for clients", &self.bytes),
            ("outbox_frames_most", "Frames waiting in the fullest outbox", &self.frames_most),
            ("outbox_bytes_most", "Bytes waiting in the fullest outbox", &self.bytes_most),
            ("silent_threads", "Worker threads that did not say in time", &self.silent_threads),
        ] {
            herald.register(name, help, gauge.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown_and_every_series_of_a_closed_set_is_there_from_the_start() {
        let metrics = Metrics::new(10);
        metrics.hit(Limit::MessageBytes);
        let text = metrics.encode();
        for line in [
            "# TYPE herald_limit_hits counter",
            r#"herald_limit_hits_total{limit="message_bytes_max"} 1"#,
            r#"herald_limit_hits_total{limit="token_bytes_max"} 0"#,
            r#"herald_sessions{transport="websocket",version="2"} 0"#,
            "# TYPE herald_publish_to_write_seconds histogram",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn two_servers_do_not_mix() {
        let (one, other) = (Metrics::new(10), Metrics::new(10));
        one.joins.of(JoinOutcome::Ok).inc();
        assert_eq!(
            (one.joins.of(JoinOutcome::Ok).get(), other.joins.of(JoinOutcome::Ok).get()),
            (1, 0)
        );
    }
}
