//! Version 2 in binary frames: each name is preceded by its length in one byte, and the payload
//! extends to the end.
//!
//! It follows section 4.3 of the protocol document. Clients send only kind 0. Of the kinds that a server may
//! send, Herald uses only kind 2, a broadcast. Neither version 1 nor long-poll has binary frames.

use bytes::{BufMut, Bytes, BytesMut};

use crate::broker::subscriber::{Delivery, Frame};

use super::message::{ClientMessage, ClientPayload, Label, Malformed, Ref};

/// The kind of a client's push.
const PUSH: u8 = 0;

/// The kind of a broadcast to a topic.
const BROADCAST: u8 = 2;

/// Decodes a push. An empty ref is the empty string, not null. The payload is not copied.
pub(super) fn decode(frame: &Bytes, ref_bytes_max: usize) -> Result<ClientMessage<'_>, Malformed> {
    let &[PUSH, join_ref, reference, topic, event, ref rest @ ..] = &**frame else {
        return Err(Malformed::Message);
    };
    let mut rest = rest;
    Ok(ClientMessage {
        join_ref: Ref::from_text(name(&mut rest, join_ref)?, ref_bytes_max)?,
        reference: Ref::from_text(name(&mut rest, reference)?, ref_bytes_max)?,
        topic: Label::from(name(&mut rest, topic)?),
        event: Label::from(name(&mut rest, event)?),
        payload: ClientPayload::Bytes(frame.slice_ref(rest)),
    })
}

fn name<'a>(rest: &mut &'a [u8], bytes: u8) -> Result<&'a str, Malformed> {
    let (name, after) = rest.split_at_checked(bytes.into()).ok_or(Malformed::Message)?;
    *rest = after;
    str::from_utf8(name).map_err(|_| Malformed::Message)
}

