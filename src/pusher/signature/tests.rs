//! Entry 125: the vectors of section 13.1, and the rules around them.

use super::*;
use crate::app::testing;

const KEY: &str = "278d425bdf160c739803";
const SECRET: &str = "7ad3773142a6692b25b8";
const NOW_S: i64 = 1_353_088_179;
const AUTH: &str = "auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0";

fn app() -> App {
    testing::app(KEY, SECRET)
}

fn verify(method: &str, path: &str, query: &str) -> Result<Pair, SignatureError> {
    SignedQuery::parse(query)?.verify((method, path), &app(), NOW_S)
}

/// A query with a good signature.
fn signed(method: &str, path: &str, query: &str) -> String {
    let parsed = SignedQuery::parse(query).expect("a query");
    let text = parsed.signed_text(method, path);
    format!("{query}&auth_signature={}", sign(&SECRET.into(), &[&text]))
}

#[test]
fn p125_requests_are_signed_as_in_the_vectors() {
    let h6 = r#"{"batch":[{"channel":"a","name":"e1","data":"1"},{"channel":"presence-b","name":"e2","data":"{}","info":"user_count","socket_id":"1234.1234"}]}"#;
    for (vector, method, path, query, body, signature) in [
        (
            "H1",
            "POST",
            "/apps/3/events",
            "&body_md5=ec365a775a4cd0599faeb73354201b6f",
            r#"{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}"#,
            "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
        ),
        (
            "H2",
            "GET",
            "/apps/3/channels",
            "&filter_by_prefix=presence-&info=user_count",
            "",
            "16819168891cb5dfd72b5c7a5d3d602605b26c6ba1930033b5e2eeeb65010291",
        ),
        (
            "H3 as Ruby sends it",
            "GET",
            "/apps/3/channels",
            "&filter_by_prefix=presence-&info=user_count%2Csubscription_count",
            "",
            "ff97d40ab3fbbd15394386a29c12998c33635305357b2e2abd18dc67efe3f87d",
        ),
        (
            "H3 as Node sends it",
            "GET",
            "/apps/3/channels",
            "&info=user_count,subscription_count&filter_by_prefix=presence-",
            "",
            "ff97d40ab3fbbd15394386a29c12998c33635305357b2e2abd18dc67efe3f87d",
        ),
        (
            "H4",
            "GET",
            "/apps/3/channels/presence-foobar/users",
            "",
            "",
            "5567dd30e7f8575e66be615d2aac3f608a0c311c31ddab8513a278b022e9597e",
        ),
        (
            "H5",
            "GET",
            "/apps/3/channels/presence-foobar/users",
            "&body_md5=d41d8cd98f00b204e9800998ecf8427e",
            "",
            "3d68b512095fd42cb6741cc80616761b1c77d00fcc4d6d9740f09504a4b761b0",
        ),
        (
            "H6",
            "POST",
            "/apps/3/batch_events",
            "&body_md5=4f153aeb81255005d33cf16624ba9f27",
            h6,
            "a297cfb195ba9eb2b0473b9f0c88ab3086a29586e319e469003dfe6cfa474b24",
        ),
        (
            "H7",
            "POST",
            "/apps/3/users/12345/terminate_connections",
            "",
            "",
            "0bd2da4cd2c60cbe4627bea865cb306fda26121f3665d934db3e0f3f542a91f8",
        ),
        (
            "H8",
            "POST",
            "/apps/3/users/12345/terminate_connections",
            "&body_md5=99914b932bd37a50b983c5e7c90ae93b",
            "{}",
            "01fa634edeb0cae84115307cad5c23f65a46cd286461b1c89637a3b5871a8f0e",
        ),
        (
            "H9",
            "POST",
            "/users/12345/terminate_connections",
            "&body_md5=99914b932bd37a50b983c5e7c90ae93b",
            "{}",
            "e3c6b279be14c04728803c2f54d90bef57357d2bb2e1b8ae90507149cd3308d7",
        ),
        (
            "H10",
            "POST",
            "/apps/3/events",
            "&body_md5=48782a42de47309a35da08b894ab4772",
            r#"{"name":"é","channels":["c"],"data":"ü"}"#,
            "722c51e89974ac1a5f46d2a8a593365514b4ec8cd51d9b756e0cdb1c08799263",
        ),
        (
            "H11",
            "GET",
            "/apps/3/channels/presence-foo@bar;1",
            "&info=subscription_count,user_count",
            "",
            "486c61c3da329d7ccb34fdc7c96b5f7e8cafdd1c9bfee69829ca0ddc3a433706",
        ),
    ] {
        let query = format!("{AUTH}{query}&auth_signature={signature}");
        let query = SignedQuery::parse(&query).expect("a query");
        assert_eq!(query.verify((method, path), &app(), NOW_S), Ok(Pair::Current), "{vector}");
        assert_eq!(query.verify_body(body.as_bytes()), Ok(()), "{vector}");
    }
}

