//! The HTTP side of a connection, up to the moment it becomes a session or ends.
//!
//! Only this room sees actix-http; the composition root hands in an actix-web app and gets a
//! service for its listener.

use std::{
    future::Future,
    io, mem,
    net::{SocketAddr, TcpListener},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use actix_codec::{AsyncRead, AsyncWrite, Framed, ReadBuf};
use actix_http::{HttpService, Request, h1};
use actix_service::{
    IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt as _, apply_fn_factory,
    fn_service, map_config,
};
use actix_web::{
    body::MessageBody,
    dev::{AppConfig, ServiceResponse},
};
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};

use super::{
    Conversation,
    connection::Connection,
    path,
    upgrade::{self, Doorkeeper},
    worker::Worker,
};
use crate::metrics::{Metrics, labels::Limit};

/// How long a connection without a request is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How the HTTP server says that a request head took too long. It tells nobody but the client, so
/// what it writes is what can be counted; no answer of ours begins like this.
const REQUEST_TIMEOUT: &[u8] = b"HTTP/1.1 408";

/// Unsent bytes the kernel keeps per socket; without a bound it holds some 4 MB for a stuck client.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Sets what every connection is to have, on the listener that hands it down: that answers are sent
/// at once, and that the kernel does not hoard what a client does not read.
///
/// Set on each connection it took two system calls, and the second woke its task for nothing.
pub fn tune(listener: &TcpListener) {
    let socket = socket2::SockRef::from(listener);
    // Both only cost efficiency where a platform refuses them.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
}

/// How a listener treats its connections.
pub struct Listener<C> {
    /// What the sessions of this thread share.
    pub worker: Rc<Worker>,
    /// Who decides which upgrades become sessions.
    pub doorkeeper: Doorkeeper<C>,
    /// How long the first request head may take.
    pub handshake_timeout: Duration,
    /// How long half a request may make no progress.
    pub idle_timeout: Duration,
    /// Turns true when connections that only wait for another request should go.
    pub stops: watch::Receiver<bool>,
}

impl<C: Conversation + Unpin> Listener<C> {
    /// The service for one worker thread's connections: HTTP/1.1 requests go to `app`, upgrades
    /// become sessions.
    pub fn service<F, S, B>(
        self,
        app: F,
    ) -> impl ServiceFactory<(Connection, SocketAddr), Config = (), Response = (), InitError = ()>
    where
        F: IntoServiceFactory<S, Request>,
        S: ServiceFactory<
                Request,
                Config = AppConfig,
                Response = ServiceResponse<B>,
                Error = actix_web::Error,
                InitError = (),
            > + 'static,
        S::Service: 'static,
        <S::Service as Service<Request>>::Future: 'static,
        B: MessageBody + 'static,
    {
        let Self { worker, doorkeeper, handshake_timeout, idle_timeout, stops } = self;
        let metrics = worker.metrics.clone();
        let upgrade =
            move |(mut request, framed): (Request, Framed<IdleGuard<Connection>, h1::Codec>)| {
                path::drop_empty_segments(request.uri_mut());
                upgrade::serve(request, framed, worker.clone(), doorkeeper.clone())
            };
        let app = apply_fn_factory(app, path::without_empty_segments);
        let http = HttpService::build()
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(handshake_timeout)
            .client_disconnect_timeout(Duration::from_secs(1))
            .h1_allow_half_closed(false)
            .graceful_shutdown_signal(move || {
                let mut stops = stops.clone();
                async move { stops.wait_for(|stops| *stops).await.map_or((), drop) }
            })
            .upgrade(upgrade)
            .h1(map_config(app, |()| AppConfig::default()));
        fn_service(move |(io, peer): (Connection, SocketAddr)| {
            let guard = IdleGuard::new(io, idle_timeout, metrics.clone());
            std::future::ready(Ok((guard, Some(peer))))
        })
        .and_then(http)
    }
}

/// A stream that fails once it has been idle for too long, or one request takes too long to come.
///
/// The HTTP server's own timeouts cover the first request head and the pause between requests; half
/// of a second head, or half a body, would stay open forever, and one that trickles as well.
pub(super) struct IdleGuard<T> {
    io: T,
    idle_max: Duration,
    /// Whether a request is coming in: there was a read since the last write.
    is_reading: bool,
    deadline: Pin<Box<Sleep>>,
    is_late: bool,
    metrics: Arc<Metrics>,
}

impl<T> IdleGuard<T> {
    pub(super) fn new(io: T, idle_max: Duration, metrics: Arc<Metrics>) -> Self {
        let deadline = Box::pin(tokio::time::sleep(idle_max));
        Self { io, idle_max, is_reading: false, deadline, is_late: false, metrics }
    }

