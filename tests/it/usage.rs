//! The usage of apps, exact to the event: known traffic over both transports is compared with the answers of
//! the API, the CSV and the command line, through deletions, stops and crashes.

use sea_orm::{ConnectionTrait, Database, Statement};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    command_line::Place,
    support::{http::Answer, presence::ticket_of, recovery::ask, *},
};

const ROOM: &str = "public:test-app:room";
const ALL: &str = "public:test-app";

/// The fields that are added up over periods.
const SUMS: [&str; 7] =
    ["publications", "deliveries", "bytes_in", "bytes_out", "joins", "refused_joins", "replayed"];

/// The usage of an app: its sums in the order of [`SUMS`], and the most connections at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Used {
    sums: [u64; 7],
    peak: u64,
}

impl Used {
    fn of(rows: &Value) -> Self {
        let rows = rows["data"].as_array().expect("rows");
        let number = |row: &Value, field: &str| row[field].as_u64().expect("a number");
        let sums = SUMS.map(|field| rows.iter().map(|row| number(row, field)).sum());
        let peak = rows.iter().map(|row| number(row, "connections_peak")).max();
        Self { sums, peak: peak.unwrap_or_default() }
    }
}

async fn as_app(server: &TestServer, app: &App, query: &str) -> Answer {
    let url = server.url(&format!("/api/apps/{}/usage{query}", app.slug));
    request("GET", url).basic(&app.key, &app.secret).send().await
}

async fn as_admin(server: &TestServer, query: &str) -> Answer {
    server.admin("GET", &format!("/api/admin/usage{query}"), None).await
}

/// Waits until the usage of the seeded app is `expected`. A delivery is counted a moment after it arrives.
async fn until_used(server: &TestServer, expected: Used) {
    let app = App::seeded();
    let mut used = Used::default();
    let told = async {
        while used != expected {
            used = Used::of(&as_app(server, &app, "?by=day").await.json());
        }
    };
    let is_told = timeout(DEADLINE, told).await.is_ok();
    assert!(is_told, "{used:?} instead of {expected:?}");
}

/// The rows without what changes from one moment to the next.
fn lasting(answer: &Value) -> Vec<Value> {
    let mut rows = answer["data"].as_array().expect("rows").clone();
    for row in &mut rows {
        let average = row.as_object_mut().expect("a row").remove("connections_average");
        assert!(average.is_some_and(|average| average.is_number()), "{row}");
    }
    rows
}

/// Rows of CSV as the same rows of JSON, without the average.
fn rows_of_csv(csv: &str) -> Vec<Value> {
    let mut lines = csv.strip_suffix("\r\n").expect("a last line").split("\r\n");
    let names: Vec<_> = lines.next().expect("names").split(',').collect();
    let row = |line: &str| {
        let values: Vec<_> = line.split(',').collect();
        assert_eq!(values.len(), names.len(), "{line}");
        let named = names.iter().zip(values).filter(|(name, _)| **name != "connections_average");
        let named = named.map(|(name, value)| {
            let number = value.parse::<u64>().map(Value::from);
            ((*name).to_owned(), number.unwrap_or_else(|_| value.into()))
        });
        Value::Object(named.collect())
    };
    lines.map(row).collect()
}

/// Publishes and joins over every transport and version; returns the clients and the usage that they caused.
async fn make_traffic(server: &TestServer) -> (Vec<Socket>, Used) {
    let app = App::seeded();
    let mut sockets = Vec::new();
    for way in WAYS {
        let mut socket = Socket::connect(server, way).await;
        socket.join(ROOM, json!({})).await;
        let refused = socket.try_join("private:test-app:room", json!({})).await;
        assert_eq!(refused["status"], "error");
        // This refusal counts for no app.
        let unknown = socket.try_join("public:no-such-app:room", json!({})).await;
        assert_eq!(unknown["status"], "error");
        sockets.push(socket);
    }
    for way in [V1, V2] {
        let mut socket = Socket::connect(server, way).await;
        socket.join(ALL, json!({})).await;
        sockets.push(socket);
    }
    // A session whose only join is refused is not counted as a connection.
    let mut refused = Socket::connect(server, V2).await;
    refused.try_join("private:test-app", json!({})).await;
    let text = json!({ "n": 1 });
    server.trigger(&app, json!({ "topic": "room", "event": "msg", "payload": text })).await;
    let general = json!({ "topic": "#general", "event": "msg", "payload": { "n": 22 } });
    server.trigger(&app, general).await;
    let bytes = json!({ "topic": "room", "event": "bytes", "payload_base64": "AP//" });
    let call = request("POST", server.url("/api/apps/test-app/events"));
    let skipped = call.basic(&app.key, &app.secret).json(&bytes).send().await;
    assert_eq!(
        skipped.json(),
        json!({ "skipped": 4 }),
        "only WebSocket clients of version 2 hear it"
    );
    sockets[1].push(json!(["1", "2", ROOM, "said", { "a": "b" }])).await;
    // Nobody hears it, but it was published.
    server.trigger(&app, json!({ "topic": "elsewhere", "scope": "private", "event": "e" })).await;
    let mut visitor = Socket::connect(server, V2).await;
    visitor.join("presence:test-app:room", ticket_of("ada")).await;
    let hello = json!({ "topic": "room", "scope": "presence", "event": "e", "payload": {} });
    server.trigger(&app, hello).await;
    sockets.push(visitor);
    let mut late = Socket::connect(server, V2_POLLED).await;
    let recovery = ask(&mut late, ROOM, json!({ "history": 3 })).await;
    assert_eq!(recovery["replayed"], 2, "no bytes over long-poll: {recovery}");
    sockets.push(late);
    // The sizes of the payloads. The other two events have the payload `{}`, of two bytes.
    let [text, general, bytes, said] = [7, 8, 3, 9];
    let used = Used {
        sums: [
            6,
            6 + 6 + 2 + 6 + 1,
            text + general + bytes + said + 2 + 2,
            6 * text + 6 * general + 2 * bytes + 6 * said + 2,
            4 + 2 + 1 + 1,
            4 + 1,
            2,
        ],
        peak: 8,
    };
    (sockets, used)
}

