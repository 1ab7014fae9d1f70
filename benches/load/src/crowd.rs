//! Subscribers: many real connections, watched by one thread.

use std::{
    io::{self, Read},
    net::TcpStream as Blocking,
    ops::Range,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};

use crate::wire;

/// Bytes read from a socket at once.
const READ_BYTES: usize = 256 * 1024;

/// Events of the operating system looked at in one go.
const READY_MAX: usize = 4_096;

/// Many subscribers of a subject.
pub struct Crowd {
    poll: Poll,
    ready: Events,
    members: Vec<Member>,
    buffer: Vec<u8>,
}

struct Member {
    socket: TcpStream,
    cut: Cut,
    /// The beginning of a piece whose end has not come yet.
    partial: Vec<u8>,
    is_open: bool,
}

/// How what arrives is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Frames of a WebSocket; a piece is what one carries.
    Frames,
    /// Answers of HTTP; a piece is one with its head. After a 101 come frames.
    Answers,
}

/// A piece that arrived.
pub struct Arrival<'a> {
    /// Whose it is.
    pub member: usize,
    /// When it was read.
    pub at: Instant,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl Crowd {
    /// Watches sockets that have joined.
    ///
    /// # Errors
    /// If the operating system does not let it.
    pub fn new(sockets: Vec<Blocking>) -> io::Result<Self> {
        let mut crowd = Self::empty()?;
        for socket in sockets {
            crowd.add(socket, Cut::Frames)?;
        }
        Ok(crowd)
    }

    /// Nobody yet.
    ///
    /// # Errors
    /// If the operating system does not let it.
    pub fn empty() -> io::Result<Self> {
        let ready = Events::with_capacity(READY_MAX);
        let buffer = vec![0; READ_BYTES];
        Ok(Self { poll: Poll::new()?, ready, members: Vec::new(), buffer })
    }

    /// Watches another socket; answers its number.
    ///
    /// # Errors
    /// If the operating system does not let it.
    pub fn add(&mut self, socket: Blocking, cut: Cut) -> io::Result<usize> {
        let nth = self.members.len();
        let member = self.watched(nth, socket, cut)?;
        self.members.push(member);
        Ok(nth)
    }

    /// Hangs up on a member, and watches another socket in its place.
    ///
    /// # Errors
    /// If the operating system does not let it.
    pub fn replace(&mut self, nth: usize, socket: Blocking, cut: Cut) -> io::Result<()> {
        let new = self.watched(nth, socket, cut)?;
        let place = self.members.get_mut(nth).ok_or(io::ErrorKind::NotFound)?;
        let mut old = std::mem::replace(place, new);
        self.poll.registry().deregister(&mut old.socket)
    }

    fn watched(&self, nth: usize, socket: Blocking, cut: Cut) -> io::Result<Member> {
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        self.poll.registry().register(&mut socket, Token(nth), Interest::READABLE)?;
        Ok(Member { socket, cut, partial: Vec::new(), is_open: true })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many have been hung up on.
    pub fn lost(&self) -> usize {
        self.members.iter().filter(|member| !member.is_open).count()
    }

    /// Writes to one of them; what it takes at once is all it is ever sent here.
    ///
    /// # Errors
    /// The error of the socket.
    pub fn write(&mut self, member: usize, bytes: &[u8]) -> io::Result<()> {
        let member = self.members.get_mut(member).ok_or(io::ErrorKind::NotFound)?;
        io::Write::write_all(&mut member.socket, bytes)
    }

    /// Waits at most so long, and hands over every piece that came.
    ///
    /// # Errors
    /// If the operating system does not let it wait.
    pub fn listen(
        &mut self,
        wait_max: Duration,
        mut arrived: impl FnMut(Arrival<'_>),
    ) -> io::Result<()> {
        match self.poll.poll(&mut self.ready, Some(wait_max)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &self.ready {
            let Token(nth) = event.token();
            if let Some(member) = self.members.get_mut(nth) {
                let at = Instant::now();
                member.read(&mut self.buffer, |payload| {
                    arrived(Arrival { member: nth, at, payload });
                });
            }
        }
        Ok(())
    }
}

impl Member {
    /// Reads until nothing is left, for readiness is told once.
    fn read(&mut self, buffer: &mut [u8], mut arrived: impl FnMut(&[u8])) {
        while self.is_open {
            match self.socket.read(buffer) {
                Ok(0) => self.is_open = false,
                Ok(read) => {
                    self.take(buffer.get(..read).unwrap_or_default(), &mut arrived);
                    if read < buffer.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.is_open = false,
            }
        }
    }

    fn take(&mut self, read: &[u8], arrived: &mut impl FnMut(&[u8])) {
        if self.partial.is_empty() {
            let used = self.cut.pieces(read, arrived);
            self.partial.extend_from_slice(read.get(used..).unwrap_or_default());
        } else {
            self.partial.extend_from_slice(read);
            let used = self.cut.pieces(&self.partial, arrived);
            self.partial.drain(..used);
        }
    }
}

impl Cut {
    /// Hands over the whole pieces in `bytes`; answers how many bytes they are.
    fn pieces(&mut self, bytes: &[u8], arrived: &mut impl FnMut(&[u8])) -> usize {
        let mut used = 0;
        while let Some(piece) = bytes.get(used..).and_then(|rest| self.first(rest)) {
            if let Some(piece) = bytes.get(used + piece.start..used + piece.end) {
                arrived(piece);
            }
            used += piece.end;
        }
        used
    }

    /// Where the first piece in `bytes` lies; `None` until it is whole.
    fn first(&mut self, bytes: &[u8]) -> Option<Range<usize>> {
        if *self == Self::Frames {
            return wire::payload(bytes);
        }
        let end = wire::answer(bytes)?.end;
        if bytes.starts_with(b"HTTP/1.1 101") {
            *self = Self::Frames;
        }
        Some(0..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_wherever_they_are_cut() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let switched = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        let frames = ["one", "", "three"].map(wire::server_frame).concat();
        let payloads = [b"one".as_slice(), b"", b"three"];
        let after_answers = [answer.as_slice(), switched, &frames].concat();
        let pieces_after_answers = [&[answer.as_slice(), switched], payloads.as_slice()].concat();
        for (cut, all, expected) in [
            (Cut::Frames, frames, payloads.to_vec()),
            (Cut::Answers, after_answers, pieces_after_answers),
        ] {
            for at in 0..=all.len() {
                let (mut cut, mut found, mut partial) = (cut, Vec::new(), Vec::new());
                for part in [&all[..at], &all[at..]] {
                    partial.extend_from_slice(part);
                    let used = cut.pieces(&partial, &mut |piece| found.push(piece.to_vec()));
                    partial.drain(..used);
                }
                assert_eq!(found, expected, "{at}");
                assert!(partial.is_empty());
            }
        }
    }
}
