//! The table of usage: the figures of each app by the hour.
//!
//! Servers add to the rows; nothing here overwrites a figure. A server writes numbered batches, and
//! notes the number of each in the transaction that adds it: a batch whose commit was not answered is
//! written again, and counts once.

use std::collections::HashMap;

use herald_entity::{
    app_usage, app_usage_slugs, app_usage_writers, apps,
    prelude::{AppUsage, AppUsageSlugs, AppUsageWriters, Apps as Table},
};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect, Set, Statement,
    sea_query::{Alias, Expr, ExprTrait, OnConflict, SimpleExpr},
};

use super::{AppStore, StoreError};
use crate::{app::AppId, metrics::usage::Figures};

/// The most rows that one statement writes, because SQLite accepts a limited number of values.
const ROWS_PER_STATEMENT: usize = 500;

/// The number of hours whose rows one statement deletes, so that it ends within the time limit.
const HOURS_PER_DELETION: i64 = 24;

/// An hour, counted from the beginning of 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(pub i64);

impl Hour {
    const MS: u64 = 3_600_000;

    /// The hour of a time in milliseconds since 1970.
    pub fn of_ms(ms: u64) -> Self {
        Self(i64::try_from(ms / Self::MS).unwrap_or(i64::MAX))
    }

    /// The time at which the hour begins, in milliseconds since 1970.
    pub fn starts_ms(self) -> u64 {
        u64::try_from(self.0).unwrap_or_default().saturating_mul(Self::MS)
    }

    /// The next hour.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The figures of an app for an hour, or for a longer period that begins with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageRow {
    /// The app.
    pub app: AppId,
    /// The hour.
    pub hour: Hour,
    /// The figures.
    pub figures: Figures,
}

/// Rows that are added in one transaction.
#[derive(Debug, Clone)]
pub struct UsageBatch {
    /// The random id of the ledger that writes the batch.
    pub writer: String,
    /// The number of the batch, which grows with each batch of the writer.
    pub number: i64,
    /// The seat of the node that has counted the rows; empty for a server without a cluster.
    pub node: String,
    /// The present hour.
    pub now: Hour,
    /// The rows, in order of app and hour, so that servers which write at once do not block each other.
    pub rows: Vec<UsageRow>,
    /// The slugs of their apps, as far as they are known.
    pub slugs: Vec<(AppId, String)>,
}

/// The periods into which hours are added up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Periods {
    /// Each period has this many hours, counted from the beginning of 1970.
    OfHours(i64),
    /// Each period begins with one of these hours, which are in order, and ends before the next.
    From(Vec<Hour>),
}

impl Periods {
    /// The first hour of the period to which an hour belongs.
    pub fn start_of(&self, hour: Hour) -> Hour {
        match self {
            Self::OfHours(hours) => Hour(hour.0 - hour.0 % hours),
            Self::From(starts) => {
                starts.iter().rev().find(|start| **start <= hour).copied().unwrap_or(hour)
            }
        }
    }

    /// The SQL expression for [`start_of`](Self::start_of) of the column `hour`. Only numbers are inserted into it.
    fn start_in_sql(&self) -> String {
        match self {
            Self::OfHours(hours) => format!("hour - hour % {hours}"),
            Self::From(starts) => {
                let Some(last) = starts.last() else { return "hour".into() };
                let whens = starts.windows(2);
                let whens =
                    whens.map(|pair| format!("WHEN hour < {} THEN {}", pair[1].0, pair[0].0));
                let whens: Vec<_> = whens.collect();
                match whens.is_empty() {
                    true => last.0.to_string(),
                    false => format!("CASE {} ELSE {} END", whens.join(" "), last.0),
                }
            }
        }
    }
}

/// A query for the usage of apps.
#[derive(Debug, Clone)]
pub struct UsageQuery {
    /// The selected apps; `None` selects all.
    pub apps: Option<Vec<AppId>>,
    /// The first hour.
    pub from: Hour,
    /// The hour after the last one.
    pub to: Hour,
    /// The periods for which the hours are added up.
    pub periods: Periods,
    /// The most rows to answer.
    pub rows_max: usize,
}

