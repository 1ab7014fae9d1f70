//! An announcement: the changes among the members of a channel, on their way to the members.

use std::sync::Arc;

use bytestring::ByteString;

use super::{
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
    frames: [Spellings<Arc<[ChangeFrame]>>; Format::COUNT],
    _permit: Permit,
}

impl Announcement {
    pub(super) fn new(key: ScopeKey, channel: ChannelName, change: Change, permit: Permit) -> Self {
        Self { key, channel, change, frames: Default::default(), _permit: permit }
    }

    /// The frames for the members that joined `topic`, shared by all of them on all threads.
    pub(super) fn frames(&self, format: Format, topic: &ByteString) -> Arc<[ChangeFrame]> {
        let spell = || (format.encode_change)(topic, &self.change).into();
        self.frames[format.index()].of(topic, spell)
    }
}
