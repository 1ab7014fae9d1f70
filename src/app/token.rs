//! Tokens: JWTs that the web application mints for its visitors, after Guardian 0.x.
//!
//! See section 12 of the protocol document. There are three separate steps: [`TokenPair`] holds the
//! tokens that a client sent, [`choose`] decides which of them counts, and a [`Verifier`] turns
//! that one into a [`Grant`].

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, crypto, decode_header};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, value::RawValue};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    App,
    permission::Patterns,
    subject::{Subject, Unreadable},
    visitor::{Names, Visitor},
};
use crate::strict_json::NotStrict;

/// How far the clock of the minting host may be off.
const LEEWAY_S: f64 = 30.0;

/// The first second of the year 10000. A later time is not in seconds: some libraries count in
/// milliseconds by mistake.
pub const YEAR_10000_S: i64 = 253_402_300_800;

/// Stands for a parameter that is present but not a string: it is not a valid token, so it fails as
/// one.
const NOT_TEXT: &str = "?";

/// A guardian token with its CSRF companion, as a client sent them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenPair {
    /// The JWT.
    pub token: Option<Box<str>>,
    /// The page's CSRF token.
    pub csrf: Option<Box<str>>,
}

impl TokenPair {
    /// Reads `guardian_token` and `csrf_token`; empty, null and `undefined` count as absent,
    /// a swapped pair is put right.
    pub fn from_params(params: &Map<String, Value>) -> Self {
        let token = params.get("guardian_token").and_then(present);
        let csrf = params.get("csrf_token").and_then(present);
        // One well-known page helper writes the two into each other's tags.
        match (&token, &csrf) {
            (Some(first), Some(second)) if !is_jwt_shaped(first) && is_jwt_shaped(second) => {
                Self { token: csrf, csrf: token }
            }
            _ => Self { token, csrf },
        }
    }

    /// The pair without texts that are too long to be tokens: see [`bounded`].
    pub fn bounded(self, bytes_max: usize) -> Self {
        let bound = |text: Option<Box<str>>| text.map(|text| bounded(text, bytes_max));
        Self { token: bound(self.token), csrf: bound(self.csrf) }
    }
}

/// Keeps a text that may be a token; one longer than `bytes_max` cannot be valid and is not worth
/// its memory.
pub fn bounded(text: Box<str>, bytes_max: usize) -> Box<str> {
    if text.len() > bytes_max { NOT_TEXT.into() } else { text }
}

/// Shows which of the two is present, never its value.
impl fmt::Debug for TokenPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &Option<Box<str>>| text.as_ref().map(|_| "[REDACTED]");
        f.debug_struct("TokenPair")
            .field("token", &shown(&self.token))
            .field("csrf", &shown(&self.csrf))
            .finish()
    }
}

fn present(value: &Value) -> Option<Box<str>> {
    match value {
        Value::Null => None,
        Value::String(text) => present_text(text),
        _ => Some(NOT_TEXT.into()),
    }
}

/// Templates and scripts of pages write these texts for an absent value; they are not tokens.
fn present_text(text: &str) -> Option<Box<str>> {
    is_told(text).then(|| text.into())
}

fn is_told(text: &str) -> bool {
    !matches!(text, "" | "null" | "undefined")
}

fn is_jwt_shaped(text: &str) -> bool {
    text.bytes().filter(|&b| b == b'.').count() == 2
}

/// The pair that counts for a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The pair.
    pub pair: TokenPair,
    /// Whether the token came with the join itself: then an invalid token fails any join, while an
    /// invalid one from elsewhere does not matter on `public:`.
    pub from_join_payload: bool,
}

/// Chooses among the places where a client may put its token: the join payload, the connect params,
/// the bearer subprotocol. The first place with a token decides; the CSRF token comes from the same
/// place, or else from the connect params.
pub fn choose(join: TokenPair, connect: &TokenPair, bearer: Option<&str>) -> Chosen {
    let from_join_payload = join.token.is_some();
    let pair = if from_join_payload {
        TokenPair { token: join.token, csrf: join.csrf.or_else(|| connect.csrf.clone()) }
    } else if connect.token.is_some() {
        connect.clone()
    } else {
        TokenPair { token: bearer.and_then(present_text), csrf: connect.csrf.clone() }
    };
    Chosen { pair, from_join_payload }
}

/// The secrets that may have signed a token.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// The app's own secret.
    pub app: &'a SecretString,
    /// The operator's `GUARDIAN_SECRET`, if there is one.
    pub shared: Shared<'a>,
}

