//! All clients and trigger connections, and the handling of the bytes that arrive for them. This module does no I/O:
//! it collects the bytes to write, and [`hall`](super::hall) writes them.

use std::{collections::VecDeque, time::Instant};

use serde_json::Value;

use super::{
    client::{Client, Heard, State, Version},
    doors::Doors,
    events::{Event, Fault, PublishedEvents},
    tally::Tally,
};
use crate::{crowd::Arrival, wire};

/// The purpose of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    /// A client's WebSocket.
    Socket(usize),
    /// The connection on which a client fetches.
    Poller(usize),
    /// The connection on which it sends.
    Poster(usize),
    /// A keep-alive connection of the web application.
    Line,
}

/// How a client is connected; connections are named by their number in the crowd.
pub(super) enum Carrier {
    Socket { member: usize },
    Poll(Polls),
}

/// A client's long-poll session.
pub(super) struct Polls {
    pub(super) poller: usize,
    pub(super) poster: usize,
    token: String,
    /// Messages that wait until the one before them is answered; a few, for clients say little.
    waiting: VecDeque<String>,
    is_posting: bool,
}

impl Polls {
    pub(super) fn new(poller: usize, poster: usize) -> Self {
        let (token, waiting) = (String::new(), VecDeque::new());
        Self { poller, poster, token, waiting, is_posting: false }
    }
}

/// Everybody.
pub(super) struct Audience {
    pub(super) clients: Vec<(Client, Carrier)>,
    /// By the connection's number in the crowd.
    pub(super) roles: Vec<Role>,
    /// The web application's connections.
    pub(super) lines: Vec<usize>,
    pub(super) events: PublishedEvents,
    pub(super) tally: Tally,
    pub(super) doors: Doors,
    /// The bytes to write, each with its connection.
    pub(super) outgoing: Vec<(usize, Vec<u8>)>,
    pub(super) began: Instant,
}

