//! The files for operators in `ops/`: they name metrics, labels and settings that exist.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use herald::settings::Settings;
use serde_json::Value;

use crate::support::{figures::Figures, *};

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("ops/{file}: {error}"))
}

/// The expressions of the dashboard: those of its panels, each of which has a description, and those of its
/// variables.
fn of_dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana/herald.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let drawn = panels.iter().filter(|panel| panel["type"] != "row");
    let mut all = Vec::new();
    for panel in drawn {
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{panel}");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{panel}");
        all.extend(targets.iter().map(|each| each["expr"].as_str().expect("text").to_owned()));
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    all.extend(variables.filter_map(|each| Some(each["definition"].as_str()?.to_owned())));
    all
}

/// The expressions of the alerts, each of which says what it means.
fn of_alerts() -> Vec<String> {
    let rules = read("prometheus/alerts.yml");
    let lines = |field: &str| {
        let fields = rules.lines().filter_map(|line| line.trim().strip_prefix(field));
        fields.map(|value| value.trim().to_owned()).collect::<Vec<_>>()
    };
    let (alerts, expressions) = (lines("- alert:"), lines("expr:"));
    let distinct: BTreeSet<_> = alerts.iter().collect();
    assert_eq!(distinct.len(), alerts.len(), "each alert has a name of its own");
    for field in ["expr:", "labels:", "summary:", "description:"] {
        assert_eq!(lines(field).len(), alerts.len(), "{field}");
    }
    expressions
}

/// A label that an expression selects by, and its value: `None` if the value is a variable of the dashboard.
type Selected = (String, Option<String>);

