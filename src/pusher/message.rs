//! The messages of clients.
//!
//! They follow sections 3.1, 5.2, 8.3 and 9.1 of the document of Pusher's protocol. The `data` of a
//! command is an object, or a string that holds one. A message that cannot be read is answered with an
//! error, and the connection stays open.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The prefix of the events that clients may publish.
const CLIENT: &str = "client-";

/// The prefixes of events that are reserved for the server and for the commands of the protocol.
const OWN: [&str; 2] = ["pusher:", "pusher_internal:"];

/// A message of a client.
#[derive(Debug)]
pub enum PusherMessage<'a> {
    /// The client asks the server for a sign of life.
    Ping,
    /// The client answers the server's ping.
    Pong,
    /// The client subscribes to a channel.
    Subscribe(Subscribe),
    /// The client unsubscribes from this channel.
    Unsubscribe(String),
    /// The client signs a user in.
    SignIn(SignIn),
    /// The client publishes an event.
    Event(ClientEvent<'a>),
}

/// The data of a client's message that subscribes.
#[derive(Debug, Default, PartialEq)]
pub struct Subscribe {
    /// The channel's name.
    pub channel: String,
    /// The application's signature, `<key>:<hex>`; empty if there is none.
    pub auth: String,
    /// The data that the application signed with the channel.
    pub channel_data: TextField,
}

/// The data of a client's message that signs in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SignIn {
    /// The application's signature, `<key>:<hex>`; empty if there is none.
    pub auth: String,
    /// The user, as the application signed it.
    pub user_data: String,
}

/// An event that a client publishes.
#[derive(Debug)]
pub struct ClientEvent<'a> {
    /// The event's name, with the prefix `client-`.
    pub event: Cow<'a, str>,
    /// The channel's name.
    pub channel: String,
    /// The event's data.
    pub data: &'a RawValue,
}

/// The reason why a message cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageFault {
    /// The message is not a JSON object, or has a field twice.
    #[error("a message must be a JSON object that names each of its fields once")]
    NotAnObject,
    /// The field `event` is missing, or not a string.
    #[error("a message must have an event, which is a string")]
    NoEvent,
    /// The message is a command that does not exist.
    #[error("{0:?} is not a command of clients")]
    Unsupported(String),
    /// The event does not have the prefix `client-`.
    #[error("the names of client events begin with client-")]
    NotAClientEvent,
    /// A field is missing, or has another type.
    #[error("{command} needs {field}, which is {kind}")]
    Missing {
        /// The command.
        command: &'static str,
        /// The field.
        field: &'static str,
        /// The type that the field must have.
        kind: &'static str,
    },
}

/// A message whose data has not been parsed yet.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    channel: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

/// The data of a command.
#[derive(Default, Deserialize)]
struct CommandData {
    #[serde(default)]
    channel: TextField,
    #[serde(default)]
    auth: TextField,
    #[serde(default)]
    channel_data: TextField,
    #[serde(default)]
    user_data: TextField,
}

/// A field that is used only if it is a string.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum TextField {
    /// The field is a string.
    Text(String),
    /// The field is missing or `null`.
    #[default]
    Absent,
    /// The field is something else.
    Other(serde::de::IgnoredAny),
}

impl TextField {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Other(_) => None,
        }
    }
}

/// Keeps `null`, which is a value that clients may publish.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(given: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(given).map(Some)
}

impl<'a> PusherMessage<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`MessageFault`].
    pub fn read(text: &'a str) -> Result<Self, MessageFault> {
        // Serde would also read a struct from an array.
        if !text.trim_start().starts_with('{') {
            return Err(MessageFault::NotAnObject);
        }
        let Envelope { event, channel, data } =
            serde_json::from_str(text).map_err(|_| MessageFault::NotAnObject)?;
        let event = event.and_then(text_of).ok_or(MessageFault::NoEvent)?;
        match &*event {
            "pusher:ping" => Ok(Self::Ping),
            "pusher:pong" => Ok(Self::Pong),
            "pusher:subscribe" => subscribe(data),
            "pusher:unsubscribe" => {
                let channel = command(data).channel.text();
                channel.map(Self::Unsubscribe).ok_or(missing("pusher:unsubscribe", "channel"))
            }
            "pusher:signin" => sign_in(data),
            own if OWN.iter().any(|prefix| own.starts_with(prefix)) => {
                Err(MessageFault::Unsupported(own.chars().take(200).collect()))
            }
            client if client.starts_with(CLIENT) => {
                let (command, kind) = ("a client event", "any JSON");
                let channel = channel.and_then(text_of).ok_or(missing(command, "channel"))?;
                let no_data = MessageFault::Missing { command, field: "data", kind };
                let data = data.ok_or(no_data)?;
                Ok(Self::Event(ClientEvent { event, channel: channel.into_owned(), data }))
            }
            _ => Err(MessageFault::NotAClientEvent),
        }
    }
}

fn subscribe(data: Option<&RawValue>) -> Result<PusherMessage<'static>, MessageFault> {
    let CommandData { channel, auth, channel_data, .. } = command(data);
    let channel = channel.text().ok_or(missing("pusher:subscribe", "channel"))?;
    let auth = auth.text().unwrap_or_default();
    Ok(PusherMessage::Subscribe(Subscribe { channel, auth, channel_data }))
}

