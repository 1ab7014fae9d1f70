//! A raw long-poll client, which fetches over one connection and sends over another, as a browser does.

use std::collections::VecDeque;

use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{TestServer, raw};

/// A client of one long-poll session.
pub struct Poller {
    /// Names the session.
    pub token: String,
    path: String,
    is_v2: bool,
    fetching: TcpStream,
    sending: TcpStream,
    fetched: VecDeque<String>,
}

impl Poller {
    /// Opens a session at `/socket/longpoll` with a version.
    pub async fn connect(server: &TestServer, vsn: &str) -> Self {
        // Every generation of phoenix.js sends the trailing `&`: it stands for a token that is null.
        Self::open(server, &format!("/socket/longpoll?vsn={vsn}&")).await
    }

    /// Opens a session at any path with a query; it must be accepted.
    pub async fn open(server: &TestServer, path: &str) -> Self {
        Self::open_with(server, path, "").await
    }

    /// Opens a session with extra header lines.
    pub async fn open_with(server: &TestServer, path: &str, headers: &str) -> Self {
        let mut fetching = raw::connect(server).await;
        say(&mut fetching, "GET", path, headers, b"").await;
        let answer = heard(&mut fetching).await;
        let token = answer["token"].as_str().expect("a token").to_owned();
        assert_eq!(answer, serde_json::json!({"status": 410, "token": token, "messages": []}));
        let (path, is_v2) = (path.to_owned(), path.contains("vsn=2"));
        let sending = raw::connect(server).await;
        Self { token, path, is_v2, fetching, sending, fetched: VecDeque::new() }
    }

    /// A client of the same session with connections of its own.
    pub async fn again(&self, server: &TestServer) -> Self {
        Self {
            token: self.token.clone(),
            path: self.path.clone(),
            is_v2: self.is_v2,
            fetching: raw::connect(server).await,
            sending: raw::connect(server).await,
            fetched: VecDeque::new(),
        }
    }

    fn target(&self) -> String {
        format!("{}token={}", self.path, self.token)
    }

    /// Sends a fetch and does not wait for its answer.
    pub async fn park(&mut self) {
        let target = self.target();
        say(&mut self.fetching, "GET", &target, "", b"").await;
    }

    /// The answer to a parked fetch.
    pub async fn parked(&mut self) -> Value {
        heard(&mut self.fetching).await
    }

    /// Waits for the answer to a parked fetch, and keeps its messages for [`Poller::next`].
    pub async fn parked_into_waiting(&mut self) {
        let answer = self.parked().await;
        if answer["status"] == 200 {
            self.take(&answer);
        }
    }

    /// Fetches once.
    pub async fn fetch(&mut self) -> Value {
        self.park().await;
        self.parked().await
    }

    /// Fetches once from a server that may be gone; `None` if it is.
    pub async fn try_fetch(&mut self) -> Option<Value> {
        let head = format!("GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", self.target());
        self.fetching.write_all(head.as_bytes()).await.ok()?;
        // A connection that was closed meanwhile ends when something is written to it.
        let mut first = [0];
        match self.fetching.peek(&mut first).await {
            Ok(1) => Some(self.parked().await),
            _ => None,
        }
    }

    /// Hangs up on a parked fetch.
    pub async fn hang_up(&mut self, server: &TestServer) {
        self.fetching = raw::connect(server).await;
    }

    /// Posts a body; answers HTTP status and body.
    pub async fn post_raw(&mut self, content_type: Option<&str>, body: &[u8]) -> (u16, String) {
        let target = self.target();
        let header = content_type.map(|it| format!("content-type: {it}\r\n")).unwrap_or_default();
        say(&mut self.sending, "POST", &target, &header, body).await;
        raw::answer(&mut self.sending).await
    }

    /// Posts one message; answers the status in the body.
    pub async fn post(&mut self, text: &str) -> u64 {
        status(&self.post_raw(Some("application/json"), text.as_bytes()).await)
    }

    /// Posts a batch; answers the status in the body.
    pub async fn post_batch(&mut self, lines: &str) -> u64 {
        status(&self.post_raw(Some("application/x-ndjson"), lines.as_bytes()).await)
    }

    /// The next message as text, fetched if none waits; `None` if the session is gone.
    ///
    /// The messages of version 2 must be strings, those of version 1 objects.
    pub async fn next(&mut self) -> Option<String> {
        while self.fetched.is_empty() {
            let answer = self.fetch().await;
            match answer["status"].as_u64() {
                Some(200) => self.take(&answer),
                Some(204) => {}
                Some(500) => return None,
                _ => panic!("no answer to a fetch: {answer}"),
            }
        }
        self.fetched.pop_front()
    }

    /// Takes the messages of an answer.
    fn take(&mut self, answer: &Value) {
        assert_eq!(answer["token"], self.token, "{answer}");
        let items = answer["messages"].as_array().expect("messages");
        assert!(!items.is_empty(), "a 200 brings something");
        for item in items {
            let text = match (self.is_v2, item) {
                (true, Value::String(text)) => text.clone(),
                (false, Value::Object(_)) => item.to_string(),
                _ => panic!("not as this version has it: {item}"),
            };
            self.fetched.push_back(text);
        }
    }
}

fn status((http, body): &(u16, String)) -> u64 {
    assert_eq!(*http, 200, "{body}");
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "nothing else: {body}");
    body["status"].as_u64().expect("a status")
}

async fn say(stream: &mut TcpStream, method: &str, target: &str, headers: &str, body: &[u8]) {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.expect("a server that reads");
}

async fn heard(stream: &mut TcpStream) -> Value {
    let (status, body) = raw::answer(stream).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}
