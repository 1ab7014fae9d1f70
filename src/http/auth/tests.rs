//! Callers that are authenticated, and what they may publish.

use actix_web::test::TestRequest;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::*;
use crate::{
    app::{settings::AppSettings, token::csrf_signature},
    http::testing::{GUARDIAN_SECRET, KEY, SECRET, TestServices, app, token_of},
};

/// The caller behind the credentials; `None` if they are not valid.
fn judge(
    services: &TestServices,
    slug: &str,
    proof: Proof,
    headers: &[(&str, String)],
) -> Option<&'static str> {
    let mut request = TestRequest::default();
    for (name, value) in headers {
        request = request.append_header((*name, value.as_str()));
    }
    let request = request.to_http_request();
    let credentials = Credentials::of(&request, &services.services);
    let by = credentials.and_then(|c| c.authenticate(&services.services, slug, proof));
    match by {
        Ok(by) if by.is_client() => Some("client"),
        Ok(by) if matches!(by.caller, Caller::Bearer(_)) => Some("trigger token"),
        Ok(_) => Some("application"),
        Err(error) => {
            assert_eq!(error, ApiError::Unauthorized);
            None
        }
    }
}

fn authorization(value: impl Into<String>) -> Vec<(&'static str, String)> {
    vec![("Authorization", value.into())]
}

fn basic(pair: &str) -> Vec<(&'static str, String)> {
    authorization(format!("Basic {}", STANDARD.encode(pair)))
}

fn bearer(secret: &str, claims: &Value) -> Vec<(&'static str, String)> {
    authorization(format!("Bearer {}", token_of(secret, claims)))
}

#[actix_web::test]
async fn the_web_application_comes_with_key_and_secret() {
    let services = TestServices::start().await;
    let good = format!("{KEY}:{SECRET}");
    for (case, slug, headers, expected) in [
        ("right", "foo-app", basic(&good), Some("application")),
        ("wrong secret", "foo-app", basic(&format!("{KEY}:x")), None),
        ("longer secret", "foo-app", basic(&format!("{good}x")), None),
        ("wrong key", "foo-app", basic(&format!("x:{SECRET}")), None),
        ("swapped", "foo-app", basic(&format!("{SECRET}:{KEY}")), None),
        ("no secret", "foo-app", basic(KEY), None),
        ("empty", "foo-app", basic(":"), None),
        ("an app without a secret", "careless-app", basic(&format!("{KEY}:")), None),
        ("the dummy", "foo-app", basic(&format!("{DUMMY}:{DUMMY}")), None),
        ("the dummy for no secret", "careless-app", basic(&format!("{DUMMY}:{DUMMY}")), None),
        ("no base64", "foo-app", authorization("Basic ???"), None),
        ("no scheme", "foo-app", authorization(good.clone()), None),
        ("secret alone", "foo-app", authorization(SECRET), None),
        ("nothing", "foo-app", vec![], None),
        ("twice", "foo-app", [basic(&good), basic(&good)].concat(), None),
        ("unknown app", "bar-app", basic(&good), None),
        ("unknown app, the dummy", "bar-app", basic(&format!("{DUMMY}:{DUMMY}")), None),
        ("inactive app", "idle-app", basic(&good), None),
        ("no app", "", basic(&good), None),
    ] {
        let by = judge(&services, slug, Proof::KeyAndSecret, &headers);
        assert_eq!(by, expected, "{case}");
    }
}

#[actix_web::test]
async fn an_endpoint_without_tokens_accepts_only_key_and_secret() {
    let services = TestServices::start().await;
    let good = format!("{KEY}:{SECRET}");
    let trigger = json!({ "aud": "trigger", "publish": ["*:*"] });
    for (case, slug, headers, expected) in [
        ("right", "foo-app", basic(&good), true),
        ("wrong secret", "foo-app", basic(&format!("{KEY}:x")), false),
        ("wrong key", "foo-app", basic(&format!("x:{SECRET}")), false),
        ("secret alone", "foo-app", authorization(SECRET), false),
        ("a token", "foo-app", bearer(SECRET, &json!({})), false),
        ("the web application's token", "foo-app", bearer(SECRET, &trigger), false),
        ("the operator's token", "shared-app", bearer(GUARDIAN_SECRET, &trigger), false),
        ("an app without a secret", "careless-app", basic(&format!("{KEY}:")), false),
        ("unknown app", "bar-app", basic(&good), false),
        ("unknown app, the dummy", "bar-app", basic(&format!("{DUMMY}:{DUMMY}")), false),
        ("inactive app", "idle-app", basic(&good), false),
    ] {
        let mut request = TestRequest::default();
        for (name, value) in headers {
            request = request.append_header((name, value));
        }
        let request = request.to_http_request();
        let credentials = Credentials::of(&request, &services.services).expect("one header");
        let app = credentials.authenticate_application(&services.services, slug);
        assert_eq!(
            app.map(|app| app.slug.to_string()).ok(),
            expected.then(|| slug.into()),
            "{case}"
        );
    }
}

