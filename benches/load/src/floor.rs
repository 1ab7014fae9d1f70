//! The floor: a program that costs only what the kernel costs.
//!
//! A process of its own, one thread, blocking sockets. It answers the same handshakes, and then does
//! nothing but one `write()` of a finished frame per subscriber. The bench sends it commands as lines on
//! its standard input, and it answers each with a line.

use std::{
    io::{self, BufRead, Write},
    net::{TcpListener, TcpStream},
};

use crate::{protocol::Protocol, wire};

/// The argument that makes a program of this folder the floor.
pub const ARGUMENT: &str = "floor";

/// A command to the floor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Accept this number of further subscribers; answered when all handshakes are complete.
    Accept(usize),
    /// Prepare a frame with this number of bytes of padding.
    Ready(usize),
    /// Write the frame, numbered so, to every subscriber.
    Publish(u64),
    /// Write the frame, numbered so, to the n-th subscriber alone.
    Single(u64, usize),
}

impl Command {
    /// The command as a line.
    pub fn line(&self) -> String {
        match self {
            Self::Accept(count) => format!("accept {count}\n"),
            Self::Ready(bytes) => format!("ready {bytes}\n"),
            Self::Publish(number) => format!("publish {number}\n"),
            Self::Single(number, nth) => format!("single {number} {nth}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Some(match words.as_slice() {
            ["accept", count] => Self::Accept(count.parse().ok()?),
            ["ready", bytes] => Self::Ready(bytes.parse().ok()?),
            ["publish", number] => Self::Publish(number.parse().ok()?),
            ["single", number, nth] => Self::Single(number.parse().ok()?, nth.parse().ok()?),
            _ => return None,
        })
    }
}

/// Serves until its standard input ends; its frames are those of a protocol, and say that they are of
/// `topic`.
///
/// # Errors
/// The errors of its sockets and its standard streams.
pub fn run(protocol: Protocol, topic: &str) -> io::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(4_096)?;
    let listener = TcpListener::from(listener);
    let mut answers = io::stdout().lock();
    writeln!(answers, "{}", listener.local_addr()?.port())?;
    let (topic, frame) = (topic.to_owned(), Frame::new(protocol, topic, 0));
    let mut floor = Floor { listener, subscribers: Vec::new(), protocol, topic, frame };
    for line in io::stdin().lock().lines() {
        let line = line?;
        let command = Command::parse(&line).ok_or(io::ErrorKind::InvalidInput)?;
        let is_silent = matches!(command, Command::Publish(_) | Command::Single(..));
        floor.obey(command)?;
        if !is_silent {
            writeln!(answers, "done")?;
        }
    }
    Ok(())
}

struct Floor {
    listener: TcpListener,
    subscribers: Vec<TcpStream>,
    protocol: Protocol,
    topic: String,
    frame: Frame,
}

impl Floor {
    fn obey(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Accept(count) => {
                for _ in 0..count {
                    let (socket, _) = self.listener.accept()?;
                    self.subscribers.push(welcome(socket)?);
                }
            }
            Command::Ready(bytes) => {
                self.frame = Frame::new(self.protocol, &self.topic, bytes);
            }
            Command::Publish(number) => {
                self.frame.number(number);
                for socket in &mut self.subscribers {
                    socket.write_all(&self.frame.bytes)?;
                }
            }
            Command::Single(number, nth) => {
                self.frame.number(number);
                let socket = self.subscribers.get_mut(nth).ok_or(io::ErrorKind::NotFound)?;
                socket.write_all(&self.frame.bytes)?;
            }
        }
        Ok(())
    }
}

/// Answers a handshake.
fn welcome(mut socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    wire::read_until(&mut socket, |read| read.ends_with(b"\r\n\r\n"))?;
    socket.write_all(wire::SWITCHING.as_bytes())?;
    Ok(socket)
}

/// A ready frame: only the event's number is written into it anew.
struct Frame {
    bytes: Vec<u8>,
    number_at: usize,
}

impl Frame {
    /// As wide as any number that an event will have.
    const DIGITS: usize = 10;

    fn new(protocol: Protocol, topic: &str, payload_bytes: usize) -> Self {
        let number = "1".repeat(Self::DIGITS);
        let bytes = wire::server_frame(&protocol.message(topic, &number, payload_bytes));
        let number_at = memchr::memmem::find(&bytes, number.as_bytes()).unwrap_or_default();
        Self { bytes, number_at }
    }

    fn number(&mut self, number: u64) {
        let digits = format!("{number:010}");
        let place = self.number_at..self.number_at + Self::DIGITS;
        if let Some(place) = self.bytes.get_mut(place) {
            place.copy_from_slice(digits.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_frame_carries_the_number_it_is_given() {
        for protocol in [Protocol::Phoenix, Protocol::Pusher] {
            let mut frame = Frame::new(protocol, "public:test-app:bench", 128);
            for number in [0, 7, 9_999_999_999] {
                frame.number(number);
                let payload = wire::payload(&frame.bytes).expect("a whole frame");
                assert_eq!(protocol.sequence(&frame.bytes[payload]), Some(number));
            }
        }
    }

    #[test]
    fn a_command_survives_its_line() {
        for command in
            [Command::Accept(3), Command::Ready(0), Command::Publish(12), Command::Single(4, 5)]
        {
            assert_eq!(Command::parse(&command.line()), Some(command));
        }
        assert_eq!(Command::parse("publish"), None);
    }
}
