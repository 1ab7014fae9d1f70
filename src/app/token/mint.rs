//! Minting tokens.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

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

/// The reason why a token could not be minted.
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