#[actix_web::test]
async fn the_web_application_comes_with_its_secret_alone() {
    let services = TestServices::start().await;
    for (case, slug, headers, expected) in [
        ("right", "foo-app", authorization(SECRET), Some("application")),
        ("an app without a secret", "careless-app", authorization(""), None),
        ("wrong", "foo-app", authorization("x"), None),
        ("a scheme before it", "foo-app", authorization(format!("Bearer {SECRET}")), None),
        ("key and secret", "foo-app", basic(&format!("{KEY}:{SECRET}")), None),
        ("empty", "foo-app", authorization(""), None),
        ("unknown app", "bar-app", authorization(SECRET), None),
        ("the dummy", "foo-app", authorization(DUMMY), None),
        ("unknown app, the dummy", "bar-app", authorization(DUMMY), None),
        ("inactive app", "idle-app", authorization(SECRET), None),
    ] {
        let by = judge(&services, slug, Proof::SecretAlone, &headers);
        assert_eq!(by, expected, "{case}");
    }
}

#[actix_web::test]
async fn tokens_are_taken_everywhere() {
    let services = TestServices::start().await;
    let trigger = json!({ "aud": "trigger" });
    let s_csrf = csrf_signature(&SecretString::from(SECRET), "page");
    let csrf = json!({ "aud": "csrf", "s_csrf": s_csrf });
    let page = |token: &str| vec![("X-CSRF-Token", token.to_owned())];
    let lower = authorization(format!("bearer  {}", token_of(SECRET, &json!({}))));
    for (case, slug, headers, expected) in [
        ("a visitor's", "foo-app", bearer(SECRET, &json!({})), Some("client")),
        ("scheme in lower case", "foo-app", lower, Some("client")),
        ("the application's", "foo-app", bearer(SECRET, &trigger), Some("trigger token")),
        ("another key", "foo-app", bearer("another key", &trigger), None),
        ("expired", "foo-app", bearer(SECRET, &json!({ "exp": 1 })), None),
        ("not yet valid", "foo-app", bearer(SECRET, &json!({ "nbf": 1e12 })), None),
        ("shared key", "shared-app", bearer(GUARDIAN_SECRET, &json!({})), Some("client")),
        ("shared key not taken", "foo-app", bearer(GUARDIAN_SECRET, &json!({})), None),
        ("unknown app", "bar-app", bearer(SECRET, &json!({})), None),
        ("unknown app, the dummy", "bar-app", bearer(DUMMY, &json!({})), None),
        ("inactive app", "idle-app", bearer(SECRET, &json!({})), None),
        ("no token", "foo-app", authorization("Bearer "), None),
        ("too long", "foo-app", authorization(format!("Bearer {}", "x".repeat(9_000))), None),
        (
            "with its CSRF token",
            "foo-app",
            [bearer(SECRET, &csrf), page("page")].concat(),
            Some("client"),
        ),
        ("wrong CSRF", "foo-app", [bearer(SECRET, &csrf), page("other")].concat(), None),
        ("no CSRF token", "foo-app", bearer(SECRET, &csrf), None),
    ] {
        for proof in [Proof::KeyAndSecret, Proof::SecretAlone] {
            assert_eq!(judge(&services, slug, proof, &headers), expected, "{case} {proof:?}");
        }
    }
}

#[actix_web::test]
async fn a_judgement_stands_while_the_app_is_the_same() {
    let services = TestServices::start().await;
    let services = &services.services;
    let of = |headers: Vec<(&'static str, String)>| {
        let request = TestRequest::default().insert_header(headers[0].clone());
        request.to_http_request()
    };
    let proof = Proof::KeyAndSecret;
    let request = of(basic(&format!("{KEY}:{SECRET}")));
    let application = Credentials::of(&request, services).expect("one header");
    let request = of(bearer(SECRET, &json!({})));
    let token = Credentials::of(&request, services).expect("one header");
    let request = of(bearer(SECRET, &json!({ "exp": 1 })));
    let late = Credentials::of(&request, services).expect("one header");
    let first = |credentials: &Credentials<'_>| {
        credentials.authenticate(services, "foo-app", proof).expect("a caller")
    };
    let again = |credentials: &Credentials<'_>, by| {
        credentials.authenticate_again(services, "foo-app", proof, by).is_ok()
    };
    assert!(again(&application, first(&application)));
    assert!(again(&token, first(&token)));
    assert!(!again(&late, first(&token)), "a token that has run out meanwhile");
    for (case, now, expected) in [
        ("changed otherwise", App { name: "Foo".into(), ..app("foo-app") }, true),
        ("another secret", App { secret: "another".into(), ..app("foo-app") }, false),
        (
            "inactive",
            App {
                settings: AppSettings { active: false, ..AppSettings::default() },
                ..app("foo-app")
            },
            false,
        ),
        ("gone", app("bar-app"), false),
    ] {
        services.directory.replace([app("foo-app")].into_iter().collect());
        let (by_application, by_token) = (first(&application), first(&token));
        services.directory.replace([now].into_iter().collect());
        assert_eq!(again(&application, by_application), expected, "{case}");
        assert_eq!(again(&token, by_token), expected, "{case}");
    }
}

