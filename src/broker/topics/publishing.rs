//! Publishing: a publication takes a permit, gets its position in the order of its scope, and is
//! passed to the fan-outs.

use std::{mem, time::Instant};

use tokio::time::{self, timeout, timeout_at};

use super::{OnceError, PublishError, Published, Topics};
use crate::{
    app::AppId,
    broker::{
        cluster::Cluster,
        feed::Extent,
        idempotency::{Claim, Claimed, ContentDigest, IdempotencyKey},
        last_events::cache_channel,
        now_ms,
        permits::Permit,
        placed::Accepted,
        position::StreamPosition,
        publication::Publication,
        receipt::Receipt,
        stream::{Exceeded, Stream},
        subscriber::ScopeKey,
    },
    metrics::labels::{Limit, Source},
};

impl Topics {
    /// Gives a publication its position in the order of its scope and passes it to the fan-outs. A
    /// publication without subscribers is dropped unless it is retained.
    ///
    /// # Errors
    /// [`PublishError::Busy`] if no permit is free in time, or if the log of a cluster does not confirm the
    /// publication.
    pub async fn publish(&self, publication: Publication) -> Result<Receipt, PublishError> {
        self.publish_all(vec![publication]).await
    }

    /// Publishes all publications in order, or none; with an engine, all or none of each partition. They all
    /// count in the metrics under the app and the kind of publisher of the first one.
    ///
    /// On a server without a cluster there is no await point after the permits are taken, so a caller that is
    /// dropped while it waits has published all or nothing.
    ///
    /// # Errors
    /// [`PublishError::Busy`]: none was published, or the log of a cluster may or may not have them.
    /// [`PublishError::TooLarge`]: none was published.
    pub async fn publish_all(
        &self,
        publications: Vec<Publication>,
    ) -> Result<Receipt, PublishError> {
        if let Some(cluster) = self.cluster() {
            // The future is boxed, so that the common case does not carry its size.
            return match Box::pin(self.publish_to_log(cluster, publications, None)).await {
                Ok(Published::Now(receipt) | Published::Before(receipt)) => Ok(receipt),
                Err(OnceError::Refused(error)) => Err(error),
                Err(OnceError::OtherContent) => Err(PublishError::Busy),
            };
        }
        let mut permit = self.take_permit(&publications).await?;
        let counted = publications.first().map(|first| (first.app, first.origin.source()));
        let payload_bytes: usize = publications.iter().map(|each| each.payload.size_bytes()).sum();
        let mut positions = Vec::with_capacity(publications.len());
        let mut all_skipped = Vec::new();
        let taken_at = Instant::now();
        let mut batch: Vec<Accepted> = Vec::with_capacity(publications.len());
        for publication in publications {
            if batch.last().is_some_and(|last| !last.shares_scope_with(&publication)) {
                self.hand_over(mem::take(&mut batch), &mut permit, &mut positions);
            }
            let watched = self.0.feed.deliveries(publication.app, Extent::Whole);
            let (accepted, skipped) = Accepted::new(publication, taken_at, None);
            all_skipped.extend(skipped);
            batch.push(accepted.watched(watched));
        }
        self.hand_over(batch, &mut permit, &mut positions);
        if let Some((app, source)) = counted {
            self.count_published(app, source, positions.len(), payload_bytes);
        }
        Ok(Receipt::new(positions, all_skipped, self.0.limits.wait_max))
    }

    /// Counts a publication that this node has accepted and appended to the log of a cluster.
    pub(in crate::broker) fn count_appended(&self, publication: &Publication) {
        let Publication { app, origin, payload, .. } = publication;
        self.count_published(*app, origin.source(), 1, payload.size_bytes());
    }

    fn count_published(&self, app: AppId, source: Source, count: usize, payload_bytes: usize) {
        let (metrics, count) = (&self.0.metrics, count as u64);
        metrics.app(app.0).published(source, count);
        metrics.usage.of(app.0).published(count, payload_bytes as u64);
    }

    /// Publishes all publications in order to the log of the cluster, unless they were published with the key
    /// before. They are counted when this node reads them, because this caller may not learn that they are in the
    /// log.
    async fn publish_to_log(
        &self,
        cluster: &Cluster,
        publications: Vec<Publication>,
        once: Option<(IdempotencyKey, ContentDigest)>,
    ) -> Result<Published, OnceError> {
        let permit = self.take_permit(&publications).await?;
        let permits = permit.into_iter().flat_map(Permit::into_singles).collect();
        cluster.publish(self, publications, permits, once).await
    }

    /// Publishes all publications in order, or none, unless they were published with this key before; with an
    /// engine, all or none of each partition. While another caller publishes them with this key, this one waits,
    /// and returns the same receipt.
    ///
    /// If the caller is dropped while it waits, either nothing was published and the key is free, or all were
    /// published and the key has their receipt. With an engine, the publications go on without the caller.
    ///
    /// # Errors
    /// [`OnceError`]: none was published, or, with [`PublishError::Busy`], the log of a cluster may or may not have
    /// them.
    pub async fn publish_once(
        &self,
        key: IdempotencyKey,
        publications: Vec<Publication>,
    ) -> Result<Published, OnceError> {
        let Some(first) = publications.first() else {
            return Ok(Published::Now(self.publish_all(publications).await?));
        };
        let (app, content) = (first.app, ContentDigest::of(&publications));
        if self.is_clustered() {
            return self.publish_once_to_log((key, content), publications).await;
        }
        let deadline = time::Instant::now() + self.0.limits.wait_max;
        loop {
            match self.0.keys.claim(app, key, content, Instant::now()) {
                Claim::First(claimed) => return self.publish_with(claimed, publications).await,
                Claim::Done(receipt) => return Ok(Published::Before(receipt)),
                Claim::OtherContent => return Err(OnceError::OtherContent),
                Claim::UnderWay(first) => {
                    let ended = timeout_at(deadline, first.ended()).await;
                    ended.map_err(|_| PublishError::Busy)?;
                }
            }
        }
    }