/// The most connections of an app within an hour, as the database has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodePeaks {
    /// The peak of the asking node.
    pub own: u64,
    /// The sum of the peaks of all other nodes.
    pub others: u64,
}

/// The peaks of connections by hour and app.
pub type HourPeaks = HashMap<(Hour, AppId), NodePeaks>;

/// The slugs by which apps are shown.
#[derive(Debug, Clone, Default)]
pub struct UsageSlugs {
    /// The slugs of the apps with usage, including deleted ones, as of the last write.
    pub kept: HashMap<AppId, String>,
    /// The slugs of the apps that exist.
    pub now: HashMap<AppId, String>,
}

/// A row of an answer; the names are those of the columns.
#[derive(Debug, FromQueryResult)]
struct Sum {
    app_id: i32,
    period: i64,
    publications: i64,
    deliveries: i64,
    bytes_in: i64,
    bytes_out: i64,
    joins: i64,
    refused_joins: i64,
    connections_peak: i64,
    connection_ms: i64,
    replayed: i64,
}

/// The columns whose figures are added up over hours and nodes.
const SUMS: [&str; 8] = [
    "publications",
    "deliveries",
    "bytes_in",
    "bytes_out",
    "joins",
    "refused_joins",
    "connection_ms",
    "replayed",
];

