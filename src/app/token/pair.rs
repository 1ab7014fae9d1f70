//! The tokens that a client sent, and the choice of those that count.

use std::fmt;

use serde_json::{Map, Value};

/// The text that replaces a parameter that is present but not a string. It is refused as an invalid token.
pub(super) const NOT_TEXT: &str = "?";

/// A guardian token with its CSRF companion, as a client sent them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenPair {
    /// The JWT.
    pub token: Option<Box<str>>,
    /// The page's CSRF token.
    pub csrf: Option<Box<str>>,
}

impl TokenPair {
    /// Reads `guardian_token` and `csrf_token`. Empty texts, null and `undefined` count as absent, and a swapped
    /// pair is corrected.
    pub fn from_params(params: &Map<String, Value>) -> Self {
        let token = params.get("guardian_token").and_then(present);
        let csrf = params.get("csrf_token").and_then(present);
        // One well-known page helper writes each of the two into the other's tag.
        match (&token, &csrf) {
            (Some(first), Some(second)) if !is_jwt_shaped(first) && is_jwt_shaped(second) => {
                Self { token: csrf, csrf: token }
            }
            _ => Self { token, csrf },
        }
    }

    /// The most bytes of a CSRF token that came when the client connected, and is kept for its later joins.
    pub const CSRF_BYTES_MAX: usize = 1_024;

    /// The pair without texts that are too long to be tokens: see [`bounded`]. `bytes_max` is the limit of the
    /// JWT.
    pub fn bounded(self, bytes_max: usize) -> Self {
        let bound = |text: Option<Box<str>>, max| text.map(|text| bounded(text, max));
        let csrf_max = bytes_max.min(Self::CSRF_BYTES_MAX);
        Self { token: bound(self.token, bytes_max), csrf: bound(self.csrf, csrf_max) }
    }
}

/// Keeps a text of at most `bytes_max` bytes. A longer one cannot be a valid token, and is replaced by a short
/// invalid one to save its memory.
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

pub(super) fn is_told(text: &str) -> bool {
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
    /// Whether the token came with the join itself. Such a token fails any join if it is invalid, while an invalid
    /// one from another place is ignored on `public:`.
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
