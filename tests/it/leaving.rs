//! Section 14.6 of the protocol document: how channels and connections end.

use std::time::{Duration, Instant};

use crate::support::*;
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{
        CloseFrame,
        frame::{
            Frame,
            coding::{CloseCode, Data, OpCode},
        },
    },
};

#[tokio::test]
async fn e082_e083_e085_a_leave_is_answered_then_the_channel_closes() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        for join_ref in ["\"1\"", "null"] {
            // In version 1 the close carries the join's ref (decision 13.1).
            let script = format!(
                r#"
                > ["1","1","public:test-app","phx_join",{{}}]
                < ["1","1","public:test-app","phx_reply",{{"status":"ok","response":{{}}}}]
                > [{join_ref},"12","public:test-app","phx_leave",{{}}]
                < ["1","12","public:test-app","phx_reply",{{"status":"ok","response":{{}}}}]
                < ["1","1","public:test-app","phx_close",{{}}]
                "#
            );
            socket.play(&script).await;
        }
    }
}

#[tokio::test]
async fn e084_a_leave_for_another_join_is_met_with_silence() {
    let server = TestServer::start();
    let script = r#"
        > ["1","1","public:test-app","phx_join",{}]
        < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
        > ["0","2","public:test-app","phx_leave",{}]
        > ["","3","public:test-app","phx_leave",{}]
        > [1,"4","public:test-app","phx_leave",{}]
        > ["1","5","public:test-app","c:msg",{}]
        < [null,null,"public:test-app","c:msg",{}]
    "#;
    for way in V2_WAYS {
        Socket::connect(&server, way).await.play(script).await;
    }
}

