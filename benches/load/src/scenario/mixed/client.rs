//! One client: the messages that it sends in its version of the protocol, and the handling of those that it receives.

use std::rc::Rc;

use serde_json::Value;

use super::events::{Event, Fault, PublishedEvents, SOURCES, Span};

/// The two versions of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It is not let in yet.
    Opening,
    /// Its join is under way.
    Joining,
    Joined,
    /// Its leave is under way.
    Leaving,
}

/// The effect of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// An event, as it must be or not.
    Event(Event, Result<(), Fault>),
    /// The reply to a join.
    Joined,
    /// The reply to a leave.
    Left,
    /// The reply to a heartbeat.
    Alive,
    /// Something else that was to be expected.
    Nothing,
    /// Something that was not.
    Refused,
}

/// A client of one channel.
pub(super) struct Client {
    app: Rc<str>,
    pub(super) version: Version,
    pub(super) state: State,
    pub(super) channel: usize,
    span: Span,
    refs: u64,
    join_ref: u64,
    /// The reply that its state waits for.
    awaited: u64,
}

impl Client {
    pub(super) fn new(app: Rc<str>, version: Version, channel: usize) -> Self {
        let (state, span) = (State::Opening, Span::begin([0; SOURCES]));
        Self { app, version, state, channel, span, refs: 0, join_ref: 0, awaited: 0 }
    }

    /// Joins a channel.
    pub(super) fn join(&mut self, channel: usize) -> String {
        self.channel = channel;
        self.state = State::Joining;
        self.join_ref = self.refs + 1;
        self.awaited = self.join_ref;
        self.message(&self.topic(), "phx_join", "{}")
    }

    fn topic(&self) -> String {
        format!("public:{}:{}", self.app, name(self.channel))
    }

    /// Leaves it.
    pub(super) fn leave(&mut self) -> String {
        self.state = State::Leaving;
        self.awaited = self.refs + 1;
        self.message(&self.topic(), "phx_leave", "{}")
    }

    /// Publishes on it.
    pub(super) fn push(&mut self, event: &Event, bytes: usize) -> String {
        self.message(&self.topic(), "msg", &event.payload(bytes))
    }

    /// Says that it is still there.
    pub(super) fn heartbeat(&mut self) -> String {
        self.message("phoenix", "heartbeat", "{}")
    }

