//! The state that a publication has only while it is on its way.

use std::{sync::atomic::AtomicUsize, time::Instant};

use tokio::sync::oneshot;

use super::super::{
    cluster::RemoteFlight,
    feed::Deliveries,
    permits::Permit,
    publication::{Payload, Publication},
};

/// A publication that was accepted and has no position yet.
pub(in crate::broker) struct Accepted {
    pub(in crate::broker) publication: Publication,
    pub(in crate::broker) flight: Flight,
}

/// The state that a publication has while it is on its way, and that its retained form does not
/// have: the permit of its batch, its counts of skipped subscribers and of deliveries, and the instant at which it was
/// accepted.
///
/// It is dropped when the last fan-out has dropped the batch.
pub(in crate::broker) struct Flight {
    /// The count of skipped subscribers, if there may be any.
    pub(super) tally: Option<DeliveryTally>,
    /// The count of deliveries, if a console watches the app.
    pub(super) watched: Option<Box<Deliveries>>,
    /// The time at which the publication was accepted.
    pub(super) taken_at: Instant,
    /// Without a cluster, the first publication of a batch holds the permits of all, because they are dropped
    /// together.
    hold: Option<Hold>,
}

/// The token by which publications count as under way, until it is dropped: a permit, or an entry in the
/// count of publications from other nodes. Both counts are bounded.
pub(in crate::broker) enum Hold {
    /// The permit of a publisher of this node, for one publication or more.
    Permit { _held: Permit },
    /// The entry of a publication of another node.
    RemoteFlights { _held: RemoteFlight },
}

impl From<Permit> for Hold {
    fn from(permit: Permit) -> Self {
        Self::Permit { _held: permit }
    }
}

impl From<RemoteFlight> for Hold {
    fn from(place: RemoteFlight) -> Self {
        Self::RemoteFlights { _held: place }
    }
}

/// A publication to which a log has given its position.
pub(in crate::broker) struct ReadPublication {
    pub(in crate::broker) offset: u64,
    /// The time at which the publication was accepted, in Unix milliseconds.
    pub(in crate::broker) at_ms: u64,
    pub(in crate::broker) accepted: Accepted,
}

/// Counts the subscribers that could not be sent a publication. The count is sent when the last fan-out
/// has dropped its batch, even if a fan-out was lost.
pub(super) struct DeliveryTally {
    pub(super) skipped: AtomicUsize,
    /// The sender of the count, until it is sent.
    told: Option<oneshot::Sender<usize>>,
}

impl Drop for DeliveryTally {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            // The publisher may have stopped waiting.
            let _ = told.send(*self.skipped.get_mut());
        }
    }
}

impl Flight {
    /// Adds the permits of a batch, of which this is the first publication.
    pub(in crate::broker) fn hold(&mut self, permits: Permit) {
        self.hold = Some(permits.into());
    }
}

impl Accepted {
    /// Accepts a publication with the token by which it counts as under way; `None` if it is part of a batch that
    /// [holds](Flight::hold) one for all. If it has bytes, which not every format can carry, the second value receives the
    /// number of subscribers to which it was not sent.
    pub(in crate::broker) fn new(
        publication: Publication,
        taken_at: Instant,
        hold: Option<Hold>,
    ) -> (Self, Option<oneshot::Receiver<usize>>) {
        let (tally, skipped) = match publication.payload {
            Payload::Json(_) => (None, None),
            Payload::Bytes(_) => {
                let (told, skipped) = oneshot::channel();
                (
                    Some(DeliveryTally { skipped: AtomicUsize::new(0), told: Some(told) }),
                    Some(skipped),
                )
            }
        };
        let flight = Flight { tally, watched: None, taken_at, hold };
        (Self { publication, flight }, skipped)
    }

    /// Gives the publication up, because it is not delivered on this node's account. The number of skipped
    /// subscribers is then unknown, and is not reported as zero.
    pub(in crate::broker) fn give_up(mut self) {
        if let Some(tally) = &mut self.flight.tally {
            tally.told = None;
        }
    }

    /// Adds a count of its deliveries.
    pub(in crate::broker) fn watched(mut self, watched: Option<Box<Deliveries>>) -> Self {
        self.flight.watched = watched;
        self
    }

    /// Returns whether another publication belongs to the same scope of the same app.
    pub(in crate::broker) fn shares_scope_with(&self, publication: &Publication) -> bool {
        let Publication { app, scope, .. } = &self.publication;
        *app == publication.app && *scope == publication.scope
    }
}