impl AppStore {
    /// Adds a batch, unless it was added before.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: the batch may have been added. Calling this again with it is safe.
    pub async fn add_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        self.write(async |transaction| {
            if note_batch(transaction, batch).await? {
                add_rows(transaction, batch).await?;
                note_slugs(transaction, &batch.slugs).await?;
            }
            Ok(())
        })
        .await?;
        self.note_new_slugs().await
    }

    /// Notes the new slugs of apps with usage that were renamed. This is a transaction of its own, and changes the
    /// rows in order of the apps, as batches do: otherwise two servers could wait for each other's rows.
    async fn note_new_slugs(&self) -> Result<(), StoreError> {
        use app_usage_slugs::Column::{AppId, Slug};
        let renamed = "EXISTS (SELECT 1 FROM apps WHERE apps.id = app_usage_slugs.app_id \
                       AND apps.slug <> app_usage_slugs.slug)";
        let renamed = AppUsageSlugs::find()
            .select_only()
            .column(AppId)
            .filter(Expr::cust(renamed))
            .order_by_asc(AppId)
            .into_tuple::<i32>()
            .all(&self.db);
        let renamed = self.query(renamed).await?;
        if renamed.is_empty() {
            return Ok(());
        }
        self.write(async |transaction| {
            for app in renamed {
                // The app may have been deleted or renamed again since.
                let slug = "COALESCE((SELECT apps.slug FROM apps WHERE apps.id = app_usage_slugs.app_id), slug)";
                let update = AppUsageSlugs::update_many()
                    .col_expr(Slug, Expr::cust(slug))
                    .filter(AppId.eq(app));
                update.exec(transaction).await?;
            }
            Ok(())
        })
        .await
    }

    /// Reads the peaks of connections of these hours, from `from` up to the one before `to`, by hour and app.
    /// `node` is the seat of the asking node.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn usage_peaks(
        &self,
        node: &str,
        (from, to): (Hour, Hour),
    ) -> Result<HourPeaks, StoreError> {
        use app_usage::Column;
        let peak = || Expr::col(Column::ConnectionsPeak);
        let own = Expr::case(Column::Node.eq(node), peak()).finally(0);
        let sum = |peaks: SimpleExpr| peaks.sum().cast_as(Alias::new("BIGINT"));
        let rows = AppUsage::find()
            .select_only()
            .columns([Column::Hour, Column::AppId])
            .column_as(sum(peak()), "every")
            .column_as(sum(own.into()), "own")
            .filter(Column::Hour.gte(from.0))
            .filter(Column::Hour.lt(to.0))
            .group_by(Column::Hour)
            .group_by(Column::AppId)
            .into_tuple::<(i64, i32, i64, i64)>()
            .all(&self.db);
        let figure = |stored: i64| u64::try_from(stored).unwrap_or_default();
        let peaks = self.query(rows).await?.into_iter().map(|(hour, app, every, own)| {
            let peak = NodePeaks { own: figure(own), others: figure(every - own) };
            ((Hour(hour), AppId(app)), peak)
        });
        Ok(peaks.collect())
    }

    /// Reads the figures of apps, in order of the periods and of the apps.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
        let sql = select(query);
        let backend = self.db.get_database_backend();
        let rows = Sum::find_by_statement(Statement::from_string(backend, sql)).all(&self.db);
        Ok(self.query(rows).await?.iter().map(UsageRow::from).collect())
    }

    /// The slugs of the apps.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn usage_slugs(&self) -> Result<UsageSlugs, StoreError> {
        let kept = AppUsageSlugs::find()
            .select_only()
            .columns([app_usage_slugs::Column::AppId, app_usage_slugs::Column::Slug])
            .into_tuple::<(i32, String)>()
            .all(&self.db);
        let now = Table::find()
            .select_only()
            .columns([apps::Column::Id, apps::Column::Slug])
            .into_tuple::<(i32, String)>()
            .all(&self.db);
        let (kept, now) = (self.query(kept).await?, self.query(now).await?);
        let by_app = |rows: Vec<(i32, String)>| {
            rows.into_iter().map(|(id, slug)| (AppId(id), slug)).collect()
        };
        Ok(UsageSlugs { kept: by_app(kept), now: by_app(now) })
    }

    /// Deletes the usage from before an hour.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: some rows may have been deleted.
    pub async fn forget_usage(&self, before: Hour) -> Result<(), StoreError> {
        while let Some(oldest) = self.oldest_usage().await?.filter(|oldest| *oldest < before) {
            let until = Ord::min(before.0, oldest.0.saturating_add(HOURS_PER_DELETION));
            let rows = AppUsage::delete_many().filter(app_usage::Column::Hour.lt(until));
            self.write(async |transaction| Ok(rows.exec(transaction).await?)).await?;
        }
        let writers =
            AppUsageWriters::delete_many().filter(app_usage_writers::Column::Hour.lt(before.0));
        let unused = Expr::cust(
            "NOT EXISTS (SELECT 1 FROM app_usage WHERE app_usage.app_id = app_usage_slugs.app_id)",
        );
        let slugs = AppUsageSlugs::delete_many().filter(unused);
        self.write(async |transaction| {
            writers.exec(transaction).await?;
            slugs.exec(transaction).await?;
            Ok(())
        })
        .await
    }

    async fn oldest_usage(&self) -> Result<Option<Hour>, StoreError> {
        let oldest = AppUsage::find()
            .select_only()
            .column_as(app_usage::Column::Hour.min(), "oldest")
            .into_tuple::<Option<i64>>()
            .one(&self.db);
        Ok(self.query(oldest).await?.flatten().map(Hour))
    }
}

/// Notes the number of a batch. Returns `false` if it was noted before, which means that the batch was added.
async fn note_batch(transaction: &DatabaseTransaction, batch: &UsageBatch) -> Result<bool, DbErr> {
    use app_usage_writers::{ActiveModel, Column};
    let row = ActiveModel {
        writer: Set(batch.writer.clone()),
        batch: Set(batch.number),
        hour: Set(batch.now.0),
    };
    let newer = Expr::col((AppUsageWriters, Column::Batch)).lt(batch.number);
    let update = OnConflict::column(Column::Writer)
        .update_columns([Column::Batch, Column::Hour])
        .action_and_where(newer)
        .to_owned();
    let noted = AppUsageWriters::insert(row).on_conflict(update);
    Ok(noted.exec_without_returning(transaction).await? > 0)
}

