//! Version 2 of the wire in binary frames: lengths, names, then the payload to the end.

use bytes::Bytes;
use herald::{
    broker::{
        Sender,
        position::StreamPosition,
        subscriber::{Delivery, EncodeBytes, Frame},
    },
    metrics::labels::Transport,
    phoenix::message::{ClientMessage, ClientPayload, Version},
    session::Received,
};

use super::text::REF_BYTES_MAX;

/// The bytes are a binary frame.
pub fn check(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let received = Received::Binary(frame.clone());
    let read = Version::V2.decode(&received, REF_BYTES_MAX);
    match push(data) {
        None => assert!(read.is_err(), "what is no push was taken: {read:?}"),
        Some((names, payload)) => {
            let message = read.expect("a push is taken");
            compare(&message, names);
            untouched(&frame, &message, payload);
            broadcast(names[2], names[3], payload);
        }
    }
    as_text(data, frame);
}

/// A push read by hand: join_ref, ref, topic and event, then the payload.
fn push(data: &[u8]) -> Option<([&str; 4], &[u8])> {
    let (head, mut rest) = data.split_at_checked(5)?;
    if head[0] != 0 {
        return None;
    }
    let mut names = [""; 4];
    for (name, length) in names.iter_mut().zip(&head[1..]) {
        let (bytes, after) = rest.split_at_checked(usize::from(*length))?;
        *name = str::from_utf8(bytes).ok()?;
        rest = after;
    }
    let refs_fit = names[..2].iter().all(|name| name.len() <= REF_BYTES_MAX);
    refs_fit.then_some((names, rest))
}

fn compare(message: &ClientMessage, [join_ref, reference, topic, event]: [&str; 4]) {
    let spelled = |text: &str| serde_json::to_string(text).expect("text is JSON");
    assert_eq!(message.join_ref.as_json(), spelled(join_ref), "join_ref");
    assert_eq!(message.reference.as_json(), spelled(reference), "ref");
    assert_eq!(message.topic.as_text(), Some(topic), "topic");
    assert_eq!(message.event.as_text(), Some(event), "event");
}

/// The payload is the end of the frame: not like it, but that very memory.
fn untouched(frame: &Bytes, message: &ClientMessage, payload: &[u8]) {
    let ClientPayload::Bytes(read) = &message.payload else { panic!("bytes stay bytes") };
    assert_eq!(read, payload, "payload");
    let at = frame.len() - payload.len();
    assert!(read.is_empty() || read.as_ptr() == frame[at..].as_ptr(), "nothing was copied");
}

/// A push can be broadcast to clients that can receive bytes, if each of its lengths fits into a byte.
fn broadcast(topic: &str, event: &str, payload: &[u8]) {
    for (version, transport) in [
        (Version::V1, Transport::WebSocket),
        (Version::V1, Transport::LongPoll),
        (Version::V2, Transport::LongPoll),
    ] {
        assert!(version.format(transport, true).encode_bytes.is_none(), "no bytes for {version:?}");
    }
    let format = Version::V2.format(Transport::WebSocket, false);
    let encode = format.encode_bytes.expect("a binary form");
    spell(encode, topic, event, payload);
    let long = topic.repeat(2);
    spell(encode, &long, event, payload);
    spell(encode, topic, &long, payload);
}

fn spell(encode: EncodeBytes, topic: &str, event: &str, payload: &[u8]) {
    let lengths = (u8::try_from(topic.len()), u8::try_from(event.len()));
    let expected = match lengths {
        (Ok(t), Ok(e)) => {
            Some([&[2, t, e], topic.as_bytes(), event.as_bytes(), payload].concat().into())
        }
        _ => None,
    };
    let position = StreamPosition::default();
    let frame = encode(&Delivery { topic, event, payload, position, sender: Sender::Trigger });
    assert_eq!(frame, expected.map(Frame::Binary), "a broadcast of {topic:?} {event:?}");
}

/// Version 1 reads binary frames as it reads text.
fn as_text(data: &[u8], frame: Bytes) {
    let shown = |message: Received| format!("{:?}", Version::V1.decode(&message, REF_BYTES_MAX));
    let read = shown(Received::Binary(frame));
    match str::from_utf8(data) {
        Ok(text) => assert_eq!(read, shown(Received::Text(text.into()))),
        Err(_) => assert_eq!(read, "Err(Message)"),
    }
}