#[test]
fn p125_the_vectors_of_the_python_sdk_hold() {
    let app = testing::app("key", "secret");
    for (vector, method, query, body, signature) in [
        (
            "H12",
            "GET",
            "foo=bar&body_md5=d41d8cd98f00b204e9800998ecf8427e",
            "",
            "5c49f04a95eedc9028b1e0e8de7c2c7ad63504a0e3b5c145d2accaef6c14dbac",
        ),
        (
            "H13",
            "POST",
            "body_md5=94232c5b8fc9272f6f73a1e36eb68fcf",
            r#"{"foo": "bar"}"#,
            "e05fa4cafee86311746ee3981d5581a5e4e87c27bbab0aeb1059e2df5c90258b",
        ),
    ] {
        let auth = "auth_version=1.0&auth_timestamp=1000&auth_key=key";
        let query = format!("{query}&{auth}&auth_signature={signature}");
        let query = SignedQuery::parse(&query).expect("a query");
        let verified = query.verify((method, "/some/obscure/api"), &app, 1_000);
        assert_eq!(verified, Ok(Pair::Current), "{vector}");
        assert_eq!(query.verify_body(body.as_bytes()), Ok(()), "{vector}");
    }
}

#[test]
fn names_are_lowered_and_sorted_and_lists_keep_their_order() {
    let query = "auth_version=1.0&Info=a%20b+c&channels[]=z&channels%5B%5D=a&AUTH_KEY=k&&empty";
    let query = SignedQuery::parse(query).expect("a query");
    let expected =
        "GET\n/p%40\nauth_key=k&auth_version=1.0&channels[]=z&channels[]=a&empty=&info=a b c";
    assert_eq!(query.signed_text("GET", "/p%40"), expected);
    assert_eq!(query.get("info"), Some("a b c"));
    assert_eq!(SignedQuery::parse("").expect("a query").signed_text("GET", "/"), "GET\n/\n");
    assert_eq!(format!("{query:?}").find("b c"), None, "values are not printed");
}

