//! Calls of Pusher's HTTP API, signed as its server SDKs sign them.

use herald::pusher::signature::sign;
use md5::{Digest, Md5};
use serde_json::{Value, json};

use super::{
    App, TestServer,
    http::{self, Answer, Request},
    tokens::now_s,
};

/// A call that is being built.
pub struct Call<'a> {
    server: &'a TestServer,
    app: App,
    method: &'static str,
    /// The path that is sent.
    path: String,
    /// The path that is signed, if it is another one.
    signed_path: Option<String>,
    /// The parameters as they are signed, decoded, and as they are sent.
    params: Vec<(String, String, String)>,
    time_s: i64,
    version: &'static str,
    body: Vec<u8>,
    digest: Option<String>,
}

/// A call of the seeded app, which is named by its slug.
pub fn call<'a>(server: &'a TestServer, method: &'static str, path: &str) -> Call<'a> {
    let app = App::seeded();
    let path = format!("/apps/{}{path}", app.slug);
    Call::of(server, app, method, path)
}

/// Triggers an event with the seeded app; the answer must be `{}`.
pub async fn trigger(server: &TestServer, event: Value) {
    let answer = call(server, "POST", "/events").json(&event).send().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "{}"), "{event}");
}

/// An event with some data for some channels.
pub fn event(channels: &[&str], data: &str) -> Value {
    json!({ "name": "msg", "channels": channels, "data": data })
}

impl<'a> Call<'a> {
    /// A call of any path.
    pub fn of(server: &'a TestServer, app: App, method: &'static str, path: String) -> Self {
        Self {
            server,
            app,
            method,
            path,
            signed_path: None,
            params: Vec::new(),
            time_s: now_s(),
            version: "1.0",
            body: Vec::new(),
            digest: None,
        }
    }

    /// With this app's key and secret.
    pub fn by(self, app: &App) -> Self {
        Self { app: app.clone(), ..self }
    }

    /// With a parameter that needs no escapes.
    pub fn param(self, name: &str, value: &str) -> Self {
        self.param_sent_as(name, value, &format!("{name}={value}"))
    }

    /// With a parameter that is sent in another form than it is signed in.
    pub fn param_sent_as(mut self, name: &str, value: &str, sent: &str) -> Self {
        self.params.push((name.to_owned(), value.to_owned(), sent.to_owned()));
        self
    }

    /// At this time.
    pub fn at(self, time_s: i64) -> Self {
        Self { time_s, ..self }
    }

    /// With this version of the signature.
    pub fn version(self, version: &'static str) -> Self {
        Self { version, ..self }
    }

    /// With a signature of this path instead of the one that is sent.
    pub fn signing(self, path: &str) -> Self {
        Self { signed_path: Some(path.to_owned()), ..self }
    }

    pub fn json(self, body: &Value) -> Self {
        self.body(body.to_string())
    }

    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// With this digest of the body; an empty one is not sent.
    pub fn digest(self, digest: &str) -> Self {
        Self { digest: Some(digest.to_owned()), ..self }
    }

    /// The parameters as they are sent, with the signature as the last of them.
    pub fn query(&self) -> Vec<String> {
        let digest = match &self.digest {
            Some(digest) => digest.clone(),
            None if self.body.is_empty() => String::new(),
            None => hex::encode(Md5::digest(&self.body)),
        };
        let mut params = vec![
            ("auth_key".to_owned(), self.app.key.clone()),
            ("auth_timestamp".to_owned(), self.time_s.to_string()),
        ];
        for (name, value) in [("auth_version", self.version), ("body_md5", &digest)] {
            if !value.is_empty() {
                params.push((name.to_owned(), value.to_owned()));
            }
        }
        let mut sent: Vec<_> =
            params.iter().map(|(name, value)| format!("{name}={value}")).collect();
        for (name, value, form) in &self.params {
            params.push((name.to_lowercase(), value.clone()));
            sent.push(form.clone());
        }
        params.sort_by(|(one, _), (other, _)| one.cmp(other));
        let pairs: Vec<_> = params.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let path = self.signed_path.as_ref().unwrap_or(&self.path);
        let text = format!("{}\n{path}\n{}", self.method, pairs.join("&"));
        sent.push(format!("auth_signature={}", sign(&self.app.secret.as_str().into(), &[&text])));
        sent
    }

    /// The call, with these parameters in this order.
    pub fn request(&self, query: &[String]) -> Request {
        let url = format!("{}?{}", self.server.url(&self.path), query.join("&"));
        http::request(self.method, url).body(self.body.clone())
    }

    pub async fn send(self) -> Answer {
        self.request(&self.query()).send().await
    }

    /// The status, and the text of the answer.
    pub async fn outcome(self) -> (u16, String) {
        let answer = self.send().await;
        (answer.status, answer.body)
    }
}
