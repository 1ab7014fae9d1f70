//! Spellings: one frame for each name of a topic.

use std::sync::OnceLock;

use bytestring::ByteString;

/// Frames that differ only in the topic that they name. Each is encoded once, by the first caller that
/// needs it, and shared by all threads.
///
/// In nearly all cases a topic has one name, which is found by one comparison. Further names are a list:
/// shortly after an app was renamed its topics have two names, and a server with a single app has two
/// spellings of each channel.
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
    /// The frame that names `topic`. It is made by `spell` if it does not exist yet.
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
