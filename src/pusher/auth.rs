//! The signatures that an application gives its pages: to subscribe to a channel, and to sign a user in.
//!
//! It follows sections 5.2 and 9.1 of the document of Pusher's protocol. An `auth` is
//! `<key>:<signature>`, by either of the app's pairs. It is valid for one socket, one channel and one
//! text of `channel_data`, which is signed as the client sends it.

use std::fmt;

use crate::app::{App, key_pair::Pair};

use super::signature::is_signed;

/// The most characters of a signed text, and of a signature, that an error repeats.
const TOLD_CHARS_MAX: usize = 500;

/// The reason why an `auth` does not permit the client's request. The texts are sent to the client, and
/// never contain a signature that Herald has computed, because the client could use it as its `auth`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthFault {
    /// The message has no `auth`.
    #[error("auth is missing: the application's endpoint has to sign this")]
    Missing,
    /// The `channel_data` is not a string.
    #[error("channel_data must be a string, because the application signs its text")]
    DataNotText,
    /// The `auth` has no colon.
    #[error("auth must be a key of the app, a colon and a signature")]
    Malformed,
    /// The key is not one of the app's.
    #[error("the key in auth is not a key of this app")]
    UnknownKey,
    /// The signature was made for another text, or with another secret.
    #[error(
        "invalid signature: expected the HMAC-SHA256 in lower-case hex of {}, but got {}",
        QuotedText(signed),
        QuotedText(given)
    )]
    Forged {
        /// The text that the application must sign.
        signed: String,
        /// The received signature.
        given: String,
    },
}

/// A text of a client, cut where it is very long.
struct QuotedText<'a>(&'a str);

