//! `GET /api/admin/overview`: sessions, rates and limits of all nodes, now and in the last hour.
//!
//! Each node samples its own figures at the same moments of the clock, and sends them to the node that is
//! asked for the overview, which adds them up. If a node does not answer, the request fails, because the
//! sums would be too low.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use actix_web::{HttpResponse, web};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    broker::{node::NodeId, topics::Unanswered},
    http::{Services, error::ApiError},
    metrics::{
        Metrics,
        closed::Closed,
        labels::{Limit, ProtocolVersion, SessionKind, Transport},
    },
};

/// The time between two samples.
const INTERVAL: Duration = Duration::from_secs(5);
/// An hour of samples.
const SAMPLES_MAX: usize = 720;

/// The name of the question by which a node asks another for its figures.
const OVERVIEW: &str = "overview";

/// The samples of the last hour of this server.
#[derive(Debug)]
pub struct Overview {
    started_at: DateTime<Utc>,
    samples: Mutex<Samples>,
}

#[derive(Debug, Default)]
struct Samples {
    /// The time of the newest sample, and the publications and deliveries counted until then.
    last: Option<(Instant, u64, u64)>,
    series: Series,
}

/// The samples of consecutive intervals, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Series {
    /// The number of the interval of the oldest sample. Intervals are numbered from the beginning of
    /// 1970.
    first: i64,
    all: VecDeque<Sample>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Sample {
    sessions: i64,
    publications_per_second: f64,
    deliveries_per_second: f64,
}

/// The figures of one node, as it sends them to another. Each has a default, because nodes of other
/// versions may send fewer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct NodeFigures {
    address: String,
    version: String,
    started_at: String,
    websocket: i64,
    longpoll: i64,
    /// The sessions of Pusher's clients, which `websocket` contains, too.
    pusher: i64,
    /// How often each limit was hit, by its name; limits that were never hit are left out.
    hits: BTreeMap<String, u64>,
    series: Series,
}

impl Default for Overview {
    fn default() -> Self {
        Self { started_at: Utc::now(), samples: Mutex::default() }
    }
}

impl Overview {
    /// The time at which this server started.
    pub(in crate::http) fn started_at(&self) -> DateTime<Utc> {
        self.started_at
    }

    /// Takes a sample in each interval, for as long as this runs.
    pub async fn keep(services: web::Data<Services>) {
        loop {
            let now = Utc::now();
            services.overview.sample(&services.metrics, interval_of(now), Instant::now());
            let since_ms = now.timestamp_millis().rem_euclid(interval_ms());
            tokio::time::sleep(INTERVAL - Duration::from_millis(since_ms.unsigned_abs())).await;
        }
    }

    fn sample(&self, metrics: &Metrics, interval: i64, now: Instant) {
        let (publications, deliveries) = metrics.apps.totals();
        let mut samples = self.samples.lock();
        // The interval has a sample already if the clock was set back or the timer fired early.
        if interval <= samples.series.last() && !samples.series.is_apart(interval) {
            return;
        }
        let before = samples.last.replace((now, publications, deliveries));
        let Some((at, publications_before, deliveries_before)) = before else { return };
        let seconds = now.saturating_duration_since(at).as_secs_f64().max(0.001);
        // The totals shrink when an app is deleted, because its counts go with it.
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let sample = Sample {
            sessions: sessions(metrics, |_| true),
            publications_per_second: rate(publications, publications_before),
            deliveries_per_second: rate(deliveries, deliveries_before),
        };
        samples.series.push(interval, sample);
    }

    fn report(&self, services: &Services) -> NodeFigures {
        let metrics = &services.metrics;
        let of = |transport| sessions(metrics, |kind| kind.transport == transport);
        let hits = |limit: &Limit| (limit.as_str().to_owned(), metrics.limit_hits.of(*limit).get());
        NodeFigures {
            address: services.address.get().map(SocketAddr::to_string).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: rfc3339(self.started_at),
            websocket: of(Transport::WebSocket),
            longpoll: of(Transport::LongPoll),
            pusher: sessions(metrics, |kind| kind.version == ProtocolVersion::Pusher),
            hits: Limit::ALL.iter().map(hits).filter(|(_, hits)| *hits > 0).collect(),
            series: self.samples.lock().series.clone(),
        }
    }
}

impl Series {
    /// The interval of the newest sample.
    fn last(&self) -> i64 {
        self.first + self.all.len() as i64 - 1
    }

