//! The worker threads: each accepts connections and serves them to their end.
//!
//! A thread that accepts for all others would have to wake one of them for every connection. Without
//! it a join costs a quarter less CPU.

use std::{
    convert::Infallible, future::poll_fn, io, mem, net::SocketAddr, pin::pin, rc::Rc,
    time::Duration,
};

use actix_rt::{Arbiter, ArbiterHandle};
use actix_service::{Service, ServiceFactory};
use log::{error, info};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::listeners::Listeners;

/// How long a thread waits that could not accept a connection, as when no file handle is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The worker threads of a server; they stop when this is dropped.
pub(super) struct Threads {
    arbiters: Vec<ArbiterHandle>,
    stopping: watch::Sender<bool>,
    /// Ends once no thread accepts and no connection is served any more.
    busy: mpsc::Receiver<Infallible>,
}

impl Threads {
    /// Starts a thread for each listener, and makes the service of its connections there. What that
    /// is given turns true when connections that only wait for another request should go.
    ///
    /// # Errors
    /// If a thread cannot be started, or cannot serve.
    pub(super) async fn start<M, F>(listeners: Listeners, make: M) -> io::Result<Self>
    where
        M: Fn(watch::Receiver<bool>) -> F + Clone + Send + 'static,
        F: ServiceFactory<(TcpStream, SocketAddr), Config = (), Response = (), InitError = ()>
            + 'static,
    {
        let (stopping, stops) = watch::channel(false);
        let (at_work, busy) = mpsc::channel(1);
        let mut threads = Self { arbiters: Vec::new(), stopping, busy };
        let mut starting = Vec::new();
        for socket in listeners.sockets {
            let arbiter = Arbiter::try_new()?.handle();
            let (make, stops, at_work) = (make.clone(), stops.clone(), at_work.clone());
            let (started, is_up) = oneshot::channel();
            arbiter.spawn_fn(move || {
                let factory = make(stops.clone());
                actix_rt::spawn(async move {
                    let listener = TcpListener::from_std(socket);
                    let service = factory.new_service(()).await;
                    let service = service.map_err(|()| io::Error::other("it has no service"));
                    match listener.and_then(|listener| Ok((listener, service?))) {
                        Ok((listener, service)) => {
                            let _ = started.send(Ok(()));
                            accept(listener, service, stops, Rc::new(at_work)).await;
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

    /// Accepts nothing more, and waits for every request that is under way.
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

/// Accepts connections and serves each as a task of its own, until the server stops.
async fn accept<S>(
    listener: TcpListener,
    service: S,
    mut stops: watch::Receiver<bool>,
    at_work: Rc<mpsc::Sender<Infallible>>,
) where
    S: Service<(TcpStream, SocketAddr), Response = ()> + 'static,
{
    let service = Rc::new(service);
    let mut stopped = pin!(stops.wait_for(|stops| *stops));
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(connection) => {
                if mem::take(&mut is_failing) {
                    info!("connections are accepted again");
                }
                // As a whole in its task, so that a panic ends this connection alone.
                let (service, at_work) = (service.clone(), at_work.clone());
                actix_rt::spawn(async move {
                    // Whatever ended it, its client has been told.
                    if poll_fn(|cx| service.poll_ready(cx)).await.is_ok() {
                        let _ = service.call(connection).await;
                    }
                    drop(at_work);
                });
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                if !mem::replace(&mut is_failing, true) {
                    error!("cannot accept connections, trying on: {error}");
                }
                if timeout(ACCEPT_PAUSE, &mut stopped).await.is_ok() {
                    return;
                }
            }
        }
    }
}

/// Whether it is only this connection's fault: it was gone before it was accepted.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        collections::HashSet,
        net::{IpAddr, Ipv4Addr},
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        thread::{self, ThreadId},
    };

    use actix_service::{fn_factory, fn_service};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    const DEADLINE: Duration = Duration::from_secs(10);

    type Seen = Arc<Mutex<HashSet<ThreadId>>>;

    /// Threads that greet each connection with a byte and are through with it when one comes back,
    /// and which of them were seen to do so.
    async fn start(threads: usize) -> (Threads, SocketAddr, Seen) {
        let listeners = Listeners::open(ANYWHERE, threads).expect("a port");
        let (address, seen) = (listeners.address, Seen::default());
        let noted = seen.clone();
        let make = move |_| {
            let noted = noted.clone();
            fn_service(move |(mut io, _): (TcpStream, SocketAddr)| {
                noted.lock().expect("no panic").insert(thread::current().id());
                async move {
                    io.write_all(b"!").await?;
                    io.read_u8().await.map(drop)
                }
            })
        };
        (Threads::start(listeners, make).await.expect("threads"), address, seen)
    }

    /// A client that has been greeted.
    async fn greeted(address: SocketAddr) -> io::Result<TcpStream> {
        let mut client = TcpStream::connect(address).await?;
        client.read_u8().await?;
        Ok(client)
    }

    /// Until no thread listens any more.
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

    #[actix_web::test]
    async fn a_thread_that_cannot_serve_is_told_of() {
        for (case, panics, expected) in
            [("refuses", false, "it has no service"), ("panics", true, "it panicked")]
        {
            let listeners = Listeners::open(ANYWHERE, 2).expect("a port");
            let nth = Arc::new(AtomicUsize::new(0));
            let make = move |_| {
                let is_last = nth.fetch_add(1, Relaxed) == 1;
                assert!(!(is_last && panics), "on purpose: the service of one thread");
                fn_factory(move || async move {
                    let service = fn_service(async |_: (TcpStream, SocketAddr)| Ok::<_, ()>(()));
                    if is_last { Err(()) } else { Ok(service) }
                })
            };
            let started = Threads::start(listeners, make).await;
            let fault = started.err().expect("it does not start");
            assert_eq!(fault.to_string(), expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn a_panic_ends_that_connection_alone() {
        let listeners = Listeners::open(ANYWHERE, 1).expect("a port");
        let address = listeners.address;
        let make = |_| {
            let nth = Cell::new(0);
            fn_service(move |(mut io, _): (TcpStream, SocketAddr)| {
                assert!(nth.replace(nth.get() + 1) > 0, "on purpose: the first connection");
                async move { io.write_all(b"!").await }
            })
        };
        let serving = Threads::start(listeners, make).await.expect("threads");
        assert!(greeted(address).await.is_err());
        greeted(address).await.expect("the next is served");
        timeout(DEADLINE, serving.finish()).await.expect("nobody is waited for in vain");
    }

    #[actix_web::test]
    async fn who_finishes_accepts_nothing_more_and_waits_for_what_is_under_way() {
        let (serving, address, _) = start(2).await;
        let mut client = greeted(address).await.expect("a greeting");
        let finishing = actix_rt::spawn(serving.finish());
        timeout(DEADLINE, until_deaf(address)).await.expect("in time");
        assert!(!finishing.is_finished());
        client.write_all(b"!").await.expect("an open connection");
        timeout(DEADLINE, finishing).await.expect("in time").expect("no panic");
    }

    #[actix_web::test]
    async fn who_is_dropped_lets_go_of_everything() {
        let (serving, address, _) = start(2).await;
        let mut client = greeted(address).await.expect("a greeting");
        drop(serving);
        let gone = timeout(DEADLINE, client.read_u8()).await.expect("in time");
        assert!(gone.is_err(), "nobody is there");
        timeout(DEADLINE, until_deaf(address)).await.expect("in time");
    }
}
