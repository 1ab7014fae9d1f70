//! References: unique names for the states of presence members.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytestring::ByteString;
use uuid::Uuid;

/// The source of names of 16 URL-safe characters, which gives none of them twice: one half is random for
/// this process, and the other half counts. So a client that reconnects after a restart does not receive a
/// name that it already has.
#[derive(Debug)]
pub(super) struct References {
    process: [u8; 6],
    given: AtomicU64,
}

impl References {
    pub(super) fn new() -> Self {
        let [a, b, c, d, e, f, ..] = Uuid::new_v4().into_bytes();
        Self { process: [a, b, c, d, e, f], given: AtomicU64::new(0) }
    }

    pub(super) fn give(&self) -> ByteString {
        let [_, _, counted @ ..] = self.given.fetch_add(1, Relaxed).to_be_bytes();
        let bytes: [[u8; 6]; 2] = [self.process, counted];
        URL_SAFE_NO_PAD.encode(bytes.as_flattened()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_reference_is_given_twice_and_each_has_sixteen_characters() {
        let processes = [References::new(), References::new()];
        let given = processes.iter().flat_map(|p| (0..1_000).map(|_| p.give()));
        let all: HashSet<_> = given.collect();
        assert_eq!(all.len(), 2_000);
        for reference in all {
            assert_eq!(reference.len(), 16, "{reference}");
            let is_safe = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            assert!(reference.bytes().all(is_safe), "{reference}");
        }
    }
}