impl fmt::Display for QuotedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(TOLD_CHARS_MAX) {
            Some((cut, _)) => write!(f, "{:?}…", &self.0[..cut]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

/// Judges whether `auth` permits a socket to subscribe to a channel. Returns the pair that signed it, and
/// records its use. If there is `channel_data`, it is part of the signed text on every kind of channel.
///
/// # Errors
/// [`AuthFault`].
pub fn channel(
    app: &App,
    socket_id: &str,
    channel: &str,
    channel_data: Option<&str>,
    auth: &str,
) -> Result<Pair, AuthFault> {
    match channel_data {
        Some(data) => judge(app, &[socket_id, ":", channel, ":", data], auth),
        None => judge(app, &[socket_id, ":", channel], auth),
    }
}

/// Judges whether `auth` permits a socket to sign in as the user that `user_data` describes. Returns the
/// pair that signed it, and records its use.
///
/// # Errors
/// [`AuthFault`].
pub fn user(app: &App, socket_id: &str, user_data: &str, auth: &str) -> Result<Pair, AuthFault> {
    judge(app, &[socket_id, "::user::", user_data], auth)
}

fn judge(app: &App, signed: &[&str], auth: &str) -> Result<Pair, AuthFault> {
    if auth.is_empty() {
        return Err(AuthFault::Missing);
    }
    let (key, given) = auth.split_once(':').ok_or(AuthFault::Malformed)?;
    let (pair, secret) = app.pair_with_key(key).ok_or(AuthFault::UnknownKey)?;
    if !is_signed(secret, signed, given) {
        return Err(AuthFault::Forged { signed: signed.concat(), given: given.to_owned() });
    }
    app.note_use(pair);
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use super::{super::signature::sign, *};
    use crate::app::testing;

    const KEY: &str = "278d425bdf160c739803";
    const SECRET: &str = "7ad3773142a6692b25b8";
    const SOCKET: &str = "1234.1234";

    fn app() -> App {
        testing::app(KEY, SECRET)
    }

    #[test]
    fn p053_channels_are_signed_as_in_the_vectors() {
        for (vector, name, data, signature) in [
            (
                "W1",
                "private-foobar",
                None,
                "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4",
            ),
            (
                "W2",
                "presence-foobar",
                Some(r#"{"user_id":10,"user_info":{"name":"Mr. Channels"}}"#),
                "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80",
            ),
            (
                "W3",
                "presence-foobar",
                Some(r#"{"user_id":10,"user_info":{"name":"Mr. Pusher"}}"#),
                "afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c",
            ),
            (
                "W4",
                "private-foobar",
                Some(r#"{"user_id":"u1"}"#),
                "e307391c8e8e9253874a38e3a02b657cea6bc4be825f9da02357cffdfd618d6d",
            ),
            (
                "W5",
                "private-encrypted-foobar",
                None,
                "e6a18892d037c5d5e76a2265df4f086ffc38631605530dfd214aa5bff495f533",
            ),
            (
                "W6",
                "private-cache-foobar",
                None,
                "395f4a03f06e17b74af8d9c58386cf386e70176f58452420f042b6e1bddefa43",
            ),
            (
                "W7",
                "private-encrypted-cache-foobar",
                None,
                "b9b56ee68b2117189dbac324760a1f9958070108e3ef45232e5dcbba37dbb831",
            ),
            (
                "W8",
                "presence-foobar",
                None,
                "71506e66e7fdca106571b8999a849ad34245bc653772e51e0026c1a2475b92ba",
            ),
            (
                "W9",
                "presence-foobar",
                Some(r#"{"user_id":"é1","user_info":{"n":"Zoë"}}"#),
                "9d7391c5279e8b6c6dd76bc4401c5406e47c1b6bf73416fc62e1149856283365",
            ),
        ] {
            let auth = format!("{KEY}:{signature}");
            assert_eq!(channel(&app(), SOCKET, name, data, &auth), Ok(Pair::Current), "{vector}");
        }
    }

    #[test]
    fn p110_users_are_signed_as_in_the_vectors() {
        for (vector, data, signature) in [
            (
                "W10",
                r#"{"id":"12345"}"#,
                "4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba",
            ),
            (
                "W11",
                r#"{"id":"u1","user_info":{"name":"Ana"},"watchlist":["u2","u3"]}"#,
                "0b8630dc35f4012bd81c60643ff7c9a5dc5d2c7ae1184714e6d3915cd9c7fd67",
            ),
        ] {
            let auth = format!("{KEY}:{signature}");
            assert_eq!(user(&app(), SOCKET, data, &auth), Ok(Pair::Current), "{vector}");
            let other = user(&app(), "1234.1235", data, &auth);
            assert!(matches!(other, Err(AuthFault::Forged { .. })), "{vector}");
        }
    }

    #[test]
    fn every_other_signature_is_refused() {
        let data = r#"{"user_id":"u1"}"#;
        let sign = |parts: &[&str]| sign(&SECRET.into(), parts);
        let alone = sign(&[SOCKET, ":private-a"]);
        let with_data = sign(&[SOCKET, ":private-a:", data]);
        let forged = |signed: &str, given: &str| {
            Err(AuthFault::Forged { signed: signed.to_owned(), given: given.to_owned() })
        };
        let (upper, wrong) = (alone.to_uppercase(), format!("{alone}0"));
        let whole = format!("{SOCKET}:private-a:{data}");
        for (case, data, auth, expected) in [
            ("good", None, format!("{KEY}:{alone}"), Ok(Pair::Current)),
            ("good with data", Some(data), format!("{KEY}:{with_data}"), Ok(Pair::Current)),
            ("missing", None, String::new(), Err(AuthFault::Missing)),
            ("no colon", None, alone.clone(), Err(AuthFault::Malformed)),
            ("another key", None, format!("other:{alone}"), Err(AuthFault::UnknownKey)),
            ("no key", None, format!(":{alone}"), Err(AuthFault::UnknownKey)),
            ("upper case", None, format!("{KEY}:{upper}"), forged("1234.1234:private-a", &upper)),
            ("longer", None, format!("{KEY}:{wrong}"), forged("1234.1234:private-a", &wrong)),
            ("data not signed", Some(data), format!("{KEY}:{alone}"), forged(&whole, &alone)),
            (
                "data not sent",
                None,
                format!("{KEY}:{with_data}"),
                forged("1234.1234:private-a", &with_data),
            ),
            (
                "split at the first colon",
                None,
                format!("{KEY}:{alone}:x"),
                forged("1234.1234:private-a", &format!("{alone}:x")),
            ),
        ] {
            assert_eq!(channel(&app(), SOCKET, "private-a", data, &auth), expected, "{case}");
        }
        let other = channel(&app(), SOCKET, "private-b", None, &format!("{KEY}:{alone}"));
        assert!(matches!(other, Err(AuthFault::Forged { .. })), "another channel");
        let spaced = r#"{"user_id": "u1"}"#;
        let other =
            channel(&app(), SOCKET, "private-a", Some(spaced), &format!("{KEY}:{with_data}"));
        assert!(matches!(other, Err(AuthFault::Forged { .. })), "data with other spacing");
    }

    #[test]
    fn a_pair_signs_until_its_overlap_has_passed_and_its_use_is_recorded() {
        let app = testing::rotated(("new-key", "new-secret"), (KEY, SECRET));
        let auth = format!("{KEY}:{}", sign(&SECRET.into(), &[SOCKET, ":private-a"]));
        assert_eq!(channel(&app, SOCKET, "private-a", None, &auth), Ok(Pair::Previous));
        let used = |app: &App| {
            let previous = app.previous.as_ref().expect("a pair");
            (app.last_use.at().is_some(), previous.last_use.at().is_some())
        };
        assert_eq!(used(&app), (false, true));
        let crossed = auth.replace(KEY, "new-key");
        assert!(channel(&app, SOCKET, "private-a", None, &crossed).is_err());
        assert_eq!(used(&app), (false, true), "a refusal is no use");
    }

    #[test]
    fn a_refusal_repeats_what_the_client_sent_and_no_digest_of_ours() {
        let expected = sign(&SECRET.into(), &[SOCKET, ":private-a"]);
        let fault = channel(&app(), SOCKET, "private-a", None, &format!("{KEY}:beef"));
        let text = fault.expect_err("a fault").to_string();
        assert_eq!(
            text,
            "invalid signature: expected the HMAC-SHA256 in lower-case hex of \
             \"1234.1234:private-a\", but got \"beef\""
        );
        assert!(!text.contains(&expected) && !text.contains(SECRET));
        let long = "é".repeat(10_000);
        let fault = channel(&app(), SOCKET, "private-a", Some(&long), &format!("{KEY}:{long}"));
        assert!(fault.expect_err("a fault").to_string().chars().count() < 1_200);
    }
}
