//! Section 14.4 of the protocol document: joins and their replies.

use std::collections::BTreeSet;

use crate::support::{tokens::token, *};
use serde_json::{Value, json};

#[tokio::test]
async fn e054_a_join_is_answered_under_its_own_refs() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","public:test-app","phx_join",{}]
            < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            > ["2","2","public:test-app:room:1","phx_join",{"k":"v"}]
            < ["2","2","public:test-app:room:1","phx_reply",{"status":"ok","response":{}}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e055_ref_and_join_ref_are_independent() {
    let server = TestServer::start();
    let script = r#"
        > ["11","1","public:test-app","phx_join",{}]
        < ["11","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
        > ["1","2","public:test-app","c:stale",{}]
        > ["11","3","public:test-app","phx_leave",{}]
        < ["11","3","public:test-app","phx_reply",{"status":"ok","response":{}}]
        < ["11","11","public:test-app","phx_close",{}]
    "#;
    for way in V2_WAYS {
        Socket::connect(&server, way).await.play(script).await;
    }
}

#[tokio::test]
async fn e056_a_join_may_be_answered_with_more_than_nothing() {
    let server = TestServer::start();
    let token = token(&App::seeded(), &json!({"listen": ["private:*"]}));
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = format!(
            r#"
            > ["1","1","private:test-app","phx_join",{{"guardian_token":"{token}"}}]
            < ["1","1","private:test-app","phx_reply",{{"status":"ok","response":{{"message":"Joined"}}}}]
            "#
        );
        socket.play(&script).await;
    }
}

#[tokio::test]
async fn e057_e058_a_denial_tells_why_in_an_object_or_a_string() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["11","1","private:test-app","phx_join",{"guardian_token":"forged"}]
            < ["11","1","private:test-app","phx_reply",{"status":"error","response":{"error":"invalid_token"}}]
            > ["12","2","private:test-app","phx_join",{}]
            < ["12","2","private:test-app","phx_reply",{"status":"error","response":"authentication_required"}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e060_a_join_that_leads_nowhere_is_answered_without_join_ref() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        for topic in [
            "nomatch",
            "",
            ":",
            "public",
            "public:",
            "public:no-such-app",
            "public:test-app:",
            "public:test-app:#general",
            "public:Test-App",
            ":test-app",
            "pub lic:test-app",
            "phoenix",
        ] {
            let script = format!(
                r#"
                > ["1","1","{topic}","phx_join",{{}}]
                < [null,"1","{topic}","phx_reply",{{"status":"error","response":{{"reason":"unmatched topic"}}}}]
                "#
            );
            socket.play(&script).await;
        }
    }
}

/// Joins `public:test-app:<channel>` under the ref `<channel>`; answers the reply's payload.
async fn join_channel(socket: &mut Socket, channel: usize) -> Value {
    let (topic, reference) = (format!("public:test-app:{channel}"), channel.to_string());
    socket.push(json!([reference, reference, topic, "phx_join", {}])).await;
    let reply = socket.next().await;
    assert_eq!((&reply[1], &reply[2]), (&json!(reference), &json!(topic)));
    reply[4].clone()
}

