//! An announcement: what has changed among the members of a channel, on its way to those who are
//! there.

use bytestring::ByteString;

use super::{
    permits::Permit,
    presence::Change,
    spellings::Spellings,
    subscriber::{Format, Frame, ScopeKey},
    topic_name::ChannelName,
};

/// A change and its frames, each spelled at most once.
///
/// It goes the way of publications and is bounded like them: by a permit that is held until the
/// last fan-out has let go of it.
pub(super) struct Announcement {
    pub(super) key: ScopeKey,
    pub(super) channel: ChannelName,
    change: Change,
    /// Per format.
    frames: [Spellings<Frame>; Format::COUNT],
    _permit: Permit,
}

impl Announcement {
    pub(super) fn new(key: ScopeKey, channel: ChannelName, change: Change, permit: Permit) -> Self {
        Self { key, channel, change, frames: Default::default(), _permit: permit }
    }

    /// The frame for the members who joined `topic`, shared by all of them on all threads.
    pub(super) fn frame(&self, format: Format, topic: &ByteString) -> Frame {
        self.frames[format.index()].of(topic, || (format.encode_change)(topic, &self.change))
    }
}
