//! `herald token`.

use super::*;

/// The claims of a token whose signature `secret` verifies.
fn claims(token: &str, secret: &str, algorithm: jsonwebtoken::Algorithm) -> Value {
    let mut rules = jsonwebtoken::Validation::new(algorithm);
    rules.validate_aud = false;
    let key = jsonwebtoken::DecodingKey::from_secret(secret.as_bytes());
    let decoded = jsonwebtoken::decode::<Value>(token.trim_end(), &key, &rules);
    decoded.expect("a token that verifies").claims
}

#[test]
fn a_token_is_printed_alone_and_says_what_was_asked() {
    let place = Place::seeded();
    let args = [
        "token",
        "--app",
        "test-app",
        "--listen",
        "private:test-app:*",
        "--listen",
        "x:test-app",
        "--publish",
        "private:test-app:room-1",
        "--sub",
        "\"user-1\"",
        "--ttl",
        "15m",
        "--aud",
        "trigger",
    ];
    let done = place.run(&args);
    let token = done.succeeded();
    assert_eq!((token.lines().count(), token.matches('.').count()), (1, 2), "{token}");

    let claims = claims(token, "test-app-fake-secret", jsonwebtoken::Algorithm::HS256);
    assert_eq!(claims["listen"], serde_json::json!(["private:test-app:*", "x:test-app"]));
    assert_eq!(claims["publish"], serde_json::json!(["private:test-app:room-1"]));
    assert_eq!((claims["sub"].as_str(), claims["aud"].as_str()), (Some("user-1"), Some("trigger")));
    let lifetime = claims["exp"].as_i64().zip(claims["iat"].as_i64()).map(|(exp, iat)| exp - iat);
    assert_eq!(lifetime, Some(900));
}

#[test]
fn a_token_can_be_signed_without_settings_and_database() {
    let place = Place::new()
        .with("APP_SECRET", "a secret of some length")
        // With this value the settings cannot be loaded.
        .with("PORT", "nonsense");
    let args = [
        "token",
        "--secret-env",
        "APP_SECRET",
        "--publish",
        "any:topic",
        "--csrf",
        "page-token",
        "--algorithm",
        "HS512",
    ];
    let done = place.run(&args);

    let claims =
        claims(done.succeeded(), "a secret of some length", jsonwebtoken::Algorithm::HS512);
    assert_eq!(claims["aud"], "csrf");
    assert_eq!(claims["s_csrf"].as_str().map(str::len), Some(43), "base64url of 32 bytes");
    assert!(claims.get("listen").is_none());
    done.never_says("page-token");
    assert_eq!(std::fs::read_dir(place.path()).expect("a folder").count(), 0);
    let missing = Place::new().run(&args);
    assert!(missing.failed(1).contains("APP_SECRET holds no secret"), "{missing:?}");
}

#[test]
fn a_bare_word_is_a_subject_and_a_number_keeps_its_digits() {
    let place = Place::new().with("APP_SECRET", "a secret of some length");
    for (given, expected) in [
        ("ada", r#""ada""#),
        ("user-1", r#""user-1""#),
        ("ada@example.com", r#""ada@example.com""#),
        ("Ada Lovelace", r#""Ada Lovelace""#),
        ("007", r#""007""#),
        ("nil", r#""nil""#),
        (r#""7""#, r#""7""#),
        ("7", "7"),
        ("18446744073709551617", "18446744073709551617"),
        (r#"{"User": 1.0}"#, r#"{"User": 1.0}"#),
        ("null", "null"),
    ] {
        let args = ["token", "--secret-env", "APP_SECRET", "--listen", "a:b", "--sub", given];
        let done = place.run(&args);
        let payload = done.succeeded().split('.').nth(1).expect("a payload");
        let payload = URL_SAFE_NO_PAD.decode(payload).expect("base64url");
        let claims: HashMap<&str, &RawValue> = serde_json::from_slice(&payload).expect("claims");
        assert_eq!(claims["sub"].get(), expected, "{given}");
    }
}

#[test]
fn a_token_that_permits_nothing_or_names_other_apps_is_minted_with_a_warning() {
    let place = Place::seeded();
    let nothing =
        "herald: warning: the token permits nothing: it has neither --listen nor --publish";
    let other = |pattern: &str| format!("herald: warning: {pattern} matches no topic of test-app");
    let no_topic = "herald: warning: private matches no topic: `<scope>:test-app` is one";
    for (patterns, expected) in [
        (&[][..], vec![nothing.to_owned()]),
        (&["private:test-app"], vec![]),
        (&["private:*", "private:test-app:*", "private:test-app:a:b"], vec![]),
        (&["private:bar-app:*"], vec![other("private:bar-app:*")]),
        (
            &["public:test-app2", "public:test-app", "a:b"],
            vec![other("public:test-app2"), other("a:b")],
        ),
        (&["private"], vec![no_topic.to_owned()]),
    ] {
        for flag in ["--listen", "--publish"] {
            let mut args = vec!["token", "--app", "test-app", "--sub", "ada"];
            args.extend(patterns.iter().flat_map(|pattern| [flag, *pattern]));
            let done = place.run(&args);
            let warned: Vec<_> = done.err.lines().collect();
            assert_eq!(
                (done.code, warned),
                (Some(0), expected.iter().map(String::as_str).collect())
            );
            claims(&done.out, "test-app-fake-secret", jsonwebtoken::Algorithm::HS256);
        }
    }
    let single = Place::seeded().with("HERALD__SINGLE_APP", "test-app");
    single.run(&["token", "--app", "test-app", "--listen", "deploys:web"]).succeeded();
}