#[tokio::test]
async fn e061_e063_a_hundred_topics_are_joined_and_no_more_until_one_is_left() {
    let server = TestServer::start();
    let ok = json!({"status": "ok", "response": {}});
    let too_many = json!({"status": "error", "response": {"reason": "too many channels joined"}});
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        for channel in 1..=100 {
            assert_eq!(join_channel(&mut socket, channel).await, ok, "{channel}");
        }
        assert_eq!(join_channel(&mut socket, 101).await, too_many);
        assert_eq!(join_channel(&mut socket, 102).await, too_many);
        server.trigger(&App::seeded(), json!({"topic": "#general", "event": "msg"})).await;
        let mut heard = BTreeSet::new();
        for _ in 1..=100 {
            let frame = socket.next().await;
            assert_eq!(frame[3], "#general:msg", "{frame}");
            heard.insert(frame[2].as_str().expect("a topic").to_owned());
        }
        assert_eq!(heard.len(), 100, "each of the hundred topics is still joined");
        socket.assert_quiet().await;
        let script = r#"
            > ["50","200","public:test-app:50","phx_leave",{}]
            < ["50","200","public:test-app:50","phx_reply",{"status":"ok","response":{}}]
            < ["50","50","public:test-app:50","phx_close",{}]
            > ["103","103","public:test-app:103","phx_join",{}]
            < ["103","103","public:test-app:103","phx_reply",{"status":"ok","response":{}}]
            > ["104","104","public:test-app:104","phx_join",{}]
            < ["104","104","public:test-app:104","phx_reply",{"status":"error","response":{"reason":"too many channels joined"}}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e062_the_limit_of_topics_is_a_setting() {
    let server = TestServer::start_with(|s| s.limits.channels_per_transport_max = 1);
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","public:test-app","phx_join",{}]
            < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            > ["2","2","public:test-app:c","phx_join",{}]
            < ["2","2","public:test-app:c","phx_reply",{"status":"error","response":{"reason":"too many channels joined"}}]
            > ["1","3","public:test-app","c:msg",{"n":3}]
            < [null,null,"public:test-app","c:msg",{"n":3}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e064_a_denied_join_leaves_the_topic_unjoined() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","private:test-app","phx_join",{}]
            < ["1","1","private:test-app","phx_reply",{"status":"error","response":"authentication_required"}]
            > ["1","2","private:test-app","c:msg",{}]
            < [null,"2","private:test-app","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e065_a_join_payload_may_be_any_json() {
    let server = TestServer::start();
    for vsn in WAYS {
        for payload in ["null", "[]", "[{\"guardian_token\":1}]", "\"text\"", "1", "false"] {
            let mut socket = Socket::connect(&server, vsn).await;
            let script = format!(
                r#"
                > ["1","1","public:test-app","phx_join",{payload}]
                < ["1","1","public:test-app","phx_reply",{{"status":"ok","response":{{}}}}]
                "#
            );
            socket.play(&script).await;
        }
    }
}

#[tokio::test]
async fn e066_a_null_join_ref_is_answered_with_null_and_the_ref_takes_its_place() {
    let server = TestServer::start();
    let script = r#"
        > [null,"5","public:test-app","phx_join",{}]
        < [null,"5","public:test-app","phx_reply",{"status":"ok","response":{}}]
        > ["5","6","public:test-app","c:msg",[]]
        < ["5","6","public:test-app","phx_reply",{"status":"error","response":{"reason":"payload must be an object"}}]
        > [null,"7","public:test-app","c:msg",{}]
        < [null,null,"public:test-app","c:msg",{}]
        > [null,"8","public:test-app","phx_leave",{}]
        < ["5","8","public:test-app","phx_reply",{"status":"ok","response":{}}]
        < ["5","5","public:test-app","phx_close",{}]
    "#;
    for way in V2_WAYS {
        Socket::connect(&server, way).await.play(script).await;
    }
}

#[tokio::test]
async fn e067_messages_right_after_a_join_arrive_behind_its_reply_in_order() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","public:test-app","phx_join",{}]
            > ["1","2","public:test-app","c:one",{}]
            > ["1","3","public:test-app","two",{"n":2}]
            > ["1","4","public:test-app","c:three",{}]
            < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < [null,null,"public:test-app","c:one",{}]
            < [null,null,"public:test-app","two",{"n":2}]
            < [null,null,"public:test-app","c:three",{}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e068_publications_of_others_during_a_join_arrive_behind_its_reply() {
    const EVENTS: u64 = 200;
    let server = TestServer::start_with(|settings| settings.server.workers = 2);
    for round in 0..10 {
        let mut publisher = Socket::connect(&server, V2).await;
        publisher.join("public:test-app", json!({})).await;
        let mut joiner = Socket::connect(&server, WAYS[round % 4]).await;
        for n in 0..EVENTS {
            if n == 20 {
                joiner.push(json!(["1", "1", "public:test-app", "phx_join", {}])).await;
            }
            publisher.push(json!(["1", "2", "public:test-app", "c:msg", {"n": n}])).await;
        }
        let reply = joiner.next().await;
        let ok = json!({"status": "ok", "response": {}});
        assert_eq!((&reply[3], &reply[4]), (&json!("phx_reply"), &ok));
        publisher.push(json!(["1", "2", "public:test-app", "c:msg", {"n": EVENTS}])).await;
        let mut heard = Vec::new();
        while heard.last() != Some(&EVENTS) {
            let frame = joiner.next().await;
            assert_eq!(frame[3], "c:msg", "{frame}");
            heard.push(frame[4]["n"].as_u64().expect("a number"));
        }
        let without_gaps: Vec<_> = (heard[0]..=EVENTS).collect();
        assert_eq!(heard, without_gaps, "round {round}");
    }
}

#[tokio::test]
async fn e069_a_client_need_not_wait_for_replies() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","public:test-app","phx_join",{}]
            > ["1","2","public:test-app","c:msg",[]]
            > ["1","3","public:test-app","phx_leave",{}]
            > ["1","4","public:test-app","c:msg",{}]
            < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["1","2","public:test-app","phx_reply",{"status":"error","response":{"reason":"payload must be an object"}}]
            < ["1","3","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["1","1","public:test-app","phx_close",{}]
            < [null,"4","public:test-app","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e070_a_heartbeat_behind_a_join_is_answered_as_well_and_need_not_wait_for_it() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        socket.push(json!(["1", "1", "public:test-app", "phx_join", {}])).await;
        socket.push(json!([null, "2", "phoenix", "heartbeat", {}])).await;
        let mut answers = [socket.next().await, socket.next().await];
        answers.sort_by_key(|answer| answer[1].to_string());
        let ok = json!({"status": "ok", "response": {}});
        let join_ref = if vsn.contains('1') { Value::Null } else { json!("1") };
        assert_eq!(answers[0], json!([join_ref, "1", "public:test-app", "phx_reply", ok]));
        assert_eq!(answers[1], json!([null, "2", "phoenix", "phx_reply", ok]));
        socket.assert_quiet().await;
    }
}
