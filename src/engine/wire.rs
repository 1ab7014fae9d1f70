//! The bytes that nodes exchange: batches of records, questions and answers.
//!
//! Nodes of two successive versions share a log, so every part begins with its length, and a reader skips
//! parts that it does not know. All numbers are big-endian.
//!
//! ```text
//! message  = version u8, length u8 of the rest of the head, epoch u64, first offset u64, offsets u32,
//!            id u64 of the batch before it (0 if there is none), batch
//! batch    = length u8 of the rest of the head, kind u8, batch id u64, Unix milliseconds u64, node u16, bodies
//! record   = length u32 of the rest, length u16, scope, length u32, body
//! leaver   = length u32 of the rest, node u16, incarnation u64
//! ```
//!
//! Redis's script writes the head of the message, because only the script knows the offset and the batch
//! before it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Incarnation, LogEpoch, LogPosition, Logged, NodeId, Record};

/// The version of messages. A node skips a message of another version, and reports its offsets as lost.
pub(super) const VERSION: u8 = 1;

/// The bytes of the rest of a message's head.
#[cfg(test)]
pub(super) const HEAD_BYTES: u8 = 8 + 8 + 4 + 8;

/// The bytes of the rest of a batch's head.
const BATCH_HEAD_BYTES: u8 = 1 + 8 + 8 + 2;

/// The bytes of a batch's head, its length included.
const BATCH_BYTES: usize = 1 + BATCH_HEAD_BYTES as usize;

const RECORDS: u8 = 0;
const LEAVER: u8 = 1;

/// The id of a batch, by which a node recognises its own batches.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BatchId(pub(super) u64);

impl BatchId {
    /// The absence of a batch, or an unknown one.
    pub(super) const NONE: Self = Self(0);

    /// Returns whether both are known and differ.
    pub(super) fn differs(self, other: Self) -> bool {
        self != Self::NONE && other != Self::NONE && self != other
    }
}

/// A batch as it comes from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogMessage {
    /// The position of its first offset.
    pub(super) at: LogPosition,
    /// The number of its offsets.
    pub(super) count: u64,
    /// The batch.
    pub(super) id: BatchId,
    /// The batch that was appended before it.
    pub(super) follows: BatchId,
    body: RawContent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RawContent {
    Records(Bytes),
    Leaver(NodeId, Incarnation),
    /// A kind of a later version.
    Unknown,
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Records.
    Records(Vec<Logged>),
    /// A node's members leave.
    Leaver(NodeId, Incarnation),
    /// Content that this version cannot read.
    Unknown,
}

impl LogMessage {
    /// Reads a message; `None` if its head cannot be read.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let version = bytes.try_get_u8().ok()?;
        let mut head = part(&mut bytes, 1)?;
        let epoch = LogEpoch(head.try_get_u64().ok()?);
        let at = LogPosition { epoch, offset: head.try_get_u64().ok()? };
        let count = head.try_get_u32().ok()?.into();
        let follows = BatchId(head.try_get_u64().unwrap_or_default());
        let unknown = Self { at, count, id: BatchId::NONE, follows, body: RawContent::Unknown };
        if version != VERSION {
            return Some(unknown);
        }
        Some(unknown.clone().with_batch(bytes).unwrap_or(unknown))
    }

    fn with_batch(self, mut bytes: Bytes) -> Option<Self> {
        let mut head = part(&mut bytes, 1)?;
        let kind = head.try_get_u8().ok()?;
        let id = BatchId(head.try_get_u64().ok()?);
        let body = match kind {
            RECORDS => RawContent::Records(bytes),
            LEAVER => {
                let mut leaver = part(&mut bytes, 4)?;
                let node = NodeId(leaver.try_get_u16().ok()?);
                RawContent::Leaver(node, Incarnation(leaver.try_get_u64().ok()?))
            }
            _ => RawContent::Unknown,
        };
        Some(Self { id, body, ..self })
    }

    /// The offset after the last one.
    pub(super) fn end(&self) -> u64 {
        self.at.offset.saturating_add(self.count)
    }

    /// Reads the content.
    pub(super) fn content(&self) -> Content {
        match &self.body {
            RawContent::Leaver(node, incarnation) => Content::Leaver(*node, *incarnation),
            RawContent::Unknown => Content::Unknown,
            RawContent::Records(bytes) => {
                let records = read_records(self.at.offset, bytes.clone());
                // With fewer or more records than announced, the offsets would not be dense.
                let records = records.filter(|records| records.len() as u64 == self.count);
                records.map_or(Content::Unknown, Content::Records)
            }
        }
    }
}