impl Audience {
    fn since_began_us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }

    /// Looks at what arrived.
    pub(super) fn arrived(&mut self, arrival: &Arrival<'_>) {
        let Arrival { member, at, payload } = *arrival;
        match self.roles[member] {
            Role::Socket(nth) if self.clients[nth].0.state == State::Opening => {
                self.switched(nth, payload);
            }
            Role::Socket(nth) => self.heard(nth, payload, at),
            Role::Poller(nth) => self.fetched(nth, payload, at),
            Role::Poster(nth) => self.posted(nth, payload),
            Role::Line => self.triggered(payload),
        }
    }

    /// A handshake is answered.
    fn switched(&mut self, nth: usize, answer: &[u8]) {
        match answer.starts_with(b"HTTP/1.1 101") {
            true => self.join(nth, self.clients[nth].0.channel),
            false => self.tally.failed(&format!("a handshake: {}", shown(answer))),
        }
    }

    fn join(&mut self, nth: usize, channel: usize) {
        let join = self.clients[nth].0.join(channel);
        self.say(nth, join);
    }

    /// Has a client say something.
    pub(super) fn say(&mut self, nth: usize, message: String) {
        match &mut self.clients[nth].1 {
            Carrier::Socket { member } => {
                self.outgoing.push((*member, wire::client_frame(&message)));
            }
            Carrier::Poll(polls) => {
                polls.waiting.push_back(message);
                self.post_next(nth);
            }
        }
    }

    fn post_next(&mut self, nth: usize) {
        let (client, Carrier::Poll(polls)) = &mut self.clients[nth] else { return };
        if polls.is_posting {
            return;
        }
        if let Some(message) = polls.waiting.pop_front() {
            polls.is_posting = true;
            let post = self.doors.post(client.version, &polls.token, &message);
            self.outgoing.push((polls.poster, post));
        }
    }

    /// A message is answered.
    fn posted(&mut self, nth: usize, answer: &[u8]) {
        if body(answer).and_then(|body| body.get("status")?.as_u64()) != Some(200) {
            self.tally.failed(&format!("a message over long-poll: {}", shown(answer)));
        }
        if let Carrier::Poll(polls) = &mut self.clients[nth].1 {
            polls.is_posting = false;
        }
        self.post_next(nth);
    }

    /// A fetch is answered; the next one follows at once.
    fn fetched(&mut self, nth: usize, answer: &[u8], at: Instant) {
        let body = body(answer).unwrap_or_default();
        let is_opening = self.clients[nth].0.state == State::Opening;
        match body.get("status").and_then(Value::as_u64) {
            Some(410) if is_opening => self.opened(nth, &body),
            Some(200 | 204) => {
                for message in body.get("messages").and_then(Value::as_array).into_iter().flatten()
                {
                    match message {
                        Value::String(text) => self.heard(nth, text.as_bytes(), at),
                        object => self.heard(nth, object.to_string().as_bytes(), at),
                    }
                }
            }
            _ => return self.tally.failed(&format!("a fetch: {}", shown(answer))),
        }
        let (client, Carrier::Poll(polls)) = &self.clients[nth] else { return };
        let fetch = self.doors.fetch(client.version, &polls.token);
        self.outgoing.push((polls.poller, fetch));
    }

    fn opened(&mut self, nth: usize, body: &Value) {
        let token = body.get("token").and_then(Value::as_str).unwrap_or_default();
        if let Carrier::Poll(polls) = &mut self.clients[nth].1 {
            token.clone_into(&mut polls.token);
        }
        self.join(nth, self.clients[nth].0.channel);
    }

    /// A trigger is answered.
    fn triggered(&mut self, answer: &[u8]) {
        if !answer.starts_with(b"HTTP/1.1 200") {
            self.tally.failed(&format!("a trigger: {}", shown(answer)));
        }
    }

    /// A client hears a message.
    fn heard(&mut self, nth: usize, message: &[u8], at: Instant) {
        match self.clients[nth].0.hear(message, &self.events) {
            Heard::Event(event, judged) => {
                self.delivered(nth, event, at);
                if let Err(fault) = judged {
                    let client = &self.clients[nth].0;
                    let what = format!("client {nth} of {}, {:?}", client.channel, client.state);
                    self.tally.fault(fault, &format!("{event:?} to {what}"));
                }
            }
            Heard::Joined => self.tally.joins += 1,
            Heard::Left => self.join(nth, self.elsewhere(nth)),
            Heard::Alive | Heard::Nothing => {}
            Heard::Refused => self.tally.failed(&format!("client {nth}: {}", shown(message))),
        }
    }

    fn delivered(&mut self, nth: usize, event: Event, at: Instant) {
        let latency_us = self.since_began_us(at).saturating_sub(event.sent_us);
        let histogram = match self.clients[nth].1 {
            Carrier::Socket { .. } => &mut self.tally.sockets_us,
            Carrier::Poll(_) => &mut self.tally.polls_us,
        };
        histogram.saturating_record(latency_us);
        self.tally.lately_us.saturating_record(latency_us);
    }

    /// Where a client goes next: no channel fills up, none runs empty.
    fn elsewhere(&self, nth: usize) -> usize {
        let channels = self.events.channels();
        (self.clients[nth].0.channel + 1 + nth % 7) % channels
    }

    /// How many deliveries are still to come.
    pub(super) fn awaited(&self) -> u64 {
        self.clients.iter().map(|(client, _)| client.awaited(&self.events)).sum()
    }

    /// Counts what is still to come as missing.
    pub(super) fn note_missing(&mut self) {
        for (nth, (client, _)) in self.clients.iter().enumerate() {
            match client.awaited(&self.events) {
                0 => {}
                missing => {
                    let what = format!("the last {missing} to client {nth}");
                    self.tally.fault(Fault::Missing(missing), &what);
                }
            }
        }
    }
}

/// The body of an answer.
fn body(answer: &[u8]) -> Option<Value> {
    serde_json::from_slice(answer.get(wire::answer(answer)?)?).ok()
}

/// The beginning of what somebody was told.
fn shown(said: &[u8]) -> String {
    String::from_utf8_lossy(said.get(..said.len().min(300)).unwrap_or_default()).into_owned()
}

/// The version of the n-th client: they take turns.
pub(super) fn version(nth: usize) -> Version {
    if nth.is_multiple_of(2) { Version::V2 } else { Version::V1 }
}
