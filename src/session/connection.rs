//! A connection, counted among those of its thread until it is closed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::net::TcpStream;

/// A place among counted connections, given back on drop.
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
    /// The socket.
    pub io: TcpStream,
    /// Its place among the connections of its thread.
    pub slot: ConnectionSlot,
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
