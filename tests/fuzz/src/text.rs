//! Both text formats are read as the plain rule says, and a message that was read survives being
//! written and read once more.

use herald::{
    broker::{
        JsonObject, Sender,
        position::StreamPosition,
        subscriber::{Delivery, Frame},
    },
    metrics::labels::Transport,
    phoenix::message::{ClientMessage, ClientPayload, Label, Outgoing, Ref, Version},
    session::Received,
};
use serde_json::value::RawValue;

/// The longest ref that is taken, in bytes of its text.
pub(crate) const REF_BYTES_MAX: usize = 64;

/// The longest topic that is taken, in bytes of its JSON.
const TOPIC_BYTES_MAX: usize = 1_532;

/// A message as JSON parts that nobody has looked into.
pub(crate) struct Parts {
    pub(crate) join_ref: Option<Box<RawValue>>,
    pub(crate) reference: Box<RawValue>,
    pub(crate) topic: Box<RawValue>,
    pub(crate) event: Box<RawValue>,
    pub(crate) payload: Box<RawValue>,
}

/// A message as Herald should have read it, all as JSON.
struct Expected<'a> {
    join_ref: String,
    reference: String,
    topic: String,
    event: String,
    payload: &'a str,
}

/// `parts` is what a plain reading of `text` finds.
pub(crate) fn check(version: Version, text: &str, parts: Option<Parts>) {
    let received = Received::Text(text.into());
    let read = version.decode(&received, REF_BYTES_MAX);
    let Some(expected) = parts.as_ref().and_then(Parts::expected) else {
        assert!(read.is_err(), "what breaks the rule was taken: {read:?}");
        return;
    };
    let message = read.expect("what keeps to the rule is taken");
    compare(&message, &expected);
    repeat(version, &message);
    deliver(version, &message);
}

impl Parts {
    fn expected(&self) -> Option<Expected<'_>> {
        Some(Expected {
            join_ref: match &self.join_ref {
                Some(join_ref) => scalar(join_ref)?,
                None => "null".to_owned(),
            },
            reference: scalar(&self.reference)?,
            topic: label(&self.topic).filter(|_| self.topic.get().len() <= TOPIC_BYTES_MAX)?,
            event: label(&self.event)?,
            payload: self.payload.get(),
        })
    }
}

/// A ref in its one spelling; none if it is nested or long.
fn scalar(raw: &RawValue) -> Option<String> {
    let json = raw.get();
    match json.chars().next()? {
        '{' | '[' => None,
        '"' => {
            let text: String = serde_json::from_str(json).ok()?;
            (text.len() <= REF_BYTES_MAX).then(|| spelled(&text))
        }
        _ => (json.len() <= REF_BYTES_MAX).then(|| json.to_owned()),
    }
}

/// A topic or an event: text in its one spelling, anything else as it came.
fn label(raw: &RawValue) -> Option<String> {
    match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => Some(spelled(&text)),
        Err(_) if raw.get().starts_with('"') => None,
        Err(_) => Some(raw.get().to_owned()),
    }
}

fn spelled(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

fn compare(message: &ClientMessage, expected: &Expected<'_>) {
    assert_eq!(message.join_ref.as_json(), expected.join_ref, "join_ref");
    assert_eq!(message.reference.as_json(), expected.reference, "ref");
    assert_eq!(message.topic.to_json(), expected.topic, "topic");
    assert_eq!(message.event.to_json(), expected.event, "event");
    assert_eq!(payload(message), expected.payload, "payload");
    for reference in [&message.join_ref, &message.reference] {
        // An escape is at most six bytes for one.
        assert!(reference.as_json().len() <= 2 + 6 * REF_BYTES_MAX, "refs are bounded");
    }
}

fn payload<'a>(message: &ClientMessage<'a>) -> &'a str {
    match &message.payload {
        ClientPayload::Json(json) => json.get(),
        ClientPayload::Bytes(bytes) => panic!("{bytes:?} from text"),
    }
}

/// A message to one client holds the values from which it was made.
fn repeat(version: Version, message: &ClientMessage) {
    let event = message.event.as_text().unwrap_or("an event that is no text");
    let ClientMessage { join_ref, reference, topic, .. } = message;
    let outgoing = Outgoing { join_ref, reference, topic, event, payload: payload(message) };
    let join_ref = match version {
        // It has no place for it.
        Version::V1 => Ref::null(),
        Version::V2 => join_ref.clone(),
    };
    let expected = Expected {
        join_ref: join_ref.as_json().to_owned(),
        reference: reference.as_json().to_owned(),
        topic: topic.to_json(),
        event: spelled(event),
        payload: payload(message),
    };
    compare_read_back(version, version.encode(&outgoing), &expected);
}

/// So does what goes out to many, over either transport.
fn deliver(version: Version, message: &ClientMessage) {
    let (Some(topic), Some(event)) = (message.topic.as_text(), message.event.as_text()) else {
        return;
    };
    let ClientPayload::Json(raw) = &message.payload else { return };
    let Ok(object) = JsonObject::from_raw(raw) else { return };
    let position = StreamPosition::default();
    for (transport, has_positions) in [
        (Transport::WebSocket, false),
        (Transport::WebSocket, true),
        (Transport::LongPoll, false),
        (Transport::LongPoll, true),
    ] {
        let encode = version.format(transport, has_positions).encode;
        let (payload, sender) = (object.as_str(), Sender::Trigger);
        let frame = encode(&Delivery { topic, event, payload, position, sender });
        let frame = frame.expect("every object has a frame");
        let reference = match has_positions {
            true => format!("\"{position}\""),
            false => "null".to_owned(),
        };
        let expected = Expected {
            join_ref: "null".to_owned(),
            reference,
            topic: Label::from(topic).to_json(),
            event: Label::from(event).to_json(),
            payload: raw.get(),
        };
        compare_read_back(version, frame, &expected);
    }
}

fn compare_read_back(version: Version, frame: Frame, expected: &Expected<'_>) {
    let Frame::Text(text) = frame else { panic!("{frame:?} for text") };
    let received = Received::Text(text);
    let message = version.decode(&received, REF_BYTES_MAX);
    compare(&message.expect("what Herald writes can be read"), expected);
}