    /// Publishes to the log in a task of its own, which goes on if the caller is dropped: the key is claimed before
    /// the publications are appended.
    async fn publish_once_to_log(
        &self,
        once: (IdempotencyKey, ContentDigest),
        publications: Vec<Publication>,
    ) -> Result<Published, OnceError> {
        let topics = self.clone();
        let publish = async move {
            let Some(cluster) = topics.cluster() else { return Err(PublishError::Busy.into()) };
            topics.publish_to_log(cluster, publications, Some(once)).await
        };
        actix::spawn(publish).await.unwrap_or_else(|_| Err(PublishError::Busy.into()))
    }

    async fn publish_with(
        &self,
        claimed: Claimed<Receipt>,
        publications: Vec<Publication>,
    ) -> Result<Published, OnceError> {
        let receipt = self.publish_all(publications).await?;
        // There is no await point between the last publication and here, so the key is always completed if the
        // publications were accepted.
        if claimed.complete(receipt.clone(), Instant::now()) {
            self.0.metrics.hit(Limit::IdempotencyKeys);
        }
        Ok(Published::Now(receipt))
    }

    /// Drops the data of an app that must not be kept after the app was changed or deleted. This must be called while
    /// the directory of apps has the app as the change has left it.
    pub fn review(&self, app: AppId) {
        self.0.directory.review(app, now_ms());
        self.0.directory.ledger().review_last_events(app, now_ms());
        if !self.0.directory.ledger().has(app) {
            self.0.keys.forget_app(app);
        }
    }

    /// Gives publications of one scope their positions and passes them to the threads that have
    /// subscribers. They take their part of `permit` with them. The caller need not wait for the fan-outs, because
    /// permits bound the publications under way.
    fn hand_over(
        &self,
        mut accepted: Vec<Accepted>,
        permit: &mut Option<Permit>,
        positions: &mut Vec<StreamPosition>,
    ) {
        let count = accepted.len();
        let Some(Accepted { publication, flight }) = accepted.first_mut() else { return };
        if let Some(permit) = permit {
            flight.hold(permit.split(count));
        }
        let key = ScopeKey { app: publication.app, scope: publication.scope.clone() };
        let directory = &self.0.directory;
        let keeps_last = accepted.iter().any(|each| cache_channel(&each.publication).is_some());
        let mut accepted = Some(accepted);
        let mut publish = |stream: &Stream| {
            stream.publish(accepted.take().unwrap_or_default(), now_ms(), positions)
        };
        let published = directory.with(&key, &mut publish);
        // A cache channel needs a stream even for an app that retains nothing, because a join decides by the
        // position whether it receives the last event live.
        let ensure = || directory.ensure(&key) || (keeps_last && directory.make(&key));
        let retained = || ensure().then(|| directory.with(&key, publish)).flatten();
        let Some(exceeded) = published.or_else(retained) else {
            let before = directory.unheard(&key);
            let unheard = (1..).take(count).map(|nth| StreamPosition { offset: nth, ..before });
            return positions.extend(self.tell_unheard(accepted.unwrap_or_default(), unheard));
        };
        self.note_exceeded(key.app, exceeded);
    }

    /// Evicts the publications of an app beyond its bounds, and counts the limits that were hit.
    pub(in crate::broker) fn note_exceeded(&self, app: AppId, exceeded: Exceeded) {
        let directory = &self.0.directory;
        let channels = exceeded.channels.then_some(Limit::HistoryChannels);
        let bytes = exceeded.bytes.then(|| directory.relieve(app)).flatten();
        let exceeded = channels.into_iter().chain(bytes).chain(exceeded.last_events);
        exceeded.for_each(|limit| self.0.metrics.hit(limit));
    }

    /// Passes publications that have no subscribers and are not retained to the feed, and keeps those of cache
    /// channels. Returns their positions.
    fn tell_unheard(
        &self,
        accepted: Vec<Accepted>,
        positions: impl Iterator<Item = StreamPosition>,
    ) -> Vec<StreamPosition> {
        let positions: Vec<_> = positions.collect();
        for (accepted, position) in accepted.iter().zip(&positions) {
            let last_events = self.0.directory.ledger().last_events();
            let exceeded = last_events.note(&accepted.publication, *position, now_ms());
            exceeded.into_iter().for_each(|limit| self.0.metrics.hit(limit));
        }
        if self.0.feed.is_watched() {
            for (accepted, position) in accepted.iter().zip(&positions) {
                self.0.feed.published(&accepted.publication, *position, Extent::Whole, 0);
            }
        }
        positions
    }

    /// Takes a permit for these publications within the time limit; `None` if there are none.
    async fn take_permit(
        &self,
        publications: &[Publication],
    ) -> Result<Option<Permit>, PublishError> {
        let Some(first) = publications.first() else { return Ok(None) };
        let taken = self.0.permits.take(first.app, publications.len());
        let taken = timeout(self.0.limits.wait_max, taken).await.map_err(|_| {
            self.0.metrics.hit(Limit::PublicationsInFlight);
            PublishError::Busy
        })?;
        taken.map(Some).ok_or(PublishError::Busy)
    }
}