/// How a signature by the operator's `GUARDIAN_SECRET` is treated.
#[derive(Clone, Copy)]
pub enum Shared<'a> {
    /// The app accepts it.
    Accepted(&'a SecretString),
    /// The app does not accept it: the token is refused, with a separate reason.
    Refused(&'a SecretString),
    /// There is no such key.
    NoKey,
}

impl<'a> Shared<'a> {
    /// The operator's key, if the app does not accept it.
    pub fn refused(guardian_secret: Option<&'a SecretString>) -> Self {
        guardian_secret.map_or(Self::NoKey, Self::Refused)
    }
}

impl<'a> Keys<'a> {
    /// The keys that count for `app`.
    pub fn of(app: &'a App, guardian_secret: Option<&'a SecretString>) -> Self {
        let shared = match guardian_secret {
            Some(key) if app.settings.shared_tokens => Shared::Accepted(key),
            key => Shared::refused(key),
        };
        Self { app: &app.secret, shared }
    }

    /// The keys that verify a token. An empty key is not one of them, because it is known to
    /// everybody.
    fn accepted(&self) -> impl Iterator<Item = &'a SecretString> {
        let shared = match self.shared {
            Shared::Accepted(key) => Some(key),
            Shared::Refused(_) | Shared::NoKey => None,
        };
        [Some(self.app), shared].into_iter().flatten().filter(can_sign)
    }

    /// The key that serves only to find out why a token is refused.
    fn refused(&self) -> Option<&'a SecretString> {
        match self.shared {
            Shared::Refused(key) => Some(key).filter(can_sign),
            Shared::Accepted(_) | Shared::NoKey => None,
        }
    }
}

fn can_sign(key: &&SecretString) -> bool {
    !key.expose_secret().is_empty()
}

/// The rights that a verified token grants.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Topics that its holder may join.
    pub listen: Patterns,
    /// Topics that its holder may publish to.
    pub publish: Patterns,
    /// Whether `aud` is `trigger`: the caller is the web application itself, not a visitor.
    pub is_trigger: bool,
    /// The subject of the token, if it names one.
    pub subject: Option<Subject>,
    /// The visitor that others see; taken out by the code that tracks it.
    pub visitor: Option<Visitor>,
    signed_by: KeyFingerprint,
}

impl Grant {
    /// Whether the token of `other` grants the same, so that one grant can stand for both. The
    /// visitor is not compared, because it is taken out before a grant is kept.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        self.subject == other.subject
            && self.is_trigger == other.is_trigger
            && self.listen == other.listen
            && self.publish == other.publish
            && self.signed_by.is(&other.signed_by)
    }

    /// Whether one of `keys` is the key that verified this grant's token.
    pub fn is_signed_by(&self, keys: &Keys<'_>) -> bool {
        keys.accepted().any(|key| KeyFingerprint::of(key).is(&self.signed_by))
    }
}

/// Recognises a key without keeping it.
#[derive(Clone)]
struct KeyFingerprint([u8; 32]);

impl KeyFingerprint {
    fn of(key: &SecretString) -> Self {
        Self(Sha256::digest(key.expose_secret()).into())
    }

    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// Why a token was refused. The log and the metrics distinguish all of these; the client receives
/// [`TokenError::reason`], which is the same for the first five.
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
struct Claims<'a> {
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

impl Claims<'_> {
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
        Visitor::read(Names { sub, id, email }, presence)
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

/// Judges tokens by fixed keys at a fixed moment.
#[derive(Clone, Copy)]
pub struct Verifier<'a> {
    /// The keys that count.
    pub keys: Keys<'a>,
    /// The length limit of tokens, in bytes.
    pub token_bytes_max: usize,
    /// Unix time in seconds.
    pub now_s: f64,
}

/// Judges a token as far as possible without knowing its app: its length, its algorithm, its times.
/// Anybody can make a token that passes.
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
    let claims: Claims<'_> = serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)?;
    claims.check_times(now_s)
}