fn sign_in(data: Option<&RawValue>) -> Result<PusherMessage<'static>, MessageFault> {
    let CommandData { auth, user_data, .. } = command(data);
    let user_data = user_data.text().ok_or(missing("pusher:signin", "user_data"))?;
    Ok(PusherMessage::SignIn(SignIn { auth: auth.text().unwrap_or_default(), user_data }))
}

fn missing(command: &'static str, field: &'static str) -> MessageFault {
    MessageFault::Missing { command, field, kind: "a string" }
}

/// The data of a command; without any field if it cannot be read.
fn command(data: Option<&RawValue>) -> CommandData {
    let Some(data) = data else { return CommandData::default() };
    match text_of(data) {
        Some(held) => object(&held),
        None => object(data.get()),
    }
}

fn object(json: &str) -> CommandData {
    // Serde would also read a struct from an array.
    let is_object = json.trim_start().starts_with('{');
    is_object.then(|| serde_json::from_str(json).ok()).flatten().unwrap_or_default()
}

/// The text that a JSON string holds; `None` for any other JSON.
fn text_of(raw: &RawValue) -> Option<Cow<'_, str>> {
    let json = raw.get();
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    match inner.contains('\\') {
        false => Some(Cow::Borrowed(inner)),
        true => serde_json::from_str(json).ok().map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> MessageFault {
        PusherMessage::read(text).expect_err(text)
    }

    #[test]
    fn p022_p023_p029_pings_and_pongs_need_no_data() {
        for text in [r#"{"event":"pusher:ping","data":{}}"#, r#" {"event":"pusher:ping"} "#] {
            assert!(matches!(PusherMessage::read(text), Ok(PusherMessage::Ping)), "{text}");
        }
        assert!(matches!(
            PusherMessage::read(r#"{"event":"pusher:pong"}"#),
            Ok(PusherMessage::Pong)
        ));
    }

    #[test]
    fn p030_p031_p032_p033_p034_p035_p049_an_unreadable_message_is_a_fault() {
        for text in ["", "x", "[]", "7", "null", r#"["pusher:ping",null,null]"#, "{", "{}x"] {
            assert_eq!(fault(text), MessageFault::NotAnObject, "{text}");
        }
        assert_eq!(fault(r#"{"event":"a","event":"b"}"#), MessageFault::NotAnObject);
        for text in ["{}", r#"{"event":7}"#, r#"{"event":null}"#, r#"{"event":{}}"#] {
            assert_eq!(fault(text), MessageFault::NoEvent, "{text}");
        }
        for name in ["pusher:foo", "pusher_internal:member_added", "pusher:error"] {
            let expected = MessageFault::Unsupported(name.into());
            assert_eq!(fault(&format!(r#"{{"event":"{name}","data":{{}}}}"#)), expected);
        }
        for name in ["foo", "client", "", "Client-x"] {
            let text = format!(r#"{{"event":"{name}","channel":"c","data":1}}"#);
            assert_eq!(fault(&text), MessageFault::NotAClientEvent);
        }
        for data in ["", r#","data":{}"#, r#","data":{"channel":7}"#, r#","data":"x""#] {
            let text = format!(r#"{{"event":"pusher:subscribe"{data}}}"#);
            assert_eq!(fault(&text), missing("pusher:subscribe", "channel"), "{text}");
        }
    }

    #[test]
    fn p038_the_data_of_a_command_is_an_object_or_a_text_that_holds_one() {
        let expected = Subscribe {
            channel: "presence-a".into(),
            auth: "k:h".into(),
            channel_data: TextField::Text(r#"{"user_id":"é"}"#.into()),
        };
        let object =
            r#"{"channel":"presence-a","auth":"k:h","channel_data":"{\"user_id\":\"é\"}","x":[1]}"#;
        let text = serde_json::to_string(object).expect("JSON");
        for data in [object, &text] {
            let text = format!(r#"{{"event":"pusher:subscribe","data":{data}}}"#);
            let Ok(PusherMessage::Subscribe(read)) = PusherMessage::read(&text) else {
                panic!("{text}")
            };
            assert_eq!(read, expected);
        }
        for (data, auth) in [(r#""auth":null"#, ""), (r#""auth":"""#, ""), (r#""auth":7"#, "")] {
            let text = format!(
                r#"{{"event":"pusher:subscribe","data":{{"channel":"a",{data},"channel_data":null}}}}"#
            );
            let Ok(PusherMessage::Subscribe(read)) = PusherMessage::read(&text) else {
                panic!("{text}")
            };
            let channel_data = TextField::Absent;
            let expected = Subscribe { channel: "a".into(), auth: auth.into(), channel_data };
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn p096_a_client_event_keeps_its_data_as_it_was_written_and_needs_a_channel() {
        for data in [r#"{"a" : 1.0}"#, r#""x""#, "null", "[1, 2]", "7"] {
            let text = format!(r#"{{"event":"client-e","channel":"private-a","data": {data} }}"#);
            let Ok(PusherMessage::Event(read)) = PusherMessage::read(&text) else {
                panic!("{text}")
            };
            assert_eq!(
                (&*read.event, &*read.channel, read.data.get()),
                ("client-e", "private-a", data)
            );
        }
        let text = r#"{"event":"client-e","channel":"private-a"}"#;
        assert!(matches!(fault(text), MessageFault::Missing { field: "data", .. }));
        let text = r#"{"event":"client-e","channel":7,"data":1}"#;
        assert_eq!(fault(text), missing("a client event", "channel"));
    }
}
