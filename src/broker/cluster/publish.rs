//! Publishing to the log.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future;

use crate::{
    app::AppId,
    engine::{
        Append, AppendError, Appended, EngineState, LogPosition, OnceKey, Partition, Record, Terms,
    },
    metrics::labels::Limit,
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

use super::{Cluster, pending::PendingTickets, record};

/// The publications of one call that go to the same partition.
struct PartitionPart {
    partition: Partition,
    records: Vec<Record>,
    /// The indices of these publications in the call.
    nths: Vec<usize>,
}

impl PartitionPart {
    /// Returns whether the log takes this much with the key, if there is one, in one append.
    fn fits(&self, key: Option<&OnceKey>) -> bool {
        let (records, key) = (self.records.clone(), key.cloned());
        Append { records, terms: key.map_or(Terms::None, Terms::Once) }.is_bounded()
    }
}

/// The log's answer to a part.
struct PartAnswer {
    /// The indices of the part's publications in the call.
    nths: Vec<usize>,
    appended: Result<Appended, AppendError>,
}

/// The outcome of a call, as far as its parts are answered.
struct PublishedParts<'a> {
    cluster: &'a Cluster,
    topics: &'a Topics,
    keys: &'a [ScopeKey],
    /// The note of the call's key.
    note: Option<Bytes>,
    first_ticket: u64,
    positions: Vec<StreamPosition>,
    is_any_new: bool,
    /// The tickets of the publications that were in the log before this call.
    repeated: Vec<u64>,
}

impl PublishedParts<'_> {
    /// Adds the answer to a part.
    ///
    /// # Errors
    /// The part is not in the log, or may not be.
    fn add(&mut self, PartAnswer { nths, appended }: PartAnswer) -> Result<(), OnceError> {
        let (first, is_new) = match appended {
            Ok(Appended::At(at)) => (at, true),
            Ok(Appended::Repeated { note, .. }) if self.note.as_ref() != Some(&note) => {
                return Err(OnceError::OtherContent);
            }
            Ok(Appended::Repeated { at, .. }) => (at, false),
            Err(error) => return Err(refused(error).into()),
        };
        for (offset, nth) in (first.offset..).zip(nths) {
            let (at, ticket) =
                (LogPosition { offset, ..first }, self.first_ticket.wrapping_add(nth as u64));
            self.positions[nth] = position(&self.keys[nth], at);
            self.is_any_new |= is_new;
            match is_new {
                true => {
                    let left_out = self.cluster.pending.acknowledged(ticket, at);
                    left_out.into_iter().for_each(|left_out| self.topics.leave_unread(left_out));
                }
                false => self.repeated.push(ticket),
            }
        }
        Ok(())
    }
}

