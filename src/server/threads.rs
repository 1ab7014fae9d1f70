//! The worker threads: each accepts connections, and serves most of those that it has accepted to their end.
//!
//! A single accepting thread would have to wake another thread for every connection; without this a join
//! takes a quarter less CPU. The kernel spreads connections without regard to load, so an overloaded
//! thread passes its next connection to the least loaded one.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io, mem,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use actix_rt::{Arbiter, ArbiterHandle};
use actix_service::{Service, ServiceFactory};
use log::{debug, error, info};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::yield_now,
    time::timeout,
};

use super::listeners::SocketListeners;
use crate::{
    metrics::Metrics,
    session::{
        connection::{Connection, ConnectionSlot},
        requests::ConnectionLimit,
    },
};

/// The pause after a failure to accept, for example when no file handle is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// A thread is overloaded if it has 1/64 more connections than the least loaded one, and at least one more. So
/// a few connections are distributed evenly, and of many thousands hardly any is passed on.
const SHARES: usize = 64;

/// A thread, as the other threads see it.
struct Peer {
    /// The number of its connections.
    open: Arc<AtomicUsize>,
    passed: mpsc::UnboundedSender<PassedConnection>,
}

/// A connection that another thread has accepted.
struct PassedConnection {
    io: std::net::TcpStream,
    address: SocketAddr,
    slot: ConnectionSlot,
}

/// The thread to which the accepting thread passes its next connection; `None` if the accepting thread, whose number
/// of connections is `own`, is not overloaded.
fn has_room<'a>(peers: &'a [Peer], own: &AtomicUsize) -> Option<&'a Peer> {
    let open = |peer: &&Peer| peer.open.load(Relaxed);
    let idlest = peers.iter().filter(|peer| !peer.passed.is_closed()).min_by_key(open)?;
    let least = open(&idlest);
    (own.load(Relaxed) > least + least / SHARES).then_some(idlest)
}

/// The worker threads of a server; they stop when this is dropped.
pub(super) struct Threads {
    arbiters: Vec<ArbiterHandle>,
    stopping: watch::Sender<bool>,
    /// A channel that closes once no thread accepts and no connection is served any more.
    busy: mpsc::Receiver<Infallible>,
}

impl Threads {
    /// Starts a thread for each listener, and makes the service of its connections there. The receiver that the
    /// service is given turns true when connections that only wait for another request must close.
    ///
    /// # Errors
    /// If a thread cannot be started, or cannot serve.
    pub(super) async fn start<M, F>(
        listeners: SocketListeners,
        limit: ConnectionLimit,
        make: M,
    ) -> io::Result<Self>
    where
        M: Fn(watch::Receiver<bool>) -> F + Clone + Send + 'static,
        F: ServiceFactory<(Connection, SocketAddr), Config = (), Response = (), InitError = ()>
            + 'static,
    {
        let (stopping, stops) = watch::channel(false);
        let (at_work, busy) = mpsc::channel(1);
        let mut threads = Self { arbiters: Vec::new(), stopping, busy };
        let mut starting = Vec::new();
        let (peers, owns): (Vec<_>, Vec<_>) = listeners.sockets.iter().map(|_| thread()).unzip();
        let pool = Arc::new(Pool { limit, peers, stops, _at_work: at_work });
        for (socket, own) in listeners.sockets.into_iter().zip(owns) {
            let arbiter = Arbiter::try_new()?.handle();
            let (make, pool) = (make.clone(), pool.clone());
            let (started, is_up) = oneshot::channel();
            arbiter.spawn_fn(move || {
                let factory = make(pool.stops.clone());
                actix_rt::spawn(async move {
                    let listener = TcpListener::from_std(socket);
                    let service = factory.new_service(()).await;
                    let service = service.map_err(|()| io::Error::other("it has no service"));
                    match listener.and_then(|listener| Ok((listener, service?))) {
                        Ok((listener, service)) => {
                            let _ = started.send(Ok(()));
                            let metrics = pool.limit.metrics().clone();
                            let acceptor = Rc::new(Acceptor { service, open: own.open, pool });
                            let passed = acceptor.take_passed(own.passed);
                            let accepting = async {
                                tokio::join!(acceptor.accept(listener), passed);
                            };
                            noting_panics(accepting, metrics).await;
                        }
                        Err(error) => drop(started.send(Err(error))),
                    }
                });
            });
            threads.arbiters.push(arbiter);
            starting.push(is_up);
        }
        for is_up in starting {
            is_up.await.unwrap_or_else(|_| Err(io::Error::other("it panicked")))?;
        }
        Ok(threads)
    }

