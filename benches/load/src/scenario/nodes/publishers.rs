//! Publishers that work at the same time, each on a connection of its own.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::{publisher::read_answer, subject::Subject};

/// A publisher: it repeats one request as soon as it is answered.
#[derive(Clone)]
pub(super) struct Publisher {
    address: SocketAddr,
    request: Vec<u8>,
}

impl Publisher {
    pub(super) fn new(node: &Subject, request: Vec<u8>) -> Self {
        Self { address: node.address, request }
    }

    /// Answers how often the request was answered.
    fn publish(&self, lasting: Duration) -> io::Result<u64> {
        let mut socket = TcpStream::connect(self.address)?;
        socket.set_nodelay(true)?;
        let (began, mut answered) = (Instant::now(), 0);
        while began.elapsed() < lasting {
            socket.write_all(&self.request)?;
            read_answer(&mut socket)?;
            answered += 1;
        }
        Ok(answered)
    }
}

/// Several publishers.
pub(super) struct Publishers(Vec<Publisher>);

impl Publishers {
    pub(super) fn new(all: Vec<Publisher>) -> Self {
        Self(all)
    }

    /// Has all of them publish for so long. Answers how many requests were answered.
    pub(super) fn publish(&self, lasting: Duration) -> io::Result<u64> {
        thread::scope(|scope| {
            let start = |publisher| scope.spawn(move || Publisher::publish(publisher, lasting));
            let threads: Vec<_> = self.0.iter().map(start).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, io::Result<u64>>| {
                thread.join().map_err(|_| io::Error::other("a publisher panicked"))?
            };
            threads.into_iter().map(join).sum()
        })
    }
}
