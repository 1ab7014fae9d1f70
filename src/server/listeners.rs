//! Listening: each worker thread has a listener of its own on the same address, and the kernel distributes
//! connections among them (`SO_REUSEPORT`).

use std::{
    io, iter,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, SockRef, Socket, Type};

use super::StartError;
use crate::session::listener;

/// The most connections of each listener that may wait to be accepted.
const BACKLOG: i32 = 4_096;

/// Whether the kernel distributes connections among listeners of one address. If it gives all to one of them,
/// as on macOS, the threads share a listener instead, and each connection wakes all of them.
const IS_SPREAD: bool = cfg!(target_os = "linux");

/// The settings that give the address of the server.
const SERVER_SETTINGS: &str = "server.host and server.port";

/// The setting that gives the address of metrics.
const METRICS_SETTING: &str = "metrics.listen";

/// Begins to listen on the address of metrics, with one listener.
///
/// # Errors
/// [`StartError::Listen`].
pub(super) fn listen(address: SocketAddr) -> Result<SocketListeners, StartError> {
    let open = || {
        let listener = open(address, false)?;
        Ok(SocketListeners { address: listener.local_addr()?, sockets: vec![listener] })
    };
    let settings = METRICS_SETTING;
    open().map_err(|source| StartError::Listen { settings, address, source })
}

/// The listeners of one address, one for each worker thread.
pub(super) struct SocketListeners {
    /// The address, with the real port if any free port was requested.
    pub(super) address: SocketAddr,
    /// One listener per requested thread, or a single one.
    pub(super) sockets: Vec<TcpListener>,
}

impl SocketListeners {
    /// Begins to listen on the address of the server, which is not in use.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub(super) fn open(address: SocketAddr, threads: usize) -> Result<Self, StartError> {
        let open_all = || {
            // The first listener does not share the address, so that it fails if another process
            // listens there: a shared address can be shared by every process of the same user.
            let first = open(address, false)?;
            if IS_SPREAD {
                SockRef::from(&first).set_reuse_port(true)?;
            }
            let address = first.local_addr()?;
            let another = |_| if IS_SPREAD { open(address, true) } else { first.try_clone() };
            let others = (1..threads).map(another).collect::<io::Result<Vec<_>>>()?;
            let sockets = iter::once(first).chain(others).collect();
            Ok(Self { address, sockets })
        };
        let settings = SERVER_SETTINGS;
        open_all().map_err(|source| StartError::Listen { settings, address, source })
    }
}

fn open(address: SocketAddr, is_shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if is_shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = socket.into();
    listener::tune(&listener);
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, TcpStream},
        time::{Duration, Instant},
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);
    const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn an_address_that_is_taken_is_taken_however_it_is_listened_on() {
        let let_go = listen(ANYWHERE).expect("a port");
        let free = let_go.address;
        let kept = listen(ANYWHERE).expect("a port");
        let shared = SocketListeners::open(ANYWHERE, 3).expect("a port");
        drop(let_go);
        for (case, address, is_free) in [
            ("let go", free, true),
            ("alone", kept.address, false),
            ("shared", shared.address, false),
        ] {
            for threads in [1, 2] {
                let opened = SocketListeners::open(address, threads).map(|opened| opened.address);
                match opened {
                    Ok(opened) => assert!(is_free && opened == address, "{case}"),
                    Err(error) => assert!(!is_free, "{case}: {error}"),
                }
            }
            assert_eq!(listen(address).is_ok(), is_free, "{case}");
        }
    }

    #[test]
    fn each_thread_has_a_listener_and_none_is_passed_over() {
        let listeners = SocketListeners::open(ANYWHERE, 4).expect("a port");
        assert_eq!(listeners.sockets.len(), 4);
        // The chance that one of four gets none of 200 is one in 10 to the 24th.
        let clients: Vec<_> = (0..200)
            .map(|_| TcpStream::connect(listeners.address).expect("room in the backlog"))
            .collect();
        let mut accepted = vec![0; listeners.sockets.len()];
        // A client may be connected a little before its listener knows.
        let began = Instant::now();
        while accepted.iter().sum::<usize>() < clients.len() && began.elapsed() < DEADLINE {
            for (listener, accepted) in listeners.sockets.iter().zip(&mut accepted) {
                *accepted += iter::from_fn(|| listener.accept().ok()).count();
            }
        }
        assert_eq!(accepted.iter().sum::<usize>(), clients.len());
        assert!(!IS_SPREAD || !accepted.contains(&0), "one is passed over: {accepted:?}");
    }
}
