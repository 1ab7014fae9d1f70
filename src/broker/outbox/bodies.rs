//! Bodies that several waiting frames share.

use std::collections::VecDeque;

use crate::broker::subscriber::Split;

/// The bodies that split frames in the queue share. Each counts once towards the load, because it is in memory
/// once.
///
/// Frames come and go in one order, so a search nearly always finds its body at one of the ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SharedBodies(VecDeque<SharedBody>);

/// A body that frames in the queue share.
#[derive(Debug, PartialEq, Eq)]
struct SharedBody {
    /// The address of the body.
    at: usize,
    /// The number of frames in the queue with this body.
    frames: usize,
}

impl SharedBodies {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes that one more frame with this body adds.
    pub(super) fn added_bytes(&self, split: &Split) -> usize {
        let at = address(split);
        let is_known = self.0.iter().rev().any(|waiting| waiting.at == at);
        if is_known { 0 } else { split.body.len() }
    }

    /// Adds a frame, and returns the bytes that this adds.
    pub(super) fn add(&mut self, split: &Split) -> usize {
        let at = address(split);
        if let Some(waiting) = self.0.iter_mut().rev().find(|waiting| waiting.at == at) {
            waiting.frames += 1;
            return 0;
        }
        self.0.push_back(SharedBody { at, frames: 1 });
        split.body.len()
    }

    /// Removes a frame, and returns the bytes that this frees.
    pub(super) fn remove(&mut self, split: &Split) -> usize {
        let at = address(split);
        let Some(nth) = self.0.iter().position(|waiting| waiting.at == at) else { return 0 };
        let waiting = &mut self.0[nth];
        waiting.frames -= 1;
        if waiting.frames > 0 {
            return 0;
        }
        self.0.remove(nth);
        split.body.len()
    }
}

/// The address identifies a body, because a frame in the queue keeps its body where it is.
fn address(split: &Split) -> usize {
    split.body.as_ptr().addr()
}
