//! The usage of each app, counted exactly. The hourly rows of the database come from these
//! counters.
//!
//! Each app has its own counters, independent of the metrics: neither the bound on series nor the
//! deletion of an app loses a count. The writer [takes](UsageCounters::take) the counts since the
//! last time.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, RwLock};

use super::apps::UNCOUNTED;

/// The longest time between two readings of the clock that counts as passed, in milliseconds: a day. The counts are
/// taken at least once an hour, so a longer one means that the clock was corrected.
pub const CLOCK_STEP_MS_MAX: u64 = 24 * 3_600_000;

/// A clock that shows the time in milliseconds since 1970.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// A clock that shows what this function returns.
    pub fn new(now_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ms))
    }

    /// The time, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    /// The system's clock.
    fn default() -> Self {
        Self::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}

/// The figures of an app for some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Publications that were accepted.
    pub publications: u64,
    /// Publications delivered to subscribers, once for each topic of a session.
    pub deliveries: u64,
    /// Payload bytes of the publications.
    pub bytes_in: u64,
    /// Payload bytes of the deliveries.
    pub bytes_out: u64,
    /// Joins that were granted.
    pub joins: u64,
    /// Joins that were refused.
    pub refused_joins: u64,
    /// The most sessions that held a join of the app at once.
    pub connections_peak: u64,
    /// The time for which sessions held joins of the app, summed over the sessions, in
    /// milliseconds.
    pub connection_ms: u64,
    /// Publications replayed to joins; they are not among the deliveries.
    pub replayed: u64,
}

impl Figures {
    /// Returns whether all figures are zero.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the figures that the same server counted within the same hour.
    pub fn add(&mut self, other: &Self) {
        self.publications += other.publications;
        self.deliveries += other.deliveries;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.joins += other.joins;
        self.refused_joins += other.refused_joins;
        self.connections_peak = self.connections_peak.max(other.connections_peak);
        self.connection_ms += other.connection_ms;
        self.replayed += other.replayed;
    }
}

/// The counters of one app since they were last taken.
#[derive(Debug)]
pub struct AppUsage {
    publications: AtomicU64,
    bytes_in: AtomicU64,
    deliveries: AtomicU64,
    bytes_out: AtomicU64,
    joins: AtomicU64,
    refused_joins: AtomicU64,
    replayed: AtomicU64,
    connections: Mutex<AppConnections>,
    clock: Clock,
}

/// The sessions that hold a join of the app.
#[derive(Debug, Default)]
struct AppConnections {
    open: u64,
    peak: u64,
    /// The sum of the times for which the sessions were open, up to `until_ms`.
    connection_ms: u64,
    until_ms: u64,
}

impl AppConnections {
    fn advance(&mut self, now_ms: u64) {
        if now_ms.abs_diff(self.until_ms) > CLOCK_STEP_MS_MAX {
            self.until_ms = now_ms;
            return;
        }
        let passed = now_ms.saturating_sub(self.until_ms);
        self.connection_ms += self.open * passed;
        self.until_ms = self.until_ms.max(now_ms);
    }
}

/// A session's connection to an app: it lasts as long as the session holds a join of the app.
#[derive(Debug)]
pub struct AppConnection(Arc<AppUsage>);

impl AppConnection {
    /// The counters of the app.
    pub fn usage(&self) -> &AppUsage {
        &self.0
    }
}

impl Drop for AppConnection {
    fn drop(&mut self) {
        let now_ms = self.0.clock.now_ms();
        let mut connections = self.0.connections.lock();
        connections.advance(now_ms);
        connections.open -= 1;
    }
}

impl AppUsage {
    fn new(clock: Clock) -> Self {
        let connections = AppConnections { until_ms: clock.now_ms(), ..AppConnections::default() };
        Self {
            publications: AtomicU64::default(),
            bytes_in: AtomicU64::default(),
            deliveries: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            joins: AtomicU64::default(),
            refused_joins: AtomicU64::default(),
            replayed: AtomicU64::default(),
            connections: Mutex::new(connections),
            clock,
        }
    }

    /// Counts publications that were accepted. `payload_bytes` is the size of all their payloads.
    pub fn published(&self, publications: u64, payload_bytes: u64) {
        self.publications.fetch_add(publications, Relaxed);
        self.bytes_in.fetch_add(payload_bytes, Relaxed);
    }

    /// Counts the deliveries of one publication to some of the subscribers on one thread. `payload_bytes`
    /// is the size of the publication's payload, which is counted once for each delivery.
    pub fn delivered(&self, deliveries: u64, payload_bytes: u64) {
        self.deliveries.fetch_add(deliveries, Relaxed);
        self.bytes_out.fetch_add(deliveries * payload_bytes, Relaxed);
    }

