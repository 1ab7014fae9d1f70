//! The backlog: all frames that wait for clients, over all sessions and threads.
//!
//! A frame is counted when it is spelled and forgotten when the last session that waits for it has
//! let go of it. So what thousands share counts once, as it lies in memory once, and a delivery costs
//! nothing for it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use bytestring::ByteString;

use super::subscriber::Frame;

/// The bytes of all frames that wait, and how many there may be. Clones share the count.
#[derive(Debug, Clone)]
pub struct Backlog(Arc<Count>);

#[derive(Debug)]
struct Count {
    bytes: AtomicUsize,
    bytes_max: usize,
    /// The sessions that frames may wait for, over all threads.
    sessions: AtomicUsize,
}

impl Backlog {
    /// Nothing waits; at most `bytes_max` may.
    pub fn new(bytes_max: usize) -> Self {
        let (bytes, sessions) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self(Arc::new(Count { bytes, bytes_max, sessions }))
    }

    /// A session begins.
    pub(super) fn enter(&self) {
        self.0.sessions.fetch_add(1, Relaxed);
    }

    /// A session is over.
    pub(super) fn leave(&self) {
        self.0.sessions.fetch_sub(1, Relaxed);
    }

    /// The equal part of each session, in bytes. While more waits than may, at least one session of some
    /// thread keeps more than this, so a session that keeps less never has to give way.
    pub(super) fn equal_part(&self) -> usize {
        self.0.bytes_max / self.0.sessions.load(Relaxed).max(1)
    }

    /// Whether more waits than may.
    pub fn is_exceeded(&self) -> bool {
        self.0.bytes.load(Relaxed) > self.0.bytes_max
    }

    /// The same frame, counted until its last clone is dropped.
    pub fn count(&self, frame: Frame) -> Frame {
        match frame {
            Frame::Text(text) => {
                let counted = self.counted(text.into_bytes());
                // What was text is text; the check is the price of a safe conversion.
                Frame::Text(ByteString::try_from(counted).unwrap_or_default())
            }
            Frame::Binary(bytes) => Frame::Binary(self.counted(bytes)),
            // Its parts are counted one by one, because other frames share the second.
            split @ Frame::Split(_) => split,
        }
    }

    /// The same bytes, counted until the last slice of them is dropped.
    pub fn counted(&self, bytes: Bytes) -> Bytes {
        self.0.bytes.fetch_add(bytes.len(), Relaxed);
        Bytes::from_owner(Counted { bytes, count: self.0.clone() })
    }
}

/// The bytes of a frame; they are taken off the count when they are dropped.
struct Counted {
    bytes: Bytes,
    count: Arc<Count>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
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
