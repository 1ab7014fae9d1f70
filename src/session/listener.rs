//! The HTTP side of a connection, up to the moment it becomes a session or ends.
//!
//! Only this room sees actix-http; the composition root hands in an actix-web app and gets a
//! service for its listener.

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_codec::{AsyncRead, AsyncWrite, Framed, ReadBuf};
use actix_http::{HttpService, Request, h1};
use actix_server::GracefulShutdownSignal;
use actix_service::{
    IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt as _, fn_service, map_config,
};
use actix_web::{
    body::MessageBody,
    dev::{AppConfig, ServiceResponse},
};
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::{
    Conversation,
    upgrade::{self, Doorkeeper},
    worker::Worker,
};

/// How long a connection without a request is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

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
    /// Told when connections that only wait for another request should go.
    pub shutdown: GracefulShutdownSignal,
}

impl<C: Conversation + Unpin> Listener<C> {
    /// The service for one worker thread's connections: HTTP/1.1 requests go to `app`, upgrades
    /// become sessions.
    pub fn service<F, S, B>(
        self,
        app: F,
    ) -> impl ServiceFactory<TcpStream, Config = (), Response = (), InitError = ()>
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
        let Self { worker, doorkeeper, handshake_timeout, idle_timeout, shutdown } = self;
        let upgrade =
            move |(request, framed): (Request, Framed<IdleGuard<TcpStream>, h1::Codec>)| {
                upgrade::serve(request, framed, worker.clone(), doorkeeper.clone())
            };
        let http = HttpService::build()
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(handshake_timeout)
            .client_disconnect_timeout(Duration::from_secs(1))
            .h1_allow_half_closed(false)
            .graceful_shutdown_signal(move || {
                let shutdown = shutdown.clone();
                async move { shutdown.notified().await }
            })
            .upgrade(upgrade)
            .h1(map_config(app, |()| AppConfig::default()));
        fn_service(move |io: TcpStream| {
            let peer = io.peer_addr().ok();
            std::future::ready(Ok((IdleGuard::new(io, idle_timeout), peer)))
        })
        .and_then(http)
    }
}

/// A stream that fails once it has been idle for too long.
///
/// The HTTP server's own timeouts cover the first request head and the pause between requests; half
/// of a second head, or half a body, would stay open forever.
pub(super) struct IdleGuard<T> {
    io: T,
    idle_max: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl<T> IdleGuard<T> {
    pub(super) fn new(io: T, idle_max: Duration) -> Self {
        Self { io, idle_max, deadline: Box::pin(tokio::time::sleep(idle_max)) }
    }

    /// The stream itself, unguarded: a session has a clock of its own.
    pub(super) fn into_inner(self) -> T {
        self.io
    }

    /// Passes on what the stream did; a stream that does nothing until the deadline fails.
    fn watch<R>(&mut self, done: Poll<io::Result<R>>, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        if done.is_ready() {
            self.deadline.as_mut().reset(Instant::now() + self.idle_max);
            return done;
        }
        ready!(self.deadline.as_mut().poll(cx));
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
        self.watch(done, cx)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for IdleGuard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch(done, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(done, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_shutdown(cx);
        self.watch(done, cx)
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

    fn guarded(pipe_bytes: usize) -> (DuplexStream, IdleGuard<DuplexStream>) {
        let (near, far) = duplex(pipe_bytes);
        (near, IdleGuard::new(far, IDLE_MAX))
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

    #[tokio::test]
    async fn every_step_counts_from_anew() {
        let (mut near, mut guard) = guarded(1);
        let began = Instant::now();
        let mut pace = tokio::time::interval(IDLE_MAX / 4);
        let reading = async {
            for n in 0..8 {
                assert_eq!(guard.read_u8().await.expect("it goes on"), n);
            }
        };
        let writing = async {
            for n in 0..8 {
                pace.tick().await;
                near.write_u8(n).await.expect("it is read");
            }
        };
        timeout(DEADLINE, async { tokio::join!(reading, writing) }).await.expect("in time");
        assert!(began.elapsed() > IDLE_MAX, "longer than it may stand still");
    }
}
