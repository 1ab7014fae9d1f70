//! A log that returns to an earlier state under the same identity, step by step.

use bytes::Bytes;

use crate::engine::{
    LogEpoch, LogPosition, NodeId,
    machine::reading::{Acknowledged, LogReading, Need, Step},
    request::{LogPlace, Range},
    wire::{self, BatchId, LogMessage},
};

const EPOCH: LogEpoch = LogEpoch(7);

fn at(offset: u64) -> LogPosition {
    LogPosition { epoch: EPOCH, offset }
}

/// A message of one record: its offset, its batch, and the batch before it.
fn bytes((offset, id, follows): (u64, u64, u64)) -> Bytes {
    let head = wire::batch_head(BatchId(id), 0, NodeId(1));
    let record = [&[0, 0, 0, 7, 0, 1, b's', 0, 0, 0, 0][..]].concat();
    wire::message(at(offset), 1, BatchId(follows), &[&head[..], &record].concat())
}

fn message(parts: (u64, u64, u64)) -> LogMessage {
    LogMessage::decode(bytes(parts)).expect("a message")
}

/// A reading of the whole log after which the next offset and the newest batch are these.
fn range(next: u64, last: u64, messages: &[(u64, u64, u64)]) -> Range {
    let place = LogPlace { epoch: EPOCH, base: 1, next, last: BatchId(last) };
    let messages = messages.iter().map(|parts| bytes(*parts)).collect();
    Range { place, before: None, has_more: false, messages }
}

/// A reading that has read the batches 11 and 12 at the offsets 1 and 2.
fn reading() -> LogReading {
    let mut reading = LogReading::new(false);
    assert!(reading.must_read());
    let (mut steps, messages) = (Vec::new(), [(1, 11, 0), (2, 12, 11)]);
    assert_eq!(reading.read(range(3, 12, &messages), &mut steps), Need::Nothing);
    assert_eq!(steps.len(), 3, "the epoch and two messages");
    reading
}

fn acknowledged(offset: u64, id: u64) -> Acknowledged {
    Acknowledged { at: at(offset), end: offset + 1, id: BatchId(id) }
}

/// Reads after the connection was made anew.
fn reread(reading: &mut LogReading, range: Range) -> (Need, Vec<Step>) {
    let mut steps = Vec::new();
    reading.disconnected();
    assert!(reading.must_read());
    (reading.read(range, &mut steps), steps)
}

#[test]
fn a_log_that_goes_on_is_read_on() {
    let (need, steps) = reread(&mut reading(), range(4, 13, &[(3, 13, 12)]));
    assert_eq!((need, steps), (Need::Nothing, vec![Step::Deliver(message((3, 13, 12)))]));
}

#[test]
fn a_log_that_grew_again_beyond_what_was_read_is_noticed() {
    let (need, steps) = reread(&mut reading(), range(4, 13, &[(3, 13, 99)]));
    assert_eq!((need, steps), (Need::Break(EPOCH), vec![]));
}

#[test]
fn a_log_that_grew_again_as_far_as_it_was_read_is_noticed() {
    assert_eq!(reread(&mut reading(), range(3, 99, &[])), (Need::Break(EPOCH), vec![]));
    assert_eq!(reread(&mut reading(), range(3, 12, &[])), (Need::Nothing, vec![]));
    let place = LogPlace { epoch: EPOCH, base: 1, next: 3, last: BatchId(99) };
    assert_eq!(reading().probed(Some(at(3)), place), Need::Break(EPOCH));
}

#[test]
fn a_log_in_which_one_batch_covers_what_was_read_and_more_is_noticed() {
    let head = wire::batch_head(BatchId(99), 0, NodeId(1));
    let covering = wire::message(at(2), 3, BatchId(11), &head);
    let grown = Range { before: Some(covering.clone()), ..range(6, 13, &[(5, 13, 99)]) };
    assert_eq!(reread(&mut reading(), grown), (Need::Break(EPOCH), vec![]));
    let covering = LogMessage::decode(covering).expect("a message");
    assert_eq!(reading().push(covering, 1, &mut Vec::new()), Need::Break(EPOCH));

    let after = |id| Range { before: Some(bytes((2, id, 11))), ..range(4, 13, &[(3, 13, 12)]) };
    assert_eq!(reread(&mut reading(), after(12)).0, Need::Nothing);
    assert_eq!(reread(&mut reading(), after(99)).0, Need::Break(EPOCH));
}

#[test]
fn a_paused_reading_notices_it_when_it_goes_on() {
    let mut reading = reading();
    reading.pause_after(&message((2, 12, 11)));
    assert_eq!(reading.push(message((2, 98, 11)), 1, &mut Vec::new()), Need::Nothing);
    assert!(reading.resume());
    let (mut steps, messages) = (Vec::new(), [(3, 99, 98)]);
    assert_eq!(reading.read(range(4, 99, &messages), &mut steps), Need::Break(EPOCH));
    assert!(steps.is_empty(), "{steps:?}");
}

#[test]
fn the_next_message_must_follow_the_last_one() {
    let mut steps = Vec::new();
    assert_eq!(reading().push(message((3, 13, 99)), 1, &mut steps), Need::Break(EPOCH));
    assert!(steps.is_empty(), "{steps:?}");
}

#[test]
fn an_acknowledged_batch_that_is_gone_breaks_the_epoch() {
    let mut behind = reading();
    assert_eq!(behind.acknowledged(acknowledged(3, 13)), Need::Nothing);
    assert_eq!(behind.reached(), Some(at(4)));
    assert_eq!(reread(&mut behind, range(3, 12, &[])), (Need::Break(EPOCH), vec![]));

    // Another batch has taken its place.
    let mut behind = reading();
    assert_eq!(behind.acknowledged(acknowledged(3, 13)), Need::Nothing);
    assert_eq!(behind.push(message((3, 99, 12)), 1, &mut Vec::new()), Need::Break(EPOCH));
    assert_eq!(behind.acknowledged(acknowledged(3, 14)), Need::Break(EPOCH));
    assert_eq!(reading().acknowledged(acknowledged(2, 14)), Need::Break(EPOCH));
    assert_eq!(reading().acknowledged(acknowledged(2, 12)), Need::Nothing, "it was delivered");
}

#[test]
fn a_reading_that_was_sent_before_an_acknowledgement_may_not_know_of_it() {
    let mut reading = reading();
    reading.disconnected();
    assert!(reading.must_read());
    assert_eq!(reading.acknowledged(acknowledged(3, 13)), Need::Nothing);
    assert_eq!(reading.read(range(3, 12, &[]), &mut Vec::new()), Need::Nothing);
    assert_eq!(reading.push(message((3, 13, 12)), 1, &mut Vec::new()), Need::Nothing);
    assert_eq!(reading.at(), Some(at(4)));
}

#[test]
fn an_epoch_that_was_acknowledged_and_is_gone_is_missed() {
    let mut reading = reading();
    let later = LogPosition { epoch: LogEpoch(8), offset: 3 };
    let batch = Acknowledged { at: later, end: 4, id: BatchId(13) };
    assert_eq!(reading.acknowledged(batch), Need::Nothing);
    assert_eq!(reread(&mut reading, range(3, 12, &[])), (Need::Break(EPOCH), vec![]));
}
