//! The usage ledger: the counts by the hour that the database does not have yet.

use std::{
    collections::{BTreeMap, HashMap, btree_map},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::RwLock;
use uuid::Uuid;

use super::{
    report::{PeriodUsage, Report},
    seat::Seat,
    span::{Span, time},
};
use crate::{
    app::{
        AppId,
        store::{
            AppStore, StoreError,
            usage::{Hour, HourPeaks, NodePeaks, UsageBatch, UsageQuery, UsageRow, UsageSlugs},
        },
    },
    metrics::{
        Metrics,
        labels::RefreshOutcome,
        usage::{CLOCK_STEP_MS_MAX, Figures, UsageCounters},
    },
};

/// The most rows that one transaction writes.
const BATCH_ROWS_MAX: usize = 1_000;

/// The number of rows waiting for the database beyond which the oldest hours are added up.
const WAITING_ROWS_MAX: usize = 100_000;

/// The most rows that a report has.
pub const REPORT_ROWS_MAX: usize = 50_000;

/// The apps whose usage is requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// All apps, also deleted ones.
    All,
    /// The app that has this slug, and the deleted apps that had it last.
    Slug(String),
    /// One app.
    App(AppId),
}

/// A question for usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuestion {
    /// The apps.
    pub whose: Whose,
    /// The span of time.
    pub span: Span,
}

/// The reason why a report is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// No app has this slug, and no app with recorded usage had it.
    #[error("there is no such app")]
    UnknownApp,
    /// The report would have more than [`REPORT_ROWS_MAX`] rows.
    #[error(
        "the answer would have more than {REPORT_ROWS_MAX} rows: ask for one app, for less time, or \
             for longer periods"
    )]
    TooManyRows,
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The usage that the database does not have yet, and the way to write it.
pub struct UsageLedger {
    counters: UsageCounters,
    store: AppStore,
    metrics: Arc<Metrics>,
    seat: Seat,
    book: Mutex<UsageBook>,
    /// A writer holds this lock from taking rows out of the book until their commit, and a reader from
    /// its query until it has read the book. So a reader finds each row in exactly one of the two.
    turn: RwLock<()>,
}

/// The counts that were taken from the counters and that the database has not confirmed.
struct UsageBook {
    /// The hour to which the next counts belong.
    hour: Hour,
    open: BTreeMap<(Hour, AppId), Figures>,
    /// The last known slugs of the apps in `open` and in `batch`.
    slugs: HashMap<AppId, String>,
    /// The batch that was sent to the database and not confirmed. It is sent again unchanged.
    batch: Option<UsageBatch>,
    /// The random id of this ledger. With the number of a batch it lets the database recognise a batch
    /// that it already has.
    writer: String,
    /// The number of batches that were confirmed.
    written: i64,
    waiting_rows_max: usize,
    is_failing: bool,
}

impl UsageLedger {
    /// An empty ledger for the counters of these metrics.
    pub fn new(store: AppStore, metrics: Arc<Metrics>) -> Self {
        Self::keeping(store, metrics, WAITING_ROWS_MAX)
    }

    /// The same, with another bound on the rows that wait for the database.
    pub fn keeping(store: AppStore, metrics: Arc<Metrics>, waiting_rows_max: usize) -> Self {
        let counters = metrics.usage.clone();
        let book = UsageBook {
            hour: Hour::of_ms(counters.clock().now_ms()),
            open: BTreeMap::new(),
            slugs: HashMap::new(),
            batch: None,
            writer: Uuid::new_v4().to_string(),
            written: 0,
            waiting_rows_max,
            is_failing: false,
        };
        let (seat, book) = (Seat::default(), Mutex::new(book));
        Self { counters, store, metrics, seat, book, turn: RwLock::new(()) }
    }

