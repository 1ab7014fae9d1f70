//! Section 14.12 of the protocol document: tokens at the socket, in every place where a client may put them.
//!
//! The topics are the second article's, so most tests run with a single app.

use crate::support::{
    tokens::{now_s, signed, token},
    *,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use herald::app::{
    Slug,
    token::{SigningAlgorithm, csrf_signature, mint},
};
use secrecy::SecretString;
use serde_json::{Value, json};

/// A server with the seeded app as its single app, so that topics are `<scope>:<channel>`.
fn single_app() -> (TestServer, App) {
    let server = TestServer::start_with(|settings| settings.single_app = Slug::parse("test-app"));
    (server, App::seeded())
}

fn ok() -> Value {
    json!({ "status": "ok", "response": {} })
}

fn joined() -> Value {
    json!({ "status": "ok", "response": { "message": "Joined" } })
}

fn refused(response: impl Into<Value>) -> Value {
    json!({ "status": "error", "response": response.into() })
}

fn auth_required() -> Value {
    refused("authentication_required")
}

fn bad_token(reason: &str) -> Value {
    refused(json!({ "error": reason }))
}

fn guardian(token: &str) -> Value {
    json!({ "guardian_token": token })
}

/// Joins on a new socket of each version; both are answered alike.
async fn join(server: &TestServer, topic: &str, payload: Value) -> Value {
    let mut replies = Vec::new();
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(server, vsn).await;
        replies.push(socket.try_join(topic, payload.clone()).await);
        socket.assert_quiet().await;
    }
    assert_eq!(replies[0], replies[1], "the two versions on {topic}");
    replies.remove(0)
}

/// Connects with these query parameters.
async fn with_params(server: &TestServer, params: &[(&str, &str)]) -> Socket {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("vsn", "2.0.0").extend_pairs(params);
    Socket::open(server, &format!("/socket/websocket?{}", query.finish())).await
}

/// Connects with a token among the subprotocols, as the newest clients do.
async fn with_bearer(server: &TestServer, token: &str, params: &str) -> Socket {
    let offered = format!("phoenix, base64url.bearer.phx.{}", STANDARD_NO_PAD.encode(token));
    let path = format!("/socket/websocket?vsn=2.0.0{params}");
    let opened = Socket::open_with(server, &path, &[("sec-websocket-protocol", &offered)]).await;
    opened.expect("to be let in").0
}

#[tokio::test]
async fn e185_public_topics_need_no_token() {
    let (server, app) = single_app();
    assert_eq!(join(&server, "public:x", json!({})).await, ok());
    let good = guardian(&token(&app, &json!({ "listen": [] })));
    assert_eq!(join(&server, "public:x", good).await, ok(), "a token does not change the reply");
}

#[tokio::test]
async fn e186_every_other_scope_needs_one() {
    let (server, _) = single_app();
    for topic in ["private:123", "deploys:web", "Public:x", "publicx:x", "PUBLIC:x"] {
        for payload in [
            json!({}),
            json!({ "guardian_token": null }),
            json!({ "guardian_token": "" }),
            json!({ "guardian_token": "undefined" }),
            json!({ "guardian_token": "null" }),
            json!({ "csrf_token": "x" }),
            json!([]),
            json!("token"),
            Value::Null,
        ] {
            assert_eq!(
                join(&server, topic, payload.clone()).await,
                auth_required(),
                "{topic} {payload}"
            );
        }
    }
}

#[tokio::test]
async fn e187_e188_the_listen_claim_is_obeyed() {
    let (server, app) = single_app();
    let payload = guardian(&token(&app, &json!({ "listen": ["private:*"] })));
    assert_eq!(join(&server, "private:123", payload.clone()).await, joined());
    assert_eq!(join(&server, "private:123:456", payload.clone()).await, joined());
    assert_eq!(join(&server, "super_secret:123", payload).await, auth_required());
    for claims in [
        json!({}),
        json!({ "listen": [] }),
        json!({ "listen": "private:*" }),
        json!({ "publish": ["private:*"] }),
    ] {
        let payload = guardian(&token(&app, &claims));
        assert_eq!(join(&server, "private:123", payload).await, auth_required(), "{claims}");
    }
}

