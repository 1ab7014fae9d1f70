//! A Redis and the servers that share it.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    PAYLOAD_BYTES,
    publishers::{Publisher, Publishers},
};
use crate::{
    CHANNEL, FIRST,
    observe::Observed,
    redis::Redis,
    subject::{Subject, Target},
};

/// The time within which a server must be ready.
const READY_MAX: Duration = Duration::from_secs(30);

/// The name and the password of the administrator.
const ADMIN: (&str, &str) = ("bench", "the password of the bench");

/// Servers that share a Redis and a database. They end with this value.
pub(super) struct Cluster {
    nodes: Vec<Subject>,
    pub(super) redis: Redis,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts a Redis and this number of servers, and waits until they are ready.
    pub(super) fn start(target: &Target, nodes: usize) -> io::Result<Self> {
        let (redis, folder) = (Redis::start()?, tempfile::tempdir()?);
        let database = format!("sqlite://{}/herald.db", folder.path().display());
        let settings = [
            ("HERALD__ENGINE__KIND", "redis"),
            ("REDIS_URL", &redis.url()),
            ("DATABASE_URL", &database),
            ("SECRET_KEY_BASE", "the key base that all servers of the bench have in common"),
            ("PUSHER_ADMIN_USERNAME", ADMIN.0),
            ("PUSHER_ADMIN_PASSWORD", ADMIN.1),
        ];
        let start = |_| Subject::node(target, &settings);
        let nodes = (0..nodes).map(start).collect::<io::Result<Vec<_>>>()?;
        let cluster = Self { nodes, redis, _folder: folder };
        cluster.nodes.iter().try_for_each(await_ready)?;
        Ok(cluster)
    }

    pub(super) fn nth(&self, nth: usize) -> &Subject {
        &self.nodes[nth % self.nodes.len()]
    }

    /// Hands the first server over, which then ends before the others.
    pub(super) fn take_first(&mut self) -> io::Result<Subject> {
        match self.nodes.is_empty() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(self.nodes.remove(0)),
        }
    }

    /// The accounts of Redis.
    pub(super) fn redis(&self) -> Observed {
        self.redis.observed
    }

    /// `count` publishers, evenly on all nodes and in `scopes` scopes. Each publishes `at_once` events with one
    /// request.
    pub(super) fn publishers(&self, count: usize, scopes: usize, at_once: usize) -> Publishers {
        let publisher = |nth: usize| {
            let node = self.nth(nth);
            // Neighbours have different nodes, so each scope has publishers on all.
            let scope = match (nth / self.nodes.len()) % scopes.max(1) {
                0 => "public".to_owned(),
                other => format!("s{other}"),
            };
            let topic = format!("{scope}:{}:{CHANNEL}", node.target().app);
            let payload = crate::payload(&FIRST.to_string(), PAYLOAD_BYTES);
            let one = format!(r#"{{"topic":"{topic}","event":"msg","payload":{payload}}}"#);
            let request = match at_once {
                1 => node.post("/api/publish", &node.target().credentials.1, &one),
                _ => node.bulk(&format!(r#"{{"events":[{}]}}"#, vec![one; at_once].join(","))),
            };
            Publisher::new(node, request)
        };
        Publishers::new((0..count).map(publisher).collect())
    }
}

/// Waits until a server says that it is ready.
fn await_ready(node: &Subject) -> io::Result<()> {
    let began = Instant::now();
    while get(node, "/ready").is_err() {
        if began.elapsed() > READY_MAX {
            return Err(io::Error::other("a server is not ready in time"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Asks a server as its administrator. An answer other than 200 is an error.
pub(super) fn get(node: &Subject, path: &str) -> io::Result<String> {
    let basic = STANDARD.encode(format!("{}:{}", ADMIN.0, ADMIN.1));
    let mut socket = TcpStream::connect(node.address)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Basic {basic}\r\nConnection: close\r\n\r\n",
        node.address
    );
    socket.write_all(request.as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(answer),
        false => Err(io::Error::other(answer)),
    }
}
