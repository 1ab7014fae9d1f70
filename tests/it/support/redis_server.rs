//! A Redis server of a test's own.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A server on a port of its own, with its data in a folder of its own. It is killed when this value is dropped.
#[derive(Debug)]
pub struct RedisServer {
    program: &'static str,
    arguments: Vec<String>,
    pub port: u16,
    folder: TempDir,
    child: Option<Child>,
}

/// A port that is free now. The bus of a cluster takes the port that is 10,000 higher.
pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        if port < 55_000 {
            return port;
        }
    }
}

impl RedisServer {
    /// Starts a server that stores nothing on disk, unless its arguments say otherwise.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_on(free_port(), arguments)
    }

    pub fn start_on(port: u16, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Self { program: "redis-server", arguments, port, folder, child: None };
        server.run();
        server
    }

    /// Starts a Sentinel that watches a server under the name `herald`.
    pub fn sentinel(watched: u16) -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().expect("a folder"));
        let config = format!(
            "sentinel monitor herald 127.0.0.1 {watched} 1\nsentinel down-after-milliseconds herald \
             500\nsentinel failover-timeout herald 2000\n"
        );
        fs::write(folder.path().join("sentinel.conf"), config).expect("a file");
        let arguments = vec!["sentinel.conf".to_owned(), "--sentinel".to_owned()];
        let mut server = Self { program: "redis-server", arguments, port, folder, child: None };
        server.run();
        server
    }

    /// Starts three masters that share the slots of a cluster.
    pub fn cluster() -> [Self; 3] {
        let masters = [(); 3]
            .map(|()| Self::start(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]));
        let ranges = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
        for (master, (first, last)) in masters.iter().zip(ranges) {
            master.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", first, last]);
            master.ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &masters[0].port.to_string()]);
        }
        let is_whole = |master: &Self| {
            let info: String = master.ask(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !masters.iter().all(is_whole) {
            assert!(Instant::now() < deadline, "the cluster is whole in time");
            thread::sleep(Duration::from_millis(50));
        }
        masters
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    // Only the tests of the engine use it.
    #[allow(dead_code)]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the server, also again after [`RedisServer::kill`].
    pub fn run(&mut self) {
        let mut command = Command::new(self.program);
        let is_own = self.arguments.iter().any(|argument| argument == "--port");
        // The file of a Sentinel is the first argument.
        command.args(&self.arguments);
        if !is_own {
            command.args(["--port", &self.port.to_string()]);
        }
        command.args(["--bind", "127.0.0.1", "--save", ""]);
        command.current_dir(self.folder.path()).stdout(Stdio::null()).stdin(Stdio::null());
        let child = command.spawn();
        let missing = "redis-server is needed (Debian: apt-get install redis-server)";
        self.child = Some(child.unwrap_or_else(|error| panic!("{missing}: {error}")));
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server listens in time");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until its link to its master is up, that is, until the first synchronization is complete.
    pub async fn until_replicates(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.ask::<String>(&["INFO", "replication"]).contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "the replica is synchronized in time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it in an orderly way, so that its data on disk is complete.
    pub fn shut_down(&mut self) {
        self.signal("TERM");
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("it runs");
        let sent =
            Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Starts a process that stops it for 100 milliseconds. The same process continues it, so that a busy test
    /// cannot prolong the pause.
    #[allow(dead_code, reason = "not every crate that has this module uses it")]
    pub fn stand_still_briefly(&self) -> Child {
        let id = self.child.as_ref().expect("it runs").id();
        let script = format!("kill -STOP {id} && sleep 0.1 && kill -CONT {id}");
        Command::new("sh").args(["-c", &script]).spawn().expect("sh runs")
    }

    /// Runs a command and returns its answer.
    pub fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.url()).expect("a client");
        let mut connection = client.get_connection().expect("a connection");
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query(&mut connection).expect("an answer")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
