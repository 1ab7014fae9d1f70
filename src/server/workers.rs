//! The worker threads: each accepts connections and serves them to their end.
//!
//! A thread that accepts for all others would have to wake one of them for every connection. Without
//! it a join costs a quarter less CPU.

use std::{
    convert::Infallible, future::poll_fn, io, net::SocketAddr, pin::pin, rc::Rc, time::Duration,
};

use actix_rt::{Arbiter, ArbiterHandle};
use actix_service::{Service, ServiceFactory};
use log::{error, info};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::sleep,
};

use super::listeners::Listeners;

/// How long a thread waits that could not accept a connection, as when no file handle is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The worker threads of a server; they stop when this is dropped.
pub(super) struct Workers {
    threads: Vec<ArbiterHandle>,
    stopping: watch::Sender<bool>,
    /// Ends once no thread accepts and no connection is served any more.
    busy: mpsc::Receiver<Infallible>,
}

impl Workers {
    /// Starts a thread for each listener, and makes the service of its connections there. What that
    /// is given turns true when connections that only wait for another request should go.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn start<M, F>(listeners: Listeners, make: M) -> io::Result<Self>
    where
        M: Fn(watch::Receiver<bool>) -> F + Clone + Send + 'static,
        F: ServiceFactory<(TcpStream, SocketAddr), Config = (), Response = (), InitError = ()>
            + 'static,
    {
        let (stopping, stops) = watch::channel(false);
        let (at_work, busy) = mpsc::channel(1);
        let mut workers = Self { threads: Vec::new(), stopping, busy };
        for socket in listeners.sockets {
            let thread = Arbiter::try_new()?.handle();
            let (make, stops, at_work) = (make.clone(), stops.clone(), at_work.clone());
            thread.spawn_fn(move || {
                let factory = make(stops.clone());
                actix_rt::spawn(async move {
                    let listener = TcpListener::from_std(socket);
                    match (listener, factory.new_service(()).await) {
                        (Ok(listener), Ok(service)) => {
                            accept(listener, service, stops, Rc::new(at_work)).await;
                        }
                        _ => error!("a worker thread cannot serve"),
                    }
                });
            });
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Accepts nothing more, and waits for every request that is under way.
    pub(super) async fn finish(mut self) {
        self.stopping.send_replace(true);
        self.busy.recv().await;
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.stop();
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
    S: Service<(TcpStream, SocketAddr), Response = ()>,
    S::Future: 'static,
{
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
                if std::mem::take(&mut is_failing) {
                    info!("connections are accepted again");
                }
                if poll_fn(|cx| service.poll_ready(cx)).await.is_err() {
                    error!("a worker thread cannot serve any more");
                    return;
                }
                let (serving, at_work) = (service.call(connection), at_work.clone());
                actix_rt::spawn(async move {
                    // Whatever ended it, its client has been told.
                    let _ = serving.await;
                    drop(at_work);
                });
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    error!("cannot accept connections, trying on: {error}");
                }
                sleep(ACCEPT_PAUSE).await;
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
        collections::HashSet,
        net::{IpAddr, Ipv4Addr},
        sync::{Arc, Mutex},
        thread::{self, ThreadId},
    };

    use actix_service::fn_service;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;

    const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    const DEADLINE: Duration = Duration::from_secs(10);

    type Seen = Arc<Mutex<HashSet<ThreadId>>>;

    /// Threads that greet each connection with a byte and are through with it when one comes back,
    /// and which of them were seen to do so.
    fn start(threads: usize) -> (Workers, SocketAddr, Seen) {
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
        (Workers::start(listeners, make).expect("threads"), address, seen)
    }

    /// A client that has been greeted.
    async fn greeted(address: SocketAddr) -> io::Result<TcpStream> {
        let mut client = TcpStream::connect(address).await?;
        client.read_u8().await?;
        Ok(client)
    }

    #[actix_web::test]
    async fn every_thread_accepts() {
        let (workers, address, seen) = start(3);
        let all_are_seen = async {
            while seen.lock().expect("no panic").len() < 3 {
                greeted(address).await.expect("a greeting");
            }
        };
        timeout(DEADLINE, all_are_seen).await.expect("in time");
        drop(workers);
    }

    #[actix_web::test]
    async fn who_finishes_accepts_nothing_more_and_waits_for_what_is_under_way() {
        let (workers, address, _) = start(2);
        let mut client = greeted(address).await.expect("a greeting");
        let finishing = actix_rt::spawn(workers.finish());
        let refused = async { while greeted(address).await.is_ok() {} };
        timeout(DEADLINE, refused).await.expect("in time");
        assert!(!finishing.is_finished());
        client.write_all(b"!").await.expect("an open connection");
        timeout(DEADLINE, finishing).await.expect("in time").expect("no panic");
    }

    #[actix_web::test]
    async fn who_is_dropped_lets_go_of_everything() {
        let (workers, address, _) = start(2);
        let mut client = greeted(address).await.expect("a greeting");
        drop(workers);
        let gone = timeout(DEADLINE, client.read_u8()).await.expect("in time");
        assert!(gone.is_err(), "nobody is there");
        let refused = async { while greeted(address).await.is_ok() {} };
        timeout(DEADLINE, refused).await.expect("in time");
    }
}