fn read_records(first: u64, mut bytes: Bytes) -> Option<Vec<Logged>> {
    let mut records = Vec::new();
    while bytes.has_remaining() {
        let mut record = part(&mut bytes, 4)?;
        let scope = part(&mut record, 2)?;
        let body = part(&mut record, 4)?;
        records.push(Logged { offset: first + records.len() as u64, scope, body });
    }
    Some(records)
}

/// Splits off the first part. Its length precedes it, in `length_bytes` bytes.
fn part(bytes: &mut Bytes, length_bytes: usize) -> Option<Bytes> {
    if bytes.remaining() < length_bytes {
        return None;
    }
    let length = usize::try_from(bytes.get_uint(length_bytes)).ok()?;
    (bytes.remaining() >= length).then(|| bytes.split_to(length))
}

/// The head of a batch of records.
pub(super) fn batch_head(id: BatchId, now_ms: u64, node: NodeId) -> Bytes {
    head(RECORDS, id, now_ms, node).freeze()
}

/// A batch in which the node `by` announces that the members of the incarnation `of` leave.
pub(super) fn leaver(id: BatchId, now_ms: u64, by: NodeId, of: (NodeId, Incarnation)) -> Bytes {
    let mut bytes = head(LEAVER, id, now_ms, by);
    bytes.put_u32(2 + 8);
    bytes.put_u16(of.0.0);
    bytes.put_u64(of.1.0);
    bytes.freeze()
}

fn head(kind: u8, id: BatchId, now_ms: u64, node: NodeId) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(BATCH_BYTES + 4 + 2 + 8);
    bytes.put_u8(BATCH_HEAD_BYTES);
    bytes.put_u8(kind);
    bytes.put_u64(id.0);
    bytes.put_u64(now_ms);
    bytes.put_u16(node.0);
    bytes
}

/// Adds records to a batch.
pub(super) fn put_records(records: &[Record], bytes: &mut BytesMut) {
    for Record { scope, body } in records {
        let length = 2 + scope.len() + 4 + body.len();
        bytes.reserve(4 + length);
        // All lengths are bounded far below these types by `Append::is_bounded`.
        bytes.put_u32(length as u32);
        bytes.put_u16(scope.len() as u16);
        bytes.put_slice(scope);
        bytes.put_u32(body.len() as u32);
        bytes.put_slice(body);
    }
}

/// A message whose head is the one that Redis's script writes.
#[cfg(test)]
pub(super) fn message(at: LogPosition, count: u32, follows: BatchId, batch: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(VERSION);
    bytes.put_u8(HEAD_BYTES);
    bytes.put_u64(at.epoch.0);
    bytes.put_u64(at.offset);
    bytes.put_u32(count);
    bytes.put_u64(follows.0);
    bytes.put_slice(batch);
    bytes.freeze()
}

/// A question to a node, or its answer.
///
/// `version u8, kind u8, length u8 of the rest of the head, question id u64, node u16, milliseconds u32, body`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Letter {
    /// Whether it is a question or an answer.
    pub(super) kind: LetterKind,
    /// The question's id, which the asker chose.
    pub(super) id: u64,
    /// The node that sends it.
    pub(super) from: NodeId,
    /// The time until the asker gives up, in milliseconds from the sending of the question; 0 in an answer.
    pub(super) patience_ms: u32,
    /// The question or the answer.
    pub(super) body: Bytes,
}

/// The kinds of letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LetterKind {
    /// A question.
    Question,
    /// An answer.
    Answer,
}

impl Letter {
    const HEAD_BYTES: u8 = 8 + 2 + 4;