impl Verifier<'_> {
    /// Verifies a token; `csrf` matters only to one whose `aud` is `csrf`.
    ///
    /// # Errors
    /// [`TokenError`]; of several faults, the first in the order of its variants.
    pub fn verify(&self, token: &str, csrf: Option<&str>) -> Result<Grant, TokenError> {
        if token.len() > self.token_bytes_max {
            return Err(TokenError::TooLong);
        }
        let algorithm = pinned_algorithm(token)?;
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let signed_with = |key: &&SecretString| {
            let key = DecodingKey::from_secret(key.expose_secret().as_bytes());
            crypto::verify(signature, message.as_bytes(), &key, algorithm).unwrap_or(false)
        };
        if let Some(key) = self.keys.accepted().find(signed_with) {
            return self.grant(message, csrf, key);
        }
        let would_be_valid = |key: &SecretString| self.grant(message, csrf, key).is_ok();
        Err(match self.keys.refused().filter(signed_with).is_some_and(would_be_valid) {
            true => TokenError::NotShared,
            false => TokenError::Forged,
        })
    }

    /// The rights of a token that `key` signed.
    fn grant(
        &self,
        message: &str,
        csrf: Option<&str>,
        key: &SecretString,
    ) -> Result<Grant, TokenError> {
        let json = decode_claims(message)?;
        let claims: Claims<'_> =
            serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)?;
        claims.check_times(self.now_s)?;
        claims.check_csrf(csrf, key)?;
        let subject = claims.subject()?;
        Ok(Grant {
            listen: Patterns::compile(&claims.listen),
            publish: Patterns::compile(&claims.publish),
            is_trigger: claims.is_for("trigger"),
            visitor: claims.visitor(),
            subject,
            signed_by: KeyFingerprint::of(key),
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

/// The algorithms that sign a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SigningAlgorithm {
    /// HMAC with SHA-256, the algorithm that Rails helpers use.
    #[default]
    Hs256,
    /// HMAC with SHA-512, Guardian's default from 0.7.
    Hs512,
}

impl SigningAlgorithm {
    /// Parses the algorithm's name in a JWT's header.
    pub fn parse(raw: &str) -> Option<Self> {
        match raw {
            "HS256" => Some(Self::Hs256),
            "HS512" => Some(Self::Hs512),
            _ => None,
        }
    }
}

/// Why a token could not be minted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// Claims are a JSON object.
    #[error("claims must be a JSON object")]
    NotAnObject,
    /// The key is empty, which everybody knows.
    #[error("the key is empty")]
    EmptyKey,
    /// The signing library refused.
    #[error("the token could not be signed")]
    Unsigned,
}

