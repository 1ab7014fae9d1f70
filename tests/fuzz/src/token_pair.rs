//! The tokens that clients bring: which of them counts, and what it is worth.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use herald::{
    app::token::{
        self, Chosen, SharedTokens, SigningAlgorithm, TokenError, TokenKeys, TokenPair, Verifier,
        csrf_signature, mint,
    },
    phoenix::session_token::SessionTokens,
};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use sha2::{Sha256, Sha512};
use uuid::Uuid;

use super::permission;

const NOW_S: f64 = 1_700_000_000.0;
const LEEWAY_S: f64 = 30.0;
const TOKEN_BYTES_MAX: usize = 1_024;
const APP_KEY: &str = "test-app-fake-secret";
const SHARED_KEY: &str = "the operator's own key, for all";

/// A line is what stands at one place: the join payload's two tokens, the connect params' two, the
/// subprotocol's, a topic, and what a session's token is made of.
///
/// A line that is empty is not there; `~` precedes JSON of any kind, `@` claims to be signed with
/// the app's key and `#` with the shared one. In claims, an `s_csrf` of `of:<text>` becomes the
/// signature of that text.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let keys = KeyRing::new();
    let join = keys.pair(next(), next());
    let connect = keys.pair(next(), next());
    let bearer = keys.text(next());
    let topic = next();
    session_token(next());
    let Chosen { pair, from_join_payload } = chosen(join, &connect.bounded(), bearer.as_deref());
    assert!(!from_join_payload || pair.token.is_some());
    let Some(token) = pair.token else { return };
    let shared = &keys.shared;
    for shared in
        [SharedTokens::NoKey, SharedTokens::Refused(shared), SharedTokens::Accepted(shared)]
    {
        let keys = TokenKeys { app: &keys.app, previous: None, shared };
        judged(keys, &token, pair.csrf.as_deref(), topic);
    }
}

struct KeyRing {
    app: SecretString,
    shared: SecretString,
}

/// A pair as it was sent, and as it should be read.
struct Sent {
    params: Map<String, Value>,
    expected: TokenPair,
}

impl KeyRing {
    fn new() -> Self {
        Self { app: SecretString::from(APP_KEY), shared: SecretString::from(SHARED_KEY) }
    }

    fn pair(&self, token: &str, csrf: &str) -> Sent {
        let (token, csrf) = (self.value(token), self.value(csrf));
        let [first, second] = [&token, &csrf].map(|value| value.as_ref().and_then(present));
        let expected = match (first, second) {
            (Some(first), Some(second)) if dots(&first) != 2 && dots(&second) == 2 => {
                TokenPair { token: Some(second), csrf: Some(first) }
            }
            (token, csrf) => TokenPair { token, csrf },
        };
        let both = [("guardian_token", token), ("csrf_token", csrf)];
        let given = both.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Sent { params: given.collect(), expected }
    }

    /// The value that a line stands for, or `None` if the line stands for nothing.
    fn value(&self, line: &str) -> Option<Value> {
        match line.strip_prefix('~') {
            Some(json) => serde_json::from_str(json).ok(),
            None => self.text(line).map(Value::String),
        }
    }

    fn text(&self, line: &str) -> Option<String> {
        let minted = match line.split_at_checked(1) {
            Some(("@", claims)) => self.mint(claims, &self.app, SigningAlgorithm::Hs256),
            Some(("#", claims)) => self.mint(claims, &self.shared, SigningAlgorithm::Hs512),
            _ => None,
        };
        minted.or_else(|| Some(line).filter(|line| !line.is_empty()).map(str::to_owned))
    }

    fn mint(
        &self,
        claims: &str,
        key: &SecretString,
        algorithm: SigningAlgorithm,
    ) -> Option<String> {
        let mut claims: Value = serde_json::from_str(claims).ok()?;
        if let Some(Value::String(signature)) = claims.get_mut("s_csrf")
            && let Some(csrf) = signature.strip_prefix("of:")
        {
            *signature = csrf_signature(key, csrf);
        }
        mint(&claims, key, algorithm).ok()
    }
}

