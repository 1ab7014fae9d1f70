//! HTTP calls, as any client library makes them.

use std::io::Read;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::DEADLINE;

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A request that is being built.
pub struct Request {
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// Begins a request.
pub fn request(method: &str, url: impl Into<String>) -> Request {
    Request { method: method.into(), url: url.into(), headers: Vec::new(), body: Vec::new() }
}

/// Sends a GET request without further headers.
pub async fn get(url: String) -> Answer {
    request("GET", url).send().await
}

impl Request {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The value of a header that was set.
    pub fn header_value(&self, name: &str) -> Option<&str> {
        let given = self.headers.iter().find(|(given, _)| given == name);
        given.map(|(_, value)| value.as_str())
    }

    pub fn basic(self, user: &str, password: &str) -> Self {
        let encoded = STANDARD.encode(format!("{user}:{password}"));
        self.header("authorization", &format!("Basic {encoded}"))
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub fn form(self, form: &str) -> Self {
        self.header("content-type", "application/x-www-form-urlencoded").body(form)
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends the request on another thread, which does not block the test's own, and reads the whole answer.
    pub async fn send(self) -> Answer {
        self.try_send().await.expect("an answer")
    }

    /// Sends the request as [`Request::send`] does; `None` if no whole answer arrives.
    pub async fn try_send(self) -> Option<Answer> {
        tokio::task::spawn_blocking(|| self.send_blocking()).await.expect("the call")
    }

    fn send_blocking(self) -> Option<Answer> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(DEADLINE))
            .allow_non_standard_methods(true);
        let agent: ureq::Agent = config.build().into();
        let mut request =
            ureq::http::Request::builder().method(self.method.as_str()).uri(&self.url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(self.body).expect("a request");
        let mut response = agent.run(request).ok()?;
        let mut body = String::new();
        response.body_mut().as_reader().read_to_string(&mut body).ok()?;
        let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap_or("?").to_owned();
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), text(value))).collect();
        Some(Answer { status: response.status().as_u16(), headers, body })
    }
}
