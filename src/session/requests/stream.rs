//! The stream between a socket and actix-http.

use std::{
    future::{Future, poll_fn},
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_codec::{AsyncRead, AsyncWrite, ReadBuf};
use bytes::BytesMut;
use log::debug;
use tokio::time::{Instant, Sleep};

use super::{
    READ_AHEAD_BYTES_MAX,
    chunks::Chunks,
    eviction::HeldWork,
    farewells::{BAD_REQUEST, LONG_TARGET, TIMEOUT, TOO_LARGE, UNAVAILABLE},
    head::{self, Follows, HEAD_BYTES_MAX, HeadFault, HeadProgress},
    rules::{ConnectionRules, Wait},
    turn::Turn,
    unread::UnreadBytes,
    waiting::{LeavingConnection, QueuePlace},
    work_queue::{Ticket, Work},
};
use crate::{metrics::labels::Limit, session::connection::ConnectionSlot};

/// The most bytes that are read at once.
const READ_BYTES_MAX: usize = 8 * 1024;

/// The most bytes of a body that are handed over before other connections of the thread run. Without this,
/// the HTTP server reads up to 128 KB ahead of the reader of the body.
pub(super) const TURN_BYTES_MAX: usize = 8 * 1024;

/// The size of the first read of a request. Most requests are smaller, and an unauthenticated
/// client may send thousands of them in a row.
pub(super) const FIRST_READ_BYTES_MAX: usize = 1024;

/// The most connections of a thread whose clients do not read an answer, or have yet to close after the last
/// one. Each of them keeps buffers.
pub(super) const STUCK_MAX: usize = 512;

/// A head of at least this size counts as unfinished work for as long as its request is served. Smaller
/// ones cost about as much as the connection itself.
const LARGE_HEAD_BYTES: usize = 4 * 1024;

/// The state of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// A head is awaited, or has come in part.
    Head,
    /// This many bytes of a body are still to come.
    Length(u64),
    /// The rest of a body in chunks is still to come.
    Chunks(Chunks),
    /// The request has been read; its answer has not been written.
    Answer,
    /// The connection is taken over by another protocol.
    Tunnel,
    /// Nothing more is handed over, because the body is malformed. actix-http detects that as well.
    Broken,
    /// The end of the stream.
    Over,
}

/// A client's connection as actix-http sees it: one request at a time, each within its deadline.
pub(in crate::session) struct HttpStream<T> {
    io: T,
    peer: Option<SocketAddr>,
    rules: Rc<ConnectionRules>,
    /// The bytes that were read and not handed over, [`HEAD_BYTES_MAX`] at most.
    buffer: UnreadBytes,
    /// The number of buffered bytes that may be handed over.
    released: usize,
    /// The state of the head with which the buffer begins.
    progress: HeadProgress,
    /// The bytes that may be handed over before other connections run.
    turn_left_bytes: usize,
    /// Bytes of the head whose request is being served, if it is large.
    head_bytes: usize,
    /// The bytes that are held for the connection, counted among the unfinished work of all
    /// clients.
    held: Option<Box<HeldWork>>,
    phase: Phase,
    turn: Turn,
    /// Whether the client sends no more.
    is_eof: bool,
    /// Whether the socket wakes this task when more bytes arrive.
    is_listening: bool,
    wait: Option<Wait>,
    deadline: Pin<Box<Sleep>>,
    /// The connection's place among those that may give way, for as long as it has a deadline.
    place: QueuePlace,
    /// The connection's place among those whose clients take nothing of an answer, or have yet to close.
    stuck: QueuePlace,
    /// The request that has to pass the work queue before it is handed over.
    work: Option<Work>,
    ticket: Option<Box<Ticket>>,
    /// Whether the next request was sent before the last answer had been written.
    is_sent_ahead: bool,
    /// Whether the connection ends with the answer to its present request, because it was told to give way
    /// before it had all of that request's head.
    is_last: bool,
    /// The place among the plain connections of all threads.
    counted: ConnectionSlot,
    /// The place among the connections of this thread.
    slot: ConnectionSlot,
    /// The answer that is still to be sent before the connection is closed.
    farewell: &'static [u8],
    is_shut_down: bool,
    /// Whether the client may have sent bytes that were not read, so that the connection lingers.
    lingers: bool,
}