#[actix_web::test]
async fn with_a_single_app_the_others_are_unknown() {
    let services = TestServices::start_with(&[("HERALD__SINGLE_APP", "foo-app")]).await;
    for (slug, expected) in [("foo-app", Some("application")), ("open-app", None)] {
        let by = judge(&services, slug, Proof::SecretAlone, &authorization(SECRET));
        assert_eq!(by, expected, "{slug}");
    }
}

async fn permits(app: &str, claims: &Value, destination: &str, env: &[(&str, &str)]) -> bool {
    let services = TestServices::start_with(env).await;
    let request = TestRequest::default();
    let authorization = format!("Bearer {}", token_of(SECRET, claims));
    let request = request.insert_header((AUTHORIZATION, authorization)).to_http_request();
    let services = &services.services;
    let credentials = Credentials::of(&request, services).expect("credentials");
    let by = credentials.authenticate(services, app, Proof::KeyAndSecret).expect("a caller");
    let scope = Scope::parse("private").expect("a scope");
    let destination = Destination::parse(destination).expect("a destination");
    by.permit(&scope, &destination, &services.addressing()).is_ok()
}

#[actix_web::test]
async fn a_token_publishes_where_a_pattern_covers_the_channel_or_the_scope() {
    for (pattern, destination, expected) in [
        ("private:foo-app:room", "room", true),
        ("private:foo-app:room", "other", false),
        ("private:foo-app:room", "#general", false),
        ("private:foo-app:*", "room", true),
        ("private:foo-app:*", "a:b", true),
        ("private:foo-app:*", "#general", false),
        ("private:foo-app", "#general", true),
        ("private:foo-app", "room", true),
        ("private:*", "#general", true),
        ("private:*", "room", true),
        ("private:bar-app", "room", false),
        ("public:*", "room", false),
        ("*", "room", false),
    ] {
        let claims = json!({ "publish": [pattern] });
        let permitted = permits("foo-app", &claims, destination, &[]).await;
        assert_eq!(permitted, expected, "{pattern} on {destination}");
    }
}

#[actix_web::test]
async fn with_a_single_app_everyone_is_reached_by_a_right_to_the_scope() {
    for (pattern, destination, expected) in [
        ("private:room", "room", true),
        ("private:room", "#general", false),
        ("private:*", "room", true),
        ("private:*", "#general", true),
        ("private:foo-app", "room", true),
        ("private:foo-app", "#general", true),
        ("private:foo-app:room", "room", true),
        ("private:foo-app:room", "#general", false),
        ("private:foo-app:*", "room", true),
        ("private:foo-app:*", "#general", false),
        ("private:*:room", "room", false),
        ("private:#general", "room", false),
        ("public:*", "#general", false),
    ] {
        let claims = json!({ "publish": [pattern] });
        let env = [("HERALD__SINGLE_APP", "foo-app")];
        let permitted = permits("foo-app", &claims, destination, &env).await;
        assert_eq!(permitted, expected, "{pattern} on {destination}");
    }
}

#[actix_web::test]
async fn an_app_without_client_events_accepts_those_of_its_own_application_only() {
    let everywhere = json!(["private:*"]);
    for (app, claims, expected) in [
        ("silent-app", json!({ "publish": everywhere }), false),
        ("silent-app", json!({ "publish": everywhere, "aud": "trigger" }), true),
        ("silent-app", json!({ "aud": "trigger" }), false),
        ("open-app", json!({ "publish": everywhere }), true),
        ("open-app", json!({}), false),
    ] {
        assert_eq!(permits(app, &claims, "room", &[]).await, expected, "{app} {claims}");
    }
}

#[actix_web::test]
async fn a_token_of_no_app_is_refused_before_its_body_while_there_are_few_apps() {
    let services = TestServices::start_with(&[]).await;
    let services = &services.services;
    let stranger = token_of("another secret", &json!({ "publish": ["public:*"] }));
    let request = TestRequest::default();
    let request = request.insert_header((AUTHORIZATION, format!("Bearer {stranger}")));
    let request = request.to_http_request();
    for (apps, expected) in
        [(APPS_TRIED_MAX, Err(ApiError::Unauthorized)), (APPS_TRIED_MAX + 1, Ok(BudgetShare::Half))]
    {
        let app = |nth: usize| App {
            id: AppId(i32::try_from(nth).expect("a small number")),
            slug: Slug::parse(&format!("app-{nth}")).expect("a slug"),
            ..app("foo-app")
        };
        services.directory.replace((0..apps).map(app).collect());
        let credentials = Credentials::of(&request, services).expect("credentials");
        assert_eq!(credentials.judge_before_body(services), expected, "{apps}");
    }
}