    /// Stops accepting, and waits for every request that is under way.
    pub(super) async fn finish(mut self) {
        self.stopping.send_replace(true);
        self.busy.recv().await;
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }
}

/// The two views of a new thread: that of the other threads, and its own.
fn thread() -> (Peer, Own) {
    let (pass, passed) = mpsc::unbounded_channel();
    let open = Arc::new(AtomicUsize::new(0));
    (Peer { open: open.clone(), passed: pass }, Own { open, passed })
}

/// A thread's own view of itself.
struct Own {
    open: Arc<AtomicUsize>,
    /// The connections that other threads pass to it.
    passed: mpsc::UnboundedReceiver<PassedConnection>,
}

/// The state that the threads of a server share.
struct Pool {
    limit: ConnectionLimit,
    peers: Vec<Peer>,
    /// Turns true when no further connection is to be accepted.
    stops: watch::Receiver<bool>,
    /// The other end of [`Threads::busy`], which closes with the last thread and the last connection.
    _at_work: mpsc::Sender<Infallible>,
}

/// Accepts and serves the connections of one thread. The task of each connection holds a reference to it.
struct Acceptor<S> {
    service: S,
    /// The thread's open connections.
    open: Arc<AtomicUsize>,
    pool: Arc<Pool>,
}

/// Runs the accepting task of a thread, and logs and counts its panic. The thread continues after that, without
/// accepting connections.
async fn noting_panics(accepting: impl Future<Output = ()>, metrics: Arc<Metrics>) {
    let _watch = PanicWatch(metrics);
    accepting.await;
}

struct PanicWatch(Arc<Metrics>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if thread::panicking() {
            error!(
                "a worker thread accepts no more connections, because it panicked; restart Herald"
            );
            self.0.accept_panics.inc();
        }
    }
}

impl<S> Acceptor<S>
where
    S: Service<(Connection, SocketAddr), Response = ()> + 'static,
{
    /// Accepts connections until the server stops.
    async fn accept(self: &Rc<Self>, listener: TcpListener) {
        let mut stops = self.pool.stops.clone();
        let mut stopped = pin!(stops.wait_for(|stops| *stops));
        let mut is_failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                _ = &mut stopped => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((io, address)) => {
                    if mem::take(&mut is_failing) {
                        info!("connections are accepted again");
                    }
                    if let Err(error) = self.serve_or_pass(io, address) {
                        debug!("a connection cannot be passed on: {error}");
                    }
                    if self.pool.limit.is_near() {
                        // Other tasks run before the next connection is accepted: they count this one, and may
                        // end another one to make room.
                        yield_now().await;
                    }
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    if !mem::replace(&mut is_failing, true) {
                        error!(
                            "a worker thread cannot accept connections, and retries every {ACCEPT_PAUSE:?}: {error}"
                        );
                    }
                    if timeout(ACCEPT_PAUSE, &mut stopped).await.is_ok() {
                        return;
                    }
                }
            }
        }
    }

    /// Serves the connections that other threads pass on. After the server has stopped, it still serves those that
    /// were passed on before.
    async fn take_passed(self: &Rc<Self>, mut passed: mpsc::UnboundedReceiver<PassedConnection>) {
        let mut stops = self.pool.stops.clone();
        let mut stopped = pin!(stops.wait_for(|stops| *stops));
        let mut is_over = false;
        loop {
            let next = tokio::select! {
                biased;
                _ = &mut stopped, if !is_over => {
                    is_over = true;
                    passed.close();
                    continue;
                }
                next = passed.recv() => next,
            };
            let Some(PassedConnection { io, address, slot }) = next else { return };
            match TcpStream::from_std(io) {
                Ok(io) => self.serve(Connection { io, slot }, address),
                Err(error) => debug!("a connection that was passed on cannot be used: {error}"),
            }
        }
    }

    /// Serves a new connection here, or passes it on if this thread is overloaded.
    fn serve_or_pass(self: &Rc<Self>, io: TcpStream, address: SocketAddr) -> io::Result<()> {
        let Some(peer) = has_room(&self.pool.peers, &self.open) else {
            self.serve(Connection { io, slot: ConnectionSlot::take(&self.open) }, address);
            return Ok(());
        };
        let passed = PassedConnection {
            io: io.into_std()?,
            address,
            slot: ConnectionSlot::take(&peer.open),
        };
        if let Err(mpsc::error::SendError(PassedConnection { io, .. })) = peer.passed.send(passed) {
            // The other thread has just stopped.
            let io = TcpStream::from_std(io)?;
            self.serve(Connection { io, slot: ConnectionSlot::take(&self.open) }, address);
        }
        Ok(())
    }

    /// Serves a connection in a task of its own, so that a panic ends only this connection.
    fn serve(self: &Rc<Self>, connection: Connection, address: SocketAddr) {
        let acceptor = self.clone();
        actix_rt::spawn(async move {
            // The client has been told of any error.
            if poll_fn(|cx| acceptor.service.poll_ready(cx)).await.is_ok() {
                // In its own memory, because tokio moves a task when it begins and twice when it ends.
                let _ = Box::pin(acceptor.service.call((connection, address))).await;
            }
        });
    }
}

