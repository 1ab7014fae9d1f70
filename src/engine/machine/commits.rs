//! The appends that wait for a log, and the batch of appends that is under way (group commit).
//!
//! At most one batch of a log is under way. After its answer, and that of the other batches of its round, all
//! appends that have been queued meanwhile go into the next one.

use std::{collections::VecDeque, time::Instant};

use bytes::BytesMut;
use tokio::sync::oneshot;

use crate::engine::{
    Append, AppendError, Appended, LogEpoch, LogPosition, Terms,
    request::{Outcome, Segment},
    wire::{self, BatchId},
};

/// The most bytes, and the most appends, of one batch. A larger append has a batch of its own.
const BATCH_BYTES_MAX: usize = 1 << 20;
const BATCH_APPENDS_MAX: usize = 512;

/// The most bytes, and the most appends, that may wait for one log. Further ones are refused.
const QUEUED_BYTES_MAX: usize = 32 << 20;
const QUEUED_MAX: usize = 16_384;

/// The sender of an append's outcome to its caller.
pub(in crate::engine) type AppendedSender = oneshot::Sender<Result<Appended, AppendError>>;

/// An append that waits.
#[derive(Debug)]
struct WaitingAppend {
    append: Append,
    bytes: usize,
    deadline: Instant,
    appended: Option<AppendedSender>,
    was_lapsed: bool,
}

impl WaitingAppend {
    fn answer(&mut self, outcome: Result<Appended, AppendError>) {
        if let Some(appended) = self.appended.take() {
            let _ = appended.send(outcome);
        }
    }

    fn is_plain(&self) -> bool {
        self.append.terms == Terms::None
    }
}

/// A batch under way, or one that may have arrived although its connection broke.
#[derive(Debug)]
struct PendingBatch {
    id: BatchId,
    waiting: Vec<WaitingAppend>,
    /// The number of appends of each segment.
    shares: Vec<usize>,
}

impl PendingBatch {
    fn records(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.append.records.len() as u64).sum()
    }

    fn fail(&mut self) {
        for waiting in &mut self.waiting {
            waiting.answer(Err(AppendError::Unavailable));
        }
    }
}

/// The appends to one log.
#[derive(Debug, Default)]
pub(super) struct Commits {
    queue: VecDeque<WaitingAppend>,
    queued_bytes: usize,
    under_way: Option<PendingBatch>,
    doubtful: Vec<PendingBatch>,
}

/// The part of a batch's outcome on which the machine acts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Whether a member was refused because the incarnation's lease has expired.
    pub(super) is_lapsed: bool,
    /// The batch, and the first and the next offset, if anything was appended.
    pub(super) appended: Option<(BatchId, u64, u64)>,
}

impl Commits {
    /// Queues an append, or refuses it.
    pub(super) fn queue(&mut self, append: Append, deadline: Instant, appended: AppendedSender) {
        let bytes = append.bytes();
        let is_full =
            self.queue.len() >= QUEUED_MAX || self.queued_bytes + bytes > QUEUED_BYTES_MAX;
        let appended = Some(appended);
        let mut waiting = WaitingAppend { append, bytes, deadline, appended, was_lapsed: false };
        if is_full {
            waiting.answer(Err(AppendError::Unavailable));
            return;
        }
        self.queued_bytes += bytes;
        self.queue.push_back(waiting);
    }

    /// Makes the next batch of the waiting appends; `None` if a batch is under way or nothing waits.
    pub(super) fn next(&mut self, id: BatchId) -> Option<Vec<Segment>> {
        if self.under_way.is_some() {
            return None;
        }
        let (mut waiting, mut bytes) = (Vec::new(), 0);
        while let Some(first) = self.queue.front() {
            let fits = waiting.len() < BATCH_APPENDS_MAX && bytes + first.bytes <= BATCH_BYTES_MAX;
            if !waiting.is_empty() && !fits {
                break;
            }
            let Some(next) = self.queue.pop_front() else { break };
            self.queued_bytes -= next.bytes;
            if next.appended.is_some() {
                bytes += next.bytes;
                waiting.push(next);
            }
        }
        if waiting.is_empty() {
            return None;
        }
        let (segments, shares) = segments(&waiting);
        self.under_way = Some(PendingBatch { id, waiting, shares });
        Some(segments)
    }

    /// Returns whether the appends that wait fill a batch.
    pub(super) fn fills_batch(&self) -> bool {
        self.queue.len() >= BATCH_APPENDS_MAX || self.queued_bytes >= BATCH_BYTES_MAX
    }

