//! Tokens: JWTs that the web application mints for its visitors, with the claims of Guardian 0.x, an
//! authentication library for Phoenix.
//!
//! See section 12 of the protocol document. There are three separate steps: [`TokenPair`] holds the
//! tokens that a client sent, [`choose`] decides which of them counts, and a [`Verifier`] turns
//! that one into a [`Grant`].

mod mint;
mod pair;

use std::{
    hint::black_box,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use jsonwebtoken::{Algorithm, DecodingKey, crypto, decode_header};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, value::RawValue};
use sha2::Sha256;
use subtle::ConstantTimeEq;

pub use mint::{MintError, SigningAlgorithm, mint};
use pair::is_told;
pub use pair::{Chosen, TokenPair, bounded, choose};

use super::{
    App,
    key_pair::Pair,
    pair_digests::TextDigest,
    permission::Patterns,
    subject::{Subject, Unreadable},
    visitor::{ShownSub, Visitor, VisitorNames},
};
use crate::strict_json::NotStrict;

/// The most seconds by which the clock of the minting host may differ.
const LEEWAY_S: f64 = 30.0;

/// The first second of the year 10000. A later time is not in seconds: some libraries count in
/// milliseconds by mistake.
pub const YEAR_10000_S: i64 = 253_402_300_800;

/// The secrets that may have signed a token.
#[derive(Clone, Copy)]
pub struct TokenKeys<'a> {
    /// The app's own secret.
    pub app: &'a SecretString,
    /// The app's secret before the last rotation, while it is valid, too.
    pub previous: Option<&'a SecretString>,
    /// The operator's `GUARDIAN_SECRET`, if there is one.
    pub shared: SharedTokens<'a>,
}

/// The treatment of a signature by the operator's `GUARDIAN_SECRET`.
#[derive(Clone, Copy)]
pub enum SharedTokens<'a> {
    /// The app accepts it.
    Accepted(&'a SecretString),
    /// The app does not accept it: the token is refused, with a separate reason.
    Refused(&'a SecretString),
    /// There is no such key.
    NoKey,
}

impl<'a> SharedTokens<'a> {
    /// The operator's key, if the app does not accept it.
    pub fn refused(guardian_secret: Option<&'a SecretString>) -> Self {
        guardian_secret.map_or(Self::NoKey, Self::Refused)
    }
}

impl<'a> TokenKeys<'a> {
    /// The keys that count for `app`.
    pub fn of(app: &'a App, guardian_secret: Option<&'a SecretString>) -> Self {
        let shared = match guardian_secret {
            Some(key) if app.settings.shared_tokens => SharedTokens::Accepted(key),
            key => SharedTokens::refused(key),
        };
        let previous = app.previous.as_ref().map(|pair| &pair.secret);
        Self { app: &app.secret, previous, shared }
    }

    /// The keys that verify a token, beginning with the key that signs the most tokens. An empty key
    /// is left out, because everybody knows it.
    fn accepted(&self) -> impl Iterator<Item = (Signer, &'a SecretString)> {
        let shared = match self.shared {
            SharedTokens::Accepted(key) => Some((Signer::Operator, key)),
            SharedTokens::Refused(_) | SharedTokens::NoKey => None,
        };
        let current = Some((Signer::App(Pair::Current), self.app));
        let previous = self.previous.map(|key| (Signer::App(Pair::Previous), key));
        [current, shared, previous].into_iter().flatten().filter(|(_, key)| can_sign(key))
    }

    /// The key that serves only to find out why a token is refused.
    fn refused(&self) -> Option<&'a SecretString> {
        match self.shared {
            SharedTokens::Refused(key) => Some(key).filter(can_sign),
            SharedTokens::Accepted(_) | SharedTokens::NoKey => None,
        }
    }
}

fn can_sign(key: &&SecretString) -> bool {
    !key.expose_secret().is_empty()
}

/// The owner of the key that signed a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// The app, with the secret of one of its pairs.
    App(Pair),
    /// The operator, with `GUARDIAN_SECRET`.
    Operator,
}

/// The rights that a verified token grants.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The owner of the key that verified the token, at the time of the verification.
    pub signer: Signer,
    /// Topics that its holder may join.
    pub listen: Patterns,
    /// Topics that its holder may publish to.
    pub publish: Patterns,
    /// Whether `aud` is `trigger`: the caller is the web application itself, not a visitor.
    pub is_trigger: bool,
    /// The subject of the token, if it names one.
    pub subject: Option<Subject>,
    /// The `sub` as the console shows it, if it has a form to show.
    pub shown_sub: Option<Arc<ShownSub>>,
    /// The visitor that others see; taken out by the code that tracks it.
    pub visitor: Option<Visitor>,
    /// Of the key, which it recognises without keeping it.
    signed_by: TextDigest,
}