/// Returns whether the connection was closed before it was accepted, which is not a fault of the listener.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        collections::HashMap,
        net::{IpAddr, Ipv4Addr},
        ptr,
        sync::Mutex,
        thread::ThreadId,
    };

    use actix_service::{fn_factory, fn_service};
    use futures_util::future::join_all;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::session::{unfinished::Unfinished, worker::SessionCounter};

    const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    const DEADLINE: Duration = Duration::from_secs(10);

    fn no_limit() -> ConnectionLimit {
        let unfinished = Unfinished::new(1 << 20);
        let sessions = SessionCounter::new(1, unfinished, Metrics::new(0));
        ConnectionLimit::new(None, usize::MAX, 1, sessions)
    }

    type Seen = Arc<Mutex<HashMap<ThreadId, usize>>>;

    /// Starts threads that greet each connection with a byte and end it when a byte comes back. Returns
    /// them, their address, and the number of connections that each thread has served.
    async fn start(threads: usize) -> (Threads, SocketAddr, Seen) {
        let listeners = SocketListeners::open(ANYWHERE, threads).expect("a port");
        let (address, seen) = (listeners.address, Seen::default());
        let noted = seen.clone();
        let make = move |_| {
            let noted = noted.clone();
            fn_service(move |(Connection { mut io, slot }, _): (Connection, SocketAddr)| {
                *noted.lock().expect("no panic").entry(thread::current().id()).or_default() += 1;
                async move {
                    let _slot = slot;
                    io.write_all(b"!").await?;
                    io.read_u8().await.map(drop)
                }
            })
        };
        (Threads::start(listeners, no_limit(), make).await.expect("threads"), address, seen)
    }

    /// A client that has been greeted.
    async fn greeted(address: SocketAddr) -> io::Result<TcpStream> {
        let mut client = TcpStream::connect(address).await?;
        client.read_u8().await?;
        Ok(client)
    }

    /// Waits until no thread listens any more.
    async fn until_deaf(address: SocketAddr) {
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        while !TcpStream::connect(address).await.is_err_and(refused) {}
    }

    #[actix_web::test]
    async fn every_thread_accepts() {
        let (serving, address, seen) = start(3).await;
        let all_are_seen = async {
            while seen.lock().expect("no panic").len() < 3 {
                greeted(address).await.expect("a greeting");
            }
        };
        timeout(DEADLINE, all_are_seen).await.expect("in time");
        drop(serving);
    }

    #[test]
    fn a_thread_with_more_than_its_share_passes_the_next_connection_on() {
        for (case, open, own, expected) in [
            ("nobody has any", vec![0, 0], 0, None),
            ("one, and none", vec![1, 0], 0, Some(1)),
            ("none, and one", vec![1, 0], 1, None),
            ("the idlest of them", vec![9, 5, 4, 7], 0, Some(2)),
            ("a little more", vec![2_600, 2_560], 0, None),
            ("too much more", vec![2_601, 2_560], 0, Some(1)),
            ("alone", vec![5], 0, None),
        ] {
            let (mut peers, _owns): (Vec<_>, Vec<_>) = open.iter().map(|_| thread()).unzip();
            for (peer, open) in peers.iter().zip(open) {
                peer.open.store(open, Relaxed);
            }
            // A thread that has stopped has no connections, but must not be selected.
            let (gone, _) = thread();
            peers.push(gone);
            let found = has_room(&peers, &peers[own].open);
            let found = found.and_then(|found| peers.iter().position(|peer| ptr::eq(peer, found)));
            assert_eq!(found, expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn connections_that_stay_are_spread_evenly() {
        let (serving, address, seen) = start(3).await;
        let clients = join_all((0..30).map(|_| greeted(address))).await;
        assert!(clients.iter().all(Result::is_ok));
        let seen: Vec<_> = seen.lock().expect("no panic").values().copied().collect();
        assert_eq!(seen.iter().sum::<usize>(), 30);
        // Two threads that accept at the same time may not see each other's connection.
        assert!(seen.len() == 3 && seen.iter().all(|served| (8..=12).contains(served)), "{seen:?}");
        drop(serving);
    }

    #[actix_web::test]
    async fn a_thread_that_cannot_serve_is_told_of() {
        for (case, panics, expected) in
            [("refuses", false, "it has no service"), ("panics", true, "it panicked")]
        {
            let listeners = SocketListeners::open(ANYWHERE, 2).expect("a port");
            let nth = Arc::new(AtomicUsize::new(0));
            let make = move |_| {
                let is_last = nth.fetch_add(1, Relaxed) == 1;
                assert!(!(is_last && panics), "on purpose: the service of one thread");
                fn_factory(move || async move {
                    let service = fn_service(async |_: (Connection, SocketAddr)| Ok::<_, ()>(()));
                    if is_last { Err(()) } else { Ok(service) }
                })
            };
            let started = Threads::start(listeners, no_limit(), make).await;
            let fault = started.err().expect("it does not start");
            assert_eq!(fault.to_string(), expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn a_panic_ends_that_connection_alone() {
        let listeners = SocketListeners::open(ANYWHERE, 1).expect("a port");
        let address = listeners.address;
        let make = |_| {
            let nth = Cell::new(0);
            fn_service(move |(Connection { mut io, slot }, _): (Connection, SocketAddr)| {
                assert!(nth.replace(nth.get() + 1) > 0, "on purpose: the first connection");
                async move {
                    let _slot = slot;
                    io.write_all(b"!").await
                }
            })
        };
        let serving = Threads::start(listeners, no_limit(), make).await.expect("threads");
        assert!(greeted(address).await.is_err());
        greeted(address).await.expect("the next is served");
        timeout(DEADLINE, serving.finish()).await.expect("nobody is waited for in vain");
    }

    #[actix_web::test]
    async fn a_panic_while_accepting_is_counted_and_nothing_else_is() {
        let metrics = Metrics::new(0);
        noting_panics(async {}, metrics.clone()).await;
        assert_eq!(metrics.accept_panics.get(), 0);
        let dropped = noting_panics(std::future::pending(), metrics.clone());
        drop(dropped);
        assert_eq!(metrics.accept_panics.get(), 0);
        let panicking = async { panic!("on purpose: accepting") };
        let ended = actix_rt::spawn(noting_panics(panicking, metrics.clone())).await;
        assert!(ended.is_err());
        assert_eq!(metrics.accept_panics.get(), 1);
    }

    #[actix_web::test]
    async fn finishing_accepts_nothing_more_and_waits_for_publications_under_way() {
        let (serving, address, _) = start(2).await;
        let mut client = greeted(address).await.expect("a greeting");
        let finishing = actix_rt::spawn(serving.finish());
        timeout(DEADLINE, until_deaf(address)).await.expect("in time");
        assert!(!finishing.is_finished());
        client.write_all(b"!").await.expect("an open connection");
        timeout(DEADLINE, finishing).await.expect("in time").expect("no panic");
    }

    #[actix_web::test]
    async fn dropping_the_threads_closes_all_connections_and_listeners() {
        let (serving, address, _) = start(2).await;
        let mut client = greeted(address).await.expect("a greeting");
        drop(serving);
        let gone = timeout(DEADLINE, client.read_u8()).await.expect("in time");
        assert!(gone.is_err(), "nobody is there");
        timeout(DEADLINE, until_deaf(address)).await.expect("in time");
    }
}
