//! The usage of apps in the usage ledger and in the database: by the hour, exactly once, also after failures. The
//! same suite runs on SQLite and on a real PostgreSQL, with a clock that the tests set.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use herald::{
    app::{
        AppId,
        audit::ChangedBy,
        change,
        fields::AppFields,
        store::{
            AppStore, MissingFile,
            usage::{Hour, UsageBatch, UsageRow},
        },
    },
    metrics::{
        Metrics,
        usage::{Clock, Figures},
    },
    settings,
    usage::{
        keeper::UsageKeeper,
        ledger::{REPORT_ROWS_MAX, ReportError, UsageLedger, UsageQuestion, Whose},
        report::PeriodUsage,
        span::Wording,
    },
};
use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    databases::{TestDatabase, on_both_databases, sql},
    support::{DEADLINE, repeat_until},
};

on_both_databases! {
    a_batch_counts_once_however_often_it_is_given
    every_hour_has_what_was_counted_in_it
    usage_that_cannot_be_written_is_kept_and_written_once
    while_the_database_is_away_the_oldest_hours_are_put_together
    a_deleted_app_keeps_its_usage_and_another_with_its_slug_starts_at_zero
    usage_that_is_not_written_yet_is_in_every_answer
    several_servers_are_added_up
    a_server_that_notes_new_slugs_does_not_deadlock_with_another
    the_peak_of_an_hour_includes_what_is_not_written_yet
    a_clock_that_is_corrected_by_years_leaves_no_usage_in_between
    the_peaks_of_nodes_are_added_up_and_those_of_one_seat_are_not
    a_thousand_apps_are_counted_each_for_itself
    old_usage_is_deleted
    the_counts_of_an_hour_are_written_at_its_end_however_long_the_interval_is
}

/// 2026-11-28T11:00:00Z.
const ELEVEN_MS: u64 = 1_795_863_600_000;
const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// The counters and the usage ledger of a server, and its clock.
struct Server {
    metrics: Arc<Metrics>,
    ledger: UsageLedger,
    now_ms: Arc<AtomicU64>,
}

impl Server {
    fn start(store: &AppStore) -> Self {
        Self::start_at(store, ELEVEN_MS)
    }

    fn start_at(store: &AppStore, now_ms: u64) -> Self {
        let now_ms = Arc::new(AtomicU64::new(now_ms));
        let shown = now_ms.clone();
        let metrics = Metrics::with_clock(0, Clock::new(move || shown.load(Relaxed)));
        let ledger = UsageLedger::new(store.clone(), metrics.clone());
        Self { metrics, ledger, now_ms }
    }

    fn set_minutes(&self, after_eleven: u64) {
        self.now_ms.store(ELEVEN_MS + after_eleven * MINUTE_MS, Relaxed);
    }

    fn publish(&self, app: i32, publications: u64) {
        self.metrics.usage.of(app).published(publications, 10 * publications);
    }

    fn now(&self) -> DateTime<Utc> {
        let ms = i64::try_from(self.now_ms.load(Relaxed)).expect("a time of today");
        DateTime::from_timestamp_millis(ms).expect("a time of today")
    }

    async fn ask(
        &self,
        whose: Whose,
        from: &str,
        to: &str,
        by: &str,
    ) -> Result<Vec<PeriodUsage>, ReportError> {
        let wording = Wording { from: Some(from), to: Some(to), by: Some(by) };
        let span = wording.span(self.now()).expect("a span");
        Ok(self.ledger.report(&UsageQuestion { whose, span }).await?.data)
    }

    /// The usage of all apps on 2026-11-28, hour by hour.
    async fn day(&self) -> Vec<PeriodUsage> {
        let asked = self.ask(Whose::All, "2026-11-28", "2026-11-29", "hour").await;
        asked.expect("an answer")
    }

    /// The app, the hour and the publications of each row of [`Server::day`].
    async fn publications(&self) -> Vec<(String, u32, u64)> {
        let hour = |usage: &PeriodUsage| usage.from[11..13].parse().expect("an hour");
        let row = |usage: &PeriodUsage| (usage.app.clone(), hour(usage), usage.publications);
        self.day().await.iter().map(row).collect()
    }
}

