//! The addresses to which clients connect, and the spelling of their requests.

use std::rc::Rc;

use super::client::{Client, Version};
use crate::{subject::Subject, wire};

/// The doors of a server.
pub(super) struct Doors {
    host: String,
    /// The path of its WebSocket in version 2, with the query.
    path: String,
    /// The app whose topics are joined.
    app: Rc<str>,
}

impl Doors {
    pub(super) fn of(subject: &Subject) -> Self {
        let target = subject.target();
        let (path, app) = (target.path.clone(), target.app.as_str().into());
        Self { host: subject.address.to_string(), path, app }
    }

    /// Somebody who comes in to hear a channel.
    pub(super) fn client(&self, version: Version, channel: usize) -> Client {
        Client::new(self.app.clone(), version, channel)
    }

    /// Asks for a WebSocket.
    pub(super) fn upgrade(&self, version: Version) -> Vec<u8> {
        wire::upgrade(&self.socket_path(version), &self.host).into_bytes()
    }

    /// Opens a long-poll session.
    pub(super) fn open(&self, version: Version) -> Vec<u8> {
        self.fetch(version, "")
    }

    /// Fetches what waits for a session.
    pub(super) fn fetch(&self, version: Version, token: &str) -> Vec<u8> {
        let (path, host) = (self.poll_path(version), &self.host);
        format!("GET {path}&token={token} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
    }

    /// Brings a session's message.
    pub(super) fn post(&self, version: Version, token: &str, message: &str) -> Vec<u8> {
        let (path, host, length) = (self.poll_path(version), &self.host, message.len());
        format!(
            "POST {path}&token={token} HTTP/1.1\r\nHost: {host}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{message}"
        )
        .into_bytes()
    }

    fn socket_path(&self, version: Version) -> String {
        match version {
            Version::V1 => self.path.replace("vsn=2.0.0", "vsn=1.0.0"),
            Version::V2 => self.path.clone(),
        }
    }

    fn poll_path(&self, version: Version) -> String {
        self.socket_path(version).replace("/websocket", "/longpoll")
    }
}
