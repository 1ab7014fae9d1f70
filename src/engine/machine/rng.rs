//! Pseudo-random ids from a seed (SplitMix64), so that a simulation can be repeated.

use crate::engine::{Incarnation, LogEpoch};

#[derive(Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn epoch(&mut self) -> LogEpoch {
        LogEpoch(self.next().max(1))
    }

    pub(super) fn incarnation(&mut self) -> Incarnation {
        Incarnation(self.next().max(1))
    }
}
