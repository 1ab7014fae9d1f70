//! Publishers: clients that publish events and read the answers.

use std::{
    io::{self, Read},
    net::TcpStream,
};

use crate::{
    floor::Command as Order,
    subject::{Kind, Subject},
    wire,
};

/// Triggers events over keep-alive connections, or orders the floor to write them.
pub struct Publisher {
    lines: Vec<Line>,
    next: usize,
}

/// One keep-alive connection, and how many answers are owed on it.
struct Line {
    socket: TcpStream,
    owed: usize,
}

impl Publisher {
    /// Opens `lines` connections; the floor needs none.
    ///
    /// # Errors
    /// If the server does not take them.
    pub fn open(subject: &Subject, lines: usize) -> io::Result<Self> {
        let lines = match subject.kind {
            Kind::Floor => 0,
            Kind::Bare | Kind::Server => lines,
        };
        let open = |_| {
            let socket = TcpStream::connect(subject.address)?;
            socket.set_nodelay(true)?;
            Ok(Line { socket, owed: 0 })
        };
        Ok(Self { lines: (0..lines).map(open).collect::<io::Result<_>>()?, next: 0 })
    }

    /// Publishes one event, to everybody or to the n-th topic alone; does not wait for its answer.
    ///
    /// # Errors
    /// If the subject is gone, or refused an event before.
    pub fn publish(
        &mut self,
        subject: &mut Subject,
        number: u64,
        payload_bytes: usize,
    ) -> io::Result<()> {
        match subject.kind {
            Kind::Floor => subject.order(&Order::Publish(number)),
            Kind::Bare | Kind::Server => {
                let request = subject.numbered_trigger(number, payload_bytes);
                self.send(&request)
            }
        }
    }

    /// Sends a request on the next line, after the answer that is still owed there.
    ///
    /// # Errors
    /// If the server is gone, or refused a request before.
    pub fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let nth = self.next;
        self.next = (nth + 1) % self.lines.len().max(1);
        let line = self.lines.get_mut(nth).ok_or(io::ErrorKind::NotConnected)?;
        line.settle()?;
        io::Write::write_all(&mut line.socket, request)?;
        line.owed += 1;
        Ok(())
    }

    /// Reads every answer that is owed.
    ///
    /// # Errors
    /// If the server is gone, or refused a request.
    pub fn settle(&mut self) -> io::Result<()> {
        self.lines.iter_mut().try_for_each(Line::settle)
    }
}

impl Line {
    fn settle(&mut self) -> io::Result<()> {
        while self.owed > 0 {
            read_answer(&mut self.socket)?;
            self.owed -= 1;
        }
        Ok(())
    }
}

/// Reads an answer with a body of known length.
///
/// # Errors
/// If it is not 200.
pub fn read_answer(socket: &mut impl Read) -> io::Result<()> {
    let answer = wire::read_until(socket, |read| wire::answer(read).is_some())?;
    if answer.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_is_an_answer() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert!(read_answer(&mut &answer[..]).is_ok());
        assert!(read_answer(&mut &b"HTTP/1.1 401 No\r\n\r\n"[..]).is_err());
    }
}
