//! The metrics of the engine, which are all zero on a server without one.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{in_seconds, kept, new};

/// Upper bounds of the round trip to Redis, in seconds.
const ROUND_TRIP_BUCKETS_S: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

/// Upper bounds of the appends in one batch.
const BATCH_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The series of the engine.
#[derive(Debug)]
pub struct EngineSeries {
    /// 1 while records can be appended and arrive.
    pub up: Gauge,
    /// The records that the log had and this node had not, at the last probe.
    pub lag_records: Gauge,
    /// The time of the last probe that was answered, in Unix seconds.
    last_probe_s: Gauge,
    /// The number of gaps that were filled from the log.
    pub gaps_repaired: Counter,
    /// The number of connections that broke.
    pub reconnects: Counter,
    /// The appends of each batch.
    pub batch_appends: Histogram,
    /// The time from sending a batch to its acknowledgement.
    pub round_trip_s: Histogram,
}

impl EngineSeries {
    pub(super) fn registered(r: &mut Registry) -> Self {
        Self {
            up: new(r, "engine_up", "Whether the engine can be used"),
            lag_records: new(
                r,
                "engine_lag_records",
                "Records of the log that this node has not read",
            ),
            last_probe_s: in_seconds(r, "engine_last_probe", "The last probe", Gauge::default()),
            gaps_repaired: new(r, "engine_gaps_repaired", "Gaps that were filled from the log"),
            reconnects: new(r, "engine_reconnects", "Connections to Redis that broke"),
            batch_appends: kept(
                r,
                "engine_batch_appends",
                "Appends of each batch",
                Histogram::new(BATCH_BUCKETS),
            ),
            round_trip_s: in_seconds(
                r,
                "engine_round_trip",
                "Time from sending a batch to its acknowledgement",
                Histogram::new(ROUND_TRIP_BUCKETS_S),
            ),
        }
    }

    /// Notes that a probe was answered now.
    pub fn probed(&self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_probe_s.set(i64::try_from(since.as_secs()).unwrap_or_default());
    }
}