    /// The number of appends that wait for the next batch.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The number of appends in the batch under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.as_ref().map_or(0, |batch| batch.waiting.len())
    }

    /// Takes the answer to the batch under way.
    pub(super) fn committed(&mut self, epoch: LogEpoch, outcomes: Vec<Outcome>) -> Settled {
        let Some(batch) = self.under_way.take() else { return Settled::default() };
        let mut settled = Settled::default();
        let mut again = Vec::new();
        let mut waiting = batch.waiting.into_iter();
        for (outcome, share) in outcomes.into_iter().zip(batch.shares) {
            let mut at = match &outcome {
                Outcome::At(offset) => *offset,
                _ => 0,
            };
            for mut one in waiting.by_ref().take(share) {
                let offset = at;
                at += one.append.records.len() as u64;
                // A key without records is not a part of the log.
                if let Outcome::At(_) = outcome
                    && at > offset
                {
                    let first = settled.appended.map_or(offset, |(_, first, _)| first);
                    settled.appended = Some((batch.id, first, at));
                }
                let answer = match &outcome {
                    Outcome::At(_) => Ok(Appended::At(LogPosition { epoch, offset })),
                    Outcome::Repeated { at, note } => {
                        Ok(Appended::Repeated { at: *at, note: note.clone() })
                    }
                    Outcome::Full => Err(AppendError::PlaceFull),
                    Outcome::Lapsed => {
                        settled.is_lapsed = true;
                        if !std::mem::replace(&mut one.was_lapsed, true) {
                            again.push(one);
                            continue;
                        }
                        Err(AppendError::Lapsed)
                    }
                };
                one.answer(answer);
            }
        }
        for one in waiting {
            again.push(one);
        }
        // None of these was appended, so they go first into the next batch, in their order.
        for one in again.into_iter().rev() {
            self.queued_bytes += one.bytes;
            self.queue.push_front(one);
        }
        settled
    }

    /// Handles that Redis refused the batch under way.
    pub(super) fn refused(&mut self) {
        if let Some(mut batch) = self.under_way.take() {
            batch.fail();
        }
    }

    /// Handles that the connection broke. The batch under way may have been appended, so its callers wait
    /// until the log has been read. The queued appends are refused.
    pub(super) fn disconnected(&mut self) {
        if let Some(mut batch) = self.under_way.take() {
            if batch.waiting.iter().all(WaitingAppend::is_plain) {
                self.doubtful.push(batch);
            } else {
                batch.fail();
            }
        }
        self.refuse_queue();
    }

    /// Refuses all queued appends.
    pub(super) fn refuse_queue(&mut self) {
        for mut waiting in self.queue.drain(..) {
            waiting.answer(Err(AppendError::Unavailable));
        }
        self.queued_bytes = 0;
    }

    /// Notes a batch that was read from the log.
    pub(super) fn seen(&mut self, id: BatchId, at: LogPosition, count: u64) {
        let Some(found) = self.doubtful.iter().position(|batch| batch.id == id) else { return };
        let mut batch = self.doubtful.swap_remove(found);
        if batch.records() != count {
            batch.fail();
            return;
        }
        let mut offset = at.offset;
        for waiting in &mut batch.waiting {
            let records = waiting.append.records.len() as u64;
            waiting.answer(Ok(Appended::At(LogPosition { offset, ..at })));
            offset += records;
        }
    }

    /// Notes that the log has been read to its end: a batch that was not found by now counts as failed.
    pub(super) fn has_read(&mut self) {
        for mut batch in self.doubtful.drain(..) {
            batch.fail();
        }
    }

    /// Refuses the appends whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        let under_way = self.under_way.iter_mut().flat_map(|batch| &mut batch.waiting);
        let doubtful = self.doubtful.iter_mut().flat_map(|batch| &mut batch.waiting);
        let waiting = self.queue.iter_mut().chain(under_way).chain(doubtful);
        for late in waiting.filter(|waiting| waiting.deadline <= now) {
            late.answer(Err(AppendError::Unavailable));
        }
    }
}

/// Groups appends into segments: consecutive plain ones share a segment. Returns the segments, and the
/// number of appends of each.
fn segments(waiting: &[WaitingAppend]) -> (Vec<Segment>, Vec<usize>) {
    let (mut segments, mut shares): (Vec<Segment>, Vec<usize>) = Default::default();
    let mut records = BytesMut::new();
    let mut plain: Option<(u32, usize)> = None;
    let close = |plain: &mut Option<(u32, usize)>, records: &mut BytesMut| {
        plain.take().map(|(count, share)| {
            let records = records.split().freeze();
            (Segment { count, records, terms: Terms::None }, share)
        })
    };
    for one in waiting {
        let count = one.append.records.len() as u32;
        if one.is_plain() {
            wire::put_records(&one.append.records, &mut records);
            let (counted, share) = plain.unwrap_or_default();
            plain = Some((counted + count, share + 1));
            continue;
        }
        if let Some((segment, share)) = close(&mut plain, &mut records) {
            segments.push(segment);
            shares.push(share);
        }
        wire::put_records(&one.append.records, &mut records);
        let records = records.split().freeze();
        segments.push(Segment { count, records, terms: one.append.terms.clone() });
        shares.push(1);
    }
    if let Some((segment, share)) = close(&mut plain, &mut records) {
        segments.push(segment);
        shares.push(share);
    }
    (segments, shares)
}