    /// Counts a join that was granted, and the publications that were replayed to it.
    pub fn joined(&self, replayed: u64) {
        self.joins.fetch_add(1, Relaxed);
        self.replayed.fetch_add(replayed, Relaxed);
    }

    /// Counts a join that was refused.
    pub fn refused(&self) {
        self.refused_joins.fetch_add(1, Relaxed);
    }

    /// Counts a session that holds its first join of the app.
    pub fn connect(self: &Arc<Self>) -> AppConnection {
        let now_ms = self.clock.now_ms();
        let mut connections = self.connections.lock();
        connections.advance(now_ms);
        connections.open += 1;
        connections.peak = connections.peak.max(connections.open);
        drop(connections);
        AppConnection(self.clone())
    }

    /// Takes the counts since the last time, with the connections up to `until_ms`.
    fn take(&self, until_ms: u64) -> Figures {
        let take = |count: &AtomicU64| count.swap(0, Relaxed);
        let (connections_peak, connection_ms) = {
            let mut connections = self.connections.lock();
            connections.advance(until_ms);
            let peak = std::mem::replace(&mut connections.peak, 0);
            connections.peak = connections.open;
            (peak, std::mem::take(&mut connections.connection_ms))
        };
        Figures {
            publications: take(&self.publications),
            deliveries: take(&self.deliveries),
            bytes_in: take(&self.bytes_in),
            bytes_out: take(&self.bytes_out),
            joins: take(&self.joins),
            refused_joins: take(&self.refused_joins),
            connections_peak,
            connection_ms,
            replayed: take(&self.replayed),
        }
    }
}

/// The counters of all apps. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct UsageCounters(Arc<All>);

#[derive(Debug, Default)]
struct All {
    apps: RwLock<HashMap<i32, Arc<AppUsage>>>,
    /// The slugs of the apps that exist, and of those that were deleted since their usage was taken.
    slugs: RwLock<HashMap<i32, String>>,
    clock: Clock,
}

/// The counts of one app since they were last taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The app's number in the database.
    pub app: i32,
    /// The slug of the app, or its last one; empty if this server never knew one.
    pub slug: String,
    /// The figures; not all zero.
    pub figures: Figures,
}

impl UsageCounters {
    /// Begins with all counts at zero. The lengths of connections are measured with this clock.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(All { clock, ..All::default() }))
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The counters of an app, by the app's number in the database. Those of [`UNCOUNTED`] are never read.
    pub fn of(&self, app: i32) -> Arc<AppUsage> {
        if app == UNCOUNTED {
            return Arc::new(AppUsage::new(self.0.clock.clone()));
        }
        let apps = self.0.apps.read();
        if let Some(usage) = apps.get(&app) {
            return usage.clone();
        }
        drop(apps);
        let mut apps = self.0.apps.write();
        let unused = || Arc::new(AppUsage::new(self.0.clock.clone()));
        apps.entry(app).or_insert_with(unused).clone()
    }

