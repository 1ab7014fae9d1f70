//! Section 14.7 and "Who receives what": broadcasts.

use crate::support::*;
use serde_json::json;

#[tokio::test]
async fn e114_a_trigger_reaches_who_joined() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.join("public:test-app", json!({})).await;
    let event = json!({"topic": "foo-topic", "event": "msg", "payload": {"name": "n"}});
    server.trigger(&App::seeded(), event).await;
    let expected = r#"[null,null,"public:test-app","foo-topic:msg",{"name":"n"}]"#;
    assert_eq!(socket.frame().await, expected);
    socket.assert_quiet().await;
}
