//! The counters per app, for a bounded number of apps that have series of their own.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::RwLock;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{closed::Closed, labels::Source};

/// The label under which the apps beyond the bound are summed; no slug has an underscore.
const OTHERS: &str = "_other";

/// The number of an app that has no series and is not counted among the others.
pub const UNCOUNTED: i32 = i32::MIN;

/// The counters of one app.
#[derive(Debug, Default)]
pub struct Traffic {
    published: [AtomicU64; Source::ALL.len()],
    delivered_frames: AtomicU64,
    delivered_bytes: AtomicU64,
    skipped: AtomicU64,
    /// Joined topics, as last counted.
    subscriptions: AtomicU64,
}

impl Traffic {
    /// Counts publications that were accepted.
    pub fn published(&self, source: Source, publications: u64) {
        self.published[source.index()].fetch_add(publications, Relaxed);
    }

    /// Counts the deliveries of one publication to the subscribers on one thread.
    pub fn delivered(&self, frames: u64, bytes: u64) {
        self.delivered_frames.fetch_add(frames, Relaxed);
        self.delivered_bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts subscribers whose format could not carry a publication.
    pub fn skipped(&self, subscribers: u64) {
        self.skipped.fetch_add(subscribers, Relaxed);
    }
}

/// The counters of all apps. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppSeries {
    known: Arc<RwLock<Known>>,
    others: Arc<Traffic>,
    /// The counters of the app [`UNCOUNTED`], which nobody reads.
    unread: Arc<Traffic>,
    apps_max: usize,
}

/// The existing apps, by their number in the database.
type Known = HashMap<i32, CountedApp>;

#[derive(Debug)]
struct CountedApp {
    slug: String,
    /// Its own counters, or the shared ones of the other apps.
    traffic: Arc<Traffic>,
}

impl AppSeries {
    pub(super) fn new(apps_max: usize) -> Self {
        let (known, others, unread) = Default::default();
        Self { known, others, unread, apps_max }
    }

    /// Sets the existing apps, with their slugs, in any order. The counts of an app that no longer exists are
    /// dropped. A new app gets series of its own if the bound permits; otherwise it counts among the others for
    /// as long as it exists, so that no counter ever decreases. Of several new apps those with the lowest
    /// numbers, which are the oldest, are served first, so that the same apps have series of their own after
    /// every start.
    pub fn keep<'a>(&self, apps: impl Iterator<Item = (i32, &'a str)>) {
        let mut known = self.known.write();
        let mut old = std::mem::take(&mut *known);
        let mut apps: Vec<_> = apps.collect();
        apps.sort_unstable_by_key(|(id, _)| *id);
        let is_own = |traffic: &Arc<Traffic>| !Arc::ptr_eq(traffic, &self.others);
        let staying = apps.iter().filter_map(|(id, _)| old.get(id));
        let mut own = staying.filter(|counted| is_own(&counted.traffic)).count();
        for (id, slug) in apps {
            let traffic = match old.remove(&id) {
                Some(counted) => counted.traffic,
                None if own < self.apps_max => {
                    own += 1;
                    Arc::default()
                }
                None => self.others.clone(),
            };
            known.insert(id, CountedApp { slug: slug.to_owned(), traffic });
        }
    }

    /// The counters of the app with this number, or those of the others if the app has none of its
    /// own.
    pub fn of(&self, id: i32) -> Arc<Traffic> {
        if id == UNCOUNTED {
            return self.unread.clone();
        }
        let known = self.known.read();
        known.get(&id).map_or_else(|| self.others.clone(), |counted| counted.traffic.clone())
    }

    /// Publications that were accepted and frames that were delivered, over all apps that exist.
    pub fn totals(&self) -> (u64, u64) {
        let known = self.known.read();
        let own = known.values().map(|counted| &counted.traffic);
        let own = own.filter(|traffic| !Arc::ptr_eq(traffic, &self.others));
        own.chain([&self.others]).fold((0, 0), |(publications, deliveries), traffic| {
            let published: u64 = traffic.published.iter().map(|count| count.load(Relaxed)).sum();
            (publications + published, deliveries + traffic.delivered_frames.load(Relaxed))
        })
    }

    /// Sets the number of joined topics of each app; zero for every app that is not given.
    pub fn count_subscriptions(&self, by_app: &HashMap<i32, u64>) {
        let known = self.known.read();
        let mut of_others = 0;
        for (id, counted) in known.iter() {
            let joined = by_app.get(id).copied().unwrap_or_default();
            match Arc::ptr_eq(&counted.traffic, &self.others) {
                true => of_others += joined,
                false => counted.traffic.subscriptions.store(joined, Relaxed),
            }
        }
        self.others.subscriptions.store(of_others, Relaxed);
    }

    /// Every series, as its name and its counters, sorted by name; the others come last, if there
    /// are any.
    fn all(&self) -> Vec<(String, Arc<Traffic>)> {
        let known = self.known.read();
        let own = known.values().filter(|counted| !Arc::ptr_eq(&counted.traffic, &self.others));
        let mut all: Vec<_> =
            own.map(|counted| (counted.slug.clone(), counted.traffic.clone())).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        if known.len() > all.len() {
            all.push((OTHERS.to_owned(), self.others.clone()));
        }
        all
    }
}

