//! Writing: from the session's frames to the socket, and the clock of a connection.
//!
//! The pump is the task of a WebSocket. It polls the actor only while nothing waits to be written,
//! so a client that does not read stops being served and its mailbox fills: that is the outbox.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use actix_codec::{AsyncRead, AsyncWrite, ReadBuf};
use bytes::{Buf, Bytes};
use futures_util::Stream;
use log::warn;
use tokio::time::Sleep;

use crate::broker::subscriber::{Ending, Outbox};

use super::{frames::Socket, worker::Worker};

/// Chunks written before other tasks of the thread get a turn.
const CHUNKS_PER_POLL: usize = 16;

/// How long a client may take to hang up after the close frame.
const LINGER: Duration = Duration::from_secs(2);

/// What a socket needs beyond reading and writing.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Keeps the kernel from hoarding what this client does not read.
    fn tune(&self);
    /// Makes the next close a reset: the client is not there to hear anything else.
    fn give_up(&self);
}

/// Unsent bytes the kernel keeps per socket; without a bound it holds some 4 MB for a stuck client.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

impl Transport for tokio::net::TcpStream {
    fn tune(&self) {
        let socket = socket2::SockRef::from(self);
        // Both only cost efficiency where a platform refuses them.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
    }

    fn give_up(&self) {
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

/// Drives one WebSocket until it is closed.
pub(super) struct Pump<T, B> {
    socket: Rc<Socket<T>>,
    worker: Rc<Worker>,
    outbox: Arc<Outbox>,
    /// The actor's outgoing bytes; `None` once it has stopped.
    body: Option<Pin<Box<B>>>,
    chunk: Bytes,
    /// Since when the chunk makes no progress.
    stuck_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    /// Until when the client may hang up by itself.
    linger_until: Option<Instant>,
}

/// Why writing pauses.
enum Paused {
    /// There is nothing to write.
    Drained,
    /// The socket takes no more.
    Stuck,
    /// Others shall have a turn.
    Turn,
    /// All is written and the actor has stopped.
    Finished,
    /// The socket is broken.
    Broken,
}

impl<T, B, E> Pump<T, B>
where
    T: Transport,
    B: Stream<Item = Result<Bytes, E>>,
{
    pub(super) fn new(
        socket: Rc<Socket<T>>,
        worker: Rc<Worker>,
        outbox: Arc<Outbox>,
        body: B,
    ) -> Self {
        let timer = Box::pin(tokio::time::sleep(worker.limits.idle_timeout));
        let body = Some(Box::pin(body));
        let (chunk, stuck_since, linger_until) = (Bytes::new(), None, None);
        Self { socket, worker, outbox, body, chunk, stuck_since, timer, linger_until }
    }

    /// Writes until something is in the way.
    fn write(&mut self, cx: &mut Context<'_>) -> Paused {
        for _ in 0..CHUNKS_PER_POLL {
            if self.chunk.is_empty() {
                let Some(body) = &mut self.body else { return Paused::Finished };
                match body.as_mut().poll_next(cx) {
                    Poll::Ready(Some(Ok(chunk))) => self.chunk = chunk,
                    Poll::Ready(_) => {
                        self.body = None;
                        return Paused::Finished;
                    }
                    Poll::Pending => return Paused::Drained,
                }
            }
            while !self.chunk.is_empty() {
                let mut io = self.socket.io.borrow_mut();
                match Pin::new(&mut *io).poll_write(cx, &self.chunk) {
                    Poll::Ready(Ok(0) | Err(_)) => return Paused::Broken,
                    Poll::Ready(Ok(written)) => {
                        self.chunk.advance(written);
                        self.stuck_since = None;
                    }
                    Poll::Pending => return Paused::Stuck,
                }
            }
            // A session that idles should not keep its last frame.
            self.chunk = Bytes::new();
        }
        Paused::Turn
    }

    /// The client does not take what it is sent: drop it without ceremony.
    fn drop_slow(&mut self, why: &str) {
        warn!("session {} is dropped: {why}", self.outbox.session().0);
        self.socket.io.borrow().give_up();
    }

    /// Sees to the deadlines; `false` if the connection is to be dropped. A session that is to end
    /// is not waited for as long as one that may go on.
    fn on_time(&mut self, stuck: bool, ending: Option<Ending>, cx: &mut Context<'_>) -> bool {
        let now = Instant::now();
        let limits = self.worker.limits;
        let deadline = if stuck {
            let patience =
                ending.map_or(limits.write_timeout, |_| LINGER.min(limits.write_timeout));
            *self.stuck_since.get_or_insert(now) + patience
        } else {
            self.socket.heard.get() + limits.idle_timeout
        };
        if deadline <= now {
            if stuck {
                self.drop_slow("a write made no progress");
                return false;
            }
            self.outbox.end(Ending::Idle);
            // What is left is the actor's close frame; should it not come, this asks again.
            self.timer.as_mut().reset((now + LINGER).into());
        } else {
            self.timer.as_mut().reset(deadline.into());
        }
        // Being woken too early is harmless; being woken never is not.
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        true
    }

    /// Hangs up: no more from us, then whatever the client still sends is read away, for closing
    /// with unread bytes would be a reset that overtakes the close frame.
    fn poll_hang_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let mut io = self.socket.io.borrow_mut();
        let until = match self.linger_until {
            Some(until) => until,
            None => {
                ready!(Pin::new(&mut *io).poll_shutdown(cx)).ok();
                let until = now + LINGER;
                self.timer.as_mut().reset(until.into());
                *self.linger_until.insert(until)
            }
        };
        let mut scratch = self.worker.scratch.borrow_mut();
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && Instant::now() < until => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.timer.as_mut().poll(cx),
            }
        }
    }
}

impl<T, B, E> Future for Pump<T, B>
where
    T: Transport,
    B: Stream<Item = Result<Bytes, E>>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.linger_until.is_none() {
            let paused = this.write(cx);
            let ending = this.outbox.ending(cx.waker());
            match paused {
                Paused::Broken => return Poll::Ready(()),
                Paused::Finished => {}
                Paused::Turn => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Paused::Stuck if ending == Some(Ending::SlowConsumer) => {
                    this.drop_slow("its outbox is full");
                    return Poll::Ready(());
                }
                Paused::Stuck | Paused::Drained => {
                    let stuck = matches!(paused, Paused::Stuck);
                    return if this.on_time(stuck, ending, cx) {
                        Poll::Pending
                    } else {
                        Poll::Ready(())
                    };
                }
            }
        }
        this.poll_hang_up(cx)
    }
}
