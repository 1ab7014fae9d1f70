//! A connection, counted among those of its thread until it is closed.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use actix_codec::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::pump::SocketTransport;

/// A place among the connections of a thread, given back on drop.
#[derive(Debug)]
pub struct ConnectionSlot(Arc<AtomicUsize>);

impl ConnectionSlot {
    /// Counts a connection in `open`.
    pub fn take(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Relaxed);
        Self(open.clone())
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A client's connection, before it is known whether it becomes a session.
#[derive(Debug)]
pub struct Connection {
    io: TcpStream,
    _slot: ConnectionSlot,
}

impl Connection {
    /// A connection that is counted in `slot`.
    pub fn new(io: TcpStream, slot: ConnectionSlot) -> Self {
        Self { io, _slot: slot }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl SocketTransport for Connection {
    fn give_up(&self) {
        self.io.give_up();
    }

    fn unread_bytes(&self) -> u64 {
        self.io.unread_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_left_is_given_back() {
        let open = Arc::new(AtomicUsize::new(0));
        let slots = [ConnectionSlot::take(&open), ConnectionSlot::take(&open)];
        assert_eq!(open.load(Relaxed), 2);
        let [first, _second] = slots;
        drop(first);
        assert_eq!(open.load(Relaxed), 1);
    }
}
