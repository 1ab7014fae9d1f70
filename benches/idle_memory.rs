//! How much memory an idle joined connection costs: `cargo bench --bench idle_memory`.
//!
//! Starts the real server as a process of its own, joins 10,000 sockets to one topic (or as many as
//! the first argument says) and compares the server's resident memory before and after. The kernel's
//! socket buffers are not in it.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement, run by hand")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// What a connection may cost.
const BYTES_MAX: u64 = 5 * 1024;

fn main() {
    let connections = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(10_000);
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let server = Server::start();
    // What the first connections set up stays, and is nobody's in particular.
    let warm: Vec<_> = (0..200).map(|_| join(server.port)).collect();
    drop(warm);
    server.settle();
    let before = server.resident_bytes();
    let started = Instant::now();
    let sockets: Vec<_> = (0..connections).map(|_| join(server.port)).collect();
    let took = started.elapsed();
    server.settle();
    let after = server.resident_bytes();
    let each = after.saturating_sub(before) / connections;
    println!("{} connections joined in {:.1} s", sockets.len(), took.as_secs_f64());
    println!("resident: {} KB before, {} KB after", before / 1024, after / 1024);
    println!("{each} bytes per idle joined connection (limit {BYTES_MAX})");
    assert!(each <= BYTES_MAX, "an idle connection costs too much");
}

/// Connects, joins, and reads the reply.
fn join(port: u16) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let handshake = format!(
        "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://127.0.0.1:{port}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(handshake.as_bytes()).unwrap();
    let answer = read_until(&mut socket, b"\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    let text = br#"["1","1","public:test-app","phx_join",{}]"#;
    // A mask of zeros leaves the text as it is.
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(text);
    socket.write_all(&frame).unwrap();
    let reply = read_until(&mut socket, b"}]");
    assert!(reply.windows(4).any(|bytes| bytes == b"\"ok\""));
    socket
}

fn read_until(socket: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 1024]);
    while !all.ends_with(end) {
        let read = socket.read(&mut buffer).unwrap();
        assert!(read > 0, "the server hung up: {}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buffer[..read]);
    }
    all
}

struct Server {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(env!("CARGO_BIN_EXE_herald"))
            .current_dir(folder.path())
            .env("HERALD_ENV", "development")
            .env("PORT", port.to_string())
            .env("HERALD__SOCKET__IDLE_TIMEOUT", "10m")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, port, _folder: folder }
    }

    /// Waits until the server's memory has stopped moving.
    fn settle(&self) {
        let mut last = 0;
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.resident_bytes();
            if now == last {
                return;
            }
            last = now;
        }
    }

    fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.process.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find(|line| line.starts_with("Rss:")).unwrap();
        let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kilobytes * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
