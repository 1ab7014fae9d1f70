//! Subscribers: many real connections, watched by one thread.

use std::{
    io::{self, Read},
    net::TcpStream as Blocking,
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
    /// The beginning of a frame whose end has not come yet.
    partial: Vec<u8>,
    is_open: bool,
}

/// A frame that arrived.
pub struct Arrival<'a> {
    /// Whose it is.
    pub member: usize,
    /// When it was read.
    pub at: Instant,
    /// What it holds.
    pub payload: &'a [u8],
}

impl Crowd {
    /// Watches sockets that have joined.
    ///
    /// # Errors
    /// If the operating system does not let it.
    pub fn new(sockets: Vec<Blocking>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut members = Vec::with_capacity(sockets.len());
        for (nth, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            let mut socket = TcpStream::from_std(socket);
            poll.registry().register(&mut socket, Token(nth), Interest::READABLE)?;
            members.push(Member { socket, partial: Vec::new(), is_open: true });
        }
        let ready = Events::with_capacity(READY_MAX);
        Ok(Self { poll, ready, members, buffer: vec![0; READ_BYTES] })
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
    /// What the socket fails with.
    pub fn write(&mut self, member: usize, bytes: &[u8]) -> io::Result<()> {
        let member = self.members.get_mut(member).ok_or(io::ErrorKind::NotFound)?;
        io::Write::write_all(&mut member.socket, bytes)
    }

    /// Waits at most so long, and hands over every frame that came.
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
                member.read(&mut self.buffer, |payload| {
                    arrived(Arrival { member: nth, at: Instant::now(), payload });
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
            let used = frames(read, arrived);
            self.partial.extend_from_slice(read.get(used..).unwrap_or_default());
        } else {
            self.partial.extend_from_slice(read);
            let used = frames(&self.partial, arrived);
            self.partial.drain(..used);
        }
    }
}

/// Hands over the whole frames in `bytes`; answers how many bytes they are.
fn frames(bytes: &[u8], arrived: &mut impl FnMut(&[u8])) -> usize {
    let mut used = 0;
    while let Some(payload) = bytes.get(used..).and_then(wire::payload) {
        if let Some(payload) = bytes.get(used + payload.start..used + payload.end) {
            arrived(payload);
        }
        used += payload.end;
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_wherever_they_are_cut() {
        let all: Vec<u8> =
            ["one", "", "three"].iter().flat_map(|text| wire::server_frame(text)).collect();
        for cut in 0..=all.len() {
            let mut found = Vec::new();
            let mut partial = Vec::new();
            for piece in [&all[..cut], &all[cut..]] {
                partial.extend_from_slice(piece);
                let mut note = |payload: &[u8]| found.push(payload.to_vec());
                let used = frames(&partial, &mut note);
                partial.drain(..used);
            }
            assert_eq!(found, [b"one".to_vec(), Vec::new(), b"three".to_vec()], "{cut}");
            assert!(partial.is_empty());
        }
    }
}
