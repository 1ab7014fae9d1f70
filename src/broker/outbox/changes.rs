//! An announcement in an outbox: the frames that tell a session of the changes among the members of a channel.

use std::sync::Arc;

use crate::broker::subscriber::{ChangeFrame, Frame, SessionId};

/// The frames of an announcement in one format, shared by all sessions.
#[derive(Debug)]
pub(in crate::broker) struct ChangeFrames {
    frames: Vec<ChangeFrame>,
    bytes: usize,
    /// The sessions to which some frame is not sent, each with the size of that frame, sorted.
    excepted: Vec<(SessionId, usize)>,
}

impl ChangeFrames {
    pub(in crate::broker) fn new(frames: Vec<ChangeFrame>) -> Self {
        let bytes = frames.iter().map(|change| change.frame.size_bytes()).sum();
        let excepted = frames.iter().flat_map(|ChangeFrame { frame, except }| {
            except.iter().map(|session| (*session, frame.size_bytes()))
        });
        let mut excepted: Vec<_> = excepted.collect();
        excepted.sort_unstable();
        Self { frames, bytes, excepted }
    }
}

/// The frames of an announcement that a session has yet to take. There is at least one.
///
/// They wait as one item and count as one frame, with all their bytes. A format may have a frame for each user, and
/// then the death of a node is more frames than an outbox has room for, although its client keeps up.
#[derive(Debug)]
pub(in crate::broker) struct PendingChanges {
    all: Arc<ChangeFrames>,
    session: SessionId,
    /// The index of the next frame, which may be one that is not sent to this session.
    next: usize,
    left: usize,
    left_bytes: usize,
}

impl PendingChanges {
    /// The frames of an announcement for this session; `None` if none is for it.
    pub(in crate::broker) fn new(all: &Arc<ChangeFrames>, session: SessionId) -> Option<Self> {
        let ChangeFrames { frames, bytes, excepted } = &**all;
        let first = excepted.partition_point(|(other, _)| *other < session);
        let own = excepted[first..].iter().take_while(|(other, _)| *other == session);
        let (own, own_bytes) = own.fold((0, 0), |(count, sum), (_, size)| (count + 1, sum + size));
        let (left, left_bytes) = (frames.len() - own, bytes - own_bytes);
        (left > 0).then(|| Self { all: all.clone(), session, next: 0, left, left_bytes })
    }

    /// The number of frames that are left.
    pub(in crate::broker) fn left(&self) -> usize {
        self.left
    }

    /// The bytes of the frames that are left.
    pub(in crate::broker) fn left_bytes(&self) -> usize {
        self.left_bytes
    }

    /// Takes the next frame; `None` if none is left.
    pub(super) fn take(&mut self) -> Option<Frame> {
        let rest = self.all.frames.get(self.next..)?;
        let nth = rest.iter().position(|change| !change.except.contains(&self.session))?;
        let frame = rest.get(nth)?.frame.clone();
        self.next += nth + 1;
        (self.left, self.left_bytes) = (self.left - 1, self.left_bytes - frame.size_bytes());
        Some(frame)
    }
}