#[tokio::test]
async fn e189_a_push_that_the_publish_claim_permits_is_broadcast_to_all_without_a_reply() {
    let (server, app) = single_app();
    let claims = json!({ "listen": ["private:*"], "publish": ["private:123:*"] });
    let payload = guardian(&token(&app, &claims));
    let topic = "private:123:456";
    for vsn in [V1, V2] {
        let (mut sender, mut other) =
            (Socket::connect(&server, vsn).await, Socket::connect(&server, V2).await);
        for socket in [&mut sender, &mut other] {
            socket.join(topic, payload.clone()).await;
        }
        sender.push(json!(["1", "5", topic, "msg", { "hello": "world" }])).await;
        for socket in [&mut sender, &mut other] {
            let expected = json!([null, null, topic, "msg", { "hello": "world" }]);
            assert_eq!(socket.next().await, expected, "{vsn}");
            socket.assert_quiet().await;
        }
    }
}

#[tokio::test]
async fn e190_a_push_that_the_publish_claim_does_not_permit_is_answered_with_an_empty_error() {
    let (server, app) = single_app();
    let topic = "private:123";
    for publish in [json!([]), Value::Null, json!(["private:456"]), json!("private:123"), json!({})]
    {
        let mut claims = json!({ "listen": ["private:*"], "publish": publish });
        if publish.is_null() {
            claims.as_object_mut().expect("claims").remove("publish");
        }
        let mut socket = Socket::connect(&server, V2).await;
        socket.join(topic, guardian(&token(&app, &claims))).await;
        socket.text(format!(r#"["1","5","{topic}","msg",{{}}]"#)).await;
        let reply =
            format!(r#"["1","5","{topic}","phx_reply",{{"status":"error","response":{{}}}}]"#);
        assert_eq!(socket.frame().await, reply, "{publish}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e191_the_subject_may_be_any_json() {
    let (server, app) = single_app();
    let user = json!({ "id": 1, "name": "n", "email": "e", "crews": [] });
    for sub in [json!({}), user, json!("user:1"), json!(7), json!(null), json!([1, [2]])] {
        let claims = json!({ "sub": sub, "listen": ["private:*"] });
        let reply = join(&server, "private:123", guardian(&token(&app, &claims))).await;
        assert_eq!(reply, joined(), "{sub}");
    }
}

#[tokio::test]
async fn e192_on_public_topics_anyone_publishes_where_the_app_says_all() {
    let (server, _) = single_app();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:x", json!({})).await;
    socket.text(r#"["1","2","public:x","msg",{"a":1}]"#).await;
    assert_eq!(socket.frame().await, r#"[null,null,"public:x","msg",{"a":1}]"#);
    socket.assert_quiet().await;
}

/// A token with this header and these claims, its signature made with the app's secret as HS256.
fn forged(app: &App, header: &Value, claims: &Value) -> String {
    let encode = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    // The CSRF signature is the same HMAC in the same spelling.
    let signature = csrf_signature(&SecretString::from(app.secret.as_str()), &message);
    format!("{message}.{signature}")
}

#[tokio::test]
async fn e193_bad_signatures_and_algorithms_are_invalid_tokens() {
    let (server, app) = single_app();
    let claims = json!({ "listen": ["private:*"] });
    let good = token(&app, &claims);
    let alg = |alg: &str| forged(&app, &json!({ "alg": alg, "typ": "JWT" }), &claims);
    assert_eq!(
        join(&server, "private:1", guardian(&alg("HS256"))).await,
        joined(),
        "a right token"
    );
    let key = SecretString::from(app.secret.as_str());
    let hs512 = mint(&claims, &key, SigningAlgorithm::Hs512).expect("a token");
    assert_eq!(join(&server, "private:1", guardian(&hs512)).await, joined());
    let unsigned = format!("{}.", alg("none").rsplit_once('.').expect("a signature").0);
    let (message, signature) = good.rsplit_once('.').expect("a signature");
    let richer = URL_SAFE_NO_PAD.encode(json!({ "listen": ["private:*", "x:*"] }).to_string());
    let (header, _) = message.split_once('.').expect("claims");
    for (case, token) in [
        ("another key", signed("another secret", &claims)),
        ("the app's key instead of its secret", signed(&app.key, &claims)),
        ("none", alg("none")),
        ("None", alg("None")),
        ("none, unsigned", unsigned),
        ("HS384", alg("HS384")),
        ("RS256", alg("RS256")),
        ("HS512 signed as HS256", alg("HS512")),
        ("no algorithm", forged(&app, &json!({ "typ": "JWT" }), &claims)),
        ("critical extension", forged(&app, &json!({ "alg": "HS256", "crit": ["x"] }), &claims)),
        ("other claims", format!("{header}.{richer}.{signature}")),
        ("cut short", good[..good.len() - 1].to_owned()),
        ("no signature", message.to_owned()),
        ("more", format!("{good}.x")),
        ("padded", format!("{good}=")),
        ("garbage", "garbage".to_owned()),
        ("dots", "..".to_owned()),
        ("white space", format!(" {good}")),
        ("too long", "x".repeat(8_193)),
        ("no object", forged(&app, &json!({ "alg": "HS256" }), &json!(["listen"]))),
    ] {
        let reply = join(&server, "private:1", guardian(&token)).await;
        assert_eq!(reply, bad_token("invalid_token"), "{case}");
    }
    for token in [json!(1), json!(true), json!({}), json!([good])] {
        let reply = join(&server, "private:1", json!({ "guardian_token": token })).await;
        assert_eq!(reply, bad_token("invalid_token"), "{token}");
    }
}

#[tokio::test]
async fn e194_e195_times_are_judged_with_a_leeway_of_half_a_minute() {
    let (server, app) = single_app();
    let at = |offset_s: i64| json!(now_s() + offset_s);
    let fraction = |offset_s: i32| json!(now_s() as f64 + f64::from(offset_s) + 0.25);
    let (expired, early) = (bad_token("token_expired"), bad_token("token_not_yet_valid"));
    let not_seconds = bad_token("token_time_not_in_seconds");
    for (claim, value, expected) in [
        ("exp", at(60), joined()),
        ("exp", at(0), joined()),
        ("exp", at(-15), joined()),
        ("exp", at(-45), expired.clone()),
        ("exp", fraction(-15), joined()),
        ("exp", fraction(-45), expired.clone()),
        ("exp", json!(0), expired.clone()),
        ("exp", json!(-1e300), expired),
        ("exp", json!(253_402_300_799_u64), joined()),
        ("exp", json!(now_s() * 1_000), not_seconds.clone()),
        ("exp", json!(1e300), not_seconds.clone()),
        ("nbf", json!(now_s() * 1_000), not_seconds.clone()),
        ("iat", json!(now_s() * 1_000), not_seconds),
        ("exp", Value::Null, joined()),
        ("exp", json!("tomorrow"), bad_token("invalid_token")),
        ("nbf", at(-60), joined()),
        ("nbf", at(15), joined()),
        ("nbf", at(60), early.clone()),
        ("nbf", fraction(60), early.clone()),
        ("iat", at(15), joined()),
        ("iat", at(60), early),
        ("iat", json!([]), bad_token("invalid_token")),
    ] {
        let mut claims = json!({ "listen": ["private:*"] });
        claims[claim] = value.clone();
        let reply = join(&server, "private:1", guardian(&token(&app, &claims))).await;
        assert_eq!(reply, expected, "{claim} {value}");
    }
}

#[tokio::test]
async fn e196_a_bad_token_fails_a_public_join_only_if_it_came_with_the_join() {
    let (server, app) = single_app();
    let expired = token(&app, &json!({ "listen": ["private:*"], "exp": 1 }));
    for (bad, reason) in [("garbage", "invalid_token"), (expired.as_str(), "token_expired")] {
        assert_eq!(join(&server, "public:x", guardian(bad)).await, bad_token(reason));
        let places = [
            ("connect params", with_params(&server, &[("guardian_token", bad)]).await),
            ("subprotocol", with_bearer(&server, bad, "").await),
        ];
        for (place, mut socket) in places {
            assert_eq!(socket.try_join("public:x", json!({})).await, ok(), "{bad} in {place}");
            let private = socket.try_join("private:1", json!({})).await;
            assert_eq!(private, bad_token(reason), "{bad} in {place}");
            socket.push(json!(["1", "2", "public:x", "msg", {}])).await;
            assert_eq!(socket.next().await, json!([null, null, "public:x", "msg", {}]));
        }
    }
}

fn sign_csrf(app: &App, csrf: &str) -> String {
    csrf_signature(&SecretString::from(app.secret.as_str()), csrf)
}

#[tokio::test]
async fn e197_e198_e199_e201_a_csrf_token_is_asked_for_by_the_audience_csrf_alone() {
    let (server, app) = single_app();
    let page = "M3J1c3RfMzJfcmFuZG9tX2J5dGVzX2luX2Jhc2U2NA==";
    let s_csrf = sign_csrf(&app, page);
    let unpadded = page.trim_end_matches('=');
    let fits = json!({ "aud": "csrf", "s_csrf": s_csrf });
    let (yes, no) = (joined(), bad_token("invalid_csrf"));
    for (case, claims, csrf, expected) in [
        ("fits", fits.clone(), Some(page), &yes),
        ("missing", fits.clone(), None, &no),
        ("empty", fits.clone(), Some(""), &no),
        ("undefined", fits.clone(), Some("undefined"), &no),
        ("wrong", fits.clone(), Some("wrong"), &no),
        ("without its padding", fits.clone(), Some(unpadded), &no),
        ("no claim", json!({ "aud": "csrf" }), Some(page), &no),
        ("claim is no text", json!({ "aud": "csrf", "s_csrf": 1 }), Some(page), &no),
        (
            "claim of another key",
            json!({ "aud": "csrf", "s_csrf": csrf_signature(&"other".into(), page) }),
            Some(page),
            &no,
        ),
        ("one audience of several", json!({ "aud": ["web", "csrf"], "s_csrf": s_csrf }), None, &no),
        ("another audience", json!({ "aud": "token", "s_csrf": s_csrf }), None, &yes),
        ("another audience, wrong", json!({ "aud": "token", "s_csrf": s_csrf }), Some("x"), &yes),
        ("no audience", json!({ "s_csrf": s_csrf }), None, &yes),
    ] {
        let mut claims = claims;
        claims["listen"] = json!(["private:*"]);
        let token = token(&app, &claims);
        let mut payload = guardian(&token);
        if let Some(csrf) = csrf {
            payload["csrf_token"] = json!(csrf);
        }
        assert_eq!(join(&server, "private:1", payload).await, *expected, "{case}");
        let mut params = vec![("guardian_token", token.as_str())];
        params.extend(csrf.map(|csrf| ("csrf_token", csrf)));
        let mut socket = with_params(&server, &params).await;
        let reply = socket.try_join("private:1", json!({})).await;
        assert_eq!(reply, *expected, "{case}, in the connect params");
    }
}

#[tokio::test]
async fn e200_the_documents_vector_opens_the_door() {
    let server = TestServer::start_with(|settings| {
        settings.single_app = Slug::parse("test-app");
        settings.secrets.guardian_secret = Some("key123".into());
    });
    server.update_app("test-app", json!({ "shared_tokens": true })).await;
    let s_csrf = "o7nZg2wqS_vN9hYdGneG6iUohXTTtFaBLVdGi7Jkaas";
    let claims = json!({ "aud": "csrf", "s_csrf": s_csrf, "listen": ["private:*"] });
    let token = signed("key123", &claims);
    let with = |csrf: &str| json!({ "guardian_token": token, "csrf_token": csrf });
    assert_eq!(join(&server, "private:1", with("csrf-token_ABC")).await, joined());
    let other = join(&server, "private:1", with("csrf-token_ABD")).await;
    assert_eq!(other, bad_token("invalid_csrf"));
}

#[tokio::test]
async fn e202_e204_patterns_allow_what_the_table_says_and_never_crash() {
    let (server, app) = single_app();
    let many: String = ":*a".repeat(100);
    for (pattern, topic, expected) in [
        ("private:*", "private:123", true),
        ("private:*", "private:a:b", true),
        ("private:*", "xprivate:1", false),
        ("private:*", "Private:1", false),
        ("deploys:web", "deploys:web", true),
        ("deploys:web", "deploys:webx", false),
        ("a:*:z", "a:1:2:z", true),
        ("a:*:*", "a:1", false),
        ("private:*x", "private:abcx", true),
        ("a_b:c", "axb:c", false),
        ("a.b:c", "axb:c", false),
        ("a|private:b", "azzz:b", false),
        ("a|private:b", "private:b", false),
        ("pub*", "pubb:x", false),
        // As regular expressions these would be invalid or match everything. As patterns they are literal text.
        ("*", "private:1", false),
        ("a:**", "a:b", false),
        ("a:**", "a:b*", true),
        ("room:[", "room:a", false),
        (".*", "private:1", false),
        ("(", "private:1", false),
        ("private:.*", "private:1", false),
        (many.as_str(), "private:1", false),
        ("", "private:1", false),
    ] {
        let payload = guardian(&token(&app, &json!({ "listen": [pattern] })));
        let expected = if expected { joined() } else { auth_required() };
        assert_eq!(join(&server, topic, payload).await, expected, "{pattern} on {topic}");
    }
    let mixed = json!({ "listen": [null, 1, {}, ["private:*"], "(", "private:1"] });
    let payload = guardian(&token(&app, &mixed));
    assert_eq!(
        join(&server, "private:1", payload).await,
        joined(),
        "entries that are not text are ignored"
    );
}

#[tokio::test]
async fn e203_tokens_count_wherever_they_were_left_and_swapped_ones_are_put_right() {
    let (server, app) = single_app();
    let page = "cGFnZQ==";
    let claims = json!({ "listen": ["private:*"], "aud": "csrf", "s_csrf": sign_csrf(&app, page) });
    let token = token(&app, &claims);
    let (t, none) = (token.as_str(), "undefined");
    for (case, params, payload) in [
        ("join payload", vec![], json!({ "guardian_token": t, "csrf_token": page })),
        ("params", vec![("guardian_token", t), ("csrf_token", page)], json!({})),
        ("swapped in the payload", vec![], json!({ "guardian_token": page, "csrf_token": t })),
        ("swapped in the params", vec![("guardian_token", page), ("csrf_token", t)], json!({})),
        ("CSRF in the params only", vec![("csrf_token", page)], guardian(t)),
        (
            "undefined in the payload",
            vec![("guardian_token", t), ("csrf_token", page)],
            json!({ "guardian_token": none, "csrf_token": none }),
        ),
        ("the payload wins", vec![("guardian_token", "a.b.c"), ("csrf_token", page)], guardian(t)),
        (
            "the payload's CSRF wins",
            vec![("csrf_token", "other")],
            json!({ "guardian_token": t, "csrf_token": page }),
        ),
    ] {
        let mut socket = with_params(&server, &params).await;
        assert_eq!(socket.try_join("private:1", payload).await, joined(), "{case}");
    }
    let mut socket = with_bearer(&server, t, "&csrf_token=cGFnZQ%3D%3D").await;
    assert_eq!(socket.try_join("private:1", json!({})).await, joined(), "subprotocol");
    let mut socket =
        with_bearer(&server, "a.b.c", &format!("&guardian_token={t}&csrf_token=cGFnZQ%3D%3D"))
            .await;
    assert_eq!(
        socket.try_join("private:1", json!({})).await,
        joined(),
        "params before subprotocol"
    );
    let mut socket = with_params(&server, &[("guardian_token", t), ("csrf_token", page)]).await;
    let both_bad = json!({ "guardian_token": "a.b.c", "csrf_token": page });
    let reply = socket.try_join("private:1", both_bad).await;
    assert_eq!(reply, bad_token("invalid_token"), "a bad token in the payload is not ignored");
}

#[tokio::test]
async fn the_operators_key_counts_for_apps_with_shared_tokens_alone() {
    const OPERATORS: &str = "the operator's own key, 32 bytes and more";
    let server = TestServer::start_with(|settings| {
        settings.secrets.guardian_secret = Some(OPERATORS.into());
    });
    for (name, shared_tokens, expected) in
        [("sharing-app", true, joined()), ("closed-app", false, bad_token("invalid_token"))]
    {
        let app = json!({ "name": name, "shared_tokens": shared_tokens });
        let app = server.create_app(app).await;
        let claims = json!({ "listen": ["private:*"] });
        let topic = format!("private:{name}");
        let by_operator = join(&server, &topic, guardian(&signed(OPERATORS, &claims))).await;
        assert_eq!(by_operator, expected, "{name}");
        let own = join(&server, &topic, guardian(&token(&app, &claims))).await;
        assert_eq!(own, joined(), "{name}");
    }
    let server = TestServer::start();
    server.create_app(json!({ "name": "sharing-app", "shared_tokens": true })).await;
    let empty = SecretString::from("");
    assert!(mint(&json!({}), &empty, SigningAlgorithm::Hs256).is_err(), "an empty key fails");
    let app = App { secret: String::new(), ..App::seeded() };
    let claims = json!({ "listen": ["private:*"] });
    let by_nobody = guardian(&forged(&app, &json!({ "alg": "HS256" }), &claims));
    let reply = join(&server, "private:sharing-app", by_nobody).await;
    assert_eq!(reply, bad_token("invalid_token"), "an empty GUARDIAN_SECRET counts as unset");
}

#[tokio::test]
async fn one_apps_token_opens_nothing_of_another() {
    let server = TestServer::start();
    let foo = server.create_app(json!({ "name": "foo-app" })).await;
    server.create_app(json!({ "name": "bar-app" })).await;
    let payload =
        guardian(&token(&foo, &json!({ "listen": ["private:*"], "publish": ["private:*"] })));
    assert_eq!(join(&server, "private:foo-app", payload.clone()).await, joined());
    let other = join(&server, "private:bar-app", payload).await;
    assert_eq!(other, bad_token("invalid_token"));
}
