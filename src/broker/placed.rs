//! A publication that has been taken: its permit, and its frames, each encoded at most once.

use std::sync::OnceLock;

use tokio::sync::OwnedSemaphorePermit;

use super::{
    publication::{Destination, Publication},
    subscriber::{Delivery, Format, Frame, ScopeKey},
};

/// Which kind of topic a subscriber joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// The scope as a whole: `S:app`.
    Scope,
    /// One channel of it: `S:app:C`.
    Channel,
}

/// A publication on its way from its topic to the fan-outs.
///
/// It holds the permit that bounds what is under way, until the last fan-out has let go of it.
pub(super) struct Placed {
    publication: Publication,
    key: ScopeKey,
    frames: [[OnceLock<Frame>; 2]; Format::COUNT],
    _permit: OwnedSemaphorePermit,
}

impl Placed {
    pub(super) fn new(publication: Publication, permit: OwnedSemaphorePermit) -> Self {
        let key = ScopeKey { app: publication.app, scope: publication.scope.clone() };
        Self { publication, key, frames: Default::default(), _permit: permit }
    }

    pub(super) fn key(&self) -> &ScopeKey {
        &self.key
    }

    pub(super) fn destination(&self) -> &Destination {
        &self.publication.destination
    }

    /// The frame for those who joined `topic`, shared by all of them on all threads.
    ///
    /// Only a publication to `#general` at channel level is spelled per call: there every channel
    /// has a topic of its own, and the caller shares the frame within one channel and thread.
    pub(super) fn frame(&self, format: Format, level: Level, topic: &str) -> Frame {
        match (level, &self.publication.destination) {
            (Level::Channel, Destination::General) => self.encode(format, level, topic),
            _ => self.frames[format.slot][level as usize]
                .get_or_init(|| self.encode(format, level, topic))
                .clone(),
        }
    }

    fn encode(&self, format: Format, level: Level, topic: &str) -> Frame {
        let Publication { destination, event, payload, .. } = &self.publication;
        let bare = matches!(
            (level, destination),
            (Level::Scope, Destination::General) | (Level::Channel, Destination::Channel(_))
        );
        let prefixed;
        let event = if bare {
            event.as_str()
        } else {
            prefixed = format!("{}:{event}", destination.as_str());
            &prefixed
        };
        (format.encode)(&Delivery { topic, event, payload })
    }
}
