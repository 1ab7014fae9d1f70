//! The bare server: one thread that waits for thousands of sockets, and answers everything that it reads with
//! prepared bytes.
//!
//! It keeps no state of its clients. It answers a handshake with the response to the benches' own key, and every
//! later message with the reply to a join, which clients accept as the reply to a heartbeat as well.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr},
};

use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

use crate::wire;

/// The argument that makes a program of this folder the bare server.
pub const ARGUMENT: &str = "bare";

/// The listener's token; the sockets' are their places.
const LISTENER: Token = Token(usize::MAX);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4_096;

/// Answers everything with `reply` until the process is ended.
///
/// # Errors
/// The errors of its listener and its standard output.
pub fn run(reply: &str) -> io::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(BACKLOG)?;
    listener.set_tcp_nodelay(true)?;
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener.into());
    writeln!(io::stdout(), "http://{}", listener.local_addr()?)?;
    let reply = wire::server_frame(reply);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut ready = Events::with_capacity(1_024);
    let mut sockets: Vec<Option<TcpStream>> = Vec::new();
    let mut said = vec![0; 64 * 1_024];
    loop {
        poll.poll(&mut ready, None)?;
        for event in &ready {
            if event.token() == LISTENER {
                accept(&listener, &mut sockets, &poll)?;
                continue;
            }
            let Some(place) = sockets.get_mut(event.token().0) else { continue };
            if place.as_mut().is_some_and(|socket| answer(socket, &mut said, &reply).is_err()) {
                *place = None;
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    sockets: &mut Vec<Option<TcpStream>>,
    poll: &Poll,
) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((mut socket, _)) => {
                let place = Token(sockets.len());
                poll.registry().register(&mut socket, place, Interest::READABLE)?;
                sockets.push(Some(socket));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Answers what came in one piece, as all does that is sent here.
fn answer(socket: &mut TcpStream, said: &mut [u8], reply: &[u8]) -> io::Result<()> {
    let bytes = match socket.read(said) {
        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
        read => read?,
    };
    match said.get(..bytes).is_some_and(|said| said.starts_with(b"GET ")) {
        true => socket.write_all(wire::SWITCHING.as_bytes()),
        false => socket.write_all(reply),
    }
}
