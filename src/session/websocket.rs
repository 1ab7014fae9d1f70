//! A session over a WebSocket.
//!
//! The only file that knows `WebsocketContext`. Its mailbox is the outbox (see
//! [`Outbox`](crate::broker::subscriber::Outbox)). While the broker is asked for a join or a
//! publication nothing more is read: a client's next message is not looked at before its last one
//! is answered.

use std::{cell::OnceCell, rc::Rc, time::Instant};

use actix::{fut::wrap_future, prelude::*};
use actix_http::ws;
use actix_web_actors::ws::WebsocketContext;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use log::debug;

use crate::broker::subscriber::{Frame, ToSession};

use super::{
    CloseCode, Conversation,
    driver::{self, Carrier, Driver},
    frames::{Frames, Gate, Inbound, Socket},
    pump::{Pump, Transport},
    worker::{Admission, Worker},
};

/// Frames are gathered into one write up to this size; a client that wakes up gets its outbox piece
/// by piece instead of as one private chunk.
const CHUNK_BYTES_MAX: usize = 32 * 1024;

/// One WebSocket connection.
pub(super) struct WebSocket<C: Conversation> {
    driver: Driver<C>,
    /// Shut while the broker is asked: nothing is read.
    gate: Rc<Gate>,
    /// Bytes handed to the context since it last let others have a turn.
    gathered_bytes: usize,
}

/// Starts a session on a socket whose handshake is done; the returned pump is its task.
pub(super) fn start<T: Transport, C: Conversation + Unpin>(
    io: T,
    early: BytesMut,
    conversation: C,
    admission: Admission,
    worker: Rc<Worker>,
) -> Pump<T, impl Stream<Item = Result<Bytes, actix_web::Error>>> {
    io.tune();
    let socket = Rc::new(Socket { io: io.into(), heard: Instant::now().into() });
    let gate = Rc::new(Gate::default());
    let frames = Frames::new(socket.clone(), worker.clone(), gate.clone(), early);
    let outbox = Rc::new(OnceCell::new());
    let (outbox_slot, actor_worker) = (outbox.clone(), worker.clone());
    let body = WebsocketContext::with_factory(stream::pending(), move |ctx| {
        ctx.set_mailbox_capacity(actor_worker.limits.outbox_frames_max);
        let mailbox = ctx.address().recipient();
        let driver = Driver::enter(conversation, admission, actor_worker, mailbox);
        outbox_slot.get_or_init(|| driver.outbox().clone());
        ctx.add_stream(frames);
        WebSocket { driver, gate, gathered_bytes: 0 }
    });
    let outbox = outbox.get().expect("the context calls its factory before it returns").clone();
    Pump::new(socket, worker, outbox, body)
}

impl<C: Conversation + Unpin> Carrier for WebSocket<C> {
    type Protocol = C;

    fn driver(&mut self) -> &mut Driver<C> {
        &mut self.driver
    }

    /// Hands a frame to the context, and lets it be written out once enough is gathered.
    fn send(&mut self, frame: Frame, ctx: &mut Self::Context) {
        self.gathered_bytes += frame.size_bytes();
        match frame {
            Frame::Text(text) => ctx.text(text),
            Frame::Binary(bytes) => ctx.binary(bytes),
        }
        if self.gathered_bytes > CHUNK_BYTES_MAX {
            self.gathered_bytes = 0;
            ctx.wait(wrap_future(tokio::task::yield_now()));
        }
    }

    /// Sends a close frame and ends the actor; the pump writes it out and hangs up.
    fn close(&mut self, code: CloseCode, ctx: &mut Self::Context) {
        ctx.close(Some(ws::CloseCode::from(code.0).into()));
        ctx.stop();
    }

    fn hold(&mut self) {
        self.gate.shut();
    }

    fn resume(&mut self, _: &mut Self::Context) {
        self.gate.open();
    }
}

impl<C: Conversation + Unpin> Actor for WebSocket<C> {
    type Context = WebsocketContext<Self>;
}

impl<C: Conversation + Unpin> StreamHandler<Inbound> for WebSocket<C> {
    fn handle(&mut self, inbound: Inbound, ctx: &mut Self::Context) {
        match inbound {
            Inbound::Message(message) => driver::received(self, message, ctx),
            Inbound::Ping(payload) => ctx.pong(&payload),
            Inbound::Close => self.close(CloseCode::ANSWER, ctx),
            Inbound::Broken(code) => {
                debug!("session {} broke the framing: {}", self.driver.session(), code.0);
                self.close(code, ctx);
            }
        }
    }
}

/// Never called: the context insists on a stream of its own, which is given nothing (see `frames`).
impl<C: Conversation + Unpin> StreamHandler<Result<ws::Message, ws::ProtocolError>>
    for WebSocket<C>
{
    fn handle(&mut self, _: Result<ws::Message, ws::ProtocolError>, _: &mut Self::Context) {}
}

impl<C: Conversation + Unpin> Handler<ToSession> for WebSocket<C> {
    type Result = ();

    fn handle(&mut self, message: ToSession, ctx: &mut Self::Context) {
        driver::heard(self, message, ctx);
    }
}
