//! The turn of a connection: the client's, to send a request, or the server's, to answer it.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use actix_http::{
    Request,
    body::{BodySize, BoxBody, MessageBody},
};
use actix_web::HttpRequest;
use bytes::Bytes;

use super::waiting::WaitingConnections;
use crate::session::bucket::{Bucket, PerSecond};

/// The state of a connection that its stream shares with the answer that is under way, and with the
/// queue of connections that wait.
#[derive(Debug, Clone)]
pub(in crate::session) struct Turn(Rc<TurnState>);

#[derive(Debug)]
struct TurnState {
    is_answered: Cell<bool>,
    gives_way: Cell<bool>,
    is_trusted: Cell<bool>,
    /// The rate of the client's requests that need no authentication.
    asked: Cell<Bucket>,
    waiting: Rc<WaitingConnections>,
}

impl Turn {
    /// The state of a new connection. `waiting` are the connections of its thread that may give way.
    pub(super) fn new(waiting: Rc<WaitingConnections>) -> Self {
        Self(Rc::new(TurnState {
            is_answered: Cell::default(),
            gives_way: Cell::default(),
            is_trusted: Cell::default(),
            asked: Cell::default(),
            waiting,
        }))
    }

    /// The turn of the connection that a request came over.
    pub(in crate::session) fn of(request: &Request) -> Option<Self> {
        request.conn_data::<Self>().cloned()
    }

    /// Begins an answer, which ends when the returned value is dropped.
    pub(in crate::session) fn answer(self) -> Answering {
        Answering(self)
    }

    /// Notes a request that needs no authentication.
    ///
    /// # Errors
    /// The time until it may be noted, if it exceeds the rate now.
    pub(super) fn note_asked(&self, rate: PerSecond, now_s: f64) -> Result<(), Duration> {
        let mut asked = self.0.asked.get();
        let may_be = asked.take(1, rate, now_s);
        self.0.asked.set(asked);
        if may_be { Ok(()) } else { Err(asked.wait(1, rate, now_s)) }
    }

    /// The connections of its thread that may give way.
    pub(super) fn waiting(&self) -> &Rc<WaitingConnections> {
        &self.0.waiting
    }

    /// Returns whether the last request has been answered.
    pub(super) fn is_answered(&self) -> bool {
        self.0.is_answered.get()
    }

    /// Notes that a request is handed over, which will be answered. Returns whether the last one was trusted.
    pub(super) fn ask(&self) -> bool {
        self.0.is_answered.set(false);
        self.0.is_trusted.take()
    }

    /// Notes that the request that was handed over last came with valid credentials.
    pub(super) fn trust(&self) {
        self.0.is_trusted.set(true);
    }

    /// Returns whether the request that was handed over last came with valid credentials.
    pub(super) fn is_trusted(&self) -> bool {
        self.0.is_trusted.get()
    }

    /// Tells the connection to end, because there are too many connections.
    pub(super) fn give_way(&self) {
        self.0.gives_way.set(true);
    }

    /// Lets the connection go on until it is told again to end. Returns whether it was told.
    pub(super) fn stays(&self) -> bool {
        self.0.gives_way.take()
    }

    /// Returns whether the connection was told to end.
    pub(super) fn gives_way(&self) -> bool {
        self.0.gives_way.get()
    }
}

/// Notes that a request came with valid credentials, so that the next one on its connection need not wait in
/// the work queue.
pub fn trust(request: &HttpRequest) {
    if let Some(turn) = request.conn_data::<Turn>() {
        turn.trust();
    }
}

/// An answer that is under way.
#[derive(Debug)]
pub(in crate::session) struct Answering(Turn);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.is_answered.set(true);
    }
}

/// The body of an answer. The HTTP server drops it once it has encoded all of it.
#[derive(Debug)]
pub(in crate::session) struct InTurn {
    body: BoxBody,
    _answering: Option<Answering>,
}

impl InTurn {
    pub(in crate::session) fn new(body: BoxBody, answering: Option<Answering>) -> Self {
        Self { body, _answering: answering }
    }
}

impl MessageBody for InTurn {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}
