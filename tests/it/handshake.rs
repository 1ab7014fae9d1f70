//! Section 14.1 and 14.2: who gets a socket.

use crate::support::*;
use serde_json::json;

#[tokio::test]
async fn e001_a_v2_client_is_let_in() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    socket.text(r#"[null,"1","phoenix","heartbeat",{}]"#).await;
    let expected = r#"[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(socket.frame().await, expected);
    let _ = json!({});
}