    /// The seat under which this server counts.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// The time, in milliseconds since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        self.counters.clock().now_ms()
    }

    /// Takes the counts, and closes the hours that are over. An event that is counted after the end of
    /// an hour, but before this call, belongs to that hour.
    pub fn close(&self) {
        let now_ms = self.now_ms();
        let now = Hour::of_ms(now_ms);
        let mut book = self.book.lock();
        // The hours are closed at least once an hour. A longer step is a correction of the clock, as of a machine
        // that starts in 1970, and the hours in between have no usage.
        if now_ms.abs_diff(book.hour.starts_ms()) > CLOCK_STEP_MS_MAX {
            book.hour = now;
        }
        // After the clock was set back, the counts go to the latest hour: a closed hour stays closed.
        while book.hour < now {
            let next = book.hour.next();
            book.take(&self.counters, next.starts_ms());
            book.hour = next;
        }
        book.take(&self.counters, now_ms);
        book.add_up_oldest();
    }

    /// Adds everything that was counted up to now to the database.
    ///
    /// # Errors
    /// [`StoreError`]: the counts that were not confirmed are kept for the next call, and are counted
    /// once even if the database had committed them.
    pub async fn write(&self) -> Result<(), StoreError> {
        let _turn = self.turn.write().await;
        self.close();
        let outcome = self.write_all().await;
        self.note(&outcome);
        outcome
    }

    async fn write_all(&self) -> Result<(), StoreError> {
        loop {
            let Some(batch) = self.book.lock().next_batch(&self.seat) else { return Ok(()) };
            self.store.add_usage(&batch).await?;
            self.book.lock().confirm();
        }
    }

    /// Counts a write, and logs when the database begins or ceases to fail.
    fn note(&self, outcome: &Result<(), StoreError>) {
        let mut book = self.book.lock();
        let counted = match outcome {
            Ok(()) => RefreshOutcome::Ok,
            Err(_) => RefreshOutcome::Failed,
        };
        self.metrics.usage_writes.of(counted).inc();
        match (outcome, book.is_failing) {
            (Err(error), false) => {
                log::warn!("the usage cannot be written and is kept for later: {error}");
            }
            (Ok(()), true) => log::info!("the usage is written again"),
            _ => {}
        }
        book.is_failing = outcome.is_err();
    }

    /// Deletes the usage from more than this many days ago.
    ///
    /// # Errors
    /// [`StoreError`]: the call can be repeated.
    pub async fn forget(&self, retention_days: u32) -> Result<(), StoreError> {
        let now = Hour::of_ms(self.now_ms());
        self.store.forget_usage(Hour(now.0 - i64::from(retention_days) * 24)).await
    }

    /// Reports the usage of apps up to now.
    ///
    /// # Errors
    /// [`ReportError`].
    pub async fn report(&self, question: &UsageQuestion) -> Result<Report, ReportError> {
        let _turn = loop {
            let turn = self.turn.read().await;
            // It is unknown whether the database has an unconfirmed batch, so it is written again first.
            if self.book.lock().batch.is_none() {
                break turn;
            }
            drop(turn);
            self.write().await?;
        };
        let UsageSlugs { kept: mut slugs, now } = self.store.usage_slugs().await?;
        self.close();
        // Each source is newer than the one before it, so its slugs replace older ones.
        slugs.extend(self.book.lock().slugs.clone());
        slugs.extend(now);
        let apps = question.whose.among(&slugs)?;
        let Span { from, to, .. } = question.span;
        let (periods, rows_max) = (question.span.periods(), REPORT_ROWS_MAX + 1);
        let query = UsageQuery { apps, from, to, periods, rows_max };
        let written = self.store.usage(&query).await?;
        self.close();
        let peaks = self.peaks(&query).await?;
        let rows = self.book.lock().added_to(written, &query, &peaks);
        if rows.len() > REPORT_ROWS_MAX {
            return Err(ReportError::TooManyRows);
        }
        let now = time(Hour(0)) + chrono::Duration::milliseconds(self.now_ms().cast_signed());
        let usage = rows.iter().map(|row| {
            let slug = slugs.get(&row.app).filter(|slug| !slug.is_empty());
            // An app without a known slug is named by its number. No slug has an underscore, so the
            // name cannot be mistaken for one.
            let slug = slug.cloned().unwrap_or_else(|| format!("_{}", row.app.0));
            PeriodUsage::new(slug, row, &question.span, now)
        });
        Ok(Report { data: usage.collect() })
    }
}

impl UsageLedger {
    /// The peaks that the database has of the hours with counts that it does not have. A server without a seat has no
    /// need of them, because its rows are those of all servers without one.
    async fn peaks(&self, query: &UsageQuery) -> Result<HourPeaks, StoreError> {
        let hours = self.book.lock().open_hours(query);
        match hours.filter(|_| self.seat.number() != 0) {
            Some(hours) => self.store.usage_peaks(&self.seat.name(), hours).await,
            None => Ok(HourPeaks::new()),
        }
    }
}