/// The series that an expression names, with the labels that it selects by.
fn series_of(expression: &str) -> Vec<(String, Vec<Selected>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut all = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        rest = &rest[start..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        rest = behind;
        if !(name.starts_with("herald_") || name.starts_with("process_")) {
            continue;
        }
        let mut labels = Vec::new();
        if let Some((inside, after)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) {
            for part in inside.split("\",").filter(|part| !part.is_empty()) {
                let (label, value) = part.split_once('=').expect("a matcher");
                let value = value.trim_matches(['~', '"']);
                labels
                    .push((label.to_owned(), (!value.starts_with('$')).then(|| value.to_owned())));
            }
            rest = after;
        }
        all.push((name.to_owned(), labels));
    }
    all
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_name_metrics_and_labels_that_exist() {
    let server = TestServer::start();
    let app = App::seeded();
    server.trigger(&app, serde_json::json!({ "topic": "room", "event": "msg" })).await;
    let figures = Figures::of(&server).await;
    let shown: Vec<_> = figures.all().map(|(series, _)| series.to_owned()).collect();
    let mut named = BTreeSet::new();
    for expression in of_dashboard().iter().chain(&of_alerts()) {
        let series = series_of(expression);
        assert!(!series.is_empty() || expression.starts_with("up{"), "{expression}");
        for (name, labels) in series {
            let of_name = |each: &&String| {
                each.strip_prefix(&name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
            };
            let of_metric: Vec<_> = shown.iter().filter(of_name).collect();
            assert!(!of_metric.is_empty(), "{expression}: there is no {name}");
            for (label, value) in labels {
                // Prometheus itself adds these labels.
                if ["instance", "job"].contains(&label.as_str()) {
                    continue;
                }
                for value in value.iter().flat_map(|value| value.split('|')) {
                    let selected = format!("{label}=\"{value}\"");
                    let exists = of_metric.iter().any(|each| each.contains(&selected));
                    assert!(exists, "{expression}: {name} has no {selected}");
                }
                let has_label = of_metric.iter().all(|each| each.contains(&format!("{label}=\"")));
                assert!(has_label, "{expression}: {name} has no label {label}");
            }
            named.insert(name);
        }
        // Other programs have metrics of these names, too.
        let is_of_herald = ["job=\"herald\"", "and on (instance, job) herald_build_info"]
            .iter()
            .any(|of| expression.contains(of));
        assert!(is_of_herald || !expression.contains("process_"), "{expression}");
    }
    let of_herald = figures.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for metric in of_herald.filter_map(|line| line.split(' ').next()) {
        // The samples of a metric have its name, and a suffix that depends on its type.
        let of_metric = ["", "_total", "_bucket", "_sum", "_count", "_info"];
        let is_named = of_metric.iter().any(|suffix| named.contains(&format!("{metric}{suffix}")));
        let is_meant = metric.starts_with("herald_")
            && !["herald_outbox_frames", "herald_outbox_frames_most"].contains(&metric);
        assert!(is_named || !is_meant, "neither the dashboard nor an alert names {metric}");
    }
}

#[test]
fn the_panels_of_the_dashboard_have_numbers_and_places_of_their_own_and_use_its_variables() {
    let dashboard: Value = serde_json::from_str(&read("grafana/herald.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> =
        panels.iter().map(|panel| panel["id"].as_u64().expect("a number")).collect();
    assert_eq!(ids.len(), panels.len());
    let mut taken = BTreeSet::new();
    for panel in panels {
        let place = |side: &str| panel["gridPos"][side].as_u64().expect("a place");
        assert!(place("w") > 0 && place("x") + place("w") <= 24, "{panel}");
        for cell in (place("y")..place("y") + place("h"))
            .flat_map(|y| (place("x")..place("x") + place("w")).map(move |x| (x, y)))
        {
            assert!(taken.insert(cell), "{} overlaps another panel", panel["title"]);
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let variables: Vec<_> = variables.map(|each| each["name"].as_str().expect("a name")).collect();
    let text = dashboard.to_string();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for used in text.split('$').skip(1).map(|rest| rest.trim_start_matches('{')) {
        let name = &used[..used.find(|c| !is_name(c)).unwrap_or(used.len())];
        assert!(name.starts_with("__") || variables.contains(&name), "${name} is not defined");
    }
}

#[test]
fn the_panels_of_the_dashboard_are_of_kinds_that_grafana_has_and_their_series_have_names() {
    let dashboard: Value = serde_json::from_str(&read("grafana/herald.json")).expect("JSON");
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string());
    let source = serde_json::json!({ "type": "prometheus", "uid": "${datasource}" });
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        match variable["type"].as_str() {
            Some("datasource") => assert_eq!(variable["query"], "prometheus"),
            Some("query") => assert_eq!(variable["datasource"], source, "{variable}"),
            kind => panic!("a variable of the kind {kind:?}"),
        }
    }
    for panel in dashboard["panels"].as_array().expect("panels") {
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!((&panel["type"], &panel["datasource"]), (&"timeseries".into(), &source));
        let defaults = &panel["fieldConfig"]["defaults"];
        let unit = defaults["unit"].as_str().expect("a unit");
        assert!(["short", "ops", "s", "bytes", "Bps", "percentunit"].contains(&unit), "{unit}");
        let targets = panel["targets"].as_array().expect("targets");
        let mut names = BTreeSet::new();
        for target in targets {
            assert_eq!(target["datasource"], source, "{target}");
            assert!(names.insert(target["refId"].as_str()), "{target}");
            let expression = target["expr"].as_str().expect("text");
            let legend = target["legendFormat"].as_str().expect("a legend");
            let kept = expression.split_once(" by (").and_then(|(_, rest)| rest.split_once(')'));
            let kept: Vec<_> = kept.map(|(by, _)| by.split(", ").collect()).unwrap_or_default();
            let is_summed =
                ["sum", "max", "histogram_quantile"].iter().any(|f| expression.starts_with(f));
            for label in legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")) {
                let is_kept = kept.contains(&label.0) || (!is_summed && label.0 == "instance");
                assert!(is_kept, "{legend}: {expression} has no label {}", label.0);
            }
            let shown: Vec<_> =
                kept.iter().filter(|label| **label != "le" && !legend.contains(**label)).collect();
            assert!(shown.is_empty(), "{legend}: series that differ in {shown:?} look alike");
            // Only an expression of a time may have the unit `s`.
            let overrides = panel["fieldConfig"]["overrides"].to_string();
            let is_time = expression.contains("_seconds");
            let is_shown_as_time = unit == "s" && !overrides.contains(legend);
            assert!(is_time || !is_shown_as_time, "{legend} is not a time");
        }
    }
}

/// The times after which the configurations of proxies close a silent connection, in seconds, each with its file
/// and the name of the setting.
fn read_timeouts_s() -> Vec<(String, u64)> {
    let names = ["proxy_read_timeout", "timeout client", "timeout server", "timeout tunnel"];
    let mut found = Vec::new();
    for file in ["ops/nginx/cluster.conf", "ops/haproxy/cluster.cfg", "docs/operating.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"));
        for line in text.lines().map(str::trim) {
            let given = names.iter().find_map(|name| Some((name, line.strip_prefix(name)?)));
            let Some((name, value)) = given else { continue };
            let seconds = value.trim().trim_end_matches(';').strip_suffix('s');
            let seconds = seconds.and_then(|number| number.parse().ok());
            found.push((
                format!("{name} in {file}"),
                seconds.unwrap_or_else(|| panic!("no seconds: {line}")),
            ));
        }
    }
    found
}

#[test]
fn no_given_proxy_closes_a_session_that_only_waits() {
    let env = [("HERALD_ENV", "development"), ("SECRET_KEY_BASE", "k")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings = Settings::load_from(env.into_iter(), None).expect("settings");
    // A client of Pusher that hears nothing is silent for this time, and is then probed.
    let silent = settings.pusher.activity_timeout + settings.pusher.pong_timeout;
    let silent_s = silent.max(settings.socket.idle_timeout).as_secs();
    let found = read_timeouts_s();
    assert_eq!(found.len(), 8, "{found:?}");
    for (name, timeout_s) in found {
        assert!(timeout_s > silent_s + 10, "{name}: {timeout_s} s, but {silent_s} s may be silent");
    }
}

#[test]
fn the_files_for_docker_give_settings_that_exist_and_a_console_that_can_be_used() {
    for file in ["docker-compose.yml", "docker-compose.cluster.yml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let environment = text.split_once("HERALD_ENV:").expect("an environment").1;
        let lines = ["HERALD_ENV:", environment].concat();
        let given = lines.lines().map(str::trim).take_while(|line| !line.ends_with(':'));
        let given = given.filter(|line| !line.starts_with('#'));
        let env = given.map(|line| line.split_once(": ").expect("a variable"));
        let env = env.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()));
        let settings = Settings::load_from(env.collect::<Vec<_>>().into_iter(), None);
        let settings = settings.unwrap_or_else(|error| panic!("{file}: {error}"));
        // Docker's network stands between the browser and the server, so that no client is on the server's machine.
        assert!(settings.console.insecure, "{file}");
        assert!(text.contains("- \"127.0.0.1:4000:"), "{file}: only this machine reaches it");
    }
}

