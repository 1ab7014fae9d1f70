//! The signatures with which pages subscribe to Pusher's channels and sign users in.

use herald::pusher::auth::{self, AuthFault};

use super::pusher_signature::{KEY, app, hmac};

/// No refusal that a client is sent is longer, in characters: it repeats a text and a signature, each of
/// whose characters may need an escape.
const REFUSAL_CHARS_MAX: usize = 2 * 500 * 10 + 200;

/// The first line is a socket id, the second a channel, the third an `auth`, and what follows, if there is
/// a fourth line, is `channel_data`. A `@` in the `auth` stands for the right signature, which a client
/// would have from its application.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.splitn(4, '\n');
    let [socket, channel, auth] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let data = lines.next();
    let mut signed = format!("{socket}:{channel}");
    if let Some(data) = data {
        signed = format!("{signed}:{data}");
    }
    judged(auth, &signed, |auth| auth::channel(&app(), socket, channel, data, auth).err());
    let user = data.unwrap_or_default();
    let signed = format!("{socket}::user::{user}");
    judged(auth, &signed, |auth| auth::user(&app(), socket, user, auth).err());
}

fn judged(auth: &str, signed: &str, judge: impl Fn(&str) -> Option<AuthFault>) {
    let right = hmac(signed);
    assert_eq!(judge(&format!("{KEY}:{right}")), None, "{signed:?}");
    let upper = right.to_uppercase();
    assert!(upper == right || judge(&format!("{KEY}:{upper}")).is_some(), "upper case");
    let auth = auth.replace('@', &right);
    let fault = judge(&auth);
    assert_eq!(fault.is_none(), auth == format!("{KEY}:{right}"), "{auth:?}");
    let Some(fault) = fault else { return };
    let told = fault.to_string();
    assert!(told.chars().count() <= REFUSAL_CHARS_MAX, "{}", told.len());
    assert!(!told.contains(&right) || auth.contains(&right), "a good signature is given away");
    let (key, given) = match auth.split_once(':') {
        Some((key, given)) => (Some(key), given),
        None => (None, ""),
    };
    let expected = match key {
        None if auth.is_empty() => AuthFault::Missing,
        None => AuthFault::Malformed,
        Some(key) if key != KEY => AuthFault::UnknownKey,
        Some(_) => AuthFault::Forged { signed: signed.to_owned(), given: given.to_owned() },
    };
    assert_eq!(fault, expected, "{auth:?}");
}
