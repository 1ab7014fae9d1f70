//! Herald as a process of its own, for tests of signals, crashes, memory and open files.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{DEADLINE, TestServer, database};

/// A running process, killed when it goes out of scope.
pub struct Process {
    child: Child,
    log: mpsc::Receiver<String>,
    /// Tells the reading thread to go on after the line that names the port.
    unread: mpsc::Sender<()>,
    /// The running server, as the other helpers call it. Its folder holds `herald.db`.
    pub server: TestServer,
}

impl Process {
    /// Starts a server in the test environment, with these settings.
    pub fn start(env: &[(&str, &str)]) -> Self {
        Self::start_in(TempDir::new().expect("a temporary folder"), env)
    }

    /// Starts a server on the database that is in a folder.
    pub fn start_in(dir: TempDir, env: &[(&str, &str)]) -> Self {
        Self::start_through(Command::new(env!("CARGO_BIN_EXE_herald")), dir, env)
    }

    /// Starts a server whose log nobody reads once it listens.
    pub fn start_unread(env: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_herald")), dir, env)
    }

    /// Starts a server with a command that runs `herald` with the arguments it is given.
    pub fn start_through(herald: Command, dir: TempDir, env: &[(&str, &str)]) -> Self {
        let process = Self::spawn(herald, dir, env);
        // The server would block if the pipe were full.
        process.read_log();
        process
    }

    fn spawn(mut herald: Command, dir: TempDir, env: &[(&str, &str)]) -> Self {
        let is_elsewhere =
            |(name, _): &(&str, &str)| name.contains("DATABASE") || *name == "HERALD_ENV";
        if !env.iter().any(is_elsewhere) {
            database::put_into(dir.path());
        }
        let mut child = herald
            .arg("serve")
            .current_dir(dir.path())
            .env_clear()
            .env("HERALD_ENV", "test")
            .env("DATABASE_URL", database::url_in(dir.path()))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("herald starts");
        let mut log = BufReader::new(child.stderr.take().expect("its standard error"));
        let (found, port) = mpsc::channel();
        let (logged, lines) = mpsc::channel();
        let (unread, wanted) = mpsc::channel();
        thread::spawn(move || {
            while let Some(line) = next_line(&mut log) {
                let port = line.split_once("listening on ").map(|(_, address)| {
                    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
                    port.expect("a port")
                });
                // The test may be over, and the receiver dropped.
                let _ = logged.send(line);
                if let Some(port) = port {
                    let _ = found.send(port);
                    let _ = wanted.recv();
                }
            }
        });
        let port = port.recv_timeout(3 * DEADLINE).expect("the server listens");
        Self { child, log: lines, unread, server: TestServer::elsewhere(port, dir) }
    }

    /// Reads the rest of its log, to its end.
    pub fn read_log(&self) {
        // The log may have ended, and the reading thread with it.
        let _ = self.unread.send(());
    }

    /// Waits until its log ends, and returns the lines that no other call has read.
    pub fn rest_of_log(&self) -> Vec<String> {
        let line = || match self.log.recv_timeout(DEADLINE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the log does not end"),
        };
        std::iter::from_fn(line).collect()
    }

    /// Sends it a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits until it has logged a line with this text; the lines before it are dropped.
    pub fn until_logged(&self, text: &str) {
        let mut read = Vec::new();
        while !read.last().is_some_and(|line: &String| line.contains(text)) {
            match self.log.recv_timeout(DEADLINE) {
                Ok(line) => read.push(line),
                Err(error) => panic!("no line with {text:?}, {error}: {read:#?}"),
            }
        }
    }

    /// Waits until it has logged `count` lines with this text, and returns them and any further ones
    /// that are there already; other lines are dropped.
    pub fn logged(&self, text: &str, count: usize) -> Vec<String> {
        let mut found = Vec::new();
        while found.len() < count {
            let line = self.log.recv_timeout(DEADLINE).expect("a line in time");
            found.extend(Some(line).filter(|line| line.contains(text)));
        }
        found.extend(self.log.try_iter().filter(|line| line.contains(text)));
        found
    }

    /// The number of files that it has open.
    pub fn open_files(&self) -> u64 {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        folder.expect("a running process").count() as u64
    }

    /// Limits the number of files that it may have open: the soft limit and the hard one.
    pub fn limit_files(&self, limit: (u64, u64)) {
        let files = rlimit::Resource::NOFILE;
        let pid = i32::try_from(self.child.id()).expect("a process id");
        rlimit::prlimit(pid, files, Some(limit), None).expect("a process of ours");
    }

    /// Limits the size of the files that it writes, in bytes.
    pub fn limit_file_bytes(&self, bytes: u64) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let limit = Some((bytes, rlimit::INFINITY));
        rlimit::prlimit(pid, rlimit::Resource::FSIZE, limit, None).expect("a process of ours");
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(began.elapsed() < 2 * DEADLINE, "it does not end");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops it in an orderly way, and returns its folder.
    pub fn stop(mut self) -> TempDir {
        self.signal("TERM");
        assert!(self.ended().success());
        self.crash()
    }

    /// Kills it, as a crash would end it, and returns its folder.
    pub fn crash(mut self) -> TempDir {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
        let empty = TempDir::new().expect("a temporary folder");
        std::mem::replace(&mut self.server.dir, empty)
    }

    /// The processor time that it has used, all threads together.
    pub fn cpu_time(&self) -> Duration {
        // The times in user and in system mode, which Linux counts in hundredths of a second. The fields follow
        // the last closing bracket, because the name of the process may hold one, too.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("a running process");
        let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
        let fields = fields.split_whitespace().skip(11).take(2);
        let ticks = fields.map(|field| field.parse::<u64>().expect("a number of ticks"));
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.expect("a number of kilobytes") * 1_024
    }
}

/// Reads a line, and marks it if its end is missing.
fn next_line(log: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    log.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
    Some(match line.strip_suffix('\n') {
        Some(whole) => whole.to_owned(),
        None => format!("{line} [cut off]"),
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