impl Sent {
    /// The pair as it is read, and as it is kept for a session's life.
    fn read(self) -> TokenPair {
        let pair = TokenPair::from_params(&self.params);
        assert!(pair == self.expected, "a pair is read as the rule says");
        pair
    }

    fn bounded(self) -> TokenPair {
        let pair = self.read();
        let kept = pair.clone().bounded(TOKEN_BYTES_MAX);
        for (kept, given) in [(kept.token.as_ref(), pair.token), (kept.csrf.as_ref(), pair.csrf)] {
            let expected = given.map(|text| match text.len() {
                0..=TOKEN_BYTES_MAX => text,
                _ => "?".into(),
            });
            assert_eq!(kept, expected.as_ref(), "what is kept is bounded");
        }
        kept
    }
}

/// The text of a token. A value that stands for nothing is absent, and one that is no text is no token.
fn present(value: &Value) -> Option<Box<str>> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() || text == "null" || text == "undefined" => None,
        Value::String(text) => Some(text.as_str().into()),
        _ => Some("?".into()),
    }
}

fn dots(text: &str) -> usize {
    text.matches('.').count()
}

/// The first place with a token decides; its companion comes from there, else from the connect
/// params.
fn chosen(join: Sent, connect: &TokenPair, bearer: Option<&str>) -> Chosen {
    let join = join.read();
    let from_join_payload = join.token.is_some();
    let bearer = bearer.and_then(|text| present(&Value::from(text)));
    let expected = TokenPair {
        token: join.token.clone().or_else(|| connect.token.clone()).or(bearer.clone()),
        csrf: match from_join_payload {
            true => join.csrf.clone().or_else(|| connect.csrf.clone()),
            false => connect.csrf.clone(),
        },
    };
    let chosen = token::choose(join, connect, bearer.as_deref());
    assert!(chosen.pair == expected, "the pair that counts");
    assert_eq!(chosen.from_join_payload, from_join_payload);
    chosen
}

/// A token is accepted if one of the keys signed it and its claims hold, and only then.
fn judged(keys: TokenKeys<'_>, token: &str, csrf: Option<&str>, topic: &str) {
    let verifier = Verifier { keys, token_bytes_max: TOKEN_BYTES_MAX, now_s: NOW_S };
    let found = verifier.verify(token, csrf);
    let (accepted, refused) = match keys.shared {
        SharedTokens::Accepted(key) => (Some(key), None),
        SharedTokens::Refused(key) => (None, Some(key)),
        SharedTokens::NoKey => (None, None),
    };
    let signers = [Some(keys.app), accepted].into_iter().flatten();
    let signed = signers.into_iter().find_map(|key| Some((key, claims(token, key)?)));
    let would_be_valid = |key| claims(token, key).is_some_and(|c| verdict(&c, csrf, key).is_none());
    match signed {
        _ if token.len() > TOKEN_BYTES_MAX => assert_eq!(found.err(), Some(TokenError::TooLong)),
        None if refused.is_some_and(would_be_valid) => {
            assert_eq!(found.err(), Some(TokenError::NotShared), "{token}");
        }
        None => assert_unsigned(found.err(), token),
        Some((key, claims)) => {
            let expected = verdict(&claims, csrf, key);
            assert_eq!(found.as_ref().err().copied(), expected, "{claims}");
            let Ok(grant) = found else { return };
            let allowed = [&grant.listen, &grant.publish].map(|patterns| patterns.allow(topic));
            let claimed = ["listen", "publish"]
                .map(|name| permission::allows(claims.get(name).unwrap_or(&Value::Null), topic));
            assert_eq!(allowed, claimed, "{claims} on {topic:?}");
            assert!(grant.is_signed_by(&TokenKeys {
                app: key,
                previous: None,
                shared: SharedTokens::NoKey
            }));
            changed(&verifier, token, csrf);
        }
    }
}