    /// Encodes the letter.
    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(32 + self.body.len());
        bytes.put_u8(VERSION);
        bytes.put_u8(self.kind as u8);
        bytes.put_u8(Self::HEAD_BYTES);
        bytes.put_u64(self.id);
        bytes.put_u16(self.from.0);
        bytes.put_u32(self.patience_ms);
        bytes.put_slice(&self.body);
        bytes.freeze()
    }

    /// Decodes a letter; `None` if it has another version or is not a letter.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let kind = match bytes.try_get_u8().ok()? {
            0 => LetterKind::Question,
            1 => LetterKind::Answer,
            _ => return None,
        };
        let mut head = part(&mut bytes, 1)?;
        let id = head.try_get_u64().ok()?;
        let from = NodeId(head.try_get_u16().ok()?);
        let patience_ms = head.try_get_u32().ok()?;
        Some(Self { kind, id, from, patience_ms, body: bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: LogPosition = LogPosition { epoch: LogEpoch(0x0102_0304_0506_0708), offset: 9 };

    fn record(scope: &'static str, body: &'static str) -> Record {
        Record { scope: scope.into(), body: body.into() }
    }

    fn batch(records: &[Record]) -> Bytes {
        let mut bytes = BytesMut::from(&batch_head(BatchId(5), 6, NodeId(7))[..]);
        put_records(records, &mut bytes);
        message(AT, records.len() as u32, BatchId(4), &bytes)
    }

    #[test]
    fn a_batch_is_written_byte_by_byte_as_older_nodes_read_it() {
        let expected = [
            &[1, 28][..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 0, 0, 0, 0, 9],
            &[0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0, 4],
            &[19, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 7],
            &[0, 0, 0, 9, 0, 1, b's', 0, 0, 0, 2, b'h', b'i'],
        ];
        assert_eq!(batch(&[record("s", "hi")]), expected.concat());
    }

    #[test]
    fn fields_of_a_later_version_are_skipped() {
        let bytes = [
            &[1, 29][..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 0, 0, 0, 0, 9],
            &[0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0, 4, 0xAA],
            &[20, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 7, 0xBB],
            &[0, 0, 0, 10, 0, 1, b's', 0, 0, 0, 2, b'h', b'i', 0xCC],
        ];
        let read = LogMessage::decode(bytes.concat().into()).expect("a message");
        let logged = Logged { offset: 9, scope: "s".into(), body: "hi".into() };
        assert_eq!((read.at, read.id, read.follows), (AT, BatchId(5), BatchId(4)));
        assert_eq!(read.content(), Content::Records(vec![logged]));
    }

    #[test]
    fn offsets_of_what_cannot_be_read_are_counted() {
        let good = batch(&[record("s", "hi"), record("s", "ho")]);
        let mut later = good.to_vec();
        later[0] = VERSION + 1;
        let mut other_kind = good.to_vec();
        other_kind[31] = 9;
        let cut = good.slice(..good.len() - 1);
        let one_less = message(AT, 2, BatchId(4), &batch(&[record("s", "hi")])[30..]);
        for bytes in [later.into(), other_kind.into(), cut, one_less] {
            let read = LogMessage::decode(bytes).expect("a head");
            assert_eq!((read.at, read.end(), read.content()), (AT, 11, Content::Unknown));
        }
    }

    #[test]
    fn a_leaver_is_read_as_it_was_written() {
        let of = (NodeId(3), Incarnation(4));
        let bytes = message(AT, 1, BatchId(4), &leaver(BatchId(5), 6, NodeId(7), of));
        let read = LogMessage::decode(bytes).expect("a message");
        assert_eq!(read.content(), Content::Leaver(NodeId(3), Incarnation(4)));
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(
            records in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40),
                                              prop::collection::vec(any::<u8>(), 0..400)), 1..9),
        ) {
            let records: Vec<_> = records
                .into_iter()
                .map(|(scope, body)| Record { scope: scope.into(), body: body.into() })
                .collect();
            let read = LogMessage::decode(batch(&records)).expect("a message");
            let Content::Records(read) = read.content() else { panic!("records") };
            let read: Vec<_> = read
                .into_iter()
                .map(|r| Record { scope: r.scope, body: r.body })
                .collect();
            prop_assert_eq!(read, records);
        }

        #[test]
        fn garbage_is_no_reason_to_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(read) = LogMessage::decode(bytes.clone().into()) {
                read.content();
            }
            Letter::decode(bytes.into());
        }

        #[test]
        fn letters_are_read_as_they_were_written(
            is_answer: bool, id: u64, from: u16, patience_ms: u32,
            body in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let kind = if is_answer { LetterKind::Answer } else { LetterKind::Question };
            let letter = Letter { kind, id, from: NodeId(from), patience_ms, body: body.into() };
            prop_assert_eq!(Letter::decode(letter.encode()), Some(letter));
        }
    }
}
