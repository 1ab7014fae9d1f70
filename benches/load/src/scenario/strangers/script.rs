//! The bytes that one attacker sends, and the times at which it sends them.

use std::{rc::Rc, time::Duration};

/// Bytes that are sent once, then others that are repeated, then a few at a time.
///
/// All connections of an attack share the bytes.
#[derive(Debug, Clone)]
pub(super) struct Script {
    head: Rc<[u8]>,
    body: Rc<[u8]>,
    times: usize,
    drip: Option<Drip>,
    reads: bool,
    sent: usize,
}

/// Bytes that are sent again and again after a pause.
#[derive(Debug, Clone)]
pub(super) struct Drip {
    /// The bytes.
    pub(super) bytes: Rc<[u8]>,
    /// The pause.
    pub(super) every: Duration,
}

impl Script {
    /// Sends these bytes, and reads no answer.
    pub(super) fn once(head: impl Into<Rc<[u8]>>) -> Self {
        let (body, drip) = (Rc::default(), None);
        Self { head: head.into(), body, times: 0, drip, reads: false, sent: 0 }
    }

    /// Then sends these again and again.
    pub(super) fn then(self, body: impl Into<Rc<[u8]>>, times: usize) -> Self {
        Self { body: body.into(), times, ..self }
    }

    /// Then sends a few bytes after each pause.
    pub(super) fn dripping(self, bytes: impl Into<Rc<[u8]>>, every: Duration) -> Self {
        Self { drip: Some(Drip { bytes: bytes.into(), every }), ..self }
    }

    /// Reads what is answered.
    pub(super) fn reading(self) -> Self {
        Self { reads: true, ..self }
    }

    /// Whether answers are read.
    pub(super) fn reads(&self) -> bool {
        self.reads
    }

    /// The bytes to send next without a pause; empty at the end.
    pub(super) fn next(&self) -> &[u8] {
        if let Some(rest) = self.head.get(self.sent..).filter(|rest| !rest.is_empty()) {
            return rest;
        }
        let sent = self.sent - self.head.len();
        let is_over = self.body.is_empty() || sent / self.body.len() >= self.times;
        if is_over { &[] } else { &self.body[sent % self.body.len()..] }
    }

    /// Notes how much of it was sent.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
    }

    /// The bytes to send with pauses, after all others.
    pub(super) fn drip(&self) -> Option<&Drip> {
        self.drip.as_ref().filter(|_| self.next().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_sends_its_parts_in_order_wherever_it_is_cut() {
        for cut in 1..8 {
            let mut script =
                Script::once(*b"head").then(*b"abc", 2).dripping(*b".", Duration::from_secs(1));
            let mut sent = Vec::new();
            while !script.next().is_empty() {
                assert!(script.drip().is_none());
                let piece = script.next();
                let piece = piece[..piece.len().min(cut)].to_vec();
                script.advance(piece.len());
                sent.extend(piece);
            }
            assert_eq!(sent, b"headabcabc", "{cut}");
            assert_eq!(script.drip().map(|drip| drip.bytes.to_vec()), Some(b".".to_vec()));
        }
    }
}
