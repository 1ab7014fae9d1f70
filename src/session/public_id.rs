//! The public ids of sessions, which Pusher's clients know as socket ids: `<number>.<signature>`, both decimal.
//!
//! The number of a session, and the difference of two, would tell how many sessions the server has. A public id
//! therefore has another number in its place, which only servers with the same key can turn back.
//!
//! A client that knows the public id of a session can exclude that session from a publication, so the id
//! cannot be guessed. Each node can read the ids that all nodes make.

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::broker::subscriber::SessionId;

/// The prefix of every text that is signed here. No signature that the server's key makes for another purpose
/// is therefore valid for a public id.
const PURPOSE: &[u8] = b"herald socket id";

/// The same for the numbers in public ids.
const NUMBER_PURPOSE: &[u8] = b"herald socket number";

/// Replaces each number by another one: a Feistel network of four rounds over the two halves of the number.
/// Only servers with the same key can turn the number back.
#[derive(Clone)]
pub struct Permutation(Hmac<Sha256>);

impl Permutation {
    /// A permutation for this purpose. Permutations for different purposes have nothing in common.
    pub fn new(secret_key_base: &SecretString, purpose: &[u8]) -> Self {
        Self(keyed(secret_key_base, purpose))
    }

    /// The number that stands for this one.
    pub fn hide(&self, number: u64) -> u64 {
        let (mut left, mut right) = ((number >> 32) as u32, number as u32);
        for round in 0..4 {
            (left, right) = (right, left ^ self.mix(round, right));
        }
        u64::from(left) << 32 | u64::from(right)
    }

    /// The number for which this one stands.
    pub fn reveal(&self, hidden: u64) -> u64 {
        let (mut left, mut right) = ((hidden >> 32) as u32, hidden as u32);
        for round in (0..4).rev() {
            (left, right) = (right ^ self.mix(round, left), left);
        }
        u64::from(left) << 32 | u64::from(right)
    }

    fn mix(&self, round: u8, half: u32) -> u32 {
        let mut mac = self.0.clone();
        mac.update(&[round]);
        mac.update(&half.to_be_bytes());
        let [a, b, c, d, ..]: [u8; 32] = mac.finalize().into_bytes().into();
        u32::from_be_bytes([a, b, c, d])
    }
}

fn keyed(secret_key_base: &SecretString, purpose: &[u8]) -> Hmac<Sha256> {
    let key = secret_key_base.expose_secret().as_bytes();
    let mut mac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(purpose);
    mac
}

/// Makes and reads the public ids of sessions. Servers with the same `SECRET_KEY_BASE` can read each
/// other's ids. An id of an earlier process does not stand for another session now, because the numbers of
/// each process begin at a random one.
#[derive(Clone)]
pub struct PublicIds {
    signatures: Hmac<Sha256>,
    numbers: Permutation,
}

impl PublicIds {
    /// Signs ids with this `SECRET_KEY_BASE`.
    pub fn new(secret_key_base: &SecretString) -> Self {
        Self {
            signatures: keyed(secret_key_base, PURPOSE),
            numbers: Permutation::new(secret_key_base, NUMBER_PURPOSE),
        }
    }

    /// The public id of a session.
    pub fn spell(&self, session: SessionId) -> String {
        let signature = u64::from_be_bytes(self.signature(session));
        format!("{}.{signature}", self.numbers.hide(session.0))
    }

    /// The session that a public id stands for; `None` if the signature is not valid. The session may have ended.
    pub fn read(&self, id: &str) -> Option<SessionId> {
        let (number, signature) = id.split_once('.')?;
        let session = SessionId(self.numbers.reveal(number.parse().ok()?));
        let signature: u64 = signature.parse().ok()?;
        // The comparison takes constant time, because the signature could otherwise be guessed byte by byte.
        self.mac(session).verify_truncated_left(&signature.to_be_bytes()).ok()?;
        Some(session)
    }

    fn signature(&self, session: SessionId) -> [u8; 8] {
        let signature = self.mac(session).finalize().into_bytes();
        signature.first_chunk().copied().expect("a signature has 32 bytes")
    }

    fn mac(&self, session: SessionId) -> Hmac<Sha256> {
        let mut mac = self.signatures.clone();
        mac.update(&session.0.to_be_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::node::NodeId;

    #[test]
    fn an_id_stands_for_its_session_alone_at_all_servers_with_the_key() {
        let [ids, node, others] =
            ["base", "base", "other"].map(|base| PublicIds::new(&base.into()));
        let spelled = |number| {
            let id = ids.spell(SessionId(number));
            id.split_once('.').expect("two numbers").0.to_owned()
        };
        for session in [0, 1, 1 << 40].map(|nth| SessionId::new(NodeId(7), nth)) {
            let id = ids.spell(session);
            let (number, signature) = id.split_once('.').expect("two numbers");
            assert!([number, signature].iter().all(|part| part.parse::<u64>().is_ok()), "{id}");
            assert_eq!(ids.read(&id), Some(session));
            assert_eq!(node.read(&id), Some(session));
            assert_eq!(others.read(&id), None);
            let [hidden, next]: [u64; 2] =
                [number, &spelled(session.0 + 1)].map(|number| number.parse().expect("a number"));
            assert_eq!(ids.read(&format!("{next}.{signature}")), None);
            assert_eq!(ids.read(&format!("{}.{signature}", session.0)), None, "not hidden");
            assert_ne!(hidden >> 32, next >> 32, "neighbours are not alike");
            assert_eq!(session.node(), NodeId(7));
        }
        for id in ["", ".", "1", "1.", ".1", "1.2.3", "1.-1", "a.b"] {
            assert_eq!(ids.read(id), None, "{id}");
        }
    }
}