async fn migrated(database: &TestDatabase) -> AppStore {
    let store = store(database, Duration::from_secs(10)).await;
    store.migrate_up(None).await.expect("migrations");
    store
}

async fn store(database: &TestDatabase, query_timeout: Duration) -> AppStore {
    let settings = settings::Database { query_timeout, ..database.settings() };
    AppStore::connect(&settings, MissingFile::MakeWithFolder).await.expect("a connection")
}

fn row(app: &str, hour: u32, publications: u64) -> (String, u32, u64) {
    (app.to_owned(), hour, publications)
}

async fn a_batch_counts_once_however_often_it_is_given(database: &TestDatabase) {
    let store = migrated(database).await;
    let hour = Hour::of_ms(ELEVEN_MS);
    let figures = |n: u64| Figures {
        publications: n,
        deliveries: 2 * n,
        bytes_in: 3 * n,
        bytes_out: 4 * n,
        joins: 5 * n,
        refused_joins: 6 * n,
        connections_peak: 7 * n,
        connection_ms: 8 * n,
        replayed: 9 * n,
    };
    let batch = |writer: &str, number, n| UsageBatch {
        writer: writer.to_owned(),
        number,
        node: String::new(),
        now: hour,
        rows: vec![
            UsageRow { app: AppId(1), hour, figures: figures(n) },
            UsageRow { app: AppId(1), hour: hour.next(), figures: figures(1) },
            UsageRow { app: AppId(2), hour, figures: figures(1) },
        ],
        slugs: vec![(AppId(1), "one".into()), (AppId(2), "two".into())],
    };
    for (writer, number, n) in
        [("a", 1, 100), ("a", 1, 100), ("b", 1, 10), ("a", 2, 1), ("a", 1, 100), ("b", 1, 10)]
    {
        store.add_usage(&batch(writer, number, n)).await.expect("a database");
    }
    let server = Server::start(&store);
    let day = server.day().await;
    let all: Vec<_> = day.iter().map(|usage| (usage.app.as_str(), usage.publications)).collect();
    assert_eq!(all, [("one", 111), ("two", 3), ("one", 3)]);
    let PeriodUsage { deliveries, bytes_in, bytes_out, joins, refused_joins, replayed, .. } =
        day[0];
    let sums = [deliveries, bytes_in, bytes_out, joins, refused_joins, replayed];
    assert_eq!(sums, [2, 3, 4, 5, 6, 9].map(|factor| factor * 111));
    assert_eq!(day[0].connections_peak, 700, "the highest peak, because all are of one node");
}

async fn every_hour_has_what_was_counted_in_it(database: &TestDatabase) {
    let server = Server::start(&migrated(database).await);
    server.set_minutes(30);
    let connection = server.metrics.usage.of(1).connect();
    server.set_minutes(59);
    server.publish(1, 3);
    server.set_minutes(60);
    server.ledger.close();
    server.publish(1, 4);
    server.set_minutes(75);
    drop(connection);
    server.ledger.write().await.expect("a database");
    let second = server.metrics.usage.of(1).connect();
    server.set_minutes(60 * 4);
    server.ledger.write().await.expect("a database");
    drop(second);
    let shown: Vec<_> = server
        .day()
        .await
        .iter()
        .map(|usage| {
            let hour = usage.from[11..16].to_owned();
            (hour, usage.publications, usage.connections_peak, usage.connections_average)
        })
        .collect();
    let row = |hour: &str, n, peak, average| (hour.to_owned(), n, peak, average);
    let expected = [
        row("11:00", 3, 1, 0.5),
        row("12:00", 4, 1, 1.0),
        row("13:00", 0, 1, 1.0),
        row("14:00", 0, 1, 1.0),
        // This hour has only begun.
        row("15:00", 0, 1, 0.0),
    ];
    assert_eq!(shown, expected, "hours in which nothing happens have their connections");
    let by_day = server.ask(Whose::App(AppId(1)), "2026-11-28", "2026-11-29", "day").await;
    let by_day = by_day.expect("an answer");
    assert_eq!(by_day.len(), 1);
    assert_eq!(by_day[0].publications, 7);
    // There was one connection for three and a half of the fifteen hours of the day so far.
    assert_eq!(by_day[0].connections_average, 0.233);
}

