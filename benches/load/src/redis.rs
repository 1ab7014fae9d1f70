//! A Redis of the bench's own, and the parts of its protocol that a load needs.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::observe::Observed;

/// The time that a Redis may take to start.
const START_MAX: Duration = Duration::from_secs(20);

/// A Redis server that keeps its data in memory only. It ends with this value.
pub struct Redis {
    /// Its accounts.
    pub observed: Observed,
    address: SocketAddr,
    process: Child,
    folder: tempfile::TempDir,
}

impl Redis {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// If there is no `redis-server`, or it does not start.
    pub fn start() -> io::Result<Self> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let folder = tempfile::tempdir()?;
        let process = run(free, folder.path())?;
        let observed = Observed { pid: process.id() };
        Ok(Self { observed, address: free, process, folder })
    }

    /// Its address for a server's settings.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Ends it at once; it forgets everything.
    ///
    /// # Errors
    /// If the operating system does not let it.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait().map(drop)
    }

    /// Starts it again, with nothing in it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_again(&mut self) -> io::Result<()> {
        self.process = run(self.address, self.folder.path())?;
        self.observed = Observed { pid: self.process.id() };
        Ok(())
    }

    /// Connects a client.
    ///
    /// # Errors
    /// If it is not accepted.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let socket = TcpStream::connect(self.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(START_MAX))?;
        Ok(socket)
    }

    /// Connects a client that listens to a channel, and reads what it is sent until the server ends.
    ///
    /// # Errors
    /// If it is not accepted.
    pub fn listen(&self, channel: &str) -> io::Result<()> {
        let mut socket = self.connect()?;
        socket.write_all(&command(&["SUBSCRIBE", channel]))?;
        // The answer has six lines: the kind, the channel and the number of channels, with their lengths.
        read_lines(&mut socket, 6)?;
        socket.set_read_timeout(None)?;
        thread::spawn(move || io::copy(&mut socket, &mut io::sink()));
        Ok(())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

fn run(address: SocketAddr, folder: &std::path::Path) -> io::Result<Child> {
    let port = address.port().to_string();
    let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let started = Command::new("redis-server")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let missing = |error| {
        io::Error::other(format!("redis-server (Debian: apt-get install redis-server): {error}"))
    };
    let mut process = started.map_err(missing)?;
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        if began.elapsed() > START_MAX {
            process.kill()?;
            return Err(io::Error::other("redis-server does not listen"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(process)
}

/// Spells a command.
pub fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

/// Reads answers that have this number of lines together.
///
/// # Errors
/// The error of the socket; [`io::ErrorKind::Other`] with the text of an error that Redis answers.
pub fn read_lines(socket: &mut impl Read, lines: usize) -> io::Result<()> {
    let (mut buffer, mut found) = ([0; 16 * 1024], 0);
    while found < lines {
        let read = socket.read(&mut buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.first() == Some(&b'-') {
            return Err(io::Error::other(String::from_utf8_lossy(bytes).into_owned()));
        }
        found += memchr::memchr_iter(b'\n', bytes).count();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_says_how_long_its_words_are() {
        assert_eq!(command(&["PUBLISH", "a", ""]), b"*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$0\r\n\r\n");
    }

    #[test]
    fn an_error_is_no_answer() {
        assert!(read_lines(&mut &b":1\r\n:1\r\n"[..], 2).is_ok());
        assert!(read_lines(&mut &b":1\r\n"[..], 2).is_err());
        assert!(read_lines(&mut &b"-ERR no\r\n"[..], 1).is_err());
    }
}
