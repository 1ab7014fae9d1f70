//! Tests of placed publications: their frames, and what is counted of them.

use std::{
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::SeqCst},
    thread,
};

use tokio::sync::oneshot;

use super::super::{
    position::Epochs,
    publication::JsonObject,
    subscriber::{Delivery, Encoders},
    testing::{ENCODERS, key, permit, publication},
};
use super::*;

fn spelled(delivery: &Delivery<'_, str>) -> Option<Frame> {
    let Delivery { topic, event, payload, .. } = delivery;
    Some(Frame::Text(format!("{topic} {event} {payload}").into()))
}

fn spelled_bytes(delivery: &Delivery<'_, [u8]>) -> Option<Frame> {
    let Delivery { topic, event, payload, .. } = delivery;
    let names = format!("{topic} {event} ");
    (*topic != "huge").then(|| Frame::Binary([names.as_bytes(), payload].concat().into()))
}

fn place(publication: Publication) -> (Placed, Option<oneshot::Receiver<usize>>) {
    place_in(publication, Backlog::new(1 << 20))
}

fn place_in(
    publication: Publication,
    backlog: Backlog,
) -> (Placed, Option<oneshot::Receiver<usize>>) {
    let (accepted, skipped) = Accepted::new(publication, Instant::now(), Some(permit().into()));
    let Accepted { publication, flight } = accepted;
    let epoch = Epochs::new().give(&key(1, "public"));
    let position = StreamPosition { epoch, offset: 1 };
    (Placed::new(position, publication, flight, backlog), skipped)
}

fn placed(destination: &str) -> Placed {
    place(publication(&key(1, "public"), destination, "msg")).0
}

fn placed_bytes(destination: &str) -> (Placed, oneshot::Receiver<usize>) {
    let payload = Payload::Bytes(b"\x00\xff".as_slice().into());
    let publication = Publication { payload, ..publication(&key(1, "public"), destination, "msg") };
    let (placed, skipped) = place(publication);
    (placed, skipped.expect("a publication of bytes counts the skipped"))
}

#[test]
fn a_name_is_bare_where_it_was_published_and_else_prefixed_by_where_it_came_from() {
    for (level, destination, expected) in [
        (Level::Scope, "room", "t room:msg {}"),
        (Level::Channel, "room", "t msg {}"),
        (Level::Scope, "#general", "t msg {}"),
        (Level::Channel, "#general", "t #general:msg {}"),
    ] {
        let format = Format::of(
            const { &Encoders { slot: 0, encode: spelled, encode_bytes: None, ..ENCODERS } },
        );
        let frame = placed(destination).frame(format, level, &"t".into());
        assert_eq!(frame, Some(Frame::Text(expected.into())), "{level:?} {destination}");
    }
}

#[test]
fn bytes_go_to_clients_that_can_receive_them_even_where_a_slot_is_shared() {
    let text = Format::of(
        const { &Encoders { slot: 0, encode: spelled, encode_bytes: None, ..ENCODERS } },
    );
    let both = Format::of(
        const { &Encoders { slot: 0, encode: spelled, encode_bytes: Some(spelled_bytes), ..ENCODERS } },
    );
    for (level, destination, expected) in [
        (Level::Scope, "room", b"t room:msg \x00\xff".as_slice()),
        (Level::Channel, "room", b"t msg \x00\xff"),
        (Level::Scope, "#general", b"t msg \x00\xff"),
        (Level::Channel, "#general", b"t #general:msg \x00\xff"),
    ] {
        let (placed, _) = placed_bytes(destination);
        assert_eq!(placed.frame(text, level, &"t".into()), None, "{level:?} {destination}");
        let expected = Frame::Binary(expected.into());
        assert_eq!(
            placed.frame(both, level, &"t".into()),
            Some(expected),
            "{level:?} {destination}"
        );
    }
    assert_eq!(placed_bytes("room").0.frame(both, Level::Scope, &"huge".into()), None);
}

#[test]
fn a_large_payload_of_general_is_kept_once_for_all_channels() {
    let format = Format::of(
        const {
            &Encoders {
                slot: 0,
                encode: |delivery| {
                    let Delivery { topic, event, payload, .. } = delivery;
                    Some(Frame::Text(format!("{topic} {event} {payload}.").into()))
                },
                tail_bytes: Some(1),
                encode_bytes: Some(spelled_bytes),
                ..ENCODERS
            }
        },
    );
    for size in [SPLIT_BYTES_MIN - 1, SPLIT_BYTES_MIN] {
        let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(size - 8));
        let object = Payload::from(JsonObject::parse(&text).expect("an object"));
        let bytes = Payload::Bytes(vec![0xff; size].into());
        for (payload, is_text) in [(object, true), (bytes, false)] {
            let publication =
                Publication { payload, ..publication(&key(1, "public"), "#general", "msg") };
            let (placed, _) = place(publication);
            let frames = ["a", "b"].map(|topic| {
                let topic = topic.into();
                let frame = placed.frame(format, Level::Channel, &topic).expect("a frame");
                let whole = placed.encode(format, Level::Channel, &topic);
                assert_eq!(frame.size_bytes(), whole.as_ref().map_or(0, Frame::size_bytes));
                assert_eq!(Some(frame.clone().into_whole()), whole, "{size} {is_text}");
                frame
            });
            let bodies: Vec<_> = frames
                .iter()
                .filter_map(|frame| match frame {
                    Frame::Split(split) => Some(split.body.as_ptr()),
                    _ => None,
                })
                .collect();
            match bodies[..] {
                [] => assert!(size < SPLIT_BYTES_MIN),
                [one, other] => assert!(size >= SPLIT_BYTES_MIN && one == other),
                _ => panic!("only one of two frames is split"),
            }
        }
    }
    let huge = "huge".into();
    let (placed, _) = placed_bytes("#general");
    assert_eq!(placed.frame(format, Level::Channel, &huge), None);
}