async fn usage_that_cannot_be_written_is_kept_and_written_once(database: &TestDatabase) {
    migrated(database).await;
    let server = Server::start(&store(database, Duration::from_secs(1)).await);
    server.publish(1, 1);
    server.ledger.write().await.expect("a database");
    let blocker = Database::connect(database.url()).await.expect("a connection");
    let is_sqlite = database.url().starts_with("sqlite");
    let transaction = blocker.begin().await.expect("a transaction");
    let lock = match is_sqlite {
        true => "INSERT INTO app_usage_writers (writer, batch, hour) VALUES ('blocker', 1, 1)",
        false => "LOCK TABLE app_usage IN ACCESS EXCLUSIVE MODE",
    };
    transaction.execute_unprepared(lock).await.expect("a lock");
    for minute in [1, 61] {
        server.set_minutes(minute);
        server.publish(1, 10);
        server.publish(2, 100);
        server.ledger.write().await.expect_err("a database that is locked");
    }
    transaction.rollback().await.expect("an end");
    blocker.close().await.expect("an end");
    let rows = [row("_1", 11, 21), row("_2", 11, 200)];
    // The events of 12:01 were counted before the hour of 11:00 was closed, so they belong to it.
    assert_eq!(server.publications().await, rows);
    server.ledger.write().await.expect("a database");
    server.ledger.write().await.expect("a database");
    assert_eq!(server.publications().await, rows);
    let figures = server.metrics.encode();
    for line in [
        r#"herald_usage_writes_total{outcome="failed"} 2"#,
        "herald_usage_writes_total{outcome=\"ok\"} 4",
    ] {
        assert!(figures.lines().any(|shown| shown == line), "{line}: {figures}");
    }
}

async fn while_the_database_is_away_the_oldest_hours_are_put_together(database: &TestDatabase) {
    let store = migrated(database).await;
    let server = Server::start(&store);
    let ledger = UsageLedger::keeping(store, server.metrics.clone(), 5);
    for hour in 0..4 {
        server.set_minutes(60 * hour);
        ledger.close();
        for app in 1..=3 {
            server.publish(app, 10_u64.pow(u32::try_from(hour).expect("few")));
        }
        ledger.close();
    }
    let wording = Wording { from: Some("2026-11-28"), to: Some("2026-11-29"), by: Some("hour") };
    let span = wording.span(server.now()).expect("a span");
    let report =
        ledger.report(&UsageQuestion { whose: Whose::All, span }).await.expect("an answer");
    let mut sums = HashMap::new();
    for usage in &report.data {
        *sums.entry(usage.app_id).or_insert(0) += usage.publications;
    }
    assert_eq!(sums, HashMap::from([(1, 1_111), (2, 1_111), (3, 1_111)]), "nothing is lost");
    assert!(report.data.len() <= 5, "{report:?}");
    let newest = report.data.iter().rfind(|usage| usage.app_id == 3).expect("a row");
    assert_eq!((&newest.from[11..13], newest.publications), ("14", 1_000), "{report:?}");
}

