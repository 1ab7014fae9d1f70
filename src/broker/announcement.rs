//! An announcement: what has changed among the members of a channel, on its way to those who are
//! there.

use std::sync::OnceLock;

use bytestring::ByteString;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    presence::Change,
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
    /// Per format, and the topic that it names: for a moment an app has two names.
    frames: [OnceLock<(ByteString, Frame)>; Format::COUNT],
    _permit: OwnedSemaphorePermit,
}

impl Announcement {
    pub(super) fn new(
        key: ScopeKey,
        channel: ChannelName,
        change: Change,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { key, channel, change, frames: Default::default(), _permit: permit }
    }

    /// The frame for those who joined `topic`, shared by all of them on all threads.
    pub(super) fn frame(&self, format: Format, topic: &ByteString) -> Frame {
        let spell = || (format.encode_change)(topic, &self.change);
        let (named, frame) = self.frames[format.slot].get_or_init(|| (topic.clone(), spell()));
        if named == topic { frame.clone() } else { spell() }
    }
}
