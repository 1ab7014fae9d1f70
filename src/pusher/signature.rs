//! Signatures of HTTP requests, as Pusher's server SDKs make them.
//!
//! They follow section 13 of the document of Pusher's protocol. The SDKs differ in how they escape a query
//! and in the order of its parameters, so the signed text is rebuilt from the decoded parameters, sorted
//! by name. The path is signed as it was sent.

use std::{borrow::Cow, fmt};

use hmac::{Hmac, Mac};
use md5::Md5;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::app::{App, key_pair::Pair};

/// The difference from the server's time, in seconds, from which on a request is refused.
pub const TIME_DIFFERENCE_S: i64 = 600;

/// The only version of the signature.
const VERSION: &str = "1.0";

/// The parameters of the signature itself. A request that repeats one of them is refused, because it would
/// be ambiguous.
const ONCE: [&str; 5] =
    ["auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"];

/// Computes the signature of a text that is given in parts: HMAC-SHA256 in lower-case hex.
pub fn sign(secret: &SecretString, parts: &[&str]) -> String {
    let secret = secret.expose_secret().as_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part.as_bytes()));
    hex::encode(mac.finalize().into_bytes())
}

/// Returns whether `given` is exactly the signature of a text that is given in parts. The comparison takes
/// constant time.
pub fn is_signed(secret: &SecretString, parts: &[&str], given: &str) -> bool {
    sign(secret, parts).as_bytes().ct_eq(given.as_bytes()).into()
}

/// The reason why a request is not accepted as genuine. The texts are for the caller, and never
/// hold a digest that Herald has computed with a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A parameter that is allowed once is repeated.
    #[error("the parameter {0} is repeated")]
    Repeated(&'static str),
    /// The parameter `auth_key` is missing.
    #[error("the parameter auth_key is missing")]
    NoKey,
    /// The key is not one of the app's.
    #[error("auth_key is not a key of this app")]
    UnknownKey,
    /// The version is missing, or is not supported.
    #[error("auth_version must be {}", VERSION)]
    Version,
    /// The time is missing, or not a whole number.
    #[error("auth_timestamp must be the time in whole seconds since 1970")]
    NoTime,
    /// The time is too far off.
    #[error("auth_timestamp is not within 600 seconds of the server's time, which is {0}")]
    Stale(i64),
    /// The signature is missing, or was made for another text or with another secret.
    #[error("auth_signature is not the HMAC-SHA256 in hex, by the secret of auth_key, of {0:?}")]
    Forged(String),
    /// The request has a body, but no digest of it.
    #[error("body_md5 is missing, and the body is not empty")]
    NoDigest,
    /// The body is not the one that was signed.
    #[error("body_md5 is not the MD5 in hex of the body that was received")]
    OtherBody,
}

/// The parameters of a signed request, in the order of their names, which are in lower case.
#[derive(Clone)]
pub struct SignedQuery(Vec<(String, String)>);

impl SignedQuery {
    /// Reads a query string.
    ///
    /// # Errors
    /// [`SignatureError::Repeated`].
    pub fn parse(raw: &str) -> Result<Self, SignatureError> {
        let decoded = form_urlencoded::parse(raw.as_bytes());
        let text = |part: Cow<'_, str>| part.into_owned();
        let mut all: Vec<_> =
            decoded.map(|(name, value)| (name.to_lowercase(), text(value))).collect();
        // The sort is stable, so that the elements of a list keep their order.
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        let repeated = all
            .windows(2)
            .filter(|two| two[0].0 == two[1].0)
            .find_map(|two| ONCE.into_iter().find(|once| *once == two[0].0));
        repeated.map_or(Ok(Self(all)), |name| Err(SignatureError::Repeated(name)))
    }

    /// The value of a parameter, by its name in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The text that is signed.
    fn signed_text(&self, method: &str, path: &str) -> String {
        let mut text = format!("{method}\n{path}\n");
        let signed = self.0.iter().filter(|(name, _)| name != "auth_signature");
        for (nth, (name, value)) in signed.enumerate() {
            let and = if nth == 0 { "" } else { "&" };
            text.extend([and, name, "=", value]);
        }
        text
    }

    /// Checks the key, the version, the signature and the time of a request, and returns which of the app's
    /// pairs signed it. The body is checked by [`verify_body`](Self::verify_body).
    /// `path` is the path as it was sent, without `pusher.path_prefix`.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(
        &self,
        (method, path): (&str, &str),
        app: &App,
        now_s: i64,
    ) -> Result<Pair, SignatureError> {
        let key = self.get("auth_key").ok_or(SignatureError::NoKey)?;
        let (pair, secret) = app.pair_with_key(key).ok_or(SignatureError::UnknownKey)?;
        if self.get("auth_version") != Some(VERSION) {
            return Err(SignatureError::Version);
        }
        let time = self.get("auth_timestamp").and_then(whole).ok_or(SignatureError::NoTime)?;
        let text = self.signed_text(method, path);
        let given = self.get("auth_signature").unwrap_or_default();
        if !is_signed(secret, &[&text], given) {
            return Err(SignatureError::Forged(text));
        }
        // The time is checked last: the error for a wrong clock tells the caller that all else is right.
        match now_s.checked_sub(time).map(i64::unsigned_abs) {
            Some(off) if off < TIME_DIFFERENCE_S.unsigned_abs() => Ok(pair),
            _ => Err(SignatureError::Stale(now_s)),
        }
    }

    /// Checks that this is the body which was signed.
    ///
    /// # Errors
    /// [`SignatureError::NoDigest`], [`SignatureError::OtherBody`].
    pub fn verify_body(&self, body: &[u8]) -> Result<(), SignatureError> {
        // Some SDKs send the digest of an empty body, while most send none.
        if body.is_empty() {
            return Ok(());
        }
        let given = self.get("body_md5").ok_or(SignatureError::NoDigest)?;
        let digest = hex::encode(<Md5 as md5::Digest>::digest(body));
        let is_equal: bool = digest.as_bytes().ct_eq(given.as_bytes()).into();
        if is_equal { Ok(()) } else { Err(SignatureError::OtherBody) }
    }
}

impl fmt::Debug for SignedQuery {
    /// Omits the parameters, because a reader of a log could repeat a request with its signature.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// A whole number; digits alone, because `parse` would take a plus sign too.
fn whole(text: &str) -> Option<i64> {
    let is_whole = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_whole)
}

#[cfg(test)]
mod tests;
