//! JSON that some subscribers could not read, or would read differently, reaches nobody.

use serde_json::{Value, json, value::RawValue};

use crate::support::{
    http::Request,
    presence::{ROOM, enter, ticket_of},
    tokens::*,
    *,
};

/// JSON values that an object may not contain, each with the reason.
const REFUSED: [(&str, &str); 9] = [
    (r#""\ud800""#, "has half of a surrogate pair"),
    (r#"["a",{"b":"\ude00\ud83d"}]"#, "has half of a surrogate pair"),
    (r#"{"\udfff":1}"#, "has half of a surrogate pair"),
    ("1e999", "has a number that is too large"),
    ("[-1E+400]", "has a number that is too large"),
    (r#"{"n":1,"n":2}"#, "has a repeated key"),
    (r#"[[{"n":{},"n":{}}]]"#, "has a repeated key"),
    (r#"{"n":1,"\u006e":2}"#, "has a repeated key"),
    (r#"1,"part":2"#, "has a repeated key"),
];

/// An object that looks odd, but that every reader accepts. It is relayed byte for byte.
const ODD: &str =
    r#"{ "a":-0, "b":[1e-999,18446744073709551616], "c":{"a":"\ud83d\ude00\u0000\/"} }"#;

fn object(part: &str) -> String {
    format!(r#"{{"part":{part}}}"#)
}

fn post(server: &TestServer, path: &str, body: String) -> Request {
    let content_type = ("content-type", "application/json");
    request("POST", server.url(path)).header(content_type.0, content_type.1).body(body)
}

/// A token whose claims are exactly this text.
fn token_of(claims: &str) -> String {
    let claims: &RawValue = serde_json::from_str(claims).expect("JSON");
    signed(&App::seeded().secret, &claims)
}

#[tokio::test]
async fn json_that_strict_readers_refuse_is_refused_and_other_json_is_relayed_as_typed() {
    let server = TestServer::start();
    for way in WAYS {
        let mut socket = Socket::connect(&server, way).await;
        socket.join("public:test-app", json!({})).await;
        let (is_v2, join_ref) = match way {
            V2 | V2_POLLED => (true, r#""1""#),
            _ => (false, "null"),
        };
        let push = |payload: &str| match is_v2 {
            true => format!(r#"["1","2","public:test-app","msg",{payload}]"#),
            false => format!(
                r#"{{"topic":"public:test-app","event":"msg","payload":{payload},"ref":"2"}}"#
            ),
        };
        let refusal = format!(
            r#"[{join_ref},"2","public:test-app","phx_reply",{{"status":"error","response":{{"reason":"invalid payload"}}}}]"#
        );
        let refusal: Value = serde_json::from_str(&refusal).expect("JSON");
        for (part, _) in REFUSED {
            socket.text(push(&object(part))).await;
            assert_eq!(socket.next().await, refusal, "{part} by {way}");
        }
        socket.text(push(ODD)).await;
        let arrives = match is_v2 {
            true => format!(r#"[null,null,"public:test-app","msg",{ODD}]"#),
            false => {
                format!(r#"{{"topic":"public:test-app","event":"msg","ref":null,"payload":{ODD}}}"#)
            }
        };
        match way {
            // Over long-poll, messages of version 1 are a part of the answer's JSON, so the test client knows only
            // their values.
            V1_POLLED => {
                let arrives: Value = serde_json::from_str(&arrives).expect("JSON");
                assert_eq!(socket.next().await[4], arrives["payload"], "{way}");
            }
            _ => assert_eq!(socket.frame().await, arrives, "{way}"),
        }
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn triggers_in_all_forms_are_refused_with_422_and_publish_nothing() {
    let server = TestServer::start();
    let App { key, secret, .. } = App::seeded();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let events = "/api/apps/test-app/events";
    let bearer = token(&App::seeded(), &json!({ "publish": ["public:*"] }));
    for (part, reason) in REFUSED {
        let payload = object(part);
        let text = json!(payload).to_string();
        let form = format!("topic=t&event=e&payload={}", encoded(&payload));
        let one = |payload: &str| format!(r#"{{"topic":"t","event":"e","payload":{payload}}}"#);
        let whole = |payload: &str| {
            format!(r#"{{"topic":"public:test-app:t","event":"e","payload":{payload}}}"#)
        };
        let bulk = |payload: &str| format!(r#"{{"events":[{},{}]}}"#, whole("{}"), whole(payload));
        let refused = json!({ "errors": { "payload": [reason] } });
        let refused_bulk = json!({ "errors": { "events": [format!("1: payload {reason}")] } });
        let publish = |path, body| post(&server, path, body).header("authorization", &secret);
        for (case, request, expected) in [
            ("an object", post(&server, events, one(&payload)).basic(&key, &secret), &refused),
            ("a string", post(&server, events, one(&text)).basic(&key, &secret), &refused),
            (
                "a form",
                request("POST", server.url(events)).basic(&key, &secret).form(&form),
                &refused,
            ),
            ("a token's", post(&server, events, one(&payload)).bearer(&bearer), &refused),
            ("a whole topic", publish("/api/publish", whole(&payload)), &refused),
            ("a string there", publish("/api/publish", whole(&text)), &refused),
            ("a bulk", publish("/api/publish/bulk", bulk(&payload)), &refused_bulk),
            ("strings in bulk", publish("/api/publish/bulk", bulk(&text)), &refused_bulk),
        ] {
            let answer = request.send().await;
            assert_eq!((answer.status, answer.json()), (422, expected.clone()), "{case} {part}");
        }
    }
    for payload in [ODD.to_owned(), json!(ODD).to_string()] {
        let body = format!(r#"{{"topic":"t","event":"e","payload":{payload}}}"#);
        let answer = post(&server, events, body).basic(&key, &secret).send().await;
        assert_eq!((answer.status, answer.json()), (200, json!({})));
        assert_eq!(socket.frame().await, format!(r#"[null,null,"public:test-app","t:e",{ODD}]"#));
    }
    socket.assert_quiet().await;
}

/// A text as the value of a form's field, percent-encoded.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[tokio::test]
async fn presence_data_in_a_token_is_strict_json_too() {
    let invalid = json!({ "status": "error", "response": { "reason": "invalid payload" } });
    for way in WAYS {
        let server = TestServer::start();
        let (mut witness, _, _) = enter(&server, way, ticket_of("witness")).await;
        for (part, _) in REFUSED {
            for claim in [object(part), format!(r#"{{"deep":[{}]}}"#, object(part))] {
                let claims =
                    format!(r#"{{"sub":"ada","listen":["presence:*"],"presence":{claim}}}"#);
                let payload = json!({ "guardian_token": token_of(&claims) });
                let reply = Socket::connect(&server, way).await.try_join(ROOM, payload).await;
                assert_eq!(reply, invalid, "{claim} by {way}");
            }
        }
        witness.assert_quiet().await;
    }
}

#[tokio::test]
async fn presence_data_from_a_client_is_strict_json_too() {
    for way in V2_WAYS {
        let server = TestServer::start();
        let (mut socket, _, _) = enter(&server, way, ticket_of("ada")).await;
        let refusal = format!(
            r#"["1","2","{ROOM}","phx_reply",{{"status":"error","response":{{"reason":"invalid payload"}}}}]"#
        );
        for (part, _) in REFUSED {
            let update = object(part).replace("part", "custom");
            socket.text(format!(r#"["1","2","{ROOM}","presence_metadata",{update}]"#)).await;
            assert_eq!(socket.frame().await, refusal, "{update} by {way}");
        }
        socket.text(format!(r#"["1","2","{ROOM}","presence_metadata",{{"custom":{ODD}}}]"#)).await;
        let shown = format!(r#","custom":{ODD},"phx_ref""#);
        let diff = socket.frame().await;
        assert!(diff.contains(&shown), "{diff}");
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn names_with_half_a_surrogate_pair_reach_nobody() {
    let server = TestServer::start();
    let mut witness = Socket::connect(&server, V2).await;
    witness.join("public:test-app", json!({})).await;
    for message in [
        r#"["1","2","public:test-app","\ud800",{}]"#,
        r#"["1","2","public:test-app","a:\udc00",{}]"#,
        r#"["1","2","public:test-app:\ud800","msg",{}]"#,
    ] {
        let mut socket = Socket::connect(&server, V2).await;
        socket.join("public:test-app", json!({})).await;
        socket.text(message).await;
        assert_eq!(socket.closed().await, 1011, "{message}");
    }
    let App { key, secret, .. } = App::seeded();
    for field in ["topic", "event", "scope"] {
        let mut event = json!({ "topic": "t", "event": "e", "scope": "public" });
        event[field] = json!("HALF");
        let body = event.to_string().replace("HALF", r"\ud800");
        let answer =
            post(&server, "/api/apps/test-app/events", body).basic(&key, &secret).send().await;
        let refused = json!({ "errors": { field: ["is not valid text"] } });
        assert_eq!((answer.status, answer.json()), (422, refused), "{field}");
    }
    witness.assert_quiet().await;
}
