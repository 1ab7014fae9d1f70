//! Metrics: the figures that this server counts, and their text for Prometheus.
//!
//! One [`Metrics`] is made at the start and passed to each part that counts. There is no global
//! registry, so two servers in one process do not mix. Labels are closed sets ([`labels`]) or the
//! slugs of apps, which are bounded ([`apps`]): no value that a client chooses becomes a label, and
//! every series of a closed set exists from the start, at zero.
//!
//! Counting must not slow down the work that is counted. A delivery adds to plain integers of its
//! thread, which are added to the app's counters once per publication and thread. Each thread counts its
//! writes to sockets in counters of its own, which a scrape sums ([`writes`]). The time from a
//! publication to the write to a subscriber's socket is sampled ([`SAMPLE_INTERVAL`]). The sizes of
//! the outboxes are summed only on a scrape. `docs/metrics.md` lists all metrics, and a test
//! compares it with this module.

pub mod apps;
pub mod closed;
pub mod engine;
pub mod labels;
pub mod process;
pub mod usage;
pub mod writes;

use std::{sync::Arc, time::Duration};

pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::{
    encoding::text,
    metrics::{gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry, Unit},
};

use apps::{AppSeries, AppSeriesEncoder, Traffic};
use closed::Each;
use engine::EngineSeries;
use labels::{
    FailedLogin, JoinOutcome, Limit, RefreshOutcome, RefusalReason, SessionEnd, SessionKind,
};
use usage::{Clock, UsageCounters};
use writes::{FrameWrites, FrameWritesEncoder};

/// The shortest time between two samples that a thread takes of the time from a publication to the write to a
/// subscriber's socket.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);

/// The media type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the publish-to-write histogram, in seconds: from the cost of one dispatch to the longest
/// time for which a client may stall.
const WRITE_BUCKETS_S: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// All metrics, as handles to count with.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open sessions.
    pub sessions: Each<SessionKind, Gauge>,
    /// Sessions that began.
    pub sessions_opened: Each<SessionKind, Counter>,
    /// Sessions that ended, by reason.
    pub sessions_ended: Each<SessionEnd, Counter>,
    /// Joins that were answered.
    pub joins: Each<JoinOutcome, Counter>,
    /// Refusals of clients, by reason.
    pub refusals: Each<RefusalReason, Counter>,
    /// The number of times that each limit was hit.
    pub limit_hits: Each<Limit, Counter>,
    /// Logins with wrong credentials.
    pub failed_logins: Each<FailedLogin, Counter>,
    /// Requests that cannot be read.
    pub malformed_requests: Counter,
    /// Worker threads that accept no more connections, because accepting panicked.
    pub accept_panics: Counter,
    /// The time from accepting a publication to writing it to a socket.
    pub publish_to_write_s: Histogram,
    /// The writes of frames to WebSockets.
    pub frame_writes: FrameWrites,
    /// The number of times that the table of apps was read.
    pub registry_refreshes: Each<RefreshOutcome, Counter>,
    /// Lines of the log that were dropped because standard error was not read.
    pub log_lines_dropped: Counter,
    /// The sizes of the outboxes, measured on a scrape.
    pub outboxes: Outboxes,
    /// The amount that the history retains, measured on a scrape.
    pub history: RetainedAmount,
    /// The series of the engine.
    pub engine: EngineSeries,
    /// The counters of the apps.
    pub apps: AppSeries,
    /// The number of times that the apps' usage was written.
    pub usage_writes: Each<RefreshOutcome, Counter>,
    /// The usage of apps, which is written to the database and is not a metric.
    pub usage: UsageCounters,
}

/// The amount that waits for clients. It is set just before it is shown.
#[derive(Debug)]
pub struct Outboxes {
    /// Frames, over all sessions.
    pub frames: Gauge,
    /// Bytes, over all sessions.
    pub bytes: Gauge,
    /// Frames of the session that has the most frames.
    pub frames_most: Gauge,
    /// Bytes of the session that has the most bytes.
    pub bytes_most: Gauge,
    /// Worker threads that did not report in time; the other figures leave their sessions out.
    pub silent_threads: Gauge,
}