/// Encodes a publication; `None` if the topic or the event has more than 255 bytes, which the broker's naming
/// rules exclude.
pub(super) fn encode_delivery(delivery: &Delivery<'_, [u8]>) -> Option<Frame> {
    let Delivery { topic, event, payload, .. } = delivery;
    let lengths = [u8::try_from(topic.len()).ok()?, u8::try_from(event.len()).ok()?];
    let mut frame = BytesMut::with_capacity(3 + topic.len() + event.len() + payload.len());
    frame.put_u8(BROADCAST);
    for part in [&lengths, topic.as_bytes(), event.as_bytes(), payload] {
        frame.put_slice(part);
    }
    Some(Frame::Binary(frame.freeze()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::broker::{Sender, position::StreamPosition};

    fn read(frame: &[u8]) -> Result<[String; 5], Malformed> {
        let frame = Bytes::copy_from_slice(frame);
        let message = decode(&frame, 64)?;
        let ClientPayload::Bytes(payload) = message.payload else { panic!("bytes stay bytes") };
        Ok([
            message.join_ref.as_json().to_owned(),
            message.reference.as_json().to_owned(),
            message.topic.to_json(),
            message.event.to_json(),
            format!("{payload:?}"),
        ])
    }

    /// A push as a client spells it.
    fn push(names: [&[u8]; 4], payload: &[u8]) -> Vec<u8> {
        let length = |name: &[u8]| u8::try_from(name.len()).expect("a short name");
        let mut frame = vec![PUSH];
        frame.extend(names.map(length));
        frame.extend(names.concat());
        frame.extend(payload);
        frame
    }

    #[test]
    fn e118_e126_a_push_is_read_with_lengths_in_bytes() {
        let worked = b"\x00\x01\x01\x08\x0312room:binbinAB";
        let accented = b"\x00\x00\x02\x0a\x0411room:caf\xc3\xa9caf\xe2";
        let long = [b'r'; 64];
        for (case, frame, expected) in [
            ("as worked out", worked.as_slice(), ["\"1\"", "\"2\"", "room:bin", "bin", "AB"]),
            ("nothing but lengths", &[0; 5], ["\"\"", "\"\"", "", "", ""]),
            (
                "UTF-8",
                &push([b"", b"9", "room:caf\u{e9}".as_bytes(), "\u{1f600}".as_bytes()], b"\xff"),
                ["\"\"", "\"9\"", "room:caf\u{e9}", "\u{1f600}", "\\xff"],
            ),
            (
                "quotes",
                &push([b"\"", b"", b"t", b"e"], b"\""),
                ["\"\\\"\"", "\"\"", "t", "e", "\\\""],
            ),
            (
                "the longest ref",
                &push([&long, b"1", b"t", b"e"], b""),
                [&format!("\"{}\"", "r".repeat(64)), "\"1\"", "t", "e", ""],
            ),
        ] {
            let [join_ref, reference, topic, event, payload] = expected;
            let expected = [
                join_ref.to_owned(),
                reference.to_owned(),
                Label::from(topic).to_json(),
                Label::from(event).to_json(),
                format!("b\"{payload}\""),
            ];
            assert_eq!(read(frame), Ok(expected), "{case}");
        }
        assert_eq!(read(accented), Err(Malformed::Message), "an event cut through a character");
    }

    #[test]
    fn e123_other_kinds_and_heads_longer_than_the_frame_are_malformed() {
        let long = [b'r'; 65];
        for (case, frame) in [
            ("nothing", b"".as_slice()),
            ("a kind alone", b"\x00"),
            ("half a head", b"\x00\x00\x00\x00"),
            ("one byte short", b"\x00\x01\x01\x08\x0312room:binbi"),
            ("lengths and no names", b"\x00\xff\xff\xff\xff"),
            ("a reply", b"\x01\x01\x01\x08\x0212room:binok"),
            ("a broadcast", b"\x02\x08\x05room:binbinbc\x07"),
            ("kind 9", b"\x09\x01\x01\x08\x0312room:binbinAB"),
            ("text", b"[null,\"1\",\"phoenix\",\"heartbeat\",{}]"),
            ("a topic that is not UTF-8", b"\x00\x01\x01\x01\x0112\xffe"),
            ("a ref that is not UTF-8", b"\x00\x01\x01\x01\x01\xff2te"),
        ] {
            assert_eq!(read(frame), Err(Malformed::Message), "{case}");
        }
        let too_long = push([b"1", &long, b"t", b"e"], b"");
        assert_eq!(read(&too_long), Err(Malformed::Ref));
    }

    #[test]
    fn e121_e126_a_broadcast_has_two_lengths_in_bytes_and_the_payload_as_it_is() {
        for (topic, event, payload, expected) in [
            ("room:bin", "binbc", b"\x07".as_slice(), b"\x02\x08\x05room:binbinbc\x07".as_slice()),
            ("room:caf\u{e9}", "\u{1f600}", b"", b"\x02\x0a\x04room:caf\xc3\xa9\xf0\x9f\x98\x80"),
            ("t", "e", b"{\"\x00\xff", b"\x02\x01\x01te{\"\x00\xff"),
        ] {
            let frame = encode_delivery(&Delivery {
                topic,
                event,
                payload,
                position: StreamPosition::default(),
                sender: Sender::Trigger,
            });
            assert_eq!(frame, Some(Frame::Binary(expected.into())), "{topic} {event}");
        }
    }

    #[test]
    fn e122_a_field_too_long_for_its_length_byte_is_not_encoded() {
        let (fits, too_long) = ("n".repeat(255), "n".repeat(256));
        for (topic, event, expected) in
            [(fits.as_str(), fits.as_str(), true), (&too_long, "e", false), ("t", &too_long, false)]
        {
            let frame = encode_delivery(&Delivery {
                topic,
                event,
                payload: b"x",
                position: StreamPosition::default(),
                sender: Sender::Trigger,
            });
            assert_eq!(frame.is_some(), expected, "{} {}", topic.len(), event.len());
        }
    }

    proptest! {
        #[test]
        fn every_push_is_decoded(
            names in prop::array::uniform4("\\PC{0,15}"),
            payload in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let frame = Bytes::from(push(names.each_ref().map(|name| name.as_bytes()), &payload));
            let message = decode(&frame, 64).expect("a push");
            let [join_ref, reference, topic, event] = names;
            prop_assert_eq!(message.join_ref, Ref::from_text(&join_ref, 64).expect("a ref"));
            prop_assert_eq!(message.reference, Ref::from_text(&reference, 64).expect("a ref"));
            prop_assert_eq!(message.topic.as_text(), Some(&*topic));
            prop_assert_eq!(message.event.as_text(), Some(&*event));
            let ClientPayload::Bytes(read) = message.payload else {
                return Err(TestCaseError::fail("bytes stay bytes"));
            };
            prop_assert_eq!(read, payload);
        }

        #[test]
        fn nothing_that_comes_in_does_harm(frame in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&Bytes::from(frame), 64);
        }

        #[test]
        fn every_broadcast_is_decoded_again(
            topic in "\\PC{0,60}",
            event in "\\PC{0,60}",
            payload in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let (payload, position) = (payload.as_slice(), StreamPosition::default());
            let (topic, event, sender) = (&*topic, &*event, Sender::Trigger);
            let delivery = Delivery { topic, event, payload, position, sender };
            let Some(Frame::Binary(frame)) = encode_delivery(&delivery) else {
                return Err(TestCaseError::fail("a frame"));
            };
            let (head, rest) = frame.split_at(3);
            let (t, rest) = rest.split_at(usize::from(head[1]));
            let (e, rest) = rest.split_at(usize::from(head[2]));
            prop_assert_eq!(head[0], BROADCAST);
            prop_assert_eq!((t, e, rest), (topic.as_bytes(), event.as_bytes(), payload));
        }
    }
}