impl<T> HttpStream<T> {
    pub(in crate::session) fn new(
        io: T,
        slot: ConnectionSlot,
        peer: Option<SocketAddr>,
        rules: Rc<ConnectionRules>,
    ) -> Self {
        let deadline = Box::pin(tokio::time::sleep(rules.handshake_timeout));
        let counted = rules.limit.count();
        let has_room = !rules.limit.is_exceeded() || {
            rules.metrics.hit(Limit::HttpConnections);
            rules.waiting.make_room()
        };
        let waiting = rules.waiting.clone();
        let mut stream = Self {
            io,
            peer,
            place: QueuePlace::new(waiting.clone()),
            stuck: QueuePlace::new(rules.stuck.clone()),
            work: None,
            ticket: None,
            is_sent_ahead: false,
            is_last: false,
            counted,
            slot,
            rules,
            buffer: UnreadBytes::default(),
            released: 0,
            progress: HeadProgress::default(),
            turn_left_bytes: TURN_BYTES_MAX,
            head_bytes: 0,
            held: None,
            phase: Phase::Head,
            turn: Turn::new(waiting),
            is_eof: false,
            is_listening: false,
            wait: Some(Wait::First),
            deadline,
            farewell: b"",
            is_shut_down: false,
            lingers: false,
        };
        match has_room {
            true => stream.enter(),
            // No other connection of this thread waits for its client, so none can end instead.
            false => stream.end(UNAVAILABLE),
        }
        stream
    }

    /// The state that this connection shares with the answers on it.
    pub(in crate::session) fn turn(&self) -> Turn {
        self.turn.clone()
    }

    /// The socket, the bytes that were read after the head of an upgrade, and the counts of the connection, which
    /// the caller keeps until the connection is a session or closed.
    pub(in crate::session) fn into_parts(self) -> (T, BytesMut, LeavingConnection) {
        let leaving = LeavingConnection::new(self.counted, self.slot, self.place, self.turn);
        (self.io, self.buffer.into_bytes(), leaving)
    }

    fn set_wait(&mut self, wait: Wait) {
        let time = self.rules.time_for(wait);
        if wait == Wait::Next {
            // The connection has just served its client, so others have waited longer.
            self.place.leave();
        }
        if matches!(wait, Wait::Write | Wait::Close) {
            if self.rules.stuck.len() >= STUCK_MAX {
                self.rules.metrics.hit(Limit::HttpConnections);
                self.rules.stuck.make_room();
            }
            self.stuck.enter(&self.turn);
        }
        self.enter();
        self.wait = Some(wait);
        self.deadline.as_mut().reset(Instant::now() + time);
    }

    /// Takes a place among the connections that wait for their clients. If all places are taken, the one that
    /// has waited longest ends, because each keeps buffers.
    fn enter(&mut self) {
        if !self.place.is_taken() && self.rules.waiting.len() >= self.rules.waiting_max {
            self.rules.metrics.hit(Limit::HttpWaiting);
            self.rules.waiting.make_room();
        }
        self.place.enter(&self.turn);
    }

    fn stop_waiting(&mut self) {
        self.place.leave();
        self.stuck.leave();
        self.wait = None;
    }

