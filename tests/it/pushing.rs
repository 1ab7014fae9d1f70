//! Section 14.5 of the protocol document: the pushes of clients, and the join that each push is meant for.

use crate::support::*;

#[tokio::test]
async fn e073_a_published_event_gets_no_reply() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","public:test-app","phx_join",{}]
            < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            > ["1","2","public:test-app","c:msg",{"x":[1,null]}]
            < [null,null,"public:test-app","c:msg",{"x":[1,null]}]
        "#;
        socket.play(script).await;
    }
}

/// The messages of each script are sent without waiting in between.
#[tokio::test]
async fn e069_e109_what_a_client_publishes_reaches_it_before_the_answers_to_its_later_messages() {
    let server = TestServer::start();
    for way in WAYS {
        let mut socket = Socket::connect(&server, way).await;
        let script = r#"
            > ["1","1","public:test-app","phx_join",{}]
            < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            > ["1","2","public:test-app","c:msg",{"nth":1}]
            > ["1","3","public:test-app","c:msg",[]]
            > ["1","4","public:test-app","c:msg",{"nth":2}]
            > ["1","5","public:test-app","c:msg",{"nth":3}]
            > ["1","6","public:test-app","phx_leave",{}]
            > ["1","7","public:test-app","c:msg",{}]
            < [null,null,"public:test-app","c:msg",{"nth":1}]
            < ["1","3","public:test-app","phx_reply",{"status":"error","response":{"reason":"payload must be an object"}}]
            < [null,null,"public:test-app","c:msg",{"nth":2}]
            < [null,null,"public:test-app","c:msg",{"nth":3}]
            < ["1","6","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["1","1","public:test-app","phx_close",{}]
            < [null,"7","public:test-app","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e074_e075_each_push_to_an_unjoined_topic_gets_one_refusal() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","13","public:test-app","c:msg",{}]
            < [null,"13","public:test-app","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]
            > ["1","14","public:test-app","c:msg",{}]
            < [null,"14","public:test-app","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]
            > [null,"15","phoenix","msg",{}]
            < [null,"15","phoenix","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e076_a_push_after_leaving_is_refused() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","public:test-app","phx_join",{}]
            < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            > ["1","2","public:test-app","phx_leave",{}]
            < ["1","2","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["1","1","public:test-app","phx_close",{}]
            > ["1","3","public:test-app","c:msg",{}]
            < [null,"3","public:test-app","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]
        "#;
        socket.play(script).await;
    }
}

#[tokio::test]
async fn e077_a_push_for_another_join_is_met_with_silence() {
    let server = TestServer::start();
    let script = r#"
        > ["1","1","public:test-app","phx_join",{}]
        < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
        > ["0","2","public:test-app","c:stale",{}]
        > ["","3","public:test-app","c:stale",{}]
        > ["2","4","public:test-app","c:stale",[]]
        > ["1","5","public:test-app","c:msg",{}]
        < [null,null,"public:test-app","c:msg",{}]
    "#;
    for way in V2_WAYS {
        Socket::connect(&server, way).await.play(script).await;
    }
}

#[tokio::test]
async fn e078_a_push_without_join_ref_is_for_whichever_join_there_is() {
    let server = TestServer::start();
    let script = r#"
        > ["1","1","public:test-app","phx_join",{}]
        < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
        > [null,"2","public:test-app","c:msg",{}]
        < [null,null,"public:test-app","c:msg",{}]
        > [null,"3","public:test-app","c:msg",null]
        < ["1","3","public:test-app","phx_reply",{"status":"error","response":{"reason":"payload must be an object"}}]
    "#;
    for way in V2_WAYS {
        Socket::connect(&server, way).await.play(script).await;
    }
}

#[tokio::test]
async fn e079_refs_of_another_json_type_are_other_refs() {
    let server = TestServer::start();
    let script = r#"
        > [1,"1","public:test-app","phx_join",{}]
        < [1,"1","public:test-app","phx_reply",{"status":"ok","response":{}}]
        > ["1","2","public:test-app","c:stale",{}]
        > [1.0,"3","public:test-app","c:stale",{}]
        > [true,"4","public:test-app","c:stale",{}]
        > [1,"5","public:test-app","c:msg",{}]
        < [null,null,"public:test-app","c:msg",{}]
        > [1,6,"public:test-app","c:msg",[]]
        < [1,6,"public:test-app","phx_reply",{"status":"error","response":{"reason":"payload must be an object"}}]
        > ["1","7","public:test-app","phx_leave",{}]
        > [1,"8","public:test-app","phx_leave",{}]
        < [1,"8","public:test-app","phx_reply",{"status":"ok","response":{}}]
        < [1,1,"public:test-app","phx_close",{}]
    "#;
    for way in V2_WAYS {
        Socket::connect(&server, way).await.play(script).await;
    }
}

#[tokio::test]
async fn e081_a_ref_may_be_used_again() {
    let server = TestServer::start();
    for vsn in WAYS {
        let mut socket = Socket::connect(&server, vsn).await;
        let script = r#"
            > ["1","1","public:test-app","phx_join",{}]
            > ["1","1","public:test-app","c:msg",[]]
            > ["1","1","public:test-app","phx_join_not",{}]
            < ["1","1","public:test-app","phx_reply",{"status":"ok","response":{}}]
            < ["1","1","public:test-app","phx_reply",{"status":"error","response":{"reason":"payload must be an object"}}]
            < ["1","1","public:test-app","phx_reply",{"status":"error","response":{"reason":"invalid event"}}]
            > [null,"1","phoenix","heartbeat",{}]
            < [null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]
        "#;
        socket.play(script).await;
    }
}
