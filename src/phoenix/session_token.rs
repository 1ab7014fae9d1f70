//! The tokens by which long-poll clients name their sessions.
//!
//! A token is `<session id>.<HMAC-SHA256 of it>`, both in base64 for URLs: 66 characters that need no escaping.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use uuid::Uuid;

/// A prefix of the signed text, so that a signature made for another purpose is not valid here.
const PURPOSE: &[u8] = b"herald long-poll session";

/// Mints and reads the tokens of sessions. They cannot be guessed, and stay authentic after a
/// restart.
#[derive(Clone)]
pub struct SessionTokens(SecretString);

impl SessionTokens {
    /// Signs with the server's own key, which is kept across restarts.
    pub fn new(secret_key_base: SecretString) -> Self {
        Self(secret_key_base)
    }

    /// A session's token.
    pub fn mint(&self, id: Uuid) -> String {
        let signature = self.mac(id).finalize().into_bytes();
        format!("{}.{}", URL_SAFE_NO_PAD.encode(id), URL_SAFE_NO_PAD.encode(signature))
    }

    /// The session that a token names; `None` if the token was not signed with the server's key.
    pub fn read(&self, token: &str) -> Option<Uuid> {
        let (id, signature) = token.split_once('.')?;
        let id = Uuid::from_slice(&URL_SAFE_NO_PAD.decode(id).ok()?).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        self.mac(id).verify_slice(&signature).ok()?;
        Some(id)
    }

    fn mac(&self, id: Uuid) -> Hmac<Sha256> {
        let key = self.0.expose_secret().as_bytes();
        let mut mac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(PURPOSE);
        mac.update(id.as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(key: &str) -> SessionTokens {
        SessionTokens::new(key.into())
    }

    #[test]
    fn a_token_names_its_session_also_for_the_next_process() {
        let id = Uuid::new_v4();
        let token = tokens("key").mint(id);
        assert_eq!(tokens("key").read(&token), Some(id));
        assert_eq!(token.len(), 66);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        assert!(token.chars().all(is_plain), "{token} needs no escaping");
    }

    #[test]
    fn a_foreign_token_names_no_session() {
        let (ours, other) = (tokens("key"), Uuid::new_v4());
        let token = ours.mint(Uuid::new_v4());
        let (id, signature) = token.split_once('.').expect("two parts");
        let other_id = URL_SAFE_NO_PAD.encode(other);
        for (case, forged) in [
            ("nothing", String::new()),
            ("an app's own", "APP".to_owned()),
            ("a dot", ".".to_owned()),
            ("the id alone", id.to_owned()),
            ("no signature", format!("{id}.")),
            ("no id", format!(".{signature}")),
            ("another session's signature", format!("{other_id}.{signature}")),
            ("cut short", token[..token.len() - 1].to_owned()),
            ("half a signature", format!("{id}.{}", &signature[..22])),
            ("longer", format!("{token}A")),
            ("a third part", format!("{token}.{signature}")),
            ("padded", format!("{token}=")),
            ("other letters", token.to_uppercase()),
            ("a space", format!(" {token}")),
            ("an id too short", format!("AAAA.{signature}")),
            ("not ASCII", format!("{id}.é")),
            ("another key's", tokens("another key").mint(other)),
            ("a JWT", "eyJhbGciOiJIUzI1NiJ9.e30.c2ln".to_owned()),
        ] {
            assert_eq!(ours.read(&forged), None, "{case}");
        }
    }
}