#[tokio::test]
async fn e086_e087_leaving_a_topic_that_is_not_joined_is_fine() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["9","1","public:test-app","phx_leave",{}]
            < ["9","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            > [null,"2","nomatch","phx_leave",{}]
            < [null,"2","nomatch","phx_reply",{"status":"ok","response":{}}]
            > ["9","3","phoenix","phx_leave",{}]
            < ["9","3","phoenix","phx_reply",{"status":"ok","response":{}}]
            > ["4","4","public:test-app","phx_join",{}]
            < ["4","4","public:test-app","phx_reply",{"status":"ok","response":{}}]
            > ["4","5","public:test-app","phx_leave",{}]
            > ["4","6","public:test-app","phx_leave",{}]
            < ["4","5","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["4","4","public:test-app","phx_close",{}]
            < ["4","6","public:test-app","phx_reply",{"status":"ok","response":{}}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e088_a_client_that_has_left_hears_nothing_more() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        socket.join("public:test-app:stays", json!({})).await;
        let script = r#"
            > ["2","2","public:test-app:left","phx_join",{}]
            < ["2","2","public:test-app:left","phx_reply",{"status":"ok","response":{}}]
            > ["2","3","public:test-app:left","phx_leave",{}]
            < ["2","3","public:test-app:left","phx_reply",{"status":"ok","response":{}}]
            < ["2","2","public:test-app:left","phx_close",{}]
        "#;
        socket.play(script).await;
        // A scope has one order: an event of the first trigger would arrive before that of the second.
        for channel in ["left", "stays"] {
            server.trigger(&App::seeded(), json!({"topic": channel, "event": "msg"})).await;
        }
        let heard = json!([null, null, "public:test-app:stays", "msg", {}]);
        assert_eq!(socket.next().await, heard);
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e089_e090_e091_e092_a_second_join_replaces_the_first() {
    let server = TestServer::start();
    let script = r#"
        > ["1","1","public:test-app","phx_join",{}]
        < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
        > ["2","2","public:test-app","phx_join",{}]
        > ["1","3","public:test-app","c:stale",{}]
        > ["2","4","public:test-app","c:one",{}]
        > ["2","5","public:test-app","c:two",{}]
        < ["2","2","public:test-app","phx_reply",{"status":"ok","response":{}}]
        < ["1","1","public:test-app","phx_close",{}]
        < [null,null,"public:test-app","c:one",{}]
        < [null,null,"public:test-app","c:two",{}]
        > ["2","6","public:test-app","phx_leave",{}]
        < ["2","6","public:test-app","phx_reply",{"status":"ok","response":{}}]
        < ["2","2","public:test-app","phx_close",{}]
        > ["2","7","public:test-app","c:msg",{}]
        < [null,"7","public:test-app","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]
    "#;
    for way in V2_WAYS {
        Socket::connect(&server, way).await.play(script).await;
    }
}

#[tokio::test]
async fn e089_e092_e093_a_v1_client_hears_nothing_of_the_join_it_replaced() {
    let server = TestServer::start();
    let script = r#"
        > [null,"1","public:test-app","phx_join",{}]
        < [null,"1","public:test-app","phx_reply",{"status":"ok","response":{}}]
        > [null,"2","public:test-app","phx_join",{}]
        > [null,"3","public:test-app","c:one",{}]
        > [null,"4","public:test-app","c:two",{}]
        < [null,"2","public:test-app","phx_reply",{"status":"ok","response":{}}]
        < [null,null,"public:test-app","c:one",{}]
        < [null,null,"public:test-app","c:two",{}]
        > [null,"5","public:test-app","phx_leave",{}]
        < [null,"5","public:test-app","phx_reply",{"status":"ok","response":{}}]
        < [null,"2","public:test-app","phx_close",{}]
    "#;
    for way in [V1, V1_POLLED] {
        Socket::connect(&server, way).await.play(script).await;
    }
}

#[tokio::test]
async fn a_second_join_that_is_denied_ends_the_first_as_well() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        // In version 1 the first join ends with an error, after which the client joins again.
        let close = match vsn {
            V2 | V2_POLLED => r#"< ["1","1","public:test-app","phx_close",{}]"#,
            _ => r#"< [null,"1","public:test-app","phx_error",{"reason":"channel_crash"}]"#,
        };
        let script = format!(
            r#"
            > ["1","1","public:test-app","phx_join",{{}}]
            < ["1","1","public:test-app","phx_reply",{{"status":"ok","response":{{}}}}]
            > ["2","2","public:test-app","phx_join",{{"guardian_token":"forged"}}]
            < ["2","2","public:test-app","phx_reply",{{"status":"error","response":{{"error":"invalid_token"}}}}]
            {close}
            > ["1","3","public:test-app","c:msg",{{}}]
            < [null,"3","public:test-app","phx_reply",{{"status":"error","response":{{"reason":"unmatched topic"}}}}]
            "#
        );
        socket.play(&script).await;
    }
}

#[tokio::test]
async fn e094_leaving_and_joining_at_once_ends_joined() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","public:test-app","phx_join",{}]
            > ["1","2","public:test-app","phx_leave",{}]
            > ["3","3","public:test-app","phx_join",{}]
            > ["3","4","public:test-app","c:one",{}]
            > ["3","5","public:test-app","c:two",{}]
            < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["1","2","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["1","1","public:test-app","phx_close",{}]
            < ["3","3","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < [null,null,"public:test-app","c:one",{}]
            < [null,null,"public:test-app","c:two",{}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e098_a_channel_that_fails_takes_no_other_with_it() {
    let server = TestServer::start();
    server.create_app(json!({"name": "doomed", "client_events": "all"})).await;
    for vsn in WAYS {
        server.update_app("doomed", json!({"active": true})).await;
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","public:doomed","phx_join",{}]
            < ["1","1","public:doomed","phx_reply",{"status":"ok","response":{}}]
            > ["2","2","public:test-app","phx_join",{}]
            < ["2","2","public:test-app","phx_reply",{"status":"ok","response":{}}]
        "#;
        socket.play(script).await;
        server.update_app("doomed", json!({"active": false})).await;
        let script = r#"
            < ["1","1","public:doomed","phx_error",{"reason":"channel_crash"}]
            > ["1","3","public:doomed","c:msg",{}]
            < [null,"3","public:doomed","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]
            > ["2","4","public:test-app","c:msg",{}]
            < [null,null,"public:test-app","c:msg",{}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e099_the_channels_of_a_client_that_goes_end_with_it() {
    // The app may have one scope with subscribers: another is accepted once the first has none.
    let server = TestServer::start_with(|s| s.limits.scopes_per_app_max = 1);
    let token = tokens::token(&App::seeded(), &json!({"listen": ["private:*"]}));
    for (vsn, says_goodbye) in [(V1, true), (V2, true), (V2, false)] {
        let mut leaves = Socket::connect(&server, vsn).await;
        leaves.join("public:test-app", json!({})).await;
        let mut comes = Socket::connect(&server, vsn).await;
        let payload = json!({"guardian_token": token});
        let refused = json!({"status": "error", "response": {"reason": "too many scopes"}});
        assert_eq!(comes.try_join("private:test-app", payload.clone()).await, refused);
        if says_goodbye {
            leaves.send(Message::Close(None)).await;
        }
        drop(leaves);
        let joined = repeat_until(async || {
            comes.try_join("private:test-app", payload.clone()).await != refused
        });
        timeout(DEADLINE, joined).await.expect("the channel ends in time");
        let leave = r#"
            > ["1","2","private:test-app","phx_leave",{}]
            < ["1","2","private:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["1","1","private:test-app","phx_close",{}]
        "#;
        comes.play(leave).await;
        let free =
            repeat_until(async || comes.try_join("public:test-app", json!({})).await != refused);
        timeout(DEADLINE, free).await.expect("the scope is free in time");
        comes.play(&leave.replace("private", "public")).await;
    }
}

#[tokio::test]
async fn e101_a_stopping_server_says_that_it_will_be_back() {
    let mut server = TestServer::start();
    let mut sockets = Vec::new();
    for vsn in [V1, V2] {
        let mut joined = Socket::connect(&server, vsn).await;
        joined.join("public:test-app", json!({})).await;
        let mut idle = Socket::connect(&server, vsn).await;
        idle.assert_quiet().await;
        sockets.extend([joined, idle]);
    }
    server.begin_stop();
    for socket in &mut sockets {
        assert_eq!(socket.rest().await, (Vec::new(), 1012), "and no frame for any channel");
        socket.ended().await;
    }
    server.stop();
}

const IDLE: Duration = Duration::from_secs(1);

fn start_impatient() -> TestServer {
    TestServer::start_with(|settings| settings.socket.idle_timeout = IDLE)
}

#[tokio::test]
async fn e102_a_silent_client_is_sent_away() {
    let server = start_impatient();
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(&server, vsn).await;
        socket.join("public:test-app", json!({})).await;
        let since = Instant::now();
        assert_eq!(socket.rest().await, (Vec::new(), 1001));
        // The server began to measure before this test did, by the time that the reply was on its way.
        assert!(since.elapsed() > IDLE / 2, "{:?}", since.elapsed());
        socket.ended().await;
    }
}

#[tokio::test]
async fn e103_frames_that_a_client_receives_do_not_keep_it_alive() {
    let server = start_impatient();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let event = json!({"topic": "c", "event": "msg"});
    let triggers = async {
        loop {
            server.trigger(&App::seeded(), event.clone()).await;
            sleep(IDLE / 50).await;
        }
    };
    tokio::select! {
        (heard, code) = socket.rest() => {
            assert_eq!(code, 1001);
            assert!(heard.len() > 1, "there was traffic: {heard:?}");
        }
        () = triggers => {}
    }
}

#[tokio::test]
async fn e104_pings_are_answered_and_keep_a_client_alive() {
    let server = start_impatient();
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(&server, vsn).await;
        let since = Instant::now();
        let mut count = 0_u32;
        while since.elapsed() < IDLE * 2 {
            let payload = count.to_be_bytes().to_vec();
            socket.send(Message::Ping(payload.clone().into())).await;
            assert_eq!(socket.message().await, Message::Pong(payload.into()));
            count += 1;
            sleep(IDLE / 50).await;
        }
        let longest = vec![b'p'; 125];
        socket.send(Message::Ping(longest.clone().into())).await;
        assert_eq!(socket.message().await, Message::Pong(longest.into()));
        socket.assert_quiet().await;
    }
}

#[tokio::test]
async fn e105_a_message_beyond_the_limit_closes_the_connection() {
    const BYTES_MAX: usize = 1_000;
    let server = TestServer::start_with(|s| s.limits.message_bytes_max = BYTES_MAX);
    let heartbeat = |bytes: usize| {
        let frame = r#"[null,"1","phoenix","heartbeat",{}]"#;
        format!("{}{frame}", " ".repeat(bytes - frame.len()))
    };
    let reply = r#"[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    let part = |bytes: &[u8], kind: Data, is_last: bool| {
        Message::Frame(Frame::message(bytes.to_vec(), OpCode::Data(kind), is_last))
    };
    for (bytes, is_taken) in [(BYTES_MAX, true), (BYTES_MAX + 1, false), (70_000, false)] {
        let message = heartbeat(bytes);
        let mut whole = Socket::connect(&server, V2).await;
        whole.text(message.clone()).await;
        let mut pieces = Socket::connect(&server, V2).await;
        pieces.send(part(&message.as_bytes()[..500], Data::Text, false)).await;
        pieces.send(part(&message.as_bytes()[500..], Data::Continue, true)).await;
        for mut socket in [whole, pieces] {
            if is_taken {
                assert_eq!(socket.frame().await, reply, "{bytes}");
            } else {
                assert_eq!(socket.rest().await, (Vec::new(), 1009), "{bytes}");
            }
        }
    }
}

#[tokio::test]
async fn e106_a_client_that_closes_is_answered() {
    let server = TestServer::start();
    for vsn in [V1, V2] {
        for code in [1000, 1001, 4000] {
            let mut socket = Socket::connect(&server, vsn).await;
            socket.join("public:test-app", json!({})).await;
            let frame = CloseFrame { code: CloseCode::from(code), reason: "bye".into() };
            socket.send(Message::Close(Some(frame))).await;
            assert_eq!(socket.rest().await, (Vec::new(), 1000), "{code}");
            socket.ended().await;
        }
    }
}