    /// Sets the existing apps, with their slugs.
    pub fn keep<'a>(&self, apps: impl Iterator<Item = (i32, &'a str)>) {
        let used = self.0.apps.read();
        let mut slugs = self.0.slugs.write();
        let old = std::mem::replace(&mut *slugs, apps.map(|(id, s)| (id, s.to_owned())).collect());
        for (app, slug) in old {
            if used.contains_key(&app) {
                slugs.entry(app).or_insert(slug);
            }
        }
    }

    /// Takes the counts of each app since the last call, with the connections up to `until_ms`. The counters of an
    /// app without counts are dropped if nothing else refers to them.
    pub fn take(&self, until_ms: u64) -> Vec<Taken> {
        let mut apps = self.0.apps.write();
        let slugs = self.0.slugs.read();
        let mut all = Vec::new();
        apps.retain(|app, usage| {
            // The count of references is read first: counts that are added after the figures are
            // taken, by a holder that has yet to drop the counters, belong to the next time. The
            // counters cannot be cloned meanwhile, because the map is locked.
            let is_referred_to = Arc::get_mut(usage).is_none();
            let figures = usage.take(until_ms);
            if figures.is_zero() {
                return is_referred_to;
            }
            let slug = slugs.get(app).cloned().unwrap_or_default();
            all.push(Taken { app: *app, slug, figures });
            true
        });
        all.sort_unstable_by_key(|taken| taken.app);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocked() -> (UsageCounters, Arc<AtomicU64>) {
        let now_ms = Arc::new(AtomicU64::new(1_000));
        let shown = now_ms.clone();
        (UsageCounters::new(Clock::new(move || shown.load(Relaxed))), now_ms)
    }

    #[test]
    fn each_count_is_taken_once_and_an_app_without_any_is_not_among_them() {
        let (tallies, _) = clocked();
        tallies.keep([(1, "one"), (2, "two")].into_iter());
        let one = tallies.of(1);
        one.published(2, 30);
        one.delivered(5, 15);
        one.delivered(1, 0);
        one.joined(7);
        one.refused();
        tallies.of(2);
        let figures = Figures {
            publications: 2,
            deliveries: 6,
            bytes_in: 30,
            bytes_out: 75,
            joins: 1,
            refused_joins: 1,
            replayed: 7,
            ..Figures::default()
        };
        assert_eq!(tallies.take(1_000), [Taken { app: 1, slug: "one".into(), figures }]);
        assert_eq!(tallies.take(1_000), []);
    }

    #[test]
    fn connections_have_a_peak_and_a_length() {
        let (tallies, now_ms) = clocked();
        let app = tallies.of(1);
        let taken = |until_ms| {
            let taken = tallies.take(until_ms);
            taken.first().map(|taken| (taken.figures.connections_peak, taken.figures.connection_ms))
        };
        let (first, second) = (app.connect(), app.connect());
        now_ms.store(1_400, Relaxed);
        drop(second);
        assert_eq!(taken(1_500), Some((2, 2 * 400 + 100)));
        assert_eq!(taken(1_500), Some((1, 0)), "it still is connected");
        now_ms.store(2_500, Relaxed);
        assert_eq!(taken(2_000), Some((1, 500)), "up to a boundary that is over");
        drop(first);
        assert_eq!(taken(2_500), Some((1, 500)));
        assert_eq!(taken(9_000), None);
    }

    #[test]
    fn a_clock_that_goes_back_takes_nothing_away() {
        let (tallies, now_ms) = clocked();
        let connection = tallies.of(1).connect();
        now_ms.store(500, Relaxed);
        drop(connection);
        now_ms.store(1_100, Relaxed);
        let _connection = tallies.of(1).connect();
        let taken = tallies.take(1_200);
        assert_eq!(taken[0].figures.connection_ms, 100);
    }

    #[test]
    fn a_clock_that_is_corrected_by_more_than_a_day_counts_no_time_of_connections() {
        let (tallies, now_ms) = clocked();
        let app = tallies.of(1);
        let (first, second) = (app.connect(), app.connect());
        let corrected_ms = CLOCK_STEP_MS_MAX + 1_001;
        now_ms.store(corrected_ms, Relaxed);
        drop(first);
        now_ms.store(corrected_ms + 10, Relaxed);
        assert_eq!(tallies.take(corrected_ms + 10)[0].figures.connection_ms, 10);
        now_ms.store(500, Relaxed);
        drop(app.connect());
        now_ms.store(520, Relaxed);
        drop(second);
        assert_eq!(tallies.take(520)[0].figures.connection_ms, 20, "the clock was set back");
    }

    #[test]
    fn a_deleted_app_keeps_its_last_slug_until_its_usage_is_taken() {
        let (tallies, _) = clocked();
        tallies.keep([(1, "one"), (2, "two")].into_iter());
        tallies.of(1).published(1, 0);
        tallies.keep([(2, "zwei"), (3, "one")].into_iter());
        tallies.keep([(2, "zwei"), (3, "one")].into_iter());
        for app in [2, 3, 4] {
            tallies.of(app).published(1, 0);
        }
        let slugs: Vec<_> =
            tallies.take(0).into_iter().map(|taken| (taken.app, taken.slug)).collect();
        let expected = [(1, "one"), (2, "zwei"), (3, "one"), (4, "")];
        assert_eq!(slugs, expected.map(|(app, slug)| (app, slug.to_owned())));
        tallies.take(0);
        tallies.keep([(2, "zwei")].into_iter());
        tallies.of(1).published(1, 0);
        assert_eq!(tallies.take(0)[0].slug, "", "it was forgotten");
    }

    #[test]
    fn no_count_is_lost_or_doubled_between_threads() {
        let (tallies, _) = clocked();
        let mut all = Figures::default();
        std::thread::scope(|scope| {
            let count = || (0..20_000).for_each(|_| tallies.of(1).delivered(1, 3));
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(count)).collect();
            while !threads.iter().all(|thread| thread.is_finished()) {
                tallies.take(0).iter().for_each(|taken| all.add(&taken.figures));
            }
        });
        tallies.take(0).iter().for_each(|taken| all.add(&taken.figures));
        assert_eq!((all.deliveries, all.bytes_out), (40_000, 120_000));
    }
}
