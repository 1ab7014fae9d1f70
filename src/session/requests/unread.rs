//! The bytes that were read from a connection and not handed over yet.

use std::ops::{Deref, DerefMut};

use bytes::{Buf, BytesMut};

/// Bytes that were read and not handed over, in a buffer that counts the memory that it occupies.
///
/// A [`BytesMut`] does not tell that figure once bytes are taken from its front: its capacity shrinks, but
/// its memory does not.
#[derive(Debug, Default)]
pub(in crate::session) struct UnreadBytes {
    bytes: BytesMut,
    allocated_bytes: usize,
}

impl UnreadBytes {
    /// Appends what was read. The buffer doubles as it grows, but not beyond `bytes_max`.
    pub(in crate::session) fn append(&mut self, read: &[u8], bytes_max: usize) {
        let needed = self.bytes.len() + read.len();
        if needed > self.bytes.capacity() {
            self.move_to(needed.max(bytes_max.min(2 * self.bytes.len())));
        }
        self.bytes.extend_from_slice(read);
    }

    /// Removes bytes from the front. The buffer is freed with the last of them.
    pub(in crate::session) fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if self.bytes.is_empty() {
            *self = Self::default();
        }
    }

    /// Moves the remaining bytes to a smaller buffer, if they are few in a large one.
    pub(in crate::session) fn shrink(&mut self) {
        if self.bytes.len() < self.allocated_bytes / 2 {
            self.move_to(self.bytes.len());
        }
    }

    /// The memory that the buffer occupies.
    pub(in crate::session) fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    /// The bytes, for a decoder that takes frames from their front.
    pub(in crate::session) fn bytes_mut(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The bytes alone.
    pub(in crate::session) fn into_bytes(self) -> BytesMut {
        self.bytes
    }

    fn move_to(&mut self, capacity: usize) {
        let mut moved = BytesMut::with_capacity(capacity);
        moved.extend_from_slice(&self.bytes);
        self.bytes = moved;
        self.allocated_bytes = capacity;
    }
}

impl From<BytesMut> for UnreadBytes {
    fn from(bytes: BytesMut) -> Self {
        Self { allocated_bytes: bytes.capacity(), bytes }
    }
}

impl Deref for UnreadBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for UnreadBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocated_bytes_are_reported_exactly_whatever_was_taken() {
        let mut unread = UnreadBytes::default();
        for (appended, allocated) in [(100, 100), (50, 200), (50, 200), (1, 400), (300, 501)] {
            unread.append(&vec![b'x'; appended], 450);
            assert_eq!((unread.allocated_bytes(), unread.bytes.capacity()), (allocated, allocated));
        }
        unread.advance(300);
        assert_eq!((unread.len(), unread.allocated_bytes()), (201, 501), "its memory is kept");
        unread.shrink();
        assert_eq!((unread.len(), unread.allocated_bytes()), (201, 201));
        unread.advance(1);
        unread.shrink();
        assert_eq!(unread.allocated_bytes(), 201, "not worth a move");
        unread.advance(200);
        assert_eq!((unread.len(), unread.allocated_bytes()), (0, 0));
    }
}
