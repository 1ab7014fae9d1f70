//! The answer of `GET /metrics`, as numbers.

use std::collections::BTreeMap;

use tokio::time::timeout;

use super::{DEADLINE, TestServer, http, repeat_until_some, server::ADMIN};

/// One scrape.
pub struct Figures {
    /// The whole answer.
    pub text: String,
    series: BTreeMap<String, f64>,
}

impl Figures {
    /// Scrapes a server as its administrator, at the port of its metrics if they have one of their own.
    pub async fn of(server: &TestServer) -> Self {
        let url = match server.metrics_port {
            Some(port) => format!("http://127.0.0.1:{port}/metrics"),
            None => server.url("/metrics"),
        };
        Self::read(&http::request("GET", url).basic(ADMIN.0, ADMIN.1).send().await)
    }

    /// Parses an answer, which must be complete.
    pub fn read(answer: &http::Answer) -> Self {
        assert_eq!(answer.status, 200, "{}", answer.body);
        let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(answer.header("content-type"), Some(media_type));
        let text = answer.body.clone();
        assert!(text.ends_with("# EOF\n"), "the answer is complete");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            (series.to_owned(), value.parse().expect("a number"))
        });
        Self { series: series.collect(), text }
    }

    /// The value of a series, by name and labels as they are written. It panics if there is no such series.
    pub fn get(&self, series: &str) -> f64 {
        *self.series.get(series).unwrap_or_else(|| panic!("no {series} in {}", self.text))
    }

    /// Whether there is such a series.
    pub fn has(&self, series: &str) -> bool {
        self.series.contains_key(series)
    }

    /// Every series with its value.
    pub fn all(&self) -> impl Iterator<Item = (&str, f64)> {
        self.series.iter().map(|(series, value)| (series.as_str(), *value))
    }

    /// The number of times that a limit was hit.
    pub fn hits(&self, limit: &str) -> f64 {
        self.get(&format!(r#"herald_limit_hits_total{{limit="{limit}"}}"#))
    }

    /// The number of sessions that ended for this reason.
    pub fn ended(&self, reason: &str) -> f64 {
        self.get(&format!(r#"herald_sessions_ended_total{{reason="{reason}"}}"#))
    }
}

/// Scrapes until a series has this value: the server may count something only after it has answered.
pub async fn becomes(server: &TestServer, series: &str, expected: f64) -> Figures {
    let mut last = None;
    let reached = repeat_until_some(async || {
        let figures = Figures::of(server).await;
        let value = *last.insert(figures.get(series));
        ((value - expected).abs() < f64::EPSILON).then_some(figures)
    });
    match timeout(DEADLINE, reached).await {
        Ok(figures) => figures,
        Err(_) => panic!("{series} is {last:?}, not {expected}"),
    }
}

/// Scrapes until a limit was hit this many times.
pub async fn becomes_hit(server: &TestServer, limit: &str, times: f64) -> Figures {
    becomes(server, &format!(r#"herald_limit_hits_total{{limit="{limit}"}}"#), times).await
}