    /// Returns whether an interval is too far from the newest sample for one series, or whether there is no sample. The
    /// clock may have been corrected by years.
    fn is_apart(&self, interval: i64) -> bool {
        self.all.is_empty() || interval.abs_diff(self.last()) >= SAMPLES_MAX as u64
    }

    /// Adds the sample of an interval. Intervals before it that have no sample get the same one.
    fn push(&mut self, interval: i64, sample: Sample) {
        if self.is_apart(interval) {
            self.all.clear();
            self.first = interval;
        }
        let missing = if self.all.is_empty() { 1 } else { interval - self.last() };
        for _ in 0..missing {
            if self.all.len() >= SAMPLES_MAX {
                self.all.pop_front();
                self.first += 1;
            }
            self.all.push_back(sample);
        }
    }

    fn of(&self, interval: i64) -> Option<&Sample> {
        self.all.get(usize::try_from(interval - self.first).ok()?)
    }

    /// The sum over several nodes, up to the last interval that all of them have sampled. A node has no
    /// sample of the time before its start.
    fn sum<'a>(of_nodes: impl Iterator<Item = &'a Self>) -> Self {
        let all: Vec<_> = of_nodes.filter(|series| !series.all.is_empty()).collect();
        let last = all.iter().map(|series| series.last()).min().unwrap_or_default();
        let first = all.iter().map(|series| series.first).min().unwrap_or_default();
        let first = first.max(last - SAMPLES_MAX as i64 + 1);
        let sample = |interval| {
            let samples = all.iter().filter_map(|series| series.of(interval));
            samples.fold(Sample::default(), |sum, sample| sum.and(sample))
        };
        let all =
            if all.is_empty() { VecDeque::new() } else { (first..=last).map(sample).collect() };
        Self { first, all }
    }
}

impl Sample {
    fn and(self, other: &Self) -> Self {
        Self {
            sessions: self.sessions + other.sessions,
            publications_per_second: self.publications_per_second + other.publications_per_second,
            deliveries_per_second: self.deliveries_per_second + other.deliveries_per_second,
        }
    }
}

/// The answer for these nodes, each with its name.
fn shown(reports: &[(String, NodeFigures)], apps: usize) -> Value {
    let sum = |figure: fn(&NodeFigures) -> i64| -> i64 {
        reports.iter().map(|(_, report)| figure(report)).sum()
    };
    let series = Series::sum(reports.iter().map(|(_, report)| &report.series));
    let now = series.all.back().copied().unwrap_or_default();
    let list = |pick: fn(&Sample) -> Value| series.all.iter().map(pick).collect::<Vec<_>>();
    let hits = |limit: &Limit| -> u64 {
        reports.iter().filter_map(|(_, report)| report.hits.get(limit.as_str())).sum()
    };
    let limits =
        Limit::ALL.iter().map(|limit| json!({ "limit": limit.as_str(), "hits": hits(limit) }));
    let nodes = reports.iter().map(|(name, report)| {
        json!({
            "id": name,
            "address": report.address,
            "version": report.version,
            "started_at": report.started_at,
            "sessions": { "websocket": report.websocket, "longpoll": report.longpoll },
        })
    });
    let (websocket, longpoll) = (sum(|report| report.websocket), sum(|report| report.longpoll));
    let pusher = sum(|report| report.pusher);
    json!({
        "now": {
            "sessions": { "websocket": websocket, "longpoll": longpoll },
            "protocols": { "phoenix": websocket + longpoll - pusher, "pusher": pusher },
            "apps": apps,
            "publications_per_second": now.publications_per_second,
            "deliveries_per_second": now.deliveries_per_second,
        },
        "limits": limits.collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
        "samples": {
            "every_seconds": INTERVAL.as_secs(),
            "from": rfc3339(time_of(series.first)),
            "sessions": list(|sample| sample.sessions.into()),
            "publications": list(|sample| sample.publications_per_second.into()),
            "deliveries": list(|sample| sample.deliveries_per_second.into()),
        },
    })
}

/// Answers the overview.
///
/// # Errors
/// [`ApiError::Unavailable`] if a node does not answer in time.
pub(crate) async fn show(services: web::Data<Services>) -> Result<HttpResponse, ApiError> {
    let topics = &services.topics;
    let reports = match topics.is_clustered() {
        false => vec![("local".to_owned(), services.overview.report(&services))],
        true => {
            let answers = topics.ask_nodes(OVERVIEW, b"", topics.wait_max()).await;
            let answers = answers.map_err(|Unanswered| ApiError::Unavailable)?;
            let read = |(node, report): (NodeId, Bytes)| {
                Some((node.0.to_string(), serde_json::from_slice(&report).ok()?))
            };
            let reports: Option<Vec<_>> = answers.into_iter().map(read).collect();
            reports.ok_or(ApiError::Unavailable)?
        }
    };
    let apps = services.directory.load().iter().len();
    Ok(HttpResponse::Ok().json(json!({ "data": shown(&reports, apps) })))
}

