//! Positions: where a publication stands in the one order of its scope.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use uuid::Uuid;

/// Names one unbroken numbering of a scope's publications.
///
/// A scope whose numbering begins anew gets another epoch, so a position of an earlier numbering is
/// recognised and never taken for one of the present. The default is never given to a scope.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Epoch(u128);

/// The place of a publication in the order of its scope.
///
/// Offsets grow within an epoch and begin above zero; offset 0 stands before the first publication.
/// A gap between two offsets means nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct StreamPosition {
    /// The numbering that the offset belongs to.
    pub epoch: Epoch,
    /// The place within it.
    pub offset: u64,
}

/// Gives epochs, none twice: they begin at random for each process and count from there.
#[derive(Debug)]
pub struct Epochs {
    first: u128,
    given: AtomicU64,
}

impl Default for Epochs {
    fn default() -> Self {
        Self::new()
    }
}

impl Epochs {
    /// Begins at random.
    pub fn new() -> Self {
        // One bit of a random UUID is always set, and counting up does not reach it.
        Self { first: Uuid::new_v4().as_u128(), given: AtomicU64::new(0) }
    }

    /// Gives the next one.
    pub fn give(&self) -> Epoch {
        Epoch(self.first.wrapping_add(self.given.fetch_add(1, Relaxed).into()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_epoch_is_given_twice() {
        let processes = [Epochs::new(), Epochs::new()];
        let given = processes.iter().flat_map(|process| (0..1_000).map(|_| process.give()));
        assert_eq!(given.collect::<HashSet<_>>().len(), 2_000);
    }
}