/// The claims of a token that `key` signed; none if it did not, or by another method.
fn claims(token: &str, key: &SecretString) -> Option<Value> {
    let parts: Vec<&str> = token.split('.').collect();
    let &[header, payload, signature] = parts.as_slice() else { return None };
    let read = |part: &str| -> Option<Value> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
    };
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let message = format!("{header}.{payload}");
    let key = key.expose_secret().as_bytes();
    let expected = match read(header)?.get("alg")?.as_str()? {
        "HS256" => {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
            mac.update(message.as_bytes());
            mac.finalize().into_bytes().to_vec()
        }
        "HS512" => {
            let mut mac = Hmac::<Sha512>::new_from_slice(key).ok()?;
            mac.update(message.as_bytes());
            mac.finalize().into_bytes().to_vec()
        }
        _ => return None,
    };
    (signature == expected).then(|| read(payload)).flatten()
}

/// The first fault of claims, in the order in which the server judges them.
fn verdict(claims: &Value, csrf: Option<&str>, key: &SecretString) -> Option<TokenError> {
    let given = |name: &str| claims.get(name).filter(|value| !value.is_null());
    let time = |name: &str| given(name).and_then(Value::as_f64);
    let is_time = |name: &str| given(name).is_none_or(Value::is_number);
    let audiences: Vec<&Value> = match given("aud") {
        None => Vec::new(),
        Some(Value::Array(several)) => several.iter().collect(),
        Some(one) => vec![one],
    };
    let is_sound = claims.is_object()
        && ["exp", "nbf", "iat"].into_iter().all(is_time)
        && audiences.iter().all(|audience| audience.is_string());
    let in_future = |name| time(name).is_some_and(|time| time > NOW_S + LEEWAY_S);
    let fits = || {
        let claimed = given("s_csrf").and_then(Value::as_str);
        csrf.is_some_and(|csrf| claimed == Some(csrf_signature(key, csrf).as_str()))
    };
    match () {
        () if !is_sound => Some(TokenError::Malformed),
        () if ["exp", "nbf", "iat"]
            .into_iter()
            .filter_map(time)
            .any(|at| at >= 253_402_300_800.0) =>
        {
            Some(TokenError::NotInSeconds)
        }
        () if time("exp").is_some_and(|exp| exp + LEEWAY_S < NOW_S) => Some(TokenError::Expired),
        () if in_future("nbf") || in_future("iat") => Some(TokenError::NotYetValid),
        () if audiences.iter().any(|audience| *audience == "csrf") && !fits() => {
            Some(TokenError::InvalidCsrf)
        }
        () => None,
    }
}

/// No character of a good token can be another.
fn changed(verifier: &Verifier<'_>, token: &str, csrf: Option<&str>) {
    for (at, letter) in token.char_indices() {
        for other in ['A', '.', '='].into_iter().filter(|other| *other != letter) {
            let end = at + letter.len_utf8();
            let forged = format!("{}{other}{}", &token[..at], &token[end..]);
            assert_unsigned(verifier.verify(&forged, csrf).err(), &forged);
        }
    }
    let (message, signature) = token.rsplit_once('.').expect("a token has parts");
    for cut in [message, signature, &token[1..], &token[..token.len() - 1]] {
        assert_unsigned(verifier.verify(cut, csrf).err(), cut);
    }
}

/// A token that no key has signed is forged, unless it has not even the form of a token.
fn assert_unsigned(error: Option<TokenError>, token: &str) {
    use TokenError::{Forged, Malformed, Unsupported};
    assert!(matches!(error, Some(Forged | Malformed | Unsupported)), "{error:?} for {token}");
}

/// A session has one token, and no text but that names it.
fn session_token(line: &str) {
    let tokens = SessionTokens::new(SecretString::from(APP_KEY));
    if let Some(id) = tokens.read(line) {
        assert_eq!(tokens.mint(id), line, "a session has one token");
    }
    let mut id = [0; 16];
    id.iter_mut().zip(line.bytes()).for_each(|(byte, given)| *byte = given);
    let id = Uuid::from_bytes(id);
    let token = tokens.mint(id);
    assert_eq!(tokens.read(&token), Some(id));
    let at = line.len() % token.len();
    for other in ["A", "_", "."].into_iter().filter(|other| token[at..=at] != **other) {
        let forged = format!("{}{other}{}", &token[..at], &token[at + 1..]);
        assert_eq!(tokens.read(&forged), None, "{other:?} at {at} of {token}");
    }
}
