//! The protocols that subscribers speak, as far as the scenarios need them.

use clap::ValueEnum;

use crate::{event, payload, wire};

/// A protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// Phoenix Channels, version 2.0.
    Phoenix,
    /// Pusher Channels, version 7.
    Pusher,
}

impl Protocol {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Phoenix => "phoenix",
            Self::Pusher => "pusher",
        }
    }

    /// The path of its WebSocket on a server with the usual settings.
    pub fn path(self, key: &str) -> String {
        match self {
            Self::Phoenix => "/socket/websocket?vsn=2.0.0".to_owned(),
            Self::Pusher => {
                format!("/app/{key}?protocol=7&client=js&version=8.6.0&flash=false")
            }
        }
    }

    /// How a client names a channel that anybody may join.
    pub fn topic(self, app: &str, channel: &str) -> String {
        match self {
            Self::Phoenix => format!("public:{app}:{channel}"),
            Self::Pusher => channel.to_owned(),
        }
    }

    /// The message that joins a topic.
    pub fn join(self, topic: &str) -> String {
        match self {
            Self::Phoenix => format!(r#"["1","1","{topic}","phx_join",{{}}]"#),
            Self::Pusher => {
                format!(
                    r#"{{"event":"pusher:subscribe","data":{{"auth":"","channel":"{topic}"}}}}"#
                )
            }
        }
    }

    /// Whether the server speaks first.
    pub fn is_greeted(self) -> bool {
        self == Self::Pusher
    }

    /// Whether a message says that a join was accepted.
    pub fn is_joined(self, message: &[u8]) -> bool {
        let found: &[u8] = match self {
            Self::Phoenix => br#""status":"ok""#,
            Self::Pusher => br#""pusher_internal:subscription_succeeded""#,
        };
        memchr::memmem::find(message, found).is_some()
    }

    /// Whether a message belongs to a join that has yet to be answered, and is no refusal of it.
    pub fn may_precede_join(self, message: &[u8]) -> bool {
        // Clients of Pusher's are told how many subscribers their other channels have.
        self == Self::Pusher
            && memchr::memmem::find(message, br#""pusher_internal:subscription_count""#).is_some()
    }

    /// The message that shows the server that a client is there.
    pub fn heartbeat(self) -> &'static str {
        match self {
            Self::Phoenix => r#"[null,"2","phoenix","heartbeat",{}]"#,
            Self::Pusher => r#"{"event":"pusher:ping","data":{}}"#,
        }
    }

    /// Whether a message answers a heartbeat.
    pub fn is_beat(self, message: &[u8]) -> bool {
        match self {
            // Nothing else comes to an idle client.
            Self::Phoenix => true,
            Self::Pusher => memchr::memmem::find(message, b"pusher:pong").is_some(),
        }
    }

    /// An answer that stands for that to a join and for that to a heartbeat.
    pub fn answer(self, topic: &str) -> String {
        match self {
            Self::Phoenix => {
                format!(r#"["1","1","{topic}","phx_reply",{{"status":"ok","response":{{}}}}]"#)
            }
            Self::Pusher => format!(
                r#"{{"event":"pusher_internal:subscription_succeeded","channel":"{topic}","data":"pusher:pong"}}"#
            ),
        }
    }

    /// The message of an event with this number and a payload of this number of bytes.
    pub fn message(self, topic: &str, number: &str, payload_bytes: usize) -> String {
        match self {
            Self::Phoenix => {
                format!(r#"[null,null,"{topic}",{}]"#, event("msg", number, payload_bytes))
            }
            Self::Pusher => {
                let data = serde_json::Value::from(payload(number, payload_bytes));
                format!(r#"{{"event":"msg","channel":"{topic}","data":{data}}}"#)
            }
        }
    }

    /// The number of the event that a message carries.
    pub fn sequence(self, message: &[u8]) -> Option<u64> {
        match self {
            Self::Phoenix => wire::sequence(message),
            // The payload is JSON in a text.
            Self::Pusher => wire::number(message, br#""n\":"#),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Protocol; 2] = [Protocol::Phoenix, Protocol::Pusher];

    #[test]
    fn an_event_is_known_by_its_number_in_either_protocol() {
        for protocol in BOTH {
            let message = protocol.message(&protocol.topic("app", "bench"), "1000000007", 128);
            assert_eq!(protocol.sequence(message.as_bytes()), Some(1_000_000_007), "{message}");
            assert_eq!(protocol.sequence(b"{}"), None);
        }
    }

    #[test]
    fn the_bare_answer_stands_for_both() {
        for protocol in BOTH {
            let answer = protocol.answer("bench");
            assert!(protocol.is_joined(answer.as_bytes()) && protocol.is_beat(answer.as_bytes()));
        }
        let count = br#"{"event":"pusher_internal:subscription_count","channel":"a","data":"{}"}"#;
        assert!(!Protocol::Pusher.is_joined(count) && Protocol::Pusher.may_precede_join(count));
        assert!(!Protocol::Pusher.is_beat(count));
    }
}
