//! Server processes that share a Redis, a database and a prefix of their own.

use std::{env, time::Duration};

use tempfile::TempDir;
use tokio::time::timeout;
use uuid::Uuid;

use super::{DEADLINE, Process, TestServer, database, get, repeat_until};

/// The setting `engine.node_timeout`: after this time a killed node counts as dead.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(2);

/// Two servers that share their topics.
pub type Two<'a> = [&'a TestServer; 2];

/// Declares a test for each scenario, on two nodes that share a log in memory, and one test that runs all
/// scenarios one after the other on two nodes that share a Redis. A scenario is a function of [`Two`]
/// servers.
macro_rules! on_two_nodes {
    (on redis: $all:ident; $($name:ident: $scenario:ident,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $scenario($crate::nodes::Nodes::start().both()).await;
            }
        )*

        #[tokio::test]
        async fn $all() {
            let nodes = $crate::support::nodes::Nodes::start(2);
            let two = [nodes.server(0), nodes.server(1)];
            $($scenario(two).await;)*
        }
    };
}
pub(crate) use on_two_nodes;

/// The URL of the Redis that all tests share.
pub fn redis_url() -> String {
    env::var("HERALD_TEST_REDIS_URL").expect(
        "HERALD_TEST_REDIS_URL must name a Redis to test on, such as redis://127.0.0.1:6379 \
         (./scripts/test starts one)",
    )
}

/// Nodes that share a Redis, a database and a prefix of their own.
pub struct Nodes {
    env: Vec<(&'static str, String)>,
    pub all: Vec<Process>,
    _database: TempDir,
}

impl Nodes {
    /// Starts nodes on the Redis of all tests.
    pub fn start(count: usize) -> Self {
        Self::start_on(&vec![redis_url(); count], &[])
    }

    /// Starts a node for each URL of a Redis, with further settings.
    pub fn start_on(urls: &[String], more: &[(&'static str, &str)]) -> Self {
        let database = TempDir::new().expect("a temporary folder");
        database::put_into(database.path());
        let mut env = vec![
            ("DATABASE_URL", database::url_in(database.path())),
            ("SECRET_KEY_BASE", "the key base that all nodes have in common".to_owned()),
            ("HERALD__ENGINE__KIND", "redis".to_owned()),
            ("HERALD__ENGINE__PREFIX", format!("test-{}", Uuid::new_v4())),
            ("HERALD__ENGINE__PARTITIONS", "4".to_owned()),
            ("HERALD__ENGINE__PROBE_INTERVAL", "500ms".to_owned()),
            ("HERALD__ENGINE__NODE_TIMEOUT", format!("{}ms", NODE_TIMEOUT.as_millis())),
        ];
        env.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let mut nodes = Self { env, all: Vec::new(), _database: database };
        urls.iter().for_each(|url| nodes.add(url));
        nodes
    }

    /// Starts another node.
    pub fn add(&mut self, redis_url: &str) {
        let process = self.another(redis_url);
        self.all.push(process);
    }

    /// Starts a node that is not in [`Nodes::all`].
    pub fn another(&self, redis_url: &str) -> Process {
        let env = self.env.iter().map(|(name, value)| (*name, value.as_str()));
        let env: Vec<_> = env.chain([("REDIS_URL", redis_url)]).collect();
        Process::start(&env)
    }

    pub fn server(&self, nth: usize) -> &TestServer {
        &self.all[nth % self.all.len()].server
    }

    pub fn servers(&self) -> impl Iterator<Item = &TestServer> {
        self.all.iter().map(|process| &process.server)
    }
}

/// Repeats a check until it holds.
pub async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    timeout(3 * DEADLINE, repeat_until(holds)).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Waits until a node is ready, or until it is not.
pub async fn until_ready(server: &TestServer, is_ready: bool) {
    let status = if is_ready { 200 } else { 503 };
    let url = server.url("/ready");
    until("/ready is as expected", async || get(url.clone()).await.status == status).await;
}
