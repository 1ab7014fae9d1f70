//! Tokens as a web application would mint them.

use std::time::{SystemTime, UNIX_EPOCH};

use herald::app::token::{SigningAlgorithm, mint};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;

use super::App;

/// Unix time in seconds.
pub fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(since.as_secs()).expect("a clock before the sun burns out")
}

/// A token with these claims, signed by an app's secret.
pub fn token(app: &App, claims: &Value) -> String {
    signed(&app.secret, claims)
}

/// A token with these claims, signed by any key.
pub fn signed(key: &str, claims: &impl Serialize) -> String {
    mint(claims, &SecretString::from(key), SigningAlgorithm::Hs256).expect("a token")
}
