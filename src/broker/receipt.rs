//! The receipt of publications that were accepted.

use std::time::Duration;

use futures_util::future::{self, BoxFuture, FutureExt, Shared};
use tokio::{sync::oneshot, time::timeout};

use super::{archive::Skipped, position::StreamPosition};

/// The receipt of publications that were accepted: their positions, and the number of subscribers
/// that could not be sent them. Only the latter has to be awaited. All clones of a receipt have the
/// same content.
#[derive(Debug, Clone)]
pub struct Receipt {
    positions: Vec<StreamPosition>,
    /// The number of skipped subscribers; `None` if every subscriber can be sent all publications.
    skipped: Option<Shared<BoxFuture<'static, Option<usize>>>>,
}

impl Receipt {
    /// The position of each publication, in the order of the request.
    ///
    /// A publication without subscribers that is not retained has a position in an epoch of its
    /// own.
    pub fn positions(&self) -> &[StreamPosition] {
        &self.positions
    }

    /// Returns whether any payload is bytes. Every subscriber can be sent other payloads.
    pub fn may_skip(&self) -> bool {
        self.skipped.is_some()
    }

    /// The total number of subscribers that could not be sent the publications, once all have been delivered;
    /// `None` if that takes too long.
    pub async fn skipped(self) -> Option<usize> {
        match self.skipped {
            Some(skipped) => skipped.await,
            None => Some(0),
        }
    }

    /// A receipt that waits at most `wait_max` for the counts of skipped subscribers.
    pub(super) fn new(
        positions: Vec<StreamPosition>,
        skipped: Vec<oneshot::Receiver<usize>>,
        wait_max: Duration,
    ) -> Self {
        let is_any_skipped = !skipped.is_empty();
        let count = async move {
            let mut all = 0;
            for skipped in skipped {
                all += skipped.await.ok()?;
            }
            Some(all)
        };
        let count = async move { timeout(wait_max, count).await.ok().flatten() };
        Self { positions, skipped: is_any_skipped.then(|| count.boxed().shared()) }
    }

    /// A receipt whose content is known.
    pub(super) fn known(positions: Vec<StreamPosition>, skipped: Skipped) -> Self {
        let counted = match skipped {
            Skipped::Nobody => return Self { positions, skipped: None },
            Skipped::Unknown => None,
            Skipped::Counted(count) => usize::try_from(count).ok(),
        };
        let counted = future::ready(counted).boxed().shared();
        // The future is polled once, so that `known_skipped` finds its result.
        let _ = counted.clone().now_or_never();
        Self { positions, skipped: Some(counted) }
    }

    /// The result of [`skipped`](Self::skipped); unknown if it was not called, or has not finished.
    pub(super) fn known_skipped(&self) -> Skipped {
        match &self.skipped {
            None => Skipped::Nobody,
            Some(count) => match count.peek() {
                Some(Some(count)) => Skipped::Counted(*count as u64),
                Some(None) | None => Skipped::Unknown,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(skipped: Vec<oneshot::Receiver<usize>>, wait_max: Duration) -> Receipt {
        Receipt::new(Vec::new(), skipped, wait_max)
    }

    #[tokio::test]
    async fn a_receipt_sums_the_reports_of_all_threads_and_waits_only_until_its_deadline() {
        let (mut tell, mut skipped) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (told, heard) = oneshot::channel();
            tell.push(told);
            skipped.push(heard);
        }
        let (late, never) = oneshot::channel::<usize>();
        for (told, count) in tell.into_iter().zip([2, 3]) {
            told.send(count).expect("somebody waits");
        }
        let receipt = about(skipped, Duration::from_secs(10));
        assert!(receipt.may_skip());
        let clone = receipt.clone();
        assert_eq!(receipt.skipped().await, Some(5));
        assert_eq!(clone.skipped().await, Some(5));
        let receipt = about(vec![never], Duration::from_millis(10));
        assert_eq!(receipt.skipped().await, None);
        drop(late);
        let nothing = about(Vec::new(), Duration::ZERO);
        assert!(!nothing.may_skip());
    }
}