/// The amount that the history retains. It is set just before it is shown.
#[derive(Debug)]
pub struct RetainedAmount {
    /// Bytes of memory.
    pub bytes: Gauge,
    /// Publications.
    pub publications: Gauge,
}

impl Metrics {
    /// Makes the metrics with every count at zero. At most this number of apps have series of their
    /// own.
    pub fn new(apps_max: usize) -> Arc<Self> {
        Self::with_clock(apps_max, Clock::default())
    }

    /// Like [`new`](Self::new), with a clock that decides to which hour usage belongs.
    pub fn with_clock(apps_max: usize, clock: Clock) -> Arc<Self> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process::now()));
        let r = registry.sub_registry_with_prefix("herald");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "Version of the running program", version);
        let (frame_writes, apps) = (FrameWrites::default(), AppSeries::new(apps_max));
        r.register_collector(Box::new(FrameWritesEncoder(frame_writes.clone())));
        r.register_collector(Box::new(AppSeriesEncoder(apps.clone())));
        // The text shows the metrics in the order of these lines; `docs/metrics.md` says more about each.
        Arc::new(Self {
            sessions: new(r, "sessions", "Open sessions"),
            sessions_opened: new(r, "sessions_opened", "Sessions that began"),
            sessions_ended: new(r, "sessions_ended", "Sessions that ended, by reason"),
            joins: new(r, "joins", "Answered joins, by outcome"),
            refusals: new(r, "refusals", "Refusals of clients, by reason"),
            limit_hits: new(r, "limit_hits", "Times that each limit was hit"),
            failed_logins: new(r, "failed_logins", "Logins with wrong credentials, by entry point"),
            malformed_requests: new(r, "malformed_requests", "Requests that cannot be read"),
            accept_panics: new(
                r,
                "accept_panics",
                "Worker threads that accept no more connections",
            ),
            registry_refreshes: new(
                r,
                "registry_refreshes",
                "Reads of the table of apps, by outcome",
            ),
            usage_writes: new(r, "usage_writes", "Writes of the usage, by outcome"),
            log_lines_dropped: new(
                r,
                "log_lines_dropped",
                "Lines of the log that were dropped because standard error was not read",
            ),
            publish_to_write_s: in_seconds(
                r,
                "publish_to_write",
                "Time from accepting a publication to writing it to a socket, sampled",
                Histogram::new(WRITE_BUCKETS_S),
            ),
            frame_writes,
            outboxes: Outboxes::registered(r),
            engine: EngineSeries::registered(r),
            history: RetainedAmount::registered(r),
            apps,
            usage: UsageCounters::new(clock),
            registry,
        })
    }

    /// All metrics as text, of type [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail.
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
    fn registered(r: &mut Registry) -> Self {
        Self {
            frames: new(r, "outbox_frames", "Frames waiting for clients"),
            bytes: new(r, "outbox_bytes", "Bytes waiting for clients"),
            frames_most: new(r, "outbox_frames_most", "Frames waiting in the fullest outbox"),
            bytes_most: new(r, "outbox_bytes_most", "Bytes waiting in the fullest outbox"),
            silent_threads: new(r, "silent_threads", "Worker threads that did not report in time"),
        }
    }
}

impl RetainedAmount {
    fn registered(r: &mut Registry) -> Self {
        Self {
            bytes: new(r, "history_bytes", "Memory of the retained publications"),
            publications: new(r, "history_publications", "Retained publications"),
        }
    }
}

/// Makes a metric that begins at zero, and registers it.
fn new<M: Metric + Clone + Default>(r: &mut Registry, name: &str, help: &str) -> M {
    kept(r, name, help, M::default())
}

/// Registers a metric, and returns it.
fn kept<M: Metric + Clone>(r: &mut Registry, name: &str, help: &str, metric: M) -> M {
    r.register(name, help, metric.clone());
    metric
}

/// Registers a metric in seconds, and returns it.
fn in_seconds<M: Metric + Clone>(r: &mut Registry, name: &str, help: &str, metric: M) -> M {
    r.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_shown_and_every_series_of_a_closed_set_exists_from_the_start() {
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