impl Cluster {
    /// Appends publications that hold their permits to the log, in order, and only once for each key.
    ///
    /// A partition knows only the keys that were used there. A key also belongs to one partition, whichever the
    /// publications belong to, and the content that comes there first claims the key. So the key is claimed
    /// before any other partition is given its part. A caller that repeats the call finds the claim of the same
    /// content, and publishes the parts that are missing.
    ///
    /// # Errors
    /// [`PublishError::Busy`]: the publications may be in the log or not.
    /// [`PublishError::TooLarge`]: no publication is in the log.
    /// [`OnceError::OtherContent`]: another content has claimed the key, and no publication is in the log.
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
        let first_ticket = self.pending.reserve(publications.len());
        let mut parts = self.parts(topics, &publications, &keys, first_ticket);
        let (pending, skipped) = self.hold(topics, publications, permits, first_ticket, &parts);
        let wait_max = topics.wait_max();
        let deadline = Instant::now() + wait_max;
        let once = once.map(|(key, content)| {
            let (app, now) = (keys.first().map_or(AppId(0), |key| key.app), Instant::now());
            let ttl = if self.recent_keys.note(app, key.party(), now) {
                REMEMBERED
            } else {
                topics.metrics().hit(Limit::IdempotencyKeys);
                // A caller that repeats the call as soon as it has timed out still finds the key.
                2 * wait_max
            };
            once_key(app, key, content, ttl)
        });
        let mut published = PublishedParts {
            cluster: self,
            topics,
            keys: &keys,
            note: once.as_ref().map(|once| once.note.clone()),
            first_ticket,
            positions: vec![StreamPosition::default(); keys.len()],
            is_any_new: false,
            repeated: Vec::new(),
        };
        // The sizes are checked before the key is claimed, so that the caller may repeat the call with less and the same
        // key, and before any part is appended. A single part without a key is checked by the log itself.
        if (once.is_some() || parts.len() > 1) && parts.iter().any(|part| !part.fits(once.as_ref()))
        {
            return Err(refused(AppendError::TooLarge).into());
        }
        if let Some(once) = &once
            && let Some(claim) = self.claim_of(once, &mut parts)
        {
            // The claim is remembered for longer than the parts that are appended after it.
            let ttl = once.ttl + wait_max;
            let once = OnceKey { ttl, ..once.clone() };
            let appended = self.append(claim, Some(once), deadline).await;
            published.add(appended)?;
        }
        let appends = parts.into_iter().map(|part| self.append(part, once.clone(), deadline));
        for appended in future::join_all(appends).await {
            published.add(appended)?;
        }
        let PublishedParts { positions, is_any_new, repeated, .. } = published;
        if !is_any_new {
            let skipped = if has_bytes { Skipped::Unknown } else { Skipped::Nobody };
            return Ok(Published::Before(Receipt::known(positions, skipped)));
        }
        // No record will take out the publications that were not appended now.
        pending.leave_but(repeated);
        Ok(Published::Now(Receipt::new(positions, skipped, wait_max)))
    }

    /// Takes out the part with which a key is claimed. It is empty if the call has no publications for the key's
    /// partition. Returns `None` if the call has no others: the key is then claimed as they are appended.
    fn claim_of(&self, once: &OnceKey, parts: &mut Vec<PartitionPart>) -> Option<PartitionPart> {
        let partition = Partition::of(&once.id, self.engine.partitions().max(1));
        match parts.iter().position(|part| part.partition == partition) {
            Some(_) if parts.len() == 1 => None,
            Some(found) => Some(parts.remove(found)),
            None => Some(PartitionPart { partition, records: Vec::new(), nths: Vec::new() }),
        }
    }

    /// Appends a part. The engine is asked at once, and the future only waits for its answer.
    fn append(
        &self,
        part: PartitionPart,
        key: Option<OnceKey>,
        deadline: Instant,
    ) -> impl Future<Output = PartAnswer> + use<> {
        let PartitionPart { partition, records, nths } = part;
        let append = Append { records, terms: key.map_or(Terms::None, Terms::Once) };
        let appended = self.engine.append(partition, append, deadline);
        async move { PartAnswer { nths, appended: appended.await } }
    }

    /// Groups the publications by partition, each encoded as a record.
    fn parts(
        &self,
        topics: &Topics,
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
            let created_us = topics.directory().ledger().created_us(key.app);
            let body = record::write_publication(publication, ticket, at_ms, created_us);
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

    /// Keeps the publications with their permits until they are read from the log. Returns them with the receivers
    /// of the numbers of skipped subscribers.
    fn hold(
        &self,
        topics: &Topics,
        publications: Vec<Publication>,
        permits: Vec<Permit>,
        first_ticket: u64,
        parts: &[PartitionPart],
    ) -> (PendingTickets<'_>, Vec<tokio::sync::oneshot::Receiver<usize>>) {
        let taken_at = Instant::now();
        let mut partitions = vec![Partition(0); publications.len()];
        for part in parts {
            part.nths.iter().for_each(|nth| partitions[*nth] = part.partition);
        }
        let mut skipped = Vec::new();
        let mut accept = |(publication, permit): (Publication, Permit)| {
            let watched = topics.feed().deliveries(publication.app, Extent::Whole);
            let (accepted, told) = Accepted::new(publication, taken_at, Some(permit.into()));
            skipped.extend(told);
            accepted.watched(watched)
        };
        let accepted: Vec<_> = publications.into_iter().zip(permits).map(&mut accept).collect();
        let held = partitions.into_iter().zip(accepted);
        (self.pending.hold(first_ticket, held), skipped)
    }
}

/// The position of a record in the log, as a position of its scope.
fn position(key: &ScopeKey, LogPosition { epoch, offset }: LogPosition) -> StreamPosition {
    StreamPosition { epoch: Epoch::of_log(key, epoch), offset }
}

/// The key of a call, which publishes for one app.
///
/// The id does not say when the app was created, as records do: servers of the version before would use another id
/// for the same key, and a repetition during an upgrade would publish again.
fn once_key(
    AppId(app): AppId,
    key: IdempotencyKey,
    content: ContentDigest,
    ttl: Duration,
) -> OnceKey {
    let id = Bytes::from([&app.to_le_bytes()[..], &key.to_bytes()].concat());
    OnceKey { id, note: Bytes::copy_from_slice(&content.to_bytes()), ttl }
}

fn refused(error: AppendError) -> PublishError {
    match error {
        AppendError::TooLarge => PublishError::TooLarge,
        AppendError::Unavailable | AppendError::PlaceFull | AppendError::Lapsed => {
            PublishError::Busy
        }
    }
}
