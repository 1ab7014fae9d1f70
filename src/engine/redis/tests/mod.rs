//! Tests over real Redis servers, which they start: `redis-server` must be on the PATH (Debian: apt-get
//! install redis-server).

mod agreement;
mod faults;
// The tests of whole servers use these two files, too, and not all of them is used here.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../../tests/it/support/proxy.rs"]
mod proxy;
#[allow(dead_code, unreachable_pub)]
#[path = "../../../../tests/it/support/redis_server.rs"]
mod redis_server;
mod start;
mod tls;
mod trial;
mod versions;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;

use super::RedisEngine;
use crate::{
    engine::{Engine, NodeId, contract},
    metrics::Metrics,
    settings::{EngineSettings, Settings},
};
use redis_server::RedisServer;

const OWNER: [u8; 16] = *b"one and the same";

/// The settings of an engine, with times that suit a test.
fn settings(url: &str, more: &[(&str, &str)]) -> EngineSettings {
    let vars = [
        ("HERALD_ENV", "test"),
        ("DATABASE_URL", "sqlite::memory:"),
        ("REDIS_URL", url),
        ("HERALD__ENGINE__KIND", "redis"),
        ("HERALD__ENGINE__PARTITIONS", "4"),
        ("HERALD__ENGINE__PROBE_INTERVAL", "250ms"),
        ("HERALD__ENGINE__NODE_TIMEOUT", "1500ms"),
        ("HERALD__ENGINE__CONNECT_RETRY", "10s"),
    ];
    let vars = vars.iter().chain(more).map(|(name, value)| (name.to_string(), value.to_string()));
    // A later variable replaces an earlier one of the same name.
    let vars: HashMap<_, _> = vars.collect();
    Settings::load_from(vars.into_iter(), None).expect("settings").engine
}

async fn node_at(url: &str, more: &[(&str, &str)]) -> Arc<RedisEngine> {
    let settings = settings(url, more);
    RedisEngine::start(&settings, OWNER, Metrics::new(0)).await.expect("a node")
}

/// A server with its nodes.
struct Servers {
    server: RedisServer,
    nodes: Mutex<HashMap<NodeId, Arc<RedisEngine>>>,
}

impl Servers {
    fn new() -> Self {
        Self { server: RedisServer::start(&[]), nodes: Mutex::default() }
    }
}

impl contract::Servers for Servers {
    fn node(&self) -> BoxFuture<'_, Arc<dyn Engine>> {
        Box::pin(async {
            let node = node_at(&self.server.url(), &[]).await;
            self.nodes.lock().expect("nodes").insert(node.node(), node.clone());
            node as Arc<dyn Engine>
        })
    }

    fn kill(&self, node: NodeId) {
        if let Some(node) = self.nodes.lock().expect("nodes").remove(&node) {
            node.crash();
        }
    }
}

contract::suite!(Servers::new());