/// Encodes the series of the apps.
#[derive(Debug)]
pub(super) struct AppSeriesEncoder(pub(super) AppSeries);

/// One of the counters.
type TrafficCounter = fn(&Traffic) -> &AtomicU64;

/// The counters whose only label is the app.
const PLAIN: [(&str, &str, Option<Unit>, TrafficCounter); 3] = [
    ("deliveries", "Frames delivered to subscribers", None, |traffic| &traffic.delivered_frames),
    ("delivered", "Bytes delivered to subscribers", Some(Unit::Bytes), |traffic| {
        &traffic.delivered_bytes
    }),
    ("skipped_deliveries", "Subscribers that could not be sent bytes", None, |traffic| {
        &traffic.skipped
    }),
];

impl Collector for AppSeriesEncoder {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.all();
        let help = "Accepted publications, by source";
        let mut metric =
            encoder.encode_descriptor("publications", help, None, MetricType::Counter)?;
        for (app, traffic) in &all {
            for source in Source::ALL {
                let labels = [("app", app.as_str()), ("source", source.as_str())];
                let value = traffic.published[source.index()].load(Relaxed);
                ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        for (name, help, unit, field) in &PLAIN {
            let mut metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (app, traffic) in &all {
                let value = ConstCounter::new(field(traffic).load(Relaxed));
                value.encode(metric.encode_family(&[("app", app.as_str())])?)?;
            }
        }
        let help = "Topics joined";
        let mut metric =
            encoder.encode_descriptor("subscriptions", help, None, MetricType::Gauge)?;
        for (app, traffic) in &all {
            let joined = i64::try_from(traffic.subscriptions.load(Relaxed)).unwrap_or(i64::MAX);
            ConstGauge::new(joined).encode(metric.encode_family(&[("app", app.as_str())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    fn publications(metrics: &Metrics) -> Vec<String> {
        let shown = |line: &str| {
            let rest = line.strip_prefix("herald_publications_total{app=\"")?;
            let (app, rest) = rest.split_once("\",source=\"trigger\"} ")?;
            Some(format!("{app} {rest}"))
        };
        metrics.encode().lines().filter_map(shown).collect()
    }

    #[test]
    fn apps_beyond_the_bound_are_summed_and_no_series_goes_back() {
        let metrics = Metrics::new(2);
        let publish = |id| metrics.app(id).published(Source::Trigger, 1);
        metrics.apps.keep([(1, "one"), (2, "two"), (3, "three"), (4, "four")].into_iter());
        [1, 1, 2, 3, 4].into_iter().for_each(publish);
        assert_eq!(publications(&metrics), ["one 2", "two 1", "_other 2"]);

        metrics.apps.keep([(2, "zwei"), (3, "three"), (4, "four")].into_iter());
        [2, 3].into_iter().for_each(publish);
        assert_eq!(
            publications(&metrics),
            ["zwei 2", "_other 3"],
            "renamed, deleted, and the rest"
        );

        metrics.apps.keep([(2, "zwei"), (3, "three"), (5, "one")].into_iter());
        publish(5);
        assert_eq!(publications(&metrics), ["one 1", "zwei 2", "_other 3"], "there is room again");
    }

    #[test]
    fn the_oldest_apps_have_series_of_their_own_in_whatever_order_they_are_named() {
        for apps in [[3, 1, 4, 2], [4, 3, 2, 1], [1, 2, 3, 4]] {
            let metrics = Metrics::new(2);
            let slugs = ["", "one", "two", "three", "four"];
            metrics.apps.keep(apps.into_iter().map(|id| (id, slugs[id as usize])));
            apps.into_iter().for_each(|id| metrics.app(id).published(Source::Trigger, id as u64));
            assert_eq!(publications(&metrics), ["one 1", "two 2", "_other 7"], "{apps:?}");
        }
    }

    #[test]
    fn without_room_all_are_summed_and_without_apps_nothing_is_shown() {
        let metrics = Metrics::new(0);
        assert_eq!(publications(&metrics), [""; 0]);
        metrics.apps.keep([(1, "one"), (2, "two")].into_iter());
        metrics.app(1).published(Source::Trigger, 3);
        metrics.app(2).published(Source::Trigger, 4);
        assert_eq!(publications(&metrics), ["_other 7"]);
    }

    #[test]
    fn joined_topics_are_counted_anew_each_time() {
        let metrics = Metrics::new(1);
        metrics.apps.keep([(1, "one"), (2, "two"), (3, "three")].into_iter());
        let shown = || {
            let text = metrics.encode();
            let lines = text.lines().filter_map(|l| l.strip_prefix("herald_subscriptions{app="));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        metrics.apps.count_subscriptions(&HashMap::from([(1, 5), (2, 1), (3, 2), (9, 9)]));
        assert_eq!(shown(), [r#""one"} 5"#, r#""_other"} 3"#]);
        metrics.apps.count_subscriptions(&HashMap::from([(3, 2)]));
        assert_eq!(shown(), [r#""one"} 0"#, r#""_other"} 2"#]);
    }
}