async fn add_rows(transaction: &DatabaseTransaction, batch: &UsageBatch) -> Result<(), DbErr> {
    use app_usage::Column;
    let sum =
        |name: &str| -> SimpleExpr { Expr::cust(format!("app_usage.{name} + excluded.{name}")) };
    let mut add = OnConflict::columns([Column::AppId, Column::Hour, Column::Node]);
    for name in SUMS {
        add.value(Alias::new(name), sum(name));
    }
    let greater = "CASE WHEN excluded.connections_peak > app_usage.connections_peak \
                   THEN excluded.connections_peak ELSE app_usage.connections_peak END";
    add.value(Column::ConnectionsPeak, Expr::cust(greater));
    for rows in batch.rows.chunks(ROWS_PER_STATEMENT) {
        let rows = rows.iter().map(|row| to_row(row, &batch.node));
        let insert = AppUsage::insert_many(rows).on_conflict(add.clone());
        insert.exec_without_returning(transaction).await?;
    }
    Ok(())
}

/// Notes the slugs of a batch.
async fn note_slugs(
    transaction: &DatabaseTransaction,
    slugs: &[(AppId, String)],
) -> Result<(), DbErr> {
    use app_usage_slugs::{ActiveModel, Column};
    let update = OnConflict::column(Column::AppId).update_column(Column::Slug).to_owned();
    for slugs in slugs.chunks(ROWS_PER_STATEMENT) {
        let rows = slugs
            .iter()
            .map(|(app, slug)| ActiveModel { app_id: Set(app.0), slug: Set(slug.clone()) });
        let insert = AppUsageSlugs::insert_many(rows).on_conflict(update.clone());
        insert.exec_without_returning(transaction).await?;
    }
    Ok(())
}

/// The query in SQL: first the nodes are added up for each hour, then the hours for each period.
fn select(query: &UsageQuery) -> String {
    let sums = |name: &str| format!("CAST(SUM({name}) AS BIGINT) AS {name}");
    let columns: Vec<_> = SUMS.iter().map(|name| sums(name)).collect();
    let columns = columns.join(", ");
    let apps = query.apps.as_ref().map_or(String::new(), |apps| {
        let ids: Vec<_> = apps.iter().map(|app| app.0.to_string()).collect();
        format!(" AND app_id IN ({})", ids.join(", "))
    });
    let (start, from, to) = (query.periods.start_in_sql(), query.from.0, query.to.0);
    format!(
        "SELECT app_id, period, {columns}, \
         CAST(MAX(connections_peak) AS BIGINT) AS connections_peak \
         FROM (SELECT app_id, CAST({start} AS BIGINT) AS period, {columns}, \
         CAST(SUM(connections_peak) AS BIGINT) AS connections_peak \
         FROM app_usage WHERE hour >= {from} AND hour < {to}{apps} GROUP BY app_id, hour) AS hours \
         GROUP BY app_id, period ORDER BY period, app_id LIMIT {}",
        query.rows_max
    )
}

fn to_row(row: &UsageRow, node: &str) -> app_usage::ActiveModel {
    let stored = |figure: u64| Set(i64::try_from(figure).unwrap_or(i64::MAX));
    let figures = &row.figures;
    app_usage::ActiveModel {
        app_id: Set(row.app.0),
        hour: Set(row.hour.0),
        node: Set(node.to_owned()),
        publications: stored(figures.publications),
        deliveries: stored(figures.deliveries),
        bytes_in: stored(figures.bytes_in),
        bytes_out: stored(figures.bytes_out),
        joins: stored(figures.joins),
        refused_joins: stored(figures.refused_joins),
        connections_peak: stored(figures.connections_peak),
        connection_ms: stored(figures.connection_ms),
        replayed: stored(figures.replayed),
    }
}

impl From<&Sum> for UsageRow {
    fn from(sum: &Sum) -> Self {
        let figure = |stored: i64| u64::try_from(stored).unwrap_or_default();
        let figures = Figures {
            publications: figure(sum.publications),
            deliveries: figure(sum.deliveries),
            bytes_in: figure(sum.bytes_in),
            bytes_out: figure(sum.bytes_out),
            joins: figure(sum.joins),
            refused_joins: figure(sum.refused_joins),
            connections_peak: figure(sum.connections_peak),
            connection_ms: figure(sum.connection_ms),
            replayed: figure(sum.replayed),
        };
        Self { app: AppId(sum.app_id), hour: Hour(sum.period), figures }
    }
}