#[tokio::test]
async fn known_traffic_is_told_to_the_event_by_the_api_csv_and_the_command_line() {
    let mut server = TestServer::start();
    let (sockets, used) = make_traffic(&server).await;
    until_used(&server, used).await;
    let app = App::seeded();
    for by in ["hour", "day", "month"] {
        let query = format!("?by={by}");
        let own = as_app(&server, &app, &query).await;
        assert_eq!((own.status, own.header("content-type")), (200, Some("application/json")));
        assert_eq!(Used::of(&own.json()), used, "{by}");
        let whole = as_admin(&server, &query).await;
        assert_eq!(lasting(&whole.json()), lasting(&own.json()), "{by}");
        let named = as_admin(&server, &format!("{query}&app=test-app")).await;
        assert_eq!(lasting(&named.json()), lasting(&own.json()), "{by}");
        let csv = as_app(&server, &app, &format!("{query}&format=csv")).await;
        let csv_type = "text/csv; charset=utf-8; header=present";
        assert_eq!((csv.status, csv.header("content-type")), (200, Some(csv_type)));
        assert_eq!(rows_of_csv(&csv.body), lasting(&own.json()), "{by}");
        let url = server.url(&format!("/api/admin/usage{query}"));
        let accepts = request("GET", url).basic(server::ADMIN.0, server::ADMIN.1);
        let accepted = accepts.header("accept", "text/csv").send().await;
        assert_eq!(rows_of_csv(&accepted.body), rows_of_csv(&csv.body), "{by}");
    }
    let place = Place::new()
        .with("HERALD_ENV", "test")
        .with("DATABASE_URL", &format!("sqlite://{}/herald.db", server.dir.path().display()));
    let url = server.url("");
    for args in [vec!["--app", "test-app"], vec![]] {
        let args = [&["usage", "--url", &url, "--json", "--by", "day"], &args[..]].concat();
        assert_eq!(Used::of(&place.run(&args).json()), used, "{args:?}");
    }
    drop(sockets);
    server.stop();
    let shown = place.run(&["usage", "--by", "day", "--json"]).json();
    assert_eq!(Used::of(&shown), used, "nothing is lost by an orderly stop");
    let csv = place.run(&["usage", "--by", "day", "--csv", "--app", "test-app"]);
    assert_eq!(rows_of_csv(csv.succeeded()), lasting(&shown));
    let table = place.run(&["usage", "--by", "day"]);
    let lines: Vec<_> = table.succeeded().lines().collect();
    assert!(lines[0].starts_with("APP       APP_ID  FROM"), "{table:?}");
    assert_eq!(lines.len(), 1 + shown["data"].as_array().expect("rows").len());
    assert!(lines[1].split_whitespace().any(|cell| cell == used.sums[3].to_string()), "{table:?}");
}

#[tokio::test]
async fn an_app_that_is_deleted_keeps_its_usage_and_its_successor_starts_at_zero() {
    let server = TestServer::start();
    let (sockets, used) = make_traffic(&server).await;
    until_used(&server, used).await;
    drop(sockets);
    let renamed = server.update_app("test-app", json!({ "name": "Renamed app" })).await;
    assert_eq!(server.admin("DELETE", "/api/admin/apps/renamed-app", None).await.status, 204);
    let successor = server.create_app(json!({ "name": "Renamed app" })).await;
    assert_eq!(successor.slug, renamed.slug);
    let own = as_app(&server, &successor, "?by=day").await.json();
    assert_eq!(own, json!({ "data": [] }));
    server.trigger(&successor, json!({ "topic": "room", "event": "msg" })).await;
    let own = as_app(&server, &successor, "?by=day").await.json();
    assert_eq!(Used::of(&own).sums, [1, 0, 2, 0, 0, 0, 0]);
    let all = as_admin(&server, "?by=day&app=renamed-app").await.json();
    let (old, new): (Vec<_>, Vec<_>) =
        lasting(&all).into_iter().partition(|row| row["app_id"] != own["data"][0]["app_id"]);
    assert_eq!(Used::of(&json!({ "data": old })), used, "under its last slug");
    assert_eq!(new, lasting(&own));
    assert_eq!(as_admin(&server, "?app=test-app").await.status, 404);
    assert_eq!(as_app(&server, &renamed, "").await.status, 401, "its key has gone with it");
}

