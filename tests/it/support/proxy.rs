//! A proxy between a node and Redis, which simulates faults of the network.

use std::{thread, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    runtime::Builder,
    sync::{oneshot, watch},
};

/// The way in which the proxy treats bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes them on.
    Pass,
    /// Passes them on later.
    Delay(Duration),
    /// Swallows them in both directions; connections stay open.
    Blackhole,
    /// Swallows the bytes that Redis sends, and passes on those that it is sent.
    Deaf,
    /// Passes on half of the next bytes of each connection, and breaks it.
    Halve,
    /// Breaks all connections, and closes each new one at once.
    Cut,
}

/// The behaviour of a proxy, and the port of the server behind it.
type State = (Mode, u16);

/// A proxy. Its connections end with it. It has a thread of its own: a test that waits for a server to start
/// blocks its own thread.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    state: watch::Sender<State>,
}

impl Proxy {
    /// Starts a proxy in front of a port.
    pub async fn before(port: u16) -> Self {
        let (state, states) = watch::channel((Mode::Pass, port));
        let (listens, listening) = oneshot::channel();
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                let address = listener.local_addr().expect("an address");
                listens.send(address.port()).expect("the test waits");
                accept(listener, states).await;
            });
        });
        Self { port: listening.await.expect("a port"), state }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Changes the mode from now on.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.0 = mode);
    }

    /// Breaks all connections, and passes new ones on to another server.
    pub fn lead_to(&self, port: u16) {
        self.state.send_modify(|state| *state = (Mode::Pass, port));
    }
}

/// Accepts connections until the proxy is gone.
async fn accept(listener: TcpListener, mut states: watch::Receiver<State>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = states.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let (mode, port) = *states.borrow();
        let Ok((near, _)) = accepted else { continue };
        if mode == Mode::Cut {
            continue;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::spawn(pass(near_in, far_out, (states.clone(), port), false));
        tokio::spawn(pass(far_in, near_out, (states.clone(), port), true));
    }
}

async fn pass(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    (mut states, target): (watch::Receiver<State>, u16),
    is_reply: bool,
) {
    let mut bytes = vec![0; 64 << 10];
    let is_over = |(mode, port): &State| *mode == Mode::Cut || *port != target;
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            _ = states.wait_for(is_over) => return,
        };
        let Ok(length) = read else { return };
        if length == 0 {
            return;
        }
        let now = *states.borrow();
        match now.0 {
            _ if is_over(&now) => return,
            Mode::Blackhole => continue,
            Mode::Deaf if is_reply => continue,
            Mode::Halve => {
                let _ = to.write_all(&bytes[..length / 2]).await;
                return;
            }
            Mode::Delay(time) => tokio::time::sleep(time).await,
            Mode::Pass | Mode::Deaf | Mode::Cut => {}
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
