//! Signed requests of Pusher's server SDKs.

use std::collections::BTreeMap;

use chrono::DateTime;
use herald::{
    app::{App, AppId, Slug, key_pair::Pair, settings::AppSettings},
    pusher::signature::{SignatureError, SignedQuery},
};
use hmac::{Hmac, Mac};
use sha2::Sha256;

pub(super) const KEY: &str = "278d425bdf160c739803";
pub(super) const SECRET: &str = "7ad3773142a6692b25b8";
const NOW_S: i64 = 1_353_088_179;

/// Parameters that may stand once, of which a signed request has the first four.
const ONCE: [&str; 5] =
    ["auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"];

/// The first line is a method, the second a path, the third a query without a signature; what follows is a
/// body.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.splitn(4, '\n');
    let [method, path, query, body] = [(); 4].map(|()| lines.next().unwrap_or_default());
    let auth = format!("auth_key={KEY}&auth_timestamp={NOW_S}&auth_version=1.0");
    let pairs = decoded(&format!("{query}&{auth}"));
    let signature = hmac(&signed_text(method, path, &pairs));
    let signed = format!("{query}&{auth}&auth_signature={signature}");
    let mut times = BTreeMap::<String, usize>::new();
    for (name, _) in decoded(&signed) {
        *times.entry(name).or_default() += 1;
    }
    let is_repeated = ONCE.iter().any(|name| times.get(*name).is_some_and(|times| *times > 1));
    let parsed = match SignedQuery::parse(&signed) {
        Err(error) => {
            assert!(is_repeated && matches!(error, SignatureError::Repeated(_)), "{error}");
            return;
        }
        Ok(parsed) => parsed,
    };
    assert!(!is_repeated, "{signed:?} could mean two things");
    let app = app();
    let verified = parsed.verify((method, path), &app, NOW_S);
    assert_eq!(verified, Ok(Pair::Current), "{method} {path} {signed:?}");
    for off in [600, -600] {
        let late = parsed.verify((method, path), &app, NOW_S + off);
        assert_eq!(late, Err(SignatureError::Stale(NOW_S + off)));
    }
    let forged = |signed: &str, method: &str| {
        let Ok(parsed) = SignedQuery::parse(signed) else { return true };
        matches!(parsed.verify((method, path), &app, NOW_S), Err(SignatureError::Forged(_)))
    };
    assert!(forged(&signed, &format!("{method}x")), "another method");
    assert!(forged(&format!("{signed}&x=y"), method), "one parameter more");
    assert!(forged(&format!("{signed}0"), method), "a longer signature");
    let is_empty = body.is_empty();
    match parsed.verify_body(body.as_bytes()) {
        Ok(()) => assert!(is_empty || parsed.get("body_md5").is_some_and(|md5| md5.len() == 32)),
        Err(SignatureError::NoDigest) => assert!(!is_empty && parsed.get("body_md5").is_none()),
        Err(error) => assert!(!is_empty && error == SignatureError::OtherBody, "{error}"),
    }
}

/// The parameters of a query, decoded, their names in lower case.
fn decoded(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let split = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name).to_lowercase(), decode(value))
    };
    pairs.map(split).collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|two| two.iter().all(u8::is_ascii_hexdigit));
        match (byte, digits) {
            (b'+', _) => found.push(b' '),
            (b'%', Some(digits)) => {
                let digits = str::from_utf8(digits).expect("digits");
                found.push(u8::from_str_radix(digits, 16).expect("two digits"));
                at += 2;
            }
            _ => found.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&found).into_owned()
}

fn signed_text(method: &str, path: &str, pairs: &[(String, String)]) -> String {
    let mut pairs: Vec<_> = pairs.iter().filter(|(name, _)| name != "auth_signature").collect();
    pairs.sort_by_key(|(name, _)| name.clone());
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{method}\n{path}\n{}", pairs.join("&"))
}

/// HMAC-SHA256 by the app's secret, in lower-case hex.
pub(super) fn hmac(text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("a key");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The app that signs.
pub(super) fn app() -> App {
    App {
        id: AppId(3),
        name: "app-3".to_owned(),
        slug: Slug::parse("app-3").expect("a slug"),
        key: KEY.to_owned(),
        secret: SECRET.into(),
        last_use: Default::default(),
        previous: None,
        digests: Default::default(),
        settings: AppSettings::default(),
        inserted_at: DateTime::UNIX_EPOCH,
        updated_at: DateTime::UNIX_EPOCH,
    }
}
