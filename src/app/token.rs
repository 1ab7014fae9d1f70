//! Tokens: JWTs that the web application mints for its visitors.
//!
//! See section 12 of the protocol document.

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::{App, permission::Patterns};

/// A guardian token with its CSRF companion, as a client sent them.
#[derive(Clone, Default)]
pub struct TokenPair {
    /// The JWT.
    pub token: Option<String>,
    /// The page's CSRF token.
    pub csrf: Option<String>,
}

impl TokenPair {
    /// Reads `guardian_token` and `csrf_token`; empty, null and `undefined` count as absent,
    /// a swapped pair is put right.
    pub fn from_params(_params: &Map<String, Value>) -> Self {
        todo!()
    }
}

/// The secrets that may have signed a token.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// The app's own secret.
    pub app: &'a SecretString,
    /// The operator's `GUARDIAN_SECRET`, where the app takes shared tokens.
    pub shared: Option<&'a SecretString>,
}

impl<'a> Keys<'a> {
    /// The keys that count for `app`.
    pub fn of(app: &'a App, guardian_secret: Option<&'a SecretString>) -> Self {
        let shared = guardian_secret.filter(|_| app.shared_tokens);
        Self { app: &app.secret, shared }
    }
}

/// What a verified token permits.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Topics that may be joined.
    pub listen: Patterns,
    /// Topics that may be published to.
    pub publish: Patterns,
    /// Whether `aud` is `trigger`: the web application itself speaks, not a visitor.
    pub is_trigger: bool,
}

impl Grant {
    /// Whether one of `keys` is the very key that verified this grant's token.
    pub fn is_signed_by(&self, _keys: &Keys<'_>) -> bool {
        todo!()
    }
}

/// Why a token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// Not a JWT, wrong signature or algorithm, wrong claim types, or too long.
    Invalid,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` lie in the future.
    NotYetValid,
    /// `aud` is `csrf` and the CSRF token does not fit.
    InvalidCsrf,
}

impl TokenError {
    /// The reason on the wire.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Invalid => "invalid_token",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::InvalidCsrf => "invalid_csrf",
        }
    }
}

/// Verifies a token; `now_s` is Unix time in seconds.
pub fn verify(
    _token: &str,
    _csrf: Option<&str>,
    _keys: &Keys<'_>,
    _now_s: f64,
) -> Result<Grant, TokenError> {
    todo!()
}