    fn message(&mut self, topic: &str, event: &str, payload: &str) -> String {
        self.refs += 1;
        let (own_ref, join_ref) = (self.refs, self.join_ref);
        match self.version {
            Version::V1 => format!(
                r#"{{"topic":"{topic}","event":"{event}","payload":{payload},"ref":"{own_ref}"}}"#
            ),
            Version::V2 if topic == "phoenix" => {
                format!(r#"[null,"{own_ref}","{topic}","{event}",{payload}]"#)
            }
            Version::V2 => {
                format!(r#"["{join_ref}","{own_ref}","{topic}","{event}",{payload}]"#)
            }
        }
    }

    /// Makes something of a message.
    pub(super) fn hear(&mut self, message: &[u8], events: &PublishedEvents) -> Heard {
        if let Some(event) = Event::read(message) {
            let is_in = matches!(self.state, State::Joined | State::Leaving);
            let judged = match is_in && event.channel == self.channel {
                true => self.span.hear(event.source, event.number),
                false => Err(Fault::Stray),
            };
            return Heard::Event(event, judged);
        }
        match self.version.read(message) {
            Some(Said { event, status, own_ref }) if event == "phx_reply" => {
                let is_awaited = own_ref == Some(self.awaited);
                self.hear_reply(is_awaited, status.as_deref() == Some("ok"), events)
            }
            // The last message of a leave.
            Some(Said { event, .. }) if event == "phx_close" => Heard::Nothing,
            _ => Heard::Refused,
        }
    }

    fn hear_reply(&mut self, is_awaited: bool, is_ok: bool, events: &PublishedEvents) -> Heard {
        match self.state {
            _ if !is_ok => Heard::Refused,
            State::Joining if is_awaited => {
                self.state = State::Joined;
                self.span = Span::begin(events.published(self.channel));
                Heard::Joined
            }
            State::Leaving if is_awaited => Heard::Left,
            _ => Heard::Alive,
        }
    }

    /// How many events it has still to hear.
    pub(super) fn awaited(&self, events: &PublishedEvents) -> u64 {
        match self.state {
            State::Joined => self.span.awaited(events.published(self.channel)),
            _ => 0,
        }
    }
}

/// A message that is no event of ours.
struct Said {
    event: String,
    own_ref: Option<u64>,
    status: Option<String>,
}

impl Version {
    fn read(self, message: &[u8]) -> Option<Said> {
        let message: Value = serde_json::from_slice(message).ok()?;
        let [own_ref, event, payload] = match self {
            Self::V1 => ["ref", "event", "payload"].map(|key| message.get(key)),
            Self::V2 => [1, 3, 4].map(|nth| message.get(nth)),
        };
        Some(Said {
            event: event?.as_str()?.to_owned(),
            own_ref: own_ref.and_then(|own_ref| own_ref.as_str()?.parse().ok()),
            status: payload.and_then(|payload| Some(payload.get("status")?.as_str()?.to_owned())),
        })
    }
}

/// The name of a channel.
pub(super) fn name(channel: usize) -> String {
    format!("m{channel}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(version: Version, own_ref: u64, status: &str) -> String {
        let payload = format!(r#"{{"status":"{status}","response":{{}}}}"#);
        match version {
            Version::V1 => format!(
                r#"{{"topic":"t","event":"phx_reply","ref":"{own_ref}","payload":{payload}}}"#
            ),
            Version::V2 => format!(r#"["1","{own_ref}","t","phx_reply",{payload}]"#),
        }
    }

    #[test]
    fn each_version_has_its_spelling() {
        let mut client = Client::new("test-app".into(), Version::V2, 2);
        assert_eq!(client.join(2), r#"["1","1","public:test-app:m2","phx_join",{}]"#);
        assert_eq!(client.heartbeat(), r#"[null,"2","phoenix","heartbeat",{}]"#);
        assert_eq!(client.leave(), r#"["1","3","public:test-app:m2","phx_leave",{}]"#);
        let mut client = Client::new("test-app".into(), Version::V1, 2);
        assert_eq!(
            client.join(2),
            r#"{"topic":"public:test-app:m2","event":"phx_join","payload":{},"ref":"1"}"#
        );
    }

    #[test]
    fn a_client_hears_events_between_its_join_and_its_leave() {
        for version in [Version::V1, Version::V2] {
            let mut events = PublishedEvents::new(1);
            let mut client = Client::new("test-app".into(), version, 0);
            let mut event = || events.publish(0, 1, 9);
            let (first, second, third) = (event(), event(), event());
            let events = PublishedEvents::new(1);
            let said = |event: Event| event.payload(64).into_bytes();
            let stray = |event| Heard::Event(event, Err(Fault::Stray));
            client.join(0);
            assert_eq!(client.hear(&said(first), &events), stray(first), "before the reply");
            assert_eq!(client.hear(reply(version, 1, "ok").as_bytes(), &events), Heard::Joined);
            assert_eq!(client.hear(&said(first), &events), Heard::Event(first, Ok(())));
            client.heartbeat();
            assert_eq!(client.hear(reply(version, 2, "ok").as_bytes(), &events), Heard::Alive);
            client.leave();
            assert_eq!(client.hear(&said(second), &events), Heard::Event(second, Ok(())));
            assert_eq!(client.hear(reply(version, 3, "ok").as_bytes(), &events), Heard::Left);
            client.join(0);
            assert_eq!(client.hear(&said(third), &events), stray(third), "after it had left");
        }
    }

    #[test]
    fn a_refusal_is_known() {
        for version in [Version::V1, Version::V2] {
            let events = PublishedEvents::new(1);
            let mut client = Client::new("test-app".into(), version, 0);
            client.join(0);
            assert_eq!(client.hear(reply(version, 1, "error").as_bytes(), &events), Heard::Refused);
            assert_eq!(client.hear(b"nonsense", &events), Heard::Refused);
        }
    }
}
