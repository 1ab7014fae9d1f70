//! The digests of an app's credentials, which are compared with those of a request.

use std::fmt;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{App, key_pair::Pair};

/// The SHA-256 of a text. Digests are compared in place of texts, so that the time of a comparison
/// reveals neither how close a wrong text is to the right one nor how long the right one is.
#[derive(Clone, Copy, Default)]
pub struct TextDigest([u8; 32]);

impl fmt::Debug for TextDigest {
    /// Does not show the digest, from which a weak secret could be guessed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TextDigest")
    }
}

impl TextDigest {
    /// Makes the digest of a text.
    pub fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Returns whether this is the digest of the text.
    pub fn is_of(&self, expected: &str) -> Choice {
        self.0.ct_eq(&Self::of(expected.as_bytes()).0)
    }
}

/// The digests of an app's pairs. They are made once, when the app becomes part of a snapshot, because
/// each request needs them.
///
/// By default these are the digests of an app without pairs: nobody knows a text whose digest is zero.
#[derive(Debug, Clone, Default)]
pub struct PairDigests {
    /// Of `<key>:<secret>`, which is what HTTP Basic sends.
    logins: [TextDigest; 2],
    secrets: [TextDigest; 2],
}

impl PairDigests {
    /// Those of an unknown app.
    pub const NONE: Self =
        Self { logins: [TextDigest([0; 32]); 2], secrets: [TextDigest([0; 32]); 2] };

    pub(super) fn of(app: &App) -> Self {
        let current = Some((&app.key, &app.secret));
        let previous = app.previous.as_ref().map(|pair| (&pair.key, &pair.secret));
        let pairs = [current, previous].map(|pair| {
            let pair = pair.map(|(key, secret)| (key, secret.expose_secret()));
            // The admin API creates no empty secret, but SQL can. An empty secret is known to
            // everybody, so it authenticates nobody.
            pair.filter(|(_, secret)| !secret.is_empty())
        });
        let login = |(key, secret): (&String, &str)| {
            let parts = Sha256::new().chain_update(key).chain_update(":").chain_update(secret);
            TextDigest(parts.finalize().into())
        };
        let secret = |(_, secret): (&String, &str)| TextDigest::of(secret.as_bytes());
        Self {
            logins: pairs.map(|pair| pair.map(login).unwrap_or_default()),
            secrets: pairs.map(|pair| pair.map(secret).unwrap_or_default()),
        }
    }

    /// The pair whose key and secret, with a colon between them, have this digest.
    pub fn find_login(&self, given: TextDigest) -> Option<Pair> {
        Self::find(&self.logins, given)
    }

    /// The pair whose secret has this digest.
    pub fn find_secret(&self, given: TextDigest) -> Option<Pair> {
        Self::find(&self.secrets, given)
    }

    /// Both pairs are always compared, so that the time does not reveal whether there are two.
    fn find([current, previous]: &[TextDigest; 2], given: TextDigest) -> Option<Pair> {
        let [is_current, is_previous] = [current, previous].map(|digest| digest.0.ct_eq(&given.0));
        let found = u8::conditional_select(&0, &1, is_previous);
        match u8::conditional_select(&found, &2, is_current) {
            2 => Some(Pair::Current),
            1 => Some(Pair::Previous),
            _ => None,
        }
    }
}
