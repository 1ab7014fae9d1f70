//! The digests of an app's credentials, which are compared with those of a request.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
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

    /// Makes the digest of `<key>:<secret>`, which is what HTTP Basic sends.
    pub fn of_login(key: &str, secret: &SecretString) -> Self {
        let parts = Sha256::new().chain_update(key).chain_update(":");
        Self(parts.chain_update(secret.expose_secret()).finalize().into())
    }

    /// Returns whether this is the digest of the text.
    pub fn is_of(&self, expected: &str) -> Choice {
        self.is(&Self::of(expected.as_bytes()))
    }

    /// Returns whether both are digests of the same text.
    pub fn is(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// The digests of an app's pairs. They are made once, when the app becomes part of a snapshot, because
/// each request needs them.
///
/// A pair that an app does not have has the digest zero: nobody knows a text with this digest.
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
            // The admin API creates no empty secret, but SQL can. An empty secret is known to
            // everybody, so it authenticates nobody.
            pair.filter(|(_, secret)| !secret.expose_secret().is_empty())
        });
        let login = |(key, secret): (&String, &SecretString)| TextDigest::of_login(key, secret);
        let secret = |(_, secret): (&String, &SecretString)| {
            TextDigest::of(secret.expose_secret().as_bytes())
        };
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
        let [is_current, is_previous] = [current, previous].map(|digest| digest.is(&given));
        let found = u8::conditional_select(&0, &1, is_previous);
        match u8::conditional_select(&found, &2, is_current) {
            2 => Some(Pair::Current),
            1 => Some(Pair::Previous),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::testing::{app, rotated};

    fn find(app: &App, key: &str, secret: &str) -> [Option<Pair>; 2] {
        let digests = PairDigests::of(app);
        let login = format!("{key}:{secret}");
        let found = digests.find_login(TextDigest::of(login.as_bytes()));
        [found, digests.find_secret(TextDigest::of(secret.as_bytes()))]
    }

    #[test]
    fn each_pair_is_found_by_its_login_and_by_its_secret() {
        let both = rotated(("new-key", "new-secret"), ("old-key", "old-secret"));
        let (current, previous) = (Some(Pair::Current), Some(Pair::Previous));
        assert_eq!(find(&both, "new-key", "new-secret"), [current; 2]);
        assert_eq!(find(&both, "old-key", "old-secret"), [previous; 2]);
        for (key, secret) in [("new-key", "old-secret"), ("old-key", "new-secret")] {
            assert_eq!(find(&both, key, secret)[0], None, "{key}:{secret}");
        }
        assert_eq!(find(&both, "new-key", "new-secre"), [None; 2]);
        let same = rotated(("key", "secret"), ("key", "secret"));
        assert_eq!(find(&same, "key", "secret"), [current; 2]);
        let one = app("key", "secret");
        assert_eq!(find(&one, "key", "secret"), [current; 2]);
        assert_eq!(find(&one, "", ""), [None; 2], "it has no previous pair");
    }

    #[test]
    fn an_empty_secret_and_an_unknown_app_authenticate_nobody() {
        assert_eq!(find(&app("key", ""), "key", ""), [None; 2]);
        assert_eq!(find(&rotated(("key", "secret"), ("old", "")), "old", ""), [None; 2]);
        for digests in [PairDigests::NONE, PairDigests::default()] {
            assert_eq!(digests.find_secret(TextDigest::of(b"")), None);
            assert_eq!(digests.find_login(TextDigest::of(b":")), None);
        }
    }

    #[test]
    fn no_digest_is_shown() {
        let shown = format!("{:?}", PairDigests::of(&app("key", "secret")));
        let expected = "PairDigests { logins: [TextDigest, TextDigest], \
                        secrets: [TextDigest, TextDigest] }";
        assert_eq!(shown, expected);
    }
}