    /// The stream itself, unguarded: a session has a clock of its own.
    pub(super) fn into_inner(self) -> T {
        self.io
    }

    /// Passes on what came in. Reading puts the deadline off only once: a request has as long for
    /// all of itself as silence has.
    fn watch_read(
        &mut self,
        done: Poll<io::Result<()>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if done.is_ready() && !self.is_reading {
            self.is_reading = true;
            self.put_off();
            return done;
        }
        self.watch(done, cx)
    }

    /// Passes on what went out; whoever takes an answer may send its next request.
    fn watch_write<R>(
        &mut self,
        done: Poll<io::Result<R>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<R>> {
        if done.is_ready() {
            self.is_reading = false;
            self.put_off();
            return done;
        }
        self.watch(done, cx)
    }

    fn put_off(&mut self) {
        self.deadline.as_mut().reset(Instant::now() + self.idle_max);
    }

    fn watch<R>(&mut self, done: Poll<io::Result<R>>, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        if self.deadline.as_mut().poll(cx).is_pending() {
            return done;
        }
        if !mem::replace(&mut self.is_late, true) {
            self.metrics.hit(Limit::Idle);
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for IdleGuard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.watch_read(done, cx)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for IdleGuard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.starts_with(REQUEST_TIMEOUT) {
            self.metrics.hit(Limit::Handshake);
        }
        let done = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch_write(done, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(done, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_shutdown(cx);
        self.watch_write(done, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::timeout,
    };

    use super::*;

    const IDLE_MAX: Duration = Duration::from_millis(100);
    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn a_connection_has_what_its_listener_was_given() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        tune(&listener);
        let address = listener.local_addr().expect("an address");
        let _client = std::net::TcpStream::connect(address).expect("a connection");
        let (accepted, _) = listener.accept().expect("a connection");
        let accepted = socket2::SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().expect("an answer"));
        assert_eq!(accepted.tcp_notsent_lowat().expect("an answer"), UNSENT_BYTES_MAX);
    }

    fn guarded(pipe_bytes: usize) -> (DuplexStream, IdleGuard<DuplexStream>) {
        let (near, far) = duplex(pipe_bytes);
        (near, IdleGuard::new(far, IDLE_MAX, Metrics::new(0)))
    }

    #[tokio::test]
    async fn a_stream_that_stands_still_fails() {
        let began = Instant::now();
        let (_near, mut guard) = guarded(1);
        let read = timeout(DEADLINE, guard.read_u8()).await.expect("an end in time");
        assert_eq!(read.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert!(began.elapsed() >= IDLE_MAX);

        let (_near, mut guard) = guarded(1);
        let written = timeout(DEADLINE, guard.write_all(b"two")).await.expect("an end in time");
        assert_eq!(written.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
    }

    /// Sends a byte every so often, until the other side has had enough.
    async fn trickle(near: &mut DuplexStream) {
        let mut pace = tokio::time::interval(IDLE_MAX / 4);
        loop {
            pace.tick().await;
            if near.write_u8(0).await.is_err() {
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_request_that_trickles_has_as_long_as_silence_has() {
        let (mut near, mut guard) = guarded(1);
        let began = Instant::now();
        let reading = async {
            loop {
                if let Err(error) = guard.read_u8().await {
                    return error.kind();
                }
            }
        };
        let ended = timeout(DEADLINE, async {
            tokio::select! {
                kind = reading => Some(kind),
                () = trickle(&mut near) => None,
            }
        });
        assert_eq!(ended.await.expect("an end in time"), Some(io::ErrorKind::TimedOut));
        assert!(began.elapsed() >= IDLE_MAX);
    }

    #[tokio::test]
    async fn whoever_is_answered_may_take_its_time_again() {
        let (mut near, mut guard) = guarded(1);
        let began = Instant::now();
        let mut pace = tokio::time::interval(IDLE_MAX / 4);
        let serving = async {
            for n in 0..8 {
                assert_eq!(guard.read_u8().await.expect("it goes on"), n);
                guard.write_u8(n).await.expect("it goes on");
            }
        };
        let asking = async {
            for n in 0..8 {
                pace.tick().await;
                near.write_u8(n).await.expect("it is read");
                assert_eq!(near.read_u8().await.expect("an answer"), n);
            }
        };
        timeout(DEADLINE, async { tokio::join!(serving, asking) }).await.expect("in time");
        assert!(began.elapsed() > IDLE_MAX, "longer than one request may take");
    }
}
