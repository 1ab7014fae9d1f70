//! An announcement: the changes among the members of a channel, on their way to the members.

use std::sync::Arc;

use bytestring::ByteString;

use super::{
    backlog::Backlog,
    outbox::ChangeFrames,
    permits::Permit,
    presence::Change,
    spellings::Spellings,
    subscriber::{ChangeFrame, Format, ScopeKey},
    topic_name::ChannelName,
};

/// A change and its frames, each encoded at most once.
///
/// It passes through the same stream as publications and is bounded like them, by a permit that is
/// held until the last fan-out has dropped it.
pub(super) struct Announcement {
    pub(super) key: ScopeKey,
    pub(super) channel: ChannelName,
    change: Change,
    /// The frames, by format.
    frames: [Spellings<Arc<ChangeFrames>>; Format::COUNT],
    backlog: Backlog,
    _permit: Permit,
}

impl Announcement {
    pub(super) fn new(
        key: ScopeKey,
        channel: ChannelName,
        change: Change,
        permit: Permit,
        backlog: Backlog,
    ) -> Self {
        Self { key, channel, change, frames: Default::default(), backlog, _permit: permit }
    }

    /// The frames for the members that joined `topic`, shared by all of them on all threads.
    pub(super) fn frames(&self, format: Format, topic: &ByteString) -> Arc<ChangeFrames> {
        let counted = |ChangeFrame { frame, except }| {
            let frame = self.backlog.count(frame);
            ChangeFrame { frame, except }
        };
        let spell = || {
            let frames = (format.encode_change)(topic, &self.change);
            Arc::new(ChangeFrames::new(frames.into_iter().map(counted).collect()))
        };
        self.frames[format.index()].of(topic, spell)
    }
}
