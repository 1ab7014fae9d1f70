//! Spellings: one frame under each of the names that a topic goes by.

use std::sync::OnceLock;

use bytestring::ByteString;

/// Frames that differ only in the topic that they name. Each is encoded once, by the caller that
/// needs it first, and shared by all threads.
///
/// A topic has one name in nearly all cases, which is then found by one comparison. The further ones
/// are a list: an app that was renamed has two names for a moment, and a server with a single app
/// two ways to name each channel.
#[derive(Debug)]
pub(super) struct Spellings<F>(OnceLock<Box<Spelling<F>>>);

#[derive(Debug)]
struct Spelling<F> {
    topic: ByteString,
    frame: F,
    others: Spellings<F>,
}

impl<F> Default for Spellings<F> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<F: Clone> Spellings<F> {
    /// The frame that names `topic`; `spell` makes it if there is none yet.
    pub(super) fn of(&self, topic: &ByteString, spell: impl Fn() -> F) -> F {
        let mut spellings = self;
        loop {
            let spelling = spellings.0.get_or_init(|| {
                let (topic, others) = (topic.clone(), Self::default());
                Box::new(Spelling { topic, frame: spell(), others })
            });
            if spelling.topic == *topic {
                return spelling.frame.clone();
            }
            spellings = &spelling.others;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        thread,
    };

    use super::*;

    #[test]
    fn each_name_is_spelled_once_for_all_threads() {
        let (spellings, spelled) = (Spellings::default(), AtomicUsize::new(0));
        let names = ["public:web", "public:only:web", "public:web2"].map(ByteString::from_static);
        let spell = |name: &ByteString| {
            spelled.fetch_add(1, SeqCst);
            format!("a frame for {name}")
        };
        thread::scope(|threads| {
            for first in 0..6 {
                let (spellings, names) = (&spellings, &names);
                threads.spawn(move || {
                    for name in (0..100).map(|nth| &names[(first + nth) % names.len()]) {
                        let frame = spellings.of(name, || spell(name));
                        assert_eq!(frame, format!("a frame for {name}"));
                    }
                });
            }
        });
        assert_eq!(spelled.into_inner(), names.len());
    }
}
