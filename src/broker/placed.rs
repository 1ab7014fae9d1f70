//! A publication that has been taken: its permit, and its frames, each encoded at most once.

use std::sync::OnceLock;

use bytestring::ByteString;
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
    /// Per format and level, and the topic that it names: an app that is renamed has for a moment
    /// subscribers under both of its names.
    frames: [[OnceLock<(ByteString, Frame)>; 2]; Format::COUNT],
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
    pub(super) fn frame(&self, format: Format, level: Level, topic: &ByteString) -> Frame {
        if let (Level::Channel, Destination::General) = (level, &self.publication.destination) {
            return self.encode(format, level, topic);
        }
        let cell = &self.frames[format.slot][level as usize];
        let (named, frame) =
            cell.get_or_init(|| (topic.clone(), self.encode(format, level, topic)));
        if named == topic { frame.clone() } else { self.encode(format, level, topic) }
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

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicUsize, atomic::Ordering::SeqCst},
        thread,
    };

    use super::super::testing::{key, permit, publication};
    use super::*;

    fn spelled(delivery: &Delivery<'_>) -> Frame {
        let Delivery { topic, event, payload } = delivery;
        Frame(format!("{topic} {event} {}", payload.as_str()).into())
    }

    fn placed(destination: &str) -> Placed {
        Placed::new(publication(&key(1, "public"), destination, "msg"), permit())
    }

    #[test]
    fn a_name_is_bare_where_it_was_published_and_else_prefixed_by_where_it_came_from() {
        for (level, destination, expected) in [
            (Level::Scope, "room", "t room:msg {}"),
            (Level::Channel, "room", "t msg {}"),
            (Level::Scope, "#general", "t msg {}"),
            (Level::Channel, "#general", "t #general:msg {}"),
        ] {
            let format = Format { slot: 0, encode: spelled };
            let frame = placed(destination).frame(format, level, &"t".into());
            assert_eq!(frame.0, expected, "{level:?} {destination}");
        }
    }

    #[test]
    fn a_topic_under_another_name_is_spelled_by_that_name() {
        let (format, placed) = (Format { slot: 0, encode: spelled }, placed("room"));
        for topic in ["old", "new", "old"] {
            let frame = placed.frame(format, Level::Scope, &topic.into());
            assert_eq!(frame.0, format!("{topic} room:msg {{}}"));
        }
    }

    static CALLS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

    fn counted<const SLOT: usize>(delivery: &Delivery<'_>) -> Frame {
        CALLS[SLOT].fetch_add(1, SeqCst);
        spelled(delivery)
    }

    #[test]
    fn e117_a_thousand_subscribers_share_one_encoding_per_version() {
        let formats =
            [Format { slot: 0, encode: counted::<0> }, Format { slot: 1, encode: counted::<1> }];
        for (nth, (level, destination)) in
            [(Level::Scope, "room"), (Level::Channel, "room"), (Level::Scope, "#general")]
                .into_iter()
                .enumerate()
        {
            let placed = Arc::new(placed(destination));
            thread::scope(|threads| {
                for _ in 0..4 {
                    threads.spawn(|| {
                        for _ in 0..250 {
                            for format in formats {
                                placed.frame(format, level, &"t".into());
                            }
                        }
                    });
                }
            });
            let calls = [CALLS[0].load(SeqCst), CALLS[1].load(SeqCst)];
            assert_eq!(calls, [nth + 1; 2], "{level:?} {destination}");
        }
    }
}