/// Reads `docs/operating.md`, from this heading to the next one.
fn section(heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md");
    let page = fs::read_to_string(path).expect("docs/operating.md");
    let (_, text) = page.split_once(&format!("\n## {heading}\n")).expect("the heading");
    text.split("\n## ").next().unwrap_or_default().to_owned()
}

/// Reads these settings as those of a server in production.
fn in_production(given: impl Iterator<Item = (String, String)>) -> Settings {
    let secret = "0123456789abcdef0123456789abcdef";
    let own = [
        ("HERALD_ENV", "production"),
        ("DATABASE_URL", "postgres://db/herald"),
        ("PUSHER_ADMIN_USERNAME", "admin"),
        ("PUSHER_ADMIN_PASSWORD", secret),
        ("SECRET_KEY_BASE", secret),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Settings::load_from(own.into_iter().chain(given), None).expect("settings")
}

#[test]
fn the_commands_for_heroku_give_settings_that_exist() {
    let text = section("Heroku and similar services");
    let given = text.split_whitespace().filter(|word| word.starts_with("HERALD__"));
    let given = given.map(|word| word.split_once('=').expect("a value"));
    let settings = in_production(given.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(settings.database.migrate && settings.server.force_ssl);
    assert!(settings.server.keep_alive > Duration::from_secs(90), "the router's own time");
    assert!(settings.pusher.activity_timeout < Duration::from_secs(55), "the router's own time");
}

#[test]
fn the_values_for_small_machines_fit_into_their_memory() {
    let text = section("Memory");
    let sum = text.lines().find(|line| line.contains(", in ordinary use |")).expect("a sum");
    let sum: Vec<_> = sum.split('|').map(str::trim).collect();
    for (column, machine_mb) in [(4, 512), (5, 1024)] {
        let stated_mb =
            sum[column].strip_prefix("about ").and_then(|text| text.strip_suffix(" MB"));
        let stated_mb: usize = stated_mb.expect("a number").parse().expect("a number");
        let rows = text.lines().filter(|line| line.contains("| `"));
        let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
        let values = rows.filter_map(|cells| {
            let number = cells[column].split(' ').next().and_then(|text| text.parse::<u32>().ok());
            let name = cells[2].trim_matches('`').replace('.', "__").to_ascii_uppercase();
            Some((format!("HERALD__{name}"), number?.to_string()))
        });
        let values: Vec<_> = values.collect();
        assert_eq!(values.len(), 6, "{values:?}");
        let settings = in_production(values.into_iter());
        let limits = &settings.limits;
        let waiting = limits.bodies_bytes_max + limits.unfinished_bytes_max;
        let kept = settings.history.bytes_max + settings.pusher.cache_bytes_max;
        let sessions = limits.sessions_max.expect("a number");
        let connections = 3_000 * sessions + 12 * 1024 * limits.http_waiting_max;
        let sum_mb = 20 + machine_mb / 4 + (waiting + kept + connections) / (1 << 20);
        assert!(sum_mb <= stated_mb && stated_mb < sum_mb + 20, "{sum_mb} MB");
        assert!(stated_mb < machine_mb * 3 / 4, "the rest of the machine needs a quarter");
    }
}

#[test]
fn every_alert_is_tested() {
    let rules = read("prometheus/alerts.yml");
    let tests = read("prometheus/alerts_test.yml");
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert}");
    }
}