impl Whose {
    /// The selected apps, looked up among all known slugs; `None` selects all apps.
    fn among(&self, slugs: &HashMap<AppId, String>) -> Result<Option<Vec<AppId>>, ReportError> {
        match self {
            Self::All => Ok(None),
            Self::App(app) => Ok(Some(vec![*app])),
            Self::Slug(slug) => {
                let meant = slugs.iter().filter(|(_, known)| *known == slug);
                let mut apps: Vec<_> = meant.map(|(app, _)| *app).collect();
                apps.sort_unstable();
                if apps.is_empty() { Err(ReportError::UnknownApp) } else { Ok(Some(apps)) }
            }
        }
    }
}

impl UsageBook {
    fn take(&mut self, counters: &UsageCounters, until_ms: u64) {
        for taken in counters.take(until_ms) {
            let app = AppId(taken.app);
            self.open.entry((self.hour, app)).or_default().add(&taken.figures);
            if !taken.slug.is_empty() {
                self.slugs.insert(app, taken.slug);
            }
        }
    }

    /// Adds the oldest hours of each app together while more rows wait than allowed, which happens if
    /// the database has been unavailable for long. No count is lost, only its exact hour.
    fn add_up_oldest(&mut self) {
        while self.open.len() > self.waiting_rows_max {
            let Some(((hour, app), figures)) = self.open.pop_first() else { return };
            if hour >= self.hour {
                self.open.insert((hour, app), figures);
                return;
            }
            self.open.entry((hour.next(), app)).or_default().add(&figures);
        }
    }

    /// The next batch to write: the one that has not been confirmed, or else the oldest rows.
    fn next_batch(&mut self, seat: &Seat) -> Option<UsageBatch> {
        if self.batch.is_none() && !self.open.is_empty() {
            let mut rows = Vec::new();
            while rows.len() < BATCH_ROWS_MAX
                && let Some(((hour, app), figures)) = self.open.pop_first()
            {
                rows.push(UsageRow { app, hour, figures });
            }
            rows.sort_unstable_by_key(|row| (row.app, row.hour));
            let mut apps: Vec<_> = rows.iter().map(|row| row.app).collect();
            apps.dedup();
            let slugs =
                apps.into_iter().filter_map(|app| Some((app, self.slugs.get(&app)?.clone())));
            let slugs = slugs.collect();
            let (writer, node, now) = (self.writer.clone(), seat.name(), self.hour);
            let number = self.written + 1;
            self.batch = Some(UsageBatch { writer, number, node, now, rows, slugs });
        }
        self.batch.clone()
    }

    /// Drops the batch that the database has confirmed.
    fn confirm(&mut self) {
        self.batch = None;
        self.written += 1;
        if self.open.is_empty() {
            self.slugs.clear();
        }
    }

    /// The counts of the hours of a query that were not sent to the database.
    fn open_in(&self, query: &UsageQuery) -> btree_map::Range<'_, (Hour, AppId), Figures> {
        let first_of = |hour| (hour, AppId(i32::MIN));
        self.open.range(first_of(query.from)..first_of(query.to))
    }

    /// The first of these hours, and the one after the last; `None` if there are no such counts.
    fn open_hours(&self, query: &UsageQuery) -> Option<(Hour, Hour)> {
        let mut open = self.open_in(query).map(|((hour, _), _)| *hour);
        let first = open.next()?;
        Some((first, open.next_back().unwrap_or(first).next()))
    }

    /// The rows of the database, with the counts added that it does not have yet, ordered by hour and
    /// app.
    fn added_to(
        &self,
        written: Vec<UsageRow>,
        query: &UsageQuery,
        peaks: &HourPeaks,
    ) -> Vec<UsageRow> {
        let key = |hour, app| (query.periods.start_of(hour), app);
        let mut rows: BTreeMap<_, _> =
            written.into_iter().map(|row| ((row.hour, row.app), row.figures)).collect();
        let is_meant = |app| query.apps.as_ref().is_none_or(|apps| apps.contains(app));
        for ((hour, app), figures) in self.open_in(query).filter(|((_, app), _)| is_meant(app)) {
            let mut figures = *figures;
            let NodePeaks { own, others } = peaks.get(&(*hour, *app)).copied().unwrap_or_default();
            // The peak of an hour is the sum of the peaks of all nodes.
            figures.connections_peak = others + own.max(figures.connections_peak);
            rows.entry(key(*hour, *app)).or_default().add(&figures);
        }
        let rows = rows.into_iter();
        rows.map(|((hour, app), figures)| UsageRow { app, hour, figures }).collect()
    }
}