    /// Examines the read bytes. Returns `true` if the phase or the number of released bytes has changed.
    fn scan(&mut self, cx: &Context<'_>) -> bool {
        if self.buffer.is_empty() {
            return false;
        }
        match &mut self.phase {
            Phase::Head => return self.scan_head(cx),
            Phase::Length(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX);
                self.released = length.min(self.buffer.len());
                *left -= self.released as u64;
                if *left == 0 {
                    self.await_answer();
                }
            }
            Phase::Chunks(chunks) => match chunks.take(&self.buffer) {
                Some(taken) => {
                    self.released = taken;
                    if chunks.is_over() {
                        self.await_answer();
                    }
                }
                None => {
                    self.released = self.buffer.len();
                    self.phase = Phase::Broken;
                    self.note("a chunk is malformed");
                }
            },
            Phase::Answer | Phase::Tunnel | Phase::Broken | Phase::Over => return false,
        }
        true
    }

    fn scan_head(&mut self, cx: &Context<'_>) -> bool {
        let blank = self.buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        // An empty line in front of a request is skipped, so it is not kept.
        self.buffer.advance(blank);
        if !self.progress.is_worth_reading(&self.buffer) {
            return false;
        }
        match head::read(&mut self.buffer, &*self.rules.is_socket) {
            Ok(None) => return false,
            Ok(Some(head)) => {
                if head.length >= LARGE_HEAD_BYTES {
                    // `give_way` can answer the client only in this phase.
                    if !self.hold(self.buffer.allocated_bytes(), cx) {
                        self.give_way();
                        return true;
                    }
                    self.head_bytes = head.length;
                }
                self.released = head.length;
                // A head is handed over as a whole.
                self.turn_left_bytes += head.length;
                self.progress = HeadProgress::default();
                self.work = match self.turn.ask() {
                    true => None,
                    false if self.is_sent_ahead => Some(Work::RequestAhead),
                    false => Some(Work::Request),
                };
                match head.follows {
                    Follows::Nothing => self.await_answer(),
                    Follows::Length(length) => self.await_body(Phase::Length(length)),
                    Follows::Chunks => self.await_body(Phase::Chunks(Chunks::new())),
                    Follows::Tunnel => {
                        self.stop_waiting();
                        self.phase = Phase::Tunnel;
                    }
                }
                self.outlast();
            }
            Err(fault) => self.refuse(fault),
        }
        true
    }

    /// Notes the bytes that are held between polls. Returns `false` if the connection must end because of them.
    fn note_held(&mut self, cx: &Context<'_>) -> bool {
        self.turn_left_bytes = TURN_BYTES_MAX;
        self.buffer.shrink();
        match self.buffer.allocated_bytes() + self.head_bytes {
            0 => {
                self.held = None;
                true
            }
            bytes => self.hold(bytes, cx),
        }
    }

    fn hold(&mut self, bytes: usize, cx: &Context<'_>) -> bool {
        let held = self.held.get_or_insert_with(|| Box::new(HeldWork::new(&self.rules.unfinished)));
        held.set(bytes, cx.waker())
    }

    /// Ends the connection, because all clients together hold too much and this one holds the most.
    /// The client gets an answer that says so unless its request is being served. Returns whether it
    /// gets one.
    fn give_way(&mut self) -> bool {
        self.rules.metrics.hit(Limit::UnfinishedBytes);
        let can_be_told = self.phase == Phase::Head;
        self.end(UNAVAILABLE);
        can_be_told
    }

    /// Serves a request as the last one if the connection was told to give way before the request was handed
    /// over. The client could not know that, and a part of the answer or none would be worse for it than to
    /// connect again.
    fn outlast(&mut self) {
        if !self.turn.stays() {
            return;
        }
        self.is_last = true;
        if self.place.is_taken() {
            // The rest of the request may take long, so another connection ends instead. This one may be told
            // again: its old place is gone.
            self.place.leave();
            self.rules.waiting.make_room();
            self.enter();
        }
    }

    fn await_answer(&mut self) {
        self.stop_waiting();
        self.phase = Phase::Answer;
    }

    fn await_body(&mut self, phase: Phase) {
        if self.wait == Some(Wait::First) {
            self.set_wait(Wait::Rest);
        }
        self.phase = phase;
    }

    fn refuse(&mut self, fault: HeadFault) {
        self.note(&fault.to_string());
        self.end(match fault {
            HeadFault::TooLarge | HeadFault::Syntax(httparse::Error::TooManyHeaders) => TOO_LARGE,
            HeadFault::LongTarget => LONG_TARGET,
            _ => BAD_REQUEST,
        });
    }

    /// Counts a request that cannot be read. Unauthenticated clients send such requests, so it is
    /// logged at the level `debug` only.
    fn note(&self, why: &str) {
        match self.peer {
            Some(peer) => debug!("a malformed request from {peer}: {why}"),
            None => debug!("a malformed request: {why}"),
        }
        self.rules.metrics.malformed_requests.inc();
    }

    /// Ends the stream; the connection sends `farewell` when it is shut down.
    fn end(&mut self, farewell: &'static [u8]) {
        self.buffer = UnreadBytes::default();
        self.released = 0;
        self.head_bytes = 0;
        self.held = None;
        self.farewell = farewell;
        self.stop_waiting();
        self.phase = Phase::Over;
    }

    /// The most bytes that may be read before any of them are handed over.
    fn buffer_bytes_max(&self) -> usize {
        match self.phase {
            Phase::Head => HEAD_BYTES_MAX,
            Phase::Tunnel | Phase::Broken | Phase::Over => 0,
            Phase::Length(_) | Phase::Chunks(_) => READ_BYTES_MAX,
            Phase::Answer => READ_AHEAD_BYTES_MAX,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> HttpStream<T> {
    /// Waits for the first request, for the end of the stream, or until the server `stops`. The HTTP server
    /// allocates its state of the connection only after that.
    pub(in crate::session) async fn begun(&mut self, stops: impl Future<Output = ()>) {
        let mut stops = pin!(stops);
        poll_fn(|cx| {
            // The HTTP server will get the same error.
            if self.poll_released(cx).is_ready() || self.poll_end(cx).is_ready() {
                return Poll::Ready(());
            }
            ready!(stops.as_mut().poll(cx));
            if matches!(self.phase, Phase::Head) {
                self.end(b"");
            }
            Poll::Ready(())
        })
        .await;
    }

    fn poll_hand_over(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_released(cx))?;
        if self.released > 0 && self.turn_left_bytes == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let bytes = self.released.min(out.remaining());
        out.put_slice(&self.buffer[..bytes]);
        self.buffer.advance(bytes);
        self.released -= bytes;
        self.turn_left_bytes = self.turn_left_bytes.saturating_sub(bytes);
        Poll::Ready(Ok(()))
    }

    /// Reads until something may be handed over, or the stream is over.
    fn poll_released(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.released > 0 {
                return self.poll_turn(cx).map(Ok);
            }
            if self.phase == Phase::Over {
                return Poll::Ready(Ok(()));
            }
            if !self.scan(cx) {
                ready!(self.poll_read_more(cx))?;
            }
        }
    }

    /// Waits until the request that is to be handed over may begin.
    fn poll_turn(&mut self, cx: &Context<'_>) -> Poll<()> {
        let Some(work) = self.work else { return Poll::Ready(()) };
        if self.rules.work_queue.poll_pass(&mut self.ticket, work, cx).is_pending() {
            if self.wait != Some(Wait::Turn) {
                self.set_wait(Wait::Turn);
            }
            return Poll::Pending;
        }
        self.work = None;
        if self.wait == Some(Wait::Turn) {
            match self.phase {
                Phase::Length(_) | Phase::Chunks(_) => self.set_wait(Wait::Rest),
                _ => self.stop_waiting(),
            }
        }
        self.outlast();
        Poll::Ready(())
    }

    /// Reads more, or ends the stream if there is no more.
    fn poll_read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_listening = false;
        if self.is_eof {
            // Requests that came before the end are still served.
            if self.phase == Phase::Answer && !self.buffer.is_empty() {
                return Poll::Pending;
            }
            self.end(b"");
            return Poll::Ready(Ok(()));
        }
        let room = self.buffer_bytes_max().saturating_sub(self.buffer.len());
        if room == 0 {
            return Poll::Pending;
        }
        let mut bytes = [const { MaybeUninit::uninit() }; READ_BYTES_MAX];
        let is_first = self.phase == Phase::Head && self.buffer.is_empty();
        let at_once = if is_first { FIRST_READ_BYTES_MAX } else { READ_BYTES_MAX };
        let mut read = ReadBuf::uninit(&mut bytes[..room.min(at_once)]);
        let done = Pin::new(&mut self.io).poll_read(cx, &mut read);
        self.is_listening = done.is_pending();
        ready!(done)?;
        self.is_eof = read.filled().is_empty();
        let bytes_max = self.buffer_bytes_max();
        self.buffer.append(read.filled(), bytes_max);
        if self.wait == Some(Wait::Next) && !self.is_eof {
            self.is_last = self.turn.gives_way();
            self.set_wait(Wait::Rest);
        }
        Poll::Ready(Ok(()))
    }

    /// Resolves if the connection must end although no bytes are ready.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.note_held(cx) {
            return Poll::Ready(match self.give_way() {
                true => Ok(()),
                false => Err(io::ErrorKind::ConnectionAborted.into()),
            });
        }
        match ready!(self.poll_late(cx)) {
            Wait::First => self.end(TIMEOUT),
            Wait::Turn => self.end(UNAVAILABLE),
            // It was told between two requests, and the next one has come in part.
            Wait::Rest if self.is_last && self.phase == Phase::Head => self.end(UNAVAILABLE),
            Wait::Next => self.end(b""),
            Wait::Rest | Wait::Write | Wait::Close => {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Resolves with the reason of the wait once the deadline has passed, or if the connection must make room.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Wait> {
        let Some(wait) = self.wait else { return Poll::Pending };
        if self.turn.gives_way() {
            self.stop_waiting();
            return Poll::Ready(wait);
        }
        self.place.wake_by(cx.waker());
        self.stuck.wake_by(cx.waker());
        ready!(self.deadline.as_mut().poll(cx));
        self.stop_waiting();
        match wait {
            Wait::First => self.rules.metrics.hit(Limit::Handshake),
            Wait::Rest | Wait::Write => self.rules.metrics.hit(Limit::Idle),
            Wait::Turn | Wait::Next | Wait::Close => {}
        }
        Poll::Ready(wait)
    }

    /// Prepares for the next request, because the answer has been written.
    fn next(&mut self, cx: &mut Context<'_>) {
        self.phase = Phase::Head;
        self.head_bytes = 0;
        self.is_sent_ahead = !self.buffer.is_empty();
        if self.is_last || self.turn.gives_way() {
            // Requests that the client has sent ahead are read and dropped, so that the answer is not lost.
            self.lingers |= self.is_sent_ahead;
            self.end(b"");
            return cx.waker().wake_by_ref();
        }
        if self.buffer.is_empty() {
            self.held = None;
            self.set_wait(Wait::Next);
        } else {
            self.set_wait(Wait::Rest);
        }
        // The HTTP server reads again only when it is woken. So every wake-up is registered here: that by the
        // socket is if `is_listening`.
        self.place.wake_by(cx.waker());
        let is_late = self.deadline.as_mut().poll(cx).is_ready();
        if is_late || !self.buffer.is_empty() || !self.is_listening {
            cx.waker().wake_by_ref();
        }
    }

    /// Reads what the client still sends, and drops it.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = self.deadline.deadline();
        loop {
            let mut bytes = [const { MaybeUninit::uninit() }; READ_BYTES_MAX];
            let mut read = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut self.io).poll_read(cx, &mut read) {
                // While a client floods, the timer is never asked: tokio refuses a task that has read this much.
                Poll::Ready(Ok(())) if !read.filled().is_empty() && Instant::now() < until => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.poll_late(cx).map(drop),
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for HttpStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let done = self.poll_hand_over(cx, out);
        if done.is_ready() { done } else { self.poll_end(cx) }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HttpStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let done = Pin::new(&mut this.io).poll_write(cx, bytes);
        if done.is_ready() {
            if this.wait == Some(Wait::Write) {
                this.stop_waiting();
            }
            return done;
        }
        if this.wait.is_none() {
            this.set_wait(Wait::Write);
        }
        this.poll_late(cx).map(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Called by actix-http only once it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        match this.phase {
            Phase::Answer if this.released == 0 && this.turn.is_answered() => this.next(cx),
            // The answer did not need the body, and is the last one. actix-http would read the rest
            // of the body for a while, with its own buffers; the shutdown below reads it without
            // them.
            Phase::Length(_) if this.turn.is_answered() => {
                this.end(b"");
                this.lingers = true;
            }
            _ => {}
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.wait != Some(Wait::Close) && !this.is_shut_down {
            let is_unread =
                !this.farewell.is_empty() || !this.buffer.is_empty() || !this.is_listening;
            this.lingers |= is_unread && !this.is_eof;
            this.end(this.farewell);
            this.set_wait(Wait::Close);
        }
        while !this.farewell.is_empty() {
            match Pin::new(&mut this.io).poll_write(cx, this.farewell) {
                Poll::Ready(written) => this.farewell = &this.farewell[written?..],
                Poll::Pending => {
                    return this.poll_late(cx).map(|_| Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        if !this.is_shut_down {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.is_shut_down = true;
        }
        if this.lingers {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
