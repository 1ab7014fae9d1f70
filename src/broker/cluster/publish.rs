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
    /// The indices of these publications in the call.
    nths: Vec<usize>,
}

/// The permits and counts that this node holds for publications that are being appended. They are given
/// back when this is dropped: because the append failed, or because its caller does not wait any more. If
/// the publications are in the log nevertheless, they count as those of another node.
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
        // Dropping a permit may wake publishers, so the lock is released first.
        drop(dropped);
    }
}

impl Cluster {
    /// Appends publications that hold their permits to the log, in order, and only once for each key.
    ///
    /// # Errors
    /// [`PublishError::Busy`]: the publications may be in the log or not.
    /// [`OnceError::OtherContent`]: the publications of at least one partition are not in the log.
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

    /// Groups the publications by partition, each encoded as a record.
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

    /// Keeps the permits of the publications until they are read from the log. Returns them with the receivers
    /// of the numbers of skipped subscribers.
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

/// The position of a record in the log, as a position of its scope.
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
        warn!(
            "a call is refused because it publishes more than 16 MB to one partition of the log: publish fewer \
             or smaller events in one call"
        );
    }
    PublishError::Busy
}
