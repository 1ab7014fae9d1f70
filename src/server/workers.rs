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
