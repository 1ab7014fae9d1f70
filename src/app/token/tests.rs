//! Tokens that are valid, those that are not, and the rights that they grant.

use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;
use sha2::Digest;

use super::{pair::NOT_TEXT, *};

const NOW_S: f64 = 1_700_000_000.0;
const APP_KEY: &str = "test-app-fake-secret";
const SHARED_KEY: &str = "the operator's own key, for all";

fn secret(text: &str) -> SecretString {
    SecretString::from(text)
}

fn verify_with(keys: TokenKeys<'_>, token: &str, csrf: Option<&str>) -> Result<Grant, TokenError> {
    Verifier { keys, token_bytes_max: 8_192, now_s: NOW_S }.verify(token, csrf)
}

fn verify(token: &str, csrf: Option<&str>) -> Result<Grant, TokenError> {
    let app = secret(APP_KEY);
    verify_with(TokenKeys { app: &app, previous: None, shared: SharedTokens::NoKey }, token, csrf)
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
fn e193_a_text_that_is_no_jwt_is_invalid() {
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
    let keys = TokenKeys { app: &key, previous: None, shared: SharedTokens::NoKey };
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
fn e195_a_time_in_the_future_beyond_the_leeway_is_not_yet_valid() {
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
    for claims in [json!({}), json!({"listen": null, "publish": "a:*"}), json!({"listen": {}})] {
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
        let keys = TokenKeys { app: &app, previous: None, shared: SharedTokens::Accepted(&shared) };
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
    let (accepted, refused) = (SharedTokens::Accepted(&shared), SharedTokens::Refused(&shared));
    for (case, token, shared, expected) in [
        ("accepted", &valid, accepted, Ok(())),
        ("would be valid", &valid, refused, Err(TokenError::NotShared)),
        ("no such key", &valid, SharedTokens::NoKey, Err(TokenError::Forged)),
        ("expired", &expired, refused, Err(TokenError::Forged)),
        ("another page's", &other_page, refused, Err(TokenError::Forged)),
        ("malformed", &malformed, refused, Err(TokenError::Forged)),
        ("another key", &by_other.expect("a token"), refused, Err(TokenError::Forged)),
        ("the app's own", &minted(json!({})), refused, Ok(())),
    ] {
        let verified =
            verify_with(TokenKeys { app: &app, previous: None, shared }, token, Some("page"));
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
    for shared in [SharedTokens::Accepted(&empty), SharedTokens::Refused(&empty)] {
        let keys = TokenKeys { app: &empty, previous: None, shared };
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
        ("as before", TokenKeys { app: &app, previous: None, shared: SharedTokens::NoKey }, true),
        (
            "as shared key",
            TokenKeys { app: &changed, previous: None, shared: SharedTokens::Accepted(&app) },
            true,
        ),
        (
            "secret changed",
            TokenKeys { app: &changed, previous: None, shared: SharedTokens::NoKey },
            false,
        ),
        (
            "secret changed, another shared",
            TokenKeys { app: &changed, previous: None, shared: SharedTokens::Accepted(&shared) },
            false,
        ),
    ] {
        assert_eq!(by_app.is_signed_by(&keys), expected, "{case}");
    }
}

#[test]
fn a_previous_key_verifies_as_the_current_one_does() {
    let (new, old, shared) = (secret("the new secret"), secret(APP_KEY), secret(SHARED_KEY));
    let pair =
        TokenKeys { app: &new, previous: Some(&old), shared: SharedTokens::Accepted(&shared) };
    let signed_by = |key: &SecretString| {
        let claims = json!({ "aud": "csrf", "s_csrf": csrf_signature(key, "page") });
        let token = mint(&claims, key, SigningAlgorithm::Hs256).expect("a token");
        verify_with(pair, &token, Some("page"))
    };
    let (current, previous) = (Signer::App(Pair::Current), Signer::App(Pair::Previous));
    for (key, signer) in [(&new, current), (&old, previous), (&shared, Signer::Operator)] {
        let grant = signed_by(key).expect("a grant");
        assert_eq!(grant.signer, signer);
        assert!(grant.is_signed_by(&pair));
        let without = TokenKeys { previous: None, ..pair };
        assert_eq!(grant.is_signed_by(&without), signer != previous, "{signer:?}");
    }
    let stand_in = secret(str::from_utf8(STAND_IN).expect("text"));
    for previous in [None, Some(&old)] {
        let token = mint(&json!({}), &stand_in, SigningAlgorithm::Hs256).expect("a token");
        let verified = verify_with(TokenKeys { previous, ..pair }, &token, None);
        assert_eq!(verified.map(|_| ()), Err(TokenError::Forged), "the stand-in is no key");
    }
    let empty = secret("");
    let keys = TokenKeys { previous: Some(&empty), ..pair };
    assert_eq!(keys.accepted().count(), 2, "an empty key is none");
}

#[test]
fn a_grant_knows_its_subject() {
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
        let shown = grant.shown_sub.as_ref().map(|sub| sub.as_str());
        assert_eq!(shown.is_some(), claims.contains("User:1"), "{claims}");
        assert!(!format!("{grant:?}").contains("User:1"), "{grant:?}");
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
    let pair =
        |token: &str, csrf: &str| TokenPair { token: Some(token.into()), csrf: Some(csrf.into()) };
    assert_eq!(pair("12345678", "12345678").bounded(8), pair("12345678", "12345678"));
    assert_eq!(pair("123456789", "123456789").bounded(8), pair(NOT_TEXT, NOT_TEXT));
    let (longest, long) = ("c".repeat(TokenPair::CSRF_BYTES_MAX), "c".repeat(8_192));
    assert_eq!(pair(&long, &longest).bounded(8_192), pair(&long, &longest));
    assert_eq!(pair(&long, &long).bounded(8_192), pair(&long, NOT_TEXT));
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
        ("as text", json!({"guardian_token": "undefined", "csrf_token": "null"}), pair(None, None)),
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
