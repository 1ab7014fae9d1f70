//! The backlog: all frames that wait for clients, over all sessions and threads.
//!
//! A frame is counted when it is encoded, and subtracted when the last outbox that holds it drops
//! it. A frame that thousands of sessions share counts once, because it is in memory once, and a
//! delivery costs nothing.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use bytestring::ByteString;

use super::subscriber::Frame;

/// The bytes of all frames that wait, and their limit. Clones share the count.
#[derive(Debug, Clone)]
pub struct Backlog(Arc<BacklogCount>);

#[derive(Debug)]
struct BacklogCount {
    bytes: AtomicUsize,
    bytes_max: usize,
    /// The number of sessions of all threads.
    sessions: AtomicUsize,
}

impl Backlog {
    /// An empty backlog with this limit.
    pub fn new(bytes_max: usize) -> Self {
        let (bytes, sessions) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self(Arc::new(BacklogCount { bytes, bytes_max, sessions }))
    }

    /// Notes that a session begins.
    pub(super) fn enter(&self) {
        self.0.sessions.fetch_add(1, Relaxed);
    }

    /// Notes that a session is over.
    pub(super) fn leave(&self) {
        self.0.sessions.fetch_sub(1, Relaxed);
    }

    /// The limit divided by the number of sessions, in bytes. While the backlog exceeds its limit, the frames
    /// of at least one session exceed this part, so no session below it needs to be ended.
    pub(super) fn equal_part(&self) -> usize {
        self.0.bytes_max / self.0.sessions.load(Relaxed).max(1)
    }

    /// Returns whether the backlog exceeds its limit.
    pub fn is_exceeded(&self) -> bool {
        self.0.bytes.load(Relaxed) > self.0.bytes_max
    }

    /// Returns the same frame, which counts until its last clone is dropped.
    pub fn count(&self, frame: Frame) -> Frame {
        match frame {
            Frame::Text(text) => {
                let counted = self.counted(text.into_bytes());
                // The bytes came from a text, so the check always succeeds.
                Frame::Text(ByteString::try_from(counted).unwrap_or_default())
            }
            Frame::Binary(bytes) => Frame::Binary(self.counted(bytes)),
            // The parts of a split frame are counted when each is made, because other frames share its body.
            split @ Frame::Split(_) => split,
        }
    }

    /// Returns the same bytes, which count until the last slice of them is dropped.
    pub fn counted(&self, bytes: Bytes) -> Bytes {
        self.0.bytes.fetch_add(bytes.len(), Relaxed);
        Bytes::from_owner(CountedBytes { bytes, count: self.0.clone() })
    }
}

/// The bytes of a frame; they are taken off the count when they are dropped.
struct CountedBytes {
    bytes: Bytes,
    count: Arc<BacklogCount>,
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.count.bytes.fetch_sub(self.bytes.len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_has_an_equal_part() {
        let backlog = Backlog::new(1_000);
        assert_eq!(backlog.equal_part(), 1_000, "nobody is there");
        for expected in [1_000, 500, 333] {
            backlog.enter();
            assert_eq!(backlog.equal_part(), expected);
        }
        backlog.leave();
        assert_eq!(backlog.equal_part(), 500);
    }

    #[test]
    fn a_frame_counts_once_until_the_last_that_shares_it_is_gone() {
        let backlog = Backlog::new(10);
        let waits = || backlog.0.bytes.load(Relaxed);
        for frame in [
            Frame::Text("caf\u{e9} and text".into()),
            Frame::Binary(Bytes::from_static(b"\xff12345678901")),
        ] {
            let counted = backlog.count(frame.clone());
            assert_eq!(counted, frame);
            let shared = vec![counted.clone(); 1_000];
            assert_eq!((waits(), backlog.is_exceeded()), (frame.size_bytes(), true));
            drop(counted);
            assert_eq!(waits(), frame.size_bytes(), "others wait for it");
            drop(shared);
            assert_eq!((waits(), backlog.is_exceeded()), (0, false));
        }
        let just_fits = backlog.count(Frame::Text("0123456789".into()));
        assert!(!backlog.is_exceeded());
        drop(just_fits);
    }

    #[test]
    fn a_body_counts_whole_until_its_last_piece_is_gone() {
        let backlog = Backlog::new(10);
        let mut body = backlog.counted(Bytes::from(vec![0; 100]));
        let piece = body.split_to(99);
        drop(body);
        assert_eq!(backlog.0.bytes.load(Relaxed), 100);
        drop(piece);
        assert_eq!(backlog.0.bytes.load(Relaxed), 0);
    }
}
