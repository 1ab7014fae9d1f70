//! Nodes that speak another version.

use super::{RedisServer, node_at};
use crate::engine::{Engine as _, contract};

/// Appends to the first partition as a node of a later version might: with another version in the head.
fn append_as_later_version(server: &RedisServer) {
    let open = include_str!("../scripts/open.lua");
    let later = open.replace(r"'\1\28'", r"'\2\28'");
    assert_ne!(open, later);
    let script = later + "\nappend(ARGV[1], 1, 0, 1000, 1000000, 300000)\nreturn 1";
    let done: u64 = server.ask(&["EVAL", &script, "1", "herald{p0}:state", "a batch of its own"]);
    assert_eq!(done, 1);
}

#[tokio::test]
async fn a_message_of_another_version_is_lost_to_a_node_that_cannot_read_it_and_nothing_else_is() {
    let server = RedisServer::start(&[]);
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let (node, heard) = (node_at(&server.url(), &[]).await, contract::Heard::new());
        node.follow(heard.clone());
        contract::up(&*node).await;
        nodes.push((node, heard));
    }
    contract::append(&*nodes[0].0, 0, "before").await.expect("appended");
    append_as_later_version(&server);
    contract::append(&*nodes[1].0, 0, "after").await.expect("appended");
    // A node that starts reads the same from the log.
    let (late, late_heard) = (node_at(&server.url(), &[]).await, contract::Heard::new());
    late.follow(late_heard.clone());
    nodes.push((late, late_heard));
    for (_, heard) in &nodes {
        heard.until(|told| told.bodies(0) == ["before", "after"]).await;
        assert_eq!(heard.with(|told| told.lost(0)), [(2, 3)]);
        assert_eq!(heard.with(|told| told.epochs(0).len()), 1);
    }
}

#[tokio::test]
async fn a_letter_of_another_version_is_left_unanswered_and_questions_go_on() {
    let server = RedisServer::start(&[]);
    let (node, heard) = (node_at(&server.url(), &[]).await, contract::Heard::new());
    node.follow(heard);
    contract::up(&*node).await;
    for letter in ["\u{2}\u{0}\u{e}a letter of a later version", "", "\u{1}"] {
        server.ask::<u64>(&["PUBLISH", "herald{c}:all", letter]);
    }
    let answers = node.ask(None, "question".into(), contract::soon()).await.expect("answers");
    assert_eq!(answers.len(), 1);
}