/// Mints a token with exactly these `claims`; none are added.
///
/// # Errors
/// [`MintError`].
pub fn mint(
    claims: &impl Serialize,
    key: &SecretString,
    algorithm: SigningAlgorithm,
) -> Result<String, MintError> {
    let claims = serde_json::value::to_raw_value(claims).map_err(|_| MintError::NotAnObject)?;
    if !claims.get().starts_with('{') {
        return Err(MintError::NotAnObject);
    }
    if key.expose_secret().is_empty() {
        return Err(MintError::EmptyKey);
    }
    let header = Header::new(match algorithm {
        SigningAlgorithm::Hs256 => Algorithm::HS256,
        SigningAlgorithm::Hs512 => Algorithm::HS512,
    });
    let key = EncodingKey::from_secret(key.expose_secret().as_bytes());
    jsonwebtoken::encode(&header, &claims, &key).map_err(|_| MintError::Unsigned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW_S: f64 = 1_700_000_000.0;
    const APP_KEY: &str = "test-app-fake-secret";
    const SHARED_KEY: &str = "the operator's own key, for all";

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    fn verify_with(keys: Keys<'_>, token: &str, csrf: Option<&str>) -> Result<Grant, TokenError> {
        Verifier { keys, token_bytes_max: 8_192, now_s: NOW_S }.verify(token, csrf)
    }

    fn verify(token: &str, csrf: Option<&str>) -> Result<Grant, TokenError> {
        let app = secret(APP_KEY);
        verify_with(Keys { app: &app, shared: Shared::NoKey }, token, csrf)
    }

    fn minted(claims: Value) -> String {
        mint(&claims, &secret(APP_KEY), SigningAlgorithm::Hs256).expect("a token")
    }

    /// Signs any two texts as HS256, so that the content is at fault and not the signature.
    fn signed(header: &str, claims: impl AsRef<[u8]>) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), encoded(claims));
        let key = EncodingKey::from_secret(APP_KEY.as_bytes());
        let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("signed");
        format!("{message}.{signature}")
    }

    fn encoded(text: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    const HS256: &str = r#"{"typ":"JWT","alg":"HS256"}"#;

    #[test]
    fn both_algorithms_and_the_rights_they_grant() {
        for algorithm in [SigningAlgorithm::Hs256, SigningAlgorithm::Hs512] {
            let claims = json!({"listen": ["private:*"], "publish": ["public:*"]});
            let token = mint(&claims, &secret(APP_KEY), algorithm).expect("a token");
            let grant = verify(&token, None).expect("a grant");
            assert!(grant.listen.allow("private:app") && !grant.listen.allow("public:app"));
            assert!(grant.publish.allow("public:app") && !grant.publish.allow("private:app"));
            assert!(!grant.is_trigger);
        }
    }

    #[test]
    fn e193_forged_tokens_are_invalid() {
        use TokenError::{Forged, Malformed, Unsupported};
        let good = minted(json!({"listen": ["private:*"]}));
        let (message, signature) = good.rsplit_once('.').expect("parts");
        let (header, claims) = message.split_once('.').expect("parts");
        let other_claims = encoded(r#"{"listen":["secret:*"]}"#);
        let last_changed = format!("{}{}", &good[..good.len() - 3], "AAA");
        let none = |alg: &str| format!("{}.{claims}.", encoded(format!(r#"{{"alg":"{alg}"}}"#)));
        let hs512_said = format!("{}.{claims}.{signature}", encoded(r#"{"alg":"HS512"}"#));
        let hs384 = jsonwebtoken::encode(
            &Header::new(Algorithm::HS384),
            &json!({}),
            &EncodingKey::from_secret(APP_KEY.as_bytes()),
        );
        let other_key = mint(&json!({}), &secret("another secret"), SigningAlgorithm::Hs256);
        for (case, error, token) in [
            ("another key", Forged, other_key.expect("a token")),
            ("claims exchanged", Forged, format!("{header}.{other_claims}.{signature}")),
            ("signature changed", Forged, last_changed),
            ("signature cut short", Forged, good[..good.len() - 4].to_owned()),
            ("signature empty", Forged, format!("{message}.")),
            ("signature padded", Forged, format!("{good}=")),
            ("signature lengthened", Forged, format!("{good}AAAA")),
            ("newline at the end", Forged, format!("{good}\n")),
            ("nul at the end", Forged, format!("{good}\0")),
            ("alg none, no signature", Malformed, none("none")),
            ("alg None", Malformed, none("None")),
            ("alg nOnE", Malformed, none("nOnE")),
            ("alg none, old signature", Malformed, format!("{}{signature}", none("none"))),
            ("alg exchanged for HS512", Forged, hs512_said),
            ("alg HS384", Unsupported, hs384.expect("a token")),
            ("alg RS256", Unsupported, signed(r#"{"alg":"RS256"}"#, "{}")),
            ("alg hs256", Malformed, signed(r#"{"alg":"hs256"}"#, "{}")),
            ("alg a number", Malformed, signed(r#"{"alg":256}"#, "{}")),
            ("alg missing", Malformed, signed(r#"{"typ":"JWT"}"#, "{}")),
            ("alg twice", Malformed, signed(r#"{"alg":"none","alg":"HS256"}"#, "{}")),
            ("crit", Unsupported, signed(r#"{"alg":"HS256","crit":["exp"]}"#, "{}")),
            ("crit empty", Unsupported, signed(r#"{"alg":"HS256","crit":[]}"#, "{}")),
            ("crit of no list", Malformed, signed(r#"{"alg":"HS256","crit":true}"#, "{}")),
            ("b64", Unsupported, signed(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#, "{}")),
            ("b64 alone", Unsupported, signed(r#"{"alg":"HS256","b64":false}"#, "{}")),
            ("zip", Unsupported, signed(r#"{"alg":"HS256","zip":"DEF"}"#, "{}")),
            ("enc", Unsupported, signed(r#"{"alg":"HS256","enc":"A128GCM"}"#, "{}")),
        ] {
            assert_eq!(verify(&token, None).map(|_| ()), Err(error), "{case}");
            assert_eq!(error.reason(), "invalid_token", "{case}");
        }
    }

    #[test]
    fn e193_what_is_no_jwt_is_invalid() {
        let good = minted(json!({}));
        let deep = format!(r#"{{"listen":{}{}}}"#, "[".repeat(2_500), "]".repeat(2_500));
        for (case, token) in [
            ("empty", String::new()),
            ("not text", NOT_TEXT.to_owned()),
            ("dots", "..".to_owned()),
            ("more dots", "....".to_owned()),
            ("one part", "abc".to_owned()),
            ("two parts", good.rsplit_once('.').expect("parts").0.to_owned()),
            ("four parts", format!("{good}.x")),
            ("five parts, as encrypted ones have", "a.b.c.d.e".to_owned()),
            ("space around", format!(" {good} ")),
            ("not ASCII", "caf\u{e9}.\u{1f600}.\u{e9}".to_owned()),
            ("header no JSON", signed("alg", "{}")),
            ("header an array", signed(r#"["JWT","HS256"]"#, "{}")),
            ("claims empty", signed(HS256, "")),
            ("claims no JSON", signed(HS256, "{")),
            ("claims with more after them", signed(HS256, "{} {}")),
            ("claims null", signed(HS256, "null")),
            ("claims an array", signed(HS256, r#"[null,null,null,null,null,["a"],["a"]]"#)),
            ("claims a string", signed(HS256, r#""x""#)),
            ("claims not UTF-8", signed(HS256, b"{\"listen\":[\"\xff\"]}")),
            ("claims absurdly deep", signed(HS256, deep)),
            ("claims exp twice", signed(HS256, r#"{"exp":1,"exp":9999999999}"#)),
            ("claims listen twice", signed(HS256, r#"{"listen":[],"listen":["a:*"]}"#)),
            ("exp a string", signed(HS256, r#"{"exp":"9999999999"}"#)),
            ("exp NaN", signed(HS256, r#"{"exp":NaN}"#)),
            ("exp infinite", signed(HS256, r#"{"exp":1e999}"#)),
            ("exp a boolean", signed(HS256, r#"{"exp":true}"#)),
            ("exp an object", signed(HS256, r#"{"exp":{}}"#)),
            ("nbf a string", signed(HS256, r#"{"nbf":"1"}"#)),
            ("iat a list", signed(HS256, r#"{"iat":[1]}"#)),
            ("aud a number", signed(HS256, r#"{"aud":1}"#)),
            ("aud an object", signed(HS256, r#"{"aud":{"csrf":1}}"#)),
            ("aud a mixed list", signed(HS256, r#"{"aud":["csrf",1]}"#)),
        ] {
            assert_eq!(verify(&token, None).map(|_| ()), Err(TokenError::Malformed), "{case}");
        }
    }

    #[test]
    fn e193_a_token_is_invalid_beyond_the_limit_and_not_at_it() {
        let token = minted(json!({"listen": ["private:*"]}));
        let key = secret(APP_KEY);
        let keys = Keys { app: &key, shared: Shared::NoKey };
        let verify = |token_bytes_max| {
            Verifier { keys, token_bytes_max, now_s: NOW_S }.verify(&token, None).map(|_| ())
        };
        assert_eq!(verify(token.len()), Ok(()));
        assert_eq!(verify(token.len() - 1), Err(TokenError::TooLong));
    }

    #[test]
    fn e194_expiry_has_30_seconds_of_leeway_and_may_be_any_number() {
        for (case, exp, expected) in [
            ("one second ago", json!(NOW_S - 1.0), Ok(())),
            ("now", json!(NOW_S), Ok(())),
            ("30 s ago", json!(1_699_999_970), Ok(())),
            ("31 s ago", json!(1_699_999_969), Err(TokenError::Expired)),
            ("a float just beyond", json!(NOW_S - 30.001), Err(TokenError::Expired)),
            ("a float in time", json!(NOW_S - 29.999), Ok(())),
            ("null", json!(null), Ok(())),
            ("zero", json!(0), Err(TokenError::Expired)),
            ("negative", json!(-1), Err(TokenError::Expired)),
            ("hugely negative", json!(-1e308), Err(TokenError::Expired)),
            ("the last second of 9999", json!(253_402_300_799_u64), Ok(())),
            ("the next", json!(253_402_300_800_u64), Err(TokenError::NotInSeconds)),
            ("milliseconds", json!(1_700_000_060_000_u64), Err(TokenError::NotInSeconds)),
            ("past milliseconds", json!(1_600_000_000_000_u64), Err(TokenError::NotInSeconds)),
            ("huge", json!(1e308), Err(TokenError::NotInSeconds)),
            ("the largest integer", json!(u64::MAX), Err(TokenError::NotInSeconds)),
        ] {
            let verified = verify(&minted(json!({"exp": exp})), None).map(|_| ());
            assert_eq!(verified, expected, "{case}");
        }
    }

    #[test]
    fn e195_what_lies_in_the_future_beyond_the_leeway_is_not_yet_valid() {
        for claim in ["nbf", "iat"] {
            for (case, at, expected) in [
                ("now", json!(NOW_S), Ok(())),
                ("in 30 s", json!(NOW_S + 30.0), Ok(())),
                ("in 31 s", json!(1_700_000_031), Err(TokenError::NotYetValid)),
                ("a float just beyond", json!(NOW_S + 30.001), Err(TokenError::NotYetValid)),
                ("long ago", json!(-1e308), Ok(())),
                ("in the year 5138", json!(1e11), Err(TokenError::NotYetValid)),
                ("milliseconds", json!(1_700_000_000_000_u64), Err(TokenError::NotInSeconds)),
                ("huge", json!(1e308), Err(TokenError::NotInSeconds)),
                ("null", json!(null), Ok(())),
            ] {
                let verified = verify(&minted(json!({claim: at})), None).map(|_| ());
                assert_eq!(verified, expected, "{claim} {case}");
            }
        }
        let both = minted(json!({"exp": 1, "nbf": 1e11}));
        assert_eq!(verify(&both, None).map(|_| ()), Err(TokenError::Expired));
    }

    #[test]
    fn e191_sub_may_be_any_json() {
        for sub in [
            json!({}),
            json!({"id": 1, "name": "x", "crews": ["admins"]}),
            json!(null),
            json!(1),
            json!(["a"]),
            json!("user:1"),
        ] {
            assert!(verify(&minted(json!({"sub": sub})), None).is_ok(), "{sub}");
        }
        let deep = format!(r#"{{"sub":{}{}}}"#, "[".repeat(2_500), "]".repeat(2_500));
        assert!(verify(&signed(HS256, deep), None).is_ok(), "nobody descends into it");
    }

    #[test]
    fn e190_claims_that_are_missing_or_no_lists_permit_nothing() {
        for claims in [json!({}), json!({"listen": null, "publish": "a:*"}), json!({"listen": {}})]
        {
            let grant = verify(&minted(claims.clone()), None).expect("a grant");
            assert!(!grant.listen.allow("a:b") && !grant.publish.allow("a:b"), "{claims}");
        }
    }

    #[test]
    fn e197_e198_e199_the_csrf_token_counts_where_the_audience_is_csrf() {
        let fitting = json!(csrf_signature(&secret(APP_KEY), "page"));
        let other_key = json!(csrf_signature(&secret("another secret"), "page"));
        let (ok, refused) = (Ok(()), Err(TokenError::InvalidCsrf));
        for (case, aud, s_csrf, csrf, expected) in [
            ("e197 correct", json!("csrf"), &fitting, Some("page"), ok),
            ("e197 one of several", json!(["web", "csrf"]), &fitting, Some("page"), ok),
            ("e198 missing", json!("csrf"), &fitting, None, refused),
            ("e198 wrong", json!("csrf"), &fitting, Some("paget"), refused),
            ("e198 empty", json!("csrf"), &fitting, Some(""), refused),
            ("e198 no claim", json!("csrf"), &json!(null), Some("page"), refused),
            ("e198 a claim of no text", json!("csrf"), &json!(1), Some("page"), refused),
            ("e198 signed otherwise", json!("csrf"), &other_key, Some("page"), refused),
            ("e198 one of several", json!(["csrf"]), &fitting, None, refused),
            ("e199 another audience", json!("token"), &fitting, None, ok),
            ("e199 no audience", json!(null), &fitting, Some("wrong"), ok),
            ("e199 no audience at all", json!([]), &fitting, None, ok),
        ] {
            let token = minted(json!({"aud": aud, "s_csrf": s_csrf}));
            assert_eq!(verify(&token, csrf).map(|_| ()), expected, "{case}");
        }
        for nothing in ["", "null", "undefined"] {
            let fitting = csrf_signature(&secret(APP_KEY), nothing);
            let token = minted(json!({"aud": "csrf", "s_csrf": fitting}));
            assert_eq!(verify(&token, Some(nothing)).map(|_| ()), refused, "e198 {nothing:?}");
        }
    }

    #[test]
    fn e197_the_csrf_token_is_judged_by_the_key_that_signed_the_jwt() {
        let shared = secret(SHARED_KEY);
        for (case, csrf_key, expected) in [
            ("the shared key", SHARED_KEY, Ok(())),
            ("the app's key", APP_KEY, Err(TokenError::InvalidCsrf)),
        ] {
            let s_csrf = csrf_signature(&secret(csrf_key), "page");
            let claims = json!({"aud": "csrf", "s_csrf": s_csrf});
            let token = mint(&claims, &shared, SigningAlgorithm::Hs256).expect("a token");
            let app = secret(APP_KEY);
            let keys = Keys { app: &app, shared: Shared::Accepted(&shared) };
            let verified = verify_with(keys, &token, Some("page"));
            assert_eq!(verified.map(|_| ()), expected, "{case}");
        }
    }

    #[test]
    fn e200_the_csrf_vector_matches() {
        let signature = csrf_signature(&secret("key123"), "csrf-token_ABC");
        assert_eq!(signature, "o7nZg2wqS_vN9hYdGneG6iUohXTTtFaBLVdGi7Jkaas");
    }

    #[test]
    fn e201_padding_is_part_of_the_csrf_token() {
        let s_csrf = csrf_signature(&secret(APP_KEY), "q83v7w==");
        let token = minted(json!({"aud": "csrf", "s_csrf": s_csrf}));
        assert!(verify(&token, Some("q83v7w==")).is_ok());
        assert_eq!(verify(&token, Some("q83v7w")).map(|_| ()), Err(TokenError::InvalidCsrf));
    }

    #[test]
    fn the_shared_key_counts_only_for_an_app_that_accepts_it_and_is_named_where_it_would_have() {
        let (app, shared) = (secret(APP_KEY), secret(SHARED_KEY));
        let by_shared =
            |claims: &Value| mint(claims, &shared, SigningAlgorithm::Hs512).expect("a token");
        let s_csrf = csrf_signature(&shared, "page");
        let valid = by_shared(&json!({"aud": "csrf", "s_csrf": s_csrf}));
        let other_page = by_shared(&json!({"aud": "csrf", "s_csrf": "other"}));
        let expired = by_shared(&json!({"exp": 1}));
        let malformed = by_shared(&json!({"aud": 1}));
        let by_other = mint(&json!({}), &secret("another secret"), SigningAlgorithm::Hs512);
        let (accepted, refused) = (Shared::Accepted(&shared), Shared::Refused(&shared));
        for (case, token, shared, expected) in [
            ("accepted", &valid, accepted, Ok(())),
            ("would be valid", &valid, refused, Err(TokenError::NotShared)),
            ("no such key", &valid, Shared::NoKey, Err(TokenError::Forged)),
            ("expired", &expired, refused, Err(TokenError::Forged)),
            ("another page's", &other_page, refused, Err(TokenError::Forged)),
            ("malformed", &malformed, refused, Err(TokenError::Forged)),
            ("another key", &by_other.expect("a token"), refused, Err(TokenError::Forged)),
            ("the app's own", &minted(json!({})), refused, Ok(())),
        ] {
            let verified = verify_with(Keys { app: &app, shared }, token, Some("page"));
            assert_eq!(verified.map(|_| ()), expected, "{case}");
        }
        assert_eq!(TokenError::NotShared.reason(), "invalid_token");
    }

    #[test]
    fn an_empty_key_signs_nothing() {
        let message = format!("{}.{}", encoded(HS256), encoded("{}"));
        let key = EncodingKey::from_secret(b"");
        let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("signed");
        let token = format!("{message}.{signature}");
        let empty = secret("");
        for shared in [Shared::Accepted(&empty), Shared::Refused(&empty)] {
            let keys = Keys { app: &empty, shared };
            let verified = verify_with(keys, &token, None);
            assert_eq!(verified.map(|_| ()), Err(TokenError::Forged));
        }
        let minted = mint(&json!({}), &secret(""), SigningAlgorithm::Hs256);
        assert_eq!(minted, Err(MintError::EmptyKey));
    }

    #[test]
    fn a_grant_knows_the_key_that_signed_it() {
        let (app, shared) = (secret(APP_KEY), secret(SHARED_KEY));
        let by_app = verify(&minted(json!({})), None).expect("a grant");
        let changed = secret("a new secret of the app");
        for (case, keys, expected) in [
            ("as before", Keys { app: &app, shared: Shared::NoKey }, true),
            ("as shared key", Keys { app: &changed, shared: Shared::Accepted(&app) }, true),
            ("secret changed", Keys { app: &changed, shared: Shared::NoKey }, false),
            (
                "secret changed, another shared",
                Keys { app: &changed, shared: Shared::Accepted(&shared) },
                false,
            ),
        ] {
            assert_eq!(by_app.is_signed_by(&keys), expected, "{case}");
        }
    }

    #[test]
    fn a_grant_knows_whom_it_was_minted_for() {
        let subject = |raw: &str| Subject::of(serde_json::from_str(raw).expect("JSON")).ok();
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for (claims, expected) in [
            (r#"{}"#, None),
            (r#"{"sub":null}"#, subject("null")),
            (r#"{"sub":"User:1"}"#, subject("\"User:1\"")),
            (r#"{"sub":{"b":1,"a":[2]}}"#, subject(r#"{"a":[2],"b":1}"#)),
            (&format!(r#"{{"sub":{deep}}}"#), None),
        ] {
            let grant = verify(&signed(HS256, claims), None).expect("a grant");
            assert_eq!(grant.subject, expected, "{claims}");
        }
        for twice in [r#"{"sub":1,"sub":2}"#, r#"{"sub":{"id":1,"\u0069d":2}}"#] {
            let verified = verify(&signed(HS256, twice), None).map(|_| ());
            assert_eq!(verified, Err(TokenError::Malformed), "{twice}");
        }
    }

    #[test]
    fn the_web_application_speaks_for_itself_with_aud_trigger() {
        for (aud, expected) in [
            (json!("trigger"), true),
            (json!(["web", "trigger"]), true),
            (json!("triggers"), false),
            (json!(null), false),
        ] {
            let grant = verify(&minted(json!({"aud": aud})), None).expect("a grant");
            assert_eq!(grant.is_trigger, expected, "{aud}");
        }
    }

    #[test]
    fn only_objects_are_minted() {
        for claims in [json!(null), json!([]), json!("x")] {
            let minted = mint(&claims, &secret(APP_KEY), SigningAlgorithm::Hs256);
            assert_eq!(minted, Err(MintError::NotAnObject), "{claims}");
        }
    }

    fn pair(token: Option<&str>, csrf: Option<&str>) -> TokenPair {
        TokenPair { token: token.map(Box::from), csrf: csrf.map(Box::from) }
    }

    #[test]
    fn a_text_that_is_too_long_for_a_token_is_not_kept() {
        let pair = |token: &str, csrf: &str| TokenPair {
            token: Some(token.into()),
            csrf: Some(csrf.into()),
        };
        assert_eq!(pair("12345678", "12345678").bounded(8), pair("12345678", "12345678"));
        assert_eq!(pair("123456789", "123456789").bounded(8), pair(NOT_TEXT, NOT_TEXT));
    }

    #[test]
    fn e203_params_hold_a_pair_that_may_be_absent_or_swapped() {
        for (case, params, expected) in [
            ("nothing", json!({}), pair(None, None)),
            (
                "both",
                json!({"guardian_token": "a.b.c", "csrf_token": "x"}),
                pair(Some("a.b.c"), Some("x")),
            ),
            (
                "swapped",
                json!({"guardian_token": "x", "csrf_token": "a.b.c"}),
                pair(Some("a.b.c"), Some("x")),
            ),
            (
                "swapped and unsigned",
                json!({"guardian_token": "x", "csrf_token": "a.b."}),
                pair(Some("a.b."), Some("x")),
            ),
            (
                "both shaped",
                json!({"guardian_token": "a.b.c", "csrf_token": "d.e.f"}),
                pair(Some("a.b.c"), Some("d.e.f")),
            ),
            (
                "neither shaped",
                json!({"guardian_token": "x", "csrf_token": "y"}),
                pair(Some("x"), Some("y")),
            ),
            ("only a CSRF token", json!({"csrf_token": "a.b.c"}), pair(None, Some("a.b.c"))),
            ("null", json!({"guardian_token": null, "csrf_token": null}), pair(None, None)),
            ("empty", json!({"guardian_token": "", "csrf_token": ""}), pair(None, None)),
            (
                "as text",
                json!({"guardian_token": "undefined", "csrf_token": "null"}),
                pair(None, None),
            ),
            ("a number", json!({"guardian_token": 1}), pair(Some(NOT_TEXT), None)),
            ("false", json!({"guardian_token": false}), pair(Some(NOT_TEXT), None)),
            ("an object", json!({"guardian_token": {"a": "a.b.c"}}), pair(Some(NOT_TEXT), None)),
            (
                "a CSRF list",
                json!({"guardian_token": "a.b.c", "csrf_token": ["x"]}),
                pair(Some("a.b.c"), Some(NOT_TEXT)),
            ),
        ] {
            let params = params.as_object().expect("an object");
            assert_eq!(TokenPair::from_params(params), expected, "{case}");
        }
    }

    #[test]
    fn e203_the_first_place_with_a_token_decides() {
        let none = || pair(None, None);
        for (case, join, connect, bearer, expected, from_join_payload) in [
            ("nowhere", none(), none(), None, none(), false),
            ("join", pair(Some("j"), Some("jc")), none(), None, pair(Some("j"), Some("jc")), true),
            (
                "join before all",
                pair(Some("j"), Some("jc")),
                pair(Some("c"), Some("cc")),
                Some("b"),
                pair(Some("j"), Some("jc")),
                true,
            ),
            (
                "join, CSRF from connect",
                pair(Some("j"), None),
                pair(Some("c"), Some("cc")),
                None,
                pair(Some("j"), Some("cc")),
                true,
            ),
            (
                "connect",
                none(),
                pair(Some("c"), Some("cc")),
                Some("b"),
                pair(Some("c"), Some("cc")),
                false,
            ),
            (
                "connect, join's CSRF is not its",
                pair(None, Some("jc")),
                pair(Some("c"), None),
                None,
                pair(Some("c"), None),
                false,
            ),
            ("bearer", none(), none(), Some("b"), pair(Some("b"), None), false),
            (
                "bearer, CSRF from connect",
                none(),
                pair(None, Some("cc")),
                Some("b"),
                pair(Some("b"), Some("cc")),
                false,
            ),
            ("bearer of nothing", none(), none(), Some("undefined"), none(), false),
        ] {
            let chosen = choose(join, &connect, bearer);
            assert_eq!(chosen, Chosen { pair: expected, from_join_payload }, "{case}");
        }
    }

    #[test]
    fn the_debug_text_of_tokens_and_grants_holds_no_secret() {
        let token = minted(json!({}));
        let grant = verify(&token, None).expect("a grant");
        let shown = format!("{:?} {grant:?}", pair(Some(&token), Some("page-csrf")));
        assert!(!shown.contains(&token) && !shown.contains("page-csrf"), "{shown}");
        let fingerprint = Sha256::digest(APP_KEY);
        assert!(!shown.contains(&format!("{}, {}", fingerprint[0], fingerprint[1])), "{shown}");
    }
}
