//! Publishing to the log.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future;
use log::warn;

use crate::engine::{
    Append, AppendError, Appended, EngineState, LogPosition, OnceKey, Partition, Record,
};

use crate::broker::{
    archive::Skipped,
    feed::Extent,
    idempotency::{ContentDigest, IdempotencyKey, REMEMBERED},
    now_ms,
    numbering::scope_bytes,
    permits::Permit,
    placed::Accepted,
    position::{Epoch, StreamPosition},
    publication::{Payload, Publication},
    receipt::Receipt,
    subscriber::ScopeKey,
    topics::{OnceError, PublishError, Published, Topics},
};

use super::{Cluster, record};

/// The publications of one call that go to the same partition.
struct PartitionPart {
    partition: Partition,
    records: Vec<Record>,
    /// Which publications of the call these are.
    nths: Vec<usize>,
}

/// The permits and counts that this node holds for publications that are being appended. If they are
/// not appended, or if nobody waits for the answer, it is dropped: then the publications count as those
/// of another node, should they be in the log.
struct Pending<'a> {
    cluster: &'a Cluster,
    tickets: Vec<u64>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.tickets.is_empty() {
            return;
        }
        let mut pending = self.cluster.pending();
        let dropped: Vec<_> = self.tickets.iter().map(|ticket| pending.remove(ticket)).collect();
        drop(pending);
        // Dropping a permit may wake publishers, so the lock is given back first.
        drop(dropped);
    }
}

impl Cluster {
    /// Appends publications that hold their permits to the log, in order and once if there is a key.
    ///
    /// # Errors
    /// [`PublishError::Busy`]: it is not known whether they are in the log.
    /// [`OnceError::OtherContent`]: they are not.
    pub(in crate::broker) async fn publish(
        &self,
        topics: &Topics,
        publications: Vec<Publication>,
        permits: Vec<Permit>,
        once: Option<(IdempotencyKey, ContentDigest)>,
    ) -> Result<Published, OnceError> {
        if self.state() != EngineState::Up {
            return Err(PublishError::Busy.into());
        }
        let keys: Vec<_> = publications.iter().map(ScopeKey::of).collect();
        let has_bytes = publications.iter().any(|each| matches!(each.payload, Payload::Bytes(_)));
        let first = self.tickets(publications.len());
        let parts = self.parts(&publications, &keys, first);
        let (mut pending, skipped) = self.hold(topics, publications, permits, first);
        let wait_max = topics.wait_max();
        let deadline = Instant::now() + wait_max;
        let appends = parts.into_iter().map(|PartitionPart { partition, records, nths }| {
            let key = once.as_ref().map(|(key, content)| once_key(&keys, *key, *content));
            let append = Append { records, key, change: None };
            let appended = self.engine.append(partition, append, deadline);
            async move { (nths, appended.await) }
        });
        let mut positions = vec![StreamPosition::default(); keys.len()];
        let mut is_any_new = false;
        for (nths, appended) in future::join_all(appends).await {
            let at = match appended {
                Ok(Appended::At(at)) => {
                    is_any_new = true;
                    at
                }
                Ok(Appended::Repeated { at, note }) => {
                    let content = once.map(|(_, content)| content.to_bytes());
                    if content.is_none_or(|content| content != *note) {
                        return Err(OnceError::OtherContent);
                    }
                    at
                }
                Err(error) => return Err(refused(error).into()),
            };
            for (offset, nth) in (at.offset..).zip(nths) {
                let at = LogPosition { offset, ..at };
                positions[nth] = position(&keys[nth], at);
            }
        }
        if !is_any_new {
            let skipped = if has_bytes { Skipped::Unknown } else { Skipped::Nobody };
            return Ok(Published::Before(Receipt::known(positions, skipped)));
        }
        pending.tickets.clear();
        Ok(Published::Now(Receipt::new(positions, skipped, wait_max)))
    }

    /// The publications by partition, each written as a record.
    fn parts(
        &self,
        publications: &[Publication],
        keys: &[ScopeKey],
        first: u64,
    ) -> Vec<PartitionPart> {
        let at_ms = now_ms();
        let mut parts: Vec<PartitionPart> = Vec::with_capacity(1);
        let mut nth_of = HashMap::new();
        for (nth, (publication, key)) in publications.iter().zip(keys).enumerate() {
            let partition = self.heads.partition_of(key);
            let ticket = first.wrapping_add(nth as u64);
            let body = record::write_publication(publication, ticket, at_ms);
            let record = Record { scope: scope_bytes(key).into(), body };
            let part = *nth_of.entry(partition).or_insert_with(|| {
                parts.push(PartitionPart { partition, records: Vec::new(), nths: Vec::new() });
                parts.len() - 1
            });
            parts[part].records.push(record);
            parts[part].nths.push(nth);
        }
        parts
    }

    /// Keeps what the publications hold until they are read from the log. Answers as well what tells
    /// how many subscribers they were kept from.
    fn hold(
        &self,
        topics: &Topics,
        publications: Vec<Publication>,
        permits: Vec<Permit>,
        first: u64,
    ) -> (Pending<'_>, Vec<tokio::sync::oneshot::Receiver<usize>>) {
        let taken_at = Instant::now();
        let mut held = self.pending();
        let (mut tickets, mut skipped) = (Vec::with_capacity(permits.len()), Vec::new());
        for (nth, (publication, permit)) in publications.into_iter().zip(permits).enumerate() {
            let watched = topics.feed().deliveries(publication.app, Extent::Whole);
            let (accepted, told) = Accepted::new(publication, taken_at, permit);
            let ticket = first.wrapping_add(nth as u64);
            held.insert(ticket, accepted.watched(watched));
            tickets.push(ticket);
            skipped.extend(told);
        }
        drop(held);
        (Pending { cluster: self, tickets }, skipped)
    }
}

/// The place of a record as a position of its scope.
fn position(key: &ScopeKey, LogPosition { epoch, offset }: LogPosition) -> StreamPosition {
    StreamPosition { epoch: Epoch::of_log(key, epoch), offset }
}

/// The key of a call, which publishes for one app.
fn once_key(keys: &[ScopeKey], key: IdempotencyKey, content: ContentDigest) -> OnceKey {
    let app = keys.first().map_or(0, |key| key.app.0);
    let id = Bytes::from([&app.to_le_bytes()[..], &key.to_bytes()].concat());
    let ttl: Duration = REMEMBERED;
    OnceKey { id, note: Bytes::copy_from_slice(&content.to_bytes()), ttl }
}

fn refused(error: AppendError) -> PublishError {
    if error == AppendError::TooLarge {
        warn!("publications are refused: one call may not append more than the engine's limit");
    }
    PublishError::Busy
}
