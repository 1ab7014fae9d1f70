//! The names of sessions that clients are told: `<number>.<signature>`, both decimal.
//!
//! A client that has the name of a session can exclude that session from a publication. The name therefore
//! cannot be guessed, although the number in it can. Each node can read the names that all nodes make.

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::broker::subscriber::SessionId;

/// The prefix of every text that is signed here. No signature that the server's key makes for another purpose
/// is therefore valid for a name.
const PURPOSE: &[u8] = b"herald socket id";

/// Makes and reads the public names of sessions. Servers with the same `SECRET_KEY_BASE` can read each
/// other's names. A name of an earlier process does not name another session now, because the numbers of
/// each process begin at a random one.
#[derive(Clone)]
pub struct PublicIds(Hmac<Sha256>);

impl PublicIds {
    /// Signs names with this `SECRET_KEY_BASE`.
    pub fn new(secret_key_base: &SecretString) -> Self {
        let key = secret_key_base.expose_secret().as_bytes();
        let mut mac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(PURPOSE);
        Self(mac)
    }

    /// The public name of a session.
    pub fn spell(&self, session: SessionId) -> String {
        format!("{}.{}", session.0, u64::from_be_bytes(self.signature(session)))
    }

    /// The session that a name stands for; `None` if the signature is not valid. The session may have ended.
    pub fn read(&self, name: &str) -> Option<SessionId> {
        let (number, signature) = name.split_once('.')?;
        let session = SessionId(number.parse().ok()?);
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
        let mut mac = self.0.clone();
        mac.update(&session.0.to_be_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::node::NodeId;

    #[test]
    fn a_name_stands_for_its_session_alone_at_all_servers_with_the_key() {
        let [ids, node, others] =
            ["base", "base", "other"].map(|base| PublicIds::new(&base.into()));
        for session in [0, 1, 1 << 40].map(|nth| SessionId::new(NodeId(7), nth)) {
            let name = ids.spell(session);
            let (number, signature) = name.split_once('.').expect("two numbers");
            assert!([number, signature].iter().all(|part| part.parse::<u64>().is_ok()), "{name}");
            assert_eq!(ids.read(&name), Some(session));
            assert_eq!(node.read(&name), Some(session));
            assert_eq!(others.read(&name), None);
            assert_eq!(ids.read(&format!("{}.{signature}", session.0 + 1)), None);
            assert_eq!(session.node(), NodeId(7));
        }
        for name in ["", ".", "1", "1.", ".1", "1.2.3", "1.-1", "a.b"] {
            assert_eq!(ids.read(name), None, "{name}");
        }
    }
}