#[test]
fn a_request_that_differs_in_anything_is_refused() {
    let (method, path) = ("POST", "/apps/3/events");
    let good = signed(method, path, AUTH);
    assert_eq!(verify(method, path, &good), Ok(Pair::Current));
    let without = |name: &str| {
        let kept: Vec<_> = AUTH.split('&').filter(|pair| !pair.starts_with(name)).collect();
        signed(method, path, &kept.join("&"))
    };
    let with = |from: &str, to: &str| signed(method, path, &AUTH.replace(from, to));
    let mut last = good.clone();
    let digit = if last.pop() == Some('0') { '1' } else { '0' };
    last.push(digit);
    let (signature, upper) = good.split_once("auth_signature=").expect("a signature");
    let upper = format!("{signature}auth_signature={}", upper.to_uppercase());
    let text = format!("{method}\n{path}\n{AUTH}");
    let forged = || Err(SignatureError::Forged(text.clone()));
    for (case, query, expected) in [
        ("another digit", last, forged()),
        ("upper case", upper, forged()),
        ("no signature", AUTH.to_owned(), forged()),
        ("no key", without("auth_key"), Err(SignatureError::NoKey)),
        ("another key", with(KEY, "other"), Err(SignatureError::UnknownKey)),
        ("no version", without("auth_version"), Err(SignatureError::Version)),
        ("another version", with("=1.0", "=2.0"), Err(SignatureError::Version)),
        ("no time", without("auth_timestamp"), Err(SignatureError::NoTime)),
        ("a time that is text", with("1353088179", "now"), Err(SignatureError::NoTime)),
        ("a time with a sign", with("1353088179", "-1"), Err(SignatureError::NoTime)),
        ("an endless time", with("1353088179", &"9".repeat(40)), Err(SignatureError::NoTime)),
        (
            "a far time",
            with("1353088179", "9223372036854775807"),
            Err(SignatureError::Stale(NOW_S)),
        ),
        (
            "two signatures",
            format!("{good}&auth_signature=x"),
            Err(SignatureError::Repeated("auth_signature")),
        ),
        ("two keys", format!("{good}&Auth_Key=x"), Err(SignatureError::Repeated("auth_key"))),
        (
            "two digests",
            format!("body_md5=x&{good}&body_md5=x"),
            Err(SignatureError::Repeated("body_md5")),
        ),
    ] {
        assert_eq!(verify(method, path, &query), expected, "{case}");
    }
    assert!(verify("GET", path, &good).is_err(), "another method");
    assert!(verify(method, "/apps/4/events", &good).is_err(), "another path");
    assert!(verify(method, path, &format!("{good}&info=x")).is_err(), "one parameter more");
}

#[test]
fn p129_a_request_is_good_for_less_than_600_seconds_either_way() {
    for (off, is_good) in [(0, true), (599, true), (-599, true), (600, false), (-600, false)] {
        let query = AUTH.replace("1353088179", &(NOW_S - off).to_string());
        let verified =
            verify("GET", "/apps/3/channels", &signed("GET", "/apps/3/channels", &query));
        let expected = if is_good { Ok(Pair::Current) } else { Err(SignatureError::Stale(NOW_S)) };
        assert_eq!(verified, expected, "{off}");
    }
}

#[test]
fn a_body_is_proven_by_its_digest() {
    let body = br#"{"foo": "bar"}"#;
    let md5 = "94232c5b8fc9272f6f73a1e36eb68fcf";
    for (query, body, expected) in [
        (format!("body_md5={md5}"), &body[..], Ok(())),
        (format!("body_md5={md5}"), b"{}", Err(SignatureError::OtherBody)),
        (format!("body_md5={}", md5.to_uppercase()), body, Err(SignatureError::OtherBody)),
        ("body_md5=".into(), body, Err(SignatureError::OtherBody)),
        (String::new(), body, Err(SignatureError::NoDigest)),
        (String::new(), b"", Ok(())),
        ("body_md5=x".into(), b"", Ok(())),
    ] {
        let parsed = SignedQuery::parse(&query).expect("a query");
        assert_eq!(parsed.verify_body(body), expected, "{query}");
    }
}

#[test]
fn both_pairs_of_a_rotation_sign() {
    let app = testing::rotated(("new-key", "new-secret"), (KEY, SECRET));
    let query = SignedQuery::parse(&signed("GET", "/p", AUTH)).expect("a query");
    assert_eq!(query.verify(("GET", "/p"), &app, NOW_S), Ok(Pair::Previous));
    let crossed = testing::rotated((KEY, "new-secret"), ("old-key", SECRET));
    let found = query.verify(("GET", "/p"), &crossed, NOW_S);
    assert!(matches!(found, Err(SignatureError::Forged(_))), "each secret goes with its own key");
    let careless = testing::app(KEY, "");
    let unsigned = SignedQuery::parse(AUTH).expect("a query").signed_text("GET", "/p");
    let query = format!("{AUTH}&auth_signature={}", sign(&"".into(), &[&unsigned]));
    let query = SignedQuery::parse(&query).expect("a query");
    let found = query.verify(("GET", "/p"), &careless, NOW_S);
    assert_eq!(found, Err(SignatureError::UnknownKey), "an empty secret is known to everybody");
}