#[test]
fn the_unit_and_the_deployment_name_settings_that_exist() {
    let unit = read("systemd/herald.service");
    assert!(unit.contains("ExecStart=/usr/local/bin/herald serve\n"), "{unit}");
    assert!(unit.contains("\nTimeoutStartSec=infinity\n"), "a slow migration is not killed");
    let deploy = read("kamal/deploy.yml");
    let given = deploy.lines().filter_map(|line| line.trim().split_once(": "));
    let given =
        given.filter(|(name, _)| name.starts_with("HERALD__") || *name == "PUSHER_ADMIN_USERNAME");
    let mut env: Vec<_> =
        given.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect();
    assert!(env.len() > 3, "{env:?}");
    // Docker gives the words of `kamal app exec` to the entrypoint, which is `herald` itself.
    let image = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile"));
    assert!(image.expect("the Dockerfile").contains("\nENTRYPOINT [\"herald\"]\n"));
    let executed = deploy.split("kamal app exec \"").skip(1);
    let executed: Vec<_> = executed.filter_map(|rest| rest.split_once('"')).collect();
    assert!(!executed.is_empty());
    for (words, _) in executed {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_herald"));
        let help = command.args(words.split(' ')).arg("--help").output().expect("herald");
        assert!(help.status.success(), "herald {words}: {}", String::from_utf8_lossy(&help.stderr));
    }
    let secret = "0123456789abcdef0123456789abcdef";
    for (name, value) in [
        ("HERALD_ENV", "production"),
        ("DATABASE_URL", "postgres://db/herald"),
        ("PUSHER_ADMIN_PASSWORD", secret),
        ("SECRET_KEY_BASE", secret),
    ] {
        assert!(deploy.contains(name), "the deployment gives {name}");
        env.push((name.to_owned(), value.to_owned()));
    }
    let settings = Settings::load_from(env.into_iter(), None).expect("settings");
    assert!(settings.database.migrate, "Kamal cannot run the migrations before the first start");
    let response_s = deploy.lines().find_map(|line| line.trim().strip_prefix("response_timeout: "));
    let response_s: u64 = response_s.and_then(|text| text.parse().ok()).expect("seconds");
    assert!(response_s > settings.socket.long_poll_window.as_secs(), "long-poll requests wait");
    let patience_s = |line: &str| {
        let number =
            line.trim().rsplit(['=', ' ']).next().and_then(|text| text.parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("no seconds: {line}"))
    };
    let waits = unit.lines().chain(deploy.lines());
    let waits = waits.filter(|line| {
        ["TimeoutStopSec", "stop-timeout", "drain_timeout"]
            .iter()
            .any(|n| line.trim().starts_with(n))
    });
    let waits: Vec<_> = waits.map(patience_s).collect();
    assert_eq!(waits.len(), 3);
    let stop_s = settings.server.shutdown_timeout.as_secs();
    assert!(
        waits.iter().all(|wait_s| *wait_s > stop_s),
        "{waits:?} s, but a stop takes {stop_s} s"
    );
}