/// Answers the questions of other nodes for the figures of this one.
pub fn take_part(services: &web::Data<Services>) {
    let asked = services.clone();
    services.topics.on_question(OVERVIEW, move |_| {
        let report = serde_json::to_vec(&asked.overview.report(&asked)).ok().map(Bytes::from);
        async move { report }
    });
}

/// The number of open sessions of this node whose kind `is_meant` accepts.
pub(in crate::http) fn sessions(metrics: &Metrics, is_meant: impl Fn(&SessionKind) -> bool) -> i64 {
    let kinds = SessionKind::ALL.iter().filter(|kind| is_meant(kind));
    kinds.map(|kind| metrics.sessions.of(*kind).get()).sum()
}

fn interval_ms() -> i64 {
    i64::try_from(INTERVAL.as_millis()).unwrap_or(i64::MAX)
}

fn interval_of(time: DateTime<Utc>) -> i64 {
    time.timestamp_millis().div_euclid(interval_ms())
}

/// The beginning of an interval.
fn time_of(interval: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(interval * interval_ms()).unwrap_or_default()
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels::Source;

    #[test]
    fn rates_are_per_second_and_an_hour_of_them_is_kept() {
        let (overview, metrics) = (Overview::default(), Metrics::new(1));
        metrics.apps.keep([(1, "one"), (2, "two")].into_iter());
        let start = Instant::now();
        let sample = |nth: u32| {
            overview.sample(&metrics, 1_000 + i64::from(nth), start + INTERVAL * nth);
        };
        let series = || overview.samples.lock().series.clone();
        sample(0);
        for id in [1, 2] {
            metrics.app(id).published(Source::Trigger, 10);
            metrics.app(id).delivered(20, 1);
        }
        sample(1);
        let newest = || series().all.back().copied();
        let expected =
            Sample { sessions: 0, publications_per_second: 4.0, deliveries_per_second: 8.0 };
        assert_eq!(newest(), Some(expected));
        sample(1);
        assert_eq!(series().all.len(), 1, "an interval is sampled once");
        metrics.apps.keep([(2, "two")].into_iter());
        (2..800).for_each(sample);
        assert_eq!(newest(), Some(Sample::default()), "an app that is gone makes no rate");
        assert_eq!((series().all.len(), series().last()), (SAMPLES_MAX, 1_799));
        sample(810);
        assert_eq!((series().all.len(), series().last()), (SAMPLES_MAX, 1_810), "without a hole");
    }

    #[test]
    fn samples_begin_anew_after_a_correction_of_the_clock_by_more_than_an_hour() {
        let (overview, metrics, start) = (Overview::default(), Metrics::new(1), Instant::now());
        let last = |intervals: [i64; 2]| {
            for (interval, now) in intervals.into_iter().zip(1..) {
                overview.sample(&metrics, interval, start + INTERVAL * now);
            }
            let series = overview.samples.lock().series.clone();
            (series.all.len(), series.last())
        };
        assert_eq!(last([9_999, 10_000]), (1, 10_000));
        assert_eq!(last([10_000, 10_000 - 719]), (1, 10_000), "set back by less than an hour");
        assert_eq!(last([100, 101]), (2, 101));
        assert_eq!(last([10_000, 10_001]), (2, 10_001));
    }

    #[test]
    fn the_samples_of_nodes_are_added_up_interval_by_interval() {
        let series = |first, sessions: &[i64]| {
            let sample = |sessions: &i64| Sample { sessions: *sessions, ..Sample::default() };
            Series { first, all: sessions.iter().map(sample).collect() }
        };
        let sum = |all: &[Series]| {
            let sum = Series::sum(all.iter());
            (sum.first, sum.all.iter().map(|sample| sample.sessions).collect::<Vec<_>>())
        };
        let (old, new, none) =
            (series(10, &[1, 2, 3, 4]), series(12, &[10, 20, 30]), series(0, &[]));
        assert_eq!(sum(&[]), (0, vec![]));
        assert_eq!(sum(&[none.clone(), old.clone()]), (10, vec![1, 2, 3, 4]));
        // The newest interval is one that every node has sampled.
        assert_eq!(sum(&[old, none, new]), (10, vec![1, 2, 13, 24]));
    }
}
