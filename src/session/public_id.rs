//! The names of sessions that clients are told: `<number>.<signature>`, both decimal.
//!
//! A client that has the name of a session can exclude that session from a publication. The name
//! therefore cannot be guessed, although the number in it can. All nodes read the names of all.

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::broker::subscriber::SessionId;

/// A prefix of what the key is used for, so that no other use of it tells a session's name.
const PURPOSE: &[u8] = b"herald socket id";

/// Makes and reads the public names of sessions. Servers with the same secret key base read each other's
/// names. A name that an earlier process gave stands for no session here, because the numbers of each
/// process begin at random.
#[derive(Clone)]
pub struct PublicIds(Hmac<Sha256>);

impl PublicIds {
    /// Names that servers with this secret key base can read.
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

    /// The session that a name stands for; `None` if no session has this name.
    pub fn read(&self, name: &str) -> Option<SessionId> {
        let (number, signature) = name.split_once('.')?;
        let session = SessionId(number.parse().ok()?);
        let signature: u64 = signature.parse().ok()?;
        // The comparison takes constant time, or the signature could be found digit by digit.
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