#[tokio::test]
async fn a_query_that_makes_no_sense_is_refused_in_clear_words() {
    let server = TestServer::start();
    let app = App::seeded();
    let no_time = "must be a date such as 2026-11-28, or a time such as 2026-11-28T12:00:00Z";
    for (query, faults) in [
        ("?from=yesterday", json!({ "from": [no_time] })),
        ("?to=2026-13-01", json!({ "to": [no_time] })),
        ("?by=week", json!({ "by": ["must be hour, day or month"] })),
        ("?format=xml", json!({ "format": ["must be json or csv"] })),
        ("?from=2026-11-28&to=2026-11-28", json!({ "from": ["must be before to"] })),
        ("?from[]=2026-11-28", json!({ "from": ["must be a string"] })),
        (
            "?from=x&to=y&by=z&format=0",
            json!({
                "from": [no_time],
                "to": [no_time],
                "by": ["must be hour, day or month"],
                "format": ["must be json or csv"],
            }),
        ),
    ] {
        for answer in [as_app(&server, &app, query).await, as_admin(&server, query).await] {
            assert_eq!(
                (answer.status, answer.json()),
                (422, json!({ "errors": faults })),
                "{query}"
            );
        }
    }
    let years = as_admin(&server, "?from=2020-01-01&to=2026-01-01").await;
    assert_eq!(years.status, 422);
    assert!(years.body.contains("more than 1000 periods"), "{}", years.body);
    assert_eq!(as_admin(&server, "?app=no-such-app").await.status, 404);
    assert_eq!(as_admin(&server, "?app=test-app").await.json(), json!({ "data": [] }));
    assert_eq!(get(server.url("/api/admin/usage")).await.status, 401);
    assert_eq!(get(server.url("/api/apps/test-app/usage")).await.status, 401);
    let post = server.admin("POST", "/api/admin/usage", None).await;
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));
    let other = server.create_app(json!({ "name": "Other app" })).await;
    let url = server.url("/api/apps/test-app/usage");
    let foreign = request("GET", url).basic(&other.key, &other.secret).send().await;
    assert_eq!(foreign.status, 401, "no app sees another's");
    let place = Place::new();
    let failed = place.run(&["usage", "--from", "x", "--by", "week"]);
    let expected = format!("herald: by must be hour, day or month; from {no_time}");
    assert_eq!(failed.failed(2), expected);
}

/// The number of publications that the usage in a database tells.
async fn written(folder: &TempDir) -> i64 {
    let url = format!("sqlite://{}/herald.db", folder.path().display());
    let database = Database::connect(url).await.expect("a database");
    let sql = "SELECT CAST(TOTAL(publications) AS BIGINT) AS n FROM app_usage";
    let statement = Statement::from_string(database.get_database_backend(), sql);
    let row = database.query_one_raw(statement).await.expect("an answer").expect("a row");
    database.close().await.expect("an end");
    row.try_get("", "n").expect("a number")
}

async fn publish(server: &TestServer, times: usize) {
    for _ in 0..times {
        server.trigger(&App::seeded(), json!({ "topic": "room", "event": "msg" })).await;
    }
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_written_and_a_stop_nothing_at_all() {
    let often = [("HERALD__USAGE__WRITE_INTERVAL", "20ms")];
    let process = Process::start(&often);
    publish(&process.server, 5).await;
    let is_written = repeat_until(async || written(&process.server.dir).await >= 5);
    timeout(DEADLINE, is_written).await.expect("it is written in time");
    let folder = process.crash();

    // Usage is written once a minute, so not before this test is over.
    let seldom = [("HERALD__USAGE__WRITE_INTERVAL", "60s")];
    let process = Process::start_in(folder, &seldom);
    publish(&process.server, 3).await;
    until_used(&process.server, publications(8)).await;
    let folder = process.crash();

    let process = Process::start_in(folder, &seldom);
    until_used(&process.server, publications(5)).await;
    publish(&process.server, 2).await;
    let folder = process.stop();
    assert_eq!(written(&folder).await, 7);

    let process = Process::start_in(folder, &seldom);
    until_used(&process.server, publications(7)).await;
}

/// The usage of this number of publications of `{}` that nobody hears.
fn publications(count: u64) -> Used {
    Used { sums: [count, 0, 2 * count, 0, 0, 0, 0], peak: 0 }
}