#[test]
fn a_payload_that_channels_share_counts_once_in_the_backlog() {
    let (text, body) = (format!(r#"{{"a":"{}"}}"#, "x".repeat(10_000)), 10_000);
    let payload = Payload::from(JsonObject::parse(&text).expect("an object"));
    let format =
        Format::of(const { &Encoders { tail_bytes: Some(0), encode: spelled, ..ENCODERS } });
    for (bytes_max, is_exceeded) in [(body, true), (body + 1_000, false)] {
        let publication = Publication {
            payload: payload.clone(),
            ..publication(&key(1, "public"), "#general", "msg")
        };
        let (placed, _) = place_in(publication, Backlog::new(bytes_max));
        let topics = (0..20).map(|nth| ByteString::from(format!("topic-{nth}")));
        let frames: Vec<_> =
            topics.map(|topic| placed.frame(format, Level::Channel, &topic)).collect();
        assert_eq!(placed.backlog.is_exceeded(), is_exceeded, "{bytes_max}");
        drop(frames);
    }
}

#[test]
fn skipped_subscribers_are_counted_when_the_last_fan_out_has_let_go() {
    let (placed, mut skipped) = placed_bytes("room");
    let placed = Arc::new(placed);
    let other = placed.clone();
    for (placed, subscribers) in [(&placed, 2), (&other, 3), (&placed, 0)] {
        placed.skip(subscribers);
    }
    drop(placed);
    assert!(skipped.try_recv().is_err(), "one fan-out still holds it");
    drop(other);
    assert_eq!(skipped.try_recv(), Ok(5));
    let (_, counted) = place(publication(&key(1, "public"), "room", "msg"));
    assert!(counted.is_none(), "every format can carry an object");
}

#[test]
fn a_topic_under_another_name_is_spelled_by_that_name() {
    let format = Format::of(
        const { &Encoders { slot: 0, encode: spelled, encode_bytes: Some(spelled_bytes), ..ENCODERS } },
    );
    for is_bytes in [false, true] {
        let (placed, payload) = match is_bytes {
            true => (placed_bytes("room").0, "\0\u{ff}"),
            false => (placed("room"), "{}"),
        };
        for topic in ["old", "new", "old"] {
            let frame = placed.frame(format, Level::Scope, &topic.into());
            let expected = format!("{topic} room:msg {payload}");
            let expected = match is_bytes {
                // Each of these characters takes one byte.
                true => Frame::Binary(expected.chars().map(|c| c as u8).collect()),
                false => Frame::Text(expected.into()),
            };
            assert_eq!(frame, Some(expected));
        }
    }
}

static CALLS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

fn counted<const SLOT: usize>(delivery: &Delivery<'_, str>) -> Option<Frame> {
    CALLS[SLOT].fetch_add(1, SeqCst);
    spelled(delivery)
}

fn counted_bytes(delivery: &Delivery<'_, [u8]>) -> Option<Frame> {
    CALLS[1].fetch_add(1, SeqCst);
    spelled_bytes(delivery)
}

#[test]
fn e117_a_thousand_subscribers_share_one_encoding_per_version() {
    let formats = [
        Format::of(
            const { &Encoders { slot: 0, encode: counted::<0>, encode_bytes: None, ..ENCODERS } },
        ),
        Format::of(
            const {
                &Encoders {
                    slot: 1,
                    encode: counted::<1>,
                    encode_bytes: Some(counted_bytes),
                    ..ENCODERS
                }
            },
        ),
    ];
    let mut expected = [0; 2];
    for (level, destination, is_bytes) in [
        (Level::Scope, "room", false),
        (Level::Channel, "room", false),
        (Level::Scope, "#general", false),
        (Level::Scope, "room", true),
        (Level::Channel, "room", true),
    ] {
        let placed = Arc::new(match is_bytes {
            true => placed_bytes(destination).0,
            false => placed(destination),
        });
        expected[0] += usize::from(!is_bytes);
        expected[1] += 1;
        thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..250 {
                        for format in formats {
                            placed.frame(format, level, &"t".into());
                        }
                    }
                });
            }
        });
        let calls = [CALLS[0].load(SeqCst), CALLS[1].load(SeqCst)];
        assert_eq!(calls, expected, "{level:?} {destination} {is_bytes}");
    }
}