impl Grant {
    /// Returns whether the token of `other` grants the same, so that both joins can share one grant. The visitor
    /// is not compared, because it is taken out before a grant is kept.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        self.subject == other.subject
            && self.is_trigger == other.is_trigger
            && self.listen == other.listen
            && self.publish == other.publish
            && bool::from(self.signed_by.is(&other.signed_by))
    }

    /// Returns whether one of `keys` is the key that verified this grant's token.
    pub fn is_signed_by(&self, keys: &TokenKeys<'_>) -> bool {
        keys.accepted().any(|(_, key)| self.signed_by.is_of(key.expose_secret()).into())
    }
}

/// The reason why a token was refused. The log and the metrics distinguish all of these; the client
/// receives [`TokenError::reason`], which is the same for the first five.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// It is longer than the limit.
    TooLong,
    /// It is not a JWT, or a claim has the wrong type or occurs twice.
    Malformed,
    /// Its header names an algorithm other than HS256 and HS512, or demands more than the check of
    /// a signature.
    Unsupported,
    /// None of the app's keys signed it.
    Forged,
    /// It would be valid if the app had `shared_tokens`.
    NotShared,
    /// `exp`, `nbf` or `iat` lies beyond the year 9999.
    NotInSeconds,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` lie in the future.
    NotYetValid,
    /// `aud` is `csrf` and the CSRF token does not match.
    InvalidCsrf,
}

impl TokenError {
    /// The reason on the wire.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooLong
            | Self::Malformed
            | Self::Unsupported
            | Self::Forged
            | Self::NotShared => "invalid_token",
            Self::NotInSeconds => "token_time_not_in_seconds",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::InvalidCsrf => "invalid_csrf",
        }
    }
}

/// The claims that Herald uses. A claim that occurs twice is refused, because it is unknown which
/// value the minter meant.
#[derive(Deserialize)]
struct TokenClaims<'a> {
    /// A number of any kind, because a time in milliseconds may have a fraction.
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
    aud: Option<Audience>,
    s_csrf: Option<Value>,
    #[serde(default)]
    listen: Value,
    #[serde(default)]
    publish: Value,
    /// Any JSON, at any depth: null differs from absent.
    #[serde(default, borrow, deserialize_with = "given")]
    sub: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    email: Option<&'a RawValue>,
    #[serde(borrow)]
    presence: Option<&'a RawValue>,
}

/// Reads a member that is present, even if it is null.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl TokenClaims<'_> {
    fn is_for(&self, name: &str) -> bool {
        match &self.aud {
            None => false,
            Some(Audience::One(audience)) => audience == name,
            Some(Audience::Several(audiences)) => audiences.iter().any(|a| a == name),
        }
    }

    /// The subject of the token. An unreadable `sub` counts as absent, but one that has a key twice
    /// makes the token invalid, like a claim that occurs twice.
    fn subject(&self) -> Result<Option<Subject>, TokenError> {
        match self.sub.map(Subject::of).transpose() {
            Err(Unreadable::NotStrict(NotStrict::RepeatedKey)) => Err(TokenError::Malformed),
            subject => Ok(subject.ok().flatten()),
        }
    }

    fn visitor(&self) -> Option<Visitor> {
        let Self { sub, id, email, presence, .. } = *self;
        Visitor::read(VisitorNames { sub, id, email }, presence)
    }

    fn check_times(&self, now_s: f64) -> Result<(), TokenError> {
        let times = [self.exp, self.nbf, self.iat];
        if times.into_iter().flatten().any(|time| time >= YEAR_10000_S as f64) {
            return Err(TokenError::NotInSeconds);
        }
        if self.exp.is_some_and(|exp| exp + LEEWAY_S < now_s) {
            return Err(TokenError::Expired);
        }
        let in_future = |time: Option<f64>| time.is_some_and(|time| time > now_s + LEEWAY_S);
        if in_future(self.nbf) || in_future(self.iat) {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }

    /// The check of Guardian 0.1 to 0.3: a `csrf` token is valid only together with the page's CSRF
    /// token, which was signed with the same key. The texts that pages write for an absent token
    /// count as absent, from any place.
    fn check_csrf(&self, csrf: Option<&str>, key: &SecretString) -> Result<(), TokenError> {
        if !self.is_for("csrf") {
            return Ok(());
        }
        let csrf = csrf.filter(|csrf| is_told(csrf));
        let (Some(csrf), Some(Value::String(claimed))) = (csrf, &self.s_csrf) else {
            return Err(TokenError::InvalidCsrf);
        };
        let expected = csrf_signature(key, csrf);
        let fits: bool = expected.as_bytes().ct_eq(claimed.as_bytes()).into();
        fits.then_some(()).ok_or(TokenError::InvalidCsrf)
    }
}

/// Unix time in seconds, as in tokens. With a clock before 1970 every token lies in the future.
pub fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The dummy for the previous secret of an app that has none. Tokens that it signed are refused.
const STAND_IN: &[u8] = b"00000000-0000-0000-0000-000000000000";

/// Judges tokens by fixed keys at a fixed moment.
#[derive(Clone, Copy)]
pub struct Verifier<'a> {
    /// The keys that count.
    pub keys: TokenKeys<'a>,
    /// The length limit of tokens, in bytes.
    pub token_bytes_max: usize,
    /// Unix time in seconds.
    pub now_s: f64,
}

/// Judges the parts of a token that need no key: its length, its algorithm, its times. It does not check the
/// signature, so anybody can make a token that passes.
///
/// # Errors
/// [`TokenError`].
pub fn judge_unverified(token: &str, token_bytes_max: usize, now_s: f64) -> Result<(), TokenError> {
    if token.len() > token_bytes_max {
        return Err(TokenError::TooLong);
    }
    pinned_algorithm(token)?;
    let (message, _) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let json = decode_claims(message)?;
    let claims: TokenClaims<'_> =
        serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)?;
    claims.check_times(now_s)
}

impl Verifier<'_> {
    /// Verifies a token; `csrf` matters only to one whose `aud` is `csrf`.
    ///
    /// # Errors
    /// [`TokenError`]; of several faults, one of the length or the header precedes one of the signature,
    /// and that one precedes one of the claims.
    pub fn verify(&self, token: &str, csrf: Option<&str>) -> Result<Grant, TokenError> {
        if token.len() > self.token_bytes_max {
            return Err(TokenError::TooLong);
        }
        let algorithm = pinned_algorithm(token)?;
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let verifies = |key: &[u8]| {
            let key = DecodingKey::from_secret(key);
            crypto::verify(signature, message.as_bytes(), &key, algorithm).unwrap_or(false)
        };
        let signed_with = |key: &SecretString| verifies(key.expose_secret().as_bytes());
        if let Some(signed_by) = self.keys.accepted().find(|(_, key)| signed_with(key)) {
            return self.grant(message, csrf, signed_by);
        }
        if self.keys.previous.is_none() {
            // The time of a refusal must not reveal whether the app has a previous pair.
            black_box(verifies(STAND_IN));
        }
        let would_be_valid =
            |key: &SecretString| self.grant(message, csrf, (Signer::Operator, key)).is_ok();
        let refused = self.keys.refused().filter(|key| signed_with(key));
        Err(match refused.is_some_and(would_be_valid) {
            true => TokenError::NotShared,
            false => TokenError::Forged,
        })
    }

    /// The rights of a token that this key signed.
    fn grant(
        &self,
        message: &str,
        csrf: Option<&str>,
        (signer, key): (Signer, &SecretString),
    ) -> Result<Grant, TokenError> {
        let json = decode_claims(message)?;
        let claims: TokenClaims<'_> =
            serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)?;
        claims.check_times(self.now_s)?;
        claims.check_csrf(csrf, key)?;
        let subject = claims.subject()?;
        Ok(Grant {
            signer,
            listen: Patterns::compile(&claims.listen),
            publish: Patterns::compile(&claims.publish),
            is_trigger: claims.is_for("trigger"),
            visitor: claims.visitor(),
            shown_sub: claims.sub.and_then(ShownSub::of).map(Arc::new),
            subject,
            signed_by: TextDigest::of(key.expose_secret().as_bytes()),
        })
    }
}

/// The algorithm that a token names, if it is one of the two supported ones. A header that demands
/// more (`crit`, an unencoded body, encryption, compression) is refused, because none of that is
/// supported.
fn pinned_algorithm(token: &str) -> Result<Algorithm, TokenError> {
    let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
    let asks_for_more = header.crit.is_some()
        || header.enc.is_some()
        || header.zip.is_some()
        || header.extras.inner().contains_key("b64");
    match header.alg {
        Algorithm::HS256 | Algorithm::HS512 if !asks_for_more => Ok(header.alg),
        _ => Err(TokenError::Unsupported),
    }
}

/// The claims as JSON: an object, because serde would also read a struct from an array.
fn decode_claims(message: &str) -> Result<Vec<u8>, TokenError> {
    let (_, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
    let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Malformed)?;
    json.trim_ascii_start().starts_with(b"{").then_some(json).ok_or(TokenError::Malformed)
}

/// Signs a CSRF token as the `s_csrf` claim holds it: HMAC-SHA256 over its exact text, base64url
/// without padding (section 12.3 of the protocol document).
pub fn csrf_signature(key: &SecretString, csrf: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(csrf.as_bytes());
    URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests;