async fn a_deleted_app_keeps_its_usage_and_another_with_its_slug_starts_at_zero(
    database: &TestDatabase,
) {
    let store = migrated(database).await;
    let server = Server::start(&store);
    let keep = |apps: &[(i32, &'static str)]| server.metrics.usage.keep(apps.iter().copied());
    keep(&[(1, "foo"), (2, "bar")]);
    server.publish(1, 1);
    server.publish(2, 2);
    server.ledger.write().await.expect("a database");
    keep(&[(1, "foo-2"), (2, "bar")]);
    server.publish(1, 10);
    // The app is deleted before any of this is written, and another app gets its slug.
    keep(&[(2, "bar"), (3, "foo-2")]);
    server.publish(1, 100);
    server.publish(3, 5);
    for _ in 0..2 {
        assert_eq!(
            server.publications().await,
            [row("foo-2", 11, 111), row("bar", 11, 2), row("foo-2", 11, 5)]
        );
        let asked = |slug: &str| {
            server.ask(Whose::Slug(slug.to_owned()), "2026-11-28", "2026-11-29", "hour")
        };
        let named = asked("foo-2").await.expect("an answer");
        let named: Vec<_> = named.iter().map(|usage| (usage.app_id, usage.publications)).collect();
        assert_eq!(named, [(1, 111), (3, 5)], "told apart by their ids");
        assert_eq!(asked("foo").await, Err(ReportError::UnknownApp), "its last slug is `foo-2`");
        assert_eq!(asked("baz").await, Err(ReportError::UnknownApp));
        let own = server.ask(Whose::App(AppId(3)), "2026-11-28", "2026-11-29", "month").await;
        assert_eq!(own.expect("an answer")[0].publications, 5);
        server.ledger.write().await.expect("a database");
    }
}

async fn usage_that_is_not_written_yet_is_in_every_answer(database: &TestDatabase) {
    let server = Server::start(&migrated(database).await);
    server.publish(1, 1);
    assert_eq!(server.publications().await, [row("_1", 11, 1)]);
    server.ledger.write().await.expect("a database");
    server.set_minutes(60);
    server.publish(1, 2);
    server.ledger.close();
    server.publish(1, 4);
    for (by, expected) in [
        ("hour", vec![("2026-11-28T11", 3), ("2026-11-28T12", 4)]),
        ("day", vec![("2026-11-28T00", 7)]),
        ("month", vec![("2026-11-01T00", 7)]),
    ] {
        let shown = server.ask(Whose::All, "2026-11-01", "2026-12-01", by).await;
        let shown = shown.expect("an answer");
        let shown: Vec<_> =
            shown.iter().map(|usage| (&usage.from[..13], usage.publications)).collect();
        assert_eq!(shown, expected, "{by}");
    }
    let cut = server.ask(Whose::All, "2026-11-28T12:00:00Z", "2026-11-28T12:00:01Z", "month").await;
    let cut = cut.expect("an answer");
    assert_eq!(cut.len(), 1);
    assert_eq!(
        (cut[0].from.as_str(), cut[0].to.as_str()),
        ("2026-11-28T12:00:00Z", "2026-11-28T13:00:00Z")
    );
    assert_eq!(cut[0].publications, 4);
    assert_eq!(
        server.ask(Whose::All, "2026-11-28T13:00:00Z", "2026-11-29", "day").await,
        Ok(vec![])
    );
}

async fn several_servers_are_added_up(database: &TestDatabase) {
    let store = migrated(database).await;
    let servers = [Server::start(&store), Server::start(&store), Server::start(&store)];
    let write = async |server: &Server| {
        for n in 1..=10 {
            server.publish(n, 1);
            server.publish(1, 1);
            server.ledger.write().await.expect("a database");
        }
    };
    tokio::join!(write(&servers[0]), write(&servers[1]), write(&servers[2]));
    let shown: Vec<_> = servers[0].publications().await.into_iter().map(|(_, _, n)| n).collect();
    assert_eq!(shown, [33, 3, 3, 3, 3, 3, 3, 3, 3, 3]);
}

async fn a_server_that_notes_new_slugs_does_not_deadlock_with_another(database: &TestDatabase) {
    let store = migrated(database).await;
    for name in ["foo-app", "bar-app"] {
        let given = json!({ "name": name });
        let fields = AppFields::read(given.as_object().expect("an object"));
        change::create(&store, &ChangedBy::CLI, fields).await.expect("an app");
    }
    let server = Server::start(&store);
    server.metrics.usage.keep([(1, "foo-app"), (2, "bar-app")].into_iter());
    server.publish(1, 1);
    server.publish(2, 1);
    server.ledger.write().await.expect("a database");
    sql(database.url(), "UPDATE apps SET slug = 'new-' || slug").await;
    // Another server writes usage of the first app, and then of the second one.
    let other = Database::connect(database.url()).await.expect("a connection");
    let transaction = other.begin().await.expect("a transaction");
    let touch = async |app: i32| {
        let touch = format!("UPDATE app_usage_slugs SET slug = slug WHERE app_id = {app}");
        timeout(DEADLINE, transaction.execute_unprepared(&touch)).await.expect("no deadlock")
    };
    touch(1).await.expect("a lock");
    server.publish(2, 1);
    let mut write = pin!(server.ledger.write());
    // The server waits for the other one.
    assert!(timeout(Duration::from_millis(300), &mut write).await.is_err());
    touch(2).await.expect("a lock");
    transaction.commit().await.expect("a commit");
    write.await.expect("the usage is written");
    other.close().await.expect("an orderly end");
    let kept = store.usage_slugs().await.expect("the slugs").kept;
    let expected = [(1, "new-foo-app"), (2, "new-bar-app")];
    assert_eq!(kept, expected.map(|(app, slug)| (AppId(app), slug.to_owned())).into());
}

async fn the_peak_of_an_hour_includes_what_is_not_written_yet(database: &TestDatabase) {
    let store = migrated(database).await;
    let servers = [(1, None), (2, Some((1, 1)))].map(|(node, other)| {
        let server = Server::start(&store);
        server.ledger.seat().take(node, other.into_iter());
        server
    });
    let connect = |server: &Server, count: usize| -> Vec<_> {
        (0..count).map(|_| server.metrics.usage.of(1).connect()).collect()
    };
    let _first = (connect(&servers[0], 2), connect(&servers[1], 3));
    for server in &servers {
        server.ledger.write().await.expect("a database");
    }
    let _second = connect(&servers[0], 2);
    for _ in 0..2 {
        for by in ["hour", "day"] {
            let shown = servers[0].ask(Whose::All, "2026-11-28", "2026-11-29", by).await;
            assert_eq!(shown.expect("an answer")[0].connections_peak, 4 + 3, "{by}");
        }
        servers[0].ledger.write().await.expect("a database");
    }
}

async fn a_clock_that_is_corrected_by_years_leaves_no_usage_in_between(database: &TestDatabase) {
    let server = Server::start_at(&migrated(database).await, 0);
    let _open = server.metrics.usage.of(1).connect();
    server.publish(1, 3);
    let all = async || {
        server.ledger.write().await.expect("a database");
        let shown = server.ask(Whose::All, "2026-01-01", "2026-11-29", "day").await;
        let shown = shown.expect("an answer").into_iter();
        let row = |usage: PeriodUsage| {
            (usage.from[..10].to_owned(), usage.publications, usage.connections_average)
        };
        shown.map(row).collect::<Vec<_>>()
    };
    server.set_minutes(0);
    assert_eq!(all().await, [("2026-11-28".to_owned(), 3, 0.0)]);
    // The clock is set to another century for a while.
    server.now_ms.store(3 * ELEVEN_MS, Relaxed);
    server.ledger.close();
    server.set_minutes(0);
    server.ledger.close();
    server.set_minutes(30);
    server.publish(1, 4);
    // There was one connection for half an hour of the eleven and a half hours of the day so far.
    assert_eq!(all().await, [("2026-11-28".to_owned(), 7, 0.043)]);
}

async fn the_peaks_of_nodes_are_added_up_and_those_of_one_seat_are_not(database: &TestDatabase) {
    let store = migrated(database).await;
    // Node 3 takes the seat of node 1, which has stopped.
    for (node, other, connections) in [(1, None, 2), (2, Some((1, 1)), 3), (3, Some((2, 2)), 5)] {
        let server = Server::start(&store);
        server.ledger.seat().take(node, other.into_iter());
        let open: Vec<_> = (0..connections).map(|_| server.metrics.usage.of(1).connect()).collect();
        server.ledger.write().await.expect("a database");
        drop(open);
    }
    let server = Server::start(&store);
    assert_eq!(server.day().await[0].connections_peak, 5 + 3);
    // The peak of a day is that of its highest hour, and not the sum of each node's highest hour.
    server.set_minutes(60);
    server.ledger.close();
    server.ledger.seat().take(4, [(1, 1)].into_iter());
    let _open: Vec<_> = (0..6).map(|_| server.metrics.usage.of(1).connect()).collect();
    let day = server.ask(Whose::All, "2026-11-28", "2026-11-29", "day").await.expect("an answer");
    assert_eq!(day[0].connections_peak, 8);
}

async fn a_thousand_apps_are_counted_each_for_itself(database: &TestDatabase) {
    let store = migrated(database).await;
    let count = async |server: &Server, minutes: u64| {
        server.set_minutes(minutes);
        server.ledger.close();
        for app in 1..=1_001_u32 {
            server.publish(i32::try_from(app).expect("few"), app.into());
        }
    };
    let server = Server::start(&store);
    count(&server, 1).await;
    count(&server, 61).await;
    server.ledger.write().await.expect("a database");
    // A new server on the same database, as after a restart.
    let server = Server::start(&store);
    count(&server, 62).await;
    let shown = server.ask(Whose::All, "2026-11-28", "2026-11-29", "day").await.expect("an answer");
    assert_eq!(shown.len(), 1_001);
    for (usage, app) in shown.iter().zip(1..) {
        assert_eq!((usage.app_id, usage.publications), (app, 3 * app as u64));
    }
    // Fifty hours of a thousand apps are more than one answer may have.
    for hour in 2..52 {
        count(&server, 60 * hour).await;
    }
    let asked = server.ask(Whose::All, "2026-11-28", "2026-12-02", "hour").await;
    assert_eq!(asked, Err(ReportError::TooManyRows), "{REPORT_ROWS_MAX}");
    let one = server.ask(Whose::App(AppId(7)), "2026-11-28", "2026-12-02", "hour").await;
    assert_eq!(one.expect("an answer").len(), 52);
}

async fn old_usage_is_deleted(database: &TestDatabase) {
    let store = migrated(database).await;
    let server = Server::start(&store);
    server.metrics.usage.keep([(1, "foo"), (2, "bar")].into_iter());
    server.publish(1, 1);
    server.publish(2, 1);
    server.ledger.write().await.expect("a database");
    for day in 1..=3 {
        server.set_minutes(day * 24 * 60);
        server.ledger.close();
        server.publish(2, 1);
        server.ledger.write().await.expect("a database");
    }
    let left = async || {
        let shown = server.ask(Whose::All, "2026-11-01", "2026-12-31", "day").await;
        shown.expect("an answer").into_iter().map(|usage| usage.app).collect::<Vec<_>>()
    };
    server.ledger.forget(3).await.expect("a database");
    assert_eq!(left().await.len(), 5, "none is older than three days");
    server.now_ms.fetch_add(HOUR_MS, Relaxed);
    server.ledger.forget(3).await.expect("a database");
    assert_eq!(left().await, ["bar", "bar", "bar"]);
    let unknown = server.ask(Whose::Slug("foo".into()), "2026-11-01", "2026-12-31", "day").await;
    assert_eq!(unknown, Err(ReportError::UnknownApp));
    server.ledger.forget(1).await.expect("a database");
    assert_eq!(left().await, ["bar"]);
}

async fn the_counts_of_an_hour_are_written_at_its_end_however_long_the_interval_is(
    database: &TestDatabase,
) {
    let store = migrated(database).await;
    let Server { metrics, ledger, now_ms } = Server::start(&store);
    now_ms.store(ELEVEN_MS + HOUR_MS - 20, Relaxed);
    metrics.usage.of(1).published(3, 30);
    // The clock stands still, so the hour does not end before its counts are written.
    let _keeper = UsageKeeper::start(ledger, Duration::from_millis(HOUR_MS), 1);
    let reader = Server::start(&store);
    let is_written = async || !reader.day().await.is_empty();
    tokio::time::timeout(DEADLINE, repeat_until(is_written)).await.expect("in time");
}
